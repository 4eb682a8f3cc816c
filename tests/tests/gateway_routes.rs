//! Routes of the Gateway API as an operator writes them, through the real control plane: where requests go, what is changed
//! on the way, who gets a copy, and that a changed route holds at once.
#![expect(clippy::unwrap_used, reason = "a test says what it expects")]

use remora_tests::shop::{self, PATIENCE, SHOP, curl, status};
use remora_tests::wire::{client, count, counted, kit, run_kit};
use remora_tests::{Mesh, Name, PodRef, check};
use serde_json::Value;

#[test]
fn a_canary_gets_its_share_and_whoever_asks_for_it() {
    let Some(mesh) = started(
        "{matches: [{headers: [{name: x-canary, value: always}]}], backendRefs: [{name: v2, port: 8080}]},
         {backendRefs: [{name: web, port: 8080, weight: 90}, {name: v2, port: 8080, weight: 10}]}",
    ) else {
        return;
    };
    let client = mesh.pod(SHOP, "client").unwrap();
    let servers = |arguments: &[&str]| -> Vec<String> {
        told(&client, arguments).iter().map(|told| told["server"].as_str().unwrap().to_owned()).collect()
    };
    let of_v2 = |servers: &[String]| servers.iter().filter(|server| *server == "v2").count();
    let shared = servers(&["http://web:8080/[1-1000]"]);
    assert_eq!(shared.len(), 1000);
    assert!(is_share(of_v2(&shared), 0.1, 1000), "{} of 1000", of_v2(&shared));
    let pinned = servers(&["-H", "X-Canary: always", "http://web:8080/[1-20]"]);
    assert_eq!((of_v2(&pinned), pinned.len()), (20, 20));

    // All of it, as soon as the control plane knows.
    mesh.update_manifest(&route("{backendRefs: [{name: v2, port: 8080}]}")).unwrap();
    mesh.wait_until("everything goes to v2", PATIENCE, || {
        let servers = servers(&["http://web:8080/[1-10]"]);
        of_v2(&servers) == 10
    })
    .unwrap();
    mesh.delete_object("HTTPRoute", &Name::new(SHOP, "web")).unwrap();
    mesh.wait_until("nothing does any more", PATIENCE, || of_v2(&servers(&["http://web:8080/[1-10]"])) == 0)
        .unwrap();
}

#[test]
fn hosts_and_paths_are_rewritten_which_linkerds_api_cannot_say() {
    let rewrite = "{type: URLRewrite, urlRewrite: {hostname: api.internal, path: {type: ReplacePrefixMatch, replacePrefixMatch: /v2}}}";
    let whole = "{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: /one}}}";
    let Some(mesh) = started(&format!(
        "{{matches: [{{path: {{type: PathPrefix, value: /v1}}}}], filters: [{rewrite}]}},
         {{matches: [{{path: {{type: Exact, value: /any}}}}], backendRefs: [{{name: v2, port: 8080, filters: [{whole}]}}]}},
         {{}}"
    )) else {
        return;
    };
    let client = mesh.pod(SHOP, "client").unwrap();
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        for (asked, path, host) in [
            ("/v1/users?page=2", "/v2/users?page=2", "api.internal"),
            ("/v1", "/v2", "api.internal"),
            ("/any?q", "/one?q", "web:8080"),
            ("/v11", "/v11", "web:8080"),
        ] {
            let all = told(&client, &[version, &format!("http://web:8080{asked}")]);
            let told = &all[0];
            // HTTP/2 has the host in its target.
            let target = told["target"].as_str().unwrap();
            let (authority, target) =
                match target.strip_prefix("http://").and_then(|rest| rest.split_once('/')) {
                    Some((authority, path)) => (Some(authority.to_owned()), format!("/{path}")),
                    None => (header(told, "host"), target.to_owned()),
                };
            assert_eq!(
                (target.as_str(), authority.as_deref()),
                (path, Some(host)),
                "{asked} {version}: {told}"
            );
        }
    }
}

#[test]
fn a_mirror_gets_copies_and_nobody_waits_for_it() {
    let mirror = "{type: RequestMirror, requestMirror: {backendRef: {name: v2, port: 8080}}}";
    let gone = "{type: RequestMirror, requestMirror: {backendRef: {name: none, port: 8080}}}";
    let Some(mesh) = started(&format!(
        "{{filters: [{mirror}, {gone}]}},
         {{matches: [{{path: {{value: /backend}}}}], backendRefs: [{{name: web, port: 8080, filters: [{mirror}]}}]}}"
    )) else {
        return;
    };
    let (client, v2) = (mesh.pod(SHOP, "client").unwrap(), mesh.pod(SHOP, "v2").unwrap());
    let all = told(&client, &["http://web:8080/[1-20]"]);
    assert!(all.iter().all(|told| told["server"] == "web"), "{all:?}");
    let big = "x".repeat(100_000);
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let posted = told(&client, &[version, "-H", "Expect:", "-d", &big, "http://web:8080/post"]);
        assert_eq!(posted[0]["server"], "web");
    }
    let mirrored = "remora_outbound_http_route_mirror_requests_total";
    counted(&client, mirrored, &[("route_name", "web"), ("result", "answered")], 22.0).unwrap();
    counted(&v2, "request_total", &[("direction", "inbound"), ("target_port", "8080")], 22.0).unwrap();

    // A mirror that breaks off is nobody's trouble.
    let (code, _) = status(&client, "http://web:8080/reset").unwrap_or((0, String::new()));
    assert_ne!(code, 200);
    assert_eq!(told(&client, &["http://web:8080/"])[0]["server"], "web");
    // What the other proxy says in its server's place is an answer too.
    counted(&client, mirrored, &[("route_name", "web"), ("result", "answered")], 24.0).unwrap();
    // The same of a backend.
    assert_eq!(told(&client, &["-d", "x", "http://web:8080/backend"])[0]["server"], "web");
    counted(&client, mirrored, &[("route_name", "web"), ("result", "answered")], 25.0).unwrap();
}

#[test]
fn a_mirror_gets_the_share_that_its_route_says() {
    let mirror = |share: &str| {
        format!("{{type: RequestMirror, requestMirror: {{backendRef: {{name: v2, port: 8080}}, {share}}}}}")
    };
    let Some(mesh) = started(&format!(
        "{{matches: [{{path: {{value: /percent}}}}], filters: [{}]}},
         {{matches: [{{path: {{value: /fraction}}}}], backendRefs: [{{name: web, port: 8080, filters: [{}]}}]}},
         {{matches: [{{path: {{value: /none}}}}], filters: [{}]}}",
        mirror("percent: 50"),
        mirror("fraction: {numerator: 1, denominator: 4}"),
        mirror("percent: 0"),
    )) else {
        return;
    };
    let client = mesh.pod(SHOP, "client").unwrap();
    let mut before = 0;
    for (path, share) in [("percent", 0.5), ("fraction", 0.25), ("none", 0.0)] {
        let asked = told(&client, &[&format!("http://web:8080/{path}/[1-400]")]);
        assert!(asked.len() == 400 && asked.iter().all(|told| told["server"] == "web"));
        let copies = copies(&mesh, &client);
        assert!(is_share(copies - before, share, 400), "{path}: {} copies of 400 requests", copies - before);
        before = copies;
    }
}

#[test]
fn a_request_that_is_sent_again_is_mirrored_once_by_a_backend_that_it_is_sent_to() {
    let mirror = "{type: RequestMirror, requestMirror: {backendRef: {name: v2, port: 8080}}}";
    let failing =
        "{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: /status/503}}}";
    let Some(mesh) = started(&format!(
        "{{matches: [{{path: {{value: /waits}}}}], timeouts: {{backendRequest: 200ms}},
           retry: {{attempts: 10, codes: [503], backoff: 1ms}},
           backendRefs: [{{name: dead, port: 8080, filters: [{mirror}]}}, {{name: web, port: 8080, weight: 2, filters: [{mirror}]}}]}},
         {{matches: [{{path: {{value: /fails}}}}], retry: {{attempts: 10, codes: [503], backoff: 1ms}},
           backendRefs: [{{name: v2, port: 8080, filters: [{failing}]}}, {{name: web, port: 8080, filters: [{mirror}]}}]}},
         {{matches: [{{path: {{value: /both}}}}], retry: {{attempts: 10, codes: [503], backoff: 1ms}},
           backendRefs: [{{name: v2, port: 8080, filters: [{failing}, {mirror}]}}, {{name: web, port: 8080, filters: [{mirror}]}}]}}"
    )) else {
        return;
    };
    let client = mesh.pod(SHOP, "client").unwrap();
    let mirrored = "remora_outbound_http_route_mirror_requests_total";
    let body = "x".repeat(40_000);
    let mut expected = 0.0;
    // To one that is not there, of which a try does not always find so in time; to one that fails and has no mirror; to
    // one that fails and has one.
    for (path, times) in [("waits", 12), ("fails", 20), ("both", 20)] {
        let url = format!("http://web:8080/{path}/[1-{times}]");
        let asked = told(&client, &["-H", "Expect:", "-d", &body, &url]);
        assert!(asked.iter().all(|told| told["server"] == "web"), "{asked:?}");
        expected += f64::from(times);
        let answered = || counted(&client, mirrored, &[("result", "answered")], expected);
        answered().unwrap_or_else(|error| panic!("{path}: {error:#}"));
        counted(&client, mirrored, &[], expected).unwrap();
    }
    let again = "outbound_http_route_retry_requests_total";
    assert!(count(&client, again, &[("route_name", "web")]).unwrap() > 10.0, "this was about retries");
}

#[test]
fn grpc_has_its_answers_headers_changed_and_its_calls_mirrored() {
    if !check::can_run() {
        return;
    }
    let pods = [kit("calls", 9000, "grpc", &[]), kit("shadow", 9000, "grpc", &[]), client("client", &[])];
    let filters = "{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-answered, value: by the route}]}}, \
                   {type: RequestMirror, requestMirror: {backendRef: {name: shadow, port: 9000}}}";
    let route = format!(
        "{{apiVersion: gateway.networking.k8s.io/v1, kind: GRPCRoute, metadata: {{name: calls, namespace: {SHOP}}}, spec: \
         {{parentRefs: [{{group: core, kind: Service, name: calls, port: 9000}}], rules: [{{filters: [{filters}]}}]}}}}\n---\n"
    );
    let mesh = shop::open(&[&pods[..], &[route]].concat()).unwrap();
    let (client, shadow) = (mesh.pod(SHOP, "client").unwrap(), mesh.pod(SHOP, "shadow").unwrap());
    for (arguments, last) in
        [(&["unary"][..], "status 0 "), (&["stream", "--count", "3"], "status 0 "), (&["bidi"], "status 0 ")]
    {
        let said = run_kit(&client, &[&["grpc-client", "http://calls:9000"], arguments].concat()).unwrap();
        assert_eq!(said.lines().last(), Some(last), "{arguments:?}: {said}");
    }
    // No gRPC method: the answer is gRPC's own.
    let grpc = [
        "--http2-prior-knowledge",
        "-i",
        "-X",
        "POST",
        "-H",
        "content-type: application/grpc",
        "-H",
        "te: trailers",
    ];
    let answer = curl(&client, &[&grpc[..], &["http://calls:9000/none/None"]].concat()).unwrap();
    assert!(answer.contains("x-answered: by the route\r\n"), "{answer}");
    let mirrored = "remora_outbound_grpc_route_mirror_requests_total";
    counted(&client, mirrored, &[("route_name", "calls"), ("result", "answered")], 4.0).unwrap();
    counted(&client, mirrored, &[], 4.0).unwrap();
    counted(&shadow, "request_total", &[("direction", "inbound"), ("target_port", "9000")], 4.0).unwrap();
}

#[test]
fn what_cannot_be_had_is_said_by_the_answer_and_by_the_status() {
    let Some(mesh) = started(
        "{matches: [{path: {value: /gone}}], backendRefs: [{name: none, port: 8080}]},
         {matches: [{path: {value: /cors}}], filters: [{type: CORS, cors: {}}]},
         {matches: [{path: {value: /moved}}], filters: [{type: RequestRedirect, requestRedirect: {hostname: example.com, statusCode: 301}}]},
         {matches: [{path: {value: /slow}}], timeouts: {request: 300ms}}",
    ) else {
        return;
    };
    let client = mesh.pod(SHOP, "client").unwrap();
    let (code, error) = status(&client, "http://web:8080/gone").unwrap();
    assert!(code == 500 && error.contains("Service shop/none does not exist"), "{code} {error}");
    let (code, error) = status(&client, "http://web:8080/cors").unwrap();
    assert!(code == 500 && error.contains("spec.rules[1].filters[0].cors"), "{code} {error}");
    assert_eq!(status(&client, "http://web:8080/slow/2000").unwrap().0, 504);
    assert_eq!(status(&client, "http://web:8080/none/of/them").unwrap().0, 404);
    let moved = curl(
        &client,
        &["-o", "/dev/null", "-w", "%{http_code} %header{location}", "http://web:8080/moved/a"],
    );
    assert_eq!(moved.unwrap(), "301 http://example.com:8080/moved/a");
}

/// `web` with a route of these rules, `v2`, and a client; nothing where pods cannot run.
fn started(rules: &str) -> Option<Mesh> {
    if !check::can_run() {
        return None;
    }
    let pods = [
        kit("web", 8080, "http", &[]),
        kit("v2", 8080, "http", &[]),
        client("client", &[]),
        // Nobody listens there.
        shop::idle("dead", &[]),
        shop::service("dead", 8080, "7999"),
    ];
    Some(shop::open(&[&pods[..], &[route(rules)]].concat()).unwrap())
}

fn route(rules: &str) -> String {
    format!(
        "{{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {{name: web, namespace: {SHOP}}}, spec: \
         {{parentRefs: [{{group: core, kind: Service, name: web, port: 8080}}], rules: [{rules}]}}}}\n---\n"
    )
}

/// What the servers say that they were asked.
fn told(client: &PodRef<'_>, arguments: &[&str]) -> Vec<Value> {
    let answers = curl(client, arguments).unwrap();
    let stream = serde_json::Deserializer::from_str(&answers).into_iter::<Value>();
    stream.collect::<Result<_, _>>().unwrap()
}

/// Whether so many of `all` are this share, within six standard deviations.
fn is_share(count: usize, share: f64, all: u32) -> bool {
    let all = f64::from(all);
    (count as f64 - all * share).abs() <= 6.0 * (all * share * (1.0 - share)).sqrt()
}

/// How many copies were sent to `v2`, which is asked by nobody else, once all are answered.
fn copies(mesh: &Mesh, client: &PodRef<'_>) -> usize {
    let mut copies = 0.0;
    mesh.wait_until("every copy to be answered", PATIENCE, || {
        let sent =
            count(client, "request_total", &[("direction", "outbound"), ("dst_service", "v2")]).unwrap();
        copies = count(client, "remora_outbound_http_route_mirror_requests_total", &[]).unwrap();
        (sent - copies).abs() < 0.5
    })
    .unwrap();
    copies as usize
}

fn header(told: &Value, name: &str) -> Option<String> {
    let all = told["headers"].as_array().unwrap().iter();
    let mut named = all.filter(|field| field[0].as_str().unwrap().eq_ignore_ascii_case(name));
    Some(named.next()?[1].as_str().unwrap().to_owned())
}

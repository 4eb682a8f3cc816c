//! Policy resources do what they say, through real proxies: whom a Server's policies admit passes, whom they do not has 403,
//! and the log names server, route and policy; what is open when they change is decided anew. Contract 3.4.
#![expect(clippy::unwrap_used, reason = "a test says what it expects")]

use remora_tests::shop::{self, PATIENCE, curl};
use remora_tests::wire::{client, kit};
use remora_tests::{Mesh, PodRef, check, metrics, peer};
use serde_json::Value;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Instant;

/// A Server of nginx's port, for the clients that the policy `till` names.
fn server(access: &str) -> String {
    format!(
        "
apiVersion: policy.linkerd.io/v1beta3
kind: Server
metadata: {{name: web, namespace: shop}}
spec: {{podSelector: {{matchLabels: {{app: web}}}}, port: http, proxyProtocol: HTTP/1, accessPolicy: {access}}}
---
"
    )
}

fn policy(target: &str, account: &str) -> String {
    format!(
        "
apiVersion: policy.linkerd.io/v1alpha1
kind: AuthorizationPolicy
metadata: {{name: till, namespace: shop}}
spec:
  targetRef: {{{target}}}
  requiredAuthenticationRefs: [{{kind: ServiceAccount, name: {account}}}]
---
"
    )
}

const SERVER: &str = "group: policy.linkerd.io, kind: Server, name: web";

/// A route that is attached to the Server: nothing but what is below `/files`.
const FILES: &str = "
apiVersion: policy.linkerd.io/v1beta3
kind: HTTPRoute
metadata: {name: files, namespace: shop}
spec:
  parentRefs: [{group: policy.linkerd.io, kind: Server, name: web}]
  rules: [{matches: [{path: {type: PathPrefix, value: /files}}]}]
---
";

fn status(from: &PodRef<'_>, path: &str) -> u16 {
    let url = format!("http://web:8000{path}");
    let code = curl(from, &["-o", "/dev/null", "-w", "%{http_code}", &url]).unwrap();
    code.parse().unwrap()
}

#[track_caller]
fn becomes(mesh: &Mesh, from: &PodRef<'_>, path: &str, expected: u16) {
    let what = format!("{expected} for {path} from {}", from.name);
    mesh.wait_until(&what, PATIENCE, || status(from, path) == expected).unwrap();
}

#[test]
fn a_server_admits_whom_its_policies_name_and_says_whom_it_refused() {
    if !check::can_run() {
        return;
    }
    let told = "labels: {app: web}, annotations: {config.remora.io/denial-header: enabled}";
    let objects = [
        shop::web("web").replace("labels: {app: web}", told),
        shop::idle("till", &[]),
        shop::idle("thief", &[]),
        server("deny"),
        policy(SERVER, "till"),
    ];
    // That the pod became ready shows that its probe passes: a GET of `/`, which nobody else's requests here are.
    let mesh = shop::open(&objects).unwrap();
    let (web, till, thief) = (
        mesh.pod("shop", "web").unwrap(),
        mesh.pod("shop", "till").unwrap(),
        mesh.pod("shop", "thief").unwrap(),
    );
    becomes(&mesh, &till, "/shop", 200);
    becomes(&mesh, &thief, "/shop", 403);
    let log = mesh.logs(&web, "linkerd-proxy");
    let refused = log.lines().find(|line| line.contains("request refused")).unwrap_or_default();
    let why = "thief.shop.serviceaccount.identity.remora.cluster.local may not use server/web: not admitted by \
               authorizationpolicy/till";
    assert!(refused.contains(why), "{log}");
    let counted = metrics::parse(&curl(&web, &["-f", "http://127.0.0.1:4191/metrics"]).unwrap());
    let labels = [("srv_name", "web"), ("policies", "authorizationpolicy/till")];
    assert!(counted.sum("inbound_http_authz_deny_total", &labels) >= Some(1.0));
    // The answer says it too, as the annotation wants, to who has an identity.
    let header = ["-o", "/dev/null", "-w", "%header{remora-denied-by}", "http://web:8000/shop"];
    assert_eq!(curl(&thief, &header).unwrap(), "server=server/web; policies=authorizationpolicy/till");
    let mut stranger = mesh.dial(web.at(80).unwrap()).unwrap();
    stranger.write_all(b"GET /shop HTTP/1.1\r\nhost: web\r\n\r\n").unwrap();
    let answer = String::from_utf8(peer::read_head(&mut stranger).unwrap()).unwrap();
    assert!(answer.starts_with("HTTP/1.1 403 ") && !answer.contains("remora-denied-by"), "{answer}");

    // Another one is named: the next request is decided anew.
    mesh.apply(&policy(SERVER, "thief")).unwrap();
    becomes(&mesh, &thief, "/shop", 200);
    becomes(&mesh, &till, "/shop", 403);
    // Whoever is left is admitted as well, and named.
    mesh.apply(&server("audit")).unwrap();
    becomes(&mesh, &till, "/shop", 200);
    assert!(mesh.logs(&web, "linkerd-proxy").contains("admitted by the audit policy only"));
}

#[test]
fn a_route_takes_what_is_its_own_and_leaves_probes_alone() {
    if !check::can_run() {
        return;
    }
    let to_route = policy("group: policy.linkerd.io, kind: HTTPRoute, name: files", "till");
    let objects = [
        shop::web("web"),
        shop::idle("till", &[]),
        shop::idle("thief", &[]),
        server("deny"),
        to_route,
        FILES.to_owned(),
    ];
    let mesh = shop::open(&objects).unwrap();
    let (web, till, thief) = (
        mesh.pod("shop", "web").unwrap(),
        mesh.pod("shop", "till").unwrap(),
        mesh.pod("shop", "thief").unwrap(),
    );
    becomes(&mesh, &till, "/files/index.html", 200);
    becomes(&mesh, &thief, "/files/index.html", 403);
    let header = ["-o", "/dev/null", "-w", "%header{remora-denied-by}", "http://web:8000/files/index.html"];
    assert_eq!(curl(&thief, &header).unwrap(), "", "nobody asked for it");
    let log = mesh.logs(&web, "linkerd-proxy");
    assert!(
        log.contains("may not use server/web, httproute/files: not admitted by authorizationpolicy/till"),
        "{log}"
    );
    becomes(&mesh, &till, "/elsewhere", 404);
    let denied = [
        ("srv_kind", "server"),
        ("srv_name", "web"),
        ("route_kind", "HTTPRoute"),
        ("route_name", "files"),
        ("client_id", "thief.shop.serviceaccount.identity.remora.cluster.local"),
    ];
    let seen = curl(&web, &["-f", "http://127.0.0.1:4191/metrics"]).unwrap();
    let samples = metrics::parse(&seen);
    assert!(samples.sum("inbound_http_authz_deny_total", &denied) >= Some(1.0), "{seen}");
    // The kubelet's: GET of the probe's path, with a query that nobody wrote.
    assert_eq!(web.http_get(80, "/?from=kubelet").unwrap().0, 200);
}

#[test]
fn an_open_connection_ends_when_its_client_is_admitted_no_longer() {
    if !check::can_run() {
        return;
    }
    let opaque = server("all-unauthenticated").replace("HTTP/1", "opaque");
    let mesh = shop::open(&[shop::web("web"), opaque.clone()]).unwrap();
    let web = mesh.pod("shop", "web").unwrap();
    let ask = |stream: &mut TcpStream| {
        let mut head = [0; 12];
        let asked = stream.write_all(b"GET / HTTP/1.1\r\nhost: web\r\n\r\n");
        asked.and_then(|()| stream.read_exact(&mut head)).is_ok() && head.ends_with(b"200")
    };
    // Under the default policy, which holds until then, it would be one of requests.
    let opaque_by =
        |state: &Value| state.pointer("/inbound/policies/80/protocol").is_some_and(|is| is == "opaque");
    mesh.wait_until("a connection to be taken by the Server", PATIENCE, || {
        let taken = ask(&mut mesh.dial(web.at(80).unwrap()).unwrap());
        taken && shop::state(&web).is_ok_and(|state| opaque_by(&state))
    })
    .unwrap();
    let mut open = mesh.dial(web.at(80).unwrap()).unwrap();
    assert!(ask(&mut open));
    mesh.apply(&opaque.replace("all-unauthenticated", "all-authenticated")).unwrap();
    // Whatever was left to read, and then the end.
    let ended = open.read_to_end(&mut Vec::new()).map_err(|error| error.kind());
    assert_ne!(ended, Err(std::io::ErrorKind::WouldBlock), "still open");
    mesh.wait_until("the next one to be refused", PATIENCE, || {
        !ask(&mut mesh.dial(web.at(80).unwrap()).unwrap())
    })
    .unwrap();
}

/// The Server of a program of the testkit, whatever it speaks.
fn any(access: &str) -> String {
    server(access).replace("port: http, proxyProtocol: HTTP/1", "port: 8080, proxyProtocol: unknown")
}

#[test]
fn a_route_of_a_server_changes_redirects_and_fails_what_it_says() {
    if !check::can_run() {
        return;
    }
    let route = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: parts, namespace: shop}
spec:
  parentRefs: [{group: policy.linkerd.io, kind: Server, name: web}]
  rules:
  - matches: [{path: {value: /set}}]
    filters:
    - type: RequestHeaderModifier
      requestHeaderModifier: {set: [{name: x-seen, value: by the server}], add: [{name: x-more, value: two}], remove: [x-gone]}
  - matches: [{path: {value: /host}}]
    filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: host, value: api.internal}]}}]
  - matches: [{path: {value: /moved}}]
    filters:
    - type: RequestRedirect
      requestRedirect: {hostname: example.com, statusCode: 301, path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}}
  - matches: [{path: {value: /mirrored}}]
    filters: [{type: RequestMirror, requestMirror: {backendRef: {name: web, port: 8080}}}]
  - {}
---
";
    let objects =
        [kit("web", 8080, "http", &[]), client("client", &[]), any("all-unauthenticated"), route.to_owned()];
    let mesh = shop::open(&objects).unwrap();
    let client = mesh.pod("shop", "client").unwrap();
    let moved = |version: &str, path: &str| {
        let url = format!("http://web:8080{path}");
        let print = "%{http_code} %header{location}";
        curl(&client, &[version, "-o", "/dev/null", "-w", print, &url]).unwrap()
    };
    mesh.wait_until("the route to hold", PATIENCE, || moved("--http1.1", "/moved").starts_with("301"))
        .unwrap();
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        assert_eq!(moved(version, "/moved/a?b=c"), "301 http://example.com:8080/new/a?b=c", "{version}");
        let told = |path: &str| -> Value {
            let url = format!("http://web:8080{path}");
            let sent = [version, "-H", "x-seen: by me", "-H", "x-more: one", "-H", "x-gone: yes", &url];
            serde_json::from_str(&curl(&client, &sent).unwrap()).unwrap()
        };
        let seen = told("/set");
        assert_eq!(values(&seen, "x-seen"), ["by the server"], "{seen}");
        assert_eq!(
            (values(&seen, "x-more"), values(&seen, "x-gone")),
            (vec!["one".into(), "two".into()], vec![])
        );
        let seen = told("/host");
        assert!(seen.to_string().contains("api.internal"), "{version}: {seen}");
        assert_eq!(values(&told("/other"), "x-seen"), ["by me"]);
        let url = "http://web:8080/mirrored";
        let failed =
            curl(&client, &[version, "-o", "/dev/null", "-w", "%{http_code} %header{l5d-proxy-error}", url]);
        let failed = failed.unwrap();
        assert!(failed.starts_with("500 "), "what cannot be had fails, and nothing else does: {failed}");
    }
}

/// The values of a header that a program of the testkit was sent.
fn values(told: &Value, name: &str) -> Vec<String> {
    let fields = told["headers"].as_array().unwrap().iter();
    let named = fields.filter(|field| field[0].as_str().unwrap().eq_ignore_ascii_case(name));
    named.map(|field| field[1].as_str().unwrap().to_owned()).collect()
}

/// Requests per second of each client.
const EACH: u32 = 5;

#[test]
fn a_rate_limit_is_429_for_who_asks_too_often_and_outlives_a_change_of_something_else() {
    if !check::can_run() {
        return;
    }
    let limit = format!(
        "
apiVersion: policy.linkerd.io/v1alpha1
kind: HTTPLocalRateLimitPolicy
metadata: {{name: slow, namespace: shop}}
spec:
  targetRef: {{{SERVER}}}
  identity: {{requestsPerSecond: {EACH}}}
---
"
    );
    let objects = [
        kit("web", 8080, "http", &[("config.remora.io/denial-header", "enabled")]),
        shop::idle("greedy", &[]),
        shop::idle("modest", &[]),
        any("all-unauthenticated"),
    ];
    let mesh = shop::open(&objects).unwrap();
    let pod = |name: &str| mesh.pod("shop", name).unwrap();
    let (web, greedy, modest) = (pod("web"), pod("greedy"), pod("modest"));
    let asks = |from: &PodRef<'_>, url: &str| -> (usize, usize) {
        let codes = curl(from, &["-o", "/dev/null", "-w", "%{http_code}\n", url]).unwrap();
        let of = |code: &str| codes.lines().filter(|line| *line == code).count();
        assert_eq!(of("200") + of("429"), codes.lines().count(), "{codes}");
        (of("200"), of("429"))
    };
    let knows = |what: &str| {
        shop::state(&web).is_ok_and(|state| state["inbound"]["policies"].to_string().contains(what))
    };
    // A policy arrives when somebody has asked.
    mesh.wait_until("the Server to be known", PATIENCE, || {
        asks(&greedy, "http://web:8080/").0 == 1 && knows("\"web\"")
    })
    .unwrap();
    mesh.apply(&limit).unwrap();
    mesh.wait_until("the limit to be known", PATIENCE, || knows("slow")).unwrap();

    let began = Instant::now();
    let (served, refused) = asks(&greedy, "http://web:8080/[1-40]");
    assert!(refused > 0, "{served} served");
    assert_eq!(asks(&modest, "http://web:8080/[1-3]"), (3, 0), "another has his own");
    let by = ["-o", "/dev/null", "-w", "%{http_code} %header{remora-denied-by}\n", "http://web:8080/[1-20]"];
    let told = curl(&greedy, &by).unwrap();
    let more = told.lines().filter(|line| line.starts_with("200")).count();
    assert!(told.contains("429 server=server/web; policies=httplocalratelimitpolicy/slow\n"), "{told}");

    // Something else about the same port.
    mesh.apply(&policy(SERVER, "nobody")).unwrap();
    mesh.wait_until("the other policy to be known", PATIENCE, || knows("till")).unwrap();
    let (again, _) = asks(&greedy, "http://web:8080/[1-40]");
    let most = f64::from(EACH) * (began.elapsed().as_secs_f64() + 1.0) + 1.0;
    let total = u32::try_from(served + more + again).unwrap();
    assert!(f64::from(total) <= most, "{total} of at most {most}: a new burst");
    let limited = [("ratelimit_name", "slow"), ("ratelimit_scope", "identity"), ("srv_name", "web")];
    assert!(web.metrics().unwrap().count("inbound_http_local_ratelimit_total", &limited) > 0);
    assert!(
        mesh.logs(&web, "linkerd-proxy").contains("more often than httplocalratelimitpolicy/slow allows")
    );
}

#[test]
fn what_one_namespace_says_holds_for_no_other() {
    if !check::can_run() {
        return;
    }
    // Everything that could be about `web` of the shop, said elsewhere: by name, by labels, and by a namespace given.
    let elsewhere = "
{kind: Namespace, apiVersion: v1, metadata: {name: other, annotations: {linkerd.io/inject: enabled}}}
---
{apiVersion: policy.linkerd.io/v1beta3, kind: Server, metadata: {name: web, namespace: other}, spec: {podSelector: {}, port: 8080, accessPolicy: deny}}
---
{apiVersion: policy.linkerd.io/v1beta3, kind: Server, metadata: {name: zebra, namespace: other}, spec: {podSelector: {matchLabels: {app: web}}, port: 8080, accessPolicy: deny}}
---
{apiVersion: policy.linkerd.io/v1alpha1, kind: AuthorizationPolicy, metadata: {name: thieves, namespace: other}, spec: {targetRef: {group: policy.linkerd.io, kind: Server, name: web}, requiredAuthenticationRefs: []}}
---
{apiVersion: policy.linkerd.io/v1alpha1, kind: AuthorizationPolicy, metadata: {name: all, namespace: other}, spec: {targetRef: {kind: Namespace, name: shop}, requiredAuthenticationRefs: []}}
---
{apiVersion: policy.linkerd.io/v1beta1, kind: ServerAuthorization, metadata: {name: old, namespace: other}, spec: {server: {name: web}, client: {unauthenticated: true}}}
---
{apiVersion: policy.linkerd.io/v1alpha1, kind: HTTPLocalRateLimitPolicy, metadata: {name: slow, namespace: other}, spec: {targetRef: {group: policy.linkerd.io, kind: Server, name: web}, total: {requestsPerSecond: 1}}}
---
{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: gone, namespace: other}, spec: {parentRefs: [{group: policy.linkerd.io, kind: Server, name: web, namespace: shop}], rules: [{matches: [{path: {value: /nowhere}}]}]}}
---
";
    let ours = any("deny");
    let objects = [
        kit("web", 8080, "http", &[]),
        client("till", &[]),
        client("thief", &[]),
        ours,
        policy(SERVER, "till"),
        elsewhere.to_owned(),
        kit("web", 8080, "http", &[]).replace("namespace: shop", "namespace: other"),
    ];
    let mesh = shop::open(&objects).unwrap();
    let (till, thief) = (mesh.pod("shop", "till").unwrap(), mesh.pod("shop", "thief").unwrap());
    let code = |from: &PodRef<'_>, host: &str| {
        curl(from, &["-o", "/dev/null", "-w", "%{http_code}", &format!("http://{host}:8080/")]).unwrap()
    };
    // There it holds: by the limit and by the authorization.
    mesh.wait_until("the other namespace's limit", PATIENCE, || code(&thief, "web.other") == "429").unwrap();
    mesh.wait_until("the shop's own policy", PATIENCE, || code(&thief, "web") == "403").unwrap();
    let codes = curl(&till, &["-o", "/dev/null", "-w", "%{http_code} ", "http://web:8080/[1-20]"]).unwrap();
    assert_eq!(codes, "200 ".repeat(20), "neither a limit nor a route of somebody else's");
}

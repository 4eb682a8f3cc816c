//! What a route says happens to its requests, whoever says it: the control plane is played by hand (`controller`), in
//! Linkerd's API. Contract 3.3, 4.1 to 4.3, 4.8, 4.9; design "Paths".
#![expect(clippy::unwrap_used, reason = "a test says what it expects")]

use bytes::Bytes;
use linkerd2_proxy_api::http_route::{
    HttpFailureInjector, PathModifier, Ratio, RequestHeaderModifier, RequestRedirect, ResponseHeaderModifier,
    Timeouts, path_modifier::Replace,
};
use linkerd2_proxy_api::outbound::http_route::{Rule, filter::Kind};
use remora_tests::controller::{self, Controller, Reply};
use remora_tests::origin::Origin;
use remora_tests::rules::{at_backends, fields, filtered, millis, policy, retry, rule, under};
use remora_tests::shop::{self, PATIENCE, SHOP, curl};
use remora_tests::wire::{client, kit};
use remora_tests::{Mesh, PodRef, check};
use serde_json::Value;
use std::net::SocketAddr;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

const WEB: &str = "web.shop.svc.cluster.local:8080";
const CANARY: &str = "canary.shop.svc.cluster.local:8080";
/// One endpoint that answers, and one that never does.
const MIXED: &str = "mixed.shop.svc.cluster.local:8080";
const TO_WEB: &[(&str, u32)] = &[(WEB, 1)];

#[test]
fn headers_are_modified_both_ways_by_the_rule_and_then_by_the_backend() {
    let Some(client) = client_pod() else { return };
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let sent = [
            "-H",
            "x-rule: headers",
            "-H",
            "x-set: old",
            "-H",
            "x-set: older",
            "-H",
            "x-gone: 1",
            "-i",
            version,
        ];
        let answer = curl(&client, &[&sent, &["http://web:8080/"][..]].concat()).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let told: Value = serde_json::from_str(body).unwrap();
        for (name, expected) in
            [("x-added", &["1"][..]), ("x-set", &["new"]), ("x-gone", &[]), ("x-backend", &["seen"])]
        {
            assert_eq!(headers(&told, name), expected, "{name} over {version}: {told}");
        }
        let head = head.to_ascii_lowercase();
        assert!(head.contains("x-answered: by the rule") && !head.contains("content-type"), "{head}");
        assert!(head.contains("x-answering-backend: yes"), "{head}");
    }
}

#[test]
fn a_redirect_is_answered_with_the_place_to_ask() {
    let Some(client) = client_pod() else { return };
    for (rule, url, expected) in [
        ("-", "http://web:8080/old/a?b=c", "302 http://web:8080/new/a?b=c"),
        ("-", "http://web:8080/old", "302 http://web:8080/new"),
        ("secure", "http://web:8080/a", "308 https://web/a"),
        ("elsewhere", "http://web:8080/a?b", "301 http://other.example:9000/whole?b"),
    ] {
        let format = "%{http_code} %header{location}";
        let header = format!("x-rule: {rule}");
        let answer = curl(&client, &["-o", "/dev/null", "-w", format, "-H", &header, url]).unwrap();
        assert_eq!(answer, expected, "{url} by {rule}");
    }
    let counted = route_count(&client, &[("http_status", "302"), ("error", "")]);
    assert!(counted >= 2, "{counted}: a redirect is no error");
}

#[test]
fn traffic_is_split_by_weight_and_a_header_pins_it() {
    let Some(client) = client_pod() else { return };
    let servers = |rule: &str, times: usize| -> Vec<String> {
        let url = format!("http://web:8080/?[1-{times}]");
        let told = curl(&client, &["-H", &format!("x-rule: {rule}"), &url]).unwrap();
        told.lines().map(|told| server(&serde_json::from_str(told).unwrap())).collect()
    };
    let split = servers("split", 300);
    let canaries = split.iter().filter(|server| *server == "canary").count();
    assert_eq!(split.len(), 300);
    // A tenth of 300, more than four standard deviations to either side.
    assert!((8..=55).contains(&canaries), "{canaries} of 300");
    assert_eq!(servers("pinned", 20), vec!["canary"; 20]);
    assert_eq!(servers("never", 20), vec!["web"; 20]);
}

#[test]
fn failures_are_injected_into_the_share_of_requests_that_the_route_says() {
    let Some(client) = client_pod() else { return };
    assert_eq!(ask(&client, "broken", "/"), (500, "no luck today".into()));
    let url = "http://web:8080/?[1-100]";
    let sent = ["-o", "/dev/null", "-w", "%{http_code}\n", "-H", "x-rule: flaky", url];
    let codes = curl(&client, &sent).unwrap();
    let failed = codes.lines().filter(|code| *code == "503").count();
    assert!((20..=80).contains(&failed), "{failed} of 100");
    assert_eq!(codes.lines().filter(|code| *code == "200").count(), 100 - failed);
}

#[test]
fn a_request_that_takes_longer_than_its_route_allows_is_504_and_its_body_ends() {
    let Some(client) = client_pod() else { return };
    let before = errors(&client, "request timeout");
    let asked = Instant::now();
    let (code, error) = ask(&client, "limited", "/slow/8000");
    assert_eq!(code, 504, "{error}");
    assert_eq!(error, "the request timeout of the route ended the exchange after 500ms");
    assert!(asked.elapsed() < Duration::from_secs(6), "{:?}", asked.elapsed());
    assert!(errors(&client, "request timeout") > before);
    // A head in time is passed on; the body ends when the time is over.
    let sent = ["-o", "/dev/null", "-w", "%{http_code}", "-H", "x-rule: limited"];
    let cut = curl(&client, &[&sent[..], &["http://web:8080/chunked/20/1000"]].concat());
    assert!(cut.is_err(), "all of it came: {cut:?}");
    for (rule, said) in [("quiet", "idle"), ("brisk", "response")] {
        let (code, error) = ask(&client, rule, "/slow/8000");
        assert_eq!(code, 504, "{error}");
        assert!(error.starts_with(&format!("the {said} timeout of the route")), "{error}");
        // What moves is not idle.
        assert_eq!(ask(&client, "quiet", "/chunked/8/100").0, 200);
    }
    for error in ["REQUEST_TIMEOUT", "IDLE_TIMEOUT", "RESPONSE_STREAM_TIMEOUT"] {
        assert!(route_count(&client, &[("error", error)]) > 0, "{error}");
    }
}

#[test]
fn failed_requests_are_sent_again_up_to_the_routes_limit() {
    let Some(client) = client_pod() else { return };
    let counted = |family: &str| {
        let family = format!("outbound_http_route_retry_{family}_total");
        client.metrics().unwrap().count(&family, &[("route_name", "retried")])
    };
    let families = ["requests", "successes", "limit_exceeded", "overflow"];
    let before = families.map(counted);
    // Two retries hide two failures, whatever the method, and not three.
    for (path, body, expected) in [
        ("/fails/2/get", None, 200),
        ("/fails/2/post", Some("hello"), 200),
        ("/fails/3/get", None, 503),
        ("/status/404", None, 404),
    ] {
        assert_eq!(sent(&client, "again", path, body), expected, "{path}");
    }
    let long = "x".repeat(70 * 1024);
    assert_eq!(sent(&client, "again", "/fails/1/long", Some(&long)), 503);
    let after = families.map(counted);
    let grown: Vec<u64> = before.iter().zip(after).map(|(before, after)| after - before).collect();
    assert_eq!(grown, [6, 2, 1, 1], "{families:?}");
}

#[test]
fn a_try_that_takes_too_long_is_followed_by_another_elsewhere() {
    let Some(client) = client_pod() else { return };
    let _mute = &*MUTE;
    let asked = Instant::now();
    for _ in 0..10 {
        assert_eq!(ask(&client, "patient", "/silent").0, 200);
    }
    assert!(asked.elapsed() < Duration::from_secs(20), "{:?}", asked.elapsed());
    // Where no other try may follow, the only one has all its time.
    assert_eq!(ask(&client, "last", "/slow/700").0, 200);
    assert_eq!(sent(&client, "patient-web", "/slow/700", Some("x")), 200, "a POST may be under way");
}

#[test]
fn a_request_says_how_it_wants_to_be_tried_only_where_its_route_allows_it() {
    let Some(client) = client_pod() else { return };
    let wishes = ["-H", "l5d-retry-http: 5xx", "-H", "l5d-retry-limit: 3", "-H", "l5d-timeout: 800ms"];
    let ask = |rule: &str, path: &str| {
        let (header, url) = (format!("x-rule: {rule}"), format!("http://web:8080{path}"));
        let asked = [&wishes[..], &["-H", &header, "-w", "\n%{http_code}", &url]].concat();
        let answer = curl(&client, &asked).unwrap();
        let (body, code) = answer.rsplit_once('\n').unwrap();
        (code.to_owned(), body.to_owned())
    };
    let (code, told) = ask("wishes", "/fails/3/wished");
    assert_eq!(code, "200");
    let told: Value = serde_json::from_str(&told).unwrap();
    assert!(!told["headers"].to_string().contains("l5d-retry"), "what is heeded goes no further: {told}");
    assert_eq!(ask("wishes", "/slow/5000").0, "504");
    assert_eq!(ask("plain", "/fails/1/unheard").0, "503");
    assert_eq!(ask("plain", "/slow/1500").0, "200");
}

#[test]
fn a_path_that_takes_two_routes_is_refused() {
    let Some(client) = client_pod() else { return };
    let ask = |path: &str| {
        let url = format!("http://web:8080{path}");
        let format = "%{http_code} %header{l5d-proxy-error}";
        curl(&client, &["--path-as-is", "-o", "/dev/null", "-w", format, &url]).unwrap()
    };
    for path in ["/x/../secret", "//secret", "/%73ecret", "/secret;x", "/secret%2Fx", "/x/..;/secret"] {
        let answer = ask(path);
        assert!(answer.starts_with("400 ") && answer.contains("read in two ways"), "{path}: {answer}");
    }
    // Whichever way they are read, they take one route, and arrive as they came.
    for path in ["/x/../y", "//y", "/secret/x/../y", "/a%20b"] {
        let url = format!("http://web:8080{path}");
        let told: Value = serde_json::from_str(&curl(&client, &["--path-as-is", &url]).unwrap()).unwrap();
        assert_eq!(told["target"], path);
        let expected = if path.starts_with("/secret") { "canary" } else { "web" };
        assert_eq!(server(&told), expected, "{path}");
    }
    assert!(errors(&client, "ambiguous path") >= 6);
}

/// What the rules of the Service `web` say.
fn rules() -> Vec<Rule> {
    let headers = Kind::RequestHeaderModifier(RequestHeaderModifier {
        add: fields(&[("X-Added", "1")]),
        set: fields(&[("X-Set", "new")]),
        remove: vec!["X-Gone".into()],
    });
    let answered = Kind::ResponseHeaderModifier(ResponseHeaderModifier {
        add: fields(&[("X-Answered", "by the rule")]),
        remove: vec!["Content-Type".into()],
        ..Default::default()
    });
    let of_backend = Kind::RequestHeaderModifier(RequestHeaderModifier {
        set: fields(&[("X-Backend", "seen")]),
        ..Default::default()
    });
    let backend_answered = Kind::ResponseHeaderModifier(ResponseHeaderModifier {
        set: fields(&[("X-Answering-Backend", "yes")]),
        ..Default::default()
    });
    let redirect = |change: fn(&mut RequestRedirect)| {
        let mut redirect = RequestRedirect::default();
        change(&mut redirect);
        Kind::Redirect(redirect)
    };
    let fail = |status, ratio| {
        Kind::FailureInjector(HttpFailureInjector { status, message: "no luck today".into(), ratio })
    };
    let timed = |name, timeouts| Rule { timeouts: Some(timeouts), ..rule(name, TO_WEB) };
    let retried = |name, to, retry| Rule { retry, ..rule(name, to) };
    let half = Ratio { numerator: 1, denominator: 2 };
    let modified = filtered(filtered(rule("headers", TO_WEB), headers), answered);
    vec![
        at_backends(at_backends(modified, &of_backend), &backend_answered),
        filtered(
            under("/old", TO_WEB),
            redirect(|redirect| {
                redirect.path = Some(PathModifier { replace: Some(Replace::Prefix("/new".into())) });
                redirect.status = 302;
            }),
        ),
        filtered(
            rule("secure", TO_WEB),
            redirect(|redirect| {
                redirect.scheme = Some("https".into());
                redirect.status = 308;
            }),
        ),
        filtered(
            rule("elsewhere", TO_WEB),
            redirect(|redirect| {
                redirect.host = "other.example".into();
                redirect.port = 9000;
                redirect.path = Some(PathModifier { replace: Some(Replace::Full("/whole".into())) });
            }),
        ),
        rule("split", &[(WEB, 90), (CANARY, 10)]),
        rule("pinned", &[(CANARY, 1)]),
        rule("never", &[(WEB, 1), (CANARY, 0)]),
        filtered(rule("broken", TO_WEB), fail(500, None)),
        filtered(rule("flaky", TO_WEB), fail(503, Some(half))),
        timed("limited", Timeouts { request: millis(500), ..Timeouts::default() }),
        timed("quiet", Timeouts { idle: millis(1500), ..Timeouts::default() }),
        timed("brisk", Timeouts { response: millis(500), ..Timeouts::default() }),
        retried("patient", &[(MIXED, 1)], retry(500..=599, 1, Some(300))),
        retried("patient-web", TO_WEB, retry(500..=599, 1, Some(300))),
        retried("last", TO_WEB, retry(500..=599, 0, Some(300))),
        Rule { allow_l5d_request_headers: true, ..rule("wishes", TO_WEB) },
        under("/secret", &[(CANARY, 1)]),
    ]
}

static MESH: LazyLock<Mesh> = LazyLock::new(|| {
    let pods = [
        kit("web", 8080, "http", &[]),
        kit("canary", 8080, "http", &[]),
        shop::idle("mute", &[]),
        client("client", &[]),
    ];
    shop::open(&pods).unwrap()
});

/// The control plane that says it, in place of the one that brought the pods up.
static CONTROLLER: LazyLock<Controller> = LazyLock::new(|| {
    let controller = Controller::replace(&MESH, |_| Reply::fails(14)).unwrap();
    let at = |pod: &str| MESH.pod(SHOP, pod).unwrap().at(8080).unwrap();
    let service = SocketAddr::new(shop::cluster_ip(&MESH, "web").unwrap(), 8080).to_string();
    let again = Rule { retry: retry(500..=599, 2, None), ..rule("again", TO_WEB) };
    let says = policy(&[("pages", rules()), ("retried", vec![again])], WEB).unwrap();
    let endpoints: Vec<(&str, Bytes)> = [
        (WEB, controller::add([at("web")])),
        (CANARY, controller::add([at("canary")])),
        (MIXED, controller::add([at("web"), at("mute")])),
    ]
    .map(|(authority, endpoints)| (authority, endpoints.unwrap()))
    .into();
    controller.answer(move |asked| match asked.method.as_str() {
        "Get" => match endpoints.iter().find(|(authority, _)| *authority == asked.about) {
            Some((_, endpoints)) => Reply::says([endpoints.clone()]),
            None => Reply::fails(5),
        },
        "Watch" if asked.about == service => Reply::says([says.clone()]),
        // No profiles, and no policies of ports: what the environment says holds.
        _ => Reply::fails(5),
    });
    controller.cut();
    controller
});

/// An application that never answers.
static MUTE: LazyLock<Origin> =
    LazyLock::new(|| Origin::start(&MESH.pod(SHOP, "mute").unwrap(), 8080).unwrap());

/// The client, which has heard the rules; `None` where there cannot be one.
fn client_pod() -> Option<PodRef<'static>> {
    if !check::can_run() {
        return None;
    }
    LazyLock::force(&CONTROLLER);
    let client = MESH.pod(SHOP, "client").unwrap();
    MESH.wait_until("the rules to be heard", PATIENCE, || ask(&client, "broken", "/").0 == 500).unwrap();
    Some(client)
}

/// Status of an answer by this rule, and what the proxy said of it.
fn ask(client: &PodRef<'_>, rule: &str, path: &str) -> (u16, String) {
    let format = "%{http_code} %header{l5d-proxy-error}";
    let (header, url) = (format!("x-rule: {rule}"), format!("http://web:8080{path}"));
    let answer = curl(client, &["-o", "/dev/null", "-w", format, "-H", &header, &url]).unwrap_or_default();
    let (code, error) = answer.split_once(' ').unwrap_or_default();
    (code.parse().unwrap_or_default(), error.to_owned())
}

/// Status of an answer by this rule to a request with this body.
fn sent(client: &PodRef<'_>, rule: &str, path: &str, body: Option<&str>) -> u16 {
    let (header, url) = (format!("x-rule: {rule}"), format!("http://web:8080{path}"));
    let asked = ["-o", "/dev/null", "-w", "%{http_code}", "-H", &header, &url];
    let body: Vec<&str> = body.into_iter().flat_map(|body| ["--data-binary", body]).collect();
    curl(client, &[&asked[..], &body].concat()).unwrap().parse().unwrap()
}

/// The values of a header that the server was sent.
fn headers<'a>(told: &'a Value, name: &str) -> Vec<&'a str> {
    let all = told["headers"].as_array().unwrap().iter();
    let named = all.filter(|field| field[0].as_str().unwrap().eq_ignore_ascii_case(name));
    named.map(|field| field[1].as_str().unwrap()).collect()
}

/// Which server it was.
fn server(told: &Value) -> String {
    told["server"].as_str().unwrap().to_owned()
}

fn route_count(client: &PodRef<'_>, labels: &[(&str, &str)]) -> u64 {
    let labels = [&[("route_name", "pages")], labels].concat();
    client.metrics().unwrap().count("outbound_http_route_request_statuses_total", &labels)
}

fn errors(client: &PodRef<'_>, error: &str) -> u64 {
    client.metrics().unwrap().count("outbound_http_errors_total", &[("error", error)])
}

//! What failed on a route that a ServiceProfile calls retryable is sent again, unseen by the client: within the budget,
//! byte for byte, and nothing else is. Contract 4.3.
#![expect(clippy::unwrap_used, reason = "a test says what it expects")]

use remora_tests::scripted::{Says, Scripted};
use remora_tests::shop::{self, PATIENCE, SHOP, curl};
use remora_tests::wire::{client, kit, run_kit};
use remora_tests::{Mesh, PodRef, check};
use serde_json::Value;
use std::time::{Duration, Instant};

/// Whom requests are addressed to, as metrics say it.
const DST: &str = "web.shop.svc.cluster.local:8080";
const RETRYABLE: &str = "{routes: [{name: all, condition: {pathRegex: '/.*'}, isRetryable: true}]}";
/// Fewer retries than by default, so that a test of what always fails is short.
const TWICE: (&str, &str) =
    ("config.linkerd.io/proxy-additional-env", r#"[{"name":"REMORA_PROXY_MAX_RETRIES","value":"2"}]"#);

#[test]
fn replicas_that_fail_half_the_time_are_hidden_from_the_client() {
    if !check::can_run() {
        return;
    }
    let second = kit("second", 8080, "http", &[]).replace("labels: {app: second}", "labels: {app: web}");
    let mesh = open("http", RETRYABLE, &[second], &[]);
    let client = mesh.pod(SHOP, "client").unwrap();
    let codes = codes(&client, &["http://web:8080/half?[1-60]"]);
    assert_eq!(codes, vec!["200"; 60]);

    let failed = labels(&[("status_code", "503"), ("classification", "failure")]);
    let hidden = count(&client, "route_actual_response_total", &failed);
    // One after the other: after a failure the next request to the same replica is answered.
    assert!((20..=120).contains(&hidden), "{hidden} tries failed");
    assert_eq!(count(&client, "route_response_total", &failed), 0);
    becomes(&mesh, &client, "route_request_total", &labels(&[]), 60);
    becomes(&mesh, &client, "route_actual_request_total", &labels(&[]), 60 + hidden);
    let skipped = labels(&[("skipped", "no_budget")]);
    assert_eq!(count(&client, "route_retryable_total", &labels(&[])), hidden, "with those that were skipped");
    assert_eq!(count(&client, "route_retryable_total", &skipped), 0);
    let tried = ["web", "second"].map(|name| tries(&mesh, name));
    assert_eq!(tried.iter().sum::<u64>(), 60 + hidden, "{tried:?}");
    assert!(tried.iter().all(|tries| *tries > 10), "{tried:?}");
}

#[test]
fn the_budget_ends_retries_when_everything_fails() {
    if !check::can_run() {
        return;
    }
    // Of a hundred requests a fifth are earned, and one per second of the window is allowed in any case.
    let spec = "{routes: [{name: all, condition: {pathRegex: '/.*'}, isRetryable: true}],
        retryBudget: {retryRatio: 0.2, minRetriesPerSecond: 1, ttl: 60s}}";
    let mesh = open("http", spec, &[], &[]);
    let client = mesh.pod(SHOP, "client").unwrap();
    let parallel = ["--parallel", "--parallel-max", "20", "http://web:8080/status/503?[1-100]"];
    assert_eq!(codes(&client, &parallel), vec!["503"; 100]);
    assert_eq!(tries(&mesh, "web"), 100 + 20 + 60);
    let skipped = labels(&[("skipped", "no_budget")]);
    let all = count(&client, "route_retryable_total", &labels(&[]));
    // As Linkerd counts: those that were skipped are among all, and once more by themselves.
    let skipped = count(&client, "route_retryable_total", &skipped);
    assert_eq!(all - skipped - skipped, 80, "{all} with {skipped}");
    becomes(&mesh, &client, "route_actual_request_total", &labels(&[]), 180);
    becomes(&mesh, &client, "route_response_total", &labels(&[("classification", "failure")]), 100);
}

#[test]
fn a_body_of_60_kib_is_sent_again_byte_for_byte_and_one_of_100_kib_is_not() {
    if !check::can_run() {
        return;
    }
    let mesh = open("http", RETRYABLE, &[], &[]);
    let client = mesh.pod(SHOP, "client").unwrap();
    for (nth, how) in
        [&[][..], &["-H", "Transfer-Encoding: chunked"], &["--http2-prior-knowledge"]].into_iter().enumerate()
    {
        let body =
            |kib: usize| (0..kib * 1024).map(|at| char::from(b'a' + (at * at / 7 % 26) as u8)).collect();
        let before = tries(&mesh, "web");
        let (short, long): (String, String) = (body(60), body(100));
        let url = format!("http://web:8080/fails/1/short/{nth}");
        let told = curl(&client, &[how, &["--data-binary", &short, &url]].concat()).unwrap();
        let told: Value = serde_json::from_str(&told).unwrap();
        assert_eq!(told["body_bytes"], 60 * 1024, "{how:?}");
        assert!(told["body"] == short.as_str(), "{how:?}: the body is not what was sent");
        assert_eq!(tries(&mesh, "web"), before + 2, "{how:?}");

        let url = format!("http://web:8080/fails/1/long/{nth}");
        assert_eq!(codes(&client, &[how, &["--data-binary", &long, &url]].concat()), ["503"], "{how:?}");
        assert_eq!(tries(&mesh, "web"), before + 3, "{how:?}");
    }
    let too_long = [("reason", "body too long")];
    assert_eq!(count(&client, "remora_outbound_retries_skipped_total", &too_long), 3);
}

#[test]
fn what_may_not_be_sent_again_is_not() {
    if !check::can_run() {
        return;
    }
    let spec = "{routes: [
        {name: once, condition: {pathRegex: '/fails/1/once'}},
        {name: all, condition: {pathRegex: '/.*'}, isRetryable: true, responseClasses: [
          {condition: {status: {min: 503}}, isFailure: false}]}]}";
    let mesh = open("http", spec, &[], &[TWICE]);
    let client = mesh.pod(SHOP, "client").unwrap();
    let mut before = 0;
    for (arguments, code, expected) in [
        // The route is not retryable.
        (&["http://web:8080/fails/1/once"][..], "503", 1),
        // The profile says that this is no failure.
        (&["http://web:8080/fails/1/success"], "503", 1),
        // Reset without an answer: a GET may be repeated, as often as the setting says; a POST may have been processed.
        (&["http://web:8080/reset"], "502", 3),
        (&["-d", "x", "http://web:8080/reset"], "502", 1),
        // What by default is a failure is one here too.
        (&["-d", "x", "http://web:8080/status/500"], "500", 3),
    ] {
        assert_eq!(codes(&client, arguments), [code], "{arguments:?}");
        let now = tries(&mesh, "web");
        assert_eq!(now - before, expected, "{arguments:?}");
        before = now;
    }
    for (reason, expected) in [("limit", 2), ("may be processed", 1)] {
        let skipped = count(&client, "remora_outbound_retries_skipped_total", &[("reason", reason)]);
        assert_eq!(skipped, expected, "{reason}");
    }
}

#[test]
fn the_status_of_grpc_is_what_counts() {
    if !check::can_run() {
        return;
    }
    let mesh = open("grpc", RETRYABLE, &[], &[TWICE]);
    let client = mesh.pod(SHOP, "client").unwrap();
    // Unavailable is a failure; NotFound is an answer.
    for (code, expected) in [("14", 3), ("5", 1)] {
        let before = tries(&mesh, "web");
        let said = run_kit(&client, &["grpc-client", "http://web:8080", "fail", "--code", code]).unwrap();
        assert_eq!(said, format!("status {code} hello\n"));
        assert_eq!(tries(&mesh, "web") - before, expected, "grpc-status {code}");
    }
}

#[test]
fn a_grpc_status_in_trailers_behind_a_head_is_a_failure_too() {
    if !check::can_run() {
        return;
    }
    let mesh = by_hand(RETRYABLE);
    let (client, web) = (mesh.pod(SHOP, "client").unwrap(), mesh.pod(SHOP, "web").unwrap());
    let app = Scripted::start(&web, 8080, |nth| Says::Grpc(if nth < 2 { 14 } else { 0 })).unwrap();
    let grpc = ["--http2-prior-knowledge", "-H", "content-type: application/grpc", "-d", "x"];
    assert_eq!(codes(&client, &[&grpc[..], &["http://web:8080/s/M"]].concat()), ["200"]);
    assert_eq!(app.requests(), 3, "two failures were hidden");
}

#[test]
fn a_stream_of_grpc_messages_is_not_sent_again_after_its_first() {
    if !check::can_run() {
        return;
    }
    let mesh = by_hand(RETRYABLE);
    let (client, web) = (mesh.pod(SHOP, "client").unwrap(), mesh.pod(SHOP, "web").unwrap());
    let app = Scripted::start(&web, 8080, |_| Says::GrpcAfterFirst(14)).unwrap();
    for nth in 1..=6 {
        let said = run_kit(&client, &["grpc-client", "http://web:8080", "bidi"]).unwrap();
        assert!(said.starts_with("status 14"), "{said}");
        assert_eq!(app.requests(), nth, "{said}");
    }
}

#[test]
fn a_routes_timeout_covers_all_tries() {
    if !check::can_run() {
        return;
    }
    let spec = "{routes: [{name: all, condition: {pathRegex: '/.*'}, isRetryable: true, timeout: 400ms}]}";
    let mesh = open("http", spec, &[], &[]);
    let client = mesh.pod(SHOP, "client").unwrap();
    // What fails at once is tried until another try would begin too late: the client has the last answer.
    let asked = Instant::now();
    assert_eq!(codes(&client, &["http://web:8080/status/503"]), ["503"]);
    let tried = tries(&mesh, "web");
    assert!((2..=6).contains(&tried), "{tried} tries in 400 ms");
    let skipped = count(&client, "remora_outbound_retries_skipped_total", &[("reason", "timeout")]);
    assert_eq!(skipped, 1);
    // What does not answer is given up in time, however many tries are left.
    assert_eq!(codes(&client, &["http://web:8080/slow/8000"]), ["504"]);
    assert!(asked.elapsed() < Duration::from_secs(6), "{:?}", asked.elapsed());
    assert_eq!(tries(&mesh, "web"), tried + 1);
}

/// A client of the Service `web`, of which this is the profile; a test listens in its pod.
fn by_hand(spec: &str) -> Mesh {
    let objects = [shop::idle("web", &[]), shop::service("web", 8080, "8080"), client("client", &[])];
    shop::open(&[&objects[..], &[profile(spec)]].concat()).unwrap()
}

/// A client of the Service `web`, of which this is the profile.
fn open(program: &str, spec: &str, more: &[String], annotations: &[(&str, &str)]) -> Mesh {
    let web = kit("web", 8080, program, &[]);
    shop::open(&[&[web, client("client", annotations), profile(spec)], more].concat()).unwrap()
}

fn profile(spec: &str) -> String {
    format!(
        "\n---\n{{apiVersion: linkerd.io/v1alpha2, kind: ServiceProfile, metadata: {{name: web.shop.svc.cluster.local, \
         namespace: shop}}, spec: {spec}}}\n---\n"
    )
}

/// The status of every answer.
fn codes(client: &PodRef<'_>, arguments: &[&str]) -> Vec<String> {
    let every = [&["-o", "/dev/null", "-w", "%{http_code}\n"], arguments].concat();
    curl(client, &every).unwrap().lines().map(str::to_owned).collect()
}

/// Requests that the pod's own proxy has passed on to its application.
fn tries(mesh: &Mesh, pod: &str) -> u64 {
    count(
        &mesh.pod(SHOP, pod).unwrap(),
        "request_total",
        &[("direction", "inbound"), ("target_port", "8080")],
    )
}

/// The labels of the client's one route, and more.
fn labels(more: &[(&'static str, &'static str)]) -> Vec<(&'static str, &'static str)> {
    [&[("direction", "outbound"), ("dst", DST), ("rt_route", "all")], more].concat()
}

fn count(pod: &PodRef<'_>, family: &str, labels: &[(&str, &str)]) -> u64 {
    pod.metrics().unwrap().count(family, labels)
}

#[track_caller]
fn becomes(mesh: &Mesh, pod: &PodRef<'_>, family: &str, labels: &[(&str, &str)], expected: u64) {
    let what = format!("{family}{labels:?} to be {expected}");
    mesh.wait_until(&what, PATIENCE, || count(pod, family, labels) == expected).unwrap();
}

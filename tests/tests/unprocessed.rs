//! What for certain was not processed is sent to one other endpoint, whatever its method and without any retry policy;
//! and only proxies can say so. Design, "Retries".
#![expect(clippy::unwrap_used, reason = "a test says what it expects")]

use remora_tests::scripted::{Says, Scripted};
use remora_tests::shop::{self, PATIENCE, SHOP, curl, state, status};
use remora_tests::wire::{client, kit};
use remora_tests::{Mesh, PodRef, check};
use serde_json::Value;

const HTTP2: &str = "--http2-prior-knowledge";

#[test]
fn a_post_to_a_replica_whose_application_is_down_goes_to_the_other() {
    if !check::can_run() {
        return;
    }
    let mesh = shop::open(&[kit("web", 8080, "http", &[]), replica("down"), client("client", &[])]).unwrap();
    let client = mesh.pod(SHOP, "client").unwrap();
    known(&mesh, &["web", "down"], || status(&client, "http://web:8080/").is_ok());
    let body = "a body of some length ".repeat(2000);
    let mut went = 0;
    for version in ["--http1.1", HTTP2] {
        for _ in 0..20 {
            let sent = ["-i", "-H", "x-own: kept", "--data-binary", &body, version, "http://web:8080/"];
            let answer = curl(&client, &sent).unwrap();
            let (head, told) = answer.split_once("\r\n\r\n").unwrap();
            assert!(!head.to_ascii_lowercase().contains("remora-"), "{head}");
            let told: Value = serde_json::from_str(told).unwrap();
            assert_eq!(told["body_bytes"], body.len(), "{version}: {head}");
            assert!(told["body"] == body.as_str() && told["server"] == "web", "{version}: {told}");
            let fields = told["headers"].to_string();
            assert!(told["method"] == "POST" && fields.contains(r#"["x-own","kept"]"#), "{version}: {told}");
        }
        went += inbound(&mesh, "down");
    }
    assert!(went > 0, "nothing was sent to the replica that is down");
    // Of what is longer than is kept, some has been lost with its first try.
    let long = "x".repeat(100 * 1024);
    let sent = ["-o", "/dev/null", "-w", "%{http_code}\n", "--data-binary", &long, "http://web:8080/?[1-20]"];
    let codes = curl(&client, &sent).unwrap();
    assert!(codes.lines().all(|code| ["200", "502"].contains(&code)), "{codes}");
}

#[test]
fn a_refused_stream_is_sent_to_another_endpoint() {
    if !check::can_run() {
        return;
    }
    let mesh = two().unwrap();
    let (client, first, second) = pods(&mesh);
    let answers = Scripted::start(&second, 8080, |_| Says::Status(200, vec![])).unwrap();
    let refuses = Scripted::start(&first, 8080, |_| Says::Refused).unwrap();
    let post = ["-i", HTTP2, "-d", "once", "http://web:8080/"];
    known(&mesh, &["web", "second"], || curl(&client, &post).is_ok());
    let before = (answers.requests(), refuses.requests());
    for nth in 1..=20 {
        let answer = curl(&client, &post).unwrap();
        assert!(answer.starts_with("HTTP/2 200"), "request {nth}: {answer}");
        assert_eq!(answers.requests() - before.0, nth);
    }
    // Each try is a turn, so that those who refuse have theirs first from the second request on at the latest.
    assert!(refuses.requests() - before.1 >= 19, "{} were refused", refuses.requests() - before.1);
}

#[test]
fn an_application_cannot_say_that_it_saw_nothing() {
    if !check::can_run() {
        return;
    }
    let mesh = two().unwrap();
    let (client, first, second) = pods(&mesh);
    let says = || Says::Status(503, vec![("remora-unprocessed", "true"), ("x-own", "kept")]);
    let [first, second] = [&first, &second].map(|pod| Scripted::start(pod, 8080, move |_| says()).unwrap());
    for nth in 1..=5 {
        let sent = ["-i", HTTP2, "-d", "once", "http://web:8080/"];
        let answer = curl(&client, &sent).unwrap().to_ascii_lowercase();
        assert!(answer.starts_with("http/2 503") && answer.contains("x-own: kept"), "{answer}");
        assert!(!answer.contains("remora-"), "{answer}");
        assert_eq!(first.requests() + second.requests(), nth);
    }
}

/// Two replicas of `web` in which tests listen, and a client.
fn two() -> anyhow::Result<Mesh> {
    // Each in its turn: who refuses is asked as often as the other.
    let turns =
        "metadata: {name: web, namespace: shop, annotations: {balancer.remora.io/strategy: round-robin}}";
    let service = shop::service("web", 8080, "8080").replace("metadata: {name: web, namespace: shop}", turns);
    shop::open(&[shop::idle("web", &[]), replica("second"), service, client("client", &[])])
}

/// Waits until the client's proxy, which `asks` sometimes, knows all replicas: before that there is nobody else to send to.
fn known(mesh: &Mesh, replicas: &[&str], asks: impl Fn() -> bool) {
    let ips: Vec<_> =
        replicas.iter().map(|pod| mesh.pod(SHOP, pod).unwrap().ip().unwrap().to_string()).collect();
    let client = mesh.pod(SHOP, "client").unwrap();
    mesh.wait_until("all replicas to be known", PATIENCE, || {
        asks() && {
            let state = state(&client).unwrap().pointer("/outbound/workers").unwrap().to_string();
            ips.iter().all(|ip| state.contains(ip.as_str()))
        }
    })
    .unwrap();
}

fn pods(mesh: &Mesh) -> (PodRef<'_>, PodRef<'_>, PodRef<'_>) {
    (mesh.pod(SHOP, "client").unwrap(), mesh.pod(SHOP, "web").unwrap(), mesh.pod(SHOP, "second").unwrap())
}

/// A pod of the Service `web` in which nothing listens.
fn replica(name: &str) -> String {
    shop::idle(name, &[]).replace(&format!("labels: {{app: {name}}}"), "labels: {app: web}")
}

fn inbound(mesh: &Mesh, pod: &str) -> u64 {
    let pod = mesh.pod(SHOP, pod).unwrap();
    pod.metrics().unwrap().count("request_total", &[("direction", "inbound"), ("target_port", "8080")])
}

//! gRPC passes through two proxies: every kind of call, its status, its resets, and its flow control.
#![expect(clippy::unwrap_used, reason = "a test says what it expects")]

use remora_tests::shop::{self, PATIENCE, SHOP, curl, identity};
use remora_tests::wire::{client, counted, kit, run_kit};
use remora_tests::{Mesh, PodRef, check, metrics};
use std::sync::LazyLock;

/// How much a proxy may grow while 64 MiB are waiting for a reader that does not read: windows and buffers, not the
/// stream. In KiB.
const GROWTH_KIB: u64 = 12 * 1024;

static MESH: LazyLock<Mesh> = LazyLock::new(|| {
    shop::open(&[
        client("client", &[]),
        kit("grpc", 9000, "grpc", &[]),
        kit("failing", 9000, "grpc", &[]),
        kit("streaming", 9000, "grpc", &[]),
        kit("resetting", 9000, "http", &[]),
        kit("going", 9000, "grpc", &[]),
        client("patient", &[]),
        client("outsider", &[("linkerd.io/inject", "disabled")]),
        kit("guarded", 9000, "grpc", &[("config.linkerd.io/default-inbound-policy", "all-authenticated")]),
        shop::service("nobody", 9000, "9000"),
    ])
    .unwrap()
});

#[test]
fn every_kind_of_call_is_answered() {
    if !check::can_run() {
        return;
    }
    for (arguments, expected) in [
        (&["unary"][..], format!("client {}\nhello\nstatus 0 \n", identity("client"))),
        (&["stream", "--count", "3"], "hello 0\nhello 1\nhello 2\nstatus 0 \n".into()),
        (&["health"], "health 1\nstatus 0 \n".into()),
        (&["fail", "--code", "5", "--text", "no such plum"], "status 5 no such plum\n".into()),
    ] {
        assert_eq!(call(&pod("client"), "grpc", arguments), expected, "{arguments:?}");
    }
}

/// Each question is sent only after the answer to the one before: whatever held a message back would stop it for ever.
#[test]
fn a_bidirectional_stream_holds_no_message_back() {
    if !check::can_run() {
        return;
    }
    let said = call(&pod("client"), "grpc", &["bidi", "--count", "200"]);
    let expected: Vec<String> =
        (0..200).map(|i| format!("hello {i}")).chain(["status 0 ".to_owned()]).collect();
    assert_eq!(said.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn the_status_of_the_trailers_is_counted_by_both_proxies() {
    if !check::can_run() {
        return;
    }
    let (client, server) = (pod("client"), pod("failing"));
    for (code, class) in [("5", "success"), ("13", "failure"), ("14", "failure")] {
        call(&client, "failing", &["fail", "--code", code]);
        let inbound = [
            ("direction", "inbound"),
            ("tls", "true"),
            ("status_code", "200"),
            ("grpc_status", code),
            ("classification", class),
        ];
        counted(&server, "response_total", &inbound, 1.0).unwrap();
        let outbound = [
            ("direction", "outbound"),
            ("dst_service", "failing"),
            ("grpc_status", code),
            ("classification", class),
        ];
        counted(&client, "response_total", &outbound, 1.0).unwrap();
    }
}

#[test]
fn a_call_that_the_proxy_refuses_is_counted_as_the_failure_that_it_is() {
    if !check::can_run() {
        return;
    }
    // Over HTTP it is a success with status 200: only gRPC's own status says otherwise.
    assert_eq!(call(&pod("outsider"), "guarded", &["unary"]), "status 7 \n");
    let guarded = pod("guarded");
    let refused = [
        ("direction", "inbound"),
        ("tls", "no_identity"),
        ("status_code", "200"),
        ("grpc_status", "7"),
        ("classification", "failure"),
        ("error", "unauthorized"),
    ];
    let counted = |name: &str, labels: &[(&str, &str)]| {
        // From within the pod: from elsewhere nobody may read them without an identity.
        let told = || curl(&guarded, &["-f", "http://127.0.0.1:4191/metrics"]).unwrap();
        MESH.wait_until(name, PATIENCE, || metrics::parse(&told()).sum(name, labels) == Some(1.0)).unwrap();
    };
    counted("response_total", &refused);
    let server = [("error", "unauthorized"), ("srv_kind", "default"), ("srv_name", "all-authenticated")];
    counted("inbound_http_errors_total", &server);
    assert!(call(&pod("client"), "guarded", &["unary"]).ends_with("status 0 \n"));
    counted("response_total", &[("grpc_status", "0"), ("classification", "success")]);
}

#[test]
fn a_reset_of_the_server_reaches_the_client_with_its_reason() {
    if !check::can_run() {
        return;
    }
    for path in ["reset", "cut"] {
        let url = format!("http://resetting:9000/{path}");
        let error = curl(&pod("client"), &["--http2-prior-knowledge", &url]).unwrap_err().to_string();
        assert!(error.contains("ENHANCE_YOUR_CALM"), "{path}: {error}");
    }
}

#[test]
fn an_unreachable_server_is_a_grpc_status() {
    if !check::can_run() {
        return;
    }
    let client = pod("client");
    let script = "printf '\\0\\0\\0\\0\\0' | curl -sS --max-time 10 --http2-prior-knowledge -D - -o /dev/null -H \
                  'content-type: application/grpc' -H 'te: trailers' --data-binary @- http://nobody:9000/a.B/C";
    let output = client.exec("app", &["sh", "-c", script]).unwrap();
    let head = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(head.starts_with("HTTP/2 200"), "{head} {}", String::from_utf8_lossy(&output.stderr));
    assert!(head.contains("grpc-status: 4") && head.contains("no endpoint of nobody"), "{head}");
    let route = [("parent_name", "nobody"), ("http_status", ""), ("error", "FAIL_FAST")];
    counted(&client, "outbound_http_route_request_statuses_total", &route, 1.0).unwrap();
}

#[test]
fn a_reader_that_does_not_read_costs_the_proxies_no_memory() {
    if !check::can_run() {
        return;
    }
    let (patient, streaming) = (pod("patient"), pod("streaming"));
    call(&patient, "streaming", &["unary"]);
    let before = [rss_kib(&patient), rss_kib(&streaming)];
    // 64 messages of 1 MiB, of which one is read; the process is ended when its pod is.
    let holding = "/usr/lib/remora/remora-testkit grpc-client http://streaming:9000 stream --count 64 --size 1048576 \
                   --hold > /tmp/said 2>&1 &";
    patient.run("app", &["sh", "-c", holding]).unwrap();
    MESH.wait_until("the first message", PATIENCE, || {
        let said = patient.exec("app", &["cat", "/tmp/said"]);
        said.is_ok_and(|said| said.stdout.ends_with(b"holding\n"))
    })
    .unwrap();
    // What can flow has flowed when the server's proxy reads no more.
    let read = [("direction", "inbound"), ("peer", "dst"), ("target_port", "9000")];
    let mut last = -1.0;
    MESH.wait_until("the stream to stand still", PATIENCE, || {
        let now = remora_tests::wire::count(&streaming, "tcp_read_bytes_total", &read).unwrap_or_default();
        std::mem::replace(&mut last, now) >= now
    })
    .unwrap();
    assert!(last < 32.0 * 1024.0 * 1024.0, "the server's proxy has read {last} bytes for nobody");
    let after = [rss_kib(&patient), rss_kib(&streaming)];
    for (before, after) in before.iter().zip(after) {
        assert!(after < before + GROWTH_KIB, "a proxy grew from {before} to {after} KiB");
    }
    // And others are served meanwhile.
    assert!(call(&patient, "streaming", &["unary"]).ends_with("status 0 \n"));
}

#[test]
fn calls_under_way_finish_when_their_server_goes() {
    if !check::can_run() {
        return;
    }
    let client = pod("client");
    let calling =
        "/usr/lib/remora/remora-testkit grpc-client http://going:9000 bidi --count 6000 > /tmp/going 2>&1 &";
    client.run("app", &["sh", "-c", calling]).unwrap();
    let said = || client.exec("app", &["cat", "/tmp/going"]).unwrap().stdout;
    MESH.wait_until("the call to be under way", PATIENCE, || said().len() > 100).unwrap();
    // SIGTERM to the proxy alone: it drains, with GOAWAY, and the application goes on.
    let going = pod("going");
    going.signal("linkerd-proxy", remora_tests::Signal::TERM).unwrap();
    assert!(!said().ends_with(b"status 0 \n"), "the call was over before the drain");
    MESH.wait_until("the call to end", PATIENCE, || {
        String::from_utf8_lossy(&said()).lines().last().is_some_and(|line| line.starts_with("status"))
    })
    .unwrap();
    let said = String::from_utf8(said()).unwrap();
    assert!(said.ends_with("hello 5999\nstatus 0 \n"), "{}", said.get(said.len() - 100..).unwrap());
}

fn pod(name: &str) -> PodRef<'static> {
    MESH.pod(SHOP, name).unwrap()
}

#[track_caller]
fn call(from: &PodRef<'_>, service: &str, arguments: &[&str]) -> String {
    let target = format!("http://{service}:9000");
    run_kit(from, &[&["grpc-client", &target], arguments].concat()).unwrap()
}

/// Resident memory of the pod's proxy, in KiB.
fn rss_kib(pod: &PodRef<'_>) -> u64 {
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", pod.pid("linkerd-proxy").unwrap())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

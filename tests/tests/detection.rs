//! What a connection carries is found out without being told, at once, and is encrypted whatever it is.
#![expect(clippy::unwrap_used, reason = "a test says what it expects")]

use remora_tests::shop::{self, PATIENCE, SHOP, curl, identity};
use remora_tests::wire::{
    address, client, connect, count, counted, kit, read_response, read_until, run_kit, server,
};
use remora_tests::{Mesh, PodRef, check};
use std::io::{ErrorKind, Read as _, Write as _};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// Detection would stall a server that speaks first for 10 s; this is well below that and above a busy machine's noise.
const WELL_BELOW_THE_STALL: Duration = Duration::from_secs(2);
/// For which a spare connection is kept while nobody speaks, and a moment more.
const LONGER_THAN_SPECULATION: Duration = Duration::from_secs(11);

const GREETING: &[u8] = b"220 testkit at your service\r\n";
const UNMESHED: &[(&str, &str)] = &[("linkerd.io/inject", "disabled")];

/// One mesh for all: every test has a server of its own, so that its counters are its own.
static MESH: LazyLock<Mesh> = LazyLock::new(|| {
    let tls_server = "'openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=app.example -days 1 -keyout /tmp/k \
                      -out /tmp/c 2>/dev/null && exec openssl s_server -www -accept 8443 -key /tmp/k -cert /tmp/c'";
    shop::open(&[
        client("client", &[]),
        client("stranger", UNMESHED),
        kit("http", 8080, "http", &[]),
        kit("dribble", 8080, "http", &[]),
        kit("silence", 8080, "http", &[]),
        kit("grpc", 9000, "grpc", &[]),
        server("redis", "redis:7", 7000, "--port, '7000', --protected-mode, 'no', --save, ''", &[]),
        server("default-opaque", "redis:7", 6379, "--protected-mode, 'no', --save, ''", &[]),
        kit("greeter", 7001, "greeter", &[]),
        kit("greeter-of-strangers", 7001, "greeter", &[]),
        kit("greeter-unmeshed", 7001, "greeter", UNMESHED),
        kit("opaque", 8080, "http", &[("config.linkerd.io/opaque-ports", "8080")]),
        server("tls", "debian", 8443, &format!("sh, -c, {tls_server}"), &[]),
    ])
    .unwrap()
});

#[test]
fn http1_is_detected() {
    if !check::can_run() {
        return;
    }
    let (client, http) = (pod("client"), pod("http"));
    let before = outbound(&client, "http/1");
    curl(&client, &["-f", "http://http:8080/"]).unwrap();
    assert!(outbound(&client, "http/1") > before);
    meshed_connections(&http, "http/1", 1.0);
    counted(&http, "request_total", &[("direction", "inbound"), ("tls", "true")], 1.0).unwrap();
}

#[test]
fn http2_with_prior_knowledge_and_grpc_are_detected() {
    if !check::can_run() {
        return;
    }
    let (client, grpc) = (pod("client"), pod("grpc"));
    let before = outbound(&client, "http/2");
    let said = run_kit(&client, &["grpc-client", "http://grpc:9000", "unary"]).unwrap();
    assert_eq!(said, format!("client {}\nhello\nstatus 0 \n", identity("client")));
    assert!(outbound(&client, "http/2") > before);
    // No gRPC method: the answer is gRPC's own, so the request has come as HTTP/2.
    let answer = curl(&client, &["--http2-prior-knowledge", "-D", "-", "http://grpc:9000/none"]).unwrap();
    assert!(answer.starts_with("HTTP/2 200"), "{answer}");
    meshed_connections(&grpc, "http/2", 1.0);
    counted(&grpc, "request_total", &[("direction", "inbound"), ("tls", "true")], 2.0).unwrap();
}

#[test]
fn redis_is_detected_as_opaque() {
    if !check::can_run() {
        return;
    }
    let (client, redis) = (pod("client"), pod("redis"));
    let capture = MESH.capture("tcp").unwrap();
    let before = outbound(&client, "not_http");
    assert_eq!(redis_cli(&client, "redis", "7000", &["SET", "plum", "mirabelle"]), "OK\n");
    assert_eq!(redis_cli(&client, "redis", "7000", &["GET", "plum"]), "mirabelle\n");
    assert!(outbound(&client, "not_http") >= before + 2.0);
    meshed_connections(&redis, "none", 2.0);
    let seen = capture.stop().unwrap();
    assert!(seen.tls_application_data() > 0);
    assert!(!seen.contain(b"mirabelle"), "redis's bytes crossed the node in plaintext");
}

#[test]
fn a_server_that_speaks_first_is_heard_at_once_and_encrypted() {
    if !check::can_run() {
        return;
    }
    let (client, greeter) = (pod("client"), pod("greeter"));
    let capture = MESH.capture("tcp").unwrap();
    let before = outbound(&client, "server_first");
    let began = Instant::now();
    let mut stream = connect(&client, address(&MESH, "greeter", 7001).unwrap()).unwrap();
    assert_eq!(read_until(&mut stream, b"\n").unwrap(), GREETING);
    assert!(began.elapsed() < WELL_BELOW_THE_STALL, "the first byte took {:?}", began.elapsed());
    stream.write_all(b"after the greeting\n").unwrap();
    assert_eq!(read_until(&mut stream, b"\n").unwrap(), b"after the greeting\n");
    drop(stream);
    assert!(outbound(&client, "server_first") > before);
    meshed_connections(&greeter, "none", 1.0);
    let inbound =
        [("direction", "inbound"), ("peer", "src"), ("tls", "true"), ("client_id", &*identity("client"))];
    counted(&greeter, "tcp_open_total", &inbound, 1.0).unwrap();
    let seen = capture.stop().unwrap();
    assert!(seen.tls_application_data() > 0);
    assert!(!seen.contain(b"after the greeting"), "the bytes crossed the node in plaintext");
}

#[test]
fn a_server_that_speaks_first_is_heard_at_once_by_an_unmeshed_client() {
    if !check::can_run() {
        return;
    }
    let greeter = pod("greeter-of-strangers");
    let began = Instant::now();
    let to = address(&MESH, "greeter-of-strangers", 7001).unwrap();
    let mut stream = connect(&pod("stranger"), to).unwrap();
    assert_eq!(read_until(&mut stream, b"\n").unwrap(), GREETING);
    assert!(began.elapsed() < WELL_BELOW_THE_STALL, "the first byte took {:?}", began.elapsed());
    stream.write_all(b"hello\n").unwrap();
    assert_eq!(read_until(&mut stream, b"\n").unwrap(), b"hello\n");
    let plain = [("direction", "inbound"), ("peer", "src"), ("tls", "no_identity")];
    counted(&greeter, "tcp_open_total", &plain, 1.0).unwrap();
}

#[test]
fn an_unmeshed_server_that_speaks_first_is_heard_at_once() {
    if !check::can_run() {
        return;
    }
    let client = pod("client");
    let began = Instant::now();
    let mut stream = connect(&client, address(&MESH, "greeter-unmeshed", 7001).unwrap()).unwrap();
    assert_eq!(read_until(&mut stream, b"\n").unwrap(), GREETING);
    assert!(began.elapsed() < WELL_BELOW_THE_STALL, "the first byte took {:?}", began.elapsed());
    stream.write_all(b"hello\n").unwrap();
    assert_eq!(read_until(&mut stream, b"\n").unwrap(), b"hello\n");
    let plain = [
        ("direction", "outbound"),
        ("peer", "dst"),
        ("dst_service", "greeter-unmeshed"),
        ("tls", "no_identity"),
    ];
    counted(&client, "tcp_open_total", &plain, 1.0).unwrap();
}

#[test]
fn an_opaque_port_is_not_looked_at_and_is_encrypted() {
    if !check::can_run() {
        return;
    }
    let (client, opaque) = (pod("client"), pod("opaque"));
    let capture = MESH.capture("tcp").unwrap();
    curl(&client, &["-f", "http://opaque:8080/?plum=mirabelle-jam"]).unwrap();
    let seen = capture.stop().unwrap();
    assert!(!seen.contain(b"mirabelle-jam"), "an opaque port's bytes crossed the node in plaintext");
    meshed_connections(&opaque, "none", 1.0);
    counted(&opaque, "request_total", &[("direction", "inbound")], 0.0).unwrap();
    let outbound = [("direction", "outbound"), ("authority", "opaque.shop.svc.cluster.local:8080")];
    counted(&client, "request_total", &outbound, 0.0).unwrap();
}

#[test]
fn a_port_of_the_default_list_is_opaque_without_an_annotation() {
    if !check::can_run() {
        return;
    }
    let server = pod("default-opaque");
    assert_eq!(redis_cli(&pod("client"), "default-opaque", "6379", &["PING"]), "PONG\n");
    meshed_connections(&server, "none", 1.0);
    counted(&server, "inbound_tcp_detect_http_results_total", &[], 0.0).unwrap();
    // From outside of the mesh the same list holds: plain, and not looked at either.
    assert_eq!(redis_cli(&pod("stranger"), "default-opaque", "6379", &["PING"]), "PONG\n");
    let skipped = [("direction", "inbound"), ("peer", "src"), ("no_tls_reason", "port_skipped")];
    counted(&server, "tcp_open_total", &skipped, 1.0).unwrap();
}

#[test]
fn a_request_that_comes_byte_by_byte_is_detected() {
    if !check::can_run() {
        return;
    }
    let (client, http) = (pod("client"), pod("dribble"));
    let to = address(&MESH, "dribble", 8080).unwrap();
    for (from, version) in [("client", "meshed"), ("stranger", "plain")] {
        let mut stream = connect(&pod(from), to).unwrap();
        for byte in format!("GET /{version} HTTP/1.1\r\nHost: dribble:8080\r\n\r\n").bytes() {
            stream.write_all(&[byte]).unwrap();
        }
        let (head, body) = read_response(&mut stream).unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        assert!(String::from_utf8(body).unwrap().contains(version));
    }
    meshed_connections(&http, "http/1", 1.0);
    let plain = [("direction", "inbound"), ("tls", "no_identity")];
    counted(&http, "request_total", &plain, 1.0).unwrap();
    assert!(outbound(&client, "http/1") >= 1.0);
}

#[test]
fn a_silent_client_stays_connected_and_is_detected_when_it_speaks() {
    if !check::can_run() {
        return;
    }
    let to = address(&MESH, "silence", 8080).unwrap();
    let mut silent = ["client", "stranger"].map(|from| connect(&pod(from), to).unwrap());
    let began = Instant::now();
    for stream in &mut silent {
        // Nobody speaks: what is waited for is that nothing comes, not even an end.
        let rest = LONGER_THAN_SPECULATION.saturating_sub(began.elapsed()).max(Duration::from_millis(1));
        stream.set_read_timeout(Some(rest)).unwrap();
        let error = stream.read(&mut [0]).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
    }
    for stream in &mut silent {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: silence:8080\r\n\r\n").unwrap();
        let (head, _) = read_response(stream).unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    }
    let http = pod("silence");
    counted(&http, "request_total", &[("direction", "inbound"), ("tls", "true")], 1.0).unwrap();
    counted(&http, "request_total", &[("direction", "inbound"), ("tls", "no_identity")], 1.0).unwrap();
}

#[test]
fn the_applications_own_tls_passes_untouched_within_the_mesh_and_from_outside() {
    if !check::can_run() {
        return;
    }
    let tls = pod("tls");
    let capture = MESH.capture("tcp").unwrap();
    let url = "https://meshed.example:8443/";
    let answer = curl(&pod("client"), &["-k", "--connect-to", "meshed.example:8443:tls:8443", url]).unwrap();
    assert!(answer.contains("TLSv1.3"), "s_server tells of its session: {answer}");
    let seen = capture.stop().unwrap();
    assert!(seen.tls_application_data() > 0);
    assert!(!seen.contain(b"meshed.example"), "the application's ClientHello crossed the node in the open");
    meshed_connections(&tls, "none", 1.0);

    // From outside the SNI is not ours: the application terminates its own TLS, and we count it as that.
    let capture = MESH.capture("tcp").unwrap();
    let url = "https://outside.example:8443/";
    let answer =
        curl(&pod("stranger"), &["-k", "--connect-to", "outside.example:8443:tls:8443", url]).unwrap();
    assert!(answer.contains("TLSv1.3"), "{answer}");
    assert!(
        capture.stop().unwrap().contain(b"outside.example"),
        "this capture shows what the other does not"
    );
    let foreign = [("direction", "inbound"), ("peer", "src"), ("tls", "opaque")];
    counted(&tls, "tcp_open_total", &foreign, 1.0).unwrap();
}

fn pod(name: &str) -> PodRef<'static> {
    MESH.pod(SHOP, name).unwrap()
}

/// Connections of the client whose detection ended so. Other tests count as well: compare before and after.
fn outbound(client: &PodRef<'_>, result: &str) -> f64 {
    count(client, "outbound_tcp_detect_http_results_total", &[("result", result)]).unwrap()
}

/// Connections that came by mTLS with a transport header that announced this.
#[track_caller]
fn meshed_connections(server: &PodRef<'_>, session: &str, expected: f64) {
    let client = identity("client");
    let labels = [("session_protocol", session), ("client_id", &*client)];
    counted(server, "inbound_tcp_transport_header_connections_total", &labels, expected).unwrap();
    // And none with another header.
    counted(server, "inbound_tcp_transport_header_connections_total", &[], expected).unwrap();
}

#[track_caller]
fn redis_cli(from: &PodRef<'_>, host: &str, port: &str, command: &[&str]) -> String {
    let argv: Vec<&str> = ["redis-cli", "-h", host, "-p", port].iter().chain(command).copied().collect();
    from.run("app", &argv).unwrap()
}

//! TLSRoutes and TCPRoutes as an operator writes them, through the real control plane: the application's own TLS goes by
//! its server name, bytes go by weight, what no route takes is reset, and all of it crosses the node encrypted.
#![expect(clippy::unwrap_used, reason = "a test says what it expects")]

use remora_tests::shop::{self, SHOP, curl, identity};
use remora_tests::wire::{address, client, connect, count, counted, kit, server};
use remora_tests::{Mesh, PodRef, check, peer};
use rustls::pki_types::ServerName;
use std::io::{ErrorKind, Read as _, Write as _};
use std::sync::LazyLock;

/// Connections by weight.
const TIMES: usize = 400;

/// One mesh for all: every test has servers of its own, so that their counters are its own.
static MESH: LazyLock<Mesh> = LazyLock::new(|| {
    let by_name = |name: &str, hosts: &str, backends: &str| {
        route("TLSRoute", "v1", name, "front", &format!("hostnames: [{hosts}], {}", rule(backends)))
    };
    let bytes = |name: &str, parent: &str, backends: &str| {
        route("TCPRoute", "v1alpha2", name, parent, &rule(backends))
    };
    let mut objects: Vec<String> = ["front", "exact", "suffix", "longer"].map(tls).into();
    objects.extend(["bytes", "most", "some", "nowhere"].map(|name| kit(name, 8443, "http", &[])));
    objects.extend([
        client("client", &[]),
        by_name("a", "'*.example'", "{name: suffix, port: 8443}, {name: front, port: 8443, weight: 0}"),
        by_name("b", "'*.eu.example', other.test", "{name: longer, port: 8443}"),
        by_name("c", "api.eu.example", "{name: exact, port: 8443}"),
        bytes(
            "weighed",
            "bytes",
            "{name: most, port: 8443, weight: 3}, {name: some, port: 8443}, {name: bytes, port: 8443, weight: 0}",
        ),
        bytes("nowhere", "nowhere", "{name: none, port: 8443}"),
    ]);
    shop::open(&objects).unwrap()
});

#[test]
fn the_applications_tls_goes_where_the_best_match_of_its_server_name_says_and_is_encrypted_once_more() {
    if !check::can_run() {
        return;
    }
    let client = pod("client");
    let served =
        || count(&client, "outbound_tcp_protocol_connections_total", &[("protocol", "tls")]).unwrap();
    let before = served();
    let capture = MESH.capture("tcp").unwrap();
    // Server name, whose certificate and page it is.
    let asked = [
        ("api.eu.example", "exact"),
        ("API.EU.example", "exact"),
        ("web.eu.example", "longer"),
        ("a.b.eu.example", "longer"),
        ("other.test", "longer"),
        ("eu.example", "suffix"),
        ("api.us.example", "suffix"),
        ("api.example", "suffix"),
    ];
    for (name, expected) in asked {
        let (to, url) = (format!("{name}:8443:front:8443"), format!("https://{name}:8443/who"));
        let answer = curl(&client, &["-k", "--http1.0", "--connect-to", &to, &url]).unwrap();
        assert_eq!(answer.trim(), expected, "{name}");
    }
    let seen = capture.stop().unwrap();
    assert!(seen.tls_application_data() > 0);
    for (name, _) in asked {
        assert!(!seen.contain(name.as_bytes()), "the ClientHello of {name} crossed the node in the open");
    }
    assert!((served() - before - asked.len() as f64).abs() < 0.5, "they are counted as TLS");
    let us = identity("client");
    for (name, expected) in [("exact", 2.0), ("longer", 3.0), ("suffix", 3.0), ("front", 0.0)] {
        let id = identity(name);
        let dialled = [("peer", "dst"), ("dst_service", name), ("tls", "true"), ("server_id", &*id)];
        counted(&client, "tcp_open_total", &dialled, expected).unwrap();
        let announced = [("session_protocol", "none"), ("client_id", &*us)];
        let came = "inbound_tcp_transport_header_connections_total";
        counted(&pod(name), came, &announced, expected).unwrap();
    }
}

#[test]
fn what_no_tls_route_names_is_reset_and_counted() {
    if !check::can_run() {
        return;
    }
    let client = pod("client");
    let errors = |error: &str| count(&client, "outbound_tcp_errors_total", &[("error", error)]).unwrap();
    let before = ["no route", "bad target"].map(errors);
    let to = address(&MESH, "front", 8443).unwrap();
    let unnamed = ["example", "api.eu.example.org", "eu.example2", "front"].map(hello);
    // No TLS at all, TLS that has no name, and what stops before it is either.
    let nameless =
        [b"GET / HTTP/1.1\r\nHost: api.eu.example\r\n\r\n".to_vec(), b"*1\r\n".to_vec(), hello("10.0.0.1")];
    for said in unnamed.iter().chain(&nameless) {
        let mut stream = connect(&client, to).unwrap();
        stream.write_all(said).unwrap();
        let end = stream.read(&mut [0]).map_err(|error| error.kind());
        // An orderly end without a byte would look like an answer.
        assert_eq!(end, Err(ErrorKind::ConnectionReset), "{:?}", String::from_utf8_lossy(said));
    }
    let after = [before[0] + unnamed.len() as f64, before[1] + nameless.len() as f64];
    for (error, expected) in ["no route", "bad target"].into_iter().zip(after) {
        counted(&client, "outbound_tcp_errors_total", &[("error", error)], expected).unwrap();
    }
}

#[test]
fn bytes_go_to_the_backends_of_a_tcp_route_by_weight_and_never_where_it_is_0() {
    if !check::can_run() {
        return;
    }
    let client = pod("client");
    let url = format!("http://bytes:8443/[1-{TIMES}]");
    let answers = curl(&client, &["-H", "Connection: close", &url]).unwrap();
    let told = serde_json::Deserializer::from_str(&answers).into_iter::<serde_json::Value>();
    let servers: Vec<String> =
        told.map(|told| told.unwrap()["server"].as_str().unwrap().to_owned()).collect();
    let of = |name: &str| servers.iter().filter(|server| *server == name).count();
    assert_eq!((of("most") + of("some"), of("bytes")), (TIMES, 0));
    // A quarter, and six standard deviations to either side.
    assert!((48..=152).contains(&of("some")), "{} of {TIMES}", of("some"));
    // They are bytes, not requests, on both sides.
    for name in ["most", "some", "bytes"] {
        let dialled = [("peer", "dst"), ("dst_service", name), ("tls", "true")];
        counted(&client, "tcp_open_total", &dialled, of(name) as f64).unwrap();
        counted(&client, "request_total", &[("dst_service", name)], 0.0).unwrap();
        let came = "inbound_tcp_transport_header_connections_total";
        counted(&pod(name), came, &[("session_protocol", "none")], of(name) as f64).unwrap();
    }
}

#[test]
fn bytes_of_a_tcp_route_without_a_backend_are_reset() {
    if !check::can_run() {
        return;
    }
    let mut stream = connect(&pod("client"), address(&MESH, "nowhere", 8443).unwrap()).unwrap();
    stream.write_all(b"*1\r\n").unwrap();
    assert_eq!(stream.read(&mut [0]).map_err(|error| error.kind()), Err(ErrorKind::ConnectionReset));
    counted(&pod("nowhere"), "inbound_tcp_transport_header_connections_total", &[], 0.0).unwrap();
}

/// A server of TLS with a page that says its name.
fn tls(name: &str) -> String {
    let run = format!(
        "'cd /tmp && echo {name} > who && openssl req -x509 -newkey rsa:2048 -nodes -subj /CN={name} -days 1 -keyout k \
         -out c 2>/dev/null && exec openssl s_server -WWW -accept 8443 -key k -cert c'"
    );
    server(name, "debian", 8443, &format!("sh, -c, {run}"), &[])
}

fn rule(backends: &str) -> String {
    format!("rules: [{{backendRefs: [{backends}]}}]")
}

fn route(kind: &str, version: &str, name: &str, parent: &str, spec: &str) -> String {
    format!(
        "---\n{{apiVersion: gateway.networking.k8s.io/{version}, kind: {kind}, metadata: {{name: {name}, namespace: {SHOP}}}, \
         spec: {{parentRefs: [{{group: core, kind: Service, name: {parent}, port: 8443}}], {spec}}}}}\n---\n"
    )
}

/// How a client begins that asks for this name. An address is none.
fn hello(name: &str) -> Vec<u8> {
    let config = peer::client(MESH.root(), None, &[]).unwrap();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut said = Vec::new();
    rustls::ClientConnection::new(config, name).unwrap().write_tls(&mut said).unwrap();
    said
}

fn pod(name: &str) -> PodRef<'static> {
    MESH.pod(SHOP, name).unwrap()
}

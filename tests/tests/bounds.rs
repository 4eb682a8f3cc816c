//! What a proxy does for nobody: dial itself, serve an address that is not its pod's, ask silent clients' servers more
//! often than it may.
#![expect(clippy::unwrap_used, reason = "a test says what it expects")]

use remora_tests::peer::{self, End};
use remora_tests::shop::{self, PATIENCE, SHOP, state};
use remora_tests::wire::{address, client, connect, counted, kit, listen, read_response, read_until};
use remora_tests::{Mesh, PodRef, check};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::sync::LazyLock;
use std::time::Duration;

const DIALS: &str = "remora_outbound_speculative_dials_total";
/// Ten times what a silent client is given before its server is asked.
const LONGER_THAN_THE_DELAY: Duration = Duration::from_secs(1);

static MESH: LazyLock<Mesh> = LazyLock::new(|| {
    let env = |name: &str, value: &str| format!(r#"[{{"name": "{name}", "value": "{value}"}}]"#);
    let with = |name: &str, env: &str| client(name, &[("config.linkerd.io/proxy-additional-env", env)]);
    shop::open(&[
        client("plain", &[]),
        with("limited", &env("REMORA_PROXY_MAX_SPECULATIVE", "1")),
        with("late", &env("REMORA_PROXY_SERVER_FIRST_DELAY", "1h")),
        kit("web", 8080, "http", &[]),
        kit("greeter", 7001, "greeter", &[]),
        shop::idle("shy", &[]),
        shop::service("shy", 7002, "7002"),
    ])
    .unwrap()
});

#[test]
fn an_application_cannot_make_its_proxy_dial_itself() {
    if !check::can_run() {
        return;
    }
    let plain = pod("plain");
    // The kernel does not redirect the loopback interface: the connection was going to the proxy itself.
    let mut stream = plain.dial("127.0.0.1:4140".parse().unwrap()).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n").unwrap();
    let (head, _) = peer::read_answer(&mut stream).unwrap();
    assert!(head.starts_with("HTTP/1.1 508 "), "{head}");
    assert!(
        head.contains("l5d-proxy-error: 127.0.0.1:4140 is this proxy's own port: refused as a loop"),
        "{head}"
    );
    let mut bytes = plain.dial("127.0.0.1:4140".parse().unwrap()).unwrap();
    bytes.write_all(b"*1\r\n$4\r\nPING\r\n").unwrap();
    assert_eq!(peer::end_of(&mut bytes), End::Closed(Vec::new()));
    counted(&plain, "outbound_tcp_errors_total", &[("error", "loop")], 2.0).unwrap();
}

#[test]
fn a_connection_to_an_address_that_is_not_the_pods_is_refused() {
    if !check::can_run() {
        return;
    }
    let plain = pod("plain");
    let (foreign, via) = ("198.51.100.9", plain.ip().unwrap().to_string());
    let route = ["route", "add", foreign, "via", &via];
    assert!(MESH.enter(|| Command::new("ip").args(route).status()).unwrap().unwrap().success());
    peer::mirror(plain.listen(8000).unwrap());
    // The pod's own address is served by the same listener.
    let mut own = MESH.dial(plain.at(8000).unwrap()).unwrap();
    own.write_all(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n").unwrap();
    assert!(peer::read_answer(&mut own).unwrap().0.starts_with("HTTP/1.1 200 "));

    let mut stream = MESH.dial(format!("{foreign}:8000").parse().unwrap()).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n").unwrap();
    assert_eq!(peer::end_of(&mut stream), End::Closed(Vec::new()));
    counted(&plain, "inbound_tcp_errors_total", &[("error", "not our address")], 1.0).unwrap();
    let log = MESH.logs(&plain, "linkerd-proxy");
    assert!(log.contains(&format!("{foreign}:8000 is not an address of this pod")), "{log}");
}

#[test]
fn no_more_servers_are_asked_at_once_than_may_be_and_who_is_left_out_is_served_when_it_speaks() {
    if !check::can_run() {
        return;
    }
    let limited = pod("limited");
    let mut first = to("limited", "web", 8080);
    counted(&limited, DIALS, &[], 1.0).unwrap();
    let mut second = to("limited", "web", 8080);
    counted(&limited, "remora_speculative_dials_limited_total", &[], 1.0).unwrap();
    for stream in [&mut second, &mut first] {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: web:8080\r\n\r\n").unwrap();
        let (head, _) = read_response(stream).unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    }
    counted(&limited, DIALS, &[], 1.0).unwrap();
}

#[test]
fn how_long_a_client_is_silent_before_its_server_is_asked_can_be_chosen() {
    if !check::can_run() {
        return;
    }
    let mut stream = to("late", "greeter", 7001);
    nothing_comes(&mut stream);
    counted(&pod("late"), DIALS, &[], 0.0).unwrap();
    stream.write_all(b"*1\r\n$4\r\nPING\r\n").unwrap();
    assert_eq!(read_until(&mut stream, b"\n").unwrap(), b"220 testkit at your service\r\n");
}

#[test]
fn a_server_that_closes_on_silence_is_not_asked_again() {
    if !check::can_run() {
        return;
    }
    let plain = pod("plain");
    let server = listen(&pod("shy"), 7002).unwrap();
    let mut silent = to("plain", "shy", 7002);
    drop(server.accept().unwrap());
    let pointer = format!("/outbound/workers/0/{}/speculation", address(&MESH, "shy", 7002).unwrap());
    MESH.wait_until("the refusal to be remembered", PATIENCE, || {
        state(&plain).unwrap().pointer(&pointer) == Some(&false.into())
    })
    .unwrap();
    counted(&plain, DIALS, &[], 1.0).unwrap();
    // Neither the client that was silent then nor the next one costs the server another connection, until it speaks.
    let mut next = to("plain", "shy", 7002);
    nothing_comes(&mut next);
    counted(&plain, DIALS, &[], 1.0).unwrap();
    for stream in [&mut silent, &mut next] {
        stream.write_all(b"*1\r\n$4\r\nPING\r\n").unwrap();
        let (mut accepted, _) = server.accept().unwrap();
        accepted.read_exact(&mut [0; 14]).unwrap();
    }
}

fn pod(name: &str) -> PodRef<'static> {
    MESH.pod(SHOP, name).unwrap()
}

/// A connection out of a pod to a Service.
#[track_caller]
fn to(from: &str, service: &str, port: u16) -> TcpStream {
    connect(&pod(from), address(&MESH, service, port).unwrap()).unwrap()
}

/// For what must not come there is nothing to wait for but time.
#[track_caller]
fn nothing_comes(stream: &mut TcpStream) {
    stream.set_read_timeout(Some(LONGER_THAN_THE_DELAY)).unwrap();
    let error = stream.read(&mut [0]).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
    stream.set_read_timeout(Some(remora_tests::wire::LIMIT)).unwrap();
}

//! Two of our proxies share one connection, and nobody notices but those who pay for it: bytes, ends, resets, policy
//! and drains are those of connections of their own, also beside proxies that have no carriers.
#![expect(clippy::unwrap_used, reason = "a test says what it expects")]

use remora_tests::metrics::{self, Samples};
use remora_tests::shop::{self, PATIENCE, SHOP, curl};
use remora_tests::{Mesh, PodRef, Signal, check, peer};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

const PROXY: &str = "linkerd-proxy";
/// Connections at once, more than a carrier is assumed to take before the other side has said how many.
const MANY: usize = 200;

#[test]
fn many_connections_between_two_proxies_are_one() {
    if !check::can_run() {
        return;
    }
    let mesh = shop::open(&[shop::idle("client", &[]), shop::idle("server", &[])]).unwrap();
    let (client, server) = (pod(&mesh, "client"), pod(&mesh, "server"));
    peer::echo(server.listen(9000).unwrap());
    peer::mirror(server.listen(8000).unwrap());
    meshed(&mesh, &client, &server);

    let before = metrics(&client).count("remora_mux_carriers_opened_total", &[("direction", "outbound")]);
    let mut open: Vec<TcpStream> =
        (0..MANY).map(|_| client.dial(server.at(9000).unwrap()).unwrap()).collect();
    for (nth, stream) in open.iter_mut().enumerate() {
        stream.write_all(&line(nth)).unwrap();
    }
    for (nth, stream) in open.iter_mut().enumerate() {
        let mut back = vec![0; line(nth).len()];
        stream.read_exact(&mut back).unwrap();
        assert_eq!(back, line(nth), "connection {nth} got another's bytes");
    }
    let (head, body) = ask(&client, server.at(8000).unwrap());
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(body.contains(&format!("l5d-client-id: {}", shop::identity("client"))), "{body}");

    for (pod, direction) in [(&client, "outbound"), (&server, "inbound")] {
        let at = [("direction", direction)];
        let samples = metrics(pod);
        assert_eq!(samples.count("remora_mux_carriers", &at), 1, "{direction}");
        assert_eq!(samples.count("remora_mux_carriers_opened_total", &at), before, "{direction}");
        assert!(samples.count("remora_mux_streams", &at) >= MANY as u64, "{direction}");
        let peer = if direction == "inbound" { "src" } else { "dst" };
        let streams = [("direction", direction), ("peer", peer), ("tls", "true")];
        assert!(
            samples.count("tcp_open_connections", &streams) >= MANY as u64,
            "streams are counted as connections, {direction}"
        );
    }

    // Half-closes, both ways, each for itself.
    for (nth, stream) in open.iter_mut().enumerate() {
        stream.shutdown(Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
        assert!(rest.is_empty(), "connection {nth}: {rest:?}");
    }
    mesh.wait_until("the streams to end", PATIENCE, || {
        [(&client, "outbound"), (&server, "inbound")].into_iter().all(|(pod, direction)| {
            metrics(pod).count("remora_mux_streams", &[("direction", direction)]) <= 1
        })
    })
    .unwrap();
}

#[test]
fn proxies_with_and_without_carriers_understand_each_other() {
    if !check::can_run() {
        return;
    }
    let pods = [
        shop::idle("with", &[]),
        shop::idle("without", &[shop::WITHOUT_MUX]),
        shop::idle("also-with", &[]),
        shop::idle("also-without", &[shop::WITHOUT_MUX]),
    ];
    let mesh = shop::open(&pods).unwrap();
    for name in ["also-with", "also-without"] {
        peer::echo(pod(&mesh, name).listen(9000).unwrap());
        peer::mirror(pod(&mesh, name).listen(8000).unwrap());
    }
    for from in ["with", "without"] {
        for to in ["also-with", "also-without"] {
            let (client, server) = (pod(&mesh, from), pod(&mesh, to));
            meshed(&mesh, &client, &server);
            let mut stream = client.dial(server.at(9000).unwrap()).unwrap();
            stream.write_all(b"hello\n").unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let mut back = Vec::new();
            stream.read_to_end(&mut back).unwrap();
            assert_eq!(back, b"hello\n", "{from} to {to}");
            let (head, body) = ask(&client, server.at(8000).unwrap());
            assert!(head.starts_with("HTTP/1.1 200"), "{from} to {to}: {head}");
            assert!(body.contains(&shop::identity(from)), "{from} to {to}: {body}");
        }
    }
    let carriers = |name: &str, direction| {
        let samples = metrics(&pod(&mesh, name));
        samples.count("remora_mux_carriers_opened_total", &[("direction", direction)])
    };
    assert_eq!((carriers("with", "outbound"), carriers("also-with", "inbound")), (1, 1));
    assert_eq!((carriers("without", "outbound"), carriers("also-without", "inbound")), (0, 0));
}

#[test]
fn a_stream_that_nobody_reads_stops_no_other() {
    if !check::can_run() {
        return;
    }
    let mesh = shop::open(&[shop::idle("client", &[]), shop::idle("server", &[])]).unwrap();
    let (client, server) = (pod(&mesh, "client"), pod(&mesh, "server"));
    peer::echo(server.listen(9000).unwrap());
    meshed(&mesh, &client, &server);
    // Each sends until nothing moves any more, and reads nothing: windows and sockets are full, both ways.
    let mut stuck: Vec<TcpStream> = (0..8).map(|_| client.dial(server.at(9000).unwrap()).unwrap()).collect();
    for stream in &mut stuck {
        stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
        let block = vec![7; 64 * 1024];
        let full = loop {
            if let Err(error) = stream.write_all(&block) {
                break error;
            }
        };
        assert!(matches!(full.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{full}");
    }
    for _ in 0..20 {
        let mut stream = client.dial(server.at(9000).unwrap()).unwrap();
        let sent: Vec<u8> = (0..100_000_u32).map(|n| (n % 251) as u8).collect();
        let mut back = vec![0; sent.len()];
        let mut writer = stream.try_clone().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| writer.write_all(&sent).unwrap());
            stream.read_exact(&mut back).unwrap();
        });
        assert!(back == sent, "bytes changed");
    }
    let samples = metrics(&client);
    assert_eq!(samples.count("remora_mux_carriers", &[("direction", "outbound")]), 1);
    // Windows and buffers, not what the clients sent: eight of them could not stop.
    assert!(samples.sum("process_resident_memory_bytes", &[]) < Some(64e6), "it buffers without bound");
}

#[test]
fn a_policy_that_changes_ends_streams_and_not_their_carrier() {
    if !check::can_run() {
        return;
    }
    let mesh = Mesh::start().unwrap();
    let namespace = |policy: &str| {
        format!(
            "{{kind: Namespace, apiVersion: v1, metadata: {{name: shop, annotations: {{linkerd.io/inject: enabled, \
             config.linkerd.io/default-inbound-policy: {policy}}}}}}}\n---\n"
        )
    };
    // Without a policy at first: one that the namespace has when a pod is injected stays the pod's.
    mesh.apply(&(shop::NAMESPACE.to_owned() + &shop::idle("client", &[]) + &shop::idle("server", &[])))
        .unwrap();
    mesh.wait_ready(PATIENCE).unwrap();
    let (client, server) = (pod(&mesh, "client"), pod(&mesh, "server"));
    peer::echo(server.listen(9000).unwrap());
    meshed(&mesh, &client, &server);
    let mut stream = client.dial(server.at(9000).unwrap()).unwrap();
    assert!(echoes(&mut stream));
    mesh.apply(&namespace("deny")).unwrap();
    assert_eq!(peer::end_of(&mut stream), peer::End::Closed(Vec::new()), "the policy changed");
    assert!(!echoes(&mut client.dial(server.at(9000).unwrap()).unwrap()));
    mesh.apply(&namespace("all-authenticated")).unwrap();
    mesh.wait_until("the server to admit its client again", PATIENCE, || {
        echoes(&mut client.dial(server.at(9000).unwrap()).unwrap())
    })
    .unwrap();
    let opened = metrics(&server).count("remora_mux_carriers_opened_total", &[("direction", "inbound")]);
    assert_eq!(opened, 1, "all of them came by one carrier");
}

#[test]
fn a_peer_that_is_gone_is_noticed_and_its_restart_as_well() {
    if !check::can_run() {
        return;
    }
    let mesh = shop::open(&[shop::web("web-0"), shop::web("web-1"), shop::idle("client", &[])]).unwrap();
    let client = mesh.pod(SHOP, "client").unwrap();
    let load = shop::customers(&mesh, &client).unwrap();
    let both = || ["web-0", "web-1"].iter().all(|name| load.tally().from(name) >= 20);
    mesh.wait_until("both replicas", PATIENCE, both).unwrap();
    // Stopped in good order: the carrier says so before its streams could be lost.
    let web = mesh.pod(SHOP, "web-0").unwrap();
    for restarts in 1..=3 {
        web.signal(PROXY, Signal::TERM).unwrap();
        mesh.wait_until("the proxy to be back", PATIENCE, || {
            web.restarts(PROXY) == restarts && web.is_ready()
        })
        .unwrap();
        let tally = load.take();
        assert_eq!(tally.failed, 0, "{tally:?}");
        mesh.wait_until("both replicas again", PATIENCE, both).unwrap();
    }
    drop(load);
    // Killed: connections end, others begin.
    let mut open = client.dial(SocketAddr::new(shop::cluster_ip(&mesh, "web").unwrap(), 8000)).unwrap();
    open.write_all(b"GET / HTTP/1.1\r\nhost: web\r\n\r\n").unwrap();
    peer::read_answer(&mut open).unwrap();
    for name in ["web-0", "web-1"] {
        let pod = mesh.pod(SHOP, name).unwrap();
        let restarts = pod.restarts(PROXY);
        pod.signal(PROXY, Signal::KILL).unwrap();
        mesh.wait_until("the proxy to be back", PATIENCE, || {
            pod.restarts(PROXY) > restarts && pod.is_ready()
        })
        .unwrap();
    }
    mesh.wait_until("answers", PATIENCE, || curl(&client, &["-f", "http://web:8000/"]).is_ok()).unwrap();
}

/// What a proxy counted, asked from within its pod: whatever the policy, that is allowed.
fn metrics(pod: &PodRef<'_>) -> Samples {
    metrics::parse(&curl(pod, &["-f", "http://127.0.0.1:4191/metrics"]).unwrap())
}

/// Waits until connections of the client to the server's echo have mTLS: discovery hears of a pod after it is ready.
fn meshed(mesh: &Mesh, client: &PodRef<'_>, server: &PodRef<'_>) {
    let target = server.at(9000).unwrap();
    let addr = target.to_string();
    let labels =
        [("direction", "outbound"), ("peer", "dst"), ("tls", "true"), ("target_addr", addr.as_str())];
    mesh.wait_until("mTLS between the pods", PATIENCE, || {
        echoes(&mut client.dial(target).unwrap()) && metrics(client).count("tcp_open_total", &labels) > 0
    })
    .unwrap();
}

/// What connection `nth` says.
fn line(nth: usize) -> Vec<u8> {
    format!("this is connection {nth}\n").repeat(nth % 7 + 1).into_bytes()
}

fn pod<'a>(mesh: &'a Mesh, name: &str) -> PodRef<'a> {
    mesh.pod(SHOP, name).unwrap()
}

fn ask(from: &PodRef<'_>, target: SocketAddr) -> (String, String) {
    let mut stream = from.dial(target).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: app\r\n\r\n").unwrap();
    peer::read_answer(&mut stream).unwrap()
}

fn echoes(stream: &mut TcpStream) -> bool {
    // A whole line, so that nobody waits for the rest of a request.
    let mut back = [0; 5];
    stream.write_all(b"ping\n").and_then(|()| stream.read_exact(&mut back)).is_ok() && &back == b"ping\n"
}

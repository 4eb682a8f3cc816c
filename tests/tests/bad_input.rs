//! What peers send that they should not: each gets its clear error or a clean close, is counted, and harms nobody else.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use http_body_util::Empty;
use hyper_util::rt::{TokioExecutor, TokioIo};
use remora_tests::mesh::Authority;
use remora_tests::peer::{self, ALPN, End, PATIENCE};
use remora_tests::{Mesh, PodRef, check, shop};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;

/// Header bytes that a proxy takes of one message (`REMORA_PROXY_MAX_HEADER_BYTES`).
const MAX_HEADER: usize = 65_536;

#[test]
fn bytes_that_are_no_protocol_reach_the_application_unchanged_or_end_in_time() {
    if !check::can_run() {
        return;
    }
    let mesh = mesh();
    let web = mesh.pod("shop", "web").unwrap();
    peer::echo(web.listen(9000).unwrap());
    peer::mirror(web.listen(8000).unwrap());
    let echo = web.at(9000).unwrap();

    // Half a ClientHello, and then nothing: nobody can say what it is. It ends when detection does.
    let mut half = mesh.dial(echo).unwrap();
    let began = Instant::now();
    half.set_read_timeout(Some(PATIENCE)).unwrap();
    let hello = client_hello(&mesh, &shop::identity("web"));
    half.write_all(hello.get(..200).unwrap()).unwrap();

    // The beginning of a request, and then nothing: bytes, when time is up.
    let mut stuck = mesh.dial(echo).unwrap();
    stuck.set_read_timeout(Some(PATIENCE)).unwrap();
    stuck.write_all(b"GET /").unwrap();
    let verdicts = |result: &str| {
        let counted = web.metrics().unwrap();
        counted.sum("inbound_tcp_detect_http_results_total", &[("result", result)]).unwrap_or(0.0)
    };
    let (not_http, undecided) = (verdicts("not_http"), verdicts("read_timeout"));

    // Garbage of every beginning is the application's.
    for first in 0..=255_u8 {
        // 22 begins a TLS record, of which the rest is missing until the client is done.
        let garbage: Vec<u8> = (0..600_u16).map(|n| first.wrapping_add((n * 37) as u8)).collect();
        assert_eq!(through(&mesh, echo, &garbage), garbage, "garbage that begins with {first}");
    }
    assert!(verdicts("not_http") >= not_http + 250.0, "garbage is counted as such");
    // So is half a ClientHello of a client that says it is done.
    let cut = hello.get(..200).unwrap();
    assert_eq!(through(&mesh, echo, cut), cut, "half a ClientHello and a half-close");
    // And one that names nobody, which is counted like other bytes, or somebody else.
    for (sni, tls) in [("192.0.2.7", "no_identity"), ("other.example", "opaque")] {
        let counted = [("tls", tls), ("peer", "src"), ("direction", "inbound")];
        let opened = || web.metrics().unwrap().sum("tcp_open_total", &counted).unwrap_or_default();
        let (foreign, before) = (client_hello(&mesh, sni), opened());
        assert_eq!(through(&mesh, echo, &foreign), foreign, "a ClientHello for {sni}");
        assert!(opened() > before, "{sni}");
    }
    // Nothing at all is no verdict either.
    assert_eq!(through(&mesh, echo, b""), b"");

    // A request in single bytes is a request.
    let mut slow = mesh.dial(web.at(8000).unwrap()).unwrap();
    for byte in b"GET /slow HTTP/1.1\r\nhost: web\r\n\r\n" {
        slow.write_all(&[*byte]).unwrap();
    }
    let (head, body) = peer::read_answer(&mut slow).unwrap();
    assert!(head.starts_with("HTTP/1.1 200") && body.starts_with("GET /slow HTTP/1.1"), "{head}{body}");
    let detected = [("result", "http/1")];
    assert!(web.metrics().unwrap().sum("inbound_tcp_detect_http_results_total", &detected) >= Some(1.0));

    assert_eq!(peer::end_of(&mut half), End::Closed(Vec::new()), "half a ClientHello");
    assert!(began.elapsed() > Duration::from_secs(9), "it was ended before detection's limit");
    let mut back = [0; 5];
    stuck.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"GET /");
    assert!(verdicts("read_timeout") > undecided, "a verdict because time was up");
    assert!(errors(&web, "tls detection timeout") >= 1.0);
    said(&mesh, &web, "no whole ClientHello came within");
}

#[test]
fn an_applications_garbage_reaches_its_server_unchanged_and_is_counted() {
    if !check::can_run() {
        return;
    }
    let mesh = mesh();
    let (web, old) = (mesh.pod("shop", "web").unwrap(), mesh.pod("shop", "old").unwrap());
    peer::echo(old.listen(9000).unwrap());
    let to = old.at(9000).unwrap();
    for first in (0..=255_u8).step_by(5) {
        let garbage: Vec<u8> = (0..600_u16).map(|n| first.wrapping_add((n * 37) as u8)).collect();
        let mut stream = web.dial(to).unwrap();
        stream.write_all(&garbage).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut back = Vec::new();
        stream.read_to_end(&mut back).unwrap();
        assert_eq!(back, garbage, "garbage that begins with {first}");
    }
    let counted = web.metrics().unwrap();
    let verdicts = counted.sum("outbound_tcp_detect_http_results_total", &[("result", "not_http")]);
    assert!(verdicts >= Some(50.0), "{verdicts:?}");
    let opaque = counted.sum("outbound_tcp_protocol_connections_total", &[("protocol", "opaq")]);
    assert!(opaque >= Some(50.0), "{opaque:?}");

    // A client that resets before it has said what it speaks.
    let undecided = web.dial(to).unwrap();
    (&undecided).write_all(b"GE").unwrap();
    rustix::net::sockopt::set_socket_linger(&undecided, Some(Duration::ZERO)).unwrap();
    drop(undecided);
    let lost = || {
        let counted = web.metrics().unwrap();
        counted.sum("outbound_tcp_detect_http_results_total", &[("result", "error")]) >= Some(1.0)
    };
    mesh.wait_until("the reset to be counted", PATIENCE, lost).unwrap();
}

#[test]
fn a_client_hello_in_single_bytes_is_a_handshake() {
    if !check::can_run() {
        return;
    }
    let mesh = mesh();
    let web = mesh.pod("shop", "web").unwrap();
    peer::mirror(web.listen(8000).unwrap());
    let own = mesh.certify(&shop::identity("slow")).unwrap();
    let config = peer::client(mesh.root(), Some(&own), &[]).unwrap();
    let mut tcp = mesh.dial(web.at(8000).unwrap()).unwrap();
    let name = ServerName::try_from(shop::identity("web")).unwrap();
    let mut session = rustls::ClientConnection::new(config, name).unwrap();
    while session.is_handshaking() {
        let mut flight = Vec::new();
        while session.wants_write() {
            session.write_tls(&mut flight).unwrap();
        }
        for byte in flight {
            tcp.write_all(&[byte]).unwrap();
        }
        if session.is_handshaking() {
            session.read_tls(&mut tcp).unwrap();
            session.process_new_packets().unwrap();
        }
    }
    let mut tls = rustls::StreamOwned::new(session, tcp);
    tls.write_all(b"GET /tls HTTP/1.1\r\nhost: web\r\n\r\n").unwrap();
    let (head, body) = peer::read_answer(&mut tls).unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(body.contains(&shop::identity("slow")), "{body}");
}

#[test]
fn a_client_whose_tls_is_not_good_enough_is_refused_and_the_reason_named() {
    if !check::can_run() {
        return;
    }
    let mesh = mesh();
    let web = mesh.pod("shop", "web").unwrap();
    peer::mirror(web.listen(8000).unwrap());
    let other = Authority::root("root.of.another.mesh").unwrap();
    let me = shop::identity("client");
    let stranger = other.certify(&me, (2100, 1, 1)).unwrap();
    let expired = mesh.root().certify(&me, (2020, 1, 1)).unwrap();
    let nobody = mesh.certify("192.0.2.7").unwrap();
    let good = mesh.certify(&me).unwrap();
    let root = mesh.root();
    let opened = || {
        let accepted = [("direction", "inbound"), ("peer", "src"), ("target_port", "8000")];
        web.metrics().unwrap().sum("tcp_open_total", &accepted).unwrap_or(0.0)
    };
    let open_before = opened();
    for (what, config, reason) in [
        ("another root's", peer::client(root, Some(&stranger), &[]).unwrap(), "not from our trust anchors"),
        ("an expired", peer::client(root, Some(&expired), &[]).unwrap(), "expired"),
        ("one that names no identity", peer::client(root, Some(&nobody), &[]).unwrap(), "names no identity"),
        (
            "one that does not trust us",
            peer::client(&other, Some(&good), &[]).unwrap(),
            "refused the handshake",
        ),
    ] {
        let before = errors(&web, "client tls");
        assert_eq!(ask_over_tls(&mesh, &web, config), None, "{what} certificate was served");
        counted(&mesh, &web, "client tls", before, what);
        said(&mesh, &web, reason);
    }
    let before = errors(&web, "client tls");
    let old = mesh.pod("shop", "old").unwrap();
    let name = shop::identity("web");
    let (url, to) = (format!("https://{name}:8000/"), format!("{name}:8000:{}:8000", web.ip().unwrap()));
    let argv = ["curl", "-sSk", "--max-time", "10", "--tls-max", "1.2", "--connect-to", &to, &url];
    let output = old.exec("app", &argv).unwrap();
    assert_eq!(output.status.code(), Some(35), "TLS 1.2: {output:?}");
    counted(&mesh, &web, "client tls", before, "TLS 1.2");
    said(&mesh, &web, "TLS 1.3 is required");

    assert!(opened() >= open_before + 5.0, "a handshake that fails is a connection too");
    let labels = [("error", "client tls"), ("srv_name", "all-unauthenticated"), ("srv_port", "8000")];
    assert!(web.metrics().unwrap().sum("inbound_tcp_errors_total", &labels) >= Some(5.0), "by server");
    let config = peer::client(root, Some(&good), &[]).unwrap();
    assert!(ask_over_tls(&mesh, &web, config).unwrap().contains(&me), "others are served");
}

#[test]
fn a_server_whose_tls_is_not_good_enough_is_never_sent_a_request() {
    if !check::can_run() {
        return;
    }
    let mesh = mesh_with(peer::MANIFEST);
    let (client, server) = (mesh.pod("shop", "web").unwrap(), mesh.pod("shop", "peer").unwrap());
    peer::wait_known(&mesh, &client).unwrap();
    let inbound = server.listen(4143).unwrap();
    let service = SocketAddr::new(shop::cluster_ip(&mesh, "peer").unwrap(), 80);
    let me = shop::identity("peer");
    let other = Authority::root("root.of.another.mesh").unwrap();
    let root = mesh.root();
    let certificates = [
        (other.certify(&me, (2100, 1, 1)).unwrap(), "not from our trust anchors"),
        (root.certify(&me, (2020, 1, 1)).unwrap(), "expired"),
        (mesh.certify(&shop::identity("web")).unwrap(), "the peer is web.shop."),
    ];
    for (certificate, reason) in certificates {
        let config = peer::server(root, &certificate, &[ALPN]).unwrap();
        let mut asking = client.dial(service).unwrap();
        asking.write_all(b"GET /secret HTTP/1.1\r\nhost: peer\r\n\r\n").unwrap();
        // One endpoint: the proxy tries it again once, and not more.
        for _ in 0..2 {
            inbound.set_nonblocking(true).unwrap();
            let mut accepted = None;
            let wait = mesh.wait_until("a dial", Duration::from_secs(2), || {
                accepted = inbound.accept().ok();
                accepted.is_some()
            });
            if wait.is_err() {
                break;
            }
            let (tcp, _) = accepted.unwrap();
            tcp.set_nonblocking(false).unwrap();
            tcp.set_read_timeout(Some(PATIENCE)).unwrap();
            let session = rustls::ServerConnection::new(config.clone()).unwrap();
            let mut sent = Vec::new();
            // An error is the alert by which the client refused.
            let _ = rustls::StreamOwned::new(session, tcp).read_to_end(&mut sent);
            assert!(sent.is_empty(), "{reason}: it was sent {:?}", String::from_utf8_lossy(&sent));
        }
        let (head, _) = peer::read_answer(&mut asking).unwrap();
        assert!(head.starts_with("HTTP/1.1 502"), "{reason}: {head}");
        assert!(head.contains("l5d-proxy-error: the TLS handshake with") && head.contains(reason), "{head}");
    }
    let counted = client.metrics().unwrap().sum("outbound_http_errors_total", &[("error", "endpoint tls")]);
    assert_eq!(counted, Some(3.0));
}

#[test]
fn header_bombs_are_answered_431_by_either_side() {
    if !check::can_run() {
        return;
    }
    let mesh = mesh();
    let (web, old) = (mesh.pod("shop", "web").unwrap(), mesh.pod("shop", "old").unwrap());
    peer::mirror(web.listen(8000).unwrap());
    peer::mirror(old.listen(8000).unwrap());
    let dial = |side: &str| match side {
        "inbound" => mesh.dial(web.at(8000).unwrap()).unwrap(),
        _ => web.dial(old.at(8000).unwrap()).unwrap(),
    };
    for side in ["inbound", "outbound"] {
        let padding = MAX_HEADER - "GET / HTTP/1.1\r\nhost: web\r\nx-a: \r\n\r\n".len();
        let mut many = String::new();
        for n in 0..150 {
            let _ = write!(many, "x-{n}: a\r\n");
        }
        for (what, fields, expected) in [
            ("just under the limit", format!("x-a: {}\r\n", "a".repeat(padding - 2048)), "200"),
            ("just over the limit", format!("x-a: {}\r\n", "a".repeat(padding + 1)), "431"),
            ("far too many", many.clone(), "431"),
        ] {
            let mut client = dial(side);
            let bomb = format!("GET / HTTP/1.1\r\nhost: web\r\n{fields}\r\n");
            // A refused client may see its connection reset before it has written all.
            let _ = client.write_all(bomb.as_bytes());
            let mut status = [0; 12];
            client.read_exact(&mut status).unwrap();
            let status = String::from_utf8_lossy(&status).into_owned();
            assert_eq!(status, format!("HTTP/1.1 {expected}"), "{what}, {side}");
        }
        let family = format!("{side}_tcp_errors_total");
        let counted = || web.metrics().unwrap().sum(&family, &[("error", "header limit")]);
        mesh.wait_until("the bombs to be counted", PATIENCE, || counted() == Some(2.0)).unwrap();
        let mut client = dial(side);
        client.write_all(b"GET /after HTTP/1.1\r\nhost: web\r\n\r\n").unwrap();
        assert!(peer::read_answer(&mut client).unwrap().1.starts_with("GET /after"), "{side}");
    }
    said(&mesh, &web, "more header bytes or fields than");
}

#[test]
fn an_http2_header_bomb_ends_its_own_stream_only() {
    if !check::can_run() {
        return;
    }
    let mesh = mesh();
    let (web, old) = (mesh.pod("shop", "web").unwrap(), mesh.pod("shop", "old").unwrap());
    peer::mirror_http2(web.listen(8002).unwrap());
    peer::mirror_http2(old.listen(8002).unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for (side, tcp) in [
        ("inbound", mesh.dial(web.at(8002).unwrap()).unwrap()),
        ("outbound", web.dial(old.at(8002).unwrap()).unwrap()),
    ] {
        let conversation = async {
            tcp.set_nonblocking(true).unwrap();
            let io = TokioIo::new(tokio::net::TcpStream::from_std(tcp).unwrap());
            let (mut sender, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
            tokio::spawn(connection);
            let mut statuses = Vec::new();
            for bytes in [1, MAX_HEADER - 2048, MAX_HEADER + 1, 1] {
                let request = Request::get("http://web:8002/").header("x-a", "a".repeat(bytes));
                let sent = sender.send_request(request.body(Empty::<Bytes>::new()).unwrap()).await;
                statuses.push(sent.map_or(0, |answer| answer.status().as_u16()));
            }
            assert_eq!(statuses, [200, 200, 431, 200], "{side}");
        };
        runtime.block_on(async { tokio::time::timeout(PATIENCE, conversation).await }).unwrap();
    }
}

#[test]
fn a_request_whose_length_is_in_doubt_is_refused_or_has_one_length_only() {
    if !check::can_run() {
        return;
    }
    let mesh = mesh();
    let (web, old) = (mesh.pod("shop", "web").unwrap(), mesh.pod("shop", "old").unwrap());
    peer::mirror(web.listen(8000).unwrap());
    peer::mirror(old.listen(8000).unwrap());
    let smuggled = "0\r\n\r\nGET /smuggled HTTP/1.1\r\nx: y\r\n\r\n";
    let length = smuggled.len();
    for (what, version, fields) in [
        ("CL then TE", "1.1", format!("content-length: {length}\r\ntransfer-encoding: chunked\r\n")),
        ("TE then CL", "1.1", format!("transfer-encoding: chunked\r\ncontent-length: {length}\r\n")),
        ("unknown TE", "1.1", format!("transfer-encoding: xchunked\r\ncontent-length: {length}\r\n")),
        ("chunked, not last", "1.1", "transfer-encoding: chunked, identity\r\n".to_owned()),
        ("TE with a space", "1.1", format!("transfer-encoding : chunked\r\ncontent-length: {length}\r\n")),
        ("two lengths", "1.1", format!("content-length: 0\r\ncontent-length: {length}\r\n")),
        ("signed length", "1.1", format!("content-length: +{length}\r\n")),
        ("TE in HTTP/1.0", "1.0", format!("transfer-encoding: chunked\r\ncontent-length: {length}\r\n")),
    ] {
        for (side, mut client) in [
            ("inbound", mesh.dial(web.at(8000).unwrap()).unwrap()),
            ("outbound", web.dial(old.at(8000).unwrap()).unwrap()),
        ] {
            let request = format!("POST /first HTTP/{version}\r\nhost: web\r\n{fields}\r\n{smuggled}");
            client.write_all(request.as_bytes()).unwrap();
            let (head, seen) = peer::read_answer(&mut client).unwrap();
            if head.starts_with("HTTP/1.1 400") || head.starts_with("HTTP/1.0 400") {
                continue;
            }
            assert!(what.starts_with("CL ") || what.starts_with("TE then"), "{what}, {side}: {head}");
            let seen = seen.to_lowercase();
            assert!(seen.contains("transfer-encoding: chunked"), "{what}, {side}: {seen}");
            assert!(!seen.contains("content-length"), "{what}, {side}: the application was sent\n{seen}");
        }
    }
}

/// A mesh with an injected pod `web` in which tests listen, and `old` without a proxy.
fn mesh() -> Mesh {
    mesh_with("")
}

/// With more objects, which the control plane knows by the time that `web` is ready.
#[expect(clippy::unwrap_used, reason = "a helper of tests")]
fn mesh_with(more: &str) -> Mesh {
    let old = shop::idle("old", &[("linkerd.io/inject", "disabled")]);
    shop::open(&[more.to_owned(), shop::idle("web", &[]), old]).unwrap()
}

/// Sends bytes to an echo, half-closes, and returns what came back.
#[expect(clippy::unwrap_used, reason = "a helper of tests")]
#[track_caller]
fn through(mesh: &Mesh, to: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = mesh.dial(to).unwrap();
    stream.write_all(bytes).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut back = Vec::new();
    stream.read_to_end(&mut back).unwrap();
    back
}

/// The ClientHello of a current client for a name, or for an address, which is never named.
#[expect(clippy::unwrap_used, reason = "a helper of tests")]
fn client_hello(mesh: &Mesh, name: &str) -> Vec<u8> {
    let config = peer::client(mesh.root(), None, &[]).unwrap();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut session = rustls::ClientConnection::new(config, name).unwrap();
    let mut hello = Vec::new();
    session.write_tls(&mut hello).unwrap();
    assert!(hello.len() > 1000, "it has a post-quantum key share");
    hello
}

/// A request over TLS to the application's own port; what the application was sent, if anything came back.
#[expect(clippy::unwrap_used, reason = "a helper of tests")]
fn ask_over_tls(mesh: &Mesh, web: &PodRef<'_>, config: Arc<ClientConfig>) -> Option<String> {
    let tcp = mesh.dial(web.at(8000).unwrap()).unwrap();
    let name = ServerName::try_from(shop::identity("web")).unwrap();
    let mut tls = rustls::StreamOwned::new(rustls::ClientConnection::new(config, name).unwrap(), tcp);
    tls.write_all(b"GET / HTTP/1.1\r\nhost: web\r\n\r\n").ok()?;
    peer::read_answer(&mut tls).ok().map(|(_, body)| body)
}

fn errors(pod: &PodRef<'_>, label: &str) -> f64 {
    let metrics = pod.metrics().unwrap_or_default();
    metrics.sum("inbound_tcp_errors_total", &[("error", label)]).unwrap_or(0.0)
}

#[expect(clippy::unwrap_used, reason = "a helper of tests")]
#[track_caller]
fn counted(mesh: &Mesh, pod: &PodRef<'_>, label: &str, before: f64, what: &str) {
    mesh.wait_until(&format!("{what} to be counted"), PATIENCE, || errors(pod, label) > before).unwrap();
}

/// The proxy's log must name it.
#[track_caller]
fn said(mesh: &Mesh, pod: &PodRef<'_>, reason: &str) {
    let log = mesh.logs(pod, "linkerd-proxy");
    assert!(log.contains(reason), "the log does not say {reason:?}:\n{log}");
}

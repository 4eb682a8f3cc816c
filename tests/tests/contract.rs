//! Linkerd's side of the contract, played by hand: its proxy's outbound side against our inbound, its inbound side
//! against our outbound.

use std::io::{Read as _, Write as _};
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response, Version};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use remora_tests::peer::{self, ALPN, Certificate, End, PATIENCE, Session, header};
use remora_tests::{Mesh, PodRef, check, shop};
use rustls::ClientConfig;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::client::TlsStream;

const WEB: &str = "web.shop.serviceaccount.identity.remora.cluster.local";
const PEER: &str = "peer.shop.serviceaccount.identity.remora.cluster.local";

/// An injected pod without an application of its own: tests listen in it.
const WEB_POD: &str = r"
kind: Pod
apiVersion: v1
metadata: {name: web, namespace: shop, labels: {app: web}}
spec:
  serviceAccountName: web
  terminationGracePeriodSeconds: 0
  containers:
  - {name: app, image: busybox, command: [sleep, infinity], ports: [{containerPort: 8000}]}
";

#[test]
fn a_linkerd_proxy_reaches_applications_through_the_transport_header() {
    if !check::can_run() {
        return;
    }
    let mesh = shop::open(&[WEB_POD.into()]).unwrap();
    let web = mesh.pod("shop", "web").unwrap();
    peer::mirror(web.listen(8000).unwrap());
    peer::echo(web.listen(9000).unwrap());
    peer::mirror_http2(web.listen(8002).unwrap());
    let certificate = mesh.certify(PEER).unwrap();
    let linkerd = Linkerd::new(&mesh, &web, &certificate);

    within(async {
        let whole = header(9000, "", Session::None);
        linkerd.echoes(&[&[&whole[..], b"in one segment"].concat()], b"in one segment").await;
        for split in 1..whole.len() {
            let (first, rest) = whole.split_at(split);
            linkerd.echoes(&[first, &[rest, b"split"].concat()], b"split").await;
        }
        let bytes: Vec<&[u8]> = whole.chunks(1).chain([&b"single"[..], b" bytes"]).collect();
        linkerd.echoes(&bytes, b"single bytes").await;

        let mut stream = linkerd.direct(&header(8000, "", Session::Http1)).await;
        let request = "GET /h1 HTTP/1.1\r\nHost: web\r\nX-Case: Kept\r\nl5d-client-id: forged\r\n\r\n";
        stream.write_all(request.as_bytes()).await.unwrap();
        let seen = answer(&mut stream).await;
        assert!(seen.starts_with("GET /h1 HTTP/1.1\r\n") && seen.contains("X-Case: Kept"), "{seen}");
        assert!(seen.contains(&format!("l5d-client-id: {PEER}")) && !seen.contains("forged"), "{seen}");

        let (seen, _) = linkerd.http2(8002, "http://web.shop:8002/two", None).await;
        assert_eq!(seen, format!("HTTP/2.0 http://web.shop:8002/two {PEER}"));

        for (orig_proto, line) in [
            ("HTTP/1.1", "GET /orig?a=b HTTP/1.1\r\n"),
            ("HTTP/1.0", "GET /orig?a=b HTTP/1.0\r\n"),
            ("HTTP/1.1; absolute-form", "GET http://web.shop:8000/orig?a=b HTTP/1.1\r\n"),
        ] {
            let (seen, response) =
                linkerd.http2(8000, "http://web.shop:8000/orig?a=b", Some(orig_proto)).await;
            assert!(seen.starts_with(line), "{orig_proto}: {seen}");
            let lower = seen.to_lowercase();
            assert!(lower.contains("host: web.shop:8000\r\n") && !lower.contains("l5d-orig-proto"), "{seen}");
            assert_eq!(response.version(), Version::HTTP_2);
            let version = orig_proto.split(';').next().unwrap();
            assert_eq!(response.headers()["l5d-orig-proto"], version, "{orig_proto}");
        }
    });

    let metrics = web.metrics().unwrap();
    let headers = "inbound_tcp_transport_header_connections_total";
    for (session, at_least) in [("none", 30.0), ("http/1", 1.0), ("http/2", 4.0)] {
        let counted = metrics.sum(headers, &[("session_protocol", session), ("client_id", PEER)]);
        assert!(counted >= Some(at_least), "{session}: {counted:?}");
    }
}

#[test]
fn tls_by_sni_on_the_applications_own_port_is_terminated() {
    if !check::can_run() {
        return;
    }
    let mesh = shop::open(&[WEB_POD.into()]).unwrap();
    let web = mesh.pod("shop", "web").unwrap();
    peer::mirror(web.listen(8000).unwrap());
    peer::echo(web.listen(9000).unwrap());
    let certificate = mesh.certify(PEER).unwrap();
    let with = peer::client(mesh.root(), Some(&certificate), &[]).unwrap();
    let without = peer::client(mesh.root(), None, &[]).unwrap();
    within(async {
        for (config, id) in [(with, format!("l5d-client-id: {PEER}")), (without, String::new())] {
            let dialled = mesh.dial(web.at(8000).unwrap()).unwrap();
            let mut stream = peer::handshake(dialled, WEB, config.clone()).await.unwrap();
            assert_eq!(stream.get_ref().1.alpn_protocol(), None);
            stream.write_all(b"GET /sni HTTP/1.1\r\nHost: web\r\n\r\n").await.unwrap();
            let seen = answer(&mut stream).await;
            assert!(seen.starts_with("GET /sni HTTP/1.1\r\n") && seen.contains(&id), "{seen}");
            assert_eq!(seen.contains("l5d-client-id"), !id.is_empty(), "{seen}");

            let dialled = mesh.dial(web.at(9000).unwrap()).unwrap();
            let mut stream = peer::handshake(dialled, WEB, config).await.unwrap();
            stream.write_all(b"*1\r\n$4\r\nPING\r\n").await.unwrap();
            let mut back = [0; 14];
            stream.read_exact(&mut back).await.unwrap();
            assert_eq!(&back, b"*1\r\n$4\r\nPING\r\n");
        }
        // A port with ALPN of its own must not refuse clients that offer some (contract 12.3).
        let offers = peer::client(mesh.root(), Some(&certificate), &[b"h2"]).unwrap();
        let dialled = mesh.dial(web.at(8000).unwrap()).unwrap();
        let stream = peer::handshake(dialled, WEB, offers).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), None);
    });
    let meshed = [("tls", "true"), ("client_id", PEER), ("target_port", "8000")];
    assert_eq!(web.metrics().unwrap().sum("request_total", &meshed), Some(1.0));
}

#[test]
fn what_the_contract_does_not_allow_on_4143_is_refused_counted_and_named() {
    if !check::can_run() {
        return;
    }
    let env = r#"[{"name": "LINKERD2_PROXY_INBOUND_DETECT_TIMEOUT", "value": "2s"}]"#;
    let annotated =
        format!("labels: {{app: web}}, annotations: {{config.linkerd.io/proxy-additional-env: '{env}'}}}}");
    let mesh = shop::open(&[WEB_POD.replace("labels: {app: web}}", &annotated)]).unwrap();
    let web = mesh.pod("shop", "web").unwrap();
    peer::echo(web.listen(9000).unwrap());
    let own = mesh.certify(PEER).unwrap();
    let good = peer::client(mesh.root(), Some(&own), &[ALPN]).unwrap();
    let no_alpn = peer::client(mesh.root(), Some(&own), &[]).unwrap();
    let other_alpn = peer::client(mesh.root(), Some(&own), &[b"h2"]).unwrap();
    let nobody = peer::client(mesh.root(), None, &[ALPN]).unwrap();
    let mut nameless = (*good).clone();
    nameless.enable_sni = false;
    let nameless = Arc::new(nameless);
    let gateway = header(9000, "other.shop.svc.cluster.local", Session::None);
    let to = |port| header(port, "", Session::None);
    let cases = [
        ("a foreign SNI", &good, PEER, to(9000), "identity required", "the SNI is not ours"),
        ("no SNI", &nameless, WEB, to(9000), "identity required", "the ClientHello has no SNI"),
        ("no ALPN", &no_alpn, WEB, to(9000), "identity required", "did not negotiate the transport header"),
        ("another ALPN", &other_alpn, WEB, to(9000), "client tls", "no application protocol"),
        ("no certificate", &nobody, WEB, to(9000), "identity required", "no identity"),
        ("a gateway's name", &good, WEB, gateway, "gateway domain invalid", "other.shop.svc.cluster.local"),
        ("the outbound port", &good, WEB, to(4140), "loop", ":4140 is this proxy's own port"),
        ("the inbound port", &good, WEB, to(4143), "loop", ":4143 is this proxy's own port"),
        ("the admin port", &good, WEB, to(4191), "loop", ":4191 is this proxy's own port"),
        ("port 0", &good, WEB, to(0), "transport header", "port 0"),
        (
            "no header",
            &good,
            WEB,
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            "transport header",
            "no transport header",
        ),
    ];
    for (what, config, sni, bytes, label, said) in cases {
        let before = errors(&web, label);
        within(refused(&mesh, &web, config, sni, &bytes, what));
        counted_and_named(&mesh, &web, what, (label, before), said);
    }

    let request = b"GET / HTTP/1.1\r\nhost: web\r\n\r\n";
    let half_a_hello = [0x16, 3, 1, 2, 0, 1, 0];
    let accepted = [("direction", "inbound"), ("peer", "src"), ("target_port", "4143")];
    let opened = web.metrics().unwrap().count("tcp_open_total", &accepted);
    for (what, bytes, label, said) in [
        ("plaintext", &request[..], "identity required", "the client speaks no TLS"),
        ("half a ClientHello", &half_a_hello, "tls detection timeout", "no whole ClientHello came within 2s"),
        ("silence", &[], "tls detection timeout", "no whole ClientHello came within 2s"),
    ] {
        let before = errors(&web, label);
        let mut raw = mesh.dial(web.at(4143).unwrap()).unwrap();
        raw.write_all(bytes).unwrap();
        assert_eq!(peer::end_of(&mut raw), End::Closed(Vec::new()), "{what} on 4143");
        counted_and_named(&mesh, &web, what, (label, before), said);
    }
    let refused = web.metrics().unwrap().count("tcp_open_total", &accepted) - opened;
    assert!(refused >= 3, "{refused} of 3: who is refused at the door was a connection too");
    // None of it harmed who keeps to the contract.
    within(Linkerd::new(&mesh, &web, &own).echoes(&[&to(9000), b"still here"], b"still here"));
}

#[test]
fn a_linkerd_inbound_is_sent_a_header_and_bytes_if_it_picks_the_alpn_and_bytes_alone_if_not() {
    if !check::can_run() {
        return;
    }
    let mesh = shop::open(&[WEB_POD.into(), peer::MANIFEST.into()]).unwrap();
    let (web, linkerd) = (mesh.pod("shop", "web").unwrap(), mesh.pod("shop", "peer").unwrap());
    let certificate = mesh.certify(PEER).unwrap();
    peer::wait_known(&mesh, &web).unwrap();
    let inbound = linkerd.listen(4143).unwrap();
    let request = b"GET /x HTTP/1.1\r\nHost: peer\r\n\r\n";
    let redis = b"*1\r\n$4\r\nPING\r\n";
    let service = mesh.object("Service", "shop", "peer").unwrap();
    let service = service["spec"]["clusterIP"].as_str().unwrap();
    let address = format!("{service}:80").parse().unwrap();
    for (alpn, bytes, session) in [
        (&[ALPN][..], &request[..], Some(Session::Http1)),
        (&[ALPN], &redis[..], Some(Session::None)),
        (&[], &request[..], None),
        (&[], &redis[..], None),
    ] {
        let config = peer::server(mesh.root(), &certificate, alpn).unwrap();
        let mut client = web.dial(address).unwrap();
        client.write_all(bytes).unwrap();
        let (accepted, _) = inbound.accept().unwrap();
        let expected = match session {
            Some(session) => [&header(9000, "", session)[..], bytes].concat(),
            None => bytes.to_vec(),
        };
        within(async {
            accepted.set_nonblocking(true).unwrap();
            let tcp = tokio::net::TcpStream::from_std(accepted).unwrap();
            let mut tls = tokio_rustls::TlsAcceptor::from(config).accept(tcp).await.unwrap();
            let shaken = tls.get_ref().1;
            assert_eq!(shaken.server_name(), Some(PEER));
            let leaf = shaken.peer_certificates().and_then(|chain| chain.first()).unwrap();
            let names_web = leaf.windows(WEB.len()).any(|part| part == WEB.as_bytes());
            assert!(names_web, "the client's certificate is not {WEB}'s");
            // HTTP may be forwarded in another order of header fields: its request line is what must follow.
            let exact = expected.len() - if bytes == request { bytes.len() - 17 } else { 0 };
            let mut received = vec![0; exact];
            tls.read_exact(&mut received).await.unwrap();
            let expected = expected.get(..exact).unwrap();
            assert_eq!(
                String::from_utf8_lossy(&received),
                String::from_utf8_lossy(expected),
                "{alpn:?} {session:?}"
            );
            tls.write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n").await.unwrap();
            tls.shutdown().await.unwrap();
        });
        let mut answer = [0; 16];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 204 No ");
    }
}

/// Linkerd's outbound proxy, as far as our inbound meets it.
struct Linkerd<'a> {
    mesh: &'a Mesh,
    web: &'a PodRef<'a>,
    config: Arc<ClientConfig>,
}

impl<'a> Linkerd<'a> {
    #[expect(clippy::unwrap_used, reason = "a helper of tests")]
    fn new(mesh: &'a Mesh, web: &'a PodRef<'a>, own: &Certificate) -> Self {
        let config = peer::client(mesh.root(), Some(own), &[ALPN]).unwrap();
        Self { mesh, web, config }
    }

    /// A connection to 4143 that has announced itself.
    #[expect(clippy::unwrap_used, reason = "a helper of tests")]
    async fn direct(&self, announced: &[u8]) -> TlsStream<tokio::net::TcpStream> {
        let tcp = self.mesh.dial(self.web.at(4143).unwrap()).unwrap();
        let mut stream = peer::handshake(tcp, WEB, self.config.clone()).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(ALPN));
        stream.write_all(announced).await.unwrap();
        stream.flush().await.unwrap();
        stream
    }

    /// Writes these pieces, a TLS record each, half-closes, and gets the bytes behind the header back from the echo.
    #[expect(clippy::unwrap_used, reason = "a helper of tests")]
    async fn echoes(&self, pieces: &[&[u8]], expected: &[u8]) {
        let mut stream = self.direct(&[]).await;
        for piece in pieces {
            stream.write_all(piece).await.unwrap();
            stream.flush().await.unwrap();
        }
        stream.shutdown().await.unwrap();
        let mut received = Vec::new();
        stream.read_to_end(&mut received).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&received), String::from_utf8_lossy(expected), "{pieces:?}");
    }

    /// A request over HTTP/2; the answer's body and head.
    #[expect(clippy::unwrap_used, reason = "a helper of tests")]
    async fn http2(&self, port: u16, url: &str, orig_proto: Option<&str>) -> (String, Response<()>) {
        let stream = self.direct(&header(port, "", Session::Http2)).await;
        let shaken = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
        let (mut sender, connection) = shaken.unwrap();
        tokio::spawn(connection);
        let mut request = Request::get(url);
        if let Some(orig_proto) = orig_proto {
            request = request.header("l5d-orig-proto", orig_proto);
        }
        let response = sender.send_request(request.body(Empty::<Bytes>::new()).unwrap()).await.unwrap();
        let (head, body) = response.into_parts();
        assert_eq!(head.status, 200, "{url} {orig_proto:?}");
        let body = body.collect().await.unwrap().to_bytes();
        (String::from_utf8(body.to_vec()).unwrap(), Response::from_parts(head, ()))
    }
}

/// A client that must not get a byte, nor be left waiting.
#[expect(clippy::unwrap_used, reason = "a helper of tests")]
async fn refused(
    mesh: &Mesh,
    web: &PodRef<'_>,
    config: &Arc<ClientConfig>,
    sni: &str,
    bytes: &[u8],
    what: &str,
) {
    let tcp = mesh.dial(web.at(4143).unwrap()).unwrap();
    // Refused within the handshake, or, where only the server knows at its end, after it.
    let Ok(mut stream) = peer::handshake(tcp, sni, config.clone()).await else { return };
    let mut received = Vec::new();
    if stream.write_all(bytes).await.is_ok() {
        // An error here is a reset.
        let _ = stream.read_to_end(&mut received).await;
    }
    assert!(received.is_empty(), "{what} was answered {received:?}");
}

#[expect(clippy::unwrap_used, reason = "a helper of tests")]
#[track_caller]
fn counted_and_named(mesh: &Mesh, web: &PodRef<'_>, what: &str, (label, before): (&str, f64), said: &str) {
    mesh.wait_until(&format!("{what} to be counted"), PATIENCE, || errors(web, label) > before).unwrap();
    let log = mesh.logs(web, "linkerd-proxy");
    let line = log.lines().next_back().unwrap_or_default();
    assert!(line.contains(said), "{what} is not named in the log's last line: {line}");
}

fn errors(pod: &PodRef<'_>, label: &str) -> f64 {
    let metrics = pod.metrics().unwrap_or_default();
    metrics.sum("inbound_tcp_errors_total", &[("error", label)]).unwrap_or(0.0)
}

/// An HTTP/1 answer with a content-length over TLS: its body.
#[expect(clippy::unwrap_used, reason = "a helper of tests")]
async fn answer(stream: &mut TlsStream<tokio::net::TcpStream>) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    assert!(head.starts_with("http/1.1 200"), "{head}");
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
    let mut body = vec![0; length.parse().unwrap()];
    stream.read_exact(&mut body).await.unwrap();
    String::from_utf8(body).unwrap()
}

/// Runs a conversation, which must not take longer than peers have patience.
#[expect(clippy::unwrap_used, reason = "a helper of tests")]
#[track_caller]
fn within<T>(conversation: impl Future<Output = T>) -> T {
    runtime().block_on(async { tokio::time::timeout(PATIENCE, conversation).await }).unwrap()
}

#[expect(clippy::unwrap_used, reason = "a helper of tests")]
fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

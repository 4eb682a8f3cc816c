//! Whoever is told to stop finishes what it has begun, says so to its clients, and is gone within its time.
#![expect(clippy::unwrap_used, reason = "a test says what it expects")]

use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use remora_tests::app::{BEGUN, ENDED};
use remora_tests::shop::{self, PATIENCE, SHOP, curl, web};
use remora_tests::{App, Mesh, PodRef, Signal, check};
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const PROXY: &str = "linkerd-proxy";
const SHUTDOWN: (&str, &str) = ("config.linkerd.io/proxy-admin-shutdown", "enabled");

#[test]
fn a_replica_is_stopped_under_load_and_no_client_notices() {
    if !check::can_run() {
        return;
    }
    let mesh = shop::open(&[web("web-0"), web("web-1"), shop::idle("client", &[])]).unwrap();
    let client = mesh.pod(SHOP, "client").unwrap();
    let load = shop::customers(&mesh, &client).unwrap();
    let both = || ["web-0", "web-1"].iter().all(|name| load.tally().from(name) >= 20);
    wait(&mesh, "both replicas", both);

    // The proxy alone, while its pod stays an endpoint: the other end has only the drain's own words.
    let first = mesh.pod(SHOP, "web-0").unwrap();
    first.signal(PROXY, Signal::TERM).unwrap();
    wait(&mesh, "the proxy to end and to be started again", || {
        first.restarts(PROXY) == 1 && first.is_ready()
    });
    assert_eq!(first.last_exit(PROXY), Some(0), "{}", mesh.logs(&first, PROXY));
    let drained = load.take();
    wait(&mesh, "both replicas again", both);

    // The whole pod, as a rollout does.
    first.delete().unwrap();
    let deleted = load.finish().unwrap();
    assert_eq!((drained.failed, deleted.failed), (0, 0), "{drained:?} {deleted:?}");
}

#[test]
fn what_was_begun_is_finished_and_its_clients_are_sent_elsewhere() {
    if !check::can_run() {
        return;
    }
    let mesh = start(&[], &[]);
    let (client, server) = (mesh.pod(SHOP, "client").unwrap(), mesh.pod(SHOP, "app").unwrap());
    let app = App::start(&server, 8080, "app").unwrap();
    // From outside of the mesh: what is seen is the word of the server's proxy.
    let stranger = (server.ip().unwrap(), 8080).into();
    let mut idle = mesh.enter(|| answered(stranger)).unwrap();

    in_pod(&client, || async {
        let mut http1 = held_http1(service(&mesh)).await;
        let (mut http2, streams) = held_http2(service(&mesh)).await;
        let mut socket = websocket(service(&mesh)).await;

        server.signal(PROXY, Signal::TERM).unwrap();
        wait(&mesh, "readiness to be false", || unready(&server));
        assert_eq!(server.restarts(PROXY), 0, "it waits for what is under way");
        // The long connection still carries bytes both ways.
        socket.write_all(b"still there?").await.unwrap();
        let mut echoed = [0; 12];
        socket.read_exact(&mut echoed).await.unwrap();
        assert_eq!(&echoed, b"still there?");
        assert_eq!(idle.read(&mut [0; 1]).unwrap(), 0, "an idle connection is closed");

        app.release();
        assert_eq!(rest(&mut http1).await, ENDED);
        assert_eq!(rest(&mut http2).await, ENDED);
        drop(streams);
        socket.shutdown().await.unwrap();
    });
    wait(&mesh, "the proxy to end", || server.restarts(PROXY) == 1);
    assert_eq!(server.last_exit(PROXY), Some(0));
    assert!(mesh.logs(&server, PROXY).contains("drained"), "{}", mesh.logs(&server, PROXY));
}

#[test]
fn a_client_of_a_stopping_proxy_is_told_in_its_own_protocol() {
    if !check::can_run() {
        return;
    }
    let mesh = start(&[], &[]);
    let (client, server) = (mesh.pod(SHOP, "client").unwrap(), mesh.pod(SHOP, "app").unwrap());
    let app = App::start(&server, 8080, "app").unwrap();
    in_pod(&client, || async {
        // The client's own proxy stops: what it tells is told to its application.
        let (stream, target) = (TcpStream::connect(service(&mesh)).await.unwrap(), service(&mesh));
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let held = sender.send_request(get(target, "/hold", None)).await.unwrap();
        let (mut http2, mut streams) = held_http2(service(&mesh)).await;
        client.signal(PROXY, Signal::TERM).unwrap();
        wait(&mesh, "readiness to be false", || unready(&client));

        // GOAWAY: no further stream on this connection, though the one that runs goes on.
        wait_for(async || streams.send_request(over_http2(target, "/")).await.is_err()).await;
        app.release();
        assert_eq!(rest(&mut http2).await, ENDED);
        let mut held = held.into_body();
        assert_eq!(piece(&mut held).await, BEGUN);
        assert_eq!(piece(&mut held).await, ENDED);
        // HTTP/1: closed after the answer that was under way.
        assert!(sender.ready().await.is_err(), "the connection is kept open");
    });
    wait(&mesh, "the proxy to end", || client.restarts(PROXY) == 1);
    assert_eq!(client.last_exit(PROXY), Some(0));
}

#[test]
fn what_was_sent_is_answered_and_who_is_silent_is_not_waited_for() {
    if !check::can_run() {
        return;
    }
    let env = r#"[{"name": "REMORA_PROXY_FIRST_LOOKUP_TIMEOUT", "value": "20s"}]"#;
    let patient = ("config.linkerd.io/proxy-additional-env", env);
    let mesh = start(&[], &[patient]);
    let (client, server) = (mesh.pod(SHOP, "client").unwrap(), mesh.pod(SHOP, "app").unwrap());
    let _app = App::start(&server, 8080, "app").unwrap();
    let destination = mesh.pod("remora", "remora-destination").unwrap();
    in_pod(&client, || async {
        // Nothing is known of the target yet, and nobody says it: the request waits, unread.
        destination.signal("destination", Signal::STOP).unwrap();
        let mut silent = TcpStream::connect(service(&mesh)).await.unwrap();
        let mut asked = TcpStream::connect(service(&mesh)).await.unwrap();
        asked.write_all(b"GET / HTTP/1.1\r\nHost: app\r\n\r\n").await.unwrap();
        wait(&mesh, "both connections to be accepted", || {
            shop::state(&client).unwrap().pointer("/tasks/outbound connection") == Some(&2.into())
        });
        client.signal(PROXY, Signal::TERM).unwrap();
        wait(&mesh, "readiness to be false", || unready(&client));
        destination.signal("destination", Signal::CONT).unwrap();

        let mut answer = String::new();
        asked.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\napp\n"), "{answer}");
        // Its head came after the end was decided, and says so.
        assert!(answer.to_lowercase().contains("\r\nconnection: close\r\n"), "{answer}");
        assert_eq!(silent.read(&mut [0; 1]).await.unwrap_or(0), 0, "it is closed");
    });
    wait(&mesh, "the proxy to end", || client.restarts(PROXY) == 1);
    assert_eq!(client.last_exit(PROXY), Some(0));
    let log = mesh.logs(&client, PROXY);
    assert!(log.contains("drained"), "it waited for the silent one:\n{log}");
}

#[test]
fn what_never_ends_is_cut_off_when_the_grace_period_is_over() {
    if !check::can_run() {
        return;
    }
    let grace = ("config.linkerd.io/shutdown-grace-period", "2s");
    let mesh = start(&[grace], &[]);
    let (client, server) = (mesh.pod(SHOP, "client").unwrap(), mesh.pod(SHOP, "app").unwrap());
    let _app = App::start(&server, 8080, "app").unwrap();
    in_pod(&client, || async {
        let mut socket = websocket(service(&mesh)).await;
        let told = Instant::now();
        server.signal(PROXY, Signal::TERM).unwrap();
        assert_eq!(socket.read(&mut [0; 1]).await.unwrap_or(0), 0, "it is closed");
        let took = told.elapsed();
        assert!((Duration::from_secs(2)..Duration::from_secs(6)).contains(&took), "cut off after {took:?}");
    });
    wait(&mesh, "the proxy to end", || server.restarts(PROXY) == 1);
    assert_eq!(server.last_exit(PROXY), Some(0));
    let log = mesh.logs(&server, PROXY);
    assert!(log.contains("the grace period is over"), "it does not say that it cut something off:\n{log}");
}

#[test]
fn shutdown_is_for_the_pod_itself_and_only_where_it_is_allowed() {
    if !check::can_run() {
        return;
    }
    let mesh = shop::open(&[shop::idle("app", &[SHUTDOWN]), shop::idle("client", &[])]).unwrap();
    let (client, server) = (mesh.pod(SHOP, "client").unwrap(), mesh.pod(SHOP, "app").unwrap());
    let post = |from: &PodRef<'_>, host: &str| {
        let url = format!("http://{host}:4191/shutdown");
        curl(from, &["-X", "POST", "-o", "/dev/null", "-w", "%{http_code}", &url]).unwrap()
    };
    assert_eq!(post(&client, "127.0.0.1"), "404", "without the annotation");
    assert_eq!(post(&client, &server.ip().unwrap().to_string()), "403", "from another pod");
    assert_eq!(server.restarts(PROXY), 0);
    assert_eq!(post(&server, "127.0.0.1"), "200");
    wait(&mesh, "the proxy to end", || server.restarts(PROXY) == 1);
    assert_eq!(server.last_exit(PROXY), Some(0));
}

/// The pod `app` behind a Service of its name, and `client`, with these annotations.
fn start(app: &[(&str, &str)], client: &[(&str, &str)]) -> Mesh {
    let service = shop::service("app", 80, "8080");
    shop::open(&[shop::idle("app", app), service, shop::idle("client", client)]).unwrap()
}

#[track_caller]
fn wait(mesh: &Mesh, what: &str, holds: impl FnMut() -> bool) {
    mesh.wait_until(what, PATIENCE, holds).unwrap();
}

async fn wait_for(mut holds: impl AsyncFnMut() -> bool) {
    let holding = async {
        while !holds().await {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, holding).await.unwrap();
}

/// Runs a client of the test's own in the pod's network.
fn in_pod<F: Future<Output = ()>>(pod: &PodRef<'_>, client: impl FnOnce() -> F + Send) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let run = move || runtime.block_on(async { tokio::time::timeout(PATIENCE * 2, client()).await.unwrap() });
    pod.enter(run).unwrap();
}

/// A connection on which one request has been answered.
fn answered(server: SocketAddr) -> std::net::TcpStream {
    let mut stream = std::net::TcpStream::connect(server).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: app\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\napp\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        answer.extend(byte);
    }
    stream
}

fn service(mesh: &Mesh) -> SocketAddr {
    (shop::cluster_ip(mesh, "app").unwrap(), 80).into()
}

fn unready(pod: &PodRef<'_>) -> bool {
    pod.http_get(4191, "/ready").is_ok_and(|(status, _)| status == http::StatusCode::SERVICE_UNAVAILABLE)
}

fn get(target: SocketAddr, path: &str, upgrade: Option<&str>) -> Request<Empty<Bytes>> {
    let mut request = Request::get(path).header(header::HOST, target.to_string());
    if let Some(protocol) = upgrade {
        request = request.header(header::CONNECTION, "upgrade").header(header::UPGRADE, protocol);
    }
    request.body(Empty::new()).unwrap()
}

/// A request whose answer has begun, over HTTP/1.
async fn held_http1(target: SocketAddr) -> Incoming {
    let stream = TcpStream::connect(target).await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    begun(sender.send_request(get(target, "/hold", None)).await.unwrap()).await
}

/// The same over HTTP/2, with the means to send more on that connection.
async fn held_http2(target: SocketAddr) -> (Incoming, http2::SendRequest<Empty<Bytes>>) {
    let stream = TcpStream::connect(target).await.unwrap();
    let (mut sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    (begun(sender.send_request(over_http2(target, "/hold")).await.unwrap()).await, sender)
}

fn over_http2(target: SocketAddr, path: &str) -> Request<Empty<Bytes>> {
    Request::get(format!("http://{target}{path}")).body(Empty::new()).unwrap()
}

async fn begun(answer: Response<Incoming>) -> Incoming {
    let mut body = answer.into_body();
    assert_eq!(piece(&mut body).await, BEGUN);
    body
}

async fn piece(body: &mut Incoming) -> String {
    let frame = body.frame().await.unwrap().unwrap();
    String::from_utf8_lossy(&frame.into_data().unwrap()).into_owned()
}

async fn rest(body: &mut Incoming) -> String {
    let bytes = body.collect().await.unwrap().to_bytes();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A connection that has stopped being HTTP and echoes.
async fn websocket(target: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(target).await.unwrap();
    let request = format!(
        "GET /chat HTTP/1.1\r\nHost: {target}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    stream
}

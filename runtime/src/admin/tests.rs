//! What the admin port answers, to whom.

use super::*;
use http_body_util::Empty;

const HERE: &str = "127.0.0.1:40000";
const HERE_MAPPED: &str = "[::ffff:127.0.0.1]:40000";
const AWAY: &str = "10.1.2.3:40000";

#[tokio::test]
async fn every_path_method_and_peer() {
    let (_ready, admin) = admin(true);
    for (peer, method, path, status, body) in [
        (AWAY, "GET", "/live", 200, "live\n"),
        (AWAY, "POST", "/live", 200, "live\n"),
        (AWAY, "GET", "/ready", 200, "ready\n"),
        (AWAY, "HEAD", "/ready", 200, ""),
        (HERE, "GET", "/proxy-log-level", 200, "warn\n"),
        (HERE_MAPPED, "GET", "/proxy-log-level", 200, "warn\n"),
        (AWAY, "GET", "/proxy-log-level", 403, "loopback"),
        (AWAY, "PUT", "/proxy-log-level", 403, "loopback"),
        (HERE, "POST", "/proxy-log-level", 405, "takes GET, HEAD, PUT"),
        (HERE, "GET", "/env.json?A&MISSING", 200, "\"MISSING\": null"),
        (AWAY, "GET", "/env.json", 403, "loopback"),
        (HERE, "PUT", "/env.json", 405, "takes GET, HEAD"),
        (HERE, "GET", "/state.json", 200, "\"known\": 7"),
        (HERE, "HEAD", "/state.json", 200, ""),
        (AWAY, "GET", "/state.json", 403, "loopback"),
        (HERE, "DELETE", "/state.json", 405, "takes GET, HEAD"),
        (AWAY, "POST", "/shutdown", 403, "loopback"),
        (HERE, "GET", "/shutdown", 405, "takes POST"),
        (HERE, "GET", "/nothing", 404, "there is no /nothing"),
    ] {
        let (got, text, _) = ask(&admin, peer, method, path).await;
        assert_eq!(got, status, "{method} {path} from {peer}: {text}");
        assert!(text.contains(body), "{method} {path} from {peer}: {text}");
        assert!(!body.is_empty() || text.is_empty(), "{method} {path} has a body: {text}");
    }
    assert!(!admin.drain.is_draining(), "nothing above may shut the process down");
}

#[tokio::test]
async fn readiness_follows_the_process_and_ends_with_the_drain() {
    let (ready, admin) = admin(false);
    assert_eq!(ask(&admin, AWAY, "GET", "/ready").await.0, 503);
    ready.send(true).unwrap();
    assert_eq!(ask(&admin, AWAY, "GET", "/ready").await.0, 200);
    admin.drain.signal();
    let (status, text, _) = ask(&admin, AWAY, "GET", "/ready").await;
    assert_eq!((status, text.as_str()), (503, "shutting down\n"));
    assert_eq!(ask(&admin, AWAY, "GET", "/live").await.0, 200);
}

#[tokio::test]
async fn shutdown_over_http_drains_if_it_is_on() {
    let (_ready, mut admin) = admin(true);
    admin.shutdown_endpoint = false;
    assert_eq!(ask(&admin, HERE, "POST", "/shutdown").await.0, 404);
    assert!(!admin.drain.is_draining());
    admin.shutdown_endpoint = true;
    assert_eq!(ask(&admin, HERE, "POST", "/shutdown").await.0, 200);
    assert!(admin.drain.is_draining());
}

#[tokio::test]
async fn the_environment_is_shown_whole_or_by_name() {
    let (_ready, admin) = admin(true);
    let (_, all, _) = ask(&admin, HERE, "GET", "/env.json").await;
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&all).unwrap(),
        serde_json::json!({"A": "1", "B": "2"})
    );
    let (_, some, _) = ask(&admin, HERE, "GET", "/env.json?B").await;
    assert_eq!(serde_json::from_str::<serde_json::Value>(&some).unwrap(), serde_json::json!({"B": "2"}));
}

#[tokio::test]
async fn the_log_filter_can_be_replaced_from_loopback() {
    let (_ready, admin) = admin(true);
    assert_eq!(put(&admin, "info,linkerd=debug\n").await.0, 204);
    assert_eq!(ask(&admin, HERE, "GET", "/proxy-log-level").await.1, "info,linkerd=debug\n");
    let (status, text) = put(&admin, "info=nonsense").await;
    assert_eq!(status, 400, "{text}");
    assert_eq!(put(&admin, &"a".repeat(MAX_FILTER + 1)).await.0, 413);
    assert_eq!(admin.log.filter(), "info,linkerd=debug");
}

#[tokio::test]
async fn metrics_are_text_and_gzip_if_asked_for() {
    let (_ready, admin) = admin(true);
    let (status, text, headers) = ask(&admin, AWAY, "GET", "/metrics").await;
    assert_eq!((status, headers["content-type"].to_str().unwrap()), (200, metrics::CONTENT_TYPE));
    assert!(text.contains("process_start_time_seconds"), "{text}");
    assert!(!headers.contains_key("content-encoding"));

    let request =
        Request::get("/metrics").header("accept-encoding", "deflate, gzip").body(Empty::<Bytes>::new());
    let answer = admin.respond(AWAY.parse().unwrap(), request.unwrap()).await;
    assert_eq!(answer.headers()["content-encoding"], "gzip");
    let bytes = answer.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(&bytes[..2], [0x1f, 0x8b], "gzip's magic number");
}

#[test]
fn gzip_is_used_only_for_who_accepts_it() {
    for (header, expected) in [
        ("gzip", true),
        ("deflate, GZIP;q=0.5", true),
        ("*", true),
        ("gzip;q=0", false),
        ("gzip;q=0, *", false),
        ("*;q=0", false),
        ("identity", false),
        ("gzip;q=nonsense", false),
        ("", false),
    ] {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT_ENCODING, header.parse().unwrap());
        assert_eq!(accepts_gzip(&headers), expected, "{header:?}");
    }
    assert!(!accepts_gzip(&HeaderMap::new()));
}

#[tokio::test]
async fn head_says_how_long_the_body_would_be() {
    let (_ready, admin) = admin(true);
    let (_, body, headers) = ask(&admin, AWAY, "HEAD", "/live").await;
    assert_eq!((body.as_str(), headers["content-length"].to_str().unwrap()), ("", "5"));
}

#[tokio::test]
async fn the_server_answers_over_tcp() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let (_ready, admin) = admin(true);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let tasks = Tasks::new();
    let server = tasks.spawn("admin", serve(listener, Arc::new(admin), tasks.clone()));
    let mut client = tokio::net::TcpStream::connect(addr).await.unwrap();
    client.write_all(b"GET /live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("live\n"), "{answer}");
    server.abort();
}

fn admin(ready: bool) -> (watch::Sender<bool>, Admin) {
    let (sender, receiver) = watch::channel(ready);
    let admin = Admin {
        ready: receiver,
        registry: Registry::default(),
        log: LogHandle::detached("warn").unwrap(),
        state: Arc::new(|| serde_json::json!({"known": 7})),
        env: vec![("A".to_owned(), "1".to_owned()), ("B".to_owned(), "2".to_owned())],
        drain: Drain::new(),
        shutdown_endpoint: true,
    };
    (sender, admin)
}

async fn ask(admin: &Admin, peer: &str, method: &str, path: &str) -> (u16, String, HeaderMap) {
    let request = Request::builder().method(method).uri(path).body(Empty::<Bytes>::new()).unwrap();
    let (head, body) = admin.respond(peer.parse().unwrap(), request).await.into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    (head.status.as_u16(), String::from_utf8_lossy(&bytes).into_owned(), head.headers)
}

async fn put(admin: &Admin, filter: &str) -> (u16, String) {
    let request = Request::put("/proxy-log-level").body(Full::new(Bytes::from(filter.to_owned()))).unwrap();
    let answer = admin.respond(HERE.parse().unwrap(), request).await;
    let status = answer.status().as_u16();
    let bytes = answer.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8_lossy(&bytes).into_owned())
}

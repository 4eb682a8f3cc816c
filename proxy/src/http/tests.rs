//! A panic in a request ends that request, or its connection, and nothing else; it is counted.

use super::*;
use crate::config::Http2Config;
use bytes::Bytes;
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use remora_runtime::metrics::{Counter, Registry};
use std::{sync::OnceLock, task::Poll};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

#[tokio::test]
async fn a_panic_in_one_connection_is_counted_and_others_are_served() {
    let before = panics().get();
    let to = serving(SessionProtocol::Http1).await;
    let mut clumsy = http1(to).await;
    let mut other = http1(to).await;
    assert_eq!(status(other.send_request(get("/")).await), 200);
    assert!(clumsy.send_request(get("/panic")).await.is_err(), "its own connection ends");
    assert_eq!(status(other.send_request(get("/")).await), 200);
    assert_eq!(status(http1(to).await.send_request(get("/")).await), 200);
    assert!(panics().get() > before);
}

#[tokio::test]
async fn a_panic_in_one_stream_is_counted_and_the_connections_other_streams_are_served() {
    let before = panics().get();
    let to = serving(SessionProtocol::Http2).await;
    let tcp = TcpStream::connect(to).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tcp)).await.unwrap();
    tokio::spawn(connection);
    assert!(sender.send_request(get("http://web/panic")).await.is_err(), "the stream is reset");
    assert_eq!(status(sender.send_request(get("http://web/")).await), 200);
    assert!(panics().get() > before);
}

/// The hook is one for the process, and so is its counter.
fn panics() -> &'static Counter {
    static PANICS: OnceLock<Counter> = OnceLock::new();
    PANICS.get_or_init(|| {
        let counter = Registry::default().counter("remora_panics_total", "as in the process");
        remora_runtime::tasks::count_panics(counter.clone());
        counter
    })
}

async fn serving(version: SessionProtocol) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let settings = settings();
    let (tasks, drain) = (remora_runtime::tasks::Tasks::new(), Drain::new());
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let drain = drain.clone();
            tasks.spawn("connection", async move {
                // The clients say how it ended.
                let _ = serve(Stream::plain(tcp), version, settings, &drain, no_news, clumsy).await;
            });
        }
    });
    address
}

async fn clumsy(request: Request<Body>) -> Result<Response<Body>, Fault> {
    assert!(request.uri().path() != "/panic", "as a test must");
    Ok(Response::new(Body::absent()))
}

async fn http1(to: std::net::SocketAddr) -> hyper::client::conn::http1::SendRequest<Empty<Bytes>> {
    let tcp = TcpStream::connect(to).await.unwrap();
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tcp)).await.unwrap();
    tokio::spawn(connection);
    sender
}

fn get(uri: &str) -> Request<Empty<Bytes>> {
    Request::get(uri).header("host", "web").body(Empty::new()).unwrap()
}

fn status(answer: hyper::Result<Response<Incoming>>) -> u16 {
    answer.unwrap().status().as_u16()
}

fn settings() -> Settings {
    Settings {
        http2: Http2Config::default(),
        header_list: HeaderList { bytes: 8192, fields: 100 },
        max_header_bytes: 8192,
        max_headers: 100,
        head_timeout: Duration::from_secs(10),
        body_timeout: Duration::from_secs(10),
        informational: false,
    }
}

#[tokio::test]
async fn what_is_under_way_is_polled_when_there_is_news() {
    for version in [SessionProtocol::Http1, SessionProtocol::Http2] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (near, _) = listener.accept().await.unwrap();
        let (tell, mut told) = tokio::sync::mpsc::channel(1);
        let (asked, mut was_asked) = tokio::sync::mpsc::channel(1);
        let news = move |cx: &mut Context<'_>| matches!(told.poll_recv(cx), Poll::Ready(Some(())));
        // Nobody wakes it.
        let service = move |_| {
            let mut polls = 0;
            let asked = asked.clone();
            poll_fn(move |_| {
                polls += 1;
                let _ = asked.try_send(());
                if polls == 1 { Poll::Pending } else { Poll::Ready(Ok(Response::new(Body::absent()))) }
            })
        };
        tokio::spawn(async move {
            let drain = Drain::new();
            serve(Stream::plain(near), version, settings(), &drain, news, service).await
        });
        let answer = match version {
            SessionProtocol::Http1 => {
                let (mut sender, connection) =
                    hyper::client::conn::http1::handshake(TokioIo::new(tcp)).await.unwrap();
                tokio::spawn(connection);
                tokio::spawn(async move { sender.send_request(get("/")).await })
            }
            SessionProtocol::Http2 => {
                let (mut sender, connection) =
                    hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tcp))
                        .await
                        .unwrap();
                tokio::spawn(connection);
                tokio::spawn(async move { sender.send_request(get("http://web/")).await })
            }
        };
        was_asked.recv().await.unwrap();
        tell.send(()).await.unwrap();
        assert_eq!(status(answer.await.unwrap()), 200);
    }
}

#[tokio::test(start_paused = true)]
async fn a_head_has_its_own_time_whatever_empty_lines_come_before_it() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (near, _) = listener.accept().await.unwrap();
    tokio::spawn(async move {
        let stream = Stream::plain(near);
        serve(stream, SessionProtocol::Http1, settings(), &Drain::new(), no_news, clumsy).await
    });
    for part in ["\r", "\n", "GET / HTTP/1.1\r\n", "host: web\r\nconnection: close\r\n\r\n"] {
        client.write_all(part.as_bytes()).await.unwrap();
        // Less than a head may take, all of them together more.
        tokio::time::sleep(Duration::from_secs(6)).await;
    }
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

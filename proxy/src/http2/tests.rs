//! HTTP/2 connections with an end that is silent, fast, or early.

use super::*;
use crate::{
    config::Http2Config,
    fault::{Fault, HttpError},
    http::{body::Body, no_news},
    stream::Stream,
};
use bytes::Bytes;
use exchange::{Broken, Connection};
use http::{Request, Response};
use http_body_util::BodyExt;
use remora_runtime::tasks::Drain;
use std::{future::poll_fn, time::Duration};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    time::Instant,
};

#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_answer_a_ping_is_waited_for_no_longer() {
    let (near, _silent) = pair().await;
    let began = Instant::now();
    let connection = Connection::begin(Stream::plain(near), 8192).await.unwrap();
    let kept = connection.clone();
    let answer = connection.exchange(&mut get()).await;
    assert!(matches!(answer, Err(Broken::Unanswered(HttpError::Ping))), "{:?}", answer.err());
    let waited = began.elapsed();
    assert!(waited >= Duration::from_secs(13) && waited < Duration::from_secs(14), "{waited:?}");
    tokio::task::yield_now().await;
    assert!(kept.is_closed() && kept.streams() == 0);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_answer_a_ping_is_served_no_longer() {
    let (near, mut client) = pair().await;
    let interval = Some(Duration::from_secs(5));
    let config =
        Http2Config { keep_alive_interval: interval, keep_alive_timeout: interval, ..Http2Config::default() };
    client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let began = Instant::now();
    let served = serve::serve(Stream::plain(near), settings(config), &Drain::new(), no_news, reads).await;
    assert!(matches!(served, Err(Fault::Client(HttpError::Ping))), "{served:?}");
    assert!(began.elapsed() >= Duration::from_secs(10), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_client_may_not_leave_what_it_begins() {
    const LIMIT: Duration = Duration::from_secs(10);
    let preface: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    // HEADERS without END_HEADERS: GET / of http.
    let fields: &[u8] = b"\0\0\x03\x01\x01\0\0\0\x01\x82\x84\x86";
    let more: &[u8] = b"\0\0\0\x09\0\0\0\0\x01";
    for begun in [
        preface[..1].to_vec(),
        preface[..26].to_vec(),
        [preface, &fields[..9]].concat(),
        [preface, fields].concat(),
    ] {
        let (near, mut client) = pair().await;
        let began = Instant::now();
        let drain = Drain::new();
        let served =
            serve::serve(Stream::plain(near), settings(Http2Config::default()), &drain, no_news, reads);
        // Nothing is begun yet, and nobody waits.
        let later = async {
            tokio::time::sleep(3 * LIMIT).await;
            client.write_all(&begun).await.unwrap();
            if begun.ends_with(fields) {
                tokio::time::sleep(LIMIT / 2).await;
                client.write_all(more).await.unwrap();
            }
            tokio::time::sleep(3 * LIMIT).await;
        };
        let served =
            tokio::select! { served = served => served, () = later => panic!("{begun:?}: it waits") };
        assert!(matches!(served, Err(Fault::HeadTimeout(LIMIT))), "{begun:?}: {served:?}");
        let waited = began.elapsed();
        assert!(waited >= 4 * LIMIT && waited < 4 * LIMIT + Duration::from_secs(1), "{begun:?}: {waited:?}");
    }
}

#[tokio::test]
async fn a_window_that_is_measured_grows_with_what_comes() {
    let (near, client) = pair().await;
    let config = Http2Config { adaptive_flow_control: true, ..Http2Config::default() };
    tokio::spawn(async move {
        let _ = serve::serve(Stream::plain(near), settings(config), &Drain::new(), no_news, reads).await;
    });
    let (mut requests, connection) = h2::client::handshake(client).await.unwrap();
    tokio::spawn(connection);
    let request = Request::post("http://web/").body(()).unwrap();
    let (_answer, mut stream) = requests.send_request(request, false).unwrap();
    let grown = async {
        loop {
            stream.reserve_capacity(1 << 20);
            let room = poll_fn(|cx| stream.poll_capacity(cx)).await.unwrap().unwrap();
            if stream.capacity() > 65_535 {
                return;
            }
            stream.send_data(Bytes::from(vec![7; room]), false).unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(20), grown).await.expect("the window stays as it began");
}

#[tokio::test]
async fn an_answer_before_its_requests_end_does_not_end_the_request() {
    let (near, server) = pair().await;
    let (near_client, client) = pair().await;
    // A proxy between: what it reads it sends on.
    tokio::spawn(async move {
        let connection = Connection::begin(Stream::plain(near), 8192).await.unwrap();
        let forward = move |mut request: Request<Body>| {
            let connection = connection.clone();
            async move {
                let answered = connection.exchange(&mut request).await;
                answered.map_err(|_| Fault::BadTarget("no answer"))
            }
        };
        let config = settings(Http2Config::default());
        let _ = serve::serve(Stream::plain(near_client), config, &Drain::new(), no_news, forward).await;
    });
    let whole = tokio::spawn(async move {
        let mut connection = h2::server::handshake(server).await.unwrap();
        let (request, mut respond) = connection.accept().await.unwrap().unwrap();
        let _answer = respond.send_response(Response::new(()), false).unwrap();
        tokio::spawn(async move { while connection.accept().await.is_some() {} });
        let mut body = request.into_body();
        let mut read = Vec::new();
        while let Some(data) = body.data().await {
            read.extend_from_slice(&data.unwrap());
        }
        read
    });
    let (mut requests, connection) = h2::client::handshake(client).await.unwrap();
    tokio::spawn(connection);
    let request = Request::post("http://web/").body(()).unwrap();
    let (answer, mut stream) = requests.send_request(request, false).unwrap();
    stream.send_data(Bytes::from_static(b"first "), false).unwrap();
    let answer = answer.await.unwrap();
    assert_eq!(answer.status(), 200);
    stream.send_data(Bytes::from_static(b"last"), true).unwrap();
    let read = tokio::time::timeout(Duration::from_secs(20), whole).await.unwrap().unwrap();
    assert_eq!(read, b"first last");
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let far = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (listener.accept().await.unwrap().0, far)
}

fn settings(http2: Http2Config) -> serve::Settings {
    serve::Settings { http2, header_list_bytes: 16_384, head_timeout: Duration::from_secs(10) }
}

fn get() -> Request<Body> {
    Request::get("http://web/").body(Body::absent()).unwrap()
}

/// A service that reads whatever comes.
async fn reads(request: Request<Body>) -> Result<Response<Body>, Fault> {
    let mut body = request.into_body();
    while let Some(Ok(_)) = body.frame().await {}
    Ok(Response::new(Body::absent()))
}

//! What workers of the soak do on a connection: each kind of traffic that a proxy tells apart, once.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use futures_util::future::try_join_all;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::time::timeout;

use crate::wire::{LIMIT, read_response, read_until};

/// Bytes of each download and each upload.
const BULK: usize = 4 << 20;
/// Streams of an HTTP/2 connection at once, and bytes of the body that each brings or fetches.
const STREAMS: usize = 20;
const PIECE: usize = 64 << 10;
/// What is said and comes back on a connection of bytes.
const ROUNDS: usize = 10;

pub(super) fn download(mut stream: TcpStream) -> Result<()> {
    stream.write_all(format!("GET /bytes/{BULK} HTTP/1.1\r\nHost: kit\r\n\r\n").as_bytes())?;
    let (head, body) = read_response(&mut stream)?;
    ensure!(head.starts_with("HTTP/1.1 200 ") && body.len() == BULK, "{head}");
    Ok(())
}

pub(super) fn upload(mut stream: TcpStream) -> Result<()> {
    stream.write_all(format!("POST / HTTP/1.1\r\nHost: kit\r\nContent-Length: {BULK}\r\n\r\n").as_bytes())?;
    stream.write_all(&vec![b'x'; BULK])?;
    let (head, _) = read_response(&mut stream)?;
    ensure!(head.starts_with("HTTP/1.1 200 "), "{head}");
    Ok(())
}

pub(super) fn echo(mut stream: TcpStream) -> Result<()> {
    rounds(&mut stream)
}

fn rounds(stream: &mut TcpStream) -> Result<()> {
    for round in 0..ROUNDS {
        let said = format!("*1\r\n$6\r\nround{round}\r\n");
        stream.write_all(said.as_bytes())?;
        let mut back = vec![0; said.len()];
        stream.read_exact(&mut back)?;
        ensure!(back == said.as_bytes(), "other bytes came back");
    }
    Ok(())
}

/// HTTP/1 until the server agrees to something else, as WebSockets do.
pub(super) fn upgraded(mut stream: TcpStream) -> Result<()> {
    stream
        .write_all(b"GET /upgrade HTTP/1.1\r\nHost: kit\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")?;
    let head = read_until(&mut stream, b"welcome\n")?;
    ensure!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
    rounds(&mut stream)
}

/// Streams of one HTTP/2 connection, with bodies both ways.
pub(super) fn streams(stream: TcpStream) -> Result<()> {
    http2(stream, async |sender| {
        let ask = async |nth: usize| {
            let (request, body) = if nth.is_multiple_of(2) {
                (Request::get(format!("http://kit/bytes/{PIECE}")), Vec::new())
            } else {
                (Request::post("http://kit/"), vec![b'x'; PIECE])
            };
            let answer =
                sender.clone().send_request(request.body(Full::from(body))?).await.context("asking")?;
            ensure!(answer.status() == 200, "{}", answer.status());
            let body = answer.into_body().collect().await.context("reading the answer")?.to_bytes();
            ensure!(!nth.is_multiple_of(2) || body.len() == PIECE, "{} bytes", body.len());
            Ok(())
        };
        try_join_all((0..STREAMS).map(ask)).await.map(drop)
    })
}

/// A call of gRPC, whose outcome is in its trailers.
pub(super) fn grpc(stream: TcpStream) -> Result<()> {
    http2(stream, async |sender| {
        // Five zeros are an empty message: not compressed, of length zero.
        let request = Request::post("http://grpc/grpc.health.v1.Health/Check")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::from(vec![0; 5]))?;
        let answer = sender.clone().send_request(request).await.context("calling")?;
        let answer = answer.into_body().collect().await.context("reading the answer")?;
        let status = answer.trailers().and_then(|trailers| trailers.get("grpc-status"));
        ensure!(status.is_some_and(|status| status == "0"), "the trailers say {status:?}");
        Ok(())
    })
}

fn http2(stream: TcpStream, ask: impl AsyncFnOnce(&SendRequest<Full<Bytes>>) -> Result<()>) -> Result<()> {
    stream.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let io = TokioIo::new(tokio::net::TcpStream::from_std(stream)?);
        let (sender, connection) = handshake(TokioExecutor::new(), io).await?;
        tokio::spawn(connection);
        timeout(LIMIT, ask(&sender)).await.context("no answer in time")?
    })
}

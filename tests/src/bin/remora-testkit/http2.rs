//! The same answers over HTTP/2 with prior knowledge, by hyper.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::Result;
use bytes::{Buf as _, Bytes};
use futures_util::stream::{self, StreamExt as _};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::answer::{self, Answer, Received, Told};

type Body = UnsyncBoxBody<Bytes, h2::Error>;

/// Serves a connection that began with `preface`, which has been read.
pub(crate) async fn serve(stream: TcpStream, preface: Bytes, number: u64) -> Result<()> {
    let requests = Arc::new(AtomicU64::new(0));
    let io = TokioIo::new(Replayed { preface, stream });
    let service = service_fn(move |request| {
        let place = (number, requests.fetch_add(1, Ordering::Relaxed));
        answer(place, request)
    });
    Ok(hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(io, service).await?)
}

/// An error resets the stream, with this reason.
async fn answer(place: (u64, u64), request: Request<Incoming>) -> Result<Response<Body>, h2::Error> {
    let (head, body) = request.into_parts();
    let target = head.uri.to_string();
    let answer = Answer::to(&target).after_others(&target);
    if answer == Answer::Reset {
        return Err(h2::Reason::ENHANCE_YOUR_CALM.into());
    }
    if answer == Answer::Early {
        return Ok(with(StatusCode::PAYLOAD_TOO_LARGE, empty()));
    }
    let received = receive(body).await.map_err(|_| h2::Reason::CANCEL)?;
    Ok(match answer {
        Answer::Status(status) => with(StatusCode::from_u16(status).unwrap_or_default(), empty()),
        Answer::Chunked(count, pause) => with(StatusCode::OK, chunks(count, pause)),
        Answer::Trailers => with(StatusCode::OK, with_trailers()),
        Answer::Bytes(length) => {
            let mut response = with(StatusCode::OK, generated(length));
            if let Ok(digest) = HeaderValue::from_str(&answer::digest(length)) {
                response.headers_mut().insert("x-sha256", digest);
            }
            response
        }
        Answer::Cut => with(StatusCode::OK, cut()),
        Answer::Slow(pause) => {
            tokio::time::sleep(pause).await;
            with(StatusCode::OK, full(told(place, &head, &received)))
        }
        // What only HTTP/1 has is told like any other request.
        _ => with(StatusCode::OK, full(told(place, &head, &received))),
    })
}

fn told((connection, request): (u64, u64), head: &http::request::Parts, received: &Received) -> Bytes {
    Told {
        server: answer::host_name(),
        connection,
        request,
        version: "HTTP/2.0",
        method: head.method.to_string(),
        target: head.uri.to_string(),
        headers: owned(&head.headers),
        body: received.start(),
        body_bytes: received.bytes,
        body_sha256: received.sha256(),
        trailers: received.trailers.clone(),
    }
    .json()
}

async fn receive(mut body: Incoming) -> Result<Received, hyper::Error> {
    let mut received = Received::default();
    while let Some(frame) = body.frame().await {
        let frame = frame?;
        if let Some(data) = frame.data_ref() {
            received.add(data);
        } else if let Some(trailers) = frame.trailers_ref() {
            received.trailers = owned(trailers);
        }
    }
    Ok(received)
}

fn owned(headers: &HeaderMap) -> Vec<(String, String)> {
    let one = |(name, value): (&http::HeaderName, &HeaderValue)| {
        (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned())
    };
    headers.iter().map(one).collect()
}

fn with(status: StatusCode, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
}

fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

fn chunks(count: u64, pause: Duration) -> Body {
    let frames = stream::iter(0..count).then(move |i| async move {
        tokio::time::sleep(pause).await;
        Ok(Frame::data(Bytes::from(format!("chunk {i}\n"))))
    });
    StreamBody::new(frames).boxed_unsync()
}

fn generated(length: u64) -> Body {
    let frames = answer::pieces(length).map(|(at, length)| Ok(Frame::data(answer::piece(at, length))));
    StreamBody::new(stream::iter(frames)).boxed_unsync()
}

fn with_trailers() -> Body {
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", HeaderValue::from_static("5"));
    trailers.insert("x-last", HeaderValue::from_static("yes"));
    let frames = [Ok(Frame::data(Bytes::from_static(b"body\n"))), Ok(Frame::trailers(trailers))];
    StreamBody::new(stream::iter(frames)).boxed_unsync()
}

fn cut() -> Body {
    let frames = [
        Ok(Frame::data(Bytes::from_static(&[b'x'; 500]))),
        Err(h2::Error::from(h2::Reason::ENHANCE_YOUR_CALM)),
    ];
    StreamBody::new(stream::iter(frames)).boxed_unsync()
}

/// A connection whose first bytes have been read and come again.
struct Replayed {
    preface: Bytes,
    stream: TcpStream,
}

impl AsyncRead for Replayed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.preface.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buffer);
        }
        let now = self.preface.len().min(buffer.remaining());
        buffer.put_slice(self.preface.get(..now).unwrap_or_default());
        self.preface.advance(now);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Replayed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

//! A client's side of an HTTP/1 connection, read by our own reader and by hyper's server: what we take for a request is
//! the same request to hyper, to the last byte of its body, and nothing that hyper refuses is one to us.
//!
//! Where we are stricter, on purpose: a Transfer-Encoding is `chunked`, once and alone; a target has the form of its
//! method; a head has a bound of its own; `close` counts beside tokens that are none.

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Request, Response, Version};
use http_body_util::{BodyExt, Empty};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use remora_core::http1::Length;
use remora_proxy::http1::{
    Limits,
    head::{self, Ahead},
    wire::{Part, Reading},
};
use std::{cell::RefCell, convert::Infallible, rc::Rc};

const LIMITS: Limits = Limits { head_bytes: 8192, fields: 64 };

/// What a request is to whoever read it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    method: Method,
    target: String,
    version: Version,
    /// Sorted: hyper and we need not keep them in the same order.
    fields: Vec<(String, Vec<u8>)>,
    /// `None`: it broke off.
    body: Option<Vec<u8>>,
}

/// Why our reader stopped.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// There is no whole head any more.
    Over,
    /// A body is not whole.
    Cut,
    Refused,
    /// The connection is not used again.
    Closes,
}

/// The bytes of a connection.
pub fn messages(data: &[u8]) {
    let (ours, end) = read(data);
    let theirs = hyper(data);
    for (nth, (our, their)) in ours.iter().zip(&theirs).enumerate() {
        // Trailers may be refused that hyper takes, such as a line with a bare line feed in it: then the body broke off.
        let stricter = nth + 1 == ours.len() && end == End::Refused && our.body.is_none();
        let body = if stricter { None } else { their.body.clone() };
        let their = Seen { body, ..their.clone() };
        assert_eq!(*our, their, "request {nth} of {:?}", data.escape_ascii().to_string());
    }
    let told = || data.escape_ascii().to_string();
    // After the last request that we take a connection may have ended for hyper already.
    assert!(ours.len() <= theirs.len(), "hyper refuses what we take: {ours:#?} {}", told());
    if theirs.len() > ours.len() {
        assert!(matches!(end, End::Refused | End::Closes), "we wait where hyper answers: {end:?} {}", told());
    }
}

fn read(data: &[u8]) -> (Vec<Seen>, End) {
    let mut ahead = Ahead::default();
    ahead.bytes = BytesMut::from(data);
    let mut seen = vec![];
    loop {
        let head = match head::request(&mut ahead, &LIMITS) {
            Ok(Some(head)) => head,
            Ok(None) => return (seen, End::Over),
            Err(_) => return (seen, End::Refused),
        };
        let Ok(length) = head.framing.request(head.http11) else { return (seen, End::Refused) };
        let mut request = head.head;
        if head.framing.contradicts_itself() {
            request.headers_mut().remove(http::header::CONTENT_LENGTH);
        }
        let connect = request.method() == Method::CONNECT;
        let length = if connect { Length::Known(0) } else { length };
        let mut reading = Reading::new(length, &LIMITS);
        let mut body = vec![];
        let end = loop {
            match reading.take(&mut ahead.bytes) {
                Ok(Some(Part::Data(data))) => body.extend_from_slice(&data),
                Ok(Some(Part::Trailers(..))) => {}
                Ok(None) if reading.is_over() => break None,
                Ok(None) => break Some(End::Cut),
                Err(_) => break Some(End::Refused),
            }
        };
        seen.push(as_seen(&request, end.is_none().then_some(body)));
        if let Some(end) = end {
            return (seen, end);
        }
        if connect || !head.framing.persists(head.http11) {
            return (seen, End::Closes);
        }
    }
}

fn hyper(data: &[u8]) -> Vec<Seen> {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.unwrap_or_else(|error| panic!("{error}"));
    let seen = Rc::new(RefCell::new(vec![]));
    let told = seen.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let told = told.clone();
        async move {
            let (parts, body) = request.into_parts();
            let tunnel = parts.method == Method::CONNECT;
            let body = body.collect().await.ok().map(|body| body.to_bytes().to_vec());
            // What follows is the tunnel's, whatever its fields say of a body.
            let body = if tunnel { Some(vec![]) } else { body };
            told.borrow_mut().push(as_seen(&Request::from_parts(parts, ()), body));
            Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
        }
    });
    let io = TokioIo::new(tokio::io::join(std::io::Cursor::new(data.to_vec()), tokio::io::sink()));
    let mut builder = http1::Builder::new();
    builder.max_headers(LIMITS.fields).half_close(true).header_read_timeout(None);
    // How it ends for hyper is told by what it has seen.
    let _ = runtime.block_on(builder.serve_connection(io, service));
    seen.take()
}

fn as_seen(request: &Request<()>, body: Option<Vec<u8>>) -> Seen {
    let fields = |headers: &HeaderMap| {
        let fields = headers.iter().map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()));
        let mut fields: Vec<_> = fields.collect();
        fields.sort();
        fields
    };
    Seen {
        method: request.method().clone(),
        target: request.uri().to_string(),
        version: request.version(),
        fields: fields(request.headers()),
        body,
    }
}

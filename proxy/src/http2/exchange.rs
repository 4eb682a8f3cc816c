//! One HTTP/2 connection to a server, and exchanges on it. Its task ends with the last of whoever may use it and the last
//! stream.

use super::{
    CONNECTION_WINDOW, FRAME, MAX_ERROR_RESETS, STREAM_WINDOW,
    body::{Incoming, Outgoing},
    ping::{KeepAlive, Pings, Told},
    portions::{Portion, Portions},
};
use crate::{fault::HttpError, http::body::Body, stream::Stream};
use bytes::Bytes;
use h2::client::{self, SendRequest};
use http::{HeaderValue, Method, Request, Response, header::CONTENT_LENGTH};
use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    time::Duration,
};
use tokio_util::task::AbortOnDropHandle;

/// A server that says nothing is asked whether it is there, as often as Linkerd asks by default.
const KEEP_ALIVE: KeepAlive =
    KeepAlive { interval: Duration::from_secs(10), timeout: Duration::from_secs(3) };
/// Streams that are opened before the server has said how many it allows.
const FIRST_STREAMS: usize = 100;
/// Bytes of one stream that wait to be written.
const SEND_BUFFER: usize = 1024 * 1024;

/// A connection; every clone is a stream that is open, or about to be.
#[derive(Clone)]
pub struct Connection {
    requests: SendRequest<Bytes>,
    streams: Arc<()>,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    /// New requests are not taken any more.
    closed: AtomicBool,
    /// A ping was not answered.
    silent: AtomicBool,
}

/// Why there is no answer.
#[derive(Debug)]
pub enum Broken {
    /// The connection took nothing of the request, which is as it was.
    Unsent(HttpError),
    /// The request may have been processed.
    Unanswered(HttpError),
}

impl Connection {
    /// Begins HTTP/2 on a stream. `head_bytes` is how long a head of the server may be, in bytes.
    ///
    /// # Errors
    /// The stream took none of our preface.
    pub async fn begin(stream: Stream, head_bytes: usize) -> Result<Self, HttpError> {
        let portion = Portion::default();
        let io = Portions::new(stream, portion.clone());
        let mut builder = client::Builder::new();
        builder
            .initial_max_send_streams(FIRST_STREAMS)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(FRAME)
            .max_header_list_size(u32::try_from(head_bytes).unwrap_or(u32::MAX))
            .max_send_buffer_size(SEND_BUFFER)
            .max_local_error_reset_streams(Some(MAX_ERROR_RESETS))
            .enable_push(false);
        let (requests, mut connection) = builder.handshake(io).await?;
        let state = Arc::new(State::default());
        let pings = Pings::new(connection.ping_pong(), &portion, Some(KEEP_ALIVE), None);
        tokio::spawn(drive(connection, portion, pings, state.clone()));
        Ok(Self { requests, streams: Arc::default(), state })
    }

    /// Whether it takes no new requests.
    pub fn is_closed(&self) -> bool {
        self.state.closed.load(Ordering::Relaxed)
    }

    /// Streams that are open on it, or about to be.
    pub fn streams(&self) -> usize {
        Arc::strong_count(&self.streams) - 1
    }

    /// Sends a request and waits for the answer's head. Of the request nothing is left once a byte of it is taken.
    ///
    /// # Errors
    /// [`Broken`] says whether the request may be sent elsewhere.
    pub async fn exchange(mut self, request: &mut Request<Body>) -> Result<Response<Body>, Broken> {
        if let Err(error) = poll_fn(|cx| self.requests.poll_ready(cx)).await {
            self.state.closed.store(true, Ordering::Relaxed);
            return Err(Broken::Unsent(self.why(error)));
        }
        let (mut head, body) = std::mem::replace(request, Request::new(Body::absent())).into_parts();
        let ends = body.is_absent();
        if ends && has_payload(&head.method) && !head.headers.contains_key(CONTENT_LENGTH) {
            head.headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        let sent = self.requests.send_request(Request::from_parts(head, ()), ends);
        let (answer, stream) = sent.map_err(|error| Broken::Unanswered(self.why(error)))?;
        let Self { requests, streams, state } = self;
        // From here on it is the stream that keeps the connection.
        drop(requests);
        let upload = if ends { None } else { upload(body, stream).await };
        match answer.await {
            Ok(response) => {
                // An answer may come before its request's end, and does not end it.
                if let Some(upload) = upload {
                    upload.detach();
                }
                let (head, stream) = response.into_parts();
                let body = Incoming::new(stream, &head.headers, Some(streams));
                Ok(Response::from_parts(head, Body::http2(body)))
            }
            Err(error) => Err(Broken::Unanswered(state.why(error))),
        }
    }

    fn why(&self, error: h2::Error) -> HttpError {
        self.state.why(error)
    }
}

impl State {
    fn why(&self, error: h2::Error) -> HttpError {
        if self.silent.load(Ordering::Relaxed) { HttpError::Ping } else { error.into() }
    }
}

/// Sends what is there of a body; the rest is a task's, which ends with its handle.
async fn upload(body: Body, stream: h2::SendStream<Bytes>) -> Option<AbortOnDropHandle<()>> {
    let mut outgoing = Outgoing::new(body, stream);
    if poll_fn(|cx| Poll::Ready(outgoing.poll(cx).is_ready())).await {
        return None;
    }
    Some(AbortOnDropHandle::new(tokio::spawn(async move { poll_fn(|cx| outgoing.poll(cx)).await })))
}

/// Whether a request without a body says that it has none. RFC 9110 section 8.6.
fn has_payload(method: &Method) -> bool {
    [Method::POST, Method::PUT, Method::PATCH].contains(method)
}

/// Reads and writes for all streams.
async fn drive(
    mut connection: client::Connection<Portions, Bytes>,
    portion: Portion,
    mut pings: Option<Pings>,
    state: Arc<State>,
) {
    let ended = poll_fn(|cx| {
        portion.begin();
        // The windows of a server are not measured.
        if let Some(Told::Gone) = pings.as_mut().and_then(|pings| pings.poll(cx)) {
            state.silent.store(true, Ordering::Relaxed);
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut connection).poll(cx)
    });
    if let Err(error) = ended.await {
        tracing::debug!(%error, "an HTTP/2 connection to a server broke");
    }
    state.closed.store(true, Ordering::Relaxed);
}

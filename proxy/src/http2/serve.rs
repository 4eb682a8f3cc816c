//! Serves HTTP/2 on a stream: the connection and all its requests in one task, so that what is answered at once is
//! written at once.

use super::{
    CONNECTION_WINDOW, FRAME, MAX_ERROR_RESETS, STREAM_WINDOW,
    body::{Incoming, Outgoing},
    late::Late,
    ping::{KeepAlive, Pings, Told},
    portions::{Portion, Portions},
};
use crate::{
    config::Http2Config,
    fault::{Fault, HttpError},
    http::{body::Body, respond},
    stream::Stream,
};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, future::CatchUnwind, stream::FuturesUnordered};
use h2::{
    Reason, RecvStream,
    server::{self, SendResponse},
};
use http::{Request, Response};
use remora_core::bandwidth::Bandwidth;
use remora_runtime::tasks::Drain;
use std::{
    future::{Future, poll_fn},
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

/// Streams a client may have open, if nothing else is configured.
const MAX_STREAMS: u32 = 200;
/// Bytes of one stream that wait to be written, if nothing else is configured.
const SEND_BUFFER: usize = 400 * 1024;
/// Wait for the answer to a ping, if nothing else is configured.
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// Both windows while they are measured begin with what HTTP/2 begins with. RFC 9113 section 6.9.2.
const MEASURED_WINDOW: u32 = 65_535;

/// How a connection is served.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub http2: Http2Config,
    /// A list of fields that is longer than allowed is answered by the service; one that is longer than this is never
    /// kept, and h2 answers it with 431 by itself.
    pub header_list_bytes: u32,
    /// For the fields of a request, and for the connection's preface, from their first byte.
    pub head_timeout: Duration,
}

/// Serves requests until the client, the drain or an answer that closes ends the connection. A service's error resets
/// its request's stream, and so does a panic.
pub async fn serve<N, S, F>(
    stream: Stream,
    settings: Settings,
    drain: &Drain,
    mut news: N,
    service: S,
) -> Result<(), Fault>
where
    N: FnMut(&mut Context<'_>) -> bool,
    S: Fn(Request<Body>) -> F,
    F: Future<Output = Result<Response<Body>, Fault>>,
{
    let portion = Portion::default();
    let mut late = Late::new(settings.head_timeout);
    let mut draining = std::pin::pin!(drain.draining());
    let mut handshake = builder(&settings).handshake(Portions::of_client(stream, portion.clone()));
    let begun = poll_fn(|cx| {
        portion.begin();
        if let Poll::Ready(begun) = Pin::new(&mut handshake).poll(cx) {
            return Poll::Ready(begun.map(Some).map_err(broken));
        }
        if let Poll::Ready(limit) = late.poll(cx, &portion) {
            return Poll::Ready(Err(Fault::HeadTimeout(limit)));
        }
        draining.as_mut().poll(cx).map(|()| Ok(None))
    });
    let Some(mut connection) = begun.await? else { return Ok(()) };
    let http2 = settings.http2;
    let keep_alive = http2
        .keep_alive_interval
        .map(|interval| KeepAlive { interval, timeout: http2.keep_alive_timeout.unwrap_or(PING_TIMEOUT) });
    let bandwidth = http2.adaptive_flow_control.then(|| Bandwidth::new(MEASURED_WINDOW));
    let pings = Pings::new(connection.ping_pong(), &portion, keep_alive, bandwidth);
    let mut serving = Serving {
        connection,
        portion,
        pings,
        late,
        answers: FuturesUnordered::new(),
        closing: Arc::default(),
        closes: false,
        silent: false,
    };
    poll_fn(|cx| {
        if !serving.closes && draining.as_mut().poll(cx).is_ready() {
            serving.close();
        }
        if news(cx) {
            serving.ask_anew();
        }
        serving.poll(cx, &service)
    })
    .await
}

fn broken(error: h2::Error) -> Fault {
    Fault::Client(error.into())
}

fn builder(settings: &Settings) -> server::Builder {
    let Http2Config {
        keep_alive_interval: _,
        keep_alive_timeout: _,
        initial_stream_window,
        initial_connection_window,
        adaptive_flow_control,
        max_concurrent_streams,
        max_frame_size,
        max_header_list_size: _,
        max_pending_accept_reset_streams,
        max_send_buf_size,
    } = settings.http2;
    let window = |configured: Option<u32>, ours| {
        if adaptive_flow_control { MEASURED_WINDOW } else { configured.unwrap_or(ours) }
    };
    let mut builder = server::Builder::new();
    builder
        .initial_window_size(window(initial_stream_window, STREAM_WINDOW))
        .initial_connection_window_size(window(initial_connection_window, CONNECTION_WINDOW))
        .max_frame_size(max_frame_size.unwrap_or(FRAME))
        .max_concurrent_streams(max_concurrent_streams.unwrap_or(MAX_STREAMS))
        .max_header_list_size(settings.header_list_bytes)
        .max_send_buffer_size(max_send_buf_size.unwrap_or(SEND_BUFFER))
        .max_local_error_reset_streams(Some(MAX_ERROR_RESETS));
    if let Some(streams) = max_pending_accept_reset_streams {
        builder.max_pending_accept_reset_streams(streams);
    }
    builder
}

struct Serving<F> {
    connection: server::Connection<Portions, Bytes>,
    portion: Portion,
    pings: Option<Pings>,
    late: Late,
    /// A panic in one ends its stream and nothing else.
    answers: FuturesUnordered<CatchUnwind<AssertUnwindSafe<Answer<F>>>>,
    /// An answer asked for the connection's end. In its head it says so to an HTTP/1 client; to HTTP/2 it is a GOAWAY.
    closing: Arc<AtomicBool>,
    /// The client has been told to go elsewhere.
    closes: bool,
    /// The client did not answer a ping.
    silent: bool,
}

impl<F: Future<Output = Result<Response<Body>, Fault>>> Serving<F> {
    fn poll<S: Fn(Request<Body>) -> F>(
        &mut self,
        cx: &mut Context<'_>,
        service: &S,
    ) -> Poll<Result<(), Fault>> {
        self.portion.begin();
        self.ping(cx);
        loop {
            // Answers first: what they write goes out with what the connection writes when it is asked for requests.
            while let Poll::Ready(Some(_)) = self.answers.poll_next_unpin(cx) {}
            if !self.closes && self.closing.load(Ordering::Relaxed) {
                self.close();
            }
            let before = self.answers.len();
            if let Poll::Ready(ended) = self.accept(cx, service) {
                return Poll::Ready(ended);
            }
            if self.answers.len() == before {
                return self.late.poll(cx, &self.portion).map(|limit| Err(self.give_up(cx, limit)));
            }
        }
    }

    /// Says so, if there is room, to a client that does not end what it has begun.
    fn give_up(&mut self, cx: &mut Context<'_>, limit: Duration) -> Fault {
        self.connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
        let _ = self.connection.poll_accept(cx);
        Fault::HeadTimeout(limit)
    }

    /// Begins to answer every request that is there.
    fn accept<S: Fn(Request<Body>) -> F>(
        &mut self,
        cx: &mut Context<'_>,
        service: &S,
    ) -> Poll<Result<(), Fault>> {
        loop {
            match ready!(self.connection.poll_accept(cx)) {
                Some(Ok((request, respond))) => {
                    let answer = Answer {
                        state: State::Waits(Box::pin(service(incoming(request)))),
                        respond,
                        closing: self.closing.clone(),
                    };
                    self.answers.push(AssertUnwindSafe(answer).catch_unwind());
                }
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                None if self.silent => return Poll::Ready(Err(Fault::Client(HttpError::Ping))),
                None => return Poll::Ready(Ok(())),
            }
        }
    }

    /// Has every answer polled, whether it is woken or not.
    fn ask_anew(&mut self) {
        self.answers = std::mem::take(&mut self.answers).into_iter().collect();
    }

    /// Tells the client to go elsewhere; what is under way is finished.
    fn close(&mut self) {
        self.closes = true;
        self.connection.graceful_shutdown();
    }

    fn ping(&mut self, cx: &mut Context<'_>) {
        match self.pings.as_mut().and_then(|pings| pings.poll(cx)) {
            Some(Told::Gone) => {
                self.silent = true;
                self.pings = None;
                self.connection.abrupt_shutdown(Reason::NO_ERROR);
            }
            Some(Told::Window(bytes)) => {
                self.connection.set_target_window_size(bytes);
                // It fails while another change is under way; the next measurement sets it.
                let _ = self.connection.set_initial_window_size(bytes);
            }
            None => {}
        }
    }
}

fn incoming(request: Request<RecvStream>) -> Request<Body> {
    let (head, stream) = request.into_parts();
    let body = Incoming::new(stream, &head.headers, None);
    Request::from_parts(head, Body::http2(body))
}

/// One request, until the last byte of its answer is on its way.
struct Answer<F> {
    state: State<F>,
    respond: SendResponse<Bytes>,
    closing: Arc<AtomicBool>,
}

enum State<F> {
    /// For the service. Boxed: so it is made where it stays, and gone when there is an answer.
    Waits(Pin<Box<F>>),
    Sends(Outgoing),
}

impl<F: Future<Output = Result<Response<Body>, Fault>>> Future for Answer<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        if let State::Waits(service) = &mut this.state {
            let Poll::Ready(answer) = service.as_mut().poll(cx) else {
                // Who resets a request does not wait for its answer.
                return this.respond.poll_reset(cx).map(|_| ());
            };
            match this.answer(answer) {
                Some(outgoing) => this.state = State::Sends(outgoing),
                None => return Poll::Ready(()),
            }
        }
        match &mut this.state {
            State::Sends(outgoing) => outgoing.poll(cx),
            State::Waits(_) => Poll::Pending,
        }
    }
}

impl<F> Answer<F> {
    /// Sends the head of an answer; its body, if it has one.
    fn answer(&mut self, answer: Result<Response<Body>, Fault>) -> Option<Outgoing> {
        let answer = match answer {
            Ok(answer) => answer,
            Err(fault) => {
                tracing::debug!(%fault, "a request's stream is reset");
                self.respond.send_reset(fault.h2_reason());
                return None;
            }
        };
        if respond::is_closing(&answer) {
            self.closing.store(true, Ordering::Relaxed);
        }
        let (head, body) = answer.into_parts();
        let ends = http_body::Body::is_end_stream(&body);
        match self.respond.send_response(Response::from_parts(head, ()), ends) {
            Ok(stream) => (!ends).then(|| Outgoing::new(body, stream)),
            Err(error) => {
                tracing::debug!(%error, "an answer cannot be sent");
                self.respond.send_reset(Reason::INTERNAL_ERROR);
                None
            }
        }
    }
}

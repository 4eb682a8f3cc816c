//! Serves HTTP/1 and HTTP/2 on a stream; what happens to a request is [`request`].

pub mod access_log;
pub mod body;
pub mod client;
pub mod exchange;
pub mod headers;
pub mod portions;
pub mod request;
pub mod respond;
pub mod upgrade;
pub mod upload;
pub mod view;

use crate::{
    config::{Config, HeaderList, Http2Config},
    fault::Fault,
    http1,
    stream::Stream,
};
use body::Body;
use http::{Request, Response};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use portions::{Portion, Portions};
use remora_core::header::SessionProtocol;
use remora_runtime::tasks::Drain;
use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    time::Duration,
};
use tokio::sync::Notify;
use upload::Upload;

/// What one HTTP/2 stream may have under way, and all streams of a connection together: a reader that stops must not
/// stop the others, so one stream never has more than a small share of its connection.
pub const STREAM_WINDOW: u32 = 64 * 1024;
/// See [`STREAM_WINDOW`].
pub const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;

/// How a connection is served.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    http2: Http2Config,
    /// Of an HTTP/2 request that we answer ourselves.
    header_list: HeaderList,
    max_header_bytes: usize,
    max_headers: usize,
    head_timeout: Duration,
    body_timeout: Duration,
    /// Whether the client may see why a connection ends.
    informational: bool,
}

impl Settings {
    /// `meshed`: the client is a proxy of the mesh.
    pub fn inbound(config: &Config, meshed: bool) -> Self {
        Self::of(config, config.inbound.http2, meshed)
    }

    pub fn outbound(config: &Config) -> Self {
        Self::of(config, config.outbound.http2, config.outbound.informational_headers && !config.ingress_mode)
    }

    fn of(config: &Config, http2: Http2Config, informational: bool) -> Self {
        let limits = &config.limits;
        Self {
            http2,
            header_list: config.header_list(&http2),
            max_header_bytes: limits.max_header_bytes,
            max_headers: limits.max_headers,
            head_timeout: limits.head_timeout,
            body_timeout: limits.body_timeout,
            informational,
        }
    }

    /// A request with its body under watch. Of gRPC a client may stream whenever it has something to say.
    fn watched(&self, request: Request<Body>) -> Request<Body> {
        let limit = (!exchange::is_grpc(request.headers())).then_some(self.body_timeout);
        request.map(|body| body.uploaded(|| Upload::new(limit)))
    }

    fn http1(&self) -> http1::serve::Settings {
        http1::serve::Settings {
            limits: http1::Limits { head_bytes: self.max_header_bytes, fields: self.max_headers },
            head_timeout: self.head_timeout,
            informational: self.informational,
        }
    }
}

/// Serves requests until the client, the drain or an answer that closes ends the connection. A service's error resets the
/// request's stream (HTTP/2) or the connection (HTTP/1).
pub async fn serve<S, F>(
    stream: Stream,
    version: SessionProtocol,
    settings: Settings,
    drain: &Drain,
    service: S,
) -> Result<(), Fault>
where
    S: Fn(Request<Body>) -> F + Send + Unpin + 'static,
    F: Future<Output = Result<Response<Body>, Fault>> + Send + 'static,
{
    match version {
        SessionProtocol::Http1 => {
            let service = |request| service(settings.watched(request));
            http1::serve::serve(stream, settings.http1(), drain, service).await
        }
        SessionProtocol::Http2 => Box::pin(serve_http2(stream, settings, drain, service)).await,
    }
}

async fn serve_http2<S, F>(stream: Stream, settings: Settings, drain: &Drain, service: S) -> Result<(), Fault>
where
    S: Fn(Request<Body>) -> F + Send + Unpin + 'static,
    F: Future<Output = Result<Response<Body>, Fault>> + Send + 'static,
{
    // An answer that closes says so in its head to an HTTP/1 client; to HTTP/2 it is a GOAWAY.
    let closing = Arc::new(Notify::new());
    let asked = closing.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let request = request.map(|body| Body::http2(body, None));
        let (answered, asked) = (service(settings.watched(request)), asked.clone());
        async move {
            let answer = answered.await;
            if answer.as_ref().is_ok_and(respond::is_closing) {
                asked.notify_one();
            }
            answer
        }
    });
    let portion = Portion::default();
    let io = TokioIo::new(Portions::new(stream, portion.clone()));
    let connection = http2_builder(settings).serve_connection(io, service);
    let before = || portion.begin();
    let served = until(connection, drain, &closing, before, http2::Connection::graceful_shutdown).await;
    served.map_err(|error| Fault::Client(error.into()))
}

fn http2_builder(settings: Settings) -> http2::Builder<TokioExecutor> {
    let Http2Config {
        keep_alive_interval,
        keep_alive_timeout,
        initial_stream_window,
        initial_connection_window,
        adaptive_flow_control,
        max_concurrent_streams,
        max_frame_size,
        max_header_list_size: _,
        max_pending_accept_reset_streams,
        max_send_buf_size,
    } = settings.http2;
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .auto_date_header(false)
        .keep_alive_interval(keep_alive_interval)
        .initial_stream_window_size(initial_stream_window.unwrap_or(STREAM_WINDOW))
        .initial_connection_window_size(initial_connection_window.unwrap_or(CONNECTION_WINDOW))
        .max_frame_size(max_frame_size);
    if let Some(timeout) = keep_alive_timeout {
        builder.keep_alive_timeout(timeout);
    }
    if adaptive_flow_control {
        builder.adaptive_window(true);
    }
    if let Some(streams) = max_concurrent_streams {
        builder.max_concurrent_streams(streams);
    }
    // A list that is longer than allowed is answered and counted in `headers::check`; one that is much longer is
    // never kept, and h2 answers it with 431 by itself.
    let bytes = u32::try_from(settings.header_list.bytes).unwrap_or(u32::MAX);
    builder.max_header_list_size(bytes.saturating_mul(2));
    if let Some(streams) = max_pending_accept_reset_streams {
        builder.max_pending_accept_reset_streams(streams);
    }
    if let Some(bytes) = max_send_buf_size {
        builder.max_send_buf_size(bytes);
    }
    builder
}

/// Runs a connection; when the drain begins or an answer closes, tells the client to go elsewhere and finishes what is
/// under way. `before_poll` is called before each poll of the connection.
async fn until<C: Future>(
    connection: C,
    drain: &Drain,
    closing: &Notify,
    before_poll: impl Fn(),
    shut_down: impl FnOnce(Pin<&mut C>),
) -> C::Output {
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        biased;
        ended = polled(connection.as_mut(), &before_poll) => return ended,
        () = drain.draining() => {}
        () = closing.notified() => {}
    }
    shut_down(connection.as_mut());
    polled(connection, &before_poll).await
}

async fn polled<C: Future>(mut connection: Pin<&mut C>, before_poll: &impl Fn()) -> C::Output {
    poll_fn(|cx| {
        before_poll();
        connection.as_mut().poll(cx)
    })
    .await
}

#[cfg(test)]
mod tests;

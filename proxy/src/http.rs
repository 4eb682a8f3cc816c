//! Serves HTTP/1 and HTTP/2 on a stream; what happens to a request is [`request`].

pub mod access_log;
pub mod body;
pub mod client;
pub mod exchange;
pub mod headers;
pub mod request;
pub mod respond;
pub mod upgrade;

use crate::{
    config::{Config, Http2Config},
    fault::Fault,
    stream::Stream,
};
use body::Body;
use http::{Request, Response};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use remora_core::header::SessionProtocol;
use remora_runtime::tasks::Drain;
use std::{future::Future, pin::Pin, sync::Arc, time::Duration};
use tokio::sync::Notify;

/// What one HTTP/2 stream may have under way, and all streams of a connection together: a reader that stops must not
/// stop the others, so one stream never has more than a small share of its connection.
pub const STREAM_WINDOW: u32 = 64 * 1024;
/// See [`STREAM_WINDOW`].
pub const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;

/// How a connection is served.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    http2: Http2Config,
    max_header_bytes: usize,
}

impl Settings {
    pub fn inbound(config: &Config) -> Self {
        Self::of(config, config.inbound.http2)
    }

    pub fn outbound(config: &Config) -> Self {
        Self::of(config, config.outbound.http2)
    }

    fn of(config: &Config, http2: Http2Config) -> Self {
        Self { http2, max_header_bytes: config.limits.max_header_bytes }
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
    S: Fn(Request<Incoming>) -> F + Send + 'static,
    F: Future<Output = Result<Response<Body>, Fault>> + Send + 'static,
{
    let io = TokioIo::new(stream);
    // An answer that closes says so in its head to an HTTP/1 client, and hyper obeys; to HTTP/2 it is a GOAWAY.
    let closing = Arc::new(Notify::new());
    let served = match version {
        SessionProtocol::Http1 => {
            let connection =
                http1_builder(settings).serve_connection(io, service_fn(service)).with_upgrades();
            until(connection, drain, &closing, http1::UpgradeableConnection::graceful_shutdown).await
        }
        SessionProtocol::Http2 => {
            let asked = closing.clone();
            let service = service_fn(move |request| {
                let (answered, asked) = (service(request), asked.clone());
                async move {
                    let answer = answered.await;
                    if answer.as_ref().is_ok_and(respond::is_closing) {
                        asked.notify_one();
                    }
                    answer
                }
            });
            let connection = http2_builder(settings).serve_connection(io, service);
            until(connection, drain, &closing, http2::Connection::graceful_shutdown).await
        }
    };
    served.map_err(|error| Fault::Client(Arc::new(error)))
}

fn http1_builder(settings: Settings) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .preserve_header_case(true)
        // A client may say that it is done and still wait for the answer.
        .half_close(true)
        .timer(TokioTimer::new())
        .max_buf_size(settings.max_header_bytes.max(8192))
        .auto_date_header(false);
    // hyper's limit of a head also ends idle keep-alive connections, which are the client's business; detection bounds
    // the first head.
    builder.header_read_timeout(None::<Duration>);
    builder
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
        max_header_list_size,
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
    let bytes = u32::try_from(settings.max_header_bytes).unwrap_or(u32::MAX);
    builder.max_header_list_size(max_header_list_size.unwrap_or(bytes));
    if let Some(streams) = max_pending_accept_reset_streams {
        builder.max_pending_accept_reset_streams(streams);
    }
    if let Some(bytes) = max_send_buf_size {
        builder.max_send_buf_size(bytes);
    }
    builder
}

/// Runs a connection; when the drain begins or an answer closes, tells the client to go elsewhere and finishes what is
/// under way.
async fn until<C: Future>(
    connection: C,
    drain: &Drain,
    closing: &Notify,
    shut_down: impl FnOnce(Pin<&mut C>),
) -> C::Output {
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        biased;
        ended = &mut connection => return ended,
        () = drain.draining() => {}
        () = closing.notified() => {}
    }
    shut_down(connection.as_mut());
    connection.await
}

#[cfg(test)]
mod tests;

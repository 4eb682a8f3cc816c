//! Serves HTTP/1 and HTTP/2 on a stream; what happens to a request is [`request`].

pub mod access_log;
mod admit;
pub mod body;
pub mod client;
mod copies;
pub mod deadline;
mod dispatch;
pub mod exchange;
pub mod filters;
pub mod headers;
pub mod ingress;
pub mod mirror;
pub mod replay;
pub mod request;
pub mod respond;
mod retry;
mod ruled;
pub mod upgrade;
pub mod upload;
pub mod view;
mod way;

use crate::{
    config::{Config, HeaderList, Http2Config},
    fault::Fault,
    http1, http2,
    stream::Stream,
};
use body::Body;
use http::{Request, Response};
use remora_core::header::SessionProtocol;
use remora_runtime::tasks::Drain;
use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    task::Context,
    time::Duration,
};
use upload::Upload;

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

    fn http2(&self) -> http2::serve::Settings {
        // What is a little too long is answered and counted in `headers::check`.
        let bytes = u32::try_from(self.header_list.bytes).unwrap_or(u32::MAX);
        http2::serve::Settings {
            http2: self.http2,
            header_list_bytes: bytes.saturating_mul(2),
            head_timeout: self.head_timeout,
        }
    }
}

/// Serves requests until the client, the drain or an answer that closes ends the connection. A service's error resets the
/// request's stream (HTTP/2) or ends the connection (HTTP/1).
///
/// `news` says that something has changed by which requests are judged, and has the connection woken when it does: all
/// that is under way, services and the bodies of their answers, is polled then.
///
/// Boxed: what is held while a connection lives is what its version needs.
pub fn serve<'a, N, S, F>(
    stream: Stream,
    version: SessionProtocol,
    settings: Settings,
    drain: &'a Drain,
    mut news: N,
    service: S,
) -> Pin<Box<dyn Future<Output = Result<(), Fault>> + Send + 'a>>
where
    N: FnMut(&mut Context<'_>) -> bool + Send + 'a,
    S: Fn(Request<Body>) -> F + Send + Sync + Unpin + 'static,
    F: Future<Output = Result<Response<Body>, Fault>> + Send + 'static,
{
    let watched = move |request| service(settings.watched(request));
    match version {
        SessionProtocol::Http1 => Box::pin(async move {
            let mut serving = pin!(http1::serve::serve(stream, settings.http1(), drain, watched));
            poll_fn(|cx| {
                // One after the other: whatever is under way is polled at every wake.
                news(cx);
                serving.as_mut().poll(cx)
            })
            .await
        }),
        SessionProtocol::Http2 => {
            Box::pin(http2::serve::serve(stream, settings.http2(), drain, news, watched))
        }
    }
}

/// Of requests that are judged once, when they come.
pub fn no_news(_: &mut Context<'_>) -> bool {
    false
}

#[cfg(test)]
mod tests;

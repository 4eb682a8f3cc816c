//! The one body type: what the proxy received, or a few bytes of its own, watched to its end.

use super::exchange::Exchange;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use remora_runtime::metrics::Histogram;
use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

/// A body on its way through the proxy.
pub struct Body {
    kind: Kind,
    exchange: Option<Box<Exchange>>,
    /// Sizes of data frames.
    frames: Option<Histogram>,
}

enum Kind {
    Empty,
    Incoming(Incoming),
}

impl Body {
    pub fn empty() -> Self {
        Self { kind: Kind::Empty, exchange: None, frames: None }
    }

    pub fn incoming(body: Incoming) -> Self {
        Self { kind: Kind::Incoming(body), exchange: None, frames: None }
    }

    /// Records the sizes of this body's data frames.
    pub fn measured(mut self, frames: Option<&Histogram>) -> Self {
        self.frames = frames.cloned();
        self
    }

    /// Tells `exchange` what happens to this body, until its end.
    pub fn watched(mut self, exchange: Box<Exchange>) -> Self {
        self.exchange = Some(exchange);
        self
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let Kind::Incoming(body) = &mut this.kind else {
            return Poll::Ready(None);
        };
        let frame = ready!(Pin::new(body).poll_frame(cx));
        if let (Some(frames), Some(Ok(frame))) = (&this.frames, &frame)
            && let Some(data) = frame.data_ref()
        {
            frames.observe(data.len() as u64);
        }
        if let Some(exchange) = &mut this.exchange {
            match &frame {
                Some(Ok(frame)) => exchange.frame(frame),
                Some(Err(error)) => exchange.failed(error),
                None => exchange.ended(),
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Empty => true,
            Kind::Incoming(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Incoming(body) => body.size_hint(),
        }
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        // A body that has ended is not always polled once more to hear so.
        if http_body::Body::is_end_stream(self)
            && let Some(exchange) = &mut self.exchange
        {
            exchange.ended();
        }
    }
}

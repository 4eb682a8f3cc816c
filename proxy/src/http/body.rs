//! The one body type: what the proxy received, or a few bytes of its own, watched to its end.

use super::{
    exchange::Exchange,
    headers,
    talk::Answering,
    upload::{BodyError, Fate, Upload},
};
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
    /// Of a request's body.
    upload: Option<Box<Upload>>,
    /// Of an answer's body to an HTTP/1 client.
    answering: Option<Answering>,
    /// Sizes of data frames.
    frames: Option<Histogram>,
}

enum Kind {
    Empty,
    Incoming(Incoming),
}

impl Body {
    pub fn empty() -> Self {
        Self::of(Kind::Empty)
    }

    pub fn incoming(body: Incoming) -> Self {
        Self::of(Kind::Incoming(body))
    }

    fn of(kind: Kind) -> Self {
        Self { kind, exchange: None, upload: None, answering: None, frames: None }
    }

    /// Watches how this body comes, if there is one.
    pub fn uploaded(mut self, upload: impl FnOnce() -> Upload) -> Self {
        if !http_body::Body::is_end_stream(&self) {
            self.upload = Some(Box::new(upload()));
        }
        self
    }

    /// What will have become of this body.
    pub fn fate(&self) -> Fate {
        self.upload.as_ref().map(|upload| upload.fate()).unwrap_or_default()
    }

    /// Holds our turn in the conversation for as long as this body is not sent.
    pub fn answering(mut self, answering: Answering) -> Self {
        self.answering = Some(answering);
        self
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
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let Kind::Incoming(body) = &mut this.kind else {
            return Poll::Ready(None);
        };
        let polled = Pin::new(body).poll_frame(cx);
        let mut frame = match &mut this.upload {
            Some(upload) => ready!(upload.watch(cx, polled)),
            None => ready!(polled).map(|frame| frame.map_err(BodyError::Stream)),
        };
        if let Some(Ok(frame)) = &mut frame
            && let Some(trailers) = frame.trailers_mut()
        {
            headers::strip_trailers(trailers);
        }
        if let (Some(frames), Some(Ok(frame))) = (&this.frames, &frame)
            && let Some(data) = frame.data_ref()
        {
            frames.observe(data.len() as u64);
        }
        if let Some(exchange) = &mut this.exchange {
            match &frame {
                Some(Ok(frame)) => exchange.frame(frame),
                Some(Err(BodyError::Stream(error))) => exchange.failed(error),
                // An answer's body is nobody's upload.
                Some(Err(BodyError::Client(_))) => {}
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

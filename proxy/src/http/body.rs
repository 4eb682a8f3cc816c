//! The one body type: what the proxy received, or a few bytes of its own, watched to its end.

use super::{
    copies::{Copied, Copy},
    deadline::{Expiry, Progress},
    exchange::Exchange,
    headers,
    replay::{Recorded, Replaying},
    request::Standing,
    upload::{BodyError, Fate, Upload},
};
use crate::{
    fault::{Fault, HttpError},
    http1::{
        self,
        head::Spelling,
        wire::{Relayed, Write},
    },
    http2,
    stream::Stream,
};
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use remora_runtime::metrics::Histogram;
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

/// A body on its way through the proxy.
pub struct Body {
    kind: Kind,
    exchange: Option<Box<Exchange>>,
    /// Of a request's body.
    upload: Option<Box<Upload>>,
    /// Of an answer's body.
    expiry: Option<Box<Expiry>>,
    /// Sizes of data frames.
    frames: Option<Histogram>,
    /// Of the names in the message's head, if it came over HTTP/1; once there are trailers, of theirs.
    pub spelling: Spelling,
}

enum Kind {
    Absent,
    /// Over HTTP/2.
    Http2(http2::body::Incoming),
    /// Of a request over HTTP/1.
    Request(http1::body::Request),
    /// Of an answer over HTTP/1.
    Answer(Box<http1::body::Answer>),
    /// Of a request that may be sent more than once.
    Replay(Replaying),
    /// Of a request that is mirrored.
    Copied(Box<Copied>),
    /// Of a mirrored request.
    Copy(Box<Copy>),
}

impl Body {
    /// No body, or one without a byte.
    pub fn absent() -> Self {
        Self::of(Kind::Absent)
    }

    pub fn http2(body: http2::body::Incoming) -> Self {
        Self::of(Kind::Http2(body))
    }

    pub fn request(body: http1::body::Request) -> Self {
        Self::of(Kind::Request(body))
    }

    pub fn answer(body: Box<http1::body::Answer>) -> Self {
        Self::of(Kind::Answer(body))
    }

    pub fn replaying(body: Replaying) -> Self {
        Self::of(Kind::Replay(body))
    }

    pub fn copied(body: Copied) -> Self {
        Self::of(Kind::Copied(Box::new(body)))
    }

    pub fn copy(body: Copy) -> Self {
        Self::of(Kind::Copy(Box::new(body)))
    }

    fn of(kind: Kind) -> Self {
        Self { kind, exchange: None, upload: None, expiry: None, frames: None, spelling: Spelling::Lower }
    }

    /// Notes how the names in the message's head were written.
    pub fn spelled(mut self, spelling: Spelling) -> Self {
        self.spelling = spelling;
        self
    }

    /// Whether there is none.
    pub fn is_absent(&self) -> bool {
        match &self.kind {
            Kind::Absent => true,
            Kind::Http2(body) => body.is_over(),
            Kind::Request(_) | Kind::Answer(_) | Kind::Replay(_) | Kind::Copied(_) | Kind::Copy(_) => false,
        }
    }

    /// Its bytes that are still to come, where that is known.
    pub fn length(&self) -> Option<u64> {
        match &self.kind {
            Kind::Absent => Some(0),
            Kind::Http2(body) => body.left(),
            Kind::Request(body) => body.left(),
            Kind::Answer(body) => body.left(),
            Kind::Replay(body) => body.left(),
            Kind::Copied(body) => body.left(),
            Kind::Copy(body) => body.left(),
        }
    }

    /// Relays what is there of it to `write`, without a copy; `None` where that cannot be done and frames have to be
    /// asked for.
    pub fn poll_relay(
        &mut self,
        cx: &mut Context<'_>,
        write: &mut Write<'_>,
    ) -> Option<Poll<Result<Relayed, BodyError>>> {
        if let Some(Poll::Ready(error)) = self.expiry.as_mut().map(|expiry| expiry.poll(cx)) {
            return Some(Poll::Ready(Err(self.late(error))));
        }
        let relayed = match &mut self.kind {
            Kind::Answer(body) => body.poll_relay(cx, write)?.map_err(HttpError::from),
            // Who watches an upload sees its frames.
            _ => return None,
        };
        match &relayed {
            Poll::Ready(Ok(relayed)) if relayed.read > 0 => {
                if let Some(expiry) = &self.expiry {
                    expiry.moved();
                }
                if let Some(frames) = &self.frames {
                    frames.observe(relayed.read as u64);
                }
                if let Some(exchange) = &mut self.exchange {
                    exchange.data(relayed.read);
                }
            }
            Poll::Ready(Err(error)) => {
                if let Some(exchange) = &mut self.exchange {
                    exchange.failed(error);
                }
            }
            Poll::Ready(Ok(_)) | Poll::Pending => {}
        }
        Some(relayed.map_err(BodyError::Stream))
    }

    /// Sends the rest of the request that this is the answer to; ready when there is none.
    pub fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.kind {
            Kind::Answer(body) => body.poll_finish(cx),
            _ => Poll::Ready(()),
        }
    }

    /// The connection below an answer after which there are no messages any more.
    pub fn take_stream(&mut self) -> Option<Stream> {
        match std::mem::replace(&mut self.kind, Kind::Absent) {
            Kind::Answer(body) => body.into_stream(),
            _ => None,
        }
    }

    /// Watches how this body comes, if there is one.
    pub fn uploaded(mut self, upload: impl FnOnce() -> Upload) -> Self {
        if !http_body::Body::is_end_stream(&self) {
            self.upload = Some(Box::new(upload()));
        }
        self
    }

    /// Trailers that are the first thing to come of this body, if they come at once; what comes stays. Over HTTP/2 only.
    pub fn poll_trailers_only(&mut self, cx: &mut Context<'_>) -> Poll<Option<&HeaderMap>> {
        match &mut self.kind {
            Kind::Http2(body) => body.poll_trailers_only(cx),
            _ => Poll::Ready(None),
        }
    }

    /// Where it is kept, if it may be sent more than once.
    pub fn recorded(&self) -> Option<Recorded> {
        match &self.kind {
            Kind::Replay(body) => Some(body.recorded().clone()),
            _ => None,
        }
    }

    /// What will have become of this body.
    pub fn fate(&self) -> Fate {
        match &self.kind {
            Kind::Replay(body) => body.fate(),
            Kind::Copied(body) => body.fate(),
            _ => self.upload.as_ref().map(|upload| upload.fate()).unwrap_or_default(),
        }
    }

    /// Records the sizes of this body's data frames.
    pub fn measure(&mut self, frames: Option<&Histogram>) {
        self.frames = frames.cloned();
    }

    /// Tells `progress` how far this request's body is.
    pub fn follow(&mut self, progress: &Arc<Progress>) {
        match &mut self.upload {
            Some(upload) => upload.tell(progress.clone()),
            None => progress.sent(),
        }
    }

    /// Ends this request's body when its request may not go on.
    pub fn stands_by(&mut self, standing: &Arc<Standing>) {
        if let Some(upload) = &mut self.upload {
            upload.stands_by(standing.clone());
        }
    }

    /// Why the client may not have the rest of this answer, if its request is not admitted any more.
    pub fn refused(&mut self) -> Option<Fault> {
        self.exchange.as_mut()?.refused()
    }

    /// Ends this answer's body by an error when it takes too long.
    pub fn expire(&mut self, expiry: Box<Expiry>) {
        self.expiry = Some(expiry);
    }

    /// It took too long: nobody is to ask for more of it.
    fn late(&mut self, error: HttpError) -> BodyError {
        self.expiry = None;
        if let Some(exchange) = &mut self.exchange {
            exchange.failed(&error);
        }
        BodyError::Stream(error)
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
        if let Some(Poll::Ready(error)) = this.expiry.as_mut().map(|expiry| expiry.poll(cx)) {
            return Poll::Ready(Some(Err(this.late(error))));
        }
        let polled = match &mut this.kind {
            Kind::Absent => return Poll::Ready(None),
            Kind::Http2(body) => body.poll_frame(cx),
            Kind::Request(body) => body.poll_frame(cx, &mut this.spelling).map_err(HttpError::from),
            Kind::Answer(body) => body.poll_frame(cx, &mut this.spelling).map_err(HttpError::from),
            // The client's body below it is the one that is watched.
            Kind::Replay(body) => return body.poll_frame(cx, &mut this.spelling),
            Kind::Copied(body) => return body.poll_frame(cx, &mut this.spelling),
            Kind::Copy(body) => return body.poll_frame(cx, &mut this.spelling),
        };
        let mut frame = match &mut this.upload {
            Some(upload) => ready!(upload.watch(cx, polled)),
            None => ready!(polled).map(|frame| frame.map_err(BodyError::Stream)),
        };
        if let Some(expiry) = &this.expiry {
            expiry.moved();
        }
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
                Some(Err(BodyError::Client(_) | BodyError::Refused(_))) => {}
                None => exchange.ended(),
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Absent => true,
            Kind::Http2(body) => body.is_over(),
            Kind::Request(body) => body.is_over(),
            Kind::Answer(body) => body.is_over(),
            Kind::Replay(body) => body.is_over(),
            Kind::Copied(body) => body.is_over(),
            Kind::Copy(body) => body.is_over(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.length().map_or_else(SizeHint::new, SizeHint::with_exact)
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

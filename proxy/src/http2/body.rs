//! Bodies over HTTP/2: what comes, and what is sent on.

use crate::{
    fault::HttpError,
    http::{body::Body, upload::BodyError},
};
use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, header::CONTENT_LENGTH};
use http_body::{Body as _, Frame};
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

type Polled = Option<Result<Frame<Bytes>, HttpError>>;

/// A body that comes.
pub struct Incoming {
    stream: RecvStream,
    /// Bytes that are still to come, if the head said how many.
    left: Option<u64>,
    /// What remains are trailers, if anything.
    only_trailers: bool,
    /// What was looked at before it was asked for.
    ahead: Option<Box<Polled>>,
    /// Of an answer what counts its stream among its connection's.
    _stream: Option<Arc<()>>,
}

impl Incoming {
    /// The body that follows a head. `counted` is held for as long as it.
    pub fn new(stream: RecvStream, head: &HeaderMap, counted: Option<Arc<()>>) -> Self {
        let left = length(head).or_else(|| stream.is_end_stream().then_some(0));
        Self { stream, left, only_trailers: false, ahead: None, _stream: counted }
    }

    /// Whether nothing more comes.
    pub fn is_over(&self) -> bool {
        self.ahead.is_none() && self.stream.is_end_stream()
    }

    /// Looks at what comes first: trailers are shown. Everything stays where it is.
    pub fn poll_trailers_only(&mut self, cx: &mut Context<'_>) -> Poll<Option<&HeaderMap>> {
        if self.ahead.is_none() && !self.is_over() {
            let left = self.left;
            let frame = ready!(self.poll_frame(cx));
            self.left = left;
            self.ahead = Some(Box::new(frame));
        }
        Poll::Ready(match self.ahead.as_deref() {
            Some(Some(Ok(frame))) => frame.trailers_ref(),
            Some(Some(Err(_)) | None) | None => None,
        })
    }

    /// Bytes that are still to come, if that is known.
    pub fn left(&self) -> Option<u64> {
        self.left
    }

    /// The next piece; what is taken may be sent anew.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Polled> {
        if let Some(frame) = self.ahead.take() {
            if let (Some(left), Some(Ok(frame))) = (&mut self.left, frame.as_ref()) {
                *left = left.saturating_sub(frame.data_ref().map_or(0, |data| data.len() as u64));
            }
            return Poll::Ready(*frame);
        }
        if !self.only_trailers {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(bytes)) => {
                    // It fails when the stream has ended, and then nobody waits for room.
                    let _ = self.stream.flow_control().release_capacity(bytes.len());
                    self.left = self.left.map(|left| left.saturating_sub(bytes.len() as u64));
                    return Poll::Ready(Some(Ok(Frame::data(bytes))));
                }
                Some(Err(error)) => return Poll::Ready(broken(error)),
                None => self.only_trailers = true,
            }
        }
        Poll::Ready(match ready!(self.stream.poll_trailers(cx)) {
            Ok(trailers) => trailers.map(|trailers| Ok(Frame::trailers(trailers))),
            Err(error) => broken(error),
        })
    }
}

/// A reset without an error says that the rest is not needed, not that it is missing. RFC 9113 section 8.1.
fn broken(error: h2::Error) -> Option<Result<Frame<Bytes>, HttpError>> {
    (error.reason() != Some(Reason::NO_ERROR)).then(|| Err(error.into()))
}

/// What a head says of its body's length; nothing if it says two things.
fn length(head: &HeaderMap) -> Option<u64> {
    let mut all = head.get_all(CONTENT_LENGTH).iter();
    let first = all.next()?;
    let length = first.to_str().ok()?.parse().ok()?;
    all.all(|other| other == first).then_some(length)
}

/// A body that is sent, piece by piece: the next is asked for when the stream has room for the last.
pub struct Outgoing {
    body: Body,
    stream: SendStream<Bytes>,
    /// Waits for room; whether it is the last.
    held: Option<(Bytes, bool)>,
}

impl Outgoing {
    /// A body whose head is on its way already.
    pub fn new(body: Body, stream: SendStream<Bytes>) -> Self {
        Self { body, stream, held: None }
    }

    /// Sends what is there; ready when everything is, or when the stream has ended: whoever reads the other direction
    /// hears why.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // Before anything else: a client that takes nothing is not waited for.
        if let Some(fault) = self.body.refused() {
            self.stream.send_reset(reason(&BodyError::Refused(fault)));
            return Poll::Ready(());
        }
        match self.progress(cx) {
            Poll::Ready(Ok(()) | Err(Ended)) => Poll::Ready(()),
            // So that a reset wakes us too.
            Poll::Pending => self.stream.poll_reset(cx).map(|_| ()),
        }
    }

    fn progress(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Ended>> {
        loop {
            if self.held.as_ref().is_some_and(|(bytes, _)| !bytes.is_empty()) {
                while self.stream.capacity() == 0 {
                    ready!(self.stream.poll_capacity(cx)).ok_or(Ended)??;
                }
            }
            if let Some((bytes, last)) = self.held.take() {
                self.stream.send_data(bytes, last)?;
                if last {
                    return Poll::Ready(Ok(()));
                }
            }
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) => {
                        // As little as there is: what one stream claims and does not use, others wait for.
                        self.stream.reserve_capacity(usize::from(!bytes.is_empty()));
                        self.held = Some((bytes, self.body.is_end_stream()));
                    }
                    Err(frame) => {
                        if let Ok(trailers) = frame.into_trailers() {
                            self.stream.reserve_capacity(0);
                            self.stream.send_trailers(trailers)?;
                            return Poll::Ready(Ok(()));
                        }
                    }
                },
                Some(Err(error)) => {
                    self.stream.send_reset(reason(&error));
                    return Poll::Ready(Err(Ended));
                }
                None => {
                    self.stream.send_data(Bytes::new(), true)?;
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

/// The stream that is sent on takes nothing any more.
struct Ended;

impl From<h2::Error> for Ended {
    fn from(_: h2::Error) -> Self {
        Self
    }
}

/// With which code a body that broke ends its stream: with that with which it was broken off.
fn reason(error: &BodyError) -> Reason {
    match error {
        BodyError::Stream(error) => error.h2_reason(),
        BodyError::Client(_) => Reason::INTERNAL_ERROR,
        // To gRPC it is PERMISSION_DENIED (its document on HTTP/2, "HTTP2 Transport Mapping").
        BodyError::Refused(_) => Reason::INADEQUATE_SECURITY,
    }
}

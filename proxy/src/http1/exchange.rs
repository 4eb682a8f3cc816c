//! The client's side: one request to a server, and its answer.

use super::{
    Error, Limits,
    body::{Answer, Home},
    head::{self, Head},
    wire::{Reading, Wire},
    write::{self, Coding, WrongLength},
};
use crate::{
    http::{body::Body, upload::BodyError},
    stream::Stream,
};
use http::{Request, Response};
use http_body::Body as _;
use remora_core::http1::{Asked, Length};
use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, Waker},
};

/// A connection to a server.
pub struct Connection {
    pub wire: Box<Wire>,
    /// Whether it may be used again.
    pub persists: bool,
}

/// Why there is no answer.
#[derive(Debug)]
pub enum Broken {
    /// No byte of the request was written, and its body is as it was.
    Unsent(Error),
    /// The request's own body broke off.
    Body(BodyError),
    /// The server did not begin to answer.
    Unanswered(Error),
    /// What it answered makes no sense.
    Answer(Error),
}

impl Connection {
    pub fn new(stream: Stream) -> Self {
        Self { wire: Box::new(Wire::new(stream)), persists: true }
    }

    /// Whether an idle connection may be used: its server has neither closed it nor said anything.
    pub fn is_idle(&mut self) -> bool {
        self.wire.ahead.bytes.is_empty()
            && self.wire.poll_fill(&mut Context::from_waker(Waker::noop())).is_pending()
    }

    /// Sends a request and waits for the head of its answer. What of the request's body has not been sent by then is
    /// sent while the answer's body is read. `home` is where the connection goes when both are over.
    pub async fn exchange(
        mut self,
        request: &mut Request<Body>,
        limits: &Limits,
        home: Home,
    ) -> Result<Response<Body>, Broken> {
        let mut sending = Some(Sending::begin(&mut self.wire, request));
        let before = self.wire.out.written;
        let mut waiting = Waiting { limits, begun: false, unsent: None };
        let answered = poll_fn(|cx| {
            if let Some(sending) = &mut sending {
                match sending.poll(cx, &mut self.wire, request.body_mut()) {
                    Poll::Ready(Err(Stuck::Body(error))) => return Poll::Ready(Err(Broken::Body(error))),
                    Poll::Ready(Err(Stuck::Wire(error)))
                        if self.wire.out.written == before && !sending.touched =>
                    {
                        return Poll::Ready(Err(Broken::Unsent(error)));
                    }
                    // A server that takes no more may have said why.
                    Poll::Ready(Err(Stuck::Wire(error))) => waiting.unsent = Some(error),
                    Poll::Pending => return waiting.poll(cx, &mut self.wire),
                    Poll::Ready(Ok(())) => {}
                }
            }
            sending = None;
            waiting.poll(cx, &mut self.wire)
        })
        .await;
        let broken = waiting.unsent.is_some();
        let head = answered?;
        let asked = Asked::of(request.method().as_str());
        self.persists = !broken && head.framing.persists(head.http11);
        let upload = sending
            .map(|sending| Upload { body: std::mem::replace(request.body_mut(), Body::absent()), sending });
        self.answer(head, asked, limits, upload, home)
    }

    fn answer(
        mut self,
        head: Head<Response<()>>,
        asked: Asked,
        limits: &Limits,
        upload: Option<Upload>,
        home: Home,
    ) -> Result<Response<Body>, Broken> {
        let status = head.head.status().as_u16();
        let upgraded = asked.is_switched_by(status);
        let length = head.framing.answer(head.http11, status, asked);
        let length = length.map_err(|malformed| Broken::Answer(malformed.into()))?;
        let contradicts = head.framing.contradicts_itself();
        let mut answer = head.head;
        if contradicts {
            answer.headers_mut().remove(http::header::CONTENT_LENGTH);
        }
        self.wire.body = Reading::new(length, limits);
        self.persists &= length != Length::Close && !upgraded;
        let body = if !upgraded && upload.is_none() && length == Length::Known(0) {
            home.take_back(self);
            Body::absent()
        } else {
            let home = (!upgraded).then_some(home);
            Body::answer(Box::new(Answer::new(self, upload, home)))
        };
        Ok(answer.map(|()| body.spelled(head.spelling)))
    }
}

/// Why no more of a request is sent.
enum Stuck {
    Body(BodyError),
    Wire(Error),
}

impl From<WrongLength> for Stuck {
    fn from(_: WrongLength) -> Self {
        Self::Wire(Error::Cut)
    }
}

/// A request on its way.
struct Sending {
    coding: Coding,
    /// The body has been asked for something.
    touched: bool,
    over: bool,
}

impl Sending {
    fn begin(wire: &mut Wire, request: &Request<Body>) -> Self {
        let coding = Coding::of_request(request);
        write::request(wire.out.tail(), request, coding);
        Self { coding, touched: false, over: coding == Coding::None }
    }

    fn poll(&mut self, cx: &mut Context<'_>, wire: &mut Wire, body: &mut Body) -> Poll<Result<(), Stuck>> {
        loop {
            let mut waits = false;
            while !self.over && !waits && wire.out.has_room() {
                self.touched = true;
                match Pin::new(&mut *body).poll_frame(cx) {
                    Poll::Ready(Some(Ok(frame))) => {
                        self.coding.frame(&mut wire.out, frame, &body.spelling)?;
                        self.over = body.is_end_stream();
                    }
                    Poll::Ready(None) => self.over = true,
                    Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(Stuck::Body(error))),
                    Poll::Pending => waits = true,
                }
                if self.over {
                    self.coding.end(&mut wire.out)?;
                }
            }
            match wire.poll_write_out(cx) {
                Poll::Ready(Ok(())) if self.over => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(())) if waits => return Poll::Pending,
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Stuck::Wire(error.into()))),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

/// What is left of a request when its answer has begun.
pub struct Upload {
    body: Body,
    sending: Sending,
}

impl Upload {
    /// Sends what can be sent now; an error if the rest cannot be.
    pub fn poll(&mut self, cx: &mut Context<'_>, wire: &mut Wire) -> Poll<Result<(), ()>> {
        self.sending.poll(cx, wire, &mut self.body).map_err(|_| ())
    }
}

/// An answer's head that has not come yet.
struct Waiting<'a> {
    limits: &'a Limits,
    /// Something of an answer has come.
    begun: bool,
    /// Why the request was not sent to its end.
    unsent: Option<Error>,
}

impl Waiting<'_> {
    fn poll(&mut self, cx: &mut Context<'_>, wire: &mut Wire) -> Poll<Result<Head<Response<()>>, Broken>> {
        loop {
            match head::answer(&mut wire.ahead, self.limits) {
                // The server's word to this proxy: it goes no further, and nothing is kept of it.
                Ok(Some(head)) if is_interim(head.head.status()) => {
                    self.begun = true;
                    continue;
                }
                Ok(Some(head)) => return Poll::Ready(Ok(head)),
                Ok(None) => {}
                Err(error) => return Poll::Ready(Err(Broken::Answer(error))),
            }
            let error = match wire.poll_fill(cx) {
                Poll::Ready(Ok(0)) => Error::Cut,
                Poll::Ready(Ok(_)) => continue,
                Poll::Ready(Err(error)) => error.into(),
                Poll::Pending => return Poll::Pending,
            };
            let error = self.unsent.take().unwrap_or(error);
            let begun = self.begun || !wire.ahead.bytes.is_empty();
            return Poll::Ready(Err(if begun { Broken::Answer(error) } else { Broken::Unanswered(error) }));
        }
    }
}

fn is_interim(status: http::StatusCode) -> bool {
    status.is_informational() && status != http::StatusCode::SWITCHING_PROTOCOLS
}

impl Error {
    /// What the connection said, if it was that.
    pub fn io(&self) -> Option<&io::Error> {
        match self {
            Self::Io(error) => Some(error),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        http1::{
            body::Request as RequestBody,
            wire::{
                Shared,
                tests::{Writes, connection},
            },
        },
        stream::Stream,
    };
    use tokio::io::AsyncWriteExt as _;

    #[tokio::test]
    async fn a_request_and_its_short_body_leave_in_one_write() {
        for length in [Length::Known(5), Length::Chunked] {
            let limits = Limits { head_bytes: 100, fields: 4 };
            let (near, mut client) = connection().await;
            client.write_all(b"5\r\nhello\r\n0\r\n\r\n").await.unwrap();
            let shared = Shared::new(near);
            poll_fn(|cx| shared.lock().poll_fill(cx)).await.unwrap();
            shared.lock().body = Reading::new(length, &limits);
            let mut request = Request::new(Body::request(RequestBody::new(shared, false)));
            let (far, _server) = connection().await;
            let writes = std::sync::Arc::new(Writes::default());
            let mut wire = Wire::new(Stream::metered(far, writes.clone()));
            let mut sending = Sending::begin(&mut wire, &request);
            let sent = poll_fn(|cx| sending.poll(cx, &mut wire, request.body_mut())).await;
            assert!(sent.is_ok());
            assert_eq!(writes.take(), [usize::try_from(wire.out.written).unwrap()], "{length:?}");
        }
    }
}

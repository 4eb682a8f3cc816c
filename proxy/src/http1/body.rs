//! Bodies that are read from a connection while they are passed on.

use super::{
    Error,
    exchange::{Connection, Upload},
    head::Spelling,
    wire::{Part, Relayed, Shared, Write},
};
use crate::{http::client::Client, stream::Stream};
use bytes::Bytes;
use http_body::Frame;
use remora_core::time::Time;
use std::{
    sync::Arc,
    task::{Context, Poll, ready},
};

/// The body of a client's request.
pub struct Request {
    wire: Shared,
    /// The client waits for a word before it sends the body.
    expects_continue: bool,
    over: bool,
}

impl Request {
    pub fn new(wire: Shared, expects_continue: bool) -> Self {
        Self { wire, expects_continue, over: false }
    }

    /// The next piece. `spelling` becomes that of its trailers.
    pub fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
        spelling: &mut Spelling,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if self.over {
            return Poll::Ready(None);
        }
        let mut wire = self.wire.lock();
        if std::mem::take(&mut self.expects_continue) && wire.ahead.bytes.is_empty() {
            wire.out.tail().extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        if !wire.out.is_empty() {
            // What is not taken now goes with the answer; a client that takes nothing is noticed by whoever serves it.
            let _ = wire.poll_write_out(cx);
        }
        let part = ready!(wire.poll_body(cx));
        self.over = wire.body.is_over() || !matches!(part, Some(Ok(_)));
        Poll::Ready(part.map(|part| part.map(|part| frame(part, spelling))))
    }

    pub fn is_over(&self) -> bool {
        self.over
    }

    /// Bytes that are still to come, where that is known. Not to be asked while the connection is held.
    pub fn left(&self) -> Option<u64> {
        if self.over { Some(0) } else { self.wire.lock().body.left() }
    }
}

/// The body of a server's answer. Meanwhile the rest of the request is sent, and at the end the connection returns to
/// where it came from.
pub struct Answer {
    connection: Option<Connection>,
    /// The request, until all of it has been sent.
    upload: Option<Upload>,
    home: Option<Home>,
}

/// Where a connection is kept while nobody uses it.
pub struct Home {
    pub client: Arc<Client>,
    pub born: Time,
}

impl Home {
    /// Keeps a connection whose answer is over, if it may be used again.
    pub fn take_back(self, connection: Connection) {
        if connection.persists && connection.wire.ahead.bytes.is_empty() {
            self.client.put_back(connection, self.born);
        }
    }
}

impl Answer {
    /// `home`: `None` for a connection that carries no messages any more.
    pub fn new(connection: Connection, upload: Option<Upload>, home: Option<Home>) -> Self {
        Self { connection: Some(connection), upload, home }
    }

    /// The next piece. `spelling` becomes that of its trailers.
    pub fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
        spelling: &mut Spelling,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        self.drive(cx);
        let Some(connection) = &mut self.connection else { return Poll::Ready(None) };
        let part = ready!(connection.wire.poll_body(cx));
        if matches!(part, Some(Err(_))) {
            connection.persists = false;
        }
        self.leave();
        Poll::Ready(part.map(|part| part.map(|part| frame(part, spelling))))
    }

    /// See [`Wire::poll_relay`](super::wire::Wire::poll_relay).
    pub fn poll_relay(
        &mut self,
        cx: &mut Context<'_>,
        write: &mut Write<'_>,
    ) -> Option<Poll<Result<Relayed, Error>>> {
        self.drive(cx);
        let connection = self.connection.as_mut()?;
        let relayed = connection.wire.poll_relay(cx, write)?;
        if matches!(relayed, Poll::Ready(Err(_))) {
            connection.persists = false;
        }
        self.leave();
        Some(relayed)
    }

    /// Sends the rest of the request; ready when there is no more to send.
    pub fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.drive(cx);
        self.leave();
        if self.upload.is_some() { Poll::Pending } else { Poll::Ready(()) }
    }

    /// Sends of the request what can be sent now.
    pub fn drive(&mut self, cx: &mut Context<'_>) {
        if let (Some(upload), Some(connection)) = (&mut self.upload, &mut self.connection)
            && let Poll::Ready(sent) = upload.poll(cx, &mut connection.wire)
        {
            // The server has begun to answer: what it makes of a request that broke off is its own to say.
            connection.persists &= sent.is_ok();
            self.upload = None;
        }
    }

    pub fn is_over(&self) -> bool {
        self.connection.as_ref().is_none_or(|connection| connection.wire.body.is_over())
    }

    /// Bytes that are still to come, where that is known.
    pub fn left(&self) -> Option<u64> {
        self.connection.as_ref().map_or(Some(0), |connection| connection.wire.body.left())
    }

    /// The connection, of which nothing is a message any more.
    pub fn into_stream(self) -> Option<Stream> {
        self.connection.map(|connection| connection.wire.into_stream())
    }

    /// Gives the connection back when both messages are over.
    fn leave(&mut self) {
        if self.upload.is_none()
            && self.home.is_some()
            && self.is_over()
            && let (Some(connection), Some(home)) = (self.connection.take(), self.home.take())
        {
            home.take_back(connection);
        }
    }
}

fn frame(part: Part, spelling: &mut Spelling) -> Frame<Bytes> {
    match part {
        Part::Data(data) => Frame::data(data),
        Part::Trailers(trailers, spelled) => {
            *spelling = spelled;
            Frame::trailers(trailers)
        }
    }
}

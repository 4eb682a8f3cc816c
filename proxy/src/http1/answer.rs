//! An answer on its way to the client: its head, its body as it comes, and an eye on who hears it.

use super::{
    wire::{Shared, Wire},
    write::{self, Coding, Then},
};
use crate::{
    fault::Fault,
    http::{body::Body, headers, respond},
    stream::LOOK,
};
use http::{Response, header};
use http_body::Body as _;
use remora_core::http1::{Asked, has_token};
use remora_runtime::tasks::Drain;
use std::{
    future::{Future, poll_fn},
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tokio::time::Sleep;

/// Rounds of reading and writing in one poll before the worker's other connections get their turn.
const ROUNDS: u32 = 8;

/// What is needed of a request when it is answered.
#[derive(Clone, Copy)]
pub struct Asking {
    pub asked: Asked,
    pub http11: bool,
    pub persists: bool,
}

/// What has become of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// It may carry another request.
    pub persists: bool,
    /// It carries messages no more.
    pub upgraded: bool,
}

/// Sends an answer, and of its request what has not been sent yet.
pub async fn send(
    shared: &Shared,
    asking: Asking,
    mut answer: Response<Body>,
    drain: &Drain,
) -> Result<Sent, Fault> {
    let upgraded = asking.asked.is_switched_by(answer.status().as_u16());
    let coding = Coding::of_answer(&answer, asking.asked, asking.http11);
    let persists = asking.persists
        && coding != Coding::Close
        && !respond::is_closing(&answer)
        && !says_close(&answer)
        && !drain.is_draining();
    let then = match (upgraded, persists) {
        (true, _) => Then::Upgrade,
        (false, true) => Then::Persist,
        (false, false) => Then::Close,
    };
    write::answer(shared.lock().out.tail(), &answer, coding, asking.http11, then);
    let body = answer.body_mut();
    let mut sending = Sending { shared, body, coding, over: false, watch: Watch::default() };
    poll_fn(|cx| sending.poll(cx, upgraded)).await?;
    Ok(Sent { persists, upgraded })
}

fn says_close(answer: &Response<Body>) -> bool {
    headers::values(answer.headers(), &header::CONNECTION).any(|value| has_token(value.as_bytes(), b"close"))
}

struct Sending<'a> {
    shared: &'a Shared,
    body: &'a mut Body,
    coding: Coding,
    /// The whole body is in what is to be written.
    over: bool,
    watch: Watch,
}

impl Sending<'_> {
    fn poll(&mut self, cx: &mut Context<'_>, upgraded: bool) -> Poll<Result<(), Fault>> {
        // Before anything else: a client that takes nothing is not waited for. What nobody has to be asked for is not
        // given away either.
        if (!self.over || !self.shared.lock().out.has_left())
            && let Some(fault) = self.body.refused()
        {
            self.keep_back();
            return Poll::Ready(Err(Fault::Answer(fault.to_string().into())));
        }
        for _ in 0..ROUNDS {
            let waits = match self.take(cx) {
                Ok(waits) => waits,
                Err(fault) => return Poll::Ready(Err(self.break_off(cx, fault))),
            };
            let written = self.shared.lock().poll_write_out(cx);
            match written {
                Poll::Ready(Ok(())) if self.over => return self.poll_request(cx, upgraded),
                Poll::Ready(Ok(())) if !waits => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Fault::ClientGone(Arc::new(error)))),
                Poll::Ready(Ok(())) | Poll::Pending => {
                    // A client that does not read is no reason to stop what it sends.
                    let _ = self.body.poll_finish(cx);
                    return self.poll_gone(cx);
                }
            }
        }
        // Others of this worker have their turn.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Takes what is there of the body; whether more has to be waited for.
    fn take(&mut self, cx: &mut Context<'_>) -> Result<bool, Fault> {
        while !self.over && self.shared.lock().out.has_room() {
            // Most of a long answer goes from the one socket to the other.
            match self.relay(cx) {
                Some(Poll::Ready(relayed)) => return relayed.map(|()| false),
                Some(Poll::Pending) => return Ok(true),
                None => {}
            }
            // Not while the connection is held: the body may read the request's.
            let frame = if self.body.is_end_stream() {
                Poll::Ready(None)
            } else {
                Pin::new(&mut *self.body).poll_frame(cx)
            };
            let out = &mut self.shared.lock().out;
            match frame {
                Poll::Ready(Some(Ok(frame))) => self.coding.frame(out, frame, &self.body.spelling)?,
                Poll::Ready(Some(Err(error))) => return Err(Fault::Answer(error.to_string().into())),
                Poll::Ready(None) => {
                    self.over = true;
                    self.coding.end(out)?;
                }
                Poll::Pending => return Ok(true),
            }
        }
        Ok(false)
    }

    /// Moves what is there of the body from the one socket to the other; `None` where it has to be asked for frames.
    fn relay(&mut self, cx: &mut Context<'_>) -> Option<Poll<Result<(), Fault>>> {
        if !matches!(self.coding, Coding::Length(_) | Coding::Close) {
            return None;
        }
        let write = &mut |cx: &mut Context<'_>, bytes: &[u8]| {
            let wire = &mut *self.shared.lock();
            wire.out.poll_write_with(cx, &mut wire.stream, bytes)
        };
        let relayed = match self.body.poll_relay(cx, write)? {
            Poll::Ready(Ok(relayed)) => relayed,
            Poll::Ready(Err(error)) => {
                return Some(Poll::Ready(Err(Fault::Answer(error.to_string().into()))));
            }
            Poll::Pending => return Some(Poll::Pending),
        };
        let counted = self.coding.relayed(relayed.read);
        self.shared.lock().out.piece(relayed.rest);
        Some(Poll::Ready(counted.map_err(Fault::from)))
    }

    /// The answer is sent. The rest of the request goes on to whoever has answered it already.
    fn poll_request(&mut self, cx: &mut Context<'_>, upgraded: bool) -> Poll<Result<(), Fault>> {
        if self.body.poll_finish(cx).is_ready() || upgraded {
            return Poll::Ready(Ok(()));
        }
        self.poll_gone(cx)
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        let gone = self.watch.poll(cx, &mut self.shared.lock());
        gone.map(|error| Err(Fault::ClientGone(Arc::new(error))))
    }

    /// The client is not to have the rest: the connection ends by a reset, before what was to be written on it.
    fn keep_back(&self) {
        let mut wire = self.shared.lock();
        wire.out.clear();
        wire.stream.reset_on_close();
        wire.torn = true;
    }

    /// The answer broke off: what came of it is sent, and then the connection ends, by a reset where its end would be
    /// taken for the answer's.
    fn break_off(&mut self, cx: &mut Context<'_>, fault: Fault) -> Fault {
        let mut wire = self.shared.lock();
        let _ = wire.poll_write_out(cx);
        if self.coding == Coding::Close {
            wire.stream.reset_on_close();
            wire.torn = true;
        }
        fault
    }
}

/// Looks whether the client is there while it is answered. One that says no more may still listen: it is waited for as
/// long as its machine says that somebody is there.
#[derive(Default)]
pub struct Watch {
    /// The client says no more.
    ended: bool,
    looking: Option<Pin<Box<Sleep>>>,
}

impl Watch {
    /// Ready when the client is gone.
    pub fn poll(&mut self, cx: &mut Context<'_>, wire: &mut Wire) -> Poll<io::Error> {
        // A body is read by whoever wants it, and the beginning of the next request keeps: meanwhile a reset is not read
        // either, but looked for.
        if !self.ended && wire.body.is_over() && wire.ahead.bytes.is_empty() {
            match ready!(wire.poll_fill(cx)) {
                Ok(read) => {
                    self.ended = read == 0;
                    if let (true, Some(error)) = (self.ended, wire.stream.look()) {
                        return Poll::Ready(error);
                    }
                }
                Err(error) => return Poll::Ready(error),
            }
        }
        let looking = self.looking.get_or_insert_with(|| Box::pin(tokio::time::sleep(LOOK)));
        loop {
            ready!(looking.as_mut().poll(cx));
            if let Some(error) = wire.stream.look() {
                return Poll::Ready(error);
            }
            looking.as_mut().reset(tokio::time::Instant::now() + LOOK);
        }
    }
}

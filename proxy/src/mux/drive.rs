//! The driver of a carrier: the only one who reads and writes its TLS connection. It writes once all that its streams
//! had ready, in as few records as they fit into, because the kernel's sends are what a request costs.

use super::carrier::{Carrier, Opened, Round};
use crate::{
    scratch,
    tls::{codec::FLIGHT, stream::TlsStream},
};
use remora_core::{mux::Error, time::Time};
use remora_runtime::{
    clock,
    metrics::GaugeGuard,
    tasks::{Drain, Guard},
};
use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::io::AsyncWrite as _;

/// How often a carrier is looked at: is the peer alive, does anybody use it?
const TICK: Duration = Duration::from_secs(10);
/// Ticks without a stream after which the side that dialled ends a carrier.
const IDLE_TICKS: u32 = 6;
/// How long the peer is waited for after everything was said.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Drives one carrier.
pub(super) struct Driver {
    tls: Box<TlsStream>,
    carrier: Arc<Carrier>,
    drain: Drain,
    /// A drain waits for what streams have written, not only for the streams.
    busy: Option<Guard>,
    round: Round,
    heard: bool,
    pinged: bool,
    idle: u32,
    /// Whether this side dialled, so that it ends what nobody uses.
    dialled: bool,
    _counted: GaugeGuard,
}

impl Driver {
    pub(super) fn new(tls: Box<TlsStream>, carrier: Arc<Carrier>, drain: Drain) -> Self {
        let dialled = tls.is_client();
        let counted = carrier.metrics.carrier();
        Self {
            tls,
            carrier,
            drain,
            busy: None,
            round: Round::default(),
            heard: false,
            pinged: false,
            idle: 0,
            dialled,
            _counted: counted,
        }
    }

    /// Drives the carrier to its end and says how it ended, handing what the peer opens to `opened`.
    pub(super) async fn run(mut self, mut opened: impl FnMut(Opened)) -> Result<(), Error> {
        let drain = self.drain.clone();
        let draining = drain.draining();
        tokio::pin!(draining);
        let mut tick = tokio::time::interval(TICK);
        tick.tick().await;
        let mut told = false;
        // What came with the end of the handshake.
        let early = self.tls.take_plain();
        deliver(&self.carrier, clock::now(), &early);
        let ended = loop {
            tokio::select! {
                biased;
                ended = poll_fn(|cx| self.poll(cx, &mut opened)) => break ended,
                () = &mut draining, if !told => {
                    told = true;
                    self.carrier.go_away();
                }
                _ = tick.tick() => if !self.tick() { break Err(Error::Lost) },
            }
        };
        // The peer may have to read our last word before it can be told apart from a reset.
        let _ = tokio::time::timeout(LAST_WORDS, poll_fn(|cx| self.poll_close(cx))).await;
        ended
    }

    /// Is the peer alive? Does anybody need the carrier?
    fn tick(&mut self) -> bool {
        let mut shared = self.carrier.lock();
        shared.end_lingering();
        if shared.session.is_idle() {
            self.idle += 1;
            shared.release();
        } else {
            self.idle = 0;
        }
        let is_idle = self.idle > 0;
        drop(shared);
        if std::mem::take(&mut self.heard) || is_idle {
            self.pinged = false;
        } else if self.pinged {
            return false;
        } else {
            self.pinged = true;
            self.carrier.ping(clock::now());
        }
        if self.dialled && self.idle >= IDLE_TICKS {
            self.carrier.go_away();
        }
        true
    }

    fn poll(&mut self, cx: &mut Context<'_>, opened: &mut impl FnMut(Opened)) -> Poll<Result<(), Error>> {
        let mut peer_closed = false;
        let mut received = 0;
        while let Poll::Ready(read) = self.poll_receive(cx) {
            match read {
                Ok(read @ 1..) => {
                    received += read;
                    if received >= scratch::SIZE {
                        // First the streams pass on what has come, while the processor's cache holds it.
                        cx.waker().wake_by_ref();
                        break;
                    }
                }
                Ok(_) => peer_closed = true,
                Err(error) => {
                    self.carrier.lock().lost();
                    tracing::debug!(%error, "a carrier ended");
                    peer_closed = true;
                }
            }
            if peer_closed {
                break;
            }
        }
        let carrier = self.carrier.clone();
        let mut shared = carrier.lock();
        if peer_closed && shared.session.error().is_none() {
            shared.lost();
        }
        carrier.round(&mut shared, &mut self.round);
        let sent = if peer_closed { Poll::Ready(Ok(())) } else { self.poll_send(cx, &carrier, &mut shared) };
        let dead = shared.session.error();
        let is_over = match (&sent, dead) {
            (Poll::Ready(Err(_)), _) | (Poll::Ready(Ok(())), Some(_)) => true,
            (Poll::Ready(Ok(())), None) => {
                // The side that dialled has no stream that could cross our goodbye; the other waits for its end.
                self.dialled && shared.session.is_draining() && shared.session.is_idle()
            }
            (Poll::Pending, _) => false,
        };
        if is_over && dead.is_none() {
            shared.lost();
            carrier.round(&mut shared, &mut self.round);
        }
        let is_busy = !shared.session.is_idle() || sent.is_pending();
        shared.driven_by(cx.waker());
        if shared.session.wants_driver() && sent.is_ready() && !is_over {
            // Somebody has a turn to write; those who were woken go first.
            cx.waker().wake_by_ref();
        }
        drop(shared);
        for one in self.round.opened.drain(..) {
            opened(one);
        }
        self.heard |= std::mem::take(&mut self.round.pong);
        if is_busy && !is_over {
            self.busy.get_or_insert_with(|| self.drain.guard());
        } else {
            self.busy = None;
        }
        match (is_over, sent, dead) {
            (false, ..) => Poll::Pending,
            (true, _, Some(error)) => Poll::Ready(Err(error)),
            (true, Poll::Ready(Ok(())), None) => Poll::Ready(Ok(())),
            (true, _, None) => Poll::Ready(Err(Error::Lost)),
        }
    }

    /// Reads once and hands it through TLS to the session. 0: the peer has closed.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let (carrier, now) = (&self.carrier, clock::now());
        let read = scratch::with(|scratch| {
            self.tls.poll_records(cx, scratch, |content| deliver(carrier, now, content))
        });
        self.heard |= matches!(read, Poll::Ready(Ok(1..)));
        read
    }

    /// Writes what streams have ready until there is no more, or the socket takes no more.
    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        carrier: &Arc<Carrier>,
        shared: &mut super::carrier::Shared,
    ) -> Poll<io::Result<()>> {
        loop {
            let out = shared.session.out();
            let flight = out.get(..FLIGHT).unwrap_or(out);
            if flight.is_empty() {
                return Pin::new(&mut *self.tls).poll_flush(cx);
            }
            let taken = std::task::ready!(Pin::new(&mut *self.tls).poll_write(cx, flight))?;
            shared.session.written(taken);
            carrier.round(shared, &mut self.round);
        }
    }

    /// Says the last word and waits for the peer to have heard it.
    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let carrier = self.carrier.clone();
        let mut shared = carrier.lock();
        std::task::ready!(self.poll_send(cx, &carrier, &mut shared))?;
        drop(shared);
        std::task::ready!(Pin::new(&mut *self.tls).poll_shutdown(cx))?;
        scratch::with(|scratch| {
            // What still comes is for nobody.
            while std::task::ready!(self.tls.poll_records(cx, scratch, |_| ()))? > 0 {}
            Poll::Ready(Ok(()))
        })
    }
}

impl Drop for Driver {
    /// However a driver ends, also by a panic: its streams must not wait for ever.
    fn drop(&mut self) {
        let mut shared = self.carrier.lock();
        shared.lost();
        self.carrier.round(&mut shared, &mut self.round);
        shared.release();
        drop(shared);
        self.round.opened.clear();
    }
}

/// A dead session takes nothing; what it says last is written before the end.
fn deliver(carrier: &Carrier, now: Time, content: &[u8]) {
    let _ = carrier.lock().session.receive(now, content);
}

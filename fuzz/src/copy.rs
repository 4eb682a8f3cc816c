//! A connection's bytes: whatever the schedule of reads, writes, flushes, half-closes and resets, each side gets the
//! other's bytes in order, all of them and then the end, or the connection fails; nothing waits for what will not come,
//! and no more than one buffer is held for a side that does not read.

use arbitrary::{Arbitrary, Unstructured};
use remora_proxy::{scratch::SIZE, stream::Lend, tcp::Duplex};
use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The description of both ends' schedules.
pub fn copy(data: &[u8]) {
    if let Ok(described) = Described::arbitrary(&mut Unstructured::new(data)) {
        described.holds();
    }
}

/// About so many bytes are enough for one run.
const MOST_SENT: usize = 1024 * 1024;

/// Bytes by their place, so that none can be lost or doubled unseen; 251 is prime.
fn byte_at(at: usize) -> u8 {
    (at % 251) as u8
}

/// Bytes that may be on their way in one direction: read and not written.
const MOST_KEPT: usize = SIZE;

#[derive(Arbitrary, Debug)]
struct Described {
    client: Schedule,
    server: Schedule,
    /// Who is served first when several could be.
    order: u8,
}

/// How an end behaves, one entry per attempt; what comes after is the end of its bytes, and everything is taken.
#[derive(Arbitrary, Debug)]
struct Schedule {
    reads: Vec<Read>,
    writes: Vec<Write>,
    /// Written bytes leave only when they are flushed, as with TLS.
    buffers: bool,
    slow_shutdown: bool,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Read {
    Bytes(u16),
    Many(u8),
    Pending,
    Reset,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Write {
    Takes(u16),
    Pending,
    Zero,
    Broken,
}

impl Described {
    fn holds(&self) {
        let (mut client, mut server) = (End::new(&self.client), End::new(&self.server));
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(woken.clone());
        let mut cx = Context::from_waker(&waker);
        let mut duplex = Duplex::default();
        let steps =
            [&self.client, &self.server].iter().map(|end| end.reads.len() + end.writes.len()).sum::<usize>();
        let mut order = usize::from(self.order);
        for _ in 0..10 * steps + 1000 {
            woken.0.store(false, Ordering::Relaxed);
            let polled = duplex.poll(&mut cx, &mut client, &mut server);
            client.is_heard_by(&server);
            server.is_heard_by(&client);
            if let Poll::Ready(outcome) = polled {
                return Self::ended(&outcome, &client, &server);
            }
            if woken.0.load(Ordering::Relaxed) {
                continue;
            }
            for end in [&client, &server] {
                let waits = end.write_waker.is_some();
                assert!(
                    waits || end.buffered == 0 || end.broken,
                    "{} bytes are not flushed: {self:?}",
                    end.buffered
                );
            }
            let mut waiting: Vec<Waker> = [&mut client, &mut server]
                .into_iter()
                .flat_map(|end| [end.read_waker.take(), end.write_waker.take()])
                .flatten()
                .collect();
            assert!(!waiting.is_empty(), "it waits for nothing: {self:?}");
            order = order.wrapping_mul(31).wrapping_add(7);
            let one = waiting.swap_remove(order % waiting.len());
            one.wake();
        }
        panic!("it never ends: {self:?}");
    }

    fn ended(outcome: &io::Result<()>, client: &End, server: &End) {
        let reset = client.reset || server.reset;
        assert_eq!(outcome.is_err(), reset, "{outcome:?}");
        if reset {
            return;
        }
        for (from, to) in [(client, server), (server, client)] {
            if !to.broken {
                assert!(from.ended, "the end was not waited for");
                assert_eq!(to.received, from.sent);
                assert!(to.shut_down, "the end was not passed on");
            }
        }
    }
}

#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// One end as the copy sees it.
struct End {
    reads: Vec<Read>,
    writes: Vec<Write>,
    buffers: bool,
    slow_shutdown: bool,
    /// Bytes that this end has said.
    sent: usize,
    ended: bool,
    reset: bool,
    /// Bytes that it has heard.
    received: usize,
    /// Bytes that were written and have not left.
    buffered: usize,
    broken: bool,
    shut_down: bool,
    read_waker: Option<Waker>,
    write_waker: Option<Waker>,
}

impl End {
    fn new(schedule: &Schedule) -> Self {
        let reversed = |reads: &[Read]| reads.iter().take(200).rev().copied().collect();
        Self {
            reads: reversed(&schedule.reads),
            writes: schedule.writes.iter().take(200).rev().copied().collect(),
            buffers: schedule.buffers,
            slow_shutdown: schedule.slow_shutdown,
            sent: 0,
            ended: false,
            reset: false,
            received: 0,
            buffered: 0,
            broken: false,
            shut_down: false,
            read_waker: None,
            write_waker: None,
        }
    }

    /// What the other end has not got yet is not much.
    fn is_heard_by(&self, other: &Self) {
        let kept = self.sent - other.received - other.buffered;
        assert!(other.broken || kept <= MOST_KEPT, "{kept} bytes are kept");
    }

    fn flush(&mut self) {
        self.received += std::mem::take(&mut self.buffered);
    }
}

impl AsyncRead for End {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        assert!(!self.ended && !self.reset, "read after the end");
        let wanted = match self.reads.pop() {
            Some(Read::Bytes(count)) => usize::from(count).max(1),
            Some(Read::Many(times)) => {
                if times % 16 > 1 && self.sent < MOST_SENT {
                    self.reads.push(Read::Many(times % 16 - 1));
                }
                buf.remaining()
            }
            Some(Read::Pending) => {
                self.read_waker = Some(cx.waker().clone());
                return Poll::Pending;
            }
            Some(Read::Reset) => {
                self.reset = true;
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            None => {
                self.ended = true;
                return Poll::Ready(Ok(()));
            }
        };
        let from = self.sent;
        self.sent += wanted.min(buf.remaining());
        buf.put_slice(&(from..self.sent).map(byte_at).collect::<Vec<u8>>());
        Poll::Ready(Ok(()))
    }
}

impl Lend for End {}

impl AsyncWrite for End {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        assert!(!self.shut_down, "written after the end");
        assert!(!bytes.is_empty(), "an empty write says nothing");
        if self.broken {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let taken = match self.writes.pop() {
            Some(Write::Takes(count)) => bytes.len().min(usize::from(count).max(1)),
            Some(Write::Pending) => {
                self.write_waker = Some(cx.waker().clone());
                return Poll::Pending;
            }
            Some(Write::Zero) => {
                self.broken = true;
                return Poll::Ready(Ok(0));
            }
            Some(Write::Broken) => {
                self.broken = true;
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            None => bytes.len(),
        };
        let from = self.received + self.buffered;
        let expected = bytes[..taken].iter().zip(from..).all(|(byte, at)| *byte == byte_at(at));
        assert!(expected, "other bytes, or in another order, at {from}");
        self.buffered += taken;
        if !self.buffers {
            self.flush();
        }
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.writes.last() {
            Some(Write::Pending) if self.buffers => {
                self.writes.pop();
                self.write_waker = Some(cx.waker().clone());
                Poll::Pending
            }
            Some(Write::Broken) if self.buffers => {
                self.broken = true;
                Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
            }
            Some(_) | None => {
                self.flush();
                Poll::Ready(Ok(()))
            }
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        assert!(!self.shut_down, "ended twice");
        if std::mem::take(&mut self.slow_shutdown) {
            self.write_waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        self.flush();
        self.shut_down = true;
        Poll::Ready(Ok(()))
    }
}

//! One side of a carrier as its streams see it: shared between them and the driver, on one thread.

use crate::metrics::MuxMetrics;
use remora_core::{
    header::SessionProtocol,
    mux::{CannotOpen, Chunk, Code, Ended, Event, Session, StreamId, TooLate},
    time::Time,
};
use remora_runtime::metrics::GaugeGuard;
use std::{
    collections::HashMap,
    io,
    num::NonZeroU16,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What a peer may still send on a stream that was finished and dropped, in bytes: about what a socket's buffer would
/// swallow before the reset.
const LINGER_BYTES: usize = 256 * 1024;

/// A carrier: its protocol's state, and who waits for what.
pub struct Carrier {
    shared: Mutex<Shared>,
    pub(super) metrics: Arc<MuxMetrics>,
}

/// Under the lock, which only one thread ever takes.
pub(super) struct Shared {
    pub(super) session: Session,
    waiting: HashMap<StreamId, Waiting>,
    lingering: HashMap<StreamId, Lingering>,
    driver: Option<Waker>,
}

/// Who waits for a stream, and how it ended.
#[derive(Default)]
struct Waiting {
    read: Option<Waker>,
    write: Option<Waker>,
    ended: Option<Ended>,
}

/// A stream that was finished and dropped: what still comes is read for nobody, as a socket's would be.
#[derive(Default)]
struct Lingering {
    bytes: usize,
    is_old: bool,
}

/// A stream that the peer opened.
pub(super) struct Opened {
    pub(super) stream: MuxStream,
    pub(super) port: NonZeroU16,
    pub(super) protocol: Option<SessionProtocol>,
}

/// What the events of one round came to.
#[derive(Default)]
pub(super) struct Round {
    pub(super) opened: Vec<Opened>,
    pub(super) pong: bool,
}

impl Carrier {
    pub(super) fn new(session: Session, metrics: &Arc<MuxMetrics>) -> Arc<Self> {
        let shared = Shared { session, waiting: HashMap::new(), lingering: HashMap::new(), driver: None };
        Arc::new(Self { shared: Mutex::new(shared), metrics: metrics.clone() })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a stream to the peer's application.
    pub(super) fn open(
        self: &Arc<Self>,
        port: NonZeroU16,
        protocol: Option<SessionProtocol>,
    ) -> Result<MuxStream, CannotOpen> {
        let mut shared = self.lock();
        let id = shared.session.open(port, protocol)?;
        shared.waiting.insert(id, Waiting::default());
        shared.nudge();
        drop(shared);
        Ok(MuxStream::new(self.clone(), id))
    }

    /// No new streams; the carrier ends when it has none.
    pub(super) fn go_away(&self) {
        let mut shared = self.lock();
        shared.session.go_away();
        shared.nudge();
    }

    /// Asks for a sign of life.
    pub(super) fn ping(&self, now: Time) {
        let mut shared = self.lock();
        shared.session.ping(u64::try_from(now.0.as_nanos()).unwrap_or_default());
        shared.nudge();
    }

    pub(super) fn streams(&self) -> usize {
        self.lock().session.streams()
    }

    /// Deals with all that has happened: wakes who waited, and returns what is the driver's to do.
    pub(super) fn round(self: &Arc<Self>, shared: &mut Shared, round: &mut Round) {
        while let Some(event) = shared.session.poll_event() {
            match event {
                Event::Opened { id, port, protocol } => {
                    shared.waiting.insert(id, Waiting::default());
                    let stream = MuxStream::new(self.clone(), id);
                    round.opened.push(Opened { stream, port, protocol });
                }
                Event::Readable(id) => match shared.waiting.get_mut(&id) {
                    Some(waiting) => wake(&mut waiting.read),
                    None => shared.swallow(id),
                },
                Event::Writable(id) => {
                    if let Some(waiting) = shared.waiting.get_mut(&id) {
                        wake(&mut waiting.write);
                    }
                }
                Event::Ended(id, why) => {
                    shared.lingering.remove(&id);
                    if let Some(waiting) = shared.waiting.get_mut(&id) {
                        waiting.ended = Some(why);
                        wake(&mut waiting.read);
                        wake(&mut waiting.write);
                    }
                }
                Event::Pong(_) => round.pong = true,
                // What the peer takes and whether it goes away is asked of the session when a stream is opened.
                Event::Settings | Event::GoAway(_) => {}
            }
        }
    }
}

impl Shared {
    /// Wakes the driver if there is something for it to do.
    fn nudge(&mut self) {
        if self.session.wants_driver() {
            wake(&mut self.driver);
        }
    }

    /// Whom to wake when there is something to do.
    pub(super) fn driven_by(&mut self, waker: &Waker) {
        match &mut self.driver {
            Some(driver) => driver.clone_from(waker),
            None => self.driver = Some(waker.clone()),
        }
    }

    /// The carrier is gone: everybody hears of it.
    pub(super) fn lost(&mut self) {
        self.session.lost();
    }

    /// Ends streams that have lingered since the last call.
    pub(super) fn end_lingering(&mut self) {
        let old: Vec<StreamId> =
            self.lingering.iter().filter(|(_, one)| one.is_old).map(|(id, _)| *id).collect();
        for id in old {
            self.lingering.remove(&id);
            self.session.reset(id, Code::TimedOut);
        }
        self.lingering.values_mut().for_each(|one| one.is_old = true);
    }

    /// Gives back the memory of whatever is empty.
    pub(super) fn release(&mut self) {
        self.session.release();
        self.lingering.shrink_to_fit();
        self.waiting.shrink_to_fit();
    }

    /// Reads a stream that nobody reads any more, to its end or as far as it may go.
    fn swallow(&mut self, id: StreamId) {
        let Some(lingering) = self.lingering.get_mut(&id) else { return };
        loop {
            let count = match self.session.chunk(id) {
                Chunk::Bytes(bytes) => bytes.len(),
                Chunk::Wait => return,
                Chunk::End | Chunk::Gone => break,
            };
            lingering.bytes += count;
            if lingering.bytes > LINGER_BYTES {
                self.session.reset(id, Code::Cancelled);
                break;
            }
            self.session.consume(id, count);
        }
        self.lingering.remove(&id);
    }

    fn why(&self, id: StreamId) -> Option<io::Error> {
        let ended = self.waiting.get(&id)?.ended.clone()?;
        let kind = match &ended {
            Ended::Refused(_) | Ended::GoAway | Ended::NeverSent(_) => io::ErrorKind::ConnectionRefused,
            Ended::Reset(_) | Ended::Carrier(_) => io::ErrorKind::ConnectionReset,
        };
        Some(io::Error::new(kind, StreamEnded(ended)))
    }
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

/// Keeps the waker that is to be woken next.
fn keep(place: &mut Option<Waker>, cx: &Context<'_>) {
    match place {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *place = Some(cx.waker().clone()),
    }
}

/// A stream ended before its time; [`Ended`] says how, and whether anything of it was processed.
#[derive(Debug, thiserror::Error)]
#[error("{}", text(.0))]
pub struct StreamEnded(pub Ended);

fn text(ended: &Ended) -> String {
    match ended {
        Ended::Refused(reason) => format!("the other proxy refused the stream: {reason}"),
        Ended::GoAway => "the other proxy takes no more streams".to_owned(),
        Ended::NeverSent(error) => format!("{error}, before the stream was sent"),
        Ended::Reset(Code::Cancelled) => "the connection was reset at the other proxy".to_owned(),
        Ended::Reset(Code::Revoked) => "the other proxy's policy changed".to_owned(),
        Ended::Reset(Code::TimedOut) => "the other proxy waited too long".to_owned(),
        Ended::Reset(Code::Internal) => "the other proxy failed".to_owned(),
        Ended::Reset(Code::Other(code)) => format!("the other proxy ended the stream with code {code}"),
        Ended::Carrier(error) => error.to_string(),
    }
}

/// One stream of a carrier: a connection.
pub struct MuxStream {
    carrier: Arc<Carrier>,
    id: StreamId,
    finished: bool,
    /// The peer's end was read.
    ended: bool,
    reset: AtomicBool,
    _counted: GaugeGuard,
}

impl MuxStream {
    fn new(carrier: Arc<Carrier>, id: StreamId) -> Self {
        let counted = carrier.metrics.stream();
        Self { carrier, id, finished: false, ended: false, reset: AtomicBool::new(false), _counted: counted }
    }

    /// Does not take a stream that the peer has opened. Nothing of it was looked at, so the peer may go elsewhere.
    pub(super) fn refuse(self, reason: &str) -> Result<(), TooLate> {
        let mut shared = self.carrier.lock();
        let refused = shared.session.refuse(self.id, reason);
        shared.nudge();
        refused
    }

    /// How it ended before its time, if it has.
    pub fn error(&self) -> Option<io::Error> {
        self.carrier.lock().why(self.id)
    }

    /// Lends up to `most` bytes to `take` where they lie; what it does not take stays. See [`Lend`](crate::stream::Lend).
    pub fn poll_lend(
        &mut self,
        cx: &mut Context<'_>,
        most: usize,
        take: impl FnOnce(&mut Context<'_>, &[u8]) -> usize,
    ) -> Poll<io::Result<usize>> {
        let mut shared = self.carrier.lock();
        let shared = &mut *shared;
        match shared.session.chunk(self.id) {
            Chunk::Bytes(bytes) => {
                let bytes = bytes.get(..most).unwrap_or(bytes);
                // Whoever writes it to a stream of this carrier would wait for himself: no connection joins two of one.
                let taken = take(cx, bytes);
                if taken == 0 {
                    return Poll::Pending;
                }
                shared.session.consume(self.id, taken);
                shared.nudge();
                return Poll::Ready(Ok(taken));
            }
            Chunk::Wait => {
                keep(&mut shared.waiting.entry(self.id).or_default().read, cx);
                return Poll::Pending;
            }
            Chunk::End => self.ended = true,
            Chunk::Gone => {
                if let Some(error) = shared.why(self.id) {
                    return Poll::Ready(Err(error));
                }
            }
        }
        shared.nudge();
        Poll::Ready(Ok(0))
    }

    /// Makes the close of this stream a reset.
    pub fn reset_on_close(&self) {
        self.reset.store(true, Ordering::Relaxed);
    }
}

impl AsyncRead for MuxStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let mut shared = this.carrier.lock();
        let before = buf.filled().len();
        while buf.remaining() > 0 {
            let count = match shared.session.chunk(this.id) {
                Chunk::Bytes(bytes) => {
                    let bytes = bytes.get(..buf.remaining()).unwrap_or(bytes);
                    buf.put_slice(bytes);
                    bytes.len()
                }
                Chunk::Wait | Chunk::End | Chunk::Gone if buf.filled().len() > before => break,
                Chunk::Wait => {
                    keep(&mut shared.waiting.entry(this.id).or_default().read, cx);
                    return Poll::Pending;
                }
                Chunk::End => {
                    this.ended = true;
                    break;
                }
                Chunk::Gone => match shared.why(this.id) {
                    Some(error) => return Poll::Ready(Err(error)),
                    None => break,
                },
            };
            shared.session.consume(this.id, count);
        }
        shared.nudge();
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for MuxStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let mut shared = this.carrier.lock();
        let polled = match shared.session.write_vectored(this.id, bufs.iter().map(|buf| &**buf)) {
            Ok(0) if bufs.iter().any(|buf| !buf.is_empty()) => {
                keep(&mut shared.waiting.entry(this.id).or_default().write, cx);
                Poll::Pending
            }
            Ok(count) => Poll::Ready(Ok(count)),
            Err(_) => {
                let why = shared.why(this.id).unwrap_or_else(|| io::ErrorKind::BrokenPipe.into());
                return Poll::Ready(Err(why));
            }
        };
        shared.nudge();
        polled
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// The driver writes what is there when everybody has had their turn.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.finished {
            this.finished = true;
            let mut shared = this.carrier.lock();
            // A stream that is gone already has told so, or will when it is read.
            let _ = shared.session.finish(this.id);
            shared.nudge();
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for MuxStream {
    fn drop(&mut self) {
        let mut shared = self.carrier.lock();
        shared.waiting.remove(&self.id);
        let shared = &mut *shared;
        if self.finished && !self.ended && !self.reset.load(Ordering::Relaxed) {
            // What was written must arrive: a reset would overtake it.
            shared.lingering.insert(self.id, Lingering::default());
            shared.swallow(self.id);
        } else if !(self.finished && self.ended) {
            shared.session.reset(self.id, Code::Cancelled);
        }
        shared.nudge();
    }
}

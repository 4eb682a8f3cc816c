//! Many streams over one connection between two of our proxies: the protocol of ALPN `remora.io/mux/1`, without its
//! sockets. docs/mux.md has frames, limits, states and errors.
//!
//! A [`Session`] is one side of a carrier. Bytes from the carrier go into [`Session::receive`], bytes for it come out
//! of [`Session::out`]; what happened is asked with [`Session::poll_event`]. Streams are read and written by id.
//! Whoever drives it does after anything that [`Session::wants_driver`] is true for: events until there are none, then
//! one write of all that is in `out`.

mod buffers;
mod error;
mod flood;
mod flow;
mod frame;
mod life;
mod out;
mod read;
mod receive;
mod table;
#[cfg(test)]
mod tests;
mod write;

use self::{
    buffers::{Buffers, GENEROUS, SLACK, TIGHT},
    flood::Counters,
    flow::Account,
    frame::{Decoder, Frame, LEAST_WINDOW, MAX_PAYLOAD, MAX_WINDOW, Settings},
    out::Out,
    table::{Slot, Stream, Table},
};
pub use self::{
    error::{Away, CannotOpen, Code, Ended, Error, Gone, TooLate},
    flood::Flood,
    frame::Kind,
    read::{Chunk, Read},
};
use crate::header::SessionProtocol;
use alloc::{collections::VecDeque, vec::Vec};
use core::num::NonZeroU16;

/// The ALPN protocol of a carrier.
pub const ALPN: &[u8] = b"remora.io/mux/1";
/// The longest text of a refusal, in bytes.
pub const MAX_REASON: usize = 128;
/// What a stream may write in its turn, in bytes: an answer of 64 KiB and its head.
const TURN: usize = 5 * MAX_PAYLOAD;
/// Control frames that may wait beyond [`Limits::out`] before the peer counts as one that does not read, in bytes.
const MAX_ANSWERS: usize = 1 << 18;

/// What one side takes, and keeps. All in bytes but where it says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Streams at once, 1 to 65536: a server refuses more, a client does not open more.
    pub streams: u32,
    /// What one stream may have unread, at most 2^30.
    pub window: u32,
    /// What every stream may have unread whatever others do, at least 4096; part of its window.
    pub guaranteed: u32,
    /// What all streams together may have unread beyond that, at most 2^30.
    pub shared: u32,
    /// DATA that waits to be written, at least 80 KiB.
    pub out: usize,
    /// Streams that a client may reset within a second before they were answered. A number.
    pub resets: u32,
}

impl Default for Limits {
    /// For a LAN: a bulk stream has 512 KiB on its way, 8 of them do not disturb each other; 20 MiB unread at worst.
    fn default() -> Self {
        Self {
            streams: 1024,
            window: 1 << 19,
            guaranteed: 1 << 14,
            shared: 1 << 22,
            out: 1 << 18,
            resets: 2048,
        }
    }
}

impl Limits {
    /// Numbers outside their range become the nearest within.
    fn within_range(self) -> Self {
        let guaranteed = self.guaranteed.clamp(LEAST_WINDOW, MAX_WINDOW);
        Self {
            streams: self.streams.clamp(1, 1 << 16),
            window: self.window.clamp(guaranteed, MAX_WINDOW),
            guaranteed,
            shared: self.shared.min(MAX_WINDOW),
            out: self.out.max(TURN),
            resets: self.resets,
        }
    }

    /// Bytes that all streams together can have unread.
    pub fn most_unread(&self) -> usize {
        let Self { streams, window, guaranteed, shared, .. } = self.within_range();
        let (streams, guaranteed) = (streams as usize, guaranteed as usize);
        (streams * guaranteed + shared as usize).min(streams * window as usize)
    }

    /// Memory that a session can need, in bytes, for any peer and any order of calls: [`Session::allocated`] is never
    /// more, as long as no more than 64 KiB are received at once and events are asked for in between.
    pub fn most_allocated(&self) -> usize {
        let Self { streams, out, .. } = self.within_range();
        let streams = streams as usize;
        let unread = SLACK * self.most_unread() + streams * TIGHT + 2 * GENEROUS;
        // Vectors double when they grow. A refusal or reset per stream may wait beside all answers.
        let waiting = 2 * (out + MAX_ANSWERS + (1 << 18) + streams * (MAX_REASON + 16));
        unread + waiting + 2 * streams * 256 + (1 << 12)
    }
}

/// A stream of one carrier. Ids begin with 1 and are never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(u32);

impl StreamId {
    /// Its number on the wire.
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// What happened, for those who have to act. Each is told once, however often it happened meanwhile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The peer's SETTINGS have come: from here on its real limits count.
    Settings,
    /// A client opened a stream. It may be refused until it is read from or written to.
    Opened {
        /// Its id.
        id: StreamId,
        /// The application's port.
        port: NonZeroU16,
        /// What is spoken; `None` means opaque.
        protocol: Option<SessionProtocol>,
    },
    /// More bytes, or the end, can be read than when it was last asked.
    Readable(StreamId),
    /// A write took nothing; now is its turn. A turn that is not used may pass to others.
    Writable(StreamId),
    /// The stream is over before its time, both ways; unread bytes are gone. The last that is heard of it.
    Ended(StreamId, Ended),
    /// The peer takes or opens no more streams; with an error the carrier is dead as well.
    GoAway(Away),
    /// The answer to a [`Session::ping`], with its number; of several the last.
    Pong(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Client,
    Server,
}

/// Events that are not a stream's.
#[derive(Debug, Default)]
struct Notices {
    settings: bool,
    away: Option<Away>,
    pong: Option<u64>,
}

/// One side of a carrier.
#[derive(Debug)]
pub struct Session {
    role: Role,
    limits: Limits,
    /// What the peer takes, once it has said so.
    peer: Option<Settings>,
    table: Table,
    /// The highest id that was opened.
    last: u32,
    decoder: Decoder,
    /// The stream whose DATA frame is being received, and whether that is its last. `None`: it is of no use any more.
    incoming: Option<(u32, bool)>,
    receiving: Account,
    sending: Account,
    buffers: Buffers,
    out: Out,
    /// Streams with an event, each once.
    events: VecDeque<Slot>,
    notices: Notices,
    /// Streams for which the sender is owed credit that is not worth a write of its own; each once.
    owed: VecDeque<Slot>,
    /// Streams that want to write and wait for their turn, or for the shared part; each in one of them, once.
    turns: VecDeque<Slot>,
    sharers: VecDeque<Slot>,
    /// Streams whose turn it is.
    granted: Vec<Slot>,
    /// `poll_event` has said that there is nothing left, and what was written since it did so the time before.
    round_is_over: bool,
    wrote: bool,
    /// The last stream that a GOAWAY of ours or the peer's leaves in.
    away_sent: Option<u32>,
    away_received: Option<u32>,
    counters: Counters,
    dead: Option<Error>,
}

impl Session {
    /// The side that dialled. It opens streams, at once if need be: until the peer's SETTINGS come 64 streams of 4 KiB
    /// each are assumed to be welcome.
    pub fn client(limits: Limits) -> Self {
        Self::new(Role::Client, limits)
    }

    /// The side that accepted.
    pub fn server(limits: Limits) -> Self {
        Self::new(Role::Server, limits)
    }

    fn new(role: Role, limits: Limits) -> Self {
        let limits = limits.within_range();
        let Limits { streams, window, guaranteed, shared, resets, .. } = limits;
        let ours = Settings { features: 0, streams, window, guaranteed, shared };
        let mut out = Out::default();
        out.frame(&Frame::Settings(ours));
        Self {
            role,
            limits,
            peer: None,
            table: Table::default(),
            last: 0,
            decoder: Decoder::default(),
            incoming: None,
            receiving: Account::new(&ours),
            sending: Account::new(&Settings::INITIAL),
            buffers: Buffers::default(),
            out,
            events: VecDeque::new(),
            notices: Notices::default(),
            owed: VecDeque::new(),
            turns: VecDeque::new(),
            sharers: VecDeque::new(),
            granted: Vec::new(),
            round_is_over: false,
            wrote: false,
            away_sent: None,
            away_received: None,
            counters: Counters::new(resets),
            dead: None,
        }
    }

    /// Opens a stream. Data may be written at once; it travels with the OPEN.
    pub fn open(
        &mut self,
        port: NonZeroU16,
        protocol: Option<SessionProtocol>,
    ) -> Result<StreamId, CannotOpen> {
        if self.role != Role::Client {
            return Err(CannotOpen::NotClient);
        }
        if let Some(error) = self.dead {
            return Err(CannotOpen::Dead(error));
        }
        if self.away_sent.is_some() || self.away_received.is_some() {
            return Err(CannotOpen::Draining);
        }
        let id = self.last.checked_add(1).ok_or(CannotOpen::Exhausted)?;
        let welcome = self.peer.unwrap_or(Settings::INITIAL).streams.min(self.limits.streams);
        if self.table.len() >= welcome as usize {
            return Err(CannotOpen::Full);
        }
        if self.out.len() >= self.limits.out {
            return Err(CannotOpen::Busy);
        }
        self.last = id;
        let mut stream = Stream::new(id, port, protocol);
        stream.opened_at = self.out.total();
        self.table.add(stream);
        self.out.frame(&Frame::Open { id, port, protocol });
        Ok(StreamId(id))
    }

    /// The next thing that happened, if any. To be asked until there is none, after every `receive` and `written`, and
    /// whenever [`wants_driver`](Self::wants_driver) says so.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.settle_debts();
        if core::mem::take(&mut self.notices.settings) {
            return Some(Event::Settings);
        }
        let noticed = self.notices.away.take().map(Event::GoAway);
        let noticed = noticed.or_else(|| self.notices.pong.take().map(Event::Pong));
        noticed.or_else(|| self.stream_event()).or_else(|| self.next_turn().map(Event::Writable))
    }

    /// Is there something to do for whoever drives this: events, bytes to write, or a turn to pass on? Then he does it
    /// after those had their turn whom the last events woke.
    pub fn wants_driver(&self) -> bool {
        !self.out.is_empty()
            || !self.events.is_empty()
            || self.notices.settings
            || self.notices.away.is_some()
            || self.notices.pong.is_some()
            || self.has_turns()
    }

    /// Bytes to write to the carrier. The last frame of them may still grow: nothing may come between this and the
    /// [`written`](Self::written) that says how many of them were taken.
    pub fn out(&self) -> &[u8] {
        self.out.pending()
    }

    /// The first `count` bytes of [`out`](Self::out) were taken by the carrier.
    pub fn written(&mut self, count: usize) {
        self.out.written(count);
    }

    /// Asks the peer for a sign of life: [`Event::Pong`] with the same number. At most 100 in a second.
    pub fn ping(&mut self, number: u64) {
        if self.dead.is_none() {
            self.out.frame(&Frame::Ping(number));
        }
    }

    /// Takes or opens no more streams. Those that are open go on; when [`is_idle`](Self::is_idle), nothing is lost by
    /// closing the carrier.
    pub fn go_away(&mut self) {
        if self.dead.is_none() && self.away_sent.is_none() {
            let last = self.accepted();
            self.away_sent = Some(last);
            self.out.frame(&Frame::GoAway { last, why: Away::Drain });
        }
    }

    /// The connection below ended, or is about to be dropped: all streams end but those of which everything has come,
    /// which can be read to their end. Nothing waits to be written any more.
    pub fn lost(&mut self) {
        if self.dead.is_none() {
            self.fail(Error::Lost);
        }
        self.out = Out::default();
    }

    /// Why the carrier is dead, if it is. `out` may hold a last word for the peer.
    pub fn error(&self) -> Option<Error> {
        self.dead
    }

    /// Streams that are open, or not yet read to their end, or of whose end the caller was not told.
    pub fn streams(&self) -> usize {
        self.table.len()
    }

    /// Are there no streams?
    pub fn is_idle(&self) -> bool {
        self.table.len() == 0
    }

    /// Has one side said GOAWAY, or is it dead: may no stream be opened any more?
    pub fn is_draining(&self) -> bool {
        self.dead.is_some() || self.away_sent.is_some() || self.away_received.is_some()
    }

    /// Gives back the memory of whatever is empty: for a carrier on which nothing has happened for a while.
    pub fn release(&mut self) {
        self.out.release();
        self.buffers.release();
        self.decoder.release();
        self.table.release();
        if self.events.is_empty() {
            self.events = VecDeque::new();
        }
        if self.owed.is_empty() {
            self.owed = VecDeque::new();
        }
        if self.turns.is_empty() && self.sharers.is_empty() && self.granted.is_empty() {
            (self.turns, self.sharers, self.granted) = (VecDeque::new(), VecDeque::new(), Vec::new());
        }
    }

    /// Memory behind this session, in bytes; see [`Limits::most_allocated`].
    pub fn allocated(&self) -> usize {
        let queued = self.events.capacity()
            + self.owed.capacity()
            + self.turns.capacity()
            + self.sharers.capacity()
            + self.granted.capacity();
        self.buffers.allocated()
            + self.out.allocated()
            + self.decoder.allocated()
            + self.table.allocated()
            + queued * size_of::<Slot>()
    }

    /// Bytes that were received and not consumed; see [`Limits::most_unread`].
    pub fn unread(&self) -> usize {
        self.buffers.unread()
    }

    /// The last stream that the peer opened and we took.
    fn accepted(&self) -> u32 {
        match self.role {
            Role::Client => 0,
            Role::Server => self.away_sent.unwrap_or(self.last),
        }
    }
}

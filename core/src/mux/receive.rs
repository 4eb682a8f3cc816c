//! What the peer sent: one function per frame, each of which says what is allowed.

use super::{
    Error, Flood, MAX_ANSWERS, Role, Session,
    error::{Away, Code, Ended},
    flood::SMALL_CREDIT,
    frame::{Frame, Kind, Piece, Settings},
    table::{Slot, Stream},
};
use crate::{header::SessionProtocol, time::Time};
use alloc::boxed::Box;
use core::num::NonZeroU16;

impl Session {
    /// Takes bytes from the carrier, split anywhere: what is there of a frame's payload is handed on at once. `now`
    /// tells frames of one second from those of another.
    ///
    /// After an error the carrier is dead: every stream that still needed it has [`Ended`], `out` may hold a last word,
    /// and every later call has the same error.
    pub fn receive(&mut self, now: Time, bytes: &[u8]) -> Result<(), Error> {
        if let Some(error) = self.dead {
            return Err(error);
        }
        self.counters.at(now);
        self.take_pieces(bytes).inspect_err(|error| self.fail(*error))
    }

    fn take_pieces(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        while let Some(piece) = self.decoder.next(&mut bytes)? {
            if self.out.len() > self.limits.out + MAX_ANSWERS {
                return Err(Error::Unread);
            }
            match piece {
                Piece::Frame(Frame::Settings(settings)) => self.settings(settings)?,
                _ if self.peer.is_none() => return Err(Error::NoSettings),
                Piece::Data { id, length, end } => self.data(id, length, end)?,
                Piece::Bytes(bytes) => self.bytes(bytes),
                Piece::Frame(Frame::Open { id, port, protocol }) => self.opened(id, port, protocol)?,
                Piece::Frame(Frame::Window { id, credit }) => self.window(id, credit)?,
                Piece::Frame(Frame::Reset { id, code }) => self.peer_reset(id, code)?,
                Piece::Frame(Frame::Refused { id, reason }) => self.refused(id, reason)?,
                Piece::Frame(Frame::Ping(number)) => {
                    self.counters.count(Flood::Pings)?;
                    self.out.frame(&Frame::Pong(number));
                }
                Piece::Frame(Frame::Pong(number)) => {
                    self.counters.count(Flood::Pings)?;
                    self.notices.pong = Some(number);
                }
                Piece::Frame(Frame::GoAway { last, why }) => self.peer_goes_away(last, why)?,
                Piece::Ignored => self.counters.count(Flood::Ignored)?,
                Piece::Swallowed => {}
            }
        }
        Ok(())
    }

    fn settings(&mut self, settings: Settings) -> Result<(), Error> {
        if self.peer.is_some() {
            return Err(Error::SettingsTwice);
        }
        self.peer = Some(settings);
        self.sending.replace(&settings);
        self.notices.settings = true;
        for slot in self.table.above(0) {
            self.credited(slot);
        }
        Ok(())
    }

    fn opened(&mut self, id: u32, port: NonZeroU16, protocol: Option<SessionProtocol>) -> Result<(), Error> {
        if self.role == Role::Client {
            return Err(Error::OpenByServer);
        }
        if self.away_received.is_some() {
            return Err(Error::OpenAfterGoAway);
        }
        if self.last.checked_add(1) != Some(id) {
            return Err(Error::OpenOrder);
        }
        self.last = id;
        if self.away_sent.is_some() {
            // Our GOAWAY crosses it, and tells that it was not taken.
            self.counters.count(Flood::Late)
        } else if self.table.len() >= self.limits.streams as usize {
            self.send_refusal(id, "too many streams");
            self.counters.count(Flood::Opens)
        } else {
            let slot = self.table.add(Stream { is_new: true, ..Stream::new(id, port, protocol) });
            self.queue(slot);
            Ok(())
        }
    }

    /// A DATA frame begins. All of it counts at once, also what has not come yet.
    fn data(&mut self, id: u32, length: usize, end: bool) -> Result<(), Error> {
        self.incoming = None;
        if length == 0 && !end {
            self.counters.count(Flood::Empty)?;
        }
        let Some(slot) = self.lives(Kind::Data, id)? else { return Ok(()) };
        let Some(stream) = self.table.get_mut(slot) else { return Ok(()) };
        if stream.peer_finished {
            return Err(Error::AfterEnd);
        }
        let held = stream.received.saturating_add(length as u32);
        if self.receiving.exceeds_window(held) {
            return Err(Error::Window);
        }
        self.receiving.change(stream.received, held);
        stream.received = held;
        if self.receiving.exceeds_shared() {
            return Err(Error::Shared);
        }
        stream.answered |= self.role == Role::Client;
        self.incoming = Some((id, end));
        if length == 0 {
            self.data_is_whole();
        }
        Ok(())
    }

    /// Payload of the frame that began last. A stream that has ended meanwhile has no use for it.
    fn bytes(&mut self, bytes: &[u8]) {
        let Some((id, _)) = self.incoming else { return };
        let Some(slot) = self.table.find(id) else { return };
        let Some(stream) = self.table.get_mut(slot).filter(|stream| stream.ended.is_none()) else { return };
        self.buffers.fill(&mut stream.unread, bytes);
        stream.is_readable = true;
        self.queue(slot);
        if self.decoder.remaining() == 0 {
            self.data_is_whole();
        }
    }

    fn data_is_whole(&mut self) {
        let Some((id, end)) = self.incoming.take() else { return };
        if end
            && let Some(slot) = self.table.find(id)
            && let Some(stream) = self.table.get_mut(slot)
        {
            stream.peer_finished = true;
            stream.is_readable = true;
            self.queue(slot);
            // What was read before may be owed.
            self.credit(slot);
        }
    }

    fn window(&mut self, id: u32, credit: u32) -> Result<(), Error> {
        if credit < SMALL_CREDIT {
            self.counters.count(Flood::Credits)?;
        }
        let Some(slot) = self.lives(Kind::Window, id)? else { return Ok(()) };
        let Some(stream) = self.table.get_mut(slot) else { return Ok(()) };
        let held = stream.sent.checked_sub(credit).ok_or(Error::Credit)?;
        self.sending.change(stream.sent, held);
        stream.sent = held;
        stream.answered |= self.role == Role::Client;
        self.credited(slot);
        self.settle(slot);
        Ok(())
    }

    fn peer_reset(&mut self, id: u32, code: Code) -> Result<(), Error> {
        let Some(slot) = self.lives(Kind::Reset, id)? else { return Ok(()) };
        if self.role == Role::Server && self.table.get(slot).is_some_and(|stream| !stream.answered) {
            self.counters.count(Flood::Resets)?;
        }
        self.end(slot, Ended::Reset(code));
        Ok(())
    }

    fn refused(&mut self, id: u32, reason: Box<str>) -> Result<(), Error> {
        if self.role == Role::Server {
            return Err(Error::RefusedLate);
        }
        let Some(slot) = self.lives(Kind::Reset, id)? else { return Ok(()) };
        // Who answered has processed something.
        if self.table.get(slot).is_some_and(|stream| stream.answered) {
            return Err(Error::RefusedLate);
        }
        self.end(slot, Ended::Refused(reason));
        Ok(())
    }

    fn peer_goes_away(&mut self, last: u32, why: Away) -> Result<(), Error> {
        self.counters.count(Flood::GoAways)?;
        let highest = match self.role {
            Role::Client => self.away_received.unwrap_or(self.last),
            Role::Server => 0,
        };
        if last > highest {
            return Err(Error::GoAwayTooHigh);
        }
        self.away_received = Some(last);
        self.notices.away = Some(why);
        if self.role == Role::Client {
            for slot in self.table.above(last) {
                match self.table.get(slot) {
                    Some(stream) if stream.ended.is_some() => {}
                    Some(stream) if stream.answered => return Err(Error::RefusedLate),
                    _ => self.end(slot, Ended::GoAway),
                }
            }
        }
        if why == Away::Drain { Ok(()) } else { Err(Error::Peer(why)) }
    }

    /// The stream that a frame is for; `None` if it is over and the frame was on its way when that happened.
    fn lives(&mut self, kind: Kind, id: u32) -> Result<Option<Slot>, Error> {
        if id > self.last {
            return Err(Error::NeverOpened(kind));
        }
        let slot = self.table.find(id);
        let slot = slot.filter(|slot| self.table.get(*slot).is_some_and(|stream| stream.ended.is_none()));
        if slot.is_none() {
            self.counters.count(Flood::Late)?;
        }
        Ok(slot)
    }
}

//! Writing streams, fairly.
//!
//! A write that finds neither others waiting nor the buffer full takes what windows and buffer admit. Otherwise streams
//! take turns, first come first served, of at most five full frames each: whoever took much goes behind those who wait.

use super::{
    Role, Session, StreamId, TURN,
    error::{Code, Gone, TooLate},
    frame::{Frame, is_printable},
    table::{Parked, Slot},
};
use crate::mux::MAX_REASON;
use alloc::string::String;

/// Less room than this at the end of the outgoing buffer is left alone rather than filled with a crumb, in bytes.
const CRUMB: usize = 1024;

impl Session {
    /// Takes as much of `data` as may be sent now and says how much. 0 of a non-empty `data` means that
    /// [`Writable`](super::Event::Writable) will tell when to try again, or [`Ended`](super::Event::Ended) why not.
    pub fn write(&mut self, id: StreamId, data: &[u8]) -> Result<usize, Gone> {
        self.write_vectored(id, core::iter::once(data))
    }

    /// [`write`](Self::write) of several pieces, in one turn.
    #[expect(single_use_lifetimes, reason = "`impl Trait` cannot elide it in stable Rust")]
    pub fn write_vectored<'a>(
        &mut self,
        id: StreamId,
        pieces: impl Iterator<Item = &'a [u8]> + Clone,
    ) -> Result<usize, Gone> {
        let slot = self.usable(id).ok_or(Gone)?;
        let stream = self.table.get(slot).filter(|stream| !stream.finished).ok_or(Gone)?;
        let length = pieces.clone().fold(0, |sum: usize, piece| sum.saturating_add(piece.len()));
        if length == 0 {
            return Ok(0);
        }
        let (sent, parked) = (stream.sent, stream.parked);
        let is_granted = match parked {
            Parked::No => false,
            Parked::Granted => true,
            // Still so, or `poll_event` is about to tell.
            Parked::Turn | Parked::Share | Parked::Window => return Ok(0),
        };
        self.unpark(slot);
        let room = self.sending.room(sent) as usize;
        if room == 0 {
            self.park(slot);
            return Ok(0);
        }
        let is_contended = !self.turns.is_empty() || !self.granted.is_empty();
        let place = self.place();
        if place < CRUMB.min(length) || (is_contended && !is_granted) {
            self.park(slot);
            return Ok(0);
        }
        let most = if is_contended { TURN } else { usize::MAX };
        let count = length.min(room).min(place).min(most);
        let mut left = count;
        for piece in pieces {
            let piece = piece.get(..left).unwrap_or(piece);
            self.out.data(id.0, piece);
            left -= piece.len();
        }
        self.wrote = true;
        if let Some(stream) = self.table.get_mut(slot) {
            // No more than the window, which is within 32 bits.
            stream.sent += count as u32;
            self.sending.change(sent, stream.sent);
            stream.answered |= self.role == Role::Server;
        }
        Ok(count)
    }

    /// Ends our direction. What was written still arrives; reading goes on.
    pub fn finish(&mut self, id: StreamId) -> Result<(), Gone> {
        let slot = self.usable(id).ok_or(Gone)?;
        let stream = self.table.get_mut(slot).filter(|stream| !stream.finished).ok_or(Gone)?;
        stream.finished = true;
        stream.answered |= self.role == Role::Server;
        self.out.end(id.0);
        self.unpark(slot);
        self.settle(slot);
        Ok(())
    }

    /// Ends both directions now, and forgets the stream: nothing more is told of it. Nothing happens if it is over.
    pub fn reset(&mut self, id: StreamId, code: Code) {
        let Some(slot) = self.table.find(id.0) else { return };
        if self.usable(id).is_some() && self.dead.is_none() {
            self.out.frame(&Frame::Reset { id: id.0, code });
        }
        self.forget(slot);
    }

    /// Does not take a stream that the client opened, and tells why: what is printable ASCII of `reason`, up to
    /// [`MAX_REASON`] bytes. The client may replay elsewhere what it has sent.
    pub fn refuse(&mut self, id: StreamId, reason: &str) -> Result<(), TooLate> {
        let slot = self.usable(id).ok_or(TooLate)?;
        let answered = self.table.get(slot).is_none_or(|stream| stream.answered);
        if self.role != Role::Server || self.dead.is_some() || answered || self.consumed(slot) > 0 {
            return Err(TooLate);
        }
        self.send_refusal(id.0, reason);
        self.forget(slot);
        Ok(())
    }

    pub(super) fn send_refusal(&mut self, id: u32, reason: &str) {
        let printable = reason.chars().filter(|c| u8::try_from(*c).is_ok_and(is_printable));
        let reason: String = printable.take(MAX_REASON).collect();
        self.out.frame(&Frame::Refused { id, reason: reason.into() });
    }

    /// Whose turn it is to write, if anybody's. A turn's bytes are kept free for each who was told and has not written.
    pub(super) fn next_turn(&mut self) -> Option<StreamId> {
        if core::mem::take(&mut self.round_is_over) {
            // They were told a round ago, and with an empty buffer nothing kept them: others must not wait for them.
            if !core::mem::take(&mut self.wrote) && self.out.is_empty() {
                while let Some(slot) = self.granted.pop() {
                    if let Some(stream) = self.table.get_mut(slot) {
                        stream.parked = Parked::No;
                    }
                }
            }
        }
        if self.sending.spare() > 0 {
            while let Some(slot) = self.sharers.pop_front() {
                self.line_up(slot);
            }
        }
        while self.granted.len() < self.place() / TURN
            && let Some(slot) = self.turns.pop_front()
        {
            let Some(stream) = self.table.get_mut(slot) else { continue };
            if self.sending.room(stream.sent) == 0 {
                self.park(slot);
                continue;
            }
            stream.parked = Parked::Granted;
            self.granted.push(slot);
            return Some(StreamId(stream.id));
        }
        self.round_is_over = true;
        None
    }

    /// Do streams wait although there is place?
    pub(super) fn has_turns(&self) -> bool {
        let waiting = !self.turns.is_empty() || (!self.sharers.is_empty() && self.sending.spare() > 0);
        waiting && (self.out.is_empty() || self.granted.len() < self.place() / TURN)
    }

    /// How much more DATA the outgoing buffer takes, in bytes.
    fn place(&self) -> usize {
        self.limits.out.saturating_sub(self.out.len())
    }

    /// Lets a stream wait for what it lacks.
    fn park(&mut self, slot: Slot) {
        let Some(stream) = self.table.get_mut(slot) else { return };
        if self.sending.room(stream.sent) > 0 {
            self.line_up(slot);
        } else if self.sending.is_full(stream.sent) {
            stream.parked = Parked::Window;
        } else {
            stream.parked = Parked::Share;
            self.sharers.push_back(slot);
        }
    }

    /// Puts a stream that is in no queue behind those that wait for their turn.
    pub(super) fn line_up(&mut self, slot: Slot) {
        if let Some(stream) = self.table.get_mut(slot) {
            stream.parked = Parked::Turn;
            self.turns.push_back(slot);
        }
    }

    /// A stream that waited for credit has some.
    pub(super) fn credited(&mut self, slot: Slot) {
        let waited = self.table.get(slot).map(|stream| stream.parked);
        if matches!(waited, Some(Parked::Window | Parked::Share)) {
            self.unpark(slot);
            self.line_up(slot);
        }
    }
}

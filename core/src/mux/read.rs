//! Reading streams, and returning what was read to the sender's window.

use super::{Session, StreamId, flow::Due, frame::Frame, table::Slot};

/// What can be read, without a copy.
#[derive(Debug, PartialEq, Eq)]
pub enum Chunk<'a> {
    /// Bytes, at least one, maybe not all; to be [consumed](Session::consume).
    Bytes(&'a [u8]),
    /// Nothing now; [`Readable`](super::Event::Readable) will tell.
    Wait,
    /// Nothing any more. Said as often as it is asked while the stream is there: until it is finished our way too.
    End,
    /// There is no such stream.
    Gone,
}

/// What was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// So many bytes, at least one unless there was no place for any.
    Bytes(usize),
    /// Nothing now; [`Readable`](super::Event::Readable) will tell.
    Wait,
    /// Nothing any more, as [`Chunk::End`].
    End,
    /// There is no such stream.
    Gone,
}

impl Session {
    /// The next bytes of a stream. Until they are consumed it may still be refused.
    pub fn chunk(&mut self, id: StreamId) -> Chunk<'_> {
        let Some(slot) = self.usable(id) else { return Chunk::Gone };
        let Some(stream) = self.table.get_mut(slot) else { return Chunk::Gone };
        if stream.unread.is_empty() {
            if !stream.peer_finished {
                return Chunk::Wait;
            }
            stream.end_read = true;
            stream.is_readable = false;
            self.settle(slot);
            return Chunk::End;
        }
        match self.table.get(slot) {
            Some(stream) => Chunk::Bytes(stream.unread.as_slices().0),
            None => Chunk::Gone,
        }
    }

    /// The first `count` unread bytes of a stream are dealt with. When it is worth a frame the peer may send as many
    /// more.
    pub fn consume(&mut self, id: StreamId, count: usize) {
        if let Some(slot) = self.usable(id) {
            self.take(slot, count);
            self.credit(slot);
        }
    }

    /// Copies what is unread into `into`, as far as it fits, and consumes it.
    pub fn read(&mut self, id: StreamId, into: &mut [u8]) -> Read {
        match self.chunk(id) {
            Chunk::Bytes(_) => {}
            Chunk::Wait => return Read::Wait,
            Chunk::End => return Read::End,
            Chunk::Gone => return Read::Gone,
        }
        let Some(slot) = self.usable(id) else { return Read::Gone };
        let Some(stream) = self.table.get(slot) else { return Read::Gone };
        let (first, second) = stream.unread.as_slices();
        let count = copy(first, into);
        let count = count + copy(second, into.get_mut(count..).unwrap_or_default());
        self.take(slot, count);
        self.credit(slot);
        Read::Bytes(count)
    }

    fn take(&mut self, slot: Slot, count: usize) {
        if let Some(stream) = self.table.get_mut(slot) {
            self.buffers.drain(&mut stream.unread, count);
        }
    }

    /// Bytes of a stream that were consumed and not credited.
    pub(super) fn consumed(&self, slot: Slot) -> u32 {
        let Some(stream) = self.table.get(slot) else { return 0 };
        let coming = match self.incoming {
            Some((id, _)) if id == stream.id => self.decoder.remaining(),
            _ => 0,
        };
        // Both are within the window, hence within 32 bits.
        stream.received.saturating_sub(stream.unread.len() as u32).saturating_sub(coming as u32)
    }

    /// Returns credit, if it is due.
    pub(super) fn credit(&mut self, slot: Slot) {
        let credit = self.consumed(slot);
        let Some(stream) = self.table.get_mut(slot) else { return };
        let due = if !stream.peer_finished {
            self.receiving.is_due(credit, stream.unread.len())
        } else if stream.unread.is_empty() && stream.received > self.receiving.guaranteed {
            // Nothing more will come, but as long as the sender holds shared bytes for it others lack them.
            Due::Now
        } else {
            Due::Not
        };
        match due {
            Due::Now => self.send_credit(slot, credit),
            Due::Soon if !core::mem::replace(&mut stream.is_owed, true) => self.owed.push_back(slot),
            Due::Soon | Due::Not => {}
        }
    }

    fn send_credit(&mut self, slot: Slot, credit: u32) {
        if self.dead.is_some() {
            return;
        }
        if let Some(stream) = self.table.get_mut(slot) {
            self.receiving.change(stream.received, stream.received - credit);
            stream.received -= credit;
            stream.answered = true;
            let id = stream.id;
            self.out.frame(&Frame::Window { id, credit });
        }
    }

    /// Returns what is owed if something is written anyway, or if others need the shared part.
    pub(super) fn settle_debts(&mut self) {
        if self.owed.is_empty() || (self.out.is_empty() && !self.receiving.is_scarce()) {
            return;
        }
        while let Some(slot) = self.owed.pop_front() {
            let Some(stream) = self.table.get_mut(slot) else { continue };
            stream.is_owed = false;
            let is_over = stream.peer_finished;
            let credit = self.consumed(slot);
            if !is_over && self.receiving.is_worth(credit) {
                self.send_credit(slot, credit);
            }
        }
    }

    /// A stream that has not ended before its time.
    pub(super) fn usable(&mut self, id: StreamId) -> Option<Slot> {
        let slot = self.table.find(id.0)?;
        self.table.get(slot).filter(|stream| stream.ended.is_none()).map(|_| slot)
    }
}

/// Copies as much as fits.
fn copy(from: &[u8], to: &mut [u8]) -> usize {
    let count = from.len().min(to.len());
    if let (Some(from), Some(to)) = (from.get(..count), to.get_mut(..count)) {
        to.copy_from_slice(from);
    }
    count
}

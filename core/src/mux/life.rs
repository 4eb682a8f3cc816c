//! How streams end, singly and all at once, and how that is told.

use super::{
    Event, Role, Session, StreamId,
    error::{Ended, Error},
    frame::{Decoder, Frame},
    table::{Parked, Slot},
};
use alloc::collections::VecDeque;

impl Session {
    pub(super) fn stream_event(&mut self) -> Option<Event> {
        loop {
            let slot = *self.events.front()?;
            let Some(stream) = self.table.get_mut(slot) else {
                self.events.pop_front();
                continue;
            };
            let id = StreamId(stream.id);
            if core::mem::take(&mut stream.is_new) {
                return Some(Event::Opened { id, port: stream.port, protocol: stream.protocol });
            }
            if core::mem::take(&mut stream.is_readable) {
                return Some(Event::Readable(id));
            }
            stream.queued = false;
            self.events.pop_front();
            if let Some(ended) = stream.ended.take() {
                self.table.remove(slot);
                return Some(Event::Ended(id, ended));
            }
        }
    }

    /// Puts a stream into the queue of events, where its marks say which.
    pub(super) fn queue(&mut self, slot: Slot) {
        if let Some(stream) = self.table.get_mut(slot)
            && !core::mem::replace(&mut stream.queued, true)
        {
            self.events.push_back(slot);
        }
    }

    /// The stream ends before its time. Whoever uses it is told, unless he has never heard of it or is through with it.
    pub(super) fn end(&mut self, slot: Slot, why: Ended) {
        self.give_back(slot);
        let Some(stream) = self.table.get_mut(slot) else { return };
        if stream.is_new || (stream.finished && stream.end_read) {
            self.forget(slot);
        } else {
            stream.is_readable = false;
            stream.ended = Some(why);
            self.queue(slot);
        }
    }

    /// The stream is forgotten once both directions have ended, its end was read, and it holds nothing of the part that
    /// all streams share: until then the peer may still need to hear, or we to be told, that its bytes were read.
    pub(super) fn settle(&mut self, slot: Slot) {
        if let Some(stream) = self.table.get(slot)
            && stream.finished
            && stream.end_read
            && (stream.sent <= self.sending.guaranteed || self.dead.is_some())
        {
            self.forget(slot);
        }
    }

    pub(super) fn forget(&mut self, slot: Slot) {
        self.give_back(slot);
        if let Some(stream) = self.table.remove(slot)
            && stream.queued
        {
            remove(&mut self.events, slot);
        }
    }

    /// Windows, memory and places in queues of a stream that is over.
    fn give_back(&mut self, slot: Slot) {
        self.unpark(slot);
        if let Some(stream) = self.table.get_mut(slot) {
            if core::mem::take(&mut stream.is_owed) {
                remove(&mut self.owed, slot);
            }
            self.sending.change(core::mem::take(&mut stream.sent), 0);
            self.receiving.change(core::mem::take(&mut stream.received), 0);
            self.buffers.empty(&mut stream.unread);
        }
    }

    /// Takes a stream out of whatever it waits for.
    pub(super) fn unpark(&mut self, slot: Slot) {
        let Some(stream) = self.table.get_mut(slot) else { return };
        match core::mem::take(&mut stream.parked) {
            Parked::No | Parked::Window => {}
            Parked::Turn => remove(&mut self.turns, slot),
            Parked::Share => remove(&mut self.sharers, slot),
            Parked::Granted => self.granted.retain(|other| *other != slot),
        }
    }

    /// The carrier is dead. The peer is told why if that may help it.
    pub(super) fn fail(&mut self, error: Error) {
        let last = self.accepted();
        self.dead = Some(error);
        self.incoming = None;
        self.decoder = Decoder::default();
        if let Some(why) = error.away() {
            self.out.frame(&Frame::GoAway { last, why });
        }
        for slot in self.table.above(0) {
            let Some(stream) = self.table.get(slot) else { continue };
            if stream.finished && stream.end_read {
                self.forget(slot);
            } else if stream.ended.is_none() && !(stream.finished && stream.peer_finished) {
                // What still waits to be written is written unless the carrier is lost.
                let sent = error != Error::Lost
                    || self.role == Role::Server
                    || stream.opened_at < self.out.total_written();
                self.end(slot, if sent { Ended::Carrier(error) } else { Ended::NeverSent(error) });
            }
        }
    }
}

/// The youngest are the likeliest to go.
fn remove(queue: &mut VecDeque<Slot>, slot: Slot) {
    if let Some(at) = queue.iter().rposition(|other| *other == slot) {
        queue.remove(at);
    }
}

//! The streams of a carrier: by id for frames, by slot for queues.

use super::error::Ended;
use crate::header::SessionProtocol;
use alloc::{collections::VecDeque, vec::Vec};
use core::num::NonZeroU16;

/// What is kept of a stream: under 128 bytes, and its unread bytes.
#[derive(Debug)]
pub(super) struct Stream {
    pub id: u32,
    pub port: NonZeroU16,
    pub protocol: Option<SessionProtocol>,
    /// Bytes sent and not credited.
    pub sent: u32,
    /// Bytes received and not credited, those of a frame that has only begun included.
    pub received: u32,
    /// Where its OPEN is, counted in bytes since the carrier began; 0 at the server.
    pub opened_at: u64,
    /// Received and not read.
    pub unread: VecDeque<u8>,
    /// It ended before its time, which its user has yet to be told.
    pub ended: Option<Ended>,
    /// We sent the end.
    pub finished: bool,
    /// The peer sent the end.
    pub peer_finished: bool,
    /// Our user has read up to the peer's end.
    pub end_read: bool,
    /// The server has answered it: DATA, its end, or WINDOW.
    pub answered: bool,
    /// In the queue of events, for one of the next two or for `ended`.
    pub queued: bool,
    /// In the queue of those that are owed credit.
    pub is_owed: bool,
    pub is_new: bool,
    pub is_readable: bool,
    pub parked: Parked,
}

/// What a stream that wants to write waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Parked {
    #[default]
    No,
    /// Room in the outgoing buffer, and those before it.
    Turn,
    /// Part of what all streams share.
    Share,
    /// Credit of its own.
    Window,
    /// Nothing: it was told, and others leave it a place.
    Granted,
}

impl Stream {
    pub(super) fn new(id: u32, port: NonZeroU16, protocol: Option<SessionProtocol>) -> Self {
        Self {
            id,
            port,
            protocol,
            sent: 0,
            received: 0,
            opened_at: 0,
            unread: VecDeque::new(),
            ended: None,
            finished: false,
            peer_finished: false,
            end_read: false,
            answered: false,
            queued: false,
            is_owed: false,
            is_new: false,
            is_readable: false,
            parked: Parked::No,
        }
    }
}

/// Where a stream is in the table, for as long as it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot(u32);

/// All streams of a carrier.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// Id and slot by id. Ids only grow, so a new one goes to the end; most that leave are near it.
    index: Vec<(u32, Slot)>,
    slots: Vec<Option<Stream>>,
    free: Vec<Slot>,
    /// The one that was asked for last: frames come in runs.
    recent: Option<(u32, Slot)>,
}

impl Table {
    pub(super) fn len(&self) -> usize {
        self.index.len()
    }

    pub(super) fn find(&mut self, id: u32) -> Option<Slot> {
        if let Some((recent, slot)) = self.recent
            && recent == id
        {
            return Some(slot);
        }
        let at = self.index.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        self.recent = self.index.get(at).copied();
        self.recent.map(|(_, slot)| slot)
    }

    pub(super) fn get(&self, slot: Slot) -> Option<&Stream> {
        self.slots.get(slot.0 as usize)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, slot: Slot) -> Option<&mut Stream> {
        self.slots.get_mut(slot.0 as usize)?.as_mut()
    }

    /// `stream.id` is above all ids that were ever added.
    pub(super) fn add(&mut self, stream: Stream) -> Slot {
        let id = stream.id;
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            Slot(self.slots.len() as u32 - 1)
        });
        if let Some(place) = self.slots.get_mut(slot.0 as usize) {
            *place = Some(stream);
        }
        self.index.push((id, slot));
        slot
    }

    pub(super) fn remove(&mut self, slot: Slot) -> Option<Stream> {
        let stream = self.slots.get_mut(slot.0 as usize)?.take()?;
        if let Ok(at) = self.index.binary_search_by_key(&stream.id, |(id, _)| *id) {
            self.index.remove(at);
        }
        self.recent = None;
        self.free.push(slot);
        Some(stream)
    }

    /// The streams with an id above `id`, the oldest first, or all.
    pub(super) fn above(&self, id: u32) -> Vec<Slot> {
        let from = self.index.partition_point(|(other, _)| *other <= id);
        self.index.iter().skip(from).map(|(_, slot)| *slot).collect()
    }

    /// Gives memory back if no stream is left.
    pub(super) fn release(&mut self) {
        if self.index.is_empty() {
            *self = Self::default();
        }
    }

    pub(super) fn allocated(&self) -> usize {
        self.index.capacity() * size_of::<(u32, Slot)>()
            + self.slots.capacity() * size_of::<Option<Stream>>()
            + self.free.capacity() * size_of::<Slot>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_stream_costs_little() {
        // With its places in index, free list and queues.
        assert!(size_of::<Option<Stream>>() <= 128, "{} bytes", size_of::<Option<Stream>>());
    }
}

//! The bytes that are to be written to the carrier: one buffer, so that all that is ready goes out in few large records.

use super::frame::{FIN, Frame, HEADER, Kind, MAX_PAYLOAD, header};
#[cfg(planted)]
use crate::planted;
use alloc::vec::Vec;

/// Frames in the order of sending.
#[derive(Debug, Default)]
pub(super) struct Out {
    bytes: Vec<u8>,
    /// How many of `bytes` were written.
    done: usize,
    /// How many bytes were written and dropped before the first of `bytes`.
    before: u64,
    /// The last frame, if it is DATA that can still grow.
    tail: Option<Tail>,
}

/// A DATA frame of which nothing was written and nothing follows.
#[derive(Clone, Copy, Debug)]
struct Tail {
    id: u32,
    /// Where its header is in `bytes`.
    at: usize,
    length: usize,
}

/// Written bytes are dropped when there are so many, and as many as those that wait: each is moved once at most.
const COMPACT: usize = 1 << 14;

impl Out {
    pub(super) fn pending(&self) -> &[u8] {
        self.bytes.get(self.done..).unwrap_or_default()
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len() - self.done
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes ever put in.
    pub(super) fn total(&self) -> u64 {
        self.before + self.bytes.len() as u64
    }

    /// Bytes ever written.
    pub(super) fn total_written(&self) -> u64 {
        self.before + self.done as u64
    }

    pub(super) fn written(&mut self, count: usize) {
        self.done += count.min(self.len());
        let dropped = if self.is_empty() || (self.done >= COMPACT && self.done >= self.len()) {
            self.bytes.drain(..self.done);
            core::mem::take(&mut self.done)
        } else {
            0
        };
        self.before += dropped as u64;
        let unwritten = |tail: Tail| Some(Tail { at: tail.at.checked_sub(dropped)?, ..tail });
        self.tail = self.tail.and_then(unwritten).filter(|tail| tail.at >= self.done);
    }

    pub(super) fn frame(&mut self, frame: &Frame) {
        self.tail = None;
        frame.write(&mut self.bytes);
    }

    /// DATA in as few frames as can be: the last frame grows if it is the stream's own.
    pub(super) fn data(&mut self, id: u32, mut data: &[u8]) {
        while !data.is_empty() {
            let mut tail = match self.tail {
                Some(tail) if is_own(tail, id) && tail.length < MAX_PAYLOAD => tail,
                _ => self.begin(id),
            };
            let count = data.len().min(MAX_PAYLOAD - tail.length);
            let (now, rest) = data.split_at_checked(count).unwrap_or((data, &[]));
            self.bytes.extend_from_slice(now);
            tail.length += now.len();
            if let Some(length) = self.bytes.get_mut(tail.at + 2..tail.at + 4) {
                length.copy_from_slice(&(tail.length as u16).to_be_bytes());
            }
            self.tail = Some(tail);
            data = rest;
        }
    }

    /// The end of a stream's DATA: a flag on the last frame if it is the stream's own, else an empty frame.
    pub(super) fn end(&mut self, id: u32) {
        let tail = match self.tail {
            Some(tail) if tail.id == id => tail,
            _ => self.begin(id),
        };
        if let Some(flags) = self.bytes.get_mut(tail.at + 1) {
            *flags |= FIN;
        }
        self.tail = None;
    }

    fn begin(&mut self, id: u32) -> Tail {
        let at = self.bytes.len();
        self.bytes.reserve(HEADER);
        header(&mut self.bytes, Kind::Data, 0, 0, id);
        Tail { id, at, length: 0 }
    }

    /// Gives the memory back if nothing waits.
    pub(super) fn release(&mut self) {
        if self.bytes.is_empty() {
            self.bytes = Vec::new();
        }
    }

    pub(super) fn allocated(&self) -> usize {
        self.bytes.capacity()
    }
}

fn is_own(tail: Tail, id: u32) -> bool {
    #[cfg(planted)]
    if planted::makes(planted::Mistake::FramesAreShared) {
        return true;
    }
    tail.id == id
}

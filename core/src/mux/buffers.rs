//! Memory for bytes that were received and not read. What a stream may hold is the windows' business; here it is seen
//! to that allocations stay in proportion to it, and that a stream without bytes has none.

use alloc::{collections::VecDeque, vec::Vec};

/// The account of all receive buffers of a carrier, and a few empty ones for the next bytes.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    /// Bytes of memory in the streams' buffers.
    allocated: usize,
    /// Bytes in them.
    unread: usize,
    /// Each of at most [`LARGE`] bytes.
    spares: Vec<VecDeque<u8>>,
}

/// How many empty buffers are kept.
const SPARES: usize = 4;
/// The largest buffer that is kept, in bytes.
const LARGE: usize = 1 << 18;
/// Up to here buffers are large enough, not tight; in bytes.
pub(super) const GENEROUS: usize = 1 << 21;
/// Beyond that, a buffer is at most this many times what it holds after a read,
pub(super) const SLACK: usize = 4;
/// or this large, in bytes.
pub(super) const TIGHT: usize = 4096;

impl Buffers {
    /// Puts bytes behind those of a stream.
    pub(super) fn fill(&mut self, buffer: &mut VecDeque<u8>, bytes: &[u8]) {
        let before = buffer.capacity();
        if before == 0
            && self.allocated < GENEROUS
            && let Some(spare) = self.spares.pop()
        {
            *buffer = spare;
        }
        buffer.extend(bytes);
        self.unread += bytes.len();
        self.allocated = (self.allocated + buffer.capacity()).saturating_sub(before);
    }

    /// Takes bytes off the front; gives the memory back when none are left.
    pub(super) fn drain(&mut self, buffer: &mut VecDeque<u8>, count: usize) {
        let (length, capacity) = (buffer.len(), buffer.capacity());
        if count >= length {
            self.empty(buffer);
            return;
        }
        buffer.drain(..count);
        self.unread -= count;
        if self.allocated > GENEROUS && capacity > TIGHT && buffer.len() < capacity / SLACK {
            buffer.shrink_to(buffer.len() * 2);
            self.allocated = (self.allocated + buffer.capacity()).saturating_sub(capacity);
        }
    }

    /// The stream is over, or has no bytes left.
    pub(super) fn empty(&mut self, buffer: &mut VecDeque<u8>) {
        let mut memory = core::mem::take(buffer);
        self.unread -= memory.len();
        self.allocated = self.allocated.saturating_sub(memory.capacity());
        if (1..=LARGE).contains(&memory.capacity()) && self.spares.len() < SPARES {
            memory.clear();
            self.spares.push(memory);
        }
    }

    pub(super) fn release(&mut self) {
        self.spares = Vec::new();
    }

    pub(super) fn unread(&self) -> usize {
        self.unread
    }

    pub(super) fn allocated(&self) -> usize {
        self.allocated + self.spares.iter().map(VecDeque::capacity).sum::<usize>()
    }
}

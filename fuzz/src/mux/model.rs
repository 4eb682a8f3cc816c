//! What streams should be: each direction is so many bytes of a known sequence, and an end.

use core::num::NonZeroU16;
use remora_core::{
    header::SessionProtocol,
    mux::{Code, StreamId},
};

/// A stream as its two users know it. `[0]` is the client's, `[1]` the server's.
pub(super) struct Stream {
    pub id: StreamId,
    pub port: NonZeroU16,
    pub protocol: Option<SessionProtocol>,
    /// What each side sends.
    pub ways: [Way; 2],
    /// The side was told that it is there.
    pub knows: [bool; 2],
    /// The side was told that it ended, or has said so itself.
    pub over: [bool; 2],
    pub reset_with: [Option<Code>; 2],
    pub refused: bool,
}

/// One direction.
#[derive(Default)]
pub(super) struct Way {
    pub written: usize,
    pub finished: bool,
    pub read: usize,
    pub end_read: bool,
    /// What its user has yet to write.
    pub debt: usize,
    /// The last write took nothing, and nobody has said since that one may take something.
    pub blocked: bool,
}

impl Stream {
    pub(super) fn new(id: StreamId, port: NonZeroU16, protocol: Option<SessionProtocol>) -> Self {
        Self {
            id,
            port,
            protocol,
            ways: Default::default(),
            knows: [true, false],
            over: [false; 2],
            reset_with: [None; 2],
            refused: false,
        }
    }

    /// Does this side still use it?
    pub(super) fn is_used(&self, side: usize) -> bool {
        self.knows[side] && !self.over[side] && !(self.ways[side].finished && self.ways[1 - side].end_read)
    }

    /// The bytes from `from` that `side` sends.
    pub(super) fn bytes(&self, side: usize, from: usize, count: usize) -> Vec<u8> {
        (from..from + count).map(|at| self.byte(side, at)).collect()
    }

    pub(super) fn byte(&self, side: usize, at: usize) -> u8 {
        let mixed = (at as u32).wrapping_mul(0x9e37_79b1) ^ self.id.get().wrapping_mul(0x85eb_ca6b);
        (mixed >> 13) as u8 ^ (side as u8).wrapping_mul(0x5a)
    }

    /// Did the server do anything with it?
    pub(super) fn is_processed(&self) -> bool {
        let server = &self.ways[1];
        self.ways[0].read > 0 || server.written > 0 || server.finished
    }
}

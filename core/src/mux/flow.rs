//! The windows of one direction of a carrier: how much of each stream may be on its way or unread.
//!
//! A stream *holds* the bytes that were sent and not credited yet. It may hold its window at most. The first
//! `guaranteed` bytes of that are its own; what it holds beyond is taken from a part that all streams share. So all
//! streams together hold no more than streams × guaranteed + shared, and whatever others hold, each can always hold
//! its guaranteed part: a stream that nobody reads stops itself alone.
//!
//! Sender and receiver keep the same account. The receiver's never shows more than the sender's did: it sees each byte
//! and each end later, and each credit earlier.

use super::frame::Settings;

/// One direction's account, in bytes.
#[derive(Debug)]
pub(super) struct Account {
    window: u32,
    pub guaranteed: u32,
    shared: u32,
    /// Taken from the shared part.
    used: u32,
}

/// When a receiver returns credit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    Now,
    /// With the next write, whatever it is for.
    Soon,
    Not,
}

/// A sender leaves less than this of the shared part alone rather than send crumbs.
const CRUMB: u32 = 1024;

impl Account {
    pub(super) fn new(settings: &Settings) -> Self {
        let Settings { window, guaranteed, shared, .. } = *settings;
        Self { window, guaranteed, shared, used: 0 }
    }

    /// The peer has spoken. Its numbers are no smaller than those assumed, of which the shared part was nothing: what
    /// is held stays within.
    pub(super) fn replace(&mut self, settings: &Settings) {
        *self = Self::new(settings);
    }

    /// How many more bytes a sender may send on a stream that holds `held`.
    pub(super) fn room(&self, held: u32) -> u32 {
        let own = self.guaranteed.saturating_sub(held);
        self.window.saturating_sub(held).min(own.saturating_add(self.spare()))
    }

    /// What a sender may take from the shared part.
    pub(super) fn spare(&self) -> u32 {
        let free = self.shared.saturating_sub(self.used);
        if free < CRUMB { 0 } else { free }
    }

    /// Is it the stream's window that stops it, whatever becomes of the shared part?
    pub(super) fn is_full(&self, held: u32) -> bool {
        held >= self.window
    }

    /// Is less than a quarter of the shared part left, or so little that a sender takes none of it? Then a sender may
    /// wait for whatever it is owed.
    pub(super) fn is_scarce(&self) -> bool {
        self.shared.saturating_sub(self.used) < CRUMB.max(self.shared / 4)
    }

    /// A stream that held `before` holds `after` now.
    pub(super) fn change(&mut self, before: u32, after: u32) {
        let over = |held: u32| held.saturating_sub(self.guaranteed);
        self.used = self.used.saturating_sub(over(before)).saturating_add(over(after));
    }

    pub(super) fn exceeds_window(&self, held: u32) -> bool {
        held > self.window
    }

    pub(super) fn exceeds_shared(&self) -> bool {
        self.used > self.shared
    }

    /// When should the receiver return credit for `consumed` bytes of a stream of which `unread` more are there?
    ///
    /// Half a window is worth a write of its own: the sender has the other half. Less, if it is half the guaranteed part,
    /// is returned with whatever else is written, or at once when others need the shared part.
    pub(super) fn is_due(&self, consumed: u32, unread: usize) -> Due {
        let least = self.guaranteed / 2;
        if consumed >= least.max(self.window / 2) || (consumed >= least && self.is_scarce()) {
            Due::Now
        } else if consumed >= least && unread == 0 {
            Due::Soon
        } else {
            Due::Not
        }
    }

    /// Is it worth a frame to return so much credit?
    pub(super) fn is_worth(&self, consumed: u32) -> bool {
        consumed >= self.guaranteed / 2
    }
}

//! Bounds on frames that cost the sender next to nothing: so many of a sort within a second, then the carrier ends.
//!
//! A second is one of the caller's clock, so twice the number may come around its turn.

use super::error::Error;
use crate::time::Time;

/// A sort of frame that is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Flood {
    /// RESET of a stream that the server had not answered: what it did for it was in vain.
    Resets,
    /// PING, which wants an answer.
    Pings,
    /// WINDOW with less credit than 1 KiB: ours have at least 2.
    Credits,
    /// DATA without a byte and without an end.
    Empty,
    /// Types that are skipped.
    Ignored,
    /// Frames for streams that are over: those on their way when a RESET crossed them.
    Late,
    /// OPEN over the number of streams.
    Opens,
    /// GOAWAY again.
    GoAways,
}

/// WINDOW with less credit counts as [`Flood::Credits`]; in bytes.
pub(super) const SMALL_CREDIT: u32 = 1024;

impl Flood {
    const SORTS: usize = 8;

    /// Frames a second; `None` is a limit of its own ([`Limits::resets`](super::Limits)).
    const fn limit(self) -> Option<u32> {
        match self {
            Self::Resets => None,
            Self::Pings | Self::Credits | Self::Empty => Some(100),
            Self::Ignored | Self::Opens => Some(2_000),
            // A window of small frames on each of many streams may be on its way when all are reset.
            Self::Late => Some(100_000),
            Self::GoAways => Some(10),
        }
    }
}

impl core::fmt::Display for Flood {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Resets => "streams that were opened and reset",
            Self::Pings => "PING frames",
            Self::Credits => "WINDOW frames with little credit",
            Self::Empty => "DATA frames with nothing in them",
            Self::Ignored => "frames of unknown type",
            Self::Late => "frames for streams that are over",
            Self::Opens => "streams over the limit",
            Self::GoAways => "GOAWAY frames",
        })
    }
}

/// The counters of one carrier.
#[derive(Debug)]
pub(super) struct Counters {
    second: u64,
    counts: [u32; Flood::SORTS],
    resets: u32,
}

impl Counters {
    pub(super) fn new(resets: u32) -> Self {
        Self { second: 0, counts: [0; Flood::SORTS], resets }
    }

    /// To be told before frames are counted.
    pub(super) fn at(&mut self, now: Time) {
        let second = now.0.as_secs();
        if second != self.second {
            self.second = second;
            self.counts = [0; Flood::SORTS];
        }
    }

    pub(super) fn count(&mut self, sort: Flood) -> Result<(), Error> {
        let limit = sort.limit().unwrap_or(self.resets);
        match self.counts.get_mut(sort as usize) {
            Some(count) if *count < limit => {
                *count += 1;
                Ok(())
            }
            _ => Err(Error::Flood(sort)),
        }
    }
}

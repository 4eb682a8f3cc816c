//! How much an HTTP/2 connection can have under way: what came in one round trip, at the most that was seen (RFC 9113
//! section 5.2.1 leaves the window to whoever receives).

use core::time::Duration;

/// Bytes. A window is never made larger; above it the kernel's own windows decide.
const MOST: u32 = 16 * 1024 * 1024;
/// Time between measurements: at first, and when they no longer tell anything new.
const SOON: Duration = Duration::from_millis(100);
const SELDOM: Duration = Duration::from_secs(10);

/// The estimate, from bytes that came between a ping and its answer.
#[derive(Clone, Copy, Debug)]
pub struct Bandwidth {
    /// Bytes.
    window: u32,
    /// Bytes a second, the most that was seen.
    most: f64,
    /// Seconds, averaged; 0 before the first.
    round_trip: f64,
    pause: Duration,
    /// Measurements since the last one that changed something.
    unchanged: u32,
}

impl Bandwidth {
    /// Begins with a window of so many bytes.
    pub fn new(window: u32) -> Self {
        Self { window, most: 0.0, round_trip: 0.0, pause: SOON, unchanged: 0 }
    }

    /// Time until the next measurement is worth its ping; at most ten seconds.
    pub fn pause(&self) -> Duration {
        self.pause
    }

    /// `bytes` came within `took`. The window to use from now on, in bytes, if it is another: twice what came, where that
    /// filled most of the window and came faster than ever; at most 16 MiB.
    pub fn measured(&mut self, bytes: u64, took: Duration) -> Option<u32> {
        let took = took.as_secs_f64().max(1e-9);
        self.round_trip = if self.round_trip == 0.0 { took } else { self.round_trip * 0.875 + took * 0.125 };
        let speed = bytes as f64 / (self.round_trip * 1.5);
        if self.window == MOST || speed < self.most {
            self.unchanged();
            return None;
        }
        self.most = speed;
        if bytes < u64::from(self.window) * 2 / 3 {
            self.unchanged();
            return None;
        }
        self.window = u32::try_from(bytes.saturating_mul(2)).unwrap_or(MOST).clamp(self.window, MOST);
        self.unchanged = 0;
        self.pause /= 2;
        Some(self.window)
    }

    fn unchanged(&mut self) {
        self.unchanged += 1;
        if self.unchanged >= 2 && self.pause < SELDOM {
            self.pause = (self.pause * 4).min(SELDOM);
            self.unchanged = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    #[test]
    fn a_window_that_is_filled_grows_and_one_that_is_not_stays() {
        let mut bandwidth = Bandwidth::new(65_535);
        let round_trip = Duration::from_millis(10);
        assert_eq!(bandwidth.measured(65_535, round_trip), Some(131_070));
        assert_eq!(bandwidth.measured(70_000, round_trip), None, "less than two thirds");
        assert_eq!(bandwidth.measured(131_070, round_trip), Some(262_140));
        assert_eq!(bandwidth.measured(262_140, round_trip * 100), None, "slower than before");
    }

    #[test]
    fn what_does_not_change_is_measured_more_and_more_seldom() {
        let mut bandwidth = Bandwidth::new(65_535);
        let mut pauses = Vec::new();
        for _ in 0..20 {
            bandwidth.measured(10, Duration::from_millis(10));
            pauses.push(bandwidth.pause());
        }
        assert!(pauses.is_sorted() && pauses.last() == Some(&SELDOM), "{pauses:?}");
    }

    proptest! {
        #[test]
        fn a_window_only_grows_and_has_a_bound(
            first in 1u32..MOST,
            all in proptest::collection::vec((0u64..u64::from(u32::MAX), 0u64..10_000_000), 0..50),
        ) {
            let mut bandwidth = Bandwidth::new(first);
            let mut window = first;
            for (bytes, micros) in all {
                if let Some(wider) = bandwidth.measured(bytes, Duration::from_micros(micros)) {
                    prop_assert!(wider >= window && wider <= MOST);
                    window = wider;
                }
                prop_assert!(bandwidth.pause() <= SELDOM);
            }
        }
    }
}

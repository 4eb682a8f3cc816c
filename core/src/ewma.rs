//! How loaded an endpoint is: a moving average of its round-trip times that jumps up at once and decays slowly.

use crate::time::Time;
use core::time::Duration;

/// The peak-sensitive, exponentially decaying average of round-trip times.
#[derive(Clone, Copy, Debug)]
pub struct PeakEwma {
    estimate_ns: f64,
    updated: Time,
    decay: Duration,
}

impl PeakEwma {
    /// Begins with `default_rtt`; an observation's weight falls to 1/e after `decay`.
    pub fn new(default_rtt: Duration, decay: Duration, now: Time) -> Self {
        Self { estimate_ns: default_rtt.as_nanos() as f64, updated: now, decay }
    }

    /// Takes a measured round trip: a higher one replaces the estimate, a lower one is averaged in.
    pub fn observe(&mut self, rtt: Duration, now: Time) {
        let _ = (rtt, now, self.updated, self.decay);
        todo!()
    }

    /// Estimate decayed to `now`, times one more than the requests in flight. Never negative, never NaN.
    pub fn load(&self, in_flight: u32, now: Time) -> f64 {
        let _ = (in_flight, now, self.estimate_ns);
        todo!()
    }
}

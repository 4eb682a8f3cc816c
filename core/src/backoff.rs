//! How long to wait before trying again.

use core::time::Duration;

/// Exponential backoff with jitter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Backoff {
    /// Delay of attempt 0.
    pub min: Duration,
    /// No delay without jitter is longer.
    pub max: Duration,
    /// Up to this share of the delay is added at random, 0.0 to 1.0.
    pub jitter: f64,
}

impl Backoff {
    /// The delay before retry number `attempt` (from 0); `random` is any number.
    pub fn delay(&self, attempt: u32, random: u64) -> Duration {
        let _ = (attempt, random);
        todo!()
    }
}

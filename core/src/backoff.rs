//! How long to wait before trying again.

use core::time::Duration;

/// Exponential backoff with jitter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Backoff {
    /// Delay of attempt 0.
    pub min: Duration,
    /// No delay without jitter is longer.
    pub max: Duration,
    /// Up to this share of the delay is added at random, 0.0 to 1.0. Anything outside is taken as the nearer bound, and
    /// a NaN as no jitter.
    pub jitter: f64,
}

impl Backoff {
    /// The delay before retry number `attempt` (from 0); `random` is any number.
    ///
    /// Without jitter it doubles from `min` with every attempt until it is `max`; where `min` is more than `max`, it is
    /// `max` from the start. Jitter is added to that, so that the longest delay is `max × (1 + jitter)`.
    pub fn delay(&self, attempt: u32, random: u64) -> Duration {
        let factor = 1u32.checked_shl(attempt).unwrap_or(u32::MAX);
        let base = self.min.saturating_mul(factor).min(self.max);

        let jitter = if self.jitter.is_nan() { 0.0 } else { self.jitter.clamp(0.0, 1.0) };
        let share = jitter * (random as f64 / u64::MAX as f64);
        // A float beyond u64 becomes u64::MAX: 584 years of jitter are long enough.
        let extra = Duration::from_nanos((base.as_nanos() as f64 * share) as u64);
        base.saturating_add(extra)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CONTROL: Backoff =
        Backoff { min: Duration::from_millis(100), max: Duration::from_secs(10), jitter: 0.0 };

    #[test]
    fn the_first_delay_is_the_minimum() {
        check(CONTROL, 0, 0, Duration::from_millis(100));
    }

    #[test]
    fn every_attempt_doubles_it() {
        check(CONTROL, 1, 0, Duration::from_millis(200));
        check(CONTROL, 6, 0, Duration::from_millis(6400));
    }

    #[test]
    fn it_stops_at_the_maximum() {
        check(CONTROL, 7, 0, Duration::from_secs(10));
        check(CONTROL, 31, 0, Duration::from_secs(10));
        check(CONTROL, 32, 0, Duration::from_secs(10));
        check(CONTROL, u32::MAX, 0, Duration::from_secs(10));
    }

    #[test]
    fn a_minimum_over_the_maximum_is_the_maximum() {
        check(Backoff { min: Duration::from_mins(1), ..CONTROL }, 0, 0, Duration::from_secs(10));
    }

    #[test]
    fn jitter_adds_up_to_its_share() {
        let jittery = Backoff { jitter: 0.5, ..CONTROL };
        check(jittery, 0, 0, Duration::from_millis(100));
        check(jittery, 0, u64::MAX, Duration::from_millis(150));
        check(jittery, 9, u64::MAX, Duration::from_secs(15));
    }

    #[test]
    fn a_nonsensical_jitter_is_brought_within_bounds() {
        check(Backoff { jitter: -3.0, ..CONTROL }, 0, u64::MAX, Duration::from_millis(100));
        check(Backoff { jitter: f64::NAN, ..CONTROL }, 0, u64::MAX, Duration::from_millis(100));
        check(Backoff { jitter: f64::INFINITY, ..CONTROL }, 0, u64::MAX, Duration::from_millis(200));
    }

    proptest! {
        #[test]
        fn delays_stay_within_bounds_and_never_shrink_without_jitter(
            min in any::<Duration>(),
            max in any::<Duration>(),
            jitter in any::<f64>(),
            attempt in 0u32..200,
            random in any::<u64>(),
        ) {
            let steady = Backoff { min, max, jitter: 0.0 };
            prop_assert!(steady.delay(attempt, random) <= max);
            prop_assert!(steady.delay(attempt, random) >= min.min(max));
            prop_assert!(steady.delay(attempt, 0) <= steady.delay(attempt + 1, 0));

            let jittery = Backoff { min, max, jitter };
            prop_assert!(jittery.delay(attempt, random) >= steady.delay(attempt, 0));
            prop_assert!(jittery.delay(attempt, random) <= max.saturating_mul(2));
        }
    }

    #[track_caller]
    fn check(backoff: Backoff, attempt: u32, random: u64, expected: Duration) {
        assert_eq!(backoff.delay(attempt, random), expected);
    }
}

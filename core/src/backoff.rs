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

/// When what broke may be made again: attempts begin a second apart or more, the more the longer they fail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pace {
    failures: u32,
}

impl Pace {
    /// Between the beginnings of two attempts.
    pub const APART: Backoff =
        Backoff { min: Duration::from_secs(1), max: Duration::from_secs(10), jitter: 0.3 };

    /// What lived less is no proof of a server in good health.
    pub const PROVEN: Duration = Duration::from_secs(10);

    /// Waited even where an attempt is overdue: the many whom one server left at the same moment do not come back at the
    /// same moment.
    const SPREAD: Backoff =
        Backoff { min: Duration::from_millis(100), max: Duration::from_millis(100), jitter: 1.0 };

    /// How long to wait before the next attempt, if the one before began this long ago, and what came of it lived for
    /// `lived` (nothing, if it failed). `random` is any number.
    pub fn wait(&mut self, began: Duration, lived: Duration, random: u64) -> Duration {
        if lived >= Self::PROVEN {
            self.failures = 0;
        }
        let apart = Self::APART.delay(self.failures, random).saturating_sub(began);
        self.failures = self.failures.saturating_add(1);
        apart.max(Self::SPREAD.delay(0, random))
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

    #[test]
    fn attempts_get_rarer_until_one_has_lived() {
        let mut pace = Pace::default();
        let wait = |pace: &mut Pace, began, lived| {
            pace.wait(Duration::from_millis(began), Duration::from_millis(lived), 0).as_millis()
        };
        // Attempts that fail at once, and one that took longer than it had to wait.
        assert_eq!(
            [0, 0, 0, 0, 0, 0].map(|began| wait(&mut pace, began, 0)),
            [1000, 2000, 4000, 8000, 10_000, 10_000]
        );
        assert_eq!(wait(&mut pace, 60_000, 9_999), 100);
        assert_eq!(wait(&mut pace, 500, 0), 9_500);
        // What has lived is missed at once, but not by all at the same moment.
        assert_eq!(wait(&mut pace, 10_000, 10_000), 100);
        assert_eq!(wait(&mut pace, 0, 0), 2000);
        let at_most = |began| Pace::default().wait(began, began, u64::MAX);
        assert_eq!(at_most(Duration::from_mins(1)), Duration::from_millis(200));
        assert_eq!(at_most(Duration::ZERO), Duration::from_millis(1300));
    }

    proptest! {
        #[test]
        fn no_two_attempts_begin_within_a_second(
            steps in proptest::collection::vec((0u64..30_000, any::<bool>(), any::<u64>()), 1..50),
        ) {
            let mut pace = Pace::default();
            for (took, made, random) in steps {
                let took = Duration::from_millis(took);
                let wait = pace.wait(took, if made { took } else { Duration::ZERO }, random);
                prop_assert!(took + wait >= Duration::from_secs(1));
                prop_assert!(wait <= Duration::from_secs(13));
            }
        }

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

//! How many retries a profile allows: a share of the requests of the last while, and a few per second in any case.
//! Contract 4.3. Told what time it is; the same answers for the same story.

#[cfg(planted)]
use crate::planted;
use crate::time::Time;
use core::time::Duration;

/// Parts of the window; what is older than the window is forgotten one part at a time, as in Linkerd.
const SLOTS: usize = 10;
/// Ratios are kept in millionths, so that nothing is lost to rounding however long a story is.
const MILLION: u128 = 1_000_000;

/// What bounds retries.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BudgetLimits {
    ratio: f32,
    min_per_second: u32,
    ttl: Duration,
}

/// Why there is no such budget. The bounds are those of Linkerd's proxy.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum InvalidBudget {
    /// The ratio.
    #[error("{0} is no ratio of retries to requests (0 to 1000)")]
    Ratio(f32),
    /// The minimum.
    #[error("{0} retries per second are more than 2147483647")]
    Minimum(u32),
    /// The window.
    #[error("{0:?} is not between 1 s and 60 s")]
    Ttl(Duration),
}

impl BudgetLimits {
    /// What holds for a profile that says nothing of its budget. Contract 3.2.
    pub const DEFAULT: Self = Self { ratio: 0.2, min_per_second: 10, ttl: Duration::from_secs(10) };

    /// `ratio` retries per request, but in any case `min_per_second`, counted over `ttl`.
    pub fn new(ratio: f32, min_per_second: u32, ttl: Duration) -> Result<Self, InvalidBudget> {
        if !(0.0..=1000.0).contains(&ratio) {
            return Err(InvalidBudget::Ratio(ratio));
        }
        if min_per_second > i32::MAX.unsigned_abs() {
            return Err(InvalidBudget::Minimum(min_per_second));
        }
        if !(Duration::from_secs(1)..=Duration::from_mins(1)).contains(&ttl) {
            return Err(InvalidBudget::Ttl(ttl));
        }
        Ok(Self { ratio, min_per_second, ttl })
    }

    /// Retries per request.
    pub fn ratio(&self) -> f32 {
        self.ratio
    }

    /// Retries per request, in millionths: at most 10^9.
    pub fn ratio_millionths(&self) -> u32 {
        libm::round(f64::from(self.ratio) * 1e6) as u32
    }

    /// Retries per second in any case.
    pub fn min_per_second(&self) -> u32 {
        self.min_per_second
    }

    /// How long a request counts.
    pub fn ttl(&self) -> Duration {
        self.ttl
    }
}

/// A ratio that was checked is no NaN.
impl Eq for BudgetLimits {}

/// What of a budget is used.
#[derive(Clone, Debug)]
pub struct RetryBudget {
    limits: BudgetLimits,
    slots: [Slot; SLOTS],
    /// Number of the newest slot since the start of time.
    newest: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    requests: u64,
    retries: u64,
}

impl RetryBudget {
    /// Nothing is used.
    pub fn new(limits: BudgetLimits) -> Self {
        Self { limits, slots: [Slot::default(); SLOTS], newest: 0 }
    }

    /// What bounds it.
    pub fn limits(&self) -> BudgetLimits {
        self.limits
    }

    /// A request came, which earns its share of a retry.
    pub fn request(&mut self, now: Time) {
        self.advance(now);
        if let Some(slot) = self.slot() {
            slot.requests = slot.requests.saturating_add(1);
        }
    }

    /// May there be one more retry now? If so, it counts.
    pub fn retry(&mut self, now: Time) -> bool {
        self.advance(now);
        let (mut requests, mut retries) = (0u128, 0u128);
        for slot in &self.slots {
            requests += u128::from(slot.requests);
            retries += u128::from(slot.retries);
        }
        let earned = requests * u128::from(self.limits.ratio_millionths());
        if (retries + 1) * MILLION > earned + self.reserve() {
            return false;
        }
        if let Some(slot) = self.slot() {
            slot.retries = slot.retries.saturating_add(1);
        }
        true
    }

    /// What is allowed in a whole window in any case, in millionths of a retry.
    fn reserve(&self) -> u128 {
        #[cfg(planted)]
        if planted::makes(planted::Mistake::ReserveOfOneSecond) {
            return u128::from(self.limits.min_per_second) * MILLION;
        }
        u128::from(self.limits.min_per_second) * self.limits.ttl.as_micros()
    }

    fn slot(&mut self) -> Option<&mut Slot> {
        let at = usize::try_from(self.newest % SLOTS as u64).ok()?;
        self.slots.get_mut(at)
    }

    /// Forgets what is older than the window. A clock that goes back stands still.
    fn advance(&mut self, now: Time) {
        let width = (self.limits.ttl.as_nanos() / SLOTS as u128).max(1);
        let number = u64::try_from(now.0.as_nanos() / width).unwrap_or(u64::MAX);
        let passed = number.saturating_sub(self.newest);
        #[cfg(planted)]
        let passed = if planted::makes(planted::Mistake::RetriesNeverExpire) { 0 } else { passed };
        for _ in 0..passed.min(SLOTS as u64) {
            self.newest = self.newest.saturating_add(1);
            if let Some(slot) = self.slot() {
                *slot = Slot::default();
            }
        }
        self.newest = self.newest.max(number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What happens: time goes to so many milliseconds; a request; a retry that is allowed or not.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        At(u64),
        Request,
        Retry(bool),
    }
    use Step::{At, Request, Retry};

    #[test]
    fn a_fifth_of_the_requests_may_be_retried() {
        check(0.2, 0, 10, &[Request; 4], &[Retry(false)]);
        check(0.2, 0, 10, &[Request; 5], &[Retry(true), Retry(false)]);
        check(0.2, 0, 10, &[Request; 10], &[Retry(true), Retry(true), Retry(false)]);
    }

    #[test]
    fn more_than_one_retry_per_request_may_be_allowed() {
        check(2.0, 0, 10, &[Request], &[Retry(true), Retry(true), Retry(false)]);
    }

    #[test]
    fn the_minimum_is_allowed_without_any_request() {
        check(0.0, 1, 2, &[], &[Retry(true), Retry(true), Retry(false)]);
        check(0.0, 1, 2, &[Request; 100], &[Retry(true), Retry(true), Retry(false)]);
    }

    #[test]
    fn without_ratio_and_minimum_nothing_is_retried() {
        check(0.0, 0, 1, &[Request; 100], &[Retry(false)]);
    }

    #[test]
    fn requests_are_forgotten_after_the_window() {
        check(1.0, 0, 10, &[Request, At(9_999)], &[Retry(true)]);
        check(1.0, 0, 10, &[Request, At(10_000)], &[Retry(false)]);
    }

    #[test]
    fn retries_are_forgotten_after_the_window() {
        check(0.0, 1, 1, &[], &[Retry(true), Retry(false), At(999), Retry(false), At(1_000), Retry(true)]);
    }

    #[test]
    fn the_window_moves_by_a_tenth() {
        let story = [At(500), Request, At(1_499), Retry(true)];
        check(1.0, 0, 1, &[], &story);
        check(1.0, 0, 1, &[At(500), Request, At(1_500)], &[Retry(false)]);
        check(1.0, 0, 1, &[At(599), Request, At(1_500)], &[Retry(false)]);
    }

    #[test]
    fn a_clock_that_goes_back_stands_still() {
        check(1.0, 0, 1, &[At(5_000), Request, At(0)], &[Retry(true), Retry(false)]);
    }

    #[test]
    fn what_no_budget_can_be() {
        let second = Duration::from_secs(1);
        for ratio in [-0.1, 1000.1, f32::NAN, f32::INFINITY] {
            assert!(matches!(BudgetLimits::new(ratio, 1, second), Err(InvalidBudget::Ratio(_))), "{ratio}");
        }
        assert_eq!(BudgetLimits::new(0.0, 1 << 31, second), Err(InvalidBudget::Minimum(1 << 31)));
        for ttl in [Duration::ZERO, Duration::from_millis(999), Duration::from_millis(60_001)] {
            assert_eq!(BudgetLimits::new(0.0, 1, ttl), Err(InvalidBudget::Ttl(ttl)));
        }
        assert_eq!(BudgetLimits::new(0.2, 10, Duration::from_secs(10)), Ok(BudgetLimits::DEFAULT));
    }

    proptest! {
        #[test]
        fn retries_never_exceed_what_was_earned_and_the_reserve(
            ratio in 0.0f32..3.0,
            min in 0u32..5,
            ttl in 1u64..5,
            steps in proptest::collection::vec(any::<bool>(), 0..300),
        ) {
            let limits = BudgetLimits::new(ratio, min, Duration::from_secs(ttl)).unwrap();
            let mut budget = RetryBudget::new(limits);
            // All of it within one window.
            let (mut requests, mut retries) = (0u32, 0u32);
            for request in steps {
                if request {
                    requests += 1;
                    budget.request(Time::default());
                } else {
                    retries += u32::from(budget.retry(Time::default()));
                }
            }
            let most = f64::from(requests) * f64::from(ratio) + f64::from(min) * ttl as f64;
            prop_assert!(f64::from(retries) <= most + 1e-3, "{} of {}", retries, most);
        }
    }

    #[track_caller]
    fn check(ratio: f32, min: u32, ttl: u64, before: &[Step], after: &[Step]) {
        let limits = BudgetLimits::new(ratio, min, Duration::from_secs(ttl)).unwrap();
        let (mut budget, mut now) = (RetryBudget::new(limits), Time::default());
        for (nth, step) in before.iter().chain(after).enumerate() {
            match *step {
                At(ms) => now = Time(Duration::from_millis(ms)),
                Request => budget.request(now),
                Retry(allowed) => {
                    assert_eq!(budget.retry(now), allowed, "step {nth} of {before:?} {after:?}");
                }
            }
        }
    }
}

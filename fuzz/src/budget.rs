//! The retry budget against an exact model: a list of everything that happened, of which what is older than the window
//! does not count.

use arbitrary::{Arbitrary, Unstructured};
use remora_core::{
    profile::{BudgetLimits, RetryBudget},
    time::Time,
};
use std::time::Duration;

/// The description of a budget and of what happens.
pub fn budget(data: &[u8]) {
    if let Ok(described) = Described::arbitrary(&mut Unstructured::new(data)) {
        described.holds();
    }
}

#[derive(Arbitrary, Debug)]
struct Described {
    /// Up to 2.55, in hundredths.
    ratio: u8,
    min_per_second: u8,
    /// Beyond a second.
    ttl_ms: u16,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Step {
    Request,
    Retry,
    Passes(u16),
    /// A clock that goes back.
    Back(u16),
}

impl Described {
    fn holds(&self) {
        let ttl = Duration::from_millis(1000 + u64::from(self.ttl_ms) % 59_001);
        let limits = BudgetLimits::new(f32::from(self.ratio) / 100.0, self.min_per_second.into(), ttl);
        let Ok(limits) = limits else { panic!("{self:?} is no budget") };
        let mut budget = RetryBudget::new(limits);
        let mut model = Model { width: ttl.as_nanos() / 10, now: 0, happened: Vec::new() };
        let mut now = Duration::ZERO;
        for (nth, step) in self.steps.iter().take(500).enumerate() {
            match *step {
                Step::Passes(ms) => now += Duration::from_millis(ms.into()),
                Step::Back(ms) => now = now.saturating_sub(Duration::from_millis(ms.into())),
                Step::Request => {
                    budget.request(Time(now));
                    model.happens(now, false);
                }
                Step::Retry => {
                    let (requests, retries) = model.counting(now);
                    // In thousandths of a millionth of a retry, as whole numbers.
                    let earned = requests * u128::from(self.ratio) * 10_000_000;
                    let reserve = u128::from(self.min_per_second) * ttl.as_millis() * 1_000_000;
                    let expected = (retries + 1) * 1_000_000_000 <= earned + reserve;
                    let allowed = budget.retry(Time(now));
                    assert_eq!(
                        allowed, expected,
                        "step {nth}, {requests} requests, {retries} retries: {self:?}"
                    );
                    if allowed {
                        model.happens(now, true);
                    }
                }
            }
        }
    }
}

/// Everything that happened: in which tenth of a window, and whether it was a retry.
struct Model {
    width: u128,
    /// The latest tenth: time does not go back.
    now: u128,
    happened: Vec<(u128, bool)>,
}

impl Model {
    fn happens(&mut self, now: Duration, retry: bool) {
        self.now = self.now.max(now.as_nanos() / self.width);
        self.happened.push((self.now, retry));
    }

    /// Requests and retries of the last ten tenths, the present one included.
    fn counting(&mut self, now: Duration) -> (u128, u128) {
        self.now = self.now.max(now.as_nanos() / self.width);
        let mut counted = (0, 0);
        for (at, retry) in &self.happened {
            if at + 10 > self.now {
                let count = if *retry { &mut counted.1 } else { &mut counted.0 };
                *count += 1;
            }
        }
        counted
    }
}

//! How loaded an endpoint is: a moving average of its round-trip times that jumps up at once and decays slowly.

#[cfg(planted)]
use crate::planted;
use crate::time::Time;
use core::time::Duration;

/// The peak-sensitive, exponentially decaying average of round-trip times.
#[derive(Clone, Copy, Debug)]
pub struct PeakEwma {
    estimate_ns: f64,
    updated: Time,
    decay: Duration,
}

/// An estimate never decays below this, so that among endpoints that were idle for long the requests in flight still
/// decide.
const FLOOR_NS: f64 = 1.0;

impl PeakEwma {
    /// Begins with `default_rtt`; an observation's weight falls to 1/e after `decay`.
    pub fn new(default_rtt: Duration, decay: Duration, now: Time) -> Self {
        Self { estimate_ns: default_rtt.as_nanos() as f64, updated: now, decay }
    }

    /// Takes a measured round trip: a higher one replaces the estimate, a lower one is averaged in.
    pub fn observe(&mut self, rtt: Duration, now: Time) {
        let rtt_ns = rtt.as_nanos() as f64;
        if rtt_ns >= self.estimate_ns {
            self.estimate_ns = rtt_ns;
        } else {
            let kept = self.kept(now);
            self.estimate_ns = self.estimate_ns * kept + rtt_ns * (1.0 - kept);
        }
        // Completions may be told out of order; an older one must not turn the clock back.
        self.updated = self.updated.max(now);
    }

    /// Estimate decayed to `now`, in nanoseconds, times one more than the requests in flight. Always a positive
    /// number.
    pub fn load(&self, in_flight: u32, now: Time) -> f64 {
        self.estimate(now) * (f64::from(in_flight) + 1.0)
    }

    /// Estimate decayed to `now`, in nanoseconds. Always a positive number.
    pub fn estimate(&self, now: Time) -> f64 {
        (self.estimate_ns * self.kept(now)).max(FLOOR_NS)
    }

    /// Estimate as it was when it was last measured, in nanoseconds. Always a positive number.
    pub fn measured(&self) -> f64 {
        self.estimate_ns.max(FLOOR_NS)
    }

    /// The share of the estimate that is left at `now`, 0.0 to 1.0.
    fn kept(&self, now: Time) -> f64 {
        let elapsed = now.since(self.updated);
        #[cfg(planted)]
        let elapsed =
            if planted::makes(planted::Mistake::DecayIsForgotten) { Duration::ZERO } else { elapsed };
        if elapsed.is_zero() {
            return 1.0;
        }
        if self.decay.is_zero() {
            return 0.0;
        }
        libm::exp(-(elapsed.as_secs_f64() / self.decay.as_secs_f64()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DECAY: Duration = Duration::from_secs(10);

    #[test]
    fn it_begins_with_the_default() {
        close(starting().load(0, at(0)), ms(30));
    }

    #[test]
    fn each_request_in_flight_adds_the_estimate_once() {
        close(starting().load(3, at(0)), 4.0 * ms(30));
    }

    #[test]
    fn a_slower_answer_counts_at_once() {
        let mut ewma = starting();
        ewma.observe(Duration::from_millis(900), at(0));
        close(ewma.load(0, at(0)), ms(900));
    }

    #[test]
    fn a_faster_answer_is_averaged_in() {
        let mut ewma = starting();
        ewma.observe(Duration::from_millis(10), at(10));
        let kept = libm::exp(-1.0);
        close(ewma.load(0, at(10)), ms(30) * kept + ms(10) * (1.0 - kept));
    }

    #[test]
    fn an_idle_endpoint_is_forgiven() {
        close(starting().load(0, at(10)), ms(30) * libm::exp(-1.0));
    }

    #[test]
    fn among_the_long_idle_the_requests_in_flight_decide() {
        let ewma = starting();
        assert!(ewma.load(0, at(1_000_000)) < ewma.load(1, at(1_000_000)));
    }

    #[test]
    fn a_clock_that_goes_backwards_changes_nothing() {
        let mut ewma = PeakEwma::new(Duration::from_millis(30), DECAY, at(10));
        ewma.observe(Duration::from_millis(10), at(5));
        close(ewma.load(0, at(3)), ms(30));
        close(ewma.load(0, at(20)), ms(30) * libm::exp(-1.0));
    }

    #[test]
    fn without_decay_only_the_last_answer_counts() {
        let mut ewma = PeakEwma::new(Duration::from_millis(30), Duration::ZERO, at(0));
        ewma.observe(Duration::from_millis(10), at(1));
        close(ewma.load(0, at(1)), ms(10));
    }

    proptest! {
        #[test]
        fn a_load_is_positive_and_no_nan_whatever_happens(
            default in any::<Duration>(),
            decay in any::<Duration>(),
            steps in proptest::collection::vec((any::<Duration>(), any::<Duration>(), any::<u32>()), 0..20),
        ) {
            let mut ewma = PeakEwma::new(default, decay, at(0));
            for (rtt, now, in_flight) in steps {
                let now = Time(now);
                ewma.observe(rtt, now);
                let load = ewma.load(in_flight, now);
                prop_assert!(load > 0.0 && load.is_finite(), "{}", load);
                prop_assert!(ewma.load(in_flight, now + Duration::from_secs(1)) <= load);
            }
        }

        #[test]
        fn an_estimate_is_never_below_the_fastest_answer(
            rtts in proptest::collection::vec(1u64..1_000_000, 1..20),
        ) {
            let mut ewma = starting();
            let fastest = rtts.iter().copied().min().unwrap_or(0).min(30_000);
            for (second, rtt) in (0u64..).zip(&rtts) {
                ewma.observe(Duration::from_micros(*rtt), at(second));
                prop_assert!(ewma.load(0, at(second)) >= (fastest * 1000) as f64 * 0.999);
            }
        }
    }

    fn starting() -> PeakEwma {
        PeakEwma::new(Duration::from_millis(30), DECAY, at(0))
    }

    fn at(secs: u64) -> Time {
        Time(Duration::from_secs(secs))
    }

    fn ms(ms: u32) -> f64 {
        f64::from(ms) * 1e6
    }

    #[track_caller]
    fn close(left: f64, right: f64) {
        assert!((left - right).abs() < 1.0, "{left} is not {right}");
    }
}

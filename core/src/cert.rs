//! When to ask for a certificate, and when to stop trusting the one we have. Contract 2.4.
//!
//! Knows nothing of keys, of the identity service, or of the time of day: `runtime/src/certify.rs` asks and waits,
//! and tells this module what happened.

#[cfg(planted)]
use crate::planted;
use crate::time::UnixTime;
use core::time::Duration;

/// Bounds of the wait between renewals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefreshBounds {
    /// `LINKERD2_PROXY_IDENTITY_MIN_REFRESH`, 10 s by default.
    pub min: Duration,
    /// `LINKERD2_PROXY_IDENTITY_MAX_REFRESH`, 24 h by default.
    pub max: Duration,
}

impl RefreshBounds {
    /// 70 % of what remains, within the bounds. Where they contradict each other the minimum holds.
    fn wait(self, remaining: Duration) -> Duration {
        (remaining / 10 * 7).min(self.max).max(self.min)
    }
}

/// ```text
///          issued               renew_at              issued
/// Absent ─────────▶ Fresh ─────────────▶ Renewing ─────────▶ Fresh
///    ▲                │                     │
///    └────────────────┴─────────────────────┘ expires
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lifecycle {
    /// No certificate: nothing can be proxied.
    Absent {
        /// Failures since the last certificate.
        failures: u32,
        /// Since when: the last failure, or the certificate's end.
        since: UnixTime,
        /// Not before.
        next: UnixTime,
    },
    /// Good, and not yet to be renewed.
    Fresh {
        /// End of the certificate.
        expires: UnixTime,
        /// When to ask for the next.
        renew_at: UnixTime,
    },
    /// Still in use; being replaced.
    Renewing {
        /// End of the certificate.
        expires: UnixTime,
        /// Failures so far.
        failures: u32,
        /// Not before.
        next: UnixTime,
    },
}

/// What the caller should do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ask identity now.
    Ask,
    /// Nothing before this time.
    Wait(UnixTime),
}

impl Lifecycle {
    /// Nothing yet; ask at once.
    pub fn starting(now: UnixTime) -> Self {
        Self::Absent { failures: 0, since: now, next: now }
    }

    /// What to do at `now`; moves `Fresh` to `Renewing` and an expired certificate to `Absent`.
    pub fn poll(&mut self, now: UnixTime) -> Action {
        match *self {
            Self::Fresh { expires, .. } if now >= expires => {
                *self = Self::Absent { failures: 0, since: now, next: now };
            }
            #[cfg(planted)]
            Self::Renewing { .. } if planted::makes(planted::Mistake::EndIsMissed) => {}
            Self::Renewing { expires, failures, next } if now >= expires => {
                *self = Self::Absent { failures, since: now, next };
            }
            Self::Fresh { expires, renew_at } if now >= renew_at => {
                *self = Self::Renewing { expires, failures: 0, next: now };
            }
            Self::Absent { .. } | Self::Fresh { .. } | Self::Renewing { .. } => {}
        }
        match *self {
            // The clock was set back: what is left of the wait could be hours, in which nothing is served.
            Self::Absent { since, .. } if now < since => Action::Ask,
            Self::Absent { next, .. } | Self::Renewing { next, .. } if now >= next => Action::Ask,
            Self::Absent { next, .. } => Action::Wait(next),
            // Whoever waits must be back when the certificate ends, not only when the next attempt is due.
            Self::Fresh { expires, renew_at } => Action::Wait(renew_at.min(expires)),
            Self::Renewing { expires, next, .. } => Action::Wait(next.min(expires)),
        }
    }

    /// A certificate arrived. The next attempt is at 70 % of what remains of it, within `bounds`. One that has
    /// already ended counts as a failure, and the next attempt is after `bounds.min`.
    pub fn issued(&mut self, expires: UnixTime, now: UnixTime, bounds: RefreshBounds) {
        *self = if now >= expires {
            Self::Absent { failures: self.failures().saturating_add(1), since: now, next: now + bounds.min }
        } else {
            Self::Fresh { expires, renew_at: now + bounds.wait(expires.since(now)) }
        };
    }

    /// An attempt failed. Without a certificate the next one follows by `backoff`; with one, by the formula of
    /// `issued` on what remains, but by `backoff` (at least `bounds.min`) once less than `bounds.min` remains.
    pub fn failed(
        &mut self,
        now: UnixTime,
        bounds: RefreshBounds,
        backoff: crate::backoff::Backoff,
        random: u64,
    ) {
        let failures = self.failures();
        let backoff = backoff.delay(failures, random);
        let failed = failures.saturating_add(1);
        *self = match self.expires() {
            Some(expires) if now < expires => {
                let remaining = expires.since(now);
                let wait =
                    if remaining < bounds.min { backoff.max(bounds.min) } else { bounds.wait(remaining) };
                Self::Renewing { expires, failures: failed, next: now + wait }
            }
            Some(_) | None => Self::Absent { failures: failed, since: now, next: now + backoff },
        };
    }

    /// Failures since the last certificate.
    pub fn failures(&self) -> u32 {
        match self {
            Self::Fresh { .. } => 0,
            Self::Absent { failures, .. } | Self::Renewing { failures, .. } => *failures,
        }
    }

    /// End of the certificate in use.
    pub fn expires(&self) -> Option<UnixTime> {
        match self {
            Self::Absent { .. } => None,
            Self::Fresh { expires, .. } | Self::Renewing { expires, .. } => Some(*expires),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backoff::Backoff;
    use proptest::prelude::*;

    const BOUNDS: RefreshBounds =
        RefreshBounds { min: Duration::from_secs(10), max: Duration::from_hours(24) };
    const BACKOFF: Backoff =
        Backoff { min: Duration::from_secs(1), max: Duration::from_secs(30), jitter: 0.0 };

    #[test]
    fn a_new_process_asks_at_once() {
        assert_eq!(Lifecycle::starting(at(5)).poll(at(5)), Action::Ask);
    }

    #[test]
    fn a_day_long_certificate_is_renewed_after_seventy_percent() {
        assert_eq!(issued(86_400).poll(at(0)), Action::Wait(at(60_480)));
    }

    #[test]
    fn a_long_certificate_is_renewed_after_the_maximum() {
        assert_eq!(issued(10 * 86_400).poll(at(0)), Action::Wait(at(86_400)));
    }

    #[test]
    fn a_short_certificate_is_renewed_after_the_minimum() {
        assert_eq!(issued(12).poll(at(0)), Action::Wait(at(10)));
    }

    #[test]
    fn a_certificate_shorter_than_the_minimum_is_asked_for_again_when_it_ends() {
        let mut cert = issued(5);
        assert_eq!(cert.poll(at(0)), Action::Wait(at(5)));
        assert_eq!(cert.poll(at(5)), Action::Ask);
        assert_eq!(cert.expires(), None);
    }

    #[test]
    fn a_due_renewal_keeps_the_certificate() {
        let mut cert = issued(100);
        assert_eq!(cert.poll(at(69)), Action::Wait(at(70)));
        assert_eq!(cert.poll(at(70)), Action::Ask);
        assert_eq!(cert.expires(), Some(at(100)));
    }

    #[test]
    fn a_certificate_that_ends_is_gone() {
        let mut cert = issued(100);
        assert_eq!(cert.poll(at(100)), Action::Ask);
        assert_eq!(cert.expires(), None);
    }

    #[test]
    fn a_failed_renewal_waits_seventy_percent_of_the_rest() {
        let mut cert = issued(1000);
        assert_eq!(cert.poll(at(700)), Action::Ask);
        cert.failed(at(700), BOUNDS, BACKOFF, 0);
        assert_eq!(cert.poll(at(700)), Action::Wait(at(910)));
        assert_eq!(cert.failures(), 1);
    }

    #[test]
    fn a_renewal_that_fails_in_the_last_seconds_waits_the_minimum_but_wakes_at_the_end() {
        let mut cert = issued(1000);
        cert.failed(at(995), BOUNDS, BACKOFF, 0);
        assert_eq!(cert.poll(at(995)), Action::Wait(at(1000)));
        assert_eq!(cert.poll(at(1000)), Action::Wait(at(1005)));
        assert_eq!(cert.expires(), None);
    }

    #[test]
    fn without_a_certificate_failures_back_off() {
        let mut cert = Lifecycle::starting(at(0));
        cert.failed(at(0), BOUNDS, BACKOFF, 0);
        assert_eq!(cert.poll(at(0)), Action::Wait(at(1)));
        cert.failed(at(1), BOUNDS, BACKOFF, 0);
        assert_eq!(cert.poll(at(1)), Action::Wait(at(3)));
        assert_eq!(cert.poll(at(3)), Action::Ask);
    }

    #[test]
    fn a_clock_that_is_set_back_does_not_keep_a_process_without_certificate_waiting() {
        let mut cert = Lifecycle::starting(at(10_000));
        cert.failed(at(10_000), BOUNDS, BACKOFF, 0);
        assert_eq!(cert.poll(at(10_000)), Action::Wait(at(10_001)));
        assert_eq!(cert.poll(at(6_400)), Action::Ask);
    }

    #[test]
    fn a_certificate_that_has_already_ended_is_not_used() {
        let mut cert = Lifecycle::starting(at(50));
        cert.issued(at(50), at(50), BOUNDS);
        assert_eq!(cert.expires(), None);
        assert_eq!(cert.poll(at(50)), Action::Wait(at(60)));
    }

    #[test]
    fn a_certificate_clears_the_failures() {
        let mut cert = Lifecycle::starting(at(0));
        cert.failed(at(0), BOUNDS, BACKOFF, 0);
        cert.issued(at(100), at(1), BOUNDS);
        assert_eq!(cert.failures(), 0);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Issued { lasts: u16 },
        Failed { random: u64 },
        Elapse { secs: u16 },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            any::<u16>().prop_map(|lasts| Step::Issued { lasts }),
            any::<u64>().prop_map(|random| Step::Failed { random }),
            any::<u16>().prop_map(|secs| Step::Elapse { secs }),
        ]
    }

    proptest! {
        #[test]
        fn a_wait_ends_later_and_an_ended_certificate_is_never_kept(
            steps in proptest::collection::vec(step(), 0..40),
        ) {
            let mut now = at(1_000_000);
            let mut cert = Lifecycle::starting(now);
            for step in steps {
                match step {
                    Step::Issued { lasts } => cert.issued(now + Duration::from_secs(lasts.into()), now, BOUNDS),
                    Step::Failed { random } => cert.failed(now, BOUNDS, BACKOFF, random),
                    Step::Elapse { secs } => now = now + Duration::from_secs(secs.into()),
                }
                if let Action::Wait(until) = cert.poll(now) {
                    prop_assert!(until > now);
                    prop_assert!(cert.expires().is_none_or(|expires| until <= expires));
                }
                prop_assert!(cert.expires().is_none_or(|expires| expires > now));
            }
        }

        #[test]
        fn an_attempt_that_failed_is_not_repeated_at_once(lasts in 0u64..100_000, random in any::<u64>()) {
            let mut cert = issued(lasts);
            cert.failed(at(0), BOUNDS, BACKOFF, random);
            prop_assert!(matches!(cert.poll(at(0)), Action::Wait(until) if until > at(0)));
        }
    }

    fn at(secs: u64) -> UnixTime {
        UnixTime::from_secs(secs)
    }

    /// Issued at 0.
    fn issued(lasts: u64) -> Lifecycle {
        let mut cert = Lifecycle::starting(at(0));
        cert.issued(at(lasts), at(0), BOUNDS);
        cert
    }
}

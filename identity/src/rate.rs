//! Pure. How often one source may ask: a token bucket per address, in a table of bounded size.

use remora_core::time::Time;
use std::{collections::HashMap, net::IpAddr, time::Duration};

/// How often, and how many sources are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// Requests that may come at once.
    pub burst: u32,
    /// One more after each.
    pub interval: Duration,
    /// Addresses remembered; all further ones share one bucket.
    pub sources: usize,
}

impl Default for RateLimit {
    /// 30 at once, then one a second: a pod needs one every few hours, a hundred pods behind one address still start.
    fn default() -> Self {
        Self { burst: 30, interval: Duration::from_secs(1), sources: 65_536 }
    }
}

/// The buckets.
#[derive(Debug)]
pub struct RateLimiter {
    limit: RateLimit,
    buckets: HashMap<IpAddr, Bucket>,
    /// Of addresses for which there is no room: when the table is full of busy ones, newcomers share.
    shared: Bucket,
    pruned: Time,
}

/// Full at `full`: the later, the emptier.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    full: Time,
}

impl Bucket {
    fn take(&mut self, now: Time, limit: RateLimit) -> bool {
        let full = self.full.max(now) + limit.interval;
        // Holds one more if it would be full again within `burst` intervals.
        let fits = full.since(now) <= limit.interval.saturating_mul(limit.burst);
        if fits {
            self.full = full;
        }
        fits
    }
}

impl RateLimiter {
    /// Empty.
    pub fn new(limit: RateLimit) -> Self {
        Self { limit, buckets: HashMap::new(), shared: Bucket::default(), pruned: Time::default() }
    }

    /// May `source` ask at `now`? Time must not go backwards.
    pub fn take(&mut self, source: IpAddr, now: Time) -> bool {
        if !self.buckets.contains_key(&source) && self.buckets.len() >= self.limit.sources {
            self.prune(now);
            if self.buckets.len() >= self.limit.sources {
                return self.shared.take(now, self.limit);
            }
        }
        self.buckets.entry(source).or_default().take(now, self.limit)
    }

    /// Forgets the full buckets: they are as good as new ones. At most once per interval, because it looks at all.
    fn prune(&mut self, now: Time) {
        if now.since(self.pruned) >= self.limit.interval {
            self.pruned = now;
            self.buckets.retain(|_, bucket| bucket.full > now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    const LIMIT: RateLimit = RateLimit { burst: 3, interval: Duration::from_secs(2), sources: 4 };

    #[test]
    fn a_burst_then_one_per_interval() {
        let mut limiter = RateLimiter::new(LIMIT);
        assert_eq!(taken(&mut limiter, 1, 0), 3);
        assert_eq!(taken(&mut limiter, 1, 1), 0);
        assert_eq!(taken(&mut limiter, 1, 2), 1);
        assert_eq!(taken(&mut limiter, 1, 6), 2);
        assert_eq!(taken(&mut limiter, 1, 1000), 3);
    }

    #[test]
    fn sources_do_not_share() {
        let mut limiter = RateLimiter::new(LIMIT);
        assert_eq!(taken(&mut limiter, 1, 0), 3);
        assert_eq!(taken(&mut limiter, 2, 0), 3);
    }

    #[test]
    fn a_full_table_makes_newcomers_share_and_grows_no_more() {
        let mut limiter = RateLimiter::new(LIMIT);
        for source in 1..=4 {
            assert_eq!(taken(&mut limiter, source, 2), 3);
        }
        assert_eq!(taken(&mut limiter, 5, 2), 3);
        assert_eq!(taken(&mut limiter, 6, 2), 0, "one bucket for all newcomers");
        assert_eq!(limiter.buckets.len(), 4);
        // When the old ones have been quiet for long enough, their places are free.
        assert_eq!(taken(&mut limiter, 6, 8), 3);
        assert_eq!(limiter.buckets.len(), 1);
    }

    #[test]
    fn never_more_than_burst_and_rate_in_any_order_of_times() {
        for step in [1_u64, 3, 7] {
            let mut limiter = RateLimiter::new(LIMIT);
            let mut allowed = 0;
            for second in (0..1000).step_by(usize::try_from(step).unwrap()) {
                allowed += u64::from(limiter.take(source(1), at(second)));
                assert!(allowed <= 3 + second / 2, "{allowed} after {second} s");
            }
        }
    }

    fn taken(limiter: &mut RateLimiter, number: u8, second: u64) -> usize {
        (0..10).filter(|_| limiter.take(source(number), at(second))).count()
    }

    fn source(number: u8) -> IpAddr {
        Ipv4Addr::new(10, 0, 0, number).into()
    }

    fn at(second: u64) -> Time {
        Time(Duration::from_secs(second))
    }
}

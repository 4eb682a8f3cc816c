//! Which endpoint takes the next request: the less loaded of two random ones (power of two choices), by weight, zone and
//! strategy ([`Field`]). How long a request may wait while there is none ([`patience`]), and how much there may be under way
//! ([`Limits`]).

mod limits;
mod shares;
mod strategy;

pub use self::{
    limits::{Limited, Limits},
    shares::Shares,
    strategy::{Draw, Field, LEAST_RTT, SPILL, Standing, Strategy, Turns},
};

use crate::time::Time;
use alloc::{collections::BTreeMap, sync::Arc};
use core::time::Duration;

#[cfg(planted)]
use crate::planted;

/// How a Service wants its endpoints to be balanced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Balancing {
    /// By what they are told apart.
    pub strategy: Strategy,
    /// How much there may be under way to them.
    pub limits: Limits,
}

/// The same by the name of the Service's port (`<svc>.<ns>.svc.<domain>:<port>`), of those that do not want the default.
pub type Balancings = BTreeMap<Arc<str>, Balancing>;

/// How long a request may wait before it looks again, where every endpoint refuses connections: until the first of them
/// is to be tried again, but not beyond `failfast` after the last of them began to refuse (contract 4.5). `None`: it is
/// beyond, and the request fails at once. `refusals` says of each endpoint since when it refuses and until when it is
/// passed over; where there is no endpoint at all, there is none since `empty_since`.
pub fn patience(
    refusals: impl Iterator<Item = Refusal>,
    empty_since: Time,
    now: Time,
    failfast: Duration,
) -> Option<Duration> {
    let all = refusals.reduce(|a, b| Refusal { since: a.since.max(b.since), until: a.until.min(b.until) });
    let (since, until) = match all {
        Some(all) => (all.since, Some(all.until)),
        None => (empty_since, None),
    };
    let left = failfast.saturating_sub(now.since(since));
    if left.is_zero() {
        return None;
    }
    Some(until.map_or(left, |until| until.since(now).min(left)))
}

/// An endpoint that refuses connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Of the first connection that it refused, none having been accepted since.
    pub since: Time,
    /// It is passed over until then.
    pub until: Time,
}

/// The one with less load; a NaN counts as the heaviest there is, and of equals the first drawn wins.
fn lighter((a, load_a): (usize, f64), (b, load_b): (usize, f64)) -> usize {
    #[cfg(planted)]
    if planted::makes(planted::Mistake::HeavierWins) {
        return if load_b.total_cmp(&load_a).is_gt() { b } else { a };
    }
    if load_b.total_cmp(&load_a).is_lt() { b } else { a }
}

/// Two different indices below `count`, which is at least 2; every ordered pair is as likely as any other.
fn two_of(count: usize, random: u64) -> (usize, usize) {
    let first = below(count, random >> 32);
    let second = below(count - 1, random & 0xffff_ffff);
    // Skipping over `first` leaves the others equally likely.
    (first, if second < first { second } else { second + 1 })
}

/// Maps 32 random bits to a number below `count`, without a division.
fn below(count: usize, bits: u64) -> usize {
    ((count as u128 * u128::from(bits)) >> 32) as usize
}

/// The step of SplitMix64.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// Other bits from the same number: the first of those that SplitMix64 makes of it.
fn mix(random: u64) -> u64 {
    nth_of(random, 0)
}

/// Other bits again: the first, second (1), … of those that SplitMix64 makes of a number.
fn nth_of(random: u64, nth: u64) -> u64 {
    #[cfg(planted)]
    let nth = if planted::makes(planted::Mistake::BitsAreUsedTwice) { 0 } else { nth };
    let mut bits = random.wrapping_add(STEP.wrapping_mul(nth.wrapping_add(1)));
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nobody_there_is_waited_for_until_failfast() {
        assert_eq!(wait(&[], 1_000, 1_000), Some(3_000));
        assert_eq!(wait(&[], 1_000, 3_999), Some(1));
        assert_eq!(wait(&[], 1_000, 4_000), None);
    }

    #[test]
    fn who_refuses_is_waited_for_until_the_first_may_be_tried_again() {
        assert_eq!(wait(&[(0, 1_600)], 0, 1_000), Some(600));
        assert_eq!(wait(&[(0, 1_600), (900, 1_200)], 0, 1_000), Some(200));
        assert_eq!(wait(&[(0, 60_000)], 0, 1_000), Some(2_000), "failfast is nearer");
    }

    #[test]
    fn failfast_counts_from_the_last_that_began_to_refuse() {
        assert_eq!(wait(&[(0, 60_000), (8_000, 60_000)], 0, 10_000), Some(1_000));
        assert_eq!(wait(&[(0, 60_000), (8_000, 60_000)], 0, 11_000), None);
        assert_eq!(wait(&[(0, 60_000), (8_000, 12_000)], 0, 11_500), None, "until it is tried again");
    }

    /// Milliseconds in, milliseconds out.
    fn wait(refusals: &[(u64, u64)], empty_since: u64, now: u64) -> Option<u64> {
        let at = |ms| Time(Duration::from_millis(ms));
        let refusals = refusals.iter().map(|&(since, until)| Refusal { since: at(since), until: at(until) });
        let wait = patience(refusals, at(empty_since), at(now), Duration::from_secs(3));
        wait.map(|wait| wait.as_millis() as u64)
    }

    proptest! {
        #[test]
        fn the_two_drawn_differ_and_exist(count in 2usize..100_000, random in any::<u64>()) {
            let (a, b) = two_of(count, random);
            prop_assert!(a < count && b < count && a != b);
        }
    }
}

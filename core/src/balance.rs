//! Which endpoint takes the next request: the less loaded of two random ones (power of two choices). And how long a
//! request may wait while there is none.
//!
//! That is the choice among equals; where they have weights or zones, or their Service another strategy, [`Field`] has it.

mod limits;
mod shares;
mod strategy;

pub use self::{
    limits::{Limited, Limits},
    shares::Shares,
    strategy::{Draw, Field, LEAST_RTT, SPILL, Standing, Strategy},
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

/// An endpoint as the choice sees it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// Its load.
    pub load: f64,
    /// Whether it is thought to answer.
    pub usable: bool,
}

/// Picks an index below `count`: of usable endpoints; when there is none, of all, because the one that may have
/// recovered is better than none. `except` one only when there is no other. `candidate(i)` is endpoint `i`, or `None` if
/// there is none any more; `random` is any number. `None` when there is nobody at all.
pub fn choose(
    count: usize,
    except: Option<usize>,
    candidate: impl Fn(usize) -> Option<Candidate>,
    random: u64,
) -> Option<usize> {
    let other = |index: usize| candidate(index).filter(|_| Some(index) != except);
    #[cfg(planted)]
    let other = |index: usize| {
        other(index)
            .or_else(|| candidate(index).filter(|_| planted::makes(planted::Mistake::AvoidedIsChosen)))
    };
    let usable = |index: usize| other(index).filter(|one| one.usable).map(|one| one.load);
    pick(count, usable, random)
        .or_else(|| pick(count, |index| other(index).map(|one| one.load), random))
        .or_else(|| except.filter(|index| *index < count && candidate(*index).is_some()))
}

/// Picks an index below `count`. `load(i)` is endpoint `i`'s load, or `None` if it cannot be used now; `random` is any
/// number. With fewer than two usable endpoints the choice is obvious; two different ones are always compared.
/// `None` when no endpoint is usable.
///
/// `load` is usually asked twice, and about every endpoint only when one of the first two draws cannot be used.
pub fn pick(count: usize, load: impl Fn(usize) -> Option<f64>, random: u64) -> Option<usize> {
    if count >= 2 {
        let (a, b) = two_of(count, random);
        if let (Some(load_a), Some(load_b)) = (load(a), load(b)) {
            return Some(lighter((a, load_a), (b, load_b)));
        }
    }

    // Only now is it worth counting who is usable. The draw is from fresh bits: that the first one failed says
    // something about the old ones.
    let usable = || (0..count).filter_map(|index| load(index).map(|load| (index, load)));
    match usable().count() {
        0 => None,
        1 => usable().next().map(|(index, _)| index),
        candidates => {
            let (a, b) = two_of(candidates, mix(random));
            match (usable().nth(a), usable().nth(b)) {
                (Some(a), Some(b)) => Some(lighter(a, b)),
                // `load` changed its mind meanwhile; whoever is left will do.
                (a, b) => a.or(b).or_else(|| usable().next()).map(|(index, _)| index),
            }
        }
    }
}

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

/// Other bits from the same number (the finaliser of SplitMix64).
fn mix(random: u64) -> u64 {
    let mut bits = random.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{vec, vec::Vec};
    use proptest::prelude::*;

    #[test]
    fn nobody_is_picked_of_nobody() {
        assert_eq!(pick(0, |_| Some(1.0), 7), None);
    }

    #[test]
    fn nobody_is_picked_when_all_are_unusable() {
        assert_eq!(pick(3, |_| None, 7), None);
    }

    #[test]
    fn a_single_endpoint_is_picked() {
        assert_eq!(pick(1, |_| Some(9.0), u64::MAX), Some(0));
    }

    #[test]
    fn the_only_usable_endpoint_is_picked() {
        for random in draws() {
            assert_eq!(pick(5, |i| (i == 3).then_some(9.0), random), Some(3));
        }
    }

    #[test]
    fn the_lighter_of_two_always_wins() {
        for random in draws() {
            assert_eq!(pick(2, |i| Some(if i == 1 { 1.0 } else { 2.0 }), random), Some(1));
        }
    }

    #[test]
    fn the_heaviest_is_never_picked() {
        for random in draws() {
            assert_ne!(pick(4, |i| Some(if i == 2 { 9.0 } else { 1.0 }), random), Some(2));
        }
    }

    #[test]
    fn a_load_that_is_no_number_loses() {
        for random in draws() {
            assert_eq!(pick(2, |i| Some(if i == 0 { f64::NAN } else { 1e300 }), random), Some(1));
        }
    }

    #[test]
    fn equals_share_the_requests() {
        let mut hits = [0u32; 4];
        for random in draws() {
            hits[pick(4, |_| Some(1.0), random).unwrap()] += 1;
        }
        assert!(hits.iter().all(|&n| (800..1200).contains(&n)), "of 4000 draws: {hits:?}");
    }

    #[test]
    fn usable_equals_share_the_requests_when_others_are_down() {
        let mut hits = [0u32; 8];
        for random in draws() {
            hits[pick(8, |i| (i % 2 == 0).then_some(1.0), random).unwrap()] += 1;
        }
        assert!(hits.iter().step_by(2).all(|&n| (800..1200).contains(&n)), "of 4000 draws: {hits:?}");
        assert!(hits.iter().skip(1).step_by(2).all(|&n| n == 0));
    }

    #[test]
    fn the_one_to_avoid_is_chosen_last() {
        for (usable, except, expected) in [
            ([true, true], Some(0), 1),
            // Another that may have recovered comes before the one that has just failed.
            ([true, false], Some(0), 1),
            ([false, false], Some(1), 0),
            ([false, true], None, 1),
        ] {
            for random in draws() {
                let candidate = |index: usize| Some(Candidate { load: index as f64, usable: usable[index] });
                assert_eq!(choose(2, except, candidate, random), Some(expected), "{usable:?} but {except:?}");
            }
        }
        assert_eq!(choose(1, Some(0), |_| Some(Candidate { load: 1.0, usable: false }), 7), Some(0));
        assert_eq!(choose(1, Some(0), |_| None, 7), None);
        assert_eq!(choose(0, None, |_| None, 7), None);
    }

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
        fn the_choice_is_usable_and_not_the_heaviest(
            loads in proptest::collection::vec(proptest::option::of(0u32..1000), 0..20),
            random in any::<u64>(),
        ) {
            let usable: Vec<_> = loads.iter().flatten().collect();
            let picked = pick(loads.len(), |i| loads[i].map(f64::from), random);
            prop_assert_eq!(picked.is_some(), !usable.is_empty());
            if let Some(load) = picked.map(|i| loads[i].unwrap()) {
                let heavier = usable.iter().filter(|&&&other| other >= load).count();
                prop_assert!(usable.len() == 1 || heavier >= 2, "{} of {:?}", load, usable);
            }
        }

        #[test]
        fn the_two_drawn_differ_and_exist(count in 2usize..100_000, random in any::<u64>()) {
            let (a, b) = two_of(count, random);
            prop_assert!(a < count && b < count && a != b);
        }
    }

    /// 4000 numbers that look random and are the same in every run.
    fn draws() -> Vec<u64> {
        let mut state = 1;
        let mut all = vec![];
        for _ in 0..4000 {
            state = mix(state);
            all.push(state);
        }
        all
    }
}

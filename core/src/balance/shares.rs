//! Endpoints as shares of traffic: which of them is drawn, at random or in turn, by weight.

use super::{mix, two_of};
use alloc::vec::Vec;

/// Endpoints that follow each other in their destination's list, each with its share of what they get together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shares {
    first: usize,
    count: usize,
    /// The sum of all weights up to and with each endpoint's; empty where all weigh the same.
    sums: Vec<u64>,
    /// What divides all of them.
    unit: u64,
    /// How far one turn is from the next, in units.
    stride: u64,
}

impl Shares {
    /// Of the endpoints from `first` on, with these weights.
    pub fn new(first: usize, weights: &[u32]) -> Self {
        let same = weights.windows(2).all(|two| matches!(two, [a, b] if a == b));
        let even = Self { first, count: weights.len(), ..Self::default() };
        if same {
            return even;
        }
        let unit = weights.iter().fold(0, |unit, weight| gcd(unit, u64::from(*weight)));
        let mut total = 0u64;
        let sums = weights.iter().map(|weight| {
            total = total.saturating_add(u64::from(*weight));
            total
        });
        let sums = sums.collect();
        Self { sums, unit, stride: stride(total / unit.max(1)), ..even }
    }

    /// Endpoints.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Do all of them weigh the same?
    pub fn is_even(&self) -> bool {
        self.sums.is_empty()
    }

    /// The numbers of its endpoints in their destination's list.
    pub fn indices(&self) -> core::ops::Range<usize> {
        self.first..self.first.saturating_add(self.count)
    }

    /// What an endpoint should get, as a multiple of the mean. Above zero.
    pub fn share(&self, index: usize) -> f64 {
        if self.is_even() {
            return 1.0;
        }
        let mean = self.total() as f64 / self.count as f64;
        (self.weight(index) as f64 / mean).max(f64::MIN_POSITIVE)
    }

    /// Two endpoints. Where all weigh the same they differ, and every pair is as likely as any other; else each is drawn
    /// by weight, so that a heavy one may be drawn twice. The only one is always drawn twice. `None` if there is none.
    pub(super) fn two(&self, random: u64) -> Option<(usize, usize)> {
        match self.count {
            0 => None,
            1 => Some((self.first, self.first)),
            count if self.is_even() => {
                let (a, b) = two_of(count, random);
                Some((self.first + a, self.first + b))
            }
            _ => Some((self.at(part(self.total(), random)), self.at(part(self.total(), mix(random))))),
        }
    }

    /// Whose turn it is. Of as many turns in a row as the weights have units together (of `count` turns where all weigh
    /// the same) each endpoint has exactly as many as its own weight has, spread out among them.
    pub(super) fn turn(&self, nth: u64) -> Option<usize> {
        let count = u64::try_from(self.count).ok().filter(|count| *count > 0)?;
        if self.is_even() {
            return Some(self.first + usize::try_from(nth % count).unwrap_or_default());
        }
        let round = self.total() / self.unit.max(1);
        let place = u128::from(nth % round.max(1)) * u128::from(self.stride) % u128::from(round.max(1));
        Some(self.at(u64::try_from(place).unwrap_or_default() * self.unit))
    }

    /// One of those that `look` shows, by weight, if it shows any.
    pub(super) fn one_of<T>(&self, look: &impl Fn(usize) -> Option<T>, random: u64) -> Option<(usize, T)> {
        let shown = || self.indices().filter_map(|index| Some((index, look(index)?)));
        let weight = |index: usize| if self.is_even() { 1 } else { self.weight(index) };
        let total: u64 = shown().map(|(index, _)| weight(index)).sum();
        if total == 0 {
            // What weighs nothing is as good as anything where nothing else is shown.
            let count = u64::try_from(shown().count()).unwrap_or(u64::MAX);
            return shown().nth(usize::try_from(part(count, random)).unwrap_or_default());
        }
        let mut left = part(total, random);
        shown().find(|(index, _)| match left.checked_sub(weight(*index)) {
            Some(less) => {
                left = less;
                false
            }
            None => true,
        })
    }

    fn total(&self) -> u64 {
        self.sums.last().copied().unwrap_or_default()
    }

    /// Of an endpoint where weights differ.
    fn weight(&self, index: usize) -> u64 {
        let at = index.wrapping_sub(self.first);
        let sum = |at: usize| self.sums.get(at).copied();
        let before = at.checked_sub(1).and_then(sum).unwrap_or_default();
        sum(at).map_or(0, |sum| sum - before)
    }

    /// The endpoint in whose share a place below the sum of all weights is.
    fn at(&self, place: u64) -> usize {
        self.first + self.sums.partition_point(|sum| *sum <= place).min(self.count.saturating_sub(1))
    }
}

/// Maps 64 random bits to a number below `total`.
fn part(total: u64, random: u64) -> u64 {
    ((u128::from(total) * u128::from(random)) >> 64) as u64
}

fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// A step that visits all of `round` places once, neighbours in time far apart: the golden section, or the next number
/// that has no divisor in common with `round`.
fn stride(round: u64) -> u64 {
    let golden = (u128::from(round) * 618_034 / 1_000_000) as u64;
    (golden.max(1)..=round.max(1)).find(|step| gcd(*step, round) == 1).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use proptest::prelude::*;

    #[test]
    fn turns_go_round() {
        for (weights, expected) in [
            (&[7, 7, 7][..], &[2, 3, 4, 2, 3, 4][..]),
            (&[10_000], &[2, 2, 2]),
            (&[10_000, 30_000], &[2, 3, 3, 3, 2, 3, 3, 3]),
            (&[0, 5], &[3, 3, 3]),
            (&[0, 0], &[2, 3, 2, 3]),
        ] {
            let shares = Shares::new(2, weights);
            let turns: Vec<_> = (0..).map_while(|nth| shares.turn(nth)).take(expected.len()).collect();
            assert_eq!(turns, expected, "{weights:?}");
        }
        assert_eq!(Shares::new(0, &[]).turn(7), None);
    }

    #[test]
    fn the_shares_of_a_draw_are_those_of_the_weights() {
        let shares = Shares::new(0, &[10_000, 0, 30_000]);
        let mut hits = [0u32; 3];
        let mut random = 1;
        for _ in 0..4000 {
            random = mix(random);
            let (a, b) = shares.two(random).unwrap();
            hits[a] += 1;
            hits[b] += 1;
        }
        assert!((1800..2200).contains(&hits[0]) && hits[1] == 0, "{hits:?}");
    }

    proptest! {
        #[test]
        fn every_round_of_turns_has_each_endpoint_as_often_as_it_weighs(
            weights in proptest::collection::vec(0u32..50, 1..8),
            factor in 1u32..1000,
            from in 0u64..1_000_000,
        ) {
            prop_assume!(weights.iter().any(|weight| *weight > 0));
            let shares = Shares::new(0, &weights.iter().map(|weight| weight * factor).collect::<Vec<_>>());
            let even = weights.iter().all(|weight| *weight == weights[0]);
            let unit = weights.iter().fold(0, |unit, weight| gcd(unit, u64::from(*weight)));
            let expected: Vec<u64> =
                weights.iter().map(|weight| if even { 1 } else { u64::from(*weight) / unit }).collect();
            let round: u64 = expected.iter().sum();
            let mut had = vec![0; weights.len()];
            let from = from / round * round;
            for nth in from..from + round {
                had[shares.turn(nth).unwrap()] += 1;
            }
            prop_assert_eq!(had, expected);
        }

        #[test]
        fn who_is_drawn_exists_and_weighs_something(
            weights in proptest::collection::vec(prop_oneof![Just(0u32), any::<u32>()], 0..20),
            first in 0usize..5,
            random in any::<u64>(),
            nth in any::<u64>(),
        ) {
            let shares = Shares::new(first, &weights);
            let heavy = |index: usize| shares.is_even() || weights[index - first] > 0;
            let two = shares.two(random);
            prop_assert_eq!(two.is_some(), !weights.is_empty());
            for index in two.into_iter().flat_map(|(a, b)| [a, b]).chain(shares.turn(nth)) {
                prop_assert!(shares.indices().contains(&index) && heavy(index), "{} of {:?}", index, weights);
                prop_assert!(shares.share(index) > 0.0);
            }
            let one = shares.one_of(&|index| (index % 2 == 0).then_some(()), random);
            prop_assert_eq!(one.is_some(), shares.indices().any(|index| index % 2 == 0));
        }
    }
}

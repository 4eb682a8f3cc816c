//! Round robin, turn after turn.

use super::{Described, Endpoint, Model, next};
use remora_core::balance::{Draw, Field, Standing, Strategy, Turns};

/// Requests that are looked at.
const REQUESTS: usize = 100;
/// No endpoint has more turns than so many in a round.
const MOST: u32 = 40;

/// The turns of endpoints that are asked together.
struct Order {
    first: usize,
    count: usize,
    /// One round.
    round: Vec<usize>,
    taken: u64,
}

impl Described {
    pub(super) fn turns_hold(&self) {
        let (own, others) = self.zones();
        let [home, away] =
            [&own, &others].map(|of| of.iter().map(|one| one.weight().min(MOST)).collect::<Vec<_>>());
        let from = self.seed >> 1;
        let (field, turns) = (Field::new(&home, &away), Turns::beginning_with(from));
        let mut orders = (Order::of(0, &home, from), Order::of(home.len(), &away, from));
        let mut state = self.seed;
        for (nth, mask) in self.usable.iter().take(REQUESTS).enumerate() {
            let standing = own.iter().chain(&others).enumerate().map(|(index, one)| {
                Endpoint { there: true, usable: mask >> index & 1 == 1, ..*one }.standing()
            });
            let standing: Vec<_> = standing.collect();
            let at = |index: usize| standing.get(index).copied().flatten();
            let draw = Draw { strategy: Strategy::RoundRobin, except: None, random: next(&mut state) };
            let chosen = field.choose(draw, at, &turns);
            let model = Model::new(Strategy::RoundRobin, home.clone(), away.clone(), standing.clone(), None);
            let may = model.in_turn(&mut orders);
            let told = format!("request {nth} of {self:?}");
            assert_eq!(chosen.is_none(), may.is_empty(), "{told}");
            assert!(chosen.is_none_or(|chosen| may.contains(&chosen)), "{chosen:?}, not {may:?}: {told}");
        }
    }
}

impl Model {
    /// Whose turn it is: one, or several where the turns of a whole round were those of others.
    fn in_turn(&self, (home, away): &mut (Order, Order)) -> Vec<usize> {
        if self.away.is_some() {
            match home.pass(2, self) {
                Some(own) if !self.is_busy(own) => return vec![own],
                Some(own) => {
                    let others = away.any(self);
                    let goes = |other: usize| if self.spills(own, other) { other } else { own };
                    return if others.is_empty() {
                        vec![own]
                    } else {
                        others.into_iter().map(goes).collect()
                    };
                }
                None => {
                    let others = away.any(self);
                    if !others.is_empty() {
                        return others;
                    }
                }
            }
        }
        let own = home.any(self);
        if own.is_empty() { self.home.indices().collect() } else { own }
    }
}

impl Order {
    /// As everybody in good health has them, with the first one to be taken.
    fn of(first: usize, weights: &[u32], from: u64) -> Self {
        let one = Standing { usable: true, rtt_ns: 1.0, kept_rtt_ns: 1.0, in_flight: 0 };
        let (field, turns) = (Field::new(weights, &[]), Turns::default());
        let draw = Draw { strategy: Strategy::RoundRobin, except: None, random: 0 };
        let next = || field.choose(draw, |index| (index < weights.len()).then_some(one), &turns);
        let shares = shares(weights);
        let round: Vec<usize> = (0..shares.iter().sum()).filter_map(|_| next()).collect();
        for (index, share) in shares.iter().enumerate() {
            let had = round.iter().filter(|other| **other == index).count();
            assert_eq!(had, *share, "{index} of {weights:?} by {round:?}");
        }
        let again: Vec<usize> = round.iter().filter_map(|_| next()).collect();
        assert_eq!(again, round, "every round is the same");
        Self { first, count: weights.len(), round, taken: from }
    }

    /// The next of so many turns that is one of who can be used.
    fn pass(&mut self, most: usize, model: &Model) -> Option<usize> {
        (0..most).find_map(|_| {
            let len = u64::try_from(self.round.len()).ok().filter(|len| *len > 0)?;
            let index = self.first + self.round[usize::try_from(self.taken % len).ok()?];
            self.taken += 1;
            model.usable(index).map(|_| index)
        })
    }

    /// The same of as many turns as there are endpoints; where they are all those of others, whoever can be used.
    fn any(&mut self, model: &Model) -> Vec<usize> {
        let usable = |index: &usize| model.usable(*index).is_some();
        let all = self.first..self.first + self.count;
        self.pass(self.count, model).map_or_else(|| all.filter(usable).collect(), |index| vec![index])
    }
}

/// Turns that each has in a round: its weight, in the largest units in which all of them are whole.
fn shares(weights: &[u32]) -> Vec<usize> {
    if weights.iter().all(|weight| *weight == weights[0]) {
        return vec![1; weights.len()];
    }
    let divides = |unit: &u32| weights.iter().all(|weight| weight % unit == 0);
    let unit = (1..=MOST).rev().find(divides).unwrap_or(1);
    weights.iter().map(|weight| (weight / unit) as usize).collect()
}

//! The choice among endpoints with weights, zones and strategies: of all that may be drawn it is computed how often each of
//! them must be chosen; of round robin whose turn each single request is.

mod turns;

use arbitrary::{Arbitrary, Unstructured};
use remora_core::balance::{Draw, Field, LEAST_RTT, SPILL, Standing, Strategy, Turns};

/// The description of a destination, and of who of its endpoints can be used.
pub fn strategy(data: &[u8]) {
    if let Ok(described) = Described::arbitrary(&mut Unstructured::new(data)) {
        described.shares_hold();
        described.turns_hold();
    }
}

/// Draws by which shares are counted, and by how much chance may miss them: more than seven times its deviation.
const DRAWS: u32 = 4096;
const MISS: f64 = 0.06;

#[derive(Arbitrary, Debug)]
struct Described {
    least_request: bool,
    own: [Option<Endpoint>; 4],
    others: [Option<Endpoint>; 4],
    except: Option<u8>,
    seed: u64,
    /// Who can be used at each request of round robin, a bit each.
    usable: Vec<u8>,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Endpoint {
    weight: u8,
    /// Can it be chosen at all?
    there: bool,
    usable: bool,
    rtt_ms: u16,
    kept_ms: u16,
    in_flight: u8,
}

/// A destination: who are drawn together first, and who are drawn when those are left.
struct Model {
    strategy: Strategy,
    home: Group,
    away: Option<Group>,
    standing: Vec<Option<Standing>>,
    except: Option<usize>,
}

/// Endpoints that follow each other, by the weights of each.
struct Group {
    first: usize,
    weights: Vec<u32>,
}

/// How often each is chosen, of all requests.
type Odds = Vec<f64>;

impl Described {
    /// Those of the client's zone, and the others; where there is no zone, all are the first.
    fn zones(&self) -> (Vec<Endpoint>, Vec<Endpoint>) {
        let [own, others] = [&self.own, &self.others].map(|of| of.iter().flatten().copied().collect());
        if Vec::is_empty(&own) { (others, own) } else { (own, others) }
    }

    fn shares_hold(&self) {
        let (own, others) = self.zones();
        let weights = |of: &[Endpoint]| of.iter().copied().map(Endpoint::weight).collect::<Vec<_>>();
        let strategy = if self.least_request { Strategy::LeastRequest } else { Strategy::PeakEwma };
        let except = self.except.map(usize::from);
        let standing: Vec<_> = own.iter().chain(&others).copied().map(Endpoint::standing).collect();
        let field = Field::new(&weights(&own), &weights(&others));
        let (mut hits, mut state) = (vec![0u32; standing.len()], self.seed);
        for _ in 0..DRAWS {
            let draw = Draw { strategy, except, random: next(&mut state) };
            let at = |index: usize| standing.get(index).copied().flatten();
            let Some(chosen) = field.choose(draw, at, &Turns::default()) else {
                assert!(standing.iter().all(Option::is_none), "nobody is chosen of {self:?}");
                return;
            };
            hits[chosen] += 1;
        }
        let model = Model::new(strategy, weights(&own), weights(&others), standing, except);
        for (index, (hits, expected)) in hits.iter().zip(model.odds()).enumerate() {
            let share = f64::from(*hits) / f64::from(DRAWS);
            assert!((share - expected).abs() < MISS, "{index} has {share}, not {expected}, of {self:?}");
            assert!(*hits == 0 || expected > 0.0, "{index} must not be chosen of {self:?}");
        }
    }
}

impl Endpoint {
    /// Few different ones, so that equals, nothing and much are often side by side.
    fn weight(self) -> u32 {
        [1, 0, 1, 2, 3, 7, 1, 10_000][usize::from(self.weight % 8)]
    }

    fn standing(self) -> Option<Standing> {
        let ms = |ms: u16| f64::from(ms) * 1e6 + 1.0;
        self.there.then(|| Standing {
            usable: self.usable && self.weight() > 0,
            rtt_ns: ms(self.rtt_ms),
            kept_rtt_ns: ms(self.kept_ms),
            in_flight: self.in_flight.into(),
        })
    }
}

impl Model {
    fn new(
        strategy: Strategy,
        own: Vec<u32>,
        others: Vec<u32>,
        standing: Vec<Option<Standing>>,
        except: Option<usize>,
    ) -> Self {
        let first = own.len();
        let away = (!others.is_empty()).then_some(Group { first, weights: others });
        Self { strategy, home: Group { first: 0, weights: own }, away, standing, except }
    }

    /// Who could be chosen: the one to avoid only if there is no other.
    fn there(&self, index: usize) -> Option<Standing> {
        self.standing[index].filter(|_| Some(index) != self.except)
    }

    fn usable(&self, index: usize) -> Option<Standing> {
        self.there(index).filter(|one| one.usable)
    }

    fn odds(&self) -> Odds {
        let (at_home, left) = self.drawn(&self.home);
        let elsewhere = self.away.as_ref().and_then(|away| {
            let (mut all, both_out) = self.drawn(away);
            add(&mut all, &self.replaced(away)?, both_out);
            Some(all)
        });
        let mut odds = vec![0.0; self.standing.len()];
        for (own, chance) in at_home.iter().enumerate().filter(|(_, chance)| **chance > 0.0) {
            match &elsewhere {
                Some(elsewhere) if self.is_busy(own) => {
                    for (other, its) in elsewhere.iter().enumerate().filter(|(_, its)| **its > 0.0) {
                        odds[if self.spills(own, other) { other } else { own }] += chance * its;
                    }
                }
                _ => odds[own] += chance,
            }
        }
        // Both that were drawn are out.
        let rest = elsewhere.or_else(|| self.replaced(&self.home)).unwrap_or_else(|| self.resort());
        add(&mut odds, &rest, left);
        odds
    }

    /// What two draws make of a group, and how often neither of them can be used.
    fn drawn(&self, group: &Group) -> (Odds, f64) {
        let (mut odds, mut left) = (vec![0.0; self.standing.len()], 0.0);
        let replaced = self.replaced(group);
        for (chance, a, b) in group.pairs(|_| true) {
            match (self.usable(a), self.usable(b), &replaced) {
                (Some(_), Some(_), _) => odds[self.less(group, a, b)] += chance,
                (None, None, _) | (_, _, None) => left += chance,
                (_, _, Some(replaced)) => add(&mut odds, replaced, chance),
            }
        }
        (odds, left)
    }

    /// What draws of those who can be used make of a group, if there are any.
    fn replaced(&self, group: &Group) -> Option<Odds> {
        let mut odds = vec![0.0; self.standing.len()];
        for (chance, a, b) in group.pairs(|index| self.usable(index).is_some()) {
            odds[self.less(group, a, b)] += chance;
        }
        odds.iter().any(|chance| *chance > 0.0).then_some(odds)
    }

    /// Where nobody can be used: anybody who is there, by weight if any has one; else the one to avoid.
    fn resort(&self) -> Odds {
        let mut odds = vec![0.0; self.standing.len()];
        let all = [Some(&self.home), self.away.as_ref()];
        for group in all.into_iter().flatten() {
            let there: Vec<_> = group.indices().filter(|index| self.there(*index).is_some()).collect();
            let weight = |index: &usize| if group.is_even() { 1.0 } else { group.weight(*index) };
            let total: f64 = there.iter().map(weight).sum();
            for index in &there {
                odds[*index] = if total > 0.0 { weight(index) / total } else { 1.0 / there.len() as f64 };
            }
            if !there.is_empty() {
                return odds;
            }
        }
        if let Some(one) = self.except.and_then(|except| odds.get_mut(except)) {
            *one = 1.0;
        }
        odds
    }

    /// The one with less load; of equals the first.
    fn less(&self, group: &Group, a: usize, b: usize) -> usize {
        let load = |index: usize| {
            self.standing[index].map_or(0.0, |one| match self.strategy {
                Strategy::LeastRequest => f64::from(one.in_flight) / group.share(index),
                _ => Self::work(group, index, &one, one.rtt_ns),
            })
        };
        if load(b) < load(a) { b } else { a }
    }

    /// What an endpoint has to do, if this is its round trip.
    fn work(group: &Group, index: usize, one: &Standing, rtt_ns: f64) -> f64 {
        rtt_ns * (f64::from(one.in_flight) / group.share(index) + 1.0)
    }

    /// Does it have so much to do that others are looked at?
    fn is_busy(&self, own: usize) -> bool {
        let one = self.standing[own];
        one.is_some_and(|one| Self::work(&self.home, own, &one, one.rtt_ns) > 300e6)
    }

    /// Does a request go to the other one in its place?
    fn spills(&self, own: usize, other: usize) -> bool {
        let (Some(away), Some(one), Some(its)) = (&self.away, self.standing[own], self.standing[other])
        else {
            return false;
        };
        let there = Self::work(away, other, &its, its.kept_rtt_ns.max(LEAST_RTT.as_nanos() as f64));
        Self::work(&self.home, own, &one, one.rtt_ns) > SPILL * there
    }
}

impl Group {
    fn indices(&self) -> std::ops::Range<usize> {
        self.first..self.first + self.weights.len()
    }

    fn is_even(&self) -> bool {
        self.weights.iter().all(|weight| *weight == self.weights[0])
    }

    fn weight(&self, index: usize) -> f64 {
        f64::from(self.weights[index - self.first])
    }

    /// As a multiple of the mean.
    fn share(&self, index: usize) -> f64 {
        let total: f64 = self.weights.iter().copied().map(f64::from).sum();
        if self.is_even() { 1.0 } else { self.weight(index) / (total / self.weights.len() as f64) }
    }

    /// Every pair that may be drawn of those who are shown, with its chance: of equals two different ones, else each by
    /// weight.
    fn pairs(&self, shown: impl Fn(usize) -> bool) -> Vec<(f64, usize, usize)> {
        let among: Vec<_> = self.indices().filter(|index| shown(*index)).collect();
        let total: f64 = among.iter().map(|index| self.weight(*index)).sum();
        let all = among.iter().flat_map(|a| among.iter().map(move |b| (*a, *b)));
        match among.as_slice() {
            [] => Vec::new(),
            [one] => vec![(1.0, *one, *one)],
            _ if self.is_even() => {
                let chance = 1.0 / (among.len() * (among.len() - 1)) as f64;
                all.filter(|(a, b)| a != b).map(|(a, b)| (chance, a, b)).collect()
            }
            _ => all.map(|(a, b)| (self.weight(a) * self.weight(b) / (total * total), a, b)).collect(),
        }
    }
}

fn add(odds: &mut Odds, more: &Odds, chance: f64) {
    odds.iter_mut().zip(more).for_each(|(odds, more)| *odds += more * chance);
}

/// Another number that looks random (a 64-bit linear congruence, its upper half folded in).
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
    let bits = *state ^ (*state >> 33);
    bits.wrapping_mul(0xff51_afd7_ed55_8ccd) ^ (bits >> 29)
}

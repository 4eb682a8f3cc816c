//! The choice among a destination's endpoints: by what they are told apart, what they weigh, and which zone they are in.
//!
//! Two are drawn, and the less loaded takes the request (power of two choices); round robin takes whose turn it is.
//! **Weights** are shares: who weighs twice as much is drawn twice as often, and may have twice as much under way before
//! it counts as equally loaded. **Zones**: a destination's endpoints are the client's own and others'. The others get a
//! request when
//!
//! - two of the client's own that were drawn (round robin: two turns) are both unusable: of a zone of which half is out
//!   a quarter of the requests leave it, and none of its endpoints gets more than twice its share for it; or
//! - the less loaded of its own two has more than [`SPILL`] times the load of the less loaded of two others; load is here
//!   the round trip times what is under way and one more, and others' round trips count for [`LEAST_RTT`] at least and
//!   are never forgotten, so that nobody leaves a zone to see how it is elsewhere.

use super::{lighter, mix, nth_of, shares::Shares};
use core::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

#[cfg(planted)]
use crate::planted;

/// So many times more load than elsewhere is too much.
pub const SPILL: f64 = 10.0;
/// What a round trip to another zone counts for at least.
pub const LEAST_RTT: Duration = Duration::from_millis(30);

/// By what endpoints are told apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Strategy {
    /// Of two drawn, the one with the smaller round trip times what is under way.
    #[default]
    PeakEwma,
    /// Of two drawn, the one that has less under way.
    LeastRequest,
    /// One after the other.
    RoundRobin,
}

/// An endpoint as a strategy sees it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Standing {
    /// Whether it is thought to answer, and weighs something.
    pub usable: bool,
    /// Nanoseconds of a round trip, by what is remembered of it.
    pub rtt_ns: f64,
    /// The same as if nothing had been forgotten since it was last measured.
    pub kept_rtt_ns: f64,
    /// Requests under way.
    pub in_flight: u32,
}

/// The endpoints of a destination in the order of its list: first those of the client's zone, then the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    own: Shares,
    others: Option<Shares>,
}

/// What a choice depends on besides the endpoints.
#[derive(Clone, Copy, Debug)]
pub struct Draw {
    /// By what they are told apart.
    pub strategy: Strategy,
    /// One that is chosen only when there is no other.
    pub except: Option<usize>,
    /// Any number.
    pub random: u64,
}

/// The turns that round robin has taken in the client's zone, and elsewhere: apart, so that a turn which one of the two
/// takes is not lost to the other's endpoints, always the same ones of them.
#[derive(Debug, Default)]
pub struct Turns {
    own: AtomicU64,
    others: AtomicU64,
}

impl Turns {
    /// The first turn of either will be the one with this number.
    pub fn beginning_with(nth: u64) -> Self {
        Self { own: AtomicU64::new(nth), others: AtomicU64::new(nth) }
    }
}

impl Strategy {
    /// As annotations and `/state.json` say it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PeakEwma => "ewma",
            Self::LeastRequest => "least-request",
            Self::RoundRobin => "round-robin",
        }
    }

    /// The load of an endpoint with this share: above or equal to zero, and only compared with others of its strategy.
    pub fn load(self, one: &Standing, share: f64) -> f64 {
        match self {
            Self::PeakEwma => one.rtt_ns * (f64::from(one.in_flight) / share + 1.0),
            Self::LeastRequest => f64::from(one.in_flight) / share,
            Self::RoundRobin => 0.0,
        }
    }
}

impl Field {
    /// Of endpoints with these weights. Where the client's zone has none, all count as its own.
    pub fn new(own: &[u32], others: &[u32]) -> Self {
        if own.is_empty() {
            return Self { own: Shares::new(0, others), others: None };
        }
        let apart = (!others.is_empty()).then(|| Shares::new(own.len(), others));
        Self { own: Shares::new(0, own), others: apart }
    }

    /// The index of the endpoint that takes the next request: a usable one; when there is none, any, because the one that
    /// may have recovered is better than none. `standing(i)` is endpoint `i`, or `None` if it cannot be chosen now. Of
    /// `turns` round robin takes at most two more than there are endpoints.
    pub fn choose(
        &self,
        draw: Draw,
        standing: impl Fn(usize) -> Option<Standing>,
        turns: &Turns,
    ) -> Option<usize> {
        let there = |index: usize| standing(index).filter(|_| Some(index) != draw.except);
        #[cfg(planted)]
        let there = |index: usize| {
            let avoided = || planted::makes(planted::Mistake::AvoidedIsChosen);
            there(index).or_else(|| standing(index).filter(|_| avoided()))
        };
        let usable = |index: usize| there(index).filter(|one| one.usable);
        let own = |quick: bool| chosen(&self.own, draw, &usable, &turns.own, quick);
        if let Some(others) = &self.others {
            // Who leaves the zone says something about the bits by which that was decided.
            let draw = Draw { random: nth_of(draw.random, 3), ..draw };
            let their_turns = &turns.others;
            #[cfg(planted)]
            let their_turns =
                if planted::makes(planted::Mistake::TurnsAreShared) { &turns.own } else { their_turns };
            let elsewhere = || chosen(others, draw, &usable, their_turns, false);
            match own(true) {
                Some((index, one)) => {
                    let load = Strategy::PeakEwma.load(&one, self.own.share(index));
                    if load <= SPILL * LEAST_RTT.as_nanos() as f64 {
                        return Some(index);
                    }
                    let other = elsewhere().filter(|(other, its)| spills(load, its, others.share(*other)));
                    return Some(other.map_or(index, |(other, _)| other));
                }
                None => {
                    if let Some((other, _)) = elsewhere() {
                        return Some(other);
                    }
                }
            }
        }
        let all = || core::iter::once(&self.own).chain(&self.others);
        own(false)
            .map(|(index, _)| index)
            .or_else(|| all().find_map(|shares| Some(shares.one_of(&there, mix(draw.random))?.0)))
            .or_else(|| draw.except.filter(|index| standing(*index).is_some()))
    }
}

/// One of those that `usable` shows. `quick`: `None` also if neither of the first two is among them.
fn chosen(
    shares: &Shares,
    draw: Draw,
    usable: &impl Fn(usize) -> Option<Standing>,
    turns: &AtomicU64,
    quick: bool,
) -> Option<(usize, Standing)> {
    if draw.strategy == Strategy::RoundRobin {
        let most = if quick { 2 } else { shares.count() };
        let next = || {
            let index = shares.turn(turns.fetch_add(1, Ordering::Relaxed))?;
            Some((index, usable(index)?))
        };
        let found = (0..most).find_map(|_| next());
        return if found.is_some() || quick { found } else { shares.one_of(usable, mix(draw.random)) };
    }
    let (a, b) = shares.two(draw.random)?;
    let first = usable(a);
    match (first, if a == b { first } else { usable(b) }) {
        (Some(first), Some(second)) => Some(less(shares, draw.strategy, (a, first), (b, second))),
        (None, None) if quick => None,
        _ => {
            // Only now is it worth looking at all of them, with fresh bits: that the first draws failed says something
            // about the old ones.
            let first = shares.one_of(usable, nth_of(draw.random, 1))?;
            let another = |index: usize| usable(index).filter(|_| !shares.is_even() || index != first.0);
            let second = shares.one_of(&another, nth_of(draw.random, 2)).unwrap_or(first);
            Some(less(shares, draw.strategy, first, second))
        }
    }
}

fn less(
    shares: &Shares,
    strategy: Strategy,
    (a, first): (usize, Standing),
    (b, second): (usize, Standing),
) -> (usize, Standing) {
    let load = |index, one: &Standing| strategy.load(one, shares.share(index));
    if lighter((a, load(a, &first)), (b, load(b, &second))) == a { (a, first) } else { (b, second) }
}

/// Is a load in the client's zone so much more than another zone's?
fn spills(own: f64, other: &Standing, share: f64) -> bool {
    #[cfg(planted)]
    if planted::makes(planted::Mistake::OverloadHoldsAZone) {
        return false;
    }
    let rtt_ns = other.kept_rtt_ns.max(LEAST_RTT.as_nanos() as f64);
    own > SPILL * Strategy::PeakEwma.load(&Standing { rtt_ns, ..*other }, share)
}

#[cfg(test)]
mod tests;

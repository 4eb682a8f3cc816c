//! Strategies, weights and zones, as tables and properties.

use super::*;
use alloc::{vec, vec::Vec};
use core::cell::Cell;
use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

const IDLE: Standing = Standing { usable: true, rtt_ns: 1e6, kept_rtt_ns: 1e6, in_flight: 0 };
const OUT: Standing = Standing { usable: false, ..IDLE };
const ALL: [Strategy; 3] = [Strategy::PeakEwma, Strategy::LeastRequest, Strategy::RoundRobin];
const DRAWS: u32 = 4000;

#[test]
fn equals_share_the_requests_by_weight_whatever_the_strategy() {
    for strategy in ALL {
        let field = Field::new(&[10_000, 20_000, 0, 10_000], &[]);
        let hits = hits(&field, strategy, None, &[IDLE; 4]);
        assert!(near(hits[0], 0.25) && near(hits[1], 0.5) && near(hits[3], 0.25), "{strategy:?}: {hits:?}");
        assert_eq!(hits[2], 0, "{strategy:?}: without weight");
    }
}

#[test]
fn what_is_under_way_counts_by_weight() {
    let field = Field::new(&[1, 3], &[]);
    let busy = |in_flight| Standing { in_flight, ..IDLE };
    for (first, second, expected) in [
        // Neither has more than its share: whoever is drawn first.
        (1, 3, 0.25),
        // Only who is drawn twice gets it though it has more.
        (2, 3, 1.0 / 16.0),
        (1, 4, 7.0 / 16.0),
    ] {
        for strategy in [Strategy::PeakEwma, Strategy::LeastRequest] {
            let hits = hits(&field, strategy, None, &[busy(first), busy(second)]);
            assert!(near(hits[0], expected), "{strategy:?} with {first} and {second}: {hits:?}");
        }
    }
}

#[test]
fn a_strategy_looks_at_nothing_else() {
    let slow = Standing { rtt_ns: 1e9, ..IDLE };
    let busy = Standing { in_flight: 5, ..IDLE };
    let field = Field::new(&[1, 1, 1], &[]);
    for (strategy, expected) in [
        (Strategy::PeakEwma, [2.0 / 3.0, 0.0, 1.0 / 3.0]),
        (Strategy::LeastRequest, [0.5, 0.5, 0.0]),
        (Strategy::RoundRobin, [1.0 / 3.0; 3]),
    ] {
        let hits = hits(&field, strategy, None, &[IDLE, slow, busy]);
        assert!(hits.iter().zip(expected).all(|(hits, share)| near(*hits, share)), "{strategy:?}: {hits:?}");
    }
}

#[test]
fn round_robin_passes_over_who_is_out_without_favour() {
    let field = Field::new(&[1, 1, 1], &[]);
    let turns = Cell::new(0);
    let draw = Draw { strategy: Strategy::RoundRobin, except: None, random: 1 };
    let next = || {
        let standing = |index| Some(if index == 1 { OUT } else { IDLE });
        field.choose(draw, standing, || turns.replace(turns.get() + 1)).unwrap()
    };
    assert_eq!((0..6).map(|_| next()).collect::<Vec<_>>(), [0, 2, 0, 2, 0, 2]);
}

#[test]
fn a_zone_is_left_when_its_own_are_out() {
    for strategy in ALL {
        for (own, leave) in [
            (&[IDLE, IDLE][..], 0.0),
            // Two different ones are always drawn of two: somebody is there.
            (&[IDLE, OUT], 0.0),
            (&[OUT, OUT], 1.0),
            (&[OUT], 1.0),
            (&[IDLE], 0.0),
            // Two of four are out: of the six pairs one has both.
            (&[IDLE, OUT, IDLE, OUT], if strategy == Strategy::RoundRobin { 0.0 } else { 1.0 / 6.0 }),
        ] {
            let all = [own, &[IDLE, IDLE]].concat();
            let field = Field::new(&vec![1; own.len()], &[1, 1]);
            let hits = hits(&field, strategy, None, &all);
            let left: u32 = hits.iter().skip(own.len()).sum();
            assert!(near(left, leave), "{strategy:?}: {left} of {DRAWS} left {own:?}");
        }
        // Where nobody else is there either, whoever is left.
        let field = Field::new(&[1, 1], &[1]);
        let hits = hits(&field, strategy, None, &[OUT, IDLE, OUT]);
        assert_eq!(hits, [0, DRAWS, 0], "{strategy:?}");
    }
}

#[test]
fn a_zone_is_left_when_it_has_ten_times_the_load_of_another() {
    let own = |ms: u32, in_flight| Standing { rtt_ns: f64::from(ms) * 1e6, in_flight, ..IDLE };
    let other = |ms: u32, in_flight| Standing {
        // What is long ago is forgotten by the strategy, and not by this rule.
        rtt_ns: 1.0,
        kept_rtt_ns: f64::from(ms) * 1e6,
        in_flight,
        usable: true,
    };
    for (here, there, leaves) in [
        // Fast, with many under way: 1 ms x 65.
        (own(1, 64), other(1, 0), false),
        // 300 ms is just not more than ten times 30 ms.
        (own(10, 29), other(1, 0), false),
        (own(10, 30), other(1, 0), true),
        (own(10, 30), other(1, 1), false),
        // Slow everywhere.
        (own(500, 4), other(500, 0), false),
        (own(500, 10), other(500, 0), true),
        (own(500, 10), Standing { usable: false, ..other(1, 0) }, false),
    ] {
        let field = Field::new(&[1], &[1]);
        for strategy in ALL {
            let hits = hits(&field, strategy, None, &[here, there]);
            assert_eq!(hits[1] == DRAWS, leaves, "{strategy:?}: {here:?} {there:?} {hits:?}");
        }
    }
}

#[test]
fn the_one_to_avoid_is_chosen_last() {
    for strategy in ALL {
        let field = Field::new(&[1, 1], &[1]);
        assert_eq!(hits(&field, strategy, Some(0), &[IDLE, IDLE, IDLE]), [0, DRAWS, 0], "{strategy:?}");
        assert_eq!(hits(&field, strategy, Some(0), &[IDLE, OUT, IDLE]), [0, 0, DRAWS], "{strategy:?}");
        // Another that may have recovered comes before the one that has just failed.
        let field = Field::new(&[1, 2], &[]);
        assert_eq!(hits(&field, strategy, Some(0), &[IDLE, OUT]), [0, DRAWS], "{strategy:?}");
        let field = Field::new(&[1], &[]);
        assert_eq!(hits(&field, strategy, Some(0), &[IDLE]), [DRAWS], "{strategy:?}");
    }
}

#[test]
fn a_zone_without_endpoints_is_none() {
    assert_eq!(Field::new(&[], &[1, 1]), Field::new(&[1, 1], &[]));
    assert!(Field::new(&[5, 5], &[]).is_even());
    assert!(!Field::new(&[5], &[5]).is_even() && !Field::new(&[5, 6], &[]).is_even());
}

proptest! {
    #[test]
    fn the_choice_is_usable_while_anybody_is(
        own in proptest::collection::vec((0u32..4, any::<bool>(), 0u32..100), 0..8),
        others in proptest::collection::vec((0u32..4, any::<bool>(), 0u32..100), 0..8),
        strategy in 0usize..3,
        except in proptest::option::of(0usize..16),
        random in any::<u64>(),
        from in any::<u64>(),
    ) {
        let weights = |of: &[(u32, bool, u32)]| of.iter().map(|(weight, ..)| *weight).collect::<Vec<_>>();
        let field = Field::new(&weights(&own), &weights(&others));
        let all: Vec<Standing> = own.iter().chain(&others).map(|(_, usable, in_flight)| {
            Standing { usable: *usable, in_flight: *in_flight, ..IDLE }
        }).collect();
        let turn = Cell::new(from);
        let draw = Draw { strategy: ALL[strategy], except, random };
        let turns = || turn.replace(turn.get().wrapping_add(1));
        let chosen = field.choose(draw, |index| all.get(index).copied(), turns);
        prop_assert_eq!(chosen.is_some(), !all.is_empty());
        prop_assert!(turn.get().wrapping_sub(from) <= 2 + all.len() as u64 * 2);
        let usable = |index: usize| all[index].usable && Some(index) != except;
        let anybody = (0..all.len()).any(usable);
        prop_assert!(chosen.is_none_or(|index| usable(index) || !anybody), "{:?} of {:?}", chosen, all);
        prop_assert!(chosen.is_none() || chosen != except || all.len() == 1);
    }
}

fn hits(field: &Field, strategy: Strategy, except: Option<usize>, all: &[Standing]) -> Vec<u32> {
    let (mut hits, turn, mut random) = (vec![0; all.len()], Cell::new(0), 1);
    for _ in 0..DRAWS {
        random = mix(random);
        let draw = Draw { strategy, except, random };
        let turn = || turn.replace(turn.get() + 1);
        hits[field.choose(draw, |index| all.get(index).copied(), turn).unwrap()] += 1;
    }
    hits
}

fn near(hits: u32, share: f64) -> bool {
    (f64::from(hits) / f64::from(DRAWS) - share).abs() < 0.025
}

//! Strategies, weights and zones, as tables and properties.

use super::*;
use alloc::{vec, vec::Vec};
use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

const IDLE: Standing = Standing { usable: true, rtt_ns: 1e6, kept_rtt_ns: 1e6, in_flight: 0 };
const OUT: Standing = Standing { usable: false, ..IDLE };
const ALL: [Strategy; 3] = [Strategy::PeakEwma, Strategy::LeastRequest, Strategy::RoundRobin];
const DRAWS: u32 = 4000;

#[test]
fn two_are_compared_and_the_less_loaded_is_chosen() {
    let loaded = |rtt_ns: f64| Standing { rtt_ns, ..IDLE };
    for (all, expected) in [
        (&[][..], &[][..]),
        (&[loaded(9.0)], &[1.0]),
        (&[OUT], &[1.0]),
        (&[loaded(2.0), loaded(1.0)], &[0.0, 1.0]),
        // No number is more than any.
        (&[loaded(f64::NAN), loaded(1e300)], &[0.0, 1.0]),
        (&[loaded(1.0), loaded(1.0), loaded(9.0), loaded(1.0)], &[1.0 / 3.0, 1.0 / 3.0, 0.0, 1.0 / 3.0]),
        (&[OUT, OUT, OUT, loaded(9.0), OUT], &[0.0, 0.0, 0.0, 1.0, 0.0]),
        (&[IDLE, OUT, IDLE, OUT, IDLE, OUT, IDLE, OUT], &[0.25, 0.0, 0.25, 0.0, 0.25, 0.0, 0.25, 0.0]),
    ] {
        let field = Field::new(&vec![1; all.len()], &[]);
        let hits = if all.is_empty() { vec![] } else { hits(&field, Strategy::PeakEwma, None, all) };
        assert!(hits.iter().zip(expected).all(|(hits, share)| near(*hits, *share)), "{all:?}: {hits:?}");
    }
    let nobody = Draw { strategy: Strategy::PeakEwma, except: Some(0), random: 7 };
    assert_eq!(Field::new(&[], &[]).choose(nobody, |_| None, &Turns::default()), None);
    assert_eq!(Field::new(&[1, 1], &[]).choose(nobody, |_| None, &Turns::default()), None);
}

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
    let turns = Turns::default();
    let draw = Draw { strategy: Strategy::RoundRobin, except: None, random: 1 };
    let next = || {
        let standing = |index| Some(if index == 1 { OUT } else { IDLE });
        field.choose(draw, standing, &turns).unwrap()
    };
    assert_eq!((0..6).map(|_| next()).collect::<Vec<_>>(), [0, 2, 0, 2, 0, 2]);
}

#[test]
fn who_leaves_a_zone_goes_to_all_of_the_others_alike() {
    let (busy, out) = (Standing { rtt_ns: 1e9, ..IDLE }, OUT);
    for strategy in ALL {
        for (own, share) in [
            // Nobody at home, or too much to do there.
            ([out; 4], 0.25),
            ([busy; 4], 0.25),
            // A sixth leaves, a quarter of it to each; in turn, each time that theirs has come.
            ([out, out, IDLE, IDLE], if strategy == Strategy::RoundRobin { 1.0 / 12.0 } else { 1.0 / 24.0 }),
        ] {
            let field = Field::new(&[1; 4], &[1; 4]);
            let hits = hits(&field, strategy, None, &[&own[..], &[IDLE; 4]].concat());
            assert!(hits[4..].iter().all(|hits| near(*hits, share)), "{strategy:?} from {own:?}: {hits:?}");
        }
        // And those at home who are asked all the same: each has as many turns as the other.
        let field = Field::new(&[1, 1], &[1, 1, 1]);
        let two = [Standing { in_flight: 9, ..busy }, Standing { in_flight: 9, ..busy }];
        let full = Standing { kept_rtt_ns: 1e9, ..IDLE };
        let hits = hits(&field, strategy, None, &[&two[..], &[full; 3]].concat());
        assert!(near(hits[0], 0.5) && near(hits[1], 0.5), "{strategy:?}: {hits:?}");
    }
}

#[test]
fn whoever_takes_the_place_of_one_that_is_out_is_drawn_by_weight() {
    for (weights, expected) in [
        (&[2, 1, 1][..], &[0.0, 0.5, 0.5][..]),
        (&[6, 1, 3], &[0.0, 0.25, 0.75]),
        (&[1, 1, 1, 1], &[0.0, 1.0 / 3.0, 1.0 / 3.0, 1.0 / 3.0]),
    ] {
        for strategy in [Strategy::PeakEwma, Strategy::LeastRequest] {
            let mut all = vec![IDLE; weights.len()];
            all[0] = OUT;
            let hits = hits(&Field::new(weights, &[]), strategy, None, &all);
            assert!(
                hits.iter().zip(expected).all(|(hits, share)| near(*hits, *share)),
                "{strategy:?}: {hits:?}"
            );
        }
    }
    // Nobody of those who are there weighs anything.
    let field = Field::new(&[0, 7, 0], &[]);
    let there = |index: usize| (index != 1).then_some(OUT);
    let draw = |random| Draw { strategy: Strategy::PeakEwma, except: None, random };
    let chosen = |random| field.choose(draw(mix(random)), there, &Turns::default()).unwrap();
    let first = (0..DRAWS).filter(|random| chosen(u64::from(*random)) == 0).count();
    assert!(near(first as u32, 0.5), "{first}");
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
}

proptest! {
    #[test]
    fn of_equals_by_weight_the_heaviest_is_not_chosen(
        loads in proptest::collection::vec(proptest::option::of(0u32..1000), 2..20),
        random in any::<u64>(),
    ) {
        let standing = |index: usize| {
            let load = loads.get(index)?;
            Some(load.map_or(OUT, |load| Standing { rtt_ns: load.into(), ..IDLE }))
        };
        let usable: Vec<u32> = loads.iter().flatten().copied().collect();
        let draw = Draw { strategy: Strategy::PeakEwma, except: None, random };
        let field = Field::new(&vec![1; loads.len()], &[]);
        let chosen = field.choose(draw, standing, &Turns::default()).unwrap();
        if let Some(load) = loads[chosen] {
            let as_heavy = usable.iter().filter(|other| **other >= load).count();
            prop_assert!(usable.len() == 1 || as_heavy >= 2, "{} of {:?}", load, usable);
        } else {
            prop_assert!(usable.is_empty(), "{} of {:?}", chosen, loads);
        }
    }

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
        let turns = Turns::beginning_with(from);
        let draw = Draw { strategy: ALL[strategy], except, random };
        let chosen = field.choose(draw, |index| all.get(index).copied(), &turns);
        prop_assert_eq!(chosen.is_some(), !all.is_empty());
        let taken = |turns: AtomicU64| turns.into_inner().wrapping_sub(from);
        prop_assert!(taken(turns.own) + taken(turns.others) <= 2 + all.len() as u64);
        let usable = |index: usize| all[index].usable && Some(index) != except;
        let anybody = (0..all.len()).any(usable);
        prop_assert!(chosen.is_none_or(|index| usable(index) || !anybody), "{:?} of {:?}", chosen, all);
        prop_assert!(chosen.is_none() || chosen != except || all.len() == 1);
    }
}

fn hits(field: &Field, strategy: Strategy, except: Option<usize>, all: &[Standing]) -> Vec<u32> {
    let (mut hits, turns, mut random) = (vec![0; all.len()], Turns::default(), 1);
    for _ in 0..DRAWS {
        random = mix(random);
        let draw = Draw { strategy, except, random };
        hits[field.choose(draw, |index| all.get(index).copied(), &turns).unwrap()] += 1;
    }
    hits
}

fn near(hits: u32, share: f64) -> bool {
    (f64::from(hits) / f64::from(DRAWS) - share).abs() < 0.025
}

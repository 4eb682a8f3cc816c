//! What breakers do, as tables and as a property.

use super::*;
use alloc::{vec, vec::Vec};
use proptest::prelude::*;

const ROW: Accrual = Accrual {
    max_failures: 3,
    rate: None,
    backoff: Backoff { min: Duration::from_secs(1), max: Duration::from_mins(1), jitter: 0.0 },
    retry_after: false,
    min_ready: 0,
};
const RATE: Accrual = Accrual {
    rate: Some(SuccessRate { threshold: 0.8, window: Duration::from_secs(10), min_requests: 5 }),
    ..ROW
};
use Outcome::{Failed, Good, Limited, Refused};

#[test]
fn what_shuts_a_breaker() {
    for (accrual, outcomes, expected) in [
        (ROW, &[Failed, Failed][..], None),
        (ROW, &[Failed, Failed, Failed], Some(Why::InARow)),
        (ROW, &[Failed, Failed, Good, Failed, Failed], None),
        (ROW, &[Failed, Failed, Limited, Failed, Failed], None),
        (ROW, &[Limited; 20], None),
        (ROW, &[Refused], Some(Why::Refused)),
        (Accrual { max_failures: 0, ..ROW }, &[Failed; 20], None),
        (Accrual { max_failures: 1, ..ROW }, &[Failed], Some(Why::InARow)),
        // Three of five are too few, and four of five are not.
        (RATE, &[Failed, Good, Limited, Good], None),
        (RATE, &[Failed, Good, Limited, Good, Good], Some(Why::Rate)),
        (RATE, &[Good, Good, Limited, Good, Good], None),
        (RATE, &[Limited; 5], Some(Why::Rate)),
        (Accrual { max_failures: 0, ..RATE }, &[Failed; 5], Some(Why::Rate)),
        (RATE, &[Failed, Failed, Failed], Some(Why::InARow)),
    ] {
        let (mut breakers, keys) = of(accrual, 2);
        let told: Vec<_> = outcomes.iter().filter_map(|one| send(&mut breakers, keys[0], 0, *one)).collect();
        let why = told.iter().map(|change| match change {
            Change::Shut(why, _) => *why,
            other => panic!("{other:?}"),
        });
        assert_eq!(why.collect::<Vec<_>>(), Vec::from_iter(expected), "{outcomes:?}");
    }
}

#[test]
fn what_is_older_than_the_window_does_not_count() {
    let (mut breakers, keys) = of(RATE, 2);
    for second in [0, 1, 2, 3] {
        assert_eq!(send(&mut breakers, keys[0], second * 1000, Limited), None);
    }
    // The first two are forgotten by now, and with them that there were four.
    assert_eq!(send(&mut breakers, keys[0], 11_000, Limited), None);
    assert_eq!(send(&mut breakers, keys[0], 11_000, Limited), None);
    assert!(matches!(send(&mut breakers, keys[0], 11_000, Limited), Some(Change::Shut(Why::Rate, _))));
}

#[test]
fn a_shut_breaker_admits_exactly_one_probe_and_waits_twice_as_long_after_each_that_fails() {
    let (mut breakers, keys) = of(ROW, 2);
    shut(&mut breakers, keys[0], 0);
    let mut now = 0;
    for wait in [1, 2, 4, 8, 16, 32, 60, 60] {
        assert!(!breakers.admits(keys[0], at(now + wait * 1000 - 1)));
        assert_eq!(breakers.begin(keys[0], at(now + wait * 1000 - 1)), None);
        now += wait * 1000;
        assert_eq!(breakers.gate(keys[0], at(now)), Gate::Probation);
        let probe = breakers.begin(keys[0], at(now)).unwrap();
        assert_eq!(breakers.gate(keys[0], at(now)), Gate::Probing);
        assert_eq!(breakers.begin(keys[0], at(now)), None, "exactly one");
        let change = breakers.end(probe, Some(Failed), None, at(now), 0);
        assert!(matches!(change, Some(Change::Shut(Why::Probe, _))), "{change:?}");
    }
    let probe = breakers.begin(keys[0], at(now + 60_000)).unwrap();
    assert_eq!(breakers.end(probe, Some(Good), None, at(now + 60_000), 0), Some(Change::Opened));
    assert_eq!((breakers.gate(keys[0], at(now + 60_000)), breakers.out()), (Gate::Open, 0));
    shut(&mut breakers, keys[0], now + 60_000);
    assert_eq!(breakers.gate(keys[0], at(now + 60_000)), Gate::Shut(Duration::from_secs(1)), "from anew");
}

#[test]
fn whether_a_probe_is_a_recovery() {
    for (accrual, outcome, opens) in [
        (ROW, Good, true),
        (ROW, Limited, true),
        (ROW, Failed, false),
        (ROW, Refused, false),
        (RATE, Good, true),
        (RATE, Limited, false),
    ] {
        let (mut breakers, keys) = of(accrual, 2);
        shut(&mut breakers, keys[0], 0);
        assert_eq!(send(&mut breakers, keys[0], 1000, outcome) == Some(Change::Opened), opens, "{outcome:?}");
    }
}

#[test]
fn a_probe_of_which_nothing_is_learned_is_followed_by_another() {
    let (mut breakers, keys) = of(ROW, 2);
    shut(&mut breakers, keys[0], 0);
    let given_up = breakers.begin(keys[0], at(1000)).unwrap();
    assert_eq!(breakers.end(given_up, None, None, at(1500), 0), None);
    let hangs = breakers.begin(keys[0], at(1500)).unwrap();
    assert_eq!(breakers.begin(keys[0], at(61_499)), None);
    let next = breakers.begin(keys[0], at(61_500)).unwrap();
    assert_eq!(breakers.end(hangs, Some(Good), None, at(61_500), 0), None, "too late");
    assert_eq!(breakers.end(next, Some(Good), None, at(61_500), 0), Some(Change::Opened));
}

#[test]
fn what_began_before_does_not_count_after() {
    let (mut breakers, keys) = of(ROW, 2);
    let early: Vec<_> = (0..9).map(|_| breakers.begin(keys[0], at(0)).unwrap()).collect();
    let ends =
        |breakers: &mut Breakers, nth: usize, now| breakers.end(early[nth], Some(Failed), None, at(now), 0);
    for nth in 0..2 {
        assert_eq!(ends(&mut breakers, nth, 0), None);
    }
    assert!(ends(&mut breakers, 2, 0).is_some());
    assert_eq!(ends(&mut breakers, 3, 0), None, "it is shut already");
    assert_eq!(send(&mut breakers, keys[0], 1000, Good), Some(Change::Opened));
    for nth in 4..9 {
        assert_eq!(ends(&mut breakers, nth, 1000), None);
    }
}

#[test]
fn a_hint_makes_the_wait_longer_within_bounds_where_it_is_respected() {
    let hinting = Accrual { retry_after: true, ..ROW };
    for (accrual, hint, wait) in
        [(ROW, 30, 1), (hinting, 30, 30), (hinting, 0, 1), (hinting, 86_400, 60), (hinting, u64::MAX, 60)]
    {
        let (mut breakers, keys) = of(accrual, 2);
        for nth in 0..3 {
            let ticket = breakers.begin(keys[0], at(0)).unwrap();
            let hint = (nth == 1).then_some(Duration::from_secs(hint));
            breakers.end(ticket, Some(Failed), hint, at(0), 0);
        }
        assert_eq!(breakers.gate(keys[0], at(0)), Gate::Shut(Duration::from_secs(wait)), "{hint} s");
    }
}

#[test]
fn how_many_may_be_out() {
    for (count, min_ready, expected) in [
        (0, 0, 0),
        (1, 0, 0),
        (2, 0, 1),
        (3, 0, 1),
        (4, 0, 2),
        (9, 0, 4),
        (10, 0, 5),
        (10, 1, 5),
        (10, 7, 3),
        (10, 10, 0),
        (10, u32::MAX, 0),
    ] {
        let (breakers, _) = of(Accrual { min_ready, ..ROW }, count);
        assert_eq!(breakers.may_be_out(), expected, "{count}, {min_ready} left");
    }
}

#[test]
fn one_too_many_serves_on_and_is_asked_again_after_as_many_more_failures() {
    let (mut breakers, keys) = of(ROW, 3);
    shut(&mut breakers, keys[0], 0);
    for _ in 0..2 {
        for _ in 0..2 {
            assert_eq!(send(&mut breakers, keys[1], 0, Failed), None);
        }
        assert_eq!(send(&mut breakers, keys[1], 0, Failed), Some(Change::Kept(Why::InARow)));
    }
    assert!(breakers.admits(keys[1], at(0)));
    // With the first one back there is room.
    assert_eq!(send(&mut breakers, keys[0], 1000, Good), Some(Change::Opened));
    shut(&mut breakers, keys[1], 1000);
}

#[test]
fn who_was_out_longest_comes_back_when_others_leave() {
    let (mut breakers, keys) = of(ROW, 4);
    shut(&mut breakers, keys[2], 0);
    shut(&mut breakers, keys[1], 10);
    breakers.leave(keys[0]);
    breakers.leave(keys[0]);
    assert_eq!((breakers.settle(), breakers.count(), breakers.out()), (1, 3, 1));
    assert_eq!(breakers.gate(keys[2], at(10)), Gate::Open);
    let newcomer = breakers.join();
    assert_eq!(breakers.gate(keys[0], at(10)), Gate::Open, "gone, though its place is taken");
    assert!(!breakers.admits(keys[0], at(10)) && breakers.admits(newcomer, at(10)));
    breakers.leave(keys[1]);
    assert_eq!((breakers.settle(), breakers.count(), breakers.out()), (0, 3, 0));
}

#[test]
fn who_was_out_longest_comes_back_where_nobody_else_is() {
    let (mut breakers, keys) = of(ROW, 6);
    for (second, key) in [(0, 3), (1, 1), (2, 5)] {
        shut(&mut breakers, keys[key], second);
    }
    assert!(breakers.let_back([keys[5], keys[1]].into_iter()));
    assert_eq!(breakers.gate(keys[1], at(2)), Gate::Open);
    assert!(!breakers.let_back([keys[1], keys[0]].into_iter()), "nobody of these is out");
    assert_eq!(breakers.out(), 2);
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Passes(u16),
    Begins(usize),
    Ends(usize, Option<Outcome>, u16),
    Joins,
    Leaves(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let outcome = prop::sample::select(vec![None, Some(Good), Some(Limited), Some(Failed), Some(Refused)]);
    prop_oneof![
        any::<u16>().prop_map(Step::Passes),
        (0usize..12).prop_map(Step::Begins),
        (0usize..12, outcome, any::<u16>()).prop_map(|(at, outcome, hint)| Step::Ends(at, outcome, hint)),
        Just(Step::Joins),
        (0usize..12).prop_map(Step::Leaves),
    ]
}

proptest! {
    #[test]
    fn somebody_is_always_left_and_nobody_is_out_for_ever(
        steps in prop::collection::vec(step(), 0..300),
        max_failures in 0u32..4,
        rated in any::<bool>(),
        min_ready in 0u32..5,
        random in any::<u64>(),
    ) {
        let accrual = Accrual {
            max_failures, min_ready, retry_after: true, rate: RATE.rate.filter(|_| rated),
            backoff: Backoff { jitter: 0.5, ..ROW.backoff },
        };
        let (mut breakers, mut keys) = of(accrual, 3);
        let (mut now, mut tickets) = (0u64, Vec::new());
        for step in steps {
            match step {
                Step::Passes(ms) => now += u64::from(ms),
                Step::Begins(nth) => tickets.extend(keys.get(nth).and_then(|key| breakers.begin(*key, at(now)))),
                Step::Ends(nth, outcome, hint) if nth < tickets.len() => {
                    let hint = Some(Duration::from_millis(hint.into()));
                    let ticket = tickets.swap_remove(nth);
                    if let Some(Change::Shut(_, until)) = breakers.end(ticket, outcome, hint, at(now), random) {
                        let wait = until.since(at(now));
                        prop_assert!(wait >= accrual.backoff.min && wait <= accrual.backoff.max * 3 / 2);
                    }
                }
                Step::Joins if keys.len() < 12 => keys.push(breakers.join()),
                Step::Leaves(nth) if nth < keys.len() => {
                    breakers.leave(keys.swap_remove(nth));
                    breakers.settle();
                }
                Step::Ends(..) | Step::Joins | Step::Leaves(_) => {}
            }
            let open = keys.iter().filter(|key| breakers.gate(**key, at(now)) == Gate::Open).count();
            prop_assert_eq!((breakers.count(), breakers.out()), (keys.len(), keys.len() - open));
            prop_assert!(open >= keys.len().div_ceil(2), "{} of {}", open, keys.len());
            prop_assert!(open >= keys.len().min(usize::try_from(min_ready.max(1)).unwrap()));
        }
        // The longest wait is over, and so is whatever probe there was.
        prop_assert!(keys.iter().all(|key| breakers.admits(*key, at(now + 90_000))));
    }
}

fn of(accrual: Accrual, count: usize) -> (Breakers, Vec<Key>) {
    let mut breakers = Breakers::new(accrual);
    let keys = (0..count).map(|_| breakers.join()).collect();
    (breakers, keys)
}

/// A request that is over at once.
fn send(breakers: &mut Breakers, key: Key, now: u64, outcome: Outcome) -> Option<Change> {
    let ticket = breakers.begin(key, at(now)).unwrap();
    breakers.end(ticket, Some(outcome), None, at(now), 0)
}

fn shut(breakers: &mut Breakers, key: Key, now: u64) {
    let change = (0..3).find_map(|_| send(breakers, key, now, Failed));
    assert!(matches!(change, Some(Change::Shut(Why::InARow, _))), "{change:?}");
}

fn at(ms: u64) -> Time {
    Time(Duration::from_millis(ms))
}

//! How often one may ask, as tables and as a property.

use super::*;
use alloc::vec::Vec;
use proptest::prelude::*;

const QUOTA: Quota = Quota { burst: 3, interval: Duration::from_secs(2) };

#[test]
fn a_burst_then_one_per_interval() {
    let mut bucket = Bucket::default();
    let mut taken = |second| (0..10).filter(|_| bucket.take(&QUOTA, secs(second))).count();
    assert_eq!([0, 1, 2, 6, 1000].map(&mut taken), [3, 0, 1, 2, 3]);
}

#[test]
fn so_many_per_second() {
    for (requests, burst, nanos) in
        [(1, 1, 1_000_000_000), (3, 3, 333_333_334), (1000, 1000, 1_000_000), (u32::MAX, u32::MAX, 1)]
    {
        let quota = Quota::per_second(NonZeroU32::new(requests).unwrap());
        assert_eq!(quota, Quota { burst, interval: Duration::from_nanos(nanos) });
    }
}

#[test]
fn keys_do_not_share() {
    let mut keyed = Keyed::new(QUOTA, 4);
    assert_eq!(taken(&mut keyed, 1, 0), 3);
    assert_eq!(taken(&mut keyed, 2, 0), 3);
}

#[test]
fn a_full_table_makes_newcomers_share_and_grows_no_more() {
    let mut keyed = Keyed::new(QUOTA, 4);
    for key in 1..=4 {
        assert_eq!(taken(&mut keyed, key, 2), 3);
    }
    assert_eq!(taken(&mut keyed, 5, 2), 3);
    assert_eq!(taken(&mut keyed, 6, 2), 0, "one bucket for all newcomers");
    assert_eq!(keyed.len(), 4);
    // When the old ones have been quiet for long enough, their places are free.
    assert_eq!(taken(&mut keyed, 6, 8), 3);
    assert_eq!(keyed.len(), 1);
}

#[test]
fn whose_limit_is_met() {
    let limits = limits(Some(5), Some(2), &[(&["vip", "friend"], 4)]);
    for (clients, expected) in [
        (&["a", "a"][..], Ok(())),
        (&["a", "a", "a"], Err(Scope::Identity)),
        (&["a", "a", "b", "b"], Ok(())),
        (&["", "", ""], Err(Scope::Identity)),
        (&["vip", "vip", "friend", "vip"], Ok(())),
        (&["vip", "vip", "friend", "vip", "friend"], Err(Scope::Override)),
        (&["vip", "vip", "vip", "a", "a", "b"], Err(Scope::Total)),
        // What is refused costs nothing.
        (&["a", "a", "a", "a", "a", "a", "b", "b", "c"], Ok(())),
    ] {
        let mut limiter = Limiter::new(limits.clone());
        let last = clients.iter().map(|who| ask(&mut limiter, who, 0)).last().unwrap();
        assert_eq!(last, expected, "{clients:?}");
    }
}

#[test]
fn what_is_not_limited_is_not() {
    let mut limiter = Limiter::new(limits(None, None, &[(&["a"], 1)]));
    assert!((0..100).all(|_| ask(&mut limiter, "b", 0).is_ok() && ask(&mut limiter, "", 0).is_ok()));
    assert_eq!(ask(&mut limiter, "a", 0), Ok(()));
    assert_eq!(ask(&mut limiter, "a", 0), Err(Scope::Override));
}

#[test]
fn of_several_overrides_the_last_one_holds() {
    let mut limiter = Limiter::new(limits(None, None, &[(&["a"], 1), (&["a"], 2)]));
    assert_eq!([0; 3].map(|now| ask(&mut limiter, "a", now).is_ok()), [true, true, false]);
}

#[test]
fn a_change_keeps_what_it_is_not_about() {
    let before = limits(Some(2), Some(1), &[(&["vip"], 2), (&["friend"], 1)]);
    for (after, who, expected) in [
        // Renamed, and a limit more: as before.
        (limits(Some(2), Some(1), &[(&["friend"], 1), (&["vip"], 2)]), "a", Err(Scope::Total)),
        (limits(Some(3), Some(1), &[]), "a", Err(Scope::Identity)),
        (limits(Some(3), Some(2), &[]), "a", Ok(())),
        (limits(None, None, &[(&["friend"], 1), (&["vip"], 1)]), "friend", Err(Scope::Override)),
        (limits(None, None, &[(&["friend"], 2)]), "friend", Ok(())),
        (limits(None, None, &[(&["friend", "a"], 1)]), "friend", Ok(())),
    ] {
        let mut limiter = Limiter::new(before.clone());
        assert_eq!(ask(&mut limiter, "a", 0), Ok(()));
        assert_eq!(ask(&mut limiter, "friend", 0), Ok(()));
        limiter.change(after.clone());
        assert_eq!(ask(&mut limiter, who, 0), expected, "{after:?}");
    }
}

proptest! {
    #[test]
    fn never_more_than_burst_and_rate(
        burst in 1u32..10,
        interval_ms in 1u64..5000,
        steps in prop::collection::vec(0u64..3000, 1..200),
    ) {
        let quota = Quota { burst, interval: Duration::from_millis(interval_ms) };
        let (mut bucket, mut now, mut allowed) = (Bucket::default(), 0, 0);
        for step in steps {
            now += step;
            let has = bucket.has(&quota, millis(now));
            prop_assert_eq!(bucket.take(&quota, millis(now)), has);
            allowed += u64::from(has);
            prop_assert!(allowed <= u64::from(burst) + now / interval_ms);
        }
        prop_assert!(bucket.has(&quota, millis(now + interval_ms)), "one more after each");
    }
}

fn ask(limiter: &mut Limiter, who: &str, now: u64) -> Result<(), Scope> {
    let identity = (!who.is_empty()).then(|| identity(who));
    limiter.take(identity.as_ref(), secs(now)).map_err(|(scope, _)| scope)
}

fn limits(total: Option<u32>, each: Option<u32>, overrides: &[(&[&str], u32)]) -> Arc<RateLimits> {
    let quota = |requests| Quota::per_second(NonZeroU32::new(requests).unwrap());
    let one = |(who, requests): &(&[&str], u32)| Override {
        identities: who.iter().map(|who| identity(who)).collect(),
        quota: quota(*requests),
    };
    Arc::new(RateLimits {
        meta: Arc::default(),
        total: total.map(quota),
        identity: each.map(quota),
        overrides: overrides.iter().map(one).collect(),
    })
}

fn identity(who: &str) -> Identity {
    Identity::parse(&alloc::format!("{who}.shop.serviceaccount.identity.remora.cluster.local")).unwrap()
}

fn taken(keyed: &mut Keyed<u8>, key: u8, second: u64) -> usize {
    (0..10).filter(|_| keyed.take(&key, secs(second))).collect::<Vec<_>>().len()
}

fn secs(second: u64) -> Time {
    Time(Duration::from_secs(second))
}

fn millis(ms: u64) -> Time {
    Time(Duration::from_millis(ms))
}

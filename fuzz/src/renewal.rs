//! The renewal of a certificate: whatever identity answers and however the clock runs, one that has ended is not in use,
//! a good one is renewed before its end, nobody waits for what is past, and attempts keep their distance.

use arbitrary::{Arbitrary, Unstructured};
use remora_core::{
    backoff::Backoff,
    cert::{Action, Lifecycle, RefreshBounds},
    time::UnixTime,
};
use std::time::Duration;

/// The description of bounds and of a history.
pub fn renewal(data: &[u8]) {
    if let Ok(described) = Described::arbitrary(&mut Unstructured::new(data)) {
        described.holds();
    }
}

#[derive(Arbitrary, Debug)]
struct Described {
    start: u32,
    min_refresh: u16,
    max_refresh: u16,
    min_backoff: u16,
    max_backoff: u16,
    jitter: f64,
    events: Vec<Event>,
}

#[derive(Arbitrary, Debug)]
enum Event {
    /// Sleeps until the time that was named, and so many milliseconds beyond.
    Sleeps(u16),
    /// The wall clock moves, for whatever reason.
    Moves(i32),
    /// Identity's certificate, with so many seconds to live; less than none has ended already.
    Issues(i32),
    Fails(u64),
}

/// What the model knows: the last certificate and the failures since.
struct Model {
    expires: Option<UnixTime>,
    failures: u32,
}

impl Described {
    fn bounds(&self) -> (RefreshBounds, Backoff) {
        // The environment refuses zero and a minimum over the maximum.
        let (low, high) =
            (self.min_refresh.min(self.max_refresh).max(1), self.min_refresh.max(self.max_refresh).max(1));
        let bounds =
            RefreshBounds { min: Duration::from_secs(low.into()), max: Duration::from_secs(high.into()) };
        let (min, max) = (self.min_backoff.min(self.max_backoff), self.min_backoff.max(self.max_backoff));
        let backoff = Backoff {
            min: Duration::from_millis(u64::from(min) + 1),
            max: Duration::from_millis(u64::from(max) + 1),
            jitter: self.jitter,
        };
        (bounds, backoff)
    }

    fn holds(&self) {
        let (bounds, backoff) = self.bounds();
        let mut now = UnixTime::from_secs(self.start.into());
        let mut life = Lifecycle::starting(now);
        let mut model = Model { expires: None, failures: 0 };
        for event in self.events.iter().take(200) {
            let action = life.poll(now);
            model.agrees(&life, now);
            match action {
                // Polled again at the same time it says the same.
                Action::Ask => assert_eq!(life.poll(now), Action::Ask),
                Action::Wait(until) => {
                    assert!(until > now, "waits until {until:?} at {now:?}: {life:?}");
                    assert_eq!(life.poll(now), action, "{life:?}");
                    // With nothing to serve the next attempt is near, whatever the clock did.
                    let most = now + (backoff.max * 2).max(bounds.min);
                    let latest = model.expires.unwrap_or(most);
                    assert!(until <= latest, "sleeps until {until:?}, past {latest:?}: {life:?}");
                }
            }
            match event {
                Event::Sleeps(beyond) => {
                    if let Action::Wait(until) = action {
                        now = until + Duration::from_millis((*beyond).into());
                    }
                }
                Event::Moves(seconds) => {
                    now = UnixTime::from_secs(now.0.as_secs().saturating_add_signed((*seconds).into()));
                }
                // Identity is asked only when it is time to.
                Event::Issues(_) | Event::Fails(_) if action != Action::Ask => {}
                Event::Issues(seconds) => {
                    let expires =
                        UnixTime::from_secs(now.0.as_secs().saturating_add_signed((*seconds).into()));
                    life.issued(expires, now, bounds);
                    model.issued(expires, now);
                    Self::is_renewed_in_time(&mut life, expires, now, bounds);
                }
                Event::Fails(random) => {
                    life.failed(now, bounds, backoff, *random);
                    model.failures = model.failures.saturating_add(1);
                    Self::keeps_distance(&mut life, &model, now, bounds, backoff);
                }
            }
        }
        life.poll(now);
        model.agrees(&life, now);
    }

    /// At 70 % of what remains, but within the bounds; an attempt before the end unless the minimum forbids.
    fn is_renewed_in_time(life: &mut Lifecycle, expires: UnixTime, now: UnixTime, bounds: RefreshBounds) {
        let remaining = expires.since(now);
        let action = life.poll(now);
        let Action::Wait(until) = action else { panic!("asks again at once for {remaining:?}: {life:?}") };
        let wait = until.since(now);
        if remaining.is_zero() {
            assert_eq!(wait, bounds.min, "a certificate that has ended");
        } else if bounds.min >= remaining {
            assert_eq!(wait, remaining, "the end comes first");
        } else {
            assert!(wait >= bounds.min && wait <= bounds.max.max(bounds.min), "{wait:?} of {remaining:?}");
            assert!(wait < remaining, "{wait:?} of {remaining:?}");
            let share = wait.as_secs_f64() / remaining.as_secs_f64();
            assert!(share < 0.701 || wait == bounds.min, "{wait:?} of {remaining:?}");
        }
    }

    fn keeps_distance(
        life: &mut Lifecycle,
        model: &Model,
        now: UnixTime,
        bounds: RefreshBounds,
        backoff: Backoff,
    ) {
        let Action::Wait(until) = life.poll(now) else { panic!("asks again at once: {life:?}") };
        let wait = until.since(now);
        let ends = model.expires.map_or(Duration::ZERO, |expires| expires.since(now));
        assert!(wait >= bounds.min.min(backoff.min) || wait == ends, "{wait:?}, {life:?}");
        if ends.is_zero() {
            // Without a certificate nothing can be served: never longer than the backoff.
            assert!(wait <= backoff.max * 2, "{wait:?}, {life:?}");
        }
    }
}

impl Model {
    fn issued(&mut self, expires: UnixTime, now: UnixTime) {
        if expires > now {
            *self = Self { expires: Some(expires), failures: 0 };
        } else {
            *self = Self { expires: None, failures: self.failures.saturating_add(1) };
        }
    }

    /// After a poll: in use is the last certificate until its end, whatever failed since.
    fn agrees(&mut self, life: &Lifecycle, now: UnixTime) {
        if self.expires.is_some_and(|expires| now >= expires) {
            self.expires = None;
        }
        assert_eq!(life.expires(), self.expires, "at {now:?}: {life:?}");
        assert_eq!(life.failures(), self.failures, "{life:?}");
    }
}

//! The breaker of one endpoint.

use super::{Accrual, Gate, Outcome, SuccessRate, Why};
#[cfg(planted)]
use crate::planted;
use crate::{backoff::Backoff, time::Time};
use core::{num::NonZeroU64, time::Duration};

/// Parts of the window, as in Linkerd.
const SLOTS: usize = 10;

#[derive(Clone, Debug)]
pub(super) struct Member {
    id: NonZeroU64,
    /// Another with every change, and with every probe: what began before does not count after.
    epoch: NonZeroU64,
    state: State,
    /// Failures since the last success.
    row: u32,
    window: Window,
    /// When the endpoint wants to be asked again, by its last word on that.
    hint: Option<Time>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Open,
    Out {
        since: Time,
        /// A probe may be sent then.
        until: Time,
        /// How often it has shut since it was open.
        shuts: u32,
        /// When the probe that is under way began.
        probe: Option<Time>,
    },
}

impl Member {
    pub(super) fn new(id: NonZeroU64) -> Self {
        Self { id, epoch: id, state: State::Open, row: 0, window: Window::default(), hint: None }
    }

    pub(super) fn id(&self) -> NonZeroU64 {
        self.id
    }

    pub(super) fn epoch(&self) -> NonZeroU64 {
        self.epoch
    }

    pub(super) fn is_out(&self) -> bool {
        self.out_since().is_some()
    }

    pub(super) fn out_since(&self) -> Option<Time> {
        match self.state {
            State::Open => None,
            State::Out { since, .. } => Some(since),
        }
    }

    pub(super) fn admits(&self, accrual: &Accrual, now: Time) -> bool {
        match self.gate(accrual, now) {
            Gate::Open | Gate::Probation => true,
            Gate::Shut(_) => false,
            #[cfg(planted)]
            Gate::Probing if planted::makes(planted::Mistake::TwoProbes) => true,
            Gate::Probing => false,
        }
    }

    pub(super) fn gate(&self, accrual: &Accrual, now: Time) -> Gate {
        match self.state {
            State::Open => Gate::Open,
            State::Out { probe: None, until, .. } if until > now => Gate::Shut(until.since(now)),
            State::Out { probe: None, .. } => Gate::Probation,
            // Of a probe that hangs for so long nothing is to be learned any more.
            State::Out { probe: Some(began), .. } if now.since(began) >= accrual.backoff.max => {
                Gate::Probation
            }
            State::Out { probe: Some(_), .. } => Gate::Probing,
        }
    }

    /// A request that it admits begins.
    pub(super) fn begin(&mut self, epoch: NonZeroU64, now: Time) {
        if let State::Out { probe, .. } = &mut self.state {
            *probe = Some(now);
            self.epoch = epoch;
        }
    }

    /// The probe is over, and nobody knows what became of it: the next request is another.
    pub(super) fn unprobed(&mut self, next: NonZeroU64) {
        if let State::Out { probe, .. } = &mut self.state {
            *probe = None;
            self.epoch = next;
        }
    }

    pub(super) fn hinted(&mut self, until: Time) {
        self.hint = Some(until);
    }

    /// Counts an outcome while it is open; why it shuts, if it does.
    pub(super) fn count(&mut self, outcome: Outcome, accrual: &Accrual, now: Time) -> Option<Why> {
        if outcome == Outcome::Refused {
            return Some(Why::Refused);
        }
        self.row = if outcome == Outcome::Failed { self.row.saturating_add(1) } else { 0 };
        let too_few = accrual.rate.as_ref().is_some_and(|rate| {
            self.window.record(outcome == Outcome::Good, rate.window, now);
            self.window.has_too_few(rate)
        });
        if accrual.max_failures > 0 && self.row >= accrual.max_failures {
            return Some(Why::InARow);
        }
        too_few.then_some(Why::Rate)
    }

    /// It would have shut and may not: what counted does not count again.
    pub(super) fn forget(&mut self) {
        self.row = 0;
        self.window = Window::default();
    }

    /// Until when.
    pub(super) fn shut(&mut self, epoch: NonZeroU64, backoff: &Backoff, now: Time, random: u64) -> Time {
        let (since, shuts) = match self.state {
            State::Open => (now, 0),
            State::Out { since, shuts, .. } => (since, shuts),
        };
        let hinted = self.hint.take().map_or(Duration::ZERO, |hint| hint.since(now));
        #[cfg(planted)]
        let most =
            if planted::makes(planted::Mistake::HintIsUnbounded) { Duration::MAX } else { backoff.max };
        #[cfg(not(planted))]
        let most = backoff.max;
        let until = now + backoff.delay(shuts, random).max(hinted.min(most));
        self.state = State::Out { since, until, shuts: shuts.saturating_add(1), probe: None };
        self.epoch = epoch;
        self.forget();
        until
    }

    pub(super) fn open(&mut self, epoch: NonZeroU64) {
        self.state = State::Open;
        self.epoch = epoch;
        self.hint = None;
        self.forget();
    }
}

/// Responses of the last while.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    slots: [Slot; SLOTS],
    /// Number of the newest slot since the start of time.
    newest: u128,
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    good: u32,
    all: u32,
}

impl Window {
    fn record(&mut self, good: bool, window: Duration, now: Time) {
        let width = (window.as_nanos() / SLOTS as u128).max(1_000_000);
        // Told late is as good as told now.
        let slot = (now.0.as_nanos() / width).max(self.newest);
        let passed = usize::try_from(slot - self.newest).unwrap_or(usize::MAX).min(SLOTS);
        self.slots.rotate_right(passed);
        self.slots.iter_mut().take(passed).for_each(|old| *old = Slot::default());
        self.newest = slot;
        if let Some(newest) = self.slots.first_mut() {
            newest.all = newest.all.saturating_add(1);
            newest.good = newest.good.saturating_add(u32::from(good));
        }
    }

    fn has_too_few(&self, rate: &SuccessRate) -> bool {
        let sum = |of: fn(&Slot) -> u32| self.slots.iter().map(|slot| u64::from(of(slot))).sum::<u64>();
        let (good, all) = (sum(|slot| slot.good), sum(|slot| slot.all));
        all >= u64::from(rate.min_requests.max(1)) && good as f64 / (all as f64) < rate.threshold
    }
}

//! Breakers against an exact model: of each endpoint everything that was said since its breaker last changed, from which
//! every decision is made anew.

use arbitrary::{Arbitrary, Unstructured};
use remora_core::{
    backoff::Backoff,
    breaker::{Accrual, Breakers, Change, Gate, Key, Outcome, SuccessRate, Ticket, Why},
    time::Time,
};
use std::time::Duration;

/// The description of a balancer and of what happens to it.
pub fn breaker(data: &[u8]) {
    if let Ok(described) = Described::arbitrary(&mut Unstructured::new(data)) {
        described.holds();
    }
}

#[derive(Arbitrary, Debug)]
struct Described {
    max_failures: u8,
    rate: Option<Rate>,
    min_ms: u16,
    max_ms: u16,
    retry_after: bool,
    min_ready: u8,
    endpoints: u8,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Rate {
    /// In 64ths, which are exact.
    threshold: u8,
    window_ms: u16,
    min_requests: u8,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Step {
    Passes(u16),
    Begins(u8),
    /// The request that has been under way longest, or another; the hint in milliseconds.
    Ends(u8, Said, Option<u16>),
    Joins,
    Leaves(u8),
    /// Nobody else than these can be reached.
    LetBack(u8),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Said {
    Nothing,
    Good,
    Limited,
    Failed,
    Refused,
}

/// What must be true of an endpoint. Times are milliseconds.
struct Endpoint {
    key: Key,
    /// Since when it is out, until when nothing is sent, and how often it was shut.
    out: Option<(u64, u64, u32)>,
    /// When its probe began.
    probe: Option<u64>,
    /// Outcomes since the breaker last changed.
    said: Vec<(u64, Outcome)>,
    hint: Option<u64>,
    /// Counts the changes: of requests begun before one nothing counts after it.
    changes: u64,
}

struct Model<'a> {
    described: &'a Described,
    endpoints: Vec<Endpoint>,
    now: u64,
}

impl Described {
    fn accrual(&self) -> Accrual {
        let ms = |ms: u16| Duration::from_millis(ms.into());
        Accrual {
            max_failures: self.max_failures.into(),
            rate: self.rate.map(|rate| SuccessRate {
                threshold: f64::from(rate.threshold) / 64.0,
                window: ms(rate.window_ms),
                min_requests: rate.min_requests.into(),
            }),
            backoff: Backoff { min: ms(self.min_ms), max: ms(self.max_ms), jitter: 0.0 },
            retry_after: self.retry_after,
            min_ready: self.min_ready.into(),
        }
    }

    fn holds(&self) {
        let mut breakers = Breakers::new(self.accrual());
        let mut model = Model { described: self, endpoints: Vec::new(), now: 0 };
        for _ in 0..self.endpoints % 9 {
            model.joins(&mut breakers);
        }
        let mut tickets: Vec<(Ticket, Key, u64)> = Vec::new();
        for (nth, step) in self.steps.iter().take(400).enumerate() {
            let told = format!("step {nth}, {step:?}, of {self:?}");
            let now = Time(Duration::from_millis(model.now));
            match *step {
                Step::Passes(ms) => model.now += u64::from(ms),
                Step::Joins => model.joins(&mut breakers),
                Step::Begins(who) => {
                    let Some(at) = model.at(who) else { continue };
                    let key = model.endpoints[at].key;
                    let ticket = breakers.begin(key, now);
                    assert_eq!(ticket.is_some(), model.begins(at), "{told}");
                    tickets.extend(ticket.map(|ticket| (ticket, key, model.endpoints[at].changes)));
                }
                Step::Ends(which, said, hint) => {
                    if tickets.is_empty() {
                        continue;
                    }
                    let (ticket, key, changes) = tickets.remove(usize::from(which) % tickets.len());
                    let hinted = hint.map(|ms| Duration::from_millis(ms.into()));
                    let change = breakers.end(ticket, said.outcome(), hinted, now, 7);
                    assert_eq!(change, model.ends(key, changes, said, hint), "{told}");
                }
                Step::Leaves(who) => {
                    let Some(at) = model.at(who) else { continue };
                    breakers.leave(model.endpoints.remove(at).key);
                    let back = breakers.settle();
                    assert_eq!(back, model.settles(), "{told}");
                }
                Step::LetBack(reachable) => {
                    let among = |at: &usize| reachable >> (at % 8) & 1 == 1;
                    let keys: Vec<Key> =
                        (0..model.endpoints.len()).filter(among).map(|at| model.endpoints[at].key).collect();
                    let back = breakers.let_back(keys.into_iter());
                    assert_eq!(back, model.longest(among).is_some_and(|at| model.opens(at)), "{told}");
                }
            }
            model.is(&breakers, &told);
        }
    }
}

impl Said {
    fn outcome(self) -> Option<Outcome> {
        match self {
            Self::Nothing => None,
            Self::Good => Some(Outcome::Good),
            Self::Limited => Some(Outcome::Limited),
            Self::Failed => Some(Outcome::Failed),
            Self::Refused => Some(Outcome::Refused),
        }
    }
}

impl Model<'_> {
    fn at(&self, who: u8) -> Option<usize> {
        (!self.endpoints.is_empty()).then(|| usize::from(who) % self.endpoints.len())
    }

    fn joins(&mut self, breakers: &mut Breakers) {
        if self.endpoints.len() < 20 {
            let key = breakers.join();
            assert!(self.endpoints.iter().all(|other| other.key != key), "{key:?} twice");
            let said = Vec::new();
            self.endpoints.push(Endpoint { key, out: None, probe: None, said, hint: None, changes: 0 });
        }
    }

    /// Half, the smaller one, and never one of those that are to be left.
    fn may_be_out(&self) -> usize {
        let all = self.endpoints.len();
        let left = usize::from(self.described.min_ready).max(1).max(all - all / 2);
        all.saturating_sub(left)
    }

    fn out(&self) -> usize {
        self.endpoints.iter().filter(|one| one.out.is_some()).count()
    }

    fn gate(&self, one: &Endpoint) -> Gate {
        let hangs = |began: u64| self.now - began >= u64::from(self.described.max_ms);
        match (one.out, one.probe) {
            (None, _) => Gate::Open,
            (Some(_), Some(began)) if !hangs(began) => Gate::Probing,
            (Some((_, until, _)), None) if until > self.now => {
                Gate::Shut(Duration::from_millis(until - self.now))
            }
            (Some(_), _) => Gate::Probation,
        }
    }

    fn begins(&mut self, at: usize) -> bool {
        let gate = self.gate(&self.endpoints[at]);
        if gate == Gate::Probation {
            self.endpoints[at].probe = Some(self.now);
            self.endpoints[at].changes += 1;
        }
        matches!(gate, Gate::Open | Gate::Probation)
    }

    fn ends(&mut self, key: Key, changes: u64, said: Said, hint: Option<u16>) -> Option<Change> {
        let room = self.out() < self.may_be_out();
        let (now, described) = (self.now, self.described);
        let at = self.endpoints.iter().position(|one| one.key == key && one.changes == changes)?;
        let one = &mut self.endpoints[at];
        if let Some(hint) = hint.filter(|_| described.retry_after) {
            one.hint = Some(now + u64::from(hint));
        }
        let outcome = said.outcome();
        if one.out.is_some() {
            let Some(outcome) = outcome else {
                one.probe = None;
                one.changes += 1;
                return None;
            };
            if outcome == Outcome::Good || outcome == Outcome::Limited && described.rate.is_none() {
                self.opens(at);
                return Some(Change::Opened);
            }
            return Some(Change::Shut(Why::Probe, self.shuts(at)));
        }
        one.said.push((now, outcome?));
        let why = described.why(&one.said, now)?;
        if room {
            return Some(Change::Shut(why, self.shuts(at)));
        }
        one.said.clear();
        Some(Change::Kept(why))
    }

    fn shuts(&mut self, at: usize) -> Time {
        let (now, described) = (self.now, self.described);
        let one = &mut self.endpoints[at];
        let (since, _, times) = one.out.unwrap_or((now, 0, 0));
        let most = u64::from(described.max_ms);
        let backoff =
            (0..times).fold(u64::from(described.min_ms), |wait, _| (wait * 2).min(1 << 40)).min(most);
        let hinted = one.hint.take().map_or(0, |hint| hint.saturating_sub(now)).min(most);
        let until = now + backoff.max(hinted);
        one.out = Some((since, until, times + 1));
        one.probe = None;
        one.said.clear();
        one.changes += 1;
        Time(Duration::from_millis(until))
    }

    fn opens(&mut self, at: usize) -> bool {
        let one = &mut self.endpoints[at];
        one.out = None;
        one.probe = None;
        one.hint = None;
        one.said.clear();
        one.changes += 1;
        true
    }

    /// Who of those is out longest; of equals who joined first, which is the order here.
    fn longest(&self, among: impl Fn(&usize) -> bool) -> Option<usize> {
        let out = (0..self.endpoints.len()).filter(among);
        out.filter_map(|at| Some((self.endpoints[at].out?.0, at))).min().map(|(_, at)| at)
    }

    fn settles(&mut self) -> usize {
        let mut back = 0;
        while self.out() > self.may_be_out() {
            let Some(at) = self.longest(|_| true) else { break };
            self.opens(at);
            back += 1;
        }
        back
    }

    fn is(&self, breakers: &Breakers, told: &str) {
        let now = Time(Duration::from_millis(self.now));
        for one in &self.endpoints {
            assert_eq!(breakers.gate(one.key, now), self.gate(one), "{told}");
            let admits = matches!(self.gate(one), Gate::Open | Gate::Probation);
            assert_eq!(breakers.admits(one.key, now), admits, "{told}");
        }
        assert_eq!((breakers.count(), breakers.out()), (self.endpoints.len(), self.out()), "{told}");
        assert!(self.out() <= self.may_be_out(), "{told}");
    }
}

impl Described {
    /// What an open breaker shuts for, by all that was said.
    fn why(&self, said: &[(u64, Outcome)], now: u64) -> Option<Why> {
        let row = said.iter().rev().take_while(|(_, outcome)| *outcome == Outcome::Failed).count();
        if said.last().is_some_and(|(_, outcome)| *outcome == Outcome::Refused) {
            return Some(Why::Refused);
        }
        if self.max_failures > 0 && row >= usize::from(self.max_failures) {
            return Some(Why::InARow);
        }
        let rate = self.rate?;
        // In tenths of the window, but not less than a millisecond each: microseconds, to be exact.
        let width = (u64::from(rate.window_ms) * 100).max(1000);
        let tenth = |ms: u64| ms * 1000 / width;
        let counting =
            said.iter().filter(|(at, outcome)| *outcome != Outcome::Refused && tenth(*at) + 10 > tenth(now));
        let (all, good) = counting.fold((0u64, 0u64), |(all, good), (_, outcome)| {
            (all + 1, good + u64::from(*outcome == Outcome::Good))
        });
        let enough = all >= u64::from(rate.min_requests.max(1));
        (enough && good * 64 < all * u64::from(rate.threshold)).then_some(Why::Rate)
    }
}

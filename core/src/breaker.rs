//! Which endpoints of a balancer are left out because requests to them fail: circuit breaking, which Linkerd calls failure
//! accrual. Contract 4.6.
//!
//! Each endpoint has a breaker, which is open (requests pass) until too many fail. Then it shuts for a while that grows
//! from time to time, after which exactly one request, the probe, says whether it opens again.
//!
//! What Linkerd's proxy does not do: **breakers leave out half of the endpoints at most, and never all.** So no endpoint
//! gets more than twice its share because others fail, and a balancer whose endpoints all fail passes on what they say
//! instead of answering in their place. A breaker that would be one too many does not shut: its endpoint, the last to fail,
//! serves on, and is asked again after as many more failures. When endpoints leave so that too many are out, those come
//! back that were out longest, and so does the one out longest when nobody else can be reached.

mod member;

use self::member::Member;
#[cfg(planted)]
use crate::planted;
use crate::{backoff::Backoff, time::Time};
use alloc::{sync::Arc, vec::Vec};
use core::{num::NonZeroU64, time::Duration};

/// When breakers shut, and for how long.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Accrual {
    /// Failures in a row after which a breaker shuts; 0: it does not for these.
    pub max_failures: u32,
    /// The share of successes below which it shuts, if it does for that. Linkerd's `unified` has it, `consecutive` not.
    pub rate: Option<SuccessRate>,
    /// How long it is shut, by how often it was since it was last open.
    pub backoff: Backoff,
    /// Whether what an endpoint says of when to come again (`Retry-After`) may make that longer: up to `backoff.max`.
    pub retry_after: bool,
    /// Endpoints that breakers leave in any case; never less than one and never less than half of all.
    pub min_ready: u32,
}

/// What holds for the balancers behind the routes of each version of HTTP; gRPC's are HTTP/2's.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Accruals {
    /// HTTP/1; `None`: there are no breakers.
    pub http1: Option<Arc<Accrual>>,
    /// HTTP/2; `None`: there are no breakers.
    pub http2: Option<Arc<Accrual>>,
}

/// The least share of successes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SuccessRate {
    /// From 0.0 to 1.0: with less a breaker shuts.
    pub threshold: f64,
    /// How long a response counts; forgotten a tenth of it at a time. At least 10 ms.
    pub window: Duration,
    /// With fewer responses in the window nothing is concluded; 0 is as good as 1.
    pub min_requests: u32,
}

/// What came of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The endpoint answered, and it was no failure by contract 4.4.
    Good,
    /// It has no room for the request: 429, or `RESOURCE_EXHAUSTED`. No failure in a row, but no success either.
    Limited,
    /// It failed by contract 4.4, or its answer broke off.
    Failed,
    /// There was no connection to it: its breaker shuts at once.
    Refused,
}

/// A breaker among those of a balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    at: usize,
    id: NonZeroU64,
}

/// A request under way: what comes of it counts for the breaker as it was when the request began, and not otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    at: usize,
    epoch: NonZeroU64,
}

/// What changed for an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Its breaker has shut, or stays shut, until a probe may be sent then.
    Shut(Why, Time),
    /// It would have, but too many are out already.
    Kept(Why),
    /// A probe has opened it.
    Opened,
}

/// Why a breaker shuts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// So many failures in a row.
    InARow,
    /// Too few successes.
    Rate,
    /// No connection.
    Refused,
    /// The probe failed.
    Probe,
}

/// A breaker as it is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// Requests pass.
    Open,
    /// None does, for so long.
    Shut(Duration),
    /// The next one is the probe.
    Probation,
    /// The probe is under way.
    Probing,
}

/// The breakers of one balancer.
#[derive(Clone, Debug)]
pub struct Breakers {
    accrual: Accrual,
    /// Places of those that left are taken again.
    members: Vec<Option<Member>>,
    count: usize,
    out: usize,
    /// The last number given to a member or to what it goes through.
    last: NonZeroU64,
}

impl Breakers {
    /// Of nobody yet.
    pub fn new(accrual: Accrual) -> Self {
        Self { accrual, members: Vec::new(), count: 0, out: 0, last: NonZeroU64::MIN }
    }

    /// When they shut.
    pub fn accrual(&self) -> &Accrual {
        &self.accrual
    }

    /// An endpoint is there, and its breaker open.
    pub fn join(&mut self) -> Key {
        let id = self.number();
        let member = Some(Member::new(id));
        let mut places = self.members.iter_mut().enumerate();
        // Only looked for where there is one.
        let free = (self.count < places.len()).then(|| places.find(|(_, place)| place.is_none())).flatten();
        self.count += 1;
        if let Some((at, place)) = free {
            *place = member;
            return Key { at, id };
        }
        self.members.push(member);
        Key { at: self.members.len() - 1, id }
    }

    /// An endpoint is gone. Once all that go have gone, [`settle`](Self::settle).
    pub fn leave(&mut self, key: Key) {
        let Some(member) = self.member(key) else { return };
        let out = member.is_out();
        if let Some(place) = self.members.get_mut(key.at) {
            *place = None;
            self.count -= 1;
            self.out -= usize::from(out);
        }
    }

    /// Lets back who is out longest while more are out than may be. How many that were.
    pub fn settle(&mut self) -> usize {
        let mut back = 0;
        while self.out > self.may_be_out() {
            let Some(at) = self.longest(0..self.members.len()) else { break };
            self.open(at);
            back += 1;
        }
        back
    }

    /// Lets back who is out longest of these, because nobody else is there. Whether there was one.
    pub fn let_back(&mut self, among: impl Iterator<Item = Key>) -> bool {
        let Some(at) = self.longest(among.filter(|key| self.member(*key).is_some()).map(|key| key.at)) else {
            return false;
        };
        self.open(at);
        true
    }

    /// May a request be sent to the endpoint?
    pub fn admits(&self, key: Key, now: Time) -> bool {
        self.member(key).is_some_and(|member| member.admits(&self.accrual, now))
    }

    /// A request is sent. Where the breaker is shut it is the probe, if there may be one; none otherwise, and what comes
    /// of it does not count.
    pub fn begin(&mut self, key: Key, now: Time) -> Option<Ticket> {
        let epoch = self.number();
        let accrual = self.accrual;
        let member = self.member_mut(key)?;
        if !member.admits(&accrual, now) {
            return None;
        }
        member.begin(epoch, now);
        Some(Ticket { at: key.at, epoch: member.epoch() })
    }

    /// The request is over; nobody knows what became of it if `outcome` is none. `hint`: after this time the endpoint
    /// wants to be asked again. `random` is any number.
    pub fn end(
        &mut self,
        ticket: Ticket,
        outcome: Option<Outcome>,
        hint: Option<Duration>,
        now: Time,
        random: u64,
    ) -> Option<Change> {
        let (accrual, room, epoch) = (self.accrual, self.out < self.may_be_out(), self.number());
        let member = self.members.get_mut(ticket.at)?.as_mut();
        let member = member.filter(|member| member.epoch() == ticket.epoch)?;
        if let Some(hint) = hint.filter(|_| accrual.retry_after) {
            member.hinted(now + hint);
        }
        let was_out = member.is_out();
        let why = match (was_out, outcome) {
            (false, None) => return None,
            (false, Some(outcome)) => member.count(outcome, &accrual, now)?,
            (true, None) => {
                member.unprobed(epoch);
                return None;
            }
            (true, Some(outcome)) if accrual.is_recovery(outcome) => {
                self.open(ticket.at);
                return Some(Change::Opened);
            }
            (true, Some(_)) => Why::Probe,
        };
        if !was_out && !room {
            member.forget();
            return Some(Change::Kept(why));
        }
        let until = member.shut(epoch, &accrual.backoff, now, random);
        self.out += usize::from(!was_out);
        Some(Change::Shut(why, until))
    }

    /// How a breaker is.
    pub fn gate(&self, key: Key, now: Time) -> Gate {
        self.member(key).map_or(Gate::Open, |member| member.gate(&self.accrual, now))
    }

    /// Endpoints that are there.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Those of them whose breakers are not open.
    pub fn out(&self) -> usize {
        self.out
    }

    /// How many may be out at once: half, and never those that are to be left.
    pub fn may_be_out(&self) -> usize {
        #[cfg(planted)]
        if planted::makes(planted::Mistake::AllMayBeOut) {
            return self.count;
        }
        let left = usize::try_from(self.accrual.min_ready).unwrap_or(usize::MAX).max(1);
        (self.count / 2).min(self.count.saturating_sub(left))
    }

    /// Who of these is out longest; of equals who joined first.
    fn longest(&self, among: impl Iterator<Item = usize>) -> Option<usize> {
        let out = among.filter_map(|at| {
            let member = self.members.get(at)?.as_ref()?;
            Some((member.out_since()?, member.id(), at))
        });
        out.min().map(|(_, _, at)| at)
    }

    fn open(&mut self, at: usize) {
        let epoch = self.number();
        if let Some(member) = self.members.get_mut(at).and_then(Option::as_mut) {
            self.out -= usize::from(member.is_out());
            member.open(epoch);
        }
    }

    fn number(&mut self) -> NonZeroU64 {
        self.last = self.last.saturating_add(1);
        self.last
    }

    fn member(&self, key: Key) -> Option<&Member> {
        self.members.get(key.at)?.as_ref().filter(|member| member.id() == key.id)
    }

    fn member_mut(&mut self, key: Key) -> Option<&mut Member> {
        self.members.get_mut(key.at)?.as_mut().filter(|member| member.id() == key.id)
    }
}

impl Accrual {
    /// Does a probe with this outcome open the breaker? Where successes are counted, an endpoint that is still full is
    /// none.
    fn is_recovery(&self, outcome: Outcome) -> bool {
        match outcome {
            Outcome::Good => true,
            Outcome::Limited => self.rate.is_none(),
            Outcome::Failed | Outcome::Refused => false,
        }
    }
}

#[cfg(test)]
mod tests;

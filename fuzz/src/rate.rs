//! Rate limits against an exact model: of everybody how much is left, as time that has been saved up, and by the rules of
//! who shares with whom.

use arbitrary::{Arbitrary, Unstructured};
use remora_core::{
    identity::Identity,
    rate::{Keyed, Limiter, Override, Quota, RateLimits, Scope},
    time::Time,
};
use std::{collections::BTreeMap, num::NonZeroU32, sync::Arc, time::Duration};

/// The description of limits and of who asks when.
pub fn rate(data: &[u8]) {
    if let Ok(described) = Described::arbitrary(&mut Unstructured::new(data)) {
        described.limits_hold();
        described.tables_hold();
    }
}

#[derive(Arbitrary, Debug)]
struct Described {
    /// What holds at first, and what [`Step::Changes`] may say.
    first: Limits,
    second: Limits,
    burst: u8,
    interval_ms: u16,
    /// Keys that are told apart.
    most: u8,
    steps: Vec<Step>,
}

/// Per second; 0 is no limit.
#[derive(Arbitrary, Debug)]
struct Limits {
    total: u8,
    identity: u8,
    overrides: Vec<Over>,
}

#[derive(Arbitrary, Clone, Copy, Debug, PartialEq)]
struct Over {
    /// Clients 1 to 8, a bit each.
    clients: u8,
    per_second: u8,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Step {
    Passes(u16),
    /// Client 0 has no identity.
    Asks(u8),
    Changes(bool),
}

/// Time saved up, in nanoseconds: as much as a whole burst at most.
#[derive(Clone, Copy)]
struct Saved {
    left: u128,
    at: u128,
}

/// A quota in nanoseconds: what a request costs, and the most that is saved.
#[derive(Clone, Copy, PartialEq)]
struct Cost {
    one: u128,
    most: u128,
}

struct Model {
    total: Option<Cost>,
    identity: Option<Cost>,
    overrides: Vec<(Over, Cost)>,
    saved: BTreeMap<Owner, Saved>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Owner {
    Total,
    Client(u8),
    Override(usize),
}

impl Described {
    fn limits_hold(&self) {
        let mut limiter = Limiter::new(self.first.limits());
        let mut model = Model::of(&self.first);
        let mut now = Duration::ZERO;
        for (nth, step) in self.steps.iter().take(400).enumerate() {
            match *step {
                Step::Passes(ms) => now += Duration::from_millis(ms.into()),
                Step::Asks(client) => {
                    let client = client % 9;
                    let identity = (client > 0).then(|| identity(client));
                    let told = limiter.take(identity.as_ref(), Time(now)).map_err(|(scope, _)| scope);
                    assert_eq!(told, model.asks(client, now.as_nanos()), "step {nth} of {self:?}");
                }
                Step::Changes(back) => {
                    let next = if back { &self.first } else { &self.second };
                    limiter.change(next.limits());
                    model.changes(Model::of(next));
                }
            }
        }
    }

    /// More keys than are told apart.
    fn tables_hold(&self) {
        let most = usize::from(self.most % 4);
        let interval = Duration::from_millis(self.interval_ms.into());
        let quota = Quota { burst: self.burst.into(), interval };
        let cost = Cost { one: interval.as_nanos(), most: interval.as_nanos() * u128::from(self.burst) };
        let mut keyed = Keyed::new(quota, most);
        let (mut table, mut shared) = (BTreeMap::<u8, Saved>::new(), cost.full());
        let (mut now, mut looked) = (Duration::ZERO, Duration::ZERO);
        for (nth, step) in self.steps.iter().take(400).enumerate() {
            match *step {
                Step::Passes(ms) => now += Duration::from_millis(ms.into()),
                Step::Asks(client) => {
                    let at = now.as_nanos();
                    let full = table.len() >= most && !table.contains_key(&client);
                    if full && now.saturating_sub(looked) >= Duration::from_secs(1) {
                        looked = now;
                        table.retain(|_, saved| saved.now(cost, at) < cost.most);
                    }
                    let known = table.contains_key(&client) || table.len() < most;
                    let one =
                        if known { table.entry(client).or_insert_with(|| cost.full()) } else { &mut shared };
                    let expected = one.take(cost, at);
                    assert_eq!(keyed.take(&client, Time(now)), expected, "step {nth} of {self:?}");
                    assert_eq!(keyed.len(), table.len(), "step {nth} of {self:?}");
                }
                Step::Changes(_) => {}
            }
        }
    }
}

impl Limits {
    fn overrides(&self) -> impl Iterator<Item = Over> {
        self.overrides.iter().take(6).copied().filter(|one| one.per_second > 0)
    }

    fn limits(&self) -> Arc<RateLimits> {
        let quota = |per_second: u8| NonZeroU32::new(per_second.into()).map(Quota::per_second);
        let overrides = self.overrides().filter_map(|one| {
            let named = (1..9).filter(|client| one.names(*client));
            Some(Override { identities: named.map(identity).collect(), quota: quota(one.per_second)? })
        });
        Arc::new(RateLimits {
            meta: Arc::default(),
            total: quota(self.total),
            identity: quota(self.identity),
            overrides: overrides.collect(),
        })
    }
}

impl Over {
    fn names(self, client: u8) -> bool {
        (1..9).contains(&client) && self.clients >> (client - 1) & 1 == 1
    }
}

impl Cost {
    fn per_second(requests: u8) -> Option<Self> {
        let one = 1_000_000_000_u128.div_ceil(u128::from(requests).max(1));
        (requests > 0).then(|| Self { one, most: one * u128::from(requests) })
    }

    fn full(self) -> Saved {
        Saved { left: self.most, at: 0 }
    }
}

impl Saved {
    fn now(&self, cost: Cost, now: u128) -> u128 {
        cost.most.min(self.left + (now - self.at))
    }

    fn has(&self, cost: Cost, now: u128) -> bool {
        self.now(cost, now) >= cost.one
    }

    fn take(&mut self, cost: Cost, now: u128) -> bool {
        let has = self.has(cost, now);
        if has {
            *self = Self { left: self.now(cost, now) - cost.one, at: now };
        }
        has
    }
}

impl Model {
    fn of(limits: &Limits) -> Self {
        Self {
            total: Cost::per_second(limits.total),
            identity: Cost::per_second(limits.identity),
            overrides: limits
                .overrides()
                .filter_map(|one| Some((one, Cost::per_second(one.per_second)?)))
                .collect(),
            saved: BTreeMap::new(),
        }
    }

    fn asks(&mut self, client: u8, now: u128) -> Result<(), Scope> {
        let over = self.overrides.iter().rposition(|(one, _)| one.names(client));
        let own = match over {
            Some(nth) => Some((Owner::Override(nth), self.overrides[nth].1, Scope::Override)),
            None => self.identity.map(|cost| (Owner::Client(client), cost, Scope::Identity)),
        };
        let total = self.total.map(|cost| (Owner::Total, cost, Scope::Total));
        let asked: Vec<_> = total.into_iter().chain(own).collect();
        for (owner, cost, scope) in &asked {
            if !self.saved.entry(*owner).or_insert_with(|| cost.full()).has(*cost, now) {
                return Err(*scope);
            }
        }
        for (owner, cost, _) in asked {
            assert!(self.saved.entry(owner).or_insert_with(|| cost.full()).take(cost, now));
        }
        Ok(())
    }

    /// Whoever has the same limit as before has what he had.
    fn changes(&mut self, mut next: Self) {
        for (owner, saved) in &self.saved {
            let owner = match *owner {
                Owner::Total => (self.total == next.total).then_some(Owner::Total),
                Owner::Client(client) => (self.identity == next.identity).then_some(Owner::Client(client)),
                Owner::Override(_) => None,
            };
            if let Some(owner) = owner {
                next.saved.insert(owner, *saved);
            }
        }
        for (nth, (one, _)) in next.overrides.iter().enumerate() {
            let old = self.overrides.iter().position(|(old, _)| old == one);
            if let Some(saved) = old.and_then(|old| self.saved.get(&Owner::Override(old))) {
                next.saved.insert(Owner::Override(nth), *saved);
            }
        }
        *self = next;
    }
}

fn identity(client: u8) -> Identity {
    let parsed =
        Identity::parse(&format!("client-{client}.shop.serviceaccount.identity.remora.cluster.local"));
    parsed.unwrap_or_else(|error| panic!("{error}"))
}

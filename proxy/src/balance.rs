//! Endpoints with what this worker knows of them (load, health, connections), and the choice among them.
//!
//! One balancer per worker, destination and rule of when breakers shut. It drives `core::balance` and `core::ewma`: discovery in, in-flight counts
//! and round trips in, endpoint out.

use crate::{
    Worker,
    breaker::{Breaker, Breaking},
    discover::{AskAgain, Known, Watch},
    endpoint::{LiveEndpoint, Place},
    fault::Fault,
    limits::Limiter,
    plaintext,
};
use arc_swap::ArcSwap;
use remora_core::{
    balance::{self, Balancing, Draw, Field, Limited, Strategy, Turns},
    breaker::Accrual,
    endpoint::Endpoint,
    time::Time,
};
use remora_runtime::clock;
use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, OnceLock, Weak},
    time::Duration,
};
use tokio::{sync::Notify, task::AbortHandle};

/// With no endpoint that accepts connections for so long, requests fail at once. Contract 4.5.
const FAILFAST: Duration = Duration::from_secs(3);

/// Endpoints made before the other tasks of the worker get their turn.
const AT_ONCE: usize = 64;

/// The endpoints of one destination, for one worker.
pub struct Balancer {
    name: Arc<str>,
    nowhere: bool,
    strategy: Strategy,
    /// Turns that round robin has taken.
    turns: Turns,
    set: ArcSwap<Set>,
    changed: Notify,
    /// Who is left out because requests fail, where that is wanted.
    breaking: Option<Arc<Breaking>>,
    /// How much there may be under way, where that is limited.
    limiter: Option<Arc<Limiter>>,
    /// Follows discovery; ends with the balancer.
    following: OnceLock<AbortOnDrop>,
}

/// How a destination's endpoints are balanced.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Manner {
    /// The first estimate of a round trip, and after how long a measurement counts for 1/e.
    pub ewma: (Duration, Duration),
    /// When endpoints are left out; `None`: never.
    pub accrual: Option<Accrual>,
    /// What the Service wants.
    pub balancing: Balancing,
}

impl Manner {
    /// By which a worker's balancers are told apart.
    pub fn key(&self, authority: &Arc<str>) -> Arc<str> {
        match self {
            Self { accrual: None, balancing, .. } if *balancing == Balancing::default() => authority.clone(),
            Self { accrual, balancing, .. } => format!("{authority} {accrual:?} {balancing:?}").into(),
        }
    }
}

struct Set {
    /// Those among whom one is picked; of this client's zone first.
    endpoints: Vec<Arc<LiveEndpoint>>,
    /// Those that nothing may be sent to, where there are others.
    passed_over: Vec<Arc<LiveEndpoint>>,
    /// Their weights and zones.
    field: Field,
    /// Since when there is no endpoint, or discovery has said nothing.
    empty_since: Time,
}

impl Balancer {
    /// A destination whose endpoints do not change.
    pub fn fixed(name: Arc<str>, endpoints: Vec<Arc<LiveEndpoint>>) -> Arc<Self> {
        Arc::new(Self::with(name, Set::of(endpoints, clock::now())))
    }

    /// Nobody, for this reason: it counts as there, and whoever is sent there fails at once.
    pub fn nowhere(why: Arc<str>) -> Arc<Self> {
        Arc::new(Self { nowhere: true, ..Self::with(why, Set::of(Vec::new(), clock::now())) })
    }

    /// A destination that discovery describes; followed until the balancer is dropped.
    pub fn discovered(
        worker: &Arc<Worker>,
        authority: Arc<str>,
        manner: Manner,
        watch: Watch<Vec<Endpoint>>,
    ) -> Arc<Self> {
        let metrics = &worker.proxy.metrics.breakers;
        let breaking = manner.accrual.map(|accrual| Breaking::new(&authority, &accrual, metrics));
        let (limits, limited) = (manner.balancing.limits, &worker.proxy.metrics.limits);
        let balancer = Arc::new(Self {
            breaking,
            limiter: worker.proxy.limiters.of(&authority, limits, limited),
            strategy: manner.balancing.strategy,
            // Not all proxies begin with the same endpoint.
            turns: Turns::beginning_with(clock::random() >> 1),
            ..Self::with(authority, Set::of(Vec::new(), clock::now()))
        });
        let following = follow(Arc::downgrade(&balancer), worker.clone(), manner.ewma, watch);
        // Never set before: the balancer is new.
        let _ = balancer.following.set(AbortOnDrop(worker.proxy.tasks.spawn("balancer", following)));
        balancer
    }

    fn with(name: Arc<str>, set: Set) -> Self {
        Self {
            name,
            nowhere: false,
            strategy: Strategy::default(),
            turns: Turns::default(),
            set: ArcSwap::from_pointee(set),
            changed: Notify::new(),
            breaking: None,
            limiter: None,
            following: OnceLock::new(),
        }
    }

    /// `<svc>.<ns>.svc.<domain>:<port>`, or an address.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// By what its endpoints are told apart.
    pub fn strategy(&self) -> Strategy {
        self.strategy
    }

    /// Whether discovery says who its endpoints are, and may say that somebody else is there.
    pub fn is_discovered(&self) -> bool {
        self.following.get().is_some()
    }

    /// Whether there is more than one endpoint.
    pub fn has_choice(&self) -> bool {
        self.set.load().endpoints.len() > 1
    }

    /// Whether somebody could be picked now.
    pub fn is_available(&self) -> bool {
        let now = clock::now();
        let set = self.set.load();
        if self.is_discovered() {
            let well = |live: &&Arc<LiveEndpoint>| live.refusal(now).is_none() && live.admits(now);
            set.endpoints.iter().filter(well).any(|live| live.forbidden().is_none())
        } else {
            self.nowhere || !set.endpoints.is_empty()
        }
    }

    /// The endpoints, for `/state.json`.
    pub fn endpoints(&self) -> Vec<Arc<LiveEndpoint>> {
        self.set.load().all().cloned().collect()
    }

    /// The less loaded of two usable endpoints, `except` one if there is another. Waits while there is none, also while
    /// all of them refuse connections, but not beyond failfast. Where there is no choice (a second attempt, an address
    /// that discovery does not balance), one that refuses is better than none. Nobody is picked whose breaker is shut,
    /// except that one of those is let back where nobody else can be reached.
    pub async fn pick(&self, except: Option<&Arc<LiveEndpoint>>) -> Result<Arc<LiveEndpoint>, Fault> {
        self.pick_of(except, except.is_none()).await
    }

    /// The same for a retry after `failed` has answered: any other usable endpoint, else that one if it is usable.
    pub async fn pick_again(&self, failed: Option<&Arc<LiveEndpoint>>) -> Result<Arc<LiveEndpoint>, Fault> {
        self.pick_of(failed, true).await
    }

    async fn pick_of(
        &self,
        except: Option<&Arc<LiveEndpoint>>,
        choosy: bool,
    ) -> Result<Arc<LiveEndpoint>, Fault> {
        if self.nowhere {
            return Err(Fault::NoEndpoint(self.name.clone()));
        }
        let mut waits = None;
        loop {
            let changed = self.changed.notified();
            let set = self.set.load();
            let (now, choosy) = (clock::now(), choosy && self.is_discovered());
            if let Some(picked) = self.pick_now(&set, except, choosy, now) {
                return Ok(picked);
            }
            if self.let_back(&set.endpoints, now) {
                continue;
            }
            let refusals = set.endpoints.iter().filter_map(|live| live.refusal(now));
            let patience = balance::patience(refusals, set.empty_since, now, FAILFAST);
            let Some(patience) = patience else { return Err(Fault::NoEndpoint(set.wanted(&self.name))) };
            drop(set);
            if let (Some(limiter), None) = (&self.limiter, &waits) {
                waits = Some(limiter.take(Limited::PendingRequests)?);
            }
            // Expiry is no error: somebody may be tried again, or it is time to fail.
            let _ = tokio::time::timeout(patience, changed).await;
        }
    }

    fn pick_now(
        &self,
        Set { endpoints, field, .. }: &Set,
        except: Option<&Arc<LiveEndpoint>>,
        choosy: bool,
        now: Time,
    ) -> Option<Arc<LiveEndpoint>> {
        let random = clock::random();
        let except = except.and_then(|except| endpoints.iter().position(|live| Arc::ptr_eq(live, except)));
        // Without weight is better than none, and so is, where there is no choice, one that refused just now.
        let standing = |index: usize| {
            let live = endpoints.get(index)?;
            let (standing, refuses) = live.standing(now);
            // Who has just failed is there as the last resort of a second attempt.
            let admitted = standing.usable || live.admits(now) || (!choosy && Some(index) == except);
            (admitted && (!choosy || !refuses)).then_some(standing)
        };
        let draw = Draw { strategy: self.strategy, except, random };
        let picked = field.choose(draw, standing, &self.turns);
        picked.and_then(|picked| endpoints.get(picked).cloned())
    }

    fn let_back(&self, endpoints: &[Arc<LiveEndpoint>], now: Time) -> bool {
        let Some(breaking) = &self.breaking else { return false };
        let reachable = endpoints.iter().filter(|live| live.refusal(now).is_none());
        breaking.let_back(&reachable.filter_map(|live| live.breaker()).collect::<Vec<_>>())
    }

    /// What did not change keeps its connections and its load. Thousands of new endpoints are made a few at a time, so
    /// that the worker's connections get their turns.
    async fn update(&self, worker: &Arc<Worker>, (ewma, again): (Ewma, &AskAgain), wanted: &[Endpoint]) {
        let old = self.set.load_full();
        let known: HashMap<_, _> = old.all().map(|live| (live.endpoint().addr, live)).collect();
        let mut endpoints = Vec::with_capacity(wanted.len());
        for some in wanted.chunks(AT_ONCE) {
            endpoints.extend(some.iter().map(|endpoint| {
                let same = known.get(&endpoint.addr).filter(|live| live.endpoint() == endpoint);
                same.map_or_else(
                    || {
                        let breaker = self.breaking.as_ref().map(|breaking| breaking.join(endpoint.addr));
                        let (authority, again) = (Some(&*self.name), Some(again.clone()));
                        let place = Place { authority, ewma, breaker, again, limiter: self.limiter.clone() };
                        LiveEndpoint::new(worker, endpoint.clone(), place)
                    },
                    |live| Arc::clone(live),
                )
            }));
            if some.len() == AT_ONCE {
                tokio::task::yield_now().await;
            }
        }
        let empty_since =
            if endpoints.is_empty() && old.endpoints.is_empty() { old.empty_since } else { clock::now() };
        if let Some(breaking) = &self.breaking {
            let kept: HashSet<_> = endpoints.iter().map(Arc::as_ptr).collect();
            let gone = old.all().filter(|live| !kept.contains(&Arc::as_ptr(live)));
            gone.filter_map(|live| live.breaker()).for_each(Breaker::leave);
            breaking.settle();
        }
        self.set.store(Arc::new(Set::of(endpoints, empty_since)));
        self.changed.notify_waiters();
    }
}

type Ewma = (Duration, Duration);

impl Set {
    fn of(endpoints: Vec<Arc<LiveEndpoint>>, empty_since: Time) -> Self {
        let (mut endpoints, passed_over) =
            plaintext::candidates(endpoints, |live| live.forbidden().is_some());
        endpoints.sort_by_key(|live| live.endpoint().remote);
        let weights: Vec<u32> = endpoints.iter().map(|live| live.endpoint().weight).collect();
        let own = endpoints.partition_point(|live| !live.endpoint().remote);
        let (own, others) = weights.split_at(own);
        Self { field: Field::new(own, others), endpoints, passed_over, empty_since }
    }

    fn all(&self) -> impl Iterator<Item = &Arc<LiveEndpoint>> {
        self.endpoints.iter().chain(&self.passed_over)
    }

    /// Of whom an endpoint is wanted, and what kind of endpoint, where others are passed over.
    fn wanted(&self, of: &Arc<str>) -> Arc<str> {
        let forbidden = self.passed_over.first().and_then(|live| live.forbidden());
        let Some(Fault::NoIdentity { policy, .. }) = forbidden else { return of.clone() };
        let without = self.passed_over.len();
        format!(
            "{of} with an identity, which the outbound default policy {policy} demands ({without} without),"
        )
        .into()
    }
}

/// A task that ends with its owner.
pub struct AbortOnDrop(pub AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Applies what discovery says for as long as there is a balancer.
async fn follow(balancer: Weak<Balancer>, worker: Arc<Worker>, ewma: Ewma, mut watch: Watch<Vec<Endpoint>>) {
    let again = watch.again();
    loop {
        {
            let Some(balancer) = balancer.upgrade() else { return };
            match watch.latest() {
                Known::Is(endpoints) => balancer.update(&worker, (ewma, &again), &endpoints).await,
                Known::Absent(_) => balancer.update(&worker, (ewma, &again), &[]).await,
                Known::Pending => {}
            }
        }
        if watch.changed().await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests;

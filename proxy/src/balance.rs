//! Endpoints with what this worker knows of them (load, health, connections), and the choice among them.
//!
//! One balancer per worker and destination. It drives `core::balance` and `core::ewma`: discovery in, in-flight counts
//! and round trips in, endpoint out.

use crate::{
    Worker,
    discover::{Known, Watch},
    endpoint::LiveEndpoint,
    fault::Fault,
};
use arc_swap::ArcSwap;
use remora_core::{balance, endpoint::Endpoint, time::Time};
use remora_runtime::clock;
use std::{
    sync::{Arc, OnceLock, Weak},
    time::Duration,
};
use tokio::{sync::Notify, task::AbortHandle};

/// With no usable endpoint for so long, requests fail at once. Contract 4.5.
const FAILFAST: Duration = Duration::from_secs(3);

/// The endpoints of one destination, for one worker.
pub struct Balancer {
    name: Arc<str>,
    set: ArcSwap<Set>,
    changed: Notify,
    /// Follows discovery; ends with the balancer.
    following: OnceLock<AbortOnDrop>,
}

struct Set {
    endpoints: Vec<Arc<LiveEndpoint>>,
    /// Since when nobody could be picked, or discovery has said nothing.
    empty_since: Time,
}

impl Balancer {
    /// A destination whose endpoints do not change.
    pub fn fixed(name: Arc<str>, endpoints: Vec<Arc<LiveEndpoint>>) -> Arc<Self> {
        let set = Set { endpoints, empty_since: clock::now() };
        Arc::new(Self::with(name, set))
    }

    /// A destination that discovery describes; followed until the balancer is dropped.
    pub fn discovered(
        worker: &Arc<Worker>,
        authority: Arc<str>,
        ewma: (Duration, Duration),
        watch: Watch<Vec<Endpoint>>,
    ) -> Arc<Self> {
        let set = Set { endpoints: Vec::new(), empty_since: clock::now() };
        let balancer = Arc::new(Self::with(authority, set));
        let following = follow(Arc::downgrade(&balancer), worker.clone(), ewma, watch);
        // Never set before: the balancer is new.
        let _ = balancer.following.set(AbortOnDrop(worker.proxy.tasks.spawn("balancer", following)));
        balancer
    }

    fn with(name: Arc<str>, set: Set) -> Self {
        Self { name, set: ArcSwap::from_pointee(set), changed: Notify::new(), following: OnceLock::new() }
    }

    /// `<svc>.<ns>.svc.<domain>:<port>`, or an address.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Whether somebody could be picked now.
    pub fn is_available(&self) -> bool {
        !self.set.load().endpoints.is_empty()
    }

    /// The endpoints, for `/state.json`.
    pub fn endpoints(&self) -> Vec<Arc<LiveEndpoint>> {
        self.set.load().endpoints.clone()
    }

    /// The less loaded of two usable endpoints, `except` one if there is another. Waits while there is none, but not
    /// beyond failfast.
    pub async fn pick(&self, except: Option<&Arc<LiveEndpoint>>) -> Result<Arc<LiveEndpoint>, Fault> {
        loop {
            let changed = self.changed.notified();
            let set = self.set.load();
            if let Some(picked) = pick(&set.endpoints, except) {
                return Ok(picked);
            }
            let waited = clock::now().since(set.empty_since);
            drop(set);
            let left = FAILFAST.saturating_sub(waited);
            if left.is_zero() || tokio::time::timeout(left, changed).await.is_err() {
                return Err(Fault::NoEndpoint(self.name.clone()));
            }
        }
    }

    fn update(&self, worker: &Arc<Worker>, ewma: (Duration, Duration), endpoints: &[Endpoint]) {
        let old = self.set.load_full();
        let endpoints: Vec<_> = endpoints
            .iter()
            .map(|endpoint| {
                // What did not change keeps its connections and its load.
                let same = old.endpoints.iter().find(|live| live.endpoint() == endpoint);
                same.cloned()
                    .unwrap_or_else(|| LiveEndpoint::new(worker, endpoint.clone(), Some(&self.name), ewma))
            })
            .collect();
        let empty_since =
            if endpoints.is_empty() && old.endpoints.is_empty() { old.empty_since } else { clock::now() };
        self.set.store(Arc::new(Set { endpoints, empty_since }));
        self.changed.notify_waiters();
    }
}

fn pick(endpoints: &[Arc<LiveEndpoint>], except: Option<&Arc<LiveEndpoint>>) -> Option<Arc<LiveEndpoint>> {
    let now = clock::now();
    let random = clock::random();
    let is_except = |live: &Arc<LiveEndpoint>| except.is_some_and(|except| Arc::ptr_eq(live, except));
    let healthy = |i: usize| {
        let live = endpoints.get(i)?;
        (!is_except(live)).then(|| live.load_if_reachable(now)).flatten()
    };
    // When no endpoint answers, the one that may have recovered is better than none.
    let any = |i: usize| endpoints.get(i).map(|live| live.load(now));
    let picked = balance::pick(endpoints.len(), healthy, random)
        .or_else(|| balance::pick(endpoints.len(), any, random))?;
    endpoints.get(picked).cloned()
}

/// A task that ends with its owner.
pub struct AbortOnDrop(pub AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Applies what discovery says for as long as there is a balancer.
async fn follow(
    balancer: Weak<Balancer>,
    worker: Arc<Worker>,
    ewma: (Duration, Duration),
    mut watch: Watch<Vec<Endpoint>>,
) {
    loop {
        {
            let Some(balancer) = balancer.upgrade() else { return };
            match watch.latest() {
                Known::Is(endpoints) => balancer.update(&worker, ewma, &endpoints),
                Known::Absent(_) => balancer.update(&worker, ewma, &[]),
                Known::Pending => {}
            }
        }
        if watch.changed().await.is_err() {
            return;
        }
    }
}

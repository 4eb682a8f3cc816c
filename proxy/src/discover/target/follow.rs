//! From what the control plane says of a target to its plan, again and again, on the control thread.

use super::{Plan, Target, compile};
use crate::{
    Worker,
    discover::{
        Absence, Known, Place, Policy, Profiled, Watch, pod,
        resolve::{self, Resolution},
    },
};
use std::{
    sync::{Arc, Weak},
    time::Duration,
};
use tokio::runtime::Handle;

/// For how long a plan that does not hold any more is kept for the requests that go by it.
const KEPT_FOR: Duration = Duration::from_mins(1);

/// Compiles every answer of the control plane for as long as the target lives, one after the other and the latest next.
pub(super) async fn follow(
    target: Weak<Target>,
    worker: Arc<Worker>,
    mut profile: Option<Watch<Profiled>>,
    mut policy: Watch<Policy>,
) {
    loop {
        let latest = match &mut profile {
            Some(profile) => profile.latest(),
            None => Known::Absent(Absence::NotFound),
        };
        let Some(place) = target.upgrade().map(|target| target.place.clone()) else { return };
        let plan = elsewhere(&worker, place, latest, policy.latest()).await;
        if let (Some(plan), Some(target)) = (plan, target.upgrade()) {
            let before = target.plan.swap(Some(plan));
            target.planned.notify_waiters();
            if let Some(before) = before {
                worker.proxy.discovery.policies.runtime().spawn(free(before));
            }
        }
        let changed = match &mut profile {
            Some(profile) => tokio::select! {
                changed = profile.changed() => changed,
                changed = policy.changed() => changed,
            },
            None => policy.changed().await,
        };
        if changed.is_err() {
            return;
        }
    }
}

/// Compiles on the control thread: however much there is of it, connections are served meanwhile. Design decision 2.
async fn elsewhere(
    worker: &Arc<Worker>,
    place: Place,
    profile: Known<Profiled>,
    policy: Known<Policy>,
) -> Option<Arc<Plan>> {
    let (of, own) = (worker.clone(), Handle::current());
    let compiling = worker.proxy.discovery.policies.runtime().spawn(async move {
        // What follows its balancers belongs to the worker.
        let _own = own.enter();
        plan(&of, &place, &profile, &policy).map(Arc::new)
    });
    // A panic is a bug, which has been counted; what was known stays.
    compiling.await.ok().flatten()
}

/// Frees a plan here and not where the last request that went by it ends, unless that takes long.
async fn free(plan: Arc<Plan>) {
    for _ in 0..KEPT_FOR.as_secs() {
        if Arc::strong_count(&plan) == 1 {
            return;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// What to do with connections to a target of which so much is known; `None`: the control plane has yet to answer.
fn plan(
    worker: &Arc<Worker>,
    place: &Place,
    profile: &Known<Profiled>,
    policy: &Known<Policy>,
) -> Option<Plan> {
    let resolved = match resolve::resolve(place, profile, policy) {
        Resolution::Wait => return None,
        Resolution::Use(resolved) => resolved,
    };
    let of_pod = match policy {
        Known::Is(said) => pod::plan(worker, place, profile, &said.services),
        Known::Pending | Known::Absent(_) => None,
    };
    let routed = match profile {
        Known::Is(known) => Some(&known.profile).filter(|profile| profile.routes_http()),
        Known::Pending | Known::Absent(_) => None,
    };
    Some(of_pod.unwrap_or_else(|| compile(worker, &resolved, routed, place.port())))
}

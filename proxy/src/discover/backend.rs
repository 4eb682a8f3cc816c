//! The balancer behind a backend: one per worker for all targets that name it.

use crate::{
    Worker,
    balance::{Balancer, Manner},
    endpoint::{LiveEndpoint, Place},
};
use remora_core::{
    balance::Balancings,
    breaker::Accrual,
    endpoint::Endpoint,
    route::{BackendTarget, DEFAULT_DECAY, DEFAULT_RTT},
};
use std::{collections::BTreeMap, sync::Arc};

/// What a policy wants of the balancers behind its backends.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    pub accrual: Option<&'a Accrual>,
    pub balancing: &'a Balancings,
}

impl Wanted<'_> {
    /// The default.
    pub const NOTHING: Self = Wanted { accrual: None, balancing: &BTreeMap::new() };
}

/// The worker's balancer of a backend: shared by all targets that name it and want the same of it.
pub(super) fn balancer(worker: &Arc<Worker>, target: &BackendTarget, wanted: Wanted<'_>) -> Arc<Balancer> {
    let targets = &worker.targets;
    match target {
        BackendTarget::Balance { authority, default_rtt, decay } => {
            let manner = Manner {
                ewma: (*default_rtt, *decay),
                accrual: wanted.accrual.copied(),
                balancing: wanted.balancing.get(authority).copied().unwrap_or_default(),
            };
            let followed = targets.balancer(manner.key(authority), || {
                let watch = worker.proxy.discovery.endpoints.watch(authority).ok()?;
                Some(Balancer::discovered(worker, authority.clone(), manner, watch))
            });
            followed.unwrap_or_else(|| {
                worker.proxy.metrics.targets_refused.inc();
                Balancer::fixed(authority.clone(), Vec::new())
            })
        }
        BackendTarget::Forward(endpoint) => fixed(worker, format!("{endpoint:?}"), endpoint),
        BackendTarget::Nowhere(why) => Balancer::nowhere(why.clone()),
        BackendTarget::Original(addr) => {
            let endpoint = Endpoint::bare(*addr);
            fixed(worker, format!("original {addr}"), &endpoint)
        }
    }
}

fn fixed(worker: &Arc<Worker>, key: String, endpoint: &Endpoint) -> Arc<Balancer> {
    let made = || {
        let ewma = (DEFAULT_RTT, DEFAULT_DECAY);
        let place = Place { authority: None, ewma, breaker: None, again: None, limiter: None };
        let live = LiveEndpoint::new(worker, endpoint.clone(), place);
        Balancer::fixed(endpoint.addr.to_string().into(), vec![live])
    };
    worker.targets.balancer(key.into(), || Some(made())).unwrap_or_else(made)
}

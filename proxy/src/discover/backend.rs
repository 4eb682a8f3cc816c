//! The balancer behind a backend: one per worker for all targets that name it.

use crate::{Worker, balance::Balancer, endpoint::LiveEndpoint};
use remora_core::{
    breaker::Accrual,
    endpoint::Endpoint,
    route::{BackendTarget, DEFAULT_DECAY, DEFAULT_RTT},
};
use std::{sync::Arc, time::Duration};

/// The worker's balancer of a backend: shared by all targets that name it and say the same of its breakers.
pub(super) fn balancer(
    worker: &Arc<Worker>,
    target: &BackendTarget,
    accrual: Option<&Accrual>,
) -> Arc<Balancer> {
    let targets = &worker.targets;
    match target {
        BackendTarget::Balance { authority, default_rtt, decay } => {
            let key = accrual
                .map_or_else(|| authority.clone(), |accrual| format!("{authority} {accrual:?}").into());
            let followed = targets.balancer(key, || {
                let watch = worker.proxy.discovery.endpoints.watch(authority).ok()?;
                let ewma = (*default_rtt, *decay);
                Some(Balancer::discovered(worker, authority.clone(), ewma, accrual, watch))
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
        let ewma: (Duration, Duration) = (DEFAULT_RTT, DEFAULT_DECAY);
        let live = LiveEndpoint::new(worker, endpoint.clone(), None, ewma, None);
        Balancer::fixed(endpoint.addr.to_string().into(), vec![live])
    };
    worker.targets.balancer(key.into(), || Some(made())).unwrap_or_else(made)
}

//! A pod that is dialled itself: the Services that it belongs to, and which of them a request goes by. Design, "Pod IPs".

use super::{
    Known, Place, Profiled, resolve,
    target::{Plan, compile},
};
use crate::Worker;
use remora_core::route::{self, Membership};
use remora_runtime::metrics::Counter;
use std::sync::Arc;

/// The Services of a pod.
pub struct PodPlan {
    /// That by which everything goes that names no other. `<svc>.<ns>.svc.<domain>:<port>`.
    pub service: Arc<str>,
    /// The others, by preference.
    pub others: Vec<(Arc<str>, Arc<Plan>)>,
    /// Connections to the pod that go by its Services.
    pub connections: Counter,
}

/// What to do with connections to a pod that belongs to these Services. `None`: there are none.
pub(super) fn plan(
    worker: &Arc<Worker>,
    place: &Place,
    profile: &Known<Profiled>,
    services: &[Membership],
) -> Option<Plan> {
    let of_service = |one: &Membership| {
        let policy = resolve::member(place, profile, one);
        let profile = one.profile.as_ref().filter(|profile| profile.routes_http());
        compile(worker, &policy, profile, one.port)
    };
    let (first, others) = services.split_first()?;
    let pod = PodPlan {
        service: first.service.clone(),
        others: others.iter().map(|one| (one.service.clone(), Arc::new(of_service(one)))).collect(),
        connections: worker.proxy.metrics.pod_address(&first.service),
    };
    Some(Plan { pod: Some(pod), ..of_service(first) })
}

impl PodPlan {
    /// All of them, the first one first.
    pub fn services(&self) -> impl Iterator<Item = &str> + Clone {
        std::iter::once(&*self.service).chain(self.others.iter().map(|(service, _)| &**service))
    }
}

impl Plan {
    /// Whether it matters which of several Services of a pod is named.
    pub fn is_of_several(&self) -> bool {
        self.pod.as_ref().is_some_and(|pod| !pod.others.is_empty())
    }

    /// What holds for whoever names this host: of a pod, the Service of that name; else this.
    pub fn named<S: AsRef<str>>(self: Arc<Self>, authority: impl FnOnce() -> S) -> Arc<Self> {
        let Some(pod) = self.pod.as_ref().filter(|pod| !pod.others.is_empty()) else { return self };
        let other = route::named(pod.services(), authority().as_ref()).and_then(|index| index.checked_sub(1));
        match other.and_then(|index| pod.others.get(index)) {
            Some((_, plan)) => plan.clone(),
            None => self,
        }
    }
}

//! A target as one worker uses it: the control plane's answer compiled into routes, splits and live balancers. A
//! connection that has its target looks nothing up any more.

mod follow;

use super::{
    Full, Place,
    backend::{self, Wanted},
    pod::PodPlan,
    profiled::ProfilePlan,
    resolve,
    rules::Routes,
};
use crate::{
    Worker,
    balance::{AbortOnDrop, Balancer},
    fault::Fault,
    http::{filters::Filters, mirror::Mirrors},
    metrics::{
        BackendMetrics,
        routes::{Kind, MirrorMetrics},
    },
};
use arc_swap::ArcSwapOption;
use remora_core::{
    breaker::Accrual,
    policy::ResourceRef,
    profile::Profile,
    route::{
        Backend, Distribution, HostMatch, OutboundPolicy, OutboundProtocol, OutboundRoute, pick_backend,
    },
};
use remora_runtime::clock;
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::sync::Notify;

/// One original destination, or a Service that requests name.
pub struct Target {
    pub place: Place,
    plan: ArcSwapOption<Plan>,
    planned: Notify,
    speculation_denied: AtomicBool,
    /// Since the last sweep.
    used: AtomicBool,
    following: OnceLock<AbortOnDrop>,
}

/// What to do with connections to a target.
pub struct Plan {
    pub parent: Arc<ResourceRef>,
    pub protocol: PlanProtocol,
    /// Where HTTP requests go by a ServiceProfile, and not by the routes of `protocol`.
    pub profile: Option<ProfilePlan>,
    /// Where the target is a pod: the Services by which it goes.
    pub pod: Option<PodPlan>,
}

/// By protocol.
pub enum PlanProtocol {
    Detect { http1: Routes, http2: Routes, opaque: Arc<Split> },
    Http1(Routes),
    Http2(Routes),
    Opaque(Arc<Split>),
    Tls(Vec<TlsPlan>),
    Invalid(Arc<str>),
}

impl PlanProtocol {
    /// Where bytes go that are nothing else.
    pub fn opaque(&self) -> Option<&Arc<Split>> {
        match self {
            Self::Detect { opaque, .. } | Self::Opaque(opaque) => Some(opaque),
            Self::Http1(_) | Self::Http2(_) | Self::Tls(_) | Self::Invalid(_) => None,
        }
    }
}

/// A TLS route.
pub struct TlsPlan {
    pub snis: Vec<HostMatch>,
    pub split: Arc<Split>,
}

/// A distribution over live backends, by the same indices.
pub struct Split {
    distribution: Arc<Distribution>,
    backends: Vec<LiveBackend>,
}

/// One backend.
pub struct LiveBackend {
    pub balancer: Arc<Balancer>,
    pub meta: Arc<ResourceRef>,
    /// Where requests are counted; a way for bytes has none.
    pub metrics: Option<Arc<BackendMetrics>>,
    /// What is done with requests that go there, and their answers; nothing by most.
    pub filters: Option<Box<Filters>>,
    /// Who else gets what goes there.
    pub mirrors: Option<Box<Mirrors>>,
}

impl Split {
    /// The backend of the next request.
    pub fn pick(&self) -> Result<&LiveBackend, Fault> {
        if let Some(reason) = self.forbids() {
            return Err(Fault::Forbidden { target: "this destination".into(), reason });
        }
        let available = |i: usize| self.backends.get(i).is_some_and(|one| one.balancer.is_available());
        pick_backend(&self.distribution, available, clock::random())
            // Nobody is available: the first one says so, after failfast.
            .or_else(|| (!self.backends.is_empty()).then_some(0))
            .and_then(|i| self.backends.get(i))
            .ok_or_else(|| Fault::NoEndpoint("a route without backends".into()))
    }

    /// Why nothing may go this way, where that is so.
    pub fn forbids(&self) -> Option<Arc<str>> {
        match &*self.distribution {
            Distribution::Forbidden(reason) => Some(reason.clone()),
            Distribution::Empty | Distribution::FirstAvailable(_) | Distribution::RandomAvailable(_) => None,
        }
    }

    /// Whether a filter of a backend has to know how much of a path the rule's prefix covers.
    pub fn replaces_prefix(&self) -> bool {
        self.backends.iter().filter_map(|backend| backend.filters.as_ref()).any(|one| one.replace_prefix)
    }

    /// The balancers, for `/state.json`.
    pub fn backends(&self) -> &[LiveBackend] {
        &self.backends
    }
}

impl Target {
    /// What to do now. Until the control plane has answered, what was decided in its place.
    pub fn plan(&self, worker: &Arc<Worker>) -> Arc<Plan> {
        if let Some(plan) = self.plan.load_full() {
            return plan;
        }
        let forward = Arc::new(compile(worker, &resolve::original(&self.place), None, self.place.port()));
        // Kept until the control plane answers, unless it just has.
        self.plan.compare_and_swap(&None::<Arc<Plan>>, Some(forward.clone()));
        self.plan.load_full().unwrap_or(forward)
    }

    /// Waits for the control plane's first answer, but not beyond the limit: then connections inside the cluster's
    /// networks fail, others are forwarded. Design decision 8.
    pub async fn first_plan(&self, worker: &Arc<Worker>) -> Result<(), Fault> {
        let limit = worker.proxy.config.outbound.first_lookup;
        let waiting = async {
            loop {
                let planned = self.planned.notified();
                if self.plan.load().is_some() {
                    return;
                }
                planned.await;
            }
        };
        if tokio::time::timeout(limit, waiting).await.is_ok() {
            return Ok(());
        }
        let in_cluster = match &self.place {
            Place::Addr(addr) => worker.proxy.in_cluster(addr.ip()),
            Place::Name(_) => true,
        };
        if in_cluster {
            return Err(Fault::FirstLookup { target: self.place.to_string().into(), waited: limit });
        }
        worker.proxy.metrics.first_lookup_forwarded.inc();
        Ok(())
    }

    /// Whether the next silent client's connection may be dialled before it speaks.
    pub fn may_speculate(&self) -> bool {
        !self.speculation_denied.load(Ordering::Relaxed)
    }

    /// The server does not like connections on which nobody speaks.
    pub fn deny_speculation(&self) {
        self.speculation_denied.store(true, Ordering::Relaxed);
    }

    /// The plan if there is one, for `/state.json`.
    pub fn known(&self) -> Option<Arc<Plan>> {
        self.plan.load_full()
    }
}

/// The targets that a worker's connections use.
#[derive(Default)]
pub struct Targets {
    targets: Mutex<HashMap<Place, Arc<Target>>>,
    balancers: Mutex<HashMap<Arc<str>, Weak<Balancer>>>,
}

impl Targets {
    /// The target of a connection or request; begins to follow it if nobody else does.
    pub fn target(&self, worker: &Arc<Worker>, place: Place) -> Result<Arc<Target>, Fault> {
        let mut targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(target) = targets.get(&place) {
            target.used.store(true, Ordering::Relaxed);
            return Ok(target.clone());
        }
        let proxy = &worker.proxy;
        let full = |full: Full| {
            proxy.metrics.targets_refused.inc();
            Fault::Overloaded(format!("a lookup (at most {} targets are followed)", full.max).into())
        };
        // Only these networks are asked about; elsewhere there are no Services. Contract 1.7.
        let has_profiles = match &place {
            Place::Addr(addr) => proxy.has_profiles(addr.ip()),
            Place::Name(_) => true,
        };
        let profile =
            if has_profiles { Some(proxy.discovery.profiles.watch(&place).map_err(full)?) } else { None };
        let policy = proxy.discovery.policies.watch(&place).map_err(full)?;
        let target = Arc::new(Target {
            place: place.clone(),
            plan: ArcSwapOption::empty(),
            planned: Notify::new(),
            speculation_denied: AtomicBool::new(false),
            used: AtomicBool::new(true),
            following: OnceLock::new(),
        });
        let following = follow::follow(Arc::downgrade(&target), worker.clone(), profile, policy);
        // Never set before: the target is new.
        let _ = target.following.set(AbortOnDrop(proxy.tasks.spawn("target", following)));
        targets.insert(place, target.clone());
        Ok(target)
    }

    /// Forgets what nobody uses. A target survives one call, so that the next connection finds it warm.
    pub fn sweep(&self, unused: &mut Vec<Place>) {
        let mut targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        let mut still = Vec::new();
        targets.retain(|place, target| {
            // Short connections use it too: what was learned of endpoints is not lost between them.
            if target.used.swap(false, Ordering::Relaxed) || Arc::strong_count(target) > 1 {
                return true;
            }
            let keep = !unused.contains(place);
            if keep {
                still.push(place.clone());
            }
            keep
        });
        *unused = still;
        drop(targets);
        self.balancers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|_, balancer| balancer.strong_count() > 0);
    }

    /// All targets, for `/state.json`.
    pub fn all(&self) -> Vec<Arc<Target>> {
        self.targets.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    pub(super) fn balancer(
        &self,
        key: Arc<str>,
        make: impl FnOnce() -> Option<Arc<Balancer>>,
    ) -> Option<Arc<Balancer>> {
        let mut balancers = self.balancers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(balancer) = balancers.get(&key).and_then(Weak::upgrade) {
            return Some(balancer);
        }
        let balancer = make()?;
        balancers.insert(key, Arc::downgrade(&balancer));
        Some(balancer)
    }
}

/// `profile` has routes or a traffic split; `port` is its Service's.
pub(super) fn compile(
    worker: &Arc<Worker>,
    policy: &OutboundPolicy,
    profile: Option<&Arc<Profile>>,
    port: u16,
) -> Plan {
    let by_profile = profile.and_then(|profile| ProfilePlan::new(worker, profile, policy, port));
    // A traffic split is one of bytes too.
    let overridden = by_profile.as_ref().filter(|_| profile.is_some_and(|one| !one.overrides.is_empty()));
    let balancing = &policy.balancing;
    let splits = |distribution: &Arc<Distribution>| match overridden {
        Some(plan) => plan.bytes.clone(),
        None => split(worker, distribution, Wanted { accrual: None, balancing }, &|_| None, &|| None),
    };
    let compiled = |kind, routes: &[OutboundRoute], accrual: &Option<Arc<Accrual>>| {
        let wanted = Wanted { accrual: accrual.as_deref(), balancing };
        Routes::compile(worker, kind, &policy.parent, routes, wanted)
    };
    let http1 = |routes: &[OutboundRoute]| compiled(Kind::Http, routes, &policy.accrual.http1);
    let http2 = |kind, routes: &[OutboundRoute]| compiled(kind, routes, &policy.accrual.http2);
    let protocol = match &policy.protocol {
        OutboundProtocol::Detect { http1: first, http2: second, opaque } => PlanProtocol::Detect {
            http1: http1(first),
            http2: http2(Kind::Http, second),
            opaque: splits(opaque),
        },
        OutboundProtocol::Http1(routes) => PlanProtocol::Http1(http1(routes)),
        OutboundProtocol::Http2(routes) => PlanProtocol::Http2(http2(Kind::Http, routes)),
        OutboundProtocol::Grpc(routes) => PlanProtocol::Http2(http2(Kind::Grpc, routes)),
        OutboundProtocol::Opaque(opaque) => PlanProtocol::Opaque(splits(opaque)),
        OutboundProtocol::Tls(tls) => PlanProtocol::Tls(
            tls.iter()
                .map(|route| TlsPlan { snis: route.snis.clone(), split: splits(&route.distribution) })
                .collect(),
        ),
        OutboundProtocol::Invalid(reason) => PlanProtocol::Invalid(reason.clone()),
    };
    Plan { parent: policy.parent.clone(), protocol, profile: by_profile, pod: None }
}

pub fn split(
    worker: &Arc<Worker>,
    distribution: &Arc<Distribution>,
    wanted: Wanted<'_>,
    metrics: &dyn Fn(&ResourceRef) -> Option<Arc<BackendMetrics>>,
    mirrored: &dyn Fn() -> Option<MirrorMetrics>,
) -> Arc<Split> {
    let live = |one: &Backend| LiveBackend {
        balancer: backend::balancer(worker, &one.target, wanted),
        meta: one.meta.clone(),
        metrics: metrics(&one.meta),
        filters: Filters::compile(&one.filters),
        mirrors: Mirrors::compile(worker, &one.filters, wanted.balancing, mirrored, metrics),
    };
    let backends = match &**distribution {
        Distribution::Empty | Distribution::Forbidden(_) => Vec::new(),
        Distribution::FirstAvailable(backends) => backends.iter().map(live).collect(),
        Distribution::RandomAvailable(backends) => {
            backends.iter().map(|(backend, _)| live(backend)).collect()
        }
    };
    Arc::new(Split { distribution: distribution.clone(), backends })
}

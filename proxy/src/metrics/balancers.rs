//! `outbound_{http,tcp,tls}_balancer_*`: the endpoints of every balancer, looked at when they are asked for. Contract
//! 5.4; a balancer has no queue here, so the families of queues do not exist.

use super::labels::{self, Labels, label};
use crate::{
    Worker,
    discover::target::{PlanProtocol, Split},
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, gauge::ConstGauge},
};
use remora_core::{policy::ResourceRef, time::Time};
use remora_runtime::{clock, metrics::OVERFLOW};
use std::{collections::BTreeMap, fmt, sync::Arc};

/// The endpoints of one backend of one parent.
#[derive(Clone, Copy, Default)]
struct Endpoints {
    ready: i64,
    pending: i64,
}

/// What each kind of balancer has, by labels.
type Found = BTreeMap<&'static str, BTreeMap<Labels, Endpoints>>;

/// Reads the balancers of all workers.
pub struct Balancers {
    workers: Vec<Arc<Worker>>,
    budget: usize,
}

impl Balancers {
    /// At most `budget` backends per family; the others are added up in one series.
    pub fn new(workers: Vec<Arc<Worker>>, budget: usize) -> Self {
        Self { workers, budget }
    }

    fn find(&self) -> Found {
        let now = clock::now();
        let mut found = Found::new();
        for worker in &self.workers {
            for plan in worker.targets.all().iter().filter_map(|target| target.known()) {
                let mut add = |kind, split: &Split| self.add(&mut found, (kind, &plan.parent), split, now);
                match &plan.protocol {
                    PlanProtocol::Detect { http1, http2, opaque } => {
                        for rule in
                            [http1, http2].into_iter().flat_map(|routes| routes.rules.iter().flatten())
                        {
                            add("http", &rule.split);
                        }
                        add("tcp", opaque);
                    }
                    PlanProtocol::Http1(routes) | PlanProtocol::Http2(routes) => {
                        routes.rules.iter().flatten().for_each(|rule| add("http", &rule.split));
                    }
                    PlanProtocol::Opaque(split) => add("tcp", split),
                    PlanProtocol::Tls(plans) => plans.iter().for_each(|plan| add("tls", &plan.split)),
                    PlanProtocol::Invalid(_) => {}
                }
            }
        }
        found
    }

    /// Workers see the same endpoints, each with its own connections: what one of them cannot reach is pending.
    fn add(&self, found: &mut Found, (kind, parent): (&'static str, &ResourceRef), split: &Split, now: Time) {
        let family = found.entry(kind).or_default();
        for backend in split.backends().iter().filter(|backend| backend.balancer.is_discovered()) {
            let endpoints = backend.balancer.endpoints();
            let ready = endpoints.iter().filter(|one| one.standing(now).0.usable).count();
            let mut labels = Labels::new();
            labels::parent(&mut labels, parent);
            labels::backend(&mut labels, &backend.meta);
            if family.len() >= self.budget && !family.contains_key(&labels) {
                labels = vec![label(OVERFLOW.0, OVERFLOW.1)];
            }
            let seen = family.entry(labels).or_default();
            let (ready, pending) = (count(ready), count(endpoints.len() - ready));
            if ready + pending > seen.ready + seen.pending || pending > seen.pending {
                *seen = Endpoints { ready, pending };
            }
        }
    }
}

fn count(endpoints: usize) -> i64 {
    i64::try_from(endpoints).unwrap_or(i64::MAX)
}

impl Collector for Balancers {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for (kind, backends) in self.find() {
            if backends.is_empty() {
                continue;
            }
            let name = format!("outbound_{kind}_balancer_endpoints");
            let help = "Endpoints of a balancer, by whether they can be reached";
            let mut family = encoder.encode_descriptor(&name, help, None, MetricType::Gauge)?;
            for (labels, endpoints) in &backends {
                for (state, value) in [("ready", endpoints.ready), ("pending", endpoints.pending)] {
                    let mut labels = labels.clone();
                    labels.insert(0, label("endpoint_state", state));
                    ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
                }
            }
            let name = format!("outbound_{kind}_balancer_p2c_endpoints");
            let help = "Endpoints that a balancer chooses among";
            let mut family = encoder.encode_descriptor(&name, help, None, MetricType::Gauge)?;
            for (labels, endpoints) in &backends {
                let all = ConstGauge::new(endpoints.ready + endpoints.pending);
                all.encode(family.encode_family(labels)?)?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Balancers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Balancers")
    }
}

//! A proxy and its worker for tests, and whom it may send to.

use crate::{
    Proxy, Worker,
    balance::{Balancer, Manner},
    config::Config,
    discover::{Cache, Discovery, Known, Place},
    metrics::Metrics,
    policy::Policies,
};
use remora_core::{
    balance::Balancing,
    endpoint::{Endpoint, EndpointTls},
    identity::Identity,
};
use remora_runtime::{
    env::Env,
    metrics::Registry,
    tasks::{Drain, Tasks},
    tls::Credentials,
};
use std::{future::pending, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    runtime::Handle,
    sync::{Semaphore, watch},
};

/// Longer than any test.
const LONG: Duration = Duration::from_hours(1);

/// Of a proxy without identity.
pub fn worker(change: impl FnOnce(&mut Config)) -> Arc<Worker> {
    Arc::new(Worker::new(Arc::new(proxy(change, watch::channel(None).1))))
}

/// As an environment describes it, with a control plane that never answers, and credentials of the test's own.
pub fn proxy(
    change: impl FnOnce(&mut Config),
    credentials: watch::Receiver<Option<Arc<Credentials>>>,
) -> Proxy {
    let env = [
        ("LINKERD2_PROXY_DESTINATION_SVC_ADDR", "localhost:1"),
        ("LINKERD2_PROXY_POLICY_SVC_ADDR", "localhost:1"),
        ("LINKERD2_PROXY_POLICY_WORKLOAD", "{}"),
        ("REMORA_PROXY_IDENTITY_DISABLED", "true"),
    ];
    let mut config = Config::from_env(Env::from_pairs(env)).unwrap();
    change(&mut config);
    let handle = Handle::current();
    let never = || Box::pin(pending());
    let policies = Policies::new(
        Cache::new(handle.clone(), LONG, 16, move |_: &u16, _| never()),
        &config.inbound,
        &config.discovery.cluster_networks,
        config.admin.listen.port(),
    );
    let semaphore = || Arc::new(Semaphore::new(16));
    Proxy {
        credentials,
        policies,
        discovery: Discovery {
            profiles: Cache::new(handle.clone(), LONG, 16, move |_: &Place, _| never()),
            policies: Cache::new(handle.clone(), LONG, 16, move |_: &Place, _| never()),
            names: Cache::new(handle.clone(), LONG, 16, move |_: &Arc<str>, _| never()),
            endpoints: Cache::new(handle, LONG, 16, move |_: &Arc<str>, _| never()),
        },
        metrics: Metrics::register(&Registry::new(LONG), 100, false),
        budgets: crate::profile::Budgets::default(),
        limiters: crate::limits::Limiters::default(),
        inbound_permits: semaphore(),
        outbound_permits: semaphore(),
        speculative_permits: semaphore(),
        spare: Arc::default(),
        access_log: None,
        tasks: Tasks::new(),
        drain: Drain::new(),
        config,
    }
}

/// A destination that discovery has named these endpoints of.
pub async fn balancer(worker: &Arc<Worker>, name: &str, endpoints: Vec<Endpoint>) -> Arc<Balancer> {
    let (count, endpoints) = (endpoints.len(), Arc::new(endpoints));
    let cache = Cache::new(Handle::current(), LONG, 1, move |(): &(), sender| {
        let endpoints = endpoints.clone();
        Box::pin(async move {
            sender.send_replace(Known::Is(endpoints));
            sender.closed().await;
        })
    });
    let ewma = (Duration::from_millis(30), Duration::from_secs(10));
    let manner = Manner { ewma, accrual: None, balancing: Balancing::default() };
    let balancer = Balancer::discovered(worker, name.into(), manner, cache.watch(&()).unwrap());
    while balancer.endpoints().len() < count {
        tokio::task::yield_now().await;
    }
    balancer
}

/// One that has a proxy, which takes a header; nobody is there.
pub fn meshed(addr: &str) -> Endpoint {
    let identity = Identity::parse("web.shop.serviceaccount.identity.linkerd.cluster.local").unwrap();
    let server_name = identity.as_str().into();
    let tls = Some(EndpointTls { identity, server_name });
    Endpoint { tls, opaque_transport: Some(4143), ..bare(addr) }
}

/// One that has none.
pub fn bare(addr: &str) -> Endpoint {
    Endpoint::bare(addr.parse::<SocketAddr>().unwrap())
}

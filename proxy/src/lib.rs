//! The data plane: one process per pod, two scripts per connection.
//!
//! [`inbound`] and [`outbound`] are the lives of connections, [`http::request`] the life of a request; everything
//! else is a step of theirs. [`Proxy`] is what every connection may read, [`Worker`] what belongs to one thread.

pub mod admin;
pub mod balance;
pub mod breaker;
pub mod config;
pub mod connect;
pub mod discover;
pub mod endpoint;
pub mod fault;
pub mod http;
pub mod http1;
pub mod http2;
pub mod inbound;
pub mod limits;
pub mod listen;
pub mod metrics;
pub mod mux;
pub mod outbound;
pub mod plaintext;
pub mod policy;
pub mod process;
pub mod profile;
pub mod run;
pub mod scratch;
pub mod sniff;
pub mod spare;
#[cfg(test)]
pub mod stage;
pub mod state;
pub mod stream;
pub mod tcp;
pub mod tls;

use config::Config;
use discover::{Discovery, target::Targets};
use fault::Fault;
use metrics::Metrics;
use policy::Policies;
use remora_core::room::Pressure;
use remora_runtime::{
    room,
    tasks::{Drain, Tasks},
    tls::Credentials,
};
use spare::Spare;
use std::{net::IpAddr, sync::Arc};
use tokio::sync::{Semaphore, watch};

/// Everything that a connection may read. Built once; what changes, changes inside a `watch`.
pub struct Proxy {
    pub config: Config,
    pub credentials: watch::Receiver<Option<Arc<Credentials>>>,
    pub policies: Policies,
    pub discovery: Discovery,
    pub metrics: Metrics,
    /// What retries by ServiceProfiles may cost.
    pub budgets: profile::Budgets,
    /// How much is under way to Services that limit it.
    pub limiters: limits::Limiters,
    /// Connections served at once, per direction.
    pub inbound_permits: Arc<Semaphore>,
    pub outbound_permits: Arc<Semaphore>,
    /// Speculative dials open at once.
    pub speculative_permits: Arc<Semaphore>,
    /// Descriptors for the admin port.
    pub spare: Arc<Spare>,
    /// Where inbound requests are logged, if they are.
    pub access_log: Option<http::access_log::Writer>,
    pub tasks: Tasks,
    pub drain: Drain,
}

/// What belongs to one worker thread: connections never migrate, so neither do pools and balancers.
pub struct Worker {
    pub proxy: Arc<Proxy>,
    pub targets: Targets,
    pub apps: inbound::Apps,
    pub neighbours: mux::neighbour::Neighbours,
}

impl Proxy {
    /// Whether there is memory for something new. Pressure ends what is under way only when it is critical.
    pub fn has_room(&self) -> Result<(), Fault> {
        let Some(memory) = room::memory().filter(|memory| memory.pressure() >= Pressure::High) else {
            return Ok(());
        };
        memory.refuse();
        Err(Fault::Memory { used: memory.used() >> 20, limit: memory.limit() >> 20 })
    }

    /// Whether an address is inside the cluster's networks, where the control plane must know it.
    pub fn in_cluster(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        self.config.discovery.cluster_networks.iter().any(|net| net.contains(&ip))
    }

    /// Whether profiles are looked up for an address.
    pub fn has_profiles(&self, ip: IpAddr) -> bool {
        self.config.discovery.profile_networks.iter().any(|net| net.contains(&ip))
    }

    /// Whether an address is one of this pod's.
    pub fn is_own_address(&self, ip: IpAddr) -> bool {
        ip.is_loopback() || self.config.inbound.ips.contains(&ip)
    }

    /// Whether a port is the proxy's own: nobody may be forwarded there.
    pub fn is_own_port(&self, port: u16) -> bool {
        let config = &self.config;
        port == config.inbound.listen.port()
            || port == config.admin.listen.port()
            || config.outbound.listen.iter().any(|listen| listen.port() == port)
    }

    /// The name that mesh TLS clients send as SNI; `None` without identity.
    pub fn server_name(&self) -> Option<&str> {
        self.config.identity.as_ref().map(|identity| identity.local_name.as_str())
    }
}

impl Worker {
    pub fn new(proxy: Arc<Proxy>) -> Self {
        Self {
            proxy,
            targets: Targets::default(),
            apps: inbound::Apps::default(),
            neighbours: mux::neighbour::Neighbours::default(),
        }
    }
}

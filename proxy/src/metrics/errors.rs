//! Why connections and requests failed, by Linkerd's names: `{inbound,outbound}_{tcp,http}_errors_total`.

use super::{
    few::Few,
    labels::{self, Labels, label},
};
use crate::fault::Fault;
use remora_core::policy::ServerPolicy;
use remora_runtime::metrics::{Budgeted, Counter, Registry};
use std::net::SocketAddr;

/// The four families.
pub struct Errors {
    inbound_tcp: Budgeted<Labels, Counter>,
    inbound_http: Budgeted<Labels, Counter>,
    outbound_tcp: Faults,
    outbound_http: Faults,
}

impl Errors {
    pub fn register(registry: &Registry, budget: usize) -> Self {
        let family = |name: &str, help: &str| registry.counters(name, help, budget);
        let outbound = |name: &str, help: &str| Faults { family: family(name, help), known: Few::default() };
        Self {
            inbound_tcp: family("inbound_tcp_errors_total", "Inbound connections that failed"),
            inbound_http: family("inbound_http_errors_total", "Inbound requests that failed"),
            outbound_tcp: outbound("outbound_tcp_errors_total", "Outbound connections that failed"),
            outbound_http: outbound("outbound_http_errors_total", "Outbound requests that failed"),
        }
    }

    /// Counts a failed connection to `target`.
    pub fn inbound_tcp(&self, fault: &Fault, target: SocketAddr, server: &ServerPolicy) {
        self.inbound_tcp.get(with_error(fault.label(), of(target, server))).inc();
    }

    /// Counts a failed request to `target`.
    pub fn inbound_http(&self, fault: &Fault, target: SocketAddr, server: &ServerPolicy) {
        self.inbound_http.get(with_error(fault.label(), of(target, server))).inc();
    }

    /// The counters of failed requests, for those who keep handles. Labels beside the fault: `target_addr`, `srv_*`.
    pub fn of_requests(&self) -> Faults {
        Faults { family: self.inbound_http.clone(), known: Few::default() }
    }

    pub fn outbound_tcp(&self, fault: &Fault) {
        self.outbound_tcp.count(fault, Labels::new);
    }

    pub fn outbound_http(&self, fault: &Fault) {
        self.outbound_http.count(fault, Labels::new);
    }
}

/// One label set's counters, by fault.
pub struct Faults {
    family: Budgeted<Labels, Counter>,
    known: Few<&'static str, Counter>,
}

impl Faults {
    /// Counts; `labels` are always the same.
    pub fn count(&self, fault: &Fault, labels: impl FnOnce() -> Labels) {
        let error = fault.label();
        let resolve = || self.family.get(with_error(error, labels()));
        self.known.count(error, resolve, Counter::inc);
    }
}

fn of(target: SocketAddr, server: &ServerPolicy) -> Labels {
    let mut labels = vec![label("target_addr", target)];
    labels::server(&mut labels, server, target.port());
    labels
}

fn with_error(error: &'static str, mut rest: Labels) -> Labels {
    rest.insert(0, label("error", error));
    rest
}

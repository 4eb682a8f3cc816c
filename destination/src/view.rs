//! Pure. What a proxy should see: (index, request) → answer, and the keys that the answer depends on.
//!
//! Answers are decisions in our own words; how they are written on the wire is in `wire`.

mod admit;
mod attach;
mod balancing;
mod carried;
mod cautions;
mod endpoints;
mod inbound;
mod membership;
mod outbound;
mod policies;
mod profile;
mod rules;
mod servers;
mod status;
mod target;

pub use admit::{Admission, Authority};
pub use balancing::Balancers;
pub use carried::{Family, can_match};
pub use cautions::{ServiceReport, service_reports};
pub use endpoints::{Endpoint, Endpoints, endpoints};
pub use inbound::{HeldRateLimit, Inbound, ServerRef, Workload, inbound};
pub use membership::Membership;
pub use outbound::{Outbound, PortProtocol, ServicePolicy, outbound};
pub use policies::{NO_REF, PolicyReport, policy_reports};
pub use profile::{Chosen, Profile, ProfileReport, profile, profile_reports};
pub use rules::{HeldBackend, HeldRoute, HeldRule, Mirrors, Resilience};
pub use servers::HeldInbound;
pub use status::{Condition, DeadReference, ParentReport, RouteReport, dead_references, route_reports};
pub use target::Target;

use crate::{
    index::{Index, Key, Namespace, Pod, RateLimit, Route, RouteId, Server, Service},
    ports::PortSet,
    resources::{Name, PolicyKind, RouteKind, Spec, policy::Clients, policy::ServerProtocol},
};
use ipnet::IpNet;
#[cfg(planted)]
use remora_core::planted;
use remora_core::{matching::NetworkMatch, policy::DefaultPolicy};
use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

/// What the answers depend on besides the cluster's objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The domain of the cluster's DNS, without a trailing dot: `cluster.local`.
    pub cluster_domain: String,
    /// The last part of identities: `cluster.local`.
    pub trust_domain: String,
    /// The namespace of this control plane; only pods with its proxies get identities.
    pub control_namespace: String,
    /// Where pods and Services are. What is outside is forwarded as it is.
    pub cluster_networks: Vec<IpNet>,
    /// From where probes may come without being authorised.
    pub probe_networks: Vec<IpNet>,
    /// The policy of ports that nothing else speaks of.
    pub default_inbound_policy: DefaultPolicy,
    /// The opaque ports of whatever has no annotation.
    pub default_opaque_ports: PortSet,
    /// How meshed endpoints are reached.
    pub transport_mode: TransportMode,
    /// May clients upgrade HTTP/1 to HTTP/2 towards meshed endpoints (contract 1.9)?
    pub h2_upgrade: bool,
    /// May clients choose timeouts and retries by `l5d-*` request headers where a route holds (contract 4.2)?
    pub heed_request_headers: bool,
}

/// How meshed endpoints are reached. Contract 1.8.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum TransportMode {
    /// On their proxy's own port, with a header that names the real one.
    TransportHeader,
    /// On the real port, recognised by SNI.
    Transparent,
}

/// Who asks, as far as it may be believed: `context_token` of contract 3.1. All of it may be missing.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
pub struct Context {
    /// Its namespace.
    #[serde(rename = "ns")]
    pub namespace: Option<String>,
    /// Its node.
    #[serde(rename = "nodeName")]
    pub node: Option<String>,
    /// Its pod.
    pub pod: Option<String>,
    /// Does it choose among zones by itself? Then it is told of all endpoints, and which of them are for its zone.
    #[serde(skip)]
    pub chooses_zones: bool,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No such question: the same request never has an answer. `InvalidArgument`, which is terminal for proxies.
    #[error("{0}")]
    Invalid(String),
    /// Not now: proxies go on without, and ask again. `NotFound`.
    #[error("{0}")]
    NotFound(String),
}

/// Reads the index for one answer and remembers what the answer depends on.
#[derive(Debug)]
pub struct Lens<'a> {
    index: &'a Index,
    keys: BTreeSet<Key>,
}

impl<'a> Lens<'a> {
    /// A lens on an index that has seen nothing yet.
    pub fn new(index: &'a Index) -> Self {
        Self { index, keys: BTreeSet::new() }
    }

    /// Every key that was looked at, found or not.
    pub fn into_keys(self) -> BTreeSet<Key> {
        self.keys
    }

    fn service(&mut self, name: &Name) -> Option<&'a Service> {
        self.keys.insert(Key::Service(name.clone()));
        self.index.service(name)
    }

    /// A Service's own object: nothing that is behind it matters.
    fn declared(&mut self, name: &Name) -> Option<&'a Service> {
        self.keys.insert(Key::Declared(name.clone()));
        self.index.service(name)
    }

    /// The object of the Service that has this address.
    fn declared_at(&mut self, ip: IpAddr) -> Option<(&'a Name, &'a Service)> {
        self.keys.insert(Key::Ip(ip));
        let found = self.index.service_at(ip);
        self.keys.extend(found.map(|(name, _)| Key::Declared(name.clone())));
        found
    }

    fn routes_of(&mut self, service: &Name) -> impl Iterator<Item = (&'a RouteId, &'a Arc<Route>)> + use<'a> {
        self.keys.insert(Key::Routes(service.clone()));
        let index = self.index;
        // Collected, because the iterator would borrow the name.
        index.routes_of(service).collect::<Vec<_>>().into_iter()
    }

    /// May a route of this kind and namespace refer to this Service? Always within a namespace.
    fn may_refer(&mut self, kind: RouteKind, namespace: &str, to: &Name) -> bool {
        if to.namespace == namespace {
            return true;
        }
        #[cfg(planted)]
        if planted::makes(planted::Mistake::ForeignBackendsNeedNoGrant) {
            return true;
        }
        self.keys.insert(Key::Grants(to.namespace.clone()));
        self.index.grants(&to.namespace).any(|grant| grant.allows(kind, namespace, &to.name))
    }

    fn service_at(&mut self, ip: IpAddr) -> Option<(&'a Name, &'a Service)> {
        self.keys.insert(Key::Ip(ip));
        let found = self.index.service_at(ip);
        self.keys.extend(found.map(|(name, _)| Key::Service(name.clone())));
        found
    }

    fn pod(&mut self, name: &Name) -> Option<&'a Pod> {
        self.keys.insert(Key::Pod(name.clone()));
        self.index.pod(name)
    }

    fn pod_at(&mut self, ip: IpAddr) -> Option<(&'a Name, &'a Pod)> {
        self.keys.insert(Key::Ip(ip));
        let found = self.index.pod_at(ip);
        self.keys.extend(found.map(|(name, _)| Key::Pod(name.clone())));
        found
    }

    /// The Services that select a pod.
    fn selecting(&mut self, name: &Name, pod: &'a Pod) -> Vec<(&'a Name, &'a Service)> {
        self.keys.insert(Key::Services(name.namespace.clone()));
        self.index.selecting(&name.namespace, pod).collect()
    }

    fn namespace(&mut self, name: &str) -> Option<&'a Namespace> {
        self.keys.insert(Key::Namespace(name.to_owned()));
        self.index.namespace(name)
    }

    fn service_profile(&mut self, name: &Name) -> Option<&'a Arc<Spec>> {
        self.keys.insert(Key::Profile(name.clone()));
        self.index.profile(name)
    }

    fn zone_of_client(&mut self, node: &str) -> Option<&'a str> {
        self.keys.insert(Key::Node(node.to_owned()));
        self.index.zone(node)
    }

    /// The Server of a port of a pod. Whoever asks depends on the pod already: a Server that changes is a change of the
    /// pods that it is about.
    fn server_of(&self, name: &Name, pod: &Pod, port: u16) -> Option<(&'a Name, &'a Server)> {
        self.index.server_of(name, pod, port).map(|(name, server)| (name, server.as_ref()))
    }

    /// Remembers that what is said of a Server was looked at.
    fn said_of(&mut self, server: &Name) {
        self.keys.insert(Key::Server(server.clone()));
    }

    fn routes_of_server(
        &mut self,
        server: &Name,
    ) -> impl Iterator<Item = (&'a RouteId, &'a Arc<Route>)> + use<'a> {
        self.said_of(server);
        let index = self.index;
        index.routes_of_server(server).collect::<Vec<_>>().into_iter()
    }

    fn rate_limits_of(&mut self, server: &Name) -> Vec<(&'a Name, &'a Arc<RateLimit>)> {
        self.said_of(server);
        self.index.rate_limits_of(server)
    }

    fn mesh_tls(&mut self, name: &Name) -> Option<&'a Arc<Clients>> {
        self.keys.insert(Key::Authentication(PolicyKind::MeshTls, name.clone()));
        self.index.mesh_tls(name)
    }

    fn networks(&mut self, name: &Name) -> Option<&'a Arc<Vec<NetworkMatch>>> {
        self.keys.insert(Key::Authentication(PolicyKind::Network, name.clone()));
        self.index.networks(name)
    }

    /// Is this port of the pod opaque? What its Server says, else the pod's annotation, else its namespace's, else the default list. Contract
    /// 3.1, rule 4.
    fn pod_port_is_opaque(&mut self, settings: &Settings, name: &Name, pod: &Pod, port: u16) -> bool {
        if let Some((_, server)) = self.server_of(name, pod, port) {
            return server.spec.protocol == ServerProtocol::Opaque;
        }
        let namespace = self.namespace(&name.namespace);
        let inherited = namespace.and_then(|namespace| namespace.opaque_ports.as_ref());
        pod.opaque_ports.as_ref().or(inherited).unwrap_or(&settings.default_opaque_ports).contains(port)
    }

    /// Is this port of the Service opaque? The Service's annotation, else its namespace's, else the default list.
    fn service_port_is_opaque(
        &mut self,
        settings: &Settings,
        name: &Name,
        service: &Service,
        port: u16,
    ) -> bool {
        let namespace = self.namespace(&name.namespace);
        let inherited = namespace.and_then(|namespace| namespace.opaque_ports.as_ref());
        service.opaque_ports.as_ref().or(inherited).unwrap_or(&settings.default_opaque_ports).contains(port)
    }
}

impl Settings {
    /// The DNS name of a Service.
    pub fn service_name(&self, name: &Name) -> String {
        format!("{}.{}.svc.{}", name.name, name.namespace, self.cluster_domain)
    }

    /// Is the address one of the cluster's? An IPv4-mapped IPv6 address counts as IPv4.
    pub fn in_cluster(&self, addr: SocketAddr) -> bool {
        let ip = addr.ip().to_canonical();
        self.cluster_networks.iter().any(|net| net.contains(&ip))
    }
}

impl Context {
    /// Reads a context token. What cannot be read counts as nothing: older proxies send `ns:<namespace>` or nothing.
    pub fn parse(token: &str) -> Self {
        serde_json::from_str(token).unwrap_or_else(|_| Self {
            namespace: token.strip_prefix("ns:").map(str::to_owned),
            ..Self::default()
        })
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
pub(crate) use tests::settings as settings_for_tests;

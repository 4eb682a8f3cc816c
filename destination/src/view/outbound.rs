//! Pure. How a client's proxy should treat traffic to a target. Contract 3.3.

use super::{
    Balancers, Endpoint, HeldRoute, Lens, Membership, Refusal, Resilience, Settings, Target,
    attach::{Attached, attached},
    balancing::balancers,
    membership::memberships,
    profile::{chosen, pod_at},
    rules::{held, resilience},
};
use crate::{
    index::{Accrual, Addressing, Service, ServicePort, Traffic},
    resources::{Name, routes::Rule},
};
use std::net::SocketAddr;

/// How to treat traffic to a target.
#[derive(Clone, Debug, PartialEq)]
pub enum Outbound {
    /// To a port of a Service: by its routes, or else balance over its endpoints.
    Service(Box<ServicePolicy>),
    /// To a port that the Service does not define: refuse.
    UndefinedPort {
        /// The Service.
        name: Name,
        /// The port.
        port: u16,
    },
    /// To a pod itself: by what is said of the first of these Services, of which there is at least one, unless a
    /// request or connection names another of them.
    Pod(Vec<Membership>),
    /// To a pod that belongs to no Service by this port: forward. It is said, because proxies that were told of Services
    /// keep those when they are told that nothing is known.
    Endpoint(SocketAddr, Endpoint),
    /// To somewhere outside the cluster: forward.
    External(SocketAddr),
}

/// How to treat traffic to a port of a Service.
#[derive(Clone, Debug, PartialEq)]
pub struct ServicePolicy {
    /// The Service.
    pub name: Name,
    /// Its port.
    pub port: u16,
    /// What is spoken there.
    pub protocol: PortProtocol,
    /// The routes that hold, all of one family, in order of precedence. Without any, everything goes to the Service.
    pub routes: Vec<HeldRoute>,
    /// Timeouts and retries where no route says anything.
    pub resilience: Resilience,
    /// When an endpoint counts as failing.
    pub accrual: Option<Accrual>,
    /// How the Services want to be balanced that requests may go to.
    pub balancers: Balancers,
}

/// What is spoken on a Service's port, by declaration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortProtocol {
    /// Undeclared: look.
    Detect,
    /// HTTP/1.
    Http1,
    /// HTTP/2.
    Http2,
    /// Bytes.
    Opaque,
}

/// How a client in a namespace should treat traffic to a target.
pub fn outbound(
    lens: &mut Lens<'_>,
    settings: &Settings,
    target: &Target,
    client: Option<&str>,
) -> Result<Outbound, Refusal> {
    match target {
        Target::Addr(addr) => match lens.declared_at(addr.ip()) {
            Some((name, service)) => Ok(of_service(lens, settings, (name, service), addr.port(), client)),
            None if settings.in_cluster(*addr) => pod(lens, settings, *addr, client),
            None => Ok(Outbound::External(*addr)),
        },
        Target::Service { name, port, .. } => {
            let service = lens
                .declared(name)
                .ok_or_else(|| Refusal::NotFound(format!("there is no Service {name}")))?;
            if service.addressing == Addressing::ExternalName {
                return Err(Refusal::NotFound(format!(
                    "Service {name} is an ExternalName: it has no policy here"
                )));
            }
            Ok(of_service(lens, settings, (name, service), *port, client))
        }
    }
}

/// To a pod's own address.
fn pod(
    lens: &mut Lens<'_>,
    settings: &Settings,
    addr: SocketAddr,
    client: Option<&str>,
) -> Result<Outbound, Refusal> {
    let services = memberships(lens, settings, addr, client);
    if !services.is_empty() {
        return Ok(Outbound::Pod(services));
    }
    let pod = pod_at(lens, settings, addr)?.map(|(endpoint, _)| Outbound::Endpoint(addr, endpoint));
    let nobody = || format!("{} is in the cluster's networks, but no Service's or pod's address", addr.ip());
    pod.ok_or_else(|| Refusal::NotFound(nobody()))
}

fn of_service(
    lens: &mut Lens<'_>,
    settings: &Settings,
    (name, service): (&Name, &Service),
    port: u16,
    client: Option<&str>,
) -> Outbound {
    match service.port(port) {
        Some(defined) => {
            Outbound::Service(Box::new(service_policy(lens, settings, (name, service), defined, client)))
        }
        None => Outbound::UndefinedPort { name: name.clone(), port },
    }
}

/// How to treat traffic to a port that a Service defines.
pub(super) fn service_policy(
    lens: &mut Lens<'_>,
    settings: &Settings,
    (name, service): (&Name, &Service),
    defined: &ServicePort,
    client: Option<&str>,
) -> ServicePolicy {
    let protocol = protocol(lens, settings, (name, service), defined);
    let attached = match service.addressing {
        Addressing::ClusterIps(_) => attached(lens, name, defined, protocol, client),
        // Its clients dial pods, which have no routes. Linkerd does not attach routes to such a Service either.
        Addressing::Headless | Addressing::ExternalName => Attached::default(),
    };
    let held = |entry| held(lens, entry, &service.traffic);
    let routes: Vec<_> = attached.holds.into_iter().map(held).collect();
    let profile = chosen(lens, settings, name, client);
    let spec = profile.as_ref().map(|chosen| &*chosen.spec);
    ServicePolicy {
        name: name.clone(),
        port: defined.port,
        protocol,
        balancers: balancers(lens, settings, (name, defined.port), &routes, spec),
        routes,
        resilience: resilience(&Traffic::default(), &Rule::default(), &service.traffic),
        accrual: service.accrual,
    }
}

/// What is spoken on a port.
pub(super) fn protocol(
    lens: &mut Lens<'_>,
    settings: &Settings,
    (name, service): (&Name, &Service),
    port: &ServicePort,
) -> PortProtocol {
    // Opaqueness comes first: the server's side reads the same lists, and what the client calls HTTP would get 404
    // from a port that the server calls opaque (contract 12, point 5).
    if lens.service_port_is_opaque(settings, name, service, port.port) {
        return PortProtocol::Opaque;
    }
    match port.app_protocol.as_deref() {
        None => PortProtocol::Detect,
        Some("http") => PortProtocol::Http1,
        Some("kubernetes.io/h2c") => PortProtocol::Http2,
        // `linkerd.io/tcp`, `linkerd.io/opaque`, and every name that Linkerd does not know.
        Some(_) => PortProtocol::Opaque,
    }
}

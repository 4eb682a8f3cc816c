//! Pure. The Services that a pod belongs to by one of its ports: by whose routes, profile and metrics a connection to the
//! pod's own address goes, which keeps the pod unless a route moves it. Design, "Pod IPs".

use super::{
    Chosen, Endpoint, Lens, PortProtocol, ServicePolicy, Settings, attach::MAX_BYTES, endpoints::of_pod,
    endpoints::target, outbound::service_policy, profile::chosen,
};
use crate::{
    index::{Addressing, Service, ServicePort},
    resources::Name,
};
use std::net::SocketAddr;

/// Most Services that a port of a pod belongs to. All of them are said in one message.
const MAX_SERVICES: usize = 16;

/// A Service that a pod belongs to.
#[derive(Clone, Debug, PartialEq)]
pub struct Membership {
    /// How the Service's traffic is to be treated.
    pub policy: ServicePolicy,
    /// The pod, in the Service's place.
    pub pod: (SocketAddr, Endpoint),
    /// The Service's ServiceProfile, if it has one.
    pub profile: Option<Chosen>,
}

/// The Services of the pod's own namespace whose selector selects it and one of whose ports leads to this one of its
/// ports: the oldest first, then by name. Nobody else's Service can take a pod's traffic.
pub(super) fn memberships(
    lens: &mut Lens<'_>,
    settings: &Settings,
    addr: SocketAddr,
    client: Option<&str>,
) -> Vec<Membership> {
    let Some((pod_name, pod)) = lens.pod_at(addr.ip()) else { return Vec::new() };
    // How to speak to it is not known: what is said of its address says so.
    let Some(endpoint) = of_pod(lens, settings, (pod_name, pod), addr.port()) else { return Vec::new() };
    let leads_here = |port: &&ServicePort| target(port, Some(pod)) == Some(addr.port());
    let mut services: Vec<(&Name, &Service)> = lens.selecting(pod_name, pod);
    services.retain(|(_, service)| service.addressing != Addressing::ExternalName);
    // One without a time is younger than all.
    services.sort_by_key(|(name, service)| (service.created.is_none(), service.created, *name));
    let ports = services.into_iter().flat_map(|(name, service)| {
        service.ports.iter().filter(leads_here).map(move |port| (name, service, port))
    });
    let ports: Vec<_> = ports.take(MAX_SERVICES).collect();
    let mut left = MAX_BYTES;
    let mut found = Vec::new();
    for (name, service, port) in ports {
        let mut policy = service_policy(lens, settings, (name, service), port, client);
        let size: usize = policy.routes.iter().map(|route| route.spec.size).sum();
        // The first one always fits.
        let Some(rest) = left.checked_sub(size) else { continue };
        left = rest;
        let profile = chosen(lens, settings, name, client);
        if profile.as_ref().is_some_and(|chosen| chosen.spec.opaque_ports.contains(port.port)) {
            policy.protocol = PortProtocol::Opaque;
        }
        let mut pod = endpoint.clone();
        for (label, value) in [("namespace", &name.namespace), ("service", &name.name)] {
            pod.labels.insert(label.to_owned(), value.clone());
        }
        found.push(Membership { policy, pod: (addr, pod), profile });
    }
    found
}

//! Pure. The endpoints of a Service, and how each is to be spoken to. Contract 3.1.

use super::{Context, Lens, Refusal, Settings, TransportMode};
use crate::{
    index::{Addressing, Pod, Service, ServicePort, SliceEndpoint, TargetPort},
    resources::Name,
};
use remora_core::{
    endpoint::ProtocolHint,
    identity::{Identity, workload},
};
use remora_runtime::api::destination::{LOCAL, REMOTE, ZONE_LOCALITY};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

/// What a client should know of a Service's port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoints {
    /// Labels that all of them share.
    pub labels: BTreeMap<String, String>,
    /// The endpoints by address.
    pub set: BTreeMap<SocketAddr, Endpoint>,
}

/// One address, and how to speak to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoint {
    /// Labels of its own.
    pub labels: BTreeMap<String, String>,
    /// Its share of the traffic, in ten-thousandths of an ordinary endpoint's; `None` is that.
    pub weight: Option<u32>,
    /// Who it must prove to be. `None` is plaintext.
    pub identity: Option<Identity>,
    /// Does it run a proxy at all, of whichever control plane?
    pub meshed: bool,
    /// What that proxy makes of HTTP.
    pub hint: ProtocolHint,
    /// The port that takes a transport header; only with an identity.
    pub opaque_transport: Option<u16>,
}

/// An address that may become an endpoint.
struct Candidate<'a> {
    addr: SocketAddr,
    pod: Option<(&'a Name, &'a Pod)>,
    node: Option<&'a str>,
    zone: Option<&'a str>,
    for_zones: &'a [String],
    /// Is it meant for clients of this one's zone? `None`: there is no such thing.
    here: Option<bool>,
}

/// The endpoints of a Service's port, or of one host of it, as the client should see them. A port that the Service
/// does not define is taken for the pods' own, as Linkerd does.
pub fn endpoints(
    lens: &mut Lens<'_>,
    settings: &Settings,
    (name, host, port): (&Name, Option<&str>, u16),
    context: &Context,
) -> Result<Endpoints, Refusal> {
    let service =
        lens.service(name).ok_or_else(|| Refusal::NotFound(format!("there is no Service {name}")))?;
    if service.addressing == Addressing::ExternalName {
        return Err(Refusal::NotFound(format!(
            "Service {name} is an ExternalName: it has no endpoints here"
        )));
    }
    let mut candidates = candidates(lens, name, service, host, port);
    prefer_ipv6(&mut candidates);
    keep_local(lens, service, context, &mut candidates);
    let mut set = BTreeMap::new();
    for candidate in candidates {
        let zone = candidate.zone.map(str::to_owned);
        let mut found = match candidate.pod {
            Some((name, pod)) => of_pod(lens, settings, (name, pod), candidate.addr.port()),
            None => Some(Endpoint::default()),
        };
        if let (Some(found), Some(zone)) = (&mut found, zone) {
            found.labels.insert("zone".to_owned(), zone);
        }
        if let (Some(found), Some(here)) = (&mut found, candidate.here) {
            let locality = if here { LOCAL } else { REMOTE };
            found.labels.insert(ZONE_LOCALITY.to_owned(), locality.to_owned());
        }
        if let Some(found) = found {
            set.entry(candidate.addr).or_insert(found);
        }
    }
    let labels = [("namespace", &name.namespace), ("service", &name.name)];
    Ok(Endpoints { labels: labels.map(|(key, value)| (key.to_owned(), value.clone())).into(), set })
}

/// How to speak to a port of a pod. `None` if nobody should: the pod claims a proxy that cannot be found, and neither
/// plaintext nor mTLS is known to be right. Contract 3.1, rules 1 to 5.
pub(super) fn of_pod(
    lens: &mut Lens<'_>,
    settings: &Settings,
    (name, pod): (&Name, &Pod),
    port: u16,
) -> Option<Endpoint> {
    let mut endpoint =
        Endpoint { labels: labels(lens, name, pod), weight: pod.weight, ..Endpoint::default() };
    let Some(mesh) = pod.mesh.as_ref().filter(|_| !pod.skip_inbound_ports.contains(port)) else {
        return Some(endpoint);
    };
    let ports = mesh.ports?;
    let opaque = lens.pod_port_is_opaque(settings, name, pod, port);
    // The proxy serves these itself: no policy of opaqueness, no header, no upgrade applies.
    let own = ports.admin == Some(port) || ports.control == Some(port);
    endpoint.meshed = true;
    endpoint.hint = match (own, opaque, settings.h2_upgrade) {
        (false, true, _) => ProtocolHint::Opaque,
        (false, false, true) => ProtocolHint::Http2,
        _ => ProtocolHint::Unknown,
    };
    if mesh.control_namespace == settings.control_namespace {
        let identity = workload(
            &pod.service_account,
            &name.namespace,
            &settings.control_namespace,
            &settings.trust_domain,
        );
        endpoint.identity = Some(identity.ok()?);
        let header = opaque || settings.transport_mode == TransportMode::TransportHeader;
        endpoint.opaque_transport = (header && !own).then_some(ports.inbound);
    }
    Some(endpoint)
}

fn labels(lens: &Lens<'_>, name: &Name, pod: &Pod) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    labels.insert("pod".to_owned(), name.name.clone());
    labels.insert("serviceaccount".to_owned(), pod.service_account.clone());
    if let Some(owner) = lens.index.owner(name, pod) {
        labels.insert(owner.kind.to_ascii_lowercase(), owner.name);
    }
    if let Some(mesh) = &pod.mesh {
        labels.insert("control_plane_ns".to_owned(), mesh.control_namespace.clone());
    }
    if let Some(hash) = pod.labels.get("pod-template-hash") {
        labels.insert("pod_template_hash".to_owned(), hash.clone());
    }
    if let Some(zone) = pod.node.as_deref().and_then(|node| lens.index.zone(node)) {
        labels.insert("zone".to_owned(), zone.to_owned());
    }
    labels
}

fn candidates<'a>(
    lens: &Lens<'a>,
    name: &'a Name,
    service: &'a Service,
    host: Option<&str>,
    port: u16,
) -> Vec<Candidate<'a>> {
    let index = lens.index;
    let service_port = service.port(port);
    let mut slices = index.slices(name).peekable();
    if slices.peek().is_none() {
        return selected(lens, name, service, host, port);
    }
    let mut candidates = Vec::new();
    for slice in slices {
        for endpoint in &slice.endpoints {
            let open = service.publish_not_ready || endpoint.ready && !endpoint.terminating;
            let pod = pod_of(lens, name, endpoint);
            let wanted = host.is_none_or(|host| {
                endpoint.hostname.as_deref().or_else(|| pod.map(|(_, pod)| pod.hostname.as_str()))
                    == Some(host)
            });
            if !open || !wanted {
                continue;
            }
            let target = match (service_port, &slice.ports) {
                (None, _) => Some(port),
                (Some(service_port), Some(ports)) => {
                    ports.iter().find(|port| port.name == service_port.name).map(|port| port.port)
                }
                (Some(service_port), None) => target(service_port, pod.map(|(_, pod)| pod)),
            };
            candidates.extend(target.map(|target| Candidate {
                addr: SocketAddr::new(endpoint.ip, target),
                pod,
                node: endpoint.node.as_deref().or_else(|| pod.and_then(|(_, pod)| pod.node.as_deref())),
                zone: endpoint.zone.as_deref(),
                for_zones: &endpoint.for_zones,
                here: None,
            }));
        }
    }
    candidates
}

/// The pod behind an endpoint: the one it names, else the one of its namespace that has its address.
fn pod_of<'a>(lens: &Lens<'a>, service: &Name, endpoint: &'a SliceEndpoint) -> Option<(&'a Name, &'a Pod)> {
    let index = lens.index;
    let by_address = || index.pod_at(endpoint.ip).filter(|(name, _)| name.namespace == service.namespace);
    match &endpoint.pod {
        Some(pod) => index.pod_entry(&Name::new(&service.namespace, pod)),
        None => by_address(),
    }
}

/// Without EndpointSlices: what Kubernetes would put into them.
fn selected<'a>(
    lens: &Lens<'a>,
    name: &'a Name,
    service: &'a Service,
    host: Option<&str>,
    port: u16,
) -> Vec<Candidate<'a>> {
    let mut candidates = Vec::new();
    for (pod_name, pod) in lens.index.selected(name) {
        let open = !pod.finished && (service.publish_not_ready || pod.ready && !pod.terminating);
        let wanted = host.is_none_or(|host| {
            pod.hostname == host && pod.subdomain.as_ref().is_none_or(|sub| *sub == name.name)
        });
        let target = match service.port(port) {
            Some(service_port) => target(service_port, Some(pod)),
            None => Some(port),
        };
        let Some(target) = target.filter(|_| open && wanted) else { continue };
        let ips = pod.ips.iter().enumerate().filter(|(at, ip)| match service.families {
            Some((v4, v6)) => ip.is_ipv4() && v4 || ip.is_ipv6() && v6,
            None => *at == 0,
        });
        candidates.extend(ips.map(|(_, ip)| Candidate {
            addr: SocketAddr::new(*ip, target),
            pod: Some((pod_name, pod)),
            node: pod.node.as_deref(),
            zone: None,
            for_zones: &[],
            here: None,
        }));
    }
    candidates
}

/// The port of a pod behind a Service's.
pub(super) fn target(port: &ServicePort, pod: Option<&Pod>) -> Option<u16> {
    match &port.target {
        TargetPort::Number(number) => Some(*number),
        TargetPort::Name(name) => pod?.ports.get(name).copied(),
    }
}

/// Of a pod that has both families only the IPv6 address stays. Contract 3.1.
fn prefer_ipv6(candidates: &mut Vec<Candidate<'_>>) {
    let both: BTreeSet<&Name> = candidates
        .iter()
        .filter(|candidate| candidate.addr.is_ipv6())
        .filter_map(|candidate| Some(candidate.pod?.0))
        .collect();
    candidates.retain(|candidate| {
        !(candidate.addr.is_ipv4() && candidate.pod.is_some_and(|(name, _)| both.contains(name)))
    });
}

/// `internalTrafficPolicy: Local`, else zone hints by the rule of kube-proxy: they count only if every endpoint has
/// one, the client's zone is known, and somebody is left. Who chooses among zones is told of the others too.
fn keep_local(
    lens: &mut Lens<'_>,
    service: &Service,
    context: &Context,
    candidates: &mut Vec<Candidate<'_>>,
) {
    let node = context.node.as_deref();
    if service.local_only {
        candidates.retain(|candidate| node.is_some() && candidate.node == node);
        return;
    }
    if candidates.iter().any(|candidate| candidate.for_zones.is_empty()) {
        return;
    }
    let Some(zone) = node.and_then(|node| lens.zone_of_client(node)) else { return };
    let here = |candidate: &Candidate<'_>| candidate.for_zones.iter().any(|hint| hint == zone);
    if !candidates.iter().any(here) {
        return;
    }
    if context.chooses_zones {
        for candidate in candidates.iter_mut() {
            candidate.here = Some(here(candidate));
        }
    } else {
        candidates.retain(here);
    }
}

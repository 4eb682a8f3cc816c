//! Pure. What of an EndpointSlice matters to the clients of its Service.

use k8s_openapi::api::discovery::v1::{self as api, Endpoint};
use std::net::IpAddr;

/// The label that names a slice's Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// An EndpointSlice, distilled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// The Service that it belongs to, in its own namespace.
    pub service: Option<String>,
    /// Its TCP ports; `None` if it says none, which leaves the Service's own numbers.
    pub ports: Option<Vec<SlicePort>>,
    /// Its endpoints.
    pub endpoints: Vec<SliceEndpoint>,
}

/// One port of every endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// The name of the Service's port; empty if that has none.
    pub name: String,
    /// What the endpoints listen on.
    pub port: u16,
}

/// One endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// Its address. Kubernetes defines only the first of the list.
    pub ip: IpAddr,
    /// Does it take new connections? Unknown counts as yes.
    pub ready: bool,
    /// Is it ending?
    pub terminating: bool,
    /// Its node.
    pub node: Option<String>,
    /// Its zone.
    pub zone: Option<String>,
    /// The zones whose clients should prefer it; empty is no hint.
    pub for_zones: Vec<String>,
    /// Its pod, in the slice's namespace.
    pub pod: Option<String>,
    /// Its first DNS label below the Service.
    pub hostname: Option<String>,
}

impl Slice {
    /// Distils a slice. What is wrong with it goes to `reasons`.
    pub(super) fn read(slice: &api::EndpointSlice, reasons: &mut Vec<String>) -> Self {
        let service = slice.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME).cloned());
        if service.is_none() {
            reasons.push(format!("it has no label {SERVICE_NAME}; no Service uses it"));
        }
        // Slices of names (`addressType: FQDN`) have no addresses that a proxy could dial.
        let dialable = slice.address_type != "FQDN";
        let endpoints =
            slice.endpoints.iter().filter(|_| dialable).filter_map(|endpoint| read(endpoint, reasons));
        Self {
            service,
            ports: slice.ports.as_ref().map(|ports| {
                let tcp = ports
                    .iter()
                    .filter(|port| port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP"));
                tcp.filter_map(|port| {
                    let number = u16::try_from(port.port?).ok().filter(|port| *port > 0)?;
                    Some(SlicePort { name: port.name.clone().unwrap_or_default(), port: number })
                })
                .collect()
            }),
            endpoints: endpoints.collect(),
        }
    }

    /// Is this pod, or one of these addresses, among its endpoints?
    pub fn mentions(&self, pod: &str, ips: &[IpAddr]) -> bool {
        self.endpoints
            .iter()
            .any(|endpoint| endpoint.pod.as_deref() == Some(pod) || ips.contains(&endpoint.ip))
    }
}

fn read(endpoint: &Endpoint, reasons: &mut Vec<String>) -> Option<SliceEndpoint> {
    let address = endpoint.addresses.first()?;
    let Ok(ip) = address.parse() else {
        reasons.push(format!("endpoint {address:?} is no IP address; it is left out"));
        return None;
    };
    let conditions = endpoint.conditions.clone().unwrap_or_default();
    let pod = endpoint.target_ref.as_ref().filter(|target| target.kind.as_deref() == Some("Pod"));
    let hints = endpoint.hints.iter().flat_map(|hints| hints.for_zones.iter().flatten());
    Some(SliceEndpoint {
        ip,
        ready: conditions.ready.unwrap_or(true),
        terminating: conditions.terminating.unwrap_or(false),
        node: endpoint.node_name.clone(),
        zone: endpoint.zone.clone(),
        for_zones: hints.map(|zone| zone.name.clone()).collect(),
        pod: pod.and_then(|target| target.name.clone()),
        hostname: endpoint.hostname.clone(),
    })
}

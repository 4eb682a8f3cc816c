//! Pure. What of a Service matters to the clients of it.

use super::{
    Accrual, Index, OPAQUE_PORTS, Traffic,
    balancing::{balancing, told},
    ports_of,
};
use crate::{ports::PortSet, resources::Name};
use k8s_openapi::{
    api::core::v1::{self as api, ServiceSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};
use remora_core::balance::Balancing;
use std::{collections::BTreeMap, net::IpAddr};

/// A Service, distilled.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// How clients address it.
    pub addressing: Addressing,
    /// The labels of the pods behind it; empty selects none.
    pub selector: BTreeMap<String, String>,
    /// Its TCP ports. A port that is mentioned twice counts once, the first time.
    pub ports: Vec<ServicePort>,
    /// `config.linkerd.io/opaque-ports`: numbers of the Service's own ports.
    pub opaque_ports: Option<PortSet>,
    /// The families of its endpoints, when it has no EndpointSlices: (IPv4, IPv6). `None` is the pod's primary one.
    pub families: Option<(bool, bool)>,
    /// Are pods that are not ready, or ending, endpoints all the same?
    pub publish_not_ready: bool,
    /// `internalTrafficPolicy: Local`: only endpoints on the client's node.
    pub local_only: bool,
    /// Seconds since 1970 at which it was created.
    pub created: Option<i64>,
    /// Timeouts and retries of requests whose route says nothing of them.
    pub traffic: Traffic,
    /// When its endpoints count as failing.
    pub accrual: Option<Accrual>,
    /// How its endpoints are balanced.
    pub balancing: Balancing,
}

/// How clients address a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Addressing {
    /// By one or two virtual addresses.
    ClusterIps(Vec<IpAddr>),
    /// By its endpoints' own addresses (`clusterIP: None`, or none assigned yet).
    Headless,
    /// By a name elsewhere: DNS's business, not ours.
    ExternalName,
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name; empty if it has none.
    pub name: String,
    /// What clients dial.
    pub port: u16,
    /// What pods listen on.
    pub target: TargetPort,
    /// `appProtocol`, if it says one.
    pub app_protocol: Option<String>,
}

/// The port of a pod behind a Service's port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPort {
    /// This one.
    Number(u16),
    /// The container port of that name, which may differ from pod to pod.
    Name(String),
}

impl Index {
    /// All Services.
    pub fn services(&self) -> impl Iterator<Item = (&Name, &Service)> {
        self.services.iter().map(|(name, service)| (name, service.as_ref()))
    }
}

impl Service {
    /// Distils a Service. What is wrong with it goes to `reasons`.
    pub(super) fn read(service: &api::Service, reasons: &mut Vec<String>) -> Self {
        let no_spec = ServiceSpec::default();
        let spec = service.spec.as_ref().unwrap_or(&no_spec);
        let addressing = addressing(spec);
        let ports = ports(spec, reasons);
        let named = |name: &str| ports.iter().find(|port| port.name == name).map(|port| port.port);
        let annotations = service.metadata.annotations.as_ref();
        let opaque_ports =
            annotations.and_then(|annotations| ports_of(annotations, OPAQUE_PORTS, named, reasons));
        let mut problems = Vec::new();
        let traffic = Traffic::read(annotations, &mut problems);
        let accrual = Accrual::read(annotations, &mut problems);
        let balancing = balancing(annotations, &mut problems);
        reasons.extend(problems.into_iter().map(told));
        Self {
            selector: spec.selector.clone().unwrap_or_default(),
            families: families(spec, &addressing),
            publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
            local_only: spec.internal_traffic_policy.as_deref() == Some("Local"),
            created: service.metadata.creation_timestamp.as_ref().map(|time| time.0.as_second()),
            addressing,
            ports,
            opaque_ports,
            traffic,
            accrual,
            balancing,
        }
    }

    /// Its virtual addresses.
    pub fn ips(&self) -> impl Iterator<Item = IpAddr> + Clone {
        let ips = match &self.addressing {
            Addressing::ClusterIps(ips) => ips.as_slice(),
            Addressing::Headless | Addressing::ExternalName => &[],
        };
        ips.iter().copied()
    }

    /// One of its ports by number.
    pub fn port(&self, port: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|candidate| candidate.port == port)
    }

    /// Does its selector select a pod with these labels?
    pub fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        !self.selector.is_empty() && self.selector.iter().all(|(key, value)| labels.get(key) == Some(value))
    }
}

fn addressing(spec: &ServiceSpec) -> Addressing {
    if spec.type_.as_deref() == Some("ExternalName") {
        return Addressing::ExternalName;
    }
    let texts = spec.cluster_ip.iter().chain(spec.cluster_ips.iter().flatten());
    let mut ips: Vec<IpAddr> = texts.filter_map(|ip| ip.parse().ok()).collect();
    ips.sort_unstable();
    ips.dedup();
    if ips.is_empty() { Addressing::Headless } else { Addressing::ClusterIps(ips) }
}

fn families(spec: &ServiceSpec, addressing: &Addressing) -> Option<(bool, bool)> {
    if let Some(families) = spec.ip_families.as_ref().filter(|families| !families.is_empty()) {
        let has = |family: &str| families.iter().any(|candidate| candidate == family);
        return Some((has("IPv4"), has("IPv6")));
    }
    match addressing {
        Addressing::ClusterIps(ips) => {
            Some((ips.iter().any(IpAddr::is_ipv4), ips.iter().any(IpAddr::is_ipv6)))
        }
        Addressing::Headless | Addressing::ExternalName => None,
    }
}

fn ports(spec: &ServiceSpec, reasons: &mut Vec<String>) -> Vec<ServicePort> {
    let mut ports: Vec<ServicePort> = Vec::new();
    for port in spec.ports.iter().flatten() {
        if port.protocol.as_deref().is_some_and(|protocol| protocol != "TCP") {
            continue;
        }
        let Some(number) = number(port.port) else {
            reasons.push(format!("port {} is not in 1 to 65535; it is left out", port.port));
            continue;
        };
        if ports.iter().any(|known| known.port == number) {
            reasons.push(format!("port {number} is mentioned twice; the first mention counts"));
            continue;
        }
        let target = match &port.target_port {
            None | Some(IntOrString::Int(0)) => TargetPort::Number(number),
            Some(IntOrString::String(name)) => name
                .parse()
                .ok()
                .filter(|port| *port > 0)
                .map_or_else(|| TargetPort::Name(name.clone()), TargetPort::Number),
            Some(IntOrString::Int(target)) => {
                let Some(target) = self::number(*target) else {
                    reasons.push(format!(
                        "targetPort {target} of port {number} is not in 1 to 65535; the port is left out"
                    ));
                    continue;
                };
                TargetPort::Number(target)
            }
        };
        ports.push(ServicePort {
            name: port.name.clone().unwrap_or_default(),
            port: number,
            target,
            app_protocol: port.app_protocol.clone().filter(|protocol| !protocol.is_empty()),
        });
    }
    ports
}

fn number(port: i32) -> Option<u16> {
    u16::try_from(port).ok().filter(|port| *port > 0)
}

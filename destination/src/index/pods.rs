//! Pure. What of a pod matters to its clients and to its own proxy.

use super::{
    Changes, Index, Key, OPAQUE_PORTS, Owned, Zone, balancing, denial_header, in_namespace, outbound_of,
    policy_of, ports_of, relate, swap,
};
use crate::{
    ports::PortSet,
    resources::{Kind, Name},
};
use k8s_openapi::{
    api::core::v1::{self as api, Container, PodSpec, PodStatus},
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};
use remora_core::policy::{DefaultPolicy, OutboundDefault};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

/// The label by which a pod says whose proxy it has. Contract 3.1, rule 1.
const CONTROL_PLANE_NS: &str = "linkerd.io/control-plane-ns";
/// The name that the proxy's container must have. Contract 3.1, rule 2.
const PROXY_CONTAINER: &str = "linkerd-proxy";
/// The envs by which its proxy is told that it is a gateway's, and whom it may reach in plaintext.
const INGRESS: &str = "LINKERD2_PROXY_INGRESS_MODE";
const OUTBOUND_DEFAULT: &str = "REMORA_PROXY_OUTBOUND_DEFAULT_POLICY";
/// The env by which that container says where it takes transport headers.
const INBOUND: &str = "LINKERD2_PROXY_INBOUND_LISTEN_ADDR";

/// A pod, distilled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its addresses, the primary one first.
    pub ips: Vec<IpAddr>,
    /// Is it on the network of its node?
    pub host_network: bool,
    /// Has it ended (phase `Succeeded` or `Failed`)? Its address may already be another's.
    pub finished: bool,
    /// Is it being deleted?
    pub terminating: bool,
    /// Does its `Ready` condition hold, or has it an address and no conditions at all?
    pub ready: bool,
    /// Its node.
    pub node: Option<String>,
    /// Its service account.
    pub service_account: String,
    /// Its controller.
    pub owner: Option<Owner>,
    /// Its first DNS label below the Service named by `subdomain`; the pod's own name if it says none.
    pub hostname: String,
    /// The headless Service that gives it a name in DNS.
    pub subdomain: Option<String>,
    /// Named TCP ports of its containers.
    pub ports: BTreeMap<String, u16>,
    /// Paths of HTTP probes, by port. Contract 3.4.
    pub probes: BTreeMap<u16, BTreeSet<String>>,
    /// `config.linkerd.io/opaque-ports`.
    pub opaque_ports: Option<PortSet>,
    /// `config.linkerd.io/skip-inbound-ports`.
    pub skip_inbound_ports: PortSet,
    /// `config.linkerd.io/proxy-require-identity-inbound-ports`.
    pub require_identity_ports: PortSet,
    /// `config.linkerd.io/default-inbound-policy`.
    pub default_policy: Option<DefaultPolicy>,
    /// `config.linkerd.io/outbound-default-policy`: what the injector tells the pod's proxy.
    pub outbound_default: Option<OutboundDefault>,
    /// Its share of its Services' traffic, in ten-thousandths of an ordinary pod's, if it says one.
    pub weight: Option<u32>,
    /// Its proxy, if it has one.
    pub mesh: Option<Mesh>,
    /// Seconds since 1970 at which it was created.
    pub created: Option<i64>,
}

/// The proxy of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mesh {
    /// The namespace of the control plane that it belongs to.
    pub control_namespace: String,
    /// Where it listens; `None` if the pod claims a proxy but has none that can be found. Clients must not be sent to
    /// such a pod: what they should speak to it is unknown.
    pub ports: Option<ProxyPorts>,
    /// What it was told of what its pod sends.
    pub sends: Sends,
}

/// How a proxy was told to treat what its pod sends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sends {
    /// Whom it may reach in plaintext.
    pub plaintext: OutboundDefault,
    /// Is it in ingress mode: do requests name the Service that they are for?
    pub ingress: bool,
}

/// The ports of a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProxyPorts {
    /// Takes transport headers (4143).
    pub inbound: u16,
    /// Admin (4191).
    pub admin: Option<u16>,
    /// Control, that is tap (4190).
    pub control: Option<u16>,
}

/// A controller of pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Its kind, as manifests write it.
    pub kind: String,
    /// Its name.
    pub name: String,
}

impl Pod {
    /// Distils a pod. What is wrong with its annotations goes to `reasons`.
    pub(super) fn read(pod: &api::Pod, reasons: &mut Vec<String>) -> Self {
        let (metadata, nothing, no_spec, no_status) =
            (&pod.metadata, BTreeMap::new(), PodSpec::default(), PodStatus::default());
        let annotations = metadata.annotations.as_ref().unwrap_or(&nothing);
        let spec = pod.spec.as_ref().unwrap_or(&no_spec);
        let status = pod.status.as_ref().unwrap_or(&no_status);
        let ports = named_ports(spec);
        let named = |name: &str| ports.get(name).copied();
        let ips = ips(status);
        denial_header(annotations, reasons);
        Self {
            host_network: spec.host_network.unwrap_or(false),
            finished: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
            terminating: metadata.deletion_timestamp.is_some(),
            ready: ready(status, &ips),
            node: spec.node_name.clone(),
            service_account: non_empty(spec.service_account_name.as_ref())
                .or_else(|| non_empty(spec.service_account.as_ref()))
                .unwrap_or_else(|| "default".to_owned()),
            owner: Owner::of(metadata),
            hostname: spec.hostname.clone().or_else(|| metadata.name.clone()).unwrap_or_default(),
            subdomain: spec.subdomain.clone(),
            probes: probes(spec),
            opaque_ports: ports_of(annotations, OPAQUE_PORTS, named, reasons),
            skip_inbound_ports: ports_of(annotations, "config.linkerd.io/skip-inbound-ports", named, reasons)
                .unwrap_or_default(),
            require_identity_ports: ports_of(
                annotations,
                "config.linkerd.io/proxy-require-identity-inbound-ports",
                named,
                reasons,
            )
            .unwrap_or_default(),
            default_policy: policy_of(annotations, reasons),
            outbound_default: outbound_of(annotations, reasons),
            weight: balancing::weight(annotations, reasons),
            mesh: mesh(metadata, spec, reasons),
            created: metadata.creation_timestamp.as_ref().map(|time| time.0.as_second()),
            labels: metadata.labels.clone().unwrap_or_default(),
            ips,
            ports,
        }
    }

    /// The addresses that lead to this pod and no other.
    pub fn own_ips(&self) -> impl Iterator<Item = IpAddr> + Clone {
        let shared = self.host_network || self.finished;
        self.ips.iter().copied().filter(move |_| !shared)
    }
}

impl Owner {
    /// The controller named by an object's owner references.
    pub(super) fn of(metadata: &ObjectMeta) -> Option<Self> {
        let references = metadata.owner_references.as_deref().unwrap_or_default();
        let owner = references
            .iter()
            .find(|reference| reference.controller == Some(true))
            .or_else(|| references.first())?;
        Some(Self { kind: owner.kind.clone(), name: owner.name.clone() })
    }
}

impl Index {
    /// Who a pod belongs to in the end: the Deployment behind its ReplicaSet, the CronJob behind its Job.
    pub fn owner(&self, name: &Name, pod: &Pod) -> Option<Owner> {
        let direct = pod.owner.clone()?;
        let kind = match direct.kind.as_str() {
            "ReplicaSet" => Kind::ReplicaSet,
            "Job" => Kind::Job,
            _ => return Some(direct),
        };
        match self.owners.get(&(kind, Name::new(&name.namespace, &direct.name))) {
            Some(Owned(Some(owner))) => Some(owner.clone()),
            Some(Owned(None)) => Some(direct),
            // The ReplicaSet is not among the manifests: Kubernetes names it `<deployment>-<pod-template-hash>`.
            None => pod
                .labels
                .get("pod-template-hash")
                .filter(|_| kind == Kind::ReplicaSet)
                .and_then(|hash| direct.name.strip_suffix(hash)?.strip_suffix('-'))
                .map(|deployment| Owner { kind: "Deployment".to_owned(), name: deployment.to_owned() })
                .or(Some(direct)),
        }
    }

    pub(super) fn put_node(&mut self, name: &Name, new: Option<Zone>, changes: &mut Changes) -> bool {
        let changed = swap(&mut self.nodes, name, new).is_some();
        if changed {
            changes.keys.insert(Key::Node(name.name.clone()));
            let on_it = self.pods.iter().filter(|(_, pod)| pod.node.as_deref() == Some(&name.name));
            for (name, pod) in on_it {
                self.pod_changed(name, [Some(pod), None], changes);
            }
        }
        changed
    }

    pub(super) fn put_owner(
        &mut self,
        kind: Kind,
        name: &Name,
        new: Option<Owned>,
        changes: &mut Changes,
    ) -> bool {
        let changed = swap(&mut self.owners, &(kind, name.clone()), new).is_some();
        if changed {
            let owner = Owner { kind: kind.as_str().to_owned(), name: name.name.clone() };
            for (name, pod) in in_namespace(&self.pods, &name.namespace) {
                if pod.owner.as_ref() == Some(&owner) {
                    self.pod_changed(name, [Some(pod), None], changes);
                }
            }
        }
        changed
    }

    pub(super) fn put_pod(&mut self, name: &Name, new: Option<Pod>, changes: &mut Changes) -> bool {
        let Some((old, new)) = swap(&mut self.pods, name, new.map(Arc::new)) else { return false };
        relate(
            &mut self.pods_by_ip,
            name,
            old.iter().flat_map(|pod| pod.own_ips()),
            new.iter().flat_map(|pod| pod.own_ips()),
        );
        self.pod_changed(name, [old.as_ref(), new.as_ref()], changes);
        true
    }

    /// Reports everything that shows a pod: itself, its addresses, and the Services that it was or is behind.
    pub(super) fn pod_changed(&self, name: &Name, states: [Option<&Arc<Pod>>; 2], changes: &mut Changes) {
        let states = || states.iter().copied().flatten();
        changes.keys.insert(Key::Pod(name.clone()));
        changes.keys.extend(states().flat_map(|pod| pod.ips.iter().copied()).map(Key::Ip));
        for (service_name, service) in in_namespace(&self.services, &name.namespace) {
            let behind = states().any(|pod| {
                service.selects(&pod.labels)
                    || self.slices(service_name).any(|slice| slice.mentions(&name.name, &pod.ips))
            });
            if behind {
                changes.keys.insert(Key::Service(service_name.clone()));
            }
        }
    }
}

fn non_empty(text: Option<&String>) -> Option<String> {
    text.filter(|text| !text.is_empty()).cloned()
}

fn ips(status: &PodStatus) -> Vec<IpAddr> {
    let all = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
    let mut ips: Vec<IpAddr> = Vec::new();
    for ip in status.pod_ip.as_deref().into_iter().chain(all).filter_map(|ip| ip.parse().ok()) {
        if !ips.contains(&ip) {
            ips.push(ip);
        }
    }
    ips
}

fn ready(status: &PodStatus, ips: &[IpAddr]) -> bool {
    let conditions = status.conditions.as_deref().unwrap_or_default();
    match conditions.iter().find(|condition| condition.type_ == "Ready") {
        Some(condition) => condition.status == "True",
        None => conditions.is_empty() && !ips.is_empty(),
    }
}

/// The containers that run beside each other: the ordinary ones, and init containers that stay (native sidecars).
fn running(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    let sidecars = spec.init_containers.iter().flatten();
    spec.containers
        .iter()
        .chain(sidecars.filter(|container| container.restart_policy.as_deref() == Some("Always")))
}

fn named_ports(spec: &PodSpec) -> BTreeMap<String, u16> {
    let mut named = BTreeMap::new();
    for (name, port) in running(spec).flat_map(ports_of_container) {
        // Kubernetes takes the first container that has the name.
        named.entry(name).or_insert(port);
    }
    named
}

fn ports_of_container(container: &Container) -> impl Iterator<Item = (String, u16)> {
    container.ports.iter().flatten().filter_map(|port| {
        let tcp = port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP");
        Some((port.name.clone()?, u16::try_from(port.container_port).ok()?))
            .filter(|(_, port)| tcp && *port > 0)
    })
}

fn probes(spec: &PodSpec) -> BTreeMap<u16, BTreeSet<String>> {
    let mut probes: BTreeMap<u16, BTreeSet<String>> = BTreeMap::new();
    for container in running(spec) {
        let of_container = [&container.liveness_probe, &container.readiness_probe, &container.startup_probe];
        for get in of_container.into_iter().flatten().filter_map(|probe| probe.http_get.as_ref()) {
            // A probe's named port is one of its own container.
            let port = match &get.port {
                IntOrString::Int(port) => u16::try_from(*port).ok(),
                IntOrString::String(name) => {
                    ports_of_container(container).find(|(named, _)| named == name).map(|(_, port)| port)
                }
            };
            if let Some(port) = port.filter(|port| *port > 0) {
                let path = get.path.as_deref().filter(|path| !path.is_empty()).unwrap_or("/");
                // The proxy sees a path; the query that a probe may carry is no part of it.
                let path = path.split_once('?').map_or(path, |(path, _)| path);
                probes.entry(port).or_default().insert(path.to_owned());
            }
        }
    }
    probes
}

fn mesh(metadata: &ObjectMeta, spec: &PodSpec, reasons: &mut Vec<String>) -> Option<Mesh> {
    let labels = metadata.labels.as_ref()?;
    let control_namespace = labels.get(CONTROL_PLANE_NS).filter(|namespace| !namespace.is_empty())?.clone();
    let ports = proxy_ports(spec)
        .map_err(|reason| {
            reasons.push(format!("labelled {CONTROL_PLANE_NS} but {reason}; clients are not sent to it"));
        })
        .ok();
    Some(Mesh { control_namespace, ports, sends: sends(spec) })
}

fn proxy(spec: &PodSpec) -> Option<&Container> {
    let mut containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    containers.find(|container| container.name == PROXY_CONTAINER)
}

/// A literal variable of a container's environment.
fn variable<'a>(container: &'a Container, name: &str) -> Option<&'a str> {
    container.env.iter().flatten().find(|env| env.name == name)?.value.as_deref()
}

/// A proxy does not start with a word that it does not know.
fn sends(spec: &PodSpec) -> Sends {
    let told = |name| proxy(spec).and_then(|proxy| variable(proxy, name)).map(str::trim);
    Sends {
        plaintext: told(OUTBOUND_DEFAULT).and_then(OutboundDefault::parse).unwrap_or_default(),
        ingress: told(INGRESS) == Some("true"),
    }
}

fn proxy_ports(spec: &PodSpec) -> Result<ProxyPorts, String> {
    let proxy = proxy(spec).ok_or_else(|| format!("it has no container named {PROXY_CONTAINER}"))?;
    let port = |name: &str| variable(proxy, name)?.parse().ok().map(|addr: SocketAddr| addr.port());
    let inbound = port(INBOUND)
        .ok_or_else(|| format!("the env {INBOUND} of {PROXY_CONTAINER} is no literal address:port"))?;
    Ok(ProxyPorts {
        inbound,
        admin: port("LINKERD2_PROXY_ADMIN_LISTEN_ADDR"),
        control: port("LINKERD2_PROXY_CONTROL_LISTEN_ADDR"),
    })
}

//! Pure. What is asked of a pod before it is touched: its ports, its users, its quality of service, the names in it.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::{
    api::core::v1::{Container, ContainerPort, PodSpec, PodTemplateSpec, Probe, ResourceRequirements},
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};
use serde_json::Value;

use crate::values::{Millis, PortRange, Ports, quantity};

/// A pod, or the template of one: metadata and spec, with both present.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Its metadata; empty if there was none.
    pub metadata: ObjectMeta,
    /// Whether there was any, if only with fields that are not known here.
    pub has_metadata: bool,
    /// Its spec.
    pub spec: PodSpec,
}

/// Why an object is no pod.
#[derive(Debug, thiserror::Error)]
pub enum NotAPod {
    /// Something in it has the wrong type.
    #[error("not a valid pod: {0}")]
    Malformed(#[from] serde_json::Error),
    /// There is no `spec`.
    #[error("not a valid pod: it has no spec")]
    NoSpec,
}

impl Pod {
    /// Reads a Pod or a pod template.
    pub fn read(object: &Value) -> Result<Self, NotAPod> {
        let template: PodTemplateSpec = serde_json::from_value(object.clone())?;
        let spec = template.spec.ok_or(NotAPod::NoSpec)?;
        let has_metadata = template.metadata.is_some();
        Ok(Self { metadata: template.metadata.unwrap_or_default(), has_metadata, spec })
    }

    /// Init containers, then containers.
    pub fn containers(&self) -> impl Iterator<Item = &Container> {
        self.spec.init_containers.iter().flatten().chain(&self.spec.containers)
    }

    /// Annotations, empty if there are none.
    pub fn annotations(&self) -> BTreeMap<String, String> {
        self.metadata.annotations.clone().unwrap_or_default()
    }

    /// The value of a label.
    pub fn label(&self, name: &str) -> Option<&str> {
        self.metadata.labels.as_ref()?.get(name).map(String::as_str)
    }

    /// Its name, or what its name will begin with, for messages.
    pub fn name(&self) -> &str {
        self.metadata.name.as_deref().or(self.metadata.generate_name.as_deref()).unwrap_or("")
    }

    /// TCP ports that containers declare, in their order, each once.
    pub fn declared_ports(&self) -> Vec<u16> {
        let mut seen = BTreeSet::new();
        self.tcp_ports().map(|(_, port)| port).filter(|port| seen.insert(*port)).collect()
    }

    /// Declared TCP ports by their names.
    pub fn named_ports(&self) -> BTreeMap<String, u16> {
        self.tcp_ports().filter_map(|(name, port)| Some((name?.to_owned(), port))).collect()
    }

    fn tcp_ports(&self) -> impl Iterator<Item = (Option<&str>, u16)> {
        let tcp = |port: &&ContainerPort| port.protocol.as_deref().unwrap_or("TCP") == "TCP";
        self.containers()
            .flat_map(|container| container.ports.iter().flatten())
            .filter(tcp)
            .filter_map(|port| Some((port.name.as_deref(), positive(port.container_port)?)))
    }

    /// Ports that anybody declares to be served: containers' TCP ports and their probes', ascending (contract 6.1).
    pub fn inbound_ports(&self) -> Ports {
        let mut ports: BTreeSet<u16> = self.declared_ports().into_iter().collect();
        let named = self.named_ports();
        for container in self.containers() {
            let probes = [&container.liveness_probe, &container.readiness_probe, &container.startup_probe];
            ports.extend(probes.into_iter().flatten().filter_map(|probe| probe_port(probe, &named)));
        }
        Ports(ports.into_iter().map(|port| PortRange { first: port, last: port }).collect())
    }

    /// Whether some container declares a UDP port, which passes by the proxy.
    pub fn has_udp_ports(&self) -> bool {
        let udp = |port: &ContainerPort| port.protocol.as_deref() == Some("UDP");
        self.containers().any(|container| container.ports.iter().flatten().any(udp))
    }

    /// The user a container will run as, as far as the manifest says it (an image's own `USER` is not known here).
    pub fn user(&self, container: &Container) -> Option<i64> {
        let own = container.security_context.as_ref().and_then(|context| context.run_as_user);
        own.or_else(|| self.spec.security_context.as_ref()?.run_as_user)
    }

    /// The group a container will run as, as far as the manifest says it.
    pub fn group(&self, container: &Container) -> Option<i64> {
        let own = container.security_context.as_ref().and_then(|context| context.run_as_group);
        own.or_else(|| self.spec.security_context.as_ref()?.run_as_group)
    }

    /// Its class of service before anything is added to it.
    pub fn quality(&self) -> Quality {
        if self.spec.resources.as_ref().is_some_and(|resources| !empty(resources)) {
            return Quality::OfThePod;
        }
        let resources: Vec<Option<&ResourceRequirements>> =
            self.containers().map(|container| container.resources.as_ref()).collect();
        if resources.iter().all(|resources| resources.is_none_or(empty)) {
            Quality::BestEffort
        } else if resources.iter().all(|resources| resources.is_some_and(guaranteed)) {
            Quality::Guaranteed
        } else {
            Quality::Burstable
        }
    }
}

fn positive(port: i32) -> Option<u16> {
    u16::try_from(port).ok().filter(|port| *port > 0)
}

fn probe_port(probe: &Probe, named: &BTreeMap<String, u16>) -> Option<u16> {
    let port = match (&probe.http_get, &probe.tcp_socket, &probe.grpc) {
        (Some(http), _, _) => &http.port,
        (_, Some(tcp), _) => &tcp.port,
        (_, _, Some(grpc)) => return positive(grpc.port),
        _ => return None,
    };
    match port {
        IntOrString::Int(port) => positive(*port),
        IntOrString::String(name) => named.get(name).copied(),
    }
}

/// Kubernetes' class of service, which decides who is evicted first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quality {
    /// Nothing is asked for.
    BestEffort,
    /// Something is asked for.
    Burstable,
    /// Every container's CPU and memory limits equal its requests.
    Guaranteed,
    /// The pod itself has resources, and what its containers ask does not matter.
    OfThePod,
}

/// Whether nothing is asked for. Only CPU and memory count, and zero is nothing, as the kubelet computes it.
fn empty(resources: &ResourceRequirements) -> bool {
    let amount =
        |amounts: &Option<BTreeMap<String, Quantity>>, name: &str| read_amount(amounts.as_ref(), name);
    ["cpu", "memory"].iter().all(|name| {
        amount(&resources.requests, name).is_none_or(zero) && amount(&resources.limits, name).is_none_or(zero)
    })
}

fn zero(amount: Millis) -> bool {
    amount == Millis(0)
}

/// Whether CPU and memory are limited to what is requested; an absent request is the limit.
fn guaranteed(resources: &ResourceRequirements) -> bool {
    ["cpu", "memory"].iter().all(|name| {
        let limit = read_amount(resources.limits.as_ref(), name).filter(|amount| !zero(*amount));
        let request =
            read_amount(resources.requests.as_ref(), name).filter(|amount| !zero(*amount)).or(limit);
        limit.is_some() && request == limit
    })
}

/// An amount that cannot be read counts as one that is not there; the API server refuses the pod later.
fn read_amount(amounts: Option<&BTreeMap<String, Quantity>>, name: &str) -> Option<Millis> {
    amounts?.get(name).and_then(|Quantity(text)| quantity(text).ok())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[expect(clippy::needless_pass_by_value, reason = "callers are literals")]
    fn pod(spec: Value) -> Pod {
        Pod::read(&json!({ "spec": spec })).unwrap()
    }

    #[test]
    fn ports_are_those_declared_and_probed() {
        let pod = pod(json!({
            "initContainers": [{"name": "early", "ports": [{"containerPort": 9000}]}],
            "containers": [{
                "name": "app",
                "ports": [
                    {"name": "http", "containerPort": 8080},
                    {"name": "dns", "containerPort": 53, "protocol": "UDP"},
                ],
                "livenessProbe": {"httpGet": {"port": "http"}},
                "readinessProbe": {"tcpSocket": {"port": 1234}},
                "startupProbe": {"grpc": {"port": 70}},
            }],
        }));
        assert_eq!(pod.inbound_ports().to_string(), "70,1234,8080,9000");
        assert_eq!(pod.named_ports(), BTreeMap::from([("http".to_owned(), 8080)]));
        assert!(pod.has_udp_ports());
    }

    #[test]
    fn quality_is_the_kubelets() {
        let of = |resources: &[Value]| {
            let containers: Vec<Value> =
                resources.iter().map(|r| json!({"name": "c", "resources": r})).collect();
            pod(json!({ "containers": containers })).quality()
        };
        let full = json!({"limits": {"cpu": "1", "memory": "1Gi"}});
        let equal = json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1024Mi"}});
        let less =
            json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1", "memory": "1Mi"}});
        let disk = json!({"requests": {"ephemeral-storage": "1Gi"}});
        let nothing = json!({});
        let zero = json!({"requests": {"cpu": "0"}});
        assert_eq!(of(&[nothing.clone(), disk, zero]), Quality::BestEffort);
        assert_eq!(of(&[full.clone(), equal]), Quality::Guaranteed);
        assert_eq!(of(&[full.clone(), less]), Quality::Burstable);
        assert_eq!(of(&[full, nothing]), Quality::Burstable);
        let own = json!({"containers": [{"name": "c"}], "resources": {"requests": {"cpu": "1"}}});
        assert_eq!(pod(own).quality(), Quality::OfThePod);
    }

    #[test]
    fn the_containers_user_wins_over_the_pods() {
        let pod = pod(json!({
            "securityContext": {"runAsUser": 1, "runAsGroup": 2},
            "containers": [{"name": "a"}, {"name": "b", "securityContext": {"runAsUser": 3}}],
        }));
        let ids: Vec<_> = pod.containers().map(|c| (pod.user(c), pod.group(c))).collect();
        assert_eq!(ids, [(Some(1), Some(2)), (Some(3), Some(2))]);
    }

    #[test]
    fn what_is_no_pod_is_said_so() {
        assert!(Pod::read(&json!({"metadata": {}})).unwrap_err().to_string().contains("no spec"));
        assert!(
            Pod::read(&json!({"spec": {"containers": 3}}))
                .unwrap_err()
                .to_string()
                .contains("not a valid pod")
        );
        assert!(Pod::read(&json!([])).is_err());
    }
}

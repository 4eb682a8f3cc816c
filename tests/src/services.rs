//! What kube-proxy does: from Services and ready pods to the addresses behind each ClusterIP, and the rules for them.
//!
//! Pure. The rules are the text of one atomic `nft -f` transaction for the node's own namespace, never a pod's.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::core::v1::{Pod, Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::world::{Name, World, is_ready};

/// One Service with what stands behind it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceView {
    pub name: Name,
    /// Empty for a headless Service.
    pub cluster_ips: Vec<IpAddr>,
    pub ports: Vec<PortView>,
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortView {
    /// Empty where the only port has no name.
    pub name: String,
    /// `tcp` or `udp`.
    pub protocol: &'static str,
    pub port: u16,
    /// Ready addresses of the Service's families, sorted.
    pub endpoints: Vec<SocketAddr>,
}

/// Every Service of the world, sorted by name.
pub fn views(world: &World) -> Vec<ServiceView> {
    world.services().iter().map(|service| view(service, world)).collect()
}

fn view(service: &Service, world: &World) -> ServiceView {
    let meta = &service.metadata;
    let name = Name::new(meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default());
    let spec = service.spec.clone().unwrap_or_default();
    let selector = spec.selector.unwrap_or_default();
    let unready_too = spec.publish_not_ready_addresses == Some(true);
    let families = families(spec.ip_family_policy.as_deref(), spec.ip_families.as_deref());
    let backing: Vec<&Pod> = world
        .pods
        .values()
        .filter(|pod| !selector.is_empty() && pod.metadata.namespace.as_deref() == Some(&name.namespace))
        .filter(|pod| selected(&selector, pod) && (unready_too || is_ready(pod)))
        .filter(|pod| pod.metadata.deletion_timestamp.is_none())
        .collect();
    let ports = spec.ports.unwrap_or_default();
    let ports = ports.iter().map(|port| {
        let addresses = backing.iter().filter_map(|pod| Some((pod, target_port(port, pod)?)));
        let mut endpoints: Vec<SocketAddr> = addresses
            .flat_map(|(pod, target)| pod_ips(pod).into_iter().map(move |ip| (ip, target).into()))
            .filter(|endpoint: &SocketAddr| families.contains(&endpoint.is_ipv6()))
            .collect();
        endpoints.sort();
        PortView {
            name: port.name.clone().unwrap_or_default(),
            protocol: if port.protocol.as_deref() == Some("UDP") { "udp" } else { "tcp" },
            port: u16::try_from(port.port).unwrap_or(0),
            endpoints,
        }
    });
    let cluster_ips = spec.cluster_ips.unwrap_or_default();
    ServiceView {
        ports: ports.collect(),
        cluster_ips: cluster_ips.iter().filter_map(|ip| ip.parse().ok()).collect(),
        name,
    }
}

/// Which families the endpoints are of, as whether each is IPv6: one, the first, unless the Service asks for both.
fn families(policy: Option<&str>, families: Option<&[String]>) -> Vec<bool> {
    if policy.is_some_and(|policy| policy != "SingleStack") {
        return vec![false, true];
    }
    vec![families.and_then(<[_]>::first).is_some_and(|family| family == "IPv6")]
}

fn selected(selector: &BTreeMap<String, String>, pod: &Pod) -> bool {
    let labels = pod.metadata.labels.as_ref();
    selector.iter().all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
}

/// The pod's addresses, the primary one first.
pub fn pod_ips(pod: &Pod) -> Vec<IpAddr> {
    let ips = pod.status.as_ref().and_then(|status| status.pod_ips.as_ref());
    ips.into_iter().flatten().filter_map(|ip| ip.ip.parse().ok()).collect()
}

fn target_port(port: &ServicePort, pod: &Pod) -> Option<u16> {
    match &port.target_port {
        None => u16::try_from(port.port).ok(),
        Some(IntOrString::Int(number)) => u16::try_from(*number).ok(),
        Some(IntOrString::String(name)) => named_port(pod, name).or_else(|| name.parse().ok()),
    }
}

/// A container port by its name; sidecars count, as in Kubernetes.
pub fn named_port(pod: &Pod, name: &str) -> Option<u16> {
    let spec = pod.spec.as_ref()?;
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let mut ports = containers.flat_map(|container| container.ports.iter().flatten());
    let found = ports.find(|port| port.name.as_deref() == Some(name))?;
    u16::try_from(found.container_port).ok()
}

/// The whole ruleset. Connections to a ClusterIP go to a random endpoint; without one they are refused at once.
pub fn ruleset(views: &[ServiceView]) -> String {
    let mut text = String::new();
    for (family, v6) in [("ip", false), ("ip6", true)] {
        let translations = translations(views, family, v6);
        let refusals = refusals(views, family, v6);
        let hairpins = hairpins(views, family, v6);
        let _ = write!(
            text,
            "add table {family} services\n\
             delete table {family} services\n\
             table {family} services {{\n\
             \x20 chain translate {{\n{translations}  }}\n\
             \x20 chain refuse {{\n{refusals}  }}\n\
             \x20 chain prerouting {{ type nat hook prerouting priority dstnat; jump translate; }}\n\
             \x20 chain output {{ type nat hook output priority -100; jump translate; }}\n\
             \x20 chain forward {{ type filter hook forward priority filter; jump refuse; }}\n\
             \x20 chain local {{ type filter hook output priority filter; jump refuse; }}\n\
             \x20 chain postrouting {{ type nat hook postrouting priority srcnat;\n{hairpins}  }}\n\
             }}\n"
        );
    }
    text
}

fn of_family(addresses: &[SocketAddr], v6: bool) -> Vec<SocketAddr> {
    addresses.iter().copied().filter(|address| address.is_ipv6() == v6).collect()
}

/// Every (ClusterIP, port) of the family with its endpoints.
fn each_port(views: &[ServiceView], v6: bool) -> impl Iterator<Item = (IpAddr, &PortView, Vec<SocketAddr>)> {
    views.iter().flat_map(move |service| {
        let ips = service.cluster_ips.iter().filter(move |ip| ip.is_ipv6() == v6);
        ips.flat_map(move |ip| {
            service.ports.iter().map(move |port| (*ip, port, of_family(&port.endpoints, v6)))
        })
    })
}

fn translations(views: &[ServiceView], family: &str, v6: bool) -> String {
    let mut rules = String::new();
    for (ip, PortView { protocol, port, .. }, endpoints) in each_port(views, v6) {
        if endpoints.is_empty() {
            continue;
        }
        let choices: Vec<String> = endpoints
            .iter()
            .enumerate()
            .map(|(index, endpoint)| format!("{index} : {} . {}", endpoint.ip(), endpoint.port()))
            .collect();
        let _ = writeln!(
            rules,
            "    {family} daddr {ip} {protocol} dport {port} dnat {family} to numgen random mod {} map {{ {} }}",
            endpoints.len(),
            choices.join(", ")
        );
    }
    rules
}

fn refusals(views: &[ServiceView], family: &str, v6: bool) -> String {
    let mut rules = String::new();
    for (ip, PortView { protocol, port, .. }, endpoints) in each_port(views, v6) {
        if endpoints.is_empty() {
            let _ = writeln!(rules, "    {family} daddr {ip} {protocol} dport {port} reject");
        }
    }
    rules
}

/// A pod that reaches itself through a Service must see another source address than its own.
fn hairpins(views: &[ServiceView], family: &str, v6: bool) -> String {
    let mut ips: Vec<IpAddr> = each_port(views, v6).flat_map(|(.., to)| to).map(|to| to.ip()).collect();
    ips.sort();
    ips.dedup();
    let mut rules = String::new();
    for ip in ips {
        let _ = writeln!(rules, "    {family} saddr {ip} {family} daddr {ip} masquerade");
    }
    rules
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_service_leads_to_the_ready_pods_that_it_selects() {
        let world = world();
        let web = view_of(&world, "web");
        assert_eq!(
            web.ports[0].endpoints,
            ["10.1.0.2:8080".parse().unwrap(), "[fd00::2]:8080".parse().unwrap()]
        );
    }

    #[test]
    fn unready_addresses_are_published_where_asked() {
        let endpoints = &view_of(&world(), "all").ports[0].endpoints;
        assert_eq!(endpoints[..], ["10.1.0.2:1".parse().unwrap(), "10.1.0.3:1".parse().unwrap()]);
    }

    /// A client that dials at once what has just started waits for seconds for an IPv6 neighbour that nobody asked for.
    #[test]
    fn a_service_has_the_families_that_it_asks_for() {
        let v6 = ["IPv6".to_owned()];
        for (policy, asked, expected) in [
            (None, None, &[false][..]),
            (Some("SingleStack"), Some(&v6[..]), &[true]),
            (Some("PreferDualStack"), None, &[false, true]),
        ] {
            assert_eq!(families(policy, asked), expected, "{policy:?} {asked:?}");
        }
    }

    #[test]
    fn rules_translate_where_there_are_endpoints_and_refuse_where_there_are_none() {
        let text = ruleset(&views(&world()));
        let translate =
            "ip daddr 10.96.0.1 tcp dport 80 dnat ip to numgen random mod 1 map { 0 : 10.1.0.2 . 8080 }";
        assert!(text.contains(translate), "{text}");
        assert!(text.contains("ip saddr 10.1.0.2 ip daddr 10.1.0.2 masquerade"), "{text}");
        assert!(text.contains("ip daddr 10.96.0.2 tcp dport 81 reject"), "{text}");
        assert!(!text.contains("10.1.0.3"), "an unready pod got traffic: {text}");
    }

    fn view_of(world: &World, name: &str) -> ServiceView {
        views(world).into_iter().find(|view| view.name.name == name).unwrap()
    }

    fn world() -> World {
        let mut world = World::default();
        for (name, ip, spec) in [
            (
                "web",
                "10.96.0.1",
                json!({"ports": [{"port": 80, "targetPort": "http"}], "selector": {"app": "web"},
                       "ipFamilyPolicy": "RequireDualStack"}),
            ),
            ("none", "10.96.0.2", json!({"ports": [{"port": 81}], "selector": {"app": "none"}})),
            (
                "all",
                "None",
                json!({"ports": [{"port": 80, "targetPort": 1}], "selector": {"app": "web"},
                       "publishNotReadyAddresses": true}),
            ),
        ] {
            let mut spec = spec;
            spec["clusterIPs"] = json!([ip]);
            world.put(json!({"kind": "Service", "metadata": {"name": name, "namespace": "n"}, "spec": spec}));
        }
        for (name, ips, ready) in
            [("a", vec!["10.1.0.2", "fd00::2"], "True"), ("b", vec!["10.1.0.3"], "False")]
        {
            let ips: Vec<_> = ips.into_iter().map(|ip| json!({"ip": ip})).collect();
            let pod: Pod = serde_json::from_value(json!({
                "metadata": {"name": name, "namespace": "n", "labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}]},
                "status": {"podIPs": ips, "conditions": [{"type": "Ready", "status": ready}]},
            }))
            .unwrap();
            world.pods.insert(Name::of(&pod), pod);
        }
        world
    }
}

//! What the operator decides once for every pod: the injector's configuration file (YAML), its defaults and its checks.
//!
//! [`InjectorConfig::default`] is the only place where a default stands. What pods and namespaces may change is in
//! `annotations.rs`. The file of trust anchors is read by the shell that read this one.

use std::path::PathBuf;

use serde::Deserialize;

use crate::values::{Ports, quantity};

/// The injector's configuration. Every field has a default but the trust anchors, without which no proxy can know its
/// peers. Unknown fields are refused: a misspelt setting must not pass for one that was set.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct InjectorConfig {
    /// Namespace of the control plane, which is also a part of every identity's name (contract 2.2).
    pub control_namespace: String,
    /// The last part of every identity's name.
    pub trust_domain: String,
    /// DNS suffix of Services.
    pub cluster_domain: String,
    /// Networks whose addresses the proxies look up, as CIDRs.
    pub cluster_networks: Vec<ipnet::IpNet>,
    /// Roots that proxies trust, as PEM text. This or `trust_anchors_file`.
    pub trust_anchors_pem: String,
    /// File that holds them; read again when it changes.
    pub trust_anchors_file: Option<PathBuf>,
    /// Where proxies find the control plane. Unset: the Services and identities of `control_namespace`.
    pub services: Services,
    /// The proxy's image.
    pub image: Image,
    /// The init container's image, if it is another than the proxy's.
    pub init_image: Option<Image>,
    /// Repositories that hold Remora's own proxy, compared by their last parts. Pods with an image of these get
    /// `REMORA_PROXY_*`; others are taken for Linkerd's proxy, which would not know them.
    pub remora_images: Vec<String>,
    /// The proxies' own ports.
    pub ports: ProxyPorts,
    /// Uid of the proxy. Its traffic is not redirected, so nothing else in the pod may have it.
    pub uid: u32,
    /// Gid of the proxy; unset, none is asked for.
    pub gid: Option<u32>,
    /// Ports never looked into, where neither pod nor namespace says otherwise.
    pub opaque_ports: Vec<u16>,
    /// Inbound ports that are not redirected, where nothing else is said.
    pub ignore_inbound_ports: Vec<u16>,
    /// Outbound ports that are not redirected, where nothing else is said.
    pub ignore_outbound_ports: Vec<u16>,
    /// Which iptables the init container calls: `nft`, `legacy` or `auto` (it looks which of them works).
    pub iptables_mode: IptablesMode,
    /// Listen and redirect on IPv4 only.
    #[serde(rename = "disableIPv6")]
    pub disable_ipv6: bool,
    /// What is allowed in where no policy selects a port (contract 3.4).
    pub default_inbound_policy: String,
    /// Who may be connected to in plaintext.
    pub default_outbound_policy: String,
    /// The proxies' log filter.
    pub log_level: String,
    /// `plain` or `json`.
    pub log_format: String,
    /// The proxy as an init container that stays (Kubernetes 1.29 and later), so that it starts first and stops last.
    pub native_sidecar: bool,
    /// Whether the application waits for the proxy to be ready.
    #[serde(rename = "await")]
    pub wait_for_proxy: bool,
    /// What the proxy asks of the node, by the pod's quality of service.
    pub resources: Resources,
}

/// Where the control plane is and who it must prove to be. An empty address or name is derived.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Services {
    /// The CA.
    pub identity: Service,
    /// Discovery.
    pub destination: Service,
    /// Policy.
    pub policy: Service,
}

/// One control plane service as proxies see it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Service {
    /// `host:port`; empty: the Service of that role in the control namespace.
    pub addr: String,
    /// The identity its certificate must have; empty: its ServiceAccount's.
    pub name: String,
}

/// A container image.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Image {
    /// Repository, without tag.
    pub name: String,
    /// Tag.
    pub version: String,
    /// `Always`, `IfNotPresent` or `Never`.
    #[serde(default = "if_not_present")]
    pub pull_policy: String,
}

fn if_not_present() -> String {
    "IfNotPresent".to_owned()
}

impl Image {
    /// `name:version`.
    pub fn reference(&self) -> String {
        format!("{}:{}", self.name, self.version)
    }
}

/// The ports a proxy takes in its pod (contract 1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ProxyPorts {
    /// Redirected inbound connections, and peers that dial the proxy itself.
    pub inbound: u16,
    /// Redirected outbound connections.
    pub outbound: u16,
    /// Probes and metrics.
    pub admin: u16,
    /// Reserved by Linkerd for tap.
    pub control: u16,
}

impl Default for ProxyPorts {
    fn default() -> Self {
        Self { inbound: 4143, outbound: 4140, admin: 4191, control: 4190 }
    }
}

/// Which iptables the init container calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum IptablesMode {
    /// `iptables-nft`.
    Nft,
    /// `iptables-legacy`.
    Legacy,
    /// Whichever works on the node.
    Auto,
}

/// Default resources by the pod's quality of service, so that injection never changes its class. A BestEffort pod gets
/// none.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Resources {
    /// Requests in a Burstable pod.
    pub burstable: Amounts,
    /// Requests and equal limits in a Guaranteed pod.
    pub guaranteed: Amounts,
}

/// Kubernetes quantities.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Amounts {
    /// CPU, for instance `20m`.
    pub cpu: String,
    /// Memory, for instance `20Mi`.
    pub memory: String,
}

impl Default for Resources {
    fn default() -> Self {
        let amounts = |cpu: &str, memory: &str| Amounts { cpu: cpu.to_owned(), memory: memory.to_owned() };
        // A CPU limit throttles, so a Guaranteed pod gets room; a Burstable one only reserves what an idle proxy needs.
        Self { burstable: amounts("20m", "20Mi"), guaranteed: amounts("250m", "128Mi") }
    }
}

impl Default for InjectorConfig {
    fn default() -> Self {
        let networks = ["10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16", "fd00::/8"];
        Self {
            control_namespace: "remora".to_owned(),
            trust_domain: "cluster.local".to_owned(),
            cluster_domain: "cluster.local".to_owned(),
            cluster_networks: networks.iter().filter_map(|network| network.parse().ok()).collect(),
            trust_anchors_pem: String::new(),
            trust_anchors_file: None,
            services: Services::default(),
            image: Image {
                name: "remora/proxy".to_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                pull_policy: if_not_present(),
            },
            init_image: None,
            remora_images: vec!["remora/proxy".to_owned()],
            ports: ProxyPorts::default(),
            uid: 2102,
            gid: None,
            opaque_ports: vec![25, 587, 3306, 4444, 5432, 6379, 9300, 11211],
            ignore_inbound_ports: vec![4567, 4568],
            ignore_outbound_ports: vec![4567, 4568],
            iptables_mode: IptablesMode::Auto,
            disable_ipv6: false,
            default_inbound_policy: "all-unauthenticated".to_owned(),
            default_outbound_policy: PLAINTEXT.to_owned(),
            log_level: "warn,remora=info,linkerd=info,hickory=error".to_owned(),
            log_format: "plain".to_owned(),
            native_sidecar: true,
            wait_for_proxy: true,
            resources: Resources::default(),
        }
    }
}

/// The values `default-inbound-policy` may have (contract 3.4).
pub const INBOUND_POLICIES: [&str; 6] = [
    "all-unauthenticated",
    "all-authenticated",
    "cluster-unauthenticated",
    "cluster-authenticated",
    "deny",
    "audit",
];

/// The values `outbound-default-policy` may have.
pub const OUTBOUND_POLICIES: [&str; 3] = [PLAINTEXT, "all-authenticated", "cluster-authenticated"];
/// The one of these that demands nothing.
pub const PLAINTEXT: &str = "all-unauthenticated";

/// The values `image-pull-policy` may have.
pub const PULL_POLICIES: [&str; 3] = ["Always", "IfNotPresent", "Never"];

/// Everything that is wrong with a configuration, at once.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the injector's configuration is wrong: {}", .0.join("; "))]
pub struct Mistakes(pub Vec<String>);

impl InjectorConfig {
    /// Reads and checks the file's text. Trust anchors named as a file are not looked at here.
    pub fn parse(yaml: &str) -> Result<Self, Mistakes> {
        let config: Self = match yaml.trim() {
            "" => Self::default(),
            text => serde_norway::from_str(text).map_err(|error| Mistakes(vec![error.to_string()]))?,
        };
        let mistakes = config.mistakes();
        if mistakes.is_empty() { Ok(config) } else { Err(Mistakes(mistakes)) }
    }

    /// What is wrong with it, one sentence each.
    pub fn mistakes(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut check = |fine: bool, mistake: String| {
            if !fine {
                found.push(mistake);
            }
        };
        for (field, name) in [
            ("controlNamespace", &self.control_namespace),
            ("trustDomain", &self.trust_domain),
            ("clusterDomain", &self.cluster_domain),
            ("image.name", &self.image.name),
            ("image.version", &self.image.version),
            ("logLevel", &self.log_level),
        ] {
            check(!name.trim().is_empty(), format!("{field} is empty"));
        }
        check(
            !self.cluster_networks.is_empty(),
            "clusterNetworks is empty: proxies would look nothing up".to_owned(),
        );
        let anchors = (self.trust_anchors_pem.trim().is_empty(), self.trust_anchors_file.is_none());
        check(anchors != (true, true), "one of trustAnchorsPem and trustAnchorsFile must be set".to_owned());
        check(anchors != (false, false), "trustAnchorsPem and trustAnchorsFile are both set".to_owned());
        check(
            anchors.0 || self.trust_anchors_pem.contains("BEGIN CERTIFICATE"),
            "trustAnchorsPem holds no PEM certificate".to_owned(),
        );
        let ports = [self.ports.inbound, self.ports.outbound, self.ports.admin, self.ports.control];
        let distinct: std::collections::BTreeSet<u16> = ports.into_iter().collect();
        check(!ports.contains(&0), "a port of the proxy is 0".to_owned());
        check(distinct.len() == ports.len(), "two of the proxy's ports are the same".to_owned());
        check(self.uid != 0, "uid is 0: root's traffic would not be redirected".to_owned());
        check(self.gid != Some(0), "gid is 0: root's traffic would not be redirected".to_owned());
        for (field, value, allowed) in [
            ("defaultInboundPolicy", &self.default_inbound_policy, &INBOUND_POLICIES[..]),
            ("defaultOutboundPolicy", &self.default_outbound_policy, &OUTBOUND_POLICIES[..]),
        ] {
            let known = allowed.contains(&value.as_str());
            check(known, format!("{field} {value:?} is none of {}", allowed.join(", ")));
        }
        check(
            ["plain", "json"].contains(&self.log_format.as_str()),
            format!("logFormat {:?} is neither plain nor json", self.log_format),
        );
        for (field, image) in [("image", Some(&self.image)), ("initImage", self.init_image.as_ref())] {
            let policy = image.map_or("Always", |image| image.pull_policy.as_str());
            check(
                PULL_POLICIES.contains(&policy),
                format!("{field}.pullPolicy {policy:?} is none of {}", PULL_POLICIES.join(", ")),
            );
        }
        for (class, amounts) in
            [("burstable", &self.resources.burstable), ("guaranteed", &self.resources.guaranteed)]
        {
            for (resource, amount) in [("cpu", &amounts.cpu), ("memory", &amounts.memory)] {
                if let Err(error) = quantity(amount) {
                    check(false, format!("resources.{class}.{resource}: {error}"));
                }
            }
        }
        for (field, ports) in [
            ("opaquePorts", &self.opaque_ports),
            ("ignoreInboundPorts", &self.ignore_inbound_ports),
            ("ignoreOutboundPorts", &self.ignore_outbound_ports),
        ] {
            check(!ports.contains(&0), format!("{field} holds port 0"));
        }
        found
    }

    /// `host:port` of a control plane service.
    pub fn addr(&self, service: Role) -> String {
        let (Service { addr, .. }, host, port) = match service {
            Role::Identity => (&self.services.identity, "remora-identity-headless", 8080),
            Role::Destination => (&self.services.destination, "remora-dst-headless", 8086),
            Role::Policy => (&self.services.policy, "remora-policy", 8090),
        };
        if addr.is_empty() {
            // The dot at the end spares the pod's DNS search path.
            format!("{host}.{}.svc.{}.:{port}", self.control_namespace, self.cluster_domain)
        } else {
            addr.clone()
        }
    }

    /// The identity that a control plane service must prove.
    pub fn peer_name(&self, service: Role) -> String {
        let (Service { name, .. }, account) = match service {
            Role::Identity => (&self.services.identity, "remora-identity"),
            Role::Destination => (&self.services.destination, "remora-destination"),
            Role::Policy => (&self.services.policy, "remora-destination"),
        };
        if name.is_empty() {
            let (ns, domain) = (&self.control_namespace, &self.trust_domain);
            format!("{account}.{ns}.serviceaccount.identity.{ns}.{domain}")
        } else {
            name.clone()
        }
    }

    /// Whether `repository` holds Remora's proxy: one of `remora_images`, in whatever registry.
    pub fn is_ours(&self, repository: &str) -> bool {
        self.remora_images.iter().any(|ours| {
            repository
                .strip_suffix(ours.as_str())
                .is_some_and(|before| before.is_empty() || before.ends_with('/'))
        })
    }

    /// The default opaque ports as a list.
    pub fn opaque(&self) -> Ports {
        Ports::from(self.opaque_ports.as_slice())
    }
}

/// A control plane service that proxies talk to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The CA.
    Identity,
    /// Discovery.
    Destination,
    /// Policy, served by destination's process.
    Policy,
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEM: &str = "trustAnchorsFile: /etc/remora/ca.crt\n";

    #[test]
    fn the_defaults_want_only_trust_anchors() {
        assert_eq!(
            InjectorConfig::default().mistakes(),
            ["one of trustAnchorsPem and trustAnchorsFile must be set"]
        );
        assert_eq!(InjectorConfig::parse(PEM).map(|config| config.uid), Ok(2102));
        assert_eq!(InjectorConfig::default().cluster_networks.len(), 5);
    }

    #[test]
    fn an_unknown_field_is_refused_by_name() {
        let error = InjectorConfig::parse(&format!("{PEM}proxyUid: 3\n")).unwrap_err().to_string();
        assert!(error.contains("proxyUid"), "{error}");
    }

    #[test]
    fn every_mistake_is_listed_at_once() {
        let yaml = "uid: 0\ngid: 0\nlogFormat: xml\ndefaultInboundPolicy: open\ndefaultOutboundPolicy: deny\ncontrolNamespace: ''\n\
                    clusterNetworks: []\nports: {inbound: 4140}\nignoreInboundPorts: [0]\n\
                    resources: {burstable: {cpu: lots, memory: 1Mi}}\n\
                    image: {name: a, version: b, pullPolicy: Sometimes}\n";
        let Mistakes(found) = InjectorConfig::parse(yaml).unwrap_err();
        for word in [
            "uid is 0",
            "gid is 0",
            "logFormat",
            "defaultInboundPolicy",
            "defaultOutboundPolicy",
            "controlNamespace",
            "clusterNetworks",
            "the same",
            "ignoreInboundPorts",
            "resources.burstable.cpu",
            "image.pullPolicy",
            "trustAnchorsPem",
        ] {
            assert!(found.iter().any(|mistake| mistake.contains(word)), "{word} is missing in {found:?}");
        }
        assert_eq!(found.len(), 12, "{found:?}");
    }

    #[test]
    fn services_are_found_by_the_control_namespace() {
        let config = InjectorConfig { control_namespace: "mesh".to_owned(), ..InjectorConfig::default() };
        assert_eq!(config.addr(Role::Identity), "remora-identity-headless.mesh.svc.cluster.local.:8080");
        assert_eq!(config.addr(Role::Destination), "remora-dst-headless.mesh.svc.cluster.local.:8086");
        assert_eq!(config.addr(Role::Policy), "remora-policy.mesh.svc.cluster.local.:8090");
        assert_eq!(
            config.peer_name(Role::Policy),
            "remora-destination.mesh.serviceaccount.identity.mesh.cluster.local"
        );
    }

    #[test]
    fn our_image_is_known_in_any_registry() {
        let config = InjectorConfig::default();
        for (repository, ours) in [
            ("remora/proxy", true),
            ("registry.example:5000/remora/proxy", true),
            ("notremora/proxy", false),
            ("cr.l5d.io/linkerd/proxy", false),
        ] {
            assert_eq!(config.is_ours(repository), ours, "{repository}");
        }
    }
}

//! Pure. Who may connect to a port of a pod, and what it speaks. Contract 3.4.
//!
//! Until Servers and policies are read, every port has its default.

use super::{Lens, Refusal, Settings};
use crate::resources::Name;
use remora_core::policy::DefaultPolicy;
use serde::Deserialize;
use std::collections::BTreeSet;

/// The policy of a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inbound {
    /// Who may connect.
    pub policy: DefaultPolicy,
    /// Are its bytes forwarded unread?
    pub opaque: bool,
    /// Paths that probes may get whatever the policy.
    pub probes: BTreeSet<String>,
}

/// Whose proxy asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload(pub Name);

impl Workload {
    /// Reads `{"ns":…,"pod":…}` or, from older proxies, `<ns>:<pod>`.
    pub fn parse(text: &str) -> Result<Self, Refusal> {
        #[derive(Deserialize)]
        struct Json {
            ns: String,
            pod: String,
        }
        let name = match serde_json::from_str::<Json>(text) {
            Ok(Json { ns, pod }) => Name::new(ns, pod),
            Err(_) => text.split_once(':').map_or_else(|| Name::new("", ""), |(ns, pod)| Name::new(ns, pod)),
        };
        let valid = |part: &str| {
            let allowed =
                |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
            (1..=253).contains(&part.len()) && part.bytes().all(allowed)
        };
        if valid(&name.namespace) && valid(&name.name) {
            return Ok(Self(name));
        }
        let shown: String = text.chars().take(300).collect();
        Err(Refusal::Invalid(format!(r#"workload {shown:?} is neither {{"ns":…,"pod":…}} nor <ns>:<pod>"#)))
    }
}

/// The policy of a port of the workload.
pub fn inbound(
    lens: &mut Lens<'_>,
    settings: &Settings,
    Workload(name): &Workload,
    port: u16,
) -> Result<Inbound, Refusal> {
    let pod = lens.pod(name).ok_or_else(|| Refusal::NotFound(format!("there is no pod {name}")))?;
    let inherited = lens.namespace(&name.namespace).and_then(|namespace| namespace.default_policy);
    let mut policy = pod.default_policy.or(inherited).unwrap_or(settings.default_inbound_policy);
    if pod.require_identity_ports.contains(port) {
        policy = authenticated(policy);
    }
    let opaque = lens.pod_port_is_opaque(settings, name, pod, port);
    let probes = pod.probes.get(&port).cloned().unwrap_or_default();
    Ok(Inbound { policy, opaque, probes })
}

/// The same policy for clients with an identity only. Whoever lists a port as requiring identity means it: there even
/// `audit` lets nobody pass without.
fn authenticated(policy: DefaultPolicy) -> DefaultPolicy {
    match policy {
        DefaultPolicy::AllUnauthenticated | DefaultPolicy::AllAuthenticated | DefaultPolicy::Audit => {
            DefaultPolicy::AllAuthenticated
        }
        DefaultPolicy::ClusterUnauthenticated | DefaultPolicy::ClusterAuthenticated => {
            DefaultPolicy::ClusterAuthenticated
        }
        DefaultPolicy::Deny => DefaultPolicy::Deny,
    }
}

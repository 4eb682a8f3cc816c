//! Pure. Who asks: which pods have the account, whether they have a proxy, who they are to a server and from where.

use crate::{answer, question::Question};
use remora_core::{
    identity::{Identity, workload},
    policy::{Authorization, ServerPolicy, routes},
};
use remora_destination::{
    index::{Index, Pod},
    resources::Name,
    view::{Context, Settings},
};
use std::{collections::BTreeSet, net::IpAddr};

/// Who asks.
#[derive(Debug)]
pub(crate) struct Asker {
    pub(crate) account: Name,
    /// A proxy takes its connections.
    pub(crate) meshed: bool,
    /// What its proxy proves.
    pub(crate) identity: Option<Identity>,
    /// From where; nobody knows if it is empty.
    pub(crate) origins: Vec<Origin>,
}

/// A pod, or an address, that it asks from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) pod: Option<Name>,
    pub(crate) ips: Vec<IpAddr>,
    node: Option<String>,
}

impl Asker {
    pub(crate) fn of(
        index: &Index,
        settings: &Settings,
        question: &Question,
        notes: &mut Vec<String>,
    ) -> Self {
        let account = question.from.clone();
        let pods: Vec<(&Name, &Pod)> = index
            .pods_in(&account.namespace)
            .filter(|(_, pod)| pod.service_account == account.name && !pod.finished)
            .map(|(name, pod)| (name, pod.as_ref()))
            .collect();
        let has_proxy = |pod: &Pod| {
            pod.mesh.as_ref().is_some_and(|mesh| mesh.control_namespace == settings.control_namespace)
        };
        let (with, without): (Vec<_>, Vec<_>) = pods.iter().partition(|(_, pod)| has_proxy(pod));
        let meshed = !question.unmeshed && (!with.is_empty() || pods.is_empty());
        let named = |pods: &[&(&Name, &Pod)]| {
            pods.iter().map(|(name, _)| name.to_string()).collect::<Vec<_>>().join(", ")
        };
        if question.unmeshed {
            // As it was asked.
        } else if pods.is_empty() {
            notes.push(format!("no pod here has ServiceAccount {account}: it is taken for one with a proxy"));
        } else if !meshed {
            notes.push(format!(
                "{} of ServiceAccount {account} without a proxy of this mesh: it has no identity",
                named(&without)
            ));
        } else if !without.is_empty() {
            notes.push(format!(
                "{} of the same ServiceAccount without a proxy of this mesh: --unmeshed asks for those",
                named(&without)
            ));
        }
        let of_pod = |(name, pod): &(&Name, &Pod)| Origin {
            pod: Some((*name).clone()),
            ips: pod.ips.clone(),
            node: pod.node.clone(),
        };
        let origins: Vec<Origin> = if let Some(ip) = question.from_ip {
            let found = pods.iter().find(|(_, pod)| pod.ips.contains(&ip)).map(of_pod);
            vec![found.unwrap_or_else(|| Origin { pod: None, ips: vec![ip], node: None })]
        } else {
            let asking = pods.iter().filter(|(_, pod)| question.unmeshed || has_proxy(pod) == meshed);
            asking.map(of_pod).filter(|origin| !origin.ips.is_empty()).collect()
        };
        if origins.is_empty() {
            notes.push("the client's address is not known: --from-ip says one".to_owned());
        }
        let identity =
            workload(&account.name, &account.namespace, &settings.control_namespace, &settings.trust_domain);
        Self { meshed, identity: identity.ok().filter(|_| meshed), account, origins }
    }

    /// What discovery knows of it, once for each node that it is on.
    pub(crate) fn contexts(&self) -> Vec<Context> {
        let nodes: BTreeSet<Option<&String>> =
            self.origins.iter().map(|origin| origin.node.as_ref()).collect();
        let nodes = if nodes.is_empty() { BTreeSet::from([None]) } else { nodes };
        let context = |node: Option<&String>| Context {
            namespace: Some(self.account.namespace.clone()),
            node: node.cloned(),
            pod: None,
            chooses_zones: true,
        };
        nodes.into_iter().map(context).collect()
    }

    /// The addresses that a server sees. Where nobody knows, those at which its policy may tell one from another: the first
    /// and the last of every network that it names, and their neighbours.
    pub(crate) fn addresses(&self, server: IpAddr, policy: &ServerPolicy) -> Vec<IpAddr> {
        if !self.origins.is_empty() {
            let family = |ip: &&IpAddr| ip.is_ipv4() == server.is_ipv4();
            let seen =
                |origin: &Origin| origin.ips.iter().find(family).or_else(|| origin.ips.first()).copied();
            return self.origins.iter().filter_map(seen).collect();
        }
        let all =
            policy.authorizations.iter().chain(routes(policy).iter().flat_map(|route| &route.authorizations));
        let mut found = BTreeSet::new();
        for network in all.flat_map(|one: &Authorization| &one.networks) {
            for net in [&network.net].into_iter().chain(&network.except) {
                found.extend(edges(*net).into_iter().filter(|ip| ip.is_ipv4() == server.is_ipv4()));
            }
        }
        // The loopback of a pod is nobody's address elsewhere.
        found.retain(|ip| !ip.is_loopback() && !ip.is_unspecified());
        if found.is_empty() {
            found.insert(server);
        }
        found.into_iter().collect()
    }

    pub(crate) fn shown(&self) -> answer::Client {
        let pods = self.origins.iter().filter_map(|origin| Some(origin.pod.as_ref()?.to_string()));
        answer::Client {
            account: self.account.to_string(),
            meshed: self.meshed,
            identity: self.identity.as_ref().map(|identity| identity.as_str().to_owned()),
            pods: pods.collect(),
            addresses: self.origins.iter().flat_map(|origin| origin.ips.iter().copied()).collect(),
        }
    }
}

/// The first and last address of a network, and those beside them.
fn edges(net: ipnet::IpNet) -> Vec<IpAddr> {
    match (net.network(), net.broadcast()) {
        (IpAddr::V4(first), IpAddr::V4(last)) => {
            let (first, last) = (u32::from(first), u32::from(last));
            let all = [Some(first), Some(last), first.checked_sub(1), last.checked_add(1)];
            all.into_iter().flatten().map(|bits| IpAddr::V4(bits.into())).collect()
        }
        (IpAddr::V6(first), IpAddr::V6(last)) => {
            let (first, last) = (u128::from(first), u128::from(last));
            let all = [Some(first), Some(last), first.checked_sub(1), last.checked_add(1)];
            all.into_iter().flatten().map(|bits| IpAddr::V6(bits.into())).collect()
        }
        _ => Vec::new(),
    }
}

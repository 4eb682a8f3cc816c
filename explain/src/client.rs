//! Pure. Who asks: which pods have the account, whether they have a proxy, who they are to a server and from where.

use crate::{answer, question::Question};
use remora_core::{
    identity::{Identity, workload},
    policy::{Authorization, OutboundDefault, ServerPolicy, routes},
};
use remora_destination::{
    index::{Index, OUTBOUND_DEFAULT_POLICY, Pod, Sends},
    resources::Name,
    view::{Context, Settings},
};
use std::{collections::BTreeSet, net::IpAddr};

/// Who asks.
#[derive(Clone, Debug)]
pub(crate) struct Asker {
    pub(crate) account: Name,
    /// A proxy takes its connections.
    pub(crate) meshed: bool,
    /// What its proxy proves.
    pub(crate) identity: Option<Identity>,
    /// What its proxy was told; of several the first one's.
    pub(crate) sends: Sends,
    /// From where; nobody knows if it is empty.
    pub(crate) origins: Vec<Origin>,
}

/// A pod, or an address, that it asks from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) pod: Option<Name>,
    pub(crate) ips: Vec<IpAddr>,
    node: Option<String>,
    /// What its proxy was told.
    sends: Sends,
}

impl Asker {
    pub(crate) fn of(
        index: &Index,
        settings: &Settings,
        question: &Question,
        notes: &mut Vec<String>,
    ) -> Self {
        let account = question.from.clone();
        let mut pods: Vec<(&Name, &Pod)> = index
            .pods_in(&account.namespace)
            .filter(|(_, pod)| pod.service_account == account.name && !pod.finished)
            .map(|(name, pod)| (name, pod.as_ref()))
            .collect();
        let at = |pod: &Pod| question.from_ip.is_some_and(|ip| pod.ips.contains(&ip));
        let found = pods.iter().any(|(_, pod)| at(pod));
        if found {
            pods.retain(|(_, pod)| at(pod));
        }
        let has_proxy = |pod: &Pod| {
            pod.mesh.as_ref().is_some_and(|mesh| mesh.control_namespace == settings.control_namespace)
        };
        let (with, without): (Vec<_>, Vec<_>) = pods.iter().partition(|(_, pod)| has_proxy(pod));
        let meshed = !question.unmeshed && (!with.is_empty() || pods.is_empty());
        let said = index.namespace(&account.namespace).and_then(|namespace| namespace.outbound_default);
        if !question.unmeshed {
            notes.extend(unlike(&account, &with, &without));
            notes.extend(with.iter().filter_map(|(name, pod)| outdated(name, pod, said)));
        }
        // Of an account without pods its namespace says what its proxy would be told.
        let plaintext = said.unwrap_or(question.default_outbound_policy);
        let anybody = Sends { plaintext, ..Sends::default() };
        let of_pod = |(name, pod): &(&Name, &Pod)| Origin {
            pod: Some((*name).clone()),
            ips: pod.ips.clone(),
            node: pod.node.clone(),
            sends: pod.mesh.as_ref().map_or(anybody, |mesh| mesh.sends),
        };
        let asking: Vec<&(&Name, &Pod)> =
            pods.iter().filter(|(_, pod)| question.unmeshed || has_proxy(pod) == meshed).collect();
        let origins: Vec<Origin> = match question.from_ip.filter(|_| !found) {
            Some(ip) => {
                let sends = asking.first().map_or(anybody, |pod| of_pod(pod).sends);
                vec![Origin { pod: None, ips: vec![ip], node: None, sends }]
            }
            None => asking.into_iter().map(of_pod).filter(|origin| !origin.ips.is_empty()).collect(),
        };
        if origins.is_empty() {
            notes.push("the client's address is not known: --from-ip says one".to_owned());
        }
        let identity =
            workload(&account.name, &account.namespace, &settings.control_namespace, &settings.trust_domain);
        let sends = origins.first().map_or(anybody, |origin| origin.sends);
        Self { meshed, identity: identity.ok().filter(|_| meshed), account, sends, origins }
    }

    /// Once for each thing that proxies of its pods were told.
    pub(crate) fn by_proxy(&self) -> Vec<Self> {
        let told: BTreeSet<Sends> = self.origins.iter().map(|origin| origin.sends).collect();
        if told.len() < 2 || !self.meshed {
            return vec![self.clone()];
        }
        let of = |sends: Sends| {
            let origins = self.origins.iter().filter(|origin| origin.sends == sends).cloned().collect();
            Self { sends, origins, ..self.clone() }
        };
        told.into_iter().map(of).collect()
    }

    /// What its proxy was told, if it has one.
    pub(crate) fn proxy(&self) -> Option<answer::Proxy> {
        self.meshed.then(|| answer::Proxy {
            pods: self.pods(),
            outbound_default: self.sends.plaintext.as_str(),
            ingress: self.sends.ingress,
        })
    }

    fn pods(&self) -> Vec<String> {
        self.origins.iter().filter_map(|origin| Some(origin.pod.as_ref()?.to_string())).collect()
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
        let all = policy
            .authorizations
            .iter()
            .chain(routes(policy).iter().flat_map(|route| route.authorizations.iter()));
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
        answer::Client {
            account: self.account.to_string(),
            meshed: self.meshed,
            identity: self.identity.as_ref().map(|identity| identity.as_str().to_owned()),
            pods: self.pods(),
            addresses: self.origins.iter().flat_map(|origin| origin.ips.iter().copied()).collect(),
        }
    }
}

/// What is to be said of pods that are unlike others of their account.
fn unlike(account: &Name, with: &[&(&Name, &Pod)], without: &[&(&Name, &Pod)]) -> Option<String> {
    let named = || without.iter().map(|(name, _)| name.to_string()).collect::<Vec<_>>().join(", ");
    match (with, without) {
        ([], []) => {
            Some(format!("no pod here has ServiceAccount {account}: it is taken for one with a proxy"))
        }
        ([], _) => Some(format!(
            "{} of ServiceAccount {account} without a proxy of this mesh: it has no identity",
            named()
        )),
        (_, []) => None,
        _ => Some(format!(
            "{} of the same ServiceAccount without a proxy of this mesh: --unmeshed asks for those",
            named()
        )),
    }
}

/// What is to be said of a proxy that was told something else than is asked for by now. `said`: by its namespace.
fn outdated(name: &Name, pod: &Pod, said: Option<OutboundDefault>) -> Option<String> {
    let told = pod.mesh.as_ref()?.sends.plaintext;
    let wanted = pod.outbound_default.or(said).filter(|wanted| *wanted != told)?;
    Some(format!(
        "pod {name} was started with {OUTBOUND_DEFAULT_POLICY} {}, and {} is asked for by now: that holds when it is \
         created again",
        told.as_str(),
        wanted.as_str()
    ))
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

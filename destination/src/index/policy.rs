//! Pure. Policy resources by what they are about: the Servers of a pod's ports, and what is said of each of those.

use super::{Changes, Index, Key, Pod, RouteId, in_namespace, swap};
use crate::resources::{
    Name, PolicyKind,
    policy::{
        AuthorizationPolicySpec, Clients, Policy, PolicySpec, PolicyTarget, RateLimitSpec,
        ServerAuthorizationSpec, ServerPort, ServerSelector, ServerSpec,
    },
};
use remora_core::matching::NetworkMatch;
use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// A Server, distilled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// What it says.
    pub spec: Arc<ServerSpec>,
    /// Its own labels, by which a ServerAuthorization may select it.
    pub labels: BTreeMap<String, String>,
    /// Seconds since 1970 at which it was created.
    pub created: Option<i64>,
}

/// A HTTPLocalRateLimitPolicy, distilled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// What it says.
    pub spec: Arc<RateLimitSpec>,
    /// Seconds since 1970 at which it was created.
    pub created: Option<i64>,
}

/// All of them.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Policies {
    servers: BTreeMap<Name, Arc<Server>>,
    server_authorizations: BTreeMap<Name, Arc<ServerAuthorizationSpec>>,
    of_targets: BTreeMap<Name, Arc<AuthorizationPolicySpec>>,
    mesh_tls: BTreeMap<Name, Arc<Clients>>,
    networks: BTreeMap<Name, Arc<Vec<NetworkMatch>>>,
    rate_limits: BTreeMap<Name, Arc<RateLimit>>,
}

impl Server {
    /// Is this port of this pod of its namespace one of its own?
    pub fn selects(&self, pod: &Pod, port: u16) -> bool {
        self.selects_pod(pod) && self.port_of(pod) == Some(port)
    }

    /// Is the pod, of its namespace, one of those whose port it may be?
    pub fn selects_pod(&self, pod: &Pod) -> bool {
        self.spec.pods.as_ref().is_some_and(|selector| selector.matches(&pod.labels))
    }

    /// The number of its port in a pod, if the pod has a port of that name.
    pub fn port_of(&self, pod: &Pod) -> Option<u16> {
        match &self.spec.port {
            ServerPort::Number(port) => Some(*port),
            ServerPort::Name(name) => pod.ports.get(name).copied(),
        }
    }
}

/// The oldest first, and those without a time last; then by name.
pub fn older(a: (&Name, Option<i64>), b: (&Name, Option<i64>)) -> Ordering {
    let key = |(name, created): (&Name, Option<i64>)| (created.is_none(), created, name.clone());
    key(a).cmp(&key(b))
}

impl ServerAuthorizationSpec {
    /// Is it about this Server of its namespace?
    pub fn is_about(&self, name: &str, server: &Server) -> bool {
        match &self.servers {
            ServerSelector::Name(wanted) => wanted == name,
            ServerSelector::Labels(selector) => selector.matches(&server.labels),
        }
    }
}

impl Index {
    /// A Server by its name.
    pub fn server(&self, name: &Name) -> Option<&Arc<Server>> {
        self.policies.servers.get(name)
    }

    /// All Servers.
    pub fn servers(&self) -> impl Iterator<Item = (&Name, &Arc<Server>)> {
        self.policies.servers.iter()
    }

    /// The Servers of a namespace.
    pub fn servers_in(&self, namespace: &str) -> impl Iterator<Item = (&Name, &Arc<Server>)> {
        in_namespace(&self.policies.servers, namespace)
    }

    /// The Server of a port of a pod: of several the oldest, then the first by name. Contract 3.4.
    pub fn server_of(&self, name: &Name, pod: &Pod, port: u16) -> Option<(&Name, &Arc<Server>)> {
        self.servers_in(&name.namespace)
            .filter(|(_, server)| server.selects(pod, port))
            .min_by(|(a, one), (b, other)| older((a, one.created), (b, other.created)))
    }

    /// The pods of a namespace.
    pub fn pods_in(&self, namespace: &str) -> impl Iterator<Item = (&Name, &Arc<Pod>)> {
        in_namespace(&self.pods, namespace)
    }

    /// The ServerAuthorizations of a namespace.
    pub fn server_authorizations(
        &self,
        namespace: &str,
    ) -> impl Iterator<Item = (&Name, &Arc<ServerAuthorizationSpec>)> {
        in_namespace(&self.policies.server_authorizations, namespace)
    }

    /// All ServerAuthorizations.
    pub fn all_server_authorizations(&self) -> impl Iterator<Item = (&Name, &Arc<ServerAuthorizationSpec>)> {
        self.policies.server_authorizations.iter()
    }

    /// The AuthorizationPolicies of a namespace.
    pub fn authorization_policies(
        &self,
        namespace: &str,
    ) -> impl Iterator<Item = (&Name, &Arc<AuthorizationPolicySpec>)> {
        in_namespace(&self.policies.of_targets, namespace)
    }

    /// All AuthorizationPolicies.
    pub fn all_authorization_policies(&self) -> impl Iterator<Item = (&Name, &Arc<AuthorizationPolicySpec>)> {
        self.policies.of_targets.iter()
    }

    /// Whom a MeshTLSAuthentication names.
    pub fn mesh_tls(&self, name: &Name) -> Option<&Arc<Clients>> {
        self.policies.mesh_tls.get(name)
    }

    /// All MeshTLSAuthentications.
    pub fn all_mesh_tls(&self) -> impl Iterator<Item = (&Name, &Arc<Clients>)> {
        self.policies.mesh_tls.iter()
    }

    /// The networks of a NetworkAuthentication.
    pub fn networks(&self, name: &Name) -> Option<&Arc<Vec<NetworkMatch>>> {
        self.policies.networks.get(name)
    }

    /// The names of all NetworkAuthentications.
    pub fn all_networks(&self) -> impl Iterator<Item = &Name> {
        self.policies.networks.keys()
    }

    /// The rate limits of a Server, the one that holds first: the oldest, then the first by name.
    pub fn rate_limits_of(&self, server: &Name) -> Vec<(&Name, &Arc<RateLimit>)> {
        let mut of: Vec<_> = in_namespace(&self.policies.rate_limits, &server.namespace)
            .filter(|(_, limit)| limit.spec.server == server.name)
            .collect();
        of.sort_by(|(a, one), (b, other)| older((a, one.created), (b, other.created)));
        of
    }

    /// All rate limits.
    pub fn rate_limits(&self) -> impl Iterator<Item = (&Name, &Arc<RateLimit>)> {
        self.policies.rate_limits.iter()
    }

    /// Is this ServiceAccount known, by an object of its own or by a pod that has it?
    pub fn knows_account(&self, account: &Name) -> bool {
        let has = |pod: &Arc<Pod>| pod.service_account == account.name;
        self.accounts.contains(account) || self.pods_in(&account.namespace).any(|(_, pod)| has(pod))
    }

    /// Is this namespace known, by an object of its own or by something that is in it?
    pub fn knows_namespace(&self, name: &str) -> bool {
        self.namespace(name).is_some()
            || self.pods_in(name).next().is_some()
            || self.accounts.iter().any(|account| account.namespace == name)
    }

    pub(super) fn put_account(&mut self, name: &Name, new: bool) -> bool {
        // No answer depends on it, so no key changes.
        if new { self.accounts.insert(name.clone()) } else { self.accounts.remove(name) }
    }

    pub(super) fn put_policy(
        &mut self,
        kind: PolicyKind,
        name: &Name,
        new: Option<&Policy>,
        changes: &mut Changes,
    ) -> bool {
        let created = |new: &Policy| new.metadata.creation_timestamp.as_ref().map(|time| time.0.as_second());
        let policies = &mut self.policies;
        match kind {
            PolicyKind::Server => {
                let new = new.and_then(|new| match &new.spec {
                    PolicySpec::Server(spec) => Some(Arc::new(Server {
                        spec: spec.clone(),
                        labels: new.metadata.labels.clone().unwrap_or_default(),
                        created: created(new),
                    })),
                    _ => None,
                });
                let Some((old, new)) = swap(&mut policies.servers, name, new) else { return false };
                self.server_changed(name, old.as_ref(), new.as_ref(), changes);
            }
            PolicyKind::ServerAuthorization => {
                let new = new.and_then(|new| match &new.spec {
                    PolicySpec::ServerAuthorization(spec) => Some(spec.clone()),
                    _ => None,
                });
                let Some(states) = swap(&mut policies.server_authorizations, name, new) else { return false };
                let states: Vec<_> = [states.0, states.1].into_iter().flatten().collect();
                let about = in_namespace(&policies.servers, &name.namespace)
                    .filter(|(of, server)| states.iter().any(|spec| spec.is_about(&of.name, server)));
                changes.keys.extend(about.map(|(of, _)| Key::Server(of.clone())));
            }
            PolicyKind::AuthorizationPolicy => {
                let new = new.and_then(|new| match &new.spec {
                    PolicySpec::AuthorizationPolicy(spec) => Some(spec.clone()),
                    _ => None,
                });
                let Some((old, new)) = swap(&mut policies.of_targets, name, new) else {
                    return false;
                };
                for spec in [old, new].iter().flatten() {
                    self.target_changed(&name.namespace, &spec.target, changes);
                }
            }
            PolicyKind::MeshTls => {
                let new = new.and_then(|new| match &new.spec {
                    PolicySpec::MeshTls(clients) => Some(clients.clone()),
                    _ => None,
                });
                if swap(&mut policies.mesh_tls, name, new).is_none() {
                    return false;
                }
                changes.keys.insert(Key::Authentication(kind, name.clone()));
            }
            PolicyKind::Network => {
                let new = new.and_then(|new| match &new.spec {
                    PolicySpec::Network(networks) => Some(networks.clone()),
                    _ => None,
                });
                if swap(&mut policies.networks, name, new).is_none() {
                    return false;
                }
                changes.keys.insert(Key::Authentication(kind, name.clone()));
            }
            PolicyKind::RateLimit => {
                let new = new.and_then(|new| match &new.spec {
                    PolicySpec::RateLimit(spec) => {
                        Some(Arc::new(RateLimit { spec: spec.clone(), created: created(new) }))
                    }
                    _ => None,
                });
                let Some(states) = swap(&mut policies.rate_limits, name, new) else { return false };
                let servers = [states.0, states.1].into_iter().flatten();
                let servers = servers.map(|limit| Name::new(&name.namespace, limit.spec.server.as_str()));
                changes.keys.extend(servers.map(Key::Server));
            }
        }
        true
    }

    /// Reports the pods whose ports a Server was or is about. What it says of the protocol, those who send to them have
    /// to know as well; the rest is the pods' own business.
    fn server_changed(
        &self,
        name: &Name,
        old: Option<&Arc<Server>>,
        new: Option<&Arc<Server>>,
        changes: &mut Changes,
    ) {
        let says = |server: Option<&Arc<Server>>| {
            let server = server?;
            Some((server.spec.pods.clone(), server.spec.port.clone(), server.spec.protocol, server.created))
        };
        let for_clients = says(old) != says(new);
        for (pod_name, pod) in in_namespace(&self.pods, &name.namespace) {
            if [old, new].into_iter().flatten().any(|server| server.selects_pod(pod)) {
                changes.keys.insert(Key::Pod(pod_name.clone()));
                if for_clients {
                    self.pod_changed(pod_name, [Some(pod), None], changes);
                }
            }
        }
    }

    /// Reports the Servers that an AuthorizationPolicy of this namespace was or is about.
    fn target_changed(&self, namespace: &str, target: &PolicyTarget, changes: &mut Changes) {
        match target {
            PolicyTarget::Server(server) => {
                changes.keys.insert(Key::Server(Name::new(namespace, server.as_str())));
            }
            PolicyTarget::Namespace(_) => {
                changes.keys.extend(self.servers_in(namespace).map(|(name, _)| Key::Server(name.clone())));
            }
            PolicyTarget::Route(kind, route) => {
                let id = RouteId { name: Name::new(namespace, route.as_str()), kind: *kind };
                let servers: BTreeSet<Name> =
                    self.routes.get(&id).into_iter().flat_map(|route| route.servers(namespace)).collect();
                changes.keys.extend(servers.into_iter().map(Key::Server));
            }
        }
    }

    pub(super) fn policy_names(&self, kind: PolicyKind) -> Vec<Name> {
        let policies = &self.policies;
        match kind {
            PolicyKind::Server => policies.servers.keys().cloned().collect(),
            PolicyKind::ServerAuthorization => policies.server_authorizations.keys().cloned().collect(),
            PolicyKind::AuthorizationPolicy => policies.of_targets.keys().cloned().collect(),
            PolicyKind::MeshTls => policies.mesh_tls.keys().cloned().collect(),
            PolicyKind::Network => policies.networks.keys().cloned().collect(),
            PolicyKind::RateLimit => policies.rate_limits.keys().cloned().collect(),
        }
    }
}

//! Pure. What this control plane knows of the cluster, distilled to what proxies may ask for, and which keys of it an
//! event changed.
//!
//! Knows nothing of requests or of the wire: `view` answers those from what is kept here.

mod accrual;
mod balancing;
mod namespaces;
mod pods;
mod policy;
mod profiles;
mod routes;
mod services;
mod slices;
mod traffic;

pub use accrual::Accrual;
pub use namespaces::Namespace;
pub use pods::{Mesh, Owner, Pod, ProxyPorts, Sends};
pub use policy::{RateLimit, Server, older};
pub use routes::{Route, RouteId};
pub use services::{Addressing, Service, ServicePort, TargetPort};
pub use slices::{Slice, SliceEndpoint, SlicePort};
pub use traffic::{GrpcConditions, HttpConditions, Problem, Retry, Timeouts, Traffic};

/// What holds where an annotation is not there.
pub(crate) mod defaults {
    pub(crate) use super::{
        accrual::{
            HONOR_RETRY_AFTER, JITTER, MAX_FAILURES, MAX_PENALTY, MIN_PENALTY, MIN_REQUESTS, THRESHOLD,
            WINDOW,
        },
        balancing::strategy_word,
        traffic::RETRIES,
    };
}

use crate::{
    resources::{Grant, Kind, Name, ObjectRef, PolicyKind, Resource, Spec},
    watch::Event,
};
use namespaces::{denial_header, outbound_of, policy_of, ports_of};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

/// The annotation of pods, Services and namespaces that lists ports to be forwarded without being read. Contract 6.1.
pub const OPAQUE_PORTS: &str = "config.linkerd.io/opaque-ports";
/// The annotation of pods and namespaces that names the policy of ports without a Server. Contract 3.4.
pub const DEFAULT_INBOUND_POLICY: &str = "config.linkerd.io/default-inbound-policy";
/// The annotation of pods and namespaces that says whom their proxies may reach in plaintext.
pub const OUTBOUND_DEFAULT_POLICY: &str = "config.linkerd.io/outbound-default-policy";

/// Something that a view may depend on. A view is computed anew when one of its keys is reported as changed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// A Service: itself, its EndpointSlices, and the pods behind it.
    Service(Name),
    /// A Service's own object, whatever is behind it.
    Declared(Name),
    /// The objects of all Services of a namespace.
    Services(String),
    /// The routes that want to be attached to a Service.
    Routes(Name),
    /// The ReferenceGrants of a namespace.
    Grants(String),
    /// A pod, its owner and its node, and the Servers of its ports.
    Pod(Name),
    /// Which Service or pod an address belongs to.
    Ip(IpAddr),
    /// A namespace's annotations.
    Namespace(String),
    /// A node's zone.
    Node(String),
    /// A ServiceProfile.
    Profile(Name),
    /// What is said of a Server: its routes, authorizations and rate limits.
    Server(Name),
    /// A MeshTLSAuthentication or NetworkAuthentication.
    Authentication(PolicyKind, Name),
}

/// What an event changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Keys whose views may differ. Empty if the event said nothing new.
    pub keys: BTreeSet<Key>,
    /// What is wrong with the objects that changed, in words for the person who wrote them.
    pub complaints: Vec<Complaint>,
}

/// A mistake in an object that can be read all the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaint {
    /// The object.
    pub object: ObjectRef,
    /// What is wrong, and what is done instead.
    pub reason: String,
}

/// The zone that a node says it is in, if it says one.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Zone(Option<String>);

/// The owner that a ReplicaSet or Job says it has, if it says one.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Owned(Option<Owner>);

/// The state of the cluster. All maps are ordered, so that every answer is the same however events came.
#[derive(Debug, Default, PartialEq)]
pub struct Index {
    namespaces: BTreeMap<Name, Namespace>,
    /// Zone by node.
    nodes: BTreeMap<Name, Zone>,
    /// Who owns a ReplicaSet or a Job.
    owners: BTreeMap<(Kind, Name), Owned>,
    pods: BTreeMap<Name, Arc<Pod>>,
    services: BTreeMap<Name, Arc<Service>>,
    slices: BTreeMap<Name, Arc<Slice>>,
    /// What ServiceProfiles say, by the namespace that they are in and the DNS name that they are about.
    profiles: BTreeMap<Name, Arc<Spec>>,
    routes: routes::Routes,
    grants: BTreeMap<Name, Grant>,
    policies: policy::Policies,
    accounts: BTreeSet<Name>,
    pods_by_ip: BTreeMap<IpAddr, BTreeSet<Name>>,
    services_by_ip: BTreeMap<IpAddr, BTreeSet<Name>>,
    slices_by_service: BTreeMap<Name, BTreeSet<Name>>,
    routes_by_service: BTreeMap<Name, BTreeSet<RouteId>>,
    routes_by_server: BTreeMap<Name, BTreeSet<RouteId>>,
}

impl Index {
    /// Takes an event in. Applying what is already known changes nothing and reports nothing; the order of events of
    /// different objects does not matter.
    pub fn apply(&mut self, event: Event) -> Changes {
        let mut changes = Changes::default();
        match event {
            Event::Apply(resource) => self.put(&resource.object_ref(), Some(&resource), &mut changes),
            Event::Delete(object) => self.put(&object, None, &mut changes),
            Event::Reset(kind, resources) => {
                // A watch that lists objects of another kind than it says is a defect of the watch: they are ignored.
                let kept: BTreeMap<_, _> = resources
                    .iter()
                    .filter(|resource| resource.kind() == kind)
                    .map(|resource| (resource.object_ref(), resource))
                    .collect();
                for name in self.names(kind) {
                    let object = ObjectRef { kind, name };
                    if !kept.contains_key(&object) {
                        self.put(&object, None, &mut changes);
                    }
                }
                for (object, resource) in kept {
                    self.put(&object, Some(resource), &mut changes);
                }
            }
        }
        changes
    }

    /// How many objects there are of a kind.
    pub fn count(&self, kind: Kind) -> usize {
        match kind {
            Kind::Namespace => self.namespaces.len(),
            Kind::Node => self.nodes.len(),
            Kind::Pod => self.pods.len(),
            Kind::Service => self.services.len(),
            Kind::EndpointSlice => self.slices.len(),
            Kind::ReplicaSet | Kind::Job => self.owners.keys().filter(|(of, _)| *of == kind).count(),
            Kind::ServiceProfile => self.profiles.len(),
            Kind::Route(kind) => self.routes.keys().filter(|id| id.kind == kind).count(),
            Kind::ReferenceGrant => self.grants.len(),
            Kind::ServiceAccount => self.accounts.len(),
            Kind::Policy(kind) => self.policy_names(kind).len(),
        }
    }

    /// What the namespace says, if it is known.
    pub fn namespace(&self, name: &str) -> Option<&Namespace> {
        self.namespaces.get(&Name::new("", name))
    }

    /// The zone of a node (`topology.kubernetes.io/zone`), if it is known.
    pub fn zone(&self, node: &str) -> Option<&str> {
        self.nodes.get(&Name::new("", node))?.0.as_deref()
    }

    /// A pod by its name.
    pub fn pod(&self, name: &Name) -> Option<&Pod> {
        self.pods.get(name).map(Arc::as_ref)
    }

    /// A pod by its name, with the name as it is kept here.
    pub fn pod_entry(&self, name: &Name) -> Option<(&Name, &Pod)> {
        self.pods.get_key_value(name).map(|(name, pod)| (name, pod.as_ref()))
    }

    /// A Service by its name.
    pub fn service(&self, name: &Name) -> Option<&Service> {
        self.services.get(name).map(Arc::as_ref)
    }

    /// The Service that has this cluster IP. Two with the same are a mistake: the oldest has it, then the first by name.
    pub fn service_at(&self, ip: IpAddr) -> Option<(&Name, &Service)> {
        let named = self.services_by_ip.get(&ip)?.iter();
        named
            .filter_map(|name| Some((name, self.service(name)?)))
            .min_by_key(|(name, service)| (service.created, *name))
    }

    /// The pod that has this address. Addresses are used again when a pod ends, so the newest has it. Pods on the
    /// host's network do not count: their address is the node's.
    pub fn pod_at(&self, ip: IpAddr) -> Option<(&Name, &Pod)> {
        let named = self.pods_by_ip.get(&ip)?.iter();
        named.filter_map(|name| Some((name, self.pod(name)?))).max_by_key(|(name, pod)| (pod.created, *name))
    }

    /// The EndpointSlices of a Service, by name.
    pub fn slices(&self, service: &Name) -> impl Iterator<Item = &Slice> {
        let names = self.slices_by_service.get(service).into_iter().flatten();
        names.filter_map(|name| self.slices.get(name).map(Arc::as_ref))
    }

    /// The pods that a Service's selector selects. A Service without a selector selects none.
    pub fn selected<'a>(&'a self, service: &'a Name) -> impl Iterator<Item = (&'a Name, &'a Pod)> {
        let selecting = self.service(service);
        in_namespace(&self.pods, &service.namespace)
            .filter(move |(_, pod)| selecting.is_some_and(|service| service.selects(&pod.labels)))
            .map(|(name, pod)| (name, pod.as_ref()))
    }

    /// The Services whose selector selects a pod of a namespace, by name.
    pub fn selecting<'a>(
        &'a self,
        namespace: &str,
        pod: &'a Pod,
    ) -> impl Iterator<Item = (&'a Name, &'a Service)> {
        in_namespace(&self.services, namespace)
            .filter(|(_, service)| service.selects(&pod.labels))
            .map(|(name, service)| (name, service.as_ref()))
    }

    fn names(&self, kind: Kind) -> Vec<Name> {
        match kind {
            Kind::Namespace => self.namespaces.keys().cloned().collect(),
            Kind::Node => self.nodes.keys().cloned().collect(),
            Kind::Pod => self.pods.keys().cloned().collect(),
            Kind::Service => self.services.keys().cloned().collect(),
            Kind::EndpointSlice => self.slices.keys().cloned().collect(),
            Kind::ReplicaSet | Kind::Job => {
                self.owners.keys().filter(|(of, _)| *of == kind).map(|(_, name)| name.clone()).collect()
            }
            Kind::ServiceProfile => self.profiles.keys().cloned().collect(),
            Kind::Route(kind) => self.route_names(kind),
            Kind::ReferenceGrant => self.grants.keys().cloned().collect(),
            Kind::ServiceAccount => self.accounts.iter().cloned().collect(),
            Kind::Policy(kind) => self.policy_names(kind),
        }
    }

    fn put(&mut self, object: &ObjectRef, resource: Option<&Resource>, changes: &mut Changes) {
        let mut reasons = Vec::new();
        let name = &object.name;
        let changed = match (object.kind, resource) {
            (Kind::Namespace, Some(Resource::Namespace(new))) => {
                let new = Namespace::read(new.metadata.annotations.as_ref(), &mut reasons);
                self.put_namespace(name, Some(new), changes)
            }
            (Kind::Namespace, _) => self.put_namespace(name, None, changes),
            (Kind::Node, Some(Resource::Node(new))) => {
                let labels = new.metadata.labels.as_ref();
                let zone = labels.and_then(|labels| labels.get("topology.kubernetes.io/zone").cloned());
                self.put_node(name, Some(Zone(zone)), changes)
            }
            (Kind::Node, _) => self.put_node(name, None, changes),
            (Kind::Pod, Some(Resource::Pod(new))) => {
                let new = Pod::read(new, &mut reasons);
                self.put_pod(name, Some(new), changes)
            }
            (Kind::Pod, _) => self.put_pod(name, None, changes),
            (Kind::Service, Some(Resource::Service(new))) => {
                let new = Service::read(new, &mut reasons);
                self.put_service(name, Some(new), changes)
            }
            (Kind::Service, _) => self.put_service(name, None, changes),
            (Kind::EndpointSlice, Some(Resource::EndpointSlice(new))) => {
                let new = Slice::read(new, &mut reasons);
                self.put_slice(name, Some(new), changes)
            }
            (Kind::EndpointSlice, _) => self.put_slice(name, None, changes),
            (Kind::ReplicaSet | Kind::Job, new) => {
                let new = new.map(|new| Owned(Owner::of(new.metadata())));
                self.put_owner(object.kind, name, new, changes)
            }
            (Kind::ServiceProfile, Some(Resource::ServiceProfile(new))) => {
                self.put_profile(name, Some(new.spec.clone()), changes)
            }
            (Kind::ServiceProfile, _) => self.put_profile(name, None, changes),
            (Kind::Route(kind), new) => {
                let new = match new {
                    Some(Resource::Route(new)) => Some(Route::read(new)),
                    _ => None,
                };
                self.put_route(&RouteId { name: name.clone(), kind }, new, changes)
            }
            (Kind::ReferenceGrant, Some(Resource::ReferenceGrant(new))) => {
                self.put_grant(name, Some(new.grant.clone()), changes)
            }
            (Kind::ReferenceGrant, _) => self.put_grant(name, None, changes),
            (Kind::ServiceAccount, new) => self.put_account(name, new.is_some()),
            (Kind::Policy(kind), new) => {
                let new = match new {
                    Some(Resource::Policy(new)) => Some(new.as_ref()),
                    _ => None,
                };
                self.put_policy(kind, name, new, changes)
            }
        };
        if changed {
            let complaints = reasons.into_iter().map(|reason| Complaint { object: object.clone(), reason });
            changes.complaints.extend(complaints);
        }
    }

    fn put_namespace(&mut self, name: &Name, new: Option<Namespace>, changes: &mut Changes) -> bool {
        let changed = swap(&mut self.namespaces, name, new).is_some();
        if changed {
            changes.keys.insert(Key::Namespace(name.name.clone()));
        }
        changed
    }

    fn put_service(&mut self, name: &Name, new: Option<Service>, changes: &mut Changes) -> bool {
        let Some((old, new)) = swap(&mut self.services, name, new.map(Arc::new)) else { return false };
        let (old, new) = (old.iter().flat_map(|old| old.ips()), new.iter().flat_map(|new| new.ips()));
        let all = Key::Services(name.namespace.clone());
        changes.keys.extend([Key::Service(name.clone()), Key::Declared(name.clone()), all]);
        changes.keys.extend(old.clone().chain(new.clone()).map(Key::Ip));
        relate(&mut self.services_by_ip, name, old, new);
        true
    }

    fn put_slice(&mut self, name: &Name, new: Option<Slice>, changes: &mut Changes) -> bool {
        let Some((old, new)) = swap(&mut self.slices, name, new.map(Arc::new)) else { return false };
        let service = |slice: &Arc<Slice>| Some(Name::new(&name.namespace, slice.service.as_ref()?));
        let (old, new) = (old.as_ref().and_then(service), new.as_ref().and_then(service));
        changes.keys.extend(old.clone().into_iter().chain(new.clone()).map(Key::Service));
        relate(&mut self.slices_by_service, name, old, new);
        true
    }
}

/// Puts or removes an entry; `None` if that changed nothing, else what was there and what is there now.
fn swap<K: Ord + Clone, T: PartialEq + Clone>(
    map: &mut BTreeMap<K, T>,
    key: &K,
    new: Option<T>,
) -> Option<(Option<T>, Option<T>)> {
    if map.get(key) == new.as_ref() {
        return None;
    }
    let old = match new.clone() {
        Some(new) => map.insert(key.clone(), new),
        None => map.remove(key),
    };
    Some((old, new))
}

/// Moves `name` from the sets of `old` to the sets of `new`. No set is left empty.
fn relate<K: Ord, N: Ord + Clone>(
    sets: &mut BTreeMap<K, BTreeSet<N>>,
    name: &N,
    old: impl IntoIterator<Item = K>,
    new: impl IntoIterator<Item = K>,
) {
    for key in old {
        if let Some(set) = sets.get_mut(&key) {
            set.remove(name);
            if set.is_empty() {
                sets.remove(&key);
            }
        }
    }
    for key in new {
        sets.entry(key).or_default().insert(name.clone());
    }
}

fn in_namespace<'a, T>(
    map: &'a BTreeMap<Name, T>,
    namespace: &str,
) -> impl Iterator<Item = (&'a Name, &'a T)> {
    let namespace = namespace.to_owned();
    map.range(Name::new(namespace.clone(), "")..).take_while(move |(name, _)| name.namespace == namespace)
}

#[cfg(test)]
mod tests;

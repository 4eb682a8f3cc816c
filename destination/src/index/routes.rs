//! Pure. Routes by the Services that they are about, and the grants by which they may refer to other namespaces.

use super::{Changes, Index, Key, Traffic, relate, swap, traffic};
use crate::resources::{Grant, Name, RouteKind, routes as resource, routes::RouteSpec};
use std::{collections::BTreeMap, fmt, sync::Arc};

/// What tells one route from another. In this order, of two routes of the same age the first one comes first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteId {
    /// Namespace and name.
    pub name: Name,
    /// Kind.
    pub kind: RouteKind,
}

/// A route, distilled.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// What it says.
    pub spec: Arc<RouteSpec>,
    /// Seconds since 1970 at which it was created.
    pub created: Option<i64>,
    /// What its annotations say.
    pub traffic: Traffic,
    /// Annotations that cannot be applied, and why.
    pub problems: Vec<traffic::Problem>,
}

impl Route {
    /// Distils a route.
    pub(super) fn read(route: &resource::Route) -> Self {
        let mut problems = Vec::new();
        let traffic = Traffic::read(route.metadata.annotations.as_ref(), &mut problems);
        let created = route.metadata.creation_timestamp.as_ref().map(|time| time.0.as_second());
        Self { spec: route.spec.clone(), created, traffic, problems }
    }

    /// The Services that it wants to be attached to.
    fn services(&self, namespace: &str) -> impl Iterator<Item = Name> {
        self.spec.parents.iter().filter_map(move |parent| parent.service(namespace))
    }

    /// The Servers that it wants to be attached to. Those of other namespaces are not to be had.
    pub(super) fn servers(&self, namespace: &str) -> impl Iterator<Item = Name> {
        let named = self.spec.parents.iter().filter_map(move |parent| parent.server(namespace));
        named.filter(move |server| server.namespace == namespace)
    }
}

impl Index {
    /// The routes that want to be attached to a Service.
    pub fn routes_of(&self, service: &Name) -> impl Iterator<Item = (&RouteId, &Arc<Route>)> {
        let ids = self.routes_by_service.get(service).into_iter().flatten();
        ids.filter_map(|id| self.routes.get_key_value(id))
    }

    /// The routes that want to be attached to a Server.
    pub fn routes_of_server(&self, server: &Name) -> impl Iterator<Item = (&RouteId, &Arc<Route>)> {
        let ids = self.routes_by_server.get(server).into_iter().flatten();
        ids.filter_map(|id| self.routes.get_key_value(id))
    }

    /// A route.
    pub fn route(&self, id: &RouteId) -> Option<&Arc<Route>> {
        self.routes.get(id)
    }

    /// All routes.
    pub fn routes(&self) -> impl Iterator<Item = (&RouteId, &Arc<Route>)> {
        self.routes.iter()
    }

    /// The grants of a namespace.
    pub fn grants(&self, namespace: &str) -> impl Iterator<Item = &Grant> {
        super::in_namespace(&self.grants, namespace).map(|(_, grant)| grant)
    }

    pub(super) fn put_route(&mut self, id: &RouteId, new: Option<Route>, changes: &mut Changes) -> bool {
        let Some((old, new)) = swap(&mut self.routes, id, new.map(Arc::new)) else { return false };
        let services = |route: &Option<Arc<Route>>| -> Vec<Name> {
            route.iter().flat_map(|route| route.services(&id.name.namespace)).collect()
        };
        let servers = |route: &Option<Arc<Route>>| -> Vec<Name> {
            route.iter().flat_map(|route| route.servers(&id.name.namespace)).collect()
        };
        let (before, after) = (servers(&old), servers(&new));
        changes.keys.extend(before.iter().chain(&after).cloned().map(Key::Server));
        relate(&mut self.routes_by_server, id, before, after);
        let (old, new) = (services(&old), services(&new));
        changes.keys.extend(old.iter().chain(&new).cloned().map(Key::Routes));
        relate(&mut self.routes_by_service, id, old, new);
        true
    }

    pub(super) fn put_grant(&mut self, name: &Name, new: Option<Grant>, changes: &mut Changes) -> bool {
        let changed = swap(&mut self.grants, name, new).is_some();
        if changed {
            changes.keys.insert(Key::Grants(name.namespace.clone()));
        }
        changed
    }

    pub(super) fn route_names(&self, kind: RouteKind) -> Vec<Name> {
        self.routes.keys().filter(|id| id.kind == kind).map(|id| id.name.clone()).collect()
    }
}

/// Routes by what tells them apart.
pub(super) type Routes = BTreeMap<RouteId, Arc<Route>>;

impl fmt::Display for RouteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.as_str(), self.name)
    }
}

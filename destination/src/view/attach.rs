//! Pure. Which routes hold at a port of a Service for the clients of a namespace, in which order, and why others do not.
//! Contract 3.3; Gateway API's GAMMA for producers and consumers.

use super::{Family, Lens, PortProtocol};
use crate::{
    index::{Route, RouteId, ServicePort},
    resources::{Name, routes::ParentRef},
};
#[cfg(planted)]
use remora_core::planted;
use std::sync::Arc;

/// Most routes of a port. A proxy compares each request with all of them.
pub(super) const MAX_ROUTES: usize = 2048;
/// Most regular expressions of a port's routes. Proxies compile twice as many of one message at most, and have the
/// routes of a port twice where they have to look for the protocol.
pub(super) const MAX_PATTERNS: usize = 512;

/// Most bytes of a port's routes. Proxies read messages of 4 MiB, in which a port's routes may be twice.
pub(super) const MAX_BYTES: usize = 3 << 19;

/// A route with what tells it from others.
pub(super) type Entry<'a> = (&'a RouteId, &'a Arc<Route>);

/// The routes of a port.
#[derive(Debug, Default)]
pub(super) struct Attached<'a> {
    /// Those that hold, all of one family, in order of precedence: of two matches that are equally good, the one of the
    /// earlier route wins.
    pub(super) holds: Vec<Entry<'a>>,
    /// Those that do not, and why.
    pub(super) lost: Vec<(&'a RouteId, Loss)>,
}

/// Why a route does not hold at a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Loss {
    /// There is a route of a kind that comes first.
    Kind(RouteId),
    /// There is an older one, and there can be only one.
    Older(RouteId),
    /// The port's protocol is another.
    Protocol(PortProtocol),
    /// There are too many of them, or of their regular expressions, or they are too long.
    TooMany,
}

/// The routes of a port for clients in a namespace; without a namespace those that hold for everybody.
pub(super) fn attached<'a>(
    lens: &mut Lens<'a>,
    service: &Name,
    port: &ServicePort,
    protocol: PortProtocol,
    client: Option<&str>,
) -> Attached<'a> {
    let named = |(id, route): &Entry<'a>| {
        let parents = &route.spec.parents;
        parents.iter().any(|parent| names(parent, &id.name.namespace, service, port))
    };
    let all: Vec<Entry<'a>> = lens.routes_of(service).filter(named).collect();
    let of = |namespace: &str| -> Vec<Entry<'a>> {
        all.iter().copied().filter(|(id, _)| id.name.namespace == namespace).collect()
    };
    // What the client's own namespace says is instead of what the Service's namespace says, never beside it.
    let mut routes = client.map(of).unwrap_or_default();
    #[cfg(planted)]
    if planted::makes(planted::Mistake::ConsumersAddToProducers) && client != Some(&service.namespace) {
        routes.extend(of(&service.namespace));
        return ordered(routes, protocol);
    }
    if routes.is_empty() {
        routes = of(&service.namespace);
    }
    ordered(routes, protocol)
}

/// Is this port of this Service what a parent reference of a route names?
pub(super) fn names(parent: &ParentRef, namespace: &str, service: &Name, port: &ServicePort) -> bool {
    parent.service(namespace).as_ref() == Some(service)
        && parent.port.is_none_or(|number| number == port.port)
        && parent.section.as_ref().is_none_or(|name| *name == port.name)
}

fn ordered(mut routes: Vec<Entry<'_>>, protocol: PortProtocol) -> Attached<'_> {
    // The oldest first; one without a time is younger than all. Then by namespace and name.
    routes.sort_by_key(|(id, route)| (route.created.is_none(), route.created, *id));
    let mut attached = Attached::default();
    let fits = |family: Family| protocol.families().contains(&family);
    let first = routes
        .iter()
        .filter(|(id, _)| fits(Family::of(id.kind)))
        // The first of the best family: `min_by_key` keeps the earlier of equals.
        .min_by_key(|(id, _)| Family::of(id.kind))
        .copied();
    let (mut patterns, mut bytes) = (0, 0);
    for (id, route) in routes {
        let family = Family::of(id.kind);
        let loss = match first {
            _ if !fits(family) => Some(Loss::Protocol(protocol)),
            Some((best, _)) if Family::of(best.kind) != family => Some(Loss::Kind(best.clone())),
            // Bytes have nothing by which a second route could be chosen.
            Some((best, _)) if family == Family::Tcp && best != id => Some(Loss::Older(best.clone())),
            _ => {
                patterns += route.spec.patterns;
                bytes += route.spec.size;
                let many = attached.holds.len() >= MAX_ROUTES || patterns > MAX_PATTERNS || bytes > MAX_BYTES;
                many.then_some(Loss::TooMany)
            }
        };
        match loss {
            None => attached.holds.push((id, route)),
            Some(loss) => attached.lost.push((id, loss)),
        }
    }
    attached
}

impl PortProtocol {
    /// The families of routes that can hold on a port of this protocol.
    fn families(self) -> &'static [Family] {
        match self {
            Self::Detect => &[Family::Grpc, Family::Http, Family::Tls, Family::Tcp],
            Self::Http1 => &[Family::Http],
            Self::Http2 => &[Family::Grpc, Family::Http],
            Self::Opaque => &[Family::Tcp],
        }
    }
}

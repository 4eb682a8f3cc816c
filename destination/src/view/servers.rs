//! Pure. A Server as it holds for every pod that it is about: its routes and what becomes of their rules, whom it and they
//! admit, and how often it may be asked.

use super::{
    Admission, HeldRateLimit, Lens, Settings,
    admit::{self, Authority, Book},
    attach::{Entry, MAX_BYTES, MAX_PATTERNS, MAX_ROUTES},
    carried::{Effect, unsupported_by_servers},
};
use crate::{
    index::{RateLimit, RouteId, Server, older},
    resources::{
        Name, RouteKind,
        policy::ServerProtocol,
        routes::{ParentRef, RouteSpec},
    },
};
use std::sync::Arc;

/// A route that holds at a Server.
#[derive(Clone, Debug, PartialEq)]
pub struct HeldInbound {
    /// Its kind, namespace and name.
    pub id: RouteId,
    /// What it says.
    pub spec: Arc<RouteSpec>,
    /// For each of its rules, why everything that it matches fails, if it does.
    pub failures: Vec<Option<String>>,
    /// Who may use it besides those who may use the Server, tried before those.
    pub authorizations: Vec<Admission>,
}

/// A Server as it holds.
#[derive(Debug)]
pub(super) struct Served {
    pub(super) authorizations: Vec<Admission>,
    pub(super) routes: Vec<HeldInbound>,
    pub(super) rate_limit: Option<HeldRateLimit>,
    /// What would admit more than a message can hold.
    pub(super) left_out: Vec<Authority>,
}

/// Why a route does not hold at a Server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Apart {
    /// The Server's protocol has no routes of this kind.
    Protocol(ServerProtocol),
    /// There are too many of them, or of their regular expressions, or they are too long.
    TooMany,
}

/// A Server as it holds.
pub(super) fn served<'a>(
    lens: &mut Lens<'a>,
    settings: &Settings,
    (name, server): (&'a Name, &'a Server),
) -> Served {
    let mut book = Book::new();
    let authorizations = admit::by_server(lens, settings, (name, server), &mut book);
    let (entries, _) = attached(lens, name, server.spec.protocol);
    let hold = |(id, route): Entry<'a>| {
        let problems = unsupported_by_servers(route);
        let failure = |at: usize| {
            let problem = problems.iter().find(|problem| problem.effect == Effect::Rule(at))?;
            Some(format!("{id}: {}: {}", problem.path, problem.reason))
        };
        HeldInbound {
            id: id.clone(),
            spec: route.spec.clone(),
            failures: (0..route.spec.rules.len()).map(failure).collect(),
            authorizations: admit::by_route(lens, settings, id, &mut book),
        }
    };
    let routes = entries.into_iter().map(hold).collect();
    let rate_limit = lens.rate_limits_of(name).into_iter().next();
    let rate_limit = rate_limit.filter(|_| has_rate_limits(server.spec.protocol));
    let rate_limit = rate_limit.map(|(name, limit)| held_limit(settings, name, limit));
    Served { authorizations, routes, rate_limit, left_out: book.left_out }
}

/// Does this parent reference of a route of the Server's namespace name all that there is to a Server: the Server itself?
pub(super) fn names_server(parent: &ParentRef) -> bool {
    parent.port.is_none() && parent.section.is_none()
}

/// Can Linkerd's API say that requests of this protocol are limited?
pub(super) fn has_rate_limits(protocol: ServerProtocol) -> bool {
    matches!(protocol, ServerProtocol::Detect | ServerProtocol::Http1 | ServerProtocol::Http2)
}

/// Routes that want to hold and do not.
pub(super) type Lost<'a> = Vec<(&'a RouteId, Apart)>;

/// The routes of a Server, the oldest first, then by name.
pub(super) fn attached<'a>(
    lens: &mut Lens<'a>,
    server: &Name,
    protocol: ServerProtocol,
) -> (Vec<Entry<'a>>, Lost<'a>) {
    let namespace = &server.namespace;
    let names = |(_, route): &Entry<'a>| {
        let mut parents = route.spec.parents.iter();
        parents.any(|parent| parent.server(namespace).as_ref() == Some(server) && names_server(parent))
    };
    let mut routes: Vec<Entry<'a>> = lens.routes_of_server(server).filter(names).collect();
    routes.sort_by(|(a, one), (b, other)| {
        older((&a.name, one.created), (&b.name, other.created)).then_with(|| a.cmp(b))
    });
    let (mut hold, mut lost) = (Vec::new(), Vec::new());
    let (mut patterns, mut bytes) = (0, 0);
    for (id, route) in routes {
        if !has_routes(protocol, id.kind) {
            lost.push((id, Apart::Protocol(protocol)));
            continue;
        }
        patterns += route.spec.patterns;
        bytes += route.spec.size;
        if hold.len() >= MAX_ROUTES || patterns > MAX_PATTERNS || bytes > MAX_BYTES {
            lost.push((id, Apart::TooMany));
        } else {
            hold.push((id, route));
        }
    }
    (hold, lost)
}

fn has_routes(protocol: ServerProtocol, kind: RouteKind) -> bool {
    match protocol {
        ServerProtocol::Detect | ServerProtocol::Http1 | ServerProtocol::Http2 => {
            matches!(kind, RouteKind::Http | RouteKind::LinkerdHttp)
        }
        ServerProtocol::Grpc => kind == RouteKind::Grpc,
        ServerProtocol::Opaque | ServerProtocol::Tls => false,
    }
}

fn held_limit(settings: &Settings, name: &Name, limit: &RateLimit) -> HeldRateLimit {
    let overrides = limit.spec.overrides.iter().map(|one| {
        let clients = one.clients.iter();
        let identities = clients.filter_map(|client| admit::identity_of(settings, &name.namespace, client));
        (one.limit, identities.collect())
    });
    HeldRateLimit {
        name: name.clone(),
        total: limit.spec.total,
        identity: limit.spec.identity,
        overrides: overrides.collect(),
    }
}

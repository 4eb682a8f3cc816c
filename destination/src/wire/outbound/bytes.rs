//! Pure. TLSRoutes and TCPRoutes on the wire, and what becomes of connections that no route speaks of.

use super::parts::{self, Sends, Ways};
use crate::{resources::routes::Hostname, view::HeldRoute};
use linkerd2_proxy_api::{meta, opaque_route::Invalid, outbound as api, tls_route as common};

/// One backend for every connection.
pub(super) fn everything(metadata: meta::Metadata, backend: api::Backend) -> api::OpaqueRoute {
    use api::opaque_route::{RouteBackend, Rule};
    let backend = RouteBackend { backend: Some(backend), filters: Vec::new() };
    let rule = Rule { backends: Some(opaque_first(backend)), filters: Vec::new() };
    api::OpaqueRoute { metadata: Some(metadata), rules: vec![rule] }
}

/// Every connection is refused.
pub(super) fn refusing(metadata: meta::Metadata, filter: api::opaque_route::Filter) -> api::OpaqueRoute {
    let rule = api::opaque_route::Rule { backends: Some(opaque_empty()), filters: vec![filter] };
    api::OpaqueRoute { metadata: Some(metadata), rules: vec![rule] }
}

fn opaque_empty() -> api::opaque_route::Distribution {
    use api::opaque_route::{Distribution, distribution};
    Distribution { kind: Some(distribution::Kind::Empty(distribution::Empty {})) }
}

fn opaque_first(backend: api::opaque_route::RouteBackend) -> api::opaque_route::Distribution {
    use api::opaque_route::{Distribution, distribution};
    let first = distribution::FirstAvailable { backends: vec![backend] };
    Distribution { kind: Some(distribution::Kind::FirstAvailable(first)) }
}

/// The four kinds of route have four message types for the same distribution; these two have the same filters as well.
macro_rules! rules {
    ($name:ident, $route:ident) => {
        /// The first rule: connections have nothing by which another could be chosen.
        fn $name(route: &HeldRoute, ways: &Ways<'_>) -> Vec<api::$route::Rule> {
            use api::$route::{
                Distribution, Filter, RouteBackend, Rule, WeightedRouteBackend, distribution, filter,
            };
            let refusal = |message: String| Filter { kind: Some(filter::Kind::Invalid(Invalid { message })) };
            let refused = |why: String| Rule {
                backends: Some(Distribution {
                    kind: Some(distribution::Kind::Empty(distribution::Empty {})),
                }),
                filters: vec![refusal(why)],
            };
            let Some(held) = route.rules.first() else { return Vec::new() };
            let kind = match ways.of(held) {
                Sends::Nowhere(why) => return vec![refused(why)],
                Sends::Itself => {
                    let backend = RouteBackend { backend: Some(ways.itself.clone()), filters: Vec::new() };
                    let first = distribution::FirstAvailable { backends: vec![backend] };
                    distribution::Kind::FirstAvailable(first)
                }
                Sends::Shares(shares) => {
                    // If nothing can be reached, the rule itself says so: that is simpler to obey.
                    let reachable = shares.iter().any(|(_, target, _)| target.is_ok());
                    let why = shares.iter().find_map(|(_, target, _)| target.as_ref().err());
                    if let (false, Some(why)) = (reachable, why) {
                        return vec![refused(why.clone())];
                    }
                    let weighted = shares.into_iter().map(|(_, target, weight)| {
                        let (backend, filters) = match target {
                            Ok(backend) => (backend, Vec::new()),
                            Err(why) => (parts::nowhere(), vec![refusal(why)]),
                        };
                        let backend = RouteBackend { backend: Some(backend), filters };
                        WeightedRouteBackend { backend: Some(backend), weight }
                    });
                    let random = distribution::RandomAvailable { backends: weighted.collect() };
                    distribution::Kind::RandomAvailable(random)
                }
            };
            vec![Rule { backends: Some(Distribution { kind: Some(kind) }), filters: Vec::new() }]
        }
    };
}

rules!(opaque_rules, opaque_route);
rules!(tls_rules, tls_route);

pub(super) fn opaque(route: &HeldRoute, ways: &Ways<'_>) -> api::OpaqueRoute {
    api::OpaqueRoute { metadata: Some(parts::route_ref(&route.id)), rules: opaque_rules(route, ways) }
}

pub(super) fn tls(route: &HeldRoute, ways: &Ways<'_>) -> api::TlsRoute {
    api::TlsRoute {
        metadata: Some(parts::route_ref(&route.id)),
        snis: route.spec.hostnames.iter().map(sni).collect(),
        rules: tls_rules(route, ways),
    }
}

fn sni(hostname: &Hostname) -> common::SniMatch {
    use common::sni_match::{Match, Suffix};
    let kind = match hostname {
        Hostname::Exact(name) => Match::Exact(name.clone()),
        Hostname::Suffix(suffix) => Match::Suffix(Suffix { reverse_labels: parts::reversed(suffix) }),
    };
    common::SniMatch { r#match: Some(kind) }
}

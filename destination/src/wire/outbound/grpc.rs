//! Pure. GRPCRoutes on the wire.

use super::parts::{self, Sends, Ways};
use crate::{
    index::{GrpcConditions, Retry},
    resources::routes::{Filter, GrpcMatch, GrpcName, Match, Rule as Written},
    view::{HeldRoute, HeldRule, Resilience},
};
use linkerd2_proxy_api::{
    grpc_route::{GrpcFailureInjector, GrpcRouteMatch, GrpcRpcMatch},
    outbound::{
        self as api,
        grpc_route::{
            Distribution, Filter as WireFilter, RouteBackend, Rule, WeightedRouteBackend, distribution,
            filter::Kind,
        },
    },
};

/// The code of a request that goes to a backend that is nowhere: UNAVAILABLE, as Gateway API has it.
const UNAVAILABLE: u32 = 14;
/// The code of a request that would need what cannot be done: UNIMPLEMENTED.
pub(in crate::wire) const UNIMPLEMENTED: u32 = 12;

pub(super) fn route(route: &HeldRoute, ways: &Ways<'_>) -> api::GrpcRoute {
    let rules = route.spec.rules.iter().zip(&route.rules);
    api::GrpcRoute {
        metadata: Some(parts::route_ref(&route.id)),
        hosts: route.spec.hostnames.iter().map(parts::host).collect(),
        rules: rules.filter_map(|(written, held)| rule(written, held, ways)).collect(),
    }
}

/// `None` for a rule that matches nothing, because none of its matches can be said: without matches it would match
/// everything.
fn rule(written: &Written, held: &HeldRule, ways: &Ways<'_>) -> Option<Rule> {
    let matches: Vec<GrpcRouteMatch> = written.matches.iter().filter_map(grpc_match).collect();
    if matches.is_empty() {
        return None;
    }
    let (filters, backends) = match ways.of(held) {
        Sends::Nowhere(why) => (vec![failure(UNIMPLEMENTED, why)], first(parts::nowhere())),
        Sends::Itself => (filters(&written.filters), first(ways.itself.clone())),
        Sends::Shares(shares) => {
            let weighted = shares.into_iter().map(|(at, target, weight)| {
                let (backend, filters) = match target {
                    Ok(backend) => {
                        let written = written.backends.get(at);
                        (backend, written.map_or_else(Vec::new, |backend| filters(&backend.filters)))
                    }
                    Err(why) => (parts::nowhere(), vec![failure(UNAVAILABLE, why)]),
                };
                let backend = RouteBackend { backend: Some(backend), filters, ..RouteBackend::default() };
                WeightedRouteBackend { backend: Some(backend), weight }
            });
            let random = distribution::RandomAvailable { backends: weighted.collect() };
            let kind = distribution::Kind::RandomAvailable(random);
            (filters(&written.filters), Distribution { kind: Some(kind) })
        }
    };
    let Resilience { timeouts, grpc_retry, .. } = &held.resilience;
    Some(Rule {
        matches,
        filters,
        backends: Some(backends),
        timeouts: parts::timeouts(*timeouts),
        retry: grpc_retry.as_ref().map(retry),
        allow_l5d_request_headers: ways.settings.heed_request_headers,
        ..Rule::default()
    })
}

fn retry(retry: &Retry<GrpcConditions>) -> api::grpc_route::Retry {
    let GrpcConditions { cancelled, deadline_exceeded, resource_exhausted, internal, unavailable } =
        retry.conditions;
    api::grpc_route::Retry {
        max_retries: retry.limit,
        max_request_bytes: parts::MAX_REQUEST_BYTES,
        conditions: Some(api::grpc_route::retry::Conditions {
            cancelled,
            // The API's own spelling.
            deadine_exceeded: deadline_exceeded,
            resource_exhausted,
            internal,
            unavailable,
        }),
        timeout: retry.timeout.map(super::duration),
        backoff: Some(parts::backoff(None)),
    }
}

fn first(backend: api::Backend) -> Distribution {
    let backend = RouteBackend { backend: Some(backend), ..RouteBackend::default() };
    let first = distribution::FirstAvailable { backends: vec![backend] };
    Distribution { kind: Some(distribution::Kind::FirstAvailable(first)) }
}

pub(in crate::wire) fn grpc_match(wanted: &Match) -> Option<GrpcRouteMatch> {
    let Match::Grpc(GrpcMatch { service, method, headers }) = wanted else { return None };
    let name = |name: &Option<GrpcName>| match name {
        None => Some(String::new()),
        Some(GrpcName::Exact(name)) => Some(name.clone()),
        Some(GrpcName::Regex(_)) => None,
    };
    let rpc = GrpcRpcMatch { service: name(service)?, method: name(method)? };
    Some(GrpcRouteMatch { rpc: Some(rpc), headers: parts::headers(headers) })
}

/// Those that the API has; a rule with others has been made one that fails.
fn filters(written: &[Filter]) -> Vec<WireFilter> {
    let kind = |filter: &Filter| match filter {
        Filter::RequestHeaders(edit) => Some(Kind::RequestHeaderModifier(parts::request_headers(edit))),
        _ => None,
    };
    written.iter().filter_map(kind).map(|kind| WireFilter { kind: Some(kind) }).collect()
}

fn failure(code: u32, message: String) -> WireFilter {
    WireFilter { kind: Some(Kind::FailureInjector(GrpcFailureInjector { code, message, ratio: None })) }
}

//! Pure. HTTPRoutes on the wire.

use super::parts::{self, Sends, Ways};
use crate::{
    index::{HttpConditions, Retry},
    resources::routes::{
        Filter, HttpMatch, Match, PathMatch, PathModifier, Redirect, Rule as Written, ValueMatch,
    },
    view::{HeldRoute, HeldRule, Resilience},
};
use linkerd2_proxy_api::{
    http_route::{self as common, HttpRouteMatch},
    http_types, meta,
    outbound::{
        self as api,
        http_route::{
            Distribution, Filter as WireFilter, RouteBackend, Rule, WeightedRouteBackend, distribution,
            filter::Kind,
        },
    },
};

/// The status of a request that fails because of its route.
pub(in crate::wire) const FAILED: u32 = 500;

pub(super) fn route(route: &HeldRoute, ways: &Ways<'_>) -> api::HttpRoute {
    let rules = route.spec.rules.iter().zip(&route.rules);
    api::HttpRoute {
        metadata: Some(parts::route_ref(&route.id)),
        hosts: route.spec.hostnames.iter().map(parts::host).collect(),
        rules: rules.map(|(written, held)| rule(written, held, ways)).collect(),
    }
}

/// One backend for every request.
pub(super) fn everything(
    metadata: meta::Metadata,
    backend: api::Backend,
    resilience: &Resilience,
) -> api::HttpRoute {
    let every = Rule {
        matches: vec![http_match(&HttpMatch::every())],
        backends: Some(first(backend)),
        ..resilient(resilience)
    };
    api::HttpRoute { metadata: Some(metadata), hosts: Vec::new(), rules: vec![every] }
}

fn rule(written: &Written, held: &HeldRule, ways: &Ways<'_>) -> Rule {
    let matches = written.matches.iter().filter_map(|wanted| match wanted {
        Match::Http(wanted) => Some(http_match(wanted)),
        Match::Grpc(_) => None,
    });
    let (filters, backends) = match ways.of(held) {
        Sends::Nowhere(why) => (vec![failure(why)], first(parts::nowhere())),
        Sends::Itself => (filters(&written.filters), first(ways.itself.clone())),
        Sends::Shares(shares) => {
            let weighted = shares.into_iter().map(|(at, target, weight)| {
                let (backend, filters) = match target {
                    Ok(backend) => {
                        let written = written.backends.get(at);
                        (backend, written.map_or_else(Vec::new, |backend| filters(&backend.filters)))
                    }
                    Err(why) => (parts::nowhere(), vec![failure(why)]),
                };
                let backend = RouteBackend { backend: Some(backend), filters, ..RouteBackend::default() };
                WeightedRouteBackend { backend: Some(backend), weight }
            });
            let random = distribution::RandomAvailable { backends: weighted.collect() };
            let kind = distribution::Kind::RandomAvailable(random);
            (filters(&written.filters), Distribution { kind: Some(kind) })
        }
    };
    Rule {
        matches: matches.collect(),
        filters,
        backends: Some(backends),
        allow_l5d_request_headers: ways.settings.heed_request_headers,
        ..resilient(&held.resilience)
    }
}

fn resilient(resilience: &Resilience) -> Rule {
    Rule {
        timeouts: parts::timeouts(resilience.timeouts),
        retry: resilience.http_retry.as_ref().map(|retry| self::retry(retry, resilience)),
        ..Rule::default()
    }
}

fn retry(retry: &Retry<HttpConditions>, resilience: &Resilience) -> api::http_route::Retry {
    use api::http_route::retry::{Conditions, conditions::StatusRange};
    let range = |(low, high): &(u16, u16)| StatusRange { start: (*low).into(), end: (*high).into() };
    api::http_route::Retry {
        max_retries: retry.limit,
        max_request_bytes: parts::MAX_REQUEST_BYTES,
        conditions: Some(Conditions { status_ranges: retry.conditions.iter().map(range).collect() }),
        timeout: retry.timeout.map(super::duration),
        backoff: Some(parts::backoff(resilience.backoff)),
    }
}

fn first(backend: api::Backend) -> Distribution {
    let backend = RouteBackend { backend: Some(backend), ..RouteBackend::default() };
    let first = distribution::FirstAvailable { backends: vec![backend] };
    Distribution { kind: Some(distribution::Kind::FirstAvailable(first)) }
}

pub(in crate::wire) fn http_match(wanted: &HttpMatch) -> HttpRouteMatch {
    use common::{path_match, query_param_match::Value};
    let path = match &wanted.path {
        PathMatch::Exact(path) => path_match::Kind::Exact(path.clone()),
        PathMatch::Prefix(path) => path_match::Kind::Prefix(path.clone()),
        PathMatch::Regex(pattern) => path_match::Kind::Regex(pattern.clone()),
    };
    let query = wanted.query.iter().map(|(name, wanted)| {
        let value = match wanted {
            ValueMatch::Exact(value) => Value::Exact(value.clone()),
            ValueMatch::Regex(pattern) => Value::Regex(pattern.clone()),
        };
        common::QueryParamMatch { name: name.clone(), value: Some(value) }
    });
    HttpRouteMatch {
        path: Some(common::PathMatch { kind: Some(path) }),
        headers: parts::headers(&wanted.headers),
        query_params: query.collect(),
        method: wanted.method.map(super::super::http_method),
    }
}

/// Those that the API has; a rule with others has been made one that fails.
fn filters(written: &[Filter]) -> Vec<WireFilter> {
    let kind = |filter: &Filter| match filter {
        Filter::RequestHeaders(edit) => Some(Kind::RequestHeaderModifier(parts::request_headers(edit))),
        Filter::ResponseHeaders(edit) => Some(Kind::ResponseHeaderModifier(parts::response_headers(edit))),
        Filter::Redirect(redirect) => Some(Kind::Redirect(self::redirect(redirect))),
        Filter::Rewrite(_) | Filter::Mirror(_) | Filter::Other(_) => None,
    };
    written.iter().filter_map(kind).map(|kind| WireFilter { kind: Some(kind) }).collect()
}

fn failure(message: String) -> WireFilter {
    let failure = common::HttpFailureInjector { status: FAILED, message, ratio: None };
    WireFilter { kind: Some(Kind::FailureInjector(failure)) }
}

pub(in crate::wire) fn redirect(redirect: &Redirect) -> common::RequestRedirect {
    use common::path_modifier::Replace;
    use http_types::scheme::{Registered, Type};
    let scheme = redirect.scheme.map(|scheme| {
        let known = if scheme == "https" { Registered::Https } else { Registered::Http };
        http_types::Scheme { r#type: Some(Type::Registered(known.into())) }
    });
    let path = redirect.path.as_ref().map(|path| common::PathModifier {
        replace: Some(match path {
            PathModifier::Full(path) => Replace::Full(path.clone()),
            PathModifier::Prefix(path) => Replace::Prefix(path.clone()),
        }),
    });
    common::RequestRedirect {
        scheme,
        host: redirect.hostname.clone().unwrap_or_default(),
        path,
        port: redirect.port.unwrap_or_default().into(),
        status: redirect.status.into(),
    }
}

//! Policies with routes, in Linkerd's API, for a [`crate::controller`] to say.

use anyhow::Result;
use bytes::Bytes;
use linkerd2_proxy_api::outbound::{self, http_route as wire};
use linkerd2_proxy_api::{http_route, http_types, meta};

use crate::controller::encode;

/// A rule for requests whose header `x-rule` is this; its requests go to these authorities, by weight.
pub fn rule(name: &str, to: &[(&str, u32)]) -> wire::Rule {
    let header = http_route::HeaderMatch {
        name: "x-rule".into(),
        value: Some(http_route::header_match::Value::Exact(name.as_bytes().to_vec())),
    };
    let matches = vec![http_route::HttpRouteMatch { headers: vec![header], ..Default::default() }];
    wire::Rule { matches, backends: Some(weighted(to)), ..Default::default() }
}

/// A rule for requests under this path.
pub fn under(prefix: &str, to: &[(&str, u32)]) -> wire::Rule {
    let kind = Some(http_route::path_match::Kind::Prefix(prefix.into()));
    let path = Some(http_route::PathMatch { kind });
    let matches = vec![http_route::HttpRouteMatch { path, ..Default::default() }];
    wire::Rule { matches, backends: Some(weighted(to)), ..Default::default() }
}

/// A rule with this filter too.
#[must_use]
pub fn filtered(mut rule: wire::Rule, kind: wire::filter::Kind) -> wire::Rule {
    rule.filters.push(wire::Filter { kind: Some(kind) });
    rule
}

/// A rule whose every backend has this filter too.
#[must_use]
pub fn at_backends(mut rule: wire::Rule, kind: &wire::filter::Kind) -> wire::Rule {
    if let Some(wire::Distribution { kind: Some(wire::distribution::Kind::RandomAvailable(random)) }) =
        &mut rule.backends
    {
        for backend in random.backends.iter_mut().filter_map(|weighted| weighted.backend.as_mut()) {
            backend.filters.push(wire::Filter { kind: Some(kind.clone()) });
        }
    }
    rule
}

/// Fields of a head.
pub fn fields(fields: &[(&str, &str)]) -> Option<http_types::Headers> {
    let field = |(name, value): &(&str, &str)| http_types::headers::Header {
        name: (*name).into(),
        value: value.as_bytes().to_vec(),
    };
    Some(http_types::Headers { headers: fields.iter().map(field).collect() })
}

/// Retries of answers with these statuses, this many.
pub fn retry(
    statuses: std::ops::RangeInclusive<u32>,
    limit: u32,
    try_millis: Option<u64>,
) -> Option<wire::Retry> {
    let range = wire::retry::conditions::StatusRange { start: *statuses.start(), end: *statuses.end() };
    Some(wire::Retry {
        max_retries: limit,
        max_request_bytes: 64 * 1024,
        conditions: Some(wire::retry::Conditions { status_ranges: vec![range] }),
        timeout: try_millis.and_then(millis),
        backoff: None,
    })
}

/// A time.
pub fn millis(millis: u64) -> Option<prost_types::Duration> {
    let nanos = i32::try_from(millis % 1000 * 1_000_000).unwrap_or_default();
    Some(prost_types::Duration { seconds: i64::try_from(millis / 1000).unwrap_or_default(), nanos })
}

/// The policy of the Service `web` with these routes, for HTTP of either version. What none of them matches goes to the
/// authority `otherwise`, by the route `rest`.
///
/// # Errors
/// None that a test could cause.
pub fn policy(routes: &[(&str, Vec<wire::Rule>)], otherwise: &str) -> Result<Bytes> {
    use outbound::proxy_protocol::{Detect, Http1, Http2, Kind, Opaque};
    let resource = |kind: &str, name: &str| meta::Metadata {
        kind: Some(meta::metadata::Kind::Resource(meta::Resource {
            kind: kind.into(),
            name: name.into(),
            namespace: "shop".into(),
            ..Default::default()
        })),
    };
    let rest = wire::Rule { backends: Some(weighted(&[(otherwise, 1)])), ..Default::default() };
    let route = |(name, rules): &(&str, Vec<wire::Rule>)| outbound::HttpRoute {
        metadata: Some(resource("HTTPRoute", name)),
        rules: rules.clone(),
        ..Default::default()
    };
    let routes: Vec<_> = routes.iter().chain(&[("rest", vec![rest])]).map(route).collect();
    let detect = Detect {
        timeout: None,
        opaque: Some(Opaque::default()),
        http1: Some(Http1 { routes: routes.clone(), failure_accrual: None }),
        http2: Some(Http2 { routes, failure_accrual: None }),
    };
    let protocol = Some(outbound::ProxyProtocol { kind: Some(Kind::Detect(detect)) });
    encode(&outbound::OutboundPolicy { metadata: Some(resource("Service", "web")), protocol })
}

fn weighted(to: &[(&str, u32)]) -> wire::Distribution {
    let one = |(authority, weight): &(&str, u32)| wire::WeightedRouteBackend {
        backend: Some(wire::RouteBackend { backend: Some(backend(authority)), ..Default::default() }),
        weight: *weight,
    };
    let random = wire::distribution::RandomAvailable { backends: to.iter().map(one).collect() };
    wire::Distribution { kind: Some(wire::distribution::Kind::RandomAvailable(random)) }
}

/// The endpoints of an authority.
fn backend(authority: &str) -> outbound::Backend {
    use outbound::backend::{BalanceP2c, EndpointDiscovery, Kind, balance_p2c, endpoint_discovery};
    let get = endpoint_discovery::DestinationGet { path: authority.into() };
    outbound::Backend {
        metadata: Some(meta::Metadata { kind: Some(meta::metadata::Kind::Default(authority.into())) }),
        kind: Some(Kind::Balancer(BalanceP2c {
            discovery: Some(EndpointDiscovery { kind: Some(endpoint_discovery::Kind::Dst(get)) }),
            load: Some(balance_p2c::Load::PeakEwma(balance_p2c::PeakEwma::default())),
        })),
        ..Default::default()
    }
}

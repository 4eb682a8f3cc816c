//! `OutboundPolicies.Watch`: what to do with a target. Contract 3.3.

use super::{Converted, Invalid, Reading, accrual, destination, filters, parts, routes, terms};
use linkerd2_proxy_api::outbound as wire;
use remora_core::route::{
    Backend, BackendTarget, DEFAULT_DECAY, DEFAULT_RTT, Distribution, Filter, HttpRoute, HttpRule,
    OutboundPolicy, OutboundProtocol, OutboundRoute, OutboundRule, TlsRoute,
};
use remora_core::{balance::Balancings, breaker::Accruals};
use std::{collections::HashMap, sync::Arc, time::Duration};

/// Reads a policy. One that cannot be understood becomes [`OutboundProtocol::Invalid`] with the reason.
pub fn outbound_policy(wire: wire::OutboundPolicy) -> Converted<OutboundPolicy> {
    let mut reading = Reading::new();
    let parent = parts::resource(wire.metadata);
    let kind = wire.protocol.and_then(|protocol| protocol.kind);
    let read = reading.required("protocol", kind, |reading, kind| {
        Ok((accrual::accruals(reading, &kind)?, protocol(reading, kind)?))
    });
    let invalid = |parent, invalid: &Invalid| OutboundPolicy {
        parent,
        protocol: refusing(invalid),
        accrual: Accruals::default(),
        balancing: Balancings::new(),
    };
    let policy = match (parent, read) {
        (Ok(parent), Ok((accrual, protocol))) => {
            OutboundPolicy { parent, protocol, accrual, balancing: Balancings::new() }
        }
        (Ok(parent), Err(why)) => invalid(parent, &why),
        (Err(why), _) => invalid(Arc::default(), &why),
    };
    reading.finish(policy)
}

fn refusing(invalid: &Invalid) -> OutboundProtocol {
    OutboundProtocol::Invalid(invalid.to_string().into())
}

fn protocol(reading: &mut Reading, wire: wire::proxy_protocol::Kind) -> Result<OutboundProtocol, Invalid> {
    use wire::proxy_protocol::Kind;
    Ok(match wire {
        // The message's timeout is not used: detection outbound has the one of the environment (contract 1.6).
        Kind::Detect(detect) => OutboundProtocol::Detect {
            http1: reading.required("detect.http1", detect.http1, |reading, http| {
                reading.each("routes", http.routes, http_route)
            })?,
            http2: reading.required("detect.http2", detect.http2, |reading, http| {
                reading.each("routes", http.routes, http_route)
            })?,
            opaque: reading.required("detect.opaque", detect.opaque, opaque)?,
        },
        Kind::Http1(http) => OutboundProtocol::Http1(
            reading.at("http1", |reading| reading.each("routes", http.routes, http_route))?,
        ),
        Kind::Http2(http) => OutboundProtocol::Http2(
            reading.at("http2", |reading| reading.each("routes", http.routes, http_route))?,
        ),
        Kind::Grpc(grpc) => OutboundProtocol::Grpc(
            reading.at("grpc", |reading| reading.each("routes", grpc.routes, grpc_route))?,
        ),
        Kind::Opaque(wire) => {
            OutboundProtocol::Opaque(reading.at("opaque", |reading| opaque(reading, wire))?)
        }
        Kind::Tls(tls) => OutboundProtocol::Tls(reading.each("tls.routes", tls.routes, tls_route)?),
    })
}

#[expect(deprecated, reason = "older controllers send request_timeout and no timeouts")]
fn http_route(reading: &mut Reading, wire: wire::HttpRoute) -> Result<OutboundRoute, Invalid> {
    let (meta, hosts) = routes::head(reading, wire.metadata, wire.hosts)?;
    let rules = reading.each("rules", wire.rules, |reading, rule| {
        let retry = rule.retry.map(|retry| reading.at("retry", |reading| terms::http(reading, retry)));
        let done = OutboundRule {
            filters: filters::http(reading, rule.filters)?,
            timeouts: terms::timeouts(reading, rule.timeouts, rule.request_timeout)?,
            retry: retry.transpose()?,
            heeds_wishes: rule.allow_l5d_request_headers,
            distribution: Arc::new(reading.required("backends", rule.backends, http_backends)?),
        };
        Ok((HttpRule { matches: reading.each("matches", rule.matches, routes::http_match)? }, done))
    })?;
    let (matches, rules) = rules.into_iter().unzip();
    Ok(OutboundRoute { route: HttpRoute { meta, hosts, rules: matches }, rules })
}

#[expect(deprecated, reason = "older controllers send request_timeout and no timeouts")]
fn grpc_route(reading: &mut Reading, wire: wire::GrpcRoute) -> Result<OutboundRoute, Invalid> {
    let (meta, hosts) = routes::head(reading, wire.metadata, wire.hosts)?;
    let rules = reading.each("rules", wire.rules, |reading, rule| {
        let retry = rule.retry.map(|retry| reading.at("retry", |reading| terms::grpc(reading, retry)));
        let done = OutboundRule {
            filters: filters::grpc(reading, rule.filters)?,
            timeouts: terms::timeouts(reading, rule.timeouts, rule.request_timeout)?,
            retry: retry.transpose()?,
            heeds_wishes: rule.allow_l5d_request_headers,
            distribution: Arc::new(reading.required("backends", rule.backends, grpc_backends)?),
        };
        Ok((HttpRule { matches: reading.each("matches", rule.matches, routes::grpc_match)? }, done))
    })?;
    let (matches, rules) = rules.into_iter().unzip();
    Ok(OutboundRoute { route: HttpRoute { meta, hosts, rules: matches }, rules })
}

/// Opaque connections take the first rule of the first route (contract 3.3); further ones are listed.
fn opaque(reading: &mut Reading, wire: wire::proxy_protocol::Opaque) -> Result<Arc<Distribution>, Invalid> {
    let mut routes = wire.routes.into_iter();
    let Some(route) = routes.next() else { return Ok(Arc::new(Distribution::Empty)) };
    reading.ignore_if(routes.next().is_some(), "routes[1..]");
    reading.at("routes[0]", |reading| {
        let meta = parts::resource(route.metadata)?;
        let mut rules = route.rules.into_iter();
        let Some(rule) = rules.next() else { return Ok(Arc::new(Distribution::Empty)) };
        reading.ignore_if(rules.next().is_some(), "rules[1..]");
        reading.at("rules[0]", |reading| {
            let refusal = reading.each("filters", rule.filters, |_, filter| opaque_filter(filter.kind))?;
            let distribution = reading.required("backends", rule.backends, opaque_backends)?;
            Ok(Arc::new(refused(refusal, distribution, &meta.name)))
        })
    })
}

fn tls_route(reading: &mut Reading, wire: wire::TlsRoute) -> Result<TlsRoute, Invalid> {
    let meta = parts::resource(wire.metadata)?;
    let snis = reading.each("snis", wire.snis, |_, wire| routes::sni(wire))?;
    let mut rules = wire.rules.into_iter();
    let distribution = match rules.next() {
        None => Distribution::Empty,
        Some(rule) => reading.at("rules[0]", |reading| {
            let refusal = reading.each("filters", rule.filters, |_, filter| tls_filter(filter.kind))?;
            let distribution = reading.required("backends", rule.backends, tls_backends)?;
            Ok(refused(refusal, distribution, &meta.name))
        })?,
    };
    reading.ignore_if(rules.next().is_some(), "rules[1..]");
    Ok(TlsRoute { meta, snis, distribution: Arc::new(distribution) })
}

/// A distribution whose filters refuse every connection.
fn refused(reasons: Vec<String>, distribution: Distribution, route: &str) -> Distribution {
    match reasons.into_iter().next() {
        Some(reason) if route.is_empty() => Distribution::Forbidden(reason.into()),
        Some(reason) => Distribution::Forbidden(format!("{reason} ({route})").into()),
        None => distribution,
    }
}

fn opaque_filter(wire: Option<wire::opaque_route::filter::Kind>) -> Result<String, Invalid> {
    use wire::opaque_route::filter::Kind;
    match wire {
        Some(Kind::Forbidden(_)) => Ok(FORBIDDEN.to_owned()),
        Some(Kind::Invalid(invalid)) => Ok(parts::shown(&invalid.message).to_owned()),
        None => Err(Invalid::new("a filter of a kind that this proxy does not know")),
    }
}

fn tls_filter(wire: Option<wire::tls_route::filter::Kind>) -> Result<String, Invalid> {
    use wire::tls_route::filter::Kind;
    match wire {
        Some(Kind::Forbidden(_)) => Ok(FORBIDDEN.to_owned()),
        Some(Kind::Invalid(invalid)) => Ok(parts::shown(&invalid.message).to_owned()),
        None => Err(Invalid::new("a filter of a kind that this proxy does not know")),
    }
}

const FORBIDDEN: &str = "forbidden by policy";

fn opaque_refusals(
    reading: &mut Reading,
    wire: Vec<wire::opaque_route::Filter>,
) -> Result<Vec<String>, Invalid> {
    reading.each("filters", wire, |_, filter| opaque_filter(filter.kind))
}

fn tls_refusals(reading: &mut Reading, wire: Vec<wire::tls_route::Filter>) -> Result<Vec<String>, Invalid> {
    reading.each("filters", wire, |_, filter| tls_filter(filter.kind))
}

fn filtered(backend: Backend, filters: Vec<Filter>) -> Backend {
    Backend { filters, ..backend }
}

/// A filter of a backend of bytes refuses that backend's share of connections.
fn refusing_share(backend: Backend, reasons: Vec<String>) -> Backend {
    match reasons.into_iter().next() {
        Some(reason) => Backend { target: BackendTarget::Nowhere(reason.into()), ..backend },
        None => backend,
    }
}

/// The four kinds of route have four message types for the same distribution.
macro_rules! backends {
    ($name:ident, $route:ident, $filters:path, $done:path) => {
        fn $name(reading: &mut Reading, wire: wire::$route::Distribution) -> Result<Distribution, Invalid> {
            use wire::$route::{RouteBackend, distribution::Kind};
            let one = |reading: &mut Reading, wire: RouteBackend| {
                let filters = $filters(reading, wire.filters)?;
                Ok($done(reading.required("backend", wire.backend, backend)?, filters))
            };
            match wire.kind {
                None => Err(Invalid::new("neither empty, first_available nor random_available")),
                Some(Kind::Empty(_)) => Ok(Distribution::Empty),
                Some(Kind::FirstAvailable(first)) => reading
                    .each("first_available.backends", first.backends, one)
                    .map(Distribution::FirstAvailable),
                Some(Kind::RandomAvailable(random)) => reading
                    .each("random_available.backends", random.backends, |reading, weighted| {
                        Ok((reading.required("backend", weighted.backend, one)?, weighted.weight))
                    })
                    .map(Distribution::RandomAvailable),
            }
        }
    };
}

backends!(http_backends, http_route, filters::http, filtered);
backends!(grpc_backends, grpc_route, filters::grpc, filtered);
backends!(opaque_backends, opaque_route, opaque_refusals, refusing_share);
backends!(tls_backends, tls_route, tls_refusals, refusing_share);

/// The queue that a backend asks for is not read: queues are bounded by this proxy's own limits. One without a kind is
/// nowhere: so controllers write a reference that leads nowhere, with a filter that fails what would go there.
pub(super) fn backend(reading: &mut Reading, wire: wire::Backend) -> Result<Backend, Invalid> {
    use wire::backend::Kind;
    let meta = parts::resource(wire.metadata)?;
    let target = reading.at("kind", |reading| match wire.kind {
        Some(Kind::Forward(addr)) => reading
            .at("forward", |reading| destination::endpoint(reading, addr, &HashMap::new()))
            .map(BackendTarget::Forward),
        Some(Kind::Balancer(balancer)) => reading.at("balancer", |reading| balance(reading, balancer)),
        None => Ok(BackendTarget::Nowhere("a backend that is nowhere".into())),
    })?;
    Ok(Backend { meta, target, filters: Vec::new() })
}

fn balance(reading: &mut Reading, wire: wire::backend::BalanceP2c) -> Result<BackendTarget, Invalid> {
    use wire::backend::{balance_p2c::Load, endpoint_discovery::Kind};
    let discovery = wire.discovery.and_then(|discovery| discovery.kind);
    let authority = reading.required("discovery", discovery, |_, Kind::Dst(dst)| match dst.path.len() {
        0 => Err(Invalid::new("an empty path")),
        1..=512 => Ok(Arc::from(dst.path)),
        _ => Err(Invalid::new("a path of more than 512 bytes")),
    })?;
    let (default_rtt, decay) = match wire.load {
        Some(Load::PeakEwma(ewma)) => (ewma.default_rtt, ewma.decay),
        Some(Load::PenaltyPeakEwma(ewma)) => {
            reading.ignore("penalty");
            (ewma.default_rtt, ewma.decay)
        }
        None => (None, None),
    };
    Ok(BackendTarget::Balance {
        authority,
        default_rtt: time_or(default_rtt, DEFAULT_RTT).map_err(|invalid| invalid.within("default_rtt"))?,
        decay: time_or(decay, DEFAULT_DECAY).map_err(|invalid| invalid.within("decay"))?,
    })
}

/// A time above zero: the load estimate divides by the decay.
fn time_or(wire: Option<prost_types::Duration>, default: Duration) -> Result<Duration, Invalid> {
    let time = wire.map(parts::duration).transpose()?;
    Ok(time.filter(|time| !time.is_zero()).unwrap_or(default))
}

#[cfg(test)]
mod tests;

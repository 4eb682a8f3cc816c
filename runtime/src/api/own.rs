//! `remora.proxy.v1`: what our own control plane says beside Linkerd's API. What the messages mean is in
//! `proto/remora/proxy/v1/outbound.proto`.

use super::{Converted, Invalid, MAX_IGNORED, MAX_ITEMS, Reading, filters, outbound, parts::shown, profile};
use crate::proto as wire;
use linkerd2_proxy_api::destination::DestinationProfile;
use remora_core::{
    balance::{Balancing, Balancings, Limits, Strategy},
    profile::Profile,
    route::{
        Backend, Distribution, Filter, Membership, Mirror, OutboundPolicy, OutboundProtocol, OutboundRoute,
        OutboundRule, Ratio, Replacement, Rewrite,
    },
};
use std::{num::NonZeroU32, sync::Arc};

/// Most Services that a pod is said to belong to.
const MAX_SERVICES: usize = 64;

/// Reads what is said of a target: its policy; and where it is a pod's own address, the Services that the pod belongs to,
/// the first of which has that policy. Further ones than 64 are left out, and named.
pub fn said(mut wire: wire::OutboundPolicy) -> Converted<(OutboundPolicy, Vec<Membership>)> {
    let Some(mut membership) = wire.membership.take() else {
        let Converted { value, ignored } = outbound_policy(wire);
        return Converted { value: (value, Vec::new()), ignored };
    };
    let others = std::mem::take(&mut membership.others);
    let Converted { value: policy, mut ignored } = outbound_policy(wire);
    let mut note = |note: String| ignored.push(note.into());
    let mut services = vec![member(policy.clone(), membership, &mut note)];
    for (number, mut other) in others.into_iter().enumerate() {
        let place = format!("membership.others[{number}]");
        let Some(membership) = other.membership.take().filter(|_| number < MAX_SERVICES) else {
            note(format!("{place}: no Service, or one of more than {MAX_SERVICES}"));
            continue;
        };
        let Converted { value, ignored } = outbound_policy(other);
        for what in ignored {
            note(format!("{place}.{what}"));
        }
        services.push(member(value, membership, &mut note));
    }
    ignored.truncate(MAX_IGNORED);
    Converted { value: (policy, services), ignored }
}

/// A Service without a port cannot be one: what goes by it fails.
fn member(policy: OutboundPolicy, wire: wire::Membership, note: &mut impl FnMut(String)) -> Membership {
    let service: Arc<str> = wire.service.into();
    let profile = wire.profile.and_then(|wire| service_profile(&service, wire, note));
    let port = service.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).filter(|port| *port > 0);
    let policy = if port.is_some() {
        policy
    } else {
        let why = format!("membership.service: {:?} has no port", shown(&service)).into();
        OutboundPolicy { protocol: OutboundProtocol::Invalid(why), ..policy }
    };
    Membership { port: port.unwrap_or_default(), service, policy, profile }
}

/// One that is not understood is left out, and named, as it is of a Service's own address.
fn service_profile(
    service: &str,
    wire: DestinationProfile,
    note: &mut impl FnMut(String),
) -> Option<Arc<Profile>> {
    match profile::profile(wire) {
        Ok(Converted { value, ignored }) => {
            for what in ignored {
                note(format!("the ServiceProfile of {service}: {what}"));
            }
            Some(Arc::new(value))
        }
        Err(invalid) => {
            note(format!("the ServiceProfile of {service}: {invalid}"));
            None
        }
    }
}

/// Reads a policy: that of Linkerd's API, and in their places the filters which that cannot say. A filter that is not
/// understood, or has no place, makes the whole policy [`OutboundProtocol::Invalid`].
pub fn outbound_policy(wire: wire::OutboundPolicy) -> Converted<OutboundPolicy> {
    let mut converted = outbound::outbound_policy(wire.policy.unwrap_or_default());
    if matches!(converted.value.protocol, OutboundProtocol::Invalid(_)) {
        return converted;
    }
    let mut reading = Reading::new();
    let protocol = &mut converted.value.protocol;
    let placed = reading.each("filters", wire.filters, |reading, filters| place(reading, protocol, filters));
    if let Err(invalid) = placed {
        *protocol = OutboundProtocol::Invalid(invalid.to_string().into());
    }
    converted.value.balancing = balancings(&mut reading, wire.balancers);
    converted.ignored.extend(reading.finish(()).ignored);
    converted
}

/// How requests are spread is no question of safety: what is not understood is listed, and the default holds.
fn balancings(reading: &mut Reading, wire: Vec<wire::Balancer>) -> Balancings {
    let mut read = Balancings::new();
    for (nth, one) in wire.into_iter().take(MAX_ITEMS).enumerate() {
        let strategy = match wire::balancer::Strategy::try_from(one.strategy) {
            Ok(wire::balancer::Strategy::Unspecified) => Strategy::PeakEwma,
            Ok(wire::balancer::Strategy::LeastRequest) => Strategy::LeastRequest,
            Ok(wire::balancer::Strategy::RoundRobin) => Strategy::RoundRobin,
            Err(_) => {
                reading.ignore(format!("balancers[{nth}].strategy: {} is not known", one.strategy));
                Strategy::PeakEwma
            }
        };
        let limits = Limits {
            connections: NonZeroU32::new(one.max_connections),
            pending_requests: NonZeroU32::new(one.max_pending_requests),
            concurrent_streams: NonZeroU32::new(one.max_concurrent_streams),
        };
        read.insert(one.path.into(), Balancing { strategy, limits });
    }
    read
}

fn place(reading: &mut Reading, protocol: &mut OutboundProtocol, wire: wire::Filters) -> Result<(), Invalid> {
    let routes =
        routes(protocol, wire.routes()).ok_or_else(|| Invalid::new("no such routes").within("routes"))?;
    let route = nth(routes, wire.route).ok_or_else(|| Invalid::new("no such route").within("route"))?;
    let rule: &mut OutboundRule =
        nth(&mut route.rules, wire.rule).ok_or_else(|| Invalid::new("no such rule").within("rule"))?;
    let filters = reading.each("filters", wire.filters, filter)?;
    let place = match wire.backend {
        None => &mut rule.filters,
        Some(number) => {
            let backend = backend(Arc::make_mut(&mut rule.distribution), number);
            &mut backend.ok_or_else(|| Invalid::new("no such backend").within("backend"))?.filters
        }
    };
    place.extend(filters);
    Ok(())
}

fn routes(protocol: &mut OutboundProtocol, which: wire::filters::Routes) -> Option<&mut Vec<OutboundRoute>> {
    use OutboundProtocol::{Detect, Grpc, Http1, Http2};
    use wire::filters::Routes;
    match (protocol, which) {
        (Detect { http1: routes, .. } | Http1(routes), Routes::Http1)
        | (Detect { http2: routes, .. } | Http2(routes), Routes::Http2)
        | (Grpc(routes), Routes::Grpc) => Some(routes),
        _ => None,
    }
}

fn backend(distribution: &mut Distribution, number: u32) -> Option<&mut Backend> {
    match distribution {
        Distribution::FirstAvailable(backends) => nth(backends, number),
        Distribution::RandomAvailable(backends) => nth(backends, number).map(|(backend, _)| backend),
        Distribution::Empty | Distribution::Forbidden(_) => None,
    }
}

fn nth<T>(list: &mut [T], number: u32) -> Option<&mut T> {
    list.get_mut(usize::try_from(number).ok()?)
}

fn filter(reading: &mut Reading, wire: wire::Filter) -> Result<Filter, Invalid> {
    use wire::filter::Kind;
    match wire.kind {
        Some(Kind::UrlRewrite(rewrite)) => reading.at("url_rewrite", |_| self::rewrite(rewrite)),
        Some(Kind::RequestMirror(mirror)) => {
            reading.at("request_mirror", |reading| self::mirror(reading, mirror))
        }
        Some(Kind::ResponseHeaderModifier(modifier)) => {
            reading.at("response_header_modifier", |reading| filters::response_modifier(reading, modifier))
        }
        None => Err(filters::unknown()),
    }
}

fn rewrite(wire: wire::UrlRewrite) -> Result<Filter, Invalid> {
    use wire::url_rewrite::Path;
    let authority = match wire.hostname.as_str() {
        "" => None,
        name => Some(filters::authority(name.as_bytes()).map_err(|invalid| invalid.within("hostname"))?),
    };
    let path = match wire.path {
        None => None,
        // A query of its own is a redirect's to have: here the request's stays.
        Some(Path::Full(path) | Path::Prefix(path)) if path.contains('?') => {
            return Err(Invalid::new(format!("{:?} has a query", shown(&path))).within("path"));
        }
        Some(Path::Full(path)) => {
            filters::target(&path).map_err(|invalid| invalid.within("full"))?;
            Some(Replacement::Whole(path))
        }
        Some(Path::Prefix(prefix)) => {
            if !prefix.is_empty() {
                filters::target(&prefix).map_err(|invalid| invalid.within("prefix"))?;
            }
            Some(Replacement::Prefix(prefix))
        }
    };
    Ok(Filter::Rewrite(Rewrite { authority, path }))
}

fn mirror(reading: &mut Reading, wire: wire::RequestMirror) -> Result<Filter, Invalid> {
    let backend = reading.required("backend", wire.backend, outbound::backend)?;
    let (numerator, denominator) = (wire.numerator, wire.denominator);
    let share = Ratio::new(numerator, denominator)
        .ok_or_else(|| Invalid::new(format!("{numerator} of {denominator} is no share")))?;
    Ok(Filter::Mirror(Mirror { backend, share }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_services_are_read_in_their_order_and_what_is_wrong_is_named() {
        let of = |service: &str, others| wire::OutboundPolicy {
            membership: Some(wire::Membership { service: service.into(), profile: None, others }),
            ..wire::OutboundPolicy::default()
        };
        let others = vec![of("b.ns.svc:81", vec![]), wire::OutboundPolicy::default(), of("c.ns.svc", vec![])];
        let Converted { value: (_, services), ignored } = said(of("a.ns.svc:80", others));
        let ports: Vec<u16> = services.iter().map(|one| one.port).collect();
        assert_eq!(ports, [80, 81, 0]);
        let OutboundProtocol::Invalid(why) = &services[2].policy.protocol else { panic!("{services:?}") };
        assert!(why.contains("c.ns.svc"), "{why}");
        assert!(ignored.iter().any(|note| note.starts_with("membership.others[1]")), "{ignored:?}");
        assert_eq!(said(wire::OutboundPolicy::default()).value.1, []);
    }

    #[test]
    fn what_is_not_understood_makes_the_policy_invalid() {
        let rewrite = |hostname: &str, path: Option<wire::url_rewrite::Path>| wire::Filter {
            kind: Some(wire::filter::Kind::UrlRewrite(wire::UrlRewrite { hostname: hostname.into(), path })),
        };
        let full = |path: &str| Some(wire::url_rewrite::Path::Full(path.into()));
        let share = wire::RequestMirror { backend: None, numerator: 1, denominator: 0 };
        for (wire, place) in [
            (wire::Filter { kind: None }, ""),
            (rewrite("a b", None), "url_rewrite.hostname"),
            (rewrite("", full("/a?b")), "url_rewrite.path"),
            (rewrite("", full("a")), "url_rewrite.full"),
            (wire::Filter { kind: Some(wire::filter::Kind::RequestMirror(share)) }, "request_mirror.backend"),
        ] {
            assert_eq!(filter(&mut Reading::new(), wire).unwrap_err().path(), place);
        }
        // A filter without a place is not dropped.
        let mut protocol = OutboundProtocol::Http1(Vec::new());
        let nowhere =
            wire::Filters { routes: wire::filters::Routes::Http1.into(), ..wire::Filters::default() };
        assert_eq!(place(&mut Reading::new(), &mut protocol, nowhere.clone()).unwrap_err().path(), "route");
        let mut other = OutboundProtocol::Http2(Vec::new());
        assert_eq!(place(&mut Reading::new(), &mut other, nowhere).unwrap_err().path(), "routes");
    }

    #[test]
    fn how_services_are_balanced() {
        use Strategy::{LeastRequest, PeakEwma, RoundRobin};
        let balancer = |path: &str, strategy| wire::Balancer {
            path: path.into(),
            strategy,
            max_connections: 7,
            ..wire::Balancer::default()
        };
        let mut reading = Reading::new();
        let all = ["a:1", "b:1", "c:1", "d:1"];
        let read = balancings(&mut reading, (0..).zip(all).map(|(at, path)| balancer(path, at)).collect());
        let strategies: Vec<_> = read.values().map(|one| one.strategy).collect();
        assert_eq!(strategies, [PeakEwma, LeastRequest, RoundRobin, PeakEwma]);
        let limits = Limits { connections: NonZeroU32::new(7), ..Limits::default() };
        assert!(read.values().all(|one| one.limits == limits));
        assert_eq!(reading.finish(()).ignored, [Arc::from("balancers[3].strategy: 3 is not known")]);
    }
}

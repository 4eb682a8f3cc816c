//! Pure. Outbound policies in `remora.proxy.v1`: Linkerd's message, and beside it the filters that it cannot say.

use super::{
    super::{profile::service_profile, weighted_addr},
    parts::{self, Api, Sends, Ways},
};
use crate::{
    resources::{
        RouteKind,
        routes::{Filter as Written, PathModifier, Rewrite, Rule},
    },
    view::{
        Balancers, Family, HeldRule, Membership, Mirrors, Outbound, PortProtocol, ServicePolicy, Settings,
        can_match,
    },
};
use linkerd2_proxy_api::destination::DestinationProfile;
use remora_core::balance::{Balancing, Strategy};
use remora_runtime::proto::{
    self, Balancer, Filter, Filters, OutboundPolicy, RequestMirror, UrlRewrite, balancer, filter::Kind,
    filters::Routes, url_rewrite,
};
use std::num::NonZeroU32;

/// A policy.
pub fn own_policy(outbound: &Outbound, settings: &Settings) -> OutboundPolicy {
    match outbound {
        Outbound::Service(policy) => of_service(policy, &Ways::of_service(policy, settings, Api::Own)),
        Outbound::Pod(services) => {
            let mut all = services.iter().map(|one| of_pod(one, settings));
            let mut first = all.next().unwrap_or_default();
            if let Some(membership) = &mut first.membership {
                membership.others = all.collect();
            }
            first
        }
        Outbound::UndefinedPort { .. } | Outbound::Endpoint(..) | Outbound::External(_) => OutboundPolicy {
            policy: Some(super::said(outbound, settings, Api::Own)),
            ..OutboundPolicy::default()
        },
    }
}

fn balancers(wanted: &Balancers) -> Vec<Balancer> {
    let most = |limit: Option<NonZeroU32>| limit.map_or(0, NonZeroU32::get);
    let balancer = |(path, balancing): (&String, &Balancing)| Balancer {
        path: path.clone(),
        max_connections: most(balancing.limits.connections),
        max_pending_requests: most(balancing.limits.pending_requests),
        max_concurrent_streams: most(balancing.limits.concurrent_streams),
        strategy: match balancing.strategy {
            Strategy::PeakEwma => balancer::Strategy::Unspecified.into(),
            Strategy::LeastRequest => balancer::Strategy::LeastRequest.into(),
            Strategy::RoundRobin => balancer::Strategy::RoundRobin.into(),
        },
    };
    wanted.iter().map(balancer).collect()
}

fn of_service(policy: &ServicePolicy, ways: &Ways<'_>) -> OutboundPolicy {
    OutboundPolicy {
        policy: Some(super::service(policy, ways)),
        filters: filters(policy, ways),
        balancers: balancers(&policy.balancers),
        membership: None,
    }
}

/// A pod in the place of a Service that it belongs to.
fn of_pod(member: &Membership, settings: &Settings) -> OutboundPolicy {
    let Membership { policy: ServicePolicy { name, port, .. }, pod: (addr, pod), profile } = member;
    let profile = profile.as_ref().map(|chosen| DestinationProfile {
        endpoint: Some(weighted_addr(*addr, pod)),
        ..service_profile(name, *port, chosen, settings)
    });
    let service = format!("{}:{port}", settings.service_name(name));
    let membership = proto::Membership { service, profile, others: Vec::new() };
    let said = of_service(&member.policy, &Ways::of_pod(member, settings, Api::Own));
    OutboundPolicy { membership: Some(membership), ..said }
}

fn filters(policy: &ServicePolicy, ways: &Ways<'_>) -> Vec<Filters> {
    let mut found = Vec::new();
    for list in lists(policy) {
        for (route, held) in (0..).zip(&policy.routes) {
            // A rule that no match can be said of is not in the message either.
            let said = held.spec.rules.iter().zip(&held.rules);
            let said = said.filter(|(written, _)| written.matches.iter().any(can_match));
            for (rule, (written, held_rule)) in (0..).zip(said) {
                let place = Filters { routes: (*list).into(), route, rule, ..Filters::default() };
                found.extend(of_rule(ways, held.id.kind, (written, held_rule), &place));
            }
        }
    }
    found
}

/// The filters of a rule and of its backends.
fn of_rule(
    ways: &Ways<'_>,
    kind: RouteKind,
    (written, held): (&Rule, &HeldRule),
    place: &Filters,
) -> Vec<Filters> {
    // What fails is neither rewritten nor mirrored.
    if matches!(ways.of(held), Sends::Nowhere(_)) {
        return Vec::new();
    }
    let rule = Filters { filters: own(ways, kind, &written.filters, &held.mirrors), ..place.clone() };
    let backends = (0..).zip(held.shares()).filter_map(|(number, (at, backend))| {
        backend.target.as_ref().ok()?;
        let filters = own(ways, kind, &written.backends.get(at)?.filters, &backend.mirrors);
        Some(Filters { backend: Some(number), filters, ..place.clone() })
    });
    std::iter::once(rule).chain(backends).filter(|place| !place.filters.is_empty()).collect()
}

/// The lists of routes that a policy has. Contract 3.3.
fn lists(policy: &ServicePolicy) -> &'static [Routes] {
    match (policy.routes.first().map(|route| Family::of(route.id.kind)), policy.protocol) {
        (Some(Family::Grpc), _) => &[Routes::Grpc],
        (Some(Family::Http), PortProtocol::Detect) => &[Routes::Http1, Routes::Http2],
        (Some(Family::Http), PortProtocol::Http1) => &[Routes::Http1],
        (Some(Family::Http), PortProtocol::Http2) => &[Routes::Http2],
        (Some(Family::Http), PortProtocol::Opaque) | (Some(Family::Tls | Family::Tcp) | None, _) => &[],
    }
}

fn own(ways: &Ways<'_>, kind: RouteKind, written: &[Written], mirrors: &Mirrors) -> Vec<Filter> {
    let unsaid = written.iter().enumerate().filter(|(_, filter)| filter.is_unsaid(kind));
    let kinds = unsaid.filter_map(|(at, filter)| match filter {
        Written::Rewrite(rewrite) => Some(Kind::UrlRewrite(self::rewrite(rewrite))),
        Written::Mirror(mirror) => {
            let (name, port) = mirrors.get(&at)?;
            let backend = Some(parts::balancer(ways.settings, name, *port));
            let (numerator, denominator) = mirror.share;
            Some(Kind::RequestMirror(RequestMirror { backend, numerator, denominator }))
        }
        Written::ResponseHeaders(edit) => Some(Kind::ResponseHeaderModifier(parts::response_headers(edit))),
        Written::RequestHeaders(_) | Written::Redirect(_) | Written::Other(_) => None,
    });
    kinds.map(|kind| Filter { kind: Some(kind) }).collect()
}

fn rewrite(rewrite: &Rewrite) -> UrlRewrite {
    let path = rewrite.path.as_ref().map(|path| match path {
        PathModifier::Full(path) => url_rewrite::Path::Full(path.clone()),
        PathModifier::Prefix(prefix) => url_rewrite::Path::Prefix(prefix.clone()),
    });
    UrlRewrite { hostname: rewrite.hostname.clone().unwrap_or_default(), path }
}

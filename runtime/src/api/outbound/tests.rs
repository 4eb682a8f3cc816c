//! Where the proxy believes that a target's traffic goes.

use super::*;
use linkerd2_proxy_api::{
    destination as wire_dst, http_route as wire_http, meta, opaque_route as wire_opaque,
};
use remora_core::policy::ResourceRef;
use std::net::SocketAddr;
use wire::proxy_protocol::{Detect, Grpc, Http1, Http2, Kind, Opaque, Tls};

const AUTHORITY: &str = "web.shop.svc.cluster.local:80";

#[test]
fn a_service_of_linkerds_controller() {
    let detect = Detect {
        timeout: Some(prost_types::Duration { seconds: 10, nanos: 0 }),
        opaque: Some(Opaque { routes: vec![opaque_route(Vec::new())] }),
        http1: Some(Http1 { routes: vec![http_route_to(balancer())], failure_accrual: None }),
        http2: Some(Http2 { routes: vec![http_route_to(balancer())], failure_accrual: None }),
    };
    let read = outbound_policy(policy(Some(Kind::Detect(detect))));
    assert_eq!(read.ignored, []);
    assert_eq!((&*read.value.parent.name, read.value.parent.port), ("web", 80));
    let OutboundProtocol::Detect { http1, http2, opaque } = read.value.protocol else { panic!("not detect") };
    let expected = Backend {
        meta: Arc::new(ResourceRef::default_kind("service")),
        target: BackendTarget::Balance {
            authority: AUTHORITY.into(),
            default_rtt: Duration::from_millis(30),
            decay: Duration::from_secs(10),
        },
        filters: Vec::new(),
    };
    assert_eq!(http1, http2);
    assert_eq!(*http1[0].rules[0].distribution, Distribution::FirstAvailable(vec![expected.clone()]));
    assert_eq!(http1[0].route.rules.len(), http1[0].rules.len());
    assert_eq!(*opaque, Distribution::FirstAvailable(vec![expected]));
}

#[test]
fn an_undefined_port_is_forbidden() {
    let forbidden = wire::opaque_route::filter::Kind::Forbidden(wire_opaque::Forbidden {});
    let invalid = wire::opaque_route::filter::Kind::Invalid(wire_opaque::Invalid {
        message: "no such port".to_owned(),
    });
    for (filter, reason) in
        [(forbidden, "forbidden by policy (undefined-port)"), (invalid, "no such port (undefined-port)")]
    {
        let route = opaque_route(vec![wire::opaque_route::Filter { kind: Some(filter) }]);
        let read = outbound_policy(policy(Some(Kind::Opaque(Opaque { routes: vec![route] }))));
        let forbidden = OutboundProtocol::Opaque(Arc::new(Distribution::Forbidden(reason.into())));
        assert_eq!(read.value.protocol, forbidden);
    }
}

#[test]
fn an_opaque_policy_without_routes_goes_nowhere() {
    let read = outbound_policy(policy(Some(Kind::Opaque(Opaque { routes: Vec::new() }))));
    assert_eq!(read.value.protocol, OutboundProtocol::Opaque(Arc::new(Distribution::Empty)));
}

#[test]
fn weights_and_addresses_are_kept() {
    let addr: SocketAddr = "192.0.2.1:443".parse().unwrap();
    let weighted = |backend, weight| wire::http_route::WeightedRouteBackend {
        backend: Some(wire::http_route::RouteBackend { backend: Some(backend), ..Default::default() }),
        weight,
    };
    let random = wire::http_route::distribution::RandomAvailable {
        backends: vec![weighted(balancer(), 0), weighted(forward(addr), 7)],
    };
    let distribution = http_backends(
        &mut Reading::new(),
        wire::http_route::Distribution {
            kind: Some(wire::http_route::distribution::Kind::RandomAvailable(random)),
        },
    );
    let Ok(Distribution::RandomAvailable(backends)) = distribution else { panic!("{distribution:?}") };
    assert_eq!(backends.iter().map(|(_, weight)| *weight).collect::<Vec<_>>(), [0, 7]);
    assert!(matches!(&backends[1].0.target, BackendTarget::Forward(endpoint) if endpoint.addr == addr));
}

#[test]
fn grpc_routes_are_http2_routes() {
    let rule = wire::grpc_route::Rule {
        backends: Some(wire::grpc_route::Distribution {
            kind: Some(wire::grpc_route::distribution::Kind::Empty(wire::grpc_route::distribution::Empty {})),
        }),
        matches: vec![linkerd2_proxy_api::grpc_route::GrpcRouteMatch::default()],
        ..Default::default()
    };
    let routes = vec![wire::GrpcRoute { rules: vec![rule], ..Default::default() }];
    let read = outbound_policy(policy(Some(Kind::Grpc(Grpc { routes, failure_accrual: None }))));
    let OutboundProtocol::Grpc(routes) = read.value.protocol else { panic!("not gRPC") };
    assert_eq!(routes[0].route.rules[0].matches[0].method.as_deref(), Some("POST"));
    assert_eq!(*routes[0].rules[0].distribution, Distribution::Empty);
}

#[test]
fn tls_routes_are_chosen_by_name() {
    let sni = linkerd2_proxy_api::tls_route::SniMatch {
        r#match: Some(linkerd2_proxy_api::tls_route::sni_match::Match::Exact("API.example".to_owned())),
    };
    let routes = vec![wire::TlsRoute { metadata: None, snis: vec![sni], rules: Vec::new() }];
    let read = outbound_policy(policy(Some(Kind::Tls(Tls { routes }))));
    let OutboundProtocol::Tls(routes) = read.value.protocol else { panic!("not TLS") };
    assert_eq!(routes[0].snis, [remora_core::route::HostMatch::Exact("api.example".to_owned())]);
    assert_eq!(*routes[0].distribution, Distribution::Empty);
}

#[test]
fn a_rule_says_what_is_done_with_its_requests() {
    let redirect = || wire::http_route::filter::Kind::Redirect(wire_http::RequestRedirect::default());
    let mut route = http_route_to(balancer());
    let rule = &mut route.rules[0];
    rule.filters = vec![wire::http_route::Filter { kind: Some(redirect()) }];
    rule.timeouts = Some(wire_http::Timeouts {
        idle: Some(prost_types::Duration { seconds: 7, nanos: 0 }),
        ..wire_http::Timeouts::default()
    });
    rule.retry = Some(wire::http_route::Retry {
        conditions: Some(wire::http_route::retry::Conditions::default()),
        max_retries: 5,
        ..wire::http_route::Retry::default()
    });
    rule.allow_l5d_request_headers = true;
    if let Some(wire::http_route::Distribution {
        kind: Some(wire::http_route::distribution::Kind::FirstAvailable(first)),
    }) = &mut rule.backends
    {
        first.backends[0].filters = vec![wire::http_route::Filter { kind: Some(redirect()) }];
    }
    let read =
        outbound_policy(policy(Some(Kind::Http1(Http1 { routes: vec![route], failure_accrual: None }))));
    assert_eq!(read.ignored, []);
    let OutboundProtocol::Http1(routes) = read.value.protocol else { panic!("not HTTP/1") };
    let rule = &routes[0].rules[0];
    assert!(matches!(rule.filters[..], [Filter::Redirect(_)]));
    assert_eq!(rule.timeouts.idle, Some(Duration::from_secs(7)));
    assert_eq!(rule.retry.as_ref().map(|retry| retry.limit), Some(5));
    assert!(rule.heeds_wishes);
    let Distribution::FirstAvailable(backends) = &*rule.distribution else { panic!("not first") };
    assert!(matches!(backends[0].filters[..], [Filter::Redirect(_)]));
}

#[test]
fn breakers_are_read_or_refused() {
    let backoff = wire::ExponentialBackoff {
        min_backoff: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
        max_backoff: Some(prost_types::Duration { seconds: 60, nanos: 0 }),
        ..Default::default()
    };
    for (backoff, invalid) in [
        (Some(backoff), None),
        (None, Some("protocol.http1.failure_accrual.consecutive_failures.backoff: missing")),
    ] {
        let row = wire::failure_accrual::ConsecutiveFailures { max_failures: 3, backoff };
        let kind = Some(wire::failure_accrual::Kind::ConsecutiveFailures(row));
        let accrual = Some(wire::FailureAccrual { kind, ejection: None });
        let http1 = Http1 { routes: vec![http_route_to(balancer())], failure_accrual: accrual };
        let read = outbound_policy(policy(Some(Kind::Http1(http1))));
        assert_eq!(read.ignored, []);
        let found = match &read.value.protocol {
            OutboundProtocol::Invalid(reason) => Some(&**reason),
            _ => None,
        };
        assert_eq!(found, invalid);
        let max_failures = read.value.accrual.http1.map(|accrual| accrual.max_failures);
        assert_eq!(max_failures, invalid.is_none().then_some(3));
    }
}

#[test]
fn what_is_not_understood_goes_nowhere_and_says_why() {
    let http1 = |route| Some(Kind::Http1(Http1 { routes: vec![route], failure_accrual: None }));
    let mut filtered = http_route_to(balancer());
    let status = wire_http::RequestRedirect { status: 200, ..wire_http::RequestRedirect::default() };
    let redirect = wire::http_route::filter::Kind::Redirect(status);
    filtered.rules[0].filters = vec![wire::http_route::Filter { kind: Some(redirect) }];
    let mut retried = http_route_to(balancer());
    retried.rules[0].retry = Some(wire::http_route::Retry::default());
    let mut unrouted = http_route_to(balancer());
    unrouted.rules[0].backends = None;
    let mut undistributed = http_route_to(balancer());
    undistributed.rules[0].backends = Some(wire::http_route::Distribution { kind: None });
    let undetected = Detect { http1: None, http2: None, opaque: None, timeout: None };
    let undiscovered =
        wire::backend::Kind::Balancer(wire::backend::BalanceP2c { discovery: None, load: None });
    for (kind, reason) in [
        (None, "protocol: missing"),
        (Some(Kind::Detect(undetected)), "protocol.detect.http1: missing"),
        (http1(filtered), "protocol.http1.routes[0].rules[0].filters[0].redirect.status: 200 is no redirect"),
        (http1(retried), "protocol.http1.routes[0].rules[0].retry.conditions: missing"),
        (http1(unrouted), "protocol.http1.routes[0].rules[0].backends: missing"),
        (http1(undistributed), "protocol.http1.routes[0].rules[0].backends: neither"),
        (
            http1(http_route_to(wire::Backend { kind: Some(undiscovered), ..balancer() })),
            "protocol.http1.routes[0].rules[0].backends.first_available.backends[0].backend.kind.balancer.discovery",
        ),
    ] {
        let read = outbound_policy(policy(kind)).value;
        let OutboundProtocol::Invalid(why) = &read.protocol else { panic!("{reason}: {read:?}") };
        assert!(why.starts_with(reason), "{why} should begin with {reason}");
        assert_eq!(&*read.parent.name, "web", "metrics still name the parent");
    }
}

#[test]
fn a_backend_that_is_nowhere_fails_its_share_alone() {
    let mut injected = opaque_route(Vec::new());
    let forbidden = wire::opaque_route::filter::Kind::Forbidden(wire_opaque::Forbidden {});
    if let Some(wire::opaque_route::Distribution {
        kind: Some(wire::opaque_route::distribution::Kind::FirstAvailable(first)),
    }) = &mut injected.rules[0].backends
    {
        first.backends[0].filters = vec![wire::opaque_route::Filter { kind: Some(forbidden) }];
    }
    let kindless = wire::Backend { kind: None, ..balancer() };
    let http1 = Http1 { routes: vec![http_route_to(kindless)], failure_accrual: None };
    let read = outbound_policy(policy(Some(Kind::Http1(http1)))).value;
    let OutboundProtocol::Http1(routes) = &read.protocol else { panic!("{read:?}") };
    let Distribution::FirstAvailable(backends) = &*routes[0].rules[0].distribution else {
        panic!("{read:?}")
    };
    assert!(matches!(&backends[0].target, BackendTarget::Nowhere(_)), "{read:?}");
    let read = outbound_policy(policy(Some(Kind::Opaque(Opaque { routes: vec![injected] })))).value;
    let OutboundProtocol::Opaque(distribution) = &read.protocol else { panic!("{read:?}") };
    let Distribution::FirstAvailable(backends) = &**distribution else { panic!("{read:?}") };
    assert_eq!(backends[0].target, BackendTarget::Nowhere(FORBIDDEN.into()));
}

#[test]
fn a_decay_of_zero_is_the_default() {
    let zero = Some(prost_types::Duration { seconds: 0, nanos: 0 });
    assert_eq!(time_or(zero, DEFAULT_DECAY), Ok(DEFAULT_DECAY));
    assert_eq!(time_or(None, DEFAULT_DECAY), Ok(DEFAULT_DECAY));
    assert!(time_or(Some(prost_types::Duration { seconds: -1, nanos: 0 }), DEFAULT_DECAY).is_err());
}

fn policy(kind: Option<Kind>) -> wire::OutboundPolicy {
    let parent = meta::Resource { name: "web".to_owned(), port: 80, ..meta::Resource::default() };
    wire::OutboundPolicy {
        metadata: Some(meta::Metadata { kind: Some(meta::metadata::Kind::Resource(parent)) }),
        protocol: Some(wire::ProxyProtocol { kind }),
    }
}

fn default_ref(name: &str) -> meta::Metadata {
    meta::Metadata { kind: Some(meta::metadata::Kind::Default(name.to_owned())) }
}

fn balancer() -> wire::Backend {
    use wire::backend::{BalanceP2c, EndpointDiscovery, balance_p2c, endpoint_discovery};
    let dst = endpoint_discovery::DestinationGet { path: AUTHORITY.to_owned() };
    let ewma = balance_p2c::PeakEwma {
        default_rtt: Some(prost_types::Duration { seconds: 0, nanos: 30_000_000 }),
        decay: Some(prost_types::Duration { seconds: 10, nanos: 0 }),
    };
    wire::Backend {
        metadata: Some(default_ref("service")),
        queue: Some(wire::Queue::default()),
        kind: Some(wire::backend::Kind::Balancer(BalanceP2c {
            discovery: Some(EndpointDiscovery { kind: Some(endpoint_discovery::Kind::Dst(dst)) }),
            load: Some(balance_p2c::Load::PeakEwma(ewma)),
        })),
    }
}

fn forward(addr: SocketAddr) -> wire::Backend {
    let addr = wire_dst::WeightedAddr { addr: Some(addr.into()), ..Default::default() };
    wire::Backend { metadata: None, queue: None, kind: Some(wire::backend::Kind::Forward(addr)) }
}

fn http_route_to(backend: wire::Backend) -> wire::HttpRoute {
    let first = wire::http_route::distribution::FirstAvailable {
        backends: vec![wire::http_route::RouteBackend { backend: Some(backend), ..Default::default() }],
    };
    let kind = wire::http_route::distribution::Kind::FirstAvailable(first);
    let backends = Some(wire::http_route::Distribution { kind: Some(kind) });
    wire::HttpRoute {
        metadata: Some(default_ref("http")),
        rules: vec![wire::http_route::Rule { backends, ..Default::default() }],
        ..Default::default()
    }
}

fn opaque_route(filters: Vec<wire::opaque_route::Filter>) -> wire::OpaqueRoute {
    let first = wire::opaque_route::distribution::FirstAvailable {
        backends: vec![wire::opaque_route::RouteBackend { backend: Some(balancer()), ..Default::default() }],
    };
    let kind = wire::opaque_route::distribution::Kind::FirstAvailable(first);
    let backends = Some(wire::opaque_route::Distribution { kind: Some(kind) });
    wire::OpaqueRoute {
        metadata: Some(default_ref("undefined-port")),
        rules: vec![wire::opaque_route::Rule { backends, filters }],
    }
}

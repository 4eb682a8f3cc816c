//! Pure. Outbound policies on the wire. Contract 3.3.
//!
//! Everything that proxies insist on is here whether they use it or not: metadata and a queue on every backend, all
//! four parts of `Detect`.

use super::{WEIGHT, default_ref, seconds, service_ref};
use crate::view::{Outbound, PortProtocol, Settings};
use linkerd2_proxy_api::{
    destination,
    http_route::{HttpRouteMatch, PathMatch, path_match},
    meta, opaque_route, outbound as api,
};

/// How long a proxy may look for a protocol. Linkerd's proxy goes by its own setting instead (contract 1.6).
const DETECT_TIMEOUT: i64 = 10;
/// Starting estimate of a round trip: 30 ms.
const DEFAULT_RTT: prost_types::Duration = prost_types::Duration { seconds: 0, nanos: 30_000_000 };
/// How fast that estimate forgets.
const RTT_DECAY: i64 = 10;

/// A policy.
pub fn policy(outbound: &Outbound, settings: &Settings) -> api::OutboundPolicy {
    match outbound {
        Outbound::Service { name, port, protocol } => {
            let metadata = service_ref(&name.namespace, &name.name, *port);
            let authority = format!("{}:{port}", settings.service_name(name));
            let backend = balancer(metadata.clone(), authority);
            policy_of(metadata, protocol_of(*protocol, backend, [default_ref("http"), default_ref("opaq")]))
        }
        Outbound::UndefinedPort { name, port } => {
            let forbidden = api::opaque_route::Filter {
                kind: Some(api::opaque_route::filter::Kind::Forbidden(opaque_route::Forbidden {})),
            };
            let nowhere =
                api::opaque_route::distribution::Kind::Empty(api::opaque_route::distribution::Empty {});
            let route = opaque_route(default_ref("undefined-port"), nowhere, vec![forbidden]);
            policy_of(service_ref(&name.namespace, &name.name, *port), opaque(route))
        }
        Outbound::External(addr) => {
            let metadata = default_ref("egress-fallback");
            let forward = destination::WeightedAddr {
                addr: Some((*addr).into()),
                weight: WEIGHT,
                ..destination::WeightedAddr::default()
            };
            let backend = backend(metadata.clone(), api::backend::Kind::Forward(forward));
            let names = [metadata.clone(), metadata.clone()];
            policy_of(metadata, protocol_of(PortProtocol::Detect, backend, names))
        }
    }
}

fn policy_of(metadata: meta::Metadata, kind: api::proxy_protocol::Kind) -> api::OutboundPolicy {
    api::OutboundPolicy { metadata: Some(metadata), protocol: Some(api::ProxyProtocol { kind: Some(kind) }) }
}

/// One backend for everything, under routes of the given names (HTTP, opaque).
fn protocol_of(
    protocol: PortProtocol,
    backend: api::Backend,
    [http_name, opaque_name]: [meta::Metadata; 2],
) -> api::proxy_protocol::Kind {
    use api::proxy_protocol::{Detect, Http1, Http2, Kind, Opaque};
    let http = http_route(http_name, backend.clone());
    let first = api::opaque_route::distribution::FirstAvailable {
        backends: vec![api::opaque_route::RouteBackend { backend: Some(backend), filters: Vec::new() }],
    };
    let first = api::opaque_route::distribution::Kind::FirstAvailable(first);
    let opaque_route = opaque_route(opaque_name, first, Vec::new());
    match protocol {
        PortProtocol::Http1 => Kind::Http1(Http1 { routes: vec![http], failure_accrual: None }),
        PortProtocol::Http2 => Kind::Http2(Http2 { routes: vec![http], failure_accrual: None }),
        PortProtocol::Opaque => opaque(opaque_route),
        PortProtocol::Detect => Kind::Detect(Detect {
            timeout: Some(seconds(DETECT_TIMEOUT)),
            opaque: Some(Opaque { routes: vec![opaque_route] }),
            http1: Some(Http1 { routes: vec![http.clone()], failure_accrual: None }),
            http2: Some(Http2 { routes: vec![http], failure_accrual: None }),
        }),
    }
}

fn http_route(metadata: meta::Metadata, backend: api::Backend) -> api::HttpRoute {
    use api::http_route::{Distribution, RouteBackend, Rule, distribution};
    let first = distribution::FirstAvailable {
        backends: vec![RouteBackend { backend: Some(backend), ..RouteBackend::default() }],
    };
    let path = PathMatch { kind: Some(path_match::Kind::Prefix("/".to_owned())) };
    api::HttpRoute {
        metadata: Some(metadata),
        hosts: Vec::new(),
        rules: vec![Rule {
            matches: vec![HttpRouteMatch { path: Some(path), ..HttpRouteMatch::default() }],
            backends: Some(Distribution { kind: Some(distribution::Kind::FirstAvailable(first)) }),
            ..Rule::default()
        }],
    }
}

fn opaque_route(
    metadata: meta::Metadata,
    distribution: api::opaque_route::distribution::Kind,
    filters: Vec<api::opaque_route::Filter>,
) -> api::OpaqueRoute {
    let backends = Some(api::opaque_route::Distribution { kind: Some(distribution) });
    api::OpaqueRoute { metadata: Some(metadata), rules: vec![api::opaque_route::Rule { backends, filters }] }
}

fn opaque(route: api::OpaqueRoute) -> api::proxy_protocol::Kind {
    api::proxy_protocol::Kind::Opaque(api::proxy_protocol::Opaque { routes: vec![route] })
}

fn balancer(metadata: meta::Metadata, authority: String) -> api::Backend {
    use api::backend::{BalanceP2c, EndpointDiscovery, balance_p2c, endpoint_discovery};
    let get = endpoint_discovery::DestinationGet { path: authority };
    let ewma = balance_p2c::PeakEwma { default_rtt: Some(DEFAULT_RTT), decay: Some(seconds(RTT_DECAY)) };
    let balancer = BalanceP2c {
        discovery: Some(EndpointDiscovery { kind: Some(endpoint_discovery::Kind::Dst(get)) }),
        load: Some(balance_p2c::Load::PeakEwma(ewma)),
    };
    backend(metadata, api::backend::Kind::Balancer(balancer))
}

fn backend(metadata: meta::Metadata, kind: api::backend::Kind) -> api::Backend {
    // Linkerd's proxy refuses a backend without a queue, and makes use of neither figure (contract 10).
    let queue = api::Queue { capacity: 100, failfast_timeout: Some(seconds(3)) };
    api::Backend { metadata: Some(metadata), kind: Some(kind), queue: Some(queue) }
}

//! Pure. Outbound policies on the wire. Contract 3.3.
//!
//! Everything that proxies insist on is here whether they use it or not: metadata and a queue on every backend, all
//! four parts of `Detect`.

mod bytes;
pub(super) mod grpc;
pub(super) mod http;
mod own;
pub(super) mod parts;

pub use own::own_policy;

use super::{WEIGHT, default_ref, duration, seconds, service_ref, weighted_addr};
use crate::view::{Family, Outbound, PortProtocol, Resilience, ServicePolicy, Settings};
use linkerd2_proxy_api::{destination, meta, opaque_route, outbound as api};
use parts::{Api, Ways};

/// How long a proxy may look for a protocol. Linkerd's proxy goes by its own setting instead (contract 1.6).
const DETECT_TIMEOUT: i64 = 10;

/// A policy.
pub fn policy(outbound: &Outbound, settings: &Settings) -> api::OutboundPolicy {
    said(outbound, settings, Api::Linkerds)
}

/// A policy in Linkerd's messages, alone or with our own words beside it.
fn said(outbound: &Outbound, settings: &Settings, api: Api) -> api::OutboundPolicy {
    match outbound {
        Outbound::Service(policy) => service(policy, &Ways::of_service(policy, settings, api)),
        Outbound::Pod(services) => {
            let first = services.first().map(|one| service(&one.policy, &Ways::of_pod(one, settings, api)));
            first.unwrap_or_default()
        }
        Outbound::UndefinedPort { name, port } => {
            let forbidden = api::opaque_route::Filter {
                kind: Some(api::opaque_route::filter::Kind::Forbidden(opaque_route::Forbidden {})),
            };
            let route = bytes::refusing(default_ref("undefined-port"), forbidden);
            policy_of(service_ref(&name.namespace, &name.name, *port), opaque(route))
        }
        Outbound::External(addr) => {
            let to = destination::WeightedAddr {
                addr: Some((*addr).into()),
                weight: WEIGHT,
                ..destination::WeightedAddr::default()
            };
            forward("egress-fallback", to)
        }
        Outbound::Endpoint(addr, endpoint) => forward("endpoint", weighted_addr(*addr, endpoint)),
    }
}

/// Everything to one address, whatever it is.
fn forward(name: &str, to: destination::WeightedAddr) -> api::OutboundPolicy {
    let metadata = default_ref(name);
    let backend = parts::backend(metadata.clone(), Some(api::backend::Kind::Forward(to)));
    let http = vec![http::everything(metadata.clone(), backend.clone(), &Resilience::default())];
    let opaque = bytes::everything(metadata.clone(), backend);
    policy_of(metadata, by_protocol(PortProtocol::Detect, http, opaque, None))
}

fn policy_of(metadata: meta::Metadata, kind: api::proxy_protocol::Kind) -> api::OutboundPolicy {
    api::OutboundPolicy { metadata: Some(metadata), protocol: Some(api::ProxyProtocol { kind: Some(kind) }) }
}

/// The policy of a Service's port, whose traffic goes these ways.
fn service(policy: &ServicePolicy, ways: &Ways<'_>) -> api::OutboundPolicy {
    let metadata = service_ref(&policy.name.namespace, &policy.name.name, policy.port);
    policy_of(metadata, protocol(policy, ways))
}

fn protocol(policy: &ServicePolicy, ways: &Ways<'_>) -> api::proxy_protocol::Kind {
    use api::proxy_protocol::{Grpc, Kind, Opaque, Tls};
    let failure_accrual = policy.accrual.map(parts::failure_accrual);
    match policy.routes.first().map(|route| Family::of(route.id.kind)) {
        Some(Family::Grpc) => {
            let routes = policy.routes.iter().map(|route| grpc::route(route, ways)).collect();
            Kind::Grpc(Grpc { routes, failure_accrual })
        }
        Some(Family::Tls) => {
            Kind::Tls(Tls { routes: policy.routes.iter().map(|route| bytes::tls(route, ways)).collect() })
        }
        Some(Family::Tcp) => Kind::Opaque(Opaque {
            routes: policy.routes.iter().map(|route| bytes::opaque(route, ways)).collect(),
        }),
        Some(Family::Http) => {
            let routes = policy.routes.iter().map(|route| http::route(route, ways)).collect();
            by_protocol(policy.protocol, routes, default_opaque(ways), failure_accrual)
        }
        None => {
            let route = http::everything(default_ref("http"), ways.itself.clone(), &policy.resilience);
            by_protocol(policy.protocol, vec![route], default_opaque(ways), failure_accrual)
        }
    }
}

fn default_opaque(ways: &Ways<'_>) -> api::OpaqueRoute {
    bytes::everything(default_ref("opaq"), ways.itself.clone())
}

fn by_protocol(
    protocol: PortProtocol,
    routes: Vec<api::HttpRoute>,
    bytes: api::OpaqueRoute,
    failure_accrual: Option<api::FailureAccrual>,
) -> api::proxy_protocol::Kind {
    use api::proxy_protocol::{Detect, Http1, Http2, Kind, Opaque};
    match protocol {
        PortProtocol::Http1 => Kind::Http1(Http1 { routes, failure_accrual }),
        PortProtocol::Http2 => Kind::Http2(Http2 { routes, failure_accrual }),
        PortProtocol::Opaque => opaque(bytes),
        PortProtocol::Detect => Kind::Detect(Detect {
            timeout: Some(seconds(DETECT_TIMEOUT)),
            opaque: Some(Opaque { routes: vec![bytes] }),
            http1: Some(Http1 { routes: routes.clone(), failure_accrual }),
            http2: Some(Http2 { routes, failure_accrual }),
        }),
    }
}

fn opaque(route: api::OpaqueRoute) -> api::proxy_protocol::Kind {
    api::proxy_protocol::Kind::Opaque(api::proxy_protocol::Opaque { routes: vec![route] })
}

//! Pure. How answers are written in Linkerd's API: one function per message. Contract 3.1 to 3.4.

mod inbound;
mod outbound;
mod profile;

pub use inbound::server;
pub use outbound::{own_policy, policy};
pub use profile::destination_profile;

use crate::view::{Endpoint, Endpoints};
use linkerd2_proxy_api::{destination as api, http_types, meta, net};
use remora_core::{endpoint::ProtocolHint, identity::Kind};
use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

/// An ordinary endpoint's weight. Linkerd's proxies ignore it.
const WEIGHT: u32 = 10_000;

/// The message that takes a client from what it knows to what there is: nothing, one update, or two (contract 3.1).
/// What is new or different is added, what is gone removed.
pub fn difference(old: &Endpoints, new: &Endpoints) -> Vec<api::Update> {
    let added: Vec<_> = new
        .set
        .iter()
        .filter(|(addr, endpoint)| old.labels != new.labels || old.set.get(addr) != Some(endpoint))
        .map(|(addr, endpoint)| weighted_addr(*addr, endpoint))
        .collect();
    let removed: Vec<net::TcpAddress> =
        old.set.keys().filter(|addr| !new.set.contains_key(addr)).map(|addr| (*addr).into()).collect();
    let mut updates = Vec::new();
    if !added.is_empty() {
        updates.push(add(added, &new.labels));
    }
    if !removed.is_empty() {
        updates.push(update(api::update::Update::Remove(api::AddrSet { addrs: removed })));
    }
    updates
}

/// The first message of a stream: everything, even if that is nothing. A balancer that hears nothing fails its
/// requests after 3 s (contract 11.2).
pub fn everything(endpoints: &Endpoints) -> api::Update {
    let addrs = endpoints.set.iter().map(|(addr, endpoint)| weighted_addr(*addr, endpoint)).collect();
    add(addrs, &endpoints.labels)
}

/// The message for a Service that was deleted.
pub fn does_not_exist() -> api::Update {
    update(api::update::Update::NoEndpoints(api::NoEndpoints { exists: false }))
}

fn add(addrs: Vec<api::WeightedAddr>, labels: &BTreeMap<String, String>) -> api::Update {
    let metric_labels = labels.clone().into_iter().collect();
    update(api::update::Update::Add(api::WeightedAddrSet { addrs, metric_labels }))
}

fn update(update: api::update::Update) -> api::Update {
    api::Update { update: Some(update) }
}

fn weighted_addr(addr: SocketAddr, endpoint: &Endpoint) -> api::WeightedAddr {
    use api::{http2_client_params::KeepAlive, protocol_hint, tls_identity};
    let protocol = match endpoint.hint {
        ProtocolHint::Unknown => None,
        ProtocolHint::Http2 => Some(protocol_hint::Protocol::H2(protocol_hint::H2 {})),
        ProtocolHint::Opaque => Some(protocol_hint::Protocol::Opaque(protocol_hint::Opaque {})),
    };
    let opaque_transport = endpoint
        .opaque_transport
        .map(|port| protocol_hint::OpaqueTransport { inbound_port: u32::from(port) });
    let tls_identity = endpoint.identity.as_ref().map(|identity| {
        let name = identity.as_str().to_owned();
        let dns = tls_identity::DnsLikeIdentity { name: name.clone() };
        let strategy = match identity.kind() {
            Kind::Dns => tls_identity::Strategy::DnsLikeIdentity(dns.clone()),
            Kind::Uri => tls_identity::Strategy::UriLikeIdentity(tls_identity::UriLikeIdentity { uri: name }),
        };
        api::TlsIdentity { strategy: Some(strategy), server_name: Some(dns) }
    });
    // A proxy that went away without a word is noticed within 13 s, even between requests.
    let keep_alive = KeepAlive { interval: Some(seconds(10)), timeout: Some(seconds(3)), while_idle: true };
    api::WeightedAddr {
        addr: Some(addr.into()),
        weight: endpoint.weight.unwrap_or(WEIGHT),
        metric_labels: endpoint.labels.clone().into_iter().collect(),
        tls_identity,
        protocol_hint: endpoint.meshed.then_some(api::ProtocolHint { protocol, opaque_transport }),
        http2: endpoint.meshed.then(|| api::Http2ClientParams {
            keep_alive: Some(keep_alive),
            ..api::Http2ClientParams::default()
        }),
        ..api::WeightedAddr::default()
    }
}

fn service_ref(namespace: &str, name: &str, port: u16) -> meta::Metadata {
    meta::Metadata {
        kind: Some(meta::metadata::Kind::Resource(meta::Resource {
            group: "core".to_owned(),
            kind: "Service".to_owned(),
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            section: String::new(),
            port: u32::from(port),
        })),
    }
}

fn default_ref(name: &str) -> meta::Metadata {
    meta::Metadata { kind: Some(meta::metadata::Kind::Default(name.to_owned())) }
}

fn http_method(method: &str) -> http_types::HttpMethod {
    use http_types::http_method::{Registered, Type};
    let registered = Registered::from_str_name(method).map(|known| Type::Registered(known.into()));
    let unregistered = || Type::Unregistered(method.to_owned());
    http_types::HttpMethod { r#type: Some(registered.unwrap_or_else(unregistered)) }
}

fn duration(duration: Duration) -> prost_types::Duration {
    let nanos = i32::try_from(duration.subsec_nanos()).unwrap_or_default();
    prost_types::Duration { nanos, ..seconds(i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)) }
}

fn seconds(seconds: i64) -> prost_types::Duration {
    prost_types::Duration { seconds, nanos: 0 }
}

#[cfg(test)]
mod tests;

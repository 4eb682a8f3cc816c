//! `Destination.Get`: endpoints. Contract 3.1.

use super::{Converted, Invalid, Reading, parts};
use linkerd2_proxy_api::destination as wire;
#[cfg(planted)]
use remora_core::planted;
use remora_core::{
    endpoint::{Endpoint, EndpointTls, Labels, ProtocolHint},
    identity::Identity,
};
use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::Arc,
};

/// Most labels of an endpoint; of more, the first by name are kept.
const MAX_LABELS: usize = 32;
/// Most bytes of a label's value; what is longer is cut.
const MAX_LABEL_VALUE: usize = 256;

/// The label that says whether an endpoint is meant for clients of the zone of whoever asks. Linkerd's proxies have it in
/// their metrics; our control plane says it to those who can leave their zone ([`ZONES`]).
pub const ZONE_LOCALITY: &str = "zone_locality";
/// Its value for an endpoint that is meant for others.
pub const REMOTE: &str = "remote";
/// Its value for the others, where there are such.
pub const LOCAL: &str = "local";
/// The field of a request's metadata by which a proxy says that it chooses among zones by itself, and the word for it.
pub const ZONES: (&str, &str) = ("remora-zones", "all");

/// What a message of `Get` changes.
#[derive(Clone, Debug, PartialEq)]
pub enum Update {
    /// Add these, or replace those of the same address.
    Add(Vec<Endpoint>),
    /// Remove these.
    Remove(Vec<SocketAddr>),
    /// Remove all.
    NoEndpoints {
        /// Does the service exist at all?
        exists: bool,
    },
}

/// Reads a message of `Get`. An endpoint that cannot be understood is left out and listed, so that one bad pod does
/// not take a service down; it is never kept with less security than it was meant to have.
pub fn update(wire: wire::Update) -> Result<Converted<Update>, Invalid> {
    let mut reading = Reading::new();
    let update = match wire.update {
        Some(wire::update::Update::Add(set)) => Update::Add(add(&mut reading, set)),
        Some(wire::update::Update::Remove(set)) => {
            Update::Remove(reading.each("remove.addrs", set.addrs, |_, addr| parts::socket_addr(addr))?)
        }
        Some(wire::update::Update::NoEndpoints(none)) => Update::NoEndpoints { exists: none.exists },
        None => return Err(Invalid::new("neither add, remove nor no_endpoints").within("update")),
    };
    Ok(reading.finish(update))
}

fn add(reading: &mut Reading, set: wire::WeightedAddrSet) -> Vec<Endpoint> {
    let mut endpoints = Vec::with_capacity(set.addrs.len());
    for (i, addr) in set.addrs.into_iter().enumerate() {
        match reading.at(&format!("add.addrs[{i}]"), |reading| endpoint(reading, addr, &set.metric_labels)) {
            Ok(endpoint) => endpoints.push(endpoint),
            Err(invalid) => reading.ignore(invalid.to_string()),
        }
    }
    endpoints
}

/// One endpoint; `set_labels` are those of its set, and its own win over them.
pub(super) fn endpoint(
    reading: &mut Reading,
    wire: wire::WeightedAddr,
    set_labels: &HashMap<String, String>,
) -> Result<Endpoint, Invalid> {
    let addr = reading.required("addr", wire.addr, |_, addr| parts::socket_addr(addr))?;
    // A controller that names an identity wants it proven: if it cannot be read the endpoint is unusable, not plain.
    let tls = wire.tls_identity.map(|tls| reading.at("tls_identity", |_| tls_identity(tls))).transpose();
    #[cfg(planted)]
    let tls = if planted::makes(planted::Mistake::PlainInsteadOfNothing) { tls.or(Ok(None)) } else { tls };
    let tls = tls?;
    let hint = wire.protocol_hint.unwrap_or_default();
    let opaque_transport = match hint.opaque_transport {
        Some(transport) => Some(
            reading
                .at("protocol_hint.opaque_transport.inbound_port", |_| parts::port(transport.inbound_port))?,
        ),
        None => None,
    };
    reading.ignore_if(wire.http2.is_some(), "http2");
    Ok(Endpoint {
        addr,
        weight: wire.weight,
        remote: wire.metric_labels.get(ZONE_LOCALITY).is_some_and(|locality| locality == REMOTE),
        tls,
        hint: match hint.protocol {
            None => ProtocolHint::Unknown,
            Some(wire::protocol_hint::Protocol::H2(_)) => ProtocolHint::Http2,
            Some(wire::protocol_hint::Protocol::Opaque(_)) => ProtocolHint::Opaque,
        },
        opaque_transport,
        authority_override: wire
            .authority_override
            .map(|authority| authority.authority_override)
            .filter(|authority| !authority.is_empty())
            .map(Arc::from),
        labels: labels(set_labels, &wire.metric_labels),
    })
}

fn tls_identity(wire: wire::TlsIdentity) -> Result<EndpointTls, Invalid> {
    use wire::tls_identity::Strategy;
    let server_name = wire.server_name.map(|name| parts::dns_name(&name.name)).transpose();
    let server_name = server_name.map_err(|invalid| invalid.within("server_name"))?;
    let (identity, server_name): (Identity, Identity) = match wire.strategy {
        Some(Strategy::DnsLikeIdentity(dns)) => {
            let identity =
                parts::dns_name(&dns.name).map_err(|invalid| invalid.within("dns_like_identity"))?;
            (identity.clone(), server_name.unwrap_or(identity))
        }
        Some(Strategy::UriLikeIdentity(uri)) => {
            let identity =
                parts::identity(&uri.uri).map_err(|invalid| invalid.within("uri_like_identity"))?;
            (identity, server_name.ok_or_else(|| Invalid::new("missing").within("server_name"))?)
        }
        None => return Err(Invalid::new("neither a DNS-like nor a URI-like identity").within("strategy")),
    };
    Ok(EndpointTls { identity, server_name: server_name.as_str().into() })
}

/// Names as Prometheus takes them, values of bounded length.
pub(super) fn labels(set: &HashMap<String, String>, own: &HashMap<String, String>) -> Labels {
    let mut merged: BTreeMap<String, &str> =
        set.iter().map(|(name, value)| (label_name(name), value.as_str())).collect();
    merged.extend(own.iter().map(|(name, value)| (label_name(name), value.as_str())));
    let kept = merged.into_iter().take(MAX_LABELS);
    Arc::new(kept.map(|(name, value)| (Arc::from(name), Arc::from(cut(value)))).collect())
}

/// Printed after `dst_`, so a digit may come first.
fn label_name(name: &str) -> String {
    name.chars().take(64).map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
}

fn cut(value: &str) -> &str {
    let end = (0..=MAX_LABEL_VALUE.min(value.len())).rev().find(|end| value.is_char_boundary(*end));
    value.get(..end.unwrap_or_default()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::tls_identity::{DnsLikeIdentity, Strategy, UriLikeIdentity};

    const NAME: &str = "web.shop.serviceaccount.identity.remora.cluster.local";

    #[test]
    fn a_meshed_endpoint_keeps_all_that_dialling_needs() {
        let read = endpoint(&mut Reading::new(), meshed("10.0.0.7:8080"), &HashMap::new()).unwrap();
        let tls = read.tls.clone().unwrap();
        assert_eq!((tls.identity.as_str(), &*tls.server_name), (NAME, NAME));
        assert_eq!(read.addr, "10.0.0.7:8080".parse().unwrap());
        assert_eq!(
            (read.hint, read.opaque_transport, read.weight),
            (ProtocolHint::Http2, Some(4143), 10_000)
        );
        assert_eq!(read.authority_override, None);
    }

    #[test]
    fn an_endpoints_labels_win_over_its_sets() {
        let map = |pairs: &[(&str, &str)]| -> HashMap<String, String> {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        let long = "ü".repeat(500);
        let read = labels(
            &map(&[("service", "web"), ("pod", "from the set")]),
            &map(&[("pod", "web-1"), ("k8s.io/zone", "a"), ("long", &long)]),
        );
        let read: Vec<(&str, &str)> = read.iter().map(|(name, value)| (&**name, &**value)).collect();
        let short = "ü".repeat(128);
        assert_eq!(read, [("k8s_io_zone", "a"), ("long", &short), ("pod", "web-1"), ("service", "web")]);
        let many = (0..1000).map(|i| (format!("l{i}"), String::new())).collect();
        assert_eq!(labels(&HashMap::new(), &many).len(), MAX_LABELS);
    }

    #[test]
    fn uri_identities_need_a_server_name() {
        let uri =
            || Some(Strategy::UriLikeIdentity(UriLikeIdentity { uri: "spiffe://td/ns/a/sa/b".to_owned() }));
        let tls = wire::TlsIdentity { server_name: None, strategy: uri() };
        assert_eq!(tls_identity(tls).unwrap_err().to_string(), "server_name: missing");
        let server_name = Some(DnsLikeIdentity { name: "b.a.example".to_owned() });
        let read = tls_identity(wire::TlsIdentity { server_name, strategy: uri() }).unwrap();
        assert_eq!((read.identity.as_str(), &*read.server_name), ("spiffe://td/ns/a/sa/b", "b.a.example"));
    }

    #[test]
    fn an_endpoint_whose_identity_cannot_be_read_is_left_out_not_plain() {
        let mut nameless = meshed("10.0.0.1:80");
        nameless.tls_identity = Some(wire::TlsIdentity { server_name: None, strategy: None });
        let mut misnamed = meshed("10.0.0.2:80");
        misnamed.tls_identity = Some(dns("not a name"));
        let mut portless = meshed("10.0.0.3:80");
        portless.protocol_hint = Some(wire::ProtocolHint {
            protocol: None,
            opaque_transport: Some(wire::protocol_hint::OpaqueTransport { inbound_port: 70_000 }),
        });
        let addrless = wire::WeightedAddr { addr: None, ..meshed("10.0.0.4:80") };
        let set = wire::WeightedAddrSet {
            addrs: vec![nameless, misnamed, portless, addrless, meshed("10.0.0.5:80")],
            metric_labels: HashMap::new(),
        };
        let read = update(wire::Update { update: Some(wire::update::Update::Add(set)) }).unwrap();
        let Update::Add(endpoints) = read.value else { panic!("not an add") };
        assert_eq!(endpoints.len(), 1);
        assert_eq!(endpoints[0].addr, "10.0.0.5:80".parse().unwrap());
        for (note, place) in read.ignored.iter().zip([
            "add.addrs[0].tls_identity.strategy: ",
            "add.addrs[1].tls_identity.dns_like_identity: ",
            "add.addrs[2].protocol_hint.opaque_transport.inbound_port: ",
            "add.addrs[3].addr: missing",
        ]) {
            assert!(note.starts_with(place), "{note} begins with {place}");
        }
        assert_eq!(read.ignored.len(), 4);
    }

    #[test]
    fn removals_and_absence() {
        let addr: SocketAddr = "10.0.0.1:80".parse().unwrap();
        let remove = wire::update::Update::Remove(wire::AddrSet { addrs: vec![addr.into()] });
        let none = wire::update::Update::NoEndpoints(wire::NoEndpoints { exists: true });
        for (wire, expected) in [
            (Some(remove), Some(Update::Remove(vec![addr]))),
            (Some(none), Some(Update::NoEndpoints { exists: true })),
            (None, None),
        ] {
            assert_eq!(update(wire::Update { update: wire }).ok().map(|read| read.value), expected);
        }
    }

    fn meshed(addr: &str) -> wire::WeightedAddr {
        wire::WeightedAddr {
            addr: Some(addr.parse::<SocketAddr>().unwrap().into()),
            weight: 10_000,
            tls_identity: Some(dns(NAME)),
            protocol_hint: Some(wire::ProtocolHint {
                protocol: Some(wire::protocol_hint::Protocol::H2(wire::protocol_hint::H2 {})),
                opaque_transport: Some(wire::protocol_hint::OpaqueTransport { inbound_port: 4143 }),
            }),
            ..wire::WeightedAddr::default()
        }
    }

    fn dns(name: &str) -> wire::TlsIdentity {
        let strategy = Some(Strategy::DnsLikeIdentity(DnsLikeIdentity { name: name.to_owned() }));
        wire::TlsIdentity { server_name: None, strategy }
    }
}

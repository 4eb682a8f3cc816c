//! What controllers send → the types of core: whatever the message, there is an answer, the same each time and bounded;
//! an endpoint with an identity is never one without; and an inbound policy admits exactly whom the message admits, as a
//! reader of the message itself says (`api/admits.rs`), or nobody.

mod admits;

use self::admits::{Understood, admits};
use arbitrary::{Arbitrary, Unstructured};
use linkerd2_proxy_api::{destination, inbound, net, outbound};
use prost::Message;
use remora_core::{
    endpoint::Endpoint,
    identity::Identity,
    policy::{Authorization, Peer, ServerProtocol, authorize_tcp, routes},
    route::OutboundProtocol,
};
use remora_runtime::api::{
    Converted,
    destination::{Update, update},
    inbound::server_policy,
    outbound::outbound_policy,
    profile::profile,
};
use std::{fmt::Debug, net::IpAddr};

/// Which message; then its bytes, or the description of a policy.
pub fn api(data: &[u8]) {
    let Some((which, bytes)) = data.split_first() else { return };
    match which % 5 {
        0 => decoded(bytes, |wire| inbound_holds(wire, false)),
        1 => decoded(bytes, outbound_holds),
        2 => decoded(bytes, update_holds),
        3 => decoded(bytes, profile_holds),
        _ => {
            if let Ok(described) = Described::arbitrary(&mut Unstructured::new(bytes)) {
                inbound_holds(&described.server(), true);
            }
        }
    }
}

/// Most notes of what was ignored.
const MAX_IGNORED: usize = 64;
/// Longest reason or note: it is logged, and answered to whom it concerns.
const MAX_REASON: usize = 1024;

fn decoded<W: Message + Default + PartialEq>(bytes: &[u8], holds: impl Fn(&W)) {
    let Ok(wire) = W::decode(bytes) else { return };
    holds(&wire);
}

/// Converts twice, the second time what is written anew.
fn twice<W: Message + Default + Clone, T: PartialEq + Debug>(wire: &W, convert: impl Fn(W) -> T) -> T {
    let once = convert(wire.clone());
    let again = W::decode(&*wire.encode_to_vec()).unwrap_or_default();
    assert_eq!(once, convert(again), "the same message means something else");
    once
}

fn is_bounded<T>(converted: &Converted<T>) {
    assert!(converted.ignored.len() <= MAX_IGNORED, "{} notes", converted.ignored.len());
    for note in &converted.ignored {
        assert!(note.len() <= MAX_REASON, "{} bytes: {note}", note.len());
    }
}

fn inbound_holds(wire: &inbound::Server, complete: bool) {
    let converted = twice(wire, server_policy);
    is_bounded(&converted);
    let policy = converted.value;
    let peers = [
        Peer::Plain,
        Peer::Passthrough { sni: None },
        Peer::Tls { identity: None },
        Peer::Tls { identity: Identity::parse("web.shop").ok() },
        Peer::Tls { identity: Identity::parse("shop").ok() },
        Peer::Tls { identity: Identity::parse("spiffe://shop/web").ok() },
    ];
    let mut addresses: Vec<IpAddr> = ["10.0.0.1", "::ffff:10.0.0.1", "fd00::1", "192.0.2.1"]
        .iter()
        .filter_map(|text| text.parse().ok())
        .collect();
    addresses.extend(admits::telling(wire));
    let mut understood = true;
    for address in addresses.into_iter().filter(|address| !address.to_canonical().is_loopback()) {
        for peer in &peers {
            let admitted = authorize_tcp(&policy, address, peer).is_ok();
            match admits(wire, address, peer) {
                Understood::Yes(expected) if !matches!(policy.protocol, ServerProtocol::Invalid(_)) => {
                    assert_eq!(admitted, expected, "{address} as {peer:?}: {wire:?}");
                }
                Understood::Yes(_) => assert!(!admitted),
                Understood::No => {
                    understood = false;
                    assert!(!admitted, "what is not understood admits {address} as {peer:?}: {wire:?}");
                }
            }
        }
    }
    match &policy.protocol {
        ServerProtocol::Invalid(reason) => {
            assert!(!reason.is_empty() && reason.len() <= MAX_REASON, "{} bytes: {reason}", reason.len());
            // What was described has nothing in it that this proxy cannot do.
            assert!(!complete || !understood, "{reason}: {wire:?}");
        }
        _ => assert!(understood, "{wire:?}"),
    }
    let has_network = |one: &Authorization| !one.networks.is_empty();
    let of_routes = routes(&policy).iter().flat_map(|route| route.authorizations.iter());
    assert!(policy.authorizations.iter().chain(of_routes).all(has_network));
}

fn outbound_holds(wire: &outbound::OutboundPolicy) {
    let converted = twice(wire, outbound_policy);
    is_bounded(&converted);
    if let OutboundProtocol::Invalid(reason) = &converted.value.protocol {
        assert!(!reason.is_empty() && reason.len() <= MAX_REASON, "{} bytes: {reason}", reason.len());
    }
}

fn update_holds(wire: &destination::Update) {
    use destination::update::Update as Wire;
    let converted = match twice(wire, update) {
        Ok(converted) => converted,
        Err(invalid) => {
            assert!(!matches!(wire.update, Some(Wire::Add(_) | Wire::NoEndpoints(_))), "{invalid}");
            assert!(invalid.to_string().len() <= MAX_REASON);
            return;
        }
    };
    is_bounded(&converted);
    match (&converted.value, &wire.update) {
        (Update::Add(endpoints), Some(Wire::Add(set))) => {
            // Each is one of the message's, in its order; what is left out is said so, as far as notes go.
            let mut addrs = set.addrs.iter();
            for endpoint in endpoints {
                assert!(addrs.by_ref().any(|wire| is_of(endpoint, wire)), "{endpoint:?} comes from nowhere");
            }
            let left_out = set.addrs.len() - endpoints.len();
            assert!(converted.ignored.len() >= left_out.min(MAX_IGNORED), "{left_out} left out in silence");
        }
        (Update::Remove(addrs), Some(Wire::Remove(set))) => assert_eq!(addrs.len(), set.addrs.len()),
        (Update::NoEndpoints { exists }, Some(Wire::NoEndpoints(none))) => assert_eq!(*exists, none.exists),
        (update, wire) => panic!("{update:?} of {wire:?}"),
    }
}

fn profile_holds(wire: &destination::DestinationProfile) {
    let Ok(converted) = twice(wire, profile) else { return };
    is_bounded(&converted);
    assert_eq!(converted.value.opaque, wire.opaque_protocol);
    match (&converted.value.endpoint, &wire.endpoint) {
        (Some(endpoint), Some(wire)) => assert!(is_of(endpoint, wire), "{endpoint:?} of {wire:?}"),
        (None, None) => {}
        (endpoint, wire) => panic!("{endpoint:?} of {wire:?}"),
    }
}

/// The endpoint is what the message says, and no less secure.
fn is_of(endpoint: &Endpoint, wire: &destination::WeightedAddr) -> bool {
    use destination::tls_identity::Strategy;
    let named = |identity: &destination::TlsIdentity| match &identity.strategy {
        Some(Strategy::DnsLikeIdentity(dns)) => Identity::parse(&dns.name).ok(),
        Some(Strategy::UriLikeIdentity(uri)) => Identity::parse(&uri.uri).ok(),
        None => None,
    };
    let tls = match (&endpoint.tls, &wire.tls_identity) {
        (None, None) => true,
        (Some(tls), Some(wire)) => Some(&tls.identity) == named(wire).as_ref() && !tls.server_name.is_empty(),
        (Some(_), None) | (None, Some(_)) => false,
    };
    let addr = wire.addr.as_ref().is_some_and(|addr| {
        addr.port == u32::from(endpoint.addr.port())
            && addr.ip.as_ref().and_then(admits::address) == Some(endpoint.addr.ip())
    });
    let direct = wire
        .protocol_hint
        .as_ref()
        .and_then(|hint| hint.opaque_transport.as_ref())
        .map(|transport| transport.inbound_port);
    let labels = endpoint.labels.len() <= 32
        && endpoint.labels.iter().all(|(name, value)| {
            value.len() <= 256
                && name.len() <= 64
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        });
    tls && addr
        && labels
        && endpoint.weight == wire.weight
        && direct == endpoint.opaque_transport.map(u32::from)
}

/// A policy by its parts, which meet each other and what is asked of it.
#[derive(Arbitrary, Debug)]
struct Described {
    protocol: u8,
    authorizations: Vec<Authz>,
}

#[derive(Arbitrary, Debug)]
struct Authz {
    networks: Vec<(Net, Vec<Net>)>,
    who: Who,
}

#[derive(Arbitrary, Debug)]
struct Net {
    which: u8,
    prefix: u8,
}

#[derive(Arbitrary, Debug)]
enum Who {
    Nobody,
    Anybody,
    Tls,
    Clients(Vec<u8>, Vec<Vec<u8>>),
    NoClients,
}

const NAMES: [&str; 8] = ["web.shop", "WEB.shop.", "shop", "spiffe://shop/web", "*.shop", "", "web", "a b"];

impl Described {
    fn server(&self) -> inbound::Server {
        use inbound::proxy_protocol::{Detect, Grpc, Http1, Http2, Kind, Opaque, Tls};
        let timeout = Some(prost_duration(10));
        let kind = match self.protocol % 8 {
            0..=2 => Kind::Detect(Detect { timeout, ..Detect::default() }),
            3 => Kind::Opaque(Opaque {}),
            4 => Kind::Tls(Tls {}),
            5 => Kind::Http1(Http1::default()),
            6 => Kind::Http2(Http2::default()),
            _ => Kind::Grpc(Grpc::default()),
        };
        inbound::Server {
            protocol: Some(inbound::ProxyProtocol { kind: Some(kind) }),
            authorizations: self.authorizations.iter().take(6).map(Authz::wire).collect(),
            ..inbound::Server::default()
        }
    }
}

fn prost_duration(seconds: i64) -> prost_types::Duration {
    prost_types::Duration { seconds, nanos: 0 }
}

impl Authz {
    fn wire(&self) -> inbound::Authz {
        use inbound::authn::{Permit, PermitMeshTls, PermitUnauthenticated, permit_mesh_tls};
        let networks = self.networks.iter().take(4).map(|(net, except)| inbound::Network {
            net: Some(net.wire()),
            except: except.iter().take(3).map(Net::wire).collect(),
        });
        let mesh = |clients| Some(Permit::MeshTls(PermitMeshTls { clients }));
        let name = |which: &u8| NAMES[usize::from(*which) % NAMES.len()].to_owned();
        let permit = match &self.who {
            Who::Nobody => None,
            Who::Anybody => Some(Permit::Unauthenticated(PermitUnauthenticated {})),
            Who::Tls => mesh(Some(permit_mesh_tls::Clients::Unauthenticated(PermitUnauthenticated {}))),
            Who::NoClients => mesh(None),
            Who::Clients(identities, suffixes) => {
                let labels = |labels: &Vec<u8>| inbound::IdentitySuffix {
                    parts: labels.iter().take(3).map(name).collect(),
                };
                mesh(Some(permit_mesh_tls::Clients::Identities(permit_mesh_tls::PermitClientIdentities {
                    identities: identities
                        .iter()
                        .take(4)
                        .map(|which| inbound::Identity { name: name(which) })
                        .collect(),
                    suffixes: suffixes.iter().take(4).map(labels).collect(),
                })))
            }
        };
        inbound::Authz {
            networks: networks.collect(),
            authentication: Some(inbound::Authn { permit }),
            ..inbound::Authz::default()
        }
    }
}

impl Net {
    fn wire(&self) -> net::IpNetwork {
        const ADDRESSES: [&str; 8] = [
            "10.0.0.1",
            "10.0.0.0",
            "0.0.0.0",
            "::",
            "fd00::1",
            "::ffff:10.0.0.1",
            "192.0.2.1",
            "255.255.255.255",
        ];
        let address: Option<IpAddr> = ADDRESSES[usize::from(self.which) % ADDRESSES.len()].parse().ok();
        net::IpNetwork { ip: address.map(net::IpAddress::from), prefix_len: u32::from(self.prefix) % 140 }
    }
}

//! Whom an inbound policy admits to raw TCP, read from the message as it stands. Contract 3.4.

use linkerd2_proxy_api::{
    inbound::{
        Authz, Network, Server,
        authn::{Permit, permit_mesh_tls::Clients},
        proxy_protocol::Kind,
    },
    net::{IpAddress, IpNetwork, ip_address::Ip},
};
use remora_core::{
    identity::{Identity, Kind as NameKind},
    policy::Peer,
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An answer, unless there is something in the message that means nothing.
pub(super) enum Understood {
    Yes(bool),
    No,
}

pub(super) fn admits(wire: &Server, address: IpAddr, peer: &Peer) -> Understood {
    let bytes = match wire.protocol.as_ref().and_then(|protocol| protocol.kind.as_ref()) {
        Some(Kind::Detect(detect))
            if detect.timeout.is_some_and(|timeout| timeout.seconds >= 0 && timeout.nanos >= 0) =>
        {
            true
        }
        Some(Kind::Opaque(_) | Kind::Tls(_)) => true,
        Some(Kind::Http1(_) | Kind::Http2(_) | Kind::Grpc(_)) => false,
        Some(Kind::Detect(_)) | None => return Understood::No,
    };
    let mut admitted = false;
    for authz in &wire.authorizations {
        match one(authz, address, peer) {
            Some(admits) => admitted |= admits,
            None => return Understood::No,
        }
    }
    Understood::Yes(bytes && admitted)
}

fn one(authz: &Authz, address: IpAddr, peer: &Peer) -> Option<bool> {
    let networks: Option<Vec<bool>> = authz.networks.iter().map(|network| within(network, address)).collect();
    let networks = networks.filter(|networks| !networks.is_empty())?;
    let identity = match peer {
        Peer::Tls { identity } => identity.as_ref(),
        Peer::Plain | Peer::Passthrough { .. } => None,
    };
    let who = match authz.authentication.as_ref()?.permit.as_ref()? {
        Permit::Unauthenticated(_) => true,
        Permit::MeshTls(tls) => match tls.clients.as_ref()? {
            Clients::Unauthenticated(_) => matches!(peer, Peer::Tls { .. }),
            Clients::Identities(clients) => {
                let names: Option<Vec<Identity>> =
                    clients.identities.iter().map(|wire| Identity::parse(&wire.name).ok()).collect();
                let fine = |label: &String| !label.is_empty() && !label.contains('.');
                if !clients.suffixes.iter().all(|suffix| suffix.parts.iter().all(fine)) {
                    return None;
                }
                let suffix = |parts: &[String], identity: &Identity| {
                    let labels = [String::new()]
                        .into_iter()
                        .chain(parts.iter().map(|label| label.to_ascii_lowercase()));
                    let ending = labels.collect::<Vec<_>>().join(".");
                    identity.kind() == NameKind::Dns
                        && identity.as_str().strip_suffix(&ending).is_some_and(|rest| !rest.is_empty())
                };
                let names = names?;
                identity.is_some_and(|identity| {
                    names.contains(identity)
                        || clients.suffixes.iter().any(|wire| suffix(&wire.parts, identity))
                })
            }
        },
    };
    Some(who && networks.contains(&true))
}

fn within(network: &Network, address: IpAddr) -> Option<bool> {
    let holes: Option<Vec<bool>> = network.except.iter().map(|hole| covers(hole, address)).collect();
    Some(covers(network.net.as_ref()?, address)? && !holes?.contains(&true))
}

/// Bit by bit, with IPv4 where IPv6 has it (`::ffff:0:0/96`); an IPv6 network that is wider says nothing of IPv4.
fn covers(network: &IpNetwork, address: IpAddr) -> Option<bool> {
    let mapped = |address: IpAddr| match address {
        IpAddr::V4(v4) => u128::from(v4.to_ipv6_mapped()),
        IpAddr::V6(v6) => u128::from(v6),
    };
    let base = self::address(network.ip.as_ref()?)?;
    let length = match base {
        IpAddr::V4(_) if network.prefix_len <= 32 => network.prefix_len + 96,
        IpAddr::V6(_) if network.prefix_len <= 128 => network.prefix_len,
        IpAddr::V4(_) | IpAddr::V6(_) => return None,
    };
    let both_v6 = address.to_canonical().is_ipv6();
    let differing = mapped(base) ^ mapped(address);
    let same = differing.checked_shr(128 - length).unwrap_or(0) == 0;
    Some(same && (both_v6 || length >= 96))
}

pub(super) fn address(wire: &IpAddress) -> Option<IpAddr> {
    Some(match wire.ip.as_ref()? {
        Ip::Ipv4(bits) => Ipv4Addr::from(*bits).into(),
        Ip::Ipv6(v6) => Ipv6Addr::from(u128::from(v6.first) << 64 | u128::from(v6.last)).into(),
    })
}

/// Addresses at which the answer may change: the first and last of networks, and those beside them.
pub(super) fn telling(wire: &Server) -> Vec<IpAddr> {
    let networks = wire.authorizations.iter().take(8).flat_map(|authz| authz.networks.iter().take(8));
    let all = networks.flat_map(|network| network.net.iter().chain(network.except.iter().take(4)));
    let mut addresses = vec![];
    for network in all {
        match network.ip.as_ref().and_then(address) {
            Some(IpAddr::V4(v4)) => {
                let host = u32::MAX.checked_shr(network.prefix_len).unwrap_or(0);
                let (first, last) = (u32::from(v4) & !host, u32::from(v4) | host);
                let near = [first, last, first.wrapping_sub(1), last.wrapping_add(1)];
                addresses.extend(near.map(|bits| IpAddr::from(Ipv4Addr::from(bits))));
            }
            Some(IpAddr::V6(v6)) => {
                let host = u128::MAX.checked_shr(network.prefix_len).unwrap_or(0);
                let (first, last) = (u128::from(v6) & !host, u128::from(v6) | host);
                let near = [first, last, first.wrapping_sub(1), last.wrapping_add(1)];
                addresses.extend(near.map(|bits| IpAddr::from(Ipv6Addr::from(bits))));
            }
            None => {}
        }
    }
    addresses
}

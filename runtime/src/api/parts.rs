//! The small parts that messages share: references, addresses, networks, durations, names.

use super::{Invalid, Reading};
use ipnet::IpNet;
use linkerd2_proxy_api::{meta, net};
#[cfg(planted)]
use remora_core::planted;
use remora_core::{
    identity::{Identity, Kind},
    matching::NetworkMatch,
    policy::ResourceRef,
};
use std::{net::SocketAddr, sync::Arc, time::Duration};

/// A reference to a resource. One that is missing labels metrics with nothing and decides nothing, so it is no error.
pub(super) fn resource(wire: Option<meta::Metadata>) -> Result<Arc<ResourceRef>, Invalid> {
    let reference = match wire.and_then(|metadata| metadata.kind) {
        None => ResourceRef::default(),
        Some(meta::metadata::Kind::Default(name)) => ResourceRef::default_kind(&name),
        Some(meta::metadata::Kind::Resource(resource)) => ResourceRef {
            group: resource.group.into(),
            kind: resource.kind.into(),
            name: resource.name.into(),
            namespace: resource.namespace.into(),
            port: u16::try_from(resource.port)
                .map_err(|_| Invalid::new("over 65535").within("metadata.port"))?,
            section: resource.section.into(),
        },
    };
    Ok(Arc::new(reference))
}

/// A port that a connection can have.
pub(super) fn port(wire: u32) -> Result<u16, Invalid> {
    u16::try_from(wire)
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(|| Invalid::new(format!("{wire} is no port")))
}

/// An address and port.
pub(super) fn socket_addr(wire: net::TcpAddress) -> Result<SocketAddr, Invalid> {
    let port = port(wire.port).map_err(|invalid| invalid.within("port"))?;
    let ip = wire.ip.ok_or_else(|| Invalid::new("missing").within("ip"))?;
    let ip = std::net::IpAddr::try_from(ip).map_err(|error| Invalid::new(error.to_string()).within("ip"))?;
    Ok(SocketAddr::new(ip, port))
}

/// A network with holes.
pub(super) fn network(
    reading: &mut Reading,
    net: Option<net::IpNetwork>,
    except: Vec<net::IpNetwork>,
) -> Result<NetworkMatch, Invalid> {
    let net = reading.required("net", net, |_, net| ip_net(net))?;
    let except = reading.each("except", except, |_, net| ip_net(net))?;
    #[cfg(planted)]
    let except = if planted::makes(planted::Mistake::HolesForgotten) { Vec::new() } else { except };
    Ok(NetworkMatch { net, except })
}

fn ip_net(wire: net::IpNetwork) -> Result<IpNet, Invalid> {
    // Checked here: the conversion of linkerd2-proxy-api narrows the prefix to eight bits first.
    if wire.prefix_len > 128 {
        return Err(Invalid::new(format!("a prefix of {} bits", wire.prefix_len)));
    }
    IpNet::try_from(wire).map(|net| net.trunc()).map_err(|error| Invalid::new(error.to_string()))
}

/// A time that is not negative.
pub(super) fn duration(wire: prost_types::Duration) -> Result<Duration, Invalid> {
    Duration::try_from(wire).map_err(|error| Invalid::new(error.to_string()))
}

/// An identity of either form.
pub(super) fn identity(text: &str) -> Result<Identity, Invalid> {
    Identity::parse(text).map_err(|error| Invalid::new(format!("{:?} is no identity: {error}", shown(text))))
}

/// A DNS name in canonical form, such as goes into an SNI.
pub(super) fn dns_name(text: &str) -> Result<Identity, Invalid> {
    identity(text).and_then(|name| match name.kind() {
        Kind::Dns => Ok(name),
        Kind::Uri => Err(Invalid::new(format!("{:?} is no DNS name", shown(text)))),
    })
}

/// What an error repeats of a text.
pub(super) fn shown(text: &str) -> &str {
    text.char_indices().nth(80).map_or(text, |(end, _)| text.get(..end).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_and_addresses() {
        assert_eq!(port(8080), Ok(8080));
        assert!(port(0).is_err() && port(65_536).is_err() && port(u32::MAX).is_err());
        let addr: SocketAddr = "[fd00::1]:80".parse().unwrap();
        assert_eq!(socket_addr(addr.into()), Ok(addr));
        let no_ip = net::TcpAddress { ip: None, port: 80 };
        assert_eq!(socket_addr(no_ip).unwrap_err().to_string(), "ip: missing");
        let empty_ip = net::TcpAddress { ip: Some(net::IpAddress { ip: None }), port: 80 };
        assert_eq!(socket_addr(empty_ip).unwrap_err().path(), "ip");
    }

    #[test]
    fn networks_are_cut_to_their_prefix_and_checked() {
        let v4 = |text: &str, prefix_len| net::IpNetwork {
            ip: Some(text.parse::<std::net::IpAddr>().unwrap().into()),
            prefix_len,
        };
        let read = |net| ip_net(net).map(|net| net.to_string());
        assert_eq!(read(v4("10.1.2.3", 8)), Ok("10.0.0.0/8".to_owned()));
        assert!(read(v4("10.1.2.3", 33)).is_err());
        assert!(read(v4("10.1.2.3", 256)).is_err(), "256 is not 0");
        assert!(read(v4("fd00::1", 129)).is_err());
        assert!(read(net::IpNetwork { ip: None, prefix_len: 8 }).is_err());
    }

    #[test]
    fn a_reference_may_be_a_default_a_resource_or_missing() {
        assert_eq!(*resource(None).unwrap(), ResourceRef::default());
        let default = meta::Metadata { kind: Some(meta::metadata::Kind::Default("x".to_owned())) };
        assert_eq!(*resource(Some(default)).unwrap(), ResourceRef::default_kind("x"));
        let port = meta::Resource { port: 70_000, ..meta::Resource::default() };
        let wrong = meta::Metadata { kind: Some(meta::metadata::Kind::Resource(port)) };
        assert_eq!(resource(Some(wrong)).unwrap_err().path(), "metadata.port");
    }

    #[test]
    fn negative_times_are_refused() {
        assert_eq!(duration(prost_types::Duration { seconds: 10, nanos: 0 }), Ok(Duration::from_secs(10)));
        assert!(duration(prost_types::Duration { seconds: -1, nanos: 0 }).is_err());
    }
}

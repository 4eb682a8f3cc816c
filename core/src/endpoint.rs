//! One address of a destination, and how it wants to be spoken to. Contract 3.1, 1.8.

use crate::identity::Identity;
use alloc::{collections::BTreeMap, sync::Arc};
use core::net::{IpAddr, SocketAddr};

/// Labels as metrics print them (without the `dst_` prefix). Shared, so cheap to clone.
pub type Labels = Arc<BTreeMap<Arc<str>, Arc<str>>>;

/// One address behind a destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The application's address.
    pub addr: SocketAddr,
    /// Relative share of traffic; 10 000 is an ordinary endpoint's.
    pub weight: u32,
    /// Meant for clients of other zones: for when those of the client's own are not enough.
    pub remote: bool,
    /// How to reach it over mTLS; `None` means that it has no identity.
    pub tls: Option<EndpointTls>,
    /// What it understands beyond the application's own protocol.
    pub hint: ProtocolHint,
    /// The port that takes a transport header (4143), if the endpoint offers one.
    pub opaque_transport: Option<u16>,
    /// The name to put into the transport header and `:authority` (a gateway's endpoint).
    pub authority_override: Option<Arc<str>>,
    /// Set-level labels with the endpoint's own merged over them.
    pub labels: Labels,
}

/// Who an endpoint must prove to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointTls {
    /// The identity that its certificate must carry.
    pub identity: Identity,
    /// The SNI to send.
    pub server_name: Arc<str>,
}

/// The protocol an endpoint's proxy accepts for HTTP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProtocolHint {
    /// What the client speaks.
    #[default]
    Unknown,
    /// HTTP/2 and orig-proto.
    Http2,
    /// The port is opaque.
    Opaque,
}

/// How to dial an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DialPlan {
    /// Plain TCP, and why there is no TLS.
    Plain {
        /// Address to dial.
        addr: SocketAddr,
        /// Value of the metric label `no_tls_reason`.
        reason: NoTlsReason,
    },
    /// mTLS to the port itself, recognised by SNI.
    Transparent {
        /// Address to dial.
        addr: SocketAddr,
        /// Required peer.
        tls: EndpointTls,
    },
    /// mTLS with the transport header's ALPN.
    Direct {
        /// Address to dial.
        addr: SocketAddr,
        /// Required peer.
        tls: EndpointTls,
        /// What the header's port says.
        port: u16,
    },
}

/// Why a connection has no TLS, as metrics print it. Contract 1.3, 1.8.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NoTlsReason {
    /// The endpoint is this pod.
    Loopback,
    /// Discovery gave no identity.
    NotProvidedByServiceDiscovery,
    /// The client spoke no TLS.
    NoTlsFromRemote,
    /// The port is marked opaque, so nothing was looked at.
    PortSkipped,
    /// This proxy has no identity.
    Disabled,
}

impl NoTlsReason {
    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Loopback => "loopback",
            Self::NotProvidedByServiceDiscovery => "not_provided_by_service_discovery",
            Self::NoTlsFromRemote => "no_tls_from_remote",
            Self::PortSkipped => "port_skipped",
            Self::Disabled => "disabled",
        }
    }
}

impl Endpoint {
    /// An address of which nothing else is known.
    pub fn bare(addr: SocketAddr) -> Self {
        Self {
            addr,
            weight: 10_000,
            remote: false,
            tls: None,
            hint: ProtocolHint::Unknown,
            opaque_transport: None,
            authority_override: None,
            labels: Labels::default(),
        }
    }

    /// How to dial it from a pod whose own addresses are `own`. Contract 1.8 steps 1 to 4.
    ///
    /// Without an identity it is dialled plain on its own port, even if it offers a port for transport headers: nobody
    /// is admitted there without mTLS.
    pub fn dial_plan(&self, own: &[IpAddr]) -> DialPlan {
        let Self { addr, opaque_transport, .. } = *self;
        let own_port = addr.port();
        if own.iter().any(|own| own.to_canonical() == addr.ip().to_canonical()) {
            return DialPlan::Plain { addr, reason: NoTlsReason::Loopback };
        }
        let Some(tls) = self.tls.clone() else {
            return DialPlan::Plain { addr, reason: NoTlsReason::NotProvidedByServiceDiscovery };
        };
        if opaque_transport.is_none() && self.authority_override.is_none() {
            return DialPlan::Transparent { addr, tls };
        }
        let port = self.override_parts().and_then(|(_, port)| port).unwrap_or(own_port);
        let dialled = opaque_transport.unwrap_or(own_port);
        DialPlan::Direct { addr: SocketAddr::new(addr.ip(), dialled), tls, port }
    }

    /// The name to put into the transport header: the host of the authority override. `None` means the endpoint's own
    /// pod. Contract 1.8 step 5.
    pub fn header_name(&self) -> Option<&str> {
        self.override_parts().map(|(host, _)| host).filter(|host| !host.is_empty())
    }

    /// Host and port of the authority override. A port of 0 or no number is none.
    fn override_parts(&self) -> Option<(&str, Option<u16>)> {
        let authority = self.authority_override.as_deref()?;
        Some(match authority.rsplit_once(':') {
            Some((host, port)) => (host, port.parse().ok().filter(|port| *port != 0)),
            None => (authority, None),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PORT: u16 = 80;
    const HEADER_PORT: u16 = 4143;

    #[test]
    fn an_endpoint_without_identity_is_dialled_plain() {
        let reason = NoTlsReason::NotProvidedByServiceDiscovery;
        check(&bare(), &[], &DialPlan::Plain { addr: at(PORT), reason });
    }

    #[test]
    fn a_header_port_without_identity_is_not_dialled() {
        let reason = NoTlsReason::NotProvidedByServiceDiscovery;
        let endpoint = Endpoint { opaque_transport: Some(HEADER_PORT), ..bare() };
        check(&endpoint, &[], &DialPlan::Plain { addr: at(PORT), reason });
    }

    #[test]
    fn an_endpoint_of_this_pod_is_dialled_plain_on_its_own_port() {
        let endpoint = Endpoint { opaque_transport: Some(HEADER_PORT), ..meshed() };
        let plan = DialPlan::Plain { addr: at(PORT), reason: NoTlsReason::Loopback };
        check(&endpoint, &["10.9.9.9", "10.1.2.3"], &plan);
        check(&endpoint, &["::ffff:10.1.2.3"], &plan);
    }

    #[test]
    fn an_identity_alone_means_tls_to_the_port_itself() {
        check(&meshed(), &["10.9.9.9"], &DialPlan::Transparent { addr: at(PORT), tls: tls() });
    }

    #[test]
    fn a_header_port_is_dialled_with_the_real_port_in_the_header() {
        let endpoint = Endpoint { opaque_transport: Some(HEADER_PORT), ..meshed() };
        check(&endpoint, &[], &DialPlan::Direct { addr: at(HEADER_PORT), tls: tls(), port: PORT });
        assert_eq!(endpoint.header_name(), None);
    }

    #[test]
    fn an_authority_override_gives_the_header_its_name_and_port() {
        let endpoint = Endpoint {
            opaque_transport: Some(HEADER_PORT),
            authority_override: Some("web.prod.svc.cluster.local:8080".into()),
            ..meshed()
        };
        check(&endpoint, &[], &DialPlan::Direct { addr: at(HEADER_PORT), tls: tls(), port: 8080 });
        assert_eq!(endpoint.header_name(), Some("web.prod.svc.cluster.local"));
    }

    #[test]
    fn an_authority_override_alone_means_a_header_on_the_port_itself() {
        let endpoint = Endpoint { authority_override: Some("web.prod:8080".into()), ..meshed() };
        check(&endpoint, &[], &DialPlan::Direct { addr: at(PORT), tls: tls(), port: 8080 });
    }

    #[test]
    fn an_authority_override_without_a_usable_port_keeps_the_endpoints() {
        for authority in ["web.prod", "web.prod:", "web.prod:0", "web.prod:http"] {
            let endpoint = Endpoint { authority_override: Some(authority.into()), ..meshed() };
            check(&endpoint, &[], &DialPlan::Direct { addr: at(PORT), tls: tls(), port: PORT });
            assert_eq!(endpoint.header_name(), Some("web.prod"));
        }
    }

    fn at(port: u16) -> SocketAddr {
        SocketAddr::from(([10, 1, 2, 3], port))
    }

    fn bare() -> Endpoint {
        Endpoint::bare(at(PORT))
    }

    fn meshed() -> Endpoint {
        Endpoint { tls: Some(tls()), ..bare() }
    }

    fn tls() -> EndpointTls {
        let name = "web.prod.serviceaccount.identity.remora.cluster.local";
        EndpointTls { identity: Identity::parse(name).unwrap(), server_name: name.into() }
    }

    #[track_caller]
    fn check(endpoint: &Endpoint, own: &[&str], expected: &DialPlan) {
        let own: alloc::vec::Vec<IpAddr> = own.iter().map(|addr| addr.parse().unwrap()).collect();
        assert_eq!(&endpoint.dial_plan(&own), expected);
    }
}

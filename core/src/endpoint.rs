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
            tls: None,
            hint: ProtocolHint::Unknown,
            opaque_transport: None,
            authority_override: None,
            labels: Labels::default(),
        }
    }

    /// How to dial it from a pod whose own addresses are `own`. Contract 1.8 steps 1 to 4.
    pub fn dial_plan(&self, own: &[IpAddr]) -> DialPlan {
        let _ = own;
        todo!()
    }
}

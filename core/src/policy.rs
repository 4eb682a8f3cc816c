//! May this client do this? Inbound policy of one port, as Linkerd's `WatchPort` states it. Contract 3.4.

use crate::{
    identity::Identity,
    matching::{NetworkMatch, SuffixMatch},
    route::{HttpRoute, RequestView},
};
use alloc::{string::String, sync::Arc, vec::Vec};
use core::{net::IpAddr, time::Duration};

/// Group, kind and name of the resource behind a decision, as metric labels print them.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceRef {
    /// API group; empty for defaults.
    pub group: Arc<str>,
    /// Kind; `default` for built-in ones.
    pub kind: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// Namespace; empty when not stated.
    pub namespace: Arc<str>,
    /// Port; 0 when not stated.
    pub port: u16,
    /// Section; empty when not stated.
    pub section: Arc<str>,
}

impl ResourceRef {
    /// A built-in resource: group "", kind `default`.
    pub fn default_kind(name: &str) -> Self {
        Self { kind: "default".into(), name: name.into(), ..Self::default() }
    }
}

/// The policy of one port.
#[derive(Clone, Debug, PartialEq)]
pub struct ServerPolicy {
    /// The Server resource or default.
    pub meta: Arc<ResourceRef>,
    /// What the port speaks.
    pub protocol: ServerProtocol,
    /// Who may connect, in order.
    pub authorizations: Vec<Authorization>,
}

/// What a port speaks, by declaration.
#[derive(Clone, Debug, PartialEq)]
pub enum ServerProtocol {
    /// Unknown: look at the first bytes, for so long.
    Detect {
        /// Bound of detection.
        timeout: Duration,
        /// HTTP routes when it turns out to be HTTP.
        routes: Vec<InboundRoute>,
    },
    /// HTTP/1.x.
    Http1 {
        /// Its routes.
        routes: Vec<InboundRoute>,
    },
    /// HTTP/2.
    Http2 {
        /// Its routes.
        routes: Vec<InboundRoute>,
    },
    /// gRPC over HTTP/2.
    Grpc {
        /// Its routes.
        routes: Vec<InboundRoute>,
    },
    /// Not looked at at all, not even for TLS.
    Opaque,
    /// The application's own TLS.
    Tls,
    /// The policy could not be understood: every connection and request fails with 500 and this reason.
    Invalid(Arc<str>),
}

/// A route with the clients that may use it.
#[derive(Clone, Debug, PartialEq)]
pub struct InboundRoute {
    /// What it matches.
    pub route: HttpRoute,
    /// Who may use it, tried before the server's.
    pub authorizations: Vec<Authorization>,
}

/// A rule that admits clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authorization {
    /// The AuthorizationPolicy, ServerAuthorization or default behind it.
    pub meta: Arc<ResourceRef>,
    /// Where the client must be; any one suffices. Empty matches nothing.
    pub networks: Vec<NetworkMatch>,
    /// Who the client must be.
    pub authentication: Authentication,
}

/// Who a client must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Authentication {
    /// Anybody.
    Unauthenticated,
    /// Any TLS client of the mesh, even one without a certificate of its own.
    TlsUnauthenticated,
    /// One of these.
    TlsAuthenticated {
        /// Exact names.
        identities: Vec<Identity>,
        /// Name suffixes.
        suffixes: Vec<SuffixMatch>,
    },
}

/// What is known of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// No mesh TLS.
    Plain,
    /// TLS meant for the application (foreign SNI).
    Passthrough {
        /// The SNI.
        sni: Option<Arc<str>>,
    },
    /// mTLS terminated here.
    Tls {
        /// The client's identity, if it presented a certificate.
        identity: Option<Identity>,
    },
}

impl Peer {
    /// The authenticated identity.
    pub fn identity(&self) -> Option<&Identity> {
        match self {
            Self::Tls { identity } => identity.as_ref(),
            Self::Plain | Self::Passthrough { .. } => None,
        }
    }
}

/// Why a client is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denial {
    /// No authorization admits it.
    Unauthorized,
    /// No route matches the request.
    NoRoute,
    /// The declared protocol carries no raw TCP, or no HTTP.
    WrongProtocol,
    /// The policy itself is invalid.
    Invalid(Arc<str>),
}

/// May this client exchange raw bytes with this port? `Http1`, `Http2` and `Grpc` policies never allow it. An
/// implicit unauthenticated authorization named `localhost` admits exactly 127.0.0.1 and ::1. Contract 3.4.
pub fn authorize_tcp(policy: &ServerPolicy, client: IpAddr, peer: &Peer) -> Result<Arc<ResourceRef>, Denial> {
    let _ = (policy, client, peer);
    todo!()
}

/// Would this client be admitted to raw TCP if it had no identity at all? Asked before a speculative dial.
pub fn admits_anonymous_tcp(policy: &ServerPolicy, client: IpAddr) -> bool {
    authorize_tcp(policy, client, &Peer::Plain).is_ok()
}

/// A request that may go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permit {
    /// Index of the route in the policy's routes.
    pub route: usize,
    /// Index of the rule in that route.
    pub rule: usize,
    /// The authorization that admitted it.
    pub authorization: Arc<ResourceRef>,
}

/// A request that may not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The matched route, if any.
    pub route: Option<usize>,
    /// Why.
    pub denial: Denial,
}

/// May this client make this request? The best route, then its own authorizations followed by the server's.
pub fn authorize_http<R: RequestView + ?Sized>(
    policy: &ServerPolicy,
    client: IpAddr,
    peer: &Peer,
    request: &R,
) -> Result<Permit, Refusal> {
    let _ = (policy, client, peer, request);
    todo!()
}

/// The routes of a policy that carries HTTP.
pub fn routes(policy: &ServerPolicy) -> &[InboundRoute] {
    match &policy.protocol {
        ServerProtocol::Detect { routes, .. }
        | ServerProtocol::Http1 { routes }
        | ServerProtocol::Http2 { routes }
        | ServerProtocol::Grpc { routes } => routes,
        ServerProtocol::Opaque | ServerProtocol::Tls | ServerProtocol::Invalid(_) => &[],
    }
}

/// The default policies that an operator may name (contract 1.13 `INBOUND_DEFAULT_POLICY`, 3.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DefaultPolicy {
    /// Everybody.
    AllUnauthenticated,
    /// Everybody with a mesh identity.
    AllAuthenticated,
    /// Everybody from the cluster's networks.
    ClusterUnauthenticated,
    /// Everybody from the cluster's networks with a mesh identity.
    ClusterAuthenticated,
    /// Everybody, but what no other rule allows is named `audit`.
    Audit,
    /// Nobody (the port is opaque and without authorizations).
    Deny,
}

impl DefaultPolicy {
    /// Reads a name such as `all-unauthenticated`.
    pub fn parse(name: &str) -> Option<Self> {
        let _ = name;
        todo!()
    }

    /// The name.
    pub fn as_str(self) -> &'static str {
        todo!()
    }

    /// The policy of a port under this default: one catch-all route named `default`, `Opaque` if `opaque` (or for
    /// `Deny`), else `Detect`.
    pub fn server_policy(self, cluster_networks: &[ipnet::IpNet], detect_timeout: Duration, opaque: bool) -> ServerPolicy {
        let _ = (cluster_networks, detect_timeout, opaque);
        todo!()
    }
}

#[expect(dead_code, reason = "keeps the import until the bodies are written")]
type Unused = String;

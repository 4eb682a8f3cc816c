//! May this client do this? Inbound policy of one port, as Linkerd's `WatchPort` states it. Contract 3.4.

use crate::{
    identity::Identity,
    matching::{NetworkMatch, SuffixMatch},
    route::{HttpRoute, HttpRule, RequestView, choose},
};
use alloc::{boxed::Box, sync::Arc, vec, vec::Vec};
use core::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use once_cell::race::OnceBox;

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
    match &policy.protocol {
        ServerProtocol::Detect { .. } | ServerProtocol::Opaque | ServerProtocol::Tls => {
            admitting(&policy.authorizations, client, peer).cloned().ok_or(Denial::Unauthorized)
        }
        ServerProtocol::Http1 { .. } | ServerProtocol::Http2 { .. } | ServerProtocol::Grpc { .. } => {
            Err(Denial::WrongProtocol)
        }
        ServerProtocol::Invalid(reason) => Err(Denial::Invalid(reason.clone())),
    }
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

/// May this client make this request? The best route, then its own authorizations followed by the server's and the
/// implicit `localhost` of [`authorize_tcp`]; the first that admits the client names the permit.
///
/// A probe's route is a route like any other: an exact GET path, which a query does not change. On `Opaque` and `Tls`
/// ports, which have no routes, the denial is [`Denial::WrongProtocol`], answered as a missing route is (contract 1.5).
pub fn authorize_http<R: RequestView + ?Sized>(
    policy: &ServerPolicy,
    client: IpAddr,
    peer: &Peer,
    request: &R,
) -> Result<Permit, Refusal> {
    let routes = match &policy.protocol {
        ServerProtocol::Detect { routes, .. }
        | ServerProtocol::Http1 { routes }
        | ServerProtocol::Http2 { routes }
        | ServerProtocol::Grpc { routes } => routes,
        ServerProtocol::Opaque | ServerProtocol::Tls => {
            return Err(Refusal { route: None, denial: Denial::WrongProtocol });
        }
        ServerProtocol::Invalid(reason) => {
            return Err(Refusal { route: None, denial: Denial::Invalid(reason.clone()) });
        }
    };
    let Some(chosen) = choose(routes.iter().map(|inbound| &inbound.route), request) else {
        return Err(Refusal { route: None, denial: Denial::NoRoute });
    };
    let own = routes.get(chosen.route).map_or(&[][..], |inbound| &inbound.authorizations);
    match admitting(own.iter().chain(&policy.authorizations), client, peer) {
        Some(meta) => Ok(Permit { route: chosen.route, rule: chosen.rule, authorization: meta.clone() }),
        None => Err(Refusal { route: Some(chosen.route), denial: Denial::Unauthorized }),
    }
}

/// The first authorization that admits the client; the implicit `localhost` comes last.
fn admitting<'a>(
    authorizations: impl IntoIterator<Item = &'a Authorization>,
    client: IpAddr,
    peer: &Peer,
) -> Option<&'a Arc<ResourceRef>> {
    authorizations
        .into_iter()
        .find(|authorization| authorization.admits(client, peer))
        .map(|authorization| &authorization.meta)
        .or_else(|| is_localhost(client).then(localhost))
}

/// Exactly 127.0.0.1 and ::1, not the rest of 127.0.0.0/8 and not the pod's own addresses.
fn is_localhost(client: IpAddr) -> bool {
    match client.to_canonical() {
        IpAddr::V4(addr) => addr == Ipv4Addr::LOCALHOST,
        IpAddr::V6(addr) => addr == Ipv6Addr::LOCALHOST,
    }
}

/// Made once and shared: a request must not allocate for its permit.
fn localhost() -> &'static Arc<ResourceRef> {
    static META: OnceBox<Arc<ResourceRef>> = OnceBox::new();
    META.get_or_init(|| Box::new(Arc::new(ResourceRef::default_kind("localhost"))))
}

impl Authorization {
    /// Does it admit this client?
    pub fn admits(&self, client: IpAddr, peer: &Peer) -> bool {
        self.authentication.holds(peer) && self.networks.iter().any(|network| network.contains(client))
    }
}

impl Authentication {
    /// Is the peer one of those?
    pub fn holds(&self, peer: &Peer) -> bool {
        match self {
            Self::Unauthenticated => true,
            Self::TlsUnauthenticated => matches!(peer, Peer::Tls { .. }),
            Self::TlsAuthenticated { identities, suffixes } => peer.identity().is_some_and(|identity| {
                identities.contains(identity) || suffixes.iter().any(|suffix| suffix.matches(identity))
            }),
        }
    }
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
    /// Every one, in the order of their definition.
    pub const ALL: [Self; 6] = [
        Self::AllUnauthenticated,
        Self::AllAuthenticated,
        Self::ClusterUnauthenticated,
        Self::ClusterAuthenticated,
        Self::Audit,
        Self::Deny,
    ];

    /// Reads a name such as `all-unauthenticated`.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|policy| policy.as_str() == name)
    }

    /// The name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AllUnauthenticated => "all-unauthenticated",
            Self::AllAuthenticated => "all-authenticated",
            Self::ClusterUnauthenticated => "cluster-unauthenticated",
            Self::ClusterAuthenticated => "cluster-authenticated",
            Self::Audit => "audit",
            Self::Deny => "deny",
        }
    }

    /// The policy of a port under this default: one catch-all route named `default`, `Opaque` if `opaque` (or for
    /// `Deny`), else `Detect`. The server and its authorization carry the policy's name. Contract 3.4.
    pub fn server_policy(
        self,
        cluster_networks: &[IpNet],
        detect_timeout: Duration,
        opaque: bool,
    ) -> ServerPolicy {
        let meta = Arc::new(ResourceRef::default_kind(self.as_str()));
        let protocol = if opaque || self == Self::Deny {
            ServerProtocol::Opaque
        } else {
            ServerProtocol::Detect { timeout: detect_timeout, routes: vec![catch_all()] }
        };
        let authorizations = self
            .admitted(cluster_networks)
            .map(|(networks, authentication)| Authorization { meta: meta.clone(), networks, authentication })
            .into_iter()
            .collect();
        ServerPolicy { meta, protocol, authorizations }
    }

    /// Whom it admits from where.
    fn admitted(self, cluster_networks: &[IpNet]) -> Option<(Vec<NetworkMatch>, Authentication)> {
        let any_identity = || Authentication::TlsAuthenticated {
            identities: Vec::new(),
            suffixes: vec![SuffixMatch { labels: Vec::new() }],
        };
        let cluster =
            || cluster_networks.iter().map(|net| NetworkMatch { net: *net, except: Vec::new() }).collect();
        match self {
            Self::AllUnauthenticated | Self::Audit => Some((everywhere(), Authentication::Unauthenticated)),
            Self::AllAuthenticated => Some((everywhere(), any_identity())),
            Self::ClusterUnauthenticated => Some((cluster(), Authentication::Unauthenticated)),
            Self::ClusterAuthenticated => Some((cluster(), any_identity())),
            Self::Deny => None,
        }
    }
}

/// 0.0.0.0/0 and ::/0.
fn everywhere() -> Vec<NetworkMatch> {
    let net = |net| NetworkMatch { net, except: Vec::new() };
    vec![net(IpNet::V4(Ipv4Net::default())), net(IpNet::V6(Ipv6Net::default()))]
}

/// A route named `default` that every request matches, also those without a path such as `OPTIONS *`.
fn catch_all() -> InboundRoute {
    let meta = Arc::new(ResourceRef::default_kind("default"));
    let rules = vec![HttpRule { matches: Vec::new() }];
    InboundRoute { route: HttpRoute { meta, hosts: Vec::new(), rules }, authorizations: Vec::new() }
}

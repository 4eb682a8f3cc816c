//! Pure. Linkerd's policy resources: who may use which port of which pods, and how often. What is written in them, whether
//! or not what they name is there. Every field is described in `docs/policy.md`.

mod clients;
mod read;
mod selector;

pub use selector::{Operator, Requirement, Selector};

use super::{Name, routes::RouteKind};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use remora_core::{
    identity::Identity,
    matching::{NetworkMatch, SuffixMatch},
    policy::DefaultPolicy,
};
use std::{num::NonZeroU32, sync::Arc};

/// The kinds of policy resources, all of `policy.linkerd.io`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PolicyKind {
    /// `Server`.
    Server,
    /// `ServerAuthorization`.
    ServerAuthorization,
    /// `AuthorizationPolicy`.
    AuthorizationPolicy,
    /// `MeshTLSAuthentication`.
    MeshTls,
    /// `NetworkAuthentication`.
    Network,
    /// `HTTPLocalRateLimitPolicy`.
    RateLimit,
}

/// A policy resource.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Its metadata.
    pub metadata: ObjectMeta,
    /// What it says.
    pub spec: PolicySpec,
}

/// What a policy resource says.
#[derive(Clone, Debug, PartialEq)]
pub enum PolicySpec {
    /// A `Server`.
    Server(Arc<ServerSpec>),
    /// A `ServerAuthorization`.
    ServerAuthorization(Arc<ServerAuthorizationSpec>),
    /// An `AuthorizationPolicy`.
    AuthorizationPolicy(Arc<AuthorizationPolicySpec>),
    /// A `MeshTLSAuthentication`.
    MeshTls(Arc<Clients>),
    /// A `NetworkAuthentication`: never empty.
    Network(Arc<Vec<NetworkMatch>>),
    /// An `HTTPLocalRateLimitPolicy`.
    RateLimit(Arc<RateLimitSpec>),
}

/// A port of some pods of a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerSpec {
    /// Which pods. `None` for a Server of ExternalWorkloads.
    pub pods: Option<Selector>,
    /// Which of their ports.
    pub port: ServerPort,
    /// What is spoken there.
    pub protocol: ServerProtocol,
    /// What becomes of clients that no authorization admits. Without one they are refused.
    pub access: Option<DefaultPolicy>,
}

/// A port of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerPort {
    /// This one.
    Number(u16),
    /// The container port of that name, which may differ from pod to pod.
    Name(String),
}

/// `proxyProtocol`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ServerProtocol {
    /// `unknown`: look.
    #[default]
    Detect,
    /// `HTTP/1`.
    Http1,
    /// `HTTP/2`.
    Http2,
    /// `gRPC`.
    Grpc,
    /// `opaque`.
    Opaque,
    /// `TLS` of the application's own.
    Tls,
}

/// Clients of Servers, the older way.
#[derive(Clone, Debug, PartialEq)]
pub struct ServerAuthorizationSpec {
    /// Which Servers of its namespace.
    pub servers: ServerSelector,
    /// From where. Empty is the cluster's networks.
    pub networks: Vec<NetworkMatch>,
    /// Who.
    pub clients: AnyClients,
}

/// Servers of a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerSelector {
    /// The one of this name.
    Name(String),
    /// Those with these labels.
    Labels(Selector),
}

/// Clients with or without an identity.
#[derive(Clone, Debug, PartialEq)]
pub enum AnyClients {
    /// Anybody.
    Unauthenticated,
    /// Anybody with the mesh's TLS.
    TlsUnauthenticated,
    /// These.
    Authenticated(Clients),
}

/// Clients by their identities: one of any of these. Never all empty.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Clients {
    /// Identities as they are.
    pub identities: Vec<Identity>,
    /// The ends of identities. One without labels is every identity.
    pub suffixes: Vec<SuffixMatch>,
    /// ServiceAccounts.
    pub accounts: Vec<AccountRef>,
    /// Every ServiceAccount of these namespaces, with the path of each.
    pub namespaces: Vec<(String, String)>,
}

/// A ServiceAccount that is referred to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccountRef {
    /// The field that refers to it.
    pub path: String,
    /// Its namespace, if it is not that of the reference.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

/// Clients of a Server, of a route or of a whole namespace. With several conditions all have to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorizationPolicySpec {
    /// What they may use.
    pub target: PolicyTarget,
    /// Who they have to be, if they have to be anybody.
    pub who: Option<(String, WhoRef)>,
    /// From where, with the path of the field; from everywhere if it is not said.
    pub from: Option<(String, ObjectName)>,
}

/// What an AuthorizationPolicy is about, in its own namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PolicyTarget {
    /// A Server.
    Server(String),
    /// A route with a Server as its parent.
    Route(RouteKind, String),
    /// Every Server of this namespace, which has to be the policy's own.
    Namespace(String),
}

/// Who a client has to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WhoRef {
    /// One of those that this MeshTLSAuthentication names.
    MeshTls(ObjectName),
    /// This ServiceAccount.
    Account(AccountRef),
}

/// An object that is referred to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectName {
    /// Its namespace, if it is not that of the reference.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

/// How many requests a Server takes per second.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateLimitSpec {
    /// The Server.
    pub server: String,
    /// Of all clients together.
    pub total: Option<NonZeroU32>,
    /// Of each client.
    pub identity: Option<NonZeroU32>,
    /// Of some clients instead.
    pub overrides: Vec<RateOverride>,
}

/// How many requests some clients may send per second.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateOverride {
    /// How many.
    pub limit: NonZeroU32,
    /// Who.
    pub clients: Vec<AccountRef>,
}

impl PolicyKind {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Server,
        Self::ServerAuthorization,
        Self::AuthorizationPolicy,
        Self::MeshTls,
        Self::Network,
        Self::RateLimit,
    ];

    /// The kind as manifests write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Server => "Server",
            Self::ServerAuthorization => "ServerAuthorization",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::MeshTls => "MeshTLSAuthentication",
            Self::Network => "NetworkAuthentication",
            Self::RateLimit => "HTTPLocalRateLimitPolicy",
        }
    }
}

impl PolicySpec {
    /// Which kind it is of.
    pub fn kind(&self) -> PolicyKind {
        match self {
            Self::Server(_) => PolicyKind::Server,
            Self::ServerAuthorization(_) => PolicyKind::ServerAuthorization,
            Self::AuthorizationPolicy(_) => PolicyKind::AuthorizationPolicy,
            Self::MeshTls(_) => PolicyKind::MeshTls,
            Self::Network(_) => PolicyKind::Network,
            Self::RateLimit(_) => PolicyKind::RateLimit,
        }
    }
}

impl ServerProtocol {
    /// The word of manifests for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Detect => "unknown",
            Self::Http1 => "HTTP/1",
            Self::Http2 => "HTTP/2",
            Self::Grpc => "gRPC",
            Self::Opaque => "opaque",
            Self::Tls => "TLS",
        }
    }
}

impl AccountRef {
    /// The ServiceAccount, for an object of this namespace.
    pub fn resolve(&self, namespace: &str) -> Name {
        Name::new(self.namespace.as_deref().unwrap_or(namespace), self.name.as_str())
    }
}

impl ObjectName {
    /// The object, for one of this namespace that refers to it.
    pub fn resolve(&self, namespace: &str) -> Name {
        Name::new(self.namespace.as_deref().unwrap_or(namespace), self.name.as_str())
    }
}

#[cfg(test)]
mod tests;

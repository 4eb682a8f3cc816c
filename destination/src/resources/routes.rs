//! Pure. Gateway API's routes: what is written in them, whether or not a mesh can do it. Every field is described in
//! `docs/routes.md`.

mod filters;
mod matches;
mod parts;
mod read;

pub use filters::{Filter, HeaderEdit, Mirror, PathModifier, Redirect, Rewrite};
pub use matches::{GrpcMatch, GrpcName, HttpMatch, PathMatch, ValueMatch};
pub(super) use parts::{namespace, optional};

use super::Name;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::{fmt, sync::Arc, time::Duration};

/// The group of Gateway API.
pub const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";
/// The group of Linkerd's policy resources.
pub const POLICY_GROUP: &str = "policy.linkerd.io";
/// The group of Services, as references may write it besides the empty one.
pub const CORE_GROUP: &str = "core";

/// The kinds of routes. In this order one of two routes of the same age and name comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RouteKind {
    /// `gateway.networking.k8s.io HTTPRoute`.
    Http,
    /// `policy.linkerd.io HTTPRoute`.
    LinkerdHttp,
    /// `gateway.networking.k8s.io GRPCRoute`.
    Grpc,
    /// `gateway.networking.k8s.io TLSRoute`.
    Tls,
    /// `gateway.networking.k8s.io TCPRoute`.
    Tcp,
}

/// A route.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// Its metadata.
    pub metadata: ObjectMeta,
    /// What it says.
    pub spec: Arc<RouteSpec>,
}

/// What a route says.
#[derive(Clone, Debug, PartialEq)]
pub struct RouteSpec {
    /// Which kind of route it is.
    pub kind: RouteKind,
    /// What it wants to be attached to.
    pub parents: Vec<ParentRef>,
    /// Which hosts, or server names of TLS, it is about. Empty is any.
    pub hostnames: Vec<Hostname>,
    /// Its rules, in order.
    pub rules: Vec<Rule>,
    /// How many regular expressions there are in it.
    pub patterns: usize,
    /// About how many bytes it takes in a message to a proxy.
    pub size: usize,
    /// What is accepted and yet not as its author may think.
    pub warnings: Vec<String>,
}

/// What a route wants to be attached to.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ParentRef {
    /// API group.
    pub group: String,
    /// Kind.
    pub kind: String,
    /// Namespace, if it is not the route's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Name.
    pub name: String,
    /// Only the Service's port of this name.
    #[serde(rename = "sectionName", skip_serializing_if = "Option::is_none")]
    pub section: Option<String>,
    /// Only the Service's port of this number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

/// A host, in lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hostname {
    /// The whole name.
    Exact(String),
    /// `*.` and this.
    Suffix(String),
}

/// What is done with the requests, or connections, that it matches.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rule {
    /// One of these must match. Empty for a rule about connections.
    pub matches: Vec<Match>,
    /// In order.
    pub filters: Vec<Filter>,
    /// Where it goes. Empty: to the Service that the route is attached to.
    pub backends: Vec<BackendRef>,
    /// `timeouts`, if there are any.
    pub timeouts: Option<Timeouts>,
    /// `retry`, if there is one.
    pub retry: Option<Retry>,
    /// Does it ask for session persistence?
    pub session_persistence: bool,
}

/// What a request must be like.
#[derive(Clone, Debug, PartialEq)]
pub enum Match {
    /// In an HTTPRoute.
    Http(HttpMatch),
    /// In a GRPCRoute.
    Grpc(GrpcMatch),
}

/// Where a share of requests or connections goes.
#[derive(Clone, Debug, PartialEq)]
pub struct BackendRef {
    /// What it is.
    pub target: TargetRef,
    /// Its share of the sum of all weights; 0 is never. At most 1 000 000.
    pub weight: u32,
    /// What is done with requests that go there.
    pub filters: Vec<Filter>,
}

/// An object that something is sent to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetRef {
    /// API group; empty for Services.
    pub group: String,
    /// Kind.
    pub kind: String,
    /// Namespace, if it is not the route's own.
    pub namespace: Option<String>,
    /// Name.
    pub name: String,
    /// Port. Every Service has one.
    pub port: Option<u16>,
}

/// `timeouts` of a rule. Zero says that there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// From the request's arrival to the response's end, retries included.
    pub request: Option<Duration>,
    /// The same of a single try.
    pub backend_request: Option<Duration>,
}

/// `retry` of a rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Retry {
    /// Statuses that are tried again.
    pub codes: Vec<u16>,
    /// Most tries after the first one.
    pub attempts: Option<u32>,
    /// The shortest time between tries.
    pub backoff: Option<Duration>,
}

impl RouteKind {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Http, Self::LinkerdHttp, Self::Grpc, Self::Tls, Self::Tcp];

    /// The API group.
    pub fn group(self) -> &'static str {
        match self {
            Self::LinkerdHttp => POLICY_GROUP,
            Self::Http | Self::Grpc | Self::Tls | Self::Tcp => GATEWAY_GROUP,
        }
    }

    /// The kind as manifests write it.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Http | Self::LinkerdHttp => "HTTPRoute",
            Self::Grpc => "GRPCRoute",
            Self::Tls => "TLSRoute",
            Self::Tcp => "TCPRoute",
        }
    }

    /// The kind, and its group where the kind alone would not tell.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::LinkerdHttp => "HTTPRoute.policy.linkerd.io",
            other => other.kind(),
        }
    }
}

impl ParentRef {
    /// The Server that it names, if it names one, for a route of this namespace.
    pub fn server(&self, namespace: &str) -> Option<Name> {
        (self.group == POLICY_GROUP && self.kind == "Server")
            .then(|| Name::new(self.namespace.as_deref().unwrap_or(namespace), self.name.as_str()))
    }

    /// The Service that it names, if it names one, for a route of this namespace.
    pub fn service(&self, namespace: &str) -> Option<Name> {
        (is_core(&self.group) && self.kind == "Service")
            .then(|| Name::new(self.namespace.as_deref().unwrap_or(namespace), self.name.as_str()))
    }
}

impl TargetRef {
    /// The Service and its port, if it is one, for a route of this namespace.
    pub fn service(&self, namespace: &str) -> Option<(Name, u16)> {
        let port = self.port.filter(|_| is_core(&self.group) && self.kind == "Service")?;
        Some((Name::new(self.namespace.as_deref().unwrap_or(namespace), self.name.as_str()), port))
    }
}

/// References write the group of Services as nothing, or as `core`.
pub(super) fn is_core(group: &str) -> bool {
    group.is_empty() || group == CORE_GROUP
}

impl fmt::Display for Hostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(name),
            Self::Suffix(suffix) => write!(f, "*.{suffix}"),
        }
    }
}

#[cfg(test)]
mod tests;

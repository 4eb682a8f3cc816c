//! Pure. In which versions each kind is read, and who has to be told of what is not read: whoever writes a policy that
//! nobody enforces.

use super::{Kind, PolicyKind, RouteKind, routes::POLICY_GROUP};
use std::fmt;

/// Groups of which every kind is for a mesh, Linkerd's or this one: one that is not read is no other controller's business.
const MESH_GROUPS: [&str; 3] = ["linkerd.io", POLICY_GROUP, "remora.io"];

/// An object of a kind that is not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unread {
    /// Its `apiVersion`, kind and name.
    pub object: String,
    /// Is its kind one of a mesh? Then nobody else enforces what it says either.
    pub unserved: bool,
}

/// What an `apiVersion` and a kind say together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Spoken {
    /// A kind in a version that is read.
    Read(Kind),
    /// A kind that is read, in another version: in which ones it is.
    Version(String),
    /// A kind of a mesh that this one has not.
    Unserved,
    /// Somebody else's business.
    Foreign,
}

impl fmt::Display for Unread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.object)
    }
}

impl Spoken {
    /// Of an `apiVersion` (`group/version`, or the version alone) and a kind.
    pub(super) fn of(api_version: &str, kind: &str) -> Self {
        let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
        let mut kinds = Kind::ALL.into_iter();
        match kinds.find(|known| known.group() == group && known.kind() == kind) {
            Some(known) if known.versions().contains(&version) => Self::Read(known),
            Some(known) => Self::Version(known.versions().join(", ")),
            None if MESH_GROUPS.contains(&group) => Self::Unserved,
            None => Self::Foreign,
        }
    }
}

impl Kind {
    /// Its API group; empty for the core's.
    fn group(self) -> &'static str {
        match self {
            Self::Namespace | Self::Node | Self::Pod | Self::Service | Self::ServiceAccount => "",
            Self::EndpointSlice => "discovery.k8s.io",
            Self::ReplicaSet => "apps",
            Self::Job => "batch",
            Self::ServiceProfile => "linkerd.io",
            Self::ReferenceGrant => "gateway.networking.k8s.io",
            Self::Route(kind) => kind.group(),
            Self::Policy(_) => POLICY_GROUP,
        }
    }

    /// As manifests write it beside its group.
    fn kind(self) -> &'static str {
        match self {
            Self::Route(kind) => kind.kind(),
            other => other.as_str(),
        }
    }

    /// In which it is read.
    fn versions(self) -> &'static [&'static str] {
        match self {
            Self::ServiceProfile | Self::Route(RouteKind::Tcp) => &["v1alpha2"],
            Self::ReferenceGrant | Self::Route(RouteKind::Http) => &["v1", "v1beta1"],
            Self::Route(RouteKind::Tls) => &["v1", "v1alpha3", "v1alpha2"],
            Self::Route(RouteKind::LinkerdHttp) | Self::Policy(PolicyKind::Server) => {
                &["v1beta3", "v1beta2", "v1beta1"]
            }
            Self::Policy(PolicyKind::ServerAuthorization) => &["v1beta1"],
            Self::Policy(_) => &["v1alpha1"],
            // Kubernetes' own, and GRPCRoute.
            _ => &["v1"],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_and_what_else_is_told() {
        let version = |versions: &str| Spoken::Version(versions.to_owned());
        for (api_version, kind, expected) in [
            ("v1", "Pod", Spoken::Read(Kind::Pod)),
            ("v2", "Pod", version("v1")),
            ("apps/v1", "ReplicaSet", Spoken::Read(Kind::ReplicaSet)),
            ("apps/v1beta2", "ReplicaSet", version("v1")),
            ("apps/v1", "Deployment", Spoken::Foreign),
            ("discovery.k8s.io/v1beta1", "EndpointSlice", version("v1")),
            ("linkerd.io/v1alpha2", "ServiceProfile", Spoken::Read(Kind::ServiceProfile)),
            ("linkerd.io/v1alpha1", "ServiceProfile", version("v1alpha2")),
            ("policy.linkerd.io/v1beta1", "Server", Spoken::Read(Kind::Policy(PolicyKind::Server))),
            ("policy.linkerd.io/v1beta2", "Server", Spoken::Read(Kind::Policy(PolicyKind::Server))),
            ("policy.linkerd.io/v1beta3", "Server", Spoken::Read(Kind::Policy(PolicyKind::Server))),
            (
                "policy.linkerd.io/v1alpha1",
                "MeshTLSAuthentication",
                Spoken::Read(Kind::Policy(PolicyKind::MeshTls)),
            ),
            ("policy.linkerd.io/v1alpha1", "Server", version("v1beta3, v1beta2, v1beta1")),
            ("policy.linkerd.io/v1beta9", "Server", version("v1beta3, v1beta2, v1beta1")),
            ("policy.linkerd.io/v1alpha1", "ServerAuthorization", version("v1beta1")),
            ("policy.linkerd.io/v1beta1", "AuthorizationPolicy", version("v1alpha1")),
            ("policy.linkerd.io/v1beta3", "HTTPRoute", Spoken::Read(Kind::Route(RouteKind::LinkerdHttp))),
            ("policy.linkerd.io/v1alpha1", "HTTPRoute", version("v1beta3, v1beta2, v1beta1")),
            ("policy.linkerd.io/v1alpha1", "EgressNetwork", Spoken::Unserved),
            ("policy.linkerd.io/v1beta3", "Servers", Spoken::Unserved),
            ("remora.io/v1", "Anything", Spoken::Unserved),
            ("gateway.networking.k8s.io/v1beta1", "HTTPRoute", Spoken::Read(Kind::Route(RouteKind::Http))),
            ("gateway.networking.k8s.io/v1alpha2", "HTTPRoute", version("v1, v1beta1")),
            ("gateway.networking.k8s.io/v1alpha2", "GRPCRoute", version("v1")),
            ("gateway.networking.k8s.io/v1alpha3", "TLSRoute", Spoken::Read(Kind::Route(RouteKind::Tls))),
            ("gateway.networking.k8s.io/v1beta1", "TLSRoute", version("v1, v1alpha3, v1alpha2")),
            ("gateway.networking.k8s.io/v1", "TCPRoute", version("v1alpha2")),
            ("gateway.networking.k8s.io/v1", "Gateway", Spoken::Foreign),
            ("security.istio.io/v1", "AuthorizationPolicy", Spoken::Foreign),
            ("workload.linkerd.io/v1beta1", "ExternalWorkload", Spoken::Foreign),
        ] {
            assert_eq!(Spoken::of(api_version, kind), expected, "{api_version} {kind}");
        }
    }
}

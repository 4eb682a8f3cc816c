//! The policies of ports that no Server is about. Contract 3.4.

use super::{
    Authentication, Authorization, Authorizations, InboundRoute, ResourceRef, ServerPolicy, ServerProtocol,
};
use crate::{
    matching::{NetworkMatch, SuffixMatch},
    route::{HttpRoute, HttpRule},
};
use alloc::{sync::Arc, vec, vec::Vec};
use core::time::Duration;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

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
        ServerPolicy { meta, protocol, authorizations, rate_limits: None }
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
pub(super) fn everywhere() -> Vec<NetworkMatch> {
    let net = |net| NetworkMatch { net, except: Vec::new() };
    vec![net(IpNet::V4(Ipv4Net::default())), net(IpNet::V6(Ipv6Net::default()))]
}

/// A route named `default` that every request matches, also those without a path such as `OPTIONS *`.
pub(super) fn catch_all() -> InboundRoute {
    let meta = Arc::new(ResourceRef::default_kind("default"));
    let rules = vec![HttpRule { matches: Vec::new() }];
    InboundRoute {
        route: HttpRoute { meta, hosts: Vec::new(), rules },
        filters: vec![Vec::new()],
        authorizations: Authorizations::default(),
    }
}

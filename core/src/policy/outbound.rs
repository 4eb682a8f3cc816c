//! Whom may this pod connect to without mTLS? The default of its outbound side, named as the inbound one is.

use crate::endpoint::NoTlsReason;

/// Who may be connected to in plaintext. With any other than the first, whoever has no identity gets not one byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum OutboundDefault {
    /// Everybody.
    #[default]
    AllUnauthenticated,
    /// Nobody.
    AllAuthenticated,
    /// Who is outside the cluster's networks.
    ClusterAuthenticated,
}

impl OutboundDefault {
    /// Every one, in the order of their definition.
    pub const ALL: [Self; 3] = [Self::AllUnauthenticated, Self::AllAuthenticated, Self::ClusterAuthenticated];

    /// Reads a name such as `all-authenticated`.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|policy| policy.as_str() == name)
    }

    /// The name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AllUnauthenticated => "all-unauthenticated",
            Self::AllAuthenticated => "all-authenticated",
            Self::ClusterAuthenticated => "cluster-authenticated",
        }
    }

    /// Must somebody be left alone who would be dialled without mTLS for this reason? `in_cluster`: the address is in
    /// the cluster's networks. What goes to this pod itself never leaves it.
    pub fn forbids(self, reason: NoTlsReason, in_cluster: bool) -> bool {
        let demanded = match self {
            Self::AllUnauthenticated => false,
            Self::AllAuthenticated => true,
            Self::ClusterAuthenticated => in_cluster,
        };
        demanded && reason != NoTlsReason::Loopback
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REASONS: [NoTlsReason; 5] = [
        NoTlsReason::Loopback,
        NoTlsReason::NotProvidedByServiceDiscovery,
        NoTlsReason::NoTlsFromRemote,
        NoTlsReason::PortSkipped,
        NoTlsReason::Disabled,
    ];

    #[test]
    fn every_name_is_read_back() {
        for policy in OutboundDefault::ALL {
            assert_eq!(OutboundDefault::parse(policy.as_str()), Some(policy));
        }
        for wrong in
            ["", "deny", "audit", "cluster-unauthenticated", "ALL-AUTHENTICATED", " all-authenticated"]
        {
            assert_eq!(OutboundDefault::parse(wrong), None, "{wrong:?}");
        }
        assert_eq!(OutboundDefault::default(), OutboundDefault::AllUnauthenticated);
    }

    #[test]
    fn by_default_nobody_is_forbidden() {
        check(OutboundDefault::AllUnauthenticated, (false, false));
    }

    #[test]
    fn all_authenticated_forbids_everybody_without_identity() {
        check(OutboundDefault::AllAuthenticated, (true, true));
    }

    #[test]
    fn cluster_authenticated_lets_through_what_is_outside() {
        check(OutboundDefault::ClusterAuthenticated, (true, false));
    }

    /// Inside the cluster, and outside.
    #[track_caller]
    fn check(policy: OutboundDefault, (inside, outside): (bool, bool)) {
        for reason in REASONS {
            let itself = reason == NoTlsReason::Loopback;
            assert_eq!(policy.forbids(reason, true), inside && !itself, "{reason:?}");
            assert_eq!(policy.forbids(reason, false), outside && !itself, "{reason:?}");
        }
    }
}

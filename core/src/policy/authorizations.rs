//! Who is admitted, by what an operator wrote. Contract 3.4.

use super::{Peer, ResourceRef};
use crate::{
    identity::Identity,
    matching::{NetworkMatch, SuffixMatch},
};
use alloc::{sync::Arc, vec, vec::Vec};
use core::{net::IpAddr, ops::Deref};

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

/// Authorizations in the order in which they are tried. What names others than the client is not looked at: an operator
/// may write hundreds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Authorizations {
    all: Vec<Authorization>,
    /// Of those that name identities the indices in `all`, in order, by identity.
    naming: Vec<(Identity, Vec<usize>)>,
    /// Of those that may admit somebody whom they do not name.
    others: Vec<usize>,
}

impl Authorizations {
    /// The first that admits the client.
    pub fn admitting(&self, client: IpAddr, peer: &Peer) -> Option<&Authorization> {
        let named = peer.identity().map_or(&[][..], |identity| self.naming(identity));
        let admits = |index: &&usize| self.all.get(**index).is_some_and(|one| one.admits(client, peer));
        let named = named.iter().find(admits);
        let earlier = self.others.iter().take_while(|index| named.is_none_or(|named| *index < named));
        self.all.get(*earlier.into_iter().find(admits).or(named)?)
    }

    fn naming(&self, identity: &Identity) -> &[usize] {
        let at = self.naming.binary_search_by(|(named, _)| named.cmp(identity));
        at.ok().and_then(|at| self.naming.get(at)).map_or(&[], |(_, indices)| indices)
    }
}

impl FromIterator<Authorization> for Authorizations {
    fn from_iter<I: IntoIterator<Item = Authorization>>(authorizations: I) -> Self {
        let all: Vec<Authorization> = authorizations.into_iter().collect();
        let mut naming: Vec<(Identity, Vec<usize>)> = Vec::new();
        let mut others = Vec::new();
        for (index, one) in all.iter().enumerate() {
            let (identities, may_admit_others) = match &one.authentication {
                Authentication::Unauthenticated | Authentication::TlsUnauthenticated => (&[][..], true),
                Authentication::TlsAuthenticated { identities, suffixes } => {
                    (&identities[..], !suffixes.is_empty())
                }
            };
            naming.extend(identities.iter().map(|identity| (identity.clone(), vec![index])));
            others.extend(may_admit_others.then_some(index));
        }
        // Stable: the indices of an identity stay in order.
        naming.sort_by(|(a, _), (b, _)| a.cmp(b));
        naming.dedup_by(|(later, more), (identity, indices)| {
            let is_same = later == identity;
            if is_same {
                indices.append(more);
            }
            is_same
        });
        Self { all, naming, others }
    }
}

impl From<Vec<Authorization>> for Authorizations {
    fn from(all: Vec<Authorization>) -> Self {
        all.into_iter().collect()
    }
}

impl Deref for Authorizations {
    type Target = [Authorization];

    fn deref(&self) -> &[Authorization] {
        &self.all
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use proptest::prelude::*;

    fn identity(name: &str) -> Identity {
        Identity::parse(name).unwrap()
    }

    fn authorization() -> impl Strategy<Value = Authorization> {
        let name = || prop::sample::select(vec!["a.x", "b.x", "a.y", "spiffe://x/a"]);
        let names = prop::collection::vec(name().prop_map(identity), 0..4);
        let suffix = prop::sample::select(vec!["x", "y"]);
        let suffix = suffix.prop_map(|label| SuffixMatch { labels: vec![label.to_string()] });
        let authentication = prop_oneof![
            1 => Just(Authentication::Unauthenticated),
            1 => Just(Authentication::TlsUnauthenticated),
            6 => (names, prop::collection::vec(suffix, 0..2))
                .prop_map(|(identities, suffixes)| Authentication::TlsAuthenticated { identities, suffixes }),
        ];
        let network = prop::sample::select(vec!["10.0.0.0/8", "10.1.0.0/16", "192.0.2.0/24"]);
        let network = network.prop_map(|net| NetworkMatch { net: net.parse().unwrap(), except: vec![] });
        (authentication, prop::collection::vec(network, 0..3)).prop_map(|(authentication, networks)| {
            Authorization { meta: Arc::new(ResourceRef::default()), networks, authentication }
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]
        #[test]
        fn the_first_that_admits_is_the_one_that_asking_each_finds(
            all in prop::collection::vec(authorization(), 0..12),
            client in prop::sample::select(vec!["10.1.0.1", "10.2.0.1", "::ffff:192.0.2.1", "198.51.100.1"]),
            name in prop::option::of(prop::sample::select(vec!["a.x", "b.x", "a.y", "b.y", "spiffe://x/a", "x"])),
            is_tls in any::<bool>(),
        ) {
            let client = client.parse().unwrap();
            let peer = if is_tls { Peer::Tls { identity: name.map(identity) } } else { Peer::Plain };
            let index = |found: Option<&Authorization>| {
                found.map(core::ptr::from_ref)
            };
            let authorizations = Authorizations::from(all);
            let first = authorizations.iter().find(|one| one.admits(client, &peer));
            prop_assert_eq!(index(authorizations.admitting(client, &peer)), index(first));
        }
    }
}

//! The small matchers that policies and routes are made of.

use crate::identity::{Identity, Kind};
use alloc::{string::String, vec::Vec};
use core::net::IpAddr;
use ipnet::IpNet;

/// Addresses inside `net` and outside every `except`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkMatch {
    /// The network.
    pub net: IpNet,
    /// Its holes.
    pub except: Vec<IpNet>,
}

impl NetworkMatch {
    /// Is the address inside? An IPv4-mapped IPv6 address counts as IPv4.
    pub fn contains(&self, addr: IpAddr) -> bool {
        covers(&self.net, addr) && !self.except.iter().any(|hole| covers(hole, addr))
    }
}

/// Is the address in this network? Both sides may be written as IPv4-mapped IPv6 (`::ffff:10.0.0.0/104`): a hole that
/// never matched because of how it is written would let somebody in. But `::/0` is about IPv6 and admits no IPv4.
pub fn covers(net: &IpNet, addr: IpAddr) -> bool {
    /// Bits before the IPv4 address in an IPv4-mapped one (RFC 4291 section 2.5.5.2).
    const MAPPED_BITS: u8 = 96;

    match (net, addr.to_canonical()) {
        (IpNet::V4(net), IpAddr::V4(addr)) => net.contains(&addr),
        (IpNet::V6(net), IpAddr::V6(addr)) => net.contains(&addr),
        (IpNet::V6(net), IpAddr::V4(addr)) => {
            net.prefix_len() >= MAPPED_BITS && net.contains(&addr.to_ipv6_mapped())
        }
        (IpNet::V4(_), IpAddr::V6(_)) => false,
    }
}

/// A set of identities by their last DNS labels. No labels means any DNS identity. Contract 3.4.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SuffixMatch {
    /// Labels in writing order, lower case.
    pub labels: Vec<String>,
}

impl SuffixMatch {
    /// Does a DNS identity end with these labels, with at least one more before them? A URI identity never does.
    pub fn matches(&self, identity: &Identity) -> bool {
        identity.kind() == Kind::Dns && ends_with_labels(identity.as_str(), &self.labels)
    }
}

/// Does `name` end with `labels` (writing order), with at least one more label before them? Case does not count. With
/// no labels every name that is not empty does.
pub(crate) fn ends_with_labels(name: &str, labels: &[String]) -> bool {
    let mut rest = name.rsplit('.');
    labels.iter().rev().all(|label| rest.next().is_some_and(|part| part.eq_ignore_ascii_case(label)))
        && rest.next().is_some_and(|part| !part.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{string::ToString, vec};
    use proptest::prelude::*;

    #[test]
    fn an_address_in_the_network_matches() {
        network("10.0.0.0/8", &[], "10.1.2.3", true);
        network("fd00::/8", &[], "fd12::1", true);
    }

    #[test]
    fn an_address_outside_does_not() {
        network("10.0.0.0/8", &[], "11.1.2.3", false);
        network("fd00::/8", &[], "fe80::1", false);
    }

    #[test]
    fn an_address_in_a_hole_does_not() {
        network("10.0.0.0/8", &["10.1.0.0/16", "10.2.0.0/16"], "10.2.0.1", false);
        network("10.0.0.0/8", &["10.1.0.0/16", "10.2.0.0/16"], "10.3.0.1", true);
    }

    #[test]
    fn everything_matches_every_address_of_its_family_only() {
        network("0.0.0.0/0", &[], "192.0.2.1", true);
        network("::/0", &[], "2001:db8::1", true);
        network("0.0.0.0/0", &[], "2001:db8::1", false);
        network("::/0", &[], "192.0.2.1", false);
        network("::/0", &[], "::ffff:192.0.2.1", false);
    }

    #[test]
    fn a_mapped_address_counts_as_ipv4() {
        network("10.0.0.0/8", &[], "::ffff:10.1.2.3", true);
        network("10.0.0.0/8", &["10.1.0.0/16"], "::ffff:10.1.2.3", false);
    }

    #[test]
    fn a_mapped_network_counts_as_ipv4() {
        network("::ffff:10.0.0.0/104", &[], "10.1.2.3", true);
        network("10.0.0.0/8", &["::ffff:10.1.0.0/112"], "10.1.2.3", false);
        network("10.0.0.0/8", &["::ffff:10.1.0.0/112"], "10.2.2.3", true);
    }

    #[test]
    fn a_single_address_is_a_network() {
        network("127.0.0.1/32", &[], "127.0.0.1", true);
        network("127.0.0.1/32", &[], "127.0.0.2", false);
    }

    #[test]
    fn a_suffix_matches_on_label_boundaries() {
        suffix(&["prod", "serviceaccount"], "web.prod.serviceaccount", true);
        suffix(&["prod", "serviceaccount"], "web.preprod.serviceaccount", false);
        suffix(&["prod", "serviceaccount"], "webprod.serviceaccount", false);
    }

    #[test]
    fn a_suffix_is_not_its_own_member() {
        suffix(&["prod", "serviceaccount"], "prod.serviceaccount", false);
    }

    #[test]
    fn a_suffix_longer_than_the_name_matches_nothing() {
        suffix(&["a", "b", "c"], "b.c", false);
    }

    #[test]
    fn no_labels_match_any_dns_identity() {
        suffix(&[], "web.prod.serviceaccount", true);
        suffix(&[], "web", true);
    }

    #[test]
    fn a_uri_is_never_matched_by_suffix() {
        suffix(&[], "spiffe://cluster.local/ns/prod", false);
        suffix(&["local"], "spiffe://cluster.local", false);
    }

    proptest! {
        #[test]
        fn a_hole_only_ever_removes(net in "10\\.[0-9]\\.0\\.0/(8|9|1[0-6])", hole in "10\\.[0-9]\\.0\\.0/1[0-6]",
            addr in any::<[u8; 2]>()) {
            let (net, hole): (IpNet, IpNet) = (net.parse().unwrap(), hole.parse().unwrap());
            let addr = IpAddr::from([10, addr[0] % 10, addr[1], 1]);
            let whole = NetworkMatch { net, except: vec![] };
            let holed = NetworkMatch { net, except: vec![hole] };
            prop_assert_eq!(holed.contains(addr), whole.contains(addr) && !hole.contains(&addr));
        }
    }

    #[track_caller]
    fn network(net: &str, except: &[&str], addr: &str, expected: bool) {
        let network = NetworkMatch {
            net: net.parse().unwrap(),
            except: except.iter().map(|hole| hole.parse().unwrap()).collect(),
        };
        assert_eq!(network.contains(addr.parse().unwrap()), expected);
    }

    #[track_caller]
    fn suffix(labels: &[&str], identity: &str, expected: bool) {
        let suffix = SuffixMatch { labels: labels.iter().map(ToString::to_string).collect() };
        assert_eq!(suffix.matches(&Identity::parse(identity).unwrap()), expected);
    }
}

//! Pure. Whoever may not be reached without mTLS gets not one byte, and nothing that somebody else could have.

use crate::fault::Fault;
use remora_core::{endpoint::DialPlan, policy::OutboundDefault};
use std::net::SocketAddr;

/// Why nothing at all may be sent to an endpoint, where policy demands the identity that it does not have.
pub fn forbidden(
    policy: OutboundDefault,
    plan: &DialPlan,
    in_cluster: impl FnOnce(SocketAddr) -> bool,
) -> Option<Fault> {
    let DialPlan::Plain { addr, reason } = *plan else { return None };
    let forbids = policy.forbids(reason, in_cluster(addr));
    forbids.then(|| Fault::NoIdentity { addr, policy: policy.as_str() })
}

/// Those of a destination's endpoints among whom one is picked, and those that are passed over: whoever is left out, while
/// anybody is not. Where all are, they are picked still: who comes is told why.
pub fn candidates<T>(all: Vec<T>, left_out: impl Fn(&T) -> bool) -> (Vec<T>, Vec<T>) {
    let out = all.iter().filter(|one| left_out(one)).count();
    // As they are, without a copy: there may be thousands.
    if out == 0 || out == all.len() {
        return (all, Vec::new());
    }
    all.into_iter().partition(|one| !left_out(one))
}

#[cfg(test)]
mod tests {
    use super::*;
    use remora_core::endpoint::NoTlsReason;

    #[test]
    fn only_who_would_be_dialled_without_identity_is_forbidden_and_named() {
        let addr: SocketAddr = ([10, 0, 0, 1], 80).into();
        let plain = |reason| DialPlan::Plain { addr, reason };
        let unknown = plain(NoTlsReason::NotProvidedByServiceDiscovery);
        let all = OutboundDefault::AllAuthenticated;
        assert!(forbidden(OutboundDefault::AllUnauthenticated, &unknown, |_| true).is_none());
        assert!(forbidden(all, &plain(NoTlsReason::Loopback), |_| true).is_none());
        assert!(forbidden(OutboundDefault::ClusterAuthenticated, &unknown, |_| false).is_none());
        assert_eq!(
            forbidden(all, &unknown, |_| false).unwrap().to_string(),
            "10.0.0.1:80 has no identity, and the outbound default policy all-authenticated demands mTLS: \
             nothing was sent to it"
        );
    }

    #[test]
    fn who_is_left_out_is_a_candidate_only_where_all_are() {
        let odd = |number: &u32| number % 2 == 1;
        for (all, expected) in [
            (vec![1, 2, 3, 4], (vec![2, 4], vec![1, 3])),
            (vec![2, 4], (vec![2, 4], vec![])),
            (vec![1, 3], (vec![1, 3], vec![])),
            (vec![], (vec![], vec![])),
        ] {
            assert_eq!(candidates(all, odd), expected);
        }
    }
}

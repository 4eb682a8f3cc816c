//! Which route a request takes, and what is done with it there. Precedence as Gateway API orders it. Contract 4.1.

mod choose;
mod filter;
mod membership;
mod path;
mod table;
mod terms;
mod why;

pub use self::choose::{
    InvalidPattern, MAX_PATTERN, choose, choose_sni, host_of, matched_prefix, whole_match,
};
pub use self::filter::{
    Asked, FailWith, Failure, Filter, HeaderModifier, Inapplicable, Mirror, Ratio, Redirect, Rewrite, Scheme,
    Untouchable, may_modify,
};
pub use self::membership::{Membership, named};
pub use self::path::{Replacement, TwoWays, normal, replace_prefix, select};
pub use self::table::Table;
pub use self::terms::{GrpcCodes, RetryPolicy, Timeouts, Wishes};
pub use self::why::{Criterion, Loss, Unmet, losses};
use crate::{balance::Balancings, breaker::Accruals, endpoint::Endpoint, policy::ResourceRef};
use alloc::{string::String, sync::Arc, vec::Vec};
use core::net::SocketAddr;

/// What a decision may look at in a request, without copies.
pub trait RequestView {
    /// `GET`, …
    fn method(&self) -> &str;
    /// Host with optional port, from the target or the Host header; empty if there is none.
    fn authority(&self) -> &str;
    /// The path without query, as received.
    fn path(&self) -> &str;
    /// What follows `?`, as received.
    fn query(&self) -> Option<&str>;
    /// Values of a header, by lower-case name.
    fn header(&self, name: &str) -> impl Iterator<Item = &[u8]>;
}

/// A route: which hosts, and rules in order.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpRoute {
    /// The resource behind it.
    pub meta: Arc<ResourceRef>,
    /// Hosts; empty means any.
    pub hosts: Vec<HostMatch>,
    /// Rules; the best match over all rules of all routes wins.
    pub rules: Vec<HttpRule>,
}

/// What a rule matches; what is done with that is kept by [`OutboundRoute`].
#[derive(Clone, Debug, PartialEq)]
pub struct HttpRule {
    /// Any one of these; empty means every request.
    pub matches: Vec<HttpMatch>,
}

/// A host pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostMatch {
    /// The whole name, lower case.
    Exact(String),
    /// `*.` and these labels (lower case, writing order).
    Suffix(Vec<String>),
}

/// One set of conditions; all must hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HttpMatch {
    /// The path.
    pub path: Option<PathMatch>,
    /// The headers, by lower-case name.
    pub headers: Vec<(String, ValueMatch)>,
    /// Query parameters.
    pub query: Vec<(String, ValueMatch)>,
    /// The method.
    pub method: Option<String>,
}

/// A path pattern.
#[derive(Clone, Debug)]
pub enum PathMatch {
    /// The whole path.
    Exact(String),
    /// On segment boundaries.
    Prefix(String),
    /// Covers the whole path. Linear time.
    Regex(regex::Regex),
    /// `/service/method` of gRPC with this method, whatever the service.
    AnyService(String),
}

/// A value pattern.
#[derive(Clone, Debug)]
pub enum ValueMatch {
    /// The whole value.
    Exact(Vec<u8>),
    /// Covers the whole value. Linear time.
    Regex(regex::Regex),
}

/// The best match of a request: the route, and the rule in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// Index of the route.
    pub route: usize,
    /// Index of the rule.
    pub rule: usize,
}

/// What the outbound side should do with a target, as `OutboundPolicies.Watch` states it. Contract 3.3.
#[derive(Clone, Debug, PartialEq)]
pub struct OutboundPolicy {
    /// The Service, EgressNetwork or fallback that the policy is attached to.
    pub parent: Arc<ResourceRef>,
    /// What it speaks and where each protocol goes.
    pub protocol: OutboundProtocol,
    /// When the balancers behind its routes leave endpoints out.
    pub accrual: Accruals,
    /// How the Services that it names, and those of its target's ServiceProfile, want to be balanced.
    pub balancing: Balancings,
}

/// Protocol and routes of a target.
#[derive(Clone, Debug, PartialEq)]
pub enum OutboundProtocol {
    /// Look at the first bytes.
    Detect {
        /// Routes for HTTP/1.
        http1: Vec<OutboundRoute>,
        /// Routes for HTTP/2.
        http2: Vec<OutboundRoute>,
        /// Backends for everything else.
        opaque: Arc<Distribution>,
    },
    /// HTTP/1.
    Http1(Vec<OutboundRoute>),
    /// HTTP/2.
    Http2(Vec<OutboundRoute>),
    /// gRPC: its routes are HTTP/2 routes on POST and a path, counted by gRPC status.
    Grpc(Vec<OutboundRoute>),
    /// Bytes.
    Opaque(Arc<Distribution>),
    /// The application's TLS, by SNI.
    Tls(Vec<TlsRoute>),
    /// The message could not be understood or names what this proxy cannot do: every request fails with 500 and
    /// this reason, every opaque connection is reset.
    Invalid(Arc<str>),
}

/// A route and what its rules do with requests (same indices as `route.rules`).
#[derive(Clone, Debug, PartialEq)]
pub struct OutboundRoute {
    /// What it matches.
    pub route: HttpRoute,
    /// What is done with what each rule matches.
    pub rules: Vec<OutboundRule>,
}

/// What is done with the requests of a rule.
#[derive(Clone, Debug, PartialEq)]
pub struct OutboundRule {
    /// Where they go.
    pub distribution: Arc<Distribution>,
    /// In order.
    pub filters: Vec<Filter>,
    /// How long they may take.
    pub timeouts: Timeouts,
    /// Which of them are sent again.
    pub retry: Option<RetryPolicy>,
    /// May a request say otherwise of timeouts and retries? See [`Wishes`].
    pub heeds_wishes: bool,
}

impl OutboundRule {
    /// Sends requests on and does nothing else.
    pub fn plain(distribution: Arc<Distribution>) -> Self {
        Self {
            distribution,
            filters: Vec::new(),
            timeouts: Timeouts::default(),
            retry: None,
            heeds_wishes: false,
        }
    }
}

/// A TLS route: SNI patterns and a distribution.
#[derive(Clone, Debug, PartialEq)]
pub struct TlsRoute {
    /// The resource behind it.
    pub meta: Arc<ResourceRef>,
    /// Empty means any.
    pub snis: Vec<HostMatch>,
    /// Where it goes.
    pub distribution: Arc<Distribution>,
}

/// A choice of backends.
#[derive(Clone, Debug, PartialEq)]
pub enum Distribution {
    /// Nobody: requests fail.
    Empty,
    /// The first one that has an available endpoint.
    FirstAvailable(Vec<Backend>),
    /// By weight among the available ones; weight 0 never.
    RandomAvailable(Vec<(Backend, u32)>),
    /// Refused by policy (an undefined port, an egress rule), with the reason.
    Forbidden(Arc<str>),
}

/// Where a share of requests goes.
#[derive(Clone, Debug, PartialEq)]
pub struct Backend {
    /// The resource behind it.
    pub meta: Arc<ResourceRef>,
    /// Its endpoints.
    pub target: BackendTarget,
    /// Applied to what it gets and answers, after those of the rule.
    pub filters: Vec<Filter>,
}

/// How a backend's endpoints are known.
#[derive(Clone, Debug, PartialEq)]
pub enum BackendTarget {
    /// A balancer over `Destination.Get(authority)`.
    Balance {
        /// `<svc>.<ns>.svc.<domain>:<port>`.
        authority: Arc<str>,
        /// Initial round-trip estimate of peak EWMA.
        default_rtt: core::time::Duration,
        /// Decay of peak EWMA.
        decay: core::time::Duration,
    },
    /// One address, as `Watch` gave it.
    Forward(Endpoint),
    /// The original destination.
    Original(SocketAddr),
    /// Nobody, for this reason. It is picked like one that is there, so that its share fails and not the others'.
    Nowhere(Arc<str>),
}

/// Peak EWMA's defaults, contract 3.3.
pub const DEFAULT_RTT: core::time::Duration = core::time::Duration::from_millis(30);
/// Peak EWMA's defaults, contract 3.3.
pub const DEFAULT_DECAY: core::time::Duration = core::time::Duration::from_secs(10);

/// Picks the backend of a distribution: `available(i)` says whether backend `i` has an endpoint, `random` is any
/// number. `None` when nobody is available.
pub fn pick_backend(
    distribution: &Distribution,
    available: impl Fn(usize) -> bool,
    random: u64,
) -> Option<usize> {
    match distribution {
        Distribution::Empty | Distribution::Forbidden(_) => None,
        Distribution::FirstAvailable(backends) => (0..backends.len()).find(|index| available(*index)),
        Distribution::RandomAvailable(backends) => {
            let eligible = || {
                let weights = backends.iter().map(|(_, weight)| u64::from(*weight)).enumerate();
                weights.filter(|(index, weight)| *weight > 0 && available(*index))
            };
            let total: u64 = eligible().map(|(_, weight)| weight).sum();
            // A number below `total`; it is walked down by each weight in turn.
            let mut left = ((u128::from(random) * u128::from(total)) >> 64) as u64;
            eligible()
                .find(|(_, weight)| match left.checked_sub(*weight) {
                    Some(less) => {
                        left = less;
                        false
                    }
                    None => true,
                })
                // Found nothing: `available` changed its mind meanwhile.
                .or_else(|| eligible().next())
                .map(|(index, _)| index)
        }
    }
}

impl PartialEq for PathMatch {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Exact(a), Self::Exact(b))
            | (Self::Prefix(a), Self::Prefix(b))
            | (Self::AnyService(a), Self::AnyService(b)) => a == b,
            (Self::Regex(a), Self::Regex(b)) => a.as_str() == b.as_str(),
            _ => false,
        }
    }
}

impl PartialEq for ValueMatch {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Exact(a), Self::Exact(b)) => a == b,
            (Self::Regex(a), Self::Regex(b)) => a.as_str() == b.as_str(),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use proptest::prelude::*;

    #[test]
    fn empty_and_forbidden_distributions_pick_nobody() {
        assert_eq!(pick_backend(&Distribution::Empty, |_| true, 0), None);
        assert_eq!(pick_backend(&Distribution::Forbidden("undefined-port".into()), |_| true, 0), None);
    }

    #[test]
    fn the_first_available_backend_is_picked() {
        let distribution = Distribution::FirstAvailable(vec![backend(), backend(), backend()]);
        assert_eq!(pick_backend(&distribution, |_| true, 7), Some(0));
        assert_eq!(pick_backend(&distribution, |index| index == 2, 7), Some(2));
        assert_eq!(pick_backend(&distribution, |_| false, 7), None);
    }

    #[test]
    fn shares_follow_the_weights() {
        let distribution = weighted(&[1, 0, 3]);
        let hits = hits(&distribution, |_| true);
        assert_eq!(hits, [250, 0, 750]);
    }

    #[test]
    fn an_unavailable_backends_share_goes_to_the_others() {
        let distribution = weighted(&[1, 1, 2]);
        assert_eq!(hits(&distribution, |index| index != 2), [500, 500, 0]);
    }

    #[test]
    fn weight_zero_is_never_picked_even_alone() {
        assert_eq!(pick_backend(&weighted(&[0]), |_| true, 7), None);
        assert_eq!(pick_backend(&weighted(&[0, 1]), |index| index == 0, 7), None);
    }

    #[test]
    fn the_largest_weights_do_not_overflow() {
        let distribution = weighted(&[u32::MAX; 4]);
        assert_eq!(hits(&distribution, |_| true), [250; 4]);
    }

    proptest! {
        #[test]
        fn who_is_picked_is_available_and_has_weight(
            weights in proptest::collection::vec(0u32..5, 0..6),
            up in any::<u8>(),
            random in any::<u64>(),
        ) {
            let available = |index: usize| up >> index & 1 == 1;
            let eligible = (0..weights.len()).any(|index| available(index) && weights[index] > 0);
            let picked = pick_backend(&weighted(&weights), available, random);
            prop_assert_eq!(picked.is_some(), eligible);
            prop_assert!(picked.is_none_or(|index| available(index) && weights[index] > 0));
        }
    }

    /// How often each is picked in 1000 draws spread evenly over all random numbers.
    fn hits(distribution: &Distribution, available: impl Fn(usize) -> bool) -> Vec<u32> {
        let Distribution::RandomAvailable(backends) = distribution else { panic!("not weighted") };
        let mut hits = vec![0; backends.len()];
        for draw in 0..1000 {
            let random = u64::MAX / 1000 * draw + 1000;
            hits[pick_backend(distribution, &available, random).unwrap()] += 1;
        }
        hits
    }

    fn weighted(weights: &[u32]) -> Distribution {
        Distribution::RandomAvailable(weights.iter().map(|weight| (backend(), *weight)).collect())
    }

    fn backend() -> Backend {
        let addr = SocketAddr::from(([10, 0, 0, 1], 80));
        Backend {
            meta: Arc::new(ResourceRef::default()),
            target: BackendTarget::Original(addr),
            filters: vec![],
        }
    }
}

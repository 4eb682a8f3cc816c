//! Which route a request takes. Precedence as Gateway API orders it. Contract 4.1.

use crate::{endpoint::Endpoint, matching::ends_with_labels, policy::ResourceRef};
use alloc::{format, string::String, sync::Arc, vec::Vec};
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

/// What a rule matches; where it sends requests is kept by [`OutboundRoute`].
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

/// The best match; ties go to the earlier route and rule.
///
/// The order of contract 4.1, the first difference deciding: an exact host, the longer suffix, no host; the longer
/// matched path (whichever kind of pattern matched it; no pattern counts as the prefix `/`); more header conditions;
/// more query conditions; a method.
#[expect(single_use_lifetimes, reason = "`impl Trait` cannot elide it in stable Rust")]
pub fn choose<'a, R: RequestView + ?Sized>(
    routes: impl IntoIterator<Item = &'a HttpRoute>,
    request: &R,
) -> Option<Chosen> {
    let host = host_of(request.authority());
    let mut best: Option<(Rank, Chosen)> = None;
    for (route, candidate) in routes.into_iter().enumerate() {
        let Some(host_rank) = candidate.host_rank(host) else { continue };
        for (rule, conditions) in candidate.rules.iter().enumerate() {
            let Some(match_rank) = conditions.rank(request) else { continue };
            let rank = (host_rank, match_rank);
            // Only a better one replaces: of equals the earlier stays.
            if best.as_ref().is_none_or(|(earlier, _)| rank > *earlier) {
                best = Some((rank, Chosen { route, rule }));
            }
        }
    }
    best.map(|(_, chosen)| chosen)
}

type Rank = (HostRank, MatchRank);

/// How specific a host match is, the least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum HostRank {
    Any,
    /// Bytes of the suffix, dots included.
    Suffix(usize),
    Exact,
}

/// How specific a match of everything else is; fields in the order of their importance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct MatchRank {
    path: usize,
    headers: usize,
    query: usize,
    method: bool,
}

impl MatchRank {
    /// Of a rule that states no conditions: Gateway API's default is the prefix `/`.
    const DEFAULT: Self = Self { path: 1, headers: 0, query: 0, method: false };
}

/// The host of an authority: without port, and without the dot that ends an absolute DNS name.
pub fn host_of(authority: &str) -> &str {
    let host = match authority.rsplit_once(':') {
        // A colon inside brackets belongs to an IPv6 address.
        Some((host, port)) if !port.contains(']') => host,
        Some(_) | None => authority,
    };
    host.strip_suffix('.').unwrap_or(host)
}

impl HostMatch {
    fn rank(&self, host: &str) -> Option<HostRank> {
        match self {
            Self::Exact(name) => {
                host.eq_ignore_ascii_case(name.strip_suffix('.').unwrap_or(name)).then_some(HostRank::Exact)
            }
            Self::Suffix(labels) => ends_with_labels(host, labels)
                .then(|| HostRank::Suffix(labels.iter().map(|label| label.len() + 1).sum())),
        }
    }
}

impl HttpRoute {
    fn host_rank(&self, host: &str) -> Option<HostRank> {
        if self.hosts.is_empty() {
            return Some(HostRank::Any);
        }
        self.hosts.iter().filter_map(|pattern| pattern.rank(host)).max()
    }
}

impl HttpRule {
    fn rank<R: RequestView + ?Sized>(&self, request: &R) -> Option<MatchRank> {
        if self.matches.is_empty() {
            return Some(MatchRank::DEFAULT);
        }
        self.matches.iter().filter_map(|conditions| conditions.rank(request)).max()
    }
}

impl HttpMatch {
    fn rank<R: RequestView + ?Sized>(&self, request: &R) -> Option<MatchRank> {
        if self.method.as_deref().is_some_and(|method| method != request.method()) {
            return None;
        }
        let path = match &self.path {
            Some(pattern) => pattern.matched(request.path())?,
            None => MatchRank::DEFAULT.path,
        };
        let matches = self
            .headers
            .iter()
            .all(|(name, value)| request.header(name).any(|received| value.matches(received)))
            && self.query.iter().all(|(name, value)| query_has(request.query(), name, value));
        matches.then_some(MatchRank {
            path,
            headers: self.headers.len(),
            query: self.query.len(),
            method: self.method.is_some(),
        })
    }
}

impl PathMatch {
    /// Bytes of the path that the pattern matched, if it does. The path is compared as received.
    fn matched(&self, path: &str) -> Option<usize> {
        match self {
            Self::Exact(exact) => (path == exact).then_some(exact.len()),
            Self::Prefix(prefix) => {
                // A trailing slash says nothing: `/a/` matches `/a` too (Gateway API's PathMatchPathPrefix).
                let segments = prefix.trim_end_matches('/');
                if segments.is_empty() {
                    return Some(MatchRank::DEFAULT.path);
                }
                let rest = path.strip_prefix(segments)?;
                (rest.is_empty() || rest.starts_with('/')).then_some(segments.len())
            }
            Self::Regex(regex) => covers_whole(regex, path).then_some(path.len()),
        }
    }
}

impl ValueMatch {
    /// Does the whole value match? A regular expression matches no value that is not UTF-8.
    fn matches(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(exact) => exact == value,
            Self::Regex(regex) => core::str::from_utf8(value).is_ok_and(|value| covers_whole(regex, value)),
        }
    }
}

/// [`whole_match`] sees to it that a match is of all or nothing; one compiled otherwise must not match a part.
fn covers_whole(regex: &regex::Regex, value: &str) -> bool {
    regex.find(value).is_some_and(|found| found.len() == value.len())
}

/// The longest pattern that [`whole_match`] takes, in bytes: Gateway API's own limit of a header value match.
pub const MAX_PATTERN: usize = 4096;
/// The memory that one compiled pattern may take, in bytes, and again its lazily built automaton.
const MAX_COMPILED: usize = 1 << 20;

/// Why a pattern is refused.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum InvalidPattern {
    /// Longer than [`MAX_PATTERN`].
    #[error("the pattern has {0} bytes, more than {MAX_PATTERN}")]
    TooLong(usize),
    /// No regular expression, or one that compiles to too much.
    #[error("{0}")]
    Regex(regex::Error),
}

/// Compiles a pattern that matches all of a value or nothing of it, in time linear in the value and bounded memory.
/// Errors name what is wrong with the pattern.
pub fn whole_match(pattern: &str) -> Result<regex::Regex, InvalidPattern> {
    if pattern.len() > MAX_PATTERN {
        return Err(InvalidPattern::TooLong(pattern.len()));
    }
    let compile = |pattern: &str| {
        regex::RegexBuilder::new(pattern).size_limit(MAX_COMPILED).dfa_size_limit(MAX_COMPILED).build()
    };
    // Alone first: `a)|(?:b` is no pattern, but between our parentheses it would become two, each anchored on one side.
    compile(pattern).and_then(|_| compile(&format!("^(?:{pattern})$"))).map_err(InvalidPattern::Regex)
}

/// The longest query value that a regular expression is applied to once decoded, in bytes. A longer one that needs
/// decoding does not match.
const MAX_DECODED: usize = 1024;

/// Has the query such a parameter? Names and values are compared as decoded from `application/x-www-form-urlencoded`
/// (`+` and `%XX`), as Linkerd's proxy does; of a parameter that comes more than once any value may match.
fn query_has(query: Option<&str>, name: &str, value: &ValueMatch) -> bool {
    query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()).any(|pair| {
        let (key, received) = pair.split_once('=').unwrap_or((pair, ""));
        decoded(key).eq(name.bytes()) && value_matches_decoded(value, received)
    })
}

fn value_matches_decoded(value: &ValueMatch, received: &str) -> bool {
    match value {
        ValueMatch::Exact(exact) => decoded(received).eq(exact.iter().copied()),
        ValueMatch::Regex(_) if !received.contains(['%', '+']) => value.matches(received.as_bytes()),
        ValueMatch::Regex(_) => {
            let mut buffer = [0; MAX_DECODED];
            let mut length = 0;
            for byte in decoded(received) {
                let Some(slot) = buffer.get_mut(length) else { return false };
                *slot = byte;
                length += 1;
            }
            buffer.get(..length).is_some_and(|decoded| value.matches(decoded))
        }
    }
}

/// Decodes on the way, without a copy. A `%` that no two hexadecimal digits follow stands for itself.
fn decoded(text: &str) -> impl Iterator<Item = u8> {
    let mut rest = text.as_bytes();
    core::iter::from_fn(move || {
        let (byte, tail) = match rest {
            [b'%', high, low, tail @ ..] => match (hex(*high), hex(*low)) {
                (Some(high), Some(low)) => (high << 4 | low, tail),
                _ => (b'%', rest.get(1..)?),
            },
            [b'+', tail @ ..] => (b' ', tail),
            [byte, tail @ ..] => (*byte, tail),
            [] => return None,
        };
        rest = tail;
        Some(byte)
    })
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

/// What the outbound side should do with a target, as `OutboundPolicies.Watch` states it. Contract 3.3.
#[derive(Clone, Debug, PartialEq)]
pub struct OutboundPolicy {
    /// The Service, EgressNetwork or fallback that the policy is attached to.
    pub parent: Arc<ResourceRef>,
    /// What it speaks and where each protocol goes.
    pub protocol: OutboundProtocol,
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
    /// HTTP/2; gRPC routes are HTTP routes on POST and a path.
    Http2(Vec<OutboundRoute>),
    /// Bytes.
    Opaque(Arc<Distribution>),
    /// The application's TLS, by SNI.
    Tls(Vec<TlsRoute>),
    /// The message could not be understood or names what this proxy cannot do: every request fails with 500 and
    /// this reason, every opaque connection is reset.
    Invalid(Arc<str>),
}

/// A route and where its rules send requests (same indices as `route.rules`).
#[derive(Clone, Debug, PartialEq)]
pub struct OutboundRoute {
    /// What it matches.
    pub route: HttpRoute,
    /// Where each rule sends.
    pub rules: Vec<Arc<Distribution>>,
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
            (Self::Exact(a), Self::Exact(b)) | (Self::Prefix(a), Self::Prefix(b)) => a == b,
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

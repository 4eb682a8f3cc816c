//! The comparison of a request with routes: what matches, and which match is the better one. Nothing here allocates
//! for a request; patterns are compiled when they arrive.

use super::{Chosen, HostMatch, HttpMatch, HttpRoute, HttpRule, PathMatch, RequestView, ValueMatch};
use crate::matching::ends_with_labels;
use alloc::format;

/// The best match; ties go to the earlier route and rule.
///
/// The order of Gateway API (HTTPRouteRule, GRPCRouteRule), the first difference deciding: an exact host, the longer
/// suffix, no host; an exact path; the longer matched path (of a regular expression all that it covers, and no pattern
/// counts as the prefix `/`); a method; more header conditions; more query conditions. Linkerd's proxy (contract 4.1)
/// takes an exact path for no better than a prefix of its length, and looks at the method last.
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

/// Bytes of the path that the prefix of a rule covers, by the best of the rule's matches; `None` if that one is not by
/// prefix. Without a condition on the path it is by the prefix `/`, of which the slash is part of what follows.
pub fn matched_prefix<R: RequestView + ?Sized>(rule: &HttpRule, request: &R) -> Option<usize> {
    if rule.matches.is_empty() {
        return Some(0);
    }
    let mut best: Option<(MatchRank, &HttpMatch)> = None;
    for conditions in &rule.matches {
        let Some(rank) = conditions.rank(request) else { continue };
        if best.is_none_or(|(earlier, _)| rank > earlier) {
            best = Some((rank, conditions));
        }
    }
    match &best?.1.path {
        None => Some(0),
        Some(PathMatch::Prefix(prefix)) => Some(prefix.trim_end_matches('/').len()),
        Some(PathMatch::Exact(_) | PathMatch::Regex(_) | PathMatch::AnyService(_)) => None,
    }
}

/// The index of the best of several lists of SNI patterns: exact before the longer suffix before a list without
/// patterns, the earlier of equals.
#[expect(single_use_lifetimes, reason = "`impl Trait` cannot elide it in stable Rust")]
pub fn choose_sni<'a>(lists: impl IntoIterator<Item = &'a [HostMatch]>, sni: &str) -> Option<usize> {
    let mut best: Option<(HostRank, usize)> = None;
    for (i, patterns) in lists.into_iter().enumerate() {
        let Some(rank) = host_rank(patterns, sni) else { continue };
        if best.is_none_or(|(earlier, _)| rank > earlier) {
            best = Some((rank, i));
        }
    }
    best.map(|(_, i)| i)
}

/// How good a match is, the first difference deciding.
pub(super) type Rank = (HostRank, MatchRank);

/// How specific a host match is, the least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum HostRank {
    Any,
    /// Bytes of the suffix, dots included.
    Suffix(usize),
    Exact,
}

/// How specific a match of everything else is; fields in the order of their importance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct MatchRank {
    pub(super) path: PathRank,
    pub(super) method: bool,
    pub(super) headers: usize,
    pub(super) query: usize,
}

/// How specific the match of a path is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PathRank {
    pub(super) exact: bool,
    /// Bytes of the path that the pattern matched.
    pub(super) matched: usize,
    /// Of a gRPC method whose service may be any.
    pub(super) method: usize,
}

impl PathRank {
    /// Gateway API's default is the prefix `/`.
    const DEFAULT: Self = Self::of(1);

    const fn of(matched: usize) -> Self {
        Self { exact: false, matched, method: 0 }
    }

    /// The highest that a path can have which matches.
    fn most(pattern: &PathMatch) -> Self {
        match pattern {
            PathMatch::Exact(exact) => Self { exact: true, ..Self::of(exact.len()) },
            PathMatch::Prefix(prefix) => Self::of(prefix.trim_end_matches('/').len().max(1)),
            PathMatch::Regex(_) => Self::of(usize::MAX),
            PathMatch::AnyService(method) => Self { method: method.len(), ..Self::DEFAULT },
        }
    }
}

impl MatchRank {
    /// Of a rule that states no conditions.
    pub(super) const DEFAULT: Self = Self { path: PathRank::DEFAULT, method: false, headers: 0, query: 0 };

    /// The highest that a request can have which matches.
    pub(super) fn most(conditions: &HttpMatch) -> Self {
        Self {
            path: conditions.path.as_ref().map_or(PathRank::DEFAULT, PathRank::most),
            method: conditions.method.is_some(),
            headers: conditions.headers.len(),
            query: conditions.query.len(),
        }
    }
}

impl HostRank {
    /// The highest that a request can have which matches.
    pub(super) fn most(patterns: &[HostMatch]) -> Self {
        patterns.iter().map(HostMatch::most).max().unwrap_or(Self::Any)
    }
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
                host.eq_ignore_ascii_case(name.strip_suffix('.').unwrap_or(name)).then_some(self.most())
            }
            Self::Suffix(labels) => ends_with_labels(host, labels).then(|| self.most()),
        }
    }

    /// What a host ranks that matches.
    fn most(&self) -> HostRank {
        match self {
            Self::Exact(_) => HostRank::Exact,
            Self::Suffix(labels) => HostRank::Suffix(labels.iter().map(|label| label.len() + 1).sum()),
        }
    }
}

impl HttpRoute {
    pub(super) fn host_rank(&self, host: &str) -> Option<HostRank> {
        host_rank(&self.hosts, host)
    }
}

fn host_rank(patterns: &[HostMatch], host: &str) -> Option<HostRank> {
    if patterns.is_empty() {
        return Some(HostRank::Any);
    }
    patterns.iter().filter_map(|pattern| pattern.rank(host)).max()
}

impl HttpRule {
    pub(super) fn rank<R: RequestView + ?Sized>(&self, request: &R) -> Option<MatchRank> {
        if self.matches.is_empty() {
            return Some(MatchRank::DEFAULT);
        }
        self.matches.iter().filter_map(|conditions| conditions.rank(request)).max()
    }
}

impl HttpMatch {
    pub(super) fn rank<R: RequestView + ?Sized>(&self, request: &R) -> Option<MatchRank> {
        if self.method.as_deref().is_some_and(|method| method != request.method()) {
            return None;
        }
        let path = match &self.path {
            Some(pattern) => pattern.matched(request.path())?,
            None => PathRank::DEFAULT,
        };
        let matches = self
            .headers
            .iter()
            .all(|(name, value)| request.header(name).any(|received| value.matches(received)))
            && self.query.iter().all(|(name, value)| query_has(request.query(), name, value));
        matches.then_some(MatchRank {
            path,
            method: self.method.is_some(),
            headers: self.headers.len(),
            query: self.query.len(),
        })
    }
}

impl PathMatch {
    /// How well the pattern matches, if it does. The path is compared as received.
    pub(super) fn matched(&self, path: &str) -> Option<PathRank> {
        match self {
            Self::Exact(exact) => {
                (path == exact).then_some(PathRank { exact: true, ..PathRank::of(exact.len()) })
            }
            Self::Prefix(prefix) => {
                // A trailing slash says nothing: `/a/` matches `/a` too (Gateway API's PathMatchPathPrefix).
                let segments = prefix.trim_end_matches('/');
                if segments.is_empty() {
                    return Some(PathRank::DEFAULT);
                }
                let rest = path.strip_prefix(segments)?;
                (rest.is_empty() || rest.starts_with('/')).then_some(PathRank::of(segments.len()))
            }
            Self::Regex(regex) => covers_whole(regex, path).then_some(PathRank::of(path.len())),
            Self::AnyService(method) => {
                let (service, called) = path.strip_prefix('/')?.split_once('/')?;
                let matches = called == method && !service.is_empty();
                matches.then_some(PathRank { method: method.len(), ..PathRank::DEFAULT })
            }
        }
    }
}

impl ValueMatch {
    /// Does the whole value match? A regular expression matches no value that is not UTF-8.
    pub(super) fn matches(&self, value: &[u8]) -> bool {
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
pub(super) fn query_has(query: Option<&str>, name: &str, value: &ValueMatch) -> bool {
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

#[cfg(test)]
mod precedence;
#[cfg(test)]
mod server_names;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::ResourceRef;
    use alloc::{
        string::{String, ToString},
        sync::Arc,
        vec,
        vec::Vec,
    };
    use proptest::prelude::*;

    #[test]
    fn no_routes_match_nothing() {
        check(&[], get("/"), None);
    }

    #[test]
    fn a_rule_without_conditions_matches_every_request() {
        let catch_all = [HttpRoute { rules: vec![HttpRule { matches: vec![] }], ..route(&[], vec![]) }];
        check(&catch_all, get("/a"), Some((0, 0)));
        check(&catch_all, Request { method: "OPTIONS", path: "*", ..get("") }, Some((0, 0)));
    }

    #[test]
    fn a_route_without_rules_matches_nothing() {
        check(&[route(&[], vec![])], get("/"), None);
    }

    #[test]
    fn an_exact_path_is_the_whole_path() {
        let routes = [route(&[], vec![exact("/a")])];
        check(&routes, get("/a"), Some((0, 0)));
        check(&routes, get("/a/"), None);
        check(&routes, get("/A"), None);
    }

    #[test]
    fn a_query_does_not_change_the_path() {
        check(&[route(&[], vec![exact("/healthz")])], get("/healthz?full=1"), Some((0, 0)));
    }

    #[test]
    fn a_prefix_ends_on_a_segment_boundary() {
        for pattern in ["/a", "/a/"] {
            let routes = [route(&[], vec![prefix(pattern)])];
            check(&routes, get("/a"), Some((0, 0)));
            check(&routes, get("/a/"), Some((0, 0)));
            check(&routes, get("/a/b"), Some((0, 0)));
            check(&routes, get("/ab"), None);
            check(&routes, get("/"), None);
        }
    }

    #[test]
    fn the_prefix_slash_matches_every_path() {
        check(&[route(&[], vec![prefix("/")])], get("/a/b"), Some((0, 0)));
        check(&[route(&[], vec![prefix("/")])], Request { path: "*", ..get("") }, Some((0, 0)));
    }

    #[test]
    fn a_regular_expression_covers_the_whole_path() {
        let routes = [route(&[], vec![regex("/a/[0-9]+|/a/[0-9]+/b")])];
        check(&routes, get("/a/12"), Some((0, 0)));
        check(&routes, get("/a/12/b"), Some((0, 0)));
        check(&routes, get("/a/12/c"), None);
        check(&routes, get("/x/a/12"), None);
    }

    #[test]
    fn an_unanchored_regular_expression_matches_no_part() {
        let path = Some(PathMatch::Regex(regex::Regex::new("/a").unwrap()));
        let routes = [route(&[], vec![HttpMatch { path, ..HttpMatch::default() }])];
        check(&routes, get("/a"), Some((0, 0)));
        check(&routes, get("/ab"), None);
    }

    #[test]
    fn the_longer_matched_path_wins() {
        check(
            &[route(&[], vec![prefix("/a")]), route(&[], vec![prefix("/a/b")])],
            get("/a/b/c"),
            Some((1, 0)),
        );
        check(&[route(&[], vec![prefix("/a")]), route(&[], vec![exact("/a/b")])], get("/a/b"), Some((1, 0)));
        check(&[route(&[], vec![prefix("/a")]), route(&[], vec![regex("/a/.*")])], get("/a/b"), Some((1, 0)));
    }

    #[test]
    fn a_rule_without_a_path_counts_as_the_prefix_slash() {
        check(&[route(&[], vec![prefix("/")]), route(&[], vec![any()])], get("/a"), Some((0, 0)));
        check(&[route(&[], vec![any()]), route(&[], vec![prefix("/")])], get("/a"), Some((0, 0)));
        check(&[route(&[], vec![any()]), route(&[], vec![prefix("/a")])], get("/a"), Some((1, 0)));
    }

    #[test]
    fn an_exact_path_wins_over_every_other_pattern() {
        for other in [prefix("/a/b"), prefix("/a/b/"), regex("/a/b|/c"), prefix("/a")] {
            check(&[route(&[], vec![other, exact("/a/b")])], get("/a/b"), Some((0, 1)));
        }
        let rich = HttpMatch { method: Some("GET".into()), ..prefix("/a/b") };
        check(&[route(&[], vec![rich, exact("/a/b")])], get("/a/b"), Some((0, 1)));
    }

    #[test]
    fn ties_go_to_the_earlier_route_and_rule() {
        check(&[route(&[], vec![prefix("/a")]), route(&[], vec![prefix("/a/")])], get("/a"), Some((0, 0)));
        check(&[route(&[], vec![exact("/b"), prefix("/a"), regex("/a")])], get("/a"), Some((0, 1)));
    }

    #[test]
    fn of_grpc_the_service_counts_more_than_the_method() {
        let any_service = HttpMatch { path: Some(PathMatch::AnyService("Get".into())), ..any() };
        let routes = [
            route(&[], vec![any()]),
            route(&[], vec![any_service.clone()]),
            route(&[], vec![prefix("/s")]),
            route(&[], vec![exact("/s/Get")]),
        ];
        check(&routes, get("/s/Get"), Some((3, 0)));
        check(&routes[..3], get("/s/Get"), Some((2, 0)));
        check(&routes[..2], get("/s/Get"), Some((1, 0)));
        for path in ["/s/GetAll", "/Get", "//Get", "/s/t/Get", "/s/Get/"] {
            check(&[route(&[], vec![any_service.clone()])], get(path), None);
        }
    }

    #[test]
    fn method_then_headers_then_query_break_ties() {
        let header = HttpMatch { headers: vec![("x".into(), value("1"))], ..any() };
        let query = HttpMatch { query: vec![("q".into(), value("1"))], ..any() };
        let method = HttpMatch { method: Some("GET".into()), ..any() };
        let request = Request { headers: &[("x", b"1")], ..get("/?q=1") };
        let ascending = [any(), query, header, method];
        for lower in 0..ascending.len() {
            for higher in lower + 1..ascending.len() {
                let (low, high) = (ascending[lower].clone(), ascending[higher].clone());
                check(
                    &[route(&[], vec![low.clone()]), route(&[], vec![high.clone()])],
                    request,
                    Some((1, 0)),
                );
                check(&[route(&[], vec![high]), route(&[], vec![low])], request, Some((0, 0)));
            }
        }
    }

    #[test]
    fn more_conditions_of_one_kind_win() {
        let one = HttpMatch { headers: vec![("x".into(), value("1"))], ..any() };
        let two = HttpMatch { headers: vec![("x".into(), value("1")), ("y".into(), value("2"))], ..any() };
        let request = Request { headers: &[("x", b"1"), ("y", b"2")], ..get("/") };
        check(&[route(&[], vec![one]), route(&[], vec![two])], request, Some((1, 0)));
    }

    #[test]
    fn the_path_counts_more_than_all_other_conditions() {
        let rich =
            HttpMatch { headers: vec![("x".into(), value("1"))], method: Some("GET".into()), ..prefix("/a") };
        let request = Request { headers: &[("x", b"1")], ..get("/a/b") };
        check(&[route(&[], vec![rich]), route(&[], vec![prefix("/a/b")])], request, Some((1, 0)));
    }

    #[test]
    fn the_best_of_a_rules_matches_counts() {
        let routes = [
            HttpRoute {
                rules: vec![HttpRule { matches: vec![prefix("/a/b/c"), prefix("/")] }],
                ..route(&[], vec![])
            },
            route(&[], vec![prefix("/a")]),
        ];
        check(&routes, get("/a/b/c"), Some((0, 0)));
        check(&routes, get("/a"), Some((1, 0)));
    }

    #[test]
    fn an_exact_host_wins_over_a_suffix_and_that_over_none() {
        let ascending = [
            route(&[], vec![exact("/a/very/long/path")]),
            route(&["*.local"], vec![any()]),
            route(&["*.web.local"], vec![any()]),
            route(&["api.web.local"], vec![any()]),
        ];
        let request = Request { authority: "api.web.local", ..get("/a/very/long/path") };
        for lower in 0..ascending.len() {
            for higher in lower + 1..ascending.len() {
                check(&[ascending[lower].clone(), ascending[higher].clone()], request, Some((1, 0)));
                check(&[ascending[higher].clone(), ascending[lower].clone()], request, Some((0, 0)));
            }
        }
    }

    #[test]
    fn the_best_of_a_routes_hosts_counts() {
        let routes = [route(&["*.local"], vec![any()]), route(&["x.y", "web.local"], vec![any()])];
        check(&routes, Request { authority: "web.local", ..get("/") }, Some((1, 0)));
    }

    #[test]
    fn hosts_are_compared_without_case_port_and_final_dot() {
        for authority in ["web.local", "WEB.Local", "web.local:8080", "web.local.", "web.local.:80"] {
            check(&[route(&["web.local"], vec![any()])], Request { authority, ..get("/") }, Some((0, 0)));
        }
        for authority in ["", "web", "web.locals", "a.web.local", "web.local.:80:80"] {
            check(&[route(&["web.local"], vec![any()])], Request { authority, ..get("/") }, None);
        }
    }

    #[test]
    fn a_suffix_takes_at_least_one_label_more() {
        let routes = [route(&["*.web.local"], vec![any()])];
        check(&routes, Request { authority: "a.web.local", ..get("/") }, Some((0, 0)));
        check(&routes, Request { authority: "a.b.WEB.local:80", ..get("/") }, Some((0, 0)));
        check(&routes, Request { authority: "web.local", ..get("/") }, None);
        check(&routes, Request { authority: ".web.local", ..get("/") }, None);
        check(&routes, Request { authority: "aweb.local", ..get("/") }, None);
    }

    #[test]
    fn the_host_of_an_ipv6_address_keeps_its_colons() {
        assert_eq!(host_of("[::1]:80"), "[::1]");
        assert_eq!(host_of("[::1]"), "[::1]");
        assert_eq!(host_of("web"), "web");
        assert_eq!(host_of("web:"), "web");
    }

    #[test]
    fn methods_are_compared_with_their_case() {
        let routes = [route(&[], vec![HttpMatch { method: Some("GET".into()), ..any() }])];
        check(&routes, get("/"), Some((0, 0)));
        check(&routes, Request { method: "get", ..get("/") }, None);
        check(&routes, Request { method: "POST", ..get("/") }, None);
    }

    #[test]
    fn any_value_of_a_header_may_match() {
        let routes = [route(&[], vec![HttpMatch { headers: vec![("x".into(), value("b"))], ..any() }])];
        check(&routes, Request { headers: &[("x", b"a"), ("x", b"b")], ..get("/") }, Some((0, 0)));
        check(&routes, Request { headers: &[("x", b"a"), ("y", b"b")], ..get("/") }, None);
        check(&routes, Request { headers: &[("x", b"bb")], ..get("/") }, None);
    }

    #[test]
    fn all_conditions_must_hold() {
        let both = HttpMatch {
            headers: vec![("x".into(), value("1"))],
            query: vec![("q".into(), value("1"))],
            ..any()
        };
        let routes = [route(&[], vec![both])];
        check(&routes, Request { headers: &[("x", b"1")], ..get("/?q=1") }, Some((0, 0)));
        check(&routes, Request { headers: &[("x", b"1")], ..get("/") }, None);
        check(&routes, get("/?q=1"), None);
    }

    #[test]
    fn a_header_that_is_not_utf8_matches_no_regular_expression_but_an_exact_value() {
        let any_value = ValueMatch::Regex(whole_match(".*").unwrap());
        let request = Request { headers: &[("x", b"\xff")], ..get("/") };
        check(
            &[route(&[], vec![HttpMatch { headers: vec![("x".into(), any_value)], ..any() }])],
            request,
            None,
        );
        let exact = ValueMatch::Exact(b"\xff".to_vec());
        check(
            &[route(&[], vec![HttpMatch { headers: vec![("x".into(), exact)], ..any() }])],
            request,
            Some((0, 0)),
        );
    }

    #[test]
    fn query_parameters_are_compared_decoded() {
        for (query, expected) in [
            ("q=a b", true),
            ("q=a+b", true),
            ("q=a%20b", true),
            ("%71=a%20b", true),
            ("x=1&q=a+b", true),
            ("q=x&q=a+b", true),
            ("q=a%2520b", false),
            ("q=a%2", false),
            ("q=ab", false),
            ("Q=a+b", false),
            ("q", false),
            ("", false),
        ] {
            let path = format!("/?{query}");
            for wanted in [value("a b"), ValueMatch::Regex(whole_match("a\\sb").unwrap())] {
                let routes = [route(&[], vec![HttpMatch { query: vec![("q".into(), wanted)], ..any() }])];
                check(&routes, get(&path), expected.then_some((0, 0)));
            }
        }
    }

    #[test]
    fn a_broken_escape_stands_for_itself() {
        for (query, wanted) in
            [("q=%", "%"), ("q=%4", "%4"), ("q=%zz", "%zz"), ("q=100%25", "100%"), ("q=", "")]
        {
            let path = format!("/?{query}");
            let routes = [route(&[], vec![HttpMatch { query: vec![("q".into(), value(wanted))], ..any() }])];
            check(&routes, get(&path), Some((0, 0)));
        }
    }

    #[test]
    fn a_regular_expression_sees_encoded_values_up_to_a_bound() {
        let wanted = ValueMatch::Regex(whole_match("[a ]*").unwrap());
        let routes = [route(&[], vec![HttpMatch { query: vec![("q".into(), wanted)], ..any() }])];
        let plain = format!("/?q={}", "a".repeat(MAX_DECODED * 2));
        check(&routes, get(&plain), Some((0, 0)));
        let encoded = format!("/?q=+{}", "a".repeat(MAX_DECODED - 1));
        check(&routes, get(&encoded), Some((0, 0)));
        let longer = format!("/?q=+{}", "a".repeat(MAX_DECODED));
        check(&routes, get(&longer), None);
    }

    #[test]
    fn patterns_are_anchored_whatever_they_contain() {
        for (pattern, value, expected) in [
            ("a|b", "a", true),
            ("a|b", "ab", false),
            ("a|ab", "ab", true),
            ("(?i)a", "A", true),
            ("(?m)a", "a\nb", false),
            ("^a$", "a", true),
            ("", "", true),
            ("", "a", false),
        ] {
            assert_eq!(covers_whole(&whole_match(pattern).unwrap(), value), expected, "{pattern} on {value}");
        }
    }

    #[test]
    fn patterns_that_are_broken_or_too_large_are_refused() {
        for pattern in ["a)|(?:b", "(", "[a", "\\", "(?:a{1000}){1000}"] {
            assert!(matches!(whole_match(pattern), Err(InvalidPattern::Regex(_))), "{pattern}");
        }
        let long = "a".repeat(MAX_PATTERN + 1);
        assert_eq!(whole_match(&long).unwrap_err(), InvalidPattern::TooLong(MAX_PATTERN + 1));
    }

    proptest! {
        #[test]
        fn a_route_added_at_the_end_never_takes_over_with_an_equal_match(
            patterns in proptest::collection::vec("/[ab]{0,2}(/[ab]{0,2})?", 1..6),
            path in "/[ab]{0,2}(/[ab]{0,2})?",
        ) {
            let routes: Vec<_> = patterns.iter().map(|pattern| route(&[], vec![prefix(pattern)])).collect();
            let once = choose(&routes, &get(&path));
            let twice: Vec<_> = routes.iter().chain(&routes).cloned().collect();
            prop_assert_eq!(choose(&twice, &get(&path)), once);
        }

        #[test]
        fn the_chosen_prefix_is_the_longest_that_matches(
            patterns in proptest::collection::vec("/[ab]{1,2}(/[ab]{1,2})?", 0..6),
            path in "(/[ab]{1,2}){1,3}",
        ) {
            let routes: Vec<_> = patterns.iter().map(|pattern| route(&[], vec![prefix(pattern)])).collect();
            let segments: Vec<_> = path.split('/').collect();
            let matches = |pattern: &str| segments.starts_with(&pattern.split('/').collect::<Vec<_>>());
            let longest = patterns.iter().filter(|pattern| matches(pattern)).map(String::len).max();
            let chosen = choose(&routes, &get(&path)).map(|chosen| patterns[chosen.route].len());
            prop_assert_eq!(chosen, longest);
        }
    }

    #[derive(Clone, Copy, Debug)]
    pub(super) struct Request<'a> {
        pub(super) method: &'a str,
        pub(super) authority: &'a str,
        pub(super) path: &'a str,
        pub(super) headers: &'a [(&'a str, &'a [u8])],
    }

    impl RequestView for Request<'_> {
        fn method(&self) -> &str {
            self.method
        }
        fn authority(&self) -> &str {
            self.authority
        }
        fn path(&self) -> &str {
            self.path.split('?').next().unwrap()
        }
        fn query(&self) -> Option<&str> {
            self.path.split_once('?').map(|(_, query)| query)
        }
        fn header(&self, name: &str) -> impl Iterator<Item = &[u8]> {
            self.headers.iter().filter(move |(key, _)| *key == name).map(|(_, value)| *value)
        }
    }

    pub(super) fn get(path: &str) -> Request<'_> {
        Request { method: "GET", authority: "web.prod", path, headers: &[] }
    }

    pub(super) fn any() -> HttpMatch {
        HttpMatch::default()
    }

    pub(super) fn exact(path: &str) -> HttpMatch {
        HttpMatch { path: Some(PathMatch::Exact(path.into())), ..any() }
    }

    pub(super) fn prefix(path: &str) -> HttpMatch {
        HttpMatch { path: Some(PathMatch::Prefix(path.into())), ..any() }
    }

    pub(super) fn regex(pattern: &str) -> HttpMatch {
        HttpMatch { path: Some(PathMatch::Regex(whole_match(pattern).unwrap())), ..any() }
    }

    pub(super) fn value(text: &str) -> ValueMatch {
        ValueMatch::Exact(text.into())
    }

    /// One rule per match.
    pub(super) fn route(hosts: &[&str], matches: Vec<HttpMatch>) -> HttpRoute {
        let host = |host: &&str| match host.strip_prefix("*.") {
            Some(rest) => HostMatch::Suffix(rest.split('.').map(ToString::to_string).collect()),
            None => HostMatch::Exact((*host).into()),
        };
        HttpRoute {
            meta: Arc::new(ResourceRef::default()),
            hosts: hosts.iter().map(host).collect(),
            rules: matches.into_iter().map(|conditions| HttpRule { matches: vec![conditions] }).collect(),
        }
    }

    #[track_caller]
    fn check(routes: &[HttpRoute], request: Request<'_>, expected: Option<(usize, usize)>) {
        let expected = expected.map(|(route, rule)| Chosen { route, rule });
        assert_eq!(choose(routes, &request), expected, "{request:?}");
    }
}

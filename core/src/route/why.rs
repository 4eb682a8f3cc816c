//! Why rules do not have a request: what of them it does not meet, or by what another one is better. For people; the choice
//! itself is [`choose`](fn@super::choose), whose ranks are compared here once more, field by field.

use super::{
    Chosen, HttpMatch, HttpRoute, RequestView,
    choose::{Rank, host_of, query_has},
};
use alloc::vec::Vec;

/// Why a rule does not have a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Loss {
    /// None of its route's hosts is the request's.
    Host,
    /// None of its matches holds: of each the first condition that does not.
    Unmet(Vec<Unmet>),
    /// It matches, and the rule that has the request is better by this.
    Worse(Criterion),
}

/// A condition of a match that a request does not meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmet {
    /// The method.
    Method,
    /// The path.
    Path,
    /// The header with this index.
    Header(usize),
    /// The query parameter with this index.
    Query(usize),
}

/// What one of two matches is better by, the first difference deciding: in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Criterion {
    /// It names more of the host.
    Host,
    /// It names the path exactly.
    ExactPath,
    /// It matches more of the path.
    LongerPath,
    /// It names the method of gRPC.
    GrpcMethod,
    /// It names a method.
    Method,
    /// It has more conditions on headers.
    Headers,
    /// It has more conditions on the query.
    Query,
    /// Both are equally good, and it comes first.
    Order,
}

/// For every rule but the one that has the request, in their order, why it does not. `chosen` is what
/// [`choose`](fn@super::choose) says of the same routes and request; where nothing has it, no rule matches.
#[expect(single_use_lifetimes, reason = "`impl Trait` cannot elide it in stable Rust")]
pub fn losses<'a, R: RequestView + ?Sized>(
    routes: impl IntoIterator<Item = &'a HttpRoute>,
    request: &R,
    chosen: Option<Chosen>,
) -> Vec<(Chosen, Loss)> {
    let host = host_of(request.authority());
    let mut found: Vec<(Chosen, Result<Rank, Loss>)> = Vec::new();
    for (route, candidate) in routes.into_iter().enumerate() {
        let host_rank = candidate.host_rank(host);
        for (rule, conditions) in candidate.rules.iter().enumerate() {
            let unmet =
                || Loss::Unmet(conditions.matches.iter().filter_map(|one| one.unmet(request)).collect());
            let rank = match host_rank {
                None => Err(Loss::Host),
                Some(host) => conditions.rank(request).map(|rank| (host, rank)).ok_or_else(unmet),
            };
            found.push((Chosen { route, rule }, rank));
        }
    }
    let winner = found.iter().find(|(at, _)| Some(*at) == chosen).and_then(|(_, rank)| rank.clone().ok());
    let lost = found.into_iter().filter(|(at, _)| Some(*at) != chosen);
    let lost = lost.map(|(at, rank)| match (rank, &winner) {
        (Ok(rank), Some(winner)) => (at, Loss::Worse(better_by(winner, &rank))),
        // Nothing has a request that this one matches: `chosen` is of something else.
        (Ok(_), None) => (at, Loss::Worse(Criterion::Order)),
        (Err(loss), _) => (at, loss),
    });
    lost.collect()
}

/// The first field in which two ranks differ.
fn better_by((host, best): &Rank, (other_host, other): &Rank) -> Criterion {
    let fields = [
        (host != other_host, Criterion::Host),
        (best.path.exact != other.path.exact, Criterion::ExactPath),
        (best.path.matched != other.path.matched, Criterion::LongerPath),
        (best.path.method != other.path.method, Criterion::GrpcMethod),
        (best.method != other.method, Criterion::Method),
        (best.headers != other.headers, Criterion::Headers),
        (best.query != other.query, Criterion::Query),
    ];
    fields.into_iter().find(|(differs, _)| *differs).map_or(Criterion::Order, |(_, by)| by)
}

impl HttpMatch {
    /// The first condition that does not hold.
    fn unmet<R: RequestView + ?Sized>(&self, request: &R) -> Option<Unmet> {
        if self.method.as_deref().is_some_and(|method| method != request.method()) {
            return Some(Unmet::Method);
        }
        if self.path.as_ref().is_some_and(|pattern| pattern.matched(request.path()).is_none()) {
            return Some(Unmet::Path);
        }
        let mut headers = self.headers.iter();
        let header =
            headers.position(|(name, value)| !request.header(name).any(|received| value.matches(received)));
        let query = || self.query.iter().position(|(name, value)| !query_has(request.query(), name, value));
        header.map(Unmet::Header).or_else(|| query().map(Unmet::Query))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        policy::ResourceRef,
        route::{HostMatch, HttpRule, PathMatch, ValueMatch, choose},
    };
    use alloc::{string::String, sync::Arc, vec};
    use proptest::prelude::*;

    #[test]
    fn what_is_not_met_is_named_first_to_last() {
        let wanted = HttpMatch {
            path: Some(PathMatch::Prefix("/a".into())),
            headers: vec![("x".into(), exact("1")), ("y".into(), exact("2"))],
            query: vec![("q".into(), exact("1"))],
            method: Some("GET".into()),
        };
        let asked = Asked {
            method: "GET",
            host: "web",
            path: "/a/b",
            query: Some("q=1"),
            headers: &[("x", "1"), ("y", "2")],
        };
        for (asked, expected) in [
            (asked, None),
            (Asked { method: "POST", path: "/", ..asked }, Some(Unmet::Method)),
            (Asked { path: "/ab", query: None, ..asked }, Some(Unmet::Path)),
            (Asked { headers: &[("x", "1"), ("y", "3")], ..asked }, Some(Unmet::Header(1))),
            (Asked { query: Some("q=2"), ..asked }, Some(Unmet::Query(0))),
        ] {
            assert_eq!(wanted.unmet(&asked), expected, "{asked:?}");
        }
    }

    #[test]
    fn the_first_difference_is_what_one_is_better_by() {
        let path = |path| HttpMatch { path: Some(path), ..HttpMatch::default() };
        let any = HttpMatch::default;
        let header = HttpMatch { headers: vec![("x".into(), exact("1"))], ..any() };
        let query = HttpMatch { query: vec![("q".into(), exact("1"))], ..any() };
        let method = HttpMatch { method: Some("GET".into()), ..any() };
        let asked =
            Asked { method: "GET", host: "web", path: "/a/b", query: Some("q=1"), headers: &[("x", "1")] };
        for (winner, loser, expected) in [
            (
                path(PathMatch::Exact("/a/b".into())),
                path(PathMatch::Prefix("/a/b".into())),
                Criterion::ExactPath,
            ),
            (
                path(PathMatch::Prefix("/a/b".into())),
                path(PathMatch::Prefix("/a".into())),
                Criterion::LongerPath,
            ),
            (path(PathMatch::AnyService("b".into())), any(), Criterion::GrpcMethod),
            (method, header.clone(), Criterion::Method),
            (header, query.clone(), Criterion::Headers),
            (query, any(), Criterion::Query),
            (any(), any(), Criterion::Order),
        ] {
            let routes = [route(&[], vec![winner]), route(&[], vec![loser])];
            let chosen = choose(&routes, &asked);
            let expected = vec![(Chosen { route: 1, rule: 0 }, Loss::Worse(expected))];
            assert_eq!(losses(&routes, &asked, chosen), expected);
        }
        let named = [route(&["web"], vec![any()]), route(&["*.web"], vec![any()]), route(&[], vec![any()])];
        let lost = losses(&named, &asked, choose(&named, &asked));
        assert_eq!(
            lost,
            [
                (Chosen { route: 1, rule: 0 }, Loss::Host),
                (Chosen { route: 2, rule: 0 }, Loss::Worse(Criterion::Host))
            ]
        );
    }

    proptest! {
        /// Whoever lost for a reason loses without the winner too, to whoever is chosen then, or matches nothing.
        #[test]
        fn reasons_are_those_of_the_choice(
            rules in proptest::collection::vec((0..4_usize, 0..3_usize, 0..4_usize, 0..3_usize, 0..3_usize), 0..6),
            path in 0..4_usize,
        ) {
            let paths = ["/", "/a", "/a/b", "/c"];
            let rule = |(path, kind, method, headers, query): (usize, usize, usize, usize, usize)| {
                let path = String::from(paths[path]);
                let kind = [PathMatch::Exact(path.clone()), PathMatch::Prefix(path), PathMatch::AnyService("b".into())][kind].clone();
                let many = |name: &str, count: usize| (0..count).map(|_| (String::from(name), exact("1"))).collect();
                HttpMatch { path: Some(kind), method: ["GET", "POST"].get(method).map(|one| String::from(*one)), headers: many("x", headers), query: many("q", query) }
            };
            let routes: Vec<HttpRoute> = rules.into_iter().map(|one| route(&[], vec![rule(one)])).collect();
            let asked = Asked { method: "GET", host: "web", path: paths[path], query: Some("q=1"), headers: &[("x", "1")] };
            let chosen = choose(&routes, &asked);
            let lost = losses(&routes, &asked, chosen);
            prop_assert_eq!(lost.len() + usize::from(chosen.is_some()), routes.len());
            for (at, loss) in lost {
                let alone = choose(&routes[at.route..=at.route], &asked);
                match loss {
                    Loss::Worse(by) => {
                        prop_assert!(alone.is_some());
                        // Between the two alone the choice is the same, unless only their order tells them apart.
                        let winner = chosen.unwrap();
                        let turned = [&routes[at.route], &routes[winner.route]];
                        let again = choose(turned, &asked).map(|chosen| chosen.route);
                        prop_assert_eq!(again, Some(usize::from(by != Criterion::Order)));
                        prop_assert!(by != Criterion::Order || winner.route < at.route);
                    }
                    Loss::Unmet(unmet) => prop_assert!(alone.is_none() && unmet.len() == 1),
                    Loss::Host => prop_assert!(false, "every host is taken"),
                }
            }
        }
    }

    fn route(hosts: &[&str], matches: Vec<HttpMatch>) -> HttpRoute {
        let host = |host: &&str| match host.strip_prefix("*.") {
            Some(suffix) => HostMatch::Suffix(suffix.split('.').map(String::from).collect()),
            None => HostMatch::Exact((*host).into()),
        };
        let meta = Arc::new(ResourceRef::default());
        HttpRoute { meta, hosts: hosts.iter().map(host).collect(), rules: vec![HttpRule { matches }] }
    }

    fn exact(value: &str) -> ValueMatch {
        ValueMatch::Exact(value.as_bytes().to_vec())
    }

    #[derive(Clone, Copy, Debug)]
    struct Asked<'a> {
        method: &'a str,
        host: &'a str,
        path: &'a str,
        query: Option<&'a str>,
        headers: &'a [(&'a str, &'a str)],
    }

    impl RequestView for Asked<'_> {
        fn method(&self) -> &str {
            self.method
        }
        fn authority(&self) -> &str {
            self.host
        }
        fn path(&self) -> &str {
            self.path
        }
        fn query(&self) -> Option<&str> {
            self.query
        }
        fn header(&self, name: &str) -> impl Iterator<Item = &[u8]> {
            self.headers.iter().filter(move |(other, _)| *other == name).map(|(_, value)| value.as_bytes())
        }
    }
}

//! Routes as they are looked up: which of hundreds may match a path is found without asking each of them.
//!
//! What matches, and which match is the better one, is said once, in `choose`: a table only leaves out what cannot win.
//! A property holds the two to the same answer, and so does a fuzz target.

use super::{
    Chosen, HttpMatch, HttpRoute, PathMatch, RequestView, TwoWays,
    choose::{HostRank, MatchRank, Rank, host_of},
    path::both_ways,
};
use alloc::{boxed::Box, vec::Vec};
use regex_syntax::hir::literal::Extractor;

/// Routes, compiled when they arrive.
#[derive(Clone, Debug, Default)]
pub struct Table {
    routes: Vec<HttpRoute>,
    /// Patterns of exact paths and of prefixes, each once, in the order of their bytes.
    nodes: Vec<Node>,
    /// Matches by regular expression, by the bytes that all of their paths begin with.
    regexes: Vec<(Box<str>, Vec<Candidate>)>,
    /// What matches any path, or is by no more than a method's name.
    rest: Vec<Candidate>,
    /// Whether a path decides anything here, whether a host does.
    by_path: bool,
    by_host: bool,
}

/// A path that patterns name.
#[derive(Clone, Debug)]
struct Node {
    path: Box<str>,
    exact: Vec<Candidate>,
    /// What matches below this path.
    prefix: Vec<Candidate>,
    /// The longest other node that this path begins with.
    parent: Option<usize>,
}

/// One match of a rule; without any, a rule matches everything.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    chosen: Chosen,
    conditions: Option<usize>,
    /// No match of it ranks higher.
    most: Rank,
}

impl Table {
    /// Indexes routes.
    pub fn new(routes: Vec<HttpRoute>) -> Self {
        let mut table =
            Self { by_host: routes.iter().any(|route| !route.hosts.is_empty()), ..Self::default() };
        for (route, one) in routes.iter().enumerate() {
            let host = HostRank::most(&one.hosts);
            for (rule, conditions) in one.rules.iter().enumerate() {
                let chosen = Chosen { route, rule };
                if conditions.matches.is_empty() {
                    table.rest.push(Candidate { chosen, conditions: None, most: (host, MatchRank::DEFAULT) });
                }
                for (nth, conditions) in conditions.matches.iter().enumerate() {
                    let most = (host, MatchRank::most(conditions));
                    table.add(Candidate { chosen, conditions: Some(nth), most }, conditions);
                }
            }
        }
        table.routes = routes;
        table.link();
        table
    }

    fn add(&mut self, candidate: Candidate, conditions: &HttpMatch) {
        self.by_path |= conditions.path.is_some();
        match &conditions.path {
            Some(PathMatch::Exact(path)) => {
                if let Some(node) = self.node(path) {
                    node.exact.push(candidate);
                }
            }
            Some(PathMatch::Prefix(prefix)) => match prefix.trim_end_matches('/') {
                "" => self.rest.push(candidate),
                path => {
                    if let Some(node) = self.node(path) {
                        node.prefix.push(candidate);
                    }
                }
            },
            Some(PathMatch::Regex(regex)) => {
                let literal = literal_prefix(regex.as_str());
                match self.regexes.iter_mut().find(|(known, _)| *known == literal) {
                    Some((_, candidates)) => candidates.push(candidate),
                    None => self.regexes.push((literal, [candidate].into())),
                }
            }
            Some(PathMatch::AnyService(_)) | None => self.rest.push(candidate),
        }
    }

    /// The node of a path, which is made if there is none: there always is one then.
    fn node(&mut self, path: &str) -> Option<&mut Node> {
        let at = self.nodes.binary_search_by(|node| (*node.path).cmp(path)).unwrap_or_else(|at| {
            let node = Node { path: path.into(), exact: Vec::new(), prefix: Vec::new(), parent: None };
            self.nodes.insert(at, node);
            at
        });
        self.nodes.get_mut(at)
    }

    /// A node's parent is the node before it, or one of that one's parents: whatever lies between a path and what it begins
    /// with begins with that too.
    fn link(&mut self) {
        for at in 1..self.nodes.len() {
            let path = self.nodes.get(at).map(|node| node.path.clone()).unwrap_or_default();
            let parent = self.chain(at - 1).find(|(_, node)| path.starts_with(&*node.path)).map(|(at, _)| at);
            if let Some(node) = self.nodes.get_mut(at) {
                node.parent = parent;
            }
        }
    }

    /// A node, its parent, and so on.
    fn chain(&self, at: usize) -> impl Iterator<Item = (usize, &Node)> {
        let node = move |at: usize| self.nodes.get(at).map(|node| (at, node));
        core::iter::successors(node(at), move |(_, one)| one.parent.and_then(node))
    }

    /// The routes, as they came.
    pub fn routes(&self) -> &[HttpRoute] {
        &self.routes
    }

    /// The best match, as [`choose`](super::choose()) says, if it is the same for both readings of the path.
    ///
    /// # Errors
    /// [`TwoWays`], where it is not: design, "Paths".
    pub fn select<R: RequestView + ?Sized>(&self, request: &R) -> Result<Option<Chosen>, TwoWays> {
        if self.by_path { both_ways(request, |read| self.choose(read)) } else { Ok(self.choose(request)) }
    }

    /// The best match, as [`choose`](super::choose()) says.
    pub fn choose<R: RequestView + ?Sized>(&self, request: &R) -> Option<Chosen> {
        let path = request.path();
        let mut search = Search {
            table: self,
            request,
            host: if self.by_host { host_of(request.authority()) } else { "" },
            best: None,
        };
        // Who is likely to win comes first: what cannot win any more is not looked at.
        let last = self.nodes.partition_point(|node| *node.path <= *path).checked_sub(1);
        let nodes = || last.into_iter().flat_map(|at| self.chain(at)).map(|(_, node)| node);
        nodes().take(1).filter(|node| *node.path == *path).for_each(|node| search.among(&node.exact));
        for (literal, candidates) in &self.regexes {
            if path.starts_with(&**literal) {
                search.among(candidates);
            }
        }
        nodes().filter(|node| path.starts_with(&*node.path)).for_each(|node| search.among(&node.prefix));
        search.among(&self.rest);
        search.best.map(|(_, chosen)| chosen)
    }
}

/// The search for the best match of a request.
struct Search<'a, R: ?Sized> {
    table: &'a Table,
    request: &'a R,
    host: &'a str,
    best: Option<(Rank, Chosen)>,
}

impl<R: RequestView + ?Sized> Search<'_, R> {
    fn among(&mut self, candidates: &[Candidate]) {
        for candidate in candidates {
            let is_better = |rank: Rank| {
                let place = |chosen: Chosen| (chosen.route, chosen.rule);
                self.best.is_none_or(|(best, chosen)| {
                    rank > best || rank == best && place(candidate.chosen) < place(chosen)
                })
            };
            if !is_better(candidate.most) {
                continue;
            }
            if let Some(rank) = self.rank(candidate).filter(|rank| is_better(*rank)) {
                self.best = Some((rank, candidate.chosen));
            }
        }
    }

    fn rank(&self, candidate: &Candidate) -> Option<Rank> {
        let route = self.table.routes.get(candidate.chosen.route)?;
        let host = route.host_rank(self.host)?;
        let Some(nth) = candidate.conditions else { return Some((host, MatchRank::DEFAULT)) };
        let conditions = route.rules.get(candidate.chosen.rule)?.matches.get(nth)?;
        Some((host, conditions.rank(self.request)?))
    }
}

/// What every path begins with that a pattern matches; nothing where that is not known.
fn literal_prefix(pattern: &str) -> Box<str> {
    let literals = regex_syntax::parse(pattern).map(|parsed| Extractor::new().extract(&parsed));
    let common = literals.as_ref().ok().and_then(|literals| literals.longest_common_prefix());
    // Bytes of a character that only some patterns share are left out.
    let bytes = common.unwrap_or_default();
    let whole = core::str::from_utf8(bytes).map_or_else(|error| error.valid_up_to(), str::len);
    bytes.get(..whole).and_then(|bytes| core::str::from_utf8(bytes).ok()).unwrap_or_default().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        policy::ResourceRef,
        route::{HostMatch, HttpRule, ValueMatch, choose, select, whole_match},
    };
    use alloc::{
        format,
        string::{String, ToString},
        vec,
    };
    use proptest::prelude::*;

    #[test]
    fn what_every_path_of_a_pattern_begins_with_is_known() {
        for (pattern, literal) in [
            ("/api/users/[0-9]+", "/api/users/"),
            ("/api/(users|orders)/.*", "/api/"),
            ("/api/items?", "/api/item"),
            ("/a|/b", "/"),
            ("/a|b", ""),
            ("(?i)/a", "/"),
            (".*", ""),
            ("/ä[x]*", "/ä"),
            ("/(ä|ö)", "/"),
        ] {
            let compiled = whole_match(pattern).unwrap();
            assert_eq!(&*literal_prefix(compiled.as_str()), literal, "{pattern}");
        }
        assert_eq!(&*literal_prefix("("), "", "no pattern");
    }

    #[test]
    fn nodes_have_the_longest_path_that_they_begin_with_as_parent() {
        let prefixes =
            ["/a", "/a/b", "/a/bc", "/ab", "/a/b/c", "/b"].map(|path| PathMatch::Prefix(path.into()));
        let rules = prefixes
            .map(|path| HttpRule { matches: vec![HttpMatch { path: Some(path), ..HttpMatch::default() }] });
        let table = Table::new(vec![HttpRoute { rules: rules.into(), ..route() }]);
        let parents: Vec<(&str, Option<&str>)> = table
            .nodes
            .iter()
            .map(|node| (&*node.path, node.parent.map(|at| &*table.nodes[at].path)))
            .collect();
        assert_eq!(
            parents,
            [
                ("/a", None),
                ("/a/b", Some("/a")),
                ("/a/b/c", Some("/a/b")),
                ("/a/bc", Some("/a/b")),
                ("/ab", Some("/a")),
                ("/b", None),
            ]
        );
    }

    #[derive(Clone, Debug)]
    struct Asked {
        method: String,
        authority: String,
        path: String,
        query: String,
        tenant: String,
    }

    impl RequestView for Asked {
        fn method(&self) -> &str {
            &self.method
        }

        fn authority(&self) -> &str {
            &self.authority
        }

        fn path(&self) -> &str {
            &self.path
        }

        fn query(&self) -> Option<&str> {
            Some(&self.query)
        }

        fn header(&self, name: &str) -> impl Iterator<Item = &[u8]> {
            (name == "x-tenant").then_some(self.tenant.as_bytes()).into_iter()
        }
    }

    fn route() -> HttpRoute {
        HttpRoute { meta: ResourceRef::default().into(), hosts: vec![], rules: vec![] }
    }

    /// Few words, so that patterns and paths meet.
    fn path() -> impl Strategy<Value = String> {
        let segment = prop::sample::select(vec!["a", "b", "ab", "a;x", "..", "", "%61"]);
        prop::collection::vec(segment, 0..4).prop_map(|segments| format!("/{}", segments.join("/")))
    }

    fn pattern() -> impl Strategy<Value = PathMatch> {
        let regex = prop::sample::select(vec!["/a.*", "/(a|b)/b", "/ab?", ".*b", "/a/b|/b", "/"]);
        prop_oneof![
            path().prop_map(|path| PathMatch::Exact(path.as_str().into())),
            path().prop_map(|path| PathMatch::Prefix(path.as_str().into())),
            regex.prop_map(|regex| PathMatch::Regex(whole_match(regex).unwrap())),
            prop::sample::select(vec!["a", "b"]).prop_map(|method| PathMatch::AnyService(method.into())),
        ]
    }

    fn conditions() -> impl Strategy<Value = HttpMatch> {
        let value = || prop::option::of(prop::sample::select(vec!["1", "2"]));
        (prop::option::of(pattern()), prop::option::of(Just("PUT")), value(), value()).prop_map(
            |(path, method, header, query)| {
                let exact = |value: &str| ValueMatch::Exact(value.as_bytes().into());
                HttpMatch {
                    path,
                    method: method.map(Into::into),
                    headers: header.map(|value| ("x-tenant".into(), exact(value))).into_iter().collect(),
                    query: query.map(|value| ("shard".into(), exact(value))).into_iter().collect(),
                }
            },
        )
    }

    fn routes() -> impl Strategy<Value = Vec<HttpRoute>> {
        let host = prop_oneof![
            Just(HostMatch::Exact("web.shop".into())),
            Just(HostMatch::Suffix(vec!["shop".into()])),
            Just(HostMatch::Exact("other".into())),
        ];
        let rule = prop::collection::vec(conditions(), 0..3).prop_map(|matches| HttpRule { matches });
        let route = (prop::collection::vec(host, 0..2), prop::collection::vec(rule, 0..5))
            .prop_map(|(hosts, rules)| HttpRoute { hosts, rules, ..route() });
        prop::collection::vec(route, 0..5)
    }

    fn asked() -> impl Strategy<Value = Asked> {
        let word =
            |words: &[&'static str]| prop::sample::select(words.to_vec()).prop_map(ToString::to_string);
        (
            word(&["GET", "PUT"]),
            word(&["web.shop:80", "other", ""]),
            path(),
            word(&["", "shard=1", "shard=2"]),
            word(&["1", "2"]),
        )
            .prop_map(|(method, authority, path, query, tenant)| Asked {
                method,
                authority,
                path,
                query,
                tenant,
            })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]
        #[test]
        fn a_table_chooses_as_the_comparison_of_all_does(routes in routes(), asked in asked()) {
            let table = Table::new(routes.clone());
            prop_assert_eq!(table.choose(&asked), choose(&routes, &asked));
            prop_assert_eq!(table.select(&asked), select(&routes, &asked));
        }
    }
}

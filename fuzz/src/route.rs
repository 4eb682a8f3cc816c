//! Routes against a naive model of Gateway API's specification, which knows nothing of `core`: which rule has a request,
//! whether its path may be read in two ways, what it is rewritten to and where it is redirected.
//!
//! An input is text. Before `%%` routes, a line each: `route HOST HOST…`, `rule`, `match METHOD path=KIND:VALUE
//! header=NAME:VALUE query=NAME:VALUE…`, `redirect FIELD=VALUE…`, `rewrite FIELD=VALUE…`; after it requests: `METHOD
//! AUTHORITY TARGET NAME:VALUE…`. What is none of these is passed over.

mod model;

use model::{Exchange, Match, Request, Rule, Written, best, normalised, split};
use remora_core::{
    policy::ResourceRef,
    route::{
        Asked, HostMatch, HttpMatch, HttpRoute, HttpRule, PathMatch, Redirect, Replacement, RequestView,
        Rewrite, Scheme, Table, ValueMatch, matched_prefix, select, whole_match,
    },
};
use std::sync::Arc;

const REQUESTS: &str = "%%";
/// Most lines of either part.
const LINES: usize = 64;

/// Routes and requests.
pub fn route(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut lines = text.lines();
    let routes = read(lines.by_ref().take_while(|line| *line != REQUESTS).take(LINES));
    let compiled = Table::new(routes.iter().map(Written::compiled).collect());
    for line in lines.take(LINES) {
        if let Some(request) = Request::read(line) {
            agrees(&routes, &compiled, &request);
        }
    }
}

fn agrees(routes: &[Written<'_>], compiled: &Table, request: &Request<'_>) {
    let raw = best(routes, request, request.path);
    let read = normalised(request.path);
    let expected = if best(routes, request, &read) == raw { Ok(raw) } else { Err(()) };
    let selected = compiled.select(request);
    assert_eq!(selected, select(compiled.routes(), request), "{request:?} of {routes:?}, in a table");
    let selected = selected.map(|chosen| chosen.map(|chosen| (chosen.route, chosen.rule))).map_err(|_| ());
    assert_eq!(selected, expected, "{request:?} of {routes:?}");
    let Ok(Some((route, rule))) = expected else { return };
    let written = &routes[route].rules[rule];
    let asked = Asked {
        scheme: Scheme::Http,
        authority: request.authority,
        path: request.path,
        query: request.query,
        prefix: matched_prefix(&compiled.routes()[route].rules[rule], request),
    };
    let covered = written.prefix(request);
    if let Some(exchange) = &written.redirect {
        let made = exchange.redirect().location(&asked).map_err(|_| ());
        assert_eq!(made, exchange.location(request, covered), "{request:?}: {exchange:?}");
    }
    if let Some(exchange) = &written.rewrite {
        let made = exchange.rewrite().target(&asked).ok();
        let (_, target) = split(request);
        let expected = exchange.target(request, covered);
        let changed = expected.map(|expected| (expected != target).then_some(expected));
        assert_eq!(made, changed, "{request:?}: {exchange:?}");
    }
}

fn read<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<Written<'a>> {
    let mut routes: Vec<Written<'a>> = Vec::new();
    for line in lines {
        let mut words = line.split(' ').filter(|word| !word.is_empty());
        let Some(what) = words.next() else { continue };
        if what == "route" {
            routes.push(Written { hosts: words.filter(|host| is_host(host)).collect(), rules: Vec::new() });
            continue;
        }
        let Some(route) = routes.last_mut() else { continue };
        if what == "rule" {
            route.rules.push(Rule::default());
            continue;
        }
        let Some(rule) = route.rules.last_mut() else { continue };
        match what {
            "match" => rule.matches.extend(Match::read(words)),
            "redirect" => rule.redirect = Some(Exchange::read(words)),
            "rewrite" => rule.rewrite = Some(Exchange::read(words)),
            _ => {}
        }
    }
    routes
}

/// No more than manifests may say: labels, and `*` for the first one.
fn is_host(host: &str) -> bool {
    let name = host.strip_prefix("*.").unwrap_or(host);
    let label = |label: &str| {
        !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    name.split('.').all(label)
}

/// A path that the API accepts.
fn is_path(path: &str) -> bool {
    path.starts_with('/') && !path.contains('#')
}

impl<'a> Match<'a> {
    /// `None`: the API would refuse it.
    fn read(words: impl Iterator<Item = &'a str>) -> Option<Self> {
        let mut read = Self::default();
        for word in words {
            let Some((key, value)) = word.split_once('=') else {
                read.method = Some(word);
                continue;
            };
            let pair = value.split_once(':').unwrap_or((value, ""));
            match key {
                "path" if ["exact", "prefix"].contains(&pair.0) && is_path(pair.1) => read.path = Some(pair),
                "path" if pair.0 == "regex" && whole_match(pair.1).is_ok() => read.path = Some(pair),
                "path" => return None,
                "header" if !pair.0.is_empty() => read.headers.push(pair),
                "query" if !pair.0.is_empty() => read.query.push(pair),
                _ => {}
            }
        }
        Some(read)
    }

    fn compiled(&self) -> HttpMatch {
        let exact = |value: &str| ValueMatch::Exact(value.as_bytes().to_vec());
        HttpMatch {
            path: self.path.and_then(|(kind, value)| {
                Some(match kind {
                    "exact" => PathMatch::Exact(value.to_owned()),
                    "prefix" => PathMatch::Prefix(value.to_owned()),
                    _ => PathMatch::Regex(whole_match(value).ok()?),
                })
            }),
            headers: self.headers.iter().map(|(n, value)| (n.to_ascii_lowercase(), exact(value))).collect(),
            query: self.query.iter().map(|(n, value)| ((*n).to_owned(), exact(value))).collect(),
            method: self.method.map(str::to_owned),
        }
    }
}

impl<'a> Exchange<'a> {
    fn read(words: impl Iterator<Item = &'a str>) -> Self {
        let mut read = Self::default();
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            match key {
                "scheme" if ["http", "https"].contains(&value) => read.scheme = Some(value),
                "host" if is_host(value) && !value.starts_with('*') => read.host = Some(value),
                "port" => read.port = value.parse().ok().filter(|port| *port > 0),
                "full" if is_path(value) => read.full = Some(value),
                "prefix" if value.is_empty() || is_path(value) && !value.contains('?') => {
                    read.prefix = Some(value);
                }
                _ => {}
            }
        }
        read
    }
}

impl Exchange<'_> {
    fn path(&self) -> Option<Replacement> {
        let whole = self.full.map(|full| Replacement::Whole(full.to_owned()));
        whole.or_else(|| self.prefix.map(|prefix| Replacement::Prefix(prefix.to_owned())))
    }

    fn redirect(&self) -> Redirect {
        let scheme = self.scheme.map(|scheme| if scheme == "https" { Scheme::Https } else { Scheme::Http });
        Redirect {
            scheme,
            host: self.host.map(str::to_owned),
            port: self.port,
            path: self.path(),
            status: 302,
        }
    }

    fn rewrite(&self) -> Rewrite {
        Rewrite { authority: self.host.map(str::to_owned), path: self.path() }
    }
}

impl Written<'_> {
    fn compiled(&self) -> HttpRoute {
        let host = |host: &&str| match host.strip_prefix("*.") {
            Some(rest) => HostMatch::Suffix(rest.split('.').map(str::to_ascii_lowercase).collect()),
            None => HostMatch::Exact(host.to_ascii_lowercase()),
        };
        let rule = |rule: &Rule<'_>| HttpRule { matches: rule.matches.iter().map(Match::compiled).collect() };
        HttpRoute {
            meta: Arc::new(ResourceRef::default()),
            hosts: self.hosts.iter().map(host).collect(),
            rules: self.rules.iter().map(rule).collect(),
        }
    }
}

impl<'a> Request<'a> {
    fn read(line: &'a str) -> Option<Self> {
        let mut words = line.split(' ').filter(|word| !word.is_empty());
        let (method, authority, target) = (words.next()?, words.next()?, words.next()?);
        let authority = if authority == "-" { "" } else { authority };
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (target, None),
        };
        let headers = words.filter_map(|word| word.split_once(':')).collect();
        (path.starts_with('/') || path == "*").then_some(Self { method, authority, path, query, headers })
    }
}

impl RequestView for Request<'_> {
    fn method(&self) -> &str {
        self.method
    }
    fn authority(&self) -> &str {
        self.authority
    }
    fn path(&self) -> &str {
        self.path
    }
    fn query(&self) -> Option<&str> {
        self.query
    }
    fn header(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        let named = self.headers.iter().filter(move |(other, _)| other.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value.as_bytes())
    }
}

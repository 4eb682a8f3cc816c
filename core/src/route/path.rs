//! Paths: what of one is replaced, and whether a server could read it as another one. Design, "Paths".

use super::{Chosen, HttpRoute, RequestView, choose};
#[cfg(planted)]
use crate::planted;
use alloc::{string::String, vec::Vec};

/// What comes instead of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Replacement {
    /// This path, with a query of its own or the request's.
    Whole(String),
    /// This in place of the prefix that matched: nothing, or a path.
    Prefix(String),
}

/// Replaces the first `covered` bytes of a path. Gateway API's HTTPPathModifier: a slash at the end of either prefix says
/// nothing.
pub fn replace_prefix(path: &str, covered: usize, by: &str) -> String {
    let rest = path.get(covered..).unwrap_or_default();
    let stem = by.trim_end_matches('/');
    #[cfg(planted)]
    let stem = if planted::makes(planted::Mistake::ReplacementKeepsItsSlash) { by } else { stem };
    let mut replaced = String::with_capacity(stem.len() + rest.len() + 1);
    replaced.push_str(stem);
    if replaced.is_empty() && !rest.starts_with('/') {
        replaced.push('/');
    }
    replaced.push_str(rest);
    replaced
}

/// Host (an IPv6 address with its brackets) and port of an authority.
pub(super) fn host_and_port(authority: &str) -> (&str, Option<u16>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port.parse().ok()),
        Some(_) | None => (authority, None),
    }
}

/// A path that a server may read as another one, which takes another route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the path as it came and as a server may read it take different routes")]
pub struct TwoWays;

/// The best match, if it is the same for the path as it came and for its [`normal`] form.
#[expect(single_use_lifetimes, reason = "`impl Trait` cannot elide it in stable Rust")]
#[expect(clippy::needless_pass_by_value, reason = "a reference to a list, mostly, or an iterator")]
pub fn select<'a, R: RequestView + ?Sized>(
    routes: impl IntoIterator<Item = &'a HttpRoute> + Clone,
    request: &R,
) -> Result<Option<Chosen>, TwoWays> {
    both_ways(request, |read| choose(routes.clone(), read))
}

/// What is chosen for the path as it came, if it is the same for its [`normal`] form.
pub(super) fn both_ways<R: RequestView + ?Sized>(
    request: &R,
    choose: impl Fn(&Read<'_, R>) -> Option<Chosen>,
) -> Result<Option<Chosen>, TwoWays> {
    let chosen = choose(&Read { request, path: request.path() });
    let Some(path) = normal(request.path()) else { return Ok(chosen) };
    #[cfg(planted)]
    if planted::makes(planted::Mistake::PathsAreReadOnce) {
        return Ok(chosen);
    }
    if choose(&Read { request, path: &path }) == chosen { Ok(chosen) } else { Err(TwoWays) }
}

/// A request with another path.
pub(super) struct Read<'a, R: ?Sized> {
    request: &'a R,
    path: &'a str,
}

impl<R: RequestView + ?Sized> RequestView for Read<'_, R> {
    fn method(&self) -> &str {
        self.request.method()
    }

    fn authority(&self) -> &str {
        self.request.authority()
    }

    fn path(&self) -> &str {
        self.path
    }

    fn query(&self) -> Option<&str> {
        self.request.query()
    }

    fn header(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        self.request.header(name)
    }
}

/// The path as the most lenient server reads it; `None` if that is as it came, as it is for most.
///
/// What follows `#` is cut off; `%XX` is decoded where it stands for a letter, a digit, `-._~`, a slash, a backslash or a
/// semicolon (others stay, so that a route may name them); a backslash is a slash; what follows `;` in a segment is cut
/// off; empty segments and `.` are dropped, and `..` drops the one before it.
pub fn normal(path: &str) -> Option<String> {
    if is_plain(path) {
        return None;
    }
    let before_fragment = path.split('#').next().unwrap_or_default();
    let decoded = decoded(before_fragment);
    let mut kept: Vec<&str> = Vec::new();
    // Whether it ends with a slash: a path that ends with a dot segment does too.
    let mut open = false;
    for segment in decoded.split(['/', '\\']) {
        let name = segment.split(';').next().unwrap_or_default();
        open = matches!(name, "" | "." | "..");
        match name {
            "" | "." => {}
            ".." => drop(kept.pop()),
            _ => kept.push(name),
        }
    }
    let mut normal = String::with_capacity(path.len());
    for segment in &kept {
        normal.push('/');
        normal.push_str(segment);
    }
    if open || kept.is_empty() {
        normal.push('/');
    }
    (normal != path).then_some(normal)
}

/// Whether there is nothing in a path that anybody could read in another way. `*` and nothing are no paths.
fn is_plain(path: &str) -> bool {
    if !path.starts_with('/') {
        return true;
    }
    let mut before = 0;
    path.bytes().all(|byte| {
        let after_slash = core::mem::replace(&mut before, byte) == b'/';
        match byte {
            b'%' | b';' | b'\\' | b'#' => false,
            b'/' | b'.' => !after_slash,
            _ => true,
        }
    })
}

fn decoded(path: &str) -> String {
    let mut decoded = String::with_capacity(path.len());
    let mut rest = path;
    while let Some((before, escape)) = rest.split_once('%') {
        decoded.push_str(before);
        let code = escape.get(..2).filter(|code| code.bytes().all(|digit| digit.is_ascii_hexdigit()));
        let byte = code.and_then(|code| u8::from_str_radix(code, 16).ok());
        let shown = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~/\\;".contains(byte);
        if let Some(byte) = byte.filter(shown) {
            decoded.push(char::from(byte));
            rest = escape.get(2..).unwrap_or_default();
        } else {
            decoded.push('%');
            rest = escape;
        }
    }
    decoded.push_str(rest);
    decoded
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        policy::ResourceRef,
        route::{HttpMatch, HttpRule, PathMatch, matched_prefix},
    };
    use alloc::{format, string::ToString, sync::Arc, vec};
    use proptest::prelude::*;

    #[test]
    fn prefixes_are_replaced_as_in_gateway_apis_table() {
        for (path, prefix, by, expected) in [
            ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
            ("/foo", "/foo", "/xyz", "/xyz"),
            ("/foo/", "/foo", "/xyz", "/xyz/"),
            ("/foo/bar", "/foo", "", "/bar"),
            ("/foo/", "/foo", "", "/"),
            ("/foo", "/foo", "", "/"),
            ("/foo/", "/foo", "/", "/"),
            ("/foo", "/foo", "/", "/"),
            // Beyond the table: all of a path, and what is no prefix of it.
            ("/a/b", "/", "/xyz", "/xyz/a/b"),
            ("/", "/", "/xyz", "/xyz/"),
        ] {
            let covered = matched_prefix(&one(Some(prefix)).rules[0], &Asked { path, ..ASKED });
            let replaced = covered.map(|covered| replace_prefix(path, covered, by));
            assert_eq!(replaced.as_deref(), Some(expected), "{path}, {prefix} by {by:?}");
        }
    }

    #[test]
    fn only_a_prefix_that_matched_can_be_replaced() {
        let rule = |path| HttpRule { matches: vec![HttpMatch { path, ..HttpMatch::default() }] };
        let exact = rule(Some(PathMatch::Exact("/foo".to_string())));
        let asked = Asked { path: "/foo", ..ASKED };
        assert_eq!(matched_prefix(&exact, &asked), None);
        assert_eq!(matched_prefix(&rule(None), &asked), Some(0), "without a path all of them are meant");
        assert_eq!(matched_prefix(&HttpRule { matches: vec![] }, &asked), Some(0));
        // Of several matches the best one counts, as it does when the rule is chosen.
        let prefix =
            |path: &str| HttpMatch { path: Some(PathMatch::Prefix(path.into())), ..HttpMatch::default() };
        let both = HttpRule { matches: vec![prefix("/"), prefix("/foo"), prefix("/bar")] };
        assert_eq!(matched_prefix(&both, &Asked { path: "/foo/x", ..ASKED }), Some(4));
    }

    #[test]
    fn a_path_as_a_lenient_server_reads_it() {
        for (path, expected) in [
            ("/", None),
            ("/a/b", None),
            ("/a/", None),
            ("*", None),
            ("", None),
            ("/a.b/c..d", None),
            ("/.well-known/x", None),
            ("/a%20b", None),
            ("/%e4", None),
            ("/a%2", None),
            ("/a%zz", None),
            ("//a", Some("/a")),
            ("/a//b", Some("/a/b")),
            ("/a/./b", Some("/a/b")),
            ("/a/../b", Some("/b")),
            ("/..", Some("/")),
            ("/../..", Some("/")),
            ("/a/.", Some("/a/")),
            ("/a/..", Some("/")),
            ("/a/b/..", Some("/a/")),
            ("/%61", Some("/a")),
            ("/a%2fb", Some("/a/b")),
            ("/a%2F..%2Fb", Some("/b")),
            ("/a/%2e%2E/b", Some("/b")),
            ("/a\\b", Some("/a/b")),
            ("/a%5c..\\b", Some("/b")),
            ("/a;v=1/b;x", Some("/a/b")),
            ("/a/..;/b", Some("/b")),
            ("/a%3bv/b", Some("/a/b")),
            ("/a#b", Some("/a")),
            ("/%252e%252e/b", None),
        ] {
            assert_eq!(normal(path).as_deref(), expected, "{path}");
        }
    }

    #[test]
    fn a_path_that_takes_two_routes_takes_none() {
        let routes = [one(Some("/admin")), one(None)];
        for (path, expected) in [
            ("/admin", Ok(Some(0))),
            ("/admin/x", Ok(Some(0))),
            ("/public", Ok(Some(1))),
            ("/public//x", Ok(Some(1))),
            ("/public/a%20b", Ok(Some(1))),
            ("/admin/../admin/x", Ok(Some(0))),
            ("/public/../admin", Err(TwoWays)),
            ("//admin", Err(TwoWays)),
            ("/%61dmin", Err(TwoWays)),
            ("/admin;x", Err(TwoWays)),
            ("/admin%2fx", Err(TwoWays)),
            ("/admin/..", Err(TwoWays)),
            ("/x/..;/admin", Err(TwoWays)),
        ] {
            let selected = select(&routes, &Asked { path, ..ASKED });
            assert_eq!(selected.map(|chosen| chosen.map(|chosen| chosen.route)), expected, "{path}");
        }
    }

    #[test]
    fn where_the_path_decides_nothing_any_path_goes() {
        for path in ["/a/../b", "//", "/%2e%2e;x"] {
            assert!(select(&[one(None)], &Asked { path, ..ASKED }).is_ok_and(|chosen| chosen.is_some()));
        }
    }

    proptest! {
        #[test]
        fn what_is_chosen_is_chosen_for_both_readings(
            path in "(/(a|b|\\.|\\.\\.|%2e|%2E%2e|%61|a;v|;|a%2fb|a%5Cb|#|))*/?",
            patterns in proptest::collection::vec("/(a|b)?(/(a|b))?/?", 0..4),
        ) {
            let routes: Vec<HttpRoute> = patterns.iter().map(|pattern| one(Some(pattern))).collect();
            let asked = Asked { path: &path, ..ASKED };
            let raw = choose(&routes, &asked);
            let read = normal(&path).unwrap_or_else(|| path.clone());
            let other = choose(&routes, &Asked { path: &read, ..ASKED });
            match select(&routes, &asked) {
                Ok(chosen) => prop_assert!(chosen == raw && chosen == other),
                Err(TwoWays) => prop_assert!(raw != other),
            }
        }

        #[test]
        fn a_normal_path_is_its_own_normal_form(
            path in "/([a-z]|é|[/.;\\\\#]|%2[eEfF]|%5c|%3B|%20){0,20}",
        ) {
            let once = normal(&path).unwrap_or_else(|| path.clone());
            prop_assert_eq!(normal(&once), None, "{} of {}", once, path);
            prop_assert!(once.starts_with('/'));
            let parts = once.split('/').skip(1);
            let last = parts.clone().count();
            for (nth, part) in parts.enumerate() {
                let empty = part.is_empty() && nth + 1 < last;
                prop_assert!(!empty && part != "." && part != ".." && !part.contains([';', '#', '\\']), "{}", once);
            }
        }

        #[test]
        fn case_and_port_of_the_host_change_nothing(
            upper in any::<[bool; 7]>(),
            port in proptest::option::of(any::<u16>()),
            path in "(/(a|b|\\.\\.|;))*",
        ) {
            let name: String = "web.org".chars().zip(upper)
                .map(|(c, upper)| if upper { c.to_ascii_uppercase() } else { c }).collect();
            let authority = port.map_or_else(|| name.clone(), |port| format!("{name}:{port}"));
            let hosted = HttpRoute { hosts: vec![crate::route::HostMatch::Exact("web.org".into())], ..one(Some("/a")) };
            let routes = [hosted, one(None)];
            let plain = select(&routes, &Asked { path: &path, authority: "web.org" });
            prop_assert_eq!(select(&routes, &Asked { path: &path, authority: &authority }), plain);
        }
    }

    #[derive(Clone, Copy)]
    struct Asked<'a> {
        path: &'a str,
        authority: &'a str,
    }

    const ASKED: Asked<'static> = Asked { path: "/", authority: "web" };

    impl RequestView for Asked<'_> {
        fn method(&self) -> &'static str {
            "GET"
        }
        fn authority(&self) -> &str {
            self.authority
        }
        fn path(&self) -> &str {
            self.path
        }
        fn query(&self) -> Option<&str> {
            None
        }
        fn header(&self, _: &str) -> impl Iterator<Item = &[u8]> {
            core::iter::empty()
        }
    }

    /// A route on a prefix, or on everything.
    fn one(prefix: Option<&str>) -> HttpRoute {
        let path = prefix.map(|prefix| PathMatch::Prefix(prefix.to_string()));
        HttpRoute {
            meta: Arc::new(ResourceRef::default()),
            hosts: vec![],
            rules: vec![HttpRule { matches: vec![HttpMatch { path, ..HttpMatch::default() }] }],
        }
    }
}

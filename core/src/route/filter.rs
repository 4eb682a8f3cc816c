//! Filters of routes and backends: what is changed in a request or its answer, or answered in the server's place. Gateway
//! API's meaning, as Linkerd's API carries it. Contract 4.1.

use super::path::{Replacement, host_and_port};
use crate::route::{Backend, host_of};
use alloc::{format, string::String, sync::Arc, vec::Vec};

/// One filter. Those of a rule are applied in their order, then those of the backend.
#[derive(Clone, Debug, PartialEq)]
pub enum Filter {
    /// Changes the request's headers.
    Request(HeaderModifier),
    /// Changes the headers of the server's answer; never of one that a proxy made up.
    Response(HeaderModifier),
    /// Answers with another place to ask.
    Redirect(Redirect),
    /// Answers a share of requests with a failure.
    Fail(Failure),
    /// Changes host and path of what is sent on.
    Rewrite(Rewrite),
    /// Sends a share of requests to somebody else as well, whose answers nobody waits for.
    Mirror(Mirror),
}

/// Who else gets a share of requests.
#[derive(Clone, Debug, PartialEq)]
pub struct Mirror {
    /// Where they go.
    pub backend: Backend,
    /// How many of them.
    pub share: Ratio,
}

/// Changes of headers: first what is added, then what is set, then what is removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderModifier {
    /// One more value each; names in lower case, as everywhere.
    pub add: Vec<(String, Vec<u8>)>,
    /// The only value.
    pub set: Vec<(String, Vec<u8>)>,
    /// No value.
    pub remove: Vec<String>,
}

/// Why a header is nobody's to modify.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Untouchable {
    /// It says where a message ends, or what holds for one connection only: a proxy makes it anew on each.
    #[error("it is about one connection or the message's length")]
    Connection,
    /// It is said between proxies.
    #[error("it is said between proxies")]
    Proxies,
    /// Who is asked is decided before; a rewrite or `set` changes what the server is told.
    #[error("it can be set only")]
    Host,
}

/// Whether a filter may add to, set or remove this header, by its name in lower case.
///
/// Gateway API names none that may not be; it refuses the pseudo-header fields, which are no header names here. RFC 9110
/// section 7.6.1 leaves the fields of a connection to whoever keeps that connection. `host` is for the caller to tell
/// apart: to set it is a rewrite.
pub fn may_modify(name: &str) -> Result<(), Untouchable> {
    match name {
        "host" => Err(Untouchable::Host),
        "connection" | "content-length" | "http2-settings" | "keep-alive" | "proxy-connection" | "te"
        | "trailer" | "transfer-encoding" | "upgrade" => Err(Untouchable::Connection),
        _ if name.starts_with("l5d-") || name.starts_with("remora-") => Err(Untouchable::Proxies),
        _ => Ok(()),
    }
}

/// The scheme of a URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// `http`
    Http,
    /// `https`
    Https,
}

impl Scheme {
    /// As URLs have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    /// The port that URLs leave out.
    pub fn port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// What a request asks for, as far as filters look at it.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// By which scheme.
    pub scheme: Scheme,
    /// Host with optional port.
    pub authority: &'a str,
    /// As received.
    pub path: &'a str,
    /// What follows `?`, as received.
    pub query: Option<&'a str>,
    /// Bytes of the path that the rule's prefix covers, if a prefix matched: see [`super::matched_prefix`].
    pub prefix: Option<usize>,
}

/// Answers with another place to ask: parts of the request's URL are exchanged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// Else the request's.
    pub scheme: Option<Scheme>,
    /// A host without port; else the request's.
    pub host: Option<String>,
    /// Else the usual port of `scheme`, if that is given, else the request's.
    pub port: Option<u16>,
    /// Else the request's.
    pub path: Option<Replacement>,
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
}

/// Why a filter cannot be applied to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Inapplicable {
    /// Only what a prefix matched can be exchanged for another one.
    #[error("a prefix is to be replaced, and no prefix matched")]
    NoPrefix,
    /// A URL needs a host.
    #[error("the request names no host")]
    NoHost,
}

impl Redirect {
    /// Where the request is sent; `None`: where it is already, so that it is answered as if there were no redirect
    /// (Linkerd's rule: a client would go round in circles).
    pub fn location(&self, asked: &Asked<'_>) -> Result<Option<String>, Inapplicable> {
        let (asked_host, asked_port) = host_and_port(asked.authority);
        let host = self.host.as_deref().unwrap_or(asked_host);
        if host.is_empty() {
            return Err(Inapplicable::NoHost);
        }
        let scheme = self.scheme.unwrap_or(asked.scheme);
        let port = match (self.port, self.scheme) {
            (Some(port), _) => port,
            (None, Some(scheme)) => scheme.port(),
            (None, None) => asked_port.unwrap_or_else(|| scheme.port()),
        };
        let target = target(asked, self.path.as_ref())?;
        let same_host = host_of(host).eq_ignore_ascii_case(host_of(asked_host));
        let same_port = port == asked_port.unwrap_or_else(|| asked.scheme.port());
        if scheme == asked.scheme && same_host && same_port && target.is_none() {
            return Ok(None);
        }
        let target = target.unwrap_or_else(|| whole(asked.path, asked.query));
        // A request without a path (CONNECT, OPTIONS *) has none in a URL either.
        let target = if target.starts_with('/') { target } else { String::from("/") };
        let scheme_name = scheme.as_str();
        Ok(Some(if port == scheme.port() {
            format!("{scheme_name}://{host}{target}")
        } else {
            format!("{scheme_name}://{host}:{port}{target}")
        }))
    }
}

/// Exchanges host and path of a request that is sent on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rewrite {
    /// The host that the server is told.
    pub authority: Option<String>,
    /// Its path.
    pub path: Option<Replacement>,
}

impl Rewrite {
    /// The path and query that are asked for instead; `None` where they stay.
    pub fn target(&self, asked: &Asked<'_>) -> Result<Option<String>, Inapplicable> {
        target(asked, self.path.as_ref())
    }
}

/// Path and query after a replacement; `None` where they are what they were.
fn target(asked: &Asked<'_>, replacement: Option<&Replacement>) -> Result<Option<String>, Inapplicable> {
    let Some(replacement) = replacement else { return Ok(None) };
    let path = match replacement {
        // `OPTIONS *` and CONNECT ask for no path.
        _ if !asked.path.starts_with('/') => return Ok(None),
        Replacement::Whole(path) => path.clone(),
        Replacement::Prefix(by) => {
            let covered = asked.prefix.ok_or(Inapplicable::NoPrefix)?;
            super::path::replace_prefix(asked.path, covered, by)
        }
    };
    // The query is no part of the path: it stays, unless another one is given.
    let target = if path.contains('?') { path } else { whole(&path, asked.query) };
    Ok((target != whole(asked.path, asked.query)).then_some(target))
}

fn whole(path: &str, query: Option<&str>) -> String {
    match query {
        Some(query) => format!("{path}?{query}"),
        None => String::from(path),
    }
}

/// Answers a share of requests with a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// With this.
    pub with: FailWith,
    /// What the application is told of it.
    pub message: Arc<str>,
    /// How many requests.
    pub share: Ratio,
}

/// How a failure is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailWith {
    /// An HTTP status; a gRPC client is told FAILED_PRECONDITION.
    Http(u16),
    /// A gRPC status.
    Grpc(u16),
}

/// A share of requests: `of` in `all`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ratio {
    of: u32,
    all: u32,
}

impl Ratio {
    /// Every one.
    pub const ALL: Self = Self { of: 1, all: 1 };

    /// `None`: no share of anything.
    pub fn new(of: u32, all: u32) -> Option<Self> {
        (all > 0 && of <= all).then_some(Self { of, all })
    }

    /// So many, of so many.
    pub fn parts(self) -> (u32, u32) {
        (self.of, self.all)
    }

    /// Whether one of these requests is in the share; `random` is any number.
    pub fn hits(self, random: u64) -> bool {
        // A number below `all`.
        ((u128::from(random) * u128::from(self.all)) >> 64) < u128::from(self.of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PLAIN: Redirect = Redirect { scheme: None, host: None, port: None, path: None, status: 302 };

    #[test]
    fn what_a_redirect_does_not_name_stays() {
        let host = Redirect { host: Some("example.org".into()), ..PLAIN };
        check(&host, "web:8080", "/a?b=c", Some("http://example.org:8080/a?b=c"));
        check(&host, "web", "/a", Some("http://example.org/a"));
        check(&host, "web:80", "/a", Some("http://example.org/a"));
        let port = Redirect { port: Some(9000), ..PLAIN };
        check(&port, "web:8080", "/a", Some("http://web:9000/a"));
        check(&port, "[fd00::1]:8080", "/a", Some("http://[fd00::1]:9000/a"));
    }

    #[test]
    fn a_scheme_brings_its_own_port_unless_one_is_named() {
        let https = Redirect { scheme: Some(Scheme::Https), ..PLAIN };
        check(&https, "web:8080", "/a", Some("https://web/a"));
        check(&Redirect { port: Some(8443), ..https.clone() }, "web:8080", "/", Some("https://web:8443/"));
        check(&Redirect { port: Some(443), ..https.clone() }, "web:8080", "/", Some("https://web/"));
        check(&Redirect { port: Some(80), ..https }, "web:8080", "/", Some("https://web:80/"));
        let http = Redirect { scheme: Some(Scheme::Http), ..PLAIN };
        check(&http, "web:8080", "/a", Some("http://web/a"));
    }

    #[test]
    fn a_usual_port_is_left_out() {
        check(&Redirect { port: Some(80), ..PLAIN }, "web:8080", "/a", Some("http://web/a"));
        check(&Redirect { port: Some(443), ..PLAIN }, "web", "/a", Some("http://web:443/a"));
    }

    #[test]
    fn a_path_may_be_replaced_whole_and_the_query_stays() {
        let whole = |path: &str| Redirect { path: Some(Replacement::Whole(path.into())), ..PLAIN };
        check(&whole("/b"), "web", "/a/x?q=1", Some("http://web/b?q=1"));
        check(&whole("/b?r=2"), "web", "/a/x?q=1", Some("http://web/b?r=2"));
    }

    #[test]
    fn a_prefix_may_be_replaced_where_one_matched() {
        let prefix = Redirect { path: Some(Replacement::Prefix("/xyz".into())), ..PLAIN };
        let asked = asked("web", "/foo/bar?q=1");
        assert_eq!(prefix.location(&asked), Err(Inapplicable::NoPrefix));
        let asked = Asked { prefix: Some(4), ..asked };
        assert_eq!(prefix.location(&asked).unwrap().as_deref(), Some("http://web/xyz/bar?q=1"));
    }

    #[test]
    fn nobody_is_sent_where_he_is() {
        check(&PLAIN, "web:8080", "/a", None);
        check(&Redirect { host: Some("web".into()), ..PLAIN }, "WEB:8080", "/a?b", None);
        check(&Redirect { scheme: Some(Scheme::Http), port: Some(80), ..PLAIN }, "web", "/a", None);
        check(&Redirect { path: Some(Replacement::Whole("/a".into())), ..PLAIN }, "web", "/a?b", None);
    }

    #[test]
    fn a_url_needs_a_host() {
        let path = Redirect { path: Some(Replacement::Whole("/b".into())), ..PLAIN };
        assert_eq!(path.location(&asked("", "/a")), Err(Inapplicable::NoHost));
    }

    #[test]
    fn what_asks_for_no_path_is_rewritten_in_its_host_only() {
        let rewrite = Rewrite { authority: None, path: Some(Replacement::Whole("/b".into())) };
        assert_eq!(rewrite.target(&asked("web", "*")), Ok(None));
        assert_eq!(rewrite.target(&asked("web", "/a?q")), Ok(Some("/b?q".into())));
        assert_eq!(rewrite.target(&asked("web", "/b?q")), Ok(None));
        let host = Redirect { host: Some("other".into()), ..PLAIN };
        check(&host, "web", "*", Some("http://other/"));
    }

    #[test]
    fn which_headers_filters_leave_alone() {
        for (name, expected) in [
            ("x-a", Ok(())),
            ("authorization", Ok(())),
            ("content-type", Ok(())),
            ("host", Err(Untouchable::Host)),
            ("connection", Err(Untouchable::Connection)),
            ("te", Err(Untouchable::Connection)),
            ("upgrade", Err(Untouchable::Connection)),
            ("content-length", Err(Untouchable::Connection)),
            ("transfer-encoding", Err(Untouchable::Connection)),
            ("l5d-client-id", Err(Untouchable::Proxies)),
            ("remora-unprocessed", Err(Untouchable::Proxies)),
        ] {
            assert_eq!(may_modify(name), expected, "{name}");
        }
    }

    #[test]
    fn shares_are_those_of_all_numbers() {
        let hits = |of, all| {
            let ratio = Ratio::new(of, all).unwrap();
            (0..1000u64).filter(|draw| ratio.hits(u64::MAX / 1000 * draw + 1000)).count()
        };
        assert_eq!([hits(0, 1), hits(1, 1), hits(1, 2), hits(9, 10)], [0, 1000, 500, 900]);
        assert_eq!((Ratio::new(1, 0), Ratio::new(2, 1)), (None, None));
    }

    proptest! {
        #[test]
        fn all_is_always_and_none_is_never(all in 1u32.., random in any::<u64>()) {
            prop_assert!(Ratio::new(all, all).unwrap().hits(random));
            prop_assert!(!Ratio::new(0, all).unwrap().hits(random));
        }
    }

    fn asked<'a>(authority: &'a str, target: &'a str) -> Asked<'a> {
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (target, None),
        };
        Asked { scheme: Scheme::Http, authority, path, query, prefix: None }
    }

    #[track_caller]
    fn check(redirect: &Redirect, authority: &str, target: &str, expected: Option<&str>) {
        assert_eq!(redirect.location(&asked(authority, target)).unwrap().as_deref(), expected);
    }
}

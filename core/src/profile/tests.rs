//! Which route a request takes, and what its response counts as.

use super::*;
use alloc::{
    boxed::Box,
    string::{String, ToString},
    vec,
};
use proptest::prelude::*;

struct Request<'a>(&'a str, &'a str);

impl RequestView for Request<'_> {
    fn method(&self) -> &str {
        self.0
    }
    fn authority(&self) -> &'static str {
        ""
    }
    fn path(&self) -> &str {
        self.1
    }
    fn query(&self) -> Option<&str> {
        None
    }
    fn header(&self, _: &str) -> impl Iterator<Item = &[u8]> {
        core::iter::empty()
    }
}

fn method(method: &str) -> RequestMatch {
    RequestMatch::Method(method.into())
}

fn path(pattern: &str) -> RequestMatch {
    RequestMatch::Path(Patterns::new().compile(pattern).unwrap())
}

fn not(condition: RequestMatch) -> RequestMatch {
    RequestMatch::Not(Box::new(condition))
}

#[test]
fn conditions_on_requests() {
    use RequestMatch::{All, Any};
    let get_users = || All(vec![method("GET"), path("/users")]);
    for (condition, request, expected) in [
        (method("GET"), Request("GET", "/"), true),
        (method("GET"), Request("HEAD", "/"), false),
        (method("GET"), Request("get", "/"), false),
        (path("/users"), Request("GET", "/users"), true),
        (get_users(), Request("GET", "/users"), true),
        (get_users(), Request("PUT", "/users"), false),
        (get_users(), Request("GET", "/user"), false),
        (Any(vec![method("PUT"), path("/users")]), Request("PUT", "/"), true),
        (Any(vec![method("PUT"), path("/users")]), Request("GET", "/users"), true),
        (Any(vec![method("PUT"), path("/users")]), Request("GET", "/"), false),
        (not(method("GET")), Request("GET", "/"), false),
        (not(method("GET")), Request("PUT", "/"), true),
        (not(not(method("GET"))), Request("GET", "/"), true),
        (All(vec![]), Request("GET", "/"), true),
        (Any(vec![]), Request("GET", "/"), false),
        (All(vec![Any(vec![path("/a"), path("/b")]), not(method("PUT"))]), Request("GET", "/b"), true),
        (All(vec![Any(vec![path("/a"), path("/b")]), not(method("PUT"))]), Request("PUT", "/b"), false),
    ] {
        assert_eq!(condition.matches(&request), expected, "{} {}: {condition:?}", request.0, request.1);
    }
}

#[test]
fn a_pattern_covers_the_whole_path() {
    for (pattern, whole, others) in [
        ("/users", &["/users"][..], &["/users/", "/user", "/v1/users", "users", "/users?a=1"][..]),
        ("/users/[^/]*", &["/users/", "/users/7"], &["/users/7/orders", "/users"]),
        (r"/users/\d+", &["/users/7"], &["/users/x", "/users/7x"]),
        // With or without its own anchors, as Linkerd has it.
        ("^/users$", &["/users"], &["/users/"]),
        ("^/users", &["/users"], &["/users/"]),
        (" /users ", &["/users"], &[" /users "]),
        // An alternative does not escape the anchors, which in Linkerd it does.
        ("/a|/b", &["/a", "/b"], &["/a/x", "/x/b"]),
        (".*", &["/", "/anything/at/all", ""], &[]),
        ("/(?i:users)", &["/users", "/USERS"], &["/user"]),
        ("", &[""], &["/"]),
    ] {
        let regex = Patterns::new().compile(pattern).unwrap_or_else(|error| panic!("{pattern}: {error}"));
        for path in whole {
            assert!(regex.matches(path), "{pattern} does not cover {path}");
        }
        for path in others {
            assert!(!regex.matches(path), "{pattern} covers {path}");
        }
    }
}

#[test]
fn patterns_that_are_refused() {
    for (pattern, reason) in [
        ("(", "unclosed group"),
        ("a)|(?:b", "unopened group"),
        (r"(a)\1", "backreferences are not supported"),
        ("(?=a)", "look-around"),
        (r"[^/]{1000}{1000}", "512 KiB"),
    ] {
        let refused = Patterns::new().compile(pattern).unwrap_err().to_string();
        assert!(refused.contains(reason), "{pattern}: {refused}");
        assert!(refused.len() < 300, "{refused}");
    }
    let deep = ["(".repeat(70), ")".repeat(70)].concat();
    assert!(
        matches!(Patterns::new().compile(&deep), Err(TooMuch::Invalid(reason)) if reason.contains("nest"))
    );
    assert_eq!(Patterns::new().compile(&"a".repeat(4097)), Err(TooMuch::Long(4097)));
    assert!(Patterns::new().compile(&"a".repeat(4096)).is_ok());
}

#[test]
fn the_patterns_of_a_profile_have_a_bound_together() {
    let mut patterns = Patterns::new();
    let large = r"/\w{5}";
    let refused = (0..10_000).find_map(|nth| patterns.compile(large).err().map(|error| (nth, error)));
    let (nth, error) = refused.unwrap();
    assert_eq!(error, TooMuch::Together);
    assert!((33..2000).contains(&nth), "{nth} of them fit");
    assert!(patterns.compile("/small").is_ok(), "there is room for a small one");
}

#[test]
fn the_first_route_that_matches_has_the_request() {
    let profile = Profile { routes: vec![route(path("/a.*")), route(path("/ab"))], ..Profile::default() };
    assert_eq!(profile.choose(&Request("GET", "/ab")), Some(0));
    assert_eq!(profile.choose(&Request("GET", "/b")), None);
}

#[test]
fn whose_profile_wins_over_routes() {
    let name = || Some(Arc::from("web.shop.svc.cluster.local"));
    let routes = || vec![route(path("/"))];
    let overrides = || vec![Override { authority: "a:80".into(), weight: 1 }];
    for (profile, wins) in [
        (Profile::default(), false),
        (Profile { name: name(), ..Profile::default() }, false),
        (Profile { name: name(), routes: routes(), ..Profile::default() }, true),
        (Profile { name: name(), overrides: overrides(), ..Profile::default() }, true),
        (Profile { routes: routes(), overrides: overrides(), ..Profile::default() }, false),
    ] {
        assert_eq!(profile.routes_http(), wins, "{profile:?}");
    }
}

#[test]
fn ranges_of_statuses() {
    for (min, max, expected) in [
        (500, 599, Ok((500, 599))),
        (404, 404, Ok((404, 404))),
        (500, 0, Ok((500, 500))),
        (0, 204, Ok((204, 204))),
        (0, 0, Err(InvalidStatuses::Neither)),
        (99, 200, Err(InvalidStatuses::NoStatus(99))),
        (200, 600, Err(InvalidStatuses::NoStatus(600))),
        (65_536 + 200, 0, Err(InvalidStatuses::NoStatus(65_736))),
        (599, 500, Err(InvalidStatuses::Empty { min: 599, max: 500 })),
    ] {
        let range = StatusRange::new(min, max).map(|range| (range.min(), range.max()));
        assert_eq!(range, expected, "{min} to {max}");
    }
}

#[test]
fn the_first_class_that_matches_says_what_a_response_is() {
    let status = |min, max| ResponseMatch::Status(StatusRange::new(min, max).unwrap());
    let class = |condition, failure| ResponseClass { condition, failure };
    let classes = [
        class(status(200, 299), false),
        class(
            ResponseMatch::All(vec![status(400, 499), ResponseMatch::Not(Box::new(status(404, 404)))]),
            true,
        ),
        class(ResponseMatch::Any(vec![status(503, 503), status(404, 404)]), false),
        class(status(500, 599), true),
    ];
    for (status, expected) in [
        (200, Some(false)),
        (299, Some(false)),
        (300, None),
        (400, Some(true)),
        (404, Some(false)),
        (500, Some(true)),
        (503, Some(false)),
        (599, Some(true)),
        (100, None),
    ] {
        assert_eq!(classify(&classes, status), expected, "{status}");
    }
    assert_eq!(classify(&[], 500), None);
}

#[test]
fn a_route_has_a_name_if_it_is_labelled_with_one() {
    assert_eq!(route(path("/")).name(), None);
    let labels = [("a", "b"), ("route", "GET /")].map(|(label, value)| (label.into(), value.into()));
    let named = ProfileRoute { labels: labels.into(), ..route(path("/")) };
    assert_eq!(named.name(), Some("GET /"));
}

proptest! {
    #[test]
    fn a_pattern_of_plain_letters_is_a_comparison(pattern in "/[a-z]{0,6}(/[a-z]{0,6})?", path in "/[a-z]{0,6}(/[a-z]{0,6})?") {
        let regex = Patterns::new().compile(&pattern).unwrap();
        prop_assert!(regex.matches(&pattern));
        prop_assert_eq!(regex.matches(&path), pattern == path);
    }

    #[test]
    fn no_pattern_panics(pattern in any::<String>()) {
        let _ = Patterns::new().compile(&pattern);
    }
}

fn route(condition: RequestMatch) -> ProfileRoute {
    ProfileRoute { condition, labels: Arc::new([]), classes: Arc::new([]), retryable: false, timeout: None }
}

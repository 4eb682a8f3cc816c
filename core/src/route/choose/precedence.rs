//! The sentences of Gateway API about which match wins, in their order and in short words, each with the routes and the
//! request that show it. Which of two routes is the older one is known where routes are attached: its table is in
//! `destination/src/view/tests/routes.rs`.

use super::{
    tests::{Request, any, exact, get, prefix, regex, route, value},
    *,
};
use alloc::{vec, vec::Vec};

/// The sentence, the routes, the request, and which rule of which route has it.
type Line = (&'static str, Vec<HttpRoute>, Request<'static>, Option<(usize, usize)>);

#[test]
fn every_sentence_about_hosts_holds() {
    const PATH: &str = "/a/long/path";
    let rich = || method("GET", exact(PATH));
    let hosts = |hosts: &[&str]| route(hosts, vec![any()]);
    let from = |authority| Request { authority, ..get(PATH) };
    check(&[
        // HTTPRouteSpec.hostnames, GRPCRouteSpec.hostnames.
        ("without hosts a route is of all hosts", vec![hosts(&[])], from("any.host"), Some((0, 0))),
        ("a port in the Host header is ignored", vec![hosts(&["a.b"])], from("a.b:8080"), Some((0, 0))),
        ("`*.` is a suffix: one label", vec![hosts(&["*.b.c"])], from("a.b.c"), Some((0, 0))),
        ("`*.` is a suffix: more labels", vec![hosts(&["*.b.c"])], from("a.a.b.c"), Some((0, 0))),
        ("`*.` is a suffix: not without a label", vec![hosts(&["*.b.c"])], from("b.c"), None),
        (
            "most characters in a matching host that is no wildcard",
            vec![hosts(&["*.web.shop.local"]), hosts(&["a.web.shop.local"])],
            from("a.web.shop.local"),
            Some((1, 0)),
        ),
        (
            "most characters in a matching host",
            vec![hosts(&["*.local"]), hosts(&["*.shop.local"]), hosts(&["*.d.shop.local"])],
            from("a.web.shop.local"),
            Some((1, 0)),
        ),
        (
            "a host has more characters than none",
            vec![hosts(&[]), hosts(&["*.local"])],
            from("a.local"),
            Some((1, 0)),
        ),
        (
            "the host comes before whatever the matches are",
            vec![route(&["*.local"], vec![rich()]), hosts(&["a.local"])],
            from("a.local"),
            Some((1, 0)),
        ),
        (
            "of equal hosts the matches decide",
            vec![hosts(&["a.local"]), route(&["a.local"], vec![rich()])],
            from("a.local"),
            Some((1, 0)),
        ),
    ]);
}

#[test]
fn every_sentence_about_the_matches_of_an_http_route_holds() {
    let request = Request { headers: &[("x", b"1"), ("y", b"2")], ..get("/a/b?q=1&r=2") };
    let rules = |matches: Vec<HttpMatch>| vec![route(&[], matches)];
    let either = HttpRoute {
        rules: vec![
            HttpRule { matches: vec![method("GET", prefix("/a"))] },
            HttpRule { matches: vec![prefix("/none"), prefix("/a/b")] },
        ],
        ..route(&[], vec![])
    };
    let nothing = HttpRoute { rules: vec![HttpRule { matches: vec![] }], ..route(&[], vec![]) };
    check(&[
        // HTTPRouteRule.matches.
        ("one of a rule's matches is enough", vec![either], request, Some((0, 1))),
        (
            "without matches it is the prefix `/`: of every request",
            vec![nothing.clone()],
            request,
            Some((0, 0)),
        ),
        (
            "without matches it is the prefix `/`: the shortest",
            vec![nothing, route(&[], vec![prefix("/a")])],
            request,
            Some((1, 0)),
        ),
        (
            "first an exact path",
            rules(vec![query(2, headers(2, method("GET", prefix("/a/b")))), exact("/a/b")]),
            request,
            Some((0, 1)),
        ),
        (
            "then the prefix with most characters",
            rules(vec![query(2, headers(2, method("GET", prefix("/a")))), prefix("/a/b")]),
            request,
            Some((0, 1)),
        ),
        (
            "then a match of the method",
            rules(vec![query(2, headers(2, prefix("/a"))), method("GET", prefix("/a"))]),
            request,
            Some((0, 1)),
        ),
        (
            "then most matches of headers",
            rules(vec![query(2, headers(1, prefix("/a"))), headers(2, prefix("/a"))]),
            request,
            Some((0, 1)),
        ),
        (
            "then most matches of query parameters",
            rules(vec![query(1, prefix("/a")), query(2, prefix("/a"))]),
            request,
            Some((0, 1)),
        ),
        (
            "of regular expressions an implementation says it itself: they count what they matched",
            rules(vec![prefix("/a"), regex("/a/.*"), exact("/a/c")]),
            request,
            Some((0, 1)),
        ),
        (
            "of ties across routes the first of the list, which is the oldest, else the first by name",
            vec![route(&[], vec![exact("/c"), prefix("/a/")]), route(&[], vec![prefix("/a")])],
            request,
            Some((0, 1)),
        ),
        (
            "of ties within a route the first rule that matches",
            rules(vec![exact("/c"), prefix("/a/b"), prefix("/a/b/")]),
            request,
            Some((0, 1)),
        ),
        ("what no rule matches is nobody's (404)", rules(vec![exact("/c"), prefix("/ab")]), request, None),
        // HTTPPathMatch.
        ("a prefix is of whole segments", rules(vec![prefix("/a/bc"), prefix("/a/")]), request, Some((0, 1))),
        ("paths have case", rules(vec![prefix("/A"), exact("/A/B")]), request, None),
    ]);
}

#[test]
fn every_sentence_about_the_matches_of_a_grpc_route_holds() {
    // What a GRPCRoute's methods are for the proxy: service and method are the path.
    let service = || prefix("/pkg.Svc");
    let both = || exact("/pkg.Svc/Get");
    let one = || HttpMatch { path: Some(PathMatch::AnyService("Get".into())), ..any() };
    let request = Request { method: "POST", headers: &[("x", b"1"), ("y", b"2")], ..get("/pkg.Svc/Get") };
    let rules = |matches: Vec<HttpMatch>| vec![route(&[], matches)];
    let either =
        HttpRoute { rules: vec![HttpRule { matches: vec![exact("/a/B"), both()] }], ..route(&[], vec![]) };
    let nothing = HttpRoute { rules: vec![HttpRule { matches: vec![] }], ..route(&[], vec![]) };
    check(&[
        // GRPCRouteRule.matches.
        ("one of a rule's matches is enough", vec![either], request, Some((0, 0))),
        ("without matches every request", vec![nothing], request, Some((0, 0))),
        (
            "most characters in a matching host come first",
            vec![route(&[], vec![headers(2, both())]), route(&["*.prod"], vec![any()])],
            request,
            Some((1, 0)),
        ),
        (
            "then most characters in a matching service",
            rules(vec![headers(2, one()), service()]),
            request,
            Some((0, 1)),
        ),
        (
            "then most characters in a matching method",
            rules(vec![headers(2, service()), both()]),
            request,
            Some((0, 1)),
        ),
        ("a method alone has more than none", rules(vec![headers(2, any()), one()]), request, Some((0, 1))),
        (
            "then most matches of headers",
            rules(vec![headers(1, both()), headers(2, both())]),
            request,
            Some((0, 1)),
        ),
        (
            "of ties across routes the first of the list, which is the oldest, else the first by name",
            vec![route(&[], vec![both()]), route(&[], vec![both()])],
            request,
            Some((0, 0)),
        ),
        (
            "of ties within a route the first rule that matches",
            rules(vec![exact("/a/B"), both(), both()]),
            request,
            Some((0, 1)),
        ),
    ]);
}

/// With this method.
fn method(method: &str, conditions: HttpMatch) -> HttpMatch {
    HttpMatch { method: Some(method.into()), ..conditions }
}

/// With so many of the headers that the requests have.
fn headers(count: usize, conditions: HttpMatch) -> HttpMatch {
    let all = [("x".into(), value("1")), ("y".into(), value("2"))];
    HttpMatch { headers: all.into_iter().take(count).collect(), ..conditions }
}

/// With so many of the parameters that the requests have.
fn query(count: usize, conditions: HttpMatch) -> HttpMatch {
    let all = [("q".into(), value("1")), ("r".into(), value("2"))];
    HttpMatch { query: all.into_iter().take(count).collect(), ..conditions }
}

#[track_caller]
fn check(table: &[Line]) {
    for (sentence, routes, request, expected) in table {
        let expected = expected.map(|(route, rule)| Chosen { route, rule });
        assert_eq!(choose(routes, request), expected, "{sentence}");
        // Where the list's order decides nothing, it does not matter: the reverse is the same rule.
        if !sentence.contains("of the list") {
            let reversed: Vec<_> = routes.iter().rev().cloned().collect();
            let mirrored = |chosen: Chosen| Chosen { route: routes.len() - 1 - chosen.route, ..chosen };
            assert_eq!(choose(&reversed, request).map(mirrored), expected, "{sentence}, reversed");
        }
    }
}

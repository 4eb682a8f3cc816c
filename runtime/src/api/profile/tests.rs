//! What a message of `GetProfile` means, and which are refused.

use super::*;
use linkerd2_proxy_api::{http_types, meta};
use std::time::Duration;
use wire::{request_match, response_match};

fn request(condition: request_match::Match) -> wire::RequestMatch {
    wire::RequestMatch { r#match: Some(condition) }
}

fn path(regex: &str) -> wire::RequestMatch {
    request(request_match::Match::Path(wire::PathMatch { regex: regex.to_owned() }))
}

fn method(name: &str) -> wire::RequestMatch {
    let method = http_types::http_method::Type::Unregistered(name.to_owned());
    request(request_match::Match::Method(http_types::HttpMethod { r#type: Some(method) }))
}

fn status(min: u32, max: u32) -> wire::ResponseMatch {
    let range = wire::HttpStatusRange { min, max };
    wire::ResponseMatch { r#match: Some(response_match::Match::Status(range)) }
}

fn route(condition: wire::RequestMatch) -> wire::Route {
    wire::Route { condition: Some(condition), ..wire::Route::default() }
}

fn with(routes: Vec<wire::Route>) -> wire::DestinationProfile {
    wire::DestinationProfile { routes, ..wire::DestinationProfile::default() }
}

fn seconds(seconds: i64) -> prost_types::Duration {
    prost_types::Duration { seconds, nanos: 0 }
}

fn budget_of(ratio: f32, min: u32, ttl: Option<i64>) -> wire::RetryBudget {
    wire::RetryBudget { retry_ratio: ratio, min_retries_per_second: min, ttl: ttl.map(seconds) }
}

#[test]
fn an_empty_profile_says_nothing() {
    let read = profile(wire::DestinationProfile::default()).unwrap();
    assert_eq!(read, Converted { value: Profile::default(), ignored: Vec::new() });
}

#[test]
fn everything_that_a_profile_can_say() {
    let both = request_match::Seq { matches: vec![method("GET"), path("/a|/b")] };
    let not = request(request_match::Match::Not(Box::new(method("PUT"))));
    let any = request_match::Seq { matches: vec![not] };
    let failure = response_match::Seq { matches: vec![status(500, 599), status(429, 0)] };
    let class = |condition: response_match::Match, is_failure| {
        let condition = Some(wire::ResponseMatch { r#match: Some(condition) });
        wire::ResponseClass { condition, is_failure }
    };
    let first = wire::Route {
        response_classes: vec![
            class(response_match::Match::Any(failure), true),
            class(response_match::Match::Not(Box::new(status(0, 404))), false),
        ],
        metrics_labels: [("route", "GET /a"), ("k8s.io/x", "y")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        is_retryable: true,
        timeout: Some(seconds(7)),
        ..route(request(request_match::Match::All(both)))
    };
    let second = wire::Route { timeout: Some(seconds(0)), ..route(request(request_match::Match::Any(any))) };
    let read = profile(wire::DestinationProfile {
        fully_qualified_name: "web.shop.svc.cluster.local".to_owned(),
        opaque_protocol: true,
        routes: vec![first, second],
        retry_budget: Some(budget_of(0.5, 3, Some(20))),
        dst_overrides: [("A.shop.svc.cluster.local.:80", 3), ("b.shop.svc.cluster.local:80", 0)]
            .map(|(authority, weight)| wire::WeightedDst {
                authority: authority.to_owned(),
                weight,
                backend_ref: None,
            })
            .into(),
        parent_ref: Some(meta::Metadata { kind: Some(meta::metadata::Kind::Default("x".to_owned())) }),
        ..wire::DestinationProfile::default()
    });
    let Converted { value, ignored } = read.unwrap();
    assert_eq!(ignored, [] as [std::sync::Arc<str>; 0]);
    assert_eq!(value.name.as_deref(), Some("web.shop.svc.cluster.local"));
    assert!(value.opaque && value.parent.is_some() && value.routes_http());
    assert_eq!(value.budget, Some(BudgetLimits::new(0.5, 3, Duration::from_secs(20)).unwrap()));
    let expected = Override { authority: "a.shop.svc.cluster.local:80".into(), weight: 3 };
    assert_eq!(value.overrides, [expected]);
    let [first, second] = &value.routes[..] else { panic!("{:?}", value.routes) };
    let RequestMatch::All(all) = &first.condition else { panic!("{:?}", first.condition) };
    assert_eq!(all[0], RequestMatch::Method("GET".to_owned()));
    assert!(matches!(&all[1], RequestMatch::Path(path) if path.as_str() == "/a|/b" && !path.matches("/a/b")));
    assert_eq!(first.name(), Some("GET /a"));
    let labels: Vec<(&str, &str)> = first.labels.iter().map(|(name, value)| (&**name, &**value)).collect();
    assert_eq!(labels, [("k8s_io_x", "y"), ("route", "GET /a")]);
    assert_eq!((first.retryable, first.timeout), (true, Some(Duration::from_secs(7))));
    let classes = [500, 429, 430, 404].map(|status| remora_core::profile::classify(&first.classes, status));
    assert_eq!(classes, [Some(true), Some(true), Some(false), None]);
    assert_eq!((second.timeout, second.retryable), (None, false));
}

#[test]
fn what_is_not_understood_is_refused_by_name() {
    let class = |condition| wire::Route {
        response_classes: vec![wire::ResponseClass { condition, is_failure: true }],
        ..route(path("/"))
    };
    let empty = response_match::Match::All(response_match::Seq::default());
    let deep = (0..16).fold(path("/"), |inner, _| request(request_match::Match::Not(Box::new(inner))));
    let deep_response = (0..16).fold(status(200, 0), |inner, _| {
        let not = response_match::Match::Not(Box::new(inner));
        wire::ResponseMatch { r#match: Some(not) }
    });
    for (wrong, expected) in [
        (wire::Route::default(), "routes[1].condition: missing"),
        (
            route(wire::RequestMatch { r#match: None }),
            "routes[1].condition: neither all, any, not, path nor method",
        ),
        (route(path("(")), "routes[1].condition.path.regex: no regular expression: unclosed group"),
        (route(method("G T")), "routes[1].condition.method: "),
        (route(deep), "nested deeper than 16"),
        (class(None), "routes[1].response_classes[0].condition: missing"),
        (
            class(Some(wire::ResponseMatch { r#match: Some(empty) })),
            "routes[1].response_classes[0].condition.all: empty",
        ),
        (
            class(Some(status(0, 0))),
            "routes[1].response_classes[0].condition.status: neither min nor max is given",
        ),
        (class(Some(deep_response)), "nested deeper than 16"),
        (wire::Route { timeout: Some(seconds(-1)), ..route(path("/")) }, "routes[1].timeout: "),
    ] {
        let error = profile(with(vec![route(path("/")), wrong])).unwrap_err().to_string();
        assert!(error.contains(expected), "{error} has not {expected}");
        assert!(error.len() < 500, "{error}");
    }
    let many = profile(with(vec![route(path("/")); MAX_ROUTES + 1])).unwrap_err();
    assert_eq!(many.to_string(), "routes: 1025 items, at most 1024 are read");
}

#[test]
fn destinations_of_a_split_need_a_name_and_a_port() {
    for authority in ["", "a", "a:", "a:0", "a:65536", "a:x", "a b:80", "https://a:80"] {
        let dst = wire::WeightedDst { authority: authority.to_owned(), weight: 1, backend_ref: None };
        let wire = wire::DestinationProfile { dst_overrides: vec![dst], ..with(vec![]) };
        let error = profile(wire.clone()).unwrap_err().to_string();
        assert!(error.starts_with("dst_overrides[0].authority: "), "{authority}: {error}");
        assert!(profile(without_routes(wire)).is_ok());
    }
}

#[test]
fn a_budget_that_cannot_be_is_none_and_is_noted() {
    for (budget, expected) in [
        (budget_of(0.2, 10, None), "retry_budget.ttl: missing"),
        (budget_of(0.2, 10, Some(61)), "retry_budget: 61s is not between 1 s and 60 s"),
        (budget_of(f32::NAN, 10, Some(10)), "retry_budget: NaN is no ratio"),
        (budget_of(0.2, u32::MAX, Some(10)), "retry_budget: 4294967295 retries per second"),
    ] {
        let wire = wire::DestinationProfile { retry_budget: Some(budget), ..with(vec![route(path("/"))]) };
        let read = profile(wire.clone()).unwrap();
        assert_eq!(read.value.budget, None);
        assert!(read.ignored[0].starts_with(expected), "{:?}", read.ignored);
        assert!(profile(wire::DestinationProfile { routes: vec![], ..wire }).unwrap().ignored.is_empty());
    }
}

//! What a ServiceProfile says, and everything that is wrong with one.

use super::*;
use crate::resources::{Document, Resource, parse};
use remora_core::profile::{ResponseMatch, StatusRange};

/// As it stands in the guide that Remora's first users follow.
const SEED: &str = "
apiVersion: linkerd.io/v1alpha2
kind: ServiceProfile
metadata:
  name: app-service.default.svc.cluster.local
  namespace: default
spec:
  routes:
  - name: GET /api/users
    condition:
      method: GET
      pathRegex: /api/users
    responseClasses:
    - condition:
        status:
          min: 200
          max: 299
      isFailure: false
    - condition:
        status:
          min: 500
          max: 599
      isFailure: true
";

fn profile(spec: &str) -> String {
    format!(
        "{{apiVersion: linkerd.io/v1alpha2, kind: ServiceProfile, metadata: {{name: web.shop.svc.cluster.local, namespace: shop}}, spec: {spec}}}"
    )
}

fn read(text: &str) -> Spec {
    match parse(text).unwrap_or_else(|errors| panic!("{errors:?}")).remove(0) {
        Document::Known(Resource::ServiceProfile(profile)) => (*profile.spec).clone(),
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn wrong(spec: &str, expected: &[&str]) {
    let errors: Vec<String> = match parse(&profile(spec)) {
        Ok(read) => panic!("{spec} was read as {read:?}"),
        Err(errors) => errors.iter().map(ToString::to_string).collect(),
    };
    let prefix = "document 1: ServiceProfile shop/web.shop.svc.cluster.local: ";
    let errors: Vec<&str> = errors.iter().map(|error| error.strip_prefix(prefix).unwrap()).collect();
    assert_eq!(errors, expected, "{spec}");
}

/// A condition that the one route of a profile has.
fn condition(text: &str) -> RequestMatch {
    read(&profile(&format!("{{routes: [{{name: a, condition: {text}}}]}}"))).routes.remove(0).condition
}

#[test]
fn the_guides_profile_is_read_letter_by_letter() {
    let spec = read(SEED);
    let status = |min, max, failure| ResponseClass {
        condition: ResponseMatch::Status(StatusRange::new(min, max).unwrap()),
        failure,
    };
    let condition = RequestMatch::All(vec![
        RequestMatch::Method("GET".to_owned()),
        RequestMatch::Path("/api/users".into()),
    ]);
    let route = Route {
        name: "GET /api/users".to_owned(),
        condition,
        classes: vec![status(200, 299, false), status(500, 599, true)],
        retryable: false,
        timeout: None,
    };
    assert_eq!(spec, Spec { routes: vec![route], ..Spec::default() });
}

#[test]
fn conditions_are_combined_as_linkerds_controller_does() {
    use RequestMatch::{All, Any, Not};
    let (get, path) = (|| RequestMatch::Method("GET".to_owned()), || RequestMatch::Path("/a".into()));
    for (text, expected) in [
        ("{method: get}", get()),
        ("{pathRegex: ' /a '}", path()),
        ("{not: {method: GET}}", Not(Box::new(get()))),
        ("{not: [{method: GET}]}", Not(Box::new(get()))),
        ("{all: []}", All(vec![])),
        ("{any: [{method: GET}, {pathRegex: /a}]}", Any(vec![get(), path()])),
        (
            "{pathRegex: /a, not: {pathRegex: /a}, method: GET, any: [{method: GET}], all: [{pathRegex: /a}]}",
            All(vec![All(vec![path()]), Any(vec![get()]), get(), Not(Box::new(path())), path()]),
        ),
        ("{method: GET, pathRegex: null}", get()),
        ("{method: PURGE}", RequestMatch::Method("PURGE".to_owned())),
    ] {
        assert_eq!(condition(text), expected, "{text}");
    }
}

#[test]
fn everything_else_that_a_profile_can_say() {
    let spec = read(&profile(
        "{routes: [{name: a, condition: {method: GET}, isRetryable: true, timeout: 1m30s,
            responseClasses: [{condition: {not: {any: [{status: {min: 404}}, {status: {max: 204}}]}}, isFailure: true}]},
          {name: b, condition: {method: PUT}, timeout: 0s}],
          retryBudget: {retryRatio: 0.5, minRetriesPerSecond: 3, ttl: 20s},
          dstOverrides: [{authority: A.shop.svc.cluster.local, weight: 500m}, {authority: 'b.shop.svc.cluster.local.:8080', weight: 0.5},
            {authority: c, weight: '0'}],
          opaquePorts: ['3306', 8000-8010, 25]}",
    ));
    let first = &spec.routes[0];
    assert_eq!((first.retryable, first.timeout), (true, Some(Duration::from_secs(90))));
    assert!(first.classes[0].failure && !first.classes[0].condition.matches(404));
    assert!(!first.classes[0].condition.matches(204) && first.classes[0].condition.matches(200));
    assert_eq!((spec.routes[1].retryable, spec.routes[1].timeout), (false, None));
    assert_eq!(spec.budget, Some(BudgetLimits::new(0.5, 3, Duration::from_secs(20)).unwrap()));
    let overrides: Vec<_> = spec.overrides.iter().map(|one| (one.authority.as_str(), one.weight)).collect();
    let expected = [("a.shop.svc.cluster.local", 5_000), ("b.shop.svc.cluster.local:8080", 5_000), ("c", 0)];
    assert_eq!(overrides, expected);
    assert_eq!(spec.opaque_ports.to_string(), "25,3306,8000-8010");
    assert_eq!(read(&profile("{}")), Spec::default());
}

#[test]
fn every_mistake_is_listed_at_once_with_its_path() {
    wrong(
        "{colour: red, routes: [
            {condition: {}, timeout: soon, isRetryable: 1, responseClasses: [{}, {condition: {status: {min: 99}}}]},
            {name: '', condition: {method: 'G T', pathRegex: '(', any: [{path: /a}, {method: 7}]}},
            {name: c, condition: {not: [{method: GET}, {method: PUT}]}, responseClasses: [{condition: {all: []}}]}],
          retryBudget: {retryRatio: -1, minRetriesPerSecond: 10, ttl: 10s},
          dstOverrides: [{authority: 'a:b', weight: -1}, {weight: 1e99}], opaquePorts: [0, '1,2', http]}",
        &[
            "spec.colour: unknown field; known are routes, retryBudget, dstOverrides, opaquePorts",
            "spec.routes[0].name: missing",
            "spec.routes[0].condition: a condition without a field; it needs at least one",
            "spec.routes[0].responseClasses[0].condition: missing",
            "spec.routes[0].responseClasses[1].condition.status: 99 is no HTTP status (100 to 599)",
            "spec.routes[0].isRetryable: expected true or false, found 1",
            "spec.routes[0].timeout: \"soon\" is no time such as 10s, 1m30s or 250ms",
            "spec.routes[1].name: empty",
            "spec.routes[1].condition.any[0].path: unknown field; known are all, any, not, method, pathRegex",
            "spec.routes[1].condition.any[0]: a condition without a field; it needs at least one",
            "spec.routes[1].condition.any[1].method: expected a text, found 7",
            "spec.routes[1].condition.method: \"G T\" is no method",
            "spec.routes[1].condition.pathRegex: no regular expression: unclosed group",
            "spec.routes[2].condition.not: expected an object, found a list",
            "spec.routes[2].responseClasses[0].condition.all: empty; a condition on responses needs something to hold",
            "spec.retryBudget.retryRatio: -1 is no ratio of retries to requests (0 to 1000)",
            "spec.dstOverrides[0].authority: \"a:b\" is no DNS name with or without a port",
            "spec.dstOverrides[0].weight: \"-1\" is no quantity from 0 to 429496, such as 1 or 500m",
            "spec.dstOverrides[1].authority: missing",
            "spec.dstOverrides[1].weight: \"1e+99\" is no quantity from 0 to 429496, such as 1 or 500m",
            "spec.opaquePorts[0]: \"0\" is no port (1 to 65535) and no range such as 8000-8010",
            "spec.opaquePorts[1]: \"1,2\" is no port (1 to 65535) and no range such as 8000-8010",
            "spec.opaquePorts[2]: \"http\" is no port (1 to 65535) and no range such as 8000-8010",
        ],
    );
}

#[test]
fn each_kind_of_mistake() {
    for (spec, expected) in [
        ("[]", "spec: expected an object, found a list"),
        ("null", "spec: missing"),
        ("{routes: {}}", "spec.routes: expected a list, found an object"),
        ("{routes: [GET]}", "spec.routes[0]: expected an object, found \"GET\""),
        (
            "{retryBudget: {retryRatio: 1, minRetriesPerSecond: 1, ttl: 61s}}",
            "spec.retryBudget.ttl: 61s is not between 1 s and 60 s",
        ),
        (
            "{retryBudget: {retryRatio: 1, minRetriesPerSecond: -1, ttl: 10s}}",
            "spec.retryBudget.minRetriesPerSecond: expected a whole number from 0 to 4294967295, found -1",
        ),
        (
            "{retryBudget: {retryRatio: 1, minRetriesPerSecond: 2147483648, ttl: 10s}}",
            "spec.retryBudget.minRetriesPerSecond: 2147483648 retries per second are more than 2147483647",
        ),
        (
            "{retryBudget: {retryRatio: much, minRetriesPerSecond: 1, ttl: 10s}}",
            "spec.retryBudget.retryRatio: expected a number",
        ),
        (
            "{routes: [{name: a, condition: {method: GET}, timeout: -1s}]}",
            "spec.routes[0].timeout: \"-1s\" is negative",
        ),
        (
            "{routes: [{name: a, condition: {method: GET}, responseClasses: [{condition: {status: {min: 500, max: 400}}}]}]}",
            "spec.routes[0].responseClasses[0].condition.status: max 400 is below min 500",
        ),
        ("{routes: [{name: a, condition: {pathRegex: ''}}]}", "spec.routes[0].condition.pathRegex: empty"),
        (
            "{dstOverrides: [{authority: a, weight: 429497}]}",
            "spec.dstOverrides[0].weight: \"429497\" is no quantity from 0 to 429496, such as 1 or 500m",
        ),
    ] {
        wrong(spec, &[expected]);
    }
}

#[test]
fn what_is_too_much_is_refused() {
    let routes = "{name: a, condition: {method: GET}},".repeat(1025);
    wrong(&format!("{{routes: [{routes}]}}"), &["spec.routes: 1025 items, more than 1024"]);
    let deep = format!("{}{{method: GET}}{}", "{not: ".repeat(16), "}".repeat(16));
    let path = format!("spec.routes[0].condition{}", ".not".repeat(16));
    let spec = format!("{{routes: [{{name: a, condition: {deep}}}]}}");
    wrong(&spec, &[&format!("{path}: conditions are nested deeper than 16")]);
    let long = format!("{{routes: [{{name: a, condition: {{pathRegex: '{}'}}}}]}}", "a".repeat(1 << 20));
    wrong(&long, &["spec.routes[0].condition.pathRegex: the pattern has 1048576 bytes, more than 4096"]);
    let many = "[7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7]";
    assert_eq!(parse(&profile(&format!("{{routes: {many}}}"))).unwrap_err().len(), 50);
}

#[test]
fn a_name_that_is_no_dns_name_is_refused() {
    for (name, shown) in [("Web.shop", "Web.shop"), ("-a", "-a"), ("a..b", "a..b")] {
        let text = profile("{}").replace("web.shop.svc.cluster.local", name);
        let error = parse(&text).unwrap_err()[0].to_string();
        let expected = format!(
            "document 1: ServiceProfile shop/{name}: metadata.name: {shown:?} is no DNS name such as web.shop.svc.cluster.local"
        );
        assert_eq!(error, expected);
    }
}

#[test]
fn a_field_beside_the_spec_is_refused() {
    let text = profile("{}").replace("spec: {}", "spec: {}, specs: {}");
    let error = parse(&text).unwrap_err()[0].to_string();
    assert!(error.ends_with("specs: unknown field; known are apiVersion, kind, metadata, spec"), "{error}");
}

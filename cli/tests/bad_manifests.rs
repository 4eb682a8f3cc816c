//! Whatever is written into a manifest, `remora check` says in few words what is wrong with it and where, and exits with 2.
#![expect(clippy::unwrap_used, reason = "clippy does not count the helpers of a test as a test")]

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

/// Longer than this no mistake needs to be, however long the text is that it is about.
const FEW: usize = 4000;
const SERVICE: &str = "{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}, spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: v2, namespace: shop}, spec: {clusterIP: 10.96.0.2, ports: [{port: 80}]}}";

/// A route of a kind, attached to a Service, with one rule.
fn route(kind: &str, name: &str, to: &str, rule: &str) -> String {
    let version = if kind == "TCPRoute" { "v1alpha2" } else { "v1" };
    format!(
        "{{apiVersion: gateway.networking.k8s.io/{version}, kind: {kind}, metadata: {{name: {name}, namespace: shop}}, spec: \
         {{parentRefs: [{{group: core, kind: Service, name: {to}, port: 80}}], rules: [{{{rule}}}]}}}}"
    )
}

fn http(rule: &str) -> String {
    route("HTTPRoute", "web", "web", rule)
}

fn matching(path: &str) -> String {
    http(&format!("matches: [{{path: {{type: RegularExpression, value: '{path}'}}}}]"))
}

fn profile(spec: &str) -> String {
    format!(
        "{{apiVersion: linkerd.io/v1alpha2, kind: ServiceProfile, metadata: {{name: web.shop.svc.cluster.local, namespace: shop}}, spec: {spec}}}"
    )
}

fn server(name: &str) -> String {
    format!(
        "{{apiVersion: policy.linkerd.io/v1beta3, kind: Server, metadata: {{name: {name}, namespace: shop}}, spec: {{podSelector: {{}}, port: 80}}}}"
    )
}

/// The exit code, and what is printed of a directory with two Services and this file.
fn check(text: &str) -> (Option<i32>, String) {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("services.yaml"), SERVICE).unwrap();
    fs::write(directory.path().join("it.yaml"), text).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_remora"))
        .args(["check", "--manifests"])
        .arg(directory.path())
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn every_mistake_has_its_place_and_few_words() {
    let long = "a".repeat(1 << 20);
    // Each line has ten times what the one before it has.
    let bomb: Vec<String> = (0..12)
        .map(|nth| format!("a{}: &a{} [{}]", nth + 1, nth + 1, vec![format!("*a{nth}"); 10].join(", ")))
        .collect();
    let bomb = format!("a0: &a0 x\n{}\n", bomb.join("\n"));
    let weight = |weight: &str| http(&format!("backendRefs: [{{name: web, port: 80, weight: {weight}}}]"));
    let timeout = |time: &str| http(&format!("timeouts: {{request: {time}}}"));
    for (text, words) in [
        // No YAML.
        ("{".to_owned(), &["it.yaml"][..]),
        ("a: b: c".to_owned(), &["it.yaml"]),
        ("\tkind: Service".to_owned(), &["it.yaml"]),
        ("kind: [1, 2".to_owned(), &["it.yaml"]),
        ("[]".to_owned(), &["it.yaml"]),
        (bomb, &["it.yaml"]),
        (http("").replace("{path", "&a [*a]") + "\n---\n&a [*a]", &["it.yaml"]),
        // Unknown fields.
        (http("colour: red"), &["spec.rules[0].colour"]),
        (http("backendRefs: [{name: web, prot: 80}]"), &["spec.rules[0].backendRefs[0].prot"]),
        (profile("{colour: red}"), &["spec.colour"]),
        (server("a").replace("podSelector", "podSelectors"), &["spec.podSelectors"]),
        // Numbers.
        (weight("2147483648"), &["spec.rules[0].backendRefs[0].weight", "1000000"]),
        (weight("-1"), &["spec.rules[0].backendRefs[0].weight"]),
        (weight("1.5"), &["spec.rules[0].backendRefs[0].weight"]),
        (weight("99999999999999999999999"), &["weight"]),
        (http("backendRefs: [{name: web, port: 80000}]"), &["spec.rules[0].backendRefs[0].port"]),
        // Patterns.
        (matching(&long), &["spec.rules[0].matches[0].path.value"]),
        (matching("(a{1000}){1000}"), &["spec.rules[0].matches[0].path.value", "no regular expression"]),
        (matching("("), &["spec.rules[0].matches[0].path.value", "no regular expression"]),
        (
            profile(&format!("{{routes: [{{name: a, condition: {{pathRegex: '{long}'}}}}]}}")),
            &["spec.routes[0].condition.pathRegex"],
        ),
        (
            http(&format!("matches: [{{headers: [{{name: a, type: RegularExpression, value: '{long}'}}]}}]")),
            &["spec.rules[0].matches[0].headers[0].value"],
        ),
        // Times.
        (timeout("soon"), &["spec.rules[0].timeouts.request", "soon"]),
        (timeout("-1s"), &["spec.rules[0].timeouts.request"]),
        (timeout("1.5s"), &["spec.rules[0].timeouts.request"]),
        (timeout("999999h"), &["spec.rules[0].timeouts.request"]),
        (timeout("{a: b}"), &["spec.rules[0].timeouts.request"]),
        (
            profile("{routes: [{name: a, condition: {method: GET}, timeout: soon}]}"),
            &["spec.routes[0].timeout"],
        ),
        // Far too much of something.
        (
            http(&format!("backendRefs: [{}]", vec!["{name: web, port: 80}"; 5000].join(", "))),
            &["spec.rules[0].backendRefs", "16"],
        ),
        (http(&format!("matches: [{}]", vec!["{method: GET}"; 5000].join(", "))), &["matches"]),
        (http(&format!("matches: [{{path: {{value: /{long}}}}}]")), &["spec.rules[0].matches[0].path.value"]),
    ] {
        let shown: String = text.chars().take(200).collect();
        let (code, said) = check(&text);
        assert_eq!(code, Some(2), "{shown}\n{said}");
        assert!(said.len() < FEW, "{} bytes about {shown}", said.len());
        let told: Vec<&str> = said.lines().filter(|line| line.starts_with("invalid: it.yaml")).collect();
        assert!(!told.is_empty(), "{shown}\n{said}");
        for word in words {
            assert!(told.iter().any(|line| line.contains(word)), "{word} of {shown}\n{said}");
        }
    }
}

#[test]
fn what_overlaps_is_in_conflict_where_only_one_can_hold() {
    let rule = "backendRefs: [{name: v2, port: 80}]";
    for (first, second, reason) in [
        (route("TCPRoute", "a", "web", rule), route("TCPRoute", "b", "web", rule), "RouteReasonConflicted"),
        (route("GRPCRoute", "a", "web", rule), route("HTTPRoute", "b", "web", rule), "RouteReasonConflicted"),
    ] {
        let (code, said) = check(&format!("{first}\n---\n{second}"));
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains(&format!("shop/b: {reason}")), "{said}");
    }
    let pod = "{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop}, spec: {containers: [{name: a, ports: [{containerPort: 80}]}]}, status: {podIP: 10.1.0.1}}";
    let (code, said) = check(&format!("{}\n---\n{}\n---\n{pod}", server("a"), server("b")));
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("Server shop/b: Conflicted"), "{said}");
    // Two routes that match alike both hold: the older one, or the first by name, has what both match.
    let alike = format!(
        "{}\n---\n{}",
        route("HTTPRoute", "a", "web", "matches: [{path: {value: /a}}]"),
        route("HTTPRoute", "b", "web", "matches: [{path: {value: /a}}]"),
    );
    assert_eq!(check(&alike).0, Some(0));
}

/// A backend's own routes do not count for what a route sends to it, and nobody asks where a split's Service splits again:
/// a circle is no circle.
#[test]
fn references_in_a_circle_end() {
    let to = |service: &str| format!("backendRefs: [{{name: {service}, port: 80}}]");
    let circle = format!(
        "{}\n---\n{}",
        route("HTTPRoute", "there", "web", &to("v2")),
        route("HTTPRoute", "back", "v2", &to("web")),
    );
    let itself = http("filters: [{type: RequestMirror, requestMirror: {backendRef: {name: web, port: 80}}}]");
    let split = |other: &str| {
        profile(&format!("{{dstOverrides: [{{authority: {other}.shop.svc.cluster.local, weight: 1}}]}}"))
    };
    let splits = format!("{}\n---\n{}", split("v2"), split("web").replace("name: web.", "name: v2."));
    for text in [circle, itself, splits] {
        let (code, said) = check(&text);
        assert_eq!(code, Some(0), "{text}\n{said}");
    }
}

#[test]
fn of_thousands_of_routes_as_many_hold_as_are_carried_and_the_others_say_so() {
    let routes: Vec<String> = (0..3000)
        .map(|nth| {
            route(
                "HTTPRoute",
                &format!("r{nth:04}"),
                "web",
                &format!("matches: [{{path: {{value: /{nth}}}}}]"),
            )
        })
        .collect();
    let began = Instant::now();
    let (code, said) = check(&routes.join("\n---\n"));
    let took = began.elapsed();
    assert_eq!(code, Some(2));
    assert!(took < Duration::from_mins(1), "{took:?}");
    let refused =
        said.lines().filter(|line| line.starts_with("false: ") && line.contains("RouteReasonConflicted"));
    assert_eq!(refused.count(), 3000 - 2048, "{}", said.lines().last().unwrap());
    assert!(said.contains("false: HTTPRoute shop/r2048: RouteReasonConflicted: "));
    assert!(!said.contains("false: HTTPRoute shop/r2047: "));
}

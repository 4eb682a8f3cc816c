//! What a scrape sees of routes and their backends.

use super::*;

fn resource(kind: &str, name: &str) -> ResourceRef {
    ResourceRef { kind: kind.into(), name: name.into(), namespace: "shop".into(), ..ResourceRef::default() }
}

fn families(registry: &Registry, budget: usize, hostnames: bool) -> RouteFamilies {
    RouteFamilies::register(registry, budget, hostnames)
}

const PARENT: &str = "parent_group=\"\",parent_kind=\"Service\",parent_name=\"web\",parent_namespace=\"shop\",parent_port=\"\",parent_section_name=\"\"";
const ROUTE: &str = "route_group=\"\",route_kind=\"HTTPRoute\",route_name=\"pages\",route_namespace=\"shop\"";
const BACKEND: &str = "backend_group=\"\",backend_kind=\"Service\",backend_name=\"web-v2\",backend_namespace=\"shop\",backend_port=\"\",backend_section_name=\"\"";

#[track_caller]
fn printed(registry: &Registry, line: &str) {
    let text = registry.render();
    assert!(text.lines().any(|one| one == line), "{line} is missing in {text}");
}

#[test]
fn a_backends_series_name_the_route_that_leads_to_it() {
    let registry = Registry::default();
    let backend = families(&registry, 10, false).backend(
        Kind::Http,
        &resource("Service", "web"),
        &resource("HTTPRoute", "pages"),
        &resource("Service", "web-v2"),
    );
    backend.requests.inc();
    let routed = Routed { route: None, backend: Some((backend, clock::now())) };
    routed.frame(1000);
    routed.ended(End { status: Some(204), ..End::default() }, clock::now());
    let labels = format!("{PARENT},{ROUTE},{BACKEND}");
    let family = "outbound_http_route_backend";
    printed(&registry, &format!("{family}_requests_total{{{labels}}} 1"));
    printed(
        &registry,
        &format!("{family}_response_statuses_total{{{labels},http_status=\"204\",error=\"\"}} 1"),
    );
    printed(&registry, &format!("{family}_response_duration_seconds_count{{{labels}}} 1"));
    printed(&registry, &format!("{family}_response_frame_size_bytes_sum{{{labels}}} 1000.0"));
}

#[test]
fn a_grpc_route_counts_grpc_statuses_by_name() {
    let registry = Registry::default();
    let families = families(&registry, 10, false);
    let route = families.route(Kind::Grpc, &resource("Service", "web"), &resource("HTTPRoute", "pages"));
    let routed = Routed { route: Some((route.of("web:80"), clock::now())), backend: None };
    routed.ended(End { status: Some(200), grpc: Some(7), error: None }, clock::now());
    route.of("web:80").failed(&Fault::NoEndpoint("web".into()), clock::now());
    let family = "outbound_grpc_route_request_statuses_total";
    for end in ["grpc_status=\"PERMISSION_DENIED\",error=\"\"", "grpc_status=\"UNKNOWN\",error=\"FAIL_FAST\""]
    {
        printed(&registry, &format!("{family}{{{PARENT},{ROUTE},{end}}} 1"));
    }
}

#[test]
fn hosts_are_labelled_where_that_is_wanted_and_beyond_the_budget_folded() {
    const BUDGET: usize = 5;
    for hostnames in [false, true] {
        let registry = Registry::default();
        let families = families(&registry, BUDGET, hostnames);
        let route = families.route(Kind::Http, &resource("Service", "web"), &resource("HTTPRoute", "pages"));
        for nth in 0..3 * KEPT_HOSTS {
            let series = route.of(&format!("Host-{nth}.example:80"));
            Routed { route: Some((series, clock::now())), backend: None }
                .ended(End { status: Some(200), ..End::default() }, clock::now());
        }
        let text = registry.render();
        let family = "outbound_http_route_request_statuses_total";
        let lines: Vec<&str> = text.lines().filter(|line| line.starts_with(family)).collect();
        let total: usize =
            lines.iter().map(|line| line.rsplit_once(' ').unwrap().1.parse::<usize>().unwrap()).sum();
        assert_eq!(total, 3 * KEPT_HOSTS, "every request is counted: {lines:?}");
        assert_eq!(lines.len(), if hostnames { BUDGET + 1 } else { 1 }, "{lines:?}");
        assert_eq!(text.contains("hostname=\"host-0.example\""), hostnames, "{text}");
        assert_eq!(text.contains(&format!("{family}{{overflow=\"true\"}}")), hostnames, "{text}");
    }
}

#[test]
fn a_host_name_is_a_name() {
    for (authority, name) in [
        ("web", Some("web")),
        ("web.shop.svc:8080", Some("web.shop.svc")),
        ("10.1.2.3:80", None),
        ("[fd00::1]:80", None),
        ("fd00::1", None),
        ("", None),
        ("sp ace", None),
        ("user@host", None),
    ] {
        assert_eq!(host_name(authority), name, "{authority}");
    }
    assert_eq!(host_name(&"a".repeat(254)), None);
}

#[test]
fn retries_are_counted_by_what_was_decided() {
    let registry = Registry::default();
    let families = families(&registry, 10, false);
    let retries = families.retries(Kind::Http, &resource("Service", "web"), &resource("HTTPRoute", "pages"));
    let again = Decision::Again(Duration::ZERO);
    for (decision, made) in [
        (again, 0),
        (again, 1),
        (Decision::Not(Reason::Answered), 2),
        (Decision::Not(Reason::Answered), 0),
        (Decision::Not(Reason::Limit), 2),
        (Decision::Not(Reason::BodyTooLong), 0),
        (Decision::Not(Reason::Hopeless), 0),
    ] {
        retries.count(decision, made);
    }
    for (family, count) in [("requests", 2), ("successes", 1), ("limit_exceeded", 1), ("overflow", 1)] {
        printed(&registry, &format!("outbound_http_route_retry_{family}_total{{{PARENT},{ROUTE}}} {count}"));
    }
}

#[test]
fn what_a_route_answers_itself_counts_by_its_status() {
    let registry = Registry::default();
    let families = families(&registry, 10, false);
    let route = families.route(Kind::Http, &resource("Service", "web"), &resource("HTTPRoute", "pages"));
    let injected = Fault::Injected { with: FailWith::Http(503), message: "no".into() };
    let redirected = Fault::Redirected { status: http::StatusCode::FOUND, location: "http://web/".into() };
    for fault in [injected, redirected] {
        route.of("web:80").failed(&fault, clock::now());
    }
    let family = "outbound_http_route_request_statuses_total";
    for status in [302, 503] {
        printed(&registry, &format!("{family}{{{PARENT},{ROUTE},http_status=\"{status}\",error=\"\"}} 1"));
    }
}

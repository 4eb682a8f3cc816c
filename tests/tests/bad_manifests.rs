//! A manifest with a mistake changes nothing: its file's last good version holds for every proxy, the mistake is told by
//! name, and what mends it holds at once.

use std::fmt::Write as _;

use remora_tests::check;
use remora_tests::shop::{self, PATIENCE, SHOP, curl};
use remora_tests::wire::{client, kit};
use serde_json::Value;

/// A route of `web` that sends everything to another Service.
fn route(name: &str, rules: &str) -> String {
    format!(
        "{{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {{name: {name}, namespace: {SHOP}}}, spec: \
         {{parentRefs: [{{group: core, kind: Service, name: web, port: 8080}}], rules: [{rules}]}}}}\n"
    )
}

fn to(service: &str) -> String {
    route("by-hand", &format!("{{backendRefs: [{{name: {service}, port: 8080}}]}}"))
}

#[test]
fn the_last_good_version_of_a_route_holds_whatever_comes_after_it() {
    if !check::can_run() {
        return;
    }
    let pods = ["web", "v2", "v3"].map(|name| kit(name, 8080, "http", &[]));
    let mesh = shop::open(&[&pods[..], &[client("client", &[])]].concat()).unwrap();
    let (client, destination) =
        (mesh.pod(SHOP, "client").unwrap(), mesh.pod("remora", "remora-destination").unwrap());
    let file = mesh.manifests().join("by-hand.yaml");
    let server = || -> String {
        let told = curl(&client, &["http://web:8080/"]).unwrap();
        serde_json::from_str::<Value>(&told).unwrap()["server"].as_str().unwrap().to_owned()
    };
    let errors = || -> String {
        let text = curl(&destination, &["-f", "http://127.0.0.1:9996/state.json"]).unwrap();
        let state: Value = serde_json::from_str(&text).unwrap();
        let errors = state.pointer("/manifests/files/by-hand.yaml/errors").cloned();
        errors.filter(|errors| errors != &Value::Array(Vec::new())).unwrap_or_default().to_string()
    };
    std::fs::write(&file, to("v2")).unwrap();
    mesh.wait_until("the route holds", PATIENCE, || server() == "v2").unwrap();

    let v3 = "backendRefs: [{name: v3, port: 8080, weight: 2147483648}]";
    let pattern = "a".repeat(1 << 20);
    for (text, word) in [
        ("{kind: HTTPRoute".to_owned(), "by-hand"),
        (to("v3").replace("rules", "colour: red, rules"), "spec.colour"),
        (route("by-hand", &format!("{{{v3}}}")), "weight"),
        (route("by-hand", "{timeouts: {request: soon}, backendRefs: [{name: v3, port: 8080}]}"), "soon"),
        (
            route(
                "by-hand",
                &format!(
                    "{{matches: [{{path: {{type: RegularExpression, value: '{pattern}'}}}}], backendRefs: [{{name: v3, port: 8080}}]}}"
                ),
            ),
            "path.value",
        ),
        // One of two documents.
        (format!("{}---\n{{kind: Service, apiVersion: v1, metadata: 7}}\n", to("v3")), "document 2"),
    ] {
        std::fs::write(&file, text).unwrap();
        let what = format!("{word} to be named");
        mesh.wait_until(&what, PATIENCE, || {
            let errors = errors();
            errors != "null" && (word == "by-hand" || errors.contains(word))
        })
        .unwrap();
        assert!(errors().len() < 4000, "{} bytes about {word}", errors().len());
        assert_eq!(server(), "v2", "after {word}");
    }
    std::fs::write(&file, to("v3")).unwrap();
    mesh.wait_until("the mended route holds", PATIENCE, || server() == "v3").unwrap();
    assert_eq!(errors(), "null");
}

#[test]
fn thousands_of_routes_hold_as_far_as_they_are_carried_and_others_are_served() {
    if !check::can_run() {
        return;
    }
    let pods = ["web", "v2"].map(|name| kit(name, 8080, "http", &[]));
    let mesh = shop::open(&[&pods[..], &[client("client", &[])]].concat()).unwrap();
    let (client, destination) =
        (mesh.pod(SHOP, "client").unwrap(), mesh.pod("remora", "remora-destination").unwrap());
    let server = |path: &str| -> String {
        let told = curl(&client, &[&format!("http://web:8080{path}")]).unwrap_or_default();
        serde_json::from_str::<Value>(&told)
            .map_or_else(|_| "nobody".into(), |told| told["server"].to_string())
    };
    let mut routes = String::new();
    for nth in 0..3000 {
        let rule =
            format!("{{matches: [{{path: {{value: /r{nth}}}}}], backendRefs: [{{name: v2, port: 8080}}]}}");
        let _ = writeln!(routes, "{}---", route(&format!("r{nth:04}"), &rule));
    }
    // What is beside them.
    routes.push_str(&route(
        "a-first",
        "{matches: [{path: {value: /}}], backendRefs: [{name: web, port: 8080}]}",
    ));
    std::fs::write(mesh.manifests().join("many.yaml"), routes).unwrap();
    mesh.wait_until("the first of them holds", PATIENCE, || server("/r0/x") == "\"v2\"").unwrap();
    assert_eq!(server("/r500"), "\"v2\"");
    assert_eq!(server("/other"), "\"web\"");
    assert_eq!(server("/r2999"), "\"web\"", "beyond what is carried");
    let text = curl(&destination, &["-f", "http://127.0.0.1:9996/state.json"]).unwrap();
    let state: Value = serde_json::from_str(&text).unwrap();
    let refused = state["routes"]
        .as_object()
        .unwrap()
        .values()
        .filter(|route| route.to_string().contains("RouteReasonConflicted"));
    // By their number, or before that by their bytes.
    assert!(refused.count() >= 3001 - 2048);
}

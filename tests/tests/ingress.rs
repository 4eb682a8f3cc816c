//! In ingress mode a gateway's requests go to the Service that they name, by its routes and its profile; everybody else's go
//! where they are addressed. Contract 4.9.
#![expect(clippy::unwrap_used, reason = "a test says what it expects")]

use remora_tests::shop::{self, PATIENCE, SHOP, curl};
use remora_tests::wire::{address, client, connect, count, kit, read_until};
use remora_tests::{Mesh, PodRef, check};
use serde_json::Value;
use std::io::Write as _;
use std::sync::LazyLock;

const INGRESS: (&str, &str) = ("linkerd.io/inject", "ingress");
const WEB: &str = "web.shop.svc.cluster.local:8080";

static MESH: LazyLock<Mesh> = LazyLock::new(|| {
    let few = r#"[{"name":"REMORA_PROXY_MAX_TARGETS","value":"4"}]"#;
    let opaque = ("config.linkerd.io/opaque-ports", "8080");
    let pods = [
        kit("web", 8080, "http", &[]),
        kit("v2", 8080, "http", &[]),
        kit("other", 8080, "http", &[]),
        kit("opaque", 8080, "http", &[opaque]),
        kit("bytes", 7000, "echo", &[("config.linkerd.io/opaque-ports", "7000")]),
        client("gateway", &[INGRESS]),
        client("small", &[INGRESS, ("config.linkerd.io/proxy-additional-env", few)]),
        client("client", &[]),
    ];
    let mesh = shop::open(&pods).unwrap();
    mesh.apply(OBJECTS).unwrap();
    mesh
});

const OBJECTS: &str = "
kind: HTTPRoute
apiVersion: gateway.networking.k8s.io/v1
metadata: {name: canary, namespace: shop}
spec:
  parentRefs: [{group: core, kind: Service, name: web, port: 8080}]
  rules:
  - matches: [{headers: [{name: x-canary, value: 'yes'}]}]
    backendRefs: [{name: v2, port: 8080}]
  - {}
---
kind: ServiceProfile
apiVersion: linkerd.io/v1alpha2
metadata: {name: v2.shop.svc.cluster.local, namespace: shop}
spec:
  routes: [{name: everything, condition: {pathRegex: '.*'}}]
";

#[test]
fn a_request_goes_to_the_service_that_it_names_by_its_routes_and_its_profile() {
    let Some(gateway) = ready() else { return };
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        // Whatever is declared of the address that is dialled.
        for dialled in ["other", "opaque"] {
            let url = format!("http://{dialled}:8080/");
            let asked = |headers: &[&str]| told(&gateway, &[&[version, &*url], headers].concat());
            let named = format!("l5d-dst-override: {WEB}");
            assert_eq!(asked(&["-H", &named])["server"], "web", "{dialled} {version}");
            assert_eq!(asked(&["-H", &named, "-H", "x-canary: yes"])["server"], "v2", "{dialled} {version}");
            assert_eq!(asked(&[])["server"], dialled, "without a name it goes where it is addressed");
            assert!(!asked(&["-H", &named])["headers"].to_string().contains("l5d-dst-override"));
        }
    }
    let of_profile = [("dst", "v2.shop.svc.cluster.local:8080"), ("rt_route", "everything")];
    let before = count(&gateway, "route_request_total", &of_profile).unwrap();
    let named = "l5d-dst-override: V2.shop.svc.cluster.local.:8080";
    assert_eq!(told(&gateway, &["-H", named, "http://other:8080/"])["server"], "v2");
    assert!(count(&gateway, "route_request_total", &of_profile).unwrap() > before, "by its profile");
}

#[test]
fn what_names_no_service_is_refused() {
    let Some(gateway) = ready() else { return };
    for (name, expected) in [
        ("10.0.0.1:80", 400),
        ("example.org:80", 400),
        ("web", 400),
        ("nobody.shop.svc.cluster.local:80", 500),
    ] {
        assert_eq!(code(&gateway, name), expected, "{name}");
    }
}

#[test]
fn elsewhere_the_header_is_removed_and_nothing_more() {
    if ready().is_none() {
        return;
    }
    let client = pod("client");
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let named = format!("l5d-dst-override: {WEB}");
        let told = told(&client, &[version, "-H", &named, "http://other:8080/"]);
        assert_eq!(told["server"], "other");
        assert!(!told["headers"].to_string().contains("l5d-dst-override"), "{told}");
    }
}

#[test]
fn bytes_go_where_they_are_addressed() {
    let Some(gateway) = ready() else { return };
    for (server, port) in [("bytes", 7000), ("other", 8080)] {
        let mut stream = connect(&gateway, address(&MESH, server, port).unwrap()).unwrap();
        stream.write_all(b"\0no request\r\n\r\n").unwrap();
        let answer = read_until(&mut stream, b"\r\n\r\n");
        // The other one is asked for HTTP and says that this is none.
        assert_eq!(
            answer.is_ok_and(|answer| answer == b"\0no request\r\n\r\n"),
            server == "bytes",
            "{server}"
        );
    }
}

#[test]
fn names_that_requests_make_up_are_bounded() {
    if ready().is_none() {
        return;
    }
    let small = pod("small");
    let codes: Vec<u16> =
        (0..12).map(|n| code(&small, &format!("made-up-{n}.shop.svc.cluster.local:80"))).collect();
    assert!(codes.contains(&503) && codes.iter().all(|code| [500, 503].contains(code)), "{codes:?}");
    assert!(count(&small, "remora_outbound_targets_refused_total", &[]).unwrap() > 0.0);
    // When they are forgotten, there is room again.
    MESH.wait_until("room for a real one", PATIENCE, || code(&small, WEB) == 200).unwrap();
}

/// The gateway, when it knows of route and profile.
fn ready() -> Option<PodRef<'static>> {
    if !check::can_run() {
        return None;
    }
    let gateway = pod("gateway");
    let named = format!("l5d-dst-override: {WEB}");
    MESH.wait_until("the route", PATIENCE, || {
        let told = told(&gateway, &["-H", &named, "-H", "x-canary: yes", "http://other:8080/"]);
        told.get("server").is_some_and(|server| server == "v2")
    })
    .unwrap();
    Some(gateway)
}

/// The status of a request that names this.
fn code(from: &PodRef<'_>, name: &str) -> u16 {
    let named = format!("l5d-dst-override: {name}");
    let sent = ["-o", "/dev/null", "-w", "%{http_code}", "-H", &named, "http://other:8080/"];
    curl(from, &sent).unwrap().parse().unwrap()
}

/// What the server says that it was asked.
fn told(from: &PodRef<'_>, arguments: &[&str]) -> Value {
    serde_json::from_str(&curl(from, arguments).unwrap()).unwrap()
}

fn pod(name: &str) -> PodRef<'static> {
    MESH.pod(SHOP, name).unwrap()
}

//! A gateway dials pods, not Services: the routes and the profile of the pod's Service hold all the same, and the pod that
//! it chose is kept unless a route moves the request. Design, "Pod IPs".
#![expect(clippy::unwrap_used, reason = "a test says what it expects")]

use remora_tests::shelf::{self, REPLICAS, SHELF, ZOO};
use remora_tests::shop::{self, PATIENCE, SHOP, curl, state};
use remora_tests::wire::{client, count};
use remora_tests::{Mesh, PodRef, check};
use std::net::SocketAddr;
use std::sync::LazyLock;

/// It asks in Linkerd's API alone.
const LINKERDS: (&str, &str) =
    ("config.linkerd.io/proxy-additional-env", r#"[{"name":"REMORA_PROXY_API","value":""}]"#);

static MESH: LazyLock<Mesh> = LazyLock::new(|| {
    let clients = [client("gateway", &[]), client("linkerds", &[LINKERDS]), client("bytes", &[])];
    let mesh = shop::open(&[&shelf::pods()[..], &clients].concat()).unwrap();
    mesh.apply(shelf::OBJECTS).unwrap();
    mesh
});

#[test]
fn a_pod_that_is_dialled_is_kept_and_its_services_route_holds() {
    for gateway in ["gateway", "linkerds"] {
        let Some(gateway) = ready(gateway) else { return };
        for version in ["--http1.1", "--http2-prior-knowledge"] {
            for replica in REPLICAS {
                let url = format!("http://{}/", address(replica));
                let asked = ["-H", "Host: shop.example", "-D", "-", version, &url];
                for _ in 0..5 {
                    let answer = curl(&gateway, &asked).unwrap();
                    assert!(answer.contains(&served_by(replica)), "{replica} is kept, {version}: {answer}");
                    assert!(answer.contains("x-by: shelf"), "by the route, {version}: {answer}");
                    let moved = curl(&gateway, &[&asked[..], &["-H", "x-canary: yes"]].concat()).unwrap();
                    assert!(moved.contains(&served_by("v2")), "{version}: {moved}");
                }
            }
        }
        let routed = [("parent_name", "shelf"), ("route_name", "canary")];
        assert!(count(&gateway, "outbound_http_route_request_statuses_total", &routed).unwrap() > 0.0);
    }
    let gateway = pod("gateway");
    let told = [("service", SHELF)];
    assert!(count(&gateway, "remora_outbound_pod_address_connections_total", &told).unwrap() >= 8.0);
    let state = state(&gateway).unwrap();
    let policies = &state["outbound"]["policies"];
    assert_eq!(
        policies[address("shelf-0").to_string()]["podOf"],
        serde_json::json!([SHELF, ZOO]),
        "{policies}"
    );
}

#[test]
fn of_several_services_the_host_names_one_and_its_profile_counts() {
    let Some(gateway) = ready("gateway") else { return };
    let of_profile = [("direction", "outbound"), ("dst", ZOO), ("rt_route", "everything")];
    let counted = || count(&gateway, "route_request_total", &of_profile).unwrap();
    let url = format!("http://{}/", address("shelf-1"));
    for (host, expected) in
        [("zoo", 1.0), ("ZOO.shop.svc.cluster.local.:8001", 1.0), ("shop.example", 0.0), ("zoo.other", 0.0)]
    {
        let before = counted();
        let answer = curl(&gateway, &["-D", "-", "-H", &format!("Host: {host}"), &url]).unwrap();
        assert!(answer.contains(&served_by("shelf-1")), "the pod is kept: {answer}");
        assert_eq!(answer.contains("x-by: shelf"), expected == 0.0, "{host}: {answer}");
        assert!((counted() - before - expected).abs() < 0.5, "{host}");
    }
    // In the set of the pod's Services only: the route of another one is nobody's to choose.
    let answer = curl(&gateway, &["-D", "-", "-H", "Host: v2", &url]).unwrap();
    assert!(answer.contains("x-by: shelf") && answer.contains(&served_by("shelf-1")), "{answer}");
}

#[test]
fn a_service_that_comes_later_is_followed() {
    let Some(gateway) = ready("bytes") else { return };
    let to = SocketAddr::new(pod("v2").ip().unwrap(), 8080);
    let known = || state(&gateway).unwrap()["outbound"]["policies"][to.to_string()]["podOf"].clone();
    let asked = || curl(&gateway, &[&format!("http://{to}/")]).unwrap();
    MESH.wait_until("its own Service", PATIENCE, || {
        asked();
        known() == serde_json::json!(["v2.shop.svc.cluster.local:8080"])
    })
    .unwrap();
    MESH.apply(LATER).unwrap();
    MESH.wait_until("the other one", PATIENCE, || {
        asked();
        known().as_array().is_some_and(|services| services.len() == 2)
    })
    .unwrap();
}

const LATER: &str = "
kind: Service
apiVersion: v1
metadata: {name: later, namespace: shop}
spec: {selector: {app: v2}, ports: [{name: http, port: 1, targetPort: 8080}]}
";

/// The pod, when it knows of the route.
fn ready(name: &str) -> Option<PodRef<'static>> {
    if !check::can_run() {
        return None;
    }
    let gateway = pod(name);
    let url = format!("http://{}/", address("shelf-0"));
    let by_route = || curl(&gateway, &["-D", "-", &url]).is_ok_and(|answer| answer.contains("x-by: shelf"));
    MESH.wait_until("the route", PATIENCE, by_route).unwrap();
    Some(gateway)
}

/// What this pod says of itself in its answers.
fn served_by(pod: &str) -> String {
    format!(r#""server":"{pod}""#)
}

fn address(replica: &str) -> SocketAddr {
    SocketAddr::new(pod(replica).ip().unwrap(), 8080)
}

fn pod(name: &str) -> PodRef<'static> {
    MESH.pod(SHOP, name).unwrap()
}

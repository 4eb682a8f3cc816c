//! A Service is asked no more at once than it wants to be: what exceeds its limits gets 503 with the limit's name, and the
//! rest is served. `docs/balancing.md`, "Limits".
#![expect(clippy::indexing_slicing, clippy::unwrap_used, reason = "a test says what it expects")]

use remora_tests::shop::{self, PATIENCE, SHOP, curl, status};
use remora_tests::{App, Mesh, PodRef, check};
use std::sync::LazyLock;

const REFUSED: &str = "remora_outbound_limited_total";
/// The Services, each on a port of its own of both replicas; `nobody` has none.
const SERVICES: [(&str, u16, &str); 4] = [
    ("streams", 8081, "limits.remora.io/concurrent-streams: '2'"),
    ("connections", 8082, "limits.remora.io/connections: '2'"),
    // In turn, so that each request needs another connection than the one before it.
    ("single", 8083, "limits.remora.io/connections: '1', balancer.remora.io/strategy: round-robin"),
    ("nobody", 8084, "limits.remora.io/pending-requests: '1'"),
];

#[test]
fn requests_beyond_the_limit_are_refused_until_others_have_ended() {
    exceeds("streams", 8081, "concurrent-streams");
}

#[test]
fn connections_beyond_the_limit_are_refused_until_others_have_closed() {
    exceeds("connections", 8082, "connections");
}

#[test]
fn an_idle_connection_makes_room_for_one_to_another_endpoint() {
    if !check::can_run() {
        return;
    }
    let (client, apps) = enter("single", 8083);
    // One after the other, by HTTP/1 and HTTP/2, to two replicas over one connection at a time.
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        for nth in 1..=20 {
            let sent = ["-o", "/dev/null", "-w", "%{http_code}", version, "http://single/"];
            assert_eq!(curl(&client, &sent).unwrap(), "200", "{version}: request {nth}");
        }
    }
    assert!(apps.iter().all(|app| app.requests() >= 15), "{:?}", apps.each_ref().map(App::requests));
}

#[test]
fn no_more_requests_wait_than_may() {
    if !check::can_run() {
        return;
    }
    let client = MESH.pod(SHOP, "client-nobody").unwrap();
    let how = ["-o", "/dev/null", "-w", "%{http_code}\n", "--parallel", "--parallel-immediate"];
    let sent = [&how[..], &["--parallel-max", "5", "http://nobody/?[1-5]"]].concat();
    let codes = curl(&client, &sent).unwrap();
    let mut codes: Vec<_> = codes.lines().collect();
    codes.sort_unstable();
    // One waited for an endpoint.
    assert_eq!(codes, ["503", "503", "503", "503", "504"]);
    assert_eq!(refused(&client, "pending-requests"), 4);
}

/// With two answers that are held, a third request is one too many.
#[track_caller]
fn exceeds(name: &str, port: u16, limit: &str) {
    if !check::can_run() {
        return;
    }
    let (client, apps) = enter(name, port);
    let url = format!("http://{name}/");
    let before: usize = apps.iter().map(App::requests).sum();
    std::thread::scope(|scope| {
        let hold = || curl(&client, &[&format!("{url}hold")]).unwrap();
        let held: Vec<_> = (0..2).map(|_| scope.spawn(hold)).collect();
        let begun = || apps.iter().map(App::requests).sum::<usize>() == before + 2;
        MESH.wait_until("both to be under way", PATIENCE, begun).unwrap();
        let (code, error) = status(&client, &url).unwrap();
        let told = format!("takes no more than 2 {limit} from this proxy (limits.remora.io/{limit})");
        assert!(code == 503 && error.contains(&told), "{code} {error}");
        assert_eq!(refused(&client, limit), 1);
        let errors = client.metrics().unwrap().count("outbound_http_errors_total", &[("error", limit)]);
        assert_eq!(errors, 1);
        assert!(MESH.logs(&client, "linkerd-proxy").contains(&told), "it is not in the log");
        apps.iter().for_each(App::release);
        for held in held {
            assert!(held.join().unwrap().ends_with("ended\n"));
        }
    });
    MESH.wait_until("requests to be served again", PATIENCE, || status(&client, &url).unwrap().0 == 200)
        .unwrap();
}

static MESH: LazyLock<Mesh> = LazyLock::new(|| {
    let second = shop::idle("second", &[]).replace("labels: {app: second}", "labels: {app: web}");
    let mut objects = vec![shop::idle("web", &[]), second];
    for (name, port, annotation) in SERVICES {
        objects.push(shop::idle(&format!("client-{name}"), &[]));
        let app = if name == "nobody" { name } else { "web" };
        objects.push(format!(
            "
kind: Service
apiVersion: v1
metadata: {{name: {name}, namespace: shop, annotations: {{{annotation}}}}}
spec: {{selector: {{app: {app}}}, ports: [{{name: main, port: 80, targetPort: {port}}}]}}
---
"
        ));
    }
    shop::open(&objects).unwrap()
});

/// A client, and the applications of both replicas, of which it has heard.
fn enter(name: &str, port: u16) -> (PodRef<'static>, [App; 2]) {
    let pods = ["web", "second"].map(|pod| MESH.pod(SHOP, pod).unwrap());
    let apps = pods.each_ref().map(|pod| App::start(pod, port, &pod.name.name).unwrap());
    let client = MESH.pod(SHOP, &format!("client-{name}")).unwrap();
    let ips = pods.map(|pod| pod.ip().unwrap().to_string());
    MESH.wait_until("both replicas to be known", PATIENCE, || {
        status(&client, &format!("http://{name}/")).unwrap().0 == 200 && {
            let state = shop::state(&client).unwrap()["outbound"]["workers"].to_string();
            ips.iter().all(|ip| state.contains(ip.as_str()))
        }
    })
    .unwrap();
    (client, apps)
}

fn refused(client: &PodRef<'_>, limit: &str) -> u64 {
    client.metrics().unwrap().count(REFUSED, &[("limit", limit)])
}

//! Clients follow what the cluster becomes: pods that come, go, die and hang, ports by name and by protocol, and a
//! control plane that is away.
#![expect(clippy::unwrap_used, reason = "a test says what it expects")]

use remora_tests::shop::{self, PATIENCE, SHOP, curl, state, status, web};
use remora_tests::{App, Mesh, PodRef, Signal, check};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Within which a change is followed.
const AT_ONCE: Duration = Duration::from_secs(1);

#[test]
fn endpoints_that_come_and_go_are_followed_under_load_and_share_it() {
    if !check::can_run() {
        return;
    }
    let mesh = shop::open(&[web("web-0"), web("web-1"), shop::idle("client", &[])]).unwrap();
    let client = mesh.pod(SHOP, "client").unwrap();
    let load = shop::customers(&mesh, &client).unwrap();
    wait(&mesh, "200 answers", || load.tally().answered() >= 200);
    let shared = load.take();
    for replica in ["web-0", "web-1"] {
        assert!(
            shared.from(replica) * 4 >= shared.answered(),
            "{replica} has less than a quarter: {shared:?}"
        );
    }

    mesh.apply(&web("web-2")).unwrap();
    let added = mesh.pod(SHOP, "web-2").unwrap();
    wait(&mesh, "web-2 to be ready", || added.is_ready());
    mesh.wait_until("web-2 to be asked", AT_ONCE, || load.tally().from("web-2") > 0).unwrap();

    let leaving = Instant::now();
    mesh.pod(SHOP, "web-0").unwrap().delete().unwrap();
    assert!(
        leaving.elapsed() < Duration::from_secs(5),
        "an idle pod is gone at once: {:?}",
        leaving.elapsed()
    );
    load.take();
    wait(&mesh, "100 more answers", || load.tally().answered() >= 100);
    let tally = load.finish().unwrap();
    assert_eq!(tally.from("web-0"), 0, "a pod that is gone answered: {tally:?}");
    assert_eq!((tally.failed, shared.failed), (0, 0), "{tally:?} {shared:?}");
}

#[test]
fn a_replica_that_dies_or_hangs_is_passed_over() {
    if !check::can_run() {
        return;
    }
    let mesh = shop::open(&[web("web-0"), web("web-1"), shop::idle("client", &[])]).unwrap();
    let client = mesh.pod(SHOP, "client").unwrap();
    let load = shop::customers(&mesh, &client).unwrap();
    wait(&mesh, "both replicas", || ["web-0", "web-1"].iter().all(|name| load.tally().from(name) >= 20));

    mesh.pod(SHOP, "web-0").unwrap().signal("linkerd-proxy", Signal::KILL).unwrap();
    load.take();
    wait(&mesh, "100 answers of the other one", || load.tally().from("web-1") >= 100);
    wait(&mesh, "the dead one to be back", || load.tally().from("web-0") >= 10);
    let died = load.take();
    assert!(died.failed <= 6, "more than what was under way: {died:?}");

    let hanging = mesh.pod(SHOP, "web-0").unwrap();
    hanging.signal("linkerd-proxy", Signal::STOP).unwrap();
    // Each of the six clients may have met it once: it was as good as the other one until then.
    wait(&mesh, "100 answers of the other one", || load.tally().from("web-1") >= 100);
    hanging.signal("linkerd-proxy", Signal::CONT).unwrap();
    // How soon it is asked again is the load estimate's business: it forgets a peak within a minute or so.
    let hung = load.finish().unwrap();
    assert!(hung.failed <= 6, "more than one failure for each client: {hung:?}");
}

#[test]
fn a_service_of_which_every_endpoint_refuses_fails_fast_until_one_accepts() {
    if !check::can_run() {
        return;
    }
    let closed = shop::idle("closed", &[("linkerd.io/inject", "disabled")]);
    let mesh = shop::open(&[closed, shop::service("closed", 80, "8080"), shop::idle("client", &[])]).unwrap();
    let (client, server) = (mesh.pod(SHOP, "client").unwrap(), mesh.pod(SHOP, "closed").unwrap());
    let (code, error) = status(&client, "http://closed/").unwrap();
    assert_eq!(code, 502, "{error}");
    let failfast = (504, "no endpoint of closed.shop.svc.cluster.local:80 is available".to_owned());
    wait(&mesh, "failfast", || status(&client, "http://closed/").unwrap() == failfast);
    let _app = App::start(&server, 8080, "closed").unwrap();
    wait(&mesh, "an answer", || status(&client, "http://closed/").unwrap().0 == 200);
}

#[test]
fn ports_are_found_by_name_and_pods_by_address_and_a_headless_name() {
    if !check::can_run() {
        return;
    }
    let mesh = shop::open(&[web("web-0"), shop::idle("client", &[]), HEADLESS.into()]).unwrap();
    let client = mesh.pod(SHOP, "client").unwrap();
    let server = mesh.pod(SHOP, "web-0").unwrap();
    let ip = server.ip().unwrap();
    let direct = format!("http://{ip}:80/");
    for (nth, url) in [(1, "http://web:8000/"), (2, &direct), (3, "http://web-headless:80/")] {
        assert_eq!(curl(&client, &[url]).unwrap(), "web-0\n", "{url}");
        assert_eq!(meshed(&server), nth, "{url} came without mutual TLS");
    }
}

const HEADLESS: &str = "
kind: Service
apiVersion: v1
metadata: {name: web-headless, namespace: shop}
spec:
  clusterIP: None
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 80}]
---
";

#[test]
fn a_service_without_selector_has_the_endpoints_of_its_slices() {
    if !check::can_run() {
        return;
    }
    let mesh = shop::open(&[web("web-0"), web("web-1"), shop::idle("client", &[])]).unwrap();
    let client = mesh.pod(SHOP, "client").unwrap();
    let servers = ["web-0", "web-1"].map(|name| mesh.pod(SHOP, name).unwrap());
    let said = || curl(&client, &["http://by-slice:8000/"]).unwrap_or_else(|error| error.to_string());
    mesh.apply(BY_SLICE).unwrap();
    for (server, other) in [(&servers[0], &servers[1]), (&servers[1], &servers[0])] {
        let name = &server.name.name;
        mesh.apply(&slice(server, true)).unwrap();
        wait(&mesh, name, || said() == format!("{name}\n"));
        let (own, others) = (meshed(server), meshed(other));
        assert!(own > 0, "{name} was not asked over mutual TLS, with the identity of the slice's pod");
        for _ in 0..5 {
            assert_eq!(said(), format!("{name}\n"));
        }
        assert_eq!((meshed(server), meshed(other)), (own + 5, others), "the slice names {name} alone");
    }
    mesh.apply(&slice(&servers[1], false)).unwrap();
    wait(&mesh, "no endpoint", || {
        status(&client, "http://by-slice:8000/").is_ok_and(|(code, _)| code == 504)
    });
}

const BY_SLICE: &str = "
kind: Service
apiVersion: v1
metadata: {name: by-slice, namespace: shop}
spec: {ports: [{name: http, port: 8000}]}
";

/// The one slice of that Service, with this pod.
fn slice(pod: &PodRef<'_>, ready: bool) -> String {
    format!(
        "
kind: EndpointSlice
apiVersion: discovery.k8s.io/v1
metadata: {{name: by-slice-1, namespace: shop, labels: {{kubernetes.io/service-name: by-slice}}}}
addressType: IPv4
ports: [{{name: http, port: 80, protocol: TCP}}]
endpoints:
- addresses: ['{}']
  conditions: {{ready: {ready}}}
  targetRef: {{kind: Pod, name: {}, namespace: shop}}
",
        pod.ip().unwrap(),
        pod.name.name
    )
}

#[test]
fn what_cannot_be_reached_says_why() {
    if !check::can_run() {
        return;
    }
    let mesh =
        shop::open(&[web("web-0"), shop::idle("client", &[]), shop::service("nobody", 80, "80")]).unwrap();
    let client = mesh.pod(SHOP, "client").unwrap();

    let (code, error) = status(&client, "http://nobody/").unwrap();
    assert_eq!(code, 504, "a Service without endpoints: {error}");
    assert!(error.contains("nobody"), "the error does not name the Service: {error:?}");

    let (code, error) = status(&client, "http://web:8999/").unwrap();
    assert_eq!(code, 403, "a port that the Service does not define: {error}");
    assert!(error.contains("undefined-port"), "the error does not say what is wrong: {error:?}");
}

#[test]
fn a_declared_protocol_is_not_looked_for() {
    if !check::can_run() {
        return;
    }
    let declared = DECLARED;
    let mesh = shop::open(&[declared.into(), shop::idle("app", &[]), shop::idle("client", &[])]).unwrap();
    let (client, server) = (mesh.pod(SHOP, "client").unwrap(), mesh.pod(SHOP, "app").unwrap());
    let _app = App::start(&server, 8080, "app").unwrap();
    for (port, arguments, expected) in [
        (81, &["--http1.1"][..], "http/1"),
        (82, &["--http2-prior-knowledge"], "http/2"),
        (83, &["--http1.1"], "opaque"),
        (84, &["--http1.1"], "detect"),
    ] {
        let url = format!("http://declared:{port}/");
        let answer = curl(&client, &[arguments, &[url.as_str()]].concat()).unwrap();
        assert_eq!(answer, "app\n", "{url}");
        let ip = shop::cluster_ip(&mesh, "declared").unwrap();
        assert_eq!(protocol(&client, (ip, port).into()), expected, "port {port}");
    }
    let detected = client.metrics().unwrap().sum("outbound_tcp_detect_http_results_total", &[]);
    assert_eq!(detected, Some(1.0), "only the undeclared port is looked into");
}

const DECLARED: &str = "
kind: Service
apiVersion: v1
metadata: {name: declared, namespace: shop}
spec:
  selector: {app: app}
  ports:
  - {name: one, port: 81, targetPort: 8080, appProtocol: http}
  - {name: two, port: 82, targetPort: 8080, appProtocol: kubernetes.io/h2c}
  - {name: bytes, port: 83, targetPort: 8080, appProtocol: linkerd.io/tcp}
  - {name: any, port: 84, targetPort: 8080}
---
";

#[test]
fn without_destination_the_last_state_holds_and_with_it_again_changes_are_followed() {
    if !check::can_run() {
        return;
    }
    let mesh = shop::open(&[web("web-0"), web("web-1"), shop::idle("client", &[])]).unwrap();
    let client = mesh.pod(SHOP, "client").unwrap();
    let load = shop::customers(&mesh, &client).unwrap();
    wait(&mesh, "both replicas", || ["web-0", "web-1"].iter().all(|name| load.tally().from(name) >= 20));

    let destination = mesh.pod("remora", "remora-destination").unwrap();
    destination.signal("destination", Signal::STOP).unwrap();
    load.take();
    wait(&mesh, "both replicas while destination hangs", || {
        ["web-0", "web-1"].iter().all(|name| load.tally().from(name) >= 50)
    });
    let starts = destination.restarts("destination");
    destination.signal("destination", Signal::KILL).unwrap();
    wait(&mesh, "destination to be back", || {
        destination.restarts("destination") > starts && destination.is_ready()
    });
    mesh.apply(&web("web-2")).unwrap();
    wait(&mesh, "a pod that is new since then", || load.tally().from("web-2") >= 10);
    let tally = load.finish().unwrap();
    assert_eq!(tally.failed, 0, "{tally:?}");
}

#[test]
fn a_pod_at_an_address_that_another_identity_had_is_not_taken_for_it() {
    if !check::can_run() {
        return;
    }
    let mesh = shop::open(&[web("web-0"), shop::idle("client", &[])]).unwrap();
    let client = mesh.pod(SHOP, "client").unwrap();
    assert_eq!(curl(&client, &["http://web:8000/"]).unwrap(), "web-0\n");
    let before = mesh.pod(SHOP, "web-0").unwrap();
    let address = before.ip().unwrap();
    // Destination learns nothing of what comes: the client's proxy still expects the first identity there.
    let destination = mesh.pod("remora", "remora-destination").unwrap();
    destination.signal("destination", Signal::STOP).unwrap();
    before.kill().unwrap();
    let asked =
        format!("labels: {{app: other}}, annotations: {{cni.projectcalico.org/ipAddrs: '[\"{address}\"]'}}");
    mesh.apply(&web("web-1").replace("labels: {app: web}", &asked)).unwrap();
    let after = mesh.pod(SHOP, "web-1").unwrap();
    wait(&mesh, "its address", || after.ip().is_ok());
    assert_eq!(after.ip().unwrap(), address, "the address is used again");
    // Its own proxy has its certificate, though not yet its policy: what it cannot do is speak for the first one.
    wait(&mesh, "its proxy", || after.pid("nginx").is_some());
    let (code, error) = status(&client, "http://web:8000/").unwrap();
    assert!(matches!(code, 502..=504), "another identity was believed: {code} {error}");
    destination.signal("destination", Signal::CONT).unwrap();
    wait(&mesh, "the new pod under its own name", || {
        curl(&client, &[&format!("http://{address}:80/")]).is_ok_and(|answer| answer == "web-1\n")
    });
    assert!(meshed(&after) >= 1, "mutual TLS with the new identity");
}

#[track_caller]
fn wait(mesh: &Mesh, what: &str, holds: impl FnMut() -> bool) {
    mesh.wait_until(what, PATIENCE, holds).unwrap();
}

/// Requests that the pod's proxy has counted as coming from a meshed client.
fn meshed(server: &PodRef<'_>) -> u64 {
    server.metrics().unwrap().count("request_total", &[("direction", "inbound"), ("tls", "true")])
}

/// What the client's proxy knows about the protocol of a target.
fn protocol(client: &PodRef<'_>, target: SocketAddr) -> String {
    let state = state(client).unwrap();
    let workers = state.pointer("/outbound/workers").and_then(serde_json::Value::as_array).unwrap();
    let mut known =
        workers.iter().filter_map(|worker| worker.get(target.to_string())?.get("protocol")?.as_str());
    known.next_back().unwrap_or("none").to_owned()
}

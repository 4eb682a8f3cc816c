//! What the injector wrote is what runs: every annotation that can be seen from outside is seen.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test says what it expects")]

use remora_tests::shop::{self, PATIENCE, SHOP, curl, identity, web};
use remora_tests::{Mesh, PodRef, check};
use std::io::Write as _;
use std::process::{Command, Stdio};

const PROXY: &str = "linkerd-proxy";
const SHUTDOWN_GRACE: &str = "LINKERD2_PROXY_SHUTDOWN_GRACE_PERIOD";

#[test]
fn the_proxy_runs_as_its_annotations_say() {
    if !check::can_run() {
        return;
    }
    let annotated = [
        "config.linkerd.io/proxy-uid: '3456'",
        "config.linkerd.io/inbound-port: '5143'",
        "config.linkerd.io/outbound-port: '5140'",
        "config.linkerd.io/admin-port: '5191'",
        "config.linkerd.io/proxy-log-level: remora=debug",
        "config.linkerd.io/proxy-log-format: json",
        "config.linkerd.io/shutdown-grace-period: 7s",
    ];
    let mesh = shop::open(&[
        annotate(&web("web-0"), &annotated),
        shop::idle("client", &[]),
        annotate(&shop::idle("other", &[]), &annotated),
    ])
    .unwrap();
    let (client, server) = (mesh.pod(SHOP, "client").unwrap(), mesh.pod(SHOP, "web-0").unwrap());
    let other = mesh.pod(SHOP, "other").unwrap();

    let status = server.exec(PROXY, &["cat", "/proc/1/status"]).unwrap();
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(status.contains("Uid:\t3456\t3456\t3456\t3456"), "{status}");
    // Both sides of the mesh at the ports that were asked for, and nobody at the usual ones.
    for from in [&client, &other] {
        assert_eq!(curl(from, &["http://web:8000/"]).unwrap(), "web-0\n");
    }
    let (_, metrics) = server.http_get(5191, "/metrics").unwrap();
    let counted = remora_tests::metrics::parse(&metrics);
    for account in ["client", "other"] {
        let id = identity(account);
        let meshed = [("direction", "inbound"), ("tls", "true"), ("client_id", id.as_str())];
        assert_eq!(counted.count("request_total", &meshed), 1, "from {account}");
    }
    for port in [4143, 4140, 4191] {
        assert!(
            mesh.dial(server.at(port).unwrap()).is_err() || asked_nothing(&mesh, &server, port),
            "{port} is open"
        );
    }

    let env = |name: &str| {
        let text = curl(&server, &[&format!("http://127.0.0.1:5191/env.json?{name}")]).unwrap();
        serde_json::from_str::<serde_json::Value>(&text).unwrap()[name].clone()
    };
    assert_eq!(env(SHUTDOWN_GRACE), "7000ms");
    let level = curl(&server, &["http://127.0.0.1:5191/proxy-log-level"]).unwrap();
    assert!(level.starts_with("remora=debug"), "{level}");
    let log = mesh.logs(&server, PROXY);
    let first: serde_json::Value = serde_json::from_str(log.lines().next().unwrap()).unwrap();
    assert!(first.is_object() && log.contains("DEBUG"), "not JSON at level debug: {log}");
}

#[test]
fn skipped_ports_do_not_pass_through_the_proxy_and_opaque_ones_are_not_read() {
    if !check::can_run() {
        return;
    }
    let skipped = annotate(&web("web-0"), &["config.linkerd.io/skip-inbound-ports: '80'"]);
    let opaque = web("bytes-0").replace("app: web", "app: bytes");
    let opaque = annotate(&opaque, &["config.linkerd.io/opaque-ports: '80'"]);
    let mesh = shop::open(&[
        skipped,
        opaque,
        annotate(&shop::service("bytes", 80, "http"), &["config.linkerd.io/opaque-ports: '80'"]),
        web("other-0").replace("app: web", "app: other"),
        shop::service("other", 80, "http"),
        shop::idle("client", &[]),
        shop::idle("skipper", &[("config.linkerd.io/skip-outbound-ports", "80")]),
    ])
    .unwrap();
    let pod = |name: &str| mesh.pod(SHOP, name).unwrap();
    let (client, skipper) = (pod("client"), pod("skipper"));

    // Inbound: the server's proxy sees nothing, and the client's does not expect it to.
    assert_eq!(curl(&client, &["http://web:8000/"]).unwrap(), "web-0\n");
    assert_eq!(requests(&pod("web-0"), &[("direction", "inbound"), ("target_port", "80")]), 0);
    assert_eq!(requests(&client, &[("direction", "outbound"), ("dst_service", "web"), ("tls", "true")]), 0);
    assert_eq!(requests(&client, &[("direction", "outbound"), ("dst_service", "web")]), 1);

    // Outbound: the client's proxy sees nothing.
    assert_eq!(curl(&skipper, &["http://other/"]).unwrap(), "other-0\n");
    assert_eq!(requests(&skipper, &[("direction", "outbound")]), 0);
    assert!(requests(&pod("other-0"), &[("direction", "inbound"), ("tls", "no_identity")]) >= 1);

    // Opaque: encrypted and counted as a connection, and nobody reads the request.
    assert_eq!(curl(&client, &["http://bytes/"]).unwrap(), "bytes-0\n");
    assert_eq!(requests(&client, &[("direction", "outbound"), ("dst_service", "bytes")]), 0);
    let counted = pod("bytes-0").metrics().unwrap();
    let id = identity("client");
    let meshed = [("direction", "inbound"), ("tls", "true"), ("client_id", id.as_str())];
    assert_eq!(counted.count("tcp_open_total", &meshed), 1);
    assert_eq!(counted.count("request_total", &meshed), 0);
}

#[test]
fn the_application_starts_when_its_proxy_works_and_a_job_ends_although_it_runs() {
    if !check::can_run() {
        return;
    }
    // Fails the pod unless the very first thing it does goes through a proxy that is ready.
    let asking =
        "curl -sS --max-time 5 -f http://127.0.0.1:4191/ready && curl -sS --max-time 5 -f http://web:8000/";
    let first = |name: &str, annotations: &str, then: &str, policy: &str| {
        format!(
            "
kind: Pod
apiVersion: v1
metadata: {{name: {name}, namespace: shop, annotations: {{{annotations}}}}}
spec:
  restartPolicy: {policy}
  terminationGracePeriodSeconds: 1
  containers:
  - {{name: app, image: curlimages/curl, command: [sh, -c, '{asking} && {then}']}}
---
"
        )
    };
    let ordinary = "config.linkerd.io/proxy-enable-native-sidecar: 'false'";
    let mesh = shop::open(&[web("web-0")]).unwrap();
    mesh.apply(
        &[
            first("native", "", "sleep infinity", "Always"),
            first("ordinary", ordinary, "sleep infinity", "Always"),
            first("job", "", "true", "Never"),
        ]
        .concat(),
    )
    .unwrap();
    mesh.wait_ready(PATIENCE).unwrap();
    for (name, place) in [("native", 1), ("ordinary", 0)] {
        let pod = mesh.pod(SHOP, name).unwrap();
        let said = || mesh.logs(&pod, "app");
        let done = || said().ends_with("ready\nweb-0\n");
        mesh.wait_until("the application to have asked", PATIENCE, done).unwrap();
        assert_eq!(pod.restarts("app"), 0, "{name}: {}", said());
        let spec = pod.object().spec.unwrap();
        let sidecars = spec.init_containers.unwrap().into_iter().filter(|container| container.name == PROXY);
        assert_eq!(sidecars.count(), place, "{name}");
    }
    let job = mesh.pod(SHOP, "job").unwrap();
    mesh.wait_until("the job to end", PATIENCE, || job.phase() == "Succeeded").unwrap();
    mesh.wait_until("its proxy to end", PATIENCE, || job.pid(PROXY).is_none()).unwrap();
}

#[test]
fn what_remora_inject_prints_runs_as_it_is() {
    if !check::can_run() {
        return;
    }
    let mesh = shop::open(&[web("web-0")]).unwrap();
    let anchors = mesh.manifests().join("../anchors.pem");
    std::fs::write(&anchors, mesh.trust_anchor()).unwrap();
    let plain = shop::idle("client", &[]).replace("namespace: shop", "namespace: plain");
    let printed = inject(
        &["--manual", "--trust-anchors", anchors.to_str().unwrap(), "--proxy-version", "test", "-"],
        &plain,
    );
    assert!(printed.contains("linkerd-init") && printed.contains(PROXY), "{printed}");
    mesh.apply(&format!("{UNINJECTED}---\n{printed}")).unwrap();
    mesh.wait_ready(PATIENCE).unwrap();
    let client = mesh.pod("plain", "client").unwrap();
    assert_eq!(curl(&client, &["http://web.shop:8000/"]).unwrap(), "web-0\n");
    let id = "client.plain.serviceaccount.identity.remora.cluster.local";
    let meshed = [("direction", "inbound"), ("tls", "true"), ("client_id", id)];
    assert_eq!(requests(&mesh.pod(SHOP, "web-0").unwrap(), &meshed), 1);
}

/// No webhook sees what is created here.
const UNINJECTED: &str = "
kind: Namespace
apiVersion: v1
metadata: {name: plain, labels: {config.linkerd.io/admission-webhooks: disabled}}
";

#[test]
fn a_dual_stack_service_is_meshed_over_either_family() {
    if !check::can_run() {
        return;
    }
    let dual = shop::service("dual", 80, "http")
        .replace("selector:", "ipFamilyPolicy: RequireDualStack\n  selector:");
    let mesh = shop::open(&[web("web-0").replace("app: web", "app: dual"), dual, shop::idle("client", &[])])
        .unwrap();
    let (client, server) = (mesh.pod(SHOP, "client").unwrap(), mesh.pod(SHOP, "web-0").unwrap());
    let id = identity("client");
    let meshed = [("direction", "inbound"), ("tls", "true"), ("client_id", id.as_str())];
    for (nth, family) in [(1, "-4"), (2, "-6")] {
        assert_eq!(curl(&client, &[family, "http://dual/"]).unwrap(), "web-0\n", "{family}");
        assert_eq!(requests(&server, &meshed), nth, "{family} came without mutual TLS");
    }
    let v6 =
        server.object().status.unwrap().pod_ips.unwrap().into_iter().find(|ip| ip.ip.contains(':')).unwrap();
    assert_eq!(curl(&client, &[&format!("http://[{}]:80/", v6.ip)]).unwrap(), "web-0\n");
    assert_eq!(requests(&server, &meshed), 3, "a pod's own IPv6 address was reached without mutual TLS");
}

/// Adds annotations, each as `key: value`, to the manifest of an object.
fn annotate(manifest: &str, annotations: &[&str]) -> String {
    let bare = manifest.replace(", annotations: {}", "");
    let annotated = format!("namespace: shop, annotations: {{{}}}", annotations.join(", "));
    bare.replacen("namespace: shop", &annotated, 1)
}

/// Requests that a pod's proxy has counted.
fn requests(pod: &PodRef<'_>, labels: &[(&str, &str)]) -> u64 {
    pod.metrics().unwrap().count("request_total", labels)
}

/// Whether a port takes connections only because the proxy takes those of every port, and ends them.
fn asked_nothing(mesh: &Mesh, pod: &PodRef<'_>, port: u16) -> bool {
    let mut stream = mesh.dial(pod.at(port).unwrap()).unwrap();
    write!(stream, "GET /ready HTTP/1.1\r\nHost: pod\r\n\r\n").unwrap();
    let answer = remora_tests::peer::read_answer(&mut stream);
    answer.is_ok_and(|(head, _)| head.starts_with("HTTP/1.1 502 "))
}

/// Runs `remora inject` on a manifest; what it prints.
fn inject(arguments: &[&str], manifest: &str) -> String {
    let program = remora_tests::node::bin_dir(None).unwrap().join("remora");
    let mut child = Command::new(&program)
        .arg("inject")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{}: {error}; cargo build -p remora-cli", program.display()));
    child.stdin.take().unwrap().write_all(manifest.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

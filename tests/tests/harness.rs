//! The pod harness itself: what it runs is what the manifest says, and nothing of it stays.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use remora_tests::shop::UNMESHED;
use remora_tests::{Node, Options, check};

const PATIENCE: Duration = Duration::from_secs(15);

#[test]
fn two_pods_talk_through_a_cluster_ip_and_dns() {
    if !check::can_run() {
        return;
    }
    let node = node(UNMESHED);
    node.wait_ready(PATIENCE).unwrap();
    let client = node.pod("shop", "client").unwrap();
    let capture = node.capture("tcp port 80").unwrap();
    for url in ["http://web:8000/", "http://web.shop.svc.cluster.local:8000/"] {
        assert_eq!(
            client.run("curl", &["curl", "-sS", "--max-time", "5", url]).unwrap(),
            "Welcome to nginx!\n",
            "{url}"
        );
    }
    let seen = capture.stop().unwrap();
    assert!(seen.contain(b"Welcome to nginx!"), "the capture missed the answer");
    assert_eq!(seen.tls_application_data(), 0);
}

#[test]
fn a_dual_stack_service_is_reached_over_either_family() {
    if !check::can_run() {
        return;
    }
    let node = node(
        &UNMESHED.replace("selector: {app: web}", "ipFamilyPolicy: RequireDualStack\n  selector: {app: web}"),
    );
    node.wait_ready(PATIENCE).unwrap();
    let client = node.pod("shop", "client").unwrap();
    for family in ["-4", "-6"] {
        let argv = ["curl", "-sS", "--max-time", "5", family, "http://web.shop:8000/"];
        assert_eq!(client.run("curl", &argv).unwrap(), "Welcome to nginx!\n", "{family}");
    }
}

#[test]
fn a_pod_reaches_itself_through_its_own_service() {
    if !check::can_run() {
        return;
    }
    let node = node(
        &UNMESHED.replace("selector: {app: web}", "ipFamilyPolicy: RequireDualStack\n  selector: {app: web}"),
    );
    node.wait_ready(PATIENCE).unwrap();
    let web = node.pod("shop", "web").unwrap();
    // Not by `web`, which is the pod's own host name too.
    for family in ["-4", "-6"] {
        let argv = ["curl", "-sS", "--max-time", "5", family, "http://web.shop:8000/"];
        assert_eq!(web.run("nginx", &argv).unwrap(), "Welcome to nginx!\n", "{family}");
    }
}

#[test]
fn a_container_is_what_its_manifest_says() {
    if !check::can_run() {
        return;
    }
    let node = node(DETAILED);
    node.wait_ready(PATIENCE).unwrap();
    let pod = node.pod("shop", "detailed").unwrap();
    let ip = pod.ip().unwrap();
    let env = pod.run("app", &["cat", "/proc/1/environ"]).unwrap().replace('\0', "\n");
    for line in [
        "POD=detailed.shop".to_owned(),
        format!("ADDRESS={ip}:80"),
        "LABEL=blue".to_owned(),
        "FROM_MAP=1".to_owned(),
        "UNKNOWN=$(NOT_DEFINED)".to_owned(),
        "CPU=2".to_owned(),
    ] {
        assert!(env.lines().any(|found| found == line), "no {line} in:\n{env}");
    }
    let status = pod.run("app", &["cat", "/proc/1/status"]).unwrap();
    for line in [
        "Uid:\t1234\t1234\t1234\t1234",
        "Gid:\t5678\t5678\t5678\t5678",
        "Groups:\t4321 ",
        "NoNewPrivs:\t1",
        "CapInh:\t0000000000000000",
        "CapPrm:\t0000000000000000",
        "CapBnd:\t0000000000003000",
        "CapAmb:\t0000000000000000",
    ] {
        assert!(status.lines().any(|found| found == line), "no {line:?} in:\n{status}");
    }
    assert_eq!(pod.run("app", &["cat", "/config/nested/one"]).unwrap(), "1");
    assert_eq!(
        pod.run("app", &["cat", "/run/remora-harness/config/nested/one"]).unwrap(),
        "1",
        "/var/run is a link"
    );
    assert!(
        !std::path::Path::new("/run/remora-harness").exists(),
        "a mount point was made on the machine itself"
    );
    assert_eq!(
        pod.run("app", &["sh", "-c", "echo x > /scratch/f && stat -c %g /scratch/f"]).unwrap(),
        "4321\n"
    );
    let written = node.exec(&pod, "app", &["sh", "-c", "echo x > /tmp/f"]).unwrap();
    assert!(!written.status.success(), "the root must be read-only");
    assert_eq!(
        pod.run("app", &["cat", "/scratch/order"]).unwrap(),
        "first\nsecond\n",
        "init containers in order"
    );
    assert_eq!(pod.run("app", &["pwd"]).unwrap(), "/scratch\n");
}

const DETAILED: &str = r"
kind: ConfigMap
apiVersion: v1
metadata: {name: map, namespace: shop}
data: {FROM_MAP: '1'}
---
kind: Pod
apiVersion: v1
metadata: {name: detailed, namespace: shop, labels: {color: blue}}
spec:
  terminationGracePeriodSeconds: 0
  serviceAccountName: shopper
  securityContext: {fsGroup: 4321}
  initContainers:
  - &init
    name: first
    image: busybox
    command: [sh, -c, 'echo $(WORD) >> /scratch/order']
    env: [{name: WORD, value: first}]
    volumeMounts: [{name: scratch, mountPath: /scratch}]
  - <<: *init
    name: second
    env: [{name: WORD, value: second}]
  containers:
  - name: app
    image: busybox
    command: [sleep, infinity]
    workingDir: /scratch
    envFrom: [{configMapRef: {name: map}}]
    env:
    - {name: _name, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: _ns, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
    - {name: _ip, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: POD, value: $(_name).$(_ns)}
    - {name: ADDRESS, value: '$(_ip):80'}
    - {name: LABEL, valueFrom: {fieldRef: {fieldPath: 'metadata.labels[''color'']'}}}
    - {name: UNKNOWN, value: $(NOT_DEFINED)}
    - {name: CPU, valueFrom: {resourceFieldRef: {resource: limits.cpu}}}
    resources: {limits: {cpu: 1500m}}
    securityContext:
      runAsUser: 1234
      runAsGroup: 5678
      readOnlyRootFilesystem: true
      allowPrivilegeEscalation: false
      capabilities: {drop: [ALL], add: [NET_ADMIN, NET_RAW]}
    volumeMounts:
    - {name: scratch, mountPath: /scratch}
    - {name: config, mountPath: /config}
    - {name: config, mountPath: /var/run/remora-harness/config}
    - {name: token, mountPath: /token}
  volumes:
  - {name: scratch, emptyDir: {medium: Memory}}
  - {name: config, configMap: {name: map, items: [{key: FROM_MAP, path: nested/one}]}}
  - name: token
    projected:
      sources: [{serviceAccountToken: {path: t, audience: identity.l5d.io, expirationSeconds: 86400}}]
";

#[test]
fn a_projected_token_verifies_against_the_public_key() {
    if !check::can_run() {
        return;
    }
    let node = node(DETAILED);
    node.wait_ready(PATIENCE).unwrap();
    let pod = node.pod("shop", "detailed").unwrap();
    let token = pod.run("app", &["cat", "/token/t"]).unwrap();
    let key = DecodingKey::from_ec_pem(node.token_public_key().as_bytes()).unwrap();
    let mut validation = Validation::new(Algorithm::ES256);
    validation.set_audience(&["identity.l5d.io"]);
    let claims = jsonwebtoken::decode::<serde_json::Value>(&token, &key, &validation).unwrap().claims;
    assert_eq!(claims["sub"], "system:serviceaccount:shop:shopper");
    assert_eq!(claims["kubernetes.io"]["pod"]["name"], "detailed");
    assert_eq!(claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap(), 86400);
}

#[test]
fn a_crashed_container_is_started_again_and_a_deleted_pod_is_gone() {
    if !check::can_run() {
        return;
    }
    let node = node(UNMESHED);
    node.wait_ready(PATIENCE).unwrap();
    let web = node.pod("shop", "web").unwrap();
    web.signal("nginx", remora_tests::Signal::KILL).unwrap();
    node.wait_until("a restart", PATIENCE, || web.restarts("nginx") == 1 && web.is_ready()).unwrap();
    web.delete().unwrap();
    assert!(node.pod("shop", "web").is_err());
    assert!(!node.manifests().join("pod_shop_web.yaml").exists());
}

#[test]
fn nodes_side_by_side_do_not_meet() {
    if !check::can_run() {
        return;
    }
    let nodes = [node(UNMESHED), node(UNMESHED)];
    for node in &nodes {
        node.wait_ready(PATIENCE).unwrap();
        let web = node.pod("shop", "web").unwrap();
        web.run("nginx", &["sh", "-c", &format!("echo {} > /usr/share/nginx/html/index.html", node.pid())])
            .unwrap();
    }
    for node in &nodes {
        let client = node.pod("shop", "client").unwrap();
        let answer = client.run("curl", &["curl", "-sS", "http://web:8000/"]).unwrap();
        assert_eq!(answer, format!("{}\n", node.pid()), "the answer of another node");
    }
}

#[test]
fn a_mistake_in_a_manifest_is_named() {
    if !check::can_run() {
        return;
    }
    let node = Node::start(Options::default()).unwrap();
    let probed = |probe: &str| {
        format!(
            "{{kind: Pod, metadata: {{name: p}}, spec: {{containers: [{{name: c, image: busybox, {probe}}}]}}}}"
        )
    };
    for (yaml, expected) in [
        ("{kind: Pod, metadata: {name: p}, spec: {containers: [{name: c, image: oracle}]}}", "oracle"),
        ("{kind: Job, metadata: {name: j}, spec: {}}", "Pods and Deployments"),
        ("{kind: Pod, metadata: {name: p}, spec: {hostNetwork: true, containers: []}}", "hostNetwork"),
        (&probed("livenessProbe: {grpc: {port: 1}}"), "exec, httpGet and tcpSocket"),
        (&probed("readinessProbe: {httpGet: {port: 1, scheme: HTTPS}}"), "scheme HTTP"),
        ("kind: [", "YAML document 1"),
    ] {
        let error = format!("{:#}", node.apply(yaml).unwrap_err());
        assert!(error.contains(expected), "{error}");
    }
}

/// Runs the test below in a process of its own, which is then killed.
#[test]
fn nothing_stays_after_the_harness_is_killed() {
    if !check::can_run() {
        return;
    }
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_victim", "--ignored", "--nocapture"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(victim.stdout.take().unwrap()));
    let node_pid =
        lines.find_map(|line| line.unwrap().split_once("node pid ").map(|(_, pid)| pid.to_owned())).unwrap();
    let prefix = format!("remora-node-{}-", victim.id());
    assert_eq!(directories(&prefix), 1, "the victim's node has no directory");
    victim.kill().unwrap();
    victim.wait().unwrap();
    let deadline = Instant::now() + PATIENCE;
    let lives = || std::path::Path::new(&format!("/proc/{node_pid}/ns/net")).exists();
    while lives() || directories(&prefix) > 0 {
        assert!(Instant::now() < deadline, "the node of a killed harness stays: {node_pid}, {prefix}");
        std::thread::yield_now();
    }
}

#[test]
#[ignore = "run by nothing_stays_after_the_harness_is_killed, which kills it"]
fn the_victim() {
    let node = node(UNMESHED);
    node.wait_ready(PATIENCE).unwrap();
    println!("node pid {}", node.pid());
    // The reader of our output kills us; should it be gone, so are we.
    std::thread::park_timeout(PATIENCE);
}

#[test]
fn nothing_stays_when_a_node_is_dropped() {
    if !check::can_run() {
        return;
    }
    let node = node(UNMESHED);
    node.wait_ready(PATIENCE).unwrap();
    let web = node.pod("shop", "web").unwrap();
    let pids = [node.pid(), web.pid("nginx").unwrap(), web.sandbox().unwrap()];
    let work = node.manifests().parent().unwrap().to_path_buf();
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(work.to_str().unwrap()), "a mount of the node is visible outside");
    drop(node);
    assert!(!work.exists(), "{} stays", work.display());
    for pid in pids {
        let deadline = Instant::now() + PATIENCE;
        while std::path::Path::new(&format!("/proc/{pid}/ns/net")).exists() {
            assert!(Instant::now() < deadline, "process {pid} stays");
            std::thread::yield_now();
        }
    }
}

#[expect(clippy::unwrap_used, reason = "a helper of tests")]
fn directories(prefix: &str) -> usize {
    let entries = std::fs::read_dir(std::env::temp_dir()).unwrap();
    entries
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(|name| name.starts_with(prefix)))
        .count()
}

#[expect(clippy::unwrap_used, reason = "a helper of tests")]
fn node(yaml: &str) -> Node {
    let node = Node::start(Options::default()).unwrap();
    node.apply(yaml).unwrap();
    node
}

//! Probes decide what a kubelet lets them decide: who is sent traffic, and who is started again.

use std::time::Duration;

use remora_tests::{Node, Options, PodRef, check};

const PATIENCE: Duration = Duration::from_secs(15);

#[test]
fn probes_gate_readiness_and_with_it_traffic() {
    if !check::can_run() {
        return;
    }
    let node = node(GATED);
    let web = node.pod("shop", "web").unwrap();
    node.wait_until("nginx to run", PATIENCE, || web.pid("nginx").is_some()).unwrap();
    let client = node.pod("shop", "client").unwrap();
    node.wait_until("the client", PATIENCE, || client.is_ready()).unwrap();
    let argv = ["curl", "-sS", "--max-time", "5", "http://web:8000/"];
    assert!(!web.is_ready());
    let refused = node.exec(&client, "curl", &argv).unwrap();
    assert_eq!(refused.status.code(), Some(7), "refused at once while no pod is ready: {refused:?}");
    run(&web, "nginx", &["sh", "-c", "echo fine > /usr/share/nginx/html/health"]);
    node.wait_until("the web pod to be ready", PATIENCE, || web.is_ready()).unwrap();
    assert_eq!(run(&client, "curl", &argv), "Welcome to nginx!\n");
    run(&web, "nginx", &["rm", "/usr/share/nginx/html/health"]);
    node.wait_until("the web pod to be unready", PATIENCE, || !web.is_ready()).unwrap();
    assert_eq!(node.exec(&client, "curl", &argv).unwrap().status.code(), Some(7));
}

const GATED: &str = r"
kind: Service
apiVersion: v1
metadata: {name: web, namespace: shop}
spec:
  selector: {app: web}
  ports: [{name: http, port: 8000, targetPort: http}]
---
kind: Pod
apiVersion: v1
metadata: {name: web, namespace: shop, labels: {app: web}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: nginx
    image: nginx:1.27
    ports: [{name: http, containerPort: 80}]
    readinessProbe: {httpGet: {path: /health, port: http}, periodSeconds: 1, failureThreshold: 1}
---
kind: Pod
apiVersion: v1
metadata: {name: client, namespace: shop}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: curl, image: curlimages/curl, command: [sleep, infinity]}
";

#[test]
fn a_container_whose_liveness_probe_fails_is_started_again_and_no_other() {
    if !check::can_run() {
        return;
    }
    let node = node(LIVELY);
    node.wait_ready(PATIENCE).unwrap();
    let pod = node.pod("shop", "lively").unwrap();
    let (sick, well) = (pod.pid("sick").unwrap(), pod.pid("well").unwrap());
    assert_eq!(pod.restarts("sick"), 0);
    run(&pod, "sick", &["rm", "/tmp/well"]);
    node.wait_until("a restart", PATIENCE, || {
        pod.restarts("sick") == 1 && pod.pid("sick").is_some_and(|pid| pid != sick) && pod.is_ready()
    })
    .unwrap();
    assert!(pod.last_exit("sick").is_some_and(|code| code != 0), "it was ended: {:?}", pod.last_exit("sick"));
    // The new one has a file system of its own, in which the probe is answered again.
    run(&pod, "sick", &["test", "-e", "/tmp/well"]);
    assert_eq!((pod.restarts("well"), pod.pid("well")), (0, Some(well)), "the other container was touched");
}

const LIVELY: &str = r"
kind: Pod
apiVersion: v1
metadata: {name: lively, namespace: shop}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - &container
    name: sick
    image: busybox
    command: [sh, -c, 'touch /tmp/well; exec sleep infinity']
    livenessProbe: {exec: {command: [test, -e, /tmp/well]}, periodSeconds: 1, failureThreshold: 2}
  - {<<: *container, name: well}
";

#[expect(clippy::unwrap_used, reason = "a helper of tests")]
fn node(yaml: &str) -> Node {
    let node = Node::start(Options::default()).unwrap();
    node.apply(yaml).unwrap();
    node
}

#[expect(clippy::unwrap_used, reason = "a helper of tests")]
#[track_caller]
fn run(pod: &PodRef<'_>, container: &str, argv: &[&str]) -> String {
    let output = pod.exec(container, argv).unwrap();
    assert!(output.status.success(), "{argv:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

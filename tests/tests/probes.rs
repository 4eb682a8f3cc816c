//! Probes decide what a kubelet lets them decide: who is sent traffic, and who is started again.

use std::time::Duration;

use remora_tests::shop::UNMESHED;
use remora_tests::{Node, Options, check};

const PATIENCE: Duration = Duration::from_secs(15);

#[test]
fn probes_gate_readiness_and_with_it_traffic() {
    if !check::can_run() {
        return;
    }
    let node = node(&UNMESHED.replace("{path: /,", "{path: /health,"));
    let web = node.pod("shop", "web").unwrap();
    node.wait_until("nginx to run", PATIENCE, || web.pid("nginx").is_some()).unwrap();
    let client = node.pod("shop", "client").unwrap();
    node.wait_until("the client", PATIENCE, || client.is_ready()).unwrap();
    let argv = ["curl", "-sS", "--max-time", "5", "http://web:8000/"];
    assert!(!web.is_ready());
    let refused = node.exec(&client, "curl", &argv).unwrap();
    assert_eq!(refused.status.code(), Some(7), "refused at once while no pod is ready: {refused:?}");
    web.run("nginx", &["sh", "-c", "echo fine > /usr/share/nginx/html/health"]).unwrap();
    node.wait_until("the web pod to be ready", PATIENCE, || web.is_ready()).unwrap();
    assert_eq!(client.run("curl", &argv).unwrap(), "Welcome to nginx!\n");
    web.run("nginx", &["rm", "/usr/share/nginx/html/health"]).unwrap();
    node.wait_until("the web pod to be unready", PATIENCE, || !web.is_ready()).unwrap();
    assert_eq!(node.exec(&client, "curl", &argv).unwrap().status.code(), Some(7));
}

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
    pod.run("sick", &["rm", "/tmp/well"]).unwrap();
    node.wait_until("a restart", PATIENCE, || {
        pod.restarts("sick") == 1 && pod.pid("sick").is_some_and(|pid| pid != sick) && pod.is_ready()
    })
    .unwrap();
    assert!(pod.last_exit("sick").is_some_and(|code| code != 0), "it was ended: {:?}", pod.last_exit("sick"));
    // The new one has a file system of its own, in which the probe is answered again.
    pod.run("sick", &["test", "-e", "/tmp/well"]).unwrap();
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

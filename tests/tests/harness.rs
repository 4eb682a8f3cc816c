//! The pod harness itself: what it runs is what the manifest says, and nothing of it stays.

use std::time::Duration;

use remora_tests::{Node, Options, check};

const PATIENCE: Duration = Duration::from_secs(15);

const SHOP: &str = r#"
kind: Namespace
apiVersion: v1
metadata: {name: shop}
---
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
  containers:
  - name: nginx
    image: nginx:1.27
    ports: [{name: http, containerPort: 80}]
    readinessProbe: {httpGet: {path: /, port: http}, periodSeconds: 1}
---
kind: Pod
apiVersion: v1
metadata: {name: client, namespace: shop}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: curl, image: curlimages/curl, command: [sleep, infinity]}
"#;

#[test]
fn two_pods_talk_through_a_cluster_ip_and_dns() {
    if !check::can_run() {
        return;
    }
    let node = Node::start(Options::default()).unwrap();
    node.apply(SHOP).unwrap();
    node.wait_ready(PATIENCE).unwrap();
    let client = node.pod("shop", "client").unwrap();
    for url in ["http://web:8000/", "http://web.shop.svc.cluster.local:8000/"] {
        let output = node.exec(&client, "curl", &["curl", "-sS", "--max-time", "5", url]).unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "Welcome to nginx!\n", "{url}: {output:?}");
    }
}

//! What goes between two injected pods is encrypted, under the identities of their service accounts, and counted so.

use remora_tests::{Mesh, Options, PodRef, check};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(30);

const SHOP: &str = r"
kind: Namespace
apiVersion: v1
metadata: {name: shop, annotations: {linkerd.io/inject: enabled}}
---
kind: ServiceAccount
apiVersion: v1
metadata: {name: web, namespace: shop}
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
  serviceAccountName: web
  terminationGracePeriodSeconds: 1
  containers:
  - name: nginx
    image: nginx:1.27
    ports: [{name: http, containerPort: 80}]
    readinessProbe: {httpGet: {path: /, port: http}, periodSeconds: 1, failureThreshold: 1}
---
kind: Pod
apiVersion: v1
metadata: {name: client, namespace: shop}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: curl, image: curlimages/curl, command: [sleep, infinity]}
---
kind: Pod
apiVersion: v1
metadata: {name: stranger, namespace: shop, annotations: {linkerd.io/inject: disabled}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: curl, image: curlimages/curl, command: [sleep, infinity]}
";

const CLIENT: &str = "default.shop.serviceaccount.identity.remora.cluster.local";

#[test]
fn a_request_between_injected_pods_is_encrypted_and_counted_under_its_identities() {
    if !check::can_run() {
        return;
    }
    let mesh = Mesh::start().unwrap();
    mesh.apply(SHOP).unwrap();
    mesh.wait_ready(PATIENCE).unwrap();
    let (web, client) = (mesh.pod("shop", "web").unwrap(), mesh.pod("shop", "client").unwrap());

    let capture = mesh.capture("tcp").unwrap();
    let answer = curl(&client, "http://web:8000/?from=meshed").unwrap();
    assert_eq!(answer, "Welcome to nginx!\n");
    let seen = capture.stop().unwrap();
    assert!(seen.tls_application_data() > 0, "no TLS between the pods");
    assert!(!seen.contain(b"from=meshed"), "the request crossed the node in plaintext");
    assert!(!seen.contain(b"Welcome to nginx!"), "the answer crossed the node in plaintext");

    let counted = web.metrics().unwrap();
    let meshed = [("direction", "inbound"), ("tls", "true"), ("client_id", CLIENT), ("target_port", "80")];
    assert_eq!(counted.sum("request_total", &meshed), Some(1.0));
    let counted = client.metrics().unwrap();
    let server = "web.shop.serviceaccount.identity.remora.cluster.local";
    let outbound = [
        ("direction", "outbound"),
        ("tls", "true"),
        ("server_id", server),
        ("authority", "web.shop.svc.cluster.local:8000"),
        ("dst_service", "web"),
        ("dst_namespace", "shop"),
    ];
    assert_eq!(counted.sum("request_total", &outbound), Some(1.0));
}

#[test]
fn a_request_from_an_unmeshed_pod_is_served_in_plaintext_and_counted_with_its_reason() {
    if !check::can_run() {
        return;
    }
    let mesh = Mesh::start_with(Options::default(), &serde_json::json!({})).unwrap();
    mesh.apply(SHOP).unwrap();
    mesh.wait_ready(PATIENCE).unwrap();
    let (web, stranger) = (mesh.pod("shop", "web").unwrap(), mesh.pod("shop", "stranger").unwrap());
    let capture = mesh.capture("tcp port 80").unwrap();
    assert_eq!(curl(&stranger, "http://web:8000/?from=stranger").unwrap(), "Welcome to nginx!\n");
    assert!(capture.stop().unwrap().contain(b"from=stranger"));
    let plain = [
        ("direction", "inbound"),
        ("tls", "no_identity"),
        ("no_tls_reason", "no_tls_from_remote"),
        ("target_port", "80"),
    ];
    // The node's probes are plaintext requests too.
    assert!(web.metrics().unwrap().sum("request_total", &plain).is_some_and(|count| count >= 1.0));
}

fn curl(from: &PodRef<'_>, url: &str) -> anyhow::Result<String> {
    let output = from.exec("curl", &["curl", "-sS", "--max-time", "10", url])?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

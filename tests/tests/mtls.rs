//! What goes between two injected pods is encrypted, under the identities of their service accounts, and counted so.

use remora_tests::shop::{self, SHOP, curl, identity, idle, web};
use remora_tests::{Mesh, check};

/// What nginx answers: one word that can be looked for on the wire.
const ANSWER: &str = "Welcome to nginx!\n";

/// A server, a client, and one without a proxy.
#[expect(clippy::unwrap_used, reason = "a helper of tests")]
fn mesh() -> Mesh {
    let stranger = idle("stranger", &[("linkerd.io/inject", "disabled")]);
    shop::open(&[web("web"), idle("client", &[]), stranger]).unwrap()
}

#[test]
fn a_request_between_injected_pods_is_encrypted_and_counted_under_its_identities() {
    if !check::can_run() {
        return;
    }
    let mesh = mesh();
    let (web, client) = (mesh.pod(SHOP, "web").unwrap(), mesh.pod(SHOP, "client").unwrap());

    let capture = mesh.capture("tcp").unwrap();
    let answer = curl(&client, &["http://web:8000/files/index.html?from=meshed"]).unwrap();
    assert_eq!(answer, ANSWER);
    let seen = capture.stop().unwrap();
    assert!(seen.tls_application_data() > 0, "no TLS between the pods");
    assert!(!seen.contain(b"from=meshed"), "the request crossed the node in plaintext");
    assert!(!seen.contain(ANSWER.as_bytes()), "the answer crossed the node in plaintext");

    let counted = web.metrics().unwrap();
    let id = identity("client");
    let meshed = [("direction", "inbound"), ("tls", "true"), ("client_id", &id), ("target_port", "80")];
    assert_eq!(counted.sum("request_total", &meshed), Some(1.0));
    let counted = client.metrics().unwrap();
    let server = identity("web");
    let outbound = [
        ("direction", "outbound"),
        ("tls", "true"),
        ("server_id", &server),
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
    let mesh = mesh();
    let (web, stranger) = (mesh.pod(SHOP, "web").unwrap(), mesh.pod(SHOP, "stranger").unwrap());
    let capture = mesh.capture("tcp port 80").unwrap();
    let answer = curl(&stranger, &["http://web:8000/files/index.html?from=stranger"]).unwrap();
    assert_eq!(answer, ANSWER);
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

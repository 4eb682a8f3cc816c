//! The webhook as the API server meets it: over TLS 1.3, by HTTP/1 and HTTP/2, with reviews good and bad.
#![expect(clippy::indexing_slicing, clippy::unwrap_used, reason = "a failing helper fails its test")]

use std::{fs, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use remora_injector::{
    cluster::Manifests,
    config::InjectorConfig,
    serve::{Certificate, MAX_BODY, Webhook, serve},
    webhook::Metrics,
};
use remora_runtime::{
    metrics::Registry,
    tasks::{Drain, Tasks},
};
use rustls::{ClientConfig, RootCertStore, version};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// A webhook on loopback, and what its client needs.
struct Running {
    addr: SocketAddr,
    home: TempDir,
    certificate: Arc<Certificate>,
    registry: Registry,
    drain: Drain,
    roots: RootCertStore,
}

/// Writes a new self-signed certificate and key, and returns the certificate.
fn issue(home: &Path) -> rustls_pki_types::CertificateDer<'static> {
    let made = rcgen::generate_simple_self_signed(vec!["injector".to_owned()]).unwrap();
    fs::write(home.join("tls.crt"), made.cert.pem()).unwrap();
    fs::write(home.join("tls.key"), made.signing_key.serialize_pem()).unwrap();
    made.cert.der().clone()
}

async fn running() -> Running {
    let home = tempfile::tempdir().unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(issue(home.path())).unwrap();
    let manifests = home.path().join("manifests");
    fs::create_dir(&manifests).unwrap();
    let namespace = "kind: Namespace\nmetadata:\n  name: shop\n  annotations:\n    linkerd.io/inject: enabled\n    config.linkerd.io/opaque-ports: '4222'\n";
    fs::write(manifests.join("shop.yaml"), namespace).unwrap();

    let certificate =
        Arc::new(Certificate::load(&home.path().join("tls.crt"), &home.path().join("tls.key")).unwrap());
    let registry = Registry::default();
    let config = InjectorConfig {
        trust_anchors_pem: "-----BEGIN CERTIFICATE-----\n".to_owned(),
        ..InjectorConfig::default()
    };
    let webhook = Arc::new(Webhook {
        config: ArcSwap::from_pointee(config),
        cluster: Arc::new(Manifests::new(&manifests).unwrap()),
        metrics: Metrics::new(&registry),
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (tasks, drain) = (Tasks::new(), Drain::new());
    tasks.spawn(
        "webhook",
        serve(listener, certificate.server_config().unwrap(), webhook, tasks.clone(), drain.clone()),
    );
    Running { addr, home, certificate, registry, drain, roots }
}

impl Running {
    async fn connect(&self, alpn: &[u8]) -> std::io::Result<TlsStream<TcpStream>> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder =
            ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&version::TLS13]).unwrap();
        let mut config = builder.with_root_certificates(self.roots.clone()).with_no_client_auth();
        config.alpn_protocols = vec![alpn.to_vec()];
        let stream = TcpStream::connect(self.addr).await?;
        TlsConnector::from(Arc::new(config)).connect("injector".try_into().unwrap(), stream).await
    }

    async fn send(&self, method: Method, body: impl Into<Bytes>) -> (StatusCode, Bytes) {
        let stream = self.connect(b"http/1.1").await.unwrap();
        let (mut client, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        let connection = tokio::spawn(connection);
        let request = Request::builder().method(method).uri("/").header("host", "injector");
        let reply = client.send_request(request.body(Full::new(body.into())).unwrap()).await.unwrap();
        let status = reply.status();
        let body = reply.into_body().collect().await.unwrap().to_bytes();
        connection.abort();
        (status, body)
    }

    /// The `response` of a review of that object.
    async fn review(&self, kind: &str, namespace: &str, object: Value) -> Value {
        let (status, body) = self.send(Method::POST, review(kind, namespace, &object).to_string()).await;
        assert_eq!(status, StatusCode::OK, "{body:?}");
        let review: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(review["apiVersion"], "admission.k8s.io/v1");
        assert_eq!(review["response"]["uid"], "u-1");
        review["response"].clone()
    }
}

fn review(kind: &str, namespace: &str, object: &Value) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "u-1",
            "kind": {"group": "", "version": "v1", "kind": kind},
            "namespace": namespace,
            "operation": "CREATE",
            "object": object,
            "oldObject": null,
            "dryRun": false,
        },
    })
}

fn pod() -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"}, "spec": {"containers": [{"name": "app"}]}})
}

fn patched(object: Value, response: &Value) -> Value {
    let patch = BASE64_STANDARD.decode(response["patch"].as_str().unwrap()).unwrap();
    let patch: json_patch::Patch = serde_json::from_slice(&patch).unwrap();
    let mut object = object;
    json_patch::patch(&mut object, &patch).unwrap();
    object
}

#[tokio::test]
async fn a_pod_is_injected() {
    let webhook = running().await;
    let response = webhook.review("Pod", "shop", pod()).await;
    assert_eq!((&response["allowed"], &response["patchType"]), (&json!(true), &json!("JSONPatch")));
    let pod = patched(pod(), &response);
    assert_eq!(pod["spec"]["initContainers"][1]["name"], "linkerd-proxy");
    assert_eq!(pod["metadata"]["annotations"]["config.linkerd.io/opaque-ports"], "4222");
    assert_eq!(pod["metadata"]["labels"]["linkerd.io/workload-ns"], "shop");
    let metrics = webhook.registry.render();
    let labels = r#"owner_kind="",namespace="shop",annotation_at="namespace""#;
    assert!(metrics.contains(&format!("proxy_inject_admission_requests_total{{{labels}}} 1")), "{metrics}");
    assert!(
        metrics.contains(&format!(
            "proxy_inject_admission_responses_total{{{labels},skip=\"false\",skip_reason=\"\"}} 1"
        )),
        "{metrics}"
    );
}

#[tokio::test]
async fn http2_and_the_older_version_are_answered_in_kind() {
    let webhook = running().await;
    let stream = webhook.connect(b"h2").await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut client, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut asked = review("Pod", "shop", &pod());
    asked["apiVersion"] = json!("admission.k8s.io/v1beta1");
    let request = Request::post("https://injector/").body(Full::new(Bytes::from(asked.to_string()))).unwrap();
    let reply = client.send_request(request).await.unwrap().into_body().collect().await.unwrap().to_bytes();
    let reply: Value = serde_json::from_slice(&reply).unwrap();
    assert_eq!(reply["apiVersion"], "admission.k8s.io/v1beta1");
    assert_eq!(reply["response"]["allowed"], true);
    connection.abort();
}

#[tokio::test]
async fn who_is_not_injected_is_let_in_unchanged() {
    let webhook = running().await;
    let mut off = pod();
    off["metadata"]["annotations"] = json!({"linkerd.io/inject": "disabled"});
    assert_eq!(webhook.review("Pod", "shop", off).await, json!({"uid": "u-1", "allowed": true}));
    assert_eq!(webhook.review("Pod", "default", pod()).await, json!({"uid": "u-1", "allowed": true}));
    assert_eq!(webhook.review("ConfigMap", "shop", json!({})).await, json!({"uid": "u-1", "allowed": true}));
    let metrics = webhook.registry.render();
    assert!(
        metrics.contains(r#"skip="true",skip_reason="injection_disable_annotation_present"} 1"#),
        "{metrics}"
    );
    assert!(
        metrics.contains(r#"skip="true",skip_reason="injection_enable_annotation_absent"} 1"#),
        "{metrics}"
    );
}

#[tokio::test]
async fn who_must_not_run_as_it_is_is_kept_out_with_the_reason() {
    let webhook = running().await;
    let mut same = pod();
    same["spec"]["securityContext"] = json!({"runAsUser": 2102});
    let mut subnets = pod();
    subnets["metadata"]["annotations"] = json!({"config.linkerd.io/skip-subnets": "all"});
    for (namespace, object, word) in [
        ("shop", same, "uid 2102"),
        ("shop", subnets, "config.linkerd.io/skip-subnets"),
        ("nowhere", pod(), "namespace \"nowhere\" is not known"),
        ("shop", json!({"metadata": {}}), "no spec"),
        ("shop", json!({"spec": {"containers": "none"}}), "not a valid pod"),
    ] {
        let response = webhook.review("Pod", namespace, object).await;
        assert_eq!(response["allowed"], false);
        assert_eq!(response.get("patch"), None);
        let message = response["status"]["message"].as_str().unwrap();
        assert!(message.starts_with("remora: ") && message.contains(word), "{message}");
    }
    assert!(webhook.registry.render().contains(r#"remora_inject_refused_total{namespace="shop"} 4"#));
}

#[tokio::test]
async fn a_wrong_value_comes_back_as_a_warning_for_kubectl() {
    let webhook = running().await;
    let mut odd = pod();
    odd["metadata"]["annotations"] = json!({"config.linkerd.io/proxy-uid": "root"});
    let response = webhook.review("Pod", "shop", odd).await;
    assert_eq!(response["allowed"], true);
    let warning = response["warnings"][0].as_str().unwrap();
    let counted = webhook.registry.render();
    assert!(counted.contains("remora_injector_warnings_total{namespace=\"shop\"} 1"), "{counted}");
    assert!(warning.contains("config.linkerd.io/proxy-uid"), "{warning}");
}

#[tokio::test]
async fn a_service_gets_its_namespaces_opaque_ports() {
    let webhook = running().await;
    let service = json!({"kind": "Service", "metadata": {"name": "nats"}});
    let response = webhook.review("Service", "shop", service.clone()).await;
    let service = patched(service, &response);
    assert_eq!(service["metadata"]["annotations"], json!({"config.linkerd.io/opaque-ports": "4222"}));
    assert_eq!(webhook.review("Service", "shop", service).await, json!({"uid": "u-1", "allowed": true}));
}

#[tokio::test]
async fn what_is_no_review_is_a_400_with_the_reason() {
    let webhook = running().await;
    for (body, word) in [
        ("", "not an AdmissionReview"),
        ("{", "not an AdmissionReview"),
        ("[]", "not an AdmissionReview"),
        (r#"{"apiVersion":"v1","kind":"Pod"}"#, "\"Pod\" of \"v1\""),
        (r#"{"apiVersion":"admission.k8s.io/v2","kind":"AdmissionReview"}"#, "v2"),
        (r#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}"#, "missing field `request`"),
        (
            r#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{}}"#,
            "missing field `uid`",
        ),
    ] {
        let (status, reply) = webhook.send(Method::POST, body).await;
        let reply = String::from_utf8_lossy(&reply);
        assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
        assert!(reply.contains(word), "{body}: {reply}");
    }
    assert_eq!(webhook.send(Method::GET, "").await.0, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(webhook.send(Method::POST, vec![b' '; MAX_BODY + 1]).await.0, StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn tls_1_2_is_refused() {
    let webhook = running().await;
    let mut stream = TcpStream::connect(webhook.addr).await.unwrap();
    // RFC 5246 section 7.4.1.2: version 1.2, 32 random bytes, no session, ECDHE-ECDSA, no compression; then what a server
    // that spoke 1.2 would need (signature algorithms, groups, point formats, extended master secret), and no
    // supported_versions, by which a client says that it speaks 1.3.
    let mut hello = vec![0x16, 3, 1, 0, 73, 1, 0, 0, 69, 3, 3];
    hello.extend([7; 32]);
    hello.extend([0, 0, 2, 0xc0, 0x2b, 1, 0, 0, 26]);
    hello.extend([0, 13, 0, 4, 0, 2, 4, 3, 0, 10, 0, 4, 0, 2, 0, 29, 0, 11, 0, 2, 1, 0, 0, 23, 0, 0]);
    stream.write_all(&hello).await.unwrap();
    let mut alert = [0; 7];
    stream.read_exact(&mut alert).await.unwrap();
    // A fatal alert, protocol_version.
    assert_eq!((alert[0], &alert[5..]), (0x15, &[2, 70][..]));
}

#[tokio::test]
async fn a_new_certificate_is_served_and_a_broken_one_is_not() {
    let mut webhook = running().await;
    assert!(!webhook.certificate.refresh().unwrap());
    let fresh = issue(webhook.home.path());
    assert!(webhook.certificate.refresh().unwrap());
    webhook.roots = RootCertStore::empty();
    webhook.roots.add(fresh).unwrap();
    webhook.review("Pod", "shop", pod()).await;

    let key = fs::read(webhook.home.path().join("tls.key")).unwrap();
    issue(webhook.home.path());
    fs::write(webhook.home.path().join("tls.key"), &key).unwrap();
    let why = webhook.certificate.refresh().unwrap_err().to_string();
    assert!(why.contains("tls.key") && why.contains("not the key of"), "{why}");
    fs::write(webhook.home.path().join("tls.crt"), "").unwrap();
    let why = webhook.certificate.refresh().unwrap_err().to_string();
    assert!(why.contains("tls.crt") && why.contains("no certificate"), "{why}");
    webhook.review("Pod", "shop", pod()).await;
}

#[tokio::test]
async fn a_drain_ends_idle_connections_and_the_listener() {
    let webhook = running().await;
    let stream = webhook.connect(b"http/1.1").await.unwrap();
    let (mut client, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    let body = Full::new(Bytes::from(review("Pod", "shop", &pod()).to_string()));
    let request = Request::post("/").header("host", "injector").body(body).unwrap();
    client.send_request(request).await.unwrap().into_body().collect().await.unwrap();

    assert_eq!(webhook.drain.drained(Duration::from_secs(10)).await, 0);
    tokio::time::timeout(Duration::from_secs(10), connection).await.unwrap().unwrap().unwrap();
    assert!(TcpStream::connect(webhook.addr).await.is_err(), "nobody listens any more");
}

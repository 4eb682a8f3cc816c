//! The API server's side of mutating webhooks: whom to ask, the review over HTTPS, the patch applied.
//!
//! Webhooks are registered by applying a `MutatingWebhookConfiguration`, as in a cluster.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use base64::Engine as _;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::admissionregistration::v1::{MutatingWebhook, MutatingWebhookConfiguration};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use serde::Deserialize as _;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::kubelet::Kubelet;
use crate::token::unique_id;
use crate::world::{Name, kind, name, selects};

/// Bytes of a webhook's answer that are read at most.
const ANSWER_BYTES: usize = 8 << 20;

/// How often an object is sent to a webhook that does not answer. The API server asks once; the controllers that create
/// pods create them again.
const TRIES: usize = 3;

/// What is being waited for while a webhook is asked, in order.
const PHASES: [&str; 3] = ["connecting", "shaking hands by TLS", "waiting for the answer"];

/// Sends an object that is being created through every webhook that wants it; returns what they make of it.
///
/// # Errors
/// A webhook that refuses the object, or cannot be asked and has `failurePolicy: Fail`.
pub async fn review(kubelet: &Kubelet, resource: &str, mut object: Value) -> Result<Value> {
    for webhook in wanted(kubelet, resource, &object) {
        let limit = webhook.timeout_seconds.and_then(|limit| u64::try_from(limit).ok()).unwrap_or(10);
        let limit = Duration::from_secs(limit);
        let mut asked = ask_in_time(kubelet, &webhook, resource, &object, limit).await;
        for _ in 1..TRIES {
            let Err(error) = asked.as_ref().map_err(|error| error.downcast_ref::<Silent>()) else { break };
            let Some(silent) = error else { break };
            kubelet.note(&format!("webhook {}: {silent}; asking again", webhook.name));
            asked = ask_in_time(kubelet, &webhook, resource, &object, limit).await;
        }
        match asked {
            Ok(answer) => object = decide(&webhook.name, object, &answer)?,
            Err(error) if webhook.failure_policy.as_deref() == Some("Ignore") => {
                kubelet.note(&format!("webhook {} is passed over: {error:#}", webhook.name));
            }
            Err(error) => return Err(error.context(format!("failed calling webhook {}", webhook.name))),
        }
    }
    Ok(object)
}

/// A webhook that let its time go by.
#[derive(Debug)]
struct Silent {
    limit: Duration,
    phase: &'static str,
}

impl fmt::Display for Silent {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "no answer within {:?}, while {}", self.limit, self.phase)
    }
}

impl std::error::Error for Silent {}

async fn ask_in_time(
    kubelet: &Kubelet,
    webhook: &MutatingWebhook,
    resource: &str,
    object: &Value,
    limit: Duration,
) -> Result<Value> {
    let phase = AtomicUsize::new(0);
    let asked = tokio::time::timeout(limit, ask(kubelet, webhook, resource, object, &phase)).await;
    asked.unwrap_or_else(|_| {
        let phase = PHASES.get(phase.into_inner()).copied().unwrap_or_default();
        Err(Silent { limit, phase }.into())
    })
}

fn wanted(kubelet: &Kubelet, resource: &str, object: &Value) -> Vec<MutatingWebhook> {
    let world = kubelet.world();
    let labels = |object: Option<&Value>| -> BTreeMap<String, String> {
        let labels = object.and_then(|object| object.get("metadata")?.get("labels"));
        labels.and_then(|labels| BTreeMap::deserialize(labels).ok()).unwrap_or_default()
    };
    let namespace = name(object).namespace;
    let mut of_namespace = labels(world.object("Namespace", &Name::new("", namespace.clone())));
    of_namespace.insert("kubernetes.io/metadata.name".into(), namespace);
    let own = labels(Some(object));
    let configurations = world.all("MutatingWebhookConfiguration");
    let configurations =
        configurations.filter_map(|object| MutatingWebhookConfiguration::deserialize(object).ok());
    configurations
        .flat_map(|configuration| configuration.webhooks.unwrap_or_default())
        .filter(|webhook| {
            let rules = webhook.rules.as_deref().unwrap_or_default();
            rules.iter().any(|rule| {
                let resources = rule.resources.as_deref().unwrap_or_default();
                let operations = rule.operations.as_deref().unwrap_or_default();
                resources.iter().any(|named| named == resource || named == "*")
                    && operations.iter().any(|operation| operation == "CREATE" || operation == "*")
            })
        })
        .filter(|webhook| selects(webhook.namespace_selector.as_ref(), &of_namespace))
        .filter(|webhook| selects(webhook.object_selector.as_ref(), &own))
        .collect()
}

/// The response of an `AdmissionReview`.
async fn ask(
    kubelet: &Kubelet,
    webhook: &MutatingWebhook,
    resource: &str,
    object: &Value,
    phase: &AtomicUsize,
) -> Result<Value> {
    let client = &webhook.client_config;
    let service = client.service.as_ref().context("clientConfig names no service")?;
    let port = service.port.and_then(|port| u16::try_from(port).ok()).unwrap_or(443);
    let host = format!("{}.{}.svc", service.name, service.namespace);
    let named = Name::new(service.namespace.clone(), service.name.clone());
    let ip = kubelet
        .world()
        .object("Service", &named)
        .and_then(|found| found.get("spec")?.get("clusterIP")?.as_str()?.parse().ok());
    let ip: std::net::IpAddr = ip.with_context(|| format!("there is no Service {named} with a ClusterIP"))?;
    let bundle = client.ca_bundle.as_ref().context("clientConfig has no caBundle")?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&bundle.0) {
        roots.add(certificate.context("reading caBundle")?)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let address = SocketAddr::new(ip, port);
    let stream =
        TcpStream::connect(address).await.with_context(|| format!("connecting to {host} ({address})"))?;
    phase.store(1, Ordering::Relaxed);
    let server = ServerName::try_from(host.clone())?;
    let stream = TlsConnector::from(Arc::new(config)).connect(server, stream).await.context("TLS")?;
    phase.store(2, Ordering::Relaxed);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let uid = unique_id()?;
    let request = http::Request::post(service.path.as_deref().unwrap_or("/"))
        .header("host", host)
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(serde_json::to_vec(&admission_review(&uid, resource, object))?)))?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_BYTES).collect().await;
    driver.abort();
    let body = body.map_err(|error| anyhow!(error)).context("reading the answer")?.to_bytes();
    if !status.is_success() {
        bail!("it answered {status}: {}", String::from_utf8_lossy(&body));
    }
    let review: Value = serde_json::from_slice(&body).context("the answer is not JSON")?;
    let response = review.get("response").cloned().context("the answer has no response")?;
    if response.get("uid").and_then(Value::as_str) != Some(&uid) {
        bail!("the response has another uid than the request");
    }
    Ok(response)
}

fn admission_review(uid: &str, resource: &str, object: &Value) -> Value {
    let named = name(object);
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": uid,
            "kind": {"group": "", "version": "v1", "kind": kind(object)},
            "resource": {"group": "", "version": "v1", "resource": resource},
            "requestKind": {"group": "", "version": "v1", "kind": kind(object)},
            "requestResource": {"group": "", "version": "v1", "resource": resource},
            "name": named.name, "namespace": named.namespace, "operation": "CREATE",
            "userInfo": {"username": "system:serviceaccount:kube-system:replicaset-controller"},
            "object": object, "oldObject": null, "dryRun": false,
        },
    })
}

/// Applies a response: the patched object, or the webhook's reason to refuse.
fn decide(webhook: &str, mut object: Value, response: &Value) -> Result<Value> {
    if response.get("allowed").and_then(Value::as_bool) != Some(true) {
        let message = response.get("status").and_then(|status| status.get("message")).and_then(Value::as_str);
        bail!("webhook {webhook} denied the request: {}", message.unwrap_or("without saying why"));
    }
    let Some(encoded) = response.get("patch").and_then(Value::as_str).filter(|patch| !patch.is_empty())
    else {
        return Ok(object);
    };
    if response.get("patchType").and_then(Value::as_str) != Some("JSONPatch") {
        bail!("webhook {webhook} sent a patch whose patchType is not JSONPatch");
    }
    let patch =
        base64::engine::general_purpose::STANDARD.decode(encoded).context("the patch is not base64")?;
    let patch: json_patch::Patch = serde_json::from_slice(&patch).context("the patch is not a JSON patch")?;
    json_patch::patch(&mut object, &patch)
        .with_context(|| format!("the patch of webhook {webhook} does not apply"))?;
    Ok(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_is_applied() {
        let patch = base64::engine::general_purpose::STANDARD
            .encode(r#"[{"op": "add", "path": "/metadata/annotations", "value": {"a": "b"}}]"#);
        let response = json!({"allowed": true, "patchType": "JSONPatch", "patch": patch});
        let patched = decide("w", json!({"metadata": {"name": "p"}}), &response).unwrap();
        assert_eq!(patched["metadata"]["annotations"]["a"], "b");
    }

    #[test]
    fn without_a_patch_the_object_stays() {
        let object = json!({"metadata": {"name": "p"}});
        assert_eq!(decide("w", object.clone(), &json!({"allowed": true})).unwrap(), object);
    }

    #[test]
    fn a_refusal_says_why() {
        let response = json!({"allowed": false, "status": {"message": "uid 2102 is the proxy's"}});
        let error = decide("w", json!({}), &response).unwrap_err();
        assert!(error.to_string().contains("uid 2102"), "{error}");
    }

    #[test]
    fn a_patch_that_does_not_apply_is_an_error() {
        let patch =
            base64::engine::general_purpose::STANDARD.encode(r#"[{"op": "remove", "path": "/none"}]"#);
        let response = json!({"allowed": true, "patchType": "JSONPatch", "patch": patch});
        assert!(decide("w", json!({}), &response).is_err());
    }
}

//! AdmissionReview in, AdmissionReview out: what the API server asks and what it is told. No sockets; those are in
//! `serve.rs`.
//!
//! A request that cannot be understood is a 400 with the reason. Whatever else goes wrong is an answer with
//! `allowed: false` and a message: a pod that should have a proxy never starts without one because of an error here.

use base64::{Engine, prelude::BASE64_STANDARD};
use remora_runtime::metrics::{Budgeted, Counter, Registry};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    cluster::{self, Cluster},
    config::InjectorConfig,
    decide::{Decision, Subject, decide},
    patch::{inherit_opaque_ports, patch},
    pod::Pod,
};

/// Series a family may have. Namespaces and kinds of owners are few, but both come from others.
const SERIES: usize = 1000;

/// Counters of the webhook, named and labelled as Linkerd's.
#[derive(Clone)]
pub struct Metrics {
    requests: Budgeted<Labels, Counter>,
    responses: Budgeted<Labels, Counter>,
    refused: Budgeted<Labels, Counter>,
    warnings: Budgeted<Labels, Counter>,
}

type Labels = Vec<(&'static str, String)>;

impl Metrics {
    /// Registers them.
    pub fn new(registry: &Registry) -> Self {
        let family = |name, help| registry.counters(name, help, SERIES);
        Self {
            requests: family("proxy_inject_admission_requests_total", "Pods the webhook was asked about"),
            responses: family(
                "proxy_inject_admission_responses_total",
                "Pods it let in, and what became of them",
            ),
            refused: family("remora_inject_refused_total", "Pods and Services it kept out"),
            warnings: family(
                "remora_injector_warnings_total",
                "What it warned of in pods it let in: annotations that cannot be read, for instance",
            ),
        }
    }
}

/// Why a request is no AdmissionReview.
#[derive(Debug, thiserror::Error)]
pub enum BadRequest {
    /// It is not JSON, or a field has the wrong type.
    #[error("not an AdmissionReview: {0}")]
    Malformed(#[from] serde_json::Error),
    /// Another object, or another version.
    #[error("not an AdmissionReview of admission.k8s.io/v1 or v1beta1 but {kind:?} of {api_version:?}")]
    Other {
        /// Its `kind`.
        kind: String,
        /// Its `apiVersion`.
        api_version: String,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Review {
    api_version: String,
    kind: String,
    request: Request,
}

/// The fields of an AdmissionRequest that are read.
#[derive(Deserialize)]
struct Request {
    uid: String,
    kind: Kind,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    operation: String,
    #[serde(default)]
    object: Value,
}

#[derive(Deserialize)]
struct Kind {
    #[serde(default)]
    group: String,
    kind: String,
}

/// What the API server is told.
#[derive(Debug, Default)]
struct Answer {
    patch: Option<Value>,
    warnings: Vec<String>,
    /// Why it is not allowed.
    refused: Option<String>,
}

/// Answers one AdmissionReview.
///
/// # Errors
/// If it is none.
pub fn review(
    body: &[u8],
    config: &InjectorConfig,
    cluster: &dyn Cluster,
    metrics: &Metrics,
) -> Result<Value, BadRequest> {
    let about: Value = serde_json::from_slice(body)?;
    let field = |name: &str| about.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (kind, api_version) = (field("kind"), field("apiVersion"));
    if kind != "AdmissionReview"
        || !["admission.k8s.io/v1", "admission.k8s.io/v1beta1"].contains(&api_version.as_str())
    {
        return Err(BadRequest::Other { kind, api_version });
    }
    let Review { api_version, kind, request } = serde_json::from_value(about)?;
    let answer = match (request.operation.as_str(), request.kind.group.as_str(), request.kind.kind.as_str()) {
        ("CREATE" | "", "", "Pod") => pod(&request, config, cluster, metrics),
        ("CREATE" | "", "", "Service") => service(&request, cluster),
        _ => Answer::default(),
    };
    if let Some(why) = &answer.refused {
        metrics.refused.get(vec![("namespace", request.namespace.clone())]).inc();
        tracing::warn!(
            kind = request.kind.kind,
            namespace = request.namespace,
            name = name(&request),
            why,
            "refused"
        );
    }
    let mut response = json!({ "uid": request.uid, "allowed": answer.refused.is_none() });
    if let Some(response) = response.as_object_mut() {
        if let Some(patch) = answer.patch {
            response.insert("patchType".to_owned(), json!("JSONPatch"));
            response.insert("patch".to_owned(), json!(BASE64_STANDARD.encode(patch.to_string())));
        }
        if !answer.warnings.is_empty() {
            response.insert("warnings".to_owned(), json!(answer.warnings));
        }
        if let Some(message) = answer.refused {
            response.insert("status".to_owned(), json!({ "code": 403, "message": message }));
        }
    }
    Ok(json!({ "apiVersion": api_version, "kind": kind, "response": response }))
}

fn name(request: &Request) -> &str {
    let field = |pointer| request.object.pointer(pointer).and_then(Value::as_str);
    field("/metadata/name").or_else(|| field("/metadata/generateName")).unwrap_or_default()
}

fn refused(why: String) -> Answer {
    Answer { refused: Some(why), ..Answer::default() }
}

fn unknown_namespace(request: &Request) -> Answer {
    refused(format!("remora: namespace {:?} is not known yet; try again", request.namespace))
}

fn pod(request: &Request, config: &InjectorConfig, cluster: &dyn Cluster, metrics: &Metrics) -> Answer {
    let pod = match Pod::read(&request.object) {
        Ok(pod) => pod,
        Err(error) => return refused(format!("remora: {error}")),
    };
    let Some(surroundings) = cluster.namespace(&request.namespace) else { return unknown_namespace(request) };
    let references = pod.metadata.owner_references.as_deref().unwrap_or_default();
    let owner = cluster::owner(cluster, &request.namespace, references);
    let subject = Subject {
        pod: &pod,
        namespace: &request.namespace,
        surroundings: &surroundings,
        owner: owner.as_ref(),
        gateway: None,
    };
    let decision = decide(&subject, config);
    count(&subject, &decision, metrics);
    match decision {
        Decision::Skip(skip) => {
            tracing::info!(namespace = request.namespace, pod = pod.name(), reason = %skip, "not injected");
            Answer::default()
        }
        Decision::Refuse(refusals) => {
            let reasons: Vec<String> = refusals.iter().map(ToString::to_string).collect();
            refused(format!("remora: this pod cannot be injected safely: {}", reasons.join("; ")))
        }
        Decision::Inject(plan) => {
            let patch = patch(&subject, &plan, config, "");
            let warnings: Vec<String> =
                plan.warnings.into_iter().chain(patch.warnings.iter().cloned()).collect();
            for warning in &warnings {
                metrics.warnings.get(vec![("namespace", request.namespace.clone())]).inc();
                tracing::warn!(
                    namespace = request.namespace,
                    pod = pod.name(),
                    warning,
                    "injected with a warning"
                );
            }
            tracing::info!(namespace = request.namespace, pod = pod.name(), "injected");
            let warnings = warnings.iter().map(|warning| format!("remora: {warning}")).collect();
            Answer { patch: Some(patch.to_value()), warnings, refused: None }
        }
    }
}

fn count(subject: &Subject<'_>, decision: &Decision, metrics: &Metrics) {
    let (asked_by, skip) = match decision {
        Decision::Inject(plan) => (plan.asked_by.as_str(), None),
        Decision::Skip(skip) => ("", Some(*skip)),
        Decision::Refuse(_) => ("", None),
    };
    let labels: Labels = vec![
        ("owner_kind", subject.owner.map(|owner| owner.kind.to_lowercase()).unwrap_or_default()),
        ("namespace", subject.namespace.to_owned()),
        ("annotation_at", asked_by.to_owned()),
    ];
    metrics.requests.get(labels.clone()).inc();
    if matches!(decision, Decision::Refuse(_)) {
        return;
    }
    let mut labels = labels;
    labels.push(("skip", skip.is_some().to_string()));
    labels.push(("skip_reason", skip.map(|skip| skip.as_str().to_owned()).unwrap_or_default()));
    metrics.responses.get(labels).inc();
}

/// A Service only gets its namespace's opaque ports (contract 6.4).
fn service(request: &Request, cluster: &dyn Cluster) -> Answer {
    let Some(surroundings) = cluster.namespace(&request.namespace) else { return unknown_namespace(request) };
    let own = request.object.pointer("/metadata/annotations").and_then(Value::as_object);
    let own = own.into_iter().flatten();
    let own =
        own.map(|(name, value)| (name.clone(), value.as_str().unwrap_or_default().to_owned())).collect();
    let patch = inherit_opaque_ports(&own, &surroundings.annotations).map(Value::Array);
    Answer { patch, ..Answer::default() }
}

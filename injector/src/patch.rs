//! Pure. What is written into a pod: a JSON Patch (RFC 6902) in the order of contract 6.3, the same for the same pod.
//!
//! It only adds: to metadata, volumes and containers. Nothing that stood in the pod is changed, but the value of
//! `config.linkerd.io/opaque-ports` where it named ports. What the containers hold is in `patch/containers.rs`, the
//! proxy's environment in `patch/env.rs`.

#[cfg(planted)]
use remora_core::planted;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::{
    annotations::{Annotations, OPAQUE_PORTS, Settings},
    config::InjectorConfig,
    decide::{CONTROL_NS_LABEL, END_ENTITY_VOLUME, Plan, Subject, TOKEN_VOLUME, XTABLES_VOLUME},
    pod::Pod,
    values::Ports,
};

pub mod containers;
pub mod env;
pub mod resources;

/// Audience of the token that the proxy shows to the CA (contract 2.3).
const TOKEN_AUDIENCE: &str = "identity.l5d.io";
/// Its life in seconds.
const TOKEN_SECONDS: u32 = 86_400;

/// A patch and what there is to say about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Patch {
    /// RFC 6902 operations.
    pub operations: Vec<Value>,
    /// What could not be written as wished.
    pub warnings: Vec<String>,
}

impl Patch {
    /// The patch as a JSON array.
    pub fn to_value(&self) -> Value {
        Value::Array(self.operations.clone())
    }

    /// Carries the patch out on the object it was made for.
    ///
    /// # Errors
    /// If it is another object, in which something stands where the patch expects nothing, or the other way round.
    pub fn apply(&self, object: &mut Value) -> Result<(), Misfit> {
        let operations: json_patch::Patch = serde_json::from_value(self.to_value())?;
        Ok(json_patch::patch(object, &operations)?)
    }
}

/// Why a patch could not be carried out.
#[derive(Debug, thiserror::Error)]
pub enum Misfit {
    /// It is no JSON Patch, which is a bug.
    #[error("the patch is malformed: {0}")]
    Malformed(#[from] serde_json::Error),
    /// The object is not the one it was made for.
    #[error("the patch does not fit the object: {0}")]
    Object(#[from] json_patch::PatchError),
}

/// The patch that carries out `plan`. `prefix` is the JSON pointer to the pod inside the object that is patched: empty
/// for a Pod, `/spec/template` for a Deployment.
pub fn patch(subject: &Subject<'_>, plan: &Plan, config: &InjectorConfig, prefix: &str) -> Patch {
    let pod = subject.pod;
    let settings = &plan.settings;
    let opaque = opaque_ports(pod, settings, config);
    let (resources, mut warnings) = resources::resources(pod.quality(), settings, &config.resources);
    let (labels, unlabelled) = labels(subject, config);
    warnings.extend(unlabelled);

    let mut operations = Operations { prefix, list: Vec::new() };
    operations.metadata(pod, "annotations", &annotations(plan, &opaque, config));
    operations.metadata(pod, "labels", &labels);
    operations.list_unless(pod.spec.volumes.as_ref().is_some_and(|list| !list.is_empty()), "/spec/volumes");
    let has_inits = pod.spec.init_containers.as_ref().is_some_and(|list| !list.is_empty());
    operations.list_unless(has_inits, "/spec/initContainers");

    operations.add("/spec/volumes/-", json!({ "name": XTABLES_VOLUME, "emptyDir": {} }));
    // Before every other init container, so that their traffic is meshed too; without a native sidecar after them,
    // because nobody would answer their redirected traffic.
    let init_at = if settings.native_sidecar { "0" } else { "-" };
    let init = containers::init(settings, config, resources.as_ref());
    operations.add(&format!("/spec/initContainers/{init_at}"), init);
    operations
        .add("/spec/volumes/-", json!({ "name": END_ENTITY_VOLUME, "emptyDir": { "medium": "Memory" } }));
    operations.add("/spec/volumes/-", token_volume());
    let proxy = containers::proxy(pod, settings, &opaque, config, resources.as_ref());
    let proxy_at = match (settings.native_sidecar, settings.wait_for_proxy) {
        (true, _) => "/spec/initContainers/1",
        // First, because the kubelet starts the others only when its postStart has come back.
        (false, true) => "/spec/containers/0",
        (false, false) => "/spec/containers/-",
    };
    operations.add(proxy_at, proxy);
    Patch { operations: operations.list, warnings }
}

/// What a Service gets: its namespace's opaque ports (contract 6.4), because destination reads them from Services too.
/// `None` if it has its own or there are none.
pub fn inherit_opaque_ports(own: &Annotations, namespace: &Annotations) -> Option<Vec<Value>> {
    if own.contains_key(OPAQUE_PORTS) {
        return None;
    }
    let value = namespace.get(OPAQUE_PORTS)?;
    let mut operations = Operations { prefix: "", list: Vec::new() };
    if own.is_empty() {
        operations.add("/metadata/annotations", json!({}));
    }
    operations.add(&format!("/metadata/annotations/{}", escape(OPAQUE_PORTS)), json!(value));
    Some(operations.list)
}

/// The pod's opaque ports: those it or its namespace names; else the default ones that it declares.
struct Opaque {
    /// What the annotation says then; `None` if there is nothing to say.
    annotation: Option<String>,
    /// What the proxy is told.
    ports: Ports,
}

fn opaque_ports(pod: &Pod, settings: &Settings, config: &InjectorConfig) -> Opaque {
    if let Some(ports) = &settings.opaque {
        return Opaque { annotation: Some(ports.to_string()), ports: ports.clone() };
    }
    let default = config.opaque();
    let declared: Vec<u16> =
        pod.declared_ports().into_iter().filter(|port| default.contains(*port)).collect();
    if declared.is_empty() {
        // Without an annotation everybody assumes the default ones, so the proxy must too.
        return Opaque { annotation: None, ports: default };
    }
    let ports = Ports::from(declared.as_slice());
    Opaque { annotation: Some(ports.to_string()), ports }
}

fn annotations(plan: &Plan, opaque: &Opaque, config: &InjectorConfig) -> Annotations {
    let mut annotations = plan.inherited.clone();
    annotations.extend(opaque.annotation.clone().map(|value| (OPAQUE_PORTS.to_owned(), value)));
    let anchors = format!("{:x}", Sha256::digest(config.trust_anchors_pem.as_bytes()));
    for (name, value) in [
        ("linkerd.io/created-by", format!("remora/injector {}", env!("CARGO_PKG_VERSION"))),
        ("linkerd.io/proxy-version", plan.settings.image.version.clone()),
        ("linkerd.io/trust-root-sha256", anchors),
    ] {
        annotations.insert(name.to_owned(), value);
    }
    annotations
}

/// Labels for whoever groups metrics by workload (contract 5.3), and a warning for a name that is no label.
fn labels(subject: &Subject<'_>, config: &InjectorConfig) -> (Annotations, Option<String>) {
    let mut labels = Annotations::from([
        (CONTROL_NS_LABEL.to_owned(), config.control_namespace.clone()),
        ("linkerd.io/workload-ns".to_owned(), subject.namespace.to_owned()),
    ]);
    #[cfg(planted)]
    if planted::makes(planted::Mistake::PodIsNotMarked) {
        labels.remove(CONTROL_NS_LABEL);
    }
    let Some(owner) = subject.owner.filter(|owner| GROUPED.contains(&owner.kind.as_str())) else {
        return (labels, None);
    };
    let label = format!("linkerd.io/proxy-{}", owner.kind.to_lowercase());
    // Names may have 253 bytes, label values 63: the API server would refuse the pod.
    if owner.name.len() > 63 {
        let warning = format!("label {label} is left out: {:?} is longer than 63 bytes", owner.name);
        return (labels, Some(warning));
    }
    labels.insert(label, owner.name.clone());
    (labels, None)
}

/// Kinds of owners that dashboards group by.
const GROUPED: [&str; 7] =
    ["Deployment", "ReplicaSet", "ReplicationController", "StatefulSet", "DaemonSet", "Job", "CronJob"];

fn token_volume() -> Value {
    json!({
        "name": TOKEN_VOLUME,
        "projected": {
            "sources": [{
                "serviceAccountToken": {
                    "path": TOKEN_VOLUME,
                    "expirationSeconds": TOKEN_SECONDS,
                    "audience": TOKEN_AUDIENCE,
                },
            }],
        },
    })
}

/// Operations in the making.
struct Operations<'a> {
    prefix: &'a str,
    list: Vec<Value>,
}

impl Operations<'_> {
    fn add(&mut self, path: &str, value: impl Into<Value>) {
        let path = format!("{}{path}", self.prefix);
        self.list.push(json!({ "op": "add", "path": path, "value": value.into() }));
    }

    /// An empty list at `path`, unless there is one with something in it.
    fn list_unless(&mut self, present: bool, path: &str) {
        if !present {
            self.add(path, json!([]));
        }
    }

    /// Adds `entries` to one of the metadata's maps, after making what is missing above them. What the pod has already
    /// is not written again.
    fn metadata(&mut self, pod: &Pod, map: &str, entries: &Annotations) {
        let metadata = &pod.metadata;
        let old = if map == "labels" { &metadata.labels } else { &metadata.annotations };
        // A template may come without metadata. It is made only by the first map.
        if map == "annotations" && !pod.has_metadata {
            self.add("/metadata", Value::Object(Map::new()));
        }
        if old.as_ref().is_none_or(Annotations::is_empty) {
            self.add(&format!("/metadata/{map}"), Value::Object(Map::new()));
        }
        for (name, value) in entries {
            if old.as_ref().and_then(|old| old.get(name)) != Some(value) {
                self.add(&format!("/metadata/{map}/{}", escape(name)), json!(value));
            }
        }
    }
}

/// A key as a part of a JSON pointer (RFC 6901 section 3).
fn escape(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

#[cfg(test)]
mod tests;

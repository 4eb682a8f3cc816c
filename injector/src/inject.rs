//! Pure. `remora inject`: a stream of YAML documents in, the same stream with annotations or whole sidecars out.
//!
//! What each object becomes is decided by the webhook's own functions. Documents that stay as they are pass through
//! byte for byte; of those that change, the order of fields stays and the comments are lost.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::{
    annotations::{Annotations, INJECT, OPAQUE_PORTS},
    config::InjectorConfig,
    decide::{Decision, Owner, Skip, Subject, Surroundings, decide, decide_by_hand},
    patch::patch,
    pod::Pod,
};

pub(crate) mod documents;

/// What the caller wants.
#[derive(Clone, Debug)]
pub struct Options {
    /// What holds where the flags say nothing.
    pub config: InjectorConfig,
    /// Write the sidecar itself, instead of the annotation that makes the webhook write it.
    pub manual: bool,
    /// Annotations that the flags stand for; `linkerd.io/inject` among them only for `ingress`.
    pub annotations: Annotations,
    /// The namespace of objects that name none.
    pub namespace: String,
    /// How documents are written.
    pub output: Output,
}

/// How documents are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// YAML documents, separated by `---`.
    Yaml,
    /// JSON documents, one after the other.
    Json,
}

/// What became of one object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Its kind, lower case as kubectl writes it.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// What was done.
    pub outcome: Outcome,
    /// Why, if it was skipped or refused.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<String>,
    /// What its owner should know.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// What was done to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It has a sidecar, or the annotation that brings one.
    Injected,
    /// It has annotations for others to read (namespaces, Services).
    Annotated,
    /// It is as it was.
    Skipped,
    /// It must not run as it is.
    Refused,
}

/// Why a stream could not be read.
#[derive(Debug, thiserror::Error)]
#[error("document {number}: {why}")]
pub struct Unreadable {
    /// Counted from 1.
    pub number: usize,
    /// What is wrong with it.
    pub why: String,
}

/// The stream and what became of each object in it.
#[derive(Debug)]
pub struct Injected {
    /// The documents. Do not hand them on if a report says `Refused`.
    pub text: String,
    /// In the order of the stream.
    pub reports: Vec<Report>,
}

/// Reads, changes and writes a stream.
///
/// # Errors
/// If a document is no YAML or is not what its kind says.
pub fn stream(text: &str, options: &Options) -> Result<Injected, Unreadable> {
    let documents = documents::split(text);
    let mut objects = Vec::new();
    for (index, document) in documents.iter().enumerate() {
        let unreadable = |why| Unreadable { number: index + 1, why };
        objects.push(documents::parse(document).map_err(unreadable)?);
    }
    // Namespaces of the stream count for the pods in it, wherever they stand.
    let mut namespaces = BTreeMap::new();
    objects.iter().flatten().for_each(|object| collect_namespaces(object, &mut namespaces));

    let mut writer = documents::Writer::new(options.output);
    let mut reports = Vec::new();
    for (index, (document, object)) in documents.iter().zip(objects).enumerate() {
        let Some(before) = object else {
            writer.verbatim(document);
            continue;
        };
        let mut after = before.clone();
        let mut hand = Hand { options, namespaces: &namespaces, reports: &mut reports };
        hand.object(&mut after).map_err(|why| Unreadable { number: index + 1, why })?;
        if after == before && options.output == Output::Yaml {
            writer.verbatim(document);
        } else {
            writer.changed(document, &after).map_err(|why| Unreadable { number: index + 1, why })?;
        }
    }
    Ok(Injected { text: writer.finish(), reports })
}

/// Where the pod stands inside an object of this kind (contract 6.2), as a JSON pointer.
pub fn template(kind: &str) -> Option<&'static str> {
    match kind {
        "Pod" => Some(""),
        "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet" | "ReplicationController" | "Job" => {
            Some("/spec/template")
        }
        "CronJob" => Some("/spec/jobTemplate/spec/template"),
        _ => None,
    }
}

pub(crate) fn text_at<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// `linkerd.io/inject` of the metadata at `prefix`; empty if it is not there.
fn switch<'a>(object: &'a Value, prefix: &str) -> &'a str {
    text_at(object, &format!("{prefix}/metadata/annotations/linkerd.io~1inject"))
}

pub(crate) fn strings_at(object: &Value, pointer: &str) -> Annotations {
    let map = object.pointer(pointer).and_then(Value::as_object).into_iter().flatten();
    map.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))).collect()
}

pub(crate) fn collect_namespaces(object: &Value, found: &mut BTreeMap<String, Surroundings>) {
    match text_at(object, "/kind") {
        "Namespace" => {
            let annotations = strings_at(object, "/metadata/annotations");
            let labels = strings_at(object, "/metadata/labels");
            found.insert(text_at(object, "/metadata/name").to_owned(), Surroundings { annotations, labels });
        }
        "List" => {
            let items = object.get("items").and_then(Value::as_array).into_iter().flatten();
            items.for_each(|item| collect_namespaces(item, found));
        }
        _ => {}
    }
}

/// Somebody at work on one object after the other.
struct Hand<'a> {
    options: &'a Options,
    namespaces: &'a BTreeMap<String, Surroundings>,
    reports: &'a mut Vec<Report>,
}

impl Hand<'_> {
    fn object(&mut self, object: &mut Value) -> Result<(), String> {
        let kind = text_at(object, "/kind").to_owned();
        if let ("List", Some(items)) = (kind.as_str(), object.get_mut("items").and_then(Value::as_array_mut))
        {
            return items.iter_mut().try_for_each(|item| self.object(item));
        }
        let name = match text_at(object, "/metadata/name") {
            "" => text_at(object, "/metadata/generateName").to_owned(),
            name => name.to_owned(),
        };
        let mut report = Report {
            kind: kind.to_lowercase(),
            name,
            outcome: Outcome::Skipped,
            reasons: Vec::new(),
            warnings: Vec::new(),
        };
        match template(&kind) {
            Some(prefix) => self.workload(object, &kind, prefix, &mut report)?,
            None if kind == "Namespace" && !self.options.manual => {
                if switch(object, "") == "disabled" {
                    report.reasons.push(Skip::DisabledByNamespace.to_string());
                } else {
                    annotate(object, "", &self.switched_on(object, ""))?;
                    report.outcome = Outcome::Annotated;
                }
            }
            None if kind == "Service" && self.options.annotations.contains_key(OPAQUE_PORTS) => {
                let mut annotations = self.options.annotations.clone();
                annotations.retain(|name, _| name == OPAQUE_PORTS);
                annotate(object, "", &annotations)?;
                report.outcome = Outcome::Annotated;
            }
            None => report.reasons.push(Skip::UnsupportedKind.to_string()),
        }
        self.reports.push(report);
        Ok(())
    }

    /// The flags' annotations and the switch: as a flag says, else as it stands, else on.
    fn switched_on(&self, object: &Value, prefix: &str) -> Annotations {
        let mut annotations = self.options.annotations.clone();
        annotations.entry(INJECT.to_owned()).or_insert_with(|| match switch(object, prefix) {
            "ingress" => "ingress".to_owned(),
            _ => "enabled".to_owned(),
        });
        annotations
    }

    fn workload(
        &self,
        object: &mut Value,
        kind: &str,
        prefix: &str,
        report: &mut Report,
    ) -> Result<(), String> {
        let before = object.clone();
        let place = || format!("{}/{}", kind.to_lowercase(), report.name);
        let annotations = if self.options.manual {
            self.options.annotations.clone()
        } else {
            self.switched_on(object, prefix)
        };
        if switch(object, prefix) != "disabled" {
            annotate(object, prefix, &annotations).map_err(|why| format!("{}: {why}", place()))?;
        }
        let template = object.pointer(prefix).ok_or_else(|| format!("{}: it has no {prefix}", place()))?;
        let pod = Pod::read(template).map_err(|error| format!("{}: {error}", place()))?;
        let namespace = match text_at(object, "/metadata/namespace") {
            "" => self.options.namespace.clone(),
            namespace => namespace.to_owned(),
        };
        let alone = Surroundings::default();
        let surroundings = self.namespaces.get(&namespace).unwrap_or(&alone);
        let owner = Owner { kind: kind.to_owned(), name: report.name.clone() };
        let owner = (kind != "Pod").then_some(&owner);
        let subject = Subject { pod: &pod, namespace: &namespace, surroundings, owner, gateway: None };

        let config = &self.options.config;
        let decision =
            if self.options.manual { decide_by_hand(&subject, config) } else { decide(&subject, config) };
        match decision {
            Decision::Skip(skip) => {
                *object = before;
                report.reasons.push(skip.to_string());
            }
            Decision::Refuse(refusals) => {
                report.outcome = Outcome::Refused;
                report.reasons = refusals.iter().map(ToString::to_string).collect();
            }
            Decision::Inject(plan) => {
                report.outcome = Outcome::Injected;
                report.warnings.clone_from(&plan.warnings);
                if self.options.manual {
                    let patch = patch(&subject, &plan, config, prefix);
                    patch.apply(object).map_err(|error| format!("{}: {error}", place()))?;
                    report.warnings.extend(patch.warnings);
                }
            }
        }
        Ok(())
    }
}

/// Sets annotations on the metadata at `prefix`, making what is missing above them.
fn annotate(object: &mut Value, prefix: &str, annotations: &Annotations) -> Result<(), String> {
    if annotations.is_empty() {
        return Ok(());
    }
    let mut at = object.pointer_mut(prefix).ok_or_else(|| format!("it has no {prefix}"))?;
    for field in ["metadata", "annotations"] {
        let map = at.as_object_mut().ok_or_else(|| format!("what should hold {field} is not a map"))?;
        at = map.entry(field).or_insert(Value::Null);
        if at.is_null() {
            *at = Value::Object(Map::new());
        }
    }
    let map = at.as_object_mut().ok_or_else(|| "its annotations are not a map".to_owned())?;
    map.extend(annotations.iter().map(|(name, value)| (name.clone(), json!(value))));
    Ok(())
}

//! Pure. What a cluster would make of manifests that were never in one: every workload has a pod, with the proxy that the
//! webhook would give it, and every pod and every Service has an address.
//!
//! For whoever asks about a directory of manifests as it is written, not as `kubectl get` prints it. What came out of a
//! cluster stays as it is.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use serde_json::{Map, Value, json};

use crate::{
    config::InjectorConfig,
    decide::{Decision, Owner, Subject, Surroundings, decide},
    inject::{
        collect_namespaces,
        documents::{parse, split},
        strings_at, template, text_at,
    },
    patch::patch,
    pod::Pod,
};

/// The manifests with what was supposed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Supposed {
    /// Files by name, pods at the end of the file of their workload. Where nothing was supposed they are as they were.
    pub files: BTreeMap<String, String>,
    /// Pods that have an address, or are there, only because it was supposed.
    pub pods: usize,
    /// Services that have an address only because it was supposed.
    pub services: usize,
    /// Whose pods the webhook would keep out, or cannot be read, and why.
    pub kept_out: Vec<String>,
}

/// Supposes what is missing in these files. A file with a document that cannot be read stays as it is.
pub fn suppose(files: &BTreeMap<String, String>, config: &InjectorConfig) -> Supposed {
    let mut read: BTreeMap<&String, Vec<(String, Option<Value>)>> = files
        .iter()
        .filter_map(|(name, text)| {
            let documents = split(text).into_iter();
            let parsed: Result<_, String> = documents.map(|text| Ok((parse(&text)?, text))).collect();
            let parsed: Vec<(Option<Value>, String)> = parsed.ok()?;
            Some((name, parsed.into_iter().map(|(object, text)| (text, object)).collect()))
        })
        .collect();
    let mut namespaces = BTreeMap::new();
    let mut running = Vec::new();
    for object in read.values().flatten().filter_map(|(_, object)| object.as_ref()) {
        collect_namespaces(object, &mut namespaces);
        collect_pods(object, &mut running);
    }
    let taken: BTreeSet<IpAddr> = files.values().flat_map(|text| named(text)).collect();
    // From the end of the network, where the addresses of clusters seldom begin.
    let network = config.cluster_networks.first();
    let free = network.into_iter().flat_map(|network| network.hosts().rev());
    let free = free.filter(move |ip| !taken.contains(ip));
    let mut world = World {
        config,
        namespaces,
        running,
        free: Box::new(free),
        pods: Vec::new(),
        supposed: Supposed { files: files.clone(), ..Supposed::default() },
    };
    for (name, documents) in &mut read {
        let mut changed = false;
        for (text, object) in documents.iter_mut() {
            let Some(object) = object else { continue };
            if world.object(object) {
                *text = object.to_string();
                changed = true;
            }
        }
        if changed || !world.pods.is_empty() {
            let texts = documents.iter().map(|(text, _)| text.clone()).chain(world.pods.drain(..));
            let texts: Vec<String> = texts.collect();
            world.supposed.files.insert((*name).clone(), texts.join("\n---\n"));
        }
    }
    world.supposed
}

/// The addresses that a text names, also those with a port or the length of a prefix.
fn named(text: &str) -> impl Iterator<Item = IpAddr> {
    let words = text.split(|letter: char| !letter.is_ascii_hexdigit() && !matches!(letter, '.' | ':'));
    words.filter(|word| word.contains(['.', ':'])).filter_map(|word| {
        let address = |word: &str| word.parse().or_else(|_| word.parse().map(|addr: SocketAddr| addr.ip()));
        // What ends a sentence, or a key of YAML, is no part of it.
        address(word).or_else(|_| address(word.trim_end_matches(['.', ':']))).ok()
    })
}

/// A pod that is among the manifests.
struct Running {
    namespace: String,
    name: String,
    labels: BTreeMap<String, String>,
}

fn collect_pods(object: &Value, found: &mut Vec<Running>) {
    match text_at(object, "/kind") {
        "Pod" => found.push(Running {
            namespace: namespace_of(object),
            name: text_at(object, "/metadata/name").to_owned(),
            labels: strings_at(object, "/metadata/labels"),
        }),
        "List" => items(object).for_each(|item| collect_pods(item, found)),
        _ => {}
    }
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.get("items").and_then(Value::as_array).into_iter().flatten()
}

fn namespace_of(object: &Value) -> String {
    match text_at(object, "/metadata/namespace") {
        "" => "default".to_owned(),
        namespace => namespace.to_owned(),
    }
}

/// A cluster has seen it.
fn is_real(object: &Value) -> bool {
    object.pointer("/metadata/uid").is_some() || object.pointer("/status/podIP").is_some()
}

struct World<'a> {
    config: &'a InjectorConfig,
    namespaces: BTreeMap<String, Surroundings>,
    running: Vec<Running>,
    /// Addresses that nobody has.
    free: Box<dyn Iterator<Item = IpAddr> + 'a>,
    /// Documents of the pods of one file's workloads.
    pods: Vec<String>,
    supposed: Supposed,
}

impl World<'_> {
    /// Supposes what an object lacks; whether it is another one now.
    fn object(&mut self, object: &mut Value) -> bool {
        let kind = text_at(object, "/kind").to_owned();
        if let ("List", Some(items)) = (kind.as_str(), object.get_mut("items").and_then(Value::as_array_mut))
        {
            // Each, although one is enough to say that the list has changed.
            let changed: Vec<bool> = items.iter_mut().map(|item| self.object(item)).collect();
            return changed.contains(&true);
        }
        if is_real(object) {
            return false;
        }
        match (kind.as_str(), template(&kind)) {
            ("Service", _) => self.service(object),
            ("Pod", _) => {
                let Some(pod) = self.pod(object.clone(), None) else { return false };
                *object = pod;
                true
            }
            (_, Some(prefix)) => {
                self.workload(object, &kind, prefix);
                false
            }
            (_, None) => false,
        }
    }

    fn service(&mut self, service: &mut Value) -> bool {
        if text_at(service, "/spec/type") == "ExternalName" || service.pointer("/spec/clusterIP").is_some() {
            return false;
        }
        let Some(spec) = service.get_mut("spec").and_then(Value::as_object_mut) else { return false };
        let Some(ip) = self.free.next() else { return false };
        spec.insert("clusterIP".to_owned(), json!(ip));
        self.supposed.services += 1;
        true
    }

    /// Adds a pod of this workload, unless there is one, or none is wanted.
    fn workload(&mut self, workload: &Value, kind: &str, prefix: &str) {
        let Some(template) = workload.pointer(prefix) else { return };
        let (name, namespace) = (text_at(workload, "/metadata/name"), namespace_of(workload));
        let labels = strings_at(template, "/metadata/labels");
        let pod_name = format!("{name}-0");
        let is_one = |pod: &Running| {
            let alike = labels.iter().all(|(key, value)| pod.labels.get(key) == Some(value));
            pod.namespace == namespace && (pod.name == pod_name || alike && !labels.is_empty())
        };
        let none_wanted = workload.pointer("/spec/replicas").is_some_and(|count| *count == json!(0));
        if none_wanted || self.running.iter().any(is_one) {
            return;
        }
        let mut pod = template.clone();
        let Some(fields) = pod.as_object_mut() else { return };
        fields.insert("apiVersion".to_owned(), json!("v1"));
        fields.insert("kind".to_owned(), json!("Pod"));
        let metadata = fields.entry("metadata").or_insert(Value::Null);
        if metadata.is_null() {
            *metadata = Value::Object(Map::new());
        }
        let Some(metadata) = metadata.as_object_mut() else { return };
        metadata.insert("name".to_owned(), json!(pod_name));
        metadata.insert("namespace".to_owned(), json!(namespace));
        let owner = json!([{
            "apiVersion": text_at(workload, "/apiVersion"), "kind": kind, "name": name, "uid": "supposed",
            "controller": true,
        }]);
        metadata.insert("ownerReferences".to_owned(), owner);
        let owner = Owner { kind: kind.to_owned(), name: name.to_owned() };
        if let Some(pod) = self.pod(pod, Some(&owner)) {
            self.pods.push(pod.to_string());
        }
    }

    /// A pod as the webhook lets it in, running and ready; `None` if it keeps it out.
    fn pod(&mut self, mut object: Value, owner: Option<&Owner>) -> Option<Value> {
        let namespace = namespace_of(&object);
        let called = match owner {
            Some(owner) => format!("{} {namespace}/{}", owner.kind, owner.name),
            None => format!("Pod {namespace}/{}", text_at(&object, "/metadata/name")),
        };
        if let Err(why) = self.admitted(&mut object, &namespace, owner) {
            self.supposed.kept_out.push(format!("{called}: the webhook would keep its pods out: {why}"));
            return None;
        }
        let ip = self.free.next()?;
        let ready = json!([{ "type": "Ready", "status": "True" }]);
        let status =
            json!({ "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }], "conditions": ready });
        object.as_object_mut()?.insert("status".to_owned(), status);
        self.supposed.pods += 1;
        Some(object)
    }

    fn admitted(&self, object: &mut Value, namespace: &str, owner: Option<&Owner>) -> Result<(), String> {
        let pod = Pod::read(object).map_err(|error| error.to_string())?;
        let alone = Surroundings::default();
        let surroundings = self.namespaces.get(namespace).unwrap_or(&alone);
        let subject = Subject { pod: &pod, namespace, surroundings, owner, gateway: None };
        match decide(&subject, self.config) {
            Decision::Skip(_) => Ok(()),
            Decision::Refuse(refusals) => {
                Err(refusals.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
            }
            Decision::Inject(plan) => {
                let patch = patch(&subject, &plan, self.config, "");
                patch.apply(object).map_err(|error| error.to_string())
            }
        }
    }
}

#[cfg(test)]
mod tests;

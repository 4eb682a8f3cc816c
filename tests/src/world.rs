//! The objects of one node: what was applied, plus what the node itself says (status, addresses, endpoints).
//!
//! Plain data and pure questions. Nothing here touches the machine.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde::Deserialize as _;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::environment::Lookup;

/// A namespaced name, printed as `namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    pub namespace: String,
    pub name: String,
}

impl Name {
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// The name of a pod object.
    pub fn of(pod: &Pod) -> Self {
        let meta = &pod.metadata;
        Self::new(meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Everything that was applied, and every pod with its status.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// By kind, then name. Cluster-scoped objects have an empty namespace. Pods are not here.
    objects: BTreeMap<(String, Name), Value>,
    pub pods: BTreeMap<Name, Pod>,
}

/// The documents of a YAML text; a `List` counts as its items.
///
/// # Errors
/// Text that is not YAML, or a document without `kind` or `metadata.name`: says which document.
pub fn parse(yaml: &str) -> Result<Vec<Value>> {
    let mut found = Vec::new();
    for (index, document) in serde_norway::Deserializer::from_str(yaml).enumerate() {
        let what = || format!("YAML document {}", index + 1);
        let mut value = serde_norway::Value::deserialize(document).with_context(what)?;
        value.apply_merge().with_context(what)?;
        let value = serde_json::to_value(value).with_context(what)?;
        if value.is_null() {
            continue;
        }
        if value.get("kind").and_then(Value::as_str) == Some("List") {
            found.extend(value.get("items").and_then(Value::as_array).cloned().unwrap_or_default());
        } else {
            found.push(value);
        }
    }
    for value in &found {
        if kind(value).is_empty() || name(value).name.is_empty() {
            bail!("a manifest has no kind or no metadata.name: {value}");
        }
    }
    Ok(found)
}

/// `kind`, or nothing.
pub fn kind(object: &Value) -> &str {
    object.get("kind").and_then(Value::as_str).unwrap_or_default()
}

/// The object's name; objects of no namespace are in `default` unless their kind has none.
pub fn name(object: &Value) -> Name {
    let meta = |field: &str| {
        object.get("metadata").and_then(|meta| meta.get(field)).and_then(Value::as_str).unwrap_or_default()
    };
    let namespace = match kind(object) {
        "Namespace"
        | "CustomResourceDefinition"
        | "ClusterRole"
        | "ClusterRoleBinding"
        | "GatewayClass"
        | "MutatingWebhookConfiguration"
        | "Node" => "",
        _ if meta("namespace").is_empty() => "default",
        _ => meta("namespace"),
    };
    Name::new(namespace, meta("name"))
}

impl World {
    /// Adds or replaces an object that is not a pod.
    pub fn put(&mut self, object: Value) {
        self.objects.insert((kind(&object).to_owned(), name(&object)), object);
    }

    pub fn remove(&mut self, kind: &str, name: &Name) -> Option<Value> {
        self.objects.remove(&(kind.to_owned(), name.clone()))
    }

    /// The object as it was applied.
    pub fn object(&self, kind: &str, name: &Name) -> Option<&Value> {
        self.objects.get(&(kind.to_owned(), name.clone()))
    }

    /// An object as its type; `None` also where it does not have that type's shape.
    pub fn get<T: DeserializeOwned>(&self, kind: &str, name: &Name) -> Option<T> {
        self.object(kind, name).and_then(|object| T::deserialize(object).ok())
    }

    /// All objects of a kind, by name.
    pub fn all<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Value> {
        self.objects.iter().filter(move |((found, _), _)| found == kind).map(|(_, object)| object)
    }

    pub fn services(&self) -> Vec<Service> {
        self.all("Service").filter_map(|object| Service::deserialize(object).ok()).collect()
    }

    /// What a control plane that reads a directory should see: every object, and pods with their status.
    pub fn manifests(&self) -> BTreeMap<String, Value> {
        let mut files = BTreeMap::new();
        for ((kind, name), object) in &self.objects {
            // Secrets hold keys; no process that reads the directory needs them.
            if kind != "Secret" {
                files.insert(file_name(kind, name), object.clone());
            }
        }
        for (name, pod) in &self.pods {
            if let Ok(object) = serde_json::to_value(pod) {
                files.insert(file_name("Pod", name), object);
            }
        }
        files
    }
}

fn file_name(kind: &str, name: &Name) -> String {
    format!("{}_{}_{}.yaml", kind.to_lowercase(), name.namespace, name.name)
}

impl Lookup for World {
    fn config_map(&self, namespace: &str, name: &str) -> Option<BTreeMap<String, Vec<u8>>> {
        let map: ConfigMap = self.get("ConfigMap", &Name::new(namespace, name))?;
        let text = map.data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.into_bytes()));
        let bytes = map.binary_data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.0));
        Some(text.chain(bytes).collect())
    }

    fn secret(&self, namespace: &str, name: &str) -> Option<BTreeMap<String, Vec<u8>>> {
        let secret: Secret = self.get("Secret", &Name::new(namespace, name))?;
        let bytes = secret.data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.0));
        let text =
            secret.string_data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.into_bytes()));
        Some(bytes.chain(text).collect())
    }
}

/// A Secret from bytes, as `kubectl create secret generic` makes it.
pub fn secret(name: &Name, data: &[(&str, &[u8])]) -> Value {
    let data: BTreeMap<&str, String> = data
        .iter()
        .map(|(key, value)| (*key, base64::engine::general_purpose::STANDARD.encode(value)))
        .collect();
    serde_json::json!({
        "apiVersion": "v1", "kind": "Secret", "data": data,
        "metadata": {"name": name.name, "namespace": name.namespace},
    })
}

/// A ConfigMap from text.
pub fn config_map(name: &Name, data: &[(&str, &str)]) -> Value {
    let data: BTreeMap<&str, &str> = data.iter().copied().collect();
    serde_json::json!({
        "apiVersion": "v1", "kind": "ConfigMap", "data": data,
        "metadata": {"name": name.name, "namespace": name.namespace},
    })
}

/// Whether a label selector selects these labels. An absent or empty selector selects everything.
pub fn selects(selector: Option<&LabelSelector>, labels: &BTreeMap<String, String>) -> bool {
    let Some(selector) = selector else { return true };
    let equal = selector.match_labels.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    equal
        && selector.match_expressions.iter().flatten().all(|expression| {
            let values = expression.values.as_deref().unwrap_or_default();
            let found = labels.get(&expression.key);
            match expression.operator.as_str() {
                "In" => found.is_some_and(|value| values.contains(value)),
                "NotIn" => found.is_none_or(|value| !values.contains(value)),
                "Exists" => found.is_some(),
                "DoesNotExist" => found.is_none(),
                _ => false,
            }
        })
}

/// Whether the pod's `Ready` condition is true.
pub fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready")
}

/// Whether the pod has this condition with status `True`.
pub fn condition(pod: &Pod, kind: &str) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| condition.type_ == kind && condition.status == "True")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_counts_as_its_items_and_empty_documents_as_nothing() {
        let text = "---\n# nothing\n---\nkind: List\nitems:\n- {kind: Pod, metadata: {name: a}}\n---\n\
                    {kind: Service, metadata: {name: b, namespace: n}}\n";
        let found = parse(text).unwrap();
        assert_eq!(
            found.iter().map(|object| name(object).to_string()).collect::<Vec<_>>(),
            ["default/a", "n/b"]
        );
    }

    #[test]
    fn a_document_without_a_name_is_refused() {
        assert!(parse("kind: Pod\n").is_err());
    }

    #[test]
    fn selectors_select_by_labels_and_expressions() {
        let selector: LabelSelector = serde_json::from_value(serde_json::json!({
            "matchLabels": {"app": "web"},
            "matchExpressions": [{"key": "skip", "operator": "DoesNotExist"}],
        }))
        .unwrap();
        for (labels, expected) in [
            (vec![("app", "web")], true),
            (vec![("app", "db")], false),
            (vec![("app", "web"), ("skip", "1")], false),
        ] {
            let labels = labels.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
            assert_eq!(selects(Some(&selector), &labels), expected, "{labels:?}");
        }
    }

    #[test]
    fn secrets_never_reach_the_manifests_directory() {
        let mut world = World::default();
        world.put(secret(&Name::new("n", "key"), &[("tls.key", b"private")]));
        world.put(config_map(&Name::new("n", "roots"), &[("bundle", "x")]));
        assert_eq!(world.manifests().keys().collect::<Vec<_>>(), ["configmap_n_roots.yaml"]);
        assert_eq!(world.secret("n", "key").unwrap()["tls.key"], b"private");
    }
}

//! What the webhook must know besides the pod: its namespace's metadata and what its ReplicaSet belongs to.
//!
//! [`Cluster`] is the seam to a Kubernetes watch; [`Manifests`] is the standalone home, a directory of YAML.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::decide::{Owner, Surroundings};

/// Files larger than this are not read: no manifest is.
const MAX_FILE: u64 = 4 << 20;
/// At most so many files are read.
const MAX_FILES: usize = 4096;

/// What is known of a cluster. Implementations answer from memory or local files and may block for milliseconds.
pub trait Cluster: Send + Sync {
    /// A namespace's metadata; `None` if it is not known.
    fn namespace(&self, name: &str) -> Option<Surroundings>;
    /// What a ReplicaSet belongs to; `None` if to nothing, or it is not known.
    fn replica_set_owner(&self, namespace: &str, name: &str) -> Option<Owner>;
}

/// The workload that `references` lead to: the controller, and for a ReplicaSet its Deployment.
pub fn owner(cluster: &dyn Cluster, namespace: &str, references: &[OwnerReference]) -> Option<Owner> {
    let controller = references
        .iter()
        .find(|reference| reference.controller == Some(true))
        .or_else(|| references.first())?;
    let direct = Owner { kind: controller.kind.clone(), name: controller.name.clone() };
    if direct.kind == "ReplicaSet" {
        return Some(cluster.replica_set_owner(namespace, &direct.name).unwrap_or(direct));
    }
    Some(direct)
}

/// A directory of manifests, looked at again at every question: what was written before a pod was, counts for it.
#[derive(Debug)]
pub struct Manifests {
    directory: PathBuf,
    files: Mutex<BTreeMap<PathBuf, Known>>,
}

/// What a file said when it could last be read.
#[derive(Debug, Default)]
struct Known {
    digest: [u8; 32],
    namespaces: BTreeMap<String, Surroundings>,
    /// By namespace and name.
    replica_sets: BTreeMap<(String, String), Owner>,
}

/// The part of an object that is read.
#[derive(Deserialize)]
struct Object {
    kind: String,
    #[serde(default)]
    metadata: ObjectMeta,
    #[serde(default)]
    items: Vec<Value>,
}

impl Manifests {
    /// The manifests below `directory`.
    ///
    /// # Errors
    /// If it cannot be listed.
    pub fn new(directory: &Path) -> io::Result<Self> {
        fs::read_dir(directory)?;
        Ok(Self { directory: directory.to_owned(), files: Mutex::default() })
    }

    /// Reads what has changed, then asks.
    fn ask<T>(&self, question: impl Fn(&Known) -> Option<T>) -> Option<T> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let paths = list(&self.directory);
        files.retain(|path, _| paths.contains(path));
        for path in paths {
            let Ok(bytes) = fs::read(&path) else { continue };
            let digest: [u8; 32] = Sha256::digest(&bytes).into();
            let known = files.entry(path.clone()).or_default();
            if known.digest == digest {
                continue;
            }
            known.digest = digest;
            match read(&bytes) {
                Ok((namespaces, replica_sets)) => *known = Known { digest, namespaces, replica_sets },
                Err(error) => {
                    tracing::warn!(file = %path.display(), error, "a manifest cannot be read; what it said before holds");
                }
            }
        }
        files.values().find_map(question)
    }
}

impl Cluster for Manifests {
    fn namespace(&self, name: &str) -> Option<Surroundings> {
        let found = self.ask(|known| known.namespaces.get(name).cloned());
        // Kubernetes makes this one itself, so that nobody writes it down.
        found.or_else(|| (name == "default").then(Surroundings::default))
    }

    fn replica_set_owner(&self, namespace: &str, name: &str) -> Option<Owner> {
        let key = (namespace.to_owned(), name.to_owned());
        self.ask(|known| known.replica_sets.get(&key).cloned())
    }
}

/// The manifests below `directory`. Hidden entries are passed over: a mounted ConfigMap holds every file twice.
fn list(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let path = entry.path();
            let hidden = entry.file_name().to_string_lossy().starts_with('.');
            let Ok(about) = fs::metadata(&path) else { continue };
            let manifest =
                path.extension().is_some_and(|end| ["yaml", "yml", "json"].iter().any(|known| end == *known));
            if hidden || found.len() + directories.len() >= MAX_FILES {
                continue;
            }
            if about.is_dir() && !about.is_symlink() {
                directories.push(path);
            } else if about.is_file() && manifest && about.len() <= MAX_FILE {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

type Read = (BTreeMap<String, Surroundings>, BTreeMap<(String, String), Owner>);

fn read(bytes: &[u8]) -> Result<Read, String> {
    let mut read = Read::default();
    for document in serde_norway::Deserializer::from_slice(bytes) {
        let value = Value::deserialize(document).map_err(|error| error.to_string())?;
        if !value.is_null() {
            collect(value, &mut read).map_err(|error| error.to_string())?;
        }
    }
    Ok(read)
}

fn collect(value: Value, read: &mut Read) -> Result<(), serde_json::Error> {
    let object: Object = serde_json::from_value(value)?;
    let name = object.metadata.name.unwrap_or_default();
    match object.kind.as_str() {
        "List" => object.items.into_iter().try_for_each(|item| collect(item, read))?,
        "Namespace" => {
            let annotations = object.metadata.annotations.unwrap_or_default();
            let labels = object.metadata.labels.unwrap_or_default();
            read.0.insert(name, Surroundings { annotations, labels });
        }
        "ReplicaSet" => {
            let namespace = object.metadata.namespace.unwrap_or_else(|| "default".to_owned());
            let references = object.metadata.owner_references.unwrap_or_default();
            if let Some(owner) = references.into_iter().find(|reference| reference.controller == Some(true)) {
                read.1.insert((namespace, name), Owner { kind: owner.kind, name: owner.name });
            }
        }
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(directory: &Path, name: &str, text: &str) {
        fs::create_dir_all(directory.join(name).parent().unwrap()).unwrap();
        fs::write(directory.join(name), text).unwrap();
    }

    fn inject(cluster: &Manifests, namespace: &str) -> Option<String> {
        cluster.namespace(namespace)?.annotations.get("linkerd.io/inject").cloned()
    }

    #[test]
    fn files_are_followed_and_broken_ones_keep_what_they_said() {
        let home = tempfile::tempdir().unwrap();
        let cluster = Manifests::new(home.path()).unwrap();
        assert_eq!(cluster.namespace("shop"), None);
        assert_eq!(cluster.namespace("default"), Some(Surroundings::default()));
        let shop = "kind: List\nitems:\n- kind: Namespace\n  metadata:\n    name: shop\n    annotations: {linkerd.io/inject: on}\n";
        write(home.path(), "deep/all.yaml", &shop.replace("on}", "enabled}"));
        assert_eq!(inject(&cluster, "shop").as_deref(), Some("enabled"));
        write(home.path(), "deep/all.yaml", "kind: [");
        assert_eq!(inject(&cluster, "shop").as_deref(), Some("enabled"));
        write(home.path(), "deep/all.yaml", &shop.replace("on}", "ingress}"));
        assert_eq!(inject(&cluster, "shop").as_deref(), Some("ingress"));
        fs::remove_file(home.path().join("deep/all.yaml")).unwrap();
        assert_eq!(cluster.namespace("shop"), None);
        write(home.path(), "notes.txt", shop);
        write(home.path(), "..data/all.yaml", shop);
        assert_eq!(cluster.namespace("shop"), None);
    }

    #[test]
    fn a_replica_sets_pod_belongs_to_its_deployment() {
        let home = tempfile::tempdir().unwrap();
        let cluster = Manifests::new(home.path()).unwrap();
        let reference = |kind: &str, name: &str| OwnerReference {
            kind: kind.to_owned(),
            name: name.to_owned(),
            controller: Some(true),
            ..OwnerReference::default()
        };
        let references = [reference("ReplicaSet", "web-1")];
        let named = |owner: Option<Owner>| owner.map(|owner| format!("{}/{}", owner.kind, owner.name));
        assert_eq!(named(owner(&cluster, "shop", &references)).as_deref(), Some("ReplicaSet/web-1"));
        write(
            home.path(),
            "web.yaml",
            "---\n---\nkind: ReplicaSet\nmetadata:\n  name: web-1\n  namespace: shop\n  ownerReferences:\n  \
             - {apiVersion: apps/v1, kind: Deployment, name: web, uid: a, controller: true}\n",
        );
        assert_eq!(named(owner(&cluster, "shop", &references)).as_deref(), Some("Deployment/web"));
        assert_eq!(named(owner(&cluster, "other", &references)).as_deref(), Some("ReplicaSet/web-1"));
        assert_eq!(named(owner(&cluster, "shop", &[reference("Job", "once")])).as_deref(), Some("Job/once"));
        assert_eq!(named(owner(&cluster, "shop", &[])), None);
    }
}

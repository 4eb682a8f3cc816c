//! What the harness asks of its helper program `pod-exec`: one container, fully decided.
//!
//! Plain data, written as JSON by the harness and read by the helper inside the pod's namespaces. No decisions here.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// One container's process: its root file system, its user and privileges, and what to run.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct ContainerSpec {
    /// The directory (on the node's own tmpfs) that receives `upper`, `work` and `merged`.
    pub root: PathBuf,
    /// Layers over the machine's root file system, topmost first.
    pub layers: Vec<PathBuf>,
    /// `readOnlyRootFilesystem`.
    pub read_only: bool,
    /// Mounts inside the root, in the order they are made.
    pub binds: Vec<Bind>,
    pub argv: Vec<String>,
    pub env: Vec<(String, String)>,
    /// Absolute, inside the root.
    pub cwd: PathBuf,
    pub user: User,
    /// Capabilities of the bounding, permitted and effective sets: a bit mask as in `/proc/self/status`.
    pub capabilities: u64,
    pub no_new_privs: bool,
    /// Where the helper writes its process id as the machine sees it, before it becomes the container's process.
    pub pid_file: PathBuf,
}

/// A file or directory shown at another place.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct Bind {
    pub source: PathBuf,
    /// Absolute, inside the container's root. Missing parents are made in the container's own layer.
    pub target: PathBuf,
    pub read_only: bool,
}

/// Who the process runs as.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups (`fsGroup`, `supplementalGroups`).
    pub groups: Vec<u32>,
}

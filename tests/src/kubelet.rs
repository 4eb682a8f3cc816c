//! What one node knows and publishes: its objects, its pods' processes, the rules for services, DNS and manifests.
//!
//! How a pod lives is in `life.rs`, how one of its containers does in `supervise.rs`.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;
use tokio::sync::watch;

use crate::dns::Zone;
use crate::image::Layers;
use crate::sandbox::{Addresses, Pid, in_net};
use crate::services::{ServiceView, ruleset, views};
use crate::spec::ContainerSpec;
use crate::status::{ContainerFacts, status};
use crate::token::TokenSigner;
use crate::world::{Name, World};

/// The node's own thread is where all of this runs; tests look at it under its locks.
pub struct Kubelet {
    pub node: Pid,
    pub node_name: String,
    pub pod_exec: PathBuf,
    /// The working directory on the machine's file system.
    pub work: PathBuf,
    /// The node's tmpfs as its processes name it, and as the harness reaches it.
    pub inside: PathBuf,
    pub outside: PathBuf,
    pub layers: Layers,
    pub tokens: TokenSigner,
    pub domain: String,
    world: Mutex<World>,
    pods: Mutex<BTreeMap<Name, Runtime>>,
    zone: Mutex<Arc<Zone>>,
    published: tokio::sync::Mutex<Published>,
    addresses: AtomicU16,
    services: AtomicU16,
    starts: AtomicU32,
}

/// The processes of one pod.
pub struct Runtime {
    /// Holds the pod's namespaces. Zero until they exist.
    pub sandbox: Pid,
    pub ips: Vec<IpAddr>,
    pub facts: BTreeMap<String, ContainerFacts>,
    pub processes: BTreeMap<String, Process>,
    /// Set to the grace period when the pod has to end.
    pub stop: watch::Sender<Option<Duration>>,
    /// True when nothing of the pod runs any more.
    pub ended: watch::Receiver<bool>,
}

/// A container's process.
#[derive(Clone)]
pub struct Process {
    pub pid: Pid,
    pub spec: Arc<ContainerSpec>,
}

#[derive(Default)]
struct Published {
    views: Option<Vec<ServiceView>>,
    files: BTreeMap<String, serde_json::Value>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere does not make what is known here less true.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a new node is made of.
pub struct Parts {
    pub node: Pid,
    pub node_name: String,
    pub pod_exec: PathBuf,
    pub work: PathBuf,
    pub inside: PathBuf,
    pub outside: PathBuf,
    pub bin_dir: PathBuf,
    pub domain: String,
}

impl Kubelet {
    pub fn new(parts: Parts) -> Result<Self> {
        let layers = Layers::new(&parts.inside, &parts.outside, &parts.bin_dir)?;
        Ok(Self {
            node: parts.node,
            node_name: parts.node_name,
            pod_exec: parts.pod_exec,
            work: parts.work,
            inside: parts.inside,
            outside: parts.outside,
            layers,
            tokens: TokenSigner::generate()?,
            zone: Mutex::new(Arc::new(Zone { domain: parts.domain.clone(), ..Zone::default() })),
            domain: parts.domain,
            world: Mutex::default(),
            pods: Mutex::default(),
            published: tokio::sync::Mutex::default(),
            addresses: AtomicU16::new(0),
            services: AtomicU16::new(0),
            starts: AtomicU32::new(0),
        })
    }

    pub fn world(&self) -> MutexGuard<'_, World> {
        locked(&self.world)
    }

    pub fn pods(&self) -> MutexGuard<'_, BTreeMap<Name, Runtime>> {
        locked(&self.pods)
    }

    pub fn zone(&self) -> Arc<Zone> {
        locked(&self.zone).clone()
    }

    /// A number that no other start of a container has.
    pub fn next_start(&self) -> u32 {
        self.starts.fetch_add(1, Ordering::Relaxed)
    }

    pub fn next_pod(&self) -> u16 {
        self.addresses.fetch_add(1, Ordering::Relaxed)
    }

    /// ClusterIPs that no other Service has, IPv4 first.
    pub fn next_cluster_ips(&self) -> Result<(IpAddr, IpAddr)> {
        let n = self.services.fetch_add(1, Ordering::Relaxed);
        let (v4, v6) = Addresses::service(n).context("the node has no ClusterIP left")?;
        Ok((v4.into(), v6.into()))
    }

    pub fn log_file(&self, pod: &Name, container: &str) -> PathBuf {
        self.work
            .join("logs")
            .join(format!("{}_{}", pod.namespace, pod.name))
            .join(format!("{container}.log"))
    }

    pub fn manifests(&self) -> PathBuf {
        self.work.join("manifests")
    }

    /// Changes what is known of a container, then publishes what follows from it.
    pub async fn learn(&self, pod: &Name, container: &str, change: impl FnOnce(&mut ContainerFacts)) {
        if let Some(runtime) = self.pods().get_mut(pod) {
            change(runtime.facts.entry(container.to_owned()).or_default());
        }
        self.refresh_status(pod);
        self.publish().await;
    }

    /// Writes the pod's status back into its object.
    pub fn refresh_status(&self, pod: &Name) {
        let pods = self.pods();
        let Some(runtime) = pods.get(pod) else { return };
        let mut world = self.world();
        if let Some(object) = world.pods.get_mut(pod) {
            object.status = Some(status(object, &runtime.facts, &runtime.ips, Addresses::GATEWAY.into()));
        }
    }

    /// Makes the node's rules, its DNS and the manifests directory say what the world says now; notes what fails.
    pub async fn publish(&self) {
        if let Err(error) = self.try_publish().await {
            self.note(&format!("{error:#}"));
        }
    }

    /// [`Self::publish`] for whoever wants to know that it is done.
    pub async fn try_publish(&self) -> Result<()> {
        let mut published = self.published.lock().await;
        let (views, files, pods) = {
            let world = self.world();
            let pods = world.pods.values().flat_map(|pod| {
                let namespace = pod.metadata.namespace.clone().unwrap_or_default();
                crate::services::pod_ips(pod).into_iter().map(move |ip| (namespace.clone(), ip))
            });
            (views(&world), world.manifests(), pods.collect())
        };
        if published.views.as_ref() != Some(&views) {
            let zone = Zone { domain: self.domain.clone(), services: views.clone(), pods };
            *locked(&self.zone) = Arc::new(zone);
            let set = in_net(self.node, &["nft", "-f", "-"], &ruleset(&views)).await;
            set.context("setting the rules for services")?;
            published.views = Some(views);
        }
        let written = write_manifests(&self.manifests(), &published.files, &files);
        written.context("writing the manifests directory")?;
        published.files = files;
        Ok(())
    }

    /// Adds a line to the node's own log, which is printed with the pods' when something fails.
    pub fn note(&self, text: &str) {
        use std::io::Write as _;
        let path = self.work.join("logs").join("node.log");
        let file = fs::OpenOptions::new().create(true).append(true).open(path);
        // The log is the last resort: where it cannot be written there is nobody to tell.
        let _ = file.and_then(|mut file| writeln!(file, "{text}"));
    }

    fn process(&self, pod: &Name, container: &str) -> Result<Process> {
        let pods = self.pods();
        let runtime = pods.get(pod).with_context(|| format!("there is no pod {pod}"))?;
        let process = runtime.processes.get(container).cloned();
        process.with_context(|| format!("container {container} of pod {pod} is not running"))
    }

    /// Sends a signal to a container's first process.
    pub fn signal(&self, pod: &Name, container: &str, signal: Signal) -> Result<()> {
        let process = self.process(pod, container)?;
        let pid = rustix::process::Pid::from_raw(process.pid).context("the process has no id")?;
        rustix::process::kill_process(pid, signal).with_context(|| format!("signalling {container} of {pod}"))
    }

    /// A command within a running container: its namespaces, root, user, environment and privileges.
    pub fn command(&self, pod: &Name, container: &str, argv: &[String]) -> Result<tokio::process::Command> {
        let Process { pid, spec } = self.process(pod, container)?;
        let nsenter = crate::image::in_path("nsenter").context("nsenter is not installed (util-linux)")?;
        let mut command = tokio::process::Command::new(nsenter);
        command
            .args([&format!("--target={pid}"), "--mount", "--net", "--uts", "--ipc", "--pid"])
            .arg(format!("--wdns={}", spec.cwd.display()))
            .args(["--", "/usr/bin/setpriv"])
            .args([format!("--reuid={}", spec.user.uid), format!("--regid={}", spec.user.gid)])
            .args(["--inh-caps=-all", "--ambient-caps=-all"]);
        if spec.user.groups.is_empty() {
            command.arg("--clear-groups");
        } else {
            let groups: Vec<String> = spec.user.groups.iter().map(ToString::to_string).collect();
            command.arg(format!("--groups={}", groups.join(",")));
        }
        if spec.no_new_privs {
            command.arg("--no-new-privs");
        }
        command.arg("--").args(argv).env_clear().envs(spec.env.iter().cloned());
        command.stdin(Stdio::null()).process_group(0);
        Ok(command)
    }

    /// Runs a command within a container, for at most `limit`.
    pub async fn exec(
        &self,
        pod: &Name,
        container: &str,
        argv: &[String],
        limit: Duration,
    ) -> Result<Output> {
        let mut command = self.command(pod, container, argv)?;
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        // Also when the caller gives up first, as a probe does.
        let _children = Children(child.id());
        match tokio::time::timeout(limit, child.wait_with_output()).await {
            Ok(output) => Ok(output?),
            Err(_) => bail!("`{}` in {container} of {pod} took longer than {limit:?}", argv.join(" ")),
        }
    }
}

/// nsenter waits for a child in the container, and ending nsenter alone would leave that running: dropping this ends
/// the children of nsenter, and with them nsenter.
pub struct Children(pub Option<u32>);

impl Drop for Children {
    fn drop(&mut self) {
        let Some(pid) = self.0 else { return };
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        for child in children.split_whitespace().filter_map(|child| child.parse().ok()) {
            if let Some(child) = rustix::process::Pid::from_raw(child) {
                let _ = rustix::process::kill_process(child, Signal::KILL);
            }
        }
    }
}

/// The exit code as Kubernetes reports it: 128 and the signal's number for a process that a signal ended.
pub fn exit_code(status: std::process::ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(-1)
}

/// By rename, so that whoever watches the directory never reads half a file.
fn write_manifests(
    directory: &Path,
    old: &BTreeMap<String, serde_json::Value>,
    new: &BTreeMap<String, serde_json::Value>,
) -> Result<()> {
    for (name, object) in new.iter().filter(|(name, object)| old.get(*name) != Some(object)) {
        // Outside the watched directory: a watcher need not know our temporary names.
        let fresh = directory.with_extension("new");
        fs::write(&fresh, serde_norway::to_string(object)?)?;
        fs::rename(&fresh, directory.join(name))?;
    }
    for name in old.keys().filter(|name| !new.contains_key(*name)) {
        fs::remove_file(directory.join(name))?;
    }
    Ok(())
}

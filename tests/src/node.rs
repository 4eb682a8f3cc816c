//! One node: start it, give it manifests, look at what runs.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use k8s_openapi::api::core::v1::Pod;
use rustix::process::Signal;
use serde_json::Value;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::oneshot;

use crate::check;
use crate::kubelet::{Kubelet, Parts};
use crate::sandbox::{Addresses, NodeSandbox, connect_node, enter_net, join_net};
use crate::services::pod_ips;
use crate::world::{Name, condition, is_ready};
use crate::{admit, dns, probe};

/// How long a command in a container may take.
const EXEC: Duration = Duration::from_mins(1);
/// Between looks at a condition that is waited for.
const LOOK: Duration = Duration::from_millis(10);
/// Lines of each log in the account of a failure.
const LINES: usize = 15;

/// How a node is made.
#[derive(Clone, Debug)]
pub struct Options {
    /// `spec.nodeName` of its pods.
    pub name: String,
    /// The cluster domain of its DNS.
    pub domain: String,
    /// Where the workspace's binaries are; by default the environment variable `REMORA_BIN_DIR`, or beside the
    /// running program.
    pub bin_dir: Option<PathBuf>,
    /// Arguments that pods of the control plane get besides those of their manifests: name of the pod, argument.
    pub control_plane_args: Vec<(&'static str, String)>,
    /// Whether pods of the control plane are restarted when they do not answer.
    pub control_plane_liveness: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            name: "node".into(),
            domain: "cluster.local".into(),
            bin_dir: None,
            control_plane_args: Vec::new(),
            control_plane_liveness: true,
        }
    }
}

/// A running node. Dropping it ends every process of every pod and removes everything that was made.
pub struct Node {
    kubelet: Arc<Kubelet>,
    handle: tokio::runtime::Handle,
    quit: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    /// Last, so that it is dropped when the node's thread no longer looks at it.
    _sandbox: NodeSandbox,
}

impl Node {
    /// Starts a node without pods, with services, DNS and a manifests directory.
    ///
    /// # Errors
    /// Where this machine cannot run one: says what is missing and which Debian package has it.
    pub fn start(options: Options) -> Result<Self> {
        check::machine()?;
        let bin_dir = bin_dir(options.bin_dir)?;
        let pod_exec = bin_dir.join("pod-exec");
        if !pod_exec.is_file() {
            bail!("{} does not exist: build it with `cargo build -p remora-tests`", pod_exec.display());
        }
        let sandbox = NodeSandbox::start(&pod_exec)?;
        let kubelet = Arc::new(Kubelet::new(Parts {
            node: sandbox.pid,
            node_name: options.name,
            pod_exec,
            work: sandbox.work.clone(),
            inside: sandbox.inside(),
            outside: sandbox.outside(),
            bin_dir,
            domain: options.domain,
        })?);
        let (quit, told) = oneshot::channel();
        let (ready, is_ready) = mpsc::channel();
        let of_thread = kubelet.clone();
        let thread = std::thread::Builder::new()
            .name("node".into())
            .spawn(move || node_thread(&of_thread, &ready, told))
            .context("starting the node's thread")?;
        let handle = is_ready.recv().unwrap_or_else(|_| Err(anyhow!("the node's thread ended")))?;
        Ok(Self { kubelet, handle, quit: Some(quit), thread: Some(thread), _sandbox: sandbox })
    }

    /// Runs `future` on the node's own thread, in its network namespace.
    fn run<T: Send + 'static>(&self, future: impl Future<Output = T> + Send + 'static) -> Result<T> {
        let (send, receive) = mpsc::channel();
        self.handle.spawn(async move { send.send(future.await) });
        receive.recv().context("the node's thread did not finish what it was asked")
    }

    /// Creates or changes what the manifests describe, as `kubectl apply` does. Pods pass through the webhooks that
    /// are registered, and are then started; returns before they are ready.
    ///
    /// # Errors
    /// A manifest that the harness cannot run, or that a webhook refuses: names the object.
    pub fn apply(&self, yaml: &str) -> Result<Vec<Name>> {
        let objects = crate::world::parse(yaml)?;
        self.apply_objects(objects)
    }

    /// [`Self::apply`] for what has been parsed already. Returns the pods that were created.
    pub fn apply_objects(&self, objects: Vec<Value>) -> Result<Vec<Name>> {
        let kubelet = self.kubelet.clone();
        self.run(async move { admit::apply(&kubelet, objects).await })?
    }

    /// Adds or changes an object for the control plane only (as [`Self::apply`], by another name for readers).
    pub fn update_manifest(&self, yaml: &str) -> Result<()> {
        self.apply(yaml).map(drop)
    }

    /// Deletes an object that is not a pod.
    pub fn delete_object(&self, kind: &str, name: &Name) -> Result<()> {
        let removed = self.kubelet.world().remove(kind, name);
        removed.with_context(|| format!("there is no {kind} {name}"))?;
        let kubelet = self.kubelet.clone();
        self.run(async move { kubelet.publish().await })
    }

    /// Deletes a pod with its own grace period, or this one, and waits until nothing of it runs.
    pub fn delete(&self, pod: &Name, grace: Option<Duration>) -> Result<()> {
        let kubelet = self.kubelet.clone();
        let name = pod.clone();
        self.run(async move { admit::delete(&kubelet, &name, grace).await })?
    }

    /// One pod by name.
    pub fn pod(&self, namespace: &str, name: &str) -> Result<PodRef<'_>> {
        let name = Name::new(namespace, name);
        if !self.kubelet.world().pods.contains_key(&name) {
            let known: Vec<String> = self.kubelet.world().pods.keys().map(Name::to_string).collect();
            bail!("there is no pod {name}; there are: {}", known.join(", "));
        }
        Ok(PodRef { node: self, name })
    }

    /// The pods of a namespace with this label.
    pub fn pods(&self, namespace: &str, label: &str, value: &str) -> Vec<PodRef<'_>> {
        let world = self.kubelet.world();
        let has = |pod: &Pod| {
            let labels = pod.metadata.labels.as_ref();
            labels.and_then(|labels| labels.get(label)).is_some_and(|found| found == value)
        };
        let found = world.pods.iter().filter(|(name, pod)| name.namespace == namespace && has(pod));
        found.map(|(name, _)| PodRef { node: self, name: name.clone() }).collect()
    }

    /// Every pod.
    pub fn all_pods(&self) -> Vec<PodRef<'_>> {
        self.kubelet.world().pods.keys().map(|name| PodRef { node: self, name: name.clone() }).collect()
    }

    /// An object as it was applied (not a pod), for example a Service with its ClusterIP.
    pub fn object(&self, kind: &str, namespace: &str, name: &str) -> Option<Value> {
        self.kubelet.world().object(kind, &Name::new(namespace, name)).cloned()
    }

    /// Runs a command in a container as the container's user; its traffic is redirected as the application's is.
    pub fn exec(&self, pod: &PodRef<'_>, container: &str, argv: &[&str]) -> Result<Output> {
        let kubelet = self.kubelet.clone();
        let (pod, container) = (pod.name.clone(), container.to_owned());
        let argv: Vec<String> = argv.iter().map(|word| (*word).to_owned()).collect();
        self.run(async move { kubelet.exec(&pod, &container, &argv, EXEC).await })?
    }

    /// What a container has printed so far.
    pub fn logs(&self, pod: &PodRef<'_>, container: &str) -> String {
        let bytes = std::fs::read(self.kubelet.log_file(&pod.name, container)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Runs `work` on a thread of its own in the node's network namespace: its sockets are the node's.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        enter_net(self.kubelet.node, work)
    }

    /// The directory of live manifests, as a control plane outside of pods may read it.
    pub fn manifests(&self) -> PathBuf {
        self.kubelet.manifests()
    }

    /// The process that holds the node's namespaces, as the machine numbers it.
    pub fn pid(&self) -> i32 {
        self.kubelet.node
    }

    /// The public key of the service-account tokens, for `remora-identity --token-public-key`.
    pub fn token_public_key(&self) -> String {
        self.kubelet.tokens.public_key_pem().to_owned()
    }

    /// Waits until `holds`, looking often.
    ///
    /// # Errors
    /// When `limit` has passed: with what every pod is doing and said last.
    pub fn wait_until(&self, what: &str, limit: Duration, mut holds: impl FnMut() -> bool) -> Result<()> {
        let deadline = Instant::now() + limit;
        while !holds() {
            if Instant::now() > deadline {
                bail!("waited {limit:?} in vain for: {what}\n{}", self.describe());
            }
            std::thread::sleep(LOOK);
        }
        // What holds for the objects holds for rules and DNS as well when we return.
        let kubelet = self.kubelet.clone();
        self.run(async move { kubelet.try_publish().await })?
    }

    /// Waits until every pod that exists is ready, or has completed.
    pub fn wait_ready(&self, limit: Duration) -> Result<()> {
        self.wait_until("all pods to be ready", limit, || {
            let world = self.kubelet.world();
            world.pods.values().all(|pod| is_ready(pod) || phase(pod) == "Succeeded")
        })
    }

    /// Every pod with its containers' state and the end of their logs: the account of a failure.
    pub fn describe(&self) -> String {
        let mut text = String::new();
        for pod in self.all_pods() {
            let object = pod.object();
            let _ = writeln!(text, "pod {}: {}, ready {}", pod.name, phase(&object), pod.is_ready());
            let status = object.status.unwrap_or_default();
            let of_init = status.init_container_statuses.unwrap_or_default();
            for container in of_init.iter().chain(status.container_statuses.as_deref().unwrap_or_default()) {
                let state = container.state.as_ref().and_then(|state| serde_json::to_string(state).ok());
                let restarts = container.restart_count;
                let state = state.unwrap_or_default();
                let _ = writeln!(text, "  {}: {state}, {restarts} restarts", container.name);
                text.push_str(&tail(&self.logs(&pod, &container.name)));
            }
        }
        let log =
            std::fs::read_to_string(self.kubelet.work.join("logs").join("node.log")).unwrap_or_default();
        text.push_str("node:\n");
        text.push_str(&tail(&log));
        text
    }
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    let from = lines.len().saturating_sub(LINES);
    lines.iter().skip(from).flat_map(|line| ["    ", line, "\n"]).collect()
}

fn phase(pod: &Pod) -> String {
    pod.status.as_ref().and_then(|status| status.phase.clone()).unwrap_or_else(|| "Pending".into())
}

impl Drop for Node {
    fn drop(&mut self) {
        drop(self.quit.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the node's thread has been printed; the processes are ended all the same.
            let _ = thread.join();
        }
    }
}

/// A pod of a node.
#[derive(Clone)]
pub struct PodRef<'a> {
    node: &'a Node,
    pub name: Name,
}

impl PodRef<'_> {
    pub(crate) fn node_pid(&self) -> i32 {
        self.node.pid()
    }

    /// The object with its status. Empty after the pod has been deleted.
    pub fn object(&self) -> Pod {
        self.node.kubelet.world().pods.get(&self.name).cloned().unwrap_or_default()
    }

    /// The primary address.
    pub fn ip(&self) -> Result<std::net::IpAddr> {
        pod_ips(&self.object())
            .first()
            .copied()
            .with_context(|| format!("pod {} has no address yet", self.name))
    }

    pub fn is_ready(&self) -> bool {
        is_ready(&self.object())
    }

    /// Whether a condition of the pod is `True`.
    pub fn has_condition(&self, kind: &str) -> bool {
        condition(&self.object(), kind)
    }

    pub fn phase(&self) -> String {
        phase(&self.object())
    }

    /// How often a container has been started again.
    pub fn restarts(&self, container: &str) -> i32 {
        let pods = self.node.kubelet.pods();
        let facts = pods.get(&self.name).and_then(|runtime| runtime.facts.get(container));
        facts.map_or(0, |facts| facts.restarts)
    }

    /// How a container ended the last time: 128 and the signal's number if by a signal.
    pub fn last_exit(&self, container: &str) -> Option<i32> {
        self.node.kubelet.pods().get(&self.name)?.facts.get(container)?.exit_code
    }

    /// The first process of a running container, as the machine numbers it.
    pub fn pid(&self, container: &str) -> Option<i32> {
        self.node.kubelet.pods().get(&self.name)?.processes.get(container).map(|process| process.pid)
    }

    /// [`Node::exec`] in this pod.
    pub fn exec(&self, container: &str, argv: &[&str]) -> Result<Output> {
        self.node.exec(self, container, argv)
    }

    /// What a command in a container of this pod prints.
    ///
    /// # Errors
    /// What it said, if it failed.
    pub fn run(&self, container: &str, argv: &[&str]) -> Result<String> {
        let output = self.exec(container, argv)?;
        if !output.status.success() {
            bail!("{argv:?} {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Sends a signal to a container's first process: `Signal::KILL` is a crash, `STOP` and `CONT` a hang.
    pub fn signal(&self, container: &str, signal: Signal) -> Result<()> {
        self.node.kubelet.signal(&self.name, container, signal)
    }

    /// Deletes the pod without grace: as if its machine had lost power.
    pub fn kill(&self) -> Result<()> {
        self.node.delete(&self.name, Some(Duration::ZERO))
    }

    /// Deletes the pod with its own grace period.
    pub fn delete(&self) -> Result<()> {
        self.node.delete(&self.name, None)
    }

    /// Runs `work` on a thread of its own in the pod's network namespace.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        enter_net(self.sandbox()?, work)
    }

    /// The process that holds the pod's namespaces, as the machine numbers it.
    pub fn sandbox(&self) -> Result<i32> {
        let pods = self.node.kubelet.pods();
        let pid = pods.get(&self.name).map(|runtime| runtime.sandbox).filter(|pid| *pid != 0);
        pid.with_context(|| format!("pod {} has no namespaces yet", self.name))
    }

    /// GETs a path of one of the pod's ports from the node's address.
    pub fn http_get(&self, port: u16, path: &str) -> Result<(http::StatusCode, String)> {
        let address = std::net::SocketAddr::new(self.ip()?, port);
        let request =
            http::Request::get(path).header("host", address.to_string()).body(http_body_util::Empty::new())?;
        let answer = async move {
            let limit = Duration::from_secs(10);
            let answer = tokio::time::timeout(limit, probe::exchange(address, request)).await;
            answer.unwrap_or_else(|_| Err(anyhow!("{address} did not answer within {limit:?}")))
        };
        self.node.run(answer)?
    }

    /// GETs a path of the proxy's admin port (4191).
    pub fn admin_get(&self, path: &str) -> Result<String> {
        let (status, body) = self.http_get(4191, path)?;
        if !status.is_success() {
            bail!("{} of {} answered {status}: {body}", path, self.name);
        }
        Ok(body)
    }

    /// The proxy's metrics, parsed.
    pub fn metrics(&self) -> Result<crate::metrics::Samples> {
        Ok(crate::metrics::parse(&self.admin_get("/metrics")?))
    }
}

/// Where the workspace's programs are: as asked, as the environment says, or beside the running program.
pub fn bin_dir(asked: Option<PathBuf>) -> Result<PathBuf> {
    if let Some(given) = asked.or_else(|| std::env::var_os("REMORA_BIN_DIR").map(PathBuf::from)) {
        return std::path::absolute(given).context("the directory of binaries");
    }
    let own = std::env::current_exe().context("finding the running program")?;
    let beside = own.parent().map(Path::to_path_buf).context("the running program has no directory")?;
    // Cargo puts tests one level below the binaries.
    if beside.file_name().is_some_and(|name| name == "deps") {
        return beside.parent().map(Path::to_path_buf).context("the target directory has no parent");
    }
    Ok(beside)
}

fn node_thread(
    kubelet: &Arc<Kubelet>,
    ready: &mpsc::Sender<Result<tokio::runtime::Handle>>,
    told: oneshot::Receiver<()>,
) {
    let begin = || -> Result<tokio::runtime::Runtime> {
        join_net(kubelet.node)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let sockets = runtime.block_on(async {
            connect_node(kubelet.node).await?;
            let address = (Addresses::DNS, 53);
            let udp = UdpSocket::bind(address).await.context("the cluster's DNS")?;
            let tcp = TcpListener::bind(address).await.context("the cluster's DNS")?;
            anyhow::Ok((udp, tcp))
        })?;
        let of_dns = kubelet.clone();
        runtime.spawn(dns::serve(sockets.0, sockets.1, move || of_dns.zone()));
        Ok(runtime)
    };
    match begin() {
        Ok(runtime) => {
            let _ = ready.send(Ok(runtime.handle().clone()));
            // Dropped or told: either way the node is over.
            let _ = runtime.block_on(told);
            // Containers' tasks would wait for processes that the sandbox ends next.
            runtime.shutdown_background();
        }
        Err(error) => {
            let _ = ready.send(Err(error));
        }
    }
}

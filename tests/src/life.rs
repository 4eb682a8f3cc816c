//! The life of a pod, top to bottom: sandbox, volumes, init containers and sidecars, containers, end.

use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::{Container, Pod};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::kubelet::Kubelet;
use crate::sandbox::{Addresses, PodSandbox, connect_pod, has_ipv6, in_net};
use crate::status::is_sidecar;
use crate::supervise::{Role, Stop, Supervisor, write_volumes};
use crate::world::Name;

/// JSON, a list with one IPv4 address.
const ASKED_ADDRESS: &str = "cni.projectcalico.org/ipAddrs";
/// Between looks at whether a sidecar has started.
const LOOK: Duration = Duration::from_millis(10);

/// One container's task, and how to end it.
struct Task {
    stop: watch::Sender<Option<Instant>>,
    done: JoinHandle<bool>,
}

/// One pod while it lives. `stop` is set to the grace period when the pod has to end.
pub struct Life {
    pub kubelet: Arc<Kubelet>,
    pub name: Name,
    pub stop: watch::Receiver<Option<Duration>>,
}

impl Life {
    /// Runs the pod to its end. What goes wrong is in the pod's status and the node's log.
    pub async fn run(mut self) {
        let _sandbox = match self.begin().await {
            Ok(sandbox) => sandbox,
            Err(error) => {
                self.kubelet.note(&format!("{}: {error:#}", self.name));
                self.kubelet.learn(&self.name, "", |facts| facts.message = Some(format!("{error:#}"))).await;
                return;
            }
        };
        let mut sidecars = Vec::new();
        let mut mains = Vec::new();
        let mut stop = self.stop.clone();
        tokio::select! {
            () = self.containers(&mut sidecars, &mut mains) => {}
            _ = stop.wait_for(Option::is_some) => {}
        }
        self.end(sidecars, mains).await;
    }

    fn pod(&self) -> Result<Pod> {
        self.kubelet
            .world()
            .pods
            .get(&self.name)
            .cloned()
            .with_context(|| format!("pod {} is gone", self.name))
    }

    /// Namespaces, addresses, volumes.
    async fn begin(&self) -> Result<PodSandbox> {
        let kubelet = &self.kubelet;
        let pod = self.pod()?;
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let spec = pod.spec.clone().unwrap_or_default();
        let hostname = spec.hostname.unwrap_or_else(|| self.name.name.clone());
        let n = kubelet.next_pod();
        let pid_file = kubelet.work.join("specs").join(format!("pod-{n}.pid"));
        let sandbox = PodSandbox::start(kubelet.node, &kubelet.pod_exec, &hostname, &pid_file).await?;
        let (mut v4, v6) = Addresses::pod(n).context("the node has no pod address left")?;
        if let Some(asked) = asked_address(&pod)? {
            v4 = asked;
            // Whoever had it before had it at another link.
            in_net(kubelet.node, &["ip", "neigh", "flush", "to", &asked.to_string()], "").await?;
        }
        let mut ips: Vec<IpAddr> = vec![v4.into()];
        if has_ipv6() {
            ips.push(v6.into());
        }
        connect_pod(kubelet.node, sandbox.pid, n, &ips).await?;
        let security = spec.security_context.unwrap_or_default();
        for sysctl in security.sysctls.unwrap_or_default() {
            let path = format!("/proc/sys/{}", sysctl.name.replace('.', "/"));
            let set = in_net(sandbox.pid, &["tee", &path], &sysctl.value).await;
            set.with_context(|| format!("setting {} to {}", sysctl.name, sysctl.value))?;
        }
        let etc = kubelet.outside.join("pods").join(uid).join("etc");
        fs::create_dir_all(&etc)?;
        fs::write(etc.join("resolv.conf"), resolv_conf(&self.name.namespace, &kubelet.domain))?;
        fs::write(etc.join("hostname"), format!("{hostname}\n"))?;
        let mut hosts = String::from("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n");
        for ip in &ips {
            let _ = writeln!(hosts, "{ip} {hostname}");
        }
        fs::write(etc.join("hosts"), hosts)?;
        if let Some(runtime) = kubelet.pods().get_mut(&self.name) {
            runtime.sandbox = sandbox.pid;
            runtime.ips = ips;
        }
        kubelet.refresh_status(&self.name);
        kubelet.publish().await;
        let pod = self.pod()?;
        write_volumes(kubelet, &pod).with_context(|| format!("the volumes of {}", self.name))?;
        Ok(sandbox)
    }

    /// Init containers in order, sidecars among them; then the containers. Returns when no container will run again.
    async fn containers(&mut self, sidecars: &mut Vec<Task>, mains: &mut Vec<Task>) {
        let Some(spec) = self.pod().ok().and_then(|pod| pod.spec) else { return };
        for container in spec.init_containers.unwrap_or_default() {
            if is_sidecar(&container) {
                let name = container.name.clone();
                sidecars.push(self.task(container, Role::Sidecar));
                self.until(&name, |facts| facts.started).await;
            } else {
                // Kept where the end of the pod finds it, should that come first.
                sidecars.push(self.task(container, Role::Init));
                let Some(task) = sidecars.last_mut() else { return };
                let succeeded = (&mut task.done).await.unwrap_or(false);
                sidecars.pop();
                if !succeeded {
                    return;
                }
            }
        }
        for container in spec.containers {
            let waits = container.lifecycle.as_ref().is_some_and(|lifecycle| lifecycle.post_start.is_some());
            let name = container.name.clone();
            mains.push(self.task(container, Role::Main));
            if waits {
                self.until(&name, |facts| facts.started || facts.finished).await;
            }
        }
        for task in mains.iter_mut() {
            // A task that panicked has nothing left to wait for either.
            let _ = (&mut task.done).await;
        }
        mains.clear();
    }

    fn task(&self, container: Container, role: Role) -> Task {
        let (stop, told): (_, Stop) = watch::channel(None);
        let supervisor =
            Supervisor { kubelet: self.kubelet.clone(), pod: self.name.clone(), container, role, stop: told };
        Task { stop, done: tokio::spawn(supervisor.run()) }
    }

    async fn until(&self, container: &str, holds: impl Fn(&crate::status::ContainerFacts) -> bool) {
        loop {
            let known =
                self.kubelet.pods().get(&self.name).and_then(|runtime| runtime.facts.get(container).cloned());
            if known.is_some_and(|facts| holds(&facts)) {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// The containers first, at once; then the sidecars, last started first; all within the grace period.
    async fn end(&mut self, sidecars: Vec<Task>, mains: Vec<Task>) {
        let asked = *self.stop.borrow();
        let spec = self.pod().ok().and_then(|pod| pod.spec);
        let own = spec.and_then(|spec| spec.termination_grace_period_seconds);
        let own = Duration::from_secs(own.and_then(|grace| u64::try_from(grace).ok()).unwrap_or(30));
        let deadline = Instant::now() + asked.unwrap_or(own);
        for task in &mains {
            let _ = task.stop.send(Some(deadline));
        }
        for task in mains {
            let _ = task.done.await;
        }
        for task in sidecars.into_iter().rev() {
            let _ = task.stop.send(Some(deadline));
            let _ = task.done.await;
        }
    }
}

/// A pod that has to have a certain IPv4 address says so as it would to Calico.
fn asked_address(pod: &Pod) -> Result<Option<Ipv4Addr>> {
    let Some(asked) = pod.metadata.annotations.as_ref().and_then(|all| all.get(ASKED_ADDRESS)) else {
        return Ok(None);
    };
    let addresses: Vec<Ipv4Addr> =
        serde_json::from_str(asked).with_context(|| format!("{ASKED_ADDRESS}={asked}"))?;
    Ok(addresses.first().copied())
}

/// What a kubelet writes for `dnsPolicy: ClusterFirst`.
fn resolv_conf(namespace: &str, domain: &str) -> String {
    format!(
        "search {namespace}.svc.{domain} svc.{domain} {domain}\nnameserver {}\noptions ndots:5\n",
        Addresses::DNS
    )
}

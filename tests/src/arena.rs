//! A pod that is attacked, a client that must not notice it, and what is shown after each attack: others were served
//! throughout, and the proxy is as it was before.

use std::io::{self, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};

use crate::app::App;
use crate::load::{Load, Plan};
use crate::mesh::Mesh;
use crate::node::PodRef;
use crate::resources::{Cost, Ledger, Usage};
use crate::shop::{PATIENCE, SHOP, cluster_ip, idle, service};

/// What the attacked application listens on.
pub const PORT: u16 = 8080;
/// Answers that bystanders must have had before, during and after.
const ENOUGH: usize = 20;
const PROXY: &str = "linkerd-proxy";

/// A pod `name`, a Service `name` in front of its port 8080, and a pod `name-client`; with these annotations.
pub fn manifests(name: &str, target: &[(&str, &str)], client: &[(&str, &str)]) -> String {
    [idle(name, target), service(name, 80, &PORT.to_string()), idle(&client_of(name), client)].concat()
}

fn client_of(name: &str) -> String {
    format!("{name}-client")
}

/// The annotation that gives a proxy further environment.
pub fn env(variables: &[(&str, &str)]) -> (&'static str, String) {
    let list: Vec<Value> =
        variables.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
    ("config.linkerd.io/proxy-additional-env", Value::from(list).to_string())
}

/// A pod as the injector left this one, under another name and with its own label `app`; its proxy's container is
/// `changed`.
///
/// # Errors
/// The pod has no proxy.
pub fn altered(pod: &PodRef<'_>, name: &str, change: impl FnOnce(&mut Value)) -> Result<Value> {
    let mut copy = serde_json::to_value(pod.object())?;
    let fields = copy.as_object_mut().context("a pod is an object")?;
    fields.remove("status");
    fields.insert("apiVersion".into(), json!("v1"));
    fields.insert("kind".into(), json!("Pod"));
    let meta = fields.get_mut("metadata").and_then(Value::as_object_mut).context("a pod has metadata")?;
    for field in ["uid", "creationTimestamp"] {
        meta.remove(field);
    }
    meta.insert("name".into(), json!(name));
    let labels = meta.get_mut("labels").and_then(Value::as_object_mut).context("the pod has labels")?;
    labels.insert("app".into(), json!(name));
    let containers = copy.pointer_mut("/spec/initContainers").and_then(Value::as_array_mut);
    let mut containers = containers.into_iter().flatten();
    change(containers.find(|container| container.get("name") == Some(&json!(PROXY))).context("no proxy")?);
    Ok(copy)
}

/// The attacked pod and the other one.
pub struct Arena<'a> {
    mesh: &'a Mesh,
    name: String,
    pub app: App,
}

impl<'a> Arena<'a> {
    /// Starts the application of the pod, and asks it until both proxies are warm.
    ///
    /// # Errors
    /// A pod is missing, or the application is not reached.
    pub fn enter(mesh: &'a Mesh, name: &str) -> Result<Self> {
        many_descriptors()?;
        let app = App::start(&mesh.pod(SHOP, name)?, PORT, name)?;
        let arena = Self { mesh, name: name.to_owned(), app };
        arena.mesh.wait_until("the target to be reached", PATIENCE, || arena.warm().is_ok())?;
        Ok(arena)
    }

    fn warm(&self) -> Result<()> {
        let load = self.bystanders(2, 2)?;
        let enough = || load.tally().answered() >= 10 * ENOUGH || load.tally().failed > 0;
        self.mesh.wait_until("the proxies to be warm", PATIENCE, enough)?;
        let tally = load.finish()?;
        ensure!(tally.failed == 0, "{tally:?}");
        Ok(())
    }

    /// The attacked pod.
    pub fn target(&self) -> Result<PodRef<'a>> {
        self.mesh.pod(SHOP, &self.name)
    }

    /// The pod of the bystanders, whose proxy is attacked where it is an application that attacks its own.
    pub fn client(&self) -> Result<PodRef<'a>> {
        self.mesh.pod(SHOP, &client_of(&self.name))
    }

    /// The address of the Service.
    pub fn service(&self) -> Result<SocketAddr> {
        Ok(SocketAddr::new(cluster_ip(self.mesh, &self.name)?, 80))
    }

    /// Requests of the client to the target: of as many clients that keep their connection, and that do not.
    pub fn bystanders(&self, kept: usize, fresh: usize) -> Result<Load> {
        let plan = Plan { target: self.service()?, host: self.name.clone(), path: "/".into(), kept, fresh };
        Load::start(&self.client()?, plan)
    }

    /// The ledgers of both proxies.
    pub fn ledgers(&self) -> Result<[Ledger<'a>; 2]> {
        Ok([Ledger::of_proxy(self.mesh, &self.target()?)?, Ledger::of_proxy(self.mesh, &self.client()?)?])
    }

    /// Takes both ledgers and begins with [`Self::bystanders`], some of whom are answered when this returns.
    ///
    /// # Errors
    /// They are not.
    pub fn begin(&self, kept: usize, fresh: usize) -> Result<([Ledger<'a>; 2], Load)> {
        let ledgers = self.ledgers()?;
        let load = self.bystanders(kept, fresh)?;
        self.goes_on(&load)?;
        Ok((ledgers, load))
    }

    /// Waits until the bystanders have had some more answers.
    ///
    /// # Errors
    /// They have not, or one of them failed.
    pub fn goes_on(&self, load: &Load) -> Result<()> {
        let from = load.tally().answered();
        let more = || load.tally().answered() >= from + ENOUGH || load.tally().failed > 0;
        self.mesh.wait_until("others to be served", PATIENCE, more)?;
        let tally = load.tally();
        ensure!(tally.failed == 0, "others were not served: {tally:?}");
        Ok(())
    }
}

/// Runs an attack on this thread, which returns how many bytes it sent or held, and checks what it cost the proxy of the
/// ledger. What the bystanders cost meanwhile is not the attack's: an answer of theirs is measured before it.
///
/// # Errors
/// The attack's own, and a cost that is more than it may be.
pub fn attack(
    arena: &Arena<'_>,
    ledger: &Ledger<'_>,
    load: &Load,
    attack: impl FnOnce() -> Result<u64>,
) -> Result<Cost> {
    let answered = || load.tally().answered();
    let from = answered();
    let calm = ledger.attack(|| {
        for _ in 0..5 {
            arena.goes_on(load)?;
        }
        Ok(1)
    })?;
    let each = calm.target_cpu / u32::try_from(answered() - from)?.max(1);
    let from = answered();
    let mut cost = ledger.attack(attack)?;
    let others = each * u32::try_from(answered() - from)?;
    cost.target_cpu = cost.target_cpu.saturating_sub(others);
    cost.check()?;
    Ok(cost)
}

/// Ends the bystanders' requests: not one may have failed.
///
/// # Errors
/// One did, or there were hardly any.
pub fn served(load: Load) -> Result<usize> {
    let tally = load.finish()?;
    ensure!(tally.failed == 0, "others were not served throughout: {tally:?}");
    ensure!(tally.answered() >= ENOUGH, "others were hardly there: {tally:?}");
    Ok(tally.answered())
}

/// As many connections from the network namespace of the calling thread. Their timeouts are those of [`PATIENCE`].
///
/// # Errors
/// One cannot be made.
pub fn crowd(to: SocketAddr, count: usize) -> io::Result<Vec<TcpStream>> {
    let one = |_| {
        let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(stream)
    };
    (0..count).map(one).collect()
}

/// Writes the same on each. How many took it.
pub fn say(streams: &mut [TcpStream], what: &[u8]) -> usize {
    streams.iter_mut().filter_map(|stream| stream.write_all(what).ok()).count()
}

/// Ends each with a reset.
pub fn reset(streams: Vec<TcpStream>) {
    for stream in streams {
        // One that is gone already cannot be reset.
        let _ = rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO));
    }
}

/// The largest resident set of a pod's proxy since its start, in bytes (proc(5), `VmHWM`).
///
/// # Errors
/// It is gone.
pub fn peak(pod: &PodRef<'_>) -> Result<u64> {
    let pid = pod.pid(PROXY).context("no proxy")?;
    let status = std::fs::read_to_string(PathBuf::from(format!("/proc/{pid}/status")))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kibibytes: u64 = line.split_whitespace().next().context("no number")?.parse()?;
    Ok(kibibytes << 10)
}

/// What a pod's proxy holds now.
///
/// # Errors
/// It is gone.
pub fn usage(pod: &PodRef<'_>) -> Result<Usage> {
    Usage::of(pod.pid(PROXY).context("no proxy")?)
}

/// Lets this process open as many descriptors as it may.
///
/// # Errors
/// The limit cannot be set.
pub fn many_descriptors() -> Result<()> {
    let now = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: now.maximum, maximum: now.maximum })
        .context("RLIMIT_NOFILE")
}

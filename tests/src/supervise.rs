//! How a container lives: start, probes, restart, end.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::core::v1::{Container, Pod, Probe};
use rustix::process::Signal;
use tokio::process::Child;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::container::{Places, spec};
use crate::environment::environment;
use crate::kubelet::{Kubelet, Process, exit_code};
use crate::probe::{Action, Schedule, hook, http_get, tcp};
use crate::sandbox::{Pid, SETUP, read_pid};
use crate::volumes::{self, Sources};
use crate::world::Name;

/// The pause before the second start of a crashed container; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Between probes of a container that has not succeeded yet. Kubernetes would wait a whole period; whoever waits for
/// a test does not want to. Failures are still judged by the manifest's delay, period and threshold.
const EAGER: Duration = Duration::from_millis(100);

/// What a container is to its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Runs once, successfully, before what follows.
    Init,
    /// A native sidecar: always restarted.
    Sidecar,
    Main,
}

/// When to end, as told by the pod: the instant at which what still runs is killed.
pub type Stop = watch::Receiver<Option<Instant>>;

/// One container of one pod, with what it needs to live.
pub struct Supervisor {
    pub kubelet: Arc<Kubelet>,
    pub pod: Name,
    pub container: Container,
    pub role: Role,
    pub stop: Stop,
}

enum Ended {
    Exited(i32),
    Stopped,
}

impl Supervisor {
    /// Runs the container until it is finished for good or told to stop. True if it ended well by itself.
    pub async fn run(mut self) -> bool {
        let mut pause = FIRST_PAUSE;
        let mut restarts = 0;
        loop {
            let ended = match Box::pin(self.once()).await {
                Ok(ended) => ended,
                Err(error) => {
                    let message = format!("{error:#}");
                    self.kubelet.note(&format!("{} {}: {message}", self.pod, self.container.name));
                    self.learn(|facts| facts.message = Some(message)).await;
                    Ended::Exited(128)
                }
            };
            let Ended::Exited(code) = ended else {
                self.learn(|facts| facts.finished = true).await;
                return false;
            };
            let finished = self.is_finished(code);
            self.learn(|facts| {
                facts.exit_code = Some(code);
                facts.finished = finished;
            })
            .await;
            if finished {
                return code == 0;
            }
            if self.stopped_within(pause).await {
                return false;
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
            restarts += 1;
            self.learn(|facts| facts.restarts = restarts).await;
        }
    }

    fn is_finished(&self, code: i32) -> bool {
        let policy = self.pod_object().ok().and_then(|pod| pod.spec?.restart_policy);
        match (self.role, policy.as_deref()) {
            (Role::Init | Role::Main, Some("Never")) => true,
            (Role::Init, _) | (Role::Main, Some("OnFailure")) => code == 0,
            (Role::Sidecar | Role::Main, _) => false,
        }
    }

    async fn learn(&self, change: impl FnOnce(&mut crate::status::ContainerFacts)) {
        self.kubelet.learn(&self.pod, &self.container.name, change).await;
    }

    fn pod_object(&self) -> Result<Pod> {
        let found = self.kubelet.world().pods.get(&self.pod).cloned();
        found.with_context(|| format!("pod {} is gone", self.pod))
    }

    async fn stopped_within(&mut self, time: Duration) -> bool {
        timeout(time, self.stop.wait_for(Option::is_some)).await.is_ok()
    }

    /// One start of the container, to its end.
    async fn once(&mut self) -> Result<Ended> {
        if self.stop.borrow().is_some() {
            return Ok(Ended::Stopped);
        }
        let (mut child, pid) = self.start().await?;
        let ended = Box::pin(self.attend(&mut child, pid)).await;
        if let Some(runtime) = self.kubelet.pods().get_mut(&self.pod) {
            runtime.processes.remove(&self.container.name);
        }
        self.learn(|facts| {
            facts.running = false;
            facts.ready = false;
            facts.started = false;
        })
        .await;
        ended
    }

    /// While it runs: probes, the order to stop, its own end.
    async fn attend(&mut self, child: &mut Child, pid: Pid) -> Result<Ended> {
        let mut stop = self.stop.clone();
        let condemned = tokio::select! {
            status = child.wait() => return Ok(Ended::Exited(exit_code(status?))),
            verdict = self.probe() => verdict,
            _ = stop.wait_for(Option::is_some) => None,
        };
        if let Some(why) = &condemned {
            self.kubelet.note(&format!("{} {} is restarted: {why}", self.pod, self.container.name));
        }
        self.end(child, pid).await?;
        let status = child.wait().await?;
        Ok(if condemned.is_some() { Ended::Exited(exit_code(status)) } else { Ended::Stopped })
    }

    /// preStop, SIGTERM, and SIGKILL when the time is up.
    async fn end(&self, child: &mut Child, pid: Pid) -> Result<()> {
        let ordered = *self.stop.borrow();
        let grace = self.pod_object().ok().and_then(|pod| pod.spec?.termination_grace_period_seconds);
        let grace = Duration::from_secs(grace.and_then(|grace| u64::try_from(grace).ok()).unwrap_or(30));
        let deadline = ordered.unwrap_or_else(|| Instant::now() + grace);
        let lifecycle = self.container.lifecycle.as_ref();
        if let Some(handler) = lifecycle.and_then(|lifecycle| lifecycle.pre_stop.as_ref()) {
            let done = tokio::time::timeout_at(deadline, self.act(&hook(handler)?)).await;
            if let Ok(Err(error)) = done {
                self.kubelet.note(&format!("{} {}: preStop: {error:#}", self.pod, self.container.name));
            }
        }
        signal(pid, Signal::TERM);
        if tokio::time::timeout_at(deadline, child.wait()).await.is_err() {
            signal(pid, Signal::KILL);
        }
        Ok(())
    }

    /// Starts the process and waits until it has become the container's own.
    async fn start(&self) -> Result<(Child, Pid)> {
        let pod = self.pod_object()?;
        let kubelet = &self.kubelet;
        let name = &self.container.name;
        let n = kubelet.next_start();
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let home = kubelet.inside.join("pods").join(&uid);
        let specs = kubelet.work.join("specs");
        let pid_file = specs.join(format!("{n}.pid"));
        let places = Places {
            root: home.join("containers").join(format!("{name}-{n}")),
            volumes: home.join("volumes"),
            etc: home.join("etc"),
            manifests: kubelet.manifests(),
            pid_file: pid_file.clone(),
        };
        write_volumes(kubelet, &pod)?;
        let image = kubelet.layers.image(self.container.image.as_deref().unwrap_or_default())?;
        let env = environment(&pod, &self.container, &image.env, &*kubelet.world())?;
        let spec = spec(&pod, &self.container, &image, env, &places)?;
        let spec_file = specs.join(format!("{n}.json"));
        fs::write(&spec_file, serde_json::to_vec(&spec)?)?;
        let sandbox = kubelet.pods().get(&self.pod).map_or(0, |runtime| runtime.sandbox);
        let mut child = self.spawn(sandbox, &spec_file)?;
        let deadline = Instant::now() + SETUP;
        let started = read_pid(&pid_file, deadline, || Ok(child.try_wait()?.is_some())).await;
        let pid = started.with_context(|| format!("container {name}: {}", self.last_words()))?;
        self.until_executed(pid, &mut child, deadline).await?;
        if let Some(runtime) = kubelet.pods().get_mut(&self.pod) {
            runtime.processes.insert(name.clone(), Process { pid, spec: Arc::new(spec) });
        }
        self.learn(|facts| {
            facts.running = true;
            facts.message = None;
        })
        .await;
        Ok((child, pid))
    }

    fn spawn(&self, sandbox: Pid, spec_file: &std::path::Path) -> Result<Child> {
        let log = self.kubelet.log_file(&self.pod, &self.container.name);
        if let Some(parent) = log.parent() {
            fs::create_dir_all(parent)?;
        }
        let log = fs::OpenOptions::new().create(true).append(true).open(&log)?;
        // A program may open /dev/stdout anew, under its own user.
        log.set_permissions(fs::Permissions::from_mode(0o666))?;
        let namespace = |kind: &str| format!("--{kind}=/proc/{sandbox}/ns/{kind}");
        tokio::process::Command::new("nsenter")
            .args([&format!("--target={}", self.kubelet.node), "--mount", "--pid"])
            .args([namespace("net"), namespace("uts"), namespace("ipc"), "--".into()])
            .args(["unshare", "--mount", "--pid", "--fork", "--kill-child=SIGKILL", "--"])
            .arg(&self.kubelet.pod_exec)
            .arg("container")
            .arg(spec_file)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .context("starting nsenter")
    }

    /// Until the helper has become the container's program, commands in the container would meet the machine's root.
    async fn until_executed(&self, pid: Pid, child: &mut Child, deadline: Instant) -> Result<()> {
        let exe = format!("/proc/{pid}/exe");
        while fs::read_link(&exe).is_ok_and(|exe| exe == self.kubelet.pod_exec) {
            if child.try_wait()?.is_some() {
                break;
            }
            if Instant::now() > deadline {
                signal(pid, Signal::KILL);
                bail!("container {} was not set up within {SETUP:?}", self.container.name);
            }
            sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    fn last_words(&self) -> String {
        let log =
            fs::read_to_string(self.kubelet.log_file(&self.pod, &self.container.name)).unwrap_or_default();
        log.lines().next_back().unwrap_or("it said nothing").to_owned()
    }

    /// Runs hook and probes until the container has to be killed; says why. Without a liveness probe, for ever.
    async fn probe(&self) -> Option<String> {
        match Box::pin(self.probe_or_fail()).await {
            Ok(never) => match never {},
            Err(error) => Some(format!("{error:#}")),
        }
    }

    async fn probe_or_fail(&self) -> Result<std::convert::Infallible> {
        let lifecycle = self.container.lifecycle.as_ref();
        if let Some(handler) = lifecycle.and_then(|lifecycle| lifecycle.post_start.as_ref()) {
            self.act(&hook(handler)?).await.context("postStart")?;
        }
        if let Some(probe) = &self.container.startup_probe {
            let startup = Schedule::of(probe)?;
            self.until_success(&startup).await.context("startup probe")?;
        }
        let has_readiness = self.container.readiness_probe.is_some();
        self.learn(|facts| {
            facts.started = true;
            facts.ready = !has_readiness;
        })
        .await;
        let (never, _) = tokio::try_join!(
            self.liveness(self.container.liveness_probe.as_ref()),
            self.readiness(self.container.readiness_probe.as_ref()),
        )?;
        Ok(never)
    }

    /// Probes until the first success, or until as much time has passed as the manifest allows.
    async fn until_success(&self, schedule: &Schedule) -> Result<()> {
        let patience = schedule.initial_delay + schedule.period * schedule.failures;
        let deadline = Instant::now() + patience;
        loop {
            let outcome = self.ask(schedule).await;
            match outcome {
                Ok(()) => return Ok(()),
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => sleep(EAGER.min(schedule.period)).await,
            }
        }
    }

    async fn liveness(&self, probe: Option<&Probe>) -> Result<std::convert::Infallible> {
        let Some(probe) = probe else { return Ok(std::future::pending().await) };
        let schedule = Schedule::of(probe)?;
        sleep(schedule.initial_delay).await;
        let mut failures = 0;
        loop {
            match self.ask(&schedule).await {
                Ok(()) => failures = 0,
                Err(error) => {
                    failures += 1;
                    if failures >= schedule.failures {
                        return Err(error.context("liveness probe"));
                    }
                }
            }
            sleep(schedule.period).await;
        }
    }

    async fn readiness(&self, probe: Option<&Probe>) -> Result<std::convert::Infallible> {
        let Some(probe) = probe else { return Ok(std::future::pending().await) };
        let schedule = Schedule::of(probe)?;
        let (mut ready, mut in_a_row) = (false, 0);
        loop {
            let outcome = self.ask(&schedule).await;
            in_a_row = if outcome.is_ok() == ready { 0 } else { in_a_row + 1 };
            let enough = if ready { schedule.failures } else { schedule.successes };
            if in_a_row >= enough {
                (ready, in_a_row) = (!ready, 0);
                self.learn(|facts| facts.ready = ready).await;
            }
            sleep(if ready { schedule.period } else { EAGER.min(schedule.period) }).await;
        }
    }

    async fn ask(&self, schedule: &Schedule) -> Result<()> {
        match timeout(schedule.timeout, self.act(&schedule.action)).await {
            Ok(outcome) => outcome,
            Err(_) => bail!("no answer within {:?}", schedule.timeout),
        }
    }

    async fn act(&self, action: &Action) -> Result<()> {
        match action {
            Action::Http(get) => http_get(&self.pod_object()?, get).await,
            Action::Tcp(port) => tcp(&self.pod_object()?, port).await.map(drop),
            Action::Sleep(time) => {
                sleep(*time).await;
                Ok(())
            }
            Action::Exec(exec) => {
                let argv = exec.command.clone().unwrap_or_default();
                // The probe's own deadline is shorter.
                let output = self.kubelet.exec(&self.pod, &self.container.name, &argv, SETUP).await?;
                if output.status.success() {
                    return Ok(());
                }
                bail!(
                    "{} ({}): {}",
                    argv.join(" "),
                    output.status,
                    String::from_utf8_lossy(&output.stderr).trim()
                )
            }
        }
    }
}

fn signal(pid: Pid, signal: Signal) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid) {
        // A process that is gone already needs no signal.
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// Makes or refreshes what the pod's volumes hold.
pub fn write_volumes(kubelet: &Kubelet, pod: &Pod) -> Result<()> {
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let directory = kubelet.outside.join("pods").join(uid).join("volumes");
    let now = crate::token::unix_now()?;
    for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
        let world = kubelet.world();
        let from = Sources { pod, lookup: &*world, tokens: &kubelet.tokens, now };
        let content = volumes::content(volume, &from)?;
        drop(world);
        volumes::write(&directory.join(&volume.name), &content, pod)?;
    }
    Ok(())
}

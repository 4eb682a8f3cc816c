//! What every attack has in common: a victim that is warm, others' traffic through it meanwhile, and the account of both
//! afterwards.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::app::App;
use crate::load::{Load, Plan};
use crate::mesh::Mesh;
use crate::node::PodRef;
use crate::resources::{Cost, Ledger, Usage};
use crate::shop;

/// Where a victim serves others.
const OTHERS: u16 = 8080;
/// The pod, without a proxy, that others' requests come from.
pub const BYSTANDER: &str = "old";
/// How long a proxy without work holds what it held last before it counts as idle: longer than it keeps an unused
/// connection of HTTP/1, and more often than it sweeps them.
const IDLE: Duration = Duration::from_secs(7);

/// A mesh with these pods to attack, and the pod of others.
///
/// # Errors
/// A pod does not become ready.
pub fn open(victims: &[String]) -> Result<Mesh> {
    let others = shop::idle(BYSTANDER, &[("linkerd.io/inject", "disabled")]);
    shop::open(&[&[others], victims].concat())
}

/// A proxy under attack, while others are served.
pub struct Scene<'a> {
    mesh: &'a Mesh,
    pub victim: PodRef<'a>,
    ledger: Ledger<'a>,
    load: Load,
    _app: App,
}

impl<'a> Scene<'a> {
    /// Warms the proxy of `victim` by ordinary requests and by `as_attacked`, waits until it is idle, and begins to send
    /// others' requests to it.
    ///
    /// # Errors
    /// The proxy does not serve, or does not become idle.
    pub fn begin(mesh: &'a Mesh, victim: &str, as_attacked: impl Fn() -> Result<()>) -> Result<Self> {
        let victim = mesh.pod(shop::SHOP, victim)?;
        let app = App::start(&victim, OTHERS, "others")?;
        let bystander = mesh.pod(shop::SHOP, BYSTANDER)?;
        let plan = |kept, fresh| Plan {
            target: std::net::SocketAddr::new(victim.ip().unwrap_or_else(|_| [0, 0, 0, 0].into()), OTHERS),
            host: "web".into(),
            path: "/".into(),
            kept,
            fresh,
        };
        let warming = Load::start(&bystander, plan(2, 2))?;
        as_attacked().context("what the attack is like, before it")?;
        mesh.wait_until("the victim to be warm", shop::PATIENCE, || warming.tally().answered() > 150)?;
        warming.finish()?;
        let pid = victim.pid("linkerd-proxy").context("no proxy")?;
        let mut held = (Usage::of(pid)?.fds, std::time::Instant::now());
        mesh.wait_until("the victim to be idle", 4 * IDLE, || {
            let fds = Usage::of(pid).map_or(0, |now| now.fds);
            if fds != held.0 {
                held = (fds, std::time::Instant::now());
            }
            held.1.elapsed() > IDLE
        })?;
        let ledger = Ledger::of_proxy(mesh, &victim)?;
        let load = Load::start(&bystander, plan(1, 0))?;
        mesh.wait_until("others to be served", shop::PATIENCE, || load.tally().answered() > 0)?;
        Ok(Self { mesh, victim, ledger, load, _app: app })
    }

    /// Runs an attack on this thread, which returns how many bytes it sent or held, and checks that others were served
    /// meanwhile and that it cost the proxy no more than it may.
    ///
    /// # Errors
    /// Whatever was not so, with the attack's name.
    pub fn attack(&self, name: &str, attack: impl FnOnce() -> Result<u64>) -> Result<Cost> {
        self.served_until(name)?;
        let cost = self.ledger.attack(attack).with_context(|| name.to_owned())?;
        // A request that was under way when it ended counts too.
        let served = || self.load.tally().answered() > 0;
        self.mesh
            .wait_until("others to be served", shop::PATIENCE, served)
            .with_context(|| name.to_owned())?;
        let tally = self.load.tally();
        ensure!(tally.failed == 0, "{name}: others were not served: {:#?}", tally.failures);
        cost.check().with_context(|| name.to_owned())?;
        Ok(cost)
    }

    /// [`attack`](Self::attack) for what a replay of prepared bytes costs its sender next to nothing: its processor time
    /// per byte is held against that of ordinary requests of the same victim instead.
    ///
    /// # Errors
    /// Whatever was not so, with the attack's name.
    pub fn replay(
        &self,
        name: &str,
        ordinary: impl FnOnce() -> Result<u64>,
        attack: impl FnOnce() -> Result<u64>,
    ) -> Result<Cost> {
        let known = self.ledger.attack(ordinary).context("ordinary requests")?;
        let hostile = Duration::from_micros(1);
        self.served_until(name)?;
        let cost = self.ledger.attack(attack).with_context(|| name.to_owned())?;
        let tally = self.load.tally();
        ensure!(tally.failed == 0, "{name}: others were not served: {:#?}", tally.failures);
        let per_byte =
            |cost: &Cost| cost.target_cpu.max(hostile).as_secs_f64() / cost.attacker_bytes.max(1) as f64;
        let dear = per_byte(&cost) > per_byte(&known);
        ensure!(!dear, "{name}: a byte costs more than one of an ordinary request: {cost:?}, {known:?}");
        cost.check_memory().with_context(|| name.to_owned())?;
        Ok(cost)
    }

    /// Begins to count others' answers anew. An error: one was missing so far.
    fn served_until(&self, what: &str) -> Result<()> {
        let tally = self.load.take();
        ensure!(tally.failed == 0, "before {what}: others were not served: {:#?}", tally.failures);
        Ok(())
    }

    /// A counter of the victim.
    pub fn count(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        self.victim.metrics().map_or(0, |samples| samples.count(name, labels))
    }

    /// Waits until a counter is above what it was.
    ///
    /// # Errors
    /// It is not.
    pub fn counted(&self, name: &str, labels: &[(&str, &str)], before: u64) -> Result<()> {
        let what = format!("{name}{labels:?} to be above {before}");
        self.mesh.wait_until(&what, shop::PATIENCE, || self.count(name, labels) > before)
    }

    /// Whether the victim's log says this.
    ///
    /// # Errors
    /// It does not, with the log.
    pub fn said(&self, text: &str) -> Result<()> {
        let log = self.mesh.logs(&self.victim, "linkerd-proxy");
        ensure!(log.contains(text), "the log does not say {text:?}:\n{log}");
        Ok(())
    }

    /// Ends others' traffic, and waits until the proxy is as it was before.
    ///
    /// # Errors
    /// Others were not served all the time, or the proxy does not become as it was.
    pub fn end(self) -> Result<()> {
        self.served_until("the end")?;
        let served = || self.load.tally().answered() > 0;
        self.mesh.wait_until("others to be served afterwards", shop::PATIENCE, served)?;
        let tally = self.load.finish()?;
        ensure!(tally.failed == 0, "others were not served: {:#?}", tally.failures);
        self.ledger.settle()
    }
}

//! What a process holds and spends: descriptors, memory, processor time; before, during and after an attack on it.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::node::{Node, PodRef};

/// Processor time in `/proc` is counted in hundredths of a second (`USER_HZ`), on every architecture.
const TICK: Duration = Duration::from_millis(10);
/// How long a proxy may take to be as it was.
pub const SETTLE: Duration = Duration::from_mins(1);
/// What it may be larger by then: in tenths of what it was.
const MOST_RSS: u64 = 13;
/// What an attack may cost its target, as a multiple of what it costs the attacker.
pub const AMPLIFICATION: f64 = 10.0;
/// Memory and processor time that any attack may cost, however small it is: below them a ratio says nothing.
const FREE_BYTES: u64 = 8 << 20;
const FREE_CPU: Duration = Duration::from_millis(300);

/// What a process holds now, and has spent since its start.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// Open file descriptors.
    pub fds: usize,
    /// Resident bytes.
    pub rss: u64,
    /// Processor time of all its threads, those that have ended too.
    pub cpu: Duration,
}

impl Usage {
    /// # Errors
    /// The process is gone, or `/proc` is not what it was.
    pub fn of(pid: i32) -> Result<Self> {
        let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).context("counting descriptors")?.count();
        Ok(Self { fds, rss: kibibytes(&format!("/proc/{pid}/smaps_rollup"), "Rss:")? << 10, cpu: cpu(pid)? })
    }
}

/// Processor time that the calling thread has spent.
pub fn thread_cpu() -> Result<Duration> {
    spent("/proc/thread-self/stat")
}

/// Processor time that all threads of a process have spent.
pub fn cpu(pid: i32) -> Result<Duration> {
    spent(&format!("/proc/{pid}/stat"))
}

fn spent(path: &str) -> Result<Duration> {
    let stat = std::fs::read_to_string(path).with_context(|| format!("reading {path}"))?;
    // The second field is a name in parentheses that may hold anything; user and system time are fields 14 and 15.
    let (_, fields) = stat.rsplit_once(')').context("no name in stat")?;
    let mut ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<u32>);
    let (user, system) = (ticks.next().context("no user time")??, ticks.next().context("no system time")??);
    Ok(TICK * (user + system))
}

fn kibibytes(path: &str, field: &str) -> Result<u64> {
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {path}"))?;
    let value = text.lines().find_map(|line| line.strip_prefix(field));
    Ok(value.and_then(|value| value.split_whitespace().next()).context("no such field")?.parse()?)
}

/// A container's process as it was before something is done to it.
pub struct Ledger<'a> {
    node: &'a Node,
    pod: PodRef<'a>,
    pid: i32,
    pub before: Usage,
}

/// What an attack cost its target and its attacker.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    pub target_cpu: Duration,
    pub attacker_cpu: Duration,
    /// By how much the target's resident memory was larger at its peak than when the attack began.
    pub target_bytes: u64,
    /// What the attacker says that it sent or held.
    pub attacker_bytes: u64,
}

impl<'a> Ledger<'a> {
    /// Of the proxy of a pod. Begin when it is warm: it has served what others will ask of it, and is idle.
    ///
    /// # Errors
    /// There is no such process.
    pub fn of_proxy(node: &'a Node, pod: &PodRef<'a>) -> Result<Self> {
        let pid = pod.pid("linkerd-proxy").with_context(|| format!("{} has no proxy", pod.name))?;
        Ok(Self { node, pod: pod.clone(), pid, before: Usage::of(pid)? })
    }

    /// Runs an attack on this thread, which returns how many bytes it sent or held.
    ///
    /// # Errors
    /// The attack's own, or the process was restarted by it.
    pub fn attack(&self, attack: impl FnOnce() -> Result<u64>) -> Result<Cost> {
        // Forgets the largest resident set so far (proc(5), clear_refs).
        std::fs::write(format!("/proc/{}/clear_refs", self.pid), "5").context("resetting the peak")?;
        // What earlier attacks have left is not this one's: `settle` sees to it.
        let held = Usage::of(self.pid)?.rss.max(self.before.rss);
        let (target, attacker) = (cpu(self.pid)?, thread_cpu()?);
        let attacker_bytes = attack()?;
        let attacker_cpu = thread_cpu()?.saturating_sub(attacker);
        let target_cpu = cpu(self.pid)?.saturating_sub(target);
        ensure!(self.pod.pid("linkerd-proxy") == Some(self.pid), "the proxy was restarted");
        let peak = kibibytes(&format!("/proc/{}/status", self.pid), "VmHWM:")? << 10;
        let target_bytes = peak.saturating_sub(held);
        Ok(Cost { target_cpu, attacker_cpu, target_bytes, attacker_bytes })
    }

    /// Waits until the process is as it was: its descriptors are those of before or fewer, its memory is at most 1.3
    /// times as large, within [`SETTLE`].
    ///
    /// # Errors
    /// It is not, and what it holds instead.
    pub fn settle(&self) -> Result<()> {
        let mut now = self.before;
        let settled = self.node.wait_until("the proxy to be as it was before", SETTLE, || {
            now = Usage::of(self.pid).unwrap_or(now);
            now.fds <= self.before.fds && now.rss * 10 <= self.before.rss * MOST_RSS
        });
        ensure!(self.pod.pid("linkerd-proxy") == Some(self.pid), "the proxy was restarted");
        settled.with_context(|| format!("before: {:?}, now: {now:?}", self.before))
    }
}

impl Cost {
    /// # Errors
    /// It cost the target more than [`AMPLIFICATION`] times what it cost the attacker, in processor time or in memory.
    pub fn check(&self) -> Result<()> {
        // First: whoever puts up with what it costs in processor time does not put up with what it holds.
        self.check_memory()?;
        let cpu = self.target_cpu.as_secs_f64() / self.attacker_cpu.max(TICK).as_secs_f64();
        ensure!(
            self.target_cpu <= FREE_CPU || cpu <= AMPLIFICATION,
            "CPU is amplified {cpu:.1} times: {self:?}"
        );
        Ok(())
    }

    /// # Errors
    /// It cost the target more than [`AMPLIFICATION`] times the memory that it cost the attacker.
    pub fn check_memory(&self) -> Result<()> {
        let memory = self.target_bytes as f64 / self.attacker_bytes.max(1) as f64;
        let free = self.target_bytes <= FREE_BYTES;
        ensure!(free || memory <= AMPLIFICATION, "memory is amplified {memory:.1} times: {self:?}");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_sees_itself() {
        let own = Usage::of(std::process::id().cast_signed()).unwrap();
        assert!(own.fds >= 3 && own.rss > 1 << 20, "{own:?}");
        let before = thread_cpu().unwrap();
        let mut work = 0_u64;
        while thread_cpu().unwrap() < before + 3 * TICK {
            work = std::hint::black_box(work + 1);
        }
        assert!(cpu(std::process::id().cast_signed()).unwrap() >= 3 * TICK);
    }

    #[test]
    fn what_costs_the_target_more_than_ten_times_as_much_is_an_amplification() {
        let cost = |target: u64, attacker: u64, target_bytes, attacker_bytes| Cost {
            target_cpu: Duration::from_millis(target),
            attacker_cpu: Duration::from_millis(attacker),
            target_bytes,
            attacker_bytes,
        };
        cost(1000, 100, 0, 0).check().unwrap();
        cost(200, 1, 8 << 20, 1).check().unwrap();
        cost(0, 0, 50 << 20, 5 << 20).check().unwrap();
        let told = |cost: Cost| cost.check().unwrap_err().to_string();
        assert!(told(cost(1100, 100, 0, 0)).contains("CPU is amplified 11.0 times"));
        for cpu in [0, 1100] {
            let told = told(cost(cpu, 100, 51 << 20, 5 << 20));
            assert!(told.contains("memory is amplified 10.2 times") && !told.contains("CPU"), "{told}");
        }
    }
}

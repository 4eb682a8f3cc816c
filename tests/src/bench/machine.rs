//! What the kernel knows: which core runs what, how long a process ran, how much memory it has, and what the host took.

use std::fs;

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_setaffinity};

/// Microseconds in a clock tick of `/proc/PID/stat`: USER_HZ is 100 on every architecture that we know.
const TICK_MICROS: f64 = 1e4;

/// Who runs where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Cores {
    /// Of both proxies of a pair.
    pub proxies: usize,
    /// Of whoever makes the load, and of nginx.
    pub load: usize,
}

impl std::str::FromStr for Cores {
    type Err = String;

    /// `0,1`: the proxies' core, the load's core.
    fn from_str(text: &str) -> Result<Self, String> {
        let core = |text: &str| text.trim().parse().ok().filter(|core| *core < CpuSet::MAX_CPU);
        let pair = text.split_once(',').and_then(|(proxies, load)| Some((core(proxies)?, core(load)?)));
        match pair {
            Some((proxies, load)) if proxies != load => Ok(Self { proxies, load }),
            _ => Err("two different cores are needed, as in 0,1: the proxies', the load's".to_owned()),
        }
    }
}

/// Lets the calling thread, and every thread and process that it starts from now on, run on `core` alone.
pub fn pin_self(core: usize) -> Result<()> {
    pin(None, core)
}

/// Lets every thread of a process run on `core` alone.
pub fn pin_process(process: i32, core: usize) -> Result<()> {
    for thread in threads(process)? {
        pin(Pid::from_raw(thread), core)?;
    }
    Ok(())
}

fn pin(thread: Option<Pid>, core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(thread, &set).with_context(|| {
        format!("running on core {core} alone: this machine may have fewer, see CORES in docs/bench.md")
    })
}

fn threads(process: i32) -> Result<Vec<i32>> {
    let threads = fs::read_dir(format!("/proc/{process}/task"))
        .with_context(|| format!("process {process} does not run any more"))?;
    let number = |entry: fs::DirEntry| entry.file_name().to_str().and_then(|name| name.parse().ok());
    Ok(threads.flatten().filter_map(number).collect())
}

/// Lets us, and what we start, have as many open files as this machine allows. How many that is.
pub fn raise_open_files() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    // Where that is refused the lower limit stays, which is enough for all but large numbers of connections.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Microseconds that a process ran on any processor: `/proc/PID/task/*/schedstat` (proc(5)), and `/proc/PID/stat` where
/// the kernel does not count so finely.
pub fn cpu_micros(process: i32) -> Result<f64> {
    let mut nanos = 0_u64;
    for thread in threads(process)? {
        // A thread may end between being listed and being looked at.
        let text = fs::read_to_string(format!("/proc/{process}/task/{thread}/schedstat")).unwrap_or_default();
        nanos += text.split(' ').next().and_then(|first| first.parse::<u64>().ok()).unwrap_or(0);
    }
    if nanos > 0 {
        return Ok(nanos as f64 / 1e3);
    }
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    ticks(&stat).map(|ticks| ticks as f64 * TICK_MICROS).context("/proc/PID/stat is not as proc(5) says")
}

/// User and system time of `/proc/PID/stat` in clock ticks.
fn ticks(stat: &str) -> Option<u64> {
    // The second field may contain anything, but its closing parenthesis is the last one.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

/// The processes that a process has started.
pub fn children(process: i32) -> Vec<i32> {
    let children = fs::read_to_string(format!("/proc/{process}/task/{process}/children")).unwrap_or_default();
    children.split_whitespace().filter_map(|child| child.parse().ok()).collect()
}

/// Resident memory of a process in KiB (`/proc/PID/smaps_rollup`).
pub fn resident_kib(process: i32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{process}/smaps_rollup"))
        .with_context(|| format!("process {process} does not run any more"))?;
    rss(&text).context("smaps_rollup has no Rss")
}

fn rss(rollup: &str) -> Option<f64> {
    let line = rollup.lines().find_map(|line| line.strip_prefix("Rss:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse().ok()
}

/// How the processors have spent their time since the start, in clock ticks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Processors {
    total: u64,
    stolen: u64,
    /// By core: what was used by processes, and by the kernel for them.
    busy: Vec<u64>,
}

impl Processors {
    pub fn now() -> Result<Self> {
        Self::parse(&fs::read_to_string("/proc/stat")?).context("/proc/stat is not as proc(5) says")
    }

    /// The share that the host took for others since `before`.
    pub fn steal_since(&self, before: &Self) -> f64 {
        let total = self.total.saturating_sub(before.total).max(1);
        self.stolen.saturating_sub(before.stolen) as f64 / total as f64
    }

    /// Microseconds that `core` was busy since `before`.
    pub fn busy_micros_since(&self, before: &Self, core: usize) -> f64 {
        let busy = |then: &Self| then.busy.get(core).copied().unwrap_or_default();
        busy(self).saturating_sub(busy(before)) as f64 * TICK_MICROS
    }

    fn parse(stat: &str) -> Option<Self> {
        // user, nice, system, idle, iowait, irq, softirq, steal; what follows is counted in user and nice already.
        let times = |line: &str| -> Option<[u64; 8]> {
            let fields = line.split_whitespace().skip(1).take(8);
            fields.map_while(|field| field.parse().ok()).collect::<Vec<u64>>().try_into().ok()
        };
        let mut lines = stat.lines().take_while(|line| line.starts_with("cpu"));
        let all = times(lines.next()?)?;
        let busy = lines.map(|line| {
            times(line)
                .map(|[user, nice, system, _, _, irq, softirq, _]| user + nice + system + irq + softirq)
        });
        Some(Self { total: all.iter().sum(), stolen: *all.last()?, busy: busy.collect::<Option<_>>()? })
    }
}

/// What figures depend on, in words: processor, kernel, load average.
pub fn describe() -> Vec<(&'static str, String)> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let processor = read("/proc/cpuinfo")
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, name)| name.to_owned()));
    // Not what we may use: we are pinned.
    let cores = read("/proc/cpuinfo").lines().filter(|line| line.starts_with("processor")).count();
    vec![
        ("processor", processor.unwrap_or_else(|| "unknown".to_owned())),
        ("cores", cores.to_string()),
        ("kernel", read("/proc/sys/kernel/osrelease").trim().to_owned()),
        ("load average at the start", read("/proc/loadavg").trim().to_owned()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_two_and_different() {
        assert_eq!("0,1".parse(), Ok(Cores { proxies: 0, load: 1 }));
        assert_eq!("3, 2".parse(), Ok(Cores { proxies: 3, load: 2 }));
        for wrong in ["", "0", "0,0", "0,1,2", "a,b", "0,99999"] {
            assert!(wrong.parse::<Cores>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn the_kernels_numbers_are_read_from_where_they_stand() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194560 1 2 3 4 250 50 0 0 20 0 1 0 9 1 1";
        assert_eq!(ticks(stat), Some(300));
        assert_eq!(ticks("7 (a"), None);
        assert_eq!(rss("5600-7ff [rollup]\nRss:             6144 kB\nPss:  1 kB\n"), Some(6144.0));
        let stat =
            "cpu  10 1 20 60 3 0 2 4 0 0\ncpu0 5 1 10 30 3 0 1 4 0 0\ncpu1 5 0 10 30 0 0 1 0 0 0\nintr 7 1\n";
        let now = Processors::parse(stat).unwrap();
        let before = Processors { total: 50, stolen: 2, busy: vec![7, 16] };
        assert!((now.steal_since(&before) - 0.04).abs() < 1e-9);
        assert!((now.busy_micros_since(&before, 0) - 1e5).abs() < 1e-9);
        assert!(now.busy_micros_since(&before, 1).abs() < 1e-9);
    }

    #[test]
    fn this_very_process_has_run_and_has_memory() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(cpu_micros(own).unwrap() > 0.0);
        assert!(resident_kib(own).unwrap() > 0.0);
    }
}

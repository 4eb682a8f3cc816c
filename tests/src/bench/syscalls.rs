//! How many system calls each proxy makes for a request, counted by strace: what the kernel is asked for is most of what
//! a small request costs, and callgrind does not see it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// How long strace may take to attach, and to end.
const PATIENCE: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(5);

/// Calls by name.
pub type Calls = BTreeMap<String, u64>;

/// strace on every thread of a process. Dropping it leaves the process alone.
pub struct Tracer {
    child: Child,
    out: std::path::PathBuf,
}

impl Tracer {
    /// Attaches, and returns when every thread is traced.
    pub fn attach(process: i32, out: &Path) -> Result<Self> {
        let strace =
            crate::image::in_path("strace").context("strace is not installed: apt-get install strace")?;
        let mut command = Command::new(strace);
        command.args(["-f", "-c", "-U", "calls,name", "-o"]).arg(out).args(["-p", &process.to_string()]);
        let child = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().context("starting strace")?;
        let mut tracer = Self { child, out: out.to_path_buf() };
        let deadline = Instant::now() + PATIENCE;
        while !is_traced(process)? {
            if let Some(status) = tracer.child.try_wait()? {
                bail!("strace ended at once ({status}): may this machine's root trace?");
            }
            if Instant::now() > deadline {
                bail!("strace did not attach within {PATIENCE:?}");
            }
            std::thread::sleep(LOOK);
        }
        Ok(tracer)
    }

    /// Lets go, and says what was called meanwhile.
    pub fn detach(mut self) -> Result<Calls> {
        self.interrupt();
        self.child.wait().context("waiting for strace")?;
        let text =
            fs::read_to_string(&self.out).with_context(|| format!("reading {}", self.out.display()))?;
        Ok(calls(&text))
    }

    fn interrupt(&self) {
        if let Some(pid) = Pid::from_raw(self.child.id().cast_signed()) {
            // One that has ended already needs no signal.
            let _ = kill_process(pid, Signal::INT);
        }
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.interrupt();
            // It lets go of what it traces before it ends.
            let _ = self.child.wait();
        }
    }
}

fn is_traced(process: i32) -> Result<bool> {
    let threads = fs::read_dir(format!("/proc/{process}/task")).context("the process has ended")?;
    Ok(threads.flatten().all(|thread| {
        let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
        status.lines().any(|line| line.strip_prefix("TracerPid:").is_some_and(|tracer| tracer.trim() != "0"))
    }))
}

/// strace's summary with the columns `calls` and `name`.
fn calls(summary: &str) -> Calls {
    let row = |line: &str| {
        let mut words = line.split_whitespace();
        let count = words.next()?.parse().ok()?;
        let name = words.next().filter(|name| *name != "total")?;
        Some((name.to_owned(), count))
    };
    summary.lines().filter_map(row).collect()
}

/// What of `more` is not in `less`, for each of so many requests; the most frequent first, and nothing that is rare.
pub fn per_request(less: &Calls, more: &Calls, requests: u64) -> Vec<(String, f64)> {
    /// Timers and the control plane make some calls however many requests there are.
    const RARE: f64 = 0.005;
    let mut found: Vec<(String, f64)> = more
        .iter()
        .map(|(name, count)| {
            let fewer = less.get(name).copied().unwrap_or_default();
            (name.clone(), count.saturating_sub(fewer) as f64 / requests as f64)
        })
        .filter(|(_, rate)| *rate >= RARE)
        .collect();
    found.sort_by(|(_, one), (_, other)| other.total_cmp(one));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUMMARY: &str = "    calls syscall\n--------- ----------------\n     2000 sendto\n      411 epoll_wait\n       \
                           1 mmap\n--------- ----------------\n     2412 total\n";

    #[test]
    fn a_summary_is_read_without_its_rules_and_its_total() {
        let expected = [("epoll_wait", 411), ("mmap", 1), ("sendto", 2000)];
        let expected: Calls = expected.map(|(name, count)| (name.to_owned(), count)).into();
        assert_eq!(calls(SUMMARY), expected);
    }

    #[test]
    fn what_does_not_grow_with_the_requests_is_left_out() {
        let less: Calls = [("sendto".to_owned(), 1000), ("mmap".to_owned(), 1)].into();
        let found = per_request(&less, &calls(SUMMARY), 1000);
        assert_eq!(found, [("sendto".to_owned(), 1.0), ("epoll_wait".to_owned(), 0.411)]);
    }
}

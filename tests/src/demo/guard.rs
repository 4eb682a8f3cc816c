//! The process that the user started. It runs the story in a process of its own, and stays until nothing is left of it:
//! when the story ends, when it fails in the middle, and when a signal ends it at whatever moment.
//!
//! As subreaper it inherits every process that the story leaves behind. The node's processes end by themselves, because
//! the kernel closes their standard input (see `sandbox.rs`); here we only wait for that.

use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, WaitOptions};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

use super::tell::say;

/// How long what the story left may take to end.
const LEAVE: Duration = Duration::from_secs(20);
/// Between looks at it.
const LOOK: Duration = Duration::from_millis(5);

/// Runs this program again with `args` and waits until it and everything that it started is gone. Its exit code; 128 and
/// the signal's number if a signal ended it.
///
/// # Errors
/// A story that cannot be started, or that leaves processes which do not end.
pub fn run(args: &[&str]) -> Result<u8> {
    let own = rustix::process::getpid();
    rustix::process::set_child_subreaper(Some(own))
        .context("becoming the reaper of what the story leaves")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (pid, status) = runtime.block_on(story(args))?;
    // From here on signals are still caught and mean nothing: leaving is what we do.
    if let Some(number) = status.signal() {
        say(format_args!("\nEnded by signal {number}."));
    }
    wait_for_all()?;
    remove_directories(pid)?;
    say("Everything that was started is gone.");
    Ok(exit_code(status))
}

/// What `run` starts ends with us, should we be killed without a chance to clean up.
pub fn die_with_parent() -> Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .context("asking to end with the parent")
}

/// The story's process to its end. Signals that we get are for it: in the middle they end it, in the end it asks to be
/// ended by them.
async fn story(args: &[&str]) -> Result<(u32, ExitStatus)> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let program = std::env::current_exe().context("finding the running program")?;
    let mut child = Command::new(program).args(args).spawn().context("starting the story")?;
    let pid = child.id().context("the story has no process id")?;
    loop {
        tokio::select! {
            status = child.wait() => return Ok((pid, status?)),
            _ = interrupt.recv() => forward(&child, Signal::INT),
            _ = terminate.recv() => forward(&child, Signal::TERM),
            _ = hangup.recv() => forward(&child, Signal::HUP),
        }
    }
}

fn forward(child: &Child, signal: Signal) {
    let pid = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
    if let Some(pid) = pid {
        // One that has ended already needs no signal.
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// Until we have no children: none of the story's, and none that it left to us.
fn wait_for_all() -> Result<()> {
    let deadline = Instant::now() + LEAVE;
    loop {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some(_)) => {}
            Err(rustix::io::Errno::CHILD) => return Ok(()),
            Ok(None) | Err(rustix::io::Errno::INTR) if Instant::now() < deadline => std::thread::sleep(LOOK),
            Ok(None) | Err(rustix::io::Errno::INTR) => {
                bail!(
                    "some processes of the demo did not end within {LEAVE:?}; see `ps --ppid {}`",
                    std::process::id()
                )
            }
            Err(error) => return Err(error).context("waiting for what the story left"),
        }
    }
}

/// Of a story that ended before its node could look after its own directory.
fn remove_directories(pid: u32) -> Result<()> {
    let prefix = format!("remora-node-{pid}-");
    for entry in std::fs::read_dir(std::env::temp_dir())?.flatten() {
        if entry.file_name().to_str().is_some_and(|name| name.starts_with(&prefix)) {
            std::fs::remove_dir_all(entry.path())
                .with_context(|| format!("removing {}", entry.path().display()))?;
        }
    }
    Ok(())
}

/// As a shell reports it.
fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|number| 128 + number));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

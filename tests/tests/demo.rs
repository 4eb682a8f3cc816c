//! `make demo` tells its story to the end, and leaves nothing behind whenever it is ended.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use remora_tests::{Signal, check};

/// The whole story.
const STORY: Duration = Duration::from_mins(2);
/// Any single line of it, and its end when it is told to end.
const PATIENCE: Duration = Duration::from_secs(40);

#[test]
fn every_claim_of_the_story_holds_and_nothing_stays() {
    if !check::can_run() {
        return;
    }
    let mut demo = Demo::start(&[]);
    let told = demo.until_end(STORY);
    assert_eq!(demo.exit_code(), Some(0), "{told}");
    assert!(!told.contains('✗'), "{told}");
    assert!(told.contains(" claims held"), "{told}");
    assert!(!told.contains('\u{1b}'), "escape sequences where there is no terminal: {told}");
    demo.left_nothing();
}

#[test]
fn nothing_stays_when_it_is_interrupted_at_whatever_moment() {
    if !check::can_run() {
        return;
    }
    // From the first line on, before the node is there, to the middle of the load.
    for line in ["Remora: ", "1  ", "2  ", "4  "] {
        let mut demo = Demo::start(&[]);
        demo.until_line(line);
        demo.signal(Signal::INT);
        let told = demo.until_end(PATIENCE);
        assert_eq!(demo.exit_code(), Some(130), "after {line:?}: {told}");
        demo.left_nothing();
    }
}

#[test]
fn nothing_stays_when_the_story_itself_is_killed() {
    if !check::can_run() {
        return;
    }
    let mut demo = Demo::start(&[]);
    demo.until_line("1  ");
    let story = demo.story();
    rustix::process::kill_process(rustix::process::Pid::from_raw(story).unwrap(), Signal::KILL).unwrap();
    let told = demo.until_end(PATIENCE);
    assert_eq!(demo.exit_code(), Some(137), "{told}");
    demo.left_nothing();
}

/// A running demo, in a directory of temporary files that is its own.
struct Demo {
    child: Child,
    lines: Receiver<String>,
    temporary: tempfile::TempDir,
}

#[expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a helper of tests")]
impl Demo {
    fn start(args: &[&str]) -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_remora-demo"))
            .args(args)
            .env("TMPDIR", temporary.path())
            .env_remove("KEEP")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (send, lines) = channel();
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
        Self { child, lines, temporary }
    }

    fn until_line(&mut self, begin: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let line = self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now()));
            if line.expect("the line does not come").starts_with(begin) {
                return;
            }
        }
    }

    /// Everything else that it says until it closes its output.
    fn until_end(&mut self, limit: Duration) -> String {
        let deadline = Instant::now() + limit;
        let mut told = String::new();
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => told.extend([line.as_str(), "\n"]),
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => return told,
                Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
                    self.signal(Signal::INT);
                    panic!("no end within {limit:?}: {told}");
                }
            }
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = rustix::process::Pid::from_raw(self.child.id().cast_signed()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// The process that tells the story.
    fn story(&self) -> i32 {
        let pid = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        children.split_whitespace().next().unwrap().parse().unwrap()
    }

    fn exit_code(&mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }

    /// No directory, and no process that was started in one: each node's processes name theirs.
    fn left_nothing(&self) {
        let place = self.temporary.path();
        let left: Vec<PathBuf> =
            std::fs::read_dir(place).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(left.is_empty(), "{left:?}");
        let place = place.to_str().unwrap();
        for process in std::fs::read_dir("/proc").unwrap().flatten() {
            let told = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
            assert!(!String::from_utf8_lossy(&told).contains(place), "{} stays", process.path().display());
        }
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(!mounts.contains(place), "a mount stays:\n{mounts}");
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        // After a failed assertion the demo must not outlive the test; it cleans up by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

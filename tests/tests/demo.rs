//! `make demo` tells its story to the end, and leaves nothing behind whenever it is ended.

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
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
    let measured: Vec<&str> =
        told.lines().filter_map(|line| line.trim().strip_prefix("memory of ")).collect();
    for pod in ["client's", "gateway's", "greeter's", "grpc-", "kitchen-", "redis's", "web-"] {
        assert!(measured.iter().any(|line| line.starts_with(pod)), "no memory of {pod} proxy: {told}");
    }
    assert_eq!(measured.len(), 9, "the memory of each proxy: {told}");
    assert!(!told.contains('\u{1b}'), "escape sequences where there is no terminal: {told}");
    demo.left_nothing();
}

#[test]
fn nothing_stays_when_it_is_interrupted_at_whatever_moment() {
    if !check::can_run() {
        return;
    }
    // From the first line on, before the node is there, to the middle of the load. A terminal tells every process of
    // its foreground, `kill` only the one that the user started.
    for (line, signal, whom, code) in [
        ("Remora: ", Signal::INT, Whom::Group, 130),
        ("1  ", Signal::INT, Whom::Guard, 130),
        ("1  ", Signal::TERM, Whom::Guard, 143),
        ("2  ", Signal::HUP, Whom::Group, 129),
        ("4  ", Signal::INT, Whom::Group, 130),
    ] {
        let mut demo = Demo::start(&[]);
        demo.until_line(line, PATIENCE);
        demo.signal(signal, whom);
        let told = demo.until_end(PATIENCE);
        assert_eq!(demo.exit_code(), Some(code), "{signal:?} to {whom:?} after {line:?}: {told}");
        demo.left_nothing();
    }
}

/// `make demo KEEP=1`: what it prints to look around with is run as it is printed.
#[test]
fn a_demo_that_is_kept_can_be_looked_around_in_until_ctrl_c() {
    if !check::can_run() {
        return;
    }
    let mut demo = Demo::start(&["--keep"]);
    let told = demo.until_line("It stays until Ctrl-C", STORY);
    let printed = demo.until_line("Every pod", PATIENCE);
    let explained: Vec<&str> = printed.iter().filter_map(|line| line.strip_prefix("   # ")).collect();
    assert_eq!(explained, LOOKS.map(|(what, _)| what), "{printed:?}");
    for pair in printed.chunks_exact(2) {
        let [what, command] = pair else { unreachable!("chunks of two") };
        let expected = LOOKS.iter().find(|(look, _)| what.ends_with(look)).expect("a look").1;
        // This one goes on for ever; one packet will do. With the probes there is always one.
        let command = command.replace(" tcpdump ", " tcpdump -c 1 ");
        let ran =
            Command::new("timeout").args(["30", "sh", "-c", &command]).stdin(Stdio::null()).output().unwrap();
        let said = String::from_utf8_lossy(&ran.stdout);
        assert!(ran.status.success() && said.contains(expected), "{what}\n{command}\n{ran:?}");
    }
    demo.signal(Signal::INT, Whom::Group);
    let goodbye = demo.until_end(PATIENCE);
    assert_eq!(demo.exit_code(), Some(0), "{}\n{goodbye}", told.join("\n"));
    demo.left_nothing();
}

/// What there is to look at, in order, and what is seen there.
const LOOKS: [(&str, &str); 9] = [
    ("a request in the mesh", "hello from web-"),
    ("a request from outside", "hello from web-"),
    // Its input has ended: so does it.
    ("a shell in the client's pod", ""),
    ("what its proxy counts", "\nrequest_total{direction=\"outbound\""),
    ("what its proxy knows", "\"identity\":"),
    ("what is redirected to it", "-A PROXY_INIT_OUTPUT"),
    ("the wire", " > "),
    ("logs of every container", "linkerd-proxy"),
    ("the live manifests", "pod_shop_client.yaml"),
];

#[test]
fn nothing_stays_when_the_story_itself_is_killed() {
    if !check::can_run() {
        return;
    }
    let mut demo = Demo::start(&[]);
    demo.until_line("1  ", PATIENCE);
    let story = demo.story();
    rustix::process::kill_process(rustix::process::Pid::from_raw(story).unwrap(), Signal::KILL).unwrap();
    let told = demo.until_end(PATIENCE);
    assert_eq!(demo.exit_code(), Some(137), "{told}");
    demo.left_nothing();
}

/// Who gets a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whom {
    /// The process that was started.
    Guard,
    /// It and all that it started and that is in its group, as on a terminal.
    Group,
}

/// A running demo, in a directory of temporary files and a process group that are its own.
struct Demo {
    child: Child,
    lines: Receiver<String>,
    temporary: tempfile::TempDir,
}

#[expect(clippy::unwrap_used, clippy::panic, reason = "a helper of tests")]
impl Demo {
    fn start(args: &[&str]) -> Self {
        let temporary = tempfile::tempdir().unwrap();
        // A group of its own gets no Ctrl-C of the test's terminal; it ends when the test does.
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "TERM", "--", env!("CARGO_BIN_EXE_remora-demo")])
            .args(args)
            .process_group(0)
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

    /// Reads up to the line that begins so; the lines before it.
    fn until_line(&mut self, begin: &str, limit: Duration) -> Vec<String> {
        let deadline = Instant::now() + limit;
        let mut before = Vec::new();
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) if line.starts_with(begin) => return before,
                Ok(line) => before.extend((!line.is_empty()).then_some(line)),
                Err(error) => panic!("no line {begin:?} within {limit:?}: {error}\n{}", before.join("\n")),
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
                    self.signal(Signal::INT, Whom::Guard);
                    panic!("no end within {limit:?}: {told}");
                }
            }
        }
    }

    fn signal(&self, signal: Signal, whom: Whom) {
        let pid = rustix::process::Pid::from_raw(self.child.id().cast_signed()).unwrap();
        match whom {
            Whom::Guard => rustix::process::kill_process(pid, signal).unwrap(),
            Whom::Group => rustix::process::kill_process_group(pid, signal).unwrap(),
        }
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

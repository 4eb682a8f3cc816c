//! What a machine lacks is said before anything is built: all of it, and what to do about it.
#![expect(clippy::unwrap_used, reason = "a test says what it expects")]

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Output};

use remora_tests::{check, executable};

/// Whom no file belongs to.
const NOBODY: u32 = 65534;
/// EX_UNAVAILABLE of sysexits.h.
const UNAVAILABLE: Option<i32> = Some(69);
const RUST: &str = env!("CARGO_PKG_RUST_VERSION");

#[test]
fn without_root_the_demo_says_what_root_has_to_install_and_run() {
    let machine = Machine::new(&format!("rustc {RUST}.0 (of a test)"));
    let (code, said) = machine.run("scripts/demo.sh", &[]);
    assert_eq!(code, UNAVAILABLE, "{said}");
    for word in [
        "cc                       for compiling",
        "curl                     for the client in a pod (package curl)",
        "as root: apt-get install --no-install-recommends build-essential ",
        " redis-server ",
        "would fetch Envoy",
        "  sudo -E env \"PATH=$PATH\" make demo KEEP=1",
    ] {
        assert!(said.contains(word), "{word:?} is missing in:\n{said}");
    }
    assert!(!said.contains("missing: "), "the Rust here will do:\n{said}");
}

#[test]
fn a_rust_that_is_too_old_is_named_before_it_fails() {
    let (major, minor) = RUST.split_once('.').unwrap();
    let older = format!("{major}.{}", minor.parse::<u32>().unwrap() - 1);
    for (says, found) in [
        ("rustc 1.63.0 (897e37553 2022-08-02)", Some("1.63.0")),
        (format!("rustc {older}.9").as_str(), Some(format!("{older}.9").as_str())),
        ("error: rustup could not choose a version of rustc to run", Some("no rustc")),
        (format!("rustc {RUST}.0-nightly (of a test)").as_str(), None),
        ("rustc 2.0.0 (of a test)", None),
    ] {
        let (code, said) = Machine::new(says).run("scripts/setup.sh", &["--dry-run", "build"]);
        // The C compiler is missing in any case.
        assert_eq!(code, UNAVAILABLE, "{says}: {said}");
        let complaint =
            found.map(|found| format!("missing: Rust {RUST}, for compiling everything; here is {found}."));
        match complaint {
            Some(complaint) => assert!(said.contains(&complaint), "{says}: {said}"),
            None => assert!(!said.contains("missing: Rust"), "{says}: {said}"),
        }
    }
}

/// Root in an ordinary container.
#[test]
fn without_the_right_to_make_namespaces_tests_and_demo_say_that_they_are_not_run() {
    if !check::can_run() {
        return;
    }
    let without = |program: &Path, arguments: &[&str], ci: &str| {
        let mut command = Command::new("setpriv");
        command.arg("--bounding-set=-sys_admin").arg(program).args(arguments).env("CI", ci);
        let output = command.output().unwrap();
        (output.status.code(), said(&output))
    };
    let tests = std::env::current_exe().unwrap();
    let one = ["--exact", "a_test_of_pods", "--ignored", "--nocapture"];
    let (code, left_out) = without(&tests, &one, "false");
    assert_eq!(code, Some(0), "{left_out}");
    assert!(left_out.contains("not run: "), "{left_out}");
    let (code, failed) = without(&tests, &one, "true");
    assert_ne!(code, Some(0), "with CI=true it has to fail: {failed}");
    let (code, refused) = without(Path::new(env!("CARGO_BIN_EXE_remora-demo")), &[], "true");
    assert_eq!(code, UNAVAILABLE, "{refused}");
    for said in [left_out, failed, refused] {
        assert!(said.contains("the right to make namespaces (CAP_SYS_ADMIN"), "{said}");
    }
}

#[test]
#[ignore = "run by without_the_right_to_make_namespaces_tests_and_demo_say_that_they_are_not_run"]
fn a_test_of_pods() {
    assert!(!check::can_run(), "it has the right");
}

/// The scripts on a machine that has a shell, a Rust, and what administrators have, but no compiler, no make, no curl.
struct Machine(tempfile::TempDir);

impl Machine {
    fn new(rustc_says: &str) -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        for folder in ["scripts", "bin"] {
            fs::create_dir(root.path().join(folder)).unwrap();
        }
        for file in ["Cargo.toml", "scripts/demo.sh", "scripts/setup.sh"] {
            executable::copy(&repository.join(file), &root.path().join(file)).unwrap();
        }
        let bin = root.path().join("bin");
        for program in ["bash", "cat", "dirname", "id", "sed"] {
            symlink(remora_tests::image::in_path(program).unwrap(), bin.join(program)).unwrap();
        }
        for (program, says) in [("cargo", ""), ("rustc", rustc_says), ("apt-get", "")] {
            executable::script(&bin.join(program), &format!("#!/usr/bin/env bash\necho '{says}'\n")).unwrap();
        }
        Self(root)
    }

    /// Exit code, and what it said on either stream.
    fn run(&self, script: &str, arguments: &[&str]) -> (Option<i32>, String) {
        let mut command = Command::new(self.0.path().join(script));
        command.args(arguments).env_clear().envs([
            ("PATH", self.0.path().join("bin")),
            ("HOME", self.0.path().into()),
            ("KEEP", "1".into()),
        ]);
        if rustix::process::geteuid().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        let output = command.output().unwrap();
        (output.status.code(), said(&output))
    }
}

/// On either stream.
fn said(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned()).concat()
}

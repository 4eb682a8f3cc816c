//! `make test` tells the truth: one program that fails makes it fail, whatever runs beside it, and what it runs is what this
//! checkout has.
#![expect(clippy::unwrap_used, reason = "a test says what it expects")]

use std::fs;
use std::path::Path;
use std::process::Command;

use remora_tests::executable;

/// A cargo whose tests pass, three in each program, but for those of the program `bad`; and which builds all there is.
const CARGO: &str = "#!/usr/bin/env bash
[ \"$1\" = test ] || exit 0
echo 'running 3 tests'
case \" $* \" in
*' --test bad '*) echo 'test result: FAILED. 2 passed; 1 failed; 0 ignored'; echo 'why it failed' >&2; exit 101 ;;
*) echo 'test result: ok. 3 passed; 0 failed; 1 ignored' ;;
esac
";
const NOTHING: &str = "#!/bin/sh\n";

#[test]
fn a_program_that_fails_makes_the_run_fail_and_is_shown() {
    let (passes, said) = run(&["good", "attacks_good", "bad", "other"]);
    assert!(!passes, "{said}");
    for word in ["bad", "FAILED, 2 passed", "why it failed", "make test: 1 of the steps above FAILED"] {
        assert!(said.contains(word), "{word:?} is missing in:\n{said}");
    }
}

#[test]
fn what_passes_is_counted() {
    let (passes, said) = run(&["good", "attacks_good", "other"]);
    // The libraries', the programs' own and the documentation's are three more.
    assert!(passes && said.contains("make test: all passed: 18 tests, 6 ignored"), "{said}");
}

/// Two checkouts with one target folder, the newer of which built last.
#[test]
fn what_another_checkout_built_is_not_taken_for_ours() {
    let root = tempfile::tempdir().unwrap();
    let checkout = |name: &str| {
        let at = |path: &str| root.path().join(name).join(path);
        for folder in ["scripts", "src"] {
            fs::create_dir_all(at(folder)).unwrap();
        }
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("scripts/target.sh");
        executable::copy(&script, &at("scripts/target.sh")).unwrap();
        let manifest = "[workspace]\n[package]\nname = \"of-a-test\"\nedition = \"2024\"\n";
        fs::write(at("Cargo.toml"), format!("{manifest}[profile.dist]\ninherits = \"release\"\n")).unwrap();
        fs::write(at("Cargo.lock"), "version = 4\n[[package]]\nname = \"of-a-test\"\nversion = \"0.0.0\"\n")
            .unwrap();
        fs::write(at("src/main.rs"), format!("fn main() {{ print!(\"{name}\") }}")).unwrap();
        at("")
    };
    let (older, newer) = (checkout("older"), checkout("newer"));
    for (at, name) in [(&newer, "newer"), (&older, "older"), (&older, "older")] {
        let mut command = Command::new("sh");
        command.args(["-c", "scripts/target.sh && cargo run --quiet --locked --offline"]).current_dir(at);
        let output = command.env("CARGO_TARGET_DIR", root.path().join("target")).output().unwrap();
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        assert_eq!(said, [name, ""]);
    }
}

/// Runs the script in a repository that has these test programs, with tools that find nothing wrong.
fn run(programs: &[&str]) -> (bool, String) {
    let root = tempfile::tempdir().unwrap();
    let at = |path: &str| root.path().join(path);
    let deny = "cache/tools/cargo-deny-0.20.2/bin";
    for folder in ["scripts", ".ci", "bin", "tests/tests", deny] {
        fs::create_dir_all(at(folder)).unwrap();
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("scripts/test.sh");
    executable::copy(&script, &at("scripts/test.sh")).unwrap();
    let tools =
        ["scripts/setup.sh", "scripts/clean-run.sh", "scripts/planted.sh", "bin/shellcheck", "bin/rustfmt"];
    for tool in tools.map(str::to_owned).into_iter().chain([format!("{deny}/cargo-deny")]) {
        executable::script(&at(&tool), NOTHING).unwrap();
    }
    executable::script(&at("bin/cargo"), CARGO).unwrap();
    for name in programs {
        fs::write(at(&format!("tests/tests/{name}.rs")), "").unwrap();
    }
    let path = format!("{}:{}", at("bin").display(), std::env::var("PATH").unwrap());
    let output = Command::new(at("scripts/test.sh"))
        .env("PATH", path)
        .env("REMORA_CACHE", at("cache"))
        .env("CARGO_TARGET_DIR", at("target"))
        .env("TMPDIR", root.path())
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    (output.status.success(), said.concat())
}

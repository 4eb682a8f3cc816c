//! The promise that core touches nothing: it builds where there is no standard library. Decided by the compiler, which
//! is given a sysroot with `core` and `alloc` alone, and by what the sources and the dependencies' features say.
#![expect(clippy::expect_used, reason = "a test says what it expects")]

use std::{
    env,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

#[test]
fn core_and_its_dependencies_build_without_the_standard_library() {
    let scratch = Path::new(env!("CARGO_TARGET_TMPDIR")).join("no_std");
    let target = host_target();
    let libraries = scratch.join("sysroot/lib/rustlib").join(&target).join("lib");
    if libraries.exists() {
        fs::remove_dir_all(&libraries).expect("the last run's sysroot can be removed");
    }
    fs::create_dir_all(&libraries).expect("the scratch folder can be written");
    let all = PathBuf::from(output("rustc", &["--print", "target-libdir"]).trim());
    for entry in fs::read_dir(&all).expect("the toolchain's libraries can be listed") {
        let path = entry.expect("the toolchain's libraries can be listed").path();
        let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
        if ["libcore-", "liballoc-", "libcompiler_builtins-", "librustc_std_workspace_"]
            .iter()
            .any(|library| name.starts_with(library))
        {
            std::os::unix::fs::symlink(&path, libraries.join(name))
                .expect("the scratch folder can be written");
        }
    }

    // With an explicit target the flags reach only what is built for it, not build scripts and macros.
    let check = cargo()
        .args(["check", "--offline", "--lib", "--target", &target, "--target-dir"])
        .arg(&scratch)
        .env("CARGO_ENCODED_RUSTFLAGS", format!("--sysroot\u{1f}{}", scratch.join("sysroot").display()))
        .output()
        .expect("cargo runs");
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
}

#[test]
fn no_dependency_is_asked_for_its_standard_library() {
    let tree = output_of(cargo().args([
        "tree",
        "--offline",
        "--edges",
        "normal,no-proc-macro",
        "--prefix",
        "none",
        "--format",
        "{p}|{f}",
    ]));
    assert!(tree.starts_with("remora-core "), "not the tree of core: {tree}");
    assert!(tree.lines().any(|line| line.starts_with("regex ")), "the tree ends at its root: {tree}");
    for line in tree.lines() {
        let features = line.split_once('|').map(|(_, features)| features).unwrap_or_default();
        assert!(!features.split(',').any(|feature| feature == "std"), "built with std: {line}");
    }
}

#[test]
fn the_sources_name_no_standard_library() {
    let mut files = vec![];
    collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
    assert!(files.len() > 10, "too few sources were found: {files:?}");
    for file in files {
        let text = fs::read_to_string(&file).expect("a source can be read");
        for (number, line) in text.lines().enumerate() {
            let code = line.trim_start();
            let named = code.contains("std::") || code.contains("extern crate std");
            assert!(code.starts_with("//") || !named, "{}:{}: {line}", file.display(), number + 1);
        }
        if file.ends_with("lib.rs") {
            assert!(text.contains("#![no_std]"), "lib.rs is not no_std");
            assert!(text.contains("#![forbid(unsafe_code)]"), "lib.rs does not forbid unsafe code");
        }
    }
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("the sources can be listed") {
        let path = entry.expect("the sources can be listed").path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

fn host_target() -> String {
    let version = output("rustc", &["--version", "--verbose"]);
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    host.expect("rustc names its host").to_owned()
}

fn cargo() -> Command {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
    cargo
}

fn output(program: &str, args: &[&str]) -> String {
    output_of(Command::new(program).args(args))
}

fn output_of(command: &mut Command) -> String {
    let output = command.output().expect("the command runs");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("the command prints UTF-8")
}

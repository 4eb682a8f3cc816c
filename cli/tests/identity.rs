//! `remora identity generate` as scripts meet it: what is written where, what is said of it, and with which exit code.

use std::{
    fs,
    path::Path,
    process::{Command, Output, Stdio},
};

use serde_json::Value;

#[test]
fn what_is_written_is_said_line_by_line() {
    let home = tempfile::tempdir().unwrap();
    let out = home.path().join("ca");
    let (code, said, err) = generate(&out, &[]);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    let lines: Vec<&str> = said.lines().collect();
    for (line, (file, what)) in lines.iter().zip([
        ("ca.crt", "(trust anchors, until 2"),
        ("crt.pem", "(issuer certificate, until 2"),
        ("key.pem", "(issuer key)"),
    ]) {
        assert!(line.starts_with(&format!("{}  {what}", out.join(file).display())), "{line}");
    }
    assert_eq!(
        (lines.len(), written(&out)),
        (3, ["ca.crt", "crt.pem", "key.pem"].map(str::to_owned).to_vec())
    );
    let pem = |file: &str| fs::read_to_string(out.join(file)).unwrap();
    assert!(pem("ca.crt").starts_with("-----BEGIN CERTIFICATE-----") && pem("crt.pem") != pem("ca.crt"));
    assert!(!said.contains("PRIVATE KEY") && pem("key.pem").contains("PRIVATE KEY"));
}

#[test]
fn scripts_read_json() {
    let home = tempfile::tempdir().unwrap();
    let (code, said, err) = generate(home.path(), &["-o", "json", "--with-root-key", "--lifetime", "48h"]);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    let said: Value = serde_json::from_str(&said).unwrap();
    let files = said["files"].as_array().unwrap();
    let paths: Vec<&str> = files.iter().map(|file| file["path"].as_str().unwrap()).collect();
    let expected = ["ca.crt", "crt.pem", "key.pem", "ca.key"].map(|name| home.path().join(name));
    assert_eq!(paths, expected.each_ref().map(|path| path.to_str().unwrap()));
    for path in paths {
        assert!(Path::new(path).is_file(), "{path} is said to be written");
    }
    let ends = |nth: usize| files[nth]["expires"].as_str();
    // Of one calendar and one zone: they compare as text.
    let (root, issuer) = (ends(0).unwrap(), ends(1).unwrap());
    assert!(issuer < root && issuer.len() == 20 && issuer.ends_with('Z'), "{said}");
    assert_eq!((ends(2), ends(3)), (None, None), "keys do not expire");
}

#[test]
fn what_is_there_is_kept_with_1_and_replaced_when_forced() {
    let home = tempfile::tempdir().unwrap();
    let root = || fs::read(home.path().join("ca.crt")).unwrap();
    assert_eq!(generate(home.path(), &[]).0, Some(0));
    let first = root();
    let (code, said, err) = generate(home.path(), &["-o", "json"]);
    assert_eq!((code, said.as_str()), (Some(1), ""));
    assert!(err.starts_with("remora identity: ") && err.contains("already holds ca.crt"), "{err}");
    assert_eq!(root(), first);
    assert_eq!(generate(home.path(), &["--force"]).0, Some(0));
    assert_ne!(root(), first);
}

#[test]
fn where_nothing_can_be_written_it_ends_with_1_and_the_path() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("file");
    fs::write(&file, "").unwrap();
    let (code, said, err) = generate(&file.join("below"), &[]);
    assert_eq!((code, said.as_str()), (Some(1), ""));
    assert!(err.contains("cannot make the folder") && err.contains("file/below"), "{err}");
}

#[test]
fn a_wrong_command_line_is_64_and_writes_nothing() {
    let home = tempfile::tempdir().unwrap();
    for (wrong, named) in [
        (&["--lifetime", "365"][..], "--lifetime"),
        (&["--lifetime", "soon"], "--lifetime"),
        (&["-o", "yaml"], "--output"),
        (&["--no-such-flag"], "--no-such-flag"),
    ] {
        let (code, said, err) = generate(home.path(), wrong);
        assert_eq!((code, said.as_str()), (Some(64), ""), "{wrong:?}");
        assert!(err.contains(named), "{wrong:?}: {err}");
    }
    assert!(written(home.path()).is_empty());
    for wrong in [&["identity"][..], &["identity", "generate"], &["identity", "invent"]] {
        assert_eq!(remora(wrong).0, Some(64), "{wrong:?}");
    }
    assert_eq!(remora(&["identity", "generate", "--help"]).0, Some(0));
}

#[test]
fn a_reader_that_has_gone_is_no_failure() {
    let home = tempfile::tempdir().unwrap();
    let mut command = command(home.path(), &[]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let ended = child.wait_with_output().unwrap();
    assert_eq!((ended.status.code(), text(&ended.stderr).as_str()), (Some(0), ""));
    assert_eq!(written(home.path()).len(), 3);
}

/// Exit code, standard output and standard error of `generate --out`.
fn generate(out: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    ran(&mut command(out, arguments))
}

fn command(out: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_remora"));
    command.args(["identity", "generate", "--out"]).arg(out).args(arguments);
    command
}

fn remora(arguments: &[&str]) -> (Option<i32>, String, String) {
    ran(Command::new(env!("CARGO_BIN_EXE_remora")).args(arguments))
}

fn ran(command: &mut Command) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } =
        command.output().unwrap_or_else(|error| unreachable!("remora cannot be run: {error}"));
    (status.code(), text(&stdout), text(&stderr))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The names of what a folder holds, in order.
fn written(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

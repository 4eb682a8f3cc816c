//! `remora-injector` as a process: everything that is wrong with its configuration is said at once, with exit code 64.

use std::{fs, process::Command};

#[test]
fn every_mistake_is_said_at_once() {
    let home = tempfile::tempdir().unwrap();
    let config = home.path().join("config.yaml");
    fs::write(&config, "uid: 0\ntrustAnchorsFile: /nonexistent/ca.crt\nlogFormat: xml\n").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_remora-injector"))
        .args(["--addr", "here", "--admin-addr", "there", "--log-level", "a=b=c", "--log-format", "xml"])
        .args(["--tls-cert", "/nonexistent/tls.crt", "--tls-key", "/nonexistent/tls.key"])
        .args(["--manifests", "/nonexistent/manifests", "--config"])
        .arg(&config)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(64));
    let said = String::from_utf8(output.stderr).unwrap();
    for word in [
        "--addr \"here\"",
        "--admin-addr \"there\"",
        "--tls-cert",
        "--manifests",
        "uid is 0",
        "logFormat",
        "--log-level",
        "--log-format",
    ] {
        assert!(said.contains(word), "{word} is missing in {said}");
    }
}

#[test]
fn a_missing_flag_is_a_wrong_command_line_and_help_is_not() {
    let exit = |args: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_remora-injector")).args(args).output().unwrap().status.code()
    };
    assert_eq!(exit(&[]), Some(64));
    assert_eq!(exit(&["--help"]), Some(0));
}

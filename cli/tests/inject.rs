//! `remora inject` as scripts meet it: what goes to which stream, and with which exit code.

use std::{
    fs,
    io::Write,
    process::{Command, Output, Stdio},
};

const POD: &str = "kind: Pod\nmetadata: {name: web}\nspec:\n  containers: [{name: app}]\n";

/// Runs it on `input` and returns exit code, standard output and standard error.
fn remora(args: &[&str], input: &str) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_remora"));
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut run = || -> std::io::Result<Output> {
        let mut child = command.spawn()?;
        // Whoever finds its arguments wrong does not read: that is no failure here.
        let _closed = child.stdin.take().map(|mut stdin| stdin.write_all(input.as_bytes()));
        child.wait_with_output()
    };
    let output = run().unwrap_or_else(|error| unreachable!("remora cannot be run: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn manifests_go_out_and_reports_beside_them() {
    let (code, out, err) = remora(&["inject", "-", "--skip-inbound-ports", "22"], POD);
    assert_eq!((code, err.as_str()), (Some(0), "pod/web injected\n"));
    assert!(
        out.contains("linkerd.io/inject: enabled")
            && out.contains("config.linkerd.io/skip-inbound-ports: \"22\""),
        "{out}"
    );
}

#[test]
fn reports_are_json_if_the_output_is() {
    let (code, out, err) = remora(&["inject", "-o", "json"], "kind: Secret\nmetadata: {name: s}\n");
    assert_eq!(code, Some(0));
    assert_eq!(serde_json::from_str::<serde_json::Value>(&out).unwrap()["kind"], "Secret");
    let report: serde_json::Value = serde_json::from_str(&err).unwrap();
    assert_eq!((&report["kind"], &report["outcome"]), (&"secret".into(), &"skipped".into()));
}

#[test]
fn by_hand_the_whole_proxy_is_written() {
    let home = tempfile::tempdir().unwrap();
    let roots = home.path().join("ca.crt");
    fs::write(&roots, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
    let (code, out, err) =
        remora(&["inject", "--manual", "--ingress", "--trust-anchors", roots.to_str().unwrap()], POD);
    assert_eq!(code, Some(0), "{err}");
    assert!(err.starts_with("pod/web injected\n") && !err.contains("warning"), "{err}");
    for word in [
        "name: linkerd-proxy",
        "name: linkerd-init",
        "LINKERD2_PROXY_INGRESS_MODE",
        "-----BEGIN CERTIFICATE-----",
    ] {
        assert!(out.contains(word), "{word} is missing in {out}");
    }
}

#[test]
fn a_refused_object_leaves_nothing_for_a_pipe_to_apply() {
    let same = "kind: Pod\nmetadata: {name: p}\nspec:\n  securityContext: {runAsUser: 2102}\n  containers: [{name: app}]\n";
    let (code, out, err) = remora(&["inject"], &format!("{POD}---\n{same}"));
    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert!(err.contains("pod/p refused: container \"app\" runs as uid 2102"), "{err}");
}

#[test]
fn what_cannot_be_read_is_named() {
    let (code, out, err) = remora(&["inject"], "kind: [");
    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert!(err.contains("document 1: not YAML"), "{err}");
    let (code, _, err) = remora(&["inject", "/nonexistent.yaml"], "");
    assert_eq!(code, Some(1));
    assert!(err.contains("/nonexistent.yaml"), "{err}");
}

#[test]
fn a_wrong_command_line_is_64_with_every_mistake() {
    let (code, out, err) = remora(
        &["inject", "--manual", "--proxy-uid", "0", "--access-log", "xml", "--skip-inbound-ports", "a"],
        POD,
    );
    assert_eq!((code, out.as_str()), (Some(64), ""));
    for word in ["--manual needs", "proxy-uid", "access-log", "skip-inbound-ports"] {
        assert!(err.contains(word), "{word} is missing in {err}");
    }
    assert_eq!(remora(&["inject", "--no-such-flag"], "").0, Some(64));
    assert_eq!(remora(&["no-such-verb"], "").0, Some(64));
    assert_eq!(remora(&["inject", "--help"], "").0, Some(0));
}

#[test]
fn the_version_can_be_read_by_scripts() {
    let (code, out, _) = remora(&["version", "-o", "json"], "");
    assert_eq!(code, Some(0));
    assert_eq!(serde_json::from_str::<serde_json::Value>(&out).unwrap()["client"], env!("CARGO_PKG_VERSION"));
}

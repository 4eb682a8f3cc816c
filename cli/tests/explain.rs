//! `remora explain` as people and pull requests meet it: what it prints, held by files, and with which exit code.
//! `UPDATE=1 cargo test -p remora-cli --test explain` writes the files, and the examples of `docs/explain.md`, again.
#![expect(clippy::unwrap_used, reason = "clippy does not count the helpers of a test as a test")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

/// Name of the file, arguments besides the directory, exit code.
const CASES: [(&str, &[&str], i32); 9] = [
    ("canary", &["--from", "shop/till", "--to", "web:80", "--path", "/cart", "-H", "x-canary: always"], 0),
    ("share", &["--from", "shop/till", "--to", "web:80", "--path", "/cart/1"], 0),
    ("refused", &["--from", "shop/report", "--to", "web:80", "--path", "/cart", "-H", "x-canary: always"], 3),
    ("redirect", &["--from", "shop/till", "--to", "web:80", "--path", "/old"], 0),
    ("missing", &["--from", "shop/till", "--to", "web:80", "--path", "/beta"], 2),
    ("none", &["--from", "shop/till", "--to", "web:80", "--path", "/"], 3),
    ("bytes", &["--from", "shop/report", "--to", "db.data:5432"], 0),
    ("plaintext", &["--from", "shop/ledger", "--to", "db.data:5432"], 3),
    ("unmeshed", &["--from", "edge/probe", "--to", "web.shop:80", "--unmeshed", "--from-ip", "192.0.2.7"], 3),
];

fn home() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/explain")
}

/// Exit code, standard output, standard error.
fn explain(directory: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_remora"));
    let output = command.arg("explain").arg("--manifests").arg(directory).args(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[track_caller]
fn held(file: &Path, said: &str) {
    if std::env::var_os("UPDATE").is_some() {
        fs::write(file, said).unwrap();
    }
    let expected = fs::read_to_string(file).unwrap_or_default();
    assert_eq!(said, expected, "{}", file.display());
}

#[test]
fn answers_are_those_of_the_files() {
    for (name, arguments, code) in CASES {
        let (exit, said, err) = explain(&home().join("shop"), arguments);
        assert_eq!((exit, err.as_str()), (Some(code), ""), "{name}: {said}");
        held(&home().join(format!("{name}.txt")), &said);
    }
}

#[test]
fn a_pull_request_is_taken_for_what_a_cluster_would_make_of_it() {
    let arguments = ["--from", "shop/client", "--to", "web:80", "--path", "/a/x"];
    let (exit, said, err) = explain(&home().join("request"), &arguments);
    assert_eq!((exit, err.as_str()), (Some(0), ""), "{said}");
    held(&home().join("request.txt"), &said);
}

#[test]
fn scripts_read_json() {
    let (_, arguments, code) = CASES[1];
    let (exit, said, _) = explain(&home().join("shop"), &[arguments, &["-o", "json"]].concat());
    assert_eq!(exit, Some(code));
    held(&home().join("share.json"), &said);
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["verdict"], "admitted");
}

/// Every fenced block of the page that begins with a command is that command and what it prints.
#[test]
fn the_page_shows_what_is_printed() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/explain.md");
    let text = fs::read_to_string(&page).unwrap();
    let mut shown = 0;
    let mut rewritten = String::new();
    for (at, part) in text.split("```").enumerate() {
        if at > 0 {
            rewritten.push_str("```");
        }
        let command = part
            .strip_prefix("text\n$ remora explain --manifests shop/ ")
            .and_then(|rest| rest.lines().next());
        let Some(command) = command.filter(|_| at % 2 == 1) else {
            rewritten.push_str(part);
            continue;
        };
        shown += 1;
        let arguments: Vec<&str> = command
            .split('\'')
            .enumerate()
            .flat_map(|(at, part)| if at % 2 == 1 { vec![part] } else { part.split_whitespace().collect() })
            .collect();
        let (_, said, err) = explain(&home().join("shop"), &arguments);
        assert_eq!(err, "", "{command}");
        rewritten.extend(["text\n$ remora explain --manifests shop/ ", command, "\n", &said]);
    }
    assert!(shown >= 2, "the page has no examples");
    held(&page, &rewritten);
}

#[test]
fn an_invalid_manifest_exits_with_2_whatever_the_answer() {
    let directory = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(home().join("shop")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), directory.path().join(entry.file_name())).unwrap();
    }
    for (text, why) in [
        ("{apiVersion: v1, kind: Service, metadata: {name: [1]}}", "document 1: "),
        (
            "{apiVersion: policy.linkerd.io/v1alpha1, kind: Server, metadata: {name: web}}",
            "document 1: Server",
        ),
        (
            "{apiVersion: policy.linkerd.io/v1alpha1, kind: EgressNetwork, metadata: {name: all}}",
            "policy.linkerd.io/v1alpha1 EgressNetwork",
        ),
    ] {
        fs::write(directory.path().join("wrong.yaml"), text).unwrap();
        let (exit, said, _) = explain(directory.path(), CASES[0].1);
        assert_eq!(exit, Some(2), "{said}");
        assert!(said.contains(&format!("invalid   wrong.yaml: {why}")), "{said}");
    }
}

#[test]
fn what_cannot_be_asked_exits_with_64_and_a_directory_that_is_not_there_with_1() {
    let shop = home().join("shop");
    for (arguments, why) in [
        (&["--from", "till", "--to", "web:80"][..], "not of the form <namespace>/<ServiceAccount>"),
        (&["--from", "shop/till", "--to", "web"], "--to web: without a port"),
        (&["--from", "shop/till", "--to", "web:80", "--path", "cart"], "--path cart: "),
        (&["--from", "shop/till", "--to", "web:80", "-H", "x"], "not of the form <name>: <value>"),
        (&["--from", "shop/till", "--to", "web:80", "--tls", "a", "--speaks", "grpc"], "cannot be used with"),
        (&["--from", "shop/till", "--to", "web:80", "--cluster-networks", "x"], "--cluster-networks"),
        (
            &["--from", "shop/till", "--to", "web:80", "--default-outbound-policy", "deny"],
            "not one of all-unauth",
        ),
    ] {
        let (exit, said, err) = explain(&shop, arguments);
        assert_eq!((exit, said.as_str()), (Some(64), ""), "{arguments:?}");
        assert!(err.contains(why), "{arguments:?}: {err}");
    }
    assert_eq!(explain(Path::new("/nowhere/at/all"), CASES[0].1).0, Some(1));
}

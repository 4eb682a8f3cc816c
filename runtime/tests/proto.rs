//! `src/proto.rs` is what `proto/` says. `UPDATE=1 cargo test -p remora-runtime --test proto` writes it anew.
#![expect(clippy::expect_used, reason = "a test says what it expects")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

const HEADER: &str = "//! `remora.proxy.v1`, generated from `proto/remora/proxy/v1/` by `tests/proto.rs`. What messages mean is said there.\n\n";

#[test]
fn the_code_is_what_the_protos_say() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let said = HEADER.to_owned() + &generated(here);
    let code = here.join("src/proto.rs");
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&code, &said).expect("src is there");
    }
    let committed = fs::read_to_string(&code).expect("it is committed");
    assert!(said == committed, "src/proto.rs is old: UPDATE=1 cargo test -p remora-runtime --test proto");
}

fn generated(here: &Path) -> String {
    let protos = ["remora/proxy/v1/outbound.proto"];
    let includes = [here.join("proto"), linkerds_protos(here)];
    let files = protox::compile(protos, includes).expect("the protos are well-formed");
    let out = tempfile::tempdir().expect("there is room");
    let mut builder = tonic_prost_build::configure().out_dir(out.path());
    // Linkerd's messages are those of its crate.
    for package in ["destination", "http_route", "outbound"] {
        builder = builder
            .extern_path(format!(".io.linkerd.proxy.{package}"), format!("::linkerd2_proxy_api::{package}"));
    }
    builder.compile_fds(files).expect("code is generated");
    let code = out.path().join("remora.proxy.v1.rs");
    let mut rustfmt = Command::new("rustfmt");
    rustfmt.args(["--edition", "2024", "--config-path"]).arg(here.with_file_name("rustfmt.toml")).arg(&code);
    assert!(rustfmt.status().expect("rustfmt is installed").success());
    fs::read_to_string(code).expect("of this package")
}

/// The crate has the protos that its code is generated from.
fn linkerds_protos(here: &Path) -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut metadata = Command::new(cargo);
    metadata.args(["metadata", "--format-version", "1", "--locked"]).current_dir(here);
    let output = metadata.output().expect("cargo runs");
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("cargo says JSON");
    let packages = metadata.get("packages").and_then(serde_json::Value::as_array).expect("packages");
    let manifest = packages
        .iter()
        .find(|package| package.get("name").is_some_and(|name| name == "linkerd2-proxy-api"))
        .and_then(|package| package.get("manifest_path")?.as_str())
        .expect("the crate is a dependency");
    Path::new(manifest).with_file_name("proto")
}

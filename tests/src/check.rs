//! Whether this machine can run nodes, and what to install where it cannot.

use anyhow::{Result, bail};

use crate::image::in_path;

/// Every program that the harness itself runs, with the Debian package that has it.
const PROGRAMS: [(&str, &str); 10] = [
    ("unshare", "util-linux"),
    ("nsenter", "util-linux"),
    ("setpriv", "util-linux"),
    ("env", "coreutils"),
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("iptables-nft-restore", "iptables"),
    ("ip6tables-nft-restore", "iptables"),
    ("setcap", "libcap2-bin"),
    ("tcpdump", "tcpdump"),
];

/// # Errors
/// Everything that is missing, at once.
pub fn machine() -> Result<()> {
    let mut missing = Vec::new();
    if !rustix::process::geteuid().is_root() {
        missing.push("root (network and mount namespaces need it): run with sudo".to_owned());
    }
    if !std::path::Path::new("/proc/self/ns/net").exists() {
        missing.push("network namespaces: this kernel has none (CONFIG_NET_NS)".to_owned());
    }
    let file_systems = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if !file_systems.lines().any(|line| line.ends_with("\toverlay")) && in_path("modprobe").is_none() {
        missing.push("overlayfs: this kernel has none (CONFIG_OVERLAY_FS)".to_owned());
    }
    for (program, package) in PROGRAMS {
        if in_path(program).is_none() {
            missing.push(format!("the program {program}: apt-get install {package}"));
        }
    }
    if let Err(refused) = may_make_namespaces() {
        missing.push(format!(
            "the right to make namespaces (CAP_SYS_ADMIN; root in an ordinary container does not have it: start that \
             with --privileged): {refused}"
        ));
    }
    if missing.is_empty() {
        return Ok(());
    }
    bail!("this machine cannot run the pod harness; it lacks:\n  {}", missing.join("\n  "))
}

/// Tries what every node begins with (`sandbox.rs`). That there is no root or no program is said by its own line.
fn may_make_namespaces() -> Result<(), String> {
    let Some(unshare) = in_path("unshare").filter(|_| rustix::process::geteuid().is_root()) else {
        return Ok(());
    };
    let tried =
        std::process::Command::new(unshare).args(["--mount", "--net", "--pid", "--fork", "true"]).output();
    match tried {
        Ok(tried) if tried.status.success() => Ok(()),
        Ok(tried) => Err(String::from_utf8_lossy(&tried.stderr).trim().to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Whether a test that needs the harness may run. Where it cannot it says why; with `CI=true` that is a failure.
///
/// # Panics
/// With `CI=true` on a machine that cannot run nodes: a test that silently does not run proves nothing.
#[expect(clippy::panic, clippy::print_stderr, reason = "this is how a test says that it cannot run")]
pub fn can_run() -> bool {
    match machine() {
        Ok(()) => true,
        Err(error) if std::env::var("CI").is_ok_and(|ci| ci == "true") => panic!("{error:#}"),
        Err(error) => {
            eprintln!("not run: {error:#}");
            false
        }
    }
}

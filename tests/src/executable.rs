//! Files that are run once they are written: programs and scripts that a test or an image is given.
//!
//! Another process writes them. A thread that starts a program forks, and until its child calls `execve` that has open
//! what this process has open for writing just then; to run such a file fails meanwhile ("Text file busy").

use std::fs::File;
use std::io::{Seek as _, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

/// `from`, which need not be executable itself, as `to`, which everyone may run. What was at `to` is replaced.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    let file = File::open(from).with_context(|| format!("reading {}", from.display()))?;
    install(file, to)
}

/// A script with this text.
pub fn script(to: &Path, text: &str) -> Result<()> {
    let mut file = tempfile::tempfile()?;
    file.write_all(text.as_bytes())?;
    file.rewind()?;
    install(file, to)
}

/// install(1) of coreutils, which removes what was there.
fn install(from: File, to: &Path) -> Result<()> {
    let mut command = Command::new("install");
    let output = command.args(["-m", "755", "/dev/stdin"]).arg(to).stdin(Stdio::from(from)).output();
    let output = output.context("running install (package coreutils)")?;
    if !output.status.success() {
        bail!("writing {}: {}", to.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

//! `remora version`: which release this is.

use std::process::ExitCode;

use clap::Args;

use crate::{Format, print};

/// Print this program's version.
#[derive(Debug, Args)]
pub(crate) struct Version {
    /// How it is printed.
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

pub(crate) fn run(version: &Version) -> ExitCode {
    let number = env!("CARGO_PKG_VERSION");
    print(&match version.output {
        Format::Text => format!("remora {number}\n"),
        Format::Json => format!("{}\n", serde_json::json!({ "client": number })),
    })
}

//! `make soak`: runs a mesh under mixed traffic for some minutes, with every certificate renewed each half minute, and
//! says what failed, how memory went and which descriptors stayed. Leaves nothing behind.
//!
//! Exit codes: 0 when nothing failed and nothing grew, 1 otherwise, 69 when this machine cannot run it.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser;
use remora_tests::{check, soak};

/// Mixed traffic with certificate rotation.
#[derive(Parser)]
#[command(name = "remora-soak", version)]
struct Args {
    /// How long.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=240))]
    minutes: u64,
}

/// EX_UNAVAILABLE of sysexits.h.
const UNAVAILABLE: u8 = 69;

fn main() -> ExitCode {
    let args = Args::parse();
    if let Err(error) = check::machine() {
        tell(&format!("{error:#}"));
        return ExitCode::from(UNAVAILABLE);
    }
    match soak::run(args.minutes, tell) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            tell("it did not hold");
            ExitCode::FAILURE
        }
        Err(error) => {
            tell(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Whoever has stopped to listen does not end the soak.
fn tell(line: &str) {
    let mut out = std::io::stdout();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

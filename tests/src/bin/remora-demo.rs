//! `make demo`: shows the mesh at work on this machine, with evidence, and leaves nothing behind.
//!
//! Exit codes: 0 when every claim held, 1 when one did not, 69 when this machine cannot run it, 128 and the number of
//! the signal that ended it. The story itself is in the library, `demo.rs`.

use std::process::ExitCode;

use clap::Parser;
use remora_tests::{check, demo};

/// Shows the mesh at work in this machine's namespaces, in about a minute, and removes everything afterwards.
#[derive(Parser)]
#[command(name = "remora-demo", version)]
struct Args {
    /// Leave it running after the story, until Ctrl-C. `KEEP=1` in the environment does the same.
    #[arg(long)]
    keep: bool,
    /// Tell the story in this process, which another one guards.
    #[arg(long, hide = true)]
    story: bool,
}

/// EX_UNAVAILABLE of sysexits.h.
const UNAVAILABLE: u8 = 69;

fn main() -> ExitCode {
    let args = Args::parse();
    let keep = args.keep || std::env::var("KEEP").is_ok_and(|keep| !matches!(keep.as_str(), "" | "0"));
    if let Err(error) = check::machine() {
        complain(&error);
        return ExitCode::from(UNAVAILABLE);
    }
    let ended = if args.story { story(keep) } else { guarded(keep) };
    ended.unwrap_or_else(|error| {
        complain(&error);
        ExitCode::FAILURE
    })
}

fn guarded(keep: bool) -> anyhow::Result<ExitCode> {
    let args: &[&str] = if keep { &["--story", "--keep"] } else { &["--story"] };
    demo::guard::run(args).map(ExitCode::from)
}

fn story(keep: bool) -> anyhow::Result<ExitCode> {
    demo::guard::die_with_parent()?;
    Ok(if demo::tell(keep)? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[expect(clippy::print_stderr, reason = "the last words of a program that a person started")]
fn complain(error: &anyhow::Error) {
    eprintln!("remora-demo: {error:#}");
}

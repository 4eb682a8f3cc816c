//! The command line: one file per verb. This one only knows their names and what exit codes mean.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::{Parser, Subcommand, ValueEnum};

mod check;
mod explain;
mod identity;
mod inject;
mod manifests;
mod version;

/// EX_USAGE of sysexits: the command line is wrong.
const USAGE: u8 = 64;

/// Remora: a transparent mTLS sidecar mesh for Kubernetes.
///
/// Start with `remora inject --help`.
#[derive(Debug, Parser)]
#[command(
    name = "remora",
    version,
    after_help = "Exit codes: 0 done; 1 it could not be done (the reason is on standard error); 64 the command line is wrong. \
                  A verb's own help names those that it has besides."
)]
struct Remora {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Check(check::Check),
    Explain(Box<explain::Explain>),
    Inject(Box<inject::Inject>),
    Identity(identity::Args),
    Version(version::Version),
}

/// How a verb prints what scripts may read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people.
    Text,
    /// For scripts.
    Json,
}

fn main() -> ExitCode {
    match Remora::try_parse() {
        Ok(Remora { verb: Verb::Check(check) }) => check::run(&check),
        Ok(Remora { verb: Verb::Explain(explain) }) => explain::run(&explain),
        Ok(Remora { verb: Verb::Inject(inject) }) => inject::run(&inject),
        Ok(Remora { verb: Verb::Identity(args) }) => identity::run(args).unwrap_or_else(|error| {
            complain(&format!("remora identity: {error:#}"));
            ExitCode::FAILURE
        }),
        Ok(Remora { verb: Verb::Version(version) }) => version::run(&version),
        Err(error) => {
            // Help and version come this way too, and are no mistakes.
            let code = if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
            let _nobody_to_tell = error.print();
            code
        }
    }
}

/// Writes to standard output. Whoever reads it may have gone (`remora … | head`): then there is nobody to fail for.
fn print(text: &str) -> ExitCode {
    print_to(&mut io::stdout(), text)
}

/// The same of text with colours: they stay on a terminal only, and not where `NO_COLOR` is set.
fn print_styled(text: &str) -> ExitCode {
    print_to(&mut anstream::stdout(), text)
}

fn print_to(out: &mut impl Write, text: &str) -> ExitCode {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("cannot write: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Writes a line to standard error.
fn complain(text: &str) {
    let _nobody_to_tell = writeln!(io::stderr(), "{text}");
}

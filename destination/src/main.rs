//! Reads the command line, runs, and says how it ended: 0 after a drain, 64 for mistakes in the flags, 1 otherwise.

use remora_destination::{
    config::{Config, NoConfig},
    process::Process,
};
use remora_runtime::{env::EX_USAGE, log, tasks::shutdown_signal};
use std::{io::Write as _, process::ExitCode};

fn main() -> ExitCode {
    let config = match Config::read(std::env::args_os()) {
        Ok(config) => config,
        Err(NoConfig::Usage(usage)) => {
            // Help and version are no mistakes; where nobody reads them nothing is lost.
            let _ = usage.print();
            return if usage.use_stderr() { ExitCode::from(EX_USAGE) } else { ExitCode::SUCCESS };
        }
        Err(NoConfig::Wrong(mistakes)) => return complain(&mistakes, EX_USAGE),
    };
    match run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(&format!("{error:#}"), 1),
    }
}

#[tokio::main(flavor = "current_thread")]
async fn run(config: Config) -> anyhow::Result<()> {
    let log = log::init(&config.log_level, config.log_format)?;
    let process = Process::bind(config).await?;
    let addresses = process.addresses()?;
    tracing::info!(destination = %addresses.destination, policy = %addresses.policy, admin = %addresses.admin, "listening");
    let drain = process.drain.clone();
    let running = process.run(log);
    tokio::pin!(running);
    tokio::select! {
        ended = &mut running => return ended,
        signal = shutdown_signal() => {
            tracing::info!(signal = signal?, "draining");
            drain.signal();
        }
    }
    running.await
}

fn complain(reason: &dyn std::fmt::Display, code: u8) -> ExitCode {
    // Nobody to tell is no reason to fail differently.
    let _ = writeln!(std::io::stderr(), "remora-destination: {reason}");
    ExitCode::from(code)
}

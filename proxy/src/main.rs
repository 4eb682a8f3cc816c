//! The proxy's process: reads the environment, runs, and says by its exit code how it ended.

use remora_proxy::{config::Config, run};
use remora_runtime::{env::Env, log};
use std::process::ExitCode;

// Memory goes back to the system after a burst, on every architecture, also when nothing is left to do: by a thread of
// the allocator's own. How soon is in .cargo/config.toml.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[expect(
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "there is no log before the configuration is read"
)]
fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        None => {}
        Some("--help" | "-h") => {
            print!("{}", remora_proxy::config::help());
            return ExitCode::SUCCESS;
        }
        Some("--version" | "-V") => {
            println!("remora-proxy {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        Some(other) => {
            eprintln!(
                "remora-proxy: unexpected argument {other}; it is configured by its environment, see --help"
            );
            return ExitCode::from(remora_runtime::env::EX_USAGE);
        }
    }
    let env = Env::from_process();
    let shown = env.shown();
    let config = match Config::from_env(env) {
        Ok(config) => config,
        Err(mistakes) => {
            eprintln!("remora-proxy: the environment has mistakes:\n{mistakes}");
            return ExitCode::from(remora_runtime::env::EX_USAGE);
        }
    };
    let handle = match log::init(&config.log, config.log_format) {
        Ok(handle) => handle,
        Err(error) => {
            eprintln!("remora-proxy: {error}");
            return ExitCode::from(remora_runtime::env::EX_USAGE);
        }
    };
    match run::run(config, shown, handle) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

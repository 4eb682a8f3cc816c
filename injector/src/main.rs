//! The webhook's process; see `process.rs`.

use std::process::ExitCode;

fn main() -> ExitCode {
    remora_injector::process::run()
}

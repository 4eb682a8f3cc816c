//! The entry of the program that waits for the proxy. Everything else is `remora_injector::ready`.

use std::process::ExitCode;

fn main() -> ExitCode {
    remora_injector::ready::run(std::env::args_os())
}

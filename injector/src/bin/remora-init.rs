//! The init container's entry: arguments in, exit code out. Everything else is `remora_injector::init`.

use std::process::ExitCode;

fn main() -> ExitCode {
    remora_injector::init::run(std::env::args().skip(1).collect()).into()
}

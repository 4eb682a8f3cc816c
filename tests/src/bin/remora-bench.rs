//! `make bench` and `make bench-instructions`: measure Remora on this machine, beside Envoy and by counting instructions,
//! and leave nothing behind but figures.
//!
//! Exit codes: 0 when it was measured, 1 when it could not be (with `--floors strict` also when a floor was missed), 3
//! when a row is void, 64 for wrong arguments, 69 when this machine cannot run it, 128 and the number of the signal that
//! ended it. The measuring itself is in the library, `bench.rs`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use remora_tests::bench::machine::Cores;
use remora_tests::bench::verdict::Lane;
use remora_tests::bench::{Outcome, Plan, instructions, loads, run};
use remora_tests::{check, demo};

/// Measures what a request costs through two proxies: Remora's, Envoy's, and none.
#[derive(Parser)]
#[command(name = "remora-bench", version, args_override_self = true)]
struct Args {
    /// What is measured.
    #[arg(value_enum, default_value_t = What::Time)]
    what: What,
    /// Which loads: names, or how names begin, with commas between. Empty: all.
    #[arg(long, default_value = "", value_parser = loads_of)]
    loads: Loads,
    /// Which lanes, for whoever looks at one with another program; rows without all of them are void.
    #[arg(long, value_delimiter = ',', default_value = "direct,remora,envoy,again", value_parser = lane)]
    lanes: Vec<Lane>,
    /// How often each lane is measured under each load. With fewer than six a row is void.
    #[arg(long, default_value = "6", value_parser = clap::value_parser!(u16).range(1..))]
    blocks: u16,
    /// For how long, each time.
    #[arg(long, default_value = "4", value_parser = seconds)]
    seconds: Duration,
    /// The core of both proxies, and that of the load and nginx.
    #[arg(long, default_value = "0,1")]
    cores: Cores,
    /// Where everything that was counted goes, as JSON.
    #[arg(long, default_value = "bench.json")]
    out: PathBuf,
    /// Whether a missed floor is a failure.
    #[arg(long, value_enum, default_value_t = Floors::Told)]
    floors: Floors,
    /// Measure in this process, which another one guards.
    #[arg(long, hide = true)]
    guarded: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// CPU, latency, throughput, memory: beside Envoy.
    Time,
    /// Instructions and system calls of Remora's proxies for a request. Loads with 100 MB are left out.
    Instructions,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Floors {
    Told,
    Strict,
}

#[derive(Clone)]
struct Loads(Vec<&'static str>);

/// EX_USAGE and EX_UNAVAILABLE of sysexits.h.
const USAGE: u8 = 64;
const UNAVAILABLE: u8 = 69;
/// A row that means nothing.
const VOID: u8 = 3;

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            // Nobody may be listening any more.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    if let Err(error) = check::machine() {
        complain(&error);
        return ExitCode::from(UNAVAILABLE);
    }
    let ended = if args.guarded { measure(&args) } else { guard() };
    ended.unwrap_or_else(|error| {
        complain(&error);
        ExitCode::FAILURE
    })
}

fn guard() -> anyhow::Result<ExitCode> {
    let own: Vec<String> = std::env::args().skip(1).chain(["--guarded".to_owned()]).collect();
    let own: Vec<&str> = own.iter().map(String::as_str).collect();
    demo::guard::run(&own).map(ExitCode::from)
}

fn measure(args: &Args) -> anyhow::Result<ExitCode> {
    demo::guard::die_with_parent()?;
    if args.what == What::Instructions {
        instructions::run(&args.loads.0, args.cores, &args.out)?;
        return Ok(ExitCode::SUCCESS);
    }
    let plan = Plan {
        loads: args.loads.0.clone(),
        lanes: args.lanes.clone(),
        blocks: args.blocks.into(),
        time: args.seconds,
        cores: args.cores,
        out: args.out.clone(),
    };
    let Outcome { void, missed } = run(&plan)?;
    Ok(match (void, missed) {
        (0, 0) => ExitCode::SUCCESS,
        (0, _) if args.floors == Floors::Strict => ExitCode::FAILURE,
        (0, _) => ExitCode::SUCCESS,
        _ => ExitCode::from(VOID),
    })
}

fn loads_of(list: &str) -> Result<Loads, String> {
    loads::chosen(list).map(Loads)
}

fn lane(name: &str) -> Result<Lane, String> {
    Lane::named(name)
        .ok_or_else(|| format!("there is no lane {name:?}; there are: direct, remora, envoy, again"))
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds| (0.1..=600.0).contains(seconds));
    seconds
        .map(Duration::from_secs_f64)
        .ok_or_else(|| "a number of seconds from 0.1 to 600 is needed".to_owned())
}

#[expect(clippy::print_stderr, reason = "the last words of a program that a person started")]
fn complain(error: &anyhow::Error) {
    eprintln!("remora-bench: {error:#}");
}

//! `make bench-instructions`: what a request costs in counts, which do not depend on the machine and hardly on who else
//! uses it: the instructions that each proxy executes itself (callgrind), and the system calls that it makes (strace).
//!
//! Everything is counted twice, for N requests and for 2 N: what the second count has more is what N requests cost,
//! without start, certificate and connections.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;
use serde_json::json;

use super::generate::Generator;
use super::loads::{Load, TIMED, Traffic};
use super::machine::{self, Cores};
use super::progress::{Progress, write};
use super::routes;
use super::stage::{Pair, Stage};
use super::syscalls::{Calls, Tracer, per_request};
use super::verdict::Lane;
use crate::node::PodRef;
use crate::{Options, image};

/// Requests of the shorter count. Enough that the start does not show: what the random numbers' source does there (it
/// measures the processor's jitter) differs by millions of instructions from life to life.
const REQUESTS: u64 = 10_000;
/// How long a count may take: under callgrind programs are some fifty times slower.
const LIMIT: Duration = Duration::from_mins(5);
const LOOK: Duration = Duration::from_millis(20);
const PROXY: &str = "linkerd-proxy";
/// The client's proxy, the server's.
const SIDES: [&str; 2] = ["client", "server"];

/// For a request: of the client's proxy, of the server's.
struct Counted {
    load: &'static str,
    instructions: [f64; 2],
    /// By name, the most frequent first.
    calls: [Vec<(String, f64)>; 2],
}

/// Counts under each load but those of 100 MB, prints a table, and writes JSON and callgrind's own files.
///
/// # Errors
/// Where the stage cannot be set, or a request failed.
pub fn run(loads: &[&'static str], cores: Cores, out: &Path) -> Result<()> {
    let progress = Progress::default();
    machine::pin_self(cores.load)?;
    machine::raise_open_files();
    progress.at("starting the mesh");
    let mut stage = Stage::set(Options::default(), cores)?;
    progress.at("starting proxies, one pair under callgrind");
    stage.start(Lane::Remora)?;
    stage.start(Lane::Counted)?;
    progress.line("every proxy runs");
    let files = out.with_extension("callgrind");
    fs::create_dir_all(&files).with_context(|| format!("making {}", files.display()))?;
    let mut all = Vec::new();
    for load in TIMED.iter().filter(|load| loads.contains(&load.name) && load.traffic != Traffic::Bulk) {
        let load = &comparable(*load);
        let what = || format!("load {}", load.name);
        progress.at(&format!("{}: system calls", load.name));
        let calls = calls(&stage, load, &files).with_context(what)?;
        progress.at(&format!("{}: instructions", load.name));
        let counted = Counted {
            load: load.name,
            instructions: instructions(&stage, load, &files).with_context(what)?,
            calls,
        };
        progress.line(&format!("{:<12} counted", load.name));
        all.push(counted);
    }
    drop(stage);
    write(&format!("\n{}{}", table(&all), with_routes(&all)));
    write(&format!("For callgrind_annotate, of the longer life of each proxy: {}\n", files.display()));
    keep(&all, out)
}

/// Makes exactly so many requests.
fn ask(stage: &Stage, lane: Lane, load: &Load, requests: u64) -> Result<()> {
    let pair = stage.pair(lane)?;
    let target = pair.target(load.port, load.path, load.body);
    let generator = Generator::limited(&pair.client, target, *load, requests)?;
    let deadline = Instant::now() + LIMIT;
    loop {
        let counts = generator.counts();
        if counts.failed > 0 {
            bail!("a request failed: {:?}\n{}", generator.finish()?, stage.describe());
        }
        if counts.requests >= requests {
            return generator.finish().map(drop);
        }
        if Instant::now() > deadline {
            bail!("{} of {requests} requests were answered within {LIMIT:?}", counts.requests);
        }
        std::thread::sleep(LOOK);
    }
}

fn calls(stage: &Stage, load: &Load, files: &Path) -> Result<[Vec<(String, f64)>; 2]> {
    stage.answers(Lane::Remora, &[*load])?;
    let pair = stage.pair(Lane::Remora)?;
    let count = |requests: u64| -> Result<Vec<Calls>> {
        let out = |side: &str| files.join(format!("{}-{side}.strace", load.name));
        let tracers: Vec<Tracer> = pair
            .proxies()?
            .into_iter()
            .zip(SIDES)
            .map(|(proxy, side)| Tracer::attach(proxy, &out(side)))
            .collect::<Result<_>>()?;
        ask(stage, Lane::Remora, load, requests)?;
        tracers.into_iter().map(Tracer::detach).collect()
    };
    let (less, more) = (count(REQUESTS)?, count(2 * REQUESTS)?);
    let nothing = Calls::new();
    Ok(std::array::from_fn(|nth| {
        let of = |lives: &[Calls]| lives.get(nth).unwrap_or(&nothing).clone();
        per_request(&of(&less), &of(&more), REQUESTS)
    }))
}

fn instructions(stage: &Stage, load: &Load, files: &Path) -> Result<[f64; 2]> {
    let (less, more) = (life(stage, load, REQUESTS, files)?, life(stage, load, 2 * REQUESTS, files)?);
    let of = |life: &[u64; 2], nth: usize| life.get(nth).copied().unwrap_or(0);
    Ok(std::array::from_fn(|nth| of(&more, nth).saturating_sub(of(&less, nth)) as f64 / REQUESTS as f64))
}

/// One life of both proxies: the instructions that each executed. Afterwards the next one has begun.
fn life(stage: &Stage, load: &Load, requests: u64, files: &Path) -> Result<[u64; 2]> {
    stage.ready()?;
    stage.answers(Lane::Counted, &[*load])?;
    ask(stage, Lane::Counted, load, requests)?;
    let Pair { client, server, .. } = &stage.pair(Lane::Counted)?;
    let [of_client, of_server] = SIDES.map(|side| files.join(format!("{}-{side}.callgrind", load.name)));
    Ok([end(stage, client, &of_client)?, end(stage, server, &of_server)?])
}

/// Ends a proxy, waits for its successor, and reads what callgrind wrote meanwhile.
fn end(stage: &Stage, pod: &PodRef<'_>, keep: &Path) -> Result<u64> {
    let before = pod.restarts(PROXY);
    pod.signal(PROXY, Signal::TERM)?;
    stage.wait_until("a proxy under callgrind to start again", LIMIT, || {
        pod.restarts(PROXY) > before && pod.pid(PROXY).is_some()
    })?;
    let root = PathBuf::from(format!("/proc/{}/root", pod.pid(PROXY).context("the proxy does not run")?));
    let directory = root.join(image::CALLGRIND_OUT.trim_start_matches('/'));
    let written = written(&directory)
        .with_context(|| format!("what callgrind left in {}\n{}", directory.display(), stage.describe()))?;
    fs::copy(&written, keep).with_context(|| format!("copying {}", written.display()))?;
    fs::remove_file(&written)?;
    let text = fs::read_to_string(keep)?;
    total(&text).with_context(|| format!("{} has no total", keep.display()))
}

/// The file of the life that ended: that of the one which has begun is still empty.
fn written(directory: &Path) -> Result<PathBuf> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let is_one = entry.file_name().to_str().is_some_and(|name| name.starts_with(image::CALLGRIND_FILE));
        if is_one && entry.metadata()?.len() > 0 {
            return Ok(entry.path());
        }
    }
    bail!("no file of callgrind's has anything in it")
}

/// The instructions of a whole run, as callgrind's format has them.
fn total(text: &str) -> Option<u64> {
    let told = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
    told("totals:").or_else(|| told("summary:"))?.split_whitespace().next()?.parse().ok()
}

fn table(all: &[Counted]) -> String {
    let mut text = format!(
        "{:<12} {:>8} {:>14} {:>14}  {}\n",
        "for a request", "proxy", "instructions", "system calls", "of these"
    );
    for Counted { load, instructions, calls } in all {
        for ((side, instructions), calls) in SIDES.iter().zip(instructions).zip(calls) {
            let sum: f64 = calls.iter().map(|(_, rate)| rate).sum();
            let told: Vec<String> = calls.iter().map(|(name, rate)| format!("{name} {rate:.2}")).collect();
            let _ =
                writeln!(text, "{load:<12} {side:>9} {instructions:>14.0} {sum:>14.2}  {}", told.join(", "));
        }
    }
    text
}

/// A load, and the same with routes and authorisations.
const WITH_ROUTES: [(&str, &str); 2] = [("http1-64", "http1-routes"), ("http2", "http2-routes")];
/// What the second may have of the first's instructions.
const ROUTES_FLOOR: f64 = 1.08;

/// A load that is compared with one with routes asks for the same path: it has to be read, and written, in both.
fn comparable(load: Load) -> Load {
    let is_compared = WITH_ROUTES.iter().any(|(without, _)| *without == load.name);
    if is_compared { Load { path: routes::PATH, ..load } } else { load }
}

/// What routes and authorisations cost, where both of a pair of loads were counted.
fn with_routes(all: &[Counted]) -> String {
    let of = |load: &str| all.iter().find(|counted| counted.load == load).map(|counted| counted.instructions);
    let mut text = String::new();
    for (without, with) in WITH_ROUTES {
        let (Some(less), Some(more)) = (of(without), of(with)) else { continue };
        let ratio = more.iter().sum::<f64>() / less.iter().sum::<f64>();
        let met = if ratio <= ROUTES_FLOOR { "met" } else { "MISSED" };
        let _ = writeln!(
            text,
            "{with} by {without}: {ratio:.3} of the instructions of both proxies, {ROUTES_FLOOR} {met}"
        );
    }
    text
}

fn keep(all: &[Counted], out: &Path) -> Result<()> {
    let of = |counted: &Counted, nth: usize| {
        let calls = counted.calls.get(nth).cloned().unwrap_or_default();
        let calls: serde_json::Map<String, serde_json::Value> =
            calls.into_iter().map(|(name, rate)| (name, rate.into())).collect();
        json!({"instructions": counted.instructions.get(nth), "system calls": calls})
    };
    let loads: serde_json::Map<String, serde_json::Value> = all
        .iter()
        .map(|counted| (counted.load.to_owned(), json!({"client": of(counted, 0), "server": of(counted, 1)})))
        .collect();
    let text = serde_json::to_string_pretty(&json!({"for a request": loads}))?;
    fs::write(out, text).with_context(|| format!("writing {}", out.display()))?;
    write(&format!("Everything that was counted: {}\n", out.display()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::total;

    #[test]
    fn the_total_is_found_under_either_of_its_names() {
        for (text, expected) in [
            ("version: 1\nevents: Ir\nsummary: 1234\nfn=(1) main\n", Some(1234)),
            ("events: Ir\nfn=(1) main\n1 5\ntotals: 5\n", Some(5)),
            ("events: Ir\n", None),
        ] {
            assert_eq!(total(text), expected, "{text}");
        }
    }
}

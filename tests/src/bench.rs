//! `make bench`: what a request costs through two proxies, Remora's and Envoy's side by side in one run, and what their
//! memory is. `docs/bench.md` says how to read it.
//!
//! In reading order: what is asked (`loads`, `routes`), what follows from what was counted (`verdict`, `stats`, `report`, pure),
//! where it happens (`stage`), who asks (`generate`), what is looked at (`machine`), how a load is measured (`timed`,
//! `change`, `memory`), and what is counted instead (`instructions`, `syscalls`).

pub mod loads;
pub mod report;
pub mod routes;
pub mod stats;
pub mod verdict;

pub mod change;
pub mod generate;
pub mod instructions;
pub mod machine;
pub mod memory;
pub mod progress;
pub mod stage;
pub mod syscalls;
pub mod timed;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::Options;
use loads::{CHANGE, HOLDINGS, ROWS, TIMED};
use machine::Cores;
use progress::{Progress, write};
use stage::Stage;
use verdict::{Block, LEAST_BLOCKS, Lane, Verdict, judge};

/// What is to be measured.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Names of loads.
    pub loads: Vec<&'static str>,
    /// All of them, unless somebody wants to look at one.
    pub lanes: Vec<Lane>,
    pub blocks: usize,
    /// How long each lane is measured in each block.
    pub time: Duration,
    pub cores: Cores,
    /// Where the JSON goes.
    pub out: PathBuf,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Rows that mean nothing.
    pub void: usize,
    /// Rows whose floor is not reached.
    pub missed: usize,
}

/// Measures, prints the table, and writes everything that was counted.
///
/// # Errors
/// Where the stage cannot be set: what is missing, or what each process said last.
pub fn run(plan: &Plan) -> Result<Outcome> {
    let progress = Progress::default();
    machine::pin_self(plan.cores.load)?;
    let files = machine::raise_open_files();
    write(&format!(
        "make bench: {} loads, {} blocks of {} s a lane; proxies on core {}, load and nginx on core {}\n",
        plan.loads.len(),
        plan.blocks,
        plan.time.as_secs_f64(),
        plan.cores.proxies,
        plan.cores.load
    ));
    if plan.blocks < LEAST_BLOCKS {
        write(&format!(
            "With fewer than {LEAST_BLOCKS} blocks ratios prove nothing: their rows will be void.\n"
        ));
    }
    progress.at("starting the mesh");
    let mut stage = Stage::set(Options::default(), plan.cores)?;
    start(&mut stage, plan, &progress)?;
    let mut measured: Vec<(&'static str, Vec<Block>)> = Vec::new();
    for load in TIMED.into_iter().filter(|load| plan.loads.contains(&load.name)) {
        measured.push((load.name, timed::run(&stage, plan, load, &progress)?));
    }
    if plan.loads.contains(&CHANGE) {
        measured.push((CHANGE, change::run(&stage, &progress)?));
    }
    for holding in HOLDINGS.into_iter().filter(|holding| plan.loads.contains(&holding.name)) {
        measured.push((holding.name, memory::run(&mut stage, plan, holding, &progress)?));
    }
    let negotiated = if plan.lanes.contains(&Lane::Envoy) { stage.negotiated()? } else { "-".to_owned() };
    progress.line("measured; ending everything");
    drop(stage);
    let verdicts = judged(&measured);
    write(&format!("\n{}\n{}", report::table(&verdicts), report::legend()));
    write(&format!("Envoy's TLS by its own count: {negotiated}\n"));
    let facts = [("open files", files.to_string()), ("TLS of Envoy", negotiated)];
    keep(plan, facts, &measured, &verdicts)?;
    Ok(Outcome {
        void: verdicts.iter().filter(|verdict| verdict.void.is_some()).count(),
        missed: verdicts.iter().filter(|verdict| verdict.floor_met == Some(false)).count(),
    })
}

/// Starts the lanes that are needed.
fn start(stage: &mut Stage, plan: &Plan, progress: &Progress) -> Result<()> {
    let timed: Vec<_> = TIMED.into_iter().filter(|load| plan.loads.contains(&load.name)).collect();
    let is_needed = |lane: &Lane| {
        let of_timed = !timed.is_empty() && plan.lanes.contains(lane);
        // Envoy's pods get the init container that the injector wrote into Remora's.
        of_timed || memory::MEASURED.contains(lane) && timed.len() < plan.loads.len() || *lane == Lane::Remora
    };
    for lane in [Lane::Remora, Lane::Envoy, Lane::Direct, Lane::Again].into_iter().filter(is_needed) {
        progress.at(&format!("starting lane {}", lane.name()));
        stage.start(lane)?;
        stage.answers(lane, &timed)?;
    }
    progress.line("every lane answers");
    Ok(())
}

fn judged(measured: &[(&'static str, Vec<Block>)]) -> Vec<Verdict> {
    let of = |load: &str| measured.iter().find(|(name, _)| *name == load).map(|(_, blocks)| blocks);
    ROWS.into_iter().filter_map(|row| Some(judge(row, of(row.load)?))).collect()
}

/// Everything as JSON: what was counted in every block, and what follows from it.
fn keep(
    plan: &Plan,
    facts: [(&'static str, String); 2],
    measured: &[(&'static str, Vec<Block>)],
    verdicts: &[Verdict],
) -> Result<()> {
    let loads: serde_json::Map<String, serde_json::Value> = measured
        .iter()
        .map(|(name, blocks)| Ok(((*name).to_owned(), serde_json::to_value(blocks)?)))
        .collect::<Result<_>>()?;
    let machine: serde_json::Map<String, serde_json::Value> = machine::describe()
        .into_iter()
        .chain(facts)
        .map(|(name, value)| (name.to_owned(), value.into()))
        .collect();
    let text = serde_json::to_string_pretty(&json!({
        "version": env!("CARGO_PKG_VERSION"),
        "machine": machine,
        "cores": plan.cores,
        "blocks": plan.blocks,
        "seconds": plan.time.as_secs_f64(),
        "lanes": plan.lanes,
        "rows": verdicts,
        "loads": loads,
    }))?;
    if let Some(parent) = plan.out.parent() {
        fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
    }
    fs::write(&plan.out, text).with_context(|| format!("writing {}", plan.out.display()))?;
    write(&format!("Everything that was counted: {}\n", plan.out.display()));
    Ok(())
}

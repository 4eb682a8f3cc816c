//! Loads whose memory is measured: fresh proxies, thousands of connections that are opened, held and closed. Nothing in
//! here depends on who runs when, so all lanes are measured side by side.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::Plan;
use super::generate::{Held, until_answered};
use super::loads::Holding;
use super::progress::Progress;
use super::stage::Stage;
use super::verdict::{Block, Lane, MEMORY_BLOCKS, Memory, Sample};

/// Lanes that have proxies. One Remora is enough: memory has little noise.
pub const MEASURED: [Lane; 2] = [Lane::Remora, Lane::Envoy];
/// Connections that are held.
const CONNECTIONS: usize = 3000;
/// Connections that warm up what the first few requests make any process load.
const FEW: usize = 32;
/// How long a fresh pair may take to answer.
const ANSWERS: Duration = Duration::from_secs(30);
/// Until what is freed and what is allocated lazily has come to rest.
const SETTLE: Duration = Duration::from_secs(3);
/// After the connections were closed: the figure's definition.
const AFTERWARDS: Duration = Duration::from_secs(30);

/// Runs it in all of its blocks.
pub fn run(stage: &mut Stage, plan: &Plan, holding: Holding, progress: &Progress) -> Result<Vec<Block>> {
    let mut blocks = Vec::new();
    let wanted = plan.blocks.min(MEMORY_BLOCKS);
    for nth in 0..wanted {
        progress.at(&format!("{} block {}/{wanted}: fresh proxies", holding.name, nth + 1));
        for lane in MEASURED {
            stage.end(lane)?;
            stage.start(lane)?;
        }
        let block = measure(stage, holding, |doing| {
            progress.at(&format!("{} block {}/{wanted}: {doing}", holding.name, nth + 1));
        })?;
        progress.line(&format!("{:<12} block {}/{wanted}  {}", holding.name, nth + 1, told(&block)));
        blocks.push(block);
    }
    Ok(blocks)
}

fn measure(stage: &Stage, holding: Holding, at: impl Fn(&str)) -> Result<Block> {
    let mut memories: BTreeMap<Lane, Memory> = BTreeMap::new();
    let mut look = |into: fn(&mut Memory) -> &mut [f64; 2]| -> Result<()> {
        for lane in MEASURED {
            *into(memories.entry(lane).or_default()) = stage.pair(lane)?.memory()?;
        }
        Ok(())
    };
    std::thread::sleep(SETTLE);
    look(|memory| &mut memory.idle)?;
    for lane in MEASURED {
        let pair = stage.pair(lane)?;
        let target = pair.target(holding.port, "/small", super::loads::SMALL);
        until_answered(&pair.client, &target, false, ANSWERS)?;
    }
    let (few, _) = open(stage, holding, FEW);
    drop(few);
    std::thread::sleep(SETTLE);
    look(|memory| &mut memory.before)?;
    at("opening connections");
    let (held, mut failures) = open(stage, holding, CONNECTIONS);
    std::thread::sleep(SETTLE);
    look(|memory| &mut memory.held)?;
    for (lane, held) in held {
        if let Err(error) = held.close() {
            failures.entry(lane).or_default().push(format!("{error:#}"));
        }
    }
    at("connections are closed, waiting");
    std::thread::sleep(AFTERWARDS);
    look(|memory| &mut memory.closed)?;
    let sample = |(lane, memory): (Lane, Memory)| {
        let failures = failures.remove(&lane).unwrap_or_default();
        let memory = Some(Memory { connections: CONNECTIONS as f64, ..memory });
        (lane, Sample { failed: failures.len() as u64, failures, memory, ..Sample::default() })
    };
    Ok(memories.into_iter().map(sample).collect())
}

type Opened = (Vec<(Lane, Held)>, BTreeMap<Lane, Vec<String>>);

fn open(stage: &Stage, holding: Holding, connections: usize) -> Opened {
    let mut held = Vec::new();
    let mut failures: BTreeMap<Lane, Vec<String>> = BTreeMap::new();
    for lane in MEASURED {
        let opened = stage.pair(lane).and_then(|pair| {
            let target = pair.target(holding.port, "/small", super::loads::SMALL);
            Held::open(&pair.client, target, connections).context("opening connections")
        });
        match opened {
            Ok(opened) => held.push((lane, opened)),
            Err(error) => failures.entry(lane).or_default().push(format!("{error:#}")),
        }
    }
    (held, failures)
}

/// The block in a line.
fn told(block: &Block) -> String {
    let lanes = block.iter().filter_map(|(lane, sample)| {
        let Memory { idle, before, held, closed, .. } = sample.memory?;
        let mib = |[client, server]: [f64; 2]| format!("{:.1}/{:.1}", client / 1024.0, server / 1024.0);
        let failed = if sample.failed > 0 { " FAILED" } else { "" };
        Some(format!(
            "{} idle {} warm {} held {} closed {} MiB{failed}",
            lane.name(),
            mib(idle),
            mib(before),
            mib(held),
            mib(closed)
        ))
    });
    lanes.collect::<Vec<_>>().join("  ")
}

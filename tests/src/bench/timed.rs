//! Loads that are measured over a time: in every block each lane once, in an order of its own.

use std::time::Duration;

use anyhow::{Context as _, Result};

use super::Plan;
use super::generate::{Counts, Generator};
use super::loads::{Load, Measure, Traffic};
use super::machine::Processors;
use super::progress::Progress;
use super::stage::{Pair, Stage};
use super::verdict::{Block, Disturbance, LANES, Lane, Sample, figure};

/// Not measured: connections are opened, caches filled.
const WARM_UP: Duration = Duration::from_secs(1);
/// How often a measurement is made that others disturb.
const ATTEMPTS: usize = 3;

/// Runs a load in all of its blocks.
pub fn run(stage: &Stage, plan: &Plan, load: Load, progress: &Progress) -> Result<Vec<Block>> {
    let mut blocks = Vec::new();
    for nth in 0..plan.blocks {
        let mut block = Block::new();
        for lane in order(nth).into_iter().filter(|lane| plan.lanes.contains(lane)) {
            progress.at(&format!("{} block {}/{}: {}", load.name, nth + 1, plan.blocks, lane.name()));
            block.insert(lane, calmly(stage, plan, load, lane, progress)?);
        }
        progress.line(&format!(
            "{:<12} block {}/{}  {}",
            load.name,
            nth + 1,
            plan.blocks,
            told(load, &block)
        ));
        blocks.push(block);
    }
    Ok(blocks)
}

/// Another order in each block, so that no lane always follows the same one: each lane is first, second, third and last
/// equally often, and the odd rounds go backwards.
fn order(block: usize) -> Vec<Lane> {
    let mut lanes = LANES.to_vec();
    lanes.rotate_left(block % LANES.len());
    if block % 2 == 1 {
        lanes.reverse();
    }
    lanes
}

/// Measures, again where others disturbed it, and keeps what was disturbed least.
fn calmly(stage: &Stage, plan: &Plan, load: Load, lane: Lane, progress: &Progress) -> Result<Sample> {
    let mut best: Option<Sample> = None;
    for attempt in 1..=ATTEMPTS {
        let sample = measure(&stage.pair(lane)?, plan, load)?;
        let (disturbance, failed) = (sample.disturbance, sample.failed > 0);
        let before = best.as_ref().map_or(f64::INFINITY, |best| best.disturbance.others());
        // A failure is never measured away.
        if failed || disturbance.others() < before {
            best = Some(sample);
        }
        if failed || !disturbance.is_large() {
            break;
        }
        progress.line(&format!(
            "{:<12} {}: others used {:.0} % of a core, {}",
            load.name,
            lane.name(),
            disturbance.others() * 100.0,
            if attempt < ATTEMPTS { "measuring again" } else { "as often as it was tried" }
        ));
    }
    best.context("nothing was measured")
}

fn measure(pair: &Pair<'_>, plan: &Plan, load: Load) -> Result<Sample> {
    let generator = Generator::start(&pair.client, pair.target(load.port, load.path, load.body), load)?;
    std::thread::sleep(WARM_UP);
    let before = Look::at(pair, &generator)?;
    drop(generator.take_latencies());
    std::thread::sleep(plan.time);
    let latencies = generator.take_latencies();
    let after = Look::at(pair, &generator)?;
    let failures = generator.finish()?;
    let micros = |share: f64| latencies.percentile(share) as f64 / 1e3;
    let cpu_micros = std::array::from_fn(|nth| at(&after.cpu, nth) - at(&before.cpu, nth));
    Ok(Sample {
        requests: after.counts.requests - before.counts.requests,
        failed: after.counts.failed,
        failures,
        bytes: after.counts.bytes - before.counts.bytes,
        seconds: after.counts.at.duration_since(before.counts.at).as_secs_f64(),
        cpu_micros,
        p50_micros: micros(0.5),
        p99_micros: micros(0.99),
        disturbance: after.disturbance_since(&before, plan),
        ..Sample::default()
    })
}

/// Everything that is looked at when a measurement begins, and again when it ends.
struct Look {
    counts: Counts,
    cpu: [f64; 2],
    /// Microseconds that the load and nginx ran.
    load: f64,
    processors: Processors,
}

impl Look {
    fn at(pair: &Pair<'_>, generator: &Generator) -> Result<Self> {
        let (counts, cpu) = (generator.counts(), pair.cpu()?);
        Ok(Self { counts, cpu, load: pair.load_cpu()?, processors: Processors::now()? })
    }

    fn disturbance_since(&self, before: &Self, plan: &Plan) -> Disturbance {
        let micros = self.counts.at.duration_since(before.counts.at).as_secs_f64() * 1e6;
        let others = |core: usize, ours: f64| {
            ((self.processors.busy_micros_since(&before.processors, core) - ours) / micros).max(0.0)
        };
        let proxies = self.cpu.iter().sum::<f64>() - before.cpu.iter().sum::<f64>();
        Disturbance {
            steal: self.processors.steal_since(&before.processors),
            proxies_core: others(plan.cores.proxies, proxies),
            load_core: others(plan.cores.load, self.load - before.load),
        }
    }
}

fn at(values: &[f64; 2], nth: usize) -> f64 {
    values.get(nth).copied().unwrap_or_default()
}

/// The block in a line.
fn told(load: Load, block: &Block) -> String {
    let lanes = LANES.iter().filter_map(|lane| {
        let sample = block.get(lane)?;
        let failed = if sample.failed > 0 { format!(" {} FAILED", sample.failed) } else { String::new() };
        let rate = sample.requests as f64 / sample.seconds;
        let what = match (load.traffic, figure(Measure::Cpu, *lane, block)) {
            (Traffic::Bulk, _) => format!("{:.0} MB/s", sample.bytes as f64 / 1e6 / sample.seconds),
            (_, Some(cpu)) => format!("{cpu:.1} us/request {rate:.0}/s"),
            (_, None) => format!("{rate:.0}/s"),
        };
        Some(format!("{} {what}{failed}", lane.name()))
    });
    lanes.collect::<Vec<_>>().join("  ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn orders_differ_and_have_every_lane_once() {
        let orders: BTreeSet<Vec<Lane>> = (0..LANES.len()).map(order).collect();
        assert_eq!(orders.len(), LANES.len());
        for order in orders {
            assert_eq!(order.iter().copied().collect::<BTreeSet<_>>(), LANES.into_iter().collect());
        }
    }
}

//! Loads that are measured over a time: in every block each lane once, in an order of its own.

use std::time::Duration;

use anyhow::Result;

use super::Plan;
use super::generate::{Counts, Generator};
use super::loads::{Load, Traffic};
use super::machine::Processors;
use super::progress::Progress;
use super::stage::{Pair, Stage};
use super::verdict::{Block, LANES, Lane, Sample, figure};

/// Not measured: connections are opened, caches filled.
const WARM_UP: Duration = Duration::from_secs(1);

/// Runs a load in all of its blocks.
pub fn run(stage: &Stage, plan: &Plan, load: Load, progress: &Progress) -> Result<Vec<Block>> {
    let mut blocks = Vec::new();
    for nth in 0..plan.blocks {
        let mut block = Block::new();
        for lane in order(nth) {
            progress.at(&format!("{} block {}/{}: {}", load.name, nth + 1, plan.blocks, lane.name()));
            block.insert(lane, measure(&stage.pair(lane)?, load, plan.time)?);
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

fn measure(pair: &Pair<'_>, load: Load, time: Duration) -> Result<Sample> {
    let generator = Generator::start(&pair.client, pair.target(load.port, load.path, load.body), load)?;
    std::thread::sleep(WARM_UP);
    let (before, cpu_before, processors) = look(pair, &generator)?;
    drop(generator.take_latencies());
    std::thread::sleep(time);
    let latencies = generator.take_latencies();
    let (after, cpu_after, processors_after) = look(pair, &generator)?;
    let failed = after.failed;
    let failures = generator.finish()?;
    let micros = |share: f64| latencies.percentile(share) as f64 / 1e3;
    let seconds = after.at.duration_since(before.at).as_secs_f64();
    Ok(Sample {
        requests: after.requests - before.requests,
        failed,
        failures,
        bytes: after.bytes - before.bytes,
        seconds,
        cpu_micros: std::array::from_fn(|nth| at(&cpu_after, nth) - at(&cpu_before, nth)),
        p50_micros: micros(0.5),
        p99_micros: micros(0.99),
        steal: processors_after.steal_since(processors),
        memory: None,
    })
}

fn look(pair: &Pair<'_>, generator: &Generator) -> Result<(Counts, [f64; 2], Processors)> {
    Ok((generator.counts(), pair.cpu()?, Processors::now()?))
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
        let what = match (load.traffic, figure(super::loads::Measure::Cpu, *lane, block)) {
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

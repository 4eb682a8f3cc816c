//! What a new configuration does to whoever has requests under way: a thousand routes of a Service change, every one but
//! that of the request, and the slowest requests around that moment are compared with those of the time before.

use std::time::Duration;

use anyhow::{Result, bail};

use super::generate::{Generator, until_answered};
use super::loads::{CHANGE, Load, SMALL, Traffic};
use super::progress::Progress;
use super::routes;
use super::stage::Stage;
use super::verdict::{Block, Change, Lane, Sample};

/// Runs: each says how often it was, the median counts.
pub const RUNS: usize = 10;
/// Routes that change.
const ROUTES: usize = 1000;
/// Each of the two times that are compared. The change is made in the middle of the second one.
const TIME: Duration = Duration::from_secs(10);
const WARM_UP: Duration = Duration::from_secs(1);
/// Until all of the first routes are there: with a part of them, a request of none of these is 404, as it has to be.
const SETTLE: Duration = Duration::from_secs(3);
const ANSWERS: Duration = Duration::from_secs(30);
const LOAD: Load = Load {
    name: CHANGE,
    traffic: Traffic::Kept,
    connections: 16,
    port: routes::CHANGING,
    path: routes::PATH,
    body: SMALL,
};

/// Runs it as often as its definition says, in one lane.
pub fn run(stage: &Stage, progress: &Progress) -> Result<Vec<Block>> {
    stage.apply(routes::changing(Lane::Remora, ROUTES, 0))?;
    std::thread::sleep(SETTLE);
    let pair = stage.pair(Lane::Remora)?;
    until_answered(&pair.client, &pair.changing_target(), false, ANSWERS)?;
    let mut blocks = Vec::new();
    for nth in 1..=RUNS {
        progress.at(&format!("{CHANGE} run {nth}/{RUNS}"));
        let sample = measure(stage, nth)?;
        let Change { before, around } = sample.change.unwrap_or_default();
        let failed = if sample.failed > 0 { " FAILED" } else { "" };
        progress.line(&format!(
            "{CHANGE:<12} run {nth}/{RUNS}  p99.9 before {before:.0} us, around {around:.0} us{failed}"
        ));
        blocks.push(Block::from([(Lane::Remora, sample)]));
    }
    Ok(blocks)
}

fn measure(stage: &Stage, generation: usize) -> Result<Sample> {
    let pair = stage.pair(Lane::Remora)?;
    let generator = Generator::start(&pair.client, pair.changing_target(), LOAD)?;
    std::thread::sleep(WARM_UP);
    drop(generator.take_latencies());
    std::thread::sleep(TIME);
    let before = generator.take_latencies();
    std::thread::sleep(TIME / 2);
    stage.apply(routes::changing(Lane::Remora, ROUTES, generation))?;
    std::thread::sleep(TIME / 2);
    let around = generator.take_latencies();
    let counts = generator.counts();
    let failures = generator.finish()?;
    if around.total() == 0 {
        bail!("no request was answered around the change");
    }
    let micros = |latencies: &super::stats::Histogram| latencies.percentile(0.999) as f64 / 1e3;
    Ok(Sample {
        requests: counts.requests,
        failed: counts.failed,
        failures,
        change: Some(Change { before: micros(&before), around: micros(&around) }),
        ..Sample::default()
    })
}

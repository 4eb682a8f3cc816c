//! Pure. From what was counted in every block to what a row of the table says: ratio, spread, void or not, met or not.
//!
//! A ratio is made within a block, where both lanes met the same machine; the median is over the blocks' ratios.

use std::collections::BTreeMap;

use serde::Serialize;

use super::loads::{Measure, Row};
use super::stats::{Spread, ratio};

/// Whose proxies carry the traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lane {
    /// None.
    Direct,
    Remora,
    Envoy,
    /// Remora again, in a pair of its own: what differs from the first is noise.
    Again,
    /// Remora under callgrind, which nothing is compared with.
    Counted,
}

/// Every lane of the table, in its order.
pub const LANES: [Lane; 4] = [Lane::Direct, Lane::Remora, Lane::Envoy, Lane::Again];

impl Lane {
    /// The lane of the table with this name.
    pub fn named(name: &str) -> Option<Self> {
        LANES.into_iter().find(|lane| lane.name() == name)
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Remora => "remora",
            Self::Envoy => "envoy",
            Self::Again => "again",
            Self::Counted => "counted",
        }
    }
}

/// What the ratio of a lane to its twin may be at most, and at least, for the row to mean something.
pub const NULL: (f64, f64) = (0.90, 1.10);

/// Blocks below which a ratio proves nothing: a machine may be quiet, or not, for as long as a few of them.
pub const LEAST_BLOCKS: usize = 6;
/// The same of a load whose memory is measured, which never has more.
pub const MEMORY_BLOCKS: usize = 3;

/// What was counted in one lane in one block, under one load.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Sample {
    /// Requests that were answered as they had to be, and those that were not.
    pub requests: u64,
    pub failed: u64,
    /// The first failures, in words.
    pub failures: Vec<String>,
    /// Bytes of bodies.
    pub bytes: u64,
    pub seconds: f64,
    /// Microseconds that each proxy ran: the client's, the server's.
    pub cpu_micros: [f64; 2],
    /// Latencies in microseconds.
    pub p50_micros: f64,
    pub p99_micros: f64,
    pub disturbance: Disturbance,
    /// Resident memory in KiB of each proxy, when it was measured.
    pub memory: Option<Memory>,
    /// Latencies around a change of configuration, when that was measured.
    pub change: Option<Change>,
}

/// The 99.9th percentile of the latency in microseconds, before a change of configuration and around it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Change {
    pub before: f64,
    pub around: f64,
}

/// What others did to a measurement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Disturbance {
    /// Share of the machine's time that its host took for somebody else.
    pub steal: f64,
    /// Shares of the proxies' core and of the load's core that processes used which have no part in it.
    pub proxies_core: f64,
    pub load_core: f64,
}

impl Disturbance {
    /// Shares above these were seen to change figures; the kernel counts in hundredths of a second, so less says little.
    const STEAL: f64 = 0.02;
    const OTHERS: f64 = 0.06;

    /// Whether the measurement is better made again.
    pub fn is_large(self) -> bool {
        self.steal > Self::STEAL || self.others() > Self::OTHERS
    }

    /// The larger share of a core that others used.
    pub fn others(self) -> f64 {
        self.proxies_core.max(self.load_core)
    }
}

/// Resident memory of both proxies in KiB, the client's first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Memory {
    /// Before anything was asked of them.
    pub idle: [f64; 2],
    /// After a first handful of requests.
    pub before: [f64; 2],
    pub held: [f64; 2],
    pub closed: [f64; 2],
    /// Connections that were held.
    pub connections: f64,
}

/// The samples of one load in one block, by lane.
pub type Block = BTreeMap<Lane, Sample>;

/// The figure that a row is about, of one lane in one block.
pub fn figure(measure: Measure, lane: Lane, block: &Block) -> Option<f64> {
    let sample = block.get(&lane)?;
    let memory = sample.memory.as_ref();
    match measure {
        Measure::Cpu if lane == Lane::Direct => None,
        Measure::Cpu => ratio(sample.cpu_micros.iter().sum(), sample.requests as f64),
        Measure::Added => {
            let direct = block.get(&Lane::Direct).filter(|_| lane != Lane::Direct)?;
            Some(sample.p50_micros - direct.p50_micros)
        }
        Measure::Throughput => ratio(sample.bytes as f64 / 1e6, sample.seconds),
        Measure::Idle => memory.map(|memory| larger(memory.idle) / 1024.0),
        Measure::Held => memory.map(|memory| {
            larger(std::array::from_fn(|nth| {
                difference(memory.held.get(nth), memory.before.get(nth)) / memory.connections
            }))
        }),
        Measure::Closed => memory.map(|memory| {
            larger(std::array::from_fn(|nth| {
                quotient(memory.closed.get(nth), memory.before.get(nth)).unwrap_or(f64::NAN)
            }))
        }),
        Measure::Change => sample.change.and_then(|change| ratio(change.around, change.before)),
    }
}

fn larger([client, server]: [f64; 2]) -> f64 {
    client.max(server)
}

fn difference(after: Option<&f64>, before: Option<&f64>) -> f64 {
    after.copied().unwrap_or(f64::NAN) - before.copied().unwrap_or(f64::NAN)
}

fn quotient(after: Option<&f64>, before: Option<&f64>) -> Option<f64> {
    ratio(*after?, *before?)
}

/// What a row says.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    pub row: Row,
    /// The figure of each lane.
    pub lanes: BTreeMap<Lane, Spread>,
    /// Remora's figure by Envoy's.
    pub ratio: Option<Spread>,
    /// Remora's figure by its twin's.
    pub null: Option<Spread>,
    /// Why the row means nothing.
    pub void: Option<String>,
    /// Whether floor and aim are met; nothing where that is not known.
    pub floor_met: Option<bool>,
    pub aim_met: Option<bool>,
}

/// What the blocks of a row's load say.
pub fn judge(row: Row, blocks: &[Block]) -> Verdict {
    let measure = row.measure;
    let of = |lane: Lane| blocks.iter().filter_map(move |block| figure(measure, lane, block));
    let against = |over: Lane, under: Lane| {
        let pairs = blocks
            .iter()
            .filter_map(|block| ratio(figure(measure, over, block)?, figure(measure, under, block)?));
        Spread::of(pairs)
    };
    let lanes: BTreeMap<Lane, Spread> =
        LANES.iter().filter_map(|lane| Some((*lane, Spread::of(of(*lane))?))).collect();
    let ratio = against(Lane::Remora, Lane::Envoy);
    let null = against(Lane::Again, Lane::Remora);
    let judged = if measure.is_relative() { ratio } else { lanes.get(&Lane::Remora).copied() };
    let void = failed(blocks)
        .or_else(|| few(measure, blocks.len()))
        .or_else(|| if measure.is_relative() { noisy(null) } else { None });
    let met = |goal: f64| judged.filter(|_| void.is_none()).map(|figure| measure.meets(figure.median, goal));
    let (floor_met, aim_met) = (met(row.floor), met(row.aim));
    Verdict { row, lanes, ratio, null, void, floor_met, aim_met }
}

fn failed(blocks: &[Block]) -> Option<String> {
    let failures = blocks.iter().flatten().filter(|(_, sample)| sample.failed > 0);
    let mut lanes: BTreeMap<Lane, (u64, Option<&String>)> = BTreeMap::new();
    for (lane, sample) in failures {
        let (count, first) = lanes.entry(*lane).or_default();
        *count += sample.failed;
        *first = first.or(sample.failures.first());
    }
    let told = lanes.iter().map(|(lane, (count, first))| {
        let first = first.map_or_else(String::new, |first| format!(", the first: {first}"));
        format!("{count} requests failed in lane {}{first}", lane.name())
    });
    let told: Vec<String> = told.collect();
    (!told.is_empty()).then(|| told.join("; "))
}

/// Memory hardly depends on who else runs: it has fewer blocks than a ratio needs.
fn few(measure: Measure, blocks: usize) -> Option<String> {
    let least = match measure {
        Measure::Idle | Measure::Held | Measure::Closed => MEMORY_BLOCKS,
        Measure::Cpu | Measure::Added | Measure::Throughput | Measure::Change => LEAST_BLOCKS,
    };
    (blocks < least).then(|| format!("{blocks} of the {least} blocks that it takes: this proves nothing"))
}

fn noisy(null: Option<Spread>) -> Option<String> {
    let (least, greatest) = NULL;
    match null {
        None => Some("Remora was not measured against itself".to_owned()),
        Some(null) if (least..=greatest).contains(&null.median) => None,
        Some(null) => Some(format!(
            "Remora against itself is {:.2}, outside {least:.2} to {greatest:.2}: too noisy",
            null.median
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::loads::ROWS;

    #[test]
    fn a_ratio_is_the_median_of_the_blocks_ratios() {
        // The machine is twice as slow in the second block, for everybody: the ratio does not see it.
        let blocks = [block(40.0, 100.0, 40.0), block(80.0, 200.0, 82.0), block(44.0, 100.0, 43.0)];
        let verdict = judge(cpu(), &[&blocks[..], &blocks].concat());
        assert_eq!(verdict.ratio.unwrap(), Spread { median: 0.40, least: 0.40, greatest: 0.44 });
        assert!((verdict.lanes[&Lane::Remora].median - 44.0).abs() < 1e-9);
        assert_eq!((verdict.void, verdict.floor_met, verdict.aim_met), (None, Some(true), Some(false)));
    }

    #[test]
    fn what_differs_from_its_twin_is_void_and_meets_nothing() {
        for (again, void) in [(36.0, false), (35.9, true), (44.0, false), (44.1, true)] {
            let verdict = judge(cpu(), &enough(&block(40.0, 100.0, again)));
            assert_eq!(verdict.void.is_some(), void, "{again}");
            assert_eq!(verdict.floor_met.is_none(), void, "{again}");
        }
    }

    #[test]
    fn without_its_twin_a_ratio_is_void() {
        let mut alone = block(40.0, 100.0, 40.0);
        alone.remove(&Lane::Again);
        assert!(judge(cpu(), &enough(&alone)).void.unwrap().contains("not measured against itself"));
    }

    #[test]
    fn one_failed_request_in_any_lane_makes_the_row_void_and_is_named() {
        for lane in LANES {
            let mut failing = block(40.0, 100.0, 40.0);
            failing.entry(lane).or_default().failed = 1;
            failing.entry(lane).or_default().failures = vec!["503".to_owned()];
            let void = judge(cpu(), &[block(40.0, 100.0, 40.0), failing]).void.unwrap();
            assert_eq!(void, format!("1 requests failed in lane {}, the first: 503", lane.name()));
        }
    }

    #[test]
    fn fewer_blocks_than_it_takes_prove_nothing_and_meet_no_floor() {
        let good = block(40.0, 100.0, 40.0);
        for blocks in 0..LEAST_BLOCKS {
            let verdict = judge(cpu(), &vec![good.clone(); blocks]);
            let void = verdict.void.unwrap();
            assert_eq!(void, format!("{blocks} of the 6 blocks that it takes: this proves nothing"));
            assert_eq!((verdict.floor_met, verdict.aim_met), (None, None), "{blocks}");
        }
        assert_eq!(judge(cpu(), &enough(&good)).floor_met, Some(true));
        let memory = Memory { idle: [5120.0, 6144.0], ..Memory::default() };
        let held = Block::from([(Lane::Remora, Sample { memory: Some(memory), ..Sample::default() })]);
        let met = |blocks| judge(row(Measure::Idle), &vec![held.clone(); blocks]).floor_met;
        assert_eq!([1, 2, 3].map(met), [None, None, Some(true)]);
    }

    #[test]
    fn latency_is_judged_by_what_is_added_to_direct() {
        let mut block = block(40.0, 100.0, 40.0);
        for (lane, p50) in
            [(Lane::Direct, 50.0), (Lane::Remora, 110.0), (Lane::Envoy, 200.0), (Lane::Again, 110.0)]
        {
            block.entry(lane).or_default().p50_micros = p50;
        }
        let verdict = judge(row(Measure::Added), &enough(&block));
        assert!((verdict.ratio.unwrap().median - 0.4).abs() < 1e-9);
        assert!(!verdict.lanes.contains_key(&Lane::Direct));
    }

    #[test]
    fn memory_is_that_of_the_larger_proxy_and_needs_no_envoy() {
        let memory = Memory {
            idle: [5120.0, 6144.0],
            before: [6144.0, 7168.0],
            held: [12144.0, 10168.0],
            closed: [6758.4, 7168.0],
            connections: 3000.0,
        };
        let block = Block::from([(Lane::Remora, Sample { memory: Some(memory), ..Sample::default() })]);
        for (measure, expected) in [(Measure::Idle, 6.0), (Measure::Held, 2.0), (Measure::Closed, 1.1)] {
            let verdict = judge(row(measure), &vec![block.clone(); MEMORY_BLOCKS]);
            assert!((verdict.lanes[&Lane::Remora].median - expected).abs() < 1e-9, "{measure:?}");
            assert_eq!((verdict.void, verdict.floor_met), (None, Some(true)), "{measure:?}");
        }
    }

    #[test]
    fn a_measurement_is_disturbed_by_the_host_and_on_either_core() {
        let quiet = Disturbance { steal: 0.02, proxies_core: 0.06, load_core: 0.06 };
        for (disturbance, large) in [
            (quiet, false),
            (Disturbance { steal: 0.021, ..quiet }, true),
            (Disturbance { proxies_core: 0.061, ..quiet }, true),
            (Disturbance { load_core: 0.061, ..quiet }, true),
        ] {
            assert_eq!(disturbance.is_large(), large, "{disturbance:?}");
        }
    }

    #[test]
    fn nothing_is_met_where_nothing_was_measured() {
        let verdict = judge(cpu(), &[]);
        assert_eq!((verdict.floor_met, verdict.aim_met, verdict.ratio), (None, None, None));
    }

    /// The same in as many blocks as it takes.
    fn enough(block: &Block) -> Vec<Block> {
        vec![block.clone(); LEAST_BLOCKS]
    }

    /// CPU per request in microseconds of the three pairs of proxies.
    fn block(remora: f64, envoy: f64, again: f64) -> Block {
        let sample = |micros: f64| Sample {
            requests: 1000,
            cpu_micros: [micros * 400.0, micros * 600.0],
            ..Sample::default()
        };
        Block::from([
            (Lane::Direct, Sample { requests: 1000, ..Sample::default() }),
            (Lane::Remora, sample(remora)),
            (Lane::Envoy, sample(envoy)),
            (Lane::Again, sample(again)),
        ])
    }

    fn cpu() -> Row {
        row(Measure::Cpu)
    }

    fn row(measure: Measure) -> Row {
        *ROWS.iter().find(|row| row.measure == measure).unwrap()
    }
}

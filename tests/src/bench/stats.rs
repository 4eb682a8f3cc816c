//! Pure. The few statistics that a noisy machine allows: medians with their spread, and latencies in buckets.

use serde::Serialize;

/// What a figure was in the middle of its blocks, and how far it went to either side.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    pub median: f64,
    pub least: f64,
    pub greatest: f64,
}

impl Spread {
    /// Of at least one value; values that are no numbers do not count.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
        sorted.sort_unstable_by(f64::total_cmp);
        let (least, greatest) = (*sorted.first()?, *sorted.last()?);
        let (low, high) = (sorted.get((sorted.len() - 1) / 2)?, sorted.get(sorted.len() / 2)?);
        Some(Self { median: f64::midpoint(*low, *high), least, greatest })
    }
}

/// `over / under`; nothing where that has no meaning.
pub fn ratio(over: f64, under: f64) -> Option<f64> {
    let ratio = over / under;
    (under > 0.0 && over >= 0.0 && ratio.is_finite()).then_some(ratio)
}

/// Bits of a latency that are kept: buckets are at most 1/64 of their value wide.
const PRECISION: u32 = 6;
/// Enough for any number of nanoseconds that 64 bits hold.
const BUCKETS: usize = ((64 - PRECISION as usize) << PRECISION) + (1 << PRECISION);

/// Latencies in nanoseconds, counted in buckets whose width grows with the value.
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS], total: 0 }
    }
}

impl Histogram {
    pub fn record(&mut self, nanos: u64) {
        if let Some(count) = self.counts.get_mut(bucket(nanos)) {
            *count += 1;
            self.total += 1;
        }
    }

    /// How many were recorded.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The latency that this share (0 to 1) did not exceed, as the middle of its bucket; 0 where there is none.
    pub fn percentile(&self, share: f64) -> u64 {
        let rank = ((share * self.total as f64).ceil() as u64).clamp(1, self.total.max(1));
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return middle(index);
            }
        }
        0
    }
}

fn bucket(nanos: u64) -> usize {
    let shift = (u64::BITS - nanos.leading_zeros()).saturating_sub(PRECISION + 1);
    ((shift as usize) << PRECISION) + (nanos >> shift) as usize
}

fn middle(bucket: usize) -> u64 {
    let shift = (bucket >> PRECISION).saturating_sub(1);
    let low = ((bucket - (shift << PRECISION)) as u64) << shift;
    low + ((1_u64 << shift) >> 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_or_between_the_two_in_the_middle() {
        for (values, median, least, greatest) in [
            (vec![3.0], 3.0, 3.0, 3.0),
            (vec![9.0, 1.0, 2.0], 2.0, 1.0, 9.0),
            (vec![4.0, 1.0, 2.0, 100.0], 3.0, 1.0, 100.0),
            (vec![f64::NAN, 2.0, f64::INFINITY], 2.0, 2.0, 2.0),
        ] {
            assert_eq!(Spread::of(values.clone()), Some(Spread { median, least, greatest }), "{values:?}");
        }
        assert_eq!(Spread::of([]), None);
        assert_eq!(Spread::of([f64::NAN]), None);
    }

    #[test]
    fn a_ratio_to_nothing_or_of_less_than_nothing_is_none() {
        assert_eq!(ratio(1.0, 4.0), Some(0.25));
        assert_eq!(ratio(0.0, 4.0), Some(0.0));
        for (over, under) in [(1.0, 0.0), (1.0, -1.0), (-1.0, 2.0), (f64::NAN, 1.0), (f64::INFINITY, 1.0)] {
            assert_eq!(ratio(over, under), None, "{over} / {under}");
        }
    }

    #[test]
    fn every_latency_is_found_again_within_its_precision() {
        for nanos in (0..64).map(|bit| 1_u64 << bit).flat_map(|power| [power - 1, power, power + power / 3]) {
            let mut histogram = Histogram::default();
            histogram.record(nanos);
            assert_eq!(histogram.total(), 1, "{nanos} has no bucket");
            let found = histogram.percentile(0.5);
            assert!(found.abs_diff(nanos) <= nanos >> PRECISION, "{nanos} was found as {found}");
        }
    }

    #[test]
    fn a_percentile_counts_from_the_shortest() {
        let mut histogram = Histogram::default();
        (1..=100).for_each(|nanos| histogram.record(nanos));
        for (share, expected) in [(0.0, 1), (0.01, 1), (0.5, 50), (0.99, 99), (1.0, 100)] {
            assert_eq!(histogram.percentile(share), expected, "{share}");
        }
        assert_eq!(Histogram::default().percentile(0.5), 0);
    }
}

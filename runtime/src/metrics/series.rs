//! What a series counts with: handles that are cheap to clone and record with relaxed atomics only.

use prometheus_client::{
    encoding::{EncodeMetric, MetricEncoder, NoLabelSet},
    metrics::MetricType,
};
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

/// A kind of series that a family can hold.
pub trait Series: EncodeMetric + Clone + fmt::Debug + Send + Sync + 'static {
    /// Its Prometheus type.
    const TYPE: MetricType;

    /// How many handles to this series there are, this one included.
    fn handles(&self) -> usize;
}

/// A number that grows. Wraps at 2^64, which Prometheus takes for a restart.
#[derive(Clone, Debug, Default)]
pub struct Counter(Arc<AtomicU64>);

impl Counter {
    /// Adds one.
    pub fn inc(&self) {
        self.inc_by(1);
    }

    /// Adds `n`.
    pub fn inc_by(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// The count.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

impl Series for Counter {
    const TYPE: MetricType = MetricType::Counter;

    fn handles(&self) -> usize {
        Arc::strong_count(&self.0)
    }
}

impl EncodeMetric for Counter {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        encoder.encode_counter::<NoLabelSet, _, u64>(&self.get(), None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

/// A number that goes up and down.
#[derive(Clone, Debug, Default)]
pub struct Gauge(Arc<AtomicI64>);

impl Gauge {
    /// Replaces the value.
    pub fn set(&self, value: i64) {
        self.0.store(value, Relaxed);
    }

    /// Adds `n`, which may be negative.
    pub fn add(&self, n: i64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// The value.
    pub fn get(&self) -> i64 {
        self.0.load(Relaxed)
    }

    /// Adds one until the guard is dropped.
    pub fn guard(&self) -> GaugeGuard {
        self.add(1);
        GaugeGuard(self.clone())
    }
}

impl Series for Gauge {
    const TYPE: MetricType = MetricType::Gauge;

    fn handles(&self) -> usize {
        Arc::strong_count(&self.0)
    }
}

impl EncodeMetric for Gauge {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        encoder.encode_gauge(&self.get())
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

/// One of what a gauge counts, until dropped.
#[derive(Debug)]
#[must_use]
pub struct GaugeGuard(Gauge);

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.0.add(-1);
    }
}

/// Upper bounds of a histogram, in the unit that is printed, ascending; `+Inf` is implied.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Buckets {
    bounds: &'static [f64],
    /// How many recorded units (nanoseconds, or bytes, or pieces) one printed unit has.
    per_unit: f64,
}

impl Buckets {
    /// Times recorded by [`Histogram::record`], printed in milliseconds.
    pub const fn millis(bounds: &'static [f64]) -> Self {
        Self { bounds, per_unit: 1e6 }
    }

    /// Times recorded by [`Histogram::record`], printed in seconds.
    pub const fn seconds(bounds: &'static [f64]) -> Self {
        Self { bounds, per_unit: 1e9 }
    }

    /// Sizes or numbers recorded by [`Histogram::observe`].
    pub const fn plain(bounds: &'static [f64]) -> Self {
        Self { bounds, per_unit: 1.0 }
    }

    /// `response_latency_ms` and its kin, contract 5.4.
    pub const LATENCY_MS: Self = Self::millis(&[
        1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0, 30.0, 40.0, 50.0, 100.0, 200.0, 300.0, 400.0, 500.0, 1000.0,
        2000.0, 3000.0, 4000.0, 5000.0, 10_000.0, 20_000.0, 30_000.0, 40_000.0, 50_000.0,
    ]);
    /// `…_route_request_duration_seconds`, contract 5.4.
    pub const ROUTE_SECONDS: Self = Self::seconds(&[0.05, 0.5, 1.0, 10.0]);
    /// `…_backend_response_duration_seconds`, contract 5.4.
    pub const BACKEND_SECONDS: Self = Self::seconds(&[0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 10.0]);
    /// `…_frame_size_bytes`, as Linkerd's proxy has them.
    pub const FRAME_BYTES: Self = Self::plain(&[128.0, 1024.0, 10_240.0]);
    /// `…_queue_latency_seconds` and how long detection took, contract 5.4.
    pub const QUEUE_SECONDS: Self = Self::seconds(&[0.0005, 0.005, 0.05, 0.5, 1.0, 3.0]);
}

/// A distribution with fixed buckets. Recording is a short binary search and two relaxed additions.
#[derive(Clone, Debug)]
pub struct Histogram(Arc<Recorded>);

#[derive(Debug)]
struct Recorded {
    buckets: Buckets,
    /// One more than there are bounds: the last is `+Inf`.
    counts: Box<[AtomicU64]>,
    /// In recorded units; wraps after centuries of nanoseconds, which Prometheus takes for a restart.
    sum: AtomicU64,
}

impl Histogram {
    /// Nothing recorded yet.
    pub fn new(buckets: Buckets) -> Self {
        let counts = (0..=buckets.bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self(Arc::new(Recorded { buckets, counts, sum: AtomicU64::new(0) }))
    }

    /// Records a time, of a histogram of milliseconds or seconds.
    pub fn record(&self, time: Duration) {
        self.observe(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Records a size or number, of a plain histogram.
    pub fn observe(&self, value: u64) {
        let Recorded { buckets, counts, sum } = &*self.0;
        let printed = value as f64 / buckets.per_unit;
        let index = buckets.bounds.partition_point(|bound| *bound < printed);
        if let Some(count) = counts.get(index) {
            count.fetch_add(1, Relaxed);
        }
        sum.fetch_add(value, Relaxed);
    }

    /// How many values were recorded.
    pub fn count(&self) -> u64 {
        self.0.counts.iter().map(|count| count.load(Relaxed)).sum()
    }
}

impl Series for Histogram {
    const TYPE: MetricType = MetricType::Histogram;

    fn handles(&self) -> usize {
        Arc::strong_count(&self.0)
    }
}

impl EncodeMetric for Histogram {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let Recorded { buckets, counts, sum } = &*self.0;
        let bounds = buckets.bounds.iter().copied().chain([f64::INFINITY]);
        // Each bucket is read once and the count is their sum, so that the two always agree in what is printed.
        let filled: Vec<(f64, u64)> = bounds.zip(counts.iter().map(|count| count.load(Relaxed))).collect();
        let count = filled.iter().map(|(_, count)| count).sum();
        encoder.encode_histogram::<NoLabelSet>(
            sum.load(Relaxed) as f64 / buckets.per_unit,
            count,
            &filled,
            None,
        )
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

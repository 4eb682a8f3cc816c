//! What every process counts, and how it is printed. Which metrics a process has is said by the process.
//!
//! `prometheus-client` registers and encodes; [`Registry::render`] turns its OpenMetrics text into the Prometheus
//! text format 0.0.4 under the names that Linkerd's dashboards read (contract 5.4). Every labelled family has a
//! budget ([`Budgeted`]), so that no peer can make a process print or remember without bound.

mod budget;
mod process;
mod series;

pub use budget::{Budgeted, OVERFLOW};
pub use series::{Buckets, Counter, Gauge, GaugeGuard, Histogram, Series};

use prometheus_client::{
    collector::Collector,
    encoding::{EncodeLabelSet, EncodeMetric, text::encode_registry},
    registry::{Metric, Registry as Prometheus},
};
use std::{
    fmt::Write as _,
    hash::Hash,
    io::Write as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// The media type of [`Registry::render`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// How long a series outlives its last handle unless a process says otherwise (contract 5.4, `METRICS_RETAIN_IDLE`).
pub const RETAIN_IDLE: Duration = Duration::from_mins(10);

/// The metrics of a process. Cheap to clone; all clones are the same registry.
#[derive(Clone, Debug)]
pub struct Registry {
    metrics: Arc<Mutex<Prometheus>>,
    folded: Budgeted<Vec<(&'static str, String)>, Counter>,
    retain: Duration,
}

impl Registry {
    /// A registry with the metrics of any process: `process_*` and `remora_metrics_folded_total`. Series of budgeted
    /// families are forgotten `retain` after their last handle.
    pub fn new(retain: Duration) -> Self {
        // As many families as a process could sensibly have; they are never folded.
        let folded = Budgeted::new(1024, Duration::MAX, Counter::default, Counter::default());
        let registry = Self { metrics: Arc::default(), folded: folded.clone(), retain };
        let help = "Lookups of label sets beyond a family's budget, recorded in its series overflow=\"true\"";
        registry.register("remora_metrics_folded_total", help, folded);
        registry.lock().register_collector(Box::new(process::Collector::new()));
        registry
    }

    /// Adds `proxy_build_info`, as Linkerd's proxy names it.
    pub fn build_info(&self, version: &'static str, vendor: &'static str) {
        let labels = vec![("version", version.to_owned()), ("vendor", vendor.to_owned())];
        let info = prometheus_client::metrics::info::Info::new(labels);
        self.register("proxy_build", "What this process was built from", info);
    }

    /// A counter without labels. A name that ends in `_total` is printed as it is.
    pub fn counter(&self, name: &str, help: &str) -> Counter {
        let counter = Counter::default();
        self.register(name, help, counter.clone());
        counter
    }

    /// A gauge without labels.
    pub fn gauge(&self, name: &str, help: &str) -> Gauge {
        let gauge = Gauge::default();
        self.register(name, help, gauge.clone());
        gauge
    }

    /// A histogram without labels.
    pub fn histogram(&self, name: &str, help: &str, buckets: Buckets) -> Histogram {
        let histogram = Histogram::new(buckets);
        self.register(name, help, histogram.clone());
        histogram
    }

    /// A family of counters of at most `budget` label sets.
    pub fn counters<L: LabelSet>(&self, name: &str, help: &str, budget: usize) -> Budgeted<L, Counter> {
        self.family(name, help, budget, Counter::default)
    }

    /// A family of gauges of at most `budget` label sets.
    pub fn gauges<L: LabelSet>(&self, name: &str, help: &str, budget: usize) -> Budgeted<L, Gauge> {
        self.family(name, help, budget, Gauge::default)
    }

    /// A family of histograms of at most `budget` label sets.
    pub fn histograms<L: LabelSet>(
        &self,
        name: &str,
        help: &str,
        budget: usize,
        buckets: Buckets,
    ) -> Budgeted<L, Histogram> {
        self.family(name, help, budget, move || Histogram::new(buckets))
    }

    /// Any other metric, for instance one that is read when it is printed.
    pub fn register(&self, name: &str, help: &str, metric: impl Metric) {
        // prometheus-client appends what render puts back.
        let name = name.strip_suffix("_total").unwrap_or(name);
        self.lock().register(name, help, metric);
    }

    /// Metrics that are found when they are printed. `collector` must be quick and bounded.
    pub fn collect(&self, collector: impl Collector + 'static) {
        self.lock().register_collector(Box::new(collector));
    }

    /// All metrics in the Prometheus text format 0.0.4 ([`CONTENT_TYPE`]).
    pub fn render(&self) -> String {
        let mut open_metrics = String::new();
        // Encoding into a String fails only if a label set refuses to be printed; what stands is still good.
        if encode_registry(&mut open_metrics, &self.lock()).is_err() {
            tracing::warn!("a metric could not be encoded; /metrics is incomplete");
        }
        prometheus_text(&open_metrics)
    }

    /// [`Registry::render`], gzipped.
    pub fn render_gzip(&self) -> Vec<u8> {
        let text = self.render();
        let mut gzip =
            flate2::write::GzEncoder::new(Vec::with_capacity(text.len() / 8), flate2::Compression::fast());
        // Writing to a Vec cannot fail.
        let _ = gzip.write_all(text.as_bytes());
        gzip.finish().unwrap_or_default()
    }

    fn family<L: LabelSet, M: Series>(
        &self,
        name: &str,
        help: &str,
        budget: usize,
        make: impl Fn() -> M + Send + Sync + 'static,
    ) -> Budgeted<L, M> {
        let folded = self.folded.get(vec![("family", name.to_owned())]);
        let family = Budgeted::new(budget, self.retain, make, folded);
        self.register(name, help, family.clone());
        family
    }

    fn lock(&self) -> MutexGuard<'_, Prometheus> {
        self.metrics.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Registry {
    fn default() -> Self {
        Self::new(RETAIN_IDLE)
    }
}

/// Whether a gRPC status counts as a failure, by Linkerd's classification: Unknown, `DeadlineExceeded`,
/// `PermissionDenied`, Internal, Unavailable, `DataLoss`. Contract 4.4.
pub fn grpc_is_failure(code: u16) -> bool {
    matches!(code, 2 | 4 | 7 | 13 | 14 | 15)
}

/// What can label a series.
pub trait LabelSet: EncodeLabelSet + Clone + Eq + Hash + std::fmt::Debug + Send + Sync + 'static {}
impl<T: EncodeLabelSet + Clone + Eq + Hash + std::fmt::Debug + Send + Sync + 'static> LabelSet for T {}

/// A gauge whose value is asked for when it is printed.
#[derive(Clone)]
pub struct ReadGauge(Arc<dyn Fn() -> i64 + Send + Sync>);

impl ReadGauge {
    /// `read` must be quick and take no lock that a scrape could wait for.
    pub fn new(read: impl Fn() -> i64 + Send + Sync + 'static) -> Self {
        Self(Arc::new(read))
    }
}

impl std::fmt::Debug for ReadGauge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ReadGauge")
    }
}

impl EncodeMetric for ReadGauge {
    fn encode(
        &self,
        mut encoder: prometheus_client::encoding::MetricEncoder<'_>,
    ) -> Result<(), std::fmt::Error> {
        encoder.encode_gauge(&(self.0)())
    }

    fn metric_type(&self) -> prometheus_client::metrics::MetricType {
        prometheus_client::metrics::MetricType::Gauge
    }
}

/// OpenMetrics → Prometheus text 0.0.4. There a family has the name of its samples: `# TYPE x counter` with samples
/// `x_total` becomes `# TYPE x_total counter`, `info` becomes a gauge `x_info`, `unknown` is called `untyped`, and
/// units are not announced.
fn prometheus_text(open_metrics: &str) -> String {
    let mut out = String::with_capacity(open_metrics.len());
    let mut help: Option<(&str, &str)> = None;
    for line in open_metrics.lines() {
        let Some(comment) = line.strip_prefix("# ") else {
            out.push_str(line);
            out.push('\n');
            continue;
        };
        if let Some(rest) = comment.strip_prefix("HELP ") {
            help = rest.split_once(' ');
        } else if let Some((name, kind)) = comment.strip_prefix("TYPE ").and_then(|rest| rest.split_once(' '))
        {
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                other => ("", other),
            };
            // Writing to a String cannot fail.
            if let Some((_, help)) = help.take().filter(|(helped, _)| *helped == name) {
                let _ = writeln!(out, "# HELP {name}{suffix} {help}");
            }
            let _ = writeln!(out, "# TYPE {name}{suffix} {kind}");
        }
    }
    out
}

#[cfg(test)]
mod tests;

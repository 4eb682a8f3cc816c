//! A family of series that cannot grow without bound, and forgets what nobody records any more.

use super::{Counter, LabelSet, Series};
use crate::clock;
use prometheus_client::{
    encoding::{EncodeMetric, MetricEncoder},
    metrics::MetricType,
};
use remora_core::time::Time;
use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// The one label of the series that takes what is beyond a family's budget.
pub const OVERFLOW: (&str, &str) = ("overflow", "true");

/// At most a fixed number of label sets, each with its series; what is beyond is recorded in one more series,
/// labelled `overflow="true"` and nothing else, and every such lookup is counted. Cheap to clone.
///
/// A series lives as long as somebody holds its handle, and then for a time, so that a scrape sees its last value.
/// That time runs from the first scrape (or lookup beyond the budget) that finds it abandoned.
#[derive(Clone)]
pub struct Budgeted<L, M>(Arc<Family<L, M>>);

struct Family<L, M> {
    series: Mutex<HashMap<L, Kept<M>>>,
    budget: usize,
    retain: Duration,
    make: Box<dyn Fn() -> M + Send + Sync>,
    overflow: M,
    folded: Counter,
}

struct Kept<M> {
    series: M,
    abandoned: Option<Time>,
}

impl<L: LabelSet, M: Series> Budgeted<L, M> {
    /// `make` makes an empty series; `folded` counts lookups beyond `budget`.
    pub fn new(
        budget: usize,
        retain: Duration,
        make: impl Fn() -> M + Send + Sync + 'static,
        folded: Counter,
    ) -> Self {
        let overflow = make();
        let make: Box<dyn Fn() -> M + Send + Sync> = Box::new(make);
        Self(Arc::new(Family { series: Mutex::default(), budget, retain, make, overflow, folded }))
    }

    /// The series of these labels. Takes a lock and hashes: ask when configuration or a connection arrives and keep
    /// the handle, never per request.
    pub fn get(&self, labels: L) -> M {
        let mut series = self.lock();
        if let Some(kept) = series.get_mut(&labels) {
            kept.abandoned = None;
            return kept.series.clone();
        }
        if series.len() >= self.0.budget {
            forget(&mut series, self.0.retain, clock::now());
        }
        if series.len() >= self.0.budget {
            self.0.folded.inc();
            return self.0.overflow.clone();
        }
        let fresh = (self.0.make)();
        series.insert(labels, Kept { series: fresh.clone(), abandoned: None });
        fresh
    }

    /// How many label sets have their own series.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Is there no series?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<L, Kept<M>>> {
        self.0.series.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Drops what has been abandoned for `retain`, and notes what is abandoned since now. One handle is the family's own.
fn forget<L: LabelSet, M: Series>(series: &mut HashMap<L, Kept<M>>, retain: Duration, now: Time) {
    series.retain(|_, kept| {
        if kept.series.handles() > 1 {
            kept.abandoned = None;
            return true;
        }
        now.since(*kept.abandoned.get_or_insert(now)) < retain
    });
    // What a crowd left behind is given back.
    if series.len() * 4 < series.capacity() {
        series.shrink_to(series.len() * 2);
    }
}

impl<L: LabelSet, M: Series> EncodeMetric for Budgeted<L, M> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let kept: Vec<(L, M)> = {
            let mut series = self.lock();
            forget(&mut series, self.0.retain, clock::now());
            series.iter().map(|(labels, kept)| (labels.clone(), kept.series.clone())).collect()
        };
        // Encoded without the lock: nobody who needs a handle waits for a scrape.
        for (labels, series) in kept {
            series.encode(encoder.encode_family(&labels)?)?;
        }
        if self.0.folded.get() > 0 {
            self.0.overflow.encode(encoder.encode_family(&[OVERFLOW])?)?;
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        M::TYPE
    }

    fn is_empty(&self) -> bool {
        self.lock().is_empty() && self.0.folded.get() == 0
    }
}

impl<L, M> fmt::Debug for Budgeted<L, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Budgeted").field("budget", &self.0.budget).finish_non_exhaustive()
    }
}

//! Carriers between two of our proxies and their streams. The streams are also connections of `tcp_*`.

use super::labels::{Labels, label};
use remora_core::mux::Error;
use remora_runtime::metrics::{Budgeted, Counter, Gauge, GaugeGuard, Registry};
use std::sync::Arc;

/// `remora_mux_*` of one direction.
pub struct MuxMetrics {
    direction: &'static str,
    opened: Counter,
    carriers: Gauge,
    streams: Gauge,
    streams_opened: Counter,
    refused: Budgeted<Labels, Counter>,
    errors: Budgeted<Labels, Counter>,
}

impl MuxMetrics {
    /// Inbound and outbound.
    pub fn register(registry: &Registry, budget: usize) -> [Arc<Self>; 2] {
        let opened = registry.counters("remora_mux_carriers_opened_total", "Carriers opened", budget);
        let carriers = registry.gauges("remora_mux_carriers", "Carriers open now", budget);
        let streams = registry.gauges("remora_mux_streams", "Streams open now on carriers", budget);
        let streams_opened =
            registry.counters("remora_mux_streams_opened_total", "Streams opened on carriers", budget);
        let refused = registry.counters(
            "remora_mux_streams_refused_total",
            "Streams that were not taken, and why",
            budget,
        );
        let errors = registry.counters(
            "remora_mux_errors_total",
            "Carriers that ended by an error, and which",
            budget,
        );
        ["inbound", "outbound"].map(|direction| {
            let labels = || -> Labels { vec![label("direction", direction)] };
            Arc::new(Self {
                direction,
                opened: opened.get(labels()),
                carriers: carriers.get(labels()),
                streams: streams.get(labels()),
                streams_opened: streams_opened.get(labels()),
                refused: refused.clone(),
                errors: errors.clone(),
            })
        })
    }

    /// Counts a carrier until the guard is dropped.
    pub fn carrier(&self) -> GaugeGuard {
        self.opened.inc();
        self.carriers.guard()
    }

    /// Counts a stream until the guard is dropped.
    pub fn stream(&self) -> GaugeGuard {
        self.streams_opened.inc();
        self.streams.guard()
    }

    /// Counts a stream that was not taken.
    pub fn refused(&self, reason: &'static str) {
        self.refused.get(vec![label("direction", self.direction), label("reason", reason)]).inc();
    }

    /// Counts a carrier that ended by an error.
    pub fn failed(&self, error: Error) {
        self.errors.get(vec![label("direction", self.direction), label("error", error.label())]).inc();
    }
}

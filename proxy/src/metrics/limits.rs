//! What exceeded the limits of Services.

use super::labels::{Labels, label};
use remora_core::balance::Limited;
use remora_runtime::metrics::{Budgeted, Counter, Registry};

/// Requests and connections that were refused, of all Services together.
#[derive(Clone)]
pub struct LimitMetrics {
    exceeded: Budgeted<Labels, Counter>,
}

impl LimitMetrics {
    pub fn register(registry: &Registry) -> Self {
        let exceeded = registry.counters(
            "remora_outbound_limited_total",
            "Requests and connections refused because a Service's limit (limits.remora.io/*) was reached",
            Limited::ALL.len(),
        );
        Self { exceeded }
    }

    pub fn exceeded(&self, what: Limited) {
        self.exceeded.get(vec![label("limit", what.as_str())]).inc();
    }
}

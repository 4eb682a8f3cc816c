//! What breakers do. How many endpoints they leave out now is among those of `outbound_http_balancer_endpoints`.

use super::labels::{Labels, label};
use remora_core::breaker::{Change, Why};
use remora_runtime::metrics::{Budgeted, Counter, Registry};

/// Changes of breakers, of all balancers together.
#[derive(Clone)]
pub struct BreakerMetrics {
    changes: Budgeted<Labels, Counter>,
}

/// Three changes for four reasons at most, and two for one.
const SERIES: usize = 16;

impl BreakerMetrics {
    pub fn register(registry: &Registry) -> Self {
        let changes = registry.counters(
            "remora_outbound_breaker_changes_total",
            "Endpoints that a breaker left out (shut), did not because too many were out (kept), or let back (opened by a \
             probe, returned because others went)",
            SERIES,
        );
        Self { changes }
    }

    pub fn changed(&self, change: Change) {
        match change {
            Change::Shut(why, _) => self.count("shut", reason(why)).inc(),
            Change::Kept(why) => self.count("kept", reason(why)).inc(),
            Change::Opened => self.count("opened", "probe").inc(),
        }
    }

    /// So many came back because too few were left.
    pub fn let_back(&self, endpoints: usize) {
        if endpoints > 0 {
            self.count("returned", "too few left").inc_by(endpoints as u64);
        }
    }

    fn count(&self, change: &str, reason: &str) -> Counter {
        self.changes.get(vec![label("change", change), label("reason", reason)])
    }
}

fn reason(why: Why) -> &'static str {
    match why {
        Why::InARow => "consecutive failures",
        Why::Rate => "success rate",
        Why::Refused => "connection refused",
        Why::Probe => "probe",
    }
}

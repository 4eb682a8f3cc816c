//! What the certificate client counts, by Linkerd's names. Contract 2.4.

use crate::metrics::{Counter, Gauge, Registry};
use prometheus_client::encoding::EncodeLabelSet;
use remora_core::time::UnixTime;

/// The `control_identity_cert_*` families.
#[derive(Clone)]
pub struct CertifyMetrics {
    expires: Gauge,
    refreshed: Gauge,
    ok: Counter,
    error: Counter,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelSet)]
struct Outcome {
    result: &'static str,
}

impl CertifyMetrics {
    /// Registers the three families.
    pub fn register(registry: &Registry) -> Self {
        let refreshes = registry.counters::<Outcome>(
            "control_identity_cert_refreshes_total",
            "Attempts to get a certificate, by result",
            2,
        );
        Self {
            expires: registry.gauge(
                "control_identity_cert_expiration_timestamp_seconds",
                "Time when the certificate in use expires, in seconds since 1970; 0 before the first",
            ),
            refreshed: registry.gauge(
                "control_identity_cert_refresh_timestamp_seconds",
                "Time when the certificate in use was received, in seconds since 1970; 0 before the first",
            ),
            ok: refreshes.get(Outcome { result: "ok" }),
            error: refreshes.get(Outcome { result: "error" }),
        }
    }

    pub(super) fn refreshed(&self, now: UnixTime, expires: UnixTime) {
        self.expires.set(seconds(expires));
        self.refreshed.set(seconds(now));
        self.ok.inc();
    }

    pub(super) fn failed(&self) {
        self.error.inc();
    }
}

fn seconds(time: UnixTime) -> i64 {
    i64::try_from(time.0.as_secs()).unwrap_or(i64::MAX)
}

//! What this process counts.

use prometheus_client::encoding::EncodeLabelSet;
use remora_runtime::{
    control::AcceptMetrics,
    metrics::{Budgeted, Counter, Gauge, Registry},
};

/// Calls of one of the three APIs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Api {
    /// `Destination.Get`.
    Endpoints,
    /// `Destination.GetProfile`.
    Profile,
    /// `OutboundPolicies.Get` and `Watch`.
    Outbound,
    /// `InboundServerPolicies.GetPort` and `WatchPort`.
    Inbound,
}

impl Api {
    /// As metrics and logs name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Endpoints => "endpoints",
            Self::Profile => "profile",
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }
}

/// Labels of a family by API.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByApi {
    api: &'static str,
}

/// Labels of a family by API and gRPC status.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByStatus {
    api: &'static str,
    grpc_status: String,
}

/// What the servers count. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    streams: Budgeted<ByApi, Gauge>,
    updates: Budgeted<ByApi, Counter>,
    overflows: Budgeted<ByApi, Counter>,
    refused: Budgeted<ByStatus, Counter>,
    /// Connections, open and refused.
    pub connections: AcceptMetrics,
    /// Manifest files that cannot be read as they are now.
    pub invalid_files: Gauge,
    /// Events taken into the index.
    pub events: Counter,
}

impl Metrics {
    /// Registers them.
    pub fn new(registry: &Registry) -> Self {
        Self {
            streams: registry.gauges("remora_destination_streams", "Streams open to proxies", 8),
            updates: registry.counters("remora_destination_updates_total", "Messages sent to proxies", 8),
            overflows: registry.counters(
                "remora_destination_overflows_total",
                "Streams ended because the proxy did not read its updates",
                8,
            ),
            refused: registry.counters(
                "remora_destination_refused_total",
                "Requests and streams that ended with an error, by gRPC status",
                64,
            ),
            connections: AcceptMetrics::register(registry, "remora_destination"),
            invalid_files: registry.gauge(
                "remora_destination_invalid_files",
                "Manifest files that cannot be read as they are now",
            ),
            events: registry.counter(
                "remora_destination_events_total",
                "Changes of objects that were taken into the index",
            ),
        }
    }

    /// Streams of an API that are open.
    pub fn streams(&self, api: Api) -> Gauge {
        self.streams.get(ByApi { api: api.as_str() })
    }

    /// Messages sent on streams of an API.
    pub fn updates(&self, api: Api) -> Counter {
        self.updates.get(ByApi { api: api.as_str() })
    }

    /// Streams of an API that ended because nobody read.
    pub fn overflows(&self, api: Api) -> Counter {
        self.overflows.get(ByApi { api: api.as_str() })
    }

    /// An answer that was an error.
    pub fn refused(&self, api: Api, code: tonic::Code) {
        self.refused.get(ByStatus { api: api.as_str(), grpc_status: format!("{code:?}") }).inc();
    }
}

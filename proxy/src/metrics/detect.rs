//! What connections turned out to be: verdicts of detection, protocols, and what is open now. Every value is known
//! before traffic comes, so every handle is resolved at the start.

use super::labels::{Labels, label};
use crate::sniff::{Detected, First};
use remora_core::{detect::Protocol, header::SessionProtocol, time::Time};
use remora_runtime::{
    clock,
    metrics::{Buckets, Counter, Gauge, GaugeGuard, Histogram, Registry},
};

/// `{inbound,outbound}_tcp_detect_http_*`.
pub struct Detect {
    http1: Counter,
    http2: Counter,
    not_http: Counter,
    server_first: Counter,
    read_timeout: Counter,
    error: Counter,
    duration: Histogram,
}

impl Detect {
    pub fn register(registry: &Registry, direction: &str) -> Self {
        let results = registry.counters::<Labels>(
            &format!("{direction}_tcp_detect_http_results_total"),
            "Verdicts of protocol detection",
            6,
        );
        let result = |result: &str| results.get(vec![label("result", result)]);
        Self {
            http1: result("http/1"),
            http2: result("http/2"),
            not_http: result("not_http"),
            server_first: result("server_first"),
            read_timeout: result("read_timeout"),
            error: result("error"),
            duration: registry.histogram(
                &format!("{direction}_tcp_detect_http_duration_seconds"),
                "Time from the accept to the verdict of protocol detection",
                Buckets::QUEUE_SECONDS,
            ),
        }
    }

    /// Counts a verdict on a connection that began at `began`.
    pub fn verdict<U>(&self, detected: &Detected<U>, began: Time) {
        let result = match &detected.first {
            _ if detected.timed_out => &self.read_timeout,
            First::Server(_) => &self.server_first,
            First::Client(Protocol::Http1, _) => &self.http1,
            First::Client(Protocol::Http2, _) => &self.http2,
            First::Client(Protocol::Tls | Protocol::Opaque, _) => &self.not_http,
        };
        result.inc();
        self.duration.record(clock::now().since(began));
    }

    /// The connection ended before there was a verdict.
    pub fn lost(&self, began: Time) {
        self.error.inc();
        self.duration.record(clock::now().since(began));
    }
}

/// What a connection is served as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    Http1,
    Http2,
    Opaque,
    /// Bytes that are known to be the application's TLS.
    Tls,
}

impl From<SessionProtocol> for Served {
    fn from(version: SessionProtocol) -> Self {
        match version {
            SessionProtocol::Http1 => Self::Http1,
            SessionProtocol::Http2 => Self::Http2,
        }
    }
}

impl Served {
    /// As Linkerd's proxy names it.
    const ALL: [(Self, &'static str); 4] =
        [(Self::Http1, "http/1"), (Self::Http2, "http/2"), (Self::Opaque, "opaq"), (Self::Tls, "tls")];
}

/// The connections of one direction by what they are served as.
pub struct Connections {
    /// Outbound: `outbound_tcp_protocol_connections_total`.
    total: Option<[Counter; 4]>,
    open: [Gauge; 4],
}

impl Connections {
    /// Both directions: inbound, outbound.
    pub fn register(registry: &Registry) -> (Self, Self) {
        let open = registry.gauges::<Labels>(
            "remora_connections",
            "Connections being served, by direction and what they are served as",
            8,
        );
        let open = |direction: &str| {
            Served::ALL
                .map(|(_, name)| open.get(vec![label("direction", direction), label("protocol", name)]))
        };
        let total = registry.counters::<Labels>(
            "outbound_tcp_protocol_connections_total",
            "Connections by protocol",
            4,
        );
        let total = Served::ALL.map(|(_, name)| total.get(vec![label("protocol", name)]));
        (Self { total: None, open: open("inbound") }, Self { total: Some(total), open: open("outbound") })
    }

    /// Counts a connection, as open until the guard is dropped.
    #[must_use]
    pub fn serve(&self, served: Served) -> Option<GaugeGuard> {
        let at = Served::ALL.iter().position(|(one, _)| *one == served)?;
        if let Some(total) = self.total.as_ref().and_then(|total| total.get(at)) {
            total.inc();
        }
        self.open.get(at).map(Gauge::guard)
    }

    /// How many are open, by name, for `/state.json`.
    pub fn open(&self) -> impl Iterator<Item = (&'static str, i64)> {
        Served::ALL.iter().zip(&self.open).map(|((_, name), open)| (*name, open.get()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_by_default_is_a_timeout_and_no_verdict_an_error() {
        let registry = Registry::default();
        let detect = Detect::register(&registry, "inbound");
        let began = clock::now();
        let opaque = |timed_out| Detected::<()> { first: First::Client(Protocol::Opaque, None), timed_out };
        detect.verdict(&opaque(true), began);
        detect.verdict(&opaque(false), began);
        detect.lost(began);
        let text = registry.render();
        for (result, count) in [("read_timeout", 1), ("not_http", 1), ("error", 1), ("http/1", 0)] {
            let line = format!("inbound_tcp_detect_http_results_total{{result=\"{result}\"}} {count}");
            assert!(text.lines().any(|printed| printed == line), "{line} is missing in {text}");
        }
        assert!(text.contains("inbound_tcp_detect_http_duration_seconds_count 3"), "{text}");
    }

    #[test]
    fn connections_are_counted_by_what_they_are_served_as() {
        let (inbound, outbound) = Connections::register(&Registry::default());
        let (_one, two) = (inbound.serve(Served::Http2), outbound.serve(Served::Tls));
        assert_eq!(inbound.open().find(|(name, _)| *name == "http/2"), Some(("http/2", 1)));
        drop(two);
        assert!(outbound.open().all(|(_, open)| open == 0));
        assert!(inbound.total.is_none());
        assert_eq!(outbound.total.unwrap().map(|total| total.get()), [0, 0, 0, 1]);
    }
}

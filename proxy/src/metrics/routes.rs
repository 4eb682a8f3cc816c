//! The outbound typed families: requests by route and backend, of HTTP and of gRPC. Handles are resolved when configuration
//! arrives. Contract 5.4; labels beyond it as Linkerd's proxy has them.

use super::{
    few::Few,
    labels::{self, Labels, label},
};
use crate::fault::Fault;
use remora_core::{
    policy::ResourceRef,
    retry::{Decision, Reason},
    route::FailWith,
    time::Time,
};
use remora_runtime::{
    clock,
    metrics::{Buckets, Budgeted, Counter, Histogram, Registry},
};
use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// Whether configuration calls what it routes HTTP or gRPC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Http,
    Grpc,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Grpc => "grpc",
        }
    }
}

/// How a response ended, as far as it is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct End {
    /// The HTTP status.
    pub status: Option<u16>,
    /// The gRPC status.
    pub grpc: Option<u16>,
    /// Why there is less than that, in Linkerd's words for these families.
    pub error: Option<&'static str>,
}

impl End {
    /// Of a request that this proxy answered. What a route asks for (a redirect, an injected failure) counts by its
    /// status, as Linkerd's proxy counts it.
    fn without_response(fault: &Fault) -> Self {
        match fault {
            Fault::Redirected { status, .. } => Self { status: Some(status.as_u16()), ..Self::default() },
            Fault::Injected { with: FailWith::Http(status), .. } => {
                Self { status: Some(*status), grpc: Some(fault.grpc_code()), error: None }
            }
            Fault::Injected { with: FailWith::Grpc(code), .. } => {
                Self { grpc: Some(*code), ..Self::default() }
            }
            _ => Self { error: Some(fault.route_error()), ..Self::default() },
        }
    }
}

/// A family by `http_status` or `grpc_status`, and `error`.
struct Statuses {
    kind: Kind,
    labels: Labels,
    family: Budgeted<Labels, Counter>,
    known: Few<(Option<u16>, Option<&'static str>), Counter>,
}

impl Statuses {
    fn new(kind: Kind, family: &Budgeted<Labels, Counter>, labels: Labels) -> Self {
        Self { kind, labels, family: family.clone(), known: Few::default() }
    }

    fn count(&self, end: End) {
        let status = match self.kind {
            Kind::Http => end.status,
            Kind::Grpc => end.grpc,
        };
        let resolve = || {
            let mut labels = self.labels.clone();
            labels.push(match self.kind {
                Kind::Http => label("http_status", optional(status)),
                Kind::Grpc => label("grpc_status", grpc_name(status)),
            });
            labels.push(label("error", end.error.unwrap_or("")));
            self.family.get(labels)
        };
        self.known.count((status, end.error), resolve, Counter::inc);
    }
}

/// A number, or nothing.
pub fn optional(number: Option<u16>) -> String {
    number.map(|number| number.to_string()).unwrap_or_default()
}

/// A gRPC status by the name that Linkerd's proxy prints; what is unknown or missing is `UNKNOWN`.
fn grpc_name(code: Option<u16>) -> &'static str {
    match code {
        Some(0) => "OK",
        Some(1) => "CANCELLED",
        Some(3) => "INVALID_ARGUMENT",
        Some(4) => "DEADLINE_EXCEEDED",
        Some(5) => "NOT_FOUND",
        Some(6) => "ALREADY_EXISTS",
        Some(7) => "PERMISSION_DENIED",
        Some(8) => "RESOURCE_EXHAUSTED",
        Some(9) => "FAILED_PRECONDITION",
        Some(10) => "ABORTED",
        Some(11) => "OUT_OF_RANGE",
        Some(12) => "UNIMPLEMENTED",
        Some(13) => "INTERNAL",
        Some(14) => "UNAVAILABLE",
        Some(15) => "DATA_LOSS",
        Some(16) => "UNAUTHENTICATED",
        Some(_) | None => "UNKNOWN",
    }
}

/// `outbound_{http,grpc}_route_*` of one route and host name.
pub struct RouteSeries {
    durations: Histogram,
    statuses: Statuses,
    /// Sizes of the requests' data frames.
    pub frames: Histogram,
}

impl RouteSeries {
    fn ended(&self, end: End, took: Duration) {
        self.durations.record(took);
        self.statuses.count(end);
    }

    /// There was no response.
    pub fn failed(&self, fault: &Fault, started: Time) {
        self.ended(End::without_response(fault), clock::now().since(started));
    }
}

/// `outbound_{http,grpc}_route_backend_*` of one backend of a route.
pub struct BackendMetrics {
    pub requests: Counter,
    durations: Histogram,
    statuses: Statuses,
    frames: Histogram,
}

impl BackendMetrics {
    fn ended(&self, end: End, took: Duration) {
        self.durations.record(took);
        self.statuses.count(end);
    }

    /// There was no response.
    pub fn failed(&self, fault: &Fault, sent: Time) {
        self.ended(End::without_response(fault), clock::now().since(sent));
    }
}

/// `outbound_{http,grpc}_route_retry_*` of one route.
pub struct RetryMetrics {
    requests: Counter,
    successes: Counter,
    limit_exceeded: Counter,
    overflow: Counter,
}

impl RetryMetrics {
    /// Counts what was decided of a request after `made` retries.
    pub fn count(&self, decision: Decision, made: u32) {
        match decision {
            Decision::Again(_) => self.requests.inc(),
            Decision::Not(Reason::Answered) if made > 0 => self.successes.inc(),
            Decision::Not(Reason::Limit) => self.limit_exceeded.inc(),
            Decision::Not(Reason::BodyTooLong) => self.overflow.inc(),
            Decision::Not(_) => {}
        }
    }
}

/// `remora_outbound_{http,grpc}_route_mirror_requests_total` of one route, by `result`.
pub struct MirrorMetrics {
    /// Those that were answered to the end.
    pub answered: Counter,
    /// Those that had no answer, half of one, or none in time.
    pub failed: Counter,
    /// Requests that were not mirrored because too many copies were under way.
    pub skipped: Counter,
}

/// Where the end of an outbound response is counted: its route, its backend, and since when.
#[derive(Default)]
pub struct Routed {
    pub route: Option<(Arc<RouteSeries>, Time)>,
    pub backend: Option<(Arc<BackendMetrics>, Time)>,
}

impl Routed {
    /// A data frame of the response has come.
    pub fn frame(&self, bytes: usize) {
        if let Some((backend, _)) = &self.backend {
            backend.frames.observe(bytes as u64);
        }
    }

    /// The response ended `now`.
    pub fn ended(&self, end: End, now: Time) {
        if let Some((route, started)) = &self.route {
            route.ended(end, now.since(*started));
        }
        if let Some((backend, sent)) = &self.backend {
            backend.ended(end, now.since(*sent));
        }
    }
}

/// The series of one route: one set, or one for each host name that requests have, if they are labelled with it.
pub struct RouteMetrics {
    nameless: Arc<RouteSeries>,
    hosts: Option<Hosts>,
}

struct Hosts {
    labels: Labels,
    families: Families,
    known: Mutex<HashMap<Box<str>, Arc<RouteSeries>>>,
}

/// Host names remembered per route. Clients choose them: the families' budget bounds their series, this what a route
/// keeps.
const KEPT_HOSTS: usize = 64;

impl RouteMetrics {
    /// The series of a request with this authority.
    pub fn of(&self, authority: &str) -> Arc<RouteSeries> {
        let Some((hosts, name)) = self.hosts.as_ref().zip(host_name(authority)) else {
            return self.nameless.clone();
        };
        let mut known = hosts.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(series) = known.get(name) {
            return series.clone();
        }
        let mut labels = hosts.labels.clone();
        labels.push(label("hostname", name.to_ascii_lowercase()));
        let series = hosts.families.route(labels);
        if known.len() >= KEPT_HOSTS {
            known.clear();
        }
        known.insert(name.into(), series.clone());
        series
    }
}

/// The DNS name in an authority; addresses and what cannot be a name are none.
fn host_name(authority: &str) -> Option<&str> {
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    let named = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    let is_name =
        (1..=253).contains(&host.len()) && host.bytes().all(named) && host.parse::<IpAddr>().is_err();
    is_name.then_some(host)
}

/// The outbound families.
pub struct RouteFamilies {
    http: Families,
    grpc: Families,
    hostnames: bool,
}

#[derive(Clone)]
struct Families {
    kind: Kind,
    durations: Budgeted<Labels, Histogram>,
    statuses: Budgeted<Labels, Counter>,
    frames: Budgeted<Labels, Histogram>,
    retry_requests: Budgeted<Labels, Counter>,
    retry_successes: Budgeted<Labels, Counter>,
    retry_limit_exceeded: Budgeted<Labels, Counter>,
    retry_overflow: Budgeted<Labels, Counter>,
    mirror_requests: Budgeted<Labels, Counter>,
    backend_requests: Budgeted<Labels, Counter>,
    backend_durations: Budgeted<Labels, Histogram>,
    backend_statuses: Budgeted<Labels, Counter>,
    backend_frames: Budgeted<Labels, Histogram>,
}

impl RouteFamilies {
    /// `hostnames`: requests are labelled with the name of their host.
    pub fn register(registry: &Registry, budget: usize, hostnames: bool) -> Self {
        let of = |kind| Families::register(registry, budget, kind);
        Self { http: of(Kind::Http), grpc: of(Kind::Grpc), hostnames }
    }

    pub fn route(&self, kind: Kind, parent: &ResourceRef, route: &ResourceRef) -> Arc<RouteMetrics> {
        let labels = route_labels(parent, route);
        let families = self.of(kind);
        let hosts = || Hosts { labels: labels.clone(), families: families.clone(), known: Mutex::default() };
        let hosts = self.hostnames.then(hosts);
        Arc::new(RouteMetrics { nameless: families.route(labels), hosts })
    }

    /// Of a route whose requests may be sent again.
    pub fn retries(&self, kind: Kind, parent: &ResourceRef, route: &ResourceRef) -> RetryMetrics {
        let (labels, families) = (route_labels(parent, route), self.of(kind));
        RetryMetrics {
            requests: families.retry_requests.get(labels.clone()),
            successes: families.retry_successes.get(labels.clone()),
            limit_exceeded: families.retry_limit_exceeded.get(labels.clone()),
            overflow: families.retry_overflow.get(labels),
        }
    }

    pub fn mirrors(&self, kind: Kind, parent: &ResourceRef, route: &ResourceRef) -> MirrorMetrics {
        let result = |result: &'static str| {
            let mut labels = route_labels(parent, route);
            labels.push(label("result", result));
            self.of(kind).mirror_requests.get(labels)
        };
        MirrorMetrics { answered: result("answered"), failed: result("failed"), skipped: result("skipped") }
    }

    pub fn backend(
        &self,
        kind: Kind,
        parent: &ResourceRef,
        route: &ResourceRef,
        backend: &ResourceRef,
    ) -> Arc<BackendMetrics> {
        let mut labels = route_labels(parent, route);
        labels::backend(&mut labels, backend);
        let families = self.of(kind);
        Arc::new(BackendMetrics {
            requests: families.backend_requests.get(labels.clone()),
            durations: families.backend_durations.get(labels.clone()),
            frames: families.backend_frames.get(labels.clone()),
            statuses: Statuses::new(kind, &families.backend_statuses, labels),
        })
    }

    fn of(&self, kind: Kind) -> &Families {
        match kind {
            Kind::Http => &self.http,
            Kind::Grpc => &self.grpc,
        }
    }
}

impl Families {
    fn register(registry: &Registry, budget: usize, kind: Kind) -> Self {
        let name = |rest: &str| format!("outbound_{}_route_{rest}", kind.as_str());
        let counters = |rest: &str, help: &str| registry.counters(&name(rest), help, budget);
        let histograms =
            |rest: &str, help: &str, buckets| registry.histograms(&name(rest), help, budget, buckets);
        Self {
            kind,
            durations: histograms(
                "request_duration_seconds",
                "Time from a request's head to the end of its response",
                Buckets::ROUTE_SECONDS,
            ),
            statuses: counters("request_statuses_total", "Requests that have ended, by route and status"),
            frames: histograms(
                "request_frame_size_bytes",
                "Sizes of the data frames of requests",
                Buckets::FRAME_BYTES,
            ),
            retry_requests: counters("retry_requests_total", "Requests that were sent again, each time"),
            retry_successes: counters(
                "retry_successes_total",
                "Requests that were sent again and then answered with no failure",
            ),
            retry_limit_exceeded: counters(
                "retry_limit_exceeded_total",
                "Failed requests that were not sent again because they had been as often as one may be",
            ),
            retry_overflow: counters(
                "retry_overflow_total",
                "Failed requests that were not sent again because their body is longer than what is kept",
            ),
            mirror_requests: registry.counters(
                &format!("remora_outbound_{}_route_mirror_requests_total", kind.as_str()),
                "Copies of requests that were sent to a mirror, by what became of them",
                budget,
            ),
            backend_requests: counters(
                "backend_requests_total",
                "Requests sent to a route's backend, retries included",
            ),
            backend_durations: histograms(
                "backend_response_duration_seconds",
                "Time from sending a request to a backend to the end of its response",
                Buckets::BACKEND_SECONDS,
            ),
            backend_statuses: counters(
                "backend_response_statuses_total",
                "Responses that have ended, by backend and status",
            ),
            backend_frames: histograms(
                "backend_response_frame_size_bytes",
                "Sizes of the data frames of responses",
                Buckets::FRAME_BYTES,
            ),
        }
    }

    fn route(&self, labels: Labels) -> Arc<RouteSeries> {
        Arc::new(RouteSeries {
            durations: self.durations.get(labels.clone()),
            frames: self.frames.get(labels.clone()),
            statuses: Statuses::new(self.kind, &self.statuses, labels),
        })
    }
}

fn route_labels(parent: &ResourceRef, route: &ResourceRef) -> Labels {
    let mut labels = Labels::new();
    labels::parent(&mut labels, parent);
    labels::resource(&mut labels, labels::ROUTE, route);
    labels.push(label("route_namespace", &route.namespace));
    labels
}

#[cfg(test)]
mod tests;

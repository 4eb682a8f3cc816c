//! Inbound requests: the series of a connection's requests by the route and authorization that they meet, and the typed
//! inbound families. Contract 5.4; labels beyond it as Linkerd's proxy has them.

use super::{
    labels::{self, Labels, label},
    requests::RequestMetrics,
    routes::{End, Kind, optional},
};
use crate::inbound::Connection;
use remora_core::policy::{self, Permit, Refusal, Refused, ResourceRef, ServerPolicy, ServerProtocol};
use remora_runtime::metrics::{Buckets, Budgeted, Counter, Histogram, Registry};
use std::sync::{Arc, Mutex, PoisonError};

/// The request series of one inbound connection, by the route and authorization that requests meet.
pub struct InboundRequests {
    connection: Connection,
    /// Whether requests are labelled with their authority.
    authority: bool,
    known: Mutex<Vec<Known>>,
}

/// Routes and authorizations remembered per connection; the policy's own are few.
const KEPT_ROUTES: usize = 16;

struct Known {
    server: Arc<ResourceRef>,
    route: Option<Arc<ResourceRef>>,
    authorization: Option<Arc<ResourceRef>>,
    /// Of a refused request.
    policies: Option<Arc<str>>,
    authority: Option<Box<str>>,
    metrics: Arc<RequestMetrics>,
    authorized: Counter,
}

impl InboundRequests {
    /// `authority`: requests are labelled with what their client calls this server. Clients choose it: the families'
    /// budget bounds the series.
    pub fn new(connection: &Connection, authority: bool) -> Self {
        Self { connection: connection.clone(), authority, known: Mutex::default() }
    }

    /// The series of a request, which also counts it as allowed or denied.
    pub fn of(
        &self,
        metrics: &super::Metrics,
        server: &ServerPolicy,
        permit: Result<&Permit, &(Refusal, Refused)>,
        authority: &str,
    ) -> Arc<RequestMetrics> {
        // No host has a longer name, and no port more digits.
        let authority = (self.authority && (1..=260).contains(&authority.len())).then_some(authority);
        let (route, authorization) = match permit {
            Ok(permit) => (Some(permit.route), Some(&permit.authorization)),
            Err((refusal, _)) => (refusal.route, None),
        };
        let route = route.and_then(|i| policy::routes(server).get(i)).map(|route| &route.route.meta);
        let policies = permit.err().map(|(_, refused)| &refused.policies);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        // The policy may have changed under the connection: another server with a route of the same name.
        let same = |one: &&Known| {
            same(Some(&one.server), Some(&server.meta))
                && same(one.route.as_ref(), route)
                && same(one.authorization.as_ref(), authorization)
                && one.policies.as_ref() == policies
                && one.authority.as_deref() == authority
        };
        if let Some(one) = known.iter().find(same) {
            one.authorized.inc();
            return one.metrics.clone();
        }
        let mut labels: Labels = vec![label("direction", "inbound")];
        if let Some(authority) = authority {
            labels.push(label("authority", authority));
        }
        labels::target(&mut labels, self.connection.target);
        labels::client_tls(&mut labels, &self.connection);
        labels::server(&mut labels, server, self.connection.target.port());
        if let Some(route) = route {
            labels::resource(&mut labels, labels::ROUTE, route);
        }
        if let Some(authorization) = authorization {
            labels::resource(&mut labels, labels::AUTHZ, authorization);
        }
        let authorized = metrics.http_authorized(labels.clone(), permit);
        let mut requests = metrics.http.of(labels);
        requests.faults = Some(metrics.errors.of_requests());
        let port = self.connection.target.port();
        let admitted = route.filter(|_| permit.is_ok());
        requests.route = admitted.map(|route| metrics.inbound_routes.route(server, port, route));
        let one = Known {
            server: server.meta.clone(),
            route: route.cloned(),
            authorization: authorization.cloned(),
            policies: policies.cloned(),
            authority: authority.map(Into::into),
            metrics: Arc::new(requests),
            authorized,
        };
        one.authorized.inc();
        let found = one.metrics.clone();
        if known.len() >= KEPT_ROUTES {
            known.clear();
        }
        known.push(one);
        found
    }
}

fn kind(server: &ServerPolicy) -> Kind {
    if matches!(server.protocol, ServerProtocol::Grpc { .. }) { Kind::Grpc } else { Kind::Http }
}

fn same(known: Option<&Arc<ResourceRef>>, asked: Option<&Arc<ResourceRef>>) -> bool {
    match (known, asked) {
        (Some(known), Some(asked)) => Arc::ptr_eq(known, asked) || known == asked,
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    }
}

/// `inbound_{http,grpc}_*` of one route of a server.
pub struct InboundRoute {
    pub requests: Counter,
    request_durations: Histogram,
    response_durations: Histogram,
    pub request_frames: Histogram,
    pub response_frames: Histogram,
    kind: Kind,
    labels: Labels,
    statuses: Budgeted<Labels, Counter>,
}

impl InboundRoute {
    /// The counter of responses that end so.
    pub fn status(&self, end: End) -> Counter {
        let status = match self.kind {
            Kind::Http => end.status,
            Kind::Grpc => end.grpc,
        };
        let mut labels = self.labels.clone();
        labels.push(label("status", optional(status)));
        self.statuses.get(labels)
    }

    /// A response has ended that long after its request's head. The proxy sends a request on as soon as it has its
    /// head, so that both durations are this one.
    pub fn took(&self, latency: std::time::Duration) {
        self.request_durations.record(latency);
        self.response_durations.record(latency);
    }
}

/// The inbound families, and the series of the routes that connections have met: they do not depend on the client.
pub struct InboundFamilies {
    http: InboundKind,
    grpc: InboundKind,
    known: Mutex<Vec<KnownRoute>>,
}

/// Routes remembered; a pod's policies are few.
const KEPT_SERIES: usize = 64;

struct KnownRoute {
    server: Arc<ResourceRef>,
    route: Arc<ResourceRef>,
    port: u16,
    kind: Kind,
    series: Arc<InboundRoute>,
}

#[derive(Clone)]
struct InboundKind {
    requests: Budgeted<Labels, Counter>,
    request_durations: Budgeted<Labels, Histogram>,
    response_durations: Budgeted<Labels, Histogram>,
    request_frames: Budgeted<Labels, Histogram>,
    response_frames: Budgeted<Labels, Histogram>,
    statuses: Budgeted<Labels, Counter>,
}

impl InboundFamilies {
    pub fn register(registry: &Registry, budget: usize) -> Self {
        let of = |kind| InboundKind::register(registry, budget, kind);
        Self { http: of(Kind::Http), grpc: of(Kind::Grpc), known: Mutex::default() }
    }

    /// The series of a route of the server of a port.
    pub fn route(&self, server: &ServerPolicy, port: u16, route: &Arc<ResourceRef>) -> Arc<InboundRoute> {
        let kind = kind(server);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |one: &&KnownRoute| {
            (one.port, one.kind) == (port, kind)
                && same(Some(&one.server), Some(&server.meta))
                && same(Some(&one.route), Some(route))
        };
        if let Some(one) = known.iter().find(same) {
            return one.series.clone();
        }
        let series = Arc::new(self.resolve(kind, server, port, route));
        if known.len() >= KEPT_SERIES {
            known.clear();
        }
        let (server, route) = (server.meta.clone(), route.clone());
        known.push(KnownRoute { server, route, port, kind, series: series.clone() });
        series
    }

    fn resolve(&self, kind: Kind, server: &ServerPolicy, port: u16, route: &ResourceRef) -> InboundRoute {
        let mut labels = Labels::new();
        labels::resource(&mut labels, labels::PARENT, &server.meta);
        labels.push(label("parent_port", port));
        labels::resource(&mut labels, labels::ROUTE, route);
        let families = match kind {
            Kind::Http => &self.http,
            Kind::Grpc => &self.grpc,
        };
        InboundRoute {
            requests: families.requests.get(labels.clone()),
            request_durations: families.request_durations.get(labels.clone()),
            response_durations: families.response_durations.get(labels.clone()),
            request_frames: families.request_frames.get(labels.clone()),
            response_frames: families.response_frames.get(labels.clone()),
            kind,
            labels,
            statuses: families.statuses.clone(),
        }
    }
}

impl InboundKind {
    fn register(registry: &Registry, budget: usize, kind: Kind) -> Self {
        let name = |rest: &str| format!("inbound_{}_{rest}", kind.as_str());
        let counters = |rest: &str, help: &str| registry.counters(&name(rest), help, budget);
        let histograms =
            |rest: &str, help: &str, buckets| registry.histograms(&name(rest), help, budget, buckets);
        Self {
            requests: counters("requests_total", "Requests that policy admitted, by route"),
            request_durations: histograms(
                "request_duration_seconds",
                "Time from a request's head to the end of its response",
                Buckets::BACKEND_SECONDS,
            ),
            response_durations: histograms(
                "response_duration_seconds",
                "Time from sending a request to the application to the end of its response",
                Buckets::ROUTE_SECONDS,
            ),
            request_frames: histograms(
                "request_frame_size_bytes",
                "Sizes of the data frames of requests",
                Buckets::FRAME_BYTES,
            ),
            response_frames: histograms(
                "response_frame_size_bytes",
                "Sizes of the data frames of responses",
                Buckets::FRAME_BYTES,
            ),
            statuses: counters("statuses_total", "Responses that have ended, by route and status"),
        }
    }
}

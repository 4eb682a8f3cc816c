//! Requests and responses: handles resolved once per endpoint, route or connection, then only counted.

use super::labels::{self, Labels, label};
use crate::{
    fault::Fault,
    http::exchange::{Class, GrpcStatus},
    inbound::Connection,
};
use http::StatusCode;
use remora_core::{
    policy::{self, Permit, Refusal, ResourceRef, ServerPolicy},
    time::Time,
};
use remora_runtime::{
    clock,
    metrics::{Buckets, Budgeted, Counter, Histogram, Registry},
};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// `request_total`, `response_total`, `response_latency_ms`.
#[derive(Clone)]
pub struct HttpFamilies {
    requests: Budgeted<Labels, Counter>,
    responses: Budgeted<Labels, Counter>,
    latencies: Budgeted<Labels, Histogram>,
}

impl HttpFamilies {
    pub fn register(registry: &Registry, budget: usize) -> Self {
        Self {
            requests: registry.counters("request_total", "Total count of HTTP requests", budget),
            responses: registry.counters("response_total", "Total count of HTTP responses", budget),
            latencies: registry.histograms(
                "response_latency_ms",
                "Elapsed times between a request's headers being received and its response stream completing",
                budget,
                Buckets::LATENCY_MS,
            ),
        }
    }

    /// The handles of one label set.
    pub fn of(&self, labels: Labels) -> Arc<RequestMetrics> {
        Arc::new(RequestMetrics {
            requests: self.requests.get(labels.clone()),
            labels,
            families: self.clone(),
            responses: Mutex::default(),
        })
    }
}

/// The request series of one label set. Response series appear as answers do.
pub struct RequestMetrics {
    labels: Labels,
    families: HttpFamilies,
    requests: Counter,
    /// Few kinds of answers occur; the common ones come first and are found by a short walk.
    responses: Mutex<Vec<(Answer, Counter, Histogram)>>,
}

/// Handles kept per label set; further kinds of answers are looked up each time.
const KEPT_ANSWERS: usize = 32;

#[derive(Clone, Copy, PartialEq, Eq)]
struct Answer {
    status: Option<u16>,
    class: Class,
    grpc: Option<GrpcStatus>,
    error: Option<&'static str>,
}

impl RequestMetrics {
    /// A request was sent on.
    pub fn request(&self) {
        self.requests.inc();
    }

    /// A response has ended. `grpc` is the gRPC status of a gRPC response, as far as there was one.
    pub fn response(
        &self,
        status: u16,
        class: Class,
        grpc: Option<GrpcStatus>,
        error: Option<&'static str>,
        latency: Duration,
    ) {
        self.count(Answer { status: Some(status), class, grpc, error }, latency);
    }

    /// There was no response.
    pub fn failed(&self, fault: &Fault, latency: Duration) {
        let answer = Answer { status: None, class: Class::Failure, grpc: None, error: Some(fault.label()) };
        self.count(answer, latency);
    }

    /// The proxy answered in the server's place.
    pub fn failed_with(&self, status: u16, fault: &Fault, latency: Duration) {
        let class = crate::http::exchange::classify_status(status);
        self.count(Answer { status: Some(status), class, grpc: None, error: Some(fault.label()) }, latency);
    }

    fn count(&self, answer: Answer, latency: Duration) {
        let mut kept = self.responses.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, responses, latencies)) = kept.iter().find(|(known, ..)| *known == answer) {
            responses.inc();
            latencies.record(latency);
            return;
        }
        let (responses, latencies) = self.series(answer);
        responses.inc();
        latencies.record(latency);
        if kept.len() < KEPT_ANSWERS {
            kept.push((answer, responses, latencies));
        }
    }

    fn series(&self, answer: Answer) -> (Counter, Histogram) {
        let mut labels = self.labels.clone();
        if let Some(status) = answer.status {
            labels.push(label("status_code", status));
        }
        let latencies = self.families.latencies.get(labels.clone());
        labels.push(label("classification", answer.class.as_str()));
        if let Some(grpc) = answer.grpc {
            labels.push(label("grpc_status", grpc.0.map(|code| code.to_string()).unwrap_or_default()));
        }
        if let Some(error) = answer.error {
            labels.push(label("error", error));
        }
        (self.families.responses.get(labels), latencies)
    }
}

/// The request series of one inbound connection, by the route and authorization that requests meet.
pub struct InboundRequests {
    connection: Connection,
    known: Mutex<Vec<Known>>,
}

/// Routes and authorizations remembered per connection; the policy's own are few.
const KEPT_ROUTES: usize = 16;

struct Known {
    server: Arc<ResourceRef>,
    route: Option<Arc<ResourceRef>>,
    authorization: Option<Arc<ResourceRef>>,
    metrics: Arc<RequestMetrics>,
    authorized: Counter,
}

impl InboundRequests {
    pub fn new(connection: &Connection) -> Self {
        Self { connection: connection.clone(), known: Mutex::default() }
    }

    /// The series of a request, which also counts it as allowed or denied.
    pub fn of(
        &self,
        metrics: &super::Metrics,
        server: &ServerPolicy,
        permit: Result<&Permit, &Refusal>,
    ) -> Arc<RequestMetrics> {
        let (route, authorization) = match permit {
            Ok(permit) => (Some(permit.route), Some(&permit.authorization)),
            Err(refusal) => (refusal.route, None),
        };
        let route = route.and_then(|i| policy::routes(server).get(i)).map(|route| &route.route.meta);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        // The policy may have changed under the connection: another server with a route of the same name.
        let same = |one: &&Known| {
            same(Some(&one.server), Some(&server.meta))
                && same(one.route.as_ref(), route)
                && same(one.authorization.as_ref(), authorization)
        };
        if let Some(one) = known.iter().find(same) {
            one.authorized.inc();
            return one.metrics.clone();
        }
        let mut labels: Labels = vec![label("direction", "inbound")];
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
        let one = Known {
            server: server.meta.clone(),
            route: route.cloned(),
            authorization: authorization.cloned(),
            metrics: metrics.http.of(labels),
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

fn same(known: Option<&Arc<ResourceRef>>, asked: Option<&Arc<ResourceRef>>) -> bool {
    match (known, asked) {
        (Some(known), Some(asked)) => Arc::ptr_eq(known, asked) || known == asked,
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    }
}

/// `outbound_http_route_*` of one route.
pub struct RouteMetrics {
    pub requests: Counter,
    durations: Histogram,
    statuses: Statuses,
}

/// `outbound_http_route_backend_*` of one backend.
pub struct BackendMetrics {
    pub requests: Counter,
    durations: Histogram,
    statuses: Statuses,
}

impl RouteMetrics {
    /// The head of the answer is there, or there is none.
    pub fn answered(&self, status: Option<StatusCode>, started: Time) {
        self.durations.record(clock::now().since(started));
        self.statuses.count(status);
    }
}

impl BackendMetrics {
    /// The head of the answer is there.
    pub fn answered(&self, status: StatusCode, started: Time) {
        self.durations.record(clock::now().since(started));
        self.statuses.count(Some(status));
    }
}

/// A family by `http_status` and `error`.
struct Statuses {
    labels: Labels,
    family: Budgeted<Labels, Counter>,
    known: Mutex<Vec<(Option<StatusCode>, Counter)>>,
}

impl Statuses {
    fn new(family: &Budgeted<Labels, Counter>, labels: Labels) -> Self {
        Self { labels, family: family.clone(), known: Mutex::default() }
    }

    fn count(&self, status: Option<StatusCode>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, counter)) = known.iter().find(|(one, _)| *one == status) {
            counter.inc();
            return;
        }
        let mut labels = self.labels.clone();
        labels
            .push(label("http_status", status.map(|status| status.as_str().to_owned()).unwrap_or_default()));
        labels.push(label("error", if status.is_some() { "" } else { "UNKNOWN" }));
        let counter = self.family.get(labels);
        counter.inc();
        if known.len() < KEPT_ANSWERS {
            known.push((status, counter));
        }
    }
}

/// The typed outbound families.
pub struct RouteFamilies {
    requests: Budgeted<Labels, Counter>,
    durations: Budgeted<Labels, Histogram>,
    statuses: Budgeted<Labels, Counter>,
    backend_requests: Budgeted<Labels, Counter>,
    backend_durations: Budgeted<Labels, Histogram>,
    backend_statuses: Budgeted<Labels, Counter>,
}

impl RouteFamilies {
    pub fn register(registry: &Registry, budget: usize) -> Self {
        Self {
            requests: registry.counters(
                "outbound_http_route_requests_total",
                "Requests by the route they took",
                budget,
            ),
            durations: registry.histograms(
                "outbound_http_route_request_duration_seconds",
                "Time from a request's head to its response's head",
                budget,
                Buckets::ROUTE_SECONDS,
            ),
            statuses: registry.counters(
                "outbound_http_route_request_statuses_total",
                "Responses by route and status",
                budget,
            ),
            backend_requests: registry.counters(
                "outbound_http_route_backend_requests_total",
                "Requests sent to a route's backend, retries included",
                budget,
            ),
            backend_durations: registry.histograms(
                "outbound_http_route_backend_response_duration_seconds",
                "Time from sending a request to a backend to its response's head",
                budget,
                Buckets::BACKEND_SECONDS,
            ),
            backend_statuses: registry.counters(
                "outbound_http_route_backend_response_statuses_total",
                "Responses by backend and status",
                budget,
            ),
        }
    }

    pub fn route(&self, parent: &ResourceRef, route: &ResourceRef) -> Arc<RouteMetrics> {
        let labels = route_labels(parent, route);
        Arc::new(RouteMetrics {
            requests: self.requests.get(labels.clone()),
            durations: self.durations.get(labels.clone()),
            statuses: Statuses::new(&self.statuses, labels),
        })
    }

    pub fn backend(&self, parent: &ResourceRef, backend: &ResourceRef) -> Arc<BackendMetrics> {
        let mut labels = Labels::new();
        labels::parent(&mut labels, parent);
        labels::backend(&mut labels, backend);
        Arc::new(BackendMetrics {
            requests: self.backend_requests.get(labels.clone()),
            durations: self.backend_durations.get(labels.clone()),
            statuses: Statuses::new(&self.backend_statuses, labels),
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

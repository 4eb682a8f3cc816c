//! Requests and responses by Linkerd's older names: handles resolved once per endpoint or connection, then only counted.

use super::{
    errors::Faults,
    few::Few,
    inbound::InboundRoute,
    labels::{Labels, label},
    routes::End,
};
use crate::{
    fault::Fault,
    http::exchange::{Class, GrpcStatus, classify_grpc, classify_status},
};
use remora_runtime::metrics::{Buckets, Budgeted, Counter, Histogram, Registry};
use std::{sync::Arc, time::Duration};

/// `request_total`, `response_total`, `response_latency_ms`; by the routes of ServiceProfiles the same with a prefix.
#[derive(Clone)]
pub struct HttpFamilies {
    requests: Budgeted<Labels, Counter>,
    responses: Budgeted<Labels, Counter>,
    latencies: Option<Budgeted<Labels, Histogram>>,
}

impl HttpFamilies {
    /// `prefix` is before each name, for instance `route_`; `timed`: with latencies.
    pub fn register(registry: &Registry, prefix: &str, timed: bool, budget: usize) -> Self {
        let counters = |name: &str, help: &str| registry.counters(&format!("{prefix}{name}"), help, budget);
        Self {
            requests: counters("request_total", "Total count of HTTP requests"),
            responses: counters("response_total", "Total count of HTTP responses"),
            latencies: timed.then(|| {
                registry.histograms(
                    &format!("{prefix}response_latency_ms"),
                    "Elapsed times between a request's headers being received and its response stream completing",
                    budget,
                    Buckets::LATENCY_MS,
                )
            }),
        }
    }

    /// The handles of one label set.
    pub fn of(&self, labels: Labels) -> RequestMetrics {
        RequestMetrics {
            requests: self.requests.get(labels.clone()),
            labels,
            families: self.clone(),
            responses: Few::default(),
            faults: None,
            route: None,
        }
    }
}

/// The request series of one label set. Response series appear as answers do.
pub struct RequestMetrics {
    labels: Labels,
    families: HttpFamilies,
    requests: Counter,
    responses: Few<Answer, Responses>,
    /// Inbound: `inbound_http_errors_total`.
    pub(super) faults: Option<Faults>,
    /// Inbound: the typed families of the route, where policy admitted the request.
    pub(super) route: Option<Arc<InboundRoute>>,
}

/// The series of one kind of answer.
struct Responses {
    total: Counter,
    latencies: Option<Histogram>,
    /// Of the typed families.
    statuses: Option<Counter>,
}

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
        if let Some(route) = &self.route {
            route.requests.inc();
        }
    }

    /// Counts why an inbound request failed.
    pub fn fault(&self, fault: &Fault) {
        if let Some(faults) = &self.faults {
            let of_server = |name: &str| name == "target_addr" || name.starts_with("srv_");
            faults.count(fault, || self.labels.iter().filter(|(name, _)| of_server(name)).cloned().collect());
        }
    }

    /// Sizes of the data frames of an inbound request.
    pub fn request_frames(&self) -> Option<&Histogram> {
        self.route.as_ref().map(|route| &route.request_frames)
    }

    /// A data frame of a response to an inbound request has come.
    pub fn response_frame(&self, bytes: usize) {
        if let Some(route) = &self.route {
            route.response_frames.observe(bytes as u64);
        }
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

    /// There was no response within the time that a ServiceProfile allows.
    pub fn timed_out(&self, latency: Duration) {
        let answer = Answer { status: None, class: Class::Failure, grpc: None, error: Some("timeout") };
        self.count(answer, latency);
    }

    /// The proxy answered in the server's place; `grpc`: as gRPC has it, where the status of HTTP says nothing. A
    /// ServiceProfile may have said what such a status is.
    pub fn failed_with(&self, fault: &Fault, grpc: bool, said: Option<Class>, latency: Duration) {
        let answer = fault.answer();
        let code = grpc.then(|| fault.grpc_code());
        let by_itself = || code.map_or_else(|| classify_status(answer.status.as_u16()), classify_grpc);
        self.count(
            Answer {
                status: Some(if grpc { 200 } else { answer.status.as_u16() }),
                class: said.unwrap_or_else(by_itself),
                grpc: code.map(|code| GrpcStatus(Some(code))),
                error: Some(fault.label()),
            },
            latency,
        );
    }

    fn count(&self, answer: Answer, latency: Duration) {
        self.responses.count(
            answer,
            || self.series(answer),
            |series| {
                series.total.inc();
                if let Some(latencies) = &series.latencies {
                    latencies.record(latency);
                }
                if let Some(statuses) = &series.statuses {
                    statuses.inc();
                }
            },
        );
        if let Some(route) = &self.route {
            route.took(latency);
        }
    }

    fn series(&self, answer: Answer) -> Responses {
        let mut labels = self.labels.clone();
        if let Some(status) = answer.status {
            labels.push(label("status_code", status));
        }
        let latencies = self.families.latencies.as_ref().map(|family| family.get(labels.clone()));
        labels.push(label("classification", answer.class.as_str()));
        if let Some(grpc) = answer.grpc {
            labels.push(label("grpc_status", grpc.0.map(|code| code.to_string()).unwrap_or_default()));
        }
        if let Some(error) = answer.error {
            labels.push(label("error", error));
        }
        let grpc = answer.grpc.and_then(|grpc| grpc.0);
        let end = End { status: answer.status, grpc, error: answer.error };
        let statuses = self.route.as_ref().map(|route| route.status(end));
        Responses { total: self.families.responses.get(labels), latencies, statuses }
    }
}

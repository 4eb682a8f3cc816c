//! One request and its response, watched from the dispatch to the last byte: load, latency, classification.

use super::request::Standing;
use crate::endpoint::InFlight;
use crate::fault::{self, Fault, HttpError};
use crate::metrics::{
    RequestMetrics,
    routes::{End, Routed},
};
use crate::profile::Route;
use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body::Frame;
use remora_core::time::Time;
use remora_runtime::{clock, metrics::grpc_is_failure};
use std::sync::Arc;

/// Success or failure as Linkerd classifies it. Contract 4.4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    Success,
    Failure,
}

impl Class {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure => "failure",
        }
    }
}

/// Whether a status is a failure by itself.
pub fn classify_status(status: u16) -> Class {
    if status >= 500 { Class::Failure } else { Class::Success }
}

/// Whether a gRPC status is a failure.
pub fn classify_grpc(code: u16) -> Class {
    if grpc_is_failure(code) { Class::Failure } else { Class::Success }
}

/// What is counted when the exchange is over.
pub struct Exchange {
    metrics: Arc<RequestMetrics>,
    routed: Routed,
    /// By a ServiceProfile.
    route: Option<(Arc<Route>, Time)>,
    started: Time,
    status: u16,
    grpc: Option<GrpcStatus>,
    in_flight: Option<InFlight>,
    /// Whether the request may go on; of an inbound one.
    standing: Option<Arc<Standing>>,
    counted: bool,
}

/// A gRPC response's status, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrpcStatus(pub Option<u16>);

impl Exchange {
    /// Begins to watch a response whose head has just arrived.
    pub fn of<B>(response: &Response<B>, metrics: Arc<RequestMetrics>, started: Time) -> Self {
        let grpc = is_grpc(response.headers()).then(|| GrpcStatus(grpc_status(response.headers())));
        Self {
            metrics,
            routed: Routed::default(),
            route: None,
            started,
            status: response.status().as_u16(),
            grpc,
            in_flight: None,
            standing: None,
            counted: false,
        }
    }

    /// The response is to a request of this route of a ServiceProfile, which came then.
    pub fn of_route(mut self, route: Option<Arc<Route>>, came: Time) -> Self {
        self.route = route.map(|route| (route, came));
        self
    }

    /// The response ends when its request is not admitted any more.
    pub fn stands_by(mut self, standing: Option<Arc<Standing>>) -> Self {
        self.standing = standing;
        self
    }

    /// The response is to an outbound request: it is part of an endpoint's load, and counted by route and backend.
    pub fn outbound(mut self, in_flight: InFlight, routed: Routed) -> Self {
        self.in_flight = Some(in_flight);
        self.routed = routed;
        self
    }

    /// So many bytes of the body came at once.
    pub(super) fn data(&mut self, bytes: usize) {
        if let Some(in_flight) = &mut self.in_flight {
            in_flight.answered();
        }
        self.metrics.response_frame(bytes);
        self.routed.frame(bytes);
    }

    pub(super) fn frame(&mut self, frame: &Frame<Bytes>) {
        if let Some(data) = frame.data_ref() {
            self.data(data.len());
        } else if let Some(in_flight) = &mut self.in_flight {
            in_flight.answered();
        }
        if let (Some(trailers), Some(grpc)) = (frame.trailers_ref(), &mut self.grpc) {
            grpc.0 = grpc.0.or_else(|| grpc_status(trailers));
            if let Some(trial) = self.in_flight.as_mut().and_then(InFlight::trial) {
                trial.trailers(grpc.0, trailers);
            }
        }
    }

    pub(super) fn ended(&mut self) {
        if let Some(in_flight) = &mut self.in_flight {
            in_flight.answered();
        }
        self.count(None, None);
    }

    pub(super) fn failed(&mut self, error: &HttpError) {
        let broken = if error.is_timeout() { "timeout" } else { "i/o" };
        self.count(Some(broken), Some(fault::stream_error(error)));
    }

    /// Why the request is not admitted any more, if that is so.
    pub(super) fn refused(&mut self) -> Option<Fault> {
        let fault = self.standing.as_ref()?.refused()?;
        self.count(Some(fault.label()), None);
        Some(fault)
    }

    fn count(&mut self, error: Option<&'static str>, route_error: Option<&'static str>) {
        if self.counted {
            return;
        }
        self.counted = true;
        let said = self.route.as_ref().and_then(|(route, _)| route.class(self.status));
        let class = match (error, said, self.grpc) {
            (Some(_), _, _) => Class::Failure,
            (None, Some(class), _) => class,
            (None, None, Some(GrpcStatus(Some(code)))) => classify_grpc(code),
            (None, None, Some(GrpcStatus(None)) | None) => classify_status(self.status),
        };
        let now = clock::now();
        self.metrics.response(self.status, class, self.grpc, error, now.since(self.started));
        if let Some((route, came)) = &self.route {
            route.response(self.status, class, self.grpc, error, now.since(*came));
        }
        let grpc = self.grpc.and_then(|grpc| grpc.0);
        if let Some(trial) = self.in_flight.as_mut().and_then(InFlight::trial) {
            trial.ended(self.status, grpc, error.is_some());
        }
        self.routed.ended(End { status: Some(self.status), grpc, error: route_error }, now);
        self.in_flight = None;
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        // Nobody wants the rest: the head decides, as in Linkerd.
        self.count(None, None);
    }
}

/// Whether a message is gRPC by its content type.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    let mut types = super::headers::values(headers, &http::header::CONTENT_TYPE);
    types.next().is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// The status that a gRPC head or its trailers say.
pub fn grpc_status(headers: &HeaderMap) -> Option<u16> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_error_is_a_failure_and_a_client_error_is_not() {
        assert_eq!(classify_status(500), Class::Failure);
        assert_eq!(classify_status(499), Class::Success);
        assert_eq!(classify_status(404), Class::Success);
    }

    #[test]
    fn grpc_failures_are_those_of_the_contract() {
        let failures: Vec<u16> = (0..20).filter(|&code| classify_grpc(code) == Class::Failure).collect();
        assert_eq!(failures, [2, 4, 7, 13, 14, 15]);
    }
}

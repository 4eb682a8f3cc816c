//! What a process asks of the control plane and how it is answered, by Linkerd's names. Contract 5.4.
//!
//! A dead or silent control plane shows here: a request that is not answered is a failure with its reason.

use super::{ControlAddr, Resolve, ResolveFault};
use crate::{
    clock,
    metrics::{Buckets, Budgeted, Counter, Histogram, Registry, grpc_is_failure},
};
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame, SizeHint};
use remora_core::time::Time;
use std::{
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tonic::{body::Body as TonicBody, transport::Channel};

/// Services asked are three, kinds of answers few.
const SERIES: usize = 256;

type Labels = Vec<(&'static str, String)>;

/// The `control_*` families of a process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ControlMetrics {
    requests: Budgeted<Labels, Counter>,
    responses: Budgeted<Labels, Counter>,
    latencies: Budgeted<Labels, Histogram>,
    connections: Budgeted<Labels, Counter>,
    resolutions: Budgeted<Labels, Counter>,
}

impl ControlMetrics {
    /// Registers the families.
    pub fn register(registry: &Registry) -> Self {
        let counters = |name, help| registry.counters(name, help, SERIES);
        Self {
            requests: counters("control_request_total", "Requests to the control plane"),
            responses: counters("control_response_total", "How requests to the control plane ended"),
            latencies: registry.histograms(
                "control_response_latency_ms",
                "From a request to the control plane to the end of its response, which is a stream's whole life",
                SERIES,
                Buckets::LATENCY_MS,
            ),
            connections: counters(
                "remora_control_connections_total",
                "Attempts to connect to the control plane, by result",
            ),
            resolutions: counters(
                "control_dns_resolutions_total",
                "Resolutions of the control plane's names, by record type and result",
            ),
        }
    }

    /// What is counted of one service.
    pub(super) fn of(&self, addr: &ControlAddr) -> Arc<Counts> {
        let addr_label = ("addr", addr.to_string());
        let mut labels = vec![addr_label.clone()];
        if let Some(name) = &addr.name {
            labels.extend([("tls", "true".to_owned()), ("server_id", name.to_string())]);
        } else {
            labels.extend([("tls", "no_identity".to_owned()), ("no_tls_reason", "loopback".to_owned())]);
        }
        let result =
            |result: &str| self.connections.get(vec![addr_label.clone(), ("result", result.to_owned())]);
        Arc::new(Counts {
            requests: self.requests.get(labels.clone()),
            labels,
            connected: result("ok"),
            refused: result("error"),
            families: self.clone(),
            client: addr.host.clone(),
        })
    }
}

/// The series of one service.
#[derive(Debug)]
pub(super) struct Counts {
    labels: Labels,
    requests: Counter,
    pub(super) connected: Counter,
    pub(super) refused: Counter,
    families: ControlMetrics,
    client: String,
}

impl Counts {
    /// Resolves, and counts how it went.
    pub(super) async fn resolve(
        &self,
        resolver: &impl Resolve,
        host: &str,
        port: u16,
    ) -> Result<Vec<SocketAddr>, ResolveFault> {
        let resolved = resolver.resolve(host, port).await;
        let (record, result) = match &resolved {
            Ok(found) => (found.record, "ok"),
            Err(_) => ("a", "not_found"),
        };
        let labels = vec![
            ("client", self.client.clone()),
            ("record_type", record.to_owned()),
            ("result", result.to_owned()),
        ];
        self.families.resolutions.get(labels).inc();
        resolved.map(|found| found.addresses)
    }

    fn ended(&self, end: &End, since: Time) {
        let mut labels = self.labels.clone();
        if let Some(status) = end.status {
            labels.push(("status_code", status.to_string()));
        }
        self.families.latencies.get(labels.clone()).record(clock::now().since(since));
        let failed = end.error.is_some()
            || end.grpc.map_or_else(|| end.status.is_none_or(|status| status >= 500), grpc_is_failure);
        labels.push(("classification", if failed { "failure" } else { "success" }.to_owned()));
        if let Some(code) = end.grpc {
            labels.push(("grpc_status", code.to_string()));
        }
        if let Some(error) = end.error {
            labels.push(("error", error.to_owned()));
        }
        self.families.responses.get(labels).inc();
    }
}

/// A channel whose requests are counted: what tonic's clients are made of.
#[derive(Clone, Debug)]
pub struct Client {
    channel: Channel,
    counts: Arc<Counts>,
}

impl Client {
    pub(super) fn new(channel: Channel, counts: Arc<Counts>) -> Self {
        Self { channel, counts }
    }
}

impl tower::Service<Request<TonicBody>> for Client {
    type Response = Response<Answer>;
    type Error = tonic::transport::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Answer>, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.channel.poll_ready(cx)
    }

    fn call(&mut self, request: Request<TonicBody>) -> Self::Future {
        self.counts.requests.inc();
        let mut exchange =
            Exchange { counts: self.counts.clone(), since: clock::now(), end: End::default(), spoke: false };
        let answer = self.channel.call(request);
        Box::pin(async move {
            match answer.await {
                Ok(response) => {
                    exchange.end.status = Some(response.status().as_u16());
                    exchange.end.grpc = grpc_status(response.headers());
                    // An answer without a body has said all.
                    exchange.spoke = exchange.end.grpc.is_some();
                    Ok(response.map(|body| Answer { body, exchange }))
                }
                Err(error) => {
                    exchange.broke();
                    Err(error)
                }
            }
        })
    }
}

#[derive(Debug, Default)]
struct End {
    status: Option<u16>,
    grpc: Option<u16>,
    error: Option<&'static str>,
}

/// Counted when it is dropped: it has ended, or nobody wants to wait any longer.
#[derive(Debug)]
struct Exchange {
    counts: Arc<Counts>,
    since: Time,
    end: End,
    /// Anything came after the head.
    spoke: bool,
}

impl Exchange {
    fn broke(&mut self) {
        self.end.error = Some("i/o");
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if !self.spoke && self.end.error.is_none() {
            // Given up: callers bound their waiting, not the control plane.
            self.end.error = Some("no answer");
        }
        self.counts.ended(&self.end, self.since);
    }
}

/// The body of an answer, watched to its end.
#[derive(Debug)]
pub struct Answer {
    body: TonicBody,
    exchange: Exchange,
}

impl Body for Answer {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        let exchange = &mut this.exchange;
        match &frame {
            Some(Ok(frame)) => {
                exchange.spoke = true;
                if let Some(trailers) = frame.trailers_ref() {
                    exchange.end.grpc = exchange.end.grpc.or_else(|| grpc_status(trailers));
                }
            }
            Some(Err(_)) => exchange.broke(),
            None => exchange.spoke = true,
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn grpc_status(headers: &HeaderMap) -> Option<u16> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use remora_core::identity::Identity;

    fn counts(registry: &Registry) -> Arc<Counts> {
        let name = Identity::parse("dst.remora.serviceaccount.identity.remora.cluster.local").unwrap();
        let addr = ControlAddr { host: "dst.remora".to_owned(), port: 8086, name: Some(name) };
        ControlMetrics::register(registry).of(&addr)
    }

    #[track_caller]
    fn check(end: End, spoke: bool, expected: &str) {
        let registry = Registry::default();
        drop(Exchange { counts: counts(&registry), since: clock::now(), end, spoke });
        let text = registry.render();
        let server = "server_id=\"dst.remora.serviceaccount.identity.remora.cluster.local\"";
        let line =
            format!("control_response_total{{addr=\"dst.remora:8086\",tls=\"true\",{server},{expected}}} 1");
        assert!(text.lines().any(|printed| printed == line), "{line} is missing in {text}");
    }

    #[test]
    fn an_answer_is_classified_by_its_grpc_status() {
        let end = |grpc| End { status: Some(200), grpc: Some(grpc), error: None };
        check(end(0), true, "status_code=\"200\",classification=\"success\",grpc_status=\"0\"");
        check(end(5), true, "status_code=\"200\",classification=\"success\",grpc_status=\"5\"");
        check(end(14), true, "status_code=\"200\",classification=\"failure\",grpc_status=\"14\"");
    }

    #[test]
    fn a_stream_that_was_ended_here_after_it_spoke_is_a_success() {
        let end = End { status: Some(200), grpc: None, error: None };
        check(end, true, "status_code=\"200\",classification=\"success\"");
    }

    #[test]
    fn silence_and_a_broken_connection_are_failures() {
        check(End::default(), false, "classification=\"failure\",error=\"no answer\"");
        let silent = End { status: Some(200), grpc: None, error: None };
        check(silent, false, "status_code=\"200\",classification=\"failure\",error=\"no answer\"");
        let broken = End { error: Some("i/o"), ..End::default() };
        check(broken, false, "classification=\"failure\",error=\"i/o\"");
    }
}

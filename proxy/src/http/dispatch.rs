//! Sends one outbound request: picks an endpoint, counts the try, and tries one other if nothing was written.

use super::{body::Body, client::SendError};
use crate::{
    discover::target::{LiveBackend, Split},
    endpoint::{self, InFlight, LiveEndpoint},
    fault::Fault,
    metrics::BackendMetrics,
    profile,
};
use http::{HeaderValue, Request, Response};
use remora_core::{retry::Tried, time::Time};
use remora_runtime::clock;
use std::{sync::Arc, time::Duration};

/// A request that has an answer.
pub(super) struct Sent {
    pub(super) response: Response<Body>,
    pub(super) in_flight: InFlight,
    pub(super) endpoint: Arc<LiveEndpoint>,
    /// Whether another endpoint may be picked for the next request.
    pub(super) balanced: bool,
    /// Where the response is counted, and since when.
    pub(super) backend: Option<(Arc<BackendMetrics>, Time)>,
    /// When the try began, where it is not measured from when the request came.
    pub(super) since: Option<Time>,
}

/// Sends, and waits for the response no longer than the route of a profile allows.
pub(super) async fn send_in_time(
    split: &Split,
    route: &profile::Route,
    required: Option<&HeaderValue>,
    request: &mut Request<Body>,
) -> Result<Sent, Fault> {
    let sending = send(split, Some(route), required, request);
    let Some(limit) = route.timeout else { return sending.await };
    // Boxed: what wraps a future holds it twice.
    let in_time = tokio::time::timeout(limit, Box::pin(sending)).await;
    in_time.unwrap_or_else(|_| Err(route.late(limit)))
}

/// Why there is no answer.
pub(super) struct Failed {
    pub(super) fault: Fault,
    pub(super) tried: Tried,
    /// The last endpoint that was tried.
    pub(super) endpoint: Option<Arc<LiveEndpoint>>,
}

/// A fault that no endpoint made.
impl From<Fault> for Failed {
    fn from(fault: Fault) -> Self {
        Self { fault, tried: Tried::Hopeless, endpoint: None }
    }
}

/// Picks an endpoint and sends. A request of which nothing was written tries one other endpoint.
pub(super) async fn send(
    split: &Split,
    profiled: Option<&profile::Route>,
    required: Option<&HeaderValue>,
    request: &mut Request<Body>,
) -> Result<Sent, Fault> {
    send_avoiding(None, split, profiled, required, request).await.map_err(|failed| failed.fault)
}

/// The same, not to an endpoint that failed before if another is usable.
pub(super) async fn send_avoiding(
    avoid: Option<&Arc<LiveEndpoint>>,
    split: &Split,
    profiled: Option<&profile::Route>,
    required: Option<&HeaderValue>,
    request: &mut Request<Body>,
) -> Result<Sent, Failed> {
    let LiveBackend { balancer, metrics, .. } = split.pick()?;
    let mut failed: Option<(Arc<LiveEndpoint>, Fault)> = None;
    let fate = request.body().fate();
    loop {
        let picked = match &failed {
            Some((first, _)) => balancer.pick(Some(first)).await,
            None => balancer.pick_again(avoid).await,
        };
        let endpoint = picked.inspect_err(|fault| {
            if let Some(route) = profiled {
                route.tried();
                route.try_failed(fault, Duration::ZERO);
            }
        })?;
        if let Some((first, fault)) = failed.take() {
            if Arc::ptr_eq(&first, &endpoint) {
                return Err(Failed { fault, tried: Tried::Unprocessed, endpoint: Some(endpoint) });
            }
            failed = Some((endpoint.clone(), fault));
        }
        require_identity(required, &endpoint)?;
        let began = clock::now();
        let mut in_flight = endpoint.begin(began);
        endpoint.requests.request();
        if let Some(route) = profiled {
            route.tried();
        }
        let failed_at = |fault: &Fault| {
            if let Some(route) = profiled {
                route.try_failed(fault, clock::now().since(began));
            }
            endpoint.requests.failed(fault, clock::now().since(began));
            if let Some(metrics) = metrics {
                metrics.failed(fault.route_error(), began);
            }
        };
        if let Some(metrics) = metrics {
            metrics.requests.inc();
        }
        let error = match endpoint.client().send(&endpoint, request, began).await {
            Ok(response) => {
                fate.answered();
                if let Some(trial) = in_flight.trial() {
                    trial.answered(&response);
                }
                let backend = metrics.clone().map(|metrics| (metrics, began));
                let balanced = balancer.is_discovered();
                return Ok(Sent { response, in_flight, endpoint, balanced, backend, since: None });
            }
            Err(error) => error,
        };
        let (fault, tried) = match error {
            SendError::Unsent(fault) if failed.is_none() => {
                failed_at(&fault);
                if let Some(trial) = in_flight.trial() {
                    trial.failed(&fault);
                }
                failed = Some((endpoint, fault));
                continue;
            }
            SendError::Unsent(fault) => (fate.or(fault), Tried::Unprocessed),
            SendError::Failed(fault) => {
                let fault = fate.or(fault);
                let tried = fault.tried();
                (fault, tried)
            }
        };
        failed_at(&fault);
        if let Some(trial) = in_flight.trial() {
            trial.failed(&fault);
        }
        return Err(Failed { fault, tried, endpoint: Some(endpoint.clone()) });
    }
}

/// `l5d-require-id`: the endpoint must be who the application expects. Contract 4.9.
fn require_identity(required: Option<&HeaderValue>, endpoint: &LiveEndpoint) -> Result<(), Fault> {
    let Some(required) = required else { return Ok(()) };
    let actual = endpoint::identity(endpoint.plan()).map(|tls| tls.identity.as_str());
    if actual.is_some_and(|actual| actual.as_bytes() == required.as_bytes()) {
        return Ok(());
    }
    Err(Fault::RequiredIdentity {
        required: String::from_utf8_lossy(required.as_bytes()).into(),
        actual: actual.unwrap_or("no identity").into(),
    })
}

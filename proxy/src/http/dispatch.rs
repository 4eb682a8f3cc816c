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

/// What all tries of a request share.
pub(super) struct To<'a> {
    pub(super) split: &'a Split,
    /// By a ServiceProfile.
    pub(super) profiled: Option<&'a profile::Route>,
    /// `l5d-require-id`.
    pub(super) required: Option<&'a HeaderValue>,
    /// Bytes of the path that the rule's prefix covers, for the filters of backends.
    pub(super) prefix: Option<usize>,
}

/// A try that has begun.
pub(super) struct Begun {
    pub(super) endpoint: Arc<LiveEndpoint>,
    backend: Option<Arc<BackendMetrics>>,
    at: Time,
}

impl Begun {
    /// Counts that it had no answer.
    pub(super) fn failed(&self, to: &To<'_>, fault: &Fault) {
        let took = clock::now().since(self.at);
        if let Some(route) = to.profiled {
            route.try_failed(fault, took);
        }
        self.endpoint.requests.failed(fault, took);
        if let Some(backend) = &self.backend {
            backend.failed(fault, self.at);
        }
    }
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
pub(super) async fn send(to: &To<'_>, request: &mut Request<Body>) -> Result<Sent, Fault> {
    send_avoiding(None, to, &mut None, request).await.map_err(|failed| failed.fault)
}

/// The same, not to an endpoint that failed before if another is usable. `begun` becomes the last try, for whoever does
/// not wait for its end.
pub(super) async fn send_avoiding(
    avoid: Option<&Arc<LiveEndpoint>>,
    to: &To<'_>,
    begun: &mut Option<Begun>,
    request: &mut Request<Body>,
) -> Result<Sent, Failed> {
    let LiveBackend { balancer, metrics, filters, .. } = to.split.pick()?;
    if let Some(filters) = filters {
        filters.request(request, &mut to.prefix.clone())?;
    }
    let mut failed: Option<(Arc<LiveEndpoint>, Fault)> = None;
    let fate = request.body().fate();
    loop {
        let picked = match &failed {
            Some((first, _)) => balancer.pick(Some(first)).await,
            None => balancer.pick_again(avoid).await,
        };
        let endpoint = picked.inspect_err(|fault| {
            if let Some(route) = to.profiled {
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
        require_identity(to.required, &endpoint)?;
        let at = clock::now();
        let in_flight = endpoint.begin(at);
        endpoint.requests.request();
        if let Some(route) = to.profiled {
            route.tried();
        }
        if let Some(metrics) = metrics {
            metrics.requests.inc();
        }
        let now = begun.insert(Begun { endpoint: endpoint.clone(), backend: metrics.clone(), at });
        let error = match endpoint.client().send(&endpoint, request, at).await {
            Ok(mut response) => {
                fate.answered();
                if let Some(filters) = filters {
                    filters.response(&mut response);
                }
                let backend = metrics.clone().map(|metrics| (metrics, at));
                let balanced = balancer.is_discovered();
                return Ok(Sent { response, in_flight, endpoint, balanced, backend, since: None });
            }
            Err(error) => error,
        };
        let (fault, tried) = match error {
            SendError::Unsent(fault) if failed.is_none() => {
                now.failed(to, &fault);
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
        now.failed(to, &fault);
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

//! Sends one outbound request: picks an endpoint, counts the try, and tries one other if for certain nothing was
//! processed. Design, "Retries".

use super::{
    body::Body,
    client::SendError,
    exchange::{self, Class, GrpcStatus},
    headers,
    replay::Recorded,
};
use crate::{
    discover::target::{LiveBackend, Split},
    endpoint::{self, InFlight, LiveEndpoint},
    fault::Fault,
    metrics::{
        BackendMetrics,
        routes::{End, Routed},
    },
    profile,
};
use http::{HeaderValue, Request, Response, Version};
use remora_core::{retry::Tried, time::Time};
use remora_runtime::clock;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

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
    /// The other proxy says that its application saw nothing of the request.
    pub(super) unprocessed: bool,
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
    /// Bytes of a body that are kept for one other endpoint.
    pub(super) keep: usize,
    /// By a backend: however often it is sent, and to whichever.
    pub(super) mirrored: AtomicBool,
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
    /// No byte of the request was written.
    unsent: bool,
    /// The last endpoint that was tried.
    pub(super) endpoint: Option<Arc<LiveEndpoint>>,
}

/// A fault that no endpoint made.
impl From<Fault> for Failed {
    fn from(fault: Fault) -> Self {
        Self { fault, tried: Tried::Hopeless, unsent: false, endpoint: None }
    }
}

/// Picks an endpoint and sends. A request of which nothing was processed for certain tries one other endpoint.
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
    let backend = to.split.pick()?;
    let LiveBackend { balancer, filters, mirrors, .. } = backend;
    if let Some(filters) = filters {
        filters.request(request, &mut to.prefix.clone())?;
    }
    let again = if balancer.has_choice() { Again::of(request, to.keep) } else { Again::Never };
    let head = again.head(request);
    let endpoint = picked(to, balancer.pick_again(avoid).await)?;
    // A backend's filters are executed only if the request goes there (Gateway API, HTTPBackendRef), and a copy is made of
    // a request, not of each try.
    if let Some(mirrors) = mirrors
        && !to.mirrored.swap(true, Ordering::Relaxed)
    {
        mirrors.send(request);
    }
    let refused = match once(backend, to, &endpoint, begun, request).await {
        Err(failed) if failed.tried == Tried::Unprocessed => Err(failed),
        Ok(sent) if sent.unprocessed => Ok(sent),
        other => {
            again.forget();
            return other;
        }
    };
    // Elsewhere once, whatever the method, if all of it can be sent again.
    let other = balancer.pick(Some(&endpoint)).await;
    let Some(other) = other.ok().filter(|other| !Arc::ptr_eq(other, &endpoint)) else { return refused };
    if !again.rewind(&refused, request) {
        return refused;
    }
    if let Some(head) = head {
        *request = (*head).map(|()| std::mem::replace(request.body_mut(), Body::absent()));
    }
    if let Ok(sent) = refused {
        sent.discard(to);
    }
    let sent = once(backend, to, &other, begun, request).await;
    again.forget();
    sent
}

/// Counts a try that has no endpoint.
fn picked(to: &To<'_>, picked: Result<Arc<LiveEndpoint>, Fault>) -> Result<Arc<LiveEndpoint>, Fault> {
    picked.inspect_err(|fault| {
        if let Some(route) = to.profiled {
            route.tried();
            route.try_failed(fault, Duration::ZERO);
        }
    })
}

/// Sends to this endpoint.
async fn once(
    backend: &LiveBackend,
    to: &To<'_>,
    endpoint: &Arc<LiveEndpoint>,
    begun: &mut Option<Begun>,
    request: &mut Request<Body>,
) -> Result<Sent, Failed> {
    require_identity(to.required, endpoint)?;
    let LiveBackend { balancer, metrics, filters, .. } = backend;
    let fate = request.body().fate();
    let at = clock::now();
    let mut in_flight = endpoint.begin_request(at)?;
    endpoint.requests.request();
    if let Some(route) = to.profiled {
        route.tried();
    }
    if let Some(metrics) = metrics {
        metrics.requests.inc();
    }
    let now = begun.insert(Begun { endpoint: endpoint.clone(), backend: metrics.clone(), at });
    let (fault, tried, unsent) = match endpoint.client().send(endpoint, request, at).await {
        Ok(mut response) => {
            fate.answered();
            if let Some(trial) = in_flight.trial() {
                trial.answered(&response);
            }
            let unprocessed = is_unprocessed(&response, endpoint);
            if let Some(filters) = filters {
                filters.response(&mut response);
            }
            return Ok(Sent {
                response,
                in_flight,
                endpoint: endpoint.clone(),
                balanced: balancer.is_discovered(),
                backend: metrics.clone().map(|metrics| (metrics, at)),
                since: None,
                unprocessed,
            });
        }
        // The limit is the Service's, not this endpoint's: there is no better one.
        Err(SendError::Unsent(fault @ Fault::Limited { .. })) => (fault, Tried::Hopeless, true),
        Err(SendError::Unsent(fault)) => (fate.or(fault), Tried::Unprocessed, true),
        Err(SendError::Failed(fault)) => {
            let fault = fate.or(fault);
            let tried = fault.tried();
            (fault, tried, false)
        }
    };
    if let Some(trial) = in_flight.trial() {
        trial.failed(&fault);
    }
    now.failed(to, &fault);
    Err(Failed { fault, tried, unsent, endpoint: Some(endpoint.clone()) })
}

/// Whether the other proxy says that its application saw nothing of the request. Believed only of a proven identity.
fn is_unprocessed(response: &Response<Body>, endpoint: &LiveEndpoint) -> bool {
    headers::has_own(response.headers())
        && response.headers().contains_key(headers::UNPROCESSED)
        && endpoint::identity(endpoint.plan()).is_some()
}

impl Sent {
    /// Counts an answer that is not passed on.
    fn discard(self, to: &To<'_>) {
        let Self { response, endpoint, backend, .. } = self;
        let status = response.status().as_u16();
        let grpc = exchange::is_grpc(response.headers())
            .then(|| GrpcStatus(exchange::grpc_status(response.headers())));
        let now = clock::now();
        let latency = backend.as_ref().map_or(Duration::ZERO, |(_, at)| now.since(*at));
        endpoint.requests.response(status, Class::Failure, grpc, None, latency);
        if let Some(route) = to.profiled {
            route.try_answered(status, Class::Failure, grpc, latency);
        }
        let grpc = grpc.and_then(|grpc| grpc.0);
        Routed { route: None, backend }.ended(End { status: Some(status), grpc, error: None }, now);
    }
}

/// A body that may be sent to one other endpoint.
enum Again {
    Never,
    Absent,
    /// `true`: for this alone.
    Recorded(Recorded, bool),
}

impl Again {
    /// Begins to keep a request's body, unless it is kept already, or known to be longer than that.
    fn of(request: &mut Request<Body>, keep: usize) -> Self {
        let body = request.body_mut();
        if body.is_absent() {
            return Self::Absent;
        }
        if let Some(recorded) = body.recorded() {
            return Self::Recorded(recorded, false);
        }
        if body.length().is_some_and(|length| length > keep as u64) {
            return Self::Never;
        }
        let recorded = Recorded::new(std::mem::replace(body, Body::absent()), keep);
        match recorded.begin() {
            Some(first) => {
                *body = first;
                Self::Recorded(recorded, true)
            }
            None => Self::Never,
        }
    }

    /// The head of a request that may be sent again, where sending takes it: HTTP/2 does, even if nothing is processed.
    fn head(&self, request: &Request<Body>) -> Option<Box<Request<()>>> {
        if matches!(self, Self::Never) || request.version() != Version::HTTP_2 {
            return None;
        }
        let mut head = Box::new(Request::new(()));
        head.method_mut().clone_from(request.method());
        head.uri_mut().clone_from(request.uri());
        *head.version_mut() = request.version();
        head.headers_mut().clone_from(request.headers());
        head.extensions_mut().clone_from(request.extensions());
        Some(head)
    }

    /// Gives the request its body from the beginning; whether there is all of it.
    fn rewind(&self, refused: &Result<Sent, Failed>, request: &mut Request<Body>) -> bool {
        if matches!(refused, Err(Failed { unsent: true, .. })) {
            // Nothing of it was taken.
            return true;
        }
        let body = match self {
            Self::Never => None,
            Self::Absent => Some(Body::absent().spelled(request.body().spelling.clone())),
            Self::Recorded(recorded, _) => recorded.begin(),
        };
        body.map(|body| *request.body_mut() = body).is_some()
    }

    /// Nothing more has to be kept.
    fn forget(&self) {
        if let Self::Recorded(recorded, true) = self {
            recorded.forget();
        }
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

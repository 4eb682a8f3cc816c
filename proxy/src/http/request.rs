//! THE LIFE OF A REQUEST, top to bottom.
//!
//! ```text
//! inbound:   restore what a proxy changed → authorise → filters → not too often → name the client → send to the application → answer
//! outbound:  strip what is not for others → route → filters → backend → endpoint → send (elsewhere, if it was not sent;
//!            again, if its route says so) → answer
//! ```

mod standing;

pub use standing::{Standing, news};

use super::{
    access_log,
    admit::{filter, permitted, within_rate},
    body::Body,
    client::SendError,
    dispatch::{self, Sent, To},
    exchange::Exchange,
    headers,
    ingress::Named,
    respond::{self, Asker},
    retry, ruled, upgrade,
    view::View,
    way::{By, Way, route},
};
use crate::{
    Worker,
    discover::{
        rules::Rule,
        target::{Plan, Target},
    },
    endpoint,
    fault::Fault,
    inbound::{self, Connection},
    metrics::{
        InboundRequests, RequestMetrics,
        routes::{RouteSeries, Routed},
    },
    policy::PortPolicy,
    profile::Names,
};
use http::{HeaderValue, Method, Request, Response, Version};
use remora_core::{policy::Peer, route::RequestView, time::Time};
use remora_runtime::clock;
use std::{
    future::{pending, poll_fn},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize},
    },
};
use tokio::sync::OwnedSemaphorePermit;

/// What the requests of one inbound connection share.
pub struct Inbound {
    worker: Arc<Worker>,
    connection: Connection,
    policy: PortPolicy,
    /// How often the policy has changed.
    changes: AtomicUsize,
    app: Arc<inbound::app::App>,
    client_id: Option<HeaderValue>,
    requests: InboundRequests,
    names: Names,
}

impl Inbound {
    pub fn new(worker: Arc<Worker>, connection: Connection, policy: PortPolicy) -> Self {
        let app = worker.apps.port(&worker, connection.target);
        let identity = connection.peer.identity();
        let client_id = identity.and_then(|identity| HeaderValue::from_str(identity.as_str()).ok());
        let authority = worker.proxy.config.inbound.metrics_authority;
        let requests = InboundRequests::new(&connection, authority);
        Self {
            worker,
            connection,
            policy,
            changes: AtomicUsize::new(0),
            app,
            client_id,
            requests,
            names: Names::default(),
        }
    }
}

/// An inbound request, and its line in the access log.
pub async fn inbound(context: Arc<Inbound>, mut request: Request<Body>) -> Result<Response<Body>, Fault> {
    let started = clock::now();
    let log = context.worker.proxy.access_log.as_ref().map(|log| {
        let client_id = context.connection.peer.identity().map(remora_core::identity::Identity::as_str);
        (log, Box::new(access_log::Entry::of(&request, context.connection.client, client_id)))
    });
    let answered = authorized(&context, &mut request, started).await;
    if let (Some((log, entry)), Ok(response)) = (&log, &answered) {
        log.write(entry, response, clock::unix_now().0, clock::now().since(started));
    }
    answered
}

/// Authorises an inbound request and sends it to the application.
async fn authorized(
    context: &Arc<Inbound>,
    request: &mut Request<Body>,
    started: Time,
) -> Result<Response<Body>, Fault> {
    let Inbound { worker, connection, policy, .. } = &**context;
    let metrics = &worker.proxy.metrics;
    let meshed = matches!(connection.peer, Peer::Tls { .. });
    let config = &worker.proxy.config;
    let denied_by = meshed && config.inbound.denial_header;
    let asker = Asker { denied_by, ..Asker::of(request, meshed) };

    // What came is judged, not what is made of it.
    let sound = headers::check(request, config.header_list(&config.inbound.http2));
    let own = headers::has_own(request.headers());
    let orig_proto = (own && meshed).then(|| headers::undo_orig_proto(request)).flatten();
    if own {
        headers::strip_inbound(request.headers_mut());
    }

    headers::complete_authority(request);
    let standing = Standing::of(context, request);
    let server = policy.current();
    let view = View(request);
    let permit = permitted(&server, connection, &view);
    let counted = context.requests.of(metrics, &server, permit.as_ref(), view.authority());
    counted.request();
    let permit = match permit {
        Ok(permit) => permit,
        Err((refusal, refused)) => {
            let fault = inbound::denied(connection, refused, refusal.denial);
            return Ok(refused_by(connection, &fault, asker, &counted, started));
        }
    };
    inbound::audit(connection, &permit.authorization);
    let offered = headers::wants_upgrade(request).then(|| upgrade::offered(request)).flatten();

    let filters = match filter(&server, permit, request, sound.is_ok()) {
        Ok(filters) => filters,
        Err(fault) => return Ok(answer(&fault, asker, &counted, started)),
    };
    // Contract 3.4: the rate is asked about after authorisation and the route's filters.
    if let Err(fault) = within_rate(connection, policy, &server, metrics) {
        return Ok(answer(&fault, asker, &counted, started));
    }
    if let Err(fault) = worker.proxy.has_room() {
        return Ok(unprocessed(answer(&fault, asker, &counted, started), meshed));
    }
    let connect = request.method() == Method::CONNECT;
    if let Err(fault) = sound {
        return Ok(refused_by(connection, &fault, asker, &counted, started));
    }
    headers::strip_hop_by_hop(request.headers_mut(), offered.is_some());
    if let Some(client_id) = &context.client_id {
        request.headers_mut().insert(headers::CLIENT_ID, client_id.clone());
    }

    let profiled = context.names.route(&worker.proxy, request).await;
    if let Some(route) = &profiled {
        route.began();
    }
    let fate = request.body().fate();
    request.body_mut().measure(counted.request_frames());
    let mut response = match send(context, standing.as_ref(), request, started).await {
        Ok(response) => response,
        Err(error) => {
            let unsent = matches!(error, SendError::Unsent(_));
            let (SendError::Unsent(fault) | SendError::Failed(fault)) = error;
            let fault = fate.or(fault);
            if let Some(route) = &profiled {
                route.answered(&fault, asker.grpc, clock::now().since(started));
            }
            let answered = failed(fault, asker, &counted, started, orig_proto.is_some());
            return answered.map(|response| unprocessed(response, unsent && meshed));
        }
    };
    fate.answered();
    headers::strip_said(response.headers_mut());
    if let Some(filters) = filters {
        filters.response(&mut response);
    }
    let exchange = Exchange::of(&response, counted, started).of_route(profiled, started);
    let mut response = respond_with(response, exchange.stands_by(standing.clone()));
    upgraded(context, standing, offered, connect, &mut response);
    match orig_proto {
        Some(orig) => headers::redo_orig_proto(&mut response, orig),
        None => headers::own_version(&mut response),
    }
    Ok(response)
}

/// Sends a request to the application, and waits for its answer for as long as the request may go on.
async fn send(
    context: &Inbound,
    standing: Option<&Arc<Standing>>,
    request: &mut Request<Body>,
    started: Time,
) -> Result<Response<Body>, SendError> {
    if let Some(standing) = standing {
        request.body_mut().stands_by(standing);
    }
    let mut sending = pin!(context.app.client.send(&*context.app, request, started));
    let sent = poll_fn(|cx| standing::poll(standing, cx, sending.as_mut())).await;
    sent.unwrap_or_else(|fault| Err(SendError::Failed(fault)))
}

/// Joins both halves of a connection that stops being HTTP, where the application agreed; else its answer goes on as it is.
fn upgraded(
    context: &Arc<Inbound>,
    standing: Option<Arc<Standing>>,
    offered: Option<upgrade::Offered>,
    connect: bool,
    response: &mut Response<Body>,
) {
    match offered {
        Some(offered) if headers::is_upgrade(response, connect) => {
            headers::strip_framing(response.headers_mut());
            let revoked = standing::revoked(standing);
            offered.join(response, &context.worker.proxy, context.connection.permit.clone(), revoked);
        }
        Some(_) | None => headers::strip_response(response.headers_mut()),
    }
}

/// What the requests of one outbound connection share.
pub struct Outbound {
    worker: Arc<Worker>,
    target: Arc<Target>,
    permit: Arc<OwnedSemaphorePermit>,
    /// In ingress mode.
    named: Named,
}

impl Outbound {
    /// `permit` counts the connection among those served at once, also when it stops being HTTP.
    pub fn new(worker: Arc<Worker>, target: Arc<Target>, permit: Arc<OwnedSemaphorePermit>) -> Self {
        Self { worker, target, permit, named: Named::default() }
    }

    /// What to do with a request: as its destination says, or the Service that it names instead.
    async fn plan(&self, named: Option<&HeaderValue>) -> Result<Arc<Plan>, Fault> {
        match named {
            None => Ok(self.target.plan(&self.worker)),
            Some(named) => Box::pin(self.named.plan(&self.worker, named)).await,
        }
    }
}

/// An outbound request.
pub async fn outbound(context: Arc<Outbound>, mut request: Request<Body>) -> Result<Response<Body>, Fault> {
    let started = clock::now();
    let Outbound { worker, target, .. } = &*context;
    let config = &worker.proxy.config.outbound;
    let ingress = worker.proxy.config.ingress_mode;
    let asker = Asker::of(&request, config.informational_headers && !ingress);

    headers::complete_authority(&mut request);
    let connect = request.method() == Method::CONNECT;
    let header_list = worker.proxy.config.header_list(&config.http2);
    if let Err(fault) = headers::check(&request, header_list) {
        worker.proxy.metrics.outbound_http_fault(&fault);
        return Ok(respond::respond(&fault, asker));
    }
    let offered = headers::wants_upgrade(&request).then(|| upgrade::offered(&mut request)).flatten();
    headers::strip_hop_by_hop(request.headers_mut(), offered.is_some());
    let (mut required, mut asked) = (None, None);
    if headers::has_own(request.headers()) {
        asked = request.headers_mut().remove(headers::DST_OVERRIDE).filter(|_| ingress);
        headers::strip_outbound(request.headers_mut());
        required = request.headers_mut().remove(headers::REQUIRE_ID);
    }

    let view = View(&request);
    let plan = context.plan(asked.as_ref()).await.map(|plan| plan.named(|| view.authority()));
    let room = worker.proxy.has_room();
    let way = room.and_then(|()| route(plan.as_ref().map_err(Fault::clone)?, &request));
    let (required, keep) = (required.as_ref(), worker.proxy.config.limits.max_retry_body);
    let mirrored = AtomicBool::default();
    let sent = match way {
        Ok(Way { split, by: By::Rule(chosen) }) => {
            let (rule, prefix) = chosen.map_or((None, None), |(rule, prefix)| (Some(rule), prefix));
            let to = To { split, profiled: None, required, prefix, keep, mirrored };
            let sent = by_rule(worker, rule, to, started, offered.is_some(), &mut request).await;
            sent.map(|(sent, series)| (sent, series, None))
        }
        Ok(Way { split, by: By::Profile(plan, route) }) => {
            request.headers_mut().insert(headers::DST_CANONICAL, plan.canonical.clone());
            route.began();
            let to = To { split, profiled: Some(route), required, prefix: None, keep, mirrored };
            let sent = retry::by_profile(worker, &to, route, offered.is_some(), &mut request).await;
            if let Err(fault) = &sent {
                route.failed(fault, clock::now().since(started));
            }
            sent.map(|sent| (sent, None, Some(route.clone())))
        }
        Err(fault) => Err(fault),
    };
    let (sent, series, profiled) = match sent {
        Ok(sent) => sent,
        Err(fault) => {
            worker.proxy.metrics.outbound_http_fault(&fault);
            if let Fault::NoIdentity { .. } = fault {
                tracing::info!(target = %target.place, %fault, "request refused");
            }
            return refused_or_reset(fault, asker);
        }
    };
    let Sent { response, in_flight, endpoint, balanced, backend, since, .. } = sent;
    let routed = Routed { route: series.map(|series| (series, started)), backend };
    let exchange = Exchange::of(&response, endpoint.requests.clone(), since.unwrap_or(started));
    let exchange = exchange.of_route(profiled, started);
    let mut response = respond_with(response, exchange.outbound(in_flight, routed));
    match offered {
        Some(offered) if headers::is_upgrade(&response, connect) => {
            headers::strip_framing(response.headers_mut());
            offered.join(&mut response, &worker.proxy, Some(context.permit.clone()), pending());
        }
        Some(_) | None => headers::strip_hop_by_hop(response.headers_mut(), false),
    }
    let mut close = false;
    if headers::has_own(response.headers()) {
        // The other proxy's remarks are for this one; the application sees only ours.
        let meshed = endpoint::identity(endpoint.plan()).is_some();
        close = meshed && !balanced && headers::proxy_closes(response.headers());
        headers::strip_remarks(response.headers_mut(), meshed);
    }
    headers::own_version(&mut response);
    if close {
        // Without a balancer only the application can go elsewhere, and does when it has to connect again.
        respond::close(&mut response);
    }
    Ok(response)
}

/// Sends by the rule of a route, if there is one, and counts by its route.
async fn by_rule(
    worker: &Worker,
    rule: Option<&Rule>,
    to: To<'_>,
    started: Time,
    upgrade: bool,
    request: &mut Request<Body>,
) -> Result<(Sent, Option<Arc<RouteSeries>>), Fault> {
    let series = rule.map(|rule| rule.metrics.of(View(request).authority()));
    request.body_mut().measure(series.as_ref().map(|series| &series.frames));
    let sent = match rule.and_then(|rule| rule.ruled.as_deref()) {
        None => dispatch::send(&to, request).await,
        // Boxed: most rules do nothing but send.
        Some(ruled) => Box::pin(ruled::send(worker, to, ruled, started, upgrade, request)).await,
    };
    if let (Err(fault), Some(series)) = (&sent, &series) {
        series.failed(fault, started);
    }
    sent.map(|sent| (sent, series))
}

/// A response whose body is watched to its end.
fn respond_with(response: Response<Body>, exchange: Exchange) -> Response<Body> {
    response.map(|body| body.watched(Box::new(exchange)))
}

/// The one answer of a refused connection, for a client that has only the fault: it closes whatever the fault, since the
/// next connection may find the cause gone.
pub fn refuse(fault: &Fault, request: &Request<Body>, informational: bool) -> Response<Body> {
    let mut response = respond::respond(fault, Asker::of(request, informational));
    respond::close(&mut response);
    response
}

/// An answer to a client that is refused, which the log tells.
fn refused_by(
    connection: &Connection,
    fault: &Fault,
    asker: Asker,
    metrics: &RequestMetrics,
    started: Time,
) -> Response<Body> {
    tracing::info!(client = %connection.client, target = %connection.target, %fault, "request refused");
    answer(fault, asker, metrics, started)
}

/// An answer that this proxy makes up, counted like any other.
fn answer(fault: &Fault, asker: Asker, metrics: &RequestMetrics, started: Time) -> Response<Body> {
    let response = respond::respond(fault, asker);
    if !fault.is_wanted() {
        metrics.fault(fault);
    }
    metrics.failed_with(fault, asker.grpc, None, clock::now().since(started));
    response
}

/// An answer that says, if it is to another proxy, that the application saw nothing of the request.
fn unprocessed(mut response: Response<Body>, meshed: bool) -> Response<Body> {
    if meshed {
        headers::mark_unprocessed(response.headers_mut());
    }
    response
}

/// A failed exchange with the application: an HTTP/2 reset travels on as a reset, unless the request had been HTTP/1.
fn failed(
    fault: Fault,
    asker: Asker,
    metrics: &RequestMetrics,
    started: Time,
    was_http1: bool,
) -> Result<Response<Body>, Fault> {
    if asker.version == Version::HTTP_2 && !was_http1 && fault.is_reset() {
        metrics.fault(&fault);
        metrics.failed(&fault, clock::now().since(started));
        return Err(fault);
    }
    Ok(answer(&fault, asker, metrics, started))
}

fn refused_or_reset(fault: Fault, asker: Asker) -> Result<Response<Body>, Fault> {
    if asker.version == Version::HTTP_2 && fault.is_reset() {
        return Err(fault);
    }
    Ok(respond::respond(&fault, asker))
}

//! Requests that may be sent again, by a ServiceProfile or by a route's rule: tried, looked at and tried again. Whether is
//! decided in [`remora_core::retry`].

use super::{
    body::Body,
    dispatch::{self, Begun, Failed, Sent, To},
    exchange::{Class, GrpcStatus, classify_grpc, classify_status, grpc_status, is_grpc},
    headers,
    replay::Recorded,
};
use crate::{
    Worker,
    config::Limits,
    endpoint::LiveEndpoint,
    fault::Fault,
    http1::head::Spelling,
    metrics::{
        profiles::RetriesSkipped,
        routes::{End, RetryMetrics, Routed},
    },
    profile::{Retries, Route},
};
use http::{Request, Response};
use http_body::Body as _;
use remora_core::{
    backoff::Backoff,
    retry::{Attempt, BACKOFF, Decision, Kept, Tried},
    route::RetryPolicy,
    time::Time,
};
use remora_runtime::clock;
use std::{future::poll_fn, pin::Pin, sync::Arc, task::Poll, time::Duration};
use tokio::time::timeout;

/// How long the head of a gRPC answer without a status may wait for trailers behind it: an answer that has nothing else
/// has them at once, and one that streams is held back no longer than this.
const PEEK: Duration = Duration::from_millis(10);
/// Bytes of an answer that nobody wants that are read, so that its connection can be used again.
const UNWANTED: usize = 64 * 1024;

/// Sends by the route of a profile, again where it says so, and waits for the answer no longer than it allows.
/// `upgrade`: the request may stop being HTTP, and then nothing can be sent again.
pub(super) async fn by_profile(
    worker: &Worker,
    to: &To<'_>,
    route: &Route,
    upgrade: bool,
    request: &mut Request<Body>,
) -> Result<Sent, Fault> {
    let retries = route.retries.as_ref().filter(|_| !upgrade);
    if retries.is_none() && route.timeout.is_none() {
        return dispatch::send(to, request).await;
    }
    let until = route.timeout.map(|limit| clock::now() + limit);
    let sending = async {
        match retries {
            Some(retries) => tries(worker, to, &Word::Profile(route, retries), until, request).await,
            None => dispatch::send(to, request).await,
        }
    };
    // Boxed: few routes have either.
    let sending = Box::pin(sending);
    let Some(limit) = route.timeout else { return sending.await };
    timeout(limit, sending).await.unwrap_or_else(|_| Err(route.late(limit)))
}

/// Whose word it is that requests are sent again.
pub(super) enum Word<'a> {
    /// By the classes of a ServiceProfile, within its budget.
    Profile(&'a Route, &'a Retries),
    /// By the statuses of a route's rule, up to its limit.
    Rule(&'a RetryPolicy, &'a RetryMetrics),
}

/// What of an answer decides whether it is one that is passed on.
struct Judged {
    class: Class,
    grpc: Option<GrpcStatus>,
    /// Whether another try may replace it.
    failure: bool,
}

impl Word<'_> {
    fn most(&self, limits: &Limits) -> u32 {
        match self {
            Self::Profile(..) => limits.max_retries,
            Self::Rule(policy, _) => policy.limit.min(limits.max_retries),
        }
    }

    fn max_body(&self, limits: &Limits) -> usize {
        match self {
            Self::Profile(..) => limits.max_retry_body,
            Self::Rule(policy, _) => policy.max_bytes.min(limits.max_retry_body),
        }
    }

    fn backoff(&self) -> Backoff {
        match self {
            Self::Profile(..) => BACKOFF,
            Self::Rule(policy, _) => policy.backoff,
        }
    }

    /// How long the head of an answer may take where another try could follow.
    fn try_timeout(&self) -> Option<Duration> {
        match self {
            Self::Profile(..) => None,
            Self::Rule(policy, _) => policy.timeout,
        }
    }

    /// Counts what was decided after `made` retries; by a profile it is counted where it is decided.
    fn count(&self, decision: Decision, made: u32) {
        if let Self::Rule(_, counted) = self {
            counted.count(decision, made);
        }
    }

    /// By the profile's classes or the rule's statuses, else by the status of gRPC where it can be known now, else by
    /// that of HTTP.
    async fn judge(&self, response: &mut Response<Body>) -> Judged {
        let status = response.status().as_u16();
        let (said, peek) = match self {
            Self::Profile(route, _) => (route.class(status), true),
            Self::Rule(policy, _) => (None, !policy.codes.is_empty()),
        };
        let mut code = None;
        let is_grpc = is_grpc(response.headers());
        if is_grpc {
            code = grpc_status(response.headers());
            if code.is_none() && said.is_none() && peek {
                let first = poll_fn(|cx| {
                    let trailers = response.body_mut().poll_trailers_only(cx);
                    trailers.map(|trailers| trailers.and_then(grpc_status))
                });
                code = timeout(PEEK, first).await.ok().flatten();
            }
        }
        let by_itself = || code.map_or_else(|| classify_status(status), classify_grpc);
        let class = said.unwrap_or_else(by_itself);
        let failure = match self {
            Self::Profile(..) => class == Class::Failure,
            Self::Rule(policy, _) => policy.is_failure(status, code),
        };
        Judged { class, grpc: is_grpc.then_some(GrpcStatus(code)), failure }
    }
}

/// Tries until there is an answer to pass on, or no reason for another try. `until`: when nobody waits any more.
pub(super) async fn tries(
    worker: &Worker,
    to: &To<'_>,
    word: &Word<'_>,
    until: Option<Time>,
    request: &mut Request<Body>,
) -> Result<Sent, Fault> {
    if let Word::Profile(_, retries) = word {
        retries.began(clock::now());
    }
    let (limits, skipped) = (&worker.proxy.config.limits, &worker.proxy.metrics.retries_skipped);
    let idempotent = request.method().is_idempotent();
    let tries = Tries { to, word, limits, skipped, until, idempotent };
    let (head, body) = std::mem::replace(request, Request::new(Body::absent())).into_parts();
    let mut bodies = Bodies::of(body, word.max_body(limits));
    let mut failed: Option<Arc<LiveEndpoint>> = None;
    for made in 0.. {
        let Some(body) = bodies.next() else { break };
        let mut request = Request::from_parts(head.clone(), body);
        match tries.once(made, failed.as_ref(), &mut request, &bodies).await {
            Outcome::Over(sent) => return *sent,
            Outcome::Again(delay, endpoint) => {
                failed = endpoint.or(failed);
                tokio::time::sleep(delay).await;
            }
        }
    }
    // No retry is decided on for a body that is not there.
    Err(Fault::Body("it cannot be sent again".into()))
}

/// What all tries of a request share.
struct Tries<'a> {
    to: &'a To<'a>,
    word: &'a Word<'a>,
    limits: &'a Limits,
    skipped: &'a RetriesSkipped,
    until: Option<Time>,
    idempotent: bool,
}

/// What follows a try.
enum Outcome {
    Over(Box<Result<Sent, Fault>>),
    /// Another one, after this time, elsewhere than here.
    Again(Duration, Option<Arc<LiveEndpoint>>),
}

impl Tries<'_> {
    /// One try; `made` are before it.
    async fn once(
        &self,
        made: u32,
        avoid: Option<&Arc<LiveEndpoint>>,
        request: &mut Request<Body>,
        bodies: &Bodies,
    ) -> Outcome {
        let (began, mut begun) = (clock::now(), None);
        let mut trying = Box::pin(dispatch::send_avoiding(avoid, self.to, &mut begun, request));
        let mut sent = None;
        if let Some(limit) = self.word.try_timeout().filter(|_| made < self.word.most(self.limits)) {
            sent = timeout(limit, &mut trying).await.ok();
            // Where no other try may follow, this one may take its time.
            if sent.is_none()
                && let Decision::Again(delay) = self.decide(Tried::Unanswered, bodies, made)
            {
                drop(trying);
                self.word.count(Decision::Again(delay), made);
                return Outcome::Again(delay, begun.map(|begun| self.took_too_long(begun, limit)));
            }
        }
        let mut sent = match sent {
            Some(sent) => sent,
            None => trying.await,
        };
        let (tried, judged) = match &mut sent {
            Ok(sent) => {
                sent.since = Some(began);
                let judged = self.word.judge(&mut sent.response).await;
                (answered(sent, judged.failure), Some(judged))
            }
            Err(failed) => (failed.tried, None),
        };
        let decision = self.decide(tried, bodies, made);
        self.word.count(decision, made);
        match decision {
            Decision::Not(reason) => {
                self.skipped.count(reason);
                Outcome::Over(Box::new(sent.map_err(|failed| failed.fault)))
            }
            Decision::Again(delay) => Outcome::Again(delay, self.give_up(sent, judged).await),
        }
    }

    fn decide(&self, tried: Tried, bodies: &Bodies, made: u32) -> Decision {
        let now = clock::now();
        let attempt = Attempt {
            tried,
            body: bodies.kept(),
            idempotent: self.idempotent,
            made,
            most: self.word.most(self.limits),
            left: self.until.map(|until| until.since(now)),
            backoff: self.word.backoff(),
            random: clock::random(),
        };
        match self.word {
            Word::Profile(_, retries) => retries.decide(&attempt, now),
            Word::Rule(..) => attempt.decide(None, now),
        }
    }

    /// Counts a try whose end is not waited for.
    fn took_too_long(&self, begun: Begun, limit: Duration) -> Arc<LiveEndpoint> {
        begun.failed(self.to, &Fault::ResponseTimeout { route: "retries".into(), limit });
        begun.endpoint
    }

    /// Counts what is not passed on; the endpoint that it came from.
    async fn give_up(&self, sent: Result<Sent, Failed>, judged: Option<Judged>) -> Option<Arc<LiveEndpoint>> {
        let Sent { response, in_flight, endpoint, since, backend, .. } = match sent {
            Ok(sent) => sent,
            // Counted where it happened.
            Err(failed) => return failed.endpoint,
        };
        if let Some(Judged { class, grpc, .. }) = judged {
            let status = response.status().as_u16();
            let latency = since.map_or(Duration::ZERO, |since| clock::now().since(since));
            endpoint.requests.response(status, class, grpc, None, latency);
            if let Some(route) = self.to.profiled {
                route.try_answered(status, class, grpc, latency);
            }
            let grpc = grpc.and_then(|grpc| grpc.0);
            Routed { route: None, backend }
                .ended(End { status: Some(status), grpc, error: None }, clock::now());
        }
        discard(response.into_body()).await;
        drop(in_flight);
        Some(endpoint)
    }
}

/// What an answer says of its request. One that the server's proxy made up is none of the application: nobody knows what
/// that did with the request, unless it says that the application did not see it.
fn answered(sent: &Sent, failure: bool) -> Tried {
    if sent.unprocessed {
        return Tried::Unprocessed;
    }
    let made_up = failure && sent.response.headers().contains_key(headers::PROXY_ERROR);
    if made_up { Tried::Unanswered } else { Tried::Answered { failure } }
}

/// Reads what is there of a body.
async fn discard(mut body: Body) {
    let mut read = 0;
    poll_fn(|cx| {
        while read < UNWANTED {
            match Pin::new(&mut body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => read += frame.data_ref().map_or(0, bytes::Bytes::len),
                Poll::Ready(Some(Err(_)) | None) | Poll::Pending => break,
            }
        }
        Poll::Ready(())
    })
    .await;
}

/// The body of each try.
enum Bodies {
    /// There is none.
    Absent(Spelling),
    /// It is known to be longer than is kept: there is one try.
    Once(Option<Body>),
    Recorded(Recorded),
}

impl Bodies {
    fn of(body: Body, limit: usize) -> Self {
        if body.is_absent() {
            Self::Absent(body.spelling.clone())
        } else if body.length().is_some_and(|length| length > limit as u64) {
            Self::Once(Some(body))
        } else {
            Self::Recorded(Recorded::new(body, limit))
        }
    }

    fn next(&mut self) -> Option<Body> {
        match self {
            Self::Absent(spelling) => Some(Body::absent().spelled(spelling.clone())),
            Self::Once(body) => body.take(),
            Self::Recorded(recorded) => recorded.begin(),
        }
    }

    fn kept(&self) -> Kept {
        match self {
            Self::Absent(_) => Kept::Whole,
            Self::Once(_) => Kept::TooLong,
            Self::Recorded(recorded) => recorded.kept(),
        }
    }
}

//! Requests of retryable routes: tried, looked at and tried again. Whether is decided in [`remora_core::retry`].

use super::{
    body::Body,
    dispatch::{self, Failed, Sent},
    exchange::{Class, GrpcStatus, classify_grpc, classify_status, grpc_status, is_grpc},
    headers,
    replay::Recorded,
};
use crate::{
    Worker,
    config::Limits,
    discover::target::Split,
    endpoint::LiveEndpoint,
    fault::Fault,
    http1::head::Spelling,
    metrics::profiles::RetriesSkipped,
    profile::{Retries, Route},
};
use http::{HeaderValue, Request, Response};
use http_body::Body as _;
use remora_core::{
    retry::{Attempt, Decision, Kept, Tried},
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
pub(super) async fn send(
    worker: &Worker,
    split: &Split,
    route: &Route,
    required: Option<&HeaderValue>,
    upgrade: bool,
    request: &mut Request<Body>,
) -> Result<Sent, Fault> {
    let Some(retries) = route.retries.as_ref().filter(|_| !upgrade) else {
        return dispatch::send_in_time(split, route, required, request).await;
    };
    let (limits, skipped) = (&worker.proxy.config.limits, &worker.proxy.metrics.retries_skipped);
    let sending = Sending { split, route, retries, required, limits, skipped };
    // Boxed: few routes have retries.
    Box::pin(sending.in_time(request)).await
}

/// What all tries of a request share.
struct Sending<'a> {
    split: &'a Split,
    route: &'a Route,
    retries: &'a Retries,
    required: Option<&'a HeaderValue>,
    limits: &'a Limits,
    skipped: &'a RetriesSkipped,
}

/// What of an answer decides whether it is one that is passed on.
struct Judged {
    class: Class,
    grpc: Option<GrpcStatus>,
}

impl Sending<'_> {
    async fn in_time(&self, request: &mut Request<Body>) -> Result<Sent, Fault> {
        self.retries.began(clock::now());
        let Some(limit) = self.route.timeout else { return self.tries(request, None).await };
        let until = clock::now() + limit;
        let in_time = timeout(limit, Box::pin(self.tries(request, Some(until)))).await;
        in_time.unwrap_or_else(|_| Err(self.route.late(limit)))
    }

    async fn tries(&self, request: &mut Request<Body>, until: Option<Time>) -> Result<Sent, Fault> {
        let idempotent = request.method().is_idempotent();
        let (head, body) = std::mem::replace(request, Request::new(Body::absent())).into_parts();
        let mut bodies = Bodies::of(body, self.limits.max_retry_body);
        let mut failed: Option<Arc<LiveEndpoint>> = None;
        for made in 0.. {
            let Some(body) = bodies.next() else { break };
            let mut request = Request::from_parts(head.clone(), body);
            let began = clock::now();
            let sent = dispatch::send_avoiding(
                failed.as_ref(),
                self.split,
                Some(self.route),
                self.required,
                &mut request,
            );
            let mut sent = sent.await;
            let (tried, judged) = match &mut sent {
                Ok(sent) => {
                    sent.since = Some(began);
                    let judged = self.judge(&mut sent.response).await;
                    (answered(&sent.response, judged.class), Some(judged))
                }
                Err(failed) => (failed.tried, None),
            };
            let now = clock::now();
            let attempt = Attempt {
                tried,
                body: bodies.kept(),
                idempotent,
                made,
                most: self.limits.max_retries,
                left: until.map(|until| until.since(now)),
                random: clock::random(),
            };
            match self.retries.decide(&attempt, now) {
                Decision::Not(reason) => {
                    self.skipped.count(reason);
                    return sent.map_err(|failed| failed.fault);
                }
                Decision::Again(delay) => {
                    failed = self.give_up(sent, judged).await.or(failed);
                    tokio::time::sleep(delay).await;
                }
            }
        }
        // No retry is decided on for a body that is not there.
        Err(Fault::Body("it cannot be sent again".into()))
    }

    /// By the profile's classes, else by the status of gRPC where it can be known now, else by that of HTTP.
    async fn judge(&self, response: &mut Response<Body>) -> Judged {
        let status = response.status().as_u16();
        let said = self.route.class(status);
        if !is_grpc(response.headers()) {
            return Judged { class: said.unwrap_or_else(|| classify_status(status)), grpc: None };
        }
        let mut code = grpc_status(response.headers());
        if code.is_none() && said.is_none() {
            let first = poll_fn(|cx| {
                let trailers = response.body_mut().poll_trailers_only(cx);
                trailers.map(|trailers| trailers.and_then(grpc_status))
            });
            code = timeout(PEEK, first).await.ok().flatten();
        }
        let by_itself = || code.map_or_else(|| classify_status(status), classify_grpc);
        Judged { class: said.unwrap_or_else(by_itself), grpc: Some(GrpcStatus(code)) }
    }

    /// Counts what is not passed on; the endpoint that it came from.
    async fn give_up(&self, sent: Result<Sent, Failed>, judged: Option<Judged>) -> Option<Arc<LiveEndpoint>> {
        let Sent { response, in_flight, endpoint, since, .. } = match sent {
            Ok(sent) => sent,
            // Counted where it happened.
            Err(failed) => return failed.endpoint,
        };
        if let Some(Judged { class, grpc }) = judged {
            let status = response.status().as_u16();
            let latency = since.map_or(Duration::ZERO, |since| clock::now().since(since));
            endpoint.requests.response(status, class, grpc, None, latency);
            self.route.try_answered(status, class, grpc, latency);
        }
        discard(response.into_body()).await;
        drop(in_flight);
        Some(endpoint)
    }
}

/// What an answer says of its request. One that the server's proxy made up is none of the application: nobody knows what
/// that did with the request.
fn answered(response: &Response<Body>, class: Class) -> Tried {
    let failure = class == Class::Failure;
    let made_up = failure && response.headers().contains_key(headers::PROXY_ERROR);
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

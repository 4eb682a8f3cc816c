//! Sends copies of requests to somebody else as well (Gateway API, HTTPRequestMirrorFilter). Nobody waits for what becomes
//! of them: the request goes its way, whatever the mirror does.

use super::{
    body::Body,
    copies::copies,
    dispatch::{self, Sent, To},
    exchange::Exchange,
};
use crate::{
    Worker,
    discover::{
        backend::Wanted,
        target::{Split, split},
    },
    metrics::{
        BackendMetrics,
        routes::{MirrorMetrics, Routed},
    },
};
use http::{Method, Request, header};
use http_body_util::BodyExt as _;
use remora_core::{
    balance::Balancings,
    policy::ResourceRef,
    route::{Distribution, Filter, Ratio},
};
use remora_runtime::{clock, tasks::Tasks};
use std::{
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};
use tokio::sync::Semaphore;

/// Copies that a rule, or a backend, has under way at once, per worker; further requests are not mirrored.
const MAX_MIRRORED: usize = 256;
/// For how long a copy may be under way, answer and all.
const PATIENCE: Duration = Duration::from_secs(30);

/// The mirrors of a rule or backend.
pub struct Mirrors {
    tasks: Tasks,
    /// Who gets them, and how many.
    to: Vec<(Arc<Split>, Ratio)>,
    room: Arc<Semaphore>,
    metrics: Arc<MirrorMetrics>,
}

impl Mirrors {
    /// `None`: there are none.
    pub fn compile(
        worker: &Arc<Worker>,
        filters: &[Filter],
        balancing: &Balancings,
        metrics: impl FnOnce() -> Option<MirrorMetrics>,
        backend: &dyn Fn(&ResourceRef) -> Option<Arc<BackendMetrics>>,
    ) -> Option<Box<Self>> {
        let wanted = Wanted { accrual: None, balancing };
        let to: Vec<_> = filters
            .iter()
            .filter_map(|filter| match filter {
                Filter::Mirror(mirror) => {
                    let only = Arc::new(Distribution::FirstAvailable(vec![mirror.backend.clone()]));
                    Some((split(worker, &only, wanted, backend, &|| None), mirror.share))
                }
                _ => None,
            })
            .collect();
        if to.is_empty() {
            return None;
        }
        let (tasks, metrics) = (worker.proxy.tasks.clone(), Arc::new(metrics()?));
        Some(Box::new(Self { tasks, to, room: Arc::new(Semaphore::new(MAX_MIRRORED)), metrics }))
    }

    /// Begins to send the request to whom it hits. What may stop being HTTP has no copy.
    pub(super) fn send(&self, request: &mut Request<Body>) {
        if request.method() == Method::CONNECT || request.headers().contains_key(header::UPGRADE) {
            return;
        }
        let hit = self.to.iter().filter(|(_, share)| share.hits(clock::random()));
        let mut begun = Vec::new();
        for (to, _) in hit {
            match self.room.clone().try_acquire_owned() {
                Ok(permit) => begun.push((to.clone(), permit)),
                Err(_) => self.metrics.skipped.inc(),
            }
        }
        if begun.is_empty() {
            return;
        }
        let bodies = if request.body().is_absent() {
            let spelling = &request.body().spelling;
            begun.iter().map(|_| Body::absent().spelled(spelling.clone())).collect()
        } else if let Some(recorded) = request.body().recorded() {
            // Of whichever try goes on to the end.
            recorded.copies(begun.len())
        } else {
            let body = std::mem::replace(request.body_mut(), Body::absent());
            let (body, copies) = copies(body, begun.len());
            *request.body_mut() = body;
            copies
        };
        for ((to, permit), body) in begun.into_iter().zip(bodies) {
            let (copy, metrics) = (copy(request, body), self.metrics.clone());
            self.tasks.spawn("mirror", async move {
                let _permit = permit;
                match tokio::time::timeout(PATIENCE, exchange(&to, copy)).await {
                    Ok(true) => metrics.answered.inc(),
                    Ok(false) | Err(_) => metrics.failed.inc(),
                }
            });
        }
    }
}

fn copy(request: &Request<Body>, body: Body) -> Request<Body> {
    let mut copy = Request::new(body);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    copy
}

/// Sends a copy and reads its answer to the end. Whether there was one.
async fn exchange(split: &Split, mut request: Request<Body>) -> bool {
    let to =
        To { split, profiled: None, required: None, prefix: None, keep: 0, mirrored: AtomicBool::default() };
    let started = clock::now();
    let sent = match dispatch::send(&to, &mut request).await {
        Ok(sent) => sent,
        Err(fault) => {
            tracing::debug!(%fault, "a mirrored request failed");
            return false;
        }
    };
    let Sent { response, in_flight, endpoint, backend, .. } = sent;
    let watched = Exchange::of(&response, endpoint.requests.clone(), started);
    let watched = watched.outbound(in_flight, Routed { route: None, backend });
    let mut body = response.into_body().watched(Box::new(watched));
    // A piece at a time: none of it is kept.
    while let Some(frame) = body.frame().await {
        if frame.is_err() {
            return false;
        }
    }
    true
}

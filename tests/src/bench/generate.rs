//! The load: a closed loop on one thread within a pod's network, so that the pod's rules redirect it as they redirect an
//! application. Nothing is retried, and of every answer the status and the length of the body are looked at.

mod http1;
mod http2;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use tokio::task::JoinSet;

use super::loads::{Load, Traffic};
use super::stats::Histogram;
use crate::node::PodRef;
use crate::sandbox::join_net;

pub use http1::Held;

/// A request that takes longer has failed.
const LIMIT: Duration = Duration::from_secs(10);
/// Failures that are told in full.
const TOLD: usize = 3;
/// Whoever fails waits so long before the next attempt: a refused connection would otherwise be a load of its own.
const PAUSE: Duration = Duration::from_millis(20);

/// Where the load goes, and what has to come back.
#[derive(Clone, Debug)]
pub struct Target {
    pub addr: SocketAddr,
    /// The Host field, or `:authority`.
    pub host: String,
    pub path: &'static str,
    pub body: u64,
}

/// Asks until an answer is as it has to be, or `limit` has passed: discovery and DNS need a moment at first.
pub(in crate::bench) fn until_answered(
    pod: &PodRef<'_>,
    target: &Target,
    http2: bool,
    limit: Duration,
) -> Result<()> {
    let deadline = Instant::now() + limit;
    let once =
        || if http2 { ask_over_http2(pod, target) } else { Held::open(pod, target.clone(), 1)?.close() };
    loop {
        match once() {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() > deadline => {
                return Err(error.context(format!("{} of {} did not answer", target.path, target.addr)));
            }
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}

fn ask_over_http2(pod: &PodRef<'_>, target: &Target) -> Result<()> {
    let (sandbox, target) = (pod.sandbox()?, target.clone());
    let asking = std::thread::spawn(move || {
        join_net(sandbox)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let asked = async { tokio::time::timeout(LIMIT, http2::once(&target)).await };
        runtime.block_on(asked).context("no answer in time")?
    });
    asking.join().map_err(|_| anyhow!("the thread that asks over HTTP/2 panicked"))?
}

/// What has been counted so far; looked at while the load runs.
pub struct Counted {
    requests: AtomicU64,
    failed: AtomicU64,
    bytes: AtomicU64,
    stop: AtomicBool,
    /// Requests that may still be begun.
    left: AtomicU64,
    /// Latencies in nanoseconds; taken when a measurement begins and when it ends.
    latencies: Mutex<Histogram>,
    failures: Mutex<Vec<String>>,
}

/// The counts at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Counts {
    pub requests: u64,
    pub failed: u64,
    pub bytes: u64,
    pub at: Instant,
}

impl Counted {
    /// For a load of at most so many requests.
    fn limited(requests: u64) -> Self {
        Self {
            requests: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            left: AtomicU64::new(requests),
            latencies: Mutex::default(),
            failures: Mutex::default(),
        }
    }

    /// Whether another request is to be made; it has to be made then.
    fn another(&self) -> bool {
        let one_less = |left: u64| left.checked_sub(1);
        !self.stopped() && self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok()
    }

    /// Whether no request will be made any more.
    fn over(&self) -> bool {
        self.stopped() || self.left.load(Ordering::Relaxed) == 0
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn received(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn answered(&self, began: Instant) {
        let nanos = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        lock(&self.latencies).record(nanos);
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes a failure and waits a little. What fails after the load was stopped has not failed.
    async fn failed(&self, error: &anyhow::Error) {
        if self.stopped() {
            return;
        }
        self.failed.fetch_add(1, Ordering::Relaxed);
        self.note(error);
        tokio::time::sleep(PAUSE).await;
    }

    fn note(&self, error: &anyhow::Error) {
        let mut failures = lock(&self.failures);
        if failures.len() < TOLD {
            failures.push(format!("{error:#}"));
        }
    }
}

/// A load that runs until it is finished or dropped.
pub struct Generator {
    counted: Arc<Counted>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Generator {
    /// Begins. Pinned as the calling thread is.
    pub fn start(pod: &PodRef<'_>, target: Target, load: Load) -> Result<Self> {
        Self::limited(pod, target, load, u64::MAX)
    }

    /// [`Self::start`] for a load that ends after so many requests.
    pub fn limited(pod: &PodRef<'_>, target: Target, load: Load, requests: u64) -> Result<Self> {
        let counted = Arc::new(Counted::limited(requests));
        let (sandbox, of_thread) = (pod.sandbox()?, counted.clone());
        let thread = std::thread::Builder::new().name("load".into()).spawn(move || {
            join_net(sandbox)?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(run(load, Arc::new(target), of_thread))
        })?;
        Ok(Self { counted, thread: Some(thread) })
    }

    /// The counts now.
    pub fn counts(&self) -> Counts {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let Counted { requests, failed, bytes, .. } = &*self.counted;
        Counts { requests: read(requests), failed: read(failed), bytes: read(bytes), at: Instant::now() }
    }

    /// The latencies since this was asked before.
    pub fn take_latencies(&self) -> Histogram {
        std::mem::take(&mut *lock(&self.counted.latencies))
    }

    /// Stops, and says which failures came first, those of the whole load.
    pub fn finish(mut self) -> Result<Vec<String>> {
        self.counted.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().map_err(|_| anyhow!("the load's thread panicked"))??;
        }
        Ok(lock(&self.counted.failures).clone())
    }
}

impl Drop for Generator {
    fn drop(&mut self) {
        self.counted.stop.store(true, Ordering::Relaxed);
    }
}

async fn run(load: Load, target: Arc<Target>, counted: Arc<Counted>) -> Result<()> {
    let mut clients = JoinSet::new();
    for _ in 0..load.connections {
        let (target, counted) = (target.clone(), counted.clone());
        match load.traffic {
            Traffic::Kept | Traffic::Bulk => clients.spawn(http1::kept(target, counted)),
            Traffic::Fresh => clients.spawn(http1::fresh(target, counted)),
            Traffic::Streams(streams) => clients.spawn(http2::streams(target, counted, streams)),
        };
    }
    let ended = async {
        while let Some(client) = clients.join_next().await {
            client.context("a client of the load panicked")?;
        }
        Ok(())
    };
    let stuck = async {
        while !counted.stopped() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // Whoever waits for an answer still may do so for a while.
        tokio::time::sleep(LIMIT).await;
    };
    tokio::select! {
        ended = ended => ended,
        () = stuck => Err(anyhow!("a request was not answered within {LIMIT:?} of the load's end")),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

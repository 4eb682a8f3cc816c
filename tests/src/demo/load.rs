//! Load, made within a pod's network: an open loop that keeps its rate whatever the answers do, and a closed loop that
//! goes as fast as the answers come. Neither ever retries, and every request that is not answered well is a failure.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::node::PodRef;

/// A request that takes longer has failed.
const LIMIT: Duration = Duration::from_secs(5);
/// Failures that are told in full.
const TOLD: usize = 5;

/// What is asked for, by HTTP/1.1.
#[derive(Clone, Debug)]
pub struct Target {
    pub addr: SocketAddr,
    /// The Host field.
    pub host: String,
    pub path: String,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub requests: usize,
    pub failed: usize,
    /// The first failures, in words.
    pub failures: Vec<String>,
    /// Connections that were opened, by either kind of request.
    pub connections: usize,
    /// Requests that had a connection of their own, opened for them.
    pub fresh: usize,
    /// Of the requests that did not fail. In the open loop from the moment at which the request was due.
    pub latencies: Vec<Duration>,
    /// For how long requests were sent.
    pub took: Duration,
}

impl Report {
    /// The latency that this share of the requests (0 to 1) did not exceed.
    pub fn percentile(&self, share: f64) -> Duration {
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        let nth = (share * sorted.len() as f64).ceil() as usize;
        sorted.get(nth.saturating_sub(1)).copied().unwrap_or_default()
    }

    /// Answered requests per second.
    pub fn rate(&self) -> f64 {
        self.latencies.len() as f64 / self.took.as_secs_f64().max(f64::MIN_POSITIVE)
    }

    fn record(&mut self, due: Instant, outcome: Result<()>) {
        self.requests += 1;
        match outcome {
            Ok(()) => self.latencies.push(due.elapsed()),
            Err(error) => {
                self.failed += 1;
                if self.failures.len() < TOLD {
                    self.failures.push(format!("{error:#}"));
                }
            }
        }
    }
}

/// Sends `rate` requests a second until `stop` is set, on the pod's network: every other one to `fresh` on a connection of
/// its own, the rest to `kept` on kept connections. A late answer delays no request.
pub fn open_loop(
    pod: &PodRef<'_>,
    kept: &Target,
    fresh: &Target,
    rate: u32,
    stop: &AtomicBool,
) -> Result<Report> {
    within(pod, async {
        let shared = Arc::new(Shared::default());
        let mut under_way = JoinSet::new();
        let mut due = interval(Duration::from_secs(1) / rate.max(1));
        // What was missed while this machine was busy is sent at once: the rate is kept.
        due.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let began = Instant::now();
        let mut nth = 0_u64;
        while !stop.load(Ordering::Relaxed) {
            let instant = due.tick().await.into_std();
            nth += 1;
            let is_fresh = nth.is_multiple_of(2);
            let (shared, target) = (shared.clone(), if is_fresh { fresh } else { kept }.clone());
            under_way.spawn(async move {
                let outcome = limited(shared.ask(&target, is_fresh)).await;
                shared.report(|report| {
                    report.fresh += usize::from(is_fresh);
                    report.record(instant, outcome);
                });
            });
            while under_way.try_join_next().is_some() {}
        }
        let took = began.elapsed();
        while under_way.join_next().await.is_some() {}
        Ok(Report { took, ..shared.report(std::mem::take) })
    })
}

/// Keeps `connections` busy for `time`, each with one request after the other.
pub fn closed_loop(pod: &PodRef<'_>, target: &Target, connections: usize, time: Duration) -> Result<Report> {
    within(pod, async {
        let shared = Arc::new(Shared::default());
        let mut clients = JoinSet::new();
        let began = Instant::now();
        for _ in 0..connections {
            let (shared, target) = (shared.clone(), target.clone());
            clients.spawn(async move {
                let mut own = Report::default();
                let mut kept = None;
                while began.elapsed() < time {
                    let due = Instant::now();
                    let outcome = limited(shared.ask_on(&mut kept, &target)).await;
                    own.record(due, outcome);
                }
                shared.report(|all| {
                    all.requests += own.requests;
                    all.failed += own.failed;
                    all.failures.append(&mut own.failures);
                    all.latencies.append(&mut own.latencies);
                });
            });
        }
        while clients.join_next().await.is_some() {}
        Ok(Report { took: began.elapsed(), ..shared.report(std::mem::take) })
    })
}

fn within<T: Send>(pod: &PodRef<'_>, work: impl Future<Output = Result<T>> + Send) -> Result<T> {
    pod.enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(work)
    })?
}

async fn limited(asking: impl Future<Output = Result<()>>) -> Result<()> {
    match timeout(LIMIT, asking).await {
        Ok(outcome) => outcome,
        Err(_) => bail!("no answer within {LIMIT:?}"),
    }
}

type Connection = SendRequest<Empty<Bytes>>;

#[derive(Default)]
struct Shared {
    report: Mutex<Report>,
    idle: Mutex<Vec<Connection>>,
}

impl Shared {
    fn report<T>(&self, change: impl FnOnce(&mut Report) -> T) -> T {
        change(&mut self.report.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn idle<T>(&self, change: impl FnOnce(&mut Vec<Connection>) -> T) -> T {
        change(&mut self.idle.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn ask(&self, target: &Target, fresh: bool) -> Result<()> {
        let mut kept = if fresh { None } else { self.idle(Vec::pop) };
        self.ask_on(&mut kept, target).await?;
        if let Some(kept) = kept.filter(|_| !fresh) {
            self.idle(|idle| idle.push(kept));
        }
        Ok(())
    }

    /// One request on the kept connection, or on a new one, which is then kept. One that was closed before anything was
    /// sent on it is replaced, as every client does; once a byte may have left, a failure is a failure.
    async fn ask_on(&self, kept: &mut Option<Connection>, target: &Target) -> Result<()> {
        let usable = match kept.take() {
            Some(mut sender) => sender.ready().await.is_ok().then_some(sender),
            None => None,
        };
        let mut sender = match usable {
            Some(sender) => sender,
            None => self.connect(target.addr).await?,
        };
        let request = Request::get(&target.path).header(header::HOST, &target.host).body(Empty::new())?;
        let response = sender.send_request(request).await.context("sending the request")?;
        let status = response.status();
        let body = response.into_body().collect().await.context("reading the answer")?.to_bytes();
        if status != StatusCode::OK {
            bail!("{status}: {}", String::from_utf8_lossy(&body).trim());
        }
        *kept = Some(sender);
        Ok(())
    }

    async fn connect(&self, addr: SocketAddr) -> Result<Connection> {
        let stream = TcpStream::connect(addr).await.context("connecting")?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        // Ends with the sender; what goes wrong on it is told by the request that it carries.
        tokio::spawn(connection);
        self.report(|report| report.connections += 1);
        Ok(sender)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_a_latency_that_occurred() {
        let report =
            Report { latencies: (1..=200).rev().map(Duration::from_millis).collect(), ..Report::default() };
        for (share, expected) in [(0.0, 1), (0.5, 100), (0.99, 198), (1.0, 200)] {
            assert_eq!(report.percentile(share), Duration::from_millis(expected), "{share}");
        }
        assert_eq!(Report::default().percentile(0.5), Duration::ZERO);
    }

    #[test]
    fn every_failure_counts_and_the_first_are_told() {
        let mut report = Report::default();
        for n in 0..9 {
            report.record(Instant::now(), Err(anyhow::anyhow!("failure {n}")));
        }
        report.record(Instant::now(), Ok(()));
        assert_eq!((report.requests, report.failed, report.failures.len()), (10, 9, TOLD));
        assert_eq!(report.latencies.len(), 1);
    }
}

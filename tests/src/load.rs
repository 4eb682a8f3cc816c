//! Requests all the time: what a test changes under it must not be noticed. It never retries, and counts everything.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::node::PodRef;
use crate::sandbox::join_net;

/// A request that takes longer has failed.
const LIMIT: Duration = Duration::from_secs(10);
/// Between requests of one client: with a handful of clients some hundred requests a second.
const PACE: Duration = Duration::from_millis(20);
/// Failures that are told in full.
const TOLD: usize = 20;

/// Who asks for what.
#[derive(Clone, Debug)]
pub struct Plan {
    pub target: SocketAddr,
    /// The Host field.
    pub host: String,
    pub path: String,
    /// Clients that keep their connection.
    pub kept: usize,
    /// Clients that open a connection for each request.
    pub fresh: usize,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Bodies of answers with status 200, trimmed, and how often each came.
    pub answers: BTreeMap<String, usize>,
    /// How many requests failed.
    pub failed: usize,
    /// The first of the failures.
    pub failures: Vec<String>,
}

impl Tally {
    /// Requests that were answered.
    pub fn answered(&self) -> usize {
        self.answers.values().sum()
    }

    /// Requests that this one answered.
    pub fn from(&self, answer: &str) -> usize {
        self.answers.get(answer).copied().unwrap_or_default()
    }
}

/// A load on threads of the test, from within a pod's network. Ends when finished or dropped.
pub struct Load {
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<Result<()>>>,
    tally: Arc<Mutex<Tally>>,
}

impl Load {
    /// Begins.
    pub fn start(pod: &PodRef<'_>, plan: Plan) -> Result<Self> {
        let stop = watch::Sender::new(false);
        let stopped = stop.subscribe();
        let tally = Arc::new(Mutex::new(Tally::default()));
        let counted = tally.clone();
        let sandbox = pod.sandbox()?;
        let thread = std::thread::Builder::new().name("load".into()).spawn(move || {
            join_net(sandbox)?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async move {
                let clients: Vec<_> = (0..plan.kept + plan.fresh)
                    .map(|nth| {
                        let client = Client { plan: plan.clone(), keeps: nth < plan.kept, kept: None };
                        tokio::spawn(client.run(counted.clone(), stopped.clone()))
                    })
                    .collect();
                for client in clients {
                    client.await.context("a client of the load panicked")?;
                }
                Ok(())
            })
        })?;
        Ok(Self { stop, thread: Some(thread), tally })
    }

    /// What has come of it so far.
    pub fn tally(&self) -> Tally {
        lock(&self.tally).clone()
    }

    /// Forgets what has come of it so far; returns it.
    pub fn take(&self) -> Tally {
        std::mem::take(&mut *lock(&self.tally))
    }

    /// Lets every request that is under way end, and says what came of all.
    pub fn finish(mut self) -> Result<Tally> {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            thread.join().map_err(|_| anyhow!("the load's thread panicked"))??;
        }
        Ok(self.tally())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

fn lock(tally: &Mutex<Tally>) -> MutexGuard<'_, Tally> {
    tally.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Client {
    plan: Plan,
    keeps: bool,
    kept: Option<SendRequest<Empty<Bytes>>>,
}

impl Client {
    async fn run(mut self, tally: Arc<Mutex<Tally>>, mut stop: watch::Receiver<bool>) {
        let mut pace = interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return,
                _ = pace.tick() => {}
            }
            let asked = timeout(LIMIT, self.ask()).await;
            let asked = asked.unwrap_or_else(|_| Err(anyhow!("no answer within {LIMIT:?}")));
            let mut tally = lock(&tally);
            match asked {
                Ok(answer) => *tally.answers.entry(answer).or_default() += 1,
                Err(error) => {
                    tally.failed += 1;
                    if tally.failures.len() < TOLD {
                        let client = if self.keeps { "kept" } else { "fresh" };
                        tally.failures.push(format!("{client} connection: {error:#}"));
                    }
                }
            }
        }
    }

    async fn ask(&mut self) -> Result<String> {
        // A connection that the server closed between requests is replaced, as every client does.
        let usable = match self.kept.take() {
            Some(mut kept) => kept.ready().await.is_ok().then_some(kept),
            None => None,
        };
        let mut sender = match usable {
            Some(kept) => kept,
            None => self.connect().await?,
        };
        let request = Request::get(&self.plan.path).header(header::HOST, &self.plan.host);
        let response = sender.send_request(request.body(Empty::new())?).await.context("asking")?;
        let status = response.status();
        let body = response.into_body().collect().await.context("reading the answer")?.to_bytes();
        let body = String::from_utf8_lossy(&body).trim().to_owned();
        if status != StatusCode::OK {
            bail!("{status}: {body}");
        }
        self.kept = self.keeps.then_some(sender);
        Ok(body)
    }

    async fn connect(&self) -> Result<SendRequest<Empty<Bytes>>> {
        let stream = TcpStream::connect(self.plan.target).await.context("connecting")?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        // What ends it is told by the request that it carries.
        tokio::spawn(connection);
        Ok(sender)
    }
}

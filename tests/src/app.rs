//! An application of the test's own: a server on a thread of the test, in a pod's network namespace, whose behaviour
//! the test sees and steers. What redirects the traffic of a pod's containers redirects its traffic too.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result, anyhow};
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};

use crate::node::PodRef;
use crate::sandbox::join_net;

/// What the first and the last piece of a held answer say.
pub const BEGUN: &str = "begun\n";
pub const ENDED: &str = "ended\n";

/// A server of HTTP/1 and HTTP/2 without TLS. Ends when dropped.
///
/// `/hold` answers [`BEGUN`] at once and [`ENDED`] after [`App::release`]; a request to upgrade is granted, and what
/// comes over it is echoed; every other path answers the app's name, with 200 unless [`App::answer`] says otherwise.
pub struct App {
    quit: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    release: watch::Sender<bool>,
    seen: Arc<Seen>,
}

/// What has happened so far.
#[derive(Default)]
struct Seen {
    requests: AtomicUsize,
    /// The status of every other answer; 0 is 200.
    status: AtomicU16,
    connections: AtomicUsize,
    heads: Mutex<VecDeque<http::HeaderMap>>,
}

/// Heads that are remembered.
const REMEMBERED: usize = 64;

impl App {
    /// Listens on `port` of every address of the pod.
    pub fn start(pod: &PodRef<'_>, port: u16, name: &str) -> Result<Self> {
        let (quit, told) = oneshot::channel();
        let (up, is_up) = mpsc::channel();
        let release = watch::Sender::new(false);
        let seen = Arc::new(Seen::default());
        let service = Service { name: name.to_owned(), release: release.clone(), seen: seen.clone() };
        let sandbox = pod.sandbox()?;
        let thread = std::thread::Builder::new().name(format!("app {name}")).spawn(move || {
            let begin = || -> Result<_> {
                join_net(sandbox)?;
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
                let listener = runtime.block_on(TcpListener::bind(address)).context("the app's port")?;
                Ok((runtime, listener))
            };
            match begin() {
                Ok((runtime, listener)) => {
                    let _ = up.send(Ok(()));
                    runtime.spawn(service.accept(listener));
                    // Dropped or told: either way it is over.
                    let _ = runtime.block_on(told);
                    runtime.shutdown_background();
                }
                Err(error) => {
                    let _ = up.send(Err(error));
                }
            }
        })?;
        is_up.recv().unwrap_or_else(|_| Err(anyhow!("the app's thread ended")))?;
        Ok(Self { quit: Some(quit), thread: Some(thread), release, seen })
    }

    /// Lets every held answer end, also those to come.
    pub fn release(&self) {
        self.release.send_replace(true);
    }

    /// Answers with this status from now on, so that it is sick or well.
    pub fn answer(&self, status: StatusCode) {
        self.seen.status.store(status.as_u16(), Ordering::Relaxed);
    }

    /// Requests that have arrived.
    pub fn requests(&self) -> usize {
        self.seen.requests.load(Ordering::Relaxed)
    }

    /// Connections that have been accepted.
    pub fn connections(&self) -> usize {
        self.seen.connections.load(Ordering::Relaxed)
    }

    /// The header fields of the last requests, oldest first.
    pub fn heads(&self) -> Vec<http::HeaderMap> {
        let heads = self.seen.heads.lock().unwrap_or_else(PoisonError::into_inner);
        heads.iter().cloned().collect()
    }
}

impl Drop for App {
    fn drop(&mut self) {
        drop(self.quit.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been printed.
            let _ = thread.join();
        }
    }
}

#[derive(Clone)]
struct Service {
    name: String,
    release: watch::Sender<bool>,
    seen: Arc<Seen>,
}

type Answer = Response<BoxBody<Bytes, Infallible>>;

impl Service {
    async fn accept(self, listener: TcpListener) {
        while let Ok((stream, _)) = listener.accept().await {
            self.seen.connections.fetch_add(1, Ordering::Relaxed);
            let service = self.clone();
            tokio::spawn(async move {
                let answer = service_fn(move |request| {
                    let service = service.clone();
                    async move { Ok::<_, Infallible>(service.answer(request)) }
                });
                let builder = auto::Builder::new(TokioExecutor::new());
                // The other end says how it ended, if that matters.
                let _ = builder.serve_connection_with_upgrades(TokioIo::new(stream), answer).await;
            });
        }
    }

    fn answer(&self, request: Request<Incoming>) -> Answer {
        self.seen.requests.fetch_add(1, Ordering::Relaxed);
        let mut heads = self.seen.heads.lock().unwrap_or_else(PoisonError::into_inner);
        if heads.len() == REMEMBERED {
            heads.pop_front();
        }
        heads.push_back(request.headers().clone());
        drop(heads);
        if let Some(protocol) = request.headers().get(header::UPGRADE).cloned() {
            return echo(request, protocol);
        }
        if request.uri().path() == "/hold" {
            return held(self.release.subscribe());
        }
        let mut answer = Response::new(Full::from(format!("{}\n", self.name)).boxed());
        let status = StatusCode::from_u16(self.seen.status.load(Ordering::Relaxed));
        *answer.status_mut() = status.unwrap_or(StatusCode::OK);
        answer
    }
}

fn held(release: watch::Receiver<bool>) -> Answer {
    let pieces = [BEGUN, ENDED];
    let body = futures_util::stream::unfold((0, release), move |(next, mut release)| async move {
        let piece = pieces.get(next)?;
        if next > 0 {
            // The sender lives as long as the app.
            let _ = release.wait_for(|released| *released).await;
        }
        Some((Ok(Frame::data(Bytes::from_static(piece.as_bytes()))), (next + 1, release)))
    });
    Response::new(StreamBody::new(body).boxed())
}

fn echo(request: Request<Incoming>, protocol: HeaderValue) -> Answer {
    tokio::spawn(async move {
        if let Ok(upgraded) = hyper::upgrade::on(request).await {
            let (mut read, mut write) = tokio::io::split(TokioIo::new(upgraded));
            // Ends with the connection.
            let _ = tokio::io::copy(&mut read, &mut write).await;
            let _ = tokio::io::AsyncWriteExt::shutdown(&mut write).await;
        }
    });
    let mut answer = Response::new(Full::default().boxed());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    answer.headers_mut().insert(header::UPGRADE, protocol);
    answer
}

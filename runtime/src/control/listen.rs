//! The other end of a control channel: connections accepted, their TLS terminated with the credentials of the
//! moment, the peer known by name, all within bounds. What comes out goes into tonic's `serve_with_incoming`.

use crate::{
    clock,
    metrics::{Budgeted, Counter, Gauge, GaugeGuard, Registry},
    tasks::{Drain, Tasks},
    tls::{self, Credentials, PeerCertificate, TlsFault},
};
use futures_util::Stream;
use prometheus_client::encoding::EncodeLabelSet;
use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tonic::transport::server::Connected;

/// A handshake takes a round trip; whoever needs longer is not of this cluster.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// What is spoken on a listener.
#[derive(Clone, Debug)]
pub enum Terminate {
    /// Nothing: for loopback listeners of a standalone control plane only. The caller has looked.
    Plaintext,
    /// TLS with the current credentials at each new connection; client certificates are asked for, not required.
    /// Until there are credentials connections are closed.
    Tls(watch::Receiver<Option<Arc<Credentials>>>),
}

/// How many connections there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AcceptLimits {
    /// Altogether; more wait in the listener's backlog.
    pub connections: usize,
    /// From one address; more are closed at once.
    pub per_source: usize,
}

impl Default for AcceptLimits {
    /// 4096 altogether, 64 from one address.
    fn default() -> Self {
        Self { connections: 4096, per_source: 64 }
    }
}

/// What a listener counts. Cheap to clone.
#[derive(Clone, Debug)]
pub struct AcceptMetrics {
    open: Gauge,
    refused: Budgeted<Refusal, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refusal {
    reason: &'static str,
}

impl AcceptMetrics {
    /// Registers `<process>_connections` and `<process>_connections_refused_total`, the latter by reason: `accept`,
    /// `source_limit`, `handshake_timeout`, `not_ready` or a label of [`TlsFault`].
    pub fn register(registry: &Registry, process: &str) -> Self {
        let refused = "Connections closed before their first request";
        Self {
            open: registry.gauge(&format!("{process}_connections"), "Control connections open now"),
            refused: registry.counters(&format!("{process}_connections_refused_total"), refused, 16),
        }
    }

    fn refuse(&self, reason: &'static str) {
        self.refused.get(Refusal { reason }).inc();
    }
}

/// Who is at the other end: in the extensions of every request that comes over the connection.
#[derive(Clone, Debug)]
pub struct PeerInfo {
    /// The address of the TCP connection.
    pub addr: SocketAddr,
    /// Is the connection one of a plaintext listener, which serves loopback only?
    pub plaintext: bool,
    /// Its certificate, verified; `None` without one.
    pub certificate: Option<PeerCertificate>,
}

/// Accepts on `listener` until the drain begins or the stream that is returned is dropped.
pub fn accept(
    listener: TcpListener,
    terminate: Terminate,
    limits: AcceptLimits,
    metrics: AcceptMetrics,
    tasks: &Tasks,
    drain: &Drain,
) -> impl Stream<Item = io::Result<Accepted>> + Send + 'static {
    let (ready, mut accepted) = mpsc::channel(16);
    let door = Door {
        places: Arc::new(Semaphore::new(limits.connections)),
        per_source: limits.per_source,
        sources: Arc::default(),
        terminate,
        metrics,
        ready,
        tasks: tasks.clone(),
        drain: drain.clone(),
    };
    tasks.spawn("control acceptor", door.run(listener));
    futures_util::stream::poll_fn(move |cx| accepted.poll_recv(cx).map(|next| next.map(Ok)))
}

struct Door {
    places: Arc<Semaphore>,
    per_source: usize,
    sources: Arc<Mutex<HashMap<IpAddr, usize>>>,
    terminate: Terminate,
    metrics: AcceptMetrics,
    ready: mpsc::Sender<Accepted>,
    tasks: Tasks,
    drain: Drain,
}

impl Door {
    async fn run(self, listener: TcpListener) {
        loop {
            // The semaphore is never closed.
            let place = self.places.clone().acquire_owned();
            let accepted = async {
                let place = place.await.map_err(io::Error::other)?;
                listener.accept().await.map(|(stream, addr)| (place, stream, addr))
            };
            let accepted = tokio::select! {
                accepted = accepted => accepted,
                () = self.drain.draining() => return,
                () = self.ready.closed() => return,
            };
            let (place, stream, addr) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors or memory it fails at once and again: wait for others to give some back.
                    tracing::warn!(%error, "a control listener cannot accept a connection");
                    self.metrics.refuse("accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Some(place) = self.place(addr.ip(), place) else {
                self.metrics.refuse("source_limit");
                tracing::info!(%addr, limit = self.per_source, "too many connections from this address; closed");
                continue;
            };
            let (terminate, ready, metrics) =
                (self.terminate.clone(), self.ready.clone(), self.metrics.clone());
            self.tasks.spawn("control handshake", async move {
                match timeout(HANDSHAKE_TIMEOUT, handshake(stream, addr, &terminate)).await {
                    Ok(Ok((stream, info))) => {
                        // Nobody to receive it: the server has ended, and the connection with it.
                        let _ = ready.send(Accepted { stream, info, _place: place }).await;
                    }
                    Ok(Err(fault)) => {
                        metrics.refuse(fault.label());
                        tracing::info!(%addr, %fault, reason = fault.label(), "connection refused");
                    }
                    Err(_elapsed) => {
                        metrics.refuse("handshake_timeout");
                        tracing::info!(%addr, "no TLS handshake within 5 s; connection closed");
                    }
                }
            });
        }
    }

    fn place(&self, source: IpAddr, place: OwnedSemaphorePermit) -> Option<Place> {
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        let count = sources.entry(source).or_default();
        if *count >= self.per_source {
            return None;
        }
        *count += 1;
        let open = self.metrics.open.guard();
        Some(Place { _permit: place, _open: open, source, sources: self.sources.clone() })
    }
}

async fn handshake(
    stream: TcpStream,
    addr: SocketAddr,
    terminate: &Terminate,
) -> Result<(ServerStream, PeerInfo), TlsFault> {
    let io = |fault: &io::Error| TlsFault::from(fault);
    stream.set_nodelay(true).map_err(|fault| io(&fault))?;
    let credentials = match terminate {
        Terminate::Plaintext => {
            let info = PeerInfo { addr, plaintext: true, certificate: None };
            return Ok((ServerStream::Plain(stream), info));
        }
        Terminate::Tls(credentials) => credentials.borrow().clone(),
    };
    let credentials =
        credentials.ok_or_else(|| TlsFault::Handshake("no certificate of our own yet".to_owned()))?;
    let acceptor = TlsAcceptor::from(credentials.server_config());
    let stream = acceptor.accept(stream).await.map_err(|fault| io(&fault))?;
    let certificate = tls::peer(stream.get_ref().1, clock::unix_now())?;
    Ok((ServerStream::Tls(Box::new(stream)), PeerInfo { addr, plaintext: false, certificate }))
}

/// Gives a place back, and forgets an address without connections.
struct Place {
    _permit: OwnedSemaphorePermit,
    _open: GaugeGuard,
    source: IpAddr,
    sources: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = sources.get_mut(&self.source) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                sources.remove(&self.source);
            }
        }
    }
}

/// An accepted connection; its place is free again when it is dropped.
pub struct Accepted {
    stream: ServerStream,
    info: PeerInfo,
    _place: Place,
}

enum ServerStream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connected for Accepted {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        self.info.clone()
    }
}

impl AsyncRead for Accepted {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            ServerStream::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            ServerStream::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().stream {
            ServerStream::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            ServerStream::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            ServerStream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            ServerStream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            ServerStream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            ServerStream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::RETAIN_IDLE;
    use futures_util::StreamExt;
    use tokio::io::AsyncReadExt;

    async fn listener() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        (listener, addr)
    }

    #[tokio::test]
    async fn one_address_has_so_many_connections_and_gets_them_back() {
        let (listener, addr) = listener().await;
        let limits = AcceptLimits { connections: 10, per_source: 2 };
        let registry = Registry::new(RETAIN_IDLE);
        let metrics = AcceptMetrics::register(&registry, "test");
        let (tasks, drain) = (Tasks::new(), Drain::new());
        let mut accepted = Box::pin(accept(listener, Terminate::Plaintext, limits, metrics, &tasks, &drain));
        let _first = TcpStream::connect(addr).await.unwrap();
        let held = accepted.next().await.unwrap().unwrap();
        let _second = TcpStream::connect(addr).await.unwrap();
        let _also_held = accepted.next().await.unwrap().unwrap();
        let mut third = TcpStream::connect(addr).await.unwrap();
        assert_eq!(third.read(&mut [0]).await.unwrap(), 0, "closed without a word");
        drop(held);
        let _fourth = TcpStream::connect(addr).await.unwrap();
        let info = accepted.next().await.unwrap().unwrap().connect_info();
        assert!(info.addr.ip().is_loopback() && info.plaintext && info.certificate.is_none());
        let counted = registry.render();
        assert!(counted.contains("test_connections 1\n"), "{counted}");
        let refused = "test_connections_refused_total{reason=\"source_limit\"} 1\n";
        assert!(counted.contains(refused), "{counted}");
    }

    #[tokio::test]
    async fn without_credentials_connections_are_closed() {
        let (listener, addr) = listener().await;
        let (_sender, credentials) = watch::channel(None);
        let terminate = Terminate::Tls(credentials);
        let _accepted =
            accept(listener, terminate, AcceptLimits::default(), counted(), &Tasks::new(), &Drain::new());
        let mut client = TcpStream::connect(addr).await.unwrap();
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn the_listener_is_closed_with_the_stream() {
        let (listener, _addr) = listener().await;
        let tasks = Tasks::new();
        let limits = AcceptLimits::default();
        drop(accept(listener, Terminate::Plaintext, limits, counted(), &tasks, &Drain::new()));
        assert_eq!(tasks.finished(Duration::from_secs(10)).await, 0);
    }

    #[tokio::test]
    async fn the_listener_is_closed_when_the_drain_begins() {
        let (listener, addr) = listener().await;
        let (tasks, drain) = (Tasks::new(), Drain::new());
        let limits = AcceptLimits::default();
        let _accepted = accept(listener, Terminate::Plaintext, limits, counted(), &tasks, &drain);
        drain.signal();
        assert_eq!(tasks.finished(Duration::from_secs(10)).await, 0);
        assert_eq!(TcpStream::connect(addr).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }

    fn counted() -> AcceptMetrics {
        AcceptMetrics::register(&Registry::new(RETAIN_IDLE), "test")
    }
}

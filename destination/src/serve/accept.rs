//! Connections of proxies: bounded in number, with mutual TLS terminated here.

use super::{Peer, Serving};
use crate::metrics::Metrics;
use remora_core::time::UnixTime;
use remora_runtime::{
    metrics::GaugeGuard,
    tls::{Credentials, peer},
};
use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// After accept failed (no file descriptors, no memory): time for others to give some back.
const RECOVER: Duration = Duration::from_millis(100);

/// Who may connect, and how.
#[derive(Clone, Debug)]
pub enum Security {
    /// Whoever reaches the port, unencrypted and believed: for loopback only.
    Plaintext,
    /// The mesh, by mutual TLS with these credentials; nobody until there are any.
    Mutual(watch::Receiver<Option<Arc<Credentials>>>),
}

/// How many at once.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections per listener; more are closed at once.
    pub connections: usize,
    /// Streams on one connection; a proxy's HTTP/2 client waits with more.
    pub streams_per_connection: u32,
    /// Streams of the process; more are refused with `ResourceExhausted`.
    pub streams: usize,
    /// Messages that wait for one proxy to read; a stream with more is ended.
    pub queue: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 10_000, streams_per_connection: 4_096, streams: 100_000, queue: 100 }
    }
}

/// One proxy's connection.
#[derive(Debug)]
pub(super) struct Connection {
    io: Io,
    peer: Peer,
    /// Given back when the connection ends.
    _permit: OwnedSemaphorePermit,
    _counted: GaugeGuard,
}

#[derive(Debug)]
enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// The connections of a listener. Ends with the drain.
pub(super) fn incoming(listener: TcpListener, serving: &Serving) -> ReceiverStream<io::Result<Connection>> {
    // One: a connection that tonic has not taken yet waits here, the next ones in the listener's backlog.
    let (ready, incoming) = mpsc::channel(1);
    serving.tasks.spawn("acceptor", accept(listener, serving.clone(), ready));
    ReceiverStream::new(incoming)
}

async fn accept(listener: TcpListener, serving: Serving, ready: mpsc::Sender<io::Result<Connection>>) {
    let permits = Arc::new(Semaphore::new(serving.limits.connections));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = serving.drain.draining() => return,
        };
        let (stream, addr) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept connections");
                serving.metrics.connection_refused("accept");
                tokio::time::sleep(RECOVER).await;
                continue;
            }
        };
        let Ok(permit) = permits.clone().try_acquire_owned() else {
            serving.metrics.connection_refused("limit");
            tracing::debug!(%addr, limit = serving.limits.connections, "too many connections");
            continue;
        };
        // Without it small updates wait for an acknowledgement; where it fails they do.
        let _ = stream.set_nodelay(true);
        let counted = serving.metrics.connections.guard();
        match &serving.security {
            Security::Plaintext => {
                let peer = Peer { addr, identity: None, plaintext: true };
                if ready
                    .send(Ok(Connection { io: Io::Plain(stream), peer, _permit: permit, _counted: counted }))
                    .await
                    .is_err()
                {
                    return;
                }
            }
            Security::Mutual(credentials) => {
                let credentials = credentials.borrow().clone();
                let (metrics, ready) = (serving.metrics.clone(), ready.clone());
                serving.tasks.spawn("handshake", async move {
                    if let Some((io, peer)) = handshake(stream, addr, credentials, &metrics).await {
                        // The receiver is gone only when the server ends.
                        let _ =
                            ready.send(Ok(Connection { io, peer, _permit: permit, _counted: counted })).await;
                    }
                });
            }
        }
    }
}

async fn handshake(
    stream: TcpStream,
    addr: SocketAddr,
    credentials: Option<Arc<Credentials>>,
    metrics: &Metrics,
) -> Option<(Io, Peer)> {
    let refuse = |label: &'static str, reason: &dyn std::fmt::Display| {
        metrics.connection_refused(label);
        tracing::info!(%addr, %reason, "a connection was refused");
    };
    let Some(credentials) = credentials else {
        refuse("not_ready", &"this process has no certificate yet");
        return None;
    };
    let accepting = TlsAcceptor::from(credentials.server_config()).accept(stream);
    let stream = match tokio::time::timeout(HANDSHAKE, accepting).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            refuse("handshake", &error);
            return None;
        }
        Err(_elapsed) => {
            refuse("handshake_timeout", &"the TLS handshake took longer than 10 s");
            return None;
        }
    };
    match peer(stream.get_ref().1, now()) {
        Ok(certificate) => {
            let identity = certificate.map(|certificate| certificate.identity);
            Some((Io::Tls(Box::new(stream)), Peer { addr, identity, plaintext: false }))
        }
        Err(fault) => {
            refuse(fault.label(), &fault);
            None
        }
    }
}

fn now() -> UnixTime {
    remora_runtime::clock::unix_now()
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Io::Tls(stream) => Pin::new(stream.as_mut()).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().io {
            Io::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Io::Tls(stream) => Pin::new(stream.as_mut()).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Io::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Io::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(cx),
        }
    }
}

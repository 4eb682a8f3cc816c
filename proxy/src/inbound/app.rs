//! The application behind this proxy: dialling it, its pooled HTTP connections, and dialling it before the client
//! speaks.

use super::Connection;
use crate::{
    Worker, connect,
    fault::Fault,
    http::client::{Client, Dial, PoolLimits},
    metrics::TcpMetrics,
    stream::Stream,
};
use remora_core::{
    header::SessionProtocol,
    policy::{self, Peer, ServerPolicy, ServerProtocol},
};
use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::sync::OwnedSemaphorePermit;

/// A spare connection on which nobody speaks is dropped after so long. Design: server-first speculation.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// The application's ports that this worker has sent requests to.
#[derive(Default)]
pub struct Apps {
    ports: Mutex<HashMap<SocketAddr, Arc<App>>>,
}

/// One port of the application.
pub struct App {
    addr: SocketAddr,
    pub client: Arc<Client>,
    limit: Duration,
    keepalive: Option<Duration>,
    user_timeout: Option<Duration>,
    tcp: Arc<TcpMetrics>,
}

impl Apps {
    /// The port at `addr`; known from then on until [`sweep`](Self::sweep) finds it unused.
    pub fn port(&self, worker: &Worker, addr: SocketAddr) -> Arc<App> {
        let mut ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        ports.entry(addr).or_insert_with(|| Arc::new(App::new(worker, addr))).clone()
    }

    /// Forgets ports without users and connections.
    pub fn sweep(&self) {
        let mut ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        ports.retain(|_, app| Arc::strong_count(app) > 1 || app.client.idle() > 0);
    }
}

impl App {
    fn new(worker: &Worker, addr: SocketAddr) -> Self {
        let config = &worker.proxy.config;
        let (keepalive, user_timeout) = connect::dialled(&config.inbound.socket);
        Self {
            addr,
            client: Client::new(PoolLimits {
                idle: config.inbound.http1_pool_idle,
                max_age: config.limits.pool_max_age,
                max_idle: config.limits.max_idle_per_endpoint,
                max_header_bytes: config.limits.max_header_bytes,
                max_headers: config.limits.max_headers,
                max_replay: config.limits.max_retry_body,
            }),
            limit: config.inbound.connect_timeout,
            keepalive,
            user_timeout,
            tcp: worker.proxy.metrics.app(addr),
        }
    }

    async fn connect(&self) -> Result<Stream, Fault> {
        let tcp = connect::tcp(self.addr, self.limit, self.keepalive, self.user_timeout).await?;
        Ok(Stream::plain(tcp).metered(Arc::new(self.tcp.open())))
    }
}

impl Dial for App {
    async fn dial(&self, _session: SessionProtocol) -> Result<Stream, Fault> {
        self.connect().await
    }
}

/// A connection to the application, perhaps opened before the client spoke.
pub struct AppConnection {
    stream: Stream,
    /// Counts it among the speculative ones until it is used.
    permit: Option<OwnedSemaphorePermit>,
}

impl AppConnection {
    pub fn stream_mut(&mut self) -> &mut Stream {
        &mut self.stream
    }

    /// The connection, for use: it is not speculative any more.
    pub fn into_stream(self) -> Stream {
        drop(self.permit);
        self.stream
    }
}

/// Dials the application for bytes, for which there must be room.
pub async fn for_bytes(worker: &Worker, addr: SocketAddr) -> Result<AppConnection, Fault> {
    worker.proxy.has_room()?;
    connect(worker, addr).await
}

/// Dials the application.
pub async fn connect(worker: &Worker, addr: SocketAddr) -> Result<AppConnection, Fault> {
    let stream = worker.apps.port(worker, addr).connect().await?;
    Ok(AppConnection { stream, permit: None })
}

/// Whether and how to dial the application while the client is silent.
pub struct Speculation<'a> {
    worker: &'a Worker,
    target: SocketAddr,
    /// Whether the client would be served without any identity.
    pub admitted: bool,
    /// `None`: never.
    pub delay: Option<Duration>,
}

impl<'a> Speculation<'a> {
    /// Only where the port is looked at anyway, and where its TCP policy admits what is known of the client now: before
    /// TLS that is nothing, so never where an identity is required.
    pub fn new(worker: &'a Worker, server: &ServerPolicy, connection: &Connection) -> Self {
        let looked_at = matches!(server.protocol, ServerProtocol::Detect { .. });
        let ip = connection.client.ip();
        let admitted = match &connection.peer {
            Peer::Plain => policy::admits_anonymous_tcp(server, ip),
            peer @ (Peer::Tls { .. } | Peer::Passthrough { .. }) => {
                policy::authorize_tcp(server, ip, peer).is_ok()
            }
        };
        let delay = worker.proxy.config.limits.server_first_delay;
        Self {
            worker,
            target: connection.target,
            admitted,
            delay: (looked_at && admitted && !delay.is_zero()).then_some(delay),
        }
    }

    pub async fn try_dial(&self) -> Option<AppConnection> {
        let proxy = &self.worker.proxy;
        let Ok(permit) = proxy.speculative_permits.clone().try_acquire_owned() else {
            proxy.metrics.speculation_limited.inc();
            return None;
        };
        proxy.metrics.speculative_inbound.inc();
        let mut app = connect(self.worker, self.target).await.ok()?;
        app.permit = Some(permit);
        Some(app)
    }
}

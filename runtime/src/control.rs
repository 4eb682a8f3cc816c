//! How a process reaches the control plane: names resolved as the Linkerd contract says, mutual TLS with the identity
//! that was expected and nobody else, one HTTP/2 connection that is made again when it breaks. Contract 3.0.
//!
//! Streams that must never stop, whatever the server does, are in [`subscribe`](crate::control::subscribe()).

mod counted;
mod listen;
mod resolve;
mod stream;

pub use counted::{Answer, Client, ControlMetrics};
pub use listen::{AcceptLimits, AcceptMetrics, Accepted, PeerInfo, Terminate, accept};
pub use resolve::{Resolve, ResolveFault, Resolved, Resolver};
pub use stream::{Event, StreamLimits, subscribe};

use crate::{
    clock,
    tls::{self, Credentials, TlsFault, TrustBundle},
};
use counted::Counts;
use futures_util::{StreamExt, stream::FuturesUnordered};
use http::Uri;
use hyper_util::rt::TokioIo;
use remora_core::{
    backoff::Pace,
    identity::{Identity, Kind},
    time::Time,
};
use std::{
    fmt,
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::watch,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::Endpoint;

/// How long connecting to one address may take, TLS included.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Between the attempts at the addresses of one service.
const STAGGER: Duration = Duration::from_millis(250);

/// How long a new connection waits for credentials and a name before the attempt counts as failed.
const PREPARE_TIMEOUT: Duration = Duration::from_secs(10);

/// Addresses tried per attempt, in an order that begins anywhere.
const MAX_ADDRESSES: usize = 4;

/// Where a control-plane service is, and who must answer there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlAddr {
    /// A DNS name or an address.
    pub host: String,
    /// Used where the name has no SRV records.
    pub port: u16,
    /// Who must answer. `None` means plaintext, which only loopback may have.
    pub name: Option<Identity>,
}

/// Why no client can be made for an address: mistakes in the configuration, never the network.
#[derive(Debug, thiserror::Error)]
pub enum InvalidControlAddr {
    /// Plaintext over a network.
    #[error(
        "{0} has no identity to expect, and plaintext is for loopback only: set the service's name, or use localhost"
    )]
    Plaintext(ControlAddr),
    /// The identity cannot go into a ClientHello.
    #[error("{0} is a URI and cannot be a TLS server name")]
    NotDns(Identity),
    /// No such host can exist.
    #[error("{0} is not a host and port")]
    Authority(ControlAddr),
    /// The system's DNS configuration cannot be read.
    #[error("cannot read the DNS configuration of this system: {0}")]
    Dns(ResolveFault),
}

impl ControlAddr {
    /// Does the text of the host say that the connection never leaves this machine?
    pub fn is_loopback(&self) -> bool {
        match self.address() {
            Some(ip) => ip.is_loopback(),
            None => self.host.trim_end_matches('.').eq_ignore_ascii_case("localhost"),
        }
    }

    fn address(&self) -> Option<IpAddr> {
        self.host.trim_start_matches('[').trim_end_matches(']').parse().ok()
    }
}

impl fmt::Display for ControlAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address() {
            Some(IpAddr::V6(ip)) => write!(f, "[{ip}]:{}", self.port),
            _ => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// With which certificate a connection is made.
#[derive(Clone, Debug)]
pub enum ClientAuth {
    /// With our own, the current one at each new connection; waits for the first.
    Mesh(watch::Receiver<Option<Arc<Credentials>>>),
    /// With these, or with none if there are none yet: for Certify.
    Bootstrap(Option<Arc<Credentials>>, Arc<TrustBundle>),
}

/// A gRPC channel to a control-plane service. Connects at the first request, and again by itself.
///
/// The requests of a broken connection fail; callers retry, by [`subscribe`] or by themselves. While the service
/// cannot be reached each attempt waits for its turn (1 s to 10 s, with jitter), so callers set deadlines. What is
/// asked and how it ends is counted by `metrics`.
pub fn channel(
    addr: &ControlAddr,
    auth: ClientAuth,
    resolver: impl Resolve,
    metrics: &ControlMetrics,
) -> Result<Client, InvalidControlAddr> {
    if addr.name.is_none() && !addr.is_loopback() {
        return Err(InvalidControlAddr::Plaintext(addr.clone()));
    }
    if let Some(name) = addr.name.as_ref().filter(|name| name.kind() != Kind::Dns) {
        return Err(InvalidControlAddr::NotDns(name.clone()));
    }
    // The scheme is http also over TLS, as Linkerd's proxy says it: contract 3.0.
    let endpoint = Endpoint::from_shared(format!("http://{addr}"))
        .map_err(|_invalid| InvalidControlAddr::Authority(addr.clone()))?
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(3));
    let counts = metrics.of(addr);
    let dialler = Dialler {
        addr: addr.clone(),
        auth,
        resolver: Arc::new(resolver),
        attempts: Mutex::default(),
        counts: counts.clone(),
    };
    let channel = endpoint.connect_with_connector_lazy(Connector(Arc::new(dialler)));
    Ok(Client::new(channel, counts))
}

/// Why a connection to the control plane was not made.
#[derive(Debug, thiserror::Error)]
enum DialFault {
    #[error("cannot resolve {addr}: {source}")]
    Resolve { addr: ControlAddr, source: ResolveFault },
    #[error("still no certificate of our own to show to {addr}; see the log of the certificate client")]
    NoCredentials { addr: ControlAddr },
    #[error("TLS to {addr} cannot be set up: {reason}")]
    Tls { addr: ControlAddr, reason: String },
    #[error("cannot connect to {addr}: {failures}")]
    Connect { addr: ControlAddr, failures: String },
}

/// One service's connections, made one at a time.
struct Dialler<R> {
    addr: ControlAddr,
    auth: ClientAuth,
    resolver: Arc<R>,
    attempts: Mutex<Attempts>,
    counts: Arc<Counts>,
}

/// What decides when the next attempt may be.
#[derive(Debug, Default)]
struct Attempts {
    pace: Pace,
    latest: Option<Attempt>,
}

#[derive(Clone, Copy, Debug)]
struct Attempt {
    began: Time,
    /// When it connected.
    connected: Option<Time>,
}

impl Attempts {
    /// How long to wait before the next attempt. A connection is asked for only when there is none: one that was made
    /// has ended.
    fn wait(&mut self, now: Time, random: u64) -> Duration {
        let Some(latest) = self.latest else { return Duration::ZERO };
        let lived = latest.connected.map_or(Duration::ZERO, |at| now.since(at));
        self.pace.wait(now.since(latest.began), lived, random)
    }
}

impl<R: Resolve> Dialler<R> {
    async fn connect(self: Arc<Self>) -> io::Result<TokioIo<ControlStream>> {
        let wait = self.attempts().wait(clock::now(), clock::random());
        tokio::time::sleep(wait).await;
        let began = clock::now();
        // Also of an attempt that is given up.
        self.attempts().latest = Some(Attempt { began, connected: None });
        let dialled = self.dial().await;
        let connected = dialled.is_ok().then(clock::now);
        self.attempts().latest = Some(Attempt { began, connected });
        match dialled {
            Ok(stream) => {
                self.counts.connected.inc();
                Ok(TokioIo::new(stream))
            }
            Err(fault) => {
                self.counts.refused.inc();
                tracing::warn!(%fault, "the control plane cannot be reached; trying again");
                Err(io::Error::other(fault))
            }
        }
    }

    fn attempts(&self) -> std::sync::MutexGuard<'_, Attempts> {
        self.attempts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn dial(&self) -> Result<ControlStream, DialFault> {
        let tls = match &self.addr.name {
            None => None,
            Some(name) => Some((name, self.client_config().await?)),
        };
        let tls = tls.as_ref();
        // One after the other, but without waiting for the end of an attempt that may never answer (RFC 8305).
        let attempts = self.addresses().await?.into_iter().zip(0_u32..).map(|(address, nth)| async move {
            tokio::time::sleep(STAGGER * nth).await;
            (address, timeout(CONNECT_TIMEOUT, dial_one(address, tls)).await)
        });
        let mut attempts: FuturesUnordered<_> = attempts.collect();
        let mut failures = String::new();
        while let Some((address, attempt)) = attempts.next().await {
            match attempt {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(fault)) => note(&mut failures, address, &fault),
                Err(_elapsed) => note(&mut failures, address, &"no answer within 2 s"),
            }
        }
        Err(DialFault::Connect { addr: self.addr.clone(), failures })
    }

    async fn addresses(&self) -> Result<Vec<SocketAddr>, DialFault> {
        if let Some(ip) = self.addr.address() {
            return Ok(vec![SocketAddr::new(ip, self.addr.port)]);
        }
        if self.addr.is_loopback() {
            return Ok(vec![SocketAddr::from(([127, 0, 0, 1], self.addr.port))]);
        }
        let resolving = self.counts.resolve(&*self.resolver, &self.addr.host, self.addr.port);
        let resolved = timeout(PREPARE_TIMEOUT, resolving).await.unwrap_or(Err(ResolveFault::Timeout));
        let mut addresses =
            resolved.map_err(|source| DialFault::Resolve { addr: self.addr.clone(), source })?;
        if !addresses.is_empty() {
            let start = clock::random() % addresses.len() as u64;
            addresses.rotate_left(start as usize);
        }
        addresses.truncate(MAX_ADDRESSES);
        Ok(addresses)
    }

    /// What is current when the connection is made, not when the channel was.
    async fn client_config(&self) -> Result<Arc<rustls::ClientConfig>, DialFault> {
        match &self.auth {
            ClientAuth::Bootstrap(Some(credentials), _) => Ok(credentials.client_config_for_endpoint(false)),
            ClientAuth::Bootstrap(None, bundle) => tls::anonymous_client_config(bundle)
                .map_err(|fault| DialFault::Tls { addr: self.addr.clone(), reason: fault.to_string() }),
            ClientAuth::Mesh(credentials) => {
                let mut credentials = credentials.clone();
                let waiting = timeout(PREPARE_TIMEOUT, credentials.wait_for(Option::is_some));
                let current = waiting.await.ok().and_then(Result::ok).and_then(|current| current.clone());
                let current = current.ok_or_else(|| DialFault::NoCredentials { addr: self.addr.clone() })?;
                Ok(current.client_config_for_endpoint(false))
            }
        }
    }
}

fn note(failures: &mut String, address: SocketAddr, fault: &dyn fmt::Display) {
    use fmt::Write;
    let separator = if failures.is_empty() { "" } else { "; " };
    // Writing into a String does not fail.
    let _ = write!(failures, "{separator}{address}: {fault}");
}

async fn dial_one(
    address: SocketAddr,
    tls: Option<&(&Identity, Arc<rustls::ClientConfig>)>,
) -> io::Result<ControlStream> {
    let tcp = TcpStream::connect(address).await?;
    tcp.set_nodelay(true)?;
    let Some((name, config)) = tls else {
        return Ok(ControlStream::Plain(tcp));
    };
    let server = tls::server_name(name.as_str()).map_err(io::Error::other)?;
    let stream = TlsConnector::from(config.clone())
        .connect(server, tcp)
        .await
        .map_err(|fault| io::Error::other(TlsFault::from(&fault)))?;
    let peer = tls::peer(stream.get_ref().1, clock::unix_now())
        .and_then(|peer| peer.ok_or(TlsFault::NoCertificate))
        .and_then(|peer| tls::require(&peer, name));
    peer.map_err(io::Error::other)?;
    Ok(ControlStream::Tls(Box::new(stream)))
}

/// A connection to the control plane. TLS boxed: there are a handful per process.
enum ControlStream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for ControlStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for ControlStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// tonic's way to ask for a connection.
struct Connector<R>(Arc<Dialler<R>>);

impl<R: Resolve> tower::Service<Uri> for Connector<R> {
    type Response = TokioIo<ControlStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<ControlStream>>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _uri: Uri) -> Self::Future {
        Box::pin(self.0.clone().connect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(host: &str, name: Option<&str>) -> ControlAddr {
        ControlAddr {
            host: host.to_owned(),
            port: 8086,
            name: name.map(|name| Identity::parse(name).unwrap()),
        }
    }

    fn refused(host: &str, name: Option<&str>) -> String {
        let (_sender, credentials) = watch::channel(None);
        let metrics = ControlMetrics::register(&crate::metrics::Registry::default());
        channel(&addr(host, name), ClientAuth::Mesh(credentials), Nowhere, &metrics).unwrap_err().to_string()
    }

    struct Nowhere;

    impl Resolve for Nowhere {
        async fn resolve(&self, _host: &str, _port: u16) -> Result<Resolved, ResolveFault> {
            Err(ResolveFault::Timeout)
        }
    }

    #[test]
    fn plaintext_is_for_loopback() {
        for host in ["127.0.0.1", "127.8.9.1", "::1", "[::1]", "localhost", "LocalHost."] {
            assert!(addr(host, None).is_loopback(), "{host}");
        }
        for host in ["10.0.0.1", "fd00::1", "localhost.evil", "127.0.0.1.evil", "remora-dst-headless"] {
            assert!(!addr(host, None).is_loopback(), "{host}");
            assert!(refused(host, None).contains("plaintext is for loopback only"), "{host}");
        }
    }

    #[test]
    fn a_uri_is_no_server_name() {
        assert!(refused("127.0.0.1", Some("spiffe://mesh/dst")).contains("cannot be a TLS server name"));
    }

    #[test]
    fn a_host_that_cannot_be_is_refused() {
        assert!(refused("a b", Some("dst.local")).contains("is not a host and port"));
    }

    #[test]
    fn attempts_are_spaced_until_a_connection_lived() {
        let mut attempts = Attempts::default();
        let at = |secs| Time(Duration::from_secs(secs));
        assert_eq!(attempts.wait(at(0), 0), Duration::ZERO);
        // Connected, and broken at once, again and again: that too is to be spaced.
        let mut waits = Vec::new();
        for _ in 0..10 {
            attempts.latest = Some(Attempt { began: at(5), connected: Some(at(5)) });
            waits.push(attempts.wait(at(5), 0));
        }
        assert_eq!(waits[0], Duration::from_secs(1));
        assert!(waits.is_sorted(), "{waits:?}");
        assert!(waits[9] >= Duration::from_secs(10), "{waits:?}");
        attempts.latest = Some(Attempt { began: at(5), connected: None });
        assert!(attempts.wait(at(6), 0) >= Duration::from_secs(9), "what has passed is not waited for again");
        attempts.latest = Some(Attempt { began: at(20), connected: Some(at(20)) });
        assert!(attempts.wait(at(30), 0) <= Duration::from_millis(100));
        attempts.latest = Some(Attempt { began: at(30), connected: None });
        assert!(attempts.wait(at(30), 0) >= Duration::from_secs(1));
    }
}

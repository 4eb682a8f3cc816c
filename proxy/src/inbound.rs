//! THE LIFE OF AN INBOUND CONNECTION, top to bottom.
//!
//! ```text
//! accept → original destination → policy of that port → ClientHello for us? → terminate mTLS
//!        → transport header if the ALPN announced one → detect, unless told → authorise → HTTP, or copy
//! ```

pub mod app;
mod opaque;

use crate::{
    Worker,
    fault::Fault,
    http::{self, request},
    listen::Accepted,
    mux,
    policy::PortPolicy,
    sniff::{self, AsServer, Detected, First, MeshHello, Never, Speculate},
    stream::Stream,
    tls,
};
pub use app::Apps;
use app::{AppConnection, Speculation};
use opaque::opaque;
use remora_core::{
    detect::Protocol,
    endpoint::NoTlsReason,
    header::SessionProtocol,
    policy::{Denial, Peer, Refused, ResourceRef, ServerPolicy, ServerProtocol},
};
use remora_runtime::clock;
use std::{future::Future, net::SocketAddr, pin::Pin, sync::Arc, time::Duration};
use tokio::{sync::OwnedSemaphorePermit, time::timeout};
use tracing::info;

/// One connection, as far as it is known.
#[derive(Clone)]
pub struct Connection {
    pub client: SocketAddr,
    /// The application's address.
    pub target: SocketAddr,
    pub peer: Peer,
    /// Why the peer has no mesh TLS, if it has none.
    pub no_tls: Option<NoTlsReason>,
    /// Counts the connection among those served at once, as long as anything of it lives.
    pub permit: Option<Arc<OwnedSemaphorePermit>>,
}

/// What is left of a connection when it is known what it is and who serves it. While it lives nothing is held that was
/// needed to find that out.
pub type Rest = Pin<Box<dyn Future<Output = Result<(), Fault>> + Send>>;

/// Serves a connection to its end.
pub async fn serve(worker: Arc<Worker>, accepted: Accepted) -> Result<(), Fault> {
    let Accepted { tcp, client, target, permit } = accepted;
    // A drain waits for a client from its first byte on.
    let stream = Stream::plain(tcp).attended(&worker.proxy.drain);
    let plain = Connection {
        client,
        target,
        peer: Peer::Plain,
        no_tls: Some(NoTlsReason::NoTlsFromRemote),
        permit: Some(Arc::new(permit)),
    };
    // Boxed: what is held while a connection lives is the step that it is in, not the largest of all steps.
    let rest = if target.port() == worker.proxy.config.inbound.listen.port() {
        Box::pin(direct(&worker, plain, stream)).await
    } else {
        Box::pin(redirected(&worker, plain, stream)).await
    };
    let served = match rest {
        Ok(rest) => rest.await,
        Err(fault) => Err(fault),
    };
    if let Err(fault) = &served {
        refused(&worker, client, target, fault);
    }
    served
}

/// Counts a connection that failed.
fn refused(worker: &Worker, client: SocketAddr, target: SocketAddr, fault: &Fault) {
    let metrics = &worker.proxy.metrics;
    let server = worker.proxy.policies.known(target.port());
    if fault.is_refused_at_the_door() {
        let no_tls = Some(NoTlsReason::NoTlsFromRemote);
        let connection = Connection { client, target, peer: Peer::Plain, no_tls, permit: None };
        drop(metrics.inbound_tcp(&connection, &server).open());
    }
    metrics.inbound_fault(fault, target, &server);
}

/// A connection to the application's port: mesh TLS is recognised by its SNI, everything else is what it is.
async fn redirected(worker: &Arc<Worker>, plain: Connection, mut stream: Stream) -> Result<Rest, Fault> {
    ours(worker, plain.target)?;
    let mut policy = worker.proxy.policies.port(plain.target.port());
    let server = policy.latest();
    if matches!(server.protocol, ServerProtocol::Opaque) {
        let skipped = Connection { no_tls: Some(NoTlsReason::PortSkipped), ..plain };
        return Box::pin(opaque(worker, skipped, policy, stream, None)).await;
    }

    let began = clock::now();
    let limit = detect_limit(worker, &server);
    let speculation = Speculation::new(worker, &server, &plain);
    let metrics = &worker.proxy.metrics;
    let lost = |fault: &Fault| {
        if matches!(fault, Fault::ClientGone(_)) {
            metrics.detect_inbound.lost(began);
        }
    };
    let (connection, detected) = match worker.proxy.server_name() {
        None => {
            let detected = sniff::protocol(&mut stream, limit, &speculation).await.inspect_err(lost)?;
            (Connection { no_tls: Some(NoTlsReason::Disabled), ..plain }, detected)
        }
        Some(name) => match first_words(&mut stream, name, limit, &speculation).await.inspect_err(lost)? {
            MeshHello::NotTls(detected) => (plain, detected),
            // Without a server name there is nothing to tell it from other bytes by.
            MeshHello::Foreign(None) => (plain, First::Client(Protocol::Tls, None).into()),
            MeshHello::Foreign(sni) => {
                let peer = Peer::Passthrough { sni };
                (Connection { peer, no_tls: None, ..plain }, First::Client(Protocol::Tls, None).into())
            }
            MeshHello::Ours => {
                let handshaking = worker.proxy.drain.guard();
                let credentials = worker.proxy.credentials.borrow().clone().ok_or(Fault::NoCredentials)?;
                let client = Box::pin(tls::terminate(
                    &credentials,
                    &worker.proxy.metrics.handshakes,
                    tls::Door::Ordinary,
                    stream,
                    limit,
                ))
                .await?;
                stream = client.stream.attended(&worker.proxy.drain);
                drop(handshaking);
                let meshed = Connection { peer: client.peer, no_tls: None, ..plain };
                let detected = detect(worker, &server, &meshed, &mut stream).await.inspect_err(lost)?;
                (meshed, detected)
            }
        },
    };

    metrics.detect_inbound.verdict(&detected, began);
    let meshed = matches!(connection.peer, Peer::Tls { .. });
    // What the port is declared to be and what was said first decide together: contract 1.3.
    let version = match (&server.protocol, detected.first) {
        (_, First::Server(app)) => {
            return Box::pin(opaque(worker, connection, policy, stream, Some(app))).await;
        }
        // The application's own TLS, declared or met: nothing in it is read.
        (ServerProtocol::Tls, First::Client(_, spare)) | (_, First::Client(Protocol::Tls, spare)) => {
            return Box::pin(opaque(worker, connection, policy, stream, spare)).await;
        }
        (ServerProtocol::Http2 { .. } | ServerProtocol::Grpc { .. }, First::Client(..)) => {
            SessionProtocol::Http2
        }
        // Linkerd's proxy may carry HTTP/1 over HTTP/2; an unmeshed client on an HTTP/1 port has nothing to say but that.
        (ServerProtocol::Http1 { .. }, First::Client(..)) if !meshed => SessionProtocol::Http1,
        (_, First::Client(Protocol::Http2, _)) => SessionProtocol::Http2,
        (_, First::Client(Protocol::Http1, _)) => SessionProtocol::Http1,
        (_, First::Client(Protocol::Opaque, spare)) => {
            return Box::pin(opaque(worker, connection, policy, stream, spare)).await;
        }
    };
    Ok(requests(worker.clone(), connection, policy, stream, version))
}

/// A connection to the proxy's own port, from another proxy: mTLS, then a transport header that says the rest, or a
/// carrier, each stream of which says it by itself.
async fn direct(worker: &Arc<Worker>, plain: Connection, mut stream: Stream) -> Result<Rest, Fault> {
    let limit = worker.proxy.config.inbound.detect_timeout;
    let name = worker.proxy.server_name().ok_or(Fault::NoCredentials)?;
    // Nobody but another proxy has business here, and proxies do not wait.
    let hello = timeout(limit, sniff::mesh_hello(&mut stream, name, limit, &Never)).await;
    match hello.unwrap_or(Err(Fault::TlsDetectTimeout(limit)))? {
        MeshHello::Ours => {}
        MeshHello::Foreign(Some(_)) => return Err(Fault::DirectWithoutTls("the SNI is not ours")),
        MeshHello::Foreign(None) => return Err(Fault::DirectWithoutTls("the ClientHello has no SNI")),
        MeshHello::NotTls(_) => return Err(Fault::DirectWithoutTls("the client speaks no TLS")),
    }
    let busy = worker.proxy.drain.guard();
    let credentials = worker.proxy.credentials.borrow().clone().ok_or(Fault::NoCredentials)?;
    let tls::Terminated { peer, mut stream, standing, .. } = Box::pin(tls::terminate(
        &credentials,
        &worker.proxy.metrics.handshakes,
        tls::Door::Direct { mux: worker.proxy.config.mux },
        stream,
        limit,
    ))
    .await?;
    if let Some(standing) = standing {
        // What a drain waits for are its streams.
        drop(busy);
        let connection = Connection { peer, no_tls: None, ..plain };
        let worker = worker.clone();
        return Ok(Box::pin(async move { mux::accept::serve(&worker, connection, standing, stream).await }));
    }

    let header = sniff::transport_header(&mut stream, limit).await?;
    worker.proxy.metrics.transport_header(&header, &peer);
    if let Some(name) = header.name {
        return Err(Fault::GatewayHeader((*name).into()));
    }
    let target = SocketAddr::new(plain.target.ip(), header.port.get());
    let connection = Connection { target, peer, no_tls: None, ..plain };
    let rest = announced(worker, connection, stream, header.protocol).await?;
    // A drain waits for its end.
    Ok(Box::pin(async move {
        let _busy = busy;
        rest.await
    }))
}

/// A stream of a carrier: a connection whose OPEN said where it goes.
pub async fn stream(
    worker: Arc<Worker>,
    connection: Connection,
    stream: Stream,
    protocol: Option<SessionProtocol>,
) -> Result<(), Fault> {
    let _busy = worker.proxy.drain.guard();
    let (client, target) = (connection.client, connection.target);
    let served = match Box::pin(announced(&worker, connection, stream, protocol)).await {
        Ok(rest) => rest.await,
        Err(fault) => Err(fault),
    };
    if let Err(fault) = &served {
        refused(&worker, client, target, fault);
    }
    served
}

/// A connection of which another proxy has said where it goes and what is spoken on it.
async fn announced(
    worker: &Arc<Worker>,
    connection: Connection,
    stream: Stream,
    protocol: Option<SessionProtocol>,
) -> Result<Rest, Fault> {
    if let Err(fault) = ours(worker, connection.target) {
        stream.reset_on_close();
        return Err(fault);
    }
    let policy = worker.proxy.policies.port(connection.target.port());
    match protocol {
        None => opaque(worker, connection, policy, stream, None).await,
        Some(version) => Ok(requests(worker.clone(), connection, policy, stream, version)),
    }
}

/// What a client of an ordinary port says first. Silence is waited out where the server may speak first, and bounded
/// where a client without identity is not served anyway.
async fn first_words(
    stream: &mut Stream,
    name: &str,
    limit: Duration,
    speculation: &Speculation<'_>,
) -> Result<MeshHello<AppConnection>, Fault> {
    let hello = sniff::mesh_hello(stream, name, limit, speculation);
    if speculation.admitted {
        return hello.await;
    }
    timeout(limit, hello).await.unwrap_or(Err(Fault::TlsDetectTimeout(limit)))
}

/// Refuses what would come back to this proxy, and what was never meant for this pod.
fn ours(worker: &Worker, target: SocketAddr) -> Result<(), Fault> {
    if worker.proxy.is_own_port(target.port()) {
        return Err(Fault::Loop(target));
    }
    let ips = &worker.proxy.config.inbound.ips;
    if !ips.is_empty() && !ips.contains(&target.ip()) {
        return Err(Fault::NotOurAddress(target));
    }
    Ok(())
}

fn detect_limit(worker: &Worker, server: &ServerPolicy) -> Duration {
    match &server.protocol {
        ServerProtocol::Detect { timeout, .. } => *timeout,
        ServerProtocol::Http1 { .. }
        | ServerProtocol::Http2 { .. }
        | ServerProtocol::Grpc { .. }
        | ServerProtocol::Opaque
        | ServerProtocol::Tls
        | ServerProtocol::Invalid(_) => worker.proxy.config.inbound.detect_timeout,
    }
}

/// What a meshed client speaks within TLS. A declared HTTP/1 port is looked at too: Linkerd's proxies may carry its
/// requests over HTTP/2.
async fn detect(
    worker: &Arc<Worker>,
    server: &ServerPolicy,
    connection: &Connection,
    stream: &mut Stream,
) -> Result<Detected<AppConnection>, Fault> {
    match &server.protocol {
        ServerProtocol::Http2 { .. } | ServerProtocol::Grpc { .. } => {
            Ok(First::Client(Protocol::Http2, None).into())
        }
        ServerProtocol::Opaque | ServerProtocol::Tls => Ok(First::Client(Protocol::Opaque, None).into()),
        ServerProtocol::Detect { .. } | ServerProtocol::Http1 { .. } | ServerProtocol::Invalid(_) => {
            let (limit, speculation) =
                (detect_limit(worker, server), Speculation::new(worker, server, connection));
            let first = sniff::protocol(stream, limit, &speculation);
            if speculation.admitted {
                return first.await;
            }
            // Only a request may still be admitted; whoever has none is not waited for.
            timeout(limit, first).await.unwrap_or(Err(Fault::Silence(limit)))
        }
    }
}

/// Requests: each is authorised by itself, see [`request::inbound`].
fn requests(
    worker: Arc<Worker>,
    connection: Connection,
    policy: PortPolicy,
    stream: Stream,
    version: SessionProtocol,
) -> Rest {
    let proxy = worker.proxy.clone();
    let meter = proxy.metrics.inbound_tcp(&connection, &policy.current());
    let stream = stream.metered(Arc::new(meter.open()));
    let open = proxy.metrics.inbound.serve(version.into());
    let meshed = matches!(connection.peer, Peer::Tls { .. });
    let settings = http::Settings::inbound(&proxy.config, meshed);
    let context = Arc::new(request::Inbound::new(worker, connection, policy));
    let news = request::news(&context);
    Box::pin(async move {
        let _open = open;
        http::serve(stream, version, settings, &proxy.drain, news, move |request| {
            request::inbound(context.clone(), request)
        })
        .await
    })
}

/// The fault of a refused client.
pub fn denied(connection: &Connection, refused: Refused, denial: Denial) -> Fault {
    Fault::Denied { client: named(connection), refused: Arc::new(refused), denial }
}

/// A client by what it proved, or by its address.
pub fn named(connection: &Connection) -> Arc<str> {
    match connection.peer.identity() {
        Some(identity) => identity.as_str().into(),
        None => connection.client.ip().to_string().into(),
    }
}

/// Names a client that only the `audit` default lets in, so that its owner sees whom a stricter policy would refuse.
/// Contract 3.4.
pub fn audit(connection: &Connection, authorization: &ResourceRef) {
    if &*authorization.kind == "default" && &*authorization.name == "audit" {
        let identity = connection.peer.identity().map_or("none", |identity| identity.as_str());
        info!(client = %connection.client, identity, target = %connection.target, "admitted by the audit policy only");
    }
}

impl AsServer for AppConnection {
    fn stream(&mut self) -> &mut Stream {
        self.stream_mut()
    }
}

impl Speculate for Speculation<'_> {
    type Upstream = AppConnection;

    async fn dial(&self) -> Result<Option<AppConnection>, Fault> {
        Ok(self.try_dial().await)
    }

    fn denied(&self) {
        // The application closed on a silent client: that is its answer, and it is not asked twice on this
        // connection. The next connection may be another client's.
    }

    fn delay(&self) -> Option<Duration> {
        self.delay
    }

    fn patience(&self) -> Duration {
        app::PATIENCE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A connection costs what its future holds: what grows it is seen here before it is seen in production.
    #[test]
    fn a_connection_is_small() {
        fn size<A, B, F>(_: fn(A, B) -> F) -> usize {
            size_of::<F>()
        }
        let inbound = size(serve);
        let outbound = size(crate::outbound::serve);
        assert!(inbound <= 3072, "an inbound connection holds {inbound} bytes");
        assert!(outbound <= 3072, "an outbound connection holds {outbound} bytes");
    }
}

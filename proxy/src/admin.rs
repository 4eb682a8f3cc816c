//! The admin port as the mesh sees it: TLS and protocol are detected and policy holds, as on any port; what is
//! answered is `runtime::admin`. Contract 1.12.

use crate::{
    Proxy,
    fault::Fault,
    inbound::Connection,
    listen,
    sniff::{self, MeshHello, Never},
    stream::Stream,
    tls,
};
use http::{Request, Response};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use remora_core::{
    endpoint::NoTlsReason,
    policy::{self, Peer},
};
use remora_runtime::admin::Admin;
use std::{convert::Infallible, future::poll_fn, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tracing::{debug, warn};

/// Bound of TLS detection. Contract 1.12.
const DETECT: Duration = Duration::from_secs(1);
/// A connection that sends no request for so long is closed.
const IDLE: Duration = Duration::from_mins(1);
/// Connections served at once; more wait in the backlog.
const MAX_CONNECTIONS: usize = 128;

/// Serves the admin port until the process ends.
pub async fn serve(proxy: Arc<Proxy>, listener: TcpListener, admin: Arc<Admin>) {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut failing = false;
    loop {
        proxy.spare.refill();
        // The semaphore is never closed.
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        let accepted = poll_fn(|cx| proxy.spare.with_ours(|| listener.poll_accept(cx))).await;
        let (tcp, client) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    warn!(%error, "cannot accept admin connections; trying again, every 50 ms");
                }
                tokio::time::sleep(listen::ACCEPT_AGAIN).await;
                continue;
            }
        };
        failing = false;
        let (proxy, admin) = (proxy.clone(), admin.clone());
        let tasks = proxy.tasks.clone();
        tasks.spawn("admin connection", async move {
            let _permit = permit;
            let target = tcp.local_addr().map_or(proxy.config.admin.listen, listen::unmapped);
            if let Err(fault) = connection(&proxy, admin, tcp, listen::unmapped(client), target).await {
                let server = proxy.policies.known(target.port());
                proxy.metrics.inbound_fault(&fault, target, &server);
                debug!(%client, %fault, "an admin connection failed");
            }
            // Its descriptor has just become free.
            proxy.spare.refill();
        });
    }
}

async fn connection(
    proxy: &Arc<Proxy>,
    admin: Arc<Admin>,
    tcp: TcpStream,
    client: SocketAddr,
    target: SocketAddr,
) -> Result<(), Fault> {
    let mut stream = Stream::plain(tcp).essential();
    let name = proxy.server_name().unwrap_or_default();
    let hello = tokio::time::timeout(IDLE, sniff::mesh_hello(&mut stream, name, DETECT, &Never)).await;
    let peer = match hello.map_err(|_elapsed| Fault::TlsDetectTimeout(IDLE))?? {
        MeshHello::NotTls(_) => Peer::Plain,
        MeshHello::Foreign(_) => return Err(Fault::DirectWithoutTls("the SNI is not ours")),
        MeshHello::Ours => {
            let credentials = proxy.credentials.borrow().clone().ok_or(Fault::NoCredentials)?;
            let handshakes = &proxy.metrics.handshakes;
            let meshed =
                tls::terminate(&credentials, handshakes, tls::Door::Ordinary, stream, DETECT).await?;
            stream = meshed.stream.essential();
            meshed.peer
        }
    };
    let no_tls = matches!(peer, Peer::Plain).then_some(NoTlsReason::NoTlsFromRemote);
    let context = Arc::new((proxy.clone(), admin, Connection { client, target, peer, no_tls, permit: None }));
    let service = service_fn(move |request| {
        let context = context.clone();
        async move { Ok::<_, Infallible>(respond(&context, request).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(IDLE);
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(IDLE).max_concurrent_streams(16);
    builder
        .serve_connection(TokioIo::new(stream), service)
        .await
        .map_err(|error| Fault::ClientGone(Arc::new(std::io::Error::other(error))))
}

type Context = (Arc<Proxy>, Arc<Admin>, Connection);

async fn respond(
    (proxy, admin, connection): &Context,
    request: Request<Incoming>,
) -> Response<Full<bytes::Bytes>> {
    let server = proxy.policies.port(proxy.config.admin.listen.port()).current();
    // The kubelet has no identity, and policy may come later than its first probe.
    let probe = matches!(request.uri().path(), "/live" | "/ready");
    let view = crate::http::view::View(&request);
    let ip = connection.client.ip();
    match server.authorize_http(ip, &connection.peer, &view) {
        Err(refusal) if !probe => {
            let refused = policy::Refused::of(&server, &refusal);
            let fault = crate::inbound::denied(connection, refused, refusal.denial);
            proxy.metrics.errors.inbound_http(&fault, connection.target, &server);
            let mut refused = Response::new(Full::from(format!("{fault}\n")));
            *refused.status_mut() = fault.answer().status;
            refused
        }
        Ok(_) | Err(_) => admin.respond(connection.client, request).await,
    }
}

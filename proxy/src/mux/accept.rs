//! Serves a carrier that another proxy has opened: every stream is admitted by itself, and then an inbound connection
//! like any other.

use super::{Carrier, carrier::Opened, drive::Driver};
use crate::{
    Worker,
    fault::Fault,
    inbound::{self, Connection},
    run,
    stream::Stream,
};
use remora_core::{
    header::TransportHeader,
    mux::{Limits, Session},
    time::UnixTime,
};
use remora_runtime::{clock, tls::TrustBundle};
use rustls::pki_types::{self, CertificateDer};
use std::{net::SocketAddr, sync::Arc};

/// What is looked at again whenever the peer opens a stream: its certificate may have expired since the handshake, or
/// its authority may not be trusted any more.
pub struct Standing {
    pub not_after: UnixTime,
    pub chain: Vec<CertificateDer<'static>>,
    /// The bundle that the chain was verified with.
    pub bundle: Arc<TrustBundle>,
}

impl Standing {
    /// Is the peer still who it was, for a bundle that may be another one now?
    fn holds(&mut self, bundle: &Arc<TrustBundle>, now: UnixTime) -> Result<(), &'static str> {
        if now.0.as_secs() > self.not_after.0.as_secs() {
            return Err("the client's certificate has expired");
        }
        if !Arc::ptr_eq(&self.bundle, bundle) {
            let (leaf, intermediates) = self.chain.split_first().ok_or("the client has no certificate")?;
            let now = pki_types::UnixTime::since_unix_epoch(now.0);
            bundle
                .verify(leaf, intermediates, now)
                .map_err(|_| "the client's certificate does not lead to the trust anchors in force")?;
            self.bundle = bundle.clone();
        }
        Ok(())
    }
}

/// Serves a carrier to its end. `plain` is the connection that it came by, with the peer's identity.
pub async fn serve(
    worker: &Arc<Worker>,
    plain: Connection,
    mut standing: Standing,
    stream: Stream,
) -> Result<(), Fault> {
    let (io, tls) = stream.into_tls().ok_or(Fault::DirectWithoutTls("a carrier is TLS"))?;
    let metrics = &worker.proxy.metrics.mux_inbound;
    let carrier = Carrier::new(Session::server(Limits::default()), metrics);
    let driver = Driver::new(io, tls, carrier, worker.proxy.drain.clone());
    let ended = driver
        .run(|opened| match admit(worker, &mut standing) {
            Ok(permit) => {
                begin(worker, Connection { permit: Some(Arc::new(permit)), ..plain.clone() }, opened)
            }
            Err(reason) => {
                metrics.refused(reason);
                // The stream is new: nothing of it was read or answered.
                let _ = opened.stream.refuse(reason);
            }
        })
        .await;
    ended.map_err(|error| {
        metrics.failed(error);
        Fault::Carrier(error)
    })
}

/// May the peer open a stream? What it may reach is decided by the policy of the port, as for any connection.
fn admit(
    worker: &Worker,
    standing: &mut Standing,
) -> Result<tokio::sync::OwnedSemaphorePermit, &'static str> {
    let proxy = &worker.proxy;
    let credentials = proxy.credentials.borrow().clone().ok_or("this proxy has no certificate")?;
    standing.holds(credentials.bundle(), clock::unix_now())?;
    proxy.inbound_permits.clone().try_acquire_owned().map_err(|_| {
        proxy.metrics.inbound_limited.inc();
        "as many connections as REMORA_PROXY_MAX_CONNECTIONS allows are served"
    })
}

fn begin(worker: &Arc<Worker>, plain: Connection, opened: Opened) {
    let Opened { stream, port, protocol } = opened;
    let target = SocketAddr::new(plain.target.ip(), port.get());
    let connection = Connection { target, ..plain };
    // An OPEN is a transport header by other means, and is counted as one.
    let header = TransportHeader { port, name: None, protocol };
    worker.proxy.metrics.transport_header(&header, &connection.peer);
    let client = connection.client;
    let serving = inbound::stream(worker.clone(), connection, Stream::mux(stream), protocol);
    worker.proxy.tasks.spawn("inbound stream", run::report("inbound", client, target, serving));
}

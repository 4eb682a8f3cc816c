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
use tokio::sync::OwnedSemaphorePermit;

/// Why a stream is not taken. Nothing of it was processed, and its neighbour is told so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum Refusal {
    #[error("the client's certificate has expired")]
    Expired,
    #[error("the client's certificate does not lead to the trust anchors in force")]
    Untrusted,
    #[error("this proxy has no certificate")]
    NoCredentials,
    #[error("REMORA_PROXY_MAX_CONNECTIONS are served")]
    Limit,
}

impl Refusal {
    /// For the metric.
    fn label(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Untrusted => "untrusted",
            Self::NoCredentials => "no credentials",
            Self::Limit => "limit",
        }
    }
}

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
    fn holds(&mut self, bundle: &Arc<TrustBundle>, now: UnixTime) -> Result<(), Refusal> {
        if now.0.as_secs() > self.not_after.0.as_secs() {
            return Err(Refusal::Expired);
        }
        if !Arc::ptr_eq(&self.bundle, bundle) {
            let (leaf, intermediates) = self.chain.split_first().ok_or(Refusal::Untrusted)?;
            let now = pki_types::UnixTime::since_unix_epoch(now.0);
            bundle.verify(leaf, intermediates, now).map_err(|_| Refusal::Untrusted)?;
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
    let tls = stream.into_tls().ok_or(Fault::DirectWithoutTls("a carrier is TLS"))?;
    let metrics = &worker.proxy.metrics.mux_inbound;
    let carrier = Carrier::new(Session::server(Limits::default()), metrics);
    let driver = Driver::new(tls, carrier, worker.proxy.drain.clone());
    let ended = driver
        .run(|opened| match admit(worker, &mut standing) {
            Ok(permit) => {
                begin(worker, Connection { permit: Some(Arc::new(permit)), ..plain.clone() }, opened);
            }
            Err(refusal) => {
                metrics.refused(refusal.label());
                // The stream is new: nothing of it was read or answered.
                let _ = opened.stream.refuse(&refusal.to_string());
            }
        })
        .await;
    ended.map_err(|error| {
        metrics.failed(error);
        Fault::Carrier(error)
    })
}

/// May the client open a stream? What it may reach is decided by the policy of the port, as for any connection.
fn admit(worker: &Worker, standing: &mut Standing) -> Result<OwnedSemaphorePermit, Refusal> {
    let proxy = &worker.proxy;
    let credentials = proxy.credentials.borrow().clone().ok_or(Refusal::NoCredentials)?;
    standing.holds(credentials.bundle(), clock::unix_now())?;
    proxy.inbound_permits.clone().try_acquire_owned().map_err(|_| {
        proxy.metrics.inbound_accepts.limited.inc();
        Refusal::Limit
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
    worker.proxy.tasks.spawn("inbound stream", run::report("inbound", client, target, Box::pin(serving)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mux::tests::{CLIENT, Ca, SERVER, proxy};
    use remora_core::time::Duration;

    #[test]
    fn a_leaf_holds_to_the_end_of_its_last_second() {
        let ca = Ca::new();
        let mut standing = Standing { not_after: UnixTime::from_secs(100), ..standing(&ca) };
        let at = |millis| UnixTime(Duration::from_millis(millis));
        assert_eq!(standing.holds(&ca.bundle, at(100_999)), Ok(()));
        assert_eq!(standing.holds(&ca.bundle, at(101_000)), Err(Refusal::Expired));
    }

    /// At every OPEN, as the design's "Mux" wants it.
    #[tokio::test]
    async fn whoever_opens_a_stream_is_looked_at_again() {
        let (ours, theirs) = (Ca::new(), Ca::new());
        let (proxy, credentials) = proxy(Some(ours.credentials(SERVER)));
        let worker = Worker::new(proxy);
        let mut friend = standing(&ours);
        assert!(admit(&worker, &mut friend).is_ok());
        friend.not_after = UnixTime::from_secs(1);
        assert_eq!(admit(&worker, &mut friend).unwrap_err(), Refusal::Expired);

        // The bundle is another one now: who leads to it as well is still a friend, and is not asked again.
        let mut friend = standing(&ours);
        let both = format!("{}{}", theirs.bundle.pem(), ours.bundle.pem());
        let renewed = ours.credentials_within(SERVER, &TrustBundle::from_pem(&both).unwrap());
        credentials.send_replace(Some(renewed.clone()));
        assert!(admit(&worker, &mut friend).is_ok());
        assert!(Arc::ptr_eq(&friend.bundle, renewed.bundle()));
        credentials.send_replace(Some(theirs.credentials(SERVER)));
        assert_eq!(admit(&worker, &mut friend).unwrap_err(), Refusal::Untrusted);
        assert!(admit(&worker, &mut standing(&theirs)).is_ok());

        let permit = admit(&worker, &mut standing(&theirs)).unwrap();
        assert_eq!(admit(&worker, &mut standing(&theirs)).unwrap_err(), Refusal::Limit);
        drop(permit);
        credentials.send_replace(None);
        assert_eq!(admit(&worker, &mut standing(&theirs)).unwrap_err(), Refusal::NoCredentials);
    }

    /// A client of this authority, as its handshake left it.
    fn standing(ca: &Ca) -> Standing {
        let client = ca.credentials(CLIENT);
        let (not_after, chain) = (client.expires(), client.chain().to_vec());
        Standing { not_after, chain, bundle: ca.bundle.clone() }
    }
}

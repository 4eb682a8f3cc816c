//! What tests of carriers need: two workloads of a mesh, the proxy of one, and a server that takes carriers as the other.

use super::{Carrier, MuxStream, drive::Driver};
use crate::{
    Proxy, stage,
    stream::Stream,
    tls::{self, Door},
};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use remora_core::{
    identity::Identity,
    mux::{Limits, Session},
};
use remora_runtime::tls::{Credentials, Keypair, TrustBundle};
use rustls::pki_types::CertificateDer;
use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, mpsc, watch},
};

pub(super) const SERVER: &str = "web.shop.serviceaccount.identity.remora.cluster.local";
pub(super) const CLIENT: &str = "cart.shop.serviceaccount.identity.remora.cluster.local";

/// An authority, and the bundle with its root.
pub(super) struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pub(super) bundle: Arc<TrustBundle>,
}

impl Ca {
    pub(super) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let bundle = TrustBundle::from_pem(&params.self_signed(&key).unwrap().pem()).unwrap();
        Self { issuer: Issuer::new(params, key), bundle }
    }

    /// Each time with another key and certificate.
    pub(super) fn credentials(&self, name: &str) -> Arc<Credentials> {
        self.credentials_within(name, &self.bundle)
    }

    /// Of somebody who believes this bundle.
    pub(super) fn credentials_within(&self, name: &str, bundle: &Arc<TrustBundle>) -> Arc<Credentials> {
        let key = Keypair::generate().unwrap();
        let subject = rcgen::SubjectPublicKeyInfo::from_der(&key.public_key_der()).unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::DnsName(name.try_into().unwrap())];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let leaf = params.signed_by(&subject, &self.issuer).unwrap().der().to_vec();
        let name = Identity::parse(name).unwrap();
        Credentials::new(name, &key, leaf, vec![], bundle.clone()).unwrap()
    }
}

/// A proxy whose control plane never answers, and where its credentials come from.
pub(super) fn proxy(
    credentials: Option<Arc<Credentials>>,
) -> (Arc<Proxy>, watch::Sender<Option<Arc<Credentials>>>) {
    let (changed, credentials) = watch::channel(credentials);
    // One connection at once: who comes second meets the limit.
    let inbound_permits = Arc::new(Semaphore::new(1));
    let proxy = Proxy { inbound_permits, ..stage::proxy(|_| {}, credentials) };
    (Arc::new(proxy), changed)
}

/// What befalls a server of carriers, which counts them from 0.
pub(super) enum Happened {
    /// A carrier came, of a client with this leaf.
    Came(CertificateDer<'static>),
    Opened(usize, MuxStream),
    /// A carrier is over.
    Over(usize),
}

/// Takes carriers as [`SERVER`], with so many streams at once on each.
pub(super) async fn takes_carriers(ca: &Ca, streams: u32) -> (SocketAddr, mpsc::Receiver<Happened>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let credentials = ca.credentials(SERVER);
    let (tell, told) = mpsc::channel(256);
    let (proxy, _) = proxy(None);
    tokio::spawn(async move {
        for nth in 0.. {
            let (tcp, _) = listener.accept().await.unwrap();
            let (credentials, tell, proxy) = (credentials.clone(), tell.clone(), proxy.clone());
            tokio::spawn(async move {
                let (counted, door) = (&proxy.metrics.handshakes, Door::Direct { mux: true });
                let limit = Duration::from_secs(10);
                let taken =
                    tls::terminate(&credentials, counted, door, Stream::plain(tcp), limit).await.unwrap();
                tell.try_send(Happened::Came(taken.standing.unwrap().chain[0].clone())).ok().unwrap();
                let session = Session::server(Limits { streams, ..Limits::default() });
                let carrier = Carrier::new(session, &proxy.metrics.mux_inbound);
                let driver = Driver::new(taken.stream.into_tls().unwrap(), carrier, proxy.drain.clone());
                let opened = |opened: super::carrier::Opened| {
                    tell.try_send(Happened::Opened(nth, opened.stream)).ok().unwrap();
                };
                // However it ends.
                let _ = driver.run(opened).await;
                let _ = tell.try_send(Happened::Over(nth));
            });
        }
    });
    (addr, told)
}

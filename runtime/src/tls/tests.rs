//! Handshakes in memory, both ends ours, with certificates made here.

mod chains;
mod credentials;
mod peers;
mod sessions;
mod spoken;

use super::*;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, GeneralSubtree,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints, OtherNameValue, SanType,
};
use rustls::HandshakeKind;
use std::{
    io,
    time::{SystemTime, UNIX_EPOCH},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

const SERVER: &str = "web.shop.serviceaccount.identity.remora.cluster.local";
const CLIENT: &str = "cart.shop.serviceaccount.identity.remora.cluster.local";
const DAY: u64 = 86_400;

struct Mesh {
    clock: Clock,
    ca: Ca,
    bundle: Arc<TrustBundle>,
    server: Arc<Credentials>,
    client: Arc<Credentials>,
}

impl Mesh {
    fn new() -> Self {
        let ca = Ca::new();
        let clock = Clock::at(unix());
        let bundle = TrustBundle::from_pem(&ca.pem()).unwrap();
        let server = ca.credentials(SERVER, &bundle, &clock).unwrap();
        let client = ca.credentials(CLIENT, &bundle, &clock).unwrap();
        Self { clock, ca, bundle, server, client }
    }

    /// A client that shows a chain of its own making, and has the key of its leaf.
    fn shown(&self, make: impl FnOnce(&Ca) -> (Vec<CertificateDer<'static>>, KeyPair)) -> Arc<ClientConfig> {
        let (chain, key) = make(&self.ca);
        let key = rustls_pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let config = client_builder(&self.bundle, Arc::new(self.clock.clone())).unwrap();
        Arc::new(config.with_client_auth_cert(chain, key).unwrap())
    }

    async fn pair(&self) -> (client::TlsStream<DuplexStream>, server::TlsStream<DuplexStream>) {
        let (client, server) =
            handshake(self.client.client_config_for_endpoint(false), self.server.server_config()).await;
        (client.unwrap(), server.unwrap())
    }

    /// Connects, exchanges a byte each way (so that the ticket arrives), and says how it went and who saw whom.
    async fn connect(&self, config: &Arc<ClientConfig>, server: &Credentials) -> (HandshakeKind, Seen, Seen) {
        let (client, server) = handshake(config.clone(), server.server_config()).await;
        let (client, server) = exchange(client.unwrap(), server.unwrap()).await;
        let now = self.clock.unix();
        let kind = client.get_ref().1.handshake_kind().unwrap();
        (kind, peer(client.get_ref().1, now), peer(server.get_ref().1, now))
    }
}

type Seen = Result<Option<PeerCertificate>, TlsFault>;

#[derive(Clone, Debug)]
struct Clock(Arc<AtomicU64>);

impl Clock {
    fn at(secs: u64) -> Self {
        Self(Arc::new(AtomicU64::new(secs)))
    }

    fn now(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    fn unix(&self) -> UnixTime {
        UnixTime::from_secs(self.now())
    }

    fn back(&self, secs: u64) {
        self.0.fetch_sub(secs, Ordering::SeqCst);
    }

    fn advance(&self, secs: u64) {
        self.0.fetch_add(secs, Ordering::SeqCst);
    }
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<rustls_pki_types::UnixTime> {
        Some(rustls_pki_types::UnixTime::since_unix_epoch(Duration::from_secs(self.now())))
    }
}

pub(crate) struct Ca {
    certificate: rcgen::Certificate,
    pub(crate) issuer: Issuer<'static, KeyPair>,
}

pub(crate) struct Issued {
    key: Keypair,
    leaf: Vec<u8>,
    intermediates: Vec<Vec<u8>>,
}

impl Issued {
    fn credentials(
        self,
        name: &str,
        bundle: &Arc<TrustBundle>,
        clock: &Clock,
    ) -> Result<Arc<Credentials>, CredentialsFault> {
        Credentials::with_clock(
            identity(name),
            &self.key,
            self.leaf,
            self.intermediates,
            bundle.clone(),
            Arc::new(clock.clone()),
        )
    }
}

impl Ca {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "root");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = params.self_signed(&key).unwrap();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    pub(crate) fn pem(&self) -> String {
        self.certificate.pem()
    }

    fn credentials(
        &self,
        name: &str,
        bundle: &Arc<TrustBundle>,
        clock: &Clock,
    ) -> Result<Arc<Credentials>, CredentialsFault> {
        self.issue(name, clock.now() - 60, clock.now() + DAY).credentials(name, bundle, clock)
    }

    fn issue(&self, name: &str, not_before: u64, not_after: u64) -> Issued {
        let key = Keypair::generate().unwrap();
        let subject = rcgen::SubjectPublicKeyInfo::from_der(&key.public_key_der()).unwrap();
        let params = leaf_params(&[dns(name)], not_before, not_after);
        let leaf = params.signed_by(&subject, &self.issuer).unwrap().der().to_vec();
        Issued { key, leaf, intermediates: Vec::new() }
    }

    fn leaf(&self, names: &[SanType], not_before: u64, not_after: u64) -> CertificateDer<'static> {
        let params = leaf_params(names, not_before, not_after);
        params.signed_by(&KeyPair::generate().unwrap(), &self.issuer).unwrap().der().clone()
    }
}

pub(crate) fn leaf_params(names: &[SanType], not_before: u64, not_after: u64) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.subject_alt_names = names.to_vec();
    params.not_before = (UNIX_EPOCH + Duration::from_secs(not_before)).into();
    params.not_after = (UNIX_EPOCH + Duration::from_secs(not_after)).into();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params
}

pub(crate) fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().unwrap())
}

pub(crate) fn identity(name: &str) -> Identity {
    Identity::parse(name).unwrap()
}

pub(crate) fn unix() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

async fn handshake(
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
) -> (io::Result<client::TlsStream<DuplexStream>>, io::Result<server::TlsStream<DuplexStream>>) {
    let (near, far) = tokio::io::duplex(64 * 1024);
    tokio::join!(
        TlsConnector::from(client).connect(server_name(SERVER).unwrap(), near),
        TlsAcceptor::from(server).accept(far)
    )
}

async fn exchange(
    mut client: client::TlsStream<DuplexStream>,
    mut server: server::TlsStream<DuplexStream>,
) -> (client::TlsStream<DuplexStream>, server::TlsStream<DuplexStream>) {
    client.write_all(b"?").await.unwrap();
    assert_eq!(server.read_u8().await.unwrap(), b'?');
    server.write_all(b"!").await.unwrap();
    assert_eq!(client.read_u8().await.unwrap(), b'!');
    (client, server)
}

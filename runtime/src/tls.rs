//! Mutual TLS as every one of our processes speaks it: who we are ([`Credentials`]), whom we believe
//! ([`TrustBundle`]), and who is at the other end ([`peer()`], [`require`]).
//!
//! The chain is verified by rustls against the bundle, without names. Names and validity are looked at by [`peer()`]
//! after *every* handshake: a resumed session carries a chain that was verified long ago, and rustls does not look
//! at it again. Contract 2.6; nothing here reads a socket.

mod bundle;
mod key;
mod peer;
mod provider;
mod ticket;
mod verify;

#[cfg(test)]
pub(crate) mod tests;

pub use bundle::{InvalidBundle, TrustBundle};
pub use key::{KeyFault, Keypair};
pub use peer::{PeerCertificate, TlsFault, peer, peer_of_leaf, require};

use crate::tls::{ticket::Ticketer, verify::ChainVerifier};
use remora_core::{identity::Identity, mux, time::UnixTime};
use rustls::{
    ClientConfig, ServerConfig,
    client::Resumption,
    server::{NoServerSessionStorage, WebPkiClientVerifier},
    sign::{CertifiedKey, SingleCertAndKey},
    time_provider::{DefaultTimeProvider, TimeProvider},
};
use rustls_pki_types::{CertificateDer, InvalidDnsNameError, ServerName};
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// The ALPN that announces a transport header. Contract 1.5.
pub const TRANSPORT_ALPN: &[u8] = b"transport.l5d.io/v1";

/// No session is resumed later than this after its full handshake's ticket was issued.
pub const MAX_TICKET_LIFETIME: Duration = Duration::from_hours(1);

/// More certificates than this between leaf and root are refused.
pub const MAX_INTERMEDIATES: usize = 8;

/// Sessions remembered per endpoint; rustls keeps up to eight tickets of a name.
const SESSIONS_PER_ENDPOINT: usize = 8;

static EPOCHS: AtomicU64 = AtomicU64::new(1);

/// Key, certificate and trust anchors as one value: what a process is on the mesh until the next renewal.
pub struct Credentials {
    identity: Identity,
    not_before: UnixTime,
    not_after: UnixTime,
    serial: String,
    epoch: u64,
    chain: Vec<CertificateDer<'static>>,
    bundle: Arc<TrustBundle>,
    server: Arc<ServerConfig>,
    direct_server: Arc<ServerConfig>,
    carrier_server: Arc<ServerConfig>,
    client: ClientConfig,
}

/// Why a certificate cannot be used as ours.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsFault {
    /// The certificate is not one, or names nobody, or has expired.
    #[error("the certificate issued to us cannot be used: {0}")]
    Leaf(#[source] TlsFault),
    /// It was issued to somebody else.
    #[error("the certificate was issued to {presented}, not to {ours}")]
    Identity {
        /// Who we are.
        ours: Identity,
        /// Who the certificate names.
        presented: String,
    },
    /// It was issued for another key.
    #[error("the certificate's public key is not ours")]
    Key,
    /// It does not lead to the trust anchors.
    #[error("the certificate does not lead to the trust anchors ({anchors}): {source}")]
    Chain {
        /// Which anchors were tried.
        anchors: String,
        /// What the chain lacks.
        source: rustls::Error,
    },
    /// More than [`MAX_INTERMEDIATES`].
    #[error("{0} intermediate certificates, more than 8")]
    Intermediates(usize),
    /// The TLS library refused.
    #[error("cannot build the TLS configuration: {0}")]
    Tls(#[from] rustls::Error),
    /// No clock.
    #[error("the time of day cannot be read")]
    Clock,
}

impl Credentials {
    /// Checks that `leaf` is ours (names `identity`, certifies `key`, leads to `bundle`, holds now), and builds the
    /// TLS configurations that use it. Each value has a new [`epoch`](Self::epoch) and ticket keys of its own.
    pub fn new(
        identity: Identity,
        key: &Keypair,
        leaf: Vec<u8>,
        intermediates: Vec<Vec<u8>>,
        bundle: Arc<TrustBundle>,
    ) -> Result<Arc<Self>, CredentialsFault> {
        Self::with_clock(identity, key, leaf, intermediates, bundle, Arc::new(DefaultTimeProvider))
    }

    /// [`new`](Self::new), with another clock than the system's: verification and ticket lifetimes follow it.
    pub fn with_clock(
        identity: Identity,
        key: &Keypair,
        leaf: Vec<u8>,
        intermediates: Vec<Vec<u8>>,
        bundle: Arc<TrustBundle>,
        clock: Arc<dyn TimeProvider>,
    ) -> Result<Arc<Self>, CredentialsFault> {
        if intermediates.len() > MAX_INTERMEDIATES {
            return Err(CredentialsFault::Intermediates(intermediates.len()));
        }
        let now = clock.current_time().ok_or(CredentialsFault::Clock)?;
        let leaf = CertificateDer::from(leaf);
        let intermediates: Vec<CertificateDer<'static>> =
            intermediates.into_iter().map(CertificateDer::from).collect();
        let facts = peer::leaf_facts(&leaf).map_err(CredentialsFault::Leaf)?;
        facts.holds_at(UnixTime::from_secs(now.as_secs())).map_err(CredentialsFault::Leaf)?;
        if !facts.certificate.names(&identity) {
            return Err(CredentialsFault::Identity {
                ours: identity,
                presented: facts.certificate.identity.to_string(),
            });
        }
        if facts.spki != key.public_key_der() {
            return Err(CredentialsFault::Key);
        }
        bundle
            .verify(&leaf, &intermediates, now)
            .map_err(|source| CredentialsFault::Chain { anchors: bundle.to_string(), source })?;

        let chain: Vec<_> = std::iter::once(leaf).chain(intermediates).collect();
        let certified = Arc::new(CertifiedKey::new(chain.clone(), key.signing_key()?));
        let life = facts.certificate.not_after.since(UnixTime::from_secs(now.as_secs()));
        let configs =
            Configs { certified, bundle: bundle.clone(), clock, tickets: life.min(MAX_TICKET_LIFETIME) };
        Ok(Arc::new(Self {
            identity,
            not_before: facts.not_before,
            not_after: facts.certificate.not_after,
            serial: facts.certificate.serial,
            epoch: EPOCHS.fetch_add(1, Ordering::Relaxed),
            chain,
            bundle,
            server: Arc::new(configs.server(&[])?),
            direct_server: Arc::new(configs.server(&[TRANSPORT_ALPN])?),
            carrier_server: Arc::new(configs.server(&[mux::ALPN, TRANSPORT_ALPN])?),
            client: configs.client()?,
        }))
    }

    /// Who we are.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// NotAfter of our leaf.
    pub fn expires(&self) -> UnixTime {
        self.not_after
    }

    /// NotBefore of our leaf.
    pub fn not_before(&self) -> UnixTime {
        self.not_before
    }

    /// Serial number of our leaf, in lower-case hexadecimal.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// Grows with every credentials made by this process: connections and sessions are keyed by it.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Leaf first, then intermediates; the root is not among them.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// Whom we believe.
    pub fn bundle(&self) -> &Arc<TrustBundle> {
        &self.bundle
    }

    /// For ordinary ports and control-plane servers: no ALPN, a client certificate is asked for and not required.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        self.server.clone()
    }

    /// For connections made directly to the inbound port: ALPN [`TRANSPORT_ALPN`], before it [`mux::ALPN`] if carriers
    /// are taken, or no connection.
    ///
    /// rustls refuses a client that offers other protocols; one that offers none is *not* refused by TLS, so the
    /// caller looks at the negotiated protocol, and at the identity, which direct connections must have.
    pub fn direct_server_config(&self, mux: bool) -> Arc<ServerConfig> {
        if mux { self.carrier_server.clone() } else { self.direct_server.clone() }
    }

    /// A client configuration with a session store of its own, offering [`TRANSPORT_ALPN`] if `direct`.
    ///
    /// The caller keeps one per (address, expected identity) and epoch, so that no session is ever resumed with
    /// another endpoint, another expectation or older credentials.
    pub fn client_config_for_endpoint(&self, direct: bool) -> Arc<ClientConfig> {
        let mut config = self.client.clone();
        config.resumption = Resumption::in_memory_sessions(SESSIONS_PER_ENDPOINT);
        if direct {
            config.alpn_protocols = vec![TRANSPORT_ALPN.to_vec()];
        }
        Arc::new(config)
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("identity", &self.identity)
            .field("serial", &self.serial)
            .field("not_after", &self.not_after)
            .field("epoch", &self.epoch)
            .finish()
    }
}

/// A client configuration without a certificate: only for the first Certify, when there is none. No resumption.
pub fn anonymous_client_config(bundle: &Arc<TrustBundle>) -> Result<Arc<ClientConfig>, rustls::Error> {
    let mut config = client_builder(bundle, Arc::new(DefaultTimeProvider))?.with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// The name to put in the ClientHello for a DNS-like identity. URI identities come with a server name of their own.
pub fn server_name(name: &str) -> Result<ServerName<'static>, InvalidDnsNameError> {
    ServerName::try_from(name.trim_end_matches('.').to_owned())
}

/// What the configurations of one credentials share.
struct Configs {
    certified: Arc<CertifiedKey>,
    bundle: Arc<TrustBundle>,
    clock: Arc<dyn TimeProvider>,
    tickets: Duration,
}

impl Configs {
    fn server(&self, alpn: &[&[u8]]) -> Result<ServerConfig, rustls::Error> {
        let clients = WebPkiClientVerifier::builder_with_provider(self.bundle.roots(), provider::provider())
            .allow_unauthenticated()
            // Naming the roots would only tell strangers about them: everyone on the mesh has one certificate.
            .clear_root_hint_subjects()
            .build()
            .map_err(|fault| rustls::Error::General(fault.to_string()))?;
        let mut config = ServerConfig::builder_with_details(provider::provider(), self.clock.clone())
            .with_protocol_versions(provider::VERSIONS)?
            .with_client_cert_verifier(clients)
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(self.certified.clone())));
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = Arc::new(Ticketer::new(self.tickets, self.clock.clone())?);
        // Every resumed handshake brings a new one, so one is enough.
        config.send_tls13_tickets = 1;
        config.max_early_data_size = 0;
        // The data path opens and seals records itself: decision 18.
        config.enable_secret_extraction = true;
        Ok(config)
    }

    fn client(&self) -> Result<ClientConfig, rustls::Error> {
        let mut config = client_builder(&self.bundle, self.clock.clone())?
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(self.certified.clone())));
        // Only copies with a store of their own resume: see `client_config_for_endpoint`.
        config.resumption = Resumption::disabled();
        // The data path opens and seals records itself: decision 18.
        config.enable_secret_extraction = true;
        Ok(config)
    }
}

fn client_builder(
    bundle: &Arc<TrustBundle>,
    clock: Arc<dyn TimeProvider>,
) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>, rustls::Error> {
    Ok(ClientConfig::builder_with_details(provider::provider(), clock)
        .with_protocol_versions(provider::VERSIONS)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ChainVerifier::new(bundle.clone()))))
}

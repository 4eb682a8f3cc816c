//! The certificate client: asks identity for a certificate, checks what comes, publishes it, and renews it in time.
//! When to ask is decided in `remora_core::cert`; here it is done. Contract 2.1, 2.3 and 2.4.
//!
//! The key is made once per process and never leaves it but for the file in the end-entity folder. What was published
//! stays in use until the next certificate or its own end; nothing that goes wrong here takes a good one away.

mod grpc;
mod metrics;
mod store;

#[cfg(test)]
mod tests;

pub use grpc::GrpcCertify;
pub use metrics::CertifyMetrics;

use crate::{
    clock,
    control::InvalidControlAddr,
    tasks::Tasks,
    tls::{Credentials, CredentialsFault, KeyFault, Keypair, TlsFault, TrustBundle, peer_of_leaf},
};
use remora_core::{
    backoff::Backoff,
    cert::{Action, Lifecycle, RefreshBounds},
    identity::Identity,
    time::UnixTime,
};
use rustls::time_provider::{DefaultTimeProvider, TimeProvider};
use rustls_pki_types::CertificateDer;
use std::{future::Future, io, path::PathBuf, sync::Arc, time::Duration};
use tokio::{sync::watch, time::timeout};

/// Longest time that one attempt may take, from the token to the checked certificate.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest sleep between looks at the wall clock, which may jump.
const NAP: Duration = Duration::from_mins(1);

/// By how much our clock may be ahead of the authority's, so that `valid_until` is past, or behind it, so that a
/// certificate is not valid yet.
const CLOCK_SKEW: Duration = Duration::from_mins(1);

/// Before the first certificate: a pod should not wait long for an authority that is just starting, and never asks it
/// twice within a second.
const FIRST: Backoff = Backoff { min: Duration::from_secs(1), max: Duration::from_secs(10), jitter: 0.3 };

/// Whoever issues certificates: identity over gRPC, or the authority's own process.
pub trait Certify: Send + Sync + 'static {
    /// One attempt. The caller sets the deadline and looks at the answer.
    fn certify(
        &self,
        request: CertificateRequest,
    ) -> impl Future<Output = Result<IssuedCertificate, CertifyFault>> + Send;
}

/// What is asked.
#[derive(Clone, Debug)]
pub struct CertificateRequest {
    /// Who asks.
    pub identity: Identity,
    /// PKCS#10 in DER.
    pub csr: Vec<u8>,
    /// To authenticate the connection with, if there are any.
    pub current: Option<Arc<Credentials>>,
}

/// What is answered; nothing of it is believed before [`Credentials::new`] has looked at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuedCertificate {
    /// DER.
    pub leaf: Vec<u8>,
    /// DER, from the leaf towards the root, without it.
    pub intermediates: Vec<Vec<u8>>,
    /// When the authority says that it ends.
    pub valid_until: UnixTime,
}

/// Why an attempt failed.
#[derive(Debug, thiserror::Error)]
pub enum CertifyFault {
    /// The service account token cannot be read.
    #[error("cannot read the service account token {path}: {source}")]
    Token {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The address of identity is a mistake.
    #[error(transparent)]
    Addr(#[from] InvalidControlAddr),
    /// Identity said no, or could not be reached.
    #[error("identity answers {code:?}: {message}")]
    Refused {
        /// Its code: contract 2.3 says which means what.
        code: tonic::Code,
        /// Its reason.
        message: String,
    },
    /// Nothing came in time.
    #[error("no answer from identity within 10 s")]
    Timeout,
    /// The answer lacks something.
    #[error("identity's answer has no {0}")]
    Incomplete(&'static str),
    /// The answer is of the past.
    #[error("the certificate was valid until {ago} s ago")]
    Past {
        /// Seconds since.
        ago: u64,
    },
    /// The answer is not ours or not from our trust anchors.
    #[error(transparent)]
    Credentials(#[from] CredentialsFault),
}

impl CertifyFault {
    /// What the person who reads the log should look at.
    pub fn advice(&self) -> &'static str {
        use tonic::Code;
        match self {
            Self::Token { .. } => {
                "is the projected token with audience identity.l5d.io mounted, and readable by this uid?"
            }
            Self::Addr(_) => "correct the address or the name of the identity service",
            Self::Refused { code: Code::FailedPrecondition, .. } => {
                "the token was not accepted for this identity: check service account, audience and trust domain"
            }
            Self::Refused { code: Code::InvalidArgument, .. } => {
                "identity cannot read the request: do the versions match?"
            }
            Self::Refused { code: Code::ResourceExhausted, .. } => {
                "too many requests from this address; it is tried again later"
            }
            Self::Refused { .. } | Self::Timeout => {
                "is remora-identity running and ready, and its Service reachable from this pod?"
            }
            Self::Incomplete(_) => "is this address really the identity service?",
            Self::Past { .. } | Self::Credentials(CredentialsFault::Leaf(_)) => {
                "compare the clocks of this node and of identity's"
            }
            Self::Credentials(CredentialsFault::Chain { .. }) => {
                "the trust anchors of this pod are not those of identity: was the root replaced after injection? restart the pod"
            }
            Self::Credentials(_) => {
                "identity answered for somebody else: is this address really the identity service?"
            }
        }
    }
}

/// What a certificate client must know.
#[derive(Clone, Debug)]
pub struct CertifierConfig {
    /// Who we are.
    pub identity: Identity,
    /// Whom we believe.
    pub bundle: Arc<TrustBundle>,
    /// Bounds of the wait between renewals.
    pub refresh: RefreshBounds,
    /// Memory-backed folder for key, leaf and bundle; `None` keeps them in memory only.
    pub dir: Option<PathBuf>,
}

/// Drives [`Lifecycle`]: asks, checks, publishes.
pub struct Certifier<C> {
    config: CertifierConfig,
    authority: C,
    key: Keypair,
    csr: Vec<u8>,
    lifecycle: Lifecycle,
    failures: u32,
    metrics: CertifyMetrics,
    published: watch::Sender<Option<Arc<Credentials>>>,
    clock: Arc<dyn TimeProvider>,
}

impl<C: Certify> Certifier<C> {
    /// Makes the key and starts to ask. `None` is published until the first certificate, and again if one ends
    /// before it could be renewed: then there is nothing that a peer would believe.
    pub fn spawn(
        config: CertifierConfig,
        authority: C,
        metrics: CertifyMetrics,
        tasks: &Tasks,
    ) -> Result<watch::Receiver<Option<Arc<Credentials>>>, KeyFault> {
        Self::spawn_with_clock(config, authority, metrics, tasks, Arc::new(DefaultTimeProvider))
    }

    fn spawn_with_clock(
        config: CertifierConfig,
        authority: C,
        metrics: CertifyMetrics,
        tasks: &Tasks,
        clock: Arc<dyn TimeProvider>,
    ) -> Result<watch::Receiver<Option<Arc<Credentials>>>, KeyFault> {
        let key = Keypair::generate()?;
        let csr = key.csr_der(&config.identity)?;
        let (published, credentials) = watch::channel(None);
        let lifecycle = Lifecycle::starting(now(&*clock));
        let certifier =
            Self { config, authority, key, csr, lifecycle, failures: 0, metrics, published, clock };
        tasks.spawn("certify", certifier.run());
        Ok(credentials)
    }

    async fn run(mut self) {
        self.store(&[("key.p8", self.key.pkcs8_der()), ("csr.der", &self.csr)]);
        self.store(&[("ca-bundle.crt", self.config.bundle.pem().as_bytes())]);
        // Nobody to publish to is the end of the process: receivers live as long as it.
        while !self.published.is_closed() {
            let action = self.lifecycle.poll(self.now());
            self.withdraw_expired();
            match action {
                Action::Wait(until) => {
                    let nap = until.since(self.now()).clamp(Duration::from_millis(1), NAP);
                    tokio::select! {
                        () = tokio::time::sleep(nap) => {}
                        () = self.published.closed() => {}
                    }
                }
                Action::Ask => self.ask().await,
            }
        }
    }

    async fn ask(&mut self) {
        let attempt = timeout(ATTEMPT_TIMEOUT, self.attempt()).await;
        let checked = match attempt.unwrap_or(Err(CertifyFault::Timeout)) {
            Ok(issued) => {
                self.begun(&issued).await;
                self.check(issued)
            }
            Err(fault) => Err(fault),
        };
        match checked {
            Ok((credentials, expires)) => self.publish(credentials, expires),
            Err(fault) => self.failed(&fault),
        }
    }

    async fn attempt(&self) -> Result<IssuedCertificate, CertifyFault> {
        let request = CertificateRequest {
            identity: self.config.identity.clone(),
            csr: self.csr.clone(),
            current: self.authentication(),
        };
        self.authority.certify(request).await
    }

    /// Waits for the beginning of a certificate of an authority whose clock is a little ahead of ours: the next one
    /// would begin as late again.
    async fn begun(&self, issued: &IssuedCertificate) {
        let leaf = CertificateDer::from(issued.leaf.as_slice());
        let Err(TlsFault::NotYetValid { ahead }) = peer_of_leaf(&leaf, self.now()) else { return };
        let wait = Duration::from_secs(ahead);
        if wait <= CLOCK_SKEW {
            tracing::info!(
                seconds = ahead,
                "the certificate is not valid yet: identity's clock is ahead of this node's; waiting"
            );
            tokio::time::sleep(wait).await;
        }
    }

    fn check(&self, issued: IssuedCertificate) -> Result<(Arc<Credentials>, UnixTime), CertifyFault> {
        let now = self.now();
        if issued.valid_until + CLOCK_SKEW <= now {
            return Err(CertifyFault::Past { ago: now.since(issued.valid_until).as_secs() });
        }
        let credentials = Credentials::with_clock(
            self.config.identity.clone(),
            &self.key,
            issued.leaf,
            issued.intermediates,
            self.config.bundle.clone(),
            self.clock.clone(),
        )?;
        let expires = issued.valid_until.min(credentials.expires());
        Ok((credentials, expires))
    }

    /// Every other attempt after a failure goes without our certificate: should the authority no longer believe it,
    /// the token is still proof enough, and waiting for the certificate's end would be an outage.
    fn authentication(&self) -> Option<Arc<Credentials>> {
        if self.failures % 2 == 1 { None } else { self.published.borrow().clone() }
    }

    fn publish(&mut self, credentials: Arc<Credentials>, expires: UnixTime) {
        let now = self.now();
        self.failures = 0;
        self.lifecycle.issued(expires, now, self.config.refresh);
        self.metrics.refreshed(now, credentials.expires());
        let chain: Vec<&[u8]> = credentials.chain().iter().map(AsRef::as_ref).collect();
        self.store(&[("crt.der", chain.first().copied().unwrap_or_default())]);
        tracing::info!(
            identity = %credentials.identity(),
            serial = credentials.serial(),
            valid_seconds = expires.since(now).as_secs(),
            intermediates = chain.len().saturating_sub(1),
            "certificate in use"
        );
        self.published.send_replace(Some(credentials));
    }

    fn failed(&mut self, fault: &CertifyFault) {
        let now = self.now();
        self.failures = self.failures.saturating_add(1);
        self.lifecycle.failed(now, self.config.refresh, FIRST, clock::random());
        self.metrics.failed();
        let identity = &self.config.identity;
        let advice = fault.advice();
        if let Some(expires) = self.lifecycle.expires() {
            let remaining_seconds = expires.since(now).as_secs();
            tracing::warn!(
                %identity, %fault, advice, remaining_seconds,
                "cannot renew the certificate; the current one stays in use"
            );
        } else {
            tracing::warn!(%identity, %fault, advice, "cannot get a certificate; trying again");
        }
    }

    fn withdraw_expired(&self) {
        if self.lifecycle.expires().is_none() && self.published.borrow().is_some() {
            tracing::error!(
                identity = %self.config.identity,
                "the certificate has expired and could not be renewed; there is no mTLS until there is a new one"
            );
            self.published.send_replace(None);
        }
    }

    fn store(&self, files: &[(&str, &[u8])]) {
        let Some(dir) = &self.config.dir else { return };
        for (name, bytes) in files {
            if let Err(fault) = store::write(dir, name, bytes) {
                // What is used is in memory: a folder that cannot be written costs the copy, not the mesh.
                tracing::warn!(dir = %dir.display(), file = name, %fault, "cannot store in the end-entity folder");
            }
        }
    }

    fn now(&self) -> UnixTime {
        now(&*self.clock)
    }
}

/// A clock that cannot be read says 1970: nothing is valid then, and nothing fails open.
fn now(clock: &dyn TimeProvider) -> UnixTime {
    clock.current_time().map_or_else(UnixTime::default, |now| UnixTime::from_secs(now.as_secs()))
}

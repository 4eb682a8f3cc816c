//! With which key certificates are signed: read from the Secret's files, proved against the trust anchors before it
//! is used, and followed as the files change. Contract 2.3 and 2.5.

mod watch;

pub use watch::{Authority, InvalidSources, IssuerMetrics, Sources, watch};

use crate::issue::{self, Lifetimes, Request};
use rcgen::KeyPair;
use remora_core::time::UnixTime;
use remora_runtime::tls::{Keypair, TrustBundle};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use std::time::Duration;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Certificates in an issuer's file; a proxy takes eight intermediates.
const MAX_CHAIN: usize = 8;

/// An authority that may sign: its key, its certificate, and what leads to the root.
pub struct Issuer {
    signer: rcgen::Issuer<'static, KeyPair>,
    chain: Vec<CertificateDer<'static>>,
    subject: String,
    expires: UnixTime,
}

/// Why files are no issuer.
#[derive(Debug, thiserror::Error)]
pub enum InvalidIssuer {
    /// The certificate file.
    #[error("the issuer's certificate file cannot be used: {0}")]
    Certificate(String),
    /// The key file. Its content is never repeated.
    #[error("the issuer's key file cannot be used: {0}")]
    Key(String),
    /// They do not belong together.
    #[error("the issuer's key is not the key of its certificate; were only half of the files replaced?")]
    Mismatch,
    /// A leaf or a certificate without the right to sign.
    #[error("{0} is not the certificate of an authority that may sign certificates")]
    NotAnAuthority(String),
    /// Contract 2.3: leaves are signed with ECDSA-SHA256.
    #[error("the issuer's key is not ECDSA P-256; leaves must be signed with ECDSA-SHA256")]
    Algorithm,
    /// Past or future.
    #[error("the chain of {subject} does not hold now: {why}")]
    Validity {
        /// The issuer.
        subject: String,
        /// Which end, and by how much.
        why: String,
    },
    /// A certificate that it issues would not be believed.
    #[error("what {subject} issues does not lead to the trust anchors ({anchors}): {why}")]
    Untrusted {
        /// The issuer.
        subject: String,
        /// The anchors.
        anchors: String,
        /// What the verifier says.
        why: String,
    },
}

impl Issuer {
    /// Reads both files' text and proves the issuer: a certificate that it issues for a key made here has to lead to
    /// `anchors` at `now`, by the same verifier that proxies use.
    pub fn from_pem(
        certificate: &str,
        key: &str,
        anchors: &TrustBundle,
        now: UnixTime,
    ) -> Result<Self, InvalidIssuer> {
        let chain = read_chain(certificate, anchors)?;
        let own =
            chain.first().ok_or_else(|| InvalidIssuer::Certificate("no certificate in it".to_owned()))?;
        let key = read_key(key)?;
        let unreadable = |fault: &dyn std::fmt::Display| InvalidIssuer::Certificate(fault.to_string());
        let (_, parsed) = X509Certificate::from_der(own).map_err(|fault| unreadable(&fault))?;
        let subject = parsed.subject().to_string();
        let may_sign = match parsed.key_usage() {
            Ok(usage) => usage.is_none_or(|usage| usage.value.key_cert_sign()),
            Err(fault) => return Err(unreadable(&fault)),
        };
        if !parsed.is_ca() || !may_sign {
            return Err(InvalidIssuer::NotAnAuthority(subject));
        }
        if parsed.public_key().raw != rcgen::PublicKeyData::subject_public_key_info(&key) {
            return Err(InvalidIssuer::Mismatch);
        }
        if !key.is_compatible(&rcgen::PKCS_ECDSA_P256_SHA256) {
            return Err(InvalidIssuer::Algorithm);
        }
        let expires = check_validity(&chain, now, &subject)?;
        let signer = rcgen::Issuer::from_ca_cert_der(own, key).map_err(|fault| unreadable(&fault))?;
        let issuer = Self { signer, chain, subject, expires };
        issuer.prove(anchors, now)?;
        Ok(issuer)
    }

    /// The certificate's subject.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// The earliest end in the chain: nothing issued lives longer.
    pub fn expires(&self) -> UnixTime {
        self.expires
    }

    /// Its own certificate first, towards the root, without it.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    pub(crate) fn signer(&self) -> &rcgen::Issuer<'static, KeyPair> {
        &self.signer
    }

    fn prove(&self, anchors: &TrustBundle, now: UnixTime) -> Result<(), InvalidIssuer> {
        let untrusted = |why: &dyn std::fmt::Display| InvalidIssuer::Untrusted {
            subject: self.subject.clone(),
            anchors: anchors.to_string(),
            why: why.to_string(),
        };
        let name = "issuer.proof.serviceaccount.identity.remora.cluster.local";
        let identity = remora_core::identity::Identity::parse(name).map_err(|fault| untrusted(&fault))?;
        let csr =
            Keypair::generate().and_then(|key| key.csr_der(&identity)).map_err(|fault| untrusted(&fault))?;
        let lifetimes = Lifetimes { issuance: Duration::from_mins(1), skew: Duration::ZERO };
        let proof = Request::read(name, &csr)
            .and_then(|request| issue::issue(&request, self, now, lifetimes, 1))
            .map_err(|fault| untrusted(&fault))?;
        let at = rustls_pki_types::UnixTime::since_unix_epoch(now.0);
        anchors.verify(&proof.leaf.into(), &self.chain, at).map_err(|fault| untrusted(&fault))
    }
}

/// The key is not shown.
impl std::fmt::Debug for Issuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issuer").field("subject", &self.subject).field("expires", &self.expires).finish()
    }
}

/// The file's certificates without the anchors themselves, which peers have.
fn read_chain(text: &str, anchors: &TrustBundle) -> Result<Vec<CertificateDer<'static>>, InvalidIssuer> {
    let mut chain = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(text.as_bytes()) {
        let certificate = certificate.map_err(|fault| InvalidIssuer::Certificate(fault.to_string()))?;
        // Its own certificate stays even if it is an anchor: then it is the root that issues.
        if chain.is_empty() || !anchors.anchors().contains(&certificate) {
            chain.push(certificate);
        }
        if chain.len() > MAX_CHAIN {
            return Err(InvalidIssuer::Certificate("more than 8 certificates".to_owned()));
        }
    }
    Ok(chain)
}

/// PKCS#8, or SEC1 as `step` and OpenSSL write it.
fn read_key(text: &str) -> Result<KeyPair, InvalidIssuer> {
    let der = PrivateKeyDer::from_pem_slice(text.as_bytes())
        .map_err(|fault| InvalidIssuer::Key(format!("no private key in PEM in it ({fault})")))?;
    KeyPair::try_from(&der)
        .map_err(|_undisclosed| InvalidIssuer::Key("not a private key that can sign".to_owned()))
}

fn check_validity(
    chain: &[CertificateDer<'static>],
    now: UnixTime,
    subject: &str,
) -> Result<UnixTime, InvalidIssuer> {
    let invalid = |why: String| InvalidIssuer::Validity { subject: subject.to_owned(), why };
    let mut earliest = UnixTime::from_secs(u64::MAX);
    for certificate in chain {
        let (_, parsed) = X509Certificate::from_der(certificate)
            .map_err(|fault| InvalidIssuer::Certificate(fault.to_string()))?;
        let seconds = |time: x509_parser::time::ASN1Time| {
            UnixTime::from_secs(u64::try_from(time.timestamp()).unwrap_or(0))
        };
        let (begin, end) = (seconds(parsed.validity().not_before), seconds(parsed.validity().not_after));
        if now < begin {
            return Err(invalid(format!(
                "{} begins in {} s; do the clocks agree?",
                parsed.subject(),
                begin.since(now).as_secs()
            )));
        }
        if end <= now {
            return Err(invalid(format!("{} ended {} s ago", parsed.subject(), now.since(end).as_secs())));
        }
        earliest = earliest.min(end);
    }
    Ok(earliest)
}

#[cfg(test)]
mod tests;

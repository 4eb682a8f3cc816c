//! The trust anchors in force: certificates of roots, read from PEM text once and never half.

use super::provider::SIGNATURES;
use rustls::{RootCertStore, client::verify_server_cert_signed_by_trust_anchor, server::ParsedCertificate};
use rustls_pki_types::{
    CertificateDer, UnixTime,
    pem::{self, PemObject, SectionKind},
};
use std::{fmt, sync::Arc};
use x509_parser::prelude::{FromDer, X509Certificate};

/// More anchors than this are refused: a bundle is an old root and a new one, not a browser's list.
const MAX_ANCHORS: usize = 64;

/// One or more trust anchors.
#[derive(PartialEq, Eq)]
pub struct TrustBundle {
    pem: String,
    anchors: Vec<CertificateDer<'static>>,
    roots: Roots,
}

/// Compared by the certificates it was made of.
struct Roots(Arc<RootCertStore>);

impl PartialEq for Roots {
    fn eq(&self, other: &Self) -> bool {
        self.0.roots == other.0.roots
    }
}

impl Eq for Roots {}

/// Why a text is no trust bundle. `certificate` counts from 1.
#[derive(Debug, thiserror::Error)]
pub enum InvalidBundle {
    /// No certificate in the text.
    #[error(
        "the trust anchors hold no certificate; expected PEM blocks that begin with -----BEGIN CERTIFICATE-----"
    )]
    Empty,
    /// More than 64.
    #[error("the trust anchors hold more than 64 certificates")]
    TooMany,
    /// PEM that cannot be decoded.
    #[error("the trust anchors are not PEM after certificate {after}: {reason}")]
    Pem {
        /// Whole blocks before the fault.
        after: usize,
        /// What the decoder says.
        reason: String,
    },
    /// A block that is not a certificate, such as a private key that must not be here.
    #[error("block {block} of the trust anchors is a {found}, not a certificate")]
    NotACertificate {
        /// Which block, from 1.
        block: usize,
        /// What it says it is.
        found: String,
    },
    /// A certificate that cannot be an anchor.
    #[error("certificate {certificate} of the trust anchors cannot be used: {reason}")]
    Certificate {
        /// Which one, from 1.
        certificate: usize,
        /// Why.
        reason: String,
    },
}

impl TrustBundle {
    /// Reads every certificate of `text`. One that cannot be used spoils the whole: half a bundle would cut off
    /// half of the mesh without saying so.
    pub fn from_pem(text: &str) -> Result<Arc<Self>, InvalidBundle> {
        let mut anchors = Vec::new();
        let mut roots = RootCertStore::empty();
        for block in <(SectionKind, Vec<u8>) as PemObject>::pem_slice_iter(text.as_bytes()) {
            let after = anchors.len();
            let (kind, der) =
                block.map_err(|fault: pem::Error| InvalidBundle::Pem { after, reason: fault.to_string() })?;
            if kind != SectionKind::Certificate {
                return Err(InvalidBundle::NotACertificate { block: after + 1, found: format!("{kind:?}") });
            }
            if after >= MAX_ANCHORS {
                return Err(InvalidBundle::TooMany);
            }
            let anchor = CertificateDer::from(der);
            let unusable = |reason: String| InvalidBundle::Certificate { certificate: after + 1, reason };
            check_anchor(&anchor).map_err(unusable)?;
            roots.add(anchor.clone()).map_err(|fault| unusable(fault.to_string()))?;
            anchors.push(anchor);
        }
        if anchors.is_empty() {
            return Err(InvalidBundle::Empty);
        }
        Ok(Arc::new(Self { pem: text.to_owned(), anchors, roots: Roots(Arc::new(roots)) }))
    }

    /// The text it was read from.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// The anchors' certificates, never empty.
    pub fn anchors(&self) -> &[CertificateDer<'static>] {
        &self.anchors
    }

    pub(super) fn roots(&self) -> Arc<RootCertStore> {
        self.roots.0.clone()
    }

    /// Does `leaf` lead to an anchor at `now`, through certificates of authorities only, each valid and allowed to?
    /// Looks at no name.
    pub fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let leaf = ParsedCertificate::try_from(leaf)?;
        verify_server_cert_signed_by_trust_anchor(&leaf, &self.roots.0, intermediates, now, SIGNATURES.all)
    }
}

fn check_anchor(anchor: &CertificateDer<'_>) -> Result<(), String> {
    let (rest, certificate) = X509Certificate::from_der(anchor).map_err(|fault| fault.to_string())?;
    if !rest.is_empty() {
        return Err("bytes after its end".to_owned());
    }
    if !certificate.is_ca() {
        return Err(format!("{} is not the certificate of an authority", certificate.subject()));
    }
    Ok(())
}

/// The anchors' subjects, for messages.
impl fmt::Display for TrustBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, anchor) in self.anchors.iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            match X509Certificate::from_der(anchor) {
                Ok((_, certificate)) => write!(f, "{separator}{}", certificate.subject())?,
                Err(_unreadable) => write!(f, "{separator}(unreadable)")?,
            }
        }
        Ok(())
    }
}

impl fmt::Debug for TrustBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TrustBundle({self})")
    }
}

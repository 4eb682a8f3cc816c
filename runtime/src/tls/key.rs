//! Our private key: made here, used here, and never printed. Contract 2.1.

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PublicKeyData};
use remora_core::identity::{Identity, Kind};
use rustls::{crypto::aws_lc_rs::sign::any_ecdsa_type, sign::SigningKey};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use std::{fmt, sync::Arc};

/// An ECDSA P-256 key, made once per process and kept for all renewals.
pub struct Keypair(KeyPair);

/// Why there is no key, or no request for a certificate.
#[derive(Debug, thiserror::Error)]
pub enum KeyFault {
    /// The library could not make one (no randomness).
    #[error("cannot make a private key: {0}")]
    Generate(rcgen::Error),
    /// The CA issues DNS names only.
    #[error("a certificate can only be asked for a DNS-like identity, and {0} is a URI")]
    NotDns(Identity),
    /// The request could not be written.
    #[error("cannot write a certificate request for {identity}: {source}")]
    Request {
        /// Who asks.
        identity: Identity,
        /// Why.
        source: rcgen::Error,
    },
}

impl Keypair {
    /// A new key.
    pub fn generate() -> Result<Self, KeyFault> {
        KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map(Self).map_err(KeyFault::Generate)
    }

    /// A certificate request in DER: CN and exactly one DNS SAN, both `identity`.
    pub fn csr_der(&self, identity: &Identity) -> Result<Vec<u8>, KeyFault> {
        if identity.kind() != Kind::Dns {
            return Err(KeyFault::NotDns(identity.clone()));
        }
        let request = |source| KeyFault::Request { identity: identity.clone(), source };
        let mut params = CertificateParams::new(vec![identity.as_str().to_owned()]).map_err(request)?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, identity.as_str());
        let csr = params.serialize_request(&self.0).map_err(request)?;
        Ok(csr.der().to_vec())
    }

    /// PKCS#8 in DER: for the file in the end-entity folder, and nothing else.
    pub fn pkcs8_der(&self) -> &[u8] {
        self.0.serialized_der()
    }

    /// SubjectPublicKeyInfo in DER, as in a certificate.
    pub fn public_key_der(&self) -> Vec<u8> {
        self.0.subject_public_key_info()
    }

    pub(super) fn signing_key(&self) -> Result<Arc<dyn SigningKey>, rustls::Error> {
        any_ecdsa_type(&PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.0.serialized_der())))
    }
}

impl fmt::Debug for Keypair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keypair(redacted)")
    }
}

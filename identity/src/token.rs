//! Whom a token belongs to. Standalone: service account JWTs, checked against a public key. In a cluster the
//! Kubernetes API is asked instead; it implements the same trait. Contract 2.3.

use jsonwebtoken::{Algorithm, DecodingKey, Validation, errors::ErrorKind};
use rustls_pki_types::{
    SubjectPublicKeyInfoDer,
    pem::{PemObject, SectionKind},
};
use serde::Deserialize;
use std::future::Future;
use x509_parser::{prelude::FromDer, public_key::PublicKey, x509::SubjectPublicKeyInfo};

/// A projected token is about 1 KiB.
const MAX_TOKEN: usize = 64 * 1024;

/// Keys in a file: one, or two while they are being replaced.
const MAX_KEYS: usize = 16;

/// Clocks of the token's issuer and ours may differ by this many seconds.
const LEEWAY_SECONDS: u64 = 60;

/// A Kubernetes service account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAccount {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// Why nobody stands behind a token. Never repeats the token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidToken {
    /// Not a token at all.
    #[error("the token cannot be read: {0}")]
    Malformed(String),
    /// A token that is not good here and now.
    #[error("the token is not accepted: {0}")]
    Rejected(String),
    /// Nobody could be asked.
    #[error("the token could not be checked: {0}")]
    Unavailable(String),
}

impl InvalidToken {
    /// Contract 2.3.
    pub fn code(&self) -> tonic::Code {
        match self {
            Self::Malformed(_) => tonic::Code::InvalidArgument,
            Self::Rejected(_) => tonic::Code::FailedPrecondition,
            Self::Unavailable(_) => tonic::Code::Unavailable,
        }
    }
}

/// Whoever can say whom a token belongs to: a public key file, or the Kubernetes API.
pub trait TokenValidator: Send + Sync + 'static {
    /// The account behind `token`, or why there is none.
    fn validate(&self, token: &[u8]) -> impl Future<Output = Result<ServiceAccount, InvalidToken>> + Send;
}

/// The account in a user name `system:serviceaccount:<ns>:<sa>`.
pub fn service_account(username: &str) -> Result<ServiceAccount, InvalidToken> {
    let parts: Vec<&str> = username.split(':').collect();
    match parts[..] {
        ["system", "serviceaccount", namespace, name] if !namespace.is_empty() && !name.is_empty() => {
            Ok(ServiceAccount { namespace: namespace.to_owned(), name: name.to_owned() })
        }
        _ => Err(InvalidToken::Rejected("its user is not a service account".to_owned())),
    }
}

/// Checks signature, issuer, audience and time of service account tokens by itself.
pub struct JwtValidator {
    keys: Vec<(DecodingKey, Validation)>,
}

/// Why a file holds no key to check tokens with. `block` counts from 1.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKeys {
    /// Nothing there.
    #[error("it holds no public key; expected PEM blocks that begin with -----BEGIN PUBLIC KEY-----")]
    Empty,
    /// More than 16.
    #[error("it holds more than 16 keys")]
    TooMany,
    /// Not PEM.
    #[error("it is not PEM after {after} keys: {reason}")]
    Pem {
        /// Whole blocks before the fault.
        after: usize,
        /// What the decoder says.
        reason: String,
    },
    /// A private key, a certificate, or something else.
    #[error("block {block} is a {found}, not a public key")]
    NotAPublicKey {
        /// Which.
        block: usize,
        /// What it says it is.
        found: String,
    },
    /// A key that no algorithm of ours goes with.
    #[error(
        "key {block} cannot be used: {reason}; expected RSA of at least 2048 bits, ECDSA P-256 or Ed25519"
    )]
    Unsupported {
        /// Which.
        block: usize,
        /// What it is.
        reason: String,
    },
}

impl JwtValidator {
    /// Reads the public keys of `pem`. Each key's type decides the one algorithm that is accepted with it (RS256,
    /// ES256 or EdDSA): what a token's header says chooses nothing.
    pub fn from_pem(pem: &str, issuer: &str, audience: &str) -> Result<Self, InvalidKeys> {
        let mut keys = Vec::new();
        for block in <(SectionKind, Vec<u8>) as PemObject>::pem_slice_iter(pem.as_bytes()) {
            let after = keys.len();
            let (kind, der) = block.map_err(|fault: rustls_pki_types::pem::Error| InvalidKeys::Pem {
                after,
                reason: fault.to_string(),
            })?;
            if kind != SectionKind::PublicKey {
                return Err(InvalidKeys::NotAPublicKey { block: after + 1, found: format!("{kind:?}") });
            }
            if after >= MAX_KEYS {
                return Err(InvalidKeys::TooMany);
            }
            let (key, algorithm) = decoding_key(&SubjectPublicKeyInfoDer::from(der))
                .map_err(|reason| InvalidKeys::Unsupported { block: after + 1, reason })?;
            keys.push((key, validation(algorithm, issuer, audience)));
        }
        if keys.is_empty() { Err(InvalidKeys::Empty) } else { Ok(Self { keys }) }
    }

    fn check(&self, token: &[u8]) -> Result<ServiceAccount, InvalidToken> {
        let malformed = |why: &str| InvalidToken::Malformed(why.to_owned());
        if token.len() > MAX_TOKEN {
            return Err(malformed("larger than 64 KiB"));
        }
        // A file that was written by hand ends with a newline.
        let token = token.trim_ascii();
        if token.is_empty() {
            return Err(malformed("it is empty"));
        }
        // The first key that made the signature decides; if none did, so says the last.
        let mut verdict = Err(malformed("no key"));
        for (key, validation) in &self.keys {
            verdict =
                jsonwebtoken::decode::<Claims>(token, key, validation).map_err(|fault| reason(fault.kind()));
            match &verdict {
                Ok(_) => break,
                Err(fault) if *fault != wrong_key() => break,
                Err(_) => {}
            }
        }
        service_account(verdict?.claims.sub.as_deref().unwrap_or_default())
    }
}

impl TokenValidator for JwtValidator {
    fn validate(&self, token: &[u8]) -> impl Future<Output = Result<ServiceAccount, InvalidToken>> + Send {
        std::future::ready(self.check(token))
    }
}

#[derive(Deserialize)]
struct Claims {
    /// That it is there is checked with the other claims.
    sub: Option<String>,
}

fn validation(algorithm: Algorithm, issuer: &str, audience: &str) -> Validation {
    let mut validation = Validation::new(algorithm);
    validation.set_issuer(&[issuer]);
    validation.set_audience(&[audience]);
    validation.set_required_spec_claims(&["exp", "aud", "iss", "sub"]);
    validation.validate_exp = true;
    validation.validate_nbf = true;
    validation.leeway = LEEWAY_SECONDS;
    validation
}

/// Signed by another of our keys, perhaps.
fn wrong_key() -> InvalidToken {
    InvalidToken::Rejected(
        "its signature is not from a key of ours, or not by that key's algorithm".to_owned(),
    )
}

fn reason(fault: &ErrorKind) -> InvalidToken {
    let rejected = |why: &str| InvalidToken::Rejected(why.to_owned());
    match fault {
        ErrorKind::InvalidSignature | ErrorKind::InvalidAlgorithm | ErrorKind::InvalidKeyFormat => {
            wrong_key()
        }
        ErrorKind::ExpiredSignature => rejected("it has expired"),
        ErrorKind::ImmatureSignature => rejected("it is not valid yet; do the clocks agree?"),
        ErrorKind::InvalidIssuer => rejected("its issuer is not the expected one"),
        ErrorKind::InvalidAudience => rejected("its audience is not ours; project the token with ours"),
        ErrorKind::MissingRequiredClaim(claim) => InvalidToken::Rejected(format!(
            "it has no claim {:?}",
            claim.chars().take(16).collect::<String>()
        )),
        // Nothing of the content: what does not parse may be another secret.
        _ => InvalidToken::Malformed("not a signed JSON web token".to_owned()),
    }
}

fn decoding_key(spki: &SubjectPublicKeyInfoDer<'_>) -> Result<(DecodingKey, Algorithm), String> {
    let (rest, info) = SubjectPublicKeyInfo::from_der(spki).map_err(|fault| fault.to_string())?;
    if !rest.is_empty() {
        return Err("bytes after its end".to_owned());
    }
    // RFC 8410 section 3.
    if info.algorithm.algorithm.to_id_string() == "1.3.101.112" {
        return Ok((DecodingKey::from_ed_der(&info.subject_public_key.data), Algorithm::EdDSA));
    }
    match info.parsed().map_err(|fault| fault.to_string())? {
        PublicKey::RSA(rsa) if rsa.key_size() >= 2048 => {
            Ok((DecodingKey::from_rsa_der(&info.subject_public_key.data), Algorithm::RS256))
        }
        PublicKey::RSA(rsa) => Err(format!("RSA of {} bits", rsa.key_size())),
        PublicKey::EC(point) if is_p256(&info) => {
            Ok((DecodingKey::from_ec_der(point.data()), Algorithm::ES256))
        }
        PublicKey::EC(_) => Err("an elliptic curve other than P-256".to_owned()),
        _ => Err(format!("algorithm {}", info.algorithm.algorithm.to_id_string())),
    }
}

/// RFC 5480 section 2.1.1.1.
fn is_p256(info: &SubjectPublicKeyInfo<'_>) -> bool {
    let curve = info.algorithm.parameters.as_ref().and_then(|curve| curve.as_oid().ok());
    curve.is_some_and(|curve| curve.to_id_string() == "1.2.840.10045.3.1.7")
}

#[cfg(test)]
mod tests;

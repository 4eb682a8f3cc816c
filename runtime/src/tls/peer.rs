//! Who is at the other end: read from the leaf that rustls verified, at every handshake, resumed ones too.

#[cfg(planted)]
use remora_core::planted;
use remora_core::{identity::Identity, time::UnixTime};
use rustls::{AlertDescription, CertificateError, CommonState, Error as TlsError};
use rustls_pki_types::CertificateDer;
use std::io;
use x509_parser::{
    extensions::GeneralName,
    prelude::{FromDer, X509Certificate},
    time::ASN1Time,
};

/// Names of a leaf looked at; further ones are ignored. Ours have one.
const MAX_NAMES: usize = 16;

/// What a peer's certificate says of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerCertificate {
    /// The first SAN (DNS or URI) that is an identity. Contract 2.6.
    pub identity: Identity,
    /// Serial number in lower-case hexadecimal.
    pub serial: String,
    /// The last second at which it holds.
    pub not_after: UnixTime,
    /// Further identities of the same leaf.
    others: Box<[Identity]>,
}

impl PeerCertificate {
    /// Is `identity` one of the names that the leaf holds?
    pub fn names(&self, identity: &Identity) -> bool {
        self.identity == *identity || self.others.contains(identity)
    }
}

/// Why a handshake is not good enough.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlsFault {
    /// A certificate was required and none was given.
    #[error("the peer gave no certificate")]
    NoCertificate,
    /// The chain does not lead to our trust anchors.
    #[error("the peer's certificate is not from our trust anchors: {0}")]
    Untrusted(String),
    /// The leaf is past its NotAfter.
    #[error("the peer's certificate expired {ago} s ago")]
    Expired {
        /// Seconds since.
        ago: u64,
    },
    /// The leaf's NotBefore is still to come.
    #[error("the peer's certificate holds only in {ahead} s; do the clocks agree?")]
    NotYetValid {
        /// Seconds until.
        ahead: u64,
    },
    /// The leaf is not X.509 that we can read.
    #[error("the peer's certificate cannot be read: {0}")]
    Unreadable(String),
    /// An authority's certificate used as a leaf.
    #[error("the peer's certificate is that of an authority")]
    Authority,
    /// A SAN that some reader takes for somebody else's name, or for everybody's. Escaped, 64 characters of it.
    #[error(
        "the peer's certificate holds the name \"{0}\", which no workload can have: a leaf with such a name is nobody's"
    )]
    NotAName(String),
    /// No SAN is an identity.
    #[error("the peer's certificate names no identity")]
    NoIdentity,
    /// Somebody else.
    #[error("the peer is {presented}, not {expected}")]
    WrongIdentity {
        /// Whom we wanted.
        expected: Identity,
        /// Who it is.
        presented: Identity,
    },
    /// No ALPN in common.
    #[error("the peer offers no application protocol of ours")]
    NoProtocol,
    /// No TLS version, suite or group in common.
    #[error("the peer's TLS is incompatible (TLS 1.3 is required): {0}")]
    Incompatible(String),
    /// The peer refused, and said so.
    #[error("the peer refused the handshake: {0}")]
    Refused(String),
    /// Not TLS, or broken TLS.
    #[error("the handshake failed: {0}")]
    Handshake(String),
    /// The connection broke during the handshake.
    #[error("the connection broke during the handshake: {0}")]
    Io(io::ErrorKind),
}

impl TlsFault {
    /// A short constant name, for metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::NoCertificate => "no_certificate",
            Self::Untrusted(_) => "untrusted",
            Self::Expired { .. } => "expired",
            Self::NotYetValid { .. } => "not_yet_valid",
            Self::Unreadable(_) => "unreadable",
            Self::Authority => "authority",
            Self::NotAName(_) => "not_a_name",
            Self::NoIdentity => "no_identity",
            Self::WrongIdentity { .. } => "wrong_identity",
            Self::NoProtocol => "no_protocol",
            Self::Incompatible(_) => "incompatible",
            Self::Refused(_) => "refused",
            Self::Handshake(_) => "handshake",
            Self::Io(_) => "io",
        }
    }
}

/// What failed in a handshake done by tokio-rustls.
impl From<&io::Error> for TlsFault {
    fn from(fault: &io::Error) -> Self {
        match fault.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>()) {
            Some(tls) => Self::from(tls),
            None => Self::Io(fault.kind()),
        }
    }
}

impl From<&TlsError> for TlsFault {
    fn from(fault: &TlsError) -> Self {
        match fault {
            TlsError::InvalidCertificate(CertificateError::ExpiredContext { time, not_after }) => {
                Self::Expired { ago: time.as_secs().saturating_sub(not_after.as_secs()) }
            }
            TlsError::InvalidCertificate(CertificateError::NotValidYetContext { time, not_before }) => {
                Self::NotYetValid { ahead: not_before.as_secs().saturating_sub(time.as_secs()) }
            }
            TlsError::InvalidCertificate(CertificateError::BadEncoding) => {
                Self::Unreadable("bad encoding".to_owned())
            }
            TlsError::InvalidCertificate(other) => Self::Untrusted(other.to_string()),
            TlsError::NoCertificatesPresented => Self::NoCertificate,
            TlsError::NoApplicationProtocol
            | TlsError::AlertReceived(AlertDescription::NoApplicationProtocol) => Self::NoProtocol,
            TlsError::PeerIncompatible(why) => Self::Incompatible(format!("{why:?}")),
            TlsError::AlertReceived(alert) => Self::Refused(format!("{alert:?}")),
            other => Self::Handshake(other.to_string()),
        }
    }
}

/// Who the peer of a finished handshake is at `now`: `None` if it gave no certificate.
///
/// To be called after every handshake: a resumed one brings back a chain that was verified when the session began.
pub fn peer(connection: &CommonState, now: UnixTime) -> Result<Option<PeerCertificate>, TlsFault> {
    match connection.peer_certificates().and_then(<[_]>::first) {
        Some(leaf) => peer_of_leaf(leaf, now).map(Some),
        None => Ok(None),
    }
}

/// [`peer`], of a leaf in DER whose chain was verified by the caller.
pub fn peer_of_leaf(leaf: &CertificateDer<'_>, now: UnixTime) -> Result<PeerCertificate, TlsFault> {
    let facts = leaf_facts(leaf)?;
    facts.holds_at(now)?;
    Ok(facts.certificate)
}

/// The peer must be `expected`: one of its leaf's SANs, DNS or URI.
pub fn require(peer: &PeerCertificate, expected: &Identity) -> Result<(), TlsFault> {
    if peer.names(expected) {
        Ok(())
    } else {
        Err(TlsFault::WrongIdentity { expected: expected.clone(), presented: peer.identity.clone() })
    }
}

/// All that is ever read from a leaf.
#[derive(Debug)]
pub(super) struct LeafFacts {
    pub(super) certificate: PeerCertificate,
    pub(super) not_before: UnixTime,
    pub(super) spki: Vec<u8>,
}

impl LeafFacts {
    pub(super) fn holds_at(&self, now: UnixTime) -> Result<(), TlsFault> {
        // RFC 5280 4.1.2.5: both ends belong to the validity, in whole seconds.
        let not_after = self.certificate.not_after;
        if now.0.as_secs() > not_after.0.as_secs() {
            return Err(TlsFault::Expired { ago: now.since(not_after).as_secs() });
        }
        if now < self.not_before {
            return Err(TlsFault::NotYetValid { ahead: self.not_before.since(now).as_secs() });
        }
        Ok(())
    }
}

pub(super) fn leaf_facts(leaf: &CertificateDer<'_>) -> Result<LeafFacts, TlsFault> {
    let unreadable = |reason: String| TlsFault::Unreadable(reason);
    let (rest, leaf) = X509Certificate::from_der(leaf).map_err(|fault| unreadable(fault.to_string()))?;
    if !rest.is_empty() {
        return Err(unreadable("bytes after its end".to_owned()));
    }
    let authority = leaf.is_ca();
    #[cfg(planted)]
    let authority = authority && !planted::makes(planted::Mistake::AuthorityIsLeaf);
    if authority {
        return Err(TlsFault::Authority);
    }
    let sans = leaf.subject_alternative_name().map_err(|fault| unreadable(fault.to_string()))?;
    let is_garbled = |name: &GeneralName<'_>| matches!(name, GeneralName::Invalid(..));
    if sans.iter().flat_map(|san| &san.value.general_names).any(is_garbled) {
        // Another reader would refuse them all, or read others.
        return Err(unreadable("one of its names is malformed".to_owned()));
    }
    let misleading = sans.iter().flat_map(|san| &san.value.general_names).find_map(misleading);
    if let Some(name) = misleading {
        return Err(TlsFault::NotAName(name.chars().take(64).flat_map(char::escape_debug).collect()));
    }
    let mut names = sans
        .iter()
        .flat_map(|san| &san.value.general_names)
        .take(MAX_NAMES)
        // What is no identity (addresses, names of other kinds) is passed over: it is nobody's name on the mesh.
        .filter_map(|name| match name {
            GeneralName::DNSName(name) if !name.contains("://") => Identity::parse(name).ok(),
            GeneralName::URI(uri) if uri.contains("://") => Identity::parse(uri).ok(),
            _ => None,
        });
    let identity = names.next().ok_or(TlsFault::NoIdentity)?;
    #[cfg(planted)]
    if planted::makes(planted::Mistake::FirstNameOnly) {
        names.by_ref().for_each(drop);
    }
    Ok(LeafFacts {
        certificate: PeerCertificate {
            identity,
            serial: leaf.serial.to_str_radix(16),
            not_after: unix(leaf.validity().not_after)?,
            others: names.collect(),
        },
        not_before: unix(leaf.validity().not_before)?,
        spki: leaf.public_key().raw.to_vec(),
    })
}

/// A name that ends early for who takes NUL for its end, or that a wildcard makes everybody's: whoever signed it did not
/// look at what it signed, so that the names beside it prove as little. Contract 2.6 has the first name that is an
/// identity; no authority of the mesh makes a leaf where that would differ.
fn misleading<'a>(name: &GeneralName<'a>) -> Option<&'a str> {
    match name {
        GeneralName::DNSName(name) => {
            let is_odd = |byte: u8| !(byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
            name.bytes().any(is_odd).then_some(*name)
        }
        GeneralName::URI(uri) => {
            let is_odd = |byte: u8| !byte.is_ascii_graphic() || byte == b'*';
            uri.bytes().any(is_odd).then_some(*uri)
        }
        _ => None,
    }
}

fn unix(time: ASN1Time) -> Result<UnixTime, TlsFault> {
    u64::try_from(time.timestamp())
        .map(UnixTime::from_secs)
        .map_err(|_negative| TlsFault::Unreadable("a validity before 1970".to_owned()))
}

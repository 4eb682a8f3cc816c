//! Pure. What may be certified: (request, issuer, now) → certificate or [`Refusal`]. Contract 2.3.
//!
//! Looks at no token: who asks is compared by `serve`, between [`Request::read`] and [`issue`].

use crate::issuer::Issuer;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType,
    SerialNumber, SubjectPublicKeyInfo,
};
use remora_core::{
    identity::{Identity, InvalidIdentity, Kind},
    time::UnixTime,
};
use std::time::{Duration, UNIX_EPOCH};
use x509_parser::{
    certification_request::X509CertificationRequest,
    extensions::{GeneralName, ParsedExtension},
    prelude::FromDer,
};

/// A request with one P-256 key and one name has about 400 bytes.
const MAX_CSR: usize = 16 * 1024;

/// No certificate is issued for longer than this, whatever is configured.
pub const MAX_LIFETIME: Duration = Duration::from_hours(24 * 365);

/// How long certificates hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetimes {
    /// From now, at most [`MAX_LIFETIME`] (`--issuance-lifetime`, 24 h).
    pub issuance: Duration,
    /// Added before and after, for clocks that disagree (`--clock-skew-allowance`, 60 s).
    pub skew: Duration,
}

/// A request whose form is right: who wants to be certified, and for which key. Nobody has vouched for it yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    identity: Identity,
    public_key: SubjectPublicKeyInfo,
}

/// What goes out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// DER.
    pub leaf: Vec<u8>,
    /// DER: the issuer's certificate and what leads from it to the root, without the root.
    pub intermediates: Vec<Vec<u8>>,
    /// NotAfter of the leaf.
    pub valid_until: UnixTime,
    /// In lower-case hexadecimal.
    pub serial: String,
}

/// Why no certificate is issued.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A field is empty.
    #[error("the request has no {0}")]
    Missing(&'static str),
    /// The identity is not a name.
    #[error("the identity is not a name: {0}")]
    Identity(InvalidIdentity),
    /// Only DNS-like identities are certified.
    #[error("the identity is a URI; this authority certifies DNS-like names only")]
    Uri,
    /// Not PKCS#10.
    #[error("the certificate signing request cannot be read: {0}")]
    Unreadable(String),
    /// The key in it did not sign it.
    #[error("the certificate signing request is not signed with its own key")]
    Signature,
    /// Not exactly one DNS name that is the identity.
    #[error("the request must hold exactly one DNS name, {identity}, and holds {found}")]
    Names {
        /// What should be there.
        identity: Identity,
        /// What is there.
        found: String,
    },
    /// E-mail, address, URI or another kind of name.
    #[error("the request holds a name that is not a DNS name: {0}")]
    KindOfName(String),
    /// The subject says something else.
    #[error("the request's common name is {found:?}, not empty and not {identity}")]
    CommonName {
        /// What should be there.
        identity: Identity,
        /// What is there.
        found: String,
    },
    /// Not ECDSA.
    #[error("the request's key is not ECDSA P-256 or P-384")]
    Key,
    /// The issuer's chain has ended.
    #[error("the issuer's certificate has expired; it must be replaced")]
    IssuerExpired,
    /// The library could not sign.
    #[error("the certificate cannot be signed: {0}")]
    Signing(String),
}

impl Refusal {
    /// As the contract has it (2.3): InvalidArgument for what cannot be read, FailedPrecondition for what says the
    /// wrong thing, Unavailable while there is no issuer that could sign, Internal for the rest.
    pub fn code(&self) -> tonic::Code {
        match self {
            Self::Missing(_) | Self::Identity(_) | Self::Uri | Self::Unreadable(_) | Self::Signature => {
                tonic::Code::InvalidArgument
            }
            Self::Names { .. } | Self::KindOfName(_) | Self::CommonName { .. } | Self::Key => {
                tonic::Code::FailedPrecondition
            }
            Self::IssuerExpired => tonic::Code::Unavailable,
            Self::Signing(_) => tonic::Code::Internal,
        }
    }
}

impl Request {
    /// Reads the fields of a Certify request, in the contract's order.
    pub fn read(identity: &str, csr: &[u8]) -> Result<Self, Refusal> {
        if identity.is_empty() {
            return Err(Refusal::Missing("identity"));
        }
        if csr.is_empty() {
            return Err(Refusal::Missing("certificate signing request"));
        }
        let identity = Identity::parse(identity).map_err(Refusal::Identity)?;
        if identity.kind() != Kind::Dns {
            return Err(Refusal::Uri);
        }
        let unreadable = |reason: &dyn std::fmt::Display| Refusal::Unreadable(reason.to_string());
        if csr.len() > MAX_CSR {
            return Err(unreadable(&"larger than 16 KiB"));
        }
        let (rest, csr) = X509CertificationRequest::from_der(csr).map_err(|fault| unreadable(&fault))?;
        if !rest.is_empty() {
            return Err(unreadable(&"bytes after its end"));
        }
        csr.verify_signature().map_err(|_invalid| Refusal::Signature)?;
        check_names(&csr, &identity)?;
        check_common_name(&csr, &identity)?;
        let public_key = public_key(&csr)?;
        Ok(Self { identity, public_key })
    }

    /// Who wants to be certified.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }
}

fn check_names(csr: &X509CertificationRequest<'_>, identity: &Identity) -> Result<(), Refusal> {
    let names: Vec<&GeneralName<'_>> = csr
        .requested_extensions()
        .into_iter()
        .flatten()
        .filter_map(|extension| match extension {
            ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
            _ => None,
        })
        .flatten()
        .collect();
    let mut dns = Vec::new();
    for name in names {
        match name {
            GeneralName::DNSName(name) => dns.push(*name),
            // Only its kind: what a stranger wrote into it is not worth repeating.
            GeneralName::RFC822Name(_) => return Err(Refusal::KindOfName("an e-mail address".to_owned())),
            GeneralName::IPAddress(_) => return Err(Refusal::KindOfName("an IP address".to_owned())),
            GeneralName::URI(_) => return Err(Refusal::KindOfName("a URI".to_owned())),
            _ => return Err(Refusal::KindOfName("a name of another kind".to_owned())),
        }
    }
    match dns[..] {
        [name] if Identity::parse(name).as_ref() == Ok(identity) => Ok(()),
        [] => Err(Refusal::Names { identity: identity.clone(), found: "none".to_owned() }),
        [name] => Err(Refusal::Names { identity: identity.clone(), found: shown(name) }),
        _ => Err(Refusal::Names { identity: identity.clone(), found: format!("{} names", dns.len()) }),
    }
}

fn check_common_name(csr: &X509CertificationRequest<'_>, identity: &Identity) -> Result<(), Refusal> {
    for name in csr.certification_request_info.subject.iter_common_name() {
        // A text that is no UTF-8 is no name of anybody.
        let name = name.as_str().unwrap_or("\u{fffd}");
        if !name.is_empty() && Identity::parse(name).as_ref() != Ok(identity) {
            return Err(Refusal::CommonName { identity: identity.clone(), found: shown(name) });
        }
    }
    Ok(())
}

fn public_key(csr: &X509CertificationRequest<'_>) -> Result<SubjectPublicKeyInfo, Refusal> {
    use rcgen::PublicKeyData;
    let info = csr.certification_request_info.subject_pki.raw;
    let key = SubjectPublicKeyInfo::from_der(info).map_err(|_unsupported| Refusal::Key)?;
    // rcgen names algorithms of signatures; for elliptic curves that names the curve.
    let curves = [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384];
    if curves.contains(&key.algorithm()) { Ok(key) } else { Err(Refusal::Key) }
}

/// For messages: short, and without control characters.
fn shown(name: &str) -> String {
    name.chars().take(253).collect::<String>().escape_debug().to_string()
}

/// Signs. The caller has made sure that whoever asks *is* `request.identity()`, and `serial` is unpredictable.
///
/// NotBefore is earlier and NotAfter later than asked by the skew allowance; NotAfter never exceeds the earliest end
/// in the issuer's chain.
pub fn issue(
    request: &Request,
    issuer: &Issuer,
    now: UnixTime,
    lifetimes: Lifetimes,
    serial: u128,
) -> Result<Certificate, Refusal> {
    let now = UnixTime::from_secs(now.0.as_secs());
    let lifetime = lifetimes.issuance.min(MAX_LIFETIME) + lifetimes.skew.min(MAX_LIFETIME);
    let valid_until = (now + Duration::from_secs(lifetime.as_secs())).min(issuer.expires());
    if valid_until <= now {
        return Err(Refusal::IssuerExpired);
    }
    let not_before = UnixTime::from_secs(now.since(UnixTime(lifetimes.skew)).as_secs());
    let signing = |fault: rcgen::Error| Refusal::Signing(fault.to_string());
    let name = request.identity.as_str();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::DnsName(name.try_into().map_err(signing)?)];
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = (UNIX_EPOCH + not_before.0).into();
    params.not_after = (UNIX_EPOCH + valid_until.0).into();
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    // RFC 5280 4.1.2.2: positive, at most 20 bytes. Never zero, and the sign bit never set.
    let number = (serial & (u128::MAX >> 1)).max(1);
    let serial = number.to_be_bytes();
    let significant = serial.iter().position(|byte| *byte != 0).unwrap_or(0);
    let serial = serial.get(significant..).unwrap_or(&serial);
    params.serial_number = Some(SerialNumber::from_slice(serial));
    let leaf = params.signed_by(&request.public_key, issuer.signer()).map_err(signing)?;
    Ok(Certificate {
        leaf: leaf.der().to_vec(),
        intermediates: issuer.chain().iter().map(|certificate| certificate.to_vec()).collect(),
        valid_until,
        serial: format!("{number:x}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{NAME, Root, csr, csr_with, dns};
    use rcgen::KeyPair;
    use remora_runtime::tls;
    use tonic::Code;
    use x509_parser::prelude::X509Certificate;

    const DAY: Lifetimes = Lifetimes { issuance: Duration::from_hours(24), skew: Duration::from_mins(1) };
    const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

    // What is refused.

    #[test]
    fn empty_fields_are_named() {
        refused("", &csr(NAME), Code::InvalidArgument, "no identity");
        refused(NAME, b"", Code::InvalidArgument, "no certificate signing request");
    }

    #[test]
    fn identities_must_be_dns_names() {
        refused("a b", &csr(NAME), Code::InvalidArgument, "not a name");
        refused("*.shop.local", &csr(NAME), Code::InvalidArgument, "not a name");
        refused("spiffe://mesh/web", &csr(NAME), Code::InvalidArgument, "is a URI");
    }

    #[test]
    fn requests_must_be_readable() {
        refused(NAME, b"garbage", Code::InvalidArgument, "cannot be read");
        refused(NAME, &csr(NAME)[..100], Code::InvalidArgument, "cannot be read");
        refused(NAME, &[csr(NAME), vec![0]].concat(), Code::InvalidArgument, "bytes after its end");
        refused(NAME, &vec![0x30; 16 * 1024 + 1], Code::InvalidArgument, "larger than 16 KiB");
    }

    #[test]
    fn requests_must_be_signed_with_their_own_key() {
        let mut broken = csr(NAME);
        let last = broken.len() - 1;
        broken[last] ^= 1;
        refused(NAME, &broken, Code::InvalidArgument, "not signed with its own key");
    }

    #[test]
    fn requests_hold_exactly_the_identity() {
        let other = "other.shop.serviceaccount.identity.remora.cluster.local";
        let precondition = Code::FailedPrecondition;
        refused(NAME, &csr_with("", &[]), precondition, "holds none");
        refused(NAME, &csr_with("", &[dns(other)]), precondition, &format!("holds {other}"));
        refused(NAME, &csr_with("", &[dns(NAME), dns(other)]), precondition, "holds 2 names");
        refused(NAME, &csr_with("", &[dns(NAME), dns(NAME)]), precondition, "holds 2 names");
        refused(NAME, &csr_with(other, &[dns(NAME)]), precondition, "common name");
        let address = SanType::IpAddress([10, 0, 0, 1].into());
        refused(NAME, &csr_with("", &[dns(NAME), address]), precondition, "an IP address");
        let uri = SanType::URI("spiffe://mesh/web".try_into().unwrap());
        refused(NAME, &csr_with("", &[dns(NAME), uri]), precondition, "a URI");
        let mail = SanType::Rfc822Name("a@b.c".try_into().unwrap());
        refused(NAME, &csr_with("", &[mail, dns(NAME)]), precondition, "an e-mail address");
    }

    #[test]
    fn a_common_name_may_be_absent_or_the_identity() {
        for common_name in ["", NAME] {
            let request = Request::read(NAME, &csr_with(common_name, &[dns(NAME)])).unwrap();
            assert_eq!(request.identity().as_str(), NAME);
        }
    }

    #[test]
    fn keys_are_elliptic() {
        let sign_with = |algorithm| {
            let key = KeyPair::generate_for(algorithm).unwrap();
            let params = CertificateParams::new(vec![NAME.to_owned()]).unwrap();
            let mut params = params;
            params.distinguished_name = DistinguishedName::new();
            params.serialize_request(&key).unwrap().der().to_vec()
        };
        refused(NAME, &sign_with(&rcgen::PKCS_ED25519), Code::FailedPrecondition, "key is not ECDSA");
        Request::read(NAME, &sign_with(&rcgen::PKCS_ECDSA_P384_SHA384)).unwrap();
    }

    #[test]
    fn an_expired_issuer_signs_nothing() {
        let issuer = Root::new().issuer(NOW + Duration::from_secs(10));
        let request = Request::read(NAME, &csr(NAME)).unwrap();
        let late = NOW + Duration::from_secs(10);
        let refusal = issue(&request, &issuer, late, DAY, 1).unwrap_err();
        assert_eq!((refusal.code(), refusal), (Code::Unavailable, Refusal::IssuerExpired));
    }

    // What is issued.

    #[test]
    fn a_leaf_holds_for_a_day_widened_by_the_skew() {
        let issuer = Root::new().issuer(NOW + Duration::from_hours(48));
        let issued = issued(&issuer, NOW, DAY);
        let (_, leaf) = X509Certificate::from_der(&issued.leaf).unwrap();
        let now = i64::try_from(NOW.0.as_secs()).unwrap();
        assert_eq!(leaf.validity().not_before.timestamp(), now - 60);
        assert_eq!(leaf.validity().not_after.timestamp(), now + 86_400 + 60);
        assert_eq!(issued.valid_until, NOW + Duration::from_mins(24 * 60 + 1));
    }

    #[test]
    fn a_leaf_never_outlives_its_issuer() {
        let end = NOW + Duration::from_hours(2);
        let issued = issued(&Root::new().issuer(end), NOW, DAY);
        assert_eq!(issued.valid_until, end);
        let seen = tls::peer_of_leaf(&issued.leaf.into(), end).unwrap();
        assert_eq!(seen.not_after, end);
    }

    #[test]
    fn a_leaf_names_the_identity_and_may_be_both_ends_of_tls_and_nothing_else() {
        let issued = issued(&Root::new().issuer(NOW + Duration::from_hours(48)), NOW, DAY);
        let (_, leaf) = X509Certificate::from_der(&issued.leaf).unwrap();
        assert_eq!(leaf.subject().to_string(), format!("CN={NAME}"));
        assert!(!leaf.is_ca());
        let usage = leaf.key_usage().unwrap().unwrap().value;
        assert_eq!(usage.flags, 0b101, "digitalSignature and keyEncipherment");
        let extended = leaf.extended_key_usage().unwrap().unwrap().value;
        assert!(extended.server_auth && extended.client_auth && !extended.any && !extended.code_signing);
        let names = &leaf.subject_alternative_name().unwrap().unwrap().value.general_names;
        assert_eq!(names[..], [GeneralName::DNSName(NAME)]);
        assert_eq!(
            leaf.signature_algorithm.algorithm.to_id_string(),
            "1.2.840.10045.4.3.2",
            "ecdsa-with-SHA256"
        );
    }

    #[test]
    fn a_leaf_leads_to_the_root_through_its_intermediates() {
        let root = Root::new();
        let issued = issued(&root.issuer(NOW + Duration::from_hours(48)), NOW, DAY);
        let intermediates: Vec<_> = issued.intermediates.into_iter().map(Into::into).collect();
        assert_eq!(intermediates.len(), 1);
        let at = rustls_pki_types::UnixTime::since_unix_epoch(NOW.0);
        root.bundle().verify(&issued.leaf.clone().into(), &intermediates, at).unwrap();
        assert!(root.bundle().verify(&issued.leaf.into(), &[], at).is_err());
    }

    #[test]
    fn serials_are_positive_and_as_given() {
        let issuer = Root::new().issuer(NOW + Duration::from_hours(48));
        let request = Request::read(NAME, &csr(NAME)).unwrap();
        for (given, printed) in [(0, "1"), (0xabc, "abc"), (u128::MAX, "7fffffffffffffffffffffffffffffff")] {
            let issued = issue(&request, &issuer, NOW, DAY, given).unwrap();
            let seen = tls::peer_of_leaf(&issued.leaf.into(), NOW).unwrap();
            assert_eq!(seen.serial, printed);
            assert_eq!(issued.serial, printed);
        }
    }

    #[test]
    fn lifetimes_beyond_reason_are_cut() {
        let issuer = Root::new().issuer(NOW + Duration::from_hours(24 * 3650));
        let endless = Lifetimes { issuance: Duration::MAX, skew: Duration::ZERO };
        assert_eq!(issued(&issuer, NOW, endless).valid_until, NOW + MAX_LIFETIME);
    }

    #[track_caller]
    fn refused(identity: &str, csr: &[u8], code: Code, why: &str) {
        let refusal = Request::read(identity, csr).unwrap_err();
        assert_eq!(refusal.code(), code, "{refusal}");
        assert!(refusal.to_string().contains(why), "{refusal}");
    }

    fn issued(issuer: &Issuer, now: UnixTime, lifetimes: Lifetimes) -> Certificate {
        let request = Request::read(NAME, &csr(NAME)).unwrap();
        issue(&request, issuer, now, lifetimes, 7).unwrap()
    }
}

//! Who a leaf names: what was written into a certificate is what is read out of it, and of bytes that nobody wrote
//! webpki reads the same names.

use arbitrary::{Arbitrary, Unstructured};
use remora_core::{identity::Identity, time::UnixTime};
use remora_runtime::tls::{TlsFault, peer_of_leaf, require};
use rustls::pki_types::CertificateDer;
use webpki::EndEntityCert;

/// A certificate as it comes, if it begins as one (a SEQUENCE); the description of one otherwise.
pub fn san(data: &[u8]) {
    if data.first() == Some(&0x30) {
        reads_like_webpki(data);
    } else if let Ok(leaf) = Leaf::arbitrary(&mut Unstructured::new(data)) {
        leaf.holds();
    }
}

/// Names after this many are nobody's.
const MAX_NAMES: usize = 16;

fn reads_like_webpki(der: &[u8]) {
    let der = CertificateDer::from(der);
    // Any time will do for the names: the one at which it ends.
    let end = match peer_of_leaf(&der, UnixTime::default()) {
        Err(TlsFault::NotYetValid { ahead }) => UnixTime::from_secs(ahead),
        Ok(_) | Err(_) => UnixTime::default(),
    };
    let Ok(peer) = peer_of_leaf(&der, end) else { return };
    assert!(peer.not_after >= end, "{peer:?} was taken at {end:?}");
    assert!(peer.names(&peer.identity));
    let Ok(leaf) = EndEntityCert::try_from(&der) else { return };
    let dns = leaf.valid_dns_names().map(Identity::parse);
    let uris = leaf.valid_uri_names().map(Identity::parse);
    let names: Vec<Identity> = dns.chain(uris).flatten().collect();
    // What pki-types does not take for a host name it does not list.
    let listed = |identity: &Identity| {
        names.contains(identity)
            || rustls::pki_types::DnsName::try_from(identity.as_str()).is_err()
                && !identity.as_str().contains("://")
    };
    assert!(listed(&peer.identity), "{} is not among {names:?}: {}", peer.identity, der.escape_ascii());
}

#[derive(Arbitrary, Debug)]
struct Leaf {
    /// Anything but 0x30, which means a certificate.
    _marker: u8,
    names: Vec<Name>,
    critical: bool,
    authority: Option<bool>,
    begins: Date,
    ends: Date,
    /// Seconds from the beginning, or from the end if it is odd.
    now: i16,
    serial: [u8; 8],
    trailing: bool,
    broken: Option<(u16, u8)>,
}

#[derive(Arbitrary, Debug)]
enum Name {
    Dns(Text),
    Uri(Text),
    Mail(Text),
    Address([u8; 4]),
    Other(Vec<u8>),
}

#[derive(Arbitrary, Debug)]
enum Text {
    Telling(u8),
    Letters(Vec<u8>),
    Raw(Vec<u8>),
}

#[derive(Arbitrary, Debug)]
struct Date {
    year: u8,
    month: u8,
    day: u8,
    second: u32,
}

impl Leaf {
    fn holds(&self) {
        let mut der = self.der();
        if let Some((at, byte)) = self.broken {
            let at = usize::from(at) % der.len();
            der[at] = byte;
            return reads_like_webpki(&der);
        }
        reads_like_webpki(&der);
        let (begins, ends) = (self.begins.unix(), self.ends.unix());
        let now = if self.now % 2 == 0 { begins } else { ends }.saturating_add_signed(self.now.into());
        let read = peer_of_leaf(&CertificateDer::from(der), UnixTime::from_secs(now));
        let listed = self.names.iter().take(99).take(MAX_NAMES);
        let names: Vec<Identity> = listed.filter_map(Name::identity).collect();
        let garbled = self.names.iter().take(99).any(Name::is_garbled);
        let misleads = self.names.iter().take(99).any(Name::misleads);
        match read {
            Err(TlsFault::Unreadable(why)) => assert!(self.trailing || garbled, "{why}: {self:?}"),
            Err(TlsFault::Authority) => assert_eq!(self.authority, Some(true)),
            Err(TlsFault::NotAName(_)) => {
                assert!(misleads, "{self:?}");
            }
            Err(TlsFault::NoIdentity) => {
                assert!(names.is_empty() && self.authority != Some(true), "{names:?}");
            }
            Err(TlsFault::Expired { ago }) => assert_eq!((now > ends, ago), (true, now.saturating_sub(ends))),
            Err(TlsFault::NotYetValid { ahead }) => {
                assert_eq!((now < begins, ahead), (true, begins.saturating_sub(now)));
            }
            Err(other) => panic!("{other}"),
            Ok(peer) => {
                assert!(!self.trailing && self.authority != Some(true) && !misleads, "{self:?}");
                assert!((begins..=ends).contains(&now), "{now} of {begins} to {ends}");
                assert_eq!(Some(&peer.identity), names.first());
                assert_eq!(peer.not_after, UnixTime::from_secs(ends));
                for name in self.names.iter().filter_map(Name::identity) {
                    let required = require(&peer, &name).is_ok();
                    assert_eq!(required, names.contains(&name), "{name} of {names:?}");
                }
                for stranger in ["b", "a.b.c", "spiffe://b", "*.a.b"] {
                    if let Ok(stranger) = Identity::parse(stranger) {
                        assert_eq!(
                            peer.names(&stranger),
                            names.contains(&stranger),
                            "{stranger} of {names:?}"
                        );
                    }
                }
            }
        }
    }

    /// X.509 (RFC 5280 section 4.1), with a signature of zeros: who signed it is not asked here.
    fn der(&self) -> Vec<u8> {
        const ECDSA: &[u8] = b"\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02";
        const P256: &[u8] =
            b"\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07";
        let mut serial = self.serial;
        // Positive, and not longer than it need be.
        serial[0] = serial[0] & 0x7f | 0x40;
        let mut extensions = vec![];
        if let Some(authority) = self.authority {
            let constraints = tlv(0x30, &if authority { tlv(1, &[0xff]) } else { vec![] });
            extensions.extend(extension(19, true, &constraints));
        }
        if !self.names.is_empty() {
            let names: Vec<u8> = self.names.iter().take(99).flat_map(Name::der).collect();
            extensions.extend(extension(17, self.critical, &tlv(0x30, &names)));
        }
        let key = tlv(0x30, &[P256, &tlv(3, &[&[0, 4][..], &[7; 64]].concat())].concat());
        let body = [
            tlv(0xa0, &tlv(2, &[2])),
            tlv(2, &serial),
            ECDSA.to_vec(),
            tlv(0x30, &[]),
            tlv(0x30, &[self.begins.der(), self.ends.der()].concat()),
            tlv(0x30, &[]),
            key,
            if extensions.is_empty() { vec![] } else { tlv(0xa3, &tlv(0x30, &extensions)) },
        ];
        let mut der = tlv(0x30, &[tlv(0x30, &body.concat()), ECDSA.to_vec(), tlv(3, &[0; 9])].concat());
        if self.trailing {
            der.push(0);
        }
        der
    }
}

impl Name {
    fn der(&self) -> Vec<u8> {
        match self {
            Self::Mail(text) => tlv(0x81, &text.bytes()),
            Self::Dns(text) => tlv(0x82, &text.bytes()),
            Self::Uri(text) => tlv(0x86, &text.bytes()),
            Self::Address(address) => tlv(0x87, address),
            // registeredID, whose bytes are an OID.
            Self::Other(bytes) => tlv(0x88, bytes.get(..20).unwrap_or(bytes)),
        }
    }

    /// Whom it names on the mesh.
    fn identity(&self) -> Option<Identity> {
        let (text, uri) = match self {
            Self::Dns(text) => (text, false),
            Self::Uri(text) => (text, true),
            Self::Mail(_) | Self::Address(_) | Self::Other(_) => return None,
        };
        let text = String::from_utf8(text.bytes()).ok()?;
        (text.contains("://") == uri).then(|| Identity::parse(&text).ok()).flatten()
    }

    /// What some reader takes for another's name or for everybody's: its leaf is nobody's.
    fn misleads(&self) -> bool {
        match self {
            Self::Dns(text) => !text
                .bytes()
                .iter()
                .all(|byte| matches!(byte, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.')),
            Self::Uri(text) => !text.bytes().iter().all(|byte| (0x21..0x7f).contains(byte) && *byte != b'*'),
            Self::Mail(_) | Self::Address(_) | Self::Other(_) => false,
        }
    }

    /// What a reader of certificates may refuse as a whole: text that is not ASCII, an OID that is none.
    fn is_garbled(&self) -> bool {
        match self {
            Self::Dns(text) | Self::Uri(text) | Self::Mail(text) => !text.bytes().is_ascii(),
            Self::Address(_) => false,
            Self::Other(_) => true,
        }
    }
}

impl Text {
    fn bytes(&self) -> Vec<u8> {
        const TELLING: [&[u8]; 12] = [
            b"web.shop.serviceaccount.identity.remora.cluster.local",
            b"WEB.shop.",
            b"*.shop.cluster.local",
            b"spiffe://cluster.local/ns/shop/sa/web",
            b"spiffe://Cluster.Local/ns/shop",
            b"web\0.shop",
            b"",
            b".",
            b"a b",
            b"10.0.0.1",
            b"spiffe://",
            b"a.b",
        ];
        let letters = b"aabb..-:/";
        match self {
            Self::Telling(which) => TELLING[usize::from(*which) % TELLING.len()].to_vec(),
            Self::Letters(bytes) => {
                bytes.iter().take(99).map(|byte| letters[usize::from(*byte) % letters.len()]).collect()
            }
            Self::Raw(bytes) => bytes.get(..300).unwrap_or(bytes).to_vec(),
        }
    }
}

impl Date {
    fn parts(&self) -> (u64, u64, u64, u64) {
        let (year, month, day) =
            (1970 + u64::from(self.year), 1 + u64::from(self.month) % 12, 1 + u64::from(self.day) % 28);
        (year, month, day, u64::from(self.second) % 86_400)
    }

    fn unix(&self) -> u64 {
        let (year, month, day, second) = self.parts();
        // Days before the month in a year that begins in March, whose leap day is its last.
        let (march_year, march_month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
        let days = march_year * 365 + march_year / 4 - march_year / 100
            + march_year / 400
            + (153 * march_month + 2) / 5
            + day
            - 1;
        (days - 719_468) * 86_400 + second
    }

    /// RFC 5280 section 4.1.2.5: UTCTime through 2049, GeneralizedTime from then on.
    fn der(&self) -> Vec<u8> {
        let (year, month, day, second) = self.parts();
        let rest =
            format!("{month:02}{day:02}{:02}{:02}{:02}Z", second / 3600, second / 60 % 60, second % 60);
        if year < 2050 {
            tlv(0x17, format!("{:02}{rest}", year % 100).as_bytes())
        } else {
            tlv(0x18, format!("{year}{rest}").as_bytes())
        }
    }
}

/// An extension by the last arc of its OID, 2.5.29.x.
fn extension(arc: u8, critical: bool, value: &[u8]) -> Vec<u8> {
    let critical = if critical { tlv(1, &[0xff]) } else { vec![] };
    tlv(0x30, &[tlv(6, &[0x55, 0x1d, arc]), critical, tlv(4, value)].concat())
}

fn tlv(tag: u8, value: &[u8]) -> Vec<u8> {
    let length = match value.len() {
        short @ ..128 => vec![short as u8],
        byte @ ..256 => vec![0x81, byte as u8],
        long => [&[0x82][..], &(long as u16).to_be_bytes()].concat(),
    };
    [&[tag][..], &length, value].concat()
}

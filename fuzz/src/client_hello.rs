//! ClientHellos against rustls: whenever both have an answer it is the same one, and how the bytes are split into reads
//! or records changes nothing.

use arbitrary::{Arbitrary, Unstructured};
use remora_core::client_hello::{Hello, MAX_BYTES, NotHello, Parsed, parse};
use rustls::{Error, PeerIncompatible, PeerMisbehaved, server::Acceptor};
use std::io::Cursor;

/// Bytes as a client sends them if they begin as a handshake record; the description of a ClientHello otherwise, so that
/// the search is not stopped by lengths that do not fit.
pub fn client_hello(data: &[u8]) {
    if data.first().is_none_or(|byte| *byte == 22) {
        agrees(data, Origin::Wire);
    } else if let Ok(described) = Described::arbitrary(&mut Unstructured::new(data)) {
        let message = described.message();
        let whole = parse(&records(&message, 1 << 14));
        let fragments = records(&message, usize::from(described.fragment).max(1));
        let verdict = parse(&fragments);
        let agree = match (&verdict, &whole) {
            // The headers of many records may make it too long, and which rule is seen broken first may differ.
            (Parsed::Not(NotHello::TooLong), _) | (Parsed::Not(_), Parsed::Not(_)) => true,
            _ => verdict == whole,
        };
        assert!(agree, "{verdict:?} of fragments of {whole:?}");
        // A broken byte may turn an extension that nobody reads into one that rustls does.
        agrees(&fragments, if described.broken.is_none() { Origin::Described } else { Origin::Wire });
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// Anything at all.
    Wire,
    /// A ClientHello whose other extensions are sound.
    Described,
}

fn agrees(data: &[u8], origin: Origin) {
    let data = data.get(..MAX_BYTES * 2).unwrap_or(data);
    let ours = parse(data);
    is_final(data, &ours);
    match (&ours, rustls_verdict(data)) {
        (Parsed::Hello(hello), Verdict::Hello { sni, alpn }) => {
            assert_eq!(hello.sni, sni);
            assert_eq!(hello.alpn, alpn);
        }
        (Parsed::Hello(hello), Verdict::Refused(error)) => {
            assert!(
                origin == Origin::Wire || is_laxer(hello, &error),
                "{hello:?}, but rustls says {error:?}"
            );
        }
        // We answer without the rest of the record, and when one message of several is whole.
        (Parsed::Hello(_) | Parsed::NeedMore, Verdict::NeedMore)
        // Each may be the first to see that nothing good can come.
        | (Parsed::Not(_), Verdict::Refused(_) | Verdict::NeedMore) => {}
        (Parsed::NeedMore, verdict) => panic!("more is asked for, but rustls says {verdict:?}"),
        (Parsed::Not(not), Verdict::Hello { .. }) => {
            assert!(is_stricter(data, *not), "{not:?}, but rustls reads a ClientHello");
        }
    }
}

/// However a connection is split into reads, what is decided on are beginnings of it.
fn is_final(data: &[u8], verdict: &Parsed) {
    const DENSE: usize = 512;
    for end in (0..data.len()).filter(|end| *end < DENSE || end % 509 == 0) {
        let earlier = parse(&data[..end]);
        assert!(
            earlier == Parsed::NeedMore || earlier == *verdict,
            "{earlier:?} after {end} bytes of {verdict:?}"
        );
    }
    if *verdict == Parsed::NeedMore {
        assert!(data.len() < MAX_BYTES, "more than {MAX_BYTES} bytes are asked for");
    }
}

/// Where we refuse what rustls reads:
/// - a ClientHello that is not whole within [`MAX_BYTES`];
/// - record versions over 3.3, and a `legacy_version` that is not 3.x;
/// - records over 2^14 bytes (RFC 8446 section 5.1), of which rustls allows 2048 more.
fn is_stricter(data: &[u8], not: NotHello) -> bool {
    if not == NotHello::TooLong {
        return data.len() > MAX_BYTES || first_record_length(data) + 5 > MAX_BYTES;
    }
    let mut rest = data;
    let mut message = vec![];
    while let [22, 3, minor, high, low, body @ ..] = rest {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        if *minor > 3 || length > 1 << 14 {
            return true;
        }
        message.extend_from_slice(body.get(..length).unwrap_or(body));
        rest = body.get(length..).unwrap_or_default();
    }
    message.get(4).is_some_and(|major| *major != 3)
}

fn first_record_length(data: &[u8]) -> usize {
    match data {
        [_, _, _, high, low, ..] => u16::from_be_bytes([*high, *low]).into(),
        _ => 0,
    }
}

/// Where we read what rustls refuses, of hellos whose other extensions are sound:
/// - bytes of another message behind the hello;
/// - no signature algorithms, which TLS 1.3 wants from a client that wants certificates;
/// - a host name that is none, or that we call one and pki-types does not (all-numeric last labels, hyphens at the ends
///   of labels): the application behind us may think otherwise;
/// - an extension twice, of those that we do not read.
fn is_laxer(hello: &Hello, error: &Error) -> bool {
    match error {
        Error::PeerMisbehaved(PeerMisbehaved::KeyEpochWithPendingFragment)
        | Error::InvalidMessage(rustls::InvalidMessage::HandshakePayloadTooLarge)
        | Error::PeerIncompatible(PeerIncompatible::SignatureAlgorithmsExtensionRequired) => true,
        Error::PeerMisbehaved(PeerMisbehaved::ServerNameMustContainOneHostName) => {
            hello.sni.as_deref().is_none_or(|name| {
                let strange = |label: &str| label.starts_with('-') || label.ends_with('-');
                name.split('.').any(strange)
                    || name
                        .rsplit('.')
                        .next()
                        .is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()))
            })
        }
        Error::InvalidMessage(rustls::InvalidMessage::DuplicateExtension(kind)) => {
            ![0, 16, 43].contains(kind)
        }
        _ => false,
    }
}

#[derive(Debug)]
enum Verdict {
    NeedMore,
    Hello { sni: Option<String>, alpn: Vec<Vec<u8>> },
    Refused(Error),
}

fn rustls_verdict(data: &[u8]) -> Verdict {
    let mut acceptor = Acceptor::default();
    let mut stream = Cursor::new(data);
    loop {
        // It reads a few KiB at a time, and fails when its buffer is full.
        match acceptor.read_tls(&mut stream) {
            Ok(0) => return Verdict::NeedMore,
            Ok(_) => {}
            Err(error) => return Verdict::Refused(Error::General(error.to_string())),
        }
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(accepted)) => {
                let hello = accepted.client_hello();
                let sni = hello.server_name().map(|name| name.strip_suffix('.').unwrap_or(name).to_owned());
                let alpn = hello.alpn().map(|names| names.map(<[u8]>::to_vec).collect());
                return Verdict::Hello { sni, alpn: alpn.unwrap_or_default() };
            }
            Err((error, _alert)) => return Verdict::Refused(error),
        }
    }
}

/// A ClientHello by its parts. Lengths fit, unless `broken` says where they do not.
#[derive(Arbitrary, Debug)]
struct Described {
    /// Anything but 22, which means raw bytes.
    _marker: u8,
    legacy_minor: u8,
    session_id: Vec<u8>,
    cipher_suites: Vec<u16>,
    compression: Vec<u8>,
    extensions: Vec<Extension>,
    follows: Vec<u8>,
    broken: Option<(u16, u8)>,
    fragment: u16,
}

#[derive(Arbitrary, Debug)]
enum Extension {
    ServerName(Vec<(bool, HostName)>),
    Alpn(Vec<Vec<u8>>),
    Versions(Vec<u16>),
    Padding(u8),
    Grease(u8, Vec<u8>),
    RawServerName(Vec<u8>),
    RawAlpn(Vec<u8>),
    RawVersions(Vec<u8>),
}

#[derive(Arbitrary, Debug)]
enum HostName {
    Labels(Vec<Vec<u8>>),
    Address([u8; 4]),
    Raw(Vec<u8>),
}

impl Described {
    /// The handshake message and what follows it.
    fn message(&self) -> Vec<u8> {
        let mut body = vec![3, self.legacy_minor];
        body.extend_from_slice(&[7; 32]);
        body.extend(behind8(self.session_id.get(..32).unwrap_or(&self.session_id)));
        let suites: Vec<u8> = [0x1301]
            .iter()
            .chain(&self.cipher_suites)
            .take(99)
            .flat_map(|suite| suite.to_be_bytes())
            .collect();
        body.extend(behind16(&suites));
        body.extend(behind8(&[&[0], self.compression.get(..9).unwrap_or(&self.compression)].concat()));
        let mut extensions = vec![];
        for extension in self.extensions.iter().take(20) {
            let (kind, data) = extension.encode();
            extensions.extend_from_slice(&kind.to_be_bytes());
            extensions.extend(behind16(&data));
        }
        // signature_algorithms with ecdsa_secp256r1_sha256, which rustls insists on.
        extensions.extend_from_slice(b"\x00\x0d\x00\x04\x00\x02\x04\x03");
        body.extend(behind16(&extensions));

        let mut message = [&[1, 0][..], &behind16(&body)].concat();
        if let Some((at, byte)) = self.broken {
            let at = usize::from(at) % message.len();
            message[at] = byte;
        }
        message.extend(self.follows.iter().take(20));
        message
    }
}

impl Extension {
    fn encode(&self) -> (u16, Vec<u8>) {
        match self {
            Self::ServerName(names) => {
                let entry = |(host, name): &(bool, HostName)| {
                    [vec![u8::from(!*host)], behind16(&name.bytes())].concat()
                };
                (0, behind16(&names.iter().take(4).flat_map(entry).collect::<Vec<u8>>()))
            }
            Self::Alpn(names) => {
                (16, behind16(&names.iter().take(9).flat_map(|name| behind8(name)).collect::<Vec<u8>>()))
            }
            Self::Versions(versions) => (
                43,
                behind8(
                    &versions.iter().take(99).flat_map(|version| version.to_be_bytes()).collect::<Vec<u8>>(),
                ),
            ),
            Self::Padding(length) => (21, vec![0; usize::from(*length) * 16]),
            // RFC 8701: 0x0a0a, 0x1a1a … 0xfafa.
            Self::Grease(which, data) => (u16::from(which & 0xf0 | 0x0a) * 0x0101, data.clone()),
            Self::RawServerName(data) => (0, data.clone()),
            Self::RawAlpn(data) => (16, data.clone()),
            Self::RawVersions(data) => (43, data.clone()),
        }
    }
}

impl HostName {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Labels(labels) => {
                let alphabet = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJ0123456789-_.";
                let letter = |byte: &u8| alphabet[usize::from(*byte) % alphabet.len()];
                labels
                    .iter()
                    .map(|label| label.iter().map(letter).collect::<Vec<u8>>())
                    .collect::<Vec<_>>()
                    .join(&b'.')
            }
            Self::Address(address) => std::net::Ipv4Addr::from(*address).to_string().into_bytes(),
            Self::Raw(bytes) => bytes.clone(),
        }
    }
}

fn records(message: &[u8], size: usize) -> Vec<u8> {
    message.chunks(size).flat_map(|fragment| [b"\x16\x03\x01", &behind16(fragment)[..]].concat()).collect()
}

/// Behind one byte of length; what is over 255 bytes is cut off.
fn behind8(bytes: &[u8]) -> Vec<u8> {
    let bytes = bytes.get(..255).unwrap_or(bytes);
    [&[bytes.len() as u8], bytes].concat()
}

/// Behind two bytes of length; what is over 65535 bytes is cut off.
fn behind16(bytes: &[u8]) -> Vec<u8> {
    let bytes = bytes.get(..65535).unwrap_or(bytes);
    [&(bytes.len() as u16).to_be_bytes(), bytes].concat()
}

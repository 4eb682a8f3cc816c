//! The transport header: what is written is read back, by us and by prost; what is read, prost reads the same; and how
//! the stream is split changes nothing.

use arbitrary::{Arbitrary, Unstructured};
use core::num::NonZeroU16;
use prost::Message as _;
use remora_core::header::{
    Decoded, MAX_MESSAGE, Malformed, PREFACE, SessionProtocol, TransportHeader, decode,
};

/// Bytes as a peer sends them, then the same bytes as the description of a header to send.
pub fn header(data: &[u8]) {
    reads_like_prost(data);
    // The message alone, so that the search need not find the preface and a length first.
    let message = data.get(..MAX_MESSAGE).unwrap_or(data);
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes();
    reads_like_prost(&[PREFACE, &length, message].concat());
    if let Ok(described) = Described::arbitrary(&mut Unstructured::new(data)) {
        is_read_back(&described);
    }
}

/// Contract 1.5.
#[derive(Clone, PartialEq, prost::Message)]
struct Wire {
    #[prost(int32, tag = "1")]
    port: i32,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(message, optional, tag = "3")]
    session_protocol: Option<WireProtocol>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct WireProtocol {
    #[prost(oneof = "Kind", tags = "1, 2")]
    kind: Option<Kind>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Kind {
    #[prost(message, tag = "1")]
    Http1(Empty),
    #[prost(message, tag = "2")]
    Http2(Empty),
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct Empty {}

impl Wire {
    fn protocol(&self) -> Option<SessionProtocol> {
        match self.session_protocol.as_ref()?.kind.as_ref()? {
            Kind::Http1(Empty {}) => Some(SessionProtocol::Http1),
            Kind::Http2(Empty {}) => Some(SessionProtocol::Http2),
        }
    }
}

fn reads_like_prost(data: &[u8]) {
    let verdict = decode(data);
    let mut earlier_verdict = None;
    for end in 0..=data.len().min(PREFACE.len() + 4 + MAX_MESSAGE + 1) {
        let earlier = decode(&data[..end]);
        match &earlier_verdict {
            Some(known) => assert_eq!(&earlier, known, "the verdict changed at byte {end}"),
            None if earlier != Ok(Decoded::NeedMore) => earlier_verdict = Some(earlier),
            None => {}
        }
    }
    assert_eq!(earlier_verdict.unwrap_or(Ok(Decoded::NeedMore)), verdict, "the beginnings say otherwise");

    let Some((length, rest)) = data.strip_prefix(PREFACE).and_then(<[u8]>::split_first_chunk::<4>) else {
        return;
    };
    let length = u32::from_be_bytes(*length) as usize;
    if length > MAX_MESSAGE {
        assert_eq!(verdict, Err(Malformed::TooLong(u32::try_from(length).unwrap_or(u32::MAX))));
        return;
    }
    let Some(message) = rest.get(..length) else {
        assert_eq!(verdict, Ok(Decoded::NeedMore));
        return;
    };
    match (verdict, Wire::decode(message)) {
        (Ok(Decoded::Header(header, used)), Ok(wire)) => {
            assert_eq!(used, PREFACE.len() + 4 + length);
            assert_eq!(i32::from(header.port.get()), wire.port);
            let wire_name = wire.name.strip_suffix('.').unwrap_or(&wire.name).to_ascii_lowercase();
            assert_eq!(header.name.as_deref().unwrap_or_default(), wire_name);
            assert_eq!(header.protocol, wire.protocol());
            let again = header.encode();
            assert_eq!(
                decode(&again),
                Ok(Decoded::Header(header, again.len())),
                "written again it reads otherwise"
            );
        }
        (Err(Malformed::Port(port)), Ok(wire)) => assert!(port == wire.port && !(1..=65535).contains(&port)),
        (Err(Malformed::Name), Ok(wire)) => assert!(!wire.name.is_empty()),
        // Stricter on purpose: no groups, which prost skips.
        (Err(Malformed::Message), Ok(wire)) => assert!(holds_group(message), "prost reads {wire:?}"),
        (Err(Malformed::Message), Err(_)) => {}
        (verdict, wire) => panic!("{verdict:?}, but prost says {wire:?}"),
    }
}

/// Could there be a group (wire type 3 or 4) in it? Looked for coarsely, at every byte: whatever the fields are, a
/// message without such a byte has none.
fn holds_group(message: &[u8]) -> bool {
    message.iter().any(|byte| matches!(byte & 7, 3 | 4))
}

#[derive(Arbitrary, Debug)]
struct Described {
    port: NonZeroU16,
    labels: Vec<Vec<u8>>,
    protocol: Option<bool>,
    follows: Vec<u8>,
}

fn is_read_back(described: &Described) {
    let alphabet = b"abcdefghijklmnopqrstuvwxyz0123456789-_";
    let letter = |byte: &u8| char::from(alphabet[usize::from(*byte) % alphabet.len()]);
    let labels = described.labels.iter().filter(|label| !label.is_empty());
    let name = labels
        .map(|label| label.iter().take(63).map(letter).collect::<String>())
        .collect::<Vec<_>>()
        .join(".");
    let name = name.get(..253).unwrap_or(&name).trim_end_matches('.');
    let header = TransportHeader {
        port: described.port,
        name: Some(name).filter(|name| !name.is_empty()).map(Into::into),
        protocol: described
            .protocol
            .map(|http2| if http2 { SessionProtocol::Http2 } else { SessionProtocol::Http1 }),
    };
    let mut bytes = header.encode();
    let length = bytes.len();
    let wire = Wire::decode(&bytes[PREFACE.len() + 4..]);
    let expected = Wire {
        port: header.port.get().into(),
        name: header.name.as_deref().unwrap_or_default().to_owned(),
        session_protocol: header.protocol.map(|protocol| WireProtocol {
            kind: Some(match protocol {
                SessionProtocol::Http1 => Kind::Http1(Empty {}),
                SessionProtocol::Http2 => Kind::Http2(Empty {}),
            }),
        }),
    };
    assert_eq!(wire, Ok(expected), "prost reads something else than was written");

    bytes.extend_from_slice(&described.follows);
    for end in 0..=bytes.len() {
        let expected = if end < length { Decoded::NeedMore } else { Decoded::Header(header.clone(), length) };
        assert_eq!(decode(&bytes[..end]), Ok(expected), "after {end} bytes");
    }
}

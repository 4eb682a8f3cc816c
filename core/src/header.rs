//! The transport header: where a connection to 4143 really goes. Contract 1.5.

use crate::identity::dns_name;
#[cfg(planted)]
use crate::planted;
use alloc::{boxed::Box, vec::Vec};
use core::num::NonZeroU16;

/// The ALPN protocol that announces a transport header.
pub const ALPN: &[u8] = b"transport.l5d.io/v1";
/// What every header begins with.
pub const PREFACE: &[u8] = b"transport.l5d.io/v1\r\n\r\n";
/// The longest protobuf message that is accepted, in bytes: a port, a DNS name and a flag fit many times.
pub const MAX_MESSAGE: usize = 1024;

/// Where the connection goes and what it speaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransportHeader {
    /// The application's port.
    pub port: NonZeroU16,
    /// A DNS name when the target is behind a gateway; `None` for the local pod. A decoded one is lower case, without a
    /// trailing dot.
    pub name: Option<Box<str>>,
    /// What is spoken on this connection; `None` means opaque.
    pub protocol: Option<SessionProtocol>,
}

/// HTTP version announced by the client's proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionProtocol {
    /// HTTP/1.0 or HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
}

/// The verdict on a prefix of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// Not yet whole; read on.
    NeedMore,
    /// A header, and how many bytes of the prefix it took. What follows belongs to the application.
    Header(TransportHeader, usize),
}

/// Why a prefix can never become a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// It does not begin with [`PREFACE`].
    #[error("no transport header preface")]
    Preface,
    /// Longer than [`MAX_MESSAGE`].
    #[error("the transport header announces {0} bytes")]
    TooLong(u32),
    /// Not a protobuf message of this type.
    #[error("the transport header is no valid message")]
    Message,
    /// Outside 1..=65535.
    #[error("the transport header names port {0}")]
    Port(i32),
    /// Not a DNS name.
    #[error("the transport header names an invalid host")]
    Name,
}

/// Reads a header from the beginning of a stream. Unknown fields are skipped; of a field that comes more than once the
/// last value counts, as protobuf says. A session protocol without a kind that we know counts as none.
pub fn decode(head: &[u8]) -> Result<Decoded, Malformed> {
    let Some(rest) = head.strip_prefix(PREFACE) else {
        return if PREFACE.starts_with(head) { Ok(Decoded::NeedMore) } else { Err(Malformed::Preface) };
    };
    let Some((length, rest)) = rest.split_first_chunk::<4>() else { return Ok(Decoded::NeedMore) };
    let announced = u32::from_be_bytes(*length);
    let length = usize::try_from(announced).unwrap_or(usize::MAX);
    if length > MAX_MESSAGE {
        return Err(Malformed::TooLong(announced));
    }
    let Some(message) = rest.get(..length) else { return Ok(Decoded::NeedMore) };
    Ok(Decoded::Header(read_header(message)?, PREFACE.len() + size_of::<u32>() + length))
}

impl TransportHeader {
    /// The bytes to send, preface included.
    ///
    /// A name that is no DNS name is written as it is, and refused by whoever reads it.
    pub fn encode(&self) -> Vec<u8> {
        let mut message = Vec::with_capacity(16);
        put_varint(&mut message, key(PORT, VARINT));
        put_varint(&mut message, self.port.get().into());
        if let Some(name) = &self.name {
            put_bytes(&mut message, NAME, name.as_bytes());
        }
        if let Some(protocol) = self.protocol {
            let mut kind = Vec::with_capacity(2);
            let field = match protocol {
                SessionProtocol::Http1 => HTTP1,
                SessionProtocol::Http2 => HTTP2,
            };
            put_bytes(&mut kind, field, &[]);
            put_bytes(&mut message, SESSION_PROTOCOL, &kind);
        }

        let mut bytes = Vec::with_capacity(PREFACE.len() + size_of::<u32>() + message.len());
        bytes.extend_from_slice(PREFACE);
        bytes.extend_from_slice(&u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
        bytes.extend_from_slice(&message);
        bytes
    }
}

// Fields of `transport.l5d.io.Header`, contract 1.5.
const PORT: u64 = 1;
const NAME: u64 = 2;
const SESSION_PROTOCOL: u64 = 3;
// Kinds of `SessionProtocol`.
const HTTP1: u64 = 1;
const HTTP2: u64 = 2;

fn read_header(message: &[u8]) -> Result<TransportHeader, Malformed> {
    let mut port = 0;
    let mut name = "";
    let mut protocol = None;
    let mut fields = Fields(message);
    while let Some((number, value)) = fields.next()? {
        match (number, value) {
            // An int32 is a varint of its sign-extended value, of which protobuf keeps the lower half.
            (PORT, Value::Varint(value)) => port = value as i32,
            // Protobuf strings are UTF-8, also one that a later value replaces; another encoding is a broken message,
            // not a strange name.
            (NAME, Value::Bytes(value)) => {
                name = core::str::from_utf8(value).map_err(|_| Malformed::Message)?;
            }
            // Messages are merged: one without a kind leaves the earlier one's.
            (SESSION_PROTOCOL, Value::Bytes(value)) => protocol = read_protocol(value)?.or(protocol),
            (PORT | NAME | SESSION_PROTOCOL, _) => return Err(Malformed::Message),
            _unknown => {}
        }
    }

    let valid_port = u16::try_from(port).ok().and_then(NonZeroU16::new).ok_or(Malformed::Port(port))?;
    let name = match name {
        "" => None,
        #[cfg(planted)]
        name if name.ends_with('.') && planted::makes(planted::Mistake::DotKept) => Some(name.into()),
        name => Some(dns_name(name).map_err(|_| Malformed::Name)?.into()),
    };
    Ok(TransportHeader { port: valid_port, name, protocol })
}

fn read_protocol(message: &[u8]) -> Result<Option<SessionProtocol>, Malformed> {
    let mut protocol = None;
    let mut fields = Fields(message);
    while let Some((number, value)) = fields.next()? {
        protocol = match (number, value) {
            (HTTP1, Value::Bytes(value)) => checked(value).map(|()| Some(SessionProtocol::Http1))?,
            (HTTP2, Value::Bytes(value)) => checked(value).map(|()| Some(SessionProtocol::Http2))?,
            (HTTP1 | HTTP2, _) => return Err(Malformed::Message),
            _unknown => protocol,
        };
    }
    Ok(protocol)
}

/// A message of which no field is known, yet whose fields must be ones.
fn checked(message: &[u8]) -> Result<(), Malformed> {
    let mut fields = Fields(message);
    while fields.next()?.is_some() {}
    Ok(())
}

// Wire types, protobuf's encoding section.
const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const LENGTH_DELIMITED: u64 = 2;
const FIXED32: u64 = 5;

/// A field's value, as far as a header needs it.
#[derive(Clone, Copy)]
enum Value<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
    /// Skipped: nothing in a header is of a fixed size.
    Fixed,
}

/// The fields of a protobuf message, in the order of writing.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// The next field's number and value; `None` at the end.
    fn next(&mut self) -> Result<Option<(u64, Value<'a>)>, Malformed> {
        /// Field numbers have 29 bits.
        const MAX_FIELD: u64 = (1 << 29) - 1;

        if self.0.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let (number, wire_type) = (key >> 3, key & 7);
        if number == 0 || number > MAX_FIELD {
            return Err(Malformed::Message);
        }
        let value = match wire_type {
            VARINT => Value::Varint(self.varint()?),
            LENGTH_DELIMITED => {
                let length = self.varint()?;
                Value::Bytes(self.take(usize::try_from(length).map_err(|_| Malformed::Message)?)?)
            }
            FIXED64 => self.take(8).map(|_| Value::Fixed)?,
            FIXED32 => self.take(4).map(|_| Value::Fixed)?,
            // Groups are long deprecated, and the rest was never given out.
            _ => return Err(Malformed::Message),
        };
        Ok(Some((number, value)))
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Malformed::Message)?;
        self.0 = rest;
        Ok(taken)
    }

    /// Seven bits a byte, the lowest first, at most ten bytes and 64 bits.
    fn varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0u64;
        for shift in (0..u64::BITS).step_by(7) {
            let (&byte, rest) = self.0.split_first().ok_or(Malformed::Message)?;
            self.0 = rest;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(Malformed::Message);
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Malformed::Message)
    }
}

const fn key(number: u64, wire_type: u64) -> u64 {
    number << 3 | wire_type
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value > 0x7f {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_bytes(out: &mut Vec<u8>, number: u64, bytes: &[u8]) {
    put_varint(out, key(number, LENGTH_DELIMITED));
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_local_opaque_target_is_a_port_alone() {
        check(b"\x08\xd2\x09", Ok(header(1234, None, None)));
    }

    #[test]
    fn a_session_protocol_is_read() {
        check(b"\x08\x50\x1a\x02\x0a\x00", Ok(header(80, None, Some(SessionProtocol::Http1))));
        check(b"\x08\x50\x1a\x02\x12\x00", Ok(header(80, None, Some(SessionProtocol::Http2))));
    }

    #[test]
    fn a_name_is_read_in_its_canonical_form() {
        check(b"\x08\x50\x12\x06Web.A.", Ok(header(80, Some("web.a"), None)));
    }

    #[test]
    fn an_empty_name_is_none() {
        check(b"\x08\x50\x12\x00", Ok(header(80, None, None)));
    }

    #[test]
    fn fields_may_come_in_any_order() {
        check(b"\x1a\x02\x12\x00\x08\x50", Ok(header(80, None, Some(SessionProtocol::Http2))));
    }

    #[test]
    fn the_last_value_wins() {
        check(b"\x08\x50\x08\x51", Ok(header(81, None, None)));
        check(b"\x08\x50\x12\x01a\x12\x01b", Ok(header(80, Some("b"), None)));
        check(b"\x08\x50\x1a\x04\x0a\x00\x12\x00", Ok(header(80, None, Some(SessionProtocol::Http2))));
        check(
            b"\x08\x50\x1a\x02\x12\x00\x1a\x02\x0a\x00",
            Ok(header(80, None, Some(SessionProtocol::Http1))),
        );
    }

    #[test]
    fn a_later_session_protocol_without_a_kind_is_merged() {
        check(b"\x08\x50\x1a\x02\x12\x00\x1a\x00", Ok(header(80, None, Some(SessionProtocol::Http2))));
    }

    #[test]
    fn a_session_protocol_of_an_unknown_kind_is_none() {
        check(b"\x08\x50\x1a\x00", Ok(header(80, None, None)));
        check(b"\x08\x50\x1a\x02\x1a\x00", Ok(header(80, None, None)));
    }

    #[test]
    fn unknown_fields_of_every_wire_type_are_skipped() {
        check(b"\x20\x96\x01\x08\x50", Ok(header(80, None, None)));
        check(b"\x21\x01\x02\x03\x04\x05\x06\x07\x08\x08\x50", Ok(header(80, None, None)));
        check(b"\x22\x02hi\x08\x50", Ok(header(80, None, None)));
        check(b"\x25\x01\x02\x03\x04\x08\x50", Ok(header(80, None, None)));
    }

    #[test]
    fn what_later_versions_may_add_to_a_kind_is_skipped_but_must_be_fields() {
        check(b"\x08\x50\x1a\x04\x0a\x02\x08\x01", Ok(header(80, None, Some(SessionProtocol::Http1))));
        check(b"\x08\x50\x1a\x03\x0a\x01\x08", Err(Malformed::Message));
    }

    #[test]
    fn groups_are_refused() {
        check(b"\x23\x08\x50\x24", Err(Malformed::Message));
    }

    #[test]
    fn a_known_field_of_the_wrong_type_is_refused() {
        check(b"\x0a\x01a", Err(Malformed::Message));
        check(b"\x08\x50\x10\x01", Err(Malformed::Message));
        check(b"\x08\x50\x18\x01", Err(Malformed::Message));
        check(b"\x08\x50\x1a\x02\x08\x01", Err(Malformed::Message));
    }

    #[test]
    fn field_number_zero_is_refused() {
        check(b"\x00\x01\x08\x50", Err(Malformed::Message));
    }

    #[test]
    fn what_ends_in_the_middle_is_refused() {
        check(b"\x08", Err(Malformed::Message));
        check(b"\x08\x80", Err(Malformed::Message));
        check(b"\x08\x50\x12\x05ab", Err(Malformed::Message));
        check(b"\x08\x50\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", Err(Malformed::Message));
    }

    #[test]
    fn a_varint_of_more_than_64_bits_is_refused() {
        check(b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02", Err(Malformed::Message));
        check(b"\x08\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01", Err(Malformed::Message));
    }

    #[test]
    fn a_port_outside_its_range_is_refused() {
        check(b"", Err(Malformed::Port(0)));
        check(b"\x08\x00", Err(Malformed::Port(0)));
        check(b"\x08\x80\x80\x04", Err(Malformed::Port(65536)));
        check(b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", Err(Malformed::Port(-1)));
    }

    #[test]
    fn a_name_that_is_no_dns_name_is_refused() {
        check(b"\x08\x50\x12\x03a b", Err(Malformed::Name));
        check(b"\x08\x50\x12\x04a..b", Err(Malformed::Name));
        check(b"\x08\x50\x12\x01\xff", Err(Malformed::Message));
        check(b"\x12\x01\xff", Err(Malformed::Message));
        check(b"\x08\x50\x12\x01\xff\x12\x01a", Err(Malformed::Message));
    }

    #[test]
    fn another_protocol_is_refused_at_its_first_byte() {
        assert_eq!(decode(b"GET / HTTP/1.1\r\n"), Err(Malformed::Preface));
        assert_eq!(decode(b"transport.l5d.io/v2"), Err(Malformed::Preface));
    }

    #[test]
    fn a_message_over_the_limit_is_refused_before_it_arrives() {
        let mut head = PREFACE.to_vec();
        head.extend_from_slice(&1025u32.to_be_bytes());
        assert_eq!(decode(&head), Err(Malformed::TooLong(1025)));
    }

    #[test]
    fn a_message_of_the_limit_is_read() {
        let mut message = b"\x08\x50\x22\xfb\x07".to_vec();
        message.resize(MAX_MESSAGE, 0);
        check(&message, Ok(header(80, None, None)));
    }

    #[test]
    fn what_follows_belongs_to_the_application() {
        let mut bytes = header(80, None, None).encode();
        let length = bytes.len();
        bytes.extend_from_slice(b"GET / HTTP/1.1\r\n");
        assert_eq!(decode(&bytes), Ok(Decoded::Header(header(80, None, None), length)));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back_and_every_prefix_asks_for_more(
            port in 1u16..,
            name in proptest::option::of("[a-z0-9_-]{1,63}(\\.[a-z0-9_-]{1,30}){0,5}"),
            protocol in proptest::option::of(prop_oneof![Just(SessionProtocol::Http1), Just(SessionProtocol::Http2)]),
        ) {
            let header = header(port, name.as_deref(), protocol);
            let bytes = header.encode();
            prop_assert_eq!(decode(&bytes), Ok(Decoded::Header(header, bytes.len())));
            for cut in 0..bytes.len() {
                prop_assert_eq!(decode(&bytes[..cut]), Ok(Decoded::NeedMore));
            }
        }

        #[test]
        fn whatever_is_read_is_read_the_same_once_written_again(
            message in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            if let Ok(Decoded::Header(header, used)) = decode(&framed(&message)) {
                prop_assert_eq!(used, framed(&message).len());
                let bytes = header.encode();
                prop_assert_eq!(decode(&bytes), Ok(Decoded::Header(header, bytes.len())));
            }
        }
    }

    fn header(port: u16, name: Option<&str>, protocol: Option<SessionProtocol>) -> TransportHeader {
        TransportHeader { port: NonZeroU16::new(port).unwrap(), name: name.map(Into::into), protocol }
    }

    fn framed(message: &[u8]) -> Vec<u8> {
        let mut bytes = PREFACE.to_vec();
        bytes.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
        bytes.extend_from_slice(message);
        bytes
    }

    #[track_caller]
    fn check(message: &[u8], expected: Result<TransportHeader, Malformed>) {
        let bytes = framed(message);
        assert_eq!(decode(&bytes), expected.map(|header| Decoded::Header(header, bytes.len())));
    }
}

//! What the bytes received so far say about a connection's protocol.

#[cfg(planted)]
use crate::planted;

/// What a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// A TLS handshake record with a ClientHello: not ours to read.
    Tls,
    /// An HTTP/1.x request line.
    Http1,
    /// The HTTP/2 preface (RFC 9113 section 3.4).
    Http2,
    /// Anything else: bytes that are forwarded unread.
    Opaque,
}

/// The verdict on a prefix of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detection {
    /// More bytes never change the answer.
    Known(Protocol),
    /// The prefix fits more than one answer.
    NeedMore,
}

/// Bytes after which a request line that has not ended is no longer waited for.
pub const MAX_BYTES: usize = 16 * 1024;

/// The longest request method that is recognised, in bytes. The longest that IANA lists has 17.
pub const MAX_METHOD: usize = 64;

/// The client connection preface, RFC 9113 section 3.4.
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Decides; `NeedMore` is never answered for `head.len() >= MAX_BYTES`.
///
/// Only the bytes count, not how they were split, and the verdict comes with the first byte that leaves no choice:
/// the sixth of a ClientHello, the last of the HTTP/2 preface, the minor version digit of an HTTP/1 request line, and for
/// everything else the first byte that none of these can have.
pub fn detect(head: &[u8]) -> Detection {
    let head = head.get(..MAX_BYTES).unwrap_or(head);
    let probes = [
        (client_hello(head), Protocol::Tls),
        (prefix(head, HTTP2_PREFACE), Protocol::Http2),
        (request_line(head), Protocol::Http1),
    ];
    for (fit, protocol) in probes {
        if fit == Fit::Yes {
            return Detection::Known(protocol);
        }
    }
    if head.len() < MAX_BYTES && probes.iter().any(|(fit, _)| *fit == Fit::Maybe) {
        return Detection::NeedMore;
    }
    Detection::Known(Protocol::Opaque)
}

/// How well a prefix fits a protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fit {
    Yes,
    Maybe,
    No,
}

fn prefix(head: &[u8], expected: &[u8]) -> Fit {
    if head.starts_with(expected) {
        Fit::Yes
    } else if expected.starts_with(head) {
        Fit::Maybe
    } else {
        Fit::No
    }
}

/// A record header (RFC 8446 section 5.1) and the type of a ClientHello (section 4): content type 22, version 3.0 to
/// 3.3, a length of 1 to 2^14, handshake type 1.
fn client_hello(head: &[u8]) -> Fit {
    const MAX_RECORD: u16 = 1 << 14;

    let high = head.get(3).copied().unwrap_or(0);
    for (index, &byte) in head.iter().take(6).enumerate() {
        let fits = match index {
            0 => byte == 22,
            1 => byte == 3,
            2 => byte <= 3,
            3 => byte <= 0x40,
            4 => (1..=MAX_RECORD).contains(&u16::from_be_bytes([high, byte])),
            _ => byte == 1,
        };
        if !fits {
            return Fit::No;
        }
    }
    if head.len() >= 6 { Fit::Yes } else { Fit::Maybe }
}

/// `method SP request-target SP HTTP/1.` and a digit (RFC 9112 section 3). One empty line may come before, as section
/// 2.2 asks of a server. A target is anything but spaces and controls: whoever serves the request judges it, and an
/// HTTP client with a sloppy target is better told so than forwarded unread.
fn request_line(head: &[u8]) -> Fit {
    let line = match prefix(head, b"\r\n") {
        Fit::Yes => head.get(2..).unwrap_or_default(),
        Fit::Maybe => return Fit::Maybe,
        Fit::No => head,
    };
    let target = match word(line, is_token) {
        #[cfg(planted)]
        Ok((method, _)) if method.len() >= 32 && planted::makes(planted::Mistake::LongMethodUnknown) => {
            return Fit::No;
        }
        Ok((method, rest)) if method.len() <= MAX_METHOD => rest,
        Err(Fit::Maybe) if line.len() <= MAX_METHOD => return Fit::Maybe,
        Ok(_) | Err(_) => return Fit::No,
    };
    let version = match word(target, |byte| byte > b' ' && byte != 0x7f) {
        Ok((_target, rest)) => rest,
        Err(fit) => return fit,
    };
    match (prefix(version, b"HTTP/1."), version.get(7)) {
        #[cfg(planted)]
        (Fit::Yes, Some(_)) if planted::makes(planted::Mistake::VersionOfAnyDigit) => Fit::Yes,
        (Fit::Yes, Some(digit)) if !digit.is_ascii_digit() => Fit::No,
        (Fit::Yes, None) => Fit::Maybe,
        (fit, _) => fit,
    }
}

/// Splits off a word of at least one byte and the space after it, or says how it fits so far.
fn word(bytes: &[u8], belongs: impl Fn(u8) -> bool) -> Result<(&[u8], &[u8]), Fit> {
    let end = bytes.iter().position(|&byte| !belongs(byte)).ok_or(Fit::Maybe)?;
    match bytes.split_at_checked(end) {
        Some((word, [b' ', rest @ ..])) if !word.is_empty() => Ok((word, rest)),
        _ => Err(Fit::No),
    }
}

/// RFC 9110 section 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{string::String, vec, vec::Vec};
    use proptest::prelude::*;

    const TLS: Detection = Detection::Known(Protocol::Tls);
    const HTTP1: Detection = Detection::Known(Protocol::Http1);
    const HTTP2: Detection = Detection::Known(Protocol::Http2);
    const OPAQUE: Detection = Detection::Known(Protocol::Opaque);
    const MORE: Detection = Detection::NeedMore;

    #[test]
    fn nothing_asks_for_more() {
        check(b"", MORE);
    }

    #[test]
    fn a_request_line_is_http1() {
        check(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n", HTTP1);
        check(b"GET / HTTP/1.0\r\n\r\n", HTTP1);
        check(b"POST http://web/a?b=c HTTP/1.1\r\n", HTTP1);
        check(b"CONNECT web:443 HTTP/1.1\r\n", HTTP1);
        check(b"OPTIONS * HTTP/1.1\r\n", HTTP1);
        check(b"M-SEARCH * HTTP/1.1\r\n", HTTP1);
        check(b"x!#$%&'*+-.^_`|~9 / HTTP/1.9", HTTP1);
    }

    #[test]
    fn http1_is_known_with_the_digit_of_its_version() {
        check(b"GET / HTTP/1.", MORE);
        check(b"GET / HTTP/1.1", HTTP1);
    }

    #[test]
    fn half_a_request_line_asks_for_more() {
        check(b"G", MORE);
        check(b"GET", MORE);
        check(b"GET ", MORE);
        check(b"GET /a", MORE);
        check(b"GET /a ", MORE);
        check(b"GET /a HTT", MORE);
    }

    #[test]
    fn one_empty_line_before_the_request_is_forgiven() {
        check(b"\r", MORE);
        check(b"\r\n", MORE);
        check(b"\r\nGET / HTTP/1.1", HTTP1);
        check(b"\r\n\r", OPAQUE);
        check(b"\nG", OPAQUE);
    }

    #[test]
    fn a_raw_utf8_target_is_still_http1() {
        check("GET /caf\u{e9} HTTP/1.1".as_bytes(), HTTP1);
    }

    #[test]
    fn what_only_looks_like_a_request_is_opaque() {
        check(b"GET /\r", OPAQUE);
        check(b"GET  / HTTP/1.1", OPAQUE);
        check(b"GET /a b HTTP/1.1", OPAQUE);
        check(b"GET / HTTP/1.x", OPAQUE);
        check(b"GET / HTTP/3", OPAQUE);
        check(b"GET / HTTPS", OPAQUE);
        check(b"GET / http", OPAQUE);
        check(b" GET", OPAQUE);
        check(b"GET\t/", OPAQUE);
        check(b"GE(T", OPAQUE);
        check(b"GET /\x7f", OPAQUE);
    }

    #[test]
    fn the_http2_preface_is_http2() {
        check(HTTP2_PREFACE, HTTP2);
        check(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x12\x04", HTTP2);
    }

    #[test]
    fn half_a_preface_asks_for_more() {
        check(b"PRI * HT", MORE);
        check(b"PRI * HTTP/2.0\r\n", MORE);
        check(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r", MORE);
    }

    #[test]
    fn a_broken_preface_is_opaque() {
        check(b"PRI * HTTP/2.1", OPAQUE);
        check(b"PRI * HTTP/2.0\r\n\r\nXM", OPAQUE);
    }

    #[test]
    fn a_preface_of_version_1_is_a_request_line() {
        check(b"PRI * HTTP/1.1", HTTP1);
    }

    #[test]
    fn a_client_hello_is_tls_after_six_bytes() {
        check(b"\x16\x03\x01\x02\x00", MORE);
        check(b"\x16\x03\x01\x02\x00\x01", TLS);
        check(b"\x16\x03\x03\x40\x00\x01\x00\x06\x00", TLS);
        check(b"\x16\x03\x00\x00\x01\x01", TLS);
    }

    #[test]
    fn other_records_are_opaque() {
        check(b"\x16\x03\x04", OPAQUE);
        check(b"\x16\x02", OPAQUE);
        check(b"\x16\x03\x01\x00\x00", OPAQUE);
        check(b"\x16\x03\x01\x40\x01", OPAQUE);
        check(b"\x16\x03\x01\x41", OPAQUE);
        check(b"\x16\x03\x01\x02\x00\x02", OPAQUE);
        check(b"\x15\x03\x01\x00\x02\x02\x28", OPAQUE);
        check(b"\x17", OPAQUE);
    }

    #[test]
    fn an_sslv2_hello_is_opaque() {
        check(b"\x80\x2e\x01\x03\x01", OPAQUE);
    }

    #[test]
    fn redis_is_opaque() {
        check(b"*1\r", OPAQUE);
        check(b"PING\r\n", OPAQUE);
        check(b"SET a b\r\n", OPAQUE);
    }

    #[test]
    fn memcached_is_opaque() {
        check(b"get key\r\n", OPAQUE);
        check(b"set key 0 900 4\r\n", OPAQUE);
        check(b"\x80\x01", OPAQUE);
    }

    #[test]
    fn postgresql_is_opaque() {
        check(b"\x00\x00\x00\x08\x04\xd2\x16\x2f", OPAQUE);
        check(b"\x00", OPAQUE);
    }

    #[test]
    fn a_greeting_from_mysql_is_opaque() {
        check(b"\x4a\x00\x00\x00\x0a8.0", OPAQUE);
    }

    #[test]
    fn smtp_is_opaque() {
        check(b"EHLO client.example\r\n", OPAQUE);
        check(b"220 mail.example ESMTP", OPAQUE);
        check(b"220-mail.example\r", OPAQUE);
    }

    #[test]
    fn ssh_is_opaque() {
        check(b"SSH-2.0-OpenSSH_9.6\r\n", OPAQUE);
        check(b"SSH-2.0-OpenSSH_9.6p1 Debian-3\r\n", OPAQUE);
    }

    #[test]
    fn mongodb_and_kafka_are_opaque() {
        check(b"\x3a\x00\x00\x00", OPAQUE);
        check(b"\x00\x00\x00\x18\x00\x12", OPAQUE);
    }

    #[test]
    fn an_endless_method_is_opaque() {
        check(&[b'A'; MAX_METHOD], MORE);
        check(&[b'A'; MAX_METHOD + 1], OPAQUE);
    }

    #[test]
    fn an_endless_target_is_opaque() {
        let mut head = b"GET /".to_vec();
        head.resize(MAX_BYTES - 1, b'a');
        check(&head, MORE);
        head.push(b'a');
        check(&head, OPAQUE);
        head.extend_from_slice(b" HTTP/1.1\r\n");
        check(&head, OPAQUE);
    }

    /// Bytes that come near the boundaries between the protocols.
    fn near_misses() -> impl Strategy<Value = Vec<u8>> {
        let part = prop_oneof![
            Just(HTTP2_PREFACE.to_vec()),
            Just(b"GET / HTTP/1.1\r\n".to_vec()),
            Just(b"\r\n".to_vec()),
            Just(b"\x16\x03\x01\x02\x00\x01\x00".to_vec()),
            proptest::collection::vec(any::<u8>(), 0..20),
            "[ -~]{0,20}".prop_map(String::into_bytes),
        ];
        (proptest::collection::vec(part, 0..3), any::<prop::sample::Index>(), any::<u8>()).prop_map(
            |(parts, at, byte)| {
                let mut bytes = parts.concat();
                if byte % 2 == 0 && !bytes.is_empty() {
                    let at = at.index(bytes.len());
                    bytes[at] = byte;
                }
                bytes
            },
        )
    }

    proptest! {
        #[test]
        fn an_answer_never_changes_as_bytes_arrive(bytes in near_misses()) {
            let mut known = vec![];
            for end in 0..=bytes.len() {
                match detect(&bytes[..end]) {
                    Detection::Known(protocol) => known.push(protocol),
                    Detection::NeedMore => prop_assert!(known.is_empty(), "{:?} was taken back", known),
                }
            }
            known.dedup();
            prop_assert!(known.len() <= 1, "{:?}", known);
        }

        #[test]
        fn more_is_asked_for_only_while_two_answers_are_possible(bytes in near_misses()) {
            if detect(&bytes) == Detection::NeedMore {
                let endings: &[&[u8]] = &[
                    b"\x01", b"\x00\x01\x01", b"\x01\x00\x01\x01", b"\x03\x01\x02\x00\x01", b"\x02\x00\x01",
                    b"A / HTTP/1.1", b" / HTTP/1.1", b"/ HTTP/1.1", b" HTTP/1.1", b"\nA / HTTP/1.1",
                ];
                let rest_of = |whole: &'static [u8]| (0..whole.len()).map(move |from| &whole[from..]);
                let possible = endings
                    .iter()
                    .copied()
                    .chain(rest_of(b"HTTP/1.1"))
                    .chain(rest_of(HTTP2_PREFACE))
                    .any(|ending| detect(&[&bytes, ending].concat()) != OPAQUE);
                prop_assert!(possible, "nothing but opaque can follow");
                prop_assert_eq!(detect(&[&bytes[..], b"\x00\x00\x00\x00\x00\x00"].concat()), OPAQUE);
            }
        }
    }

    #[track_caller]
    fn check(head: &[u8], expected: Detection) {
        assert_eq!(detect(head), expected, "{}", head.escape_ascii());
        // Whatever was said of it, every beginning of it must agree.
        for end in 0..head.len() {
            let earlier = detect(&head[..end]);
            assert!(earlier == expected || earlier == MORE, "{}", head[..end].escape_ascii());
        }
    }
}

//! Protocol detection: the verdict depends on the bytes alone, is final, and agrees with those who will parse them.

use remora_core::{
    client_hello::{self, NotHello, Parsed},
    detect::{Detection, MAX_BYTES, MAX_METHOD, Protocol, detect as decide},
};

/// Bytes as a client sends them.
pub fn detect(data: &[u8]) {
    let data = data.get(..MAX_BYTES * 2).unwrap_or(data);
    let verdict = decide(data);

    // However a connection is split into reads, what is decided on are beginnings of it.
    let mut known = None;
    for end in beginnings(data.len()) {
        let earlier = decide(&data[..end]);
        match known {
            Some(known) => assert_eq!(earlier, known, "the verdict changed at byte {end}"),
            None if earlier != Detection::NeedMore => known = Some(earlier),
            None => {}
        }
    }
    assert_eq!(known.unwrap_or(Detection::NeedMore), verdict, "the beginnings say otherwise");

    match verdict {
        Detection::NeedMore => {
            assert!(data.len() < MAX_BYTES, "more than {MAX_BYTES} bytes are asked for");
            let mut longest = data.to_vec();
            longest.resize(MAX_BYTES, b'a');
            assert_ne!(decide(&longest), Detection::NeedMore, "detection never ends");
        }
        Detection::Known(protocol) => {
            let data = data.get(..MAX_BYTES).unwrap_or(data);
            assert_eq!(protocol == Protocol::Http2, data.starts_with(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"));
            assert_eq!(protocol == Protocol::Tls, begins_as_hello(data));
            if protocol == Protocol::Tls {
                let parsed = client_hello::parse(data);
                assert_ne!(
                    parsed,
                    Parsed::Not(NotHello::OtherProtocol),
                    "TLS to one, another protocol to the other"
                );
            }
            let line = request_line(data);
            assert_eq!(protocol == Protocol::Http1, line.is_some(), "httparse sees {line:?}");
        }
    }
}

/// Every beginning of short inputs, of long ones those around the ends.
fn beginnings(length: usize) -> impl Iterator<Item = usize> {
    const DENSE: usize = 256;
    (0..=length).filter(move |end| *end < DENSE || end % 251 == 0 || end + DENSE > length)
}

fn begins_as_hello(data: &[u8]) -> bool {
    match data {
        [22, 3, 0..=3, high, low, 1, ..] => (1..=16384).contains(&u16::from_be_bytes([*high, *low])),
        _ => false,
    }
}

/// The method of the HTTP/1 request line at the beginning, as httparse reads it.
///
/// Rules on purpose:
/// - httparse skips any number of empty lines, also bare line feeds; we one CRLF;
/// - it knows the versions 1.0 and 1.1; we take any minor version, so that whoever serves it can refuse it;
/// - it wants UTF-8 in a target; to us any byte over 0x7f is as good as another;
/// - its methods have no bound; ours have [`MAX_METHOD`];
/// - what follows the version is not ours to judge.
fn request_line(data: &[u8]) -> Option<String> {
    let line = data.strip_prefix(b"\r\n").unwrap_or(data);
    if line.first().is_none_or(|byte| b"\r\n".contains(byte)) {
        return None;
    }
    // The line up to its version, which is made one that httparse knows.
    let (version, _) = line.iter().enumerate().filter(|(_, byte)| **byte == b' ').nth(1)?;
    let digit = line[version..].strip_prefix(b" HTTP/1.")?.first()?;
    if !digit.is_ascii_digit() {
        return None;
    }
    let mut spaces = 0;
    let mut whole: Vec<u8> = line[..version]
        .iter()
        .map(|byte| {
            spaces += usize::from(*byte == b' ');
            if spaces > 0 && !byte.is_ascii() { b'a' } else { *byte }
        })
        .collect();
    whole.extend_from_slice(b" HTTP/1.1\r\n\r\n");
    let mut headers = [];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(&whole) {
        Ok(httparse::Status::Complete(_)) => {
            request.method.filter(|method| method.len() <= MAX_METHOD).map(ToOwned::to_owned)
        }
        Ok(httparse::Status::Partial) | Err(_) => None,
    }
}

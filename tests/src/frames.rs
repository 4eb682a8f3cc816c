//! HTTP/2 by hand: frames and header blocks that no library would let one send (RFC 9113, RFC 7541).

use std::io::{self, Read, Write};
use std::time::Instant;

use crate::peer::PATIENCE;

/// What a client says first.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// The reason that a peer asks for too much.
pub const ENHANCE_YOUR_CALM: u32 = 11;

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// The error code of a GOAWAY or RST_STREAM.
    pub fn code(&self) -> Option<u32> {
        let at = match self.kind {
            GOAWAY => 4,
            RST_STREAM => 0,
            _ => return None,
        };
        Some(u32::from_be_bytes(self.payload.get(at..at + 4)?.try_into().ok()?))
    }

    /// The status in an answer's header block, if it is the block's first field: by its index, or literally.
    pub fn status(&self) -> Option<u16> {
        const INDEXED: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];
        if self.kind != HEADERS {
            return None;
        }
        // The first block may begin with the size of the table (RFC 7541 section 6.3), a byte where that is small.
        let payload = self.payload.strip_prefix(&[0x20]).unwrap_or(&self.payload);
        match *payload.first()? {
            indexed @ 0x88..=0x8e => INDEXED.get(usize::from(indexed - 0x88)).copied(),
            remembered if remembered & 0x80 != 0 => None,
            _ => {
                let digits = payload.get(1..)?;
                let (length, rest) = digits.split_first()?;
                let text = rest.get(..usize::from(length & 0x7f))?;
                if length & 0x80 == 0 {
                    return std::str::from_utf8(text).ok()?.parse().ok();
                }
                Some(huffman_digits(text))
            }
        }
    }
}

/// A status in Huffman's code, of which its digits have 5 bits (0 to 2) or 6 (RFC 7541 appendix B).
fn huffman_digits(bytes: &[u8]) -> u16 {
    let mut bits = bytes.iter().flat_map(|byte| (0..8).rev().map(move |at| u32::from(byte >> at & 1)));
    let mut number = 0;
    for _ in 0..3 {
        let mut code = (0..5).fold(0, |code, _| code << 1 | bits.next().unwrap_or(1));
        if code > 2 {
            code = (code << 1 | bits.next().unwrap_or(1)) - 0x19 + 3;
        }
        number = number * 10 + code as u16;
    }
    number
}

/// A frame in bytes.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(9 + payload.len());
    bytes.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// A SETTINGS frame.
pub fn settings(values: &[(u16, u32)]) -> Vec<u8> {
    let payload: Vec<u8> = values
        .iter()
        .flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()[..]].concat())
        .collect();
    frame(SETTINGS, 0, 0, &payload)
}

/// How a connection begins: the preface, settings, and a connection window that no test fills.
pub fn hello(values: &[(u16, u32)]) -> Vec<u8> {
    let window = frame(WINDOW_UPDATE, 0, 0, &(1_u32 << 30).to_be_bytes());
    [PREFACE, &settings(values), &window].concat()
}

/// A field that is said in full and not remembered.
pub fn field(name: &str, value: &str) -> Vec<u8> {
    raw_field(0x00, name.as_bytes(), value.as_bytes())
}

/// A field that is said in full and remembered: the first of the dynamic table is index 62.
pub fn remembered(name: &str, value: &str) -> Vec<u8> {
    raw_field(0x40, name.as_bytes(), value.as_bytes())
}

/// A field of any bytes.
pub fn raw_field(first: u8, name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    for text in [name, value] {
        integer(&mut bytes, text.len());
        bytes.extend_from_slice(text);
    }
    bytes
}

/// An integer with a prefix of 7 bits.
fn integer(bytes: &mut Vec<u8>, value: usize) {
    if value < 127 {
        return bytes.push(value as u8);
    }
    bytes.push(127);
    let mut rest = value - 127;
    while rest >= 128 {
        bytes.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    bytes.push(rest as u8);
}

/// The block of a request without further fields.
pub fn request(method: &str, path: &str) -> Vec<u8> {
    [field(":method", method), field(":scheme", "http"), field(":path", path), field(":authority", "web")]
        .concat()
}

/// The block of a GET of `/` in a few bytes.
pub fn short_request() -> Vec<u8> {
    // GET, http, / of the static table.
    [&[0x82, 0x86, 0x84][..], &field(":authority", "web")].concat()
}

/// A HEADERS frame with a whole block.
pub fn headers(stream: u32, end_stream: bool, block: &[u8]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | u8::from(end_stream), stream, block)
}

/// Reads one frame; nothing at the connection's end.
///
/// # Errors
/// As reading fails; a reset counts as an end.
pub fn read(stream: &mut impl Read) -> io::Result<Option<Frame>> {
    let mut head = [0; 9];
    match stream.read_exact(&mut head) {
        Ok(()) => {}
        Err(error)
            if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error),
    }
    let [a, b, c, kind, flags, id @ ..] = head;
    let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
    stream.read_exact(&mut payload)?;
    Ok(Some(Frame { kind, flags, stream: u32::from_be_bytes(id) & 0x7fff_ffff, payload }))
}

/// Reads until a frame is what is waited for; the frames before it are acknowledged where they ask for it.
///
/// # Errors
/// The connection's end or silence, with the frames that came.
pub fn read_until(stream: &mut (impl Read + Write), wanted: impl Fn(&Frame) -> bool) -> io::Result<Frame> {
    let mut seen = Vec::new();
    // Who keeps a connection alive by PINGs is not silent, and yet nothing comes.
    let deadline = Instant::now() + 2 * PATIENCE;
    loop {
        if Instant::now() > deadline {
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("only {seen:?} came")));
        }
        let next =
            read(stream).map_err(|error| io::Error::new(error.kind(), format!("{error}, after {seen:?}")))?;
        let Some(next) = next else {
            return Err(io::Error::other(format!("the connection ended after {seen:?}")));
        };
        if wanted(&next) {
            return Ok(next);
        }
        match next.kind {
            SETTINGS if next.flags & ACK == 0 => stream.write_all(&frame(SETTINGS, ACK, 0, &[]))?,
            PING if next.flags & ACK == 0 => stream.write_all(&frame(PING, ACK, 0, &next.payload))?,
            _ => {}
        }
        seen.push((next.kind, next.stream, next.code()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_in_each_of_its_forms() {
        let answer = |payload: &[u8]| Frame { kind: HEADERS, flags: 0, stream: 1, payload: payload.to_vec() };
        assert_eq!(answer(&[0x88]).status(), Some(200));
        assert_eq!(answer(&[0x8c]).status(), Some(400));
        assert_eq!(answer(b"\x48\x03431").status(), Some(431));
        assert_eq!(answer(b"\x20\x48\x03431").status(), Some(431));
        // 4 is 011010, 3 is 011001, 1 is 00001; the rest is padding.
        assert_eq!(answer(&[0x48, 0x83, 0b0110_1001, 0b1001_0000, 0b1111_1111]).status(), Some(431));
    }

    #[test]
    fn a_frame_is_read_as_it_was_written() {
        let bytes = headers(7, true, &request("GET", "/"));
        let read = read(&mut bytes.as_slice()).unwrap().unwrap();
        assert_eq!((read.kind, read.flags, read.stream), (HEADERS, 5, 7));
        assert_eq!(read.payload, request("GET", "/"));
    }
}

//! HTTP/1 detection against httparse, request by request: what httparse reads as a request is detected as HTTP/1 with
//! the last byte of its version and never sooner, and a line that httparse refuses is not.
//!
//! `detect` searches among all bytes; here they are request lines, whole and nearly so.

use arbitrary::{Arbitrary, Unstructured};
use remora_core::detect::{Detection, MAX_BYTES, MAX_METHOD, Protocol, detect};

/// The description of a request head.
pub fn http1(data: &[u8]) {
    if let Ok(head) = Head::arbitrary(&mut Unstructured::new(data)) {
        head.holds();
    }
}

#[derive(Arbitrary, Debug)]
struct Head {
    empty_line: bool,
    method: Word,
    between: Gap,
    target: Word,
    behind: Gap,
    version: Version,
    headers: Vec<(Word, Word)>,
    follows: Vec<u8>,
}

#[derive(Arbitrary, Debug)]
enum Word {
    Known(u8),
    /// So many of one byte: the bounds of methods and of detection are met.
    Long(u8, u16),
    Raw(Vec<u8>),
}

#[derive(Arbitrary, Debug)]
enum Gap {
    Space,
    Other(u8),
}

#[derive(Arbitrary, Debug)]
enum Version {
    Http11,
    Http10,
    Minor(u8),
    Raw([u8; 9]),
}

impl Head {
    fn holds(&self) {
        let method = self.method.bytes(&METHODS);
        let target = self.target.bytes(&TARGETS);
        let empty_line: &[u8] = if self.empty_line { b"\r\n" } else { b"" };
        let line = [
            empty_line,
            &method,
            &self.between.bytes(),
            &target,
            &self.behind.bytes(),
            &self.version.bytes(),
        ]
        .concat();
        let headers: Vec<u8> = self
            .headers
            .iter()
            .take(4)
            .flat_map(|(name, value)| {
                [&name.bytes(&NAMES)[..], b": ", &value.bytes(&TARGETS), b"\r\n"].concat()
            })
            .collect();
        let whole = [&line[..], b"\r\n", &headers, b"\r\n", &self.follows].concat();

        let verdict = detect(&whole);
        let mut fields = [httparse::EMPTY_HEADER; 8];
        let mut request = httparse::Request::new(&mut fields);
        let is_request = matches!(request.parse(&whole), Ok(httparse::Status::Complete(_)));
        // Ours are bounded, and httparse skips any number of empty lines of either kind.
        let within = line.len() <= MAX_BYTES
            && method.len() <= MAX_METHOD
            && !method.starts_with(b"\r")
            && !method.starts_with(b"\n");
        if is_request && within {
            assert_eq!(verdict, Detection::Known(Protocol::Http1), "httparse reads {request:?}");
            // Known with the version's last byte and not sooner; then it stays.
            assert_eq!(detect(&whole[..line.len() - 1]), Detection::NeedMore, "{request:?}");
            assert_eq!(detect(&line), Detection::Known(Protocol::Http1), "{request:?}");
        }
        if verdict == Detection::Known(Protocol::Http1) {
            // Its headers may be wrong, its version a later 1.x, and its target not UTF-8: whoever serves it says so.
            // Its method may not.
            let named = whole.strip_prefix(b"\r\n").unwrap_or(&whole);
            let end = named.iter().position(|byte| *byte == b' ').unwrap_or_default();
            let plain = [&named[..end], b" / HTTP/1.1\r\n\r\n"].concat();
            let mut none = [];
            let mut request = httparse::Request::new(&mut none);
            let read = request.parse(&plain);
            assert!(
                matches!(read, Ok(httparse::Status::Complete(_))),
                "{read:?} of {:?}",
                plain.escape_ascii().to_string()
            );
        }
    }
}

const METHODS: [&[u8]; 10] =
    [b"GET", b"POST", b"PRI", b"CONNECT", b"M-SEARCH", b"get", b"G\x00T", b"", b"VERSION-CONTROL", b"PR"];
const TARGETS: [&[u8]; 9] =
    [b"/", b"*", b"http://web/a?b=c", b"web:443", b"/a%20b", b"/\xc3\xa4", b"", b"/a\tb", b"/a#b"];
const NAMES: [&[u8]; 4] = [b"host", b"Content-Length", b"x y", b""];

impl Word {
    fn bytes(&self, known: &[&[u8]]) -> Vec<u8> {
        match self {
            Self::Known(which) => known[usize::from(*which) % known.len()].to_vec(),
            Self::Long(byte, length) => vec![*byte; usize::from(*length) % (MAX_BYTES + 64)],
            Self::Raw(bytes) => bytes.clone(),
        }
    }
}

impl Gap {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Space => vec![b' '],
            Self::Other(byte) => vec![*byte],
        }
    }
}

impl Version {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Http11 => b"HTTP/1.1".to_vec(),
            Self::Http10 => b"HTTP/1.0".to_vec(),
            Self::Minor(minor) => [b"HTTP/1.", &[*minor][..]].concat(),
            Self::Raw(bytes) => bytes.to_vec(),
        }
    }
}

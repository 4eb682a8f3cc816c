//! What the HTTP server answers to which path, in either version, and what it tells of a request.
//!
//! Every path but those of [`Answer`] tells the request back as JSON ([`Told`]).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use bytes::{Bytes, BytesMut};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use crate::{http1, http2};

/// The connection preface of HTTP/2 (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How much of a body is told back; the digest is over all of it.
const TOLD: usize = 64 * 1024;
/// Bytes of one piece of a generated body.
pub(crate) const PIECE: u64 = 16 * 1024;

static CONNECTIONS: AtomicU64 = AtomicU64::new(0);

/// What a path asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The request, as it came.
    Told,
    /// `/status/CODE`: this status, with an empty body where one is allowed.
    Status(u16),
    /// `/chunked/N/MS`: N chunks `chunk 0\n`…, each after this pause. The head comes before the first pause.
    Chunked(u64, Duration),
    /// `/trailers`: a body with the trailers `X-Sum` and `X-Last`.
    Trailers,
    /// `/bytes/N`: N bytes with their length and, as `X-Sha256`, their digest.
    Bytes(u64),
    /// `/slow/MS`: nothing for so long, then what was asked.
    Slow(Duration),
    /// `/old`: HTTP/1.0, no length, ended by the end of the connection.
    Old,
    /// `/close`: a length, `Connection: close`, and then the connection ends.
    Close,
    /// `/early`: 413 before the body is read, which is then read.
    Early,
    /// `/upgrade`: 101 with `welcome\n` right behind it, then an echo.
    Upgrade,
    /// `/reset`: the connection (HTTP/1) or the stream (HTTP/2) is reset without an answer.
    Reset,
    /// `/half`: every second request of this server is answered with 503, the others are told.
    Half,
    /// `/fails/N/…`: the first N requests of this target are answered with 503, the others are told.
    Fails(u64),
    /// `/cut`: half of what the length announced, then a reset.
    Cut,
}

impl Answer {
    /// By the request's target, in origin or absolute form. A number that is none is 0.
    pub(crate) fn to(target: &str) -> Self {
        let path =
            target.split_once("://").map_or(target, |(_, rest)| rest.find('/').map_or("", |at| &rest[at..]));
        let path = path.split('?').next().unwrap_or_default();
        let mut parts = path.trim_start_matches('/').split('/');
        let name = parts.next().unwrap_or_default();
        let mut number = || parts.next().and_then(|part| part.parse::<u64>().ok()).unwrap_or_default();
        match name {
            "status" => Self::Status(u16::try_from(number()).unwrap_or(500)),
            "chunked" => Self::Chunked(number(), Duration::from_millis(number())),
            "trailers" => Self::Trailers,
            "bytes" => Self::Bytes(number()),
            "slow" => Self::Slow(Duration::from_millis(number())),
            "old" => Self::Old,
            "close" => Self::Close,
            "early" => Self::Early,
            "upgrade" => Self::Upgrade,
            "reset" => Self::Reset,
            "half" => Self::Half,
            "fails" => Self::Fails(number()),
            "cut" => Self::Cut,
            _ => Self::Told,
        }
    }

    /// The same, where it depends on the requests before this one.
    pub(crate) fn after_others(self, target: &str) -> Self {
        let fails = match self {
            Self::Half => count("half").is_multiple_of(2),
            Self::Fails(first) => count(target) < first,
            _ => return self,
        };
        if fails { Self::Status(503) } else { Self::Told }
    }
}

/// How often this was called with this name before.
fn count(name: &str) -> u64 {
    static COUNTS: Mutex<BTreeMap<String, u64>> = Mutex::new(BTreeMap::new());
    let mut counts = COUNTS.lock().unwrap_or_else(PoisonError::into_inner);
    let count = counts.entry(name.to_owned()).or_default();
    *count += 1;
    *count - 1
}

/// A request as it came.
#[derive(Debug, Serialize)]
pub(crate) struct Told {
    /// The host name of the server, which is its pod.
    pub(crate) server: String,
    /// Which connection of this server it was, and which request on that.
    pub(crate) connection: u64,
    pub(crate) request: u64,
    pub(crate) version: &'static str,
    pub(crate) method: String,
    pub(crate) target: String,
    /// In the order and, in HTTP/1, the case in which they came.
    pub(crate) headers: Vec<(String, String)>,
    /// Its beginning.
    pub(crate) body: String,
    pub(crate) body_bytes: u64,
    pub(crate) body_sha256: String,
    pub(crate) trailers: Vec<(String, String)>,
}

impl Told {
    pub(crate) fn json(&self) -> Bytes {
        let mut text = serde_json::to_vec(self).unwrap_or_default();
        text.push(b'\n');
        text.into()
    }
}

/// A body while it is read.
#[derive(Default)]
pub(crate) struct Received {
    pub(crate) bytes: u64,
    start: Vec<u8>,
    digest: Sha256,
    pub(crate) trailers: Vec<(String, String)>,
}

impl Received {
    pub(crate) fn add(&mut self, data: &[u8]) {
        self.bytes += data.len() as u64;
        self.digest.update(data);
        let room = TOLD.saturating_sub(self.start.len()).min(data.len());
        self.start.extend(data.iter().take(room));
    }

    pub(crate) fn start(&self) -> String {
        String::from_utf8_lossy(&self.start).into_owned()
    }

    pub(crate) fn sha256(&self) -> String {
        hex(&self.digest.clone().finalize())
    }
}

/// Digits as `sha256sum` prints them.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The bytes from `at` on of a generated body; no two neighbouring pieces are alike.
pub(crate) fn piece(at: u64, length: u64) -> Bytes {
    (at..at + length).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

/// Begin and length of each piece of a generated body.
pub(crate) fn pieces(length: u64) -> impl Iterator<Item = (u64, u64)> {
    (0..length.div_ceil(PIECE)).map(move |i| (i * PIECE, PIECE.min(length - i * PIECE)))
}

/// The digest of a whole generated body.
pub(crate) fn digest(length: u64) -> String {
    let mut digest = Sha256::new();
    pieces(length).for_each(|(at, length)| digest.update(piece(at, length)));
    hex(&digest.finalize())
}

/// The pod's name.
pub(crate) fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// One connection of the HTTP server, in the version that the client begins to speak.
pub(crate) async fn serve(mut stream: TcpStream) -> Result<()> {
    let number = CONNECTIONS.fetch_add(1, Ordering::Relaxed);
    let mut head = BytesMut::new();
    while head.len() < PREFACE.len() && PREFACE.starts_with(&head) {
        if stream.read_buf(&mut head).await? == 0 {
            break;
        }
    }
    if head.starts_with(PREFACE) {
        http2::serve(stream, head.freeze(), number).await
    } else {
        http1::serve(stream, head, number).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_in_either_form_chooses_the_answer() {
        for (target, answer) in [
            ("/", Answer::Told),
            ("/anything?x=/bytes/3", Answer::Told),
            ("/bytes/3", Answer::Bytes(3)),
            ("http://web/bytes/3?x", Answer::Bytes(3)),
            ("http://web", Answer::Told),
            ("/status/204", Answer::Status(204)),
            ("/chunked/2/5", Answer::Chunked(2, Duration::from_millis(5))),
        ] {
            assert_eq!(Answer::to(target), answer, "{target}");
        }
    }

    #[test]
    fn the_pieces_of_a_body_are_all_of_it() {
        for length in [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE] {
            assert_eq!(pieces(length).map(|(_, length)| length).sum::<u64>(), length);
        }
        let whole = piece(0, 2 * PIECE);
        let parts: Vec<u8> = pieces(2 * PIECE).flat_map(|(at, length)| piece(at, length)).collect();
        assert_eq!(whole, parts);
        assert_ne!(piece(0, PIECE), piece(PIECE, PIECE));
    }

    #[test]
    fn a_body_is_told_with_its_digest() {
        let mut received = Received::default();
        received.add(b"ab");
        received.add(b"c");
        assert_eq!(received.start(), "abc");
        assert_eq!(received.sha256(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}

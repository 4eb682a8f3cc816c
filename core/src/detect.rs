//! What the bytes received so far say about a connection's protocol.

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

/// Decides; `NeedMore` is never answered for `head.len() >= MAX_BYTES`.
pub fn detect(head: &[u8]) -> Detection {
    let _ = head;
    todo!()
}

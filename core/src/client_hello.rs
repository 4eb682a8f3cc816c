//! SNI and ALPN out of a TLS ClientHello, over any number of records and segments. RFC 8446 section 4.1.2.

use alloc::{string::String, vec::Vec};

/// The verdict on a prefix of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// So far this can still become a ClientHello.
    NeedMore,
    /// This is no ClientHello that we read (another protocol, a malformed one, one over [`MAX_BYTES`]).
    Not(NotHello),
    /// A whole ClientHello.
    Hello(Hello),
}

/// Why the bytes are no ClientHello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotHello {
    /// The bytes are another protocol.
    OtherProtocol,
    /// They begin as TLS and then break its rules.
    Malformed,
    /// More than [`MAX_BYTES`] without an end.
    TooLong,
}

/// What the proxy wants to know of a ClientHello.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hello {
    /// The host name of the server_name extension, lower case, if there is a valid one.
    pub sni: Option<String>,
    /// The protocols of the ALPN extension in the client's order.
    pub alpn: Vec<Vec<u8>>,
    /// Whether TLS 1.3 is among the supported versions.
    pub tls13: bool,
}

/// The longest ClientHello that is read, counted with its record headers.
pub const MAX_BYTES: usize = 16 * 1024;

/// Parses; `NeedMore` is never answered for `head.len() >= MAX_BYTES`.
pub fn parse(head: &[u8]) -> Parsed {
    let _ = head;
    todo!()
}

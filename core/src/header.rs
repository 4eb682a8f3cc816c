//! The transport header: where a connection to 4143 really goes. Contract 1.5.

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
    /// A DNS name when the target is behind a gateway; `None` for the local pod.
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

/// Reads a header from the beginning of a stream. Unknown fields are skipped.
pub fn decode(head: &[u8]) -> Result<Decoded, Malformed> {
    let _ = head;
    todo!()
}

impl TransportHeader {
    /// The bytes to send, preface included.
    pub fn encode(&self) -> Vec<u8> {
        todo!()
    }
}

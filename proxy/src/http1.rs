//! HTTP/1 on a stream, without a task, a buffer or a copy that a message does not need. Where messages end is decided by
//! [`remora_core::http1`]; what happens to a request is [`crate::http::request`]. Why not a library: decision 15.
//!
//! ```text
//! client ══ Wire ── serve: head → service → answer ──┐  one task
//!                                                    │
//!                      exchange: head → answer ══ Wire ══ server
//! ```

pub mod answer;
pub mod body;
pub mod exchange;
pub mod head;
pub mod serve;
pub mod wire;
pub mod write;

use remora_core::http1::Malformed;
use std::{io, sync::Arc};

/// Bounds of what the other end sends.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of a head, and of a trailer section.
    pub head_bytes: usize,
    /// Fields of either.
    pub fields: usize,
}

/// How an exchange of messages broke.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The connection did.
    #[error("{0}")]
    Io(Arc<io::Error>),
    /// It ended in the middle of a message, or instead of one.
    #[error("the connection ended before the message did")]
    Cut,
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("its request line is longer than a head may be")]
    LongTarget,
    #[error("its head has more bytes or fields than it may")]
    TooLarge,
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Io(Arc::new(error))
    }
}

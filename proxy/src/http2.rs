//! HTTP/2 on a stream: h2's connections without a task, a channel or a copy that a request does not need. What happens
//! to a request is [`crate::http::request`]. Why not a library above h2: decision 16.
//!
//! ```text
//! client ══ serve: connection and all its requests, one task
//!                 │ service
//!                 └─ exchange: head, body ──▶ connection, a task ══ server
//! ```

pub mod body;
pub mod exchange;
mod late;
pub mod ping;
pub mod portions;
pub mod serve;

/// What one HTTP/2 stream may have under way, and all streams of a connection together: a reader that stops must not
/// stop the others, so one stream never has more than a small share of its connection.
pub const STREAM_WINDOW: u32 = 64 * 1024;
/// See [`STREAM_WINDOW`].
pub const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
/// Streams that we reset for a mistake of the other end before its connection is ended.
const MAX_ERROR_RESETS: usize = 1024;
/// Bytes of a frame.
const FRAME: u32 = 16 * 1024;

#[cfg(test)]
mod tests;

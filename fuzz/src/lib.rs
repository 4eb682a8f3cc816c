//! What must hold for any input, as plain functions that panic when it does not. libFuzzer searches with them
//! (`scripts/fuzz.sh`), and the ordinary tests replay the corpora through them (`tests/replay.rs`).
//!
//! Each oracle is somebody else's code: httparse for request lines, rustls for ClientHellos, prost for headers. Where we
//! are stricter or laxer than they are on purpose, the rule is written down beside the comparison.
#![expect(clippy::indexing_slicing, clippy::panic, reason = "an oracle fails by panicking")]

mod client_hello;
mod detect;
mod header;

pub use self::{client_hello::client_hello, detect::detect, header::header};

/// A fuzz target.
pub type Target = fn(&[u8]);

/// Every target by the name of its corpus.
pub const TARGETS: [(&str, Target); 3] =
    [("detect", detect as Target), ("client_hello", client_hello as Target), ("header", header as Target)];

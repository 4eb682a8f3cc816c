//! Carriers: one mTLS connection between two of our proxies that holds many streams (docs/mux.md). What may be said on
//! one is decided by [`remora_core::mux`]; here it meets sockets. To everybody else a stream is a connection.
//!
//! ```text
//! a connection's task ── MuxStream ──┐                         ┌── MuxStream ── a connection's task
//! a connection's task ── MuxStream ──┤ Carrier ═ TLS ═ Carrier ├── MuxStream ── a connection's task
//!                                    └─ one driver             └─ one driver
//! ```

pub mod accept;
mod carrier;
mod drive;
pub mod neighbour;
#[cfg(test)]
mod tests;

pub use carrier::{Carrier, MuxStream, StreamEnded};

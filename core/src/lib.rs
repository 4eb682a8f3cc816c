//! Decisions. Nothing here opens a socket, reads a clock, rolls dice, logs or spawns: what a decision needs is
//! handed in (bytes, `now`, a random number), and what it found out is handed back as a value with its reason.
//!
//! In reading order: what is this connection ([`detect`], [`client_hello`], [`header`]); who is it ([`identity`]);
//! may it ([`matching`], [`policy`]); where does it go ([`route`], [`profile`], [`endpoint`]); which one
//! ([`balance`], [`ewma`], [`breaker`], [`pool`]); when again ([`backoff`], [`cert`], [`retry`]); how long is waited for
//! ([`patience`], [`http2`]); how much may be under way ([`bandwidth`]), how often one may ask ([`rate`]); is there room
//! ([`room`]). [`mux`] is how many streams share a connection, [`http1`] how messages do.
#![no_std]
#![forbid(unsafe_code)]
#![warn(missing_docs)]
extern crate alloc;

pub mod backoff;
pub mod balance;
pub mod bandwidth;
pub mod breaker;
pub mod cert;
pub mod client_hello;
pub mod detect;
pub mod endpoint;
pub mod ewma;
pub mod header;
pub mod http1;
pub mod http2;
pub mod identity;
pub mod matching;
pub mod mux;
pub mod patience;
#[cfg(planted)]
pub mod planted;
pub mod policy;
pub mod pool;
pub mod profile;
pub mod rate;
pub mod retry;
pub mod room;
pub mod route;
pub mod time;

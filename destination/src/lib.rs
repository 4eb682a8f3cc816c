//! What proxies should know: discovery and policy, from Kubernetes objects to Linkerd's three streaming APIs.
//!
//! In reading order: an object arrives ([`resources`], [`watch`]); what of it matters is kept ([`index`]); what one
//! proxy should see is computed from that ([`view`]) and put on the wire ([`wire`]); whoever watches it is told
//! ([`publish`], [`serve`]). [`check`] says what would become of a directory. Only `watch` and `serve` touch the world; [`config`] and [`metrics`] are about the
//! process.
#![warn(missing_docs)]

pub mod annotations;
pub mod check;
pub mod config;
pub mod index;
pub mod metrics;
pub mod ports;
pub mod process;
pub mod publish;
pub mod resources;
pub mod serve;
pub mod view;
pub mod watch;
pub mod wire;

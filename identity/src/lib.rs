//! The certificate authority: a token and a request come in, a certificate goes out. Contract chapter 2.
//!
//! In reading order: what may be certified ([`issue`], pure); with which key ([`issuer`]); whom a token belongs to
//! ([`token`]); the service itself, and how often one may ask it ([`serve`]), which is a client of its own
//! authority; how an authority begins ([`generate`]).

pub mod config;
pub mod generate;
pub mod issue;
pub mod issuer;
pub mod serve;
pub mod token;

#[cfg(test)]
mod testing;

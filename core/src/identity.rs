//! Names of workloads: what a certificate's SAN says and what policies compare. Contract 2.2.

use alloc::{string::String, sync::Arc};
use core::fmt;

/// A canonical identity: a DNS-like name in lower case without a trailing dot, or a URI (`spiffe://…`).
/// Cheap to clone; equality is byte equality of the canonical form.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    text: Arc<str>,
    kind: Kind,
}

/// Which form of SAN carries an identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// DNS SAN.
    Dns,
    /// URI SAN.
    Uri,
}

/// Why a text is no identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidIdentity {
    /// Nothing there.
    #[error("empty")]
    Empty,
    /// Longer than 253 bytes (DNS) or 2048 bytes (URI).
    #[error("too long")]
    TooLong,
    /// A byte that no DNS name or URI may hold (NUL, space, control, wildcard `*`, non-ASCII).
    #[error("byte {0:#04x} is not allowed in a name")]
    Byte(u8),
    /// An empty label or one over 63 bytes.
    #[error("a label is empty or longer than 63 bytes")]
    Label,
}

impl Identity {
    /// Reads a DNS-like name or, if it contains `://`, a URI.
    pub fn parse(text: &str) -> Result<Self, InvalidIdentity> {
        let _ = text;
        todo!()
    }

    /// The canonical text.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// DNS-like or URI.
    pub fn kind(&self) -> Kind {
        self.kind
    }
}

/// `<sa>.<ns>.serviceaccount.identity.<control_ns>.<trust_domain>`, contract 2.2.
pub fn workload(sa: &str, ns: &str, control_ns: &str, trust_domain: &str) -> Result<Identity, InvalidIdentity> {
    let _ = (sa, ns, control_ns, trust_domain);
    todo!()
}

/// The namespace named by a workload identity of this control plane, if it is one.
pub fn namespace_of<'a>(identity: &'a Identity, control_ns: &str, trust_domain: &str) -> Option<&'a str> {
    let _ = (identity, control_ns, trust_domain);
    todo!()
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[expect(dead_code, reason = "until parse is written")]
fn canonical(text: String, kind: Kind) -> Identity {
    Identity { text: text.into(), kind }
}

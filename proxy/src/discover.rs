//! What the control plane says of targets: one stream per target and process, shared by all workers, kept while
//! somebody uses it. The last good state is kept for ever while in use; losing the control plane changes nothing.

pub mod backend;
pub mod cache;
pub mod pod;
pub mod profiled;
pub mod resolve;
pub mod rules;
pub mod source;
pub mod target;

use crate::profile::Named;
pub use cache::{AskAgain, Cache, Full, Watch};
use remora_core::{
    endpoint::Endpoint,
    profile::Profile,
    route::{Membership, OutboundPolicy},
};
use std::{fmt, net::SocketAddr, sync::Arc};

/// What a lookup is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// An original destination.
    Addr(SocketAddr),
    /// `<svc>.<ns>.svc.<domain>:<port>`, which a request names in ingress mode.
    Name(Arc<str>),
}

impl Place {
    /// The port of either.
    pub fn port(&self) -> u16 {
        match self {
            Self::Addr(addr) => addr.port(),
            Self::Name(name) => name.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).unwrap_or(80),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Addr(addr) => addr.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

/// What is known of a key.
#[derive(Debug)]
pub enum Known<T> {
    /// The control plane has not answered yet.
    Pending,
    /// The latest answer.
    Is(Arc<T>),
    /// The control plane says that there is nothing, and why.
    Absent(Absence),
}

/// Why nothing is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Absence {
    /// `NotFound` or `Unimplemented`: another source may know.
    NotFound,
    /// `InvalidArgument` or `FailedPrecondition`: asking again does not help.
    Refused(Arc<str>),
}

impl<T> Clone for Known<T> {
    fn clone(&self) -> Self {
        match self {
            Self::Pending => Self::Pending,
            Self::Is(value) => Self::Is(value.clone()),
            Self::Absent(absence) => Self::Absent(absence.clone()),
        }
    }
}

/// An outbound policy, and what of it is not applied by this proxy.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    pub policy: OutboundPolicy,
    /// Of a pod's own address: the Services that it belongs to. The policy is that of the first one.
    pub services: Vec<Membership>,
    pub ignored: Vec<Arc<str>>,
}

/// A profile, and what of the control plane's latest word is not applied.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Profiled {
    pub profile: Arc<Profile>,
    pub ignored: Vec<Arc<str>>,
    /// Why the latest answer was refused; the profile is then the last good one, or the answer without its routes.
    pub refused: Option<Arc<str>>,
}

/// The lookups.
pub struct Discovery {
    pub profiles: Cache<Place, Profiled>,
    /// Of names that inbound requests are addressed to.
    pub names: Cache<Arc<str>, Named>,
    pub policies: Cache<Place, Policy>,
    pub endpoints: Cache<Arc<str>, Vec<Endpoint>>,
}

//! What the control plane says of targets: one stream per target and process, shared by all workers, kept while
//! somebody uses it. The last good state is kept for ever while in use; losing the control plane changes nothing.

pub mod backend;
pub mod cache;
pub mod profiled;
pub mod resolve;
pub mod rules;
pub mod source;
pub mod target;

use crate::profile::Named;
pub use cache::{AskAgain, Cache, Full, Watch};
use remora_core::{endpoint::Endpoint, profile::Profile, route::OutboundPolicy};
use std::{net::SocketAddr, sync::Arc};

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

/// The lookups by address and name.
pub struct Discovery {
    pub profiles: Cache<SocketAddr, Profiled>,
    /// Of names that inbound requests are addressed to.
    pub names: Cache<Arc<str>, Named>,
    pub policies: Cache<SocketAddr, Policy>,
    pub endpoints: Cache<Arc<str>, Vec<Endpoint>>,
}

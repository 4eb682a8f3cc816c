//! What `GetProfile` says of a target. Contract 3.2.

use crate::{endpoint::Endpoint, policy::ResourceRef};
use alloc::sync::Arc;

/// The profile of an address or name. Routes, retry budget and overrides of a ServiceProfile are read in the routes
/// issue; what a connection needs before them is here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profile {
    /// `<svc>.<ns>.svc.<domain>` of a Service.
    pub name: Option<Arc<str>>,
    /// The port carries bytes that must not be looked at.
    pub opaque: bool,
    /// The one endpoint, when the target is a pod's or an unknown address.
    pub endpoint: Option<Endpoint>,
    /// The Service behind the target.
    pub parent: Option<Arc<ResourceRef>>,
}

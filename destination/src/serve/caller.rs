//! Pure. Who asks, and what of its own words about itself is believed: only what its certificate says too.

use crate::{
    resources::Name,
    view::{Context, Settings},
};
use remora_core::identity::{Identity, namespace_of};
use std::net::SocketAddr;
use tonic::{Request, Status};

/// The other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its address.
    pub addr: SocketAddr,
    /// The identity that it has proven.
    pub identity: Option<Identity>,
    /// Is the connection one of loopback in plaintext, whose words are believed?
    pub plaintext: bool,
}

/// Who makes a request, as far as that is proven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// Somebody on this machine, over plaintext.
    Local,
    /// Somebody of the mesh.
    Meshed {
        /// Its identity.
        identity: Identity,
        /// The namespace in it, if it is a workload of this control plane.
        namespace: Option<String>,
    },
}

impl Caller {
    /// The caller of a request; `Unauthenticated` without a mesh certificate.
    pub fn of<T>(request: &Request<T>, settings: &Settings) -> Result<Self, Status> {
        let peer = request.extensions().get::<Peer>();
        match peer {
            Some(Peer { plaintext: true, .. }) => Ok(Self::Local),
            Some(Peer { identity: Some(identity), .. }) => {
                let namespace = namespace_of(identity, &settings.control_namespace, &settings.trust_domain);
                Ok(Self::Meshed { identity: identity.clone(), namespace: namespace.map(str::to_owned) })
            }
            _ => Err(Status::unauthenticated(
                "discovery and policy are served to the mesh only: the client presented no certificate",
            )),
        }
    }

    /// What of a context token is believed: a foreign namespace counts as none.
    pub fn believe(&self, context: Context) -> Context {
        match (self, &context.namespace) {
            (Self::Meshed { namespace: proven, .. }, Some(claimed)) if proven.as_ref() != Some(claimed) => {
                Context { namespace: None, ..context }
            }
            _ => context,
        }
    }

    /// May it ask about this workload? Only about those of its own namespace.
    pub fn may_ask_for(&self, workload: &Name) -> Result<(), Status> {
        let Self::Meshed { identity, namespace } = self else { return Ok(()) };
        if namespace.as_ref() == Some(&workload.namespace) {
            return Ok(());
        }
        Err(Status::permission_denied(format!(
            "{identity} may not ask as workload {workload} of another namespace"
        )))
    }
}

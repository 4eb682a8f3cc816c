//! Pure. Who asks, and what of its own words about itself is believed: only what its certificate says too.

use crate::{
    resources::Name,
    view::{Context, Settings},
};
use remora_core::identity::{Identity, namespace_of};
use remora_runtime::control::PeerInfo;
use tonic::{Request, Status};

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
        let Some(peer) = request.extensions().get::<PeerInfo>() else { return Err(nobody()) };
        Self::proven(peer.plaintext, peer.certificate.as_ref().map(|leaf| &leaf.identity), settings)
    }

    /// Whoever comes in plaintext is on this machine and believed; of everybody else the certificate speaks.
    fn proven(plaintext: bool, identity: Option<&Identity>, settings: &Settings) -> Result<Self, Status> {
        match identity {
            _ if plaintext => Ok(Self::Local),
            Some(identity) => {
                let namespace = namespace_of(identity, &settings.control_namespace, &settings.trust_domain);
                Ok(Self::Meshed { identity: identity.clone(), namespace: namespace.map(str::to_owned) })
            }
            None => Err(nobody()),
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

fn nobody() -> Status {
    Status::unauthenticated(
        "discovery and policy are served to the mesh only: the client presented no certificate",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::settings_for_tests;

    const SHOP: &str = "web.shop.serviceaccount.identity.remora.cluster.local";
    const OTHER_MESH: &str = "web.shop.serviceaccount.identity.linkerd.cluster.local";

    #[test]
    fn only_the_mesh_and_loopback_are_served() {
        assert_eq!(caller(true, None).unwrap(), Caller::Local);
        assert!(matches!(caller(false, Some(SHOP)).unwrap(), Caller::Meshed { .. }));
        assert_eq!(caller(false, None).unwrap_err().code(), tonic::Code::Unauthenticated);
        let nobody = Caller::of(&Request::new(()), &settings_for_tests());
        assert_eq!(nobody.unwrap_err().code(), tonic::Code::Unauthenticated);
    }

    #[test]
    fn a_workload_is_asked_for_from_its_own_namespace() {
        for (plaintext, identity, namespace, may) in [
            (true, None, "shop", true),
            (false, Some(SHOP), "shop", true),
            (false, Some(SHOP), "vault", false),
            (false, Some(SHOP), "", false),
            (false, Some(OTHER_MESH), "shop", false),
            (false, Some("spiffe://cluster.local/ns/shop"), "shop", false),
        ] {
            let answer = caller(plaintext, identity).unwrap().may_ask_for(&Name::new(namespace, "web-1"));
            assert_eq!(answer.is_ok(), may, "{identity:?} as {namespace}: {answer:?}");
            if let Err(status) = answer {
                assert_eq!(status.code(), tonic::Code::PermissionDenied);
                assert!(status.message().contains(identity.unwrap()) && status.message().contains("web-1"));
            }
        }
    }

    #[test]
    fn a_foreign_namespace_counts_as_none() {
        let context = |namespace: &str| Context {
            namespace: Some(namespace.to_owned()),
            node: Some("n".to_owned()),
            ..Context::default()
        };
        let shop = caller(false, Some(SHOP)).unwrap();
        assert_eq!(shop.believe(context("shop")), context("shop"));
        assert_eq!(shop.believe(context("vault")), Context { namespace: None, ..context("vault") });
        assert_eq!(Caller::Local.believe(context("vault")), context("vault"));
    }

    fn caller(plaintext: bool, identity: Option<&str>) -> Result<Caller, Status> {
        let identity = identity.map(|identity| Identity::parse(identity).unwrap());
        Caller::proven(plaintext, identity.as_ref(), &settings_for_tests())
    }
}

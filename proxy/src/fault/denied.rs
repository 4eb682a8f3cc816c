//! What a refused client is told, and its owner in the log: which server, which route, which policies.

use super::Fault;
use remora_core::policy::{Denial, Refused};

impl Fault {
    /// Which server, route and policies refuse the client, if that is what this is.
    pub fn refused(&self) -> Option<&Refused> {
        match self {
            Self::Denied { refused, .. } | Self::RateLimited { refused, .. } => Some(refused),
            _ => None,
        }
    }
}

/// What comes after the client's name.
pub(super) fn text(refused: &Refused, denial: &Denial) -> String {
    let Refused { server, route, policies } = refused;
    if *denial == Denial::Unauthorized && server.is_default(&server.name) {
        return format!("is not admitted by the default policy {}", server.name);
    }
    let route = route.as_ref().map(|route| format!(", {route}")).unwrap_or_default();
    let why = match denial {
        Denial::Unauthorized if policies.is_empty() => "no authorization admits it".into(),
        Denial::Unauthorized => format!("not admitted by {policies}"),
        Denial::NoRoute => "no route matches the request".into(),
        Denial::TwoPaths => "its path can be read in two ways that take different routes".into(),
        Denial::WrongProtocol => "the declared protocol of the port does not carry this".into(),
        Denial::Invalid(reason) => format!("the policy is invalid: {reason}"),
    };
    format!("may not use {server}{route}: {why}")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use remora_core::policy::{
        Authentication, Authorization, Refusal, ResourceRef, ServerPolicy, ServerProtocol,
    };
    use std::sync::Arc;

    #[test]
    fn a_denial_names_server_and_policies() {
        for (refusal, said) in [
            (
                fault("server", &["till", "owner"]),
                "x may not use server/web: not admitted by policy/till, policy/owner",
            ),
            (fault("server", &[]), "x may not use server/web: no authorization admits it"),
            (fault("default", &["web"]), "x is not admitted by the default policy web"),
        ] {
            assert_eq!(refusal.to_string(), said);
        }
    }

    pub(crate) fn fault(kind: &str, policies: &[&str]) -> Fault {
        let admit = |name: &&str| Authorization {
            meta: resource("Policy", name),
            networks: vec![],
            authentication: Authentication::Unauthenticated,
        };
        let policy = ServerPolicy {
            meta: resource(kind, "web"),
            protocol: ServerProtocol::Opaque,
            authorizations: policies.iter().map(admit).collect(),
            rate_limits: None,
        };
        let refusal = Refusal { route: None, denial: Denial::Unauthorized };
        let refused = Arc::new(Refused::of(&policy, &refusal));
        Fault::Denied { client: "x".into(), refused, denial: refusal.denial }
    }

    pub(crate) fn resource(kind: &str, name: &str) -> Arc<ResourceRef> {
        Arc::new(ResourceRef { kind: kind.into(), name: name.into(), ..ResourceRef::default() })
    }
}

//! What a refused client met, by name: for logs, metrics and answers.

use super::{Denial, Refusal, ResourceRef, ServerPolicy, routes};
use alloc::{string::String, sync::Arc};
use core::fmt::{self, Write as _};

/// Most policies that are named; how many more there are is said.
const NAMED: usize = 8;

/// The server, route and policies by which a client is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The Server, or the default policy.
    pub server: Arc<ResourceRef>,
    /// The route that the request matches; not the one that every server without routes has.
    pub route: Option<Arc<ResourceRef>>,
    /// Those that were asked and do not admit the client, in their order and at most 8; empty where none was asked.
    pub policies: Arc<str>,
}

impl Refused {
    /// Of a client that the policy refuses so.
    pub fn of(policy: &ServerPolicy, Refusal { route, denial }: &Refusal) -> Self {
        let matched = route.and_then(|index| routes(policy).get(index));
        let own = matched.into_iter().flat_map(|route| route.authorizations.iter());
        let asked = own.chain(policy.authorizations.iter());
        let asked = (*denial == Denial::Unauthorized).then_some(asked).into_iter().flatten();
        let route = matched.map(|matched| &matched.route.meta).filter(|meta| !meta.is_default("default"));
        Self {
            server: policy.meta.clone(),
            route: route.cloned(),
            policies: listed(asked.map(|authorization| &*authorization.meta)).into(),
        }
    }

    /// Of a client that asks more often than a policy of the server allows.
    pub fn by_rate(server: &Arc<ResourceRef>, limit: &ResourceRef) -> Self {
        Self { server: server.clone(), route: None, policies: listed([limit].into_iter()).into() }
    }
}

/// `server=server/web; route=httproute/admin; policies=authorizationpolicy/till, default/all-authenticated`
impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "server={}", self.server)?;
        if let Some(route) = &self.route {
            write!(f, "; route={route}")?;
        }
        if self.policies.is_empty() { Ok(()) } else { write!(f, "; policies={}", self.policies) }
    }
}

/// `kind/name`, the kind in lower case, as `kubectl` prints it.
impl fmt::Display for ResourceRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for letter in self.kind.chars() {
            f.write_char(letter.to_ascii_lowercase())?;
        }
        write!(f, "/{}", self.name)
    }
}

#[expect(single_use_lifetimes, reason = "`impl Trait` cannot elide it in stable Rust")]
fn listed<'a>(mut policies: impl Iterator<Item = &'a ResourceRef>) -> String {
    let mut list = String::new();
    for (nth, policy) in policies.by_ref().take(NAMED).enumerate() {
        let comma = if nth > 0 { ", " } else { "" };
        // Writing to a string does not fail.
        let _ = write!(list, "{comma}{policy}");
    }
    let more = policies.count();
    if more > 0 {
        let _ = write!(list, " and {more} more");
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        policy::{Authentication, Authorization, Authorizations, InboundRoute, ServerProtocol},
        route::HttpRoute,
    };
    use alloc::{format, string::ToString, vec, vec::Vec};

    #[test]
    fn a_refusal_names_server_route_and_policies() {
        let policy = policy("server", "web", &["till"], "admin", &["owner"]);
        let by = refused(&policy, Some(0), Denial::Unauthorized);
        let said = "server=server/web; route=httproute/admin; policies=authorizationpolicy/owner, authorizationpolicy/till";
        assert_eq!(by.to_string(), said);
        let unmatched = refused(&policy, None, Denial::NoRoute);
        assert_eq!(unmatched.to_string(), "server=server/web", "nobody was asked");
    }

    #[test]
    fn the_route_of_servers_without_routes_is_not_named() {
        let mut policy = policy("default", "deny", &[], "default", &[]);
        let ServerProtocol::Http1 { routes } = &mut policy.protocol else { panic!("{policy:?}") };
        routes[0].route.meta = Arc::new(ResourceRef::default_kind("default"));
        assert_eq!(refused(&policy, Some(0), Denial::Unauthorized).to_string(), "server=default/deny");
    }

    #[test]
    fn a_long_list_is_cut_and_says_so() {
        let names: Vec<_> = (0..20).map(|number| format!("p{number}")).collect();
        let names: Vec<&str> = names.iter().map(|name| &**name).collect();
        let by = refused(&policy("server", "web", &names, "r", &[]), None, Denial::Unauthorized);
        assert!(by.policies.starts_with("authorizationpolicy/p0, authorizationpolicy/p1, "));
        assert!(by.policies.ends_with(", authorizationpolicy/p7 and 12 more"), "{}", by.policies);
    }

    fn refused(policy: &ServerPolicy, route: Option<usize>, denial: Denial) -> Refused {
        Refused::of(policy, &Refusal { route, denial })
    }

    fn policy(kind: &str, name: &str, policies: &[&str], route: &str, own: &[&str]) -> ServerPolicy {
        let meta = |kind: &str, name: &str| {
            Arc::new(ResourceRef { kind: kind.into(), name: name.into(), ..ResourceRef::default() })
        };
        let admit = |names: &[&str]| {
            let admit = |name: &&str| Authorization {
                meta: meta("authorizationpolicy", name),
                networks: Vec::new(),
                authentication: Authentication::Unauthenticated,
            };
            names.iter().map(admit).collect::<Authorizations>()
        };
        let route = HttpRoute { meta: meta("HTTPRoute", route), hosts: Vec::new(), rules: Vec::new() };
        let route = InboundRoute { route, filters: Vec::new(), authorizations: admit(own) };
        ServerPolicy {
            meta: meta(kind, name),
            protocol: ServerProtocol::Http1 { routes: vec![route] },
            authorizations: admit(policies),
            rate_limits: None,
        }
    }
}

//! Pure. What an operator has written, in the loads with routes: 200 routes of mixed matches and 50 authorisations, the
//! same for Envoy and for Remora; and routes by the thousand that change under load.
//!
//! The request is that of the 109th route; of the authorisations the last one admits the client.

use serde_json::{Value, json};

use super::verdict::Lane;

/// Routes that the loads with routes have.
pub const ROUTES: usize = 200;
/// Authorisations that they have.
pub const AUTHORIZATIONS: usize = 50;
/// What is asked for: a path below the prefix of a route in the middle.
pub const PATH: &str = "/api/items/108/detail";
/// The ports with routes and authorisations: HTTP/1.1, HTTP/2.
pub const PORTS: [u16; 2] = [82, 8082];
/// The port of the Service whose routes change; nginx serves it on port 80.
pub const CHANGING: u16 = 84;

/// Rules that one route object may have (Gateway API, HTTPRouteSpec).
const RULES: usize = 16;
const DOMAIN: &str = "bench.serviceaccount.identity.remora.cluster.local";

/// What a route asks of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Match {
    Exact(String),
    Prefix(String),
    Regex(String),
    /// A value of `x-tenant`, anywhere below `/api`.
    Header(String),
    /// PUT below a prefix.
    Put(String),
    /// A value of `shard`, below `/api/search`.
    Query(String),
}

/// The `nth` route. Of twenty, eight are exact paths, six prefixes, two regular expressions, two headers, one is a method
/// and one a query parameter.
fn route(nth: usize) -> Match {
    match nth % 20 {
        0..8 => Match::Exact(format!("/api/orders/{nth}")),
        8..14 => Match::Prefix(format!("/api/items/{nth}")),
        14 | 15 => Match::Regex(format!("/api/users/[0-9]+/{nth}(/.*)?")),
        16 | 17 => Match::Header(format!("tenant-{nth}")),
        18 => Match::Put(format!("/api/carts/{nth}")),
        _ => Match::Query(format!("{nth}")),
    }
}

impl Match {
    fn in_gateway_api(&self) -> Value {
        let path = |kind: &str, value: &str| json!({"type": kind, "value": value});
        match self {
            Self::Exact(exact) => json!({"path": path("Exact", exact)}),
            Self::Prefix(prefix) => json!({"path": path("PathPrefix", prefix)}),
            Self::Regex(regex) => json!({"path": path("RegularExpression", regex)}),
            Self::Header(value) => json!({
                "path": path("PathPrefix", "/api"), "headers": [{"name": "x-tenant", "value": value}],
            }),
            Self::Put(prefix) => json!({"path": path("PathPrefix", prefix), "method": "PUT"}),
            Self::Query(value) => json!({
                "path": path("PathPrefix", "/api/search"), "queryParams": [{"name": "shard", "value": value}],
            }),
        }
    }

    fn in_envoy(&self) -> Value {
        match self {
            Self::Exact(exact) => json!({"path": exact}),
            Self::Prefix(prefix) => json!({"path_separated_prefix": prefix}),
            Self::Regex(regex) => json!({"safe_regex": {"regex": regex}}),
            Self::Header(value) => json!({
                "path_separated_prefix": "/api",
                "headers": [{"name": "x-tenant", "string_match": {"exact": value}}],
            }),
            Self::Put(prefix) => json!({
                "path_separated_prefix": prefix,
                "headers": [{"name": ":method", "string_match": {"exact": "PUT"}}],
            }),
            Self::Query(value) => json!({
                "path_separated_prefix": "/api/search",
                "query_parameters": [{"name": "shard", "string_match": {"exact": value}}],
            }),
        }
    }
}

/// The routes in Envoy's words, all to one cluster.
pub fn in_envoy(cluster: &str) -> Value {
    let route =
        |nth: usize| json!({"match": route(nth).in_envoy(), "route": {"cluster": cluster, "timeout": "0s"}});
    (0..ROUTES).map(route).collect()
}

/// The authorisations in Envoy's words: policies of its RBAC filter, by name.
pub fn rbac() -> Value {
    let policy = |nth: usize| {
        let principal = json!({"authenticated": {"principal_name": {"exact": caller(nth, Lane::Envoy)}}});
        (policy_name(nth), json!({"permissions": [{"any": true}], "principals": [principal]}))
    };
    (0..AUTHORIZATIONS).map(policy).collect::<serde_json::Map<_, _>>().into()
}

/// Routes and authorisations of a lane, as an operator applies them.
pub fn objects(lane: Lane) -> Vec<Value> {
    let name = lane.name();
    let routes = PORTS.into_iter().flat_map(|port| {
        let rules: Vec<Value> = (0..ROUTES).map(|nth| route(nth).in_gateway_api()).collect();
        route_objects(&format!("routed-{port}-{name}"), &format!("server-{name}"), port, &rules)
    });
    let servers = PORTS.into_iter().map(|port| {
        json!({
            "apiVersion": "policy.linkerd.io/v1beta3", "kind": "Server",
            "metadata": {"name": format!("routed-{port}-{name}"), "namespace": "bench"},
            "spec": {
                "podSelector": {"matchLabels": {"app": format!("server-{name}")}},
                "port": port, "proxyProtocol": "unknown", "accessPolicy": "deny",
            },
        })
    });
    let identities = (0..AUTHORIZATIONS).map(|nth| {
        json!({
            "apiVersion": "policy.linkerd.io/v1alpha1", "kind": "MeshTLSAuthentication",
            "metadata": {"name": format!("{}-{name}", policy_name(nth)), "namespace": "bench"},
            "spec": {"identities": [caller(nth, lane)]},
        })
    });
    let policies = PORTS.into_iter().flat_map(|port| (0..AUTHORIZATIONS).map(move |nth| (port, nth)));
    let policies = policies.map(|(port, nth)| {
        json!({
            "apiVersion": "policy.linkerd.io/v1alpha1", "kind": "AuthorizationPolicy",
            "metadata": {"name": format!("{}-{port}-{name}", policy_name(nth)), "namespace": "bench"},
            "spec": {
                "targetRef": {
                    "group": "policy.linkerd.io", "kind": "Server", "name": format!("routed-{port}-{name}"),
                },
                "requiredAuthenticationRefs": [{
                    "group": "policy.linkerd.io", "kind": "MeshTLSAuthentication",
                    "name": format!("{}-{name}", policy_name(nth)),
                }],
            },
        })
    });
    routes.chain(servers).chain(identities).chain(policies).collect()
}

/// So many routes of the Service whose routes change. Every generation differs in every route but the one that the request
/// takes.
pub fn changing(lane: Lane, routes: usize, generation: usize) -> Vec<Value> {
    let name = format!("changing-{}", lane.name());
    let rules: Vec<Value> = (0..routes)
        .map(|nth| match route(nth) {
            Match::Prefix(prefix) if PATH.starts_with(&format!("{prefix}/")) => Match::Prefix(prefix),
            Match::Exact(path) => Match::Exact(format!("{path}-{generation}")),
            Match::Prefix(path) => Match::Prefix(format!("{path}-{generation}")),
            Match::Regex(pattern) => Match::Regex(format!("{pattern}-{generation}")),
            Match::Header(value) => Match::Header(format!("{value}-{generation}")),
            Match::Put(path) => Match::Put(format!("{path}-{generation}")),
            Match::Query(value) => Match::Query(format!("{value}-{generation}")),
        })
        .map(|one| one.in_gateway_api())
        .collect();
    route_objects(&name, &name, CHANGING, &rules)
}

/// Route objects whose rules have one match each, and send to their parent.
fn route_objects(name: &str, service: &str, port: u16, matches: &[Value]) -> Vec<Value> {
    let objects = matches.chunks(RULES).enumerate().map(|(nth, matches)| {
        let backend = json!({"name": service, "port": port});
        let rules: Vec<Value> =
            matches.iter().map(|one| json!({"matches": [one], "backendRefs": [backend]})).collect();
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
            "metadata": {"name": format!("{name}-{nth:02}"), "namespace": "bench"},
            "spec": {
                "parentRefs": [{"group": "", "kind": "Service", "name": service, "port": port}],
                "rules": rules,
            },
        })
    });
    objects.collect()
}

/// Names whose order is that of their numbers: Envoy looks at its policies in the order of their names.
fn policy_name(nth: usize) -> String {
    format!("caller-{nth:02}")
}

/// Whom an authorisation admits. Only the last one is the client of the lane.
fn caller(nth: usize, lane: Lane) -> String {
    if nth + 1 == AUTHORIZATIONS {
        format!("client-{}.{DOMAIN}", lane.name())
    } else {
        format!("{}.{DOMAIN}", policy_name(nth))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_route_is_that_of_the_request() {
        let is_taken = |nth: &usize| match route(*nth) {
            Match::Exact(exact) => exact == PATH,
            Match::Prefix(prefix) => PATH.starts_with(&format!("{prefix}/")),
            // These match other paths, or need more than a GET of a path.
            Match::Regex(_) | Match::Header(_) | Match::Put(_) | Match::Query(_) => false,
        };
        assert_eq!((0..ROUTES).filter(is_taken).collect::<Vec<_>>(), [108]);
    }

    #[test]
    fn both_have_as_many_routes_and_authorisations() {
        let objects = objects(Lane::Remora);
        let of = |kind: &str| objects.iter().filter(|object| object["kind"] == kind).collect::<Vec<_>>();
        let rules: usize =
            of("HTTPRoute").iter().map(|route| route["spec"]["rules"].as_array().unwrap().len()).sum();
        assert_eq!(in_envoy("http").as_array().unwrap().len() * PORTS.len(), rules);
        assert_eq!(rbac().as_object().unwrap().len() * PORTS.len(), of("AuthorizationPolicy").len());
        assert_eq!((of("Server").len(), of("MeshTLSAuthentication").len()), (2, AUTHORIZATIONS));
    }

    #[test]
    fn a_generation_keeps_the_route_of_the_request_and_no_other() {
        let rules = |generation: usize| -> Vec<String> {
            let objects = changing(Lane::Remora, 1000, generation);
            let of = |object: &Value| object["spec"]["rules"].as_array().unwrap().clone();
            objects.iter().flat_map(of).map(|rule| rule["matches"].to_string()).collect()
        };
        let (before, after) = (rules(1), rules(2));
        assert_eq!((before.len(), after.len()), (1000, 1000));
        let kept: Vec<&String> = before.iter().zip(&after).filter(|(a, b)| a == b).map(|(a, _)| a).collect();
        assert_eq!(kept.len(), 1);
        assert!(kept[0].contains("/api/items/108\""), "{kept:?}");
    }
}

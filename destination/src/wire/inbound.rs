//! Pure. Inbound policies on the wire. Contract 3.4.

use super::{
    default_ref,
    outbound::{grpc, http, parts},
    seconds,
};
use crate::{
    resources::{
        Name, PolicyKind,
        policy::ServerProtocol,
        routes::{Filter, GrpcMatch, HttpMatch, Match, POLICY_GROUP, PathMatch},
    },
    view::{Admission, Authority, HeldInbound, HeldRateLimit, Inbound, ServerRef, Settings},
};
use ipnet::IpNet;
use linkerd2_proxy_api::{
    grpc_route::GrpcFailureInjector,
    http_route::{HttpFailureInjector, HttpRouteMatch},
    inbound as api, meta,
};
#[cfg(planted)]
use remora_core::planted;
use remora_core::{
    identity::Identity,
    matching::NetworkMatch,
    policy::{Authentication, DefaultPolicy},
};
use std::{collections::HashMap, num::NonZeroU32};

/// How long a proxy looks for a protocol.
const DETECT_TIMEOUT: i64 = 10;

/// The policy of a port.
///
/// Under `deny` a port that is not opaque is still `Detect`, without authorizations: nobody gets in, but the probe
/// route with its own authorization lets kubelet find the pod alive.
pub fn server(inbound: &Inbound, settings: &Settings) -> api::Server {
    use api::proxy_protocol::{Detect, Grpc, Http1, Http2, Kind, Opaque, Tls};
    let routes = || http_routes(inbound, settings);
    let local_rate_limit = inbound.rate_limit.as_ref().map(rate_limit);
    let kind = match inbound.protocol {
        ServerProtocol::Detect => Kind::Detect(Detect {
            timeout: Some(seconds(DETECT_TIMEOUT)),
            http_routes: routes(),
            http_local_rate_limit: local_rate_limit,
        }),
        ServerProtocol::Http1 => Kind::Http1(Http1 { routes: routes(), local_rate_limit }),
        ServerProtocol::Http2 => Kind::Http2(Http2 { routes: routes(), local_rate_limit }),
        ServerProtocol::Grpc => Kind::Grpc(Grpc { routes: grpc_routes(inbound) }),
        ServerProtocol::Opaque => Kind::Opaque(Opaque {}),
        ServerProtocol::Tls => Kind::Tls(Tls {}),
    };
    api::Server {
        protocol: Some(api::ProxyProtocol { kind: Some(kind) }),
        server_ips: Vec::new(),
        authorizations: inbound.authorizations.iter().map(authz).collect(),
        labels: match &inbound.server {
            ServerRef::Default(policy) => labels("", "default", policy.as_str()),
            ServerRef::Server(name) => labels(POLICY_GROUP, "server", &name.name),
        },
    }
}

/// The probes' route comes first: of two matches that are equally good it wins.
fn http_routes(inbound: &Inbound, settings: &Settings) -> Vec<api::HttpRoute> {
    let mut routes: Vec<_> = probes(inbound, &settings.probe_networks).into_iter().collect();
    routes.extend(inbound.routes.iter().map(http_route));
    if inbound.routes.is_empty() {
        routes.push(of_default("default", &[HttpMatch::every()], Vec::new()));
    }
    routes
}

/// GETs of exactly these paths, whatever their query. What an operator's match on the very path asks for is the
/// operator's: where there is one, the path is written as a regular expression, which is no better than any other match of
/// the whole path. As an exact one with a method it would come before whatever names the path and no method.
fn probes(inbound: &Inbound, networks: &[IpNet]) -> Option<api::HttpRoute> {
    if inbound.probes.is_empty() || networks.is_empty() {
        return None;
    }
    #[cfg(planted)]
    if planted::makes(planted::Mistake::ProbesNeedPermission) && !inbound.routes.is_empty() {
        return None;
    }
    let get = |path: &String| {
        let pattern = || PathMatch::Regex(regex::escape(path));
        let path = if inbound.names(path) { pattern() } else { PathMatch::Exact(path.clone()) };
        HttpMatch { path, method: Some("GET"), ..HttpMatch::every() }
    };
    let networks: Vec<_> =
        networks.iter().map(|net| NetworkMatch { net: *net, except: Vec::new() }).collect();
    let authorization = api::Authz {
        networks: networks.iter().map(network).collect(),
        authentication: Some(authentication(&Authentication::Unauthenticated)),
        labels: labels("", "default", "probe"),
        metadata: Some(default_ref("probe")),
    };
    let matches: Vec<_> = inbound.probes.iter().map(get).collect();
    Some(of_default("probe", &matches, vec![authorization]))
}

fn of_default(name: &str, matches: &[HttpMatch], authorizations: Vec<api::Authz>) -> api::HttpRoute {
    let matches = matches.iter().map(http::http_match).collect();
    api::HttpRoute {
        metadata: Some(default_ref(name)),
        hosts: Vec::new(),
        authorizations,
        rules: vec![api::http_route::Rule { matches, filters: Vec::new() }],
    }
}

fn http_route(route: &HeldInbound) -> api::HttpRoute {
    use api::http_route::{Filter as WireFilter, Rule, filter::Kind};
    let rules = route.spec.rules.iter().zip(&route.failures).map(|(rule, failure)| {
        let matches = rule.matches.iter().filter_map(|wanted| match wanted {
            Match::Http(wanted) => Some(http::http_match(wanted)),
            Match::Grpc(_) => None,
        });
        let filters: Vec<Kind> = match failure {
            Some(why) => {
                let (status, message) = (http::FAILED, why.clone());
                vec![Kind::FailureInjector(HttpFailureInjector { status, message, ratio: None })]
            }
            None => rule.filters.iter().filter_map(http_filter).collect(),
        };
        let filters = filters.into_iter().map(|kind| WireFilter { kind: Some(kind) });
        Rule { matches: matches.collect::<Vec<HttpRouteMatch>>(), filters: filters.collect() }
    });
    api::HttpRoute {
        metadata: Some(parts::route_ref(&route.id)),
        hosts: route.spec.hostnames.iter().map(parts::host).collect(),
        authorizations: route.authorizations.iter().map(authz).collect(),
        rules: rules.collect(),
    }
}

/// Those that the API has; a rule with others has been made one that fails.
fn http_filter(filter: &Filter) -> Option<api::http_route::filter::Kind> {
    use api::http_route::filter::Kind;
    match filter {
        Filter::RequestHeaders(edit) => Some(Kind::RequestHeaderModifier(parts::request_headers(edit))),
        Filter::Redirect(redirect) => Some(Kind::Redirect(http::redirect(redirect))),
        Filter::ResponseHeaders(_) | Filter::Rewrite(_) | Filter::Mirror(_) | Filter::Other(_) => None,
    }
}

fn grpc_routes(inbound: &Inbound) -> Vec<api::GrpcRoute> {
    if inbound.routes.is_empty() {
        let every = Match::Grpc(GrpcMatch::default());
        let matches = grpc::grpc_match(&every).into_iter().collect();
        return vec![api::GrpcRoute {
            metadata: Some(default_ref("default")),
            rules: vec![api::grpc_route::Rule { matches, filters: Vec::new() }],
            ..api::GrpcRoute::default()
        }];
    }
    inbound.routes.iter().map(grpc_route).collect()
}

fn grpc_route(route: &HeldInbound) -> api::GrpcRoute {
    use api::grpc_route::{Filter as WireFilter, Rule, filter::Kind};
    let rules = route.spec.rules.iter().zip(&route.failures).filter_map(|(rule, failure)| {
        let matches: Vec<_> = rule.matches.iter().filter_map(grpc::grpc_match).collect();
        // Without matches it would match everything, and none of its own can be said.
        if matches.is_empty() {
            return None;
        }
        let filters: Vec<Kind> = match failure {
            Some(why) => {
                let (code, message) = (grpc::UNIMPLEMENTED, why.clone());
                vec![Kind::FailureInjector(GrpcFailureInjector { code, message, ratio: None })]
            }
            None => rule.filters.iter().filter_map(grpc_filter).collect(),
        };
        let filters = filters.into_iter().map(|kind| WireFilter { kind: Some(kind) }).collect();
        Some(Rule { matches, filters })
    });
    api::GrpcRoute {
        metadata: Some(parts::route_ref(&route.id)),
        hosts: route.spec.hostnames.iter().map(parts::host).collect(),
        authorizations: route.authorizations.iter().map(authz).collect(),
        rules: rules.collect(),
    }
}

fn grpc_filter(filter: &Filter) -> Option<api::grpc_route::filter::Kind> {
    use api::grpc_route::filter::Kind;
    match filter {
        Filter::RequestHeaders(edit) => Some(Kind::RequestHeaderModifier(parts::request_headers(edit))),
        _ => None,
    }
}

fn authz(admission: &Admission) -> api::Authz {
    let (labels, metadata) = match &admission.by {
        Authority::Default(policy) => by_default(*policy),
        Authority::ServerAuthorization(name) => by_resource("serverauthorization", name),
        Authority::AuthorizationPolicy(name) => by_resource("authorizationpolicy", name),
    };
    api::Authz {
        networks: admission.networks.iter().map(network).collect(),
        authentication: Some(authentication(&admission.clients)),
        labels,
        metadata: Some(metadata),
    }
}

type Named = (HashMap<String, String>, meta::Metadata);

fn by_default(policy: DefaultPolicy) -> Named {
    (labels("", "default", policy.as_str()), default_ref(policy.as_str()))
}

/// Kinds are in lower case here, as Linkerd's metrics have them.
fn by_resource(kind: &str, name: &Name) -> Named {
    (labels(POLICY_GROUP, kind, &name.name), resource(kind, name))
}

fn resource(kind: &str, name: &Name) -> meta::Metadata {
    meta::Metadata {
        kind: Some(meta::metadata::Kind::Resource(meta::Resource {
            group: POLICY_GROUP.to_owned(),
            kind: kind.to_owned(),
            name: name.name.clone(),
            namespace: name.namespace.clone(),
            ..meta::Resource::default()
        })),
    }
}

fn network(network: &NetworkMatch) -> api::Network {
    api::Network {
        net: Some(network.net.into()),
        except: network.except.iter().map(|hole| (*hole).into()).collect(),
    }
}

fn authentication(clients: &Authentication) -> api::Authn {
    use api::authn::{
        Permit, PermitMeshTls, PermitUnauthenticated,
        permit_mesh_tls::{Clients, PermitClientIdentities},
    };
    let mesh_tls = |clients| Permit::MeshTls(PermitMeshTls { clients: Some(clients) });
    let permit = match clients {
        Authentication::Unauthenticated => Permit::Unauthenticated(PermitUnauthenticated {}),
        Authentication::TlsUnauthenticated => mesh_tls(Clients::Unauthenticated(PermitUnauthenticated {})),
        Authentication::TlsAuthenticated { identities, suffixes } => {
            let suffix = |labels: &Vec<String>| api::IdentitySuffix { parts: labels.clone() };
            mesh_tls(Clients::Identities(PermitClientIdentities {
                identities: identities.iter().map(identity).collect(),
                // A suffix without parts is every identity.
                suffixes: suffixes.iter().map(|one| suffix(&one.labels)).collect(),
            }))
        }
    };
    api::Authn { permit: Some(permit) }
}

fn identity(identity: &Identity) -> api::Identity {
    api::Identity { name: identity.as_str().to_owned() }
}

fn rate_limit(limit: &HeldRateLimit) -> api::HttpLocalRateLimit {
    use api::http_local_rate_limit::{Limit, Override, r#override::ClientIdentities};
    let per_second = |limit: NonZeroU32| Limit { requests_per_second: limit.get() };
    let overrides = limit.overrides.iter().map(|(limit, clients)| Override {
        limit: Some(per_second(*limit)),
        clients: Some(ClientIdentities { identities: clients.iter().map(identity).collect() }),
    });
    api::HttpLocalRateLimit {
        metadata: Some(resource(PolicyKind::RateLimit.as_str(), &limit.name)),
        total: limit.total.map(per_second),
        identity: limit.identity.map(per_second),
        overrides: overrides.collect(),
    }
}

fn labels(group: &str, kind: &str, name: &str) -> HashMap<String, String> {
    [("group", group), ("kind", kind), ("name", name)]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
}

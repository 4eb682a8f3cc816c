//! `InboundServerPolicies.WatchPort`: the policy of one port. Contract 3.4.

use super::{Converted, Invalid, Reading, filters, parts, rate, routes};
use linkerd2_proxy_api::inbound as wire;
use remora_core::{
    matching::SuffixMatch,
    policy::{
        Authentication, Authorization, Authorizations, InboundRoute, ResourceRef, ServerPolicy,
        ServerProtocol,
    },
    rate::RateLimits,
    route::{HttpRoute, HttpRule},
};
use std::{collections::HashMap, sync::Arc};

/// Reads a policy. One that cannot be understood becomes [`ServerProtocol::Invalid`] with the reason, which admits nobody:
/// a rule that is not understood must not be a rule that is not there.
pub fn server_policy(wire: wire::Server) -> Converted<ServerPolicy> {
    let mut reading = Reading::new();
    let meta = Arc::new(from_labels(&wire.labels));
    let policy = match rules(&mut reading, wire) {
        Ok((protocol, authorizations, rate_limits)) => {
            ServerPolicy { meta, protocol, authorizations, rate_limits }
        }
        Err(invalid) => ServerPolicy {
            meta,
            protocol: ServerProtocol::Invalid(invalid.to_string().into()),
            authorizations: Authorizations::default(),
            rate_limits: None,
        },
    };
    reading.finish(policy)
}

type Rules = (ServerProtocol, Authorizations, Option<Arc<RateLimits>>);

fn rules(reading: &mut Reading, wire: wire::Server) -> Result<Rules, Invalid> {
    let kind = wire.protocol.and_then(|protocol| protocol.kind);
    let (protocol, limits) = reading.required("protocol", kind, protocol)?;
    Ok((protocol, authorizations(reading, wire.authorizations)?, limits))
}

fn protocol(
    reading: &mut Reading,
    wire: wire::proxy_protocol::Kind,
) -> Result<(ServerProtocol, Option<Arc<RateLimits>>), Invalid> {
    use wire::proxy_protocol::Kind;
    let mut limits = None;
    let protocol = match wire {
        Kind::Detect(detect) => {
            limits = reading.at("detect.http_local_rate_limit", |reading| {
                rate::limits(reading, detect.http_local_rate_limit)
            })?;
            ServerProtocol::Detect {
                timeout: reading
                    .required("detect.timeout", detect.timeout, |_, timeout| parts::duration(timeout))?,
                routes: reading.each("detect.http_routes", detect.http_routes, http_route)?,
            }
        }
        Kind::Http1(http) => {
            limits = reading
                .at("http1.local_rate_limit", |reading| rate::limits(reading, http.local_rate_limit))?;
            ServerProtocol::Http1 { routes: reading.each("http1.routes", http.routes, http_route)? }
        }
        Kind::Http2(http) => {
            limits = reading
                .at("http2.local_rate_limit", |reading| rate::limits(reading, http.local_rate_limit))?;
            ServerProtocol::Http2 { routes: reading.each("http2.routes", http.routes, http_route)? }
        }
        Kind::Grpc(grpc) => {
            ServerProtocol::Grpc { routes: reading.each("grpc.routes", grpc.routes, grpc_route)? }
        }
        Kind::Opaque(_) => ServerProtocol::Opaque,
        Kind::Tls(_) => ServerProtocol::Tls,
    };
    Ok((protocol, limits))
}

fn http_route(reading: &mut Reading, wire: wire::HttpRoute) -> Result<InboundRoute, Invalid> {
    let (meta, hosts) = routes::head(reading, wire.metadata, wire.hosts)?;
    let authorizations = authorizations(reading, wire.authorizations)?;
    let rules = reading.each("rules", wire.rules, |reading, rule| {
        let matches = reading.each("matches", rule.matches, routes::http_match)?;
        Ok((HttpRule { matches }, filters::inbound_http(reading, rule.filters)?))
    })?;
    let (rules, filters) = rules.into_iter().unzip();
    Ok(InboundRoute { route: HttpRoute { meta, hosts, rules }, filters, authorizations })
}

fn grpc_route(reading: &mut Reading, wire: wire::GrpcRoute) -> Result<InboundRoute, Invalid> {
    let (meta, hosts) = routes::head(reading, wire.metadata, wire.hosts)?;
    let authorizations = authorizations(reading, wire.authorizations)?;
    let rules = reading.each("rules", wire.rules, |reading, rule| {
        let matches = reading.each("matches", rule.matches, routes::grpc_match)?;
        Ok((HttpRule { matches }, filters::inbound_grpc(reading, rule.filters)?))
    })?;
    let (rules, filters) = rules.into_iter().unzip();
    Ok(InboundRoute { route: HttpRoute { meta, hosts, rules }, filters, authorizations })
}

fn authorizations(reading: &mut Reading, wire: Vec<wire::Authz>) -> Result<Authorizations, Invalid> {
    reading.each("authorizations", wire, authorization).map(Authorizations::from)
}

fn authorization(reading: &mut Reading, wire: wire::Authz) -> Result<Authorization, Invalid> {
    let meta = match wire.metadata {
        Some(metadata) => parts::resource(Some(metadata))?,
        None => Arc::new(from_labels(&wire.labels)),
    };
    let networks = reading
        .each("networks", wire.networks, |reading, wire| parts::network(reading, wire.net, wire.except))?;
    if networks.is_empty() {
        return Err(Invalid::new("empty").within("networks"));
    }
    let permit = wire.authentication.and_then(|authentication| authentication.permit);
    Ok(Authorization {
        meta,
        networks,
        authentication: reading.required("authentication", permit, permitted)?,
    })
}

fn permitted(reading: &mut Reading, wire: wire::authn::Permit) -> Result<Authentication, Invalid> {
    use wire::authn::{Permit, permit_mesh_tls::Clients};
    let mesh_tls = match wire {
        Permit::Unauthenticated(_) => return Ok(Authentication::Unauthenticated),
        Permit::MeshTls(mesh_tls) => mesh_tls,
    };
    reading.required("mesh_tls.clients", mesh_tls.clients, |reading, clients| match clients {
        Clients::Unauthenticated(_) => Ok(Authentication::TlsUnauthenticated),
        Clients::Identities(clients) => Ok(Authentication::TlsAuthenticated {
            identities: reading
                .each("identities", clients.identities, |_, wire| parts::identity(&wire.name))?,
            suffixes: reading.each("suffixes", clients.suffixes, |_, wire| suffix(wire.parts))?,
        }),
    })
}

/// No labels at all mean any DNS identity; an empty label means nothing.
fn suffix(labels: Vec<String>) -> Result<SuffixMatch, Invalid> {
    if labels.iter().any(|label| label.is_empty() || label.contains('.')) {
        return Err(Invalid::new("a label that is empty or has a dot"));
    }
    Ok(SuffixMatch { labels: labels.into_iter().map(|label| label.to_ascii_lowercase()).collect() })
}

/// The reference that labels `group`, `kind` and `name` give (servers, and authorizations of older controllers).
fn from_labels(labels: &HashMap<String, String>) -> ResourceRef {
    let label = |name: &str| labels.get(name).map(|value| parts::shown(value).into());
    ResourceRef {
        group: label("group").unwrap_or_default(),
        kind: label("kind").unwrap_or_else(|| "default".into()),
        name: label("name").unwrap_or_default(),
        ..ResourceRef::default()
    }
}

#[cfg(test)]
mod tests;

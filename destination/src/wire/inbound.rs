//! Pure. Inbound policies on the wire. Contract 3.4.

use super::{default_ref, seconds};
use crate::view::{Inbound, Settings};
use ipnet::IpNet;
use linkerd2_proxy_api::{
    http_route::{HttpRouteMatch, PathMatch, path_match},
    http_types::{HttpMethod, http_method},
    inbound as api,
};
use remora_core::policy::DefaultPolicy;
use std::collections::{BTreeSet, HashMap};

/// How long a proxy looks for a protocol.
const DETECT_TIMEOUT: i64 = 10;

/// The policy of a port.
///
/// Under `deny` a port that is not opaque is still `Detect`, without authorizations: nobody gets in, but the probe
/// route with its own authorization lets kubelet find the pod alive.
pub fn server(inbound: &Inbound, settings: &Settings) -> api::Server {
    use api::proxy_protocol::{Detect, Kind, Opaque};
    let kind = if inbound.opaque {
        Kind::Opaque(Opaque {})
    } else {
        Kind::Detect(Detect {
            timeout: Some(seconds(DETECT_TIMEOUT)),
            http_routes: routes(&inbound.probes, &settings.probe_networks),
            http_local_rate_limit: None,
        })
    };
    api::Server {
        protocol: Some(api::ProxyProtocol { kind: Some(kind) }),
        server_ips: Vec::new(),
        authorizations: authorization(inbound.policy, &settings.cluster_networks).into_iter().collect(),
        labels: labels(inbound.policy.as_str()),
    }
}

fn routes(probes: &BTreeSet<String>, networks: &[IpNet]) -> Vec<api::HttpRoute> {
    let everything = path(path_match::Kind::Prefix("/".to_owned()));
    let default = route(
        "default",
        vec![HttpRouteMatch { path: Some(everything), ..HttpRouteMatch::default() }],
        Vec::new(),
    );
    if probes.is_empty() {
        return vec![default];
    }
    let get = HttpMethod { r#type: Some(http_method::Type::Registered(http_method::Registered::Get.into())) };
    let matches = probes.iter().map(|probe| HttpRouteMatch {
        path: Some(path(path_match::Kind::Exact(probe.clone()))),
        method: Some(get.clone()),
        ..HttpRouteMatch::default()
    });
    let authorization =
        authz("probe", networks, api::authn::Permit::Unauthenticated(api::authn::PermitUnauthenticated {}));
    vec![default, route("probe", matches.collect(), vec![authorization])]
}

fn route(name: &str, matches: Vec<HttpRouteMatch>, authorizations: Vec<api::Authz>) -> api::HttpRoute {
    api::HttpRoute {
        metadata: Some(default_ref(name)),
        hosts: Vec::new(),
        authorizations,
        rules: vec![api::http_route::Rule { matches, filters: Vec::new() }],
    }
}

fn path(kind: path_match::Kind) -> PathMatch {
    PathMatch { kind: Some(kind) }
}

fn authorization(policy: DefaultPolicy, cluster_networks: &[IpNet]) -> Option<api::Authz> {
    use api::authn::{Permit, PermitMeshTls, PermitUnauthenticated, permit_mesh_tls};
    let everywhere: [IpNet; 2] = [ipnet::Ipv4Net::default().into(), ipnet::Ipv6Net::default().into()];
    let anybody = Permit::Unauthenticated(PermitUnauthenticated {});
    // A suffix without parts is every identity.
    let identities = permit_mesh_tls::PermitClientIdentities {
        identities: Vec::new(),
        suffixes: vec![api::IdentitySuffix { parts: Vec::new() }],
    };
    let meshed =
        Permit::MeshTls(PermitMeshTls { clients: Some(permit_mesh_tls::Clients::Identities(identities)) });
    let (networks, permit) = match policy {
        DefaultPolicy::AllUnauthenticated | DefaultPolicy::Audit => (&everywhere[..], anybody),
        DefaultPolicy::AllAuthenticated => (&everywhere[..], meshed),
        DefaultPolicy::ClusterUnauthenticated => (cluster_networks, anybody),
        DefaultPolicy::ClusterAuthenticated => (cluster_networks, meshed),
        DefaultPolicy::Deny => return None,
    };
    Some(authz(policy.as_str(), networks, permit))
}

fn authz(name: &str, networks: &[IpNet], permit: api::authn::Permit) -> api::Authz {
    let networks = networks.iter().map(|net| api::Network { net: Some((*net).into()), except: Vec::new() });
    api::Authz {
        networks: networks.collect(),
        authentication: Some(api::Authn { permit: Some(permit) }),
        labels: labels(name),
        metadata: Some(default_ref(name)),
    }
}

fn labels(name: &str) -> HashMap<String, String> {
    [("group", ""), ("kind", "default"), ("name", name)]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
}

//! What the proxy believes of a port's policy.

use super::*;
use linkerd2_proxy_api::{grpc_route as wire_grpc, http_route as wire_http, meta, net};
use remora_core::{
    policy,
    route::{Filter, HttpMatch, PathMatch},
};
use std::time::Duration;
use wire::proxy_protocol::{Detect, Grpc, Http1, Http2, Kind, Opaque, Tls};

const TEN_SECONDS: prost_types::Duration = prost_types::Duration { seconds: 10, nanos: 0 };

#[test]
fn a_default_policy_of_linkerds_controller() {
    let wire = server(Kind::Detect(Detect {
        timeout: Some(TEN_SECONDS),
        http_routes: vec![
            probe_route(),
            wire::HttpRoute { metadata: Some(default_ref("default")), ..empty_route() },
        ],
        http_local_rate_limit: Some(wire::HttpLocalRateLimit::default()),
    }));
    let read = server_policy(wire);
    assert_eq!(read.ignored, []);
    let policy = read.value;
    assert_eq!((&*policy.meta.kind, &*policy.meta.name), ("default", "all-unauthenticated"));
    assert_eq!(policy.authorizations.len(), 1);
    assert_eq!(policy.authorizations[0].authentication, Authentication::Unauthenticated);
    assert_eq!(policy.authorizations[0].networks[0].net, "0.0.0.0/0".parse().unwrap());
    let ServerProtocol::Detect { timeout, routes } = policy.protocol else { panic!("not detect") };
    assert_eq!(timeout, Duration::from_secs(10));
    assert_eq!(routes.len(), 2);
    let probe = &routes[0].route.rules[0].matches;
    assert_eq!(
        probe[..],
        [HttpMatch {
            path: Some(PathMatch::Exact("/healthz".to_owned())),
            method: Some("GET".to_owned()),
            ..HttpMatch::default()
        }]
    );
    assert_eq!(routes[0].authorizations.len(), 1);
    assert_eq!(&*routes[1].route.meta.name, "default");
}

#[test]
fn every_protocol_has_its_kind() {
    type Is = fn(&ServerProtocol) -> bool;
    let cases: [(Kind, Is); 5] = [
        (Kind::Opaque(Opaque {}), |p| matches!(p, ServerProtocol::Opaque)),
        (Kind::Tls(Tls {}), |p| matches!(p, ServerProtocol::Tls)),
        (
            Kind::Http1(Http1 { routes: vec![empty_route()], local_rate_limit: None }),
            |p| matches!(p, ServerProtocol::Http1 { routes } if routes.len() == 1),
        ),
        (
            Kind::Http2(Http2 { routes: vec![empty_route()], local_rate_limit: None }),
            |p| matches!(p, ServerProtocol::Http2 { routes } if routes.len() == 1),
        ),
        (Kind::Grpc(Grpc { routes: vec![grpc_route_of("Svc", "Get")] }), |p| {
            let path = PathMatch::Exact("/Svc/Get".to_owned());
            matches!(p, ServerProtocol::Grpc { routes } if routes[0].route.rules[0].matches[0].path == Some(path))
        }),
    ];
    for (kind, is) in cases {
        let protocol = server_policy(server(kind)).value.protocol;
        assert!(is(&protocol), "{protocol:?}");
    }
}

#[test]
#[expect(clippy::too_many_lines, reason = "one table, one row for each way to be wrong")]
fn what_is_not_understood_admits_nobody_and_says_why() {
    let with_authz = |authz| wire::Server { authorizations: vec![authz], ..server(Kind::Opaque(Opaque {})) };
    let with_filter = |kind| {
        let filters = vec![wire::http_route::Filter { kind }];
        let rules = vec![wire::http_route::Rule { matches: Vec::new(), filters }];
        let routes = vec![wire::HttpRoute { rules, ..empty_route() }];
        server(Kind::Http1(Http1 { routes, local_rate_limit: None }))
    };
    let permit = |permit| Some(wire::Authn { permit });
    let mesh_tls =
        |clients| permit(Some(wire::authn::Permit::MeshTls(wire::authn::PermitMeshTls { clients })));
    let identities = |name: &str, label: &str| {
        mesh_tls(Some(wire::authn::permit_mesh_tls::Clients::Identities(
            wire::authn::permit_mesh_tls::PermitClientIdentities {
                identities: vec![wire::Identity { name: name.to_owned() }],
                suffixes: vec![wire::IdentitySuffix { parts: vec![label.to_owned()] }],
            },
        )))
    };
    let nobody = wire::http_local_rate_limit::r#override::ClientIdentities {
        identities: vec![wire::Identity { name: "no name".to_owned() }],
    };
    let limit = wire::HttpLocalRateLimit {
        overrides: vec![wire::http_local_rate_limit::Override { limit: None, clients: Some(nobody) }],
        ..wire::HttpLocalRateLimit::default()
    };
    let negative = prost_types::Duration { seconds: -1, nanos: 0 };
    let detect = |timeout| {
        server(Kind::Detect(Detect { timeout, http_routes: Vec::new(), http_local_rate_limit: None }))
    };
    for (wire, reason) in [
        (wire::Server { protocol: None, ..server(Kind::Tls(Tls {})) }, "protocol: missing"),
        (
            wire::Server { protocol: Some(wire::ProxyProtocol { kind: None }), ..server(Kind::Tls(Tls {})) },
            "protocol: missing",
        ),
        (detect(None), "protocol.detect.timeout: missing"),
        (detect(Some(negative)), "protocol.detect.timeout: "),
        (with_authz(wire::Authz { networks: Vec::new(), ..anybody() }), "authorizations[0].networks: empty"),
        (
            with_authz(wire::Authz {
                networks: vec![wire::Network { net: None, except: Vec::new() }],
                ..anybody()
            }),
            "authorizations[0].networks[0].net: missing",
        ),
        (
            with_authz(wire::Authz { authentication: None, ..anybody() }),
            "authorizations[0].authentication: missing",
        ),
        (
            with_authz(wire::Authz { authentication: permit(None), ..anybody() }),
            "authorizations[0].authentication: missing",
        ),
        (
            with_authz(wire::Authz { authentication: mesh_tls(None), ..anybody() }),
            "authorizations[0].authentication.mesh_tls.clients: missing",
        ),
        (
            with_authz(wire::Authz { authentication: identities("bad name", "ok"), ..anybody() }),
            "authorizations[0].authentication.mesh_tls.clients.identities[0]: ",
        ),
        (
            with_authz(wire::Authz { authentication: identities("a.example", ""), ..anybody() }),
            "authorizations[0].authentication.mesh_tls.clients.suffixes[0]: ",
        ),
        (
            with_filter(Some(wire::http_route::filter::Kind::Redirect(wire_http::RequestRedirect {
                status: 200,
                ..wire_http::RequestRedirect::default()
            }))),
            "protocol.http1.routes[0].rules[0].filters[0].redirect.status: 200 is no redirect",
        ),
        (
            with_filter(None),
            "protocol.http1.routes[0].rules[0].filters[0]: a filter of a kind that this proxy does not know",
        ),
        (
            server(Kind::Http2(Http2 { routes: Vec::new(), local_rate_limit: Some(limit) })),
            "protocol.http2.local_rate_limit.overrides[0].clients.identities[0]: ",
        ),
    ] {
        let policy = server_policy(wire).value;
        let ServerProtocol::Invalid(why) = &policy.protocol else { panic!("{reason}: {policy:?}") };
        assert!(why.starts_with(reason), "{why} should begin with {reason}");
        assert!(policy.authorizations.is_empty(), "{reason}");
        assert_eq!(&*policy.meta.name, "all-unauthenticated", "metrics still name the server");
    }
}

#[test]
fn the_filters_of_a_rule_are_kept_in_its_place() {
    let failure = wire_http::HttpFailureInjector { status: 500, message: "no".to_owned(), ratio: None };
    let http = [
        wire::http_route::filter::Kind::RequestHeaderModifier(wire_http::RequestHeaderModifier::default()),
        wire::http_route::filter::Kind::Redirect(wire_http::RequestRedirect::default()),
        wire::http_route::filter::Kind::FailureInjector(failure),
    ];
    let filters = http.map(|kind| wire::http_route::Filter { kind: Some(kind) });
    let filtered = wire::http_route::Rule { matches: Vec::new(), filters: filters.to_vec() };
    let rules = vec![wire::http_route::Rule::default(), filtered];
    let routes = vec![wire::HttpRoute { rules, ..empty_route() }];
    let policy = server_policy(server(Kind::Http1(Http1 { routes, local_rate_limit: None }))).value;
    let [first, second] = &policy::routes(&policy)[0].filters[..] else { panic!("{policy:?}") };
    assert!(first.is_empty());
    assert!(matches!(second[..], [Filter::Request(_), Filter::Redirect(_), Filter::Fail(_)]), "{second:?}");

    let failure = wire_grpc::GrpcFailureInjector { code: 12, message: "no".to_owned(), ratio: None };
    let grpc = [
        wire::grpc_route::filter::Kind::RequestHeaderModifier(wire_http::RequestHeaderModifier::default()),
        wire::grpc_route::filter::Kind::FailureInjector(failure),
    ];
    let mut route = grpc_route_of("Svc", "Get");
    route.rules[0].filters = grpc.map(|kind| wire::grpc_route::Filter { kind: Some(kind) }).to_vec();
    let policy = server_policy(server(Kind::Grpc(Grpc { routes: vec![route] }))).value;
    let filters = &policy::routes(&policy)[0].filters[0];
    assert!(matches!(filters[..], [Filter::Request(_), Filter::Fail(_)]), "{filters:?}");
}

#[test]
fn clients_are_named_wholly_or_by_suffix() {
    let clients = wire::authn::permit_mesh_tls::Clients::Identities(
        wire::authn::permit_mesh_tls::PermitClientIdentities {
            identities: vec![wire::Identity { name: "a.example".to_owned() }],
            suffixes: vec![
                wire::IdentitySuffix { parts: Vec::new() },
                wire::IdentitySuffix { parts: vec!["Cluster".to_owned(), "local".to_owned()] },
            ],
        },
    );
    let permit = wire::authn::Permit::MeshTls(wire::authn::PermitMeshTls { clients: Some(clients) });
    let read = permitted(&mut Reading::new(), permit).unwrap();
    let Authentication::TlsAuthenticated { identities, suffixes } = read else { panic!("{read:?}") };
    assert_eq!(identities[0].as_str(), "a.example");
    assert_eq!(suffixes[0].labels, Vec::<String>::new());
    assert_eq!(suffixes[1].labels, ["cluster", "local"]);
}

fn server(kind: Kind) -> wire::Server {
    let labels = [("group", ""), ("kind", "default"), ("name", "all-unauthenticated")];
    wire::Server {
        protocol: Some(wire::ProxyProtocol { kind: Some(kind) }),
        server_ips: Vec::new(),
        authorizations: vec![anybody()],
        labels: labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
    }
}

fn anybody() -> wire::Authz {
    let any: std::net::IpAddr = [0, 0, 0, 0].into();
    let net = net::IpNetwork { ip: Some(any.into()), prefix_len: 0 };
    wire::Authz {
        networks: vec![wire::Network { net: Some(net), except: Vec::new() }],
        authentication: Some(wire::Authn {
            permit: Some(wire::authn::Permit::Unauthenticated(wire::authn::PermitUnauthenticated {})),
        }),
        labels: HashMap::new(),
        metadata: Some(default_ref("all-unauthenticated")),
    }
}

fn default_ref(name: &str) -> meta::Metadata {
    meta::Metadata { kind: Some(meta::metadata::Kind::Default(name.to_owned())) }
}

fn empty_route() -> wire::HttpRoute {
    wire::HttpRoute { rules: vec![wire::http_route::Rule::default()], ..wire::HttpRoute::default() }
}

fn probe_route() -> wire::HttpRoute {
    let path = wire_http::PathMatch { kind: Some(wire_http::path_match::Kind::Exact("/healthz".to_owned())) };
    let probe = wire_http::HttpRouteMatch {
        path: Some(path),
        method: Some(http::Method::GET.into()),
        ..wire_http::HttpRouteMatch::default()
    };
    wire::HttpRoute {
        metadata: Some(default_ref("probe")),
        authorizations: vec![anybody()],
        rules: vec![wire::http_route::Rule { matches: vec![probe], filters: Vec::new() }],
        ..wire::HttpRoute::default()
    }
}

fn grpc_route_of(service: &str, method: &str) -> wire::GrpcRoute {
    let rpc = wire_grpc::GrpcRpcMatch { service: service.to_owned(), method: method.to_owned() };
    let matches = vec![wire_grpc::GrpcRouteMatch { rpc: Some(rpc), headers: Vec::new() }];
    wire::GrpcRoute {
        rules: vec![wire::grpc_route::Rule { matches, filters: Vec::new() }],
        ..wire::GrpcRoute::default()
    }
}

//! Inbound policies, from manifests to what goes onto the wire.

use super::*;
use crate::{
    index::Index,
    view::{Lens, Settings, Workload, inbound},
    watch::Event,
};
use linkerd2_proxy_api::inbound::{
    self as inbound_api,
    authn::{Permit, permit_mesh_tls::Clients},
    proxy_protocol::Kind,
};
use remora_core::{
    policy::{self, DefaultPolicy, ServerProtocol},
    route::{RequestView, select},
};
use remora_runtime::api::inbound::server_policy;

/// A pod with a probe of `/ready?full=1` on its port 80, which is named `http`.
const POD: &str = "{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop, labels: {app: web}}, spec: {containers: [{name: a, ports: [{name: http, containerPort: 80}], readinessProbe: {httpGet: {path: '/ready?full=1', port: http}}}]}, status: {podIP: 10.1.0.1}}";

fn server_of(protocol: &str, more: &str) -> String {
    format!(
        "{{apiVersion: policy.linkerd.io/v1beta3, kind: Server, metadata: {{name: web, namespace: shop}}, spec: {{podSelector: {{matchLabels: {{app: web}}}}, port: http, proxyProtocol: {protocol}{more}}}}}"
    )
}

fn policy_object(kind: &str, name: &str, spec: &str) -> String {
    format!(
        "{{apiVersion: policy.linkerd.io/v1alpha1, kind: {kind}, metadata: {{name: {name}, namespace: shop}}, spec: {spec}}}"
    )
}

fn route_of(kind: &str, rules: &str) -> String {
    format!(
        "{{apiVersion: gateway.networking.k8s.io/v1, kind: {kind}, metadata: {{name: r, namespace: shop}}, spec: {{parentRefs: [{{group: policy.linkerd.io, kind: Server, name: web}}], rules: [{rules}]}}}}"
    )
}

/// What proxies are told of port 80 of the pod, which ours has to be able to read.
fn told(documents: &[&str], settings: &Settings) -> inbound_api::Server {
    let mut index = Index::default();
    for text in documents {
        for document in parse(text).unwrap_or_else(|mistakes| panic!("{mistakes:?} in {text}")) {
            let Document::Known(resource) = document else { panic!("{document:?}") };
            index.apply(Event::Apply(resource));
        }
    }
    let workload = Workload(Name::new("shop", "web"));
    let seen = inbound(&mut Lens::new(&index), settings, &workload, 80).unwrap();
    server(&seen, settings)
}

fn http_routes(server: &inbound_api::Server) -> &[inbound_api::HttpRoute] {
    match server.protocol.as_ref().unwrap().kind.as_ref().unwrap() {
        Kind::Detect(detect) => &detect.http_routes,
        Kind::Http1(http) => &http.routes,
        Kind::Http2(http) => &http.routes,
        _ => &[],
    }
}

fn word(metadata: Option<&meta::Metadata>) -> String {
    match metadata.unwrap().kind.as_ref().unwrap() {
        meta::metadata::Kind::Default(name) => name.clone(),
        meta::metadata::Kind::Resource(resource) => format!("{} {}", resource.kind, resource.name),
    }
}

fn labels_of(labels: &std::collections::HashMap<String, String>) -> String {
    format!("{}/{}/{}", labels["group"], labels["kind"], labels["name"])
}

#[test]
fn the_authorization_of_every_default_policy() {
    for (policy, authorization) in [
        (DefaultPolicy::AllUnauthenticated, Some((2, false))),
        (DefaultPolicy::AllAuthenticated, Some((2, true))),
        (DefaultPolicy::ClusterUnauthenticated, Some((5, false))),
        (DefaultPolicy::ClusterAuthenticated, Some((5, true))),
        (DefaultPolicy::Audit, Some((2, false))),
        (DefaultPolicy::Deny, None),
    ] {
        let settings = Settings { default_inbound_policy: policy, ..settings_for_tests() };
        let by_server = server_of("opaque", &format!(", accessPolicy: {}", policy.as_str()));
        let opaque =
            POD.replace("{name: web,", "{name: web, annotations: {config.linkerd.io/opaque-ports: '80'},");
        for (documents, opaque, server_label) in [
            (&[POD][..], false, format!("/default/{}", policy.as_str())),
            (&[&opaque], true, format!("/default/{}", policy.as_str())),
            (&[POD, &by_server], true, "policy.linkerd.io/server/web".to_owned()),
        ] {
            let server = told(documents, &settings);
            assert_eq!(labels_of(&server.labels), server_label);
            let seen = server.authorizations.first().map(|authz| {
                assert_eq!(authz.metadata, Some(default_ref(policy.as_str())));
                assert_eq!(labels_of(&authz.labels), format!("/default/{}", policy.as_str()));
                let meshed = match authz.authentication.as_ref().unwrap().permit.as_ref().unwrap() {
                    Permit::Unauthenticated(_) => false,
                    Permit::MeshTls(mesh) => match mesh.clients.as_ref().unwrap() {
                        Clients::Identities(some) => {
                            some.suffixes.len() == 1 && some.suffixes[0].parts.is_empty()
                        }
                        Clients::Unauthenticated(_) => panic!("nobody asked for that"),
                    },
                };
                (authz.networks.len(), meshed)
            });
            assert_eq!(seen, authorization, "{policy:?}");
            let kind = server.protocol.unwrap().kind.unwrap();
            assert_eq!(matches!(kind, Kind::Opaque(_)), opaque);
        }
    }
}

#[test]
fn nobody_is_admitted_from_no_networks() {
    let settings = Settings {
        default_inbound_policy: DefaultPolicy::ClusterUnauthenticated,
        cluster_networks: vec![],
        probe_networks: vec![],
        ..settings_for_tests()
    };
    let server = told(&[POD], &settings);
    assert!(server.authorizations.is_empty() && http_routes(&server).len() == 1, "{server:?}");
    let read = server_policy(server).value;
    assert!(matches!(read.protocol, ServerProtocol::Detect { .. }), "{read:?}");
}

#[test]
fn every_protocol_has_the_routes_that_it_can_have() {
    let all = [route_of("HTTPRoute", "{}"), route_of("GRPCRoute", "{}")].join("\n---\n");
    for (protocol, kind, routes) in [
        ("unknown", "Detect", &["probe", "HTTPRoute r"][..]),
        ("HTTP/1", "Http1", &["probe", "HTTPRoute r"]),
        ("HTTP/2", "Http2", &["probe", "HTTPRoute r"]),
        ("gRPC", "Grpc", &["GRPCRoute r"]),
        ("opaque", "Opaque", &[]),
        ("TLS", "Tls", &[]),
    ] {
        let server = told(&[POD, &server_of(protocol, ""), &all], &settings_for_tests());
        let wire = server.protocol.clone().unwrap().kind.unwrap();
        assert!(format!("{wire:?}").starts_with(kind), "{wire:?}");
        let grpc = match &wire {
            Kind::Grpc(grpc) => grpc.routes.iter().map(|route| word(route.metadata.as_ref())).collect(),
            _ => Vec::new(),
        };
        let http = http_routes(&server).iter().map(|route| word(route.metadata.as_ref()));
        assert_eq!(http.chain(grpc).collect::<Vec<_>>(), routes, "{protocol}");
        let read = server_policy(server).value;
        assert!(!matches!(read.protocol, ServerProtocol::Invalid(_)), "{read:?}");
        let bare = server_policy(told(&[POD, &server_of(protocol, "")], &settings_for_tests())).value;
        assert!(!matches!(bare.protocol, ServerProtocol::Invalid(_)), "{bare:?}");
        assert_eq!(bare.authorizations, [], "a Server without authorizations admits nobody");
    }
}

#[test]
fn probes_keep_their_route_unless_a_match_names_their_path() {
    let rule = |path: &str, more: &str| {
        route_of("HTTPRoute", &format!("{{matches: [{{path: {{type: Exact, value: {path}}}{more}}}]}}"))
    };
    for (route, kept) in [
        (route_of("HTTPRoute", "{}"), true),
        (route_of("HTTPRoute", "{matches: [{path: {type: PathPrefix, value: /ready}, method: GET}]}"), true),
        (
            route_of(
                "HTTPRoute",
                "{matches: [{path: {type: RegularExpression, value: /ready}, method: GET}]}",
            ),
            true,
        ),
        (rule("/ready", ""), false),
        (rule("/ready", ", method: GET"), false),
        (rule("/ready", ", method: POST"), true),
        (rule("/ready", ", headers: [{name: a, value: b}]"), true),
        (rule("/ready/", ""), true),
        (rule("/ready", "").replace("parentRefs", "hostnames: [a.example], parentRefs"), true),
    ] {
        let server = told(&[POD, &server_of("HTTP/1", ""), &route], &settings_for_tests());
        let first = &http_routes(&server)[0];
        assert_eq!(word(first.metadata.as_ref()) == "probe", kept, "{route}");
        if kept {
            assert_eq!(labels_of(&first.authorizations[0].labels), "/default/probe");
            assert_eq!(first.authorizations[0].networks.len(), 2);
            let wanted = &first.rules[0].matches[0];
            assert!(wanted.query_params.is_empty(), "whatever the query");
            assert!(wanted.path.is_some() && wanted.method.is_some());
        }
    }
}

/// A GET with a header, or without.
struct Get<'a>(&'a str, Option<(&'a str, &'a str)>);

impl RequestView for Get<'_> {
    fn method(&self) -> &'static str {
        "GET"
    }
    fn authority(&self) -> &'static str {
        "10.1.0.1:80"
    }
    fn path(&self) -> &str {
        self.0
    }
    fn query(&self) -> Option<&str> {
        None
    }
    fn header(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        self.1.into_iter().filter(move |(other, _)| *other == name).map(|(_, value)| value.as_bytes())
    }
}

/// Whatever names the path of a probe has what it asks for, and kubelet has the rest: it sends no such header.
#[test]
fn a_match_on_the_path_of_a_probe_has_what_it_asks_for() {
    let exact = |more: &str| format!("{{matches: [{{path: {{type: Exact, value: /a.b}}{more}}}]}}");
    let header = ", headers: [{name: a, value: b}]";
    let get = ", method: GET";
    for (rules, with, without) in [
        (exact(header), "r", Some("probe")),
        (exact(&[header, get].concat()), "r", Some("probe")),
        (exact(""), "r", Some("r")),
        (exact(", method: POST"), "probe", Some("probe")),
        ("{}".to_owned(), "probe", Some("probe")),
        (format!("{}, {{}}", exact(header)), "r", Some("probe")),
        (format!("{}, {{matches: [{{path: {{value: /a}}}}]}}", exact(header)), "r", Some("probe")),
        (format!("{}, {{matches: [{{method: GET{header}}}]}}", exact(header)), "r", Some("probe")),
        (exact(header).replace("/a.b", "/a-b"), "probe", Some("probe")),
    ] {
        let pod = POD.replace("/ready?full=1", "/a.b");
        let route = route_of("HTTPRoute", &rules);
        let server = told(&[&pod, &server_of("HTTP/1", ""), &route], &settings_for_tests());
        let policy = server_policy(server).value;
        let routes = policy::routes(&policy);
        let of = |path: &str, header: Option<(&str, &str)>| {
            let candidates = routes.iter().map(|inbound| &inbound.route);
            let chosen = select(candidates, &Get(path, header)).unwrap()?;
            Some(routes[chosen.route].route.meta.name.to_string())
        };
        assert_eq!(of("/a.b", Some(("a", "b"))).as_deref(), Some(with), "{rules}");
        assert_eq!(of("/a.b", None).as_deref(), without, "{rules}");
        assert_ne!(of("/a-b", None).as_deref(), Some("probe"), "{rules}: a dot is a dot");
    }
}

#[test]
fn authorizations_carry_what_admits_them() {
    let mesh = policy_object(
        "MeshTLSAuthentication",
        "m",
        "{identities: ['*.bank.example', a.example], identityRefs: [{kind: ServiceAccount, name: till}, {kind: Namespace, name: bank}]}",
    );
    let net = policy_object(
        "NetworkAuthentication",
        "n",
        "{networks: [{cidr: 10.0.0.0/8, except: [10.1.0.0/16]}]}",
    );
    let target = "targetRef: {group: policy.linkerd.io, kind: Server, name: web}";
    let group = "group: policy.linkerd.io";
    let policy = policy_object(
        "AuthorizationPolicy",
        "p",
        &format!(
            "{{{target}, requiredAuthenticationRefs: [{{{group}, kind: MeshTLSAuthentication, name: m}}, {{{group}, kind: NetworkAuthentication, name: n}}]}}"
        ),
    );
    let of_route = policy_object(
        "AuthorizationPolicy",
        "q",
        "{targetRef: {group: gateway.networking.k8s.io, kind: HTTPRoute, name: r}, requiredAuthenticationRefs: [{kind: ServiceAccount, name: till, namespace: bank}]}",
    );
    let older = "{apiVersion: policy.linkerd.io/v1beta1, kind: ServerAuthorization, metadata: {name: s, namespace: shop}, spec: {server: {name: web}, client: {meshTLS: {unauthenticatedTLS: true}}}}";
    let documents = [
        POD,
        &server_of("unknown", ", accessPolicy: audit"),
        &mesh,
        &net,
        &policy,
        &of_route,
        older,
        &route_of("HTTPRoute", "{}"),
    ];
    let server = told(&documents, &settings_for_tests());
    let by: Vec<_> = server.authorizations.iter().map(|authz| labels_of(&authz.labels)).collect();
    let group = "policy.linkerd.io";
    let expected = [
        format!("{group}/serverauthorization/s"),
        format!("{group}/authorizationpolicy/p"),
        "/default/audit".to_owned(),
    ];
    assert_eq!(by, expected, "what admits all others is tried last");
    assert_eq!(server.authorizations[0].networks.len(), 5, "the cluster's networks");
    let policy = &server.authorizations[1];
    assert_eq!((policy.networks.len(), policy.networks[0].except.len()), (1, 1));
    let Some(Permit::MeshTls(mesh)) = &policy.authentication.as_ref().unwrap().permit else { panic!() };
    let Some(Clients::Identities(clients)) = &mesh.clients else { panic!() };
    let names: Vec<_> = clients.identities.iter().map(|identity| identity.name.as_str()).collect();
    assert_eq!(names, ["a.example", "till.shop.serviceaccount.identity.remora.cluster.local"]);
    let suffixes: Vec<_> = clients.suffixes.iter().map(|suffix| suffix.parts.join(".")).collect();
    assert_eq!(suffixes, ["bank.example", "bank.serviceaccount.identity.remora.cluster.local"]);
    let route = &http_routes(&server)[1];
    assert_eq!(word(route.authorizations[0].metadata.as_ref()), "authorizationpolicy q");
    let read = server_policy(server).value;
    assert_eq!(read.authorizations.len(), 3);
}

#[test]
fn filters_of_routes() {
    let set = |header: &str| {
        format!(
            "{{type: RequestHeaderModifier, requestHeaderModifier: {{set: [{{name: {header}, value: b}}]}}}}"
        )
    };
    for (kind, filter, expected) in [
        ("HTTPRoute", set("a"), "RequestHeaderModifier"),
        ("HTTPRoute", "{type: RequestRedirect, requestRedirect: {port: 81}}".to_owned(), "Redirect"),
        ("HTTPRoute", set("l5d-x"), "FailureInjector"),
        (
            "HTTPRoute",
            "{type: ResponseHeaderModifier, responseHeaderModifier: {remove: [a]}}".to_owned(),
            "cannot carry ResponseHeaderModifier; requests of this rule fail",
        ),
        ("GRPCRoute", set("a"), "RequestHeaderModifier"),
        ("GRPCRoute", set("te"), "FailureInjector"),
    ] {
        let protocol = if kind == "GRPCRoute" { "gRPC" } else { "HTTP/1" };
        let route = route_of(kind, &format!("{{filters: [{filter}]}}"));
        let server = told(&[POD, &server_of(protocol, ""), &route], &settings_for_tests());
        let words = format!("{:?}", server.protocol);
        assert!(words.contains(expected), "{kind} {filter}: {words}");
    }
}

#[test]
fn a_rate_limit_is_said_where_it_can_be() {
    let limit = policy_object(
        "HTTPLocalRateLimitPolicy",
        "l",
        "{targetRef: {group: policy.linkerd.io, kind: Server, name: web}, total: {requestsPerSecond: 100}, identity: {requestsPerSecond: 20}, overrides: [{requestsPerSecond: 7, clientRefs: [{kind: ServiceAccount, name: till}]}]}",
    );
    for (protocol, is_limited) in [
        ("unknown", true),
        ("HTTP/1", true),
        ("HTTP/2", true),
        ("gRPC", false),
        ("opaque", false),
        ("TLS", false),
    ] {
        let server = told(&[POD, &server_of(protocol, ""), &limit], &settings_for_tests());
        let held = match server.protocol.unwrap().kind.unwrap() {
            Kind::Detect(detect) => detect.http_local_rate_limit,
            Kind::Http1(http) => http.local_rate_limit,
            Kind::Http2(http) => http.local_rate_limit,
            _ => None,
        };
        assert_eq!(held.is_some(), is_limited, "{protocol}");
        let Some(held) = held else { continue };
        assert_eq!(word(held.metadata.as_ref()), "HTTPLocalRateLimitPolicy l");
        let limits = (held.total.unwrap().requests_per_second, held.identity.unwrap().requests_per_second);
        assert_eq!(limits, (100, 20));
        assert_eq!(held.overrides[0].limit.unwrap().requests_per_second, 7);
        let clients = &held.overrides[0].clients.as_ref().unwrap().identities;
        assert_eq!(clients[0].name, "till.shop.serviceaccount.identity.remora.cluster.local");
    }
}

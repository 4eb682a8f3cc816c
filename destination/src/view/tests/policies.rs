//! Which Server a port has, whom it admits, and how every policy resource stands.

use super::*;
use crate::resources::policy::ServerProtocol;
use remora_core::policy::Authentication;

/// Two pods of `shop`: `web` with its port 80 by the name `http`, `api` with its port 81 by that name.
const PODS: &str = "
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop, labels: {app: web}}, spec: {serviceAccountName: web, containers: [{name: a, ports: [{name: http, containerPort: 80}]}]}, status: {podIP: 10.1.0.1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: api, namespace: shop, labels: {app: api}}, spec: {containers: [{name: a, ports: [{name: http, containerPort: 81}]}]}, status: {podIP: 10.1.0.2}}
---
";

/// A document of `policy.linkerd.io`: its metadata besides the namespace `shop`, unless that names another, and its spec.
fn of(kind: &str, metadata: &str, spec: &str) -> String {
    let version = match kind {
        "Server" => "v1beta3",
        "ServerAuthorization" => "v1beta1",
        _ => "v1alpha1",
    };
    let namespace = if metadata.contains("namespace") { "" } else { ", namespace: shop" };
    format!(
        "---\n{{apiVersion: policy.linkerd.io/{version}, kind: {kind}, metadata: {{{metadata}{namespace}}}, spec: {{{spec}}}}}\n"
    )
}

fn admits_all(name: &str, target: &str) -> String {
    of(
        "AuthorizationPolicy",
        &format!("name: {name}"),
        &format!("targetRef: {{{target}}}, requiredAuthenticationRefs: []"),
    )
}

const WEB: &str = "group: policy.linkerd.io, kind: Server, name: web";

fn route(metadata: &str, kind: &str, parent: &str) -> String {
    format!(
        "---\n{{apiVersion: gateway.networking.k8s.io/v1, kind: {kind}, metadata: {{{metadata}}}, spec: {{parentRefs: [{{group: policy.linkerd.io, kind: Server, {parent}}}]}}}}\n"
    )
}

fn seen(manifests: &str, pod: &str, port: u16) -> Inbound {
    let index = index(manifests);
    inbound(&mut Lens::new(&index), &settings(), &Workload(Name::new("shop", pod)), port).unwrap()
}

#[test]
fn the_server_of_a_port() {
    let all = of("Server", "name: all", "podSelector: {}, port: http");
    let web = of("Server", "name: web", "podSelector: {matchLabels: {app: web}}, port: 80");
    let old = web.replace("name: web, n", "name: z, creationTimestamp: '2026-01-01T00:00:00Z', n");
    let older = web.replace("name: web, n", "name: y, creationTimestamp: '2025-01-01T00:00:00Z', n");
    let foreign = web.replace("namespace: shop", "namespace: bank");
    let external = of("Server", "name: e", "externalWorkloadSelector: {}, port: 80");
    for (servers, [on_web, on_api]) in [
        (String::new(), [None, None]),
        (all.clone(), [Some("all"), None]),
        (all.replace("http", "81"), [None, None]),
        (web.clone(), [Some("web"), None]),
        ([web.as_str(), &all].concat(), [Some("all"), None]),
        ([old.as_str(), &all, &web].concat(), [Some("z"), None]),
        ([old.as_str(), &older].concat(), [Some("y"), None]),
        (foreign, [None, None]),
        (external, [None, None]),
    ] {
        let manifests = [PODS, &servers].concat();
        for (pod, expected) in [("web", on_web), ("api", on_api)] {
            let expected = match expected {
                Some(name) => ServerRef::Server(Name::new("shop", name)),
                None => ServerRef::Default(DefaultPolicy::AllUnauthenticated),
            };
            assert_eq!(seen(&manifests, pod, 80).server, expected, "{pod} {servers}");
        }
        let by_name = servers.contains("port: http") || servers.contains("port: 81");
        let server = seen(&manifests, "api", 81).server;
        assert_eq!(server == ServerRef::Server(Name::new("shop", "all")), by_name, "{servers}");
    }
}

#[test]
fn a_server_comes_before_the_annotation_of_opaque_ports_for_both_sides() {
    let manifests = CLUSTER.replacen(
        "name: web-1\n",
        "name: web-1\n  annotations: {config.linkerd.io/opaque-ports: '8080'}\n",
        1,
    );
    for (server, opaque) in [
        (String::new(), true),
        (of("Server", "name: web", "podSelector: {}, port: web, proxyProtocol: HTTP/1"), false),
        (of("Server", "name: web", "podSelector: {}, port: web, proxyProtocol: opaque"), true),
        (of("Server", "name: web", "podSelector: {}, port: 1, proxyProtocol: HTTP/1"), true),
    ] {
        let manifests = [manifests.as_str(), &server].concat();
        let index = index(&manifests);
        let workload = Workload(Name::new("shop", "web-1"));
        let inbound = inbound(&mut Lens::new(&index), &settings(), &workload, 8080).unwrap();
        assert_eq!(inbound.protocol == ServerProtocol::Opaque, opaque, "{server}");
        let target = Target::Addr("10.1.0.1:8080".parse().unwrap());
        let profile = profile(&mut Lens::new(&index), &settings(), &target, &Context::default()).unwrap();
        assert!(matches!(profile, Profile::Endpoint { opaque: said, .. } if said == opaque), "{server}");
        let endpoints = get(&manifests, "web.shop.svc.cluster.local:80").unwrap();
        let hint = endpoints.set[&"10.1.0.1:8080".parse().unwrap()].hint;
        assert_eq!(hint == remora_core::endpoint::ProtocolHint::Opaque, opaque, "{server}");
    }
}

#[test]
fn whom_a_server_admits() {
    let server = of("Server", "name: web, labels: {tier: front}", "podSelector: {}, port: 80");
    let older = |server: &str| {
        of(
            "ServerAuthorization",
            "name: s",
            &format!("server: {{{server}}}, client: {{unauthenticated: true}}"),
        )
    };
    for (policy, admits) in [
        (String::new(), 0),
        (admits_all("a", WEB), 1),
        (admits_all("a", "group: policy.linkerd.io, kind: Server, name: other"), 0),
        (admits_all("a", "kind: Namespace, name: shop"), 1),
        (admits_all("a", "kind: Namespace, name: bank"), 0),
        (admits_all("a", WEB).replace("namespace: shop", "namespace: bank"), 0),
        (admits_all("a", "group: gateway.networking.k8s.io, kind: HTTPRoute, name: r"), 0),
        ([admits_all("a", WEB), admits_all("b", WEB)].concat(), 2),
        (older("name: web"), 1),
        (older("name: other"), 0),
        (older("selector: {}"), 1),
        (older("selector: {matchLabels: {tier: front}}"), 1),
        (older("selector: {matchLabels: {tier: back}}"), 0),
        (older("name: web").replace("namespace: shop", "namespace: bank"), 0),
    ] {
        let inbound = seen(&[PODS, &server, &policy].concat(), "web", 80);
        assert_eq!(inbound.authorizations.len(), admits, "{policy}");
    }
}

#[test]
fn what_is_not_there_admits_nobody_and_another_namespace_is_named() {
    let server = of("Server", "name: web", "podSelector: {}, port: 80");
    let policy = |refs: &str| {
        of(
            "AuthorizationPolicy",
            "name: a",
            &format!("targetRef: {{{WEB}}}, requiredAuthenticationRefs: [{refs}]"),
        )
    };
    let mesh = "group: policy.linkerd.io, kind: MeshTLSAuthentication, name: m";
    let net = "group: policy.linkerd.io, kind: NetworkAuthentication, name: n";
    let have = [
        of("MeshTLSAuthentication", "name: m", "identities: ['*']"),
        of(
            "MeshTLSAuthentication",
            "name: m, namespace: bank",
            "identityRefs: [{kind: ServiceAccount, name: till}]",
        ),
        of("NetworkAuthentication", "name: n", "networks: [{cidr: 10.0.0.0/8}]"),
    ]
    .concat();
    for (refs, expected) in [
        (format!("{{{mesh}}}"), Some((2, 0, 1))),
        (format!("{{{mesh}, namespace: bank}}"), Some((2, 1, 0))),
        (format!("{{{mesh}, namespace: none}}"), None),
        (format!("{{{net}}}"), Some((1, 0, 0))),
        (format!("{{{mesh}}}, {{{net}}}"), Some((1, 0, 1))),
        (format!("{{{mesh}}}, {{{net}, namespace: bank}}"), None),
        ("{kind: ServiceAccount, name: nobody}".to_owned(), Some((2, 1, 0))),
    ] {
        let inbound = seen(&[PODS, &server, &have, &policy(&refs)].concat(), "web", 80);
        let found = inbound.authorizations.first().map(|admission| match &admission.clients {
            Authentication::TlsAuthenticated { identities, suffixes } => {
                (admission.networks.len(), identities.len(), suffixes.len())
            }
            _ => (admission.networks.len(), 0, 0),
        });
        assert_eq!(found, expected, "{refs}");
        if let Some(Admission { clients: Authentication::TlsAuthenticated { identities, .. }, .. }) =
            inbound.authorizations.first().filter(|_| refs.contains("namespace: bank"))
        {
            let name = identities[0].as_str();
            assert_eq!(name, "till.bank.serviceaccount.identity.remora.cluster.local", "its own namespace's");
        }
    }
}

#[test]
fn routes_of_a_server() {
    let server = |protocol: &str| {
        of("Server", "name: web", &format!("podSelector: {{}}, port: 80, proxyProtocol: {protocol}"))
    };
    let timed = |name: &str, time: &str| {
        route(
            &format!("name: {name}, namespace: shop, creationTimestamp: '{time}'"),
            "HTTPRoute",
            "name: web",
        )
    };
    let a = route("name: a, namespace: shop", "HTTPRoute", "name: web");
    for (protocol, routes, expected) in [
        ("HTTP/1", a.clone(), &["a"][..]),
        ("gRPC", a.clone(), &[]),
        ("opaque", a.clone(), &[]),
        ("gRPC", a.replace("HTTPRoute", "GRPCRoute"), &["a"]),
        ("unknown", a.replace("HTTPRoute", "GRPCRoute"), &[]),
        ("unknown", a.replace("name: web", "name: web, port: 80"), &[]),
        ("unknown", a.replace("name: web", "name: web, sectionName: x"), &[]),
        ("unknown", a.replace("name: a, namespace: shop", "name: a, namespace: bank"), &[]),
        (
            "unknown",
            a.replace("name: a, namespace: shop", "name: a, namespace: bank")
                .replace("name: web", "name: web, namespace: shop"),
            &[],
        ),
        (
            "unknown",
            [a.as_str(), &timed("z", "2025-01-01T00:00:00Z"), &timed("y", "2026-01-01T00:00:00Z")].concat(),
            &["z", "y", "a"],
        ),
    ] {
        let inbound = seen(&[PODS, &server(protocol), &routes].concat(), "web", 80);
        let names: Vec<_> = inbound.routes.iter().map(|route| route.id.name.name.as_str()).collect();
        assert_eq!(names, expected, "{protocol} {routes}");
    }
    let only = admits_all("p", "group: gateway.networking.k8s.io, kind: HTTPRoute, name: a");
    let inbound = seen(&[PODS, &server("HTTP/1"), &a, &only].concat(), "web", 80);
    assert_eq!((inbound.authorizations.len(), inbound.routes[0].authorizations.len()), (0, 1));
}

#[test]
fn of_two_rate_limits_the_older_holds() {
    let server = of("Server", "name: web", "podSelector: {}, port: 80");
    let limit = |metadata: &str, n: u32| {
        of(
            "HTTPLocalRateLimitPolicy",
            metadata,
            &format!("targetRef: {{{WEB}}}, total: {{requestsPerSecond: {n}}}"),
        )
    };
    let two = [limit("name: a", 1), limit("name: b, creationTimestamp: '2026-01-01T00:00:00Z'", 2)].concat();
    let manifests = [PODS, &server, &two].concat();
    assert_eq!(seen(&manifests, "web", 80).rate_limit.unwrap().total.unwrap().get(), 2);
    says(
        &manifests,
        "HTTPLocalRateLimitPolicy shop/a",
        "Conflicted",
        "spec.targetRef: Server shop/web goes by shop/b",
    );
    says(&manifests, "HTTPLocalRateLimitPolicy shop/b", "Accepted", "");
}

#[test]
fn more_than_a_message_can_hold_admits_nobody() {
    let names: Vec<String> = (0..1024).map(|n| format!("a{n}.example")).collect();
    let server = of("Server", "name: web", "podSelector: {}, port: 80");
    let mesh = of("MeshTLSAuthentication", "name: m", &format!("identities: [{}]", names.join(", ")));
    let policies: String = (0..9)
        .map(|n| {
            admits_all(&format!("p{n}"), WEB).replace(
                "Refs: []",
                "Refs: [{group: policy.linkerd.io, kind: MeshTLSAuthentication, name: m}]",
            )
        })
        .collect();
    let manifests = [PODS, &server, &mesh, &policies].concat();
    assert_eq!(seen(&manifests, "web", 80).authorizations.len(), 7);
    says(
        &manifests,
        "Server shop/web",
        "UnsupportedValue",
        "AuthorizationPolicy shop/p7 is beyond what can be told",
    );
}

#[test]
fn the_most_that_can_be_said_of_a_port_fits_into_a_message() {
    let label = "a".repeat(61);
    let names: Vec<String> = (0..1024).map(|n| format!("a{n:0>60}.{label}.{label}.{label}")).collect();
    let server = of("Server", "name: web", "podSelector: {}, port: 80");
    let mesh = of("MeshTLSAuthentication", "name: m", &format!("identities: [{}]", names.join(", ")));
    let net = "group: policy.linkerd.io, kind: MeshTLSAuthentication, name: m";
    let policies: String =
        (0..8).map(|n| admits_all(&format!("p{n}"), WEB).replace("[]", &format!("[{{{net}}}]"))).collect();
    let limit = of(
        "HTTPLocalRateLimitPolicy",
        "name: l",
        &format!(
            "targetRef: {{{WEB}}}, overrides: [{{requestsPerSecond: 1, clientRefs: [{}]}}]",
            vec![format!("{{kind: ServiceAccount, name: {label}.{label}.{label}}}"); 1024].join(", ")
        ),
    );
    let value = "v".repeat(4000);
    let routes: String = (0..500)
        .map(|n| {
            let rule = format!("matches: [{{headers: [{{name: x-{n}, value: {value}}}]}}]");
            route(&format!("name: r{n}, namespace: shop"), "HTTPRoute", "name: web")
                .replace("spec: {", &format!("spec: {{rules: [{{{rule}}}], "))
        })
        .collect();
    let inbound = seen(&[PODS, &server, &mesh, &policies, &limit, &routes].concat(), "web", 80);
    let length = prost::Message::encoded_len(&crate::wire::server(&inbound, &settings()));
    assert!((300..500).contains(&inbound.routes.len()) && inbound.authorizations.len() == 7);
    assert!(length > 3 << 20 && length < 4 << 20, "{length} bytes");
}

/// `Accepted` of a policy resource, and what is said of it.
#[track_caller]
fn says(manifests: &str, object: &str, reason: &str, message: &str) {
    let report = report(manifests, object);
    assert_eq!((report.conditions[0].reason, report.is_fine()), (reason, reason == "Accepted"), "{report:?}");
    assert!(report.conditions[0].message.starts_with(message), "{report:?}");
}

#[track_caller]
fn report(manifests: &str, object: &str) -> PolicyReport {
    let reports = policy_reports(&index(manifests), &settings());
    let names: Vec<_> = reports.iter().map(|(name, _)| name.clone()).collect();
    let found = reports.into_iter().find(|(name, _)| name == object);
    found.unwrap_or_else(|| panic!("{object} is none of {names:?}")).1
}

#[test]
fn how_servers_stand() {
    let web = of("Server", "name: web", "podSelector: {matchLabels: {app: web}}, port: 80");
    let all =
        of("Server", "name: all, creationTimestamp: '2026-01-01T00:00:00Z'", "podSelector: {}, port: http");
    let older = |server: &str| {
        of(
            "ServerAuthorization",
            "name: s",
            &format!("server: {{{server}}}, client: {{unauthenticated: true}}"),
        )
    };
    for (documents, object, reason, message) in [
        (web.clone(), "Server shop/web", "Accepted", ""),
        ([all.as_str(), &web].concat(), "Server shop/all", "Accepted", ""),
        (
            [all.as_str(), &web].concat(),
            "Server shop/web",
            "Conflicted",
            "spec.port: port 80 of pod shop/web goes by Server shop/all, which comes first",
        ),
        (
            of("Server", "name: e", "externalWorkloadSelector: {}, port: 80"),
            "Server shop/e",
            "UnsupportedValue",
            "spec.externalWorkloadSelector: ",
        ),
        (
            older("name: web"),
            "ServerAuthorization shop/s",
            "TargetNotFound",
            "spec.server.name: Server shop/web does not exist",
        ),
        (
            older("selector: {}"),
            "ServerAuthorization shop/s",
            "TargetNotFound",
            "spec.server.selector: no Server of its",
        ),
        ([web.as_str(), &older("selector: {}")].concat(), "ServerAuthorization shop/s", "Accepted", ""),
    ] {
        says(&[PODS, &documents].concat(), object, reason, message);
    }
}

#[test]
fn how_authorization_policies_stand() {
    let web = of("Server", "name: web", "podSelector: {matchLabels: {app: web}}, port: 80");
    let refs = |refs: &str| {
        of(
            "AuthorizationPolicy",
            "name: a",
            &format!("targetRef: {{{WEB}}}, requiredAuthenticationRefs: [{refs}]"),
        )
    };
    let to_route = |name: &str| {
        admits_all("a", &format!("group: gateway.networking.k8s.io, kind: HTTPRoute, name: {name}"))
    };
    for (documents, object, reason, message) in [
        (
            admits_all("a", WEB),
            "AuthorizationPolicy shop/a",
            "TargetNotFound",
            "spec.targetRef.name: Server shop/web does not",
        ),
        (
            admits_all("a", "kind: Namespace, name: bank"),
            "AuthorizationPolicy shop/a",
            "TargetNotFound",
            "spec.targetRef.name: bank is not its own",
        ),
        (
            to_route("r"),
            "AuthorizationPolicy shop/a",
            "TargetNotFound",
            "spec.targetRef.name: HTTPRoute shop/r does not exist",
        ),
        (
            [
                to_route("r"),
                route("name: r, namespace: shop", "HTTPRoute", "name: web").replace("Server", "Thing"),
            ]
            .concat(),
            "AuthorizationPolicy shop/a",
            "TargetNotFound",
            "spec.targetRef.name: HTTPRoute shop/r has no Server as its parent",
        ),
        (
            [web.as_str(), &refs("{group: policy.linkerd.io, kind: MeshTLSAuthentication, name: m}")]
                .concat(),
            "AuthorizationPolicy shop/a",
            "RefNotFound",
            "spec.requiredAuthenticationRefs[0]: MeshTLSAuthentication shop/m does not exist",
        ),
        (
            [
                web.as_str(),
                &refs("{group: policy.linkerd.io, kind: NetworkAuthentication, name: n, namespace: bank}"),
            ]
            .concat(),
            "AuthorizationPolicy shop/a",
            "RefNotFound",
            "spec.requiredAuthenticationRefs[0]: NetworkAuthentication bank/n does not",
        ),
        ([web.as_str(), &refs("")].concat(), "AuthorizationPolicy shop/a", "Accepted", ""),
    ] {
        says(&[PODS, &documents].concat(), object, reason, message);
    }
}

#[test]
fn how_rate_limits_stand() {
    let web = of("Server", "name: web", "podSelector: {matchLabels: {app: web}}, port: 80");
    let grpc =
        of("Server", "name: g", "podSelector: {matchLabels: {app: web}}, port: 82, proxyProtocol: gRPC");
    let limit = |server: &str| {
        of(
            "HTTPLocalRateLimitPolicy",
            "name: l",
            &format!(
                "targetRef: {{group: policy.linkerd.io, kind: Server, name: {server}}}, total: {{requestsPerSecond: 1}}"
            ),
        )
    };
    for (documents, object, reason, message) in [
        (
            limit("web"),
            "HTTPLocalRateLimitPolicy shop/l",
            "TargetNotFound",
            "spec.targetRef.name: Server shop/web does not",
        ),
        (
            [web.as_str(), &grpc, &limit("g")].concat(),
            "HTTPLocalRateLimitPolicy shop/l",
            "UnsupportedValue",
            "spec.targetRef: Server shop/g speaks gRPC",
        ),
        ([web.as_str(), &grpc, &limit("web")].concat(), "HTTPLocalRateLimitPolicy shop/l", "Accepted", ""),
        (
            of("NetworkAuthentication", "name: n", "networks: [{cidr: 10.0.0.0/8}]"),
            "NetworkAuthentication shop/n",
            "Accepted",
            "",
        ),
    ] {
        says(&[PODS, &documents].concat(), object, reason, message);
    }
}

#[test]
fn warnings_of_policy_resources() {
    let web = of("Server", "name: web", "podSelector: {matchLabels: {app: web}}, port: 80");
    let account = "---\n{apiVersion: v1, kind: ServiceAccount, metadata: {name: till, namespace: bank}}\n";
    let mesh = |refs: &str| of("MeshTLSAuthentication", "name: m", &format!("identityRefs: [{refs}]"));
    let till = mesh("{kind: ServiceAccount, name: till, namespace: bank}");
    for (documents, object, warning) in [
        (web.replace("app: web", "app: none"), "Server shop/web", Some("spec.podSelector: no pod")),
        (
            web.replace("port: 80", "port: admin"),
            "Server shop/web",
            Some("spec.port: no pod that it selects has a port named admin"),
        ),
        (web.clone(), "Server shop/web", None),
        (
            till.clone(),
            "MeshTLSAuthentication shop/m",
            Some("spec.identityRefs[0]: ServiceAccount bank/till is not known"),
        ),
        ([till.as_str(), account].concat(), "MeshTLSAuthentication shop/m", None),
        (mesh("{kind: ServiceAccount, name: web}"), "MeshTLSAuthentication shop/m", None),
        (
            mesh("{kind: Namespace, name: bank}"),
            "MeshTLSAuthentication shop/m",
            Some("spec.identityRefs[0]: Namespace bank is not"),
        ),
        (mesh("{kind: Namespace, name: shop}"), "MeshTLSAuthentication shop/m", None),
        (
            [web.as_str(), &admits_all("a", WEB)].concat(),
            "AuthorizationPolicy shop/a",
            Some("spec.requiredAuthenticationRefs: empty"),
        ),
    ] {
        let report = report(&[PODS, &documents].concat(), object);
        assert!(report.is_fine(), "a warning is no refusal: {report:?}");
        assert_eq!(report.warnings.len(), usize::from(warning.is_some()), "{report:?}");
        assert!(
            report.warnings.iter().zip(warning).all(|(said, wanted)| said.starts_with(wanted)),
            "{report:?}"
        );
    }
}

#[test]
fn how_routes_stand_with_a_server() {
    let web = of("Server", "name: web", "podSelector: {}, port: 80, proxyProtocol: HTTP/1");
    let a = route("name: a, namespace: shop", "HTTPRoute", "name: web");
    let with = |rule: &str| a.replace("spec: {", &format!("spec: {{rules: [{{{rule}}}], "));
    for (server, route, reason, message) in [
        (web.as_str(), a.clone(), "Accepted", ""),
        ("", a.clone(), "NoMatchingParent", "spec.parentRefs[0]: Server shop/web does not exist"),
        (
            &web,
            a.replace("name: web", "name: web, port: 80"),
            "NoMatchingParent",
            "spec.parentRefs[0]: a Server has one port",
        ),
        (
            &web,
            a.replace("name: a, namespace: shop", "name: a, namespace: bank")
                .replace("name: web", "name: web, namespace: shop"),
            "NoMatchingParent",
            "spec.parentRefs[0]: Server shop/web is of another namespace",
        ),
        (
            &web,
            a.replace("HTTPRoute", "GRPCRoute"),
            "NotAllowedByListeners",
            "spec.parentRefs[0]: Server shop/web speaks HTTP/1",
        ),
        (
            &web,
            with("backendRefs: [{name: b, port: 80}]"),
            "UnsupportedValue",
            "spec.rules[0].backendRefs: a Server answers",
        ),
        (&web, with("timeouts: {request: 1s}"), "UnsupportedValue", "spec.rules[0].timeouts: "),
        (
            &web,
            with("filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {remove: [b]}}]"),
            "UnsupportedValue",
            "spec.rules[0].filters[0].responseHeaderModifier: Linkerd's API of Servers cannot carry",
        ),
    ] {
        let index = index(&[PODS, server, &route].concat());
        let reports: Vec<_> = route_reports(&index, &settings()).collect();
        let accepted = &reports[0].1.parents[0].conditions[0];
        assert_eq!(accepted.reason, reason, "{route}: {accepted:?}");
        assert!(accepted.message.starts_with(message), "{route}: {accepted:?}");
    }
}

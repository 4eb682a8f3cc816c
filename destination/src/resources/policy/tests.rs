//! Every field of every policy resource, and what is wrong with the nearest misses.

use super::*;
use serde_json::{Value, json};

fn read(version: &str, kind: PolicyKind, spec: &Value) -> Result<PolicySpec, Vec<String>> {
    let text = json!({
        "apiVersion": format!("policy.linkerd.io/{version}"), "kind": kind.as_str(),
        "metadata": {"name": "a", "namespace": "shop"}, "spec": spec,
    });
    let read = Policy::read(kind, &text).map(|policy| policy.spec);
    read.map_err(|mistakes| mistakes.into_iter().map(|(path, why)| format!("{path}: {why}")).collect())
}

/// Each `[spec, what is said of it]`: the paths of the mistakes in order, with or without reasons.
#[track_caller]
fn mistakes(version: &str, kind: PolicyKind, table: &[(Value, &[&str])]) {
    for (spec, expected) in table {
        let found = read(version, kind, spec).err().unwrap_or_default();
        let same = found.len() == expected.len()
            && found.iter().zip(*expected).all(|(found, expected)| found.starts_with(expected));
        assert!(same, "{spec}\nfound    {found:#?}\nexpected {expected:#?}");
    }
}

fn labels(of: &[(&str, &str)]) -> std::collections::BTreeMap<String, String> {
    of.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn a_server_is_read() {
    let spec = json!({
        "podSelector": {"matchLabels": {"app": "web"}}, "port": "http", "proxyProtocol": "HTTP/2",
        "accessPolicy": "audit",
    });
    let Ok(PolicySpec::Server(server)) = read("v1beta3", PolicyKind::Server, &spec) else { panic!() };
    assert!(server.pods.as_ref().unwrap().matches(&labels(&[("app", "web"), ("more", "1")])));
    assert_eq!(server.port, ServerPort::Name("http".to_owned()));
    assert_eq!((server.protocol, server.access), (ServerProtocol::Http2, Some(DefaultPolicy::Audit)));
    let least = json!({"podSelector": {}, "port": 80, "proxyProtocol": null, "accessPolicy": "deny"});
    let Ok(PolicySpec::Server(server)) = read("v1beta3", PolicyKind::Server, &least) else { panic!() };
    assert_eq!(
        (&server.port, server.protocol, server.access),
        (&ServerPort::Number(80), ServerProtocol::Detect, None)
    );
    assert!(server.pods.as_ref().unwrap().matches(&labels(&[])), "no requirement is met by all");
    for protocol in ["unknown", "HTTP/1", "HTTP/2", "gRPC", "opaque", "TLS"] {
        let spec = json!({"podSelector": {}, "port": 80, "proxyProtocol": protocol});
        let Ok(PolicySpec::Server(server)) = read("v1beta1", PolicyKind::Server, &spec) else { panic!() };
        assert_eq!(server.protocol.as_str(), protocol);
    }
}

#[test]
fn mistakes_of_servers() {
    let with = |field: &str, value: Value| {
        let mut spec = json!({"podSelector": {}, "port": 80});
        spec[field] = value;
        spec
    };
    let access: &[&str] = &["spec.accessPolicy: unknown field"];
    mistakes("v1beta1", PolicyKind::Server, &[(with("accessPolicy", json!("deny")), access)]);
    mistakes("v1beta2", PolicyKind::Server, &[(with("accessPolicy", json!("deny")), access)]);
    let external = [(
        with("externalWorkloadSelector", json!({})),
        &["spec.externalWorkloadSelector: unknown field"][..],
    )];
    mistakes("v1beta1", PolicyKind::Server, &external);
    mistakes(
        "v1beta3",
        PolicyKind::Server,
        &[
            (json!({}), &["spec.podSelector: missing", "spec.port: missing"]),
            (json!({"externalWorkloadSelector": {}, "port": 80}), &[]),
            (
                with("externalWorkloadSelector", json!({})),
                &["spec.externalWorkloadSelector: a Server is of pods or"],
            ),
            (with("port", json!(0)), &["spec.port: expected a whole number from 1"]),
            (with("port", json!(65536)), &["spec.port"]),
            (
                with("port", json!("8080")),
                &["spec.port: \"8080\" is no name of a port; a number is written without"],
            ),
            (with("port", json!("-http")), &["spec.port"]),
            (with("port", json!("a-name-that-is-too-long")), &["spec.port"]),
            (
                with("proxyProtocol", json!("http")),
                &["spec.proxyProtocol: \"http\" is none of unknown, HTTP/1"],
            ),
            (
                with("accessPolicy", json!("allow")),
                &["spec.accessPolicy: \"allow\" is none of all-unauthenticated"],
            ),
            (with("podSelector", json!({"app": "web"})), &["spec.podSelector.app: unknown field"]),
            (
                with("podSelector", json!({"matchLabels": {"a": 1}})),
                &["spec.podSelector.matchLabels.a: expected a text"],
            ),
            (
                with(
                    "podSelector",
                    json!({"matchExpressions": [
                        {"key": "a", "operator": "In"}, {"key": "a", "operator": "Exists", "values": ["x"]},
                        {"operator": "is"}, {"key": "a", "operator": "NotIn", "values": [1]},
                    ]}),
                ),
                &[
                    "spec.podSelector.matchExpressions[0].values: missing or empty",
                    "spec.podSelector.matchExpressions[1].values: Exists",
                    "spec.podSelector.matchExpressions[2].key: missing",
                    "spec.podSelector.matchExpressions[2].operator: \"is\" is none of",
                    "spec.podSelector.matchExpressions[3].values[0]: expected a text",
                ],
            ),
        ],
    );
}

#[test]
fn selectors() {
    let of = |text: Value| {
        let mut mistakes = crate::resources::strict::Mistakes::default();
        let read = Selector::read("", &text, &mut mistakes).unwrap();
        assert_eq!(mistakes.0, []);
        read
    };
    let one = |operator: &str, values: Value| {
        of(json!({"matchExpressions": [{"key": "a", "operator": operator, "values": values}]}))
    };
    for (selector, [none, x, y]) in [
        (of(json!({"matchLabels": {"a": "x"}})), [false, true, false]),
        (one("In", json!(["x", "z"])), [false, true, false]),
        (one("NotIn", json!(["x"])), [true, false, true]),
        (one("Exists", json!([])), [false, true, true]),
        (one("DoesNotExist", Value::Null), [true, false, false]),
        (
            of(json!({"matchLabels": {"a": "x"}, "matchExpressions": [{"key": "b", "operator": "Exists"}]})),
            [false; 3],
        ),
    ] {
        let found =
            [labels(&[]), labels(&[("a", "x")]), labels(&[("a", "y")])].map(|of| selector.matches(&of));
        assert_eq!(found, [none, x, y], "{selector:?}");
    }
}

#[test]
fn a_server_authorization_is_read() {
    let spec = json!({
        "server": {"selector": {"matchLabels": {"tier": "front"}}},
        "client": {
            "networks": [{"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}, {"cidr": "192.0.2.1"}],
            "meshTLS": {"identities": ["*.shop.serviceaccount.identity.remora.cluster.local"],
                "serviceAccounts": [{"name": "till"}, {"name": "till", "namespace": "bank"}]},
        },
    });
    let Ok(PolicySpec::ServerAuthorization(read)) = read("v1beta1", PolicyKind::ServerAuthorization, &spec)
    else {
        panic!()
    };
    let nets: Vec<String> = read.networks.iter().map(|net| net.net.to_string()).collect();
    assert_eq!(nets, ["10.0.0.0/8", "192.0.2.1/32"]);
    let AnyClients::Authenticated(clients) = &read.clients else { panic!() };
    assert_eq!(clients.suffixes[0].labels[..2], ["shop", "serviceaccount"]);
    let accounts: Vec<String> =
        clients.accounts.iter().map(|account| account.resolve("shop").to_string()).collect();
    assert_eq!(accounts, ["shop/till", "bank/till"]);
}

#[test]
fn mistakes_of_server_authorizations() {
    let of = |client: Value| json!({"server": {"name": "web"}, "client": client});
    mistakes(
        "v1beta1",
        PolicyKind::ServerAuthorization,
        &[
            (json!({}), &["spec.server: missing", "spec.client: missing"]),
            (
                json!({"server": {}, "client": {"unauthenticated": true}}),
                &["spec.server: neither name nor selector"],
            ),
            (
                json!({"server": {"name": "web", "selector": {}}, "client": {"unauthenticated": true}}),
                &["spec.server: both"],
            ),
            (of(json!({})), &["spec.client: neither unauthenticated: true nor meshTLS"]),
            (of(json!({"unauthenticated": false})), &["spec.client: neither"]),
            (
                of(json!({"unauthenticated": "yes"})),
                &["spec.client.unauthenticated: expected true", "spec.client: neither"],
            ),
            (
                of(json!({"unauthenticated": true, "meshTLS": {"unauthenticatedTLS": true}})),
                &["spec.client.meshTLS: beside"],
            ),
            (
                of(json!({"meshTLS": {}})),
                &["spec.client.meshTLS: neither unauthenticatedTLS, identities nor"],
            ),
            (of(json!({"meshTLS": {"identities": []}})), &["spec.client.meshTLS.identities: empty"]),
            (
                of(json!({"meshTLS": {"unauthenticatedTLS": true, "identities": ["*"]}})),
                &["spec.client.meshTLS.identities: beside unauthenticatedTLS"],
            ),
            (
                of(json!({"unauthenticated": true, "networks": [
                    {"cidr": "10.0.0.0/33"}, {}, {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/8", "0.0.0.0/0", "x"]},
                ]})),
                &[
                    "spec.client.networks[0].cidr: \"10.0.0.0/33\" is no network",
                    "spec.client.networks[1].cidr: missing",
                    "spec.client.networks[2].except[0]: 11.0.0.0/8 is not within 10.0.0.0/8",
                    "spec.client.networks[2].except[1]: 0.0.0.0/0 is all of 10.0.0.0/8",
                    "spec.client.networks[2].except[2]: \"x\" is no network",
                ],
            ),
        ],
    );
}

#[test]
fn targets_and_authentications_of_policies() {
    let gateway = "gateway.networking.k8s.io";
    for (target, expected) in [
        (
            json!({"group": "policy.linkerd.io", "kind": "Server", "name": "a"}),
            PolicyTarget::Server("a".into()),
        ),
        (
            json!({"group": gateway, "kind": "HTTPRoute", "name": "a"}),
            PolicyTarget::Route(RouteKind::Http, "a".into()),
        ),
        (
            json!({"group": "policy.linkerd.io", "kind": "HTTPRoute", "name": "a"}),
            PolicyTarget::Route(RouteKind::LinkerdHttp, "a".into()),
        ),
        (
            json!({"group": gateway, "kind": "GRPCRoute", "name": "a"}),
            PolicyTarget::Route(RouteKind::Grpc, "a".into()),
        ),
        (json!({"kind": "Namespace", "name": "shop"}), PolicyTarget::Namespace("shop".into())),
        (
            json!({"group": "core", "kind": "Namespace", "name": "shop"}),
            PolicyTarget::Namespace("shop".into()),
        ),
    ] {
        let spec = json!({"targetRef": target, "requiredAuthenticationRefs": [
            {"group": "policy.linkerd.io", "kind": "MeshTLSAuthentication", "name": "m", "namespace": "mesh"},
            {"group": "policy.linkerd.io", "kind": "NetworkAuthentication", "name": "n"},
        ]});
        let read = read("v1alpha1", PolicyKind::AuthorizationPolicy, &spec);
        let Ok(PolicySpec::AuthorizationPolicy(read)) = read else { panic!("{read:?}") };
        assert_eq!(read.target, expected);
        let Some((path, WhoRef::MeshTls(who))) = &read.who else { panic!() };
        assert_eq!(
            (path.as_str(), who.resolve("shop").to_string()),
            ("spec.requiredAuthenticationRefs[0]", "mesh/m".into())
        );
        assert_eq!(read.from.as_ref().unwrap().1.resolve("shop").to_string(), "shop/n");
    }
}

#[test]
fn mistakes_of_authorization_policies() {
    let reference = |kind: &str| json!({"group": "policy.linkerd.io", "kind": kind, "name": "a"});
    let of = |refs: Value| json!({"targetRef": reference("Server"), "requiredAuthenticationRefs": refs});
    let account = json!({"kind": "ServiceAccount", "name": "till"});
    mistakes(
        "v1alpha1",
        PolicyKind::AuthorizationPolicy,
        &[
            (json!({}), &["spec.targetRef: missing", "spec.requiredAuthenticationRefs: missing"]),
            (of(json!([])), &[]),
            (of(json!([account])), &[]),
            (
                of(json!([reference("Server")])),
                &["spec.requiredAuthenticationRefs[0].kind: Server of policy.linkerd.io is no"],
            ),
            (
                of(json!([reference("MeshTLSAuthentication"), account])),
                &["spec.requiredAuthenticationRefs[1]: a second MeshTLSAuthentication or ServiceAccount"],
            ),
            (
                of(json!([reference("NetworkAuthentication"), reference("NetworkAuthentication")])),
                &["spec.requiredAuthenticationRefs[1]: a second NetworkAuthentication"],
            ),
            (of(json!([{"name": "a"}])), &["spec.requiredAuthenticationRefs[0].kind: missing"]),
            (
                json!({"targetRef": {"kind": "Service", "name": "a", "namespace": "b"}, "requiredAuthenticationRefs": []}),
                &[
                    "spec.targetRef.namespace: unknown field",
                    "spec.targetRef.kind: Service of core cannot be a target",
                ],
            ),
        ],
    );
}

#[test]
fn mesh_tls_authentications() {
    let spec = json!({
        "identities": ["*", "*.Shop.example", "web.shop.example", "spiffe://example/web"],
        "identityRefs": [{"kind": "ServiceAccount", "name": "till"}, {"kind": "Namespace", "name": "bank"}],
    });
    let Ok(PolicySpec::MeshTls(clients)) = read("v1alpha1", PolicyKind::MeshTls, &spec) else { panic!() };
    let suffixes: Vec<_> = clients.suffixes.iter().map(|suffix| suffix.labels.join(".")).collect();
    assert_eq!(suffixes, ["", "shop.example"]);
    let whole: Vec<_> = clients.identities.iter().map(Identity::as_str).collect();
    assert_eq!(whole, ["web.shop.example", "spiffe://example/web"]);
    assert_eq!(clients.accounts[0].resolve("shop"), Name::new("shop", "till"));
    assert_eq!(clients.namespaces, [("spec.identityRefs[1]".to_owned(), "bank".to_owned())]);
    mistakes(
        "v1alpha1",
        PolicyKind::MeshTls,
        &[
            (json!({}), &["spec: neither identities nor identityRefs"]),
            (
                json!({"identities": [], "identityRefs": []}),
                &["spec.identities: empty", "spec.identityRefs: empty"],
            ),
            (
                json!({"identities": ["", "a.*.b", "*a.b", "*.spiffe://a", 1]}),
                &[
                    "spec.identities[0]: empty",
                    "spec.identities[1]: \"a.*.b\" is no identity",
                    "spec.identities[2]",
                    "spec.identities[3]: \"*.spiffe://a\" is no suffix",
                    "spec.identities[4]: expected a text",
                ],
            ),
            (
                json!({"identityRefs": [{"kind": "Pod", "name": "a"}, {"kind": "Namespace", "name": "a", "namespace": "b"}]}),
                &[
                    "spec.identityRefs[0].kind: Pod of core has no identity",
                    "spec.identityRefs[1].namespace: a Namespace is",
                ],
            ),
        ],
    );
}

#[test]
fn network_authentications() {
    mistakes(
        "v1alpha1",
        PolicyKind::Network,
        &[
            (
                json!({"networks": [{"cidr": "10.0.0.0/8"}, {"cidr": "fd00::/8", "except": ["fd00:1::/32"]}]}),
                &[],
            ),
            (json!({}), &["spec.networks: missing"]),
            (json!({"networks": []}), &["spec.networks: empty"]),
            (
                json!({"networks": [{"cidr": "10.0.0.0/8", "not": 1}]}),
                &["spec.networks[0].not: unknown field"],
            ),
        ],
    );
}

#[test]
fn rate_limits() {
    let target = json!({"group": "policy.linkerd.io", "kind": "Server", "name": "web"});
    let of = |field: &str, value: Value| {
        let mut spec = json!({"targetRef": target});
        spec[field] = value;
        spec
    };
    let spec = json!({
        "targetRef": target, "total": {"requestsPerSecond": 100}, "identity": {"requestsPerSecond": 20},
        "overrides": [{"requestsPerSecond": 50, "clientRefs": [{"kind": "ServiceAccount", "name": "till", "namespace": "bank"}]}],
    });
    let Ok(PolicySpec::RateLimit(read)) = read("v1alpha1", PolicyKind::RateLimit, &spec) else { panic!() };
    assert_eq!(
        (read.server.as_str(), read.total.unwrap().get(), read.identity.unwrap().get()),
        ("web", 100, 20)
    );
    assert_eq!(read.overrides[0].clients[0].resolve("shop"), Name::new("bank", "till"));
    mistakes(
        "v1alpha1",
        PolicyKind::RateLimit,
        &[
            (json!({"targetRef": target}), &["spec: neither total, identity nor overrides"]),
            (
                of("total", json!({"requestsPerSecond": 0})),
                &["spec.total.requestsPerSecond: expected a whole number from 1"],
            ),
            (of("total", json!({})), &["spec.total.requestsPerSecond: missing"]),
            (of("identity", json!({"requestsPerSecond": -1})), &["spec.identity.requestsPerSecond"]),
            (
                of("identity", json!({"requestsPerSecond": 4_294_967_296_u64})),
                &["spec.identity.requestsPerSecond"],
            ),
            (
                of(
                    "overrides",
                    json!([{"requestsPerSecond": 1, "clientRefs": []}, {"clientRefs": [{"kind": "Pod", "name": "a"}]}]),
                ),
                &[
                    "spec.overrides[0].clientRefs: empty",
                    "spec.overrides[1].requestsPerSecond: missing",
                    "spec.overrides[1].clientRefs[0].kind: Pod of core has no identity",
                ],
            ),
            (
                json!({"targetRef": {"kind": "Namespace", "name": "shop"}, "total": {"requestsPerSecond": 1}}),
                &["spec.targetRef.kind: Namespace of core cannot be limited"],
            ),
        ],
    );
}

#[test]
fn all_overrides_together_fit_into_a_message() {
    let account = json!({"kind": "ServiceAccount", "name": "till"});
    let of = |count: usize| json!({"requestsPerSecond": 1, "clientRefs": vec![account.clone(); count]});
    let spec = |counts: [usize; 2]| {
        json!({
            "targetRef": {"group": "policy.linkerd.io", "kind": "Server", "name": "web"},
            "overrides": counts.map(of),
        })
    };
    mistakes(
        "v1alpha1",
        PolicyKind::RateLimit,
        &[
            (spec([1000, 24]), &[]),
            (spec([1000, 25]), &["spec.overrides: 1025 clients together, more than 1024"]),
            (spec([1025, 1]), &["spec.overrides[0].clientRefs: 1025 items, more than 1024"]),
        ],
    );
}

//! What a proxy should see, as tables over small manifests.

use super::*;
use crate::{index::Index, resources::Document, watch::Event};
use remora_core::endpoint::ProtocolHint::{self, Http2, Opaque, Unknown};

const CLUSTER: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.96.0.1
  selector: {app: web}
  ports:
  - {name: http, port: 80, targetPort: web}
  - {name: metrics, port: 9090}
  - {name: admin, port: 4191}
  - {name: again, port: 80, targetPort: 1}
  - {name: dns, port: 53, protocol: UDP}
---
apiVersion: v1
kind: Pod
metadata:
  name: web-1
  namespace: shop
  labels: {app: web, linkerd.io/control-plane-ns: remora, pod-template-hash: abc}
  ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: web-abc, uid: u, controller: true}]
spec:
  nodeName: node-a
  serviceAccountName: shopkeeper
  containers:
  - name: app
    ports: [{name: web, containerPort: 8080}]
    livenessProbe: {httpGet: {path: /alive?full=1, port: web}}
    readinessProbe: {httpGet: {port: 8080}}
  initContainers:
  - name: linkerd-proxy
    restartPolicy: Always
    env:
    - {name: LINKERD2_PROXY_INBOUND_LISTEN_ADDR, value: "0.0.0.0:4143"}
    - {name: LINKERD2_PROXY_ADMIN_LISTEN_ADDR, value: "0.0.0.0:4191"}
    - {name: LINKERD2_PROXY_CONTROL_LISTEN_ADDR, value: "[::]:4190"}
status: {podIP: 10.1.0.1, phase: Running, conditions: [{type: Ready, status: "True"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-2, namespace: shop, labels: {app: web}}
spec: {containers: [{name: app, ports: [{name: web, containerPort: 8081}]}]}
status: {podIP: 10.1.0.2}
---
apiVersion: v1
kind: Pod
metadata: {name: web-3, namespace: shop, labels: {app: web}}
spec: {containers: [{name: app, ports: [{name: web, containerPort: 8080}]}]}
status: {podIP: 10.1.0.3, conditions: [{type: Ready, status: "False"}]}
---
apiVersion: v1
kind: Node
metadata: {name: node-a, labels: {topology.kubernetes.io/zone: west}}
"#;

#[test]
fn ready_pods_are_endpoints_each_with_its_own_target_port() {
    let found = get(CLUSTER, "web.shop.svc.cluster.local:80").unwrap();
    assert_eq!(addrs(&found), ["10.1.0.1:8080", "10.1.0.2:8081"]);
    assert_eq!(found.labels["service"], "web");
    assert_eq!(found.labels["namespace"], "shop");
}

#[test]
fn a_meshed_endpoint_says_who_it_is_and_how_to_reach_it() {
    let found = get(CLUSTER, "web.shop.svc.cluster.local:80").unwrap();
    let endpoint = &found.set[&"10.1.0.1:8080".parse().unwrap()];
    let identity = endpoint.identity.as_ref().unwrap();
    assert_eq!(identity.as_str(), "shopkeeper.shop.serviceaccount.identity.remora.cluster.local");
    assert_eq!((endpoint.hint, endpoint.opaque_transport), (Http2, Some(4143)));
    let labels: Vec<_> = endpoint.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let expected = [
        "control_plane_ns=remora",
        "deployment=web",
        "pod=web-1",
        "pod_template_hash=abc",
        "serviceaccount=shopkeeper",
        "zone=west",
    ];
    assert_eq!(labels, expected);
}

#[test]
fn a_pod_without_a_proxy_is_plain() {
    let found = get(CLUSTER, "web.shop.svc.cluster.local:80").unwrap();
    let endpoint = &found.set[&"10.1.0.2:8081".parse().unwrap()];
    assert_eq!((endpoint.meshed, &endpoint.identity, endpoint.opaque_transport), (false, &None, None));
}

#[test]
fn the_proxys_own_ports_take_no_header_and_no_upgrade() {
    let found = get(CLUSTER, "web.shop.svc.cluster.local:4191").unwrap();
    let endpoint = &found.set[&"10.1.0.1:4191".parse().unwrap()];
    assert!(endpoint.identity.is_some());
    assert_eq!((endpoint.hint, endpoint.opaque_transport), (Unknown, None));
}

#[test]
fn rules_of_a_meshed_endpoint() {
    let annotated = |annotation: &str| {
        CLUSTER.replacen(
            "  namespace: shop\n  labels: {app: web, linkerd.io",
            &format!("  namespace: shop\n  annotations: {{{annotation}}}\n  labels: {{app: web, linkerd.io"),
            1,
        )
    };
    let web_1 = |manifests: &str, settings: Settings| -> Option<(bool, ProtocolHint, Option<u16>)> {
        let index = index(manifests);
        let name = Name::new("shop", "web");
        let found =
            endpoints(&mut Lens::new(&index), &settings, (&name, None, 80), &Context::default()).unwrap();
        let endpoint = found.set.get(&"10.1.0.1:8080".parse().unwrap())?;
        Some((endpoint.identity.is_some(), endpoint.hint, endpoint.opaque_transport))
    };
    let transparent = Settings { transport_mode: TransportMode::Transparent, ..settings() };
    let opaque = annotated("config.linkerd.io/opaque-ports: '1-9000'");
    for (what, manifests, settings, expected) in [
        ("as it is", CLUSTER.to_owned(), settings(), Some((true, Http2, Some(4143)))),
        ("transparent", CLUSTER.to_owned(), transparent.clone(), Some((true, Http2, None))),
        (
            "no upgrade",
            CLUSTER.to_owned(),
            Settings { h2_upgrade: false, ..settings() },
            Some((true, Unknown, Some(4143))),
        ),
        ("opaque", opaque.clone(), settings(), Some((true, Opaque, Some(4143)))),
        (
            "opaque by name",
            annotated("config.linkerd.io/opaque-ports: web"),
            settings(),
            Some((true, Opaque, Some(4143))),
        ),
        ("opaque, transparent", opaque, transparent, Some((true, Opaque, Some(4143)))),
        (
            "opaque by namespace",
            CLUSTER.replacen(
                "{name: shop}",
                "{name: shop, annotations: {config.linkerd.io/opaque-ports: '8080'}}",
                1,
            ),
            settings(),
            Some((true, Opaque, Some(4143))),
        ),
        (
            "skipped",
            annotated("config.linkerd.io/skip-inbound-ports: 8000-8100"),
            settings(),
            Some((false, Unknown, None)),
        ),
        (
            "another port skipped",
            annotated("config.linkerd.io/skip-inbound-ports: '80'"),
            settings(),
            Some((true, Http2, Some(4143))),
        ),
        (
            "another mesh",
            CLUSTER.replace("control-plane-ns: remora", "control-plane-ns: linkerd"),
            settings(),
            Some((false, Http2, None)),
        ),
        (
            "no label",
            CLUSTER.replace("linkerd.io/control-plane-ns: remora, ", ""),
            settings(),
            Some((false, Unknown, None)),
        ),
        ("no proxy", CLUSTER.replace("name: linkerd-proxy", "name: proxy"), settings(), None),
        ("env is no literal", CLUSTER.replace("0.0.0.0:4143", "$(POD_IP):4143"), settings(), None),
        (
            "own inbound port",
            CLUSTER.replace("0.0.0.0:4143", "0.0.0.0:14143"),
            settings(),
            Some((true, Http2, Some(14143))),
        ),
    ] {
        assert_eq!(web_1(&manifests, settings), expected, "{what}");
    }
}

const SLICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {clusterIP: 10.96.0.2, ports: [{name: sql, port: 5000, targetPort: 5001}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: db-1, namespace: shop, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
ports: [{name: sql, port: 5002}, {name: other, port: 1}, {name: sql, port: 53, protocol: UDP}]
endpoints:
- {addresses: [10.2.0.1], nodeName: node-a, zone: west, hints: {forZones: [{name: west}]}, conditions: {ready: true}}
- {addresses: [10.2.0.2], nodeName: node-b, zone: east, hints: {forZones: [{name: east}]}}
- {addresses: [10.2.0.3], conditions: {ready: false}, hints: {forZones: [{name: west}]}}
- {addresses: [10.2.0.4], conditions: {ready: true, terminating: true}, hints: {forZones: [{name: west}]}}
---
apiVersion: v1
kind: Node
metadata: {name: node-a, labels: {topology.kubernetes.io/zone: west}}
";

#[test]
fn slices_say_who_the_endpoints_are_and_where() {
    let target = "db.shop.svc.cluster.local:5000";
    let both = ["10.2.0.1:5002", "10.2.0.2:5002"];
    let local =
        SLICES.replace("clusterIP: 10.96.0.2,", "clusterIP: 10.96.0.2, internalTrafficPolicy: Local,");
    let unready = SLICES.replace("clusterIP: 10.96.0.2,", "publishNotReadyAddresses: true,");
    let one_without_hint = SLICES.replace(", hints: {forZones: [{name: east}]}", "");
    for (what, manifests, node, expected) in [
        ("client of unknown place", SLICES, None, &both[..]),
        ("client in the west", SLICES, Some("node-a"), &both[..1]),
        ("client on a node without a zone", SLICES, Some("node-b"), &both[..]),
        ("an endpoint without a hint", &one_without_hint, Some("node-a"), &both[..]),
        ("local, node a", &local, Some("node-a"), &both[..1]),
        ("local, node b", &local, Some("node-b"), &both[1..]),
        ("local, unknown node", &local, None, &[]),
        (
            "not ready too",
            &unready,
            None,
            &["10.2.0.1:5002", "10.2.0.2:5002", "10.2.0.3:5002", "10.2.0.4:5002"],
        ),
    ] {
        let context = Context { node: node.map(str::to_owned), ..Context::default() };
        let found = get_for(manifests, target, &context).unwrap();
        assert_eq!(addrs(&found), expected, "{what}");
    }
}

#[test]
fn of_two_families_a_pod_is_seen_by_its_ipv6_address() {
    let pod = "
apiVersion: v1
kind: Service
metadata: {name: s, namespace: n}
spec: {clusterIP: None, FAMILIES selector: {app: s}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: p, namespace: n, labels: {app: s}}
spec: {hostname: first, subdomain: s, containers: []}
status: {podIP: 10.1.0.9, podIPs: [{ip: 10.1.0.9}, {ip: 'fd00::9'}]}
";
    for (families, expected) in [
        ("", "10.1.0.9:80"),
        ("ipFamilies: [IPv4],", "10.1.0.9:80"),
        ("ipFamilies: [IPv6],", "[fd00::9]:80"),
        ("ipFamilies: [IPv4, IPv6],", "[fd00::9]:80"),
    ] {
        let found = get(&pod.replace("FAMILIES", families), "s.n.svc.cluster.local:80").unwrap();
        assert_eq!(addrs(&found), [expected], "{families}");
    }
    let manifests = pod.replace("FAMILIES", "");
    assert_eq!(addrs(&get(&manifests, "first.s.n.svc.cluster.local:80").unwrap()), ["10.1.0.9:80"]);
    assert_eq!(addrs(&get(&manifests, "second.s.n.svc.cluster.local:80").unwrap()), [""; 0]);
    // A headless Service's pods may listen on ports that it does not mention.
    assert_eq!(addrs(&get(&manifests, "s.n.svc.cluster.local:99").unwrap()), ["10.1.0.9:99"]);
}

#[test]
fn what_is_not_there_is_not_found() {
    let external = "{apiVersion: v1, kind: Service, metadata: {name: out, namespace: shop}, spec: {type: ExternalName, externalName: a.example}}";
    for target in ["out.shop.svc.cluster.local:80", "none.shop.svc.cluster.local:80"] {
        assert!(matches!(get(external, target), Err(Refusal::NotFound(_))), "{target}");
        let target = Target::parse(target, "cluster.local").unwrap();
        let index = index(external);
        assert!(matches!(profile(&mut Lens::new(&index), &settings(), &target), Err(Refusal::NotFound(_))));
        assert!(matches!(outbound(&mut Lens::new(&index), &settings(), &target), Err(Refusal::NotFound(_))));
    }
}

#[test]
fn an_answer_depends_on_what_it_looked_at() {
    let index = index(CLUSTER);
    let mut lens = Lens::new(&index);
    let context = Context { node: Some("node-a".to_owned()), ..Context::default() };
    endpoints(&mut lens, &settings(), (&Name::new("shop", "web"), None, 80), &context).unwrap();
    let expected = [Key::Service(Name::new("shop", "web")), Key::Namespace("shop".to_owned())];
    assert_eq!(lens.into_keys(), expected.into());
}

#[test]
fn profiles() {
    let opaque = CLUSTER.replacen(
        "{name: web, namespace: shop}",
        "{name: web, namespace: shop, annotations: {config.linkerd.io/opaque-ports: 'http'}}",
        1,
    );
    let service = |opaque| format!("service shop/web:80 opaque={opaque}");
    for (manifests, target, expected) in [
        (CLUSTER, "10.96.0.1:80", service(false)),
        (CLUSTER, "web.shop.svc.cluster.local:80", service(false)),
        (&opaque, "10.96.0.1:80", service(true)),
        (CLUSTER, "10.96.0.1:81", "undefined".to_owned()),
        (
            CLUSTER,
            "10.1.0.1:8080",
            "endpoint 10.1.0.1:8080 meshed=true namespace=shop opaque=false".to_owned(),
        ),
        (
            CLUSTER,
            "10.1.0.1:6379",
            "endpoint 10.1.0.1:6379 meshed=true namespace=shop opaque=true".to_owned(),
        ),
        (
            CLUSTER,
            "10.1.0.2:8081",
            "endpoint 10.1.0.2:8081 meshed=false namespace=shop opaque=false".to_owned(),
        ),
        (CLUSTER, "192.0.2.1:443", "endpoint 192.0.2.1:443 meshed=false namespace= opaque=false".to_owned()),
        (CLUSTER, "192.0.2.1:3306", "endpoint 192.0.2.1:3306 meshed=false namespace= opaque=true".to_owned()),
        (
            CLUSTER,
            "[2001:db8::1]:443",
            "endpoint [2001:db8::1]:443 meshed=false namespace= opaque=false".to_owned(),
        ),
    ] {
        let index = index(manifests);
        let target = Target::parse(target, "cluster.local").unwrap();
        let described = match profile(&mut Lens::new(&index), &settings(), &target).unwrap() {
            Profile::Service { name, port, opaque } => format!("service {name}:{port} opaque={opaque}"),
            Profile::UndefinedPort => "undefined".to_owned(),
            Profile::Endpoint { addr, endpoint, opaque } => {
                let namespace = endpoint.labels.get("namespace").cloned().unwrap_or_default();
                format!("endpoint {addr} meshed={} namespace={namespace} opaque={opaque}", endpoint.meshed)
            }
        };
        assert_eq!(described, expected, "{target:?}");
    }
}

#[test]
fn a_pod_that_claims_a_proxy_without_one_has_no_profile() {
    let index = index(&CLUSTER.replace("name: linkerd-proxy", "name: proxy"));
    let target = Target::Addr("10.1.0.1:8080".parse().unwrap());
    let seen = profile(&mut Lens::new(&index), &settings(), &target);
    assert!(matches!(&seen, Err(Refusal::NotFound(reason)) if reason.contains("shop/web-1")), "{seen:?}");
}

#[test]
fn outbound_policies() {
    let with = |port: &str| CLUSTER.replacen("{name: metrics, port: 9090}", port, 1);
    let app = |protocol: &str| with(&format!("{{name: metrics, port: 9090, appProtocol: {protocol}}}"));
    let service = |protocol| Ok(Outbound::Service { name: Name::new("shop", "web"), port: 9090, protocol });
    for (manifests, target, expected) in [
        (CLUSTER.to_owned(), "10.96.0.1:9090", service(PortProtocol::Detect)),
        (CLUSTER.to_owned(), "web.shop.svc.cluster.local:9090", service(PortProtocol::Detect)),
        (app("http"), "10.96.0.1:9090", service(PortProtocol::Http1)),
        (app("kubernetes.io/h2c"), "10.96.0.1:9090", service(PortProtocol::Http2)),
        (app("linkerd.io/tcp"), "10.96.0.1:9090", service(PortProtocol::Opaque)),
        (app("kubernetes.io/wss"), "10.96.0.1:9090", service(PortProtocol::Opaque)),
        (app("''"), "10.96.0.1:9090", service(PortProtocol::Detect)),
        (
            app("http").replacen(
                "web, namespace: shop}",
                "web, namespace: shop, annotations: {config.linkerd.io/opaque-ports: '9090'}}",
                1,
            ),
            "10.96.0.1:9090",
            service(PortProtocol::Opaque),
        ),
        (
            CLUSTER.to_owned(),
            "10.96.0.1:53",
            Ok(Outbound::UndefinedPort { name: Name::new("shop", "web"), port: 53 }),
        ),
        (CLUSTER.to_owned(), "192.0.2.1:443", Ok(Outbound::External("192.0.2.1:443".parse().unwrap()))),
        (
            CLUSTER.to_owned(),
            "[2001:db8::1]:443",
            Ok(Outbound::External("[2001:db8::1]:443".parse().unwrap())),
        ),
        (CLUSTER.to_owned(), "10.1.0.1:8080", Err(())),
        (CLUSTER.to_owned(), "[::ffff:10.1.0.1]:8080", Err(())),
        (CLUSTER.to_owned(), "none.shop.svc.cluster.local:80", Err(())),
    ] {
        let index = index(&manifests);
        let target = Target::parse(target, "cluster.local").unwrap();
        let seen = outbound(&mut Lens::new(&index), &settings(), &target);
        assert_eq!(
            seen.map_err(|refusal| assert!(matches!(refusal, Refusal::NotFound(_)))),
            expected,
            "{target:?}"
        );
    }
}

#[test]
fn inbound_policies() {
    use DefaultPolicy::{
        AllAuthenticated, AllUnauthenticated, Audit, ClusterAuthenticated, ClusterUnauthenticated, Deny,
    };
    let pod = |annotations: &str| {
        CLUSTER.replacen("name: web-1\n", &format!("name: web-1\n  annotations: {{{annotations}}}\n"), 1)
    };
    let namespace = |policy: &str| {
        CLUSTER.replacen(
            "{name: shop}",
            &format!("{{name: shop, annotations: {{config.linkerd.io/default-inbound-policy: {policy}}}}}"),
            1,
        )
    };
    let of_pod = |policy: &str| pod(&format!("config.linkerd.io/default-inbound-policy: {policy}"));
    let required = |policy: &str| {
        pod(&format!(
            "config.linkerd.io/default-inbound-policy: {policy}, config.linkerd.io/proxy-require-identity-inbound-ports: '8080'"
        ))
    };
    for (manifests, port, policy, opaque, probes) in [
        (CLUSTER.to_owned(), 8080, AllUnauthenticated, false, &["/", "/alive"][..]),
        (CLUSTER.to_owned(), 9090, AllUnauthenticated, false, &[]),
        (CLUSTER.to_owned(), 6379, AllUnauthenticated, true, &[]),
        (pod("config.linkerd.io/opaque-ports: ''"), 6379, AllUnauthenticated, false, &[]),
        (namespace("deny"), 9090, Deny, false, &[]),
        (namespace("none-such"), 9090, AllUnauthenticated, false, &[]),
        (of_pod("cluster-authenticated"), 9090, ClusterAuthenticated, false, &[]),
        (of_pod("none-such"), 9090, AllUnauthenticated, false, &[]),
        (required("all-unauthenticated"), 9090, AllUnauthenticated, false, &[]),
        (required("all-unauthenticated"), 8080, AllAuthenticated, false, &["/", "/alive"]),
        (required("cluster-unauthenticated"), 8080, ClusterAuthenticated, false, &["/", "/alive"]),
        (required("cluster-unauthenticated"), 9090, ClusterUnauthenticated, false, &[]),
        (required("audit"), 8080, AllAuthenticated, false, &["/", "/alive"]),
        (required("audit"), 9090, Audit, false, &[]),
        (required("deny"), 8080, Deny, false, &["/", "/alive"]),
    ] {
        let index = index(&manifests);
        let workload = Workload::parse(r#"{"ns":"shop","pod":"web-1"}"#).unwrap();
        let seen = inbound(&mut Lens::new(&index), &settings(), &workload, port).unwrap();
        let probes = probes.iter().map(|probe| (*probe).to_owned()).collect();
        assert_eq!(seen, Inbound { policy, opaque, probes }, "port {port} of {manifests}");
    }
    let index = index(CLUSTER);
    let nobody = Workload::parse("shop:nobody").unwrap();
    assert!(matches!(inbound(&mut Lens::new(&index), &settings(), &nobody, 80), Err(Refusal::NotFound(_))));
}

#[test]
fn workloads_that_nobody_has() {
    for text in ["", "shop", "shop:", ":web", r#"{"ns":"shop"}"#, "shop:we b", "{}", "shop:WEB"] {
        assert!(matches!(Workload::parse(text), Err(Refusal::Invalid(_))), "{text}");
    }
}

#[test]
fn context_tokens() {
    let full = Context::parse(r#"{"ns":"shop","nodeName":"node-a","pod":"web-1"}"#);
    assert_eq!((full.namespace.as_deref(), full.node.as_deref()), (Some("shop"), Some("node-a")));
    assert_eq!(Context::parse("ns:shop").namespace.as_deref(), Some("shop"));
    assert_eq!(Context::parse("{garbage"), Context::default());
}

/// The settings of a process without flags.
pub(crate) fn settings() -> Settings {
    let networks = "10.0.0.0/8,100.64.0.0/10,172.16.0.0/12,192.168.0.0/16,fd00::/8";
    Settings {
        cluster_domain: "cluster.local".to_owned(),
        trust_domain: "cluster.local".to_owned(),
        control_namespace: "remora".to_owned(),
        cluster_networks: networks.split(',').map(|net| net.parse().unwrap()).collect(),
        probe_networks: vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()],
        default_inbound_policy: DefaultPolicy::AllUnauthenticated,
        default_opaque_ports: [25, 587, 3306, 4444, 5432, 6379, 9300, 11211].into_iter().collect(),
        transport_mode: TransportMode::TransportHeader,
        h2_upgrade: true,
    }
}

fn index(manifests: &str) -> Index {
    let mut index = Index::default();
    for document in
        crate::resources::parse(manifests).unwrap_or_else(|errors| panic!("{errors:?} in {manifests}"))
    {
        match document {
            Document::Known(resource) => index.apply(Event::Apply(resource)),
            Document::Unread(what) => panic!("{what} is not read"),
        };
    }
    index
}

fn get(manifests: &str, target: &str) -> Result<Endpoints, Refusal> {
    get_for(manifests, target, &Context::default())
}

fn get_for(manifests: &str, target: &str, context: &Context) -> Result<Endpoints, Refusal> {
    let index = index(manifests);
    match Target::parse(target, "cluster.local").unwrap() {
        Target::Service { name, host, port } => {
            endpoints(&mut Lens::new(&index), &settings(), (&name, host.as_deref(), port), context)
        }
        Target::Addr(addr) => panic!("{addr} is no name"),
    }
}

fn addrs(found: &Endpoints) -> Vec<String> {
    found.set.keys().map(ToString::to_string).collect()
}

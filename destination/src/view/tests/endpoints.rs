//! Who the endpoints of a target are, and what is said of each.

use super::*;
use remora_core::endpoint::ProtocolHint::{self, Http2, Opaque, Unknown};

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
fn who_chooses_among_zones_is_told_of_all() {
    let target = "db.shop.svc.cluster.local:5000";
    let one_without_hint = SLICES.replace(", hints: {forZones: [{name: east}]}", "");
    for (what, manifests, node, expected) in [
        ("client in the west", SLICES, Some("node-a"), [Some("local"), Some("remote")]),
        ("client of unknown place", SLICES, None, [None, None]),
        ("an endpoint without a hint", &one_without_hint, Some("node-a"), [None, None]),
    ] {
        let node = node.map(str::to_owned);
        let context = Context { node, chooses_zones: true, ..Context::default() };
        let found = get_for(manifests, target, &context).unwrap();
        let localities = found.set.values().map(|one| one.labels.get("zone_locality").map(String::as_str));
        assert_eq!(localities.collect::<Vec<_>>(), expected, "{what}");
    }
}

#[test]
fn a_pod_may_have_another_share_than_the_others() {
    let annotated = CLUSTER.replacen(
        "  namespace: shop\n  labels: {app: web, linkerd.io",
        "  namespace: shop\n  annotations: {balancer.remora.io/weight: '50'}\n  labels: {app: web, linkerd.io",
        1,
    );
    let found = get(&annotated, "web.shop.svc.cluster.local:80").unwrap();
    let weights: Vec<_> = found.set.values().map(|endpoint| endpoint.weight).collect();
    assert_eq!(weights, [Some(5_000), None]);
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
fn an_answer_depends_on_what_it_looked_at() {
    let index = index(CLUSTER);
    let mut lens = Lens::new(&index);
    let context = Context { node: Some("node-a".to_owned()), ..Context::default() };
    endpoints(&mut lens, &settings(), (&Name::new("shop", "web"), None, 80), &context).unwrap();
    let expected = [Key::Service(Name::new("shop", "web")), Key::Namespace("shop".to_owned())];
    assert_eq!(lens.into_keys(), expected.into());
}

fn addrs(found: &Endpoints) -> Vec<String> {
    found.set.keys().map(ToString::to_string).collect()
}

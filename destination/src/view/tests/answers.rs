//! Profiles, and the policies of both directions.

use super::*;

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
        let described = match profile(&mut Lens::new(&index), &settings(), &target, &Context::default())
            .unwrap()
        {
            Profile::Service { name, port, opaque, profile: None } => {
                format!("service {name}:{port} opaque={opaque}")
            }
            Profile::Service { .. } => panic!("nobody wrote a ServiceProfile"),
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
    let seen = profile(&mut Lens::new(&index), &settings(), &target, &Context::default());
    assert!(matches!(&seen, Err(Refusal::NotFound(reason)) if reason.contains("shop/web-1")), "{seen:?}");
}

#[test]
fn outbound_policies() {
    let with = |port: &str| CLUSTER.replacen("{name: metrics, port: 9090}", port, 1);
    let app = |protocol: &str| with(&format!("{{name: metrics, port: 9090, appProtocol: {protocol}}}"));
    let service = |protocol| {
        Ok(Outbound::Service(Box::new(ServicePolicy {
            name: Name::new("shop", "web"),
            port: 9090,
            protocol,
            routes: vec![],
            resilience: Resilience::default(),
            accrual: None,
            balancers: Balancers::new(),
        })))
    };
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
        (CLUSTER.to_owned(), "10.1.0.9:8081", Err(())),
        (CLUSTER.to_owned(), "[::ffff:10.1.0.1]:8080", Err(())),
        (CLUSTER.to_owned(), "none.shop.svc.cluster.local:80", Err(())),
    ] {
        let index = index(&manifests);
        let target = Target::parse(target, "cluster.local").unwrap();
        let seen = outbound(&mut Lens::new(&index), &settings(), &target, None);
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
        let protocol = if opaque { ServerProtocol::Opaque } else { ServerProtocol::Detect };
        assert_eq!(
            (&seen.server, seen.protocol),
            (&ServerRef::Default(policy), protocol),
            "port {port} of {manifests}"
        );
        assert!(seen.probes.iter().eq(probes), "{:?} of port {port} of {manifests}", seen.probes);
    }
    let index = index(CLUSTER);
    let nobody = Workload::parse("shop:nobody").unwrap();
    assert!(matches!(inbound(&mut Lens::new(&index), &settings(), &nobody, 80), Err(Refusal::NotFound(_))));
}

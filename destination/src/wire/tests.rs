//! What goes onto the wire, against what proxies insist on.

mod policies;
mod routes;

use super::*;
use crate::{
    resources::{Document, Name, Resource, parse},
    view::{Chosen, Outbound, PortProtocol, Profile, Resilience, ServicePolicy, settings_for_tests},
};
use linkerd2_proxy_api::outbound as outbound_api;
use remora_core::identity::Identity;

fn meshed() -> Endpoint {
    Endpoint {
        weight: None,
        labels: [("pod".to_owned(), "p".to_owned())].into(),
        identity: Some(Identity::parse("sa.ns.serviceaccount.identity.remora.cluster.local").unwrap()),
        meshed: true,
        hint: ProtocolHint::Http2,
        opaque_transport: Some(4143),
    }
}

fn of(addrs: &[(&str, Endpoint)]) -> Endpoints {
    Endpoints {
        labels: [("service".to_owned(), "s".to_owned())].into(),
        set: addrs.iter().map(|(addr, endpoint)| (addr.parse().unwrap(), endpoint.clone())).collect(),
    }
}

/// `+addr` and `-addr`, message by message.
fn words(updates: &[api::Update]) -> Vec<Vec<String>> {
    let addr = |addr: &net::TcpAddress| {
        let ip = std::net::IpAddr::try_from(addr.ip.unwrap()).unwrap();
        SocketAddr::new(ip, addr.port.try_into().unwrap())
    };
    let message = |update: &api::Update| match update.update.as_ref().unwrap() {
        api::update::Update::Add(set) => {
            set.addrs.iter().map(|added| format!("+{}", addr(added.addr.as_ref().unwrap()))).collect()
        }
        api::update::Update::Remove(set) => {
            set.addrs.iter().map(|removed| format!("-{}", addr(removed))).collect()
        }
        api::update::Update::NoEndpoints(none) => vec![format!("none exists={}", none.exists)],
    };
    updates.iter().map(message).collect()
}

#[test]
fn only_differences_are_sent() {
    let plain = Endpoint::default;
    let (a, b) = ("10.0.0.1:80", "10.0.0.2:80");
    let none: [Vec<String>; 0] = [];
    for (what, old, new, expected) in [
        ("nothing changed", of(&[(a, plain())]), of(&[(a, plain())]), &[][..]),
        ("one more", of(&[(a, plain())]), of(&[(a, plain()), (b, plain())]), &[&["+10.0.0.2:80"][..]]),
        ("one less", of(&[(a, plain()), (b, plain())]), of(&[(b, plain())]), &[&["-10.0.0.1:80"]]),
        ("one replaced", of(&[(a, plain())]), of(&[(b, plain())]), &[&["+10.0.0.2:80"], &["-10.0.0.1:80"]]),
        ("one different", of(&[(a, plain())]), of(&[(a, meshed())]), &[&["+10.0.0.1:80"]]),
        ("last one gone", of(&[(a, plain())]), of(&[]), &[&["-10.0.0.1:80"]]),
    ] {
        let expected: Vec<Vec<String>> =
            expected.iter().map(|message| message.iter().map(|word| (*word).to_owned()).collect()).collect();
        assert_eq!(words(&difference(&old, &new)), expected, "{what}");
    }
    let mut relabelled = of(&[(a, plain())]);
    relabelled.labels.clear();
    assert_eq!(words(&difference(&of(&[(a, plain())]), &relabelled)), [["+10.0.0.1:80"]]);
    assert_eq!(words(&[everything(&of(&[]))]), [none[..].concat()]);
    assert_eq!(words(&[does_not_exist()]), [["none exists=false"]]);
}

#[test]
fn a_meshed_endpoint_carries_all_that_a_dial_needs() {
    let api::Update { update: Some(api::update::Update::Add(set)) } =
        everything(&of(&[("[fd00::1]:8080", meshed())]))
    else {
        panic!("no add")
    };
    assert_eq!(set.metric_labels["service"], "s");
    let addr = &set.addrs[0];
    assert_eq!((addr.weight, addr.metric_labels["pod"].as_str()), (10_000, "p"));
    let tls = addr.tls_identity.as_ref().unwrap();
    assert_eq!(tls.server_name.as_ref().unwrap().name, "sa.ns.serviceaccount.identity.remora.cluster.local");
    assert!(
        matches!(&tls.strategy, Some(api::tls_identity::Strategy::DnsLikeIdentity(name)) if Some(name) == tls.server_name.as_ref())
    );
    let hint = addr.protocol_hint.as_ref().unwrap();
    assert!(matches!(hint.protocol, Some(api::protocol_hint::Protocol::H2(_))));
    assert_eq!(hint.opaque_transport.as_ref().unwrap().inbound_port, 4143);
    let keep_alive = addr.http2.as_ref().unwrap().keep_alive.as_ref().unwrap();
    assert_eq!(
        (keep_alive.interval, keep_alive.timeout, keep_alive.while_idle),
        (Some(seconds(10)), Some(seconds(3)), true)
    );
}

#[test]
fn a_plain_endpoint_carries_none_of_it() {
    let addr = weighted_addr("10.0.0.1:80".parse().unwrap(), &Endpoint::default());
    assert_eq!((addr.tls_identity, addr.protocol_hint, addr.http2), (None, None, None));
}

#[test]
fn profiles_of_services_and_addresses() {
    let settings = settings_for_tests();
    let service = Profile::Service { name: Name::new("shop", "web"), port: 80, opaque: true, profile: None };
    let profile = destination_profile(&service, &settings);
    assert_eq!(profile.fully_qualified_name, "web.shop.svc.cluster.local");
    assert!(profile.opaque_protocol && profile.endpoint.is_none());
    assert_eq!(profile.parent_ref, Some(service_ref("shop", "web", 80)));
    let budget = profile.retry_budget.unwrap();
    assert_eq!((budget.min_retries_per_second, budget.ttl), (10, Some(seconds(10))));
    assert!((budget.retry_ratio - 0.2).abs() < f32::EPSILON);
    let addr = "10.0.0.1:80".parse().unwrap();
    let endpoint =
        destination_profile(&Profile::Endpoint { addr, endpoint: meshed(), opaque: false }, &settings);
    assert!(endpoint.fully_qualified_name.is_empty() && endpoint.endpoint.is_some());
    let undefined = destination_profile(&Profile::UndefinedPort, &settings);
    assert!(undefined.fully_qualified_name.is_empty() && undefined.endpoint.is_none());
}

#[test]
fn a_service_profile_is_written_as_linkerds_controller_writes_it() {
    let text = "
        {apiVersion: linkerd.io/v1alpha2, kind: ServiceProfile,
         metadata: {name: web.shop.svc.cluster.local, namespace: till}, spec: {
           routes: [{name: GET /a, condition: {method: GET, pathRegex: /a, not: {method: PURGE}}, isRetryable: true,
             timeout: 1500ms, responseClasses: [{condition: {any: [{status: {min: 500}}]}, isFailure: true}]}],
           retryBudget: {retryRatio: 0.3, minRetriesPerSecond: 7, ttl: 20s},
           dstOverrides: [{authority: a.shop.svc.cluster.local, weight: 900m}, {authority: 'b:81', weight: 100m}]}}";
    let spec = match parse(text).unwrap().remove(0) {
        Document::Known(Resource::ServiceProfile(profile)) => profile.spec,
        other => panic!("{other:?}"),
    };
    let chosen = Chosen { name: Name::new("till", "web.shop.svc.cluster.local"), spec };
    let service =
        Profile::Service { name: Name::new("shop", "web"), port: 80, opaque: false, profile: Some(chosen) };
    let profile = destination_profile(&service, &settings_for_tests());
    assert_eq!(profile.fully_qualified_name, "web.shop.svc.cluster.local");
    let Some(meta::metadata::Kind::Resource(reference)) = profile.profile_ref.unwrap().kind else { panic!() };
    assert_eq!((&*reference.kind, &*reference.namespace), ("ServiceProfile", "till"));
    let budget = profile.retry_budget.unwrap();
    assert_eq!((budget.min_retries_per_second, budget.ttl), (7, Some(seconds(20))));
    let overrides: Vec<_> =
        profile.dst_overrides.iter().map(|dst| (dst.authority.as_str(), dst.weight)).collect();
    assert_eq!(overrides, [("a.shop.svc.cluster.local:80", 9_000), ("b:81", 1_000)]);
    let route = &profile.routes[0];
    assert_eq!(route.metrics_labels, [("route".to_owned(), "GET /a".to_owned())].into());
    assert!(route.is_retryable);
    assert_eq!(route.timeout, Some(prost_types::Duration { seconds: 1, nanos: 500_000_000 }));
    let words = format!("{:?}", route.condition.as_ref().unwrap());
    let order = ["All(", "Registered(Get)", "Not(", "Unregistered(\"PURGE\")", "regex: \"/a\""];
    let found: Vec<_> = order.iter().map(|word| words.find(word)).collect();
    assert!(found.is_sorted() && !found.contains(&None), "{words}");
    let words = format!("{:?}", route.response_classes[0]);
    assert!(words.contains("min: 500, max: 500") && words.contains("is_failure: true"), "{words}");
}

/// Every backend of a policy, whatever its protocol.
fn backends(kind: &outbound_api::proxy_protocol::Kind) -> Vec<&outbound_api::Backend> {
    use outbound_api::{HttpRoute, OpaqueRoute, http_route, opaque_route, proxy_protocol::Kind};
    fn of_http(routes: &[HttpRoute]) -> impl Iterator<Item = &outbound_api::Backend> {
        let rules = routes.iter().flat_map(|route| &route.rules);
        rules.flat_map(|rule| match rule.backends.as_ref().unwrap().kind.as_ref().unwrap() {
            http_route::distribution::Kind::FirstAvailable(first) => {
                first.backends.iter().map(|b| b.backend.as_ref().unwrap()).collect()
            }
            _ => Vec::new(),
        })
    }
    fn of_opaque(routes: &[OpaqueRoute]) -> impl Iterator<Item = &outbound_api::Backend> {
        let rules = routes.iter().flat_map(|route| &route.rules);
        rules.flat_map(|rule| match rule.backends.as_ref().unwrap().kind.as_ref().unwrap() {
            opaque_route::distribution::Kind::FirstAvailable(first) => {
                first.backends.iter().map(|b| b.backend.as_ref().unwrap()).collect()
            }
            _ => Vec::new(),
        })
    }
    match kind {
        Kind::Detect(detect) => of_http(&detect.http1.as_ref().unwrap().routes)
            .chain(of_http(&detect.http2.as_ref().unwrap().routes))
            .chain(of_opaque(&detect.opaque.as_ref().unwrap().routes))
            .collect(),
        Kind::Http1(http) => of_http(&http.routes).collect(),
        Kind::Http2(http) => of_http(&http.routes).collect(),
        Kind::Opaque(opaque) => of_opaque(&opaque.routes).collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_backend_has_metadata_a_queue_and_somewhere_to_go() {
    let settings = settings_for_tests();
    let service = |protocol| {
        Outbound::Service(Box::new(ServicePolicy {
            name: Name::new("shop", "web"),
            port: 8080,
            protocol,
            routes: vec![],
            resilience: Resilience::default(),
            accrual: None,
            balancers: crate::view::Balancers::new(),
        }))
    };
    for (outbound, count) in [
        (service(PortProtocol::Detect), 3),
        (service(PortProtocol::Http1), 1),
        (service(PortProtocol::Http2), 1),
        (service(PortProtocol::Opaque), 1),
    ] {
        let policy = policy(&outbound, &settings);
        assert_eq!(policy.metadata, Some(service_ref("shop", "web", 8080)));
        let kind = policy.protocol.unwrap().kind.unwrap();
        let backends = backends(&kind);
        assert_eq!(backends.len(), count, "{outbound:?}");
        for backend in backends {
            assert_eq!(backend.metadata, Some(service_ref("shop", "web", 8080)));
            assert!(backend.queue.as_ref().unwrap().failfast_timeout.is_some());
            let Some(outbound_api::backend::Kind::Balancer(balancer)) = &backend.kind else {
                panic!("{backend:?}")
            };
            let outbound_api::backend::endpoint_discovery::Kind::Dst(get) =
                balancer.discovery.as_ref().unwrap().kind.as_ref().unwrap();
            assert_eq!(get.path, "web.shop.svc.cluster.local:8080");
            let Some(outbound_api::backend::balance_p2c::Load::PeakEwma(ewma)) = &balancer.load else {
                panic!("no EWMA")
            };
            assert_eq!(ewma.default_rtt, Some(prost_types::Duration { seconds: 0, nanos: 30_000_000 }));
            assert_eq!(ewma.decay, Some(seconds(10)));
        }
    }
}

#[test]
fn egress_is_forwarded_under_its_name() {
    let external = policy(&Outbound::External("192.0.2.1:443".parse().unwrap()), &settings_for_tests());
    assert_eq!(external.metadata, Some(default_ref("egress-fallback")));
    let kind = external.protocol.unwrap().kind.unwrap();
    for backend in backends(&kind) {
        assert_eq!(backend.metadata, Some(default_ref("egress-fallback")));
        let Some(outbound_api::backend::Kind::Forward(addr)) = &backend.kind else { panic!("{backend:?}") };
        assert_eq!(addr.addr, Some("192.0.2.1:443".parse::<SocketAddr>().unwrap().into()));
    }
}

#[test]
fn an_undefined_port_is_forbidden() {
    let undefined = Outbound::UndefinedPort { name: Name::new("shop", "web"), port: 81 };
    let policy = policy(&undefined, &settings_for_tests());
    let Some(outbound_api::proxy_protocol::Kind::Opaque(opaque)) = policy.protocol.unwrap().kind else {
        panic!("no opaque")
    };
    assert_eq!(opaque.routes[0].metadata, Some(default_ref("undefined-port")));
    let rule = &opaque.routes[0].rules[0];
    assert!(matches!(rule.filters[0].kind, Some(outbound_api::opaque_route::filter::Kind::Forbidden(_))));
    assert!(matches!(
        rule.backends.as_ref().unwrap().kind,
        Some(outbound_api::opaque_route::distribution::Kind::Empty(_))
    ));
}

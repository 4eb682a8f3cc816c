//! What a client's proxy was told of what it sends: mTLS on demand.

use super::*;
use crate::question::OutboundDefault;

/// The till's pod, whose proxy was told this besides.
fn told(env: &str) -> String {
    let listen = "{name: LINKERD2_PROXY_INBOUND_LISTEN_ADDR, value: '0.0.0.0:4143'}";
    let till = pod("till", "till", "10.1.0.9", true);
    let told = till.replace(listen, &format!("{listen}, {env}"));
    assert_ne!(told, till);
    shop().replace(&till, &told)
}

fn demanding(policy: &str) -> String {
    told(&format!("{{name: REMORA_PROXY_OUTBOUND_DEFAULT_POLICY, value: {policy}}}"))
}

/// A Service of the pod without a proxy, and one that both kinds are behind.
fn plain() -> String {
    let mixed = service("mixed", "10.96.0.5", "").replace(", selector: {app: mixed}", "");
    let slice = "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: mixed-1, namespace: shop, labels: \
        {kubernetes.io/service-name: mixed}}, addressType: IPv4, ports: [{name: http, port: 8080}], endpoints: \
        [{addresses: [10.1.0.1], targetRef: {kind: Pod, name: web-1, namespace: shop}}, \
        {addresses: [10.1.0.8], targetRef: {kind: Pod, name: old, namespace: shop}}]}\n---\n";
    service("old", "10.96.0.4", "") + &mixed + slice
}

const REFUSED: &str = "10.1.0.8:8080 has no identity, and the outbound default policy all-authenticated demands mTLS: \
    nothing was sent to it";

#[test]
fn who_has_no_identity_gets_not_a_byte_where_mtls_is_demanded() {
    let lax = shop() + &plain();
    let strict = demanding("all-authenticated") + &plain();
    let inside = demanding("cluster-authenticated") + &plain();
    for (manifests, to, verdict, expected) in [
        (&lax, "old:80", Verdict::Admitted, 200),
        (&strict, "old:80", Verdict::Refused, 502),
        (&strict, "10.1.0.8:8080", Verdict::Refused, 502),
        (&strict, "192.0.2.1:80", Verdict::Refused, 502),
        (&strict, "web:80", Verdict::Admitted, 200),
        (&strict, "mixed:80", Verdict::Admitted, 200),
        // Its own address is no way out of the pod.
        (&strict, "10.1.0.9:8080", Verdict::Admitted, 200),
        (&inside, "old:80", Verdict::Refused, 502),
        (&inside, "192.0.2.1:80", Verdict::Admitted, 200),
    ] {
        is(&asked(manifests, |question| question.to = to.into()), verdict, expected);
    }
    let answer = asked(&strict, |question| question.to = "old:80".into());
    let [endpoint] = answer.courses[0].backends[0].endpoints.as_slice() else { panic!("{answer:#?}") };
    assert_eq!(endpoint.reply.as_ref().unwrap().why, REFUSED);
    assert_eq!((endpoint.passed_over.as_ref(), endpoint.served.len()), (None, 0));
    // Bytes end, and are refused as well.
    let answer = asked(&strict, |question| {
        question.to = "old:80".into();
        question.speaks = Speaks::Bytes;
    });
    is(&answer, Verdict::Refused, 0);
    let answer = asked(&strict, |question| {
        question.to = "old:80".into();
        question.unmeshed = true;
    });
    is(&answer, Verdict::Admitted, 200);
}

#[test]
fn others_have_all_that_who_has_no_identity_does_not_get() {
    let strict = demanding("all-authenticated") + &plain();
    let answer = asked(&strict, |question| question.to = "mixed:80".into());
    let [first, second] = answer.courses[0].backends[0].endpoints.as_slice() else { panic!("{answer:#?}") };
    assert_eq!((first.pod.as_deref(), first.passed_over.as_deref()), (Some("shop/web-1"), None));
    assert_eq!((second.pod.as_deref(), second.passed_over.as_deref()), (Some("shop/old"), Some(REFUSED)));
    // A backend of which nobody may be reached has no share.
    let rules = "{backendRefs: [{name: old, port: 80, weight: 9}, {name: v2, port: 80, weight: 1}]}";
    let answer = asked(&(strict.clone() + &route(rules)), |_| {});
    is(&answer, Verdict::Admitted, 200);
    let shares: Vec<f64> = answer.courses[0].backends.iter().map(|one| one.percent).collect();
    assert_eq!(shares, [0.0, 100.0]);
    // Nor has a mirror a copy.
    let mirror = "{filters: [{type: RequestMirror, requestMirror: {backendRef: {name: old, port: 80}}}]}";
    let answer = asked(&(strict + &route(mirror)), |_| {});
    is(&answer, Verdict::Admitted, 200);
    assert_eq!(
        answer.courses[0].filters,
        [format!("copies all to Service shop/old:80, which gets none: {REFUSED}")]
    );
}

#[test]
fn what_is_asked_for_since_a_pod_was_created_is_a_note() {
    let namespace = "{apiVersion: v1, kind: Namespace, metadata: {name: shop, annotations: \
        {config.linkerd.io/outbound-default-policy: all-authenticated}}}\n---\n";
    let old = |question: &mut Question| question.to = "old:80".into();
    let answer = asked(&(shop() + &plain() + namespace), old);
    is(&answer, Verdict::Admitted, 200);
    assert_eq!(
        answer.notes,
        [
            "pod shop/till was started with config.linkerd.io/outbound-default-policy all-unauthenticated, and \
          all-authenticated is asked for by now: that holds when it is created again"
        ]
    );
    // An account without a pod has what it would be told.
    let new = |question: &mut Question| {
        question.to = "old:80".into();
        question.from.name = "new".into();
    };
    is(&asked(&(shop() + &plain() + namespace), new), Verdict::Refused, 502);
    is(&asked(&(shop() + &plain()), new), Verdict::Admitted, 200);
    let told = |question: &mut Question| {
        new(question);
        question.default_outbound_policy = OutboundDefault::AllAuthenticated;
    };
    is(&asked(&(shop() + &plain()), told), Verdict::Refused, 502);
}

#[test]
fn pods_whose_proxies_were_told_otherwise_are_answered_each() {
    let second = pod("till-2", "till", "10.1.0.10", true);
    let answer = asked(&(demanding("all-authenticated") + &plain() + &second), |question| {
        question.to = "old:80".into();
    });
    assert_eq!(answer.verdict, Verdict::Refused);
    let courses: Vec<_> =
        answer.courses.iter().map(|course| (course.proxy.clone().unwrap(), course.is_admitted())).collect();
    let proxy = |pod: &str, outbound_default| answer::Proxy {
        pods: vec![pod.to_owned()],
        outbound_default,
        ingress: false,
    };
    assert_eq!(
        courses,
        [
            (proxy("shop/till-2", "all-unauthenticated"), true),
            (proxy("shop/till", "all-authenticated"), false)
        ]
    );
    // One of them alone.
    let answer = asked(&(demanding("all-authenticated") + &plain() + &second), |question| {
        question.to = "old:80".into();
        question.from_ip = Some("10.1.0.10".parse().unwrap());
    });
    is(&answer, Verdict::Admitted, 200);
}

#[test]
fn whom_an_application_requires_is_asked_of_each_endpoint() {
    let require = |question: &mut Question| {
        question.to = "mixed:80".into();
        let id = "web.shop.serviceaccount.identity.remora.cluster.local";
        question.headers = vec![("l5d-require-id".into(), id.into())];
    };
    let answer = asked(&(shop() + &plain()), require);
    assert_eq!(answer.verdict, Verdict::Refused);
    let replies: Vec<Option<u16>> = answer.courses[0].backends[0]
        .endpoints
        .iter()
        .map(|endpoint| endpoint.reply.as_ref().and_then(|reply| reply.status))
        .collect();
    assert_eq!(replies, [None, Some(502)]);
    is(&asked(&(demanding("all-authenticated") + &plain()), require), Verdict::Admitted, 200);
}

#[test]
fn who_has_no_weight_is_passed_over() {
    let drained = pod("web-2", "web", "10.1.0.2", true);
    let weightless =
        drained.replace("metadata: {", "metadata: {annotations: {balancer.remora.io/weight: '0'}, ");
    let answer = asked(&shop().replace(&drained, &weightless), |_| {});
    let endpoints = &answer.courses[0].backends[0].endpoints;
    let passed_over: Vec<Option<&str>> = endpoints.iter().map(|one| one.passed_over.as_deref()).collect();
    assert_eq!(passed_over, [None, Some("its weight is 0")]);
}

/// The till is a gateway.
fn gateway() -> String {
    told("{name: LINKERD2_PROXY_INGRESS_MODE, value: 'true'}")
}

fn naming(service: &str) -> impl Fn(&mut Question) {
    move |question| question.headers = vec![("l5d-dst-override".to_owned(), service.to_owned())]
}

#[test]
fn a_gateways_request_goes_to_the_service_that_it_names() {
    let rules = "{matches: [{path: {value: /a}}], backendRefs: [{name: web, port: 80}]}";
    let of_v2 = route(rules).replace(
        "parentRefs: [{group: core, kind: Service, name: web",
        "parentRefs: [{group: core, kind: Service, name: v2",
    );
    let manifests = gateway() + &of_v2;
    for (named, path, target, verdict, status) in [
        ("v2.shop.svc.cluster.local:80", "/a", "Service shop/v2:80", Verdict::Admitted, 200),
        ("V2.Shop.svc.cluster.local.", "/a", "Service shop/v2:80", Verdict::Admitted, 200),
        ("v2.shop.svc.cluster.local:80", "/b", "Service shop/v2:80", Verdict::Refused, 404),
        ("web.shop.svc.cluster.local:5432", "/", "Service shop/web:5432", Verdict::Admitted, 200),
        ("gone.shop.svc.cluster.local:80", "/", "gone.shop.svc.cluster.local:80", Verdict::Refused, 500),
        ("v2.shop:80", "/", "Service shop/none:80", Verdict::Refused, 400),
        ("10.1.0.3:8080", "/", "Service shop/none:80", Verdict::Refused, 400),
    ] {
        let answer = asked(&manifests, |question| {
            naming(named)(question);
            question.to = "none:80".into();
            question.path = path.into();
        });
        is(&answer, verdict, status);
        assert_eq!(answer.courses[0].target, target, "{named}");
        assert_eq!(answer.notes, Vec::<String>::new());
    }
    // It goes where it is addressed without the header, and everywhere else.
    let without = asked(&manifests, |question| question.path = "/b".into());
    assert_eq!(without.courses[0].target, "Service shop/web:80");
    let unheeded = asked(&shop(), naming("v2.shop.svc.cluster.local:80"));
    assert_eq!(unheeded.courses[0].target, "Service shop/web:80");
    assert_eq!(unheeded.notes, ["l5d-dst-override is removed unread, but by proxies in ingress mode"]);
}

#[test]
fn in_a_gateways_pod_what_is_spoken_decides_and_not_what_is_declared() {
    let declared = |protocol: &str| {
        let plain = service("web", "10.96.0.1", "");
        gateway().replace(&plain, &service("web", "10.96.0.1", &format!(", appProtocol: {protocol}")))
    };
    for (manifests, to, speaks, verdict, spoken) in [
        (gateway(), "web:5432", Speaks::Http1, Verdict::Admitted, "http1"),
        (gateway(), "web:5432", Speaks::Bytes, Verdict::Admitted, "bytes"),
        (gateway(), "web:80", Speaks::Tls("a".into()), Verdict::Admitted, "tls"),
        (declared("kubernetes.io/h2c"), "web:80", Speaks::Http1, Verdict::Admitted, "http1"),
        (declared("kubernetes.io/h2c"), "web:80", Speaks::Bytes, Verdict::Refused, "bytes"),
        (gateway(), "web:81", Speaks::Http2, Verdict::Refused, "http2"),
    ] {
        let answer = asked(&manifests, |question| {
            question.to = to.into();
            question.speaks = speaks.clone();
        });
        assert_eq!(
            (answer.verdict, answer.courses[0].spoken),
            (verdict, spoken),
            "{to} {speaks:?} {answer:#?}"
        );
    }
}

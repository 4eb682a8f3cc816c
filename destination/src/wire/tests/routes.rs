//! Routes as proxies get them: what they mean there, read back by the proxy's own reader.

use crate::{
    index::Index,
    resources::{Document, parse},
    view::{Lens, Target, outbound, settings_for_tests},
    watch::Event,
    wire::policy,
};
use linkerd2_proxy_api::outbound::{
    self as api, http_route::distribution::Kind as Distribution, http_route::filter::Kind as Filter,
    proxy_protocol::Kind,
};

const SERVICES: &str = "
{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}, spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: v2, namespace: shop}, spec: {clusterIP: 10.96.0.2, ports: [{port: 80}]}}
---
";

/// The policy of `web` for clients of `shop`.
fn served(routes: &str) -> Kind {
    let mut index = Index::default();
    for document in parse(&format!("{SERVICES}{routes}")).unwrap() {
        let Document::Known(resource) = document else { panic!("{document:?}") };
        index.apply(Event::Apply(resource));
    }
    let target = Target::parse("10.96.0.1:80", "cluster.local").unwrap();
    let settings = settings_for_tests();
    let seen = outbound(&mut Lens::new(&index), &settings, &target, Some("shop")).unwrap();
    policy(&seen, &settings).protocol.unwrap().kind.unwrap()
}

fn route(kind: &str, spec: &str) -> String {
    format!(
        "{{apiVersion: gateway.networking.k8s.io/v1, kind: {kind}, metadata: {{name: r, namespace: shop}}, spec: \
         {{parentRefs: [{{group: core, kind: Service, name: web}}], {spec}}}}}"
    )
}

fn http(spec: &str) -> Vec<api::HttpRoute> {
    let Kind::Detect(detect) = served(&route("HTTPRoute", spec)) else { panic!("not detected") };
    let (http1, http2) = (detect.http1.unwrap(), detect.http2.unwrap());
    assert_eq!(http1.routes, http2.routes);
    http1.routes
}

#[test]
fn weights_and_header_matches() {
    let routes = http(
        "rules: [{matches: [{headers: [{name: X-Canary, value: 'yes'}]}], backendRefs: [{name: v2, port: 80}]}, \
         {backendRefs: [{name: web, port: 80, weight: 90}, {name: v2, port: 80, weight: 10}, {name: v2, port: 80, weight: 0}]}]",
    );
    let [route] = &routes[..] else { panic!("{routes:?}") };
    let [pinned, rest] = &route.rules[..] else { panic!("{route:?}") };
    assert_eq!(pinned.matches[0].headers[0].name, "x-canary");
    let Some(Distribution::RandomAvailable(random)) = &rest.backends.as_ref().unwrap().kind else {
        panic!("{rest:?}")
    };
    let weights: Vec<u32> = random.backends.iter().map(|backend| backend.weight).collect();
    assert_eq!(weights, [90, 10], "a weight of 0 is never sent");
}

#[test]
fn a_backend_that_is_not_there_fails_its_share() {
    let routes = http("rules: [{backendRefs: [{name: web, port: 80}, {name: none, port: 80}]}]");
    let Some(Distribution::RandomAvailable(random)) = &routes[0].rules[0].backends.as_ref().unwrap().kind
    else {
        panic!("{routes:?}")
    };
    let missing = random.backends[1].backend.as_ref().unwrap();
    assert_eq!(missing.backend.as_ref().unwrap().kind, None);
    let Some(Filter::FailureInjector(failure)) = &missing.filters[0].kind else { panic!("{missing:?}") };
    assert_eq!((failure.status, failure.message.as_str()), (500, "Service shop/none does not exist"));
}

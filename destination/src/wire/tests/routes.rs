//! Routes as proxies get them: what they mean there, read back by the proxy's own reader.

use crate::{
    index::Index,
    resources::{Document, parse},
    view::{Lens, Outbound, Settings, Target, outbound, settings_for_tests},
    watch::Event,
    wire::{own_policy, policy},
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
    served_by(SERVICES, routes)
}

fn served_by(services: &str, routes: &str) -> Kind {
    seen(services, routes, policy).protocol.unwrap().kind.unwrap()
}

fn in_own_words(routes: &str) -> remora_runtime::proto::OutboundPolicy {
    seen(SERVICES, routes, own_policy)
}

fn seen<T>(services: &str, routes: &str, write: fn(&Outbound, &Settings) -> T) -> T {
    seen_at("10.96.0.1:80", services, routes, write)
}

fn seen_at<T>(target: &str, services: &str, routes: &str, write: fn(&Outbound, &Settings) -> T) -> T {
    let mut index = Index::default();
    for document in parse(&format!("{services}{routes}")).unwrap() {
        let Document::Known(resource) = document else { panic!("{document:?}") };
        index.apply(Event::Apply(resource));
    }
    let target = Target::parse(target, "cluster.local").unwrap();
    let settings = Settings { heed_request_headers: true, ..settings_for_tests() };
    let seen = outbound(&mut Lens::new(&index), &settings, &target, Some("shop")).unwrap();
    write(&seen, &settings)
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

/// Two Services in front of a pod.
const POD: &str = "
{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}, spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: zoo, namespace: shop}, spec: {clusterIP: 10.96.0.3, selector: {app: web}, ports: [{port: 81, targetPort: 8080}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: v2, namespace: shop}, spec: {clusterIP: 10.96.0.2, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: p, namespace: shop, labels: {app: web}}, spec: {containers: [{name: app}]}, status: {podIP: 10.1.0.9}}
---
{apiVersion: linkerd.io/v1alpha2, kind: ServiceProfile, metadata: {name: zoo.shop.svc.cluster.local, namespace: shop}, spec: {routes: [{name: all, condition: {pathRegex: '.*'}}]}}
---
";

#[test]
fn a_pod_that_is_dialled_itself_stays_in_its_services_place_and_others_take_their_share() {
    let rules = "rules: [{matches: [{path: {value: /a}}], backendRefs: [{name: web, port: 80}, {name: v2, port: 80}]}, {}]";
    let at = "10.1.0.9:8080";
    let own = seen_at(at, POD, &route("HTTPRoute", rules), own_policy);
    let linkerds = seen_at(at, POD, &route("HTTPRoute", rules), policy);
    assert_eq!(own.policy.as_ref(), Some(&linkerds), "Linkerd's API says it of the first one");
    let Some(Kind::Detect(detect)) = linkerds.protocol.unwrap().kind else { panic!("not detected") };
    let rules = detect.http1.unwrap().routes.remove(0).rules;
    let kinds = |rule: &api::http_route::Rule| -> Vec<String> {
        let backends: Vec<_> = match rule.backends.as_ref().unwrap().kind.as_ref().unwrap() {
            Distribution::RandomAvailable(random) => {
                random.backends.iter().filter_map(|one| one.backend.clone()).collect()
            }
            Distribution::FirstAvailable(first) => first.backends.clone(),
            Distribution::Empty(_) => panic!("{rule:?}"),
        };
        let kind = |one: api::http_route::RouteBackend| match one.backend.unwrap().kind.unwrap() {
            api::backend::Kind::Forward(pod) => {
                std::net::SocketAddr::try_from(pod.addr.unwrap()).unwrap().to_string()
            }
            api::backend::Kind::Balancer(_) => "balanced".to_owned(),
        };
        backends.into_iter().map(kind).collect()
    };
    assert_eq!(kinds(&rules[0]), [at, "balanced"]);
    assert_eq!(kinds(&rules[1]), [at]);

    let (_, services) = remora_runtime::api::own::said(own).value;
    let names: Vec<&str> = services.iter().map(|one| &*one.service).collect();
    assert_eq!(names, ["web.shop.svc.cluster.local:80", "zoo.shop.svc.cluster.local:81"]);
    assert_eq!(services[0].profile, None);
    let profile = services[1].profile.as_ref().unwrap();
    assert!(profile.routes_http() && profile.endpoint.as_ref().unwrap().addr == at.parse().unwrap());
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

/// What the proxy's own reader makes of a policy.
fn read_back(kind: &Kind) -> remora_core::route::OutboundProtocol {
    let protocol = Some(api::ProxyProtocol { kind: Some(kind.clone()) });
    let policy = api::OutboundPolicy { metadata: None, protocol };
    remora_runtime::api::outbound::outbound_policy(policy).value.protocol
}

#[test]
fn matches_arrive_as_they_are_written() {
    use remora_core::route::{HostMatch, HttpMatch, OutboundProtocol, PathMatch, ValueMatch, whole_match};
    let kind = served(&route(
        "HTTPRoute",
        "hostnames: [a.example, '*.b.example'], rules: [{matches: [\
         {path: {type: Exact, value: /a}, method: PUT, headers: [{name: X-A, value: b}, {name: c, type: RegularExpression, value: 'd|e'}]}, \
         {path: {type: RegularExpression, value: '/f.*'}, queryParams: [{name: G, value: h}, {name: i, type: RegularExpression, value: 'j+'}]}, \
         {path: {value: /k}}]}, {}]",
    ));
    let OutboundProtocol::Detect { http1, .. } = read_back(&kind) else { panic!("{kind:?}") };
    let [route] = &http1[..] else { panic!("{http1:?}") };
    let labels = ["b", "example"].map(str::to_owned).to_vec();
    assert_eq!(route.route.hosts, [HostMatch::Exact("a.example".to_owned()), HostMatch::Suffix(labels)]);
    let exact = |text: &str| ValueMatch::Exact(text.as_bytes().to_vec());
    let regex = |pattern: &str| whole_match(pattern).unwrap();
    let named = |name: &str, value: ValueMatch| (name.to_owned(), value);
    let expected = [
        HttpMatch {
            path: Some(PathMatch::Exact("/a".to_owned())),
            headers: vec![named("x-a", exact("b")), named("c", ValueMatch::Regex(regex("d|e")))],
            query: vec![],
            method: Some("PUT".to_owned()),
        },
        HttpMatch {
            path: Some(PathMatch::Regex(regex("/f.*"))),
            headers: vec![],
            query: vec![named("G", exact("h")), named("i", ValueMatch::Regex(regex("j+")))],
            method: None,
        },
        HttpMatch { path: Some(PathMatch::Prefix("/k".to_owned())), ..HttpMatch::default() },
    ];
    assert_eq!(route.route.rules[0].matches, expected);
    let every = HttpMatch { path: Some(PathMatch::Prefix("/".to_owned())), ..HttpMatch::default() };
    assert_eq!(route.route.rules[1].matches, [every]);
}

#[test]
fn filters_of_rules_and_backends() {
    let routes = http(
        "rules: [{matches: [{path: {value: /old}}], filters: [{type: RequestRedirect, requestRedirect: {scheme: https, \
         hostname: b.example, port: 8443, path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}, statusCode: 308}}]}, \
         {filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: A, value: b}], add: [{name: c, value: d}], remove: [e]}}], \
         backendRefs: [{name: v2, port: 80, filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {remove: [server]}}]}]}]",
    );
    let [redirect, rest] = &routes[0].rules[..] else { panic!("{routes:?}") };
    let Some(Filter::Redirect(redirect)) = &redirect.filters[0].kind else { panic!("{redirect:?}") };
    assert_eq!((redirect.host.as_str(), redirect.port, redirect.status), ("b.example", 8443, 308));
    let replace = redirect.path.clone().unwrap().replace.unwrap();
    assert_eq!(replace, linkerd2_proxy_api::http_route::path_modifier::Replace::Prefix("/new".to_owned()));
    let Some(Filter::RequestHeaderModifier(edit)) = &rest.filters[0].kind else { panic!("{rest:?}") };
    let listed = |headers: &Option<linkerd2_proxy_api::http_types::Headers>| -> Vec<(String, Vec<u8>)> {
        headers.iter().flat_map(|all| &all.headers).map(|one| (one.name.clone(), one.value.clone())).collect()
    };
    let pair = |name: &str, value: &str| (name.to_owned(), value.as_bytes().to_vec());
    assert_eq!((listed(&edit.set), listed(&edit.add)), (vec![pair("a", "b")], vec![pair("c", "d")]));
    assert_eq!(edit.remove, ["e"]);
    let Some(Distribution::RandomAvailable(random)) = &rest.backends.as_ref().unwrap().kind else {
        panic!("{rest:?}")
    };
    let filters = &random.backends[0].backend.as_ref().unwrap().filters;
    assert!(
        matches!(&filters[0].kind, Some(Filter::ResponseHeaderModifier(edit)) if edit.remove == ["server"])
    );
}

#[test]
fn what_cannot_be_carried_fails_instead() {
    let routes = http(
        "rules: [{filters: [{type: URLRewrite, urlRewrite: {hostname: a}}], backendRefs: [{name: v2, port: 80}]}]",
    );
    let rule = &routes[0].rules[0];
    let [filter] = &rule.filters[..] else { panic!("{rule:?}") };
    let Some(Filter::FailureInjector(failure)) = &filter.kind else { panic!("{rule:?}") };
    let message = "HTTPRoute shop/r: spec.rules[0].filters[0].urlRewrite: Linkerd's API cannot carry URLRewrite; requests of this rule fail in Linkerd's proxies";
    assert_eq!((failure.status, failure.message.as_str(), failure.ratio), (500, message, None));
    let Some(Distribution::FirstAvailable(first)) = &rule.backends.as_ref().unwrap().kind else {
        panic!("{rule:?}")
    };
    assert_eq!(first.backends[0].backend.as_ref().unwrap().kind, None, "nothing can get through");
}

#[test]
fn what_only_our_own_api_can_say_is_beside_what_linkerds_says() {
    use remora_core::route::{Distribution, Filter, Mirror, OutboundProtocol, Ratio};
    use remora_runtime::{api::own, proto::filters::Routes};
    let mirror_of = |name: &str, share: &str| {
        format!("{{type: RequestMirror, requestMirror: {{backendRef: {{name: {name}, port: 80}}, {share}}}}}")
    };
    let mirror = |name: &str| mirror_of(name, "percent: 5");
    let rewrite = "{type: URLRewrite, urlRewrite: {hostname: a, path: {type: ReplacePrefixMatch, replacePrefixMatch: /v2}}}";
    let manifest = route(
        "HTTPRoute",
        &format!(
            "rules: [{{matches: [{{path: {{value: /a}}}}], filters: [{rewrite}, {}, {}]}}, \
             {{filters: [{{type: CORS, cors: {{}}}}, {}]}}, \
             {{backendRefs: [{{name: web, port: 80, weight: 0}}, {{name: v2, port: 80, filters: [{}]}}]}}]",
            mirror("none"),
            mirror("v2"),
            mirror("v2"),
            mirror_of("web", "fraction: {numerator: 2, denominator: 7}"),
        ),
    );
    let own = in_own_words(&manifest);
    let places: Vec<_> = own
        .filters
        .iter()
        .map(|place| (place.routes(), place.route, place.rule, place.backend, place.filters.len()))
        .collect();
    // A mirror that leads nowhere is none, what fails has none, and a backend's number is its number in the message.
    let of = |routes| [(routes, 0, 0, None, 2), (routes, 0, 2, Some(0), 1)];
    assert_eq!(places, [of(Routes::Http1), of(Routes::Http2)].concat());
    let OutboundProtocol::Detect { http1, .. } = own::outbound_policy(own).value.protocol else {
        panic!("not detected")
    };
    let rules = &http1[0].rules;
    let share = |of, all| Ratio::new(of, all).unwrap();
    let [Filter::Rewrite(_), Filter::Mirror(Mirror { share: percent, .. })] = &rules[0].filters[..] else {
        panic!("{rules:?}")
    };
    assert_eq!(*percent, share(5, 100), "what is lost of it would be all of the requests");
    assert!(matches!(&rules[1].filters[..], [Filter::Fail(_)]), "{rules:?}");
    let Distribution::RandomAvailable(backends) = &*rules[2].distribution else { panic!("{rules:?}") };
    let [Filter::Mirror(Mirror { share: fraction, .. })] = &backends[0].0.filters[..] else {
        panic!("{rules:?}")
    };
    assert_eq!(*fraction, share(2, 7));
}

#[test]
fn timeouts_retries_and_failing_endpoints() {
    let rules =
        "rules: [{timeouts: {request: 1500ms}, retry: {codes: [500, 503], attempts: 3, backoff: 100ms}}]";
    let annotated = SERVICES.replacen(
        "namespace: shop}",
        "namespace: shop, annotations: {balancer.linkerd.io/failure-accrual: consecutive, timeout.linkerd.io/idle: 1m}}",
        1,
    );
    let routes = http(rules);
    let rule = &routes[0].rules[0];
    let time = |seconds, nanos| Some(prost_types::Duration { seconds, nanos });
    assert_eq!(rule.timeouts.as_ref().unwrap().request, time(1, 500_000_000));
    assert!(rule.allow_l5d_request_headers);
    let retry = rule.retry.as_ref().unwrap();
    let ranges: Vec<_> = retry
        .conditions
        .as_ref()
        .unwrap()
        .status_ranges
        .iter()
        .map(|range| (range.start, range.end))
        .collect();
    assert_eq!(
        (retry.max_retries, retry.max_request_bytes, ranges),
        (3, 65_536, vec![(500, 500), (503, 503)])
    );
    let backoff = retry.backoff.as_ref().unwrap();
    assert_eq!((backoff.min_backoff, backoff.max_backoff), (time(0, 100_000_000), time(1, 0)));
    let Kind::Detect(detect) = served_by(&annotated, "") else { panic!("not detected") };
    let http2 = detect.http2.unwrap();
    let Some(api::failure_accrual::Kind::ConsecutiveFailures(accrual)) = http2.failure_accrual.unwrap().kind
    else {
        panic!("no accrual")
    };
    assert_eq!((accrual.max_failures, accrual.backoff.unwrap().max_backoff), (7, time(60, 0)));
    assert_eq!(http2.routes[0].rules[0].timeouts.as_ref().unwrap().idle, time(60, 0));
    let unified = "failure-accrual: unified, balancer.alpha.linkerd.io/failure-accrual-success-rate-window: 5s, \
                   balancer.alpha.linkerd.io/failure-accrual-honor-retry-after: 'true'";
    let annotated = annotated.replace("failure-accrual: consecutive", unified);
    let Kind::Detect(detect) = served_by(&annotated, "") else { panic!("not detected") };
    let Some(api::failure_accrual::Kind::Unified(accrual)) =
        detect.http1.unwrap().failure_accrual.unwrap().kind
    else {
        panic!("no accrual")
    };
    let rate = (accrual.success_rate_threshold, accrual.decay, accrual.min_requests);
    assert_eq!((rate, accrual.max_consecutive_failures), ((0.8, time(5, 0), 5), 7));
    assert!(accrual.backoff.unwrap().respect_retry_after_hint);
}

/// What the warnings say of each protocol's own statuses: a proxy is told of them by routes of its kind only.
#[test]
fn retries_by_status_of_grpc_are_those_of_grpc_routes() {
    let annotated = |annotation: &str| {
        SERVICES.replacen("namespace: shop}", &format!("namespace: shop, annotations: {{{annotation}}}}}"), 1)
    };
    let (by_grpc, by_http) = ("retry.linkerd.io/grpc: internal", "retry.linkerd.io/http: 5xx");
    for (annotation, routes, expected) in [
        (by_grpc, String::new(), 0),
        (by_grpc, route("HTTPRoute", "rules: [{}]"), 0),
        (by_grpc, route("GRPCRoute", "rules: [{}]"), 1),
        (by_http, String::new(), 2),
        (by_http, route("HTTPRoute", "rules: [{}]"), 2),
        (by_http, route("GRPCRoute", "rules: [{}]"), 0),
    ] {
        let retries = match served_by(&annotated(annotation), &routes) {
            Kind::Detect(detect) => {
                let both = [detect.http1.unwrap().routes, detect.http2.unwrap().routes];
                both.iter()
                    .flatten()
                    .flat_map(|route| &route.rules)
                    .filter(|rule| rule.retry.is_some())
                    .count()
            }
            Kind::Grpc(grpc) => {
                let rules = grpc.routes.iter().flat_map(|route| &route.rules);
                rules.filter(|rule| rule.retry.is_some()).count()
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(retries, expected, "{annotation} {routes}");
    }
}

#[test]
fn how_services_are_balanced_is_said_in_our_api() {
    let round_robin = SERVICES.replacen(
        "metadata: {name: v2, namespace: shop}",
        "metadata: {name: v2, namespace: shop, annotations: {balancer.remora.io/strategy: round-robin}}",
        1,
    );
    assert_ne!(round_robin, SERVICES);
    let rule = "rules: [{backendRefs: [{name: v2, port: 80}, {name: web, port: 80, weight: 9}]}]";
    for (routes, expected) in [
        (route("HTTPRoute", rule), vec![("v2.shop.svc.cluster.local:80".to_owned(), 2)]),
        (String::new(), vec![]),
    ] {
        let balancers = seen(&round_robin, &routes, own_policy).balancers.into_iter();
        assert_eq!(balancers.map(|one| (one.path, one.strategy)).collect::<Vec<_>>(), expected);
    }
}

#[test]
fn grpc_routes() {
    let kind = served(&route(
        "GRPCRoute",
        "rules: [{matches: [{method: {service: pkg.Svc, method: Get}}, {method: {type: RegularExpression, service: 'a.*'}}], \
         backendRefs: [{name: v2, port: 80}, {name: none, port: 80}]}, \
         {matches: [{method: {type: RegularExpression, method: 'a.*'}}]}, \
         {filters: [{type: RequestMirror, requestMirror: {backendRef: {name: v2, port: 80}}}]}]",
    ));
    let Kind::Grpc(grpc) = kind else { panic!("{kind:?}") };
    // The rule whose only match cannot be said is not there: without a match it would have every request.
    let [named, mirrored] = &grpc.routes[0].rules[..] else { panic!("{grpc:?}") };
    let [only] = &named.matches[..] else { panic!("{named:?}") };
    let rpc = only.rpc.as_ref().unwrap();
    assert_eq!((rpc.service.as_str(), rpc.method.as_str()), ("pkg.Svc", "Get"));
    let Some(api::grpc_route::distribution::Kind::RandomAvailable(random)) =
        &named.backends.as_ref().unwrap().kind
    else {
        panic!("{named:?}")
    };
    let code = |filters: &[api::grpc_route::Filter]| match &filters[0].kind {
        Some(api::grpc_route::filter::Kind::FailureInjector(failure)) => failure.code,
        other => panic!("{other:?}"),
    };
    assert_eq!(code(&random.backends[1].backend.as_ref().unwrap().filters), 14, "UNAVAILABLE");
    assert_eq!(code(&mirrored.filters), 12, "UNIMPLEMENTED");
}

#[test]
fn connections() {
    use remora_core::route::{Distribution, OutboundProtocol};
    let spec = "rules: [{backendRefs: [{name: v2, port: 80, weight: 3}, {name: web, port: 80}]}]";
    let tls = served(&route("TLSRoute", &format!("hostnames: ['*.a.example'], {spec}")));
    let OutboundProtocol::Tls(routes) = read_back(&tls) else { panic!("{tls:?}") };
    assert_eq!((routes.len(), routes[0].snis.len()), (1, 1));
    let Distribution::RandomAvailable(backends) = &*routes[0].distribution else { panic!("{routes:?}") };
    assert_eq!(backends.iter().map(|(_, weight)| *weight).collect::<Vec<_>>(), [3, 1]);
    let tcp = |spec: &str| served(&route("TCPRoute", spec).replace("k8s.io/v1,", "k8s.io/v1alpha2,"));
    assert!(matches!(read_back(&tcp(spec)), OutboundProtocol::Opaque(_)));
    let nowhere = tcp("rules: [{backendRefs: [{name: none, port: 80}]}]");
    let OutboundProtocol::Opaque(distribution) = read_back(&nowhere) else { panic!("{nowhere:?}") };
    let expected = Distribution::Forbidden("Service shop/none does not exist (r)".into());
    assert_eq!(*distribution, expected);
}

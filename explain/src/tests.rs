//! Answers, as tables over small manifests.

mod sends;
#[path = "../tests/agrees/settings.rs"]
mod settings;

use super::*;
use crate::{
    answer::{Answer, Verdict},
    question::Speaks,
};
use remora_destination::{
    resources::{Document, parse},
    watch::Event,
};
pub(crate) use settings::settings;

fn pod(name: &str, account: &str, ip: &str, meshed: bool) -> String {
    let (label, proxy) = if meshed {
        (
            ", linkerd.io/control-plane-ns: remora",
            ", {name: linkerd-proxy, env: [{name: LINKERD2_PROXY_INBOUND_LISTEN_ADDR, value: '0.0.0.0:4143'}]}",
        )
    } else {
        ("", "")
    };
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: shop, labels: {{app: {account}{label}}}}}, spec: \
         {{serviceAccountName: {account}, containers: [{{name: app, ports: [{{name: http, containerPort: 8080}}]}}{proxy}]}}, \
         status: {{podIP: {ip}, podIPs: [{{ip: {ip}}}]}}}}\n---\n"
    )
}

fn service(name: &str, ip: &str, more: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: shop}}, spec: {{clusterIP: {ip}, selector: \
         {{app: {name}}}, ports: [{{name: http, port: 80, targetPort: http{more}}}, {{name: db, port: 5432}}]}}}}\n---\n"
    )
}

/// Two web servers, their second version, a client; one without a proxy.
fn shop() -> String {
    [
        service("web", "10.96.0.1", ""),
        service("v2", "10.96.0.2", ""),
        service("none", "10.96.0.3", ""),
        pod("web-1", "web", "10.1.0.1", true),
        pod("web-2", "web", "10.1.0.2", true),
        pod("v2", "v2", "10.1.0.3", true),
        pod("till", "till", "10.1.0.9", true),
        pod("old", "old", "10.1.0.8", false),
    ]
    .concat()
}

fn route(rules: &str) -> String {
    format!(
        "{{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {{name: web, namespace: shop}}, spec: \
         {{parentRefs: [{{group: core, kind: Service, name: web, port: 80}}], rules: [{rules}]}}}}\n---\n"
    )
}

const SERVER: &str = "{apiVersion: policy.linkerd.io/v1beta3, kind: Server, metadata: {name: web, namespace: shop}, spec: \
    {podSelector: {matchLabels: {app: web}}, port: http, proxyProtocol: HTTP/1}}\n---\n";

fn policy(name: &str, refs: &str) -> String {
    format!(
        "{{apiVersion: policy.linkerd.io/v1alpha1, kind: AuthorizationPolicy, metadata: {{name: {name}, namespace: shop}}, \
         spec: {{targetRef: {{group: policy.linkerd.io, kind: Server, name: web}}, requiredAuthenticationRefs: [{refs}]}}}}\n---\n"
    )
}

fn asked(manifests: &str, change: impl FnOnce(&mut Question)) -> Answer {
    let mut index = Index::default();
    for document in parse(manifests).unwrap_or_else(|errors| panic!("{errors:?} in {manifests}")) {
        if let Document::Known(resource) = document {
            index.apply(Event::Apply(resource));
        }
    }
    let mut question = Question::new(Name::new("shop", "till"), "web:80");
    change(&mut question);
    explain(&index, &settings(), &question).unwrap()
}

/// The status that the client is told; 200 where it passes.
fn status(answer: &Answer) -> u16 {
    let mut statuses: Vec<u16> = Vec::new();
    for course in &answer.courses {
        let of = |reply: &answer::Reply| reply.status.unwrap_or_default();
        statuses.extend(course.reply.iter().map(of));
        for backend in course.backends.iter().filter(|backend| backend.percent > 0.0) {
            statuses.extend(backend.reply.iter().map(of));
            for endpoint in &backend.endpoints {
                statuses.extend(endpoint.reply.iter().map(of));
                statuses.extend(endpoint.served.iter().map(|served| served.reply.as_ref().map_or(200, of)));
            }
        }
    }
    statuses.sort_unstable();
    statuses.dedup();
    assert_eq!(statuses.len(), 1, "{answer:#?}");
    statuses[0]
}

#[track_caller]
fn is(answer: &Answer, verdict: Verdict, expected: u16) {
    assert_eq!((answer.verdict, status(answer)), (verdict, expected), "{answer:#?}");
}

#[test]
fn without_routes_and_policies_everything_goes_to_the_service() {
    let answer = asked(&shop(), |_| {});
    is(&answer, Verdict::Admitted, 200);
    let course = &answer.courses[0];
    assert_eq!((course.declared, course.spoken, course.backends.len()), ("detect", "http1", 1));
    assert_eq!(course.rule.as_ref().unwrap().of, "default http");
    let endpoints = &course.backends[0].endpoints;
    assert_eq!(
        endpoints.iter().map(|one| one.pod.clone().unwrap()).collect::<Vec<_>>(),
        ["shop/web-1", "shop/web-2"]
    );
    for endpoint in endpoints {
        assert_eq!(endpoint.tls.as_deref(), Some("web.shop.serviceaccount.identity.remora.cluster.local"));
        assert_eq!(endpoint.dialled, "direct");
        let [served] = endpoint.served.as_slice() else { panic!("{endpoint:?}") };
        assert_eq!(
            (served.server.as_deref(), served.by.as_deref()),
            (Some("default all-unauthenticated"), Some("default all-unauthenticated"))
        );
    }
    assert_eq!(
        answer.client.identity.as_deref(),
        Some("till.shop.serviceaccount.identity.remora.cluster.local")
    );
    assert_eq!(answer.notes, Vec::<String>::new());
}

#[test]
fn the_best_rule_has_it_and_the_others_say_why_not() {
    let rules = "{matches: [{path: {value: /a}, method: POST}], backendRefs: [{name: v2, port: 80}]},
        {matches: [{path: {value: /a}}], backendRefs: [{name: v2, port: 80, weight: 1}, {name: web, port: 80, weight: 3}]}, {}";
    let answer = asked(&(shop() + &route(rules)), |question| question.path = "/a/b".into());
    is(&answer, Verdict::Admitted, 200);
    let course = &answer.courses[0];
    let rule = course.rule.as_ref().unwrap();
    assert_eq!(
        (rule.of.as_str(), rule.number, rule.matches.as_slice()),
        ("HTTPRoute shop/web", Some(1), &["path below /a".to_owned()][..])
    );
    let lost: Vec<(usize, &str)> = course.lost.iter().map(|lost| (lost.number, lost.why.as_str())).collect();
    assert_eq!(lost, [(0, "the method is not POST"), (2, "it matches too, but it names less of the path")]);
    let shares: Vec<(&str, f64)> = course.backends.iter().map(|one| (one.of.as_str(), one.percent)).collect();
    assert_eq!(shares, [("Service shop/v2:80", 25.0), ("Service shop/web:80", 75.0)]);
}

#[test]
fn what_a_proxy_answers_itself_is_the_answer() {
    let route = |rule: &str| route(&format!("{{matches: [{{path: {{value: /a}}}}], {rule}}}"));
    let redirect =
        "filters: [{type: RequestRedirect, requestRedirect: {hostname: example.com, statusCode: 301}}]";
    for (rule, path, verdict, status) in [
        ("timeouts: {request: 1s}", "/a", Verdict::Admitted, 200),
        ("timeouts: {request: 1s}", "/b", Verdict::Refused, 404),
        ("timeouts: {request: 1s}", "/b/../a", Verdict::Refused, 400),
        (redirect, "/a", Verdict::Admitted, 301),
        ("filters: [{type: CORS, cors: {}}]", "/a", Verdict::Refused, 500),
        ("backendRefs: [{name: gone, port: 80}]", "/a", Verdict::Unresolved, 500),
        ("backendRefs: [{name: none, port: 80}]", "/a", Verdict::Unresolved, 504),
        ("backendRefs: [{name: web, port: 80, weight: 0}]", "/a", Verdict::Refused, 500),
    ] {
        let answer = asked(&(shop() + &route(rule)), |question| question.path = path.into());
        is(&answer, verdict, status);
    }
    let answer = asked(&(shop() + &route(redirect)), |question| question.path = "/a?b".into());
    let reply = answer.courses[0].reply.clone().unwrap();
    assert_eq!(reply.location.as_deref(), Some("http://example.com/a?b"));
    let answer = asked(&shop(), |question| question.to = "web:81".into());
    is(&answer, Verdict::Refused, 403);
}

#[test]
fn a_server_admits_by_what_the_client_proves_and_where_it_is() {
    let account = "{kind: ServiceAccount, name: till}";
    let network = "{apiVersion: policy.linkerd.io/v1alpha1, kind: NetworkAuthentication, metadata: {name: near, namespace: shop}, spec: {networks: [{cidr: 10.1.0.0/28}]}}\n---\n";
    let near = "{group: policy.linkerd.io, kind: NetworkAuthentication, name: near}";
    let both = format!("{near}, {account}");
    for (refs, from, unmeshed, ip, verdict, expected) in [
        (account, "till", false, None, Verdict::Admitted, 200),
        (account, "till", true, None, Verdict::Refused, 403),
        (account, "old", false, None, Verdict::Refused, 403),
        (account, "nobody", false, None, Verdict::Refused, 403),
        (near, "till", false, None, Verdict::Admitted, 200),
        (near, "old", false, None, Verdict::Admitted, 200),
        (near, "old", false, Some("10.1.0.16"), Verdict::Refused, 403),
        (&both, "till", false, Some("10.1.0.16"), Verdict::Refused, 403),
        (&both, "till", false, None, Verdict::Admitted, 200),
    ] {
        let manifests = shop() + SERVER + network + &policy("p", refs);
        let answer = asked(&manifests, |question| {
            question.from.name = from.to_owned();
            question.unmeshed = unmeshed;
            question.from_ip = ip.map(|ip| ip.parse().unwrap());
        });
        is(&answer, verdict, expected);
    }
    let answer =
        asked(&(shop() + SERVER + &policy("p", account)), |question| question.from.name = "v2".into());
    let served = &answer.courses[0].backends[0].endpoints[0].served[0];
    assert_eq!(served.server.as_deref(), Some("Server shop/web"));
    assert_eq!(served.refusing[0].of, "AuthorizationPolicy shop/p");
    assert_eq!(
        served.refusing[0].why,
        "it admits till.shop.serviceaccount.identity.remora.cluster.local, and the client is \
         v2.shop.serviceaccount.identity.remora.cluster.local"
    );
    assert_eq!(
        served.reply.as_ref().unwrap().why,
        "v2.shop.serviceaccount.identity.remora.cluster.local may not use server/web: not admitted by authorizationpolicy/p"
    );
}

#[test]
fn an_unknown_address_is_every_address_that_policy_tells_apart() {
    let network = "{apiVersion: policy.linkerd.io/v1alpha1, kind: NetworkAuthentication, metadata: {name: near, namespace: shop}, spec: {networks: [{cidr: 10.2.0.0/16, except: [10.2.3.0/24]}]}}\n---\n";
    let near = "{group: policy.linkerd.io, kind: NetworkAuthentication, name: near}";
    let answer = asked(&(shop() + SERVER + network + &policy("p", near)), |question| {
        question.from.name = "new".into();
    });
    assert_eq!(answer.verdict, Verdict::Refused);
    let served = &answer.courses[0].backends[0].endpoints[0].served;
    let outcome = |admitted: bool| {
        let one = served.iter().find(|one| one.admitted == admitted).unwrap();
        one.from.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(outcome(true), ["10.2.0.0", "10.2.2.255", "10.2.4.0", "10.2.255.255"]);
    assert!(answer.notes.iter().any(|note| note.contains("--from-ip")), "{:?}", answer.notes);
}

/// Also those for which the message of the route's condition has no room.
#[test]
fn references_of_routes_that_lead_nowhere_are_named() {
    let gone = vec!["{name: gone, port: 80}"; 16].join(", ");
    let mut rules = vec![format!("{{matches: [{{path: {{value: /other}}}}], backendRefs: [{gone}]}}"); 15];
    rules.push("{backendRefs: [{name: web, port: 80}, {name: none-such, port: 80, weight: 0}]}".to_owned());
    let answer = asked(&(shop() + &route(&rules.join(", "))), |_| {});
    let expected =
        "HTTPRoute shop/web: spec.rules[15].backendRefs[1]: Service shop/none-such does not exist".to_owned();
    assert_eq!((answer.verdict, &answer.unresolved), (Verdict::Unresolved, &vec![expected]));
    assert!(asked(&(shop() + &route("{}")), |_| {}).unresolved.is_empty());
}

#[test]
fn of_retries_there_are_as_many_as_a_proxy_makes() {
    for (attempts, expected) in [(10, (Some(10), None)), (50, (Some(10), Some(50)))] {
        let answer = asked(&(shop() + &route(&format!("{{retry: {{attempts: {attempts}}}}}"))), |_| {});
        let retry = answer.courses[0].retry.as_ref().unwrap();
        assert_eq!((retry.limit, retry.asked), expected);
    }
}

#[test]
fn references_of_policies_that_lead_nowhere_are_named() {
    let gone = "{group: policy.linkerd.io, kind: MeshTLSAuthentication, name: gone}";
    let answer = asked(&(shop() + SERVER + &policy("p", gone)), |_| {});
    is(&answer, Verdict::Unresolved, 403);
    assert_eq!(
        answer.unresolved,
        [
            "AuthorizationPolicy shop/p: spec.requiredAuthenticationRefs[0]: MeshTLSAuthentication shop/gone does not exist; it admits nobody"
        ]
    );
    let answer = asked(&shop(), |question| question.to = "web.bank:80".into());
    assert_eq!(
        (answer.verdict, answer.unresolved),
        (Verdict::Unresolved, vec!["Service bank/web does not exist".to_owned()])
    );
}

#[test]
fn bytes_and_tls_are_not_looked_into() {
    let answer = asked(&shop(), |question| question.to = "web:5432".into());
    is(&answer, Verdict::Admitted, 200);
    let course = &answer.courses[0];
    assert_eq!((course.declared, course.spoken, course.rule.is_none()), ("opaque", "bytes", true));
    assert_eq!(course.backends[0].endpoints[0].served[0].declared, "opaque");
    let tls = "{apiVersion: gateway.networking.k8s.io/v1, kind: TLSRoute, metadata: {name: t, namespace: shop}, spec: {parentRefs: \
        [{group: core, kind: Service, name: web, port: 80}], hostnames: [a.example], rules: [{backendRefs: [{name: v2, port: 80}]}]}}\n---\n";
    let manifests = shop() + tls;
    let by = |sni: &str| asked(&manifests, |question| question.speaks = Speaks::Tls(sni.to_owned()));
    assert_eq!(by("a.example").courses[0].backends[0].of, "Service shop/v2:80");
    assert_eq!(by("a.example").verdict, Verdict::Admitted);
    assert_eq!(by("b.example").verdict, Verdict::Refused);
    assert_eq!(by("b.example").courses[0].reply.clone().unwrap().status, None);
}

#[test]
fn a_service_profile_comes_before_routes() {
    let profile = "{apiVersion: linkerd.io/v1alpha2, kind: ServiceProfile, metadata: {name: web.shop.svc.cluster.local, namespace: \
        shop}, spec: {routes: [{name: list, condition: {method: GET, pathRegex: /a}, timeout: 2s, isRetryable: true}, \
        {name: rest, condition: {method: GET}}]}}\n---\n";
    let answer = asked(&(shop() + profile + &route("{backendRefs: [{name: v2, port: 80}]}")), |question| {
        question.path = "/a".into();
    });
    is(&answer, Verdict::Admitted, 200);
    let course = &answer.courses[0];
    assert_eq!(course.rule.as_ref().unwrap().of, "ServiceProfile shop/web.shop.svc.cluster.local (list)");
    assert_eq!(course.backends[0].of, "Service shop/web:80");
    assert_eq!(course.timeouts.unwrap().response, Some(2.0));
    assert!(course.retry.as_ref().unwrap().budget.is_some());
    assert_eq!(course.lost[0].why, "one before it has the request");
    assert!(course.apart.iter().any(|apart| apart.why.contains("ServiceProfile")), "{:?}", course.apart);
}

#[test]
fn a_headless_service_is_dialled_pod_by_pod() {
    let headless = service("web", "None", "");
    let manifests = shop().replace(&service("web", "10.96.0.1", ""), &headless);
    let answer = asked(&manifests, |question| question.to = "web:8080".into());
    assert_eq!(answer.verdict, Verdict::Admitted, "{answer:#?}");
    let addresses: Vec<String> =
        answer.courses.iter().map(|course| course.address.unwrap().to_string()).collect();
    assert_eq!(addresses, ["10.1.0.1:8080", "10.1.0.2:8080"]);
    assert_eq!(answer.courses[0].backends[0].endpoints[0].dialled, "direct");
    assert_eq!(answer.courses[0].target, "pod shop/web-1, by Service shop/web:80");
}

#[test]
fn an_address_is_what_is_there() {
    let at = |to: &str| asked(&shop(), |question| question.to = to.to_owned());
    let course = |to: &str| at(to).courses[0].clone();
    assert_eq!(course("10.96.0.1:80").target, "Service shop/web:80");
    let pod = course("10.1.0.1:8080");
    assert_eq!(
        (pod.target.as_str(), pod.backends[0].endpoints[0].dialled),
        ("pod shop/web-1, by Service shop/web:80", "direct")
    );
    // Itself, past its own proxy's TLS.
    let own = course("10.1.0.9:8080");
    assert_eq!(own.backends[0].endpoints[0].no_tls, Some("loopback"));
    let outside = course("192.0.2.1:443");
    assert_eq!(
        (outside.target.as_str(), outside.backends[0].of.as_str()),
        ("nothing that is known here", "192.0.2.1:443")
    );
    assert!(outside.backends[0].endpoints[0].served[0].notes[0].contains("no pod that is known here"));
}

#[test]
fn a_route_of_the_server_decides_there() {
    let to_server = "{apiVersion: policy.linkerd.io/v1beta3, kind: HTTPRoute, metadata: {name: files, namespace: shop}, spec: {parentRefs: \
        [{group: policy.linkerd.io, kind: Server, name: web}], rules: [{matches: [{path: {type: PathPrefix, value: /files}}]}]}}\n---\n";
    let of_route = policy("p", "{kind: ServiceAccount, name: till}")
        .replace("kind: Server, name: web", "kind: HTTPRoute, name: files");
    let manifests = shop() + SERVER + to_server + &of_route;
    for (path, from, verdict, status) in [
        ("/files/x", "till", Verdict::Admitted, 200),
        ("/files/x", "v2", Verdict::Refused, 403),
        ("/other", "till", Verdict::Refused, 404),
        ("/files/../x", "till", Verdict::Refused, 400),
    ] {
        let answer = asked(&manifests, |question| {
            question.path = path.into();
            question.from.name = from.into();
        });
        is(&answer, verdict, status);
    }
}

#[test]
fn what_a_filter_changes_is_what_the_server_sees() {
    let to_server = "{apiVersion: policy.linkerd.io/v1beta3, kind: HTTPRoute, metadata: {name: files, namespace: shop}, spec: {parentRefs: \
        [{group: policy.linkerd.io, kind: Server, name: web}], rules: [{matches: [{path: {type: PathPrefix, value: /v2}, headers: [{name: x, value: \"1\"}]}]}]}}\n---\n";
    let everybody = policy("p", "");
    let rewrite = "{filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /v2}}}, \
        {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x, value: \"1\"}]}}]}";
    let manifests = shop() + SERVER + to_server + &everybody;
    is(&asked(&manifests, |question| question.path = "/a".into()), Verdict::Refused, 404);
    is(
        &asked(&(manifests + &route(rewrite)), |question| question.path = "/a".into()),
        Verdict::Admitted,
        200,
    );
}

#[test]
fn rate_limits_are_said_and_not_counted() {
    let limit = "{apiVersion: policy.linkerd.io/v1alpha1, kind: HTTPLocalRateLimitPolicy, metadata: {name: l, namespace: shop}, spec: {targetRef: \
        {group: policy.linkerd.io, kind: Server, name: web}, total: {requestsPerSecond: 100}, identity: {requestsPerSecond: 10}, overrides: \
        [{requestsPerSecond: 5, clientRefs: [{kind: ServiceAccount, name: till}]}]}}\n---\n";
    let answer = asked(&(shop() + SERVER + limit + &policy("p", "")), |_| {});
    let served = &answer.courses[0].backends[0].endpoints[0].served[0];
    assert_eq!(
        served.rate_limits,
        [
            "HTTPLocalRateLimitPolicy shop/l: 100 requests per second of all clients together",
            "HTTPLocalRateLimitPolicy shop/l: 5 requests per second of this client"
        ]
    );
}

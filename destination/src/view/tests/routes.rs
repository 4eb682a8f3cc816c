//! Which routes hold, in which order, and how each says that it stands: a row for each sentence.

use super::*;

/// Three Services of two namespaces, and one that has no cluster IP.
const SERVICES: &str = "
{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}, spec: {clusterIP: 10.96.0.1, ports: [{name: http, port: 80}, {name: more, port: 81}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: v2, namespace: shop}, spec: {clusterIP: 10.96.0.2, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: safe, namespace: bank}, spec: {clusterIP: 10.96.0.3, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: pods, namespace: shop}, spec: {clusterIP: None, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: far, namespace: shop}, spec: {type: ExternalName, externalName: example.com, ports: [{port: 80}]}}
---
";

const WEB: &str = "{group: core, kind: Service, name: web, namespace: shop}";
const TO_V2: &str = "{backendRefs: [{name: v2, namespace: shop, port: 80}]}";

/// A route with other metadata than its name.
fn route_with(kind: &str, name: &str, metadata: &str, parents: &str, rules: &str) -> String {
    let (namespace, name) = name.split_once('/').unwrap();
    let (group, kind) = match kind {
        "LinkerdHTTPRoute" => ("policy.linkerd.io/v1beta3", "HTTPRoute"),
        "TCPRoute" => ("gateway.networking.k8s.io/v1alpha2", kind),
        _ => ("gateway.networking.k8s.io/v1", kind),
    };
    format!(
        "{{apiVersion: {group}, kind: {kind}, metadata: {{name: {name}, namespace: {namespace}, {metadata}}}, \
         spec: {{parentRefs: [{parents}], rules: [{rules}]}}}}\n---\n"
    )
}

fn route(kind: &str, name: &str, parents: &str, rules: &str) -> String {
    route_with(kind, name, "", parents, rules)
}

fn http(name: &str, parents: &str, rules: &str) -> String {
    route("HTTPRoute", name, parents, rules)
}

fn policy(routes: &str, target: &str, client: Option<&str>) -> ServicePolicy {
    policy_of(&format!("{SERVICES}{routes}"), target, client)
}

fn policy_of(manifests: &str, target: &str, client: Option<&str>) -> ServicePolicy {
    let index = index(manifests);
    let target = Target::parse(target, "cluster.local").unwrap();
    match outbound(&mut Lens::new(&index), &settings(), &target, client) {
        Ok(Outbound::Service(policy)) => *policy,
        other => panic!("{other:?}"),
    }
}

fn holding(routes: &str, port: u16, client: Option<&str>) -> Vec<String> {
    let policy = policy(routes, &format!("10.96.0.1:{port}"), client);
    policy.routes.iter().map(|route| route.id.to_string()).collect()
}

#[test]
fn a_parent_names_a_service_and_perhaps_a_port() {
    for (parent, at_80, at_81) in [
        ("", true, true),
        (", port: 80", true, false),
        (", port: 81", false, true),
        (", sectionName: http", true, false),
        (", sectionName: more", false, true),
        (", sectionName: http, port: 80", true, false),
        (", sectionName: http, port: 81", false, false),
        (", port: 82", false, false),
        (", sectionName: none", false, false),
    ] {
        let routes = http("shop/a", &WEB.replace('}', &format!("{parent}}}")), TO_V2);
        let seen = [80, 81].map(|port| !holding(&routes, port, None).is_empty());
        assert_eq!(seen, [at_80, at_81], "{parent}");
    }
}

#[test]
fn two_parents_are_two_attachments() {
    let parents = format!("{}, {}", WEB.replace('}', ", port: 80}"), WEB.replace("web", "v2"));
    let routes = http("shop/a", &parents, TO_V2);
    assert_eq!((holding(&routes, 80, None).len(), holding(&routes, 81, None).len()), (1, 0));
    assert_eq!(policy(&routes, "10.96.0.2:80", None).routes.len(), 1);
}

#[test]
fn producers_are_for_everybody_and_consumers_for_their_own() {
    let (producer, consumer) = (http("shop/p", WEB, TO_V2), http("bank/c", WEB, TO_V2));
    let both = format!("{producer}{consumer}");
    for (routes, client, expected) in [
        (&producer, None, "HTTPRoute shop/p"),
        (&producer, Some("shop"), "HTTPRoute shop/p"),
        (&producer, Some("bank"), "HTTPRoute shop/p"),
        (&consumer, Some("bank"), "HTTPRoute bank/c"),
        (&consumer, Some("shop"), ""),
        (&consumer, Some("other"), ""),
        (&consumer, None, ""),
        // Instead of the producer's, never beside it.
        (&both, Some("bank"), "HTTPRoute bank/c"),
        (&both, Some("shop"), "HTTPRoute shop/p"),
        (&both, Some("other"), "HTTPRoute shop/p"),
    ] {
        assert_eq!(holding(routes, 80, client).join(" "), expected, "{client:?} of {routes}");
    }
    // A consumer's route for one port says nothing of the other.
    let port = http("bank/c", &WEB.replace('}', ", port: 80}"), TO_V2);
    assert_eq!(holding(&format!("{producer}{port}"), 81, Some("bank")), ["HTTPRoute shop/p"]);
    // Even one of a kind that would come later.
    let bytes = route("TCPRoute", "bank/c", WEB, TO_V2);
    assert_eq!(holding(&format!("{producer}{bytes}"), 80, Some("bank")), ["TCPRoute bank/c"]);
}

#[test]
fn the_oldest_comes_first_then_by_namespace_and_name() {
    let created = |kind: &str, name: &str, when: &str| {
        let metadata =
            if when.is_empty() { String::new() } else { format!("creationTimestamp: '{when}T00:00:00Z'") };
        route_with(kind, name, &metadata, WEB, TO_V2)
    };
    // HTTPRouteRule.matches and GRPCRouteRule.matches, of ties that are left across routes; those before them are in the
    // tables of `core/src/route/choose/precedence.rs`, where the earlier of equals wins.
    for kind in ["HTTPRoute", "GRPCRoute"] {
        for (sentence, routes, expected) in [
            (
                "the oldest by its creation timestamp",
                [("shop/b", "2026-01-01"), ("shop/a", "2026-01-02"), ("shop/c", "2026-01-03")],
                ["b", "a", "c"],
            ),
            (
                "then the first by `{namespace}/{name}`",
                [("shop/b", "2026-01-01"), ("shop/a", "2026-01-01"), ("shop/c", "2025-01-01")],
                ["c", "a", "b"],
            ),
            // A manifest that was never in a cluster has none.
            (
                "without a timestamp it is younger than all",
                [("shop/b", "2026-01-01"), ("shop/a", "2026-01-02"), ("shop/a0", "")],
                ["b", "a", "a0"],
            ),
            (
                "and then by name too",
                [("shop/b", ""), ("shop/a", ""), ("shop/c", "2026-01-01")],
                ["c", "a", "b"],
            ),
        ] {
            let manifests: String = routes.iter().map(|(name, when)| created(kind, name, when)).collect();
            let expected = expected.map(|name| format!("{kind} shop/{name}"));
            assert_eq!(holding(&manifests, 80, None), expected, "{sentence}");
        }
    }
    let same = format!("{}{}", route("LinkerdHTTPRoute", "shop/a", WEB, TO_V2), http("shop/a", WEB, TO_V2));
    assert_eq!(holding(&same, 80, None), ["HTTPRoute shop/a", "HTTPRoute.policy.linkerd.io shop/a"]);
}

/// GRPCRouteRule.matches: they are not merged with HTTPRoutes.
#[test]
fn one_family_holds() {
    let all = ["TCPRoute", "TLSRoute", "HTTPRoute", "LinkerdHTTPRoute", "GRPCRoute"];
    let of =
        |kinds: &[&str]| -> String { kinds.iter().map(|kind| route(kind, "shop/a", WEB, TO_V2)).collect() };
    let app = |protocol: &str| {
        SERVICES.replace("name: http, port: 80", &format!("name: http, port: 80, appProtocol: {protocol}"))
    };
    let opaque = SERVICES.replacen(
        "namespace: shop}",
        "namespace: shop, annotations: {config.linkerd.io/opaque-ports: '80'}}",
        1,
    );
    for (services, kinds, expected) in [
        (SERVICES.to_owned(), &all[..], "GRPCRoute"),
        (SERVICES.to_owned(), &all[..4], "HTTPRoute HTTPRoute.policy.linkerd.io"),
        (SERVICES.to_owned(), &all[..2], "TLSRoute"),
        (SERVICES.to_owned(), &all[..1], "TCPRoute"),
        (app("http"), &all, "HTTPRoute HTTPRoute.policy.linkerd.io"),
        (app("http"), &all[4..], ""),
        (app("kubernetes.io/h2c"), &all, "GRPCRoute"),
        (app("kubernetes.io/h2c"), &all[..4], "HTTPRoute HTTPRoute.policy.linkerd.io"),
        (app("kubernetes.io/h2c"), &all[..2], ""),
        (app("linkerd.io/tcp"), &all, "TCPRoute"),
        (opaque.clone(), &all, "TCPRoute"),
        (opaque, &all[1..], ""),
    ] {
        let policy = policy_of(&format!("{services}{}", of(kinds)), "10.96.0.1:80", None);
        let held: Vec<_> = policy.routes.iter().map(|route| route.id.kind.as_str()).collect();
        assert_eq!(held.join(" "), expected, "{kinds:?} on {:?}", policy.protocol);
    }
    let two =
        format!("{}{}", route("TCPRoute", "shop/b", WEB, TO_V2), route("TCPRoute", "shop/a", WEB, TO_V2));
    assert_eq!(holding(&two, 80, None), ["TCPRoute shop/a"]);
}

#[test]
fn backends() {
    let grant = |kind: &str, namespace: &str, to: &str| {
        format!(
            "{{apiVersion: gateway.networking.k8s.io/v1beta1, kind: ReferenceGrant, metadata: {{name: g, namespace: bank}}, \
             spec: {{from: [{{group: gateway.networking.k8s.io, kind: {kind}, namespace: {namespace}}}], to: [{to}]}}}}\n---\n"
        )
    };
    let not_permitted = "Service bank/safe is in another namespace, and no ReferenceGrant there allows HTTPRoute of shop to refer to it";
    let safe = "{name: safe, namespace: bank, port: 80}";
    for (more, backend, expected) in [
        (String::new(), "{name: v2, port: 80}", "shop/v2:80 1"),
        (String::new(), "{name: v2, port: 80, weight: 0}", "shop/v2:80 0"),
        (String::new(), "{name: v2, port: 80, weight: 1000000}", "shop/v2:80 1000000"),
        (String::new(), "{name: none, port: 80}", "Service shop/none does not exist"),
        (String::new(), "{name: v2, port: 81}", "Service shop/v2 has no port 81"),
        (String::new(), "{name: pods, port: 80}", "shop/pods:80 1"),
        (String::new(), "{name: far, port: 80}", "Service shop/far is an ExternalName: it has no endpoints"),
        (
            String::new(),
            "{kind: Bucket, group: store.io, name: b}",
            "Bucket of store.io cannot be sent to; a Service can",
        ),
        (String::new(), "{kind: Pod, name: b}", "Pod of core cannot be sent to; a Service can"),
        (String::new(), safe, not_permitted),
        (String::new(), "{name: none, namespace: bank, port: 80}", &not_permitted.replace("safe", "none")),
        (grant("HTTPRoute", "shop", "{group: '', kind: Service}"), safe, "bank/safe:80 1"),
        (grant("HTTPRoute", "shop", "{group: '', kind: Service, name: safe}"), safe, "bank/safe:80 1"),
        (grant("HTTPRoute", "shop", "{group: '', kind: Service, name: other}"), safe, not_permitted),
        (grant("GRPCRoute", "shop", "{group: '', kind: Service}"), safe, not_permitted),
        (grant("HTTPRoute", "other", "{group: '', kind: Service}"), safe, not_permitted),
        (grant("HTTPRoute", "shop", "{group: '', kind: Secret}"), safe, not_permitted),
    ] {
        let routes = format!(
            "{more}{}",
            http("shop/a", WEB, &format!("{{backendRefs: [{backend}, {{name: web, port: 80}}]}}"))
        );
        let policy = policy(&routes, "10.96.0.1:80", None);
        let held = &policy.routes[0].rules[0].backends[0];
        let words = match &held.target {
            Ok((name, port)) => format!("{name}:{port} {}", held.weight),
            Err(why) => why.clone(),
        };
        assert_eq!(words, expected, "{backend}");
    }
}

#[test]
fn a_consumers_own_backend_needs_no_grant_and_the_service_itself_does() {
    let own = http(
        "bank/c",
        WEB,
        "{backendRefs: [{name: safe, port: 80}, {name: web, namespace: shop, port: 80}]}",
    );
    let policy = policy(&own, "10.96.0.1:80", Some("bank"));
    let targets: Vec<bool> =
        policy.routes[0].rules[0].backends.iter().map(|backend| backend.target.is_ok()).collect();
    assert_eq!(targets, [true, false]);
}

/// What the routes say of themselves.
fn conditions(manifests: &str) -> Vec<String> {
    let index = index(manifests);
    let words = |condition: &Condition| {
        let Condition { kind, reason, message, .. } = condition;
        if condition.holds() { (*reason).to_owned() } else { format!("not {kind}: {reason}: {message}") }
    };
    route_reports(&index, &settings())
        .flat_map(|(id, report)| {
            let parents = report.parents.into_iter().map(move |parent| {
                let [accepted, resolved] = &parent.conditions;
                format!("{id}: {}, {}", words(accepted), words(resolved))
            });
            parents.collect::<Vec<_>>()
        })
        .collect()
}

const FINE: &str = "HTTPRoute shop/a: Accepted, ResolvedRefs";

fn accepted(why: &str) -> String {
    format!("HTTPRoute shop/a: not Accepted: {why}, ResolvedRefs")
}

#[track_caller]
fn stand(rows: &[(String, String)]) {
    for (manifests, expected) in rows {
        assert_eq!(conditions(&format!("{SERVICES}{manifests}")).join("\n"), *expected, "{manifests}");
    }
}

#[test]
fn how_a_route_stands_with_its_parents_and_backends() {
    let parent = |with: &str| format!("{{group: core, kind: Service, {with}}}");
    let resolved = |why: &str| format!("HTTPRoute shop/a: Accepted, not ResolvedRefs: {why}");
    stand(&[
        (http("shop/a", WEB, TO_V2), FINE.to_owned()),
        (
            http("shop/a", &parent("name: none"), TO_V2),
            accepted("NoMatchingParent: spec.parentRefs[0]: Service shop/none does not exist"),
        ),
        (
            http("shop/a", &parent("name: pods"), TO_V2),
            accepted(
                "NoMatchingParent: spec.parentRefs[0]: Service shop/pods has no cluster IP: its clients dial pods, which have no routes",
            ),
        ),
        (
            http("shop/a", &parent("name: web, port: 99"), TO_V2),
            accepted(
                "NoMatchingParent: spec.parentRefs[0]: Service shop/web has no TCP port of this number or name",
            ),
        ),
        (
            http("shop/a", "{kind: Service, name: web}", TO_V2),
            accepted(
                "NoMatchingParent: spec.parentRefs[0].group: gateway.networking.k8s.io, the default, has no Services; write core",
            ),
        ),
        (
            http("shop/a", WEB, "{backendRefs: [{name: none, port: 80}]}"),
            resolved("BackendNotFound: spec.rules[0].backendRefs[0]: Service shop/none does not exist"),
        ),
        (
            http(
                "shop/a",
                WEB,
                "{backendRefs: [{name: v2, port: 80}, {name: safe, namespace: bank, port: 80}]}",
            ),
            resolved(
                "RefNotPermitted: spec.rules[0].backendRefs[1]: Service bank/safe is in another namespace, and no ReferenceGrant there allows HTTPRoute of shop to refer to it",
            ),
        ),
        (
            http("shop/a", WEB, "{backendRefs: [{kind: Pod, name: v2}]}"),
            resolved(
                "InvalidKind: spec.rules[0].backendRefs[0]: Pod of core cannot be sent to; a Service can",
            ),
        ),
        (http("shop/a", "{name: gateway}", TO_V2), String::new()),
    ]);
}

#[test]
fn what_cannot_be_applied_is_named_by_its_path() {
    let filter = |filter: &str| http("shop/a", WEB, &format!("{{filters: [{filter}]}}"));
    stand(&[
        (
            filter("{type: RequestMirror, requestMirror: {backendRef: {name: none, port: 80}}}"),
            "HTTPRoute shop/a: Accepted, not ResolvedRefs: BackendNotFound: spec.rules[0].filters[0].requestMirror.backendRef: Service shop/none does not exist".to_owned(),
        ),
        (
            // What our own API can say is accepted; of Linkerd's proxies there is a warning.
            filter("{type: RequestHeaderModifier, requestHeaderModifier: {}}, {type: URLRewrite, urlRewrite: {hostname: a}}"),
            FINE.to_owned(),
        ),
        (
            filter("{type: ExtensionRef, extensionRef: {}}"),
            accepted("UnsupportedValue: spec.rules[0].filters[0].extensionRef: ExtensionRef is not supported; requests of this rule fail"),
        ),
        (
            filter("{type: ResponseHeaderModifier, responseHeaderModifier: {remove: [content-length]}}"),
            accepted("UnsupportedValue: spec.rules[0].filters[0].responseHeaderModifier.remove: content-length cannot be changed: it is about one connection or the message's length; requests of this rule fail"),
        ),
        (
            http("shop/a", WEB, "{backendRefs: [{name: v2, port: 80, filters: [{type: CORS, cors: {}}]}]}"),
            accepted("UnsupportedValue: spec.rules[0].backendRefs[0].filters[0].cors: CORS is not supported; requests that would go to this backend fail"),
        ),
        (
            http("shop/a", WEB, "{sessionPersistence: {}}"),
            accepted("UnsupportedValue: spec.rules[0].sessionPersistence: there is none here; requests of one client go to any endpoint"),
        ),
        (
            route_with("HTTPRoute", "shop/a", "annotations: {timeout.linkerd.io/request: soon}", WEB, TO_V2),
            accepted("UnsupportedValue: metadata.annotations[timeout.linkerd.io/request]: \"soon\" is no time such as 10s or 250ms: a whole number, and ms, s, m, h or d; it is ignored"),
        ),
        (
            route("GRPCRoute", "shop/a", WEB, "{matches: [{method: {type: RegularExpression, service: 'a.*'}}]}"),
            "GRPCRoute shop/a: not Accepted: UnsupportedValue: spec.rules[0].matches[0].method.type: Linkerd's API cannot carry regular expressions here; this match matches nothing, ResolvedRefs".to_owned(),
        ),
        (
            route("GRPCRoute", "shop/a", WEB, "{filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {}}]}"),
            FINE.replace("HTTPRoute", "GRPCRoute"),
        ),
        (
            route("TCPRoute", "shop/a", WEB, &format!("{TO_V2}, {TO_V2}")),
            "TCPRoute shop/a: not Accepted: UnsupportedValue: spec.rules[1]: connections take the first rule: this one is never used, ResolvedRefs".to_owned(),
        ),
    ]);
}

#[test]
fn who_comes_before_whom_is_said() {
    let profile = |namespace: &str, spec: &str| {
        format!(
            "{{apiVersion: linkerd.io/v1alpha2, kind: ServiceProfile, metadata: {{name: web.shop.svc.cluster.local, namespace: {namespace}}}, spec: {spec}}}\n---\n"
        )
    };
    let routes = "{routes: [{name: r, condition: {method: GET}}]}";
    stand(&[
        (
            format!("{}{}", route("GRPCRoute", "shop/g", WEB, TO_V2), http("shop/a", &WEB.replace('}', ", port: 80}"), TO_V2)),
            format!("{}\nGRPCRoute shop/g: Accepted, ResolvedRefs", accepted("RouteReasonConflicted: spec.parentRefs[0]: port 80 of Service shop/web goes by GRPCRoute shop/g, a kind that comes first")),
        ),
        (
            format!("{}{}", route("GRPCRoute", "shop/g", &WEB.replace('}', ", port: 80}"), TO_V2), http("shop/a", WEB, TO_V2)),
            // It holds at the other port.
            format!("{FINE}\nGRPCRoute shop/g: Accepted, ResolvedRefs"),
        ),
        (
            format!("{}{}", route("TCPRoute", "shop/b", WEB, TO_V2), route("TCPRoute", "shop/a", &WEB.replace('}', ", port: 81}"), TO_V2)),
            "TCPRoute shop/a: Accepted, ResolvedRefs\nTCPRoute shop/b: Accepted, ResolvedRefs".to_owned(),
        ),
        (
            format!("{}{}", route("TCPRoute", "shop/b", &WEB.replace('}', ", port: 80}"), TO_V2), route("TCPRoute", "shop/a", WEB, TO_V2)),
            "TCPRoute shop/a: Accepted, ResolvedRefs\nTCPRoute shop/b: not Accepted: RouteReasonConflicted: spec.parentRefs[0]: port 80 of Service shop/web goes by TCPRoute shop/a, which is older, ResolvedRefs".to_owned(),
        ),
        (
            format!("{}{}", http("shop/a", WEB, TO_V2), http("bank/c", WEB, "{}")),
            format!("HTTPRoute bank/c: Accepted, ResolvedRefs\n{FINE}"),
        ),
        (
            format!("{}{}", profile("shop", routes), http("shop/a", WEB, TO_V2)),
            accepted("RouteReasonConflicted: spec.parentRefs[0]: Service shop/web has ServiceProfile shop/web.shop.svc.cluster.local, which comes before routes"),
        ),
        (format!("{}{}", profile("bank", routes), http("shop/a", WEB, TO_V2)), FINE.to_owned()),
        (format!("{}{}", profile("shop", "{}"), http("shop/a", WEB, TO_V2)), FINE.to_owned()),
        (
            format!("{}{}", profile("shop", routes), route("TLSRoute", "shop/a", WEB, TO_V2)),
            "TLSRoute shop/a: Accepted, ResolvedRefs".to_owned(),
        ),
    ]);
}

#[test]
fn a_profile_says_which_routes_it_comes_before() {
    let profile = |namespace: &str, spec: &str| {
        format!(
            "{{apiVersion: linkerd.io/v1alpha2, kind: ServiceProfile, metadata: {{name: web.shop.svc.cluster.local, namespace: {namespace}}}, spec: {spec}}}"
        )
    };
    let all = ["HTTPRoute shop/p", "HTTPRoute bank/c", "TLSRoute shop/t"];
    let manifests = format!(
        "{SERVICES}{}{}{}",
        http("shop/p", WEB, TO_V2),
        http("bank/c", WEB, TO_V2),
        route("TLSRoute", "shop/t", WEB, TO_V2)
    );
    let (routes, split) = (
        "{routes: [{name: r, condition: {method: GET}}]}",
        "{dstOverrides: [{authority: v2.shop.svc.cluster.local, weight: 1}]}",
    );
    for (namespace, spec, expected) in [
        ("shop", routes, &[all[1], all[0]][..]),
        ("shop", split, &[all[1], all[0], all[2]]),
        ("shop", "{}", &[]),
        // Clients of `bank` alone go by it: those of its own routes, and of what is for everybody.
        ("bank", routes, &[all[1], all[0]]),
        ("other", routes, &[all[0]]),
    ] {
        let index = index(&format!("{manifests}{}", profile(namespace, spec)));
        let (_, report) = profile_reports(&index, &settings()).next().unwrap();
        assert_eq!(report.before, expected, "{namespace} {spec}");
    }
}

#[test]
fn opaque_ports_come_before_routes() {
    let opaque = SERVICES.replacen(
        "namespace: shop}",
        "namespace: shop, annotations: {config.linkerd.io/opaque-ports: '80,81'}}",
        1,
    );
    let at = |port: u16| {
        format!(
            "spec.parentRefs[0]: port {port} of Service shop/web is opaque: only a TCPRoute can hold there"
        )
    };
    let expected = format!(
        "HTTPRoute shop/a: not Accepted: NotAllowedByListeners: {}; {}, ResolvedRefs",
        at(80),
        at(81)
    );
    assert_eq!(conditions(&format!("{opaque}{}", http("shop/a", WEB, TO_V2))), [expected]);
}

#[test]
fn too_many_patterns_are_left_to_older_routes() {
    let headers = |at: usize| {
        (0..16)
            .map(|h| format!("{{type: RegularExpression, name: h{h}, value: a{at}.*}}"))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let matches = (0..8).map(|at| format!("{{headers: [{}]}}", headers(at))).collect::<Vec<_>>().join(", ");
    let rules = format!("{{matches: [{matches}]}}");
    let routes: String = (0..5).map(|number| http(&format!("shop/r{number}"), WEB, &rules)).collect();
    assert_eq!(holding(&routes, 80, None).len(), 4);
    let seen = conditions(&format!("{SERVICES}{routes}"));
    assert!(seen[4].starts_with("HTTPRoute shop/r4: not Accepted: RouteReasonConflicted: spec.parentRefs[0]: port 80 of Service shop/web has too many routes"), "{seen:?}");
}

#[test]
fn a_thousand_routes_hold_and_a_message_stays_short_enough() {
    use prost::Message as _;
    let canary = |number: usize| {
        format!(
            "{{matches: [{{headers: [{{name: x-canary, value: v{number}}}]}}], backendRefs: [{{name: web, port: 80, weight: 90}}, {{name: v2, port: 80, weight: 10}}]}}"
        )
    };
    let long = |number: usize| {
        let value = "v".repeat(4000);
        format!(
            "{{matches: [{{headers: [{{name: x-{number}, value: {value}}}]}}], backendRefs: [{{name: v2, port: 80}}]}}"
        )
    };
    let many = |count: usize, rule: &dyn Fn(usize) -> String| -> String {
        (0..count).map(|number| http(&format!("shop/r{number:04}"), WEB, &rule(number))).collect()
    };
    for (routes, least) in
        [(many(1000, &canary), 1000), (many(1500, &canary), 1000), (many(1000, &long), 300)]
    {
        let policy = policy(&routes, "10.96.0.1:80", None);
        let held = policy.routes.len();
        let message = crate::wire::policy(&Outbound::Service(Box::new(policy)), &settings());
        let (length, routes) = (message.encoded_len(), routes.len());
        assert!(held >= least && length < 4 << 20, "{held} of {routes} bytes hold, in {length} bytes");
    }
}

#[test]
fn warnings_change_no_condition() {
    let rule = "{filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: user, value: '${jwt.sub}'}]}}], \
                timeouts: {backendRequest: 1s}, retry: {attempts: 1}}";
    let index = index(&format!(
        "{SERVICES}{}{}",
        http("shop/a", WEB, rule),
        http("shop/b", "{group: policy.linkerd.io, kind: EgressNetwork, name: s}", TO_V2)
    ));
    let reports: Vec<_> = route_reports(&index, &settings()).collect();
    assert!(reports.iter().all(|(_, report)| report.is_fine()));
    let warnings: Vec<_> = reports.iter().map(|(_, report)| report.warnings.clone()).collect();
    assert!(
        warnings[0][0].contains("${jwt.sub} is no variable here")
            && warnings[0][1].contains("timeouts.backendRequest"),
        "{warnings:?}"
    );
    assert!(
        warnings[1][0].contains("kind EgressNetwork is not served")
            && warnings[1][1].contains("does nothing"),
        "{warnings:?}"
    );
}

#[test]
fn whose_timeouts_and_retries_hold() {
    let words = |service: &str, route: &str, rule: &str| {
        let services = SERVICES.replacen(
            "namespace: shop}",
            &format!("namespace: shop, annotations: {{{service}}}}}"),
            1,
        );
        let routes = route_with(
            "HTTPRoute",
            "shop/a",
            &format!("annotations: {{{route}}}"),
            WEB,
            &format!("{{{rule}}}"),
        );
        let policy = policy_of(&format!("{services}{routes}"), "10.96.0.1:80", None);
        let Resilience { timeouts, http_retry, backoff, .. } = &policy.routes[0].rules[0].resilience;
        let time =
            |name: &str, time: Option<std::time::Duration>| time.map(|time| format!("{name} {time:?}"));
        let retry = http_retry.as_ref().map(|retry| {
            let each = retry.timeout.map_or_else(String::new, |each| format!(" each {each:?}"));
            format!("{} on {:?}{each}", retry.limit, retry.conditions)
        });
        let backoff = backoff.map(|(min, max)| format!("pause {min:?} to {max:?}"));
        let all = [
            time("request", timeouts.request),
            time("response", timeouts.response),
            time("idle", timeouts.idle),
            retry,
            backoff,
        ];
        all.into_iter().flatten().collect::<Vec<_>>().join(", ")
    };
    for (service, route, rule, expected) in [
        ("", "", "", ""),
        ("timeout.linkerd.io/request: 1s", "", "", "request 1s"),
        // A group of the route takes the place of the Service's as a whole.
        ("timeout.linkerd.io/request: 1s", "timeout.linkerd.io/idle: 2s", "", "idle 2s"),
        ("timeout.linkerd.io/request: 1s", "retry.linkerd.io/limit: '3'", "", "request 1s, 3 on []"),
        ("timeout.linkerd.io/request: 1s", "", "timeouts: {request: 3s}", "request 3s"),
        ("timeout.linkerd.io/request: 1s", "", "timeouts: {request: 0s}", ""),
        ("timeout.linkerd.io/request: 1s", "timeout.linkerd.io/request: 0s", "", ""),
        ("", "timeout.linkerd.io/request: 2s", "timeouts: {request: 3s}", "request 2s"),
        ("", "timeout.linkerd.io/idle: 2s", "timeouts: {request: 3s}", "request 3s, idle 2s"),
        ("", "", "timeouts: {request: 3s, backendRequest: 1s}", "request 3s, response 1s"),
        ("", "timeout.linkerd.io/response: 2s", "timeouts: {backendRequest: 1s}", "response 2s"),
        (
            "",
            "",
            "timeouts: {backendRequest: 1s}, retry: {codes: [503], attempts: 2}",
            "2 on [(503, 503)] each 1s",
        ),
        ("", "", "timeouts: {backendRequest: 0s}, retry: {}", "1 on []"),
        ("retry.linkerd.io/http: 5xx", "", "", "1 on [(500, 599)]"),
        ("retry.linkerd.io/http: 5xx", "retry.linkerd.io/limit: '2'", "", "2 on []"),
        ("retry.linkerd.io/http: 5xx", "retry.linkerd.io/limit: '0'", "", ""),
        ("retry.linkerd.io/http: 5xx", "", "retry: {attempts: 0}", ""),
        (
            "retry.linkerd.io/http: 5xx",
            "",
            "retry: {codes: [500], backoff: 1s}",
            "1 on [(500, 500)], pause 1s to 10s",
        ),
        ("", "", "retry: {backoff: 10ms}", "1 on [], pause 10ms to 250ms"),
        (
            "",
            "retry.linkerd.io/http: gateway-error, retry.linkerd.io/timeout: 1s",
            "retry: {codes: [500], backoff: 1s}",
            "1 on [(502, 504)] each 1s",
        ),
        ("retry.linkerd.io/grpc: internal", "", "", ""),
    ] {
        assert_eq!(words(service, route, rule), expected, "{service} | {route} | {rule}");
    }
}

#[test]
fn a_service_without_routes_has_its_own_timeouts_and_retries() {
    let annotations = "namespace: shop, annotations: {timeout.linkerd.io/request: 1s, retry.linkerd.io/http: 5xx, balancer.linkerd.io/failure-accrual: consecutive}}";
    let policy = policy_of(&SERVICES.replacen("namespace: shop}", annotations, 1), "10.96.0.1:80", None);
    assert_eq!(policy.resilience.timeouts.request, Some(std::time::Duration::from_secs(1)));
    let retries = policy.resilience.http_retry.is_some();
    assert_eq!((retries, policy.accrual.map(|accrual| accrual.max_failures)), (true, Some(7)));
}

#[test]
fn of_timeouts_and_retries_what_is_not_done_as_it_is_written_is_warned_about() {
    const GRPC: &str = "retry.linkerd.io/grpc: unavailable";
    const HTTP: &str = "retry.linkerd.io/http: 5xx";
    const LIMIT: &str = "retry.linkerd.io/limit: '11'";
    let http = "HTTPRoute";
    for (service, kind, route, rule, of_service, of_route) in [
        ("", http, "", "", &[][..], &[][..]),
        (HTTP, http, HTTP, "", &[], &[]),
        (GRPC, "GRPCRoute", GRPC, "", &[], &[]),
        // By status of the other protocol.
        ("", http, GRPC, "", &[], &["metadata.annotations[retry.linkerd.io/grpc]: "]),
        ("", "LinkerdHTTPRoute", GRPC, "", &[], &["metadata.annotations[retry.linkerd.io/grpc]: "]),
        ("", "GRPCRoute", HTTP, "", &[], &["metadata.annotations[retry.linkerd.io/http]: "]),
        ("", "TCPRoute", HTTP, "", &[], &["metadata.annotations: "]),
        ("", "TCPRoute", "timeout.linkerd.io/idle: 1s", "", &[], &["metadata.annotations: "]),
        (GRPC, http, "", "", &["metadata.annotations[retry.linkerd.io/grpc]: "], &[]),
        // More than a proxy does.
        (LIMIT, "GRPCRoute", "", "", &["metadata.annotations[retry.linkerd.io/limit]: 11, "], &[]),
        ("", http, LIMIT, "", &[], &["metadata.annotations[retry.linkerd.io/limit]: 11, "]),
        ("", http, "retry.linkerd.io/limit: '10'", "", &[], &[]),
        ("", http, "", "retry: {attempts: 10}", &[], &[]),
        ("", http, "", "retry: {attempts: 11}", &[], &["spec.rules[0].retry.attempts: 11, "]),
        // The annotation comes first.
        ("", http, HTTP, "retry: {attempts: 11}", &[], &[]),
        // A try's own time.
        ("", http, "", "timeouts: {backendRequest: 1s}", &[], &[]),
        (HTTP, http, "", "timeouts: {backendRequest: 1s}", &[], &["spec.rules[0].timeouts.backendRequest: "]),
        ("", http, HTTP, "timeouts: {backendRequest: 1s}", &[], &["spec.rules[0].timeouts.backendRequest: "]),
        (HTTP, http, "", "timeouts: {backendRequest: 0s}", &[], &[]),
        ("", http, "retry.linkerd.io/limit: '0'", "timeouts: {backendRequest: 1s}", &[], &[]),
        (HTTP, http, "", "timeouts: {backendRequest: 1s}, retry: {attempts: 0}", &[], &[]),
    ] {
        let annotated = format!("namespace: shop, annotations: {{{service}}}}}");
        let services = SERVICES.replacen("namespace: shop}", &annotated, 1);
        let rule = if kind == "TCPRoute" { "backendRefs: [{name: v2, port: 80}]" } else { rule };
        let route =
            route_with(kind, "shop/a", &format!("annotations: {{{route}}}"), WEB, &format!("{{{rule}}}"));
        let index = index(&format!("{services}{route}"));
        let (_, report) = route_reports(&index, &settings()).next().unwrap();
        let services = service_reports(&index).map(|(name, report)| (name.to_string(), report.warnings));
        let services: Vec<String> = services
            .flat_map(|(name, warnings)| {
                assert_eq!(name, "shop/web");
                warnings
            })
            .collect();
        for (found, expected) in [(&services, of_service), (&report.warnings, of_route)] {
            let alike = found.iter().zip(expected).all(|(found, expected)| found.starts_with(expected));
            assert!(alike && found.len() == expected.len(), "{route}{services:?}{report:?}");
        }
        assert!(report.is_fine(), "{report:?}");
    }
}

#[test]
fn some_headers_are_nobodys_to_change() {
    let fails = |filter: &str, edit: &str| {
        let field =
            if filter.starts_with("Req") { "requestHeaderModifier" } else { "responseHeaderModifier" };
        let rule = format!("{{filters: [{{type: {filter}, {field}: {edit}}}]}}");
        policy(&http("shop/a", WEB, &rule), "10.96.0.1:80", None).routes[0].rules[0].failure.is_some()
    };
    for (edit, in_requests, in_responses) in [
        ("{set: [{name: a, value: b}], add: [{name: c, value: d}], remove: [e]}", false, false),
        ("{set: [{name: Host, value: 'example.com:80'}]}", false, true),
        ("{set: [{name: host, value: 'a b'}]}", true, true),
        ("{add: [{name: host, value: a}]}", true, true),
        ("{remove: [host]}", true, true),
        ("{remove: [Transfer-Encoding]}", true, true),
        ("{add: [{name: content-length, value: '1'}]}", true, true),
        ("{set: [{name: l5d-client-id, value: a}]}", true, true),
        ("{set: [{name: remora-unprocessed, value: a}]}", true, true),
    ] {
        let found = ["RequestHeaderModifier", "ResponseHeaderModifier"].map(|filter| fails(filter, edit));
        assert_eq!(found, [in_requests, in_responses], "{edit}");
    }
}

#[test]
fn what_is_behind_a_service_does_not_concern_its_policy() {
    let index = index(&format!("{SERVICES}{}", http("shop/a", WEB, TO_V2)));
    let mut lens = Lens::new(&index);
    let target = Target::parse("10.96.0.1:80", "cluster.local").unwrap();
    outbound(&mut lens, &settings(), &target, Some("bank")).unwrap();
    let name = |name: &str| Name::new("shop", name);
    let expected = [
        Key::Declared(name("v2")),
        Key::Declared(name("web")),
        Key::Routes(name("web")),
        Key::Ip("10.96.0.1".parse().unwrap()),
        Key::Namespace("shop".to_owned()),
        // The Services that a ServiceProfile splits traffic among may want to be balanced in their own way.
        Key::Profile(Name::new("bank", "web.shop.svc.cluster.local")),
        Key::Profile(Name::new("shop", "web.shop.svc.cluster.local")),
    ];
    assert_eq!(lens.into_keys(), expected.into_iter().collect());
}

#[test]
fn a_rule_fails_where_half_of_it_would_mean_something_else() {
    let failing = |rule: &str| {
        let policy = policy(&http("shop/a", WEB, rule), "10.96.0.1:80", None);
        let rule = &policy.routes[0].rules[0];
        (
            [rule.failure.is_some(), rule.unsaid.is_some()],
            rule.backends
                .iter()
                .map(|backend| [backend.target.is_err(), backend.unsaid.is_some()])
                .collect::<Vec<_>>(),
        )
    };
    let mirror = "{type: RequestMirror, requestMirror: {backendRef: {name: v2, port: 80}}}";
    for (rule, expected) in [
        ("{}".to_owned(), ([false, false], vec![])),
        // In proxies that are told in Linkerd's API.
        (format!("{{filters: [{mirror}]}}"), ([false, true], vec![])),
        ("{filters: [{type: CORS, cors: {}}]}".to_owned(), ([true, false], vec![])),
        (
            format!(
                "{{backendRefs: [{{name: v2, port: 80, filters: [{mirror}]}}, {{name: web, port: 80}}]}}"
            ),
            ([false, false], vec![[false, true], [false, false]]),
        ),
        (
            "{backendRefs: [{name: v2, port: 80, weight: 0}]}".to_owned(),
            ([true, false], vec![[false, false]]),
        ),
        ("{sessionPersistence: {}}".to_owned(), ([false, false], vec![])),
    ] {
        assert_eq!(failing(&rule), expected, "{rule}");
    }
}

//! What is read, and what is a mistake: every bound and rule of the schemas.

use super::*;
use crate::resources::{Document, Resource, parse};
use proptest::prelude::*;

const GATEWAY: &str = "gateway.networking.k8s.io/v1";

fn text(api_version: &str, kind: &str, spec: &str) -> String {
    format!(
        "{{apiVersion: {api_version}, kind: {kind}, metadata: {{name: r, namespace: shop}}, spec: {spec}}}"
    )
}

fn read_as(api_version: &str, kind: &str, spec: &str) -> Result<Arc<RouteSpec>, Vec<String>> {
    let read = parse(&text(api_version, kind, spec));
    let mistakes = read.map_err(|all| {
        let words = all.iter().map(ToString::to_string);
        words.map(|word| word.splitn(3, ": ").nth(2).unwrap_or_default().to_owned()).collect::<Vec<_>>()
    });
    match mistakes?.remove(0) {
        Document::Known(Resource::Route(route)) => Ok(route.spec),
        other => panic!("{other:?}"),
    }
}

fn read(kind: &str, spec: &str) -> Result<Arc<RouteSpec>, Vec<String>> {
    let version = if kind == "TCPRoute" { "gateway.networking.k8s.io/v1alpha2" } else { GATEWAY };
    read_as(version, kind, spec)
}

/// The only rule of an HTTPRoute.
fn rule(rule: &str) -> Rule {
    let spec = read("HTTPRoute", &format!("{{rules: [{rule}]}}"));
    spec.unwrap_or_else(|mistakes| panic!("{mistakes:?} in {rule}")).rules[0].clone()
}

fn paths(kind: &str, spec: &str) -> Vec<String> {
    let mistakes = read(kind, spec).err().unwrap_or_default();
    mistakes.into_iter().map(|mistake| mistake.split(": ").next().unwrap_or_default().to_owned()).collect()
}

#[test]
fn every_version_that_is_served_is_read() {
    for (version, kind, expected) in [
        ("gateway.networking.k8s.io/v1", "HTTPRoute", Some(RouteKind::Http)),
        ("gateway.networking.k8s.io/v1beta1", "HTTPRoute", Some(RouteKind::Http)),
        ("policy.linkerd.io/v1beta1", "HTTPRoute", Some(RouteKind::LinkerdHttp)),
        ("policy.linkerd.io/v1beta2", "HTTPRoute", Some(RouteKind::LinkerdHttp)),
        ("policy.linkerd.io/v1beta3", "HTTPRoute", Some(RouteKind::LinkerdHttp)),
        ("gateway.networking.k8s.io/v1", "GRPCRoute", Some(RouteKind::Grpc)),
        ("gateway.networking.k8s.io/v1", "TLSRoute", Some(RouteKind::Tls)),
        ("gateway.networking.k8s.io/v1alpha2", "TLSRoute", Some(RouteKind::Tls)),
        ("gateway.networking.k8s.io/v1alpha2", "TCPRoute", Some(RouteKind::Tcp)),
        ("gateway.networking.k8s.io/v1alpha2", "HTTPRoute", None),
        ("gateway.networking.k8s.io/v1alpha2", "UDPRoute", None),
        ("policy.linkerd.io/v1alpha1", "HTTPRoute", None),
    ] {
        let spec = "{rules: [{backendRefs: [{name: web, port: 80}]}]}";
        let found = match parse(&text(version, kind, spec)).as_deref() {
            Ok([Document::Known(Resource::Route(route))]) => Some(route.spec.kind),
            _ => None,
        };
        assert_eq!(found, expected, "{version} {kind}");
    }
}

#[test]
fn defaults_are_gateway_apis() {
    let spec = read("HTTPRoute", "{parentRefs: [{name: web}]}").unwrap();
    let parent = &spec.parents[0];
    assert_eq!((parent.group.as_str(), parent.kind.as_str()), (GATEWAY_GROUP, "Gateway"));
    assert_eq!(spec.rules, [Rule { matches: vec![Match::Http(HttpMatch::every())], ..Rule::default() }]);
    assert_eq!(rule("{matches: [{}]}").matches, [Match::Http(HttpMatch::every())]);
    assert_eq!(rule("{matches: [{path: {}}]}").matches, [Match::Http(HttpMatch::every())]);
    let backend = &rule("{backendRefs: [{name: web, port: 80}]}").backends[0];
    assert_eq!((backend.weight, backend.target.service("shop")), (1, Some((Name::new("shop", "web"), 80))));
    let redirect = rule("{filters: [{type: RequestRedirect, requestRedirect: {}}]}").filters[0].clone();
    assert!(matches!(redirect, Filter::Redirect(Redirect { status: 302, scheme: None, .. })), "{redirect:?}");
    let grpc = read("GRPCRoute", "{}").unwrap();
    assert_eq!(grpc.rules[0].matches, [Match::Grpc(GrpcMatch::default())]);
}

#[test]
fn a_parent_is_a_service_by_group_and_kind() {
    for (parent, expected) in [
        ("{group: core, kind: Service, name: web}", Some("shop/web")),
        ("{group: '', kind: Service, name: web}", Some("shop/web")),
        ("{group: '', kind: Service, name: web, namespace: bank}", Some("bank/web")),
        ("{kind: Service, name: web}", None),
        ("{name: web}", None),
        ("{group: policy.linkerd.io, kind: Server, name: web}", None),
    ] {
        let spec = read("HTTPRoute", &format!("{{parentRefs: [{parent}]}}")).unwrap();
        let service = spec.parents[0].service("shop").map(|name| name.to_string());
        assert_eq!(service.as_deref(), expected, "{parent}");
    }
}

#[test]
fn every_filter_is_read() {
    let filters = rule(
        "{matches: [{path: {value: /a}}], filters: [\
         {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: A, value: b}], add: [{name: c, value: d}], remove: [E]}},\
         {type: ResponseHeaderModifier, responseHeaderModifier: {remove: [server]}},\
         {type: RequestMirror, requestMirror: {backendRef: {name: shadow, port: 80}, percent: 5}},\
         {type: RequestMirror, requestMirror: {backendRef: {name: shadow, port: 80}, fraction: {numerator: 1, denominator: 1000}}},\
         {type: RequestMirror, requestMirror: {backendRef: {name: shadow, port: 80}}},\
         {type: URLRewrite, urlRewrite: {hostname: a.example, path: {type: ReplacePrefixMatch, replacePrefixMatch: ''}}},\
         {type: CORS, cors: {allowOrigins: ['*']}}, {type: ExternalAuth, externalAuth: {}},\
         {type: ExtensionRef, extensionRef: {group: g, kind: K, name: n}}]}",
    )
    .filters;
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let edit =
        HeaderEdit { set: vec![pair("a", "b")], add: vec![pair("c", "d")], remove: vec!["e".to_owned()] };
    assert_eq!(filters[0], Filter::RequestHeaders(edit));
    let shares: Vec<_> = filters
        .iter()
        .filter_map(|filter| if let Filter::Mirror(mirror) = filter { Some(mirror.share) } else { None })
        .collect();
    assert_eq!(shares, [(5, 100), (1, 1000), (100, 100)]);
    let path = Some(PathModifier::Prefix(String::new()));
    assert_eq!(filters[5], Filter::Rewrite(Rewrite { hostname: Some("a.example".to_owned()), path }));
    let names: Vec<_> = filters.iter().map(Filter::name).collect();
    let expected = ["CORS", "ExternalAuth", "ExtensionRef"];
    assert_eq!(
        (&names[..2], &names[6..]),
        (&["RequestHeaderModifier", "ResponseHeaderModifier"][..], &expected[..])
    );
    assert_eq!(filters.iter().map(Filter::field).nth(5), Some("urlRewrite"));
}

#[test]
fn timeouts_and_retries() {
    let read = rule(
        "{timeouts: {request: 1m30s, backendRequest: 250ms}, retry: {codes: [503, 500, 503], attempts: 2, backoff: 1s}}",
    );
    let (request, each) = (Some(Duration::from_secs(90)), Some(Duration::from_millis(250)));
    assert_eq!(read.timeouts, Some(Timeouts { request, backend_request: each }));
    let backoff = Some(Duration::from_secs(1));
    assert_eq!(read.retry, Some(Retry { codes: vec![500, 503], attempts: Some(2), backoff }));
    assert_eq!(
        rule("{timeouts: {request: 0s, backendRequest: 5s}}").timeouts.unwrap().request,
        Some(Duration::ZERO)
    );
    // Linkerd's own kind has Go's times.
    let linkerd = read_as("policy.linkerd.io/v1beta3", "HTTPRoute", "{rules: [{timeouts: {request: 1.5s}}]}");
    assert_eq!(linkerd.unwrap().rules[0].timeouts.unwrap().request, Some(Duration::from_millis(1500)));
}

#[test]
fn gateway_apis_times() {
    for (text, valid) in [
        ("10s", true),
        ("1h2m3s4ms", true),
        ("00060m", true),
        ("0s", true),
        ("1h1h1h1h", true),
        ("1h1h1h1h1h", false),
        ("100000s", false),
        ("1.5s", false),
        ("10", false),
        ("s", false),
        ("-1s", false),
        ("1us", false),
        ("1 s", false),
        ("1d", false),
    ] {
        let spec = format!("{{rules: [{{timeouts: {{request: '{text}'}}}}]}}");
        assert_eq!(read("HTTPRoute", &spec).is_ok(), valid, "{text}");
    }
}

#[test]
fn which_paths_are_plain() {
    for (text, valid) in [
        ("/", true),
        ("/a/b-c.d_e~f", true),
        ("/a/", true),
        ("/%41%2E", true),
        ("/a..b/.c", true),
        ("", false),
        ("a", false),
        ("//", false),
        ("/a//b", false),
        ("/a/./b", false),
        ("/a/../b", false),
        ("/a/..", false),
        ("/a/.", false),
        ("/a%2fb", false),
        ("/a%2Fb", false),
        ("/a#b", false),
        ("/a?b", false),
        ("/a b", false),
        ("/%4", false),
        ("/%zz", false),
        ("/ü", false),
    ] {
        for kind in ["Exact", "PathPrefix"] {
            let spec = format!("{{rules: [{{matches: [{{path: {{type: {kind}, value: '{text}'}}}}]}}]}}");
            assert_eq!(read("HTTPRoute", &spec).is_ok(), valid, "{text}");
        }
    }
}

#[test]
fn hosts() {
    for (text, expected) in [
        ("example.com", Some("example.com")),
        ("*.example.com", Some("*.example.com")),
        ("*.com", Some("*.com")),
        ("web", Some("web")),
        ("1.2.3.4.example", Some("1.2.3.4.example")),
        ("*", None),
        ("a.*.com", None),
        ("*example.com", None),
        ("Example.com", None),
        ("10.0.0.1", None),
        ("example.com.", None),
        ("example.com:80", None),
        ("", None),
    ] {
        let spec = read("HTTPRoute", &format!("{{hostnames: ['{text}']}}"));
        let found = spec.ok().map(|spec| spec.hostnames[0].to_string());
        assert_eq!(found.as_deref(), expected, "{text}");
    }
}

type Row<'a> = (&'a str, String, &'a [&'a str]);

#[track_caller]
fn wrong(rows: &[Row<'_>]) {
    for (kind, spec, expected) in rows {
        assert_eq!(paths(kind, spec), *expected, "{kind} {spec}: {:?}", read(kind, spec));
    }
}

fn http(rule: &str) -> String {
    format!("{{rules: [{rule}]}}")
}

fn matches(one: &str) -> String {
    http(&format!("{{matches: [{one}]}}"))
}

fn filters(list: &str) -> String {
    http(&format!("{{filters: [{list}]}}"))
}

fn many(item: &str, count: usize) -> String {
    vec![item; count].join(", ")
}

#[test]
fn what_is_wrong_with_a_route() {
    wrong(&[
        ("HTTPRoute", "[]".to_owned(), &["spec"][..]),
        ("HTTPRoute", "{colour: red}".to_owned(), &["spec.colour"]),
        ("HTTPRoute", http("{colour: red}"), &["spec.rules[0].colour"]),
        ("HTTPRoute", "{rules: []}".to_owned(), &["spec.rules"]),
        ("HTTPRoute", format!("{{rules: [{}]}}", many("{}", 17)), &["spec.rules"]),
        ("HTTPRoute", matches(&many("{}", 65)), &["spec.rules[0].matches"]),
        (
            "HTTPRoute",
            format!("{{rules: [{}]}}", many(&format!("{{matches: [{}]}}", many("{}", 43)), 3)),
            &["spec.rules"],
        ),
        ("HTTPRoute", format!("{{parentRefs: [{}]}}", many("{name: a}", 33)), &["spec.parentRefs"]),
        ("HTTPRoute", "{parentRefs: [{name: a}, {name: a}]}".to_owned(), &["spec.parentRefs[1]"]),
        ("HTTPRoute", "{parentRefs: [{}]}".to_owned(), &["spec.parentRefs[0].name"]),
        ("HTTPRoute", "{parentRefs: [{name: a, port: 0}]}".to_owned(), &["spec.parentRefs[0].port"]),
        (
            "HTTPRoute",
            "{parentRefs: [{name: a, namespace: A}]}".to_owned(),
            &["spec.parentRefs[0].namespace"],
        ),
        ("HTTPRoute", format!("{{hostnames: [{}]}}", many("a", 17)), &["spec.hostnames"]),
        ("HTTPRoute", http("{name: a}, {name: a}"), &["spec.rules[1].name"]),
        ("HTTPRoute", http("{backendRefs: [{name: a}]}"), &["spec.rules[0].backendRefs[0].port"]),
        (
            "HTTPRoute",
            http("{backendRefs: [{name: a, port: 80, weight: 1000001}]}"),
            &["spec.rules[0].backendRefs[0].weight"],
        ),
        (
            "HTTPRoute",
            http("{backendRefs: [{name: a, port: 80, weight: -1}]}"),
            &["spec.rules[0].backendRefs[0].weight"],
        ),
        (
            "HTTPRoute",
            http("{backendRefs: [{name: a, port: 80, weight: 2147483648}]}"),
            &["spec.rules[0].backendRefs[0].weight"],
        ),
        (
            "HTTPRoute",
            http("{backendRefs: [{name: a, port: eighty}]}"),
            &["spec.rules[0].backendRefs[0].port"],
        ),
        (
            "HTTPRoute",
            http("{timeouts: {request: 1s, backendRequest: 2s}}"),
            &["spec.rules[0].timeouts.backendRequest"],
        ),
        (
            "HTTPRoute",
            http("{retry: {codes: [399, 600], attempts: -1, backoff: 1}}"),
            &[
                "spec.rules[0].retry.codes[0]",
                "spec.rules[0].retry.codes[1]",
                "spec.rules[0].retry.attempts",
                "spec.rules[0].retry.backoff",
            ],
        ),
    ]);
}

#[test]
fn what_is_wrong_with_a_match() {
    wrong(&[
        ("HTTPRoute", matches("{method: get}"), &["spec.rules[0].matches[0].method"]),
        ("HTTPRoute", matches("{path: {type: Glob, value: /}}"), &["spec.rules[0].matches[0].path.type"]),
        (
            "HTTPRoute",
            matches("{path: {type: RegularExpression, value: '('}}"),
            &["spec.rules[0].matches[0].path.value"],
        ),
        (
            "HTTPRoute",
            matches("{path: {type: RegularExpression, value: 'a)|(b'}}"),
            &["spec.rules[0].matches[0].path.value"],
        ),
        (
            "HTTPRoute",
            matches("{path: {type: RegularExpression, value: '(((a{100}){100}){100})'}}"),
            &["spec.rules[0].matches[0].path.value"],
        ),
        (
            "HTTPRoute",
            matches("{headers: [{name: 'a b', value: c}]}"),
            &["spec.rules[0].matches[0].headers[0].name"],
        ),
        (
            "HTTPRoute",
            matches("{headers: [{name: ':method', value: c}]}"),
            &["spec.rules[0].matches[0].headers[0].name"],
        ),
        ("HTTPRoute", matches("{headers: [{name: a}]}"), &["spec.rules[0].matches[0].headers[0].value"]),
        (
            "HTTPRoute",
            matches("{headers: [{name: a, value: \"b\\n\"}]}"),
            &["spec.rules[0].matches[0].headers[0].value"],
        ),
        (
            "HTTPRoute",
            matches("{queryParams: [{name: a, value: ''}]}"),
            &["spec.rules[0].matches[0].queryParams[0].value"],
        ),
    ]);
}

#[test]
fn what_is_wrong_with_a_filter() {
    wrong(&[
        ("HTTPRoute", filters("{type: Magic}"), &["spec.rules[0].filters[0].type"]),
        ("HTTPRoute", filters("{}"), &["spec.rules[0].filters[0].type"]),
        ("HTTPRoute", filters("{type: URLRewrite}"), &["spec.rules[0].filters[0].urlRewrite"]),
        (
            "HTTPRoute",
            filters("{type: CORS, cors: {}, urlRewrite: {}}"),
            &["spec.rules[0].filters[0].urlRewrite"],
        ),
        ("HTTPRoute", filters(&many("{type: CORS, cors: {}}", 2)), &["spec.rules[0].filters[1]"]),
        (
            "HTTPRoute",
            filters(
                "{type: RequestRedirect, requestRedirect: {statusCode: 300, scheme: ftp, hostname: '*.a'}}",
            ),
            &[
                "spec.rules[0].filters[0].requestRedirect.scheme",
                "spec.rules[0].filters[0].requestRedirect.hostname",
                "spec.rules[0].filters[0].requestRedirect.statusCode",
            ],
        ),
        (
            "HTTPRoute",
            filters("{type: RequestRedirect, requestRedirect: {}}, {type: URLRewrite, urlRewrite: {}}"),
            &["spec.rules[0].filters"],
        ),
        (
            "HTTPRoute",
            http(
                "{filters: [{type: RequestRedirect, requestRedirect: {}}], backendRefs: [{name: a, port: 1}]}",
            ),
            &["spec.rules[0].backendRefs"],
        ),
        (
            "HTTPRoute",
            http(
                "{matches: [{path: {type: Exact, value: /a}}], filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /b}}}]}",
            ),
            &["spec.rules[0].filters[0].urlRewrite.path.replacePrefixMatch"],
        ),
        (
            "HTTPRoute",
            filters(
                "{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replacePrefixMatch: /b}}}",
            ),
            &[
                "spec.rules[0].filters[0].urlRewrite.path.replacePrefixMatch",
                "spec.rules[0].filters[0].urlRewrite.path.replaceFullPath",
            ],
        ),
    ]);
}

#[test]
fn what_is_wrong_with_headers_and_mirrors() {
    let edit =
        |edit: &str| filters(&format!("{{type: RequestHeaderModifier, requestHeaderModifier: {edit}}}"));
    let mirror = |rest: &str| {
        filters(&format!(
            "{{type: RequestMirror, requestMirror: {{backendRef: {{name: a, port: 1}}, {rest}}}}}"
        ))
    };
    wrong(&[
        (
            "HTTPRoute",
            edit("{set: [{name: a, value: b}], remove: [A]}"),
            &["spec.rules[0].filters[0].requestHeaderModifier.remove[0]"],
        ),
        (
            "HTTPRoute",
            edit("{set: [{name: a, value: ' b'}]}"),
            &["spec.rules[0].filters[0].requestHeaderModifier.set[0].value"],
        ),
        ("HTTPRoute", mirror("percent: 101"), &["spec.rules[0].filters[0].requestMirror.percent"]),
        (
            "HTTPRoute",
            mirror("percent: 1, fraction: {numerator: 1}"),
            &["spec.rules[0].filters[0].requestMirror"],
        ),
        (
            "HTTPRoute",
            mirror("fraction: {numerator: 2, denominator: 1}"),
            &["spec.rules[0].filters[0].requestMirror.fraction"],
        ),
        (
            "HTTPRoute",
            mirror("fraction: {numerator: 0, denominator: 0}"),
            &["spec.rules[0].filters[0].requestMirror.fraction.denominator"],
        ),
    ]);
}

#[test]
fn what_is_wrong_with_other_kinds() {
    wrong(&[
        ("GRPCRoute", http("{timeouts: {}}"), &["spec.rules[0].timeouts"]),
        (
            "GRPCRoute",
            filters("{type: URLRewrite, urlRewrite: {}}"),
            &["spec.rules[0].filters[0].urlRewrite", "spec.rules[0].filters[0].type"],
        ),
        ("GRPCRoute", matches("{method: {}}"), &["spec.rules[0].matches[0].method"]),
        ("GRPCRoute", matches("{method: {service: a/b}}"), &["spec.rules[0].matches[0].method.service"]),
        ("GRPCRoute", matches("{method: {method: a.b}}"), &["spec.rules[0].matches[0].method.method"]),
        ("TLSRoute", "{}".to_owned(), &["spec.rules"]),
        ("TLSRoute", http("{}"), &["spec.rules[0].backendRefs"]),
        ("TLSRoute", http("{matches: [], backendRefs: [{name: a, port: 1}]}"), &["spec.rules[0].matches"]),
        (
            "TCPRoute",
            "{hostnames: [a], rules: [{backendRefs: [{name: a, port: 1, filters: []}]}]}".to_owned(),
            &["spec.hostnames", "spec.rules[0].backendRefs[0].filters"],
        ),
    ]);
    let linkerd = read_as(
        "policy.linkerd.io/v1beta3",
        "HTTPRoute",
        "{rules: [{retry: {}, filters: [{type: URLRewrite, urlRewrite: {}}]}]}",
    );
    assert_eq!(linkerd.unwrap_err().len(), 3);
}

#[test]
fn patterns_of_a_route_are_bounded() {
    let headers = |count: usize| {
        let one = |at: usize| format!("{{type: RegularExpression, name: h{at}, value: a.*}}");
        (0..count).map(one).collect::<Vec<_>>().join(", ")
    };
    let spec = |last: usize| {
        let one = |count: usize| format!("{{headers: [{}]}}", headers(count));
        let all: Vec<String> = std::iter::repeat_n(16, 7).chain([last]).map(one).collect();
        format!("{{rules: [{{matches: [{}]}}]}}", all.join(", "))
    };
    assert_eq!(read("HTTPRoute", &spec(16)).unwrap().patterns, 128);
    let longer = spec(16).replace("matches: [", "matches: [{path: {type: RegularExpression, value: /a}}, ");
    assert_eq!(paths("HTTPRoute", &longer), ["spec.rules[0].matches[8].headers[15].value"]);
}

#[test]
fn what_may_not_be_meant_is_warned_about() {
    let spec = read(
        "HTTPRoute",
        "{rules: [{matches: [{headers: [{name: a, value: '${x}'}, {name: A, value: b}]}], filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: user, value: 'sub=${jwt.sub}!'}]}}]}]}",
    );
    let expected = [
        "spec.rules[0].matches[0].headers[0].value: ${x} is no variable here; it is compared as it is written",
        "spec.rules[0].matches[0].headers[1]: \"a\" has a condition already; only the first one counts",
        "spec.rules[0].filters[0].requestHeaderModifier.set[0].value: ${jwt.sub} is no variable here; it is sent as it is written",
    ];
    assert_eq!(spec.unwrap().warnings, expected);
}

proptest! {
    #[test]
    fn nothing_panics(any in ".{0,40}", word in "[/a-z${}.%*0-9-]{0,20}") {
        for written in [any, word] {
            let quoted = serde_json::Value::String(written).to_string();
            for field in ["hostnames: [@]", "rules: [{name: @}]", "rules: [{matches: [{path: {value: @}, headers: [{name: @, value: @}]}]}]", "rules: [{timeouts: {request: @}}]", "rules: [{filters: [{type: URLRewrite, urlRewrite: {hostname: @, path: {type: ReplaceFullPath, replaceFullPath: @}}}]}]"] {
                let _ = parse(&text(GATEWAY, "HTTPRoute", &format!("{{{}}}", field.replace('@', &quoted))));
            }
        }
    }
}

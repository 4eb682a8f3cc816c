//! Gateway API's routes from YAML to the proxy's own types: whatever the text, there is an answer; a route whose status
//! says that it is fine reaches proxies whole and never fails, one whose status says that something fails fails there; and
//! which routes of a Service hold, in which order, and which of their backends can be reached, is what a naive reader of
//! the YAML says, which knows nothing of index, view and wire.

use crate::profile::settings;
use linkerd2_proxy_api::{
    meta::{Metadata, metadata},
    outbound::{self as wire, http_route, proxy_protocol::Kind},
};
use prost::Message as _;
use remora_core::route::OutboundProtocol;
use remora_destination::{
    index::Index,
    resources::{Document, parse},
    view::{Lens, RouteReport, Target, outbound, route_reports},
    watch::Event,
    wire::{own_policy, policy},
};
use remora_runtime::api::{outbound::outbound_policy, own};
use serde::Deserialize as _;
use serde_json::Value;
use std::collections::BTreeMap;

/// Three Services, in front of what is tried.
const SERVICES: &str = "
{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}, spec: {clusterIP: 10.96.0.1, ports: [{name: http, port: 80}, {name: more, port: 81}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: v2, namespace: shop}, spec: {clusterIP: 10.96.0.2, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: safe, namespace: bank}, spec: {clusterIP: 10.96.0.3, ports: [{port: 80}]}}
---
";

/// Documents that are put beside three Services.
pub fn routes(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let documents = match parse(&text) {
        Ok(documents) => documents,
        Err(mistakes) => {
            assert!(!mistakes.is_empty());
            for mistake in mistakes {
                let told = mistake.to_string();
                assert!(!told.is_empty() && told.len() <= 2 * text.len() + 2000, "{} bytes", told.len());
            }
            return;
        }
    };
    let mut index = Index::default();
    let services = parse(SERVICES).unwrap_or_default();
    for document in services.into_iter().chain(documents) {
        if let Document::Known(resource) = document {
            index.apply(Event::Apply(resource));
        }
    }
    let reports: BTreeMap<String, RouteReport> =
        route_reports(&index, &settings()).map(|(id, report)| (id.to_string(), report)).collect();
    let written = written(&text);
    for port in [80, 81] {
        for client in [None, Some("shop"), Some("bank")] {
            let policy = served(&index, port, client);
            let Some(routes) = http_routes(&policy) else { continue };
            for route in routes {
                agrees_with_status(route, &reports);
            }
            if let Some(expected) = written.as_ref().and_then(|all| expected(all, port, client)) {
                let found: Vec<Held> = routes.iter().filter_map(held).collect();
                assert_eq!(found, expected, "port {port} for {client:?} of {text}");
            }
        }
    }
}

/// What a proxy gets, which it must be able to read.
fn served(index: &Index, port: u16, client: Option<&str>) -> wire::OutboundPolicy {
    let target = Target::Addr(([10, 96, 0, 1], port).into());
    let settings = settings();
    // A Service of the input may have been put in the place of ours.
    let Ok(seen) = outbound(&mut Lens::new(index), &settings, &target, client) else {
        return wire::OutboundPolicy::default();
    };
    let policy = policy(&seen, &settings);
    let message = match wire::OutboundPolicy::decode(&*policy.encode_to_vec()) {
        Ok(message) => message,
        Err(error) => panic!("{error}: {policy:?}"),
    };
    assert_eq!(message, policy);
    if let OutboundProtocol::Invalid(reason) = outbound_policy(message).value.protocol {
        panic!("{reason}: {policy:?}");
    }
    let own = own_policy(&seen, &settings);
    if let OutboundProtocol::Invalid(reason) = own::outbound_policy(own.clone()).value.protocol {
        panic!("{reason}: {own:?}");
    }
    policy
}

fn http_routes(policy: &wire::OutboundPolicy) -> Option<&[wire::HttpRoute]> {
    match policy.protocol.as_ref()?.kind.as_ref()? {
        Kind::Detect(detect) => {
            let (http1, http2) = (detect.http1.as_ref()?, detect.http2.as_ref()?);
            assert_eq!(http1.routes, http2.routes);
            Some(&http1.routes)
        }
        Kind::Http1(http) => Some(&http.routes),
        Kind::Http2(http) => Some(&http.routes),
        Kind::Grpc(_) | Kind::Opaque(_) | Kind::Tls(_) => None,
    }
}

/// What fails has a status that says so, and a rule that is said to fail fails.
fn agrees_with_status(route: &wire::HttpRoute, reports: &BTreeMap<String, RouteReport>) {
    let Some(name) = named(route.metadata.as_ref()) else { return };
    let report = &reports[&name];
    let is_false = |said: &dyn Fn(&str, &str) -> bool| {
        let mut conditions = report.parents.iter().flat_map(|parent| &parent.conditions);
        conditions.any(|condition| !condition.holds() && said(condition.kind, &condition.message))
    };
    let fails = |filters: &[http_route::Filter]| filters.iter().any(|filter| injected(filter).is_some());
    let rule_fails = route.rules.iter().any(|rule| fails(&rule.filters));
    let backend_fails = |rule| backends(rule).iter().any(|(backend, _)| fails(&backend.filters));
    if rule_fails || route.rules.iter().any(backend_fails) {
        let is_said = is_false(&|kind, message| {
            kind == "ResolvedRefs" || message.contains(" fail") || message.ends_with("; and more")
        });
        // What only Linkerd's API cannot say is no reason to refuse it.
        let is_said =
            is_said || report.warnings.iter().any(|warning| warning.contains(" fail in Linkerd's proxies"));
        // Where every weight is 0 everything fails as it is written.
        assert!(is_said || weightless(route), "{name} fails: {report:?}: {route:?}");
    }
    let said = is_false(&|_, message| message.contains("; requests of this rule fail"));
    assert!(rule_fails || !said, "{name} does not fail: {report:?}: {route:?}");
}

fn injected(filter: &http_route::Filter) -> Option<&str> {
    match &filter.kind {
        Some(http_route::filter::Kind::FailureInjector(failure)) => Some(&failure.message),
        _ => None,
    }
}

fn weightless(route: &wire::HttpRoute) -> bool {
    let mut messages = route.rules.iter().flat_map(|rule| &rule.filters).filter_map(injected);
    messages.any(|message| message.ends_with("every weight is 0"))
}

fn named(metadata: Option<&Metadata>) -> Option<String> {
    let Some(metadata::Kind::Resource(route)) = metadata.and_then(|metadata| metadata.kind.as_ref()) else {
        return None;
    };
    let group = if route.group == "policy.linkerd.io" { ".policy.linkerd.io" } else { "" };
    Some(format!("{}{group} {}/{}", route.kind, route.namespace, route.name))
}

/// Backends of a rule with their weights.
fn backends(rule: &http_route::Rule) -> Vec<(&http_route::RouteBackend, u32)> {
    use http_route::distribution::Kind;
    match rule.backends.as_ref().and_then(|backends| backends.kind.as_ref()) {
        Some(Kind::RandomAvailable(random)) => {
            let weighted = random.backends.iter();
            weighted.filter_map(|one| Some((one.backend.as_ref()?, one.weight))).collect()
        }
        Some(Kind::FirstAvailable(first)) => first.backends.iter().map(|backend| (backend, 1)).collect(),
        Some(Kind::Empty(_)) | None => Vec::new(),
    }
}

/// A route and, for each of its rules that does not fail as a whole, whether each backend can be reached, and its weight.
type Held = (String, Vec<Option<Vec<(bool, u32)>>>);

fn held(route: &wire::HttpRoute) -> Option<Held> {
    let rules = route.rules.iter().map(|rule| {
        let fails = rule.filters.iter().any(|filter| injected(filter).is_some());
        let reached = |backend: &http_route::RouteBackend| {
            backend.backend.as_ref().is_some_and(|backend| backend.kind.is_some())
        };
        let shares = backends(rule).into_iter().map(|(backend, weight)| (reached(backend), weight));
        (!fails).then(|| shares.collect())
    });
    Some((named(route.metadata.as_ref())?, rules.collect()))
}

/// The documents as plain data.
fn written(text: &str) -> Option<Vec<Value>> {
    serde_norway::Deserializer::from_str(text).map(|document| Value::deserialize(document).ok()).collect()
}

/// What should hold at `web`, where this reader knows enough of what is written: plain documents with HTTPRoutes of Gateway
/// API alone, no Services, no profiles, no filters, and times that compare as texts.
fn expected(all: &[Value], port: u16, client: Option<&str>) -> Option<Vec<Held>> {
    let mut routes = Vec::new();
    let mut grants = Vec::new();
    for document in all.iter().filter(|document| !document.is_null()) {
        match (document["apiVersion"].as_str()?, document["kind"].as_str()?) {
            ("gateway.networking.k8s.io/v1" | "gateway.networking.k8s.io/v1beta1", "HTTPRoute") => {
                routes.push(document);
            }
            ("gateway.networking.k8s.io/v1beta1", "ReferenceGrant") => grants.push(document),
            _ => return None,
        }
    }
    let namespace =
        |document: &Value| document["metadata"]["namespace"].as_str().unwrap_or("default").to_owned();
    let name = |document: &Value| document["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let same =
        |a: &Value, b: &Value| a["kind"] == b["kind"] && namespace(a) == namespace(b) && name(a) == name(b);
    let all: Vec<&Value> = routes.iter().chain(&grants).copied().collect();
    if all.iter().enumerate().any(|(at, one)| all.iter().skip(at + 1).any(|other| same(one, other))) {
        return None;
    }
    for route in &routes {
        let time = &route["metadata"]["creationTimestamp"];
        let plain = time.is_null() || time.as_str().is_some_and(compares_as_text);
        if !plain || route.to_string().contains("\"filters\"") {
            return None;
        }
    }
    let attached = routes.into_iter().filter(|route| {
        let parents = route["spec"]["parentRefs"].as_array().cloned().unwrap_or_default();
        parents.iter().any(|parent| is_web(parent, &namespace(route), port))
    });
    let attached: Vec<&Value> = attached.collect();
    let of = |wanted: &str| -> Vec<&Value> {
        attached.iter().copied().filter(|route| namespace(route) == wanted).collect()
    };
    let own = client.map(of).unwrap_or_default();
    let mut held = if own.is_empty() { of("shop") } else { own };
    held.sort_by_key(|route| {
        let time = route["metadata"]["creationTimestamp"].as_str().map(str::to_owned);
        (time.is_none(), time, name(route))
    });
    let patterns = |route: &&Value| route.to_string().matches("RegularExpression").count();
    if held.iter().map(patterns).sum::<usize>() > 500 {
        return None;
    }
    let rules = |route: &Value| -> Vec<Value> {
        route["spec"]["rules"].as_array().cloned().unwrap_or_else(|| vec![Value::Null])
    };
    let describe = |route: &Value| {
        let from = namespace(route);
        let rules = rules(route).iter().map(|rule| shares(rule, &from, &grants)).collect();
        (format!("HTTPRoute {from}/{}", name(route)), rules)
    };
    Some(held.into_iter().map(describe).collect())
}

/// `2026-01-01T00:00:00Z`, and no other way to write it.
fn compares_as_text(time: &str) -> bool {
    let form = "dddd-dd-ddTdd:dd:ddZ";
    let fits = |(byte, form): (u8, u8)| if form == b'd' { byte.is_ascii_digit() } else { byte == form };
    time.len() == form.len() && time.bytes().zip(form.bytes()).all(fits) && !time.contains(":60")
}

fn is_web(parent: &Value, namespace: &str, port: u16) -> bool {
    let says = |field: &str| parent[field].as_str();
    matches!(says("group"), Some("" | "core"))
        && says("kind") == Some("Service")
        && says("name") == Some("web")
        && says("namespace").unwrap_or(namespace) == "shop"
        && parent["port"].as_u64().is_none_or(|number| number == u64::from(port))
        && says("sectionName").is_none_or(|name| name == if port == 80 { "http" } else { "more" })
}

/// Whether each backend can be reached, and its weight; nothing if nothing has any.
fn shares(rule: &Value, from: &str, grants: &[&Value]) -> Option<Vec<(bool, u32)>> {
    let backends = rule["backendRefs"].as_array().cloned().unwrap_or_default();
    if backends.is_empty() {
        return Some(vec![(true, 1)]);
    }
    let shares = backends.iter().map(|backend| {
        let service = matches!(backend["group"].as_str(), None | Some("" | "core"))
            && matches!(backend["kind"].as_str(), None | Some("Service"));
        let namespace = backend["namespace"].as_str().unwrap_or(from);
        let name = backend["name"].as_str().unwrap_or_default();
        let known = [("shop", "web", 80), ("shop", "web", 81), ("shop", "v2", 80), ("bank", "safe", 80)];
        let port = backend["port"].as_u64().unwrap_or_default();
        let exists = known.contains(&(namespace, name, port));
        let allowed = namespace == from || grants.iter().any(|grant| grants_it(grant, from, namespace, name));
        let weight = backend["weight"].as_u64().and_then(|weight| u32::try_from(weight).ok()).unwrap_or(1);
        (service && exists && allowed, weight)
    });
    let shares: Vec<(bool, u32)> = shares.filter(|(_, weight)| *weight > 0).collect();
    (!shares.is_empty()).then_some(shares)
}

fn grants_it(grant: &Value, from: &str, namespace: &str, name: &str) -> bool {
    let list = |field: &str| grant["spec"][field].as_array().cloned().unwrap_or_default();
    let trusted = list("from").iter().any(|entry| {
        entry["group"] == "gateway.networking.k8s.io"
            && entry["kind"] == "HTTPRoute"
            && entry["namespace"] == from
    });
    let open = list("to").iter().any(|entry| {
        let group = entry["group"] == "" || entry["group"] == "core";
        group && entry["kind"] == "Service" && (entry["name"].is_null() || entry["name"] == name)
    });
    trusted && open && grant["metadata"]["namespace"].as_str().unwrap_or("default") == namespace
}

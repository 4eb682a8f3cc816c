//! Policy resources from YAML to the proxy's own types: whatever the text, there is an answer, and the proxy's reader of
//! inbound policies can read it; a policy that is said to be fine admits somebody and one whose references lead nowhere
//! nobody; which Server a port has, whom it admits and in which order is what a naive reader of the YAML says, which knows
//! nothing of index, view and wire; and probes keep their way in, unless a match names their very path.

use linkerd2_proxy_api::{
    inbound::{self as wire, proxy_protocol::Kind},
    meta::{Metadata, metadata},
};
use prost::Message as _;
use remora_core::policy::{ServerPolicy, ServerProtocol, routes};
use remora_destination::{
    index::Index,
    resources::{Document, Name, parse},
    view::{Lens, Settings, Workload, inbound, policy_reports, route_reports},
    watch::Event,
    wire::server,
};
use remora_runtime::api::inbound::server_policy as read;
use serde::Deserialize as _;
use serde_json::Value;
use std::collections::BTreeSet;

/// A pod with a port by name, and a probe of it.
const POD: &str = "
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop, labels: {app: web}}, spec: {containers: [{name: a, ports: [{name: http, containerPort: 80}], readinessProbe: {httpGet: {path: '/ready?a=b', port: http}}}]}, status: {podIP: 10.1.0.1}}
---
";
/// What the naive reader knows.
const KNOWN: [(&str, &str); 5] = [
    ("policy.linkerd.io/v1beta3", "Server"),
    ("policy.linkerd.io/v1alpha1", "AuthorizationPolicy"),
    ("policy.linkerd.io/v1alpha1", "MeshTLSAuthentication"),
    ("policy.linkerd.io/v1alpha1", "NetworkAuthentication"),
    ("gateway.networking.k8s.io/v1", "HTTPRoute"),
];

/// Documents that are put beside a pod.
pub fn server_policy(data: &[u8]) {
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
    for document in parse(POD).unwrap_or_default().into_iter().chain(documents) {
        if let Document::Known(resource) = document {
            index.apply(Event::Apply(resource));
        }
    }
    let settings = settings();
    let _ = route_reports(&index, &settings).count();
    let reports = policy_reports(&index, &settings);
    let refused: BTreeSet<&str> =
        reports.iter().filter(|(_, report)| !report.is_fine()).map(|(name, _)| name.as_str()).collect();
    let written = written(&text);
    for port in [80, 81] {
        let Some(server) = served(&index, &settings, port) else { continue };
        let by: Vec<String> =
            server.authorizations.iter().map(|authz| named(authz.metadata.as_ref())).collect();
        for name in &by {
            let without_reference = |report: &&str| {
                report.strip_prefix("AuthorizationPolicy shop/") == name.strip_prefix("authorizationpolicy ")
                    && message(&reports, report).contains("does not exist; it admits nobody")
            };
            assert!(!refused.iter().any(without_reference), "{name} admits: {reports:?}");
        }
        let Some((name, expected)) = written.as_ref().and_then(|all| expected(all, port)) else { continue };
        assert_eq!(
            server.labels.get("name").map(String::as_str),
            Some(name.as_str()),
            "port {port} of {text}"
        );
        let policies: Vec<&String> = by.iter().filter(|by| by.starts_with("authorizationpolicy ")).collect();
        assert!(
            policies.iter().copied().eq(&expected),
            "{policies:?}, not {expected:?}: port {port} of {text}"
        );
    }
}

fn message<'a>(reports: &'a [(String, remora_destination::view::PolicyReport)], name: &str) -> &'a str {
    let found = reports.iter().find(|(of, _)| of == name);
    found.map_or("", |(_, report)| report.conditions[0].message.as_str())
}

/// What a proxy gets, which it must be able to read.
fn served(index: &Index, settings: &Settings, port: u16) -> Option<wire::Server> {
    let workload = Workload(Name::new("shop", "web"));
    // The pod of the input may have been put in the place of ours.
    let seen = inbound(&mut Lens::new(index), settings, &workload, port).ok()?;
    let answer = server(&seen, settings);
    let message = match wire::Server::decode(&*answer.encode_to_vec()) {
        Ok(message) => message,
        Err(error) => panic!("{error}: {answer:?}"),
    };
    assert_eq!(message, answer);
    assert!(answer.encoded_len() < 4 << 20, "{} bytes", answer.encoded_len());
    let policy = read(message).value;
    if let ServerProtocol::Invalid(reason) = &policy.protocol {
        panic!("{reason}: {answer:?}");
    }
    filters_arrive(&policy, &answer);
    probes_pass(&seen.probes, &answer);
    Some(answer)
}

/// No rule loses a filter on its way, nor gets one.
fn filters_arrive(policy: &ServerPolicy, answer: &wire::Server) {
    let kind = answer.protocol.as_ref().and_then(|protocol| protocol.kind.as_ref());
    let said: Vec<Vec<bool>> = if let Some(Kind::Grpc(grpc)) = kind {
        let rules = grpc.routes.iter().map(|route| route.rules.iter());
        rules.map(|rules| rules.map(|rule| rule.filters.is_empty()).collect()).collect()
    } else {
        let rules = http_routes(answer).iter().map(|route| route.rules.iter());
        rules.map(|rules| rules.map(|rule| rule.filters.is_empty()).collect()).collect()
    };
    let read = routes(policy).iter().map(|route| route.filters.iter().map(Vec::is_empty).collect());
    let read: Vec<Vec<bool>> = read.collect();
    assert_eq!(read, said, "{answer:?}");
}

/// Where HTTP is spoken, a probe of the pod has a route of its own, before all others.
fn probes_pass(probes: &BTreeSet<String>, answer: &wire::Server) {
    let routes = http_routes(answer);
    if routes.is_empty() {
        let kind = answer.protocol.as_ref().and_then(|protocol| protocol.kind.as_ref());
        assert!(matches!(kind, Some(Kind::Grpc(_) | Kind::Opaque(_) | Kind::Tls(_))), "{answer:?}");
        return;
    }
    if !probes.is_empty() {
        assert_eq!(named(routes[0].metadata.as_ref()), "probe", "{routes:?}");
        assert!(!routes[0].authorizations.is_empty());
    }
}

fn http_routes(answer: &wire::Server) -> &[wire::HttpRoute] {
    match answer.protocol.as_ref().and_then(|protocol| protocol.kind.as_ref()) {
        Some(Kind::Detect(detect)) => &detect.http_routes,
        Some(Kind::Http1(http)) => &http.routes,
        Some(Kind::Http2(http)) => &http.routes,
        _ => &[],
    }
}

fn named(metadata: Option<&Metadata>) -> String {
    match metadata.and_then(|metadata| metadata.kind.as_ref()) {
        Some(metadata::Kind::Default(name)) => name.clone(),
        Some(metadata::Kind::Resource(resource)) => format!("{} {}", resource.kind, resource.name),
        None => String::new(),
    }
}

/// The documents as plain data.
fn written(text: &str) -> Option<Vec<Value>> {
    serde_norway::Deserializer::from_str(text).map(|document| Value::deserialize(document).ok()).collect()
}

/// The Server that a port should have and whom it should admit, where this reader knows enough of what is written: plain
/// documents of [`KNOWN`] kinds, Servers that select by labels and without a time.
fn expected(all: &[Value], port: u16) -> Option<(String, Vec<String>)> {
    let all: Vec<&Value> = all.iter().filter(|document| !document.is_null()).collect();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let namespace =
        |document: &Value| document["metadata"]["namespace"].as_str().unwrap_or("default").to_owned();
    let name = |document: &Value| text(&document["metadata"]["name"]);
    let is = |document: &Value, kind: &str| document["kind"].as_str() == Some(kind);
    for (at, one) in all.iter().enumerate() {
        let known = (one["apiVersion"].as_str()?, one["kind"].as_str()?);
        let twice = all.iter().skip(at + 1).any(|other| {
            one["kind"] == other["kind"] && namespace(one) == namespace(other) && name(one) == name(other)
        });
        let plain = one["metadata"]["creationTimestamp"].is_null();
        let selector = &one["spec"]["podSelector"];
        if !KNOWN.contains(&known) || twice || !plain || !selector["matchExpressions"].is_null() {
            return None;
        }
    }
    let servers = all.iter().filter(|document| {
        let spec = &document["spec"];
        let labels = spec["podSelector"]["matchLabels"].as_object().cloned().unwrap_or_default();
        let ours =
            spec["port"].as_u64() == Some(port.into()) || port == 80 && spec["port"].as_str() == Some("http");
        let of_pods = spec["podSelector"].is_object();
        let selects =
            of_pods && labels.iter().all(|(key, value)| key == "app" && value.as_str() == Some("web"));
        is(document, "Server") && namespace(document) == "shop" && ours && selects
    });
    let server = servers.map(|server| name(server)).min()?;
    let exists = |reference: &Value| {
        let kind = text(&reference["kind"]);
        let of = reference["namespace"].as_str().unwrap_or("shop");
        let found = |document: &&&Value| {
            is(document, &kind) && namespace(document) == of && name(document) == text(&reference["name"])
        };
        kind == "ServiceAccount" || all.iter().any(|document| found(&document))
    };
    let policies = all.iter().filter(|document| {
        let target = &document["spec"]["targetRef"];
        let about = match target["kind"].as_str() {
            Some("Server") => target["name"].as_str() == Some(&server),
            Some("Namespace") => target["name"].as_str() == Some("shop"),
            _ => false,
        };
        let refs = document["spec"]["requiredAuthenticationRefs"].as_array().cloned().unwrap_or_default();
        is(document, "AuthorizationPolicy")
            && namespace(document) == "shop"
            && about
            && refs.iter().all(exists)
    });
    let mut policies: Vec<String> = policies.map(|policy| name(policy)).collect();
    policies.sort_unstable();
    // What is beyond the bound of a message is left out, by the bytes of identities that this reader does not count.
    let identities = |document: &Value| document["spec"].to_string().len();
    if policies.len() * all.iter().map(|one| identities(one)).sum::<usize>() > 4096 {
        return None;
    }
    Some((server, policies.into_iter().map(|name| format!("authorizationpolicy {name}")).collect()))
}

fn settings() -> Settings {
    let everywhere = || "0.0.0.0/0".parse().into_iter().collect();
    Settings { cluster_networks: everywhere(), probe_networks: everywhere(), ..crate::profile::settings() }
}

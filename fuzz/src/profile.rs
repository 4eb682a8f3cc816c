//! ServiceProfiles from YAML to the types of core: whatever the text, there is an answer; a profile that is accepted
//! reaches the proxy as it was written, by way of the wire; and requests and responses meet its conditions exactly as a
//! naive reader of the YAML says, which knows nothing of either crate.

use linkerd2_proxy_api::destination::DestinationProfile;
use prost::Message as _;
use remora_core::{
    profile::{Profile, classify},
    route::RequestView,
};
use remora_destination::{
    resources::{Document, Name, Resource, ServiceProfile, parse},
    view::{self, Settings, TransportMode},
    wire::destination_profile,
};
use remora_runtime::api::profile::profile as from_wire;
use serde::Deserialize as _;
use serde_json::Value;

/// Between the YAML and the requests.
const REQUESTS: &str = "\n%%\n";
/// Most requests that are tried: `METHOD PATH STATUS`, one a line.
const TRIED: usize = 32;

/// A manifest, and requests with the status of their responses.
pub fn profile(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (yaml, requests) = text.split_once(REQUESTS).unwrap_or((&text, "GET / 200"));
    let documents = match parse(yaml) {
        Ok(documents) => documents,
        Err(mistakes) => {
            assert!(!mistakes.is_empty());
            for mistake in mistakes {
                let told = mistake.to_string();
                // Names come from the text; what is said of them is bounded, however long they are.
                assert!(!told.is_empty() && told.len() <= 2 * yaml.len() + 2000, "{} bytes", told.len());
            }
            return;
        }
    };
    let [Document::Known(Resource::ServiceProfile(accepted))] = &documents[..] else { return };
    let converted = through_the_wire(accepted);
    is_as_written(accepted, &converted);
    let Some(written) = written(yaml) else { return };
    for line in requests.lines().take(TRIED) {
        let mut parts = line.split(' ');
        let (method, path) = (parts.next().unwrap_or("GET"), parts.next().unwrap_or("/"));
        let status = parts.next().and_then(|status| status.parse().ok()).unwrap_or(200);
        agrees(&written, &converted, &Request { method, path }, status);
    }
}

fn through_the_wire(accepted: &ServiceProfile) -> Profile {
    let chosen =
        view::Chosen { name: Name::new("shop", "web.shop.svc.cluster.local"), spec: accepted.spec.clone() };
    let service = view::Profile::Service {
        name: Name::new("shop", "web"),
        port: 80,
        opaque: accepted.spec.opaque_ports.contains(80),
        profile: Some(chosen),
    };
    let message = destination_profile(&service, &settings()).encode_to_vec();
    let message = match DestinationProfile::decode(&*message) {
        Ok(message) => message,
        Err(error) => panic!("{error}: {accepted:?}"),
    };
    match from_wire(message) {
        Ok(converted) => {
            assert!(converted.ignored.is_empty(), "{:?} is not applied: {accepted:?}", converted.ignored);
            converted.value
        }
        Err(error) => panic!("{error}: {accepted:?}"),
    }
}

fn is_as_written(accepted: &ServiceProfile, converted: &Profile) {
    let spec = &accepted.spec;
    assert_eq!(converted.name.as_deref(), Some("web.shop.svc.cluster.local"));
    assert_eq!(converted.opaque, spec.opaque_ports.contains(80));
    assert_eq!(converted.budget, Some(spec.budget.unwrap_or(remora_core::profile::BudgetLimits::DEFAULT)));
    assert_eq!(converted.routes.len(), spec.routes.len());
    for (route, written) in converted.routes.iter().zip(&spec.routes) {
        assert_eq!((route.timeout, route.retryable), (written.timeout, written.retryable));
        assert_eq!(*route.classes, written.classes[..]);
        let name = route.name().unwrap_or_default();
        assert!(written.name.starts_with(name) && name.len() >= written.name.len().min(200));
    }
    let weights: u64 = converted.overrides.iter().map(|dst| u64::from(dst.weight)).sum();
    assert_eq!(weights, spec.overrides.iter().map(|dst| u64::from(dst.weight)).sum::<u64>());
    let weighty = spec.overrides.iter().filter(|dst| dst.weight > 0);
    for (dst, written) in converted.overrides.iter().zip(weighty) {
        let name = written.authority.split(':').next().unwrap_or_default();
        assert!(dst.authority.starts_with(name) && dst.authority.contains(':'), "{dst:?} is {written:?}");
    }
}

/// The one document, as plain data.
fn written(yaml: &str) -> Option<Value> {
    let mut documents = serde_norway::Deserializer::from_str(yaml).filter_map(|document| {
        let value = Value::deserialize(document).ok()?;
        (!value.is_null()).then_some(value)
    });
    documents.next().filter(|value| value["kind"] == "ServiceProfile")
}

fn agrees(written: &Value, converted: &Profile, request: &Request<'_>, status: u16) {
    let no_routes = Vec::new();
    let routes = written["spec"]["routes"].as_array().unwrap_or(&no_routes);
    let expected = routes.iter().position(|route| meets_request(&route["condition"], request));
    assert_eq!(converted.choose(request), expected, "{} {}: {written}", request.method, request.path);
    let Some(route) = expected else { return };
    let no_classes = Vec::new();
    let classes = routes[route]["responseClasses"].as_array().unwrap_or(&no_classes);
    let expected = classes.iter().find(|class| meets_response(&class["condition"], status));
    let expected = expected.map(|class| class["isFailure"] == true);
    assert_eq!(classify(&converted.routes[route].classes, status), expected, "{status}: {written}");
}

/// All of what a condition says.
fn meets_request(condition: &Value, request: &Request<'_>) -> bool {
    let meets = |condition: &Value| meets_request(condition, request);
    let says = |field: &str| Some(&condition[field]).filter(|value| !value.is_null());
    let not = says("not").map(|not| not.as_array().map_or(not, |only| &only[0]));
    says("all").is_none_or(|all| all.as_array().is_some_and(|all| all.iter().all(meets)))
        && says("any").is_none_or(|any| any.as_array().is_some_and(|any| any.iter().any(meets)))
        && not.is_none_or(|not| !meets(not))
        && says("method").is_none_or(|method| {
            method.as_str().is_some_and(|method| method.to_ascii_uppercase() == request.method)
        })
        && says("pathRegex").is_none_or(|pattern| {
            let pattern = pattern.as_str().unwrap_or_default().trim();
            covers(pattern, request.path)
        })
}

/// Whether the text is one of those that the pattern describes: some way of matching from its start reaches its end.
fn covers(pattern: &str, text: &str) -> bool {
    let whole = regex::Regex::new(&format!(r"\A(?:{pattern})\z"));
    // The tables of Unicode are not all there; what is accepted without them is about ASCII.
    match whole {
        Ok(regex) => regex.is_match(text),
        Err(_) => regex::bytes::Regex::new(&format!(r"(?-u)\A(?:{pattern})\z"))
            .is_ok_and(|regex| regex.is_match(text.as_bytes())),
    }
}

fn meets_response(condition: &Value, status: u16) -> bool {
    let meets = |condition: &Value| meets_response(condition, status);
    let says = |field: &str| Some(&condition[field]).filter(|value| !value.is_null());
    says("all").is_none_or(|all| all.as_array().is_some_and(|all| all.iter().all(meets)))
        && says("any").is_none_or(|any| any.as_array().is_some_and(|any| any.iter().any(meets)))
        && says("not").is_none_or(|not| !meets(not))
        && says("status").is_none_or(|range| {
            let end = |name: &str| range[name].as_u64().filter(|end| *end > 0);
            let (min, max) = (end("min"), end("max"));
            let (min, max) = (min.or(max), max.or(min));
            min.is_some_and(|min| u64::from(status) >= min) && max.is_some_and(|max| u64::from(status) <= max)
        })
}

struct Request<'a> {
    method: &'a str,
    path: &'a str,
}

impl RequestView for Request<'_> {
    fn method(&self) -> &str {
        self.method
    }
    fn authority(&self) -> &'static str {
        ""
    }
    fn path(&self) -> &str {
        self.path
    }
    fn query(&self) -> Option<&str> {
        None
    }
    fn header(&self, _: &str) -> impl Iterator<Item = &[u8]> {
        std::iter::empty()
    }
}

pub(crate) fn settings() -> Settings {
    Settings {
        cluster_domain: "cluster.local".to_owned(),
        trust_domain: "cluster.local".to_owned(),
        control_namespace: "remora".to_owned(),
        cluster_networks: Vec::new(),
        probe_networks: Vec::new(),
        default_inbound_policy: remora_core::policy::DefaultPolicy::Deny,
        default_opaque_ports: remora_destination::ports::PortSet::default(),
        transport_mode: TransportMode::TransportHeader,
        h2_upgrade: true,
        heed_request_headers: false,
    }
}

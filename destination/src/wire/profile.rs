//! Pure. Profiles, as Linkerd's controller writes them. Contract 3.2.

use super::{duration, http_method, service_ref, weighted_addr};
use crate::{
    resources::{Name, RequestMatch, Route, Spec, WeightedDst},
    view::{Chosen, Profile, Settings},
};
use linkerd2_proxy_api::{destination as api, meta};
use remora_core::profile::{BudgetLimits, ResponseClass, ResponseMatch};

/// A profile.
pub fn destination_profile(profile: &Profile, settings: &Settings) -> api::DestinationProfile {
    let default = || api::DestinationProfile {
        retry_budget: Some(retry_budget(BudgetLimits::DEFAULT)),
        ..api::DestinationProfile::default()
    };
    match profile {
        Profile::Service { name, port, opaque, profile: Some(chosen) } => api::DestinationProfile {
            opaque_protocol: *opaque,
            ..service_profile(name, *port, chosen, settings)
        },
        Profile::Service { name, port, opaque, profile: None } => api::DestinationProfile {
            fully_qualified_name: settings.service_name(name),
            opaque_protocol: *opaque,
            parent_ref: Some(service_ref(&name.namespace, &name.name, *port)),
            ..default()
        },
        Profile::UndefinedPort => default(),
        Profile::Endpoint { addr, endpoint, opaque } => api::DestinationProfile {
            opaque_protocol: *opaque,
            endpoint: Some(weighted_addr(*addr, endpoint)),
            ..default()
        },
    }
}

/// A Service with its ServiceProfile.
pub(super) fn service_profile(
    name: &Name,
    port: u16,
    chosen: &Chosen,
    settings: &Settings,
) -> api::DestinationProfile {
    api::DestinationProfile {
        fully_qualified_name: settings.service_name(name),
        parent_ref: Some(service_ref(&name.namespace, &name.name, port)),
        profile_ref: Some(profile_ref(chosen)),
        ..said(&chosen.spec, port)
    }
}

/// What a ServiceProfile says for a port of its Service.
fn said(spec: &Spec, port: u16) -> api::DestinationProfile {
    api::DestinationProfile {
        routes: spec.routes.iter().map(route).collect(),
        retry_budget: Some(retry_budget(spec.budget.unwrap_or(BudgetLimits::DEFAULT))),
        dst_overrides: spec.overrides.iter().map(|dst| weighted_dst(dst, port)).collect(),
        ..api::DestinationProfile::default()
    }
}

fn route(route: &Route) -> api::Route {
    api::Route {
        condition: Some(request_match(&route.condition)),
        response_classes: route.classes.iter().map(response_class).collect(),
        metrics_labels: [("route".to_owned(), route.name.clone())].into(),
        is_retryable: route.retryable,
        timeout: route.timeout.map(duration),
    }
}

fn request_match(condition: &RequestMatch) -> api::RequestMatch {
    use api::request_match::{Match, Seq};
    let seq = |all: &[RequestMatch]| Seq { matches: all.iter().map(request_match).collect() };
    let condition = match condition {
        RequestMatch::All(all) => Match::All(seq(all)),
        RequestMatch::Any(any) => Match::Any(seq(any)),
        RequestMatch::Not(not) => Match::Not(Box::new(request_match(not))),
        RequestMatch::Method(method) => Match::Method(http_method(method)),
        RequestMatch::Path(pattern) => Match::Path(api::PathMatch { regex: pattern.to_string() }),
    };
    api::RequestMatch { r#match: Some(condition) }
}

fn response_class(class: &ResponseClass) -> api::ResponseClass {
    api::ResponseClass { condition: Some(response_match(&class.condition)), is_failure: class.failure }
}

fn response_match(condition: &ResponseMatch) -> api::ResponseMatch {
    use api::response_match::{Match, Seq};
    let seq = |all: &[ResponseMatch]| Seq { matches: all.iter().map(response_match).collect() };
    let condition = match condition {
        ResponseMatch::All(all) => Match::All(seq(all)),
        ResponseMatch::Any(any) => Match::Any(seq(any)),
        ResponseMatch::Not(not) => Match::Not(Box::new(response_match(not))),
        ResponseMatch::Status(range) => {
            Match::Status(api::HttpStatusRange { min: range.min().into(), max: range.max().into() })
        }
    };
    api::ResponseMatch { r#match: Some(condition) }
}

fn retry_budget(limits: BudgetLimits) -> api::RetryBudget {
    api::RetryBudget {
        retry_ratio: limits.ratio(),
        min_retries_per_second: limits.min_per_second(),
        ttl: Some(duration(limits.ttl())),
    }
}

fn weighted_dst(dst: &WeightedDst, port: u16) -> api::WeightedDst {
    api::WeightedDst { authority: dst.authority_at(port), weight: dst.weight, backend_ref: None }
}

fn profile_ref(chosen: &Chosen) -> meta::Metadata {
    meta::Metadata {
        kind: Some(meta::metadata::Kind::Resource(meta::Resource {
            group: "linkerd.io".to_owned(),
            kind: "ServiceProfile".to_owned(),
            name: chosen.name.name.clone(),
            namespace: chosen.name.namespace.clone(),
            ..meta::Resource::default()
        })),
    }
}

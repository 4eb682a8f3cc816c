//! Pure. What routes and Services say of timeouts and retries that proxies do otherwise, or not at all. It is told as
//! warnings, with the path of the field.

use super::{Lens, rules::resilience};
use crate::{
    index::{GrpcConditions, Index, Route, RouteId, Service, Traffic},
    resources::{Name, RouteKind},
};
use remora_core::retry::MAX_RETRIES;
use serde::Serialize;

/// A Service of which something is to be said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServiceReport {
    /// What is as it is written, but perhaps not as it is meant.
    pub warnings: Vec<String>,
}

/// Every Service of which something is to be said.
pub fn service_reports(index: &Index) -> impl Iterator<Item = (Name, ServiceReport)> {
    index.services().filter_map(|(name, service)| {
        let warnings = of_service(index, name, service);
        (!warnings.is_empty()).then(|| (name.clone(), ServiceReport { warnings }))
    })
}

fn of_service(index: &Index, name: &Name, service: &Service) -> Vec<String> {
    let traffic = &service.traffic;
    let has_grpc = || index.routes_of(name).any(|(id, _)| id.kind == RouteKind::Grpc);
    let useless = (says_grpc(traffic) && !has_grpc()).then(|| {
        format!("{GRPC}: Linkerd's API can say it of GRPCRoutes only, and the Service has none: {NOTHING}")
    });
    useless.into_iter().chain(excess(LIMIT, limit(traffic))).collect()
}

/// Of a route with Services among its parents.
pub(super) fn of_route(lens: &mut Lens<'_>, id: &RouteId, route: &Route) -> Vec<String> {
    let parents = route.spec.parents.iter().filter_map(|parent| parent.service(&id.name.namespace));
    let parents: Vec<Name> = parents.collect();
    if parents.is_empty() {
        return Vec::new();
    }
    let traffic = &route.traffic;
    let useless = match id.kind {
        RouteKind::Http | RouteKind::LinkerdHttp => says_grpc(traffic).then(|| {
            format!("{GRPC}: Linkerd's API can say it of GRPCRoutes only, not of this kind: {NOTHING}")
        }),
        RouteKind::Grpc => says_http(traffic).then(|| {
            format!("{HTTP}: Linkerd's API can say it of HTTPRoutes only, not of this kind: {NOTHING}")
        }),
        RouteKind::Tls | RouteKind::Tcp => (*traffic != Traffic::default()).then(|| {
            "metadata.annotations: connections have no timeouts and retries: timeout.linkerd.io and \
             retry.linkerd.io say nothing here"
                .to_owned()
        }),
    };
    let mut found: Vec<String> = useless.into_iter().chain(excess(LIMIT, limit(traffic))).collect();
    let nothing = Traffic::default();
    let defaults: Vec<&Traffic> =
        parents.iter().map(|name| lens.declared(name).map_or(&nothing, |service| &service.traffic)).collect();
    for (at, rule) in route.spec.rules.iter().enumerate() {
        let path = format!("spec.rules[{at}]");
        let attempts =
            rule.retry.as_ref().and_then(|retry| retry.attempts).filter(|_| traffic.http_retry.is_none());
        found.extend(excess(&format!("{path}.retry.attempts"), attempts.unwrap_or_default()));
        let each = rule.timeouts.and_then(|timeouts| timeouts.backend_request).filter(|each| !each.is_zero());
        let retried =
            || defaults.iter().any(|defaults| resilience(traffic, rule, defaults).http_retry.is_some());
        // Linkerd's API bounds a try only up to its response's head, and the last one not at all.
        if each.is_some() && retried() {
            found.push(format!(
                "{path}.timeouts.backendRequest: with retries it bounds each try up to the head of its response, and \
                 not the last one"
            ));
        }
    }
    found
}

const GRPC: &str = "metadata.annotations[retry.linkerd.io/grpc]";
const HTTP: &str = "metadata.annotations[retry.linkerd.io/http]";
const LIMIT: &str = "metadata.annotations[retry.linkerd.io/limit]";
const NOTHING: &str = "nothing is sent again for it";

fn says_grpc(traffic: &Traffic) -> bool {
    traffic.grpc_retry.as_ref().is_some_and(|retry| retry.conditions != GrpcConditions::default())
}

fn says_http(traffic: &Traffic) -> bool {
    traffic.http_retry.as_ref().is_some_and(|retry| !retry.conditions.is_empty())
}

/// The annotation counts for both, whichever is asked for.
fn limit(traffic: &Traffic) -> u32 {
    let http = traffic.http_retry.as_ref().map(|retry| retry.limit);
    let grpc = traffic.grpc_retry.as_ref().map(|retry| retry.limit);
    http.max(grpc).unwrap_or_default()
}

/// More than proxies do, unless they are told to.
fn excess(path: &str, limit: u32) -> Option<String> {
    (limit > MAX_RETRIES).then(|| {
        format!(
            "{path}: {limit}, but a proxy sends a request again {MAX_RETRIES} times at most, unless its \
             REMORA_PROXY_MAX_RETRIES says otherwise"
        )
    })
}

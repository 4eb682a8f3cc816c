//! Pure. What all kinds of routes are made of: references, backends, hosts, timeouts, and how often something is tried.

use super::super::{duration, seconds, service_ref, weighted_addr};
use crate::{
    index::{Accrual, RouteId, Timeouts},
    resources::{
        Name,
        routes::{HeaderEdit, Hostname, ValueMatch},
    },
    view::{HeldRule, Membership, ServicePolicy, Settings},
};
use linkerd2_proxy_api::{http_route, http_types, meta, outbound as api};
use std::time::Duration;

/// Starting estimate of a round trip: 30 ms.
const DEFAULT_RTT: prost_types::Duration = prost_types::Duration { seconds: 0, nanos: 30_000_000 };
/// How fast that estimate forgets.
const RTT_DECAY: i64 = 10;
/// What is kept of a request's body to send it again: 64 KiB. Contract 4.3.
pub(super) const MAX_REQUEST_BYTES: u32 = 64 << 10;
/// The pause between tries grows from the first to the second. Contract 4.3.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(25), Duration::from_millis(250));

/// Where routes lead.
#[derive(Debug)]
pub(super) struct Ways<'a> {
    pub(super) settings: &'a Settings,
    /// The Service whose routes these are, and its port.
    pub(super) service: (&'a Name, u16),
    /// Where its traffic goes without a route: to its endpoints, or to the pod that was dialled.
    pub(super) itself: api::Backend,
    /// In whose words.
    pub(super) api: Api,
}

/// In whose words something is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::wire) enum Api {
    /// Linkerd's, and what it has no words for fails.
    Linkerds,
    /// Ours: Linkerd's, and its own words beside it.
    Own,
}

/// Where a rule sends what it matches.
pub(super) enum Sends {
    /// Nowhere: everything fails, and this is why.
    Nowhere(String),
    /// To the Service itself.
    Itself,
    /// To these by weight, none of which is 0; what goes to some of them fails, and that is why. The number is the
    /// backend's in the rule.
    Shares(Vec<(usize, Result<api::Backend, String>, u32)>),
}

impl<'a> Ways<'a> {
    /// Of a Service.
    pub(super) fn of_service(policy: &'a ServicePolicy, settings: &'a Settings, api: Api) -> Self {
        let itself = balancer(settings, &policy.name, policy.port);
        Self { settings, service: (&policy.name, policy.port), itself, api }
    }

    /// Of a pod in a Service's place.
    pub(super) fn of_pod(member: &'a Membership, settings: &'a Settings, api: Api) -> Self {
        let Membership { policy: ServicePolicy { name, port, .. }, pod: (addr, pod), .. } = member;
        let forward = api::backend::Kind::Forward(weighted_addr(*addr, pod));
        let itself = backend(service_ref(&name.namespace, &name.name, *port), Some(forward));
        Self { settings, service: (name, *port), itself, api }
    }

    pub(super) fn of(&self, rule: &HeldRule) -> Sends {
        if let Some(failure) = rule.failure.as_ref().or_else(|| self.unsaid(rule.unsaid.as_ref())) {
            return Sends::Nowhere(failure.clone());
        }
        if rule.backends.is_empty() {
            return Sends::Itself;
        }
        let shares = rule.shares().map(|(at, backend)| {
            let target = match (&backend.target, self.unsaid(backend.unsaid.as_ref())) {
                (Err(why), _) | (Ok(_), Some(why)) => Err(why.clone()),
                (Ok((name, port)), None) if (name, *port) == self.service => Ok(self.itself.clone()),
                (Ok((name, port)), None) => Ok(balancer(self.settings, name, *port)),
            };
            (at, target, backend.weight)
        });
        Sends::Shares(shares.collect())
    }

    fn unsaid<'b>(&self, why: Option<&'b String>) -> Option<&'b String> {
        why.filter(|_| self.api == Api::Linkerds)
    }
}

/// The metadata of a route.
pub(in crate::wire) fn route_ref(id: &RouteId) -> meta::Metadata {
    meta::Metadata {
        kind: Some(meta::metadata::Kind::Resource(meta::Resource {
            group: id.kind.group().to_owned(),
            kind: id.kind.kind().to_owned(),
            name: id.name.name.clone(),
            namespace: id.name.namespace.clone(),
            ..meta::Resource::default()
        })),
    }
}

/// The endpoints of a Service.
pub(super) fn balancer(settings: &Settings, name: &Name, port: u16) -> api::Backend {
    use api::backend::{BalanceP2c, EndpointDiscovery, balance_p2c, endpoint_discovery};
    let path = format!("{}:{port}", settings.service_name(name));
    let get = endpoint_discovery::DestinationGet { path };
    let ewma = balance_p2c::PeakEwma { default_rtt: Some(DEFAULT_RTT), decay: Some(seconds(RTT_DECAY)) };
    let balancer = BalanceP2c {
        discovery: Some(EndpointDiscovery { kind: Some(endpoint_discovery::Kind::Dst(get)) }),
        load: Some(balance_p2c::Load::PeakEwma(ewma)),
    };
    backend(service_ref(&name.namespace, &name.name, port), Some(api::backend::Kind::Balancer(balancer)))
}

/// A backend that is nowhere. Proxies take it for one that is always there, so that its share of requests meets the
/// filter that fails them.
pub(super) fn nowhere() -> api::Backend {
    backend(super::default_ref("invalid"), None)
}

pub(super) fn backend(metadata: meta::Metadata, kind: Option<api::backend::Kind>) -> api::Backend {
    // Linkerd's proxy refuses a backend without a queue, and makes use of neither figure (contract 10).
    let queue = api::Queue { capacity: 100, failfast_timeout: Some(seconds(3)) };
    api::Backend { metadata: Some(metadata), kind, queue: Some(queue) }
}

pub(in crate::wire) fn host(hostname: &Hostname) -> http_route::HostMatch {
    use http_route::host_match::{Match, Suffix};
    let kind = match hostname {
        Hostname::Exact(name) => Match::Exact(name.clone()),
        Hostname::Suffix(suffix) => Match::Suffix(Suffix { reverse_labels: reversed(suffix) }),
    };
    http_route::HostMatch { r#match: Some(kind) }
}

pub(super) fn reversed(name: &str) -> Vec<String> {
    name.rsplit('.').map(str::to_owned).collect()
}

pub(super) fn headers(headers: &[(String, ValueMatch)]) -> Vec<http_route::HeaderMatch> {
    use http_route::header_match::Value;
    let one = |(name, wanted): &(String, ValueMatch)| {
        let value = match wanted {
            ValueMatch::Exact(value) => Value::Exact(value.clone().into_bytes()),
            ValueMatch::Regex(pattern) => Value::Regex(pattern.clone()),
        };
        http_route::HeaderMatch { name: name.clone(), value: Some(value) }
    };
    headers.iter().map(one).collect()
}

pub(in crate::wire) fn request_headers(edit: &HeaderEdit) -> http_route::RequestHeaderModifier {
    let (add, set) = (listed(&edit.add), listed(&edit.set));
    http_route::RequestHeaderModifier { add: Some(add), set: Some(set), remove: edit.remove.clone() }
}

pub(super) fn response_headers(edit: &HeaderEdit) -> http_route::ResponseHeaderModifier {
    let (add, set) = (listed(&edit.add), listed(&edit.set));
    http_route::ResponseHeaderModifier { add: Some(add), set: Some(set), remove: edit.remove.clone() }
}

fn listed(headers: &[(String, String)]) -> http_types::Headers {
    let one = |(name, value): &(String, String)| http_types::headers::Header {
        name: name.clone(),
        value: value.clone().into_bytes(),
    };
    http_types::Headers { headers: headers.iter().map(one).collect() }
}

pub(super) fn timeouts(timeouts: Timeouts) -> Option<http_route::Timeouts> {
    timeouts.stated().then(|| http_route::Timeouts {
        request: timeouts.request.map(duration),
        response: timeouts.response.map(duration),
        idle: timeouts.idle.map(duration),
    })
}

pub(super) fn backoff(stated: Option<(Duration, Duration)>) -> api::ExponentialBackoff {
    let (min, max) = stated.unwrap_or(BACKOFF);
    exponential(min, max, 1.0)
}

pub(super) fn failure_accrual(accrual: Accrual) -> api::FailureAccrual {
    use api::failure_accrual::{ConsecutiveFailures, Kind, Unified};
    let backoff = Some(api::ExponentialBackoff {
        respect_retry_after_hint: accrual.honor_retry_after,
        ..exponential(accrual.min_penalty, accrual.max_penalty, accrual.jitter)
    });
    let max_failures = accrual.max_failures;
    let kind = match accrual.rate {
        None => Kind::ConsecutiveFailures(ConsecutiveFailures { max_failures, backoff }),
        Some(rate) => Kind::Unified(Unified {
            success_rate_threshold: rate.threshold,
            decay: Some(duration(rate.window)),
            min_requests: rate.min_requests,
            max_consecutive_failures: max_failures,
            backoff,
        }),
    };
    api::FailureAccrual { kind: Some(kind), ejection: None }
}

fn exponential(min: Duration, max: Duration, jitter_ratio: f32) -> api::ExponentialBackoff {
    api::ExponentialBackoff {
        min_backoff: Some(duration(min)),
        max_backoff: Some(duration(max)),
        jitter_ratio,
        ..api::ExponentialBackoff::default()
    }
}

//! Pure. What a target's profile and policy mean together. Contract 1.7, 3.3; design decision 8.

use super::{Absence, Known, Policy, Profiled};
use remora_core::{
    balance::Balancings,
    breaker::Accruals,
    policy::ResourceRef,
    profile::Profile,
    route::{
        Backend, BackendTarget, Distribution, HttpRoute, HttpRule, OutboundPolicy, OutboundProtocol,
        OutboundRoute, OutboundRule,
    },
};
use std::{net::SocketAddr, sync::Arc};

/// What to do with connections to a target.
#[derive(Clone, Debug, PartialEq)]
pub enum Resolution {
    /// The control plane has yet to answer.
    Wait,
    /// This.
    Use(OutboundPolicy),
}

/// Combines what is known.
pub fn resolve(target: SocketAddr, profile: &Known<Profiled>, policy: &Known<Policy>) -> Resolution {
    let known = match (profile, policy) {
        // Without the profile nobody knows whether the port is opaque, or a pod's endpoint.
        (Known::Pending, _) | (_, Known::Pending) => return Resolution::Wait,
        (Known::Is(profile), policy) => (Some(&*profile.profile), policy),
        (Known::Absent(_), policy) => (None, policy),
    };
    Resolution::Use(match known {
        (profile, Known::Is(policy)) => match profile {
            Some(profile) if profile.opaque => opaque(&policy.policy, profile, target),
            Some(_) | None => policy.policy.clone(),
        },
        (_, Known::Absent(Absence::Refused(reason))) => invalid("policy", reason),
        (Some(profile), Known::Absent(Absence::NotFound) | Known::Pending) => match &profile.endpoint {
            Some(endpoint) => forward("endpoint", BackendTarget::Forward(endpoint.clone()), profile.opaque),
            None => forward("fallback", BackendTarget::Original(target), profile.opaque),
        },
        (None, Known::Absent(Absence::NotFound) | Known::Pending) => original(target),
    })
}

/// Sends everything where the client meant it to go.
pub fn original(target: SocketAddr) -> OutboundPolicy {
    forward("fallback", BackendTarget::Original(target), false)
}

fn invalid(name: &str, reason: &Arc<str>) -> OutboundPolicy {
    OutboundPolicy {
        parent: Arc::new(ResourceRef::default_kind(name)),
        protocol: OutboundProtocol::Invalid(reason.clone()),
        accrual: Accruals::default(),
        balancing: Balancings::new(),
    }
}

/// The opaque part of a policy for a target whose profile says that it is opaque.
fn opaque(policy: &OutboundPolicy, profile: &Profile, target: SocketAddr) -> OutboundPolicy {
    let distribution = match &policy.protocol {
        OutboundProtocol::Detect { opaque, .. } | OutboundProtocol::Opaque(opaque) => opaque.clone(),
        OutboundProtocol::Invalid(reason) => return invalid("policy", reason),
        OutboundProtocol::Http1(_)
        | OutboundProtocol::Http2(_)
        | OutboundProtocol::Grpc(_)
        | OutboundProtocol::Tls(_) => {
            let backend = match (&profile.endpoint, &profile.name) {
                (Some(endpoint), _) => BackendTarget::Forward(endpoint.clone()),
                (None, Some(name)) => BackendTarget::Balance {
                    authority: format!("{name}:{}", target.port()).into(),
                    default_rtt: remora_core::route::DEFAULT_RTT,
                    decay: remora_core::route::DEFAULT_DECAY,
                },
                (None, None) => BackendTarget::Original(target),
            };
            only(&policy.parent, backend)
        }
    };
    let protocol = OutboundProtocol::Opaque(distribution);
    let balancing = policy.balancing.clone();
    OutboundPolicy { parent: policy.parent.clone(), protocol, accrual: Accruals::default(), balancing }
}

fn forward(name: &str, target: BackendTarget, opaque: bool) -> OutboundPolicy {
    let parent = Arc::new(ResourceRef::default_kind(name));
    let distribution = only(&parent, target);
    let protocol = if opaque {
        OutboundProtocol::Opaque(distribution)
    } else {
        let route = OutboundRoute {
            route: HttpRoute {
                meta: parent.clone(),
                hosts: Vec::new(),
                rules: vec![HttpRule { matches: Vec::new() }],
            },
            rules: vec![OutboundRule::plain(distribution.clone())],
        };
        OutboundProtocol::Detect { http1: vec![route.clone()], http2: vec![route], opaque: distribution }
    };
    OutboundPolicy { parent, protocol, accrual: Accruals::default(), balancing: Balancings::new() }
}

fn only(meta: &Arc<ResourceRef>, target: BackendTarget) -> Arc<Distribution> {
    Arc::new(Distribution::FirstAvailable(vec![Backend { meta: meta.clone(), target, filters: Vec::new() }]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use remora_core::endpoint::Endpoint;

    const TARGET: ([u8; 4], u16) = ([10, 0, 0, 1], 80);

    #[test]
    fn nothing_is_decided_before_both_have_answered() {
        assert_eq!(resolve(TARGET.into(), &Known::Pending, &absent()), Resolution::Wait);
        assert_eq!(resolve(TARGET.into(), &absent(), &Known::Pending), Resolution::Wait);
    }

    #[test]
    fn an_unknown_target_goes_where_the_client_meant() {
        check(&absent(), &absent(), "fallback", &BackendTarget::Original(TARGET.into()), false);
    }

    #[test]
    fn a_pod_is_forwarded_to_its_endpoint() {
        let endpoint = Endpoint::bare(TARGET.into());
        let profile = profile(Profile { endpoint: Some(endpoint.clone()), ..Profile::default() });
        check(&profile, &absent(), "endpoint", &BackendTarget::Forward(endpoint), false);
    }

    #[test]
    fn an_opaque_pod_is_not_looked_at() {
        let endpoint = Endpoint::bare(TARGET.into());
        let opaque = Profile { endpoint: Some(endpoint.clone()), opaque: true, ..Profile::default() };
        check(&profile(opaque), &absent(), "endpoint", &BackendTarget::Forward(endpoint), true);
    }

    #[test]
    fn a_refused_policy_fails_closed() {
        let refused = Known::Absent(Absence::Refused("no such thing".into()));
        let Resolution::Use(policy) = resolve(TARGET.into(), &absent(), &refused) else { panic!() };
        assert_eq!(policy.protocol, OutboundProtocol::Invalid("no such thing".into()));
    }

    #[track_caller]
    fn check(
        profile: &Known<Profiled>,
        policy: &Known<Policy>,
        parent: &str,
        target: &BackendTarget,
        opaque: bool,
    ) {
        let Resolution::Use(used) = resolve(TARGET.into(), profile, policy) else { panic!("waits") };
        assert_eq!(&*used.parent.name, parent);
        let distribution = match used.protocol {
            OutboundProtocol::Opaque(distribution) if opaque => distribution,
            OutboundProtocol::Detect { opaque: distribution, .. } if !opaque => distribution,
            other => panic!("{other:?}"),
        };
        let Distribution::FirstAvailable(backends) = &*distribution else { panic!() };
        assert_eq!(&backends[0].target, target);
    }

    fn absent<T>() -> Known<T> {
        Known::Absent(Absence::NotFound)
    }

    fn profile(profile: Profile) -> Known<Profiled> {
        Known::Is(Arc::new(Profiled { profile: Arc::new(profile), ..Profiled::default() }))
    }
}

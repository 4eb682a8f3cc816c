//! Pure. What a target's profile and policy mean together. Contract 1.7, 3.3; design decision 8.

use super::{Absence, Known, Place, Policy, Profiled};
use remora_core::{
    balance::Balancings,
    breaker::Accruals,
    policy::ResourceRef,
    profile::Profile,
    route::{
        Backend, BackendTarget, Distribution, HttpRoute, HttpRule, Membership, OutboundPolicy,
        OutboundProtocol, OutboundRoute, OutboundRule,
    },
};
use std::sync::Arc;

/// What to do with connections to a target.
#[derive(Clone, Debug, PartialEq)]
pub enum Resolution {
    /// The control plane has yet to answer.
    Wait,
    /// This.
    Use(OutboundPolicy),
}

/// Combines what is known.
pub fn resolve(place: &Place, profile: &Known<Profiled>, policy: &Known<Policy>) -> Resolution {
    let known = match (profile, policy) {
        // Without the profile nobody knows whether the port is opaque, or a pod's endpoint.
        (Known::Pending, _) | (_, Known::Pending) => return Resolution::Wait,
        (Known::Is(profile), policy) => (Some(&*profile.profile), policy),
        (Known::Absent(_), policy) => (None, policy),
    };
    Resolution::Use(match known {
        (profile, Known::Is(policy)) => match profile {
            Some(profile) if profile.opaque => opaque(&policy.policy, profile, place),
            Some(_) | None => policy.policy.clone(),
        },
        (_, Known::Absent(Absence::Refused(reason))) => invalid("policy", reason),
        (Some(profile), Known::Absent(Absence::NotFound) | Known::Pending) => match &profile.endpoint {
            Some(endpoint) => forward("endpoint", BackendTarget::Forward(endpoint.clone()), profile.opaque),
            None => match (place, &profile.name) {
                (Place::Addr(addr), _) => forward("fallback", BackendTarget::Original(*addr), profile.opaque),
                (Place::Name(_), Some(name)) => forward("service", balanced(name, place), profile.opaque),
                (Place::Name(_), None) => original(place),
            },
        },
        (None, Known::Absent(Absence::NotFound) | Known::Pending) => original(place),
    })
}

/// What to do with connections to a pod by a Service that it belongs to. Whether they are bytes says the pod too.
pub fn member(place: &Place, profile: &Known<Profiled>, service: &Membership) -> OutboundPolicy {
    match profile {
        Known::Is(known) if known.profile.opaque => opaque(&service.policy, &known.profile, place),
        Known::Is(_) | Known::Pending | Known::Absent(_) => service.policy.clone(),
    }
}

/// Sends everything where the client meant it to go. A name that nobody knows is nowhere.
pub fn original(place: &Place) -> OutboundPolicy {
    match place {
        Place::Addr(addr) => forward("fallback", BackendTarget::Original(*addr), false),
        Place::Name(name) => invalid("override", &format!("no Service is known as {name}").into()),
    }
}

/// The endpoints of a Service.
fn balanced(name: &str, place: &Place) -> BackendTarget {
    BackendTarget::Balance {
        authority: format!("{name}:{}", place.port()).into(),
        default_rtt: remora_core::route::DEFAULT_RTT,
        decay: remora_core::route::DEFAULT_DECAY,
    }
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
fn opaque(policy: &OutboundPolicy, profile: &Profile, place: &Place) -> OutboundPolicy {
    let distribution = match &policy.protocol {
        OutboundProtocol::Detect { opaque, .. } | OutboundProtocol::Opaque(opaque) => opaque.clone(),
        OutboundProtocol::Invalid(reason) => return invalid("policy", reason),
        OutboundProtocol::Http1(_)
        | OutboundProtocol::Http2(_)
        | OutboundProtocol::Grpc(_)
        | OutboundProtocol::Tls(_) => {
            let backend = match (&profile.endpoint, &profile.name, place) {
                (Some(endpoint), _, _) => BackendTarget::Forward(endpoint.clone()),
                (None, Some(name), _) => balanced(name, place),
                (None, None, Place::Addr(addr)) => BackendTarget::Original(*addr),
                (None, None, Place::Name(_)) => return original(place),
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
    fn a_name_that_nobody_knows_is_nowhere_and_a_services_is_balanced() {
        let place = Place::Name("web.shop.svc.cluster.local:8080".into());
        let Resolution::Use(unknown) = resolve(&place, &absent(), &absent()) else { panic!("waits") };
        assert!(
            matches!(&unknown.protocol, OutboundProtocol::Invalid(reason) if reason.contains("web.shop")),
            "{unknown:?}"
        );
        let named = Profile { name: Some("web.shop.svc.cluster.local".into()), ..Profile::default() };
        let Resolution::Use(known) = resolve(&place, &profile(named), &absent()) else { panic!("waits") };
        let OutboundProtocol::Detect { opaque, .. } = known.protocol else { panic!("not detect") };
        let Distribution::FirstAvailable(backends) = &*opaque else { panic!("not first") };
        let BackendTarget::Balance { authority, .. } = &backends[0].target else { panic!("{backends:?}") };
        assert_eq!(&**authority, "web.shop.svc.cluster.local:8080");
    }

    #[test]
    fn nothing_is_decided_before_both_have_answered() {
        assert_eq!(resolve(&place(), &Known::Pending, &absent()), Resolution::Wait);
        assert_eq!(resolve(&place(), &absent(), &Known::Pending), Resolution::Wait);
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
        let Resolution::Use(policy) = resolve(&place(), &absent(), &refused) else { panic!() };
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
        let Resolution::Use(used) = resolve(&place(), profile, policy) else { panic!("waits") };
        assert_eq!(&*used.parent.name, parent);
        let distribution = match used.protocol {
            OutboundProtocol::Opaque(distribution) if opaque => distribution,
            OutboundProtocol::Detect { opaque: distribution, .. } if !opaque => distribution,
            other => panic!("{other:?}"),
        };
        let Distribution::FirstAvailable(backends) = &*distribution else { panic!() };
        assert_eq!(&backends[0].target, target);
    }

    fn place() -> Place {
        Place::Addr(TARGET.into())
    }

    fn absent<T>() -> Known<T> {
        Known::Absent(Absence::NotFound)
    }

    fn profile(profile: Profile) -> Known<Profiled> {
        Known::Is(Arc::new(Profiled { profile: Arc::new(profile), ..Profiled::default() }))
    }
}

//! Pure. What the client's proxy knows of an address: what the controller would say of it, read and put together as a proxy
//! does; and which routes hold nothing there.

use crate::{World, answer::Apart};
use remora_core::{
    profile::Profile,
    route::{self, Membership, OutboundPolicy},
};
use remora_destination::{
    index::RouteId,
    resources::routes::RouteSpec,
    view::{self, Lens, Outbound, Refusal, Target, route_reports},
    wire,
};
use remora_proxy::discover::{
    Absence, Known, Place, Policy, Profiled,
    resolve::{Resolution, member, original, resolve},
};
use remora_runtime::api;
use std::sync::Arc;

/// What a client's proxy knows of an address.
pub(crate) struct Discovered {
    /// What it was asked about.
    pub(crate) place: Place,
    pub(crate) policy: OutboundPolicy,
    /// A ServiceProfile that has routes or a traffic split, and its name.
    pub(crate) profile: Option<(Arc<Profile>, String)>,
    /// What the controller says of a Service.
    pub(crate) service: Option<Box<view::ServicePolicy>>,
}

impl World<'_> {
    /// What the controller says of an address, or of a Service that a request names, put together as a proxy does. A pod
    /// that is dialled itself goes by one of its Services, which `named` may say: a host or a server name.
    pub(crate) fn known(&self, place: Place, named: &str) -> Discovered {
        let target = match &place {
            Place::Addr(addr) => Ok(Target::Addr(*addr)),
            Place::Name(name) => Target::parse(name, &self.settings.cluster_domain),
        };
        let (profile, name) = self.profile(&target);
        let mut service = None;
        let mut lens = Lens::new(self.index);
        let client = self.client.account.namespace.as_str();
        let said = target.and_then(|target| view::outbound(&mut lens, self.settings, &target, Some(client)));
        let policy = match said {
            Ok(outbound) => {
                let read = api::own::said(wire::own_policy(&outbound, self.settings));
                let (policy, services) = read.value;
                let at = route::named(services.iter().map(|one| &*one.service), named).unwrap_or_default();
                if let (Outbound::Pod(said), Some(membership)) = (&outbound, services.get(at)) {
                    return of_member(said.get(at), membership, place, &profile);
                }
                if let Outbound::Service(policy) = outbound {
                    service = Some(policy);
                }
                Known::Is(Arc::new(Policy { policy, services, ignored: read.ignored }))
            }
            Err(refusal) => Known::Absent(absence(&refusal)),
        };
        let policy = match resolve(&place, &profile, &policy) {
            Resolution::Use(policy) => policy,
            // Both are known.
            Resolution::Wait => original(&place),
        };
        let profile = match profile {
            Known::Is(known) => Some(known.profile.clone()).filter(|profile| profile.routes_http()),
            Known::Pending | Known::Absent(_) => None,
        };
        Discovered { place, policy, profile: profile.map(|profile| (profile, name)), service }
    }

    fn profile(&self, target: &Result<Target, Refusal>) -> (Known<Profiled>, String) {
        let context = self.client.contexts().into_iter().next().unwrap_or_default();
        let seen = match target {
            // Proxies ask about no others: `LINKERD2_PROXY_DESTINATION_PROFILE_NETWORKS`.
            Ok(Target::Addr(addr)) if !self.settings.in_cluster(*addr) => {
                return (Known::Absent(Absence::NotFound), String::new());
            }
            Ok(target) => view::profile(&mut Lens::new(self.index), self.settings, target, &context),
            Err(refusal) => Err(refusal.clone()),
        };
        match seen {
            Ok(seen) => {
                let name = match &seen {
                    view::Profile::Service { profile: Some(chosen), .. } => chosen.name.to_string(),
                    _ => String::new(),
                };
                let message = wire::destination_profile(&seen, self.settings);
                let read = api::profile::profile(message.clone())
                    .or_else(|_| api::profile::profile(api::profile::without_routes(message)));
                let known = match read {
                    Ok(read) => {
                        let profiled = Profiled { profile: Arc::new(read.value), ..Profiled::default() };
                        Known::Is(Arc::new(profiled))
                    }
                    Err(_) => Known::Absent(Absence::NotFound),
                };
                (known, name)
            }
            Err(refusal) => (Known::Absent(absence(&refusal)), String::new()),
        }
    }

    /// Routes that name the port and do not hold there.
    pub(crate) fn apart(&self, policy: &view::ServicePolicy) -> Vec<Apart> {
        let client = self.client.account.namespace.as_str();
        let names = |id: &RouteId, spec: &RouteSpec| {
            let service = self.index.service(&policy.name).and_then(|service| service.port(policy.port));
            spec.parents.iter().any(|parent| {
                parent.service(&id.name.namespace).as_ref() == Some(&policy.name)
                    && parent.port.is_none_or(|port| port == policy.port)
                    && parent
                        .section
                        .as_ref()
                        .is_none_or(|name| service.is_some_and(|port| port.name == *name))
            })
        };
        let lost = self.index.routes_of(&policy.name).filter(|(id, route)| {
            names(id, &route.spec) && !policy.routes.iter().any(|held| held.id == **id)
        });
        let lost: Vec<&RouteId> = lost.map(|(id, _)| id).collect();
        if lost.is_empty() {
            return Vec::new();
        }
        let own = policy.routes.first().is_some_and(|held| held.id.name.namespace == client);
        let why = |id: &RouteId| {
            let namespace = &id.name.namespace;
            if namespace != client && *namespace != policy.name.namespace {
                return format!("it is about clients in {namespace}");
            }
            if own && namespace != client {
                return format!("clients in {client} have routes of their own");
            }
            let report = route_reports(self.index, self.settings).find(|(other, _)| other == id);
            let conditions =
                report.iter().flat_map(|(_, report)| &report.parents).flat_map(|parent| &parent.conditions);
            let accepted: Vec<&str> = conditions
                .filter(|condition| condition.kind == "Accepted" && !condition.holds())
                .map(|condition| condition.message.as_str())
                .collect();
            if accepted.is_empty() {
                "a route of another kind, or an older one, comes first".to_owned()
            } else {
                accepted.join("; ")
            }
        };
        lost.into_iter().map(|id| Apart { of: id.to_string(), why: why(id) }).collect()
    }
}

/// A pod by one of the Services that it belongs to: what the controller said, and how the proxy reads it.
fn of_member(
    said: Option<&view::Membership>,
    membership: &Membership,
    place: Place,
    profile: &Known<Profiled>,
) -> Discovered {
    let name = said.and_then(|said| said.profile.as_ref()).map(|chosen| chosen.name.to_string());
    let routed = membership.profile.clone().filter(|profile| profile.routes_http());
    Discovered {
        policy: member(&place, profile, membership),
        place,
        profile: routed.map(|profile| (profile, name.unwrap_or_default())),
        service: said.map(|said| Box::new(said.policy.clone())),
    }
}

fn absence(refusal: &Refusal) -> Absence {
    match refusal {
        Refusal::NotFound(_) => Absence::NotFound,
        Refusal::Invalid(reason) => Absence::Refused(format!("InvalidArgument: {reason}").into()),
    }
}

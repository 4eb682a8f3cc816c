//! Pure. What an address or a name is, before any protocol is spoken, and the ServiceProfile that it has. Contract 3.2.

use super::{Context, Endpoint, Family, Lens, Refusal, Settings, Target, endpoints};
use crate::{
    index::{Addressing, Index, Service},
    resources::{Name, Spec},
};
use std::{net::SocketAddr, sync::Arc};

/// What a target is.
#[derive(Clone, Debug, PartialEq)]
pub enum Profile {
    /// A port of a Service.
    Service {
        /// The Service.
        name: Name,
        /// Its port.
        port: u16,
        /// Are its bytes forwarded unread?
        opaque: bool,
        /// Its ServiceProfile, if it has one.
        profile: Option<Chosen>,
    },
    /// The address of a Service, but a port that it does not define.
    UndefinedPort,
    /// One address: a pod's, or one of which nothing is known.
    Endpoint {
        /// The address.
        addr: SocketAddr,
        /// How to speak to it.
        endpoint: Endpoint,
        /// Are its bytes forwarded unread?
        opaque: bool,
    },
}

/// A ServiceProfile that holds for a client.
#[derive(Clone, Debug, PartialEq)]
pub struct Chosen {
    /// Its namespace and name.
    pub name: Name,
    /// What it says.
    pub spec: Arc<Spec>,
}

/// What a target is for a client in `context`.
pub fn profile(
    lens: &mut Lens<'_>,
    settings: &Settings,
    target: &Target,
    context: &Context,
) -> Result<Profile, Refusal> {
    match target {
        Target::Addr(addr) => match lens.service_at(addr.ip()) {
            Some((name, service)) if service.port(addr.port()).is_some() => {
                Ok(of_service(lens, settings, (name, service), addr.port(), context))
            }
            Some(_) => Ok(Profile::UndefinedPort),
            None => of_address(lens, settings, *addr),
        },
        Target::Service { name, host: None, port } => {
            let not_found = |what: &str| Refusal::NotFound(format!("Service {name} {what}"));
            let service = lens.service(name).ok_or_else(|| not_found("does not exist"))?;
            match service.addressing {
                Addressing::ExternalName => Err(not_found("is an ExternalName: it has no profile here")),
                // A headless Service's clients dial its pods: any port may be meant.
                Addressing::ClusterIps(_) if service.port(*port).is_none() => Ok(Profile::UndefinedPort),
                Addressing::Headless | Addressing::ClusterIps(_) => {
                    Ok(of_service(lens, settings, (name, service), *port, context))
                }
            }
        }
        Target::Service { name, host: Some(host), port } => {
            let found = endpoints(lens, settings, (name, Some(host), *port), &Context::default())?;
            let (addr, _) = found
                .set
                .first_key_value()
                .ok_or_else(|| Refusal::NotFound(format!("Service {name} has no endpoint named {host}")))?;
            of_address(lens, settings, *addr)
        }
    }
}

fn of_service(
    lens: &mut Lens<'_>,
    settings: &Settings,
    (name, service): (&Name, &Service),
    port: u16,
    context: &Context,
) -> Profile {
    let profile = chosen(lens, settings, name, context.namespace.as_deref());
    let opaque = lens.service_port_is_opaque(settings, name, service, port)
        || profile.as_ref().is_some_and(|chosen| chosen.spec.opaque_ports.contains(port));
    Profile::Service { name: name.clone(), port, opaque, profile }
}

/// The ServiceProfile of a Service for a client: what the client's own namespace says of the Service's name, else what
/// the Service's namespace says.
pub(super) fn chosen(
    lens: &mut Lens<'_>,
    settings: &Settings,
    service: &Name,
    client: Option<&str>,
) -> Option<Chosen> {
    let full_name = settings.service_name(service);
    let namespaces = [client, Some(service.namespace.as_str())];
    namespaces.into_iter().flatten().find_map(|namespace| {
        let name = Name::new(namespace, full_name.as_str());
        let spec = lens.service_profile(&name)?.clone();
        Some(Chosen { name, spec })
    })
}

/// What is to be said of every ServiceProfile: how much it has, and why it is about nothing, if it is.
pub fn profile_reports(index: &Index, settings: &Settings) -> impl Iterator<Item = (String, ProfileReport)> {
    index.profiles().map(|(name, spec)| {
        let report = ProfileReport {
            routes: spec.routes.len(),
            overrides: spec.overrides.len(),
            applies: about(index, settings, &name.name),
            before: routes_behind(index, settings, name, spec),
        };
        (name.to_string(), report)
    })
}

/// How a ServiceProfile stands.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ProfileReport {
    /// Its routes.
    pub routes: usize,
    /// Destinations of its traffic split.
    pub overrides: usize,
    /// What it is about: `Service shop/web`, or why it is about nothing.
    pub applies: String,
    /// Routes that it comes before, for some client at least.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub before: Vec<String>,
}

fn about(index: &Index, settings: &Settings, full_name: &str) -> String {
    match Target::parse(full_name, &settings.cluster_domain) {
        Ok(Target::Service { name, host: None, .. }) if settings.service_name(&name) == full_name => {
            let exists = if index.service(&name).is_some() { "" } else { ", which does not exist" };
            format!("Service {name}{exists}")
        }
        _ => format!("nothing: its name is not <service>.<namespace>.svc.{}", settings.cluster_domain),
    }
}

/// The routes of its Service that some client who goes by it would go by.
fn routes_behind(index: &Index, settings: &Settings, name: &Name, spec: &Spec) -> Vec<String> {
    let Ok(Target::Service { name: service, host: None, .. }) =
        Target::parse(&name.name, &settings.cluster_domain)
    else {
        return Vec::new();
    };
    let routes = index.routes_of(&service).filter(|(id, _)| {
        // A consumer's route meets the profile of its own namespace, or else the Service's.
        let met = [&id.name.namespace, &service.namespace].contains(&&name.namespace)
            || id.name.namespace == service.namespace;
        met && spec.comes_before(Family::of(id.kind))
    });
    routes.map(|(id, _)| id.to_string()).collect()
}

impl Spec {
    /// Does it come before routes of this family? Contract 1.7.
    pub(super) fn comes_before(&self, family: Family) -> bool {
        match family {
            Family::Grpc | Family::Http => !(self.routes.is_empty() && self.overrides.is_empty()),
            Family::Tls | Family::Tcp => !self.overrides.is_empty(),
        }
    }
}

fn of_address(lens: &mut Lens<'_>, settings: &Settings, addr: SocketAddr) -> Result<Profile, Refusal> {
    let Some((endpoint, opaque)) = pod_at(lens, settings, addr)? else {
        let opaque = settings.default_opaque_ports.contains(addr.port());
        return Ok(Profile::Endpoint { addr, endpoint: Endpoint::default(), opaque });
    };
    Ok(Profile::Endpoint { addr, endpoint, opaque })
}

/// How to speak to the pod that has an address, and whether its port is opaque. `None`: no pod has it.
pub(super) fn pod_at(
    lens: &mut Lens<'_>,
    settings: &Settings,
    addr: SocketAddr,
) -> Result<Option<(Endpoint, bool)>, Refusal> {
    let Some((name, pod)) = lens.pod_at(addr.ip()) else { return Ok(None) };
    let mut endpoint = endpoints::of_pod(lens, settings, (name, pod), addr.port()).ok_or_else(|| {
        Refusal::NotFound(format!(
            "pod {name} claims a proxy, but none can be found in it: how to speak to it is unknown"
        ))
    })?;
    endpoint.labels.insert("namespace".to_owned(), name.namespace.clone());
    Ok(Some((endpoint, lens.pod_port_is_opaque(settings, name, pod, addr.port()))))
}

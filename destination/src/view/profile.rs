//! Pure. What an address or a name is, before any protocol is spoken. Contract 3.2.

use super::{Endpoint, Lens, Refusal, Settings, Target, endpoints};
use crate::{
    index::{Addressing, Service},
    resources::Name,
};
use std::net::SocketAddr;

/// What a target is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Profile {
    /// A port of a Service.
    Service {
        /// The Service.
        name: Name,
        /// Its port.
        port: u16,
        /// Are its bytes forwarded unread?
        opaque: bool,
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

/// What a target is.
pub fn profile(lens: &mut Lens<'_>, settings: &Settings, target: &Target) -> Result<Profile, Refusal> {
    match target {
        Target::Addr(addr) => match lens.service_at(addr.ip()) {
            Some((name, service)) => Ok(of_service(lens, settings, (name, service), addr.port())),
            None => of_address(lens, settings, *addr),
        },
        Target::Service { name, host: None, port } => {
            let not_found = |what: &str| Refusal::NotFound(format!("Service {name} {what}"));
            let service = lens.service(name).ok_or_else(|| not_found("does not exist"))?;
            match service.addressing {
                Addressing::ExternalName => Err(not_found("is an ExternalName: it has no profile here")),
                // A headless Service's clients dial its pods: any port may be meant.
                Addressing::Headless => {
                    let opaque = lens.service_port_is_opaque(settings, name, service, *port);
                    Ok(Profile::Service { name: name.clone(), port: *port, opaque })
                }
                Addressing::ClusterIps(_) => Ok(of_service(lens, settings, (name, service), *port)),
            }
        }
        Target::Service { name, host: Some(host), port } => {
            let found = endpoints(lens, settings, (name, Some(host), *port), &super::Context::default())?;
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
) -> Profile {
    if service.port(port).is_none() {
        return Profile::UndefinedPort;
    }
    let opaque = lens.service_port_is_opaque(settings, name, service, port);
    Profile::Service { name: name.clone(), port, opaque }
}

fn of_address(lens: &mut Lens<'_>, settings: &Settings, addr: SocketAddr) -> Result<Profile, Refusal> {
    let Some((name, pod)) = lens.pod_at(addr.ip()) else {
        let opaque = settings.default_opaque_ports.contains(addr.port());
        return Ok(Profile::Endpoint { addr, endpoint: Endpoint::default(), opaque });
    };
    let mut endpoint = endpoints::of_pod(lens, settings, (name, pod), addr.port()).ok_or_else(|| {
        Refusal::NotFound(format!(
            "pod {name} claims a proxy, but none can be found in it: how to speak to it is unknown"
        ))
    })?;
    endpoint.labels.insert("namespace".to_owned(), name.namespace.clone());
    let opaque = lens.pod_port_is_opaque(settings, name, pod, addr.port());
    Ok(Profile::Endpoint { addr, endpoint, opaque })
}

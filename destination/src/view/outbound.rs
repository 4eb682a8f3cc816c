//! Pure. How a client's proxy should treat traffic to a target. Contract 3.3.

use super::{Lens, Refusal, Settings, Target};
use crate::{
    index::{Addressing, Service},
    resources::Name,
};
use std::net::SocketAddr;

/// How to treat traffic to a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outbound {
    /// To a port of a Service: balance over its endpoints.
    Service {
        /// The Service.
        name: Name,
        /// Its port.
        port: u16,
        /// What is spoken there.
        protocol: PortProtocol,
    },
    /// To a port that the Service does not define: refuse.
    UndefinedPort {
        /// The Service.
        name: Name,
        /// The port.
        port: u16,
    },
    /// To somewhere outside the cluster: forward.
    External(SocketAddr),
}

/// What is spoken on a Service's port, by declaration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortProtocol {
    /// Undeclared: look.
    Detect,
    /// HTTP/1.
    Http1,
    /// HTTP/2.
    Http2,
    /// Bytes.
    Opaque,
}

/// How to treat traffic to a target.
pub fn outbound(lens: &mut Lens<'_>, settings: &Settings, target: &Target) -> Result<Outbound, Refusal> {
    match target {
        Target::Addr(addr) => match lens.service_at(addr.ip()) {
            Some((name, service)) => Ok(of_service(lens, settings, (name, service), addr.port())),
            None if settings.in_cluster(*addr) => Err(Refusal::NotFound(format!(
                "{} is in the cluster's networks, but no Service's address",
                addr.ip()
            ))),
            None => Ok(Outbound::External(*addr)),
        },
        Target::Service { name, port, .. } => {
            let service =
                lens.service(name).ok_or_else(|| Refusal::NotFound(format!("there is no Service {name}")))?;
            if service.addressing == Addressing::ExternalName {
                return Err(Refusal::NotFound(format!(
                    "Service {name} is an ExternalName: it has no policy here"
                )));
            }
            Ok(of_service(lens, settings, (name, service), *port))
        }
    }
}

fn of_service(
    lens: &mut Lens<'_>,
    settings: &Settings,
    (name, service): (&Name, &Service),
    port: u16,
) -> Outbound {
    let name = name.clone();
    let Some(defined) = service.port(port) else { return Outbound::UndefinedPort { name, port } };
    // Opaqueness comes first: the server's side reads the same lists, and what the client calls HTTP would get 404
    // from a port that the server calls opaque (contract 12, point 5).
    let protocol = if lens.service_port_is_opaque(settings, &name, service, port) {
        PortProtocol::Opaque
    } else {
        match defined.app_protocol.as_deref() {
            None => PortProtocol::Detect,
            Some("http") => PortProtocol::Http1,
            Some("kubernetes.io/h2c") => PortProtocol::Http2,
            // `linkerd.io/tcp`, `linkerd.io/opaque`, and every name that Linkerd does not know.
            Some(_) => PortProtocol::Opaque,
        }
    };
    Outbound::Service { name, port, protocol }
}

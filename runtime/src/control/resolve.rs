//! Names of control-plane services → addresses: SRV first, then A and AAAA. Contract 3.0.

use hickory_resolver::{
    TokioResolver,
    proto::rr::{Name, RData},
};
use std::{
    future::Future,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

/// Addresses taken from one answer.
const MAX_ADDRESSES: usize = 64;

/// Whoever finds the addresses of a service.
pub trait Resolve: Send + Sync + 'static {
    /// All addresses of `host`, with the ports that its SRV records name, or else with `port`.
    fn resolve(&self, host: &str, port: u16) -> impl Future<Output = Result<Resolved, ResolveFault>> + Send;
}

/// The addresses of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// Never empty.
    pub addresses: Vec<SocketAddr>,
    /// The records that they are from, as metrics call them: `srv`, or `a` for A and AAAA.
    pub record: &'static str,
}

/// Why a name has no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveFault {
    /// The name servers say no, or do not say.
    #[error("{0}")]
    Lookup(String),
    /// An answer without addresses.
    #[error("the name has no addresses")]
    Empty,
    /// No answer in time.
    #[error("no answer from the name servers in time")]
    Timeout,
}

/// The system's name servers, search domains and hosts file. Nothing is cached: a control-plane connection is made
/// rarely, and then the current answer is wanted.
#[derive(Clone)]
pub struct Resolver(TokioResolver);

impl Resolver {
    /// Reads the system's configuration.
    pub fn from_system() -> Result<Self, ResolveFault> {
        let lookup = |fault: hickory_resolver::net::NetError| ResolveFault::Lookup(fault.to_string());
        let mut builder = TokioResolver::builder_tokio().map_err(lookup)?;
        builder.options_mut().cache_size = 0;
        builder.build().map(Self).map_err(lookup)
    }

    /// `None` where the name has no SRV records that say an address: contract 3.0 then wants A and AAAA.
    async fn services(&self, host: &str) -> Option<Vec<SocketAddr>> {
        let answer = self.0.srv_lookup(host).await.ok()?;
        let records = answer.answers().iter().filter_map(|record| match &record.data {
            RData::SRV(srv) => Some(srv),
            _ => None,
        });
        let addresses: Option<Vec<_>> = records
            .take(MAX_ADDRESSES)
            .map(|srv| Some(SocketAddr::new(target_address(&srv.target)?, srv.port)))
            .collect();
        addresses.filter(|addresses| !addresses.is_empty())
    }
}

impl Resolve for Resolver {
    async fn resolve(&self, host: &str, port: u16) -> Result<Resolved, ResolveFault> {
        if let Some(addresses) = self.services(host).await {
            return Ok(Resolved { addresses, record: "srv" });
        }
        let answer = self.0.lookup_ip(host).await.map_err(|fault| ResolveFault::Lookup(fault.to_string()))?;
        let addresses: Vec<_> =
            answer.iter().take(MAX_ADDRESSES).map(|ip| SocketAddr::new(ip, port)).collect();
        if addresses.is_empty() { Err(ResolveFault::Empty) } else { Ok(Resolved { addresses, record: "a" }) }
    }
}

/// The address in the first label of a headless Service's SRV target: `10-1-2-3.svc…` or `fd00--1.svc…`.
fn target_address(target: &Name) -> Option<IpAddr> {
    let label = std::str::from_utf8(target.iter().next()?).ok()?;
    let v4 = || label.replace('-', ".").parse::<Ipv4Addr>().ok().map(IpAddr::V4);
    let v6 = || label.replace('-', ":").parse::<Ipv6Addr>().ok().map(IpAddr::V6);
    v4().or_else(v6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(target: &str, expected: Option<&str>) {
        let expected = expected.map(|ip| ip.parse::<IpAddr>().unwrap());
        assert_eq!(target_address(&target.parse().unwrap()), expected);
    }

    #[test]
    fn the_first_label_is_an_address_with_dashes() {
        check("10-1-2-3.remora-dst-headless.remora.svc.cluster.local.", Some("10.1.2.3"));
        check("fd00--1.remora-dst-headless.remora.svc.cluster.local.", Some("fd00::1"));
        check("2001-db8-0-0-0-0-0-7.x.", Some("2001:db8::7"));
    }

    #[test]
    fn other_labels_are_not() {
        check("web-0.web.shop.svc.cluster.local.", None);
        check("10-1-2.x.", None);
        check("10-1-2-256.x.", None);
        check(".", None);
    }
}

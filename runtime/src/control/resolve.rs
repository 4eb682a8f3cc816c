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
    use hickory_resolver::{
        config::{ConnectionConfig, NameServerConfig, ResolverConfig},
        net::runtime::TokioRuntimeProvider,
    };
    use std::time::Duration;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::{TcpListener, UdpSocket},
    };

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

    /// What a name server says to a question: over UDP, and over TCP where that was cut off.
    type Says = fn(&Question<'_>) -> Vec<u8>;

    struct Question<'a> {
        bytes: &'a [u8],
        by_tcp: bool,
    }

    #[tokio::test]
    async fn a_name_server_that_makes_no_sense_is_an_error_in_time_and_never_more_addresses_than_are_used() {
        let rows: [(&str, Says); 9] = [
            ("nothing but its head", |asked| asked.answer(0, 1, &[])),
            ("more records than there are", |asked| asked.answer(0, u16::MAX, &[])),
            ("bytes of no message", |_| vec![0xff; 512]),
            ("another's answer", |asked| {
                let mut answer = asked.answer(0, 1, &address(0));
                answer[0] ^= 1;
                answer
            }),
            ("a name that is itself", |asked| {
                let [high, low] = asked.end().to_be_bytes();
                asked.answer(0, 1, &[0xc0 | high, low, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 10, 0, 0, 1])
            }),
            ("names that are each the one before", |asked| {
                let mut records = address(0);
                let mut before = asked.end();
                while records.len() < 60_000 && before < 0x3f00 {
                    let [high, low] = before.to_be_bytes();
                    before = asked.end() + u16::try_from(records.len()).unwrap();
                    records.extend([0xc0 | high, low, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 10, 0, 0, 1]);
                }
                asked.whole(u16::try_from(records.len() / 16).unwrap(), &records)
            }),
            ("a name that is an alias of itself", |asked| {
                asked.answer(0, 1, &[0xc0, 12, 0, 5, 0, 1, 0, 0, 0, 0, 0, 2, 0xc0, 12])
            }),
            ("an address of 64 KiB", |asked| {
                let head = [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0xff, 0xff];
                asked.whole(1, &[&head[..], &vec![7; 60_000]].concat())
            }),
            ("64 KiB of addresses", |asked| {
                let records: Vec<u8> = (0..4000).flat_map(address).collect();
                asked.whole(4000, &records)
            }),
        ];
        for (what, says) in rows {
            let resolver = hostile(says).await;
            let asking = resolver.resolve("web.shop.example.", 80);
            let answer = tokio::time::timeout(Duration::from_secs(20), asking).await.unwrap();
            match answer {
                Ok(Resolved { addresses, .. }) => {
                    assert!(addresses.len() <= MAX_ADDRESSES, "{what}: {} addresses", addresses.len());
                    assert!(what.contains("addresses") || what.contains("before"), "{what}: {addresses:?}");
                }
                Err(fault) => assert!(!what.contains("addresses"), "{what}: {fault}"),
            }
        }
    }

    impl Question<'_> {
        /// Where its only question ends.
        fn end(&self) -> u16 {
            let mut at = 12;
            while self.bytes[at] != 0 {
                at += 1 + usize::from(self.bytes[at]);
            }
            u16::try_from(at + 5).unwrap()
        }

        /// The question again, and records behind it, of which there are `count` by its head.
        fn answer(&self, more_flags: u8, count: u16, records: &[u8]) -> Vec<u8> {
            let question = &self.bytes[12..usize::from(self.end())];
            let head = [&self.bytes[..2], &[0x81 | more_flags, 0x80, 0, 1], &count.to_be_bytes(), &[0; 4]];
            [&head.concat(), question, records].concat()
        }

        /// The same by TCP: over UDP it says that there is more.
        fn whole(&self, count: u16, records: &[u8]) -> Vec<u8> {
            if self.by_tcp { self.answer(0, count, records) } else { self.answer(2, 0, &[]) }
        }
    }

    /// An address of the name that is asked for.
    fn address(nth: u16) -> Vec<u8> {
        let [high, low] = nth.to_be_bytes();
        vec![0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 10, 0, high, low]
    }

    /// A resolver whose only name server says this.
    async fn hostile(says: Says) -> Resolver {
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let (mut by_udp, mut by_tcp) = (ConnectionConfig::udp(), ConnectionConfig::tcp());
        by_udp.port = udp.local_addr().unwrap().port();
        by_tcp.port = tcp.local_addr().unwrap().port();
        tokio::spawn(async move {
            let mut buffer = [0; 512];
            loop {
                let (count, from) = udp.recv_from(&mut buffer).await.unwrap();
                let answer = says(&Question { bytes: &buffer[..count], by_tcp: false });
                udp.send_to(&answer, from).await.unwrap();
            }
        });
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = tcp.accept().await.unwrap();
                tokio::spawn(async move {
                    while let Ok(length) = stream.read_u16().await {
                        let mut question = vec![0; length.into()];
                        stream.read_exact(&mut question).await.unwrap();
                        let answer = says(&Question { bytes: &question, by_tcp: true });
                        stream.write_u16(u16::try_from(answer.len()).unwrap()).await.unwrap();
                        stream.write_all(&answer).await.unwrap();
                    }
                });
            }
        });
        let server = NameServerConfig::new(Ipv4Addr::LOCALHOST.into(), true, vec![by_udp, by_tcp]);
        let config = ResolverConfig::from_parts(None, vec![], vec![server]);
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        let options = builder.options_mut();
        (options.cache_size, options.attempts, options.timeout) = (0, 1, Duration::from_millis(500));
        Resolver(builder.build().unwrap())
    }
}

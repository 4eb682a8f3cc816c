//! The cluster's DNS: what a name of the cluster domain means now.
//!
//! Pure but for [`serve`], which answers on a UDP and a TCP socket. Names outside the cluster domain do not exist: there
//! is no outside.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, SOA, SRV};
use hickory_proto::rr::{Name as DnsName, RData, Record, RecordType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;

use crate::services::ServiceView;

/// Seconds, also for answers that a name does not exist. CoreDNS says 5 by default; pods here come and go faster.
const TTL: u32 = 1;
/// Bytes of an answer over UDP to a client that announces nothing (RFC 1035 section 4.2.1).
const UDP_BYTES: usize = 512;
/// TCP connections served at a time; more wait.
const TCP_CONNECTIONS: usize = 256;
/// How long a client may stay silent on a TCP connection.
const TCP_IDLE: Duration = Duration::from_secs(10);

/// The names of one cluster domain.
#[derive(Clone, Debug, Default)]
pub struct Zone {
    /// Without dots at either end, such as `cluster.local`.
    pub domain: String,
    pub services: Vec<ServiceView>,
    /// Addresses of every pod, with its namespace.
    pub pods: Vec<(String, IpAddr)>,
}

/// What a name has of a type.
#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    /// The name exists, perhaps with other types only.
    exists: bool,
    answers: Vec<(String, RData)>,
    additional: Vec<(String, RData)>,
}

impl Zone {
    /// Answers one message, given and returned as bytes. `None` where there is nothing sensible to say.
    pub fn answer(&self, query: &[u8], limit: Option<usize>) -> Option<Vec<u8>> {
        let query = Message::from_vec(query).ok()?;
        if query.metadata.message_type != MessageType::Query {
            return None;
        }
        let mut response = Message::response(query.metadata.id, query.metadata.op_code);
        response.metadata.recursion_desired = query.metadata.recursion_desired;
        response.metadata.recursion_available = true;
        response.metadata.authoritative = true;
        if let Some(edns) = &query.edns {
            let mut ours = Edns::new();
            ours.set_max_payload(edns.max_payload());
            response.set_edns(ours);
        }
        let [question] = query.queries.as_slice() else {
            response.metadata.response_code = ResponseCode::FormErr;
            return response.to_vec().ok();
        };
        if query.metadata.op_code != OpCode::Query {
            response.metadata.response_code = ResponseCode::NotImp;
            return response.to_vec().ok();
        }
        response.add_query(question.clone());
        let asked = question.name().to_ascii().trim_end_matches('.').to_ascii_lowercase();
        let found = self.find(&asked, question.query_type());
        if !found.exists {
            response.metadata.response_code = ResponseCode::NXDomain;
        }
        if found.answers.is_empty() {
            response.add_authority(self.soa()?);
        }
        response.add_answers(found.answers.into_iter().filter_map(record));
        response.add_additionals(found.additional.into_iter().filter_map(record));
        let bytes = response.to_vec().ok()?;
        let announced = query.edns.as_ref().map_or(UDP_BYTES, |edns| usize::from(edns.max_payload()));
        match limit {
            Some(least) if bytes.len() > announced.max(least) => response.truncate().to_vec().ok(),
            _ => Some(bytes),
        }
    }

    fn soa(&self) -> Option<Record> {
        let name = |text: &str| DnsName::from_ascii(format!("{text}.{}.", self.domain)).ok();
        let soa = SOA::new(name("ns.dns")?, name("hostmaster")?, 1, 7200, 1800, 86400, TTL);
        record((self.domain.clone(), RData::SOA(soa)))
    }

    fn find(&self, asked: &str, kind: RecordType) -> Found {
        let inside = asked.strip_suffix(self.domain.as_str()).and_then(|name| name.strip_suffix('.'));
        let Some(inside) = inside else { return Found::default() };
        let labels: Vec<&str> = inside.split('.').collect();
        match labels.as_slice() {
            [address, namespace, "pod"] => self.pod(asked, address, namespace, kind),
            [service, namespace, "svc"] => self.service(asked, service, namespace, kind),
            [endpoint, service, namespace, "svc"] => {
                self.endpoint(asked, endpoint, (service, namespace), kind)
            }
            [port, protocol, service, namespace, "svc"] => {
                self.port(asked, (port, protocol), (service, namespace), kind)
            }
            _ => Found::default(),
        }
    }

    fn service_of(&self, service: &str, namespace: &str) -> Option<&ServiceView> {
        self.services.iter().find(|view| view.name.name == service && view.name.namespace == namespace)
    }

    fn pod(&self, asked: &str, address: &str, namespace: &str, kind: RecordType) -> Found {
        let ip =
            self.pods.iter().find(|(of, ip)| of == namespace && dashed(*ip) == address).map(|(_, ip)| *ip);
        Found { exists: ip.is_some(), answers: addresses(asked, ip, kind), additional: Vec::new() }
    }

    fn service(&self, asked: &str, service: &str, namespace: &str, kind: RecordType) -> Found {
        let Some(view) = self.service_of(service, namespace) else { return Found::default() };
        if kind == RecordType::SRV {
            // Contract 3.0: on the bare name every port is returned.
            return self.targets(asked, view, |_, _| true);
        }
        let ips = service_ips(view);
        Found { exists: !ips.is_empty(), answers: addresses(asked, ips, kind), additional: Vec::new() }
    }

    fn endpoint(
        &self,
        asked: &str,
        label: &str,
        (service, namespace): (&str, &str),
        kind: RecordType,
    ) -> Found {
        let Some(view) = self.service_of(service, namespace) else { return Found::default() };
        let ip = view.cluster_ips.is_empty().then(|| service_ips(view)).into_iter().flatten();
        let ip = ip.into_iter().find(|ip| dashed(*ip) == label);
        Found { exists: ip.is_some(), answers: addresses(asked, ip, kind), additional: Vec::new() }
    }

    fn port(
        &self,
        asked: &str,
        port: (&str, &str),
        (service, namespace): (&str, &str),
        kind: RecordType,
    ) -> Found {
        let Some(view) = self.service_of(service, namespace) else { return Found::default() };
        let (Some(name), Some(protocol)) = (port.0.strip_prefix('_'), port.1.strip_prefix('_')) else {
            return Found::default();
        };
        let mut found = self.targets(asked, view, |of, over| of == name && over == protocol);
        if kind != RecordType::SRV {
            found.answers.clear();
            found.additional.clear();
        }
        found
    }

    /// SRV records: of a headless Service its endpoints by name, of another the Service's own name.
    fn targets(&self, asked: &str, view: &ServiceView, wanted: impl Fn(&str, &str) -> bool) -> Found {
        let host = format!("{}.{}.svc.{}", view.name.name, view.name.namespace, self.domain);
        let mut found = Found::default();
        for port in view.ports.iter().filter(|port| wanted(&port.name, port.protocol)) {
            if view.cluster_ips.is_empty() {
                for endpoint in &port.endpoints {
                    let target = format!("{}.{host}", dashed(endpoint.ip()));
                    found.additional.push((target.clone(), address(endpoint.ip())));
                    found.answers.extend(srv(asked, endpoint.port(), &target));
                }
            } else {
                found.answers.extend(srv(asked, port.port, &host));
                found.additional.extend(view.cluster_ips.iter().map(|ip| (host.clone(), address(*ip))));
            }
        }
        found.exists = !found.answers.is_empty();
        found
    }
}

fn srv(asked: &str, port: u16, target: &str) -> Option<(String, RData)> {
    let target = DnsName::from_ascii(format!("{target}.")).ok()?;
    Some((asked.to_owned(), RData::SRV(SRV::new(0, 100, port, target))))
}

/// A ClusterIP Service has its addresses, a headless one those of its endpoints.
fn service_ips(view: &ServiceView) -> BTreeSet<IpAddr> {
    if view.cluster_ips.is_empty() {
        view.ports.iter().flat_map(|port| port.endpoints.iter().map(SocketAddr::ip)).collect()
    } else {
        view.cluster_ips.iter().copied().collect()
    }
}

/// `10-1-2-3`, `fd00--2`: how an address is written in a DNS label.
fn dashed(ip: IpAddr) -> String {
    ip.to_string().replace(['.', ':'], "-")
}

fn address(ip: IpAddr) -> RData {
    match ip {
        IpAddr::V4(ip) => RData::A(A(ip)),
        IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
    }
}

fn addresses(asked: &str, ips: impl IntoIterator<Item = IpAddr>, kind: RecordType) -> Vec<(String, RData)> {
    let data = ips.into_iter().map(address);
    data.filter(|data| data.record_type() == kind).map(|data| (asked.to_owned(), data)).collect()
}

fn record((name, data): (String, RData)) -> Option<Record> {
    let name = DnsName::from_ascii(format!("{name}.")).ok()?;
    Some(Record::from_rdata(name, TTL, data))
}

/// Answers on both sockets until dropped. `zone` gives the zone as it is now.
pub async fn serve(udp: UdpSocket, tcp: TcpListener, zone: impl Fn() -> Arc<Zone> + Clone) {
    let datagrams = async {
        let mut buffer = vec![0; 4096];
        loop {
            // A client that is gone shows up as an error of the next receive: nothing to do about it.
            let Ok((size, client)) = udp.recv_from(&mut buffer).await else { continue };
            let query = buffer.get(..size).unwrap_or_default();
            if let Some(answer) = zone().answer(query, Some(UDP_BYTES)) {
                let _ = udp.send_to(&answer, client).await;
            }
        }
    };
    let connections = async {
        let room = Arc::new(Semaphore::new(TCP_CONNECTIONS));
        let mut serving = tokio::task::JoinSet::new();
        loop {
            while serving.try_join_next().is_some() {}
            let Ok(permit) = room.clone().acquire_owned().await else { return };
            let Ok((stream, _)) = tcp.accept().await else { continue };
            let now = zone();
            serving.spawn(async move {
                let _ = tokio::time::timeout(TCP_IDLE, connection(stream, &now)).await;
                drop(permit);
            });
        }
    };
    tokio::join!(datagrams, connections);
}

async fn connection(mut stream: TcpStream, zone: &Zone) -> std::io::Result<()> {
    loop {
        let mut query = vec![0; usize::from(stream.read_u16().await?)];
        stream.read_exact(&mut query).await?;
        let Some(answer) = zone.answer(&query, None) else { return Ok(()) };
        let Ok(size) = u16::try_from(answer.len()) else { return Ok(()) };
        stream.write_u16(size).await?;
        stream.write_all(&answer).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::PortView;
    use crate::world::Name;
    use hickory_proto::op::Query;

    #[test]
    fn a_service_has_its_cluster_ip() {
        check("web.shop.svc.cluster.local.", RecordType::A, &["10.96.0.1"]);
        check("WEB.shop.svc.Cluster.local.", RecordType::A, &["10.96.0.1"]);
    }

    #[test]
    fn a_headless_service_has_the_addresses_of_its_pods() {
        check("db.shop.svc.cluster.local.", RecordType::A, &["10.1.2.3", "10.1.2.4"]);
        check("10-1-2-4.db.shop.svc.cluster.local.", RecordType::A, &["10.1.2.4"]);
    }

    #[test]
    fn an_srv_query_on_the_bare_name_returns_every_endpoint() {
        check(
            "db.shop.svc.cluster.local.",
            RecordType::SRV,
            &[
                "0 100 5432 10-1-2-3.db.shop.svc.cluster.local.",
                "0 100 5432 10-1-2-4.db.shop.svc.cluster.local.",
            ],
        );
    }

    #[test]
    fn an_srv_query_for_a_port_names_the_service() {
        let answer = ["0 100 80 web.shop.svc.cluster.local."];
        check("_http._tcp.web.shop.svc.cluster.local.", RecordType::SRV, &answer);
    }

    #[test]
    fn a_pod_has_a_name_made_of_its_address() {
        check("10-1-2-3.shop.pod.cluster.local.", RecordType::A, &["10.1.2.3"]);
    }

    #[test]
    fn a_name_without_that_type_exists_and_an_unknown_name_does_not() {
        assert_eq!(
            ask("web.shop.svc.cluster.local.", RecordType::AAAA).metadata.response_code,
            ResponseCode::NoError
        );
        for unknown in ["none.shop.svc.cluster.local.", "web.shop.svc.cluster.local.shop.", "example.com."] {
            assert_eq!(
                ask(unknown, RecordType::A).metadata.response_code,
                ResponseCode::NXDomain,
                "{unknown}"
            );
        }
    }

    #[test]
    fn garbage_is_not_answered() {
        assert!(zone().answer(&[0; 11], Some(UDP_BYTES)).is_none());
    }

    #[test]
    fn a_long_answer_over_udp_is_truncated() {
        let mut zone = zone();
        zone.services[1].ports[0].endpoints =
            (0..200).map(|n| SocketAddr::from(([10, 1, 0, n], 1))).collect();
        let query = query("db.shop.svc.cluster.local.", RecordType::A);
        let short = Message::from_vec(&zone.answer(&query, Some(UDP_BYTES)).unwrap()).unwrap();
        assert!(short.metadata.truncation);
        let long = Message::from_vec(&zone.answer(&query, None).unwrap()).unwrap();
        assert_eq!(long.answers.len(), 200);
    }

    #[track_caller]
    fn check(name: &str, kind: RecordType, expected: &[&str]) {
        let found: Vec<String> =
            ask(name, kind).answers.iter().map(|record| record.data.to_string()).collect();
        assert_eq!(found, expected, "{name}");
    }

    fn ask(name: &str, kind: RecordType) -> Message {
        Message::from_vec(&zone().answer(&query(name, kind), None).unwrap()).unwrap()
    }

    fn query(name: &str, kind: RecordType) -> Vec<u8> {
        let mut message = Message::query();
        message.add_query(Query::query(DnsName::from_ascii(name).unwrap(), kind));
        message.to_vec().unwrap()
    }

    fn zone() -> Zone {
        let port = |name: &str, port, endpoints: &[&str]| PortView {
            name: name.into(),
            protocol: "tcp",
            port,
            endpoints: endpoints.iter().map(|endpoint| endpoint.parse().unwrap()).collect(),
        };
        Zone {
            domain: "cluster.local".into(),
            services: vec![
                ServiceView {
                    name: Name::new("shop", "web"),
                    cluster_ips: vec!["10.96.0.1".parse().unwrap()],
                    ports: vec![port("http", 80, &["10.1.2.3:8080"])],
                },
                ServiceView {
                    name: Name::new("shop", "db"),
                    cluster_ips: Vec::new(),
                    ports: vec![port("", 5432, &["10.1.2.3:5432", "10.1.2.4:5432"])],
                },
            ],
            pods: vec![("shop".into(), "10.1.2.3".parse().unwrap())],
        }
    }
}

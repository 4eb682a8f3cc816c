//! Pure. Reads what a request asks about: `10.1.2.3:80`, `web.shop.svc.cluster.local:80`.

use super::Refusal;
use crate::resources::Name;
use std::net::{IpAddr, SocketAddr};

/// What a request asks about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// An address.
    Addr(SocketAddr),
    /// A port of a Service by its DNS name.
    Service {
        /// The Service.
        name: Name,
        /// One endpoint of it, if the name had a further label in front: `web-0.web.shop.svc.cluster.local`.
        host: Option<String>,
        /// The port; 80 if the request named none.
        port: u16,
    },
}

impl Target {
    /// Reads `<ip>:<port>` or `[<host>.]<svc>.<ns>.svc[.<domain>][:<port>]`, in any case, with or without a final dot.
    pub fn parse(text: &str, cluster_domain: &str) -> Result<Self, Refusal> {
        if let Ok(addr) = text.parse::<SocketAddr>() {
            return if addr.port() == 0 { Err(invalid(text, "port 0")) } else { Ok(Self::Addr(addr)) };
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) => {
                let port = port.parse().ok().filter(|port| *port > 0);
                (host, port.ok_or_else(|| invalid(text, "the port is not in 1 to 65535"))?)
            }
            None => (text, 80),
        };
        if let Ok(ip) = host.trim_matches(['[', ']']).parse::<IpAddr>() {
            return Ok(Self::Addr(SocketAddr::new(ip, port)));
        }
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        let cluster_domain = cluster_domain.to_ascii_lowercase();
        let local = host
            .strip_suffix(&format!(".svc.{cluster_domain}"))
            .or_else(|| host.strip_suffix(".svc"))
            .ok_or_else(|| invalid(text, &format!("no Service of {cluster_domain}")))?;
        let labels: Vec<&str> = local.split('.').collect();
        if labels.iter().any(|label| !is_label(label)) {
            return Err(invalid(text, "a label is no DNS label"));
        }
        match labels.as_slice() {
            [name, namespace] => Ok(Self::Service { name: Name::new(*namespace, *name), host: None, port }),
            [host, name, namespace] => {
                Ok(Self::Service { name: Name::new(*namespace, *name), host: Some((*host).to_owned()), port })
            }
            _ => Err(invalid(text, "not of the form <service>.<namespace>.svc.<domain>")),
        }
    }
}

fn is_label(label: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&label.len()) && label.bytes().all(allowed)
}

fn invalid(text: &str, reason: &str) -> Refusal {
    // The text is a stranger's: what is repeated of it is bounded.
    let shown: String = text.chars().take(300).collect();
    Refusal::Invalid(format!("{shown:?} cannot be looked up: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_service() {
        named("web.shop.svc.cluster.local:8080", None, 8080);
    }

    #[test]
    fn without_a_port_it_is_80() {
        named("web.shop.svc.cluster.local", None, 80);
    }

    #[test]
    fn case_and_a_final_dot_do_not_matter() {
        named("Web.Shop.SVC.Cluster.Local.:80", None, 80);
    }

    #[test]
    fn without_the_domain() {
        named("web.shop.svc:80", None, 80);
    }

    #[test]
    fn one_endpoint_of_a_headless_service() {
        named("web-0.web.shop.svc.cluster.local:80", Some("web-0"), 80);
    }

    #[test]
    fn addresses() {
        for text in ["10.1.2.3:80", "[fd00::1]:80"] {
            assert_eq!(Target::parse(text, "cluster.local"), Ok(Target::Addr(text.parse().unwrap())));
        }
    }

    #[test]
    fn an_address_without_a_port_is_80() {
        assert_eq!(
            Target::parse("10.1.2.3", "cluster.local"),
            Ok(Target::Addr("10.1.2.3:80".parse().unwrap()))
        );
    }

    #[test]
    fn what_is_no_service_is_refused() {
        for text in [
            "",
            "example.com:80",
            "web.shop.svc.cluster.local:0",
            "web.shop.svc.cluster.local:65536",
            "web.shop.svc.cluster.local:http",
            "shop.svc.cluster.local:80",
            "a.b.web.shop.svc.cluster.local:80",
            "we_b.shop.svc.cluster.local:80",
            ".shop.svc.cluster.local:80",
            "10.1.2.3:0",
        ] {
            let parsed = Target::parse(text, "cluster.local");
            assert!(matches!(parsed, Err(Refusal::Invalid(_))), "{text}: {parsed:?}");
        }
    }

    #[track_caller]
    fn named(text: &str, host: Option<&str>, port: u16) {
        let expected =
            Target::Service { name: Name::new("shop", "web"), host: host.map(str::to_owned), port };
        assert_eq!(Target::parse(text, "cluster.local"), Ok(expected));
    }
}

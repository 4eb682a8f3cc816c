//! The Services that a pod belongs to, for a connection to the pod's own address. Design, "Pod IPs".

use super::OutboundPolicy;
use crate::profile::Profile;
use alloc::sync::Arc;

/// A Service that a pod belongs to by one of its ports, and how traffic to the pod goes by it.
#[derive(Clone, Debug, PartialEq)]
pub struct Membership {
    /// `<svc>.<ns>.svc.<domain>:<port>`.
    pub service: Arc<str>,
    /// The port in that.
    pub port: u16,
    /// The Service's policy, with the pod in the place of the Service's endpoints.
    pub policy: OutboundPolicy,
    /// The Service's ServiceProfile, with the pod as its endpoint.
    pub profile: Option<Arc<Profile>>,
}

/// Which of these Services (`<svc>.<ns>.svc.<domain>:<port>`) a Host, `:authority` or SNI names, by any of the names that
/// the cluster's DNS has for it: `web`, `web.shop`, `web.shop.svc`, the whole, with a dot at the end or not, in any case.
/// Of a Service that is there with several ports it is the named one; without a port, or with one that is not there, the
/// first. `None`: it names none of them. Whoever names something else widens nothing.
pub fn named<S: AsRef<str>>(services: impl Iterator<Item = S>, authority: &str) -> Option<usize> {
    let (host, port) = split(authority);
    let host = host.strip_suffix('.').unwrap_or(host);
    let is_named = |service: &str| {
        let name = split(service).0;
        let named = name.get(..host.len()).is_some_and(|start| start.eq_ignore_ascii_case(host));
        // Whole labels only, and never less than the Service's own.
        !host.is_empty() && named && matches!(name.as_bytes().get(host.len()), None | Some(b'.'))
    };
    let mut first = None;
    for (index, service) in services.enumerate().filter(|(_, service)| is_named(service.as_ref())) {
        if port.is_some() && split(service.as_ref()).1 == port {
            return Some(index);
        }
        first = first.or(Some(index));
    }
    first
}

/// Host and port; an address in brackets is no name of a Service and stays as it is.
fn split(authority: &str) -> (&str, Option<u16>) {
    match authority.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().ok()),
        None => (authority, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{format, string::String};
    use proptest::prelude::*;

    const SERVICES: [&str; 4] = [
        "web.shop.svc.cluster.local:80",
        "web.shop.svc.cluster.local:8080",
        "web-canary.shop.svc.cluster.local:80",
        "shop.shop.svc.cluster.local:80",
    ];

    #[test]
    fn every_name_of_the_clusters_dns_names_its_service() {
        for name in ["web", "web.shop", "web.shop.svc", "web.shop.svc.cluster", "web.shop.svc.cluster.local"]
        {
            check(name, Some(0));
            check(&format!("{name}."), Some(0));
            check(&name.to_ascii_uppercase(), Some(0));
        }
        check("web-canary", Some(2));
        check("shop", Some(3));
        check("shop.shop", Some(3));
    }

    #[test]
    fn a_port_chooses_among_those_of_a_service_and_nothing_else() {
        check("web:8080", Some(1));
        check("web.shop.svc.cluster.local.:80", Some(0));
        check("web:443", Some(0));
        check("web-canary:8080", Some(2));
    }

    #[test]
    fn other_names_name_nobody() {
        for name in [
            "",
            ".",
            ":80",
            "example.org",
            "we",
            "web.sho",
            "web.other",
            "eb",
            "web.shop.svc.cluster.local.x",
        ] {
            check(name, None);
        }
        for address in ["10.0.0.1", "10.0.0.1:80", "[fd00::1]:80", "[web]"] {
            check(address, None);
        }
    }

    #[track_caller]
    fn check(authority: &str, expected: Option<usize>) {
        assert_eq!(named(SERVICES.into_iter(), authority), expected, "{authority:?}");
    }

    proptest! {
        /// Whatever is named, it is one whose name begins with it, in whole labels.
        #[test]
        fn nothing_is_widened(authority in "[a-z.:0-9\\[\\]-]{0,24}|web[a-z.:0-9-]{0,8}") {
            if let Some(index) = named(SERVICES.into_iter(), &authority) {
                let host = split(&authority).0.trim_end_matches('.');
                let labels: alloc::vec::Vec<String> = host.split('.').map(String::from).collect();
                let all: alloc::vec::Vec<&str> = split(SERVICES[index]).0.split('.').collect();
                prop_assert!(labels.len() <= all.len() && labels.iter().zip(&all).all(|(a, b)| a == b));
            }
        }
    }
}

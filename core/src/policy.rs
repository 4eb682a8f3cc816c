//! May this client do this? Inbound policy of one port, as Linkerd's `WatchPort` states it. Contract 3.4.

mod authorizations;
mod defaults;
mod refused;

pub use self::{
    authorizations::{Authentication, Authorization, Authorizations},
    defaults::DefaultPolicy,
    refused::Refused,
};
use crate::{
    identity::Identity,
    rate::RateLimits,
    route::{Filter, HttpRoute, RequestView, Table, TwoWays},
};
use alloc::{boxed::Box, sync::Arc, vec::Vec};
use core::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};
use once_cell::race::OnceBox;

mod outbound;

pub use outbound::OutboundDefault;

/// Group, kind and name of the resource behind a decision, as metric labels print them.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceRef {
    /// API group; empty for defaults.
    pub group: Arc<str>,
    /// Kind; `default` for built-in ones.
    pub kind: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// Namespace; empty when not stated.
    pub namespace: Arc<str>,
    /// Port; 0 when not stated.
    pub port: u16,
    /// Section; empty when not stated.
    pub section: Arc<str>,
}

impl ResourceRef {
    /// A built-in resource: group "", kind `default`.
    pub fn default_kind(name: &str) -> Self {
        Self { kind: "default".into(), name: name.into(), ..Self::default() }
    }

    /// Is it the built-in one of this name?
    pub fn is_default(&self, name: &str) -> bool {
        &*self.kind == "default" && &*self.name == name
    }
}

/// The policy of one port.
#[derive(Clone, Debug, PartialEq)]
pub struct ServerPolicy {
    /// The Server resource or default.
    pub meta: Arc<ResourceRef>,
    /// What the port speaks.
    pub protocol: ServerProtocol,
    /// Who may connect, in order.
    pub authorizations: Authorizations,
    /// How often clients may ask, where that is limited.
    pub rate_limits: Option<Arc<RateLimits>>,
}

/// What a port speaks, by declaration.
#[derive(Clone, Debug, PartialEq)]
pub enum ServerProtocol {
    /// Unknown: look at the first bytes, for so long.
    Detect {
        /// Bound of detection.
        timeout: Duration,
        /// HTTP routes when it turns out to be HTTP.
        routes: Vec<InboundRoute>,
    },
    /// HTTP/1.x.
    Http1 {
        /// Its routes.
        routes: Vec<InboundRoute>,
    },
    /// HTTP/2.
    Http2 {
        /// Its routes.
        routes: Vec<InboundRoute>,
    },
    /// gRPC over HTTP/2.
    Grpc {
        /// Its routes.
        routes: Vec<InboundRoute>,
    },
    /// Not looked at at all, not even for TLS.
    Opaque,
    /// The application's own TLS.
    Tls,
    /// The policy could not be understood: every connection and request fails with 500 and this reason.
    Invalid(Arc<str>),
}

/// A route with the clients that may use it.
#[derive(Clone, Debug, PartialEq)]
pub struct InboundRoute {
    /// What it matches.
    pub route: HttpRoute,
    /// What is done with the requests of each rule (same indices as `route.rules`), in order.
    pub filters: Vec<Vec<Filter>>,
    /// Who may use it, tried before the server's.
    pub authorizations: Authorizations,
}

/// What is known of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// No mesh TLS.
    Plain,
    /// TLS meant for the application (foreign SNI).
    Passthrough {
        /// The SNI.
        sni: Option<Arc<str>>,
    },
    /// mTLS terminated here.
    Tls {
        /// The client's identity, if it presented a certificate.
        identity: Option<Identity>,
    },
}

impl Peer {
    /// The authenticated identity.
    pub fn identity(&self) -> Option<&Identity> {
        match self {
            Self::Tls { identity } => identity.as_ref(),
            Self::Plain | Self::Passthrough { .. } => None,
        }
    }
}

/// Why a client is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denial {
    /// No authorization admits it.
    Unauthorized,
    /// No route matches the request.
    NoRoute,
    /// The path can be read in two ways, which take different routes.
    TwoPaths,
    /// The declared protocol carries no raw TCP, or no HTTP.
    WrongProtocol,
    /// The policy itself is invalid.
    Invalid(Arc<str>),
}

/// May this client exchange raw bytes with this port? `Http1`, `Http2` and `Grpc` policies never allow it. An
/// implicit unauthenticated authorization named `localhost` admits exactly 127.0.0.1 and ::1. Contract 3.4.
pub fn authorize_tcp(policy: &ServerPolicy, client: IpAddr, peer: &Peer) -> Result<Arc<ResourceRef>, Denial> {
    match &policy.protocol {
        ServerProtocol::Detect { .. } | ServerProtocol::Opaque | ServerProtocol::Tls => {
            admitting([&policy.authorizations], client, peer).cloned().ok_or(Denial::Unauthorized)
        }
        ServerProtocol::Http1 { .. } | ServerProtocol::Http2 { .. } | ServerProtocol::Grpc { .. } => {
            Err(Denial::WrongProtocol)
        }
        ServerProtocol::Invalid(reason) => Err(Denial::Invalid(reason.clone())),
    }
}

/// Would this client be admitted to raw TCP if it had no identity at all? Asked before a speculative dial.
pub fn admits_anonymous_tcp(policy: &ServerPolicy, client: IpAddr) -> bool {
    authorize_tcp(policy, client, &Peer::Plain).is_ok()
}

/// A request that may go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permit {
    /// Index of the route in the policy's routes.
    pub route: usize,
    /// Index of the rule in that route.
    pub rule: usize,
    /// The authorization that admitted it.
    pub authorization: Arc<ResourceRef>,
}

/// A request that may not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The matched route, if any.
    pub route: Option<usize>,
    /// Why.
    pub denial: Denial,
}

/// May this client make this request? The best route, then its own authorizations followed by the server's and the
/// implicit `localhost` of [`authorize_tcp`]; the first that admits the client names the permit.
///
/// A probe's route is a route like any other: an exact GET path, which a query does not change. On `Opaque` and `Tls`
/// ports, which have no routes, the denial is [`Denial::WrongProtocol`], answered as a missing route is (contract 1.5).
/// `table` is the policy's [`table`].
pub fn authorize_http<R: RequestView + ?Sized>(
    policy: &ServerPolicy,
    table: &Table,
    client: IpAddr,
    peer: &Peer,
    request: &R,
) -> Result<Permit, Refusal> {
    let routes = match &policy.protocol {
        ServerProtocol::Detect { routes, .. }
        | ServerProtocol::Http1 { routes }
        | ServerProtocol::Http2 { routes }
        | ServerProtocol::Grpc { routes } => routes,
        ServerProtocol::Opaque | ServerProtocol::Tls => {
            return Err(Refusal { route: None, denial: Denial::WrongProtocol });
        }
        ServerProtocol::Invalid(reason) => {
            return Err(Refusal { route: None, denial: Denial::Invalid(reason.clone()) });
        }
    };
    let chosen = match table.select(request) {
        Ok(Some(chosen)) => chosen,
        Ok(None) => return Err(Refusal { route: None, denial: Denial::NoRoute }),
        // Whoever may use one of them might use the other.
        Err(TwoWays) => return Err(Refusal { route: None, denial: Denial::TwoPaths }),
    };
    let own = routes.get(chosen.route).map(|inbound| &inbound.authorizations);
    match admitting(own.into_iter().chain([&policy.authorizations]), client, peer) {
        Some(meta) => Ok(Permit { route: chosen.route, rule: chosen.rule, authorization: meta.clone() }),
        None => Err(Refusal { route: Some(chosen.route), denial: Denial::Unauthorized }),
    }
}

/// The first authorization that admits the client; the implicit `localhost` comes last.
fn admitting<'a>(
    lists: impl IntoIterator<Item = &'a Authorizations>,
    client: IpAddr,
    peer: &Peer,
) -> Option<&'a Arc<ResourceRef>> {
    lists
        .into_iter()
        .find_map(|authorizations| authorizations.admitting(client, peer))
        .map(|authorization| &authorization.meta)
        .or_else(|| is_localhost(client).then(localhost))
}

/// Exactly 127.0.0.1 and ::1, not the rest of 127.0.0.0/8 and not the pod's own addresses.
fn is_localhost(client: IpAddr) -> bool {
    match client.to_canonical() {
        IpAddr::V4(addr) => addr == Ipv4Addr::LOCALHOST,
        IpAddr::V6(addr) => addr == Ipv6Addr::LOCALHOST,
    }
}

/// Made once and shared: a request must not allocate for its permit.
fn localhost() -> &'static Arc<ResourceRef> {
    static META: OnceBox<Arc<ResourceRef>> = OnceBox::new();
    META.get_or_init(|| Box::new(Arc::new(ResourceRef::default_kind("localhost"))))
}

/// The routes of a policy as requests are looked up in them.
pub fn table(policy: &ServerPolicy) -> Table {
    Table::new(routes(policy).iter().map(|inbound| inbound.route.clone()).collect())
}

/// The routes of a policy that carries HTTP.
pub fn routes(policy: &ServerPolicy) -> &[InboundRoute] {
    match &policy.protocol {
        ServerProtocol::Detect { routes, .. }
        | ServerProtocol::Http1 { routes }
        | ServerProtocol::Http2 { routes }
        | ServerProtocol::Grpc { routes } => routes,
        ServerProtocol::Opaque | ServerProtocol::Tls | ServerProtocol::Invalid(_) => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::{
        defaults::{catch_all, everywhere},
        *,
    };
    use crate::matching::{NetworkMatch, SuffixMatch};
    use crate::route::{HostMatch, HttpMatch, HttpRule, PathMatch, normal};
    use alloc::{
        string::{String, ToString},
        vec,
    };
    use proptest::prelude::*;

    const WEB: &str = "web.prod.serviceaccount.identity.remora.cluster.local";
    const OUTSIDE: &str = "192.0.2.1";
    const INSIDE: &str = "10.1.2.3";

    #[test]
    fn without_authorizations_nobody_is_admitted() {
        tcp(&opaque(vec![]), INSIDE, &Peer::Plain, Err(Denial::Unauthorized));
        tcp(&opaque(vec![]), INSIDE, &meshed(WEB), Err(Denial::Unauthorized));
    }

    #[test]
    fn an_authorization_without_networks_admits_nobody() {
        let nowhere = Authorization { networks: vec![], ..allow("a", Authentication::Unauthenticated) };
        tcp(&opaque(vec![nowhere]), INSIDE, &Peer::Plain, Err(Denial::Unauthorized));
    }

    #[test]
    fn unauthenticated_admits_every_peer() {
        let policy = opaque(vec![allow("a", Authentication::Unauthenticated)]);
        tcp(&policy, INSIDE, &Peer::Plain, Ok("a"));
        tcp(&policy, INSIDE, &Peer::Passthrough { sni: None }, Ok("a"));
        tcp(&policy, INSIDE, &Peer::Tls { identity: None }, Ok("a"));
        tcp(&policy, OUTSIDE, &Peer::Plain, Err(Denial::Unauthorized));
    }

    #[test]
    fn mesh_tls_admits_those_without_a_certificate_too_but_no_foreign_tls() {
        let policy = opaque(vec![allow("a", Authentication::TlsUnauthenticated)]);
        tcp(&policy, INSIDE, &meshed(WEB), Ok("a"));
        tcp(&policy, INSIDE, &Peer::Tls { identity: None }, Ok("a"));
        tcp(&policy, INSIDE, &Peer::Passthrough { sni: Some(WEB.into()) }, Err(Denial::Unauthorized));
        tcp(&policy, INSIDE, &Peer::Plain, Err(Denial::Unauthorized));
    }

    #[test]
    fn identities_are_compared_exactly() {
        let policy = opaque(vec![allow("a", identities(&[WEB], &[]))]);
        tcp(&policy, INSIDE, &meshed(WEB), Ok("a"));
        tcp(
            &policy,
            INSIDE,
            &meshed("x.web.prod.serviceaccount.identity.remora.cluster.local"),
            Err(Denial::Unauthorized),
        );
        tcp(&policy, INSIDE, &Peer::Tls { identity: None }, Err(Denial::Unauthorized));
        tcp(&policy, INSIDE, &Peer::Plain, Err(Denial::Unauthorized));
    }

    #[test]
    fn suffixes_admit_a_namespace() {
        let suffix = "prod.serviceaccount.identity.remora.cluster.local";
        let policy = opaque(vec![allow("a", identities(&[], &[suffix]))]);
        tcp(&policy, INSIDE, &meshed(WEB), Ok("a"));
        tcp(
            &policy,
            INSIDE,
            &meshed("web.test.serviceaccount.identity.remora.cluster.local"),
            Err(Denial::Unauthorized),
        );
    }

    #[test]
    fn the_first_that_admits_names_the_permit() {
        let policy = opaque(vec![
            allow("narrow", identities(&[WEB], &[])),
            allow("wide", Authentication::Unauthenticated),
        ]);
        tcp(&policy, INSIDE, &meshed(WEB), Ok("narrow"));
        tcp(&policy, INSIDE, &Peer::Plain, Ok("wide"));
    }

    #[test]
    fn localhost_is_exactly_two_addresses() {
        for (client, expected) in [
            ("127.0.0.1", true),
            ("::1", true),
            ("::ffff:127.0.0.1", true),
            ("127.0.0.2", false),
            ("127.1.0.1", false),
            ("::2", false),
            ("0.0.0.0", false),
            (INSIDE, false),
        ] {
            let expected = if expected { Ok("localhost") } else { Err(Denial::Unauthorized) };
            tcp(&opaque(vec![]), client, &Peer::Plain, expected.clone());
            http(
                &detect(vec![route("r", "/", vec![])]),
                client,
                &Peer::Plain,
                "/",
                expected.map_err(|e| (Some(0), e)),
            );
        }
    }

    #[test]
    fn localhost_comes_after_the_written_authorizations() {
        let everybody = DefaultPolicy::AllUnauthenticated.server_policy(&[], Duration::ZERO, true);
        tcp(&everybody, "127.0.0.1", &Peer::Plain, Ok("all-unauthenticated"));
    }

    #[test]
    fn declared_http_carries_no_raw_tcp_not_even_from_localhost() {
        let routes = vec![route("r", "/", vec![])];
        for protocol in [
            ServerProtocol::Http1 { routes: routes.clone() },
            ServerProtocol::Http2 { routes: routes.clone() },
            ServerProtocol::Grpc { routes },
        ] {
            let policy =
                ServerPolicy { protocol, ..opaque(vec![allow("a", Authentication::Unauthenticated)]) };
            tcp(&policy, INSIDE, &meshed(WEB), Err(Denial::WrongProtocol));
            tcp(&policy, "127.0.0.1", &Peer::Plain, Err(Denial::WrongProtocol));
            http(&policy, INSIDE, &meshed(WEB), "/", Ok("a"));
        }
    }

    #[test]
    fn opaque_and_tls_ports_carry_no_http() {
        for protocol in [ServerProtocol::Opaque, ServerProtocol::Tls] {
            let policy =
                ServerPolicy { protocol, ..opaque(vec![allow("a", Authentication::Unauthenticated)]) };
            tcp(&policy, INSIDE, &Peer::Plain, Ok("a"));
            http(&policy, INSIDE, &Peer::Plain, "/", Err((None, Denial::WrongProtocol)));
        }
    }

    #[test]
    fn an_invalid_policy_refuses_everybody_with_its_reason() {
        let protocol = ServerProtocol::Invalid("no timeout".into());
        let policy = ServerPolicy { protocol, ..opaque(vec![allow("a", Authentication::Unauthenticated)]) };
        let denial = Denial::Invalid("no timeout".into());
        tcp(&policy, "127.0.0.1", &meshed(WEB), Err(denial.clone()));
        http(&policy, "127.0.0.1", &meshed(WEB), "/", Err((None, denial)));
    }

    #[test]
    fn a_request_without_a_route_is_told_so_before_it_is_authorized() {
        let policy = detect(vec![route("r", "/a", vec![])]);
        http(&policy, INSIDE, &Peer::Plain, "/b", Err((None, Denial::NoRoute)));
        http(&policy, "127.0.0.1", &Peer::Plain, "/b", Err((None, Denial::NoRoute)));
        http(&policy, INSIDE, &Peer::Plain, "/a", Err((Some(0), Denial::Unauthorized)));
    }

    #[test]
    fn a_routes_authorizations_come_before_the_servers() {
        let routes = vec![route("r", "/", vec![allow("route", identities(&[WEB], &[]))])];
        let policy = ServerPolicy {
            authorizations: vec![allow("server", Authentication::TlsUnauthenticated)].into(),
            ..detect(routes)
        };
        http(&policy, INSIDE, &meshed(WEB), "/", Ok("route"));
        http(&policy, INSIDE, &Peer::Tls { identity: None }, "/", Ok("server"));
        http(&policy, INSIDE, &Peer::Plain, "/", Err((Some(0), Denial::Unauthorized)));
    }

    #[test]
    fn a_route_lends_its_authorizations_to_no_other() {
        let policy = detect(vec![
            route("open", "/open", vec![allow("route", Authentication::Unauthenticated)]),
            route("closed", "/", vec![]),
        ]);
        http(&policy, INSIDE, &Peer::Plain, "/open", Ok("route"));
        http(&policy, INSIDE, &Peer::Plain, "/other", Err((Some(1), Denial::Unauthorized)));
    }

    #[test]
    fn probes_are_admitted_by_their_route_whatever_their_query() {
        let path = PathMatch::Exact("/healthz".into());
        let probe = HttpMatch { path: Some(path), method: Some("GET".into()), ..HttpMatch::default() };
        let everywhere =
            Authorization { networks: everywhere(), ..allow("probe", Authentication::Unauthenticated) };
        let policy = ServerPolicy {
            authorizations: vec![allow("server", Authentication::TlsUnauthenticated)].into(),
            ..detect(vec![matching("probe", probe, vec![everywhere]), catch_all()])
        };
        http(&policy, OUTSIDE, &Peer::Plain, "/healthz", Ok("probe"));
        http(&policy, OUTSIDE, &Peer::Plain, "/healthz?full", Ok("probe"));
        http(&policy, OUTSIDE, &Peer::Plain, "/healthz/", Err((Some(1), Denial::Unauthorized)));
    }

    #[test]
    fn a_detected_port_admits_raw_tcp_by_the_servers_authorizations_only() {
        let policy = detect(vec![route("r", "/", vec![allow("route", Authentication::Unauthenticated)])]);
        tcp(&policy, INSIDE, &Peer::Plain, Err(Denial::Unauthorized));
        assert!(!admits_anonymous_tcp(&policy, INSIDE.parse().unwrap()));
    }

    #[test]
    fn default_policies_are_read_by_name() {
        for policy in DefaultPolicy::ALL {
            assert_eq!(DefaultPolicy::parse(policy.as_str()), Some(policy));
        }
        for name in ["", "allow", "Deny", "all-unauthenticated "] {
            assert_eq!(DefaultPolicy::parse(name), None);
        }
    }

    #[test]
    fn default_policies_admit_what_they_say() {
        use DefaultPolicy::{
            AllAuthenticated, AllUnauthenticated, Audit, ClusterAuthenticated, ClusterUnauthenticated, Deny,
        };
        // Plain from inside, plain from outside, meshed from inside, meshed from outside.
        for (policy, expected) in [
            (AllUnauthenticated, [true, true, true, true]),
            (AllAuthenticated, [false, false, true, true]),
            (ClusterUnauthenticated, [true, false, true, false]),
            (ClusterAuthenticated, [false, false, true, false]),
            (Audit, [true, true, true, true]),
            (Deny, [false, false, false, false]),
        ] {
            let server =
                policy.server_policy(&["10.0.0.0/8".parse().unwrap()], Duration::from_secs(10), false);
            let cases = [
                (INSIDE, Peer::Plain),
                (OUTSIDE, Peer::Plain),
                (INSIDE, meshed(WEB)),
                (OUTSIDE, meshed(WEB)),
            ];
            for ((client, peer), expected) in cases.iter().zip(expected) {
                let expected = if expected { Ok(policy.as_str()) } else { Err(Denial::Unauthorized) };
                tcp(&server, client, peer, expected.clone());
                if policy != Deny {
                    http(&server, client, peer, "/", expected.map_err(|denial| (Some(0), denial)));
                }
            }
        }
    }

    #[test]
    fn authenticated_defaults_want_a_certificate() {
        let server = DefaultPolicy::AllAuthenticated.server_policy(&[], Duration::ZERO, true);
        tcp(&server, INSIDE, &Peer::Tls { identity: None }, Err(Denial::Unauthorized));
    }

    #[test]
    fn a_default_server_is_named_after_its_policy() {
        let timeout = Duration::from_secs(10);
        let server = DefaultPolicy::Audit.server_policy(&[], timeout, false);
        assert_eq!(*server.meta, ResourceRef::default_kind("audit"));
        assert_eq!(server.protocol, ServerProtocol::Detect { timeout, routes: vec![catch_all()] });
        assert_eq!(*routes(&server)[0].route.meta, ResourceRef::default_kind("default"));
    }

    #[test]
    fn deny_and_opaque_ports_are_not_looked_at() {
        for (policy, opaque) in [(DefaultPolicy::Deny, false), (DefaultPolicy::AllUnauthenticated, true)] {
            let server = policy.server_policy(&[], Duration::ZERO, opaque);
            assert_eq!(server.protocol, ServerProtocol::Opaque);
        }
    }

    #[test]
    fn without_cluster_networks_nobody_is_inside() {
        let server = DefaultPolicy::ClusterUnauthenticated.server_policy(&[], Duration::ZERO, true);
        tcp(&server, INSIDE, &meshed(WEB), Err(Denial::Unauthorized));
    }

    /// What an authorization says, written down once more: for the properties below.
    fn model(authorization: &Authorization, client: IpAddr, peer: &Peer) -> bool {
        let inside = authorization.networks.iter().any(|network| {
            network.net.contains(&client) && !network.except.iter().any(|hole| hole.contains(&client))
        });
        let known = match (&authorization.authentication, peer) {
            (Authentication::Unauthenticated, _) | (Authentication::TlsUnauthenticated, Peer::Tls { .. }) => {
                true
            }
            (
                Authentication::TlsAuthenticated { identities, suffixes },
                Peer::Tls { identity: Some(identity) },
            ) => {
                let name = identity.as_str();
                identities.iter().any(|allowed| allowed.as_str() == name)
                    || suffixes
                        .iter()
                        .any(|suffix| name.ends_with(&alloc::format!(".{}", suffix.labels.join("."))))
            }
            _ => false,
        };
        inside && known
    }

    fn authorization() -> impl Strategy<Value = Authorization> {
        let authentication = prop_oneof![
            Just(Authentication::Unauthenticated),
            Just(Authentication::TlsUnauthenticated),
            Just(identities(&["a.x"], &[])),
            Just(identities(&["b.y", "a.y"], &["x"])),
        ];
        let networks =
            prop_oneof![Just(vec![]), Just(vec!["10.0.0.0/8"]), Just(vec!["10.1.0.0/16", "10.2.0.0/16"])];
        (authentication, networks, proptest::bool::ANY).prop_map(|(authentication, networks, hole)| {
            let except = if hole { vec!["10.1.2.0/24".parse().unwrap()] } else { vec![] };
            let network = |net: &&str| NetworkMatch { net: net.parse().unwrap(), except: except.clone() };
            Authorization { networks: networks.iter().map(network).collect(), ..allow("any", authentication) }
        })
    }

    proptest! {
        #[test]
        fn admission_agrees_with_the_model_in_any_order_and_only_grows(
            authorizations in proptest::collection::vec(authorization(), 0..4),
            more in authorization(),
            client in prop_oneof![Just("10.1.2.3"), Just("10.1.3.3"), Just("10.2.0.1"), Just("10.3.0.1"), Just("11.0.0.1")],
            peer in prop_oneof![
                Just(Peer::Plain),
                Just(Peer::Passthrough { sni: Some("a.x".into()) }),
                Just(Peer::Tls { identity: None }),
                Just(meshed("a.x")),
                Just(meshed("a.y")),
                Just(meshed("c.z")),
            ],
        ) {
            let client = client.parse().unwrap();
            let admitted = |authorizations: Vec<Authorization>| {
                let by_tcp = authorize_tcp(&opaque(authorizations.clone()), client, &peer).is_ok();
                let authorizations = authorizations.into();
                let policy = ServerPolicy { authorizations, ..detect(vec![catch_all()]) };
                let by_http = authorize_http(&policy, &table(&policy), client, &peer, &Get("/")).is_ok();
                assert_eq!(by_tcp, by_http);
                by_tcp
            };
            let expected = authorizations.iter().any(|authorization| model(authorization, client, &peer));
            prop_assert_eq!(admitted(authorizations.clone()), expected);
            prop_assert_eq!(admitted(authorizations.iter().rev().cloned().collect()), expected);
            prop_assert!(!expected || admitted(authorizations.into_iter().chain([more]).collect()));
        }
    }

    proptest! {
        /// Design, "Paths": who may not do it by the one reading may not do it by the other.
        #[test]
        fn a_request_is_authorised_for_both_readings_of_its_path_and_host(
            path in "(/(a|b|A|\\.|\\.\\.|%2e|%2E%2e|%61|%41|a;v|;|a%2fb|a%2Fb|a%5Cb|a\\\\b|#|a#b|))*/?",
            upper in any::<[bool; 7]>(),
            port in proptest::option::of(any::<u16>()),
            of_other_host in any::<bool>(),
            patterns in proptest::collection::vec(("/(a|b|A)?(/(a|b))?/?", any::<[bool; 3]>()), 0..5),
            server in any::<bool>(),
        ) {
            let who = |named: bool| named.then(|| allow("w", identities(&[WEB], &[]))).into_iter().collect();
            let routes = patterns.iter().map(|(pattern, [exact, hosted, named])| {
                let pattern = pattern.clone();
                let path = if *exact { PathMatch::Exact(pattern) } else { PathMatch::Prefix(pattern) };
                let mut route = matching("r", HttpMatch { path: Some(path), ..HttpMatch::default() }, who(*named));
                route.route.hosts = hosted.then(|| HostMatch::Exact("web.org".into())).into_iter().collect();
                route
            });
            let policy = ServerPolicy { authorizations: who(server).into(), ..detect(routes.collect()) };
            let compiled = table(&policy);
            let name = if of_other_host { "api.org" } else { "web.org" };
            let host: String = name.chars().zip(upper)
                .map(|(letter, upper)| if upper { letter.to_ascii_uppercase() } else { letter }).collect();
            let host = port.map_or_else(|| host.clone(), |port| alloc::format!("{host}:{port}"));
            let asked = |path: &str, authority: &str| {
                let asked = Asked { path: path.into(), authority: authority.into() };
                authorize_http(&policy, &compiled, INSIDE.parse().unwrap(), &meshed(WEB), &asked)
            };
            let verdict = asked(&path, &host);
            prop_assert_eq!(&verdict, &asked(&path, name), "case and port of {} say nothing", host);
            let Some(read) = normal(&path) else { return Ok(()) };
            // What the other reading alone would be told.
            let other = asked(&read, name);
            let two = Err(Refusal { route: None, denial: Denial::TwoPaths });
            prop_assert!(verdict == other || verdict == two, "{path} {verdict:?}, {read} {other:?}");
        }
    }

    struct Asked {
        path: String,
        authority: String,
    }

    impl RequestView for Asked {
        fn method(&self) -> &'static str {
            "GET"
        }
        fn authority(&self) -> &str {
            &self.authority
        }
        fn path(&self) -> &str {
            &self.path
        }
        fn query(&self) -> Option<&str> {
            None
        }
        fn header(&self, _name: &str) -> impl Iterator<Item = &[u8]> {
            core::iter::empty()
        }
    }

    struct Get<'a>(&'a str);

    impl RequestView for Get<'_> {
        fn method(&self) -> &'static str {
            "GET"
        }
        fn authority(&self) -> &'static str {
            "web"
        }
        fn path(&self) -> &str {
            self.0.split('?').next().unwrap()
        }
        fn query(&self) -> Option<&str> {
            self.0.split_once('?').map(|(_, query)| query)
        }
        fn header(&self, _name: &str) -> impl Iterator<Item = &[u8]> {
            core::iter::empty()
        }
    }

    fn meshed(name: &str) -> Peer {
        Peer::Tls { identity: Some(Identity::parse(name).unwrap()) }
    }

    /// Admits from 10.0.0.0/8.
    fn allow(name: &str, authentication: Authentication) -> Authorization {
        let networks = vec![NetworkMatch { net: "10.0.0.0/8".parse().unwrap(), except: vec![] }];
        Authorization { meta: Arc::new(ResourceRef::default_kind(name)), networks, authentication }
    }

    fn identities(names: &[&str], suffixes: &[&str]) -> Authentication {
        let suffix = |text: &&str| SuffixMatch { labels: text.split('.').map(ToString::to_string).collect() };
        Authentication::TlsAuthenticated {
            identities: names.iter().map(|name| Identity::parse(name).unwrap()).collect(),
            suffixes: suffixes.iter().map(suffix).collect(),
        }
    }

    fn opaque(authorizations: Vec<Authorization>) -> ServerPolicy {
        let meta = Arc::new(ResourceRef::default_kind("test"));
        let authorizations = authorizations.into();
        ServerPolicy { meta, protocol: ServerProtocol::Opaque, authorizations, rate_limits: None }
    }

    fn detect(routes: Vec<InboundRoute>) -> ServerPolicy {
        ServerPolicy {
            protocol: ServerProtocol::Detect { timeout: Duration::from_secs(10), routes },
            ..opaque(vec![])
        }
    }

    fn route(name: &str, prefix: &str, authorizations: Vec<Authorization>) -> InboundRoute {
        let conditions = HttpMatch { path: Some(PathMatch::Prefix(prefix.into())), ..HttpMatch::default() };
        matching(name, conditions, authorizations)
    }

    fn matching(name: &str, conditions: HttpMatch, authorizations: Vec<Authorization>) -> InboundRoute {
        let meta = Arc::new(ResourceRef::default_kind(name));
        let rules = vec![HttpRule { matches: vec![conditions] }];
        let route = HttpRoute { meta, hosts: vec![], rules };
        InboundRoute { route, filters: vec![vec![]], authorizations: authorizations.into() }
    }

    #[track_caller]
    #[expect(clippy::needless_pass_by_value, reason = "reads better in a table")]
    fn tcp(policy: &ServerPolicy, client: &str, peer: &Peer, expected: Result<&str, Denial>) {
        let verdict = authorize_tcp(policy, client.parse().unwrap(), peer);
        assert_eq!(verdict.as_ref().map(|meta| &*meta.name), expected.as_ref().copied(), "{client} {peer:?}");
    }

    #[track_caller]
    fn http(
        policy: &ServerPolicy,
        client: &str,
        peer: &Peer,
        path: &str,
        expected: Result<&str, (Option<usize>, Denial)>,
    ) {
        let verdict = authorize_http(policy, &table(policy), client.parse().unwrap(), peer, &Get(path));
        let verdict = verdict.map(|permit| permit.authorization.name.to_string());
        let expected = expected.map(ToString::to_string).map_err(|(route, denial)| Refusal { route, denial });
        assert_eq!(verdict, expected, "{client} {peer:?} {path}");
    }
}

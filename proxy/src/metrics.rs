//! Every metric that the proxy has, by subject. Handles are resolved when a connection, endpoint or route appears;
//! after that there are only relaxed atomics. Names and labels: contract 5.4; what is ours alone begins with `remora_`.

pub mod balancers;
pub mod breakers;
pub mod detect;
pub mod errors;
mod few;
pub mod inbound;
pub mod labels;
pub mod limits;
mod mux;
pub mod profiles;
pub mod requests;
pub mod routes;
pub mod tcp;

use crate::{fault::Fault, inbound::Connection, listen::Accepts};
use breakers::BreakerMetrics;
use detect::{Connections, Detect};
use errors::Errors;
use inbound::InboundFamilies;
pub use inbound::InboundRequests;
use labels::{Labels, label};
use limits::LimitMetrics;
pub use mux::MuxMetrics;
use profiles::{ProfileFamilies, RetriesSkipped};
use remora_core::{
    endpoint::{DialPlan, Endpoint},
    header::{SessionProtocol, TransportHeader},
    policy::{Denial, Peer, Permit, Refusal, Refused, ResourceRef, ServerPolicy},
    rate::{RateLimits, Scope},
};
use remora_runtime::metrics::{Budgeted, Counter, Gauge, Registry};
use requests::HttpFamilies;
pub use requests::RequestMetrics;
pub use routes::{BackendMetrics, RouteMetrics};
use routes::{Kind, MirrorMetrics, RetryMetrics, RouteFamilies};
use std::{net::SocketAddr, sync::Arc};
use tcp::TcpFamilies;
pub use tcp::TcpMetrics;

/// The proxy's metrics.
pub struct Metrics {
    pub(crate) http: HttpFamilies,
    /// By the routes of ServiceProfiles.
    pub profiles: ProfileFamilies,
    pub retries_skipped: RetriesSkipped,
    pub breakers: BreakerMetrics,
    pub limits: LimitMetrics,
    tcp: TcpFamilies,
    routes: RouteFamilies,
    pub(crate) inbound_routes: InboundFamilies,
    pub(crate) errors: Errors,
    authz: Authz,
    pub handshakes: Handshakes,
    pub mux_inbound: Arc<MuxMetrics>,
    pub mux_outbound: Arc<MuxMetrics>,
    transport_headers: Budgeted<Labels, Counter>,
    pub detect_inbound: Detect,
    pub detect_outbound: Detect,
    /// Connections by what they are served as.
    pub inbound: Connections,
    pub outbound: Connections,
    /// Targets outside the cluster's networks that were forwarded before the control plane answered.
    pub first_lookup_forwarded: Counter,
    /// Lookups refused because too many are followed.
    pub targets_refused: Counter,
    /// Names of inbound requests that are not looked up because too many are.
    pub names_refused: Counter,
    pod_addresses: Budgeted<Labels, Counter>,
    pub speculative_inbound: Counter,
    pub speculative_outbound: Counter,
    /// Speculative dials not made because too many are open.
    pub speculation_limited: Counter,
    /// Endpoints of a destination beyond as many as one may have.
    pub endpoints_refused: Counter,
    /// How often endpoints were asked for anew because one refused a connection.
    pub asked_again: Counter,
    pub inbound_accepts: Accepts,
    pub outbound_accepts: Accepts,
    /// Upgraded connections being copied.
    pub upgraded: Gauge,
}

/// Handshakes that clients completed with this proxy.
pub struct Handshakes {
    /// With certificates.
    pub full: Counter,
    /// On a ticket: cheaper by most of the handshake's cryptography.
    pub resumed: Counter,
}

impl Handshakes {
    fn register(registry: &Registry) -> Self {
        let kinds = registry.counters::<Labels>(
            "remora_inbound_tls_handshakes_total",
            "Mesh TLS handshakes completed by clients, in full or resumed from a ticket",
            2,
        );
        let kind = |kind: &str| kinds.get(vec![label("kind", kind)]);
        Self { full: kind("full"), resumed: kind("resumed") }
    }
}

struct Authz {
    http_allow: Budgeted<Labels, Counter>,
    http_deny: Budgeted<Labels, Counter>,
    route_not_found: Budgeted<Labels, Counter>,
    tcp_allow: Budgeted<Labels, Counter>,
    tcp_deny: Budgeted<Labels, Counter>,
    tcp_terminate: Budgeted<Labels, Counter>,
    rate_limited: Budgeted<Labels, Counter>,
}

impl Metrics {
    /// Registers every family, each with at most `budget` series. `hostnames` labels outbound requests with their host.
    pub fn register(registry: &Registry, budget: usize, hostnames: bool) -> Self {
        let (inbound, outbound) = Connections::register(registry);
        let counters = |name: &str, help: &str| registry.counters(name, help, budget);
        let [mux_inbound, mux_outbound] = MuxMetrics::register(registry, budget);
        Self {
            mux_inbound,
            mux_outbound,
            http: HttpFamilies::register(registry, "", true, budget),
            profiles: ProfileFamilies::register(registry, budget),
            retries_skipped: RetriesSkipped::register(registry),
            breakers: BreakerMetrics::register(registry),
            limits: LimitMetrics::register(registry),
            tcp: TcpFamilies::register(registry, budget),
            routes: RouteFamilies::register(registry, budget, hostnames),
            inbound_routes: InboundFamilies::register(registry, budget),
            errors: Errors::register(registry, budget),
            authz: Authz {
                http_allow: counters("inbound_http_authz_allow_total", "Requests that policy admitted"),
                http_deny: counters("inbound_http_authz_deny_total", "Requests that policy refused"),
                route_not_found: counters("inbound_http_route_not_found_total", "Requests without a route"),
                tcp_allow: counters("inbound_tcp_authz_allow_total", "Connections that policy admitted"),
                tcp_deny: counters("inbound_tcp_authz_deny_total", "Connections that policy refused"),
                tcp_terminate: counters(
                    "inbound_tcp_authz_terminate_total",
                    "Connections ended because policy changed",
                ),
                rate_limited: counters(
                    "inbound_http_local_ratelimit_total",
                    "Requests refused because their client or all together ask too often",
                ),
            },
            handshakes: Handshakes::register(registry),
            transport_headers: counters(
                "inbound_tcp_transport_header_connections_total",
                "Connections that began with a transport header",
            ),
            detect_inbound: Detect::register(registry, "inbound"),
            detect_outbound: Detect::register(registry, "outbound"),
            inbound,
            outbound,
            first_lookup_forwarded: registry.counter(
                "remora_outbound_first_lookup_forwarded_total",
                "Connections outside the cluster forwarded before the control plane answered",
            ),
            targets_refused: registry.counter(
                "remora_outbound_targets_refused_total",
                "Lookups refused because REMORA_PROXY_MAX_TARGETS are followed",
            ),
            names_refused: registry.counter(
                "remora_inbound_names_refused_total",
                "Names of inbound requests whose ServiceProfile is not looked up because 256 are",
            ),
            pod_addresses: counters(
                "remora_outbound_pod_address_connections_total",
                "Connections to a pod's own address that go by a Service which the pod belongs to",
            ),
            speculative_inbound: registry.counter(
                "remora_inbound_speculative_dials_total",
                "Connections to the application opened because the client was silent",
            ),
            speculative_outbound: registry.counter(
                "remora_outbound_speculative_dials_total",
                "Connections to an endpoint opened because the client was silent",
            ),
            speculation_limited: registry.counter(
                "remora_speculative_dials_limited_total",
                "Speculative dials not made because REMORA_PROXY_MAX_SPECULATIVE are open",
            ),
            endpoints_refused: registry.counter(
                "remora_outbound_endpoints_refused_total",
                "Endpoints not used because their destination has 10000 already",
            ),
            asked_again: registry.counter(
                "remora_outbound_endpoints_asked_again_total",
                "Destinations whose endpoints were asked for anew because one refused a connection",
            ),
            inbound_accepts: accepts(registry, "inbound"),
            outbound_accepts: accepts(registry, "outbound"),
            upgraded: registry
                .gauge("remora_upgraded_connections", "Connections that stopped being HTTP and are copied"),
        }
    }

    /// The series of an endpoint; `authority` is the balancer's destination, if there is one.
    pub fn endpoint(
        &self,
        endpoint: &Endpoint,
        plan: &DialPlan,
        authority: Option<&str>,
    ) -> (Arc<RequestMetrics>, Arc<TcpMetrics>) {
        let mut labels: Labels = vec![label("direction", "outbound")];
        if let Some(authority) = authority {
            labels.push(label("authority", authority));
        }
        let mut tcp = labels::side("outbound", "dst");
        for labels in [&mut labels, &mut tcp] {
            labels::target(labels, endpoint.addr);
            labels::server_tls(labels, plan);
            labels::destination(labels, endpoint);
        }
        (Arc::new(self.http.of(labels)), self.tcp.of(tcp))
    }

    /// The series of a route.
    pub fn route(&self, kind: Kind, parent: &ResourceRef, route: &ResourceRef) -> Arc<RouteMetrics> {
        self.routes.route(kind, parent, route)
    }

    /// The series of a route's retries.
    pub fn retries(&self, kind: Kind, parent: &ResourceRef, route: &ResourceRef) -> RetryMetrics {
        self.routes.retries(kind, parent, route)
    }

    /// The series of a route's mirrors.
    pub fn mirrors(&self, kind: Kind, parent: &ResourceRef, route: &ResourceRef) -> MirrorMetrics {
        self.routes.mirrors(kind, parent, route)
    }

    /// The series of a route's backend.
    pub fn backend(
        &self,
        kind: Kind,
        parent: &ResourceRef,
        route: &ResourceRef,
        backend: &ResourceRef,
    ) -> Arc<BackendMetrics> {
        self.routes.backend(kind, parent, route, backend)
    }

    /// The series of accepted inbound connections.
    pub fn inbound_tcp(&self, connection: &Connection, server: &ServerPolicy) -> Arc<TcpMetrics> {
        let mut labels = labels::side("inbound", "src");
        labels::target(&mut labels, connection.target);
        labels::client_tls(&mut labels, connection);
        labels::server(&mut labels, server, connection.target.port());
        self.tcp.of(labels)
    }

    /// The series of connections to the application.
    pub fn app(&self, addr: SocketAddr) -> Arc<TcpMetrics> {
        let mut labels = labels::side("inbound", "dst");
        labels::target(&mut labels, addr);
        labels.push(label("tls", "no_identity"));
        labels.push(label("no_tls_reason", "loopback"));
        self.tcp.of(labels)
    }

    /// The series of accepted outbound connections.
    pub fn outbound_tcp(&self, target: SocketAddr) -> Arc<TcpMetrics> {
        let mut labels = labels::side("outbound", "src");
        labels::target(&mut labels, target);
        labels.push(label("tls", "no_identity"));
        labels.push(label("no_tls_reason", "loopback"));
        self.tcp.of(labels)
    }

    /// Counts connections to a pod's own address that go by this Service.
    pub fn pod_address(&self, service: &str) -> Counter {
        self.pod_addresses.get(vec![label("service", service)])
    }

    pub fn inbound_fault(&self, fault: &Fault, target: SocketAddr, server: &ServerPolicy) {
        self.errors.inbound_tcp(fault, target, server);
    }

    pub fn outbound_fault(&self, fault: &Fault) {
        self.errors.outbound_tcp(fault);
    }

    /// Counts a failed request; an answer that its route asks for is none.
    pub fn outbound_http_fault(&self, fault: &Fault) {
        if !fault.is_wanted() {
            self.errors.outbound_http(fault);
        }
    }

    /// The counter of a request's authorization: allowed, denied, or without a route.
    pub fn http_authorized(
        &self,
        mut labels: Labels,
        permit: Result<&Permit, &(Refusal, Refused)>,
    ) -> Counter {
        match permit {
            Ok(_) => self.authz.http_allow.get(labels),
            Err((Refusal { denial: Denial::NoRoute, .. }, _)) => self.authz.route_not_found.get(labels),
            Err((_, refused)) => {
                labels::refused(&mut labels, refused);
                self.authz.http_deny.get(labels)
            }
        }
    }

    /// Counts a connection's authorization.
    pub fn tcp_authorized(
        &self,
        connection: &Connection,
        server: &ServerPolicy,
        authorization: Result<&ResourceRef, &Refused>,
    ) {
        let mut labels = self.authz_labels(connection, server);
        match authorization {
            Ok(authorization) => {
                labels::resource(&mut labels, labels::AUTHZ, authorization);
                self.authz.tcp_allow.get(labels).inc();
            }
            Err(refused) => {
                labels::refused(&mut labels, refused);
                self.authz.tcp_deny.get(labels).inc();
            }
        }
    }

    /// Counts a connection that a changed policy ended.
    pub fn tcp_terminated(&self, connection: &Connection, server: &ServerPolicy) {
        self.authz.tcp_terminate.get(self.authz_labels(connection, server)).inc();
    }

    /// Counts a request that a rate limit refused.
    pub fn rate_limited(
        &self,
        connection: &Connection,
        server: &ServerPolicy,
        limits: &RateLimits,
        scope: Scope,
    ) {
        let mut labels = self.authz_labels(connection, server);
        labels::resource(&mut labels, labels::RATE_LIMIT, &limits.meta);
        labels.push(label("ratelimit_scope", scope.as_str()));
        self.authz.rate_limited.get(labels).inc();
    }

    #[expect(clippy::unused_self, reason = "the labels of this struct's families")]
    fn authz_labels(&self, connection: &Connection, server: &ServerPolicy) -> Labels {
        let mut labels = vec![label("target_addr", connection.target)];
        labels::client_tls(&mut labels, connection);
        labels::server(&mut labels, server, connection.target.port());
        labels
    }

    /// Counts a transport header.
    pub fn transport_header(&self, header: &TransportHeader, peer: &Peer) {
        let protocol = match header.protocol {
            None => "none",
            Some(SessionProtocol::Http1) => "http/1",
            Some(SessionProtocol::Http2) => "http/2",
        };
        let labels = vec![
            label("session_protocol", protocol),
            label("target_port", header.port),
            label("target_name", header.name.as_deref().unwrap_or("")),
            label("client_id", peer.identity().map_or("", |identity| identity.as_str())),
        ];
        self.transport_headers.get(labels).inc();
    }
}

fn accepts(registry: &Registry, direction: &str) -> Accepts {
    Accepts {
        limited: registry.counter(
            &format!("remora_{direction}_accepts_limited_total"),
            "Accepts that waited because as many connections are served as settings and descriptors allow",
        ),
        failed: registry.counter(
            &format!("remora_{direction}_accepts_failed_total"),
            "Accepts that failed, as they do when descriptors are used up; each is tried again after 50 ms",
        ),
    }
}

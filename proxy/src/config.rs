//! The environment → [`Config`]: the only list of the proxy's settings. Contract 1.13.
//!
//! Linkerd's names are taken as Linkerd's injector writes them; unknown `LINKERD2_PROXY_*` are ignored, unknown
//! `REMORA_PROXY_*` are mistakes. All mistakes are reported at once, by name, and the process exits with 64.

mod read;
mod settings;
mod workers;

pub use remora_runtime::{
    control::{ControlAddr, StreamLimits},
    log::Format as LogFormat,
};
pub use settings::{GROUPS, Group, Setting, UNUSED, help, markdown};
pub use workers::{Cores, workers};

use ipnet::IpNet;
use remora_core::{
    identity::Identity,
    policy::{DefaultPolicy, OutboundDefault},
};
use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

/// Everything that the proxy is told at start.
#[derive(Clone, Debug)]
pub struct Config {
    /// Towards the application.
    pub inbound: InboundConfig,
    /// From the application.
    pub outbound: OutboundConfig,
    /// Probes, metrics, state.
    pub admin: AdminConfig,
    /// Who this proxy is; `None` (only by `REMORA_PROXY_IDENTITY_DISABLED=true`) means no mTLS at all.
    pub identity: Option<IdentityConfig>,
    /// The destination service.
    pub destination: ControlAddr,
    /// The policy service.
    pub policy: ControlAddr,
    /// Of streams to a control plane that is not on loopback; see [`Config::stream_limits`].
    pub streams: StreamLimits,
    /// What the control plane is asked, and about which addresses.
    pub discovery: DiscoveryConfig,
    /// Share connections between proxies of ours among streams (`REMORA_PROXY_MUX`, true).
    pub mux: bool,
    /// Bounds.
    pub limits: Limits,
    /// Data-plane worker threads, at least 1.
    pub workers: usize,
    /// How long a drain may take.
    pub shutdown_grace: Duration,
    /// How long a series outlives its last handle.
    pub metrics_retain: Duration,
    /// tracing filter text.
    pub log: String,
    /// Shape of log lines.
    pub log_format: LogFormat,
    /// One line per inbound request, if any.
    pub access_log: Option<AccessLog>,
    /// Route requests by their l5d-dst-override header, where they have one.
    pub ingress_mode: bool,
    /// Use `remora.proxy.v1` beside Linkerd's API (`REMORA_PROXY_API=v1`).
    pub remora_api: bool,
}

/// Shape of access log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessLog {
    /// Apache's combined format.
    Apache,
    /// JSON objects.
    Json,
}

/// Towards the application.
#[derive(Clone, Debug)]
pub struct InboundConfig {
    /// Where redirected connections and meshed peers arrive.
    pub listen: SocketAddr,
    /// The pod's own addresses (`INBOUND_IPS`); empty means not checked.
    pub ips: Vec<IpAddr>,
    /// Policy of a port until the controller has answered.
    pub default_policy: DefaultPolicy,
    /// Ports to watch policy for from the start; the admin port is among them.
    pub ports: BTreeSet<u16>,
    /// Opaque under the default policy.
    pub opaque_ports: BTreeSet<u16>,
    /// Dialling the application.
    pub connect_timeout: Duration,
    /// Waiting for a client's first bytes, where policy does not say.
    pub detect_timeout: Duration,
    /// How long an unused port policy is kept.
    pub discovery_idle: Duration,
    /// How long an idle HTTP/1 connection to the application is kept.
    pub http1_pool_idle: Duration,
    /// Socket options.
    pub socket: SocketConfig,
    /// HTTP/2 towards clients.
    pub http2: Http2Config,
    /// Label requests with the authority that clients send. They choose it, so it costs series.
    pub metrics_authority: bool,
    /// `remora-denied-by` to meshed clients that policy refuses (`REMORA_PROXY_DENIAL_HEADER`, false).
    pub denial_header: bool,
}

/// From the application.
#[derive(Clone, Debug)]
pub struct OutboundConfig {
    /// One or two addresses (IPv4 and IPv6 loopback).
    pub listen: Vec<SocketAddr>,
    /// Who may be connected to in plaintext (`REMORA_PROXY_OUTBOUND_DEFAULT_POLICY`, everybody).
    pub default_policy: OutboundDefault,
    /// Dialling an endpoint: TCP, TLS and header.
    pub connect_timeout: Duration,
    /// Waiting for the application's first bytes.
    pub detect_timeout: Duration,
    /// How long an unused target is kept.
    pub discovery_idle: Duration,
    /// How long the first lookup of a target may take (`REMORA_PROXY_FIRST_LOOKUP_TIMEOUT`, 3 s).
    pub first_lookup: Duration,
    /// How long an idle HTTP/1 connection to an endpoint is kept.
    pub http1_pool_idle: Duration,
    /// Socket options.
    pub socket: SocketConfig,
    /// HTTP/2 towards the application.
    pub http2: Http2Config,
    /// l5d-proxy-error and l5d-proxy-connection to the application.
    pub informational_headers: bool,
    /// Label requests with their host name.
    pub hostname_labels: bool,
}

/// Socket options of accepted and dialled connections; `None` keeps the kernel's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketConfig {
    /// Idle time before TCP keepalive probes of accepted connections.
    pub accept_keepalive: Option<Duration>,
    /// The same of dialled connections.
    pub connect_keepalive: Option<Duration>,
    /// `TCP_USER_TIMEOUT` of accepted connections.
    pub accept_user_timeout: Option<Duration>,
    /// The same of dialled connections.
    pub connect_user_timeout: Option<Duration>,
}

/// HTTP/2 server settings (RFC 9113 section 6.5.2); `None` keeps the library's default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Http2Config {
    /// Time between pings.
    pub keep_alive_interval: Option<Duration>,
    /// Longest wait for the answer to a ping.
    pub keep_alive_timeout: Option<Duration>,
    /// Bytes a stream may send ahead, at most 2^31 - 1.
    pub initial_stream_window: Option<u32>,
    /// Bytes a connection may send ahead, at most 2^31 - 1.
    pub initial_connection_window: Option<u32>,
    /// Measure the windows; the two above do not count then.
    pub adaptive_flow_control: bool,
    /// Streams a client may have open.
    pub max_concurrent_streams: Option<u32>,
    /// 16 384 to 16 777 215 bytes.
    pub max_frame_size: Option<u32>,
    /// Bytes of a header list.
    pub max_header_list_size: Option<u32>,
    /// Streams reset before they were accepted.
    pub max_pending_accept_reset_streams: Option<usize>,
    /// Bytes buffered per stream.
    pub max_send_buf_size: Option<usize>,
}

/// Probes, metrics, state.
#[derive(Clone, Debug)]
pub struct AdminConfig {
    /// Where they are served.
    pub listen: SocketAddr,
    /// POST /shutdown answers.
    pub shutdown_endpoint: bool,
}

/// Who this proxy is.
#[derive(Clone, Debug)]
pub struct IdentityConfig {
    /// The certificate authority.
    pub control: ControlAddr,
    /// Memory-backed folder for key, leaf and bundle.
    pub dir: PathBuf,
    /// PEM text of the trust anchors; holds at least one certificate.
    pub trust_anchors: String,
    /// The service-account token, read anew at every attempt.
    pub token_file: PathBuf,
    /// The name in our certificate, and the SNI of clients that mean us.
    pub local_name: Identity,
    /// Shortest time between renewals.
    pub min_refresh: Duration,
    /// Longest time between renewals.
    pub max_refresh: Duration,
}

/// What the control plane is asked, and about which addresses.
#[derive(Clone, Debug)]
pub struct DiscoveryConfig {
    /// `DESTINATION_CONTEXT`, verbatim.
    pub context: String,
    /// Addresses that profiles are looked up for.
    pub profile_networks: Vec<IpNet>,
    /// Names under which the profiles of inbound requests are looked up, in lower case; an empty one is above all names.
    pub profile_suffixes: Vec<String>,
    /// `POLICY_WORKLOAD`, verbatim.
    pub workload: String,
    /// The cluster: for the `cluster-*` policies, and where a lookup that fails must not be bypassed.
    pub cluster_networks: Vec<IpNet>,
}

/// Bounds that are ours alone (`REMORA_PROXY_*`), with their defaults in the parser.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Client silence before a speculative dial (`REMORA_PROXY_SERVER_FIRST_DELAY`, 100 ms).
    pub server_first_delay: Duration,
    /// Speculative dials open at once (`REMORA_PROXY_MAX_SPECULATIVE`, 256).
    pub max_speculative: usize,
    /// Connections served at once per direction (`REMORA_PROXY_MAX_CONNECTIONS`, 8192).
    pub max_connections: usize,
    /// Cached targets per kind of lookup (`REMORA_PROXY_MAX_TARGETS`, 10 000).
    pub max_targets: usize,
    /// Series per metric family (`REMORA_PROXY_METRIC_BUDGET`, 2 000).
    pub metric_budget: usize,
    /// Idle HTTP/1 connections kept per endpoint (`REMORA_PROXY_MAX_IDLE_PER_ENDPOINT`, 128).
    pub max_idle_per_endpoint: usize,
    /// Age at which a pooled connection is retired (`REMORA_PROXY_POOL_MAX_AGE`, 10 m).
    pub pool_max_age: Duration,
    /// Bytes of header accepted per message (`REMORA_PROXY_MAX_HEADER_BYTES`, 64 KiB).
    pub max_header_bytes: usize,
    /// Header fields accepted per message (`REMORA_PROXY_MAX_HEADERS`, 100).
    pub max_headers: usize,
    /// From the first byte of a request's head to its last (`REMORA_PROXY_REQUEST_HEAD_TIMEOUT`, 10 s).
    pub head_timeout: Duration,
    /// Waiting for a part of a request's body worth the name (`REMORA_PROXY_REQUEST_BODY_TIMEOUT`, 5 m).
    pub body_timeout: Duration,
    /// Bytes kept of a request's body so that it can be sent again (`REMORA_PROXY_MAX_RETRY_BODY`, 64 KiB).
    pub max_retry_body: usize,
    /// Retries of one request (`REMORA_PROXY_MAX_RETRIES`, 10), whatever the budget of its ServiceProfile.
    pub max_retries: u32,
    /// Bytes of memory that this process may use (`REMORA_PROXY_MEMORY_LIMIT`); `None`: as its control group says.
    pub memory: Option<u64>,
}

/// Bounds of a request's head: of HTTP/1 of its bytes and fields, of HTTP/2 of its header list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeaderList {
    /// As RFC 9113 section 6.5.2 counts them.
    pub bytes: usize,
    /// Each crumb of a cookie is one.
    pub fields: usize,
}

impl HeaderList {
    /// Of a proxy that was told none.
    pub const DEFAULT: Self = Self { bytes: 64 << 10, fields: 100 };
}

impl Config {
    /// Of an HTTP/2 request's header list.
    pub fn header_list(&self, http2: &Http2Config) -> HeaderList {
        let Limits { max_header_bytes, max_headers, .. } = self.limits;
        let bytes = http2.max_header_list_size.map_or(max_header_bytes, |bytes| bytes as usize);
        HeaderList { bytes, fields: max_headers }
    }

    /// Of streams to this address: none to a control plane on loopback (contract 3.0).
    pub fn stream_limits(&self, addr: &ControlAddr) -> StreamLimits {
        if addr.name.is_none() { StreamLimits::default() } else { self.streams }
    }
}

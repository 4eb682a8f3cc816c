//! The environment → [`Config`]: the only list of the proxy's settings. Contract 1.13.
//!
//! Linkerd's names are taken as Linkerd's injector writes them; unknown `LINKERD2_PROXY_*` are ignored, unknown
//! `REMORA_PROXY_*` are mistakes. All mistakes are reported at once, by name, and the process exits with 64.

use ipnet::IpNet;
use remora_core::{identity::Identity, policy::DefaultPolicy};
pub use remora_runtime::control::{ControlAddr, StreamLimits};
use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

/// Everything that the proxy is told at start.
#[derive(Clone, Debug)]
pub struct Config {
    pub inbound: InboundConfig,
    pub outbound: OutboundConfig,
    pub admin: AdminConfig,
    pub identity: Option<IdentityConfig>,
    pub destination: ControlAddr,
    pub policy: ControlAddr,
    pub streams: StreamLimits,
    pub discovery: DiscoveryConfig,
    pub limits: Limits,
    /// Data-plane worker threads, at least 1.
    pub workers: usize,
    /// How long a drain may take.
    pub shutdown_grace: Duration,
    /// tracing filter text.
    pub log: String,
    pub log_format: LogFormat,
    pub access_log: Option<AccessLog>,
    pub ingress_mode: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Plain,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessLog {
    Apache,
    Json,
}

#[derive(Clone, Debug)]
pub struct InboundConfig {
    pub listen: SocketAddr,
    /// The pod's own addresses (`INBOUND_IPS`); empty means not checked.
    pub ips: Vec<IpAddr>,
    pub default_policy: DefaultPolicy,
    /// Ports to watch policy for from the start.
    pub ports: BTreeSet<u16>,
    /// Opaque under the default policy.
    pub opaque_ports: BTreeSet<u16>,
    pub connect_timeout: Duration,
    pub detect_timeout: Duration,
    pub discovery_idle: Duration,
    pub http1_pool_idle: Duration,
    pub socket: SocketConfig,
    pub http2: Http2Config,
    /// Suffixes of names a gateway may forward to; unused until there is multicluster, then refused and counted.
    pub metrics_authority: bool,
}

#[derive(Clone, Debug)]
pub struct OutboundConfig {
    /// One or two addresses (IPv4 and IPv6 loopback).
    pub listen: Vec<SocketAddr>,
    pub connect_timeout: Duration,
    pub detect_timeout: Duration,
    pub discovery_idle: Duration,
    /// How long the first lookup of a target may take (`REMORA_PROXY_FIRST_LOOKUP_TIMEOUT`, 3 s).
    pub first_lookup: Duration,
    pub http1_pool_idle: Duration,
    pub socket: SocketConfig,
    pub http2: Http2Config,
    /// l5d-proxy-error and l5d-proxy-connection to the application.
    pub informational_headers: bool,
    pub hostname_labels: bool,
}

/// Socket options of accepted and dialled connections.
#[derive(Clone, Copy, Debug, Default)]
pub struct SocketConfig {
    pub accept_keepalive: Option<Duration>,
    pub connect_keepalive: Option<Duration>,
    pub accept_user_timeout: Option<Duration>,
    pub connect_user_timeout: Option<Duration>,
}

/// HTTP/2 server settings; `None` keeps the library's default.
#[derive(Clone, Copy, Debug, Default)]
pub struct Http2Config {
    pub keep_alive_interval: Option<Duration>,
    pub keep_alive_timeout: Option<Duration>,
    pub initial_stream_window: Option<u32>,
    pub initial_connection_window: Option<u32>,
    pub adaptive_flow_control: bool,
    pub max_concurrent_streams: Option<u32>,
    pub max_frame_size: Option<u32>,
    pub max_header_list_size: Option<u32>,
    pub max_pending_accept_reset_streams: Option<usize>,
    pub max_send_buf_size: Option<usize>,
}

#[derive(Clone, Debug)]
pub struct AdminConfig {
    pub listen: SocketAddr,
    /// POST /shutdown answers.
    pub shutdown_endpoint: bool,
}

#[derive(Clone, Debug)]
pub struct IdentityConfig {
    pub control: ControlAddr,
    /// Memory-backed folder for key, leaf and bundle.
    pub dir: PathBuf,
    /// PEM text of the trust anchors.
    pub trust_anchors: String,
    pub token_file: PathBuf,
    pub local_name: Identity,
    pub min_refresh: Duration,
    pub max_refresh: Duration,
}

#[derive(Clone, Debug)]
pub struct DiscoveryConfig {
    /// `DESTINATION_CONTEXT`, verbatim.
    pub context: String,
    pub profile_networks: Vec<IpNet>,
    /// `POLICY_WORKLOAD`, verbatim.
    pub workload: String,
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
}

//! Reads the settings, one function per part of [`Config`]. A part that lacks something it must have is `None`, and
//! the mistake is noted in the environment; the others are read all the same, so that all mistakes come at once.

use super::{
    AccessLog, AdminConfig, Config, ControlAddr, Cores, DiscoveryConfig, HeaderList, Http2Config,
    IdentityConfig, InboundConfig, Limits, OutboundConfig, SocketConfig, StreamLimits, workers,
};
use remora_core::{
    identity::{Identity, Kind},
    policy::{DefaultPolicy, OutboundDefault},
    retry::MAX_RETRIES,
};
use remora_runtime::{
    env::{Env, HostPort, Invalid, Mistakes, parse},
    log,
};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

const SECOND: Duration = Duration::from_secs(1);

impl Config {
    /// Reads everything, with Linkerd's defaults for Linkerd's names.
    pub fn from_env(mut env: Env) -> Result<Self, Mistakes> {
        let config = Self::read(&mut env);
        env.refuse_unknown("REMORA_PROXY_");
        env.finish()?;
        // Invariant: a part that is missing has left a mistake, so there is a configuration here.
        config.ok_or_else(Mistakes::default)
    }

    pub(super) fn read(env: &mut Env) -> Option<Self> {
        let admin = AdminConfig {
            listen: env.or(&l5d("ADMIN_LISTEN_ADDR"), (Ipv4Addr::LOCALHOST, 4191).into(), parse::socket_addr),
            shutdown_endpoint: env.or(&l5d("SHUTDOWN_ENDPOINT_ENABLED"), false, parse::boolean),
        };
        let ingress_mode = env.or(&l5d("INGRESS_MODE"), false, parse::boolean);
        let discovery = discovery(env);
        let inbound = inbound(env, admin.listen.port());
        let with_identity = !env.or("REMORA_PROXY_IDENTITY_DISABLED", false, parse::boolean);
        let outbound = outbound(env, ingress_mode, with_identity);
        let identity = if with_identity { identity(env).map(Some) } else { Some(None) };
        let destination = control(env, "DESTINATION_SVC", with_identity);
        let policy = control(env, "POLICY_SVC", with_identity);
        let streams = streams(env);
        let mux = env.or("REMORA_PROXY_MUX", true, parse::boolean);
        let limits = limits(env);
        let shutdown_grace = env.or(&l5d("SHUTDOWN_GRACE_PERIOD"), 120 * SECOND, parse::duration);
        let metrics_retain = env.or(&l5d("METRICS_RETAIN_IDLE"), 600 * SECOND, parse::duration);
        let log = env.or(&l5d("LOG"), DEFAULT_LOG.to_owned(), log::check);
        let log_format = env.or(&l5d("LOG_FORMAT"), log::Format::Plain, str::parse::<log::Format>);
        let access_log = parse::one_of(&[("apache", AccessLog::Apache), ("json", AccessLog::Json)]);
        let access_log = env.optional(&l5d("ACCESS_LOG"), access_log);
        let remora_api = env.or("REMORA_PROXY_API", false, parse::one_of(&[("v1", true)]));
        let cores = cores(env);
        let available = std::thread::available_parallelism().map_or(1, usize::from);
        Some(Self {
            inbound,
            outbound,
            admin,
            identity: identity?,
            destination: destination?,
            policy: policy?,
            streams,
            discovery: discovery?,
            mux,
            limits,
            workers: workers(cores, available),
            shutdown_grace,
            metrics_retain,
            log,
            log_format,
            access_log,
            ingress_mode,
            remora_api,
        })
    }
}

const DEFAULT_LOG: &str = "warn,linkerd=info,hickory=error";

fn l5d(name: &str) -> String {
    format!("LINKERD2_PROXY_{name}")
}

fn inbound(env: &mut Env, admin_port: u16) -> InboundConfig {
    let default_policy =
        env.or(&l5d("INBOUND_DEFAULT_POLICY"), DefaultPolicy::AllUnauthenticated, default_policy);
    let for_cluster =
        matches!(default_policy, DefaultPolicy::ClusterUnauthenticated | DefaultPolicy::ClusterAuthenticated);
    if for_cluster && !env.is_set(&l5d("POLICY_CLUSTER_NETWORKS")) {
        let wrong = "needs to know the cluster's networks";
        env.complain(
            &l5d("INBOUND_DEFAULT_POLICY"),
            wrong,
            format!("{} to be set", l5d("POLICY_CLUSTER_NETWORKS")),
        );
    }
    let mut ports = env.or(&l5d("INBOUND_PORTS"), BTreeSet::new(), parse::ports);
    // Probes and scrapes come before any other request; their policy should be there by then (contract 3.4).
    ports.insert(admin_port);
    let authority = parse::one_of(&[("unsafe", true), ("true", true), ("false", false)]);
    InboundConfig {
        listen: env.or(&l5d("INBOUND_LISTEN_ADDR"), (Ipv4Addr::UNSPECIFIED, 4143).into(), parse::socket_addr),
        ips: env.or(&l5d("INBOUND_IPS"), Vec::new(), parse::ips),
        default_policy,
        ports,
        opaque_ports: env.or(&l5d("INBOUND_PORTS_DISABLE_PROTOCOL_DETECTION"), BTreeSet::new(), parse::ports),
        connect_timeout: env.or(&l5d("INBOUND_CONNECT_TIMEOUT"), Duration::from_millis(300), positive),
        detect_timeout: env.or(&l5d("INBOUND_DETECT_TIMEOUT"), 10 * SECOND, positive),
        discovery_idle: env.or(&l5d("INBOUND_DISCOVERY_IDLE_TIMEOUT"), 90 * SECOND, parse::duration),
        http1_pool_idle: env.or(
            &l5d("INBOUND_HTTP1_CONNECTION_POOL_IDLE_TIMEOUT"),
            3 * SECOND,
            parse::duration,
        ),
        socket: socket(env, "INBOUND"),
        http2: http2(env, "INBOUND_SERVER_HTTP2"),
        metrics_authority: env.or(&l5d("INBOUND_METRICS_AUTHORITY_LABELS"), false, authority),
        denial_header: env.or("REMORA_PROXY_DENIAL_HEADER", false, parse::boolean),
    }
}

fn outbound(env: &mut Env, ingress_mode: bool, with_identity: bool) -> OutboundConfig {
    let one = env.or(&l5d("OUTBOUND_LISTEN_ADDR"), (Ipv4Addr::LOCALHOST, 4140).into(), parse::socket_addr);
    let quiet = env.or(&l5d("OUTBOUND_DISABLE_INFORMATIONAL_HEADERS"), ingress_mode, parse::boolean);
    OutboundConfig {
        listen: env.or(&l5d("OUTBOUND_LISTEN_ADDRS"), vec![one], one_or_two),
        default_policy: outbound_default(env, with_identity),
        connect_timeout: env.or(&l5d("OUTBOUND_CONNECT_TIMEOUT"), SECOND, positive),
        detect_timeout: env.or(&l5d("OUTBOUND_DETECT_TIMEOUT"), 10 * SECOND, positive),
        discovery_idle: env.or(&l5d("OUTBOUND_DISCOVERY_IDLE_TIMEOUT"), 5 * SECOND, parse::duration),
        first_lookup: env.or("REMORA_PROXY_FIRST_LOOKUP_TIMEOUT", 3 * SECOND, positive),
        http1_pool_idle: env.or(
            &l5d("OUTBOUND_HTTP1_CONNECTION_POOL_IDLE_TIMEOUT"),
            3 * SECOND,
            parse::duration,
        ),
        socket: socket(env, "OUTBOUND"),
        http2: http2(env, "OUTBOUND_SERVER_HTTP2"),
        informational_headers: !quiet,
        hostname_labels: env.or(&l5d("OUTBOUND_METRICS_HOSTNAME_LABELS"), false, parse::boolean),
    }
}

fn outbound_default(env: &mut Env, with_identity: bool) -> OutboundDefault {
    const NAME: &str = "REMORA_PROXY_OUTBOUND_DEFAULT_POLICY";
    let named = |text: &str| {
        let names = OutboundDefault::ALL.map(OutboundDefault::as_str).join(", ");
        OutboundDefault::parse(text.trim())
            .ok_or_else(|| Invalid::new("is no outbound default policy", names))
    };
    let policy = env.or(NAME, OutboundDefault::default(), named);
    if policy == OutboundDefault::ClusterAuthenticated && !env.is_set(&l5d("POLICY_CLUSTER_NETWORKS")) {
        let expected = format!("{} to be set", l5d("POLICY_CLUSTER_NETWORKS"));
        env.complain(NAME, "needs to know the cluster's networks", expected);
    }
    if policy != OutboundDefault::default() && !with_identity {
        env.complain(NAME, "demands mTLS, for which this proxy has no identity", "an identity");
    }
    policy
}

fn socket(env: &mut Env, side: &str) -> SocketConfig {
    let mut time =
        |name: &str| env.optional(&l5d(&format!("{side}_{name}")), parse::duration).filter(is_positive);
    SocketConfig {
        accept_keepalive: time("ACCEPT_KEEPALIVE"),
        connect_keepalive: time("CONNECT_KEEPALIVE"),
        accept_user_timeout: time("ACCEPT_USER_TIMEOUT"),
        connect_user_timeout: time("CONNECT_USER_TIMEOUT"),
    }
}

fn http2(env: &mut Env, base: &str) -> Http2Config {
    const WINDOW: u32 = (1 << 31) - 1;
    let name = |name: &str| l5d(&format!("{base}_{name}"));
    Http2Config {
        keep_alive_interval: env.optional(&name("KEEP_ALIVE_INTERVAL"), parse::duration).filter(is_positive),
        keep_alive_timeout: env.optional(&name("KEEP_ALIVE_TIMEOUT"), positive),
        initial_stream_window: env
            .optional(&name("INITIAL_STREAM_WINDOW_SIZE"), parse::number_within(1, WINDOW)),
        initial_connection_window: env
            .optional(&name("INITIAL_CONNECTION_WINDOW_SIZE"), parse::number_within(1, WINDOW)),
        adaptive_flow_control: env.or(&name("ADAPTIVE_FLOW_CONTROL"), false, parse::boolean),
        max_concurrent_streams: env
            .optional(&name("MAX_CONCURRENT_STREAMS"), parse::number_within(1, u32::MAX)),
        max_frame_size: env.optional(&name("MAX_FRAME_SIZE"), parse::number_within(16_384, 16_777_215)),
        max_header_list_size: env.optional(&name("MAX_HEADER_LIST_SIZE"), parse::number_within(1, u32::MAX)),
        max_pending_accept_reset_streams: env
            .optional(&name("MAX_PENDING_ACCEPT_RESET_STREAMS"), parse::number_within(1, usize::MAX)),
        max_send_buf_size: env
            .optional(&name("MAX_SEND_BUF_SIZE"), parse::number_within(1, u32::MAX as usize)),
    }
}

fn identity(env: &mut Env) -> Option<IdentityConfig> {
    if env.is_set(&l5d("IDENTITY_DISABLED")) {
        let wrong = "is no longer a setting of Linkerd's proxy, which always has an identity";
        env.complain(&l5d("IDENTITY_DISABLED"), wrong, "it to be unset");
    }
    for spire in ["IDENTITY_SPIRE_WORKLOAD_API_ADDRESS", "IDENTITY_SPIRE_SOCKET"] {
        if env.is_set(&l5d(spire)) {
            env.complain(&l5d(spire), "identities from SPIRE are not supported", "it to be unset");
        }
    }
    let control = control(env, "IDENTITY_SVC", true);
    let dir =
        env.required(&l5d("IDENTITY_DIR"), "a memory-backed folder for key and certificate", parse::path);
    let anchors = "root certificates as PEM text; without them no peer can be trusted";
    let trust_anchors = env.required(&l5d("IDENTITY_TRUST_ANCHORS"), anchors, certificates);
    let token_file =
        env.required(&l5d("IDENTITY_TOKEN_FILE"), "the file of a service-account token", parse::path);
    let local_name = env.required(&l5d("IDENTITY_LOCAL_NAME"), "the identity of this proxy", dns_identity);
    let min_refresh = env.or(&l5d("IDENTITY_MIN_REFRESH"), 10 * SECOND, positive);
    let max_refresh = env.or(&l5d("IDENTITY_MAX_REFRESH"), Duration::from_hours(24), positive);
    if min_refresh > max_refresh {
        let expected = format!("at most {} ({max_refresh:?})", l5d("IDENTITY_MAX_REFRESH"));
        env.complain(
            &l5d("IDENTITY_MIN_REFRESH"),
            "is longer than the longest time between renewals",
            expected,
        );
    }
    Some(IdentityConfig {
        control: control?,
        dir: dir?,
        trust_anchors: trust_anchors?,
        token_file: token_file?,
        local_name: local_name?,
        min_refresh,
        max_refresh,
    })
}

/// `…_ADDR` and `…_NAME` of a control-plane service. On loopback the name has no use: it is plaintext (contract 1.13).
fn control(env: &mut Env, base: &str, with_identity: bool) -> Option<ControlAddr> {
    let (addr_name, name_name) = (l5d(&format!("{base}_ADDR")), l5d(&format!("{base}_NAME")));
    let addr = env.required(&addr_name, "host:port of that service of the control plane", parse::host_port);
    if addr.as_ref().is_some_and(HostPort::is_loopback) {
        // Read only so that a name with a mistake in it is noticed.
        let _unused = env.optional(&name_name, dns_identity);
        return addr.map(|addr| ControlAddr { host: addr.host, port: addr.port, name: None });
    }
    if addr.is_some() && !with_identity {
        env.complain(
            &addr_name,
            "is not on loopback, and without an identity there is no mTLS to it",
            "localhost:port",
        );
    }
    let why = format!("the identity that the service must prove (or a loopback address in {addr_name})");
    let name = env.required(&name_name, &why, dns_identity)?;
    addr.map(|addr| ControlAddr { host: addr.host, port: addr.port, name: Some(name) })
}

/// Each bound must be no longer than the next; zero and unset are no bound.
fn streams(env: &mut Env) -> StreamLimits {
    let names =
        ["INITIAL_TIMEOUT", "IDLE_TIMEOUT", "LIFETIME"].map(|name| l5d(&format!("CONTROL_STREAM_{name}")));
    let times = names.each_ref().map(|name| env.optional(name, parse::duration).filter(is_positive));
    let set: Vec<(&String, Duration)> =
        names.iter().zip(times).filter_map(|(name, time)| time.map(|time| (name, time))).collect();
    for pair in set.windows(2) {
        let [(name, shorter), (next, longer)] = pair else { continue };
        if shorter > longer {
            env.complain(
                name,
                format!("is longer than {next} ({longer:?})"),
                "times that increase in this order",
            );
        }
    }
    let [initial, idle, lifetime] = times;
    StreamLimits { initial, idle, lifetime }
}

fn discovery(env: &mut Env) -> Option<DiscoveryConfig> {
    let workload =
        env.required(&l5d("POLICY_WORKLOAD"), "what policy is asked as: a namespace and a pod", parse::text);
    Some(DiscoveryConfig {
        context: env.or(&l5d("DESTINATION_CONTEXT"), String::new(), parse::text),
        profile_networks: env.or(&l5d("DESTINATION_PROFILE_NETWORKS"), Vec::new(), parse::networks),
        profile_suffixes: env.or(
            &l5d("DESTINATION_PROFILE_SUFFIXES"),
            vec!["svc.cluster.local".to_owned()],
            suffixes,
        ),
        cluster_networks: env.or(&l5d("POLICY_CLUSTER_NETWORKS"), Vec::new(), parse::networks),
        workload: workload?,
    })
}

/// `.` is above all names.
fn suffixes(text: &str) -> Result<Vec<String>, Invalid> {
    let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    let read = |name: &str| {
        if !name.bytes().all(allowed) {
            return Err(Invalid::new(format!("{name:?} is no DNS name"), "names such as svc.cluster.local."));
        }
        Ok(name.trim_matches('.').to_ascii_lowercase())
    };
    names.map(read).collect()
}

fn limits(env: &mut Env) -> Limits {
    let million = || parse::number_within(1, 1_000_000);
    Limits {
        server_first_delay: env.or("REMORA_PROXY_SERVER_FIRST_DELAY", Duration::from_millis(100), positive),
        max_speculative: env.or("REMORA_PROXY_MAX_SPECULATIVE", 256, million()),
        max_connections: env.or("REMORA_PROXY_MAX_CONNECTIONS", 8192, million()),
        max_targets: env.or("REMORA_PROXY_MAX_TARGETS", 10_000, million()),
        metric_budget: env.or("REMORA_PROXY_METRIC_BUDGET", 2_000, million()),
        max_idle_per_endpoint: env.or("REMORA_PROXY_MAX_IDLE_PER_ENDPOINT", 128, million()),
        pool_max_age: env.or("REMORA_PROXY_POOL_MAX_AGE", 600 * SECOND, positive),
        max_header_bytes: env.or(
            "REMORA_PROXY_MAX_HEADER_BYTES",
            HeaderList::DEFAULT.bytes,
            parse::number_within(8_192, 1 << 20),
        ),
        max_headers: env.or(
            "REMORA_PROXY_MAX_HEADERS",
            HeaderList::DEFAULT.fields,
            parse::number_within(1, 10_000),
        ),
        head_timeout: env.or("REMORA_PROXY_REQUEST_HEAD_TIMEOUT", 10 * SECOND, positive),
        body_timeout: env.or("REMORA_PROXY_REQUEST_BODY_TIMEOUT", 300 * SECOND, positive),
        max_retry_body: env.or("REMORA_PROXY_MAX_RETRY_BODY", 65_536, parse::number_within(0, 1 << 20)),
        max_retries: env.or("REMORA_PROXY_MAX_RETRIES", MAX_RETRIES, parse::number_within(0, 1_000)),
        memory: env.optional("REMORA_PROXY_MEMORY_LIMIT", parse::bytes),
    }
}

fn cores(env: &mut Env) -> Cores {
    let count = || parse::number_within(1, 1024);
    Cores {
        cores: env.optional(&l5d("CORES"), count()),
        min: env.optional(&l5d("CORES_MIN"), count()),
        max: env.optional(&l5d("CORES_MAX"), count()),
        max_ratio: env.optional(&l5d("CORES_MAX_RATIO"), ratio),
    }
}

fn ratio(text: &str) -> Result<f64, Invalid> {
    let ratio: f64 = parse::number(text)?;
    let is_share = ratio > 0.0 && ratio <= 1.0;
    if is_share { Ok(ratio) } else { Err(Invalid::new("is no share", "a number above 0 and at most 1")) }
}

fn default_policy(text: &str) -> Result<DefaultPolicy, Invalid> {
    DefaultPolicy::parse(text.trim()).ok_or_else(|| {
        let names = "all-unauthenticated, all-authenticated, cluster-unauthenticated, cluster-authenticated, audit or deny";
        Invalid::new("is no default policy", names)
    })
}

fn one_or_two(text: &str) -> Result<Vec<SocketAddr>, Invalid> {
    let addrs = parse::socket_addrs(text)?;
    let fits = (1..=2).contains(&addrs.len());
    if fits { Ok(addrs) } else { Err(Invalid::new(format!("{} addresses", addrs.len()), "one or two")) }
}

/// A name that can also be a TLS server name.
fn dns_identity(text: &str) -> Result<Identity, Invalid> {
    let identity = parse::identity(text)?;
    match identity.kind() {
        Kind::Dns => Ok(identity),
        Kind::Uri => Err(Invalid::new("is a URI", "a DNS-like name")),
    }
}

/// Text that holds at least one certificate, and none that is cut off.
fn certificates(text: &str) -> Result<String, Invalid> {
    let expected = "one or more PEM blocks BEGIN CERTIFICATE";
    let certs: Result<Vec<CertificateDer<'_>>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    match certs {
        Ok(certs) if certs.is_empty() => Err(Invalid::new("holds no certificate", expected)),
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(Invalid::new(format!("is no PEM text: {error}"), expected)),
    }
}

/// A time of zero would fail everything that it bounds.
fn positive(text: &str) -> Result<Duration, Invalid> {
    let time = parse::duration(text)?;
    if time.is_zero() { Err(Invalid::new("is zero", "a time above zero")) } else { Ok(time) }
}

fn is_positive(time: &Duration) -> bool {
    !time.is_zero()
}

#[cfg(test)]
mod tests;

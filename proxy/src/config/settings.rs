//! Every setting of the proxy: name, default, one line of help. `remora-proxy --help` and `docs/reference/config.md`
//! are printed from here; a test holds the list against what [`super::Config::from_env`] really reads.

use std::fmt::Write as _;

/// One environment variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The variable.
    pub name: &'static str,
    /// What counts when it is unset or empty; `required` where nothing can; empty where nothing is a fine value.
    pub default: &'static str,
    /// One line.
    pub help: &'static str,
}

/// Settings that belong together.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    /// Heading.
    pub title: &'static str,
    /// In the order of reading.
    pub settings: &'static [Setting],
}

macro_rules! settings {
    ($($name:literal | $default:literal | $help:literal)*) => {
        &[$(Setting { name: $name, default: $default, help: $help }),*]
    };
}

/// All settings, in the order in which a person would ask for them.
pub const GROUPS: &[Group] = &[
    Group {
        title: "Listeners",
        settings: settings! {
            "LINKERD2_PROXY_INBOUND_LISTEN_ADDR" | "0.0.0.0:4143" | "Where redirected inbound connections and meshed peers arrive"
            "LINKERD2_PROXY_OUTBOUND_LISTEN_ADDRS" | "" | "Where redirected outbound connections arrive: one address, or an IPv4 and an IPv6 one"
            "LINKERD2_PROXY_OUTBOUND_LISTEN_ADDR" | "127.0.0.1:4140" | "The same for one address; read when the list is unset"
            "LINKERD2_PROXY_ADMIN_LISTEN_ADDR" | "127.0.0.1:4191" | "Probes, metrics and state"
        },
    },
    Group {
        title: "Control plane",
        settings: settings! {
            "LINKERD2_PROXY_DESTINATION_SVC_ADDR" | "required" | "host:port of discovery"
            "LINKERD2_PROXY_DESTINATION_SVC_NAME" | "required" | "Identity that discovery must prove; unused on loopback, which is plaintext"
            "LINKERD2_PROXY_POLICY_SVC_ADDR" | "required" | "host:port of policy"
            "LINKERD2_PROXY_POLICY_SVC_NAME" | "required" | "Identity that policy must prove; unused on loopback"
            "LINKERD2_PROXY_CONTROL_STREAM_INITIAL_TIMEOUT" | "" | "Longest wait for the first message of a stream; unused on loopback"
            "LINKERD2_PROXY_CONTROL_STREAM_IDLE_TIMEOUT" | "" | "Longest wait between messages; unused on loopback"
            "LINKERD2_PROXY_CONTROL_STREAM_LIFETIME" | "" | "Age at which a stream is opened anew; unused on loopback"
            "REMORA_PROXY_API" | "" | "`v1` uses remora.proxy.v1 beside Linkerd's API where the control plane has it"
        },
    },
    Group {
        title: "Identity",
        settings: settings! {
            "LINKERD2_PROXY_IDENTITY_SVC_ADDR" | "required" | "host:port of the certificate authority"
            "LINKERD2_PROXY_IDENTITY_SVC_NAME" | "required" | "Identity that it must prove; unused on loopback"
            "LINKERD2_PROXY_IDENTITY_DIR" | "required" | "Memory-backed folder for key, certificate and trust bundle"
            "LINKERD2_PROXY_IDENTITY_TRUST_ANCHORS" | "required" | "PEM text of the root certificates"
            "LINKERD2_PROXY_IDENTITY_TOKEN_FILE" | "required" | "Service-account token, read anew at every attempt"
            "LINKERD2_PROXY_IDENTITY_LOCAL_NAME" | "required" | "This proxy's identity"
            "LINKERD2_PROXY_IDENTITY_MIN_REFRESH" | "10s" | "Shortest time between renewals"
            "LINKERD2_PROXY_IDENTITY_MAX_REFRESH" | "1d" | "Longest time between renewals"
            "REMORA_PROXY_IDENTITY_DISABLED" | "false" | "`true` runs without mTLS; the control plane must then be on loopback"
        },
    },
    Group {
        title: "Discovery and policy",
        settings: settings! {
            "LINKERD2_PROXY_DESTINATION_CONTEXT" | "" | "Sent to discovery as it is: who asks"
            "LINKERD2_PROXY_DESTINATION_PROFILE_NETWORKS" | "" | "Networks whose addresses discovery is asked about"
            "LINKERD2_PROXY_DESTINATION_PROFILE_SUFFIXES" | "svc.cluster.local." | "Names whose ServiceProfile is looked up for the inbound requests that are addressed to them; `.` is all names"
            "LINKERD2_PROXY_POLICY_WORKLOAD" | "required" | "Sent to policy as it is: who asks"
            "LINKERD2_PROXY_POLICY_CLUSTER_NETWORKS" | "" | "Networks of the cluster, for the cluster-* policies and for outages"
            "LINKERD2_PROXY_INBOUND_DEFAULT_POLICY" | "all-unauthenticated" | "Policy of a port until the controller has answered"
            "REMORA_PROXY_OUTBOUND_DEFAULT_POLICY" | "all-unauthenticated" | "Who may be connected to in plaintext: everybody (`all-unauthenticated`), nobody (`all-authenticated`), or who is outside the cluster's networks (`cluster-authenticated`)"
            "LINKERD2_PROXY_INBOUND_PORTS" | "" | "Ports whose policy is watched from the start"
            "LINKERD2_PROXY_INBOUND_PORTS_DISABLE_PROTOCOL_DETECTION" | "" | "Ports that are opaque under the default policy"
            "LINKERD2_PROXY_INBOUND_IPS" | "" | "The pod's own addresses; others are refused inbound. Unset: all are taken"
            "LINKERD2_PROXY_INGRESS_MODE" | "false" | "Route requests by their l5d-dst-override header, where they have one"
            "LINKERD2_PROXY_INBOUND_DISCOVERY_IDLE_TIMEOUT" | "90s" | "How long an unused port policy is kept"
            "LINKERD2_PROXY_OUTBOUND_DISCOVERY_IDLE_TIMEOUT" | "5s" | "How long an unused target is kept"
            "REMORA_PROXY_FIRST_LOOKUP_TIMEOUT" | "3s" | "How long the first lookup of a target may take"
            "REMORA_PROXY_MAX_TARGETS" | "10000" | "Targets cached per kind of lookup"
        },
    },
    Group {
        title: "Connections",
        settings: settings! {
            "LINKERD2_PROXY_INBOUND_CONNECT_TIMEOUT" | "300ms" | "Dialling the application"
            "LINKERD2_PROXY_OUTBOUND_CONNECT_TIMEOUT" | "1s" | "Dialling an endpoint: TCP, TLS and header"
            "LINKERD2_PROXY_INBOUND_DETECT_TIMEOUT" | "10s" | "Waiting for a client's first bytes"
            "LINKERD2_PROXY_OUTBOUND_DETECT_TIMEOUT" | "10s" | "Waiting for the application's first bytes"
            "LINKERD2_PROXY_INBOUND_ACCEPT_KEEPALIVE" | "" | "TCP keepalive of accepted connections"
            "LINKERD2_PROXY_INBOUND_CONNECT_KEEPALIVE" | "" | "TCP keepalive towards the application"
            "LINKERD2_PROXY_INBOUND_ACCEPT_USER_TIMEOUT" | "" | "TCP_USER_TIMEOUT of accepted connections"
            "LINKERD2_PROXY_INBOUND_CONNECT_USER_TIMEOUT" | "" | "TCP_USER_TIMEOUT towards the application"
            "LINKERD2_PROXY_OUTBOUND_ACCEPT_KEEPALIVE" | "" | "TCP keepalive of the application's connections"
            "LINKERD2_PROXY_OUTBOUND_CONNECT_KEEPALIVE" | "" | "TCP keepalive towards endpoints"
            "LINKERD2_PROXY_OUTBOUND_ACCEPT_USER_TIMEOUT" | "" | "TCP_USER_TIMEOUT of the application's connections"
            "LINKERD2_PROXY_OUTBOUND_CONNECT_USER_TIMEOUT" | "" | "TCP_USER_TIMEOUT towards endpoints"
            "REMORA_PROXY_MUX" | "true" | "Share one connection among the streams to another proxy of ours; `false` opens one each"
            "REMORA_PROXY_SERVER_FIRST_DELAY" | "100ms" | "Silence of a client before its server is dialled to hear whether it speaks first"
            "REMORA_PROXY_MAX_SPECULATIVE" | "256" | "Such dials open at once"
            "REMORA_PROXY_MAX_CONNECTIONS" | "8192" | "Connections served at once, per direction; fewer where the process may not open as many descriptors"
        },
    },
    Group {
        title: "HTTP",
        settings: settings! {
            "LINKERD2_PROXY_INBOUND_HTTP1_CONNECTION_POOL_IDLE_TIMEOUT" | "3s" | "How long an idle HTTP/1 connection to the application is kept"
            "LINKERD2_PROXY_OUTBOUND_HTTP1_CONNECTION_POOL_IDLE_TIMEOUT" | "3s" | "How long an idle HTTP/1 connection to an endpoint is kept"
            "LINKERD2_PROXY_OUTBOUND_DISABLE_INFORMATIONAL_HEADERS" | "false" | "Leave out l5d-proxy-error and l5d-proxy-connection; `true` in ingress mode"
            "REMORA_PROXY_DENIAL_HEADER" | "false" | "Name server, route and policies in remora-denied-by to meshed clients that inbound policy refuses"
            "REMORA_PROXY_MAX_IDLE_PER_ENDPOINT" | "128" | "Idle HTTP/1 connections kept per endpoint"
            "REMORA_PROXY_POOL_MAX_AGE" | "10m" | "Age at which a pooled connection is retired"
            "REMORA_PROXY_MAX_HEADER_BYTES" | "65536" | "Bytes of header accepted per message"
            "REMORA_PROXY_MAX_HEADERS" | "100" | "Header fields accepted per message; of HTTP/2, each also counts 32 bytes of the above"
            "REMORA_PROXY_REQUEST_HEAD_TIMEOUT" | "10s" | "From the first byte of a request's head to its last; of HTTP/2 the preface too"
            "REMORA_PROXY_REQUEST_BODY_TIMEOUT" | "5m" | "Waiting for 1 KiB of a request's body, or its end, before the answer has begun; gRPC is not waited for"
            "REMORA_PROXY_MAX_RETRY_BODY" | "65536" | "Bytes kept of a request's body for its retries; a longer one is not sent again. 0 to 1048576"
            "REMORA_PROXY_MAX_RETRIES" | "10" | "Retries of one request at most, whatever the budget of its ServiceProfile"
            "LINKERD2_PROXY_INBOUND_SERVER_HTTP2_KEEP_ALIVE_INTERVAL" | "" | "HTTP/2 pings to inbound clients"
            "LINKERD2_PROXY_INBOUND_SERVER_HTTP2_KEEP_ALIVE_TIMEOUT" | "" | "Longest wait for the answer to such a ping"
            "LINKERD2_PROXY_INBOUND_SERVER_HTTP2_INITIAL_STREAM_WINDOW_SIZE" | "" | "Bytes a stream may send ahead"
            "LINKERD2_PROXY_INBOUND_SERVER_HTTP2_INITIAL_CONNECTION_WINDOW_SIZE" | "" | "Bytes a connection may send ahead"
            "LINKERD2_PROXY_INBOUND_SERVER_HTTP2_ADAPTIVE_FLOW_CONTROL" | "false" | "Measure the windows"
            "LINKERD2_PROXY_INBOUND_SERVER_HTTP2_MAX_CONCURRENT_STREAMS" | "" | "Streams a client may have open"
            "LINKERD2_PROXY_INBOUND_SERVER_HTTP2_MAX_FRAME_SIZE" | "" | "Largest frame, 16384 to 16777215"
            "LINKERD2_PROXY_INBOUND_SERVER_HTTP2_MAX_HEADER_LIST_SIZE" | "" | "Largest header list"
            "LINKERD2_PROXY_INBOUND_SERVER_HTTP2_MAX_PENDING_ACCEPT_RESET_STREAMS" | "" | "Streams reset before they were accepted"
            "LINKERD2_PROXY_INBOUND_SERVER_HTTP2_MAX_SEND_BUF_SIZE" | "" | "Bytes buffered per stream"
            "LINKERD2_PROXY_OUTBOUND_SERVER_HTTP2_KEEP_ALIVE_INTERVAL" | "" | "The same ten for the application's connections"
            "LINKERD2_PROXY_OUTBOUND_SERVER_HTTP2_KEEP_ALIVE_TIMEOUT" | "" | "As inbound"
            "LINKERD2_PROXY_OUTBOUND_SERVER_HTTP2_INITIAL_STREAM_WINDOW_SIZE" | "" | "As inbound"
            "LINKERD2_PROXY_OUTBOUND_SERVER_HTTP2_INITIAL_CONNECTION_WINDOW_SIZE" | "" | "As inbound"
            "LINKERD2_PROXY_OUTBOUND_SERVER_HTTP2_ADAPTIVE_FLOW_CONTROL" | "false" | "As inbound"
            "LINKERD2_PROXY_OUTBOUND_SERVER_HTTP2_MAX_CONCURRENT_STREAMS" | "" | "As inbound"
            "LINKERD2_PROXY_OUTBOUND_SERVER_HTTP2_MAX_FRAME_SIZE" | "" | "As inbound"
            "LINKERD2_PROXY_OUTBOUND_SERVER_HTTP2_MAX_HEADER_LIST_SIZE" | "" | "As inbound"
            "LINKERD2_PROXY_OUTBOUND_SERVER_HTTP2_MAX_PENDING_ACCEPT_RESET_STREAMS" | "" | "As inbound"
            "LINKERD2_PROXY_OUTBOUND_SERVER_HTTP2_MAX_SEND_BUF_SIZE" | "" | "As inbound"
        },
    },
    Group {
        title: "Process",
        settings: settings! {
            "LINKERD2_PROXY_CORES" | "1" | "Worker threads at least (older name of CORES_MIN)"
            "LINKERD2_PROXY_CORES_MIN" | "" | "Worker threads at least; wins over CORES"
            "LINKERD2_PROXY_CORES_MAX" | "" | "Worker threads at most"
            "LINKERD2_PROXY_CORES_MAX_RATIO" | "" | "Worker threads at most, as a share of the machine's; read when CORES_MAX is unset"
            "REMORA_PROXY_MEMORY_LIMIT" | "" | "Memory that the proxy may use, such as 64Mi; unset: as its control group says; 0: no limit. From 70 % on nothing new is begun, from 85 % on whoever sends is cut off"
            "LINKERD2_PROXY_SHUTDOWN_GRACE_PERIOD" | "2m" | "How long a drain may take"
            "LINKERD2_PROXY_SHUTDOWN_ENDPOINT_ENABLED" | "false" | "POST /shutdown on the admin port answers loopback"
            "LINKERD2_PROXY_LOG" | "warn,linkerd=info,hickory=error" | "Log filter; the target `linkerd` means this proxy. Its finest level is `debug`"
            "LINKERD2_PROXY_LOG_FORMAT" | "plain" | "plain or json"
            "LINKERD2_PROXY_ACCESS_LOG" | "" | "apache or json: one line per inbound request"
        },
    },
    Group {
        title: "Metrics",
        settings: settings! {
            "LINKERD2_PROXY_METRICS_RETAIN_IDLE" | "10m" | "How long a series outlives its last use"
            "LINKERD2_PROXY_INBOUND_METRICS_AUTHORITY_LABELS" | "false" | "`unsafe` labels inbound requests with what clients send as authority"
            "LINKERD2_PROXY_OUTBOUND_METRICS_HOSTNAME_LABELS" | "false" | "Label outbound requests with their host name"
            "REMORA_PROXY_METRIC_BUDGET" | "2000" | "Series per metric family; what is beyond is folded into one and counted"
        },
    },
];

/// What Linkerd's injector sets and this proxy has no use for, and why.
pub const UNUSED: &[(&str, &str)] = &[
    ("LINKERD2_PROXY_CONTROL_LISTEN_ADDR", "there is no tap server; controllers read it from the pod"),
    ("LINKERD2_PROXY_TAP_SVC_NAME", "there is no tap server"),
    (
        "LINKERD2_PROXY_INBOUND_GATEWAY_SUFFIXES",
        "there is no multicluster gateway yet: headers with a name are refused",
    ),
    ("LINKERD2_PROXY_INBOUND_PORTS_REQUIRE_IDENTITY", "the controller enforces it, as with Linkerd's proxy"),
    ("LINKERD2_PROXY_INBOUND_PORTS_REQUIRE_TLS", "the controller enforces it, as with Linkerd's proxy"),
    ("LINKERD2_PROXY_DNS_MIN_TTL, …_MAX_TTL", "names of the control plane are resolved at every connection"),
    ("LINKERD2_PROXY_TRACE_…", "there is no tracing yet: trace headers pass untouched"),
];

/// What `remora-proxy --help` prints.
pub fn help() -> String {
    let mut out = "remora-proxy: the data plane of one pod, configured by its environment.\n\n\
                   Durations are an integer with ms, s, m, h or d. An empty value counts as unset. Unknown names that\n\
                   begin with LINKERD2_PROXY_ are ignored; unknown names that begin with REMORA_PROXY_ are mistakes.\n\
                   All mistakes are listed at once; the exit code is then 64.\n"
        .to_owned();
    for Group { title, settings } in GROUPS {
        // Writing to a String cannot fail.
        let _ = write!(out, "\n{title}\n");
        for Setting { name, default, help } in *settings {
            let default = if default.is_empty() { String::new() } else { format!(" [{default}]") };
            let _ = writeln!(out, "  {name}{default}\n      {help}");
        }
    }
    out
}

/// What `docs/reference/config.md` holds.
pub fn markdown() -> String {
    let mut out = "# Settings of remora-proxy\n\n\
                   <!-- Printed from proxy/src/config/settings.rs; REMORA_UPDATE_DOCS=1 cargo test -p remora-proxy config -->\n\n\
                   The proxy is configured by its environment, which the injector writes. Names that begin with\n\
                   `LINKERD2_PROXY_` mean what they mean to Linkerd's proxy; `REMORA_PROXY_` is ours. Durations are an\n\
                   integer with `ms`, `s`, `m`, `h` or `d`. An empty value counts as unset. Unknown `LINKERD2_PROXY_` names\n\
                   are ignored, unknown `REMORA_PROXY_` names are mistakes. All mistakes are listed at once, and the exit\n\
                   code is then 64.\n"
        .to_owned();
    for Group { title, settings } in GROUPS {
        // Writing to a String cannot fail.
        let _ = write!(out, "\n## {title}\n\n| name | default | meaning |\n|---|---|---|\n");
        for Setting { name, default, help } in *settings {
            let default = match *default {
                "" | "required" => (*default).to_owned(),
                value => format!("`{value}`"),
            };
            let _ = writeln!(out, "| `{name}` | {default} | {help} |");
        }
    }
    out.push_str("\n## Set by Linkerd's injector, not used\n\n| name | why |\n|---|---|\n");
    for (name, why) in UNUSED {
        let _ = writeln!(out, "| `{name}` | {why} |");
    }
    out
}

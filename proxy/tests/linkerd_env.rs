//! A pod that Linkerd's injector made must start our proxy: exactly the environment that its chart writes, with
//! Kubernetes' references expanded as a kubelet does, and nothing of ours. Contract 1.13.

use remora_proxy::config::{AccessLog, Config, LogFormat};
use remora_runtime::env::Env;
use std::{collections::BTreeSet, time::Duration};

const ROOT: &str = include_str!("../src/config/read/root.pem");
const CLUSTER: &str = "10.0.0.0/8,100.64.0.0/10,172.16.0.0/12,192.168.0.0/16,fd00::/8";

/// Names and values in the chart's order; `ipv6` as its `disableIPv6: false`.
fn chart(ipv6: bool) -> Vec<(&'static str, &'static str)> {
    let any = |v4, v6| if ipv6 { v6 } else { v4 };
    vec![
        ("_pod_name", "web-7d4b9c-x2x9z"),
        ("_pod_ns", "shop"),
        ("_pod_uid", "0c1f1f0e-7c6b-4f0f-9a68-5f2b2d9a5b11"),
        ("_pod_nodeName", "node-1"),
        ("_pod_containerName", "linkerd-proxy"),
        ("LINKERD2_PROXY_CORES", "1"),
        ("LINKERD2_PROXY_CORES_MIN", "1"),
        ("LINKERD2_PROXY_SHUTDOWN_ENDPOINT_ENABLED", "false"),
        ("LINKERD2_PROXY_LOG", "warn,linkerd=info,hickory=error,[{headers}]=off,[{request}]=off"),
        ("LINKERD2_PROXY_LOG_FORMAT", "plain"),
        ("LINKERD2_PROXY_DESTINATION_SVC_ADDR", "linkerd-dst-headless.linkerd.svc.cluster.local.:8086"),
        ("LINKERD2_PROXY_DESTINATION_PROFILE_NETWORKS", CLUSTER),
        ("LINKERD2_PROXY_POLICY_SVC_ADDR", "linkerd-policy.linkerd.svc.cluster.local.:8090"),
        ("LINKERD2_PROXY_POLICY_WORKLOAD", "{\"ns\":\"shop\", \"pod\":\"web-7d4b9c-x2x9z\"}\n"),
        ("LINKERD2_PROXY_INBOUND_DEFAULT_POLICY", "all-unauthenticated"),
        ("LINKERD2_PROXY_POLICY_CLUSTER_NETWORKS", CLUSTER),
        ("LINKERD2_PROXY_CONTROL_STREAM_INITIAL_TIMEOUT", "3s"),
        ("LINKERD2_PROXY_CONTROL_STREAM_IDLE_TIMEOUT", "5m"),
        ("LINKERD2_PROXY_CONTROL_STREAM_LIFETIME", "1h"),
        ("LINKERD2_PROXY_INBOUND_CONNECT_TIMEOUT", "100ms"),
        ("LINKERD2_PROXY_OUTBOUND_CONNECT_TIMEOUT", "1000ms"),
        ("LINKERD2_PROXY_OUTBOUND_DISCOVERY_IDLE_TIMEOUT", "5s"),
        ("LINKERD2_PROXY_INBOUND_DISCOVERY_IDLE_TIMEOUT", "90s"),
        ("LINKERD2_PROXY_CONTROL_LISTEN_ADDR", any("0.0.0.0:4190", "[::]:4190")),
        ("LINKERD2_PROXY_ADMIN_LISTEN_ADDR", any("0.0.0.0:4191", "[::]:4191")),
        ("LINKERD2_PROXY_OUTBOUND_LISTEN_ADDR", "127.0.0.1:4140"),
        ("LINKERD2_PROXY_OUTBOUND_LISTEN_ADDRS", any("127.0.0.1:4140", "127.0.0.1:4140,[::1]:4140")),
        ("LINKERD2_PROXY_INBOUND_LISTEN_ADDR", any("0.0.0.0:4143", "[::]:4143")),
        ("LINKERD2_PROXY_INBOUND_IPS", any("10.42.0.7", "10.42.0.7,fd00:42::7")),
        ("LINKERD2_PROXY_INBOUND_PORTS", "8080,9090"),
        ("LINKERD2_PROXY_DESTINATION_PROFILE_SUFFIXES", "svc.cluster.local."),
        ("LINKERD2_PROXY_INBOUND_ACCEPT_KEEPALIVE", "10000ms"),
        ("LINKERD2_PROXY_OUTBOUND_CONNECT_KEEPALIVE", "10000ms"),
        ("LINKERD2_PROXY_INBOUND_ACCEPT_USER_TIMEOUT", "30s"),
        ("LINKERD2_PROXY_OUTBOUND_CONNECT_USER_TIMEOUT", "30s"),
        ("LINKERD2_PROXY_INBOUND_SERVER_HTTP2_KEEP_ALIVE_INTERVAL", "10s"),
        ("LINKERD2_PROXY_INBOUND_SERVER_HTTP2_KEEP_ALIVE_TIMEOUT", "3s"),
        ("LINKERD2_PROXY_OUTBOUND_SERVER_HTTP2_KEEP_ALIVE_INTERVAL", "10s"),
        ("LINKERD2_PROXY_OUTBOUND_SERVER_HTTP2_KEEP_ALIVE_TIMEOUT", "3s"),
        ("LINKERD2_PROXY_INBOUND_PORTS_DISABLE_PROTOCOL_DETECTION", "25,587,3306,4444,5432,6379,9300,11211"),
        (
            "LINKERD2_PROXY_DESTINATION_CONTEXT",
            "{\"ns\":\"shop\", \"nodeName\":\"node-1\", \"pod\":\"web-7d4b9c-x2x9z\"}\n",
        ),
        ("_pod_sa", "web"),
        ("_l5d_ns", "linkerd"),
        ("_l5d_trustdomain", "cluster.local"),
        ("LINKERD2_PROXY_IDENTITY_DIR", "/var/run/linkerd/identity/end-entity"),
        ("LINKERD2_PROXY_IDENTITY_TRUST_ANCHORS", ROOT),
        ("LINKERD2_PROXY_IDENTITY_TOKEN_FILE", "/var/run/secrets/tokens/linkerd-identity-token"),
        ("LINKERD2_PROXY_IDENTITY_SVC_ADDR", "linkerd-identity-headless.linkerd.svc.cluster.local.:8080"),
        ("LINKERD2_PROXY_IDENTITY_LOCAL_NAME", "web.shop.serviceaccount.identity.linkerd.cluster.local"),
        (
            "LINKERD2_PROXY_IDENTITY_SVC_NAME",
            "linkerd-identity.linkerd.serviceaccount.identity.linkerd.cluster.local",
        ),
        (
            "LINKERD2_PROXY_DESTINATION_SVC_NAME",
            "linkerd-destination.linkerd.serviceaccount.identity.linkerd.cluster.local",
        ),
        (
            "LINKERD2_PROXY_POLICY_SVC_NAME",
            "linkerd-destination.linkerd.serviceaccount.identity.linkerd.cluster.local",
        ),
    ]
}

#[test]
fn the_charts_environment_is_understood() {
    let config = Config::from_env(Env::from_pairs(chart(true))).unwrap();
    assert_eq!(config.outbound.listen, ["127.0.0.1:4140".parse().unwrap(), "[::1]:4140".parse().unwrap()]);
    assert_eq!(config.inbound.listen, "[::]:4143".parse().unwrap());
    assert_eq!(config.admin.listen, "[::]:4191".parse().unwrap());
    assert_eq!(
        config.inbound.ips,
        ["10.42.0.7".parse::<std::net::IpAddr>().unwrap(), "fd00:42::7".parse().unwrap()]
    );
    assert_eq!(config.inbound.ports, BTreeSet::from([4191, 8080, 9090]));
    assert_eq!(config.inbound.opaque_ports.len(), 8);
    assert_eq!(config.inbound.connect_timeout, Duration::from_millis(100));
    assert_eq!(config.inbound.socket.accept_keepalive, Some(Duration::from_secs(10)));
    assert_eq!(config.inbound.socket.connect_keepalive, None);
    assert_eq!(config.outbound.socket.connect_user_timeout, Some(Duration::from_secs(30)));
    assert_eq!(config.inbound.http2.keep_alive_interval, Some(Duration::from_secs(10)));
    assert_eq!(config.discovery.cluster_networks.len(), 5);
    assert_eq!(config.discovery.workload, "{\"ns\":\"shop\", \"pod\":\"web-7d4b9c-x2x9z\"}\n", "verbatim");
    assert_eq!(config.streams.lifetime, Some(Duration::from_hours(1)));
    assert_eq!(config.destination.host, "linkerd-dst-headless.linkerd.svc.cluster.local.");
    assert_eq!(config.log_format, LogFormat::Plain);
    assert_eq!((config.access_log, config.workers, config.remora_api), (None, 1, false));
    let identity = config.identity.unwrap();
    assert_eq!(identity.local_name.as_str(), "web.shop.serviceaccount.identity.linkerd.cluster.local");
    assert_eq!(identity.trust_anchors, ROOT);
}

#[test]
fn without_ipv6_it_listens_on_ipv4_alone() {
    let config = Config::from_env(Env::from_pairs(chart(false))).unwrap();
    assert_eq!(config.outbound.listen, ["127.0.0.1:4140".parse().unwrap()]);
    assert_eq!(config.inbound.listen, "0.0.0.0:4143".parse().unwrap());
}

#[test]
fn what_annotations_add_is_understood() {
    let more = [
        ("LINKERD2_PROXY_INBOUND_PORTS_REQUIRE_IDENTITY", "8080"),
        ("LINKERD2_PROXY_INBOUND_PORTS_REQUIRE_TLS", "8080"),
        ("LINKERD2_PROXY_OUTBOUND_DETECT_TIMEOUT", "365d"),
        ("LINKERD2_PROXY_INBOUND_DETECT_TIMEOUT", "365d"),
        ("LINKERD2_PROXY_INBOUND_GATEWAY_SUFFIXES", "svc.cluster.local."),
        ("LINKERD2_PROXY_INGRESS_MODE", "true"),
        ("LINKERD2_PROXY_ACCESS_LOG", "apache"),
        ("LINKERD2_PROXY_SHUTDOWN_GRACE_PERIOD", "2m"),
        ("LINKERD2_PROXY_CORES_MAX_RATIO", "0.5"),
        ("LINKERD2_PROXY_TAP_SVC_NAME", "tap.linkerd-viz.serviceaccount.identity.linkerd.cluster.local"),
        ("LINKERD2_PROXY_TRACE_COLLECTOR_SVC_ADDR", "collector.linkerd-jaeger:4317"),
        ("LINKERD2_PROXY_TRACE_PROTOCOL", "opentelemetry"),
    ];
    let config = Config::from_env(Env::from_pairs(chart(true).into_iter().chain(more))).unwrap();
    assert_eq!(config.access_log, Some(AccessLog::Apache));
    assert_eq!(config.outbound.detect_timeout, Duration::from_hours(365 * 24));
    assert!(config.ingress_mode && !config.outbound.informational_headers);
}

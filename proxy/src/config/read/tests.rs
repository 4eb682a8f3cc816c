//! Every kind of mistake, all at once; and the list of settings against what is read.

use super::*;
use crate::config::{GROUPS, help, markdown};
use std::collections::BTreeSet;

/// A root certificate made for this test; nobody has kept its key.
pub(crate) const ROOT: &str = include_str!("root.pem");

/// The least that a proxy must be told.
fn least() -> Vec<(&'static str, &'static str)> {
    vec![
        ("LINKERD2_PROXY_DESTINATION_SVC_ADDR", "remora-dst-headless.remora.svc.cluster.local.:8086"),
        (
            "LINKERD2_PROXY_DESTINATION_SVC_NAME",
            "remora-destination.remora.serviceaccount.identity.remora.cluster.local",
        ),
        ("LINKERD2_PROXY_POLICY_SVC_ADDR", "remora-policy.remora.svc.cluster.local.:8090"),
        (
            "LINKERD2_PROXY_POLICY_SVC_NAME",
            "remora-destination.remora.serviceaccount.identity.remora.cluster.local",
        ),
        ("LINKERD2_PROXY_POLICY_WORKLOAD", r#"{"ns":"shop","pod":"web-1"}"#),
        ("LINKERD2_PROXY_IDENTITY_SVC_ADDR", "remora-identity-headless.remora.svc.cluster.local.:8080"),
        (
            "LINKERD2_PROXY_IDENTITY_SVC_NAME",
            "remora-identity.remora.serviceaccount.identity.remora.cluster.local",
        ),
        ("LINKERD2_PROXY_IDENTITY_DIR", "/var/run/linkerd/identity/end-entity"),
        ("LINKERD2_PROXY_IDENTITY_TRUST_ANCHORS", ROOT),
        ("LINKERD2_PROXY_IDENTITY_TOKEN_FILE", "/var/run/secrets/tokens/linkerd-identity-token"),
        ("LINKERD2_PROXY_IDENTITY_LOCAL_NAME", "web.shop.serviceaccount.identity.remora.cluster.local"),
    ]
}

fn with(more: &[(&'static str, &'static str)]) -> Result<Config, Mistakes> {
    Config::from_env(Env::from_pairs(least().into_iter().chain(more.iter().copied())))
}

/// The lines of a configuration that must be refused.
#[track_caller]
fn mistakes(more: &[(&'static str, &'static str)]) -> Vec<String> {
    let Err(Mistakes(mistakes)) = with(more) else { panic!("{more:?} was accepted") };
    mistakes.iter().map(ToString::to_string).collect()
}

#[test]
fn the_least_gives_linkerds_defaults() {
    let config = with(&[]).unwrap();
    let Config { inbound, outbound, admin, limits, .. } = &config;
    assert_eq!(inbound.listen, "0.0.0.0:4143".parse().unwrap());
    assert_eq!(outbound.listen, ["127.0.0.1:4140".parse().unwrap()]);
    assert_eq!(admin.listen, "127.0.0.1:4191".parse().unwrap());
    assert_eq!(inbound.connect_timeout, Duration::from_millis(300));
    assert_eq!(outbound.connect_timeout, SECOND);
    assert_eq!((inbound.detect_timeout, outbound.detect_timeout), (10 * SECOND, 10 * SECOND));
    assert_eq!((inbound.discovery_idle, outbound.discovery_idle), (90 * SECOND, 5 * SECOND));
    assert_eq!((inbound.http1_pool_idle, outbound.http1_pool_idle), (3 * SECOND, 3 * SECOND));
    assert_eq!(inbound.default_policy, DefaultPolicy::AllUnauthenticated);
    assert_eq!(inbound.ports, BTreeSet::from([4191]), "the admin port is always watched");
    assert_eq!((inbound.socket, outbound.socket), (SocketConfig::default(), SocketConfig::default()));
    assert_eq!((inbound.http2, outbound.http2), (Http2Config::default(), Http2Config::default()));
    assert!(
        outbound.informational_headers
            && !admin.shutdown_endpoint
            && !config.remora_api
            && !config.ingress_mode
    );
    assert_eq!(config.shutdown_grace, 120 * SECOND);
    assert_eq!(config.metrics_retain, 600 * SECOND);
    assert_eq!((limits.max_connections, limits.max_header_bytes), (8192, 65_536));
    assert_eq!(config.workers, 1);
    assert_eq!(config.streams, StreamLimits::default());
    let identity = config.identity.as_ref().unwrap();
    assert_eq!((identity.min_refresh, identity.max_refresh), (10 * SECOND, 86_400 * SECOND));
    assert_eq!(config.policy.port, 8090);
}

#[test]
fn an_empty_environment_names_everything_that_is_missing() {
    let Err(Mistakes(mistakes)) = Config::from_env(Env::default()) else { panic!("accepted") };
    let names: BTreeSet<String> = mistakes.into_iter().map(|mistake| mistake.name).collect();
    let required: BTreeSet<String> = GROUPS
        .iter()
        .flat_map(|group| group.settings)
        .filter(|setting| setting.default == "required")
        .map(|setting| setting.name.to_owned())
        .collect();
    assert_eq!(names, required);
}

#[test]
fn every_kind_of_mistake_is_named() {
    for (name, value, reason) in [
        ("LINKERD2_PROXY_INBOUND_LISTEN_ADDR", "4143", "is no socket address"),
        ("LINKERD2_PROXY_OUTBOUND_LISTEN_ADDRS", "127.0.0.1:1,127.0.0.1:2,127.0.0.1:3", "3 addresses"),
        ("LINKERD2_PROXY_INBOUND_CONNECT_TIMEOUT", "100", "the number has no unit"),
        ("LINKERD2_PROXY_INBOUND_DETECT_TIMEOUT", "0", "is zero"),
        ("LINKERD2_PROXY_INBOUND_PORTS", "80,http", "\"http\" is no port"),
        ("LINKERD2_PROXY_INBOUND_IPS", "10.0.0.1,web", "\"web\" is no IP address"),
        ("LINKERD2_PROXY_INBOUND_DEFAULT_POLICY", "everybody", "is no default policy"),
        (
            "LINKERD2_PROXY_INBOUND_DEFAULT_POLICY",
            "cluster-authenticated",
            "needs to know the cluster's networks",
        ),
        ("REMORA_PROXY_OUTBOUND_DEFAULT_POLICY", "deny", "is no outbound default policy"),
        (
            "REMORA_PROXY_OUTBOUND_DEFAULT_POLICY",
            "cluster-authenticated",
            "needs to know the cluster's networks",
        ),
        ("LINKERD2_PROXY_POLICY_CLUSTER_NETWORKS", "10.0.0.0/33", "is no network"),
        ("LINKERD2_PROXY_SHUTDOWN_ENDPOINT_ENABLED", "yes", "is neither"),
        ("LINKERD2_PROXY_LOG", "info=loud", "level filter"),
        ("LINKERD2_PROXY_LOG_FORMAT", "xml", "is no log format"),
        ("LINKERD2_PROXY_ACCESS_LOG", "nginx", "is none of them"),
        ("LINKERD2_PROXY_CORES", "0", "is out of bounds"),
        ("LINKERD2_PROXY_CORES_MAX_RATIO", "1.5", "is no share"),
        ("LINKERD2_PROXY_INBOUND_SERVER_HTTP2_MAX_FRAME_SIZE", "100", "is out of bounds"),
        ("LINKERD2_PROXY_IDENTITY_TRUST_ANCHORS", "roots", "holds no certificate"),
        ("LINKERD2_PROXY_IDENTITY_LOCAL_NAME", "not a name", "not allowed in a name"),
        ("LINKERD2_PROXY_IDENTITY_LOCAL_NAME", "spiffe://td/web", "is a URI"),
        ("LINKERD2_PROXY_IDENTITY_SPIRE_WORKLOAD_API_ADDRESS", "unix:///run/spire", "SPIRE"),
        ("LINKERD2_PROXY_IDENTITY_DISABLED", "disabled", "no longer"),
        ("LINKERD2_PROXY_IDENTITY_MIN_REFRESH", "2d", "is longer than the longest"),
        ("LINKERD2_PROXY_DESTINATION_SVC_ADDR", "remora-dst-headless", "has no port"),
        ("LINKERD2_PROXY_POLICY_SVC_NAME", "", "is not set"),
        ("REMORA_PROXY_API", "v2", "is none of them"),
        ("REMORA_PROXY_MAX_CONNECTIONS", "0", "is out of bounds"),
        ("REMORA_PROXY_MAX_CONECTIONS", "10", "did you mean REMORA_PROXY_MAX_CONNECTIONS?"),
    ] {
        let lines = mistakes(&[(name, value)]);
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(
            lines[0].starts_with(name) && lines[0].contains(reason),
            "{} should say {reason:?}",
            lines[0]
        );
    }
}

#[test]
fn mistakes_come_all_at_once() {
    let lines = mistakes(&[
        ("LINKERD2_PROXY_INBOUND_LISTEN_ADDR", "x"),
        ("LINKERD2_PROXY_OUTBOUND_DETECT_TIMEOUT", "x"),
        ("LINKERD2_PROXY_IDENTITY_DIR", ""),
        ("REMORA_PROXY_NOTHING", "x"),
    ]);
    assert_eq!(lines.len(), 4, "{lines:?}");
}

#[test]
fn unknown_names_of_linkerds_are_ignored() {
    assert!(
        with(&[("LINKERD2_PROXY_INBOUND_PORTS_REQUIRE_TLS", "443"), ("LINKERD2_PROXY_NEWS", "?")]).is_ok()
    );
}

#[test]
fn stream_limits_increase_and_do_not_count_on_loopback() {
    let times = |initial, idle, lifetime| {
        [
            ("LINKERD2_PROXY_CONTROL_STREAM_INITIAL_TIMEOUT", initial),
            ("LINKERD2_PROXY_CONTROL_STREAM_IDLE_TIMEOUT", idle),
            ("LINKERD2_PROXY_CONTROL_STREAM_LIFETIME", lifetime),
            ("LINKERD2_PROXY_POLICY_SVC_ADDR", "localhost.:8090"),
        ]
    };
    let config = with(&times("3s", "5m", "1h")).unwrap();
    assert_eq!(config.stream_limits(&config.destination).idle, Some(300 * SECOND));
    assert_eq!(config.stream_limits(&config.policy), StreamLimits::default());
    assert_eq!(with(&times("0", "", "1h")).unwrap().streams.initial, None);
    for (initial, idle, lifetime) in [("3s", "1s", ""), ("3s", "", "1s"), ("", "3s", "1s")] {
        assert_eq!(mistakes(&times(initial, idle, lifetime)).len(), 1, "{initial} {idle} {lifetime}");
    }
}

#[test]
fn the_control_plane_is_plaintext_on_loopback_and_only_there() {
    let config = with(&[
        ("LINKERD2_PROXY_DESTINATION_SVC_ADDR", "127.0.0.1:8086"),
        ("LINKERD2_PROXY_POLICY_SVC_ADDR", "[::1]:8090"),
        ("LINKERD2_PROXY_POLICY_SVC_NAME", ""),
    ]);
    let config = config.unwrap();
    assert_eq!((config.destination.name, config.policy.name), (None, None));
    assert_eq!(config.policy.host, "::1");

    let off = ("REMORA_PROXY_IDENTITY_DISABLED", "true");
    assert_eq!(mistakes(&[off]).len(), 2, "destination and policy are not on loopback");
    let local = [
        off,
        ("LINKERD2_PROXY_DESTINATION_SVC_ADDR", "localhost:8086"),
        ("LINKERD2_PROXY_POLICY_SVC_ADDR", "localhost:8090"),
        ("LINKERD2_PROXY_IDENTITY_TRUST_ANCHORS", ""),
    ];
    assert!(with(&local).unwrap().identity.is_none());
    let demanding = ("REMORA_PROXY_OUTBOUND_DEFAULT_POLICY", "all-authenticated");
    let lines = mistakes(&[&local[..], &[demanding]].concat());
    assert!(lines.len() == 1 && lines[0].contains("has no identity"), "{lines:?}");
}

#[test]
fn ingress_mode_leaves_out_informational_headers_unless_told() {
    let headers = |more: &[_]| with(more).unwrap().outbound.informational_headers;
    let ingress = ("LINKERD2_PROXY_INGRESS_MODE", "true");
    assert!(headers(&[]));
    assert!(!headers(&[ingress]));
    assert!(headers(&[ingress, ("LINKERD2_PROXY_OUTBOUND_DISABLE_INFORMATIONAL_HEADERS", "false")]));
}

#[test]
fn the_list_of_settings_is_what_is_read() {
    let mut env = Env::from_pairs(least());
    assert!(Config::read(&mut env).is_some());
    let read: BTreeSet<&str> = env.names_read().collect();
    let listed: Vec<&str> =
        GROUPS.iter().flat_map(|group| group.settings).map(|setting| setting.name).collect();
    assert_eq!(listed.iter().copied().collect::<BTreeSet<_>>(), read);
    assert_eq!(listed.len(), read.len(), "a setting is listed twice");
}

#[test]
fn the_defaults_that_are_listed_are_the_ones_that_count() {
    let listed = GROUPS.iter().flat_map(|group| group.settings);
    let defaults = listed.filter(|setting| !matches!(setting.default, "" | "required"));
    let explicit: Vec<(&str, &str)> = defaults.map(|setting| (setting.name, setting.default)).collect();
    let config = with(&explicit).unwrap();
    assert_eq!(format!("{config:?}"), format!("{:?}", with(&[]).unwrap()));
}

#[test]
fn the_reference_page_is_printed_from_the_list() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/config.md");
    if std::env::var_os("REMORA_UPDATE_DOCS").is_some() {
        std::fs::write(path, markdown()).unwrap();
    }
    let page = std::fs::read_to_string(path).unwrap();
    assert!(
        page == markdown(),
        "docs/reference/config.md is stale: run REMORA_UPDATE_DOCS=1 cargo test -p remora-proxy config"
    );
    assert!(help().contains("LINKERD2_PROXY_INBOUND_LISTEN_ADDR [0.0.0.0:4143]"));
}

//! Linkerd's injector could start our proxy: with what its chart writes by default, and with every name that it may
//! write. Nothing in these pods is ours but the binary. Contract 1.13.
#![expect(clippy::unwrap_used, reason = "a test says what it expects")]

use remora_tests::peer::{self, PATIENCE};
use remora_tests::shop::{self, SHOP, curl, identity, state};
use remora_tests::{Mesh, PodRef, check};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::LazyLock;

const PROXY: &str = "linkerd-proxy";
/// A pod as Linkerd's injector leaves it with the chart's defaults.
const MADE: &str = include_str!("../manifests/linkerds-pod.yaml");
/// What it has in its environment besides, where somebody has set everything that can be set: names, and values that
/// are not the defaults.
const MORE: &str = include_str!("../manifests/linkerds-whole-environment.yaml");

/// The names of contract 1.13, group by group, without the prefix. `{A,B}` stands for either; the three of SPIRE are left
/// out: this proxy refuses to run without the identity that they promise.
const CONTRACT: &str = "
    {INBOUND,ADMIN,CONTROL,OUTBOUND}_LISTEN_ADDR OUTBOUND_LISTEN_ADDRS
    {DESTINATION,POLICY,IDENTITY}_SVC_{ADDR,NAME}
    CONTROL_STREAM_{INITIAL_TIMEOUT,IDLE_TIMEOUT,LIFETIME}
    DESTINATION_CONTEXT DESTINATION_PROFILE_NETWORKS DESTINATION_PROFILE_SUFFIXES
    POLICY_WORKLOAD POLICY_CLUSTER_NETWORKS INBOUND_DEFAULT_POLICY INBOUND_PORTS
    INBOUND_PORTS_DISABLE_PROTOCOL_DETECTION INBOUND_IPS INBOUND_PORTS_REQUIRE_{IDENTITY,TLS}
    IDENTITY_{DIR,TRUST_ANCHORS,TOKEN_FILE,LOCAL_NAME,MIN_REFRESH,MAX_REFRESH}
    {INBOUND,OUTBOUND}_{CONNECT_TIMEOUT,DETECT_TIMEOUT,DISCOVERY_IDLE_TIMEOUT}
    {INBOUND,OUTBOUND}_{ACCEPT,CONNECT}_{KEEPALIVE,USER_TIMEOUT}
    {INBOUND,OUTBOUND}_HTTP1_CONNECTION_POOL_IDLE_TIMEOUT SHUTDOWN_GRACE_PERIOD
    {INBOUND,OUTBOUND}_SERVER_HTTP2_{KEEP_ALIVE_INTERVAL,KEEP_ALIVE_TIMEOUT,INITIAL_STREAM_WINDOW_SIZE}
    {INBOUND,OUTBOUND}_SERVER_HTTP2_{INITIAL_CONNECTION_WINDOW_SIZE,ADAPTIVE_FLOW_CONTROL,MAX_CONCURRENT_STREAMS}
    {INBOUND,OUTBOUND}_SERVER_HTTP2_{MAX_FRAME_SIZE,MAX_HEADER_LIST_SIZE,MAX_PENDING_ACCEPT_RESET_STREAMS}
    {INBOUND,OUTBOUND}_SERVER_HTTP2_MAX_SEND_BUF_SIZE
    CORES CORES_MIN CORES_MAX CORES_MAX_RATIO
    LOG LOG_FORMAT ACCESS_LOG INGRESS_MODE INBOUND_GATEWAY_SUFFIXES SHUTDOWN_ENDPOINT_ENABLED
    OUTBOUND_METRICS_HOSTNAME_LABELS TAP_SVC_NAME DNS_{MIN,MAX}_TTL METRICS_RETAIN_IDLE
    OUTBOUND_DISABLE_INFORMATIONAL_HEADERS INBOUND_METRICS_AUTHORITY_LABELS
    TRACE_COLLECTOR_SVC_{ADDR,NAME} TRACE_SERVICE_NAME TRACE_ATTRIBUTES_PATH TRACE_EXTRA_ATTRIBUTES
    TRACE_PROTOCOL TRACE_ANNOTATIONS_PATH
";

static MESH: LazyLock<Mesh> = LazyLock::new(|| {
    let mesh = Mesh::start().unwrap();
    let anchors = serde_json::to_string(mesh.trust_anchor()).unwrap();
    let made = MADE.replace("PEM_BLOCKS", &anchors);
    let (before, after) = made.split_once("  containers:\n").unwrap();
    let whole = format!("{before}{MORE}  containers:\n{after}");
    let whole = whole.replace("name: made", "name: whole").replace("AccountName: made", "AccountName: whole");
    mesh.apply(&[shop::NAMESPACE, &made, "---\n", &whole, "---\n", &shop::idle("web", &[])].concat())
        .unwrap();
    mesh.wait_ready(shop::PATIENCE).unwrap();
    mesh
});

#[test]
fn what_linkerds_chart_writes_by_default_starts_our_proxy() {
    if !check::can_run() {
        return;
    }
    let made = MESH.pod(SHOP, "made").unwrap();
    let env = environment(&made);
    assert!(env.contains_key("LINKERD2_PROXY_IDENTITY_SVC_NAME"));
    carries_traffic_both_ways(&made, 8000);
}

#[test]
fn every_name_that_the_contract_lists_starts_our_proxy_and_none_is_missing() {
    if !check::can_run() {
        return;
    }
    let whole = MESH.pod(SHOP, "whole").unwrap();
    let env = environment(&whole);
    let set: BTreeSet<&str> = env.keys().filter_map(|name| name.strip_prefix("LINKERD2_PROXY_")).collect();
    let names: Vec<String> = CONTRACT.split_whitespace().flat_map(alternatives).collect();
    let listed: BTreeSet<&str> = names.iter().map(String::as_str).collect();
    assert_eq!(set, listed);
    assert!(env.contains_key("OTEL_RESOURCE_ATTRIBUTES"));
    carries_traffic_both_ways(&whole, 8001);
    let log = MESH.logs(&whole, PROXY);
    assert!(log.contains(&format!(" {} - [", identity("web"))), "no line of the access log:\n{log}");
}

#[test]
fn two_workers_share_the_connections() {
    if !check::can_run() {
        return;
    }
    let (whole, web) = (MESH.pod(SHOP, "whole").unwrap(), MESH.pod(SHOP, "web").unwrap());
    let app = remora_tests::App::start(&web, 8003, "web").unwrap();
    let url = format!("http://{}:8003/", web.ip().unwrap());
    // CORES_MAX is 2, and never more than the machine has.
    let workers = std::thread::available_parallelism().unwrap().get().min(2);
    // The kernel spreads connections by their ports: of sixty-four, each worker has one for sure enough.
    for _ in 0..64 {
        assert_eq!(curl(&whole, &[&url]).unwrap(), "web\n");
    }
    assert_eq!(app.requests(), 64);
    let known = state(&whole).unwrap();
    let targets = known.pointer("/outbound/workers").unwrap().as_array().unwrap();
    assert_eq!(targets.len(), workers, "{known:#}");
    let target = format!("{}:8003", web.ip().unwrap());
    assert!(
        targets.iter().all(|worker| worker.get(&target).is_some()),
        "a worker had nothing to do: {known:#}"
    );
}

/// HTTP/1, HTTP/2 and bytes, to this pod and from it, each with the identity of the other end.
#[track_caller]
fn carries_traffic_both_ways(pod: &PodRef<'_>, port: u16) {
    let web = MESH.pod(SHOP, "web").unwrap();
    let name = &pod.name.name;
    for (server, client) in [(pod, &web), (&web, pod)] {
        peer::mirror(server.listen(port).unwrap());
        peer::mirror_http2(server.listen(port + 100).unwrap());
        peer::echo(server.listen(port + 200).unwrap());
        let at = |port| SocketAddr::new(server.ip().unwrap(), port);
        let id = identity(&client.name.name);

        let (url, mut seen) = (format!("http://{}/?from={name}", at(port)), String::new());
        // A pod that has just become ready may be a stranger to the control plane for a moment.
        let waited = MESH.wait_until("the application to be sent a client's identity", PATIENCE, || {
            seen = curl(client, &[&url]).unwrap();
            seen.contains(&format!("l5d-client-id: {id}"))
        });
        assert!(
            waited.is_ok(),
            "the application was sent:\n{seen}\nfrom a proxy that knew:\n{:#}",
            state(client).unwrap()
        );

        let seen =
            curl(client, &["--http2-prior-knowledge", &format!("http://{}/two", at(port + 100))]).unwrap();
        assert_eq!(seen, format!("HTTP/2.0 http://{}/two {id}", at(port + 100)));

        let mut bytes = client.dial(at(port + 200)).unwrap();
        bytes.write_all(b"*1\r\n$4\r\nPING\r\n").unwrap();
        let mut back = [0; 14];
        bytes.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"*1\r\n$4\r\nPING\r\n");
        let meshed = [("session_protocol", "none"), ("client_id", id.as_str())];
        let headers = "inbound_tcp_transport_header_connections_total";
        assert!(server.metrics().unwrap().sum(headers, &meshed) >= Some(1.0), "bytes did not come by mTLS");
    }
}

/// The environment of the pod's running proxy, of which nothing is ours.
#[track_caller]
fn environment(pod: &PodRef<'_>) -> BTreeMap<String, String> {
    let environ = std::fs::read(format!("/proc/{}/environ", pod.pid(PROXY).unwrap())).unwrap();
    let environ = String::from_utf8(environ).unwrap();
    let env: BTreeMap<_, _> = environ
        .split('\0')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    assert!(!env.keys().any(|name| name.contains("REMORA")), "{env:#?}");
    env
}

/// `{A,B}_C` is `A_C` and `B_C`.
fn alternatives(name: &str) -> Vec<String> {
    let Some((before, rest)) = name.split_once('{') else { return vec![name.to_owned()] };
    let (choices, after) = rest.split_once('}').unwrap();
    choices.split(',').flat_map(|choice| alternatives(&format!("{before}{choice}{after}"))).collect()
}

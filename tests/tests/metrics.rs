//! The metrics that Linkerd's queries ask for are there, under the names and labels that they ask by. Contract 5.1, 5.4.

use remora_tests::shop::{self, PATIENCE, SHOP, curl, identity, web};
use remora_tests::{PodRef, check};

/// Series per family, where a test sets it.
const BUDGET: usize = 60;

#[test]
fn what_an_outbound_proxy_counts_is_found_by_parent_route_and_backend() {
    if !check::can_run() {
        return;
    }
    let mesh = shop::open(&[web("web-0"), shop::idle("client", &[])]).unwrap();
    let (client, server) = (mesh.pod(SHOP, "client").unwrap(), mesh.pod(SHOP, "web-0").unwrap());
    // Until its policy has come to the server's proxy, probes have the route of everybody's requests.
    let probed = || server.metrics().unwrap().sum("inbound_http_requests_total", &[("route_name", "probe")]);
    mesh.wait_until("a probe to be told from requests", PATIENCE, || probed() >= Some(1.0)).unwrap();
    let before = server.metrics().unwrap();
    for _ in 0..3 {
        assert_eq!(curl(&client, &["http://web:8000/who"]).unwrap(), "web-0\n");
    }
    curl(&client, &["http://web:8000/files/none"]).unwrap();

    // As `stat-outbound` groups: every label is there.
    let metrics = client.metrics().unwrap();
    let parent = [("parent_kind", "Service"), ("parent_name", "web"), ("parent_port", "8000")];
    let backend = [("backend_kind", "Service"), ("backend_name", "web"), ("backend_port", "8000")];
    let both = [&parent[..], &backend].concat();
    for (family, labels, status, expected) in [
        ("outbound_http_route_request_statuses_total", &parent[..], "200", 3.0),
        ("outbound_http_route_request_statuses_total", &parent, "404", 1.0),
        ("outbound_http_route_backend_response_statuses_total", &both, "200", 3.0),
        ("outbound_http_route_backend_response_statuses_total", &both, "404", 1.0),
    ] {
        let labels = [labels, &[("http_status", status), ("error", "")]].concat();
        assert_eq!(metrics.sum(family, &labels), Some(expected), "{family} {status}");
        for sample in metrics.matching(family, &labels) {
            for of_route in ["route_kind", "route_name"] {
                assert!(!sample.labels[of_route].is_empty(), "{family} lacks {of_route}");
            }
        }
    }
    for family in [
        "outbound_http_route_request_duration_seconds_count",
        "outbound_http_route_backend_response_duration_seconds_count",
        "outbound_http_route_backend_requests_total",
    ] {
        assert_eq!(metrics.sum(family, &parent), Some(4.0), "{family}");
    }
    let bytes = metrics.sum("outbound_http_route_backend_response_frame_size_bytes_sum", &both);
    assert!(bytes >= Some(18.0), "{bytes:?}");
    for (state, expected) in [("ready", 1.0), ("pending", 0.0)] {
        let labels = [&both[..], &[("endpoint_state", state)]].concat();
        assert_eq!(metrics.sum("outbound_http_balancer_endpoints", &labels), Some(expected), "{state}");
    }
    assert_eq!(metrics.sum("outbound_http_balancer_p2c_endpoints", &both), Some(1.0));

    let server = server.metrics().unwrap();
    let route = [("parent_name", "all-unauthenticated"), ("parent_port", "80"), ("route_name", "default")];
    let more = |family: &str, labels: &[(&str, &str)]| {
        Some(server.sum(family, labels)? - before.sum(family, labels).unwrap_or_default())
    };
    for (status, expected) in [("200", 3.0), ("404", 1.0)] {
        let labels = [&route[..], &[("status", status)]].concat();
        assert_eq!(more("inbound_http_statuses_total", &labels), Some(expected), "{status}");
    }
    assert_eq!(more("inbound_http_requests_total", &route), Some(4.0));
    assert_eq!(more("inbound_http_request_duration_seconds_count", &route), Some(4.0));
}

#[test]
fn what_is_asked_of_the_control_plane_is_counted() {
    if !check::can_run() {
        return;
    }
    let mesh = shop::open(&[web("web-0"), shop::idle("client", &[])]).unwrap();
    let client = mesh.pod(SHOP, "client").unwrap();
    assert_eq!(curl(&client, &["http://web:8000/who"]).unwrap(), "web-0\n");
    let metrics = client.metrics().unwrap();
    for account in ["remora-destination", "remora-identity"] {
        let server = format!("{account}.remora.serviceaccount.identity.remora.cluster.local");
        let labels = [("tls", "true"), ("server_id", &*server)];
        assert!(metrics.sum("control_request_total", &labels) >= Some(1.0), "{account}");
    }
    // One certificate, whose request is over; streams last.
    let issued = [("classification", "success"), ("grpc_status", "0")];
    assert_eq!(metrics.sum("control_response_total", &issued), Some(1.0));
    assert!(metrics.sum("control_response_latency_ms_count", &[("status_code", "200")]) >= Some(1.0));
    assert!(metrics.sum("remora_control_connections_total", &[("result", "ok")]) >= Some(3.0));
    assert!(metrics.sum("control_dns_resolutions_total", &[("result", "ok")]) >= Some(3.0));
}

#[test]
fn names_that_clients_choose_are_labels_where_that_is_wanted_and_never_without_bound() {
    if !check::can_run() {
        return;
    }
    let budget = format!(r#"{{"name": "REMORA_PROXY_METRIC_BUDGET", "value": "{BUDGET}"}}"#);
    let env = format!("[{budget}]");
    let names = [
        ("config.linkerd.io/proxy-metrics-hostname-labels", "true"),
        ("config.linkerd.io/proxy-additional-env", &*env),
    ];
    let unsafely = r#"{"name": "LINKERD2_PROXY_INBOUND_METRICS_AUTHORITY_LABELS", "value": "unsafe"}"#;
    let server = web("web-0").replace(
        "labels: {app: web}",
        &format!(
            "labels: {{app: web}}, annotations: {{config.linkerd.io/proxy-additional-env: '[{budget}, {unsafely}]'}}"
        ),
    );
    let mesh = shop::open(&[server, shop::idle("client", &names), shop::idle("plain", &[])]).unwrap();
    let (client, server) = (mesh.pod(SHOP, "client").unwrap(), mesh.pod(SHOP, "web-0").unwrap());
    let ask = |from: &PodRef<'_>, host: &str| {
        assert_eq!(curl(from, &["-H", &format!("Host: {host}"), "http://web:8000/who"]).unwrap(), "web-0\n");
    };
    let plain = mesh.pod(SHOP, "plain").unwrap();
    ask(&plain, "plain.example");
    ask(&client, "one.example:8000");
    ask(&client, "one.example:8000");
    ask(&client, "192.0.2.7");
    let family = "outbound_http_route_request_statuses_total";
    let of = |pod: &PodRef<'_>, host: &str| pod.metrics().unwrap().sum(family, &[("hostname", host)]);
    assert_eq!(of(&client, "one.example"), Some(2.0));
    assert_eq!(of(&client, "192.0.2.7"), None, "an address is no name");
    assert_eq!(of(&plain, "plain.example"), None, "nobody asked for it");
    let authority = [("direction", "inbound"), ("authority", "one.example:8000")];
    let client_id = identity("client");
    let from_client = [&authority[..], &[("client_id", &*client_id)]].concat();
    assert_eq!(server.metrics().unwrap().sum("request_total", &from_client), Some(2.0));

    let script = "for n in $(seq 180); do curl -sS -o /dev/null -H \"Host: host-$n.example\" http://web:8000/who; done";
    assert_eq!(BUDGET, 60, "three times as many hosts");
    client.run("app", &["sh", "-c", script]).unwrap();
    for (pod, family, all) in [(&client, family, 3 * BUDGET + 3), (&server, "request_total", 3 * BUDGET + 4)]
    {
        let metrics = pod.metrics().unwrap();
        let series = metrics.matching(family, &[]).count();
        assert!(series <= BUDGET + 1, "{family} has {series} series, of {BUDGET}");
        assert!(metrics.sum(family, &[("overflow", "true")]) > Some(0.0), "nothing of {family} was folded");
        // What is folded is still counted. Probes are requests too.
        assert!(metrics.sum(family, &[]) >= Some(all as f64), "{family} lacks some");
    }
}

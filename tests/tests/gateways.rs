//! Envoy, Traefik and nginx as gateways, as they are installed: each in a pod that is injected like any other, with the pods' own
//! addresses in its configuration, of which it knows nothing more. `docs/gateways.md`, "It dials pods".
#![expect(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test says what it expects"
)]

use remora_tests::shelf::{self, REPLICAS, SHELF, ZOO};
use remora_tests::shop::{self, PATIENCE, SHOP, curl, identity};
use remora_tests::wire::{client, count};
use remora_tests::{Mesh, PodRef, check};
use serde_json::Value;
use std::sync::LazyLock;

/// Paths that the gateways send to both replicas, one after the other.
const BOTH: &str = "/both";

/// The gateways come when the replicas' addresses are known; a visitor has no proxy.
static MESH: LazyLock<Mesh> = LazyLock::new(|| {
    let visitor = client("visitor", &[("linkerd.io/inject", "disabled")]);
    let mesh = shop::open(&[&shelf::pods()[..], &[visitor]].concat()).unwrap();
    mesh.apply(shelf::OBJECTS).unwrap();
    let ips = REPLICAS.map(|name| mesh.pod(SHOP, name).unwrap().ip().unwrap().to_string());
    let addressed = |manifest: &str| manifest.replace("FIRST", &ips[0]).replace("SECOND", &ips[1]);
    for gateway in [ENVOY, TRAEFIK, NGINX] {
        mesh.apply(&addressed(gateway)).unwrap();
    }
    mesh.wait_ready(PATIENCE).unwrap();
    mesh
});

/// Paths `/both` and `/both2` (by HTTP/2) go to the replicas in turn, the others to the first of them.
const ENVOY: &str = r#"
kind: ConfigMap
apiVersion: v1
metadata: {name: envoy, namespace: shop}
data:
  envoy.yaml: |
    static_resources:
      listeners:
      - address: {socket_address: {address: 0.0.0.0, port_value: 8080}}
        filter_chains:
        - filters:
          - name: envoy.filters.network.http_connection_manager
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
              stat_prefix: public
              route_config:
                virtual_hosts:
                - name: shop
                  domains: ["*"]
                  routes:
                  - {match: {path: /healthz}, direct_response: {status: 200}}
                  - {match: {prefix: /both2}, route: {cluster: both2}}
                  - {match: {prefix: /both}, route: {cluster: both}}
                  - {match: {prefix: /}, route: {cluster: first}}
              http_filters:
              - name: envoy.filters.http.router
                typed_config:
                  "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
      clusters:
      - name: first
        load_assignment:
          cluster_name: first
          endpoints: [{lb_endpoints: [&first {endpoint: {address: {socket_address: {address: FIRST, port_value: 8080}}}}]}]
      - name: both
        load_assignment: &both
          cluster_name: both
          endpoints: [{lb_endpoints: [*first, {endpoint: {address: {socket_address: {address: SECOND, port_value: 8080}}}}]}]
      - name: both2
        typed_extension_protocol_options:
          envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
            "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
            explicit_http_config: {http2_protocol_options: {}}
        load_assignment: *both
---
kind: Pod
apiVersion: v1
metadata: {name: envoy, namespace: shop}
spec:
  serviceAccountName: envoy
  terminationGracePeriodSeconds: 0
  containers:
  - name: envoy
    image: envoyproxy/envoy:distroless-v1.40.0
    args: [--config-path, /etc/envoy/envoy.yaml, --concurrency, "1", --log-level, warn]
    readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1, failureThreshold: 1}
    volumeMounts: [{name: config, mountPath: /etc/envoy}]
  volumes: [{name: config, configMap: {name: envoy}}]
"#;

/// The same.
const TRAEFIK: &str = r#"
kind: ConfigMap
apiVersion: v1
metadata: {name: traefik, namespace: shop}
data:
  shop.yaml: |
    http:
      routers:
        both2: {rule: "PathPrefix(`/both2`)", service: both2, priority: 3}
        both: {rule: "PathPrefix(`/both`)", service: both, priority: 2}
        first: {rule: "PathPrefix(`/`)", service: first, priority: 1}
      services:
        both2: {loadBalancer: {servers: [{url: "h2c://FIRST:8080"}, {url: "h2c://SECOND:8080"}]}}
        both: {loadBalancer: {servers: [{url: "http://FIRST:8080"}, {url: "http://SECOND:8080"}]}}
        first: {loadBalancer: {servers: [{url: "http://FIRST:8080"}]}}
---
kind: Pod
apiVersion: v1
metadata: {name: traefik, namespace: shop}
spec:
  serviceAccountName: traefik
  terminationGracePeriodSeconds: 0
  containers:
  - name: traefik
    image: traefik:v3.7
    args:
    - --entrypoints.web.address=:8080
    - --providers.file.directory=/etc/traefik/shop
    - --ping.entrypoint=web
    - --global.checknewversion=false
    readinessProbe: {httpGet: {path: /ping, port: 8080}, periodSeconds: 1, failureThreshold: 1}
    volumeMounts: [{name: config, mountPath: /etc/traefik/shop}]
  volumes: [{name: config, configMap: {name: traefik}}]
"#;

/// The same but for HTTP/2, which nginx does not speak to its upstreams.
const NGINX: &str = r#"
kind: ConfigMap
apiVersion: v1
metadata: {name: nginx, namespace: shop}
data:
  default.conf: |
    upstream both { server FIRST:8080; server SECOND:8080; keepalive 8; }
    server {
      listen 8080;
      proxy_http_version 1.1;
      proxy_set_header Host $http_host;
      proxy_set_header Connection "";
      location = /healthz { return 200; }
      location /both { proxy_pass http://both; }
      location / { proxy_pass http://FIRST:8080; }
    }
---
kind: Pod
apiVersion: v1
metadata: {name: nginx, namespace: shop}
spec:
  serviceAccountName: nginx
  terminationGracePeriodSeconds: 0
  containers:
  - name: nginx
    image: nginxinc/nginx-unprivileged:1.27
    readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1, failureThreshold: 1}
    volumeMounts: [{name: site, mountPath: /etc/nginx/conf.d}]
  volumes: [{name: site, configMap: {name: nginx}}]
"#;

#[test]
fn envoys_own_choice_stands_and_its_services_rules_hold() {
    holds("envoy", &[BOTH, "/both2"]);
}

#[test]
fn traefiks_own_choice_stands_and_its_services_rules_hold() {
    holds("traefik", &[BOTH, "/both2"]);
}

#[test]
fn nginxs_own_choice_stands_and_its_services_rules_hold() {
    holds("nginx", &[BOTH]);
}

/// What a gateway balances by itself, at these paths, goes where it says and by the rules of the pods' Services.
#[track_caller]
fn holds(name: &str, both: &[&str]) {
    if !check::can_run() {
        return;
    }
    let gateway = MESH.pod(SHOP, name).unwrap();
    let by_route = || ask(&gateway, BOTH, 2, &[]).iter().all(|answer| answer.by == "shelf");
    MESH.wait_until("the route", PATIENCE, by_route).unwrap();
    for path in both {
        keeps_its_pods(&gateway, path);
    }
    counts_by_profile(&gateway);

    let routed = [("parent_name", "shelf"), ("route_name", "canary")];
    assert!(count(&gateway, "outbound_http_route_request_statuses_total", &routed).unwrap() >= 25.0);
    let of_pods = count(&gateway, "remora_outbound_pod_address_connections_total", &[("service", SHELF)]);
    assert!(of_pods.unwrap() >= 2.0);
    let bare = count(&gateway, "request_total", &[("direction", "outbound"), ("tls", "no_identity")]);
    assert!(bare.unwrap() < 0.5, "requests went without mTLS");
}

/// Each replica gets what the gateway means for it, over mTLS; a route moves a request all the same.
#[track_caller]
fn keeps_its_pods(gateway: &PodRef<'_>, path: &str) {
    let name = &gateway.name.name;
    let before = REPLICAS.map(|replica| served(replica, name));
    let answers = ask(gateway, path, 20, &[]);
    for answer in &answers {
        assert_eq!(answer.by, "shelf", "the route holds: {answer:?}");
        assert!(
            answer.told["headers"].to_string().contains(&identity(name)),
            "who asks is known: {answer:?}"
        );
    }
    for (replica, before) in REPLICAS.iter().zip(before) {
        assert_eq!(of(&answers, replica), 10, "{answers:?}");
        // In its proxy's own words, of an identity that was verified.
        MESH.wait_until("it to be counted", PATIENCE, || served(replica, name) - before > 9.5).unwrap();
    }
    let moved = ask(gateway, path, 4, &["-H", "x-canary: yes"]);
    assert_eq!(of(&moved, "v2"), 4, "{moved:?}");
    let first = ask(gateway, "/", 4, &[]);
    assert_eq!(of(&first, "shelf-0"), 4, "{first:?}");
}

/// Whoever names the Service that has the profile.
#[track_caller]
fn counts_by_profile(gateway: &PodRef<'_>) {
    let labels = [("direction", "outbound"), ("dst", ZOO), ("rt_route", "everything")];
    let counted = || count(gateway, "route_request_total", &labels).unwrap();
    let before = counted();
    for (host, by) in [("zoo", ""), ("zoo.shop.svc.cluster.local:8001", ""), ("shop.example", "shelf")] {
        let answers = ask(gateway, BOTH, 4, &["-H", &format!("Host: {host}")]);
        assert!(answers.iter().all(|answer| answer.by == by), "{host}: {answers:?}");
        assert_eq!(REPLICAS.map(|replica| of(&answers, replica)), [2, 2], "{host}: {answers:?}");
    }
    assert!((counted() - before - 8.0).abs() < 0.5, "{} after {before}", counted());
}

/// How many of these a server gave.
fn of(answers: &[Answer], server: &str) -> usize {
    answers.iter().filter(|answer| answer.told["server"] == server).count()
}

/// An answer that came through a gateway.
#[derive(Debug)]
struct Answer {
    /// What the Service's route says of itself.
    by: String,
    /// What the replica was asked.
    told: Value,
}

/// A visitor's requests to a gateway, one after the other.
fn ask(gateway: &PodRef<'_>, path: &str, requests: usize, how: &[&str]) -> Vec<Answer> {
    let url = format!("http://{}:8080{path}?[1-{requests}]", gateway.ip().unwrap());
    let arguments = [&["-f", "-w", "\n%header{x-by}.\n"], how, &[&url]].concat();
    let text = curl(&MESH.pod(SHOP, "visitor").unwrap(), &arguments).unwrap();
    let lines: Vec<_> = text.lines().filter(|line| !line.is_empty()).collect();
    let answer = |two: &[&str]| {
        let [told, by] = two else { panic!("half an answer in {text}") };
        Answer { by: by.trim_end_matches('.').to_owned(), told: serde_json::from_str(told).unwrap() }
    };
    lines.chunks(2).map(answer).collect()
}

/// The requests of a gateway that a replica's proxy has let in.
fn served(replica: &str, gateway: &str) -> f64 {
    let labels = [("direction", "inbound"), ("tls", "true"), ("client_id", &*identity(gateway))];
    count(&MESH.pod(SHOP, replica).unwrap(), "request_total", &labels).unwrap()
}

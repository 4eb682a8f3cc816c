//! What a proxy tells about itself: to whom, in which form, and never without bound.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test says what it expects")]

use remora_tests::shop::{self, PATIENCE, SHOP, curl, identity, state, web};
use remora_tests::{Mesh, PodRef, check, peer};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Command, Stdio};

/// Findings of promtool that dashboards of Linkerd oblige us to, one a line: name, colon, reason.
const LEGACY: &str = include_str!("../promtool-legacy.txt");
const PROXY: &str = "linkerd-proxy";
/// Series per family, where a test sets it.
const BUDGET: usize = 60;

#[test]
fn what_an_operator_may_do_is_done_from_within_the_pod_only() {
    if !check::can_run() {
        return;
    }
    let mesh = shop::open(&[web("web-0"), shop::idle("client", &[])]).unwrap();
    let (client, server) = (mesh.pod(SHOP, "client").unwrap(), mesh.pod(SHOP, "web-0").unwrap());
    let address = server.ip().unwrap().to_string();
    for (path, method, inside, outside) in [
        ("/live", "GET", 200, 200),
        ("/ready", "GET", 200, 200),
        ("/metrics", "GET", 200, 200),
        ("/state.json", "GET", 200, 403),
        ("/env.json", "GET", 200, 403),
        ("/proxy-log-level", "GET", 200, 403),
        ("/proxy-log-level", "PUT", 204, 403),
        ("/proxy-log-level", "POST", 405, 403),
        ("/shutdown", "POST", 404, 404),
        ("/secrets", "GET", 404, 404),
    ] {
        assert_eq!(ask(&server, "127.0.0.1", method, path), inside, "{method} {path} from within the pod");
        assert_eq!(ask(&client, &address, method, path), outside, "{method} {path} from another pod");
        if method == "GET" {
            let (status, _) = server.http_get(4191, path).unwrap();
            assert_eq!(status.as_u16(), outside, "{path} from the node");
        }
    }
    // Written above by PUT: a filter is replaced at once, and a wrong one never.
    let level = |pod: &PodRef<'_>| curl(pod, &["http://127.0.0.1:4191/proxy-log-level"]).unwrap();
    assert_eq!(level(&server), "remora=debug\n");
    let wrong = ["-X", "PUT", "--data", "remora=loud", "http://127.0.0.1:4191/proxy-log-level"];
    assert!(curl(&server, &wrong).unwrap().contains("not a log filter"));
    assert_eq!(level(&server), "remora=debug\n");
    wait(&mesh, "lines at the new level", || mesh.logs(&server, PROXY).contains("DEBUG"));
}

#[test]
fn what_goes_wrong_on_the_admin_port_is_counted() {
    if !check::can_run() {
        return;
    }
    let mesh = shop::open(&[web("web-0")]).unwrap();
    let server = mesh.pod(SHOP, "web-0").unwrap();
    let config = peer::client(mesh.root(), None, &[]).unwrap();
    let name = rustls::pki_types::ServerName::try_from("somebody.else").unwrap();
    let mut session = rustls::ClientConnection::new(config, name).unwrap();
    let mut hello = Vec::new();
    session.write_tls(&mut hello).unwrap();
    for (bytes, error) in
        [(&hello[..], "identity required"), (hello.get(..100).unwrap(), "tls detection timeout")]
    {
        let mut stream = mesh.dial(server.at(4191).unwrap()).unwrap();
        stream.write_all(bytes).unwrap();
        assert_eq!(peer::end_of(&mut stream), peer::End::Closed(Vec::new()), "{error}");
        let target = server.at(4191).unwrap().to_string();
        let labels = [("error", error), ("target_addr", &*target), ("srv_port", "4191")];
        wait(&mesh, error, || {
            server.metrics().unwrap().sum("inbound_tcp_errors_total", &labels) == Some(1.0)
        });
    }
}

#[test]
fn state_and_environment_say_what_is_known_and_keep_secrets() {
    if !check::can_run() {
        return;
    }
    let env = r#"[{"name": "API_TOKEN", "value": "plum-7f3a"}, {"name": "SHOP", "value": "db://me:plum-9c1e@db/"}]"#;
    let client = shop::idle("client", &[("config.linkerd.io/proxy-additional-env", env)]);
    let mesh = shop::open(&[web("web-0"), client]).unwrap();
    let (client, server) = (mesh.pod(SHOP, "client").unwrap(), mesh.pod(SHOP, "web-0").unwrap());
    assert_eq!(curl(&client, &["http://web:8000/"]).unwrap(), "web-0\n");
    // As bytes, and open: what a proxy serves now is told by protocol.
    let mut held = mesh.dial(server.at(80).unwrap()).unwrap();
    write!(held, "GET / HTTP/1.1\r\nHost: web\r\n\r\n").unwrap();
    peer::read_answer(&mut held).unwrap();

    let known = state(&client).unwrap();
    assert_eq!(known.pointer("/identity/name").unwrap(), identity("client").as_str());
    assert_eq!(known.pointer("/identity/certified").unwrap(), true);
    assert_eq!(known.pointer("/draining").unwrap(), false);
    assert!(known.pointer("/identity/notAfter").unwrap().as_u64() > Some(0), "{known:#}");
    assert!(known.pointer("/identity/secondsLeft").unwrap().as_u64() > Some(3600), "{known:#}");
    let endpoints = known.pointer("/outbound/workers/0").unwrap().as_object().unwrap();
    let endpoints = endpoints.values().filter_map(|target| target.pointer("/backends")?.as_object());
    let one = endpoints.flat_map(|backends| backends.values()).find_map(|list| list.get(0)).unwrap().clone();
    assert!(one["load"].as_f64() > Some(0.0) && one["reachable"] == true, "{one:#}");
    let of_server = state(&server).unwrap();
    let policy = of_server.pointer("/inbound/policies/80").unwrap();
    assert_eq!(policy.pointer("/server/name").unwrap(), "all-unauthenticated", "{policy:#}");
    assert!(
        policy["protocol"] == "detect" && !policy["authorizations"].as_array().unwrap().is_empty(),
        "{policy:#}"
    );
    let open = of_server.pointer("/connections/inboundByProtocol/http~11").unwrap().as_u64();
    assert!(open >= Some(1), "the held connection: {of_server:#}");
    drop(held);
    let text = known.to_string();
    for expected in [identity("web-0"), server.ip().unwrap().to_string(), "tls+header".to_owned()] {
        assert!(text.contains(&expected), "no {expected} in {known:#}");
    }
    let env = curl(&client, &["http://127.0.0.1:4191/env.json"]).unwrap();
    assert!(env.contains("\"LINKERD2_PROXY_IDENTITY_LOCAL_NAME\""), "{env}");
    assert!(env.contains("\"API_TOKEN\"") && env.contains("\"SHOP\""), "the names are told: {env}");
    assert!(!env.contains("plum-7f3a") && !env.contains("plum-9c1e"), "their values are not: {env}");

    let token = client.exec(PROXY, &["sh", "-c", "cat /var/run/secrets/tokens/*"]).unwrap();
    let token = String::from_utf8(token.stdout).unwrap();
    assert!(token.len() > 100, "no token was read");
    let key = secrets(&client);
    for said in [text, env, client.admin_get("/metrics").unwrap(), mesh.logs(&client, PROXY)] {
        assert!(!said.contains(token.trim()), "the token is told");
        assert!(!said.contains("PRIVATE KEY"), "a key is told");
        for piece in &key {
            assert!(!said.contains(piece), "a part of the key is told");
        }
    }
}

#[test]
fn prometheus_accepts_the_metrics_apart_from_names_that_linkerd_gave() {
    if !check::can_run() {
        return;
    }
    let mesh = shop::open(&[
        web("web-0"),
        shop::idle("client", &[]),
        shop::BYTES.into(),
        shop::service("nobody", 80, "80"),
    ])
    .unwrap();
    let (client, server) = (mesh.pod(SHOP, "client").unwrap(), mesh.pod(SHOP, "web-0").unwrap());
    for url in ["http://web:8000/", "http://web:8000/files/none", "http://bytes:9000/", "http://nobody/"] {
        curl(&client, &[url]).unwrap();
    }
    let mut told = client.admin_get("/metrics").unwrap();
    let mut found = findings(&told);
    let of_server = server.admin_get("/metrics").unwrap();
    found.extend(findings(&of_server));
    told += &of_server;
    for (pod, port) in
        [("remora-identity", 9990), ("remora-destination", 9996), ("remora-proxy-injector", 9995)]
    {
        let (status, text) = mesh.pod("remora", pod).unwrap().http_get(port, "/metrics").unwrap();
        assert!(status.is_success() && text.contains("# TYPE"), "{pod}: {text}");
        found.extend(findings(&text));
    }
    let known: BTreeMap<&str, &str> = LEGACY
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
        .map(|line| line.split_once(": ").unwrap())
        .collect();
    let new: BTreeSet<&String> = found.iter().filter(|finding| !known.contains_key(name(finding))).collect();
    assert!(new.is_empty(), "promtool finds: {new:#?}");
    // Which names promtool minds depends on its age; an exception for what is not there is one too many.
    let gone: Vec<_> = known.keys().filter(|name| !told.contains(&format!("# TYPE {name} "))).collect();
    assert!(gone.is_empty(), "there are no such metrics: {gone:?}");
}

#[test]
fn strangers_cannot_make_the_metrics_grow_beyond_their_budget() {
    if !check::can_run() {
        return;
    }
    let env = format!(r#"[{{"name": "REMORA_PROXY_METRIC_BUDGET", "value": "{BUDGET}"}}]"#);
    let annotation = format!("'{}'", env.replace('\'', "''"));
    let server = web("web-0").replace(
        "labels: {app: web}",
        &format!(
            "labels: {{app: web}}, annotations: {{config.linkerd.io/proxy-additional-env: {annotation}}}"
        ),
    );
    let mesh = shop::open(&[server]).unwrap();
    let server = mesh.pod(SHOP, "web-0").unwrap();
    let asked = |stream: &mut TcpStream, host: &str| {
        write!(stream, "GET /{host} HTTP/1.1\r\nHost: {host}\r\n\r\n").unwrap();
        peer::read_answer(stream)
            .unwrap_or_else(|error| panic!("{host}: {error}\n{}", mesh.logs(&server, PROXY)))
    };

    // Hosts and paths are the clients' choice, and no label.
    let mut stream = mesh.dial(server.at(80).unwrap()).unwrap();
    asked(&mut stream, "first.example");
    let before = series(&server);
    for nth in 0..2000 {
        let (head, _) = asked(&mut stream, &format!("host-{nth}.example"));
        // nginx ends a connection after a thousand requests.
        if head.to_ascii_lowercase().contains("connection: close") {
            stream = mesh.dial(server.at(80).unwrap()).unwrap();
        }
    }
    let grown: Vec<_> = series(&server).difference(&before).cloned().collect();
    // A histogram or two may have had nothing to count before.
    assert!(grown.len() <= 100, "there are {} more series: {grown:#?}", grown.len());

    // Ports and identities are labels.
    for port in 20_000..20_000 + 3 * u16::try_from(BUDGET).unwrap() {
        let mut stream = mesh.dial(server.at(port).unwrap()).unwrap();
        asked(&mut stream, &format!("closed.example-{port}"));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for nth in 0..2 * BUDGET {
        let own = mesh.certify(&identity(&format!("stranger-{nth}"))).unwrap();
        let config = peer::client(mesh.root(), Some(&own), &[]).unwrap();
        let tcp = mesh.dial(server.at(80).unwrap()).unwrap();
        runtime.block_on(async {
            use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
            let mut stream = peer::handshake(tcp, &identity("web-0"), config).await.unwrap();
            let request = b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n";
            stream.write_all(request).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        });
    }
    let metrics = server.metrics().unwrap();
    for name in
        ["request_total", "inbound_http_errors_total", "inbound_http_authz_allow_total", "tcp_open_total"]
    {
        let series = metrics.matching(name, &[]).count();
        assert!(series <= BUDGET + 1, "{name} has {series} series, of {BUDGET}");
    }
    let overflow = [("overflow", "true")];
    assert!(metrics.sum("request_total", &overflow).is_some_and(|beyond| beyond > 0.0), "nothing was folded");
    let folded = [("family", "request_total")];
    assert!(metrics.sum("remora_metrics_folded_total", &folded).is_some_and(|count| count > 0.0));
    // What is folded is still counted: none of the requests is missing.
    let all = metrics.sum("request_total", &[]).unwrap();
    assert!(all >= (2001 + 2 * BUDGET) as f64, "{all} requests were counted");
}

#[track_caller]
fn wait(mesh: &Mesh, what: &str, holds: impl FnMut() -> bool) {
    mesh.wait_until(what, PATIENCE, holds).unwrap();
}

/// The status of a request to a proxy's admin port.
#[track_caller]
fn ask(from: &PodRef<'_>, host: &str, method: &str, path: &str) -> u16 {
    let url = format!("http://{host}:4191{path}");
    let mut arguments = vec!["-X", method, "-o", "/dev/null", "-w", "%{http_code}"];
    if method == "PUT" {
        arguments.extend(["--data", "remora=debug"]);
    }
    arguments.push(&url);
    curl(from, &arguments).unwrap().parse().unwrap()
}

/// Pieces of the key's file that are long enough to be no accident, in the forms in which they could be told.
fn secrets(pod: &PodRef<'_>) -> Vec<String> {
    let encoded =
        pod.exec(PROXY, &["sh", "-c", "cat /var/run/linkerd/identity/end-entity/key* | base64 -w0"]);
    let encoded = String::from_utf8(encoded.unwrap().stdout).unwrap();
    assert!(encoded.len() > 60, "no key was read");
    let pieces: Vec<char> = encoded.chars().collect();
    pieces.chunks_exact(24).map(|piece| piece.iter().collect()).collect()
}

/// The names and labels of the samples of `/metrics`.
fn series(pod: &PodRef<'_>) -> BTreeSet<String> {
    pod.metrics().unwrap().0.into_iter().map(|one| format!("{}{:?}", one.name, one.labels)).collect()
}

/// What promtool says about a page of metrics, a line each.
fn findings(text: &str) -> Vec<String> {
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("promtool: {error}; apt-get install prometheus"));
    promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let mut said = String::new();
    promtool.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    promtool.wait().unwrap();
    said.lines().map(str::to_owned).collect()
}

/// The metric that a finding is about.
fn name(finding: &str) -> &str {
    finding.split_whitespace().next().unwrap_or_default()
}

//! Default policies: who may use a port of an injected pod, by the annotation `config.linkerd.io/default-inbound-policy`
//! on pod or namespace. Contract 3.4.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use remora_tests::metrics::{self, Samples};
use remora_tests::peer::{self, ALPN, End, PATIENCE, Session, header};
use remora_tests::{App, Mesh, PodRef, Signal, check, shop};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const READY: Duration = Duration::from_secs(30);
const PING: &[u8] = b"*1\r\n$4\r\nPING\r\n";
/// An address of the node that is in none of the default cluster networks (RFC 5737).
const OUTSIDE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 9));

/// A policy, and whether it admits a client: unmeshed from within the cluster's networks, from outside of them, meshed
/// from within, and from outside.
const POLICIES: [(&str, [bool; 4]); 6] = [
    ("all-unauthenticated", [true, true, true, true]),
    ("all-authenticated", [false, false, true, true]),
    ("cluster-unauthenticated", [true, false, true, false]),
    ("cluster-authenticated", [false, false, true, false]),
    ("audit", [true, true, true, true]),
    ("deny", [false, false, false, false]),
];

#[test]
fn every_default_policy_admits_whom_it_names_and_probes() {
    if !check::can_run() {
        return;
    }
    let mesh = Mesh::start().unwrap();
    outside(&mesh);
    let servers = POLICIES.map(|(policy, _)| {
        server("shop", policy, &format!("config.linkerd.io/default-inbound-policy: {policy}"))
    });
    // That they become ready shows that their probes pass, under every policy.
    let mesh = shop::open_on(mesh, &[&[shop::idle("client", &[])], &servers[..]].concat()).unwrap();
    for (policy, admits) in POLICIES {
        holds(&mesh, &mesh.pod("shop", policy).unwrap(), policy, admits);
    }
}

#[test]
fn a_namespaces_policy_holds_for_its_pods_unless_they_say_otherwise() {
    if !check::can_run() {
        return;
    }
    let mesh = Mesh::start().unwrap();
    outside(&mesh);
    let differs = "config.linkerd.io/default-inbound-policy: all-unauthenticated";
    let objects = [
        shop::idle("client", &[]),
        namespace("strict", "cluster-authenticated"),
        server("strict", "inherits", ""),
        server("strict", "differs", differs),
    ];
    let mesh = shop::open_on(mesh, &objects).unwrap();
    for (pod, policy) in [("inherits", "cluster-authenticated"), ("differs", "all-unauthenticated")] {
        let (_, admits) = POLICIES.into_iter().find(|(name, _)| *name == policy).unwrap();
        holds(&mesh, &mesh.pod("strict", pod).unwrap(), policy, admits);
    }
}

#[test]
fn a_namespace_may_demand_identity_of_some_ports() {
    if !check::can_run() {
        return;
    }
    let mesh = Mesh::start().unwrap();
    let ports = "config.linkerd.io/proxy-require-identity-inbound-ports: http";
    mesh.apply(&format!(
        "{{kind: Namespace, apiVersion: v1, metadata: {{name: named, annotations: {{linkerd.io/inject: enabled, {ports}}}}}}}"
    ))
    .unwrap();
    mesh.apply(&server("named", "web", "")).unwrap();
    mesh.apply(&server("named", "friend", "")).unwrap();
    mesh.wait_ready(READY).unwrap();
    let (web, friend) = (mesh.pod("named", "web").unwrap(), mesh.pod("named", "friend").unwrap());
    peer::echo(web.listen(9000).unwrap());
    // The environment's policy holds until the controller has answered.
    mesh.wait_until("a refusal without identity", PATIENCE, || {
        get(&mut mesh.dial(web.at(80).unwrap()).unwrap()) == 403
    })
    .unwrap();
    assert_eq!(get(&mut friend.dial(web.at(80).unwrap()).unwrap()), 200);
    assert!(echoes(&mut mesh.dial(web.at(9000).unwrap()).unwrap()), "a port that was not named");
}

#[test]
fn a_changed_policy_ends_open_connections_and_decides_the_next_request() {
    if !check::can_run() {
        return;
    }
    let mesh = Mesh::start().unwrap();
    mesh.apply(&namespace("changing", "")).unwrap();
    mesh.apply(&server("changing", "web", "")).unwrap();
    mesh.apply(&server("changing", "friend", "")).unwrap();
    mesh.wait_ready(READY).unwrap();
    let web = mesh.pod("changing", "web").unwrap();
    peer::echo(web.listen(9000).unwrap());
    let mut tcp = mesh.dial(web.at(9000).unwrap()).unwrap();
    assert!(echoes(&mut tcp));
    let mut idle = mesh.dial(web.at(9000).unwrap()).unwrap();
    assert!(echoes(&mut idle));
    let mut http = mesh.dial(web.at(80).unwrap()).unwrap();
    assert_eq!(get(&mut http), 200);
    let mut meshed = mesh.pod("changing", "friend").unwrap().dial(web.at(9000).unwrap()).unwrap();
    assert!(echoes(&mut meshed));
    // A request each that became a stream of bytes, before any policy changed.
    let _app = App::start(&web, 8081, "web").unwrap();
    let mut socket = mesh.dial(web.at(8081).unwrap()).unwrap();
    let mut meshed_socket = mesh.pod("changing", "friend").unwrap().dial(web.at(8081).unwrap()).unwrap();
    for socket in [&mut socket, &mut meshed_socket] {
        upgrade(socket);
        assert!(echoes(socket));
    }

    mesh.apply(&namespace("changing", "all-authenticated")).unwrap();
    assert_eq!(peer::end_of(&mut tcp), End::Closed(Vec::new()), "the policy changed");
    assert_eq!(peer::end_of(&mut idle), End::Closed(Vec::new()), "the policy changed");
    assert_eq!(peer::end_of(&mut socket), End::Closed(Vec::new()), "the policy changed");
    mesh.wait_until("the kept-alive connection to be refused", PATIENCE, || get(&mut http) == 403).unwrap();
    let samples = own_metrics(&web);
    let terminated = [("srv_name", "all-authenticated"), ("tls", "no_identity")];
    assert_eq!(samples.sum("inbound_tcp_authz_terminate_total", &terminated), Some(3.0));
    let denied = [("srv_name", "all-authenticated"), ("target_port", "80")];
    assert!(
        samples.sum("inbound_http_authz_deny_total", &denied) >= Some(1.0),
        "named by the policy in force"
    );
    assert!(!echoes(&mut mesh.dial(web.at(9000).unwrap()).unwrap()));
    assert!(echoes(&mut meshed), "whom the new policy admits keeps its connection");
    assert!(echoes(&mut meshed_socket), "whom the new policy admits keeps its connection");

    // Refused before and after: the counter follows the policy all the same.
    mesh.apply(&namespace("changing", "cluster-authenticated")).unwrap();
    let denied = [("srv_name", "cluster-authenticated"), ("target_port", "80")];
    mesh.wait_until("a refusal under the next policy", PATIENCE, || {
        assert_eq!(get(&mut http), 403);
        own_metrics(&web).sum("inbound_http_authz_deny_total", &denied) >= Some(1.0)
    })
    .unwrap();

    mesh.apply(&namespace("changing", "all-unauthenticated")).unwrap();
    mesh.wait_until("the same connection to be served again", PATIENCE, || get(&mut http) == 200).unwrap();
    let allowed = [("srv_name", "all-unauthenticated"), ("target_port", "80")];
    assert!(own_metrics(&web).sum("inbound_http_authz_allow_total", &allowed) >= Some(1.0));
    assert!(echoes(&mut mesh.dial(web.at(9000).unwrap()).unwrap()));
}

#[test]
fn a_silent_client_that_policy_does_not_admit_is_not_waited_for_whatever_its_identity() {
    if !check::can_run() {
        return;
    }
    let denies = "config.linkerd.io/default-inbound-policy: deny";
    let mesh = shop::open(&[server("shop", "deny", denies)]).unwrap();
    let deny = mesh.pod("shop", "deny").unwrap();
    let own = mesh.certify(&shop::identity("traveller")).unwrap();
    let config = peer::client(mesh.root(), Some(&own), &[]).unwrap();
    // The port of the probe: its policy is known, and looks for TLS. Of others nothing is, and deny is opaque then.
    let tcp = mesh.dial(deny.at(80).unwrap()).unwrap();
    runtime().block_on(async {
        let mut stream = peer::handshake(tcp, &shop::identity("deny"), config).await.unwrap();
        let end = tokio::time::timeout(PATIENCE, stream.read(&mut [0])).await;
        assert!(matches!(end, Ok(Ok(0) | Err(_))), "neither served nor refused: {end:?}");
    });
    let refused = own_metrics(&deny).sum("inbound_tcp_errors_total", &[("error", "detection timeout")]);
    assert_eq!(refused, Some(1.0));
}

#[test]
fn until_the_controller_answers_the_environments_policy_holds() {
    if !check::can_run() {
        return;
    }
    let mesh = Mesh::start().unwrap();
    mesh.apply(shop::NAMESPACE).unwrap();
    let destination = mesh.pod("remora", "remora-destination").unwrap();
    destination.signal("destination", Signal::STOP).unwrap();
    let annotation = "config.linkerd.io/default-inbound-policy";
    for policy in ["all-authenticated", "deny", "all-unauthenticated"] {
        mesh.apply(&shop::idle(policy, &[(annotation, policy)])).unwrap();
    }
    let pod = |policy: &str| mesh.pod("shop", policy).unwrap();
    let ready = |policy: &str| pod(policy).is_ready();
    mesh.wait_until("the pods to be ready", READY, || {
        ["all-authenticated", "deny", "all-unauthenticated"].into_iter().all(ready)
    })
    .unwrap();
    for policy in ["all-authenticated", "deny", "all-unauthenticated"] {
        peer::mirror(pod(policy).listen(8000).unwrap());
    }
    let asked = |policy: &str| get(&mut mesh.dial(pod(policy).at(8000).unwrap()).unwrap());
    assert_eq!(asked("all-unauthenticated"), 200);
    assert_eq!(asked("all-authenticated"), 403);
    assert_eq!(asked("deny"), 0, "opaque, and closed (contract 3.4)");
    // Nobody reads the metrics of a port that is opaque, and that all are under `deny`.
    for policy in ["all-authenticated", "all-unauthenticated"] {
        let failed = [("classification", "failure"), ("error", "no answer")];
        let silent = || own_metrics(&pod(policy)).sum("control_response_total", &failed) >= Some(1.0);
        mesh.wait_until("the controller's silence to be counted", READY, silent).unwrap();
        let state = shop::state(&pod(policy)).unwrap();
        let known = state.pointer("/inbound/policies/8000").unwrap();
        assert_eq!(known.pointer("/server/name").unwrap(), policy, "the policy in force: {known:#}");
        assert_eq!(known.pointer("/controller/waiting").unwrap(), true, "{known:#}");
    }
    destination.signal("destination", Signal::CONT).unwrap();
    mesh.wait_until("the controller's policy, which answers HTTP", PATIENCE, || asked("deny") == 403)
        .unwrap();
    assert_eq!(asked("all-authenticated"), 403);
    assert_eq!(asked("all-unauthenticated"), 200);
}

/// The whole table of one policy, over HTTP and over bytes, with what is counted.
#[expect(clippy::unwrap_used, reason = "a helper of tests")]
fn holds(mesh: &Mesh, server: &PodRef<'_>, policy: &str, admits: [bool; 4]) {
    peer::echo(server.listen(9000).unwrap());
    let client = mesh.pod("shop", "client").unwrap();
    let (web, bytes) = (server.at(80).unwrap(), server.at(9000).unwrap());
    // Probes have a route of their own. Where the environment's policy admits the node, the pod may have become ready
    // before the controller answered.
    let srv = [("srv_group", ""), ("srv_kind", "default"), ("srv_name", policy)];
    let probe = [&srv[..], &[("route_name", "probe"), ("authz_name", "probe"), ("srv_port", "80")]].concat();
    mesh.wait_until("a probe on its own route", PATIENCE, || {
        own_metrics(server).sum("inbound_http_authz_allow_total", &probe) >= Some(1.0)
    })
    .unwrap();
    let before = own_metrics(server);
    let codes = [
        get(&mut mesh.dial(web).unwrap()),
        get(&mut dial_from(mesh, OUTSIDE, web)),
        shop::status(&client, &format!("http://{web}/index.html")).unwrap().0,
        meshed(mesh, server, 80, Session::Http1),
    ];
    assert_eq!(codes, admits.map(|admitted| if admitted { 200 } else { 403 }), "HTTP under {policy}");
    let echoed = [
        echoes(&mut mesh.dial(bytes).unwrap()),
        echoes(&mut dial_from(mesh, OUTSIDE, bytes)),
        echoes(&mut client.dial(bytes).unwrap()),
        meshed(mesh, server, 9000, Session::None) == 200,
    ];
    assert_eq!(echoed, admits, "bytes under {policy}");

    let after = own_metrics(server);
    let rise = |name: &str, labels: &[(&str, &str)]| {
        after.sum(name, labels).unwrap_or(0.0) - before.sum(name, labels).unwrap_or(0.0)
    };
    let admitted = f64::from(u8::try_from(admits.into_iter().filter(|admitted| *admitted).count()).unwrap());
    let authz = [("authz_group", ""), ("authz_kind", "default"), ("authz_name", policy)];
    for (kind, port) in [("http", "80"), ("tcp", "9000")] {
        let srv = [&srv[..], &[("srv_port", port)]].concat();
        let allow = rise(&format!("inbound_{kind}_authz_allow_total"), &[&srv[..], &authz].concat());
        let deny = rise(&format!("inbound_{kind}_authz_deny_total"), &srv);
        assert!(
            (allow - admitted).abs() < 0.1,
            "{allow} of {admitted} {kind} counted as allowed under {policy}"
        );
        assert!((deny + admitted - 4.0).abs() < 0.1, "{deny} {kind} counted as denied under {policy}");
    }
    let accepted = [&srv[..], &[("srv_port", "9000"), ("direction", "inbound"), ("peer", "src")]].concat();
    let opened = rise("tcp_open_total", &accepted);
    assert!((opened - 4.0).abs() < 0.1, "{opened} of 4 connections were counted under {policy}");

    let log = mesh.logs(server, "linkerd-proxy");
    assert_eq!(log.contains("admitted by the audit policy only"), policy == "audit", "{log}");
    let refused = ["request refused", "connection failed"].map(|line| log.contains(line));
    assert_eq!(
        refused,
        [!admits.iter().all(|admitted| *admitted); 2],
        "refusals are named in the log:\n{log}"
    );

    // Localhost needs no authorization; nobody else reads metrics without one.
    let (status, _) = server.http_get(80, "/").unwrap();
    assert_eq!(status, 200, "the path of the probe, under {policy}");
    let metrics = server.http_get(4191, "/metrics").unwrap().0;
    assert_eq!(metrics == 200, admits[0], "metrics for an unmeshed client under {policy}: {metrics}");
    assert_eq!(server.http_get(4191, "/ready").unwrap().0, 200);
}

/// A pod with nginx whose readiness is a GET of `/`; `/index.html` is for others.
fn server(namespace: &str, name: &str, annotation: &str) -> String {
    format!(
        "
kind: Pod
apiVersion: v1
metadata: {{name: {name}, namespace: {namespace}, annotations: {{{annotation}}}}}
spec:
  serviceAccountName: {name}
  terminationGracePeriodSeconds: 0
  containers:
  - name: app
    image: nginx:1.27
    ports: [{{name: http, containerPort: 80}}]
    readinessProbe: {{httpGet: {{path: /, port: http}}, periodSeconds: 1, failureThreshold: 1}}
"
    )
}

fn namespace(name: &str, policy: &str) -> String {
    let policy = match policy {
        "" => String::new(),
        policy => format!(", config.linkerd.io/default-inbound-policy: {policy}"),
    };
    format!(
        "{{kind: Namespace, apiVersion: v1, metadata: {{name: {name}, annotations: {{linkerd.io/inject: enabled{policy}}}}}}}"
    )
}

/// Gives the node an address outside of the cluster's networks.
#[expect(clippy::unwrap_used, reason = "a helper of tests")]
fn outside(mesh: &Mesh) {
    let address = format!("{OUTSIDE}/32");
    let added = mesh.enter(|| Command::new("ip").args(["addr", "add", &address, "dev", "lo"]).status());
    assert!(added.unwrap().unwrap().success());
}

/// Connects from the node, from another of its addresses.
#[expect(clippy::unwrap_used, reason = "a helper of tests")]
fn dial_from(mesh: &Mesh, source: IpAddr, to: SocketAddr) -> TcpStream {
    let dialled = mesh.enter(|| {
        runtime().block_on(async {
            let socket = tokio::net::TcpSocket::new_v4()?;
            socket.bind(SocketAddr::new(source, 0))?;
            let stream = tokio::time::timeout(PATIENCE, socket.connect(to)).await??.into_std()?;
            stream.set_nonblocking(false)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            std::io::Result::Ok(stream)
        })
    });
    dialled.unwrap().unwrap()
}

/// The status of a GET of `/index.html`; 0 where the connection ended without an answer.
fn get(stream: &mut TcpStream) -> u16 {
    let asked = stream.write_all(b"GET /index.html HTTP/1.1\r\nhost: web\r\n\r\n");
    let answer = asked.and_then(|()| peer::read_answer(stream));
    answer.ok().and_then(|(head, _)| head.get(9..12)?.parse().ok()).unwrap_or(0)
}

/// Asks for an upgrade, which an [`App`] grants.
#[expect(clippy::unwrap_used, reason = "a helper of tests")]
#[track_caller]
fn upgrade(stream: &mut TcpStream) {
    stream.write_all(b"GET / HTTP/1.1\r\nhost: web\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n").unwrap();
    let head = String::from_utf8(peer::read_head(stream).unwrap()).unwrap();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
}

/// Whether bytes come back. A client that is refused must not be left waiting.
fn echoes(stream: &mut TcpStream) -> bool {
    let mut back = [0; PING.len()];
    let result = stream.write_all(PING).and_then(|()| stream.read_exact(&mut back));
    if let Err(error) = &result {
        assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "neither served nor refused");
    }
    result.is_ok() && back == *PING
}

/// As [`get`] and [`echoes`], from outside of the cluster's networks with an identity of the mesh.
#[expect(clippy::unwrap_used, reason = "a helper of tests")]
fn meshed(mesh: &Mesh, server: &PodRef<'_>, port: u16, session: Session) -> u16 {
    let certificate = mesh.certify(&shop::identity("traveller")).unwrap();
    let config = peer::client(mesh.root(), Some(&certificate), &[ALPN]).unwrap();
    let tcp = dial_from(mesh, OUTSIDE, server.at(4143).unwrap());
    let sni = format!(
        "{}.{}.serviceaccount.identity.remora.cluster.local",
        server.name.name, server.name.namespace
    );
    let talk = async {
        let mut stream = peer::handshake(tcp, &sni, config).await.unwrap();
        stream.write_all(&header(port, "", session)).await.unwrap();
        let asked: &[u8] = match session {
            Session::None => PING,
            Session::Http1 | Session::Http2 => b"GET /index.html HTTP/1.1\r\nhost: web\r\n\r\n",
        };
        stream.write_all(asked).await.unwrap();
        let mut answer = [0; PING.len()];
        match stream.read_exact(&mut answer).await {
            Ok(_) if answer == *PING => 200,
            Ok(_) => String::from_utf8_lossy(&answer).get(9..12).and_then(|code| code.parse().ok()).unwrap(),
            Err(_) => 0,
        }
    };
    runtime().block_on(async { tokio::time::timeout(PATIENCE, talk).await }).unwrap()
}

/// The proxy's metrics, asked from within the pod: localhost needs no authorization, whatever the policy.
#[expect(clippy::unwrap_used, reason = "a helper of tests")]
#[track_caller]
fn own_metrics(pod: &PodRef<'_>) -> Samples {
    metrics::parse(&shop::curl(pod, &["-f", "http://127.0.0.1:4191/metrics"]).unwrap())
}

#[expect(clippy::unwrap_used, reason = "a helper of tests")]
fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

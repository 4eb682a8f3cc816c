//! Policy resources do what they say, through real proxies: whom a Server's policies admit passes, whom they do not has 403,
//! and the log names server, route and policy; what is open when they change is decided anew. Contract 3.4.
#![expect(clippy::unwrap_used, reason = "a test says what it expects")]

use remora_tests::shop::{self, PATIENCE, curl};
use remora_tests::{Mesh, PodRef, check, metrics};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;

/// A Server of nginx's port, for the clients that the policy `till` names.
fn server(access: &str) -> String {
    format!(
        "
apiVersion: policy.linkerd.io/v1beta3
kind: Server
metadata: {{name: web, namespace: shop}}
spec: {{podSelector: {{matchLabels: {{app: web}}}}, port: http, proxyProtocol: HTTP/1, accessPolicy: {access}}}
---
"
    )
}

fn policy(target: &str, account: &str) -> String {
    format!(
        "
apiVersion: policy.linkerd.io/v1alpha1
kind: AuthorizationPolicy
metadata: {{name: till, namespace: shop}}
spec:
  targetRef: {{{target}}}
  requiredAuthenticationRefs: [{{kind: ServiceAccount, name: {account}}}]
---
"
    )
}

const SERVER: &str = "group: policy.linkerd.io, kind: Server, name: web";

/// A route that is attached to the Server: nothing but what is below `/files`.
const FILES: &str = "
apiVersion: policy.linkerd.io/v1beta3
kind: HTTPRoute
metadata: {name: files, namespace: shop}
spec:
  parentRefs: [{group: policy.linkerd.io, kind: Server, name: web}]
  rules: [{matches: [{path: {type: PathPrefix, value: /files}}]}]
---
";

fn status(from: &PodRef<'_>, path: &str) -> u16 {
    let url = format!("http://web:8000{path}");
    let code = curl(from, &["-o", "/dev/null", "-w", "%{http_code}", &url]).unwrap();
    code.parse().unwrap()
}

#[track_caller]
fn becomes(mesh: &Mesh, from: &PodRef<'_>, path: &str, expected: u16) {
    let what = format!("{expected} for {path} from {}", from.name);
    mesh.wait_until(&what, PATIENCE, || status(from, path) == expected).unwrap();
}

#[test]
fn a_server_admits_whom_its_policies_name_and_says_whom_it_refused() {
    if !check::can_run() {
        return;
    }
    let objects = [
        shop::web("web"),
        shop::idle("till", &[]),
        shop::idle("thief", &[]),
        server("deny"),
        policy(SERVER, "till"),
    ];
    // That the pod became ready shows that its probe passes: a GET of `/`, which nobody else's requests here are.
    let mesh = shop::open(&objects).unwrap();
    let (web, till, thief) = (
        mesh.pod("shop", "web").unwrap(),
        mesh.pod("shop", "till").unwrap(),
        mesh.pod("shop", "thief").unwrap(),
    );
    becomes(&mesh, &till, "/shop", 200);
    becomes(&mesh, &thief, "/shop", 403);
    let log = mesh.logs(&web, "linkerd-proxy");
    let refused = log.lines().find(|line| line.contains("request refused")).unwrap_or_default();
    assert!(refused.contains("web") && refused.contains("thief.shop.serviceaccount"), "{log}");

    // Another one is named: the next request is decided anew.
    mesh.apply(&policy(SERVER, "thief")).unwrap();
    becomes(&mesh, &thief, "/shop", 200);
    becomes(&mesh, &till, "/shop", 403);
    // Whoever is left is admitted as well, and named.
    mesh.apply(&server("audit")).unwrap();
    becomes(&mesh, &till, "/shop", 200);
    assert!(mesh.logs(&web, "linkerd-proxy").contains("admitted by the audit policy only"));
}

#[test]
fn a_route_takes_what_is_its_own_and_leaves_probes_alone() {
    if !check::can_run() {
        return;
    }
    let to_route = policy("group: policy.linkerd.io, kind: HTTPRoute, name: files", "till");
    let objects = [
        shop::web("web"),
        shop::idle("till", &[]),
        shop::idle("thief", &[]),
        server("deny"),
        to_route,
        FILES.to_owned(),
    ];
    let mesh = shop::open(&objects).unwrap();
    let (web, till, thief) = (
        mesh.pod("shop", "web").unwrap(),
        mesh.pod("shop", "till").unwrap(),
        mesh.pod("shop", "thief").unwrap(),
    );
    becomes(&mesh, &till, "/files/index.html", 200);
    becomes(&mesh, &thief, "/files/index.html", 403);
    becomes(&mesh, &till, "/elsewhere", 404);
    let denied = [
        ("srv_kind", "server"),
        ("srv_name", "web"),
        ("route_kind", "HTTPRoute"),
        ("route_name", "files"),
        ("client_id", "thief.shop.serviceaccount.identity.remora.cluster.local"),
    ];
    let seen = curl(&web, &["-f", "http://127.0.0.1:4191/metrics"]).unwrap();
    let samples = metrics::parse(&seen);
    assert!(samples.sum("inbound_http_authz_deny_total", &denied) >= Some(1.0), "{seen}");
    // The kubelet's: GET of the probe's path, with a query that nobody wrote.
    assert_eq!(web.http_get(80, "/?from=kubelet").unwrap().0, 200);
}

#[test]
fn an_open_connection_ends_when_its_client_is_admitted_no_longer() {
    if !check::can_run() {
        return;
    }
    let opaque = server("all-unauthenticated").replace("HTTP/1", "opaque");
    let mesh = shop::open(&[shop::web("web"), opaque.clone()]).unwrap();
    let web = mesh.pod("shop", "web").unwrap();
    let ask = |stream: &mut TcpStream| {
        let mut head = [0; 12];
        let asked = stream.write_all(b"GET / HTTP/1.1\r\nhost: web\r\n\r\n");
        asked.and_then(|()| stream.read_exact(&mut head)).is_ok() && head.ends_with(b"200")
    };
    mesh.wait_until("a connection to be taken", PATIENCE, || {
        ask(&mut mesh.dial(web.at(80).unwrap()).unwrap())
    })
    .unwrap();
    let mut open = mesh.dial(web.at(80).unwrap()).unwrap();
    assert!(ask(&mut open));
    mesh.apply(&opaque.replace("all-unauthenticated", "all-authenticated")).unwrap();
    // Whatever was left to read, and then the end.
    let ended = open.read_to_end(&mut Vec::new()).map_err(|error| error.kind());
    assert_ne!(ended, Err(std::io::ErrorKind::WouldBlock), "still open");
    mesh.wait_until("the next one to be refused", PATIENCE, || {
        !ask(&mut mesh.dial(web.at(80).unwrap()).unwrap())
    })
    .unwrap();
}

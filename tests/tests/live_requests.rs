//! Requests that are under way when the policy of their server changes are decided anew: who is not admitted any more gets
//! no more of the answer, and cannot take what came for all of it; who still is notices nothing.
#![expect(clippy::unwrap_used, reason = "a test says what it expects")]

use bytes::Bytes;
use futures_util::{StreamExt as _, future::ready, stream};
use http::Request;
use http_body_util::StreamBody;
use hyper::{body::Frame, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use remora_tests::app::{App, BEGUN, ENDED};
use remora_tests::shop::{self, PATIENCE, SHOP};
use remora_tests::wire::{address, client, connect, count, counted, kit, read_response};
use remora_tests::{Mesh, Name, PodRef, check};
use std::convert::Infallible;
use std::io::Write as _;
use std::net::TcpStream;

/// Bytes of a download that lasts some seconds at [`RATE`].
const LONG: usize = 24_000_000;
const RATE: &str = "3M";
/// What curl says of an answer that broke off: of a length (18), of a stream (92), by a reset (56).
const BROKEN: [&str; 3] = ["18", "92", "56"];

/// The Server of a port of a pod.
fn server(name: &str, app: &str, port: u16, access: &str) -> String {
    format!(
        "
apiVersion: policy.linkerd.io/v1beta3
kind: Server
metadata: {{name: {name}, namespace: shop}}
spec: {{podSelector: {{matchLabels: {{app: {app}}}}}, port: {port}, proxyProtocol: unknown, accessPolicy: {access}}}
---
"
    )
}

/// Admits a client to every Server, or everybody.
fn policy(name: &str, refs: &str) -> String {
    format!(
        "
apiVersion: policy.linkerd.io/v1alpha1
kind: AuthorizationPolicy
metadata: {{name: {name}, namespace: shop}}
spec: {{targetRef: {{kind: Namespace, name: shop}}, requiredAuthenticationRefs: [{refs}]}}
---
"
    )
}

fn everybody() -> String {
    policy("everybody", "")
}

fn only_friends(mesh: &Mesh) {
    mesh.delete_object("AuthorizationPolicy", &Name::new(SHOP, "everybody")).unwrap();
}

/// Servers of bytes, of an answer that is held, and of gRPC; a friend, and clients whose requests come through a carrier, on
/// a connection of their own, and without TLS.
fn open() -> Mesh {
    let held = shop::service("held", 8081, "8081").replace("{app: held}", "{app: app}");
    shop::open(&[
        kit("app", 9000, "http", &[]),
        held,
        kit("grpc", 9000, "grpc", &[]),
        client("friend", &[]),
        client("thief", &[]),
        client("bare", &[shop::WITHOUT_MUX]),
        client("outsider", &[("linkerd.io/inject", "disabled")]),
        server("bytes", "app", 9000, "deny"),
        server("held", "app", 8081, "deny"),
        server("calls", "grpc", 9000, "deny"),
        policy("friend", "{kind: ServiceAccount, name: friend}"),
        everybody(),
    ])
    .unwrap()
}

const STRANGERS: [&str; 3] = ["thief", "bare", "outsider"];
const VERSIONS: [&str; 2] = ["--http1.1", "--http2-prior-knowledge"];

/// A program that runs in a pod, with what it has said so far, and its exit code.
struct Running<'a> {
    pod: PodRef<'a>,
    file: String,
}

impl<'a> Running<'a> {
    fn start(pod: PodRef<'a>, name: &str, command: &str) -> Self {
        let file = format!("/tmp/{}", name.trim_start_matches('-'));
        let script = format!("({command} > {file} 2> {file}.said; echo $? > {file}.code) > /dev/null 2>&1 &");
        pod.run("app", &["sh", "-c", &script]).unwrap();
        Self { pod, file }
    }

    fn download(pod: PodRef<'a>, version: &str, url: &str) -> Self {
        let name = format!("{version}{}", url.len());
        Self::start(pod, &name, &format!("curl -sS -N {version} --limit-rate {RATE} {url}"))
    }

    fn output(&self) -> Vec<u8> {
        self.pod.exec("app", &["cat", &self.file]).unwrap().stdout
    }

    #[track_caller]
    fn begins(&self, mesh: &Mesh) {
        let what = format!("{} of {} to begin", self.file, self.pod.name);
        mesh.wait_until(&what, PATIENCE, || !self.output().is_empty()).unwrap();
    }

    fn code(&self) -> String {
        let read = self.pod.exec("app", &["cat", &format!("{}.code", self.file)]).unwrap().stdout;
        String::from_utf8(read).unwrap().trim().to_owned()
    }

    #[track_caller]
    fn ends(&self, mesh: &Mesh) -> String {
        let what = format!("{} of {} to end", self.file, self.pod.name);
        mesh.wait_until(&what, PATIENCE, || !self.code().is_empty()).unwrap();
        self.code()
    }

    fn said(&self) -> String {
        String::from_utf8(self.pod.exec("app", &["cat", &format!("{}.said", self.file)]).unwrap().stdout)
            .unwrap()
    }
}

#[test]
fn an_answer_under_way_ends_for_who_is_not_admitted_any_more_and_for_nobody_else() {
    if !check::can_run() {
        return;
    }
    let mesh = open();
    let pod = |name| mesh.pod(SHOP, name).unwrap();
    let held = App::start(&pod("app"), 8081, "held").unwrap();
    let (holding, long) = ("http://held:8081/hold".to_owned(), format!("http://app:9000/bytes/{LONG}"));
    let of = |name: &'static str| -> Vec<Running<'_>> {
        let each = VERSIONS.iter().flat_map(|version| [(*version, &holding), (*version, &long)]);
        each.map(|(version, url)| Running::download(pod(name), version, url)).collect()
    };
    let friends = of("friend");
    let strangers: Vec<_> = STRANGERS.iter().flat_map(|name| of(name)).collect();
    let calling = "/usr/lib/remora/remora-testkit grpc-client http://grpc:9000 bidi --count 1000000";
    let calls: Vec<_> = STRANGERS.iter().map(|name| Running::start(pod(name), "call", calling)).collect();
    for running in friends.iter().chain(&strangers).chain(&calls) {
        running.begins(&mesh);
    }
    only_friends(&mesh);
    for running in &strangers {
        let code = running.ends(&mesh);
        assert!(BROKEN.contains(&&*code), "{code} {} {}", running.pod.name, running.said());
        assert!(running.output().len() < LONG);
    }
    for call in &calls {
        call.ends(&mesh);
        let output = String::from_utf8(call.output()).unwrap();
        let last = output.lines().last().unwrap_or_default();
        assert!(last.starts_with("status 7 "), "{last} {}", call.said());
    }
    held.release();
    for running in &friends {
        assert_eq!(running.ends(&mesh), "0", "{}", running.said());
        let output = running.output();
        if output.len() < LONG {
            assert_eq!(output, format!("{BEGUN}{ENDED}").as_bytes());
        } else {
            let whole =
                shop::curl(&running.pod, &["-o", "/dev/null", "-w", "%header{x-sha256}", &long]).unwrap();
            let sum = running.pod.run("app", &["sha256sum", &running.file]).unwrap();
            assert!(sum.starts_with(&whole) && whole.len() == 64, "{sum} {whole}");
        }
    }

    // Named as a refused request is.
    let log = mesh.logs(&pod("app"), "linkerd-proxy");
    for (client, server) in [("thief", "held"), ("bare", "bytes")] {
        let why = format!(
            "{} may not use server/{server}: not admitted by authorizationpolicy/friend",
            shop::identity(client)
        );
        let told = log.lines().any(|line| line.contains("request ended") && line.contains(&why));
        assert!(told, "{why}: {log}");
        let identity = shop::identity(client);
        let labels =
            [("srv_name", server), ("client_id", &identity), ("policies", "authorizationpolicy/friend")];
        counted(&pod("app"), "inbound_http_authz_deny_total", &labels, 2.0).unwrap();
    }
}

#[test]
fn who_is_not_answered_yet_has_403() {
    if !check::can_run() {
        return;
    }
    let mesh = open();
    let pod = |name| mesh.pod(SHOP, name).unwrap();
    let mut uploads: Vec<_> = STRANGERS
        .iter()
        .map(|name| {
            let mut upload = connect(&pod(name), address(&mesh, "app", 9000).unwrap()).unwrap();
            upload.write_all(b"POST /x HTTP/1.1\r\nhost: app\r\ncontent-length: 1000\r\n\r\nhalf").unwrap();
            upload
        })
        .collect();
    let sent: Vec<_> = STRANGERS
        .iter()
        .map(|name| {
            let upload = connect(&pod(name), address(&mesh, "app", 9000).unwrap()).unwrap();
            std::thread::spawn(move || over_http2(upload))
        })
        .collect();
    let admitted =
        || count(&pod("app"), "inbound_http_authz_allow_total", &[("target_port", "9000")]).unwrap();
    mesh.wait_until("every request to come", PATIENCE, || admitted() > 5.5).unwrap();
    only_friends(&mesh);
    for upload in &mut uploads {
        let (head, _) = read_response(upload).unwrap();
        assert!(head.starts_with("HTTP/1.1 403 "), "{head}");
    }
    for upload in sent {
        assert_eq!(upload.join().unwrap(), 403);
    }
}

/// The status of an upload that begins and does not go on.
fn over_http2(stream: TcpStream) -> u16 {
    let begins = stream::once(ready(Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"half")))));
    let request =
        Request::post("http://app:9000/x").body(StreamBody::new(begins.chain(stream::pending()))).unwrap();
    let talk = async {
        stream.set_nonblocking(true).unwrap();
        let stream = TokioIo::new(tokio::net::TcpStream::from_std(stream).unwrap());
        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.unwrap();
        tokio::spawn(connection);
        sender.send_request(request).await.unwrap().status().as_u16()
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(PATIENCE, talk).await }).unwrap()
}

#[test]
fn the_audit_policy_ends_nothing() {
    if !check::can_run() {
        return;
    }
    let mesh = open();
    let pod = |name| mesh.pod(SHOP, name).unwrap();
    let held = App::start(&pod("app"), 8081, "held").unwrap();
    mesh.apply(&server("held", "app", 8081, "audit")).unwrap();
    let of = |name: &'static str| {
        VERSIONS.map(|version| Running::download(pod(name), version, "http://held:8081/hold"))
    };
    let all: Vec<_> = STRANGERS.iter().flat_map(|name| of(name)).collect();
    for running in &all {
        running.begins(&mesh);
    }
    only_friends(&mesh);
    // Each is named, and goes on.
    let named = || {
        let log = mesh.logs(&pod("app"), "linkerd-proxy");
        log.lines().filter(|line| line.contains("admitted by the audit policy only")).count()
    };
    mesh.wait_until("every client to be named", PATIENCE, || named() >= all.len()).unwrap();
    held.release();
    for running in &all {
        assert_eq!(running.ends(&mesh), "0", "{}", running.said());
        assert_eq!(running.output(), format!("{BEGUN}{ENDED}").as_bytes());
    }
}

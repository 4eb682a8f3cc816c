//! Every pod has a certificate of its own, always a fresh one, whatever becomes of the authority that issues it.
#![expect(clippy::unwrap_used, reason = "a test says what it expects")]

use remora_tests::mesh::Authority;
use remora_tests::shop::{self, PATIENCE, SHOP, curl, identity, state, web};
use remora_tests::{Load, Mesh, Options, PodRef, Signal, check, peer};
use rustls::{ClientConfig, HandshakeKind};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const PROXY: &str = "linkerd-proxy";
const END_ENTITY: &str = "/var/run/linkerd/identity/end-entity";
/// The shortest that identity issues for.
const LIFETIME: u64 = 30;

#[test]
fn a_certificate_names_its_pods_account_and_stays_in_its_pod() {
    if !check::can_run() {
        return;
    }
    let client = shop::idle("client", &[shop::WITHOUT_MUX]);
    let mesh = shop::open(&[web("web-0"), client, shop::BYTES.into()]).unwrap();
    let (server, client) = (mesh.pod(SHOP, "web-0").unwrap(), mesh.pod(SHOP, "client").unwrap());

    // rustls checks the chain and the name, with the trust anchor alone.
    let config = peer::client(mesh.root(), None, &[]).unwrap();
    let first = shake(&mesh, &server, &identity("web-0"), &config).unwrap();
    assert_eq!(first.kind, HandshakeKind::Full);
    let other = shake(&mesh, &server, &identity("client"), &peer::client(mesh.root(), None, &[]).unwrap());
    assert!(other.is_err(), "the certificate holds for another account");

    let listed = server.exec(PROXY, &["sh", "-c", &format!("stat -c '%a %u %n' {END_ENTITY}/*")]).unwrap();
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(listed.lines().count() >= 2, "key and certificate are there: {listed}");
    for file in listed.lines() {
        assert!(file.starts_with("400 2102 "), "{file}");
    }
    let read = server.exec("nginx", &["sh", "-c", &format!("cat {END_ENTITY}/*")]).unwrap();
    assert!(!read.status.success(), "the application's container sees the files");

    // A second connection of the same client is cheaper, also between two proxies.
    assert_eq!(shake(&mesh, &server, &identity("web-0"), &config).unwrap().kind, HandshakeKind::Resumed);
    let (full, resumed) = handshakes(&server);
    for _ in 0..10 {
        assert_eq!(curl(&client, &["http://bytes:9000/"]).unwrap(), "web-0\n");
    }
    let (full_after, resumed_after) = handshakes(&server);
    assert_eq!(full_after - full + resumed_after - resumed, 10, "each connection is one handshake");
    assert!(resumed_after - resumed >= 8, "{} of 10 connections were resumed", resumed_after - resumed);
}

#[test]
fn certificates_are_renewed_in_time_and_by_a_new_issuer_and_no_request_notices() {
    if !check::can_run() {
        return;
    }
    let short = vec![
        ("remora-identity", format!("--issuance-lifetime={LIFETIME}s")),
        ("remora-identity", "--clock-skew-allowance=0".to_owned()),
    ];
    let options = Options { control_plane_args: short, ..Options::default() };
    let mesh = Mesh::start_with(options, &serde_json::json!({})).unwrap();
    let mesh = shop::open_on(mesh, &[web("web-0"), shop::idle("client", &[]), shop::BYTES.into()]).unwrap();
    let (server, client) = (mesh.pod(SHOP, "web-0").unwrap(), mesh.pod(SHOP, "client").unwrap());
    let pooled = shop::customers(&mesh, &client).unwrap();
    let mut plan = shop::web_load(&mesh).unwrap();
    plan.target = SocketAddr::new(shop::cluster_ip(&mesh, "bytes").unwrap(), 9000);
    let bytes = Load::start(&client, plan).unwrap();

    let config = peer::client(mesh.root(), None, &[]).unwrap();
    let before = shake(&mesh, &server, &identity("web-0"), &config).unwrap();
    let issuers = issuers_put_to_use(&mesh);
    mesh.rotate_issuer().unwrap();
    wait(&mesh, "identity to take the new issuer", || issuers_put_to_use(&mesh) > issuers);

    let (serial, _) = certificate(&server);
    let mut left = LIFETIME;
    wait(&mesh, "a new serial", || {
        let (now, seconds) = certificate(&server);
        if now == serial {
            left = seconds;
        }
        now != serial
    });
    // Renewed at 70 %: 9 s before its end.
    assert!((7..=10).contains(&left), "renewed {left} s before the end of {LIFETIME} s");
    let after = shake(&mesh, &server, &identity("web-0"), &config).unwrap();
    assert_ne!(after.leaf, before.leaf, "the peer sees the new certificate");
    assert_ne!(after.issuer, before.issuer, "of the new issuer");
    assert_eq!(after.kind, HandshakeKind::Full, "no session outlives the certificate that it began with");

    let both = || pooled.tally().answered() + bytes.tally().answered();
    let so_far = both();
    wait(&mesh, "300 answers after it", || both() >= so_far + 300);
    let (pooled, bytes) = (pooled.finish().unwrap(), bytes.finish().unwrap());
    assert_eq!((pooled.failed, bytes.failed), (0, 0), "{pooled:?} {bytes:?}");
}

#[test]
fn an_issuer_of_another_root_is_refused_while_the_old_one_serves() {
    if !check::can_run() {
        return;
    }
    let mesh = shop::open(&[shop::idle("client", &[])]).unwrap();
    let foreign = Authority::root("root.of.somebody.else").unwrap().intermediate("identity").unwrap();
    mesh.offer_issuer(&foreign).unwrap();
    wait(&mesh, "identity to refuse the issuer", || {
        counted(&mesh, "remora_identity_issuer_refusals_total") >= 1
    });
    let log = mesh.logs(&mesh.pod("remora", "remora-identity").unwrap(), "identity");
    assert!(log.contains("does not lead to the trust anchors"), "the log does not say why:\n{log}");
    mesh.apply(&web("web-0")).unwrap();
    mesh.wait_ready(PATIENCE).unwrap();
    let client = mesh.pod(SHOP, "client").unwrap();
    assert_eq!(curl(&client, &["http://web:8000/"]).unwrap(), "web-0\n");
}

#[test]
fn without_identity_those_who_have_a_certificate_go_on_and_new_ones_wait() {
    if !check::can_run() {
        return;
    }
    let mesh = shop::open(&[web("web-0"), shop::idle("client", &[])]).unwrap();
    let client = mesh.pod(SHOP, "client").unwrap();
    let load = shop::customers(&mesh, &client).unwrap();
    wait(&mesh, "answers", || load.tally().answered() >= 20);

    let authority = mesh.pod("remora", "remora-identity").unwrap();
    authority.signal("identity", Signal::STOP).unwrap();
    mesh.apply(&web("web-1")).unwrap();
    let waiting = mesh.pod(SHOP, "web-1").unwrap();
    let unavailable = http::StatusCode::SERVICE_UNAVAILABLE;
    wait(&mesh, "its proxy to say that it is not ready", || {
        waiting.http_get(4191, "/ready").is_ok_and(|(status, _)| status == unavailable)
    });
    load.take();
    wait(&mesh, "200 answers without identity", || load.tally().answered() >= 200);
    assert!(!waiting.is_ready() && waiting.pid("nginx").is_none(), "its application has been started");
    wait(&mesh, "the silence to be counted", || {
        let counted = waiting.metrics().unwrap_or_default();
        let failed = counted.count("control_identity_cert_refreshes_total", &[("result", "error")]);
        failed >= 1 && counted.count("control_response_total", &[("classification", "failure")]) >= 1
    });

    authority.signal("identity", Signal::CONT).unwrap();
    wait(&mesh, "the new pod to be ready", || waiting.is_ready());
    wait(&mesh, "the new pod to be asked", || load.tally().from("web-1") >= 10);
    let tally = load.finish().unwrap();
    assert_eq!(tally.failed, 0, "{tally:?}");
}

#[track_caller]
fn wait(mesh: &Mesh, what: &str, holds: impl FnMut() -> bool) {
    mesh.wait_until(what, PATIENCE, holds).unwrap();
}

/// What a client of the test's own saw of a proxy's certificate.
struct Seen {
    leaf: Vec<u8>,
    issuer: Vec<u8>,
    kind: HandshakeKind,
}

/// Handshakes with the pod's proxy under this name, as somebody who has no certificate, and asks it one thing.
fn shake(mesh: &Mesh, pod: &PodRef<'_>, name: &str, config: &Arc<ClientConfig>) -> anyhow::Result<Seen> {
    let tcp = mesh.dial(pod.at(4191)?)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut stream = peer::handshake(tcp, name, config.clone()).await?;
        // With the answer come the tickets.
        stream.write_all(b"GET /live HTTP/1.1\r\nHost: proxy\r\nConnection: close\r\n\r\n").await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        let session = stream.get_ref().1;
        let chain = session.peer_certificates().unwrap_or_default();
        let der = |nth: usize| chain.get(nth).map(|certificate| certificate.to_vec()).unwrap_or_default();
        Ok(Seen { leaf: der(0), issuer: der(1), kind: session.handshake_kind().unwrap() })
    })
}

/// Serial and seconds left of the certificate that a pod's proxy uses.
fn certificate(pod: &PodRef<'_>) -> (String, u64) {
    let state = state(pod).unwrap();
    let serial = state.pointer("/identity/serial").and_then(serde_json::Value::as_str).unwrap();
    (serial.to_owned(), state.pointer("/identity/secondsLeft").and_then(serde_json::Value::as_u64).unwrap())
}

/// Handshakes that a pod's proxy has served: in full, resumed.
fn handshakes(pod: &PodRef<'_>) -> (u64, u64) {
    let counted = pod.metrics().unwrap();
    let of = |kind| counted.count("remora_inbound_tls_handshakes_total", &[("kind", kind)]);
    (of("full"), of("resumed"))
}

fn issuers_put_to_use(mesh: &Mesh) -> u64 {
    counted(mesh, "remora_identity_issuer_updates_total")
}

/// What identity has counted.
fn counted(mesh: &Mesh, name: &str) -> u64 {
    let (_, text) = mesh.pod("remora", "remora-identity").unwrap().http_get(9990, "/metrics").unwrap();
    remora_tests::metrics::parse(&text).count(name, &[])
}

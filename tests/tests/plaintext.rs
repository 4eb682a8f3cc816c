//! Where mTLS is demanded, whoever has no identity gets not one byte, however a connection came about, and the client is
//! told why.
#![expect(clippy::unwrap_used, reason = "a test says what it expects")]

use remora_tests::shop::{self, PATIENCE, SHOP, curl, state, status};
use remora_tests::wire::{address, client, connect, count, kit};
use remora_tests::{App, Mesh, PodRef, Signal, check};
use serde_json::Value;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

const POLICY: &str = "config.linkerd.io/outbound-default-policy";
const UNMESHED: (&str, &str) = ("linkerd.io/inject", "disabled");
/// Nobody is there, and it is in none of the cluster's networks (RFC 5737).
const OUTSIDE: &str = "198.51.100.7";

/// `strict` demands mTLS of everybody, `inside` of the cluster; nobody is told anything by `plain`, which has no proxy.
static MESH: LazyLock<Mesh> = LazyLock::new(|| {
    let opaque = ("config.linkerd.io/opaque-ports", "7000");
    shop::open(&[
        client("strict", &[(POLICY, "all-authenticated")]),
        client("inside", &[(POLICY, "cluster-authenticated")]),
        client("lax", &[]),
        kit("meshed", 8080, "http", &[]),
        kit("plain", 8080, "http", &[UNMESHED]),
        kit("bytes", 7000, "echo", &[UNMESHED, opaque]),
        kit("greeter", 7001, "greeter", &[UNMESHED]),
        service("mixed", "annotations: {retry.linkerd.io/http: 5xx}", "ports: [{name: main, port: 8080}]"),
        service("itself", "", "selector: {app: strict}, ports: [{port: 80, targetPort: 8090}]"),
        service("swapped", "", "selector: {app: meshed}, ports: [{port: 8080, targetPort: 8080}]"),
    ])
    .unwrap()
});

#[test]
fn requests_to_a_service_and_to_a_pod_are_refused_with_the_reason() {
    let Some((strict, _one)) = alone() else { return };
    let plain = pod("plain");
    let direct = format!("http://{}:8080/", plain.ip().unwrap());
    let before = failed(&strict, "outbound_http_errors_total");
    untouched(&plain, || {
        for url in ["http://plain:8080/", &direct] {
            for version in ["--http1.1", "--http2-prior-knowledge"] {
                let (code, error) = asked(&strict, &[version, url]);
                assert_eq!(code, 502, "{url} {version}: {error}");
                let told = "has no identity, and the outbound default policy all-authenticated demands mTLS";
                assert!(error.contains(told), "{url} {version}: {error}");
            }
        }
    });
    assert!(failed(&strict, "outbound_http_errors_total") >= before + 4.0);
    assert!(state(&strict).unwrap().to_string().contains("nothing was sent to it"), "/state.json names it");
    // Who has an identity is served, and who demands nothing is.
    assert_eq!(asked(&strict, &["http://meshed:8080/"]).0, 200);
    let capture = plain.capture("eth0", "tcp").unwrap();
    assert_eq!(asked(&pod("lax"), &["http://plain:8080/"]).0, 200);
    assert!(!capture.stop().unwrap().packets.is_empty(), "the capture sees what there is");
}

#[test]
fn bytes_are_refused_with_a_reset_whoever_would_speak_first() {
    let Some((strict, _one)) = alone() else { return };
    let before = failed(&strict, "outbound_tcp_errors_total");
    let plain = pod("plain");
    for (server, port, said) in [
        // Without detection, with it, and by a server that would speak first.
        ("bytes", 7000, &b"are you there?\n"[..]),
        ("plain", 8080, b"\0\0\0 nothing that HTTP begins with\r\n\r\n"),
        ("greeter", 7001, b""),
    ] {
        untouched(&pod(server), || {
            let mut stream = connect(&strict, address(&MESH, server, port).unwrap()).unwrap();
            stream.write_all(said).unwrap();
            let error = stream.read(&mut [0]).expect_err("an end, where there was nobody");
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{server}: {error}");
        });
    }
    untouched(&plain, || {
        let mut stream = connect(&strict, SocketAddr::new(plain.ip().unwrap(), 8080)).unwrap();
        stream.write_all(b"\0\0\0 to the pod itself\r\n\r\n").unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    });
    assert!(failed(&strict, "outbound_tcp_errors_total") >= before + 4.0);
}

#[test]
fn mirrors_and_retries_do_not_go_there_either() {
    let Some((strict, _one)) = alone() else { return };
    let (plain, meshed) = (pod("plain"), pod("meshed"));
    MESH.apply(&slice(&[&meshed, &plain])).unwrap();
    MESH.apply(MIRRORED).unwrap();
    MESH.wait_until("both endpoints of mixed", PATIENCE, || {
        let _ = status(&strict, "http://mixed:8080/");
        endpoints(&strict, "mixed") == 2
    })
    .unwrap();
    let mirrors = "remora_outbound_http_route_mirror_requests_total";
    untouched(&plain, || {
        // The one that may be sent to takes everything, also what is sent again.
        for _ in 0..20 {
            assert_eq!(asked(&strict, &["http://mixed:8080/"]).0, 200);
        }
        let failures =
            || count(&meshed, "response_total", &[("direction", "inbound"), ("status_code", "503")]).unwrap();
        let before = failures();
        assert_eq!(asked(&strict, &["http://mixed:8080/status/503"]).0, 503);
        MESH.wait_until("both tries where they may be sent", PATIENCE, || failures() >= before + 2.0)
            .unwrap();
        MESH.wait_until("a mirror that failed", PATIENCE, || {
            assert_eq!(asked(&strict, &["-d", "copied", "http://meshed:8080/mirrored"]).0, 200);
            count(&strict, mirrors, &[("result", "failed")]).unwrap() > 0.0
        })
        .unwrap();
    });
}

#[test]
fn a_service_that_is_moved_to_a_pod_without_a_proxy_is_not_followed_there() {
    let Some((strict, _one)) = alone() else { return };
    assert_eq!(asked(&strict, &["http://swapped:8080/"]).0, 200);
    let plain = pod("plain");
    untouched(&plain, || {
        MESH.apply(&service(
            "swapped",
            "",
            "selector: {app: plain}, ports: [{port: 8080, targetPort: 8080}]",
        ))
        .unwrap();
        MESH.wait_until("the move", PATIENCE, || {
            let (code, error) = asked(&strict, &["http://swapped:8080/"]);
            assert!(matches!(code, 200 | 502), "{code} {error}");
            code == 502 && error.contains("has no identity")
        })
        .unwrap();
    });
}

#[test]
fn outside_the_cluster_only_who_demands_nothing_there_goes_in_plaintext() {
    let Some((strict, _one)) = alone() else { return };
    let url = format!("http://{OUTSIDE}:8080/");
    let filter = format!("host {OUTSIDE}");
    let capture = MESH.capture(&filter).unwrap();
    let (code, error) = asked(&strict, &[&url]);
    assert_eq!(code, 502, "{error}");
    // The control plane does not answer: what is outside is forwarded without it, but not past this.
    let destination = MESH.pod("remora", "remora-destination").unwrap();
    destination.signal("destination", Signal::STOP).unwrap();
    let unanswered = asked(&strict, &[&format!("http://{OUTSIDE}:8081/")]);
    let inside = asked(&strict, &["http://10.244.250.9:8080/"]);
    destination.signal("destination", Signal::CONT).unwrap();
    assert!(unanswered.0 == 502 && unanswered.1.contains("has no identity"), "{unanswered:?}");
    assert_eq!(inside.0, 504, "{inside:?}");
    assert!(capture.stop().unwrap().packets.is_empty(), "something was sent outside");

    let capture = MESH.capture(&filter).unwrap();
    let (code, error) = asked(&pod("inside"), &[&url]);
    assert!(matches!(code, 502 | 504) && !error.contains("identity"), "nobody is there: {code} {error}");
    assert!(!capture.stop().unwrap().packets.is_empty(), "nothing was tried");
    let plain = pod("plain");
    untouched(&plain, || {
        let (code, error) = asked(&pod("inside"), &["http://plain:8080/"]);
        assert!(code == 502 && error.contains("cluster-authenticated"), "{code} {error}");
    });
}

#[test]
fn what_stays_in_the_pod_needs_no_mtls() {
    let Some((strict, _one)) = alone() else { return };
    let _app = App::start(&strict, 8090, "itself").unwrap();
    let itself = format!("http://{}:8090/", strict.ip().unwrap());
    assert_eq!(curl(&strict, &[&itself]).unwrap(), "itself\n");
    assert_eq!(curl(&strict, &["http://127.0.0.1:8090/"]).unwrap(), "itself\n");
    assert_eq!(curl(&strict, &["http://itself/"]).unwrap(), "itself\n");
}

/// That requests to `meshed` are copied to `plain`.
const MIRRORED: &str = "
kind: HTTPRoute
apiVersion: gateway.networking.k8s.io/v1
metadata: {name: mirrored, namespace: shop}
spec:
  parentRefs: [{group: core, kind: Service, name: meshed, port: 8080}]
  rules:
  - matches: [{path: {value: /mirrored}}]
    filters: [{type: RequestMirror, requestMirror: {backendRef: {name: plain, port: 8080}}}]
  - {}
";

fn service(name: &str, metadata: &str, spec: &str) -> String {
    format!(
        "{{kind: Service, apiVersion: v1, metadata: {{name: {name}, namespace: shop, {metadata}}}, spec: {{{spec}}}}}\n---\n"
    )
}

/// The endpoints of `mixed`.
fn slice(pods: &[&PodRef<'_>]) -> String {
    let endpoint = |pod: &&PodRef<'_>| {
        let (ip, name) = (pod.ip().unwrap(), &pod.name.name);
        format!(
            "{{addresses: ['{ip}'], conditions: {{ready: true}}, targetRef: {{kind: Pod, name: {name}, namespace: shop}}}}"
        )
    };
    let endpoints: Vec<String> = pods.iter().map(endpoint).collect();
    format!(
        "
kind: EndpointSlice
apiVersion: discovery.k8s.io/v1
metadata: {{name: mixed-1, namespace: shop, labels: {{kubernetes.io/service-name: mixed}}}}
addressType: IPv4
ports: [{{name: main, port: 8080, protocol: TCP}}]
endpoints: [{}]
",
        endpoints.join(", ")
    )
}

/// Nothing arrives at the pod meanwhile, not even the beginning of a connection.
#[track_caller]
fn untouched(server: &PodRef<'_>, work: impl FnOnce()) {
    let capture = server.capture("eth0", "tcp").unwrap();
    work();
    let packets = capture.stop().unwrap().packets;
    assert!(packets.is_empty(), "{} packets reached {}", packets.len(), server.name);
}

/// Status, and what the proxy says.
fn asked(from: &PodRef<'_>, arguments: &[&str]) -> (u16, String) {
    let format = "%{http_code} %header{l5d-proxy-error}";
    let answer = curl(from, &[&["-o", "/dev/null", "-w", format][..], arguments].concat()).unwrap();
    let (code, error) = answer.split_once(' ').unwrap();
    (code.parse().unwrap(), error.to_owned())
}

/// How many endpoints of a Service the client's proxy knows.
fn endpoints(client: &PodRef<'_>, service: &str) -> usize {
    let (state, name) = (state(client).unwrap(), format!("{service}.shop.svc.cluster.local:8080"));
    let target = address(&MESH, service, 8080).unwrap().to_string();
    let workers = state.pointer("/outbound/workers").and_then(Value::as_array).unwrap();
    let known =
        workers.iter().filter_map(|worker| worker.get(&target)?.get("backends")?.get(&name)?.as_array());
    known.map(Vec::len).max().unwrap_or(0)
}

fn failed(from: &PodRef<'_>, family: &str) -> f64 {
    count(from, family, &[("error", "no identity")]).unwrap()
}

/// The client that demands mTLS, while no other test goes on: they share their servers.
fn alone() -> Option<(PodRef<'static>, MutexGuard<'static, ()>)> {
    static ONE: Mutex<()> = Mutex::new(());
    check::can_run().then(|| (pod("strict"), ONE.lock().unwrap_or_else(PoisonError::into_inner)))
}

fn pod(name: &str) -> PodRef<'static> {
    MESH.pod(SHOP, name).unwrap()
}

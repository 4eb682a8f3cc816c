//! What operators and a broken control plane do to the mesh: a clear error, a counter, and service to what is known.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use remora_tests::mesh::CONTROL_PLANE;
use remora_tests::peer::{self, End};
use remora_tests::{Mesh, PodRef, Signal, check, shop, world};
use serde_json::{Value, json};

const READY: Duration = Duration::from_secs(30);
/// Where a proxy finds its token (contract 6.3).
const TOKEN: &str = "/var/run/secrets/tokens/linkerd-identity-token";
/// The bound of a first lookup (design decision 8) with what a busy machine adds.
const LOOKUP: std::ops::Range<Duration> = Duration::from_millis(2500)..Duration::from_secs(7);
/// An address of the node that is in none of the default cluster networks (RFC 5737).
const OUTSIDE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(203, 0, 113, 9)), 8080);

#[test]
fn without_a_control_plane_the_known_is_served_the_unknown_fails_in_time_and_the_outside_is_reached() {
    if !check::can_run() {
        return;
    }
    let apps = ["known", "silent", "dead"];
    let served = apps.map(|app| shop::service(app, 80, "8000") + &shop::idle(app, &[]));
    let mesh = shop::open(&[&[shop::idle("client", &[])], &served[..]].concat()).unwrap();
    for app in apps {
        peer::mirror(mesh.pod("shop", app).unwrap().listen(8000).unwrap());
    }
    peer::mirror(outside(&mesh));
    let client = mesh.pod("shop", "client").unwrap();
    let destination = || mesh.pod("remora", "remora-destination").unwrap();
    let known = SocketAddr::new(shop::cluster_ip(&mesh, "known").unwrap(), 80);
    let mut kept = client.dial(known).unwrap();
    assert_eq!(get(&mut kept), 200);

    // Silent: it takes connections and answers nothing.
    let unanswered = unanswered(&client);
    destination().signal("destination", Signal::STOP).unwrap();
    unknown_fails(&mesh, &client, "silent");
    mesh.wait_until("the silence to be counted", READY, || self::unanswered(&client) > unanswered).unwrap();
    let began = Instant::now();
    assert_eq!(get(&mut client.dial(OUTSIDE).unwrap()), 200, "outside of the cluster's networks");
    assert!(LOOKUP.contains(&began.elapsed()), "{:?}", began.elapsed());
    let forwarded = client.metrics().unwrap().sum("remora_outbound_first_lookup_forwarded_total", &[]);
    assert_eq!(forwarded, Some(1.0));
    assert_eq!(get(&mut kept), 200, "a connection that is open");
    assert_eq!(get(&mut client.dial(known).unwrap()), 200, "a target that is known");
    destination().signal("destination", Signal::CONT).unwrap();
    recovers(&mesh, &client, "silent");

    // Dead: nobody takes connections any more, and its name has no address.
    let (unanswered, refused) = (self::unanswered(&client), refused(&client));
    destination().kill().unwrap();
    unknown_fails(&mesh, &client, "dead");
    mesh.wait_until("its death to be counted", READY, || {
        self::unanswered(&client) > unanswered && self::refused(&client) > refused
    })
    .unwrap();
    assert_eq!(get(&mut kept), 200, "a connection that is open");
    assert_eq!(get(&mut client.dial(known).unwrap()), 200, "a target that is known");
    let objects = world::parse(CONTROL_PLANE).unwrap();
    let is_it =
        |object: &Value| object["kind"] == "Pod" && object["metadata"]["name"] == "remora-destination";
    mesh.apply_objects(objects.into_iter().filter(is_it).collect()).unwrap();
    recovers(&mesh, &client, "dead");
    assert_eq!(get(&mut kept), 200);
}

#[test]
fn a_proxy_whose_token_cannot_be_used_says_why_and_is_ready_when_it_is_mended() {
    if !check::can_run() {
        return;
    }
    let mesh = shop::open(&[shop::idle("donor", &[])]).unwrap();
    let donor = mesh.pod("shop", "donor").unwrap();
    let token = donor.exec("linkerd-proxy", &["cat", TOKEN]).unwrap();
    let token = String::from_utf8(token.stdout).unwrap();

    // As the injector left the donor, but for an empty directory where its token is.
    let mut pod = another(&donor, "victim");
    let volumes = pod["spec"]["volumes"].as_array_mut().unwrap();
    let volume = volumes.iter_mut().find(|volume| volume["name"] == "linkerd-identity-token").unwrap();
    *volume = json!({"name": "linkerd-identity-token", "emptyDir": {}});
    mesh.apply_objects(vec![pod]).unwrap();
    let victim = mesh.pod("shop", "victim").unwrap();

    let says = |what: &str| {
        mesh.wait_until(&format!("the log to say {what:?}"), READY, || {
            mesh.logs(&victim, "linkerd-proxy").contains(what)
        })
        .unwrap();
        assert_eq!(victim.http_get(4191, "/ready").unwrap().0, 503, "{what}");
        assert_eq!(victim.http_get(4191, "/live").unwrap().0, 200, "{what}");
    };
    let write = |text: &str| {
        let script = format!("printf %s '{text}' > {TOKEN}");
        let output = victim.exec("linkerd-proxy", &["sh", "-c", &script]).unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    says(TOKEN);
    write("not.a.token");
    says("identity answers InvalidArgument");
    let failed = [("result", "error")];
    let failures = victim.metrics().unwrap().sum("control_identity_cert_refreshes_total", &failed);
    assert!(failures >= Some(2.0), "{failures:?}");
    assert!(!victim.is_ready() && donor.is_ready());
    write(&token);
    mesh.wait_until("the mended pod to be ready", READY, || victim.is_ready()).unwrap();
}

#[test]
fn a_proxy_whose_own_connections_are_redirected_is_never_ready_and_names_its_user() {
    if !check::can_run() {
        return;
    }
    let mesh = shop::open(&[shop::idle("donor", &[])]).unwrap();
    let donor = mesh.pod("shop", "donor").unwrap();
    // The init container exempts the user that it was told; a policy, or a hand, has given the proxy another one.
    let mut pod = another(&donor, "victim");
    let containers = pod["spec"]["initContainers"].as_array_mut().unwrap();
    let proxy = containers.iter_mut().find(|container| container["name"] == "linkerd-proxy").unwrap();
    assert_eq!(proxy["securityContext"]["runAsUser"], json!(2102));
    proxy["securityContext"]["runAsUser"] = json!(2103);
    mesh.apply_objects(vec![pod]).unwrap();
    let victim = mesh.pod("shop", "victim").unwrap();
    let warning = "the redirect captures this proxy's own connections";
    mesh.wait_until("the proxy to say so", READY, || mesh.logs(&victim, "linkerd-proxy").contains(warning))
        .unwrap();
    let log = mesh.logs(&victim, "linkerd-proxy");
    let told = log.lines().find(|line| line.contains(warning)).unwrap();
    assert!(told.contains("uid=2103") && told.contains("--proxy-uid"), "{told}");
    assert_eq!(log.matches(warning).count(), 1, "it is said once: {log}");
    assert_eq!(victim.http_get(4191, "/ready").unwrap().0, 503);
    assert_eq!(victim.http_get(4191, "/live").unwrap().0, 200);
    assert!(!victim.is_ready() && victim.pid("app").is_none(), "its application has been started");
    assert!(!mesh.logs(&donor, "linkerd-proxy").contains(warning), "whoever is exempt does not say so");
}

#[test]
fn every_process_lists_all_mistakes_of_its_configuration_and_exits_64() {
    let proxy = [
        ("LINKERD2_PROXY_INBOUND_LISTEN_ADDR", "everywhere"),
        ("LINKERD2_PROXY_INBOUND_CONNECT_TIMEOUT", "fast"),
        ("LINKERD2_PROXY_INBOUND_DEFAULT_POLICY", "most"),
        ("LINKERD2_PROXY_INBOUND_PORTS", "80,http"),
        ("LINKERD2_PROXY_INBOUND_IPS", "10.0.0.300"),
        ("LINKERD2_PROXY_POLICY_CLUSTER_NETWORKS", "10/8x"),
        ("LINKERD2_PROXY_IDENTITY_TRUST_ANCHORS", "text"),
        ("LINKERD2_PROXY_IDENTITY_LOCAL_NAME", "spaces in it"),
        ("LINKERD2_PROXY_LOG", "a=b=c"),
        ("LINKERD2_PROXY_LOG_FORMAT", "xml"),
        ("LINKERD2_PROXY_CORES", "none"),
        ("REMORA_PROXY_MAX_CONNECTION", "1"),
        ("LINKERD2_PROXY_OF_ANOTHER_VERSION", "1"),
    ];
    let said = mistakes(Command::new(binary("remora-proxy")).env_clear().envs(proxy));
    let missing = ["LINKERD2_PROXY_DESTINATION_SVC_ADDR", "LINKERD2_PROXY_IDENTITY_TOKEN_FILE"];
    let (unread, read) =
        proxy.map(|(name, _)| name).split_last().map(|(last, rest)| (*last, rest.to_vec())).unwrap();
    for name in read.iter().chain(&missing) {
        assert_eq!(said.lines().filter(|line| is_of(line, name)).count(), 1, "{name} in:\n{said}");
    }
    assert!(!said.contains(unread), "what other versions read is no mistake:\n{said}");

    for (process, flags) in [
        ("remora-destination", &["--grpc-addr=x", "--policy-addr=x", "--cluster-networks=x"][..]),
        ("remora-identity", &["--grpc-addr=x", "--issuance-lifetime=x", "--clock-skew-allowance=x"]),
        ("remora-injector", &INJECTOR),
        ("remora-init", &["--incoming-proxy-port=x", "--outgoing-proxy-port=x", "--proxy-uid=x"]),
    ] {
        let said = mistakes(Command::new(binary(process)).args(flags));
        for flag in flags {
            let flag = flag.trim_end_matches("=x");
            assert!(said.contains(flag), "{process} does not name {flag}:\n{said}");
        }
    }
}

#[test]
fn a_broken_manifest_is_named_and_its_last_good_version_serves() {
    if !check::can_run() {
        return;
    }
    let mesh = Mesh::start().unwrap();
    mesh.apply(shop::NAMESPACE).unwrap();
    // An address that no rule of the node translates: who reaches the pod knows it from the control plane.
    let file = mesh.manifests().join("by-hand.yaml");
    let service = |port: u16| {
        let spec = format!(
            "{{clusterIP: 10.96.200.1, selector: {{app: web}}, ports: [{{port: {port}, targetPort: 8000}}]}}"
        );
        format!("kind: Service\napiVersion: v1\nmetadata: {{name: by-hand, namespace: shop}}\nspec: {spec}\n")
    };
    std::fs::write(&file, service(80)).unwrap();
    mesh.apply(&shop::idle("web", &[])).unwrap();
    mesh.apply(&shop::idle("first", &[])).unwrap();
    mesh.apply(&shop::idle("second", &[])).unwrap();
    mesh.wait_ready(READY).unwrap();
    peer::mirror(mesh.pod("shop", "web").unwrap().listen(8000).unwrap());
    let destination = mesh.pod("remora", "remora-destination").unwrap();
    let served = |from: &str, port: u16| {
        let client = mesh.pod("shop", from).unwrap();
        shop::status(&client, &format!("http://10.96.200.1:{port}/")).is_ok_and(|(status, _)| status == 200)
    };
    let errors = || {
        let text = shop::curl(&destination, &["-f", "http://127.0.0.1:9996/state.json"]).unwrap();
        let state: Value = serde_json::from_str(&text).unwrap();
        state.pointer("/manifests/files/by-hand.yaml/errors").cloned().unwrap_or_default().to_string()
    };
    let invalid = || {
        let (_, text) = destination.http_get(9996, "/metrics").unwrap();
        remora_tests::metrics::parse(&text).sum("remora_destination_invalid_files", &[])
    };
    assert!(served("first", 80));
    assert_eq!((errors(), invalid()), ("[]".to_owned(), Some(0.0)));

    std::fs::write(&file, service(81).replace("port: 81", "port: eighty-one")).unwrap();
    mesh.wait_until("the mistake to be named", READY, || errors().contains("eighty-one")).unwrap();
    assert!(mesh.logs(&destination, "destination").contains("by-hand.yaml"), "the log names the file");
    mesh.wait_until("the file to be counted", READY, || invalid() == Some(1.0)).unwrap();
    assert!(served("first", 80) && served("second", 80), "its last good version");

    std::fs::write(&file, service(82)).unwrap();
    mesh.wait_until("the mended version to be read", READY, || errors() == "[]").unwrap();
    mesh.wait_until("the mended version to serve", READY, || served("second", 82)).unwrap();
    mesh.wait_until("no file to be counted", READY, || invalid() == Some(0.0)).unwrap();
}

#[test]
fn an_annotation_that_is_not_a_number_is_a_warning_and_the_default_stays() {
    if !check::can_run() {
        return;
    }
    let mesh = Mesh::start().unwrap();
    mesh.apply(shop::NAMESPACE).unwrap();
    let wrong = [
        ("config.linkerd.io/proxy-uid", "root"),
        ("config.linkerd.io/admin-port", "eighty"),
        ("config.linkerd.io/proxy-inbound-connect-timeout", "soon"),
        ("config.linkerd.io/proxy-cpu-request", "some"),
        ("config.alpha.linkerd.io/proxy-wait-before-exit-seconds", "a while"),
    ];
    mesh.apply(&shop::idle("odd", &wrong)).unwrap();
    mesh.apply(&shop::idle("even", &[])).unwrap();
    mesh.wait_ready(READY).unwrap();
    let injector = mesh.pod("remora", "remora-proxy-injector").unwrap();
    let log = mesh.logs(&injector, "proxy-injector");
    for (annotation, value) in wrong {
        let named = |line: &&str| line.contains("WARN") && line.contains(annotation) && line.contains(value);
        assert_eq!(log.lines().filter(named).count(), 1, "{annotation} in:\n{log}");
    }
    let (_, counted) = injector.http_get(9995, "/metrics").unwrap();
    let warnings = [("namespace", "shop")];
    let counted = remora_tests::metrics::parse(&counted).count("remora_injector_warnings_total", &warnings);
    assert_eq!(counted, wrong.len() as u64, "each is a warning that is counted");
    let proxy = |name: &str| {
        let pod = serde_json::to_value(mesh.pod("shop", name).unwrap().object()).unwrap();
        let containers = pod.pointer("/spec/initContainers").and_then(Value::as_array).cloned().unwrap();
        let proxy = containers.into_iter().find(|container| container["name"] == "linkerd-proxy").unwrap();
        (proxy["env"].clone(), proxy["securityContext"].clone(), proxy["resources"].clone())
    };
    assert_eq!(proxy("odd"), proxy("even"));
}

/// A pod as the injector left this one, under another name.
#[expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a helper of tests")]
fn another(pod: &PodRef<'_>, name: &str) -> Value {
    let mut pod = serde_json::to_value(pod.object()).unwrap();
    pod["metadata"]["name"] = json!(name);
    for meta in ["uid", "creationTimestamp"] {
        pod["metadata"].as_object_mut().unwrap().remove(meta);
    }
    pod.as_object_mut().unwrap().remove("status");
    pod["apiVersion"] = json!("v1");
    pod["kind"] = json!("Pod");
    pod
}

/// A target of which nothing is known yet: HTTP is told why, other bytes are cut off, both in time.
#[expect(clippy::unwrap_used, reason = "a helper of tests")]
fn unknown_fails(mesh: &Mesh, client: &PodRef<'_>, service: &str) {
    let to = SocketAddr::new(shop::cluster_ip(mesh, service).unwrap(), 80);
    let began = Instant::now();
    let (status, error) = shop::status(client, &format!("http://{to}/")).unwrap();
    assert_eq!(status, 504, "{service}: {error}");
    assert!(
        error.contains("the control plane does not answer") && error.contains(&to.to_string()),
        "{error}"
    );
    assert!(LOOKUP.contains(&began.elapsed()), "{service}: {:?}", began.elapsed());

    let mut bytes = client.dial(to).unwrap();
    bytes.write_all(b"*1\r\n$4\r\nPING\r\n").unwrap();
    let began = Instant::now();
    let mut answer = [0];
    let ended = bytes.read(&mut answer).unwrap_err().kind();
    assert_eq!(ended, std::io::ErrorKind::ConnectionReset, "{service}");
    assert!(began.elapsed() < LOOKUP.end, "{service}: {:?}", began.elapsed());
    assert_eq!(peer::end_of(&mut bytes), End::Closed(Vec::new()));

    let labels = [("error", "first lookup timeout")];
    // Counted when the connection has ended, which is after the client was told.
    let counted = || client.metrics().unwrap().sum("outbound_tcp_errors_total", &labels) >= Some(2.0);
    mesh.wait_until(&format!("both failures of {service} to be counted"), READY, counted).unwrap();
}

/// Requests to discovery and policy that failed.
fn unanswered(client: &PodRef<'_>) -> f64 {
    let failed = [("classification", "failure"), ("tls", "true")];
    client.metrics().unwrap_or_default().sum("control_response_total", &failed).unwrap_or(0.0)
}

/// Connections to the control plane that could not be made.
fn refused(client: &PodRef<'_>) -> f64 {
    let failed = [("result", "error")];
    client.metrics().unwrap_or_default().sum("remora_control_connections_total", &failed).unwrap_or(0.0)
}

/// When the control plane is back, what failed is served, without anything being started again.
#[expect(clippy::unwrap_used, reason = "a helper of tests")]
fn recovers(mesh: &Mesh, client: &PodRef<'_>, service: &str) {
    let url = format!("http://{service}/");
    let mut last = String::new();
    let waited = mesh.wait_until(&format!("{service} to be served"), READY, || {
        let asked = shop::status(client, &url);
        last = format!("{asked:?}");
        asked.is_ok_and(|(status, _)| status == 200)
    });
    assert!(waited.is_ok(), "{last}\n{:#}", waited.unwrap_err());
}

/// A listener at an address of the node outside of the cluster's networks.
#[expect(clippy::unwrap_used, reason = "a helper of tests")]
fn outside(mesh: &Mesh) -> TcpListener {
    let address = format!("{}/32", OUTSIDE.ip());
    let listener = mesh.enter(|| {
        let added = Command::new("ip").args(["addr", "add", &address, "dev", "lo"]).status()?;
        assert!(added.success());
        TcpListener::bind(OUTSIDE)
    });
    listener.unwrap().unwrap()
}

/// The status of a GET; 0 where the connection ended without an answer.
fn get(stream: &mut TcpStream) -> u16 {
    let asked = stream.write_all(b"GET / HTTP/1.1\r\nhost: web\r\n\r\n");
    let answer = asked.and_then(|()| peer::read_answer(stream));
    answer.ok().and_then(|(head, _)| head.get(9..12)?.parse().ok()).unwrap_or(0)
}

/// Files that do not exist count as mistakes too.
const INJECTOR: [&str; 6] =
    ["--addr=x", "--admin-addr=x", "--tls-cert=x", "--tls-key=x", "--config=x", "--manifests=x"];

/// Whether a line of mistakes is about this variable, and not about one whose name begins alike.
fn is_of(line: &str, name: &str) -> bool {
    line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['=', ':']))
}

/// What a process says of its configuration before it exits with 64.
#[expect(clippy::unwrap_used, reason = "a helper of tests")]
fn mistakes(command: &mut Command) -> String {
    let output = command.output().unwrap();
    // As `kubectl logs` shows them: both streams.
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert_eq!(output.status.code(), Some(64), "{command:?} said:\n{said}");
    said
}

/// A binary of the workspace, where the harness looks for them too.
#[expect(clippy::unwrap_used, reason = "a helper of tests")]
fn binary(name: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let beside = || own.ancestors().nth(2).unwrap().to_path_buf();
    let path = std::env::var_os("REMORA_BIN_DIR").map_or_else(beside, PathBuf::from).join(name);
    assert!(path.is_file(), "{} does not exist: `make test` builds it", path.display());
    path
}

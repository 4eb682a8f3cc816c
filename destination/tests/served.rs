//! The promise of the standalone home: proxies see what the directory says, within a second, and nothing that a
//! writer did halfway.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "clippy does not count the helpers of a test as a test"
)]

use linkerd2_proxy_api::{
    destination::{GetDestination, Update, destination_client::DestinationClient, update},
    inbound::{PortSpec, inbound_server_policies_client::InboundServerPoliciesClient},
    meta,
    outbound::{
        OutboundPolicy, TrafficSpec,
        http_route::{self, distribution::Kind as Distribution, filter::Kind as Filter},
        outbound_policies_client::OutboundPoliciesClient,
        proxy_protocol::Kind,
        traffic_spec,
    },
};
use remora_destination::{
    config::Config,
    process::{Addresses, Process},
};
use remora_runtime::{log::LogHandle, tasks::Drain};
use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
    time::timeout,
};
use tonic::{Code, Streaming, transport::Channel};

/// The end of waiting: long, because machines that build are busy. What should be quick is measured apart.
const DEADLINE: Duration = Duration::from_secs(30);

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
";

fn pod(number: u8) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: web-{number}, namespace: shop, labels: {{app: web}}}}, \
         spec: {{containers: []}}, status: {{podIP: 10.1.0.{number}}}}}"
    )
}

#[tokio::test]
async fn endpoints_follow_the_directory() {
    let standalone = Standalone::start(&[("service.yaml", SERVICE), ("1.yaml", &pod(1))]).await;
    let mut updates = standalone.get("web.shop.svc.cluster.local:80").await.unwrap();
    assert_eq!(next(&mut updates).await, ["+10.1.0.1:8080"]);
    let mut quickest = Duration::MAX;
    for number in 2..5 {
        let started = Instant::now();
        standalone.write(&format!("{number}.yaml"), &pod(number));
        assert_eq!(next(&mut updates).await, [format!("+10.1.0.{number}:8080")]);
        quickest = quickest.min(started.elapsed());
    }
    assert!(quickest < Duration::from_secs(1), "the quickest of three changes took {quickest:?}");
    std::fs::remove_file(standalone.path("3.yaml")).unwrap();
    assert_eq!(next(&mut updates).await, ["-10.1.0.3:8080"]);
    std::fs::remove_file(standalone.path("service.yaml")).unwrap();
    assert_eq!(next(&mut updates).await, ["none exists=false"]);
    standalone.write("service.yaml", SERVICE);
    assert_eq!(next(&mut updates).await, ["+10.1.0.1:8080", "+10.1.0.2:8080", "+10.1.0.4:8080"]);
}

#[tokio::test]
async fn a_service_without_endpoints_says_so_at_once() {
    let standalone = Standalone::start(&[("service.yaml", SERVICE)]).await;
    let mut updates = standalone.get("web.shop.svc.cluster.local:80").await.unwrap();
    assert_eq!(next(&mut updates).await, [""; 0]);
}

#[tokio::test]
async fn a_broken_file_keeps_its_last_good_version_and_is_named() {
    let standalone = Standalone::start(&[("service.yaml", SERVICE), ("1.yaml", &pod(1))]).await;
    let mut updates = standalone.get("web.shop.svc.cluster.local:80").await.unwrap();
    assert_eq!(next(&mut updates).await, ["+10.1.0.1:8080"]);
    standalone.write("1.yaml", "{apiVersion: v1, kind: Pod, metadata: {name: web-1");
    let state = standalone.state_with("\"errors\": [\n").await;
    assert!(state.contains("document 1: not YAML"), "{state}");
    // Had the broken file taken its pod away, that would be the next message.
    standalone.write("2.yaml", &pod(2));
    assert_eq!(next(&mut updates).await, ["+10.1.0.2:8080"]);
    standalone.write("1.yaml", &pod(7));
    assert_eq!(next(&mut updates).await, ["+10.1.0.7:8080"]);
    assert_eq!(next(&mut updates).await, ["-10.1.0.1:8080"]);
}

#[tokio::test]
async fn the_other_apis_follow_too() {
    let standalone = Standalone::start(&[("service.yaml", SERVICE), ("1.yaml", &pod(1))]).await;
    let workload = r#"{"ns":"shop","pod":"web-1"}"#.to_owned();
    let mut profiles = DestinationClient::new(standalone.destination.clone());
    let request = GetDestination { path: "10.96.0.1:80".to_owned(), ..GetDestination::default() };
    let mut profiles = profiles.get_profile(request).await.unwrap().into_inner();
    let profile = message(&mut profiles).await;
    assert_eq!(
        (profile.fully_qualified_name.as_str(), profile.opaque_protocol),
        ("web.shop.svc.cluster.local", false)
    );

    let mut outbound = OutboundPoliciesClient::new(standalone.policy.clone());
    let target = traffic_spec::Target::Addr("10.96.0.1:80".parse::<SocketAddr>().unwrap().into());
    let request = TrafficSpec { source_workload: workload.clone(), target: Some(target) };
    assert!(outbound.get(request.clone()).await.unwrap().into_inner().protocol.is_some());
    let mut policies = outbound.watch(request).await.unwrap().into_inner();
    let before = message(&mut policies).await;

    let mut inbound = InboundServerPoliciesClient::new(standalone.policy.clone());
    let request = PortSpec { workload, port: 8080 };
    let mut servers = inbound.watch_port(request.clone()).await.unwrap().into_inner();
    assert_eq!(message(&mut servers).await.labels["name"], "all-unauthenticated");

    let annotations =
        "{config.linkerd.io/opaque-ports: '80,8080', config.linkerd.io/default-inbound-policy: deny}";
    let namespace =
        format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: shop, annotations: {annotations}}}}}");
    standalone.write("namespace.yaml", &namespace);
    assert!(message(&mut profiles).await.opaque_protocol);
    assert_ne!(message(&mut policies).await, before);
    let server = message(&mut servers).await;
    assert_eq!((server.labels["name"].as_str(), server.authorizations.len()), ("deny", 0));
    assert_eq!(inbound.get_port(request).await.unwrap().into_inner(), server);
}

/// A route of `shop` that sends everything to another Service, or whatever else `rule` says.
fn route(name: &str, namespace: &str, rule: &str) -> String {
    format!(
        "{{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, \
         metadata: {{name: {name}, namespace: {namespace}}}, spec: {{parentRefs: \
         [{{group: core, kind: Service, name: web, namespace: shop, port: 80}}], rules: [{{{rule}}}]}}}}"
    )
}

#[tokio::test]
async fn routes_follow_the_directory_and_say_how_they_stand() {
    let standalone = Standalone::start(&[("service.yaml", SERVICE)]).await;
    let watch = |namespace: &str| {
        let mut client = OutboundPoliciesClient::new(standalone.policy.clone());
        let target = traffic_spec::Target::Authority("web.shop.svc.cluster.local:80".to_owned());
        let source_workload = format!("{namespace}:web-1");
        async move {
            let request = TrafficSpec { source_workload, target: Some(target) };
            client.watch(request).await.unwrap().into_inner()
        }
    };
    let (mut near, mut far) = (watch("shop").await, watch("bank").await);
    assert_eq!(routes(&message(&mut near).await), ["http: web:80"]);
    assert_eq!(routes(&message(&mut far).await), ["http: web:80"]);
    // A producer's route is for everybody.
    standalone
        .write("a.yaml", &route("a", "shop", "backendRefs: [{name: web, port: 80}, {name: v2, port: 80}]"));
    let expected = ["shop/a: web:80 500 Service shop/v2 does not exist"];
    assert_eq!(routes(&message(&mut near).await), expected);
    assert_eq!(routes(&message(&mut far).await), expected);
    let state = standalone.state_with("BackendNotFound").await;
    assert!(state.contains("spec.rules[0].backendRefs[1]: Service shop/v2 does not exist"), "{state}");
    // The Service that was missing comes.
    standalone.write("v2.yaml", &SERVICE.replace("name: web", "name: v2").replace("0.1", "0.2"));
    assert_eq!(routes(&message(&mut near).await), ["shop/a: web:80 v2:80"]);
    assert_eq!(routes(&message(&mut far).await), ["shop/a: web:80 v2:80"]);
    // A consumer's route is for its own namespace, instead of the producer's.
    standalone
        .write("b.yaml", &route("b", "bank", "filters: [{type: URLRewrite, urlRewrite: {hostname: x}}]"));
    let words = routes(&message(&mut far).await);
    assert!(
        words[0].starts_with("bank/b: 500 HTTPRoute bank/b: spec.rules[0].filters[0].urlRewrite: "),
        "{words:?}"
    );
    // Said in Linkerd's API; in ours it is not refused.
    standalone.state_with("Linkerd's API cannot carry URLRewrite").await;
    // Had the other client heard of it, this would not be its next message.
    std::fs::remove_file(standalone.path("a.yaml")).unwrap();
    assert_eq!(routes(&message(&mut near).await), ["http: web:80"]);
}

/// HTTP routes in words: name, and where the first rule sends.
fn routes(policy: &OutboundPolicy) -> Vec<String> {
    let Some(Kind::Detect(detect)) = policy.protocol.as_ref().and_then(|protocol| protocol.kind.as_ref())
    else {
        return Vec::new();
    };
    let routes = detect.http1.as_ref().unwrap().routes.iter();
    routes
        .map(|route| {
            let name = match route.metadata.as_ref().unwrap().kind.as_ref().unwrap() {
                meta::metadata::Kind::Default(name) => name.clone(),
                meta::metadata::Kind::Resource(route) => format!("{}/{}", route.namespace, route.name),
            };
            let rule = route.rules.first().unwrap();
            let backends: Vec<&http_route::RouteBackend> =
                match rule.backends.as_ref().unwrap().kind.as_ref().unwrap() {
                    Distribution::Empty(_) => vec![],
                    Distribution::FirstAvailable(first) => first.backends.iter().collect(),
                    Distribution::RandomAvailable(random) => {
                        random.backends.iter().map(|backend| backend.backend.as_ref().unwrap()).collect()
                    }
                };
            let words = backends.into_iter().flat_map(|backend| {
                let failures =
                    rule.filters.iter().chain(&backend.filters).filter_map(|filter| match &filter.kind {
                        Some(Filter::FailureInjector(failure)) => {
                            Some(format!("{} {}", failure.status, failure.message))
                        }
                        _ => None,
                    });
                let place = backend.backend.as_ref().unwrap();
                let place = match (&place.kind, place.metadata.as_ref().unwrap().kind.as_ref().unwrap()) {
                    (Some(_), meta::metadata::Kind::Resource(service)) => {
                        Some(format!("{}:{}", service.name, service.port))
                    }
                    _ => None,
                };
                failures.chain(place).collect::<Vec<_>>()
            });
            format!("{name}: {}", words.collect::<Vec<_>>().join(" "))
        })
        .collect()
}

/// A document of Linkerd's policy resources in `shop`.
fn policy(version: &str, kind: &str, name: &str, spec: &str) -> String {
    format!(
        "{{apiVersion: policy.linkerd.io/{version}, kind: {kind}, metadata: {{name: {name}, namespace: shop}}, \
         spec: {{{spec}}}}}"
    )
}

#[tokio::test]
async fn inbound_policies_follow_the_directory_and_say_how_they_stand() {
    let server = policy("v1beta3", "Server", "web", "podSelector: {}, port: 8080, proxyProtocol: HTTP/1");
    let admits = policy(
        "v1alpha1",
        "AuthorizationPolicy",
        "till",
        "targetRef: {group: policy.linkerd.io, kind: Server, name: web}, requiredAuthenticationRefs: \
         [{group: policy.linkerd.io, kind: MeshTLSAuthentication, name: till}]",
    );
    let standalone = Standalone::start(&[("1.yaml", &pod(1)), ("2.yaml", &pod(2))]).await;
    let watch = async |port: u32| {
        let mut inbound = InboundServerPoliciesClient::new(standalone.policy.clone());
        let request = PortSpec { workload: "shop:web-1".to_owned(), port };
        inbound.watch_port(request).await.unwrap().into_inner()
    };
    let (mut servers, mut others) = (watch(8080).await, watch(9090).await);
    assert_eq!(message(&mut servers).await.labels["kind"], "default");
    assert_eq!(message(&mut others).await.labels["kind"], "default");
    standalone.write("server.yaml", &server);
    let closed = message(&mut servers).await;
    assert_eq!((closed.labels["kind"].as_str(), closed.labels["name"].as_str()), ("server", "web"));
    assert!(closed.authorizations.is_empty(), "{closed:?}");
    // What it refers to is not there yet.
    standalone.write("policy.yaml", &admits);
    let state = standalone.state_with("RefNotFound").await;
    assert!(state.contains("MeshTLSAuthentication shop/till does not exist"), "{state}");
    standalone.write("till.yaml", &policy("v1alpha1", "MeshTLSAuthentication", "till", "identities: [a.b]"));
    let open = message(&mut servers).await;
    assert_eq!(open.authorizations[0].labels["name"], "till");
    std::fs::remove_file(standalone.path("server.yaml")).unwrap();
    assert_eq!(message(&mut servers).await.labels["kind"], "default");
    standalone.state_with("TargetNotFound").await;
    // Had the other port heard of anything, this would not be its next message.
    let annotations = "{config.linkerd.io/default-inbound-policy: deny}";
    let namespace =
        format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: shop, annotations: {annotations}}}}}");
    standalone.write("namespace.yaml", &namespace);
    assert_eq!(message(&mut others).await.labels["name"], "deny");
}

#[tokio::test]
async fn what_cannot_be_answered_has_its_status() {
    let standalone = Standalone::start(&[("service.yaml", SERVICE)]).await;
    for (path, code) in [
        ("nobody.shop.svc.cluster.local:80", Code::NotFound),
        ("10.96.0.1:80", Code::InvalidArgument),
        ("example.com:80", Code::InvalidArgument),
        ("", Code::InvalidArgument),
    ] {
        assert_eq!(standalone.get(path).await.unwrap_err().code(), code, "{path:?}");
    }
    let mut inbound = InboundServerPoliciesClient::new(standalone.policy.clone());
    for (workload, port, code) in [
        ("shop:nobody", 80, Code::NotFound),
        ("nobody", 80, Code::InvalidArgument),
        ("shop:web", 0, Code::InvalidArgument),
        ("shop:web", 65_536, Code::InvalidArgument),
    ] {
        let refused = inbound.watch_port(PortSpec { workload: workload.to_owned(), port }).await.unwrap_err();
        assert_eq!(refused.code(), code, "{workload}:{port}");
    }
    let mut outbound = OutboundPoliciesClient::new(standalone.policy.clone());
    let refused = outbound.watch(TrafficSpec { source_workload: "shop:web".to_owned(), target: None }).await;
    assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_drain_ends_the_streams_and_then_the_process() {
    let standalone = Standalone::start(&[("service.yaml", SERVICE)]).await;
    let mut updates = standalone.get("web.shop.svc.cluster.local:80").await.unwrap();
    assert_eq!(next(&mut updates).await, [""; 0]);
    standalone.drain.signal();
    let end = timeout(DEADLINE, updates.message()).await.unwrap();
    assert!(matches!(end, Ok(None)), "{end:?}");
    let Standalone { destination, policy, running, .. } = standalone;
    drop((updates, destination, policy));
    timeout(DEADLINE, running).await.unwrap().unwrap().unwrap();
}

#[test]
fn the_program_lists_every_mistake_and_exits_with_64() {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_remora-destination"))
        .args(["--grpc-addr=nowhere", "--default-inbound-policy=perhaps"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(64));
    let said = String::from_utf8(output.stderr).unwrap();
    for part in ["--grpc-addr", "--default-inbound-policy", "--manifests", "--trust-anchors"] {
        assert!(said.contains(part), "{part} is not in:\n{said}");
    }
}

/// A process over a directory of its own.
struct Standalone {
    directory: TempDir,
    addresses: Addresses,
    destination: Channel,
    policy: Channel,
    drain: Drain,
    running: JoinHandle<anyhow::Result<()>>,
}

impl Standalone {
    async fn start(files: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(directory.path().join(name), text).unwrap();
        }
        let manifests = format!("--manifests={}", directory.path().display());
        let any = ["--grpc-addr=127.0.0.1:0", "--policy-addr=127.0.0.1:0", "--admin-addr=127.0.0.1:0"];
        let arguments = ["remora-destination", "--plaintext", &manifests].into_iter().chain(any);
        let process = Process::bind(Config::read(arguments).unwrap()).await.unwrap();
        let (addresses, drain) = (process.addresses().unwrap(), process.drain.clone());
        let running = tokio::spawn(process.run(LogHandle::detached("info").unwrap()));
        let channel = |addr| Channel::from_shared(format!("http://{addr}")).unwrap().connect_lazy();
        let (destination, policy) = (channel(addresses.destination), channel(addresses.policy));
        Self { directory, addresses, destination, policy, drain, running }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
        assert!(Path::new(&self.path(name)).exists());
    }

    async fn get(&self, path: &str) -> Result<Streaming<Update>, tonic::Status> {
        let request = GetDestination { path: path.to_owned(), ..GetDestination::default() };
        let mut client = DestinationClient::new(self.destination.clone());
        Ok(timeout(DEADLINE, client.get(request)).await.expect("an answer in time")?.into_inner())
    }

    /// Reads `/state.json` until it contains `part`.
    async fn state_with(&self, part: &str) -> String {
        let reading = async {
            loop {
                let mut stream = TcpStream::connect(self.addresses.admin).await.unwrap();
                let request = "GET /state.json HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
                stream.write_all(request.as_bytes()).await.unwrap();
                let mut answer = String::new();
                stream.read_to_string(&mut answer).await.unwrap();
                if answer.contains(part) {
                    return answer;
                }
                tokio::task::yield_now().await;
            }
        };
        timeout(DEADLINE, reading).await.expect("the state in time")
    }
}

async fn message<T>(stream: &mut Streaming<T>) -> T {
    timeout(DEADLINE, stream.message())
        .await
        .expect("a message in time")
        .unwrap()
        .expect("the stream goes on")
}

/// The next update in words, sorted.
async fn next(updates: &mut Streaming<Update>) -> Vec<String> {
    let addr = |addr: linkerd2_proxy_api::net::TcpAddress| {
        let ip = IpAddr::try_from(addr.ip.unwrap()).unwrap();
        SocketAddr::new(ip, addr.port.try_into().unwrap())
    };
    let mut words: Vec<String> = match message(updates).await.update.unwrap() {
        update::Update::Add(set) => {
            set.addrs.into_iter().map(|new| format!("+{}", addr(new.addr.unwrap()))).collect()
        }
        update::Update::Remove(set) => set.addrs.into_iter().map(|gone| format!("-{}", addr(gone))).collect(),
        update::Update::NoEndpoints(none) => vec![format!("none exists={}", none.exists)],
    };
    words.sort_unstable();
    words
}

//! How a Service is balanced is what its annotations, its pods' weights and its endpoints' zones say; who decides is our own
//! control plane, told by manifests. `docs/balancing.md`.
#![expect(clippy::indexing_slicing, clippy::unwrap_used, reason = "a test says what it expects")]

use http::StatusCode;
use remora_tests::shop::{self, PATIENCE, SHOP, curl, state};
use remora_tests::{App, Mesh, PodRef, check};
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::LazyLock;

const CHANGES: &str = "remora_outbound_breaker_changes_total";
/// The Services, each with a port of its own, whom it selects, and its annotation.
const SERVICES: [(&str, u16, &str, &str); 3] = [
    ("turns", 8081, "app: web", "balancer.remora.io/strategy: round-robin"),
    ("least", 8082, "even: 'yes'", "balancer.remora.io/strategy: least-request"),
    ("limited", 8083, "even: 'yes'", "balancer.linkerd.io/failure-accrual: unified"),
];
const ALL: [&str; 4] = ["first", "second", "third", "heavy"];
/// Requests under way that are too many for a zone whatever a round trip takes, as long as it is more than 2 ms.
const HELD: usize = 300;
/// Those without a weight of their own.
const EVEN: [&str; 3] = ["first", "second", "third"];

#[test]
fn round_robin_gives_each_its_turn_by_weight() {
    if !check::can_run() {
        return;
    }
    // Of four pods one has a weight of its own: three times an ordinary one's.
    let stage = Stage::enter("turns", 8081, &ALL);
    let before = stage.said();
    assert_eq!(stage.send(&[], 60), vec!["200"; 60]);
    assert_eq!(stage.since(&before), [10, 10, 10, 30]);
    assert_eq!(stage.strategy(), "round-robin");
}

#[test]
fn the_least_busy_is_asked_where_that_is_wanted() {
    if !check::can_run() {
        return;
    }
    let stage = Stage::enter("least", 8082, &EVEN);
    assert_eq!(stage.strategy(), "least-request");
    let before = stage.said();
    std::thread::scope(|scope| {
        // An answer that begins at once and does not end: its round trip is short, and it is under way.
        let held = scope.spawn(|| curl(&stage.client, &["http://least/hold"]).unwrap());
        let begun = || stage.since(&before).iter().sum::<usize>() == 1;
        MESH.wait_until("it to be under way", PATIENCE, begun).unwrap();
        let busy = stage.since(&before).iter().position(|requests| *requests == 1).unwrap();
        assert_eq!(stage.send(&[], 30), vec!["200"; 30]);
        let since = stage.since(&before);
        assert!(since[busy] == 1 && since.iter().all(|requests| *requests > 0), "{busy} of {since:?}");
        stage.apps.iter().for_each(App::release);
        held.join().unwrap();
    });
}

#[test]
fn who_has_no_room_is_left_out_where_successes_are_counted() {
    if !check::can_run() {
        return;
    }
    let stage = Stage::enter("limited", 8083, &EVEN);
    let [full, ..] = &stage.apps[..] else { panic!("no replicas") };
    full.answer(StatusCode::TOO_MANY_REQUESTS);
    let shut = || stage.count(CHANGES, &[("change", "shut"), ("reason", "success rate")]) == 1;
    MESH.wait_until("the full one to be left out", PATIENCE, || {
        stage.send(&[], 20);
        shut()
    })
    .unwrap();
}

#[test]
fn a_zone_is_kept_while_it_serves_and_left_when_it_does_not() {
    if !check::can_run() {
        return;
    }
    let stage = Stage::enter("zoned", 8084, &ALL);
    let [here, there] = [&stage.apps[..2], &stage.apps[2..]];
    let before = stage.said();
    assert_eq!(stage.send(&[], 40), vec!["200"; 40]);
    let since = stage.since(&before);
    assert!(since[0] + since[1] == 40 && since[2] + since[3] == 0, "{since:?}");
    // Both of the client's own zone are sick, and half of four may be left out.
    for app in here {
        app.answer(StatusCode::INTERNAL_SERVER_ERROR);
    }
    let left = || stage.count(CHANGES, &[("change", "shut")]) >= 2;
    MESH.wait_until("both to be left out", PATIENCE, || {
        stage.send(&[], 5);
        left()
    })
    .unwrap();
    let before = stage.said();
    let answers = stage.send(&[], 40);
    let since = stage.since(&before);
    // But for a probe.
    assert!(
        answers.iter().filter(|code| *code == "200").count() >= 38 && since[2] + since[3] >= 38,
        "{since:?}"
    );
    assert!(there.iter().all(|app| app.requests() > 0));
    for app in here {
        app.answer(StatusCode::OK);
    }
    MESH.wait_until("the zone to be kept again", PATIENCE, || {
        let before = stage.said();
        stage.send(&[], 10);
        let since = stage.since(&before);
        since[2] + since[3] == 0
    })
    .unwrap();
}

#[test]
fn a_zone_with_too_much_to_do_is_left_until_it_has_less() {
    if !check::can_run() {
        return;
    }
    let stage = Stage::enter("busy", 8085, &ALL);
    let before = stage.said();
    std::thread::scope(|scope| {
        // Answers that begin at once and do not end: short round trips, and more and more under way.
        let held = scope.spawn(|| stage.hold(HELD));
        let begun = || stage.since(&before).iter().sum::<usize>() == HELD;
        MESH.wait_until("all of them to be under way", PATIENCE, begun).unwrap();
        let since = stage.since(&before);
        let (here, there) = (since[0] + since[1], since[2] + since[3]);
        assert!(there > 0 && here > 5 * there, "it is left for ten times the load only: {since:?}");
        let remote = [("dst_zone_locality", "remote"), ("dst_service", "busy")];
        assert_eq!(stage.count("request_total", &remote), u64::try_from(there).unwrap());
        stage.apps.iter().for_each(App::release);
        held.join().unwrap();
    });
    let before = stage.said();
    assert_eq!(stage.send(&[], 40), vec!["200"; 40]);
    let since = stage.since(&before);
    assert!(since[2] + since[3] == 0, "nobody leaves any more: {since:?}");
}

static MESH: LazyLock<Mesh> = LazyLock::new(|| {
    let web = |name: &str, annotations: &[(&str, &str)], labels: &str| {
        let labels = format!("labels: {{app: web, {labels}}}");
        shop::idle(name, annotations).replace(&format!("labels: {{app: {name}}}"), &labels)
    };
    let mut objects: Vec<_> = EVEN.map(|name| web(name, &[], "even: 'yes'")).into();
    objects.push(web("heavy", &[("balancer.remora.io/weight", "300")], "even: 'no'"));
    objects.extend(["client-zoned", "client-busy"].map(|client| shop::idle(client, &[])));
    for (name, port, selector, annotation) in SERVICES {
        objects.push(shop::idle(&format!("client-{name}"), &[]));
        objects.push(service(name, &format!("selector: {{{selector}}}"), annotation, port));
    }
    let mesh = shop::open(&objects).unwrap();
    let ips = ALL.map(|name| mesh.pod(SHOP, name).unwrap().ip().unwrap());
    let node =
        "{apiVersion: v1, kind: Node, metadata: {name: node, labels: {topology.kubernetes.io/zone: west}}}";
    mesh.apply(&[node, &zones("zoned", 8084, ips), &zones("busy", 8085, ips)].join("\n---\n")).unwrap();
    let breaking = "balancer.linkerd.io/failure-accrual: consecutive, \
                    balancer.linkerd.io/failure-accrual-consecutive-max-failures: '1', \
                    balancer.linkerd.io/failure-accrual-consecutive-min-penalty: 5s";
    mesh.apply(&(service("zoned", "", breaking, 8084) + &service("busy", "", "", 8085))).unwrap();
    mesh
});

/// An EndpointSlice of a Service: of [`ALL`] the first two are meant for the client's zone, the others for another.
fn zones(service: &str, port: u16, ips: [IpAddr; 4]) -> String {
    let mut slice = format!(
        "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {service}-1, namespace: shop, labels: {{kubernetes.io/service-name: {service}}}}}
addressType: IPv4
ports: [{{name: main, port: {port}}}]
endpoints:
"
    );
    for (ip, zone) in ips.iter().zip(["west", "west", "east", "east"]) {
        writeln!(slice, "- {{addresses: ['{ip}'], zone: {zone}, hints: {{forZones: [{{name: {zone}}}]}}}}")
            .unwrap();
    }
    slice
}

fn service(name: &str, selector: &str, annotations: &str, target: u16) -> String {
    let selector = if selector.is_empty() { String::new() } else { format!("{selector}, ") };
    format!(
        "
kind: Service
apiVersion: v1
metadata: {{name: {name}, namespace: shop, annotations: {{{annotations}}}}}
spec: {{{selector}ports: [{{name: main, port: 80, targetPort: {target}}}]}}
---
"
    )
}

/// A client of one Service, and the replicas behind it.
struct Stage {
    name: &'static str,
    client: PodRef<'static>,
    apps: Vec<App>,
}

impl Stage {
    fn enter(name: &'static str, port: u16, replicas: &[&str]) -> Self {
        let pods: Vec<_> = replicas.iter().map(|name| MESH.pod(SHOP, name).unwrap()).collect();
        let apps = pods.iter().map(|pod| App::start(pod, port, &pod.name.name).unwrap()).collect();
        let stage = Self { name, client: MESH.pod(SHOP, &format!("client-{name}")).unwrap(), apps };
        let ips: Vec<_> = pods.iter().map(|pod| pod.ip().unwrap().to_string()).collect();
        MESH.wait_until("all replicas to be known", PATIENCE, || {
            stage.send(&[], 1) == ["200"] && {
                let state = state(&stage.client).unwrap()["outbound"]["workers"].to_string();
                ips.iter().all(|ip| state.contains(ip.as_str()))
            }
        })
        .unwrap();
        stage
    }

    /// The status of every answer.
    fn send(&self, how: &[&str], requests: usize) -> Vec<String> {
        let url = format!("http://{}/?[1-{requests}]", self.name);
        let arguments = [&["-o", "/dev/null", "-w", "%{http_code}\n"], how, &[url.as_str()]].concat();
        curl(&self.client, &arguments).unwrap().lines().map(str::to_owned).collect()
    }

    /// So many requests at once, until their answers are released.
    fn hold(&self, requests: usize) {
        let (url, most) = (format!("http://{}/hold?[1-{requests}]", self.name), requests.to_string());
        let how = ["-o", "/dev/null", "--parallel", "--parallel-immediate", "--max-time", "60"];
        curl(&self.client, &[&how[..], &["--parallel-max", &most, &url]].concat()).unwrap();
    }

    /// By what the client's proxy tells the replicas apart.
    fn strategy(&self) -> String {
        let state = state(&self.client).unwrap()["outbound"]["workers"].to_string();
        let of = |strategy: &&&str| state.contains(&format!("\"strategy\":\"{strategy}\""));
        (*["round-robin", "least-request", "ewma"].iter().find(of).unwrap()).to_owned()
    }

    /// Requests that each replica has answered.
    fn said(&self) -> Vec<usize> {
        self.apps.iter().map(App::requests).collect()
    }

    fn since(&self, before: &[usize]) -> Vec<usize> {
        self.said().iter().zip(before).map(|(now, before)| now - before).collect()
    }

    fn count(&self, family: &str, labels: &[(&str, &str)]) -> u64 {
        self.client.metrics().unwrap().count(family, labels)
    }
}

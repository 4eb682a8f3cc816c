//! Who fails is left out: after as many failures as its Service says, until one request proves that it is well again, and
//! never more than half of a Service's endpoints. Contract 4.6; who decides is scripted, in Linkerd's API.
#![expect(clippy::unwrap_used, reason = "a test says what it expects")]

use bytes::Bytes;
use http::StatusCode;
use linkerd2_proxy_api::{
    destination,
    outbound::{self, failure_accrual, proxy_protocol::Kind},
};
use prost::Message as _;
use remora_tests::controller::{self, Asked, Controller, Reply};
use remora_tests::shop::{self, PATIENCE, SHOP, curl};
use remora_tests::{App, Mesh, PodRef, check};
use std::net::SocketAddr;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// How long a breaker is shut at first.
const WAIT: Duration = Duration::from_secs(6);
/// Failures after which it shuts.
const MAX_FAILURES: usize = 3;
/// The Services with their replicas' ports. One that nobody listens on is refused.
const SERVICES: [(&str, &[(&str, u16)]); 4] = [
    ("one", &[("first", 8081), ("second", 8081), ("third", 8081)]),
    ("all", &[("first", 8082), ("second", 8082), ("third", 8082)]),
    ("refused", &[("first", 8083), ("second", 8083), ("bare", 8083)]),
    (PROFILED, &[("first", 8084), ("second", 8084), ("third", 8084)]),
];
/// The one with a ServiceProfile.
const PROFILED: &str = "profiled";
/// Ten at once.
const CROWD: &[&str] = &["--parallel", "--parallel-max", "10"];
const CHANGES: &str = "remora_outbound_breaker_changes_total";
const ENDPOINTS: &str = "outbound_http_balancer_endpoints";

#[test]
fn one_of_three_that_fails_gets_a_few_requests_then_one_and_all_again_when_it_is_well() {
    if !check::can_run() {
        return;
    }
    let stage = Stage::enter("one");
    let [sick, ..] = &stage.apps[..] else { panic!("no replicas") };
    let before = sick.requests();
    let failed = || sick.requests() - before;
    sick.answer(StatusCode::INTERNAL_SERVER_ERROR);
    stage.until("the sick one to be left out", || failed() >= MAX_FAILURES);
    let shut = Instant::now();
    assert_eq!(stage.send(CROWD, 100), vec!["200"; 100], "{:?}", stage.said());
    assert!(failed() == MAX_FAILURES || shut.elapsed() > WAIT, "{} requests", failed());
    assert!(stage.apps.iter().skip(1).all(|well| well.requests() > 0), "{:?}", stage.said());
    for (state, expected) in [("ready", 2), ("pending", 1)] {
        let found = stage.count(ENDPOINTS, &[("endpoint_state", state)]);
        assert!(found == expected || shut.elapsed() > WAIT, "{found} are {state}");
    }
    assert_eq!(stage.count(CHANGES, &[("change", "shut"), ("reason", "consecutive failures")]), 1);

    // Of a crowd that comes when the time is over one is sent, and told what comes of it.
    let probed = MESH.wait_until("the probe", PATIENCE, || {
        stage.send(CROWD, 20);
        failed() > MAX_FAILURES
    });
    probed.unwrap();
    assert_eq!(stage.send(CROWD, 100), vec!["200"; 100], "{:?}", stage.said());
    assert_eq!(failed(), MAX_FAILURES + 1, "the next one comes after twice the time");
    assert_eq!(stage.count(CHANGES, &[("change", "shut"), ("reason", "probe")]), 1);

    sick.answer(StatusCode::OK);
    stage.until("it to be well again", || failed() > MAX_FAILURES + 10);
    assert_eq!(stage.count(CHANGES, &[("change", "opened")]), 1);
    assert_eq!(stage.count(ENDPOINTS, &[("endpoint_state", "ready")]), 3);
}

#[test]
fn where_all_fail_half_serve_on_and_the_client_hears_what_they_say() {
    if !check::can_run() {
        return;
    }
    let stage = Stage::enter("all");
    stage.answer(StatusCode::SERVICE_UNAVAILABLE);
    let before = stage.said();
    let mut sent = 0;
    let others = || stage.count(CHANGES, &[("change", "kept")]) > 1;
    MESH.wait_until("all of them to have failed", PATIENCE, || {
        // Never 504: there is always somebody.
        assert_eq!(stage.send(&[], 20), vec!["503"; 20]);
        sent += 20;
        others()
    })
    .unwrap();
    let answered: usize = stage.said().iter().zip(before).map(|(now, before)| now - before).sum();
    assert_eq!(answered, sent, "each request is answered by an application: {:?}", stage.said());
    // None when it is time for a probe.
    assert!(stage.count(ENDPOINTS, &[("endpoint_state", "pending")]) <= 1);

    stage.answer(StatusCode::OK);
    assert_eq!(stage.send(&[], 20), vec!["200"; 20], "who was left in is well at once");
    stage.until("the one that was out to be back", || {
        stage.count(ENDPOINTS, &[("endpoint_state", "ready")]) == 3
    });
}

#[test]
fn who_refuses_a_connection_is_left_out_at_once() {
    if !check::can_run() {
        return;
    }
    let stage = Stage::enter("refused");
    let refused = || stage.count(CHANGES, &[("change", "shut"), ("reason", "connection refused")]) == 1;
    MESH.wait_until("the one that refuses to be left out", PATIENCE, || {
        // The request that met it went elsewhere.
        assert_eq!(stage.send(&[], 20), vec!["200"; 20]);
        refused()
    })
    .unwrap();
    let state = shop::state(&stage.client).unwrap().to_string();
    assert!(state.contains("shutForMs") || state.contains("probation"), "{state}");

    // Whether it is still an endpoint is asked anew, and not as often as it refuses.
    let get = Asked { method: "Get".into(), about: authority("refused") };
    let asked = || CONTROLLER.times().remove(&get).unwrap_or_default();
    let again = || stage.count("remora_outbound_endpoints_asked_again_total", &[]) > 0;
    MESH.wait_until("its endpoints to be asked for anew", PATIENCE, || again() && asked().len() > 1).unwrap();
    let asked = asked();
    let apart = asked.windows(2).map(|two| two[1] - two[0]).min().unwrap();
    assert!(apart >= Duration::from_secs(1), "{apart:?}");
}

#[test]
fn requests_by_a_service_profile_leave_out_who_fails() {
    if !check::can_run() {
        return;
    }
    let stage = Stage::enter(PROFILED);
    let state = shop::state(&stage.client).unwrap().to_string();
    assert!(state.contains(r#""routedBy":"ServiceProfile""#), "{state}");
    let [sick, ..] = &stage.apps[..] else { panic!("no replicas") };
    sick.answer(StatusCode::INTERNAL_SERVER_ERROR);
    stage.until("the sick one to be left out", || {
        stage.count(CHANGES, &[("change", "shut"), ("reason", "consecutive failures")]) == 1
    });
    let before = sick.requests();
    assert_eq!(stage.send(CROWD, 20), vec!["200"; 20], "{:?}", stage.said());
    assert_eq!(sick.requests(), before);
}

static MESH: LazyLock<Mesh> = LazyLock::new(|| {
    let bare = shop::idle("bare", &[("linkerd.io/inject", "disabled")]);
    let replicas = ["first", "second", "third"].map(|name| shop::idle(name, &[]));
    let clients = SERVICES
        .map(|(name, _)| shop::idle(&format!("client-{name}"), &[]) + &shop::service(name, 80, "8080"));
    shop::open(&[&replicas[..], &clients[..], &[bare]].concat()).unwrap()
});

static CONTROLLER: LazyLock<Controller> = LazyLock::new(|| {
    // The real one is there until the pods are ready; from here on they hear the scripted one.
    let controller = Controller::replace(&MESH, |_| Reply::fails(14)).unwrap();
    controller.answer(script());
    controller.cut();
    controller
});

/// A client of one Service, and the replicas behind it.
struct Stage {
    client: PodRef<'static>,
    service: SocketAddr,
    apps: Vec<App>,
}

impl Stage {
    fn enter(name: &str) -> Self {
        LazyLock::force(&CONTROLLER);
        let (_, replicas) = SERVICES.iter().find(|(other, _)| *other == name).unwrap();
        let listening = replicas.iter().filter(|(pod, _)| *pod != "bare");
        let apps =
            listening.map(|(pod, port)| App::start(&MESH.pod(SHOP, pod).unwrap(), *port, pod).unwrap());
        let stage = Self {
            client: MESH.pod(SHOP, &format!("client-{name}")).unwrap(),
            service: service(name),
            apps: apps.collect(),
        };
        MESH.wait_until("the controller to be heard", PATIENCE, || stage.send(&[], 1) == ["200"]).unwrap();
        stage
    }

    /// The status of every answer.
    fn send(&self, how: &[&str], requests: usize) -> Vec<String> {
        let url = format!("http://{}/?[1-{requests}]", self.service);
        let arguments = [&["-o", "/dev/null", "-w", "%{http_code}\n"], how, &[url.as_str()]].concat();
        curl(&self.client, &arguments).unwrap().lines().map(str::to_owned).collect()
    }

    /// Sends until it is so.
    #[track_caller]
    fn until(&self, what: &str, holds: impl Fn() -> bool) {
        let sent = || {
            self.send(&[], 5);
            holds()
        };
        MESH.wait_until(what, PATIENCE, sent).unwrap();
    }

    /// Every replica is sick or well from now on.
    fn answer(&self, status: StatusCode) {
        for app in &self.apps {
            app.answer(status);
        }
    }

    /// Requests that each replica has answered.
    fn said(&self) -> Vec<usize> {
        self.apps.iter().map(App::requests).collect()
    }

    fn count(&self, family: &str, labels: &[(&str, &str)]) -> u64 {
        self.client.metrics().unwrap().count(family, labels)
    }
}

/// Every Service has its replicas, whose breakers shut after a few failures.
fn script() -> impl Fn(&Asked) -> Reply + Send + Sync {
    let backoff = outbound::ExponentialBackoff {
        min_backoff: WAIT.try_into().ok(),
        max_backoff: (WAIT * 2).try_into().ok(),
        ..Default::default()
    };
    let row = failure_accrual::ConsecutiveFailures {
        max_failures: u32::try_from(MAX_FAILURES).unwrap(),
        backoff: Some(backoff),
    };
    let kind = Some(failure_accrual::Kind::ConsecutiveFailures(row));
    let accrual = outbound::FailureAccrual { kind, ejection: None };
    let answers = SERVICES.map(|(name, replicas)| {
        let at = |(pod, port): &(&str, u16)| MESH.pod(SHOP, pod).unwrap().at(*port).unwrap();
        let endpoints = controller::add(replicas.iter().map(at)).unwrap();
        let policy = breaking(&controller::balanced(&authority(name)).unwrap(), accrual);
        [("Get", authority(name), endpoints), ("Watch", service(name).to_string(), policy)]
    });
    let mut answers: Vec<(&str, String, Bytes)> = answers.into_iter().flatten().collect();
    answers.push(("GetProfile", service(PROFILED).to_string(), profile().unwrap()));
    move |asked| {
        let found =
            answers.iter().find(|(method, about, _)| *method == asked.method && *about == asked.about);
        // No other profiles, and no policies of ports: what the environment says holds.
        found.map_or_else(|| Reply::fails(5), |(_, _, message)| Reply::says([message.clone()]))
    }
}

/// The same policy, over balancers with breakers.
fn breaking(policy: &Bytes, accrual: outbound::FailureAccrual) -> Bytes {
    let mut policy = outbound::OutboundPolicy::decode(&policy[..]).unwrap();
    if let Some(Kind::Detect(detect)) = policy.protocol.as_mut().and_then(|protocol| protocol.kind.as_mut()) {
        detect.http1.as_mut().unwrap().failure_accrual = Some(accrual);
        detect.http2.as_mut().unwrap().failure_accrual = Some(accrual);
    }
    controller::encode(&policy).unwrap()
}

/// A profile with one route, for everything.
fn profile() -> anyhow::Result<Bytes> {
    let all = destination::request_match::Match::Path(destination::PathMatch { regex: "/.*".into() });
    let condition = Some(destination::RequestMatch { r#match: Some(all) });
    controller::encode(&destination::DestinationProfile {
        fully_qualified_name: "profiled.shop.svc.cluster.local".into(),
        routes: vec![destination::Route { condition, ..Default::default() }],
        ..Default::default()
    })
}

fn authority(name: &str) -> String {
    format!("{name}.shop.svc.cluster.local:80")
}

fn service(name: &str) -> SocketAddr {
    SocketAddr::new(shop::cluster_ip(&MESH, name).unwrap(), 80)
}

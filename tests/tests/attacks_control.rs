//! A control plane that is dead, frozen, slow or out of its mind: what is known keeps serving, it is asked at most once a
//! second, and what is not known gets its answer in time. What it says is scripted (`controller`), in Linkerd's API.
#![expect(
    clippy::items_after_statements,
    clippy::unwrap_used,
    reason = "a test says what it expects where it stands"
)]

use bytes::Bytes;
use linkerd2_proxy_api::{destination as dst, net, outbound};
use remora_tests::arena::{self, Arena, served, usage};
use remora_tests::controller::{self, Asked, Controller, Reply, Then};
use remora_tests::shop::{self, PATIENCE, SHOP};
use remora_tests::wire::count;
use remora_tests::{Mesh, Options, PodRef, Signal, check, resources};
use std::net::SocketAddr;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a frozen control plane stays frozen.
const FROZEN: Duration = Duration::from_mins(1);
/// The bound of a first lookup (design decision 8) with what a busy machine adds.
const LOOKUP: std::ops::Range<Duration> = Duration::from_millis(2500)..Duration::from_secs(7);
const NAMES: [&str; 5] = ["known", "huge", "odd", "slow", "slower"];
/// How long it flaps.
const FLAPPING: Duration = Duration::from_secs(8);

#[test]
fn a_control_plane_that_is_frozen_for_a_minute_is_not_missed_by_whom_is_known() {
    if !check::can_run() {
        return;
    }
    // Frozen, not restarted by its node: 30 s of silence are enough for that.
    let options = Options { control_plane_liveness: false, ..Options::default() };
    let mesh = Mesh::start_with(options, &serde_json::json!({})).unwrap();
    let new = [shop::service("new", 80, "8080"), shop::idle("new", &[])];
    let mesh = shop::open_on(mesh, &[&[arena::manifests("known", &[], &[])], &new[..]].concat()).unwrap();
    let arena = Arena::enter(&mesh, "known").unwrap();
    let client = arena.client().unwrap();
    let (ledgers, load) = arena.begin(2, 2).unwrap();
    let [destination, identity] =
        ["remora-destination", "remora-identity"].map(|name| mesh.pod("remora", name).unwrap());
    destination.signal("destination", Signal::STOP).unwrap();
    identity.signal("identity", Signal::STOP).unwrap();
    let (began, dialled) = (Instant::now(), connections(&client));
    // A pod that comes now has no certificate, and says so.
    mesh.apply(&shop::idle("late", &[])).unwrap();
    let new = SocketAddr::new(shop::cluster_ip(&mesh, "new").unwrap(), 80);
    while began.elapsed() < FROZEN {
        let asked = Instant::now();
        let (status, error) = shop::status(&client, &format!("http://{new}/")).unwrap();
        assert!(
            status == 504 && error.contains("the control plane does not answer"),
            "{status} {error} after {:?}: {}",
            began.elapsed(),
            mesh.describe()
        );
        assert!(LOOKUP.contains(&asked.elapsed()), "{:?}", asked.elapsed());
        arena.goes_on(&load).unwrap();
    }
    let late = mesh.pod(SHOP, "late").unwrap();
    assert!(!late.is_ready());
    assert!(mesh.logs(&late, "linkerd-proxy").contains("cannot get a certificate"), "{}", mesh.describe());
    // Two services, each asked for a connection at most once a second.
    let seconds = began.elapsed().as_secs_f64();
    let attempts = connections(&client) - dialled;
    assert!((1.0..=2.0 * seconds).contains(&attempts), "{attempts} connections in {seconds} s");
    for ledger in &ledgers {
        ledger.settle().unwrap();
    }

    identity.signal("identity", Signal::CONT).unwrap();
    destination.signal("destination", Signal::CONT).unwrap();
    mesh.wait_until("the late pod to be ready", PATIENCE, || late.is_ready()).unwrap();
    let _app = remora_tests::App::start(&mesh.pod(SHOP, "new").unwrap(), 8080, "new").unwrap();
    let known = || shop::status(&client, &format!("http://{new}/")).is_ok_and(|(status, _)| status == 200);
    mesh.wait_until("the new target to be known", PATIENCE, known).unwrap();
    served(load).unwrap();
}

#[test]
fn what_makes_no_sense_replaces_nothing() {
    if !check::can_run() {
        return;
    }
    let stage = Stage::enter();
    let (arena, client) = (stage.arena, stage.client());
    let (ledgers, load) = arena.begin(2, 2).unwrap();
    let authority = authority("known");
    let target = service("known").to_string();
    for (what, method, message) in nonsense() {
        let about = if method == "Watch" { &target } else { &authority };
        // Whom the last one has sent away comes back in its own time.
        let listens = || stage.controller.listening(method, about) > 0;
        MESH.wait_until("somebody to listen", PATIENCE, listens).unwrap();
        assert!(stage.controller.push(method, about, message) > 0, "nobody listens");
        arena.goes_on(&load).unwrap_or_else(|error| panic!("{what}: {error:#}"));
    }
    // And at the beginning of every stream, for a while.
    let huge = Bytes::from(vec![0; 10 << 20]);
    stage.controller.forget();
    stage.controller.answer(move |_| Reply::says([huge.clone()]));
    stage.controller.cut();
    let began = Instant::now();
    while began.elapsed() < FLAPPING {
        arena.goes_on(&load).unwrap();
    }
    at_most_one_a_second(stage.controller, began);
    let now = usage(&client).unwrap();
    assert!(now.rss < ledgers[1].before.rss * 13 / 10 + (20 << 20), "{:?} {now:?}", ledgers[1].before);
    stage.as_before();
    served(load).unwrap();
    settle(&ledgers);
}

#[test]
fn a_hundred_thousand_endpoints_are_as_many_as_a_destination_may_have() {
    if !check::can_run() {
        return;
    }
    const ENDPOINTS: usize = 100_000;
    const AT_ONCE: usize = 2_500;
    const KEPT: f64 = 10_000.0;
    // Series that have come meanwhile of something else.
    const OTHERS: usize = 100;
    let stage = Stage::enter();
    let (arena, client) = (stage.arena, stage.client());
    let (ledgers, load) = arena.begin(2, 2).unwrap();
    // Whoever asks makes the destination followed.
    let mut asking = client.dial(service("huge")).unwrap();
    std::io::Write::write_all(&mut asking, b"GET / HTTP/1.1\r\nHost: huge\r\n\r\n").unwrap();
    let authority = authority("huge");
    let followed =
        || stage.controller.times().keys().any(|asked| asked.method == "Get" && asked.about == authority);
    MESH.wait_until("the destination to be followed", PATIENCE, followed).unwrap();
    let series = || client.metrics().unwrap().0.len();
    let few = series();
    for batch in 0..ENDPOINTS / AT_ONCE {
        let nth = |n: usize| {
            let n = (batch * AT_ONCE + n) as u32;
            SocketAddr::from(([240, (n >> 16) as u8, (n >> 8) as u8, n as u8], 80))
        };
        stage.controller.push("Get", &authority, controller::add((0..AT_ONCE).map(nth)).unwrap());
    }
    let refused = || count(&client, "remora_outbound_endpoints_refused_total", &[]).unwrap();
    MESH.wait_until("the rest to be refused", PATIENCE, || refused() >= ENDPOINTS as f64 - KEPT).unwrap();
    arena.goes_on(&load).unwrap();
    let now = usage(&client).unwrap();
    println!("{} bytes for each of {KEPT} endpoints", (now.rss - ledgers[1].before.rss) as f64 / KEPT);
    assert!(now.rss < ledgers[1].before.rss + (64 << 20), "{:?} {now:?}", ledgers[1].before);
    let log = MESH.logs(&client, "linkerd-proxy");
    assert!(log.contains("more endpoints than one destination may have"), "{log}");
    stage.controller.push("Get", &authority, controller::nobody().unwrap());
    drop(asking);
    arena.goes_on(&load).unwrap();
    served(load).unwrap();
    // Series are forgotten by who looks at them, and all of them have to be.
    MESH.wait_until("their series to be forgotten", PATIENCE, || series() < few + OTHERS).unwrap();
    settle(&ledgers);
}

#[test]
fn whoever_flaps_is_asked_at_most_once_a_second() {
    if !check::can_run() {
        return;
    }
    let stage = Stage::enter();
    let arena = stage.arena;
    let (ledgers, load) = arena.begin(2, 2).unwrap();
    // Streams that say what they should and end.
    let said = script();
    stage.controller.answer(move |asked| Reply { then: Then::End(14), ..said(asked) });
    stage.controller.cut();
    let began = Instant::now();
    stage.controller.forget();
    while began.elapsed() < FLAPPING {
        arena.goes_on(&load).unwrap();
    }
    at_most_one_a_second(stage.controller, began);
    // Connections that are closed as soon as they are made.
    stage.controller.close_all(true);
    stage.controller.cut();
    let began = Instant::now();
    stage.controller.forget();
    // Those who have failed for long wait for as long as 13 s.
    let both = || stage.controller.connections().len() == 2;
    while began.elapsed() < FLAPPING || !both() {
        assert!(began.elapsed() < PATIENCE, "nobody tries any more");
        arena.goes_on(&load).unwrap();
    }
    at_most_one_a_second(stage.controller, began);
    stage.as_before();
    served(load).unwrap();
    settle(&ledgers);
}

#[test]
fn whoever_contradicts_itself_is_believed_at_last() {
    if !check::can_run() {
        return;
    }
    let stage = Stage::enter();
    let (arena, client) = (stage.arena, stage.client());
    let (ledgers, load) = arena.begin(2, 2).unwrap();
    let (authority, service) = (authority("odd"), service("odd"));
    let url = format!("http://{service}/");
    assert_eq!(shop::status(&client, &url).unwrap().0, 200);
    let (good, bad) = (endpoint(), SocketAddr::from(([240, 0, 0, 1], 80)));
    let balanced = controller::balanced(&authority).unwrap();
    let elsewhere = controller::balanced("nowhere.shop.svc.cluster.local:80").unwrap();
    for _ in 0..250 {
        for update in [
            controller::nobody().unwrap(),
            controller::add([bad, good, bad]).unwrap(),
            controller::remove([bad, good, bad]).unwrap(),
            controller::remove([bad]).unwrap(),
            controller::add([good]).unwrap(),
        ] {
            stage.controller.push("Get", &authority, update);
        }
        stage.controller.push("Watch", &service.to_string(), elsewhere.clone());
        stage.controller.push("Watch", &service.to_string(), balanced.clone());
    }
    arena.goes_on(&load).unwrap();
    let answered = || shop::status(&client, &url).is_ok_and(|(status, _)| status == 200);
    MESH.wait_until("the last word to hold", PATIENCE, answered).unwrap();
    for _ in 0..10 {
        assert!(answered());
    }
    served(load).unwrap();
    settle(&ledgers);
}

#[test]
fn whoever_is_slow_is_waited_for_within_the_deadline_and_no_longer() {
    if !check::can_run() {
        return;
    }
    let stage = Stage::enter();
    let (arena, client) = (stage.arena, stage.client());
    let load = arena.bystanders(2, 2).unwrap();
    arena.goes_on(&load).unwrap();
    // What is asked is asked in two steps at least: half a second for each, or half a minute.
    for (name, millis, expected) in [("slow", 500, 200), ("slower", 30_000, 504)] {
        let (said, after) = (script(), Duration::from_millis(millis));
        stage.controller.answer(move |asked| Reply { after, ..said(asked) });
        let asked = Instant::now();
        let (status, error) = shop::status(&client, &format!("http://{}/", service(name))).unwrap();
        assert_eq!(status, expected, "after {millis} ms: {error}");
        assert!(asked.elapsed() < LOOKUP.end, "{:?}", asked.elapsed());
        arena.goes_on(&load).unwrap();
    }
    stage.as_before();
    served(load).unwrap();
}

static MESH: LazyLock<Mesh> = LazyLock::new(|| {
    // Endpoints have series, which otherwise outlive them by ten minutes.
    let forgetful = arena::env(&[("LINKERD2_PROXY_METRICS_RETAIN_IDLE", "1s")]);
    let known = arena::manifests("known", &[], &[(forgetful.0, &forgetful.1)]);
    let others = NAMES.iter().skip(1).map(|name| shop::service(name, 80, "8080"));
    shop::open(&[known].into_iter().chain(others).collect::<Vec<_>>()).unwrap()
});

static CONTROLLER: LazyLock<Controller> = LazyLock::new(|| {
    // The real one is there until the pods are ready; from here on they hear the scripted one.
    let controller = Controller::replace(&MESH, |_| Reply::fails(14)).unwrap();
    controller.answer(script());
    controller
});

static ARENA: LazyLock<Arena<'static>> = LazyLock::new(|| {
    LazyLock::force(&CONTROLLER);
    Arena::enter(&MESH, "known").unwrap()
});

/// One test at a time has the control plane.
struct Stage {
    arena: &'static Arena<'static>,
    controller: &'static Controller,
    _turn: MutexGuard<'static, ()>,
}

impl Stage {
    fn enter() -> Self {
        static TURN: Mutex<()> = Mutex::new(());
        // A test that failed has told so.
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let stage = Self { arena: &ARENA, controller: &CONTROLLER, _turn: turn };
        stage.as_before();
        stage
    }

    /// The controller says what it should, to everybody.
    fn as_before(&self) {
        self.controller.close_all(false);
        self.controller.answer(script());
        self.controller.cut();
        self.controller.forget();
        // Whoever has nothing to do asks nothing, and whoever was cut off waits before it asks again.
        let heard = || {
            let known = format!("http://{}/", service("known"));
            shop::status(&self.client(), &known).is_ok_and(|(status, _)| status == 200)
                && self.controller.times().keys().any(|asked| asked.method == "Get")
        };
        MESH.wait_until("the controller to be heard", PATIENCE, heard).unwrap();
    }

    fn client(&self) -> PodRef<'static> {
        self.arena.client().unwrap()
    }
}

/// Every Service of ours leads to the one application.
fn script() -> impl Fn(&Asked) -> Reply + Send + Sync + Clone {
    let endpoint = controller::add([endpoint()]).unwrap();
    let services: Vec<(String, Bytes)> = NAMES
        .iter()
        .map(|name| (service(name).to_string(), controller::balanced(&authority(name)).unwrap()))
        .collect();
    move |asked| match asked.method.as_str() {
        "Get" => Reply::says([endpoint.clone()]),
        "Watch" => match services.iter().find(|(about, _)| *about == asked.about) {
            Some((_, policy)) => Reply::says([policy.clone()]),
            None => Reply::fails(5),
        },
        // No profiles, and no policies of ports: what the environment says holds.
        _ => Reply::fails(5),
    }
}

fn authority(name: &str) -> String {
    format!("{name}.shop.svc.cluster.local:80")
}

fn service(name: &str) -> SocketAddr {
    SocketAddr::new(shop::cluster_ip(&MESH, name).unwrap(), 80)
}

fn endpoint() -> SocketAddr {
    MESH.pod(SHOP, "known").unwrap().at(arena::PORT).unwrap()
}

fn nonsense() -> Vec<(&'static str, &'static str, Bytes)> {
    let bogus = SocketAddr::from(([240, 0, 0, 2], 80));
    let added = |one: dst::WeightedAddr| {
        let set = dst::WeightedAddrSet { addrs: vec![one], ..Default::default() };
        controller::encode(&dst::Update { update: Some(dst::update::Update::Add(set)) }).unwrap()
    };
    let address = || Some(net::TcpAddress::from(bogus));
    let no_strategy = dst::WeightedAddr {
        addr: address(),
        tls_identity: Some(dst::TlsIdentity::default()),
        ..Default::default()
    };
    let no_port = net::TcpAddress { ip: Some(std::net::IpAddr::from([240, 0, 0, 2]).into()), port: 70_000 };
    let unknown = outbound::OutboundPolicy {
        protocol: Some(outbound::ProxyProtocol { kind: None }),
        ..Default::default()
    };
    // Field 1 begins a group, a hundred thousand deep; groups are skipped as unknown fields are.
    let nested = Bytes::from(vec![0x7b; 100_000]);
    vec![
        ("ten MiB", "Get", Bytes::from(vec![0; 10 << 20])),
        ("ten MiB", "Watch", Bytes::from(vec![0; 10 << 20])),
        ("what is no message", "Get", Bytes::from(vec![0xff; 100])),
        ("what is no message", "Watch", Bytes::from(vec![0xff; 100])),
        ("deep nesting", "Get", nested.clone()),
        ("deep nesting", "Watch", nested),
        ("nothing", "Get", Bytes::new()),
        ("nothing", "Watch", Bytes::new()),
        ("a protocol of another version", "Watch", controller::encode(&unknown).unwrap()),
        ("an identity of no kind that is known", "Get", added(no_strategy)),
        ("no address", "Get", added(dst::WeightedAddr::default())),
        (
            "a port that is none",
            "Get",
            added(dst::WeightedAddr { addr: Some(no_port), ..Default::default() }),
        ),
    ]
}

/// Every stream and every connection, as the controller saw them.
#[track_caller]
fn at_most_one_a_second(controller: &Controller, since: Instant) {
    let most = since.elapsed().as_secs() as usize + 1;
    let asked: Vec<_> = controller.times().into_iter().filter(|(_, times)| times.len() > most).collect();
    // Each of the proxies follows the same targets: the known pods' and the client's.
    let proxies = 2;
    let too_often: Vec<_> = asked.iter().filter(|(_, times)| times.len() > most * proxies).collect();
    assert!(too_often.is_empty(), "more than {most} times: {too_often:?}");
    for (port, times) in controller.connections() {
        assert!(times.len() <= most * proxies, "{} connections to {port} in {most} s", times.len());
        assert!(!times.is_empty());
    }
}

fn connections(client: &PodRef<'_>) -> f64 {
    count(client, "remora_control_connections_total", &[]).unwrap()
}

#[track_caller]
fn settle(ledgers: &[resources::Ledger<'_>]) {
    for ledger in ledgers {
        ledger.settle().unwrap();
    }
}

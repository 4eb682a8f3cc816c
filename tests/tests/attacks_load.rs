//! More than there is room for: connections, descriptors, memory, bytes that nobody reads, names. Others are served
//! throughout, and the proxy is as it was when it is over.
#![expect(
    clippy::format_push_string,
    clippy::indexing_slicing,
    clippy::items_after_statements,
    clippy::large_stack_arrays,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test says what it expects where it stands"
)]

use bytes::Bytes;
use remora_tests::arena::{self, Arena, altered, crowd, peak, reset, say, served, usage};
use remora_tests::metrics::Samples;
use remora_tests::shop::{self, PATIENCE, SHOP, state};
use remora_tests::wire::{LIMIT, count, listen, read_response};
use remora_tests::{Load, Mesh, PodRef, check, resources};
use serde_json::json;
use std::collections::BTreeMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: load\r\n\r\n";
const PROXY: &str = "linkerd-proxy";
/// A limit of memory, as a sidecar may be given.
const MEMORY: u64 = 64 << 20;
/// Series of a family, in the tests of names.
const BUDGET: usize = 500;

static MESH: LazyLock<Mesh> = LazyLock::new(|| {
    let memory = arena::env(&[("REMORA_PROXY_MEMORY_LIMIT", "64Mi")]);
    let budget = ("REMORA_PROXY_METRIC_BUDGET", "500");
    let inbound = arena::env(&[budget, ("LINKERD2_PROXY_INBOUND_METRICS_AUTHORITY_LABELS", "unsafe")]);
    let outbound = arena::env(&[budget, ("LINKERD2_PROXY_OUTBOUND_METRICS_HOSTNAME_LABELS", "true")]);
    shop::open(&[
        arena::manifests("idle", &[], &[]),
        arena::manifests("drip", &[], &[]),
        arena::manifests("exhausted", &[], &[]),
        arena::manifests("memory", &[], &[(memory.0, &memory.1)]),
        arena::manifests("slow", &[], &[]),
        arena::manifests("names", &[(inbound.0, &inbound.1)], &[(outbound.0, &outbound.1)]),
        shop::service("few", 80, "8080"),
        shop::idle("few-client", &[]),
        shop::service("deaf", 80, "8080"),
        shop::idle("deaf", &[("linkerd.io/inject", "disabled")]),
        arena::manifests("filled", &[(memory.0, &memory.1)], &[]),
        shop::service("filled-deaf", 80, "7000").replace("{app: filled-deaf}", "{app: filled}"),
        shop::idle("filler", &[]),
        arena::manifests("left", &[], &[]),
        shop::service("left-deaf", 80, "7000"),
        shop::idle("left-deaf", &[]),
        shop::service("mute", 80, "7000"),
        shop::idle("mute", &[]),
    ])
    .unwrap()
});

#[test]
fn eight_thousand_idle_connections_cost_little_and_nobody_notices() {
    if !check::can_run() {
        return;
    }
    const CONNECTIONS: usize = 8000;
    /// What one may cost: two small buffers' worth.
    const EACH: u64 = 16 << 10;
    let arena = Arena::enter(&MESH, "idle").unwrap();
    let target = arena.target().unwrap();
    let (ledgers, load) = arena.begin(2, 2).unwrap();

    let to = target.at(arena::PORT).unwrap();
    let idle = MESH.enter(|| crowd(to, CONNECTIONS)).unwrap().unwrap();
    let open = || inbound(&target) >= CONNECTIONS as u64;
    MESH.wait_until("all of them to be served", PATIENCE, open).unwrap();
    arena.goes_on(&load).unwrap();
    let grown = usage(&target).unwrap().rss.saturating_sub(ledgers[0].before.rss);
    assert!(grown < EACH * CONNECTIONS as u64, "{} bytes a connection", grown / CONNECTIONS as u64);
    drop(idle);
    arena.goes_on(&load).unwrap();
    served(load).unwrap();
    settle(&ledgers);
}

#[test]
fn two_thousand_clients_that_never_finish_their_heads_do_not_keep_others_waiting() {
    if !check::can_run() {
        return;
    }
    const CONNECTIONS: usize = 2000;
    /// What half a head may cost, with all that waits for the other half.
    const EACH: u64 = 16 << 10;
    let arena = Arena::enter(&MESH, "drip").unwrap();
    let target = arena.target().unwrap();
    let (ledgers, load) = arena.begin(2, 2).unwrap();

    let to = target.at(arena::PORT).unwrap();
    let mut slow = MESH.enter(|| crowd(to, CONNECTIONS)).unwrap().unwrap();
    assert_eq!(say(&mut slow, b"GET / HTTP/1.1\r\nHost: load\r\nX-Slow: "), CONNECTIONS);
    // A byte now and then, which is what makes a limit of silence useless.
    let end = Instant::now() + Duration::from_secs(5);
    while Instant::now() < end {
        say(&mut slow, b"a");
        arena.goes_on(&load).unwrap();
    }
    let grown = usage(&target).unwrap().rss.saturating_sub(ledgers[0].before.rss) / CONNECTIONS as u64;
    assert!(grown < EACH, "{grown} bytes for half a head");
    reset(slow);
    served(load).unwrap();
    settle(&ledgers);
}

#[test]
fn a_proxy_with_256_descriptors_serves_as_many_as_it_can_and_the_rest_when_they_are_gone() {
    if !check::can_run() {
        return;
    }
    const CONNECTIONS: usize = 400;
    let donor = MESH.pod(SHOP, "few-client").unwrap();
    let pod = altered(&donor, "few", |proxy| {
        proxy["command"] = json!(["prlimit", "--nofile=256:256", "--", "/usr/lib/remora/remora-proxy"]);
    });
    MESH.apply_objects(vec![pod.unwrap()]).unwrap();
    MESH.wait_until("the pod to be ready", PATIENCE, || MESH.pod(SHOP, "few").unwrap().is_ready()).unwrap();
    let arena = Arena::enter(&MESH, "few").unwrap();
    let target = arena.target().unwrap();
    assert_eq!(target.metrics().unwrap().sum("process_max_fds", &[]), Some(256.0));
    // Kept, since a new one has to wait like everybody's.
    let (ledgers, load) = arena.begin(2, 0).unwrap();

    let to = target.at(arena::PORT).unwrap();
    let mut many = MESH.enter(|| crowd(to, CONNECTIONS)).unwrap().unwrap();
    assert_eq!(say(&mut many, GET), CONNECTIONS, "the kernel takes what the proxy does not");
    let limited = || count(&target, "remora_inbound_accepts_limited_total", &[]).unwrap() > 0.0;
    MESH.wait_until("the bound to be met", PATIENCE, limited).unwrap();
    spends_little(&target);
    arena.goes_on(&load).unwrap();
    assert_eq!(target.http_get(4191, "/ready").unwrap().0, 200);
    assert!(usage(&target).unwrap().fds < 256);
    let failed = count(&target, "remora_inbound_accepts_failed_total", &[]).unwrap();
    assert!(failed == 0.0, "{failed} accepts met the limit of the kernel, not that of the proxy");

    // Every one of them is answered in its turn.
    for stream in many {
        answered(stream);
    }
    served(load).unwrap();
    settle(&ledgers);
}

#[test]
fn without_a_descriptor_left_accepting_waits_without_spinning_and_the_admin_port_answers() {
    if !check::can_run() {
        return;
    }
    const CONNECTIONS: usize = 400;
    let arena = Arena::enter(&MESH, "exhausted").unwrap();
    let target = arena.target().unwrap();
    // One connection, so that nothing is dialled meanwhile.
    let (ledgers, load) = arena.begin(1, 0).unwrap();
    let fds = std::fs::read_dir(format!("/proc/{}/fd", target.pid(PROXY).unwrap())).unwrap();
    let highest = fds.filter_map(|fd| fd.unwrap().file_name().to_str()?.parse::<u64>().ok()).max().unwrap();
    // Nothing can be opened but what takes the place of something that is closed.
    let limit = |descriptors: f64| {
        let soft = format!("--nofile={descriptors}:");
        let set = target.exec(PROXY, &["prlimit", "--pid=1", &soft]).unwrap();
        assert!(set.status.success(), "{set:?}");
    };
    let before = target.metrics().unwrap().sum("process_max_fds", &[]).unwrap();
    limit((highest + 1) as f64);

    let to = target.at(arena::PORT).unwrap();
    // They say nothing yet: a request needs a connection to the application, and there is one, the bystander's.
    let mut many = MESH.enter(|| crowd(to, CONNECTIONS)).unwrap().unwrap();
    let failed = || count(&target, "remora_inbound_accepts_failed_total", &[]).unwrap_or_default();
    MESH.wait_until("accepting to fail", PATIENCE, || failed() > 5.0).unwrap();
    let (attempts, began) = (failed(), Instant::now());
    spends_little(&target);
    for _ in 0..20 {
        assert_eq!(target.http_get(4191, "/ready").unwrap().0, 200);
        assert_eq!(target.http_get(4191, "/live").unwrap().0, 200);
    }
    let rate = (failed() - attempts) / began.elapsed().as_secs_f64();
    assert!(rate < 25.0, "{rate} attempts a second");
    arena.goes_on(&load).unwrap();
    let warning = "cannot accept connections; trying again";
    assert!(
        (1..5).contains(&MESH.logs(&target, PROXY).matches(warning).count()),
        "it is said, and not each time"
    );

    limit(before);
    assert_eq!(say(&mut many, GET), CONNECTIONS);
    for stream in many {
        answered(stream);
    }
    served(load).unwrap();
    settle(&ledgers);
}

#[test]
fn a_proxy_short_of_memory_says_so_to_whoever_wants_more_and_is_not_killed() {
    if !check::can_run() {
        return;
    }
    let arena = Arena::enter(&MESH, "memory").unwrap();
    let client = arena.client().unwrap();
    let pid = client.pid(PROXY);
    let limit = client.metrics().unwrap().sum("remora_memory_limit_bytes", &[]);
    assert_eq!(limit, Some(MEMORY as f64));
    let (ledgers, load) = arena.begin(2, 2).unwrap();

    // Its own application sends more than anybody reads: a server that reads heads and no bodies.
    let deaf = listen(&MESH.pod(SHOP, "deaf").unwrap(), 8080).unwrap();
    std::thread::spawn(move || never_read(&deaf));
    let to = SocketAddr::new(shop::cluster_ip(&MESH, "deaf").unwrap(), 80);
    let told = client.enter(|| flood(to)).unwrap();
    assert!(told.named > 0, "nobody was told why: {told:?}");
    assert!(count(&client, "remora_memory_refused", &[]).unwrap() > 0.0);
    assert_eq!((client.pid(PROXY), client.restarts(PROXY)), (pid, 0));
    survived(&client, &told);
    others_recover(&arena, load);
    settle(&ledgers);
}

#[test]
fn a_proxy_whose_carriers_fill_its_memory_says_so_and_is_not_killed() {
    if !check::can_run() {
        return;
    }
    let arena = Arena::enter(&MESH, "filled").unwrap();
    let (target, filler) = (arena.target().unwrap(), MESH.pod(SHOP, "filler").unwrap());
    let pid = target.pid(PROXY);
    // Another pod sends over its carrier more than the application reads.
    let deaf = listen(&target, 7000).unwrap();
    std::thread::spawn(move || never_read(&deaf));
    let to = SocketAddr::new(shop::cluster_ip(&MESH, "filled-deaf").unwrap(), 80);
    let carried = || count(&target, "remora_mux_streams_opened_total", &[("direction", "inbound")]).unwrap();
    let (ledgers, load) = arena.begin(2, 2).unwrap();
    let before = carried();
    let told = filler.enter(|| flood(to)).unwrap();
    assert!(carried() > before + 100.0, "{} streams", carried() - before);
    assert!(count(&target, "remora_memory_refused", &[]).unwrap() > 0.0, "{told:?}");
    assert_eq!((target.pid(PROXY), target.restarts(PROXY)), (pid, 0));
    survived(&target, &told);
    others_recover(&arena, load);
    settle(&ledgers);
}

/// A proxy with a limit of [`MEMORY`] stayed below it.
#[track_caller]
fn survived(pod: &PodRef<'_>, told: &Told) {
    let peak = peak(pod).unwrap();
    assert!(peak < MEMORY, "{} MiB were resident: it would have been killed; {told:?}", peak >> 20);
}

/// Others share the fate of a proxy that is short of memory as long as it lasts, and are told so (503; 502 by their own
/// proxy, whose carrier was cut off), or have their connections reset; then they are served as before.
#[track_caller]
fn others_recover(arena: &Arena<'_>, load: Load) {
    let during = load.take();
    let told =
        |failure: &&String| ["503", "502", "asking", "connecting"].iter().any(|word| failure.contains(word));
    assert_eq!(during.failures.iter().filter(told).count(), during.failures.len(), "{during:?}");
    let well = || {
        load.take();
        arena.goes_on(&load).is_ok()
    };
    MESH.wait_until("others to be served again", resources::SETTLE, well).unwrap();
    served(load).unwrap();
}

#[test]
fn clients_that_reset_in_the_middle_of_a_body_are_missed_by_nobody() {
    if !check::can_run() {
        return;
    }
    const CLIENTS: usize = 5;
    /// More than all the kernels' buffers on the way.
    const BYTES: usize = 96 << 20;
    let arena = Arena::enter(&MESH, "left").unwrap();
    let (client, deaf) = (arena.client().unwrap(), MESH.pod(SHOP, "left-deaf").unwrap());
    let listener = listen(&deaf, 7000).unwrap();
    let to = SocketAddr::new(shop::cluster_ip(&MESH, "left-deaf").unwrap(), 80);
    let accepted = || (0..CLIENTS).map(|_| listener.accept().unwrap().0).collect::<Vec<_>>();
    // Warm: carriers stay for a minute.
    let mut early = client.enter(|| crowd(to, CLIENTS)).unwrap().unwrap();
    say(&mut early, b"*1\r\n");
    drop((early, accepted()));
    let ledgers = [arena.ledgers().unwrap().into(), vec![resources::Ledger::of_proxy(&MESH, &deaf).unwrap()]];
    let load = arena.bystanders(2, 2).unwrap();
    arena.goes_on(&load).unwrap();
    // Half a body, and bytes of no protocol, that the application has not read when its client is gone.
    let post = format!("POST / HTTP/1.1\r\nHost: left-deaf\r\nContent-Length: {BYTES}\r\n\r\n");
    let mut servers = Vec::new();
    for head in [post.as_bytes(), b"*1\r\n"] {
        let mut clients = client.enter(|| crowd(to, CLIENTS)).unwrap().unwrap();
        assert_eq!(say(&mut clients, head), CLIENTS);
        servers.extend(accepted());
        held_back(&mut clients, BYTES);
        reset(clients);
    }
    arena.goes_on(&load).unwrap();
    served(load).unwrap();
    // The application still holds its ends: it is the proxies that let go.
    for ledger in ledgers.iter().flatten() {
        ledger.settle().unwrap();
    }
    drop(servers);
}

#[test]
fn what_nobody_reads_is_held_back_at_its_sender() {
    if !check::can_run() {
        return;
    }
    /// More than all the kernels' buffers on the way.
    const BYTES: usize = 96 << 20;
    const SENDERS: usize = 4;
    /// What proxies may hold of each.
    const EACH: u64 = 1 << 20;
    let arena = Arena::enter(&MESH, "slow").unwrap();
    let (ledgers, load) = arena.begin(2, 2).unwrap();
    let (client, mute) = (arena.client().unwrap(), MESH.pod(SHOP, "mute").unwrap());
    let listener = listen(&mute, 7000).unwrap();
    let to = SocketAddr::new(shop::cluster_ip(&MESH, "mute").unwrap(), 80);

    // Up: the server does not read. Bytes, and the body of a request.
    for head in [&b"*1\r\n"[..], b"POST / HTTP/1.1\r\nHost: mute\r\nContent-Length: 100663292\r\n\r\n"] {
        let mut senders = client.enter(|| crowd(to, SENDERS)).unwrap().unwrap();
        say(&mut senders, head);
        let mut servers: Vec<TcpStream> = (0..SENDERS).map(|_| listener.accept().unwrap().0).collect();
        held_back(&mut senders, BYTES - head.len());
        arena.goes_on(&load).unwrap();
        for pod in [&client, &mute] {
            let grown = usage(pod).unwrap().rss.saturating_sub(ledgers[1].before.rss);
            assert!(grown < EACH * SENDERS as u64 + (4 << 20), "{}: {grown} bytes are held", pod.name);
        }
        // One that reads at last gets every byte.
        let (sender, server) = (senders.pop().unwrap(), servers.pop().unwrap());
        drop(senders);
        sender.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(drained(server) > 1 << 20);
        reset(servers);
    }
    // Down: the client does not read what the server sends.
    let mut readers = client.enter(|| crowd(to, SENDERS)).unwrap().unwrap();
    say(&mut readers, b"*1\r\n");
    let mut servers: Vec<TcpStream> = (0..SENDERS).map(|_| listener.accept().unwrap().0).collect();
    held_back(&mut servers, BYTES);
    arena.goes_on(&load).unwrap();
    reset(readers);
    served(load).unwrap();
    settle(&ledgers);
}

#[test]
fn a_hundred_thousand_names_make_no_more_series_than_the_budget() {
    if !check::can_run() {
        return;
    }
    const NAMES: usize = 100_000;
    let arena = Arena::enter(&MESH, "names").unwrap();
    let (target, client) = (arena.target().unwrap(), arena.client().unwrap());
    let (ledgers, load) = arena.begin(2, 2).unwrap();

    let (inbound, outbound) = (target.at(arena::PORT).unwrap(), arena.service().unwrap());
    std::thread::scope(|scope| {
        scope.spawn(|| MESH.enter(|| names(inbound, NAMES / 2)).unwrap());
        scope.spawn(|| client.enter(|| names(outbound, NAMES / 2)).unwrap());
    });
    for pod in [&target, &client] {
        let families = families(&pod.metrics().unwrap());
        let largest = families.iter().max_by_key(|(_, series)| **series).unwrap();
        assert!(*largest.1 >= BUDGET, "{}: they are no labels at all: {largest:?}", pod.name);
        assert!(*largest.1 <= BUDGET + 1, "{}: {largest:?}", pod.name);
        assert!(
            count(pod, "remora_metrics_folded_total", &[]).unwrap() > 1000.0,
            "what was folded is counted"
        );
    }
    served(load).unwrap();
    // The series stay for a while, which is what the budget is about; the pages that were printed do not.
    for (ledger, pod) in ledgers.iter().zip([&target, &client]) {
        let small = || usage(pod).is_ok_and(|now| now.rss < ledger.before.rss * 2);
        let waited = MESH.wait_until("what was printed to be given back", resources::SETTLE, small);
        assert!(waited.is_ok(), "before {:?}, now {:?}", ledger.before, usage(pod));
    }
}

#[track_caller]
fn settle(ledgers: &[resources::Ledger<'_>]) {
    for ledger in ledgers {
        ledger.settle().unwrap();
    }
}

/// Connections that the pod's proxy serves inbound.
fn inbound(pod: &PodRef<'_>) -> u64 {
    let state = state(pod).unwrap_or_default();
    state.pointer("/connections/inbound").and_then(serde_json::Value::as_u64).unwrap_or_default()
}

/// The proxy waits and does hardly anything else. Processor time, not time: the machine may be busy.
#[track_caller]
fn spends_little(pod: &PodRef<'_>) {
    let pid = pod.pid(PROXY).unwrap();
    let (before, began) = (resources::cpu(pid).unwrap(), Instant::now());
    MESH.wait_until("two seconds to pass", PATIENCE, || began.elapsed() > Duration::from_secs(2)).unwrap();
    let spent = resources::cpu(pid).unwrap().saturating_sub(before);
    assert!(spent * 5 < began.elapsed(), "{spent:?} of {:?}", began.elapsed());
}

/// Reads the answer to [`GET`].
#[track_caller]
fn answered(mut stream: TcpStream) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let (head, _) = read_response(&mut stream).unwrap();
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
}

/// A server of HTTP/1 and HTTP/2 that takes everything and reads no body.
fn never_read(listener: &std::net::TcpListener) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut held = Vec::new();
    runtime.block_on(async {
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener.try_clone().unwrap()).unwrap();
        while let Ok((tcp, _)) = listener.accept().await {
            let mut preface = [0; 3];
            while tcp.peek(&mut preface).await.unwrap_or(3) < 3 {
                tokio::task::yield_now().await;
            }
            if &preface == b"PRI" {
                tokio::spawn(async move {
                    let Ok(mut connection) = h2::server::handshake(tcp).await else { return };
                    let mut streams = Vec::new();
                    while let Some(Ok(stream)) = connection.accept().await {
                        streams.push(stream);
                    }
                });
            } else {
                held.push(tcp);
            }
        }
    });
}

/// What became of a flood.
#[derive(Clone, Debug, Default)]
#[expect(dead_code, reason = "printed")]
struct Told {
    /// Answered with the reason.
    named: usize,
    /// Ended without one.
    cut: usize,
    /// Bytes that were taken.
    bytes: usize,
}

/// A thousand streams and two thousand connections, each with a body that nobody reads.
fn flood(to: SocketAddr) -> Told {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (named, cut, bytes) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    runtime.block_on(async {
        let streams = (0..20).map(|_| async {
            let Ok(tcp) = tokio::net::TcpStream::connect(to).await else { return };
            let Ok((mut sender, connection)) = h2::client::handshake(tcp).await else { return };
            tokio::spawn(connection);
            let mut bodies = Vec::new();
            let mut answers = Vec::new();
            for _ in 0..100 {
                let Ok(ready) = sender.ready().await else { break };
                sender = ready;
                let request = http::Request::post("http://deaf/").body(()).unwrap();
                let Ok((answer, mut body)) = sender.send_request(request, false) else { break };
                let _ = body.send_data(Bytes::from_static(&[b'x'; 64 << 10]), false);
                bytes.fetch_add(64 << 10, Ordering::Relaxed);
                bodies.push(body);
                answers.push(answer);
            }
            let told = futures_util::future::join_all(answers.into_iter().map(|answer| async {
                match tokio::time::timeout(LIMIT, answer).await {
                    Ok(Ok(answer)) if is_named(answer.headers()) => named.fetch_add(1, Ordering::Relaxed),
                    Ok(Err(_)) => cut.fetch_add(1, Ordering::Relaxed),
                    Ok(Ok(_)) | Err(_) => 0,
                }
            }));
            told.await;
        });
        let connections = (0..2000).map(|_| async {
            let Ok(mut tcp) = tokio::net::TcpStream::connect(to).await else { return };
            // Who is done leaves with a reset: nobody waits for an answer.
            let _ = rustix::net::sockopt::set_socket_linger(&tcp, Some(Duration::ZERO));
            let head = b"POST / HTTP/1.1\r\nHost: deaf\r\nContent-Length: 1000000000\r\n\r\n";
            let (mut read, mut write) = tcp.split();
            let sending = async {
                use tokio::io::AsyncWriteExt as _;
                let mut sent = write.write_all(head).await;
                while sent.is_ok() {
                    sent = write.write_all(&[b'x'; 64 << 10]).await;
                    bytes.fetch_add(64 << 10, Ordering::Relaxed);
                }
            };
            let mut answer = Vec::new();
            let reading = async {
                use tokio::io::AsyncReadExt as _;
                while read.read_buf(&mut answer).await.is_ok_and(|read| read > 0) {}
            };
            let both = async { tokio::join!(sending, reading) };
            let ended = tokio::time::timeout(LIMIT, both).await.is_ok();
            if String::from_utf8_lossy(&answer).contains("short of memory") {
                named.fetch_add(1, Ordering::Relaxed);
            } else if ended {
                cut.fetch_add(1, Ordering::Relaxed);
            }
        });
        tokio::join!(futures_util::future::join_all(streams), futures_util::future::join_all(connections));
    });
    Told { named: named.into_inner(), cut: cut.into_inner(), bytes: bytes.into_inner() }
}

fn is_named(head: &http::HeaderMap) -> bool {
    head.get("l5d-proxy-error")
        .is_some_and(|why| why.to_str().is_ok_and(|why| why.contains("short of memory")))
}

/// Writes until nothing is taken any more.
#[track_caller]
fn held_back(streams: &mut [TcpStream], most: usize) {
    let piece = vec![b'x'; 256 << 10];
    for stream in streams {
        stream.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
        let mut sent = 0;
        let held = loop {
            let left = (most - sent).min(piece.len());
            if left == 0 {
                break false;
            }
            match stream.write(&piece[..left]) {
                Ok(taken) => sent += taken,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    break true;
                }
                Err(error) => panic!("after {sent} bytes: {error}"),
            }
        };
        assert!(held, "all of {most} bytes were taken, though nobody reads them");
    }
}

/// How many bytes come until the end.
fn drained(mut stream: TcpStream) -> usize {
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let (mut buffer, mut total) = (vec![0; 256 << 10], 0);
    while let Ok(read) = stream.read(&mut buffer) {
        if read == 0 {
            break;
        }
        total += read;
    }
    total
}

/// As many requests, each for a host and a path of its own.
fn names(to: SocketAddr, count: usize) {
    const AT_ONCE: usize = 50;
    let mut streams = crowd(to, 4).unwrap();
    for round in 0..count / AT_ONCE / streams.len() {
        for (nth, stream) in streams.iter_mut().enumerate() {
            let mut requests = String::new();
            for one in 0..AT_ONCE {
                let name = format!("{nth}-{round}-{one}");
                requests += &format!("GET /{name} HTTP/1.1\r\nHost: {name}.example\r\n\r\n");
            }
            stream.write_all(requests.as_bytes()).unwrap();
        }
        for stream in &mut streams {
            let mut reader = std::io::BufReader::new(stream);
            for _ in 0..AT_ONCE {
                let (head, _) = remora_tests::peer::read_answer(&mut reader).unwrap();
                assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
            }
        }
    }
}

/// How many series each family has; those of a histogram count once.
fn families(samples: &Samples) -> BTreeMap<String, usize> {
    let mut families = BTreeMap::new();
    for sample in &samples.0 {
        if !sample.labels.contains_key("le") {
            *families.entry(sample.name.clone()).or_default() += 1;
        }
    }
    families
}

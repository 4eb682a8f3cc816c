//! Peers that break off, stop, or show what no authority of ours made: their own connections end, and no other.
#![expect(
    clippy::items_after_statements,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test says what it expects where it stands"
)]

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
use remora_tests::app::BEGUN;
use remora_tests::arena::{self, Arena, crowd, reset, served};
use remora_tests::peer::{self, ALPN, Certificate, End, Session, header};
use remora_tests::shop::{self, PATIENCE, SHOP, identity};
use remora_tests::wire::{LIMIT, count, listen, read_response, read_until};
use remora_tests::{Mesh, check, resources};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;

/// How often each phase is broken off.
const TIMES: usize = 20;
/// Servers that close connections as they are used again, of one client each.
const CLOSERS: u16 = 8;
const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: peers\r\n\r\n";

const POST: &[u8] = b"POST / HTTP/1.1\r\nHost: peers\r\nContent-Length: 0\r\n\r\n";

const PUT: &[u8] = b"PUT / HTTP/1.1\r\nHost: peers\r\nContent-Length: 5\r\n\r\nagain";

const LAST: &[u8] = b"GET / HTTP/1.1\r\nHost: peers\r\nConnection: close\r\n\r\n";

static MESH: LazyLock<Mesh> = LazyLock::new(|| {
    shop::open(&[
        arena::manifests("resets", &[], &[]),
        arena::manifests("breaks", &[], &[]),
        arena::manifests("halves", &[], &[]),
        arena::manifests("closes", &[], &[]),
        arena::manifests("shown", &[], &[]),
        arena::manifests("windows", &[], &[]),
        shop::service("breaker", 80, "7000"),
        shop::idle("breaker", &[]),
        closers(),
        shop::idle("closer", &[]),
        shop::service("echo", 80, "7000"),
        shop::idle("echo", &[]),
    ])
    .unwrap()
});

#[test]
fn a_client_that_resets_at_any_point_ends_its_own_connection_alone() {
    if !check::can_run() {
        return;
    }
    let arena = Arena::enter(&MESH, "resets").unwrap();
    let (client, target) = (arena.client().unwrap(), arena.target().unwrap());
    let (ledgers, load) = arena.begin(2, 2).unwrap();

    let phases: [&[u8]; 9] = [
        b"",
        b"G",
        b"GET / HTTP/1.1\r\nHost: pe",
        b"POST / HTTP/1.1\r\nHost: peers\r\nContent-Length: 100\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: peers\r\nContent-Length: 100\r\n\r\nhalf of it",
        b"POST / HTTP/1.1\r\nHost: peers\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x06\x04\0\0",
        b"*1\r\n$4\r\nPI",
        // Half a ClientHello.
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03",
    ];
    let (inside, outside) = (arena.service().unwrap(), target.at(arena::PORT).unwrap());
    let broken_off = |crowd: &dyn Fn() -> Vec<TcpStream>| {
        for phase in phases {
            let mut streams = crowd();
            assert_eq!(say(&mut streams, phase), TIMES);
            reset(streams);
        }
        // A socket is held by whoever opened it, too.
        Ok((phases.len() * TIMES * 4096) as u64)
    };
    let application = || client.enter(|| crowd(inside, TIMES)).unwrap().unwrap();
    let stranger = || MESH.enter(|| crowd(outside, TIMES)).unwrap().unwrap();
    arena::attack(&arena, &ledgers[1], &load, || broken_off(&application)).unwrap();
    arena::attack(&arena, &ledgers[0], &load, || broken_off(&stranger)).unwrap();
    // With an answer under way, and as a stream of bytes that was HTTP.
    let began = b"GET /hold HTTP/1.1\r\nHost: peers\r\n\r\n";
    let upgraded = b"GET / HTTP/1.1\r\nHost: peers\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n";
    for (ask, until) in [(&began[..], BEGUN.as_bytes()), (&upgraded[..], &b"\r\n\r\n"[..])] {
        let mut streams = client.enter(|| crowd(inside, TIMES)).unwrap().unwrap();
        say(&mut streams, ask);
        for stream in &mut streams {
            let seen = read_some(stream, until);
            assert!(seen.starts_with(b"HTTP/1.1 "), "{seen:?}");
        }
        reset(streams);
    }
    arena.goes_on(&load).unwrap();
    // That nobody wants an answer any more is seen when it is written: until then it may be a client that has only
    // said all that it had to say.
    arena.app.release();
    // To the proxy's own port: within the handshake, after it, within the header, after it.
    let own = MESH.certify(&identity("stranger")).unwrap();
    let config = peer::client(MESH.root(), Some(&own), &[ALPN]).unwrap();
    let direct = target.at(4143).unwrap();
    let whole = header(arena::PORT, "", Session::Http1);
    for taken in [0, 10, whole.len()] {
        let streams = MESH.enter(|| crowd(direct, TIMES)).unwrap().unwrap();
        let runtime = runtime();
        let handshaken = runtime.block_on(async {
            let mut handshaken = Vec::new();
            for stream in streams {
                let mut tls = peer::handshake(stream, &identity("resets"), config.clone()).await.unwrap();
                tls.write_all(&whole[..taken]).await.unwrap();
                tls.flush().await.unwrap();
                handshaken.push(tls);
            }
            handshaken
        });
        for tls in &handshaken {
            rustix::net::sockopt::set_socket_linger(tls.get_ref().0, Some(Duration::ZERO)).unwrap();
        }
        drop(handshaken);
    }
    arena.goes_on(&load).unwrap();
    served(load).unwrap();
    settle(&ledgers);
}

#[test]
fn a_server_that_resets_at_any_point_is_told_of_or_followed_by_its_reset_and_nobody_waits_for_ever() {
    if !check::can_run() {
        return;
    }
    let arena = Arena::enter(&MESH, "breaks").unwrap();
    let client = arena.client().unwrap();
    let (ledgers, load) = arena.begin(2, 2).unwrap();
    let listener = listen(&MESH.pod(SHOP, "breaker").unwrap(), 7000).unwrap();
    let phase = AtomicUsize::new(0);
    let to = SocketAddr::new(shop::cluster_ip(&MESH, "breaker").unwrap(), 80);
    let phases: [Option<&[u8]>; 5] = [
        None,
        Some(b""),
        Some(b"HTTP/1.1 200 OK\r\nContent-Le"),
        Some(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"),
        Some(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf of it"),
    ];
    let quit = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let quitting = Quit(&quit);
        scope.spawn(|| {
            while !quit.load(Ordering::Relaxed) {
                let Ok((mut stream, _)) = listener.accept() else { continue };
                if let Some(said) = phases[phase.load(Ordering::Relaxed)] {
                    // The client may have gone: a head that is not whole is as good as any.
                    let _ = peer::read_head(&mut stream);
                    let _ = stream.write_all(said);
                }
                reset(vec![stream]);
            }
        });
        for (nth, said) in phases.iter().enumerate() {
            phase.store(nth, Ordering::Relaxed);
            for _ in 0..TIMES {
                let mut stream = client.enter(|| crowd(to, 1)).unwrap().unwrap().pop().unwrap();
                stream.write_all(LAST).unwrap();
                let End::Closed(answer) = peer::end_of(&mut stream) else {
                    panic!("{said:?}: it is left waiting")
                };
                let answer = String::from_utf8_lossy(&answer);
                // What was not begun is told; what was, cannot be told any more.
                match said {
                    Some(said) if said.ends_with(b"\n") || said.ends_with(b"it") => {
                        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 200 "), "{answer}");
                    }
                    _ => assert!(answer.starts_with("HTTP/1.1 502 "), "{said:?}: {answer}"),
                }
            }
        }
        drop(quitting);
        // Wakes the server.
        let _ = client.enter(|| crowd(to, 1));
    });
    arena.goes_on(&load).unwrap();
    served(load).unwrap();
    settle(&ledgers);
}

#[test]
fn whoever_ends_one_way_only_still_gets_or_gives_the_other() {
    if !check::can_run() {
        return;
    }
    let arena = Arena::enter(&MESH, "halves").unwrap();
    let client = arena.client().unwrap();
    let (ledgers, load) = arena.begin(2, 2).unwrap();
    peer::echo(MESH.pod(SHOP, "echo").unwrap().listen(7000).unwrap());
    let echo = SocketAddr::new(shop::cluster_ip(&MESH, "echo").unwrap(), 80);
    for _ in 0..TIMES {
        // A client that has asked, and says that it asks no more.
        let mut asked = one(&client, arena.service().unwrap());
        asked.write_all(GET).unwrap();
        asked.shutdown(Shutdown::Write).unwrap();
        let (head, body) = read_response(&mut asked).unwrap();
        assert!(head.starts_with("HTTP/1.1 200 ") && body == b"halves\n", "{head}");
        // Bytes: what was said comes back after the end of it.
        let mut bytes = one(&client, echo);
        bytes.write_all(b"*1\r\n$4\r\nPING\r\n").unwrap();
        bytes.shutdown(Shutdown::Write).unwrap();
        assert_eq!(peer::end_of(&mut bytes), End::Closed(b"*1\r\n$4\r\nPING\r\n".to_vec()));
        // A request that will never be whole.
        let mut half = one(&client, arena.service().unwrap());
        half.write_all(b"GET / HTTP/1.1\r\nHost: pe").unwrap();
        half.shutdown(Shutdown::Write).unwrap();
        assert!(matches!(peer::end_of(&mut half), End::Closed(_)), "it is waited for");
    }
    arena.goes_on(&load).unwrap();
    served(load).unwrap();
    settle(&ledgers);
}

#[test]
fn a_server_that_closes_its_idle_connection_10_000_times_as_it_is_used_again_costs_no_idempotent_request() {
    if !check::can_run() {
        return;
    }
    /// Of each server, while it is asked what may be done twice: 10,000 of all together.
    const CLOSES: usize = 10_000 / CLOSERS as usize;
    /// And then so many POSTs, of which some are lost: they may have been processed.
    const POSTS: usize = 2_000 / CLOSERS as usize;
    let arena = Arena::enter(&MESH, "closes").unwrap();
    let client = &arena.client().unwrap();
    let (ledgers, load) = arena.begin(2, 2).unwrap();
    let (ip, pod) = (shop::cluster_ip(&MESH, "closer").unwrap(), MESH.pod(SHOP, "closer").unwrap());
    let (quit, closers) = (AtomicBool::new(false), [(); CLOSERS as usize].map(|()| AtomicUsize::new(0)));
    let closed = || closers.iter().map(|closed| closed.load(Ordering::Relaxed)).sum::<usize>();
    std::thread::scope(|scope| {
        let quitting = Quit(&quit);
        let clients: Vec<_> = (0..CLOSERS)
            .zip(&closers)
            .map(|(nth, closed)| {
                let (listener, to) = (listen(&pod, 7000 + nth).unwrap(), SocketAddr::new(ip, 80 + nth));
                let quit = &quit;
                scope.spawn(move || closes_soon(&listener, closed, quit));
                (to, one(client, to), closed)
            })
            .collect();
        let idempotent: Vec<_> = clients
            .into_iter()
            .map(|(to, mut stream, closed)| {
                scope.spawn(move || {
                    let mut asked = 0;
                    while closed.load(Ordering::Relaxed) < CLOSES {
                        let head = ask(&mut stream, [GET, PUT][asked % 2], asked);
                        assert!(head.starts_with("HTTP/1.1 200 "), "request {asked}: {head}");
                        asked += 1;
                        assert!(asked < 10 * CLOSES, "it hardly closes any");
                    }
                    (to, stream, asked)
                })
            })
            .collect();
        let idempotent: Vec<_> = idempotent.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        let (mut asked, closes, mut lost) = (0, closed(), 0);
        let posting: Vec<_> = idempotent
            .into_iter()
            .map(|done| {
                let (to, mut stream, count) = done.unwrap();
                asked += count;
                scope.spawn(move || {
                    let lost = (0..POSTS).filter(|nth| {
                        let head = ask(&mut stream, POST, *nth);
                        let lost = head.starts_with("HTTP/1.1 502 ");
                        assert!(lost || head.starts_with("HTTP/1.1 200 "), "request {nth}: {head}");
                        if lost {
                            // With 502 the connection ends.
                            stream = one(client, to);
                        }
                        lost
                    });
                    lost.count()
                })
            })
            .collect();
        lost += posting.into_iter().map(|lost| lost.join().unwrap()).sum::<usize>();
        drop(quitting);
        for nth in 0..CLOSERS {
            drop(one(client, SocketAddr::new(ip, 80 + nth)).write_all(GET));
        }
        let posts = POSTS * CLOSERS as usize;
        let rate = lost as f64 / posts as f64 * 100.0;
        println!(
            "of {asked} GETs and PUTs none was lost in {closes} closes; of {posts} POSTs {lost}, {rate:.1} %, in {}",
            closed() - closes
        );
        assert!(closes >= 10_000, "{closes}");
    });
    arena.goes_on(&load).unwrap();
    served(load).unwrap();
    settle(&ledgers);
}

#[test]
fn a_peer_that_opens_no_window_holds_back_its_own_sender_and_nobody_else() {
    if !check::can_run() {
        return;
    }
    /// What a proxy may hold of each: the window of a stream, and a buffer each way.
    const EACH: u64 = 1 << 20;
    let arena = Arena::enter(&MESH, "windows").unwrap();
    let (client, target) = (arena.client().unwrap(), arena.target().unwrap());
    let (ledgers, load) = arena.begin(2, 2).unwrap();
    let listener = listen(&target, 7000).unwrap();
    let to = target.at(7000).unwrap();
    let bounded = |which: &str| {
        // The bystanders' carrier is the one that the attack's streams are on.
        arena.goes_on(&load).unwrap();
        for (pod, ledger) in [&target, &client].into_iter().zip(&ledgers) {
            let held = arena::usage(pod).unwrap().rss.saturating_sub(ledger.before.rss);
            assert!(held < EACH * STUCK as u64 + (4 << 20), "{which}, {}: {held} bytes are held", pod.name);
        }
    };

    // Clients that ask and read no answer: of bytes, and of a request.
    for (ask, answer) in [(&b"*1\r\n"[..], &b""[..]), (LAST, b"HTTP/1.1 200 OK\r\n\r\n")] {
        let mut readers = client.enter(|| crowd(to, STUCK)).unwrap().unwrap();
        arena::say(&mut readers, ask);
        let mut servers: Vec<TcpStream> = (0..STUCK).map(|_| listener.accept().unwrap().0).collect();
        for server in &mut servers {
            server.set_read_timeout(Some(PATIENCE)).unwrap();
            server.read_exact(&mut [0; 4]).unwrap();
            server.write_all(answer).unwrap();
            fill(server);
        }
        bounded("clients");
        reset(readers);
        for server in &mut servers {
            assert!(matches!(peer::end_of(server), End::Closed(_)), "a server is left with who has gone");
        }
    }
    // Servers that read nothing, of bytes and of a request.
    for head in [&b"*1\r\n"[..], b"POST / HTTP/1.1\r\nHost: windows\r\nContent-Length: 1000000000\r\n\r\n"] {
        let mut writers = client.enter(|| crowd(to, STUCK)).unwrap().unwrap();
        arena::say(&mut writers, head);
        let servers: Vec<TcpStream> = (0..STUCK).map(|_| listener.accept().unwrap().0).collect();
        writers.iter_mut().for_each(fill);
        bounded("servers");
        reset(servers);
        for writer in &mut writers {
            assert!(matches!(peer::end_of(writer), End::Closed(_)), "a client is left with who has gone");
        }
    }
    served(load).unwrap();
    settle(&ledgers);
}

/// Connections that are stuck at once.
const STUCK: usize = 6;

/// Writes until nothing moves any more: everything on the way is full.
fn fill(stream: &mut TcpStream) {
    const BLOCK: usize = 64 << 10;
    /// More than all the kernels' buffers on the way.
    const MOST: usize = 96 << 20;
    stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    let block = vec![b'x'; BLOCK];
    for _ in 0..MOST / BLOCK {
        if let Err(error) = stream.write_all(&block) {
            assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
            return;
        }
    }
    panic!("{MOST} bytes went to somebody who reads nothing");
}

#[test]
fn certificates_that_no_authority_of_ours_makes_get_nobody_in() {
    if !check::can_run() {
        return;
    }
    let arena = Arena::enter(&MESH, "shown").unwrap();
    let target = arena.target().unwrap();
    let (ledgers, load) = arena.begin(2, 2).unwrap();
    let good = MESH.certify(&identity("friend")).unwrap();
    let runtime = runtime();
    let name = identity("shown");
    // Dials the proxy's own port, announces HTTP/1 and asks.
    let ask = |certificate: &Certificate| -> String {
        let config = peer::client(MESH.root(), Some(certificate), &[ALPN]).unwrap();
        let tcp = MESH.dial(target.at(4143).unwrap()).unwrap();
        runtime.block_on(async {
            let asking = async {
                let mut tls = peer::handshake(tcp, &name, config).await?;
                tls.write_all(&[&header(arena::PORT, "", Session::Http1)[..], GET].concat()).await?;
                let mut answer = Vec::new();
                let mut buffer = bytes::BytesMut::new();
                while !answer.ends_with(b"\r\n\r\nshown\n") {
                    use tokio::io::AsyncReadExt as _;
                    if tls.read_buf(&mut buffer).await? == 0 {
                        break;
                    }
                    answer.extend(buffer.split());
                }
                std::io::Result::Ok(String::from_utf8_lossy(&answer).into_owned())
            };
            tokio::time::timeout(LIMIT, asking).await.unwrap().unwrap_or_default()
        })
    };
    assert!(ask(&good).starts_with("HTTP/1.1 200 "), "this is how a good one is answered");
    let before = failures(&target);
    for (what, certificate) in bad_certificates() {
        let refused = || {
            for _ in 0..TIMES / 4 {
                assert_eq!(ask(&certificate), "", "{what}");
            }
            Ok((TIMES / 4 * certificate.size()) as u64)
        };
        arena::attack(&arena, &ledgers[0], &load, refused).unwrap();
    }
    let counted = || failures(&target) >= before + (TIMES / 4 * bad_certificates().len()) as f64;
    MESH.wait_until("each to be counted", PATIENCE, counted).unwrap();
    assert!(ask(&good).starts_with("HTTP/1.1 200 "));
    arena.goes_on(&load).unwrap();
    served(load).unwrap();
    settle(&ledgers);
}

/// Inbound connections that were refused for their certificate, or its absence.
fn failures(target: &remora_tests::PodRef<'_>) -> f64 {
    let refused = |error| count(target, "inbound_tcp_errors_total", &[("error", error)]).unwrap();
    refused("client tls") + refused("identity required")
}

fn bad_certificates() -> Vec<(&'static str, Certificate)> {
    let root = MESH.root();
    let below = |params: &CertificateParams, key: &KeyPair, issuer: &Issuer<'static, KeyPair>| {
        params.signed_by(key, issuer).unwrap().der().clone()
    };
    let leaf = |names: &[SanType]| {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names.to_vec();
        params.distinguished_name.push(DnType::CommonName, identity("friend"));
        params.not_after = rcgen::date_time_ymd(2100, 1, 1);
        params
    };
    let dns = |name: &str| SanType::DnsName(name.try_into().unwrap());
    let alone = |params: &CertificateParams| {
        let key = KeyPair::generate().unwrap();
        certificate(vec![below(params, &key, root.issuer())], &key)
    };
    let mut authority = leaf(&[dns(&identity("friend"))]);
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    let mut past = leaf(&[dns(&identity("friend"))]);
    past.not_after = rcgen::date_time_ymd(2001, 1, 1);
    // CVE-2026-35189: whoever allocated for each would pay more than its sender.
    let mut listed = leaf(&[dns(&identity("friend"))]);
    let place =
        |nth: usize| rcgen::CrlDistributionPoint { uris: vec![format!("http://lists.example/{nth:038}")] };
    listed.crl_distribution_points = (0..900).map(place).collect();
    let stranger = {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Issuer::new(params, KeyPair::generate().unwrap())
    };
    let strangers = |params: &CertificateParams| {
        let key = KeyPair::generate().unwrap();
        certificate(vec![below(params, &key, &stranger)], &key)
    };
    vec![
        ("a stranger's, with a thousand places of revocation lists", strangers(&listed)),
        ("a wildcard", alone(&leaf(&[dns(&format!("*.{}", identity("friend")))]))),
        ("a NUL in a name", alone(&leaf(&[dns(&format!("{}\0.evil.example", identity("friend")))]))),
        (
            "a NUL in a name, beside a good one",
            alone(&leaf(&[dns(&identity("friend")), dns(&format!("{}\0.evil.example", identity("shown")))])),
        ),
        ("a wildcard beside a good one", alone(&leaf(&[dns(&identity("friend")), dns("*.cluster.local")]))),
        ("a common name alone", alone(&leaf(&[]))),
        ("an address", alone(&leaf(&[SanType::IpAddress([10, 0, 0, 1].into())]))),
        ("an authority's own", alone(&authority)),
        ("one that has expired", alone(&past)),
        ("a chain of a hundred", chain_of_a_hundred(&leaf(&[dns(&identity("friend"))]))),
    ]
}

fn chain_of_a_hundred(leaf: &CertificateParams) -> Certificate {
    let mut chain: Vec<CertificateDer<'static>> = Vec::new();
    let mut issuer: Option<Issuer<'static, KeyPair>> = None;
    for nth in 0..99 {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, format!("authority {nth}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let above = issuer.as_ref().unwrap_or_else(|| MESH.root().issuer());
        chain.insert(0, params.signed_by(&key, above).unwrap().der().clone());
        issuer = Some(Issuer::new(params, key));
    }
    let key = KeyPair::generate().unwrap();
    chain.insert(0, leaf.signed_by(&key, &issuer.unwrap()).unwrap().der().clone());
    certificate(chain, &key)
}

fn certificate(chain: Vec<CertificateDer<'static>>, key: &KeyPair) -> Certificate {
    Certificate::new(chain, PrivateKeyDer::try_from(key.serialize_der()).unwrap())
}

/// A Service with a port for each server, which closes no connection but its own.
fn closers() -> String {
    let ports: Vec<String> = (0..CLOSERS)
        .map(|nth| format!("{{name: n{nth}, port: {}, targetPort: {}}}", 80 + nth, 7000 + nth))
        .collect();
    let one = "{name: main, port: 80, targetPort: 7000}";
    shop::service("closer", 80, "7000").replace(one, &ports.join(", "))
}

/// Asks, and then waits: the server's connection is used again up to a millisecond after it was closed, or just before.
fn ask(stream: &mut TcpStream, what: &[u8], nth: usize) -> String {
    stream.write_all(what).unwrap();
    let (head, _) = read_response(stream).unwrap();
    std::thread::park_timeout(Duration::from_micros(nth as u64 % 16 * 100));
    head
}

/// Answers requests on one connection after the other, and closes each a millisecond after an answer, unless another
/// request has come by then.
fn closes_soon(listener: &TcpListener, closed: &AtomicUsize, quit: &AtomicBool) {
    const IDLE: Duration = Duration::from_millis(1);
    let answers = |stream: &mut TcpStream| -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        loop {
            let head = peer::read_head(stream)?;
            if head.starts_with(b"PUT") {
                stream.read_exact(&mut [0; 5])?;
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")?;
            std::thread::park_timeout(IDLE);
            stream.set_nonblocking(true)?;
            if stream.peek(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock) {
                closed.fetch_add(1, Ordering::Relaxed);
                return Ok(());
            }
            stream.set_nonblocking(false)?;
        }
    };
    while !quit.load(Ordering::Relaxed) {
        let Ok((mut stream, _)) = listener.accept() else { continue };
        // Whoever asked is the one who notices.
        let _ = answers(&mut stream);
    }
}

/// Ends a server's thread, also when the test has failed.
struct Quit<'a>(&'a AtomicBool);

impl Drop for Quit<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn one(from: &remora_tests::PodRef<'_>, to: SocketAddr) -> TcpStream {
    remora_tests::wire::connect(from, to).unwrap()
}

fn say(streams: &mut [TcpStream], what: &[u8]) -> usize {
    arena::say(streams, what)
}

fn read_some(stream: &mut TcpStream, until: &[u8]) -> Vec<u8> {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut seen = read_until(stream, b"\r\n\r\n").unwrap();
    if until != b"\r\n\r\n" {
        // The body is chunked: its end is no line of its own.
        while !seen.windows(until.len()).any(|window| window == until) {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            seen.extend(byte);
        }
    }
    seen
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[track_caller]
fn settle(ledgers: &[resources::Ledger<'_>]) {
    for ledger in ledgers {
        ledger.settle().unwrap();
    }
}

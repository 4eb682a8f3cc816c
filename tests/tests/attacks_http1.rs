//! Hostile bytes of HTTP/1: what reaches the application is one request that can be read in one way, or nothing; what
//! takes too long or too much ends with an answer that names the limit.
#![expect(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test says what it expects where it stands"
)]

use std::fmt::Write as _;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use remora_tests::attack::{self, BYSTANDER, Scene};
use remora_tests::origin::{Origin, Seen};
use remora_tests::peer::{self, End, PATIENCE};
use remora_tests::shop::{self, SHOP};
use remora_tests::{Mesh, PodRef, check};

/// The victims' limits in this file.
const LIMIT: Duration = Duration::from_secs(2);
/// Between the bytes of a client that is slow on purpose.
const DRIP: Duration = Duration::from_millis(150);
/// What a smuggler wants to be taken for a request of its own.
const SMUGGLED: &str = "0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: web\r\n\r\n";

static MESH: LazyLock<Mesh> = LazyLock::new(|| {
    let limits = r#"[{"name": "REMORA_PROXY_REQUEST_HEAD_TIMEOUT", "value": "2s"}, {"name": "REMORA_PROXY_REQUEST_BODY_TIMEOUT", "value": "2s"}]"#;
    let victim = |name| shop::idle(name, &[("config.linkerd.io/proxy-additional-env", limits)]);
    attack::open(&[
        victim("smuggled"),
        victim("slow"),
        victim("bombed"),
        victim("trailers"),
        victim("leaving"),
        victim("upgraded"),
        victim("early"),
        victim("strange"),
        victim("interim"),
    ])
    .unwrap()
});

/// What becomes of a request.
enum Fate {
    /// 400, a close, and nothing of it at the application.
    Refused,
    /// The same, but the application may have seen its head: it is no whole request there.
    Broken,
    /// It arrives alone, with this body.
    Arrives(&'static str),
}

#[test]
fn a_smuggled_request_is_refused_or_part_of_the_one_request_that_arrives() {
    if !check::can_run() {
        return;
    }
    let victim = pod("smuggled");
    let old = pod(BYSTANDER);
    let (inner, outer) = (Origin::start(&victim, 8000).unwrap(), Origin::start(&old, 8000).unwrap());
    let scene = begin("smuggled", 8000);
    let cases = shapes();
    let dial = |side| match side {
        "inbound" => MESH.dial(victim.at(8000).unwrap()).unwrap(),
        _ => victim.dial(old.at(8000).unwrap()).unwrap(),
    };
    for (side, origin) in [("inbound", &inner), ("outbound", &outer)] {
        for (what, bytes, fate) in &cases {
            let before = malformed(&scene, side);
            let outcome = scene.attack(what, || {
                check_shape(&format!("{what}, {side}"), dial(side), origin, bytes, fate);
                Ok(bytes.len() as u64)
            });
            outcome.unwrap();
            if matches!(fate, Fate::Refused) {
                let what = format!("the refusal of {what} to be counted, {side}");
                MESH.wait_until(&what, PATIENCE, || malformed(&scene, side) > before).unwrap();
            }
        }
    }
    scene.said("the client sent a malformed request").unwrap();
    scene.end().unwrap();
}

/// Refused requests, by the HTTP library and by us.
fn malformed(scene: &Scene<'_>, side: &str) -> u64 {
    let of = |layer, error| scene.count(&format!("{side}_{layer}_errors_total"), &[("error", error)]);
    // hyper calls a length beyond all measure too large.
    of("tcp", "malformed request") + of("http", "malformed request") + of("tcp", "header limit")
}

#[track_caller]
fn check_shape(what: &str, mut client: TcpStream, origin: &Origin, bytes: &[u8], fate: &Fate) {
    origin.take();
    client.write_all(bytes).unwrap();
    let head = String::from_utf8_lossy(&peer::read_head(&mut client).unwrap_or_default()).into_owned();
    let refused =
        ["HTTP/1.1 400", "HTTP/1.0 400", "HTTP/1.1 431"].iter().any(|status| head.starts_with(status));
    let seen = match fate {
        Fate::Refused | Fate::Broken => {
            assert!(refused, "{what}: {head:?}");
            assert!(matches!(peer::end_of(&mut client), End::Closed(_)), "{what}: the connection is open");
            origin.take()
        }
        Fate::Arrives(_) => {
            assert!(head.starts_with("HTTP/1.1 200"), "{what}: {head:?}");
            client.shutdown(Shutdown::Write).unwrap();
            assert!(matches!(peer::end_of(&mut client), End::Closed(_)), "{what}: the connection is open");
            origin.take()
        }
    };
    match fate {
        Fate::Refused => assert_eq!(seen, [], "{what}"),
        Fate::Broken => {
            assert!(seen.iter().all(|seen| seen.head.starts_with("no request")), "{what}: {seen:#?}");
        }
        Fate::Arrives(body) => {
            let [Seen { head, body: arrived, .. }] = seen.as_slice() else { panic!("{what}: {seen:#?}") };
            assert!(head.starts_with("POST /first HTTP/1.1\r\n"), "{what}: {head}");
            assert_eq!(String::from_utf8_lossy(arrived), *body, "{what}");
        }
    }
}

/// Requests of doubtful shape, what becomes of each, and why.
fn shapes() -> Vec<(String, Vec<u8>, Fate)> {
    let length = SMUGGLED.len();
    let post = |fields: &str, body: &str| format!("POST /first HTTP/1.1\r\nhost: web\r\n{fields}\r\n{body}");
    let chunked = |chunks: &str| post("transfer-encoding: chunked\r\n", chunks);
    let with_length = |value: &str| post(&format!("content-length: {value}\r\n"), SMUGGLED);
    let coded = |coding: &str| {
        post(&format!("transfer-encoding: {coding}\r\ncontent-length: {length}\r\n"), SMUGGLED)
    };
    let field = |line: &str| post(&format!("{line}\r\ncontent-length: {length}\r\n"), SMUGGLED);
    let mut cases: Vec<(String, Vec<u8>, Fate)> = Vec::new();
    let mut case = |what: &str, text: String, fate| cases.push((what.to_owned(), text.into_bytes(), fate));

    // A body that has a coding ends where its coding says; the length beside it is nobody's.
    let both = "content-length: 43\r\ntransfer-encoding: chunked\r\n";
    case("CL then TE", post(both, SMUGGLED), Fate::Arrives(""));
    case("TE then CL", coded("chunked"), Fate::Arrives(""));
    let hidden = "connection: transfer-encoding, content-length, host\r\ntransfer-encoding: chunked\r\n";
    case("framing named by Connection", post(hidden, "5\r\nhello\r\n0\r\n\r\n"), Fate::Arrives("hello"));
    for coding in
        ["xchunked", "chunked, identity", "identity", "gzip, chunked", "chunked, chunked", "chunked;q=1", ""]
    {
        case(&format!("TE {coding:?}"), coded(coding), Fate::Refused);
    }
    case("TE with a vertical tab", coded("\x0bchunked"), Fate::Refused);
    let twice = "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n";
    case("chunked twice", post(twice, SMUGGLED), Fate::Refused);
    let split = "transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n";
    case("chunked and identity on two lines", post(split, SMUGGLED), Fate::Refused);
    for value in
        ["+5", "-5", "0x5", "5 5", "5,6", "5;", "a", "", "18446744073709551616", "99999999999999999999"]
    {
        case(&format!("CL {value:?}"), with_length(value), Fate::Refused);
    }
    case("CL 2^64 - 1", with_length("18446744073709551615"), Fate::Refused);
    let unequal = format!("content-length: 0\r\ncontent-length: {length}\r\n");
    case("two lengths", post(&unequal, SMUGGLED), Fate::Refused);
    case(
        "one length twice",
        post("content-length: 5\r\ncontent-length: 5\r\n", "hello"),
        Fate::Arrives("hello"),
    );
    for version in ["1.2", "1.1 x"] {
        let text =
            format!("POST /first HTTP/{version}\r\nhost: web\r\ncontent-length: {length}\r\n\r\n{SMUGGLED}");
        case(&format!("HTTP/{version}"), text, Fate::Refused);
    }
    let old = "POST /first HTTP/1.0\r\nhost: web\r\ntransfer-encoding: chunked\r\n\r\n";
    case("TE in HTTP/1.0", format!("{old}{SMUGGLED}"), Fate::Refused);
    case("obs-fold", field("x: a\r\n b"), Fate::Refused);
    case("obs-fold at the start", field(" x: a"), Fate::Refused);
    case("a space before the colon", field("x : a"), Fate::Refused);
    case("TE and a space before the colon", field("transfer-encoding : chunked"), Fate::Refused);
    case("a field without a colon", field("transfer-encoding"), Fate::Refused);
    case("a field without a name", field(": chunked"), Fate::Refused);
    case("NUL in a value", field("x: a\0b"), Fate::Refused);
    case("an escape character in a value", field("x: \x1b[31m"), Fate::Refused);
    case("NUL in a name", field("x\0: a"), Fate::Refused);
    case("a bare carriage return in a value", field("x: a\rtransfer-encoding: chunked"), Fate::Refused);
    case("two hosts", field("host: other"), Fate::Refused);
    // A recipient may take a line feed for a line's end (RFC 9112 section 2.2); what is sent on has CRLF.
    let bare = "POST /first HTTP/1.1\nhost: web\ncontent-length: 5\n\nhello".to_owned();
    case("bare line feeds", bare, Fate::Arrives("hello"));
    case("a chunk", chunked("5\r\nhello\r\n0\r\n\r\n"), Fate::Arrives("hello"));
    case("a chunk with an extension", chunked("5;a=\"b\";c\r\nhello\r\n0\r\n\r\n"), Fate::Arrives("hello"));
    for (what, chunks) in [
        ("a chunk size beyond 64 bits", "10000000000000005\r\nhello\r\n0\r\n\r\n"),
        ("a chunk size with a sign", "+5\r\nhello\r\n0\r\n\r\n"),
        ("a chunk size with a prefix", "0x5\r\nhello\r\n0\r\n\r\n"),
        ("no chunk size", "\r\nhello\r\n0\r\n\r\n"),
        ("a bare line feed after a chunk size", "5\nhello\r\n0\r\n\r\n"),
        ("a bare line feed in an extension", "5;a\nb\r\nhello\r\n0\r\n\r\n"),
        ("a chunk that is longer than it says", "5\r\nhello!\r\n0\r\n\r\n"),
        ("a chunk that ends with a line feed", "5\r\nhello\n0\r\n\r\n"),
    ] {
        case(what, chunked(chunks), Fate::Broken);
    }
    cases
}

#[test]
fn trailers_that_lie_about_the_message_do_not_change_it() {
    if !check::can_run() {
        return;
    }
    let victim = pod("trailers");
    let origin = Origin::start(&victim, 8000).unwrap();
    let scene = Scene::begin(&MESH, "trailers", || Ok(())).unwrap();
    let mut client = MESH.dial(victim.at(8000).unwrap()).unwrap();
    let lies =
        "content-length: 100\r\ntransfer-encoding: identity\r\nhost: other\r\nl5d-client-id: admin\r\n";
    let request =
        "POST /first HTTP/1.1\r\nhost: web\r\nte: trailers\r\ntrailer: x-sum\r\ntransfer-encoding: chunked";
    let text = format!("{request}\r\n\r\n5\r\nhello\r\n0\r\n{lies}x-sum: 5\r\n\r\n");
    client.write_all(text.as_bytes()).unwrap();
    assert!(peer::read_answer(&mut client).unwrap().0.starts_with("HTTP/1.1 200"));
    client.write_all(b"GET /second HTTP/1.1\r\nhost: web\r\n\r\n").unwrap();
    assert!(peer::read_answer(&mut client).unwrap().0.contains("x-path: /second"));
    let seen = origin.take();
    let [first, second] = seen.as_slice() else { panic!("{seen:#?}") };
    assert_eq!((first.body.as_slice(), first.values("host")), (&b"hello"[..], vec!["web"]));
    for lie in ["content-length", "transfer-encoding", "host", "l5d-client-id"] {
        assert!(!first.trailers.to_lowercase().contains(lie), "{}", first.trailers);
    }
    assert!(second.head.starts_with("GET /second"), "{}", second.head);
    drop(client);
    scene.end().unwrap();
}

#[test]
fn what_does_not_come_is_answered_408_with_its_limit_and_what_may_wait_waits() {
    if !check::can_run() {
        return;
    }
    let (victim, old) = (pod("slow"), pod(BYSTANDER));
    let (inner, outer) = (Origin::start(&victim, 8000).unwrap(), Origin::start(&old, 8010).unwrap());
    let scene = begin("slow", 8010);
    let dial = |side| match side {
        "inbound" => MESH.dial(victim.at(8000).unwrap()).unwrap(),
        _ => victim.dial(old.at(8010).unwrap()).unwrap(),
    };
    inner.take();
    outer.take();
    for (side, origin) in [("inbound", &inner), ("outbound", &outer)] {
        // The control: between its requests a client has all the time that it likes.
        let mut idle = dial(side);
        idle.write_all(b"GET /idle HTTP/1.1\r\nhost: web\r\n\r\n").unwrap();
        peer::read_answer(&mut idle).unwrap();
        let began = Instant::now();

        let (tcp, http) = (format!("{side}_tcp_errors_total"), format!("{side}_http_errors_total"));
        let head = [("error", "request head timeout")];
        let body = [("error", "request body timeout")];
        let (heads, bodies) = (scene.count(&tcp, &head), scene.count(&http, &body));
        let slow_heads = scene.attack("slow heads", || {
            let mut clients: Vec<TcpStream> = (0..100).map(|_| dial(side)).collect();
            for client in &mut clients {
                client.write_all(b"GET /slow HTTP/1.1\r\nhost: web\r\nx: ").unwrap();
            }
            for answer in dripped(&mut clients) {
                limited(&answer, side, "REMORA_PROXY_REQUEST_HEAD_TIMEOUT");
            }
            Ok(100 * 4096)
        });
        slow_heads.unwrap();
        assert!(origin.take().iter().all(|seen| seen.head.starts_with("GET /idle")), "a half head arrived");
        let slow_bodies = scene.attack("slow bodies", || {
            let mut clients: Vec<TcpStream> = (0..100).map(|_| dial(side)).collect();
            for client in &mut clients {
                client
                    .write_all(b"POST /slow HTTP/1.1\r\nhost: web\r\ncontent-length: 10000\r\n\r\n")
                    .unwrap();
            }
            for answer in dripped(&mut clients) {
                limited(&answer, side, "REMORA_PROXY_REQUEST_BODY_TIMEOUT");
            }
            Ok(100 * 4096)
        });
        slow_bodies.unwrap();
        scene.counted(&tcp, &head, heads + 99).unwrap();
        scene.counted(&http, &body, bodies + 99).unwrap();

        // A second head of a connection has the same limit.
        let mut second = [dial(side)];
        second[0].write_all(b"GET /idle HTTP/1.1\r\nhost: web\r\n\r\n").unwrap();
        peer::read_answer(&mut second[0]).unwrap();
        second[0].write_all(b"GET /slow").unwrap();
        limited(&dripped(&mut second)[0], side, "REMORA_PROXY_REQUEST_HEAD_TIMEOUT");

        assert!(began.elapsed() > LIMIT, "the idle client was not idle for longer than a head may take");
        idle.write_all(b"GET /again HTTP/1.1\r\nhost: web\r\n\r\n").unwrap();
        assert!(peer::read_answer(&mut idle).unwrap().0.starts_with("HTTP/1.1 200"), "{side}");
    }
    scene
        .said("the head of the request was not whole within REMORA_PROXY_REQUEST_HEAD_TIMEOUT (2s)")
        .unwrap();
    scene.end().unwrap();
}

/// An application is told why, a stranger only that.
#[track_caller]
fn limited(answer: &str, side: &str, limit: &str) {
    assert!(answer.starts_with("HTTP/1.1 408 Request Timeout\r\n"), "{side}: {answer:?}");
    assert_eq!(answer.contains(&format!("{limit} (2s)")), side == "outbound", "{side}: {answer:?}");
}

/// Sends a byte now and then on every connection until each is answered and closed; the answers.
fn dripped(clients: &mut [TcpStream]) -> Vec<String> {
    let mut answers = vec![Vec::new(); clients.len()];
    let deadline = Instant::now() + 3 * PATIENCE;
    let mut open = clients.len();
    while open > 0 {
        assert!(Instant::now() < deadline, "{open} connections are open");
        open = 0;
        for (nth, (client, answer)) in clients.iter_mut().zip(&mut answers).enumerate() {
            // The first is waited on, for the pace of all.
            client.set_read_timeout(Some(if nth == 0 { DRIP } else { Duration::from_micros(1) })).unwrap();
            let mut buffer = [0; 1024];
            match client.read(&mut buffer) {
                Ok(0) => {}
                Ok(count) => {
                    answer.extend_from_slice(&buffer[..count]);
                    open += 1;
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    open += 1;
                    // Closed meanwhile: the next read says so.
                    let _ = client.write(b"a");
                }
                Err(_) => {}
            }
        }
    }
    answers.iter().map(|answer| String::from_utf8_lossy(answer).into_owned()).collect()
}

#[test]
fn a_client_that_leaves_frees_its_server_and_one_that_only_says_no_more_is_answered() {
    if !check::can_run() {
        return;
    }
    let victim = pod("leaving");
    let origin = Origin::start(&victim, 8000).unwrap();
    let scene = Scene::begin(&MESH, "leaving", || Ok(())).unwrap();
    let ask = |path: &str| {
        let mut client = MESH.dial(victim.at(8000).unwrap()).unwrap();
        client.write_all(format!("GET {path} HTTP/1.1\r\nhost: web\r\n\r\n").as_bytes()).unwrap();
        client
    };
    let mut patient = ask("/held");
    patient.shutdown(Shutdown::Write).unwrap();
    let closes = ask("/silent");
    let resets = ask("/silent");
    // One whose body comes with the end: its request is whole.
    let mut whole = MESH.dial(victim.at(8000).unwrap()).unwrap();
    whole.write_all(b"POST /whole HTTP/1.1\r\nhost: web\r\ncontent-length: 5\r\n\r\nhello").unwrap();
    whole.shutdown(Shutdown::Write).unwrap();
    assert!(peer::read_answer(&mut whole).unwrap().0.starts_with("HTTP/1.1 200"));
    // And one whose body will never be whole.
    let mut half = MESH.dial(victim.at(8000).unwrap()).unwrap();
    half.write_all(b"POST /half HTTP/1.1\r\nhost: web\r\ncontent-length: 50\r\n\r\nhello").unwrap();
    half.shutdown(Shutdown::Write).unwrap();
    assert!(peer::read_answer(&mut half).unwrap().0.starts_with("HTTP/1.1 400"));

    MESH.wait_until("the requests to arrive", PATIENCE, || origin.requests() >= 4).unwrap();
    rustix::net::sockopt::set_socket_linger(&resets, Some(Duration::ZERO)).unwrap();
    drop(resets);
    // How long a machine answers for a process that has closed its end; a minute, unless told.
    let told = || std::fs::write("/proc/sys/net/ipv4/tcp_fin_timeout", "5");
    MESH.enter(told).unwrap().unwrap();
    MESH.wait_until("a reset to be noticed", PATIENCE, || origin.gone() == 1).unwrap();
    drop(closes);
    MESH.wait_until("a close to be noticed", 3 * PATIENCE, || origin.gone() == 2).unwrap();
    // By now a client that had gone would have been noticed: this one is there.
    origin.grant();
    assert!(peer::read_answer(&mut patient).unwrap().0.starts_with("HTTP/1.1 200"));
    assert_eq!(peer::end_of(&mut patient), End::Closed(Vec::new()));
    drop((patient, whole, half));
    scene.end().unwrap();
}

#[test]
fn header_bombs_and_endless_request_lines_cost_the_proxy_no_more_than_their_sender() {
    if !check::can_run() {
        return;
    }
    let (victim, old) = (pod("bombed"), pod(BYSTANDER));
    let (inner, outer) = (Origin::start(&victim, 8000).unwrap(), Origin::start(&old, 8020).unwrap());
    let scene = begin("bombed", 8020);
    let mut many = String::new();
    for nth in 0..101 {
        let _ = write!(many, "x-{nth}: a\r\n");
    }
    let line = "a".repeat(1 << 20);
    let bombs = [
        ("101 fields", format!("GET / HTTP/1.1\r\n{many}\r\n")),
        (
            "a megabyte of fields",
            format!("GET / HTTP/1.1\r\nhost: web\r\n{}\r\n", "x: a\r\n".repeat(1 << 18)),
        ),
        ("a field of a megabyte", format!("GET / HTTP/1.1\r\nhost: web\r\nx: {line}\r\n\r\n")),
        ("a request line of a megabyte", format!("GET /{line} HTTP/1.1\r\nhost: web\r\n\r\n")),
        ("a method of a megabyte", format!("{} / HTTP/1.1\r\nhost: web\r\n\r\n", "GET".repeat(1 << 18))),
    ];
    inner.take();
    outer.take();
    for (side, origin) in [("inbound", &inner), ("outbound", &outer)] {
        for (what, bomb) in &bombs {
            let family = format!("{side}_tcp_errors_total");
            let before = scene.count(&family, &[]);
            let cost = scene.attack(what, || {
                for _ in 0..20 {
                    let mut client = match side {
                        "inbound" => MESH.dial(victim.at(8000)?)?,
                        _ => victim.dial(old.at(8020)?)?,
                    };
                    // Detection takes what begins like this for bytes of another protocol; behind a request it is HTTP.
                    client.write_all(b"GET /first HTTP/1.1\r\nhost: web\r\n\r\n")?;
                    peer::read_answer(&mut client)?;
                    // A refused client may see its connection reset before it has written all, and before it has read.
                    let _ = client.write_all(bomb.as_bytes());
                    let mut status = [0; 12];
                    if client.read_exact(&mut status).is_ok() {
                        let status = String::from_utf8_lossy(&status).into_owned();
                        let refused =
                            ["431", "414", "400"].iter().any(|code| status == format!("HTTP/1.1 {code}"));
                        assert!(refused, "{what}, {side}: {status}");
                    }
                }
                Ok(20 * bomb.len() as u64)
            });
            cost.unwrap();
            let arrived = origin.take();
            let first = |seen: &Seen| seen.head.starts_with("GET /first ");
            assert!(arrived.len() == 20 && arrived.iter().all(first), "{what}, {side}: {arrived:#?}");
            scene.counted(&family, &[], before + 19).unwrap();
        }
    }
    scene
        .said("more header bytes or fields than REMORA_PROXY_MAX_HEADER_BYTES and REMORA_PROXY_MAX_HEADERS")
        .unwrap();
    scene.end().unwrap();
}

#[test]
fn what_is_sent_behind_an_upgrade_waits_until_it_is_granted() {
    if !check::can_run() {
        return;
    }
    let victim = pod("upgraded");
    let origin = Origin::start(&victim, 8002).unwrap();
    let scene = Scene::begin(&MESH, "upgraded", || Ok(())).unwrap();
    let dial = || MESH.dial(victim.at(8002).unwrap()).unwrap();
    let asking = "host: web\r\nconnection: upgrade\r\nupgrade: test\r\n";

    // One that is not granted: what is behind it is a request like any other, authorised and answered by itself.
    let mut refused = dial();
    let both = format!("GET /refused HTTP/1.1\r\n{asking}\r\nGET /behind HTTP/1.1\r\nhost: web\r\n\r\n");
    refused.write_all(both.as_bytes()).unwrap();
    for path in ["/refused", "/behind"] {
        assert!(peer::read_answer(&mut refused).unwrap().0.contains(&format!("x-path: {path}")));
    }
    let heads: Vec<String> = origin.take().into_iter().map(|seen| seen.head).collect();
    assert!(heads[0].starts_with("GET /refused") && heads[1].starts_with("GET /behind"), "{heads:#?}");
    let port = [("direction", "inbound"), ("target_port", "8002")];
    let counted = || scene.count("request_total", &port) == 2;
    MESH.wait_until("both to be counted as requests", PATIENCE, counted).unwrap();

    let smuggled = "GET /smuggled HTTP/1.1\r\nhost: web\r\n\r\n";
    let mut upgraded = dial();
    let early = format!("POST /upgrade HTTP/1.1\r\n{asking}content-length: 5\r\n\r\nhello{smuggled}");
    upgraded.write_all(early.as_bytes()).unwrap();
    let mut tunnel = dial();
    tunnel
        .write_all(format!("CONNECT web:8002 HTTP/1.1\r\nhost: web:8002\r\n\r\n{smuggled}").as_bytes())
        .unwrap();
    MESH.wait_until("both to arrive", PATIENCE, || origin.requests() == 2).unwrap();
    origin.grant();
    assert!(peer::read_head(&mut upgraded).unwrap().starts_with(b"HTTP/1.1 101"));
    assert!(peer::read_head(&mut tunnel).unwrap().starts_with(b"HTTP/1.1 200"));
    for client in [&mut upgraded, &mut tunnel] {
        let mut back = vec![0; smuggled.len()];
        client.read_exact(&mut back).unwrap();
        assert_eq!(String::from_utf8_lossy(&back), smuggled, "the bytes are the tunnel's");
    }
    let tunnelled = String::from_utf8(origin.tunnelled()).unwrap();
    assert_eq!(tunnelled, smuggled.repeat(2), "nothing came before the answer");
    assert!(origin.take().iter().all(|seen| !seen.head.contains("/smuggled")));
    // An upgrade to HTTP/2 would hide requests from policy: it is not passed on.
    origin.take();
    let mut h2c = dial();
    h2c.write_all(b"GET /h2c HTTP/1.1\r\nhost: web\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n\r\n").unwrap();
    assert!(peer::read_answer(&mut h2c).unwrap().0.starts_with("HTTP/1.1 200"));
    assert!(origin.take()[0].values("upgrade").is_empty());
    drop((refused, upgraded, tunnel, h2c));
    scene.end().unwrap();
}

#[test]
fn an_early_answer_leaves_nothing_of_its_request_to_the_next_one() {
    if !check::can_run() {
        return;
    }
    let victim = pod("early");
    let origin = Origin::start(&victim, 8000).unwrap();
    let scene = Scene::begin(&MESH, "early", || Ok(())).unwrap();
    let smuggled = "GET /smuggled HTTP/1.1\r\nhost: web\r\n\r\n";
    for round in 0..20 {
        let mut early = MESH.dial(victim.at(8000).unwrap()).unwrap();
        early.write_all(b"POST /early HTTP/1.1\r\nhost: web\r\ncontent-length: 4000\r\n\r\n").unwrap();
        let (head, body) = peer::read_answer(&mut early).unwrap();
        assert!(head.starts_with("HTTP/1.1 413") && body == "early", "{head}");
        // Somebody else meanwhile, who may be given a pooled connection.
        let mut other = MESH.dial(victim.at(8000).unwrap()).unwrap();
        other.write_all(format!("GET /other-{round} HTTP/1.1\r\nhost: web\r\n\r\n").as_bytes()).unwrap();
        assert!(peer::read_answer(&mut other).unwrap().0.contains(&format!("x-path: /other-{round}\r\n")));
        let body = smuggled.repeat(4000 / smuggled.len() + 1);
        let rest = format!("{}GET /next-{round} HTTP/1.1\r\nhost: web\r\n\r\n", &body[..4000]);
        // Either the connection is closed, or what follows the body is the next request.
        let _ = early.write_all(rest.as_bytes());
        if let Ok((head, _)) = peer::read_answer(&mut early) {
            assert!(head.contains(&format!("x-path: /next-{round}\r\n")), "{head}");
        }
    }
    let seen = origin.take();
    assert!(!seen.iter().any(|seen| seen.head.starts_with("GET /smuggled")), "{seen:#?}");
    assert!(seen.iter().filter(|seen| seen.head.starts_with("GET /other")).count() == 20);
    scene.end().unwrap();
}

#[test]
fn interim_answers_and_bodies_that_must_not_be_never_become_another_requests_answer() {
    if !check::can_run() {
        return;
    }
    let victim = pod("interim");
    let origin = Origin::start(&victim, 8000).unwrap();
    let scene = Scene::begin(&MESH, "interim", || Ok(())).unwrap();
    let ask = |client: &mut TcpStream, method: &str, path: &str| {
        let request = format!("{method} {path} HTTP/1.1\r\nhost: web\r\n\r\n");
        client.write_all(request.as_bytes()).unwrap();
        String::from_utf8(peer::read_head(client).unwrap()).unwrap()
    };
    let flood = scene.attack("interim answers", || {
        for _ in 0..3 {
            let mut client = MESH.dial(victim.at(8000)?)?;
            let head = ask(&mut client, "GET", "/interim");
            assert!(head.starts_with("HTTP/1.1 200") && head.contains("x-path: /interim"), "{head}");
        }
        // They are the application's: what it sent is not this thread's.
        Ok(3 * 40 * remora_tests::origin::MANY as u64)
    });
    // The application's threads do the flooding, so that this thread's time says nothing of its cost.
    if let Err(error) = flood {
        assert!(format!("{error:#}").contains("CPU is amplified"), "{error:#}");
    }
    for round in 0..20 {
        let mut client = MESH.dial(victim.at(8000).unwrap()).unwrap();
        for (method, path, status) in
            [("GET", "/bodies/204", "204"), ("GET", "/bodies/304", "304"), ("HEAD", "/bodies/head", "200")]
        {
            let head = ask(&mut client, method, path);
            assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{path}: {head}");
            let next = format!("/next-{round}");
            let head = ask(&mut client, "GET", &next);
            assert!(head.contains(&format!("x-path: {next}\r\n")), "after {path}: {head}");
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
            client.read_exact(&mut vec![0; length.parse().unwrap()]).unwrap();
        }
    }
    drop(origin);
    scene.end().unwrap();
}

#[test]
fn targets_that_are_no_paths_are_answered_and_break_nothing() {
    if !check::can_run() {
        return;
    }
    let victim = pod("strange");
    let origin = Origin::start(&victim, 8003).unwrap();
    let scene = Scene::begin(&MESH, "strange", || Ok(())).unwrap();
    let ask = |request: &str| {
        let mut client = MESH.dial(victim.at(8003).unwrap()).unwrap();
        client.write_all(request.as_bytes()).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        match peer::end_of(&mut client) {
            End::Closed(answer) => String::from_utf8_lossy(&answer).into_owned(),
            End::Open(answer) => panic!("{request:?}: open after {:?}", String::from_utf8_lossy(&answer)),
        }
    };
    origin.grant();
    for (target, expected) in [
        ("OPTIONS *", "200"),
        ("GET *", ""),
        ("CONNECT /", ""),
        ("CONNECT *", ""),
        ("CONNECT :", ""),
        ("CONNECT web", ""),
        ("CONNECT http://web/", ""),
        ("GET http://", ""),
        ("GET http:///path", ""),
        ("GET http://web:99999/", ""),
        ("GET //web//x", "200"),
        ("GET hTTp://WEB/x", "200"),
        ("GET [::1]", ""),
        ("GET http://[fe80::1%25eth0]/", ""),
        ("GET ?x", ""),
        ("GET /a#b", ""),
    ] {
        let answer = ask(&format!("{target} HTTP/1.1\r\nhost: web\r\n\r\n"));
        assert!(answer.starts_with("HTTP/1.1 "), "{target}: {answer:?}");
        assert!(answer.starts_with(&format!("HTTP/1.1 {expected}")), "{target}: {answer:?}");
    }
    let scheme = origin.take().into_iter().find(|seen| seen.head.to_lowercase().contains("://web/x"));
    assert!(scheme.is_none_or(|seen| seen.head.starts_with("GET http://")), "a scheme is lower case");
    assert_eq!(victim.restarts("linkerd-proxy"), 0);
    let panics = victim.metrics().unwrap().count("remora_panics_total", &[]);
    assert_eq!(panics, 0);
    scene.end().unwrap();
}

/// A victim that has served a request to its application's port 8000, and sent one to this port of the bystander.
fn begin(victim: &str, outbound: u16) -> Scene<'static> {
    let (pod, old) = (pod(victim), pod(BYSTANDER));
    let as_attacked = || {
        for mut client in [MESH.dial(pod.at(8000)?)?, pod.dial(old.at(outbound)?)?] {
            client.write_all(b"GET /warm HTTP/1.1\r\nhost: web\r\n\r\n")?;
            peer::read_answer(&mut client)?;
        }
        Ok(())
    };
    Scene::begin(&MESH, victim, as_attacked).unwrap()
}

fn pod(name: &str) -> PodRef<'static> {
    MESH.pod(SHOP, name).unwrap()
}

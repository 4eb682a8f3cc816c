//! Hostile frames of HTTP/2: a flood ends its connection and costs the proxy no more than ten times what it costs the
//! flooder; a message that contradicts itself never reaches the application.
#![expect(
    clippy::items_after_statements,
    clippy::too_many_lines,
    clippy::unwrap_used,
    reason = "a test says what it expects where it stands"
)]

use std::collections::BTreeMap;
use std::io::{self, BufWriter, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use remora_tests::attack::{self, BYSTANDER, Scene};
use remora_tests::frames::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM, GOAWAY, HEADERS, PING, PRIORITY,
    PUSH_PROMISE, RST_STREAM, SETTINGS, WINDOW_UPDATE, field, frame, headers, hello, raw_field, read,
    read_until, remembered, request, settings, short_request,
};
use remora_tests::origin::Origin;
use remora_tests::peer::{self, PATIENCE};
use remora_tests::shop::{self, SHOP};
use remora_tests::{App, Mesh, PodRef, check};

/// Bytes that a flooder hands to its kernel at once: a frame has to be made before it is sent, and sent.
const BATCH: usize = 4096;
const INITIAL_WINDOW: u16 = 4;
const TABLE_SIZE: u16 = 1;
/// A server resets so many streams for errors of its client before it ends the connection (h2's default).
const LOCAL_RESETS: usize = 1024;

static MESH: LazyLock<Mesh> = LazyLock::new(|| {
    attack::open(&[
        shop::idle("flooded", &[]),
        shop::idle("reset", &[]),
        shop::idle("bombed", &[]),
        shop::idle("framed", &[]),
        shop::idle("answered", &[]),
        shop::idle("asking", &[]),
    ])
    .unwrap()
});

/// A connection whose answers are read by a thread of its own, so that the flood never waits for its reader.
struct Flood {
    writer: BufWriter<TcpStream>,
    sent: u64,
    /// Streams that were answered 431 or reset so far; all there are when the connection has ended.
    refused: Arc<AtomicUsize>,
    reader: JoinHandle<Ending>,
}

/// How a connection ended.
#[derive(Debug, Default)]
struct Ending {
    /// The code of the last GOAWAY.
    goaway: Option<u32>,
    /// Frames that came, by kind.
    frames: BTreeMap<u8, usize>,
    statuses: Vec<u16>,
}

impl Flood {
    fn begin(victim: &PodRef<'_>, values: &[(u16, u32)]) -> Self {
        let mut flood = Self::over(MESH.dial(victim.at(8000).unwrap()).unwrap());
        flood.send(&hello(values)).unwrap();
        flood.send(&frame(SETTINGS, ACK, 0, &[])).unwrap();
        flood
    }

    /// By either side, on a connection that has begun.
    fn over(tcp: TcpStream) -> Self {
        let mut from = tcp.try_clone().unwrap();
        let refused = Arc::<AtomicUsize>::default();
        let counted = refused.clone();
        let reader = std::thread::spawn(move || {
            let mut ending = Ending::default();
            while let Ok(Some(frame)) = read(&mut from) {
                *ending.frames.entry(frame.kind).or_default() += 1;
                ending.statuses.extend(frame.status());
                if frame.kind == RST_STREAM || frame.status() == Some(431) {
                    counted.fetch_add(1, Ordering::Relaxed);
                }
                if frame.kind == GOAWAY {
                    ending.goaway = frame.code();
                }
            }
            counted.store(usize::MAX, Ordering::Relaxed);
            ending
        });
        Self { writer: BufWriter::with_capacity(BATCH, tcp), sent: 0, refused, reader }
    }

    /// An error: the other side has ended the connection.
    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.sent += bytes.len() as u64;
        self.writer.write_all(bytes)
    }

    /// Sends what `frames` makes of each number, until `count` or the connection's end.
    fn run(&mut self, count: u32, frames: impl Fn(u32) -> Vec<u8>) {
        for nth in 0..count {
            if self.send(&frames(nth)).is_err() {
                return;
            }
        }
        let _ = self.writer.flush();
    }

    /// Says no more, and waits until the proxy has ended the connection: it has then read everything.
    fn end(mut self) -> (u64, Ending) {
        let _ = self.writer.flush();
        let _ = self.writer.get_ref().shutdown(Shutdown::Write);
        (self.sent, self.reader.join().unwrap())
    }
}

/// The number of the nth stream of a client.
fn stream(nth: u32) -> u32 {
    2 * nth + 1
}

/// An ordinary request over HTTP/2, before the attack and after it.
fn ask(victim: &PodRef<'_>) -> anyhow::Result<()> {
    ask_from(MESH.dial(victim.at(8000)?)?)
}

fn ask_from(mut client: TcpStream) -> anyhow::Result<()> {
    client.write_all(&[hello(&[]), headers(1, true, &short_request())].concat())?;
    let answer = read_until(&mut client, |frame| frame.kind == HEADERS && frame.stream == 1)?;
    anyhow::ensure!(answer.status() == Some(200), "{answer:?}");
    Ok(())
}

fn begin<'a>(victim: &str, _app: &App) -> Scene<'a> {
    let pod = pod(victim);
    Scene::begin(&MESH, victim, || ask(&pod)).unwrap()
}

#[test]
fn a_flood_of_frames_that_carry_nothing_ends_or_costs_less_than_it_costs_the_flooder() {
    if !check::can_run() {
        return;
    }
    let victim = pod("flooded");
    let app = App::start(&victim, 8000, "app").unwrap();
    let scene = begin("flooded", &app);
    let flood = [("error", "http/2 flood")];
    // What is only bytes on the way: acknowledged or not, and nothing remembered.
    type Frames = fn(u32) -> Vec<u8>;
    let floods: [(&str, u32, Frames); 6] = [
        ("PING", 2_000_000, |nth| frame(PING, 0, 0, &u64::from(nth).to_be_bytes())),
        ("SETTINGS", 1_000_000, |nth| settings(&[(INITIAL_WINDOW, 65_535 + nth % 2)])),
        ("empty SETTINGS", 2_000_000, |_| settings(&[])),
        ("PRIORITY", 2_000_000, |nth| frame(PRIORITY, 0, stream(nth), &[0, 0, 0, 0, 15])),
        ("WINDOW_UPDATE in drops", 2_000_000, |_| frame(WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes())),
        ("unknown frames", 2_000_000, |_| frame(0xbe, 0, 0, b"nothing")),
    ];
    for (what, count, frames) in floods {
        let cost = scene.attack(what, || {
            let mut connection = Flood::begin(&victim, &[]);
            connection.run(count, frames);
            let (sent, ending) = connection.end();
            println!("{what}: {ending:?}");
            Ok(sent)
        });
        println!("{what}: {:?}", cost.unwrap());
    }

    // Empty DATA of a request whose body nobody reads, and DATA of one byte: h2 ends the connection.
    for (what, payload) in [("empty DATA", &b""[..]), ("DATA of a byte", b"x")] {
        let before = scene.count("inbound_tcp_errors_total", &flood);
        let cost = scene.attack(what, || {
            let mut connection = Flood::begin(&victim, &[]);
            connection.send(&headers(1, false, &request("POST", "/hold")))?;
            connection.run(200_000, |_| frame(DATA, 0, 1, payload));
            let (sent, ending) = connection.end();
            anyhow::ensure!(ending.goaway == Some(ENHANCE_YOUR_CALM) || payload == b"x", "{ending:?}");
            Ok(sent)
        });
        println!("{what}: {:?}", cost.unwrap());
        if payload.is_empty() {
            scene.counted("inbound_tcp_errors_total", &flood, before).unwrap();
        }
    }

    let before = scene.count("inbound_tcp_errors_total", &flood);
    for (what, piece) in [("CONTINUATION", field("x", "a")), ("empty CONTINUATION", Vec::new())] {
        let cost = scene.attack(what, || {
            let mut sent = 0;
            for _ in 0..20 {
                let mut connection = Flood::begin(&victim, &[]);
                connection.send(&frame(HEADERS, END_STREAM, 1, &request("GET", "/")))?;
                connection.run(100_000, |_| frame(CONTINUATION, 0, 1, &piece));
                let (bytes, ending) = connection.end();
                anyhow::ensure!(ending.goaway == Some(ENHANCE_YOUR_CALM), "{ending:?}");
                anyhow::ensure!(bytes < 1 << 20, "it was read on: {bytes} bytes");
                sent += bytes;
            }
            Ok(sent)
        });
        println!("{what}: {:?}", cost.unwrap());
    }
    scene.counted("inbound_tcp_errors_total", &flood, before + 39).unwrap();
    scene
        .said("the client reset streams or sent empty frames more often than HTTP/2's limits allow")
        .unwrap();
    ask(&victim).unwrap();
    scene.end().unwrap();
}

#[test]
fn streams_that_are_reset_as_fast_as_they_are_opened_end_their_connection() {
    if !check::can_run() {
        return;
    }
    let victim = pod("reset");
    let app = App::start(&victim, 8000, "app").unwrap();
    let scene = begin("reset", &app);
    let label = [("error", "http/2 flood")];
    let before = scene.count("inbound_tcp_errors_total", &label);
    let requests = app.requests();

    // The client resets: with a fast server, and with one that never answers.
    for path in ["/", "/hold"] {
        let cost = scene.attack(&format!("rapid reset of {path}"), || {
            let mut connection = Flood::begin(&victim, &[]);
            let block = request("GET", path);
            connection.run(100_000, |nth| {
                let reset = frame(RST_STREAM, 0, stream(nth), &8_u32.to_be_bytes());
                [headers(stream(nth), true, &block), reset].concat()
            });
            let (sent, ending) = connection.end();
            anyhow::ensure!(ending.goaway == Some(ENHANCE_YOUR_CALM), "{ending:?}");
            Ok(sent)
        });
        println!("rapid reset: {:?}", cost.unwrap());
    }
    scene.counted("inbound_tcp_errors_total", &label, before + 1).unwrap();
    assert!(app.requests() - requests < 1000, "{} requests arrived", app.requests() - requests);

    // The client makes the server reset: by a window update of nothing, by data behind the end, by a length that is
    // exceeded; with a window that lets no answer out.
    let requests = app.requests();
    for what in ["no window", "DATA behind the end", "too much DATA"] {
        let cost = scene.attack(what, || {
            let mut connection = Flood::begin(&victim, &[(INITIAL_WINDOW, 0)]);
            let open = request("POST", "/hold");
            let short = [request("POST", "/hold"), field("content-length", "1")].concat();
            connection.run(100_000, |nth| {
                let id = stream(nth);
                match what {
                    "no window" => [headers(id, false, &open), frame(WINDOW_UPDATE, 0, id, &[0; 4])].concat(),
                    "DATA behind the end" => [headers(id, true, &open), frame(DATA, 0, id, b"x")].concat(),
                    _ => [headers(id, false, &short), frame(DATA, 0, id, b"xx")].concat(),
                }
            });
            let (sent, ending) = connection.end();
            let resets = ending.frames.get(&RST_STREAM).copied().unwrap_or(0);
            println!("{what}: {ending:?}");
            anyhow::ensure!(
                ending.goaway.is_some_and(|code| code != 0),
                "the connection goes on: {ending:?}"
            );
            anyhow::ensure!(resets <= LOCAL_RESETS + 200, "{resets} resets");
            Ok(sent)
        });
        println!("{what}: {:?}", cost.unwrap());
    }
    assert!(
        app.requests() - requests <= 3 * (LOCAL_RESETS + 200),
        "{} requests arrived",
        app.requests() - requests
    );
    ask(&victim).unwrap();
    scene.end().unwrap();
}

#[test]
fn header_blocks_that_unpack_to_a_multiple_are_refused_and_pin_no_memory() {
    if !check::can_run() {
        return;
    }
    let victim = pod("bombed");
    let app = App::start(&victim, 8000, "app").unwrap();
    let scene = begin("bombed", &app);
    let limit = [("error", "header limit")];
    let before = scene.count("inbound_http_errors_total", &limit);

    // A little too much is answered by the proxy, which counts it and says why in its log.
    let mut client = MESH.dial(victim.at(8000).unwrap()).unwrap();
    client.write_all(&hello(&[])).unwrap();
    for (id, bytes) in [(1, 12_000), (3, 70_000), (5, 10)] {
        let block = [request("GET", "/"), field("x", &"a".repeat(bytes))].concat();
        let (first, rest) = block.split_at(block.len().min(16_000));
        let last = if rest.is_empty() { END_HEADERS } else { 0 };
        client.write_all(&frame(HEADERS, END_STREAM | last, id, first)).unwrap();
        let pieces: Vec<&[u8]> = rest.chunks(16_000).collect();
        for (nth, piece) in pieces.iter().enumerate() {
            let flags = if nth + 1 == pieces.len() { END_HEADERS } else { 0 };
            client.write_all(&frame(CONTINUATION, flags, id, piece)).unwrap();
        }
        let answer = read_until(&mut client, |frame| frame.kind == HEADERS && frame.stream == id).unwrap();
        assert_eq!(answer.status(), Some(if bytes == 70_000 { 431 } else { 200 }), "{bytes} bytes");
    }
    scene.counted("inbound_http_errors_total", &limit, before).unwrap();
    scene
        .said("REMORA_PROXY_MAX_HEADER_BYTES (65536) and REMORA_PROXY_MAX_HEADERS (100) allow less")
        .unwrap();

    // Far too much of it: a byte on the wire is a field of four kilobytes, or one that is nearly nothing. Two of them are
    // just within the limits: they are requests like others, and as many as may be under way.
    const STREAMS: usize = 150;
    let value = "a".repeat(4000);
    for (what, remember, references, is_refused) in [
        ("large fields", remembered("x", &value), 15, false),
        ("too many large fields", remembered("x", &value), 4000, true),
        ("as many empty fields as may be", remembered("x", ""), 95, false),
        ("empty fields", remembered("x", ""), 1900, true),
        ("too many empty fields", remembered("x", ""), 12_000, true),
        ("cookie crumbs", remembered("cookie", "a"), 1500, true),
    ] {
        let requests = app.requests();
        let ordinary = || {
            let mut client = MESH.dial(victim.at(8000)?)?;
            let mut bytes = hello(&[]);
            let mut sent = 0;
            // Each waits for the one before: a client that says no more is not answered over HTTP/2.
            for nth in 0..100 {
                bytes.extend(headers(stream(nth), true, &request("GET", "/")));
                client.write_all(&bytes)?;
                sent += bytes.len() as u64;
                bytes.clear();
                read_until(&mut client, |frame| frame.kind == HEADERS && frame.stream == stream(nth))?;
            }
            Ok(sent)
        };
        let cost = scene.replay(what, ordinary, || {
            let mut sent = 0;
            for _ in 0..5 {
                // No window for the answers: what is kept for them stays. No table for them either, so that their
                // statuses can be read.
                let mut connection = Flood::begin(&victim, &[(INITIAL_WINDOW, 0), (TABLE_SIZE, 0)]);
                connection.send(&headers(1, true, &[request("GET", "/hold"), remember.clone()].concat()))?;
                let mut block = request("GET", "/hold");
                block.resize(block.len() + references, 0x80 | 0x3e);
                connection.run(STREAMS as u32, |nth| headers(stream(nth + 1), true, &block));
                // Whoever says no more is not answered over HTTP/2.
                let refused = || !is_refused || connection.refused.load(Ordering::Relaxed) >= STREAMS;
                let waited = MESH.wait_until("each to be refused", PATIENCE, refused);
                let (bytes, ending) = connection.end();
                println!("{what}: {:?} {:?}", ending.goaway, ending.frames);
                waited.with_context(|| format!("{what}: {ending:?}"))?;
                let too_large = ending.statuses.iter().filter(|status| **status == 431).count();
                let resets = ending.frames.get(&RST_STREAM).copied().unwrap_or(0);
                let ended = ending.goaway.is_some_and(|code| code != 0);
                let each = ended || too_large + resets >= STREAMS;
                anyhow::ensure!(if is_refused { each } else { too_large == 0 }, "{what}: {ending:?}");
                sent += bytes;
            }
            Ok(sent)
        });
        println!("{what}: {:?}", cost.unwrap());
        println!("counted {}", scene.count("inbound_http_errors_total", &limit));
        // A hundred ordinary ones, and of each connection the first, which only says what the others refer to.
        let arrived = app.requests() - requests;
        assert!(!is_refused || arrived <= 105, "{what}: {arrived} requests arrived");
    }

    // A table that the client resizes, an integer without end, a reference to nothing.
    for (what, block) in [
        ("an integer without end", [vec![0xff], vec![0xff; 40]].concat()),
        ("a reference to nothing", vec![0x82, 0x86, 0x84, 0xfe]),
        ("a table of 4 GiB", vec![0x3f, 0xe1, 0xff, 0xff, 0xff, 0x0f, 0x82]),
        ("a string that is longer than its block", vec![0x82, 0x00, 0x7f, 0xff, 0x01]),
        ("Huffman's code with its end mark", vec![0x82, 0x00, 0x84, 0xff, 0xff, 0xff, 0xff, 0x00]),
    ] {
        let cost = scene.attack(what, || {
            let mut connection = Flood::begin(&victim, &[]);
            connection.send(&headers(1, true, &block))?;
            let (sent, ending) = connection.end();
            anyhow::ensure!(ending.goaway.is_some_and(|code| code != 0), "{ending:?}");
            Ok(sent)
        });
        cost.unwrap();
    }
    ask(&victim).unwrap();
    scene.end().unwrap();
}

#[test]
fn an_http2_message_that_contradicts_itself_reaches_nobody() {
    if !check::can_run() {
        return;
    }
    let victim = pod("framed");
    let app = App::start(&victim, 8000, "app").unwrap();
    let old = Origin::start(&victim, 8001).unwrap();
    let scene = begin("framed", &app);
    let own = MESH.certify(&shop::identity("framer")).unwrap();
    let began = std::time::Instant::now();
    let config = peer::client(MESH.root(), Some(&own), &[]).unwrap();
    for (what, id_frames) in contradictions() {
        println!("{what} at {:?}", began.elapsed());
        let requests = app.requests();
        let outcome = scene.attack(what, || {
            // To an application that speaks HTTP/2 itself,
            let mut client = MESH.dial(victim.at(8000)?)?;
            client.write_all(&hello(&[]))?;
            // What is refused by its first bytes is not always written to its last.
            let _ = client.write_all(&id_frames(&[]));
            refused(what, &mut client);
            // and as another proxy carries HTTP/1, to one that does not.
            let tcp = MESH.dial(victim.at(8001)?)?;
            let name = rustls::pki_types::ServerName::try_from(shop::identity("framed"))?;
            let session = rustls::ClientConnection::new(config.clone(), name)?;
            let mut tls = rustls::StreamOwned::new(session, tcp);
            tls.write_all(&hello(&[]))?;
            let _ = tls.write_all(&id_frames(&field("l5d-orig-proto", "HTTP/1.1")));
            refused(what, &mut tls);
            Ok(2000)
        });
        outcome.unwrap();
        assert_eq!(app.requests(), requests, "{what}: it arrived");
        let whole: Vec<_> =
            old.take().into_iter().filter(|seen| !seen.head.starts_with("no request")).collect();
        assert_eq!(whole, [], "{what}: it arrived as HTTP/1");
    }
    // The control: the same without a contradiction arrives, by either way.
    ask(&victim).unwrap();
    let tcp = MESH.dial(victim.at(8001).unwrap()).unwrap();
    let name = rustls::pki_types::ServerName::try_from(shop::identity("framed")).unwrap();
    let mut tls = rustls::StreamOwned::new(rustls::ClientConnection::new(config, name).unwrap(), tcp);
    let block = [
        request("POST", "/whole"),
        field("l5d-orig-proto", "HTTP/1.1"),
        field("cookie", "a=b"),
        field("cookie", "c=d"),
        field("content-length", "5"),
    ];
    tls.write_all(&hello(&[])).unwrap();
    tls.write_all(&headers(1, false, &block.concat())).unwrap();
    tls.write_all(&frame(DATA, END_STREAM, 1, b"hello")).unwrap();
    let answer = read_until(&mut tls, |frame| frame.kind == HEADERS).unwrap();
    assert_eq!(answer.status(), Some(200));
    let seen = old.take();
    assert_eq!((seen.len(), seen[0].body.as_slice()), (1, &b"hello"[..]), "{seen:#?}");
    assert_eq!(seen[0].values("host"), ["web"]);

    // Trailers that say what was decided before are not passed on, or their message is not.
    let block =
        [request("POST", "/late"), field("l5d-orig-proto", "HTTP/1.1"), field("te", "trailers")].concat();
    let late =
        [field(":path", "/other"), field("host", "other"), field("content-length", "9"), field("x-sum", "5")];
    tls.write_all(&headers(3, false, &block)).unwrap();
    tls.write_all(&frame(DATA, 0, 3, b"hello")).unwrap();
    tls.write_all(&headers(3, true, &late.concat())).unwrap();
    read_until(&mut tls, |frame| frame.stream == 3 && matches!(frame.kind, HEADERS | RST_STREAM)).unwrap();
    for seen in old.take() {
        let said = format!("{}{}", seen.head, seen.trailers).to_lowercase();
        assert!(!said.contains("other") && !said.contains("content-length"), "{said}");
    }
    scene.end().unwrap();
}

/// A stream that is reset, an answer of 400, or the connection's end: whatever it is, no success.
#[track_caller]
fn refused(what: &str, client: &mut (impl Read + Write)) {
    let verdict = read_until(client, |frame| {
        frame.kind == RST_STREAM || frame.kind == GOAWAY && frame.code() != Some(0) || frame.kind == HEADERS
    });
    match verdict {
        Ok(frame) if frame.kind == HEADERS => {
            assert!(matches!(frame.status(), Some(400 | 431)), "{what}: {frame:?}");
        }
        Ok(_) => {}
        Err(error) => {
            let error = format!("{error:#}");
            let ends = ["ended after", "Broken pipe", "Connection reset"];
            assert!(ends.iter().any(|end| error.contains(end)), "{what}: {error}");
        }
    }
}

type Contradiction = fn(&[u8]) -> Vec<u8>;

/// Messages that are malformed by RFC 9113 section 8, as the frames of stream 1; each is given further fields.
fn contradictions() -> Vec<(&'static str, Contradiction)> {
    fn get(more: &[u8], fields: &[Vec<u8>]) -> Vec<u8> {
        headers(1, true, &[&request("GET", "/x"), more, &fields.concat()].concat())
    }
    fn post(more: &[u8], length: &str) -> Vec<u8> {
        headers(1, false, &[&request("POST", "/x"), more, &field("content-length", length)].concat())
    }
    fn pseudo(more: &[u8], fields: &[(&str, &str)]) -> Vec<u8> {
        let block: Vec<u8> = fields.iter().flat_map(|(name, value)| field(name, value)).collect();
        headers(1, true, &[&block, more].concat())
    }
    vec![
        ("a length and no body", |more| get(more, &[field("content-length", "5")])),
        ("less DATA than the length", |more| [post(more, "5"), frame(DATA, END_STREAM, 1, b"hell")].concat()),
        ("more DATA than the length", |more| {
            [post(more, "5"), frame(DATA, END_STREAM, 1, b"hello!")].concat()
        }),
        ("two lengths", |more| {
            let block =
                [&request("POST", "/x"), more, &field("content-length", "5"), &field("content-length", "6")];
            [headers(1, false, &block.concat()), frame(DATA, END_STREAM, 1, b"hello")].concat()
        }),
        ("a length with a sign", |more| [post(more, "+5"), frame(DATA, END_STREAM, 1, b"hello")].concat()),
        ("a length of 2^64 - 1", |more| {
            [post(more, "18446744073709551615"), frame(DATA, END_STREAM, 1, b"hello")].concat()
        }),
        ("trailers that do not end the stream", |more| {
            let trailers = frame(HEADERS, END_HEADERS, 1, &field("x", "y"));
            [post(more, "5"), frame(DATA, 0, 1, b"hello"), trailers].concat()
        }),
        ("connection", |more| get(more, &[field("connection", "close")])),
        ("transfer-encoding", |more| {
            let block = [&request("POST", "/x"), more, &field("transfer-encoding", "chunked")].concat();
            [headers(1, false, &block), frame(DATA, END_STREAM, 1, b"0\r\n\r\n")].concat()
        }),
        ("upgrade", |more| get(more, &[field("upgrade", "websocket")])),
        ("keep-alive", |more| get(more, &[field("keep-alive", "5")])),
        ("proxy-connection", |more| get(more, &[field("proxy-connection", "close")])),
        ("te without trailers", |more| get(more, &[field("te", "gzip")])),
        ("an upper-case name", |more| get(more, &[field("X-Upper", "a")])),
        ("CRLF in a value", |more| get(more, &[field("x", "a\r\nhost: other")])),
        ("NUL in a value", |more| get(more, &[field("x", "a\0b")])),
        ("CRLF in a name", |more| get(more, &[raw_field(0, b"x\r\ny", b"a")])),
        ("a space in a name", |more| get(more, &[raw_field(0, b"x y", b"a")])),
        ("a name without letters", |more| get(more, &[raw_field(0, b"", b"a")])),
        ("a pseudo-header field behind others", |more| get(more, &[field("x", "y"), field(":path", "/y")])),
        ("two paths", |more| get(more, &[field(":path", "/y")])),
        ("an unknown pseudo-header field", |more| {
            let fields = [
                (":method", "GET"),
                (":scheme", "http"),
                (":path", "/x"),
                (":authority", "web"),
                (":x", "y"),
            ];
            pseudo(more, &fields)
        }),
        ("no method", |more| pseudo(more, &[(":scheme", "http"), (":path", "/x"), (":authority", "web")])),
        ("an empty method", |more| {
            pseudo(more, &[(":method", ""), (":scheme", "http"), (":path", "/x"), (":authority", "web")])
        }),
        ("a method with a space", |more| {
            pseudo(
                more,
                &[(":method", "GET /y"), (":scheme", "http"), (":path", "/x"), (":authority", "web")],
            )
        }),
        ("no path", |more| pseudo(more, &[(":method", "GET"), (":scheme", "http"), (":authority", "web")])),
        ("an empty path", |more| {
            pseudo(more, &[(":method", "GET"), (":scheme", "http"), (":path", ""), (":authority", "web")])
        }),
        ("a path without a slash", |more| {
            pseudo(more, &[(":method", "GET"), (":scheme", "http"), (":path", "x"), (":authority", "web")])
        }),
        ("a path with CRLF", |more| {
            let path = "/ HTTP/1.1\r\nhost: other\r\n\r\nGET /smuggled";
            pseudo(more, &[(":method", "GET"), (":scheme", "http"), (":path", path), (":authority", "web")])
        }),
        ("an authority with CRLF", |more| {
            pseudo(
                more,
                &[(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "web\r\nx: y")],
            )
        }),
        ("a status in a request", |more| {
            pseudo(more, &[(":method", "GET"), (":scheme", "http"), (":path", "/x"), (":status", "200")])
        }),
        ("a host that is not the authority", |more| get(more, &[field("host", "other")])),
        ("two hosts", |more| get(more, &[field("host", "web"), field("host", "web")])),
        ("CONNECT", |more| pseudo(more, &[(":method", "CONNECT"), (":authority", "web:80")])),
        ("CONNECT with a path", |more| {
            pseudo(
                more,
                &[(":method", "CONNECT"), (":scheme", "http"), (":path", "/x"), (":authority", "web")],
            )
        }),
        ("extended CONNECT, not offered", |more| {
            let fields = [
                (":method", "CONNECT"),
                (":protocol", "websocket"),
                (":scheme", "http"),
                (":path", "/x"),
                (":authority", "web"),
            ];
            pseudo(more, &fields)
        }),
        ("a window that overflows", |more| {
            let update = frame(WINDOW_UPDATE, 0, 1, &0x7fff_ffff_u32.to_be_bytes());
            [post(more, "5"), update.clone(), update].concat()
        }),
        ("an even stream", |more| headers(2, true, &[&request("GET", "/x"), more].concat())),
        ("a frame that is too large", |_| frame(DATA, 0, 1, &vec![0; 1 << 20])),
        ("padding that is longer than its frame", |_| frame(DATA, 8, 1, &[255, 0])),
    ]
}

#[test]
fn an_answer_of_a_server_that_floods_or_goes_away_leaves_nothing_behind() {
    if !check::can_run() {
        return;
    }
    let (client, old) = (pod("answered"), pod(BYSTANDER));
    // What a proxy needs to ask who is behind an address stays.
    let app = App::start(&old, 8005, "app").unwrap();
    let as_attacked = || ask_from(client.dial(old.at(8005)?)?);
    let scene = Scene::begin(&MESH, "answered", as_attacked).unwrap();
    drop(app);
    let listener = old.listen(8004).unwrap();
    std::thread::spawn(move || {
        for mut connection in listener.incoming().flatten() {
            std::thread::spawn(move || -> io::Result<()> {
                connection.set_read_timeout(Some(PATIENCE))?;
                let mut preface = [0; 24];
                connection.read_exact(&mut preface)?;
                // No stream may be open, and yet one is answered with interim answers, reset, and answered again.
                connection.write_all(&settings(&[(3, 0)]))?;
                let asked = read_until(&mut connection, |frame| frame.kind == HEADERS)?;
                for _ in 0..10_000 {
                    connection.write_all(&frame(HEADERS, END_HEADERS, asked.stream, b"\x08\x03103"))?;
                }
                let mut away = asked.stream.to_be_bytes().to_vec();
                away.extend(0_u32.to_be_bytes());
                connection.write_all(&frame(GOAWAY, 0, 0, &away))?;
                connection.write_all(&frame(RST_STREAM, 0, asked.stream, &8_u32.to_be_bytes()))?;
                for _ in 0..1000 {
                    connection.write_all(&frame(RST_STREAM, 0, asked.stream, &8_u32.to_be_bytes()))?;
                }
                Ok(())
            });
        }
    });
    for _ in 0..5 {
        let mut asking = client.dial(old.at(8004).unwrap()).unwrap();
        asking.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        asking.write_all(&[hello(&[]), headers(1, true, &short_request())].concat()).unwrap();
        let answer = read_until(&mut asking, |frame| {
            frame.stream == 1 && (frame.kind == RST_STREAM || frame.kind == HEADERS)
        })
        .unwrap();
        assert!(
            answer.kind == RST_STREAM || answer.status().is_some_and(|status| status >= 500),
            "{answer:?}"
        );
    }
    assert_eq!(client.restarts("linkerd-proxy"), 0);
    scene.end().unwrap();
}

#[test]
fn a_server_that_floods_the_proxy_that_asks_it_loses_its_connection_or_pays_for_it() {
    if !check::can_run() {
        return;
    }
    let (client, old) = (pod("asking"), pod(BYSTANDER));
    let app = App::start(&old, 8006, "app").unwrap();
    let as_attacked = || ask_from(client.dial(old.at(8006)?)?);
    let scene = Scene::begin(&MESH, "asking", as_attacked).unwrap();
    drop(app);
    let listener = old.listen(8007).unwrap();
    listener.set_nonblocking(true).unwrap();
    /// The first frame of a server on a stream, the nth of those that follow, and how many.
    type Hostile = (&'static str, fn(u32) -> Vec<u8>, fn(u32, u32) -> Vec<u8>, u32, Ends);
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Ends {
        /// The connection, long before all of it was sent.
        Soon,
        /// The request at least.
        Request,
        /// Nothing need end: it costs the server what it costs the proxy.
        Nothing,
    }
    let nothing = |_: u32| Vec::new();
    let answer = |id: u32| headers(id, false, OK);
    let rows: [Hostile; 10] = [
        (
            "CONTINUATION",
            |id| frame(HEADERS, 0, id, OK),
            |id, _| frame(CONTINUATION, 0, id, &field("x", "a")),
            200_000,
            Ends::Soon,
        ),
        (
            "empty CONTINUATION",
            |id| frame(HEADERS, 0, id, OK),
            |id, _| frame(CONTINUATION, 0, id, b""),
            200_000,
            Ends::Soon,
        ),
        ("empty DATA", answer, |id, _| frame(DATA, 0, id, b""), 500_000, Ends::Soon),
        (
            "a head of 16 MB in 8 KB",
            |id| headers(id, false, &bomb("x", &"a".repeat(4000), 4000)),
            |_, _| Vec::new(),
            0,
            Ends::Request,
        ),
        (
            "a head of 12 000 empty fields",
            |id| headers(id, false, &bomb("x", "", 12_000)),
            |_, _| Vec::new(),
            0,
            Ends::Request,
        ),
        (
            "trailers of 16 MB in 8 KB",
            answer,
            |id, _| headers(id, true, &bomb("x", &"a".repeat(4000), 4000)[1..]),
            1,
            Ends::Request,
        ),
        (
            "a promise of what nobody wants",
            nothing,
            |id, _| frame(PUSH_PROMISE, END_HEADERS, id, &[&[0, 0, 0, 2], &short_request()[..]].concat()),
            1,
            Ends::Request,
        ),
        ("interim answers", nothing, |id, _| headers(id, false, b"\x08\x03103"), 50_000, Ends::Nothing),
        (
            "PING",
            nothing,
            |_, nth| frame(PING, 0, 0, &u64::from(nth).to_be_bytes()),
            1_000_000,
            Ends::Nothing,
        ),
        (
            "SETTINGS",
            nothing,
            |_, nth| settings(&[(INITIAL_WINDOW, 65_535 + nth % 2)]),
            500_000,
            Ends::Nothing,
        ),
    ];
    for (what, first, then, count, ends) in rows {
        let cost = scene.attack(what, || {
            // Without a window for the answer's body: what comes has to be kept, or refused.
            let mut asking = client.dial(old.at(8007)?)?;
            asking.set_read_timeout(Some(Duration::from_secs(20)))?;
            asking.write_all(&hello(&[(INITIAL_WINDOW, 0)]))?;
            asking.write_all(&headers(1, true, &request("POST", "/")))?;
            let mut served = None;
            MESH.wait_until("the proxy to dial", PATIENCE, || {
                served = listener.accept().ok();
                served.is_some()
            })?;
            let (mut served, _) = served.unwrap();
            served.set_nonblocking(false)?;
            served.set_read_timeout(Some(PATIENCE))?;
            served.set_write_timeout(Some(PATIENCE))?;
            served.read_exact(&mut [0; 24])?;
            served.write_all(&settings(&[]))?;
            let asked = read_until(&mut served, |frame| frame.kind == HEADERS)?.stream;
            served.set_read_timeout(None)?;
            let mut flood = Flood::over(served);
            flood.send(&first(asked))?;
            flood.run(count, |nth| then(asked, nth));
            let all = count as usize * then(asked, 0).len();
            if ends == Ends::Nothing {
                let _ = flood.send(&headers(asked, true, OK));
            }
            let (sent, ending) = flood.end();
            println!("{what}: {sent} of {all} bytes, {ending:?}");
            if ends == Ends::Soon {
                anyhow::ensure!(ending.goaway == Some(ENHANCE_YOUR_CALM), "{ending:?}");
                anyhow::ensure!(sent < all as u64 / 2, "it was read on: {sent} bytes");
            }
            // Where the head was good, its end is a reset.
            let began = first(asked) == answer(asked);
            let told = read_until(&mut asking, |frame| {
                let is_head = frame.kind == HEADERS && frame.status().is_none_or(|status| status >= 200);
                frame.stream == 1 && (frame.kind == RST_STREAM || is_head && !began)
            })?;
            anyhow::ensure!(ends == Ends::Nothing || told.status() != Some(200), "it is answered: {told:?}");
            Ok(sent)
        });
        println!("{what}: {:?}", cost.unwrap());
    }
    assert_eq!(client.restarts("linkerd-proxy"), 0);
    scene.end().unwrap();
}

/// `:status: 200` in the static table.
const OK: &[u8] = &[0x88];

/// The head of an answer: a field that is remembered, and so many references to it.
fn bomb(name: &str, value: &str, references: usize) -> Vec<u8> {
    let mut block = [OK, &remembered(name, value)].concat();
    block.resize(block.len() + references, 0x80 | 0x3e);
    block
}

fn pod(name: &str) -> PodRef<'static> {
    MESH.pod(SHOP, name).unwrap()
}

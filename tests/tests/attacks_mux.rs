//! Hostile frames of a carrier: a peer with a good certificate that breaks the rules of docs/mux.md, or floods within them,
//! loses its own carrier, and nobody else notices.
#![expect(clippy::panic, clippy::unwrap_used, reason = "a test says what it expects where it stands")]

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::{Arc, LazyLock};

use remora_tests::attack::{self, Scene};
use remora_tests::origin::Origin;
use remora_tests::shop::{self, SHOP};
use remora_tests::{Mesh, PodRef, check, peer};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

const ALPN: &[u8] = b"remora.io/mux/1";
const SETTINGS: u8 = 1;
const OPEN: u8 = 2;
const DATA: u8 = 3;
const WINDOW: u8 = 4;
const RESET: u8 = 5;
const PING: u8 = 6;
const PONG: u8 = 7;
const GOAWAY: u8 = 8;
/// The flag of the last DATA of a direction.
const END: u8 = 1;
/// Protocols of OPEN.
const OPAQUE: u8 = 0;
const HTTP1: u8 = 1;
/// Codes of GOAWAY.
const PROTOCOL: u8 = 1;
const FLOW_CONTROL: u8 = 2;
const FLOOD: u8 = 3;

static MESH: LazyLock<Mesh> = LazyLock::new(|| attack::open(&[shop::idle("carried", &[])]).unwrap());

#[test]
fn whoever_breaks_the_rules_of_a_carrier_loses_it_alone() {
    if !check::can_run() {
        return;
    }
    let victim = MESH.pod(SHOP, "carried").unwrap();
    let origin = Origin::start(&victim, 8000).unwrap();
    // Nobody ever reads what comes here.
    let _deaf = victim.listen(7000).unwrap();
    let certificate = MESH.certify(&shop::identity("client")).unwrap();
    let config = peer::client(MESH.root(), Some(&certificate), &[ALPN]).unwrap();
    let scene = Scene::begin(&MESH, "carried", || {
        let answer = Carrier::begin(&victim, &config).ask("GET /warm HTTP/1.1\r\nhost: web\r\n\r\n");
        anyhow::ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        Ok(())
    })
    .unwrap();
    let mut other = Carrier::begin(&victim, &config);
    origin.take();

    for (what, bytes, code, label) in breaches() {
        let errors = [("direction", "inbound"), ("error", label)];
        let before = scene.count("remora_mux_errors_total", &errors);
        let cost = scene.attack(what, || {
            let mut carrier = Carrier::begin(&victim, &config);
            carrier.send(&bytes);
            let end = carrier.end();
            // What it has not read yet, the proxy cannot close without a reset, which may overtake its reason.
            anyhow::ensure!(end.is_none_or(|end| end == code), "{what}: GOAWAY said {end:?}");
            // A handshake each: what it holds is more than the frames.
            Ok(bytes.len() as u64 + 4096)
        });
        println!("{what}: {:?}", cost.unwrap());
        scene.counted("remora_mux_errors_total", &errors, before).unwrap();
        let answer = other.ask("GET /other HTTP/1.1\r\nhost: web\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 200"), "{what}: another's carrier: {answer:?}");
    }
    let arrived = origin.take();
    assert!(arrived.iter().all(|seen| seen.head.starts_with("GET /other ")), "{arrived:#?}");

    // What is said on a stream is judged as on a connection of its own.
    for fields in
        ["transfer-encoding: gzip, chunked\r\ncontent-length: 5\r\n", "host: other\r\n", "x : y\r\n"]
    {
        let answer = other.ask(&format!("POST /first HTTP/1.1\r\nhost: web\r\n{fields}\r\n0\r\n\r\n"));
        assert!(answer.starts_with("HTTP/1.1 400"), "{fields:?}: {answer:?}");
    }
    assert_eq!(origin.take(), []);
    drop(other);
    scene.end().unwrap();
}

type Breach = (&'static str, Vec<u8>, u8, &'static str);

/// What a client may not do, behind its SETTINGS; the code of the GOAWAY that says so, and the label of the metric.
fn breaches() -> Vec<Breach> {
    let opened = open(1, 8000, HTTP1);
    let then = |frames: &[u8]| [opened.as_slice(), frames].concat();
    let many = |count: u32, each: &dyn Fn(u32) -> Vec<u8>| (1..=count).flat_map(each).collect::<Vec<u8>>();
    let longest = [&[DATA, 0, 0xff, 0xff, 0, 0, 0, 1][..], &vec![0; 0xffff]].concat();
    vec![
        ("SETTINGS twice", frame(SETTINGS, 0, 0, &[]), PROTOCOL, "settings"),
        ("an unknown type", frame(9, 0, 0, &[]), PROTOCOL, "unknown_frame"),
        ("a frame of 2^16 bytes", then(&longest), PROTOCOL, "malformed"),
        ("a reserved flag", then(&frame(DATA, 0x80, 1, b"x")), PROTOCOL, "malformed"),
        ("port 0", open(1, 0, HTTP1), PROTOCOL, "malformed"),
        ("a PING of 2 bytes", frame(PING, 0, 0, b"hi"), PROTOCOL, "malformed"),
        ("no credit", then(&frame(WINDOW, 0, 1, &[0; 4])), PROTOCOL, "malformed"),
        ("a gap between streams", open(2, 8000, HTTP1), PROTOCOL, "protocol"),
        ("a stream twice", then(&opened), PROTOCOL, "protocol"),
        ("DATA on no stream", frame(DATA, 0, 7, b"x"), PROTOCOL, "protocol"),
        (
            "DATA behind its end",
            then(&[frame(DATA, END, 1, b"GET"), frame(DATA, 0, 1, b" /")].concat()),
            PROTOCOL,
            "protocol",
        ),
        ("a refusal by the client", then(&frame(RESET, 0, 1, b"\x01no")), PROTOCOL, "protocol"),
        (
            "credit for nothing",
            then(&frame(WINDOW, 0, 1, &4096_u32.to_be_bytes())),
            FLOW_CONTROL,
            "flow_control",
        ),
        (
            "more DATA than windows",
            [open(1, 7000, OPAQUE), frame(DATA, 0, 1, &[0; 16_376]).repeat(2000)].concat(),
            FLOW_CONTROL,
            "flow_control",
        ),
        (
            "a flood of PING",
            many(400, &|nth| frame(PING, 0, 0, &u64::from(nth).to_be_bytes())),
            FLOOD,
            "flood",
        ),
        ("a flood of empty DATA", then(&frame(DATA, 0, 1, &[]).repeat(400)), FLOOD, "flood"),
        ("a flood of types to come", frame(0x80, 0, 0, &[]).repeat(6000), FLOOD, "flood"),
        (
            "rapid reset",
            many(6000, &|nth| [open(nth, 8000, HTTP1), frame(RESET, 0, nth, &[0])].concat()),
            FLOOD,
            "flood",
        ),
        ("more streams than may be", many(8000, &|nth| open(nth, 8000, HTTP1)), FLOOD, "flood"),
        ("a flood of GOAWAY", frame(GOAWAY, 0, 0, &[0; 5]).repeat(40), FLOOD, "flood"),
    ]
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap();
    [&[kind, flags][..], &length.to_be_bytes(), &stream.to_be_bytes(), payload].concat()
}

fn open(stream: u32, port: u16, protocol: u8) -> Vec<u8> {
    frame(OPEN, 0, stream, &[&port.to_be_bytes()[..], &[protocol]].concat())
}

/// A carrier to a pod's proxy, as its client has it.
struct Carrier {
    tls: StreamOwned<ClientConnection, TcpStream>,
    streams: u32,
}

impl Carrier {
    fn begin(to: &PodRef<'_>, config: &Arc<ClientConfig>) -> Self {
        let tcp = MESH.dial(to.at(4143).unwrap()).unwrap();
        let name = ServerName::try_from(shop::identity("carried")).unwrap();
        let session = ClientConnection::new(config.clone(), name).unwrap();
        let mut carrier = Self { tls: StreamOwned::new(session, tcp), streams: 0 };
        carrier.send(&frame(SETTINGS, 0, 0, &[]));
        assert_eq!(carrier.tls.conn.alpn_protocol(), Some(ALPN));
        carrier
    }

    /// What the other side does not want any more, it need not take.
    fn send(&mut self, bytes: &[u8]) {
        let _ = self.tls.write_all(bytes).and_then(|()| self.tls.flush());
    }

    /// A frame: its type, stream and payload.
    fn read(&mut self) -> std::io::Result<(u8, u32, Vec<u8>)> {
        let mut head = [0; 8];
        self.tls.read_exact(&mut head)?;
        let [kind, _, high, low, stream @ ..] = head;
        let mut payload = vec![0; usize::from(u16::from_be_bytes([high, low]))];
        self.tls.read_exact(&mut payload)?;
        Ok((kind, u32::from_be_bytes(stream), payload))
    }

    /// Sends a request on a stream of its own; what came of the answer with its first DATA.
    fn ask(&mut self, request: &str) -> String {
        self.streams += 1;
        let stream = self.streams;
        self.send(&[open(stream, 8000, HTTP1), frame(DATA, 0, stream, request.as_bytes())].concat());
        let answer = loop {
            match self.read().unwrap() {
                (DATA, of, payload) if of == stream => break payload,
                (PING, _, payload) => self.send(&frame(PONG, 0, 0, &payload)),
                (GOAWAY | RESET, of, payload) => panic!("it ended: {of}: {payload:?}"),
                _ => {}
            }
        };
        self.send(&frame(RESET, 0, stream, &[0]));
        String::from_utf8(answer).unwrap()
    }

    /// Reads until the other side has ended the carrier; the code of its GOAWAY, if that came.
    fn end(mut self) -> Option<u8> {
        let mut code = None;
        loop {
            match self.read() {
                Ok((GOAWAY, _, payload)) => code = payload.last().copied().filter(|code| *code != 0),
                Ok(_) => {}
                Err(error) => {
                    let silent = matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
                    assert!(!silent, "the carrier is still open");
                    return code;
                }
            }
        }
    }
}

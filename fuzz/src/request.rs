//! HTTP/1 requests through the real inbound script, from a client's socket to an origin's: for each request of the client
//! that can be read in one way only, the origin gets at most that one, byte for byte; what can be read in two ways it
//! never gets; and a plain request it always gets. The oracles are a reader of the client's bytes and a stricter one at
//! the origin, both by the letter of RFC 9112 (`request/message.rs`).

mod message;

use self::message::{Message, Read, Reader, read};
use remora_core::detect::{Detection, Protocol, detect};
use remora_proxy::{
    Proxy, Worker,
    config::Config,
    discover::{Cache, Discovery, Place},
    inbound,
    listen::Accepted,
    metrics::Metrics,
    policy::Policies,
};
use remora_runtime::{
    env::Env,
    metrics::Registry,
    tasks::{Drain, Tasks},
};
use std::{
    cell::RefCell,
    net::{Ipv4Addr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    runtime::Runtime,
    sync::{Semaphore, watch},
    task::LocalSet,
    time::timeout,
};

/// How the origin behaves, then the client's bytes.
pub fn request(data: &[u8]) {
    thread_local! {
        static STAGE: Stage = Stage::new();
    }
    let Some((how, bytes)) = data.split_first() else { return };
    // What is no HTTP/1 is copied, whatever it is.
    if detect(bytes) != Detection::Known(Protocol::Http1) {
        return;
    }
    STAGE.with(|stage| {
        let (answers, heard) = stage.play(Origin::of(*how), bytes);
        check(bytes, Origin::of(*how), &answers, &heard);
    });
}

/// What the origin does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Answers,
    /// Once the head is there.
    AnswersEarly,
    AnswersAndCloses,
}

impl Origin {
    fn of(byte: u8) -> Self {
        [Self::Answers, Self::AnswersEarly, Self::AnswersAndCloses][usize::from(byte) % 3]
    }
}

/// What one connection of the origin was sent: whole requests, then what was not whole.
#[derive(Debug, Default)]
struct Heard {
    whole: Vec<Message>,
    unfinished: Option<Message>,
    /// What came after a CONNECT: copied, not read.
    tunnel: Vec<u8>,
    /// Bytes that are no request.
    wrong: Option<(&'static str, String)>,
}

impl Heard {
    /// The origin agrees to every CONNECT.
    fn is_tunnel(&self) -> bool {
        self.whole.last().is_some_and(|message| message.method == "CONNECT")
    }
}

/// One proxy for many runs; its connections, pools and workers are each run's own.
struct Stage {
    runtime: Runtime,
    local: LocalSet,
    proxy: Arc<Proxy>,
    front: TcpListener,
    origin: TcpListener,
    runs: RefCell<u32>,
}

impl Stage {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.unwrap_or_else(|error| panic!("{error}"));
        let listen = || {
            runtime
                .block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
                .unwrap_or_else(|error| panic!("{error}"))
        };
        let (front, origin) = (listen(), listen());
        let proxy = Arc::new(proxy(&runtime));
        Self { runtime, local: LocalSet::new(), proxy, front, origin, runs: RefCell::new(0) }
    }

    /// One client's connection, from its first byte to its last.
    fn play(&self, how: Origin, bytes: &[u8]) -> (Vec<u8>, Vec<Heard>) {
        let heard = Rc::new(RefCell::new(vec![]));
        let play = async {
            let serving = async {
                loop {
                    let Ok((tcp, _)) = self.origin.accept().await else { return };
                    let nth = heard.borrow().len();
                    heard.borrow_mut().push(Heard::default());
                    tokio::task::spawn_local(listen(tcp, how, heard.clone(), nth));
                }
            };
            let run = self.connection(bytes);
            let answers = tokio::select! {
                answers = run => answers,
                () = serving => vec![],
            };
            // The origin's connections end with the worker's pool, and then nothing holds what they heard.
            while Rc::strong_count(&heard) > 1 {
                tokio::task::yield_now().await;
                tokio::time::sleep(Duration::ZERO).await;
            }
            answers
        };
        let played = self
            .runtime
            .block_on(self.local.run_until(async { timeout(Duration::from_secs(8), play).await }));
        let answers = played.unwrap_or_else(|_| panic!("it hangs"));
        let heard = Rc::try_unwrap(heard).map(RefCell::into_inner).unwrap_or_default();
        (answers, heard)
    }

    async fn connection(&self, bytes: &[u8]) -> Vec<u8> {
        let run = self.runs.replace_with(|runs| runs.wrapping_add(1));
        let (mut client, near, peer) = self.pair(run).await.unwrap_or_else(|error| panic!("{error}"));
        let target = self.origin.local_addr().unwrap_or_else(|error| panic!("{error}"));
        let permit = self
            .proxy
            .inbound_permits
            .clone()
            .acquire_owned()
            .await
            .unwrap_or_else(|error| panic!("{error}"));
        let accepted = Accepted { tcp: near, client: peer, target, permit };
        let serving = inbound::serve(Arc::new(Worker::new(self.proxy.clone())), accepted);
        let mut answers = vec![];
        let talking = async {
            let (mut reading, mut writing) = client.split();
            let write = async {
                // A proxy that has refused may have closed.
                let _ = writing.write_all(bytes).await;
                let _ = writing.shutdown().await;
            };
            tokio::join!(write, async {
                let _ = reading.read_to_end(&mut answers).await;
            });
        };
        let _ = tokio::join!(serving, talking);
        answers
    }

    /// Both ends of a loopback connection. Each run has an address of its own, so that ports do not run out.
    async fn pair(&self, run: u32) -> std::io::Result<(TcpStream, TcpStream, SocketAddr)> {
        let socket = TcpSocket::new_v4()?;
        let [_, a, b, c] = run.wrapping_mul(7).to_be_bytes();
        socket.bind((Ipv4Addr::new(127, a, b, c.clamp(1, 254)), 0).into())?;
        let (client, accepted) = tokio::join!(socket.connect(self.front.local_addr()?), self.front.accept());
        let (near, peer) = accepted?;
        Ok((client?, near, peer))
    }
}

/// Without identity, as the environment describes it, and with a control plane that never answers: the default policy
/// admits everybody.
fn proxy(runtime: &Runtime) -> Proxy {
    let env = [
        ("LINKERD2_PROXY_DESTINATION_SVC_ADDR", "localhost:1"),
        ("LINKERD2_PROXY_POLICY_SVC_ADDR", "localhost:1"),
        ("LINKERD2_PROXY_POLICY_WORKLOAD", "{}"),
        ("REMORA_PROXY_IDENTITY_DISABLED", "true"),
        ("REMORA_PROXY_SERVER_FIRST_DELAY", "1h"),
        ("REMORA_PROXY_MAX_HEADER_BYTES", "8192"),
    ];
    let config = Config::from_env(Env::from_pairs(env)).unwrap_or_else(|mistakes| panic!("{mistakes}"));
    let handle = runtime.handle();
    let never = || Box::pin(std::future::pending());
    let idle = Duration::from_secs(1);
    let cache = Cache::new(handle.clone(), idle, 16, move |_: &u16, _| never());
    let policies =
        Policies::new(cache, &config.inbound, &config.discovery.cluster_networks, config.admin.listen.port());
    Proxy {
        credentials: watch::channel(None).1,
        policies,
        discovery: Discovery {
            profiles: Cache::new(handle.clone(), idle, 16, move |_: &Place, _| never()),
            policies: Cache::new(handle.clone(), idle, 16, move |_: &Place, _| never()),
            names: Cache::new(handle.clone(), idle, 16, move |_: &Arc<str>, _| never()),
            endpoints: Cache::new(handle.clone(), idle, 16, move |_: &Arc<str>, _| never()),
        },
        metrics: Metrics::register(&Registry::new(idle), 100, false),
        budgets: remora_proxy::profile::Budgets::default(),
        limiters: remora_proxy::limits::Limiters::default(),
        inbound_permits: Arc::new(Semaphore::new(16)),
        outbound_permits: Arc::new(Semaphore::new(16)),
        speculative_permits: Arc::new(Semaphore::new(16)),
        spare: Arc::default(),
        access_log: None,
        tasks: Tasks::new(),
        drain: Drain::new(),
        config,
    }
}

/// One connection of the origin, which reads strictly and answers what is whole.
async fn listen(mut tcp: TcpStream, how: Origin, heard: Rc<RefCell<Vec<Heard>>>, nth: usize) {
    let mut bytes = vec![];
    let mut answered = 0;
    loop {
        let mut rest = &bytes[..];
        let mut now = Heard::default();
        loop {
            match read(rest, Reader::Strict) {
                Read::Whole(message, used) => {
                    rest = &rest[used..];
                    now.whole.push(message);
                    if now.is_tunnel() {
                        now.tunnel = rest.to_vec();
                        break;
                    }
                }
                Read::Unfinished(message) => now.unfinished = Some(message),
                Read::Never(why) => now.wrong = Some((why, rest.escape_ascii().to_string())),
                Read::NeedMore => {}
            }
            if rest.is_empty()
                || now.unfinished.is_some()
                || now.wrong.is_some()
                || matches!(read(rest, Reader::Strict), Read::NeedMore)
            {
                break;
            }
        }
        let early = usize::from(how == Origin::AnswersEarly && now.unfinished.is_some());
        let whole = now.whole.len() + early;
        let wrong = now.wrong.is_some();
        let heads: Vec<bool> =
            now.whole.iter().chain(&now.unfinished).map(|message| message.method == "HEAD").collect();
        heard.borrow_mut()[nth] = now;
        while answered < whole {
            let head = heads.get(answered) == Some(&true);
            answered += 1;
            let close = how == Origin::AnswersAndCloses;
            let connection = if close { "connection: close\r\n" } else { "" };
            let body = if head { "" } else { "ok" };
            let answer = format!("HTTP/1.1 200 OK\r\n{connection}content-length: 2\r\n\r\n{body}");
            if tcp.write_all(answer.as_bytes()).await.is_err() || close {
                return;
            }
        }
        if wrong || !matches!(tcp.read_buf(&mut bytes).await, Ok(1..)) {
            // A reset leaves no socket waiting behind.
            let _ = tcp.set_zero_linger();
            return;
        }
    }
}

/// Compares what the client meant with what the origin heard.
fn check(bytes: &[u8], how: Origin, answers: &[u8], heard: &[Heard]) {
    let shown = || {
        format!("client: {}\norigin: {heard:?}\nanswers: {}", bytes.escape_ascii(), answers.escape_ascii())
    };
    let mut meant = vec![];
    let mut last = None;
    let mut rest = bytes;
    while !rest.is_empty() {
        match read(rest, Reader::Lenient) {
            Read::Whole(message, used) => {
                rest = &rest[used..];
                meant.push(message);
                if meant.last().is_some_and(|message| message.method == "CONNECT") {
                    break;
                }
            }
            Read::Unfinished(message) => {
                last = Some(message);
                break;
            }
            Read::Never(_) | Read::NeedMore => break,
        }
    }
    let mut whole = vec![];
    for heard in heard {
        assert!(heard.wrong.is_none(), "the origin was sent what is no request\n{}", shown());
        whole.extend(&heard.whole);
        assert!(
            !heard.is_tunnel() || rest.starts_with(&heard.tunnel),
            "the tunnel has other bytes\n{}",
            shown()
        );
        let all = how != Origin::Answers || !heard.is_tunnel() || heard.tunnel == rest;
        assert!(all, "the tunnel lacks bytes\n{}", shown());
        let Some(unfinished) = &heard.unfinished else { continue };
        // A part of one that the client meant, and the origin answered early or the client did not finish.
        let is_part = meant
            .iter()
            .chain(&last)
            .any(|meant| is_same(meant, unfinished) && meant.body.starts_with(&unfinished.body));
        assert!(is_part, "the origin was sent a part of what was not meant\n{}", shown());
    }
    assert!(whole.len() <= meant.len(), "more requests than were meant\n{}", shown());
    // An early answer ends a request before its body has gone out.
    let mut wanted = meant.iter();
    for got in &whole {
        let found = wanted.by_ref().find(|meant| how == Origin::AnswersEarly || same(meant, got)).is_some();
        assert!(
            found && meant.iter().any(|meant| same(meant, got)),
            "the origin was sent what was not meant\n{}",
            shown()
        );
    }
    let text = String::from_utf8_lossy(answers);
    let good = text.matches("HTTP/1.1 200").count() + text.matches("HTTP/1.0 200").count();
    if how == Origin::Answers {
        assert!(
            whole.iter().zip(&meant).all(|(got, meant)| same(meant, got)),
            "one was left out\n{}",
            shown()
        );
        assert_eq!(good, whole.len(), "answers\n{}", shown());
        // Up to the first that may be refused, all of them.
        let plain = meant.iter().take_while(|message| message.plain).count();
        assert!(whole.len() >= plain, "{plain} plain requests\n{}", shown());
    } else {
        assert!(good <= meant.len() + usize::from(last.is_some()), "answers\n{}", shown());
    }
}

fn same(meant: &Message, got: &Message) -> bool {
    is_same(meant, got)
        && meant.body == got.body
        && got.trailers.iter().all(|trailer| meant.trailers.contains(trailer))
}

/// Method, target and the headers that are meant for the other end.
fn is_same(meant: &Message, got: &Message) -> bool {
    meant.method == got.method
        && is_same_target(&meant.target, &got.target)
        && end_to_end(meant) == end_to_end(got)
}

/// A fragment is nobody's business but the client's, and an absolute target without a path means the root.
fn is_same_target(meant: &[u8], got: &[u8]) -> bool {
    let meant = meant.split(|byte| *byte == b'#').next().unwrap_or_default();
    let rooted =
        got.strip_suffix(b"/").is_some_and(|got| got.contains(&b':') && got.eq_ignore_ascii_case(meant));
    meant == got || rooted || (meant.contains(&b':') && meant.eq_ignore_ascii_case(got))
}

fn end_to_end(message: &Message) -> Vec<(&str, &[u8])> {
    const HOP: [&str; 9] = [
        "connection",
        "keep-alive",
        "proxy-connection",
        "te",
        "upgrade",
        "transfer-encoding",
        "http2-settings",
        "content-length",
        "trailer",
    ];
    const OURS: [&str; 4] = ["l5d-orig-proto", "l5d-dst-override", "l5d-require-id", "l5d-client-id"];
    // Framing, host and what decisions rest on cannot be named away.
    let named: Vec<String> = message
        .headers
        .iter()
        .filter(|(name, _)| name == "connection")
        .flat_map(|(_, value)| {
            String::from_utf8_lossy(value)
                .to_ascii_lowercase()
                .split(',')
                .map(|name| name.trim().to_owned())
                .collect::<Vec<_>>()
        })
        .filter(|name| name != "host" && !name.starts_with("l5d-"))
        .collect();
    let mut headers: Vec<(&str, &[u8])> = message
        .headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_slice()))
        .filter(|(name, _)| {
            !HOP.contains(name) && !OURS.contains(name) && !named.iter().any(|named| named == name)
        })
        .collect();
    headers.sort_by_key(|(name, _)| *name);
    headers
}

//! Part 3: one connection of each protocol from the same client, what its proxy took it for, how long the first byte
//! took, and that it went over mTLS whatever it was.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::time::timeout;

use super::stage::{Stage, counted, grown};
use super::tell::Teller;
use crate::token::unique_id;
use crate::{PodRef, shop};

/// The verdicts of detection on outbound connections (contract 5.4).
const VERDICTS: &str = "outbound_tcp_detect_http_results_total";
/// Connections to endpoints.
const OPENED: &str = "tcp_open_total";
/// A first byte that takes longer than this was held up by somebody's timeout: detection's is 10 s.
const PROMPT: Duration = Duration::from_secs(2);
/// How long a server may take before we give up.
const LIMIT: Duration = Duration::from_secs(15);
const GREETING: &str = "220 welcome to the shop";

/// What one connection showed.
struct Seen {
    /// From the connection's beginning to the first byte of the answer.
    first_byte: Duration,
    /// What the answer said.
    said: String,
}

/// What is tried.
struct Trial<'a> {
    told: &'static str,
    /// What the client's proxy must find out; nothing where it is told not to look.
    verdict: Option<&'static str>,
    /// The service account of the server.
    account: &'static str,
    run: Box<dyn Fn() -> Result<Seen> + 'a>,
}

/// Tells it.
pub fn tell(stage: &Stage, teller: &mut Teller) -> Result<()> {
    let client = stage.pod("client")?;
    let secret = unique_id()?;
    let capture = stage.mesh.capture("tcp and not port 4191").context("capturing")?;
    teller.line("verdicts of the client's proxy:", VERDICTS);
    for trial in trials(stage, &client, &secret)? {
        let shown = show(&client, &trial);
        teller.claim(trial.told, shown.map_err(|error| format!("{error:#}")));
    }
    let seen = capture.stop()?;
    let leaked: Vec<&str> =
        [secret.as_str(), GREETING].into_iter().filter(|text| seen.contain(text.as_bytes())).collect();
    let told = match leaked.as_slice() {
        [] => format!(
            "{} packets, {} begin a TLS record; neither greeting nor what redis and gRPC were told",
            seen.packets.len(),
            seen.tls_application_data()
        ),
        leaked => format!("in plaintext: {}", leaked.join(", ")),
    };
    teller.holds(
        "none of it is readable on the wire",
        leaked.is_empty() && seen.tls_application_data() > 0,
        told,
    );
    Ok(())
}

fn trials<'a>(stage: &'a Stage, client: &'a PodRef<'a>, secret: &'a str) -> Result<Vec<Trial<'a>>> {
    let grpc_server = stage.service("grpc", 9000)?;
    let redis = |port| stage.service("redis", port);
    let (listed, unlisted) = (redis(6379)?, redis(6380)?);
    let greeter = stage.service("greeter", 7000)?;
    Ok(vec![
        Trial {
            told: "HTTP/1.1      curl → web:80",
            verdict: Some("http/1"),
            account: "web",
            run: Box::new(|| curl(client, &["http://web/"])),
        },
        Trial {
            told: "HTTP/2        curl → web:8080",
            verdict: Some("http/2"),
            account: "web",
            run: Box::new(|| curl(client, &["--http2-prior-knowledge", "http://web:8080/"])),
        },
        Trial {
            told: "gRPC          health check → grpc:9000",
            verdict: Some("http/2"),
            account: "grpc",
            run: Box::new(move || grpc(client, grpc_server, secret)),
        },
        Trial {
            told: "redis         redis-cli → redis:6379",
            verdict: None,
            account: "redis",
            run: Box::new(move || redis_says(client, listed, "opaque", secret)),
        },
        Trial {
            told: "redis         redis-cli → redis:6380",
            verdict: Some("not_http"),
            account: "redis",
            run: Box::new(move || redis_says(client, unlisted, "detect", secret)),
        },
        Trial {
            told: "server-first  silence → greeter:7000",
            verdict: Some("server_first"),
            account: "greeter",
            run: Box::new(move || client.enter(|| first_line(greeter, b""))?.and_then(greeted)),
        },
    ])
}

/// One trial: what it said, and what the client's proxy counted for it.
fn show(client: &PodRef<'_>, trial: &Trial<'_>) -> Result<String> {
    let of_client = [client.clone()];
    let before = counted(&of_client)?;
    let seen = (trial.run)()?;
    let identity = shop::identity(trial.account);
    let labels =
        [("direction", "outbound"), ("peer", "dst"), ("tls", "true"), ("server_id", identity.as_str())];
    let known = before.first().and_then(|before| before.sum(OPENED, &labels)).unwrap_or(0.0);
    let opened = grown(&of_client, &before, OPENED, &labels, if known > 0.0 { 0.0 } else { 1.0 })?;
    ensure!(opened + known >= 1.0, "no mTLS connection to {identity} was opened: {}", seen.said);
    let verdict = if let Some(verdict) = trial.verdict {
        let growth = grown(&of_client, &before, VERDICTS, &[("result", verdict)], 1.0)?;
        ensure!(growth >= 1.0, "the client's proxy did not find {verdict}: {VERDICTS} did not grow");
        format!("detected {verdict}")
    } else {
        let growth = grown(&of_client, &before, VERDICTS, &[], 0.0)?;
        ensure!(growth.total_cmp(&0.0).is_eq(), "the client's proxy looked into a port that is opaque");
        "opaque by its port".to_owned()
    };
    ensure!(seen.first_byte < PROMPT, "{verdict}, but the first byte took {}", millis(seen.first_byte));
    Ok(format!("{verdict:<21} first byte {:>9}   {}", millis(seen.first_byte), seen.said))
}

/// Milliseconds with one digit.
pub fn millis(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

fn curl(client: &PodRef<'_>, arguments: &[&str]) -> Result<Seen> {
    let format = "%{time_starttransfer} %{time_namelookup} %{http_version}";
    let all: Vec<&str> = ["-f", "-w", format].into_iter().chain(arguments.iter().copied()).collect();
    let printed = shop::curl(client, &all)?;
    let (said, timing) = printed.trim().rsplit_once('\n').context("curl printed one line")?;
    let mut words = timing.split(' ');
    let mut seconds =
        || words.next().and_then(|word| word.parse::<f64>().ok()).context("curl printed no times");
    // What DNS took is not ours.
    let first_byte = seconds()? - seconds()?;
    Ok(Seen {
        first_byte: Duration::from_secs_f64(first_byte.max(0.0)),
        said: format!("\"{}\"", said.trim()),
    })
}

/// Two calls: a health check of our own, timed, and one by a gRPC library in the pod.
fn grpc(client: &PodRef<'_>, server: SocketAddr, secret: &str) -> Result<Seen> {
    let first_byte = client.enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            timeout(LIMIT, health(server)).await.context("no answer to the health check")?
        })
    })??;
    let testkit = "/usr/lib/remora/remora-testkit";
    let printed =
        run(client, "grpc", &[testkit, "grpc-client", "http://grpc:9000", "unary", "--text", secret])?;
    ensure!(printed.contains(secret), "the answer is not what was asked: {printed}");
    ensure!(printed.lines().any(|line| line.starts_with("status 0")), "the call failed: {printed}");
    let who = printed.lines().find_map(|line| line.strip_prefix("client ")).unwrap_or("nobody");
    ensure!(who == shop::identity("client"), "the server was told that {who} called");
    Ok(Seen { first_byte, said: "grpc-status 0; the server was told the client's identity".into() })
}

/// Calls `grpc.health.v1.Health/Check` on a connection of its own; the time from its beginning to the answer's head.
async fn health(server: SocketAddr) -> Result<Duration> {
    // Five zeros are an empty message: not compressed, of length zero.
    let request = http::Request::post("http://grpc:9000/grpc.health.v1.Health/Check")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(Bytes::from_static(&[0; 5])))?;
    let began = Instant::now();
    let stream = tokio::net::TcpStream::connect(server).await.context("connecting")?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let response = sender.send_request(request).await.context("calling")?;
    let first_byte = began.elapsed();
    let answer = response.into_body().collect().await.context("reading the answer")?;
    let status = answer.trailers().and_then(|trailers| trailers.get("grpc-status"));
    ensure!(status.is_some_and(|status| status == "0"), "the health check's trailers say {status:?}");
    Ok(first_byte)
}

/// A value set and read by redis-cli; the first byte of a PING on a connection of our own. `told` is what the client's
/// proxy has been told of the port's protocol.
fn redis_says(client: &PodRef<'_>, redis: SocketAddr, told: &str, secret: &str) -> Result<Seen> {
    let port = redis.port().to_string();
    let cli = ["redis-cli", "-h", "redis", "-p", port.as_str()];
    let set = run(client, "curl", &[&cli[..], &["SET", "secret", secret]].concat())?;
    let got = run(client, "curl", &[&cli[..], &["GET", "secret"]].concat())?;
    ensure!(set.trim() == "OK" && got.trim() == secret, "redis answered {set:?}, {got:?}");
    let state = shop::state(client)?;
    let workers = state.pointer("/outbound/workers").and_then(Value::as_array).into_iter().flatten();
    let known: Vec<&str> =
        workers.filter_map(|worker| worker.get(redis.to_string())?.get("protocol")?.as_str()).collect();
    ensure!(known == [told], "/state.json says of {redis}: {known:?}");
    let pong = client.enter(|| first_line(redis, b"PING\r\n"))??;
    ensure!(pong.said.starts_with("+PONG"), "redis answered {:?}", pong.said);
    Ok(Seen { said: "SET, GET, PING".into(), ..pong })
}

fn greeted(mut seen: Seen) -> Result<Seen> {
    ensure!(seen.said == GREETING, "the greeting was {:?}", seen.said);
    seen.said = format!("\"{GREETING}\", no annotation");
    Ok(seen)
}

/// Connects, says `first`, and reads one line.
fn first_line(to: SocketAddr, first: &[u8]) -> Result<Seen> {
    let began = Instant::now();
    let mut stream = TcpStream::connect_timeout(&to, LIMIT).with_context(|| format!("connecting to {to}"))?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(first)?;
    let mut said = Vec::new();
    let mut first_byte = None;
    let mut piece = [0; 256];
    while !said.ends_with(b"\n") {
        let length = stream.read(&mut piece).context("waiting for the server's words")?;
        first_byte.get_or_insert_with(|| began.elapsed());
        if length == 0 || said.len() > 4096 {
            bail!("the server closed after {:?}", String::from_utf8_lossy(&said));
        }
        said.extend_from_slice(piece.get(..length).unwrap_or_default());
    }
    let said = String::from_utf8_lossy(&said).trim().to_owned();
    Ok(Seen { first_byte: first_byte.unwrap_or_default(), said })
}

fn run(pod: &PodRef<'_>, container: &str, argv: &[&str]) -> Result<String> {
    let output = pod.exec(container, argv)?;
    if !output.status.success() {
        bail!("{argv:?} {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

//! Part 4: every certificate is renewed while 200 requests a second are on their way, half of them on new connections.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use serde_json::Value;

use super::detection::millis;
use super::leaf::{self, Leaf};
use super::load::{Report, Target, open_loop};
use super::stage::{Stage, counted, grown};
use super::tell::Teller;
use crate::{PodRef, shop};

/// Requests a second.
const RATE: u32 = 200;
/// How long the renewal may take: certificates live for 30 s here.
const LIMIT: Duration = Duration::from_secs(40);
/// The load goes on for so long before and after.
const AROUND: Duration = Duration::from_secs(2);
/// Between looks at the certificates. Each is a handshake of its own.
const LOOK: Duration = Duration::from_millis(250);

/// Tells it.
pub fn tell(stage: &Stage, teller: &mut Teller) -> Result<()> {
    let client = stage.pod("client")?;
    let web = stage.replicas("web");
    let target = |service: &str| -> Result<Target> {
        Ok(Target { addr: stage.service(service, 80)?, host: service.to_owned(), path: "/".into() })
    };
    // As HTTP the proxies would carry new connections of the application over the ones that they keep.
    let (kept, fresh) = (target("web")?, target("web-bytes")?);
    let of_client = [client.clone()];
    let before = counted(&of_client)?;
    let old = certificates(stage, &web, &client)?;
    let waiting = format!("{RATE} requests a second until every certificate has been renewed");
    let (renewed, report) = teller
        .wait(&waiting, || under_load(&client, &kept, &fresh, || renewal(stage, &web, &client, &old)))?;
    match renewed {
        Ok(new) => renewal_told(teller, &old, &new),
        Err(error) => teller.claim("every certificate was renewed", Err(format!("{error:#}"))),
    }
    let identity = shop::identity("web");
    let outbound =
        [("direction", "outbound"), ("peer", "dst"), ("tls", "true"), ("server_id", identity.as_str())];
    let opened = grown(&of_client, &before, "tcp_open_total", &outbound, report.fresh as f64)?;
    load_told(teller, &report, opened);
    Ok(())
}

fn renewal_told(teller: &mut Teller, old: &[Seen], new: &[Seen]) {
    for (old, new) in old.iter().zip(new) {
        let (was, is) = (short(&old.leaf.serial), short(&new.leaf.serial));
        let lasts = new.leaf.not_after - old.leaf.not_after;
        let holds = old.leaf.serial != new.leaf.serial && lasts > 0;
        let told = format!("serial {was} → {is}, ends {lasts} s later, seen by {}", new.witness);
        teller.holds(&format!("{}: a new certificate", new.whose), holds, told);
    }
}

fn load_told(teller: &mut Teller, report: &Report, opened: f64) {
    let Report { requests, failed, connections, fresh, failures, took, .. } = report;
    let sent = format!("{requests} requests in {:.1} s on {connections} connections", took.as_secs_f64());
    let planned = f64::from(RATE) * took.as_secs_f64();
    teller.holds(&format!("{RATE} requests a second, kept up"), *requests as f64 > planned * 0.95, sent);
    teller.holds(
        "new mTLS connections all the while",
        *fresh > 0 && opened >= *fresh as f64,
        format_args!("{fresh} requests on a new connection each; between the proxies {opened} were opened"),
    );
    let told = match failures.first() {
        None => format!(
            "{failed} failed, none retried; p50 {}, p99 {}, slowest {}",
            millis(report.percentile(0.5)),
            millis(report.percentile(0.99)),
            millis(report.percentile(1.0))
        ),
        Some(first) => format!("{failed} of {requests} failed, the first: {first}"),
    };
    teller.holds("no request failed", *failed == 0 && *requests > 0, told);
}

/// Runs `work` in the middle of the load.
fn under_load<T>(
    client: &PodRef<'_>,
    kept: &Target,
    fresh: &Target,
    work: impl FnOnce() -> T,
) -> Result<(T, Report)> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let load = scope.spawn(|| open_loop(client, kept, fresh, RATE, &stop));
        std::thread::sleep(AROUND);
        let done = work();
        std::thread::sleep(AROUND);
        stop.store(true, Ordering::Relaxed);
        let report = load.join().map_err(|_| anyhow!("the load's thread panicked"))??;
        Ok((done, report))
    })
}

/// A certificate, and who looked at it.
struct Seen {
    whose: String,
    witness: &'static str,
    leaf: Leaf,
}

/// Of the servers as a peer is shown them; of the client, whom nobody dials, as its proxy says.
fn certificates(stage: &Stage, web: &[PodRef<'_>], client: &PodRef<'_>) -> Result<Vec<Seen>> {
    let stranger = stage.pod("stranger")?;
    let mut seen = Vec::new();
    for pod in web {
        let addr = SocketAddr::new(pod.ip()?, 80);
        let leaf = leaf::shown(&stranger, addr, &shop::identity("web"), stage.mesh.trust_anchor())?;
        seen.push(Seen { whose: pod.name.name.clone(), witness: "a peer", leaf });
    }
    let state = shop::state(client)?;
    let identity = state.get("identity").context("/state.json has no identity")?;
    let serial = identity.get("serial").and_then(Value::as_str).context("/state.json has no serial")?;
    let not_after =
        identity.get("notAfter").and_then(Value::as_i64).context("/state.json has no notAfter")?;
    let leaf = Leaf { serial: serial.to_owned(), not_after };
    seen.push(Seen { whose: client.name.name.clone(), witness: "its own /state.json", leaf });
    Ok(seen)
}

/// Waits until all of them are others.
fn renewal(stage: &Stage, web: &[PodRef<'_>], client: &PodRef<'_>, old: &[Seen]) -> Result<Vec<Seen>> {
    let deadline = Instant::now() + LIMIT;
    loop {
        let now = certificates(stage, web, client)?;
        if now.iter().zip(old).all(|(now, old)| now.leaf.serial != old.leaf.serial) {
            return Ok(now);
        }
        if Instant::now() > deadline {
            bail!("the certificates were not renewed within {LIMIT:?}");
        }
        std::thread::sleep(LOOK);
    }
}

fn short(serial: &str) -> String {
    match serial.get(..8) {
        Some(begin) if serial.len() > 8 => format!("{begin}…"),
        _ => serial.to_owned(),
    }
}

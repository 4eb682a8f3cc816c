//! A soak: mixed traffic (`transfers`, beside requests) for a long time while every certificate is renewed again and again, and what came of it.
//!
//! Nothing is asserted about time. It ends with failed requests (there may be none), the slope of resident memory and
//! the descriptors of both proxies.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};

use crate::arena::usage;
use crate::load::{Load, Plan};
use crate::mesh::Mesh;
use crate::node::{Options, PodRef};
use crate::resources::Usage;
use crate::shop::{self, PATIENCE, SHOP};
use crate::wire::{LIMIT, client, connect, kit};

mod transfers;

/// Certificates live so long; they are renewed at 70 % of it.
const LIFETIME: Duration = Duration::from_secs(43);
/// Between two lines of progress.
const EVERY: Duration = Duration::from_secs(30);
/// What resident memory may grow by in an hour, judged by the last two thirds: what allocators and tables reach in time
/// is not growth, and in less than 20 minutes a wave of half a MiB would be.
const MOST_SLOPE: f64 = 2.0 * 1024.0 * 1024.0;
/// Descriptors at the end, against those before: a pool's idle connections among them.
const MORE_DESCRIPTORS: usize = 16;

/// Runs it; `tell` is given lines of progress. True if it held.
///
/// # Errors
/// The mesh could not be started, or a proxy is gone.
pub fn run(minutes: u64, mut tell: impl FnMut(&str)) -> Result<bool> {
    let options = Options {
        control_plane_args: vec![
            ("remora-identity", format!("--issuance-lifetime={}s", LIFETIME.as_secs())),
            ("remora-identity", "--clock-skew-allowance=0".into()),
        ],
        ..Options::default()
    };
    let mesh = Mesh::start_with(options, &serde_json::json!({}))?;
    let manifests = [
        shop::NAMESPACE.to_owned(),
        shop::web("web-0"),
        shop::web("web-1"),
        kit("kit", 8080, "http", &[]),
        kit("bytes", 7000, "echo", &[]),
        kit("grpc", 9000, "grpc", &[]),
        client("client", &[]),
    ];
    mesh.apply(&manifests.concat())?;
    mesh.wait_ready(PATIENCE)?;
    let pods = ["web-0", "kit", "bytes", "grpc", "client"].map(|name| mesh.pod(SHOP, name));
    let pods = pods.into_iter().collect::<Result<Vec<_>>>()?;
    let from = pods.last().context("no client")?;
    let service =
        |name: &str, port| Ok::<_, anyhow::Error>(SocketAddr::new(shop::cluster_ip(&mesh, name)?, port));
    let requests = Load::start(from, shop::web_load(&mesh)?)?;
    let kit = service("kit", 8080)?;
    let plan = Plan { target: kit, host: "kit:8080".into(), path: "/status/200".into(), kept: 2, fresh: 1 };
    let more = Load::start(from, plan)?;
    let others = [
        Worker::start(from, kit, transfers::download)?,
        Worker::start(from, kit, transfers::upload)?,
        Worker::start(from, kit, transfers::upgraded)?,
        Worker::start(from, kit, transfers::streams)?,
        Worker::start(from, service("grpc", 9000)?, transfers::grpc)?,
        Worker::start(from, service("bytes", 7000)?, transfers::echo)?,
    ];

    let began = Instant::now();
    let until = Duration::from_secs(minutes * 60);
    let mut samples: Vec<(f64, Vec<Usage>)> = Vec::new();
    while began.elapsed() < until {
        let left = until.saturating_sub(began.elapsed()).min(EVERY);
        std::thread::sleep(left);
        let now: Vec<Usage> = pods.iter().map(usage).collect::<Result<_>>()?;
        let (one, two) = (requests.tally(), more.tally());
        let (done, failed) = others.iter().fold((0, 0), |(done, failed), worker| {
            (done + worker.done.load(Ordering::Relaxed), failed + worker.failed.load(Ordering::Relaxed))
        });
        tell(&format!(
            "{:>5} s: {} requests, {} transfers, {} failed, {} renewals; {}",
            began.elapsed().as_secs(),
            one.answered() + two.answered(),
            done,
            one.failed + two.failed + failed,
            renewals(from)?,
            described(&pods, &now),
        ));
        samples.push((began.elapsed().as_secs_f64(), now));
    }
    let renewed = renewals(from)?;
    let tallies = [requests.finish()?, more.finish()?];
    let mut failures: Vec<String> = tallies.iter().flat_map(|tally| tally.failures.clone()).collect();
    let mut failed: usize = tallies.iter().map(|tally| tally.failed).sum();
    for worker in others {
        let told = worker.finish()?;
        failed += told.len();
        failures.extend(told);
    }
    for failure in failures.iter().take(20) {
        tell(&format!("failed: {failure}"));
    }
    tell(&format!("{failed} failed, {renewed} renewals of the client's certificate in {minutes} min"));
    Ok(is_flat(&pods, &samples, tell) && failed == 0 && renewed >= (minutes * 60 / 45) as f64)
}

/// Whether memory and descriptors of every proxy stayed what they were, which it tells.
fn is_flat(pods: &[PodRef<'_>], samples: &[(f64, Vec<Usage>)], mut tell: impl FnMut(&str)) -> bool {
    let mut held = true;
    for (nth, pod) in pods.iter().enumerate() {
        let judged = samples.iter().skip(samples.len() / 3);
        let points: Vec<(f64, f64)> =
            judged.filter_map(|(at, usages)| Some((*at, usages.get(nth)?.rss as f64))).collect();
        let slope = slope(&points) * 3600.0;
        let fds = |(_, usages): &(f64, Vec<Usage>)| usages.get(nth).map_or(0, |usage| usage.fds);
        let (first, last) = (samples.first().map_or(0, fds), samples.last().map_or(0, fds));
        let flat = slope < MOST_SLOPE || points.len() < 8;
        held &= flat && last <= first + MORE_DESCRIPTORS;
        tell(&format!(
            "{}: RSS slope {:+.2} MiB an hour, {first} descriptors at first, {last} at last",
            pod.name,
            slope / (1024.0 * 1024.0)
        ));
    }
    held
}

fn described(pods: &[PodRef<'_>], usages: &[Usage]) -> String {
    let one = |(pod, usage): (&PodRef<'_>, &Usage)| {
        format!("{} {:.1} MiB {} fds", pod.name.name, usage.rss as f64 / (1024.0 * 1024.0), usage.fds)
    };
    pods.iter().zip(usages).map(one).collect::<Vec<_>>().join(", ")
}

fn renewals(pod: &PodRef<'_>) -> Result<f64> {
    let ok = [("result", "ok")];
    Ok(pod.metrics()?.sum("control_identity_cert_refreshes_total", &ok).unwrap_or(0.0))
}

/// Least squares.
fn slope(points: &[(f64, f64)]) -> f64 {
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count.max(1.0);
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let (above, below) = points.iter().fold((0.0, 0.0), |(above, below), point| {
        (above + (point.0 - x) * (point.1 - y), below + (point.0 - x).powi(2))
    });
    if below > 0.0 { above / below } else { 0.0 }
}

/// Does one thing again and again on a thread, on a connection of its own each time.
struct Worker {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    failed: Arc<AtomicUsize>,
    thread: JoinHandle<Vec<String>>,
}

impl Worker {
    fn start(from: &PodRef<'_>, to: SocketAddr, work: fn(std::net::TcpStream) -> Result<()>) -> Result<Self> {
        let (stop, done, failed) =
            (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let (stopped, counted, lost) = (stop.clone(), done.clone(), failed.clone());
        let sandbox = from.sandbox()?;
        connect(from, to)?;
        let thread = std::thread::Builder::new().name("soak".into()).spawn(move || {
            let mut failures = Vec::new();
            if let Err(error) = crate::sandbox::join_net(sandbox) {
                return vec![format!("{error:#}")];
            }
            while !stopped.load(Ordering::Relaxed) {
                let connected = std::net::TcpStream::connect_timeout(&to, LIMIT).context("connecting");
                let worked = connected.and_then(|stream| {
                    stream.set_read_timeout(Some(LIMIT))?;
                    stream.set_write_timeout(Some(LIMIT))?;
                    work(stream)
                });
                match worked {
                    Ok(()) => {
                        counted.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(error) => {
                        lost.fetch_add(1, Ordering::Relaxed);
                        failures.push(format!("{error:#}"));
                    }
                }
                // As much as a machine with two processors bears beside everything else.
                std::thread::sleep(Duration::from_millis(100));
            }
            failures
        })?;
        Ok(Self { stop, done, failed, thread })
    }

    fn finish(self) -> Result<Vec<String>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("a worker of the soak panicked"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slope_is_that_of_a_line() {
        let line: Vec<(f64, f64)> = (0..10).map(|x| (f64::from(x), 3.0 * f64::from(x) + 7.0)).collect();
        assert!((slope(&line) - 3.0).abs() < 1e-9);
        assert!(slope(&[(1.0, 5.0)]).abs() < 1e-9);
    }
}

//! Part 9: what a request costs through two proxies, beside the same request without any.

use std::time::Duration;

use anyhow::{Context as _, Result};

use super::detection::millis;
use super::load::{Report, Target, closed_loop};
use super::stage::Stage;
use super::tell::{Teller, say};
use crate::PodRef;

/// How long each line of the table is measured.
const TIME: Duration = Duration::from_secs(3);
/// Connections that are kept busy.
const CONNECTIONS: usize = 8;
const PROXY: &str = "linkerd-proxy";

/// Tells it.
pub fn tell(stage: &Stage, teller: &mut Teller) -> Result<()> {
    let target = |name: &str| -> Result<Target> {
        Ok(Target { addr: stage.service(name, 80)?, host: name.to_owned(), path: "/".into() })
    };
    let (client, stranger) = (stage.pod("client")?, stage.pod("stranger")?);
    let web = stage.replicas("web");
    let (to_web, to_bare) = (target("web")?, target("bare")?);
    let proxies: Vec<PodRef<'_>> = std::iter::once(client.clone()).chain(web).collect();

    let bare =
        teller.wait("measuring without proxies", || closed_loop(&stranger, &to_bare, CONNECTIONS, TIME))?;
    let before = proxies.iter().map(cpu).collect::<Result<Vec<_>>>()?;
    let meshed =
        teller.wait("measuring through two proxies", || closed_loop(&client, &to_web, CONNECTIONS, TIME))?;
    let after = proxies.iter().map(cpu).collect::<Result<Vec<_>>>()?;
    let used: Vec<Duration> =
        after.iter().zip(&before).map(|(after, before)| after.saturating_sub(*before)).collect();

    say("                                           requests/s        p50        p99");
    row("without proxies (stranger → bare)", &bare);
    row("through two proxies (client → web)", &meshed);
    teller.line("CPU of the proxies per request", per_request(&meshed, &used));
    for pod in stage.mesh.all_pods().iter().filter(|pod| is_meshed(pod)) {
        teller
            .line(&format!("memory of {}'s proxy", pod.name.name), format_args!("{:>6.1} MiB", memory(pod)?));
    }
    let failed = bare.failed + meshed.failed;
    let told = match bare.failures.iter().chain(&meshed.failures).next() {
        Some(first) => format!("{failed} failed, the first: {first}"),
        None => format!("{} requests", bare.requests + meshed.requests),
    };
    teller.holds("no request failed", failed == 0 && meshed.requests > 0, told);
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let build = if cfg!(debug_assertions) { "a build without optimisation" } else { "an optimised build" };
    teller.line(
        "Figures of this machine in this run:",
        format_args!(
            "{build}, {CONNECTIONS} connections, {} s each; servers, proxies and load share {cores} cores",
            TIME.as_secs()
        ),
    );
    Ok(())
}

/// Whether the injector gave it a proxy.
fn is_meshed(pod: &PodRef<'_>) -> bool {
    let spec = pod.object().spec.unwrap_or_default();
    let mut containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    containers.any(|container| container.name == PROXY)
}

fn row(what: &str, report: &Report) {
    say(format_args!(
        "   {what:<39} {:>10.0} {:>10} {:>10}",
        report.rate(),
        millis(report.percentile(0.5)),
        millis(report.percentile(0.99)),
    ));
}

/// `used`: what the client's proxy used, and then what those of the servers did.
fn per_request(report: &Report, used: &[Duration]) -> String {
    let answered = report.latencies.len().max(1) as f64;
    let micros = |time: Duration| time.as_secs_f64() * 1e6 / answered;
    let (client, servers) = used
        .split_first()
        .map_or((0.0, 0.0), |(client, servers)| (micros(*client), micros(servers.iter().sum())));
    format!("{:.0} µs (client's {client:.0}, servers' {servers:.0})", client + servers)
}

/// What the proxy has run on a processor so far (`/proc/PID/task/*/schedstat`, proc(5): the first number, nanoseconds).
fn cpu(pod: &PodRef<'_>) -> Result<Duration> {
    let pid = proxy(pod)?;
    let mut nanos = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end between being listed and being looked at.
        let Ok(text) = std::fs::read_to_string(task?.path().join("schedstat")) else { continue };
        nanos += text.split(' ').next().and_then(|first| first.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(Duration::from_nanos(nanos))
}

/// Resident memory in MiB (`VmRSS` of proc(5)).
fn memory(pod: &PodRef<'_>) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", proxy(pod)?))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").trim().parse().context("VmRSS is not a number")?;
    Ok(kib / 1024.0)
}

fn proxy(pod: &PodRef<'_>) -> Result<i32> {
    pod.pid(PROXY).with_context(|| format!("the proxy of {} does not run", pod.name))
}

//! Part 6: a replica that fails every other request is hidden by retries, as far as their budget goes.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::load::{Target, closed_loop};
use super::stage::{Stage, counted, grown};
use super::tell::Teller;
use crate::{PodRef, shop};

const PROFILE: &str = include_str!("../../../demo/retries.yaml");
/// What it says of the budget, and what it says later.
const BUDGET: &str = "{retryRatio: 1, minRetriesPerSecond: 10, ttl: 10s}";
const SMALL: &str = "{retryRatio: 0, minRetriesPerSecond: 1, ttl: 1s}";
/// How long each line is measured, and by how many connections at once: one alone would stay with the replica that answers
/// faster.
const TIME: Duration = Duration::from_millis(1500);
const CONNECTIONS: usize = 8;
const ROUTE: [(&str, &str); 2] =
    [("dst", "orders.shop.svc.cluster.local:80"), ("rt_route", "GET /orders/{id}")];

/// Tells it.
pub fn tell(stage: &Stage, teller: &mut Teller) -> Result<()> {
    let client = stage.pod("client")?;
    let proxy = [client.clone()];
    let (requests, failed) = orders(stage, &client)?;
    teller.holds("without retries v2's failures show", failed > 0, told(requests, failed));

    let seen = counted(&proxy)?;
    stage.mesh.apply(PROFILE).context("applying demo/retries.yaml")?;
    teller.line("demo/retries.yaml", format_args!("GET /orders/{{id}} isRetryable, budget {BUDGET}"));
    stage.until("the profile holds", || holds(&client, "1.0"))?;
    let (requests, failed) = orders(stage, &client)?;
    teller.holds("with retries nobody sees one", failed == 0, told(requests, failed));
    let failures_of_tries = [&ROUTE[..], &[("classification", "failure")]].concat();
    let hidden = grown(&proxy, &seen, "route_actual_response_total", &failures_of_tries, 1.0)?;
    teller.holds("the tries that failed are counted", hidden > 0.0, format_args!("{hidden} tries"));

    let seen = counted(&proxy)?;
    let small = PROFILE.replace(BUDGET, SMALL);
    if small == PROFILE {
        bail!("demo/retries.yaml has no budget {BUDGET}");
    }
    stage.mesh.apply(&small).context("applying a smaller budget")?;
    teller.line("the same with a small budget", SMALL);
    stage.until("the smaller budget holds", || holds(&client, "0.0"))?;
    let (requests, failed) = orders(stage, &client)?;
    teller.holds("what it does not allow shows again", failed > 0, told(requests, failed));
    let skipped = [&ROUTE[..], &[("skipped", "no_budget")]].concat();
    let stopped = grown(&proxy, &seen, "route_retryable_total", &skipped, failed as f64)?;
    let told = format!("skipped=\"no_budget\" +{stopped}");
    teller.holds("the budget stopped them, and says so", stopped.total_cmp(&(failed as f64)).is_ge(), told);
    // For what is told later.
    stage.mesh.apply(PROFILE)?;
    stage.until("the budget is back", || holds(&client, "1.0"))
}

/// How many requests there were, and how many of them did not get their order.
fn orders(stage: &Stage, client: &PodRef<'_>) -> Result<(usize, usize)> {
    let target =
        Target { addr: stage.service("orders", 80)?, host: "orders".into(), path: "/orders/7".into() };
    let report = closed_loop(client, &target, CONNECTIONS, TIME)?;
    match report.failures.iter().find(|failure| !failure.contains("out of pans")) {
        Some(other) => bail!("not the kitchen's failure: {other}"),
        None => Ok((report.requests, report.failed)),
    }
}

fn told(requests: usize, failed: usize) -> String {
    format!("{requests} requests, {failed} failed")
}

/// Whether the client's proxy goes by a profile with this retry ratio.
fn holds(client: &PodRef<'_>, ratio: &str) -> Result<bool> {
    shop::curl(client, &["-o", "/dev/null", "http://orders/"])?;
    Ok(shop::state(client)?.to_string().contains(&format!("\"retryRatio\":{ratio}")))
}

//! Part 5: a route gives a tenth of the requests to a second version, and all of those that ask for it by a header.

use anyhow::{Context as _, Result, ensure};

use super::stage::{Stage, counted, grown};
use super::tell::Teller;
use crate::{PodRef, shop};

const ROUTE: &str = include_str!("../../../demo/canary.yaml");
/// Requests without the header.
const SHARED: u32 = 300;
/// What a share of 10 % of them is, give or take five standard deviations.
const TENTH: std::ops::RangeInclusive<usize> = 5..=56;
/// Requests with it.
const PINNED: u32 = 20;

/// Tells it.
pub fn tell(stage: &Stage, teller: &mut Teller) -> Result<()> {
    let client = stage.pod("client")?;
    let before = versions(&client, &["http://menu/[1-20]"])?;
    teller.holds("without a route: one version", before == [20, 0], shares(before));

    stage.mesh.apply(ROUTE).context("applying demo/canary.yaml")?;
    teller.line("demo/canary.yaml", "HTTPRoute: v1 90 %, v2 10 %; with x-canary: always v2");
    let pinned = ["-H", "x-canary: always"];
    stage.until("the route holds", || {
        Ok(versions(&client, &[&pinned[..], &["http://menu/"]].concat())? == [0, 1])
    })?;
    let proxy = [client.clone()];
    let seen = counted(&proxy)?;
    let shared = versions(&client, &[&format!("http://menu/[1-{SHARED}]")])?;
    teller.holds("a tenth goes to v2", TENTH.contains(&shared[1]), shares(shared));
    let pinned = versions(&client, &[&pinned[..], &[&format!("http://menu/[1-{PINNED}]")]].concat())?;
    teller.holds("with the header all of them do", pinned == [0, PINNED as usize], shares(pinned));
    let to_v2 = (shared[1] + pinned[1]) as f64;
    let name = "outbound_http_route_backend_requests_total";
    let labels = [("route_name", "menu"), ("backend_name", "menu-v2")];
    let growth = grown(&proxy, &seen, name, &labels, to_v2)?;
    let told = format!("backend_name=\"menu-v2\" +{growth}");
    teller.holds("the client's proxy counted them", growth.total_cmp(&to_v2).is_eq(), told);
    Ok(())
}

/// How many answers came from either version.
fn versions(client: &PodRef<'_>, arguments: &[&str]) -> Result<[usize; 2]> {
    let answers = shop::curl(client, arguments)?;
    let of = |version: &str| answers.lines().filter(|line| *line == version).count();
    let versions = [of("menu v1"), of("menu v2")];
    ensure!(versions.iter().sum::<usize>() == answers.lines().count(), "no menu: {answers}");
    Ok(versions)
}

fn shares([v1, v2]: [usize; 2]) -> String {
    format!("{} requests: v1 {v1}, v2 {v2}", v1 + v2)
}

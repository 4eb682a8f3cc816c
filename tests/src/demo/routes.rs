//! Part 8: what the client's proxy counted by the routes of each ServiceProfile, as a table.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::stage::Stage;
use super::tell::{Teller, say};
use crate::metrics::Samples;
use crate::shop;

const PROFILE: &str = include_str!("../../../demo/profile.yaml");
/// Of requests that no route has.
const REST: &str = "[DEFAULT]";

/// Tells it.
pub fn tell(stage: &Stage, teller: &mut Teller) -> Result<()> {
    let client = stage.pod("client")?;
    stage.mesh.apply(PROFILE).context("applying demo/profile.yaml")?;
    teller.line("demo/profile.yaml", "ServiceProfile: the routes of web");
    let ask = |arguments: &[&str]| shop::curl(&client, &[&["-o", "/dev/null"], arguments].concat());
    stage.until("the profile holds", || {
        ask(&["http://web/"])?;
        Ok(client.metrics()?.count("route_request_total", &[("dst", WEB), ("rt_route", "GET /")]) > 0)
    })?;
    ask(&["http://web/?[1-20]"])?;
    ask(&["http://web/catalogue/[1-50]"])?;
    ask(&["-d", "soup", "http://orders/orders?[1-20]"])?;
    // The last bodies are counted when they have ended.
    stage.until("everything to be counted", || {
        let samples = client.metrics()?;
        Ok(samples.count("route_request_total", &[]) == samples.count("route_response_total", &[]))
    })?;
    let samples = client.metrics()?;
    let rows = rows(&samples);
    say("   route                   requests  success   tries  success      p50      p99");
    let mut service = "";
    for row in &rows {
        if service != row.dst {
            service = &row.dst;
            say(format_args!("   {service}"));
        }
        say(row.line());
    }
    let named = |dst: &str| rows.iter().filter(|row| row.dst == dst && row.route != REST).count();
    teller.holds(
        "every route has its line",
        named(WEB) == 2 && named(ORDERS) == 2,
        format_args!("{} routes of 2 profiles", named(WEB) + named(ORDERS)),
    );
    let hidden = rows.iter().filter(|row| row.dst == ORDERS).any(|row| row.of_tries < row.of_requests);
    teller.holds("retries made requests better than tries", hidden, "GET /orders/{id}");
    Ok(())
}

const WEB: &str = "web.shop.svc.cluster.local:80";
const ORDERS: &str = "orders.shop.svc.cluster.local:80";

/// What was counted of a route.
#[derive(Debug, PartialEq)]
struct Row {
    dst: String,
    route: String,
    requests: u64,
    /// The share of requests that succeeded, 0 to 1, as their client saw them.
    of_requests: f64,
    tries: u64,
    /// The same of tries.
    of_tries: f64,
    /// Bounds of the buckets in which these latencies are.
    p50: Option<Duration>,
    p99: Option<Duration>,
}

impl Row {
    fn line(&self) -> String {
        let time = |time: Option<Duration>| {
            time.map_or_else(|| ">60 s".into(), |time| format!("≤{} ms", time.as_millis()))
        };
        let percent = |share: f64| format!("{:.1} %", share * 100.0);
        format!(
            "     {:<22} {:>7} {:>8} {:>7} {:>8} {:>8} {:>8}",
            self.route,
            self.requests,
            percent(self.of_requests),
            self.tries,
            percent(self.of_tries),
            time(self.p50),
            time(self.p99),
        )
    }
}

/// Every route of every profile that was counted outbound, by Service and name.
fn rows(samples: &Samples) -> Vec<Row> {
    let outbound = [("direction", "outbound")];
    let label =
        |sample: &crate::metrics::Sample, name: &str| sample.labels.get(name).cloned().unwrap_or_default();
    let named = samples.matching("route_request_total", &outbound);
    let named: BTreeSet<(String, String)> =
        named.map(|sample| (label(sample, "dst"), label(sample, "rt_route"))).collect();
    named.into_iter().map(|(dst, route)| row(samples, dst, route)).filter(|row| row.requests > 0).collect()
}

fn row(samples: &Samples, dst: String, route: String) -> Row {
    let of = |name: &'static str| {
        samples.0.iter().filter(move |sample| sample.name == name).filter(|sample| {
            let is = |label: &str, value: &str| sample.labels.get(label).map_or("", String::as_str) == value;
            is("direction", "outbound") && is("dst", &dst) && is("rt_route", &route)
        })
    };
    let answered = |name: &'static str| {
        let all: f64 = of(name).map(|sample| sample.value).sum();
        let failed = of(name)
            .filter(|sample| sample.labels.get("classification").is_some_and(|class| class == "failure"));
        let failed: f64 = failed.map(|sample| sample.value).sum();
        (all as u64, if all > 0.0 { 1.0 - failed / all } else { 1.0 })
    };
    let percentile = |share: f64| {
        let mut buckets: Vec<(f64, f64)> = Vec::new();
        for sample in of("route_response_latency_ms_bucket") {
            let Some(bound) = sample.labels.get("le").and_then(|le| le.replace("+Inf", "inf").parse().ok())
            else {
                continue;
            };
            match buckets.iter_mut().find(|(le, _)| le.total_cmp(&bound).is_eq()) {
                Some((_, count)) => *count += sample.value,
                None => buckets.push((bound, sample.value)),
            }
        }
        buckets.sort_by(|(one, _), (other, _)| one.total_cmp(other));
        let all = buckets.last().map_or(0.0, |(_, count)| *count);
        let found = buckets.iter().find(|(_, count)| *count >= share * all)?;
        Duration::try_from_secs_f64(found.0 / 1e3).ok()
    };
    let (requests, of_requests) = answered("route_response_total");
    let (tries, of_tries) = answered("route_actual_response_total");
    let (p50, p99) = (percentile(0.5), percentile(0.99));
    let route = if route.is_empty() { REST.to_owned() } else { route };
    Row { dst, route, requests, of_requests, tries, of_tries, p50, p99 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::parse;

    #[test]
    fn a_row_is_what_was_counted_of_its_route() {
        let text = "
route_request_total{direction=\"outbound\",dst=\"a:80\",rt_route=\"GET /\"} 10
route_request_total{direction=\"outbound\",dst=\"a:80\"} 1
route_request_total{direction=\"inbound\",dst=\"a:80\",rt_route=\"GET /\"} 99
route_response_total{direction=\"outbound\",dst=\"a:80\",classification=\"success\"} 1
route_request_total{direction=\"outbound\",dst=\"a:80\",rt_route=\"never asked\"} 0
route_response_total{direction=\"outbound\",dst=\"a:80\",rt_route=\"GET /\",classification=\"success\"} 9
route_response_total{direction=\"outbound\",dst=\"a:80\",rt_route=\"GET /\",classification=\"failure\"} 1
route_actual_response_total{direction=\"outbound\",dst=\"a:80\",rt_route=\"GET /\",classification=\"success\"} 9
route_actual_response_total{direction=\"outbound\",dst=\"a:80\",rt_route=\"GET /\",classification=\"failure\"} 11
route_response_latency_ms_bucket{direction=\"outbound\",dst=\"a:80\",rt_route=\"GET /\",status_code=\"200\",le=\"1\"} 8
route_response_latency_ms_bucket{direction=\"outbound\",dst=\"a:80\",rt_route=\"GET /\",status_code=\"200\",le=\"50\"} 9
route_response_latency_ms_bucket{direction=\"outbound\",dst=\"a:80\",rt_route=\"GET /\",status_code=\"503\",le=\"1\"} 0
route_response_latency_ms_bucket{direction=\"outbound\",dst=\"a:80\",rt_route=\"GET /\",status_code=\"503\",le=\"50\"} 1
";
        let rows = rows(&parse(text));
        let names: Vec<&str> = rows.iter().map(|row| row.route.as_str()).collect();
        assert_eq!(names, ["[DEFAULT]", "GET /"]);
        let row = &rows[1];
        assert_eq!((row.requests, row.tries), (10, 20));
        assert_eq!(row.p50.map(|time| time.as_millis()), Some(1));
        assert_eq!(row.p99.map(|time| time.as_millis()), Some(50));
        let line = "     GET /                       10   90.0 %      20   45.0 %    ≤1 ms   ≤50 ms";
        assert_eq!(row.line(), line);
    }
}

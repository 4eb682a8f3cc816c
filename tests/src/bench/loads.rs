//! Pure. What is asked of the proxies: every load by name, and every row of the table with its floor and its aim.

use serde::Serialize;

use super::routes;

/// The body of `/small` in `bench/site.yaml`.
pub const SMALL: u64 = 200;

/// How requests are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// HTTP/1.1 on kept connections, one request after the other on each.
    Kept,
    /// HTTP/1.1, each request on a connection of its own, so many at once.
    Fresh,
    /// HTTP/2 without TLS, so many streams on each connection.
    Streams(usize),
    /// The same as `Kept`, counted in bytes: requests are long.
    Bulk,
}

/// Where nginx speaks HTTP/2 only.
pub const HTTP2_PORTS: [u16; 2] = [8080, 8082];

/// A load that is measured over a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    pub name: &'static str,
    pub traffic: Traffic,
    pub connections: usize,
    /// Of nginx: 80 is HTTP/1.1, 81 the same and marked opaque, 8080 HTTP/2; 82 and 8082 have routes.
    pub port: u16,
    pub path: &'static str,
    /// Bytes of the body that has to come.
    pub body: u64,
}

const fn load(name: &'static str, traffic: Traffic, connections: usize, port: u16) -> Load {
    Load { name, traffic, connections, port, path: "/small", body: SMALL }
}

/// Loads that are measured over a time, in the order of the table.
pub const TIMED: [Load; 11] = [
    load("http1-64", Traffic::Kept, 64, 80),
    load("http1-1", Traffic::Kept, 1, 80),
    Load { path: "/64k", body: 65_536, ..load("http1-64k", Traffic::Kept, 32, 80) },
    load("http2", Traffic::Streams(16), 4, 8080),
    Load { path: routes::PATH, ..load("http1-routes", Traffic::Kept, 64, 82) },
    Load { path: routes::PATH, ..load("http2-routes", Traffic::Streams(16), 4, 8082) },
    load("http1-new", Traffic::Fresh, 16, 80),
    load("opaque-64", Traffic::Kept, 64, 81),
    load("opaque-new", Traffic::Fresh, 16, 81),
    Load { path: "/100m", body: 100_000_000, ..load("bulk-http1", Traffic::Bulk, 1, 80) },
    Load { path: "/100m", body: 100_000_000, ..load("bulk-opaque", Traffic::Bulk, 1, 81) },
];

/// A load whose memory is measured: connections that are opened, held and closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holding {
    pub name: &'static str,
    pub port: u16,
}

/// Loads whose memory is measured.
pub const HOLDINGS: [Holding; 2] =
    [Holding { name: "memory-http1", port: 80 }, Holding { name: "memory-opaque", port: 81 }];

/// A load whose routes change while it runs.
pub const CHANGE: &str = "change";

/// What a row says of its load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Measure {
    /// CPU of both proxies per request, in microseconds.
    Cpu,
    /// Median latency above that without proxies, in microseconds.
    Added,
    /// Bodies, in MB/s.
    Throughput,
    /// Resident memory of a proxy that has done nothing yet, in MiB: the larger of the two.
    Idle,
    /// Growth of resident memory per held connection, in KiB: the larger of the two proxies.
    Held,
    /// Resident memory 30 s after the connections were closed, by that before they were opened: the larger of the two.
    Closed,
    /// The 99.9th percentile of the latency in the time around a new configuration, by that in the time before.
    Change,
}

impl Measure {
    /// Whether Remora is judged by its ratio to Envoy, and not by the figure itself.
    pub fn is_relative(self) -> bool {
        matches!(self, Self::Cpu | Self::Added | Self::Throughput)
    }

    /// Whether `figure` is good enough for `goal`.
    pub fn meets(self, figure: f64, goal: f64) -> bool {
        if self == Self::Throughput { figure >= goal } else { figure <= goal }
    }
}

/// A row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Row {
    /// The name of its load.
    pub load: &'static str,
    pub measure: Measure,
    pub title: &'static str,
    /// What has to be reached, and what should be.
    pub floor: f64,
    pub aim: f64,
}

const fn row(load: &'static str, measure: Measure, title: &'static str, floor: f64, aim: f64) -> Row {
    Row { load, measure, title, floor, aim }
}

/// The table.
pub const ROWS: [Row; 18] = [
    row("http1-64", Measure::Cpu, "HTTP/1.1, 64 connections, CPU per request", 0.40, 0.22),
    row("http1-1", Measure::Cpu, "HTTP/1.1, 1 connection, CPU per request", 0.45, 0.35),
    row("http1-1", Measure::Added, "HTTP/1.1, 1 connection, p50 added over direct", 0.60, 0.40),
    row("http1-64k", Measure::Cpu, "HTTP/1.1, 32 connections, 64 KiB bodies, CPU", 0.60, 0.42),
    row("http2", Measure::Cpu, "HTTP/2, 4 x 16 streams, CPU per request", 0.55, 0.40),
    row("http1-routes", Measure::Cpu, "HTTP/1.1, 64 connections, 200 routes, CPU", 0.50, 0.30),
    row("http2-routes", Measure::Cpu, "HTTP/2, 4 x 16 streams, 200 routes, CPU", 0.50, 0.40),
    row("http1-new", Measure::Cpu, "HTTP/1.1, new connection per request, CPU", 0.60, 0.35),
    row("opaque-64", Measure::Cpu, "opaque keep-alive, 64 connections, CPU", 0.50, 0.26),
    row("opaque-new", Measure::Cpu, "opaque, new connection per request, CPU", 0.25, 0.12),
    row("bulk-http1", Measure::Throughput, "bulk 100 MB, HTTP/1.1, MB/s", 1.2, 1.6),
    row("bulk-opaque", Measure::Throughput, "bulk 100 MB, opaque, MB/s", 1.1, 1.3),
    row("memory-http1", Measure::Idle, "RSS idle, MiB per proxy", 10.0, 6.0),
    row("memory-http1", Measure::Held, "KiB per idle connection, HTTP/1.1", 6.0, 2.0),
    row("memory-opaque", Measure::Held, "KiB per idle connection, opaque", 4.0, 1.2),
    row("memory-http1", Measure::Closed, "RSS after 3,000 closed / before, HTTP/1.1", 1.3, 1.1),
    row("memory-opaque", Measure::Closed, "RSS after 3,000 closed / before, opaque", 1.3, 1.1),
    row(CHANGE, Measure::Change, "p99.9 as 1,000 routes change / before", 2.0, 1.2),
];

/// Every name that may be asked for.
pub fn names() -> Vec<&'static str> {
    let timed = TIMED.iter().map(|load| load.name);
    timed.chain(HOLDINGS.iter().map(|holding| holding.name)).chain([CHANGE]).collect()
}

/// Which loads a list like `http1-64,opaque` means: a name, or the beginning of names. An empty list means all.
///
/// # Errors
/// A word that begins no name: says which there are.
pub fn chosen(list: &str) -> Result<Vec<&'static str>, String> {
    let words: Vec<&str> = list.split(',').map(str::trim).filter(|word| !word.is_empty()).collect();
    let known = names();
    for word in &words {
        if !known.iter().any(|name| name.starts_with(word)) {
            return Err(format!("there is no load {word:?}; there are: {}", known.join(", ")));
        }
    }
    let means = |name: &str| {
        words.is_empty()
            || words.iter().any(
                |word| {
                    if known.contains(word) { name == *word } else { name.starts_with(word) }
                },
            )
    };
    Ok(known.iter().copied().filter(|name| means(name)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_load_has_a_row_and_every_row_a_load() {
        for name in names() {
            assert!(ROWS.iter().any(|row| row.load == name), "{name} has no row");
        }
        for row in ROWS {
            assert!(names().contains(&row.load), "{} is of no load", row.title);
            assert!(row.measure.meets(row.aim, row.floor), "{}: the aim is below the floor", row.title);
        }
    }

    #[test]
    fn loads_are_chosen_by_name_or_by_how_they_begin() {
        for (list, expected) in [
            ("http1-64", vec!["http1-64"]),
            ("opaque", vec!["opaque-64", "opaque-new"]),
            ("memory, bulk-http1", vec!["bulk-http1", "memory-http1", "memory-opaque"]),
            ("", names()),
        ] {
            assert_eq!(chosen(list), Ok(expected), "{list:?}");
        }
        assert!(chosen("http1-64,none").unwrap_err().contains("\"none\""));
    }

    #[test]
    fn a_goal_of_throughput_is_reached_from_below_and_every_other_from_above() {
        for (measure, figure, goal, met) in [
            (Measure::Cpu, 0.40, 0.40, true),
            (Measure::Cpu, 0.41, 0.40, false),
            (Measure::Throughput, 1.2, 1.2, true),
            (Measure::Throughput, 1.19, 1.2, false),
            (Measure::Held, 6.1, 6.0, false),
        ] {
            assert_eq!(measure.meets(figure, goal), met, "{measure:?} {figure} {goal}");
        }
    }
}

//! `process_*`: what the operating system says of this process, under the names that every Prometheus client uses.

use crate::clock;
use prometheus_client::{
    encoding::{DescriptorEncoder, NoLabelSet},
    metrics::MetricType,
};
use std::{fmt, fs};

/// Reads `/proc/self` at every scrape. What cannot be read is not printed.
#[derive(Debug)]
pub(super) struct Collector {
    started: f64,
}

impl Collector {
    pub(super) fn new() -> Self {
        let age = age().unwrap_or_default();
        Self { started: clock::unix_now().0.as_secs_f64() - age }
    }
}

impl prometheus_client::collector::Collector for Collector {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> fmt::Result {
        gauge(
            &mut to,
            "process_start_time_seconds",
            "When the process started, in seconds since 1970",
            self.started,
        )?;
        if let Some(stat) = Stat::read() {
            let help = "CPU time that the process has used, user and system";
            let mut counter = to.encode_descriptor("process_cpu_seconds", help, None, MetricType::Counter)?;
            counter.encode_counter::<NoLabelSet, _, f64>(&stat.cpu_seconds(), None)?;
            let help = "Bytes of memory that are resident";
            gauge(&mut to, "process_resident_memory_bytes", help, stat.resident_bytes())?;
            let help = "Bytes of address space";
            gauge(&mut to, "process_virtual_memory_bytes", help, stat.virtual_bytes as f64)?;
        }
        if let Ok(entries) = fs::read_dir("/proc/self/fd") {
            // One of them is the folder that is being read.
            let open = entries.count().saturating_sub(1);
            gauge(&mut to, "process_open_fds", "Open file descriptors", open as f64)?;
        }
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let limit = limit.map_or(f64::INFINITY, |limit| limit as f64);
        gauge(&mut to, "process_max_fds", "Most file descriptors that may be open", limit)
    }
}

fn gauge(to: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: f64) -> fmt::Result {
    to.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
}

/// Seconds since this process was started.
fn age() -> Option<f64> {
    let uptime: f64 = fs::read_to_string("/proc/uptime").ok()?.split_whitespace().next()?.parse().ok()?;
    let started = Stat::read()?.started_ticks as f64 / ticks_per_second();
    Some((uptime - started).max(0.0))
}

fn ticks_per_second() -> f64 {
    rustix::param::clock_ticks_per_second() as f64
}

/// Fields of `/proc/self/stat`, proc_pid_stat(5).
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    cpu_ticks: u64,
    started_ticks: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

impl Stat {
    fn read() -> Option<Self> {
        Self::parse(&fs::read_to_string("/proc/self/stat").ok()?)
    }

    /// The second field is the command in brackets and may hold anything, also brackets and spaces.
    fn parse(stat: &str) -> Option<Self> {
        let (_, after_command) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = after_command.split_whitespace().collect();
        // The manual counts from 1 and these begin with its field 3.
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            cpu_ticks: field(14)?.saturating_add(field(15)?),
            started_ticks: field(22)?,
            virtual_bytes: field(23)?,
            resident_pages: field(24)?,
        })
    }

    fn cpu_seconds(&self) -> f64 {
        self.cpu_ticks as f64 / ticks_per_second()
    }

    fn resident_bytes(&self) -> f64 {
        self.resident_pages as f64 * rustix::param::page_size() as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_may_hold_brackets_and_spaces() {
        let stat = "7 (a) R (b) S 1 7 7 0 -1 4194304 120 0 3 0 150 50 0 0 20 0 5 0 9000 2097152 640 18446744073709551615 1";
        assert_eq!(
            Stat::parse(stat),
            Some(Stat { cpu_ticks: 200, started_ticks: 9000, virtual_bytes: 2_097_152, resident_pages: 640 })
        );
    }

    #[test]
    fn half_a_line_is_nothing() {
        assert_eq!(Stat::parse("7 (remora) S 1 7"), None);
        assert_eq!(Stat::parse(""), None);
    }

    #[test]
    fn this_process_is_young_and_uses_memory() {
        assert!(age().is_some_and(|age| age < 3600.0));
        assert!(Stat::read().is_some_and(|stat| stat.resident_bytes() > 100_000.0));
    }
}

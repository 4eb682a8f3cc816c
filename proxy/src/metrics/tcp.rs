//! Connections and their bytes: opened, open, read, written, closed and why.

use super::{
    few::Few,
    labels::{Labels, label},
};
use crate::stream::Meter;
use remora_runtime::metrics::{Budgeted, Counter, Gauge, GaugeGuard, Registry};
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicI32, Ordering},
    },
};

/// `tcp_*`.
#[derive(Clone)]
pub struct TcpFamilies {
    opened: Budgeted<Labels, Counter>,
    open: Budgeted<Labels, Gauge>,
    read: Budgeted<Labels, Counter>,
    written: Budgeted<Labels, Counter>,
    closed: Budgeted<Labels, Counter>,
}

impl TcpFamilies {
    pub fn register(registry: &Registry, budget: usize) -> Self {
        let counters = |name, help| registry.counters(name, help, budget);
        Self {
            opened: counters("tcp_open_total", "Total count of opened connections"),
            open: registry.gauges("tcp_open_connections", "Number of currently-open connections", budget),
            read: counters("tcp_read_bytes_total", "Total count of bytes read from peers"),
            written: counters("tcp_write_bytes_total", "Total count of bytes written to peers"),
            closed: counters("tcp_close_total", "Total count of closed connections"),
        }
    }

    /// The handles of one label set.
    pub fn of(&self, labels: Labels) -> Arc<TcpMetrics> {
        Arc::new(TcpMetrics {
            opened: self.opened.get(labels.clone()),
            open: self.open.get(labels.clone()),
            read: self.read.get(labels.clone()),
            written: self.written.get(labels.clone()),
            families: self.clone(),
            closed: Few::default(),
            labels,
        })
    }
}

/// The connection series of one label set.
pub struct TcpMetrics {
    labels: Labels,
    opened: Counter,
    open: Gauge,
    read: Counter,
    written: Counter,
    families: TcpFamilies,
    /// By the first system error, 0 where there was none.
    closed: Few<i32, Counter>,
}

impl TcpMetrics {
    /// Counts a connection as open until the guard is dropped.
    pub fn open(self: &Arc<Self>) -> Open {
        self.opened.inc();
        Open { _counted: self.open.guard(), metrics: self.clone(), errno: AtomicI32::new(0) }
    }
}

/// An open connection.
pub struct Open {
    metrics: Arc<TcpMetrics>,
    _counted: GaugeGuard,
    /// The first system error, 0 while there is none.
    errno: AtomicI32,
}

impl Meter for Open {
    fn read(&self, bytes: usize) {
        self.metrics.read.inc_by(bytes as u64);
    }

    fn wrote(&self, bytes: usize) {
        self.metrics.written.inc_by(bytes as u64);
    }

    fn failed(&self, error: &io::Error) {
        if let Some(errno) = error.raw_os_error() {
            // Only the first: what follows is its consequence.
            let _ = self.errno.compare_exchange(0, errno, Ordering::Relaxed, Ordering::Relaxed);
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let errno = self.errno.load(Ordering::Relaxed);
        let resolve = || {
            let mut labels = self.metrics.labels.clone();
            labels.push(label("errno", errno_name(errno)));
            self.metrics.families.closed.get(labels)
        };
        self.metrics.closed.count(errno, resolve, Counter::inc);
    }
}

/// The names that operators know; others by number.
fn errno_name(errno: i32) -> String {
    use rustix::io::Errno;
    if errno == 0 {
        return String::new();
    }
    let known = [
        (Errno::CONNRESET, "ECONNRESET"),
        (Errno::PIPE, "EPIPE"),
        (Errno::TIMEDOUT, "ETIMEDOUT"),
        (Errno::CONNABORTED, "ECONNABORTED"),
        (Errno::HOSTUNREACH, "EHOSTUNREACH"),
        (Errno::NETUNREACH, "ENETUNREACH"),
        (Errno::NOTCONN, "ENOTCONN"),
    ];
    known
        .iter()
        .find(|(known, _)| known.raw_os_error() == errno)
        .map_or_else(|| errno.to_string(), |(_, name)| (*name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reset_is_named_and_an_orderly_close_is_not() {
        assert_eq!(errno_name(104), "ECONNRESET");
        assert_eq!(errno_name(0), "");
        assert_eq!(errno_name(5), "5");
    }
}

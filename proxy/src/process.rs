//! The process as a whole: what the machine lets it use, and what it counts of itself.

use crate::config::Config;
use remora_runtime::{
    log,
    metrics::{ReadGauge, Registry},
    room::{self, Memory},
    tasks::{self, Tasks},
};
use tracing::info;

/// Fits the configuration to the machine, and registers what every process counts. Must be called within a runtime.
pub fn prepare(config: &mut Config, registry: &Registry, tasks: &Tasks) {
    registry.build_info(env!("CARGO_PKG_VERSION"), "remora");
    tasks::count_panics(registry.counter(
        "remora_panics_total",
        "Panics: each is a bug, and ended one connection, request or task alone",
    ));
    let panicking = tasks.clone();
    let help = "Tasks that panicked since the start; each ended alone";
    gauge(registry, "remora_tasks_panicked", help, move || panicking.panicked());
    let help = "Log lines that nobody took since the start";
    gauge(registry, "remora_log_lines_dropped", help, log::dropped);
    descriptors(config);
    let limit =
        config.limits.memory.map_or_else(room::cgroup_memory, |said| Some(said).filter(|said| *said > 0));
    if let Some(limit) = limit {
        memory(registry, tasks, room::limit_memory(limit));
    }
}

fn descriptors(config: &mut Config) {
    let descriptors = room::descriptors();
    let wanted = config.limits.max_connections;
    config.limits.max_connections = remora_core::room::connections(wanted, descriptors);
    if config.limits.max_connections < wanted {
        info!(
            wanted,
            served = config.limits.max_connections,
            descriptors,
            "fewer connections are served at once than REMORA_PROXY_MAX_CONNECTIONS says: the process may not open \
             descriptors for more"
        );
    }
}

fn memory(registry: &Registry, tasks: &Tasks, memory: &'static Memory) {
    let help = "Bytes of memory that the process may use, as told or as its control group says";
    gauge(registry, "remora_memory_limit_bytes", help, || memory.limit());
    let help = "Requests and connections refused since the start because memory was short";
    gauge(registry, "remora_memory_refused", help, || memory.refused());
    let help = "Connections cut off since the start because memory was used up";
    gauge(registry, "remora_memory_cut", help, || memory.cut());
    info!(limit = memory.limit(), "memory is limited");
    tasks.spawn("memory", async {
        loop {
            tokio::time::sleep(room::AGAIN).await;
            memory.look();
        }
    });
}

fn gauge(registry: &Registry, name: &str, help: &str, read: impl Fn() -> u64 + Send + Sync + 'static) {
    registry.register(name, help, ReadGauge::new(move || i64::try_from(read()).unwrap_or(i64::MAX)));
}

//! Tasks and their end: spawn, drain, deadline. What is spawned here is known by name and waited for at shutdown.
//!
//! Everything works across runtimes: a process has one current-thread runtime per worker and one more for the rest
//! (design decision 2), and they drain together.

use crate::metrics::Counter;
use futures_util::FutureExt;
use std::{
    collections::BTreeMap,
    future::Future,
    io,
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    task::AbortHandle,
};
use tokio_util::{
    sync::{CancellationToken, WaitForCancellationFutureOwned},
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};

/// The tasks of a process. Cheap to clone; all clones are the same set.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    live: Arc<Mutex<BTreeMap<&'static str, usize>>>,
    panicked: Arc<AtomicU64>,
}

impl Tasks {
    /// An empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs `task` on the current runtime. A panic ends this task alone; it is logged with `name` and counted.
    /// Must be called within a tokio runtime.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        let counted = self.count(name);
        let panicked = self.panicked.clone();
        // Boxed before it is wrapped: each wrapping would hold it twice, before and while it is awaited.
        let task = Box::pin(task);
        let task = self.tracker.track_future(async move {
            let _counted = counted;
            if let Err(cause) = AssertUnwindSafe(task).catch_unwind().await {
                panicked.fetch_add(1, Ordering::Relaxed);
                tracing::error!(
                    task = name,
                    cause = panic_text(&*cause),
                    "a task panicked; this is a bug in Remora"
                );
            }
        });
        tokio::spawn(task).abort_handle()
    }

    /// How many tasks of each name are running.
    pub fn live(&self) -> BTreeMap<&'static str, usize> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many tasks have panicked since the start.
    pub fn panicked(&self) -> u64 {
        self.panicked.load(Ordering::Relaxed)
    }

    /// Waits until no task is running, at most for `grace`. Returns how many still are.
    pub async fn finished(&self, grace: Duration) -> usize {
        self.tracker.close();
        // Expiry is no error here: what counts is who is left.
        let _ = tokio::time::timeout(grace, self.tracker.wait()).await;
        self.tracker.len()
    }

    fn count(&self, name: &'static str) -> Counted {
        *self.live.lock().unwrap_or_else(PoisonError::into_inner).entry(name).or_default() += 1;
        Counted { live: self.live.clone(), name }
    }
}

struct Counted {
    live: Arc<Mutex<BTreeMap<&'static str, usize>>>,
    name: &'static str,
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = live.get_mut(self.name) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                live.remove(self.name);
            }
        }
    }
}

/// From now on every panic of this process is counted and logged with its place, also in a task that nobody waits for.
pub fn count_panics(counter: Counter) {
    std::panic::set_hook(Box::new(move |panic| {
        counter.inc();
        let at = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(at, cause = panic_text(panic.payload()), "a panic; this is a bug in Remora");
    }));
}

fn panic_text(cause: &(dyn std::any::Any + Send)) -> &str {
    let text = cause.downcast_ref::<&'static str>().copied();
    text.or_else(|| cause.downcast_ref::<String>().map(String::as_str)).unwrap_or("not a text")
}

/// The wish to end, and who is still busy. Cheap to clone; all clones are the same drain.
///
/// ```text
///             signal                  last guard dropped, or grace over
/// running ─────────────▶ draining ─────────────────────────────────────▶ drained
/// ```
#[derive(Clone, Debug, Default)]
pub struct Drain {
    token: CancellationToken,
    busy: TaskTracker,
}

impl Drain {
    /// Nobody wants to end yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins the drain. Again is as good as once.
    pub fn signal(&self) {
        self.token.cancel();
    }

    /// Has the drain begun?
    pub fn is_draining(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Waits for the drain to begin. Cancel safe, owns what it needs.
    pub fn draining(&self) -> WaitForCancellationFutureOwned {
        self.token.clone().cancelled_owned()
    }

    /// Something that a drain should wait for: held by every connection until it is closed.
    pub fn guard(&self) -> Guard {
        Guard { _token: self.busy.token() }
    }

    /// How many guards are held.
    pub fn busy(&self) -> usize {
        self.busy.len()
    }

    /// Begins the drain if nobody has, then waits until no guard is held, at most for `grace`. Returns how many
    /// still are.
    pub async fn drained(&self, grace: Duration) -> usize {
        self.signal();
        self.busy.close();
        // Expiry is no error here: what counts is who is left.
        let _ = tokio::time::timeout(grace, self.busy.wait()).await;
        self.busy.len()
    }
}

/// Keeps a drain from finishing while it lives.
#[derive(Debug)]
#[must_use]
pub struct Guard {
    _token: TaskTrackerToken,
}

/// Waits for SIGTERM or SIGINT and names it. An error means that the process cannot be told to stop in good order;
/// it comes at once, before anything was waited for.
pub async fn shutdown_signal() -> io::Result<&'static str> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    const LONG: Duration = Duration::from_mins(1);

    #[tokio::test(start_paused = true)]
    async fn a_drain_waits_for_those_who_are_busy() {
        let drain = Drain::new();
        let guard = drain.guard();
        let waiting = tokio::spawn({
            let drain = drain.clone();
            async move { drain.drained(LONG).await }
        });
        drain.draining().await;
        assert!(drain.is_draining() && !waiting.is_finished());
        drop(guard);
        assert_eq!(waiting.await.unwrap(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn grace_ends_and_says_who_was_left() {
        let drain = Drain::new();
        let (_a, _b) = (drain.guard(), drain.guard());
        let before = tokio::time::Instant::now();
        assert_eq!(drain.drained(LONG).await, 2);
        assert_eq!(before.elapsed(), LONG);
    }

    #[test]
    fn a_drain_spans_runtimes() {
        let drain = Drain::new();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let worker = std::thread::spawn({
            let drain = drain.clone();
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let _guard = drain.guard();
                    ready.send(()).unwrap();
                    drain.draining().await;
                });
            }
        });
        is_ready.recv().unwrap();
        assert_eq!(drain.busy(), 1);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        assert_eq!(runtime.block_on(drain.drained(LONG)), 0);
        worker.join().unwrap();
    }

    #[tokio::test]
    async fn tasks_are_known_by_name_until_they_end() {
        let tasks = Tasks::new();
        let (end, ended) = oneshot::channel::<()>();
        tasks.spawn("resolver", async {
            let _ = ended.await;
        });
        let other = tasks.spawn("acceptor", std::future::pending());
        assert_eq!(tasks.live(), BTreeMap::from([("acceptor", 1), ("resolver", 1)]));
        end.send(()).unwrap();
        other.abort();
        assert_eq!(tasks.finished(LONG).await, 0);
        assert!(tasks.live().is_empty());
    }

    #[tokio::test]
    async fn a_panic_ends_one_task_and_is_counted() {
        let tasks = Tasks::new();
        tasks.spawn("clumsy", async { panic!("as a test must") });
        tasks.spawn("careful", async {});
        assert_eq!(tasks.finished(LONG).await, 0);
        assert_eq!(tasks.panicked(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn tasks_that_do_not_end_are_counted_when_grace_is_over() {
        let tasks = Tasks::new();
        tasks.spawn("stubborn", std::future::pending());
        assert_eq!(tasks.finished(LONG).await, 1);
    }

    #[tokio::test]
    async fn sigterm_is_heard() {
        let heard = tokio::spawn(shutdown_signal());
        // The handlers are installed at the first poll; a signal before that would end the test process.
        tokio::task::yield_now().await;
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM).unwrap();
        let name = tokio::time::timeout(LONG, heard).await.unwrap().unwrap().unwrap();
        assert_eq!(name, "SIGTERM");
    }
}

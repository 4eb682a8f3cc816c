//! How much is under way from this proxy to each Service that wants to be asked no more than so much.
//!
//! Counted for the whole process: all workers, endpoints, routes. What exceeds a limit fails at once, with its name.

use crate::{fault::Fault, http::client::Client, metrics::limits::LimitMetrics};
use remora_core::balance::{Limited, Limits};
#[cfg(planted)]
use remora_core::planted;
use remora_runtime::clock;
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::Notify;
use tracing::info;

/// How long a connection may take to close that makes room for another.
const CLOSING: Duration = Duration::from_millis(250);

/// The limiters in use, by Service: what is counted stays while what a Service wants changes.
#[derive(Default)]
pub struct Limiters {
    by_service: Mutex<HashMap<Arc<str>, Weak<Limiter>>>,
}

/// One Service's.
pub struct Limiter {
    /// `<svc>.<ns>.svc.<domain>:<port>`.
    service: Arc<str>,
    limits: Mutex<Limits>,
    counts: [AtomicU32; Limited::ALL.len()],
    /// The second in which it was last said that there are too many, and one.
    said: [AtomicU64; Limited::ALL.len()],
    /// A connection has closed.
    closed: Notify,
    /// Where idle connections may be.
    clients: Mutex<Vec<Weak<Client>>>,
    metrics: LimitMetrics,
}

/// One of what is limited, until it is dropped.
pub struct Permit {
    of: Arc<Limiter>,
    what: Limited,
}

impl Limiters {
    /// The limiter of a Service's port; `None`: it has no limits.
    pub fn of(&self, service: &Arc<str>, limits: Limits, metrics: &LimitMetrics) -> Option<Arc<Limiter>> {
        if limits == Limits::default() {
            return None;
        }
        let mut all = self.by_service.lock().unwrap_or_else(PoisonError::into_inner);
        let known = all.get(service).and_then(Weak::upgrade);
        #[cfg(planted)]
        let known = known.filter(|_| !planted::makes(planted::Mistake::CountsBeginAnew));
        if let Some(limiter) = known {
            *limiter.limits() = limits;
            return Some(limiter);
        }
        all.retain(|_, limiter| limiter.strong_count() > 0);
        let limiter = Arc::new(Limiter {
            service: service.clone(),
            limits: Mutex::new(limits),
            counts: Default::default(),
            said: Default::default(),
            closed: Notify::new(),
            clients: Mutex::default(),
            metrics: metrics.clone(),
        });
        all.insert(service.clone(), Arc::downgrade(&limiter));
        Some(limiter)
    }
}

impl Limiter {
    /// Its connections are counted here, and its idle ones closed to make room.
    pub fn join(&self, client: &Arc<Client>) {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        // Now and then, since thousands may join at once.
        if clients.len() == clients.capacity() {
            clients.retain(|client| client.strong_count() > 0);
        }
        clients.push(Arc::downgrade(client));
    }

    /// One more of what is limited.
    pub fn take(self: &Arc<Self>, what: Limited) -> Result<Permit, Fault> {
        self.room_for(what).map_err(|most| self.exceeded(what, most))
    }

    /// One more connection. Where there is no room, an idle one of another endpoint, or of another worker, is closed.
    pub async fn connection(self: &Arc<Self>) -> Result<Permit, Fault> {
        let what = Limited::Connections;
        if let Ok(permit) = self.room_for(what) {
            return Ok(permit);
        }
        if self.close_idle() {
            let room = async {
                loop {
                    let closed = self.closed.notified();
                    if let Ok(permit) = self.room_for(what) {
                        return permit;
                    }
                    closed.await;
                }
            };
            // One that shares its connection with streams closes when its task has seen that.
            if let Ok(permit) = tokio::time::timeout(CLOSING, room).await {
                return Ok(permit);
            }
        }
        self.take(what)
    }

    /// Or how many there may be.
    fn room_for(self: &Arc<Self>, what: Limited) -> Result<Permit, u32> {
        let limits = *self.limits();
        let more = |now: u32| limits.one_more(what, now).ok();
        match self.count(what).fetch_update(Ordering::Relaxed, Ordering::Relaxed, more) {
            Ok(_) => Ok(Permit { of: self.clone(), what }),
            Err(now) => Err(limits.one_more(what, now).err().unwrap_or(now)),
        }
    }

    fn exceeded(&self, what: Limited, most: u32) -> Fault {
        self.metrics.exceeded(what);
        let fault = Fault::Limited { service: self.service.clone(), what, most };
        // Once a second is enough for whoever reads it.
        let second = clock::now().0.as_secs() + 1;
        if of(&self.said, what).swap(second, Ordering::Relaxed) != second {
            info!(%fault, "requests are refused");
        }
        fault
    }

    /// Whether there was one.
    fn close_idle(&self) -> bool {
        let clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        clients.iter().filter_map(Weak::upgrade).any(|client| client.close_idle())
    }

    fn limits(&self) -> MutexGuard<'_, Limits> {
        self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, what: Limited) -> &AtomicU32 {
        of(&self.counts, what)
    }
}

fn of<T>([connections, pending, streams]: &[T; Limited::ALL.len()], what: Limited) -> &T {
    match what {
        Limited::Connections => connections,
        Limited::PendingRequests => pending,
        Limited::ConcurrentStreams => streams,
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.of.count(self.what).fetch_sub(1, Ordering::Relaxed);
        if self.what == Limited::Connections {
            self.of.closed.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use remora_runtime::metrics::Registry;
    use std::num::NonZeroU32;

    #[test]
    fn there_is_never_more_than_the_limit_and_what_ends_makes_room() {
        let (limiters, metrics) = (Limiters::default(), metrics());
        let limits = |most| Limits { concurrent_streams: NonZeroU32::new(most), ..Limits::default() };
        let of = |limits| limiters.of(&"web.shop.svc.cluster.local:80".into(), limits, &metrics);
        assert!(of(Limits::default()).is_none());
        let limiter = of(limits(2)).unwrap();
        let take = || limiter.take(Limited::ConcurrentStreams);
        let (first, _second) = (take().unwrap(), take().unwrap());
        let fault = take().err().unwrap();
        assert_eq!(
            fault.to_string(),
            "web.shop.svc.cluster.local:80 takes no more than 2 concurrent-streams from this proxy \
             (limits.remora.io/concurrent-streams)"
        );
        assert!(limiter.take(Limited::Connections).is_ok(), "of which there is no limit");
        drop(first);
        let _third = take().unwrap();
        // What is under way counts on when the limit changes.
        assert!(Arc::ptr_eq(&limiter, &of(limits(3)).unwrap()));
        let _fourth = take().unwrap();
        assert!(take().is_err());
    }

    fn metrics() -> LimitMetrics {
        LimitMetrics::register(&Registry::new(Duration::from_mins(1)))
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_closes_makes_room_at_once() {
        let (limiters, metrics) = (Limiters::default(), metrics());
        let limits = Limits { connections: NonZeroU32::new(1), ..Limits::default() };
        let limiter = limiters.of(&"web:80".into(), limits, &metrics).unwrap();
        let first = limiter.connection().await.unwrap();
        assert!(limiter.connection().await.is_err(), "there is no idle one to close");
        drop(first);
        assert!(limiter.connection().await.is_ok());
    }
}

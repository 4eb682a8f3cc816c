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
        if let Ok(permit) = self.room_for(Limited::Connections) {
            return Ok(permit);
        }
        let instead = tokio::time::timeout(CLOSING, self.instead_of_idle()).await;
        instead.ok().flatten().map_or_else(|| self.take(Limited::Connections), Ok)
    }

    /// A connection in the place of an idle one, as soon as that has closed; `None` where there is none. One that shares its
    /// connection with streams closes when its task has seen that.
    async fn instead_of_idle(self: &Arc<Self>) -> Option<Permit> {
        let mut closing = false;
        loop {
            // From before anybody closes: what closes at once is heard of too.
            let closed = self.closed.notified();
            if let Ok(permit) = self.room_for(Limited::Connections) {
                return Some(permit);
            }
            // Others may have been faster: then one more is closed.
            closing |= self.close_idle();
            if !closing {
                return None;
            }
            closed.await;
        }
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
    use crate::{
        http::client::PoolLimits,
        http1::exchange::Connection,
        stream::{Meter, Stream},
    };
    use futures_util::poll;
    use remora_runtime::metrics::Registry;
    use std::{num::NonZeroU32, pin::pin};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
    };

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

    #[tokio::test(start_paused = true)]
    async fn who_makes_room_has_it_although_others_are_faster() {
        let limiter = limiter(2);
        let (closing, other) = (limiter.connection().await.unwrap(), limiter.connection().await.unwrap());
        // Idle, but it takes a moment to close.
        let (client, _server) = idle(vec![Arc::default()]).await;
        limiter.join(&client);
        let mut waits = pin!(limiter.connection());
        assert!(poll!(waits.as_mut()).is_pending());
        // Another one closes, and somebody has taken its place before who waits is asked.
        drop(other);
        let _faster = limiter.take(Limited::Connections).unwrap();
        assert!(poll!(waits.as_mut()).is_pending(), "it does not wait for the one that it closes");
        drop(closing);
        assert!(waits.await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn one_more_is_closed_where_others_were_faster() {
        let limiter = limiter(2);
        let closes = Arc::new(Held::default());
        let robbed = Arc::new(Mutex::default());
        let stolen = Arc::new(Held {
            permits: Mutex::default(),
            thief: Some(limiter.clone()),
            robbed: Arc::clone(&robbed),
        });
        for held in [&closes, &stolen] {
            held.permits.lock().unwrap().push(limiter.take(Limited::Connections).unwrap());
        }
        let (client, _server) = idle(vec![closes, stolen]).await;
        limiter.join(&client);
        let now = clock::now();
        assert!(limiter.connection().await.is_ok(), "there was another idle one to close");
        assert_eq!((robbed.lock().unwrap().len(), clock::now()), (1, now));
    }

    #[tokio::test]
    async fn what_its_server_has_closed_makes_room_before_what_can_be_used() {
        let limiter = limiter(2);
        let (dead, alive) = (Arc::new(Held::default()), Arc::new(Held::default()));
        for held in [&dead, &alive] {
            held.permits.lock().unwrap().push(limiter.take(Limited::Connections).unwrap());
        }
        let kept = Arc::downgrade(&alive);
        let (client, mut server) = idle(vec![dead, alive]).await;
        drop(server.remove(0));
        // What comes of another connection comes after that end.
        let (mut near, mut far) = pair().await;
        far.write_all(b"x").await.unwrap();
        near.read_exact(&mut [0]).await.unwrap();
        limiter.join(&client);
        assert!(limiter.connection().await.is_ok());
        assert_eq!((client.idle(), kept.strong_count()), (1, 1));
    }

    fn limiter(connections: u32) -> Arc<Limiter> {
        let limits = Limits { connections: NonZeroU32::new(connections), ..Limits::default() };
        Limiters::default().of(&"web:80".into(), limits, &metrics()).unwrap()
    }

    /// A client's idle connections, the one used last in the end, and their other ends.
    async fn idle(held: Vec<Arc<Held>>) -> (Arc<Client>, Vec<TcpStream>) {
        let (idle, max_age) = (Duration::from_mins(1), Duration::from_mins(1));
        let limits = PoolLimits {
            idle,
            max_age,
            max_idle: 8,
            max_header_bytes: 8192,
            max_headers: 100,
            max_replay: 0,
        };
        let mut pairs = vec![];
        for held in held {
            pairs.push((held, pair().await));
        }
        let (client, mut server) = (Client::new(limits), vec![]);
        for (held, (near, far)) in pairs {
            client.put_back(Connection::new(Stream::plain(near).metered(held)), clock::now());
            server.push(far);
        }
        (client, server)
    }

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (near, listener.accept().await.unwrap().0)
    }

    /// What a connection holds while it is open; a thief takes its place as it closes, as another thread may.
    #[derive(Default)]
    struct Held {
        permits: Mutex<Vec<Permit>>,
        thief: Option<Arc<Limiter>>,
        robbed: Arc<Mutex<Vec<Permit>>>,
    }

    impl Meter for Held {
        fn read(&self, _bytes: usize) {}
        fn wrote(&self, _bytes: usize) {}
        fn failed(&self, _error: &std::io::Error) {}
    }

    impl Drop for Held {
        fn drop(&mut self) {
            self.permits.lock().unwrap().clear();
            let robbed = self.thief.iter().flat_map(|limiter| limiter.take(Limited::Connections));
            self.robbed.lock().unwrap().extend(robbed);
        }
    }
}

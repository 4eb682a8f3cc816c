//! One lookup per key and process: started on first use, shared, ended some time after the last use.

use super::Known;
use std::{
    collections::HashMap,
    future::Future,
    hash::Hash,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    runtime::Handle,
    sync::{Notify, watch},
};

/// A running lookup: publishes what it learns until it is dropped.
pub type Lookup = Pin<Box<dyn Future<Output = ()> + Send>>;
type Start<K, T> = Box<dyn Fn(&K, watch::Sender<Known<T>>, AskAgain) -> Lookup + Send + Sync>;

/// Lookups by key.
pub struct Cache<K, T> {
    shared: Arc<Shared<K, T>>,
    start: Start<K, T>,
    /// Where lookups run: the control thread.
    runtime: Handle,
    idle: Duration,
    max: usize,
}

struct Shared<K, T> {
    entries: Mutex<HashMap<K, Entry<T>>>,
}

struct Entry<T> {
    latest: watch::Receiver<Known<T>>,
    again: AskAgain,
    users: Arc<()>,
}

/// Asks a lookup to ask again: what was said may be old.
#[derive(Clone, Debug, Default)]
pub struct AskAgain(Arc<Notify>);

impl AskAgain {
    /// Has to be done, once, however many say so until it is.
    pub fn ask(&self) {
        self.0.notify_one();
    }

    /// Waits until somebody has asked for it. Cancel safe.
    pub async fn asked(&self) {
        self.0.notified().await;
    }
}

/// The cache holds as many keys as it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full {
    pub max: usize,
}

/// A use of a lookup: while it lives, the lookup does.
pub struct Watch<T> {
    latest: watch::Receiver<Known<T>>,
    again: AskAgain,
    user: Arc<()>,
}

impl<T> Clone for Watch<T> {
    fn clone(&self) -> Self {
        Self { latest: self.latest.clone(), again: self.again.clone(), user: self.user.clone() }
    }
}

impl<K, T> Cache<K, T>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    T: Send + Sync + 'static,
{
    /// Lookups begin with `start` on `runtime`, end `idle` after the last use, and are never more than `max`.
    pub fn new(
        runtime: Handle,
        idle: Duration,
        max: usize,
        start: impl Fn(&K, watch::Sender<Known<T>>) -> Lookup + Send + Sync + 'static,
    ) -> Self {
        Self::asking_again(runtime, idle, max, move |key, sender, _| start(key, sender))
    }

    /// The same of lookups that can be asked to ask again.
    pub fn asking_again(
        runtime: Handle,
        idle: Duration,
        max: usize,
        start: impl Fn(&K, watch::Sender<Known<T>>, AskAgain) -> Lookup + Send + Sync + 'static,
    ) -> Self {
        let shared = Arc::new(Shared { entries: Mutex::default() });
        Self { shared, start: Box::new(start), runtime, idle, max }
    }

    /// Where lookups run.
    pub fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Begins or joins the lookup of `key`.
    pub fn watch(&self, key: &K) -> Result<Watch<T>, Full> {
        self.join(key).map(|(watch, _)| watch)
    }

    /// Begins or joins the lookup of `key`, and says whether it has just begun.
    pub fn join(&self, key: &K) -> Result<(Watch<T>, bool), Full> {
        let mut entries = self.shared.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = entries.get(key) {
            let Entry { latest, again, users } = entry;
            let watch = Watch { latest: latest.clone(), again: again.clone(), user: users.clone() };
            return Ok((watch, false));
        }
        if entries.len() >= self.max {
            return Err(Full { max: self.max });
        }
        let (sender, latest) = watch::channel(Known::Pending);
        let (users, again) = (Arc::new(()), AskAgain::default());
        let entry = Entry { latest: latest.clone(), again: again.clone(), users: users.clone() };
        entries.insert(key.clone(), entry);
        drop(entries);
        let lookup = (self.start)(key, sender, again.clone());
        self.runtime.spawn(run(lookup, self.shared.clone(), key.clone(), self.idle));
        Ok((Watch { latest, again, user: users }, true))
    }

    /// What is known of a key that somebody watches.
    pub fn peek(&self, key: &K) -> Option<Known<T>> {
        let entries = self.shared.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.get(key).map(|entry| entry.latest.borrow().clone())
    }

    /// Every key with what is known of it, for `/state.json`.
    pub fn snapshot(&self) -> Vec<(K, Known<T>)> {
        let entries = self.shared.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.iter().map(|(key, entry)| (key.clone(), entry.latest.borrow().clone())).collect()
    }
}

/// Runs a lookup until nobody has used it for `idle`.
async fn run<K: Eq + Hash, T>(mut lookup: Lookup, shared: Arc<Shared<K, T>>, key: K, idle: Duration) {
    let mut unused = false;
    let mut ended = false;
    loop {
        tokio::select! {
            () = &mut lookup, if !ended => ended = true,
            () = tokio::time::sleep(idle.max(Duration::from_millis(1))) => {}
        }
        let mut entries = shared.entries.lock().unwrap_or_else(PoisonError::into_inner);
        // One count is the map's own; under the lock nobody can add another.
        let in_use = entries.get(&key).is_some_and(|entry| Arc::strong_count(&entry.users) > 1);
        if in_use {
            unused = false;
        } else if unused {
            entries.remove(&key);
            return;
        } else {
            unused = true;
        }
    }
}

impl<T> Watch<T> {
    /// What is known now.
    pub fn latest(&mut self) -> Known<T> {
        self.latest.borrow_and_update().clone()
    }

    /// What is known now, without taking it as seen.
    pub fn peek(&self) -> Known<T> {
        self.latest.borrow().clone()
    }

    /// Of what is to be known from now on. It keeps no lookup running.
    pub fn receiver(&self) -> watch::Receiver<Known<T>> {
        self.latest.clone()
    }

    /// By which the lookup can be asked to ask again.
    pub fn again(&self) -> AskAgain {
        self.again.clone()
    }

    /// Waits for news. An error: there will be none.
    pub async fn changed(&mut self) -> Result<(), watch::error::RecvError> {
        self.latest.changed().await
    }

    /// Waits for the first answer.
    pub async fn known(&mut self) -> Known<T> {
        match self.latest.wait_for(|known| !matches!(known, Known::Pending)).await {
            Ok(known) => known.clone(),
            Err(_) => Known::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn cache(started: &Arc<AtomicUsize>, max: usize) -> Cache<u16, u32> {
        let started = started.clone();
        Cache::new(Handle::current(), Duration::from_secs(5), max, move |key, sender| {
            let nth = started.fetch_add(1, Ordering::Relaxed);
            let value = u32::from(*key) * 10 + nth as u32;
            Box::pin(async move {
                sender.send_replace(Known::Is(Arc::new(value)));
                sender.closed().await;
            })
        })
    }

    #[tokio::test(start_paused = true)]
    async fn users_of_one_key_share_one_lookup() {
        let started = Arc::default();
        let cache = cache(&started, 10);
        let (mut a, mut b) = (cache.watch(&7).unwrap(), cache.watch(&7).unwrap());
        assert!(matches!(a.known().await, Known::Is(v) if *v == 70));
        assert!(matches!(b.known().await, Known::Is(v) if *v == 70));
        assert_eq!(started.load(Ordering::Relaxed), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lookup_in_use_is_kept_and_an_unused_one_ends() {
        let started = Arc::default();
        let cache = cache(&started, 10);
        let held = cache.watch(&1).unwrap();
        tokio::time::sleep(Duration::from_mins(1)).await;
        assert_eq!(cache.snapshot().len(), 1);
        drop(held);
        tokio::time::sleep(Duration::from_secs(11)).await;
        assert_eq!(cache.snapshot().len(), 0);
        drop(cache.watch(&1).unwrap());
        assert_eq!(started.load(Ordering::Relaxed), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_cache_says_so_and_keeps_what_it_has() {
        let cache = cache(&Arc::default(), 1);
        let _held = cache.watch(&1).unwrap();
        assert_eq!(cache.watch(&2).err(), Some(Full { max: 1 }));
        assert!(cache.watch(&1).is_ok());
    }
}

//! Who waits for what: the index behind a lock, and everybody whose answer depends on a key of it.
//!
//! A waiter is only ever told *that* something changed and looks for itself, so that between two looks the latest
//! value wins however many there were.

use crate::{
    index::{Complaint, Index, Key},
    view::Lens,
    watch::Event,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::sync::Notify;

/// The index and those who watch it.
#[derive(Debug, Default)]
pub struct Store {
    index: RwLock<Index>,
    waiting: Mutex<BTreeMap<Key, BTreeMap<u64, Arc<Notify>>>>,
    next: AtomicU64,
}

impl Store {
    /// Takes events in and wakes whoever depends on what they changed. Returns the complaints about the objects.
    pub fn apply(&self, events: Vec<Event>) -> Vec<Complaint> {
        let mut keys = BTreeSet::new();
        let mut complaints = Vec::new();
        {
            let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
            for event in events {
                let changes = index.apply(event);
                keys.extend(changes.keys);
                complaints.extend(changes.complaints);
            }
        }
        let waiting = self.waiting();
        for key in &keys {
            waiting.get(key).into_iter().flat_map(BTreeMap::values).for_each(|waiter| waiter.notify_one());
        }
        complaints
    }

    /// Reads the index.
    pub fn read<T>(&self, read: impl FnOnce(&Index) -> T) -> T {
        read(&self.index.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// A new watch, of nothing yet.
    pub fn watch(self: &Arc<Self>) -> Watch {
        Watch {
            id: self.next.fetch_add(1, Ordering::Relaxed),
            store: self.clone(),
            keys: BTreeSet::new(),
            notify: Arc::new(Notify::new()),
        }
    }

    /// How many keys are watched.
    pub fn watched(&self) -> usize {
        self.waiting().len()
    }

    fn waiting(&self) -> MutexGuard<'_, BTreeMap<Key, BTreeMap<u64, Arc<Notify>>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One answer that is kept up to date.
#[derive(Debug)]
pub struct Watch {
    id: u64,
    store: Arc<Store>,
    keys: BTreeSet<Key>,
    notify: Arc<Notify>,
}

impl Watch {
    /// Looks at the index, and from now on waits for changes of what was looked at.
    pub fn look<T>(&mut self, view: impl FnOnce(&mut Lens<'_>) -> T) -> T {
        let store = self.store.clone();
        store.read(|index| {
            let mut lens = Lens::new(index);
            let seen = view(&mut lens);
            // Before the index can change again, so that no change falls between the look and the wait.
            self.wait_for(lens.into_keys());
            seen
        })
    }

    /// Waits until something that was looked at has changed since. Cancel safe.
    pub async fn changed(&self) {
        self.notify.notified().await;
    }

    fn wait_for(&mut self, keys: BTreeSet<Key>) {
        if keys == self.keys {
            return;
        }
        let mut waiting = self.store.waiting();
        for key in self.keys.difference(&keys) {
            leave(&mut waiting, key, self.id);
        }
        for key in keys.difference(&self.keys) {
            waiting.entry(key.clone()).or_default().insert(self.id, self.notify.clone());
        }
        drop(waiting);
        self.keys = keys;
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut waiting = self.store.waiting();
        for key in &self.keys {
            leave(&mut waiting, key, self.id);
        }
    }
}

fn leave(waiting: &mut BTreeMap<Key, BTreeMap<u64, Arc<Notify>>>, key: &Key, id: u64) {
    if let Some(waiters) = waiting.get_mut(key) {
        waiters.remove(&id);
        if waiters.is_empty() {
            waiting.remove(key);
        }
    }
}

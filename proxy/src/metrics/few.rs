//! Handles by a key of few values: statuses, faults, system errors. The first use of a value resolves its handle, later
//! ones find it by a short walk; nothing is hashed.

use std::sync::{Mutex, PoisonError};

/// Values whose handles are kept; further ones are resolved each time.
const KEPT: usize = 32;

/// The handles that were needed so far; the common values come early.
pub(super) struct Few<K, M>(Mutex<Vec<(K, M)>>);

impl<K: PartialEq, M> Few<K, M> {
    /// Counts with the handle of `key`.
    pub(super) fn count(&self, key: K, resolve: impl FnOnce() -> M, count: impl FnOnce(&M)) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, handle)) = known.iter().find(|(one, _)| *one == key) {
            return count(handle);
        }
        let handle = resolve();
        count(&handle);
        if known.len() < KEPT {
            known.push((key, handle));
        }
    }
}

impl<K, M> Default for Few<K, M> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn a_value_is_resolved_once_and_too_many_values_cost_only_time() {
        let few = Few::default();
        let (resolved, counted) = (Cell::new(0), Cell::new(0));
        for _ in 0..3 {
            for key in 0..KEPT + 2 {
                few.count(key, || resolved.set(resolved.get() + 1), |()| counted.set(counted.get() + 1));
            }
        }
        assert_eq!(counted.get(), 3 * (KEPT + 2), "every use is counted");
        assert_eq!(resolved.get(), KEPT + 3 * 2, "what is kept is resolved once");
    }
}

//! Which idle connection takes the next request, and which are kept for later ones.
//!
//! Knows nothing of connections but what it is told: whether one has ended, and whether it is ready for a request.

#[cfg(planted)]
use crate::planted;
use crate::time::Time;
use alloc::vec::Vec;
use core::time::Duration;

/// Bounds of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolBounds {
    /// A connection that nobody used for so long is not used again.
    pub idle: Duration,
    /// A connection that is older is not used again.
    pub max_age: Duration,
    /// Connections kept.
    pub max_idle: usize,
}

/// What a pooled connection says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// It takes a request now.
    Ready,
    /// It will, once it is through with the last one.
    Busy,
    /// Its end has been seen.
    Ended,
}

/// Idle connections to one server.
#[derive(Debug)]
pub struct Pool<C> {
    /// The most recently used last.
    idle: Vec<Pooled<C>>,
}

/// A connection and its times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pooled<C> {
    /// The connection.
    pub connection: C,
    /// When it was made.
    pub born: Time,
    /// Since when nobody uses it.
    pub since: Time,
}

impl<C> Default for Pool<C> {
    fn default() -> Self {
        Self { idle: Vec::new() }
    }
}

impl<C> Pool<C> {
    /// Connections kept at the moment, those among them that have ended too.
    pub fn len(&self) -> usize {
        self.idle.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.idle.is_empty()
    }

    /// Takes out the connection that was used last of those that are ready, and drops what must not be used any more.
    /// The last one used is the least likely to be closed by its server this very moment, and the others grow old.
    pub fn take(
        &mut self,
        now: Time,
        bounds: &PoolBounds,
        condition: impl FnMut(&mut C) -> Condition,
    ) -> Option<Pooled<C>> {
        let at = self.last_ready(now, bounds, condition)?;
        #[cfg(planted)]
        let at = if planted::makes(planted::Mistake::OldestFirst) { 0 } else { at };
        Some(self.idle.remove(at))
    }

    /// Keeps a connection for later, if it may be used again and there is room. `condition` is its own.
    pub fn put_back(
        &mut self,
        connection: C,
        condition: Condition,
        born: Time,
        now: Time,
        bounds: &PoolBounds,
    ) {
        let pooled = Pooled { connection, born, since: now };
        if self.idle.len() < bounds.max_idle && is_usable(&pooled, condition, now, bounds) {
            self.idle.push(pooled);
        }
    }

    /// Drops what must not be used any more.
    pub fn sweep(&mut self, now: Time, bounds: &PoolBounds, condition: impl FnMut(&mut C) -> Condition) {
        self.last_ready(now, bounds, condition);
    }

    /// Drops what must not be used any more, asking each once; where the last one is that is ready.
    fn last_ready(
        &mut self,
        now: Time,
        bounds: &PoolBounds,
        mut condition: impl FnMut(&mut C) -> Condition,
    ) -> Option<usize> {
        let (mut kept, mut ready) = (0, None);
        self.idle.retain_mut(|one| {
            let condition = condition(&mut one.connection);
            let usable = is_usable(one, condition, now, bounds);
            if usable && condition == Condition::Ready {
                ready = Some(kept);
            }
            kept += usize::from(usable);
            usable
        });
        if self.idle.is_empty() {
            self.idle.shrink_to_fit();
        }
        ready
    }

    /// What is kept, the most recently used last.
    pub fn iter(&self) -> impl Iterator<Item = &Pooled<C>> {
        self.idle.iter()
    }
}

fn is_usable<C>(one: &Pooled<C>, condition: Condition, now: Time, bounds: &PoolBounds) -> bool {
    #[cfg(planted)]
    if planted::makes(planted::Mistake::AgeIsForgotten) {
        return condition != Condition::Ended && now.since(one.since) < bounds.idle;
    }
    condition != Condition::Ended
        && now.since(one.since) < bounds.idle
        && now.since(one.born) < bounds.max_age
}

#[cfg(test)]
mod tests {
    use super::*;
    use Condition::{Busy, Ended, Ready};
    use proptest::prelude::*;

    const BOUNDS: PoolBounds =
        PoolBounds { idle: Duration::from_secs(3), max_age: Duration::from_mins(1), max_idle: 3 };

    #[test]
    fn the_one_used_last_is_taken_first() {
        check(&[(1, 0), (2, 1), (3, 2)], 2, [Ready; 3], Some(3), &[1, 2]);
    }

    #[test]
    fn one_that_is_not_ready_is_passed_over_and_kept_in_its_place() {
        check(&[(1, 0), (2, 1), (3, 2)], 2, [Ready, Ready, Busy], Some(2), &[1, 3]);
        check(&[(1, 0), (2, 1), (3, 2)], 2, [Ready, Busy, Busy], Some(1), &[2, 3]);
        check(&[(1, 0)], 1, [Busy; 3], None, &[1]);
    }

    #[test]
    fn one_that_has_ended_is_dropped() {
        check(&[(1, 0), (2, 1)], 2, [Ready, Ended, Ready], Some(1), &[]);
        check(&[(1, 0), (2, 1)], 2, [Ended; 3], None, &[]);
    }

    #[test]
    fn one_that_was_idle_too_long_is_not_used_although_nobody_swept() {
        check(&[(1, 0), (2, 1)], 3, [Ready; 3], Some(2), &[]);
        check(&[(1, 0), (2, 0)], 3, [Ready; 3], None, &[]);
    }

    #[test]
    fn one_that_grew_too_old_in_the_pool_is_not_used() {
        let mut pool = Pool::default();
        pool.put_back(1, Ready, at(0), at(59), &BOUNDS);
        assert_eq!(pool.len(), 1);
        assert_eq!(pool.take(at(60), &BOUNDS, |_| Ready), None);
        assert!(pool.is_empty());
    }

    #[test]
    fn what_must_not_be_used_again_is_not_kept() {
        let mut pool = Pool::default();
        pool.put_back(1, Ended, at(0), at(0), &BOUNDS);
        pool.put_back(2, Ready, at(0), at(60), &BOUNDS);
        assert!(pool.is_empty());
    }

    #[test]
    fn no_more_are_kept_than_may_be() {
        let mut pool = Pool::default();
        for connection in 1..=4 {
            pool.put_back(connection, Ready, at(0), at(0), &BOUNDS);
        }
        let kept: Vec<i32> = pool.iter().map(|one| one.connection).collect();
        assert_eq!(kept, [1, 2, 3]);
    }

    proptest! {
        #[test]
        fn what_is_taken_may_be_used_and_was_used_last(
            kept in proptest::collection::vec((0u64..70, 0u64..70), 0..6), now in 0u64..140,
        ) {
            let mut pool = Pool::default();
            let mut since = 0;
            for (connection, (born, later)) in kept.iter().enumerate() {
                since += later / 20;
                pool.put_back(connection, Busy, at(since.min(*born)), at(since), &BOUNDS);
            }
            prop_assert!(pool.len() <= BOUNDS.max_idle);
            let last = pool.iter().last().cloned();
            let taken = pool.take(at(now), &BOUNDS, |_| Ready);
            if let Some(taken) = &taken {
                prop_assert!(at(now).since(taken.since) < BOUNDS.idle);
                prop_assert!(at(now).since(taken.born) < BOUNDS.max_age);
            }
            prop_assert!(taken.is_none() || pool.iter().all(|one| one.since <= last.clone().unwrap().since));
        }
    }

    /// Connections put back at these seconds, taken from at `now`, where connection `n` is in `conditions[n - 1]`.
    #[track_caller]
    fn check(
        kept: &[(usize, u64)],
        now: u64,
        conditions: [Condition; 3],
        taken: Option<usize>,
        left: &[usize],
    ) {
        let mut pool = Pool::default();
        for (connection, since) in kept {
            pool.put_back(*connection, Busy, at(0), at(*since), &BOUNDS);
        }
        let found = pool.take(at(now), &BOUNDS, |connection| conditions[*connection - 1]);
        assert_eq!(found.map(|one| one.connection), taken);
        assert_eq!(pool.iter().map(|one| one.connection).collect::<Vec<_>>(), left);
    }

    fn at(secs: u64) -> Time {
        Time(Duration::from_secs(secs))
    }
}

//! Which idle connection takes the next request, and which are kept for later ones.
//!
//! Knows nothing of connections but what it is told: whether one has ended.

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

    /// Takes out the connection that was used last and has not ended, and drops what must not be used any more of those
    /// that were used after it. The last one used is the least likely to be closed by its server this very moment, and the
    /// others grow old: they are not asked, so that it costs the same however many there are.
    pub fn take(
        &mut self,
        now: Time,
        bounds: &PoolBounds,
        mut has_ended: impl FnMut(&mut C) -> bool,
    ) -> Option<Pooled<C>> {
        #[cfg(planted)]
        if planted::makes(planted::Mistake::OldestFirst) {
            self.idle.reverse();
        }
        while let Some(mut one) = self.idle.pop() {
            if is_young(&one, now, bounds) && !has_ended(&mut one.connection) {
                return Some(one);
            }
        }
        self.idle.shrink_to_fit();
        None
    }

    /// Keeps a connection that has not ended for later, if it may be used again and there is room.
    pub fn put_back(&mut self, connection: C, born: Time, now: Time, bounds: &PoolBounds) {
        let pooled = Pooled { connection, born, since: now };
        if self.idle.len() < bounds.max_idle && is_young(&pooled, now, bounds) {
            self.idle.push(pooled);
        }
    }

    /// Drops what must not be used any more.
    pub fn sweep(&mut self, now: Time, bounds: &PoolBounds, mut has_ended: impl FnMut(&mut C) -> bool) {
        self.idle.retain_mut(|one| is_young(one, now, bounds) && !has_ended(&mut one.connection));
        if self.idle.is_empty() {
            self.idle.shrink_to_fit();
        }
    }

    /// What is kept, the most recently used last.
    pub fn iter(&self) -> impl Iterator<Item = &Pooled<C>> {
        self.idle.iter()
    }
}

fn is_young<C>(one: &Pooled<C>, now: Time, bounds: &PoolBounds) -> bool {
    let of_age = now.since(one.born) < bounds.max_age;
    #[cfg(planted)]
    let of_age = of_age || planted::makes(planted::Mistake::AgeIsForgotten);
    now.since(one.since) < bounds.idle && of_age
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BOUNDS: PoolBounds =
        PoolBounds { idle: Duration::from_secs(3), max_age: Duration::from_mins(1), max_idle: 3 };

    #[test]
    fn the_one_used_last_is_taken_first() {
        check(&[(1, 0), (2, 1), (3, 2)], 2, &[], Some(3), &[1, 2]);
    }

    #[test]
    fn one_that_has_ended_is_dropped() {
        check(&[(1, 0), (2, 1)], 2, &[2], Some(1), &[]);
        check(&[(1, 0), (2, 1)], 2, &[1, 2], None, &[]);
    }

    #[test]
    fn those_used_before_the_one_that_is_taken_are_not_asked() {
        check(&[(1, 0), (2, 1)], 2, &[1], Some(2), &[1]);
        check(&[(1, 0), (2, 1)], 3, &[], Some(2), &[1]);
    }

    #[test]
    fn one_that_was_idle_too_long_is_not_used_although_nobody_swept() {
        check(&[(1, 0), (2, 0)], 3, &[], None, &[]);
    }

    #[test]
    fn one_that_grew_too_old_in_the_pool_is_not_used() {
        let mut pool = Pool::default();
        pool.put_back(1, at(0), at(59), &BOUNDS);
        assert_eq!(pool.len(), 1);
        assert_eq!(pool.take(at(60), &BOUNDS, |_| false), None);
        assert!(pool.is_empty());
    }

    #[test]
    fn what_must_not_be_used_again_is_not_kept() {
        let mut pool = Pool::default();
        pool.put_back(1, at(0), at(60), &BOUNDS);
        assert!(pool.is_empty());
    }

    #[test]
    fn no_more_are_kept_than_may_be() {
        let mut pool = Pool::default();
        for connection in 1..=4 {
            pool.put_back(connection, at(0), at(0), &BOUNDS);
        }
        let kept: Vec<i32> = pool.iter().map(|one| one.connection).collect();
        assert_eq!(kept, [1, 2, 3]);
    }

    #[test]
    fn a_sweep_asks_each_and_keeps_the_order() {
        let mut pool = Pool::default();
        for (connection, since) in [(1, 0), (2, 1), (3, 2)] {
            pool.put_back(connection, at(0), at(since), &BOUNDS);
        }
        pool.sweep(at(2), &BOUNDS, |connection| *connection == 2);
        assert_eq!(pool.iter().map(|one| one.connection).collect::<Vec<_>>(), [1, 3]);
        pool.sweep(at(3), &BOUNDS, |_| false);
        assert_eq!(pool.iter().map(|one| one.connection).collect::<Vec<_>>(), [3]);
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
                pool.put_back(connection, at(since.min(*born)), at(since), &BOUNDS);
            }
            prop_assert!(pool.len() <= BOUNDS.max_idle);
            let taken = pool.take(at(now), &BOUNDS, |_| false);
            if let Some(taken) = &taken {
                prop_assert!(at(now).since(taken.since) < BOUNDS.idle);
                prop_assert!(at(now).since(taken.born) < BOUNDS.max_age);
                prop_assert!(pool.iter().all(|one| one.since <= taken.since));
            } else {
                prop_assert!(pool.is_empty());
            }
        }
    }

    /// Connections put back at these seconds, taken from at `now`, when some have `ended`.
    #[track_caller]
    fn check(kept: &[(usize, u64)], now: u64, ended: &[usize], taken: Option<usize>, left: &[usize]) {
        let mut pool = Pool::default();
        for (connection, since) in kept {
            pool.put_back(*connection, at(0), at(*since), &BOUNDS);
        }
        let found = pool.take(at(now), &BOUNDS, |connection| ended.contains(connection));
        assert_eq!(found.map(|one| one.connection), taken);
        assert_eq!(pool.iter().map(|one| one.connection).collect::<Vec<_>>(), left);
    }

    fn at(secs: u64) -> Time {
        Time(Duration::from_secs(secs))
    }
}

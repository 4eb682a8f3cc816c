//! The pool of idle connections against a list that is searched from its end: nobody gets a connection that has ended, is
//! too old or was idle too long; the one used last comes first; no connection is lent twice or kept beyond the bound.

use arbitrary::{Arbitrary, Unstructured};
use remora_core::{
    pool::{Pool, PoolBounds},
    time::Time,
};
use std::time::Duration;

/// The description of bounds and of what happens.
pub fn pool(data: &[u8]) {
    if let Ok(described) = Described::arbitrary(&mut Unstructured::new(data)) {
        described.holds();
    }
}

#[derive(Arbitrary, Debug)]
struct Described {
    idle: u8,
    max_age: u8,
    max_idle: u8,
    events: Vec<Event>,
}

#[derive(Arbitrary, Debug)]
enum Event {
    Passes(u8),
    /// A request takes a connection, or makes one.
    Request,
    /// One of the requests ends; its connection goes back.
    Done(u8),
    /// A connection, wherever it is, ends.
    Ends(u8),
    Sweep,
}

/// A connection as it really is.
#[derive(Clone, Copy, Debug)]
struct Real {
    ended: bool,
    born: u64,
    /// Since when it is in the pool.
    pooled: Option<u64>,
    /// How many were put back before it was, last.
    turn: usize,
    lent: bool,
}

impl Described {
    fn holds(&self) {
        let seconds = |seconds: u8| Duration::from_secs(seconds.into());
        let bounds = PoolBounds {
            idle: seconds(self.idle % 32),
            max_age: seconds(self.max_age % 64),
            max_idle: usize::from(self.max_idle % 6),
        };
        let mut world = World { bounds, now: 0, turn: 0, real: vec![], pool: Pool::default() };
        for event in self.events.iter().take(300) {
            match event {
                Event::Passes(seconds) => world.now += u64::from(seconds % 8),
                Event::Request => world.request(),
                Event::Done(which) => world.done(usize::from(*which)),
                Event::Ends(which) => world.ends(usize::from(*which)),
                Event::Sweep => world.sweep(),
            }
            assert!(world.pool.len() <= bounds.max_idle, "{} kept", world.pool.len());
        }
    }
}

struct World {
    bounds: PoolBounds,
    now: u64,
    turn: usize,
    real: Vec<Real>,
    /// Holds indices of `real`.
    pool: Pool<usize>,
}

impl World {
    fn now(&self) -> Time {
        Time(Duration::from_secs(self.now))
    }

    /// Whether a connection may serve another request.
    fn usable(&self, one: &Real) -> bool {
        let idle = one.pooled.map_or(0, |since| self.now - since);
        !one.ended
            && Duration::from_secs(self.now - one.born) < self.bounds.max_age
            && Duration::from_secs(idle) < self.bounds.idle
    }

    fn request(&mut self) {
        let usable = |one: &&Real| one.pooled.is_some() && self.usable(one);
        let best = self.real.iter().filter(usable).map(|one| one.turn).max();
        let (now, bounds, real) = (self.now(), self.bounds, &self.real);
        let taken = self.pool.take(now, &bounds, |index| real[*index].ended);
        if let Some(taken) = taken {
            let one = &mut self.real[taken.connection];
            assert!(!one.lent, "{taken:?} is lent already");
            assert_eq!(Some(one.turn), best, "{taken:?}, {one:?}");
            assert_eq!(taken.born, Time(Duration::from_secs(one.born)));
            (one.lent, one.pooled) = (true, None);
        } else {
            assert_eq!(best, None, "a connection that could have been used was not");
            self.real.push(Real { ended: false, born: self.now, pooled: None, turn: 0, lent: true });
        }
        // Those used before the one that was taken are not asked.
        self.forget_unusable(best.unwrap_or(0));
    }

    fn done(&mut self, which: usize) {
        let lent: Vec<usize> = (0..self.real.len()).filter(|index| self.real[*index].lent).collect();
        let Some(index) = lent.get(which % lent.len().max(1)).copied() else { return };
        self.turn += 1;
        let one = &mut self.real[index];
        (one.lent, one.turn) = (false, self.turn);
        // What has ended is not put back by who sees that.
        if one.ended {
            return;
        }
        let one = *one;
        let (before, now, bounds) = (self.pool.len(), self.now(), self.bounds);
        self.pool.put_back(index, Time(Duration::from_secs(one.born)), now, &bounds);
        self.real[index].pooled = Some(self.now);
        let kept = before < bounds.max_idle && self.usable(&self.real[index]);
        assert_eq!(self.pool.len(), before + usize::from(kept), "{one:?}");
        if !kept {
            self.real[index] = Real { ended: true, pooled: None, ..one };
        }
    }

    /// What has ended does not come back to life.
    fn ends(&mut self, which: usize) {
        let count = self.real.len().max(1);
        if let Some(one) = self.real.get_mut(which % count) {
            one.ended = true;
        }
    }

    fn sweep(&mut self) {
        let (now, bounds, real) = (self.now(), self.bounds, &self.real);
        self.pool.sweep(now, &bounds, |index| real[*index].ended);
        self.forget_unusable(0);
    }

    /// After a look at those put back after `turn`, the pool holds what may be used of them, in the order of use.
    fn forget_unusable(&mut self, turn: usize) {
        for index in 0..self.real.len() {
            let one = &self.real[index];
            if one.pooled.is_some() && one.turn > turn && !self.usable(one) {
                self.real[index].pooled = None;
                self.real[index].ended = true;
            }
        }
        let mut expected: Vec<(usize, usize)> = self
            .real
            .iter()
            .enumerate()
            .filter(|(_, one)| one.pooled.is_some())
            .map(|(at, one)| (one.turn, at))
            .collect();
        expected.sort_unstable();
        let kept: Vec<usize> = self.pool.iter().map(|one| one.connection).collect();
        assert_eq!(kept, expected.iter().map(|(_, at)| *at).collect::<Vec<_>>());
    }
}

//! The pool of idle connections against a list that is searched from its end: nobody gets a connection that has ended,
//! is busy, too old or was idle too long; the one used last comes first; no connection is lent twice or kept beyond the
//! bound.

use arbitrary::{Arbitrary, Unstructured};
use remora_core::{
    pool::{Condition, Pool, PoolBounds},
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
    /// One of the requests ends; its connection may need a moment more, or be over.
    Done(u8, Says),
    /// A connection, wherever it is, changes.
    Becomes(u8, Says),
    Sweep,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Says {
    Ready,
    Busy,
    Ended,
}

/// A connection as it really is.
#[derive(Clone, Copy, Debug)]
struct Real {
    condition: Condition,
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
                Event::Done(which, says) => world.done(usize::from(*which), *says),
                Event::Becomes(which, says) => world.becomes(usize::from(*which), *says),
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

    /// Whether a connection may serve another request at all.
    fn usable(&self, one: &Real) -> bool {
        let idle = one.pooled.map_or(0, |since| self.now - since);
        one.condition != Condition::Ended
            && Duration::from_secs(self.now - one.born) < self.bounds.max_age
            && Duration::from_secs(idle) < self.bounds.idle
    }

    fn request(&mut self) {
        let ready =
            |one: &&Real| one.pooled.is_some() && one.condition == Condition::Ready && self.usable(one);
        let best = self.real.iter().filter(ready).map(|one| one.turn).max();
        let (now, bounds, real) = (self.now(), self.bounds, &self.real);
        let taken = self.pool.take(now, &bounds, |index| real[*index].condition);
        if let Some(taken) = taken {
            let one = &self.real[taken.connection];
            assert!(!one.lent, "{taken:?} is lent already");
            assert_eq!(Some(one.turn), best, "{taken:?}, {one:?}");
            assert_eq!(taken.born, Time(Duration::from_secs(one.born)));
            let one = &mut self.real[taken.connection];
            (one.lent, one.pooled) = (true, None);
        } else {
            assert_eq!(best, None, "a connection that could have been used was not");
            let condition = Condition::Busy;
            self.real.push(Real { condition, born: self.now, pooled: None, turn: 0, lent: true });
        }
        self.forget_unusable();
    }

    fn done(&mut self, which: usize, says: Says) {
        let lent: Vec<usize> = (0..self.real.len()).filter(|index| self.real[*index].lent).collect();
        let Some(index) = lent.get(which % lent.len().max(1)).copied() else { return };
        self.turn += 1;
        self.real[index].lent = false;
        self.real[index].condition = says.condition();
        self.real[index].turn = self.turn;
        let one = self.real[index];
        let (before, now, bounds) = (self.pool.len(), self.now(), self.bounds);
        self.pool.put_back(index, one.condition, Time(Duration::from_secs(one.born)), now, &bounds);
        self.real[index].pooled = Some(self.now);
        let kept = before < bounds.max_idle && self.usable(&self.real[index]);
        assert_eq!(self.pool.len(), before + usize::from(kept), "{one:?}");
        if !kept {
            self.real[index] = Real { condition: Condition::Ended, pooled: None, ..one };
        }
    }

    /// What was lent and has ended does not come back to life.
    fn becomes(&mut self, which: usize, says: Says) {
        let count = self.real.len().max(1);
        if let Some(one) = self.real.get_mut(which % count)
            && one.condition != Condition::Ended
        {
            one.condition = says.condition();
        }
    }

    fn sweep(&mut self) {
        let (now, bounds, real) = (self.now(), self.bounds, &self.real);
        self.pool.sweep(now, &bounds, |index| real[*index].condition);
        self.forget_unusable();
    }

    /// After a look at the pool, what it holds is what may be used, in the order of use.
    fn forget_unusable(&mut self) {
        for index in 0..self.real.len() {
            if self.real[index].pooled.is_some() && !self.usable(&self.real[index]) {
                self.real[index].pooled = None;
                self.real[index].condition = Condition::Ended;
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

impl Says {
    fn condition(self) -> Condition {
        match self {
            Self::Ready => Condition::Ready,
            Self::Busy => Condition::Busy,
            Self::Ended => Condition::Ended,
        }
    }
}

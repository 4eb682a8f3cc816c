//! How long the other side of a conversation may take. What counts is the time spent waiting for it, not for us or for a
//! third.

use crate::time::Time;
use core::time::Duration;

/// Patience with a message that comes in pieces: it ends when `limit` was spent waiting and less than `least` bytes
/// came. Whoever sends `least` bytes is trusted anew.
#[derive(Clone, Debug)]
pub struct Patience {
    limit: Duration,
    least: u64,
    waited: Duration,
    came: u64,
    since: Option<Time>,
}

impl Patience {
    /// `least` is at least one byte: of nothing at all nobody makes a message.
    pub fn new(limit: Duration, least: u64) -> Self {
        Self { limit, least: least.max(1), waited: Duration::ZERO, came: 0, since: None }
    }

    /// Nothing is there: we wait from now on, or still. When patience will have ended if nothing comes until then.
    pub fn wait(&mut self, now: Time) -> Time {
        let since = *self.since.get_or_insert(now);
        since + self.limit.saturating_sub(self.waited)
    }

    /// So many bytes are there; we wait no longer, until [`wait`](Self::wait).
    pub fn came(&mut self, bytes: u64, now: Time) {
        if let Some(since) = self.since.take() {
            self.waited = self.waited.saturating_add(now.since(since));
        }
        self.came = self.came.saturating_add(bytes);
        if self.came >= self.least {
            self.came = 0;
            self.waited = Duration::ZERO;
        }
    }

    /// Whether patience has ended.
    pub fn is_over(&self, now: Time) -> bool {
        let waiting = self.since.map_or(Duration::ZERO, |since| now.since(since));
        self.waited.saturating_add(waiting) >= self.limit
    }
}

/// Whose turn it is on an HTTP/1 connection: between requests nobody hurries a client; from the first byte of a head to
/// its last it is on the clock; then it is our turn until the answer has been sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Turn {
    /// Nothing of the next head has come.
    #[default]
    Idle,
    /// A head has begun to come.
    Head(Time),
    /// A request is being answered.
    Ours,
}

impl Turn {
    /// So many bytes came. During our turn they are a body, or a head that is not looked at yet.
    pub fn read(&mut self, bytes: usize, now: Time) {
        if bytes > 0 && *self == Self::Idle {
            *self = Self::Head(now);
        }
    }

    /// A head was whole.
    pub fn requested(&mut self) {
        *self = Self::Ours;
    }

    /// The answer has been sent, or there will be none.
    pub fn answered(&mut self) {
        *self = Self::Idle;
    }

    /// Since when a head has been coming.
    pub fn since(self) -> Option<Time> {
        match self {
            Self::Head(since) => Some(since),
            Self::Idle | Self::Ours => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMIT: Duration = Duration::from_mins(1);

    #[test]
    fn silence_ends_patience_at_its_limit() {
        let mut patience = Patience::new(LIMIT, 100);
        assert_eq!(patience.wait(at(5)), at(65));
        assert!(!patience.is_over(at(64)) && patience.is_over(at(65)));
    }

    #[test]
    fn drops_of_a_byte_do_not_prolong_it() {
        let mut patience = Patience::new(LIMIT, 100);
        for second in 0..59 {
            patience.wait(at(second));
            patience.came(1, at(second + 1));
        }
        assert_eq!(patience.wait(at(59)), at(60));
    }

    #[test]
    fn enough_bytes_restore_it() {
        let mut patience = Patience::new(LIMIT, 100);
        patience.wait(at(0));
        patience.came(99, at(50));
        patience.wait(at(50));
        patience.came(1, at(55));
        assert_eq!(patience.wait(at(55)), at(115));
    }

    #[test]
    fn the_time_in_which_nobody_asked_does_not_count() {
        let mut patience = Patience::new(LIMIT, 100);
        patience.wait(at(0));
        patience.came(1, at(10));
        // The server took nothing for an hour.
        assert_eq!(patience.wait(at(3610)), at(3660));
    }

    #[test]
    fn a_head_is_on_the_clock_from_its_first_byte_and_an_idle_client_is_not() {
        let mut turn = Turn::default();
        assert_eq!(turn.since(), None);
        turn.read(0, at(1));
        assert_eq!(turn.since(), None, "nothing came");
        turn.read(1, at(2));
        turn.read(1, at(3));
        assert_eq!(turn.since(), Some(at(2)), "a further byte does not restart it");
        turn.requested();
        turn.read(10, at(4));
        assert_eq!(turn.since(), None, "a body has its own patience");
        turn.answered();
        assert_eq!(turn.since(), None, "idle");
        turn.read(1, at(9));
        assert_eq!(turn.since(), Some(at(9)));
    }

    proptest! {
        /// Whatever comes and when: who is never waited for longer than the limit between `least` bytes is never cut
        /// off, and who sends less than `least` bytes is by the time that the limit was spent on waiting.
        #[test]
        fn what_counts_is_waiting_since_the_last_whole_portion(
            steps in proptest::collection::vec((0_u64..40, 0_u64..40, 0_u64..80), 1..60),
        ) {
            let mut patience = Patience::new(LIMIT, 100);
            let (mut now, mut waited, mut came) = (0, 0, 0);
            for (waiting, working, bytes) in steps {
                let end = patience.wait(at(now));
                prop_assert_eq!(end, at(now + 60 - waited.min(60)));
                now += waiting;
                waited += waiting;
                prop_assert_eq!(patience.is_over(at(now)), waited >= 60);
                patience.came(bytes, at(now));
                came += bytes;
                if came >= 100 {
                    (came, waited) = (0, 0);
                }
                now += working;
            }
        }
    }

    fn at(seconds: u64) -> Time {
        Time(Duration::from_secs(seconds))
    }
}

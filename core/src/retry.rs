//! Whether a request that failed is sent again. Contract 4.3; design "Retries".

mod replay;

pub use replay::{Come, Kept, Next, Replay};

#[cfg(planted)]
use crate::planted;
use crate::{backoff::Backoff, profile::RetryBudget, time::Time};
use core::time::Duration;

/// How long is waited before a retry where nothing is said of it, as Linkerd's proxy waits for routes of policies.
pub const BACKOFF: Backoff =
    Backoff { min: Duration::from_millis(25), max: Duration::from_millis(250), jitter: 1.0 };

/// What came of a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tried {
    /// An answer came; does it count as a failure?
    Answered {
        /// By the profile's classes, else by default.
        failure: bool,
    },
    /// No answer came, and for certain nothing of the request was processed.
    Unprocessed,
    /// No answer came, and the request may have been processed.
    Unanswered,
    /// It could not be tried, and no other try would be better.
    Hopeless,
}

/// A try that is over, and what else counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attempt {
    /// What came of it.
    pub tried: Tried,
    /// What there is of the body.
    pub body: Kept,
    /// May the request's method be repeated whatever happened? RFC 9110 section 9.2.2.
    pub idempotent: bool,
    /// Retries before it.
    pub made: u32,
    /// Retries of one request at most.
    pub most: u32,
    /// What is left of the route's timeout, if it has one.
    pub left: Option<Duration>,
    /// How long is waited before the next try.
    pub backoff: Backoff,
    /// Any number.
    pub random: u64,
}

/// What to do after a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Send it again after this time. It has been taken from the budget.
    Again(Duration),
    /// What came of it is what the client is told.
    Not(Reason),
}

/// Why a request is not sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// There is an answer, and it is no failure.
    Answered,
    /// No other try would be better.
    Hopeless,
    /// It may have been processed, and its method is not one that may be repeated.
    MayBeProcessed,
    /// Its body is longer than what is kept of one.
    BodyTooLong,
    /// Its body was still being sent.
    BodyUnfinished,
    /// Its body broke off: there is nobody to answer.
    BodyBroken,
    /// It has been sent as often as one request may be.
    Limit,
    /// The route's timeout ends before the next try would begin.
    Timeout,
    /// The budget is used up.
    NoBudget,
}

impl Attempt {
    /// Whether the request is sent again. The budget, where there is one, is asked last: what is not sent again costs
    /// nothing.
    pub fn decide(&self, budget: Option<&mut RetryBudget>, now: Time) -> Decision {
        if let Some(reason) = self.forbidden() {
            return Decision::Not(reason);
        }
        if self.made >= self.most {
            return Decision::Not(Reason::Limit);
        }
        let delay = self.backoff.delay(self.made, self.random);
        if self.left.is_some_and(|left| left <= delay) {
            return Decision::Not(Reason::Timeout);
        }
        let allowed = budget.is_none_or(|budget| budget.retry(now));
        if allowed { Decision::Again(delay) } else { Decision::Not(Reason::NoBudget) }
    }

    /// Why this may not be sent again, however much is left of budget and time.
    fn forbidden(&self) -> Option<Reason> {
        let answered = match self.tried {
            Tried::Answered { failure: false } => return Some(Reason::Answered),
            Tried::Answered { failure: true } => true,
            Tried::Hopeless => return Some(Reason::Hopeless),
            #[cfg(planted)]
            Tried::Unanswered if planted::makes(planted::Mistake::ProcessedIsRepeated) => false,
            Tried::Unanswered if !self.idempotent => return Some(Reason::MayBeProcessed),
            Tried::Unprocessed | Tried::Unanswered => false,
        };
        match self.body {
            Kept::Whole => None,
            Kept::Untouched | Kept::Sending if !answered => None,
            Kept::Untouched | Kept::Sending | Kept::Unfinished => Some(Reason::BodyUnfinished),
            Kept::TooLong => Some(Reason::BodyTooLong),
            Kept::Broken => Some(Reason::BodyBroken),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::BudgetLimits;

    const FAILED: Tried = Tried::Answered { failure: true };
    const GOOD: Attempt = Attempt {
        tried: FAILED,
        body: Kept::Whole,
        idempotent: false,
        made: 0,
        most: 3,
        left: None,
        backoff: BACKOFF,
        random: 0,
    };

    #[test]
    fn what_came_of_a_try_and_its_body() {
        use Kept::{Broken, Sending, TooLong, Unfinished, Untouched, Whole};
        use Reason::{Answered, BodyBroken, BodyTooLong, BodyUnfinished, Hopeless, MayBeProcessed};
        for (tried, idempotent, body, reason) in [
            // An answer was made for the operator to say what it means, whatever the method.
            (Tried::Answered { failure: false }, true, Whole, Some(Answered)),
            (Tried::Answered { failure: false }, true, Broken, Some(Answered)),
            (FAILED, true, Whole, None),
            (FAILED, false, Whole, None),
            (FAILED, false, Untouched, Some(BodyUnfinished)),
            (FAILED, false, Unfinished, Some(BodyUnfinished)),
            (FAILED, true, Sending, Some(BodyUnfinished)),
            (FAILED, true, TooLong, Some(BodyTooLong)),
            (FAILED, true, Broken, Some(BodyBroken)),
            // Without an answer nobody knows.
            (Tried::Unanswered, false, Whole, Some(MayBeProcessed)),
            (Tried::Unanswered, false, TooLong, Some(MayBeProcessed)),
            (Tried::Unanswered, true, Whole, None),
            (Tried::Unanswered, true, Sending, None),
            (Tried::Unanswered, true, Untouched, None),
            (Tried::Unanswered, true, Unfinished, Some(BodyUnfinished)),
            (Tried::Unanswered, true, TooLong, Some(BodyTooLong)),
            (Tried::Unprocessed, false, Whole, None),
            (Tried::Unprocessed, false, Untouched, None),
            (Tried::Unprocessed, false, Sending, None),
            (Tried::Unprocessed, false, Unfinished, Some(BodyUnfinished)),
            (Tried::Unprocessed, false, TooLong, Some(BodyTooLong)),
            (Tried::Unprocessed, true, Broken, Some(BodyBroken)),
            (Tried::Hopeless, true, Whole, Some(Hopeless)),
        ] {
            check(Attempt { tried, body, idempotent, ..GOOD }, reason, 1);
        }
    }

    #[test]
    fn time_number_and_budget() {
        let left = |ms| Some(Duration::from_millis(ms));
        check(Attempt { made: 2, ..GOOD }, None, 1);
        check(Attempt { made: 3, ..GOOD }, Some(Reason::Limit), 1);
        check(Attempt { most: 0, ..GOOD }, Some(Reason::Limit), 1);
        check(Attempt { left: left(26), ..GOOD }, None, 1);
        check(Attempt { left: left(25), ..GOOD }, Some(Reason::Timeout), 1);
        check(Attempt { left: left(50), random: u64::MAX, ..GOOD }, Some(Reason::Timeout), 1);
        check(Attempt { left: left(0), ..GOOD }, Some(Reason::Timeout), 1);
        check(GOOD, Some(Reason::NoBudget), 0);
        let again = GOOD.decide(None, Time::default());
        assert!(matches!(again, Decision::Again(_)), "without a budget nothing is used up: {again:?}");
    }

    #[test]
    fn delays_double_up_to_a_quarter_of_a_second() {
        let delay = |made| match (Attempt { made, most: 99, ..GOOD }).decide(None, Time::default()) {
            Decision::Again(delay) => delay.as_millis(),
            Decision::Not(reason) => panic!("{reason:?}"),
        };
        assert_eq!([0, 1, 2, 3, 4, 5, 98].map(delay), [25, 50, 100, 200, 250, 250, 250]);
    }

    #[test]
    fn what_is_not_sent_again_costs_nothing() {
        let mut budget = budget(1);
        let not = Attempt { body: Kept::TooLong, ..GOOD };
        for attempt in [not, Attempt { made: 3, ..GOOD }, Attempt { left: Some(Duration::ZERO), ..GOOD }] {
            assert!(matches!(attempt.decide(Some(&mut budget), Time::default()), Decision::Not(_)));
        }
        assert!(matches!(GOOD.decide(Some(&mut budget), Time::default()), Decision::Again(_)));
        assert_eq!(GOOD.decide(Some(&mut budget), Time::default()), Decision::Not(Reason::NoBudget));
    }

    #[track_caller]
    fn check(attempt: Attempt, reason: Option<Reason>, retries: u32) {
        let decision = attempt.decide(Some(&mut budget(retries)), Time::default());
        match reason {
            Some(reason) => assert_eq!(decision, Decision::Not(reason), "{attempt:?}"),
            None => assert!(matches!(decision, Decision::Again(_)), "{attempt:?}: {decision:?}"),
        }
    }

    fn budget(retries: u32) -> RetryBudget {
        RetryBudget::new(BudgetLimits::new(0.0, retries, Duration::from_secs(1)).unwrap())
    }
}

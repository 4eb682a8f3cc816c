//! Retries against an exact model: what the body of each try must be, and whether there may be another.

use arbitrary::{Arbitrary, Unstructured};
use remora_core::{
    profile::{BudgetLimits, RetryBudget},
    retry::{Attempt, BACKOFF, Decision, Kept, Next, Reason, Replay, Tried},
    time::Time,
};
use std::time::Duration;

/// The description of a request and of what happens to it.
pub fn retry(data: &[u8]) {
    if let Ok(described) = Described::arbitrary(&mut Unstructured::new(data)) {
        described.holds();
    }
}

#[derive(Arbitrary, Debug)]
struct Described {
    /// What the client sends.
    pieces: Vec<Vec<u8>>,
    /// It breaks off after all of that.
    breaks: bool,
    trailers: bool,
    limit: u8,
    idempotent: bool,
    most: u8,
    retries: u8,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Step {
    /// A try asks for so many bytes; `true`: one that is over.
    Ask(u8, bool),
    /// The try ends; what the route's timeout leaves, in milliseconds.
    Ends(End, Option<u8>),
}

#[derive(Arbitrary, Clone, Copy, Debug, PartialEq)]
enum End {
    Succeeds,
    Fails,
    Unprocessed,
    Unanswered,
    Hopeless,
}

/// What must be true, kept in the simplest form.
struct Model {
    whole: Vec<u8>,
    /// Of `whole`: what has come of the client, and what the latest try has had.
    came: usize,
    had: usize,
    pieces: usize,
    over: bool,
    broken: bool,
    trailed: bool,
    too_long: bool,
}

impl Described {
    fn holds(&self) {
        let limits = BudgetLimits::new(0.0, self.retries.into(), Duration::from_secs(1));
        let Ok(limits) = limits else { panic!("{self:?} is no budget") };
        let mut budget = RetryBudget::new(limits);
        let mut replay = Replay::new(self.limit.into());
        let mut model = Model {
            whole: self.pieces.concat(),
            came: 0,
            had: 0,
            pieces: 0,
            over: false,
            broken: false,
            trailed: false,
            too_long: false,
        };
        let (mut latest, mut made) = (replay.begin().unwrap_or_default(), 0);
        for step in self.steps.iter().take(500) {
            match *step {
                Step::Ask(_, true) => assert_eq!(replay.next(latest.wrapping_sub(1), 9), Next::Stale),
                Step::Ask(most, false) => self.ask(&mut replay, &mut model, latest, most),
                Step::Ends(end, left) => {
                    let attempt = self.attempt(end, left, replay.kept(), made);
                    let expected = self.expected(&model, end, left, made);
                    match (attempt.decide(Some(&mut budget), Time::default()), expected) {
                        (Decision::Again(delay), None) if made < self.retries.into() => {
                            assert!((25..=250).contains(&delay.as_millis()), "{delay:?}");
                            made += 1;
                            latest = replay.begin().unwrap_or_default();
                            assert_eq!(latest, made + 1, "{self:?}");
                            (model.had, model.trailed) = (0, false);
                        }
                        (Decision::Not(Reason::NoBudget), None) if made >= self.retries.into() => return,
                        (Decision::Not(reason), Some(expected)) => {
                            return assert_eq!(reason, expected, "{self:?}");
                        }
                        (decision, expected) => panic!("{decision:?}, not {expected:?}: {self:?}"),
                    }
                }
            }
        }
    }

    fn ask(&self, replay: &mut Replay<u8>, model: &mut Model, latest: u32, most: u8) {
        let most = usize::from(most).max(1);
        let all = model.over && model.had == model.came;
        match replay.next(latest, most) {
            Next::Kept(bytes) => {
                let end = (model.had + most).min(model.came);
                assert!(!model.too_long && bytes == &model.whole[model.had..end], "{self:?}");
                model.had = end;
            }
            Next::Client => {
                assert!(!model.over && !model.broken && model.had == model.came, "{self:?}");
                match self.pieces.get(model.pieces) {
                    Some(piece) => {
                        replay.came(piece);
                        model.pieces += 1;
                        model.came += piece.len();
                        model.had = model.came;
                        model.too_long |= model.came > self.limit.into();
                    }
                    None if self.breaks => {
                        replay.broke();
                        model.broken = true;
                    }
                    None => {
                        replay.ended(self.trailers.then_some(7));
                        model.over = true;
                    }
                }
            }
            Next::Last(last) => {
                assert!(all && self.trailers && !model.trailed && *last == 7, "{self:?}");
                model.trailed = true;
            }
            Next::Over => assert!(all && self.trailers == model.trailed, "{self:?}"),
            Next::Broken => assert!(model.broken && model.had == model.came, "{self:?}"),
            Next::Stale => panic!("the latest try is refused: {self:?}"),
        }
    }

    fn attempt(&self, end: End, left: Option<u8>, body: Kept, made: u32) -> Attempt {
        let tried = match end {
            End::Succeeds => Tried::Answered { failure: false },
            End::Fails => Tried::Answered { failure: true },
            End::Unprocessed => Tried::Unprocessed,
            End::Unanswered => Tried::Unanswered,
            End::Hopeless => Tried::Hopeless,
        };
        let left = left.map(|ms| Duration::from_millis(ms.into()));
        Attempt {
            tried,
            body,
            idempotent: self.idempotent,
            made,
            most: self.most.into(),
            left,
            backoff: BACKOFF,
            random: 0,
        }
    }

    /// Why there is no other try, the budget aside.
    fn expected(&self, model: &Model, end: End, left: Option<u8>, made: u32) -> Option<Reason> {
        let delay = [25, 50, 100, 200].get(made as usize).copied().unwrap_or(250);
        let all = model.over && model.had == model.came && (model.trailed || !self.trailers);
        let known = model.over || model.came == 0;
        let rules = [
            (end == End::Succeeds, Reason::Answered),
            (end == End::Hopeless, Reason::Hopeless),
            (end == End::Unanswered && !self.idempotent, Reason::MayBeProcessed),
            (model.too_long, Reason::BodyTooLong),
            (model.broken, Reason::BodyBroken),
            (!(all || known && end != End::Fails), Reason::BodyUnfinished),
            (made >= self.most.into(), Reason::Limit),
            (left.is_some_and(|left| u32::from(left) <= delay), Reason::Timeout),
        ];
        rules.into_iter().find(|(holds, _)| *holds).map(|(_, reason)| reason)
    }
}

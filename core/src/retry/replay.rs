//! A request's body, recorded while it is sent, for as long as it may be sent again from its beginning.
//!
//! Each try reads it through its own number; what a try before the latest asks for is refused, so that no byte of the
//! client's goes to two readers, of which none would have them all.

#[cfg(planted)]
use crate::planted;
use alloc::vec::Vec;

/// A recorded body; `T` is what follows its last byte.
#[derive(Debug)]
pub struct Replay<T> {
    /// Most bytes kept.
    limit: usize,
    kept: Vec<u8>,
    /// More came than is kept: nothing is.
    too_long: bool,
    end: Option<End<T>>,
    /// The latest try, from 1.
    attempt: u32,
    /// How much of `kept` it has had.
    at: usize,
    /// It has had the end too.
    closed: bool,
}

#[derive(Debug)]
enum End<T> {
    Over(Option<T>),
    Broken,
}

/// The next piece for a try.
#[derive(Debug, PartialEq, Eq)]
pub enum Next<'a, T> {
    /// There is a later try: this one gets no more, and must end by an error.
    Stale,
    /// These bytes, which came during an earlier try.
    Kept(&'a [u8]),
    /// What the client sends next; [`Replay::came`], [`Replay::ended`] or [`Replay::broke`] has to hear of it.
    Client,
    /// What follows the last byte.
    Last(&'a T),
    /// Nothing more.
    Over,
    /// The client's body broke off.
    Broken,
}

/// What has come of a body, from its beginning.
#[derive(Debug, PartialEq, Eq)]
pub enum Come<'a, T> {
    /// More may come.
    Part(&'a [u8]),
    /// All, and what follows its last byte.
    All(&'a [u8], Option<&'a T>),
    /// Its beginning is not kept, or it broke off.
    Gone,
}

/// What there is of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// Nobody has asked for any of it.
    Untouched,
    /// The client is still sending it.
    Unfinished,
    /// The client has sent all of it; the latest try has not had all of it.
    Sending,
    /// The latest try has had all of it. A request without a body is one of these.
    Whole,
    /// More came than is kept.
    TooLong,
    /// It broke off.
    Broken,
}

impl<T> Replay<T> {
    /// A body of which nothing has come. At most `limit` bytes are kept; a longer one passes, and is not kept.
    pub fn new(limit: usize) -> Self {
        Self { limit, kept: Vec::new(), too_long: false, end: None, attempt: 0, at: 0, closed: false }
    }

    /// The number of the next try, which reads from the beginning; `None` if that is not there any more.
    pub fn begin(&mut self) -> Option<u32> {
        if self.too_long || matches!(self.end, Some(End::Broken)) {
            return None;
        }
        self.attempt = self.attempt.checked_add(1)?;
        #[cfg(planted)]
        if planted::makes(planted::Mistake::RewindForgotten) {
            return Some(self.attempt);
        }
        self.at = 0;
        self.closed = false;
        Some(self.attempt)
    }

    /// The next piece for this try, at most `most` bytes of it.
    pub fn next(&mut self, attempt: u32, most: usize) -> Next<'_, T> {
        if attempt != self.attempt {
            return Next::Stale;
        }
        if self.closed {
            return Next::Over;
        }
        let rest = self.kept.get(self.at..).unwrap_or_default();
        if !rest.is_empty() {
            let piece = rest.get(..most).unwrap_or(rest);
            self.at += piece.len();
            return Next::Kept(piece);
        }
        match &self.end {
            None => Next::Client,
            Some(End::Broken) => Next::Broken,
            Some(End::Over(last)) => {
                self.closed = true;
                last.as_ref().map_or(Next::Over, Next::Last)
            }
        }
    }

    /// These bytes came of the client, for the latest try, which takes them from where they came.
    pub fn came(&mut self, bytes: &[u8]) {
        if self.too_long {
            return;
        }
        if bytes.len() > self.limit.saturating_sub(self.kept.len()) {
            self.too_long = true;
            self.at = 0;
            self.kept = Vec::new();
            return;
        }
        self.kept.extend_from_slice(bytes);
        self.at = self.kept.len();
    }

    /// Nobody will ask for the beginning any more: nothing is kept from now on. What the latest try has not had yet stays
    /// until it has.
    pub fn forget(&mut self) {
        if self.at == self.kept.len() {
            self.too_long = true;
            self.at = 0;
            self.kept = Vec::new();
        }
    }

    /// The client's body has ended.
    pub fn ended(&mut self, last: Option<T>) {
        if self.end.is_none() {
            self.end = Some(End::Over(last));
        }
    }

    /// The client's body broke off.
    pub fn broke(&mut self) {
        self.end = Some(End::Broken);
    }

    /// What has come of the body, whatever any try has had of it.
    pub fn come(&self) -> Come<'_, T> {
        match &self.end {
            Some(End::Broken) => Come::Gone,
            _ if self.too_long => Come::Gone,
            Some(End::Over(last)) => Come::All(&self.kept, last.as_ref()),
            None => Come::Part(&self.kept),
        }
    }

    /// What there is of the body.
    pub fn kept(&self) -> Kept {
        match &self.end {
            _ if self.too_long => Kept::TooLong,
            Some(End::Broken) => Kept::Broken,
            Some(End::Over(_)) if self.is_over(self.attempt) => Kept::Whole,
            Some(End::Over(_)) => Kept::Sending,
            None if self.kept.is_empty() => Kept::Untouched,
            None => Kept::Unfinished,
        }
    }

    /// Whether this try has had everything.
    pub fn is_over(&self, attempt: u32) -> bool {
        let last = matches!(self.end, Some(End::Over(None))) && self.at == self.kept.len();
        attempt == self.attempt && (self.closed || last)
    }

    /// Bytes that are kept and that this try has not had, and whether the client may send more.
    pub fn left(&self, attempt: u32) -> (usize, bool) {
        let left = if attempt == self.attempt { self.kept.len().saturating_sub(self.at) } else { 0 };
        (left, self.end.is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{vec, vec::Vec};
    use proptest::prelude::*;

    #[test]
    fn what_is_forgotten_is_not_sent_again_and_what_was_not_had_still_comes() {
        let mut replay: Replay<()> = Replay::new(10);
        let first = replay.begin().unwrap();
        assert_eq!(replay.next(first, 9), Next::Client);
        replay.came(b"abc");
        let second = replay.begin().unwrap();
        assert_eq!(replay.next(second, 2), Next::Kept(b"ab"));
        replay.forget();
        assert_eq!(replay.next(second, 2), Next::Kept(b"c"));
        replay.forget();
        assert_eq!(replay.next(second, 2), Next::Client);
        assert_eq!(replay.kept(), Kept::TooLong);
        replay.came(b"d");
        replay.ended(None);
        assert_eq!(replay.next(second, 2), Next::Over);
        assert_eq!(replay.begin(), None);
    }

    #[test]
    fn what_has_come_is_told_from_its_beginning() {
        let mut replay = Replay::new(5);
        let first = replay.begin().unwrap();
        assert_eq!(replay.come(), Come::Part(b""));
        replay.came(b"hel");
        assert_eq!(replay.next(first, 9), Next::Client);
        assert_eq!(replay.come(), Come::Part(b"hel"));
        let second = replay.begin().unwrap();
        assert_eq!(replay.next(second, 2), Next::Kept(b"he"));
        assert_eq!(replay.come(), Come::Part(b"hel"));
        replay.ended(Some("sum"));
        assert_eq!(replay.come(), Come::All(b"hel", Some(&"sum")));

        let mut broken = Replay::<()>::new(5);
        broken.came(b"hel");
        broken.broke();
        let mut long = Replay::<()>::new(5);
        long.came(b"hello!");
        assert_eq!((broken.come(), long.come()), (Come::Gone, Come::Gone));
    }

    #[test]
    fn a_body_is_whole_when_the_latest_try_has_had_all_of_it() {
        let mut replay = Replay::new(10);
        assert_eq!(replay.begin(), Some(1));
        assert_eq!(replay.kept(), Kept::Untouched);
        assert_eq!(replay.next(1, 9), Next::Client);
        replay.came(b"hello");
        assert_eq!((replay.kept(), replay.is_over(1), replay.left(1)), (Kept::Unfinished, false, (0, true)));
        replay.ended(Some("sum"));
        assert_eq!((replay.kept(), replay.is_over(1)), (Kept::Sending, false));
        assert_eq!(replay.next(1, 9), Next::Last(&"sum"));
        assert_eq!(replay.next(1, 9), Next::Over);
        assert_eq!((replay.kept(), replay.is_over(1)), (Kept::Whole, true));

        assert_eq!(replay.begin(), Some(2));
        assert_eq!(replay.next(1, 9), Next::Stale);
        assert!(!replay.is_over(1));
        assert_eq!((replay.kept(), replay.left(2)), (Kept::Sending, (5, false)));
        assert_eq!(replay.next(2, 3), Next::Kept(b"hel"));
        assert_eq!(replay.next(2, 3), Next::Kept(b"lo"));
        assert_eq!(replay.next(2, 3), Next::Last(&"sum"));
        assert_eq!(replay.kept(), Kept::Whole);
    }

    #[test]
    fn a_body_without_anything_behind_it_is_over_with_its_last_byte() {
        let mut replay = Replay::<()>::new(5);
        assert_eq!(replay.begin(), Some(1));
        replay.came(b"hello");
        replay.ended(None);
        assert_eq!((replay.kept(), replay.is_over(1)), (Kept::Whole, true));
        assert_eq!(replay.next(1, 9), Next::Over);
    }

    #[test]
    fn what_is_longer_than_is_kept_passes_once() {
        let mut replay = Replay::<()>::new(5);
        assert_eq!(replay.begin(), Some(1));
        replay.came(b"hello");
        replay.came(b"!");
        assert_eq!((replay.kept(), replay.kept.capacity()), (Kept::TooLong, 0));
        assert_eq!(replay.next(1, 9), Next::Client);
        replay.came(b"more");
        replay.ended(None);
        assert_eq!(replay.next(1, 9), Next::Over);
        assert_eq!((replay.kept(), replay.begin()), (Kept::TooLong, None));
    }

    #[test]
    fn what_broke_off_is_not_sent_again() {
        let mut replay = Replay::<()>::new(5);
        assert_eq!(replay.begin(), Some(1));
        replay.came(b"he");
        replay.broke();
        assert_eq!(replay.next(1, 9), Next::Broken);
        assert_eq!((replay.kept(), replay.begin()), (Kept::Broken, None));
    }

    /// What happens next.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        /// A try, by how many tries it is behind the latest, asks for so many bytes at most.
        Ask(u32, usize),
        Begin,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => (0u32..2, 1usize..9).prop_map(|(behind, most)| Step::Ask(behind, most)),
            1 => Just(Step::Begin),
        ]
    }

    proptest! {
        #[test]
        fn every_try_has_the_clients_bytes_or_ends_by_an_error(
            pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..6), 0..8),
            trailers in any::<bool>(),
            breaks in proptest::option::of(0usize..8),
            limit in 0usize..30,
            steps in proptest::collection::vec(step(), 0..60),
        ) {
            let whole = pieces.concat();
            let mut client = pieces.iter();
            let mut given = 0;
            let mut replay = Replay::new(limit);
            // What each try had.
            let mut had: Vec<Vec<u8>> = vec![];
            let mut latest = 0;
            for step in [Step::Begin].into_iter().chain(steps) {
                let (attempt, most) = match step {
                    Step::Begin => {
                        let kept = replay.kept();
                        let begun = replay.begin();
                        prop_assert_eq!(begun.is_none(), matches!(kept, Kept::TooLong | Kept::Broken));
                        if let Some(attempt) = begun {
                            latest = attempt;
                            had.push(vec![]);
                        }
                        continue;
                    }
                    Step::Ask(behind, most) => (latest - behind.min(latest), most),
                };
                match replay.next(attempt, most) {
                    Next::Stale => prop_assert_ne!(attempt, latest),
                    Next::Kept(bytes) => {
                        prop_assert!(attempt == latest && bytes.len() <= most);
                        had.last_mut().unwrap().extend(bytes);
                    }
                    Next::Client => {
                        prop_assert_eq!(attempt, latest);
                        if breaks == Some(given) {
                            replay.broke();
                        } else if let Some(piece) = client.next() {
                            replay.came(piece);
                            had.last_mut().unwrap().extend(piece);
                        } else {
                            replay.ended(trailers.then_some("sum"));
                        }
                        given += 1;
                    }
                    Next::Last(last) => {
                        prop_assert!(trailers && *last == "sum");
                        prop_assert_eq!(had.last().unwrap(), &whole);
                    }
                    Next::Over => prop_assert_eq!(had.last().unwrap(), &whole),
                    Next::Broken => prop_assert!(breaks.is_some()),
                }
                if let Some(had) = had.last() {
                    prop_assert!(whole.starts_with(had), "{:?} of {:?}", had, whole);
                    prop_assert!(replay.kept.len() <= limit);
                    if replay.is_over(latest) {
                        prop_assert_eq!(had, &whole);
                    }
                }
            }
        }
    }
}

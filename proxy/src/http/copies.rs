//! A request's body of which others get a copy: it goes its way as if there were none, and a copy that is not read in time
//! breaks off.

use super::{
    body::Body,
    upload::{BodyError, Fate},
};
use crate::{
    fault::HttpError,
    http1::{self, head::Spelling},
};
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame};
use remora_core::retry::Come;
use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};
use tokio::sync::mpsc;

/// Bytes that a copy may be behind. One that is further behind breaks off.
const MAX_BEHIND: usize = 256 * 1024;
/// The same in pieces, which may be small.
const MAX_PIECES: usize = 1024;

enum Piece {
    Data(Bytes),
    End(Option<(HeaderMap, Spelling)>),
}

/// Where a copy's pieces go. Dropped without an end, the copy breaks off.
struct Feed {
    pieces: mpsc::Sender<Piece>,
    behind: Arc<AtomicUsize>,
}

/// A body, and whoever gets a copy of it.
pub struct Copied {
    body: Body,
    feeds: Vec<Feed>,
}

/// A copy of a body.
pub struct Copy {
    pieces: mpsc::Receiver<Piece>,
    behind: Arc<AtomicUsize>,
    left: Option<u64>,
    over: bool,
}

/// The body, and so many copies of it.
pub(super) fn copies(body: Body, count: usize) -> (Body, Vec<Body>) {
    let left = body.length();
    let (copied, copies) = Copied::new(body, left, count);
    (copied.into_body(), copies)
}

/// The same of a body of which this has come before. `left`: bytes of all of it, where that is known.
pub(super) fn copies_from(
    come: &Come<'_, (HeaderMap, Spelling)>,
    left: Option<u64>,
    body: Body,
    count: usize,
) -> (Body, Vec<Body>) {
    let (mut copied, copies) = Copied::new(body, left, count);
    match come {
        Come::Part(begun) => copied.data(begun),
        Come::All(all, last) => {
            copied.data(all);
            copied.end(*last);
        }
        // Nobody can be told of its beginning.
        Come::Gone => copied.feeds.clear(),
    }
    (copied.into_body(), copies)
}

impl Copied {
    fn new(body: Body, left: Option<u64>, count: usize) -> (Self, Vec<Body>) {
        let pairs = (0..count).map(|_| {
            let (sender, pieces) = mpsc::channel(MAX_PIECES);
            let behind = Arc::<AtomicUsize>::default();
            let copy = Copy { pieces, behind: behind.clone(), left, over: false };
            (Feed { pieces: sender, behind }, Body::copy(copy).spelled(body.spelling.clone()))
        });
        let (feeds, copies) = pairs.unzip();
        (Self { body, feeds }, copies)
    }

    fn into_body(self) -> Body {
        let spelling = self.body.spelling.clone();
        Body::copied(self).spelled(spelling)
    }

    /// What came of the body before it was copied.
    fn data(&mut self, begun: &[u8]) {
        if !begun.is_empty() {
            let begun = Bytes::copy_from_slice(begun);
            self.feeds.retain(|feed| feed.data(&begun));
        }
    }

    pub fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
        spelling: &mut Spelling,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => match (frame.data_ref(), frame.trailers_ref()) {
                (Some(data), _) => {
                    self.feeds.retain(|feed| feed.data(data));
                    if self.body.is_end_stream() {
                        self.end(None);
                    }
                }
                (None, Some(trailers)) => {
                    spelling.clone_from(&self.body.spelling);
                    let trailers = (trailers.clone(), self.body.spelling.clone());
                    self.end(Some(&trailers));
                }
                (None, None) => {}
            },
            Some(Err(_)) => self.feeds.clear(),
            None => self.end(None),
        }
        Poll::Ready(frame)
    }

    fn end(&mut self, trailers: Option<&(HeaderMap, Spelling)>) {
        for feed in self.feeds.drain(..) {
            // Nobody reads the copy any more, or it is too far behind: it breaks off.
            let _ = feed.pieces.try_send(Piece::End(trailers.cloned()));
        }
    }

    pub fn is_over(&self) -> bool {
        self.body.is_end_stream()
    }

    /// Bytes that are still to come, where that is known.
    pub fn left(&self) -> Option<u64> {
        self.body.length()
    }

    pub fn fate(&self) -> Fate {
        self.body.fate()
    }
}

impl Drop for Copied {
    fn drop(&mut self) {
        // A body that has ended is not always polled once more to hear so.
        if self.is_over() {
            self.end(None);
        }
    }
}

impl Feed {
    /// Whether the copy goes on.
    fn data(&self, data: &Bytes) -> bool {
        let behind = self.behind.fetch_add(data.len(), Ordering::Relaxed) + data.len();
        behind <= MAX_BEHIND && self.pieces.try_send(Piece::Data(data.clone())).is_ok()
    }
}

impl Copy {
    /// The next piece. `spelling` becomes that of its trailers.
    pub fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
        spelling: &mut Spelling,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.over {
            return Poll::Ready(None);
        }
        let piece = ready!(self.pieces.poll_recv(cx));
        self.over = !matches!(piece, Some(Piece::Data(_)));
        Poll::Ready(match piece {
            Some(Piece::Data(data)) => {
                self.behind.fetch_sub(data.len(), Ordering::Relaxed);
                self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
                Some(Ok(Frame::data(data)))
            }
            Some(Piece::End(Some((trailers, spelled)))) => {
                *spelling = spelled;
                Some(Ok(Frame::trailers(trailers)))
            }
            Some(Piece::End(None)) => None,
            // Cut short, never as if it were whole.
            None => Some(Err(BodyError::Stream(HttpError::Http1(http1::Error::Cut)))),
        })
    }

    pub fn is_over(&self) -> bool {
        self.over
    }

    /// Bytes that are still to come, where that is known.
    pub fn left(&self) -> Option<u64> {
        self.left
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::replay::Recorded;
    use super::*;
    use http_body_util::BodyExt as _;

    #[tokio::test]
    async fn everybody_gets_all_of_it() {
        let (body, copies) = two(&[b"one", b"two"], true);
        assert_eq!(read(body).await, Ok(b"onetwo".to_vec()));
        for copy in copies {
            assert_eq!(read(copy).await, Ok(b"onetwo".to_vec()));
        }
    }

    #[tokio::test]
    async fn a_copy_of_what_breaks_off_breaks_off() {
        let (body, copies) = two(&[b"one"], false);
        assert_eq!(read(body).await, Err(()));
        for copy in copies {
            assert_eq!(read(copy).await, Err(()));
        }
    }

    #[tokio::test]
    async fn a_copy_that_nobody_reads_breaks_off_and_the_body_does_not_wait() {
        let piece = vec![b'x'; 100_000];
        let (body, mut copies) = two(&[&piece, &piece, &piece], true);
        drop(copies.pop());
        assert_eq!(read(body).await.map(|read| read.len()), Ok(300_000));
        assert_eq!(read(copies.remove(0)).await, Err(()), "it is 300,000 bytes behind");
    }

    #[tokio::test]
    async fn a_copy_has_all_of_a_body_that_is_sent_again() {
        for (trailers, had) in
            [(None, 0), (None, 1), (None, 3), (Some(HeaderMap::new()), 2), (Some(HeaderMap::new()), 3)]
        {
            let recorded = Recorded::new(of(&[b"one", b"two"], true, trailers), 100);
            let mut first = recorded.begin().unwrap();
            for _ in 0..had {
                let _ = first.frame().await;
            }
            let mut copies = recorded.copies(2);
            // It has had all the rest, or nothing of it.
            if had == 1 {
                assert_eq!(read(first).await, Ok(b"two".to_vec()));
            } else {
                drop(first);
            }
            assert_eq!(read(recorded.begin().unwrap()).await, Ok(b"onetwo".to_vec()), "{had}");
            drop(recorded);
            for copy in copies.drain(..) {
                assert_eq!(read(copy).await, Ok(b"onetwo".to_vec()), "{had}");
            }
        }
    }

    #[tokio::test]
    async fn a_copy_of_a_body_that_nobody_sends_to_its_end_breaks_off() {
        let recorded = Recorded::new(of(&[b"one", b"two"], true, None), 100);
        let mut first = recorded.begin().unwrap();
        let mut copies = recorded.copies(1);
        assert_eq!(first.frame().await.unwrap().unwrap().into_data().unwrap(), "one");
        drop((first, recorded));
        assert_eq!(read(copies.remove(0)).await, Err(()));
    }

    /// A body of these pieces, which ends or breaks off, and two copies.
    fn two(pieces: &[&[u8]], ends: bool) -> (Body, Vec<Body>) {
        copies(of(pieces, ends, None), 2)
    }

    /// A body of these pieces, which ends, with trailers or without, or breaks off.
    pub(in crate::http) fn of(pieces: &[&[u8]], ends: bool, trailers: Option<HeaderMap>) -> Body {
        let (sender, receiver) = mpsc::channel(8);
        for piece in pieces {
            assert!(sender.try_send(Piece::Data(Bytes::copy_from_slice(piece))).is_ok());
        }
        if ends {
            let trailers = trailers.map(|trailers| (trailers, Spelling::Lower));
            assert!(sender.try_send(Piece::End(trailers)).is_ok());
        }
        let behind = Arc::new(AtomicUsize::new(usize::MAX / 2));
        Body::copy(Copy { pieces: receiver, behind, left: None, over: false })
    }

    async fn read(body: Body) -> Result<Vec<u8>, ()> {
        body.collect().await.map(|read| read.to_bytes().to_vec()).map_err(|_| ())
    }
}

//! A request's body that may be sent more than once: [`Replay`] between the client's body and whoever sends it.

use super::{
    body::Body,
    copies::copies_from,
    upload::{BodyError, Fate},
};
use crate::{
    fault::HttpError,
    http1::{self, head::Spelling},
};
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame};
use remora_core::retry::{Come, Kept, Next, Replay};
use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

/// Bytes of a piece that is sent again.
const PIECE: usize = 16 * 1024;

/// A body that comes, and what is kept of it.
#[derive(Clone)]
pub struct Recorded(Arc<Mutex<Recording>>);

struct Recording {
    client: Body,
    replay: Replay<(HeaderMap, Spelling)>,
    /// Whether the client said how long it is. Then so does whoever sends it.
    sized: bool,
}

impl Recorded {
    /// Keeps at most `limit` bytes.
    pub fn new(client: Body, limit: usize) -> Self {
        let sized = client.length().is_some();
        Self(Arc::new(Mutex::new(Recording { client, replay: Replay::new(limit), sized })))
    }

    /// The body from its beginning, for the next try; what tries before it still ask for, they do not get.
    pub fn begin(&self) -> Option<Body> {
        let mut recording = self.lock();
        let attempt = recording.replay.begin()?;
        let body = Body::replaying(Replaying { recorded: self.clone(), attempt });
        Some(body.spelled(recording.client.spelling.clone()))
    }

    /// So many copies of the body from its beginning, whichever of its tries has it.
    pub fn copies(&self, count: usize) -> Vec<Body> {
        let mut recording = self.lock();
        let Recording { client, replay, sized } = &mut *recording;
        let come = replay.come();
        let length = match come {
            Come::Part(come) | Come::All(come, _) => client.length().map(|left| come.len() as u64 + left),
            Come::Gone => None,
        };
        let body = std::mem::replace(client, Body::absent());
        let (body, copies) = copies_from(&come, length.filter(|_| *sized), body, count);
        *client = body;
        copies
    }

    /// What there is of the body.
    pub fn kept(&self) -> Kept {
        self.lock().replay.kept()
    }

    /// No other try will be: what is kept is let go.
    pub fn forget(&self) {
        self.lock().replay.forget();
    }

    fn lock(&self) -> MutexGuard<'_, Recording> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The body as one try sends it.
pub struct Replaying {
    recorded: Recorded,
    attempt: u32,
}

impl Replaying {
    /// The next piece. `spelling` becomes that of its trailers.
    pub fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
        spelling: &mut Spelling,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut recording = self.recorded.lock();
        loop {
            return Poll::Ready(match recording.replay.next(self.attempt, PIECE) {
                // Whoever still sends for an answer that nobody wants ends it by an error, never as if it were whole.
                Next::Stale | Next::Broken => {
                    Some(Err(BodyError::Stream(HttpError::Http1(http1::Error::Cut))))
                }
                Next::Kept(bytes) => Some(Ok(Frame::data(Bytes::copy_from_slice(bytes)))),
                Next::Last((trailers, spelled)) => {
                    spelling.clone_from(spelled);
                    Some(Ok(Frame::trailers(trailers.clone())))
                }
                Next::Over => None,
                Next::Client => match ready!(recording.poll_client(cx)) {
                    Some(piece) => Some(piece),
                    None => continue,
                },
            });
        }
    }

    /// Of what it is a try.
    pub fn recorded(&self) -> &Recorded {
        &self.recorded
    }

    pub fn is_over(&self) -> bool {
        self.recorded.lock().replay.is_over(self.attempt)
    }

    /// Bytes that are still to come, where that is known.
    pub fn left(&self) -> Option<u64> {
        let recording = self.recorded.lock();
        let (kept, more) = recording.replay.left(self.attempt);
        let client = if more { recording.client.length()? } else { 0 };
        recording.sized.then_some(kept as u64 + client)
    }

    pub fn fate(&self) -> Fate {
        self.recorded.lock().client.fate()
    }
}

impl Recording {
    /// What the client sends next: bytes or an error; `None` if it ended.
    fn poll_client(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Poll::Ready(match ready!(Pin::new(&mut self.client).poll_frame(cx)) {
            None => {
                self.replay.ended(None);
                None
            }
            Some(Err(error)) => {
                self.replay.broke();
                Some(Err(error))
            }
            Some(Ok(frame)) => match frame.into_data() {
                Ok(bytes) => {
                    self.replay.came(&bytes);
                    if self.client.is_end_stream() {
                        self.replay.ended(None);
                    }
                    Some(Ok(Frame::data(bytes)))
                }
                Err(frame) => {
                    let spelling = self.client.spelling.clone();
                    self.replay.ended(frame.into_trailers().ok().map(|trailers| (trailers, spelling)));
                    None
                }
            },
        })
    }
}

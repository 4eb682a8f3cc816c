//! A request's body on its way in: how slow it may be, and why it broke. The client is told by its request's answer.

use super::{deadline::Progress, request::Standing};
use crate::fault::{Fault, HttpError};
use bytes::Bytes;
use http_body::Frame;
use remora_core::patience::Patience;
use remora_runtime::clock;
use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

/// What has to come of a body while it is waited for. A body that comes slower than this in five minutes is not one that
/// anybody waits for; its connection, and the server's, are worth more.
const LEAST: u64 = 1024;

/// Why a body breaks off.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error(transparent)]
    Stream(HttpError),
    #[error("{0}")]
    Client(Fault),
    /// Policy does not admit the request any more.
    #[error("{0}")]
    Refused(Fault),
}

/// What became of a body, for the request that it belongs to.
#[derive(Clone, Default)]
pub struct Fate(Option<Arc<Shared>>);

#[derive(Default)]
struct Shared {
    broke: OnceLock<Fault>,
    answered: AtomicBool,
}

impl Fate {
    /// The server has begun to answer: from now on it knows best how long to wait for the rest.
    pub fn answered(&self) {
        if let Some(shared) = &self.0 {
            shared.answered.store(true, Ordering::Relaxed);
        }
    }

    /// Why the request failed: by its body if that broke, else by what the server did.
    pub fn or(&self, fault: Fault) -> Fault {
        self.0.as_ref().and_then(|shared| shared.broke.get().cloned()).unwrap_or(fault)
    }
}

/// Watches a body while it comes.
pub struct Upload {
    /// `None`: it may be as slow as it likes.
    patience: Option<(Duration, Patience)>,
    timer: Option<Pin<Box<tokio::time::Sleep>>>,
    shared: Arc<Shared>,
    /// Who else is told how far it is.
    progress: Option<Arc<Progress>>,
    /// Whether its request may go on.
    standing: Option<Arc<Standing>>,
}

impl Upload {
    /// `limit` bounds the wait for `LEAST` bytes.
    pub fn new(limit: Option<Duration>) -> Self {
        let patience = limit.map(|limit| (limit, Patience::new(limit, LEAST)));
        Self { patience, timer: None, shared: Arc::default(), progress: None, standing: None }
    }

    pub fn fate(&self) -> Fate {
        Fate(Some(self.shared.clone()))
    }

    /// Tells how far the body is.
    pub fn tell(&mut self, progress: Arc<Progress>) {
        self.progress = Some(progress);
    }

    /// Ends the body when its request may not go on.
    pub fn stands_by(&mut self, standing: Arc<Standing>) {
        self.standing = Some(standing);
    }

    /// The body has been sent to its end.
    pub fn ended(&self) {
        if let Some(progress) = &self.progress {
            progress.sent();
        }
    }

    /// Looks at what came of the body.
    pub fn watch(
        &mut self,
        cx: &mut Context<'_>,
        polled: Poll<Option<Result<Frame<Bytes>, HttpError>>>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(fault) = self.standing.as_ref().and_then(|standing| standing.refused()) {
            let _ = self.shared.broke.set(fault.clone());
            return Poll::Ready(Some(Err(BodyError::Refused(fault))));
        }
        match polled {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(progress) = &self.progress {
                    progress.moved();
                }
                if let (Some((_, patience)), Some(data)) = (&mut self.patience, frame.data_ref()) {
                    patience.came(data.len() as u64, clock::now());
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Ready(Some(Err(error))) => {
                // The first reason counts.
                let _ = self.shared.broke.set(Fault::Body(error.to_string().into()));
                Poll::Ready(Some(Err(BodyError::Stream(error))))
            }
            Poll::Pending => match self.lost(cx) {
                Some(fault) => {
                    let _ = self.shared.broke.set(fault.clone());
                    Poll::Ready(Some(Err(BodyError::Client(fault))))
                }
                None => Poll::Pending,
            },
        }
    }

    /// Why nothing more is to be waited for, if that is so.
    fn lost(&mut self, cx: &mut Context<'_>) -> Option<Fault> {
        let (limit, patience) = self.patience.as_mut()?;
        if self.shared.answered.load(Ordering::Relaxed) {
            return None;
        }
        let now = clock::now();
        let until = tokio::time::Instant::now() + patience.wait(now).since(now);
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        if timer.deadline() != until {
            timer.as_mut().reset(until);
        }
        if timer.as_mut().poll(cx).is_pending() && !patience.is_over(now) {
            return None;
        }
        Some(Fault::BodyTimeout { least: LEAST, limit: *limit })
    }
}

//! How long a client may take over what it has begun: the preface, the fields of a request. Between requests it has all the
//! time that it likes, and so have bodies here: `http/upload.rs` watches those.

use super::portions::Portion;
use remora_runtime::clock;
use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

type Timer = Pin<Box<dyn Future<Output = ()> + Send>>;

pub(super) struct Late {
    limit: Duration,
    /// For what is owed now, by its number. There is no timer for a client that owes nothing.
    armed: Option<(u64, Timer)>,
}

impl Late {
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, armed: None }
    }

    /// Ready when the client has owed the same for too long. Asked after the stream has been read.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, portion: &Portion) -> Poll<Duration> {
        let Some(owed) = portion.owed() else {
            self.armed = None;
            return Poll::Pending;
        };
        let timer = match &mut self.armed {
            Some((of, timer)) if *of == owed => timer,
            armed => {
                let end = clock::now() + self.limit;
                &mut armed.insert((owed, Box::pin(clock::sleep_until(end)))).1
            }
        };
        timer.as_mut().poll(cx).map(|()| self.limit)
    }
}

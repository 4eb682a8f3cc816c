//! How long an exchange may take: the timeouts of a rule, from a request's arrival to the last byte of its answer.
//! Contract 4.2.

use crate::fault::{Fault, HttpError};
use remora_core::{route::Timeouts, time::Time};
use remora_runtime::clock;
use std::{
    future::Future,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::sync::Notify;

/// Which bound of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Of the whole exchange.
    Request,
    /// Of the answer, once the request is sent.
    Response,
    /// Of silence.
    Idle,
}

impl Limit {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Response => "response",
            Self::Idle => "idle",
        }
    }

    /// In the words of the typed route families.
    pub fn route_error(self) -> &'static str {
        match self {
            Self::Request => "REQUEST_TIMEOUT",
            Self::Response => "RESPONSE_STREAM_TIMEOUT",
            Self::Idle => "IDLE_TIMEOUT",
        }
    }
}

/// An exchange with bounds of time.
pub struct Course {
    limits: Timeouts,
    began: Time,
    progress: Arc<Progress>,
}

/// How far an exchange is, as its request's body tells it. Times are nanoseconds after its beginning.
pub struct Progress {
    began: Time,
    /// When the last byte moved, in either direction.
    moved: AtomicU64,
    /// When the request was sent to its end or its answer began; `NEVER` before.
    sent: AtomicU64,
    changed: Notify,
}

const NEVER: u64 = u64::MAX;

impl Progress {
    fn now(&self) -> u64 {
        u64::try_from(clock::now().since(self.began).as_nanos()).unwrap_or(NEVER - 1)
    }

    /// Bytes moved.
    pub fn moved(&self) {
        self.moved.store(self.now(), Ordering::Relaxed);
    }

    /// The request has been sent, or its answer has begun: the earlier of both counts.
    pub fn sent(&self) {
        let first = self.sent.compare_exchange(NEVER, self.now(), Ordering::Relaxed, Ordering::Relaxed);
        if first.is_ok() {
            self.changed.notify_one();
        }
    }
}

impl Course {
    /// `None`: without bounds.
    pub fn begin(limits: Timeouts, began: Time) -> Option<Self> {
        (!limits.is_empty()).then(|| Self {
            limits,
            began,
            progress: Arc::new(Progress {
                began,
                moved: AtomicU64::new(0),
                sent: AtomicU64::new(NEVER),
                changed: Notify::new(),
            }),
        })
    }

    /// What the request's body has to tell.
    pub fn progress(&self) -> &Arc<Progress> {
        &self.progress
    }

    /// When the whole exchange has to be over.
    pub fn until(&self) -> Option<Time> {
        self.limits.request.map(|limit| self.began + limit)
    }

    /// Which bound is reached first, and when, as things stand.
    fn next(&self) -> Option<(Time, Limit)> {
        let after = |nanos: u64, limit: Option<Duration>| {
            limit.map(|limit| self.began + Duration::from_nanos(nanos) + limit)
        };
        let sent = self.progress.sent.load(Ordering::Relaxed);
        let response = if sent == NEVER { None } else { after(sent, self.limits.response) };
        let idle = after(self.progress.moved.load(Ordering::Relaxed), self.limits.idle);
        [(self.until(), Limit::Request), (response, Limit::Response), (idle, Limit::Idle)]
            .into_iter()
            .filter_map(|(at, limit)| Some((at?, limit)))
            .min_by_key(|(at, _)| *at)
    }

    /// Waits for the head of the answer, but not beyond a bound.
    pub async fn in_time<T>(&self, sending: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
        let mut sending = pin!(sending);
        loop {
            let next = self.next();
            let expiry = async {
                match next {
                    Some((at, _)) => clock::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                sent = &mut sending => return sent,
                () = self.progress.changed.notified() => {}
                () = expiry => {}
            }
            if let Some((at, limit)) = self.next()
                && at <= clock::now()
            {
                return Err(Fault::Late { limit, after: self.of(limit) });
            }
        }
    }

    fn of(&self, limit: Limit) -> Duration {
        let limit = match limit {
            Limit::Request => self.limits.request,
            Limit::Response => self.limits.response,
            Limit::Idle => self.limits.idle,
        };
        limit.unwrap_or_default()
    }

    /// The answer has begun: the bounds hold for its body.
    pub fn answered(self) -> Box<Expiry> {
        self.progress.moved();
        self.progress.sent();
        Box::new(Expiry { course: self, timer: None })
    }
}

/// Watches an answer's body.
pub struct Expiry {
    course: Course,
    timer: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl Expiry {
    /// Bytes of the answer came.
    pub fn moved(&self) {
        self.course.progress.moved();
    }

    /// Ready when a bound is reached.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<HttpError> {
        loop {
            let Some((at, limit)) = self.course.next() else { return Poll::Pending };
            let now = clock::now();
            if at <= now {
                return Poll::Ready(HttpError::Late { limit, after: self.course.of(limit) });
            }
            let until = tokio::time::Instant::now() + at.since(now);
            let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
            if timer.is_elapsed() {
                timer.as_mut().reset(until);
            }
            // One that ends too early is set again, so that bytes that move cost no timer.
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            timer.as_mut().reset(until);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        future::{pending, poll_fn},
        task::Waker,
    };

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn without_bounds_there_is_no_course() {
        assert!(Course::begin(Timeouts::default(), clock::now()).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn the_whole_exchange_is_bounded_from_the_requests_arrival() {
        let course = course(Some(3), None, None);
        tokio::time::advance(SECOND).await;
        assert_eq!(late(&course).await, (Limit::Request, 3_000));
        assert_eq!(course.until(), Some(course.began + SECOND * 3));
    }

    #[tokio::test(start_paused = true)]
    async fn the_answer_is_bounded_once_the_request_is_sent() {
        let course = course(None, Some(2), None);
        let progress = course.progress().clone();
        tokio::spawn(async move {
            tokio::time::sleep(SECOND * 10).await;
            progress.sent();
            progress.sent();
        });
        assert_eq!(late(&course).await, (Limit::Response, 12_000));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_bounded_and_every_byte_ends_it() {
        let course = course(None, None, Some(2));
        let progress = course.progress().clone();
        tokio::spawn(async move {
            for _ in 0..5 {
                tokio::time::sleep(SECOND).await;
                progress.moved();
            }
        });
        assert_eq!(late(&course).await, (Limit::Idle, 7_000));
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_in_time_comes() {
        let course = course(Some(1), None, None);
        assert_eq!(course.in_time(async { Ok(7) }).await.ok(), Some(7));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answers_body_is_bounded_too() {
        for (request, response, idle, expected) in [
            (Some(5), None, None, (Limit::Request, 5_000)),
            (None, Some(2), None, (Limit::Response, 3_000)),
            (None, None, Some(2), (Limit::Idle, 3_000)),
            (Some(5), Some(3), Some(1), (Limit::Idle, 2_000)),
        ] {
            let course = course(request, response, idle);
            let began = course.began;
            tokio::time::advance(SECOND).await;
            let mut expiry = course.answered();
            assert!(expiry.poll(&mut Context::from_waker(Waker::noop())).is_pending());
            let HttpError::Late { limit, .. } = poll_fn(|cx| expiry.poll(cx)).await else { panic!() };
            assert_eq!((limit, clock::now().since(began).as_millis()), expected);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_moves_is_not_idle() {
        let mut expiry = course(None, None, Some(2)).answered();
        for _ in 0..5 {
            tokio::time::advance(SECOND).await;
            expiry.moved();
            assert!(expiry.poll(&mut Context::from_waker(Waker::noop())).is_pending());
        }
        tokio::time::advance(SECOND * 2).await;
        assert!(expiry.poll(&mut Context::from_waker(Waker::noop())).is_ready());
    }

    fn course(request: Option<u64>, response: Option<u64>, idle: Option<u64>) -> Course {
        let secs = |secs: Option<u64>| secs.map(Duration::from_secs);
        let limits = Timeouts { request: secs(request), response: secs(response), idle: secs(idle) };
        Course::begin(limits, clock::now()).unwrap()
    }

    /// Which bound ends what never comes, and after how many milliseconds.
    async fn late(course: &Course) -> (Limit, u128) {
        let fault = course.in_time::<()>(pending()).await.unwrap_err();
        let Fault::Late { limit, .. } = fault else { panic!("{fault}") };
        (limit, clock::now().since(course.began).as_millis())
    }
}

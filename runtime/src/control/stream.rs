//! A stream from the control plane that never stops: opened again when it ends, breaks, falls silent or gets old.
//! What was received last stays with the consumer; nothing here forgets it. Contract 3.0.

use crate::clock;
use futures_util::{Stream, StreamExt, stream};
use remora_core::backoff::Pace;
use std::{future::Future, pin::Pin, time::Duration};
use tokio::time::{Instant, timeout};
use tonic::{Code, Status};

/// How long the parts of a stream may take; `None` is without limit, as for a control plane on loopback.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamLimits {
    /// From the attempt to the first message (3 s in Linkerd's chart).
    pub initial: Option<Duration>,
    /// Between messages (5 min).
    pub idle: Option<Duration>,
    /// Of the stream altogether (1 h).
    pub lifetime: Option<Duration>,
}

/// What a subscription has to say.
#[derive(Debug)]
pub enum Event<T> {
    /// The server says so now; every new stream begins with the whole state.
    Message(T),
    /// The server does not know the target (now). It is asked again.
    NotFound(Status),
    /// The server will never answer this (InvalidArgument, FailedPrecondition). The subscription has ended.
    Terminal(Status),
    /// Any other failure, also silence; it is tried again. Unimplemented comes as this.
    Failed(Status),
}

/// Subscribes, again and again, until a terminal answer or until it is dropped.
///
/// `open` makes one attempt; it is called at once, then again 1 s to 10 s (with jitter) after it began, while attempts
/// fail. A stream that delivered and then reached its `idle` or `lifetime` limit is opened again at once, without an
/// event: that is how the contract has it.
pub fn subscribe<T, S, Open, Opening>(limits: StreamLimits, open: Open) -> impl Stream<Item = Event<T>>
where
    Open: Fn() -> Opening,
    Opening: Future<Output = Result<S, Status>>,
    S: Stream<Item = Result<T, Status>>,
{
    let subscription =
        Subscription { limits, open, pace: Pace::default(), state: State::Closed { wait: Duration::ZERO } };
    stream::unfold(subscription, |mut subscription| async move {
        let event = subscription.next().await?;
        Some((event, subscription))
    })
}

/// ```text
///          wait, open, first message          ended, broken, silent, old
/// Closed ───────────────────────────▶ Open ─────────────────────────────▶ Closed
///    │ refused for good                │
///    └─────────────▶ Ended ◀───────────┘
/// ```
enum State<S> {
    Closed { wait: Duration },
    Open { stream: Pin<Box<S>>, opened: Instant },
    Ended,
}

struct Subscription<S, Open> {
    limits: StreamLimits,
    open: Open,
    pace: Pace,
    state: State<S>,
}

impl<T, S, Open, Opening> Subscription<S, Open>
where
    Open: Fn() -> Opening,
    Opening: Future<Output = Result<S, Status>>,
    S: Stream<Item = Result<T, Status>>,
{
    async fn next(&mut self) -> Option<Event<T>> {
        loop {
            match &mut self.state {
                State::Ended => return None,
                State::Closed { wait } => {
                    tokio::time::sleep(*wait).await;
                    let opened = Instant::now();
                    match self.begin(opened).await {
                        Ok(first) => return Some(Event::Message(first)),
                        Err(status) => return Some(self.failed(status, opened.elapsed(), Duration::ZERO)),
                    }
                }
                State::Open { stream, opened } => {
                    let opened = *opened;
                    let remaining = remaining(self.limits, opened.elapsed());
                    match within(remaining, stream.next()).await {
                        Some(Some(Ok(message))) => return Some(Event::Message(message)),
                        Some(Some(Err(status))) => {
                            let lived = opened.elapsed();
                            return Some(self.failed(status, lived, lived));
                        }
                        // The server ended it in good order: not a failure to tell of, but not to be hurried either.
                        Some(None) => {
                            let lived = opened.elapsed();
                            self.state =
                                State::Closed { wait: self.pace.wait(lived, lived, clock::random()) };
                        }
                        None => {
                            self.pace = Pace::default();
                            let wait = Pace::APART.min.saturating_sub(opened.elapsed());
                            self.state = State::Closed { wait };
                        }
                    }
                }
            }
        }
    }

    /// One attempt, up to the first message.
    async fn begin(&mut self, opened: Instant) -> Result<T, Status> {
        let opening = async {
            let mut stream = Box::pin((self.open)().await?);
            match stream.next().await {
                Some(first) => Ok((first?, stream)),
                None => Err(Status::unavailable("the stream ended before its first message")),
            }
        };
        let (first, stream) = within(self.limits.initial, opening)
            .await
            .unwrap_or_else(|| Err(Status::deadline_exceeded("no first message in time")))?;
        self.state = State::Open { stream, opened };
        Ok(first)
    }

    /// The stream of an attempt that began so long ago failed, after it `lived`.
    fn failed(&mut self, status: Status, began: Duration, lived: Duration) -> Event<T> {
        if matches!(status.code(), Code::InvalidArgument | Code::FailedPrecondition) {
            self.state = State::Ended;
            return Event::Terminal(status);
        }
        self.state = State::Closed { wait: self.pace.wait(began, lived, clock::random()) };
        if status.code() == Code::NotFound { Event::NotFound(status) } else { Event::Failed(status) }
    }
}

/// How much longer a stream of age `age` may be waited for.
fn remaining(limits: StreamLimits, age: Duration) -> Option<Duration> {
    let lifetime = limits.lifetime.map(|lifetime| lifetime.saturating_sub(age));
    match (limits.idle, lifetime) {
        (Some(idle), Some(lifetime)) => Some(idle.min(lifetime)),
        (limit, None) | (None, limit) => limit,
    }
}

/// `None` if it took longer than `limit`.
async fn within<T>(limit: Option<Duration>, future: impl Future<Output = T>) -> Option<T> {
    match limit {
        Some(limit) => timeout(limit, future).await.ok(),
        None => Some(future.await),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream::BoxStream;
    use std::{
        collections::VecDeque,
        sync::{Arc, Mutex},
    };

    const LIMITS: StreamLimits = StreamLimits {
        initial: Some(Duration::from_secs(3)),
        idle: Some(Duration::from_mins(5)),
        lifetime: Some(Duration::from_hours(1)),
    };

    #[tokio::test(start_paused = true)]
    async fn messages_come_through() {
        let server = Server::that([Opens(vec![Says(1), Says(2), Holds])]);
        let mut events = server.subscribe();
        assert_eq!(server.next(&mut events).await, "1");
        assert_eq!(server.next(&mut events).await, "2");
    }

    #[tokio::test(start_paused = true)]
    async fn a_broken_stream_is_told_of_and_opened_again() {
        let server =
            Server::that([Opens(vec![Says(1), Fails(Code::Unavailable)]), Opens(vec![Says(2), Holds])]);
        let mut events = server.subscribe();
        assert_eq!(server.next(&mut events).await, "1");
        assert_eq!(server.next(&mut events).await, "failed Unavailable");
        assert_eq!(server.next(&mut events).await, "2");
        assert_eq!(server.gaps(), [within_ms(1000, 1300)]);
    }

    #[tokio::test(start_paused = true)]
    async fn attempts_get_rarer_but_never_stop() {
        let server = Server::that(std::iter::repeat_n(Refuses(Code::Unavailable), 20));
        let mut events = server.subscribe();
        for _ in 0..20 {
            assert_eq!(server.next(&mut events).await, "failed Unavailable");
        }
        let gaps = server.observed_gaps();
        assert!((1..2).contains(&gaps[0].as_secs()), "{gaps:?}");
        assert!(gaps[10..].iter().all(|gap| (10..=13).contains(&gap.as_secs())), "{gaps:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_says_nothing_is_given_the_initial_limit() {
        let server = Server::that([Opens(vec![Holds]), Stalls, Opens(vec![Says(1), Holds])]);
        let mut events = server.subscribe();
        assert_eq!(server.next(&mut events).await, "failed DeadlineExceeded");
        assert_eq!(server.next(&mut events).await, "failed DeadlineExceeded");
        assert_eq!(server.next(&mut events).await, "1");
        assert_eq!(server.gaps(), [within_ms(3100, 3200), within_ms(3100, 3200)]);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_after_a_message_opens_a_new_stream_without_a_word() {
        let server = Server::that([Opens(vec![Says(1), Holds]), Opens(vec![Says(1), Holds])]);
        let mut events = server.subscribe();
        assert_eq!(server.next(&mut events).await, "1");
        assert_eq!(server.next(&mut events).await, "1");
        assert_eq!(server.gaps(), [within_ms(300_000, 300_001)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_talkative_stream_ends_with_its_lifetime() {
        let chatter = std::iter::repeat_n([Waits(200), Says(1)], 30).flatten();
        let server = Server::that([
            Opens([Says(0)].into_iter().chain(chatter).collect()),
            Opens(vec![Says(9), Holds]),
        ]);
        let mut events = server.subscribe();
        let mut seen = Vec::new();
        while seen.last().is_none_or(|event| event != "9") {
            seen.push(server.next(&mut events).await);
        }
        assert_eq!(server.gaps(), [within_ms(3_600_000, 3_600_001)]);
        assert!(seen.iter().all(|event| !event.starts_with("failed")), "{seen:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_clean_end_is_followed_by_a_new_stream() {
        let server = Server::that([Opens(vec![Says(1)]), Opens(vec![Says(2)]), Opens(vec![Says(3), Holds])]);
        let mut events = server.subscribe();
        for message in ["1", "2", "3"] {
            assert_eq!(server.next(&mut events).await, message);
        }
        assert_eq!(server.gaps(), [within_ms(1000, 1300), within_ms(2000, 2600)]);
    }

    #[tokio::test(start_paused = true)]
    async fn not_found_is_asked_again() {
        let server = Server::that([Refuses(Code::NotFound), Opens(vec![Says(1), Holds])]);
        let mut events = server.subscribe();
        assert_eq!(server.next(&mut events).await, "not found");
        assert_eq!(server.next(&mut events).await, "1");
    }

    #[tokio::test(start_paused = true)]
    async fn terminal_answers_end_the_subscription() {
        for code in [Code::InvalidArgument, Code::FailedPrecondition] {
            let server = Server::that([Refuses(code)]);
            let mut events = server.subscribe();
            assert_eq!(server.next(&mut events).await, format!("terminal {code:?}"));
            assert_eq!(server.next(&mut events).await, "end");
            let server = Server::that([Opens(vec![Says(1), Fails(code)])]);
            let mut events = server.subscribe();
            assert_eq!(server.next(&mut events).await, "1");
            assert_eq!(server.next(&mut events).await, format!("terminal {code:?}"));
            assert_eq!(server.next(&mut events).await, "end");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_lived_is_followed_without_the_old_delays() {
        let server = Server::that([
            Refuses(Code::Unavailable),
            Refuses(Code::Unavailable),
            Refuses(Code::Unavailable),
            Opens(vec![Says(1), Waits(60), Fails(Code::Unavailable)]),
            Opens(vec![Says(2), Holds]),
        ]);
        let mut events = server.subscribe();
        while server.next(&mut events).await != "2" {}
        assert_eq!(*server.gaps().last().unwrap(), within_ms(60_100, 60_200));
    }

    // Helpers.

    use Answer::{Opens, Refuses, Stalls};
    use Step::{Fails, Holds, Says, Waits};

    #[derive(Clone)]
    enum Answer {
        Opens(Vec<Step>),
        Refuses(Code),
        Stalls,
    }

    #[derive(Clone, Copy)]
    enum Step {
        Says(u32),
        Waits(u64),
        Fails(Code),
        Holds,
    }

    /// Plays its script, one answer per attempt, and remembers when it was asked.
    struct Server {
        script: Arc<Mutex<VecDeque<Answer>>>,
        asked: Arc<Mutex<Vec<Instant>>>,
    }

    impl Server {
        fn that(script: impl IntoIterator<Item = Answer>) -> Self {
            Self { script: Arc::new(Mutex::new(script.into_iter().collect())), asked: Arc::default() }
        }

        fn subscribe(&self) -> BoxStream<'static, Event<u32>> {
            let (script, asked) = (self.script.clone(), self.asked.clone());
            let open = move || {
                asked.lock().unwrap().push(Instant::now());
                let answer = script.lock().unwrap().pop_front();
                async move {
                    match answer {
                        Some(Opens(steps)) => Ok(play(steps)),
                        Some(Refuses(code)) => Err(Status::new(code, "as the script says")),
                        Some(Stalls) | None => std::future::pending().await,
                    }
                }
            };
            Box::pin(subscribe(LIMITS, open))
        }

        async fn next(&self, events: &mut BoxStream<'static, Event<u32>>) -> String {
            match events.next().await {
                Some(Event::Message(message)) => message.to_string(),
                Some(Event::NotFound(_)) => "not found".to_owned(),
                Some(Event::Terminal(status)) => format!("terminal {:?}", status.code()),
                Some(Event::Failed(status)) => format!("failed {:?}", status.code()),
                None => "end".to_owned(),
            }
        }

        fn observed_gaps(&self) -> Vec<Duration> {
            self.asked.lock().unwrap().windows(2).map(|pair| pair[1].duration_since(pair[0])).collect()
        }

        fn gaps(&self) -> Vec<Gap> {
            self.observed_gaps().into_iter().map(Gap::Observed).collect()
        }
    }

    fn play(steps: Vec<Step>) -> BoxStream<'static, Result<u32, Status>> {
        stream::unfold(VecDeque::from(steps), |mut steps| async move {
            loop {
                match steps.pop_front()? {
                    Says(message) => return Some((Ok(message), steps)),
                    Fails(code) => return Some((Err(Status::new(code, "as the script says")), steps)),
                    Waits(secs) => tokio::time::sleep(Duration::from_secs(secs)).await,
                    Holds => std::future::pending().await,
                }
            }
        })
        .boxed()
    }

    /// Jitter makes gaps ranges.
    #[derive(Debug)]
    enum Gap {
        Observed(Duration),
        Range(u64, u64),
    }

    impl PartialEq for Gap {
        fn eq(&self, other: &Self) -> bool {
            match (self, other) {
                // Tokio's timer rounds up to whole milliseconds.
                (Self::Observed(gap), Self::Range(low, high)) => {
                    gap.as_millis() >= u128::from(*low) && gap.as_millis() <= u128::from(*high) + 4
                }
                _ => false,
            }
        }
    }

    fn within_ms(low: u64, high: u64) -> Gap {
        Gap::Range(low, high)
    }
}

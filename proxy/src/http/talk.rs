//! The client's half of an HTTP/1 conversation, below hyper: how long a head may take, and whether a client that says no
//! more still listens.
//!
//! hyper's own limit of a head begins with the connection's idle time, which is the client's business; here the clock
//! begins with the first byte of a head. And to hyper a client that half-closes has either left or is never looked at
//! again; here a half-closed client is waited for as long as its machine says that somebody is there.

use crate::stream::Stream;
use remora_core::patience::Turn;
use remora_runtime::clock;
use socket2::TcpKeepalive;
use std::{
    future::{Future, poll_fn},
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker, ready},
    time::Duration,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How often a client that said no more is asked whether it is there, by a keepalive probe, and looked at. For a process
/// that has closed its connection Linux answers in its place for `tcp_fin_timeout` (a minute), and then with a reset.
const LOOK: Duration = Duration::from_secs(5);
/// Probes without an answer before it counts as gone.
const PROBES: u32 = 3;

/// Ends when a time has come.
type Timer = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What is known of the client of one connection, shared by its stream, its requests' bodies and its server.
#[derive(Default)]
pub struct Talk {
    turn: Mutex<Turn>,
    /// The client has said no more while it was our turn.
    ended: AtomicBool,
    /// Whoever waits for the rest of a body.
    body: Mutex<Option<Waker>>,
}

/// Our turn in the conversation; it ends when this is dropped.
pub struct Answering(Arc<Talk>);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.turn().answered();
    }
}

impl Talk {
    fn turn(&self) -> MutexGuard<'_, Turn> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A head was whole: it is our turn until the answer's body is dropped.
    pub fn requested(self: &Arc<Self>) -> Answering {
        self.turn().requested();
        Answering(self.clone())
    }

    /// Ends when a head took longer than `limit`. Belongs into the task of the connection, after its server: whatever is
    /// read wakes that.
    pub async fn late(&self, limit: Duration) {
        let mut timer: Option<(_, Timer)> = None;
        poll_fn(|cx| {
            let Some(since) = self.turn().since() else {
                timer = None;
                return Poll::Pending;
            };
            let (_, until) = match timer.take() {
                Some((of, until)) if of == since => timer.insert((of, until)),
                Some(_) | None => timer.insert((since, Box::pin(clock::sleep_until(since + limit)))),
            };
            until.as_mut().poll(cx)
        })
        .await;
    }

    /// Whether the client said no more in the middle of a body; if not, wakes the reader of the body when it does.
    pub fn has_ended(&self, cx: &Context<'_>) -> bool {
        let mut waiting = self.body.lock().unwrap_or_else(PoisonError::into_inner);
        if !waiting.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waiting = Some(cx.waker().clone());
        }
        self.ended.load(Ordering::Acquire)
    }

    fn end(&self) {
        self.ended.store(true, Ordering::Release);
        let waiting = self.body.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(waker) = waiting {
            waker.wake();
        }
    }
}

/// A client's stream, for hyper's HTTP/1 server.
pub struct ClientIo {
    stream: Stream,
    talk: Arc<Talk>,
    /// When to look again at a client that said no more.
    looking: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl ClientIo {
    pub fn new(stream: Stream, talk: Arc<Talk>) -> Self {
        Self { stream, talk, looking: None }
    }

    pub fn into_inner(self) -> Stream {
        self.stream
    }

    /// Waits for a client that said no more and is being answered: an error when it has gone.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let looking = if let Some(looking) = &mut self.looking {
                looking
            } else {
                let probes = TcpKeepalive::new().with_time(LOOK).with_interval(LOOK).with_retries(PROBES);
                // Without probes a client that has gone is noticed when it is answered.
                let _ = self.stream.probe(&probes);
                self.talk.end();
                self.looking.insert(Box::pin(tokio::time::sleep(LOOK)))
            };
            ready!(looking.as_mut().poll(cx));
            if let Some(error) = self.stream.take_error()? {
                return Poll::Ready(Err(error));
            }
            looking.as_mut().reset(tokio::time::Instant::now() + LOOK);
        }
    }
}

impl AsyncRead for ClientIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let ours = *this.talk.turn() == Turn::Ours;
        if ours && this.looking.is_some() {
            return this.poll_gone(cx);
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        let bytes = buf.filled().len() - before;
        if bytes == 0 && buf.remaining() > 0 && ours {
            return this.poll_gone(cx);
        }
        if !ours && bytes > 0 {
            this.talk.turn().read(bytes, clock::now());
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ClientIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    #[tokio::test]
    async fn a_head_that_stalls_is_late_and_an_idle_client_is_not() {
        let (mut client, mut io, talk) = pair().await;
        let limit = Duration::from_millis(20);
        assert!(futures_util::poll!(std::pin::pin!(talk.late(limit))).is_pending());
        client.write_all(b"GET").await.unwrap();
        io.read_exact(&mut [0; 3]).await.unwrap();
        talk.late(limit).await;
        let answering = talk.requested();
        assert!(futures_util::poll!(std::pin::pin!(talk.late(Duration::ZERO))).is_pending(), "our turn");
        drop(answering);
        assert!(futures_util::poll!(std::pin::pin!(talk.late(Duration::ZERO))).is_pending(), "idle");
    }

    #[tokio::test]
    async fn the_end_of_what_a_client_says_is_held_back_while_it_is_answered() {
        let (mut client, mut io, talk) = pair().await;
        client.write_all(b"GET").await.unwrap();
        client.shutdown().await.unwrap();
        io.read_exact(&mut [0; 3]).await.unwrap();
        let answering = talk.requested();
        let mut rest = [0; 1];
        let read = tokio::time::timeout(Duration::from_millis(50), io.read(&mut rest)).await;
        assert!(read.is_err(), "the client may be waiting for its answer");
        assert!(talk.ended.load(Ordering::Acquire), "a body would be told");
        drop(answering);
        assert_eq!(io.read(&mut rest).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_reset_is_seen_while_the_answer_is_awaited() {
        let (client, mut io, talk) = pair().await;
        let _answering = talk.requested();
        socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
        drop(client);
        assert!(io.read(&mut [0; 1]).await.is_err());
    }

    async fn pair() -> (TcpStream, ClientIo, Arc<Talk>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let far = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let talk = Arc::new(Talk::default());
        (far, ClientIo::new(Stream::plain(listener.accept().await.unwrap().0), talk.clone()), talk)
    }
}

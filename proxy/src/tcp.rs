//! Copies bytes both ways until both sides have ended; half-closes travel; nothing is held for an idle connection.

use crate::fault::Fault;
use crate::stream::{LOOK, Lend, Stream};
use bytes::{Buf, Bytes};
#[cfg(planted)]
use remora_core::planted;
use std::{
    future::{Future, poll_fn},
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tokio::io::AsyncWrite;

/// Reads of one direction in one poll before the other connections of the worker get their turn.
const READS_PER_POLL: usize = 8;

/// Copies until both directions have ended, one fails, or `stop` says that the connection may not go on.
///
/// On a failure or stop the client's side is closed with a reset, so that nobody takes a part for the whole.
pub async fn forward(
    mut client: Stream,
    mut server: Stream,
    stop: impl Future<Output = Fault>,
) -> Result<(), Fault> {
    let mut duplex = Duplex::default();
    let mut looking = None;
    let copying = poll_fn(|cx| {
        let copied = duplex.poll(cx, &mut client, &mut server);
        if copied.is_pending() && duplex.holds_the_clients() {
            let looking = looking.get_or_insert_with(|| Box::pin(tokio::time::sleep(LOOK)));
            while looking.as_mut().poll(cx).is_ready() {
                // A client that is not read from is not heard either if it resets the connection. What it had sent ends
                // with it, as on a connection without proxies.
                if let Some(error) = client.look() {
                    return Poll::Ready(Err(error));
                }
                looking.as_mut().reset(tokio::time::Instant::now() + LOOK);
            }
        }
        copied
    });
    let outcome = tokio::select! {
        biased;
        fault = stop => Err(fault),
        copied = copying => copied.map_err(|error| Fault::Io(Arc::new(error))),
    };
    if outcome.is_err() {
        client.reset_on_close();
        server.reset_on_close();
    }
    outcome
}

/// A copy in both directions. Knows nothing of sockets: streams are handed in, the same ones every time.
#[derive(Default)]
pub struct Duplex {
    up: Direction,
    down: Direction,
}

impl Duplex {
    /// Whether something of the client's waits for the server to take it.
    fn holds_the_clients(&self) -> bool {
        self.up.kept.has_remaining() || self.up.waits
    }

    /// Copies what can be copied now. Ready when both directions have ended, or when one has and the other has nobody
    /// left to hear it; an error is a reader's.
    pub fn poll<C, S>(&mut self, cx: &mut Context<'_>, client: &mut C, server: &mut S) -> Poll<io::Result<()>>
    where
        C: Lend + AsyncWrite,
        S: Lend + AsyncWrite,
    {
        let sent = self.up.poll(cx, client, server);
        let received = self.down.poll(cx, server, client);
        match (sent, received) {
            (Poll::Ready(Err(error)), _) | (_, Poll::Ready(Err(error))) => Poll::Ready(Err(error)),
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => Poll::Ready(Ok(())),
            // One side has said all it had to say, and hears no more: what the other still says is for nobody.
            (Poll::Ready(Ok(())), Poll::Pending) if self.down.state == State::Discarding => {
                Poll::Ready(Ok(()))
            }
            (Poll::Pending, Poll::Ready(Ok(()))) if self.up.state == State::Discarding => Poll::Ready(Ok(())),
            (Poll::Pending | Poll::Ready(Ok(())), Poll::Pending) | (Poll::Pending, Poll::Ready(Ok(()))) => {
                Poll::Pending
            }
        }
    }
}

/// One direction of a copy.
#[derive(Default)]
struct Direction {
    /// Read and not yet taken by the writer.
    kept: Bytes,
    /// Some is there, where it is kept, that the writer has not taken.
    waits: bool,
    unflushed: bool,
    state: State,
}

#[derive(Default, PartialEq, Eq)]
enum State {
    #[default]
    Copying,
    /// The writer takes no more; the reader is read so that its close is seen, and what the other direction still
    /// carries is not cut off by a reset.
    Discarding,
    Ending,
    Ended,
}

impl Direction {
    fn poll<R, W>(&mut self, cx: &mut Context<'_>, reader: &mut R, writer: &mut W) -> Poll<io::Result<()>>
    where
        R: Lend,
        W: AsyncWrite + Unpin,
    {
        let mut reads = 0;
        while matches!(self.state, State::Copying | State::Discarding) {
            ready!(self.write_kept(cx, writer));
            if reads == READS_PER_POLL {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            reads += 1;
            match self.read_and_write(cx, reader, writer) {
                Poll::Ready(Ok(0)) => self.state = State::Ending,
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    if self.unflushed && self.state == State::Copying {
                        if ready!(Pin::new(writer).poll_flush(cx)).is_err() {
                            self.discard();
                        }
                        self.unflushed = false;
                    }
                    return Poll::Pending;
                }
            }
        }
        #[cfg(planted)]
        if self.state == State::Ending && planted::makes(planted::Mistake::EndIsNotPassedOn) {
            self.state = State::Ended;
        }
        if self.state == State::Ending {
            // A writer that cannot be told is gone already.
            let _ = ready!(Pin::new(writer).poll_shutdown(cx));
            self.state = State::Ended;
        }
        Poll::Ready(Ok(()))
    }

    fn write_kept<W: AsyncWrite + Unpin>(&mut self, cx: &mut Context<'_>, writer: &mut W) -> Poll<()> {
        while self.kept.has_remaining() {
            match ready!(Pin::new(&mut *writer).poll_write(cx, &self.kept)) {
                Ok(written) if written > 0 => {
                    self.kept.advance(written);
                    self.unflushed = true;
                }
                Ok(_) | Err(_) => self.discard(),
            }
        }
        // An advanced `Bytes` keeps its allocation; an empty one holds nothing.
        self.kept = Bytes::new();
        Poll::Ready(())
    }

    /// The writer is gone.
    fn discard(&mut self) {
        self.state = State::Discarding;
        self.kept = Bytes::new();
        self.unflushed = false;
    }

    /// Reads once and writes what was read; what the writer does not take is kept here, or where it was. Zero bytes: the
    /// reader has ended.
    fn read_and_write<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
    ) -> Poll<io::Result<usize>>
    where
        R: Lend,
        W: AsyncWrite + Unpin,
    {
        let keeps = reader.keeps();
        self.waits = false;
        reader.poll_lend(cx, usize::MAX, |cx, bytes| {
            let mut rest = bytes;
            while !rest.is_empty() && self.state == State::Copying {
                match Pin::new(&mut *writer).poll_write(cx, rest) {
                    Poll::Ready(Ok(written)) if written > 0 => {
                        self.unflushed = true;
                        rest = rest.get(written..).unwrap_or_default();
                    }
                    Poll::Ready(Ok(_) | Err(_)) => self.discard(),
                    Poll::Pending if keeps => {
                        self.waits = true;
                        return bytes.len() - rest.len();
                    }
                    Poll::Pending => {
                        #[cfg(planted)]
                        if planted::makes(planted::Mistake::ByteLostWhenFull) {
                            rest = rest.get(1..).unwrap_or_default();
                        }
                        self.kept = Bytes::copy_from_slice(rest);
                        break;
                    }
                }
            }
            bytes.len()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::pending;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    async fn pair() -> (TcpStream, Stream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let far = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (far, Stream::plain(listener.accept().await.unwrap().0))
    }

    #[tokio::test]
    async fn a_half_close_travels_and_the_other_way_stays_open() {
        let (mut client, client_near) = pair().await;
        let (mut server, server_near) = pair().await;
        let copy = tokio::spawn(forward(client_near, server_near, pending()));
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut question = Vec::new();
        server.read_to_end(&mut question).await.unwrap();
        assert_eq!(question, b"question");
        server.write_all(b"answer").await.unwrap();
        drop(server);
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"answer");
        copy.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_slow_reader_gets_every_byte() {
        let (mut client, client_near) = pair().await;
        let (mut server, server_near) = pair().await;
        let copy = tokio::spawn(forward(client_near, server_near, pending()));
        let sent: Vec<u8> = (0..8_000_000u32).map(|i| (i % 251) as u8).collect();
        let expected = sent.clone();
        let writer = tokio::spawn(async move {
            client.write_all(&sent).await.unwrap();
            client.shutdown().await.unwrap();
            client
        });
        let mut received = Vec::new();
        let mut chunk = vec![0; 10_000];
        loop {
            let read = server.read(&mut chunk).await.unwrap();
            if read == 0 {
                break;
            }
            received.extend_from_slice(&chunk[..read]);
            tokio::task::yield_now().await;
        }
        assert_eq!(received, expected);
        drop(server);
        writer.await.unwrap();
        copy.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn an_answer_arrives_whole_although_the_server_hears_no_more() {
        let (mut client, client_near) = pair().await;
        let (mut server, server_near) = pair().await;
        let copy = tokio::spawn(forward(client_near, server_near, pending()));
        let answer = vec![7; 300_000];
        let expected = answer.clone();
        let serving = tokio::spawn(async move {
            server.read_exact(&mut vec![0; 100_000]).await.unwrap();
            server.write_all(&answer).await.unwrap();
            // Closed: what the client still sends is answered with a reset.
        });
        client.write_all(&vec![1; 100_000]).await.unwrap();
        let mut received = Vec::new();
        let mut chunk = vec![0; 5_000];
        loop {
            let read = client.read(&mut chunk).await.unwrap();
            if read == 0 {
                break;
            }
            received.extend_from_slice(&chunk[..read]);
            // Ends with an error when the other side has gone; the answer is what counts.
            let _ = client.try_write(b"more");
        }
        assert_eq!(received.len(), expected.len());
        serving.await.unwrap();
        drop(client);
        // Either the end was seen, or the reset that followed it.
        let _ = copy.await.unwrap();
    }

    #[tokio::test]
    async fn a_stop_resets_both_sides() {
        let (mut client, client_near) = pair().await;
        let (mut server, server_near) = pair().await;
        let stop = async { Fault::Revoked("web".into()) };
        let outcome = forward(client_near, server_near, stop).await;
        assert!(matches!(outcome, Err(Fault::Revoked(_))));
        assert!(client.read(&mut [0; 1]).await.is_err());
        assert!(server.read(&mut [0; 1]).await.is_err());
    }
}

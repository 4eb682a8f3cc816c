//! An HTTP/2 connection's stream, read in portions: h2 unpacks everything that it can read before it hands out the first
//! request, and a few bytes unpack to a multiple of them (RFC 7541). Between portions the requests so far are looked at,
//! and those that are too large are let go.

use crate::stream::Stream;
use remora_core::http2::Progress;
use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes of a portion, and up to one read more: two frames of data, some hundred requests, or three megabytes of fields
/// that were a byte each.
const PORTION: usize = 32 * 1024;

/// What is left of a portion.
#[derive(Clone, Debug, Default)]
pub struct Portion(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    left: AtomicUsize,
    read: AtomicU64,
    /// Of a client: what the connection waits for to be ended, one more than its number; 0 if it waits for nothing.
    owed: AtomicU64,
}

impl Portion {
    /// Begins the next portion: before the connection is polled.
    pub fn begin(&self) {
        self.0.left.store(PORTION, Ordering::Relaxed);
    }

    /// Whether it is used up.
    fn is_over(&self) -> bool {
        self.0.left.load(Ordering::Relaxed) == 0
    }

    /// Bytes read since the beginning.
    pub fn read(&self) -> u64 {
        self.0.read.load(Ordering::Relaxed)
    }

    /// What a client has begun and now leaves so, by a number that no earlier one had.
    pub fn owed(&self) -> Option<u64> {
        self.0.owed.load(Ordering::Relaxed).checked_sub(1)
    }

    fn took(&self, bytes: usize) {
        // One task reads and renews.
        let Shared { left, read, .. } = &*self.0;
        left.store(left.load(Ordering::Relaxed).saturating_sub(bytes), Ordering::Relaxed);
        read.store(self.read() + bytes as u64, Ordering::Relaxed);
    }
}

/// The stream.
pub struct Portions {
    stream: Stream,
    portion: Portion,
    /// Of a client.
    progress: Option<Progress>,
}

impl Portions {
    pub fn new(stream: Stream, portion: Portion) -> Self {
        Self { stream, portion, progress: None }
    }

    /// Keeps account of what the client at the other end has begun.
    pub fn of_client(stream: Stream, portion: Portion) -> Self {
        Self { progress: Some(Progress::default()), ..Self::new(stream, portion) }
    }
}

impl AsyncRead for Portions {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.portion.is_over() {
            // The rest waits until what was unpacked has been looked at.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buf.filled().len();
        let polled = Pin::new(&mut this.stream).poll_read(cx, buf);
        let taken = buf.filled().get(before..).unwrap_or_default();
        this.portion.took(taken.len());
        if let Some(progress) = &mut this.progress {
            progress.take(taken);
            // As long as there is more to read, nothing is waited for.
            let owed = progress.unfinished().filter(|_| polled.is_pending());
            this.portion.0.owed.store(owed.map_or(0, |number| number + 1), Ordering::Relaxed);
        }
        polled
    }
}

impl AsyncWrite for Portions {
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
    async fn a_portion_is_read_and_the_rest_waits_for_the_next() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let portion = Portion::default();
        let mut stream = Portions::new(Stream::plain(listener.accept().await.unwrap().0), portion.clone());
        client.write_all(&vec![7; PORTION + 1]).await.unwrap();
        portion.begin();
        let mut taken = vec![0; PORTION];
        stream.read_exact(&mut taken).await.unwrap();
        let mut more = [0; 1];
        assert!(futures_util::poll!(std::pin::pin!(stream.read(&mut more))).is_pending());
        portion.begin();
        assert_eq!(stream.read(&mut more).await.unwrap(), 1);
    }
}

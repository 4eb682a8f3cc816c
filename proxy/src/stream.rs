//! A connection's bytes: plain or TLS, with bytes that were read too early put back, and counted.

use crate::{mux::MuxStream, scratch, tls::stream::TlsStream};
use bytes::{Buf, Bytes};
use remora_runtime::{
    room,
    tasks::{Drain, Guard},
};
use socket2::TcpKeepalive;
use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// Counts the bytes of a connection; what the application sends and receives, not what TLS makes of it.
pub trait Meter: Send + Sync {
    fn read(&self, bytes: usize);
    fn wrote(&self, bytes: usize);
    /// Reading or writing failed.
    fn failed(&self, error: &io::Error);
}

/// How often an end that is not read from is asked whether it is there, by a keepalive probe, and looked at. For a process
/// that has closed its connection Linux answers in its place for `tcp_fin_timeout` (a minute), and then with a reset.
pub const LOOK: Duration = Duration::from_secs(5);
/// Probes without an answer before it counts as gone.
const PROBES: u32 = 3;

/// One connection.
pub struct Stream {
    /// Bytes read before, handed out first.
    head: Bytes,
    io: Io,
    meter: Option<Arc<dyn Meter>>,
    attention: Option<Attention>,
    /// Read also when memory is used up.
    essential: bool,
}

/// Keeps a drain waiting for whoever has said something, and for nobody who is silent.
struct Attention {
    drain: Drain,
    /// Held from the start, so that what was said before anybody listened is heard.
    guard: Option<Guard>,
    heard: bool,
}

impl Attention {
    fn read(&mut self, bytes: usize, pending: bool) {
        if self.heard {
            return;
        }
        if bytes > 0 {
            self.heard = true;
            if self.guard.is_none() {
                self.guard = Some(self.drain.guard());
            }
        } else if pending {
            self.guard = None;
        }
    }
}

enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream>),
    Mux(MuxStream),
}

/// A socket whose first bytes were read to look at them: TLS begins over it as if nobody had.
pub struct Rewound {
    head: Bytes,
    tcp: TcpStream,
}

impl Stream {
    pub fn plain(tcp: TcpStream) -> Self {
        Self::new(Io::Plain(tcp))
    }

    pub fn tls(tls: TlsStream) -> Self {
        Self::new(Io::Tls(Box::new(tls)))
    }

    fn new(io: Io) -> Self {
        Self { head: Bytes::new(), io, meter: None, attention: None, essential: false }
    }

    pub fn mux(stream: MuxStream) -> Self {
        Self::new(Io::Mux(stream))
    }

    /// Puts `bytes` before everything that has not been read yet.
    pub fn put_back(&mut self, bytes: Bytes) {
        self.head = if self.head.is_empty() {
            bytes
        } else {
            let mut both = bytes::BytesMut::with_capacity(bytes.len() + self.head.len());
            both.extend_from_slice(&bytes);
            both.extend_from_slice(&self.head);
            both.freeze()
        };
    }

    /// Begins to count. What has been read before and put back counts now; what is put back later has been counted.
    pub fn metered(mut self, meter: Arc<dyn Meter>) -> Self {
        if self.head.has_remaining() {
            meter.read(self.head.len());
        }
        self.meter = Some(meter);
        self
    }

    /// Not cut off when memory is used up: whoever looks after this process is heard.
    pub fn essential(mut self) -> Self {
        self.essential = true;
        self
    }

    /// Lets a drain wait for the other end: from now until it turns out to be silent, and from its first byte to the
    /// end of the connection.
    pub fn attended(mut self, drain: &Drain) -> Self {
        self.attention = Some(Attention { drain: drain.clone(), guard: Some(drain.guard()), heard: false });
        self
    }

    /// The socket and what was read of it, for a TLS handshake; `None` when TLS has begun already.
    pub fn into_rewound(self) -> Option<Rewound> {
        match self.io {
            Io::Plain(tcp) => Some(Rewound { head: self.head, tcp }),
            Io::Tls(_) | Io::Mux(_) => None,
        }
    }

    /// The stream of TLS; `None` for anything else.
    pub fn into_tls(self) -> Option<Box<TlsStream>> {
        match self.io {
            Io::Tls(tls) => Some(tls),
            Io::Plain(_) | Io::Mux(_) => None,
        }
    }

    /// Whether this is one of many streams on a connection to another proxy, which may refuse it after it was opened.
    pub fn is_mux(&self) -> bool {
        matches!(self.io, Io::Mux(_))
    }

    /// The socket below, or the stream of a carrier.
    fn below(&self) -> Result<&TcpStream, &MuxStream> {
        match &self.io {
            Io::Plain(tcp) => Ok(tcp),
            Io::Tls(tls) => Ok(tls.tcp()),
            Io::Mux(stream) => Err(stream),
        }
    }

    /// Whether the connection has failed, without reading from it; and has the other end asked whether it is there, as
    /// often as one looks. A reset of whoever had filled our window is not taken for one (RFC 9293, 3.10.7.4): only an
    /// answer to our question is. Of a carrier's streams all that is the carrier's part.
    pub fn look(&self) -> Option<io::Error> {
        let tcp = match self.below() {
            Ok(tcp) => tcp,
            Err(stream) => return stream.error(),
        };
        let probes = TcpKeepalive::new().with_time(LOOK).with_interval(LOOK).with_retries(PROBES);
        // Without probes an end that has gone is noticed when something is written to it.
        let _ = socket2::SockRef::from(tcp).set_tcp_keepalive(&probes);
        tcp.take_error().unwrap_or_else(Some)
    }

    /// Counts what was read, of so many bytes that were there.
    fn has_read<T>(&mut self, bytes: usize, seen: usize, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if !self.essential
            && let Err(full) = room::took(bytes)
        {
            return Poll::Ready(Err(full));
        }
        if let Some(attention) = &mut self.attention {
            attention.read(seen, polled.is_pending());
        }
        if let Some(meter) = &self.meter {
            if bytes > 0 {
                meter.read(bytes);
            }
            if let Poll::Ready(Err(error)) = &polled {
                meter.failed(error);
            }
        }
        polled
    }

    /// Makes the close of this connection a reset: the peer must not take it for an orderly end.
    pub fn reset_on_close(&self) {
        let tcp = match self.below() {
            Ok(tcp) => tcp,
            Err(stream) => return stream.reset_on_close(),
        };
        // A socket that cannot be asked to linger is closed as it is; there is nobody to tell.
        let _ = socket2::SockRef::from(tcp).set_linger(Some(Duration::ZERO));
    }
}

/// What lends the bytes that are read from it, so that whoever passes them on needs no copy.
pub trait Lend: AsyncRead + Unpin {
    /// Whether what is not taken stays, and is lent again. Else all has to be taken.
    fn keeps(&self) -> bool {
        false
    }

    /// Reads once, up to `most` bytes, and lends them to `take`, which says how many it has taken. Returns that; 0 at the
    /// end. Pending also if there were some and none was taken.
    fn poll_lend(
        &mut self,
        cx: &mut Context<'_>,
        most: usize,
        take: impl FnOnce(&mut Context<'_>, &[u8]) -> usize,
    ) -> Poll<io::Result<usize>> {
        read_and_lend(self, cx, most, take)
    }
}

fn read_and_lend<R: AsyncRead + Unpin + ?Sized>(
    reader: &mut R,
    cx: &mut Context<'_>,
    most: usize,
    take: impl FnOnce(&mut Context<'_>, &[u8]) -> usize,
) -> Poll<io::Result<usize>> {
    scratch::with(|scratch| {
        let most = most.min(scratch.len());
        let mut buf = ReadBuf::new(scratch.get_mut(..most).unwrap_or_default());
        ready!(Pin::new(reader).poll_read(cx, &mut buf))?;
        let bytes = buf.filled();
        if !bytes.is_empty() {
            take(cx, bytes);
        }
        Poll::Ready(Ok(bytes.len()))
    })
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.head.has_remaining() {
            hand_out(&mut this.head, buf);
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        let polled = match &mut this.io {
            Io::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Io::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
            Io::Mux(stream) => Pin::new(stream).poll_read(cx, buf),
        };
        let bytes = buf.filled().len() - before;
        this.has_read(bytes, bytes, polled)
    }
}

impl Lend for Stream {
    fn keeps(&self) -> bool {
        self.is_mux() && self.head.is_empty()
    }

    fn poll_lend(
        &mut self,
        cx: &mut Context<'_>,
        most: usize,
        take: impl FnOnce(&mut Context<'_>, &[u8]) -> usize,
    ) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Mux(stream) if self.head.is_empty() => {
                let mut seen = 0;
                let polled = stream.poll_lend(cx, most, |cx, lent| {
                    seen = lent.len();
                    take(cx, lent)
                });
                let bytes = match polled {
                    Poll::Ready(Ok(taken)) => taken,
                    Poll::Ready(Err(_)) | Poll::Pending => 0,
                };
                self.has_read(bytes, seen, polled)
            }
            _ => read_and_lend(self, cx, most, take),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = match &mut this.io {
            Io::Plain(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Io::Tls(tls) => Pin::new(tls).poll_write(cx, buf),
            Io::Mux(stream) => Pin::new(stream).poll_write(cx, buf),
        };
        count_written(this.meter.as_ref(), polled)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = match &mut this.io {
            Io::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, bufs),
            Io::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, bufs),
            Io::Mux(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        };
        count_written(this.meter.as_ref(), polled)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Plain(tcp) => tcp.is_write_vectored(),
            Io::Tls(tls) => tls.is_write_vectored(),
            Io::Mux(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Io::Tls(tls) => Pin::new(tls).poll_flush(cx),
            Io::Mux(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Io::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
            Io::Mux(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

fn count_written(meter: Option<&Arc<dyn Meter>>, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
    match (meter, &polled) {
        (Some(meter), Poll::Ready(Ok(bytes))) => meter.wrote(*bytes),
        (Some(meter), Poll::Ready(Err(error))) => meter.failed(error),
        (Some(_), Poll::Pending) | (None, _) => {}
    }
    polled
}

fn hand_out(head: &mut Bytes, buf: &mut ReadBuf<'_>) {
    let bytes = head.split_to(head.len().min(buf.remaining()));
    buf.put_slice(&bytes);
}

impl Rewound {
    /// A socket of which nothing was read.
    pub fn new(tcp: TcpStream) -> Self {
        Self { head: Bytes::new(), tcp }
    }

    /// The socket.
    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
    }
}

impl AsyncRead for Rewound {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.head.has_remaining() {
            hand_out(&mut this.head, buf);
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut this.tcp).poll_read(cx, buf)
    }
}

impl AsyncWrite for Rewound {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().tcp).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().tcp).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn bytes_put_back_come_first_and_in_order() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (tcp, _) = listener.accept().await.unwrap();
        let mut stream = Stream::plain(tcp);
        stream.put_back(Bytes::from_static(b"second "));
        stream.put_back(Bytes::from_static(b"first "));
        client.write_all(b"third").await.unwrap();
        client.shutdown().await.unwrap();
        let mut all = String::new();
        // "first " was put back last: it was read earlier than "second ".
        stream.read_to_string(&mut all).await.unwrap();
        assert_eq!(all, "first second third");
    }

    #[tokio::test]
    async fn a_drain_waits_for_who_has_spoken_and_for_nobody_who_is_silent() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let drain = Drain::new();
        let mut stream = Stream::plain(listener.accept().await.unwrap().0).attended(&drain);
        assert_eq!(drain.busy(), 1, "nobody has listened yet");
        let mut byte = [0];
        assert!(futures_util::poll!(std::pin::pin!(stream.read(&mut byte))).is_pending());
        assert_eq!(drain.busy(), 0, "silent");
        client.write_all(b"x").await.unwrap();
        stream.read_exact(&mut byte).await.unwrap();
        assert!(futures_util::poll!(std::pin::pin!(stream.read(&mut byte))).is_pending());
        assert_eq!(drain.busy(), 1, "silent now, but has spoken");
        drop(stream);
        assert_eq!(drain.busy(), 0, "gone");
    }

    #[derive(Default)]
    struct Read(std::sync::atomic::AtomicUsize);

    impl Meter for Read {
        fn read(&self, bytes: usize) {
            self.0.fetch_add(bytes, std::sync::atomic::Ordering::Relaxed);
        }
        fn wrote(&self, _bytes: usize) {}
        fn failed(&self, _error: &io::Error) {}
    }

    #[tokio::test]
    async fn bytes_that_are_put_back_are_counted_once() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut stream = Stream::plain(listener.accept().await.unwrap().0);
        client.write_all(b"before and after").await.unwrap();
        client.shutdown().await.unwrap();
        let mut looked_at = [0; 7];
        stream.read_exact(&mut looked_at).await.unwrap();
        stream.put_back(Bytes::copy_from_slice(&looked_at));
        let meter = Arc::new(Read::default());
        let mut stream = stream.metered(meter.clone());
        stream.read_exact(&mut looked_at).await.unwrap();
        stream.put_back(Bytes::copy_from_slice(&looked_at));
        let mut all = String::new();
        stream.read_to_string(&mut all).await.unwrap();
        assert_eq!(
            (all.as_str(), meter.0.load(std::sync::atomic::Ordering::Relaxed)),
            ("before and after", 16)
        );
    }
}

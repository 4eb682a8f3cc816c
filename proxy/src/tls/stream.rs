//! A connection of TLS after its handshake: bytes in, records out, and back. What the socket has not taken is kept here and
//! nothing else; buffers for what is on its way belong to the worker (`scratch.rs`).

use super::{
    codec::{ALERT, Records},
    records::OVERHEAD,
};
use crate::{scratch, stream::Rewound};
use bytes::Bytes;
use rustls::Error;
use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// The least that is read at once, in bytes.
const READ: usize = 4096;

/// A connection of TLS 1.3.
pub struct TlsStream {
    io: Rewound,
    records: Records,
    /// Opened and not read.
    plain: Bytes,
    /// Sealed and not taken by the socket.
    outgoing: Bytes,
    /// We have said that we send no more.
    finished: bool,
}

impl TlsStream {
    /// `plain` has come with the end of the handshake.
    pub(super) fn new(io: Rewound, records: Records, plain: Vec<u8>) -> Self {
        Self { io, records, plain: plain.into(), outgoing: Bytes::new(), finished: false }
    }

    /// The socket below.
    pub fn tcp(&self) -> &TcpStream {
        self.io.tcp()
    }

    /// Whether this side dialled.
    pub fn is_client(&self) -> bool {
        self.records.is_client()
    }

    #[cfg(test)]
    pub(super) fn use_next_key(&mut self) {
        self.records.use_next_key();
    }

    /// What the handshake's end brought of the peer's bytes.
    pub fn take_plain(&mut self) -> Bytes {
        std::mem::take(&mut self.plain)
    }

    /// Reads once from the socket, into `buffer`, and hands what came to `take`, record by record. Returns how many bytes
    /// came; 0 at the end. What is not yet whole is kept.
    pub fn poll_records(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
        take: impl FnMut(&[u8]),
    ) -> Poll<io::Result<usize>> {
        if self.records.has_ended() {
            return Poll::Ready(Ok(0));
        }
        let kept = self.records.partial().len();
        let mut buf = ReadBuf::new(buffer);
        buf.put_slice(self.records.partial());
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut buf))?;
        let read = buf.filled().len() - kept;
        if read == 0 {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "peer closed connection without sending TLS close_notify",
            )));
        }
        match self.records.open(buf.filled_mut(), take) {
            Ok(()) => Poll::Ready(Ok(read)),
            Err(error) => {
                self.alert(cx, &error);
                Poll::Ready(Err(invalid(error)))
            }
        }
    }

    /// Seals and writes what there is of `pieces`, up to a flight, as soon as nothing waits any more.
    fn poll_pieces(&mut self, cx: &mut Context<'_>, pieces: &[&[u8]]) -> Poll<io::Result<usize>> {
        if self.finished {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        ready!(self.poll_outgoing(cx))?;
        Poll::Ready(self.send(cx, pieces))
    }

    /// Tells the peer why this is the end, if the socket takes it.
    fn alert(&mut self, cx: &mut Context<'_>, error: &Error) {
        let mut out = [0; ALERT];
        if self.outgoing.is_empty()
            && !std::mem::replace(&mut self.finished, true)
            && self.records.fail(error, &mut out).is_some()
        {
            let _ = Pin::new(&mut self.io).poll_write(cx, &out);
        }
    }

    /// Writes what waits.
    fn poll_outgoing(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.outgoing.is_empty() {
            let written = ready!(Pin::new(&mut self.io).poll_write(cx, &self.outgoing))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let _ = self.outgoing.split_to(written);
        }
        // An advanced `Bytes` keeps its allocation; an empty one holds nothing.
        self.outgoing = Bytes::new();
        Poll::Ready(Ok(()))
    }

    /// Seals up to a flight and writes it; what the socket does not take is kept. Nothing may wait.
    fn send(&mut self, cx: &mut Context<'_>, pieces: &[&[u8]]) -> io::Result<usize> {
        scratch::with_sealed(|out| {
            let (taken, length) = self.records.seal(pieces, out).map_err(invalid)?;
            let sealed = out.get(..length).unwrap_or_default();
            let written = match Pin::new(&mut self.io).poll_write(cx, sealed) {
                Poll::Ready(written) => written?,
                Poll::Pending => 0,
            };
            if written < length {
                self.outgoing = Bytes::copy_from_slice(sealed.get(written..).unwrap_or_default());
            }
            Ok(taken)
        })
    }
}

impl AsyncRead for TlsStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        while this.plain.is_empty()
            && buf.filled().len() == before
            && !this.records.has_ended()
            && buf.remaining() > 0
        {
            let mut rest = Vec::new();
            let want = this.records.partial().len() + buf.remaining().max(READ) + OVERHEAD;
            ready!(scratch::with_sealed(|buffer| {
                let most = want.min(buffer.len());
                let buffer = buffer.get_mut(..most).unwrap_or_default();
                this.poll_records(cx, buffer, |plain| {
                    let (now, later) = plain.split_at_checked(buf.remaining()).unwrap_or((plain, &[]));
                    buf.put_slice(now);
                    rest.extend_from_slice(later);
                })
            }))?;
            this.plain = rest.into();
        }
        let plain = this.plain.split_to(this.plain.len().min(buf.remaining()));
        buf.put_slice(&plain);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TlsStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().poll_pieces(cx, &[buf])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let pieces: Vec<&[u8]> = bufs.iter().map(|buf| &**buf).collect();
        self.get_mut().poll_pieces(cx, &pieces)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_outgoing(cx)
    }

    /// Says that nothing more is sent; the peer may go on. RFC 8446, 6.1.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_outgoing(cx))?;
        if !this.finished {
            this.finished = true;
            let mut out = [0; ALERT];
            this.records.close(&mut out).map_err(invalid)?;
            this.outgoing = Bytes::copy_from_slice(&out);
            ready!(this.poll_outgoing(cx))?;
        }
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}

fn invalid(error: Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

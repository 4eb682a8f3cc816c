//! One end of a connection: what was read of it and not used yet, and what is to be written.

use super::{
    Error, Limits,
    head::{self, Ahead, Spelling},
};
use crate::stream::{Lend as _, Stream};
use bytes::{Buf, Bytes, BytesMut};
use remora_core::http1::{
    Length,
    chunks::{Chunks, Piece},
};
use std::{
    io,
    io::IoSlice,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};
use tokio::io::AsyncWrite;

/// What is collected before it is written.
const ENOUGH: usize = 32 * 1024;
/// Bytes that are read at once where a head is due: what follows a head is relayed without a copy.
const HEAD: usize = SMALL;
/// Bytes of a body that are read at once where they are kept until they are written.
const PIECE: usize = 64 * 1024;
/// A piece of a body up to here is copied to what is written with it; a larger one is written from where it is.
const SMALL: usize = 4 * 1024;

/// A connection, shared by whoever reads a body from it and whoever serves it.
#[derive(Clone)]
pub struct Shared(Arc<Mutex<Wire>>);

impl Shared {
    pub fn new(stream: Stream) -> Self {
        Self(Arc::new(Mutex::new(Wire::new(stream))))
    }

    /// Held for a poll, never longer.
    pub fn lock(&self) -> MutexGuard<'_, Wire> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection itself; `None` while somebody else holds it.
    pub fn into_inner(self) -> Option<Wire> {
        let wire = Arc::into_inner(self.0)?;
        Some(wire.into_inner().unwrap_or_else(PoisonError::into_inner))
    }
}

/// See the head of this file.
pub struct Wire {
    pub stream: Stream,
    pub ahead: Ahead,
    /// The body that is being read.
    pub body: Reading,
    pub out: Outgoing,
    /// It is to end by a reset.
    pub torn: bool,
}

impl Wire {
    pub fn new(stream: Stream) -> Self {
        let out = Outgoing::default();
        Self { stream, ahead: Ahead::default(), body: Reading::over(), out, torn: false }
    }

    /// Reads of a head what is there, once; how many bytes, none at the end.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.fill(cx, HEAD)
    }

    fn fill(&mut self, cx: &mut Context<'_>, most: usize) -> Poll<io::Result<usize>> {
        let ahead = &mut self.ahead.bytes;
        self.stream.poll_lend(cx, most, |_, bytes| {
            ahead.extend_from_slice(bytes);
            bytes.len()
        })
    }

    /// The next piece of the body. `None`: it is over.
    pub fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Part, Error>>> {
        loop {
            match self.body.take(&mut self.ahead.bytes) {
                Ok(Some(part)) => return Poll::Ready(Some(Ok(part))),
                Err(error) => return Poll::Ready(Some(Err(error))),
                Ok(None) if self.body.is_over() => return Poll::Ready(None),
                Ok(None) => {}
            }
            match ready!(self.fill(cx, PIECE)) {
                Ok(0) if self.body.ends_with_connection() => self.body = Reading::over(),
                Ok(0) => return Poll::Ready(Some(Err(Error::Cut))),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Some(Err(error.into()))),
            }
        }
    }

    /// Reads of the body and hands what came to `write` from where it was read, without a copy; what is not taken is
    /// returned. `None` where that cannot be done: in chunks, or with something read already.
    pub fn poll_relay(
        &mut self,
        cx: &mut Context<'_>,
        write: &mut Write<'_>,
    ) -> Option<Poll<Result<Relayed, Error>>> {
        if !self.ahead.bytes.is_empty() || self.body.is_over() {
            return None;
        }
        let most = match self.body.state {
            State::Length(left) => usize::try_from(left).unwrap_or(usize::MAX),
            State::Close => usize::MAX,
            State::Chunks(_) => return None,
        };
        let ahead = &mut self.ahead.bytes;
        let keeps = self.stream.keeps();
        let mut kept = Bytes::new();
        // More than the body is asked for: a read that fills its place is followed by one that finds nothing.
        let polled = self.stream.poll_lend(cx, usize::MAX, |cx, bytes| {
            let (bytes, after) = bytes.split_at_checked(most).unwrap_or((bytes, &[]));
            let mut rest = bytes;
            while !rest.is_empty() {
                match write(cx, rest) {
                    Poll::Ready(Ok(taken)) if taken > 0 => rest = rest.get(taken..).unwrap_or_default(),
                    Poll::Pending if keeps => return bytes.len() - rest.len(),
                    // Whoever writes the rest hears of it again.
                    Poll::Ready(Ok(_) | Err(_)) | Poll::Pending => break,
                }
            }
            kept = Bytes::copy_from_slice(rest);
            ahead.extend_from_slice(after);
            bytes.len() + after.len()
        });
        let relayed = match polled {
            Poll::Ready(Ok(read)) => Relayed { read: read.min(most), rest: kept },
            Poll::Ready(Err(error)) => return Some(Poll::Ready(Err(error.into()))),
            Poll::Pending => return Some(Poll::Pending),
        };
        match &mut self.body.state {
            State::Length(_) if relayed.read == 0 => return Some(Poll::Ready(Err(Error::Cut))),
            State::Length(left) => *left -= relayed.read as u64,
            State::Close if relayed.read == 0 => self.body = Reading::over(),
            State::Close | State::Chunks(_) => {}
        }
        Some(Poll::Ready(Ok(relayed)))
    }

    /// Writes all that is to be written; pending until that is done.
    pub fn poll_write_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.out.poll_write(cx, &mut self.stream)
    }

    /// The stream, with what was read too early put back.
    pub fn into_stream(mut self) -> Stream {
        let ahead = std::mem::take(&mut self.ahead.bytes);
        if !ahead.is_empty() {
            self.stream.put_back(ahead.freeze());
        }
        self.stream
    }
}

/// Where a body is relayed to.
pub type Write<'a> = dyn FnMut(&mut Context<'_>, &[u8]) -> Poll<io::Result<usize>> + 'a;

/// What was relayed at once.
pub struct Relayed {
    /// Bytes that came; none at the end.
    pub read: usize,
    /// Those of them that were not taken.
    pub rest: Bytes,
}

/// A piece of a body.
pub enum Part {
    Data(Bytes),
    /// With how their names were written.
    Trailers(http::HeaderMap, Spelling),
}

/// How far a body has been read.
pub struct Reading {
    state: State,
    fields: usize,
}

enum State {
    /// So many bytes are left.
    Length(u64),
    Chunks(Box<Chunks>),
    Close,
}

impl Reading {
    pub fn new(length: Length, limits: &Limits) -> Self {
        let state = match length {
            Length::Known(length) => State::Length(length),
            Length::Chunked => State::Chunks(Box::new(Chunks::new(limits.head_bytes))),
            Length::Close => State::Close,
        };
        Self { state, fields: limits.fields }
    }

    pub fn over() -> Self {
        Self { state: State::Length(0), fields: 0 }
    }

    pub fn is_over(&self) -> bool {
        match &self.state {
            State::Length(left) => *left == 0,
            State::Chunks(chunks) => chunks.is_over(),
            State::Close => false,
        }
    }

    /// Bytes to come, where they are known.
    pub fn left(&self) -> Option<u64> {
        match &self.state {
            State::Length(left) => Some(*left),
            State::Chunks(chunks) => chunks.is_over().then_some(0),
            State::Close => None,
        }
    }

    fn ends_with_connection(&self) -> bool {
        matches!(self.state, State::Close)
    }

    /// A piece out of what was read; `None` if there is none in it.
    pub fn take(&mut self, ahead: &mut BytesMut) -> Result<Option<Part>, Error> {
        let count = match &mut self.state {
            State::Length(left) => {
                let count = usize::try_from(*left).unwrap_or(usize::MAX).min(ahead.len());
                *left -= count as u64;
                count
            }
            State::Close => ahead.len(),
            State::Chunks(chunks) => {
                if chunks.is_over() {
                    return Ok(None);
                }
                let (used, piece) = chunks.read(ahead)?;
                ahead.advance(used);
                match piece {
                    Piece::More => 0,
                    Piece::Data(count) => count,
                    Piece::End(lines) if lines.is_empty() => 0,
                    Piece::End(lines) => {
                        let (trailers, spelling) = head::trailers(lines, self.fields)?;
                        return Ok(Some(Part::Trailers(trailers, spelling)));
                    }
                }
            }
        };
        if count == 0 {
            return Ok(None);
        }
        // What is left behind keeps no more memory than it needs.
        let data = if count == ahead.len() { std::mem::take(ahead) } else { ahead.split_to(count) };
        Ok(Some(Part::Data(data.freeze())))
    }
}

/// What is to be written: bytes, then a piece of a body where it is, then bytes again.
#[derive(Default)]
pub struct Outgoing {
    first: BytesMut,
    piece: Bytes,
    last: BytesMut,
    unflushed: bool,
    /// Bytes that the stream has taken.
    pub written: u64,
}

impl Outgoing {
    /// Whether more may be added before this is written.
    pub fn has_room(&self) -> bool {
        self.piece.is_empty() && self.first.len() < ENOUGH
    }

    pub fn is_empty(&self) -> bool {
        self.first.is_empty() && self.piece.is_empty() && self.last.is_empty()
    }

    /// Whether the stream has taken all that was to be written, and holds none of it back.
    pub fn has_left(&self) -> bool {
        self.is_empty() && !self.unflushed
    }

    /// Forgets what is to be written.
    pub fn clear(&mut self) {
        (self.first, self.piece, self.last) = Default::default();
    }

    /// Where bytes are added.
    pub fn tail(&mut self) -> &mut BytesMut {
        if self.piece.is_empty() { &mut self.first } else { &mut self.last }
    }

    /// Adds a piece of a body.
    pub fn piece(&mut self, piece: Bytes) {
        if piece.len() <= SMALL || !self.piece.is_empty() {
            self.tail().extend_from_slice(&piece);
        } else {
            self.piece = piece;
        }
    }

    /// Writes what waits, and `bytes` behind it; how many of `bytes` were taken.
    pub fn poll_write_with(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut Stream,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let stream = Pin::new(&mut *stream);
            let waiting = self.first.len() + self.piece.len() + self.last.len();
            let count = if waiting == 0 {
                ready!(stream.poll_write(cx, bytes))?
            } else if stream.is_write_vectored() {
                let bufs =
                    [self.first.as_ref(), self.piece.as_ref(), self.last.as_ref(), bytes].map(IoSlice::new);
                ready!(stream.poll_write_vectored(cx, &bufs))?
            } else {
                ready!(self.poll_write(cx, stream.get_mut()))?;
                continue;
            };
            self.written += count as u64;
            self.unflushed |= count > 0;
            self.took(count.min(waiting));
            if count == 0 || count > waiting {
                return Poll::Ready(Ok(count.saturating_sub(waiting)));
            }
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, stream: &mut Stream) -> Poll<io::Result<()>> {
        while !self.is_empty() {
            let stream = Pin::new(&mut *stream);
            let bufs = [IoSlice::new(&self.first), IoSlice::new(&self.piece), IoSlice::new(&self.last)];
            let count = if self.piece.is_empty() && self.last.is_empty() {
                ready!(stream.poll_write(cx, &self.first))?
            } else if stream.is_write_vectored() {
                ready!(stream.poll_write_vectored(cx, &bufs))?
            } else {
                let buf = bufs.iter().find(|buf| !buf.is_empty());
                ready!(stream.poll_write(cx, buf.map_or(&[], |buf| buf)))?
            };
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += count as u64;
            self.unflushed = true;
            self.took(count);
        }
        if self.unflushed {
            ready!(Pin::new(stream).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    fn took(&mut self, mut count: usize) {
        let first = count.min(self.first.len());
        self.first.advance(first);
        count -= first;
        let piece = count.min(self.piece.len());
        self.piece.advance(piece);
        self.last.advance((count - piece).min(self.last.len()));
        if self.first.is_empty() {
            self.first = BytesMut::new();
        }
        if self.piece.is_empty() && !self.last.is_empty() {
            // In front of what comes next.
            self.piece = Bytes::new();
            let last = std::mem::take(&mut self.last);
            if self.first.is_empty() {
                self.first = last;
            } else {
                self.first.extend_from_slice(&last);
            }
        } else if self.last.is_empty() {
            self.last = BytesMut::new();
        }
    }
}

#[cfg(test)]
pub mod tests;

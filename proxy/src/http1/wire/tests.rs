//! What of a connection is read, kept, written and given back.

use super::super::{answer, body::Answer, exchange::Connection, write::Coding};
use super::*;
use crate::{http::body::Body, stream::Meter};
use remora_core::http1::Asked;
use remora_runtime::tasks::Drain;
use std::future::poll_fn;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

const LIMITS: Limits = Limits { head_bytes: 128, fields: 4 };

impl Outgoing {
    /// All that is to be written.
    pub fn whole(&self) -> Vec<u8> {
        [&self.first[..], &self.piece, &self.last].concat()
    }
}

/// A connection, and its other end.
pub async fn connection() -> (Stream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let other = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (Stream::plain(listener.accept().await.unwrap().0), other)
}

async fn wire(said: &[u8]) -> (Wire, TcpStream) {
    let (stream, mut other) = connection().await;
    other.write_all(said).await.unwrap();
    (Wire::new(stream), other)
}

/// Reads a request's head, which comes whole.
async fn head(wire: &mut Wire) -> String {
    poll_fn(|cx| {
        loop {
            if let Some(head) = head::request(&mut wire.ahead, &LIMITS).unwrap() {
                return Poll::Ready(head.head.uri().to_string());
            }
            assert_ne!(ready!(wire.poll_fill(cx)).unwrap(), 0, "it ended");
        }
    })
    .await
}

/// Reads a body to its end: its data, its trailers, and how it ended.
async fn body(wire: &mut Wire, length: Length) -> (Vec<u8>, usize, Option<Error>) {
    wire.body = Reading::new(length, &LIMITS);
    let (mut all, mut trailers) = (vec![], 0);
    loop {
        match poll_fn(|cx| wire.poll_body(cx)).await {
            Some(Ok(Part::Data(data))) => {
                let held = !wire.ahead.bytes.is_empty();
                assert!(held || data.is_unique(), "a buffer with nothing to read in it is held");
                all.extend_from_slice(&data);
            }
            Some(Ok(Part::Trailers(fields, _))) => trailers += fields.len(),
            Some(Err(error)) => return (all, trailers, Some(error)),
            None => return (all, trailers, None),
        }
    }
}

#[tokio::test]
async fn messages_that_were_sent_at_once_are_read_one_by_one() {
    let said = "POST /1 HTTP/1.1\r\n\r\nhelloPOST /2 HTTP/1.1\r\n\r\n3\r\nabc\r\n0\r\na: b\r\n\r\nGET /3 HTTP/1.1\r\n\r\nthe rest";
    let (mut wire, other) = wire(said.as_bytes()).await;
    assert_eq!(head(&mut wire).await, "/1");
    let (data, trailers, error) = body(&mut wire, Length::Known(5)).await;
    assert_eq!((&data[..], trailers, error.is_none()), (&b"hello"[..], 0, true));
    assert_eq!(head(&mut wire).await, "/2");
    let (data, trailers, error) = body(&mut wire, Length::Chunked).await;
    assert_eq!((&data[..], trailers, error.is_none()), (&b"abc"[..], 1, true));
    assert_eq!(head(&mut wire).await, "/3");
    assert_eq!(wire.ahead.bytes, "the rest");
    // Whoever takes over what is no HTTP any more finds it.
    drop(other);
    let mut rest = String::new();
    wire.into_stream().read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "the rest");
}

#[tokio::test]
async fn a_connection_between_messages_holds_no_buffer() {
    let length = 100_000;
    let (mut wire, mut other) = wire(b"POST / HTTP/1.1\r\n\r\n").await;
    let sends = tokio::spawn(async move {
        other.write_all(&vec![b'x'; length]).await.unwrap();
        let mut answer = vec![0; 4 + length + 4];
        other.read_exact(&mut answer).await.unwrap();
        (other, answer)
    });
    head(&mut wire).await;
    let (data, _, error) = body(&mut wire, Length::Known(length as u64)).await;
    assert!(data.len() == length && error.is_none(), "{error:?}");
    wire.out.tail().extend_from_slice(b"head");
    wire.out.piece(data.into());
    wire.out.tail().extend_from_slice(b"tail");
    poll_fn(|cx| wire.poll_write_out(cx)).await.unwrap();
    let (_other, answer) = sends.await.unwrap();
    assert!(answer.starts_with(b"headxx") && answer.ends_with(b"xxtail"));
    let held = [wire.ahead.bytes.capacity(), wire.out.first.capacity(), wire.out.last.capacity()];
    assert_eq!((held, wire.out.piece.len()), ([0; 3], 0));
    assert_eq!(wire.out.written, (8 + length) as u64);
}

#[tokio::test]
async fn a_body_that_breaks_off_is_no_whole_body() {
    for (length, said, expected, whole) in [
        (Length::Known(5), "hell", "hell", false),
        (Length::Known(5), "hello", "hello", true),
        (Length::Known(0), "", "", true),
        (Length::Chunked, "5\r\nhello\r\n", "hello", false),
        (Length::Chunked, "5\r\nhello\r\n0\r\n", "hello", false),
        (Length::Chunked, "5\r\nhello\r\n0\r\n\r\n", "hello", true),
        (Length::Close, "hello", "hello", true),
    ] {
        let (mut wire, other) = wire(said.as_bytes()).await;
        drop(other);
        let (data, _, error) = body(&mut wire, length).await;
        assert_eq!(data, expected.as_bytes(), "{length:?} {said:?}");
        assert_eq!(error.is_none(), whole, "{length:?} {said:?}");
        assert!(whole || matches!(error, Some(Error::Cut)), "{length:?} {said:?}: {error:?}");
    }
}

#[tokio::test]
async fn what_is_not_in_chunks_ends_with_the_reason() {
    let (mut wire, _other) = wire(b"x\r\n").await;
    let (_, _, error) = body(&mut wire, Length::Chunked).await;
    assert_eq!(error.unwrap().to_string(), "its body is not in chunks: a size has no digit");
    let many = format!("0\r\n{}\r\n", "a: b\r\n".repeat(LIMITS.fields + 1));
    let (mut wire, _other) = self::wire(many.as_bytes()).await;
    let (_, _, error) = body(&mut wire, Length::Chunked).await;
    assert!(matches!(error, Some(Error::TooLarge)), "{error:?}");
}

/// Relays once, to somebody who takes up to `room` bytes: what was taken, how many came, and what is left.
async fn relay(wire: &mut Wire, room: usize) -> Option<(Vec<u8>, usize, Bytes)> {
    let mut taken = vec![];
    let relayed = poll_fn(|cx| {
        let write = &mut |_: &mut Context<'_>, bytes: &[u8]| {
            let count = bytes.len().min(room - taken.len());
            taken.extend_from_slice(&bytes[..count]);
            if count == 0 { Poll::Pending } else { Poll::Ready(Ok(count)) }
        };
        match wire.poll_relay(cx, write) {
            None => Poll::Ready(None),
            Some(relayed) => Poll::Ready(Some(ready!(relayed).unwrap())),
        }
    })
    .await?;
    Some((taken, relayed.read, relayed.rest))
}

#[tokio::test]
async fn a_relay_takes_its_own_message_and_no_byte_of_the_next() {
    let (mut wire, mut other) = wire(b"helloGET /next HTTP/1.1\r\n\r\n").await;
    wire.body = Reading::new(Length::Known(5), &LIMITS);
    assert_eq!(relay(&mut wire, 3).await, Some((b"hel".to_vec(), 5, Bytes::from_static(b"lo"))));
    assert!(wire.body.is_over());
    assert_eq!(relay(&mut wire, 3).await, None, "it is over");
    assert_eq!(head(&mut wire).await, "/next");
    // What was read already comes first, and chunks are read one by one.
    wire.ahead.bytes.extend_from_slice(b"a");
    wire.body = Reading::new(Length::Known(2), &LIMITS);
    assert_eq!(relay(&mut wire, 3).await, None);
    wire.ahead.bytes.clear();
    wire.body = Reading::new(Length::Chunked, &LIMITS);
    assert_eq!(relay(&mut wire, 3).await, None);
    // Until the end: it is a body's only where no length was said.
    other.shutdown().await.unwrap();
    wire.body = Reading::new(Length::Close, &LIMITS);
    assert_eq!(relay(&mut wire, 3).await, Some((vec![], 0, Bytes::new())));
    assert!(wire.body.is_over());
    wire.body = Reading::new(Length::Known(2), &LIMITS);
    let cut = poll_fn(|cx| wire.poll_relay(cx, &mut |_, _| Poll::Pending).unwrap()).await;
    assert!(matches!(cut, Err(Error::Cut)));
}

#[test]
fn bytes_leave_in_their_order_however_many_are_taken_at_once() {
    let large = Bytes::from(vec![b'x'; SMALL + 1]);
    let added = |out: &mut Outgoing| {
        out.tail().extend_from_slice(b"head");
        out.piece(Bytes::from_static(b"short"));
        out.piece(large.clone());
        out.tail().extend_from_slice(b"between");
        // A second one has to be copied: there is one place for such a piece.
        out.piece(large.clone());
        out.tail().extend_from_slice(b"last");
    };
    let mut out = Outgoing::default();
    added(&mut out);
    let all = out.whole();
    assert_eq!(all, [b"headshort", &large[..], b"between", &large[..], b"last"].concat());
    assert_eq!(out.piece.as_ptr(), large.as_ptr(), "a large piece is written from where it is");
    for count in 0..=all.len() {
        let mut out = Outgoing::default();
        added(&mut out);
        out.took(count);
        assert_eq!(out.whole(), &all[count..], "{count} were taken");
        // And what is added later comes later.
        out.piece(Bytes::from_static(b"!"));
        out.tail().extend_from_slice(b"?");
        assert_eq!(out.whole(), [&all[count..], b"!?"].concat(), "{count} were taken");
    }
}

#[test]
fn what_is_collected_before_it_is_written_is_bounded() {
    let mut out = Outgoing::default();
    let mut pieces = 0;
    while out.has_room() {
        out.piece(Bytes::from_static(&[b'x'; SMALL]));
        pieces += 1;
    }
    assert_eq!(pieces, ENOUGH / SMALL);
    let mut out = Outgoing::default();
    out.piece(Bytes::from_static(&[b'x'; SMALL + 1]));
    assert!(!out.has_room(), "a large piece goes before another is asked for");
}

/// Counts the bytes of each write.
#[derive(Default)]
pub struct Writes(Mutex<Vec<usize>>);

impl Writes {
    /// Those since it was asked last.
    pub fn take(&self) -> Vec<usize> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl Meter for Writes {
    fn read(&self, _bytes: usize) {}

    fn wrote(&self, bytes: usize) {
        self.0.lock().unwrap().push(bytes);
    }

    fn failed(&self, _error: &io::Error) {}
}

#[tokio::test]
async fn a_head_and_its_body_leave_in_one_write() {
    for length in [0, 5, SMALL, SMALL + 1] {
        let (far, mut server) = connection().await;
        server.write_all(&vec![b'x'; length]).await.unwrap();
        let mut from = Connection::new(far);
        // The body has come already.
        while from.wire.ahead.bytes.len() < length {
            poll_fn(|cx| from.wire.poll_fill(cx)).await.unwrap();
        }
        from.wire.body = Reading::new(Length::Known(length as u64), &LIMITS);
        let said = http::Response::new(Body::answer(Box::new(Answer::new(from, None, None))));
        let (near, mut client) = connection().await;
        let writes = Arc::new(Writes::default());
        let shared = Shared::new(near.metered(writes.clone()));
        let asking = answer::Asking { asked: Asked::Other, http11: true, persists: true };
        answer::send(&shared, asking, said, &Drain::new()).await.unwrap();
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
        assert_eq!(writes.take(), [head.len() + length]);
        let mut written = vec![0; head.len() + length];
        client.read_exact(&mut written).await.unwrap();
        assert!(written.starts_with(head.as_bytes()) && written.ends_with(&vec![b'x'; length]));
    }
}

#[tokio::test]
async fn a_chunk_its_size_and_the_end_leave_in_one_write() {
    let (stream, _other) = connection().await;
    let writes = Arc::new(Writes::default());
    let mut wire = Wire::new(stream.metered(writes.clone()));
    let mut coding = Coding::Chunked;
    let data = http_body::Frame::data(Bytes::from(vec![b'x'; SMALL + 1]));
    coding.frame(&mut wire.out, data, &Spelling::Lower).unwrap();
    coding.end(&mut wire.out).unwrap();
    poll_fn(|cx| wire.poll_write_out(cx)).await.unwrap();
    assert_eq!(writes.take(), ["1001\r\n".len() + SMALL + 1 + "\r\n0\r\n\r\n".len()]);
}

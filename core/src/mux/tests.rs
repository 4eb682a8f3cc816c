//! Two sessions and the bytes between them.

mod breaches;
mod fairness;
mod lives;
mod states;
mod windows;

use super::{
    frame::{Decoder, FIN, Frame, HEADER, Kind, MAX_PAYLOAD, Piece, Settings, header},
    *,
};
use crate::time::{Duration, Time};
use alloc::{vec, vec::Vec};
use proptest::prelude::*;

const PORT: NonZeroU16 = NonZeroU16::new(8080).unwrap();

/// Windows so small that tests fill them.
fn small() -> Limits {
    Limits { streams: 8, window: 16_384, guaranteed: 4096, shared: 16_384, out: 1 << 18, resets: 4 }
}

struct Pair {
    client: Session,
    server: Session,
}

impl Pair {
    /// Both have the other's SETTINGS.
    fn new(client: Limits, server: Limits) -> Self {
        let mut pair = Self { client: Session::client(client), server: Session::server(server) };
        pair.flow();
        assert_eq!(events(&mut pair.client), [Event::Settings]);
        assert_eq!(events(&mut pair.server), [Event::Settings]);
        pair
    }

    fn small() -> Self {
        Self::new(small(), small())
    }

    /// Moves bytes both ways until there are none.
    fn flow(&mut self) {
        while !self.client.out().is_empty() || !self.server.out().is_empty() {
            carry(&mut self.client, &mut self.server).unwrap();
            carry(&mut self.server, &mut self.client).unwrap();
        }
    }

    /// A stream of which both know.
    fn open(&mut self) -> StreamId {
        let id = self.client.open(PORT, None).unwrap();
        self.flow();
        assert_eq!(events(&mut self.server), [Event::Opened { id, port: PORT, protocol: None }]);
        id
    }
}

fn carry(from: &mut Session, to: &mut Session) -> Result<(), Error> {
    let result = to.receive(Time::default(), from.out());
    from.written(usize::MAX);
    result
}

fn events(session: &mut Session) -> Vec<Event> {
    core::iter::from_fn(|| session.poll_event()).collect()
}

/// All that can be read.
fn drain(session: &mut Session, id: StreamId) -> (Vec<u8>, bool) {
    let mut all = vec![];
    loop {
        let mut some = vec![0; 1 << 18];
        match session.read(id, &mut some) {
            Read::Bytes(count) => all.extend_from_slice(&some[..count]),
            Read::Wait => return (all, false),
            Read::End => return (all, true),
            Read::Gone => panic!("{id:?} is gone"),
        }
    }
}

fn bytes_of(frames: &[Frame]) -> Vec<u8> {
    let mut bytes = vec![];
    for frame in frames {
        frame.write(&mut bytes);
    }
    bytes
}

fn data(id: u32, payload: &[u8], flags: u8) -> Vec<u8> {
    let mut bytes = vec![];
    header(&mut bytes, Kind::Data, flags, payload.len(), id);
    bytes.extend_from_slice(payload);
    bytes
}

const fn id(number: u32) -> StreamId {
    StreamId(number)
}

#[test]
fn what_is_written_with_an_open_arrives_with_it_in_one_write() {
    let mut client = Session::client(small());
    let mut server = Session::server(small());
    let stream = client.open(PORT, Some(SessionProtocol::Http1)).unwrap();
    assert_eq!(client.write(stream, b"hello"), Ok(5));
    client.finish(stream).unwrap();
    carry(&mut client, &mut server).unwrap();
    assert_eq!(
        events(&mut server),
        [
            Event::Settings,
            Event::Opened { id: stream, port: PORT, protocol: Some(SessionProtocol::Http1) },
            Event::Readable(stream)
        ]
    );
    assert_eq!(drain(&mut server, stream), (b"hello".to_vec(), true));
}

#[test]
fn small_writes_and_the_end_share_one_frame() {
    let mut pair = Pair::small();
    let (one, other) = (pair.open(), pair.open());
    for _ in 0..10 {
        assert_eq!(pair.client.write(one, b"abc"), Ok(3));
    }
    pair.client.finish(one).unwrap();
    assert_eq!(pair.client.out(), data(1, &b"abc".repeat(10), FIN));
    pair.flow();

    // Not those that were written in part, nor another stream's.
    assert_eq!(pair.client.write(other, b"abc"), Ok(3));
    pair.client.written(1);
    assert_eq!(pair.client.write(other, b"def"), Ok(3));
    assert_eq!(pair.client.out(), [&data(2, b"abc", 0)[1..], &data(2, b"def", 0)].concat());
}

#[test]
fn a_frame_with_its_header_fills_a_tls_record() {
    let mut pair = Pair::new(Limits::default(), Limits::default());
    let stream = pair.open();
    assert_eq!(pair.client.write(stream, &vec![7; 40_000]), Ok(40_000));
    let lengths = [MAX_PAYLOAD, MAX_PAYLOAD, 40_000 - 2 * MAX_PAYLOAD];
    let frames: Vec<u8> = lengths.iter().flat_map(|length| data(1, &vec![7; *length], 0)).collect();
    assert_eq!(MAX_PAYLOAD + HEADER, 1 << 14);
    assert!(pair.client.out() == frames);
}

#[test]
fn payload_is_handed_on_before_its_frame_is_whole() {
    let mut pair = Pair::small();
    let stream = pair.open();
    let frame = data(1, b"hello", FIN);
    let mut seen = vec![];
    for (at, byte) in frame.iter().enumerate() {
        pair.server.receive(Time::default(), &[*byte]).unwrap();
        let (bytes, end) = drain(&mut pair.server, stream);
        seen.extend_from_slice(&bytes);
        assert_eq!(seen.len(), (at + 1).saturating_sub(HEADER), "after {} bytes", at + 1);
        assert_eq!(end, at + 1 == frame.len());
    }
    assert_eq!(seen, b"hello");
}

#[test]
fn an_event_is_told_once_however_often_it_happened() {
    let mut pair = Pair::small();
    let stream = pair.open();
    for _ in 0..5 {
        pair.client.write(stream, b"x").unwrap();
        carry(&mut pair.client, &mut pair.server).unwrap();
    }
    assert_eq!(events(&mut pair.server), [Event::Readable(stream)]);
    assert_eq!(events(&mut pair.server), []);
    assert!(!pair.server.wants_driver());
}

#[test]
fn a_ping_comes_back() {
    let mut pair = Pair::small();
    pair.client.ping(42);
    pair.flow();
    assert_eq!(events(&mut pair.client), [Event::Pong(42)]);
    assert_eq!(events(&mut pair.server), []);
}

#[test]
fn a_thousand_idle_streams_cost_under_300_bytes_each() {
    let limits = Limits::default();
    let mut pair = Pair::new(limits, limits);
    for _ in 0..limits.streams {
        let stream = pair.client.open(PORT, None).unwrap();
        pair.client.write(stream, b"ping").unwrap();
        pair.flow();
        events(&mut pair.server);
        assert_eq!(drain(&mut pair.server, stream), (b"ping".to_vec(), false));
        pair.server.write(stream, b"pong").unwrap();
        pair.flow();
        events(&mut pair.client);
        assert_eq!(drain(&mut pair.client, stream), (b"pong".to_vec(), false));
    }
    for session in [&mut pair.client, &mut pair.server] {
        session.release();
        let each = session.allocated() / 1024;
        assert!(each < 300, "{each} bytes a stream");
    }
}

#[test]
fn a_carrier_without_streams_gives_its_memory_back() {
    let mut pair = Pair::small();
    let stream = pair.open();
    pair.client.write(stream, &[1; 4096]).unwrap();
    pair.client.finish(stream).unwrap();
    pair.server.finish(stream).unwrap();
    pair.flow();
    assert_eq!(drain(&mut pair.server, stream), (vec![1; 4096], true));
    assert_eq!(drain(&mut pair.client, stream), (vec![], true));
    pair.flow();
    events(&mut pair.client);
    events(&mut pair.server);
    for session in [&mut pair.client, &mut pair.server] {
        assert!(session.is_idle());
        session.release();
        assert_eq!(session.allocated(), 0);
    }
}

fn any_frame() -> impl Strategy<Value = Frame> {
    let id = 1..u32::MAX;
    let protocol =
        prop::sample::select(vec![None, Some(SessionProtocol::Http1), Some(SessionProtocol::Http2)]);
    prop_oneof![
        (any::<u32>(), 1..u32::MAX, 4096..1u32 << 20, 4096..1u32 << 20, 0..1u32 << 30).prop_map(
            |(features, streams, a, b, shared)| {
                Frame::Settings(Settings {
                    features,
                    streams,
                    window: a.max(b),
                    guaranteed: a.min(b),
                    shared,
                })
            }
        ),
        (id.clone(), any::<NonZeroU16>(), protocol).prop_map(|(id, port, protocol)| Frame::Open {
            id,
            port,
            protocol
        }),
        (id.clone(), 1..u32::MAX).prop_map(|(id, credit)| Frame::Window { id, credit }),
        (id.clone(), any::<u8>().prop_filter("REFUSED has a text", |code| *code != 1))
            .prop_map(|(id, code)| Frame::Reset { id, code: Code::from_code(code) }),
        (id, "[ -~]{0,128}").prop_map(|(id, reason)| Frame::Refused { id, reason: reason.as_str().into() }),
        any::<u64>().prop_map(Frame::Ping),
        any::<u64>().prop_map(Frame::Pong),
        (any::<u32>(), any::<u8>())
            .prop_map(|(last, code)| Frame::GoAway { last, why: Away::from_code(code) }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_frame_is_read_as_it_was_written_however_it_is_split(
        frames in prop::collection::vec(any_frame(), 1..5),
        size in 1..40usize,
    ) {
        let bytes = bytes_of(&frames);
        let mut decoder = Decoder::default();
        let mut read = vec![];
        for mut some in bytes.chunks(size) {
            while let Some(piece) = decoder.next(&mut some).unwrap() {
                match piece {
                    Piece::Frame(frame) => read.push(frame),
                    other => panic!("{other:?}"),
                }
            }
        }
        prop_assert_eq!(read, frames);
    }
}

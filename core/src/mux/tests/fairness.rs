//! Turns: who may write when the outgoing buffer is full.

use super::*;

/// Nothing waits in windows, so the buffer is all that limits.
fn wide() -> Limits {
    Limits { streams: 64, window: 1 << 30, guaranteed: 1 << 20, shared: 1 << 30, out: 1 << 18, resets: 1 }
}

fn many(count: usize) -> (Pair, Vec<StreamId>) {
    let mut pair = Pair::new(wide(), wide());
    let streams = (0..count).map(|_| pair.open()).collect();
    (pair, streams)
}

/// As many, all of whom wait for their turn to write.
fn crowded(count: usize) -> (Pair, Vec<StreamId>) {
    let (mut pair, streams) = many(count);
    for stream in &streams {
        stuff(&mut pair.client, *stream);
    }
    pair.client.written(usize::MAX);
    (pair, streams)
}

/// Writes until nothing is taken.
fn stuff(session: &mut Session, stream: StreamId) -> usize {
    let data = vec![0; 1 << 18];
    let mut total = 0;
    loop {
        match session.write(stream, &data) {
            Ok(0) => return total,
            Ok(count) => total += count,
            Err(Gone) => panic!("{stream:?} is gone"),
        }
    }
}

/// Asks for all events; those whose turn it is write as much as they may.
fn round(session: &mut Session) -> Vec<(StreamId, usize)> {
    let mut wrote = vec![];
    while let Some(event) = session.poll_event() {
        if let Event::Writable(stream) = event {
            wrote.push((stream, stuff(session, stream)));
        }
    }
    wrote
}

#[test]
fn a_lone_writer_fills_the_buffer_at_once() {
    let (mut pair, streams) = many(1);
    assert_eq!(stuff(&mut pair.client, streams[0]), 1 << 18);
    assert_eq!(events(&mut pair.client), []);
    pair.client.written(usize::MAX);
    assert_eq!(events(&mut pair.client), [Event::Writable(streams[0])]);
}

#[test]
fn who_waits_writes_five_frames_in_the_order_of_waiting() {
    let (mut pair, streams) = many(5);
    for stream in &streams {
        stuff(&mut pair.client, *stream);
    }
    // The first has filled the buffer and is the first to wait.
    let mut expected = streams.iter().cycle();
    for _ in 0..10 {
        pair.client.written(usize::MAX);
        let wrote = round(&mut pair.client);
        assert!(wrote.len() >= 3, "{wrote:?}");
        for (stream, count) in wrote {
            assert_eq!((Some(&stream), count), (expected.next(), TURN));
        }
    }
}

#[test]
fn a_newcomer_waits_behind_those_who_wait() {
    let (mut pair, streams) = many(3);
    stuff(&mut pair.client, streams[0]);
    stuff(&mut pair.client, streams[1]);
    pair.client.written(usize::MAX);
    assert_eq!(pair.client.write(streams[2], b"x"), Ok(0));
    let turns: Vec<_> = round(&mut pair.client).into_iter().map(|(stream, _)| stream).collect();
    assert_eq!(turns[..3], streams);
}

#[test]
fn a_turn_that_is_not_used_passes_to_others() {
    let (mut pair, streams) = crowded(20);
    // They are told, and do nothing. Every other stream has its turn all the same, though nothing else happens.
    let mut told = vec![];
    while pair.client.wants_driver() {
        let new = events(&mut pair.client);
        assert!(!new.is_empty() || told.len() < streams.len(), "it goes round and round");
        told.extend(new);
    }
    assert_eq!(told, streams.iter().map(|stream| Event::Writable(*stream)).collect::<Vec<_>>());
}

#[test]
fn whoever_leaves_leaves_no_gap() {
    let (mut pair, streams) = crowded(20);
    let told = events(&mut pair.client);
    assert_eq!(told.len(), 3);
    // Those whose turn it is, and some that wait.
    for stream in &streams[..10] {
        pair.client.reset(*stream, Code::Cancelled);
    }
    pair.client.written(usize::MAX);
    let told = events(&mut pair.client);
    assert_eq!(told[0], Event::Writable(streams[10]));
    assert_eq!(told.len(), 3);
}

#[test]
fn an_end_waits_for_nobody() {
    let (mut pair, streams) = many(2);
    stuff(&mut pair.client, streams[0]);
    pair.client.finish(streams[1]).unwrap();
    assert!(pair.client.out().ends_with(&data(2, b"", FIN)));
}

#[test]
fn no_stream_is_opened_behind_a_full_buffer() {
    let (mut pair, streams) = many(1);
    stuff(&mut pair.client, streams[0]);
    assert_eq!(pair.client.open(PORT, None), Err(CannotOpen::Busy));
    pair.client.written(usize::MAX);
    assert!(pair.client.open(PORT, None).is_ok());
}

#[test]
fn pieces_go_out_in_one_turn() {
    let (mut pair, streams) = crowded(3);
    assert_eq!(pair.client.poll_event(), Some(Event::Writable(streams[0])));
    let pieces = [&b"head "[..], b"", b"and body"];
    assert_eq!(pair.client.write_vectored(streams[0], pieces.into_iter()), Ok(13));
    assert_eq!(pair.client.out(), data(1, b"head and body", 0));
    // More than a turn, cut within a piece.
    assert_eq!(pair.client.poll_event(), Some(Event::Writable(streams[1])));
    let long = vec![1; 40_000];
    let pieces = [&long[..], &long, &long];
    assert_eq!(pair.client.write_vectored(streams[1], pieces.into_iter()), Ok(TURN));
    assert_eq!(pair.client.write_vectored(streams[0], [&b"x"[..]].into_iter()), Ok(0));
}

//! Windows: what is unread is bounded, and who does not read stops nobody else.

use super::*;

/// Writes until nothing is taken and nobody says that it may go on, and carries everything over.
fn send_all(pair: &mut Pair, stream: StreamId) -> usize {
    let data = vec![9; 100_000];
    let mut total = 0;
    loop {
        let turn = events(&mut pair.client).contains(&Event::Writable(stream));
        let count = pair.client.write(stream, &data).unwrap();
        pair.flow();
        total += count;
        if count == 0 && !turn && !pair.client.wants_driver() {
            return total;
        }
    }
}

#[test]
fn a_stream_that_nobody_reads_stops_at_its_window() {
    let mut pair = Pair::small();
    let stream = pair.open();
    assert_eq!(send_all(&mut pair, stream), 16_384);
    assert_eq!(drain(&mut pair.server, stream), (vec![9; 16_384], false));
    pair.flow();
    assert_eq!(events(&mut pair.client), [Event::Writable(stream)]);
    assert_eq!(send_all(&mut pair, stream), 16_384);
}

#[test]
fn streams_that_nobody_reads_leave_every_other_its_guaranteed_part() {
    let mut pair = Pair::small();
    let streams: Vec<_> = (0..8).map(|_| pair.open()).collect();
    let sent: Vec<_> = streams.iter().map(|stream| send_all(&mut pair, *stream)).collect();
    // The first two take the shared part. It is never more than all the guaranteed parts and the shared one.
    assert_eq!(sent, [16_384, 8192, 4096, 4096, 4096, 4096, 4096, 4096]);
    assert_eq!(sent.iter().sum::<usize>(), small().most_unread());

    // The last one is read, and only it goes on, as long as it likes.
    for _ in 0..20 {
        assert_eq!(drain(&mut pair.server, streams[7]), (vec![9; 4096], false));
        pair.flow();
        assert_eq!(events(&mut pair.client), [Event::Writable(streams[7])]);
        assert_eq!(send_all(&mut pair, streams[7]), 4096);
    }
}

#[test]
fn shared_bytes_that_are_read_are_free_for_others() {
    let mut pair = Pair::small();
    let (one, two, three) = (pair.open(), pair.open(), pair.open());
    assert_eq!(send_all(&mut pair, one), 16_384);
    assert_eq!(send_all(&mut pair, two), 8192);
    assert_eq!(send_all(&mut pair, three), 4096);
    drain(&mut pair.server, one);
    pair.flow();
    assert_eq!(
        events(&mut pair.client),
        [Event::Writable(one), Event::Writable(two), Event::Writable(three)]
    );
    assert_eq!(send_all(&mut pair, three), 12_288);
    drain(&mut pair.server, three);
    pair.flow();
    assert_eq!(send_all(&mut pair, two), 8192);
}

/// A stream can be over in both directions while its bytes are unread. Until they are, they count.
#[test]
fn shared_bytes_of_a_finished_stream_come_back_when_they_are_read() {
    let mut pair = Pair::small();
    let (one, two) = (pair.open(), pair.open());
    assert_eq!(send_all(&mut pair, one), 16_384);
    pair.client.finish(one).unwrap();
    pair.server.finish(one).unwrap();
    pair.flow();
    assert_eq!(drain(&mut pair.client, one), (vec![], true));
    assert_eq!(pair.client.streams(), 2, "its bytes still count");
    assert_eq!(send_all(&mut pair, two), 8192);
    assert_eq!(drain(&mut pair.server, one), (vec![9; 16_384], true));
    assert_eq!(pair.server.streams(), 1);
    pair.flow();
    assert_eq!(pair.client.streams(), 1);
    assert_eq!(send_all(&mut pair, two), 8192);
}

#[test]
fn shared_bytes_of_a_reset_stream_come_back() {
    for by_server in [false, true] {
        let mut pair = Pair::small();
        let (one, two) = (pair.open(), pair.open());
        assert_eq!(send_all(&mut pair, one), 16_384);
        let resets = if by_server { &mut pair.server } else { &mut pair.client };
        resets.reset(one, Code::Cancelled);
        pair.flow();
        assert_eq!(send_all(&mut pair, two), 16_384);
        drain(&mut pair.server, two);
        pair.flow();
        assert_eq!(pair.client.sending.spare(), 16_384);
        assert_eq!(pair.server.receiving.spare(), 16_384);
    }
}

#[test]
fn more_than_the_shared_part_is_a_breach_though_each_stream_is_within_its_window() {
    let mut pair = Pair::small();
    pair.open();
    pair.open();
    let bytes = [data(1, &[0; 16_000], 0), data(2, &[0; 16_000], 0)].concat();
    assert_eq!(pair.server.receive(Time::default(), &bytes), Err(Error::Shared));
}

#[test]
fn until_settings_come_each_stream_has_4_kib() {
    let mut client = Session::client(Limits::default());
    let mut server = Session::server(Limits::default());
    let stream = client.open(PORT, None).unwrap();
    let data = vec![1; 1 << 20];
    assert_eq!(client.write(stream, &data), Ok(4096));
    assert_eq!(client.write(stream, &data), Ok(0));
    carry(&mut client, &mut server).unwrap();
    carry(&mut server, &mut client).unwrap();
    assert_eq!(events(&mut client), [Event::Settings, Event::Writable(stream)]);
    assert_eq!(client.write(stream, &data), Ok(1 << 18), "what the buffer takes");
}

#[test]
fn a_reader_returns_credit_in_few_frames() {
    let mut pair = Pair::new(Limits::default(), Limits::default());
    let half = Limits::default().window as usize / 2;
    let stream = pair.open();
    let mut windows = 0;
    for _ in 0..10 * half / 1024 {
        assert_eq!(pair.client.write(stream, &[3; 1024]), Ok(1024));
        pair.flow();
        drain(&mut pair.server, stream);
        assert_eq!(events(&mut pair.server).len(), 1);
        windows += usize::from(!pair.server.out().is_empty());
    }
    assert_eq!(windows, 10);
    // One that lags.
    pair.flow();
    assert_eq!(send_all(&mut pair, stream), 2 * half);
    let mut some = [0; 1024];
    let mut windows = 0;
    for _ in 0..2 * half / 1024 {
        assert_eq!(pair.server.read(stream, &mut some), Read::Bytes(1024));
        windows += usize::from(!pair.server.out().is_empty());
        pair.server.written(usize::MAX);
    }
    assert_eq!(windows, 2);
}

/// `count` bytes that arrive and are read.
fn pass(pair: &mut Pair, stream: StreamId, count: usize) {
    assert_eq!(pair.client.write(stream, &vec![5; count]), Ok(count));
    pair.flow();
    assert_eq!(drain(&mut pair.server, stream).0.len(), count);
    events(&mut pair.server);
}

#[test]
fn little_credit_goes_with_whatever_is_written_next() {
    let mut pair = Pair::new(Limits::default(), Limits::default());
    let (one, other, third) = (pair.open(), pair.open(), pair.open());
    let half = Limits::default().guaranteed as usize / 2;
    pass(&mut pair, one, half);
    pass(&mut pair, other, half - 1);
    pass(&mut pair, third, half);
    assert!(!pair.server.wants_driver(), "it is not worth a write");
    pair.server.reset(third, Code::Cancelled);
    pair.server.write(other, b"word").unwrap();
    events(&mut pair.server);
    // Not for one of which less was read, nor for one that is over.
    let reset = Frame::Reset { id: third.get(), code: Code::Cancelled };
    let credit = Frame::Window { id: one.get(), credit: half as u32 };
    assert_eq!(pair.server.out(), [bytes_of(&[reset]), data(2, b"word", 0), bytes_of(&[credit])].concat());
}

#[test]
fn what_idle_streams_are_owed_is_returned_when_the_shared_part_is_short() {
    let limits = Limits { window: 65_536, shared: 65_536, ..small() };
    let mut pair = Pair::new(limits, limits);
    let (one, two, three) = (pair.open(), pair.open(), pair.open());
    pass(&mut pair, one, 16_000);
    pass(&mut pair, two, 16_000);
    assert!(!pair.server.wants_driver() && pair.client.sending.spare() == 65_536 - 2 * (16_000 - 4096));
    assert_eq!(send_all(&mut pair, three), 4096 + 65_536 - 2 * (16_000 - 4096));
    assert_eq!(pair.client.sending.spare(), 0);
    events(&mut pair.server);
    pair.flow();
    assert_eq!(pair.client.sending.spare(), 2 * (16_000 - 4096));
}

#[test]
fn credit_is_returned_at_once_where_a_sender_takes_nothing_of_the_shared_part() {
    let limits = Limits { window: 10_000, shared: 1000, ..small() };
    let mut pair = Pair::new(limits, limits);
    let stream = pair.open();
    assert_eq!(send_all(&mut pair, stream), 4096);
    assert_eq!(drain(&mut pair.server, stream).0.len(), 4096);
    pair.flow();
    assert_eq!(events(&mut pair.client), [Event::Writable(stream)]);
}

#[test]
fn what_a_finished_stream_is_owed_is_returned_with_its_end() {
    let limits = Limits { window: 100_000, guaranteed: 4096, shared: 100_000, ..small() };
    let mut pair = Pair::new(limits, limits);
    let stream = pair.open();
    pass(&mut pair, stream, 10_000);
    pair.client.finish(stream).unwrap();
    pair.server.finish(stream).unwrap();
    pair.flow();
    assert_eq!(drain(&mut pair.client, stream), (vec![], true));
    assert!(pair.client.is_idle(), "the bytes were read");
}

#[test]
fn frames_of_one_byte_cost_no_more_memory_than_their_bytes() {
    let mut pair = Pair::new(small(), small());
    pair.open();
    let bytes = data(1, b"x", 0).repeat(16_384);
    pair.server.receive(Time::default(), &bytes).unwrap();
    assert!(pair.server.buffers.allocated() <= 32_768, "{}", pair.server.buffers.allocated());
    assert_eq!(pair.server.receive(Time::default(), &data(1, b"x", 0)), Err(Error::Window));
}

#[test]
fn a_large_buffer_with_little_in_it_shrinks_when_memory_is_short() {
    let limits = Limits { guaranteed: 1 << 20, window: 1 << 20, ..Limits::default() };
    let mut pair = Pair::new(limits, limits);
    let streams: Vec<_> = (0..4).map(|_| pair.open()).collect();
    let data = vec![1; 1 << 18];
    for stream in &streams {
        while pair.client.write(*stream, &data).unwrap() > 0 {
            pair.flow();
        }
    }
    let before = pair.server.allocated();
    assert!(before >= 4 << 20);
    for stream in &streams {
        pair.server.consume(*stream, (1 << 20) - 10);
        assert_eq!(pair.server.chunk(*stream), Chunk::Bytes(&[1; 10]));
    }
    assert!(pair.server.buffers.allocated() < 3 << 20, "{}", pair.server.buffers.allocated());
}

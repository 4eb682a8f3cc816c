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
    assert_eq!(client.write(stream, &data), Ok((1 << 18) - 4096));
}

#[test]
fn a_reader_that_keeps_up_returns_credit_in_few_frames() {
    let mut pair = Pair::new(Limits::default(), Limits::default());
    let stream = pair.open();
    let mut windows = 0;
    for _ in 0..1000 {
        assert_eq!(pair.client.write(stream, &[3; 1000]), Ok(1000));
        pair.flow();
        drain(&mut pair.server, stream);
        windows += usize::from(!pair.server.out().is_empty());
    }
    // Half the guaranteed part each.
    assert_eq!(windows, 1_000_000 / 9000);
    // One that lags: half the window each.
    for _ in 0..16 {
        assert_eq!(pair.client.write(stream, &[3; 16_000]), Ok(16_000));
    }
    pair.flow();
    let mut some = [0; 1000];
    let mut windows = 0;
    for _ in 0..250 {
        assert_eq!(pair.server.read(stream, &mut some), Read::Bytes(1000));
        windows += usize::from(!pair.server.out().is_empty());
        pair.server.written(usize::MAX);
    }
    assert_eq!(windows, 1);
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

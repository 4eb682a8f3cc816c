//! Streams from their opening to their end, and the carrier's own end.

use super::*;

#[test]
fn a_stream_closes_when_both_ways_have_ended_and_been_read() {
    let mut pair = Pair::small();
    let stream = pair.open();
    pair.client.write(stream, b"ask").unwrap();
    pair.client.finish(stream).unwrap();
    pair.flow();
    assert_eq!(drain(&mut pair.server, stream), (b"ask".to_vec(), true));
    assert_eq!(pair.server.write(stream, b"answer"), Ok(6));
    pair.server.finish(stream).unwrap();
    assert!(pair.server.is_idle());
    pair.flow();
    assert!(!pair.client.is_idle(), "there is something to read");
    assert_eq!(drain(&mut pair.client, stream), (b"answer".to_vec(), true));
    assert!(pair.client.is_idle());
    assert_eq!(pair.client.chunk(stream), Chunk::Gone);
    assert_eq!(pair.client.finish(stream), Err(Gone));
}

#[test]
fn nothing_is_written_after_the_end() {
    let mut pair = Pair::small();
    let stream = pair.open();
    pair.client.finish(stream).unwrap();
    assert_eq!(pair.client.write(stream, b"x"), Err(Gone));
    assert_eq!(pair.client.finish(stream), Err(Gone));
}

#[test]
fn a_reset_ends_both_ways_and_drops_what_was_not_read() {
    let mut pair = Pair::small();
    let stream = pair.open();
    pair.client.write(stream, b"x").unwrap();
    pair.flow();
    pair.client.reset(stream, Code::Revoked);
    pair.flow();
    assert_eq!(events(&mut pair.server), [Event::Ended(stream, Ended::Reset(Code::Revoked))]);
    assert_eq!(pair.server.chunk(stream), Chunk::Gone);
    assert!(pair.client.is_idle() && pair.server.is_idle());
}

#[test]
fn a_stream_that_came_and_went_between_two_looks_was_never_there() {
    let mut pair = Pair::small();
    let stream = pair.client.open(PORT, None).unwrap();
    pair.client.write(stream, b"x").unwrap();
    pair.client.reset(stream, Code::Cancelled);
    pair.flow();
    assert_eq!(events(&mut pair.server), []);
    assert!(pair.server.is_idle());
}

#[test]
fn what_was_on_its_way_to_a_reset_stream_is_dropped() {
    let mut pair = Pair::small();
    let stream = pair.open();
    pair.client.write(stream, b"late").unwrap();
    pair.server.reset(stream, Code::Internal);
    pair.flow();
    assert_eq!(events(&mut pair.server), []);
    assert_eq!(events(&mut pair.client), [Event::Ended(stream, Ended::Reset(Code::Internal))]);
}

#[test]
fn a_reset_within_a_frame_drops_the_rest_of_it() {
    let mut pair = Pair::small();
    let (one, other) = (pair.open(), pair.open());
    let bytes = [data(1, b"abcdef", FIN), data(2, b"x", 0)].concat();
    let (now, later) = bytes.split_at(HEADER + 3);
    pair.server.receive(Time::default(), now).unwrap();
    pair.server.reset(one, Code::Cancelled);
    pair.server.receive(Time::default(), later).unwrap();
    assert_eq!(drain(&mut pair.server, other), (b"x".to_vec(), false));
    assert_eq!(events(&mut pair.server), [Event::Readable(other)]);
}

#[test]
fn a_refused_stream_may_be_replayed() {
    let mut pair = Pair::small();
    let stream = pair.open();
    pair.client.write(stream, b"x").unwrap();
    pair.flow();
    assert_eq!(pair.server.chunk(stream), Chunk::Bytes(b"x"), "looking is not taking");
    let reason = alloc::format!("not\r\n authorised\u{e9}{}", "!".repeat(200));
    assert_eq!(pair.server.refuse(stream, &reason), Ok(()));
    pair.flow();
    let told = events(&mut pair.client);
    let expected = alloc::format!("not authorised{}", "!".repeat(MAX_REASON - 14));
    assert_eq!(told, [Event::Ended(stream, Ended::Refused(expected.as_str().into()))]);
    assert!(pair.server.is_idle() && pair.client.is_idle());
}

#[test]
fn what_was_processed_cannot_be_refused() {
    type Act = fn(&mut Session, StreamId);
    let acts: [Act; 4] = [
        |server, stream| server.consume(stream, 1),
        |server, stream| assert_eq!(server.write(stream, b"y"), Ok(1)),
        |server, stream| server.finish(stream).unwrap(),
        |server, stream| server.reset(stream, Code::Internal),
    ];
    for act in acts {
        let mut pair = Pair::small();
        let stream = pair.open();
        pair.client.write(stream, b"x").unwrap();
        pair.flow();
        act(&mut pair.server, stream);
        assert_eq!(pair.server.refuse(stream, "no"), Err(TooLate));
    }
    let mut pair = Pair::small();
    let stream = pair.open();
    assert_eq!(pair.client.refuse(stream, "clients refuse nothing"), Err(TooLate));
}

#[test]
fn only_what_was_surely_not_processed_may_be_replayed() {
    for (ended, expected) in [
        (Ended::Refused("".into()), true),
        (Ended::GoAway, true),
        (Ended::NeverSent(Error::Lost), true),
        (Ended::Reset(Code::Cancelled), false),
        (Ended::Carrier(Error::Lost), false),
    ] {
        assert_eq!(ended.is_unprocessed(), expected, "{ended:?}");
    }
}

#[test]
fn streams_over_the_limit_are_refused_and_the_client_knows_the_limit() {
    let mut client = Session::client(Limits::default());
    let mut server = Session::server(small());
    let streams: Vec<_> = (0..64).map(|_| client.open(PORT, None).unwrap()).collect();
    assert_eq!(client.open(PORT, None), Err(CannotOpen::Full), "64 until the server has spoken");
    carry(&mut client, &mut server).unwrap();
    carry(&mut server, &mut client).unwrap();
    assert_eq!(server.streams(), 8);
    let told = events(&mut client);
    let refusal = Ended::Refused("too many streams".into());
    let refused = streams[8..].iter().map(|stream| Event::Ended(*stream, refusal.clone()));
    assert_eq!(told, [Event::Settings].into_iter().chain(refused).collect::<Vec<_>>());
    assert_eq!(client.open(PORT, None), Err(CannotOpen::Full));
    client.reset(streams[0], Code::Cancelled);
    assert!(client.open(PORT, None).is_ok());
}

#[test]
fn a_draining_server_finishes_what_it_took_and_leaves_the_rest_out() {
    let mut pair = Pair::small();
    let taken = pair.open();
    pair.server.go_away();
    let left_out = pair.client.open(PORT, None).unwrap();
    pair.client.write(left_out, b"x").unwrap();
    pair.flow();
    assert_eq!(events(&mut pair.server), [], "it never hears of it");
    assert_eq!(events(&mut pair.client), [Event::GoAway(Away::Drain), Event::Ended(left_out, Ended::GoAway)]);
    assert_eq!(pair.client.open(PORT, None), Err(CannotOpen::Draining));
    assert_eq!(pair.client.write(taken, b"more"), Ok(4));
    pair.flow();
    assert_eq!(drain(&mut pair.server, taken), (b"more".to_vec(), false));
    assert!(pair.server.is_draining() && pair.client.is_draining());
    pair.server.go_away();
    assert!(pair.server.out().is_empty(), "said once");
}

#[test]
fn a_draining_client_opens_no_more() {
    let mut pair = Pair::small();
    let stream = pair.open();
    pair.client.go_away();
    assert_eq!(pair.client.open(PORT, None), Err(CannotOpen::Draining));
    pair.flow();
    assert_eq!(events(&mut pair.server), [Event::GoAway(Away::Drain)]);
    pair.server.write(stream, b"x").unwrap();
    pair.flow();
    assert_eq!(drain(&mut pair.client, stream), (b"x".to_vec(), false));
}

#[test]
fn used_up_ids_ask_for_another_carrier() {
    let mut client = Session::client(small());
    client.last = u32::MAX - 1;
    assert_eq!(client.open(PORT, None).map(StreamId::get), Ok(u32::MAX));
    assert_eq!(client.open(PORT, None), Err(CannotOpen::Exhausted));
    assert_eq!(Session::server(small()).open(PORT, None), Err(CannotOpen::NotClient));
}

#[test]
fn a_lost_carrier_ends_all_but_what_has_come_whole() {
    let mut pair = Pair::small();
    let (open, half, whole) = (pair.open(), pair.open(), pair.open());
    pair.client.finish(whole).unwrap();
    for stream in [half, whole] {
        pair.server.write(stream, b"answer").unwrap();
        pair.server.finish(stream).unwrap();
    }
    pair.flow();
    events(&mut pair.client);
    let unsent = pair.client.open(PORT, None).unwrap();
    pair.client.lost();
    assert_eq!(
        events(&mut pair.client),
        [
            Event::Ended(open, Ended::Carrier(Error::Lost)),
            Event::Ended(half, Ended::Carrier(Error::Lost)),
            Event::Ended(unsent, Ended::NeverSent(Error::Lost)),
        ]
    );
    assert!(pair.client.out().is_empty(), "what may be replayed is not sent as well");
    assert_eq!(drain(&mut pair.client, whole), (b"answer".to_vec(), true));
    assert!(pair.client.is_idle());
}

#[test]
fn a_server_that_has_written_nothing_has_still_taken_the_stream() {
    let (mut client, mut server) = (Session::client(small()), Session::server(small()));
    let stream = client.open(PORT, None).unwrap();
    carry(&mut client, &mut server).unwrap();
    assert_eq!(events(&mut server).len(), 2);
    server.lost();
    assert_eq!(events(&mut server), [Event::Ended(stream, Ended::Carrier(Error::Lost))]);
}

#[test]
fn an_open_that_was_written_in_part_may_have_arrived() {
    let mut pair = Pair::small();
    let (one, other) = (pair.client.open(PORT, None).unwrap(), pair.client.open(PORT, None).unwrap());
    pair.client.written(1);
    pair.client.lost();
    assert_eq!(
        events(&mut pair.client),
        [Event::Ended(one, Ended::Carrier(Error::Lost)), Event::Ended(other, Ended::NeverSent(Error::Lost)),]
    );
}

#[test]
fn after_a_breach_what_waits_may_still_be_sent_and_is_not_replayed() {
    let mut pair = Pair::small();
    let stream = pair.client.open(PORT, None).unwrap();
    let error = pair.client.receive(Time::default(), &[0; HEADER]).unwrap_err();
    assert!(!pair.client.out().is_empty());
    assert_eq!(events(&mut pair.client), [Event::Ended(stream, Ended::Carrier(error))]);
}

//! What ends a carrier, and how each breach is named.

use super::*;

/// A session that knows its peer, and, at the server, stream 1.
fn ready(role: Role) -> Session {
    let mut pair = Pair::small();
    pair.open();
    match role {
        Role::Client => pair.client,
        Role::Server => pair.server,
    }
}

fn raw(kind: u8, flags: u8, id: u32, payload: &[u8]) -> Vec<u8> {
    let [high, low] = (payload.len() as u16).to_be_bytes();
    [&[kind, flags, high, low], &id.to_be_bytes()[..], payload].concat()
}

fn setting(number: u16, value: u32) -> Vec<u8> {
    [&number.to_be_bytes()[..], &value.to_be_bytes()].concat()
}

#[test]
fn every_breach_is_named_and_the_peer_told() {
    use Role::{Client, Server};
    let window = |credit| bytes_of(&[Frame::Window { id: 1, credit }]);
    let open = |id| bytes_of(&[Frame::Open { id, port: PORT, protocol: None }]);
    let away = |last, code| bytes_of(&[Frame::GoAway { last, why: Away::from_code(code) }]);
    let refused = |reason: &str| bytes_of(&[Frame::Refused { id: 1, reason: reason.into() }]);
    let malformed = |kind| (Error::Malformed(kind), Away::Protocol);
    let cases = [
        (Server, bytes_of(&[Frame::Settings(Settings::INITIAL)]), (Error::SettingsTwice, Away::Protocol)),
        (Server, raw(0, 0, 0, b""), (Error::UnknownFrame(0), Away::Protocol)),
        (Server, raw(9, 0, 1, b"?"), (Error::UnknownFrame(9), Away::Protocol)),
        (Server, raw(0x80, 0, 1, &[0; MAX_PAYLOAD + 1]), (Error::UnknownFrame(0x80), Away::Protocol)),
        (Server, raw(1, 0, 1, b""), malformed(Kind::Settings)),
        (Server, raw(1, 1, 0, b""), malformed(Kind::Settings)),
        (Server, raw(1, 0, 0, &[0; 7]), malformed(Kind::Settings)),
        (Server, raw(1, 0, 0, &[0; 33 * 6]), malformed(Kind::Settings)),
        (Server, raw(2, 0, 0, &[0, 80, 0]), malformed(Kind::Open)),
        (Server, raw(2, 1, 2, &[0, 80, 0]), malformed(Kind::Open)),
        (Server, raw(2, 0, 2, &[0, 0, 0]), malformed(Kind::Open)),
        (Server, raw(2, 0, 2, &[0, 80, 3]), malformed(Kind::Open)),
        (Server, raw(2, 0, 2, &[0, 80]), malformed(Kind::Open)),
        (Server, raw(2, 0, 2, &[0, 80, 0, 0]), malformed(Kind::Open)),
        (Server, raw(3, 0, 0, b"x"), malformed(Kind::Data)),
        (Server, raw(3, 2, 1, b"x"), malformed(Kind::Data)),
        (Server, raw(3, 0, 1, &[0; MAX_PAYLOAD + 1]), malformed(Kind::Data)),
        (Server, raw(4, 0, 1, &[0; 3]), malformed(Kind::Window)),
        (Server, raw(4, 0, 0, &[0, 0, 9, 0]), malformed(Kind::Window)),
        (Server, raw(4, 0, 1, &[0; 4]), malformed(Kind::Window)),
        (Server, raw(5, 0, 1, b""), malformed(Kind::Reset)),
        (Server, raw(5, 0, 1, &[0, b'x']), malformed(Kind::Reset)),
        (Client, raw(5, 0, 1, &[1, b'\n']), malformed(Kind::Reset)),
        (Client, raw(5, 0, 1, &[1, 0xff]), malformed(Kind::Reset)),
        (Client, raw(5, 0, 1, &[1; 130]), malformed(Kind::Reset)),
        (Server, raw(6, 0, 0, &[0; 7]), malformed(Kind::Ping)),
        (Server, raw(6, 0, 1, &[0; 8]), malformed(Kind::Ping)),
        (Server, raw(7, 0, 0, &[0; 9]), malformed(Kind::Pong)),
        (Server, raw(8, 0, 0, &[0; 4]), malformed(Kind::GoAway)),
        (Server, data(2, b"x", 0), (Error::NeverOpened(Kind::Data), Away::Protocol)),
        (Client, data(2, b"x", 0), (Error::NeverOpened(Kind::Data), Away::Protocol)),
        (Client, open(1), (Error::OpenByServer, Away::Protocol)),
        (Server, open(1), (Error::OpenOrder, Away::Protocol)),
        (Server, open(3), (Error::OpenOrder, Away::Protocol)),
        (Server, [away(0, 0), open(2)].concat(), (Error::OpenAfterGoAway, Away::Protocol)),
        (Server, [data(1, b"x", FIN), data(1, b"x", 0)].concat(), (Error::AfterEnd, Away::Protocol)),
        (Server, refused("no"), (Error::RefusedLate, Away::Protocol)),
        (Client, [data(1, b"x", 0), refused("no")].concat(), (Error::RefusedLate, Away::Protocol)),
        (Client, [data(1, b"x", 0), away(0, 0)].concat(), (Error::RefusedLate, Away::Protocol)),
        (Client, away(2, 0), (Error::GoAwayTooHigh, Away::Protocol)),
        (Client, [away(0, 0), away(1, 0)].concat(), (Error::GoAwayTooHigh, Away::Protocol)),
        (Server, away(1, 0), (Error::GoAwayTooHigh, Away::Protocol)),
        (Server, window(4096), (Error::Credit, Away::FlowControl)),
        (Server, data(1, &[0; 16_000], 0).repeat(2), (Error::Window, Away::FlowControl)),
    ];
    for (role, bytes, (error, told)) in cases {
        let mut session = ready(role);
        let result = session.receive(Time::default(), &bytes);
        assert_eq!(result, Err(error), "{}", bytes[..bytes.len().min(32)].escape_ascii());
        let last = if role == Server { session.last } else { 0 };
        assert_eq!(session.out(), bytes_of(&[Frame::GoAway { last, why: told }]));
        is_dead(session, error);
    }
}

/// Streams are over, nothing more is taken, and the reason stays.
fn is_dead(mut session: Session, error: Error) {
    assert_eq!(session.error(), Some(error));
    assert_eq!(session.receive(Time::default(), b""), Err(error));
    let told = events(&mut session);
    assert!(told.iter().all(|event| matches!(event, Event::Ended(..) | Event::GoAway(_))), "{told:?}");
    assert_eq!(session.streams(), 0);
    assert_eq!(session.write(id(1), b"x"), Err(Gone));
    assert_eq!(session.chunk(id(1)), Chunk::Gone);
    if session.role == Role::Client {
        assert_eq!(session.open(PORT, None), Err(CannotOpen::Dead(error)));
    }
    session.lost();
    assert_eq!(session.error(), Some(error), "the first reason stays");
    assert!(session.out().is_empty());
}

#[test]
fn settings_come_first_and_within_their_ranges() {
    let cases = [
        (vec![], Ok(())),
        (setting(99, 7), Ok(())),
        ([setting(99, 7), setting(99, 8)].concat(), Ok(())),
        (setting(1, u32::MAX), Ok(())),
        (setting(2, 0), Err(Error::Setting(2, 0))),
        ([setting(2, 9), setting(2, 9)].concat(), Err(Error::Setting(2, 9))),
        (setting(3, 4095), Err(Error::Setting(3, 4095))),
        (setting(3, (1 << 30) + 1), Err(Error::Setting(3, (1 << 30) + 1))),
        (setting(4, 4097), Err(Error::Setting(3, 4096))),
        (setting(4, 4095), Err(Error::Setting(4, 4095))),
        ([setting(3, 4095), setting(4, 4095)].concat(), Err(Error::Setting(4, 4095))),
        ([setting(4, 4097), setting(3, 4097)].concat(), Ok(())),
        (setting(5, (1 << 30) + 1), Err(Error::Setting(5, (1 << 30) + 1))),
    ];
    for (payload, expected) in cases {
        let mut session = Session::client(small());
        assert_eq!(session.receive(Time::default(), &raw(1, 0, 0, &payload)), expected, "{payload:?}");
    }
    for frame in [Frame::Ping(1), Frame::Open { id: 1, port: PORT, protocol: None }] {
        let mut session = Session::server(small());
        assert_eq!(session.receive(Time::default(), &bytes_of(&[frame])), Err(Error::NoSettings));
    }
    let mut session = Session::server(small());
    assert_eq!(session.receive(Time::default(), &raw(0x99, 0, 0, b"")), Err(Error::NoSettings));
}

#[test]
fn an_unknown_type_that_may_be_ignored_is_skipped_however_it_is_split() {
    let bytes = [raw(0x80, 0xff, 77, &[3; 1000]), data(1, b"x", 0)].concat();
    for size in [1, 7, 8, 9, 2000] {
        let mut session = ready(Role::Server);
        for some in bytes.chunks(size) {
            session.receive(Time::default(), some).unwrap();
        }
        assert_eq!(events(&mut session), [Event::Readable(id(1))]);
        assert_eq!(drain(&mut session, id(1)), (b"x".to_vec(), false));
    }
}

/// The frames of one turn.
type Frames<'a> = &'a dyn Fn(u32) -> Vec<u8>;

#[test]
fn a_flood_is_named_and_a_slow_trickle_is_none() {
    let pair = |number: u32| -> Vec<u8> {
        bytes_of(&[
            Frame::Open { id: number + 2, port: PORT, protocol: None },
            Frame::Reset { id: number + 2, code: Code::Cancelled },
        ])
    };
    let same = |bytes: Vec<u8>| move |_: u32| bytes.clone();
    let cases: [(Flood, u32, Frames<'_>); 7] = [
        (Flood::Resets, small().resets, &pair),
        (Flood::Pings, 100, &same(bytes_of(&[Frame::Ping(1)]))),
        (Flood::Pings, 100, &same(bytes_of(&[Frame::Pong(1)]))),
        (Flood::Empty, 100, &same(data(1, b"", 0))),
        (Flood::Ignored, 2000, &same(raw(0x80, 0, 0, b""))),
        (Flood::GoAways, 10, &same(bytes_of(&[Frame::GoAway { last: 0, why: Away::Drain }]))),
        (Flood::Opens, 2000, &|number| {
            bytes_of(&[Frame::Open { id: number + 2, port: PORT, protocol: None }])
        }),
    ];
    for (flood, limit, frame) in cases {
        for (seconds, expected) in [(0, Err(Error::Flood(flood))), (1, Ok(()))] {
            let mut session = ready(Role::Server);
            // Those which fill the table are not over the limit of streams.
            let before = if flood == Flood::Opens { small().streams - 1 } else { 0 };
            for number in 0..before + limit {
                session.receive(Time::default(), &frame(number)).unwrap();
                session.written(usize::MAX);
            }
            let later = Time(Duration::from_secs(seconds));
            assert_eq!(session.receive(later, &frame(before + limit)), expected, "{flood:?}");
        }
    }
}

#[test]
fn little_credit_is_a_flood() {
    let mut pair = Pair::small();
    let stream = pair.open();
    pair.server.write(stream, &[0; 1000]).unwrap();
    let credit = bytes_of(&[Frame::Window { id: 1, credit: 1 }]);
    for _ in 0..100 {
        pair.server.receive(Time::default(), &credit).unwrap();
    }
    let flood = Err(Error::Flood(Flood::Credits));
    assert_eq!(pair.server.receive(Time::default(), &credit), flood);
}

#[test]
fn frames_for_what_is_over_are_a_flood_in_the_end() {
    let mut session = ready(Role::Server);
    session.reset(id(1), Code::Internal);
    let late = data(1, b"x", 0).repeat(1000);
    for _ in 0..100 {
        session.receive(Time::default(), &late).unwrap();
    }
    assert_eq!(session.receive(Time::default(), &late), Err(Error::Flood(Flood::Late)));
}

#[test]
fn a_peer_that_does_not_read_its_answers_is_dropped() {
    let mut session = ready(Role::Server);
    let pings = bytes_of(&[Frame::Ping(1)]).repeat(100);
    let error = (0..1000).find_map(|second| session.receive(Time(Duration::from_secs(second)), &pings).err());
    assert_eq!(error, Some(Error::Unread));
    assert!(session.out().len() <= small().out + (1 << 18) + 64, "{}", session.out().len());
}

#[test]
fn an_answered_stream_that_is_reset_is_no_flood() {
    let mut pair = Pair::small();
    for _ in 0..100 {
        let stream = pair.open();
        pair.server.write(stream, b"x").unwrap();
        pair.flow();
        pair.client.reset(stream, Code::Cancelled);
        pair.flow();
        events(&mut pair.client);
        assert_eq!(events(&mut pair.server), [Event::Ended(stream, Ended::Reset(Code::Cancelled))]);
    }
}

#[test]
fn a_peer_that_gives_up_says_why_and_gets_no_answer() {
    let mut pair = Pair::small();
    let (one, other) = (pair.open(), pair.client.open(PORT, None).unwrap());
    let bytes = bytes_of(&[Frame::GoAway { last: 1, why: Away::Flood }]);
    pair.client.written(usize::MAX);
    let error = Error::Peer(Away::Flood);
    assert_eq!(pair.client.receive(Time::default(), &bytes), Err(error));
    assert!(pair.client.out().is_empty());
    assert_eq!(
        events(&mut pair.client),
        [
            Event::GoAway(Away::Flood),
            Event::Ended(other, Ended::GoAway),
            Event::Ended(one, Ended::Carrier(error)),
        ]
    );
}

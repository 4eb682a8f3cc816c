//! The mux: a client and a server with any schedule between them against a model of streams, and one side alone against
//! bytes that nobody promises anything about.
//!
//! The first byte says which, the next ones choose limits, the rest is read as a list of things to do.

mod model;
mod script;
mod world;

use self::{script::Script, world::World};
use remora_core::{
    mux::{Event, Limits, Session, StreamId},
    time::{Duration, Time},
};

/// Something to do, again and again, until the input ends.
pub fn mux(data: &[u8]) {
    let mut script = Script::new(data);
    match script.byte().unwrap_or_default() % 4 {
        0 => stranger(&mut script),
        _ => World::new(&mut script).run(&mut script),
    }
}

/// Small, so that every bound is met.
fn limits(script: &mut Script<'_>) -> Limits {
    let choice = u32::from(script.byte().unwrap_or_default());
    Limits {
        streams: 1 + choice % 8,
        window: [4096, 10_000, 20_000, 100_000][(choice / 8 % 4) as usize],
        guaranteed: [4096, 6000][(choice / 32 % 2) as usize],
        shared: [0, 1000, 8000, 50_000][(choice / 64) as usize],
        ..Limits::default()
    }
}

/// One side, and a peer that sends anything: whole frames, broken ones, no frames at all.
fn stranger(script: &mut Script<'_>) {
    let limits = limits(script);
    let is_client = script.byte().unwrap_or_default().is_multiple_of(2);
    let mut session = if is_client { Session::client(limits) } else { Session::server(limits) };
    let mut streams = vec![];
    let mut now = Time::default();
    if !script.byte().unwrap_or_default().is_multiple_of(8) {
        assert_eq!(session.receive(now, &[1, 0, 0, 0, 0, 0, 0, 0]), Ok(()), "SETTINGS of nothing are fine");
    }
    while let Some(act) = script.byte() {
        let stream = script.pick(&streams);
        match (act % 16, stream) {
            (0, _) => streams.extend(session.open(script.port(), script.protocol())),
            (1, Some(stream)) => _ = session.write(stream, &vec![0; script.length()]),
            (2, Some(stream)) => _ = session.read(stream, &mut vec![0; script.length()]),
            (3, Some(stream)) => _ = session.finish(stream),
            (4, Some(stream)) => session.reset(stream, script.code()),
            (5, Some(stream)) => _ = session.refuse(stream, "no"),
            (6, _) => session.written(script.length()),
            (7, _) => session.written(usize::MAX),
            (8, _) => now = now + Duration::from_millis(script.length() as u64),
            (9, _) => session.release(),
            (10, _) => _ = session.receive(now, script.bytes()),
            (11, _) if act > 250 => session.lost(),
            (11, _) if act > 220 => session.go_away(),
            _ => {
                let frame = script.frame();
                let (first, rest) = frame.split_at(frame.len().min(script.length()));
                let before = session.error();
                let result = session.receive(now, first).and_then(|()| session.receive(now, rest));
                assert_eq!(result.err(), session.error());
                assert!(before.is_none() || before == session.error(), "the first error stays");
            }
        }
        is_within(&session, &limits);
        let mut told = 0;
        while let Some(event) = session.poll_event() {
            streams.extend(opened(&event));
            if let Event::Ended(stream, _) = event {
                streams.retain(|other| *other != stream);
            }
            told += 1;
            assert!(told < 100, "events without end: {event:?}");
        }
        streams.truncate(64);
    }
    session.lost();
    while session.poll_event().is_some() {}
    for stream in streams {
        session.reset(stream, script.code());
    }
    is_within(&session, &limits);
}

fn opened(event: &Event) -> Option<StreamId> {
    match event {
        Event::Opened { id, .. } => Some(*id),
        _ => None,
    }
}

fn is_within(session: &Session, limits: &Limits) {
    let (unread, most) = (session.unread(), limits.most_unread());
    assert!(unread <= most, "{unread} bytes are unread, of {most}");
    let (allocated, most) = (session.allocated(), limits.most_allocated());
    assert!(allocated <= most, "{allocated} bytes are allocated, of {most}");
    let (streams, most) = (session.streams(), limits.streams as usize);
    assert!(streams <= most, "{streams} streams, of {most}");
}

//! Every state of a stream and every frame that may meet it there. docs/mux.md prints the same table.

use super::*;

/// What a stream is at the side that receives, and how it got there.
#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Idle,
    Open,
    /// We sent the end.
    Finished,
    /// The peer sent the end.
    PeerFinished,
    /// Both did, and there are bytes to read.
    Both,
    /// Both did and everything is read; shared bytes that we sent are not credited.
    Held,
    /// Reset by either side, refused, or closed and read.
    Over,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Outcome {
    Taken,
    /// Counted and dropped.
    Late,
    Breach(&'static str),
}

use Outcome::{Breach, Late, Taken};

const FRAMES: [&str; 6] = ["OPEN", "DATA", "DATA, end", "WINDOW", "RESET", "REFUSED"];

/// At the server.
const AT_SERVER: [(State, &str, [Outcome; 6]); 7] = {
    let order = Breach("OpenOrder");
    let (after, never, refused) = (Breach("AfterEnd"), Breach("NeverOpened"), Breach("RefusedLate"));
    [
        (State::Idle, "idle", [Taken, never, never, never, never, refused]),
        (State::Open, "open", [order, Taken, Taken, Taken, Taken, refused]),
        (State::Finished, "finished by us", [order, Taken, Taken, Taken, Taken, refused]),
        (State::PeerFinished, "finished by the peer", [order, after, after, Taken, Taken, refused]),
        (State::Both, "finished by both, unread", [order, after, after, Taken, Taken, refused]),
        (State::Held, "finished by both, uncredited", [order, after, after, Taken, Taken, refused]),
        (State::Over, "over", [order, Late, Late, Late, Late, refused]),
    ]
};

/// At the client. REFUSED is one for a stream that was answered in all states but the first two.
const AT_CLIENT: [(State, &str, [Outcome; 6]); 7] = {
    let open = Breach("OpenByServer");
    let (after, never, refused) = (Breach("AfterEnd"), Breach("NeverOpened"), Breach("RefusedLate"));
    [
        (State::Idle, "idle", [open, never, never, never, never, never]),
        (State::Open, "open", [open, Taken, Taken, Taken, Taken, Taken]),
        (State::Finished, "finished by us", [open, Taken, Taken, Taken, Taken, Taken]),
        (State::PeerFinished, "finished by the peer", [open, after, after, Taken, Taken, refused]),
        (State::Both, "finished by both, unread", [open, after, after, Taken, Taken, refused]),
        (State::Held, "finished by both, uncredited", [open, after, after, Taken, Taken, refused]),
        (State::Over, "over", [open, Late, Late, Late, Late, Late]),
    ]
};

fn session_in(role: Role, state: State) -> Session {
    let mut pair = Pair::small();
    if state == State::Idle {
        return if role == Role::Client { pair.client } else { pair.server };
    }
    let stream = pair.open();
    let (mut us, mut peer) =
        if role == Role::Client { (pair.client, pair.server) } else { (pair.server, pair.client) };
    // So that there is something to credit, in every state: more than the guaranteed part.
    if state != State::Over {
        assert_eq!(us.write(stream, &[0; 8000]), Ok(8000));
    }
    if matches!(state, State::Finished | State::Both | State::Held) {
        us.finish(stream).unwrap();
    }
    if matches!(state, State::PeerFinished | State::Both | State::Held) {
        peer.write(stream, b"x").unwrap();
        peer.finish(stream).unwrap();
    }
    carry(&mut peer, &mut us).unwrap();
    if state == State::Held {
        assert_eq!(drain(&mut us, stream), (b"x".to_vec(), true));
        assert_eq!(us.streams(), 1);
    }
    if state == State::Over {
        us.reset(stream, Code::Cancelled);
    }
    us.written(usize::MAX);
    events(&mut us);
    us
}

fn frame(name: &str) -> Vec<u8> {
    match name {
        "OPEN" => bytes_of(&[Frame::Open { id: 1, port: PORT, protocol: None }]),
        "DATA" => data(1, b"y", 0),
        "DATA, end" => data(1, b"y", FIN),
        "WINDOW" => bytes_of(&[Frame::Window { id: 1, credit: 5000 }]),
        "RESET" => bytes_of(&[Frame::Reset { id: 1, code: Code::Cancelled }]),
        "REFUSED" => bytes_of(&[Frame::Refused { id: 1, reason: "no".into() }]),
        other => panic!("{other}"),
    }
}

#[test]
fn every_frame_in_every_state_does_what_the_table_says() {
    for (role, table) in [(Role::Client, AT_CLIENT), (Role::Server, AT_SERVER)] {
        for (state, _, outcomes) in table {
            for (name, outcome) in FRAMES.iter().zip(outcomes) {
                let mut session = session_in(role, state);
                let streams = session.streams();
                let result = session.receive(Time::default(), &frame(name));
                let told = events(&mut session);
                let context = alloc::format!("{name} at the {role:?}, {state:?}: {result:?}, {told:?}");
                match outcome {
                    Taken => assert!(result.is_ok() && has_effect(state, name, &session, &told), "{context}"),
                    Late => {
                        assert!(result.is_ok() && told.is_empty(), "{context}");
                        assert_eq!(session.streams(), streams, "{context}");
                    }
                    Breach(error) => {
                        let named = alloc::format!("{:?}", result.unwrap_err());
                        assert!(named.starts_with(error), "{context}");
                    }
                }
            }
        }
    }
}

fn has_effect(state: State, name: &str, session: &Session, told: &[Event]) -> bool {
    match (name, state) {
        ("OPEN", _) => matches!(told, [Event::Opened { .. }]),
        ("DATA" | "DATA, end", _) => told == [Event::Readable(id(1))],
        ("WINDOW" | "RESET" | "REFUSED", State::Held) => told.is_empty() && session.is_idle(),
        ("WINDOW", _) => told.is_empty() && session.sending.spare() == 16_384,
        ("RESET" | "REFUSED", _) => matches!(told, [Event::Ended(..)]) && session.is_idle(),
        _ => false,
    }
}

#[test]
fn the_page_prints_the_tables() {
    let page = include_str!("../../../../docs/mux.md");
    for table in [AT_SERVER, AT_CLIENT] {
        for (_, name, outcomes) in table {
            let cells = outcomes.map(|outcome| match outcome {
                Taken => "taken".into(),
                Late => "late".into(),
                Breach(error) => alloc::format!("`{error}`"),
            });
            let row = alloc::format!("| {name} | {} |", cells.join(" | "));
            assert!(page.contains(&row), "docs/mux.md lacks the row\n{row}");
        }
    }
}

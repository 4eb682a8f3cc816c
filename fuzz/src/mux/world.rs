//! A client, a server, the bytes on their way, and what is checked of every call.

use super::{Script, is_within, limits, model::Stream};
use remora_core::{
    mux::{CannotOpen, Chunk, Ended, Event, Limits, Read, Session},
    time::{Duration, Time},
};

const CLIENT: usize = 0;
const SERVER: usize = 1;
/// So much is written in all, in bytes: more finds nothing else, and slowly.
const MOST_WRITTEN: usize = 400_000;
/// Under the bound on floods.
const MOST_PINGS: u64 = 90;

pub(super) struct World {
    sides: [Session; 2],
    limits: [Limits; 2],
    /// Bytes on their way to each side.
    wires: [Vec<u8>; 2],
    streams: Vec<Stream>,
    now: Time,
    written: usize,
    pings: [u64; 2],
    went_away: [bool; 2],
    lost: bool,
}

impl World {
    pub(super) fn new(script: &mut Script<'_>) -> Self {
        let limits = [limits(script), limits(script)];
        Self {
            sides: [Session::client(limits[CLIENT]), Session::server(limits[SERVER])],
            limits,
            wires: [vec![], vec![]],
            streams: vec![],
            now: Time::default(),
            written: 0,
            pings: [0; 2],
            went_away: [false; 2],
            lost: false,
        }
    }

    pub(super) fn run(mut self, script: &mut Script<'_>) {
        while let Some(act) = script.byte() {
            let side = usize::from(act >> 7);
            match act % 16 {
                0 | 1 => self.open(script),
                2..5 => self.write(side, script),
                5..7 => self.read(side, script),
                7 => self.finish(side, script),
                8 => self.give_up(side, script),
                9 | 10 => self.flush(side, script.length()),
                11 | 12 => self.deliver(side, script.length()),
                13 => _ = self.hear(side, 1 + script.length()),
                14 => self.release(side, script),
                _ if act == 255 => self.lose(),
                _ => self.rarely(side, script),
            }
            for (session, limits) in self.sides.iter().zip(&self.limits) {
                is_within(session, limits);
            }
        }
        self.settle();
        self.finish_all();
    }

    fn open(&mut self, script: &mut Script<'_>) {
        let (port, protocol) = (script.port(), script.protocol());
        match self.sides[CLIENT].open(port, protocol) {
            Ok(id) => {
                assert_eq!(id.get() as usize, self.streams.len() + 1);
                self.streams.push(Stream::new(id, port, protocol));
            }
            Err(CannotOpen::Full) => assert!(self.sides[CLIENT].streams() > 0),
            Err(CannotOpen::Draining) => assert!(self.sides[CLIENT].is_draining()),
            Err(CannotOpen::Dead(_)) => assert!(self.lost),
            Err(CannotOpen::Busy) => assert!(self.sides[CLIENT].out().len() >= self.limits[CLIENT].out),
            Err(error @ (CannotOpen::NotClient | CannotOpen::Exhausted)) => panic!("{error}"),
        }
    }

    /// A stream that this side uses, by its place.
    fn pick(&self, side: usize, script: &mut Script<'_>) -> Option<usize> {
        let used: Vec<usize> = (0..self.streams.len()).filter(|at| self.streams[*at].is_used(side)).collect();
        script.pick(&used)
    }

    fn write(&mut self, side: usize, script: &mut Script<'_>) {
        let Some(at) = self.pick(side, script) else { return };
        let count = script.length().min(MOST_WRITTEN - self.written);
        if !self.streams[at].ways[side].finished {
            self.written += count;
            self.streams[at].ways[side].debt += count;
        }
        self.pay(side, at);
    }

    /// Writes what is owed; says whether any of it was taken.
    fn pay(&mut self, side: usize, at: usize) -> bool {
        let stream = &mut self.streams[at];
        let (written, debt) = (stream.ways[side].written, stream.ways[side].debt);
        let data = stream.bytes(side, written, debt.min(40_000));
        let result = self.sides[side].write(stream.id, &data);
        let way = &mut stream.ways[side];
        let Ok(count) = result else {
            // What the session knows it may not have told yet.
            way.debt = 0;
            assert!(way.finished || self.may_be_over(at), "{}", self.streams[at].id.get());
            return false;
        };
        assert!(count <= debt && !way.finished);
        way.written += count;
        way.debt -= count;
        way.blocked = count == 0 && debt > 0;
        count > 0
    }

    /// Can it have ended before its time, whoever knows?
    fn may_be_over(&self, at: usize) -> bool {
        let stream = &self.streams[at];
        self.lost
            || stream.over != [false; 2]
            || stream.refused
            || self.went_away[SERVER]
            || !stream.knows[SERVER]
    }

    fn read(&mut self, side: usize, script: &mut Script<'_>) {
        if let Some(at) = self.pick(side, script) {
            let most = script.length();
            if most.is_multiple_of(2) {
                self.read_copy(side, at, most);
            } else {
                self.read_chunk(side, at, most);
            }
        }
    }

    fn read_copy(&mut self, side: usize, at: usize, most: usize) {
        let mut into = vec![0; most];
        match self.sides[side].read(self.streams[at].id, &mut into) {
            Read::Bytes(count) => {
                assert!(count > 0 || most == 0);
                self.has_read(side, at, &into[..count]);
            }
            Read::Wait => assert!(!self.streams[at].ways[1 - side].end_read),
            Read::End => self.has_read_end(side, at),
            Read::Gone => assert!(self.may_be_over(at)),
        }
    }

    fn read_chunk(&mut self, side: usize, at: usize, most: usize) {
        let id = self.streams[at].id;
        match self.sides[side].chunk(id) {
            Chunk::Bytes(bytes) => {
                assert!(!bytes.is_empty());
                let bytes = bytes[..most.min(bytes.len())].to_vec();
                self.sides[side].consume(id, bytes.len());
                self.has_read(side, at, &bytes);
            }
            Chunk::Wait => assert!(!self.streams[at].ways[1 - side].end_read),
            Chunk::End => self.has_read_end(side, at),
            Chunk::Gone => assert!(self.may_be_over(at)),
        }
    }

    fn has_read(&mut self, side: usize, at: usize, bytes: &[u8]) {
        let stream = &mut self.streams[at];
        let from = stream.ways[1 - side].read;
        assert!(bytes == stream.bytes(1 - side, from, bytes.len()), "another's bytes on {}", stream.id.get());
        let way = &mut stream.ways[1 - side];
        way.read += bytes.len();
        assert!(way.read <= way.written && !way.end_read);
    }

    fn has_read_end(&mut self, side: usize, at: usize) {
        let way = &mut self.streams[at].ways[1 - side];
        assert!(way.finished && way.read == way.written, "the end comes too early");
        way.end_read = true;
    }

    fn finish(&mut self, side: usize, script: &mut Script<'_>) {
        let Some(at) = self.pick(side, script) else { return };
        let finished = self.sides[side].finish(self.streams[at].id);
        if finished.is_err() {
            assert!(self.streams[at].ways[side].finished || self.may_be_over(at));
        } else {
            let way = &mut self.streams[at].ways[side];
            way.blocked = false;
            way.debt = 0;
            way.finished = true;
        }
    }

    /// Resets, refuses, or loses interest in writing without a word.
    fn give_up(&mut self, side: usize, script: &mut Script<'_>) {
        let Some(at) = self.pick(side, script) else { return };
        let stream = &mut self.streams[at];
        match script.byte().unwrap_or_default() % 4 {
            0 => stream.ways[side].debt = 0,
            1 => {
                let code = script.code();
                self.sides[side].reset(stream.id, code);
                stream.reset_with[side] = Some(code);
                stream.over[side] = true;
            }
            _ => {
                if self.sides[side].refuse(stream.id, "no room").is_ok() {
                    assert!(side == SERVER && !stream.is_processed());
                    stream.refused = true;
                    stream.over[side] = true;
                }
            }
        }
    }

    fn flush(&mut self, side: usize, most: usize) {
        let out = self.sides[side].out();
        let count = most.min(out.len());
        self.wires[1 - side].extend_from_slice(&out[..count]);
        self.sides[side].written(count);
    }

    fn deliver(&mut self, side: usize, most: usize) {
        if !self.lost {
            let count = most.min(self.wires[side].len());
            let bytes: Vec<u8> = self.wires[side].drain(..count).collect();
            let result = self.sides[side].receive(self.now, &bytes);
            assert_eq!(result, Ok(()), "an honest peer breaks no rule");
        }
    }

    fn rarely(&mut self, side: usize, script: &mut Script<'_>) {
        match script.byte().unwrap_or_default() {
            0..32 => {
                self.sides[side].go_away();
                self.went_away[side] = true;
            }
            32..128 if self.pings[side] < MOST_PINGS => {
                self.pings[side] += 1;
                self.sides[side].ping(self.pings[side]);
            }
            _ => self.now = self.now + Duration::from_secs(1),
        }
    }

    fn release(&mut self, side: usize, script: &mut Script<'_>) {
        if script.byte().unwrap_or_default().is_multiple_of(2) {
            self.sides[side].release();
        }
    }

    fn lose(&mut self) {
        self.lost = true;
        self.wires = [vec![], vec![]];
        for session in &mut self.sides {
            session.lost();
            assert!(session.out().is_empty());
        }
    }

    /// Hears up to so many events; those who are told that they may write do so. Says whether there was any.
    fn hear(&mut self, side: usize, most: usize) -> bool {
        for count in 0..most {
            match self.sides[side].poll_event() {
                Some(event) => self.heard(side, event),
                None => return count > 0,
            }
        }
        true
    }

    fn heard(&mut self, side: usize, event: Event) {
        match event {
            Event::Settings => {}
            Event::GoAway(_) => assert!(self.went_away[1 - side]),
            Event::Pong(number) => assert!(number <= self.pings[side]),
            Event::Opened { id, port, protocol } => {
                let stream = &mut self.streams[id.get() as usize - 1];
                assert!(side == SERVER && !stream.knows[SERVER]);
                assert_eq!((port, protocol), (stream.port, stream.protocol));
                stream.knows[SERVER] = true;
            }
            Event::Readable(id) => assert!(self.streams[id.get() as usize - 1].is_used(side)),
            Event::Writable(id) => {
                let at = id.get() as usize - 1;
                assert!(self.streams[at].is_used(side) && !self.streams[at].ways[side].finished);
                self.streams[at].ways[side].blocked = false;
                self.pay(side, at);
            }
            Event::Ended(id, ended) => self.is_over(side, id.get() as usize - 1, &ended),
        }
    }

    fn is_over(&mut self, side: usize, at: usize, ended: &Ended) {
        let stream = &mut self.streams[at];
        assert!(stream.is_used(side), "{ended:?} for one that is over");
        stream.over[side] = true;
        match ended {
            Ended::Reset(code) => assert_eq!(stream.reset_with[1 - side], Some(*code)),
            Ended::Refused(reason) if &**reason == "no room" => assert!(stream.refused),
            Ended::Refused(reason) => {
                assert_eq!((&**reason, stream.knows[SERVER]), ("too many streams", false));
            }
            Ended::GoAway => assert!(self.went_away[SERVER] && !stream.knows[SERVER]),
            Ended::NeverSent(_) => assert!(self.lost && !stream.knows[SERVER]),
            Ended::Carrier(_) => assert!(self.lost),
        }
        if ended.is_unprocessed() {
            assert!(side == CLIENT && !stream.is_processed());
        }
    }

    /// Everybody writes what he owes and reads what there is, until nothing moves. Then all has arrived.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            let mut moved = false;
            for side in [CLIENT, SERVER] {
                for at in 0..self.streams.len() {
                    while self.streams[at].is_used(side)
                        && self.streams[at].ways[side].debt > 0
                        && !self.streams[at].ways[side].blocked
                        && self.pay(side, at)
                    {
                        moved = true;
                    }
                }
                moved |= self.hear(side, usize::MAX);
                self.flush(side, usize::MAX);
                moved |= !self.wires[1 - side].is_empty();
                self.deliver(1 - side, usize::MAX);
                moved |= self.hear(1 - side, usize::MAX);
                for at in 0..self.streams.len() {
                    if self.streams[at].is_used(side) && !self.streams[at].ways[1 - side].end_read {
                        let before = self.streams[at].ways[1 - side].read;
                        self.read_copy(side, at, 1 << 20);
                        let way = &self.streams[at].ways[1 - side];
                        moved |= way.read > before || way.end_read;
                    }
                }
                moved |= self.sides[side].wants_driver();
            }
            if !moved {
                return self.all_has_arrived();
            }
        }
        panic!("it goes on for ever");
    }

    fn all_has_arrived(&self) {
        for stream in self.streams.iter().filter(|stream| stream.over == [false; 2]) {
            let id = stream.id.get();
            for side in [CLIENT, SERVER] {
                let way = &stream.ways[side];
                // After a loss only what has come whole is still there; the client may have been through with it.
                assert!(self.lost || way.debt == 0, "{} bytes of {id} wait for ever", way.debt);
                assert!(self.lost || way.read == way.written, "{} of {} on {id}", way.read, way.written);
                assert!(self.lost || way.end_read == way.finished, "the end of {id} is missing");
            }
        }
        for stream in &self.streams {
            // One side knows that it is over, so the other does.
            let is_one_sided = stream.is_used(CLIENT) != stream.is_used(SERVER);
            assert!(!is_one_sided || half_over(stream));
        }
    }

    /// Then everybody ends what he has, and nothing is left on either side.
    fn finish_all(&mut self) {
        for side in [CLIENT, SERVER] {
            for at in 0..self.streams.len() {
                if self.streams[at].is_used(side) && !self.streams[at].ways[side].finished {
                    let finished = self.sides[side].finish(self.streams[at].id);
                    assert_eq!(finished, Ok(()));
                    self.streams[at].ways[side].finished = true;
                    self.streams[at].ways[side].blocked = false;
                }
            }
        }
        self.settle();
        for session in &mut self.sides {
            assert!(session.is_idle(), "{} streams are left", session.streams());
            assert_eq!(session.unread(), 0);
            session.release();
            assert_eq!(session.allocated(), 0, "memory is left");
        }
    }
}

/// Open one way: used by the one who has yet to end it.
fn half_over(stream: &Stream) -> bool {
    stream.over == [false; 2] && stream.ways.iter().any(|way| !way.finished)
}

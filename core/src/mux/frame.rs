//! Frames as bytes: how they are written, and how they are taken out of a carrier that is split anywhere.
//!
//! A frame is a header of 8 bytes (type, flags, length of the payload, stream; big endian) and its payload. Control
//! frames are handed on whole; the payload of DATA as it comes, without a copy.

use super::{
    MAX_REASON,
    error::{Away, Code, Error, REFUSED},
};
use crate::header::SessionProtocol;
use alloc::{boxed::Box, vec::Vec};
use core::{fmt, num::NonZeroU16};

/// Bytes before every payload.
pub(super) const HEADER: usize = 8;
/// The longest payload, in bytes: with its header it fills one TLS record of 2^14.
pub(super) const MAX_PAYLOAD: usize = (1 << 14) - HEADER;
/// How many settings a peer may announce, known or not.
const MAX_SETTINGS: usize = 32;
/// One setting: its number (16 bits) and value (32 bits).
const SETTING: usize = 6;
/// DATA is the last of its direction.
pub(super) const FIN: u8 = 1;
/// A type with this bit may be skipped by whoever does not know it.
const MAY_BE_IGNORED: u8 = 0x80;

/// The types of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// First, and once: what the sender takes.
    Settings = 1,
    /// A new stream.
    Open = 2,
    /// Bytes of a stream.
    Data = 3,
    /// Bytes of a stream were taken out of its window.
    Window = 4,
    /// The end of a stream, both ways, now.
    Reset = 5,
    /// Are you there?
    Ping = 6,
    /// Yes.
    Pong = 7,
    /// No new streams; or the end.
    GoAway = 8,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Settings => "SETTINGS",
            Self::Open => "OPEN",
            Self::Data => "DATA",
            Self::Window => "WINDOW",
            Self::Reset => "RESET",
            Self::Ping => "PING",
            Self::Pong => "PONG",
            Self::GoAway => "GOAWAY",
        })
    }
}

/// What one side takes. Windows are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Settings {
    pub features: u32,
    pub streams: u32,
    pub window: u32,
    pub guaranteed: u32,
    pub shared: u32,
}

/// The least guaranteed window that may be announced, and what counts until SETTINGS come; in bytes.
pub(super) const LEAST_WINDOW: u32 = 4096;
/// The largest window, in bytes.
pub(super) const MAX_WINDOW: u32 = 1 << 30;

impl Settings {
    /// What is assumed of a peer until it has spoken.
    pub(super) const INITIAL: Self =
        Self { features: 0, streams: 64, window: LEAST_WINDOW, guaranteed: LEAST_WINDOW, shared: 0 };

    const fn numbered(&self) -> [(u16, u32); 5] {
        [(1, self.features), (2, self.streams), (3, self.window), (4, self.guaranteed), (5, self.shared)]
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let settings = self.numbered();
        header(out, Kind::Settings, 0, settings.len() * SETTING, 0);
        for (number, value) in settings {
            out.extend_from_slice(&number.to_be_bytes());
            out.extend_from_slice(&value.to_be_bytes());
        }
    }

    /// Unknown numbers are skipped; what is missing keeps its initial value.
    fn read(payload: &[u8]) -> Result<Self, Error> {
        let mut settings = Self::INITIAL;
        let mut seen = 0u8;
        let (entries, _whole) = payload.as_chunks::<SETTING>();
        for [high, low, a, b, c, d] in entries {
            let (number, value) = (u16::from_be_bytes([*high, *low]), u32::from_be_bytes([*a, *b, *c, *d]));
            let field = match number {
                1 => &mut settings.features,
                2 => &mut settings.streams,
                3 => &mut settings.window,
                4 => &mut settings.guaranteed,
                5 => &mut settings.shared,
                _unknown => continue,
            };
            *field = value;
            if seen & (1 << number) != 0 {
                return Err(Error::Setting(number, value));
            }
            seen |= 1 << number;
        }
        let Self { streams, window, guaranteed, shared, .. } = settings;
        if streams == 0 {
            Err(Error::Setting(2, streams))
        } else if window < guaranteed || window > MAX_WINDOW {
            Err(Error::Setting(3, window))
        } else if guaranteed < LEAST_WINDOW {
            Err(Error::Setting(4, guaranteed))
        } else if shared > MAX_WINDOW {
            Err(Error::Setting(5, shared))
        } else {
            Ok(settings)
        }
    }
}

/// A whole control frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    Settings(Settings),
    Open { id: u32, port: NonZeroU16, protocol: Option<SessionProtocol> },
    Window { id: u32, credit: u32 },
    Reset { id: u32, code: Code },
    Refused { id: u32, reason: Box<str> },
    Ping(u64),
    Pong(u64),
    GoAway { last: u32, why: Away },
}

/// What comes next out of a carrier.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece<'a> {
    Frame(Frame),
    /// A DATA frame begins; `length` bytes follow as [`Piece::Bytes`].
    Data {
        id: u32,
        length: usize,
        end: bool,
    },
    /// Some of the payload of the DATA frame that began last.
    Bytes(&'a [u8]),
    /// A frame of a type that may be ignored begins; its payload is swallowed.
    Ignored,
    /// Some of such a payload.
    Swallowed,
}

#[derive(Clone, Copy)]
struct Head {
    /// `None`: to be ignored.
    kind: Option<Kind>,
    flags: u8,
    length: usize,
    id: u32,
}

impl Head {
    /// Everything that the header alone can get wrong is refused before a byte of the payload is waited for.
    fn read([kind, flags, high, low, a, b, c, d]: [u8; HEADER]) -> Result<Self, Error> {
        let length = usize::from(u16::from_be_bytes([high, low]));
        let id = u32::from_be_bytes([a, b, c, d]);
        let (kind, lengths, flagged) = match kind {
            1 => (Kind::Settings, 0..=MAX_SETTINGS * SETTING, 0),
            2 => (Kind::Open, 3..=3, 0),
            3 => (Kind::Data, 0..=MAX_PAYLOAD, FIN),
            4 => (Kind::Window, 4..=4, 0),
            5 => (Kind::Reset, 1..=1 + MAX_REASON, 0),
            6 => (Kind::Ping, 8..=8, 0),
            7 => (Kind::Pong, 8..=8, 0),
            8 => (Kind::GoAway, 5..=5, 0),
            kind if kind & MAY_BE_IGNORED != 0 && length <= MAX_PAYLOAD => {
                return Ok(Self { kind: None, flags, length, id });
            }
            kind => return Err(Error::UnknownFrame(kind)),
        };
        let of_stream = matches!(kind, Kind::Open | Kind::Data | Kind::Window | Kind::Reset);
        let divides = kind != Kind::Settings || length % SETTING == 0;
        if lengths.contains(&length) && divides && flags & !flagged == 0 && (id != 0) == of_stream {
            Ok(Self { kind: Some(kind), flags, length, id })
        } else {
            Err(Error::Malformed(kind))
        }
    }

    fn frame(self, payload: &[u8]) -> Result<Frame, Error> {
        let id = self.id;
        match (self.kind, payload) {
            (Some(Kind::Settings), payload) => Settings::read(payload).map(Frame::Settings),
            (Some(Kind::Open), [high, low, protocol]) => {
                let port = NonZeroU16::new(u16::from_be_bytes([*high, *low]));
                let port = port.ok_or(Error::Malformed(Kind::Open))?;
                let protocol = match protocol {
                    0 => None,
                    1 => Some(SessionProtocol::Http1),
                    2 => Some(SessionProtocol::Http2),
                    _ => return Err(Error::Malformed(Kind::Open)),
                };
                Ok(Frame::Open { id, port, protocol })
            }
            (Some(Kind::Window), [a, b, c, d]) => match u32::from_be_bytes([*a, *b, *c, *d]) {
                0 => Err(Error::Malformed(Kind::Window)),
                credit => Ok(Frame::Window { id, credit }),
            },
            (Some(Kind::Reset), [REFUSED, reason @ ..]) => match core::str::from_utf8(reason) {
                Ok(reason) if reason.bytes().all(is_printable) => {
                    Ok(Frame::Refused { id, reason: reason.into() })
                }
                _ => Err(Error::Malformed(Kind::Reset)),
            },
            (Some(Kind::Reset), [code]) => Ok(Frame::Reset { id, code: Code::from_code(*code) }),
            (Some(Kind::Ping), payload) => Ok(Frame::Ping(number(payload))),
            (Some(Kind::Pong), payload) => Ok(Frame::Pong(number(payload))),
            (Some(Kind::GoAway), [a, b, c, d, code]) => {
                Ok(Frame::GoAway { last: u32::from_be_bytes([*a, *b, *c, *d]), why: Away::from_code(*code) })
            }
            (kind, _) => Err(Error::Malformed(kind.unwrap_or(Kind::Data))),
        }
    }
}

/// Text that may stand in a log and a header.
pub(super) fn is_printable(byte: u8) -> bool {
    (b' '..=b'~').contains(&byte)
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Takes frames out of bytes that are split anywhere.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    /// The beginning of a header or of a control frame, if the last bytes ended within: at most that long.
    partial: Vec<u8>,
    /// Bytes of a payload that are still to come.
    remaining: usize,
    /// That payload is of no use to us.
    swallow: bool,
}

impl Decoder {
    /// Bytes of the DATA frame that began last that have not come yet.
    pub(super) fn remaining(&self) -> usize {
        if self.swallow { 0 } else { self.remaining }
    }

    /// Takes the next piece off the front of `bytes`; `None` means that all was taken and more is needed.
    pub(super) fn next<'a>(&mut self, bytes: &mut &'a [u8]) -> Result<Option<Piece<'a>>, Error> {
        if self.remaining > 0 {
            let taken = take(bytes, self.remaining);
            self.remaining -= taken.len();
            return Ok(match (taken, self.swallow) {
                ([], _) => None,
                (_, true) => Some(Piece::Swallowed),
                (taken, false) => Some(Piece::Bytes(taken)),
            });
        }
        if self.partial.is_empty()
            && let Some((head, rest)) = bytes.split_first_chunk()
        {
            let head = Head::read(*head)?;
            if let Some(piece) = self.begin(head) {
                *bytes = rest;
                return Ok(Some(piece));
            }
            if let Some((payload, rest)) = rest.split_at_checked(head.length) {
                *bytes = rest;
                return head.frame(payload).map(|frame| Some(Piece::Frame(frame)));
            }
        }
        self.collect(bytes)
    }

    /// The slow way: the header or the control frame is not whole.
    fn collect<'a>(&mut self, bytes: &mut &'a [u8]) -> Result<Option<Piece<'a>>, Error> {
        let missing = HEADER.saturating_sub(self.partial.len());
        let begins = missing > 0;
        self.partial.extend_from_slice(take(bytes, missing));
        let Some((head, had)) = self.partial.split_first_chunk() else { return Ok(None) };
        let had = had.len();
        let head = Head::read(*head)?;
        if begins && let Some(piece) = self.begin(head) {
            self.partial.clear();
            return Ok(Some(piece));
        }
        let missing = head.length.saturating_sub(had);
        self.partial.extend_from_slice(take(bytes, missing));
        match self.partial.get(HEADER..) {
            Some(payload) if payload.len() == head.length => {
                let frame = head.frame(payload);
                self.partial.clear();
                frame.map(|frame| Some(Piece::Frame(frame)))
            }
            _ => Ok(None),
        }
    }

    /// Frames whose payload is not waited for.
    fn begin<'a>(&mut self, head: Head) -> Option<Piece<'a>> {
        let piece = match head.kind {
            Some(Kind::Data) => Piece::Data { id: head.id, length: head.length, end: head.flags & FIN != 0 },
            None => Piece::Ignored,
            Some(_) => return None,
        };
        self.remaining = head.length;
        self.swallow = head.kind.is_none();
        Some(piece)
    }

    pub(super) fn release(&mut self) {
        self.partial.shrink_to_fit();
    }

    pub(super) fn allocated(&self) -> usize {
        self.partial.capacity()
    }
}

fn take<'a>(bytes: &mut &'a [u8], most: usize) -> &'a [u8] {
    let (taken, rest) = bytes.split_at_checked(most).unwrap_or((bytes, &[]));
    *bytes = rest;
    taken
}

/// `length` is at most [`MAX_PAYLOAD`], `flags` those of the kind.
pub(super) fn header(out: &mut Vec<u8>, kind: Kind, flags: u8, length: usize, id: u32) {
    let [high, low] = (length as u16).to_be_bytes();
    let [a, b, c, d] = id.to_be_bytes();
    out.extend_from_slice(&[kind as u8, flags, high, low, a, b, c, d]);
}

impl Frame {
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Settings(settings) => settings.write(out),
            Self::Open { id, port, protocol } => {
                header(out, Kind::Open, 0, 3, *id);
                out.extend_from_slice(&port.get().to_be_bytes());
                out.push(match protocol {
                    None => 0,
                    Some(SessionProtocol::Http1) => 1,
                    Some(SessionProtocol::Http2) => 2,
                });
            }
            Self::Window { id, credit } => {
                header(out, Kind::Window, 0, 4, *id);
                out.extend_from_slice(&credit.to_be_bytes());
            }
            Self::Reset { id, code } => {
                header(out, Kind::Reset, 0, 1, *id);
                out.push(code.code());
            }
            Self::Refused { id, reason } => {
                header(out, Kind::Reset, 0, 1 + reason.len(), *id);
                out.push(REFUSED);
                out.extend_from_slice(reason.as_bytes());
            }
            Self::Ping(number) | Self::Pong(number) => {
                let kind = if matches!(self, Self::Ping(_)) { Kind::Ping } else { Kind::Pong };
                header(out, kind, 0, 8, 0);
                out.extend_from_slice(&number.to_be_bytes());
            }
            Self::GoAway { last, why } => {
                header(out, Kind::GoAway, 0, 5, 0);
                out.extend_from_slice(&last.to_be_bytes());
                out.push(why.code());
            }
        }
    }
}

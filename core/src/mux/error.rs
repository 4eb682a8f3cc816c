//! What goes wrong with a carrier or a stream, and the numbers by which the peer is told. docs/mux.md.

use super::{flood::Flood, frame::Kind};
use alloc::boxed::Box;

/// Why a carrier is no longer of use. All but the last two are the peer's breach of `docs/mux.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A frame before the peer's SETTINGS.
    #[error("the first frame is not SETTINGS")]
    NoSettings,
    /// SETTINGS come once.
    #[error("SETTINGS came twice")]
    SettingsTwice,
    /// A setting outside its range, or twice: its number and value.
    #[error("setting {0} cannot be {1}")]
    Setting(u16, u32),
    /// A type that is not known and must not be skipped.
    #[error("unknown frame type {0}")]
    UnknownFrame(u8),
    /// Length, flags, stream or contents that this type cannot have.
    #[error("malformed {0}")]
    Malformed(Kind),
    /// A frame on a stream that nobody has opened.
    #[error("{0} on a stream that was never opened")]
    NeverOpened(Kind),
    /// Only the client opens streams.
    #[error("the server opened a stream")]
    OpenByServer,
    /// Streams are opened in order, without gaps.
    #[error("OPEN out of order")]
    OpenOrder,
    /// OPEN after the client's GOAWAY.
    #[error("OPEN after GOAWAY")]
    OpenAfterGoAway,
    /// DATA behind the end of its stream.
    #[error("DATA after the end of its stream")]
    AfterEnd,
    /// REFUSED for a stream that was already answered, or by the client.
    #[error("REFUSED for a stream that was answered")]
    RefusedLate,
    /// GOAWAY names a stream that was not opened, or more than an earlier one.
    #[error("GOAWAY names too high a stream")]
    GoAwayTooHigh,
    /// More DATA than the stream's window.
    #[error("more DATA than the stream's window")]
    Window,
    /// More DATA than the guaranteed parts and the shared part allow together.
    #[error("more DATA than the carrier's shared window")]
    Shared,
    /// Credit for bytes that were never sent.
    #[error("credit for bytes that were not sent")]
    Credit,
    /// Too many frames of one cheap sort within a second.
    #[error("too many {0} in a second")]
    Flood(Flood),
    /// The peer does not read what we answer.
    #[error("the peer sends, but does not read")]
    Unread,
    /// The peer gave up, and said why.
    #[error("the peer ended the carrier: {0}")]
    Peer(Away),
    /// The connection below ended.
    #[error("the carrier was lost")]
    Lost,
}

impl Error {
    /// What the peer is told, if anything.
    pub(super) fn away(self) -> Option<Away> {
        match self {
            Self::Window | Self::Shared | Self::Credit => Some(Away::FlowControl),
            Self::Flood(_) | Self::Unread => Some(Away::Flood),
            Self::Peer(_) | Self::Lost => None,
            _ => Some(Away::Protocol),
        }
    }

    /// A fixed text for a metric's label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::NoSettings | Self::SettingsTwice | Self::Setting(..) => "settings",
            Self::UnknownFrame(_) => "unknown_frame",
            Self::Malformed(_) => "malformed",
            Self::NeverOpened(_)
            | Self::OpenByServer
            | Self::OpenOrder
            | Self::OpenAfterGoAway
            | Self::AfterEnd
            | Self::RefusedLate
            | Self::GoAwayTooHigh => "protocol",
            Self::Window | Self::Shared | Self::Credit => "flow_control",
            Self::Flood(_) | Self::Unread => "flood",
            Self::Peer(_) => "peer",
            Self::Lost => "lost",
        }
    }
}

/// Why somebody gives up a carrier: the code of GOAWAY.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Away {
    /// No error: open streams go on, new ones belong on another carrier.
    Drain,
    /// The other side broke the protocol.
    Protocol,
    /// The other side broke the rules of windows.
    FlowControl,
    /// The other side hit a bound on cheap frames.
    Flood,
    /// A later version's reason; an error.
    Other(u8),
}

impl Away {
    pub(super) const fn code(self) -> u8 {
        match self {
            Self::Drain => 0,
            Self::Protocol => 1,
            Self::FlowControl => 2,
            Self::Flood => 3,
            Self::Other(code) => code,
        }
    }

    pub(super) const fn from_code(code: u8) -> Self {
        match code {
            0 => Self::Drain,
            1 => Self::Protocol,
            2 => Self::FlowControl,
            3 => Self::Flood,
            code => Self::Other(code),
        }
    }
}

impl core::fmt::Display for Away {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Drain => f.write_str("drain"),
            Self::Protocol => f.write_str("protocol error"),
            Self::FlowControl => f.write_str("flow control error"),
            Self::Flood => f.write_str("flood"),
            Self::Other(code) => write!(f, "code {code}"),
        }
    }
}

/// Why one side gives up a stream: the code of RESET, but for REFUSED, which has a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// Whoever uses the stream ended it: its connection was reset, or it has lost interest.
    Cancelled,
    /// A failure of the proxy.
    Internal,
    /// Policy changed and no longer admits it.
    Revoked,
    /// Its time is up.
    TimedOut,
    /// A later version's reason.
    Other(u8),
}

/// The code of a RESET that means REFUSED.
pub(super) const REFUSED: u8 = 1;

impl Code {
    /// Other(1) would mean REFUSED and is written as Internal.
    pub(super) const fn code(self) -> u8 {
        match self {
            Self::Cancelled => 0,
            Self::Internal | Self::Other(REFUSED) => 2,
            Self::Revoked => 3,
            Self::TimedOut => 4,
            Self::Other(code) => code,
        }
    }

    pub(super) const fn from_code(code: u8) -> Self {
        match code {
            0 => Self::Cancelled,
            2 => Self::Internal,
            3 => Self::Revoked,
            4 => Self::TimedOut,
            code => Self::Other(code),
        }
    }
}

/// Why a stream ended before its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The server did not take it: nothing of it was processed. Its words, printable ASCII of at most
    /// [`MAX_REASON`](super::MAX_REASON) bytes.
    Refused(Box<str>),
    /// The server's GOAWAY leaves it out: nothing of it was processed.
    GoAway,
    /// The carrier ended before a byte of the stream was written to it.
    NeverSent(Error),
    /// The peer reset it.
    Reset(Code),
    /// The carrier ended; how much of the stream was processed is not known.
    Carrier(Error),
}

impl Ended {
    /// Is it certain that nothing of the stream was processed, so that it may be replayed elsewhere?
    pub const fn is_unprocessed(&self) -> bool {
        match self {
            Self::Refused(_) | Self::GoAway | Self::NeverSent(_) => true,
            Self::Reset(_) | Self::Carrier(_) => false,
        }
    }
}

/// Why a stream cannot be opened on this carrier; another one may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CannotOpen {
    /// Servers open none.
    #[error("only the dialling side opens streams")]
    NotClient,
    /// The carrier is dead.
    #[error("the carrier has ended: {0}")]
    Dead(Error),
    /// One side said GOAWAY.
    #[error("the carrier drains")]
    Draining,
    /// All ids were used.
    #[error("the carrier's stream ids are used up")]
    Exhausted,
    /// As many streams as the peer takes, or as we keep.
    #[error("the carrier has all the streams it may have")]
    Full,
    /// What is to be sent has reached its bound.
    #[error("the carrier's peer is slow to read")]
    Busy,
}

/// The stream is not there, or what was asked for has ended: finished by us, reset, or closed on both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stream has ended")]
pub struct Gone;

/// The stream cannot be refused any more: bytes of it were consumed, or it was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too late to refuse the stream")]
pub struct TooLate;

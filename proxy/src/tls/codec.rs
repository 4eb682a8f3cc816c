//! Both directions of a TLS 1.3 connection after its handshake, without its socket: records in and out, keys that follow
//! each other, tickets, alerts. Pure but for what rustls does with its own state. RFC 8446, 4.6, 5 and 6.

use super::records::{self, KEY_UPDATE, Late, MAX_CONTENT, OVERHEAD, Opening, Sealing};
#[cfg(planted)]
use remora_core::planted;
use rustls::{
    AlertDescription, ContentType, Error, ExtractedSecrets, InvalidMessage, PeerMisbehaved, Tls13CipherSuite,
    client::ClientConnectionData, kernel::KernelConnection, server::ServerConnectionData,
};

/// The most content that is sealed at once, in bytes.
pub const FLIGHT: usize = 8 * MAX_CONTENT;
/// Room for that, for a part of a record more, and for a KeyUpdate.
pub const SEALED: usize = FLIGHT + 16 * OVERHEAD;
/// Room for an alert, in bytes.
pub(super) const ALERT: usize = 2 + OVERHEAD;
/// Records without content in a row, warnings included, after which the peer is a nuisance. As rustls has it.
const MAX_EMPTY: u8 = 32;
/// Levels of alerts. RFC 8446, 6.
const WARNING: u8 = 1;
const FATAL: u8 = 2;

/// What rustls keeps of a connection whose records are ours: it makes the next keys and keeps tickets.
pub enum Kernel {
    Client(KernelConnection<ClientConnectionData>),
    Server(KernelConnection<ServerConnectionData>),
}

impl Kernel {
    fn suite(&self) -> Result<&'static Tls13CipherSuite, Error> {
        records::suite(match self {
            Self::Client(client) => client.negotiated_cipher_suite(),
            Self::Server(server) => server.negotiated_cipher_suite(),
        })
    }

    fn next_sealing(&mut self) -> Result<Sealing, Error> {
        Sealing::new(match self {
            Self::Client(client) => client.update_tx_secret(),
            Self::Server(server) => server.update_tx_secret(),
        }?)
    }

    fn next_opening(&mut self) -> Result<Opening, Error> {
        let secrets = match self {
            Self::Client(client) => client.update_rx_secret(),
            Self::Server(server) => server.update_rx_secret(),
        }?;
        Opening::new(self.suite()?, secrets)
    }

    fn ticket(&mut self, payload: &[u8]) -> Result<(), Error> {
        match self {
            Self::Client(client) => client.handle_new_session_ticket(payload),
            Self::Server(_) => Err(InvalidMessage::UnexpectedMessage("a client's ticket").into()),
        }
    }
}

/// The records of one connection.
pub struct Records {
    kernel: Kernel,
    sealing: Sealing,
    opening: Opening,
    /// The start of a record.
    partial: Vec<u8>,
    /// The start of a message of the handshake.
    late: Vec<u8>,
    empty: u8,
    /// The peer wants us to use our next key.
    asked: bool,
    /// The peer has said that it sends no more.
    ended: bool,
    /// What the peer did wrong. Nothing is opened after that: who could put bytes in between would choose which.
    broken: Option<Error>,
}

impl Records {
    /// After a handshake; `partial` has come with its end, as has the peer's last word if `ended`.
    pub(super) fn new(
        secrets: ExtractedSecrets,
        kernel: Kernel,
        partial: Vec<u8>,
        ended: bool,
    ) -> Result<Self, Error> {
        let opening = Opening::new(kernel.suite()?, secrets.rx)?;
        let sealing = Sealing::new(secrets.tx)?;
        Ok(Self {
            kernel,
            sealing,
            opening,
            partial,
            late: Vec::new(),
            empty: 0,
            asked: false,
            ended,
            broken: None,
        })
    }

    /// Whether this side dialled.
    pub fn is_client(&self) -> bool {
        matches!(self.kernel, Kernel::Client(_))
    }

    /// Whether the peer has said that it sends no more.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// What came last and is not yet whole: less than a record. What comes next belongs behind it.
    pub fn partial(&self) -> &[u8] {
        &self.partial
    }

    /// The next key of ours is used from the next record on.
    pub fn use_next_key(&mut self) {
        self.asked = true;
    }

    /// Seals up to [`FLIGHT`] bytes of `pieces` at the start of `out`, which has [`SEALED`]: how many bytes were taken, and
    /// how many they became.
    pub fn seal(&mut self, pieces: &[&[u8]], out: &mut [u8]) -> Result<(usize, usize), Error> {
        let (mut taken, mut length) = (0, 0);
        if self.asked || self.sealing.is_old() {
            length += self.sealing.seal(ContentType::Handshake, &KEY_UPDATE, out)?;
            self.asked = false;
            self.sealing = self.kernel.next_sealing()?;
        }
        let typ = ContentType::ApplicationData;
        let mut pieces = Pieces::new(pieces);
        while taken < FLIGHT {
            let room = out.get_mut(length..).unwrap_or_default();
            let (content, sealed) = match pieces.next(MAX_CONTENT) {
                Next::None => break,
                Next::One(content) => (content.len(), self.sealing.seal(typ, content, room)?),
                Next::Several(several) => {
                    let content = several.iter().map(|piece| piece.len()).sum();
                    (content, self.sealing.seal_pieces(typ, &several, room)?)
                }
            };
            taken += content;
            length += sealed;
        }
        Ok((taken, length))
    }

    /// Says that we send no more, as a record in `out`. RFC 8446, 6.1.
    pub(super) fn close(&mut self, out: &mut [u8; ALERT]) -> Result<(), Error> {
        self.sealing.seal(ContentType::Alert, &[WARNING, AlertDescription::CloseNotify.into()], out).map(drop)
    }

    /// Says why this is the end, as a record in `out`. `None` if it is the peer who has said so. RFC 8446, 6.2.
    pub(super) fn fail(&mut self, error: &Error, out: &mut [u8; ALERT]) -> Option<()> {
        let what = match error {
            Error::AlertReceived(_) => return None,
            Error::DecryptError => AlertDescription::BadRecordMac,
            Error::PeerSentOversizedRecord => AlertDescription::RecordOverflow,
            Error::InvalidMessage(_) => AlertDescription::DecodeError,
            _ => AlertDescription::UnexpectedMessage,
        };
        self.sealing.seal(ContentType::Alert, &[FATAL, what.into()], out).ok().map(drop)
    }

    /// Opens all that is whole of `sealed` in its place, hands on what is the application's, and keeps the rest. `sealed`
    /// begins with what was [`partial`](Self::partial). After an error nothing is opened any more, and it is returned again.
    pub fn open(&mut self, sealed: &mut [u8], take: impl FnMut(&[u8])) -> Result<(), Error> {
        if let Some(error) = &self.broken {
            return Err(error.clone());
        }
        let used = self.open_whole(sealed, take).inspect_err(|error| self.broken = Some(error.clone()))?;
        let rest = sealed.get(used..).unwrap_or_default();
        #[cfg(planted)]
        let rest = if planted::makes(planted::Mistake::PartialIsForgotten) { &[][..] } else { rest };
        if rest.is_empty() {
            self.partial = Vec::new();
        } else {
            self.partial.clear();
            self.partial.extend_from_slice(rest);
        }
        Ok(())
    }

    /// Returns how many bytes the records took that were whole.
    fn open_whole(&mut self, sealed: &mut [u8], mut take: impl FnMut(&[u8])) -> Result<usize, Error> {
        let mut used = 0;
        while !self.ended
            && let Some((length, message)) = self.opening.open(sealed.get_mut(used..).unwrap_or_default())?
        {
            used += length;
            match message.typ {
                // Within a message of the handshake nothing else may come. RFC 8446, 5.1.
                ContentType::ApplicationData | ContentType::Alert if !self.late.is_empty() => {
                    return Err(PeerMisbehaved::MessageInterleavedWithHandshakeMessage.into());
                }
                ContentType::ApplicationData => {
                    self.count_empty(message.payload.is_empty())?;
                    take(message.payload);
                }
                ContentType::Alert => self.alerted(message.payload)?,
                ContentType::Handshake => {
                    // A KeyUpdate costs us more than the peer: without data in between many are a nuisance.
                    self.count_empty(true)?;
                    self.late.extend_from_slice(message.payload);
                    self.late_messages()?;
                }
                other => {
                    return Err(Error::InappropriateMessage {
                        expect_types: vec![ContentType::ApplicationData],
                        got_type: other,
                    });
                }
            }
        }
        Ok(used)
    }

    fn count_empty(&mut self, is_empty: bool) -> Result<(), Error> {
        self.empty = if is_empty { self.empty + 1 } else { 0 };
        if self.empty > MAX_EMPTY { Err(PeerMisbehaved::TooManyEmptyFragments.into()) } else { Ok(()) }
    }

    fn alerted(&mut self, payload: &[u8]) -> Result<(), Error> {
        let [level, what] = payload else { return Err(InvalidMessage::InvalidContentType.into()) };
        match AlertDescription::from(*what) {
            AlertDescription::CloseNotify => {
                self.ended = true;
                Ok(())
            }
            AlertDescription::UserCanceled if *level == WARNING => self.count_empty(true),
            other => Err(Error::AlertReceived(other)),
        }
    }

    fn late_messages(&mut self) -> Result<(), Error> {
        let bytes = std::mem::take(&mut self.late);
        let mut rest = bytes.as_slice();
        while let Some((length, message)) = records::late(rest)? {
            rest = rest.get(length..).unwrap_or_default();
            match message {
                Late::Ticket(payload) => self.kernel.ticket(payload)?,
                // What follows is sealed with another key. RFC 8446, 5.1.
                Late::KeyUpdate { .. } if !rest.is_empty() => {
                    return Err(PeerMisbehaved::KeyEpochWithPendingFragment.into());
                }
                Late::KeyUpdate { asks } => {
                    self.opening = self.kernel.next_opening()?;
                    self.asked |= asks;
                }
            }
        }
        if !rest.is_empty() {
            self.late = rest.to_vec();
        }
        Ok(())
    }
}

/// The next content of a record.
enum Next<'a> {
    None,
    One(&'a [u8]),
    Several(Vec<&'a [u8]>),
}

/// What is left of pieces that become records.
struct Pieces<'a, 'b> {
    now: &'a [u8],
    later: &'b [&'a [u8]],
}

impl<'a, 'b> Pieces<'a, 'b> {
    fn new(pieces: &'b [&'a [u8]]) -> Self {
        Self { now: &[], later: pieces }
    }

    /// Up to `most` bytes, `most` if there are so many.
    fn next(&mut self, most: usize) -> Next<'a> {
        self.skip_empty();
        if self.now.is_empty() {
            return Next::None;
        }
        if self.now.len() >= most || self.later.is_empty() {
            return Next::One(self.take(most));
        }
        let (mut several, mut left) = (Vec::new(), most);
        while left > 0 && !self.now.is_empty() {
            let piece = self.take(left);
            left -= piece.len();
            #[cfg(planted)]
            if planted::makes(planted::Mistake::PiecesChangePlaces) {
                several.insert(0, piece);
                self.skip_empty();
                continue;
            }
            several.push(piece);
            self.skip_empty();
        }
        Next::Several(several)
    }

    fn take(&mut self, most: usize) -> &'a [u8] {
        let (now, rest) = self.now.split_at_checked(most).unwrap_or((self.now, &[]));
        self.now = rest;
        now
    }

    fn skip_empty(&mut self) {
        while self.now.is_empty()
            && let Some((first, rest)) = self.later.split_first()
        {
            (self.now, self.later) = (first, rest);
        }
    }
}

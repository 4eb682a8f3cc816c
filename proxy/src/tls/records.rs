//! TLS 1.3 records of an established connection: opened where they lie, sealed from where the bytes lie. RFC 8446, 5.
//! Decision 18. Pure but for the keys that come from rustls, which also opens: nonces, padding and lengths are its.

use aws_lc_rs::aead::{self, Aad, LessSafeKey, UnboundKey};
use rustls::{
    ConnectionTrafficSecrets, ContentType, Error, InvalidMessage, ProtocolVersion, SupportedCipherSuite,
    Tls13CipherSuite,
    crypto::cipher::{
        InboundOpaqueMessage, InboundPlainMessage, Iv, MessageDecrypter, Nonce, make_tls13_aad,
    },
};

/// The most content of a record, in bytes. RFC 8446, 5.1.
pub(super) const MAX_CONTENT: usize = 1 << 14;
/// What a record is longer than its content, in bytes: header, inner type and tag.
pub(super) const OVERHEAD: usize = HEADER + TRAILER;
const HEADER: usize = 5;
/// The inner type, and the tag of every suite of ours.
const TRAILER: usize = 1 + 16;
/// What may follow a header, in bytes. RFC 8446, 5.2.
const MAX_SEALED: usize = MAX_CONTENT + 256;
/// Records after which a sender takes its next key: half of what AES-GCM bears. RFC 8446, 5.5.
const OLD: u64 = 1 << 23;

/// The suite of an established connection of ours.
pub(super) fn suite(suite: SupportedCipherSuite) -> Result<&'static Tls13CipherSuite, Error> {
    suite.tls13().ok_or_else(|| unusable("it is not TLS 1.3"))
}

/// The keys of one direction, with the number of the next record.
pub(super) type Secrets = (u64, ConnectionTrafficSecrets);

/// Opens what the peer has sealed.
pub(super) struct Opening {
    decrypter: Box<dyn MessageDecrypter>,
    sequence: u64,
}

impl Opening {
    pub(super) fn new(suite: &Tls13CipherSuite, (sequence, secrets): Secrets) -> Result<Self, Error> {
        let (ConnectionTrafficSecrets::Aes128Gcm { key, iv }
        | ConnectionTrafficSecrets::Aes256Gcm { key, iv }
        | ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv }) = secrets
        else {
            return Err(unusable("its suite is not known"));
        };
        Ok(Self { decrypter: suite.aead_alg.decrypter(key, iv), sequence })
    }

    /// Opens the first record of `sealed` in its place: how many bytes it took, and its content. `None`: it is not whole.
    pub(super) fn open<'a>(
        &mut self,
        sealed: &'a mut [u8],
    ) -> Result<Option<(usize, InboundPlainMessage<'a>)>, Error> {
        let Some((header, rest)) = sealed.split_first_chunk_mut::<HEADER>() else { return Ok(None) };
        let [typ, major, minor, high, low] = *header;
        let typ = ContentType::from(typ);
        // Nothing travels unsealed any more, alerts neither. RFC 8446, 5.2.
        if typ != ContentType::ApplicationData {
            return Err(Error::InappropriateMessage {
                expect_types: vec![ContentType::ApplicationData],
                got_type: typ,
            });
        }
        // Part of the additional data, which rustls makes anew: another one would go unnoticed. RFC 8446, 5.2.
        if [major, minor] != [3, 3] {
            return Err(InvalidMessage::UnknownProtocolVersion.into());
        }
        let length = usize::from(u16::from_be_bytes([high, low]));
        if length > MAX_SEALED {
            return Err(Error::PeerSentOversizedRecord);
        }
        let Some((payload, _)) = rest.split_at_mut_checked(length) else { return Ok(None) };
        let message = InboundOpaqueMessage::new(typ, ProtocolVersion::TLSv1_2, payload);
        let opened = self.decrypter.decrypt(message, self.sequence)?;
        self.sequence += 1;
        Ok(Some((HEADER + length, opened)))
    }
}

/// Seals what is sent.
pub(super) struct Sealing {
    key: LessSafeKey,
    iv: Iv,
    sequence: u64,
}

impl Sealing {
    pub(super) fn new((sequence, secrets): Secrets) -> Result<Self, Error> {
        let (algorithm, key, iv) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&aead::AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&aead::AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&aead::CHACHA20_POLY1305, key, iv),
            _ => return Err(unusable("its suite is not known")),
        };
        let key = UnboundKey::new(algorithm, key.as_ref()).map_err(|_| Error::EncryptError)?;
        Ok(Self { key: LessSafeKey::new(key), iv, sequence })
    }

    /// Whether it is time for the next key.
    pub(super) fn is_old(&self) -> bool {
        self.sequence >= OLD
    }

    /// Seals up to [`MAX_CONTENT`] bytes as one record at the start of `out`, and says how long it is: [`OVERHEAD`] more
    /// than its content.
    pub(super) fn seal(&mut self, typ: ContentType, content: &[u8], out: &mut [u8]) -> Result<usize, Error> {
        self.record(typ, content.len(), out, |key, nonce, aad, body, trailer| {
            key.seal_out_of_place_scatter(nonce, aad, content, body, &[typ.into()], trailer)
        })
    }

    /// As [`seal`](Self::seal), of `pieces` that together have at most [`MAX_CONTENT`] bytes.
    pub(super) fn seal_pieces(
        &mut self,
        typ: ContentType,
        pieces: &[&[u8]],
        out: &mut [u8],
    ) -> Result<usize, Error> {
        let length = pieces.iter().map(|piece| piece.len()).sum();
        self.record(typ, length, out, |key, nonce, aad, body, trailer| {
            let mut rest = &mut *body;
            for piece in pieces {
                let (now, later) =
                    rest.split_at_mut_checked(piece.len()).ok_or(aws_lc_rs::error::Unspecified)?;
                now.copy_from_slice(piece);
                rest = later;
            }
            key.seal_in_place_scatter(nonce, aad, body, &[typ.into()], trailer)
        })
    }

    fn record(
        &mut self,
        typ: ContentType,
        length: usize,
        out: &mut [u8],
        seal: impl FnOnce(
            &LessSafeKey,
            aead::Nonce,
            Aad<[u8; HEADER]>,
            &mut [u8],
            &mut [u8],
        ) -> Result<(), aws_lc_rs::error::Unspecified>,
    ) -> Result<usize, Error> {
        debug_assert!(typ != ContentType::ChangeCipherSpec && length <= MAX_CONTENT);
        let (header, rest) = out.split_first_chunk_mut::<HEADER>().ok_or(Error::EncryptError)?;
        let (body, rest) = rest.split_at_mut_checked(length).ok_or(Error::EncryptError)?;
        let (trailer, _) = rest.split_at_mut_checked(TRAILER).ok_or(Error::EncryptError)?;
        // A record's additional data is its header. RFC 8446, 5.2.
        *header = make_tls13_aad(length + TRAILER);
        let nonce = aead::Nonce::assume_unique_for_key(Nonce::new(&self.iv, self.sequence).0);
        // Before the key is used, so that no number is ever used twice.
        self.sequence = self.sequence.checked_add(1).ok_or(Error::EncryptError)?;
        seal(&self.key, nonce, Aad::from(*header), body, trailer).map_err(|_| Error::EncryptError)?;
        Ok(length + OVERHEAD)
    }
}

/// A message of a handshake that comes after it. RFC 8446, 4.6.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Late<'a> {
    /// A ticket's payload.
    Ticket(&'a [u8]),
    /// The peer uses its next key from here on, and wants us to do so if `asks`.
    KeyUpdate { asks: bool },
}

/// The first message of `bytes` and its length. `None`: it is not whole.
pub(super) fn late(bytes: &[u8]) -> Result<Option<(usize, Late<'_>)>, Error> {
    const MOST: usize = 1 << 16;
    let Some(([typ, length @ ..], rest)) = bytes.split_first_chunk::<4>() else { return Ok(None) };
    let length = length.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
    if length > MOST {
        return Err(InvalidMessage::HandshakePayloadTooLarge.into());
    }
    let Some(payload) = rest.get(..length) else { return Ok(None) };
    let message = match (typ, payload) {
        (4, payload) => Late::Ticket(payload),
        (24, [asks @ (0 | 1)]) => Late::KeyUpdate { asks: *asks == 1 },
        (24, _) => return Err(InvalidMessage::InvalidKeyUpdate.into()),
        _ => {
            return Err(Error::InappropriateHandshakeMessage {
                expect_types: Vec::new(),
                got_type: rustls::HandshakeType::from(*typ),
            });
        }
    };
    Ok(Some((4 + length, message)))
}

/// The KeyUpdate that asks for none in return.
pub(super) const KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 0];

fn unusable(why: &str) -> Error {
    Error::General(format!("the connection's keys cannot be used: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::crypto::cipher::AeadKey;

    fn sealing(sequence: u64) -> Sealing {
        let (key, iv) = (AeadKey::from([7; 32]), Iv::from([7; 12]));
        Sealing::new((sequence, ConnectionTrafficSecrets::Aes256Gcm { key, iv })).unwrap()
    }

    #[test]
    fn a_key_is_old_after_half_of_what_it_bears() {
        let mut sealing = sealing(OLD - 1);
        assert!(!sealing.is_old());
        let mut out = [0; 1 + OVERHEAD];
        assert_eq!(sealing.seal(ContentType::ApplicationData, b"x", &mut out).unwrap(), out.len());
        assert!(sealing.is_old());
    }

    #[test]
    fn numbers_do_not_begin_again() {
        let mut out = [0; 1 + OVERHEAD];
        // Nor is anything sealed where there is no room for it.
        assert!(sealing(0).seal(ContentType::ApplicationData, b"xx", &mut out).is_err());
        assert!(sealing(u64::MAX).seal(ContentType::ApplicationData, b"x", &mut out).is_err());
    }
}

//! An input read as things to do. Whatever the bytes are, they mean something.

use core::num::NonZeroU16;
use remora_core::{header::SessionProtocol, mux::Code};

/// The rest of an input.
pub(super) struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    pub(super) fn new(data: &'a [u8]) -> Self {
        Self(data)
    }

    /// `None` at the end.
    pub(super) fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    /// 0 to 32512: small ones in steps of 1, large ones in steps of 256.
    pub(super) fn length(&mut self) -> usize {
        let byte = usize::from(self.byte().unwrap_or_default());
        if byte < 128 { byte } else { (byte - 128) * 256 }
    }

    pub(super) fn pick<T: Copy>(&mut self, of: &[T]) -> Option<T> {
        let byte = usize::from(self.byte()?);
        of.get(byte.checked_rem(of.len())?).copied()
    }

    /// Up to 32 bytes as they are.
    pub(super) fn bytes(&mut self) -> &'a [u8] {
        let count = usize::from(self.byte().unwrap_or_default() % 32).min(self.0.len());
        let (bytes, rest) = self.0.split_at(count);
        self.0 = rest;
        bytes
    }

    pub(super) fn port(&mut self) -> NonZeroU16 {
        NonZeroU16::MIN.saturating_add(self.byte().unwrap_or_default().into())
    }

    pub(super) fn protocol(&mut self) -> Option<SessionProtocol> {
        [None, Some(SessionProtocol::Http1), Some(SessionProtocol::Http2)]
            [usize::from(self.byte().unwrap_or_default() % 3)]
    }

    pub(super) fn code(&mut self) -> Code {
        match self.byte().unwrap_or_default() {
            0..64 => Code::Cancelled,
            64..128 => Code::Internal,
            128..192 => Code::Revoked,
            192..200 => Code::TimedOut,
            code => Code::Other(code),
        }
    }

    /// A frame that is mostly right: its type, a stream that may exist, and a length that may be that of its type.
    pub(super) fn frame(&mut self) -> Vec<u8> {
        let kind = self.byte().unwrap_or_default();
        let id = self.byte().unwrap_or_default();
        let (kind, right) = match kind % 16 {
            1 => (1, 6 * usize::from(id % 6)),
            2 | 9 => (2, 3),
            3 | 10 | 11 | 12 => (3, self.length()),
            4 | 13 => (4, 4),
            5 | 14 => (5, 1 + usize::from(id / 64)),
            6 => (6, 8),
            7 => (7, 8),
            8 => (8, 5),
            other => (other | kind & 0x80, self.length()),
        };
        let length = if id == 99 { self.length() } else { right };
        let carrier = matches!(kind, 1 | 6 | 7 | 8);
        let id = if carrier { 0 } else { id % 10 };
        let flags = self.byte().unwrap_or_default();
        let flags = if flags < 16 { flags } else { u8::from(kind == 3 && flags % 2 == 1) };
        let [high, low] = (length as u16).to_be_bytes();
        let mut frame = vec![kind, flags, high, low, 0, 0, 0, id];
        let payload = self.bytes();
        frame.extend((0..length).map(|at| payload.get(at).copied().unwrap_or_default()));
        frame
    }
}

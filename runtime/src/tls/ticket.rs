//! Session tickets that die on time.
//!
//! rustls's own ticketer rolls keys, so a ticket may live up to twice its lifetime, and TLS 1.3 servers do not look
//! at a ticket's age. Here the time of issue is sealed inside, and an old ticket means a full handshake.

use rustls::{Error, crypto::aws_lc_rs, server::ProducesTickets, time_provider::TimeProvider};
use std::{fmt, sync::Arc, time::Duration};

/// A ticket holds the client's chain and goes back in its ClientHello, which has to stay under 4 KiB beside a
/// post-quantum key share of 1.2 KiB: sessions larger than this are not resumed.
pub(super) const MAX_SESSION: usize = 2048;

/// Seals sessions with keys made with it; accepts them for `lifetime`, exactly.
pub(super) struct Ticketer {
    sealing: Arc<dyn ProducesTickets>,
    lifetime: Duration,
    clock: Arc<dyn TimeProvider>,
}

impl Ticketer {
    pub(super) fn new(lifetime: Duration, clock: Arc<dyn TimeProvider>) -> Result<Self, Error> {
        Ok(Self { sealing: aws_lc_rs::Ticketer::new()?, lifetime, clock })
    }

    fn now(&self) -> Option<u64> {
        Some(self.clock.current_time()?.as_secs())
    }
}

impl ProducesTickets for Ticketer {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        u32::try_from(self.lifetime.as_secs()).unwrap_or(u32::MAX)
    }

    fn encrypt(&self, session: &[u8]) -> Option<Vec<u8>> {
        if session.len() > MAX_SESSION {
            return None;
        }
        let mut sealed = self.now()?.to_be_bytes().to_vec();
        sealed.extend_from_slice(session);
        self.sealing.encrypt(&sealed)
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let opened = self.sealing.decrypt(ticket)?;
        let (issued, session) = opened.split_first_chunk::<8>()?;
        // A clock that went backwards makes the age unknown: not resumed.
        let age = self.now()?.checked_sub(u64::from_be_bytes(*issued))?;
        (age < self.lifetime.as_secs()).then(|| session.to_vec())
    }
}

impl fmt::Debug for Ticketer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticketer").field("lifetime", &self.lifetime).finish()
    }
}

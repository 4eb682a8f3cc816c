//! When to ask for a certificate, and when to stop trusting the one we have. Contract 2.4.
//!
//! Knows nothing of keys, of the identity service, or of the time of day: `runtime/src/certify.rs` asks and waits,
//! and tells this module what happened.

use crate::time::UnixTime;
use core::time::Duration;

/// Bounds of the wait between renewals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefreshBounds {
    /// `LINKERD2_PROXY_IDENTITY_MIN_REFRESH`, 10 s by default.
    pub min: Duration,
    /// `LINKERD2_PROXY_IDENTITY_MAX_REFRESH`, 24 h by default.
    pub max: Duration,
}

/// ```text
///          issued               renew_at              issued
/// Absent ─────────▶ Fresh ─────────────▶ Renewing ─────────▶ Fresh
///    ▲                                      │
///    └──────────────────────────────────────┘ expires_at
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lifecycle {
    /// No certificate: nothing can be proxied.
    Absent {
        /// Failures since the last certificate.
        failures: u32,
        /// Not before.
        next: UnixTime,
    },
    /// Good, and not yet to be renewed.
    Fresh {
        /// End of the certificate.
        expires: UnixTime,
        /// When to ask for the next.
        renew_at: UnixTime,
    },
    /// Still in use; being replaced.
    Renewing {
        /// End of the certificate.
        expires: UnixTime,
        /// Failures so far.
        failures: u32,
        /// Not before.
        next: UnixTime,
    },
}

/// What the caller should do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ask identity now.
    Ask,
    /// Nothing before this time.
    Wait(UnixTime),
}

impl Lifecycle {
    /// Nothing yet; ask at once.
    pub fn starting(now: UnixTime) -> Self {
        Self::Absent { failures: 0, next: now }
    }

    /// What to do at `now`; moves `Fresh` to `Renewing` and an expired certificate to `Absent`.
    pub fn poll(&mut self, now: UnixTime) -> Action {
        let _ = now;
        todo!()
    }

    /// A certificate arrived. The next attempt is at 70 % of what remains of it, within `bounds`.
    pub fn issued(&mut self, expires: UnixTime, now: UnixTime, bounds: RefreshBounds) {
        let _ = (expires, now, bounds);
        todo!()
    }

    /// An attempt failed. Without a certificate the next one follows by `backoff`; with one, by the formula of
    /// `issued` on what remains, but by `backoff` (at least `bounds.min`) once less than `bounds.min` remains.
    pub fn failed(&mut self, now: UnixTime, bounds: RefreshBounds, backoff: crate::backoff::Backoff, random: u64) {
        let _ = (now, bounds, backoff, random);
        todo!()
    }

    /// End of the certificate in use.
    pub fn expires(&self) -> Option<UnixTime> {
        match self {
            Self::Absent { .. } => None,
            Self::Fresh { expires, .. } | Self::Renewing { expires, .. } => Some(*expires),
        }
    }
}

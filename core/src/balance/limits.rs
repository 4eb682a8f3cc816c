//! How much a Service wants to have under way from one proxy.

#[cfg(planted)]
use crate::planted;
use core::num::NonZeroU32;

/// What of each there may be at once; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Limits {
    /// Connections to its endpoints, idle ones too.
    pub connections: Option<NonZeroU32>,
    /// Requests that wait for a connection, or for an endpoint.
    pub pending_requests: Option<NonZeroU32>,
    /// Requests under way, until the last byte of their answers.
    pub concurrent_streams: Option<NonZeroU32>,
}

/// What is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limited {
    /// [`Limits::connections`].
    Connections,
    /// [`Limits::pending_requests`].
    PendingRequests,
    /// [`Limits::concurrent_streams`].
    ConcurrentStreams,
}

impl Limits {
    /// How many there may be; `None` is no limit.
    pub fn of(&self, what: Limited) -> Option<NonZeroU32> {
        match what {
            Limited::Connections => self.connections,
            Limited::PendingRequests => self.pending_requests,
            Limited::ConcurrentStreams => self.concurrent_streams,
        }
    }

    /// How many there are with one more than `now`.
    ///
    /// # Errors
    /// How many there may be, where that would be too many.
    pub fn one_more(&self, what: Limited, now: u32) -> Result<u32, u32> {
        let most = self.of(what).map_or(u32::MAX, NonZeroU32::get);
        #[cfg(planted)]
        let most = most.saturating_add(u32::from(planted::makes(planted::Mistake::OneTooMany)));
        if now < most { Ok(now + 1) } else { Err(most) }
    }
}

impl Limited {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Connections, Self::PendingRequests, Self::ConcurrentStreams];

    /// As annotations and metrics say it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::PendingRequests => "pending-requests",
            Self::ConcurrentStreams => "concurrent-streams",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_more_below_the_limit_of_its_kind() {
        let limits = Limits { connections: NonZeroU32::new(2), ..Limits::default() };
        for (what, now, expected) in [
            (Limited::Connections, 0, Ok(1)),
            (Limited::Connections, 1, Ok(2)),
            (Limited::Connections, 2, Err(2)),
            // The limit was lowered meanwhile.
            (Limited::Connections, 7, Err(2)),
            (Limited::PendingRequests, 7, Ok(8)),
            (Limited::ConcurrentStreams, u32::MAX - 1, Ok(u32::MAX)),
            (Limited::ConcurrentStreams, u32::MAX, Err(u32::MAX)),
        ] {
            assert_eq!(limits.one_more(what, now), expected, "{what:?} after {now}");
        }
    }
}

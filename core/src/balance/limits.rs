//! How much a Service wants to have under way from one proxy.

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

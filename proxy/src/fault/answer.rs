//! What a peer is told of a fault, in the words of HTTP and gRPC.

/// What an HTTP client is told. Contract 4.8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: http::StatusCode,
    pub grpc: GrpcCode,
    /// Whether the client's connection ends after the answer.
    pub close: bool,
}

/// The gRPC codes that this proxy makes up itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum GrpcCode {
    DeadlineExceeded = 4,
    NotFound = 5,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Aborted = 10,
    Internal = 13,
    Unavailable = 14,
}

//! Why a connection or a request failed: who has to act, what the peer is told, what the metrics call it.
//!
//! One type for the whole data path. Every question about a fault is a total function beside it, so that the log line,
//! the metric's label and the response header cannot disagree. Contract 4.8.

mod answer;
mod broken;
mod denied;

pub use answer::{Answer, GrpcCode};
pub use broken::{HttpError, stream_error};
#[cfg(test)]
pub(crate) use denied::tests as tests_of_denials;

use crate::{config::HeaderList, http::deadline::Limit, http1, mux::StreamEnded};
use broken::{Misuse, client_text};
use remora_core::{
    balance::Limited,
    header, mux,
    policy::{Denial, Refused},
    rate::{Quota, Scope},
    retry::Tried,
    route::FailWith,
};
use remora_runtime::tls::TlsFault;
use std::{io, net::SocketAddr, sync::Arc, time::Duration};

/// Why a connection or a request failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Fault {
    #[error("the client closed or reset the connection: {0}")]
    ClientGone(Shared<io::Error>),
    #[error("{}: {}", client_text(.0), .0)]
    Client(HttpError),
    #[error("no whole ClientHello came within {0:?}, and nothing else")]
    TlsDetectTimeout(Duration),
    #[error("policy admits the client at most for a request, and it said nothing for {0:?}")]
    Silence(Duration),
    #[error("the head of the request was not whole within REMORA_PROXY_REQUEST_HEAD_TIMEOUT ({0:?})")]
    HeadTimeout(Duration),
    #[error(
        "less than {least} bytes of the request's body came in REMORA_PROXY_REQUEST_BODY_TIMEOUT ({limit:?})"
    )]
    BodyTimeout { least: u64, limit: Duration },
    #[error(
        "the header list has {size} bytes in {fields} fields; REMORA_PROXY_MAX_HEADER_BYTES ({}) and \
         REMORA_PROXY_MAX_HEADERS ({}) allow less", .limit.bytes, .limit.fields
    )]
    HeaderList { size: usize, fields: usize, limit: HeaderList },
    #[error("the request can be read in two ways: {0}")]
    Ambiguous(&'static str),
    #[error("the request's body broke off: {0}")]
    Body(Arc<str>),
    #[error("the client's TLS was refused: {0}")]
    ClientTls(TlsFault),
    #[error("connections to the proxy's own port need mesh TLS: {0}")]
    DirectWithoutTls(&'static str),
    #[error("refused: no identity. Connections to the proxy's own port need a client certificate")]
    IdentityRequired,
    #[error("transport header refused: {0}")]
    Header(#[from] header::Malformed),
    #[error("the transport header did not arrive within {0:?}")]
    HeaderTimeout(Duration),
    #[error("the transport header names the host {0}; this proxy is no multicluster gateway")]
    GatewayHeader(Arc<str>),
    #[error("{0} is this proxy's own port: refused as a loop")]
    Loop(SocketAddr),
    #[error("{0} is not an address of this pod")]
    NotOurAddress(SocketAddr),
    #[error("{client} {}", denied::text(.refused, .denial))]
    Denied { client: Arc<str>, refused: Arc<Refused>, denial: Denial },
    #[error(
        "{client} asks {} more often than {} allows: {} requests per second ({} limit)",
        .refused.server, .refused.policies, .quota.burst, .scope.as_str()
    )]
    RateLimited { client: Arc<str>, refused: Arc<Refused>, scope: Scope, quota: Quota },
    #[error("the policy changed and no longer admits this connection to {0}")]
    Revoked(Arc<str>),
    #[error("nothing is known of {target} after {waited:?}: the control plane does not answer")]
    FirstLookup { target: Arc<str>, waited: Duration },
    #[error("the policy of {target} cannot be applied: {reason}")]
    InvalidPolicy { target: Arc<str>, reason: Arc<str> },
    #[error("policy forbids this connection to {target}: {reason}")]
    Forbidden { target: Arc<str>, reason: Arc<str> },
    #[error(
        "{addr} has no identity, and the outbound default policy {policy} demands mTLS: nothing was sent to it"
    )]
    NoIdentity { addr: SocketAddr, policy: &'static str },
    #[error("no route of {0} matches the request")]
    NoRoute(Arc<str>),
    #[error("no endpoint of {0} is available")]
    NoEndpoint(Arc<str>),
    #[error("cannot connect to {addr}: {source}")]
    Connect { addr: SocketAddr, source: Shared<io::Error> },
    #[error("no head of a response came within the timeout of the route {route:?} ({limit:?})")]
    ResponseTimeout { route: Arc<str>, limit: Duration },
    #[error("the {} timeout of the route ended the exchange after {after:?}", .limit.as_str())]
    Late { limit: Limit, after: Duration },
    #[error("the route sends the client to {location}")]
    Redirected { status: http::StatusCode, location: Arc<str> },
    #[error("{message}")]
    Injected { with: FailWith, message: Arc<str> },
    #[error("the path of the request can be read in two ways that take different routes")]
    TwoPaths,
    #[error("connecting to {addr} took longer than {limit:?}")]
    ConnectTimeout { addr: SocketAddr, limit: Duration },
    #[error("the TLS handshake with {addr} failed: {source}")]
    EndpointTls { addr: SocketAddr, source: TlsFault },
    #[error("the request requires the server identity {required}, the endpoint has {actual}")]
    RequiredIdentity { required: Arc<str>, actual: Arc<str> },
    #[error("this proxy has no certificate yet")]
    NoCredentials,
    #[error("the server failed: {0}")]
    Server(#[source] HttpError),
    #[error("the answer broke off: {0}")]
    Answer(Arc<str>),
    #[error("the connection to the server broke: {0}")]
    Io(Shared<io::Error>),
    #[error("the request's target is not valid: {0}")]
    BadTarget(&'static str),
    #[error("too many requests wait for {0}")]
    Overloaded(Arc<str>),
    #[error(
        "{service} takes no more than {most} {0} from this proxy (limits.remora.io/{0})", .what.as_str()
    )]
    Limited { service: Arc<str>, what: Limited, most: u32 },
    #[error("a connection shared with another proxy ended: {0}")]
    Carrier(mux::Error),
    #[error(
        "the proxy is short of memory: {used} of {limit} MiB are in use (REMORA_PROXY_MEMORY_LIMIT); nothing new is begun"
    )]
    Memory { used: u64, limit: u64 },
}

/// An error that several readers may hold.
pub type Shared<E> = Arc<E>;

/// Who has to act for a fault to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    Client,
    Policy,
    Server,
    Mesh,
}

impl Fault {
    /// Who has to act for this to stop.
    pub fn blame(&self) -> Blame {
        match self {
            Self::ClientGone(_)
            | Self::Client(_)
            | Self::TlsDetectTimeout(_)
            | Self::Silence(_)
            | Self::HeadTimeout(_)
            | Self::BodyTimeout { .. }
            | Self::HeaderList { .. }
            | Self::Ambiguous(_)
            | Self::TwoPaths
            | Self::Body(_)
            | Self::ClientTls(_)
            | Self::DirectWithoutTls(_)
            | Self::IdentityRequired
            | Self::Header(_)
            | Self::HeaderTimeout(_)
            | Self::GatewayHeader(_)
            | Self::Loop(_)
            | Self::RateLimited { .. }
            | Self::RequiredIdentity { .. }
            | Self::BadTarget(_) => Blame::Client,
            Self::NotOurAddress(_)
            | Self::Denied { .. }
            | Self::Revoked(_)
            | Self::InvalidPolicy { .. }
            | Self::Forbidden { .. }
            | Self::NoIdentity { .. }
            | Self::Redirected { .. }
            | Self::Injected { .. }
            | Self::Limited { .. }
            | Self::NoRoute(_) => Blame::Policy,
            Self::NoEndpoint(_)
            | Self::Connect { .. }
            | Self::ConnectTimeout { .. }
            | Self::ResponseTimeout { .. }
            | Self::Late { .. }
            | Self::EndpointTls { .. }
            | Self::Server(_)
            | Self::Answer(_)
            | Self::Io(_)
            | Self::Carrier(_) => Blame::Server,
            Self::FirstLookup { .. } | Self::NoCredentials | Self::Overloaded(_) | Self::Memory { .. } => {
                Blame::Mesh
            }
        }
    }

    /// The `error` label of the `*_errors_total` families: Linkerd's word where it has one. Contract 5.4.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Client(error) => Misuse::of(error).map_or("i/o", Misuse::label),
            Self::HeaderList { .. } => Misuse::TooLarge.label(),
            Self::Ambiguous(_) => Misuse::Malformed.label(),
            Self::TwoPaths => "ambiguous path",
            Self::Redirected { .. } => "redirect",
            Self::Injected { .. } => "injected failure",
            Self::Late { limit: Limit::Request, .. } => "request timeout",
            Self::Late { limit: Limit::Idle, .. } => "idle timeout",
            Self::HeadTimeout(_) => "request head timeout",
            Self::BodyTimeout { .. } => "request body timeout",
            Self::ClientGone(_)
            | Self::Body(_)
            | Self::Io(_)
            | Self::Connect { .. }
            | Self::ConnectTimeout { .. }
            | Self::Answer(_)
            | Self::Server(_) => "i/o",
            Self::TlsDetectTimeout(_) => "tls detection timeout",
            Self::Silence(_) => "detection timeout",
            Self::ClientTls(_) => "client tls",
            Self::DirectWithoutTls(_) | Self::IdentityRequired | Self::RequiredIdentity { .. } => {
                "identity required"
            }
            Self::Header(_) | Self::HeaderTimeout(_) => "transport header",
            Self::GatewayHeader(_) => "gateway domain invalid",
            Self::Loop(_) => "loop",
            Self::NotOurAddress(_) => "not our address",
            Self::Denied { .. } | Self::Revoked(_) => "unauthorized",
            Self::RateLimited { .. } => "rate limited",
            Self::FirstLookup { .. } => "first lookup timeout",
            Self::InvalidPolicy { .. } => "invalid policy",
            Self::Forbidden { .. } => "forbidden",
            Self::NoIdentity { .. } => "no identity",
            Self::NoRoute(_) => "no route",
            Self::NoEndpoint(_) => "failfast",
            Self::ResponseTimeout { .. } | Self::Late { limit: Limit::Response, .. } => "response timeout",
            Self::EndpointTls { .. } => "endpoint tls",
            Self::NoCredentials => "no credentials",
            Self::BadTarget(_) => "bad target",
            Self::Overloaded(_) | Self::Memory { .. } => "loadshed",
            Self::Limited { what, .. } => what.as_str(),
            Self::Carrier(_) => "mux",
        }
    }

    /// The `error` label of the typed route families, in Linkerd's words.
    pub fn route_error(&self) -> &'static str {
        match self {
            Self::NoEndpoint(_) => "FAIL_FAST",
            Self::ResponseTimeout { .. } => "RESPONSE_HEADERS_TIMEOUT",
            Self::Late { limit, .. } => limit.route_error(),
            Self::Overloaded(_) | Self::Memory { .. } | Self::Limited { .. } => "LOAD_SHED",
            Self::Server(error) => stream_error(error),
            Self::Io(_) => "IO",
            _ => "UNKNOWN",
        }
    }

    /// What an HTTP client is told.
    pub fn answer(&self) -> Answer {
        use GrpcCode as G;
        use http::StatusCode as S;
        let (status, grpc, close) = match self {
            Self::Client(HttpError::Http1(http1::Error::TooLarge)) => {
                (S::REQUEST_HEADER_FIELDS_TOO_LARGE, G::ResourceExhausted, true)
            }
            Self::Client(HttpError::Http1(http1::Error::LongTarget)) => {
                (S::URI_TOO_LONG, G::ResourceExhausted, true)
            }
            Self::ClientGone(_)
            | Self::Client(_)
            | Self::TlsDetectTimeout(_)
            | Self::Silence(_)
            | Self::ClientTls(_)
            | Self::DirectWithoutTls(_)
            | Self::IdentityRequired
            | Self::Header(_)
            | Self::HeaderTimeout(_)
            | Self::Ambiguous(_)
            | Self::Body(_)
            | Self::BadTarget(_) => (S::BAD_REQUEST, G::Internal, true),
            Self::TwoPaths => (S::BAD_REQUEST, G::Internal, false),
            Self::Late { .. } => (S::GATEWAY_TIMEOUT, G::DeadlineExceeded, false),
            Self::Redirected { status, .. } => (*status, G::NotFound, false),
            Self::Injected { with: FailWith::Http(status), .. } => {
                (S::from_u16(*status).unwrap_or(S::INTERNAL_SERVER_ERROR), G::FailedPrecondition, false)
            }
            // Only gRPC has a word for it: see `grpc_code`.
            Self::Injected { with: FailWith::Grpc(_), .. } => (S::INTERNAL_SERVER_ERROR, G::Internal, false),
            Self::HeadTimeout(_) | Self::BodyTimeout { .. } => {
                (S::REQUEST_TIMEOUT, G::DeadlineExceeded, true)
            }
            // As h2 answers far larger ones by itself: the connection goes on.
            Self::HeaderList { .. } => (S::REQUEST_HEADER_FIELDS_TOO_LARGE, G::ResourceExhausted, false),
            Self::Loop(_) => (S::LOOP_DETECTED, G::Aborted, true),
            Self::Denied { denial, .. } => match denial {
                Denial::NoRoute | Denial::WrongProtocol => (S::NOT_FOUND, G::NotFound, false),
                Denial::Unauthorized => (S::FORBIDDEN, G::PermissionDenied, false),
                Denial::TwoPaths => (S::BAD_REQUEST, G::Internal, false),
                Denial::Invalid(_) => (S::INTERNAL_SERVER_ERROR, G::Internal, true),
            },
            Self::NotOurAddress(_) | Self::Revoked(_) | Self::Forbidden { .. } => {
                (S::FORBIDDEN, G::PermissionDenied, false)
            }
            Self::RateLimited { .. } => (S::TOO_MANY_REQUESTS, G::ResourceExhausted, false),
            Self::GatewayHeader(_) | Self::NoRoute(_) => (S::NOT_FOUND, G::NotFound, false),
            Self::InvalidPolicy { .. } => (S::INTERNAL_SERVER_ERROR, G::Internal, true),
            Self::FirstLookup { .. }
            | Self::ConnectTimeout { .. }
            | Self::ResponseTimeout { .. }
            | Self::NoEndpoint(_) => (S::GATEWAY_TIMEOUT, G::DeadlineExceeded, true),
            Self::Connect { .. }
            | Self::EndpointTls { .. }
            | Self::Server(_)
            | Self::Answer(_)
            | Self::Io(_)
            | Self::Carrier(_)
            | Self::NoIdentity { .. }
            | Self::RequiredIdentity { .. } => (S::BAD_GATEWAY, G::Unavailable, true),
            Self::NoCredentials | Self::Overloaded(_) => (S::SERVICE_UNAVAILABLE, G::Unavailable, true),
            Self::Memory { .. } => (S::SERVICE_UNAVAILABLE, G::ResourceExhausted, true),
            Self::Limited { .. } => (S::SERVICE_UNAVAILABLE, G::ResourceExhausted, false),
        };
        Answer { status, grpc, close }
    }

    /// The gRPC status that a client is told.
    pub fn grpc_code(&self) -> u16 {
        match self {
            Self::Injected { with: FailWith::Grpc(code), .. } => *code,
            _ => self.answer().grpc as u16,
        }
    }

    /// Whether it is an answer that a route asks for, and nothing failed.
    pub fn is_wanted(&self) -> bool {
        matches!(self, Self::Redirected { .. })
    }

    /// Whether the server reset the stream of an HTTP/2 request: the client is told by a reset of its own, with the same
    /// code.
    pub fn is_reset(&self) -> bool {
        let Self::Server(error) = self else { return false };
        error.h2().is_some_and(h2::Error::is_reset)
    }

    /// The code of the reset by which an HTTP/2 client is told.
    pub fn h2_reason(&self) -> h2::Reason {
        match self {
            Self::Server(error) => error.h2_reason(),
            _ => h2::Reason::INTERNAL_ERROR,
        }
    }

    /// Whether an inbound connection was refused before it was known what it is: it is counted as opened and closed, like
    /// any other.
    pub fn is_refused_at_the_door(&self) -> bool {
        matches!(
            self,
            Self::TlsDetectTimeout(_)
                | Self::Silence(_)
                | Self::ClientTls(_)
                | Self::DirectWithoutTls(_)
                | Self::IdentityRequired
                | Self::Header(_)
                | Self::HeaderTimeout(_)
                | Self::GatewayHeader(_)
                | Self::Loop(_)
                | Self::NotOurAddress(_)
                | Self::NoCredentials
        )
    }

    /// Whether the other proxy said for certain that nothing of a request was processed: it may be sent again, whatever
    /// it asks for.
    pub fn is_unprocessed(error: &http1::Error) -> bool {
        let ended = error.io().and_then(io::Error::get_ref).and_then(|inner| inner.downcast_ref());
        ended.is_some_and(|StreamEnded(ended)| ended.is_unprocessed())
    }

    /// What came of a try that failed like this after something of the request may have been written.
    pub fn tried(&self) -> Tried {
        match self {
            Self::Server(HttpError::Http1(error)) if Self::is_unprocessed(error) => Tried::Unprocessed,
            Self::Server(error) if error.is_refused() => Tried::Unprocessed,
            Self::Server(_) | Self::Answer(_) | Self::Io(_) | Self::Carrier(_) => Tried::Unanswered,
            _ => Tried::Hopeless,
        }
    }

    /// Whether it is only a connection that ended early, of which there is nothing to tell.
    pub fn is_early_end(&self) -> bool {
        match self {
            Self::ClientGone(_) | Self::Answer(_) | Self::Io(_) | Self::Carrier(mux::Error::Lost) => true,
            Self::Client(error) => Misuse::of(error).is_none(),
            _ => false,
        }
    }

    /// Whether another endpoint may do better: nothing of the request or connection reached an application.
    pub fn is_connect(&self) -> bool {
        matches!(
            self,
            Self::Connect { .. }
                | Self::ConnectTimeout { .. }
                | Self::EndpointTls { .. }
                | Self::NoIdentity { .. }
        )
    }
}

#[cfg(test)]
mod tests {
    use super::{tests_of_denials as denied, *};

    #[test]
    fn a_refused_connection_is_502_and_closes() {
        let source = Arc::new(io::Error::from(io::ErrorKind::ConnectionRefused));
        check(&Fault::Connect { addr: ([10, 0, 0, 1], 80).into(), source }, 502, GrpcCode::Unavailable, true);
    }

    #[test]
    fn an_unauthorized_request_is_403_and_keeps_the_connection() {
        check(&denied::fault("server", &["till", "owner"]), 403, GrpcCode::PermissionDenied, false);
    }

    #[test]
    fn who_asks_too_often_is_429_told_the_limit_and_keeps_the_connection() {
        let quota = Quota { burst: 5, interval: Duration::from_millis(200) };
        let refused = Arc::new(Refused::by_rate(
            &denied::resource("server", "web"),
            &denied::resource("Limit", "slow"),
        ));
        let fault = Fault::RateLimited { client: "a".into(), refused, scope: Scope::Identity, quota };
        check(&fault, 429, GrpcCode::ResourceExhausted, false);
        let said =
            "a asks server/web more often than limit/slow allows: 5 requests per second (identity limit)";
        assert_eq!(fault.to_string(), said);
    }

    #[test]
    fn what_exceeds_a_services_limit_is_503_with_its_name_and_keeps_the_connection() {
        let fault = Fault::Limited { service: "web:80".into(), what: Limited::Connections, most: 2 };
        check(&fault, 503, GrpcCode::ResourceExhausted, false);
        assert_eq!((fault.label(), fault.tried()), ("connections", Tried::Hopeless));
    }

    #[test]
    fn no_endpoint_is_failfast_504() {
        check(&Fault::NoEndpoint("web".into()), 504, GrpcCode::DeadlineExceeded, true);
        assert_eq!(Fault::NoEndpoint("web".into()).label(), "failfast");
    }

    #[test]
    fn who_has_no_identity_is_named_with_the_policy_that_demands_one() {
        let fault = Fault::NoIdentity { addr: ([10, 0, 0, 1], 80).into(), policy: "all-authenticated" };
        check(&fault, 502, GrpcCode::Unavailable, true);
        assert!(fault.is_connect() && fault.blame() == Blame::Policy && fault.label() == "no identity");
        let said = "10.0.0.1:80 has no identity, and the outbound default policy all-authenticated demands mTLS: \
                    nothing was sent to it";
        assert_eq!(fault.to_string(), said);
    }

    #[test]
    fn a_response_that_does_not_come_in_time_is_504_and_closes() {
        let fault = Fault::ResponseTimeout { route: "GET /".into(), limit: Duration::from_secs(1) };
        check(&fault, 504, GrpcCode::DeadlineExceeded, true);
        assert_eq!(fault.label(), "response timeout");
    }

    #[test]
    fn what_routes_answer_in_the_servers_place() {
        let location = "http://web/b".into();
        let redirect = Fault::Redirected { status: http::StatusCode::FOUND, location };
        check(&redirect, 302, GrpcCode::NotFound, false);
        let injected = |with| Fault::Injected { with, message: "no".into() };
        check(&injected(FailWith::Http(503)), 503, GrpcCode::FailedPrecondition, false);
        check(&injected(FailWith::Grpc(14)), 500, GrpcCode::Internal, false);
        assert_eq!(injected(FailWith::Grpc(14)).grpc_code(), 14);
        assert_eq!(injected(FailWith::Http(503)).grpc_code(), 9);
        for (limit, label) in [
            (Limit::Request, "request timeout"),
            (Limit::Response, "response timeout"),
            (Limit::Idle, "idle timeout"),
        ] {
            let late = Fault::Late { limit, after: Duration::from_secs(1) };
            check(&late, 504, GrpcCode::DeadlineExceeded, false);
            assert_eq!(late.label(), label);
        }
        check(&Fault::TwoPaths, 400, GrpcCode::Internal, false);
    }

    #[test]
    fn what_of_a_request_was_processed() {
        let reset = |reason: h2::Reason| Fault::Server(h2::Error::from(reason).into());
        assert_eq!(reset(h2::Reason::REFUSED_STREAM).tried(), Tried::Unprocessed);
        assert_eq!(reset(h2::Reason::CANCEL).tried(), Tried::Unanswered);
        assert_eq!(Fault::Server(HttpError::Http1(http1::Error::Cut)).tried(), Tried::Unanswered);
        assert_eq!(Fault::Body("x".into()).tried(), Tried::Hopeless);
        assert_eq!(Fault::NoEndpoint("web".into()).tried(), Tried::Hopeless);
    }

    #[test]
    fn an_invalid_policy_is_500() {
        let fault = Fault::InvalidPolicy { target: "web".into(), reason: "x".into() };
        check(&fault, 500, GrpcCode::Internal, true);
    }

    #[track_caller]
    fn check(fault: &Fault, status: u16, grpc: GrpcCode, close: bool) {
        let answer = fault.answer();
        assert_eq!((answer.status.as_u16(), answer.grpc, answer.close), (status, grpc, close));
    }
}

//! How HTTP breaks: over HTTP/1, in our own words, or over HTTP/2, in h2's; and what of it is a client's misuse.

use super::Shared;
use crate::{http::deadline::Limit, http1};
use std::{io, sync::Arc, time::Duration};

/// How an exchange of HTTP messages broke.
#[derive(Clone, Debug, thiserror::Error)]
pub enum HttpError {
    #[error(transparent)]
    Http1(#[from] http1::Error),
    #[error(transparent)]
    Http2(Shared<h2::Error>),
    /// The other end of an HTTP/2 connection is not there any more.
    #[error("a ping was not answered in time")]
    Ping,
    /// The exchange took longer than its route allows.
    #[error("the {} timeout of the route ended the exchange after {after:?}", .limit.as_str())]
    Late { limit: Limit, after: Duration },
}

impl From<h2::Error> for HttpError {
    fn from(error: h2::Error) -> Self {
        Self::Http2(Arc::new(error))
    }
}

impl HttpError {
    pub fn is_timeout(&self) -> bool {
        match self {
            Self::Http1(error) => error.io().is_some_and(|error| error.kind() == io::ErrorKind::TimedOut),
            Self::Http2(_) => false,
            Self::Ping | Self::Late { .. } => true,
        }
    }

    /// Whether the server said that it did not look at an HTTP/2 request. RFC 9113 section 8.7.
    pub(super) fn is_refused(&self) -> bool {
        self.h2().is_some_and(|error| error.reason() == Some(h2::Reason::REFUSED_STREAM))
    }

    /// The HTTP/2 error, if it is one.
    pub(super) fn h2(&self) -> Option<&h2::Error> {
        match self {
            Self::Http1(_) | Self::Ping | Self::Late { .. } => None,
            Self::Http2(error) => Some(error),
        }
    }

    /// The code by which an HTTP/2 stream is told.
    pub fn h2_reason(&self) -> h2::Reason {
        if matches!(self, Self::Late { .. }) {
            return h2::Reason::CANCEL;
        }
        self.h2().and_then(h2::Error::reason).unwrap_or(h2::Reason::INTERNAL_ERROR)
    }
}

/// How an HTTP stream broke, in the words of the typed route families.
pub fn stream_error(error: &HttpError) -> &'static str {
    let error = match error {
        HttpError::Http1(http1::Error::Io(_) | http1::Error::Cut) => return "IO",
        HttpError::Http1(_) | HttpError::Ping => return "UNKNOWN",
        HttpError::Late { limit, .. } => return limit.route_error(),
        HttpError::Http2(error) => error,
    };
    match error.reason() {
        Some(h2::Reason::CANCEL) if error.is_reset() => "CANCEL",
        Some(h2::Reason::REFUSED_STREAM) if error.is_reset() => "REFUSED",
        Some(h2::Reason::ENHANCE_YOUR_CALM) if error.is_reset() => "ENHANCE_YOUR_CALM",
        _ if error.is_reset() => "RESET",
        _ if error.is_go_away() => "GO_AWAY",
        _ if error.is_io() => "IO",
        _ => "UNKNOWN",
    }
}

/// What a client did that is no request: it was answered with 400, 414 or 431, or its connection was ended.
#[derive(Clone, Copy)]
pub(super) enum Misuse {
    TooLarge,
    Malformed,
    Flood,
}

impl Misuse {
    pub(super) fn of(error: &HttpError) -> Option<Self> {
        let error = match error {
            HttpError::Http1(http1::Error::TooLarge | http1::Error::LongTarget) => {
                return Some(Self::TooLarge);
            }
            HttpError::Http1(http1::Error::Malformed(_)) => return Some(Self::Malformed),
            HttpError::Http1(http1::Error::Io(_) | http1::Error::Cut)
            | HttpError::Ping
            | HttpError::Late { .. } => return None,
            HttpError::Http2(error) => error,
        };
        if !(error.is_library() && error.is_go_away()) {
            return None;
        }
        match error.reason() {
            Some(h2::Reason::ENHANCE_YOUR_CALM) => Some(Self::Flood),
            Some(h2::Reason::NO_ERROR) | None => None,
            Some(_) => Some(Self::Malformed),
        }
    }

    pub(super) fn label(self) -> &'static str {
        match self {
            Self::TooLarge => "header limit",
            Self::Malformed => "malformed request",
            Self::Flood => "http/2 flood",
        }
    }
}

pub(super) fn client_text(error: &HttpError) -> &'static str {
    match Misuse::of(error) {
        Some(Misuse::TooLarge) => {
            "the client sent more header bytes or fields than REMORA_PROXY_MAX_HEADER_BYTES and \
             REMORA_PROXY_MAX_HEADERS allow"
        }
        Some(Misuse::Malformed) => "the client sent a malformed request",
        Some(Misuse::Flood) => {
            "the client reset streams or sent empty frames more often than HTTP/2's limits allow"
        }
        None => "the client's connection failed",
    }
}

//! Pure. What is spoken on a connection: what the client speaks, else what the port wants.

use crate::question::Speaks;
use remora_core::route::OutboundProtocol;

/// What is spoken on a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Spoken {
    Http1,
    Http2,
    Bytes,
    Tls(String),
}

impl Spoken {
    pub(crate) fn as_str(&self) -> &'static str {
        match self {
            Self::Http1 => "http1",
            Self::Http2 => "http2",
            Self::Bytes => "bytes",
            Self::Tls(_) => "tls",
        }
    }
}

/// What the client speaks; where nothing is said of it, what the port wants.
pub(crate) fn spoken(speaks: &Speaks, protocol: &OutboundProtocol) -> Spoken {
    match speaks {
        Speaks::Tls(sni) => Spoken::Tls(sni.clone()),
        Speaks::Http1 => Spoken::Http1,
        Speaks::Http2 | Speaks::Grpc => Spoken::Http2,
        Speaks::Bytes => Spoken::Bytes,
        Speaks::Declared => match protocol {
            OutboundProtocol::Http2(_) | OutboundProtocol::Grpc(_) => Spoken::Http2,
            OutboundProtocol::Opaque(_) => Spoken::Bytes,
            OutboundProtocol::Detect { .. }
            | OutboundProtocol::Http1(_)
            | OutboundProtocol::Tls(_)
            | OutboundProtocol::Invalid(_) => Spoken::Http1,
        },
    }
}

/// What a target is declared to speak.
pub(crate) fn declared(protocol: &OutboundProtocol) -> &'static str {
    match protocol {
        OutboundProtocol::Detect { .. } => "detect",
        OutboundProtocol::Http1(_) => "http1",
        OutboundProtocol::Http2(_) => "http2",
        OutboundProtocol::Grpc(_) => "grpc",
        OutboundProtocol::Opaque(_) => "opaque",
        OutboundProtocol::Tls(_) => "tls",
        OutboundProtocol::Invalid(_) => "invalid",
    }
}

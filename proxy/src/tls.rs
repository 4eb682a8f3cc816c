//! Terminates and originates mTLS, and learns who the peer is. What makes a certificate good is in `runtime::tls`.

pub mod codec;
pub mod handshake;
mod records;
pub mod stream;
#[cfg(test)]
mod tests;

use crate::{
    fault::Fault,
    metrics::Handshakes,
    mux::accept::Standing,
    stream::{Rewound, Stream},
};
use remora_core::{endpoint::EndpointTls, mux, policy::Peer, time::UnixTime};
use remora_runtime::{
    clock,
    tls::{self, Credentials, TlsFault},
};
use rustls::{ClientConfig, CommonState, HandshakeKind};
use std::{io, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{net::TcpStream, time::timeout};

/// Which of our two TLS servers a client came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// Any redirected port: no ALPN, a client certificate is optional.
    Ordinary,
    /// The inbound port itself: the ALPN of carriers or of the transport header, and a client certificate, are
    /// required.
    Direct {
        /// Whether carriers are taken.
        mux: bool,
    },
}

/// What a connection between proxies carries, as ALPN said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carries {
    /// The application's bytes.
    Bytes,
    /// A transport header, then the application's bytes.
    Header,
    /// Many streams: it is a carrier.
    Streams,
}

impl Carries {
    fn of(session: &CommonState) -> Self {
        match session.alpn_protocol() {
            Some(mux::ALPN) => Self::Streams,
            Some(tls::TRANSPORT_ALPN) => Self::Header,
            Some(_) | None => Self::Bytes,
        }
    }
}

/// What a client turned out to be.
pub struct Terminated {
    pub peer: Peer,
    pub stream: Stream,
    pub carries: Carries,
    /// What of the client is looked at again later, on a carrier.
    pub standing: Option<Standing>,
}

/// Terminates mTLS within `limit` and says who the client is.
pub async fn terminate(
    credentials: &Credentials,
    counted: &Handshakes,
    door: Door,
    stream: Stream,
    limit: Duration,
) -> Result<Terminated, Fault> {
    let config = match door {
        Door::Ordinary => credentials.server_config(),
        Door::Direct { mux } => credentials.direct_server_config(mux),
    };
    let Some(rewound) = stream.into_rewound() else {
        return Err(Fault::ClientTls(TlsFault::Handshake("TLS within TLS".into())));
    };
    let failed = |error: io::Error| Fault::ClientTls(TlsFault::from(&error));
    let handshake = timeout(limit, handshake::server(config, rewound)).await;
    let accepted = handshake.map_err(|_elapsed| Fault::TlsDetectTimeout(limit))?.map_err(failed)?;
    let session = accepted.state();
    match session.handshake_kind() {
        Some(HandshakeKind::Resumed) => counted.resumed.inc(),
        Some(HandshakeKind::Full | HandshakeKind::FullWithHelloRetryRequest) | None => counted.full.inc(),
    }
    let certificate = tls::peer(session, clock::unix_now()).map_err(Fault::ClientTls)?;
    let carries = Carries::of(session);
    if door != Door::Ordinary {
        if carries == Carries::Bytes {
            return Err(Fault::DirectWithoutTls("the client did not negotiate the transport header"));
        }
        if certificate.is_none() {
            return Err(Fault::IdentityRequired);
        }
    }
    let chain = session.peer_certificates().filter(|_| carries == Carries::Streams);
    let standing = chain.zip(certificate.as_ref()).map(|(chain, certificate)| Standing {
        not_after: certificate.not_after,
        chain: chain.to_vec(),
        bundle: credentials.bundle().clone(),
    });
    let peer = Peer::Tls { identity: certificate.map(|certificate| certificate.identity) };
    Ok(Terminated { peer, stream: Stream::tls(accepted.stream().map_err(failed)?), carries, standing })
}

/// What an endpoint turned out to be.
pub struct Originated {
    pub stream: Stream,
    /// What the endpoint wants to be sent.
    pub carries: Carries,
    /// NotAfter of its leaf.
    pub not_after: UnixTime,
}

/// Originates mTLS and requires the endpoint's identity, after every handshake, also a resumed one.
pub async fn originate(
    config: Arc<ClientConfig>,
    tcp: TcpStream,
    addr: SocketAddr,
    expected: &EndpointTls,
) -> Result<Originated, Fault> {
    let refuse = |source| Fault::EndpointTls { addr, source };
    let name = tls::server_name(&expected.server_name)
        .map_err(|error| refuse(TlsFault::Handshake(format!("{}: {error}", expected.server_name))))?;
    let failed = |error: io::Error| refuse(TlsFault::from(&error));
    let connected = handshake::client(config, name, Rewound::new(tcp)).await.map_err(failed)?;
    let session = connected.state();
    let certificate = tls::peer(session, clock::unix_now())
        .and_then(|certificate| certificate.ok_or(TlsFault::NoCertificate))
        .map_err(refuse)?;
    tls::require(&certificate, &expected.identity).map_err(refuse)?;
    let carries = Carries::of(session);
    let stream = Stream::tls(connected.stream().map_err(failed)?);
    Ok(Originated { stream, carries, not_after: certificate.not_after })
}

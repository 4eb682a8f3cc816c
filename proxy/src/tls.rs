//! Terminates and originates mTLS, and learns who the peer is. What makes a certificate good is in `runtime::tls`.

use crate::{fault::Fault, metrics::Handshakes, stream::Stream};
use remora_core::{endpoint::EndpointTls, policy::Peer};
use remora_runtime::{
    clock,
    tls::{self, Credentials, TlsFault},
};
use rustls::{ClientConfig, HandshakeKind};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// Which of our two TLS servers a client came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// Any redirected port: no ALPN, a client certificate is optional.
    Ordinary,
    /// The inbound port itself: the transport header's ALPN and a client certificate are required.
    Direct,
}

/// Terminates mTLS within `limit` and says who the client is.
pub async fn terminate(
    credentials: &Credentials,
    counted: &Handshakes,
    door: Door,
    stream: Stream,
    limit: Duration,
) -> Result<(Peer, Stream), Fault> {
    let config = match door {
        Door::Ordinary => credentials.server_config(),
        Door::Direct => credentials.direct_server_config(),
    };
    let Some(rewound) = stream.into_rewound() else {
        return Err(Fault::ClientTls(TlsFault::Handshake("TLS within TLS".into())));
    };
    let handshake = timeout(limit, TlsAcceptor::from(config).accept(rewound)).await;
    let accepted = handshake
        .map_err(|_elapsed| Fault::TlsDetectTimeout(limit))?
        .map_err(|error| Fault::ClientTls(TlsFault::from(&error)))?;
    let session = accepted.get_ref().1;
    match session.handshake_kind() {
        Some(HandshakeKind::Resumed) => counted.resumed.inc(),
        Some(HandshakeKind::Full | HandshakeKind::FullWithHelloRetryRequest) | None => counted.full.inc(),
    }
    let certificate = tls::peer(session, clock::unix_now()).map_err(Fault::ClientTls)?;
    if door == Door::Direct {
        if session.alpn_protocol() != Some(tls::TRANSPORT_ALPN) {
            return Err(Fault::DirectWithoutTls("the client did not negotiate the transport header"));
        }
        if certificate.is_none() {
            return Err(Fault::IdentityRequired);
        }
    }
    let peer = Peer::Tls { identity: certificate.map(|certificate| certificate.identity) };
    Ok((peer, Stream::tls_server(accepted)))
}

/// What an endpoint turned out to be.
pub struct Originated {
    pub stream: Stream,
    /// Whether the endpoint wants a transport header.
    pub header: bool,
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
    let connected = TlsConnector::from(config)
        .connect(name, tcp)
        .await
        .map_err(|error| refuse(TlsFault::from(&error)))?;
    let session = connected.get_ref().1;
    let certificate = tls::peer(session, clock::unix_now())
        .and_then(|certificate| certificate.ok_or(TlsFault::NoCertificate))
        .map_err(refuse)?;
    tls::require(&certificate, &expected.identity).map_err(refuse)?;
    let header = session.alpn_protocol() == Some(tls::TRANSPORT_ALPN);
    Ok(Originated { stream: Stream::tls_client(connected), header })
}

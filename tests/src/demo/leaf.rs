//! The certificate that a proxy shows to whoever connects: asked by a TLS client of our own, which believes the mesh's
//! trust anchor and nothing else.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::PodRef;

const LIMIT: Duration = Duration::from_secs(10);

/// What matters of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Lower-case hexadecimal, as `/state.json` prints it.
    pub serial: String,
    /// Seconds since 1970.
    pub not_after: i64,
}

/// Connects to `addr` from `from`, as the server `identity`; the leaf that it showed, verified up to `anchor` (PEM).
///
/// # Errors
/// No connection, or a certificate that does not lead to the anchor, is not of this identity, or has expired.
pub fn shown(from: &PodRef<'_>, addr: SocketAddr, identity: &str, anchor: &str) -> Result<Leaf> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(anchor.as_bytes()).context("reading the trust anchor")?)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(config));
    let name = ServerName::try_from(identity.to_owned()).context("the identity is not a name")?;
    from.enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let shaking = async {
            let stream = TcpStream::connect(addr).await.context("connecting")?;
            let stream = connector.connect(name, stream).await.context("shaking hands")?;
            let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
            parse(chain.first().context("no certificate was shown")?)
        };
        let shaken = runtime.block_on(async { tokio::time::timeout(LIMIT, shaking).await });
        shaken.unwrap_or_else(|_| Err(anyhow!("no handshake within {LIMIT:?}")))
    })?
    .with_context(|| format!("asking {addr} for the certificate of {identity}"))
}

fn parse(leaf: &CertificateDer<'_>) -> Result<Leaf> {
    let (_, leaf) = X509Certificate::from_der(leaf).map_err(|error| anyhow!("the leaf: {error}"))?;
    let serial = leaf.serial.to_str_radix(16);
    Ok(Leaf { serial, not_after: leaf.validity().not_after.timestamp() })
}

//! A Linkerd proxy played by hand, and applications that say what they were sent.
//!
//! What goes over the wire is written here from contract 1.5 and 2.6 alone, so that a mistake that our own encoder and
//! decoder share cannot hide.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::TlsConnector;

use crate::mesh::{Authority, Mesh};
use crate::node::{Node, PodRef};
use crate::shop;

/// What announces a transport header.
pub const ALPN: &[u8] = b"transport.l5d.io/v1";
/// How long a connection may take, and a peer to answer.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// A Service and a pod of the shop: what makes the control plane take a pod for one with Linkerd's proxy (contract 3.1), and nothing else.
pub const MANIFEST: &str = r"
kind: Service
apiVersion: v1
metadata: {name: peer, namespace: shop}
spec:
  selector: {app: peer}
  ports: [{name: app, port: 80, targetPort: 9000}]
---
kind: Pod
apiVersion: v1
metadata:
  name: peer
  namespace: shop
  labels: {app: peer, linkerd.io/control-plane-ns: remora}
  annotations: {linkerd.io/inject: disabled}
spec:
  serviceAccountName: peer
  terminationGracePeriodSeconds: 0
  containers:
  - name: linkerd-proxy
    image: busybox
    command: [sleep, infinity]
    env:
    - {name: LINKERD2_PROXY_INBOUND_LISTEN_ADDR, value: '0.0.0.0:4143'}
    - {name: LINKERD2_PROXY_ADMIN_LISTEN_ADDR, value: '0.0.0.0:4191'}
    - {name: LINKERD2_PROXY_CONTROL_LISTEN_ADDR, value: '0.0.0.0:4190'}
";

/// Waits until the proxy of `client` dials the peer of [`MANIFEST`] as a proxy, on 4143, where nobody listens yet.
pub fn wait_known(node: &Node, client: &PodRef<'_>) -> Result<()> {
    node.wait_until("the peer to be known", PATIENCE, || {
        shop::status(client, "http://peer/").is_ok_and(|(_, error)| error.contains(":4143"))
    })
}

/// A leaf with its chain and key.
pub struct Certificate {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Certificate {
    /// Of a chain, leaf first, and the leaf's key: whatever they are.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Self {
        Self { chain, key }
    }

    /// What of it goes over the wire, in bytes.
    pub fn size(&self) -> usize {
        self.chain.iter().map(|one| one.len()).sum()
    }
}

impl Authority {
    /// Signs what a test makes by itself.
    pub fn issuer(&self) -> &rcgen::Issuer<'static, KeyPair> {
        &self.issuer
    }

    /// A leaf for this DNS name, from an issuer of its own below this authority, as the CA of the mesh makes them.
    /// `until` (year, month, day) is its NotAfter.
    pub fn certify(&self, name: &str, until: (i32, u8, u8)) -> Result<Certificate> {
        let issuer = self.intermediate("identity.by.hand")?;
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![name.to_owned()])?;
        params.not_before = date_time_ymd(2000, 1, 1);
        params.not_after = date_time_ymd(until.0, until.1, until.2);
        let leaf = params.signed_by(&key, &issuer.issuer)?;
        let issuer = CertificateDer::from_pem_slice(issuer.pem.as_bytes())?;
        let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?;
        Ok(Certificate { chain: vec![leaf.der().clone(), issuer], key })
    }
}

impl Mesh {
    /// A certificate of this mesh that holds for long.
    pub fn certify(&self, name: &str) -> Result<Certificate> {
        self.root().certify(name, (2100, 1, 1))
    }
}

fn roots(authority: &Authority) -> Result<Arc<RootCertStore>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.pem.as_bytes())?)?;
    Ok(Arc::new(roots))
}

/// TLS 1.3 as Linkerd's outbound side offers it, with or without a certificate of its own.
pub fn client(authority: &Authority, own: Option<&Certificate>, alpn: &[&[u8]]) -> Result<Arc<ClientConfig>> {
    let builder = ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
        .with_root_certificates(roots(authority)?);
    let mut config = match own {
        Some(own) => builder.with_client_auth_cert(own.chain.clone(), own.key.clone_key())?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(Arc::new(config))
}

/// TLS 1.3 as Linkerd's inbound side accepts it: a client certificate is asked for.
pub fn server(authority: &Authority, own: &Certificate, alpn: &[&[u8]]) -> Result<Arc<ServerConfig>> {
    let verifier = WebPkiClientVerifier::builder(roots(authority)?).allow_unauthenticated().build()?;
    let mut config = ServerConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
        .with_client_cert_verifier(verifier)
        .with_single_cert(own.chain.clone(), own.key.clone_key())?;
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(Arc::new(config))
}

/// Handshakes on a connected socket. Must be called within a runtime.
pub async fn handshake(
    tcp: TcpStream,
    sni: &str,
    config: Arc<ClientConfig>,
) -> io::Result<tokio_rustls::client::TlsStream<tokio::net::TcpStream>> {
    tcp.set_nonblocking(true)?;
    let tcp = tokio::net::TcpStream::from_std(tcp)?;
    let name = ServerName::try_from(sni.to_owned()).map_err(io::Error::other)?;
    TlsConnector::from(config).connect(name, tcp).await
}

/// What a header says is spoken after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Session {
    None,
    Http1,
    Http2,
}

/// The transport header in bytes: preface, length, protobuf message.
pub fn header(port: u16, name: &str, session: Session) -> Vec<u8> {
    let mut message = vec![0x08];
    let mut rest = u32::from(port);
    while rest >= 0x80 {
        message.push(0x80 | (rest & 0x7f) as u8);
        rest >>= 7;
    }
    message.push(rest as u8);
    if !name.is_empty() {
        message.extend([0x12, name.len() as u8]);
        message.extend_from_slice(name.as_bytes());
    }
    match session {
        Session::None => {}
        Session::Http1 => message.extend([0x1a, 0x02, 0x0a, 0x00]),
        Session::Http2 => message.extend([0x1a, 0x02, 0x12, 0x00]),
    }
    let mut bytes = b"transport.l5d.io/v1\r\n\r\n".to_vec();
    bytes.extend_from_slice(&(message.len() as u32).to_be_bytes());
    bytes.extend_from_slice(&message);
    bytes
}

impl Node {
    /// Connects from the node's address: a client outside of every pod.
    pub fn dial(&self, address: SocketAddr) -> Result<TcpStream> {
        dialled(address, self.enter(|| TcpStream::connect_timeout(&address, PATIENCE))?)
    }
}

impl PodRef<'_> {
    /// Connects from within the pod, as its application would: the connection is redirected.
    pub fn dial(&self, address: SocketAddr) -> Result<TcpStream> {
        dialled(address, self.enter(|| TcpStream::connect_timeout(&address, PATIENCE))?)
    }

    /// Listens on a port of the pod, as its application would, on every address of both families.
    pub fn listen(&self, port: u16) -> Result<TcpListener> {
        let any = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port);
        self.enter(|| TcpListener::bind(any))?.with_context(|| format!("listening on {any} in {}", self.name))
    }

    /// The pod's primary address with a port.
    pub fn at(&self, port: u16) -> Result<SocketAddr> {
        Ok(SocketAddr::new(self.ip()?, port))
    }
}

fn dialled(address: SocketAddr, connected: io::Result<TcpStream>) -> Result<TcpStream> {
    let stream = connected.with_context(|| format!("connecting to {address}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Serves every connection of a listener on a thread of its own. The threads end with the process.
fn serve(listener: TcpListener, each: fn(TcpStream) -> io::Result<()>) {
    std::thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            // What a client does to its connection is seen by the client.
            std::thread::spawn(move || each(connection));
        }
    });
}

/// An application that sends every byte back and half-closes when the client does.
pub fn echo(listener: TcpListener) {
    serve(listener, |mut connection| {
        let mut back = connection.try_clone()?;
        io::copy(&mut connection, &mut back)?;
        back.shutdown(Shutdown::Write)
    });
}

/// An HTTP/1 application that answers every request with the head that it received, byte by byte. It reads no bodies:
/// what follows a head is taken for the next request.
pub fn mirror(listener: TcpListener) {
    serve(listener, |mut connection| {
        loop {
            let head = read_head(&mut connection)?;
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", head.len());
            connection.write_all(&[answer.as_bytes(), &head].concat())?;
        }
    });
}

/// An HTTP/2 application that answers with version, target and client of each request, and takes heads of up to 1 MiB.
pub fn mirror_http2(listener: TcpListener) {
    let service = hyper::service::service_fn(|request: Request<hyper::body::Incoming>| async move {
        let id = request.headers().get("l5d-client-id").and_then(|id| id.to_str().ok()).unwrap_or("nobody");
        let seen = format!("{:?} {} {id}", request.version(), request.uri());
        Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::from(seen))))
    });
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            listener.set_nonblocking(true)?;
            let listener = tokio::net::TcpListener::from_std(listener)?;
            while let Ok((tcp, _)) = listener.accept().await {
                let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                builder.max_header_list_size(1 << 20);
                tokio::spawn(builder.serve_connection(TokioIo::new(tcp), service));
            }
            io::Result::Ok(())
        })
    });
}

/// Reads to the empty line that ends a head.
pub fn read_head(connection: &mut impl io::Read) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        connection.read_exact(&mut byte)?;
        head.extend(byte);
    }
    Ok(head)
}

/// Reads an HTTP/1 answer with a content-length: head and body.
pub fn read_answer(connection: &mut impl io::Read) -> io::Result<(String, String)> {
    let head = String::from_utf8_lossy(&read_head(connection)?).into_owned();
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
    });
    let mut body = vec![0; length.unwrap_or(0)];
    connection.read_exact(&mut body)?;
    Ok((head, String::from_utf8_lossy(&body).into_owned()))
}

/// How a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// Orderly, or by a reset; after these bytes.
    Closed(Vec<u8>),
    /// Not within [`PATIENCE`]; after these bytes.
    Open(Vec<u8>),
}

/// Reads until the other side ends the connection.
pub fn end_of(connection: &mut TcpStream) -> End {
    let mut received = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match connection.read(&mut buffer) {
            Ok(0) => return End::Closed(received),
            Ok(count) => received.extend(buffer.iter().take(count)),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                return End::Open(received);
            }
            Err(_) => return End::Closed(received),
        }
    }
}

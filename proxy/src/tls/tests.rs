//! Our connections against rustls's own: what one seals the other opens, and what is wrong is an end with a reason.

use super::{codec::FLIGHT, handshake, stream::TlsStream};
use crate::stream::Rewound;
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName},
};
use std::{io, sync::Arc};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

struct Configs {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

fn configs() -> Configs {
    let key = rcgen::KeyPair::generate().unwrap();
    let leaf = rcgen::CertificateParams::new(["server.test".to_owned()]).unwrap().self_signed(&key).unwrap();
    let leaf = CertificateDer::from(leaf.der().to_vec());
    let mut roots = RootCertStore::empty();
    roots.add(leaf.clone()).unwrap();
    let provider = Arc::new(aws_lc_rs::default_provider());
    let versions = &[&rustls::version::TLS13];
    let client =
        ClientConfig::builder_with_provider(provider.clone()).with_protocol_versions(versions).unwrap();
    let mut client = client.with_root_certificates(roots).with_no_client_auth();
    let server = ServerConfig::builder_with_provider(provider).with_protocol_versions(versions).unwrap();
    let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    let mut server = server.with_no_client_auth().with_single_cert(vec![leaf], key).unwrap();
    client.enable_secret_extraction = true;
    server.enable_secret_extraction = true;
    Configs { client: Arc::new(client), server: Arc::new(server) }
}

async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (near, listener.accept().await.unwrap().0)
}

fn name() -> ServerName<'static> {
    ServerName::try_from("server.test").unwrap()
}

/// Our client and rustls's server.
async fn our_client(configs: &Configs) -> (TlsStream, server::TlsStream<TcpStream>) {
    let (near, far) = sockets().await;
    let ours = handshake::client(configs.client.clone(), name(), Rewound::new(near));
    let (ours, theirs) = tokio::join!(ours, TlsAcceptor::from(configs.server.clone()).accept(far));
    (ours.unwrap().stream().unwrap(), theirs.unwrap())
}

/// rustls's client and our server.
async fn our_server(configs: &Configs) -> (client::TlsStream<TcpStream>, TlsStream) {
    let (near, far) = sockets().await;
    let theirs = TlsConnector::from(configs.client.clone()).connect(name(), near);
    let (theirs, ours) = tokio::join!(theirs, handshake::server(configs.server.clone(), Rewound::new(far)));
    (theirs.unwrap(), ours.unwrap().stream().unwrap())
}

fn bytes(count: usize) -> Vec<u8> {
    (0..count as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

#[tokio::test]
async fn bytes_travel_both_ways_between_ours_and_theirs() {
    let configs = configs();
    let (mut ours, mut theirs) = our_client(&configs).await;
    exchange(&mut ours, &mut theirs).await;
    let (mut theirs, mut ours) = our_server(&configs).await;
    exchange(&mut theirs, &mut ours).await;
}

async fn exchange(
    client: &mut (impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin),
    server: &mut (impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin),
) {
    for count in [0, 1, 5, 16_383, 16_384, 16_385, FLIGHT - 1, FLIGHT, FLIGHT + 1, 3_000_000] {
        let sent = bytes(count);
        let (up, down) = (sent.clone(), sent.clone());
        let mut received = vec![0; count];
        let write = async {
            client.write_all(&up).await.unwrap();
            client.flush().await.unwrap();
        };
        let ((), read) = tokio::join!(write, server.read_exact(&mut received));
        read.unwrap();
        assert!(received == sent, "{count} bytes up");
        received.fill(0);
        let write = async {
            server.write_all(&down).await.unwrap();
            server.flush().await.unwrap();
        };
        let ((), read) = tokio::join!(write, client.read_exact(&mut received));
        read.unwrap();
        assert!(received == sent, "{count} bytes down");
    }
}

#[tokio::test]
async fn pieces_become_full_records() {
    let (mut ours, mut theirs) = our_client(&configs()).await;
    let all = bytes(40_000);
    let cuts = [0, 0, 3, 10_003, 10_003, 16_384, 39_000, 40_000];
    let pieces: Vec<io::IoSlice<'_>> =
        cuts.windows(2).map(|cut| io::IoSlice::new(&all[cut[0]..cut[1]])).collect();
    let written = ours.write_vectored(&pieces).await.unwrap();
    ours.flush().await.unwrap();
    assert_eq!(written, all.len());
    let mut received = vec![0; all.len()];
    theirs.read_exact(&mut received).await.unwrap();
    assert!(received == all);
}

#[tokio::test]
async fn an_end_travels_and_the_other_way_stays_open() {
    let (mut ours, mut theirs) = our_client(&configs()).await;
    ours.write_all(b"question").await.unwrap();
    ours.shutdown().await.unwrap();
    let mut question = Vec::new();
    theirs.read_to_end(&mut question).await.unwrap();
    assert_eq!(question, b"question");
    theirs.write_all(b"answer").await.unwrap();
    theirs.shutdown().await.unwrap();
    let mut answer = Vec::new();
    ours.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"answer");
}

#[tokio::test]
async fn an_end_of_the_socket_alone_is_no_end_of_the_session() {
    let (mut ours, mut theirs) = our_client(&configs()).await;
    theirs.get_mut().0.shutdown().await.unwrap();
    let error = ours.read(&mut [0; 8]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
}

#[tokio::test]
async fn keys_are_updated_by_either_side() {
    let configs = configs();
    let (mut ours, mut theirs) = our_client(&configs).await;
    for round in 0..3 {
        // rustls asks for none in return; that the peer asks is in the next test.
        theirs.get_mut().1.refresh_traffic_keys().unwrap();
        ours.use_next_key();
        exchange(&mut ours, &mut theirs).await;
        assert!(round < 3);
    }
    let (mut theirs, mut ours) = our_server(&configs).await;
    theirs.get_mut().1.refresh_traffic_keys().unwrap();
    ours.use_next_key();
    exchange(&mut theirs, &mut ours).await;
}

#[tokio::test]
async fn a_session_is_resumed_with_the_ticket_that_came_after_the_handshake() {
    let configs = configs();
    let (mut ours, mut theirs) = our_client(&configs).await;
    theirs.write_all(b"x").await.unwrap();
    ours.read_exact(&mut [0]).await.unwrap();
    let (near, far) = sockets().await;
    let ours = handshake::client(configs.client.clone(), name(), Rewound::new(near));
    let (ours, theirs) = tokio::join!(ours, TlsAcceptor::from(configs.server.clone()).accept(far));
    theirs.unwrap();
    assert_eq!(ours.unwrap().state().handshake_kind(), Some(rustls::HandshakeKind::Resumed));
}

#[tokio::test]
async fn what_came_with_the_end_of_the_handshake_is_read() {
    // The client's Finished and its first bytes in one packet, of which a part comes later.
    for cut in [0, 1, 4, 5, 20, 60] {
        let configs = configs();
        let (near, far) = sockets().await;
        let (middle_near, middle_far) = sockets().await;
        let theirs = async {
            let mut theirs = TlsConnector::from(configs.client.clone()).connect(name(), near).await.unwrap();
            theirs.write_all(b"early").await.unwrap();
            theirs
        };
        let ours = handshake::server(configs.server.clone(), Rewound::new(middle_far));
        let held = hold_back(far, middle_near, cut);
        let (mut theirs, ours, mut held) = tokio::join!(theirs, ours, held);
        let mut ours = ours.unwrap().stream().unwrap();
        held.release().await;
        let mut early = [0; 5];
        ours.read_exact(&mut early).await.unwrap();
        assert_eq!(&early, b"early");
        drop(theirs.shutdown());
    }
}

/// Between a client and a server: what the client sends last, less `cut` bytes, and these later.
struct Held {
    rest: Vec<u8>,
    server: TcpStream,
    _client: TcpStream,
}

impl Held {
    async fn release(&mut self) {
        self.server.write_all(&self.rest).await.unwrap();
    }
}

async fn hold_back(mut client: TcpStream, mut server: TcpStream, cut: usize) -> Held {
    let mut buffer = vec![0; 65_536];
    // ClientHello up, the server's flight down, and then Finished with what follows, as it comes.
    let read = client.read(&mut buffer).await.unwrap();
    server.write_all(&buffer[..read]).await.unwrap();
    let read = server.read(&mut buffer).await.unwrap();
    client.write_all(&buffer[..read]).await.unwrap();
    let mut last = Vec::new();
    // Finished is 74 bytes with AES-256 and SHA-384, after six of ChangeCipherSpec; "early" makes 27.
    while last.len() < 6 + 74 + 27 {
        let read = client.read(&mut buffer).await.unwrap();
        last.extend_from_slice(&buffer[..read]);
    }
    // Never into Finished itself, which the handshake waits for.
    let rest = last.split_off(last.len() - cut.min(27));
    server.write_all(&last).await.unwrap();
    Held { rest, server, _client: client }
}

#[tokio::test]
async fn what_is_wrong_ends_the_session_with_a_reason() {
    let wrong: [(&str, Vec<u8>, &str); 5] = [
        ("garbage", b"GET / HTTP/1.1\r\n\r\n".to_vec(), "InappropriateMessage"),
        ("too long", vec![23, 3, 3, 0xff, 0xff], "PeerSentOversizedRecord"),
        ("forged", [&[23, 3, 3, 0, 32][..], &[7; 32]].concat(), "DecryptError"),
        ("shorter than its tag", vec![23, 3, 3, 0, 1, 0], "DecryptError"),
        ("an alert in plain", vec![21, 3, 3, 0, 2, 1, 0], "InappropriateMessage"),
    ];
    let configs = configs();
    for (what, sent, reason) in wrong {
        let (mut ours, mut theirs) = our_client(&configs).await;
        theirs.get_mut().0.write_all(&sent).await.unwrap();
        let error = ours.read(&mut [0; 100]).await.unwrap_err();
        let found = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>()).unwrap();
        assert!(format!("{found:?}").starts_with(reason), "{what}: {found:?}");
        // And the peer is told.
        let told = theirs.read(&mut [0; 1]).await.unwrap_err();
        assert!(told.to_string().contains("alert"), "{what}: {told}");
        // Whoever goes on gets no further.
        assert!(ours.write(b"x").await.is_err(), "{what}");
    }
}

#[tokio::test]
async fn a_handshake_that_fails_says_why() {
    let (ours, other) = (configs(), configs());
    // A client that does not trust us: its alert is the reason, not the end that follows.
    let (near, far) = sockets().await;
    let theirs = TlsConnector::from(other.client.clone()).connect(name(), near);
    let (theirs, refused) = tokio::join!(theirs, handshake::server(ours.server.clone(), Rewound::new(far)));
    assert!(theirs.is_err());
    assert!(reason(&refused.err().unwrap()).starts_with("AlertReceived"));
    // A server that we do not trust is told.
    let (near, far) = sockets().await;
    let refused = handshake::client(other.client.clone(), name(), Rewound::new(near));
    let (refused, theirs) = tokio::join!(refused, TlsAcceptor::from(ours.server.clone()).accept(far));
    assert!(reason(&refused.err().unwrap()).starts_with("InvalidCertificate"));
    assert!(theirs.err().unwrap().to_string().contains("alert"));
    // What cannot become a record is not waited for.
    for wrong in [&[22, 3, 1, 0xff, 0xff][..], b"GET / HTTP/1.1\r\n\r\n", &[23, 3, 3, 0, 1, 0]] {
        let (mut near, far) = sockets().await;
        near.write_all(wrong).await.unwrap();
        let refused = handshake::server(ours.server.clone(), Rewound::new(far)).await;
        assert_eq!(refused.err().unwrap().kind(), io::ErrorKind::InvalidData, "{wrong:?}");
    }
}

fn reason(error: &io::Error) -> String {
    format!("{:?}", error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>()).unwrap())
}

#[tokio::test]
async fn records_without_content_do_not_keep_us_busy() {
    let (mut ours, mut theirs) = our_client(&configs()).await;
    let flood = async {
        for _ in 0..64 {
            theirs.get_mut().1.refresh_traffic_keys().unwrap();
        }
        let _ = theirs.flush().await;
        theirs
    };
    let mut byte = [0];
    let (theirs, read) = tokio::join!(flood, ours.read(&mut byte));
    assert!(read.unwrap_err().to_string().contains("TooManyEmptyFragments"));
    drop(theirs);
}

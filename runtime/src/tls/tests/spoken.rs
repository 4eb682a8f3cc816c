//! What TLS is spoken.

use super::*;

#[tokio::test]
async fn tls13_with_the_hybrid_group_and_aes128() {
    let mesh = Mesh::new();
    let (client, _server) = mesh.pair().await;
    let tls = client.get_ref().1;
    assert_eq!(tls.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    assert_eq!(tls.negotiated_cipher_suite().unwrap().suite(), rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
    assert_eq!(tls.negotiated_key_exchange_group().unwrap().name(), rustls::NamedGroup::X25519MLKEM768);
}

#[tokio::test]
async fn a_tls12_client_is_told_that_the_version_is_wrong() {
    let mesh = Mesh::new();
    let (mut client, server) = tokio::io::duplex(16 * 1024);
    let serving = tokio::spawn(TlsAcceptor::from(mesh.server.server_config()).accept(server));
    client.write_all(&tls12_client_hello()).await.unwrap();
    let mut alert = [0; 7];
    client.read_exact(&mut alert).await.unwrap();
    // Record: alert (21), two bytes: fatal (2), protocol_version (70). RFC 8446 section 6.
    assert_eq!((alert[0], &alert[5..]), (21, &[2_u8, 70][..]));
    assert_eq!(TlsFault::from(&serving.await.unwrap().unwrap_err()).label(), "incompatible");
}

#[tokio::test]
async fn the_client_hello_is_one_record_under_4_kib_even_with_the_largest_ticket() {
    let mesh = Mesh::new();
    let config = mesh.client.client_config_for_endpoint(true);
    let first = client_hello(&config);
    let (client, server) = handshake(config.clone(), mesh.server.direct_server_config(false)).await;
    exchange(client.unwrap(), server.unwrap()).await;
    let resuming = client_hello(&config);
    assert!(resuming.len() > first.len() + 500, "no ticket in it: {} {}", first.len(), resuming.len());
    // What is left under 4 KiB is for the largest session that a ticket may hold, its seal and its binder.
    let largest = first.len() + ticket::MAX_SESSION + 256;
    for (hello, name) in [(&first, "first"), (&resuming, "resuming")] {
        assert_eq!(hello[0], 22, "{name}: not a handshake record");
        let record = usize::from(u16::from_be_bytes([hello[3], hello[4]]));
        assert_eq!(record + 5, hello.len(), "{name}: not one record");
    }
    assert!(largest < 4096, "{largest}");
}

#[tokio::test]
async fn ordinary_ports_offer_no_protocol_and_refuse_none() {
    let mesh = Mesh::new();
    let config = mesh.client.client_config_for_endpoint(true);
    let (client, server) = handshake(config, mesh.server.server_config()).await;
    assert_eq!(client.unwrap().get_ref().1.alpn_protocol(), None);
    assert_eq!(server.unwrap().get_ref().1.alpn_protocol(), None);
}

#[tokio::test]
async fn direct_connections_agree_on_the_transport_header() {
    let mesh = Mesh::new();
    let config = mesh.client.client_config_for_endpoint(true);
    let (client, server) = handshake(config, mesh.server.direct_server_config(false)).await;
    assert_eq!(client.unwrap().get_ref().1.alpn_protocol(), Some(TRANSPORT_ALPN));
    assert_eq!(server.unwrap().get_ref().1.alpn_protocol(), Some(TRANSPORT_ALPN));
}

#[tokio::test]
async fn another_protocol_on_a_direct_connection_is_refused() {
    let mesh = Mesh::new();
    let mut config = (*mesh.client.client_config_for_endpoint(false)).clone();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let (client, server) = handshake(Arc::new(config), mesh.server.direct_server_config(false)).await;
    assert_eq!(TlsFault::from(&client.unwrap_err()), TlsFault::NoProtocol);
    assert_eq!(TlsFault::from(&server.unwrap_err()), TlsFault::NoProtocol);
}

#[tokio::test]
async fn bytes_that_are_not_tls_are_a_fault_of_the_handshake() {
    let mesh = Mesh::new();
    let (mut client, server) = tokio::io::duplex(1024);
    client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let fault = TlsAcceptor::from(mesh.server.server_config()).accept(server).await.unwrap_err();
    assert_eq!(TlsFault::from(&fault).label(), "handshake");
}

fn client_hello(config: &Arc<ClientConfig>) -> Vec<u8> {
    let mut connection = rustls::ClientConnection::new(config.clone(), server_name(SERVER).unwrap()).unwrap();
    let mut hello = Vec::new();
    while connection.wants_write() {
        connection.write_tls(&mut hello).unwrap();
    }
    hello
}

/// A minimal ClientHello of TLS 1.2, with ECDHE suites, groups and signatures, and no supported_versions. RFC 5246.
fn tls12_client_hello() -> Vec<u8> {
    let extensions: Vec<u8> = [
        // supported_groups: x25519, secp256r1
        &[0, 10, 0, 6, 0, 4, 0, 29, 0, 23][..],
        // ec_point_formats: uncompressed
        &[0, 11, 0, 2, 1, 0],
        // signature_algorithms: ecdsa_secp256r1_sha256
        &[0, 13, 0, 4, 0, 2, 4, 3],
    ]
    .concat();
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    // No session id; TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256; no compression.
    body.extend([0, 0, 2, 0xc0, 0x2b, 1, 0]);
    body.extend(u16::try_from(extensions.len()).unwrap().to_be_bytes());
    body.extend(extensions);
    let mut handshake = vec![1, 0];
    handshake.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
    handshake.extend(body);
    let mut record = vec![22, 3, 1];
    record.extend(u16::try_from(handshake.len()).unwrap().to_be_bytes());
    record.extend(handshake);
    record
}

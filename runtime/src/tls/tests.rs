//! Handshakes in memory, both ends ours, with certificates made here.

use super::*;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::HandshakeKind;
use std::{
    io,
    time::{SystemTime, UNIX_EPOCH},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

const SERVER: &str = "web.shop.serviceaccount.identity.remora.cluster.local";
const CLIENT: &str = "cart.shop.serviceaccount.identity.remora.cluster.local";
const DAY: u64 = 86_400;

// Who may talk to whom.

#[tokio::test]
async fn both_ends_learn_who_the_other_is() {
    let mesh = Mesh::new();
    let (client, server) = mesh.pair().await;
    let seen = peer(client.get_ref().1, mesh.clock.unix()).unwrap().unwrap();
    assert_eq!(seen.identity, identity(SERVER));
    assert_eq!(seen.serial, mesh.server.serial());
    assert_eq!(seen.not_after, mesh.server.expires());
    require(&seen, &identity(SERVER)).unwrap();
    let seen = peer(server.get_ref().1, mesh.clock.unix()).unwrap().unwrap();
    assert_eq!(seen.identity, identity(CLIENT));
}

#[tokio::test]
async fn another_identity_than_the_expected_one_is_a_fault() {
    let mesh = Mesh::new();
    let (client, _server) = mesh.pair().await;
    let seen = peer(client.get_ref().1, mesh.clock.unix()).unwrap().unwrap();
    let fault = require(&seen, &identity(CLIENT)).unwrap_err();
    assert_eq!(fault, TlsFault::WrongIdentity { expected: identity(CLIENT), presented: identity(SERVER) });
}

#[tokio::test]
async fn a_client_without_certificate_is_nobody_on_an_ordinary_port() {
    let mesh = Mesh::new();
    let anonymous = anonymous_client_config(&mesh.bundle).unwrap();
    let (client, server) = handshake(anonymous, mesh.server.server_config()).await;
    let (client, server) = (client.unwrap(), server.unwrap());
    assert_eq!(peer(server.get_ref().1, mesh.clock.unix()), Ok(None));
    require(&peer(client.get_ref().1, mesh.clock.unix()).unwrap().unwrap(), &identity(SERVER)).unwrap();
}

#[tokio::test]
async fn a_server_of_another_root_is_untrusted() {
    let (mesh, other) = (Mesh::new(), Mesh::new());
    let config = mesh.client.client_config_for_endpoint(false);
    let (client, _server) = handshake(config, other.server.server_config()).await;
    assert_eq!(TlsFault::from(&client.unwrap_err()).label(), "untrusted");
}

#[tokio::test]
async fn a_client_of_another_root_is_untrusted() {
    let (mesh, other) = (Mesh::new(), Mesh::new());
    // It would believe this server, so that it is the server who refuses.
    let bundle = TrustBundle::from_pem(&format!("{}{}", other.bundle.pem(), mesh.bundle.pem())).unwrap();
    let stranger = other.ca.credentials(CLIENT, &bundle, &other.clock).unwrap();
    let (_client, server) =
        handshake(stranger.client_config_for_endpoint(false), mesh.server.server_config()).await;
    assert_eq!(TlsFault::from(&server.unwrap_err()).label(), "untrusted");
}

#[tokio::test]
async fn an_expired_server_is_refused_by_the_handshake() {
    let mesh = Mesh::new();
    // The server's own clock stands still.
    let late = Clock::at(mesh.clock.now() + 2 * DAY);
    let client = mesh.ca.credentials(CLIENT, &mesh.bundle, &late).unwrap();
    let (client, _server) =
        handshake(client.client_config_for_endpoint(false), mesh.server.server_config()).await;
    assert_eq!(TlsFault::from(&client.unwrap_err()).label(), "expired");
}

#[tokio::test]
async fn an_expired_client_is_refused_by_the_handshake() {
    let mesh = Mesh::new();
    let late = Clock::at(mesh.clock.now() + 2 * DAY);
    let server = mesh.ca.credentials(SERVER, &mesh.bundle, &late).unwrap();
    // A client that looks at the server with the right clock, and shows a certificate of the day before.
    let on_time = mesh.ca.credentials(CLIENT, &mesh.bundle, &late).unwrap();
    let mut config = (*on_time.client_config_for_endpoint(false)).clone();
    config.client_auth_cert_resolver =
        mesh.client.client_config_for_endpoint(false).client_auth_cert_resolver.clone();
    let config = Arc::new(config);
    let (_client, server) = handshake(config, server.server_config()).await;
    assert_eq!(TlsFault::from(&server.unwrap_err()).label(), "expired");
}

#[test]
fn validity_ends_after_the_last_second_and_begins_with_the_first() {
    let mesh = Mesh::new();
    let leaf = &mesh.server.chain()[0];
    let at = |time: UnixTime| peer_of_leaf(leaf, time).map(|_| ());
    assert_eq!(at(mesh.server.expires()), Ok(()));
    assert_eq!(at(mesh.server.expires() + Duration::from_secs(1)), Err(TlsFault::Expired { ago: 1 }));
    assert_eq!(at(mesh.server.not_before()), Ok(()));
    let before = UnixTime::from_secs(mesh.server.not_before().0.as_secs() - 1);
    assert_eq!(at(before), Err(TlsFault::NotYetValid { ahead: 1 }));
}

// What TLS is spoken.

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

// Sessions.

#[tokio::test]
async fn a_session_resumes_with_the_same_endpoint_and_keeps_the_identities() {
    let mesh = Mesh::new();
    let config = mesh.client.client_config_for_endpoint(false);
    assert_eq!(mesh.connect(&config, &mesh.server).await.0, HandshakeKind::Full);
    let (kind, client_sees, server_sees) = mesh.connect(&config, &mesh.server).await;
    assert_eq!(kind, HandshakeKind::Resumed);
    assert_eq!(client_sees.unwrap().unwrap().identity, identity(SERVER));
    assert_eq!(server_sees.unwrap().unwrap().identity, identity(CLIENT));
}

#[tokio::test]
async fn a_resumed_session_ends_with_the_peers_certificate() {
    let mesh = Mesh::new();
    // A client whose leaf ends before the ticket does.
    let short = mesh.ca.issue(CLIENT, mesh.clock.now() - 60, mesh.clock.now() + 600);
    let client = short.credentials(CLIENT, &mesh.bundle, &mesh.clock).unwrap();
    let config = client.client_config_for_endpoint(false);
    assert_eq!(mesh.connect(&config, &mesh.server).await.0, HandshakeKind::Full);
    mesh.clock.advance(601);
    let (kind, _, server_sees) = mesh.connect(&config, &mesh.server).await;
    assert_eq!(kind, HandshakeKind::Resumed, "rustls does not look at the leaf again");
    assert_eq!(server_sees, Err(TlsFault::Expired { ago: 1 }));
}

#[tokio::test]
async fn tickets_last_an_hour() {
    let mesh = Mesh::new();
    let config = mesh.client.client_config_for_endpoint(false);
    assert_eq!(mesh.connect(&config, &mesh.server).await.0, HandshakeKind::Full);
    mesh.clock.advance(3599);
    assert_eq!(mesh.connect(&config, &mesh.server).await.0, HandshakeKind::Resumed);
    mesh.clock.advance(3600);
    assert_eq!(mesh.connect(&config, &mesh.server).await.0, HandshakeKind::Full);
}

#[tokio::test]
async fn tickets_last_no_longer_than_the_servers_leaf() {
    let mesh = Mesh::new();
    let leaf = mesh.ca.issue(SERVER, mesh.clock.now() - 60, mesh.clock.now() + 600);
    let server = leaf.credentials(SERVER, &mesh.bundle, &mesh.clock).unwrap();
    assert_eq!(server.server_config().ticketer.lifetime(), 600);
    assert_eq!(mesh.server.server_config().ticketer.lifetime(), 3600);
}

#[tokio::test]
async fn new_credentials_of_the_server_end_its_sessions() {
    let mesh = Mesh::new();
    let config = mesh.client.client_config_for_endpoint(false);
    assert_eq!(mesh.connect(&config, &mesh.server).await.0, HandshakeKind::Full);
    let renewed = mesh.ca.credentials(SERVER, &mesh.bundle, &mesh.clock).unwrap();
    assert!(renewed.epoch() > mesh.server.epoch());
    assert_eq!(mesh.connect(&config, &renewed).await.0, HandshakeKind::Full);
}

#[tokio::test]
async fn a_session_from_before_the_bundle_changed_is_no_way_around_the_new_one() {
    let (mesh, other) = (Mesh::new(), Mesh::new());
    let config = mesh.client.client_config_for_endpoint(false);
    assert_eq!(mesh.connect(&config, &mesh.server).await.0, HandshakeKind::Full);
    // The server believes another root now; its own leaf comes from both, as while a root is replaced.
    let issued = mesh.ca.issue(SERVER, mesh.clock.now() - 60, mesh.clock.now() + DAY);
    let both = TrustBundle::from_pem(&format!("{}{}", mesh.bundle.pem(), other.bundle.pem())).unwrap();
    let between = issued.credentials(SERVER, &both, &mesh.clock).unwrap();
    let (kind, ..) = mesh.connect(&config, &between).await;
    assert_eq!(kind, HandshakeKind::Full, "a session is proof of what was believed then");
    let after = other.ca.credentials(SERVER, &other.bundle, &other.clock).unwrap();
    let bundle = TrustBundle::from_pem(&format!("{}{}", mesh.bundle.pem(), other.bundle.pem())).unwrap();
    let client = mesh.ca.credentials(CLIENT, &bundle, &mesh.clock).unwrap();
    let config = client.client_config_for_endpoint(false);
    assert_eq!(mesh.connect(&config, &mesh.server).await.0, HandshakeKind::Full);
    let (_client, server) = handshake(config, after.server_config()).await;
    assert_eq!(TlsFault::from(&server.unwrap_err()).label(), "untrusted");
}

#[tokio::test]
async fn anothers_session_is_the_others_identity_whoever_resumes_it() {
    let mesh = Mesh::new();
    let config = mesh.client.client_config_for_endpoint(false);
    assert_eq!(mesh.connect(&config, &mesh.server).await.0, HandshakeKind::Full);
    // Mallory has the store with the session's secret, and a certificate of her own.
    let mallory = "mallory.shop.serviceaccount.identity.remora.cluster.local";
    let own = mesh.ca.credentials(mallory, &mesh.bundle, &mesh.clock).unwrap();
    let mut stolen = (*own.client_config_for_endpoint(false)).clone();
    stolen.resumption = config.resumption.clone();
    let (kind, _, server_sees) = mesh.connect(&Arc::new(stolen), &mesh.server).await;
    // What is stored is who proved it, not who says so: policy sees the same client as before, or a full handshake.
    let expected = if kind == HandshakeKind::Resumed { CLIENT } else { mallory };
    assert_eq!(server_sees.unwrap().unwrap().identity, identity(expected));
}

#[tokio::test]
async fn a_session_of_another_server_is_none_here() {
    let mesh = Mesh::new();
    let config = mesh.client.client_config_for_endpoint(false);
    assert_eq!(mesh.connect(&config, &mesh.server).await.0, HandshakeKind::Full);
    // Under the same name, as two replicas are.
    let sibling = mesh.ca.credentials(SERVER, &mesh.bundle, &mesh.clock).unwrap();
    let (kind, _, server_sees) = mesh.connect(&config, &sibling).await;
    assert_eq!((kind, server_sees.unwrap().unwrap().identity), (HandshakeKind::Full, identity(CLIENT)));
}

#[tokio::test]
async fn early_data_is_neither_offered_nor_taken() {
    let mesh = Mesh::new();
    let config = mesh.client.client_config_for_endpoint(false);
    assert!(!config.enable_early_data);
    let mut eager = (*config).clone();
    eager.enable_early_data = true;
    let eager = Arc::new(eager);
    assert_eq!(mesh.connect(&eager, &mesh.server).await.0, HandshakeKind::Full);
    let mut again = rustls::ClientConnection::new(eager, server_name(SERVER).unwrap()).unwrap();
    assert!(again.early_data().is_none(), "the ticket allows early data");
    assert_eq!(mesh.server.server_config().max_early_data_size, 0);
}

#[tokio::test]
async fn a_clock_that_went_back_an_hour_means_a_full_handshake() {
    let mesh = Mesh::new();
    // Valid for long, so that only the ticket's age is in question.
    let long = |name: &str| mesh.ca.issue(name, mesh.clock.now() - 2 * 3600, mesh.clock.now() + DAY);
    let server = long(SERVER).credentials(SERVER, &mesh.bundle, &mesh.clock).unwrap();
    let client = long(CLIENT).credentials(CLIENT, &mesh.bundle, &mesh.clock).unwrap();
    let config = client.client_config_for_endpoint(false);
    assert_eq!(mesh.connect(&config, &server).await.0, HandshakeKind::Full);
    mesh.clock.back(3600);
    assert_eq!(mesh.connect(&config, &server).await.0, HandshakeKind::Full);
}

// Chains that no authority of ours makes.

#[tokio::test]
async fn a_client_that_shows_an_authoritys_certificate_is_refused() {
    let mesh = Mesh::new();
    let shown = mesh.shown(|ca| {
        let key = KeyPair::generate().unwrap();
        let params = authority_params("an intermediate");
        (vec![params.signed_by(&key, &ca.issuer).unwrap().der().clone()], key)
    });
    let (_client, server) = handshake(shown, mesh.server.server_config()).await;
    // By the chain's verification, or by who reads the leaf afterwards.
    let refused = match server {
        Err(fault) => TlsFault::from(&fault),
        Ok(server) => peer(server.get_ref().1, mesh.clock.unix()).unwrap_err(),
    };
    assert!(["untrusted", "authority"].contains(&refused.label()), "{refused:?}");
}

#[tokio::test]
async fn a_chain_of_a_hundred_is_refused() {
    let mesh = Mesh::new();
    let shown = mesh.shown(|ca| {
        let mut chain = Vec::new();
        let mut above: Option<Issuer<'static, KeyPair>> = None;
        for n in 0..99 {
            let (key, params) = (KeyPair::generate().unwrap(), authority_params(&format!("authority {n}")));
            let issuer = above.as_ref().unwrap_or(&ca.issuer);
            chain.insert(0, params.signed_by(&key, issuer).unwrap().der().clone());
            above = Some(Issuer::new(params, key));
        }
        let key = KeyPair::generate().unwrap();
        let leaf = leaf_params(&[dns(CLIENT)], 0, mesh.clock.now() + DAY);
        chain.insert(0, leaf.signed_by(&key, &above.unwrap()).unwrap().der().clone());
        (chain, key)
    });
    let (_client, server) = handshake(shown, mesh.server.server_config()).await;
    assert_eq!(TlsFault::from(&server.unwrap_err()).label(), "untrusted");
}

#[tokio::test]
async fn authorities_that_all_have_the_same_name_do_not_make_the_search_for_a_path_endless() {
    let mesh = Mesh::new();
    // Each could have signed each: a search without a budget tries every order of them.
    let shown = mesh.shown(|_| {
        let keys: Vec<KeyPair> = (0..60).map(|_| KeyPair::generate().unwrap()).collect();
        let params = authority_params("the same name");
        let issuers: Vec<_> = keys.into_iter().map(|key| Issuer::new(params.clone(), key)).collect();
        let certificates = issuers.iter().enumerate().map(|(n, issuer)| {
            let above = &issuers[(n + 1) % issuers.len()];
            params.signed_by(issuer.key(), above).unwrap().der().clone()
        });
        let key = KeyPair::generate().unwrap();
        let leaf = leaf_params(&[dns(CLIENT)], 0, mesh.clock.now() + DAY);
        let leaf = leaf.signed_by(&key, &issuers[0]).unwrap().der().clone();
        (std::iter::once(leaf).chain(certificates).collect(), key)
    });
    let (_client, server) = handshake(shown, mesh.server.server_config()).await;
    assert_eq!(TlsFault::from(&server.unwrap_err()).label(), "untrusted");
}

#[tokio::test]
async fn a_client_whose_names_are_none_of_ours_has_no_identity() {
    let mesh = Mesh::new();
    for names in [
        vec![dns("*.shop.serviceaccount.identity.remora.cluster.local")],
        vec![dns("web.shop.serviceaccount.identity.remora.cluster.local\0.evil.example")],
        vec![SanType::IpAddress([10, 0, 0, 1].into())],
        Vec::new(),
    ] {
        let shown = mesh.shown(|ca| {
            let key = KeyPair::generate().unwrap();
            let mut params = leaf_params(&names, 0, mesh.clock.now() + DAY);
            // The subject is nobody's name here, whatever it says.
            params.distinguished_name.push(DnType::CommonName, SERVER);
            (vec![params.signed_by(&key, &ca.issuer).unwrap().der().clone()], key)
        });
        let (_client, server) = handshake(shown, mesh.server.server_config()).await;
        let refused = match server {
            Err(fault) => TlsFault::from(&fault),
            Ok(server) => peer(server.get_ref().1, mesh.clock.unix()).unwrap_err(),
        };
        assert!(
            ["no_identity", "untrusted", "unreadable"].contains(&refused.label()),
            "{names:?}: {refused:?}"
        );
    }
}

#[tokio::test]
async fn sessions_of_an_ordinary_port_are_none_on_the_direct_one() {
    let mesh = Mesh::new();
    let config = mesh.client.client_config_for_endpoint(true);
    assert_eq!(mesh.connect(&config, &mesh.server).await.0, HandshakeKind::Full);
    let (client, server) = handshake(config, mesh.server.direct_server_config(false)).await;
    assert_eq!(client.unwrap().get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
    server.unwrap();
}

#[tokio::test]
async fn each_endpoint_has_sessions_of_its_own() {
    let mesh = Mesh::new();
    assert_eq!(
        mesh.connect(&mesh.client.client_config_for_endpoint(false), &mesh.server).await.0,
        HandshakeKind::Full
    );
    let other = mesh.client.client_config_for_endpoint(false);
    assert_eq!(mesh.connect(&other, &mesh.server).await.0, HandshakeKind::Full);
}

#[test]
fn a_session_too_large_for_a_client_hello_gets_no_ticket() {
    let ticketer = Ticketer::new(MAX_TICKET_LIFETIME, Arc::new(Clock::at(1))).unwrap();
    assert_eq!(ticketer_round_trip(&ticketer, ticket::MAX_SESSION), Some(ticket::MAX_SESSION));
    assert_eq!(ticketer_round_trip(&ticketer, ticket::MAX_SESSION + 1), None);
}

// Which leaves name whom.

#[test]
fn the_first_name_that_is_an_identity_counts() {
    check_names(&[dns(SERVER)], Ok(SERVER));
    check_names(&[dns("*.shop.local"), dns(SERVER)], Ok(SERVER));
    check_names(&[dns("a\0b"), dns(SERVER)], Ok(SERVER));
    check_names(&[SanType::IpAddress([10, 0, 0, 1].into()), dns(SERVER)], Ok(SERVER));
    check_names(&[uri("spiffe://root/web"), dns(SERVER)], Ok("spiffe://root/web"));
    check_names(&[dns(CLIENT), dns(SERVER)], Ok(CLIENT));
    check_names(&[dns("*.shop.local")], Err(TlsFault::NoIdentity));
    check_names(&[], Err(TlsFault::NoIdentity));
    // A DNS name is no place for a URI, nor the other way round.
    check_names(&[dns("spiffe://root/web")], Err(TlsFault::NoIdentity));
    check_names(&[uri(SERVER)], Err(TlsFault::NoIdentity));
}

#[test]
fn a_leaf_with_a_name_that_nobody_can_read_is_nobodys() {
    let leaf = Ca::new().leaf(&[dns(SERVER), dns("garbled")], 0, DAY);
    let mut der = leaf.to_vec();
    let at = der.windows(7).position(|window| window == b"garbled").unwrap();
    der[at] = 0xff;
    let fault = peer_of_leaf(&CertificateDer::from(der), UnixTime::from_secs(1)).unwrap_err();
    assert!(matches!(fault, TlsFault::Unreadable(_)), "{fault}");
}

#[test]
fn any_name_of_a_leaf_is_enough_for_who_expects_it() {
    let ca = Ca::new();
    let leaf = ca.leaf(&[dns(CLIENT), dns(SERVER)], 0, DAY);
    let seen = peer_of_leaf(&leaf, UnixTime::from_secs(1)).unwrap();
    require(&seen, &identity(CLIENT)).unwrap();
    require(&seen, &identity(SERVER)).unwrap();
    assert!(require(&seen, &identity("a.b")).is_err());
}

#[test]
fn an_authority_is_no_peer() {
    let ca = Ca::new();
    assert_eq!(peer_of_leaf(ca.certificate.der(), UnixTime::from_secs(unix())), Err(TlsFault::Authority));
}

#[test]
fn garbage_is_unreadable() {
    for garbage in [&b""[..], b"\x30\x03", b"not a certificate"] {
        let fault = peer_of_leaf(&CertificateDer::from(garbage), UnixTime::from_secs(1)).unwrap_err();
        assert_eq!(fault.label(), "unreadable");
    }
}

// What may be our credentials.

#[test]
fn credentials_are_refused_with_the_reason() {
    let (mesh, other) = (Mesh::new(), Mesh::new());
    let now = mesh.clock.now();
    let good = || mesh.ca.issue(SERVER, now - 60, now + DAY);
    let refused = |issued: Issued, name: &str, bundle: &Arc<TrustBundle>| {
        issued.credentials(name, bundle, &mesh.clock).map(|_| ()).unwrap_err().to_string()
    };
    good().credentials(SERVER, &mesh.bundle, &mesh.clock).unwrap();
    assert!(refused(good(), CLIENT, &mesh.bundle).contains("was issued to web.shop"));
    assert!(refused(good(), SERVER, &other.bundle).contains("does not lead to the trust anchors (CN=root)"));
    let foreign_key = Issued { key: Keypair::generate().unwrap(), ..good() };
    assert!(refused(foreign_key, SERVER, &mesh.bundle).contains("public key is not ours"));
    let expired = mesh.ca.issue(SERVER, now - 120, now - 60);
    assert!(refused(expired, SERVER, &mesh.bundle).contains("expired 60 s ago"));
    let early = mesh.ca.issue(SERVER, now + 30, now + DAY);
    assert!(refused(early, SERVER, &mesh.bundle).contains("do the clocks agree?"));
    let garbage = Issued { leaf: vec![1, 2, 3], ..good() };
    assert!(refused(garbage, SERVER, &mesh.bundle).contains("cannot be read"));
    let long = Issued { intermediates: vec![Vec::new(); 9], ..good() };
    assert!(refused(long, SERVER, &mesh.bundle).contains("more than 8"));
}

#[test]
fn a_bundle_says_which_certificate_is_wrong() {
    let (a, b) = (Ca::new(), Ca::new());
    let leaf = leaf_params(&[dns(SERVER)], 0, DAY).self_signed(&KeyPair::generate().unwrap()).unwrap().pem();
    let refused = |text: &str| TrustBundle::from_pem(text).unwrap_err().to_string();
    assert_eq!(TrustBundle::from_pem(&format!("{}{}", a.pem(), b.pem())).unwrap().anchors().len(), 2);
    assert!(refused("").contains("hold no certificate"));
    assert!(refused("cluster.local").contains("hold no certificate"));
    assert!(
        refused(&format!("{}{leaf}", a.pem())).contains("certificate 2 of the trust anchors cannot be used")
    );
    let garbage = "-----BEGIN CERTIFICATE-----\nMAEA\n-----END CERTIFICATE-----\n";
    assert!(refused(garbage).contains("certificate 1"));
    let key = KeyPair::generate().unwrap().serialize_pem();
    assert!(refused(&format!("{}{key}", a.pem())).contains("block 2 of the trust anchors is a PrivateKey"));
    let cut = a.pem().replace("-----END CERTIFICATE-----\n", "");
    assert!(refused(&cut).contains("not PEM after certificate 0"), "{}", refused(&cut));
    assert!(refused(&a.pem().repeat(65)).contains("more than 64"));
}

#[test]
fn a_key_never_prints_itself() {
    let key = Keypair::generate().unwrap();
    assert_eq!(format!("{key:?}"), "Keypair(redacted)");
    assert!(!key.pkcs8_der().is_empty());
}

#[test]
fn a_request_names_the_identity_twice_and_nothing_else() {
    use x509_parser::prelude::*;
    let key = Keypair::generate().unwrap();
    let csr = key.csr_der(&identity(SERVER)).unwrap();
    let (rest, csr) = X509CertificationRequest::from_der(&csr).unwrap();
    assert!(rest.is_empty());
    csr.verify_signature().unwrap();
    let info = &csr.certification_request_info;
    assert_eq!(info.subject.to_string(), format!("CN={SERVER}"));
    assert_eq!(info.subject_pki.raw, key.public_key_der());
    let extensions: Vec<_> = csr.requested_extensions().unwrap().collect();
    let [ParsedExtension::SubjectAlternativeName(san)] = extensions[..] else { panic!("{extensions:?}") };
    assert_eq!(san.general_names, [GeneralName::DNSName(SERVER)]);
    assert!(matches!(key.csr_der(&identity("spiffe://root/web")), Err(KeyFault::NotDns(_))));
}

// Helpers.

struct Mesh {
    clock: Clock,
    ca: Ca,
    bundle: Arc<TrustBundle>,
    server: Arc<Credentials>,
    client: Arc<Credentials>,
}

impl Mesh {
    fn new() -> Self {
        let ca = Ca::new();
        let clock = Clock::at(unix());
        let bundle = TrustBundle::from_pem(&ca.pem()).unwrap();
        let server = ca.credentials(SERVER, &bundle, &clock).unwrap();
        let client = ca.credentials(CLIENT, &bundle, &clock).unwrap();
        Self { clock, ca, bundle, server, client }
    }

    /// A client that shows a chain of its own making, and has the key of its leaf.
    fn shown(&self, make: impl FnOnce(&Ca) -> (Vec<CertificateDer<'static>>, KeyPair)) -> Arc<ClientConfig> {
        let (chain, key) = make(&self.ca);
        let key = rustls_pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let config = client_builder(&self.bundle, Arc::new(self.clock.clone())).unwrap();
        Arc::new(config.with_client_auth_cert(chain, key).unwrap())
    }

    async fn pair(&self) -> (client::TlsStream<DuplexStream>, server::TlsStream<DuplexStream>) {
        let (client, server) =
            handshake(self.client.client_config_for_endpoint(false), self.server.server_config()).await;
        (client.unwrap(), server.unwrap())
    }

    /// Connects, exchanges a byte each way (so that the ticket arrives), and says how it went and who saw whom.
    async fn connect(&self, config: &Arc<ClientConfig>, server: &Credentials) -> (HandshakeKind, Seen, Seen) {
        let (client, server) = handshake(config.clone(), server.server_config()).await;
        let (client, server) = exchange(client.unwrap(), server.unwrap()).await;
        let now = self.clock.unix();
        let kind = client.get_ref().1.handshake_kind().unwrap();
        (kind, peer(client.get_ref().1, now), peer(server.get_ref().1, now))
    }
}

type Seen = Result<Option<PeerCertificate>, TlsFault>;

#[derive(Clone, Debug)]
struct Clock(Arc<AtomicU64>);

impl Clock {
    fn at(secs: u64) -> Self {
        Self(Arc::new(AtomicU64::new(secs)))
    }

    fn now(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    fn unix(&self) -> UnixTime {
        UnixTime::from_secs(self.now())
    }

    fn back(&self, secs: u64) {
        self.0.fetch_sub(secs, Ordering::SeqCst);
    }

    fn advance(&self, secs: u64) {
        self.0.fetch_add(secs, Ordering::SeqCst);
    }
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<rustls_pki_types::UnixTime> {
        Some(rustls_pki_types::UnixTime::since_unix_epoch(Duration::from_secs(self.now())))
    }
}

pub(crate) struct Ca {
    certificate: rcgen::Certificate,
    pub(crate) issuer: Issuer<'static, KeyPair>,
}

pub(crate) struct Issued {
    key: Keypair,
    leaf: Vec<u8>,
    intermediates: Vec<Vec<u8>>,
}

impl Issued {
    fn credentials(
        self,
        name: &str,
        bundle: &Arc<TrustBundle>,
        clock: &Clock,
    ) -> Result<Arc<Credentials>, CredentialsFault> {
        Credentials::with_clock(
            identity(name),
            &self.key,
            self.leaf,
            self.intermediates,
            bundle.clone(),
            Arc::new(clock.clone()),
        )
    }
}

impl Ca {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "root");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = params.self_signed(&key).unwrap();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    pub(crate) fn pem(&self) -> String {
        self.certificate.pem()
    }

    fn credentials(
        &self,
        name: &str,
        bundle: &Arc<TrustBundle>,
        clock: &Clock,
    ) -> Result<Arc<Credentials>, CredentialsFault> {
        self.issue(name, clock.now() - 60, clock.now() + DAY).credentials(name, bundle, clock)
    }

    fn issue(&self, name: &str, not_before: u64, not_after: u64) -> Issued {
        let key = Keypair::generate().unwrap();
        let subject = rcgen::SubjectPublicKeyInfo::from_der(&key.public_key_der()).unwrap();
        let params = leaf_params(&[dns(name)], not_before, not_after);
        let leaf = params.signed_by(&subject, &self.issuer).unwrap().der().to_vec();
        Issued { key, leaf, intermediates: Vec::new() }
    }

    fn leaf(&self, names: &[SanType], not_before: u64, not_after: u64) -> CertificateDer<'static> {
        let params = leaf_params(names, not_before, not_after);
        params.signed_by(&KeyPair::generate().unwrap(), &self.issuer).unwrap().der().clone()
    }
}

pub(crate) fn leaf_params(names: &[SanType], not_before: u64, not_after: u64) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.subject_alt_names = names.to_vec();
    params.not_before = (UNIX_EPOCH + Duration::from_secs(not_before)).into();
    params.not_after = (UNIX_EPOCH + Duration::from_secs(not_after)).into();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params
}

fn authority_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

#[track_caller]
fn check_names(names: &[SanType], expected: Result<&str, TlsFault>) {
    let leaf = Ca::new().leaf(names, 0, DAY);
    let seen = peer_of_leaf(&leaf, UnixTime::from_secs(1)).map(|peer| peer.identity);
    assert_eq!(seen, expected.map(identity));
}

pub(crate) fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().unwrap())
}

fn uri(name: &str) -> SanType {
    SanType::URI(name.try_into().unwrap())
}

pub(crate) fn identity(name: &str) -> Identity {
    Identity::parse(name).unwrap()
}

pub(crate) fn unix() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

async fn handshake(
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
) -> (io::Result<client::TlsStream<DuplexStream>>, io::Result<server::TlsStream<DuplexStream>>) {
    let (near, far) = tokio::io::duplex(64 * 1024);
    tokio::join!(
        TlsConnector::from(client).connect(server_name(SERVER).unwrap(), near),
        TlsAcceptor::from(server).accept(far)
    )
}

async fn exchange(
    mut client: client::TlsStream<DuplexStream>,
    mut server: server::TlsStream<DuplexStream>,
) -> (client::TlsStream<DuplexStream>, server::TlsStream<DuplexStream>) {
    client.write_all(b"?").await.unwrap();
    assert_eq!(server.read_u8().await.unwrap(), b'?');
    server.write_all(b"!").await.unwrap();
    assert_eq!(client.read_u8().await.unwrap(), b'!');
    (client, server)
}

fn client_hello(config: &Arc<ClientConfig>) -> Vec<u8> {
    let mut connection = rustls::ClientConnection::new(config.clone(), server_name(SERVER).unwrap()).unwrap();
    let mut hello = Vec::new();
    while connection.wants_write() {
        connection.write_tls(&mut hello).unwrap();
    }
    hello
}

fn ticketer_round_trip(ticketer: &Ticketer, size: usize) -> Option<usize> {
    use rustls::server::ProducesTickets;
    Some(ticketer.decrypt(&ticketer.encrypt(&vec![7; size])?)?.len())
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

//! Who may talk to whom, and whose name a leaf is.

use super::*;

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

#[test]
fn the_first_name_that_is_an_identity_counts() {
    check_names(&[dns(SERVER)], Ok(SERVER));
    check_names(&[SanType::IpAddress([10, 0, 0, 1].into()), dns(SERVER)], Ok(SERVER));
    check_names(&[uri("spiffe://mesh/web"), dns(SERVER)], Ok("spiffe://mesh/web"));
    check_names(&[dns(CLIENT), dns(SERVER)], Ok(CLIENT));
    check_names(&[], Err(TlsFault::NoIdentity));
    // An otherName is nobody's, whatever it says; a name that is there twice is the same one.
    check_names(&[other(SERVER), dns(CLIENT)], Ok(CLIENT));
    check_names(&[other(SERVER)], Err(TlsFault::NoIdentity));
    check_names(&[uri("spiffe://mesh/a"), uri("spiffe://mesh/a")], Ok("spiffe://mesh/a"));
    check_names(&[uri("spiffe://mesh/a"), uri("spiffe://mesh/b")], Ok("spiffe://mesh/a"));
    // What is no identity and misleads nobody is passed over; a URI is no place for a DNS name.
    check_names(&[uri(SERVER)], Err(TlsFault::NoIdentity));
    check_names(&[uri(SERVER), dns(CLIENT)], Ok(CLIENT));
    check_names(&[dns("a..b"), dns(""), dns(CLIENT)], Ok(CLIENT));
}

#[test]
fn a_leaf_with_a_name_that_misleads_is_nobodys_whatever_stands_beside_it() {
    for (name, told) in [
        (dns("*.shop.local"), "*.shop.local"),
        (dns("*"), "*"),
        (dns("web.shop\0.evil.example"), "web.shop\\0.evil.example"),
        (dns("a b"), "a b"),
        (dns("spiffe://mesh/web"), "spiffe://mesh/web"),
        (dns("\r\nx: y"), "\\r\\nx: y"),
        (uri("spiffe://mesh/*"), "spiffe://mesh/*"),
        (uri("spiffe://mesh/web\0"), "spiffe://mesh/web\\0"),
        (dns(&"*".repeat(5000)), &"*".repeat(64)),
    ] {
        let nobody = || Err(TlsFault::NotAName(told.to_owned()));
        check_names(std::slice::from_ref(&name), nobody());
        check_names(&[name.clone(), dns(SERVER)], nobody());
        check_names(&[dns(SERVER), name.clone()], nobody());
        // Behind those that are looked at, too.
        let mut many = vec![dns(SERVER); 20];
        many.push(name);
        check_names(&many, nobody());
    }
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

#[track_caller]
fn check_names(names: &[SanType], expected: Result<&str, TlsFault>) {
    let leaf = Ca::new().leaf(names, 0, DAY);
    let seen = peer_of_leaf(&leaf, UnixTime::from_secs(1)).map(|peer| peer.identity);
    assert_eq!(seen, expected.map(identity));
}

/// A user principal name (1.3.6.1.4.1.311.20.2.3).
fn other(name: &str) -> SanType {
    SanType::OtherName((vec![1, 3, 6, 1, 4, 1, 311, 20, 2, 3], OtherNameValue::Utf8String(name.into())))
}

fn uri(name: &str) -> SanType {
    SanType::URI(name.try_into().unwrap())
}

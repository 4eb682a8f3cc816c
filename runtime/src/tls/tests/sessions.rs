//! Sessions: who may resume which, and for how long.

use super::*;

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

fn ticketer_round_trip(ticketer: &Ticketer, size: usize) -> Option<usize> {
    use rustls::server::ProducesTickets;
    Some(ticketer.decrypt(&ticketer.encrypt(&vec![7; size])?)?.len())
}

//! The service as its clients meet it: over TCP on loopback, with TLS, through gRPC.

use super::*;
use crate::{
    issuer::{IssuerMetrics, Sources, watch as watch_issuer},
    testing::{NAME, Root, csr},
    token::ServiceAccount,
};
use linkerd2_proxy_api::identity::identity_client::IdentityClient;
use remora_runtime::{
    certify::GrpcCertify,
    control::{ClientAuth, ControlAddr, ControlMetrics, Resolve, ResolveFault, Resolved},
    tls::{self, TrustBundle},
};
use std::{net::SocketAddr, path::PathBuf};
use tokio::time::timeout;

const LONG: Duration = Duration::from_secs(30);
const DAY: Lifetimes = Lifetimes { issuance: Duration::from_hours(24), skew: Duration::from_mins(1) };

#[tokio::test]
async fn a_proxy_gets_its_certificate_and_peers_believe_it() {
    let ca = Ca::start(Limits::default()).await;
    let config = CertifierConfig {
        identity: identity(NAME),
        bundle: ca.bundle(),
        refresh: RefreshBounds { min: Duration::from_secs(10), max: Duration::from_hours(24) },
        dir: None,
    };
    let client = ca.client(OWN, "token of shop/web");
    let metrics = CertifyMetrics::register(&Registry::new(Duration::MAX));
    let tasks = Tasks::new();
    let mut credentials = Certifier::spawn(config, client, metrics, &tasks).unwrap();
    let current =
        timeout(LONG, credentials.wait_for(Option::is_some)).await.unwrap().unwrap().clone().unwrap();
    assert_eq!(current.identity(), &identity(NAME));
    assert_eq!(current.chain().len(), 2);

    // The next request is made with it, and the server knows by whom.
    let answer = ca.certify(Some(current), NAME, "token of shop/web", csr(NAME)).await;
    answer.unwrap();
    assert!(
        ca.printed().contains(r#"remora_identity_certify_requests_total{code="Ok"} 2"#),
        "{}",
        ca.printed()
    );
}

#[tokio::test]
async fn another_server_than_identity_is_not_told_the_token() {
    let ca = Ca::start(Limits::default()).await;
    let elsewhere = "remora-destination.remora.serviceaccount.identity.remora.cluster.local";
    let request = CertificateRequest { identity: identity(NAME), csr: csr(NAME), current: None };
    let fault = ca.client(elsewhere, "token of shop/web").certify(request).await.unwrap_err();
    assert!(fault.to_string().contains(&format!("the peer is {OWN}, not {elsewhere}")), "{fault}");
    assert!(!ca.printed().contains("remora_identity_certify_requests_total{"), "{}", ca.printed());
}

#[tokio::test]
async fn refusals_have_the_codes_of_the_contract() {
    let ca = Ca::start(Limits::default()).await;
    let other = "other.shop.serviceaccount.identity.remora.cluster.local";
    let good = "token of shop/web";
    let table = [
        ("", good, csr(NAME), Code::InvalidArgument, "no identity"),
        (NAME, "", csr(NAME), Code::InvalidArgument, "no token"),
        (NAME, good, Vec::new(), Code::InvalidArgument, "no certificate signing request"),
        (NAME, good, b"garbage".to_vec(), Code::InvalidArgument, "cannot be read"),
        (NAME, good, csr(other), Code::FailedPrecondition, "exactly one DNS name"),
        (NAME, "malformed", csr(NAME), Code::InvalidArgument, "the token cannot be read"),
        (NAME, "of a stranger", csr(NAME), Code::FailedPrecondition, "the token is not accepted"),
        (
            NAME,
            "token of shop/other",
            csr(NAME),
            Code::FailedPrecondition,
            "the token is that of other.shop.",
        ),
        (
            NAME,
            "token of office/web",
            csr(NAME),
            Code::FailedPrecondition,
            "the token is that of web.office.",
        ),
        (NAME, "no answer", csr(NAME), Code::Unavailable, "could not be checked"),
        // Both wrong: the request is looked at before anyone is asked about the token.
        (NAME, "of a stranger", csr(other), Code::FailedPrecondition, "exactly one DNS name"),
    ];
    for (name, token, csr, code, why) in table {
        let status = ca.certify(None, name, token, csr).await.unwrap_err();
        assert_eq!(status.code(), code, "{status:?}");
        assert!(status.message().contains(why), "{status:?}");
    }
}

#[tokio::test]
async fn who_asks_too_often_is_told_the_limit() {
    let rate = Quota { burst: 2, interval: Duration::from_hours(1) };
    let ca = Ca::start(Limits { rate, ..Limits::default() }).await;
    let ask = || ca.certify(None, NAME, "token of shop/web", csr(NAME));
    ask().await.unwrap();
    ask().await.unwrap();
    let status = ask().await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().contains("2 requests of one address, then one every 3600s"), "{status:?}");
}

#[tokio::test]
async fn too_many_at_once_are_told_the_limit() {
    let ca = Ca::start(Limits { concurrent: 0, ..Limits::default() }).await;
    let status = ca.certify(None, NAME, "token of shop/web", csr(NAME)).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().contains("0 requests are in progress"), "{status:?}");
}

#[tokio::test]
async fn a_request_beyond_the_bound_is_refused() {
    let ca = Ca::start(Limits::default()).await;
    let status = ca.certify(None, NAME, "x", vec![0; MAX_REQUEST]).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
}

#[tokio::test]
async fn without_an_issuer_the_answer_is_unavailable() {
    let (_sender, authority) = watch::channel(None);
    let registry = Registry::new(Duration::MAX);
    let service = service(authority, Limits::default(), &registry);
    let request = CertifyRequest {
        identity: NAME.to_owned(),
        token: b"x".to_vec(),
        certificate_signing_request: csr(NAME),
    };
    let status = service.certify(tonic::Request::new(request)).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("no issuer yet"), "{status:?}");
}

#[tokio::test]
async fn a_new_root_brings_new_credentials_of_our_own_at_once() {
    let (old, new) = (authority(&Root::new()), authority(&Root::new()));
    let (sender, authorities) = watch::channel(Some(old));
    let metrics = CertifyMetrics::register(&Registry::new(Duration::MAX));
    let tasks = Tasks::new();
    let mut own = own_credentials(authorities, identity(OWN), DAY, metrics, &tasks);
    let first = timeout(LONG, own.wait_for(Option::is_some)).await.unwrap().unwrap().clone().unwrap();
    sender.send_replace(Some(new.clone()));
    let renewed =
        timeout(LONG, own.wait_for(|own| own.as_ref().is_some_and(|own| own.epoch() != first.epoch())));
    let second = renewed.await.unwrap().unwrap().clone().unwrap();
    assert_eq!(second.identity(), &identity(OWN));
    assert!(Arc::ptr_eq(second.bundle(), &new.bundle));
    drop(own);
    drop(sender);
    assert_eq!(tasks.finished(LONG).await, 0);
}

#[tokio::test]
async fn a_drain_ends_the_server() {
    let ca = Ca::start(Limits::default()).await;
    ca.drain.signal();
    assert_eq!(ca.drain.drained(LONG).await, 0);
    assert_eq!(ca.tasks.finished(LONG).await, 0);
}

// Helpers.

const OWN: &str = "remora-identity.remora.serviceaccount.identity.remora.cluster.local";

/// A whole identity service over files, on a port of loopback.
struct Ca {
    addr: SocketAddr,
    root: Root,
    dir: tempfile::TempDir,
    registry: Registry,
    tasks: Tasks,
    drain: Drain,
}

impl Ca {
    async fn start(limits: Limits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new();
        let files = root.files(1_700_000_000, 4_000_000_000);
        for (name, text) in
            [("crt.pem", &files.certificate), ("key.pem", &files.key), ("ca.crt", &root.pem())]
        {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let (registry, tasks, drain) = (Registry::new(Duration::MAX), Tasks::new(), Drain::new());
        let sources = Sources { issuer_dir: dir.path().to_owned(), trust_anchors: dir.path().join("ca.crt") };
        let authority = watch_issuer(sources, IssuerMetrics::register(&registry), &tasks);
        let own = own_credentials(
            authority.clone(),
            identity(OWN),
            DAY,
            CertifyMetrics::register(&registry),
            &tasks,
        );
        let mut ready = own.clone();
        timeout(LONG, ready.wait_for(Option::is_some)).await.unwrap().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let service = service(authority, limits, &registry);
        let connections = AcceptMetrics::register(&registry, "identity");
        let (serving_tasks, serving_drain) = (tasks.clone(), drain.clone());
        tasks.spawn("serve", async move {
            serve(listener, Terminate::Tls(own), service, connections, &serving_tasks, &serving_drain)
                .await
                .unwrap();
        });
        Self { addr, root, dir, registry, tasks, drain }
    }

    fn bundle(&self) -> Arc<TrustBundle> {
        self.root.bundle()
    }

    fn control_addr(&self, server: &str) -> ControlAddr {
        ControlAddr { host: "127.0.0.1".to_owned(), port: self.addr.port(), name: Some(identity(server)) }
    }

    fn client(&self, server: &str, token: &str) -> GrpcCertify<Nowhere> {
        let token_file = self.token_file(token);
        GrpcCertify {
            addr: self.control_addr(server),
            token_file,
            bundle: self.bundle(),
            resolver: Nowhere,
            // Counted apart: a client has its own process.
            metrics: ControlMetrics::register(&Registry::default()),
        }
    }

    fn token_file(&self, token: &str) -> PathBuf {
        let path = self.dir.path().join("token");
        std::fs::write(&path, token).unwrap();
        path
    }

    async fn certify(
        &self,
        current: Option<Arc<Credentials>>,
        name: &str,
        token: &str,
        csr: Vec<u8>,
    ) -> Result<CertifyResponse, Status> {
        let auth = ClientAuth::Bootstrap(current, self.bundle());
        let metrics = ControlMetrics::register(&Registry::default());
        let channel = control::channel(&self.control_addr(OWN), auth, Nowhere, &metrics).unwrap();
        let request = CertifyRequest {
            identity: name.to_owned(),
            token: token.as_bytes().to_vec(),
            certificate_signing_request: csr,
        };
        let mut client = IdentityClient::new(channel);
        Ok(timeout(LONG, client.certify(request)).await.unwrap()?.into_inner())
    }

    fn printed(&self) -> String {
        self.registry.render()
    }
}

fn service(
    authority: watch::Receiver<Option<Arc<Authority>>>,
    limits: Limits,
    registry: &Registry,
) -> CertifyService<Words> {
    let names = Names { control_namespace: "remora".to_owned(), trust_domain: "cluster.local".to_owned() };
    CertifyService::new(authority, Words, names, DAY, limits, ServeMetrics::register(registry))
}

fn authority(root: &Root) -> Arc<Authority> {
    let issuer = root.issuer(clock::unix_now() + Duration::from_hours(48));
    Arc::new(Authority { issuer, bundle: root.bundle() })
}

fn identity(name: &str) -> Identity {
    tls::server_name(name).unwrap();
    Identity::parse(name).unwrap()
}

/// Believes what tokens say of themselves.
struct Words;

impl TokenValidator for Words {
    async fn validate(&self, token: &[u8]) -> Result<ServiceAccount, InvalidToken> {
        let text = std::str::from_utf8(token).unwrap();
        if let Some((namespace, name)) = text.strip_prefix("token of ").and_then(|text| text.split_once('/'))
        {
            return Ok(ServiceAccount { namespace: namespace.to_owned(), name: name.to_owned() });
        }
        Err(match text {
            "malformed" => InvalidToken::Malformed("so it says".to_owned()),
            "no answer" => InvalidToken::Unavailable("so it says".to_owned()),
            _ => InvalidToken::Rejected("so it says".to_owned()),
        })
    }
}

#[derive(Clone)]
struct Nowhere;

impl Resolve for Nowhere {
    async fn resolve(&self, _host: &str, _port: u16) -> Result<Resolved, ResolveFault> {
        Err(ResolveFault::Timeout)
    }
}

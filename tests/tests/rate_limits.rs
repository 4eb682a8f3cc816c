//! Who asks a server too often is told so, and nobody else: the local rate limit of a server's policy, in all, for each
//! client and for some. Contract 4.7; who decides is scripted, in Linkerd's API.
#![expect(clippy::unwrap_used, reason = "a test says what it expects")]

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Empty;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use linkerd2_proxy_api::inbound::{self, http_local_rate_limit as wire};
use linkerd2_proxy_api::meta;
use remora_tests::controller::{self, Controller, Reply};
use remora_tests::shop::{self, PATIENCE, SHOP};
use remora_tests::{App, Mesh, PodRef, check, peer};

const PORT: u16 = 8080;
/// Requests per second of each client, and so at once.
const EACH: u32 = 5;
/// Of all together.
const TOTAL: u32 = 40;
/// Clients that ask at once, each as often as he may: far more than all may.
const CROWD: u32 = 20;
/// Of one client.
const SPECIAL: u32 = 20;
const REFUSED: &str = "inbound_http_local_ratelimit_total";

#[test]
fn who_asks_too_often_is_told_so_and_others_are_served() {
    if !check::can_run() {
        return;
    }
    let mesh = shop::open(&[shop::idle("web", &[])]).unwrap();
    let web = mesh.pod(SHOP, "web").unwrap();
    let controller = Controller::replace(&mesh, |asked| {
        if asked.about == PORT.to_string() { Reply::says([policy("server-first")]) } else { Reply::fails(5) }
    });
    let controller = controller.unwrap();
    let app = App::start(&web, PORT, "web").unwrap();
    let applied = |name: &str| shop::state(&web).is_ok_and(|state| state.to_string().contains(name));
    // The real controller's word holds until the scripted one is heard, and nobody looks at a port before it is used.
    mesh.wait_until("the policy to be known", PATIENCE, || {
        let _ = mesh.dial(web.at(PORT).unwrap());
        applied("server-first")
    })
    .unwrap();

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let began = Instant::now();
    let (mut greedy, mut allowed) = runtime.block_on(async {
        let mut greedy = Client::new(&mesh, &web, "greedy").await;
        let mut allowed = greedy.asks(30).await;
        is_within(allowed, began);
        // Another has his own, and so has the special one.
        let mut modest = Client::new(&mesh, &web, "modest").await;
        assert_eq!(modest.asks(EACH).await, EACH);
        let mut special = Client::new(&mesh, &web, "special").await;
        assert_eq!(special.asks(SPECIAL / 2).await, SPECIAL / 2);
        allowed += greedy.is_told().await;
        (greedy, allowed)
    });

    // A policy that changes in something else gives nobody a new burst.
    controller.push("WatchPort", &PORT.to_string(), policy("server-second"));
    mesh.wait_until("the new policy", PATIENCE, || applied("server-second")).unwrap();
    allowed += runtime.block_on(greedy.asks(30));
    is_within(allowed, began);
    let metrics = web.metrics().unwrap();
    let labels =
        [("ratelimit_name", "limits"), ("ratelimit_scope", "identity"), ("srv_name", "server-first")];
    assert!(metrics.count(REFUSED, &labels) >= 20, "{}", metrics.count(REFUSED, &labels));
    assert!(
        mesh.logs(&web, "linkerd-proxy").contains("more often than httplocalratelimitpolicy/limits allows")
    );

    // Together they are more than all may, and each has enough of his own.
    let refused = runtime.block_on(async {
        let mut crowd = Vec::new();
        for nth in 0..CROWD {
            crowd.push(Client::new(&mesh, &web, &format!("crowd-{nth}")).await);
        }
        let mut refused = 0;
        for one in &mut crowd {
            refused += EACH - one.asks(EACH).await;
        }
        refused
    });
    let total = web.metrics().unwrap().count(REFUSED, &[("ratelimit_scope", "total")]);
    assert!(refused > 0 && u64::from(refused) == total, "{refused} and {total}");
    drop(app);
}

/// A client with an identity and one connection.
struct Client {
    sender: SendRequest<Empty<Bytes>>,
}

impl Client {
    async fn new(mesh: &Mesh, web: &PodRef<'_>, account: &str) -> Self {
        let own = mesh.certify(&shop::identity(account)).unwrap();
        let config = peer::client(mesh.root(), Some(&own), &[]).unwrap();
        let tcp = mesh.dial(web.at(PORT).unwrap()).unwrap();
        let stream = peer::handshake(tcp, &shop::identity("web"), Arc::clone(&config)).await.unwrap();
        let (sender, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self { sender }
    }

    async fn ask(&mut self, grpc: bool) -> Response<hyper::body::Incoming> {
        let content = if grpc { "application/grpc" } else { "text/plain" };
        let request = Request::get("http://web.shop:8080/").header("content-type", content);
        self.sender.send_request(request.body(Empty::new()).unwrap()).await.unwrap()
    }

    /// How many of so many were not refused.
    async fn asks(&mut self, requests: u32) -> u32 {
        let mut allowed = 0;
        for _ in 0..requests {
            let status = self.ask(false).await.status().as_u16();
            assert!(matches!(status, 200 | 429), "{status}");
            allowed += u32::from(status == 200);
        }
        allowed
    }

    /// Asks until it is refused, then as gRPC does. How many were not refused.
    async fn is_told(&mut self) -> u32 {
        let mut allowed = 0;
        let refused = loop {
            let answer = self.ask(false).await;
            if answer.status() == 429 {
                break answer;
            }
            allowed += 1;
        };
        let error = refused.headers()["l5d-proxy-error"].to_str().unwrap();
        let who = shop::identity("greedy");
        assert!(error.starts_with(&format!("{who} asks ")), "{error}");
        assert!(error.contains(" more often than httplocalratelimitpolicy/limits allows"), "{error}");
        assert!(error.contains("5 requests per second (identity limit)"), "{error}");
        assert!(!refused.headers().contains_key("l5d-proxy-connection"), "the connection goes on");
        loop {
            let answer = self.ask(true).await;
            assert_eq!(answer.status(), 200);
            if let Some(status) = answer.headers().get("grpc-status") {
                assert_eq!(status, "8");
                return allowed;
            }
            // The application's answer.
            allowed += 1;
        }
    }
}

/// No more than at once and since.
#[track_caller]
fn is_within(allowed: u32, began: Instant) {
    let earned = (began.elapsed().as_secs_f64() * f64::from(EACH)) as u32;
    assert!((EACH..=EACH + earned + 1).contains(&allowed), "{allowed}, and {earned} earned");
}

/// Everybody is admitted, but not too often.
fn policy(server: &str) -> Bytes {
    let limit = |requests_per_second| Some(wire::Limit { requests_per_second });
    let special = inbound::Identity { name: shop::identity("special") };
    let clients = wire::r#override::ClientIdentities { identities: vec![special] };
    let kind = meta::metadata::Kind::Resource(meta::Resource {
        kind: "HTTPLocalRateLimitPolicy".into(),
        name: "limits".into(),
        ..Default::default()
    });
    let limits = inbound::HttpLocalRateLimit {
        metadata: Some(meta::Metadata { kind: Some(kind) }),
        total: limit(TOTAL),
        identity: limit(EACH),
        overrides: vec![wire::Override { limit: limit(SPECIAL), clients: Some(clients) }],
    };
    let route =
        inbound::HttpRoute { rules: vec![inbound::http_route::Rule::default()], ..Default::default() };
    let http2 = inbound::proxy_protocol::Http2 { routes: vec![route], local_rate_limit: Some(limits) };
    let net = |net: &str| inbound::Network {
        net: Some(net.parse::<ipnet::IpNet>().unwrap().into()),
        except: Vec::new(),
    };
    let permit = Some(inbound::authn::Permit::Unauthenticated(inbound::authn::PermitUnauthenticated {}));
    let anybody = inbound::Authz {
        networks: vec![net("0.0.0.0/0"), net("::/0")],
        authentication: Some(inbound::Authn { permit }),
        ..Default::default()
    };
    let kind = Some(inbound::proxy_protocol::Kind::Http2(http2));
    controller::encode(&inbound::Server {
        protocol: Some(inbound::ProxyProtocol { kind }),
        authorizations: vec![anybody],
        labels: HashMap::from([("name".to_owned(), server.to_owned())]),
        ..Default::default()
    })
    .unwrap()
}

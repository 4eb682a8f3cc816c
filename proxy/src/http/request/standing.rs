//! Whether an inbound request that is under way may go on. It is decided anew whenever the policy of its port changes,
//! until its answer is over: in the same way as when it came, and of the same head.

use super::{Inbound, permitted};
use crate::{fault::Fault, inbound};
use http::{HeaderName, HeaderValue, Method, Request, Uri, header};
use remora_core::route::RequestView;
use std::{
    future::{Future, pending},
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

/// A request that was admitted. Asking whether it may go on is a glance, unless the policy has changed.
pub struct Standing {
    context: Arc<Inbound>,
    head: Head,
    /// By which of the policy's changes it was admitted last.
    admitted: AtomicUsize,
    refused: OnceLock<Fault>,
}

impl Standing {
    /// Before the policy is asked about it; `None` where that never changes.
    pub(super) fn of<B>(context: &Arc<Inbound>, request: &Request<B>) -> Option<Arc<Self>> {
        if !context.policy.may_change() {
            return None;
        }
        Some(Arc::new(Self {
            head: Head::of(request),
            admitted: AtomicUsize::new(context.changes.load(Ordering::Relaxed)),
            refused: OnceLock::new(),
            context: context.clone(),
        }))
    }

    /// Why the request may not go on, if that is so. Its rate is not asked about again.
    pub fn refused(&self) -> Option<Fault> {
        let changes = self.context.changes.load(Ordering::Relaxed);
        if changes == self.admitted.load(Ordering::Relaxed) { None } else { self.decide(changes) }
    }

    #[cold]
    fn decide(&self, changes: usize) -> Option<Fault> {
        if let Some(fault) = self.refused.get() {
            return Some(fault.clone());
        }
        let Inbound { worker, connection, policy, requests, .. } = &*self.context;
        let server = policy.current();
        let refused = match permitted(&server, connection, &self.head) {
            Ok(permit) => {
                inbound::audit(connection, &permit.authorization);
                self.admitted.store(changes, Ordering::Relaxed);
                return None;
            }
            Err(refused) => refused,
        };
        // Named and counted as the next request will be.
        requests.of(&worker.proxy.metrics, &server, Err(&refused), self.head.authority());
        let (refusal, refused) = refused;
        let fault = inbound::denied(connection, refused, refusal.denial);
        if self.refused.set(fault.clone()).is_ok() {
            tracing::info!(
                client = %connection.client, target = %connection.target, %fault,
                "request ended: the policy changed while it was under way"
            );
        }
        Some(fault)
    }
}

/// Polls what is done for a request, for as long as it may go on.
pub(super) fn poll<F: Future>(
    standing: Option<&Arc<Standing>>,
    cx: &mut Context<'_>,
    doing: Pin<&mut F>,
) -> Poll<Result<F::Output, Fault>> {
    match standing.and_then(|standing| standing.refused()) {
        Some(fault) => Poll::Ready(Err(fault)),
        None => doing.poll(cx).map(Ok),
    }
}

/// Ends when a changed policy does not admit the request any more whose connection was upgraded.
pub(super) async fn revoked(standing: Option<Arc<Standing>>) -> Fault {
    let Some(standing) = standing else { return pending().await };
    let Inbound { worker, connection, policy, .. } = &*standing.context;
    let mut policy = policy.clone();
    loop {
        policy.changed().await;
        let server = policy.latest();
        if server.authorize_http(connection.client.ip(), &connection.peer, &standing.head).is_err() {
            worker.proxy.metrics.tcp_terminated(connection, &server);
            return Fault::Revoked(server.meta.name.clone());
        }
    }
}

/// Tells the requests of a connection that their policy has changed.
pub fn news(context: &Arc<Inbound>) -> impl FnMut(&mut Context<'_>) -> bool + Send + use<> {
    let (context, mut news) = (context.clone(), context.policy.news());
    move |cx| {
        let changed = news.as_mut().is_some_and(|news| news.poll(cx));
        if changed {
            context.changes.fetch_add(1, Ordering::Relaxed);
        }
        changed
    }
}

/// What policy sees of a request. Values are shared with the request, not copied: of an HTTP/2 head that is a few bytes of
/// references to its connection's table, a copy would be many times as large as what came.
struct Head {
    method: Method,
    uri: Uri,
    fields: Box<[(HeaderName, HeaderValue)]>,
}

impl Head {
    fn of<B>(request: &Request<B>) -> Self {
        let fields = request.headers().iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        Self { method: request.method().clone(), uri: request.uri().clone(), fields }
    }

    fn values(&self, name: &str) -> impl Iterator<Item = &HeaderValue> {
        self.fields.iter().filter(move |(field, _)| field == name).map(|(_, value)| value)
    }
}

impl RequestView for Head {
    fn method(&self) -> &str {
        self.method.as_str()
    }

    fn authority(&self) -> &str {
        if let Some(authority) = self.uri.authority() {
            return authority.as_str();
        }
        self.values(header::HOST.as_str()).next().and_then(|host| host.to_str().ok()).unwrap_or("")
    }

    fn path(&self) -> &str {
        self.uri.path()
    }

    fn query(&self) -> Option<&str> {
        self.uri.query()
    }

    fn header(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        self.values(name).map(HeaderValue::as_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{View, respond_with},
        *,
    };
    use crate::{
        http::{self, body::Body, exchange::Exchange},
        inbound::Connection,
        stage,
        stream::Stream,
    };
    use ::http::Response;
    use remora_core::{header::SessionProtocol, policy::Peer};
    use remora_runtime::{clock, tasks::Drain};
    use std::{future::ready, net::SocketAddr, time::Duration};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
        sync::mpsc,
        time::timeout,
    };

    #[tokio::test]
    async fn an_answer_that_waits_for_its_client_alone_is_not_given_away() {
        let (near, mut client) = full().await;
        let context = context();
        let (asked, mut was_asked) = mpsc::unbounded_channel();
        let (tell, mut told) = mpsc::channel(1);
        let news = move |cx: &mut Context<'_>| matches!(told.poll_recv(cx), Poll::Ready(Some(())));
        let answers = context.clone();
        // Its application has said all of it.
        let service = move |request: Request<Body>| {
            let Inbound { worker, connection, policy, requests, .. } = &*answers;
            let (server, view) = (policy.current(), View(&request));
            let permit = permitted(&server, connection, &view);
            let counted = requests.of(&worker.proxy.metrics, &server, permit.as_ref(), view.authority());
            let standing = Standing::of(&answers, &request);
            asked.send(standing.clone().unwrap()).unwrap();
            let response = Response::new(Body::absent());
            let exchange = Exchange::of(&response, counted, clock::now()).stands_by(standing);
            ready(Ok(respond_with(response, exchange)))
        };
        let settings = http::Settings::inbound(&context.worker.proxy.config, false);
        let serving = tokio::spawn(async move {
            let drain = Drain::new();
            http::serve(Stream::plain(near), SessionProtocol::Http1, settings, &drain, news, service).await
        });
        client.write_all(b"GET / HTTP/1.1\r\nhost: web\r\n\r\n").await.unwrap();
        let standing = was_asked.recv().await.unwrap();
        // By now the answer waits to be written. The policy changes.
        standing.refused.set(Fault::Revoked("web".into())).unwrap();
        context.changes.fetch_add(1, Ordering::Relaxed);
        tell.send(()).await.unwrap();
        let ended = timeout(Duration::from_secs(10), serving).await.expect("it waits for the client");
        assert!(matches!(ended.unwrap(), Err(Fault::Answer(_))));
        // What was on its way before comes, and then a reset.
        let mut piece = vec![0; 1 << 16];
        while let Ok(count @ 1..) = client.read(&mut piece).await {
            assert!(piece[..count].iter().all(|byte| *byte == b'x'), "it has got the answer");
        }
    }

    /// A connection whose client takes nothing any more, and the client's end.
    async fn full() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (near, _) = listener.accept().await.unwrap();
        near.writable().await.unwrap();
        let piece = vec![b'x'; 1 << 16];
        while near.try_write(&piece).is_ok() {}
        (near, client)
    }

    fn context() -> Arc<Inbound> {
        let worker = stage::worker(|_| {});
        let (target, client) =
            (SocketAddr::from(([127, 0, 0, 1], 80)), SocketAddr::from(([127, 0, 0, 1], 81)));
        let connection = Connection { client, target, peer: Peer::Plain, no_tls: None, permit: None };
        let policy = worker.proxy.policies.port(80);
        Arc::new(Inbound::new(worker, connection, policy))
    }

    #[test]
    fn a_kept_head_is_seen_as_the_request_was() {
        let fields: [&[(&str, &[u8])]; 5] = [
            &[],
            &[("host", b"web:80")],
            &[("host", b"a"), ("x-a", b""), ("host", b"b"), ("x-b", b"1"), ("x-a", b"2")],
            &[("host", "wéb".as_bytes())],
            &[("x-a", &[0xff, b' ', b'\t'])],
        ];
        for target in ["/a/b?c=d", "/", "/?", "http://web:80/a", "http://web", "*"] {
            for fields in fields {
                let mut request = Request::builder().method("PUT").uri(target);
                for (name, value) in fields {
                    request = request.header(*name, *value);
                }
                let request = request.body(()).unwrap();
                let (kept, seen) = (Head::of(&request), View(&request));
                assert_eq!(kept.method(), seen.method());
                assert_eq!(kept.authority(), seen.authority(), "{request:?}");
                assert_eq!((kept.path(), kept.query()), (seen.path(), seen.query()), "{request:?}");
                for name in ["host", "x-a", "x-b", "x-c"] {
                    assert!(kept.header(name).eq(seen.header(name)), "{name} of {request:?}");
                }
            }
        }
    }
}

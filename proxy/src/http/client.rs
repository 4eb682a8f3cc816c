//! One server's HTTP connections: a pool of HTTP/1 connections, and HTTP/2 connections, more when one is full.
//!
//! Belongs to one worker and one endpoint. A request is handed back unsent whenever no byte of it was written, so that
//! the caller may try elsewhere.

use super::{body::Body, replay::Recorded};
use crate::{
    fault::Fault,
    http1::{
        Limits,
        body::Home,
        exchange::{Broken, Connection},
    },
    http2,
    limits::Permit,
    stream::Stream,
};
use http::{Request, Response, Version};
use remora_core::{
    header::SessionProtocol,
    pool::{self, PoolBounds, Pooled},
    time::Time,
};
use remora_runtime::clock;
use std::{
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// Opens connections to the server.
pub trait Dial: Sync {
    fn dial(&self, session: SessionProtocol) -> impl Future<Output = Result<Stream, Fault>> + Send;

    /// A request begins to wait for a connection: may it, and what it holds while it does.
    fn wait(&self) -> Result<Option<Permit>, Fault> {
        Ok(None)
    }
}

/// Bounds of a server's connections.
#[derive(Clone, Copy, Debug)]
pub struct PoolLimits {
    /// An HTTP/1 connection that nobody used for so long is closed.
    pub idle: Duration,
    /// A connection that is older is not used again.
    pub max_age: Duration,
    /// Idle HTTP/1 connections kept.
    pub max_idle: usize,
    /// Bytes of a message's head.
    pub max_header_bytes: usize,
    /// Fields of an HTTP/1 message's head.
    pub max_headers: usize,
    /// Bytes of a body that are kept for another connection.
    pub max_replay: usize,
}

impl PoolLimits {
    fn bounds(&self) -> PoolBounds {
        PoolBounds { idle: self.idle, max_age: self.max_age, max_idle: self.max_idle }
    }
}

/// The connections to one server.
pub struct Client {
    limits: PoolLimits,
    http1: Mutex<Pool>,
    http2: Mutex<Slot>,
    /// Held while an HTTP/2 connection is dialled, so that many requests make one.
    dialling: tokio::sync::Mutex<()>,
}

/// Streams on one HTTP/2 connection: what every server is expected to allow (RFC 9113 section 6.5.2). One more would
/// wait, unseen, and everything behind it.
const MAX_STREAMS: usize = 100;
/// HTTP/2 connections to one server from one worker.
const MAX_HTTP2: usize = 32;
/// An HTTP/2 connection without streams for so long (twice that at most) is closed: within a minute everything is as it
/// was before a burst.
const HTTP2_IDLE: Duration = Duration::from_secs(25);

/// The HTTP/2 connections, and how the last attempt at one ended.
#[derive(Default)]
struct Slot {
    connections: Vec<Http2>,
    failed: Option<(Time, Fault)>,
    /// A task closes what is idle too long.
    swept: bool,
}

impl Slot {
    /// A connection with room for a stream; those that are not to be used any more are let go, and serve their streams
    /// to the end: it is these that hold them.
    fn with_room(&mut self, now: Time, max_age: Duration) -> Option<http2::exchange::Connection> {
        let usable = |http2: &Http2| !http2.connection.is_closed() && now.since(http2.born) < max_age;
        self.connections.retain(usable);
        let mut all = self.connections.iter().map(|http2| &http2.connection);
        all.find(|connection| connection.streams() < MAX_STREAMS).cloned()
    }
}

#[derive(Default)]
struct Pool {
    idle: pool::Pool<Connection>,
    /// A task closes what is idle too long.
    swept: bool,
}

fn has_ended(connection: &mut Connection) -> bool {
    !connection.is_idle()
}

struct Http2 {
    connection: http2::exchange::Connection,
    born: Time,
    /// Had no stream when it was last looked at.
    idle: bool,
}

/// Why there is no response.
pub enum SendError {
    /// No byte of the request was written: it is as it was, and may go elsewhere.
    Unsent(Fault),
    /// The request, or a part of it, may have been processed.
    Failed(Fault),
}

impl Client {
    pub fn new(limits: PoolLimits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            http1: Mutex::default(),
            http2: Mutex::default(),
            dialling: tokio::sync::Mutex::default(),
        })
    }

    /// Idle HTTP/1 connections, for `/state.json`.
    pub fn idle(&self) -> usize {
        self.http1.lock().unwrap_or_else(PoisonError::into_inner).idle.len()
    }

    /// Sends a request in its own version and waits for the response's head. The request's head stays; its body is taken
    /// as far as it is sent. `now` is when it came.
    pub async fn send<D: Dial>(
        self: &Arc<Self>,
        dial: &D,
        request: &mut Request<Body>,
        now: Time,
    ) -> Result<Response<Body>, SendError> {
        match request.version() {
            Version::HTTP_2 => self.send_http2(dial, request, now).await,
            _ => self.send_http1(dial, request, now).await,
        }
    }

    async fn send_http1<D: Dial>(
        self: &Arc<Self>,
        dial: &D,
        request: &mut Request<Body>,
        now: Time,
    ) -> Result<Response<Body>, SendError> {
        let limits = Limits { head_bytes: self.limits.max_header_bytes, fields: self.limits.max_headers };
        let mut may_resend = true;
        loop {
            // What was closed at the moment of its use is not tried twice: servers close many at once.
            let idle = if may_resend { self.take_idle(now) } else { None };
            let pooled = idle.is_some();
            let (connection, born) = if let Some(Pooled { connection, born, .. }) = idle {
                (connection, born)
            } else {
                let _waits = dial.wait().map_err(SendError::Unsent)?;
                // Boxed: most requests need none.
                match Box::pin(dial.dial(SessionProtocol::Http1)).await {
                    Ok(stream) => (Connection::new(stream), clock::now()),
                    Err(fault) => return Err(SendError::Unsent(fault)),
                }
            };
            let bodyless = request.body().is_absent();
            let kept = if pooled && !bodyless { self.keep(request) } else { None };
            let home = Home { client: self.clone(), born };
            let error = match connection.exchange(request, &limits, home).await {
                Ok(answer) => {
                    if let Some(Kept { body, own: true }) = kept {
                        body.forget();
                    }
                    return Ok(answer);
                }
                Err(Broken::Body(error)) => {
                    return Err(SendError::Failed(Fault::Body(error.to_string().into())));
                }
                // The server closed the connection while it was idle.
                Err(Broken::Unsent(_)) if pooled && may_resend => {
                    may_resend = false;
                    continue;
                }
                Err(Broken::Unsent(error)) => return Err(SendError::Unsent(Fault::Server(error.into()))),
                // Whoever pools connections meets servers that close them at the moment of their use: what may be
                // done twice is sent again (RFC 9110 section 9.2.2), and what the other proxy says was not begun.
                Err(Broken::Unanswered(error))
                    if may_resend
                        && (bodyless && Fault::is_unprocessed(&error)
                            || pooled
                                && request.method().is_idempotent()
                                && (bodyless || rewinds(kept.as_ref(), request))) =>
                {
                    may_resend = false;
                    continue;
                }
                Err(Broken::Unanswered(error) | Broken::Answer(error)) => error,
            };
            return Err(SendError::Failed(Fault::Server(error.into())));
        }
    }

    async fn send_http2<D: Dial>(
        self: &Arc<Self>,
        dial: &D,
        request: &mut Request<Body>,
        now: Time,
    ) -> Result<Response<Body>, SendError> {
        loop {
            let open = self.slot().with_room(now, self.limits.max_age);
            let (connection, fresh) = if let Some(connection) = open {
                (connection, false)
            } else {
                let _waits = dial.wait().map_err(SendError::Unsent)?;
                // Boxed: most requests need none.
                Box::pin(self.dial_http2(dial)).await.map_err(SendError::Unsent)?
            };
            match connection.exchange(request).await {
                Ok(response) => return Ok(response),
                Err(http2::exchange::Broken::Unsent(_)) if !fresh => {}
                Err(http2::exchange::Broken::Unsent(error)) => {
                    return Err(SendError::Unsent(Fault::Server(error)));
                }
                Err(http2::exchange::Broken::Unanswered(error)) => {
                    return Err(SendError::Failed(Fault::Server(error)));
                }
            }
        }
    }

    /// Begins to keep the body of a request that may be done twice, unless it is kept already, or longer than is kept.
    fn keep(&self, request: &mut Request<Body>) -> Option<Kept> {
        let most = self.limits.max_replay;
        if !request.method().is_idempotent() {
            return None;
        }
        let body = request.body_mut();
        if let Some(body) = body.recorded() {
            return Some(Kept { body, own: false });
        }
        if body.length().is_some_and(|length| length > most as u64) {
            return None;
        }
        let kept = Recorded::new(std::mem::replace(body, Body::absent()), most);
        *body = kept.begin()?;
        Some(Kept { body: kept, own: true })
    }

    fn take_idle(&self, now: Time) -> Option<Pooled<Connection>> {
        let mut pool = self.http1.lock().unwrap_or_else(PoisonError::into_inner);
        pool.idle.take(now, &self.limits.bounds(), has_ended)
    }

    fn slot(&self) -> MutexGuard<'_, Slot> {
        self.http2.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An HTTP/2 connection with room for a stream, and whether it was made just now.
    async fn dial_http2<D: Dial>(
        self: &Arc<Self>,
        dial: &D,
    ) -> Result<(http2::exchange::Connection, bool), Fault> {
        let asked = clock::now();
        let _dialling = self.dialling.lock().await;
        let born = clock::now();
        {
            let mut slot = self.slot();
            if let Some((at, fault)) = &slot.failed
                && *at >= asked
            {
                // The attempt that this request waited for was its own.
                return Err(fault.clone());
            }
            if let Some(connection) = slot.with_room(born, self.limits.max_age) {
                return Ok((connection, false));
            }
            if slot.connections.len() >= MAX_HTTP2 {
                let what =
                    format!("a stream: {MAX_HTTP2} connections with {MAX_STREAMS} streams each are busy");
                return Err(Fault::Overloaded(what.into()));
            }
        }
        let dialled = dial.dial(SessionProtocol::Http2).await;
        let stream = dialled.inspect_err(|fault| self.slot().failed = Some((clock::now(), fault.clone())))?;
        let begun = http2::exchange::Connection::begin(stream, self.limits.max_header_bytes).await;
        let connection = begun.map_err(Fault::Server)?;
        let mut slot = self.slot();
        slot.connections.push(Http2 { connection: connection.clone(), born, idle: false });
        if !slot.swept {
            slot.swept = true;
            tokio::spawn(sweep_http2(Arc::downgrade(self)));
        }
        Ok((connection, true))
    }

    /// Closes a connection that nobody uses, if there is one; those first that their server has closed.
    pub fn close_idle(&self) -> bool {
        let (now, bounds) = (clock::now(), self.limits.bounds());
        let mut pool = self.http1.lock().unwrap_or_else(PoisonError::into_inner);
        let before = pool.idle.len();
        pool.idle.sweep(now, &bounds, has_ended);
        if pool.idle.len() < before || pool.idle.take(now, &bounds, has_ended).is_some() {
            return true;
        }
        drop(pool);
        let mut slot = self.slot();
        let idle = slot.connections.iter().position(|http2| http2.connection.streams() == 0);
        idle.map(|idle| slot.connections.swap_remove(idle)).is_some()
    }

    /// Keeps a connection that nobody uses for the next request.
    pub fn put_back(self: &Arc<Self>, connection: Connection, born: Time) {
        let mut pool = self.http1.lock().unwrap_or_else(PoisonError::into_inner);
        pool.idle.put_back(connection, born, clock::now(), &self.limits.bounds());
        if !pool.swept && !pool.idle.is_empty() {
            pool.swept = true;
            tokio::spawn(sweep(Arc::downgrade(self), self.limits.idle));
        }
    }
}

/// Closes idle connections when their time has come; ends when there is none.
async fn sweep(client: std::sync::Weak<Client>, idle: Duration) {
    loop {
        tokio::time::sleep(idle).await;
        let Some(client) = client.upgrade() else { return };
        let mut pool = client.http1.lock().unwrap_or_else(PoisonError::into_inner);
        pool.idle.sweep(clock::now(), &client.limits.bounds(), has_ended);
        if pool.idle.is_empty() {
            pool.swept = false;
            return;
        }
    }
}

/// Closes HTTP/2 connections that have had no stream for a while; ends when there is none.
async fn sweep_http2(client: std::sync::Weak<Client>) {
    loop {
        tokio::time::sleep(HTTP2_IDLE).await;
        let Some(client) = client.upgrade() else { return };
        let mut slot = client.slot();
        slot.connections.retain_mut(|http2| {
            let now_idle = http2.connection.streams() == 0;
            let was_idle = std::mem::replace(&mut http2.idle, now_idle);
            !(http2.connection.is_closed() || was_idle && now_idle)
        });
        if slot.connections.is_empty() {
            slot.swept = false;
            return;
        }
    }
}

/// A body for another connection.
struct Kept {
    body: Recorded,
    /// For this alone.
    own: bool,
}

/// Gives the request its body from the beginning; whether there is all of it.
fn rewinds(kept: Option<&Kept>, request: &mut Request<Body>) -> bool {
    let body = kept.and_then(|kept| kept.body.begin());
    body.map(|body| *request.body_mut() = body).is_some()
}

#[cfg(test)]
mod tests {
    use super::{super::copies::tests::of, *};
    use std::{
        net::SocketAddr,
        sync::atomic::{AtomicUsize, Ordering},
    };
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
    };

    #[tokio::test]
    async fn an_idempotent_request_outlives_the_close_of_its_pooled_connection() {
        let (client, server) = pooled().await;
        let answer = client.send(&server, &mut request("GET"), clock::now()).await.ok().unwrap();
        assert_eq!(answer.status(), 200);
    }

    #[tokio::test]
    async fn with_its_body_if_that_is_kept() {
        for (method, pieces, answered) in [
            ("PUT", &[&b"on"[..], b"ce ", b"more"][..], true),
            ("PUT", &[b"longer than ", b"is kept"], false),
            ("POST", &[b"once"], false),
        ] {
            let (client, server) = pooled().await;
            let mut request = request(method).map(|_| of(pieces, true, None));
            request.headers_mut().insert("transfer-encoding", "chunked".parse().unwrap());
            let answer = client.send(&server, &mut request, clock::now()).await;
            assert_eq!(answer.is_ok_and(|answer| answer.status() == 200), answered, "{method} {pieces:?}");
        }
    }

    #[tokio::test]
    async fn a_request_that_may_have_been_processed_is_not_sent_again() {
        let (client, server) = pooled().await;
        assert!(matches!(
            client.send(&server, &mut request("POST"), clock::now()).await,
            Err(SendError::Failed(_))
        ));
    }

    #[tokio::test]
    async fn connections_that_are_known_to_be_closed_are_not_used_however_many_there_are() {
        let (client, server, ends, listener) = pool().await;
        drop(ends);
        // What comes of another connection comes after those ends.
        let mut other = TcpStream::connect(server.0).await.unwrap();
        let mut far = listener.accept().await.unwrap().0;
        far.write_all(b"x").await.unwrap();
        other.read_exact(&mut [0]).await.unwrap();
        let made = answers(listener);
        // One after the other, and all at once: none may be sent twice, so none is lost.
        assert!(client.send(&server, &mut request("POST"), clock::now()).await.is_ok());
        assert_eq!((client.idle(), made.load(Ordering::Relaxed)), (1, 1), "closed ones are kept");
        for answer in at_once(&client, &server, "POST").await {
            assert_eq!(answer.ok().unwrap().status(), 200);
        }
        assert!(client.idle() <= LIMITS.max_idle && made.load(Ordering::Relaxed) <= 1 + LIMITS.max_idle);
    }

    #[tokio::test]
    async fn no_idempotent_request_is_lost_where_all_connections_close_at_the_moment_of_their_use() {
        let (client, server, ends, listener) = pool().await;
        let closed = ends.into_iter().map(|mut end| {
            tokio::spawn(async move {
                read_head(&mut end).await;
            })
        });
        let closed: Vec<_> = closed.collect();
        let made = answers(listener);
        for answer in at_once(&client, &server, "GET").await {
            assert_eq!(answer.ok().unwrap().status(), 200);
        }
        for used in closed {
            assert!(used.await.is_ok(), "a pooled connection was not used");
        }
        assert_eq!(made.load(Ordering::Relaxed), LIMITS.max_idle, "one for each");
    }

    #[tokio::test]
    async fn a_full_http2_connection_is_followed_by_another() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Arc::new(Server(listener.local_addr().unwrap()));
        let client = Client::new(LIMITS);
        for _ in 0..=MAX_STREAMS {
            let (client, server) = (client.clone(), server.clone());
            let mut request = request("GET");
            *request.version_mut() = Version::HTTP_2;
            *request.uri_mut() = "http://web/".parse().unwrap();
            tokio::spawn(async move { client.send(&*server, &mut request, clock::now()).await.is_ok() });
        }
        let two = async { (listener.accept().await.unwrap(), listener.accept().await.unwrap()) };
        let connections = tokio::time::timeout(Duration::from_secs(10), two).await;
        assert!(connections.is_ok(), "the request beyond {MAX_STREAMS} streams waits");
    }

    const LIMITS: PoolLimits = PoolLimits {
        idle: Duration::from_mins(1),
        max_age: Duration::from_mins(1),
        max_idle: 8,
        max_header_bytes: 8192,
        max_headers: 100,
        max_replay: 10,
    };

    /// A client with as many pooled connections as there may be, and their other ends.
    async fn pool() -> (Arc<Client>, Server, Vec<TcpStream>, TcpListener) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (client, server) = (Client::new(LIMITS), Server(listener.local_addr().unwrap()));
        let answering = async {
            let mut ends = vec![];
            while ends.len() < LIMITS.max_idle {
                ends.push(listener.accept().await.unwrap().0);
            }
            for end in &mut ends {
                answer(end).await;
            }
            ends
        };
        let (_, ends) = tokio::join!(at_once(&client, &server, "GET"), answering);
        assert_eq!(client.idle(), LIMITS.max_idle);
        (client, server, ends, listener)
    }

    /// As many requests as there may be pooled connections.
    async fn at_once(
        client: &Arc<Client>,
        server: &Server,
        method: &str,
    ) -> Vec<Result<Response<Body>, SendError>> {
        let send = |_| async move { client.send(server, &mut request(method), clock::now()).await };
        futures_util::future::join_all((0..LIMITS.max_idle).map(send)).await
    }

    /// Answers whatever is asked on new connections, which are counted.
    fn answers(listener: TcpListener) -> Arc<AtomicUsize> {
        let made = Arc::new(AtomicUsize::new(0));
        let counted = made.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(async move {
                    loop {
                        answer(&mut stream).await;
                    }
                });
            }
        });
        made
    }

    /// A client with one pooled connection, which its server closes when it reads the next request; further
    /// connections are answered.
    async fn pooled() -> (Arc<Client>, Server) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Server(listener.local_addr().unwrap());
        tokio::spawn(async move {
            let (mut first, _) = listener.accept().await.unwrap();
            answer(&mut first).await;
            read_head(&mut first).await;
            drop(first);
            while let Ok((mut further, _)) = listener.accept().await {
                answer(&mut further).await;
            }
        });
        let client = Client::new(LIMITS);
        drop(client.send(&server, &mut request("GET"), clock::now()).await.ok().unwrap());
        assert_eq!(client.idle(), 1, "nothing was pooled");
        (client, server)
    }

    async fn answer(stream: &mut TcpStream) {
        let head = read_head(stream).await;
        if head.contains("chunked") {
            let mut body = Vec::new();
            while !body.ends_with(b"0\r\n\r\n") {
                assert_ne!(stream.read_buf(&mut body).await.unwrap(), 0, "the client closed");
            }
            let body = String::from_utf8(body).unwrap();
            // Every other line is a length.
            assert_eq!(body.split("\r\n").skip(1).step_by(2).collect::<String>(), "once more");
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    }

    async fn read_head(stream: &mut TcpStream) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.expect("the client is there"));
        }
        String::from_utf8(head).unwrap()
    }

    fn request(method: &str) -> Request<Body> {
        Request::builder().method(method).uri("/").header("host", "web").body(Body::absent()).unwrap()
    }

    struct Server(SocketAddr);

    impl Dial for Server {
        async fn dial(&self, _session: SessionProtocol) -> Result<Stream, Fault> {
            Ok(Stream::plain(TcpStream::connect(self.0).await.unwrap()))
        }
    }
}

//! Reads until a pure question is answered, or it is time to stop asking. Nothing that was read is lost: it is put
//! back before the stream goes on.

use crate::{fault::Fault, stream::Stream};
use bytes::BytesMut;
use remora_core::{
    client_hello::{self, Hello, Parsed},
    detect::{self, Detection, Protocol},
    header::{self, Decoded, TransportHeader},
};
use std::{future::Future, io, sync::Arc, time::Duration};
use tokio::{io::AsyncReadExt, time::timeout};

/// Bytes asked for at once while looking: a post-quantum ClientHello or an ordinary request head fits.
const CHUNK: usize = 2048;

/// Who spoke first, and what.
pub enum First<U> {
    /// The client did, and this is what it speaks. The upstream connection is the speculative one, if it is still
    /// there: only an opaque connection may use it.
    Client(Protocol, Option<U>),
    /// The server did, on the speculative connection: there is nothing to detect.
    Server(U),
}

/// Whether a ClientHello is meant for this proxy.
pub enum MeshHello<U> {
    /// It is: terminate TLS.
    Ours,
    /// TLS for the application.
    Foreign(Option<Arc<str>>),
    /// Not TLS; what it is instead.
    NotTls(First<U>),
}

/// A speculative connection to the server, opened while the client is silent.
pub trait Speculate {
    /// The connection.
    type Upstream: AsServer;
    /// Dials; `None` when speculation is not allowed, not possible or failed.
    fn dial(&self) -> impl Future<Output = Option<Self::Upstream>> + Send;
    /// The server closed the connection without a word: it refused, or does not like to be asked.
    fn denied(&self);
    /// Client silence before dialling; `None` never dials.
    fn delay(&self) -> Option<Duration>;
    /// How long the spare connection is kept while nobody speaks.
    fn patience(&self) -> Duration;
}

/// A connection on which a server may speak first.
pub trait AsServer: Send {
    fn stream(&mut self) -> &mut Stream;
}

/// Nobody to dial: the client must speak first.
pub struct Never;

impl Speculate for Never {
    type Upstream = NoServer;
    async fn dial(&self) -> Option<NoServer> {
        None
    }
    fn denied(&self) {}
    fn delay(&self) -> Option<Duration> {
        None
    }
    fn patience(&self) -> Duration {
        Duration::MAX
    }
}

/// No connection.
pub enum NoServer {}

impl AsServer for NoServer {
    fn stream(&mut self) -> &mut Stream {
        match *self {}
    }
}

/// Looks at the first bytes for a ClientHello whose SNI is `ours`; if it is not TLS, for the protocol.
///
/// `limit` bounds the time from the first byte to an answer; silence is no answer and is waited out.
pub async fn mesh_hello<S: Speculate>(
    stream: &mut Stream,
    ours: &str,
    limit: Duration,
    server: &S,
) -> Result<MeshHello<S::Upstream>, Fault> {
    let mut head = BytesMut::new();
    let spare = match first_bytes(stream, &mut head, server).await? {
        FirstBytes::Server(upstream) => return Ok(MeshHello::NotTls(First::Server(upstream))),
        FirstBytes::Client(spare) => spare,
    };
    let read = read_until(stream, &mut head, limit, |head| match client_hello::parse(head) {
        Parsed::NeedMore => None,
        Parsed::Hello(hello) => Some(Some(hello)),
        Parsed::Not(_) => Some(None),
    })
    .await;
    let verdict = match read {
        Ok(Read::Answer(Some(hello))) => Ok(whose(hello, ours)),
        Ok(Read::Answer(None) | Read::Ended) => {
            let protocol = rest_of_detection(stream, &mut head, limit).await;
            protocol.map(|protocol| MeshHello::NotTls(First::Client(protocol, spare)))
        }
        Ok(Read::TimedOut) => Err(Fault::TlsDetectTimeout(limit)),
        Err(error) => Err(Fault::ClientGone(Arc::new(error))),
    };
    stream.put_back(head.freeze());
    verdict
}

/// Looks at the first bytes for the protocol. A client that begins and does not go on for `limit` is opaque.
pub async fn protocol<S: Speculate>(
    stream: &mut Stream,
    limit: Duration,
    server: &S,
) -> Result<First<S::Upstream>, Fault> {
    let mut head = BytesMut::new();
    let spare = match first_bytes(stream, &mut head, server).await? {
        FirstBytes::Server(upstream) => return Ok(First::Server(upstream)),
        FirstBytes::Client(spare) => spare,
    };
    let protocol = rest_of_detection(stream, &mut head, limit).await;
    stream.put_back(head.freeze());
    Ok(First::Client(protocol?, spare))
}

/// The SNI of a ClientHello that is about to come, for connections that are known to be TLS.
pub async fn sni(stream: &mut Stream, limit: Duration) -> Result<Option<String>, Fault> {
    let mut head = BytesMut::new();
    let read = read_until(stream, &mut head, limit, |head| match client_hello::parse(head) {
        Parsed::NeedMore => None,
        Parsed::Hello(hello) => Some(hello.sni),
        Parsed::Not(_) => Some(None),
    })
    .await;
    stream.put_back(head.freeze());
    match read {
        Ok(Read::Answer(sni)) => Ok(sni),
        Ok(Read::Ended) => Ok(None),
        Ok(Read::TimedOut) => Err(Fault::TlsDetectTimeout(limit)),
        Err(error) => Err(Fault::ClientGone(Arc::new(error))),
    }
}

/// Reads the transport header; what follows it is put back for the application.
pub async fn transport_header(stream: &mut Stream, limit: Duration) -> Result<TransportHeader, Fault> {
    let mut head = BytesMut::new();
    let read = read_until(stream, &mut head, limit, |head| match header::decode(head) {
        Ok(Decoded::NeedMore) => None,
        Ok(Decoded::Header(header, taken)) => Some(Ok((header, taken))),
        Err(malformed) => Some(Err(malformed)),
    })
    .await;
    match read {
        Ok(Read::Answer(Ok((header, taken)))) => {
            stream.put_back(head.split_off(taken.min(head.len())).freeze());
            Ok(header)
        }
        Ok(Read::Answer(Err(malformed))) => Err(Fault::Header(malformed)),
        Ok(Read::Ended) => Err(Fault::ClientGone(Arc::new(io::ErrorKind::UnexpectedEof.into()))),
        Ok(Read::TimedOut) => Err(Fault::HeaderTimeout(limit)),
        Err(error) => Err(Fault::ClientGone(Arc::new(error))),
    }
}

fn whose<U>(hello: Hello, ours: &str) -> MeshHello<U> {
    match hello.sni {
        Some(sni) if sni.eq_ignore_ascii_case(ours) => MeshHello::Ours,
        other => MeshHello::Foreign(other.map(Into::into)),
    }
}

enum FirstBytes<U> {
    Client(Option<U>),
    Server(U),
}

/// Waits for whoever speaks first. The client's bytes are left in `head`, the server's in its own stream.
async fn first_bytes<S: Speculate>(
    stream: &mut Stream,
    head: &mut BytesMut,
    server: &S,
) -> Result<FirstBytes<S::Upstream>, Fault> {
    head.reserve(CHUNK);
    let gone = |error| Fault::ClientGone(Arc::new(error));
    let Some(delay) = server.delay() else {
        stream.read_buf(head).await.map_err(gone)?;
        return Ok(FirstBytes::Client(None));
    };
    if let Ok(read) = timeout(delay, stream.read_buf(head)).await {
        read.map_err(gone)?;
        return Ok(FirstBytes::Client(None));
    }
    let dialled = tokio::select! {
        biased;
        read = stream.read_buf(head) => { read.map_err(gone)?; return Ok(FirstBytes::Client(None)) }
        dialled = server.dial() => dialled,
    };
    if let Some(mut upstream) = dialled {
        let mut greeting = BytesMut::with_capacity(CHUNK);
        let patience = tokio::time::sleep(server.patience());
        tokio::select! {
            biased;
            read = stream.read_buf(head) => { read.map_err(gone)?; return Ok(FirstBytes::Client(Some(upstream))) }
            spoken = upstream.stream().read_buf(&mut greeting) => match spoken {
                Ok(bytes) if bytes > 0 => {
                    upstream.stream().put_back(greeting.freeze());
                    return Ok(FirstBytes::Server(upstream));
                }
                Ok(_) | Err(_) => server.denied(),
            },
            () = patience => {}
        }
    }
    // Nobody speaks: no verdict. The spare connection is gone; the client is waited for.
    stream.read_buf(head).await.map_err(gone)?;
    Ok(FirstBytes::Client(None))
}

async fn rest_of_detection(
    stream: &mut Stream,
    head: &mut BytesMut,
    limit: Duration,
) -> Result<Protocol, Fault> {
    if head.is_empty() {
        // The client will never say anything, yet it may wait to be told: a half-closed connection is a copy.
        return Ok(Protocol::Opaque);
    }
    let read = read_until(stream, head, limit, |head| match detect::detect(head) {
        Detection::Known(protocol) => Some(protocol),
        Detection::NeedMore => None,
    });
    match read.await {
        Ok(Read::Answer(protocol)) => Ok(protocol),
        Ok(Read::Ended | Read::TimedOut) => Ok(Protocol::Opaque),
        Err(error) => Err(Fault::ClientGone(Arc::new(error))),
    }
}

enum Read<T> {
    Answer(T),
    Ended,
    TimedOut,
}

/// Asks `decide` about the bytes so far, beginning with what `head` holds, and reads on until it answers.
async fn read_until<T>(
    stream: &mut Stream,
    head: &mut BytesMut,
    limit: Duration,
    mut decide: impl FnMut(&[u8]) -> Option<T>,
) -> io::Result<Read<T>> {
    let reading = async {
        loop {
            if !head.is_empty()
                && let Some(answer) = decide(head)
            {
                return Ok(Read::Answer(answer));
            }
            head.reserve(CHUNK);
            if stream.read_buf(head).await? == 0 {
                return Ok(Read::Ended);
            }
        }
    };
    timeout(limit, reading).await.unwrap_or(Ok(Read::TimedOut))
}

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

/// What detection found.
pub struct Detected<U> {
    pub first: First<U>,
    /// Time was up: it is opaque by default.
    pub timed_out: bool,
}

impl<U> From<First<U>> for Detected<U> {
    fn from(first: First<U>) -> Self {
        Self { first, timed_out: false }
    }
}

/// Whether a ClientHello is meant for this proxy.
pub enum MeshHello<U> {
    /// It is: terminate TLS.
    Ours,
    /// TLS for the application.
    Foreign(Option<Arc<str>>),
    /// Not TLS; what it is instead.
    NotTls(Detected<U>),
}

/// A speculative connection to the server, opened while the client is silent.
pub trait Speculate {
    /// The connection.
    type Upstream: AsServer;
    /// Dials; `None` when speculation is not allowed, not possible or failed. An error: nobody may be dialled, and who
    /// waits for a server's first word would wait for ever.
    fn dial(&self) -> impl Future<Output = Result<Option<Self::Upstream>, Fault>> + Send;
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
    async fn dial(&self) -> Result<Option<NoServer>, Fault> {
        Ok(None)
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
        FirstBytes::Server(upstream) => return Ok(MeshHello::NotTls(First::Server(upstream).into())),
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
            rest_of_detection(stream, &mut head, limit, spare).await.map(MeshHello::NotTls)
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
) -> Result<Detected<S::Upstream>, Fault> {
    let mut head = BytesMut::new();
    let spare = match first_bytes(stream, &mut head, server).await? {
        FirstBytes::Server(upstream) => return Ok(First::Server(upstream).into()),
        FirstBytes::Client(spare) => spare,
    };
    let detected = rest_of_detection(stream, &mut head, limit, spare).await;
    stream.put_back(head.freeze());
    detected
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
        dialled = server.dial() => dialled?,
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

async fn rest_of_detection<U>(
    stream: &mut Stream,
    head: &mut BytesMut,
    limit: Duration,
    spare: Option<U>,
) -> Result<Detected<U>, Fault> {
    if head.is_empty() {
        // The client will never say anything, yet it may wait to be told: a half-closed connection is a copy.
        return Ok(First::Client(Protocol::Opaque, spare).into());
    }
    let read = read_until(stream, head, limit, |head| match detect::detect(head) {
        Detection::Known(protocol) => Some(protocol),
        Detection::NeedMore => None,
    });
    match read.await {
        Ok(Read::Answer(protocol)) => Ok(First::Client(protocol, spare).into()),
        Ok(Read::Ended) => Ok(First::Client(Protocol::Opaque, spare).into()),
        Ok(Read::TimedOut) => Ok(Detected { first: First::Client(Protocol::Opaque, spare), timed_out: true }),
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

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{
        io::AsyncWriteExt,
        net::{TcpListener, TcpStream},
        sync::mpsc,
    };

    const LIMIT: Duration = Duration::from_secs(10);
    const DELAY: Duration = Duration::from_millis(20);

    #[tokio::test]
    async fn a_request_in_single_bytes_is_http_and_nothing_is_lost() {
        let (mut client, mut near) = pair().await;
        let request = b"GET / HTTP/1.1\r\nhost: web\r\n\r\n";
        let writing = tokio::spawn(async move {
            for byte in request {
                client.write_all(&[*byte]).await.unwrap();
                tokio::task::yield_now().await;
            }
            client
        });
        let detected = protocol(&mut near, LIMIT, &Never).await.unwrap();
        assert!(matches!(detected.first, First::Client(Protocol::Http1, None)) && !detected.timed_out);
        let _client = writing.await.unwrap();
        let mut all = vec![0; request.len()];
        near.read_exact(&mut all).await.unwrap();
        assert_eq!(all, request);
    }

    #[tokio::test]
    async fn a_client_that_stops_in_the_middle_is_opaque_when_time_is_up() {
        let (mut client, mut near) = pair().await;
        client.write_all(b"GET /").await.unwrap();
        let detected = protocol(&mut near, Duration::from_millis(30), &Never).await.unwrap();
        assert!(matches!(detected.first, First::Client(Protocol::Opaque, None)) && detected.timed_out);
    }

    #[tokio::test]
    async fn half_a_client_hello_is_an_error_that_says_so() {
        let (mut client, mut near) = pair().await;
        client.write_all(&[0x16, 3, 1, 2, 0, 1, 0]).await.unwrap();
        let hello = mesh_hello(&mut near, "web", Duration::from_millis(30), &Never).await;
        assert!(matches!(hello, Err(Fault::TlsDetectTimeout(_))));
    }

    #[tokio::test]
    async fn plaintext_is_recognised_on_a_port_that_looks_for_tls() {
        let (mut client, mut near) = pair().await;
        client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        let hello = mesh_hello(&mut near, "web", LIMIT, &Never).await.unwrap();
        let MeshHello::NotTls(detected) = hello else { panic!("it is no ClientHello") };
        assert!(matches!(detected.first, First::Client(Protocol::Http2, None)));
    }

    #[tokio::test]
    async fn a_server_that_speaks_first_is_heard() {
        let (_client, mut near) = pair().await;
        let (mut server, dialled) = pair().await;
        server.write_all(b"220 ready\r\n").await.unwrap();
        let silent = Silent::with(dialled);
        let First::Server(mut upstream) = protocol(&mut near, LIMIT, &silent).await.unwrap().first else {
            panic!("the client said nothing");
        };
        let mut greeting = [0; 11];
        upstream.stream().read_exact(&mut greeting).await.unwrap();
        assert_eq!(&greeting, b"220 ready\r\n");
    }

    #[tokio::test]
    async fn a_late_client_is_detected_and_keeps_the_spare_connection() {
        let (mut client, mut near) = pair().await;
        let (_server, dialled) = pair().await;
        let mut silent = Silent::with(dialled);
        let mut was_dialled = silent.was_dialled();
        let writing = tokio::spawn(async move {
            was_dialled.recv().await;
            client.write_all(b"*1\r\n$4\r\nPING\r\n").await.unwrap();
            client
        });
        let detected = protocol(&mut near, LIMIT, &silent).await.unwrap();
        assert!(matches!(detected.first, First::Client(Protocol::Opaque, Some(_))));
        writing.await.unwrap();
    }

    #[tokio::test]
    async fn a_server_that_closes_on_silence_is_noted_and_the_client_still_heard() {
        let (mut client, mut near) = pair().await;
        let (server, dialled) = pair().await;
        drop(server);
        let mut silent = Silent::with(dialled);
        let mut was_denied = silent.was_denied();
        let writing = tokio::spawn(async move {
            was_denied.recv().await;
            client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
            client
        });
        let detected = protocol(&mut near, LIMIT, &silent).await.unwrap();
        assert!(matches!(detected.first, First::Client(Protocol::Http1, None)));
        writing.await.unwrap();
    }

    #[tokio::test]
    async fn bytes_behind_the_transport_header_belong_to_the_application() {
        let (mut client, mut near) = pair().await;
        let port = std::num::NonZeroU16::new(8080).unwrap();
        let sent = TransportHeader { port, name: None, protocol: None };
        let mut bytes = sent.encode();
        bytes.extend_from_slice(b"hello");
        client.write_all(&bytes).await.unwrap();
        assert_eq!(transport_header(&mut near, LIMIT).await.unwrap(), sent);
        let mut rest = [0; 5];
        near.read_exact(&mut rest).await.unwrap();
        assert_eq!(&rest, b"hello");
    }

    #[tokio::test]
    async fn what_is_no_transport_header_is_refused() {
        let (mut client, mut near) = pair().await;
        client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        assert!(matches!(transport_header(&mut near, LIMIT).await, Err(Fault::Header(_))));
    }

    async fn pair() -> (TcpStream, Stream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let far = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (far, Stream::plain(listener.accept().await.unwrap().0))
    }

    /// One connection to hand out when the client is silent.
    struct Silent {
        dialled: std::sync::Mutex<Option<Stream>>,
        on_dial: Option<mpsc::Sender<()>>,
        on_denial: Option<mpsc::Sender<()>>,
    }

    struct Upstream(Stream);

    impl AsServer for Upstream {
        fn stream(&mut self) -> &mut Stream {
            &mut self.0
        }
    }

    impl Silent {
        fn with(dialled: Stream) -> Self {
            Self { dialled: std::sync::Mutex::new(Some(dialled)), on_dial: None, on_denial: None }
        }

        fn was_dialled(&mut self) -> mpsc::Receiver<()> {
            let (sender, receiver) = mpsc::channel(1);
            self.on_dial = Some(sender);
            receiver
        }

        fn was_denied(&mut self) -> mpsc::Receiver<()> {
            let (sender, receiver) = mpsc::channel(1);
            self.on_denial = Some(sender);
            receiver
        }
    }

    impl Speculate for Silent {
        type Upstream = Upstream;

        async fn dial(&self) -> Result<Option<Upstream>, Fault> {
            if let Some(sender) = &self.on_dial {
                sender.try_send(()).unwrap();
            }
            Ok(self.dialled.lock().unwrap().take().map(Upstream))
        }

        fn denied(&self) {
            if let Some(sender) = &self.on_denial {
                sender.try_send(()).unwrap();
            }
        }

        fn delay(&self) -> Option<Duration> {
            Some(DELAY)
        }

        fn patience(&self) -> Duration {
            LIMIT
        }
    }
}

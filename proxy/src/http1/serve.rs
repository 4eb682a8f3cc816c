//! The server's side: a client's requests, one after the other, each to its answer's last byte.

use super::{
    Error, Limits,
    answer::{self, Asking, Watch},
    body::Request as RequestBody,
    head::{self, Head},
    wire::{Part, Reading, Shared, Wire},
};
use crate::{
    fault::{Fault, HttpError},
    http::{body::Body, respond, upgrade::Upgradable},
    stream::Stream,
};
use http::{Request, Response, header};
use remora_core::http1::{Asked, Length};
use remora_runtime::{clock, tasks::Drain};
use std::{
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::oneshot,
    time::timeout,
};

/// How long a client may take to hear the last answer of its connection while it still sends; and how much it may send.
const FAREWELL: Duration = Duration::from_secs(1);
const FAREWELL_BYTES: u64 = 1 << 20;
/// What of a body that nobody wants is read for the sake of the connection.
const UNWANTED: usize = 64 * 1024;

/// How a connection is served.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub limits: Limits,
    /// For a head, from its first byte.
    pub head_timeout: Duration,
    /// Whether the client may see why its connection ends.
    pub informational: bool,
}

/// Serves requests until the client, the drain or an answer that closes ends the connection. A service's error ends it.
pub async fn serve<S, F>(stream: Stream, settings: Settings, drain: &Drain, service: S) -> Result<(), Fault>
where
    S: Fn(Request<Body>) -> F,
    F: Future<Output = Result<Response<Body>, Fault>> + Send + 'static,
{
    let shared = Shared::new(stream);
    let ended = requests(&shared, settings, drain, service).await;
    let Some(wire) = shared.into_inner() else { return ended.map(drop) };
    match ended {
        Ok(End::Upgrade(to)) => {
            // Whoever agreed to the upgrade may have gone meanwhile.
            drop(to.send(wire.into_stream()));
            Ok(())
        }
        Ok(End::Closed { unread }) => {
            Box::pin(farewell(wire, &[], unread)).await;
            Ok(())
        }
        Err(fault) => {
            match &fault {
                Fault::HeadTimeout(_) | Fault::Client(_) => {
                    let answer = respond::unrequested(&fault, settings.informational);
                    Box::pin(farewell(wire, answer.as_bytes(), true)).await;
                }
                // What came of the answer is the client's, and it can count.
                Fault::Answer(_) if !wire.torn => Box::pin(farewell(wire, &[], true)).await,
                _ => {}
            }
            Err(fault)
        }
    }
}

/// How a connection ended in good order.
enum End {
    /// `unread`: the client may still be sending.
    Closed {
        unread: bool,
    },
    Upgrade(oneshot::Sender<Stream>),
}

async fn requests<S, F>(shared: &Shared, settings: Settings, drain: &Drain, service: S) -> Result<End, Fault>
where
    S: Fn(Request<Body>) -> F,
    F: Future<Output = Result<Response<Body>, Fault>> + Send + 'static,
{
    let mut draining = pin!(drain.draining());
    loop {
        let Some(head) = next(shared, settings, draining.as_mut()).await? else {
            return Ok(End::Closed { unread: false });
        };
        let (request, asking, upgrade) = begin(shared, &settings.limits, head)?;
        // Boxed: an idle connection holds none.
        let answering = Box::pin(service(request));
        let answer = watched(shared, answering).await??;
        let sent = answer::send(shared, asking, answer, drain).await?;
        if let (true, Some(to)) = (sent.upgraded, upgrade) {
            return Ok(End::Upgrade(to));
        }
        let unread = !discard(shared).await;
        if !sent.persists || unread {
            return Ok(End::Closed { unread });
        }
    }
}

/// The next request's head; `None` when there will be none.
async fn next(
    shared: &Shared,
    settings: Settings,
    mut draining: Pin<&mut impl Future<Output = ()>>,
) -> Result<Option<Head<Request<()>>>, Fault> {
    let mut late: Option<Pin<Box<dyn Future<Output = ()> + Send>>> = None;
    poll_fn(|cx| {
        let mut wire = shared.lock();
        loop {
            match head::request(&mut wire.ahead, &settings.limits) {
                Ok(Some(head)) => return Poll::Ready(Ok(Some(head))),
                Ok(None) => {}
                Err(error) => return Poll::Ready(Err(Fault::Client(HttpError::Http1(error)))),
            }
            match wire.poll_fill(cx) {
                Poll::Ready(Ok(0)) if wire.ahead.bytes.is_empty() => return Poll::Ready(Ok(None)),
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(gone(io::ErrorKind::UnexpectedEof.into()))),
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(gone(error))),
                Poll::Pending => break,
            }
        }
        if wire.ahead.bytes.is_empty() {
            // What had begun was an empty line: the next head has its own time.
            late = None;
            return draining.as_mut().poll(cx).map(|()| Ok(None));
        }
        let limit = settings.head_timeout;
        let late = late.get_or_insert_with(|| Box::pin(clock::sleep_until(clock::now() + limit)));
        late.as_mut().poll(cx).map(|()| Err(Fault::HeadTimeout(limit)))
    })
    .await
}

fn gone(error: io::Error) -> Fault {
    Fault::ClientGone(Arc::new(error))
}

type Begun = (Request<Body>, Asking, Option<oneshot::Sender<Stream>>);

/// A request out of its head.
fn begin(shared: &Shared, limits: &Limits, head: Head<Request<()>>) -> Result<Begun, Fault> {
    let Head { mut head, framing, spelling, http11 } = head;
    let malformed = |malformed| Fault::Client(HttpError::Http1(Error::Malformed(malformed)));
    let length = framing.request(http11).map_err(malformed)?;
    if framing.contradicts_itself() {
        head.headers_mut().remove(header::CONTENT_LENGTH);
    }
    let mut upgrade = None;
    let asked = Asked::of(head.method().as_str());
    let connect = asked == Asked::Connect;
    if connect || framing.upgrade {
        let (to, connection) = oneshot::channel();
        head.extensions_mut().insert(Upgradable::new(connection));
        upgrade = Some(to);
    }
    // What follows a CONNECT is the tunnel's, whatever its fields say of a body.
    let body = if length == Length::Known(0) || connect {
        Body::absent()
    } else {
        shared.lock().body = Reading::new(length, limits);
        Body::request(RequestBody::new(shared.clone(), framing.expects_continue && http11))
    };
    let asking = Asking { asked, http11, persists: framing.persists(http11) };
    Ok((head.map(|()| body.spelled(spelling)), asking, upgrade))
}

/// Waits for an answer for as long as there is somebody to hear it.
async fn watched<F: Future + Unpin>(shared: &Shared, mut answering: F) -> Result<F::Output, Fault> {
    let mut watch = Watch::default();
    poll_fn(|cx| {
        if let Poll::Ready(answer) = Pin::new(&mut answering).poll(cx) {
            return Poll::Ready(Ok(answer));
        }
        watch.poll(cx, &mut shared.lock()).map(|error| Err(gone(error)))
    })
    .await
}

/// Reads what is there of a body that nobody wanted; whether that was all of it.
async fn discard(shared: &Shared) -> bool {
    let mut read = 0;
    poll_fn(|cx| {
        let mut wire = shared.lock();
        while !wire.body.is_over() && read < UNWANTED {
            match wire.poll_body(cx) {
                Poll::Ready(Some(Ok(Part::Data(data)))) => read += data.len(),
                Poll::Ready(Some(Ok(Part::Trailers(..)))) => {}
                Poll::Ready(Some(Err(_)) | None) | Poll::Pending => break,
            }
        }
        Poll::Ready(wire.body.is_over())
    })
    .await
}

/// Says the last word, if there is one, and closes. A client that is still sending would not hear it through the reset
/// that an unread byte causes: it is listened to for a moment.
async fn farewell(mut wire: Wire, answer: &[u8], unread: bool) {
    wire.out.tail().extend_from_slice(answer);
    let said = async {
        poll_fn(|cx| wire.poll_write_out(cx)).await?;
        wire.stream.shutdown().await?;
        if unread {
            tokio::io::copy(&mut (&mut wire.stream).take(FAREWELL_BYTES), &mut tokio::io::sink()).await?;
        }
        io::Result::Ok(())
    };
    // Whoever does not listen is closed all the same.
    let _ = timeout(FAREWELL, said).await;
}

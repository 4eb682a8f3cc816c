//! The server's side: a client's requests, one after the other, each to its answer's last byte.

use super::{
    Error, Limits,
    body::Request as RequestBody,
    head::{self, Head},
    wire::{Reading, Shared, Wire},
    write::{self, Coding, Then},
};
use crate::{
    fault::{Fault, HttpError},
    http::{body::Body, respond, upgrade::Upgradable},
    stream::{LOOK, Stream},
};
use http::{Method, Request, Response, StatusCode, header};
use http_body::Body as _;
use remora_core::http1::{Asked, Length};
use remora_runtime::{clock, tasks::Drain};
use std::{
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWrite as _, AsyncWriteExt},
    sync::oneshot,
    time::{Sleep, timeout},
};

/// How long a client may take to hear the last answer of its connection while it still sends; and how much it may send.
const FAREWELL: Duration = Duration::from_secs(1);
const FAREWELL_BYTES: u64 = 1 << 20;
/// Reads of a body in one poll before the worker's other connections get their turn.
const RELAYS: u32 = 8;
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

/// What is needed of a request when it is answered.
#[derive(Clone, Copy)]
struct Asking {
    asked: Asked,
    http11: bool,
    persists: bool,
}

/// Serves requests until the client, the drain or an answer that closes ends the connection. A service's error resets it.
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
        let (persists, upgraded) = send(shared, asking, answer, drain).await?;
        if let (true, Some(to)) = (upgraded, upgrade) {
            return Ok(End::Upgrade(to));
        }
        let unread = !discard(shared).await;
        if !persists || unread {
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
    let connect = *head.method() == Method::CONNECT;
    if connect || framing.upgrade {
        let (to, connection) = oneshot::channel();
        head.extensions_mut().insert(Upgradable::new(connection));
        upgrade = Some(to);
    }
    let asked = match *head.method() {
        Method::HEAD => Asked::Head,
        Method::CONNECT => Asked::Connect,
        _ => Asked::Other,
    };
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

/// Looks whether the client is there while it is answered. One that says no more may still listen: it is waited for as
/// long as its machine says that somebody is there.
#[derive(Default)]
struct Watch {
    /// The client says no more.
    ended: bool,
    looking: Option<Pin<Box<Sleep>>>,
}

impl Watch {
    /// Ready when the client is gone.
    fn poll(&mut self, cx: &mut Context<'_>, wire: &mut Wire) -> Poll<io::Error> {
        // A body is read by whoever wants it, and the beginning of the next request keeps: meanwhile a reset is not read
        // either, but looked for.
        if !self.ended && wire.body.is_over() && wire.ahead.bytes.is_empty() {
            match ready!(wire.poll_fill(cx)) {
                Ok(read) => {
                    self.ended = read == 0;
                    if let (true, Some(error)) = (self.ended, wire.stream.look()) {
                        return Poll::Ready(error);
                    }
                }
                Err(error) => return Poll::Ready(error),
            }
        }
        let looking = self.looking.get_or_insert_with(|| Box::pin(tokio::time::sleep(LOOK)));
        loop {
            ready!(looking.as_mut().poll(cx));
            if let Some(error) = wire.stream.look() {
                return Poll::Ready(error);
            }
            looking.as_mut().reset(tokio::time::Instant::now() + LOOK);
        }
    }
}

/// Sends an answer. Whether the connection persists, and whether it is no longer one of messages.
async fn send(
    shared: &Shared,
    asking: Asking,
    mut answer: Response<Body>,
    drain: &Drain,
) -> Result<(bool, bool), Fault> {
    let status = answer.status();
    let upgraded =
        status == StatusCode::SWITCHING_PROTOCOLS || asking.asked == Asked::Connect && status.is_success();
    let mut coding = Coding::of_answer(&answer, asking.asked, asking.http11);
    let persists = asking.persists
        && coding != Coding::Close
        && !respond::is_closing(&answer)
        && !says_close(&answer)
        && !drain.is_draining();
    let then = match (upgraded, persists) {
        (true, _) => Then::Upgrade,
        (false, true) => Then::Persist,
        (false, false) => Then::Close,
    };
    write::answer(shared.lock().out.tail(), &answer, coding, asking.http11, then);
    let body = answer.body_mut();
    let mut over = false;
    let mut watch = Watch::default();
    poll_fn(|cx| {
        let mut relays = 0;
        loop {
            let mut waits = false;
            // Most of a long answer goes from the one socket to the other.
            if relays < RELAYS && !over && shared.lock().out.is_empty() {
                relays += 1;
                match relay(cx, shared, body, &mut coding) {
                    Some(Poll::Ready(Ok(()))) => continue,
                    Some(Poll::Ready(Err(fault))) => {
                        return Poll::Ready(Err(broken(cx, shared, coding, fault)));
                    }
                    Some(Poll::Pending) => waits = true,
                    None => {}
                }
            } else if relays == RELAYS {
                // Others of this worker have their turn.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            while !over && !waits && shared.lock().out.has_room() {
                // Not while the connection is held: the body may read the request's.
                let frame = if body.is_end_stream() {
                    Poll::Ready(None)
                } else {
                    Pin::new(&mut *body).poll_frame(cx)
                };
                let mut wire = shared.lock();
                let added = match frame {
                    Poll::Ready(Some(Ok(frame))) => coding.frame(&mut wire.out, frame),
                    Poll::Ready(None) => {
                        over = true;
                        coding.end(&mut wire.out)
                    }
                    Poll::Ready(Some(Err(error))) => {
                        drop(wire);
                        let fault = Fault::Answer(error.to_string().into());
                        return Poll::Ready(Err(broken(cx, shared, coding, fault)));
                    }
                    Poll::Pending => {
                        waits = true;
                        Ok(())
                    }
                };
                if added.is_err() {
                    return Poll::Ready(Err(Fault::Answer("it is not as long as it said".into())));
                }
            }
            let mut wire = shared.lock();
            match wire.poll_write_out(cx) {
                Poll::Ready(Ok(())) if over => break,
                Poll::Ready(Ok(())) if !waits => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(gone(error))),
                Poll::Ready(Ok(())) | Poll::Pending => {
                    let gone_meanwhile = watch.poll(cx, &mut wire);
                    drop(wire);
                    // A client that does not read is no reason to stop what it sends.
                    let _ = body.poll_finish(cx);
                    return gone_meanwhile.map(|error| Err(gone(error)));
                }
            }
        }
        // The rest of the request goes on to whoever has answered it already.
        let finished = body.poll_finish(cx);
        if upgraded || finished.is_ready() {
            return Poll::Ready(Ok(()));
        }
        watch.poll(cx, &mut shared.lock()).map(|error| Err(gone(error)))
    })
    .await?;
    Ok((persists, upgraded))
}

/// Moves what is there of a body from the one socket to the other; `None` where it has to be asked for frames.
fn relay(
    cx: &mut Context<'_>,
    shared: &Shared,
    body: &mut Body,
    coding: &mut Coding,
) -> Option<Poll<Result<(), Fault>>> {
    if !matches!(coding, Coding::Length(_) | Coding::Close) {
        return None;
    }
    let write = &mut |cx: &mut Context<'_>, bytes: &[u8]| {
        let mut wire = shared.lock();
        let taken = Pin::new(&mut wire.stream).poll_write(cx, bytes);
        if let Poll::Ready(Ok(taken)) = taken {
            wire.out.relayed(taken);
        }
        taken
    };
    let relayed = match body.poll_relay(cx, write)? {
        Poll::Ready(Ok(relayed)) => relayed,
        Poll::Ready(Err(error)) => return Some(Poll::Ready(Err(Fault::Answer(error.to_string().into())))),
        Poll::Pending => return Some(Poll::Pending),
    };
    if coding.relayed(relayed.read).is_err() {
        return Some(Poll::Ready(Err(Fault::Answer("it is longer than it said".into()))));
    }
    shared.lock().out.piece(relayed.rest);
    Some(Poll::Ready(Ok(())))
}

/// An answer broke off: what came of it is sent, and then the connection ends, by a reset where its end would be taken
/// for the answer's.
fn broken(cx: &mut Context<'_>, shared: &Shared, coding: Coding, fault: Fault) -> Fault {
    let mut wire = shared.lock();
    let _ = wire.poll_write_out(cx);
    if coding == Coding::Close {
        wire.stream.reset_on_close();
        wire.torn = true;
    }
    fault
}

fn says_close(answer: &Response<Body>) -> bool {
    answer.headers().get_all(header::CONNECTION).iter().any(|value| {
        value
            .as_bytes()
            .split(|byte| *byte == b',')
            .any(|one| one.trim_ascii().eq_ignore_ascii_case(b"close"))
    })
}

/// Reads what is there of a body that nobody wanted; whether that was all of it.
async fn discard(shared: &Shared) -> bool {
    let mut read = 0;
    poll_fn(|cx| {
        let mut wire = shared.lock();
        while !wire.body.is_over() && read < UNWANTED {
            match wire.poll_body(cx) {
                Poll::Ready(Some(Ok(super::wire::Part::Data(data)))) => read += data.len(),
                Poll::Ready(Some(Ok(super::wire::Part::Trailers(_)))) => {}
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

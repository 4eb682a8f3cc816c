//! Whether an inbound request that is under way may go on. It is decided anew whenever the policy of its port changes,
//! until its answer is over: in the same way as when it came, and of the same head.

use super::{Inbound, permitted};
use crate::{fault::Fault, inbound};
use http::{HeaderMap, Method, Request, Uri, header};
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

/// What policy sees of a request, kept in few allocations.
struct Head {
    method: Method,
    uri: Uri,
    /// One after the other: the lengths of name and value, name, value.
    fields: Vec<u8>,
}

/// Bytes of the lengths of a name and of a value.
const NAME: usize = 2;
const VALUE: usize = 4;

impl Head {
    fn of<B>(request: &Request<B>) -> Self {
        Self { method: request.method().clone(), uri: request.uri().clone(), fields: kept(request.headers()) }
    }

    fn fields(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let mut rest = &*self.fields;
        std::iter::from_fn(move || {
            let (name, after) = rest.split_first_chunk::<NAME>()?;
            let (value, after) = after.split_first_chunk::<VALUE>()?;
            let (name, after) = after.split_at_checked(usize::from(u16::from_le_bytes(*name)))?;
            let (value, after) = after.split_at_checked(u32::from_le_bytes(*value) as usize)?;
            rest = after;
            Some((name, value))
        })
    }
}

fn kept(headers: &HeaderMap) -> Vec<u8> {
    let size = |(name, value): (&header::HeaderName, &header::HeaderValue)| {
        NAME + VALUE + name.as_str().len() + value.len()
    };
    let mut fields = Vec::with_capacity(headers.iter().map(size).sum());
    for (name, value) in headers {
        let name = name.as_str().as_bytes();
        // No name is longer than 64 KiB, and no head than 4 GiB.
        let (Ok(names), Ok(values)) = (u16::try_from(name.len()), u32::try_from(value.len())) else {
            continue;
        };
        fields.extend_from_slice(&names.to_le_bytes());
        fields.extend_from_slice(&values.to_le_bytes());
        fields.extend_from_slice(name);
        fields.extend_from_slice(value.as_bytes());
    }
    fields
}

impl RequestView for Head {
    fn method(&self) -> &str {
        self.method.as_str()
    }

    fn authority(&self) -> &str {
        if let Some(authority) = self.uri.authority() {
            return authority.as_str();
        }
        let host = self.header(header::HOST.as_str()).next().filter(|host| host.is_ascii());
        host.and_then(|host| str::from_utf8(host).ok()).unwrap_or("")
    }

    fn path(&self) -> &str {
        self.uri.path()
    }

    fn query(&self) -> Option<&str> {
        self.uri.query()
    }

    fn header(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        let same = move |(field, _): &(&[u8], &[u8])| *field == name.as_bytes();
        self.fields().filter(same).map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::View, *};

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

//! What an operator may ask a process: is it alive, is it ready, what does it count, what does it know. Contract 1.12
//! and design.md "Admin".
//!
//! [`Admin::respond`] answers one request and touches no socket: the proxy calls it from its own HTTP server, which
//! detects TLS and applies policy; every other process uses [`serve`].

use crate::{
    log::{LogHandle, MAX_FILTER},
    metrics::{self, Registry},
    tasks::{Drain, Tasks},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::Body;
use http_body_util::{BodyExt, Full, Limited};
use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use std::{
    collections::BTreeMap,
    convert::Infallible,
    fmt::Display,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::{net::TcpListener, sync::Semaphore, sync::watch};

/// Connections that [`serve`] answers at once; more wait in the listener's backlog.
const MAX_CONNECTIONS: usize = 64;
/// How long a client of [`serve`] may take to send a request's head, and how long a whole connection may be idle.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// What the answers are made of.
#[derive(Clone)]
pub struct Admin {
    /// Has the process all it needs? `/ready` says so until the drain begins.
    pub ready: watch::Receiver<bool>,
    /// What `/metrics` prints.
    pub registry: Registry,
    /// What `/proxy-log-level` reads and replaces.
    pub log: LogHandle,
    /// What `/state.json` shows. Must be quick and leave out secrets.
    pub state: Arc<dyn Fn() -> serde_json::Value + Send + Sync>,
    /// What `/env.json` shows: names and values with secrets replaced ([`crate::env::Env::shown`]).
    pub env: Vec<(String, String)>,
    /// What `POST /shutdown` begins, and what ends readiness.
    pub drain: Drain,
    /// Does `POST /shutdown` answer? (`LINKERD2_PROXY_SHUTDOWN_ENDPOINT_ENABLED`)
    pub shutdown_endpoint: bool,
}

type Answer = Response<Full<Bytes>>;

impl Admin {
    /// Answers one request of `peer`, the address at the other end of the TCP connection. Reads at most 1 KiB of the
    /// body, and only where a body means something.
    pub async fn respond<B>(&self, peer: SocketAddr, request: Request<B>) -> Answer
    where
        B: Body,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let head_only = request.method() == Method::HEAD;
        let mut answer = self.answer(peer.ip(), request).await;
        if head_only {
            // RFC 9110 section 9.3.2: the head that GET would have, its length included.
            let length = answer.body().size_hint().exact().unwrap_or_default();
            answer.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
            *answer.body_mut() = Full::default();
        }
        answer
    }

    async fn answer<B>(&self, peer: IpAddr, request: Request<B>) -> Answer
    where
        B: Body,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let path = request.uri().path().to_owned();
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        let local = is_loopback(peer);
        match path.as_str() {
            // Any method: what probes send differs, and the answer does not depend on it.
            "/live" => text(StatusCode::OK, "live\n"),
            "/ready" => self.ready(),
            "/metrics" => self.metrics(request.headers()),
            "/shutdown" if !self.shutdown_endpoint => text(
                StatusCode::NOT_FOUND,
                "shutdown over HTTP is off (config.linkerd.io/proxy-admin-shutdown)\n",
            ),
            "/state.json" | "/env.json" | "/proxy-log-level" | "/shutdown" if !local => forbidden(&path),
            "/state.json" if reads => json(&(self.state)()),
            "/env.json" if reads => json(&self.env(request.uri().query().unwrap_or_default())),
            "/proxy-log-level" if reads => text(StatusCode::OK, format!("{}\n", self.log.filter())),
            "/proxy-log-level" if request.method() == Method::PUT => {
                self.set_log_level(request.into_body()).await
            }
            "/shutdown" if request.method() == Method::POST => {
                tracing::info!("shutdown was asked for over HTTP");
                self.drain.signal();
                text(StatusCode::OK, "shutting down\n")
            }
            "/state.json" | "/env.json" => not_allowed(&path, "GET, HEAD"),
            "/proxy-log-level" => not_allowed(&path, "GET, HEAD, PUT"),
            "/shutdown" => not_allowed(&path, "POST"),
            _ => text(StatusCode::NOT_FOUND, format!("there is no {}; try {PATHS}\n", path.escape_debug())),
        }
    }

    fn ready(&self) -> Answer {
        if self.drain.is_draining() {
            text(StatusCode::SERVICE_UNAVAILABLE, "shutting down\n")
        } else if *self.ready.borrow() {
            text(StatusCode::OK, "ready\n")
        } else {
            text(StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
        }
    }

    fn metrics(&self, headers: &HeaderMap) -> Answer {
        let gzip = accepts_gzip(headers);
        let body = if gzip { self.registry.render_gzip() } else { self.registry.render().into_bytes() };
        let mut answer = respond(StatusCode::OK, metrics::CONTENT_TYPE, body);
        answer.headers_mut().insert(header::VARY, HeaderValue::from_static("accept-encoding"));
        if gzip {
            answer.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        answer
    }

    /// All variables, or those that the query names (`?A&B`); a name that is not set is null.
    fn env(&self, query: &str) -> serde_json::Value {
        let all: BTreeMap<&str, &str> =
            self.env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let asked: Vec<&str> = query.split('&').filter(|name| !name.is_empty()).collect();
        let shown: BTreeMap<&str, Option<&str>> = if asked.is_empty() {
            all.into_iter().map(|(name, value)| (name, Some(value))).collect()
        } else {
            asked.into_iter().map(|name| (name, all.get(name).copied())).collect()
        };
        serde_json::json!(shown)
    }

    async fn set_log_level<B>(&self, body: B) -> Answer
    where
        B: Body,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let Ok(body) = Limited::new(body, MAX_FILTER).collect().await else {
            return text(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("a log filter has at most {MAX_FILTER} bytes\n"),
            );
        };
        let bytes = body.to_bytes();
        let Ok(filter) = std::str::from_utf8(&bytes) else {
            return text(StatusCode::BAD_REQUEST, "a log filter is text in UTF-8\n");
        };
        let filter = filter.trim();
        match self.log.set_filter(filter) {
            Ok(()) => {
                tracing::info!(filter, "log filter replaced");
                respond(StatusCode::NO_CONTENT, TEXT, Vec::new())
            }
            Err(error) => text(StatusCode::BAD_REQUEST, format!("not a log filter: {error}\n")),
        }
    }
}

const TEXT: &str = "text/plain; charset=utf-8";
const PATHS: &str = "/live, /ready, /metrics, /proxy-log-level, /env.json, /state.json, /shutdown";

/// The processes on this machine's own addresses: also 127.0.0.1 as an IPv6 socket writes it.
fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

/// `gzip` or `*` in Accept-Encoding with a weight above 0 (RFC 9110 section 12.5.3).
fn accepts_gzip(headers: &HeaderMap) -> bool {
    let lists = headers.get_all(header::ACCEPT_ENCODING);
    let items = lists.iter().filter_map(|value| value.to_str().ok()).flat_map(|list| list.split(','));
    let (mut gzip, mut any) = (None, None);
    for item in items {
        let (coding, parameters) = item.split_once(';').unwrap_or((item, ""));
        let weight = parameters.trim().strip_prefix("q=").map_or(Some(1.0), |q| q.trim().parse::<f32>().ok());
        let accepted = weight.is_some_and(|weight| weight > 0.0);
        match coding.trim() {
            "*" => any = Some(accepted),
            coding if coding.eq_ignore_ascii_case("gzip") => gzip = Some(accepted),
            _ => {}
        }
    }
    gzip.or(any).unwrap_or(false)
}

fn forbidden(path: &str) -> Answer {
    let why = format!(
        "{path} answers only clients of this pod (loopback), for instance through kubectl port-forward\n"
    );
    text(StatusCode::FORBIDDEN, why)
}

fn not_allowed(path: &str, allowed: &'static str) -> Answer {
    let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, format!("{path} takes {allowed}\n"));
    answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
    answer
}

fn json(value: &serde_json::Value) -> Answer {
    // {:#} is serde_json's indented form; values cannot fail to print.
    respond(StatusCode::OK, "application/json", format!("{value:#}\n"))
}

fn text(status: StatusCode, body: impl Display) -> Answer {
    respond(status, TEXT, body.to_string())
}

fn respond(status: StatusCode, media_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    answer
}

/// Answers HTTP/1 and HTTP/2 on `listener` until the listener breaks or the future is dropped. Goes on through a
/// drain, so that `/ready` can say so; its connections hold no drain up.
pub async fn serve(listener: TcpListener, admin: Arc<Admin>, tasks: Tasks) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        // The semaphore is never closed.
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                pause_after(&error).await;
                continue;
            }
        };
        let admin = admin.clone();
        tasks.spawn("admin connection", async move {
            let _place = place;
            let service = service_fn(move |request| {
                let admin = admin.clone();
                async move { Ok::<_, Infallible>(admin.respond(peer, request).await) }
            });
            let mut builder = auto::Builder::new(TokioExecutor::new());
            builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
            let mut http2 = builder.http2();
            http2.timer(TokioTimer::new()).keep_alive_interval(HEADER_TIMEOUT).max_concurrent_streams(16);
            if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
                tracing::debug!(%peer, error, "an admin connection ended with an error");
            }
        });
    }
}

/// Out of file descriptors or memory, accept fails at once and again: wait for others to give some back.
async fn pause_after(error: &io::Error) {
    tracing::warn!(%error, "the admin port cannot accept a connection");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

#[cfg(test)]
mod tests;

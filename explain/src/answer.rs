//! Pure. An answer, as scripts read it: the fields of `remora explain -o json`, which `docs/explain.md` describes.

use crate::question::{Question, Speaks};
use http::{Request, header};
use remora_proxy::fault::Fault;
use serde::Serialize;
use std::net::{IpAddr, SocketAddr};

/// What becomes of a request.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Answer {
    /// In a word.
    pub verdict: Verdict,
    /// Who asks.
    pub client: Client,
    /// What is asked.
    pub asked: Asked,
    /// One for each address that is dialled: a Service's own, or those of the pods of a headless one.
    pub courses: Vec<Course>,
    /// References that lead nowhere, of what decides here.
    pub unresolved: Vec<String>,
    /// What was assumed.
    pub notes: Vec<String>,
}

/// What becomes of a request, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It reaches an application whichever endpoint is picked, or a route answers it with another place to ask.
    Admitted,
    /// Somebody may refuse it, or fail it.
    Refused,
    /// Something that decides refers to what is not there.
    Unresolved,
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Client {
    /// `<namespace>/<name>` of its ServiceAccount.
    pub account: String,
    /// A proxy takes its connections.
    pub meshed: bool,
    /// What its proxy proves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    /// The pods that have the account.
    pub pods: Vec<String>,
    /// Their addresses; not known if there is none.
    pub addresses: Vec<IpAddr>,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Asked {
    /// As it was named.
    pub to: String,
    /// Of a request.
    pub method: String,
    /// Of a request.
    pub host: String,
    /// Path and query of a request.
    pub path: String,
    /// The server name of the application's own TLS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sni: Option<String>,
}

/// What becomes of it on its way to an address that is dialled.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Course {
    /// What is there: `Service shop/web:80`, `pod shop/web-1`, or nothing that is known.
    pub target: String,
    /// The address.
    pub address: Option<SocketAddr>,
    /// The client's proxy, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy: Option<Proxy>,
    /// What the port is declared to speak: `detect`, `http1`, `http2`, `grpc`, `opaque`, `tls`, `invalid`.
    pub declared: &'static str,
    /// What is spoken: `http1`, `http2`, `bytes`, `tls`.
    pub spoken: &'static str,
    /// What has the request: a route or a ServiceProfile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<Rule>,
    /// The other rules, and why they do not have it.
    pub lost: Vec<Lost>,
    /// Routes that name the port and do not hold there for this client, and why.
    pub apart: Vec<Apart>,
    /// What is done with it besides, in order.
    pub filters: Vec<String>,
    /// How long it may take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<Timeouts>,
    /// When it is sent again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// When endpoints are left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub breaker: Option<String>,
    /// What the client's own proxy answers, in the server's place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply: Option<Reply>,
    /// Where it may go.
    pub backends: Vec<Backend>,
}

/// What the client's proxy was told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Proxy {
    /// Of which pods.
    pub pods: Vec<String>,
    /// Whom it may reach in plaintext: `all-unauthenticated` is everybody.
    #[serde(rename = "outboundDefaultPolicy")]
    pub outbound_default: &'static str,
    /// Do requests name the Service that they are for?
    pub ingress: bool,
}

/// What has a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rule {
    /// `HTTPRoute shop/web`, `ServiceProfile shop/web.shop.svc.cluster.local`, `default`.
    pub of: String,
    /// The number of the rule, as manifests count: from 0. Of a ServiceProfile: of the route.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub number: Option<usize>,
    /// What it asks for, any one of these.
    pub matches: Vec<String>,
}

/// A rule that does not have the request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Lost {
    /// As in [`Rule`].
    pub of: String,
    /// As in [`Rule`].
    pub number: usize,
    /// Why not.
    pub why: String,
}

/// A route that does not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Apart {
    /// The route.
    pub of: String,
    /// Why not.
    pub why: String,
}

/// How long a request may take. Seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Timeouts {
    /// From its arrival to its answer's end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<f64>,
    /// From its end to its answer's end; of a ServiceProfile from its arrival to its answer's head.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response: Option<f64>,
    /// Without a byte.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle: Option<f64>,
}

/// When a request is sent again.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Retry {
    /// At most so often; a ServiceProfile has a budget instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// How often the route asks for, where that is more than a proxy does, unless its `REMORA_PROXY_MAX_RETRIES` says more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub asked: Option<u32>,
    /// After answers like these, and where none came.
    pub on: Vec<String>,
    /// Seconds that a try may take to its answer's head.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<f64>,
    /// How long is waited before each.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backoff: Option<String>,
    /// What bounds all retries together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget: Option<String>,
}

/// An answer that a proxy makes up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reply {
    /// Of HTTP; there is none where nobody speaks HTTP: the connection ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Of gRPC.
    #[serde(rename = "grpcStatus", skip_serializing_if = "Option::is_none")]
    pub grpc_status: Option<u16>,
    /// Where it leads, if it is a redirect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub location: Option<String>,
    /// Why, as the header `l5d-proxy-error` says it.
    pub why: String,
}

/// Where a share of requests goes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Backend {
    /// `Service shop/web:80`, or an address.
    pub of: String,
    /// As it is written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// Its share of the requests, in hundredths. 0: nothing goes there now.
    pub percent: f64,
    /// What is done with requests that go there.
    pub filters: Vec<String>,
    /// What the client's proxy answers to those.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply: Option<Reply>,
    /// Who may be picked.
    pub endpoints: Vec<Endpoint>,
}

/// One of whom a balancer picks.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Endpoint {
    /// Its address.
    pub address: SocketAddr,
    /// Its pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// The identity that it must prove; without one it is dialled in plain text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<String>,
    /// How it is dialled: `direct` (by its proxy's own port), `transparent` (its own port), `plain`.
    pub dialled: &'static str,
    /// Why without TLS.
    #[serde(rename = "noTlsReason", skip_serializing_if = "Option::is_none")]
    pub no_tls: Option<&'static str>,
    /// Why it gets nothing while others do.
    #[serde(rename = "passedOver", skip_serializing_if = "Option::is_none")]
    pub passed_over: Option<String>,
    /// What the client's own proxy answers in its place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply: Option<Reply>,
    /// What happens there; nothing if it gets nothing.
    pub served: Vec<Served>,
}

/// What a server's proxy does with it, for clients from these addresses.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Served {
    /// From where. Where the client's address is not known: an address of each kind that is told apart.
    pub from: Vec<IpAddr>,
    /// Whose policy the port has: `Server shop/web`, `default all-unauthenticated`; nothing without a proxy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// What the port is declared to speak, as in [`Course`].
    pub declared: &'static str,
    /// What has the request there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<Rule>,
    /// The other rules there, and why they do not have it.
    pub lost: Vec<Lost>,
    /// May it pass?
    pub admitted: bool,
    /// What admits it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// What was asked before and does not admit it, and why.
    pub refusing: Vec<Apart>,
    /// What is done with it besides, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<String>,
    /// What it is answered, if it may not pass, or a filter answers in the application's place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply: Option<Reply>,
    /// How often such a client may ask; it is not counted here.
    #[serde(rename = "rateLimits")]
    pub rate_limits: Vec<String>,
    /// What else is to be known.
    pub notes: Vec<String>,
}

impl Asked {
    pub(crate) fn of(question: &Question, request: &Request<()>) -> Self {
        let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
        let sni = match &question.speaks {
            Speaks::Tls(sni) => Some(sni.clone()),
            _ => None,
        };
        Self {
            to: question.to.clone(),
            method: request.method().to_string(),
            host: host.unwrap_or_default().to_owned(),
            path: request.uri().to_string(),
            sni,
        }
    }
}

impl Course {
    /// Does it pass whoever is picked?
    pub fn is_admitted(&self) -> bool {
        if let Some(reply) = &self.reply {
            return reply.location.is_some();
        }
        let mut used = self.backends.iter().filter(|backend| backend.percent > 0.0).peekable();
        used.peek().is_some() && used.all(Backend::is_admitted)
    }
}

impl Backend {
    /// Does what goes there pass whoever is picked?
    pub fn is_admitted(&self) -> bool {
        if let Some(reply) = &self.reply {
            return reply.location.is_some();
        }
        let mut picked = self.endpoints.iter().filter(|one| one.passed_over.is_none()).peekable();
        picked.peek().is_some() && picked.all(Endpoint::passes)
    }
}

impl Endpoint {
    fn passes(&self) -> bool {
        self.reply.is_none() && self.served.iter().all(Served::passes)
    }
}

impl Served {
    /// Is it admitted, and does no filter refuse it?
    fn passes(&self) -> bool {
        self.admitted && self.reply.as_ref().is_none_or(|reply| reply.location.is_some())
    }
}

impl Reply {
    /// What an HTTP client is told of a fault.
    pub(crate) fn of(fault: &Fault, grpc: bool) -> Self {
        let location = match fault {
            Fault::Redirected { location, .. } => Some(location.to_string()),
            _ => None,
        };
        Self {
            status: Some(if grpc { 200 } else { fault.answer().status.as_u16() }),
            grpc_status: grpc.then(|| fault.grpc_code()),
            location,
            why: fault.to_string(),
        }
    }

    /// The end of a connection on which nobody speaks HTTP.
    pub(crate) fn ended(why: String) -> Self {
        Self { status: None, grpc_status: None, location: None, why }
    }
}

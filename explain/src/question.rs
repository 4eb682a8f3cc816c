//! Pure. What is asked: who asks whom for what, as command lines write it.

use crate::outbound::Carried;
use http::{HeaderName, HeaderValue, Method, Request, Uri, Version, header, uri};
pub use remora_core::policy::OutboundDefault;
use remora_destination::{
    resources::Name,
    view::{Settings, Target},
};
use std::net::{IpAddr, SocketAddr};

/// A question.
#[derive(Clone, Debug)]
pub struct Question {
    /// The client's namespace and ServiceAccount.
    pub from: Name,
    /// The client has no proxy: it dials a server itself, in plain text.
    pub unmeshed: bool,
    /// What the proxy of an account without pods is told, if its namespace says nothing of it.
    pub default_outbound_policy: OutboundDefault,
    /// The client's address; without one those of the account's pods.
    pub from_ip: Option<IpAddr>,
    /// `<svc>[.<ns>[.svc[.<domain>]]]:<port>`, or an address and port. Without a namespace it is the client's.
    pub to: String,
    /// What the client speaks.
    pub speaks: Speaks,
    /// The method; else GET, for gRPC POST.
    pub method: Option<String>,
    /// Path and query.
    pub path: String,
    /// Header fields, `Host` among them: else it is what the request is sent to.
    pub headers: Vec<(String, String)>,
}

/// What a client speaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Speaks {
    /// What the port is declared to be, else HTTP/1.1.
    Declared,
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 from the start.
    Http2,
    /// gRPC.
    Grpc,
    /// Something that is none of these.
    Bytes,
    /// TLS of the application's own, with this server name.
    Tls(String),
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Destination {
    /// An address.
    Address(SocketAddr),
    /// A port of a Service, or of one host of it.
    Service { name: Name, host: Option<String>, port: u16 },
}

/// Why a question cannot be asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unanswerable {
    /// Nothing has such a name.
    #[error("--to {0}: {1}")]
    To(String, String),
    /// No method has such a name.
    #[error("--method {0}: no method of HTTP")]
    Method(String),
    /// No request can be for it.
    #[error("--path {0}: {1}")]
    Path(String, String),
    /// No header is like this.
    #[error("--header {0}: {1}")]
    Header(String, &'static str),
}

impl Question {
    /// A GET of `/` that asks for nothing special.
    pub fn new(from: Name, to: &str) -> Self {
        Self {
            from,
            unmeshed: false,
            default_outbound_policy: OutboundDefault::default(),
            from_ip: None,
            to: to.to_owned(),
            speaks: Speaks::Declared,
            method: None,
            path: "/".to_owned(),
            headers: Vec::new(),
        }
    }

    /// What it asks for.
    pub(crate) fn destination(&self, settings: &Settings) -> Result<Destination, Unanswerable> {
        let fail = |why: &str| Unanswerable::To(self.to.clone(), why.to_owned());
        if let Ok(addr) = self.to.parse::<SocketAddr>() {
            return if addr.port() == 0 { Err(fail("port 0")) } else { Ok(Destination::Address(addr)) };
        }
        let (host, port) = self.to.rsplit_once(':').ok_or_else(|| fail("without a port"))?;
        if let Ok(ip) = host.trim_matches(['[', ']']).parse::<IpAddr>() {
            let port: u16 = port.parse().map_err(|_| fail("the port is not in 1 to 65535"))?;
            return Ok(Destination::Address(SocketAddr::new(ip, port)));
        }
        let full = match host.trim_end_matches('.').split('.').count() {
            1 => format!("{host}.{}.svc:{port}", self.from.namespace),
            2 => format!("{}.svc:{port}", host.trim_end_matches('.')),
            _ => self.to.clone(),
        };
        match Target::parse(&full, &settings.cluster_domain) {
            Ok(Target::Service { name, host, port }) => Ok(Destination::Service { name, host, port }),
            Ok(Target::Addr(addr)) => Ok(Destination::Address(addr)),
            Err(refusal) => Err(fail(&refusal.to_string())),
        }
    }

    /// The request, as its client sends it over HTTP/1.1.
    pub(crate) fn request(&self) -> Result<Request<()>, Unanswerable> {
        let wrong = |why: String| Unanswerable::Path(self.path.clone(), why);
        let target =
            uri::PathAndQuery::try_from(self.path.as_str()).map_err(|error| wrong(error.to_string()))?;
        if target.as_str() != self.path || !self.path.starts_with(['/', '*']) {
            return Err(wrong(
                "no path that a request can be for; it begins with / and has no fragment".into(),
            ));
        }
        let method =
            self.method.as_deref().unwrap_or(if self.speaks == Speaks::Grpc { "POST" } else { "GET" });
        let method =
            Method::from_bytes(method.as_bytes()).map_err(|_| Unanswerable::Method(method.to_owned()))?;
        let mut request = Request::new(());
        *request.method_mut() = method;
        *request.uri_mut() = Uri::from(target);
        for (name, value) in &self.headers {
            let shown = || format!("{name}: {value}");
            let named = HeaderName::from_bytes(name.as_bytes())
                .map_err(|_| Unanswerable::Header(shown(), "no name of a header"))?;
            let value = HeaderValue::from_str(value)
                .map_err(|_| Unanswerable::Header(shown(), "no value of a header"))?;
            request.headers_mut().append(named, value);
        }
        if !request.headers().contains_key(header::HOST) {
            // As clients write it: the usual port is left out.
            let host = self.to.strip_suffix(":80").unwrap_or(&self.to);
            let host = HeaderValue::from_str(host)
                .map_err(|_| Unanswerable::To(self.to.clone(), "no host of a request".into()))?;
            request.headers_mut().insert(header::HOST, host);
        }
        if request.method() == Method::CONNECT
            && let Some(host) = request.headers().get(header::HOST)
            && let Ok(tunnel) = Uri::try_from(host.as_bytes())
        {
            // Its target is where the tunnel leads. RFC 9112 section 3.2.3.
            *request.uri_mut() = tunnel;
        }
        if self.speaks == Speaks::Grpc && !request.headers().contains_key(header::CONTENT_TYPE) {
            let grpc = HeaderValue::from_static("application/grpc");
            request.headers_mut().insert(header::CONTENT_TYPE, grpc);
        }
        Ok(request)
    }
}

impl Question {
    /// What a client without a proxy sends.
    pub(crate) fn carried(&self, request: &Request<()>) -> Carried {
        match &self.speaks {
            Speaks::Declared | Speaks::Http1 => Carried::Request(Box::new(request.clone())),
            Speaks::Http2 | Speaks::Grpc => Carried::Request(Box::new(over_http2(request))),
            Speaks::Bytes => Carried::Bytes,
            Speaks::Tls(sni) => Carried::Tls(sni.clone()),
        }
    }
}

/// The same request over HTTP/2, whose target has the host: the first one that was said.
pub(crate) fn over_http2(request: &Request<()>) -> Request<()> {
    let mut request = request.clone();
    *request.version_mut() = Version::HTTP_2;
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).map(str::to_owned);
    let mut parts = request.uri().clone().into_parts();
    parts.scheme = Some(uri::Scheme::HTTP);
    parts.authority = host.and_then(|host| host.parse().ok());
    if parts.authority.is_some()
        && let Ok(uri) = Uri::from_parts(parts)
    {
        let others: Vec<HeaderValue> =
            request.headers().get_all(header::HOST).iter().skip(1).cloned().collect();
        request.headers_mut().remove(header::HOST);
        for other in others {
            request.headers_mut().append(header::HOST, other);
        }
        *request.uri_mut() = uri;
    }
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_named_as_people_name_them() {
        let service = |namespace: &str, host: Option<&str>| Destination::Service {
            name: Name::new(namespace, "web"),
            host: host.map(str::to_owned),
            port: 80,
        };
        let address = |text: &str| Destination::Address(text.parse().unwrap());
        for (to, expected) in [
            ("web:80", Some(service("shop", None))),
            ("web.bank:80", Some(service("bank", None))),
            ("web.bank.svc:80", Some(service("bank", None))),
            ("web.bank.svc.cluster.local:80", Some(service("bank", None))),
            ("web-0.web.bank.svc.cluster.local:80", Some(service("bank", Some("web-0")))),
            ("10.1.0.1:80", Some(address("10.1.0.1:80"))),
            ("[fd00::1]:80", Some(address("[fd00::1]:80"))),
            ("web", None),
            ("web:0", None),
            ("web:http", None),
            ("10.1.0.1:0", None),
            (
                "example.com.:80",
                Some(Destination::Service { name: Name::new("com", "example"), host: None, port: 80 }),
            ),
            ("a.b.c.d:80", None),
            ("we_b:80", None),
        ] {
            let question = Question::new(Name::new("shop", "till"), to);
            assert_eq!(question.destination(&settings()).ok(), expected, "{to}");
        }
    }

    #[test]
    fn a_request_is_what_a_client_would_send() {
        let question = Question {
            path: "/a?b".into(),
            headers: vec![("X-A".into(), "1".into()), ("x-a".into(), "2".into())],
            ..Question::new(Name::new("shop", "till"), "web:80")
        };
        let request = question.request().unwrap();
        assert_eq!((request.method(), request.uri().to_string().as_str()), (&Method::GET, "/a?b"));
        assert_eq!(request.headers()["host"], "web");
        assert_eq!(request.headers().get_all("x-a").iter().count(), 2);
        let request = over_http2(&request);
        assert_eq!(request.uri().to_string(), "http://web/a?b");
        assert!(!request.headers().contains_key("host"));
        let grpc = Question { speaks: Speaks::Grpc, headers: vec![("Host".into(), "x".into())], ..question };
        let request = grpc.request().unwrap();
        assert_eq!(
            (request.method(), &request.headers()["content-type"]),
            (&Method::POST, &HeaderValue::from_static("application/grpc"))
        );
        assert_eq!(request.headers()["host"], "x");
    }

    #[test]
    fn what_no_request_can_be_is_named() {
        let question = || Question::new(Name::new("shop", "till"), "web:80");
        for (question, flag) in [
            (Question { path: "a".into(), ..question() }, "--path a"),
            (Question { path: "/a b".into(), ..question() }, "--path /a b"),
            (Question { path: "/a#b".into(), ..question() }, "--path /a#b"),
            (Question { method: Some("G E T".into()), ..question() }, "--method G E T"),
            (Question { headers: vec![("a b".into(), "c".into())], ..question() }, "--header a b: c"),
            (Question { headers: vec![("a".into(), "\n".into())], ..question() }, "--header a: \n"),
        ] {
            let why = question.request().unwrap_err().to_string();
            assert!(why.starts_with(flag), "{why}");
        }
    }

    pub(crate) fn settings() -> Settings {
        crate::tests::settings()
    }
}

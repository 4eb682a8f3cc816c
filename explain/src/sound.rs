//! Pure. What no proxy takes for a request: it is written as its client would write it, read by the proxy's own reader, and
//! judged as the proxy judges what it has read. Bounds are those of a proxy that was told none.

use crate::answer::Reply;
use http::{HeaderMap, Request, Version, header};
use remora_proxy::{
    config::HeaderList,
    fault::{Fault, HttpError},
    http::{headers, respond::Asker},
    http1::{
        self,
        head::{self, Ahead},
    },
};

/// What becomes of what a proxy cannot read as a request.
pub(crate) fn unread(request: &Request<()>) -> Option<Reply> {
    if request.version() == Version::HTTP_2 {
        return unlike_http2(request.headers());
    }
    unreadable(request).map(|error| replied(&Fault::Client(HttpError::Http1(error)), request))
}

/// What a proxy answers to a request that it has read, and of which two readers may read two things.
pub(crate) fn unsound(request: &Request<()>) -> Option<Reply> {
    headers::check(request, HeaderList::DEFAULT).err().map(|fault| replied(&fault, request))
}

fn replied(fault: &Fault, request: &Request<()>) -> Reply {
    Reply::of(fault, Asker::of(request, true).grpc)
}

/// Why these bytes are no head of HTTP/1, if they are none.
fn unreadable(request: &Request<()>) -> Option<http1::Error> {
    let mut ahead = Ahead::default();
    let line = format!("{} {} HTTP/1.1\r\n", request.method(), request.uri());
    ahead.bytes.extend_from_slice(line.as_bytes());
    for (name, value) in request.headers() {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            ahead.bytes.extend_from_slice(part);
        }
    }
    ahead.bytes.extend_from_slice(b"\r\n");
    let limits = http1::Limits { head_bytes: HeaderList::DEFAULT.bytes, fields: HeaderList::DEFAULT.fields };
    match head::request(&mut ahead, &limits) {
        Ok(Some(head)) => head.framing.request(head.http11).err().map(http1::Error::from),
        Ok(None) => Some(http1::Error::Cut),
        Err(error) => Some(error),
    }
}

/// RFC 9113 section 8.2.2: what concerns one connection only has no place in HTTP/2, and a request that has it is
/// malformed. The library that reads HTTP/2 resets its stream, and no proxy sees it.
fn unlike_http2(headers: &HeaderMap) -> Option<Reply> {
    const OF_CONNECTIONS: [&str; 5] =
        ["connection", "transfer-encoding", "upgrade", "keep-alive", "proxy-connection"];
    let name = OF_CONNECTIONS.into_iter().find(|name| headers.contains_key(*name));
    let name = name.or_else(|| headers.get_all(header::TE).iter().any(|te| te != "trailers").then_some("te"));
    name.map(|name| Reply::ended(format!("HTTP/2 has no {name}: the stream is reset as malformed")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::question::{Question, Speaks};
    use remora_destination::resources::Name;

    #[test]
    fn what_is_refused_is_refused_as_a_proxy_says_it() {
        let two_hosts = "the request can be read in two ways: it has more than one Host";
        let coding = "the client sent a malformed request: its Transfer-Encoding is not `chunked` and nothing else, or it is HTTP/1.0";
        let length = "the client sent a malformed request: its Content-Length is no length, or there are two";
        let reset = "HTTP/2 has no transfer-encoding: the stream is reset as malformed";
        let other = "the request can be read in two ways: its Host is not its :authority";
        for (headers, http1, http2) in [
            (&["host: a"][..], None, None),
            (&["host: a", "host: b"], Some((400, two_hosts)), Some((400, other))),
            (&["host: a", "host: a"], Some((400, two_hosts)), None),
            (&["transfer-encoding: chunked"], None, Some((0, reset))),
            (&["transfer-encoding: gzip, chunked"], Some((400, coding)), Some((0, reset))),
            (
                &["transfer-encoding: chunked", "transfer-encoding: chunked"],
                Some((400, coding)),
                Some((0, reset)),
            ),
            (&["content-length: 1", "content-length: 1"], None, None),
            (&["content-length: 1", "content-length: 2"], Some((400, length)), None),
            (&["content-length: +1"], Some((400, length)), None),
            (&["te: trailers"], None, None),
            (&["te: gzip"], None, Some((0, "HTTP/2 has no te: the stream is reset as malformed"))),
            (
                &["connection: close"],
                None,
                Some((0, "HTTP/2 has no connection: the stream is reset as malformed")),
            ),
        ] {
            for (speaks, expected) in [(Speaks::Http1, http1), (Speaks::Http2, http2)] {
                let question = asking(headers, speaks.clone());
                assert_eq!(
                    told(&question),
                    expected.map(|(status, why)| (status, why.to_owned())),
                    "{question:?}"
                );
            }
        }
    }

    #[test]
    fn heads_are_bounded_as_a_proxys_are() {
        let many: Vec<String> = (0..101).map(|nth| format!("x: {nth}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let long = format!("x: {}", "y".repeat(65_536));
        for (headers, expected) in
            [(&many[..98], None), (&many[..], Some(431)), (&[long.as_str()], Some(431))]
        {
            for speaks in [Speaks::Http1, Speaks::Http2] {
                let told = told(&asking(headers, speaks.clone()));
                assert_eq!(told.map(|(status, _)| status), expected, "{speaks:?} {}", headers.len());
            }
        }
    }

    #[test]
    fn a_tunnel_is_asked_for_by_a_host() {
        let question = |speaks| Question { method: Some("CONNECT".into()), ..asking(&["host: a:1"], speaks) };
        assert_eq!(told(&question(Speaks::Http1)), None);
        let told = told(&question(Speaks::Http2)).unwrap();
        assert!(told.0 == 400 && told.1.contains("CONNECT over HTTP/2"), "{told:?}");
    }

    fn asking(headers: &[&str], speaks: Speaks) -> Question {
        let header = |header: &&str| {
            let (name, value) = header.split_once(": ").unwrap();
            (name.to_owned(), value.to_owned())
        };
        let headers = headers.iter().map(header).collect();
        Question { speaks, headers, ..Question::new(Name::new("shop", "till"), "web:80") }
    }

    fn told(question: &Question) -> Option<(u16, String)> {
        let request = question.request().unwrap();
        let request = match question.speaks {
            Speaks::Http2 => crate::question::over_http2(&request),
            _ => request,
        };
        unread(&request).or_else(|| unsound(&request)).map(|reply| (reply.status.unwrap_or(0), reply.why))
    }
}

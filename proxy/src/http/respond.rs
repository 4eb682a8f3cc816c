//! Fault → response: an HTTP status or gRPC trailers-only answer, with the reason where the client may see it.
//! Contract 4.8.

use super::{body::Body, exchange, headers};
use crate::fault::Fault;
use http::{HeaderValue, Response, StatusCode, Version, header};

/// What the answer depends on besides the fault.
#[derive(Clone, Copy, Debug)]
pub struct Asker {
    pub version: Version,
    pub grpc: bool,
    /// Whether the client may see the reason: the application of this pod, or a meshed peer.
    pub informational: bool,
    /// Whether a refused client may see by what.
    pub denied_by: bool,
}

impl Asker {
    /// A gRPC request is HTTP/2 with gRPC's content type.
    pub fn of<B>(request: &http::Request<B>, informational: bool) -> Self {
        let version = request.version();
        Self {
            version,
            grpc: version == Version::HTTP_2 && exchange::is_grpc(request.headers()),
            informational,
            denied_by: false,
        }
    }
}

/// The answer to a request that failed.
pub fn respond(fault: &Fault, asker: Asker) -> Response<Body> {
    let answer = fault.answer();
    let mut response = Response::new(Body::absent());
    *response.version_mut() = asker.version;
    let reason = printable(&fault.to_string());
    let head = response.headers_mut();
    if asker.grpc {
        head.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        head.insert("grpc-status", HeaderValue::from(fault.grpc_code()));
        if asker.informational {
            head.insert("grpc-message", percent_encoded(&reason));
        }
    } else {
        head.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
    }
    if let Fault::Redirected { location, .. } = fault
        && let Ok(location) = HeaderValue::from_str(location)
    {
        head.insert(header::LOCATION, location);
    } else if asker.informational
        && let Ok(reason) = HeaderValue::from_str(&reason)
    {
        head.insert(headers::PROXY_ERROR, reason);
    }
    if asker.denied_by
        && let Some(refused) = fault.refused()
        && let Ok(refused) = HeaderValue::from_str(&printable(&refused.to_string()))
    {
        head.insert(headers::DENIED_BY, refused);
    }
    if answer.close {
        if asker.informational {
            head.insert(headers::PROXY_CONNECTION, HeaderValue::from_static("close"));
        }
        close(&mut response);
    }
    *response.status_mut() = if asker.grpc { StatusCode::OK } else { answer.status };
    response
}

/// The answer to an HTTP/1 client whose request never was one, in bytes.
pub fn unrequested(fault: &Fault, informational: bool) -> String {
    let mut head =
        format!("HTTP/1.1 {}\r\nconnection: close\r\ncontent-length: 0\r\n", fault.answer().status);
    if informational {
        for (name, value) in
            [(headers::PROXY_ERROR, &*printable(&fault.to_string())), (headers::PROXY_CONNECTION, "close")]
        {
            head.extend([name.as_str(), ": ", value, "\r\n"]);
        }
    }
    head + "\r\n"
}

/// The mark of an answer that ends its connection.
#[derive(Clone, Copy)]
struct Closing;

/// Makes an answer the last of its connection: an HTTP/1 client is told by `Connection`, an HTTP/2 client by the GOAWAY
/// that [`super::serve`] sends for it. What else is under way is finished.
pub fn close<B>(response: &mut Response<B>) {
    if response.version() <= Version::HTTP_11 {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response.extensions_mut().insert(Closing);
}

/// Whether an answer is the last of its connection.
pub fn is_closing<B>(response: &Response<B>) -> bool {
    response.extensions().get::<Closing>().is_some()
}

/// Header values are visible ASCII.
fn printable(text: &str) -> String {
    text.chars().map(|c| if (' '..='~').contains(&c) { c } else { '?' }).take(512).collect()
}

/// gRPC's messages are percent-encoded.
fn percent_encoded(text: &str) -> HeaderValue {
    HeaderValue::from_str(&text.replace('%', "%25")).unwrap_or_else(|_| HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http1_gets_the_status_the_reason_and_a_close() {
        let response = answer(Version::HTTP_11, false, true);
        assert_eq!(response.status(), 504);
        assert_eq!(response.headers()["connection"], "close");
        assert_eq!(response.headers()["l5d-proxy-error"], "no endpoint of web is available");
        assert_eq!(response.headers()["l5d-proxy-connection"], "close");
    }

    #[test]
    fn http2_is_not_told_in_a_header_that_it_does_not_have() {
        let response = answer(Version::HTTP_2, false, true);
        assert!(!response.headers().contains_key("connection") && is_closing(&response));
    }

    #[test]
    fn an_answer_that_keeps_the_connection_does_not_end_it() {
        let asker = Asker { version: Version::HTTP_2, grpc: false, informational: true, denied_by: false };
        let response = respond(&Fault::NoRoute("web".into()), asker);
        assert!(!is_closing(&response) && !response.headers().contains_key("l5d-proxy-connection"));
    }

    #[test]
    fn grpc_gets_200_and_a_code() {
        let response = answer(Version::HTTP_2, true, true);
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["grpc-status"], "4");
        assert_eq!(response.headers()["grpc-message"], "no endpoint of web is available");
    }

    #[test]
    fn a_stranger_is_not_told_why() {
        let response = answer(Version::HTTP_11, false, false);
        assert!(!response.headers().contains_key("l5d-proxy-error"));
    }

    #[test]
    fn a_refused_client_sees_by_what_where_it_may() {
        let fault = crate::fault::tests_of_denials::fault("server", &["till"]);
        for denied_by in [false, true] {
            let asker = Asker { version: Version::HTTP_11, grpc: false, informational: true, denied_by };
            let response = respond(&fault, asker);
            let said = response.headers().get("remora-denied-by").map(|value| value.to_str().unwrap());
            assert_eq!(said, denied_by.then_some("server=server/web; policies=policy/till"));
        }
    }

    #[test]
    fn a_head_that_never_was_whole_gets_an_answer_in_bytes() {
        let fault = Fault::HeadTimeout(std::time::Duration::from_secs(10));
        let stranger = "HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        assert_eq!(unrequested(&fault, false), stranger);
        let told = unrequested(&fault, true);
        assert!(
            told.contains("\r\nl5d-proxy-error: the head of the request was not whole within "),
            "{told}"
        );
        assert!(told.ends_with("\r\nl5d-proxy-connection: close\r\n\r\n"), "{told}");
    }

    fn answer(version: Version, grpc: bool, informational: bool) -> Response<Body> {
        respond(&Fault::NoEndpoint("web".into()), Asker { version, grpc, informational, denied_by: false })
    }
}

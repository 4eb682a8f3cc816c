//! What the proxy adds to, strips from and restores in a message's head. Contract 1.9, 1.10, 4.9.

use crate::{config::HeaderList, fault::Fault};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header, uri,
};
#[cfg(planted)]
use remora_core::planted;

pub const ORIG_PROTO: HeaderName = HeaderName::from_static("l5d-orig-proto");
pub const CLIENT_ID: HeaderName = HeaderName::from_static("l5d-client-id");
pub const PROXY_ERROR: HeaderName = HeaderName::from_static("l5d-proxy-error");
pub const PROXY_CONNECTION: HeaderName = HeaderName::from_static("l5d-proxy-connection");
pub const REQUIRE_ID: HeaderName = HeaderName::from_static("l5d-require-id");
/// The Service that a request is addressed to, for the server's proxy to find its ServiceProfile by.
pub const DST_CANONICAL: HeaderName = HeaderName::from_static("l5d-dst-canonical");
pub const DST_OVERRIDE: HeaderName = HeaderName::from_static("l5d-dst-override");
/// Ours alone: the server's proxy says that its application saw nothing of the request.
pub const UNPROCESSED: HeaderName = HeaderName::from_static("remora-unprocessed");
/// Ours alone: which server, route and policies refuse the client. Sent only where its owner asks for it, and passed on to
/// the application that asked.
pub const DENIED_BY: HeaderName = HeaderName::from_static("remora-denied-by");
const PROXY_AUTH_LEGACY: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

/// A tunnel within an HTTP/2 connection would need its other half upgraded on another connection.
const TUNNEL: Fault = Fault::BadTarget("CONNECT over HTTP/2 is not supported; use HTTP/1.1");

/// Whether a request asks to stop being HTTP: `CONNECT`, or `Upgrade` named by `Connection`. RFC 9110 section 7.8.
pub fn wants_upgrade<B>(request: &Request<B>) -> bool {
    request.method() == Method::CONNECT
        || (request.version() == Version::HTTP_11 && upgrade_token(request.headers()))
}

/// Whether a response says that the connection stops being HTTP.
pub fn is_upgrade<B>(response: &Response<B>, method_was_connect: bool) -> bool {
    response.status() == StatusCode::SWITCHING_PROTOCOLS
        || (method_was_connect && response.status().is_success())
}

/// What a field says, each time that it is there. A head has few fields, and looking at each of their names costs less than
/// asking for one by its hash.
pub fn values<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a HeaderValue> {
    headers.iter().filter(move |(key, _)| *key == name).map(|(_, value)| value)
}

fn upgrade_token(headers: &HeaderMap) -> bool {
    let mut asked = values(headers, &header::UPGRADE).peekable();
    // What follows an upgrade is not looked at, so requests must not: HTTP/2 is spoken from the start or not at all.
    asked.peek().is_some()
        && !asked.any(|value| {
            value
                .to_str()
                .is_ok_and(|value| value.split(',').any(|one| one.trim().eq_ignore_ascii_case("h2c")))
        })
        && connection_tokens(headers).any(|token| token.eq_ignore_ascii_case(b"upgrade"))
}

/// A token that is none hides no other one.
fn connection_tokens(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    values(headers, &header::CONNECTION)
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|token| !token.is_empty())
}

/// Removes what concerns one connection only (RFC 9110 section 7.6.1); an upgrade keeps what asks for it.
pub fn strip_hop_by_hop(headers: &mut HeaderMap, keep_upgrade: bool) {
    // Most messages have nothing of the kind, and looking once costs less than asking for each by its name.
    if !headers.keys().any(is_hop_by_hop) {
        return;
    }
    let upgrade = (keep_upgrade && upgrade_token(headers)).then(|| headers.get(header::UPGRADE).cloned());
    let te_trailers = values(headers, &header::TE).any(|te| {
        te.to_str().is_ok_and(|te| te.split(',').any(|one| one.trim().eq_ignore_ascii_case("trailers")))
    });
    let named: Vec<HeaderName> = connection_tokens(headers)
        .filter_map(|token| HeaderName::from_bytes(token).ok())
        .filter(|name| !is_end_to_end(name) && !is_hop_by_hop(name))
        .collect();
    #[cfg(planted)]
    let named = if planted::makes(planted::Mistake::HopByHopIsForwarded) { vec![] } else { named };
    for name in named {
        headers.remove(&name);
    }
    while let Some(name) = headers.keys().find(|name| is_hop_by_hop(name)).cloned() {
        headers.remove(name);
    }
    if te_trailers {
        // Trailers are forwarded on every hop, so what the client accepts the server may send.
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    if let Some(Some(upgrade)) = upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, upgrade);
    }
}

/// Whether a field may concern one connection only.
fn is_hop_by_hop(name: &HeaderName) -> bool {
    match name.as_str().len() {
        2 => *name == header::TE,
        7 => *name == header::UPGRADE,
        10 => *name == header::CONNECTION || *name == KEEP_ALIVE,
        14 => *name == HTTP2_SETTINGS,
        16 => *name == PROXY_AUTH_LEGACY,
        _ => false,
    }
}

/// Whether a message has fields that only proxies say to each other. Most have none, and looking once costs less than
/// asking for each by its name.
pub fn has_own(headers: &HeaderMap) -> bool {
    headers.keys().any(is_own)
}

/// Whether a field is said between proxies: Linkerd's, or one that is ours alone.
fn is_own(name: &HeaderName) -> bool {
    matches!(
        name.as_str().as_bytes(),
        [b'l', b'5', b'd', b'-', ..] | [b'r', b'e', b'm', b'o', b'r', b'a', b'-', ..]
    )
}

/// Takes off an inbound request what is not for its application to read. Only this proxy says who the client is, and from
/// outside of the mesh nobody may steer this pod's own outbound proxy, should its application pass headers on.
pub fn strip_inbound(headers: &mut HeaderMap) {
    strip(headers, &[ORIG_PROTO, DST_OVERRIDE, REQUIRE_ID, CLIENT_ID, UNPROCESSED]);
}

/// Takes off an outbound request what is between proxies: an application cannot claim that its request was something else,
/// or somebody else's. The override is honoured in ingress mode only, and never passed on.
pub fn strip_outbound(headers: &mut HeaderMap) {
    strip(headers, &[DST_OVERRIDE, DST_CANONICAL, ORIG_PROTO, CLIENT_ID, UNPROCESSED]);
}

/// Takes off an answer what the other proxy remarks for this one, and what nobody but another proxy may say.
pub fn strip_remarks(headers: &mut HeaderMap, meshed: bool) {
    strip(headers, &[PROXY_ERROR, PROXY_CONNECTION, UNPROCESSED]);
    if !meshed {
        headers.remove(DENIED_BY);
    }
}

fn strip(headers: &mut HeaderMap, names: &[HeaderName]) {
    for name in names {
        headers.remove(name);
    }
}

/// Says to the client's proxy that the application saw nothing of the request. Design, "Retries".
pub fn mark_unprocessed(headers: &mut HeaderMap) {
    headers.insert(UNPROCESSED, HeaderValue::from_static("true"));
}

/// Takes off an application's answer what only this proxy says.
pub fn strip_said(headers: &mut HeaderMap) {
    if has_own(headers) {
        strip(headers, &[UNPROCESSED, DENIED_BY]);
    }
}

/// Removes from a trailer section what may not be said so late, because it was decided by what the head said (RFC 9110
/// section 6.5.1): framing, routing, and what only proxies say.
pub fn strip_trailers(trailers: &mut HeaderMap) {
    let late: Vec<HeaderName> = trailers.keys().filter(|name| is_end_to_end(name)).cloned().collect();
    for name in late {
        trailers.remove(&name);
    }
    strip_hop_by_hop(trailers, false);
    trailers.remove(header::TE);
}

/// Headers that a client cannot have removed by naming them in `Connection`: what was decided by them must arrive.
fn is_end_to_end(name: &HeaderName) -> bool {
    #[cfg(planted)]
    if planted::makes(planted::Mistake::LengthIsNamedAway) {
        return false;
    }
    [header::HOST, header::CONTENT_LENGTH, header::TRANSFER_ENCODING].contains(name) || is_own(name)
}

/// Refuses what the HTTP library accepts and we do not: see `check_framing` and `check_list`.
pub fn check<B>(request: &Request<B>, list: HeaderList) -> Result<(), Fault> {
    if request.method() == Method::CONNECT && request.version() == Version::HTTP_2 {
        return Err(TUNNEL);
    }
    check_framing(request)?;
    check_list(request, list)
}

/// Refuses a request that two readers may read differently although hyper accepts it: a second Host (RFC 9112 section
/// 3.2) or one that is not `:authority` (RFC 9113 section 8.3.1), and a transfer coding that nobody here undoes, `chunked`
/// twice among them (RFC 9112 section 6.1).
fn check_framing<B>(request: &Request<B>) -> Result<(), Fault> {
    let headers = request.headers();
    let mut hosts = values(headers, &header::HOST);
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(Fault::Ambiguous("it has more than one Host"));
    }
    if request.version() == Version::HTTP_2 {
        let same = match (request.uri().authority(), host) {
            (Some(authority), Some(host)) => {
                host.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes())
            }
            (_, None) | (None, _) => true,
        };
        return if same { Ok(()) } else { Err(Fault::Ambiguous("its Host is not its :authority")) };
    }
    let mut codings = values(headers, &header::TRANSFER_ENCODING);
    let chunked = codings.next().is_none_or(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"));
    if !chunked || codings.next().is_some() {
        return Err(Fault::Ambiguous("its Transfer-Encoding is not `chunked` and nothing else"));
    }
    Ok(())
}

/// What an HTTP/2 field counts beside its name and value, and how many pseudo-header fields a request has. RFC 9113
/// section 6.5.2.
const FIELD: usize = 32;
const PSEUDO: usize = 4;

/// Refuses an HTTP/2 request whose header list is longer than allowed. hyper bounds HTTP/1 heads by itself.
fn check_list<B>(request: &Request<B>, limit: HeaderList) -> Result<(), Fault> {
    if request.version() != Version::HTTP_2 {
        return Ok(());
    }
    let uri = request.uri();
    let target =
        uri.path().len() + uri.query().map_or(0, str::len) + uri.authority().map_or(0, |a| a.as_str().len());
    let fields = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + FIELD);
    let size = fields.sum::<usize>() + target + PSEUDO * FIELD;
    let fields = request.headers().len();
    if size > limit.bytes || fields > limit.fields {
        Err(Fault::HeaderList { size, fields, limit })
    } else {
        Ok(())
    }
}

/// Gives an HTTP/2 request that names its host in `Host` only (RFC 9113 section 8.3.1) the target that it lacks.
pub fn complete_authority<B>(request: &mut Request<B>) {
    if request.version() != Version::HTTP_2 || request.uri().authority().is_some() {
        return;
    }
    let Some(authority) =
        request.headers().get(header::HOST).and_then(|host| host.to_str().ok()?.parse().ok())
    else {
        return;
    };
    let mut parts = request.uri().clone().into_parts();
    parts.scheme = Some(uri::Scheme::HTTP);
    parts.authority = Some(authority);
    if let Ok(target) = Uri::from_parts(parts) {
        *request.uri_mut() = target;
    }
}

/// Strips an application's response for the way back; that the application wants to close stays said, so that nobody
/// sends the next request into a closing connection.
pub fn strip_response(headers: &mut HeaderMap) {
    let close = connection_tokens(headers).any(|token| token.eq_ignore_ascii_case(b"close"));
    strip_hop_by_hop(headers, false);
    if close {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
}

/// Whether another proxy wants its client's connection closed. Contract 4.8.
pub fn proxy_closes(headers: &HeaderMap) -> bool {
    headers.get(PROXY_CONNECTION).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"close"))
}

/// A response after which bytes are copied has no body, whatever its server says of one (RFC 9110 sections 9.3.6 and
/// 8.6): hyper would not send it.
pub fn strip_framing(headers: &mut HeaderMap) {
    headers.remove(header::CONTENT_LENGTH);
    headers.remove(header::TRANSFER_ENCODING);
}

/// How an HTTP/1 request came that another proxy carried over HTTP/2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OrigProto {
    pub version: Version,
    pub absolute_form: bool,
}

/// Takes `l5d-orig-proto` off a request that came over HTTP/2 and makes it an HTTP/1 request again.
pub fn undo_orig_proto<B>(request: &mut Request<B>) -> Option<OrigProto> {
    let value = request.headers_mut().remove(ORIG_PROTO)?;
    if request.version() != Version::HTTP_2 {
        return None;
    }
    let orig = parse_orig_proto(value.to_str().ok()?)?;
    *request.version_mut() = orig.version;
    let authority = request.uri().authority().cloned();
    if !request.headers().contains_key(header::HOST)
        && let Some(authority) = &authority
        && let Ok(host) = HeaderValue::from_str(authority.as_str())
    {
        request.headers_mut().insert(header::HOST, host);
    }
    if !orig.absolute_form {
        to_origin_form(request.uri_mut());
    }
    Some(orig)
}

/// The version of a forwarded message is the forwarder's own (RFC 9110 section 6.2), not HTTP/1.0 because the server
/// speaks that: hyper then says what the client's own version needs, and keeps its connection where it asked for that.
pub fn own_version<B>(response: &mut Response<B>) {
    if response.version() == Version::HTTP_10 {
        *response.version_mut() = Version::HTTP_11;
    }
}

/// Marks the response of such a request, as the other proxy expects.
pub fn redo_orig_proto<B>(response: &mut Response<B>, orig: OrigProto) {
    let version = response.version();
    strip_hop_by_hop(response.headers_mut(), false);
    response.headers_mut().remove(header::TRANSFER_ENCODING);
    let value =
        if version == Version::HTTP_10 || orig.version == Version::HTTP_10 { "HTTP/1.0" } else { "HTTP/1.1" };
    response.headers_mut().insert(ORIG_PROTO, HeaderValue::from_static(value));
    *response.version_mut() = Version::HTTP_2;
}

fn parse_orig_proto(value: &str) -> Option<OrigProto> {
    let mut parts = value.split(';').map(str::trim);
    let version = match parts.next()? {
        "HTTP/1.1" => Version::HTTP_11,
        "HTTP/1.0" => Version::HTTP_10,
        _ => return None,
    };
    Some(OrigProto { version, absolute_form: parts.any(|part| part == "absolute-form") })
}

/// Drops scheme and authority of a target.
pub fn to_origin_form(target: &mut Uri) {
    let path = target.path_and_query().cloned().unwrap_or_else(|| uri::PathAndQuery::from_static("/"));
    let mut parts = uri::Parts::default();
    parts.path_and_query = Some(path);
    if let Ok(origin) = Uri::from_parts(parts) {
        *target = origin;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_connection_names_is_removed_and_the_rest_stays() {
        let mut headers = map(&[("connection", "close, x-hop"), ("x-hop", "1"), ("x-end", "2")]);
        strip_hop_by_hop(&mut headers, true);
        assert_eq!(names(&headers), ["x-end"]);
    }

    #[test]
    fn a_token_that_is_none_hides_no_other() {
        let mut headers = map(&[("x-hop", "1")]);
        headers.insert("connection", HeaderValue::from_bytes(b"\xd6, x-hop").unwrap());
        strip_hop_by_hop(&mut headers, true);
        assert_eq!(names(&headers), [""; 0]);
    }

    #[test]
    fn an_upgrade_is_kept_only_when_asked() {
        let websocket = [("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")];
        let mut kept = map(&websocket);
        strip_hop_by_hop(&mut kept, true);
        assert_eq!(names(&kept), ["connection", "upgrade"]);
        let mut stripped = map(&websocket);
        strip_hop_by_hop(&mut stripped, false);
        assert_eq!(names(&stripped), [""; 0]);
    }

    #[test]
    fn what_decisions_rest_on_cannot_be_named_away() {
        let mut headers =
            map(&[("connection", "host, l5d-require-id"), ("host", "web"), ("l5d-require-id", "x")]);
        strip_hop_by_hop(&mut headers, true);
        assert_eq!(names(&headers), ["host", "l5d-require-id"]);
    }

    #[test]
    fn an_upgrade_to_http2_is_not_an_upgrade() {
        let mut headers = map(&[
            ("connection", "upgrade, http2-settings"),
            ("upgrade", "H2C"),
            ("http2-settings", "AAMAAABkAAQAAP__"),
        ]);
        strip_hop_by_hop(&mut headers, true);
        assert_eq!(names(&headers), [""; 0]);
    }

    #[test]
    fn an_http2_request_with_only_a_host_gets_its_authority() {
        let mut request = Request::builder().uri("/a?b").header("host", "web:80").body(()).unwrap();
        *request.version_mut() = Version::HTTP_2;
        complete_authority(&mut request);
        assert_eq!(request.uri().to_string(), "http://web:80/a?b");
    }

    #[test]
    fn what_two_readers_may_read_differently_is_refused() {
        let framed = |fields: &[(&'static str, &'static str)]| {
            let mut request = Request::new(());
            *request.headers_mut() = fields
                .iter()
                .map(|&(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
                .collect();
            for (name, value) in fields.iter().skip(1) {
                request.headers_mut().append(*name, HeaderValue::from_static(value));
            }
            check_framing(&request).is_ok()
        };
        assert!(framed(&[]) && framed(&[("host", "a")]) && framed(&[("transfer-encoding", "Chunked")]));
        assert!(!framed(&[("transfer-encoding", "gzip, chunked")]));
        assert!(!framed(&[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")]));
        assert!(!framed(&[("host", "a"), ("host", "a")]));
    }

    #[test]
    fn a_tunnel_is_refused_over_http2_also_where_another_proxy_says_that_it_was_http1() {
        let mut request = Request::connect("web:80").header(ORIG_PROTO, "HTTP/1.1").body(()).unwrap();
        let limit = HeaderList { bytes: 8192, fields: 100 };
        assert!(check(&request, limit).is_ok());
        *request.version_mut() = Version::HTTP_2;
        assert!(matches!(check(&request, limit), Err(Fault::BadTarget(_))));
    }

    #[test]
    fn a_trailer_says_nothing_about_framing_routing_or_the_client() {
        let mut trailers = map(&[
            ("content-length", "5"),
            ("host", "other"),
            ("l5d-client-id", "admin"),
            ("te", "trailers"),
            ("grpc-status", "0"),
        ]);
        strip_trailers(&mut trailers);
        assert_eq!(names(&trailers), ["grpc-status"]);
    }

    #[test]
    fn a_header_list_counts_every_field_with_32_bytes_more() {
        let mut request = Request::builder().uri("http://web/").header("a", "b").body(()).unwrap();
        let limit = |bytes, fields| HeaderList { bytes, fields };
        assert!(check_list(&request, limit(0, 0)).is_ok(), "HTTP/1 is bounded elsewhere");
        *request.version_mut() = Version::HTTP_2;
        let size = 4 + 4 * 32 + 34;
        assert!(check_list(&request, limit(size, 1)).is_ok());
        assert!(matches!(check_list(&request, limit(size - 1, 1)), Err(Fault::HeaderList { .. })));
        assert!(matches!(check_list(&request, limit(size, 0)), Err(Fault::HeaderList { .. })));
    }

    #[test]
    fn an_application_that_closes_is_heard() {
        let mut headers = map(&[("connection", "close"), ("keep-alive", "timeout=5")]);
        strip_response(&mut headers);
        assert_eq!(headers["connection"], "close");
        assert_eq!(names(&headers), ["connection"]);
    }

    #[test]
    fn te_trailers_survives_and_other_codings_do_not() {
        let mut headers = map(&[("te", "trailers")]);
        strip_hop_by_hop(&mut headers, true);
        assert_eq!(names(&headers), ["te"]);
        let mut headers = map(&[("te", "gzip, trailers")]);
        strip_hop_by_hop(&mut headers, true);
        assert_eq!(headers["te"], "trailers");
        let mut headers = map(&[("te", "gzip")]);
        strip_hop_by_hop(&mut headers, true);
        assert_eq!(names(&headers), [""; 0]);
    }

    #[test]
    fn an_upgraded_http1_request_comes_back_in_its_own_form() {
        check_orig_proto("HTTP/1.1", "/a?b", Version::HTTP_11);
        check_orig_proto("HTTP/1.0", "/a?b", Version::HTTP_10);
        check_orig_proto("HTTP/1.1; absolute-form", "http://web.example/a?b", Version::HTTP_11);
    }

    #[test]
    fn nonsense_in_orig_proto_is_dropped_and_the_request_stays_http2() {
        let mut request = http2("HTTP/3");
        assert_eq!(undo_orig_proto(&mut request), None);
        assert_eq!(request.version(), Version::HTTP_2);
        assert!(!request.headers().contains_key(ORIG_PROTO));
    }

    #[track_caller]
    fn check_orig_proto(value: &str, target: &str, version: Version) {
        let mut request = http2(value);
        let orig = undo_orig_proto(&mut request).unwrap();
        assert_eq!(request.uri().to_string(), target);
        assert_eq!(request.version(), version);
        assert_eq!(request.headers()["host"], "web.example");
        let mut response = Response::new(());
        redo_orig_proto(&mut response, orig);
        assert_eq!(response.headers()[ORIG_PROTO], value.split(';').next().unwrap());
    }

    fn http2(orig_proto: &str) -> Request<()> {
        let mut request = Request::new(());
        *request.uri_mut() = "http://web.example/a?b".parse().unwrap();
        *request.version_mut() = Version::HTTP_2;
        request.headers_mut().insert(ORIG_PROTO, orig_proto.parse().unwrap());
        request
    }

    fn map(headers: &[(&'static str, &'static str)]) -> HeaderMap {
        headers
            .iter()
            .map(|&(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    fn names(headers: &HeaderMap) -> Vec<&str> {
        let mut names: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        names
    }
}

//! What a controller may ask to be done with messages.

use super::*;
use outbound::http_route::filter::Kind;

#[test]
fn headers_are_modified_by_their_names_in_lower_case() {
    let modifier = wire::RequestHeaderModifier {
        add: list(&[("X-Add", "1"), ("x-add", "2")]),
        set: list(&[("X-Set", "3")]),
        remove: vec!["X-Gone".to_owned()],
    };
    let expected = HeaderModifier {
        add: vec![("x-add".to_owned(), b"1".to_vec()), ("x-add".to_owned(), b"2".to_vec())],
        set: vec![("x-set".to_owned(), b"3".to_vec())],
        remove: vec!["x-gone".to_owned()],
    };
    assert_eq!(
        read(Kind::RequestHeaderModifier(modifier.clone())),
        Ok(vec![Filter::Request(expected.clone())])
    );
    let modifier =
        wire::ResponseHeaderModifier { add: modifier.add, set: modifier.set, remove: modifier.remove };
    assert_eq!(read(Kind::ResponseHeaderModifier(modifier)), Ok(vec![Filter::Response(expected)]));
}

#[test]
fn to_set_the_host_is_to_rewrite_it() {
    let set = |host| wire::RequestHeaderModifier { set: list(&[("Host", host)]), ..Default::default() };
    let rewrite = Rewrite { authority: Some("api.example:8080".to_owned()), path: None };
    assert_eq!(
        read(Kind::RequestHeaderModifier(set("api.example:8080"))),
        Ok(vec![Filter::Request(HeaderModifier::default()), Filter::Rewrite(rewrite)])
    );
    refused(
        Kind::RequestHeaderModifier(set("a b")),
        "filters[0].request_header_modifier.set: \"a b\" is no host",
    );
}

#[test]
fn what_is_said_of_connections_and_between_proxies_is_nobodys_to_modify() {
    for name in ["connection", "TE", "Content-Length", "l5d-client-id", "remora-unprocessed"] {
        let modifier = wire::RequestHeaderModifier { set: list(&[(name, "x")]), ..Default::default() };
        let why = format!(
            "filters[0].request_header_modifier.set[0]: {} cannot be modified",
            name.to_ascii_lowercase()
        );
        refused(Kind::RequestHeaderModifier(modifier), &why);
        let modifier = wire::ResponseHeaderModifier { remove: vec![name.to_owned()], ..Default::default() };
        refused(Kind::ResponseHeaderModifier(modifier), "filters[0].response_header_modifier.remove[0]: ");
    }
    let host = wire::RequestHeaderModifier { remove: vec!["Host".to_owned()], ..Default::default() };
    refused(
        Kind::RequestHeaderModifier(host),
        "filters[0].request_header_modifier.remove[0]: host cannot be modified: it can be set only",
    );
    let answered = wire::ResponseHeaderModifier { set: list(&[("host", "a")]), ..Default::default() };
    refused(
        Kind::ResponseHeaderModifier(answered),
        "filters[0].response_header_modifier.set[0]: host cannot be modified",
    );
}

#[test]
fn redirects_are_read_with_their_defaults() {
    let plain = Redirect { scheme: None, host: None, port: None, path: None, status: 301 };
    assert_eq!(read(redirect_of(|_| ())), Ok(vec![Filter::Redirect(plain)]));
    let all = redirect_of(|redirect| {
        redirect.scheme = Some("https".into());
        redirect.host = "example.org".to_owned();
        redirect.port = 8443;
        redirect.path = Some(path(wire::path_modifier::Replace::Prefix("/v2".to_owned())));
        redirect.status = 308;
    });
    let expected = Redirect {
        scheme: Some(Scheme::Https),
        host: Some("example.org".to_owned()),
        port: Some(8443),
        path: Some(Replacement::Prefix("/v2".to_owned())),
        status: 308,
    };
    assert_eq!(read(all), Ok(vec![Filter::Redirect(expected)]));
}

#[test]
fn what_no_redirect_can_be_is_named() {
    use wire::path_modifier::Replace::{Full, Prefix};
    let of = |replace| redirect_of(|redirect| redirect.path = Some(path(replace)));
    for (kind, why) in [
        (redirect_of(|redirect| redirect.status = 200), "status: 200 is no redirect"),
        (redirect_of(|redirect| redirect.port = 70_000), "port: 70000 is no port"),
        (redirect_of(|redirect| redirect.scheme = Some("ftp".into())), "scheme: \"ftp\" is neither"),
        (redirect_of(|redirect| redirect.host = "a/b".to_owned()), "host: \"a/b\" is no host"),
        (redirect_of(|redirect| redirect.host = "a:80".to_owned()), "host: a host with a port"),
        (of(Full("b".to_owned())), "path: \"b\" is no path"),
        (of(Full("/a b".to_owned())), "path: \"/a b\" is no path"),
        (of(Full(String::new())), "path: \"\" is no path"),
        (of(Prefix("b".to_owned())), "path: \"b\" is no path"),
        (of(Prefix("/b?c".to_owned())), "path: a prefix with a query"),
    ] {
        refused(kind, &format!("filters[0].redirect.{why}"));
    }
    assert!(read(of(Prefix(String::new()))).is_ok());
}

#[test]
fn failures_are_injected_into_a_share_of_requests() {
    let of = |status, ratio| {
        Kind::FailureInjector(wire::HttpFailureInjector { status, message: "no".to_owned(), ratio })
    };
    let half = wire::Ratio { numerator: 1, denominator: 2 };
    let failure = |share| Failure { with: FailWith::Http(503), message: "no".into(), share };
    assert_eq!(read(of(503, None)), Ok(vec![Filter::Fail(failure(Ratio::ALL))]));
    assert_eq!(read(of(503, Some(half))), Ok(vec![Filter::Fail(failure(Ratio::new(1, 2).unwrap()))]));
    let never = wire::Ratio { numerator: 0, denominator: 0 };
    refused(of(503, Some(never)), "filters[0].failure_injector.ratio: 0 of 0 is no share");
    refused(of(100, None), "filters[0].failure_injector.status: 100 is no status of an answer");
    refused(of(600, None), "filters[0].failure_injector.status: ");

    let of = |code| {
        let failure = wire_grpc::GrpcFailureInjector { code, message: "no".to_owned(), ratio: None };
        let kind = outbound::grpc_route::filter::Kind::FailureInjector(failure);
        grpc(&mut Reading::new(), vec![outbound::grpc_route::Filter { kind: Some(kind) }])
    };
    let expected = Failure { with: FailWith::Grpc(14), message: "no".into(), share: Ratio::ALL };
    assert_eq!(of(14), Ok(vec![Filter::Fail(expected)]));
    assert!(of(17).unwrap_err().to_string().starts_with("filters[0].failure_injector.code: "));
}

#[test]
fn what_is_not_known_is_not_skipped() {
    let unknown = http(&mut Reading::new(), vec![outbound::http_route::Filter { kind: None }]);
    assert_eq!(unknown.unwrap_err().path(), "filters[0]");
    let unknown = grpc(&mut Reading::new(), vec![outbound::grpc_route::Filter { kind: None }]);
    assert_eq!(unknown.unwrap_err().path(), "filters[0]");
}

#[track_caller]
fn refused(kind: Kind, why: &str) {
    let refused = read(kind).unwrap_err().to_string();
    assert!(refused.starts_with(why), "{refused} should begin with {why}");
}

fn read(kind: Kind) -> Result<Vec<Filter>, Invalid> {
    http(&mut Reading::new(), vec![outbound::http_route::Filter { kind: Some(kind) }])
}

fn redirect_of(change: impl FnOnce(&mut wire::RequestRedirect)) -> Kind {
    let mut redirect = wire::RequestRedirect::default();
    change(&mut redirect);
    Kind::Redirect(redirect)
}

fn path(replace: wire::path_modifier::Replace) -> wire::PathModifier {
    wire::PathModifier { replace: Some(replace) }
}

#[expect(clippy::unnecessary_wraps, reason = "as messages have it")]
fn list(headers: &[(&str, &str)]) -> Option<http_types::Headers> {
    let header = |(name, value): &(&str, &str)| http_types::headers::Header {
        name: (*name).to_owned(),
        value: value.as_bytes().to_vec(),
    };
    Some(http_types::Headers { headers: headers.iter().map(header).collect() })
}

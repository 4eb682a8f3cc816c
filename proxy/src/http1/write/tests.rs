//! What is written of heads and bodies, to the byte.

use super::super::{
    Limits,
    answer::{Asking, send},
    body::Request as RequestBody,
    wire::{Reading, Shared, tests::connection},
};
use super::*;
use http::{Method, StatusCode, Uri};
use remora_core::http1::Length;
use remora_runtime::tasks::Drain;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const LIMITS: Limits = Limits { head_bytes: 100, fields: 4 };

fn fields_of(list: &[(&'static str, &'static str)]) -> HeaderMap {
    let field = |(name, value): &(&'static str, &'static str)| {
        (HeaderName::from_static(name), http::HeaderValue::from_static(value))
    };
    list.iter().map(field).collect()
}

fn text(out: &[u8]) -> String {
    String::from_utf8(out.to_vec()).unwrap()
}

#[test]
fn a_heads_fields_say_where_its_body_ends_as_it_is_written() {
    let length = ("content-length", "9");
    let chunked = ("transfer-encoding", "chunked");
    let a = ("a", "b");
    for (given, coding, expected) in [
        (&[a][..], Coding::None, "a: b\r\n"),
        (&[a], Coding::Length(9), "a: b\r\ncontent-length: 9\r\n"),
        (&[a], Coding::Length(0), "a: b\r\ncontent-length: 0\r\n"),
        (&[a], Coding::Chunked, "a: b\r\ntransfer-encoding: chunked\r\n"),
        (&[a], Coding::Close, "a: b\r\n"),
        (&[length, a], Coding::Length(9), "content-length: 9\r\na: b\r\n"),
        // It is about an answer that is not sent: to HEAD, or 304.
        (&[length, a], Coding::None, "content-length: 9\r\na: b\r\n"),
        // Two ways to say it are two ways to read it.
        (&[length, a], Coding::Chunked, "a: b\r\ntransfer-encoding: chunked\r\n"),
        (&[length, a], Coding::Close, "a: b\r\n"),
        // The coding is this hop's, not the one before.
        (&[chunked, a], Coding::None, "a: b\r\n"),
        (&[chunked, a], Coding::Length(9), "a: b\r\ncontent-length: 9\r\n"),
        (&[chunked, a], Coding::Chunked, "a: b\r\ntransfer-encoding: chunked\r\n"),
        (&[chunked, a], Coding::Close, "a: b\r\n"),
    ] {
        let (mut asks, mut answers) = (BytesMut::new(), BytesMut::new());
        let mut ask = Request::new(Body::absent());
        (*ask.method_mut(), *ask.uri_mut()) = (Method::PUT, Uri::from_static("/x"));
        *ask.headers_mut() = fields_of(given);
        request(&mut asks, &ask, coding);
        assert_eq!(text(&asks), format!("PUT /x HTTP/1.1\r\n{expected}\r\n"), "{given:?} {coding:?}");
        let mut said = Response::new(Body::absent());
        *said.headers_mut() = fields_of(given);
        answer(&mut answers, &said, coding, true, Then::Persist);
        assert_eq!(text(&answers), format!("HTTP/1.1 200 OK\r\n{expected}\r\n"), "{given:?} {coding:?}");
    }
}

#[test]
fn an_answers_head_says_what_becomes_of_its_connection() {
    let closes = [("connection", "close")];
    let upgrades = [("connection", "upgrade"), ("upgrade", "x")];
    for (given, http11, then, expected) in [
        (&[][..], true, Then::Persist, ""),
        (&[], true, Then::Close, "connection: close\r\n"),
        (&closes, true, Then::Close, "connection: close\r\n"),
        (&[], false, Then::Persist, "connection: keep-alive\r\n"),
        (&[], false, Then::Close, "connection: close\r\n"),
        (&upgrades, true, Then::Upgrade, "connection: upgrade\r\nupgrade: x\r\n"),
        (&[], false, Then::Upgrade, ""),
    ] {
        let mut out = BytesMut::new();
        let mut said = Response::new(Body::absent());
        *said.headers_mut() = fields_of(given);
        answer(&mut out, &said, Coding::None, http11, then);
        let version = if http11 { "1.1" } else { "1.0" };
        assert_eq!(text(&out), format!("HTTP/{version} 200 OK\r\n{expected}\r\n"), "{given:?} {then:?}");
    }
}

#[test]
fn what_the_proxy_adds_is_spelled_as_the_rest() {
    for (spelling, expected) in [
        (Spelling::Lower, "transfer-encoding: chunked\r\nconnection: close\r\n"),
        (Spelling::Title, "Transfer-Encoding: chunked\r\nConnection: close\r\n"),
        (Spelling::Mixed(vec![]), "transfer-encoding: chunked\r\nconnection: close\r\n"),
    ] {
        let mut out = BytesMut::new();
        let said = Response::new(Body::absent().spelled(spelling));
        answer(&mut out, &said, Coding::Chunked, true, Then::Close);
        assert_eq!(text(&out), format!("HTTP/1.1 200 OK\r\n{expected}\r\n"));
    }
}

enum Part {
    Data(&'static str),
    Trailers(&'static [(&'static str, &'static str)], Spelling),
}

#[test]
fn a_body_is_framed_as_its_head_said_or_it_is_not_sent_to_its_end() {
    use Part::{Data, Trailers};
    let names = || Spelling::Mixed(vec![Bytes::from_static(b"X-SUM"), Bytes::from_static(b"x-Last")]);
    let sum: &[_] = &[("x-sum", "9"), ("x-last", "")];
    for (what, coding, parts, expected) in [
        ("no chunk", Coding::Chunked, vec![], Some("0\r\n\r\n")),
        (
            "chunks",
            Coding::Chunked,
            vec![Data("hello"), Data(" and more of it")],
            Some("5\r\nhello\r\nf\r\n and more of it\r\n0\r\n\r\n"),
        ),
        (
            "an empty piece, which would be the last chunk",
            Coding::Chunked,
            vec![Data("a"), Data(""), Data("b")],
            Some("1\r\na\r\n1\r\nb\r\n0\r\n\r\n"),
        ),
        (
            "trailers",
            Coding::Chunked,
            vec![Data("a"), Trailers(sum, Spelling::Lower)],
            Some("1\r\na\r\n0\r\nx-sum: 9\r\nx-last: \r\n\r\n"),
        ),
        (
            "trailers as they were spelled",
            Coding::Chunked,
            vec![Trailers(sum, names())],
            Some("0\r\nX-SUM: 9\r\nx-Last: \r\n\r\n"),
        ),
        (
            "trailers in title case",
            Coding::Chunked,
            vec![Trailers(sum, Spelling::Title)],
            Some("0\r\nX-Sum: 9\r\nX-Last: \r\n\r\n"),
        ),
        ("a length", Coding::Length(5), vec![Data("hel"), Data("lo")], Some("hello")),
        (
            "a length, where trailers would be another message",
            Coding::Length(1),
            vec![Data("a"), Trailers(sum, Spelling::Lower)],
            Some("a"),
        ),
        ("less than was said", Coding::Length(5), vec![Data("hell")], None),
        ("more than was said", Coding::Length(5), vec![Data("hello"), Data("!")], None),
        ("until the end", Coding::Close, vec![Data("hel"), Data("lo")], Some("hello")),
        ("until the end, with trailers", Coding::Close, vec![Data("a"), Trailers(sum, names())], Some("a")),
        ("none", Coding::None, vec![Data("hello"), Trailers(sum, Spelling::Lower)], Some("")),
    ] {
        let (mut out, mut coding) = (Outgoing::default(), coding);
        let mut write = || -> Result<(), WrongLength> {
            for part in &parts {
                match part {
                    Data(data) => {
                        coding.frame(
                            &mut out,
                            Frame::data(Bytes::from_static(data.as_bytes())),
                            &Spelling::Lower,
                        )?;
                    }
                    Trailers(list, spelling) => {
                        coding.frame(&mut out, Frame::trailers(fields_of(list)), spelling)?;
                    }
                }
            }
            coding.end(&mut out)
        };
        let ended = write().is_ok();
        assert_eq!(ended.then(|| text(&out.whole())).as_deref(), expected, "{what}");
    }
}

#[test]
fn what_was_relayed_counts_towards_the_length() {
    let mut coding = Coding::Length(5);
    coding.relayed(4).unwrap();
    assert!(coding.end(&mut Outgoing::default()).is_err(), "one is missing");
    coding.relayed(1).unwrap();
    coding.end(&mut Outgoing::default()).unwrap();
    assert!(coding.relayed(1).is_err(), "one too many");
}

#[tokio::test]
async fn how_a_body_is_written_follows_from_what_is_known_of_it() {
    let shared = Shared::new(connection().await.0);
    let body = |length: Option<Length>| match length {
        None => Body::absent(),
        Some(length) => {
            shared.lock().body = Reading::new(length, &LIMITS);
            Body::request(RequestBody::new(shared.clone(), false))
        }
    };
    for (length, expected) in [
        (None, Coding::None),
        (Some(Length::Known(5)), Coding::Length(5)),
        (Some(Length::Chunked), Coding::Chunked),
    ] {
        assert_eq!(Coding::of_request(&Request::new(body(length))), expected, "{length:?}");
    }
    for (length, status, asked, http11, expected) in [
        (None, 200, Asked::Other, true, Coding::Length(0)),
        (Some(Length::Known(5)), 200, Asked::Other, true, Coding::Length(5)),
        (Some(Length::Known(5)), 200, Asked::Other, false, Coding::Length(5)),
        (Some(Length::Chunked), 200, Asked::Other, true, Coding::Chunked),
        (Some(Length::Chunked), 200, Asked::Other, false, Coding::Close),
        (Some(Length::Close), 200, Asked::Other, true, Coding::Chunked),
        (Some(Length::Close), 200, Asked::Other, false, Coding::Close),
        // Whoever asked so reads none, whatever there is.
        (Some(Length::Known(5)), 200, Asked::Head, true, Coding::None),
        (Some(Length::Chunked), 204, Asked::Other, true, Coding::None),
        (Some(Length::Chunked), 304, Asked::Other, true, Coding::None),
        (None, 101, Asked::Other, true, Coding::None),
        (None, 200, Asked::Connect, true, Coding::None),
        (None, 403, Asked::Connect, true, Coding::Length(0)),
    ] {
        let mut said = Response::new(body(length));
        *said.status_mut() = StatusCode::from_u16(status).unwrap();
        let coding = Coding::of_answer(&said, asked, http11);
        assert_eq!(coding, expected, "{length:?} {status} {asked:?} {http11}");
    }
}

#[tokio::test]
async fn trailers_leave_as_they_came() {
    let body = "1\r\na\r\n0\r\nx-SUM: 1\r\nX-Last: 2\r\n\r\n";
    let (stream, mut other) = connection().await;
    other.write_all(body.as_bytes()).await.unwrap();
    let shared = Shared::new(stream);
    shared.lock().body = Reading::new(Length::Chunked, &LIMITS);
    let said = Response::new(Body::request(RequestBody::new(shared.clone(), false)));
    let asking = Asking { asked: Asked::Other, http11: true, persists: true };
    send(&shared, asking, said, &Drain::new()).await.unwrap();
    drop(shared);
    let mut written = String::new();
    other.read_to_string(&mut written).await.unwrap();
    assert_eq!(written, format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{body}"));
}

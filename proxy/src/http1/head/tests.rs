//! Heads as their senders write them, and what is refused of them.

use super::super::write;
use super::*;
use crate::http::body::Body;
use remora_core::http1::Asked;

const LIMITS: Limits = Limits { head_bytes: 128, fields: 4 };

fn ahead(bytes: &[u8]) -> Ahead {
    Ahead { bytes: bytes.into(), ..Ahead::default() }
}

fn asked(bytes: &[u8]) -> Result<Option<Head<Request<()>>>, Error> {
    request(&mut ahead(bytes), &LIMITS)
}

fn answered(bytes: &[u8]) -> Result<Option<Head<Response<()>>>, Error> {
    answer(&mut ahead(bytes), &LIMITS)
}

/// Why it is refused.
#[track_caller]
fn why<T>(read: Result<Option<T>, Error>) -> String {
    match read {
        Ok(Some(_)) => "read".into(),
        Ok(None) => "more is waited for".into(),
        Err(error) => error.to_string(),
    }
}

const NAME: &str = "a field's name is no token";
const VALUE: &str = "a field's value has a control character";
const LINE: &str = "its first line has a character that does not belong there";
const VERSION: &str = "its version is neither HTTP/1.1 nor HTTP/1.0";
const FORM: &str = "its target's form is not its method's";

#[test]
fn a_request_that_can_be_read_in_two_ways_is_refused_with_the_reason() {
    for (bytes, expected) in [
        // RFC 9112 section 5.2: a folded line is a field of its own to some, and none to others.
        ("GET / HTTP/1.1\r\na: b\r\n c\r\n\r\n", NAME),
        ("GET / HTTP/1.1\r\na: b\r\n\tc: d\r\n\r\n", NAME),
        ("GET / HTTP/1.1\r\n a: b\r\n\r\n", NAME),
        ("GET / HTTP/1.1\r\na : b\r\n\r\n", NAME),
        ("GET / HTTP/1.1\r\n: b\r\n\r\n", NAME),
        ("GET / HTTP/1.1\r\na\0: b\r\n\r\n", NAME),
        ("GET / HTTP/1.1\r\nno colon\r\n\r\n", NAME),
        ("GET / HTTP/1.1\r\na: b\0c\r\n\r\n", VALUE),
        ("GET / HTTP/1.1\r\na: b\rc: d\r\n\r\n", VALUE),
        ("GET / HTTP/1.1\r\na: b\x7f\r\n\r\n", VALUE),
        ("GET / HTTP/1.1\ra: b\r\n\r\n", "a line ends without a line feed"),
        ("GET /\0 HTTP/1.1\r\n\r\n", LINE),
        ("GET / there HTTP/1.1\r\n\r\n", VERSION),
        ("GET / HTTP/2.0\r\n\r\n", VERSION),
        ("GET / HTTP/1.2\r\n\r\n", VERSION),
        ("GET /\r\n\r\n", LINE),
        ("G@T / HTTP/1.1\r\n\r\n", LINE),
        ("\x16\x03\x01", LINE),
        ("GET a:b:c HTTP/1.1\r\n\r\n", "its target is no URI"),
        ("GET web:80 HTTP/1.1\r\n\r\n", FORM),
        ("CONNECT / HTTP/1.1\r\n\r\n", FORM),
        (
            "GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            "its Content-Length is no length, or there are two",
        ),
        (
            "GET / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "its Transfer-Encoding is not `chunked` and nothing else, or it is HTTP/1.0",
        ),
    ] {
        assert_eq!(why(asked(bytes.as_bytes())), expected, "{bytes:?}");
    }
}

#[test]
fn an_answer_that_is_none_is_refused_with_the_reason() {
    for (bytes, expected) in [
        ("HTTP/1.1 099 Low\r\n\r\n", "its status is no status"),
        ("HTTP/1.1 20\r\n\r\n", "its status is no status"),
        ("HTTP/2.0 200 OK\r\n\r\n", VERSION),
        ("ICY 200 OK\r\n\r\n", VERSION),
        ("HTTP/1.1 200 OK\r\na: b\r\n c\r\n\r\n", NAME),
        ("HTTP/1.1 200 OK\r\na: b\0\r\n\r\n", VALUE),
        ("HTTP/1.1 200 O\0K\r\n\r\n", "its status is no status"),
    ] {
        assert_eq!(why(answered(bytes.as_bytes())), expected, "{bytes:?}");
    }
}

#[test]
fn a_head_that_is_too_much_is_refused_by_the_limit_that_it_meets() {
    let fields = |count| format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(count));
    // In all so many bytes, in one field and in the request line.
    let field = |bytes: usize| format!("GET / HTTP/1.1\r\na: {}\r\n\r\n", "b".repeat(bytes - 23));
    let target = |bytes: usize| format!("GET /{} HTTP/1.1\r\n\r\n", "b".repeat(bytes - 18));
    let large = "its head has more bytes or fields than it may";
    let long = "its request line is longer than a head may be";
    let more = "more is waited for";
    for (what, bytes, expected) in [
        ("as many fields as may be", fields(4), "read"),
        ("one more", fields(5), large),
        ("as many bytes as may be", field(128), "read"),
        ("one more", field(129), large),
        ("as many bytes as may be, without the end", field(140)[..128].into(), more),
        ("one more, without the end", field(140)[..129].into(), large),
        ("a request line of as many bytes as may be", target(128), "read"),
        ("one more", target(129), large),
        ("as many bytes as may be, without the line's end", target(140)[..128].into(), more),
        ("one more, without the line's end", target(140)[..129].into(), long),
    ] {
        assert_eq!(why(asked(bytes.as_bytes())), expected, "{what}: {bytes}");
    }
    let head = |count| format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(count));
    assert_eq!(why(answered(head(4).as_bytes())), "read");
    assert_eq!(why(answered(head(5).as_bytes())), large);
    assert_eq!(why(answered(&[b"HTTP/1.1 200 ".as_slice(), &[b'k'; 200]].concat())), long);
    // More than a `Uri` holds, where a head may be longer.
    let wide = Limits { head_bytes: 1 << 20, fields: USUAL_FIELDS + 1 };
    let ask = |bytes: String| request(&mut ahead(bytes.as_bytes()), &wide);
    assert_eq!(why(ask(target(MAX_TARGET + 17))), "read");
    assert_eq!(why(ask(target(MAX_TARGET + 18))), long);
    // And more fields than are on the stack.
    assert_eq!(why(ask(fields(USUAL_FIELDS + 1))), "read");
    assert_eq!(why(ask(fields(USUAL_FIELDS + 2))), large);
}

#[test]
fn trailers_are_bounded_and_no_line_of_them_is_two() {
    for (lines, expected) in [
        ("a: b\r\nc: d\r\n", None),
        ("a: b\r\n c\r\n", Some(NAME)),
        ("a: b\0\r\n", Some(VALUE)),
        ("a : b\r\n", Some(NAME)),
        ("a: b\r\nc: d\r\ne: f\r\n", Some("its head has more bytes or fields than it may")),
    ] {
        let refused = trailers(lines.into(), 2).err().map(|error| error.to_string());
        assert_eq!(refused.as_deref(), expected, "{lines:?}");
    }
}

/// RFC 9112 section 2.2 lets a line end with a line feed alone. Whoever reads on sees both.
#[test]
fn a_bare_line_feed_ends_a_line_and_is_not_passed_on() {
    let read = asked(b"GET /x HTTP/1.1\nHost: web\nA: b\r\n\n").unwrap().unwrap();
    assert_eq!(written(read), "GET /x HTTP/1.1\r\nHost: web\r\nA: b\r\n\r\n");
    // And not one before the end of a head is taken for it.
    assert_eq!(why(asked(b"GET /x HTTP/1.1\nHost: web\n")), "more is waited for");
}

#[test]
fn the_version_says_whether_the_connection_persists() {
    for (bytes, http11, persists) in [
        ("GET / HTTP/1.1\r\n\r\n", true, true),
        ("GET / HTTP/1.1\r\nConnection: x, close\r\n\r\n", true, false),
        ("GET / HTTP/1.0\r\n\r\n", false, false),
        ("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", false, true),
    ] {
        let version = if http11 { Version::HTTP_11 } else { Version::HTTP_10 };
        let read = asked(bytes.as_bytes()).unwrap().unwrap();
        assert_eq!((read.http11, read.head.version()), (http11, version), "{bytes:?}");
        assert_eq!(read.framing.persists(read.http11), persists, "{bytes:?}");
        let bytes =
            bytes.replace("GET / HTTP/1.1", "HTTP/1.1 200 OK").replace("GET / HTTP/1.0", "HTTP/1.0 200 OK");
        let read = answered(bytes.as_bytes()).unwrap().unwrap();
        assert_eq!((read.http11, read.head.version()), (http11, version), "{bytes:?}");
        assert_eq!(read.framing.persists(read.http11), persists, "{bytes:?}");
    }
    let chunks = asked(b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap().unwrap();
    assert_eq!(chunks.framing.request(chunks.http11), Err(Malformed::Coding));
}

fn written(read: Head<Request<()>>) -> String {
    let mut out = BytesMut::new();
    let request = read.head.map(|()| Body::absent().spelled(read.spelling));
    write::request(&mut out, &request, write::Coding::None);
    String::from_utf8(out.to_vec()).unwrap()
}

fn answer_written(read: Head<Response<()>>) -> String {
    let mut out = BytesMut::new();
    let answer = read.head.map(|()| Body::absent().spelled(read.spelling));
    let coding = write::Coding::of_answer(&answer, Asked::Head, read.http11);
    write::answer(&mut out, &answer, coding, read.http11, write::Then::Persist);
    String::from_utf8(out.to_vec()).unwrap()
}

#[test]
fn a_heads_names_leave_as_they_came() {
    let mixed = |names: &[&'static str]| {
        Spelling::Mixed(names.iter().map(|name| Bytes::from_static(name.as_bytes())).collect())
    };
    for (fields, spelling) in [
        ("", Spelling::Lower),
        ("host: web\r\naccept: */*\r\n", Spelling::Lower),
        ("Host: web\r\nX-Request-Id: 1\r\n", Spelling::Title),
        // Nothing of ours is written otherwise than in lower case.
        ("Host: web\r\nl5d-client-id: x\r\n", Spelling::Title),
        ("Host: web\r\nL5d-Client-Id: x\r\n", mixed(&["Host", "L5d-Client-Id"])),
        ("Host: web\r\nX-Request-ID: 1\r\n", mixed(&["Host", "X-Request-ID"])),
        ("HOST: web\r\nx-a: 1\r\nX-A: 2\r\n", mixed(&["HOST", "x-a", "X-A"])),
        ("x: 1\r\nX: 2\r\nx: 3\r\n", mixed(&["x", "X", "x"])),
        // What looks like another byte of a name, and is none.
        ("1-2: x\r\nA_b: y\r\n", Spelling::Title),
    ] {
        let bytes = format!("GET /x?y HTTP/1.1\r\n{fields}\r\n");
        let read = asked(bytes.as_bytes()).unwrap().unwrap();
        assert_eq!(read.spelling, spelling, "{fields:?}");
        assert_eq!(written(read), bytes);
        let bytes = format!("HTTP/1.1 200 OK\r\n{fields}\r\n");
        let read = answered(bytes.as_bytes()).unwrap().unwrap();
        assert_eq!(read.spelling, spelling, "{fields:?}");
        assert_eq!(answer_written(read), bytes);
        let (_, spelled) = trailers(fields.into(), 4).unwrap();
        assert_eq!(spelled, spelling, "{fields:?}");
    }
}

#[test]
fn first_lines_leave_as_they_came() {
    for line in [
        "GET / HTTP/1.1",
        "OPTIONS * HTTP/1.1",
        "CONNECT web:443 HTTP/1.1",
        "GET http://web:80/x?y=%00 HTTP/1.1",
        "M-SEARCH /a//b/../c HTTP/1.0",
    ] {
        let bytes = format!("{line}\r\n\r\n");
        assert_eq!(written(asked(bytes.as_bytes()).unwrap().unwrap()), bytes);
    }
    for (line, leaves) in [
        ("HTTP/1.1 200 OK", "HTTP/1.1 200 OK"),
        ("HTTP/1.1 200 Fine", "HTTP/1.1 200 Fine"),
        // RFC 9112 section 4: nobody reads it, and what is no ASCII is nothing that all read the same.
        ("HTTP/1.1 200 \u{fc}ber", "HTTP/1.1 200 OK"),
        ("HTTP/1.1 299 Odd", "HTTP/1.1 299 Odd"),
        ("HTTP/1.1 200", "HTTP/1.1 200 OK"),
        ("HTTP/1.1 299", "HTTP/1.1 299 "),
    ] {
        let read = answered(format!("{line}\r\n\r\n").as_bytes()).unwrap().unwrap();
        assert_eq!(answer_written(read), format!("{leaves}\r\n\r\n"));
    }
}

#[test]
fn a_length_that_is_said_twice_is_passed_on_once() {
    let read = asked(b"GET / HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\n").unwrap().unwrap();
    assert_eq!(written(read), "GET / HTTP/1.1\r\ncontent-length: 5\r\n\r\n");
}

#[test]
fn empty_lines_before_a_request_are_nothing() {
    let mut empty = ahead(b"\r\n\r\n");
    assert_eq!(why(request(&mut empty, &LIMITS)), "more is waited for");
    assert!(empty.bytes.is_empty(), "a connection on which nothing was said is idle");
    assert_eq!(why(asked(b"\r\nGET / HTTP/1.1\r\n\r\n")), "read");
}

#[test]
fn a_head_is_whole_however_it_comes_and_what_follows_it_is_left() {
    let follows = "GET /second";
    for head in [
        "GET /first HTTP/1.1\r\nHost: web\r\nA: b\r\n\r\n",
        "GET /first HTTP/1.1\nHost: web\nA: b\n\n",
        "GET /first HTTP/1.1\r\nHost: web\r\nA: b\n\r\n",
    ] {
        for step in 1..=head.len() {
            let mut ahead = Ahead::default();
            let mut read = None;
            for (at, piece) in head.as_bytes().chunks(step).enumerate() {
                assert!(read.is_none(), "read before its end, at {at} in pieces of {step}");
                ahead.bytes.extend_from_slice(piece);
                if (at + 1) * step >= head.len() {
                    ahead.bytes.extend_from_slice(follows.as_bytes());
                }
                read = request(&mut ahead, &LIMITS).unwrap();
            }
            let read = read.unwrap_or_else(|| panic!("{head:?} is not whole in pieces of {step}"));
            assert_eq!(read.head.uri(), "/first");
            assert_eq!(ahead.bytes, follows, "pieces of {step}");
            assert_eq!((ahead.scanned, ahead.tries), (0, 0), "the next head begins anew");
        }
    }
}

#[test]
fn what_was_read_is_not_held_beyond_its_head() {
    let head = b"GET / HTTP/1.1\r\n\r\n";
    assert!(ahead(head).take_head(head.len()).is_unique());
}

#[test]
fn an_unfinished_head_is_tried_a_few_times_and_not_for_each_of_its_bytes() {
    let head = b"GET / HTTP/1.1\r\nHost: web\r\n\r\n";
    let mut ahead = Ahead::default();
    let tried = head.iter().filter(|byte| {
        ahead.bytes.extend_from_slice(&[**byte]);
        ahead.is_worth_a_try()
    });
    assert_eq!(tried.count(), usize::from(MAX_TRIES) + 1, "and once at its end");
}

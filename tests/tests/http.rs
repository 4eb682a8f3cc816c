//! HTTP passes through two proxies as it was sent: framing, case, trailers, upgrades, bodies; and what the proxies add or
//! make up themselves is what the contract says.
#![expect(clippy::unwrap_used, reason = "a test says what it expects")]

use remora_tests::shop::{self, SHOP, curl, identity, idle, service};
use remora_tests::wire::{
    address, client, connect, count, counted, kit, read_response, read_to_end, read_until,
};
use remora_tests::{Mesh, PodRef, check};
use serde_json::Value;
use std::io::Write as _;
use std::net::TcpStream;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

const MIB_64: &str = "67108864";

static MESH: LazyLock<Mesh> = LazyLock::new(|| {
    shop::open(&[
        client("client", &[]),
        client("stranger", &[("linkerd.io/inject", "disabled")]),
        kit("web", 8080, "http", &[]),
        kit("counted", 8080, "http", &[]),
        kit("unmeshed", 8080, "http", &[("linkerd.io/inject", "disabled")]),
        idle("deaf", &[]),
        service("deaf", 8080, "8080"),
        idle("mute", &[]),
        service("mute", 8080, "8080"),
        service("nobody", 8080, "8080"),
    ])
    .unwrap()
});

#[test]
fn a_connection_is_kept_and_its_requests_may_be_pipelined() {
    if !check::can_run() {
        return;
    }
    let mut stream = to("web");
    let mut reused = false;
    for round in 0..3 {
        let first = get(&format!("/slow/20?{round}"));
        stream.write_all((first + &get("/second")).as_bytes()).unwrap();
        let (told, second) = (told(&mut stream), told(&mut stream));
        assert_eq!(told["target"], format!("/slow/20?{round}"));
        assert_eq!(second["target"], "/second");
        reused |= second["request"].as_u64() > Some(0);
    }
    assert!(reused, "the server saw a new connection for every request");
}

#[test]
fn a_chunked_request_stays_chunked() {
    if !check::can_run() {
        return;
    }
    let mut stream = to("web");
    stream.write_all(&post("/", "Transfer-Encoding: chunked\r\n")).unwrap();
    stream.write_all(b"5\r\nhello\r\n6;x=y\r\n world\r\n0\r\n\r\n").unwrap();
    let told = told(&mut stream);
    assert_eq!(told["body"], "hello world");
    assert_eq!(header(&told, "Transfer-Encoding"), ["chunked"]);
    assert!(header(&told, "Content-Length").is_empty());
}

#[test]
fn a_chunked_response_comes_as_it_is_made() {
    if !check::can_run() {
        return;
    }
    let mut stream = to("web");
    stream.write_all(get("/chunked/3/300").as_bytes()).unwrap();
    let head = String::from_utf8(read_until(&mut stream, b"\r\n\r\n").unwrap()).unwrap();
    assert!(head.contains("\r\nTransfer-Encoding: chunked\r\n"), "{head}");
    read_until(&mut stream, b"chunk 0\n").unwrap();
    let first = Instant::now();
    read_until(&mut stream, b"chunk 2\n").unwrap();
    assert!(first.elapsed() > Duration::from_millis(300), "the first chunk was held back");
    read_until(&mut stream, b"0\r\n\r\n").unwrap();
}

#[test]
fn trailers_travel_both_ways() {
    if !check::can_run() {
        return;
    }
    let mut stream = to("web");
    stream.write_all(&post("/", "Transfer-Encoding: chunked\r\nTrailer: X-Client-Sum\r\n")).unwrap();
    stream.write_all(b"3\r\nabc\r\n0\r\nX-Client-SUM: 3\r\n\r\n").unwrap();
    let told = told(&mut stream);
    let trailer = &told["trailers"][0];
    assert_eq!((&trailer[0], &trailer[1]), (&"X-Client-SUM".into(), &"3".into()));

    stream
        .write_all(b"GET /trailers HTTP/1.1\r\nHost: web:8080\r\nTE: trailers\r\nConnection: TE\r\n\r\n")
        .unwrap();
    let head = String::from_utf8(read_until(&mut stream, b"\r\n\r\n").unwrap()).unwrap();
    assert!(head.contains("\r\nTrailer: X-Sum, X-Last\r\n"), "{head}");
    let body = String::from_utf8(read_until(&mut stream, b"\r\n\r\n").unwrap()).unwrap();
    assert_eq!(body, "5\r\nbody\n\r\n0\r\nX-Sum: 5\r\nX-Last: yes\r\n\r\n");

    let over_http2 = ["--http2-prior-knowledge", "-D", "-", "http://web:8080/trailers"];
    let answer = curl(&pod("client"), &over_http2).unwrap();
    assert!(answer.starts_with("HTTP/2 200"), "{answer}");
    assert!(answer.contains("x-sum: 5") && answer.contains("x-last: yes"), "{answer}");
}

#[test]
fn an_upgraded_connection_carries_bytes_both_ways_also_those_right_behind_the_heads() {
    if !check::can_run() {
        return;
    }
    let mut stream = to("web");
    let request = "GET /upgrade HTTP/1.1\r\nHost: web:8080\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nright behind\n";
    stream.write_all(request.as_bytes()).unwrap();
    let head = String::from_utf8(read_until(&mut stream, b"\r\n\r\n").unwrap()).unwrap();
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    assert!(head.to_lowercase().contains("\r\nupgrade: echo\r\n"), "{head}");
    assert_eq!(read_until(&mut stream, b"behind\n").unwrap(), b"welcome\nright behind\n");
    stream.write_all(b"\0\xff\r\n\r\nGET / HTTP/1.1\r\n\r\nlast\n").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(read_to_end(&mut stream).unwrap(), b"\0\xff\r\n\r\nGET / HTTP/1.1\r\n\r\nlast\n");
}

#[test]
fn connect_makes_a_tunnel_to_the_meshed_server() {
    if !check::can_run() {
        return;
    }
    let mut stream = to("web");
    stream.write_all(b"CONNECT web:8080 HTTP/1.1\r\nHost: web:8080\r\n\r\n").unwrap();
    let head = String::from_utf8(read_until(&mut stream, b"\r\n\r\n").unwrap()).unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    stream.write_all(b"through the tunnel\n").unwrap();
    assert_eq!(read_until(&mut stream, b"\n").unwrap(), b"through the tunnel\n");
}

#[test]
fn expect_100_continue_is_answered_before_the_body_is_sent() {
    if !check::can_run() {
        return;
    }
    let mut stream = to("web");
    stream.write_all(&post("/", "Expect: 100-continue\r\nContent-Length: 4\r\n")).unwrap();
    let interim = String::from_utf8(read_until(&mut stream, b"\r\n\r\n").unwrap()).unwrap();
    assert!(interim.starts_with("HTTP/1.1 100"), "{interim}");
    stream.write_all(b"body").unwrap();
    assert_eq!(told(&mut stream)["body"], "body");
    let big = "x".repeat(2000);
    let answer =
        curl(&pod("client"), &["-H", "Expect: 100-continue", "-d", &big, "http://web:8080/"]).unwrap();
    assert!(answer.contains("\"body_bytes\":2000"), "{answer}");
}

#[test]
fn the_case_of_headers_is_kept_from_end_to_end() {
    if !check::can_run() {
        return;
    }
    let mut stream = to("web");
    stream
        .write_all(b"GET / HTTP/1.1\r\nHOST: web:8080\r\nx-MiXed-CASE: One\r\nX-mixed-case: Two\r\n\r\n")
        .unwrap();
    let (head, body) = read_response(&mut stream).unwrap();
    assert!(head.contains("\r\nX-Case-KEPT: Yes\r\n"), "{head}");
    let told: Value = serde_json::from_slice(&body).unwrap();
    let names: Vec<&str> =
        told["headers"].as_array().unwrap().iter().map(|header| header[0].as_str().unwrap()).collect();
    for name in ["HOST", "x-MiXed-CASE", "X-mixed-case"] {
        assert!(names.contains(&name), "{name} is not in {names:?}");
    }
}

#[test]
fn http_1_0_ends_or_keeps_its_connection_as_it_was_asked() {
    if !check::can_run() {
        return;
    }
    let mut stream = to("web");
    stream.write_all(b"GET /once HTTP/1.0\r\nHost: web:8080\r\n\r\n").unwrap();
    assert_eq!(told(&mut stream)["target"], "/once");
    assert_eq!(read_to_end(&mut stream).unwrap(), b"", "the connection ends after the answer");

    let mut stream = to("web");
    for _ in 0..2 {
        stream.write_all(b"GET / HTTP/1.0\r\nHost: web:8080\r\nConnection: keep-alive\r\n\r\n").unwrap();
        let (head, _) = read_response(&mut stream).unwrap();
        assert!(head.to_lowercase().contains("\r\nconnection: keep-alive\r\n"), "{head}");
    }

    // A server that knows no length: the end of the connection is the end of the body.
    let mut stream = to("web");
    stream.write_all(b"GET /old HTTP/1.0\r\nHost: web:8080\r\n\r\n").unwrap();
    let answer = String::from_utf8(read_to_end(&mut stream).unwrap()).unwrap();
    assert!(answer.ends_with("\r\n\r\nuntil the end\n"), "{answer}");
    assert_eq!(curl(&pod("client"), &["http://web:8080/old"]).unwrap(), "until the end\n");
}

#[test]
fn answers_without_a_body_leave_the_connection_usable() {
    if !check::can_run() {
        return;
    }
    let mut stream = to("web");
    for (request, status, length) in [
        ("HEAD /bytes/1000", "200", Some("1000")),
        ("GET /status/204", "204", None),
        ("GET /status/304", "304", None),
        ("HEAD /chunked/3/0", "200", None),
    ] {
        stream.write_all(format!("{request} HTTP/1.1\r\nHost: web:8080\r\n\r\n").as_bytes()).unwrap();
        let head = String::from_utf8(read_until(&mut stream, b"\r\n\r\n").unwrap()).unwrap();
        assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{request}: {head}");
        let said = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
        assert_eq!(said, length, "{request}: {head}");
    }
    stream.write_all(get("/after").as_bytes()).unwrap();
    assert_eq!(told(&mut stream)["target"], "/after");
}

#[test]
fn large_bodies_arrive_byte_by_byte_the_same_both_ways() {
    if !check::can_run() {
        return;
    }
    let script = format!(
        "set -e; cd /tmp; head -c {MIB_64} /dev/urandom > up; for v in --http1.1 --http2-prior-knowledge; do \
         curl -sS --max-time 40 $v -D head -o down http://web:8080/bytes/{MIB_64}; \
         grep -qi \"^x-sha256: $(sha256sum < down | cut -d' ' -f1)\" head; \
         curl -sS --max-time 40 $v -T up -o told http://web:8080/; \
         grep -q \"body_sha256\\\":\\\"$(sha256sum < up | cut -d' ' -f1)\" told; done"
    );
    pod("client").run("app", &["sh", "-c", &script]).unwrap();
}

#[test]
fn a_target_in_absolute_form_stays_so() {
    if !check::can_run() {
        return;
    }
    let mut stream = to("web");
    let request = "GET http://web:8080/a%2Fb/../c?q=%20 HTTP/1.1\r\nHost: web:8080\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    assert_eq!(told(&mut stream)["target"], "http://web:8080/a%2Fb/../c?q=%20");
    stream.write_all(get("/a%2Fb/../c//?q=%20").as_bytes()).unwrap();
    assert_eq!(told(&mut stream)["target"], "/a%2Fb/../c//?q=%20", "a path is forwarded as it came");
}

#[test]
fn a_connection_that_the_application_closes_is_not_used_again() {
    if !check::can_run() {
        return;
    }
    for _ in 0..20 {
        let mut stream = to("web");
        stream.write_all(get("/close").as_bytes()).unwrap();
        let (head, body) = read_response(&mut stream).unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        assert_eq!(body, b"bye\n");
        let mut next = to("web");
        next.write_all(get("/next").as_bytes()).unwrap();
        assert_eq!(told(&mut next)["target"], "/next");
    }
}

#[test]
fn only_the_servers_proxy_says_who_the_client_is() {
    if !check::can_run() {
        return;
    }
    let client = identity("client");
    for (from, expected) in [("client", vec![client.as_str()]), ("stranger", vec![])] {
        let mut stream = connect(&pod(from), address(&MESH, "web", 8080).unwrap()).unwrap();
        stream
            .write_all(
                b"GET / HTTP/1.1\r\nHost: web:8080\r\nl5d-client-id: forged\r\nL5D-Client-Id: forged too\r\n\
                  l5d-orig-proto: HTTP/1.1\r\nl5d-dst-override: other:1\r\n\r\n",
            )
            .unwrap();
        let told = told(&mut stream);
        assert_eq!(header(&told, "l5d-client-id"), expected, "from {from}");
        let leaked = told["headers"].as_array().unwrap().iter().filter(|header| {
            let name = header[0].as_str().unwrap().to_lowercase();
            name.starts_with("l5d-") && name != "l5d-client-id"
        });
        assert_eq!(leaked.count(), 0, "from {from}: {told}");
    }
}

#[test]
fn an_application_cannot_say_who_the_client_of_an_unmeshed_server_is() {
    if !check::can_run() {
        return;
    }
    let mut stream = to("unmeshed");
    stream.write_all(b"GET / HTTP/1.1\r\nHost: unmeshed:8080\r\nl5d-client-id: forged\r\n\r\n").unwrap();
    let told = told(&mut stream);
    assert_eq!(header(&told, "l5d-client-id"), [""; 0], "{told}");
}

#[test]
fn an_application_may_require_its_servers_identity() {
    if !check::can_run() {
        return;
    }
    let (client, web) = (pod("client"), identity("web"));
    let asked = |id: &str| {
        let required = format!("l5d-require-id: {id}");
        let format = "%{http_code} %header{l5d-proxy-error}";
        curl(&client, &["-H", &required, "-o", "/dev/null", "-w", format, "http://web:8080/"]).unwrap()
    };
    assert_eq!(asked(&web), "200 ");
    let other = identity("other");
    assert_eq!(
        asked(&other),
        format!("502 the request requires the server identity {other}, the endpoint has {web}")
    );
    let required = format!("l5d-require-id: {web}");
    let format = ["-o", "/dev/null", "-w", "%{http_code} %header{l5d-proxy-error}"];
    let unmeshed = curl(&client, &[&["-H", &required], &format[..], &["http://unmeshed:8080/"]].concat());
    assert_eq!(
        unmeshed.unwrap(),
        format!("502 the request requires the server identity {web}, the endpoint has no identity")
    );
}

#[test]
fn an_address_where_nobody_is_is_504_after_the_connect_timeout() {
    if !check::can_run() {
        return;
    }
    let std::net::IpAddr::V4(web) = pod("web").ip().unwrap() else { panic!("pods have IPv4 first") };
    // An address of the pods' network that no pod has: nobody answers, not even with a refusal.
    let [a, b, c, _] = web.octets();
    let (status, error) = shop::status(&pod("client"), &format!("http://{a}.{b}.{c}.250:8080/")).unwrap();
    assert_eq!((status, error), (504, format!("connecting to {a}.{b}.{c}.250:8080 took longer than 1s")));
}

#[test]
fn a_stranger_is_not_told_why_a_request_failed() {
    if !check::can_run() {
        return;
    }
    let (status, error) = shop::status(&pod("stranger"), "http://mute:8080/").unwrap();
    assert_eq!((status, error.as_str()), (502, ""));
    let head = curl(&pod("stranger"), &["-D", "-", "http://mute:8080/"]).unwrap().to_lowercase();
    assert!(!head.contains("l5d-"), "{head}");
    let (_, error) = shop::status(&pod("client"), "http://nobody:8080/").unwrap();
    assert!(!error.is_empty(), "the pod's own application is told");
}

#[test]
fn an_answer_that_closes_ends_the_connection_in_its_clients_protocol() {
    if !check::can_run() {
        return;
    }
    // Its own proxy's answer, and the server's proxy's to somebody from outside.
    for (from, name) in [("client", "nobody"), ("stranger", "mute")] {
        let connection = || connect(&pod(from), address(&MESH, name, 8080).unwrap()).unwrap();
        let mut http1 = connection();
        http1.write_all(format!("GET / HTTP/1.1\r\nHost: {name}\r\n\r\n").as_bytes()).unwrap();
        let answer = String::from_utf8(read_to_end(&mut http1).unwrap()).unwrap().to_lowercase();
        assert!(
            answer.starts_with("http/1.1 50") && answer.contains("\r\nconnection: close\r\n"),
            "{answer}"
        );
        let (status, goaway) = over_http2(connection(), name);
        assert!(status >= 502 && goaway, "{name}: {status}, and the connection stays open");
    }
    assert_eq!(over_http2(to("web"), "web"), (200, false), "an answer that does not close");
}

#[test]
fn a_server_that_sends_its_client_elsewhere_is_obeyed_where_nobody_balances() {
    if !check::can_run() {
        return;
    }
    let direct = std::net::SocketAddr::new(pod("mute").ip().unwrap(), 8080);
    let balanced = address(&MESH, "mute", 8080).unwrap();
    for (target, closes) in [(direct, true), (balanced, false)] {
        let mut stream = connect(&pod("client"), target).unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: mute\r\n\r\n").unwrap();
        let head = String::from_utf8(read_until(&mut stream, b"\r\n\r\n").unwrap()).unwrap().to_lowercase();
        assert!(head.starts_with("http/1.1 502"), "{head}");
        assert_eq!(head.contains("\r\nconnection: close\r\n"), closes, "{target}: {head}");
        assert!(!head.contains("l5d-proxy-connection"), "{head}");
        if closes {
            assert_eq!(read_to_end(&mut stream).unwrap(), b"");
        }
        let http2 = over_http2(connect(&pod("client"), target).unwrap(), "mute");
        assert_eq!(http2, (502, closes), "{target}");
    }
}

#[test]
fn an_error_that_the_proxy_makes_says_so() {
    if !check::can_run() {
        return;
    }
    let client = pod("client");
    let (status, error) = shop::status(&client, "http://nobody:8080/").unwrap();
    assert_eq!(
        (status, error.as_str()),
        (504, "no endpoint of nobody.shop.svc.cluster.local:8080 is available")
    );
    // The other pod's proxy made this one, and it is the application's server that failed.
    let (status, _) = shop::status(&client, "http://deaf:8080/").unwrap();
    assert_eq!(status, 502);
    counted(&pod("deaf"), "inbound_http_errors_total", &[("error", "i/o")], 1.0).unwrap();
    let (status, _) = shop::status(&client, "http://web:8080/reset").unwrap();
    assert_eq!(status, 502);
}

#[test]
fn half_an_answer_is_never_taken_for_the_whole() {
    if !check::can_run() {
        return;
    }
    let error = curl(&pod("client"), &["http://web:8080/cut"]).unwrap_err().to_string();
    assert!(error.contains("(18)"), "curl's word for a partial file: {error}");
    let error =
        curl(&pod("client"), &["--http2-prior-knowledge", "http://web:8080/cut"]).unwrap_err().to_string();
    assert!(error.contains("(92)"), "curl's word for a stream that was reset: {error}");
}

#[test]
fn an_answer_before_the_end_of_the_request_reaches_the_client() {
    if !check::can_run() {
        return;
    }
    let script = "head -c 4000000 /dev/zero | curl -sS --max-time 10 -o /dev/null -w '%{http_code}' -H Expect: \
                  --data-binary @- http://web:8080/early";
    let output = pod("client").exec("app", &["sh", "-c", script]).unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "413", "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn http_1_stays_http_1_between_the_pods() {
    if !check::can_run() {
        return;
    }
    let (client, server) = (pod("client"), pod("counted"));
    for _ in 0..3 {
        let answer = curl(&client, &["-D", "-", "http://counted:8080/"]).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.contains("\"version\":\"HTTP/1.1\""), "{answer}");
    }
    let header = "inbound_tcp_transport_header_connections_total";
    let http1 = count(&server, header, &[("session_protocol", "http/1")]).unwrap();
    assert!(http1 >= 1.0, "no HTTP/1 connection was announced");
    counted(&server, header, &[], http1).unwrap();
    let success =
        [("direction", "inbound"), ("tls", "true"), ("status_code", "200"), ("classification", "success")];
    counted(&server, "response_total", &success, 3.0).unwrap();
    counted(&client, "response_total", &[("direction", "outbound"), ("dst_service", "counted")], 3.0)
        .unwrap();
}

/// The status of a request over HTTP/2, and whether the connection then ends although its client keeps it.
fn over_http2(stream: TcpStream, host: &str) -> (u16, bool) {
    use hyper_util::rt::{TokioExecutor, TokioIo};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        stream.set_nonblocking(true).unwrap();
        let io = TokioIo::new(tokio::net::TcpStream::from_std(stream).unwrap());
        let shaken = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await;
        let (mut sender, connection) = shaken.unwrap();
        let mut connection = tokio::spawn(connection);
        let body = http_body_util::Empty::<bytes::Bytes>::new();
        let request = http::Request::get(format!("http://{host}/")).body(body).unwrap();
        let status = sender.send_request(request).await.unwrap().status().as_u16();
        // For an end that must not come there is nothing to wait for but time.
        let ended = tokio::time::timeout(Duration::from_secs(2), &mut connection).await;
        drop(sender);
        (status, ended.is_ok())
    })
}

fn pod(name: &str) -> PodRef<'static> {
    MESH.pod(SHOP, name).unwrap()
}

/// A connection of the client's to a Service on port 8080.
#[track_caller]
fn to(name: &str) -> TcpStream {
    connect(&pod("client"), address(&MESH, name, 8080).unwrap()).unwrap()
}

fn get(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: web:8080\r\n\r\n")
}

fn post(target: &str, headers: &str) -> Vec<u8> {
    format!("POST {target} HTTP/1.1\r\nHost: web:8080\r\n{headers}\r\n").into_bytes()
}

/// Reads a response that tells the request.
#[track_caller]
fn told(stream: &mut TcpStream) -> Value {
    let (head, body) = read_response(stream).unwrap();
    assert!(head.starts_with("HTTP/1.1 200") || head.starts_with("HTTP/1.0 200"), "{head}");
    serde_json::from_slice(&body).unwrap()
}

/// The values of a header of a told request, whatever its case.
fn header<'a>(told: &'a Value, name: &str) -> Vec<&'a str> {
    let headers = told["headers"].as_array().unwrap().iter();
    let found = headers.filter(|header| header[0].as_str().unwrap().eq_ignore_ascii_case(name));
    found.map(|header| header[1].as_str().unwrap()).collect()
}

//! Hostile bytes below HTTP: records, handshakes and transport headers that claim more than there is.
#![expect(
    clippy::too_many_lines,
    clippy::unwrap_used,
    reason = "a test says what it expects where it stands"
)]

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, LazyLock};

use remora_tests::attack::{self, Scene};
use remora_tests::peer::{self, ALPN, End, Session};
use remora_tests::shop::{self, SHOP};
use remora_tests::{Mesh, PodRef, check};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

static MESH: LazyLock<Mesh> =
    LazyLock::new(|| attack::open(&[shop::idle("records", &[]), shop::idle("headers", &[])]).unwrap());

#[test]
fn records_that_are_too_long_too_short_or_too_many_end_their_connection_and_cost_little() {
    if !check::can_run() {
        return;
    }
    let victim = pod("records");
    peer::echo(victim.listen(9000).unwrap());
    peer::mirror(victim.listen(8000).unwrap());
    let own = MESH.certify(&shop::identity("client")).unwrap();
    let ordinary = peer::client(MESH.root(), Some(&own), &[]).unwrap();
    let direct = peer::client(MESH.root(), Some(&own), &[ALPN]).unwrap();
    let scene = Scene::begin(&MESH, "records", || {
        let mut tls = handshake("records", victim.at(8000)?, &ordinary);
        tls.write_all(b"GET / HTTP/1.1\r\nhost: web\r\n\r\n")?;
        peer::read_answer(&mut tls)?;
        Ok(())
    })
    .unwrap();
    let hello = client_hello("records", &ordinary);
    let largest = [&[0x16, 3, 1, 0xff, 0xff][..], &vec![1; 0xffff]].concat();
    let pieces: Vec<u8> = hello[5..].iter().flat_map(|byte| [0x16, 3, 1, 0, 1, *byte]).collect();
    let empty = [0x16, 3, 1, 0, 0].repeat(20_000);
    let alert = [&hello[..], &[0x15, 3, 3, 0, 2, 1, 0]].concat();
    let lying = {
        // A handshake message of 16 MiB in a record of its own.
        let mut lying = hello.clone();
        lying[6..9].copy_from_slice(&[0xff, 0xff, 0xff]);
        lying
    };

    // On the proxy's own port nothing but a handshake is served.
    let label = [("error", "identity required")];
    let before = scene.count("inbound_tcp_errors_total", &label);
    let refused = scene.attack("a first record of 2^16 bytes, to a proxy", || {
        for _ in 0..20 {
            let mut client = MESH.dial(victim.at(4143)?)?;
            let _ = client.write_all(&largest);
            anyhow::ensure!(matches!(peer::end_of(&mut client), End::Closed(_)), "it is open");
        }
        Ok(20 * largest.len() as u64)
    });
    refused.unwrap();
    scene.counted("inbound_tcp_errors_total", &label, before + 19).unwrap();

    // On an application's port what is no ClientHello is the application's, unchanged.
    let passed = scene.attack("a first record of 2^16 bytes, to an application", || {
        assert_eq!(through(victim.at(9000)?, &largest), largest);
        Ok(largest.len() as u64)
    });
    passed.unwrap();

    // In the midst of a handshake, or behind it, no record is longer than 2^14 and a little.
    let failed = |what: &str, bytes: &[u8], behind: bool| {
        let outcome = scene.attack(what, || {
            for _ in 0..20 {
                let mut tcp = if behind {
                    handshake("records", victim.at(8000)?, &ordinary).sock
                } else {
                    MESH.dial(victim.at(8000)?)?
                };
                let _ = tcp.write_all(bytes);
                let _ = tcp.shutdown(Shutdown::Write);
                anyhow::ensure!(matches!(peer::end_of(&mut tcp), End::Closed(_)), "{what}: it is open");
            }
            Ok(20 * (bytes.len() as u64 + 4096))
        });
        outcome.unwrap();
    };
    let tls = [("error", "client tls")];
    let before = scene.count("inbound_tcp_errors_total", &tls);
    failed(
        "a second record of 2^16 bytes",
        &[&hello[..], &[0x17, 3, 3, 0xff, 0xff], &vec![0; 0xffff]].concat(),
        false,
    );
    failed("close_notify in the midst of the handshake", &alert, false);
    failed(
        "plaintext in the midst of the handshake",
        &[&hello[..], b"GET / HTTP/1.1\r\n\r\n"].concat(),
        false,
    );
    scene.counted("inbound_tcp_errors_total", &tls, before + 59).unwrap();
    failed(
        "a record of 2^16 bytes behind the handshake",
        &[&[0x17, 3, 3, 0xff, 0xff][..], &vec![0; 0xffff]].concat(),
        true,
    );
    failed("garbage behind the handshake", &[0x17, 3, 3, 0, 32, 7, 7, 7].repeat(1000), true);
    failed("a second ClientHello behind the handshake", &hello, true);
    failed("20 000 empty records", &empty, false);
    failed("a handshake message of 16 MiB", &lying, false);
    failed("a ClientHello in records of a byte", &pieces, false);

    // Half handshakes, many at once, cost what they must and are let go.
    let many = scene.attack("500 ClientHellos whose sender leaves", || {
        for _ in 0..10 {
            let mut half: Vec<TcpStream> =
                (0..50).map(|_| MESH.dial(victim.at(4143).unwrap()).unwrap()).collect();
            let hello = client_hello("records", &direct);
            for client in &mut half {
                client.write_all(&hello)?;
            }
        }
        Ok(500 * 4096)
    });
    // A handshake is cryptography, for which a replayed ClientHello pays nothing: TLS itself is amplified. What is ours
    // is that it does not cost memory.
    if let Err(error) = many {
        assert!(format!("{error:#}").contains("CPU is amplified"), "{error:#}");
    }
    scene.end().unwrap();
}

#[test]
fn a_transport_header_that_claims_2_gib_is_refused_at_once() {
    if !check::can_run() {
        return;
    }
    let victim = pod("headers");
    peer::mirror(victim.listen(8000).unwrap());
    let own = MESH.certify(&shop::identity("client")).unwrap();
    let config = peer::client(MESH.root(), Some(&own), &[ALPN]).unwrap();
    let ask = |header: &[u8]| {
        let mut tls = handshake("headers", victim.at(4143).unwrap(), &config);
        tls.write_all(header).unwrap();
        let _ = tls.write_all(b"GET / HTTP/1.1\r\nhost: web\r\n\r\n");
        tls
    };
    let good = peer::header(8000, "", Session::Http1);
    let scene = Scene::begin(&MESH, "headers", || {
        anyhow::ensure!(peer::read_answer(&mut ask(&good))?.0.starts_with("HTTP/1.1 200"));
        Ok(())
    })
    .unwrap();
    let preface = b"transport.l5d.io/v1\r\n\r\n";
    let claims = |length: u32, rest: &[u8]| [&preface[..], &length.to_be_bytes(), rest].concat();
    let before = scene.count("inbound_tcp_errors_total", &[("error", "transport header")]);
    let bad = [
        ("a length of 2^31", claims(1 << 31, &good[preface.len() + 4..])),
        ("a length of 2^32 - 1", claims(u32::MAX, &[0; 2000])),
        ("a length of 1025", claims(1025, &[0; 1025])),
        ("a length of 0", claims(0, b"")),
        ("a message that is longer than it says", claims(1, &[8])),
        ("a port of 2^32", claims(6, &[8, 0xff, 0xff, 0xff, 0xff, 0x7f])),
        ("a field that is longer than the message", claims(4, &[8, 80, 0x12, 0x7f])),
        ("a name of 2 GiB", claims(8, &[8, 80, 0x12, 0xff, 0xff, 0xff, 0xff, 0x07])),
        ("no header", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
    ];
    for (what, header) in &bad {
        let outcome = scene.attack(what, || {
            for _ in 0..5 {
                let mut answer = Vec::new();
                // Ended by a close without TLS's own, or by a reset.
                let _ = ask(header).read_to_end(&mut answer);
                anyhow::ensure!(answer.is_empty(), "{what}: {:?}", String::from_utf8_lossy(&answer));
            }
            // A handshake each: what it holds is more than the header.
            Ok(5 * 4096)
        });
        outcome.unwrap();
    }
    let refused = 5 * bad.len() as u64;
    scene
        .counted("inbound_tcp_errors_total", &[("error", "transport header")], before + refused - 1)
        .unwrap();
    scene.said("transport header refused").unwrap();
    // At once: none was waited for.
    let log = MESH.logs(&victim, "linkerd-proxy");
    assert!(!log.contains("the transport header did not arrive within"), "{log}");
    scene.end().unwrap();
}

fn handshake(
    name: &str,
    to: SocketAddr,
    config: &Arc<ClientConfig>,
) -> StreamOwned<ClientConnection, TcpStream> {
    let mut tcp = MESH.dial(to).unwrap();
    let name = ServerName::try_from(shop::identity(name)).unwrap();
    let mut session = ClientConnection::new(config.clone(), name).unwrap();
    while session.is_handshaking() {
        session.complete_io(&mut tcp).unwrap();
    }
    StreamOwned::new(session, tcp)
}

fn client_hello(name: &str, config: &Arc<ClientConfig>) -> Vec<u8> {
    let name = ServerName::try_from(shop::identity(name)).unwrap();
    let mut hello = Vec::new();
    ClientConnection::new(config.clone(), name).unwrap().write_tls(&mut hello).unwrap();
    hello
}

/// Sends bytes to an echo, half-closes, and returns what came back.
fn through(to: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = MESH.dial(to).unwrap();
    let mut writer = stream.try_clone().unwrap();
    let sent = bytes.to_vec();
    let writing = std::thread::spawn(move || {
        writer.write_all(&sent)?;
        writer.shutdown(Shutdown::Write)
    });
    let mut back = Vec::new();
    stream.read_to_end(&mut back).unwrap();
    writing.join().unwrap().unwrap();
    back
}

fn pod(name: &str) -> PodRef<'static> {
    MESH.pod(SHOP, name).unwrap()
}

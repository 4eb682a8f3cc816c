//! A connection of bytes arrives as it was sent: every byte, every end, every reset, many at once, and counted.
#![expect(clippy::unwrap_used, reason = "a test says what it expects")]

use remora_tests::shop::{self, PATIENCE, SHOP};
use remora_tests::wire::{address, client, connect, count, counted, kit, listen, read_to_end, read_until};
use remora_tests::{Mesh, PodRef, check};
use rustix::net::sockopt::set_socket_linger;
use sha2::{Digest as _, Sha256};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, LazyLock};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Semaphore;

/// Not a multiple of anything that buffers like.
const MANY: usize = 40_000_003;
const PARALLEL: usize = 500;
const AT_ONCE: usize = 32;

static MESH: LazyLock<Mesh> = LazyLock::new(|| {
    shop::open(&[
        client("client", &[]),
        // The counters of one test are its own.
        client("counting-client", &[]),
        kit("digest", 7000, "digest", &[]),
        kit("echo", 7000, "echo", &[]),
        kit("counting", 7000, "echo", &[]),
        client("deaf", &[]) + &shop::service("deaf", 7000, "7000"),
        shop::service("nobody", 7000, "7000"),
        client("own-server", &[]) + &shop::service("own-server", 7000, "7000"),
    ])
    .unwrap()
});

#[test]
fn the_clients_end_reaches_the_server_and_its_answer_comes_after() {
    if !check::can_run() {
        return;
    }
    let mut stream = to("digest");
    stream.write_all(b"abc").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    // The server answers at the client's end, and not before.
    let expected = "3 ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\n";
    assert_eq!(String::from_utf8(read_to_end(&mut stream).unwrap()).unwrap(), expected);
}

#[test]
fn the_servers_end_reaches_the_client_who_may_go_on_sending() {
    if !check::can_run() {
        return;
    }
    let (mut client, mut server) = pair(b"hello\n");
    server.write_all(b"all that I have to say").unwrap();
    server.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_end(&mut client).unwrap(), b"all that I have to say");
    client.write_all(b"but I go on\n").unwrap();
    assert_eq!(read_until(&mut server, b"\n").unwrap(), b"but I go on\n");
    drop(client);
    assert_eq!(server.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_large_transfer_arrives_whole() {
    if !check::can_run() {
        return;
    }
    let mut stream = to("digest");
    let sent = bytes();
    stream.write_all(&sent).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let answer = String::from_utf8(read_to_end(&mut stream).unwrap()).unwrap();
    assert_eq!(answer, format!("{MANY} {}\n", sha256(&sent)));
}

#[test]
fn a_large_transfer_both_ways_at_once_arrives_whole() {
    if !check::can_run() {
        return;
    }
    let mut stream = to("echo");
    let mut sending = stream.try_clone().unwrap();
    let sent = bytes();
    let expected = sha256(&sent);
    let sender = std::thread::spawn(move || {
        sending.write_all(&sent).unwrap();
        sending.shutdown(Shutdown::Write).unwrap();
    });
    let received = read_to_end(&mut stream).unwrap();
    sender.join().unwrap();
    assert_eq!((received.len(), sha256(&received)), (MANY, expected));
}

#[test]
fn a_reset_travels_both_ways() {
    if !check::can_run() {
        return;
    }
    for server_resets in [true, false] {
        let (client, server) = pair(b"hello\n");
        let (resets, mut sees) = if server_resets { (server, client) } else { (client, server) };
        set_socket_linger(&resets, Some(Duration::ZERO)).unwrap();
        drop(resets);
        let error = sees.read(&mut [0]).expect_err("an end, where there was a reset");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "the server reset: {server_resets}");
    }
}

#[test]
fn many_connections_at_once_are_each_their_own() {
    if !check::can_run() {
        return;
    }
    let target = address(&MESH, "echo", 7000).unwrap();
    let done = pod("client").enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let handshakes = Arc::new(Semaphore::new(AT_ONCE));
            let mut connecting = tokio::task::JoinSet::new();
            for _ in 0..PARALLEL {
                connecting.spawn(tokio::time::timeout(PATIENCE, greeted(target, handshakes.clone())));
            }
            let connected = connecting.join_all().await;
            let mut echoing = tokio::task::JoinSet::new();
            for (i, stream) in connected.into_iter().enumerate() {
                let stream = stream.expect("a connection in time").unwrap();
                echoing.spawn(tokio::time::timeout(PATIENCE, echo(stream, i)));
            }
            for answer in echoing.join_all().await {
                answer.expect("an answer in time").unwrap();
            }
        });
    });
    done.unwrap();
}

/// A connection over which a byte has gone there and back. A busy machine makes only so many handshakes within the
/// proxy's connect timeout, so they take turns.
async fn greeted(target: SocketAddr, handshakes: Arc<Semaphore>) -> std::io::Result<tokio::net::TcpStream> {
    let _one = handshakes.acquire().await;
    let mut stream = tokio::net::TcpStream::connect(target).await?;
    // No byte of a request: nothing is waited for to tell.
    stream.write_all(b"\0").await?;
    stream.read_exact(&mut [0]).await?;
    Ok(stream)
}

/// Sends what only this client sends, and wants nothing else back.
async fn echo(mut stream: tokio::net::TcpStream, i: usize) -> std::io::Result<()> {
    let sent = format!("this is client {i}\n").repeat(100);
    stream.write_all(sent.as_bytes()).await?;
    stream.shutdown().await?;
    let mut received = String::new();
    stream.read_to_string(&mut received).await?;
    if received == sent { Ok(()) } else { Err(std::io::Error::other(format!("{i} got {received:?}"))) }
}

#[test]
fn a_connection_that_cannot_be_made_is_reset_and_not_ended() {
    if !check::can_run() {
        return;
    }
    // Nothing listens in the one, and nothing at all is behind the other.
    for service in ["deaf", "nobody"] {
        let mut stream = to(service);
        stream.write_all(b"is anybody there\n").unwrap();
        let error = stream.read(&mut [0]).expect_err("an end, which would look like an answer");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{service}: {error}");
    }
}

#[test]
fn both_proxies_count_every_byte() {
    if !check::can_run() {
        return;
    }
    let (client, server) = (pod("counting-client"), pod("counting"));
    let mut stream = connect(&client, address(&MESH, "counting", 7000).unwrap()).unwrap();
    let sent: Vec<u8> = bytes().into_iter().take(100_000).collect();
    let bytes = 100_000.0;
    stream.write_all(&sent).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_end(&mut stream).unwrap(), sent);

    // Between the application and its proxy: exactly the application's bytes. Between the proxies there is TLS below what is
    // counted, and the transport header within it.
    let own = [("direction", "outbound"), ("peer", "src")];
    counted(&client, "tcp_read_bytes_total", &own, bytes).unwrap();
    counted(&client, "tcp_write_bytes_total", &own, bytes).unwrap();
    let app = [("direction", "inbound"), ("peer", "dst"), ("target_port", "7000")];
    counted(&server, "tcp_read_bytes_total", &app, bytes).unwrap();
    counted(&server, "tcp_write_bytes_total", &app, bytes).unwrap();
    let (to_server, from_client) = (
        [("direction", "outbound"), ("peer", "dst"), ("dst_service", "counting")],
        [("direction", "inbound"), ("peer", "src"), ("tls", "true")],
    );
    counted(&client, "tcp_read_bytes_total", &to_server, bytes).unwrap();
    counted(&server, "tcp_write_bytes_total", &from_client, bytes).unwrap();
    counted(&server, "tcp_read_bytes_total", &from_client, bytes).unwrap();
    for (pod, labels) in
        [(&client, &own[..]), (&client, &to_server[..]), (&server, &app[..]), (&server, &from_client[..])]
    {
        counted(pod, "tcp_open_total", labels, 1.0).unwrap();
        counted(pod, "tcp_close_total", labels, 1.0).unwrap();
        counted(pod, "tcp_open_connections", labels, 0.0).unwrap();
    }
    assert!(count(&client, "tcp_write_bytes_total", &to_server).unwrap() >= bytes);
}

fn pod(name: &str) -> PodRef<'static> {
    MESH.pod(SHOP, name).unwrap()
}

/// A connection of the client's to a Service on port 7000.
#[track_caller]
fn to(name: &str) -> TcpStream {
    connect(&pod("client"), address(&MESH, name, 7000).unwrap()).unwrap()
}

/// Both ends of a connection from the client to a server that is this test, after these first bytes of the client.
#[track_caller]
fn pair(first: &[u8]) -> (TcpStream, TcpStream) {
    // One server at a time listens on the port.
    static ONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let listener = listen(&pod("own-server"), 7000).unwrap();
    let mut client = to("own-server");
    client.write_all(first).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(read_until(&mut server, b"\n").unwrap(), first);
    (client, server)
}

/// Bytes without a pattern that a lost or doubled piece would not break.
fn bytes() -> Vec<u8> {
    (0..MANY as u64).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

fn sha256(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

//! Binds, accepts, limits, and says where a redirected connection was going.

use crate::{config::SocketConfig, connect, spare::Spare};
use remora_runtime::{metrics::Counter, room, tasks::Drain};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use std::{
    future::poll_fn,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tracing::warn;

/// Connections that the kernel completes before we accept them.
const BACKLOG: i32 = 4096;

/// Wait after a failed accept (file descriptors exhausted): the connection stays in the backlog.
pub const ACCEPT_AGAIN: Duration = Duration::from_millis(50);

/// A connection as it arrives.
pub struct Accepted {
    pub tcp: TcpStream,
    /// Who connected; not authenticated.
    pub client: SocketAddr,
    /// Where it was going before it was redirected to us.
    pub target: SocketAddr,
    /// Counts it among the connections served at once.
    pub permit: OwnedSemaphorePermit,
}

/// What bounds accepting.
pub struct Bounds {
    /// One for each connection served at once.
    pub permits: Arc<Semaphore>,
    pub spare: Arc<Spare>,
}

/// What accepting counts.
#[derive(Clone, Debug)]
pub struct Accepts {
    /// Had to wait because as many are served as may be.
    pub limited: Counter,
    /// Could not be made.
    pub failed: Counter,
}

/// Binds a listener; with `share`, several workers may bind the same address.
pub fn bind(addr: SocketAddr, share: bool) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if share {
        socket.set_reuse_port(true)?;
    }
    if addr.is_ipv6() {
        // The unspecified IPv6 address serves both families.
        socket.set_only_v6(!addr.ip().is_unspecified())?;
    }
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Where a connection was going before the redirect; its own local address if it was not redirected.
pub fn original_destination(tcp: &TcpStream) -> io::Result<SocketAddr> {
    let socket = SockRef::from(tcp);
    let local = unmapped(tcp.local_addr()?);
    let original = if local.is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
    match original {
        Ok(addr) => addr.as_socket().map(unmapped).ok_or_else(|| io::ErrorKind::AddrNotAvailable.into()),
        // Not in the connection table: nobody redirected it.
        Err(error) if error.raw_os_error() == Some(ENOENT) || error.raw_os_error() == Some(ENOPROTOOPT) => {
            Ok(local)
        }
        Err(error) => Err(error),
    }
}

const ENOENT: i32 = 2;
const ENOPROTOOPT: i32 = 92;

/// An IPv4 address that came over a dual-stack socket is an IPv4 address.
pub fn unmapped(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// Accepts until the drain begins, and hands every connection to `serve`, which must not wait.
pub async fn accept(
    listener: TcpListener,
    socket: SocketConfig,
    bounds: Bounds,
    drain: Drain,
    counts: Accepts,
    serve: impl Fn(Accepted),
) {
    let draining = drain.draining();
    tokio::pin!(draining);
    let mut failing = false;
    loop {
        if bounds.permits.available_permits() == 0 {
            counts.limited.inc();
        }
        // Waits before accepting: what is beyond the bound stays in the kernel's backlog.
        let accepted = tokio::select! {
            biased;
            () = &mut draining => return,
            accepted = next(&listener, &bounds) => accepted,
        };
        match accepted {
            Ok((tcp, client, permit)) => {
                failing = false;
                if !has_room() {
                    // A reset: nobody must take this for an answer.
                    let _ = SockRef::from(&tcp).set_linger(Some(Duration::ZERO));
                    continue;
                }
                let prepared =
                    connect::set_options(&tcp, socket.accept_keepalive, socket.accept_user_timeout)
                        .and_then(|()| original_destination(&tcp));
                match prepared {
                    Ok(target) => {
                        let client = unmapped(client);
                        serve(Accepted { tcp, client, target, permit });
                    }
                    Err(error) => {
                        warn!(%client, %error, "a connection was dropped: its original destination cannot be read");
                    }
                }
            }
            Err(error) => {
                counts.failed.inc();
                if !std::mem::replace(&mut failing, true) {
                    warn!(%error, "cannot accept connections; trying again, every 50 ms");
                }
                tokio::time::sleep(ACCEPT_AGAIN).await;
            }
        }
    }
}

/// What a connection takes before a byte of it is read, in bytes: roughly, and rather too much.
const CONNECTION: usize = 8 * 1024;

/// Whether memory is left to look at a connection at all. Where it is only short, the connection is served, and what
/// speaks HTTP on it is told.
fn has_room() -> bool {
    room::took(CONNECTION).is_ok()
}

/// Whether the process or the machine has no descriptor left.
pub fn is_out_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(OUT_OF_DESCRIPTORS | ENFILE))
}

/// `EMFILE`.
pub const OUT_OF_DESCRIPTORS: i32 = 24;
const ENFILE: i32 = 23;

async fn next(
    listener: &TcpListener,
    bounds: &Bounds,
) -> io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let permit = bounds.permits.clone().acquire_owned().await.map_err(io::Error::other)?;
    let (tcp, client) = poll_fn(|cx| bounds.spare.after_ours(|| listener.poll_accept(cx))).await?;
    Ok((tcp, client, permit))
}

/// Whether an address is the machine itself.
pub fn is_loopback(addr: SocketAddr) -> bool {
    match addr.ip().to_canonical() {
        std::net::IpAddr::V4(ip) => ip == Ipv4Addr::LOCALHOST || ip.is_loopback(),
        std::net::IpAddr::V6(ip) => ip == Ipv6Addr::LOCALHOST,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_connection_that_nobody_redirected_was_going_here() {
        let listener = TcpListener::from_std(bind(([127, 0, 0, 1], 0).into(), false).unwrap()).unwrap();
        let addr = listener.local_addr().unwrap();
        let _client = TcpStream::connect(addr).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        assert_eq!(original_destination(&accepted).unwrap(), addr);
    }

    #[test]
    fn a_mapped_address_is_the_address() {
        let mapped: SocketAddr = "[::ffff:10.0.0.1]:80".parse().unwrap();
        assert_eq!(unmapped(mapped), "10.0.0.1:80".parse().unwrap());
    }
}

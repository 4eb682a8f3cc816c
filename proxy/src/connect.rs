//! Dials: an address, or an endpoint with all that belongs to it (mTLS, the transport header), within one deadline.

use crate::{config::SocketConfig, fault::Fault};
use socket2::{SockRef, TcpKeepalive};
use std::{io, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{net::TcpStream, time::timeout};

/// Dials plain TCP within `limit`.
pub async fn tcp(
    addr: SocketAddr,
    limit: Duration,
    keepalive: Option<Duration>,
    user_timeout: Option<Duration>,
) -> Result<TcpStream, Fault> {
    let dialled = timeout(limit, TcpStream::connect(addr)).await;
    let stream = dialled
        .map_err(|_elapsed| Fault::ConnectTimeout { addr, limit })?
        .map_err(|error| Fault::Connect { addr, source: Arc::new(error) })?;
    set_options(&stream, keepalive, user_timeout)
        .map_err(|error| Fault::Connect { addr, source: Arc::new(error) })?;
    Ok(stream)
}

/// The options of a dialled connection.
pub fn dialled(socket: &SocketConfig) -> (Option<Duration>, Option<Duration>) {
    (socket.connect_keepalive, socket.connect_user_timeout)
}

/// Sets what every connection of the proxy has: no delay of small writes, and the configured liveness checks.
pub fn set_options(
    stream: &TcpStream,
    keepalive: Option<Duration>,
    user_timeout: Option<Duration>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    if let Some(idle) = keepalive {
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(idle))?;
    }
    if user_timeout.is_some() {
        socket.set_tcp_user_timeout(user_timeout)?;
    }
    Ok(())
}

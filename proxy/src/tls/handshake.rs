//! TLS handshakes by rustls, over a socket. What follows one is a [`Session`]'s.

use super::{
    codec::{Kernel, Records},
    session::Session,
};
use crate::stream::Rewound;
use rustls::{
    ClientConfig, CommonState, Error, ServerConfig,
    client::{ClientConnectionData, UnbufferedClientConnection},
    pki_types::ServerName,
    server::{ServerConnectionData, UnbufferedServerConnection},
    unbuffered::{ConnectionState, EncodeError, UnbufferedStatus},
};
use std::{io, ops::Deref, sync::Arc};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// Read at once, in bytes: most flights fit.
const READ: usize = 4096;
/// What may wait for being a whole flight, in bytes: rustls takes handshake messages of 64 KiB, in records.
const MOST: usize = 1 << 17;

/// A handshake that is done: what was agreed can be asked of it.
pub struct Done<C, Io = Rewound> {
    connection: C,
    io: Io,
    /// Came with the end of the handshake: sealed, and not yet whole.
    sealed: Vec<u8>,
    /// The same, opened.
    plain: Vec<u8>,
    /// The peer has said that it sends no more.
    ended: bool,
}

/// Asks as a client for a session with `name`.
pub async fn client<Io: AsyncRead + AsyncWrite + Unpin>(
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    io: Io,
) -> io::Result<Done<UnbufferedClientConnection, Io>> {
    run(UnbufferedClientConnection::new(config, name).map_err(invalid)?, io).await
}

/// Answers a client.
pub async fn server<Io: AsyncRead + AsyncWrite + Unpin>(
    config: Arc<ServerConfig>,
    io: Io,
) -> io::Result<Done<UnbufferedServerConnection, Io>> {
    run(UnbufferedServerConnection::new(config).map_err(invalid)?, io).await
}

/// What differs between the two sides.
pub trait Side {
    type Data;
    fn process<'c, 'i>(&'c mut self, sealed: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
    fn into_kernel(self) -> Result<(rustls::ExtractedSecrets, Kernel), Error>;
}

impl Side for UnbufferedClientConnection {
    type Data = ClientConnectionData;

    fn process<'c, 'i>(&'c mut self, sealed: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(sealed)
    }

    fn into_kernel(self) -> Result<(rustls::ExtractedSecrets, Kernel), Error> {
        let (secrets, kernel) = self.dangerous_into_kernel_connection()?;
        Ok((secrets, Kernel::Client(kernel)))
    }
}

impl Side for UnbufferedServerConnection {
    type Data = ServerConnectionData;

    fn process<'c, 'i>(&'c mut self, sealed: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(sealed)
    }

    fn into_kernel(self) -> Result<(rustls::ExtractedSecrets, Kernel), Error> {
        let (secrets, kernel) = self.dangerous_into_kernel_connection()?;
        Ok((secrets, Kernel::Server(kernel)))
    }
}

impl<C: Side, Io> Done<C, Io> {
    /// What was agreed, and who the peer is.
    pub fn state(&self) -> &CommonState
    where
        C: Deref<Target: Deref<Target = CommonState>>,
    {
        &self.connection
    }

    /// The connection's two halves, and what has come of the peer's bytes: the handshake is not needed any more.
    pub fn records(self) -> io::Result<(Io, Records, Vec<u8>)> {
        let (secrets, kernel) = self.connection.into_kernel().map_err(invalid)?;
        let records = Records::new(secrets, kernel, self.sealed, self.ended).map_err(invalid)?;
        Ok((self.io, records, self.plain))
    }
}

impl<C: Side> Done<C> {
    /// The session over the socket.
    pub(super) fn session(self) -> io::Result<Session> {
        let (io, records, plain) = self.records()?;
        Ok(Session::new(io, records, plain))
    }
}

/// What rustls has left to do before it reads on.
enum Step {
    Again,
    Write,
    Read,
    Done,
}

async fn run<C: Side, Io: AsyncRead + AsyncWrite + Unpin>(
    mut connection: C,
    mut io: Io,
) -> io::Result<Done<C, Io>> {
    let (mut sealed, mut outgoing, mut plain) = (Vec::new(), Vec::new(), Vec::new());
    let (mut ended, mut failed) = (false, None);
    loop {
        let UnbufferedStatus { discard, state, .. } = connection.process(&mut sealed);
        let step = match state {
            Ok(ConnectionState::EncodeTlsData(mut data)) => {
                encode(&mut outgoing, |out| data.encode(out))?;
                Step::Again
            }
            Ok(ConnectionState::TransmitTlsData(data)) => {
                data.done();
                Step::Write
            }
            Ok(ConnectionState::BlockedHandshake) => Step::Read,
            Ok(ConnectionState::WriteTraffic(_)) => Step::Done,
            Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                while let Some(record) = traffic.next_record() {
                    plain.extend_from_slice(record.map_err(invalid)?.payload);
                }
                Step::Again
            }
            Ok(ConnectionState::PeerClosed) => {
                ended = true;
                Step::Again
            }
            // There is no early data with us, and nothing of ours has closed it.
            Ok(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) if failed.is_none() => {
                // There may be an alert to send.
                failed = Some(error);
                Step::Again
            }
            Err(_) => Step::Write,
        };
        sealed.drain(..discard.min(sealed.len()));
        match step {
            Step::Again => {}
            Step::Write => {
                let written = io.write_all(&outgoing).await;
                if let Some(error) = failed {
                    return Err(invalid(error));
                }
                written?;
                outgoing.clear();
            }
            Step::Read => {
                if sealed.len() >= MOST {
                    return Err(invalid(Error::PeerSentOversizedRecord));
                }
                sealed.reserve(READ);
                if io.read_buf(&mut sealed).await? == 0 {
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "tls handshake eof"));
                }
            }
            Step::Done => return Ok(Done { connection, io, sealed, plain, ended }),
        }
    }
}

/// Puts what rustls wants to send behind what waits.
fn encode(
    outgoing: &mut Vec<u8>,
    mut data: impl FnMut(&mut [u8]) -> Result<usize, EncodeError>,
) -> io::Result<()> {
    let before = outgoing.len();
    let mut room = 1024;
    loop {
        outgoing.resize(before + room, 0);
        match data(outgoing.get_mut(before..).unwrap_or_default()) {
            Ok(written) => {
                outgoing.truncate(before + written);
                return Ok(());
            }
            Err(EncodeError::InsufficientSize(size)) if size.required_size > room => {
                room = size.required_size;
            }
            Err(error) => return Err(io::Error::other(error)),
        }
    }
}

fn invalid(error: Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

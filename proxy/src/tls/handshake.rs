//! TLS handshakes by rustls, over a socket. What follows one is a [`TlsStream`]'s.

use super::{
    codec::{Kernel, Records},
    stream::TlsStream,
};
use crate::stream::Rewound;
use rustls::{
    ClientConfig, CommonState, Error, ServerConfig,
    client::{ClientConnectionData, UnbufferedClientConnection},
    pki_types::ServerName,
    server::{ServerConnectionData, UnbufferedServerConnection},
    unbuffered::{ConnectionState, EncodeError, UnbufferedStatus},
};
use std::{io, sync::Arc};
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

/// Asks as a client for a connection with `name`. Without a limit of time: that is the caller's.
///
/// # Errors
/// rustls's, within `InvalidData`; or the socket's, `UnexpectedEof` if it ended before the handshake did.
pub async fn client<Io: AsyncRead + AsyncWrite + Unpin>(
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    io: Io,
) -> io::Result<Done<UnbufferedClientConnection, Io>> {
    run(UnbufferedClientConnection::new(config, name).map_err(invalid)?, io).await
}

/// Answers a client, with the errors of [`client`] and as little a limit.
pub async fn server<Io: AsyncRead + AsyncWrite + Unpin>(
    config: Arc<ServerConfig>,
    io: Io,
) -> io::Result<Done<UnbufferedServerConnection, Io>> {
    run(UnbufferedServerConnection::new(config).map_err(invalid)?, io).await
}

/// What differs between the two sides.
pub trait Side {
    /// rustls's own mark of the side.
    type Data;
    /// Looks at what has come, and says what is to be done.
    fn process<'c, 'i>(&'c mut self, sealed: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
    /// What both sides have.
    fn state(&self) -> &CommonState;
    /// The keys, and what rustls keeps.
    ///
    /// # Errors
    /// The handshake is not over, or the configuration does not give out secrets.
    fn into_kernel(self) -> Result<(rustls::ExtractedSecrets, Kernel), Error>;
}

impl Side for UnbufferedClientConnection {
    type Data = ClientConnectionData;

    fn process<'c, 'i>(&'c mut self, sealed: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(sealed)
    }

    fn state(&self) -> &CommonState {
        self
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

    fn state(&self) -> &CommonState {
        self
    }

    fn into_kernel(self) -> Result<(rustls::ExtractedSecrets, Kernel), Error> {
        let (secrets, kernel) = self.dangerous_into_kernel_connection()?;
        Ok((secrets, Kernel::Server(kernel)))
    }
}

impl<C: Side, Io> Done<C, Io> {
    /// What was agreed, and who the peer is.
    pub fn state(&self) -> &CommonState {
        self.connection.state()
    }

    /// The connection's two halves, and what has come of the peer's bytes: the handshake is not needed any more.
    pub fn records(self) -> io::Result<(Io, Records, Vec<u8>)> {
        let (secrets, kernel) = self.connection.into_kernel().map_err(invalid)?;
        let records = Records::new(secrets, kernel, self.sealed, self.ended).map_err(invalid)?;
        Ok((self.io, records, self.plain))
    }
}

impl<C: Side> Done<C> {
    /// The stream over the socket.
    pub(super) fn stream(self) -> io::Result<TlsStream> {
        let (io, records, plain) = self.records()?;
        Ok(TlsStream::new(io, records, plain))
    }
}

/// What rustls has left to do before it reads on.
enum Step {
    Again,
    Write,
    Read,
    Done,
    Fail(Error),
}

async fn run<C: Side, Io: AsyncRead + AsyncWrite + Unpin>(
    mut connection: C,
    mut io: Io,
) -> io::Result<Done<C, Io>> {
    let (mut sealed, mut outgoing, mut plain) = (Vec::new(), Vec::new(), Vec::new());
    let mut ended = false;
    loop {
        let UnbufferedStatus { discard, state, .. } = connection.process(&mut sealed);
        let step = match state {
            Ok(ConnectionState::EncodeTlsData(mut data)) => {
                encode(&mut outgoing, |out| data.encode(out))?;
                Step::Again
            }
            Err(error) => Step::Fail(error),
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
        };
        sealed.drain(..discard.min(sealed.len()));
        match step {
            // A server may write before the client has shown who it is; we do not.
            Step::Done if connection.state().is_handshaking() => read(&mut io, &mut sealed).await?,
            Step::Again => {}
            Step::Write => {
                io.write_all(&outgoing).await?;
                outgoing.clear();
            }
            Step::Fail(error) => {
                // Nothing of the peer's is looked at any more: while rustls has something to say it says that first.
                while connection.state().wants_write()
                    && let Ok(ConnectionState::EncodeTlsData(mut data)) =
                        connection.process(&mut sealed).state
                {
                    encode(&mut outgoing, |out| data.encode(out))?;
                }
                // The peer may have gone.
                let _ = io.write_all(&outgoing).await;
                return Err(invalid(error));
            }
            Step::Read => read(&mut io, &mut sealed).await?,
            Step::Done => {
                // An idle connection holds what it needs.
                sealed.shrink_to_fit();
                return Ok(Done { connection, io, sealed, plain, ended });
            }
        }
    }
}

/// Reads what comes next, behind what is not yet whole.
async fn read<Io: AsyncRead + Unpin>(io: &mut Io, sealed: &mut Vec<u8>) -> io::Result<()> {
    if sealed.len() >= MOST {
        return Err(invalid(Error::PeerSentOversizedRecord));
    }
    sealed.reserve(READ);
    match io.read_buf(sealed).await? {
        0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "tls handshake eof")),
        _ => Ok(()),
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

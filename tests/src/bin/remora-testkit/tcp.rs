//! Servers and a client that see bytes and nothing else.

use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::answer::Received;

/// Bytes read at once.
const BUFFER: usize = 64 * 1024;

/// Speaks first, then sends everything back.
pub(crate) async fn greet(mut stream: TcpStream, greeting: String) -> Result<()> {
    stream.write_all(greeting.as_bytes()).await?;
    echo(stream).await
}

/// Sends everything back; ends when the client has ended and has got everything.
pub(crate) async fn echo(mut stream: TcpStream) -> Result<()> {
    copy_back(&mut stream).await
}

/// [`echo`] on a connection that was something else before.
pub(crate) async fn copy_back(stream: &mut TcpStream) -> Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = stream.read(&mut buffer).await?;
        if read == 0 {
            return Ok(stream.shutdown().await?);
        }
        stream.write_all(buffer.get(..read).unwrap_or_default()).await?;
    }
}

/// Says how much came and what it was, after the client's end and not before.
pub(crate) async fn digest(mut stream: TcpStream) -> Result<()> {
    let mut received = Received::default();
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = stream.read(&mut buffer).await?;
        if read == 0 {
            break;
        }
        received.add(buffer.get(..read).unwrap_or_default());
    }
    stream.write_all(format!("{} {}\n", received.bytes, received.sha256()).as_bytes()).await?;
    Ok(stream.shutdown().await?)
}

/// A client that sends exactly what it is given.
#[derive(clap::Args)]
pub(crate) struct Raw {
    /// HOST:PORT.
    addr: String,
    /// Bytes per segment; 0 sends everything at once.
    #[arg(long, default_value_t = 0)]
    segment: usize,
    /// Milliseconds between segments.
    #[arg(long, default_value_t = 0)]
    pause: u64,
    /// Do not end the sending side after the last byte.
    #[arg(long)]
    keep_open: bool,
    /// Leave after so many milliseconds without anything from the server.
    #[arg(long, default_value_t = 10_000)]
    patience: u64,
}

impl Raw {
    /// Sends standard input; prints what comes until the server ends or is silent for too long.
    pub(crate) async fn run(self) -> Result<()> {
        let mut data = Vec::new();
        std::io::Read::read_to_end(&mut std::io::stdin(), &mut data).context("reading standard input")?;
        let stream = TcpStream::connect(&self.addr).await.with_context(|| self.addr.clone())?;
        // Each segment is sent as it is.
        stream.set_nodelay(true)?;
        let (mut from, mut to) = stream.into_split();
        let send = async {
            let size = if self.segment == 0 { data.len().max(1) } else { self.segment };
            for segment in data.chunks(size) {
                to.write_all(segment).await?;
                tokio::time::sleep(Duration::from_millis(self.pause)).await;
            }
            if !self.keep_open {
                to.shutdown().await?;
            }
            anyhow::Ok(())
        };
        let receive = async {
            let mut buffer = vec![0; BUFFER];
            let patience = Duration::from_millis(self.patience);
            loop {
                let Ok(read) = tokio::time::timeout(patience, from.read(&mut buffer)).await else {
                    return Ok(());
                };
                let read = read.context("receiving")?;
                if read == 0 {
                    return Ok(());
                }
                let mut out = std::io::stdout();
                std::io::Write::write_all(&mut out, buffer.get(..read).unwrap_or_default())?;
                std::io::Write::flush(&mut out)?;
            }
        };
        let (sent, received) = tokio::join!(send, receive);
        received.and(sent)
    }
}

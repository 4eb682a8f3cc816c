//! HTTP/1.1 clients, as cheap as they can be: one write per request, no allocation between two requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::{Counted, LIMIT, Target};
use crate::node::PodRef;
use crate::sandbox::join_net;

/// Bytes that are read at once, at least and at most. The head of an answer has to fit into the least.
const READ: (usize, usize) = (16 * 1024, 256 * 1024);
/// Fields of an answer's head.
const FIELDS: usize = 64;
/// Connections that are opened at once by [`Held`].
const OPENED_AT_ONCE: usize = 16;

/// Whether the connection may be used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    Keep,
    Close,
}

/// One request after the other on one connection. A connection that failed is replaced.
pub(super) async fn kept(target: Arc<Target>, counted: Arc<Counted>) {
    let request = request(&target, After::Keep);
    while counted.another() {
        let mut connection = match Connection::open(&target).await {
            Ok(connection) => connection,
            Err(error) => {
                counted.failed(&error).await;
                continue;
            }
        };
        loop {
            let began = Instant::now();
            match connection.ask(&request, &target, &counted).await {
                Ok(()) => counted.answered(began),
                Err(error) => {
                    counted.failed(&error).await;
                    break;
                }
            }
            if !counted.another() {
                return;
            }
        }
    }
}

/// Each request on a connection of its own, which the server closes.
pub(super) async fn fresh(target: Arc<Target>, counted: Arc<Counted>) {
    let request = request(&target, After::Close);
    while counted.another() {
        let began = Instant::now();
        let asked = async {
            let mut connection = Connection::open(&target).await?;
            connection.ask(&request, &target, &counted).await?;
            connection.until_end().await
        };
        match asked.await {
            Ok(()) => counted.answered(began),
            Err(error) => counted.failed(&error).await,
        }
    }
}

fn request(target: &Target, after: After) -> Vec<u8> {
    let close = if after == After::Close { "Connection: close\r\n" } else { "" };
    format!("GET {} HTTP/1.1\r\nHost: {}\r\n{close}\r\n", target.path, target.host).into_bytes()
}

struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    async fn open(target: &Target) -> Result<Self> {
        let stream = TcpStream::connect(target.addr).await.context("connecting")?;
        stream.set_nodelay(true)?;
        let (least, most) = READ;
        let room = usize::try_from(target.body).unwrap_or(most).clamp(least, most);
        Ok(Self { stream, buffer: vec![0; room] })
    }

    /// Sends the request and reads its answer to the last byte.
    async fn ask(&mut self, request: &[u8], target: &Target, counted: &Counted) -> Result<()> {
        self.stream.write_all(request).await.context("sending the request")?;
        let (head, mut read) = self.head(target.body).await?;
        let mut got = (read - head) as u64;
        counted.received(read - head);
        while got < target.body && !counted.stopped() {
            read = self.stream.read(&mut self.buffer).await.context("reading the body")?;
            if read == 0 {
                bail!("the answer ended after {got} bytes of {}", target.body);
            }
            got += read as u64;
            counted.received(read);
        }
        if got > target.body {
            bail!("the answer has {got} bytes, more than {}", target.body);
        }
        Ok(())
    }

    /// Reads until the head is complete: how long it is, and how many bytes have been read.
    async fn head(&mut self, body: u64) -> Result<(usize, usize)> {
        let mut filled = 0;
        loop {
            let room = self.buffer.get_mut(filled..).unwrap_or_default();
            let read = self.stream.read(room).await.context("reading the answer")?;
            if read == 0 {
                bail!("the connection ended before an answer came, or its head is too long");
            }
            filled += read;
            if let Some(head) = parse(self.buffer.get(..filled).unwrap_or_default(), body)? {
                return Ok((head, filled));
            }
        }
    }

    /// The server ends the connection, and says nothing more before.
    async fn until_end(&mut self) -> Result<()> {
        match self.stream.read(&mut self.buffer).await.context("waiting for the connection's end")? {
            0 => Ok(()),
            read => bail!("{read} bytes came after the answer"),
        }
    }

    /// Whether the other end has neither closed it nor said anything.
    fn is_idle(&self) -> bool {
        let mut byte = [0];
        matches!(self.stream.try_read(&mut byte), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
    }
}

/// The length of a head that is complete, has status 200 and announces `body` bytes.
fn parse(bytes: &[u8], body: u64) -> Result<Option<usize>> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS];
    let mut response = httparse::Response::new(&mut fields);
    let httparse::Status::Complete(head) = response.parse(bytes).context("the answer is not HTTP/1")? else {
        return Ok(None);
    };
    let told = bytes.get(head..).map(String::from_utf8_lossy).unwrap_or_default();
    match response.code {
        Some(200) => {}
        code => bail!("status {}: {}", code.unwrap_or_default(), told.trim()),
    }
    let length = response.headers.iter().find(|field| field.name.eq_ignore_ascii_case("content-length"));
    let length = length.and_then(|field| std::str::from_utf8(field.value).ok()?.parse::<u64>().ok());
    match length {
        Some(length) if length == body => Ok(Some(head)),
        Some(length) => bail!("the answer announces {length} bytes, not {body}"),
        None => bail!("the answer does not announce its length"),
    }
}

/// Connections that were asked one thing each and are now kept, by a thread within a pod's network.
pub struct Held {
    close: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Held {
    /// Opens so many connections and asks once on each.
    ///
    /// # Errors
    /// The first failure: a figure per connection means nothing if some are missing.
    pub fn open(pod: &PodRef<'_>, target: Target, connections: usize) -> Result<Self> {
        let sandbox = pod.sandbox()?;
        let (close, closed) = oneshot::channel();
        let (opened, are_open) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new().name("held".into()).spawn(move || {
            join_net(sandbox)?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let held = open_all(Arc::new(target), connections).await;
                let held = match held {
                    Ok(held) => held,
                    Err(error) => return opened.send(Err(error)).context("nobody waits any more"),
                };
                opened.send(Ok(())).context("nobody waits any more")?;
                // Dropped or told: either way it is over.
                let _ = closed.await;
                let lost = held.iter().filter(|connection| !connection.is_idle()).count();
                if lost > 0 {
                    bail!("{lost} of {connections} idle connections were closed by the other end");
                }
                Ok(())
            })
        })?;
        are_open.recv().unwrap_or_else(|_| Err(anyhow!("the thread that opens connections ended")))?;
        Ok(Self { close: Some(close), thread: Some(thread) })
    }

    /// Closes them all.
    ///
    /// # Errors
    /// If some were closed already.
    pub fn close(mut self) -> Result<()> {
        drop(self.close.take());
        match self.thread.take() {
            Some(thread) => thread.join().map_err(|_| anyhow!("the thread of held connections panicked"))?,
            None => Ok(()),
        }
    }
}

async fn open_all(target: Arc<Target>, connections: usize) -> Result<Vec<Connection>> {
    let left = Arc::new(AtomicUsize::new(connections));
    let mut openers = JoinSet::new();
    for _ in 0..OPENED_AT_ONCE {
        let (target, left) = (target.clone(), left.clone());
        openers.spawn(async move {
            let request = request(&target, After::Keep);
            let counted = Counted::limited(u64::MAX);
            let mut opened = Vec::new();
            let one_less = |left: usize| left.checked_sub(1);
            while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok() {
                let mut connection = Connection::open(&target).await?;
                let asked = tokio::time::timeout(LIMIT, connection.ask(&request, &target, &counted)).await;
                asked.context("no answer in time")??;
                // Thousands of these are held: their memory is not what is measured, but it need not be large.
                connection.buffer = Vec::new();
                opened.push(connection);
            }
            anyhow::Ok(opened)
        });
    }
    let mut held = Vec::new();
    while let Some(opened) = openers.join_next().await {
        held.append(&mut opened.context("a client panicked")??);
    }
    Ok(held)
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn only_the_answer_that_has_to_come_is_taken() {
        let answer = |status: &str, length: &str| format!("HTTP/1.1 {status}\r\nX: y\r\n{length}\r\nbody");
        let head = |text: &str| parse(text.as_bytes(), 200).map_err(|error| error.to_string());
        let good = answer("200 OK", "content-length: 200\r\n");
        assert_eq!(head(&good), Ok(Some(good.len() - 4)));
        assert_eq!(head("HTTP/1.1 200 OK\r\nContent-Le"), Ok(None));
        for (text, expected) in [
            (answer("503 Unavailable", "content-length: 200\r\n"), "status 503: body"),
            (answer("200 OK", "content-length: 4\r\n"), "the answer announces 4 bytes, not 200"),
            (answer("200 OK", "transfer-encoding: chunked\r\n"), "the answer does not announce its length"),
            ("SSH-2.0\r\n\r\n".to_owned(), "the answer is not HTTP/1"),
        ] {
            assert_eq!(head(&text), Err(expected.to_owned()), "{text}");
        }
    }
}

//! HTTP/1 by hand over `httparse`: a library would hide the case, the order and the framing that a proxy must keep.

use anyhow::{Context as _, Result, bail};
use bytes::{Buf as _, BytesMut};
use std::fmt::Write as _;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::answer::{self, Answer, Received, Told};
use crate::tcp;

/// Bytes of a head, and of the size line of a chunk or the trailers.
const HEAD: usize = 256 * 1024;
const HEADERS: usize = 128;

type Headers = Vec<(String, String)>;

struct Head {
    method: String,
    target: String,
    old: bool,
    headers: Headers,
}

struct Connection {
    stream: TcpStream,
    /// Read and not yet used.
    buffer: BytesMut,
    number: u64,
    requests: u64,
}

/// Serves requests until either side ends the connection.
pub(crate) async fn serve(stream: TcpStream, buffer: BytesMut, number: u64) -> Result<()> {
    let mut connection = Connection { stream, buffer, number, requests: 0 };
    while let Some(head) = connection.head().await? {
        let keep = connection.answer(&head).await?;
        connection.requests += 1;
        if !keep {
            break;
        }
    }
    Ok(connection.stream.shutdown().await?)
}

impl Head {
    /// The value of the first header of this name.
    fn get(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(found, _)| found.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    fn says(&self, name: &str, token: &str) -> bool {
        self.get(name).is_some_and(|value| value.to_ascii_lowercase().contains(token))
    }

    /// Whether the connection may be used again (RFC 9112 section 9.3).
    fn keeps(&self) -> bool {
        if self.old { self.says("connection", "keep-alive") } else { !self.says("connection", "close") }
    }
}

impl Connection {
    async fn more(&mut self) -> Result<bool> {
        if self.buffer.len() > HEAD {
            bail!("more than {HEAD} bytes of head");
        }
        Ok(self.stream.read_buf(&mut self.buffer).await? > 0)
    }

    /// The next request's head; nothing at the end of the connection.
    async fn head(&mut self) -> Result<Option<Head>> {
        loop {
            let mut headers = [httparse::EMPTY_HEADER; HEADERS];
            let mut request = httparse::Request::new(&mut headers);
            if let httparse::Status::Complete(length) =
                request.parse(&self.buffer).context("reading a head")?
            {
                let head = Head {
                    method: request.method.unwrap_or_default().into(),
                    target: request.path.unwrap_or_default().into(),
                    old: request.version == Some(0),
                    headers: owned(request.headers),
                };
                self.buffer.advance(length);
                return Ok(Some(head));
            }
            if !self.more().await? {
                return if self.buffer.is_empty() {
                    Ok(None)
                } else {
                    bail!("the client ended within a head")
                };
            }
        }
    }

    async fn body(&mut self, head: &Head) -> Result<Received> {
        if head.says("expect", "100-continue") {
            self.stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        let mut received = Received::default();
        if head.says("transfer-encoding", "chunked") {
            self.chunked(&mut received).await?;
        } else if let Some(length) = head.get("content-length") {
            self.take(length.trim().parse().context("content-length")?, &mut received).await?;
        }
        Ok(received)
    }

    async fn chunked(&mut self, received: &mut Received) -> Result<()> {
        loop {
            let parsed = httparse::parse_chunk_size(&self.buffer);
            match parsed.map_err(|_| anyhow::anyhow!("an invalid chunk size"))? {
                httparse::Status::Complete((length, 0)) => {
                    self.buffer.advance(length);
                    return self.trailers(received).await;
                }
                httparse::Status::Complete((length, size)) => {
                    self.buffer.advance(length);
                    self.take(size, received).await?;
                    self.take(2, &mut Received::default()).await?;
                }
                httparse::Status::Partial => {
                    if !self.more().await? {
                        bail!("the client ended within a chunked body");
                    }
                }
            }
        }
    }

    async fn trailers(&mut self, received: &mut Received) -> Result<()> {
        loop {
            let mut headers = [httparse::EMPTY_HEADER; HEADERS];
            match httparse::parse_headers(&self.buffer, &mut headers).context("reading trailers")? {
                httparse::Status::Complete((length, headers)) => {
                    received.trailers = owned(headers);
                    self.buffer.advance(length);
                    return Ok(());
                }
                httparse::Status::Partial => {
                    if !self.more().await? {
                        bail!("the client ended within the trailers");
                    }
                }
            }
        }
    }

    /// The next bytes of a body.
    async fn take(&mut self, mut length: u64, received: &mut Received) -> Result<()> {
        while length > 0 {
            if self.buffer.is_empty() {
                self.buffer.reserve(64 * 1024);
                if self.stream.read_buf(&mut self.buffer).await? == 0 {
                    bail!("the client ended {length} bytes before the end of its body");
                }
            }
            let now = self.buffer.len().min(usize::try_from(length).unwrap_or(usize::MAX));
            received.add(&self.buffer.split_to(now));
            length -= now as u64;
        }
        Ok(())
    }

    /// Answers a request. Whether another may follow.
    async fn answer(&mut self, head: &Head) -> Result<bool> {
        if head.method == "CONNECT" {
            self.write("HTTP/1.1 200 Tunnel made", &[]).await?;
            return self.echo().await;
        }
        let answer = Answer::to(&head.target).after_others(&head.target);
        match answer {
            Answer::Upgrade if head.says("connection", "upgrade") => {
                let mut text =
                    "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"
                        .to_owned();
                text.push_str("welcome\n");
                self.stream.write_all(text.as_bytes()).await?;
                return self.echo().await;
            }
            Answer::Early => {
                self.write(
                    "HTTP/1.1 413 Content Too Large",
                    &[("Content-Length", "0"), ("Connection", "close")],
                )
                .await?;
                // Read, so that the answer is not lost in a reset; the client may have gone.
                let _ = self.body(head).await;
                return Ok(false);
            }
            Answer::Reset => {
                self.stream.set_zero_linger()?;
                bail!("reset, as asked");
            }
            _ => {}
        }
        let received = self.body(head).await?;
        match answer {
            Answer::Status(status) => self.status(head, status).await?,
            Answer::Chunked(count, pause) => self.chunks(head, count, pause).await?,
            Answer::Trailers => self.with_trailers(head).await?,
            Answer::Bytes(length) => self.bytes(head, length).await?,
            Answer::Old => {
                self.write("HTTP/1.0 200 OK", &[("Content-Type", "text/plain")]).await?;
                self.stream.write_all(b"until the end\n").await?;
                return Ok(false);
            }
            Answer::Close => {
                self.write("HTTP/1.1 200 OK", &[("Content-Length", "4"), ("Connection", "close")]).await?;
                self.stream.write_all(b"bye\n").await?;
                return Ok(false);
            }
            Answer::Cut => {
                self.write("HTTP/1.1 200 OK", &[("Content-Length", "1000")]).await?;
                self.stream.write_all(&[b'x'; 500]).await?;
                return Ok(false);
            }
            Answer::Slow(pause) => {
                tokio::time::sleep(pause).await;
                self.tell(head, &received).await?;
            }
            _ => self.tell(head, &received).await?,
        }
        Ok(head.keeps())
    }

    async fn tell(&mut self, head: &Head, received: &Received) -> Result<()> {
        let told = Told {
            server: answer::host_name(),
            connection: self.number,
            request: self.requests,
            version: if head.old { "HTTP/1.0" } else { "HTTP/1.1" },
            method: head.method.clone(),
            target: head.target.clone(),
            headers: head.headers.clone(),
            body: received.start(),
            body_bytes: received.bytes,
            body_sha256: received.sha256(),
            trailers: received.trailers.clone(),
        };
        let json = told.json();
        let length = json.len().to_string();
        let headers = [
            ("Content-Type", "application/json"),
            ("X-Case-KEPT", "Yes"),
            ("Content-Length", length.as_str()),
            ("Connection", if head.keeps() { "keep-alive" } else { "close" }),
        ];
        self.write("HTTP/1.1 200 OK", &headers).await?;
        if head.method != "HEAD" {
            self.stream.write_all(&json).await?;
        }
        Ok(())
    }

    async fn status(&mut self, head: &Head, status: u16) -> Result<()> {
        let without_length = status < 200 || status == 204 || status == 304;
        let length: &[(&str, &str)] = if without_length { &[] } else { &[("Content-Length", "0")] };
        let close: &[(&str, &str)] = if head.keeps() { &[] } else { &[("Connection", "close")] };
        self.write(&format!("HTTP/1.1 {status} As-Asked"), &[length, close].concat()).await
    }

    async fn chunks(&mut self, head: &Head, count: u64, pause: Duration) -> Result<()> {
        self.write("HTTP/1.1 200 OK", &[("Transfer-Encoding", "chunked")]).await?;
        if head.method == "HEAD" {
            return Ok(());
        }
        for i in 0..count {
            tokio::time::sleep(pause).await;
            let chunk = format!("chunk {i}\n");
            self.stream.write_all(format!("{:x}\r\n{chunk}\r\n", chunk.len()).as_bytes()).await?;
        }
        Ok(self.stream.write_all(b"0\r\n\r\n").await?)
    }

    async fn with_trailers(&mut self, head: &Head) -> Result<()> {
        let headers = [("Transfer-Encoding", "chunked"), ("Trailer", "X-Sum, X-Last")];
        self.write("HTTP/1.1 200 OK", &headers).await?;
        if head.method == "HEAD" {
            return Ok(());
        }
        Ok(self.stream.write_all(b"5\r\nbody\n\r\n0\r\nX-Sum: 5\r\nX-Last: yes\r\n\r\n").await?)
    }

    async fn bytes(&mut self, head: &Head, length: u64) -> Result<()> {
        let headers = [("Content-Length", length.to_string()), ("X-Sha256", answer::digest(length))];
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        self.write("HTTP/1.1 200 OK", &headers).await?;
        if head.method == "HEAD" {
            return Ok(());
        }
        for (at, length) in answer::pieces(length) {
            self.stream.write_all(&answer::piece(at, length)).await?;
        }
        Ok(())
    }

    /// What the connection is after an upgrade: what came behind the request belongs to it.
    async fn echo(&mut self) -> Result<bool> {
        let behind = self.buffer.split();
        self.stream.write_all(&behind).await?;
        tcp::copy_back(&mut self.stream).await?;
        Ok(false)
    }

    async fn write(&mut self, line: &str, headers: &[(&str, &str)]) -> Result<()> {
        let mut text = format!("{line}\r\n");
        for (name, value) in headers {
            write!(text, "{name}: {value}\r\n")?;
        }
        text.push_str("\r\n");
        Ok(self.stream.write_all(text.as_bytes()).await?)
    }
}

fn owned(headers: &[httparse::Header<'_>]) -> Headers {
    let one = |header: &httparse::Header<'_>| {
        (header.name.to_owned(), String::from_utf8_lossy(header.value).into_owned())
    };
    headers.iter().filter(|header| !header.name.is_empty()).map(one).collect()
}

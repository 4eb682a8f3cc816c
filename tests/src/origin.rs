//! An HTTP/1 application that reads as strictly as RFC 9112 allows and remembers every byte: what a proxy lets through to
//! it is what it says that it received, and nothing that it received is a second request unless it says so.

use std::io::{self, Read, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;

use crate::node::PodRef;

/// A body that is larger is not kept.
const LARGEST: usize = 64 << 20;
/// Interim answers of one request.
pub const MANY: usize = 20_000;
/// How often a held answer looks whether it may go.
const LOOK: Duration = Duration::from_millis(20);

/// A request as it arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The connections are numbered as they come.
    pub connection: usize,
    /// With its empty line. What is no request begins with `no request: ` and says why.
    pub head: String,
    pub body: Vec<u8>,
    /// The lines behind the last chunk.
    pub trailers: String,
}

impl Seen {
    /// The values of a field, in their order.
    pub fn values(&self, name: &str) -> Vec<&str> {
        values(&self.head, name)
    }
}

/// The application. Its threads end with the process.
///
/// By path: `/early` answers 413 before it reads the body, `/interim` sends [`MANY`] interim answers first, `/silent`
/// never answers and notes when its client has gone, `/bodies` sends a body with statuses that have none, `/upgrade`
/// answers 101 (and `CONNECT` 200) after it was told to, `/held` answers then, `/large` sends 1 MiB. Every other path is answered with the number of the request on its connection.
#[derive(Clone, Default)]
pub struct Origin {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    connections: usize,
    seen: Vec<Seen>,
    /// Clients of `/silent` that have gone.
    gone: usize,
    /// What came over upgraded connections, and what was there before the upgrade was granted.
    tunnelled: Vec<u8>,
    grant: bool,
}

impl Origin {
    /// Listens on a port of the pod.
    pub fn start(pod: &PodRef<'_>, port: u16) -> Result<Self> {
        let origin = Self::default();
        let listener = pod.listen(port)?;
        let accepting = origin.clone();
        std::thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let origin = accepting.clone();
                let number = {
                    let mut state = origin.state();
                    state.connections += 1;
                    state.connections
                };
                // How a connection ends is seen by its client.
                std::thread::spawn(move || origin.serve(number, connection));
            }
        });
        Ok(origin)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What has arrived since it was last asked.
    pub fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut self.state().seen)
    }

    /// How many requests have arrived that were not taken.
    pub fn requests(&self) -> usize {
        self.state().seen.len()
    }

    /// Clients that left `/silent` before its answer.
    pub fn gone(&self) -> usize {
        self.state().gone
    }

    /// What has come over upgraded connections.
    pub fn tunnelled(&self) -> Vec<u8> {
        self.state().tunnelled.clone()
    }

    /// Lets the upgrades that wait, and those to come, be granted.
    pub fn grant(&self) {
        self.state().grant = true;
    }

    fn serve(&self, connection: usize, mut stream: TcpStream) -> io::Result<()> {
        for number in 1.. {
            let head = match read_head(&mut stream) {
                Ok(Some(head)) => head,
                Ok(None) => return Ok(()),
                Err(error) => {
                    self.note(connection, format!("no request: {error}"), Vec::new(), String::new());
                    return Ok(());
                }
            };
            let mut words = head.split(' ');
            let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            let path = target.split(['?', '#']).next().unwrap_or_default().to_owned();
            if method == "CONNECT" {
                self.note(connection, head.clone(), Vec::new(), String::new());
                return self.tunnel(stream, true);
            }
            let early = path == "/early";
            if early {
                stream.write_all(b"HTTP/1.1 413 Too Large\r\ncontent-length: 5\r\n\r\nearly")?;
            }
            match read_body(&mut stream, &head) {
                Ok((body, trailers)) => self.note(connection, head.clone(), body, trailers),
                Err(error) => {
                    self.note(connection, format!("no request: {head}{error}"), Vec::new(), String::new());
                    return Ok(());
                }
            }
            if path == "/upgrade" {
                return self.tunnel(stream, false);
            }
            if path == "/held" {
                self.wait_for_grant();
            }
            if path == "/silent" {
                // An end or an error: the proxy let go of it.
                let _ = stream.read(&mut [0]);
                self.state().gone += 1;
                return Ok(());
            }
            if !early {
                answer(&mut stream, &path, number)?;
            }
        }
        Ok(())
    }

    fn note(&self, connection: usize, head: String, body: Vec<u8>, trailers: String) {
        self.state().seen.push(Seen { connection, head, body, trailers });
    }

    fn wait_for_grant(&self) {
        while !self.state().grant {
            std::thread::park_timeout(LOOK);
        }
    }

    fn tunnel(&self, mut stream: TcpStream, connect: bool) -> io::Result<()> {
        self.wait_for_grant();
        stream.set_nonblocking(true)?;
        let mut early = [0; 4096];
        let before = stream.read(&mut early).unwrap_or(0);
        stream.set_nonblocking(false)?;
        if before > 0 {
            self.state().tunnelled.extend_from_slice(b"before the answer: ");
            self.state().tunnelled.extend(early.iter().take(before));
        }
        let granted: &[u8] = if connect {
            b"HTTP/1.1 200 OK\r\n\r\n"
        } else {
            b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: test\r\n\r\n"
        };
        stream.write_all(granted)?;
        let mut buffer = [0; 4096];
        loop {
            let count = stream.read(&mut buffer)?;
            if count == 0 {
                return stream.shutdown(Shutdown::Write);
            }
            let bytes = buffer.get(..count).unwrap_or_default();
            self.state().tunnelled.extend_from_slice(bytes);
            stream.write_all(bytes)?;
        }
    }
}

fn answer(stream: &mut TcpStream, path: &str, number: usize) -> io::Result<()> {
    match path {
        "/interim" => {
            for nth in 0..MANY {
                let kind: &[u8] = match nth % 3 {
                    0 => b"HTTP/1.1 100 Continue\r\n\r\n",
                    1 => b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n",
                    _ => b"HTTP/1.1 102 Processing\r\n\r\n",
                };
                stream.write_all(kind)?;
            }
        }
        "/bodies/204" => {
            return stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\n\r\nno");
        }
        "/bodies/304" => {
            return stream.write_all(
                b"HTTP/1.1 304 Not Modified\r\ncontent-length: 30\r\n\r\nHTTP/1.1 200 no\r\n\r\n",
            );
        }
        "/bodies/head" => {
            return stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 30\r\n\r\nHTTP/1.1 200 no\r\n\r\n");
        }
        "/large" => {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1048576\r\n\r\n")?;
            return stream.write_all(&vec![b'x'; 1 << 20]);
        }
        _ => {}
    }
    let body = number.to_string();
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nx-path: {path}\r\n\r\n", body.len());
    stream.write_all((head + &body).as_bytes())
}

/// Reads a head in which every line ends with CRLF and is a field. Nothing: the connection ended between requests.
fn read_head(stream: &mut TcpStream) -> io::Result<Option<String>> {
    let mut head = Vec::new();
    loop {
        let line = read_line(stream, head.is_empty())?;
        if line.is_empty() && head.is_empty() {
            return Ok(None);
        }
        let last = line == b"\r\n";
        head.extend_from_slice(&line);
        if last {
            break;
        }
    }
    let text = String::from_utf8(head).map_err(|_| bad("a head that is no UTF-8"))?;
    let mut lines = text.split("\r\n");
    let first = lines.next().unwrap_or_default();
    if first.split(' ').count() != 3 || !first.ends_with(" HTTP/1.1") && !first.ends_with(" HTTP/1.0") {
        return Err(bad(format!("request line {first:?}")));
    }
    for line in lines.take_while(|line| !line.is_empty()) {
        let name = line.split_once(':').map(|(name, _)| name).unwrap_or_default();
        let token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
        if name.is_empty() || !name.chars().all(token) || line.contains(['\0', '\r', '\n']) {
            return Err(bad(format!("field {line:?}")));
        }
    }
    Ok(Some(text))
}

fn read_body(stream: &mut TcpStream, head: &str) -> io::Result<(Vec<u8>, String)> {
    let (codings, lengths) = (values(head, "transfer-encoding"), values(head, "content-length"));
    match (codings.as_slice(), lengths.as_slice()) {
        ([], []) => Ok((Vec::new(), String::new())),
        ([], [length]) if !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit()) => {
            let length = length.parse().map_err(|_| bad("a length beyond all measure"))?;
            Ok((read_exactly(stream, length)?, String::new()))
        }
        ([coding], []) if coding.eq_ignore_ascii_case("chunked") => read_chunks(stream),
        _ => Err(bad(format!("codings {codings:?} and lengths {lengths:?}"))),
    }
}

fn read_chunks(stream: &mut TcpStream) -> io::Result<(Vec<u8>, String)> {
    let mut body = Vec::new();
    loop {
        let line = read_line(stream, false)?;
        let size = std::str::from_utf8(&line).ok().and_then(|line| line.strip_suffix("\r\n"));
        // No extension: a proxy has no reason to send one.
        let size = size.filter(|size| !size.is_empty() && size.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let size = size.and_then(|size| usize::from_str_radix(size, 16).ok());
        let size = size.ok_or_else(|| bad(format!("chunk {:?}", String::from_utf8_lossy(&line))))?;
        if size == 0 {
            break;
        }
        body.extend(read_exactly(stream, size)?);
        if read_exactly(stream, 2)? != b"\r\n" {
            return Err(bad("a chunk that does not end"));
        }
    }
    let mut trailers = Vec::new();
    loop {
        let line = read_line(stream, false)?;
        if line == b"\r\n" {
            return Ok((body, String::from_utf8_lossy(&trailers).into_owned()));
        }
        trailers.extend(line);
    }
}

fn read_exactly(stream: &mut TcpStream, length: usize) -> io::Result<Vec<u8>> {
    if length > LARGEST {
        return Err(bad(format!("a body of {length} bytes")));
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// A line with its CRLF. A line feed without a carriage return is an error, and so is an end; between requests nothing.
fn read_line(stream: &mut TcpStream, may_end: bool) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        if stream.read(&mut byte)? == 0 {
            return if may_end && line.is_empty() {
                Ok(line)
            } else {
                Err(io::ErrorKind::UnexpectedEof.into())
            };
        }
        line.extend(byte);
        match (byte, line.len()) {
            ([b'\n'], _) if line.ends_with(b"\r\n") => return Ok(line),
            ([b'\n'], _) => return Err(bad("a bare line feed")),
            (_, length) if length > 1 << 20 => return Err(bad("an endless line")),
            _ => {}
        }
    }
}

fn bad(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

fn values<'a>(head: &'a str, name: &str) -> Vec<&'a str> {
    let fields = head.split("\r\n").skip(1).filter_map(|line| line.split_once(':'));
    fields.filter(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).collect()
}

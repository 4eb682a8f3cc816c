//! What the tests of bytes share: pods with a program of `remora-testkit`, connections out of a pod, counters.
//!
//! A socket stays in the network namespace in which it was made, so a test talks through a pod's own redirect rules
//! from its own thread.

use std::io::{self, Read as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::node::{Node, PodRef};
use crate::shop::{cluster_ip, idle, service};

/// How long one read or write of a test's connection may take.
pub const LIMIT: Duration = Duration::from_secs(10);
/// How long after its event a counter may change.
const COUNTED: Duration = Duration::from_secs(5);

/// A pod and a Service of this name, both with these annotations, whose container runs a program of the testkit (`arguments` as in YAML's `[]`) or
/// of another image. Ready when something listens on the port, which is asked without a connection: a probe would be
/// counted.
pub fn server(name: &str, image: &str, port: u16, arguments: &str, annotations: &[(&str, &str)]) -> String {
    let (before, after) = (
        "image: curlimages/curl, command: [sleep, infinity]}",
        format!(
            "image: {image}, args: [{arguments}], readinessProbe: {{exec: {{command: [sh, -c, 'ss -Hltn \"sport = \
             :{port}\" | grep -q .']}}, periodSeconds: 1, failureThreshold: 1}}}}"
        ),
    );
    let metadata = format!("metadata: {{name: {name}, namespace: shop}}");
    let annotated = match annotations {
        [] => metadata.clone(),
        _ => format!("metadata: {{name: {name}, namespace: shop, annotations: {{{}}}}}", flow(annotations)),
    };
    let service = service(name, port, &port.to_string()).replace(&metadata, &annotated);
    idle(name, annotations).replace(before, &after) + &service
}

fn flow(annotations: &[(&str, &str)]) -> String {
    let each: Vec<String> = annotations.iter().map(|(key, value)| format!("{key}: '{value}'")).collect();
    each.join(", ")
}

/// [`server`] with a program of the testkit.
pub fn kit(name: &str, port: u16, program: &str, annotations: &[(&str, &str)]) -> String {
    server(name, "remora/testkit", port, &format!("{program}, --addr, '0.0.0.0:{port}'"), annotations)
}

/// An idle pod that has the testkit's clients.
pub fn client(name: &str, annotations: &[(&str, &str)]) -> String {
    idle(name, annotations).replace("curlimages/curl", "remora/testkit")
}

/// Runs a client of the testkit in a pod of [`client`]; what it printed.
///
/// # Errors
/// What it said, if it failed.
pub fn run_kit(from: &PodRef<'_>, arguments: &[&str]) -> Result<String> {
    let argv: Vec<&str> = ["/usr/lib/remora/remora-testkit"].iter().chain(arguments).copied().collect();
    from.run("app", &argv)
}

/// The address of a Service of the shop.
pub fn address(node: &Node, service: &str, port: u16) -> Result<SocketAddr> {
    Ok(SocketAddr::new(cluster_ip(node, service)?, port))
}

/// A connection out of the pod, as one of its applications would make it. Every read and write has [`LIMIT`].
pub fn connect(from: &PodRef<'_>, to: SocketAddr) -> Result<TcpStream> {
    let connected = from.enter(|| TcpStream::connect_timeout(&to, LIMIT))?;
    let stream = connected.with_context(|| format!("connecting from {} to {to}", from.name))?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A listener of the pod, for a server that is the test itself. Accepting has [`LIMIT`].
pub fn listen(in_pod: &PodRef<'_>, port: u16) -> Result<TcpListener> {
    let listener = in_pod.enter(|| TcpListener::bind(("0.0.0.0", port)))??;
    rustix::net::sockopt::set_socket_timeout(&listener, rustix::net::sockopt::Timeout::Recv, Some(LIMIT))?;
    Ok(listener)
}

/// Reads until what has come ends with `end`; everything that has come.
///
/// # Errors
/// The connection's end, or silence for longer than its timeout: with what had come.
pub fn read_until(stream: &mut TcpStream, end: &[u8]) -> Result<Vec<u8>> {
    let mut seen = Vec::new();
    let mut buffer = [0; 1];
    while !seen.ends_with(end) {
        match stream.read(&mut buffer) {
            Ok(0) => bail!("the connection ended after {:?}", String::from_utf8_lossy(&seen)),
            Ok(_) => seen.extend(buffer),
            Err(error) => {
                return Err(error).with_context(|| format!("after {:?}", String::from_utf8_lossy(&seen)));
            }
        }
    }
    Ok(seen)
}

/// Reads an HTTP/1 response with a length: its head, and its body.
///
/// # Errors
/// As [`read_until`], and for a head without a length.
pub fn read_response(stream: &mut TcpStream) -> Result<(String, Vec<u8>)> {
    let head = String::from_utf8(read_until(stream, b"\r\n\r\n")?)?;
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    let length = length.with_context(|| format!("no length in {head:?}"))?;
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    Ok((head, body))
}

/// Everything until the connection's end.
pub fn read_to_end(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut seen = Vec::new();
    stream.read_to_end(&mut seen)?;
    Ok(seen)
}

/// The sum of a proxy's samples with these labels; 0 where there is none.
pub fn count(pod: &PodRef<'_>, name: &str, labels: &[(&str, &str)]) -> Result<f64> {
    Ok(pod.metrics()?.sum(name, labels).unwrap_or(0.0))
}

/// Waits until [`count`] is this.
///
/// # Errors
/// After a few seconds, or when it is more: with every sample of the name.
pub fn counted(pod: &PodRef<'_>, name: &str, labels: &[(&str, &str)], expected: f64) -> Result<()> {
    let deadline = Instant::now() + COUNTED;
    loop {
        let samples = pod.metrics()?;
        let now = samples.sum(name, labels).unwrap_or(0.0);
        if (now - expected).abs() < 0.5 {
            return Ok(());
        }
        if now > expected || Instant::now() > deadline {
            let all: Vec<_> = samples.matching(name, &[]).collect();
            bail!("{name}{labels:?} of {} is {now}, not {expected}; there are {all:#?}", pod.name);
        }
        std::thread::yield_now();
    }
}

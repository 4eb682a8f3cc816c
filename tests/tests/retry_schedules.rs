//! Whatever a server does with the tries of a request, each has the client's body from its beginning, byte for byte, and the
//! one that is accepted has all of it: hundreds of random schedules of delays, resets, refusals, early and late answers,
//! with an oracle for a server.
#![expect(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test says what it expects"
)]

use remora_tests::arena::reset;
use remora_tests::shop::{self, SHOP};
use remora_tests::wire::{address, client, connect, count, listen};
use remora_tests::{PodRef, check, peer};
use std::collections::HashMap;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

const CLIENTS: u64 = 8;
/// Requests of each client.
const REQUESTS: u64 = 50;
/// Bodies that are kept have at most so many bytes; some are longer.
const KEPT: u64 = 64 * 1024;
const TRY_TIMEOUT: &str = "400ms";

/// What becomes of a try that is not accepted.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// Reset when so many bytes of the body have come.
    Reset(usize),
    /// Answered with 503 when so many bytes have come; the rest is read.
    Early(usize),
    /// Answered with 503 when all of it has come.
    Failed,
    /// Never answered.
    Silent,
}

/// A request and what its server does with it.
struct Schedule {
    body: Vec<u8>,
    chunked: bool,
    /// Bytes that are written at once, and how long it is until the next.
    pieces: (usize, Duration),
    /// One after the other; the next try is accepted.
    steps: Vec<Step>,
    /// Between two reads of the server.
    delay: Duration,
}

/// What the server saw of a request.
#[derive(Default)]
struct Seen {
    tries: usize,
    /// Tries whose body was all there.
    accepted: usize,
    wrong: Vec<String>,
}

#[derive(Default)]
struct Oracle {
    requests: Mutex<HashMap<u64, (Arc<Schedule>, Seen)>>,
}

#[test]
fn every_try_has_the_bytes_of_the_client_under_any_schedule_of_delays_resets_and_refusals() {
    if !check::can_run() {
        return;
    }
    // Of two endpoints one refuses every connection.
    let of_service = |name: &str| {
        let pod = shop::idle(name, &[("linkerd.io/inject", "disabled")]);
        pod.replace(&format!("app: {name}"), "app: schedules")
    };
    let route = format!(
        "{{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {{name: schedules, namespace: {SHOP}}}, spec: \
         {{parentRefs: [{{group: core, kind: Service, name: schedules, port: 8080}}], rules: [{{retry: {{codes: [503], attempts: 9, \
         backoff: 1ms}}, timeouts: {{backendRequest: {TRY_TIMEOUT}}}}}]}}}}\n---\n"
    );
    let pods = [of_service("oracle"), of_service("refuser"), client("client", &[])];
    let mesh = shop::open(&[&pods[..], &[shop::service("schedules", 8080, "8080"), route]].concat()).unwrap();
    let (from, oracle) = (mesh.pod(SHOP, "client").unwrap(), Arc::<Oracle>::default());
    serve(listen(&mesh.pod(SHOP, "oracle").unwrap(), 8080).unwrap(), &oracle);
    let to = address(&mesh, "schedules", 8080).unwrap();

    let statuses: Vec<(u64, Option<u16>)> = std::thread::scope(|scope| {
        let clients = (0..CLIENTS).map(|nth| {
            let (from, oracle) = (&from, &oracle);
            scope.spawn(move || {
                let mut connection = None;
                let one = |nth: u64| (nth, ask(from, to, nth, &oracle.begin(nth), &mut connection));
                (nth * REQUESTS..(nth + 1) * REQUESTS).map(one).collect::<Vec<_>>()
            })
        });
        let clients: Vec<_> = clients.collect();
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    });
    let requests = oracle.requests.lock().unwrap();
    let (mut again, mut certain) = (0, 0);
    for (nth, status) in &statuses {
        let (schedule, seen) = &requests[nth];
        let told = || {
            format!(
                "request {nth} of {} bytes, {:?}: {status:?} after {} tries",
                schedule.body.len(),
                schedule.steps,
                seen.tries
            )
        };
        assert!(seen.wrong.is_empty(), "{}: {:#?}", told(), seen.wrong);
        assert!(*status != Some(200) || seen.accepted > 0, "{}: nothing was accepted", told());
        again += usize::from(*status == Some(200) && seen.tries > 1);
        // What has been sent whole, and is kept, is sent until it is accepted.
        let whole = schedule.steps.iter().all(|step| matches!(step, Step::Failed | Step::Silent));
        if whole && schedule.body.len() <= KEPT as usize {
            assert_eq!(*status, Some(200), "{}", told());
            certain += 1;
        }
    }
    let retried =
        count(&from, "outbound_http_route_retry_requests_total", &[("route_name", "schedules")]).unwrap();
    println!(
        "of {} requests {certain} had to be accepted, {again} were after {retried} further tries",
        statuses.len()
    );
    assert!(again > statuses.len() / 4, "{again}: this was about retries");
}

/// Sends a request; the status of the answer, if there is one.
fn ask(
    from: &PodRef<'_>,
    to: SocketAddr,
    nth: u64,
    schedule: &Schedule,
    kept: &mut Option<TcpStream>,
) -> Option<u16> {
    let mut stream = kept.take().unwrap_or_else(|| connect(from, to).unwrap());
    let length = schedule.body.len();
    let framing = if schedule.chunked {
        "Transfer-Encoding: chunked".into()
    } else {
        format!("Content-Length: {length}")
    };
    let head = format!("PUT / HTTP/1.1\r\nHost: schedules\r\nx-nth: {nth}\r\n{framing}\r\n\r\n");
    let (size, pause) = schedule.pieces;
    let mut send = || -> io::Result<()> {
        stream.write_all(head.as_bytes())?;
        for piece in schedule.body.chunks(size) {
            if schedule.chunked {
                stream.write_all(&[format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat())?;
            } else {
                stream.write_all(piece)?;
            }
            std::thread::park_timeout(pause);
        }
        if schedule.chunked { stream.write_all(b"0\r\n\r\n") } else { Ok(()) }
    };
    // Who is answered before all is sent may be cut off.
    let sent = send().is_ok();
    let (head, _) = peer::read_answer(&mut stream).ok()?;
    let status = head.split(' ').nth(1)?.parse().ok();
    if status == Some(200) && sent {
        *kept = Some(stream);
    }
    status
}

impl Oracle {
    fn begin(&self, nth: u64) -> Arc<Schedule> {
        let schedule = Arc::new(Schedule::random(nth));
        self.requests.lock().unwrap().insert(nth, (schedule.clone(), Seen::default()));
        schedule
    }

    /// The request of this head, and which of its tries this is.
    fn tried(&self, head: &str) -> Option<(u64, Arc<Schedule>, usize)> {
        let nth = head.lines().find_map(|line| line.strip_prefix("x-nth: "))?.trim().parse().ok()?;
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let (schedule, seen) = requests.get_mut(&nth)?;
        seen.tries += 1;
        Some((nth, schedule.clone(), seen.tries - 1))
    }

    /// Holds what has come of a body against what was sent. `whole`: nothing more comes.
    fn compare(&self, nth: u64, came: &[u8], whole: bool, accepted: bool) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let (schedule, seen) = requests.get_mut(&nth).unwrap();
        if !schedule.body.starts_with(came) || whole && came.len() != schedule.body.len() {
            let same = came.iter().zip(&schedule.body).take_while(|(came, sent)| came == sent).count();
            seen.wrong.push(format!(
                "try {}: {} bytes, of which {same} are right, whole: {whole}",
                seen.tries,
                came.len()
            ));
        }
        seen.accepted += usize::from(accepted);
    }
}

/// Serves every connection on a thread of its own. The threads end with the process.
fn serve(listener: TcpListener, oracle: &Arc<Oracle>) {
    let oracle = oracle.clone();
    std::thread::spawn(move || {
        loop {
            let Ok((stream, _)) = listener.accept() else { continue };
            let oracle = oracle.clone();
            std::thread::spawn(move || {
                let mut reader = BufReader::with_capacity(2048, stream.try_clone().unwrap());
                while let Ok(true) = one(&stream, &mut reader, &oracle) {}
            });
        }
    });
}

/// One try. Whether another may follow on its connection.
fn one(mut stream: &TcpStream, reader: &mut BufReader<TcpStream>, oracle: &Oracle) -> io::Result<bool> {
    let head = String::from_utf8_lossy(&peer::read_head(reader)?).to_lowercase();
    let Some((nth, schedule, tried)) = oracle.tried(&head) else { panic!("nobody sent this: {head}") };
    let step = schedule.steps.get(tried).copied();
    let stop = match step {
        Some(Step::Reset(at) | Step::Early(at)) => at,
        Some(Step::Failed | Step::Silent) | None => usize::MAX,
    };
    let mut came = Vec::new();
    let whole = body(reader, &head, &mut came, stop, schedule.delay);
    oracle.compare(nth, &came, matches!(whole, Ok(true)), step.is_none() && matches!(whole, Ok(true)));
    whole?;
    match step {
        None => stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").map(|()| true),
        Some(Step::Failed) => {
            stream.write_all(b"HTTP/1.1 503 Not now\r\nContent-Length: 0\r\n\r\n").map(|()| true)
        }
        Some(Step::Early(_)) => {
            stream.write_all(b"HTTP/1.1 503 Too early\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?;
            io::copy(reader, &mut io::sink())?;
            Ok(false)
        }
        Some(Step::Silent) => {
            io::copy(reader, &mut io::sink())?;
            Ok(false)
        }
        Some(Step::Reset(_)) => {
            reset(vec![stream.try_clone()?]);
            Ok(false)
        }
    }
}

/// Reads a body until it is over, or `stop` bytes have come. Whether it is over.
fn body(
    reader: &mut BufReader<TcpStream>,
    head: &str,
    came: &mut Vec<u8>,
    stop: usize,
    delay: Duration,
) -> io::Result<bool> {
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let mut left: Option<usize> = length.map(|length| length.trim().parse().unwrap());
    let chunked = left.is_none();
    loop {
        if chunked && left.is_none_or(|left| left == 0) {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let size = usize::from_str_radix(line.trim(), 16).map_err(|_| io::ErrorKind::UnexpectedEof)?;
            left = Some(size);
            if size == 0 {
                reader.read_exact(&mut [0; 2])?;
                return Ok(true);
            }
        }
        let rest = left.unwrap_or_default();
        if rest == 0 {
            return Ok(true);
        }
        if came.len() >= stop {
            return Ok(false);
        }
        let mut buffer = [0; 2048];
        let most = rest.min(buffer.len());
        let read = reader.read(&mut buffer[..most])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        came.extend(&buffer[..read]);
        left = Some(rest - read);
        if chunked && rest == read {
            reader.read_exact(&mut [0; 2])?;
        }
        if !delay.is_zero() {
            std::thread::park_timeout(delay);
        }
    }
}

impl Schedule {
    fn random(nth: u64) -> Self {
        let mut dice = Dice(nth);
        let length = match dice.below(8) {
            0 => dice.below(3),
            1 => KEPT - dice.below(2),
            2 => KEPT + 1 + dice.below(KEPT),
            _ => dice.below(KEPT),
        };
        let body: Vec<u8> = (0..length).map(|_| dice.below(256) as u8).collect();
        // Somewhere in it, and beyond its end.
        let at = |dice: &mut Dice| dice.below(length + length / 4 + 1) as usize;
        let steps = (0..dice.below(5)).map(|_| match dice.below(12) {
            0..3 => Step::Reset(at(&mut dice)),
            3..5 => Step::Early(at(&mut dice)),
            5 => Step::Silent,
            _ => Step::Failed,
        });
        let steps = steps.collect();
        let micros = |dice: &mut Dice| Duration::from_micros([0, 0, 100, 1000][dice.below(4) as usize]);
        let size =
            [1 << 20, 1 << 20, 500 + dice.below(20_000), 500 + dice.below(5_000)][dice.below(4) as usize];
        let (pause, delay) = (micros(&mut dice), micros(&mut dice));
        Self { body, chunked: dice.below(2) == 0, pieces: (size as usize, pause), steps, delay }
    }
}

/// SplitMix64: the same numbers for the same request in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

//! `remora-await`: waits until the proxy of its pod is ready. In our image it has the name of Linkerd's
//! `linkerd-await`, which the injector writes into the postStart hook of a proxy that is no native sidecar (contract
//! 6.3), so that the application's containers start when the proxy works.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use clap::Parser;
use http::{Request, StatusCode, header};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use remora_runtime::env::{EX_USAGE, parse};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// Exit code when the proxy did not become ready in time (`EX_UNAVAILABLE` of sysexits.h).
const EX_UNAVAILABLE: u8 = 69;
/// How long one question may take.
const ANSWER: Duration = Duration::from_secs(1);

/// Waits until the proxy of this pod is ready.
///
/// Exit codes: 0 it is ready; 64 wrong arguments; 69 it was not ready in time.
#[derive(Debug, Parser)]
#[command(name = "remora-await", version)]
struct Args {
    /// The proxy's admin port
    #[arg(short, long, default_value_t = 4191)]
    port: u16,
    /// How long to wait: an integer with ms, s, m, h or d; without it for ever
    #[arg(short, long, value_parser = duration)]
    timeout: Option<Duration>,
    /// The pause between two questions
    #[arg(short, long, default_value = "100ms", value_parser = duration)]
    backoff: Duration,
}

fn duration(text: &str) -> Result<Duration, String> {
    parse::duration(text).map_err(|invalid| invalid.to_string())
}

/// The whole life of `remora-await`. `arguments` with the program's name.
pub fn run(arguments: impl Iterator<Item = std::ffi::OsString>) -> ExitCode {
    let args = match Args::try_parse_from(arguments) {
        Ok(args) => args,
        Err(wrong) => {
            // Help and version are no mistakes; where nothing can be printed nothing can be said.
            let _ = wrong.print();
            return ExitCode::from(if wrong.use_stderr() { EX_USAGE } else { 0 });
        }
    };
    match wait(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            say(&why);
            ExitCode::from(EX_UNAVAILABLE)
        }
    }
}

#[expect(clippy::print_stderr, reason = "a hook has no log; the kubelet reports what it printed")]
fn say(why: &str) {
    eprintln!("remora-await: {why}");
}

fn wait(args: &Args) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("cannot wait for the proxy: {error}"))?;
    let mut last = String::from("it was not asked");
    let waiting = async {
        while let Err(why) = ask(args.port).await {
            last = why;
            sleep(args.backoff.max(Duration::from_millis(1))).await;
        }
    };
    let Some(limit) = args.timeout else {
        runtime.block_on(waiting);
        return Ok(());
    };
    runtime.block_on(async { timeout(limit, waiting).await }).map_err(|_elapsed| {
        format!(
            "the proxy was not ready within {limit:?} (http://localhost:{}/ready: {last}); its log says what it waits for",
            args.port
        )
    })
}

/// Is it ready? If not, why not.
async fn ask(port: u16) -> Result<(), String> {
    let asking = async {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| error.to_string())?;
        let request = Request::get("/ready").header(header::HOST, address.to_string());
        let request = request.body(Empty::<Bytes>::new()).map_err(|error| error.to_string())?;
        let answer = sender.send_request(request);
        tokio::pin!(answer);
        tokio::select! {
            answer = &mut answer => answer,
            // The request knows better how it ended.
            _ = connection => answer.await,
        }
        .map_err(|error| error.to_string())
    };
    let answer =
        timeout(ANSWER, asking).await.map_err(|_elapsed| format!("no answer within {ANSWER:?}"))??;
    match answer.status() {
        StatusCode::OK => Ok(()),
        status => Err(format!("it answers {status}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::net::TcpListener;

    #[test]
    fn it_waits_until_the_proxy_says_that_it_is_ready() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let proxy = std::thread::spawn(move || {
            for status in ["503 Service Unavailable", "200 OK"] {
                let (stream, _) = listener.accept().unwrap();
                let mut asked = String::new();
                BufReader::new(&stream).read_line(&mut asked).unwrap();
                assert_eq!(asked, "GET /ready HTTP/1.1\r\n");
                write!(&stream, "HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").unwrap();
            }
        });
        let args = args(&["--timeout=1m", &format!("--port={port}"), "--backoff=1ms"]).unwrap();
        assert_eq!(wait(&args), Ok(()));
        proxy.join().unwrap();
    }

    #[test]
    fn it_gives_up_in_time_and_says_why() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let args = args(&["--timeout=20ms", "--backoff=1ms", &format!("--port={port}")]).unwrap();
        let why = wait(&args).unwrap_err();
        assert!(why.contains("20ms") && why.contains("refused"), "{why}");
    }

    #[test]
    fn it_takes_the_arguments_that_the_injector_writes() {
        let args = args(&["--timeout=2m", "--port=4191"]).unwrap();
        assert_eq!((args.port, args.timeout), (4191, Some(Duration::from_mins(2))));
    }

    #[test]
    fn a_time_without_a_unit_is_refused() {
        assert!(args(&["--timeout=2"]).unwrap_err().to_string().contains("the number has no unit"));
    }

    fn args(arguments: &[&str]) -> Result<Args, clap::Error> {
        Args::try_parse_from(["remora-await"].iter().chain(arguments))
    }
}

//! The servers and clients that tests and the demo talk to when curl and nginx are not enough: the command line.
//!
//! As a container it is the image `remora/testkit`. A server says `listening on ADDR` once it does.

mod answer;
mod grpc;
mod http1;
mod http2;
mod tcp;

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use tokio::net::{TcpListener, TcpStream};

/// Servers and clients that show what a proxy did to their bytes.
#[derive(Parser)]
#[command(name = "remora-testkit", version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve HTTP/1 and HTTP/2 (prior knowledge) on one port; `answer.rs` lists the paths.
    Http(Listen),
    /// Serve gRPC: remora.testkit.v1.Echo (Unary, Stream, Bidi, Fail) and grpc.health.v1.Health.
    Grpc(Listen),
    /// Call the gRPC server; every answer is printed as a line.
    GrpcClient(grpc::Client),
    /// Speak first on every connection, then echo.
    Greeter {
        #[command(flatten)]
        listen: Listen,
        /// What is said first.
        #[arg(long, default_value = "220 testkit at your service\r\n")]
        greeting: String,
    },
    /// Send everything back; after the client's end, end too.
    Echo(Listen),
    /// Read to the client's end, then answer `<bytes> <sha256 in hex>` and end.
    Digest(Listen),
    /// Send standard input in segments of a chosen size and print what comes back.
    Raw(tcp::Raw),
}

/// Where a server listens.
#[derive(clap::Args)]
struct Listen {
    #[arg(long, default_value = "0.0.0.0:8080")]
    addr: SocketAddr,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(Args::parse().command).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "remora-testkit: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> Result<()> {
    match command {
        Command::Http(listen) => serve(listen, answer::serve).await,
        Command::Grpc(listen) => grpc::serve(bind(listen.addr).await?).await,
        Command::GrpcClient(client) => client.run().await,
        Command::Greeter { listen, greeting } => {
            serve(listen, move |stream| tcp::greet(stream, greeting.clone())).await
        }
        Command::Echo(listen) => serve(listen, tcp::echo).await,
        Command::Digest(listen) => serve(listen, tcp::digest).await,
        Command::Raw(raw) => raw.run().await,
    }
}

async fn bind(addr: SocketAddr) -> Result<TcpListener> {
    let listener = TcpListener::bind(addr).await.with_context(|| format!("listening on {addr}"))?;
    say(&format!("listening on {}", listener.local_addr()?));
    Ok(listener)
}

/// Accepts for ever. A connection that fails is a line on standard error and nothing else.
async fn serve<F, S>(listen: Listen, serve: S) -> Result<()>
where
    S: Fn(TcpStream) -> F,
    F: Future<Output = Result<()>> + Send + 'static,
{
    let listener = bind(listen.addr).await?;
    loop {
        let Ok((stream, client)) = listener.accept().await else {
            // Out of file descriptors: others may end meanwhile.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        stream.set_nodelay(true)?;
        let served = serve(stream);
        tokio::spawn(async move {
            if let Err(error) = served.await {
                let _ = writeln!(std::io::stderr(), "{client}: {error:#}");
            }
        });
    }
}

/// A line on standard output, at once. Nobody may be listening any more, which is no failure.
fn say(line: &str) {
    let mut out = std::io::stdout();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

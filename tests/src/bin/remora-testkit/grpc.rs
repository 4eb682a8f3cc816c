//! gRPC without generated code: one message type, one service, and its client.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use futures_util::stream::{self, Stream, StreamExt as _};
use http::uri::PathAndQuery;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::transport::server::TcpIncoming;
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;
use tower::{Service, service_fn};

use crate::say;

/// The largest answer, in bytes of its payload.
const LARGEST: u32 = 1024 * 1024;

/// `remora.testkit.v1.Message`: what every method takes and gives.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Message {
    #[prost(string, tag = "1")]
    text: String,
    /// How many answers a stream shall have.
    #[prost(uint32, tag = "2")]
    count: u32,
    /// The status that `Fail` shall end with.
    #[prost(uint32, tag = "3")]
    code: u32,
    /// Bytes of payload that each answer of a stream shall have.
    #[prost(uint32, tag = "4")]
    size: u32,
    #[prost(bytes = "vec", tag = "5")]
    payload: Vec<u8>,
}

/// `grpc.health.v1.HealthCheckResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Health {
    /// 1 is SERVING.
    #[prost(int32, tag = "1")]
    status: i32,
}

/// Serves until the process ends.
pub(crate) async fn serve(listener: TcpListener) -> Result<()> {
    // Nagle's algorithm would hold back the answer until the other end has acknowledged our SETTINGS: 40 ms.
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let router = tonic::transport::Server::builder().add_service(Echo).add_service(HealthServer);
    router.serve_with_incoming(incoming).await.context("serving gRPC")
}

#[derive(Clone)]
struct Echo;

#[derive(Clone)]
struct HealthServer;

impl NamedService for Echo {
    const NAME: &'static str = "remora.testkit.v1.Echo";
}

impl NamedService for HealthServer {
    const NAME: &'static str = "grpc.health.v1.Health";
}

type Answer = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

impl Service<http::Request<Body>> for Echo {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Answer {
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(ProstCodec::<Message, Message>::default());
            Ok(match request.uri().path().rsplit('/').next().unwrap_or_default() {
                "Unary" => grpc.unary(service_fn(unary), request).await,
                "Fail" => grpc.unary(service_fn(fail), request).await,
                "Stream" => grpc.server_streaming(service_fn(stream), request).await,
                "Bidi" => grpc.streaming(service_fn(bidi), request).await,
                other => Status::unimplemented(format!("there is no method {other}")).into_http(),
            })
        })
    }
}

impl Service<http::Request<Body>> for HealthServer {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Answer {
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(ProstCodec::<Health, Message>::default());
            let check = |_: Request<Message>| async { Ok(Response::new(Health { status: 1 })) };
            Ok(match request.uri().path().rsplit('/').next().unwrap_or_default() {
                "Check" => grpc.unary(service_fn(check), request).await,
                other => Status::unimplemented(format!("there is no method {other}")).into_http(),
            })
        })
    }
}

async fn unary(request: Request<Message>) -> Result<Response<Message>, Status> {
    let mut response = Response::new(request.get_ref().clone());
    // What the proxies said about the client, for whoever asked.
    if let Some(client) = request.metadata().get("l5d-client-id") {
        response.metadata_mut().insert("x-client-id", client.clone());
    }
    Ok(response)
}

async fn fail(request: Request<Message>) -> Result<Response<Message>, Status> {
    let Message { text, code, .. } = request.into_inner();
    Err(Status::new(Code::from(i32::try_from(code).unwrap_or(2)), text))
}

type Answers = Pin<Box<dyn Stream<Item = Result<Message, Status>> + Send>>;

async fn stream(request: Request<Message>) -> Result<Response<Answers>, Status> {
    let Message { text, count, size, .. } = request.into_inner();
    let payload = vec![b'x'; size.min(LARGEST) as usize];
    let one =
        move |i| Ok(Message { text: format!("{text} {i}"), payload: payload.clone(), ..Message::default() });
    Ok(Response::new(Box::pin(stream::iter((0..count).map(one)))))
}

/// Answers each message when it comes, not later.
async fn bidi(request: Request<Streaming<Message>>) -> Result<Response<Answers>, Status> {
    Ok(Response::new(Box::pin(request.into_inner())))
}

/// What is called.
#[derive(Clone, Copy, ValueEnum)]
enum Method {
    Unary,
    /// Ends with the status `--code`.
    Fail,
    /// `--count` answers of `--size` bytes.
    Stream,
    /// Sends `--count` messages, each after the answer to the one before.
    Bidi,
    Health,
}

/// A client.
#[derive(clap::Args)]
pub(crate) struct Client {
    /// `http://HOST:PORT`.
    target: String,
    #[arg(value_enum)]
    method: Method,
    #[arg(long, default_value_t = 3)]
    count: u32,
    #[arg(long, default_value_t = 0)]
    code: u32,
    #[arg(long, default_value_t = 0)]
    size: u32,
    #[arg(long, default_value = "hello")]
    text: String,
    /// Print `holding` after the first answer of a stream and read no further, until the process is ended.
    #[arg(long)]
    hold: bool,
}

impl Client {
    /// Calls, and prints every answer's text, and at the end `status CODE MESSAGE`.
    pub(crate) async fn run(self) -> Result<()> {
        let channel = tonic::transport::Endpoint::from_shared(self.target.clone())?
            .connect()
            .await
            .with_context(|| format!("connecting to {}", self.target))?;
        let mut grpc = tonic::client::Grpc::new(channel);
        grpc.ready().await?;
        let ended = match self.method {
            Method::Unary => self.unary(&mut grpc, "Unary").await,
            Method::Fail => self.unary(&mut grpc, "Fail").await,
            Method::Stream => self.stream(&mut grpc).await,
            Method::Bidi => self.bidi(&mut grpc).await,
            Method::Health => health(&mut grpc).await,
        };
        let status = ended.err().unwrap_or_else(|| Status::ok(""));
        say(&format!("status {} {}", i32::from(status.code()), status.message()));
        Ok(())
    }

    fn message(&self) -> Message {
        let Self { count, code, size, .. } = *self;
        Message { text: self.text.clone(), count, code, size, payload: Vec::new() }
    }

    async fn unary(&self, grpc: &mut Grpc, method: &str) -> Result<(), Status> {
        let path = path(Echo::NAME, method)?;
        let codec = ProstCodec::<Message, Message>::default();
        let response = grpc.unary(Request::new(self.message()), path, codec).await?;
        if let Some(client) = response.metadata().get("x-client-id").and_then(|client| client.to_str().ok()) {
            say(&format!("client {client}"));
        }
        say(&response.get_ref().text);
        Ok(())
    }

    async fn stream(&self, grpc: &mut Grpc) -> Result<(), Status> {
        let path = path(Echo::NAME, "Stream")?;
        let codec = ProstCodec::<Message, Message>::default();
        let mut answers =
            grpc.server_streaming(Request::new(self.message()), path, codec).await?.into_inner();
        while let Some(answer) = answers.message().await? {
            say(&answer.text);
            if self.hold {
                say("holding");
                std::future::pending::<()>().await;
            }
        }
        Ok(())
    }

    async fn bidi(&self, grpc: &mut Grpc) -> Result<(), Status> {
        let path = path(Echo::NAME, "Bidi")?;
        let (questions, asked) = mpsc::channel(1);
        let codec = ProstCodec::<Message, Message>::default();
        let asked = Request::new(ReceiverStream::new(asked));
        let mut answers = grpc.streaming(asked, path, codec).await?.into_inner();
        for i in 0..self.count {
            let question = Message { text: format!("{} {i}", self.text), ..Message::default() };
            questions.send(question).await.map_err(|_| Status::aborted("the call ended early"))?;
            let answer = answers.message().await?.ok_or_else(|| Status::aborted("too few answers"))?;
            say(&answer.text);
        }
        drop(questions);
        if answers.next().await.is_some() {
            return Err(Status::aborted("an answer to no question"));
        }
        Ok(())
    }
}

type Grpc = tonic::client::Grpc<tonic::transport::Channel>;

async fn health(grpc: &mut Grpc) -> Result<(), Status> {
    let path = path(HealthServer::NAME, "Check")?;
    let codec = ProstCodec::<Message, Health>::default();
    let response = grpc.unary(Request::new(Message::default()), path, codec).await?;
    say(&format!("health {}", response.get_ref().status));
    Ok(())
}

fn path(service: &str, method: &str) -> Result<PathAndQuery, Status> {
    format!("/{service}/{method}").parse().map_err(|_| Status::internal("an invalid path"))
}

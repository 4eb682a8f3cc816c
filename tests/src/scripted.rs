//! An HTTP/2 application whose answers are a test's: what no ordinary server says, such as a refused stream, or a gRPC
//! status behind a head.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};

use crate::node::PodRef;

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Says {
    /// A reset of the stream that says that nothing was looked at.
    Refused,
    /// This status with these fields, when all of the request has come.
    Status(u16, Vec<(&'static str, &'static str)>),
    /// A gRPC status in trailers behind a head, when all of the request has come.
    Grpc(u16),
    /// The same at once, whatever else of the request comes.
    GrpcAtOnce(u16),
    /// The head at once, and the trailers when something of the request's body has come.
    GrpcAfterFirst(u16),
}

/// The application. Its threads end with the process.
pub struct Scripted {
    requests: Arc<AtomicUsize>,
}

impl Scripted {
    /// Listens on a port of the pod; `script` says what is answered to each request, which are numbered from 0.
    pub fn start(
        pod: &PodRef<'_>,
        port: u16,
        script: impl Fn(usize) -> Says + Send + Sync + 'static,
    ) -> Result<Self> {
        let listener = pod.listen(port)?;
        let requests = Arc::new(AtomicUsize::new(0));
        let (counted, script) = (requests.clone(), Arc::new(script));
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                listener.set_nonblocking(true)?;
                let listener = tokio::net::TcpListener::from_std(listener)?;
                while let Ok((tcp, _)) = listener.accept().await {
                    let (counted, script) = (counted.clone(), script.clone());
                    let service = service_fn(move |request| {
                        let says = script(counted.fetch_add(1, Ordering::Relaxed));
                        answer(says, request)
                    });
                    let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    tokio::spawn(builder.serve_connection(TokioIo::new(tcp), service));
                }
                io::Result::Ok(())
            })
        });
        Ok(Self { requests })
    }

    /// Requests that have come.
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }
}

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

async fn answer(says: Says, request: Request<Incoming>) -> Result<Answer, h2::Error> {
    let mut body = request.into_body();
    let gone = |_| h2::Error::from(h2::Reason::CANCEL);
    match &says {
        Says::Refused => return Err(h2::Reason::REFUSED_STREAM.into()),
        Says::Status(..) | Says::Grpc(_) => {
            while let Some(frame) = body.frame().await {
                frame.map_err(gone)?;
            }
        }
        Says::GrpcAtOnce(_) | Says::GrpcAfterFirst(_) => {}
    }
    Ok(match says {
        Says::Refused => Answer::default(),
        Says::Status(status, fields) => {
            let mut answer = Answer::default();
            *answer.status_mut() = StatusCode::from_u16(status).unwrap_or_default();
            for (name, value) in fields {
                answer.headers_mut().insert(name, HeaderValue::from_static(value));
            }
            answer
        }
        Says::Grpc(status) | Says::GrpcAtOnce(status) | Says::GrpcAfterFirst(status) => {
            let after_first = matches!(says, Says::GrpcAfterFirst(_));
            let trailers = async move {
                if after_first {
                    let _first = body.frame().await;
                }
                // What else comes is nobody's to read, but its stream must not be reset for it.
                tokio::spawn(async move { while let Some(Ok(_)) = body.frame().await {} });
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", HeaderValue::from(status));
                Ok(Frame::trailers(trailers))
            };
            let body = futures_util::stream::once(trailers);
            let mut answer = Response::new(StreamBody::new(body).boxed_unsync());
            let grpc = HeaderValue::from_static("application/grpc");
            answer.headers_mut().insert(http::header::CONTENT_TYPE, grpc);
            answer
        }
    })
}

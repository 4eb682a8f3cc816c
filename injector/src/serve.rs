//! The webhook's listener: TLS 1.3 with a certificate that is read again when its files change, HTTP/1 and HTTP/2, and
//! bounds on everything the other side chooses.

use std::{
    convert::Infallible,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use remora_runtime::tasks::{Drain, Tasks};
use rustls::{
    ServerConfig,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio::{net::TcpListener, sync::Semaphore, time::timeout};
use tokio_rustls::TlsAcceptor;

use crate::{
    cluster::Cluster,
    config::InjectorConfig,
    webhook::{self, Metrics},
};

/// The API server sends at most 3 MiB of object (its own request limit).
pub const MAX_BODY: usize = 3 << 20;
/// Connections at once; more wait in the backlog. The API server keeps a handful.
const MAX_CONNECTIONS: usize = 256;
/// How long a handshake, a request's head or its body may take; the API server itself gives up after 10 s.
const PATIENCE: Duration = Duration::from_secs(10);

/// The serving certificate and the files it is from.
#[derive(Debug)]
pub struct Certificate {
    chain_file: PathBuf,
    key_file: PathBuf,
    current: ArcSwap<Loaded>,
}

#[derive(Debug)]
struct Loaded {
    /// The files' bytes, to see a change whatever the file system says of times.
    files: (Vec<u8>, Vec<u8>),
    key: Arc<CertifiedKey>,
}

/// Why files are no serving certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertificateFault {
    /// A file cannot be read.
    #[error("cannot read {file}: {error}")]
    Read {
        /// Which.
        file: String,
        /// Why.
        error: std::io::Error,
    },
    /// A file holds something else.
    #[error("{file}: {why}")]
    Content {
        /// Which.
        file: String,
        /// What is wrong.
        why: String,
    },
}

impl Certificate {
    /// Reads a chain (leaf first) and its private key, both PEM.
    pub fn load(chain_file: &Path, key_file: &Path) -> Result<Self, CertificateFault> {
        let current = ArcSwap::from_pointee(load(chain_file, key_file)?);
        Ok(Self { chain_file: chain_file.to_owned(), key_file: key_file.to_owned(), current })
    }

    /// Reads the files again; whether they had changed. What cannot be used changes nothing.
    pub fn refresh(&self) -> Result<bool, CertificateFault> {
        let files = (read(&self.chain_file)?, read(&self.key_file)?);
        if files == self.current.load().files {
            return Ok(false);
        }
        self.current.store(Arc::new(load(&self.chain_file, &self.key_file)?));
        Ok(true)
    }

    /// A server's configuration that serves it, whichever it is at the time of a handshake.
    pub fn server_config(self: &Arc<Self>) -> Result<Arc<ServerConfig>, rustls::Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?;
        let mut config = builder.with_no_client_auth().with_cert_resolver(self.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load().key.clone())
    }
}

fn read(file: &Path) -> Result<Vec<u8>, CertificateFault> {
    fs::read(file).map_err(|error| CertificateFault::Read { file: file.display().to_string(), error })
}

fn load(chain_file: &Path, key_file: &Path) -> Result<Loaded, CertificateFault> {
    let content =
        |file: &Path, why: String| CertificateFault::Content { file: file.display().to_string(), why };
    let files = (read(chain_file)?, read(key_file)?);
    let chain: Result<Vec<CertificateDer<'static>>, _> = CertificateDer::pem_slice_iter(&files.0).collect();
    let chain = chain.map_err(|error| content(chain_file, format!("not PEM: {error}")))?;
    if chain.is_empty() {
        return Err(content(chain_file, "it holds no certificate".to_owned()));
    }
    let key = PrivateKeyDer::from_pem_slice(&files.1)
        .map_err(|error| content(key_file, format!("it holds no private key: {error}")))?;
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let key = CertifiedKey::from_der(chain, key, &provider)
        .map_err(|error| content(key_file, format!("not the key of {}: {error}", chain_file.display())))?;
    Ok(Loaded { files, key: Arc::new(key) })
}

/// What the answers are made of. The configuration is swapped when the trust anchors' file changes.
pub struct Webhook {
    /// The operator's configuration, with the trust anchors' text in it.
    pub config: ArcSwap<InjectorConfig>,
    /// The cluster around the pods.
    pub cluster: Arc<dyn Cluster>,
    /// What is counted.
    pub metrics: Metrics,
}

type Reply = Response<Full<Bytes>>;

impl Webhook {
    /// Answers one HTTP request.
    async fn respond(self: Arc<Self>, request: Request<Incoming>) -> Reply {
        if request.method() != Method::POST {
            let mut reply =
                text(StatusCode::METHOD_NOT_ALLOWED, "an AdmissionReview is sent with POST\n".to_owned());
            reply.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static("POST"));
            return reply;
        }
        let body = match timeout(PATIENCE, Limited::new(request.into_body(), MAX_BODY).collect()).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) if error.is::<LengthLimitError>() => {
                return text(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    format!("the body is longer than {MAX_BODY} bytes\n"),
                );
            }
            Ok(Err(error)) => return text(StatusCode::BAD_REQUEST, format!("the body broke off: {error}\n")),
            Err(_) => {
                return text(StatusCode::REQUEST_TIMEOUT, "the body took longer than 10 s\n".to_owned());
            }
        };
        // Deciding is short, but looking at the manifests reads files.
        let reviewed = tokio::task::spawn_blocking(move || {
            webhook::review(&body, &self.config.load(), self.cluster.as_ref(), &self.metrics)
        });
        match reviewed.await {
            Ok(Ok(review)) => {
                let mut reply = text(StatusCode::OK, review.to_string());
                let json = header::HeaderValue::from_static("application/json");
                reply.headers_mut().insert(header::CONTENT_TYPE, json);
                reply
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "a request was not understood");
                text(StatusCode::BAD_REQUEST, format!("{error}\n"))
            }
            Err(error) => {
                tracing::error!(%error, "a review panicked; this is a bug in Remora");
                text(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "the injector failed on this object; see its log\n".to_owned(),
                )
            }
        }
    }
}

fn text(status: StatusCode, body: String) -> Reply {
    let mut reply = Response::new(Full::new(Bytes::from(body)));
    *reply.status_mut() = status;
    reply
}

/// Answers AdmissionReviews until the drain begins; then lets those in flight finish. `drain` waits for them.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    webhook: Arc<Webhook>,
    tasks: Tasks,
    drain: Drain,
) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        // The semaphore is never closed.
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = drain.draining() => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "the webhook cannot accept a connection");
                // Out of descriptors, accept fails at once and again; wait for others to give some back.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (acceptor, webhook, drain) = (TlsAcceptor::from(tls.clone()), webhook.clone(), drain.clone());
        tasks.spawn("webhook connection", async move {
            let _place = place;
            let _busy = drain.guard();
            let stream = match timeout(PATIENCE, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => return tracing::info!(%error, "a TLS handshake failed"),
                Err(_) => return tracing::info!("a TLS handshake took longer than 10 s"),
            };
            let service = service_fn(move |request| {
                let webhook = webhook.clone();
                async move { Ok::<_, Infallible>(webhook.respond(request).await) }
            });
            let mut builder = auto::Builder::new(TokioExecutor::new());
            builder.http1().timer(TokioTimer::new()).header_read_timeout(PATIENCE);
            builder.http2().timer(TokioTimer::new()).keep_alive_interval(PATIENCE).max_concurrent_streams(64);
            let connection = builder.serve_connection(TokioIo::new(stream), service);
            tokio::pin!(connection);
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                () = drain.draining() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = ended {
                tracing::debug!(error, "a connection ended with an error");
            }
        });
    }
}

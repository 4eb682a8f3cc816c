//! A control plane that says what a test wants, in Linkerd's API and byte by byte: it can also say what no library would.
//!
//! It stands where destination and policy stand, with their identity. Messages are made from the types of
//! `linkerd2-proxy-api`; framing is written here (gRPC over HTTP/2), so that it can be wrong.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use linkerd2_proxy_api::{destination as dst, inbound, meta, net, outbound};
use prost::Message;
use tokio::net::TcpListener;
use tokio::sync::{broadcast, oneshot, watch};
use tokio_rustls::TlsAcceptor;

use crate::mesh::{Mesh, NAMESPACE};
use crate::peer;
use crate::sandbox::join_net;

/// Who destination and policy are.
const IDENTITY: &str = "remora-destination.remora.serviceaccount.identity.remora.cluster.local";
/// Destination's port and policy's.
const PORTS: [u16; 2] = [8086, 8090];
/// Messages that a stream may be behind.
const BEHIND: usize = 4096;

/// What a stream is asked for: the method's name, and the address, authority or port that it is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Asked {
    pub method: String,
    pub about: String,
}

/// What is answered.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Before anything else is said.
    pub after: Duration,
    /// Said at once, then.
    pub messages: Vec<Bytes>,
    pub then: Then,
}

/// How a stream goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// What is [pushed](Controller::push) follows.
    Hold,
    /// A gRPC status.
    End(u16),
}

impl Reply {
    /// These messages, and what is pushed.
    pub fn says(messages: impl IntoIterator<Item = Bytes>) -> Self {
        Self { after: Duration::ZERO, messages: messages.into_iter().collect(), then: Then::Hold }
    }

    /// A status (5 is `NOT_FOUND`, 14 `UNAVAILABLE`) and nothing else.
    pub fn fails(status: u16) -> Self {
        Self { after: Duration::ZERO, messages: Vec::new(), then: Then::End(status) }
    }
}

type Script = Arc<dyn Fn(&Asked) -> Reply + Send + Sync>;

struct State {
    script: Mutex<Script>,
    asked: Mutex<BTreeMap<Asked, Vec<Instant>>>,
    /// Streams that wait for what is pushed.
    open: Mutex<BTreeMap<Asked, usize>>,
    connections: Mutex<BTreeMap<u16, Vec<Instant>>>,
    /// Whether connections are closed as soon as they are made.
    closing: std::sync::atomic::AtomicBool,
    /// Changes when connections are to end.
    cuts: watch::Sender<u64>,
    pushes: broadcast::Sender<(Asked, Bytes)>,
}

/// A running control plane. Ends when dropped.
pub struct Controller {
    state: Arc<State>,
    quit: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Stands for the destination pod: its Services lead here.
const POD: &str = "
kind: Pod
apiVersion: v1
metadata: {name: scripted, namespace: remora, labels: {linkerd.io/control-plane-component: destination}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: destination, image: busybox, command: [sleep, infinity]}
";

impl Controller {
    /// Takes the place of the mesh's destination and policy.
    ///
    /// # Errors
    /// The pod cannot be made, or its ports cannot be had.
    pub fn replace(mesh: &Mesh, script: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Result<Self> {
        mesh.pod(NAMESPACE, "remora-destination")?.kill()?;
        mesh.apply(POD)?;
        let pod = mesh.pod(NAMESPACE, "scripted")?;
        mesh.wait_until("the scripted control plane", Duration::from_secs(20), || pod.is_ready())?;
        let own = mesh.certify(IDENTITY)?;
        let acceptor = TlsAcceptor::from(peer::server(mesh.root(), &own, &[])?);
        let state = Arc::new(State {
            script: Mutex::new(Arc::new(script)),
            asked: Mutex::default(),
            open: Mutex::default(),
            connections: Mutex::default(),
            closing: false.into(),
            cuts: watch::Sender::new(0),
            pushes: broadcast::Sender::new(BEHIND),
        });
        let (quit, told) = oneshot::channel();
        let (up, is_up) = mpsc::channel();
        let (sandbox, serving) = (pod.sandbox()?, state.clone());
        let thread = std::thread::Builder::new().name("controller".into()).spawn(move || {
            let begin = || -> Result<_> {
                join_net(sandbox)?;
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                let any = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
                let listen = |port| runtime.block_on(TcpListener::bind(SocketAddr::new(any, port)));
                let listeners: Vec<_> = PORTS.into_iter().map(listen).collect::<std::io::Result<_>>()?;
                Ok((runtime, listeners))
            };
            match begin() {
                Ok((runtime, listeners)) => {
                    let _ = up.send(Ok(()));
                    for listener in listeners {
                        runtime.spawn(accept(listener, acceptor.clone(), serving.clone()));
                    }
                    // Dropped or told: either way it is over.
                    let _ = runtime.block_on(told);
                    runtime.shutdown_background();
                }
                Err(error) => {
                    let _ = up.send(Err(error));
                }
            }
        })?;
        is_up.recv().unwrap_or_else(|_| Err(anyhow!("the controller's thread ended")))?;
        Ok(Self { state, quit: Some(quit), thread: Some(thread) })
    }

    /// From now on this is answered; streams that are open stay as they are.
    pub fn answer(&self, script: impl Fn(&Asked) -> Reply + Send + Sync + 'static) {
        *lock(&self.state.script) = Arc::new(script);
    }

    /// Says this on every open stream that was asked for so. How many there are.
    pub fn push(&self, method: &str, about: &str, message: Bytes) -> usize {
        let asked = Asked { method: method.into(), about: about.into() };
        let open = lock(&self.state.open).get(&asked).copied().unwrap_or_default();
        // Without a stream of any kind there is nobody to hear it.
        let _ = self.state.pushes.send((asked, message));
        open
    }

    /// How many streams that were asked for so are open.
    pub fn listening(&self, method: &str, about: &str) -> usize {
        let asked = Asked { method: method.into(), about: about.into() };
        lock(&self.state.open).get(&asked).copied().unwrap_or_default()
    }

    /// Closes connections as soon as they are made, or no more.
    pub fn close_all(&self, close: bool) {
        self.state.closing.store(close, std::sync::atomic::Ordering::Relaxed);
    }

    /// Ends every connection that is open, in the middle of whatever it carries.
    pub fn cut(&self) {
        self.state.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// When it was asked so, since [`Self::forget`].
    pub fn times(&self) -> BTreeMap<Asked, Vec<Instant>> {
        lock(&self.state.asked).clone()
    }

    /// When connections were made to each port, since [`Self::forget`].
    pub fn connections(&self) -> BTreeMap<u16, Vec<Instant>> {
        lock(&self.state.connections).clone()
    }

    /// Begins to count anew.
    pub fn forget(&self) {
        lock(&self.state.asked).clear();
        lock(&self.state.connections).clear();
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        drop(self.quit.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been printed.
            let _ = thread.join();
        }
    }
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, state: Arc<State>) {
    let port = listener.local_addr().map_or(0, |address| address.port());
    while let Ok((tcp, _)) = listener.accept().await {
        lock(&state.connections).entry(port).or_default().push(Instant::now());
        let (acceptor, state) = (acceptor.clone(), state.clone());
        tokio::spawn(async move {
            let Ok(tls) = acceptor.accept(tcp).await else { return };
            if state.closing.load(std::sync::atomic::Ordering::Relaxed) {
                return;
            }
            let service = service_fn(|request| {
                let state = state.clone();
                async move { Ok::<_, Infallible>(answer(&state, request).await) }
            });
            let mut cuts = state.cuts.subscribe();
            let serving =
                http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(tls), service);
            tokio::select! {
                // The proxy says how it ended, if that matters.
                _ = serving => {}
                _ = cuts.changed() => {}
            }
        });
    }
}

type Body = BoxBody<Bytes, Infallible>;

/// Counts a stream that waits for what is pushed.
struct Open(Arc<State>, Asked);

impl Open {
    fn new(state: &Arc<State>, asked: &Asked) -> Self {
        *lock(&state.open).entry(asked.clone()).or_default() += 1;
        Self(state.clone(), asked.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(open) = lock(&self.0.open).get_mut(&self.1) {
            *open -= 1;
        }
    }
}

async fn answer(state: &Arc<State>, request: Request<Incoming>) -> Response<Body> {
    let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
    let path = request.uri().path().to_owned();
    if path.starts_with("/remora.") {
        return unimplemented();
    }
    let body =
        request.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let about = about(&path, body.get(5..).unwrap_or_default()).unwrap_or_default();
    let asked = Asked { method, about };
    lock(&state.asked).entry(asked.clone()).or_default().push(Instant::now());
    let pushed = state.pushes.subscribe();
    let script = lock(&state.script).clone();
    let reply = script(&asked);
    tokio::time::sleep(reply.after).await;
    let open = (reply.then == Then::Hold).then(|| Open::new(state, &asked));
    let said = futures_util::stream::iter(reply.messages.into_iter().map(|message| framed(&message)));
    let then =
        futures_util::stream::unfold((pushed, Some(reply.then), open), move |(mut pushed, then, open)| {
            let asked = asked.clone();
            async move {
                match then? {
                    Then::End(status) => Some((ended(status), (pushed, None, open))),
                    Then::Hold => loop {
                        match pushed.recv().await {
                            Ok((about, message)) if about == asked => {
                                return Some((framed(&message), (pushed, Some(Then::Hold), open)));
                            }
                            Ok(_) => {}
                            // Behind, or over.
                            Err(_) => return Some((ended(14), (pushed, None, open))),
                        }
                    },
                }
            }
        });
    let body = StreamBody::new(futures_util::StreamExt::map(futures_util::StreamExt::chain(said, then), Ok));
    let mut response = Response::new(body.boxed());
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    response
}

/// It is one of Linkerd's, which has no API of ours (gRPC over HTTP/2, "Trailers-Only").
fn unimplemented() -> Response<Body> {
    let mut response = Response::new(StreamBody::new(futures_util::stream::empty()).boxed());
    response.headers_mut().insert("grpc-status", HeaderValue::from_static("12"));
    response
}

/// Five bytes of framing, uncompressed, and the message.
fn framed(message: &Bytes) -> Frame<Bytes> {
    let mut frame = BytesMut::with_capacity(message.len() + 5);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    frame.extend_from_slice(message);
    Frame::data(frame.freeze())
}

fn ended(status: u16) -> Frame<Bytes> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from(status));
    Frame::trailers(trailers)
}

fn about(path: &str, message: &[u8]) -> Option<String> {
    if path.contains("Destination") {
        return Some(dst::GetDestination::decode(message).ok()?.path);
    }
    if path.contains("OutboundPolicies") {
        let outbound::traffic_spec::Target::Addr(address) =
            outbound::TrafficSpec::decode(message).ok()?.target?
        else {
            return None;
        };
        return SocketAddr::try_from(address).ok().map(|address| address.to_string());
    }
    if path.contains("InboundServerPolicies") {
        return inbound::PortSpec::decode(message).ok().map(|spec| spec.port.to_string());
    }
    None
}

/// The policy of a Service all of whose traffic is balanced over the endpoints of `authority`.
///
/// # Errors
/// None that a test could cause.
pub fn balanced(authority: &str) -> Result<Bytes> {
    use outbound::proxy_protocol::{Detect, Http1, Http2, Kind, Opaque};
    let named = |name: &str| meta::Metadata { kind: Some(meta::metadata::Kind::Default(name.into())) };
    let backend = || outbound::Backend {
        metadata: Some(named("service")),
        kind: Some(outbound::backend::Kind::Balancer(outbound::backend::BalanceP2c {
            discovery: Some(outbound::backend::EndpointDiscovery {
                kind: Some(outbound::backend::endpoint_discovery::Kind::Dst(
                    outbound::backend::endpoint_discovery::DestinationGet { path: authority.into() },
                )),
            }),
            load: Some(outbound::backend::balance_p2c::Load::PeakEwma(
                outbound::backend::balance_p2c::PeakEwma::default(),
            )),
        })),
        ..Default::default()
    };
    let http = || {
        use outbound::http_route::{Distribution, RouteBackend, Rule, distribution};
        let one = RouteBackend { backend: Some(backend()), ..Default::default() };
        let first = distribution::FirstAvailable { backends: vec![one] };
        let backends = Some(Distribution { kind: Some(distribution::Kind::FirstAvailable(first)) });
        let rule = Rule { backends, ..Default::default() };
        outbound::HttpRoute { metadata: Some(named("http")), rules: vec![rule], ..Default::default() }
    };
    let bytes = || {
        use outbound::opaque_route::{Distribution, RouteBackend, Rule, distribution};
        let one = RouteBackend { backend: Some(backend()), ..Default::default() };
        let first = distribution::FirstAvailable { backends: vec![one] };
        let backends = Some(Distribution { kind: Some(distribution::Kind::FirstAvailable(first)) });
        let rule = Rule { backends, ..Default::default() };
        outbound::OpaqueRoute { metadata: Some(named("bytes")), rules: vec![rule] }
    };
    let detect = Detect {
        timeout: None,
        opaque: Some(Opaque { routes: vec![bytes()] }),
        http1: Some(Http1 { routes: vec![http()], failure_accrual: None }),
        http2: Some(Http2 { routes: vec![http()], failure_accrual: None }),
    };
    let protocol = Some(outbound::ProxyProtocol { kind: Some(Kind::Detect(detect)) });
    let metadata = Some(named("scripted"));
    encode(&outbound::OutboundPolicy { metadata, protocol })
}

/// Endpoints to add, without identity.
///
/// # Errors
/// None that a test could cause.
pub fn add(addresses: impl IntoIterator<Item = SocketAddr>) -> Result<Bytes> {
    let one = |address: SocketAddr| dst::WeightedAddr {
        addr: Some(net::TcpAddress::from(address)),
        weight: 1,
        ..Default::default()
    };
    let addrs = addresses.into_iter().map(one).collect();
    let set = dst::WeightedAddrSet { addrs, ..Default::default() };
    encode(&dst::Update { update: Some(dst::update::Update::Add(set)) })
}

/// Endpoints to remove.
///
/// # Errors
/// None that a test could cause.
pub fn remove(addresses: impl IntoIterator<Item = SocketAddr>) -> Result<Bytes> {
    let set = dst::AddrSet { addrs: addresses.into_iter().map(net::TcpAddress::from).collect() };
    encode(&dst::Update { update: Some(dst::update::Update::Remove(set)) })
}

/// That there are no endpoints.
///
/// # Errors
/// None that a test could cause.
pub fn nobody() -> Result<Bytes> {
    let none = dst::NoEndpoints { exists: true };
    encode(&dst::Update { update: Some(dst::update::Update::NoEndpoints(none)) })
}

/// Any message.
///
/// # Errors
/// None that a test could cause.
pub fn encode(message: &impl Message) -> Result<Bytes> {
    let mut bytes = BytesMut::new();
    message.encode(&mut bytes).context("encoding")?;
    Ok(bytes.freeze())
}

//! One endpoint as a worker knows it: how to dial it, its connections, its load, its health, its metrics.

use crate::{
    Worker,
    breaker::{Breaker, Trial},
    config::SocketConfig,
    connect,
    discover::AskAgain,
    fault::Fault,
    http::client::{Client, Dial, PoolLimits},
    limits::{Limiter, Permit},
    metrics::{RequestMetrics, TcpMetrics, tcp::Open},
    mux::neighbour::Neighbour,
    plaintext,
    stream::{Meter, Stream},
    tls,
};
use remora_core::{
    backoff::Backoff,
    balance::{Limited, Refusal, Standing},
    endpoint::{DialPlan, Endpoint, EndpointTls, ProtocolHint},
    ewma::PeakEwma,
    header::SessionProtocol,
    time::Time,
};
use remora_runtime::{clock, tls::Credentials};
use rustls::ClientConfig;
use std::{
    io,
    net::SocketAddr,
    num::NonZeroU16,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{net::TcpStream, sync::watch, time::timeout};

/// How long an endpoint that refused a connection is passed over. Contract 1.8.
const REACH_AGAIN: Backoff =
    Backoff { min: Duration::from_millis(100), max: Duration::from_mins(1), jitter: 0.1 };

/// One endpoint of one balancer of one worker.
pub struct LiveEndpoint {
    endpoint: Endpoint,
    dialer: Dialer,
    /// Why nothing at all may be sent to it.
    forbidden: Option<Fault>,
    client: Arc<Client>,
    state: Mutex<State>,
    /// Where failures are counted against it.
    breaker: Option<Breaker>,
    again: Option<AskAgain>,
    limiter: Option<Arc<Limiter>>,
    pub requests: Arc<RequestMetrics>,
    pub tcp: Arc<TcpMetrics>,
}

/// What an endpoint has of its balancer.
pub struct Place<'a> {
    /// The balancer's destination, if there is one.
    pub authority: Option<&'a str>,
    /// The first estimate of a round trip, and after how long a measurement counts for 1/e.
    pub ewma: (Duration, Duration),
    /// Where failures are counted against it.
    pub breaker: Option<Breaker>,
    /// Whom to ask whether it is there at all, when it refuses connections.
    pub again: Option<AskAgain>,
    /// How much there may be under way to its Service.
    pub limiter: Option<Arc<Limiter>>,
}

struct State {
    ewma: PeakEwma,
    in_flight: u32,
    refusals: u32,
    /// Of the first of these refusals.
    refusing_since: Time,
    not_before: Time,
}

/// Opens connections to one endpoint.
struct Dialer {
    plan: DialPlan,
    limit: Duration,
    socket: SocketConfig,
    credentials: watch::Receiver<Option<Arc<Credentials>>>,
    /// Sessions resume per endpoint and epoch of credentials.
    config: Mutex<Option<(u64, Arc<ClientConfig>)>>,
    /// The proxy behind which it is, if connections to it go by that proxy's own port.
    neighbour: Option<Arc<Neighbour>>,
    /// An opaque endpoint is never told that a connection is HTTP.
    opaque: bool,
    /// The name behind a multicluster gateway: nothing is sent to its own ports in the name's place.
    gateway: Option<Arc<str>>,
}

impl LiveEndpoint {
    pub fn new(worker: &Arc<Worker>, endpoint: Endpoint, place: Place<'_>) -> Arc<Self> {
        let Place { authority, ewma: (rtt, decay), breaker, again, limiter } = place;
        let proxy = &worker.proxy;
        let config = &proxy.config;
        let now = clock::now();
        let plan = endpoint.dial_plan(&config.inbound.ips);
        let metrics = proxy.metrics.endpoint(&endpoint, &plan, authority);
        let policy = config.outbound.default_policy;
        let forbidden = plaintext::forbidden(policy, &plan, |addr| proxy.in_cluster(addr.ip()));
        let neighbour = match &plan {
            DialPlan::Direct { addr, tls, .. } => Some(worker.neighbours.neighbour(worker, *addr, tls)),
            DialPlan::Plain { .. } | DialPlan::Transparent { .. } => None,
        };
        let client = Client::new(PoolLimits {
            idle: config.outbound.http1_pool_idle,
            max_age: config.limits.pool_max_age,
            max_idle: config.limits.max_idle_per_endpoint,
            max_header_bytes: config.limits.max_header_bytes,
            max_headers: config.limits.max_headers,
            max_replay: config.limits.max_retry_body,
        });
        if let Some(limiter) = &limiter {
            limiter.join(&client);
        }
        Arc::new(Self {
            forbidden,
            dialer: Dialer {
                plan,
                limit: config.outbound.connect_timeout,
                socket: config.outbound.socket,
                credentials: proxy.credentials.clone(),
                config: Mutex::new(None),
                neighbour,
                opaque: endpoint.hint == ProtocolHint::Opaque,
                gateway: endpoint.authority_override.clone(),
            },
            client,
            limiter,
            state: Mutex::new(State {
                ewma: PeakEwma::new(rtt, decay, now),
                in_flight: 0,
                refusals: 0,
                refusing_since: now,
                not_before: now,
            }),
            breaker,
            again,
            endpoint,
            requests: metrics.0,
            tcp: metrics.1,
        })
    }

    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    pub fn plan(&self) -> &DialPlan {
        &self.dialer.plan
    }

    pub fn client(&self) -> &Arc<Client> {
        &self.client
    }

    /// Load per share of traffic.
    pub fn load(&self, now: Time) -> f64 {
        let state = self.state();
        state.ewma.load(state.in_flight, now) / f64::from(self.endpoint.weight.max(1))
    }

    /// Why nothing at all may be sent to it, where policy demands the identity that it does not have.
    pub fn forbidden(&self) -> Option<&Fault> {
        self.forbidden.as_ref()
    }

    /// What the balancer compares: usable, unless it refused a connection just now (the second result), has no weight, is
    /// left out, or must not be sent to. The last is better than nobody still: whoever picks it is told why.
    pub fn standing(&self, now: Time) -> (Standing, bool) {
        let admitted = self.admits(now);
        let may = self.endpoint.weight > 0 && self.forbidden.is_none();
        let state = self.state();
        let refuses = state.not_before > now;
        let standing = Standing {
            usable: may && !refuses && admitted,
            rtt_ns: state.ewma.estimate(now),
            kept_rtt_ns: state.ewma.measured(),
            in_flight: state.in_flight,
        };
        (standing, refuses)
    }

    /// Since when the endpoint refuses connections, while it is passed over for it.
    pub fn refusal(&self, now: Time) -> Option<Refusal> {
        let state = self.state();
        (state.not_before > now).then_some(Refusal { since: state.refusing_since, until: state.not_before })
    }

    /// Where failures are counted against it, if they are.
    pub fn breaker(&self) -> Option<&Breaker> {
        self.breaker.as_ref()
    }

    /// Does its breaker admit a request?
    pub fn admits(&self, now: Time) -> bool {
        self.breaker.as_ref().is_none_or(|breaker| breaker.admits(now))
    }

    /// Requests and opaque connections under way.
    pub fn in_flight(&self) -> u32 {
        self.state().in_flight
    }

    /// Counts one more request or connection, begun `now`, until the guard is dropped.
    pub fn begin(self: &Arc<Self>, now: Time) -> InFlight {
        self.state().in_flight += 1;
        // That policy forbids it says nothing of how it is.
        let breaker = self.breaker.as_ref().filter(|_| self.forbidden.is_none());
        let trial = breaker.and_then(|breaker| breaker.begin(now));
        InFlight { endpoint: self.clone(), started: now, answered: false, trial, stream: None }
    }

    /// The same of a request, of which its Service may want no more.
    pub fn begin_request(self: &Arc<Self>, now: Time) -> Result<InFlight, Fault> {
        let stream = self.permit(Limited::ConcurrentStreams)?;
        let mut in_flight = self.begin(now);
        in_flight.stream = stream;
        Ok(in_flight)
    }

    fn permit(&self, what: Limited) -> Result<Option<Permit>, Fault> {
        self.limiter.as_ref().map(|limiter| limiter.take(what)).transpose()
    }

    /// Opens a connection for bytes that are not HTTP (or that the endpoint must not take for HTTP).
    pub async fn connect_opaque(&self) -> Result<Stream, Fault> {
        self.connect(None).await
    }

    /// The only way to the endpoint, for requests, bytes, mirrors, retries and speculation alike.
    async fn connect(&self, session: Option<SessionProtocol>) -> Result<Stream, Fault> {
        if let Some(fault) = &self.forbidden {
            // It is not passed over for this, so that whoever comes next is told why as well.
            return Err(fault.clone());
        }
        let permit = match &self.limiter {
            Some(limiter) => Some(limiter.connection().await?),
            None => None,
        };
        let connected = self.dialer.connect(session).await;
        let mut state = self.state();
        let now = clock::now();
        if connected.is_ok() {
            state.refusals = 0;
            state.not_before = now;
        } else {
            if state.refusals == 0 {
                state.refusing_since = now;
            }
            state.not_before = now + REACH_AGAIN.delay(state.refusals, clock::random());
            state.refusals = state.refusals.saturating_add(1);
        }
        drop(state);
        // It may be gone, and another in its place.
        if let (Some(again), Err(fault)) = (&self.again, &connected)
            && fault.is_connect()
        {
            again.ask();
        }
        let open = self.tcp.open();
        connected.map(|stream| match permit {
            None => stream.metered(Arc::new(open)),
            Some(permit) => stream.metered(Arc::new(Counted { open, _permit: permit })),
        })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Dial for Arc<LiveEndpoint> {
    async fn dial(&self, session: SessionProtocol) -> Result<Stream, Fault> {
        self.connect(Some(session)).await
    }

    fn wait(&self) -> Result<Option<Permit>, Fault> {
        self.permit(Limited::PendingRequests)
    }
}

/// An open connection of which there may be only so many.
struct Counted {
    open: Open,
    _permit: Permit,
}

impl Meter for Counted {
    fn read(&self, bytes: usize) {
        self.open.read(bytes);
    }

    fn wrote(&self, bytes: usize) {
        self.open.wrote(bytes);
    }

    fn failed(&self, error: &io::Error) {
        self.open.failed(error);
    }
}

impl Dialer {
    /// Connects, handshakes and announces, all within one limit.
    async fn connect(&self, session: Option<SessionProtocol>) -> Result<Stream, Fault> {
        let (DialPlan::Plain { addr, .. }
        | DialPlan::Transparent { addr, .. }
        | DialPlan::Direct { addr, .. }) = self.plan;
        if let Some(name) = &self.gateway {
            let reason = "it is behind a multicluster gateway, which this proxy does not speak to".into();
            return Err(Fault::Forbidden { target: name.clone(), reason });
        }
        let session = if self.opaque { None } else { session };
        let connecting = async {
            match (&self.plan, &self.neighbour) {
                (DialPlan::Direct { port, .. }, Some(neighbour)) => {
                    let port = NonZeroU16::new(*port).ok_or(Fault::BadTarget("port 0"))?;
                    neighbour.connect(port, session).await
                }
                (DialPlan::Transparent { tls, .. }, _) => {
                    let config = self.config()?;
                    Ok(tls::originate(config, self.tcp(addr).await?, addr, tls).await?.stream)
                }
                (DialPlan::Plain { .. }, _) => Ok(Stream::plain(self.tcp(addr).await?)),
                // There is one wherever a connection is direct; without it nothing goes there in plaintext.
                (DialPlan::Direct { .. }, None) => Err(Fault::BadTarget("its proxy is not known")),
            }
        };
        timeout(self.limit, connecting)
            .await
            .unwrap_or(Err(Fault::ConnectTimeout { addr, limit: self.limit }))
    }

    async fn tcp(&self, addr: SocketAddr) -> Result<TcpStream, Fault> {
        let (keepalive, user_timeout) = connect::dialled(&self.socket);
        connect::tcp(addr, self.limit, keepalive, user_timeout).await
    }

    fn config(&self) -> Result<Arc<ClientConfig>, Fault> {
        let credentials = self.credentials.borrow().clone().ok_or(Fault::NoCredentials)?;
        let mut cached = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        match &*cached {
            Some((epoch, config)) if *epoch == credentials.epoch() => Ok(config.clone()),
            _ => {
                let config = credentials.client_config_for_endpoint(false);
                *cached = Some((credentials.epoch(), config.clone()));
                Ok(config)
            }
        }
    }
}

/// The identity that an endpoint must have, for labels and `l5d-require-id`.
pub fn identity(plan: &DialPlan) -> Option<&EndpointTls> {
    match plan {
        DialPlan::Plain { .. } => None,
        DialPlan::Transparent { tls, .. } | DialPlan::Direct { tls, .. } => Some(tls),
    }
}

/// A request or connection under way; its first answer is a round trip.
pub struct InFlight {
    endpoint: Arc<LiveEndpoint>,
    started: Time,
    answered: bool,
    /// What of it counts for the endpoint's breaker.
    trial: Option<Trial>,
    /// One of the requests that its Service wants only so many of.
    stream: Option<Permit>,
}

impl InFlight {
    /// The first bytes of the answer's body are there.
    pub fn answered(&mut self) {
        if !self.answered {
            self.answered = true;
            let now = clock::now();
            self.endpoint.state().ewma.observe(now.since(self.started), now);
        }
    }

    /// What counts for the endpoint's breaker, if it has one.
    pub fn trial(&mut self) -> Option<&mut Trial> {
        self.trial.as_mut()
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if let (Some(breaker), Some(trial)) = (&self.endpoint.breaker, &self.trial) {
            breaker.end(trial);
        }
        // Without an answer there was no round trip: an endpoint that fails fast must not look fast.
        let mut state = self.endpoint.state();
        state.in_flight = state.in_flight.saturating_sub(1);
    }
}

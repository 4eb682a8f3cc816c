//! THE LIFE OF AN OUTBOUND CONNECTION, top to bottom.
//!
//! ```text
//! accept → original destination → discover → detect, unless told → HTTP, or balance → dial and mTLS → header → copy
//! ```

use crate::{
    Worker,
    discover::{
        Place,
        target::{Plan, PlanProtocol, Split, Target, TlsPlan},
    },
    endpoint::{InFlight, LiveEndpoint},
    fault::Fault,
    http::{self, request},
    inbound::Rest,
    listen::Accepted,
    metrics::detect::Served,
    sniff::{self, AsServer, First, Never, Speculate},
    stream::Stream,
    tcp,
};
use remora_core::{detect::Protocol, header::SessionProtocol, route};
use std::{future::pending, net::SocketAddr, sync::Arc, time::Duration};
use tokio::sync::OwnedSemaphorePermit;

/// A spare connection on which nobody speaks is dropped after so long. Design: server-first speculation.
const PATIENCE: Duration = Duration::from_secs(10);

/// Serves a connection to its end.
pub async fn serve(worker: Arc<Worker>, accepted: Accepted) -> Result<(), Fault> {
    let Accepted { tcp, client, target: addr, permit } = accepted;
    let permit = Arc::new(permit);
    // A drain waits for what is being looked up, and for whoever has spoken.
    let stream = Stream::plain(tcp).attended(&worker.proxy.drain);
    let stream = stream.metered(Arc::new(worker.proxy.metrics.outbound_tcp(addr).open()));
    let rest = match Box::pin(lookup(&worker, client, addr)).await {
        Ok(target) => Box::pin(planned(&worker, &target, stream, permit.clone())).await,
        Err(fault) => Box::pin(refuse(&worker, stream, &fault)).await.and(Err(fault)),
    };
    let served = match rest {
        Ok(rest) => rest.await,
        Err(fault) => Err(fault),
    };
    if let Err(fault) = &served {
        worker.proxy.metrics.outbound_fault(fault);
    }
    served
}

/// What is this target?
async fn lookup(worker: &Arc<Worker>, client: SocketAddr, addr: SocketAddr) -> Result<Arc<Target>, Fault> {
    let own = worker.proxy.config.outbound.listen.iter().any(|listen| listen.port() == addr.port());
    if addr.ip().is_loopback() || addr == client || own && worker.proxy.is_own_address(addr.ip()) {
        return Err(Fault::Loop(addr));
    }
    worker.proxy.has_room()?;
    let target = worker.targets.target(worker, Place::Addr(addr))?;
    target.first_plan(worker).await?;
    Ok(target)
}

/// As the plan says: finds out what the connection is, and who serves it. What is left of it is returned.
async fn planned(
    worker: &Arc<Worker>,
    target: &Arc<Target>,
    mut stream: Stream,
    permit: Arc<OwnedSemaphorePermit>,
) -> Result<Rest, Fault> {
    let plan = target.plan(worker);
    if let Some(pod) = &plan.pod {
        pod.connections.inc();
    }
    let metrics = &worker.proxy.metrics;
    // Requests say themselves where they go then, whatever is declared of this destination: detection always runs.
    // Contract 4.9.
    let ingress = worker.proxy.config.ingress_mode;
    let (protocol, spare) = match &plan.protocol {
        declared if ingress && declared.opaque().is_none() => {
            return Box::pin(undeclared(worker, target, &plan, stream, permit)).await;
        }
        PlanProtocol::Invalid(reason) => {
            let fault =
                Fault::InvalidPolicy { target: target.place.to_string().into(), reason: reason.clone() };
            return Box::pin(refuse(worker, stream, &fault)).await.and(Err(fault));
        }
        PlanProtocol::Http1(_) => (Protocol::Http1, None),
        PlanProtocol::Http2(_) => (Protocol::Http2, None),
        PlanProtocol::Opaque(split) if !ingress => {
            if let Some(reason) = split.forbids() {
                // A port that the Service does not define arrives as bytes that are forbidden (contract 3.3). Whoever
                // speaks HTTP can be told.
                let fault = Fault::Forbidden { target: plan.parent.name.clone(), reason };
                return Box::pin(refuse(worker, stream, &fault)).await.and(Err(fault));
            }
            return Box::pin(opaque(worker, split, stream, None, Served::Opaque)).await;
        }
        PlanProtocol::Tls(plans) => {
            let sni = server_name(worker, &mut stream).await?;
            let split = by_sni(plans, sni.as_deref()).inspect_err(|_| stream.reset_on_close())?;
            return Box::pin(opaque(worker, split, stream, None, Served::Tls)).await;
        }
        PlanProtocol::Detect { opaque: split, .. } | PlanProtocol::Opaque(split) => {
            let speculation = Speculation { worker, target, split };
            let began = remora_runtime::clock::now();
            let limit = worker.proxy.config.outbound.detect_timeout;
            let detected = Box::pin(sniff::protocol(&mut stream, limit, &speculation)).await;
            let detected = detected.inspect_err(|_| {
                metrics.detect_outbound.lost(began);
                stream.reset_on_close();
            })?;
            metrics.detect_outbound.verdict(&detected, began);
            match detected.first {
                First::Server(server) => {
                    return Box::pin(opaque(worker, split, stream, Some(server), Served::Opaque)).await;
                }
                First::Client(Protocol::Tls, spare) if plan.is_of_several() => {
                    // Opened to the pod for whoever names no other of its Services.
                    drop(spare);
                    let sni = server_name(worker, &mut stream).await?;
                    let plan = plan.clone().named(|| sni.as_deref().unwrap_or_default());
                    let split = of_bytes(&plan, sni.as_deref()).inspect_err(|_| stream.reset_on_close())?;
                    return Box::pin(opaque(worker, split, stream, None, Served::Opaque)).await;
                }
                First::Client(Protocol::Opaque | Protocol::Tls, spare) => {
                    return Box::pin(opaque(worker, split, stream, spare, Served::Opaque)).await;
                }
                First::Client(protocol, spare) => (protocol, spare),
            }
        }
    };
    // A connection opened for bytes carries no requests: the header on it has announced none.
    drop(spare);
    let version = if protocol == Protocol::Http2 { SessionProtocol::Http2 } else { SessionProtocol::Http1 };
    Ok(requests(worker, target.clone(), stream, version, permit))
}

/// The server name of a ClientHello, if it is one and has one. A client that does not come to its end is reset.
async fn server_name(worker: &Worker, stream: &mut Stream) -> Result<Option<String>, Fault> {
    let limit = worker.proxy.config.outbound.detect_timeout;
    let sni = Box::pin(sniff::sni(stream, limit)).await;
    sni.inspect_err(|_| stream.reset_on_close())
}

/// Detects in spite of a declaration, see [`planned`].
async fn undeclared(
    worker: &Arc<Worker>,
    target: &Arc<Target>,
    plan: &Plan,
    mut stream: Stream,
    permit: Arc<OwnedSemaphorePermit>,
) -> Result<Rest, Fault> {
    let limit = worker.proxy.config.outbound.detect_timeout;
    let detected = Box::pin(sniff::protocol(&mut stream, limit, &Never)).await;
    let sni = match detected.inspect_err(|_| stream.reset_on_close())?.first {
        First::Client(Protocol::Http1, _) => {
            return Ok(requests(worker, target.clone(), stream, SessionProtocol::Http1, permit));
        }
        First::Client(Protocol::Http2, _) => {
            return Ok(requests(worker, target.clone(), stream, SessionProtocol::Http2, permit));
        }
        First::Client(Protocol::Tls, _) => server_name(worker, &mut stream).await?,
        First::Client(Protocol::Opaque, _) | First::Server(_) => None,
    };
    let split = of_bytes(plan, sni.as_deref()).inspect_err(|_| stream.reset_on_close())?;
    Box::pin(opaque(worker, split, stream, None, Served::Tls)).await
}

/// Requests: each is sent by itself, see [`request::outbound`].
fn requests(
    worker: &Arc<Worker>,
    target: Arc<Target>,
    stream: Stream,
    version: SessionProtocol,
    permit: Arc<OwnedSemaphorePermit>,
) -> Rest {
    let open = worker.proxy.metrics.outbound.serve(version.into());
    let context = Arc::new(request::Outbound::new(worker.clone(), target, permit));
    let settings = http::Settings::outbound(&worker.proxy.config);
    let drain = worker.proxy.drain.clone();
    Box::pin(async move {
        let _open = open;
        http::serve(stream, version, settings, &drain, http::no_news, move |request| {
            request::outbound(context.clone(), request)
        })
        .await
    })
}

/// Bytes: pick an endpoint, dial it with mTLS if it has an identity; what is left is to copy.
async fn opaque(
    worker: &Arc<Worker>,
    split: &Split,
    stream: Stream,
    spare: Option<Server>,
    served: Served,
) -> Result<Rest, Fault> {
    // A client may wait for what its server says first, and a drain with it.
    let busy = worker.proxy.drain.guard();
    let open = worker.proxy.metrics.outbound.serve(served);
    let server = match spare {
        Some(server) => server,
        None => match Box::pin(dial(split)).await {
            Ok(server) => server,
            Err(fault) => {
                // An orderly end without a byte would look like an answer.
                stream.reset_on_close();
                return Err(fault);
            }
        },
    };
    let Server { stream: server, in_flight, permit: speculative } = server;
    drop(speculative);
    let copying = Box::pin(tcp::forward(stream, server, pending()));
    Ok(Box::pin(async move {
        let _held = (busy, open, in_flight);
        copying.await
    }))
}

/// Dials an endpoint of the split; one that cannot be reached is followed by one other.
async fn dial(split: &Split) -> Result<Server, Fault> {
    let backend = split.pick()?;
    let first = backend.balancer.pick(None).await?;
    match connect(&first).await {
        Err(fault) if fault.is_connect() => {
            let second = backend.balancer.pick(Some(&first)).await?;
            if Arc::ptr_eq(&first, &second) { Err(fault) } else { connect(&second).await }
        }
        connected => connected,
    }
}

async fn connect(endpoint: &Arc<LiveEndpoint>) -> Result<Server, Fault> {
    let mut in_flight = endpoint.begin(remora_runtime::clock::now());
    let stream = endpoint.connect_opaque().await?;
    // Of bytes nobody knows what is an answer: the dial is the round trip that is measured.
    in_flight.answered();
    Ok(Server { stream, in_flight, permit: None })
}

/// Where bytes go whatever is declared: those of TLS with this SNI.
fn of_bytes<'a>(plan: &'a Plan, sni: Option<&str>) -> Result<&'a Split, Fault> {
    match &plan.protocol {
        PlanProtocol::Detect { opaque, .. } | PlanProtocol::Opaque(opaque) => Ok(opaque),
        PlanProtocol::Tls(plans) => by_sni(plans, sni),
        PlanProtocol::Http1(_) | PlanProtocol::Http2(_) => {
            Err(Fault::BadTarget("its Service declares HTTP, and the client speaks something else"))
        }
        PlanProtocol::Invalid(reason) => {
            Err(Fault::InvalidPolicy { target: plan.parent.name.clone(), reason: reason.clone() })
        }
    }
}

fn by_sni<'a>(plans: &'a [TlsPlan], sni: Option<&str>) -> Result<&'a Split, Fault> {
    let sni = sni.ok_or(Fault::BadTarget("a TLS route needs a server name"))?;
    let best = route::choose_sni(plans.iter().map(|plan| plan.snis.as_slice()), sni);
    best.and_then(|i| plans.get(i)).map(|plan| &*plan.split).ok_or_else(|| Fault::NoRoute(sni.into()))
}

/// Tells an HTTP client why; closes any other connection with a reset.
async fn refuse(worker: &Arc<Worker>, mut stream: Stream, fault: &Fault) -> Result<(), Fault> {
    let limit = worker.proxy.config.outbound.first_lookup;
    let first = tokio::time::timeout(limit, sniff::protocol(&mut stream, limit, &Never)).await;
    let version = match first.map(|found| found.map(|detected| detected.first)) {
        Ok(Ok(First::Client(Protocol::Http1, _))) => SessionProtocol::Http1,
        Ok(Ok(First::Client(Protocol::Http2, _))) => SessionProtocol::Http2,
        Ok(Ok(First::Client(Protocol::Opaque | Protocol::Tls, _) | First::Server(_)) | Err(_)) | Err(_) => {
            stream.reset_on_close();
            return Ok(());
        }
    };
    let settings = http::Settings::outbound(&worker.proxy.config);
    let informational = worker.proxy.config.outbound.informational_headers;
    let fault = fault.clone();
    http::serve(stream, version, settings, &worker.proxy.drain, http::no_news, move |request| {
        let answer = request::refuse(&fault, &request, informational);
        async move { Ok(answer) }
    })
    .await
}

/// A connection to an endpoint, for bytes.
struct Server {
    stream: Stream,
    in_flight: InFlight,
    /// Counts it among the speculative ones until it is used.
    permit: Option<OwnedSemaphorePermit>,
}

impl AsServer for Server {
    fn stream(&mut self) -> &mut Stream {
        &mut self.stream
    }
}

/// Dials the endpoint while the client is silent.
struct Speculation<'a> {
    worker: &'a Arc<Worker>,
    target: &'a Arc<Target>,
    split: &'a Split,
}

impl Speculate for Speculation<'_> {
    type Upstream = Server;

    async fn dial(&self) -> Result<Option<Server>, Fault> {
        let proxy = &self.worker.proxy;
        let Ok(permit) = proxy.speculative_permits.clone().try_acquire_owned() else {
            proxy.metrics.speculation_limited.inc();
            return Ok(None);
        };
        proxy.metrics.speculative_outbound.inc();
        match Box::pin(dial(self.split)).await {
            Ok(server) => Ok(Some(Server { permit: Some(permit), ..server })),
            Err(fault @ Fault::NoIdentity { .. }) => Err(fault),
            Err(_) => Ok(None),
        }
    }

    fn denied(&self) {
        self.target.deny_speculation();
    }

    fn delay(&self) -> Option<Duration> {
        let delay = self.worker.proxy.config.limits.server_first_delay;
        (self.target.may_speculate() && !delay.is_zero()).then_some(delay)
    }

    fn patience(&self) -> Duration {
        PATIENCE
    }
}

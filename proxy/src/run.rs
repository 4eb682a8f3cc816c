//! How the process is put together: one thread for admin, identity and discovery, one per worker for connections.

use crate::{
    Proxy, Worker, admin,
    config::Config,
    discover::source::Sources,
    fault::{Blame, Fault},
    http::access_log,
    inbound, listen, outbound, process, state,
};
use anyhow::{Context, Result};
use remora_core::cert::RefreshBounds;
use remora_runtime::{
    admin::Admin,
    certify::{Certifier, CertifierConfig, CertifyMetrics, GrpcCertify},
    control::{self, ClientAuth, ControlAddr, ControlMetrics, Resolver},
    log::LogHandle,
    metrics::Registry,
    tasks::{Drain, Tasks, shutdown_signal},
    tls::{Credentials, TrustBundle},
};
use std::{
    future::Future,
    net::{SocketAddr, TcpListener},
    pin::Pin,
    sync::Arc,
    time::Duration,
};
use tokio::sync::{Semaphore, watch};
use tracing::{debug, info, warn};

/// While there is no certificate, the log says so this often. Contract 1.1.
const REMIND: Duration = Duration::from_secs(15);

/// How long a connection that must not be made is waited for. Where the redirect takes it the kernel itself makes it at once.
const EXEMPTION: Duration = Duration::from_millis(100);

/// 100::/64 is for discarding (RFC 6666).
const DOCUMENTATION_V6: [u16; 8] = [0x100, 0, 0, 0, 0, 0, 0, 1];

/// Runs the proxy until it has been told to stop and has drained.
pub fn run(mut config: Config, env: Vec<(String, String)>, log: LogHandle) -> Result<()> {
    let listeners = Listeners::bind(&config)?;
    let control = runtime()?;
    let _entered = control.enter();
    let tasks = Tasks::new();
    let drain = Drain::new();
    let registry = Registry::new(config.metrics_retain);
    process::prepare(&mut config, &registry, &tasks);

    let asked = ControlMetrics::register(&registry);
    let credentials = credentials(&config, &registry, &asked, &tasks)?;
    let counted = (&registry, &asked);
    let proxy = Arc::new(assemble(config, credentials, counted, tasks, drain.clone(), control.handle())?);
    let workers: Vec<_> = (0..proxy.config.workers).map(|_| Arc::new(Worker::new(proxy.clone()))).collect();

    let budget = proxy.config.limits.metric_budget;
    registry.collect(crate::metrics::balancers::Balancers::new(workers.clone(), budget));

    let (ready, is_ready) = watch::channel(false);
    let state_of = (proxy.clone(), workers.clone());
    let admin = Admin {
        ready: is_ready.clone(),
        registry,
        log,
        state: Arc::new(move || state::state(&state_of.0, &state_of.1)),
        env,
        drain: drain.clone(),
        shutdown_endpoint: proxy.config.admin.shutdown_endpoint,
    };
    let mut threads = Vec::new();
    for (nth, (worker, sockets)) in workers.into_iter().zip(listeners.workers).enumerate() {
        let is_ready = is_ready.clone();
        let thread = std::thread::Builder::new().name(format!("worker-{nth}"));
        threads
            .push(thread.spawn(move || work(&worker, sockets, is_ready)).context("cannot start a worker")?);
    }
    control.block_on(supervise(proxy, listeners.admin, admin, ready, drain));
    for thread in threads {
        if thread.join().is_err() {
            warn!("a worker thread panicked");
        }
    }
    Ok(())
}

/// The control thread's work: admin, readiness, signals, the drain.
async fn supervise(
    proxy: Arc<Proxy>,
    admin_socket: TcpListener,
    admin: Admin,
    ready: watch::Sender<bool>,
    drain: Drain,
) {
    let admin_socket = match tokio::net::TcpListener::from_std(admin_socket) {
        Ok(socket) => socket,
        Err(error) => return warn!(%error, "the admin port cannot be served; stopping"),
    };
    let listening = proxy.config.clone();
    proxy.tasks.spawn("admin", admin::serve(proxy.clone(), admin_socket, Arc::new(admin)));
    let stop = async {
        tokio::select! {
            signal = shutdown_signal() => match signal {
                Ok(signal) => info!(signal, "stopping"),
                Err(error) => warn!(%error, "cannot listen for signals; stopping"),
            },
            () = drain.draining() => info!("asked to stop"),
        }
    };
    tokio::pin!(stop);
    tokio::select! {
        () = &mut stop => {}
        () = prepared(&proxy) => {
            info!(
                inbound = %listening.inbound.listen, outbound = ?listening.outbound.listen,
                admin = %listening.admin.listen, "ready"
            );
            ready.send_replace(true);
            stop.await;
        }
    }
    ready.send_replace(false);
    let left = drain.drained(proxy.config.shutdown_grace).await;
    if left > 0 {
        warn!(connections = left, grace = ?proxy.config.shutdown_grace, "the grace period is over; closing what is left");
    } else {
        info!("drained");
    }
}

/// Waits until the proxy may serve: it is not its own client, and it has a certificate.
async fn prepared(proxy: &Proxy) {
    tokio::join!(exempt(proxy), certified(proxy));
}

/// Waits until this process's own connections are exempt from the redirect. Documentation addresses answer nobody; a
/// connection to one that is made at once was made to our own outbound port. Design: Init.
async fn exempt(proxy: &Proxy) {
    let port = proxy.config.outbound.listen.first().map_or(4140, SocketAddr::port);
    let mut said = false;
    for probe in std::iter::repeat([
        SocketAddr::from(([192, 0, 2, 1], port)),
        SocketAddr::from((DOCUMENTATION_V6, port)),
    ]) {
        let dial = |addr| tokio::time::timeout(EXEMPTION, tokio::net::TcpStream::connect(addr));
        let (v4, v6) = tokio::join!(dial(probe[0]), dial(probe[1]));
        if !matches!(v4, Ok(Ok(_))) && !matches!(v6, Ok(Ok(_))) {
            return;
        }
        if !said {
            said = true;
            warn!(
                uid = rustix::process::getuid().as_raw(),
                "the redirect captures this proxy's own connections: its uid must be the one that remora-init was told \
                 with --proxy-uid; not ready until it is exempt"
            );
        }
        tokio::time::sleep(EXEMPTION).await;
    }
}

/// Waits for the first certificate, and says so while it waits.
async fn certified(proxy: &Proxy) {
    if proxy.config.identity.is_none() {
        warn!("this proxy has no identity: nothing is encrypted");
        return;
    }
    let mut credentials = proxy.credentials.clone();
    loop {
        let first = credentials.wait_for(Option::is_some);
        match tokio::time::timeout(REMIND, first).await {
            Ok(Ok(_)) => return,
            Ok(Err(_)) => std::future::pending().await,
            Err(_) => warn!("still waiting for the first certificate; no connection is served before"),
        }
    }
}

/// A worker thread: accepts and serves until the drain is over.
fn work(worker: &Arc<Worker>, sockets: Sockets, mut ready: watch::Receiver<bool>) {
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => return warn!(%error, "a worker cannot start"),
    };
    runtime.block_on(async {
        let drain = worker.proxy.drain.clone();
        tokio::select! {
            certified = ready.wait_for(|ready| *ready) => if certified.is_err() { return },
            () = drain.draining() => return,
        }
        worker.proxy.tasks.spawn("sweep", sweep(worker.clone()));
        if let Err(error) = accept_all(worker, sockets) {
            return warn!(%error, "a worker cannot listen");
        }
        drain.draining().await;
        // The control thread counts the grace period and says when it is over, by dropping the sender: two clocks would
        // disagree about who was left.
        while ready.changed().await.is_ok() {}
    });
}

fn accept_all(worker: &Arc<Worker>, sockets: Sockets) -> std::io::Result<()> {
    let proxy = worker.proxy.clone();
    let inbound_socket = tokio::net::TcpListener::from_std(sockets.inbound)?;
    let for_serve = worker.clone();
    proxy.tasks.spawn(
        "accept inbound",
        listen::accept(
            inbound_socket,
            proxy.config.inbound.socket,
            listen::Bounds { permits: proxy.inbound_permits.clone(), spare: proxy.spare.clone() },
            proxy.drain.clone(),
            proxy.metrics.inbound_accepts.clone(),
            move |accepted| {
                let (client, target) = (accepted.client, accepted.target);
                let served = inbound::serve(for_serve.clone(), accepted);
                let tasks = &for_serve.proxy.tasks;
                tasks.spawn("inbound connection", report("inbound", client, target, Box::pin(served)));
            },
        ),
    );
    for socket in sockets.outbound {
        let socket = tokio::net::TcpListener::from_std(socket)?;
        let for_serve = worker.clone();
        proxy.tasks.spawn(
            "accept outbound",
            listen::accept(
                socket,
                proxy.config.outbound.socket,
                listen::Bounds { permits: proxy.outbound_permits.clone(), spare: proxy.spare.clone() },
                proxy.drain.clone(),
                proxy.metrics.outbound_accepts.clone(),
                move |accepted| {
                    let (client, target) = (accepted.client, accepted.target);
                    let served = outbound::serve(for_serve.clone(), accepted);
                    let tasks = &for_serve.proxy.tasks;
                    tasks.spawn("outbound connection", report("outbound", client, target, Box::pin(served)));
                },
            ),
        );
    }
    Ok(())
}

/// Logs a fault once, at the edge. `served` is boxed: what wraps a future holds it twice.
pub(crate) async fn report(
    direction: &'static str,
    client: SocketAddr,
    target: SocketAddr,
    served: Pin<Box<impl Future<Output = Result<(), Fault>>>>,
) {
    match served.await {
        Ok(()) => debug!(direction, %client, %target, "done"),
        Err(fault) if fault.is_early_end() => {
            debug!(direction, %client, %target, %fault, "the connection ended early");
        }
        Err(fault) => match fault.blame() {
            Blame::Mesh => warn!(direction, %client, %target, %fault, "connection failed"),
            Blame::Client | Blame::Policy | Blame::Server => {
                info!(direction, %client, %target, %fault, "connection failed");
            }
        },
    }
}

/// Forgets targets and application ports that nobody uses any more.
async fn sweep(worker: Arc<Worker>) {
    let mut unused = Vec::new();
    let every = worker.proxy.config.outbound.discovery_idle.max(Duration::from_secs(1));
    loop {
        tokio::time::sleep(every).await;
        worker.targets.sweep(&mut unused);
        worker.apps.sweep();
    }
}

fn assemble(
    config: Config,
    credentials: watch::Receiver<Option<Arc<Credentials>>>,
    (registry, asked): (&Registry, &ControlMetrics),
    tasks: Tasks,
    drain: Drain,
    control: &tokio::runtime::Handle,
) -> Result<Proxy> {
    let auth = || ClientAuth::Mesh(credentials.clone());
    let channel = |what: &str, addr: &ControlAddr| {
        let resolver = Resolver::from_system().context("cannot read the DNS configuration")?;
        let channel =
            control::channel(addr, auth(), resolver, asked).with_context(|| format!("the {what} address"))?;
        anyhow::Ok((channel, config.stream_limits(addr)))
    };
    let limits = &config.limits;
    let metrics =
        crate::metrics::Metrics::register(registry, limits.metric_budget, config.outbound.hostname_labels);
    let sources = Sources {
        destination: channel("destination", &config.destination)?,
        policy: channel("policy", &config.policy)?,
        runtime: control.clone(),
        endpoints_refused: metrics.endpoints_refused.clone(),
        asked_again: metrics.asked_again.clone(),
        by_route: metrics.profiles.clone(),
    };
    let policies = crate::policy::Policies::new(
        sources.policies(&config),
        &config.inbound,
        &config.discovery.cluster_networks,
        config.admin.listen.port(),
    );
    let discovery = sources.discovery(&config);
    let dropped = registry.counter(
        "remora_access_log_lines_dropped_total",
        "Access log lines not written because standard error is not read",
    );
    let start = |format| access_log::Writer::start(format, dropped);
    let access_log = config.access_log.map(start).transpose().context("cannot start the access log")?;
    Ok(Proxy {
        access_log,
        credentials,
        policies,
        discovery,
        metrics,
        budgets: crate::profile::Budgets::default(),
        limiters: crate::limits::Limiters::default(),
        inbound_permits: Arc::new(Semaphore::new(limits.max_connections)),
        outbound_permits: Arc::new(Semaphore::new(limits.max_connections)),
        speculative_permits: Arc::new(Semaphore::new(limits.max_speculative)),
        spare: Arc::default(),
        tasks,
        drain,
        config,
    })
}

/// Starts the certificate client; without identity there are never credentials.
fn credentials(
    config: &Config,
    registry: &Registry,
    asked: &ControlMetrics,
    tasks: &Tasks,
) -> Result<watch::Receiver<Option<Arc<Credentials>>>> {
    let Some(identity) = &config.identity else {
        // The receiver keeps the last value when the sender is gone.
        return Ok(watch::channel(None).1);
    };
    let bundle =
        TrustBundle::from_pem(&identity.trust_anchors).context("LINKERD2_PROXY_IDENTITY_TRUST_ANCHORS")?;
    let authority = GrpcCertify {
        addr: identity.control.clone(),
        token_file: identity.token_file.clone(),
        bundle: bundle.clone(),
        resolver: Resolver::from_system().context("cannot read the DNS configuration")?,
        metrics: asked.clone(),
    };
    let certifier = CertifierConfig {
        identity: identity.local_name.clone(),
        bundle,
        refresh: RefreshBounds { min: identity.min_refresh, max: identity.max_refresh },
        dir: Some(identity.dir.clone()),
    };
    Certifier::spawn(certifier, authority, CertifyMetrics::register(registry), tasks)
        .context("cannot make a key")
}

/// Sockets, bound before anything else: what cannot be bound is told at once.
struct Listeners {
    admin: TcpListener,
    workers: Vec<Sockets>,
}

struct Sockets {
    inbound: TcpListener,
    outbound: Vec<TcpListener>,
}

impl Listeners {
    fn bind(config: &Config) -> Result<Self> {
        let share = config.workers > 1;
        let bind = |what: &str, addr: SocketAddr, share| {
            listen::bind(addr, share).with_context(|| format!("cannot listen on {addr} ({what})"))
        };
        let worker = |_| {
            Ok(Sockets {
                inbound: bind("inbound", config.inbound.listen, share)?,
                outbound: config
                    .outbound
                    .listen
                    .iter()
                    .map(|addr| bind("outbound", *addr, share))
                    .collect::<Result<_>>()?,
            })
        };
        Ok(Self {
            admin: bind("admin", config.admin.listen, false)?,
            workers: (0..config.workers).map(worker).collect::<Result<_>>()?,
        })
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start a runtime")
}

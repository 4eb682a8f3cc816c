//! How the process is put together: configuration in, servers and the watch running, and its end.

use crate::{
    config::{Config, MeshConfig},
    metrics::Metrics,
    publish::Store,
    resources::Kind,
    serve::Serving,
    view::{
        PolicyReport, ProfileReport, RouteReport, ServiceReport, Settings, policy_reports, profile_reports,
        route_reports, service_reports,
    },
    watch::{
        Event,
        directory::{self, Manifests},
    },
};
use anyhow::Context as _;
use remora_core::cert::RefreshBounds;
use remora_runtime::{
    admin::{self, Admin},
    certify::{Certifier, CertifierConfig, CertifyMetrics, GrpcCertify},
    control::{ControlAddr, ControlMetrics, Resolver, Terminate},
    log::LogHandle,
    metrics::{RETAIN_IDLE, Registry},
    tasks::{Drain, Tasks},
    tls::TrustBundle,
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{net::TcpListener, sync::watch};

/// Renewal of our certificate: not before 10 s, not after a day. Contract 2.4.
const REFRESH: RefreshBounds = RefreshBounds { min: Duration::from_secs(10), max: Duration::from_hours(24) };

/// A process whose ports are open.
#[derive(Debug)]
pub struct Process {
    config: Config,
    destination: TcpListener,
    policy: TcpListener,
    admin: TcpListener,
    /// Begins the end.
    pub drain: Drain,
}

/// The addresses that a process listens on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// Destination.
    pub destination: SocketAddr,
    /// The policy APIs.
    pub policy: SocketAddr,
    /// Admin.
    pub admin: SocketAddr,
}

impl Process {
    /// Opens the ports. Clients may connect from now on; they are answered once the manifests have been read.
    pub async fn bind(config: Config) -> anyhow::Result<Self> {
        let bind = async |name: &str, addr: SocketAddr| {
            TcpListener::bind(addr).await.with_context(|| format!("cannot listen on {addr} (--{name})"))
        };
        Ok(Self {
            destination: bind("grpc-addr", config.grpc_addr).await?,
            policy: bind("policy-addr", config.policy_addr).await?,
            admin: bind("admin-addr", config.admin_addr).await?,
            drain: Drain::new(),
            config,
        })
    }

    /// Where it listens.
    pub fn addresses(&self) -> std::io::Result<Addresses> {
        Ok(Addresses {
            destination: self.destination.local_addr()?,
            policy: self.policy.local_addr()?,
            admin: self.admin.local_addr()?,
        })
    }

    /// Runs until the drain has ended.
    pub async fn run(self, log: LogHandle) -> anyhow::Result<()> {
        let Self { config, destination, policy, admin, drain } = self;
        let (tasks, registry, store) = (Tasks::new(), Registry::new(RETAIN_IDLE), Arc::new(Store::default()));
        let metrics = Metrics::new(&registry);
        let settings = Arc::new(config.settings);
        let (files, state) = files(&store, &settings);
        let (loaded, mut is_loaded) = watch::channel(false);
        let terminate = match &config.mesh {
            Some(mesh) => mutual(mesh, &registry, &tasks)?,
            None => Terminate::Plaintext,
        };
        let ready = ready(is_loaded.clone(), &terminate, &tasks);
        let admin_port = Admin {
            ready,
            registry,
            log,
            state,
            env: config.shown.clone(),
            drain: drain.clone(),
            shutdown_endpoint: false,
        };
        tasks.spawn("admin", admin::serve(admin, Arc::new(admin_port), tasks.clone()));
        tasks.spawn("watch", {
            let (store, metrics) = (store.clone(), metrics.clone());
            directory::follow(config.manifests.clone(), move |events, manifests| {
                take(&store, &metrics, events);
                metrics.invalid_files.set(i64::try_from(manifests.invalid()).unwrap_or(i64::MAX));
                *files.lock().unwrap_or_else(PoisonError::into_inner) = shown(manifests);
                // What cannot be read now may have been read before: once loaded is loaded.
                loaded.send_if_modified(|loaded| {
                    !*loaded && manifests.incomplete().is_none() && {
                        *loaded = true;
                        true
                    }
                });
            })
        });
        let serving = Serving {
            store,
            settings,
            terminate,
            limits: config.limits,
            metrics,
            tasks,
            drain: drain.clone(),
        };
        // An answer before everything was read would say of what exists that it does not.
        tokio::select! {
            loaded = is_loaded.wait_for(|loaded| *loaded) => { loaded.context("the watch of the manifests ended")?; }
            () = drain.draining() => return Ok(()),
        }
        let late = async {
            drain.draining().await;
            tokio::time::sleep(config.grace).await;
        };
        tokio::select! {
            served = serving.run(destination, policy) => served.context("a gRPC server failed"),
            () = late => {
                tracing::warn!(grace = ?config.grace, "connections were still open when the grace period ended");
                Ok(())
            }
        }
    }
}

fn mutual(mesh: &MeshConfig, registry: &Registry, tasks: &Tasks) -> anyhow::Result<Terminate> {
    let path = &mesh.trust_anchors;
    let pem = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read {} (--trust-anchors)", path.display()))?;
    let bundle =
        TrustBundle::from_pem(&pem).with_context(|| format!("{} (--trust-anchors)", path.display()))?;
    let authority = GrpcCertify {
        addr: ControlAddr {
            host: mesh.identity_addr.host.clone(),
            port: mesh.identity_addr.port,
            name: Some(mesh.identity_name.clone()),
        },
        token_file: mesh.token_file.clone(),
        bundle: bundle.clone(),
        resolver: Resolver::from_system().context("cannot read the DNS configuration of this system")?,
        metrics: ControlMetrics::register(registry),
    };
    let config = CertifierConfig {
        identity: mesh.local_name.clone(),
        bundle,
        refresh: REFRESH,
        dir: mesh.identity_dir.clone(),
    };
    let credentials = Certifier::spawn(config, authority, CertifyMetrics::register(registry), tasks)
        .context("cannot make a key for this process")?;
    Ok(Terminate::Tls(credentials))
}

/// Ready is: the manifests have been read, and there is a certificate if one is needed.
fn ready(mut loaded: watch::Receiver<bool>, terminate: &Terminate, tasks: &Tasks) -> watch::Receiver<bool> {
    let Terminate::Tls(credentials) = terminate else { return loaded };
    let mut credentials = credentials.clone();
    let (ready, is_ready) = watch::channel(false);
    tasks.spawn("readiness", async move {
        loop {
            let both = *loaded.borrow_and_update() && credentials.borrow_and_update().is_some();
            ready.send_replace(both);
            let changed = tokio::select! {
                changed = loaded.changed() => changed,
                changed = credentials.changed() => changed,
            };
            if changed.is_err() {
                return;
            }
        }
    });
    is_ready
}

fn take(store: &Store, metrics: &Metrics, events: Vec<Event>) {
    metrics.events.inc_by(events.len() as u64);
    for complaint in store.apply(events) {
        tracing::warn!(object = %complaint.object, reason = complaint.reason, "an object has a mistake");
    }
}

type State = Arc<dyn Fn() -> Value + Send + Sync>;

/// The state of the files, kept for `/state.json`, and what that shows.
fn files(store: &Arc<Store>, settings: &Arc<Settings>) -> (Arc<Mutex<Value>>, State) {
    let files = Arc::new(Mutex::new(Value::Null));
    let (store, settings, read) = (store.clone(), settings.clone(), files.clone());
    let state = move || {
        let profiles: BTreeMap<String, ProfileReport> =
            store.read(|index| profile_reports(index, &settings).collect());
        let routes: BTreeMap<String, RouteReport> = store.read(|index| {
            route_reports(index, &settings).map(|(id, report)| (id.to_string(), report)).collect()
        });
        let policies: BTreeMap<String, PolicyReport> =
            store.read(|index| policy_reports(index, &settings).into_iter().collect());
        let services: BTreeMap<String, ServiceReport> = store
            .read(|index| service_reports(index).map(|(name, report)| (name.to_string(), report)).collect());
        let objects: serde_json::Map<String, Value> = store.read(|index| {
            Kind::ALL.iter().map(|kind| (kind.as_str().to_owned(), index.count(*kind).into())).collect()
        });
        let manifests = read.lock().unwrap_or_else(PoisonError::into_inner).clone();
        json!({
            "manifests": manifests, "objects": objects, "policies": policies, "profiles": profiles,
            "routes": routes, "services": services, "watched_keys": store.watched(),
        })
    };
    (files, Arc::new(state))
}

fn shown(manifests: &Manifests) -> Value {
    let duplicates: Vec<Value> = manifests
        .duplicates()
        .map(|duplicate| json!({
            "object": duplicate.object.to_string(), "holds": duplicate.holds, "ignored": duplicate.ignored,
        }))
        .collect();
    json!({ "files": manifests.reports(), "duplicates": duplicates, "error": manifests.incomplete() })
}

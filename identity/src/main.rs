//! `remora-identity`: reads its flags, puts the parts together, runs until it is told to stop.

use clap::Parser;
use remora_identity::{
    config::{Args, Config},
    issuer::{self, IssuerMetrics},
    serve::{self, CertifyService, Limits, ServeMetrics},
};
use remora_runtime::{
    admin::{self, Admin},
    certify::CertifyMetrics,
    control::{AcceptMetrics, Terminate},
    env::EX_USAGE,
    log,
    metrics::{RETAIN_IDLE, Registry},
    tasks::{Drain, Tasks, shutdown_signal},
};
use std::{process::ExitCode, sync::Arc, time::Duration};
use tokio::{net::TcpListener, sync::watch};

/// Requests take milliseconds; whoever is not finished by then is cut off.
const GRACE: Duration = Duration::from_secs(10);

#[expect(clippy::print_stderr, reason = "there is no log before the flags are read")]
fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(wrong) => {
            // Help and version are no mistakes.
            let code = if wrong.use_stderr() { EX_USAGE } else { 0 };
            return if wrong.print().is_ok() { ExitCode::from(code) } else { ExitCode::FAILURE };
        }
    };
    let config = match args.check() {
        Ok(config) => config,
        Err(mistakes) => {
            eprintln!("remora-identity: {} mistakes in its flags:", mistakes.len());
            for mistake in mistakes {
                eprintln!("  {mistake}");
            }
            return ExitCode::from(EX_USAGE);
        }
    };
    let result = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(run(config)));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("remora-identity: {fault:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(config: Config) -> anyhow::Result<()> {
    let log = log::init(&config.log_level, config.log_format)?;
    let (tasks, drain, registry) = (Tasks::new(), Drain::new(), Registry::new(RETAIN_IDLE));
    registry.build_info(env!("CARGO_PKG_VERSION"), "remora");
    let authority = issuer::watch(config.sources.clone(), IssuerMetrics::register(&registry), &tasks);
    let own = serve::own_credentials(
        authority.clone(),
        config.own.clone(),
        config.lifetimes,
        CertifyMetrics::register(&registry),
        &tasks,
    );

    let grpc = bind("--grpc-addr", config.grpc_addr).await?;
    let admin_listener = bind("--admin-addr", config.admin_addr).await?;
    let admin = Admin {
        ready: ready_when_issued(own.clone(), &tasks),
        registry: registry.clone(),
        log,
        state: state(authority.clone(), own.clone()),
        env: Vec::new(),
        drain: drain.clone(),
        shutdown_endpoint: false,
    };
    tasks.spawn("admin", admin::serve(admin_listener, Arc::new(admin), tasks.clone()));

    let service = CertifyService::new(
        authority,
        config.validator,
        config.names,
        config.lifetimes,
        Limits::default(),
        ServeMetrics::register(&registry),
    );
    let terminate = if config.plaintext { Terminate::Plaintext } else { Terminate::Tls(own) };
    tracing::info!(
        grpc = %grpc.local_addr()?, admin = %config.admin_addr, identity = %config.own, tls = !config.plaintext,
        "remora-identity is up"
    );
    let connections = AcceptMetrics::register(&registry, "remora_identity");
    let serving = serve::serve(grpc, terminate, service, connections, &tasks, &drain);
    tokio::pin!(serving);
    tokio::select! {
        ended = &mut serving => return Ok(ended?),
        signal = shutdown_signal() => tracing::info!(signal = signal?, "shutting down"),
    }
    drain.signal();
    match tokio::time::timeout(GRACE, serving).await {
        Ok(ended) => Ok(ended?),
        Err(_elapsed) => {
            tracing::warn!("requests were still in progress after 10 s; they are cut off");
            Ok(())
        }
    }
}

async fn bind(flag: &str, addr: std::net::SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(addr).await.map_err(|fault| anyhow::anyhow!("cannot listen on {flag}={addr}: {fault}"))
}

/// Ready with the first certificate of our own: there is an issuer, and it works.
fn ready_when_issued<T: Send + Sync + 'static>(
    mut own: watch::Receiver<Option<Arc<T>>>,
    tasks: &Tasks,
) -> watch::Receiver<bool> {
    let (sender, ready) = watch::channel(false);
    tasks.spawn("readiness", async move {
        loop {
            let has = own.borrow_and_update().is_some();
            sender.send_replace(has);
            if own.changed().await.is_err() {
                return;
            }
        }
    });
    ready
}

fn state(
    authority: watch::Receiver<Option<Arc<issuer::Authority>>>,
    own: watch::Receiver<Option<Arc<remora_runtime::tls::Credentials>>>,
) -> Arc<dyn Fn() -> serde_json::Value + Send + Sync> {
    Arc::new(move || {
        let issuer = authority.borrow().as_ref().map(|authority| {
            serde_json::json!({
                "subject": authority.issuer.subject(),
                "expires": authority.issuer.expires().0.as_secs(),
                "trust_anchors": authority.bundle.to_string(),
            })
        });
        let own = own.borrow().as_ref().map(|own| {
            serde_json::json!({
                "identity": own.identity().as_str(),
                "serial": own.serial(),
                "expires": own.expires().0.as_secs(),
            })
        });
        serde_json::json!({ "issuer": issuer, "certificate": own })
    })
}

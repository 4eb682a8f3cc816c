//! `remora-injector` as a process: its flags, its files, its life. Wrong configuration is listed at once and exits with
//! 64 (EX_USAGE), so that nobody has to correct it one restart at a time.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use arc_swap::ArcSwap;
use clap::Parser;
use remora_runtime::{
    admin::{self, Admin},
    log::{self, Format, LogHandle},
    metrics::Registry,
    tasks::{Drain, Tasks, shutdown_signal},
};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use tokio::{net::TcpListener, sync::watch};

use crate::{
    cluster::{Cluster, Manifests},
    config::InjectorConfig,
    serve::{self, Certificate, Webhook},
    webhook::Metrics,
};

/// EX_USAGE of sysexits.
const USAGE: u8 = 64;
/// How often certificate and trust anchors are compared with their files.
const REFRESH: Duration = Duration::from_secs(2);
/// How long requests in flight may take at the end.
const GRACE: Duration = Duration::from_secs(10);

/// The mutating webhook that puts Remora's proxy into annotated pods.
#[derive(Debug, Parser)]
#[command(name = "remora-injector", version)]
pub struct Flags {
    /// Where the webhook listens for the API server.
    #[arg(long, default_value = "0.0.0.0:8443")]
    addr: String,
    /// Where /live, /ready and /metrics are served.
    #[arg(long, default_value = "0.0.0.0:9995")]
    admin_addr: String,
    /// The webhook's certificate chain (PEM, leaf first); read again when it changes.
    #[arg(long)]
    tls_cert: PathBuf,
    /// Its private key (PEM); read again when it changes.
    #[arg(long)]
    tls_key: PathBuf,
    /// The injector's configuration (YAML).
    #[arg(long)]
    config: PathBuf,
    /// Without a Kubernetes API: the directory of manifests in which Namespaces and ReplicaSets are looked up.
    #[arg(long)]
    manifests: PathBuf,
    /// What is logged.
    #[arg(long, default_value = "info")]
    log_level: String,
    /// How: plain or json.
    #[arg(long, default_value = "plain")]
    log_format: String,
}

/// What the flags and the files they name come to.
struct Settings {
    addr: SocketAddr,
    admin_addr: SocketAddr,
    certificate: Arc<Certificate>,
    config: InjectorConfig,
    cluster: Arc<dyn Cluster>,
    log: LogHandle,
}

/// The whole life of the process.
pub fn run() -> ExitCode {
    let flags = match Flags::try_parse() {
        Ok(flags) => flags,
        Err(error) => {
            // Help and version are no mistakes.
            let code = if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
            let _nobody_to_tell = error.print();
            return code;
        }
    };
    let settings = match settings(&flags) {
        Ok(settings) => settings,
        Err(mistakes) => {
            complain(&mistakes);
            return ExitCode::from(USAGE);
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.context("cannot start a runtime").and_then(|runtime| runtime.block_on(serve_all(settings)))
    {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "the injector stops");
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stderr, reason = "there is no log yet whose filter and format are known to be right")]
fn complain(mistakes: &[String]) {
    for mistake in mistakes {
        eprintln!("remora-injector: {mistake}");
    }
}

/// Reads everything the flags name, or says all that is wrong with it.
fn settings(flags: &Flags) -> Result<Settings, Vec<String>> {
    let mut mistakes = Vec::new();
    let address = |flag: &str, text: &str| {
        text.parse().map_err(|_| format!("{flag} {text:?} is not an address such as 0.0.0.0:8443"))
    };
    let addr = note(&mut mistakes, address("--addr", &flags.addr));
    let admin_addr = note(&mut mistakes, address("--admin-addr", &flags.admin_addr));
    let certificate = Certificate::load(&flags.tls_cert, &flags.tls_key);
    let certificate =
        note(&mut mistakes, certificate.map_err(|error| format!("--tls-cert, --tls-key: {error}")));
    let config = match load_config(&flags.config) {
        Ok(config) => Some(config),
        Err(wrong) => {
            mistakes.extend(wrong.into_iter().map(|why| format!("--config {why}")));
            None
        }
    };
    let manifests = Manifests::new(&flags.manifests);
    let manifests = note(
        &mut mistakes,
        manifests.map_err(|error| format!("--manifests {}: {error}", flags.manifests.display())),
    );
    let format = flags.log_format.parse::<Format>();
    let format = note(&mut mistakes, format.map_err(|error| format!("--log-format: {error}")));
    let level = log::check(&flags.log_level).map_err(|error| format!("--log-level: {error}"));
    let level = note(&mut mistakes, level);
    let all = (addr, admin_addr, certificate, config, manifests, format, level);
    let (
        Some(addr),
        Some(admin_addr),
        Some(certificate),
        Some(config),
        Some(manifests),
        Some(format),
        Some(level),
    ) = all
    else {
        return Err(mistakes);
    };
    let log = log::init(&level, format).map_err(|error| vec![error.to_string()])?;
    let (certificate, cluster) = (Arc::new(certificate), Arc::new(manifests));
    Ok(Settings { addr, admin_addr, certificate, config, cluster, log })
}

fn note<T>(mistakes: &mut Vec<String>, read: Result<T, String>) -> Option<T> {
    read.map_err(|mistake| mistakes.push(mistake)).ok()
}

/// Reads a configuration file and the trust anchors it names.
///
/// # Errors
/// All that is wrong, one sentence each, with the file's name.
pub fn load_config(file: &Path) -> Result<InjectorConfig, Vec<String>> {
    let named = |why: String| format!("{}: {why}", file.display());
    let text = fs::read_to_string(file).map_err(|error| vec![named(error.to_string())])?;
    let mut config = InjectorConfig::parse(&text)
        .map_err(|mistakes| mistakes.0.into_iter().map(named).collect::<Vec<_>>())?;
    if let Some(anchors) = &config.trust_anchors_file {
        config.trust_anchors_pem = load_anchors(anchors).map_err(|why| vec![why])?;
    }
    Ok(config)
}

/// Reads a bundle of trust anchors.
///
/// # Errors
/// If it cannot be read or holds no certificate.
pub fn load_anchors(file: &Path) -> Result<String, String> {
    let named = |why: String| format!("trust anchors {}: {why}", file.display());
    let text = fs::read_to_string(file).map_err(|error| named(error.to_string()))?;
    let certificates: Result<Vec<CertificateDer<'static>>, _> =
        CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    match certificates {
        Ok(certificates) if certificates.is_empty() => Err(named("it holds no certificate".to_owned())),
        Ok(_) => Ok(text),
        Err(error) => Err(named(format!("not PEM: {error}"))),
    }
}

async fn serve_all(settings: Settings) -> anyhow::Result<()> {
    let (tasks, drain, registry) = (Tasks::new(), Drain::new(), Registry::default());
    let bind = |addr: SocketAddr| async move {
        TcpListener::bind(addr).await.with_context(|| format!("cannot listen on {addr}"))
    };
    let listener = bind(settings.addr).await?;
    let admin_listener = bind(settings.admin_addr).await?;
    let tls = settings.certificate.server_config().context("the serving certificate cannot be used")?;
    let webhook = Arc::new(Webhook {
        config: ArcSwap::from_pointee(settings.config),
        cluster: settings.cluster,
        metrics: Metrics::new(&registry),
    });

    let (_ready, ready) = watch::channel(true);
    let admin = Admin {
        ready,
        registry,
        log: settings.log,
        state: Arc::new(|| serde_json::json!({})),
        env: Vec::new(),
        drain: drain.clone(),
        shutdown_endpoint: false,
    };
    let addr = listener.local_addr()?;
    let admin_addr = admin_listener.local_addr()?;
    tracing::info!(%addr, %admin_addr, "the injector serves");
    tasks.spawn("admin", admin::serve(admin_listener, Arc::new(admin), tasks.clone()));
    tasks.spawn("refresh", refresh(settings.certificate, webhook.clone()));
    tasks.spawn("webhook", serve::serve(listener, tls, webhook, tasks.clone(), drain.clone()));

    let signal = shutdown_signal().await.context("cannot wait for signals")?;
    tracing::info!(signal, "the injector stops");
    let left = drain.drained(GRACE).await;
    if left > 0 {
        tracing::warn!(left, "connections were cut at the end of the grace period");
    }
    Ok(())
}

/// Compares certificate and trust anchors with their files, for ever.
async fn refresh(certificate: Arc<Certificate>, webhook: Arc<Webhook>) {
    let mut ticks = tokio::time::interval(REFRESH);
    let mut said = None;
    loop {
        ticks.tick().await;
        let mut wrong = Vec::new();
        match certificate.refresh() {
            Ok(true) => tracing::info!("the serving certificate was replaced"),
            Ok(false) => {}
            Err(error) => wrong.push(error.to_string()),
        }
        if let Err(why) = refresh_anchors(&webhook) {
            wrong.push(why);
        }
        // Once, not every two seconds.
        let wrong = (!wrong.is_empty()).then(|| wrong.join("; "));
        if let Some(why) = wrong.as_ref().filter(|_| wrong != said) {
            tracing::warn!(why, "a file cannot be used; what it held before stays in force");
        }
        said = wrong;
    }
}

/// Takes over the trust anchors' file if it has changed. An empty or unreadable one replaces nothing.
fn refresh_anchors(webhook: &Webhook) -> Result<(), String> {
    let config = webhook.config.load();
    let Some(file) = &config.trust_anchors_file else { return Ok(()) };
    let anchors = load_anchors(file)?;
    if anchors != config.trust_anchors_pem {
        webhook.config.store(Arc::new(InjectorConfig { trust_anchors_pem: anchors, ..(**config).clone() }));
        tracing::info!("the trust anchors were replaced; pods injected from now on get the new ones");
    }
    Ok(())
}

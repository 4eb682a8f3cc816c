//! `remora inject`: flags in, the library's `inject::stream`, YAML out, a line per object on standard error.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, ValueEnum};
use remora_injector::{
    annotations::Annotations,
    config::InjectorConfig,
    inject::{Injected, Options, Outcome, Output, Report, stream},
    process::{load_anchors, load_config},
};

use crate::{USAGE, complain, print};

/// Input beyond this is no set of manifests.
const MAX_INPUT: u64 = 64 << 20;

/// Add the mesh to Kubernetes manifests.
///
/// Reads YAML (or JSON) and prints it again: Deployments, StatefulSets, DaemonSets, ReplicaSets, Jobs, CronJobs, Pods,
/// Lists of them and Namespaces get the annotation `linkerd.io/inject: enabled`, by which the cluster's webhook puts a
/// proxy into their pods. With --manual the proxy itself is printed, as the webhook would write it. Whatever else is
/// in the input passes through as it is; documents that change lose their comments.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  \
        remora inject app.yaml | kubectl apply -f -\n  \
        kubectl get deploy -o yaml | remora inject - | kubectl apply -f -\n  \
        remora inject --manual --trust-anchors ca.crt app.yaml\n\n\
        Exit codes: 0 done, also if objects were skipped (they are named on standard error with the reason); 1 nothing \
        was printed, because the input cannot be read or an object must not be injected; 64 the command line is wrong.",
    // Linkerd's names of flags, whose meaning their annotations document.
    next_help_heading = "Options"
)]
pub(crate) struct Inject {
    /// The manifests: a file, or - for standard input.
    #[arg(default_value = "-")]
    file: PathBuf,
    /// Print the proxy itself instead of the annotation; needs --trust-anchors, or --config with trust anchors.
    #[arg(long)]
    manual: bool,
    /// Route by the request's Host instead of its address (linkerd.io/inject: ingress).
    #[arg(long)]
    ingress: bool,
    /// The namespace of objects that name none.
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// The injector's configuration, for --manual.
    #[arg(long)]
    config: Option<PathBuf>,
    /// The roots that proxies trust (PEM), for --manual.
    #[arg(long, visible_alias = "identity-trust-anchors-file")]
    trust_anchors: Option<PathBuf>,
    /// How documents, and the reports on standard error, are written.
    #[arg(short, long, value_enum, default_value_t = Form::Yaml)]
    output: Form,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    Yaml,
    Json,
}

/// Flags that stand for annotations (docs/reference/annotations.md).
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Settings of the proxy, written as annotations")]
struct Settings {
    /// Ports whose bytes are forwarded without looking.
    #[arg(long, value_name = "PORTS")]
    opaque_ports: Option<String>,
    /// Inbound ports that do not go through the proxy.
    #[arg(long, value_name = "PORTS")]
    skip_inbound_ports: Option<String>,
    /// Outbound ports that do not go through the proxy.
    #[arg(long, value_name = "PORTS")]
    skip_outbound_ports: Option<String>,
    /// The proxy's image, without tag.
    #[arg(long, value_name = "REPOSITORY")]
    proxy_image: Option<String>,
    /// The tag of that image.
    #[arg(long, value_name = "TAG")]
    proxy_version: Option<String>,
    /// When nodes pull it.
    #[arg(long, value_name = "POLICY")]
    image_pull_policy: Option<String>,
    /// User of the proxy.
    #[arg(long, value_name = "UID")]
    proxy_uid: Option<String>,
    /// Group of the proxy.
    #[arg(long, value_name = "GID")]
    proxy_gid: Option<String>,
    /// What the proxy logs.
    #[arg(long, value_name = "FILTER")]
    proxy_log_level: Option<String>,
    /// How it logs: plain or json.
    #[arg(long, value_name = "FORMAT")]
    proxy_log_format: Option<String>,
    /// CPU the proxy asks for.
    #[arg(long, value_name = "QUANTITY")]
    proxy_cpu_request: Option<String>,
    /// CPU it may use.
    #[arg(long, value_name = "QUANTITY")]
    proxy_cpu_limit: Option<String>,
    /// Memory the proxy asks for.
    #[arg(long, value_name = "QUANTITY")]
    proxy_memory_request: Option<String>,
    /// Memory it may use.
    #[arg(long, value_name = "QUANTITY")]
    proxy_memory_limit: Option<String>,
    /// Port of redirected inbound connections.
    #[arg(long, value_name = "PORT")]
    inbound_port: Option<String>,
    /// Port of redirected outbound connections.
    #[arg(long, value_name = "PORT")]
    outbound_port: Option<String>,
    /// Port of probes and metrics.
    #[arg(long, value_name = "PORT")]
    admin_port: Option<String>,
    /// What is allowed in where no policy selects a port.
    #[arg(long, value_name = "POLICY")]
    default_inbound_policy: Option<String>,
    /// Log every request: apache or json.
    #[arg(long, value_name = "FORMAT")]
    access_log: Option<String>,
    /// How long open connections may take to finish.
    #[arg(long, value_name = "DURATION")]
    shutdown_grace_period: Option<String>,
    /// nf_conntrack_tcp_timeout_close_wait in the pods.
    #[arg(long, value_name = "DURATION")]
    close_wait_timeout: Option<String>,
    /// How long the proxy waits before it stops, in seconds (not for native sidecars).
    #[arg(long, value_name = "SECONDS")]
    wait_before_exit_seconds: Option<String>,
    /// The proxy as a native sidecar: true or false.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    native_sidecar: Option<String>,
}

impl Settings {
    /// The annotations that stand for the flags given.
    fn annotations(&self) -> Annotations {
        let rows = [
            ("config.linkerd.io/opaque-ports", &self.opaque_ports),
            ("config.linkerd.io/skip-inbound-ports", &self.skip_inbound_ports),
            ("config.linkerd.io/skip-outbound-ports", &self.skip_outbound_ports),
            ("config.linkerd.io/proxy-image", &self.proxy_image),
            ("config.linkerd.io/proxy-version", &self.proxy_version),
            ("config.linkerd.io/image-pull-policy", &self.image_pull_policy),
            ("config.linkerd.io/proxy-uid", &self.proxy_uid),
            ("config.linkerd.io/proxy-gid", &self.proxy_gid),
            ("config.linkerd.io/proxy-log-level", &self.proxy_log_level),
            ("config.linkerd.io/proxy-log-format", &self.proxy_log_format),
            ("config.linkerd.io/proxy-cpu-request", &self.proxy_cpu_request),
            ("config.linkerd.io/proxy-cpu-limit", &self.proxy_cpu_limit),
            ("config.linkerd.io/proxy-memory-request", &self.proxy_memory_request),
            ("config.linkerd.io/proxy-memory-limit", &self.proxy_memory_limit),
            ("config.linkerd.io/inbound-port", &self.inbound_port),
            ("config.linkerd.io/outbound-port", &self.outbound_port),
            ("config.linkerd.io/admin-port", &self.admin_port),
            ("config.linkerd.io/default-inbound-policy", &self.default_inbound_policy),
            ("config.linkerd.io/access-log", &self.access_log),
            ("config.linkerd.io/shutdown-grace-period", &self.shutdown_grace_period),
            ("config.linkerd.io/close-wait-timeout", &self.close_wait_timeout),
            ("config.alpha.linkerd.io/proxy-wait-before-exit-seconds", &self.wait_before_exit_seconds),
            ("config.linkerd.io/proxy-enable-native-sidecar", &self.native_sidecar),
        ];
        rows.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value.clone()?))).collect()
    }
}

pub(crate) fn run(inject: &Inject) -> ExitCode {
    let options = match options(inject) {
        Ok(options) => options,
        Err(mistakes) => {
            for mistake in mistakes {
                complain(&format!("remora inject: {mistake}"));
            }
            return ExitCode::from(USAGE);
        }
    };
    let injected = match read(&inject.file)
        .and_then(|text| stream(&text, &options).map_err(|error| error.to_string()))
    {
        Ok(injected) => injected,
        Err(why) => {
            complain(&format!("remora inject: {}: {why}", inject.file.display()));
            return ExitCode::FAILURE;
        }
    };
    finish(&injected, inject.output)
}

/// What the flags and the files they name come to, or all that is wrong with them.
fn options(inject: &Inject) -> Result<Options, Vec<String>> {
    let mut mistakes = Vec::new();
    let mut note = |wrong: Vec<String>| mistakes.extend(wrong);
    let mut config = match &inject.config {
        Some(file) => load_config(file).map_err(&mut note).unwrap_or_default(),
        None => InjectorConfig::default(),
    };
    if let Some(file) = &inject.trust_anchors {
        config.trust_anchors_file = None;
        config.trust_anchors_pem = load_anchors(file).map_err(|why| note(vec![why])).unwrap_or_default();
    }
    if inject.manual && inject.config.is_none() && inject.trust_anchors.is_none() {
        note(vec![
            "--manual needs the roots that proxies trust: --trust-anchors FILE, or --config FILE".to_owned(),
        ]);
    }
    let mut annotations = inject.settings.annotations();
    if inject.ingress {
        annotations.insert("linkerd.io/inject".to_owned(), "ingress".to_owned());
    }
    // A wrong value on the command line is a mistake of now, not a warning for later.
    let unnamed = std::collections::BTreeMap::new();
    match remora_injector::annotations::read(&config, &Annotations::new(), &annotations, &unnamed) {
        Ok(read) => {
            // Ports may be named by pods that are not read yet.
            let named = |warning: &&String| warning.contains("opaque-ports");
            note(
                read.warnings
                    .iter()
                    .filter(|warning| !named(warning))
                    .map(|warning| in_flags(warning))
                    .collect(),
            );
        }
        Err(denied) => note(denied.iter().map(|why| in_flags(why)).collect()),
    }
    let output = if inject.output == Form::Yaml { Output::Yaml } else { Output::Json };
    let namespace = inject.namespace.clone();
    if mistakes.is_empty() {
        Ok(Options { config, manual: inject.manual, annotations, namespace, output })
    } else {
        Err(mistakes)
    }
}

/// A sentence about an annotation, said of the flag that stands for it.
fn in_flags(warning: &str) -> String {
    warning.replace(" of the pod", ", set by a flag").replace("; the default stays", "")
}

fn read(file: &Path) -> Result<String, String> {
    let mut text = String::new();
    let taken = if file == Path::new("-") {
        io::stdin().lock().take(MAX_INPUT + 1).read_to_string(&mut text)
    } else {
        fs::File::open(file).and_then(|file| file.take(MAX_INPUT + 1).read_to_string(&mut text))
    };
    match taken {
        Ok(length) if length as u64 > MAX_INPUT => Err(format!("it is longer than {MAX_INPUT} bytes")),
        Ok(_) => Ok(text),
        Err(error) => Err(error.to_string()),
    }
}

/// Prints documents and reports. If an object is refused nothing is printed that a pipe could apply.
fn finish(injected: &Injected, output: Form) -> ExitCode {
    for report in &injected.reports {
        complain(&match output {
            Form::Yaml => sentence(report),
            Form::Json => serde_json::to_string(report).unwrap_or_else(|_| sentence(report)),
        });
    }
    if injected.reports.iter().any(|report| report.outcome == Outcome::Refused) {
        complain("remora inject: nothing was printed, because an object was refused");
        return ExitCode::FAILURE;
    }
    print(&injected.text)
}

fn sentence(report: &Report) -> String {
    let done = match report.outcome {
        Outcome::Injected => "injected",
        Outcome::Annotated => "annotated",
        Outcome::Skipped => "skipped",
        Outcome::Refused => "refused",
    };
    let reasons = report.reasons.join("; ");
    let colon = if reasons.is_empty() { "" } else { ": " };
    let mut lines = vec![format!("{}/{} {done}{colon}{reasons}", report.kind, report.name)];
    lines.extend(report.warnings.iter().map(|warning| format!("  warning: {warning}")));
    lines.join("\n")
}

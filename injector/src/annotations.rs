//! Pure. Every annotation a pod, its namespace or (one of them) a Service may carry, in one table: the reader, the
//! reference page and the copying from namespaces all follow it. To add an annotation, add a row in `annotations/table.rs`
//! and, if it says something new, a field to [`Settings`].
//!
//! A value that is not understood is a warning by name and the default stays (contract 6.1); where a wrong guess would
//! open a hole (subnets to skip, extra environment) it is an error, and the pod is refused.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use serde_json::Value;

use crate::{
    config::{Image, InjectorConfig, PLAINTEXT, ProxyPorts},
    values::{Invalid, Ports},
};

mod table;

pub use table::{ANNOTATIONS, INJECT, OPAQUE_PORTS};

/// Annotations as Kubernetes holds them.
pub type Annotations = BTreeMap<String, String>;

/// Where an annotation may stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// On a pod or a pod template only.
    Workload,
    /// Also on a namespace, for the pods that do not have it themselves.
    Namespace,
    /// Also on a Service.
    Service,
}

/// One row of the table.
pub struct Annotation {
    /// Its full name.
    pub name: &'static str,
    /// Where it may stand.
    pub scope: Scope,
    /// What its value looks like, for the reference page.
    pub value: &'static str,
    /// What holds without it, for the reference page.
    pub default: &'static str,
    /// One line for who meets it.
    pub help: &'static str,
    /// Reads a value into the settings.
    apply: fn(&mut Reading<'_>, &str) -> Result<(), Problem>,
}

/// Annotations of Linkerd's that are known and do nothing here, with what to do instead.
pub const IGNORED: [(&str, &str); 5] = [
    ("config.linkerd.io/enable-debug-sidecar", "there is no debug container; use kubectl debug"),
    ("config.linkerd.io/debug-image", "there is no debug container; use kubectl debug"),
    ("config.linkerd.io/debug-image-version", "there is no debug container; use kubectl debug"),
    ("config.linkerd.io/debug-image-pull-policy", "there is no debug container; use kubectl debug"),
    ("config.linkerd.io/enable-gateway", "there is no multicluster gateway"),
];

/// What one pod's proxy and init container are told: the operator's configuration, changed by annotations.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// `linkerd.io/inject: ingress`.
    pub ingress: bool,
    /// The proxy's image.
    pub image: Image,
    /// The init container's image.
    pub init_image: Image,
    /// The proxy's ports.
    pub ports: ProxyPorts,
    /// The proxy's uid, never 0.
    pub uid: u32,
    /// The proxy's gid, never 0.
    pub gid: Option<u32>,
    /// Ports whose policy the proxy asks for at its start; unset, those the pod declares.
    pub pod_inbound_ports: Option<Ports>,
    /// Inbound ports that are not redirected, besides the proxy's own.
    pub skip_inbound: Ports,
    /// Outbound ports that are not redirected.
    pub skip_outbound: Ports,
    /// Sources whose inbound connections are not redirected.
    pub skip_subnets: Vec<ipnet::IpNet>,
    /// Opaque ports if the pod or its namespace names any, also if they name none.
    pub opaque: Option<Ports>,
    /// Inbound ports for clients with an identity only.
    pub require_identity: Ports,
    /// Requests and limits asked for by annotation.
    pub resources: AskedResources,
    /// Worker threads.
    pub workers: Workers,
    /// Whether the admin port obeys `/shutdown`.
    pub shutdown_endpoint: bool,
    /// Log filter.
    pub log_level: String,
    /// `plain` or `json`.
    pub log_format: String,
    /// Whether headers may appear in logs.
    pub log_http_headers: bool,
    /// Profiles for names outside the cluster.
    pub external_profiles: bool,
    /// Label metrics by hostname.
    pub hostname_labels: bool,
    /// Dialling an endpoint.
    pub outbound_connect_timeout: Duration,
    /// Dialling the application.
    pub inbound_connect_timeout: Duration,
    /// Forgetting what discovery said of an unused target.
    pub outbound_discovery_idle: Duration,
    /// Forgetting the policy of an unused port.
    pub inbound_discovery_idle: Duration,
    /// Wait for a client's first bytes without end.
    pub no_outbound_detect_timeout: bool,
    /// The same on the way in.
    pub no_inbound_detect_timeout: bool,
    /// `nf_conntrack_tcp_timeout_close_wait`; makes the init container root.
    pub close_wait: Option<Duration>,
    /// The proxy as an init container that stays.
    pub native_sidecar: bool,
    /// How long the proxy outlives its SIGTERM, in seconds; without native sidecar only.
    pub wait_before_exit: u32,
    /// The application waits for the proxy.
    pub wait_for_proxy: bool,
    /// What is allowed in where no policy selects a port.
    pub default_inbound_policy: String,
    /// Who may be connected to in plaintext.
    pub default_outbound_policy: String,
    /// `apache` or `json`.
    pub access_log: Option<String>,
    /// Meshed clients that policy refuses are told by what.
    pub denial_header: bool,
    /// How long open connections may take to finish after SIGTERM.
    pub shutdown_grace: Option<Duration>,
    /// Environment added to the proxy, as Kubernetes EnvVar objects, the last of a name winning.
    pub additional_env: Vec<Value>,
}

/// Requests and limits as annotations asked for them: quantities that have been checked, in the user's own words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AskedResources {
    /// By resource name (`cpu`, `memory`, `ephemeral-storage`).
    pub requests: BTreeMap<&'static str, String>,
    /// By resource name.
    pub limits: BTreeMap<&'static str, String>,
}

/// How many worker threads a proxy may have.
#[derive(Clone, Debug, PartialEq)]
pub struct Workers {
    /// At least, 1 or more.
    pub min: u128,
    /// At most.
    pub max: Option<u128>,
    /// At most this part of the node's CPUs, between 0 and 1, in the user's own words.
    pub max_ratio: Option<String>,
}

impl Settings {
    /// What holds without any annotation.
    pub fn new(config: &InjectorConfig) -> Self {
        Self {
            ingress: false,
            image: config.image.clone(),
            init_image: config.init_image.clone().unwrap_or_else(|| config.image.clone()),
            ports: config.ports,
            uid: config.uid,
            gid: config.gid,
            pod_inbound_ports: None,
            skip_inbound: Ports::from(config.ignore_inbound_ports.as_slice()),
            skip_outbound: Ports::from(config.ignore_outbound_ports.as_slice()),
            skip_subnets: Vec::new(),
            opaque: None,
            require_identity: Ports::default(),
            resources: AskedResources::default(),
            workers: Workers { min: 1, max: None, max_ratio: None },
            shutdown_endpoint: false,
            log_level: config.log_level.clone(),
            log_format: config.log_format.clone(),
            log_http_headers: false,
            external_profiles: false,
            hostname_labels: false,
            outbound_connect_timeout: Duration::from_secs(1),
            inbound_connect_timeout: Duration::from_millis(100),
            outbound_discovery_idle: Duration::from_secs(5),
            inbound_discovery_idle: Duration::from_secs(90),
            no_outbound_detect_timeout: false,
            no_inbound_detect_timeout: false,
            close_wait: None,
            native_sidecar: config.native_sidecar,
            wait_before_exit: 0,
            wait_for_proxy: config.wait_for_proxy,
            default_inbound_policy: config.default_inbound_policy.clone(),
            default_outbound_policy: config.default_outbound_policy.clone(),
            access_log: None,
            denial_header: false,
            shutdown_grace: None,
            additional_env: Vec::new(),
        }
    }
}

/// What the annotations of a pod and its namespace say.
#[derive(Clone, Debug, PartialEq)]
pub struct Read {
    /// The outcome.
    pub settings: Settings,
    /// What to copy from the namespace to the pod.
    pub inherited: Annotations,
    /// What was not understood, by name, for who wrote it.
    pub warnings: Vec<String>,
}

/// Settings in the making.
struct Reading<'a> {
    settings: Settings,
    named_ports: &'a BTreeMap<String, u16>,
    /// Parts of a value that were passed over.
    notes: Vec<String>,
}

/// Why a value was not taken.
#[derive(Debug)]
enum Problem {
    /// The default stays.
    Warn(String),
    /// The pod is refused.
    Deny(String),
}

impl From<Invalid> for Problem {
    fn from(Invalid(why): Invalid) -> Self {
        Self::Warn(why)
    }
}

/// Reads the annotations of `workload` over those of its `namespace` over the operator's configuration. `named_ports`
/// are the pod's own, which port lists may name.
///
/// # Errors
/// Every annotation, by name, whose value makes it impossible to inject safely.
pub fn read(
    config: &InjectorConfig,
    namespace: &Annotations,
    workload: &Annotations,
    named_ports: &BTreeMap<String, u16>,
) -> Result<Read, Vec<String>> {
    let mut reading = Reading { settings: Settings::new(config), named_ports, notes: Vec::new() };
    let mut inherited = Annotations::new();
    let mut warnings = unknown(workload, "pod");
    warnings.extend(unknown(namespace, "namespace"));
    let mut denied = Vec::new();
    for annotation in &ANNOTATIONS {
        let own = workload.get(annotation.name);
        let theirs = namespace.get(annotation.name).filter(|_| annotation.scope != Scope::Workload);
        if let (None, Some(value)) = (own, theirs) {
            inherited.insert(annotation.name.to_owned(), value.clone());
        }
        // The extra environment is merged; everything else of the pod's replaces the namespace's.
        let below = theirs.filter(|_| own.is_none() || annotation.name == table::ADDITIONAL_ENV);
        for (value, place) in [(below, "namespace"), (own, "pod")] {
            let Some(value) = value else { continue };
            let outcome = (annotation.apply)(&mut reading, value.trim());
            let sentence = |why: &str| format!("annotation {} of the {place}: {why}", annotation.name);
            warnings.extend(reading.notes.drain(..).map(|note| sentence(&note)));
            match outcome {
                Ok(()) => {}
                Err(Problem::Warn(why)) => warnings.push(sentence(&format!("{why}; the default stays"))),
                Err(Problem::Deny(why)) => denied.push(sentence(&why)),
            }
        }
    }
    denied.extend(unheeded(&reading.settings, config));
    if denied.is_empty() { Ok(Read { settings: reading.settings, inherited, warnings }) } else { Err(denied) }
}

/// Another mesh's proxy would send in plaintext what nobody may.
fn unheeded(settings: &Settings, config: &InjectorConfig) -> Option<String> {
    let policy = &settings.default_outbound_policy;
    (policy != PLAINTEXT && !config.is_ours(&settings.image.name)).then(|| {
        format!(
            "the outbound default policy {policy:?} ({}) is kept by Remora's proxy only, and the image {} is none of \
             remoraImages: it would send in plaintext all the same",
            table::OUTBOUND_POLICY,
            settings.image.name
        )
    })
}

/// Warnings for annotations that look like ours and do nothing: a misspelt name must not pass for a setting.
fn unknown(annotations: &Annotations, place: &str) -> Vec<String> {
    const PREFIXES: [&str; 4] =
        ["config.linkerd.io/", "config.alpha.linkerd.io/", "config.beta.linkerd.io/", "config.remora.io/"];
    let ours = |name: &&String| PREFIXES.iter().any(|prefix| name.starts_with(prefix));
    let known = |name: &&String| ANNOTATIONS.iter().any(|annotation| annotation.name == name.as_str());
    annotations
        .keys()
        .filter(ours)
        .filter(|name| !known(name))
        .map(|name| match IGNORED.iter().find(|(ignored, _)| ignored == name) {
            Some((_, instead)) => format!("annotation {name} of the {place} does nothing: {instead}"),
            None => format!("annotation {name} of the {place} is not known and does nothing"),
        })
        .collect()
}

/// The reference page, `docs/reference/annotations.md`.
pub fn reference() -> String {
    let mut page = "# Annotations\n\n\
        Printed from `injector/src/annotations/table.rs`; `UPDATE=1 cargo test -p remora-injector --test annotations` \
        renews it.\n\n\
        *Where* says who may carry an annotation: the pod (template) itself, its namespace for all pods that do not \
        have it, or also a Service. A value that is not understood is reported as a warning with the annotation's \
        name, and the default stays; of port lists only the items that were not understood are passed over. Some are \
        stricter, because a guess could open a hole: a wrong `skip-subnets`, `proxy-additional-env`, \
        `proxy-require-identity-inbound-ports` or `outbound-default-policy` refuses the pod.\n\n\
        | annotation | where | value | default | what it does |\n|---|---|---|---|---|\n"
        .to_owned();
    for row in &ANNOTATIONS {
        let place = match row.scope {
            Scope::Workload => "pod",
            Scope::Namespace => "pod, namespace",
            Scope::Service => "pod, namespace, Service",
        };
        let cell = |text: &str| text.replace('|', "\\|");
        let (value, default) = (cell(row.value), cell(row.default));
        let _infallible =
            writeln!(page, "| `{}` | {place} | {value} | {default} | {} |", row.name, cell(row.help));
    }
    page.push_str("\n## Known and without effect\n\n| annotation | instead |\n|---|---|\n");
    for (name, instead) in IGNORED {
        let _infallible = writeln!(page, "| `{name}` | {instead} |");
    }
    page
}

//! Pure. The table of annotations (contract 6.1): name, place, form, default, one line of help, and how it is read.
//! Only those are here that name something which exists.

use std::{collections::BTreeMap, time::Duration};

use remora_runtime::log;
use serde_json::Value;

use super::{Annotation, Problem, Reading, Scope, Settings};
use crate::{
    config::{INBOUND_POLICIES, OUTBOUND_POLICIES, PULL_POLICIES},
    values::{self, Ports},
};

/// The switch.
pub const INJECT: &str = "linkerd.io/inject";
/// Ports never looked into; also read from pods and Services by destination.
pub const OPAQUE_PORTS: &str = "config.linkerd.io/opaque-ports";
/// Who may be connected to in plaintext.
pub(super) const OUTBOUND_POLICY: &str = "config.linkerd.io/outbound-default-policy";
/// The one annotation whose values on namespace and pod are merged.
pub(super) const ADDITIONAL_ENV: &str = "config.linkerd.io/proxy-additional-env";

type Outcome = Result<(), Problem>;

macro_rules! row {
    ($name:expr, $scope:ident, $value:expr, $default:expr, $help:expr, $apply:expr) => {
        Annotation {
            name: $name,
            scope: Scope::$scope,
            value: $value,
            default: $default,
            help: $help,
            apply: $apply,
        }
    };
}

/// Every annotation that does something, in the order in which they are read: of several names for one setting the
/// later one wins.
#[rustfmt::skip]
pub static ANNOTATIONS: [Annotation; 47] = [
    row!(INJECT, Namespace, "enabled | disabled | ingress", "disabled",
        "Whether the pod gets a proxy. `ingress`: for a gateway whose requests say in `l5d-dst-override` (`name:port`) which \
         Service they are for; without it they go where they are addressed (docs/gateways.md).",
        // Whether it injects is decided in decide.rs, which also meets invalid values.
        |r, v| { r.settings.ingress = v == "ingress"; Ok(()) }),
    row!("config.linkerd.io/proxy-image", Namespace, "repository", "remora/proxy",
        "The proxy's image, without tag; the init container's too.",
        |r, v| text(v).map(|v| { r.settings.image.name.clone_from(&v); r.settings.init_image.name = v; })),
    row!("config.linkerd.io/proxy-version", Namespace, "tag", "this release",
        "The tag of that image.",
        |r, v| text(v).map(|v| { r.settings.image.version.clone_from(&v); r.settings.init_image.version = v; })),
    row!("config.linkerd.io/image-pull-policy", Namespace, "Always | IfNotPresent | Never", "IfNotPresent",
        "When the node pulls that image.",
        |r, v| one_of(v, &PULL_POLICIES).map(|v| {
            r.settings.image.pull_policy.clone_from(&v);
            r.settings.init_image.pull_policy = v;
        })),
    row!("config.linkerd.io/inbound-port", Namespace, "port", "4143", "Where redirected inbound connections arrive.",
        |r, v| port(v).and_then(|port| distinct(r, |ports| ports.inbound = port))),
    row!("config.linkerd.io/outbound-port", Namespace, "port", "4140", "Where redirected outbound connections arrive.",
        |r, v| port(v).and_then(|port| distinct(r, |ports| ports.outbound = port))),
    row!("config.linkerd.io/admin-port", Namespace, "port", "4191", "Probes and metrics of the proxy.",
        |r, v| port(v).and_then(|port| distinct(r, |ports| ports.admin = port))),
    row!("config.linkerd.io/control-port", Namespace, "port", "4190", "Reserved for tap; never redirected.",
        |r, v| port(v).and_then(|port| distinct(r, |ports| ports.control = port))),
    row!("config.linkerd.io/pod-inbound-ports", Namespace, "ports", "container and probe ports",
        "Ports whose policy the proxy asks for at its start.",
        |r, v| { r.settings.pod_inbound_ports = Some(numbers(r, v)); Ok(()) }),
    row!("config.linkerd.io/skip-inbound-ports", Namespace, "ports, ranges", "4567,4568",
        "Inbound ports that do not go through the proxy, instead of the default ones.",
        |r, v| { r.settings.skip_inbound = numbers(r, v); Ok(()) }),
    row!("config.linkerd.io/skip-outbound-ports", Namespace, "ports, ranges", "4567,4568",
        "Outbound ports that do not go through the proxy, instead of the default ones.",
        |r, v| { r.settings.skip_outbound = numbers(r, v); Ok(()) }),
    row!("config.linkerd.io/skip-subnets", Namespace, "CIDRs", "none",
        "Sources whose inbound connections do not go through the proxy. It has no effect on outbound ones.",
        |r, v| { r.settings.skip_subnets = subnets(v)?; Ok(()) }),
    row!(OPAQUE_PORTS, Service, "ports, ranges, names of the pod's ports",
        "those of 25,587,3306,4444,5432,6379,9300,11211 that the pod declares",
        "Ports whose bytes the proxies forward without looking (still with mTLS). Empty: none.",
        |r, v| { r.settings.opaque = Some(ports(r, v)); Ok(()) }),
    row!("config.linkerd.io/proxy-require-identity-inbound-ports", Namespace, "ports, ranges, names of the pod's ports", "none",
        "Inbound ports for clients with an identity only. Destination enforces it, whatever the default policy.",
        |r, v| demanded(r.named_ports, v).map(|ports| r.settings.require_identity = ports)),
    row!("config.linkerd.io/proxy-cpu-request", Namespace, "quantity", "20m if Burstable, 250m if Guaranteed, else none",
        "CPU the proxy asks for. Rounded up to whole cores, also how many worker threads it starts.",
        |r, v| cpu(v).map(|cores| { r.settings.workers.min = cores.max(1); ask(&mut r.settings, "cpu", Some(v), None); })),
    row!("config.linkerd.io/proxy-cpu-limit", Namespace, "quantity", "the request if Guaranteed, else none",
        "CPU the proxy may use. Rounded up to whole cores, also the most worker threads it has.",
        |r, v| cpu(v).map(|cores| { r.settings.workers.max = Some(cores.max(1)); ask(&mut r.settings, "cpu", None, Some(v)); })),
    row!("config.linkerd.io/proxy-cpu-ratio-limit", Namespace, "number between 0 and 1", "none",
        "Part of the node's CPUs that is the most worker threads the proxy has.",
        |r, v| ratio(v).map(|v| r.settings.workers.max_ratio = Some(v))),
    row!("config.linkerd.io/proxy-memory-request", Namespace, "quantity",
        "20Mi if Burstable, 128Mi if Guaranteed, else none", "Memory the proxy asks for.",
        |r, v| quantity(v).map(|v| ask(&mut r.settings, "memory", Some(v), None))),
    row!("config.linkerd.io/proxy-memory-limit", Namespace, "quantity", "the request if Guaranteed, else none",
        "Memory the proxy may use.",
        |r, v| quantity(v).map(|v| ask(&mut r.settings, "memory", None, Some(v)))),
    row!("config.linkerd.io/proxy-ephemeral-storage-request", Namespace, "quantity", "none", "Disk the proxy asks for.",
        |r, v| quantity(v).map(|v| ask(&mut r.settings, "ephemeral-storage", Some(v), None))),
    row!("config.linkerd.io/proxy-ephemeral-storage-limit", Namespace, "quantity", "none", "Disk the proxy may use.",
        |r, v| quantity(v).map(|v| ask(&mut r.settings, "ephemeral-storage", None, Some(v)))),
    row!("config.linkerd.io/proxy-uid", Namespace, "uid, not 0", "2102",
        "User of the proxy. Its traffic is not redirected, so nothing else in the pod may run as it.",
        |r, v| id(v).map(|v| r.settings.uid = v)),
    row!("config.linkerd.io/proxy-gid", Namespace, "gid, not 0", "none",
        "Group of the proxy. If set, its traffic is not redirected either.",
        |r, v| id(v).map(|v| r.settings.gid = Some(v))),
    row!("config.linkerd.io/proxy-admin-shutdown", Namespace, "enabled | disabled", "disabled",
        "Whether POST /shutdown on the admin port, from the pod itself, ends the proxy.",
        |r, v| switch(v).map(|v| r.settings.shutdown_endpoint = v)),
    row!("config.linkerd.io/proxy-log-level", Namespace, "filter", "warn,remora=info,linkerd=info,hickory=error",
        "What the proxy logs.", |r, v| filter(v).map(|v| r.settings.log_level = v)),
    row!("config.linkerd.io/proxy-log-format", Namespace, "plain | json", "plain", "How the proxy logs.",
        |r, v| one_of(v, &["plain", "json"]).map(|v| r.settings.log_format = v)),
    row!("config.linkerd.io/proxy-log-http-headers", Namespace, "off | insecure", "off",
        "Whether HTTP headers may appear in the debug log of Linkerd's proxy. Remora's never logs them.",
        |r, v| one_of(v, &["off", "insecure"]).map(|v| r.settings.log_http_headers = v == "insecure")),
    row!("config.linkerd.io/enable-external-profiles", Namespace, "true | false", "false",
        "Whether Linkerd's proxy asks for profiles of names outside the cluster. Remora's asks by address only.",
        |r, v| switch(v).map(|v| r.settings.external_profiles = v)),
    row!("config.linkerd.io/proxy-metrics-hostname-labels", Namespace, "true | false", "false",
        "Whether outbound metrics carry the request's hostname.",
        |r, v| switch(v).map(|v| r.settings.hostname_labels = v)),
    row!("config.linkerd.io/proxy-outbound-connect-timeout", Namespace, "duration", "1s",
        "How long dialling another pod may take.",
        |r, v| positive(v).map(|v| r.settings.outbound_connect_timeout = v)),
    row!("config.linkerd.io/proxy-inbound-connect-timeout", Namespace, "duration", "100ms",
        "How long dialling the application may take.",
        |r, v| positive(v).map(|v| r.settings.inbound_connect_timeout = v)),
    row!("config.linkerd.io/proxy-outbound-discovery-cache-unused-timeout", Namespace, "duration", "5s",
        "When the proxy forgets an unused target.",
        |r, v| positive(v).map(|v| r.settings.outbound_discovery_idle = v)),
    row!("config.linkerd.io/proxy-inbound-discovery-cache-unused-timeout", Namespace, "duration", "90s",
        "When the proxy forgets the policy of an unused port.",
        |r, v| positive(v).map(|v| r.settings.inbound_discovery_idle = v)),
    row!("config.linkerd.io/proxy-disable-outbound-protocol-detect-timeout", Namespace, "true | false", "false",
        "Wait for a client's first bytes without end.",
        |r, v| switch(v).map(|v| r.settings.no_outbound_detect_timeout = v)),
    row!("config.linkerd.io/proxy-disable-inbound-protocol-detect-timeout", Namespace, "true | false", "false",
        "The same for connections to this pod.",
        |r, v| switch(v).map(|v| r.settings.no_inbound_detect_timeout = v)),
    row!("config.linkerd.io/close-wait-timeout", Workload, "duration, whole seconds", "the kernel's",
        "Sets nf_conntrack_tcp_timeout_close_wait in the pod, for which the init container runs as privileged root.",
        |r, v| positive(v).and_then(whole_seconds).map(|v| r.settings.close_wait = Some(v))),
    row!("config.alpha.linkerd.io/proxy-enable-native-sidecar", Namespace, "true | false", "true",
        "Older name of config.linkerd.io/proxy-enable-native-sidecar, which wins.",
        |r, v| switch(v).map(|v| r.settings.native_sidecar = v)),
    row!("config.beta.linkerd.io/proxy-enable-native-sidecar", Namespace, "true | false", "true",
        "Older name of config.linkerd.io/proxy-enable-native-sidecar, which wins.",
        |r, v| switch(v).map(|v| r.settings.native_sidecar = v)),
    row!("config.linkerd.io/proxy-enable-native-sidecar", Namespace, "true | false", "true",
        "The proxy as an init container that stays: it starts before the application and stops after it, and Jobs end.",
        |r, v| switch(v).map(|v| r.settings.native_sidecar = v)),
    row!("config.alpha.linkerd.io/proxy-wait-before-exit-seconds", Namespace, "seconds", "0",
        "How long the proxy waits before it stops. Without effect on a native sidecar.",
        |r, v| v.parse().map(|v| r.settings.wait_before_exit = v)
            .map_err(|_| Problem::Warn(format!("{v:?} is not a number of seconds")))),
    row!("config.linkerd.io/proxy-await", Namespace, "enabled | disabled", "enabled",
        "Whether the application starts only when the proxy is ready.",
        |r, v| switch(v).map(|v| r.settings.wait_for_proxy = v)),
    row!("config.linkerd.io/default-inbound-policy", Namespace,
        "all-unauthenticated | all-authenticated | cluster-unauthenticated | cluster-authenticated | deny | audit",
        "all-unauthenticated", "What is allowed in where no policy selects a port.",
        |r, v| one_of(v, &INBOUND_POLICIES).map(|v| r.settings.default_inbound_policy = v)),
    row!("config.linkerd.io/access-log", Namespace, "apache | json", "none", "Log every request, and how.",
        |r, v| one_of(v, &["apache", "json"]).map(|v| r.settings.access_log = Some(v))),
    row!("config.remora.io/denial-header", Namespace, "enabled | disabled", "disabled",
        "Whether meshed clients that policy refuses are told server, route and policies in `remora-denied-by`.",
        |r, v| switch(v).map(|v| r.settings.denial_header = v)),
    row!("config.linkerd.io/shutdown-grace-period", Namespace, "duration", "the proxy's",
        "How long open connections may take to finish when the pod stops.",
        |r, v| positive(v).map(|v| r.settings.shutdown_grace = Some(v))),
    row!(ADDITIONAL_ENV, Namespace, "JSON array of EnvVar", "none",
        "Environment added to the proxy. The pod's entries win over its namespace's of the same name.",
        |r, v| environment(&mut r.settings.additional_env, v)),
    row!(OUTBOUND_POLICY, Namespace, "all-unauthenticated | all-authenticated | cluster-authenticated",
        "all-unauthenticated",
        "Who may be connected to in plaintext: everybody, nobody, or who is outside the cluster's networks. Whoever may \
         not gets not one byte (docs/plaintext.md).",
        |r, v| demanded_of(v, &OUTBOUND_POLICIES).map(|v| r.settings.default_outbound_policy = v)),
];

fn text(value: &str) -> Result<String, Problem> {
    if value.is_empty() { Err(Problem::Warn("it is empty".to_owned())) } else { Ok(value.to_owned()) }
}

/// A filter that the proxy would not start with is not passed on.
fn filter(value: &str) -> Result<String, Problem> {
    let value = text(value)?;
    log::check(&value).map_err(|error| Problem::Warn(format!("{value:?} is no log filter: {error}")))
}

fn one_of(value: &str, allowed: &[&str]) -> Result<String, Problem> {
    if allowed.contains(&value) {
        Ok(value.to_owned())
    } else {
        Err(Problem::Warn(format!("{value:?} is none of {}", allowed.join(", "))))
    }
}

/// A wrong word is an error: the default in its place would let pass what its owner believes to be forbidden.
fn demanded_of(value: &str, allowed: &[&str]) -> Result<String, Problem> {
    one_of(value, allowed).map_err(|_| Problem::Deny(format!("{value:?} is none of {}", allowed.join(", "))))
}

/// Go's `ParseBool`, and the words of Linkerd's switches, which are easily confused.
fn switch(value: &str) -> Result<bool, Problem> {
    match value {
        "true" | "True" | "TRUE" | "t" | "T" | "1" | "enabled" => Ok(true),
        "false" | "False" | "FALSE" | "f" | "F" | "0" | "disabled" => Ok(false),
        _ => Err(Problem::Warn(format!("{value:?} is neither true (enabled) nor false (disabled)"))),
    }
}

fn port(value: &str) -> Result<u16, Problem> {
    let port = value.parse().ok().filter(|port| *port > 0);
    port.ok_or_else(|| Problem::Warn(format!("{value:?} is not a port (1 to 65535)")))
}

/// Moves one of the proxy's ports, unless another of them is there.
fn distinct(reading: &mut Reading<'_>, set: impl FnOnce(&mut crate::config::ProxyPorts)) -> Outcome {
    let mut moved = reading.settings.ports;
    set(&mut moved);
    let all = [moved.inbound, moved.outbound, moved.admin, moved.control];
    let distinct: std::collections::BTreeSet<u16> = all.into_iter().collect();
    if distinct.len() < all.len() {
        return Err(Problem::Warn("another port of the proxy has that number".to_owned()));
    }
    reading.settings.ports = moved;
    Ok(())
}

fn numbers(reading: &mut Reading<'_>, value: &str) -> Ports {
    note_unknown(reading, Ports::parse(value, &BTreeMap::new()), "a port or a range of ports")
}

fn ports(reading: &mut Reading<'_>, value: &str) -> Ports {
    let parsed = Ports::parse(value, reading.named_ports);
    note_unknown(reading, parsed, "a port, a range of ports or the name of a port of this pod")
}

/// A wrong item is an error: passed over, it would leave a port open that its owner believes to be closed.
fn demanded(named: &BTreeMap<String, u16>, value: &str) -> Result<Ports, Problem> {
    let (ports, unknown) = Ports::parse(value, named);
    match unknown.first() {
        None => Ok(ports),
        Some(item) => Err(Problem::Deny(format!(
            "{item:?} is not a port, a range of ports or the name of a port of this pod"
        ))),
    }
}

fn note_unknown(reading: &mut Reading<'_>, (ports, unknown): (Ports, Vec<String>), expected: &str) -> Ports {
    reading
        .notes
        .extend(unknown.into_iter().map(|item| format!("{item:?} is not {expected} and was passed over")));
    ports
}

/// A wrong subnet is an error: passed over, connections would be handled otherwise than their owner believes.
fn subnets(value: &str) -> Result<Vec<ipnet::IpNet>, Problem> {
    let subnet = |item: &str| {
        item.parse()
            .map_err(|_| Problem::Deny(format!("{item:?} is not a network such as 10.0.0.0/8 (CIDR)")))
    };
    value.split(',').map(str::trim).filter(|item| !item.is_empty()).map(subnet).collect()
}

fn quantity(value: &str) -> Result<&str, Problem> {
    values::quantity(value)?;
    Ok(value)
}

fn cpu(value: &str) -> Result<u128, Problem> {
    /// More than this a proxy takes for a mistake.
    const MOST_WORKERS: u128 = 1024;
    Ok(values::quantity(value)?.whole().min(MOST_WORKERS))
}

fn ask(settings: &mut Settings, resource: &'static str, request: Option<&str>, limit: Option<&str>) {
    settings.resources.requests.extend(request.map(|text| (resource, text.to_owned())));
    settings.resources.limits.extend(limit.map(|text| (resource, text.to_owned())));
}

fn ratio(value: &str) -> Result<String, Problem> {
    match value.parse::<f64>() {
        Ok(ratio) if ratio > 0.0 && ratio < 1.0 => Ok(value.to_owned()),
        _ => Err(Problem::Warn(format!("{value:?} is not a number between 0 and 1"))),
    }
}

/// Not 0 (root would not be redirected), and within what Kubernetes accepts.
fn id(value: &str) -> Result<u32, Problem> {
    let id = value.parse().ok().filter(|id| (1..=2_147_483_647).contains(id));
    id.ok_or_else(|| Problem::Warn(format!("{value:?} is not an id between 1 and 2147483647")))
}

fn positive(value: &str) -> Result<Duration, Problem> {
    match values::duration(value)? {
        Duration::ZERO => Err(Problem::Warn("it must be longer than zero".to_owned())),
        duration => Ok(duration),
    }
}

fn whole_seconds(duration: Duration) -> Result<Duration, Problem> {
    let whole = duration.subsec_nanos() == 0;
    if whole { Ok(duration) } else { Err(Problem::Warn("the kernel counts whole seconds".to_owned())) }
}

/// Merges a JSON array of EnvVar objects into `env`. It is an error if it is anything else: part of an environment is
/// a proxy nobody asked for.
fn environment(env: &mut Vec<Value>, value: &str) -> Outcome {
    let deny = |why: String| Problem::Deny(format!("it is not a JSON array of EnvVar objects: {why}"));
    if value.is_empty() {
        return Ok(());
    }
    let added: Vec<Value> = serde_json::from_str(value).map_err(|error| deny(error.to_string()))?;
    for variable in added {
        let typed: k8s_openapi::api::core::v1::EnvVar =
            serde_json::from_value(variable.clone()).map_err(|error| deny(error.to_string()))?;
        if typed.name.is_empty() || typed.name.contains(['=', '\0']) {
            return Err(deny(format!("{:?} is no name of a variable", typed.name)));
        }
        match env.iter_mut().find(|old| old.get("name").and_then(Value::as_str) == Some(&typed.name)) {
            Some(old) => *old = variable,
            None => env.push(variable),
        }
    }
    Ok(())
}

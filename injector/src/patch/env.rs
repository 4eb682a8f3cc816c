//! Pure. The proxy's environment (contract 1.13): the names, order and forms of Linkerd's chart, so that either proxy
//! can be started with it. `$(NAME)` is expanded by the kubelet and only from variables above, so order matters.

use serde_json::{Value, json};

use super::containers::{END_ENTITY_DIR, TOKEN_DIR};
use crate::{
    annotations::Settings,
    config::{InjectorConfig, PLAINTEXT, Role},
    decide::{PROXY, TOKEN_VOLUME},
    pod::Pod,
    values::{Ports, env_duration},
};

/// Variables in the making.
#[derive(Default)]
struct Env(Vec<Value>);

impl Env {
    fn set(&mut self, name: &str, value: impl Into<String>) {
        self.0.push(json!({ "name": name, "value": value.into() }));
    }

    fn field(&mut self, name: &str, path: &str) {
        self.0.push(json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } }));
    }
}

/// The whole environment of the proxy, whose opaque ports are `opaque`.
pub(super) fn env(pod: &Pod, settings: &Settings, opaque: &Ports, config: &InjectorConfig) -> Vec<Value> {
    let mut env = Env::default();
    downward(&mut env);
    process(&mut env, settings);
    control(&mut env, settings, config);
    timeouts(&mut env, settings);
    listeners(&mut env, pod, settings, config);
    connections(&mut env, settings, opaque, config);
    identity(&mut env, config);
    if let Some(format) = &settings.access_log {
        env.set("LINKERD2_PROXY_ACCESS_LOG", format);
    }
    if let Some(grace) = settings.shutdown_grace {
        env.set("LINKERD2_PROXY_SHUTDOWN_GRACE_PERIOD", format!("{}ms", grace.as_millis()));
    }
    // Linkerd's proxy would only ignore it, but a stranger's image is told nothing that is ours.
    if config.is_ours(&settings.image.name) {
        env.set("REMORA_PROXY_API", "v1");
        // Said only where it matters: an older proxy of ours would not start with a name that it does not know.
        if settings.default_outbound_policy != PLAINTEXT {
            env.set("REMORA_PROXY_OUTBOUND_DEFAULT_POLICY", &settings.default_outbound_policy);
        }
        if settings.denial_header {
            env.set("REMORA_PROXY_DENIAL_HEADER", "true");
        }
    }
    env.0.extend(settings.additional_env.iter().cloned());
    env.0
}

/// What the others refer to.
fn downward(env: &mut Env) {
    env.field("_pod_name", "metadata.name");
    env.field("_pod_ns", "metadata.namespace");
    env.field("_pod_uid", "metadata.uid");
    env.field("_pod_ip", "status.podIP");
    env.field("_pod_nodeName", "spec.nodeName");
    env.set("_pod_containerName", PROXY);
}

fn process(env: &mut Env, settings: &Settings) {
    let workers = &settings.workers;
    env.set("LINKERD2_PROXY_CORES", workers.min.to_string());
    env.set("LINKERD2_PROXY_CORES_MIN", workers.min.to_string());
    if let Some(max) = workers.max {
        env.set("LINKERD2_PROXY_CORES_MAX", max.to_string());
    }
    if let Some(ratio) = &workers.max_ratio {
        env.set("LINKERD2_PROXY_CORES_MAX_RATIO", ratio);
    }
    env.set("LINKERD2_PROXY_SHUTDOWN_ENDPOINT_ENABLED", settings.shutdown_endpoint.to_string());
    let headers = if settings.log_http_headers { "" } else { ",[{headers}]=off,[{request}]=off" };
    env.set("LINKERD2_PROXY_LOG", format!("{}{headers}", settings.log_level));
    env.set("LINKERD2_PROXY_LOG_FORMAT", &settings.log_format);
}

fn control(env: &mut Env, settings: &Settings, config: &InjectorConfig) {
    let networks: Vec<String> = config.cluster_networks.iter().map(ToString::to_string).collect();
    let networks = networks.join(",");
    env.set("LINKERD2_PROXY_DESTINATION_SVC_ADDR", config.addr(Role::Destination));
    env.set("LINKERD2_PROXY_DESTINATION_PROFILE_NETWORKS", &networks);
    env.set("LINKERD2_PROXY_POLICY_SVC_ADDR", config.addr(Role::Policy));
    env.set("LINKERD2_PROXY_POLICY_WORKLOAD", "{\"ns\":\"$(_pod_ns)\", \"pod\":\"$(_pod_name)\"}\n");
    env.set("LINKERD2_PROXY_INBOUND_DEFAULT_POLICY", &settings.default_inbound_policy);
    env.set("LINKERD2_PROXY_POLICY_CLUSTER_NETWORKS", &networks);
    env.set("LINKERD2_PROXY_CONTROL_STREAM_INITIAL_TIMEOUT", "3s");
    env.set("LINKERD2_PROXY_CONTROL_STREAM_IDLE_TIMEOUT", "5m");
    env.set("LINKERD2_PROXY_CONTROL_STREAM_LIFETIME", "1h");
}

fn timeouts(env: &mut Env, settings: &Settings) {
    let millis = |duration: std::time::Duration| format!("{}ms", duration.as_millis());
    env.set("LINKERD2_PROXY_INBOUND_CONNECT_TIMEOUT", millis(settings.inbound_connect_timeout));
    env.set("LINKERD2_PROXY_OUTBOUND_CONNECT_TIMEOUT", millis(settings.outbound_connect_timeout));
    env.set("LINKERD2_PROXY_OUTBOUND_DISCOVERY_IDLE_TIMEOUT", env_duration(settings.outbound_discovery_idle));
    env.set("LINKERD2_PROXY_INBOUND_DISCOVERY_IDLE_TIMEOUT", env_duration(settings.inbound_discovery_idle));
    if settings.no_outbound_detect_timeout {
        env.set("LINKERD2_PROXY_OUTBOUND_DETECT_TIMEOUT", "365d");
    }
    if settings.no_inbound_detect_timeout {
        env.set("LINKERD2_PROXY_INBOUND_DETECT_TIMEOUT", "365d");
    }
}

fn listeners(env: &mut Env, pod: &Pod, settings: &Settings, config: &InjectorConfig) {
    let ports = settings.ports;
    let any = if config.disable_ipv6 { "0.0.0.0" } else { "[::]" };
    env.set("LINKERD2_PROXY_CONTROL_LISTEN_ADDR", format!("{any}:{}", ports.control));
    env.set("LINKERD2_PROXY_ADMIN_LISTEN_ADDR", format!("{any}:{}", ports.admin));
    let outbound = format!("127.0.0.1:{}", ports.outbound);
    env.set("LINKERD2_PROXY_OUTBOUND_LISTEN_ADDR", &outbound);
    let v6 = if config.disable_ipv6 { String::new() } else { format!(",[::1]:{}", ports.outbound) };
    env.set("LINKERD2_PROXY_OUTBOUND_LISTEN_ADDRS", format!("{outbound}{v6}"));
    env.set("LINKERD2_PROXY_INBOUND_LISTEN_ADDR", format!("{any}:{}", ports.inbound));
    env.field("LINKERD2_PROXY_INBOUND_IPS", "status.podIPs");
    let inbound = settings.pod_inbound_ports.clone().unwrap_or_else(|| pod.inbound_ports());
    env.set("LINKERD2_PROXY_INBOUND_PORTS", inbound.to_string());
    if settings.ingress {
        env.set("LINKERD2_PROXY_INGRESS_MODE", "true");
    }
}

fn connections(env: &mut Env, settings: &Settings, opaque: &Ports, config: &InjectorConfig) {
    let suffix =
        if settings.external_profiles { ".".to_owned() } else { format!("svc.{}.", config.cluster_domain) };
    env.set("LINKERD2_PROXY_DESTINATION_PROFILE_SUFFIXES", suffix);
    env.set("LINKERD2_PROXY_INBOUND_ACCEPT_KEEPALIVE", "10000ms");
    env.set("LINKERD2_PROXY_OUTBOUND_CONNECT_KEEPALIVE", "10000ms");
    env.set("LINKERD2_PROXY_INBOUND_ACCEPT_USER_TIMEOUT", "30s");
    env.set("LINKERD2_PROXY_OUTBOUND_CONNECT_USER_TIMEOUT", "30s");
    env.set("LINKERD2_PROXY_OUTBOUND_METRICS_HOSTNAME_LABELS", settings.hostname_labels.to_string());
    for side in ["INBOUND", "OUTBOUND"] {
        env.set(&format!("LINKERD2_PROXY_{side}_SERVER_HTTP2_KEEP_ALIVE_INTERVAL"), "10s");
        env.set(&format!("LINKERD2_PROXY_{side}_SERVER_HTTP2_KEEP_ALIVE_TIMEOUT"), "3s");
    }
    if !opaque.is_empty() {
        env.set("LINKERD2_PROXY_INBOUND_PORTS_DISABLE_PROTOCOL_DETECTION", opaque.to_string());
    }
    if !settings.require_identity.is_empty() {
        env.set("LINKERD2_PROXY_INBOUND_PORTS_REQUIRE_IDENTITY", settings.require_identity.to_string());
    }
    env.set(
        "LINKERD2_PROXY_DESTINATION_CONTEXT",
        "{\"ns\":\"$(_pod_ns)\", \"nodeName\":\"$(_pod_nodeName)\", \"pod\":\"$(_pod_name)\"}\n",
    );
}

fn identity(env: &mut Env, config: &InjectorConfig) {
    let (ns, domain) = (&config.control_namespace, &config.trust_domain);
    env.field("_pod_sa", "spec.serviceAccountName");
    env.set("_l5d_ns", ns);
    env.set("_l5d_trustdomain", domain);
    env.set("LINKERD2_PROXY_IDENTITY_DIR", END_ENTITY_DIR);
    env.set("LINKERD2_PROXY_IDENTITY_TRUST_ANCHORS", format!("{}\n", config.trust_anchors_pem.trim()));
    env.set("LINKERD2_PROXY_IDENTITY_TOKEN_FILE", format!("{TOKEN_DIR}/{TOKEN_VOLUME}"));
    env.set("LINKERD2_PROXY_IDENTITY_SVC_ADDR", config.addr(Role::Identity));
    let local = format!("$(_pod_sa).$(_pod_ns).serviceaccount.identity.{ns}.{domain}");
    env.set("LINKERD2_PROXY_IDENTITY_LOCAL_NAME", local);
    env.set("LINKERD2_PROXY_IDENTITY_SVC_NAME", config.peer_name(Role::Identity));
    env.set("LINKERD2_PROXY_DESTINATION_SVC_NAME", config.peer_name(Role::Destination));
    env.set("LINKERD2_PROXY_POLICY_SVC_NAME", config.peer_name(Role::Policy));
}

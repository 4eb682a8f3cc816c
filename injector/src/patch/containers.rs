//! Pure. The two containers that are added to a pod (contract 6.3).
//!
//! Both satisfy the `restricted` Pod Security Standard, but for the two capabilities without which no rule can be set.

use serde_json::{Map, Value, json};

use super::{Opaque, env};
use crate::{
    annotations::Settings,
    config::{InjectorConfig, IptablesMode},
    decide::{END_ENTITY_VOLUME, INIT, PROXY, TOKEN_VOLUME, XTABLES_VOLUME},
    pod::Pod,
    values::Ports,
};

/// Where the proxy keeps its key, certificate and bundle.
pub(super) const END_ENTITY_DIR: &str = "/var/run/linkerd/identity/end-entity";
/// Where its token is.
pub(super) const TOKEN_DIR: &str = "/var/run/secrets/tokens";
/// User and group of the init container: nobody.
const NOBODY: u32 = 65_534;

/// The init container, which sets the redirect rules and proves them.
pub(super) fn init(settings: &Settings, config: &InjectorConfig, resources: Option<&Value>) -> Value {
    let mut container = Map::new();
    let privileged = settings.close_wait.is_some();
    let security = if privileged {
        // The sysctl is written to /proc/sys, which is read-only for everybody but a privileged root.
        json!({
            "allowPrivilegeEscalation": true,
            "capabilities": { "add": ["NET_ADMIN", "NET_RAW"] },
            "privileged": true,
            "readOnlyRootFilesystem": true,
            "runAsGroup": 0,
            "runAsNonRoot": false,
            "runAsUser": 0,
            "seccompProfile": { "type": "RuntimeDefault" },
        })
    } else {
        json!({
            "allowPrivilegeEscalation": false,
            "capabilities": { "add": ["NET_ADMIN", "NET_RAW"], "drop": ["ALL"] },
            "privileged": false,
            "readOnlyRootFilesystem": true,
            "runAsGroup": NOBODY,
            "runAsNonRoot": true,
            "runAsUser": NOBODY,
            "seccompProfile": { "type": "RuntimeDefault" },
        })
    };
    for (field, value) in [
        ("name", json!(INIT)),
        ("image", json!(settings.init_image.reference())),
        ("imagePullPolicy", json!(settings.init_image.pull_policy)),
        ("command", json!(["/usr/lib/linkerd/linkerd2-proxy-init"])),
        ("args", json!(init_args(settings, config))),
        ("securityContext", security),
        ("terminationMessagePolicy", json!("FallbackToLogsOnError")),
        ("volumeMounts", json!([{ "name": XTABLES_VOLUME, "mountPath": "/run" }])),
    ] {
        container.insert(field.to_owned(), value);
    }
    container.extend(resources.map(|resources| ("resources".to_owned(), resources.clone())));
    Value::Object(container)
}

/// linkerd2-proxy-init's flags, which ours accepts too.
fn init_args(settings: &Settings, config: &InjectorConfig) -> Vec<String> {
    let mut args: Vec<String> = Vec::new();
    let mut flag = |name: &str, value: String| args.extend([name.to_owned(), value]);
    let binary = match config.iptables_mode {
        IptablesMode::Nft => Some("iptables-nft"),
        IptablesMode::Legacy => Some("iptables-legacy"),
        IptablesMode::Auto => None,
    };
    if let Some(binary) = binary {
        flag("--firewall-bin-path", binary.to_owned());
        flag("--firewall-save-bin-path", format!("{binary}-save"));
    }
    flag("--incoming-proxy-port", settings.ports.inbound.to_string());
    flag("--outgoing-proxy-port", settings.ports.outbound.to_string());
    flag("--proxy-uid", settings.uid.to_string());
    if let Some(gid) = settings.gid {
        flag("--proxy-gid", gid.to_string());
    }
    let mut inbound = Ports::from([settings.ports.control, settings.ports.admin].as_slice());
    inbound.0.extend(&settings.skip_inbound.0);
    flag("--inbound-ports-to-ignore", inbound.to_string());
    if !settings.skip_outbound.is_empty() {
        flag("--outbound-ports-to-ignore", settings.skip_outbound.to_string());
    }
    if let Some(close_wait) = settings.close_wait {
        flag("--timeout-close-wait-secs", close_wait.as_secs().to_string());
    }
    if !settings.skip_subnets.is_empty() {
        let subnets: Vec<String> = settings.skip_subnets.iter().map(ToString::to_string).collect();
        flag("--subnets-to-ignore", subnets.join(","));
    }
    if config.disable_ipv6 {
        // A boolean flag of Go's takes its value with an equals sign only.
        args.push("--ipv6=false".to_owned());
    }
    args
}

/// The proxy.
pub(super) fn proxy(
    pod: &Pod,
    settings: &Settings,
    opaque: &Opaque,
    config: &InjectorConfig,
    resources: Option<&Value>,
) -> Value {
    let admin = settings.ports.admin;
    let get = |path: &str| json!({ "path": path, "port": admin });
    let mut container = Map::new();
    for (field, value) in [
        ("name", json!(PROXY)),
        ("image", json!(settings.image.reference())),
        ("imagePullPolicy", json!(settings.image.pull_policy)),
        ("env", json!(env::env(pod, settings, &opaque.ports, config))),
        (
            "ports",
            json!([
                { "name": "linkerd-proxy", "containerPort": settings.ports.inbound },
                { "name": "linkerd-admin", "containerPort": admin },
            ]),
        ),
        ("livenessProbe", json!({ "httpGet": get("/live"), "initialDelaySeconds": 10, "timeoutSeconds": 1 })),
        (
            "readinessProbe",
            json!({ "httpGet": get("/ready"), "initialDelaySeconds": 2, "timeoutSeconds": 1 }),
        ),
        ("securityContext", proxy_security(settings)),
        ("terminationMessagePolicy", json!("FallbackToLogsOnError")),
        (
            "volumeMounts",
            json!([
                { "name": END_ENTITY_VOLUME, "mountPath": END_ENTITY_DIR },
                { "name": TOKEN_VOLUME, "mountPath": TOKEN_DIR },
            ]),
        ),
    ] {
        container.insert(field.to_owned(), value);
    }
    if settings.native_sidecar {
        container.insert("restartPolicy".to_owned(), json!("Always"));
        if settings.wait_for_proxy {
            // The next container starts when this has passed once: two minutes to get a first certificate.
            let probe = json!({ "httpGet": get("/ready"), "periodSeconds": 1, "failureThreshold": 120 });
            container.insert("startupProbe".to_owned(), probe);
        }
    } else if let Some(lifecycle) = lifecycle(settings) {
        container.insert("lifecycle".to_owned(), lifecycle);
    }
    container.extend(resources.map(|resources| ("resources".to_owned(), resources.clone())));
    Value::Object(container)
}

fn proxy_security(settings: &Settings) -> Value {
    let mut security = json!({
        "allowPrivilegeEscalation": false,
        "capabilities": { "drop": ["ALL"] },
        "readOnlyRootFilesystem": true,
        "runAsNonRoot": true,
        "runAsUser": settings.uid,
        "seccompProfile": { "type": "RuntimeDefault" },
    });
    if let (Some(gid), Some(security)) = (settings.gid, security.as_object_mut()) {
        security.insert("runAsGroup".to_owned(), json!(gid));
    }
    security
}

/// What an ordinary container needs to start before the application and to stop after it.
fn lifecycle(settings: &Settings) -> Option<Value> {
    let mut hooks = Map::new();
    if settings.wait_for_proxy {
        let port = format!("--port={}", settings.ports.admin);
        let command = json!(["/usr/lib/linkerd/linkerd-await", "--timeout=2m", port]);
        hooks.insert("postStart".to_owned(), json!({ "exec": { "command": command } }));
    }
    if settings.wait_before_exit > 0 {
        let command = json!(["/bin/sleep", settings.wait_before_exit.to_string()]);
        hooks.insert("preStop".to_owned(), json!({ "exec": { "command": command } }));
    }
    (!hooks.is_empty()).then_some(Value::Object(hooks))
}

//! Pure. Whether a pod gets a proxy (contract 6.2): inject, with what; skip, and why; or refuse, and what to change.
//!
//! Skipping lets the pod in as it is; that is for pods nobody asked to mesh or that cannot be. Refusing keeps it out;
//! that is for pods whose traffic would pass by the proxy, or whose containers could read its key, unnoticed.

use std::{collections::BTreeMap, fmt};

use crate::{
    annotations::{self, Annotations, INJECT, Settings},
    config::InjectorConfig,
    pod::Pod,
};

/// The proxy's container.
pub const PROXY: &str = "linkerd-proxy";
/// The init container.
pub const INIT: &str = "linkerd-init";
/// Volume of the proxy's key, certificate and bundle.
pub const END_ENTITY_VOLUME: &str = "linkerd-identity-end-entity";
/// Volume of the token that the proxy shows to the CA.
pub const TOKEN_VOLUME: &str = "linkerd-identity-token";
/// Volume of iptables' lock file.
pub const XTABLES_VOLUME: &str = "linkerd-proxy-init-xtables-lock";
/// Label that every injected pod has.
pub const CONTROL_NS_LABEL: &str = "linkerd.io/control-plane-ns";
/// Label of the control plane's own pods.
const COMPONENT_LABEL: &str = "linkerd.io/control-plane-component";
/// Namespace label that turns the webhooks off.
const WEBHOOKS_LABEL: &str = "config.linkerd.io/admission-webhooks";

/// A pod and what it must be judged by.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The pod, or the template of pods.
    pub pod: &'a Pod,
    /// The name of its namespace.
    pub namespace: &'a str,
    /// Its namespace's metadata.
    pub surroundings: &'a Surroundings,
    /// What it belongs to.
    pub owner: Option<&'a Owner>,
    /// `linkerd.io/inject` of the Gateway object that the pod implements, if it does. Only `enabled` and `ingress`
    /// count: a Gateway turns injection on, never off.
    pub gateway: Option<&'a str>,
}

/// A namespace's metadata.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// Its annotations.
    pub annotations: Annotations,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

/// The workload a pod belongs to: a Deployment rather than its ReplicaSet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// `Deployment`, `Job`…
    pub kind: String,
    /// Its name.
    pub name: String,
}

/// What becomes of a pod.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// It gets a proxy.
    Inject(Box<Plan>),
    /// It stays as it is.
    Skip(Skip),
    /// It is kept out, for all these reasons.
    Refuse(Vec<Refusal>),
}

/// How a pod is injected.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Who asked for it.
    pub asked_by: AskedBy,
    /// What proxy and init container are told.
    pub settings: Settings,
    /// Annotations to copy from the namespace.
    pub inherited: Annotations,
    /// What its owner should know.
    pub warnings: Vec<String>,
}

/// Where the annotation stands that decided; printed as the metric label `annotation_at`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AskedBy {
    /// The pod.
    Workload,
    /// Its namespace.
    Namespace,
    /// The Gateway it implements.
    Gateway,
    /// Whoever called `remora inject`.
    Caller,
}

impl AskedBy {
    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Workload => "workload",
            Self::Namespace => "namespace",
            Self::Gateway => "gateway",
            Self::Caller => "caller",
        }
    }
}

/// Why a pod stays as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Skip {
    /// It shares its node's network, where redirecting would redirect the node.
    HostNetwork,
    /// It has a proxy, ours or another mesh's.
    SidecarExists,
    /// The object has no pod template.
    UnsupportedKind,
    /// Nobody asked.
    NotAnnotated,
    /// The pod says no.
    DisabledByWorkload,
    /// The namespace says no.
    DisabledByNamespace,
    /// The pod says something that means nothing.
    InvalidAtWorkload,
    /// The namespace says something that means nothing.
    InvalidAtNamespace,
    /// It belongs to the control plane, whose processes speak mTLS themselves.
    ControlPlane,
    /// The namespace is exempt from webhooks.
    WebhooksDisabled,
    /// There are no iptables.
    Windows,
}

impl Skip {
    /// The metric label `skip_reason`, where Linkerd has one the same.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::HostNetwork => "host_network_enabled",
            Self::SidecarExists => "sidecar_already_exists",
            Self::UnsupportedKind => "unsupported_resource",
            Self::NotAnnotated => "injection_enable_annotation_absent",
            Self::DisabledByWorkload | Self::DisabledByNamespace => "injection_disable_annotation_present",
            Self::InvalidAtWorkload => "invalid_inject_annotation_at_workload",
            Self::InvalidAtNamespace => "invalid_inject_annotation_at_ns",
            Self::ControlPlane => "control_plane_component",
            Self::WebhooksDisabled => "admission_webhooks_disabled",
            Self::Windows => "windows",
        }
    }
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::HostNetwork => "it uses its node's network (hostNetwork: true)",
            Self::SidecarExists => "it has a sidecar already",
            Self::UnsupportedKind => "its kind has no pods",
            Self::NotAnnotated => {
                "neither it nor its namespace has the annotation linkerd.io/inject: enabled"
            }
            Self::DisabledByWorkload => "it has the annotation linkerd.io/inject: disabled",
            Self::DisabledByNamespace => "its namespace has the annotation linkerd.io/inject: disabled",
            Self::InvalidAtWorkload => {
                "its annotation linkerd.io/inject is neither enabled, disabled nor ingress"
            }
            Self::InvalidAtNamespace => {
                "its namespace's annotation linkerd.io/inject is neither enabled, disabled nor ingress"
            }
            Self::ControlPlane => "it belongs to the control plane, which speaks mTLS itself",
            Self::WebhooksDisabled => {
                "its namespace has the label config.linkerd.io/admission-webhooks: disabled"
            }
            Self::Windows => "it is for Windows nodes",
        })
    }
}

/// Why a pod is kept out: what is wrong, for whom, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Refusal {
    /// What it does would not be redirected, so nothing of it would be encrypted.
    #[error(
        "container {container:?} runs as {kind} {id}, which is the proxy's own: its traffic would pass by the proxy, \
         unencrypted. Run it as another {kind}, or move the proxy with the annotation config.linkerd.io/proxy-{kind}"
    )]
    SameId {
        /// The container.
        container: String,
        /// `uid` or `gid`.
        kind: &'static str,
        /// The number they share.
        id: u32,
    },
    /// A name of ours in the pod's own spec.
    #[error("{what} {name:?} has a name that the proxy needs for itself: rename it")]
    OurName {
        /// `container` or `volume`.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// A container that would see the proxy's key or token.
    #[error("container {container:?} mounts {volume:?}, the proxy's own volume: remove the mount")]
    OurVolume {
        /// The container.
        container: String,
        /// The volume.
        volume: String,
    },
    /// An annotation whose value cannot be passed over safely.
    #[error("{0}")]
    Annotation(String),
}

/// Decides what becomes of a pod.
pub fn decide(subject: &Subject<'_>, config: &InjectorConfig) -> Decision {
    match asked(subject, config) {
        Ok(asked_by) => plan(subject, config, asked_by),
        Err(skip) => Decision::Skip(skip),
    }
}

/// Decides for somebody who asks for a proxy by hand: annotations cannot refuse it, except the pod's own.
pub fn decide_by_hand(subject: &Subject<'_>, config: &InjectorConfig) -> Decision {
    let own = subject.pod.annotations().get(INJECT).cloned();
    match (unfit(subject, config), own.as_deref().map(Switch::parse)) {
        (Some(skip), _) => Decision::Skip(skip),
        (None, Some(Switch::Off)) => Decision::Skip(Skip::DisabledByWorkload),
        (None, Some(Switch::Invalid)) => Decision::Skip(Skip::InvalidAtWorkload),
        (None, Some(Switch::On) | None) => plan(subject, config, AskedBy::Caller),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Switch {
    On,
    Off,
    Invalid,
}

impl Switch {
    fn parse(value: &str) -> Self {
        match value {
            "enabled" | "ingress" => Self::On,
            "disabled" => Self::Off,
            _ => Self::Invalid,
        }
    }
}

/// Who asked for a proxy, or why there will be none. The pod's word is the last; then the Gateway's, which can only be
/// yes; then the namespace's.
fn asked(subject: &Subject<'_>, config: &InjectorConfig) -> Result<AskedBy, Skip> {
    if subject.surroundings.labels.get(WEBHOOKS_LABEL).is_some_and(|value| value == "disabled") {
        return Err(Skip::WebhooksDisabled);
    }
    let switch =
        |value: Option<&String>| value.filter(|value| !value.is_empty()).map(|value| Switch::parse(value));
    let own = subject.pod.metadata.annotations.as_ref().and_then(|annotations| annotations.get(INJECT));
    let asked_by = match (switch(own), switch(subject.surroundings.annotations.get(INJECT))) {
        (Some(Switch::On), _) => AskedBy::Workload,
        (Some(Switch::Off), _) => return Err(Skip::DisabledByWorkload),
        (Some(Switch::Invalid), _) => return Err(Skip::InvalidAtWorkload),
        (None, _) if subject.gateway.map(Switch::parse) == Some(Switch::On) => AskedBy::Gateway,
        (None, Some(Switch::On)) => AskedBy::Namespace,
        (None, Some(Switch::Off)) => return Err(Skip::DisabledByNamespace),
        (None, Some(Switch::Invalid)) => return Err(Skip::InvalidAtNamespace),
        (None, None) => return Err(Skip::NotAnnotated),
    };
    unfit(subject, config).map_or(Ok(asked_by), Err)
}

/// Why a pod cannot have a proxy, whoever asks.
fn unfit(subject: &Subject<'_>, config: &InjectorConfig) -> Option<Skip> {
    let pod = subject.pod;
    let reasons = [
        (pod.spec.host_network == Some(true), Skip::HostNetwork),
        (has_sidecar(pod), Skip::SidecarExists),
        (
            subject.namespace == config.control_namespace || pod.label(COMPONENT_LABEL).is_some(),
            Skip::ControlPlane,
        ),
        (pod.spec.os.as_ref().is_some_and(|os| os.name == "windows"), Skip::Windows),
    ];
    reasons.into_iter().find_map(|(holds, skip)| holds.then_some(skip))
}

/// Whether a mesh has been here. A container with our name alone does not prove it (that is refused, below): the label
/// that every injector sets must be there too.
fn has_sidecar(pod: &Pod) -> bool {
    let ours = |name: &str| name == PROXY || name == INIT;
    let images = [
        "cr.l5d.io/linkerd/proxy:",
        "cr.l5d.io/linkerd/proxy-init:",
        "gcr.io/istio-release/proxyv2:",
        "gcr.io/istio-release/proxy_init:",
    ];
    pod.containers().any(|container| {
        let image = container.image.as_deref().unwrap_or_default();
        ["istio-proxy", "istio-init"].contains(&container.name.as_str())
            || images.iter().any(|prefix| image.starts_with(prefix))
            || (ours(&container.name) && pod.label(CONTROL_NS_LABEL).is_some())
    })
}

fn plan(subject: &Subject<'_>, config: &InjectorConfig, asked_by: AskedBy) -> Decision {
    let pod = subject.pod;
    let own = pod.annotations();
    let mut refusals = names(pod);
    let read = match annotations::read(config, &subject.surroundings.annotations, &own, &pod.named_ports()) {
        Ok(read) => read,
        Err(wrong) => {
            refusals.extend(wrong.into_iter().map(Refusal::Annotation));
            return Decision::Refuse(refusals);
        }
    };
    let (mut settings, mut inherited) = (read.settings, read.inherited);
    if let (AskedBy::Gateway, Some(switch)) = (asked_by, subject.gateway) {
        settings.ingress = switch == "ingress";
        inherited.insert(INJECT.to_owned(), switch.to_owned());
    }
    refusals.extend(ids(pod, &settings));
    if !refusals.is_empty() {
        return Decision::Refuse(refusals);
    }
    let mut warnings = read.warnings;
    warnings.extend(remarks(subject, &settings));
    Decision::Inject(Box::new(Plan { asked_by, settings, inherited, warnings }))
}

/// Our names in the pod's own spec. Mounts count although the volume is not there yet: the webhook runs before
/// validation, and would make them valid.
fn names(pod: &Pod) -> Vec<Refusal> {
    let volumes = [END_ENTITY_VOLUME, TOKEN_VOLUME, XTABLES_VOLUME];
    let mut found = Vec::new();
    for volume in pod.spec.volumes.iter().flatten() {
        if volumes.contains(&volume.name.as_str()) {
            found.push(Refusal::OurName { what: "volume", name: volume.name.clone() });
        }
    }
    for container in pod.containers() {
        if [PROXY, INIT].contains(&container.name.as_str()) {
            found.push(Refusal::OurName { what: "container", name: container.name.clone() });
        }
        for mount in container.volume_mounts.iter().flatten() {
            if volumes.contains(&mount.name.as_str()) {
                let (container, volume) = (container.name.clone(), mount.name.clone());
                found.push(Refusal::OurVolume { container, volume });
            }
        }
    }
    found
}

/// Containers that would share what exempts the proxy's traffic from redirection.
fn ids(pod: &Pod, settings: &Settings) -> Vec<Refusal> {
    let mut found = Vec::new();
    for container in pod.containers() {
        let name = || container.name.clone();
        if pod.user(container) == Some(settings.uid.into()) {
            found.push(Refusal::SameId { container: name(), kind: "uid", id: settings.uid });
        }
        if let Some(gid) = settings.gid.filter(|gid| pod.group(container) == Some((*gid).into())) {
            found.push(Refusal::SameId { container: name(), kind: "gid", id: gid });
        }
    }
    found
}

/// Declared ports that the proxy listens on. A declaration alone binds nothing, so this is no refusal.
fn taken(pod: &Pod, settings: &Settings) -> impl Iterator<Item = u16> {
    let ours = [settings.ports.inbound, settings.ports.outbound, settings.ports.admin];
    pod.declared_ports().into_iter().filter(move |port| ours.contains(port))
}

/// What is allowed and rarely meant.
fn remarks(subject: &Subject<'_>, settings: &Settings) -> Vec<String> {
    let mut warnings = Vec::new();
    let namespace = subject.surroundings.annotations.get(INJECT);
    if namespace.is_some_and(|value| !value.is_empty() && Switch::parse(value) == Switch::Invalid) {
        warnings
            .push(format!("annotation {INJECT} of the namespace is neither enabled, disabled nor ingress"));
    }
    if subject.pod.has_udp_ports() {
        warnings
            .push("the pod declares UDP ports: their traffic passes by the proxy, unencrypted".to_owned());
    }
    for port in taken(subject.pod, settings) {
        warnings.push(format!(
            "the pod declares port {port}, where its proxy listens: if the application listens there too, one of them \
             will not start (config.linkerd.io/inbound-port, outbound-port and admin-port move the proxy's)"
        ));
    }
    let job = subject.owner.is_some_and(|owner| ["Job", "CronJob"].contains(&owner.kind.as_str()));
    if job && !settings.native_sidecar {
        warnings.push(
            "the Job will not complete by itself, because its proxy is not a native sidecar: end it with POST \
             /shutdown (config.linkerd.io/proxy-admin-shutdown: enabled), or remove \
             config.linkerd.io/proxy-enable-native-sidecar"
                .to_owned(),
        );
    }
    if settings.native_sidecar && settings.wait_before_exit > 0 {
        warnings.push(
            "config.alpha.linkerd.io/proxy-wait-before-exit-seconds has no effect: a native sidecar stops after the \
             application anyway"
                .to_owned(),
        );
    }
    warnings
}

#[cfg(test)]
mod tests;

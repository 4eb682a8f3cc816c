//! Pure. What a namespace says for everything in it, and the annotations that pods and Services may have themselves.

use super::{DEFAULT_INBOUND_POLICY, OPAQUE_PORTS, OUTBOUND_DEFAULT_POLICY};
use crate::ports::PortSet;
use remora_core::policy::{DefaultPolicy, OutboundDefault};
use std::collections::BTreeMap;

/// What a namespace says for everything in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespace {
    /// Opaque ports of pods and Services without the annotation.
    pub opaque_ports: Option<PortSet>,
    /// Default policy of pods without the annotation.
    pub default_policy: Option<DefaultPolicy>,
    /// Whom proxies of pods without the annotation may reach in plaintext. The injector tells them.
    pub outbound_default: Option<OutboundDefault>,
}

impl Namespace {
    /// Reads its annotations. What is wrong with them goes to `reasons`.
    pub(super) fn read(annotations: Option<&BTreeMap<String, String>>, reasons: &mut Vec<String>) -> Self {
        let Some(annotations) = annotations else { return Self::default() };
        denial_header(annotations, reasons);
        Self {
            opaque_ports: ports_of(annotations, OPAQUE_PORTS, |_| None, reasons),
            default_policy: policy_of(annotations, reasons),
            outbound_default: outbound_of(annotations, reasons),
        }
    }
}

/// The annotation that the injector tells a proxy of; here only whether it says anything.
const DENIAL_HEADER: &str = "config.remora.io/denial-header";

/// Says whether a refusal may be named in the answer; a value that the injector ignores is told.
pub(super) fn denial_header(annotations: &BTreeMap<String, String>, reasons: &mut Vec<String>) {
    const SAYS: [&str; 14] = [
        "enabled", "disabled", "true", "True", "TRUE", "t", "T", "1", "false", "False", "FALSE", "f", "F",
        "0",
    ];
    let wrong = annotations.get(DENIAL_HEADER).filter(|value| !SAYS.contains(&value.as_str()));
    reasons.extend(wrong.map(|value| {
        format!("annotation {DENIAL_HEADER}: {value:?} is neither enabled nor disabled; it is ignored")
    }));
}

/// The ports that an annotation lists; `None` if there is no such annotation.
pub(super) fn ports_of(
    annotations: &BTreeMap<String, String>,
    annotation: &str,
    named: impl Fn(&str) -> Option<u16>,
    reasons: &mut Vec<String>,
) -> Option<PortSet> {
    let (ports, invalid) = PortSet::parse(annotations.get(annotation)?, named);
    reasons.extend(
        invalid.into_iter().map(|invalid| format!("annotation {annotation}: {invalid}; it is left out")),
    );
    Some(ports)
}

/// The policy that an annotation names; `None` if there is no such annotation, or no such policy.
pub(super) fn policy_of(
    annotations: &BTreeMap<String, String>,
    reasons: &mut Vec<String>,
) -> Option<DefaultPolicy> {
    let name = annotations.get(DEFAULT_INBOUND_POLICY)?;
    let policy = DefaultPolicy::parse(name);
    if policy.is_none() {
        reasons.push(format!(
            "annotation {DEFAULT_INBOUND_POLICY}: {name:?} is not one of all-unauthenticated, all-authenticated, \
             cluster-unauthenticated, cluster-authenticated, audit, deny; it is ignored"
        ));
    }
    policy
}

/// Whom an annotation lets a proxy reach in plaintext; `None` if there is no such annotation, or no such policy.
pub(super) fn outbound_of(
    annotations: &BTreeMap<String, String>,
    reasons: &mut Vec<String>,
) -> Option<OutboundDefault> {
    let name = annotations.get(OUTBOUND_DEFAULT_POLICY)?;
    let policy = OutboundDefault::parse(name);
    if policy.is_none() {
        let names = OutboundDefault::ALL.map(OutboundDefault::as_str).join(", ");
        reasons.push(format!(
            "annotation {OUTBOUND_DEFAULT_POLICY}: {name:?} is not one of {names}; the injector refuses the pod"
        ));
    }
    policy
}

//! Labels as Linkerd's dashboards and queries expect them. Contract 5.4.

use crate::inbound::Connection;
use remora_core::{
    endpoint::{DialPlan, Endpoint},
    policy::{Peer, Refused, ResourceRef, ServerPolicy},
};
use std::{borrow::Cow, net::SocketAddr};

/// A label set in printing order.
pub type Labels = Vec<(Cow<'static, str>, String)>;

/// One label.
#[expect(clippy::needless_pass_by_value, reason = "numbers, addresses and texts alike")]
pub fn label(name: &'static str, value: impl ToString) -> (Cow<'static, str>, String) {
    (Cow::Borrowed(name), value.to_string())
}

/// `direction`, `peer`.
pub fn side(direction: &'static str, peer: &'static str) -> Labels {
    vec![label("direction", direction), label("peer", peer)]
}

/// `target_addr`, `target_ip`, `target_port`.
pub fn target(labels: &mut Labels, addr: SocketAddr) {
    labels.push(label("target_addr", addr));
    labels.push(label("target_ip", addr.ip()));
    labels.push(label("target_port", addr.port()));
}

/// `tls` with `client_id` or `no_tls_reason`, of an inbound connection.
pub fn client_tls(labels: &mut Labels, connection: &Connection) {
    match (&connection.peer, connection.no_tls) {
        (Peer::Tls { identity }, _) => {
            labels.push(label("tls", "true"));
            labels.push(label("client_id", identity.as_ref().map_or("", |identity| identity.as_str())));
        }
        // No `sni`: it is whatever a stranger says, and would fill the family's budget.
        (Peer::Passthrough { .. }, _) => labels.push(label("tls", "opaque")),
        (Peer::Plain, Some(remora_core::endpoint::NoTlsReason::Disabled)) => {
            labels.push(label("tls", "disabled"));
        }
        (Peer::Plain, reason) => {
            labels.push(label("tls", "no_identity"));
            labels
                .push(label("no_tls_reason", reason.map_or("", remora_core::endpoint::NoTlsReason::as_str)));
        }
    }
}

/// `tls` with `server_id` or `no_tls_reason`, of an endpoint.
pub fn server_tls(labels: &mut Labels, plan: &DialPlan) {
    match plan {
        DialPlan::Plain { reason, .. } => {
            labels.push(label("tls", "no_identity"));
            labels.push(label("no_tls_reason", reason.as_str()));
        }
        DialPlan::Transparent { tls, .. } | DialPlan::Direct { tls, .. } => {
            labels.push(label("tls", "true"));
            labels.push(label("server_id", &tls.identity));
        }
    }
}

/// `dst_*`, as the control plane named them.
pub fn destination(labels: &mut Labels, endpoint: &Endpoint) {
    for (name, value) in endpoint.labels.iter() {
        labels.push((Cow::Owned(format!("dst_{name}")), value.to_string()));
    }
}

/// `srv_*`.
pub fn server(labels: &mut Labels, server: &ServerPolicy, port: u16) {
    labels.push(label("srv_group", &server.meta.group));
    labels.push(label("srv_kind", &server.meta.kind));
    labels.push(label("srv_name", &server.meta.name));
    labels.push(label("srv_port", port));
}

/// `<prefix>_group`, `<prefix>_kind`, `<prefix>_name`.
pub fn resource(labels: &mut Labels, names: [&'static str; 3], resource: &ResourceRef) {
    let [group, kind, name] = names;
    labels.push(label(group, &resource.group));
    labels.push(label(kind, &resource.kind));
    labels.push(label(name, &resource.name));
}

/// The policies that were asked about a refused client.
pub fn refused(labels: &mut Labels, refused: &Refused) {
    labels.push(label("policies", &refused.policies));
}

/// The names of [`resource`] for a route.
pub const ROUTE: [&str; 3] = ["route_group", "route_kind", "route_name"];
/// The names of [`resource`] for the server of a route.
pub const PARENT: [&str; 3] = ["parent_group", "parent_kind", "parent_name"];
/// The names of [`resource`] for an authorization.
pub const AUTHZ: [&str; 3] = ["authz_group", "authz_kind", "authz_name"];

/// The names of [`resource`] for a rate limit.
pub const RATE_LIMIT: [&str; 3] = ["ratelimit_group", "ratelimit_kind", "ratelimit_name"];

/// `parent_*`, of the typed families.
pub fn parent(labels: &mut Labels, parent: &ResourceRef) {
    resource(labels, PARENT, parent);
    labels.push(label("parent_namespace", &parent.namespace));
    labels.push(label("parent_port", optional_port(parent.port)));
    labels.push(label("parent_section_name", &parent.section));
}

/// `backend_*`, of the typed families.
pub fn backend(labels: &mut Labels, backend: &ResourceRef) {
    resource(labels, ["backend_group", "backend_kind", "backend_name"], backend);
    labels.push(label("backend_namespace", &backend.namespace));
    labels.push(label("backend_port", optional_port(backend.port)));
    labels.push(label("backend_section_name", &backend.section));
}

fn optional_port(port: u16) -> String {
    if port == 0 { String::new() } else { port.to_string() }
}

//! Pure. Reads policy resources strictly: what the schema of its kind does not allow, or Linkerd's webhook refuses, is a
//! mistake with its path.

use super::{
    AccountRef, AnyClients, AuthorizationPolicySpec, Clients, ObjectName, Policy, PolicyKind, PolicySpec,
    PolicyTarget, RateLimitSpec, RateOverride, Selector, ServerAuthorizationSpec, ServerPort, ServerProtocol,
    ServerSelector, ServerSpec, WhoRef,
    clients::{MAX_LISTED, Reference, networks, not_empty},
};
use crate::resources::{
    routes::{POLICY_GROUP, RouteKind, optional},
    strict::{Fields, Mistakes, join, shown},
};
use remora_core::policy::DefaultPolicy;
use serde_json::Value;
use std::{num::NonZeroU32, sync::Arc};

/// Longest name of a port of a container (RFC 6335).
const MAX_PORT_NAME: usize = 15;

impl Policy {
    /// Reads one, or says everything that is wrong with it.
    pub(in crate::resources) fn read(kind: PolicyKind, value: &Value) -> Result<Self, Vec<(String, String)>> {
        let mut mistakes = Mistakes::default();
        // The status is other controllers' word, or ours of another time.
        let known = ["apiVersion", "kind", "metadata", "spec", "status"];
        let Some(fields) = mistakes.object("", value, &known) else { return Err(mistakes.0) };
        let metadata = mistakes.metadata(fields, "web");
        let version = fields.get("apiVersion").and_then(Value::as_str).unwrap_or_default();
        let value = mistakes.required("", fields, "spec");
        let spec = value.and_then(|value| spec(kind, version, value, &mut mistakes));
        match (metadata, spec) {
            (Some(metadata), Some(spec)) if mistakes.0.is_empty() => Ok(Self { metadata, spec }),
            _ => Err(mistakes.0),
        }
    }
}

fn spec(kind: PolicyKind, version: &str, value: &Value, mistakes: &mut Mistakes) -> Option<PolicySpec> {
    Some(match kind {
        PolicyKind::Server => PolicySpec::Server(Arc::new(server(version, value, mistakes)?)),
        PolicyKind::ServerAuthorization => {
            PolicySpec::ServerAuthorization(Arc::new(server_authorization(value, mistakes)?))
        }
        PolicyKind::AuthorizationPolicy => {
            PolicySpec::AuthorizationPolicy(Arc::new(authorization_policy(value, mistakes)?))
        }
        PolicyKind::MeshTls => {
            PolicySpec::MeshTls(Arc::new(Clients::of_authentication("spec", value, mistakes)?))
        }
        PolicyKind::Network => {
            let fields = mistakes.object("spec", value, &["networks"])?;
            let listed = mistakes.required("spec", fields, "networks");
            PolicySpec::Network(Arc::new(networks("spec.networks", listed, mistakes)))
        }
        PolicyKind::RateLimit => PolicySpec::RateLimit(Arc::new(rate_limit(value, mistakes)?)),
    })
}

fn server(version: &str, value: &Value, mistakes: &mut Mistakes) -> Option<ServerSpec> {
    let known = ["podSelector", "port", "proxyProtocol", "externalWorkloadSelector", "accessPolicy"];
    let most = match version {
        "policy.linkerd.io/v1beta1" => 3,
        "policy.linkerd.io/v1beta2" => 4,
        _ => 5,
    };
    let fields = mistakes.object("spec", value, known.get(..most).unwrap_or(&known))?;
    let selector = |name: &str, mistakes: &mut Mistakes| {
        optional("spec", fields, name, |path, value| Selector::read(path, value, mistakes))
    };
    let (pods, external) =
        (selector("podSelector", mistakes), selector("externalWorkloadSelector", mistakes));
    let is_external = most > 3 && external.is_some();
    match (fields.get("podSelector").is_some(), is_external) {
        (false, false) => mistakes.add("spec.podSelector", "missing"),
        (true, true) => mistakes
            .add("spec.externalWorkloadSelector", "a Server is of pods or of ExternalWorkloads, not of both"),
        _ => {}
    }
    let port = mistakes.required("spec", fields, "port");
    let port = port.and_then(|value| port_of("spec.port", value, mistakes));
    let protocols = [
        ServerProtocol::Detect,
        ServerProtocol::Http1,
        ServerProtocol::Http2,
        ServerProtocol::Grpc,
        ServerProtocol::Opaque,
        ServerProtocol::Tls,
    ]
    .map(|protocol| (protocol.as_str(), protocol));
    let protocol =
        optional("spec", fields, "proxyProtocol", |path, value| mistakes.one_of(path, value, &protocols));
    let policies = DefaultPolicy::ALL.map(|policy| (policy.as_str(), policy));
    let access =
        optional("spec", fields, "accessPolicy", |path, value| mistakes.one_of(path, value, &policies));
    // That nobody passes is what goes without saying.
    let access = access.filter(|policy| *policy != DefaultPolicy::Deny);
    Some(ServerSpec { pods, port: port?, protocol: protocol.unwrap_or_default(), access })
}

fn port_of(path: &str, value: &Value, mistakes: &mut Mistakes) -> Option<ServerPort> {
    let Value::String(name) = value else {
        let number = mistakes.within(path, value, 1, 65_535)?;
        return u16::try_from(number).ok().map(ServerPort::Number);
    };
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let letter = name.bytes().any(|byte| byte.is_ascii_lowercase());
    let dashes = name.starts_with('-') || name.ends_with('-') || name.contains("--");
    if name.len() > MAX_PORT_NAME || !letter || dashes || !name.bytes().all(allowed) {
        let reason = format!("{:?} is no name of a port; a number is written without quotes", shown(name));
        mistakes.add(path, reason);
        return None;
    }
    Some(ServerPort::Name(name.clone()))
}

fn server_authorization(value: &Value, mistakes: &mut Mistakes) -> Option<ServerAuthorizationSpec> {
    let fields = mistakes.object("spec", value, &["server", "client"])?;
    let servers = mistakes.required("spec", fields, "server");
    let servers = servers.and_then(|value| server_selector("spec.server", value, mistakes));
    let client = mistakes.required("spec", fields, "client");
    let client = client.and_then(|value| {
        let path = "spec.client";
        let fields = mistakes.object(path, value, &["networks", "unauthenticated", "meshTLS"])?;
        let networks = networks("spec.client.networks", fields.get("networks"), mistakes);
        Some((networks, any_clients(path, fields, mistakes)))
    });
    let (networks, clients) = client?;
    Some(ServerAuthorizationSpec { servers: servers?, networks, clients: clients? })
}

fn server_selector(path: &str, value: &Value, mistakes: &mut Mistakes) -> Option<ServerSelector> {
    let fields = mistakes.object(path, value, &["name", "selector"])?;
    let name = optional(path, fields, "name", |path, value| mistakes.object_name(path, value));
    let labels = optional(path, fields, "selector", |path, value| Selector::read(path, value, mistakes));
    match (fields.get("name").is_some(), fields.get("selector").is_some()) {
        (true, true) => mistakes.add(path, "both name and selector"),
        (false, false) => mistakes.add(path, "neither name nor selector"),
        _ => {}
    }
    name.map(ServerSelector::Name).or_else(|| labels.map(ServerSelector::Labels))
}

fn any_clients(path: &str, fields: Fields<'_>, mistakes: &mut Mistakes) -> Option<AnyClients> {
    let anybody = mistakes.boolean(&join(path, "unauthenticated"), fields.get("unauthenticated"));
    let Some(value) = fields.get("meshTLS") else {
        if !anybody {
            mistakes.add(path, "neither unauthenticated: true nor meshTLS: it would admit nobody");
        }
        return anybody.then_some(AnyClients::Unauthenticated);
    };
    let path = join(path, "meshTLS");
    if anybody {
        mistakes.add(&path, "beside unauthenticated: true, which admits everybody");
    }
    let fields = mistakes.object(&path, value, &["unauthenticatedTLS", "identities", "serviceAccounts"])?;
    if mistakes.boolean(&join(&path, "unauthenticatedTLS"), fields.get("unauthenticatedTLS")) {
        for name in ["identities", "serviceAccounts"] {
            if fields.get(name).is_some() {
                mistakes
                    .add(&join(&path, name), "beside unauthenticatedTLS: true, which admits every identity");
            }
        }
        return Some(AnyClients::TlsUnauthenticated);
    }
    Some(AnyClients::Authenticated(Clients::of_server_authorization(&path, fields, mistakes)))
}

fn authorization_policy(value: &Value, mistakes: &mut Mistakes) -> Option<AuthorizationPolicySpec> {
    let fields = mistakes.object("spec", value, &["targetRef", "requiredAuthenticationRefs"])?;
    let target = mistakes.required("spec", fields, "targetRef");
    let target = target.and_then(|value| target_of("spec.targetRef", value, mistakes));
    let path = "spec.requiredAuthenticationRefs";
    let listed = mistakes.required("spec", fields, "requiredAuthenticationRefs");
    let mut who: Option<(String, WhoRef)> = None;
    let mut from: Option<(String, ObjectName)> = None;
    for (path, value) in mistakes.list(path, listed, MAX_LISTED) {
        let Some(reference) = Reference::read(&path, value, true, mistakes) else { continue };
        let name = reference.name.clone();
        let found = if reference.is(POLICY_GROUP, PolicyKind::MeshTls.as_str()) {
            Some(WhoRef::MeshTls(name))
        } else if reference.is("", "ServiceAccount") {
            let ObjectName { namespace, name } = name;
            Some(WhoRef::Account(AccountRef { path: path.clone(), namespace, name }))
        } else if reference.is(POLICY_GROUP, PolicyKind::Network.as_str()) {
            if from.is_some() {
                mistakes
                    .add(&path, "a second NetworkAuthentication; all have to hold, so one has to say it all");
            }
            from = Some((path, name));
            continue;
        } else {
            let reason = format!(
                "{} is no authentication; MeshTLSAuthentication, NetworkAuthentication or ServiceAccount",
                reference.described()
            );
            mistakes.add(&join(&path, "kind"), reason);
            None
        };
        if found.is_some() && who.is_some() {
            let reason = "a second MeshTLSAuthentication or ServiceAccount; no client has two identities";
            mistakes.add(&path, reason);
        }
        who = found.map(|found| (path, found)).or(who);
    }
    Some(AuthorizationPolicySpec { target: target?, who, from })
}

fn target_of(path: &str, value: &Value, mistakes: &mut Mistakes) -> Option<PolicyTarget> {
    let reference = Reference::read(path, value, false, mistakes)?;
    let name = reference.name.name.clone();
    if reference.is(POLICY_GROUP, PolicyKind::Server.as_str()) {
        return Some(PolicyTarget::Server(name));
    }
    if reference.is("", "Namespace") {
        return Some(PolicyTarget::Namespace(name));
    }
    let routes = [RouteKind::Http, RouteKind::LinkerdHttp, RouteKind::Grpc];
    let route = routes.into_iter().find(|kind| reference.is(kind.group(), kind.kind()));
    if route.is_none() {
        let reason = format!(
            "{} cannot be a target; Server, HTTPRoute, GRPCRoute or Namespace",
            reference.described()
        );
        mistakes.add(&join(path, "kind"), reason);
    }
    Some(PolicyTarget::Route(route?, name))
}

fn rate_limit(value: &Value, mistakes: &mut Mistakes) -> Option<RateLimitSpec> {
    let fields = mistakes.object("spec", value, &["targetRef", "total", "identity", "overrides"])?;
    let target = mistakes.required("spec", fields, "targetRef");
    let server = target.and_then(|value| {
        let reference = Reference::read("spec.targetRef", value, false, mistakes)?;
        if !reference.is(POLICY_GROUP, PolicyKind::Server.as_str()) {
            let reason = format!("{} cannot be limited; a Server can", reference.described());
            mistakes.add("spec.targetRef.kind", reason);
        }
        Some(reference.name.name)
    });
    let mut limit = |name: &str| {
        optional("spec", fields, name, |path, value| {
            let fields = mistakes.object(path, value, &["requestsPerSecond"])?;
            per_second(path, fields, mistakes)
        })
    };
    let (total, identity) = (limit("total"), limit("identity"));
    let mut overrides = Vec::new();
    for (path, value) in mistakes.list("spec.overrides", fields.get("overrides"), MAX_LISTED) {
        let Some(fields) = mistakes.object(&path, value, &["requestsPerSecond", "clientRefs"]) else {
            continue;
        };
        let limit = per_second(&path, fields, mistakes);
        let listed = mistakes.required(&path, fields, "clientRefs");
        let at = join(&path, "clientRefs");
        not_empty(&at, listed, mistakes);
        let mut clients = Vec::new();
        for (path, value) in mistakes.list(&at, listed, MAX_LISTED) {
            let Some(reference) = Reference::read(&path, value, true, mistakes) else { continue };
            if !reference.is("", "ServiceAccount") {
                let reason = format!("{} has no identity; a ServiceAccount has", reference.described());
                mistakes.add(&join(&path, "kind"), reason);
            }
            let ObjectName { namespace, name } = reference.name;
            clients.push(AccountRef { path, namespace, name });
        }
        overrides.extend(limit.map(|limit| RateOverride { limit, clients }));
    }
    let clients: usize = overrides.iter().map(|one: &RateOverride| one.clients.len()).sum();
    if clients > MAX_LISTED {
        mistakes.add("spec.overrides", format!("{clients} clients together, more than {MAX_LISTED}"));
    }
    if ["total", "identity", "overrides"].iter().all(|name| fields.get(name).is_none()) {
        mistakes.add("spec", "neither total, identity nor overrides: it would limit nothing");
    }
    Some(RateLimitSpec { server: server?, total, identity, overrides })
}

fn per_second(path: &str, fields: Fields<'_>, mistakes: &mut Mistakes) -> Option<NonZeroU32> {
    let value = mistakes.required(path, fields, "requestsPerSecond")?;
    mistakes.within(&join(path, "requestsPerSecond"), value, 1, u32::MAX).and_then(NonZeroU32::new)
}

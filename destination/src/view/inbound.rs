//! Pure. What a port of a pod speaks, who may use it for what, and how often. Contract 3.4.
//!
//! A port without a Server has the default policy of its pod, namespace or cluster.

use super::{
    Admission, Lens, Refusal, Settings, admit,
    servers::{HeldInbound, served},
};
use crate::{
    index::Pod,
    resources::{
        Name,
        policy::ServerProtocol,
        routes::{HttpMatch, Match, PathMatch},
    },
};
use remora_core::{identity::Identity, policy::DefaultPolicy};
use serde::Deserialize;
use std::{collections::BTreeSet, num::NonZeroU32};

/// The policy of a port.
#[derive(Clone, Debug, PartialEq)]
pub struct Inbound {
    /// Whose policy it is.
    pub server: ServerRef,
    /// What is spoken.
    pub protocol: ServerProtocol,
    /// Who may connect, the first that admits a client being the one that is named.
    pub authorizations: Vec<Admission>,
    /// The routes that hold, in order of precedence. Without any, everything may be asked for.
    pub routes: Vec<HeldInbound>,
    /// Paths that probes may get whatever the policy.
    pub probes: BTreeSet<String>,
    /// How often clients may ask.
    pub rate_limit: Option<HeldRateLimit>,
}

/// Whose policy a port has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerRef {
    /// A default.
    Default(DefaultPolicy),
    /// A Server.
    Server(Name),
}

/// How many requests a port takes per second.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldRateLimit {
    /// The HTTPLocalRateLimitPolicy.
    pub name: Name,
    /// Of all clients together.
    pub total: Option<NonZeroU32>,
    /// Of each client.
    pub identity: Option<NonZeroU32>,
    /// Of these clients instead.
    pub overrides: Vec<(NonZeroU32, Vec<Identity>)>,
}

/// Whose proxy asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload(pub Name);

impl Workload {
    /// Reads `{"ns":…,"pod":…}` or, from older proxies, `<ns>:<pod>`.
    pub fn parse(text: &str) -> Result<Self, Refusal> {
        #[derive(Deserialize)]
        struct Json {
            ns: String,
            pod: String,
        }
        let name = match serde_json::from_str::<Json>(text) {
            Ok(Json { ns, pod }) => Name::new(ns, pod),
            Err(_) => text.split_once(':').map_or_else(|| Name::new("", ""), |(ns, pod)| Name::new(ns, pod)),
        };
        let valid = |part: &str| {
            let allowed =
                |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
            (1..=253).contains(&part.len()) && part.bytes().all(allowed)
        };
        if valid(&name.namespace) && valid(&name.name) {
            return Ok(Self(name));
        }
        let shown: String = text.chars().take(300).collect();
        Err(Refusal::Invalid(format!(r#"workload {shown:?} is neither {{"ns":…,"pod":…}} nor <ns>:<pod>"#)))
    }
}

/// The policy of a port of the workload.
pub fn inbound(
    lens: &mut Lens<'_>,
    settings: &Settings,
    Workload(name): &Workload,
    port: u16,
) -> Result<Inbound, Refusal> {
    let pod = lens.pod(name).ok_or_else(|| Refusal::NotFound(format!("there is no pod {name}")))?;
    let probes = pod.probes.get(&port).cloned().unwrap_or_default();
    let Some((server_name, server)) = lens.server_of(name, pod, port) else {
        return Ok(by_default(lens, settings, (name, pod), port, probes));
    };
    let served = served(lens, settings, (server_name, server));
    let replaced = |path: &String| served.routes.iter().any(|route| replaces(route, path));
    Ok(Inbound {
        server: ServerRef::Server(server_name.clone()),
        protocol: server.spec.protocol,
        authorizations: served.authorizations,
        probes: probes.into_iter().filter(|path| !replaced(path)).collect(),
        routes: served.routes,
        rate_limit: served.rate_limit,
    })
}

fn by_default(
    lens: &mut Lens<'_>,
    settings: &Settings,
    (name, pod): (&Name, &Pod),
    port: u16,
    probes: BTreeSet<String>,
) -> Inbound {
    let inherited = lens.namespace(&name.namespace).and_then(|namespace| namespace.default_policy);
    let mut policy = pod.default_policy.or(inherited).unwrap_or(settings.default_inbound_policy);
    if pod.require_identity_ports.contains(port) {
        policy = authenticated(policy);
    }
    let opaque = lens.pod_port_is_opaque(settings, name, pod, port);
    Inbound {
        server: ServerRef::Default(policy),
        protocol: if opaque { ServerProtocol::Opaque } else { ServerProtocol::Detect },
        authorizations: admit::by_default(settings, policy).into_iter().collect(),
        routes: Vec::new(),
        probes,
        rate_limit: None,
    }
}

impl Inbound {
    /// Does a route name this path itself? What it matches is its own, and only the rest of the path's requests are a
    /// probe's.
    pub fn names(&self, path: &str) -> bool {
        self.routes.iter().any(|route| named(route, path).next().is_some())
    }
}

/// Does a route say itself who may probe this path? Then a probe is a request like any other. Only a match that asks for
/// nothing else says so: kubelet has none of the headers that another one may ask for, and would find the pod dead.
fn replaces(route: &HeldInbound, path: &str) -> bool {
    let bare = |wanted: &HttpMatch| {
        let get = wanted.method.is_none_or(|method| method == "GET");
        get && wanted.headers.is_empty() && wanted.query.is_empty()
    };
    route.spec.hostnames.is_empty() && named(route, path).any(bare)
}

/// The matches of a route that name exactly this path.
fn named<'a>(route: &'a HeldInbound, path: &'a str) -> impl Iterator<Item = &'a HttpMatch> {
    let matches = route.spec.rules.iter().flat_map(|rule| &rule.matches);
    matches.filter_map(move |wanted| match wanted {
        Match::Http(wanted) => {
            matches!(&wanted.path, PathMatch::Exact(exact) if exact == path).then_some(wanted)
        }
        Match::Grpc(_) => None,
    })
}

/// The same policy for clients with an identity only. Whoever lists a port as requiring identity means it: there even
/// `audit` lets nobody pass without.
fn authenticated(policy: DefaultPolicy) -> DefaultPolicy {
    match policy {
        DefaultPolicy::AllUnauthenticated | DefaultPolicy::AllAuthenticated | DefaultPolicy::Audit => {
            DefaultPolicy::AllAuthenticated
        }
        DefaultPolicy::ClusterUnauthenticated | DefaultPolicy::ClusterAuthenticated => {
            DefaultPolicy::ClusterAuthenticated
        }
        DefaultPolicy::Deny => DefaultPolicy::Deny,
    }
}

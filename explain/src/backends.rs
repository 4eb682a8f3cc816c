//! Pure. Where a rule may send: its backends with their shares, the endpoints of each, and how each of those is dialled.

use crate::{
    World,
    answer::{Backend, Endpoint, Reply},
    outbound::{Carried, apply},
    words,
};
use remora_core::{
    endpoint::{self, DialPlan},
    policy::Peer,
    route::{self, BackendTarget, Distribution},
};
use remora_destination::{
    resources::Name,
    view::{self, Context, Lens},
    wire,
};
use remora_proxy::{endpoint::identity, fault::Fault, http::respond::Asker};
use remora_runtime::api::destination::{Update, update};
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

impl World<'_> {
    /// The backends of a distribution. `prefix`: bytes of the path that the rule's prefix covers.
    pub(crate) fn backends_of(
        &self,
        distribution: &Distribution,
        carried: &Carried,
        required: Option<&str>,
        prefix: Option<usize>,
    ) -> Vec<Backend> {
        let written: Vec<(&route::Backend, Option<u32>)> = match distribution {
            Distribution::Empty | Distribution::Forbidden(_) => {
                let why = match distribution {
                    Distribution::Forbidden(reason) => {
                        Fault::Forbidden { target: "this destination".into(), reason: reason.clone() }
                    }
                    _ => Fault::NoEndpoint("a route without backends".into()),
                };
                return vec![Backend {
                    of: "nowhere".to_owned(),
                    weight: None,
                    percent: 100.0,
                    filters: Vec::new(),
                    reply: Some(failed(&why, carried)),
                    endpoints: Vec::new(),
                }];
            }
            Distribution::FirstAvailable(backends) => {
                backends.iter().map(|backend| (backend, None)).collect()
            }
            Distribution::RandomAvailable(backends) => {
                backends.iter().map(|(backend, weight)| (backend, Some(*weight))).collect()
            }
        };
        let found: Vec<Vec<endpoint::Endpoint>> =
            written.iter().map(|(backend, _)| self.endpoints_of(&backend.target)).collect();
        let percents = percents(&written, &found);
        let each = written.iter().zip(found).zip(percents);
        each.map(|(((backend, weight), endpoints), percent)| {
            let mut shown = Backend {
                of: words::backend(backend, &self.settings.cluster_domain),
                weight: *weight,
                percent,
                filters: backend
                    .filters
                    .iter()
                    .map(|one| words::filter(one, &self.settings.cluster_domain))
                    .collect(),
                reply: None,
                endpoints: Vec::new(),
            };
            match self.sent(backend, &endpoints, (carried, required, prefix)) {
                Ok(endpoints) => shown.endpoints = endpoints,
                Err(fault) => shown.reply = Some(failed(&fault, carried)),
            }
            shown
        })
        .collect()
    }

    /// What is done with what goes to a backend, and by whom.
    fn sent(
        &self,
        backend: &route::Backend,
        endpoints: &[endpoint::Endpoint],
        (carried, required, prefix): (&Carried, Option<&str>, Option<usize>),
    ) -> Result<Vec<Endpoint>, Fault> {
        let mut carried = carried.clone();
        if let Carried::Request(request) = &mut carried {
            apply(&backend.filters, request, &mut prefix.clone())?;
        }
        if let BackendTarget::Nowhere(why) = &backend.target {
            return Err(Fault::NoEndpoint(why.clone()));
        }
        if endpoints.is_empty() {
            let name: Arc<str> = match &backend.target {
                BackendTarget::Balance { authority, .. } => authority.clone(),
                _ => "this destination".into(),
            };
            return Err(Fault::NoEndpoint(name));
        }
        if let Some(fault) = required.and_then(|required| unlike(required, endpoints)) {
            return Err(fault);
        }
        Ok(endpoints.iter().map(|endpoint| self.dialled(endpoint, &carried)).collect())
    }

    /// Who may be picked for a backend.
    fn endpoints_of(&self, target: &BackendTarget) -> Vec<endpoint::Endpoint> {
        match target {
            BackendTarget::Balance { authority, .. } => {
                let Some((name, host, port)) = self.service_of(authority) else { return Vec::new() };
                let mut found = BTreeMap::new();
                for context in self.client.contexts() {
                    let endpoints = self.endpoints((&name, host.as_deref(), port), &context);
                    found.extend(endpoints.into_iter().map(|endpoint| (endpoint.addr, endpoint)));
                }
                found.into_values().collect()
            }
            BackendTarget::Forward(endpoint) => vec![endpoint.clone()],
            BackendTarget::Original(addr) => vec![endpoint::Endpoint::bare(*addr)],
            BackendTarget::Nowhere(_) => Vec::new(),
        }
    }

    /// The endpoints of a Service's port, as discovery tells them to a client there.
    pub(crate) fn endpoints(
        &self,
        (name, host, port): (&Name, Option<&str>, u16),
        context: &Context,
    ) -> Vec<endpoint::Endpoint> {
        let found = view::endpoints(&mut Lens::new(self.index), self.settings, (name, host, port), context);
        let read = found.ok().and_then(|found| update(wire::everything(&found)).ok());
        match read.map(|read| read.value) {
            Some(Update::Add(endpoints)) => endpoints,
            _ => Vec::new(),
        }
    }

    /// How an endpoint is dialled, and what happens there.
    fn dialled(&self, endpoint: &endpoint::Endpoint, carried: &Carried) -> Endpoint {
        // Only what is a pod's own differs from one client to another.
        let own: Vec<IpAddr> = match self.client.origins.as_slice() {
            [only] => only.ips.clone(),
            _ => Vec::new(),
        };
        let plan = endpoint.dial_plan(&own);
        let no_tls = match &plan {
            DialPlan::Plain { reason, .. } => Some(reason.as_str()),
            DialPlan::Transparent { .. } | DialPlan::Direct { .. } => None,
        };
        let dialled = match &plan {
            DialPlan::Plain { .. } => "plain",
            DialPlan::Transparent { .. } => "transparent",
            DialPlan::Direct { .. } => "direct",
        };
        Endpoint {
            address: endpoint.addr,
            pod: self.index.pod_at(endpoint.addr.ip()).map(|(name, _)| name.to_string()),
            tls: identity(&plan).map(|tls| tls.identity.as_str().to_owned()),
            dialled,
            no_tls,
            served: self.served(endpoint, &plan, carried),
        }
    }

    /// What becomes of it where the client has no proxy: whoever the node's rules pick is dialled in plain text.
    pub(crate) fn unmeshed(
        &self,
        addr: SocketAddr,
        service: Option<(&Name, u16)>,
        request: &http::Request<()>,
    ) -> crate::answer::Course {
        let carried = self.question.carried(request);
        let endpoints = match service {
            Some((name, port)) => {
                let defined = self.index.service(name).is_some_and(|service| service.port(port).is_some());
                let found = if defined {
                    self.endpoints((name, None, port), &Context::default())
                } else {
                    Vec::new()
                };
                found.into_iter().map(|endpoint| endpoint::Endpoint::bare(endpoint.addr)).collect()
            }
            None => vec![endpoint::Endpoint::bare(addr)],
        };
        let of = service.map_or_else(|| addr.to_string(), |(name, port)| format!("Service {name}:{port}"));
        let endpoints: Vec<Endpoint> = endpoints
            .iter()
            .map(|endpoint| Endpoint { no_tls: Some("no proxy"), ..self.dialled(endpoint, &carried) })
            .collect();
        let nobody = || Reply::ended(format!("nobody is behind {of}: the connection is refused"));
        crate::answer::Course {
            target: of.clone(),
            address: Some(addr),
            declared: "unknown",
            spoken: match &carried {
                Carried::Request(request) if request.version() == http::Version::HTTP_2 => "http2",
                Carried::Request(_) => "http1",
                Carried::Bytes => "bytes",
                Carried::Tls(_) => "tls",
            },
            reply: endpoints.is_empty().then(nobody),
            backends: vec![Backend {
                of,
                weight: None,
                percent: 100.0,
                filters: Vec::new(),
                reply: None,
                endpoints,
            }],
            ..crate::answer::Course::default()
        }
    }
}

/// The share of each backend: by weight among those with an endpoint; one that is nowhere counts as there. Where nobody is
/// there the first one says so.
fn percents(written: &[(&route::Backend, Option<u32>)], found: &[Vec<endpoint::Endpoint>]) -> Vec<f64> {
    let there = |at: usize| {
        let nowhere = written.get(at).is_some_and(|(one, _)| matches!(one.target, BackendTarget::Nowhere(_)));
        nowhere || found.get(at).is_some_and(|endpoints| !endpoints.is_empty())
    };
    let mut shares: Vec<f64> = written
        .iter()
        .enumerate()
        .map(|(at, (_, weight))| f64::from(weight.unwrap_or(1)) * f64::from(u8::from(there(at))))
        .collect();
    if written.iter().all(|(_, weight)| weight.is_none()) {
        // The first that is there has everything.
        let first = shares.iter().position(|share| *share > 0.0);
        for (at, share) in shares.iter_mut().enumerate() {
            *share = f64::from(u8::from(Some(at) == first));
        }
    }
    let sum: f64 = shares.iter().sum();
    if sum == 0.0 {
        return (0..written.len()).map(|at| if at == 0 { 100.0 } else { 0.0 }).collect();
    }
    shares.into_iter().map(|share| share * 100.0 / sum).collect()
}

/// `l5d-require-id`: what a proxy answers where some endpoint is somebody else.
fn unlike(required: &str, endpoints: &[endpoint::Endpoint]) -> Option<Fault> {
    let actual = |endpoint: &endpoint::Endpoint| {
        endpoint.tls.as_ref().map_or("no identity", |tls| tls.identity.as_str()).to_owned()
    };
    let other = endpoints.iter().map(actual).find(|actual| actual != required)?;
    Some(Fault::RequiredIdentity { required: required.into(), actual: other.into() })
}

fn failed(fault: &Fault, carried: &Carried) -> Reply {
    match carried {
        Carried::Request(request) => Reply::of(fault, Asker::of(request, true).grpc),
        Carried::Bytes | Carried::Tls(_) => Reply::ended(fault.to_string()),
    }
}

/// Who the client is to a server that is dialled so.
pub(crate) fn peer(world: &World<'_>, plan: &DialPlan, carried: &Carried) -> Peer {
    match (plan, carried) {
        (DialPlan::Transparent { .. } | DialPlan::Direct { .. }, _) => {
            Peer::Tls { identity: world.client.identity.clone() }
        }
        (DialPlan::Plain { .. }, Carried::Tls(sni)) => Peer::Passthrough { sni: Some(sni.as_str().into()) },
        (DialPlan::Plain { .. }, _) => Peer::Plain,
    }
}

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
    route::{self, BackendTarget, Distribution, Filter},
};
use remora_destination::{
    resources::Name,
    view::{self, Context, Lens},
    wire,
};
use remora_proxy::{
    endpoint::identity,
    fault::Fault,
    http::respond::Asker,
    plaintext::{candidates, forbidden},
};
use remora_runtime::api::destination::{Update, update};
use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

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
        let shares: Vec<(f64, bool)> = written
            .iter()
            .zip(&found)
            .map(|((backend, weight), found)| {
                (f64::from(weight.unwrap_or(1)), self.is_there(&backend.target, found))
            })
            .collect();
        let by_weight = matches!(distribution, Distribution::RandomAvailable(_));
        let each = written.iter().zip(found).zip(percents(&shares, by_weight));
        each.map(|(((backend, weight), endpoints), percent)| {
            let mut shown = Backend {
                of: words::backend(backend, &self.settings.cluster_domain),
                weight: *weight,
                percent,
                filters: self.filters(&backend.filters),
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
        Ok(self.picked(endpoints, &carried, required))
    }

    /// Whom a balancer picks, and whom it passes over for others.
    fn picked(
        &self,
        endpoints: &[endpoint::Endpoint],
        carried: &Carried,
        required: Option<&str>,
    ) -> Vec<Endpoint> {
        let of = |endpoint| {
            let plan = self.plan(endpoint);
            (endpoint, self.forbidden(&plan), plan)
        };
        let (picked, forbidden) =
            candidates(endpoints.iter().map(of).collect(), |(_, fault, _)| fault.is_some());
        // Better than nobody, as who is forbidden.
        let (picked, weightless) = candidates(picked, |(endpoint, ..)| endpoint.weight == 0);
        let picked = picked.into_iter().map(|(endpoint, fault, plan)| {
            let fault = required.and_then(|required| unlike(required, &plan)).or(fault);
            let (reply, served) = match fault {
                Some(fault) => (Some(failed(&fault, carried)), Vec::new()),
                None => (None, self.served(endpoint, &plan, carried)),
            };
            Endpoint { reply, served, ..self.dialled(endpoint, &plan) }
        });
        let forbidden = forbidden.into_iter().map(|(endpoint, fault, plan)| {
            let passed_over = fault.map(|fault| fault.to_string());
            Endpoint { passed_over, ..self.dialled(endpoint, &plan) }
        });
        let weightless = weightless.into_iter().map(|(endpoint, _, plan)| {
            let passed_over = Some("its weight is 0".to_owned());
            Endpoint { passed_over, ..self.dialled(endpoint, &plan) }
        });
        let mut all: Vec<Endpoint> = picked.chain(forbidden).chain(weightless).collect();
        all.sort_by_key(|endpoint| endpoint.address);
        all
    }

    /// Whether requests are sent to a backend at all, or to the others: as a proxy's balancer says of itself.
    fn is_there(&self, target: &BackendTarget, endpoints: &[endpoint::Endpoint]) -> bool {
        match target {
            BackendTarget::Balance { .. } => {
                endpoints.iter().any(|endpoint| self.forbidden(&self.plan(endpoint)).is_none())
            }
            BackendTarget::Forward(_) | BackendTarget::Original(_) | BackendTarget::Nowhere(_) => true,
        }
    }

    /// Why policy of the client's own lets nothing be sent that way.
    fn forbidden(&self, plan: &DialPlan) -> Option<Fault> {
        forbidden(self.client.sends.plaintext, plan, |addr| self.settings.in_cluster(addr))
    }

    /// What filters do, and who gets nothing of what they would copy.
    pub(crate) fn filters(&self, filters: &[Filter]) -> Vec<String> {
        let one = |filter: &Filter| {
            let said = words::filter(filter, &self.settings.cluster_domain);
            let Filter::Mirror(mirror) = filter else { return said };
            let endpoints = self.endpoints_of(&mirror.backend.target);
            let none = match (&mirror.backend.target, endpoints.first()) {
                (BackendTarget::Nowhere(why), _) => Some(why.to_string()),
                (_, None) => Some("nobody is there".to_owned()),
                (target, Some(first)) if !self.is_there(target, &endpoints) => {
                    self.forbidden(&self.plan(first)).map(|fault| fault.to_string())
                }
                _ => None,
            };
            none.map_or_else(|| said.clone(), |why| format!("{said}, which gets none: {why}"))
        };
        filters.iter().map(one).collect()
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

    fn plan(&self, endpoint: &endpoint::Endpoint) -> DialPlan {
        // Only what is a pod's own differs from one client to another.
        match self.client.origins.as_slice() {
            [only] => endpoint.dial_plan(&only.ips),
            _ => endpoint.dial_plan(&[]),
        }
    }

    /// How an endpoint is dialled, without what happens there.
    fn dialled(&self, endpoint: &endpoint::Endpoint, plan: &DialPlan) -> Endpoint {
        let no_tls = match plan {
            DialPlan::Plain { reason, .. } => Some(reason.as_str()),
            DialPlan::Transparent { .. } | DialPlan::Direct { .. } => None,
        };
        let dialled = match plan {
            DialPlan::Plain { .. } => "plain",
            DialPlan::Transparent { .. } => "transparent",
            DialPlan::Direct { .. } => "direct",
        };
        Endpoint {
            address: endpoint.addr,
            pod: self.index.pod_at(endpoint.addr.ip()).map(|(name, _)| name.to_string()),
            tls: identity(plan).map(|tls| tls.identity.as_str().to_owned()),
            dialled,
            no_tls,
            passed_over: None,
            reply: None,
            served: Vec::new(),
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
            .map(|endpoint| {
                let plan = self.plan(endpoint);
                let served = self.served(endpoint, &plan, &carried);
                Endpoint { no_tls: Some("no proxy"), served, ..self.dialled(endpoint, &plan) }
            })
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

/// The share of each backend, of its weight and whether somebody is there: among those where somebody is by weight, else
/// the first one's. Where nobody is anywhere the first one says so.
fn percents(backends: &[(f64, bool)], by_weight: bool) -> Vec<f64> {
    let mut shares: Vec<f64> =
        backends.iter().map(|(weight, there)| if *there { *weight } else { 0.0 }).collect();
    let sum: f64 = shares.iter().sum();
    if by_weight && sum > 0.0 {
        return shares.into_iter().map(|share| share * 100.0 / sum).collect();
    }
    let first = shares.iter().position(|share| *share > 0.0).unwrap_or(0);
    for (at, share) in shares.iter_mut().enumerate() {
        *share = if at == first { 100.0 } else { 0.0 };
    }
    shares
}

/// `l5d-require-id`: what a proxy answers in the place of somebody else.
fn unlike(required: &str, plan: &DialPlan) -> Option<Fault> {
    let actual = identity(plan).map_or("no identity", |tls| tls.identity.as_str());
    (actual != required).then(|| Fault::RequiredIdentity { required: required.into(), actual: actual.into() })
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

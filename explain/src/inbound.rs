//! Pure. What the server's proxy does: whose policy is it, which route has the request there, who is admitted and why.

use crate::{
    World,
    answer::{Apart, Endpoint, Lost, Reply, Rule, Served},
    backends::peer,
    outbound::{Carried, apply},
    sound::{unread, unsound},
    words,
};
use http::{Request, Version};
use remora_core::{
    endpoint::{self, DialPlan, ProtocolHint},
    policy::{
        self, Authorization, Denial, Peer, Permit, Refusal, Refused, ResourceRef, ServerPolicy,
        ServerProtocol,
    },
    rate::RateLimits,
    route::{self, Chosen, RequestView},
};
use remora_destination::{
    index::Pod,
    resources::Name,
    view::{Lens, ServerRef, Workload, inbound},
    wire,
};
use remora_proxy::{
    fault::Fault,
    http::{headers, respond::Asker, view::View},
};
use remora_runtime::api::inbound::server_policy;
use std::{net::IpAddr, sync::Arc};

impl World<'_> {
    /// What happens at an endpoint, once for each outcome.
    pub(crate) fn served(
        &self,
        endpoint: &endpoint::Endpoint,
        plan: &DialPlan,
        carried: &Carried,
    ) -> Vec<Served> {
        let Some((name, pod)) = self.index.pod_at(endpoint.addr.ip()) else {
            return vec![
                self.undecided("it is no pod that is known here: nothing here decides what it takes"),
            ];
        };
        let port = endpoint.addr.port();
        if let Some(note) = self.without_proxy(pod, port) {
            return vec![self.undecided(&note)];
        }
        let Ok(seen) = inbound(&mut Lens::new(self.index), self.settings, &Workload(name.clone()), port)
        else {
            return vec![self.undecided("its policy is not known")];
        };
        let server = match &seen.server {
            ServerRef::Default(policy) => format!("default {}", policy.as_str()),
            ServerRef::Server(name) => format!("Server {name}"),
        };
        let policy = server_policy(wire::server(&seen, self.settings)).value;
        let sent = carried;
        let carried = arriving(&policy, endpoint, plan, sent);
        let requests = (sent, &carried);
        // What the client's proxy has written can be read.
        let raw = match requests {
            (Carried::Request(request), Carried::Request(_)) if !self.client.meshed => unread(request),
            _ => None,
        };
        if let Some(reply) = unspoken(&policy, plan, sent).map(Reply::ended).or(raw) {
            let mut served = self.undecided("");
            (served.server, served.declared, served.admitted) =
                (Some(server), declared(&policy.protocol), false);
            (served.reply, served.notes) = (Some(reply), Vec::new());
            return vec![served];
        }
        let unsound = match requests {
            (Carried::Request(request), Carried::Request(_)) => unsound(request),
            _ => None,
        };
        let peer = match policy.protocol {
            // Nothing of it is looked at.
            ServerProtocol::Opaque if matches!(plan, DialPlan::Plain { .. }) => Peer::Plain,
            _ => peer(self, plan, &carried),
        };
        let mut outcomes: Vec<Served> = Vec::new();
        for from in self.client.addresses(endpoint.addr.ip(), &policy) {
            let mut served = self.decided(&policy, &server, (&peer, from), (&carried, unsound.as_ref()));
            let same = |other: &&mut Served| Served { from: other.from.clone(), ..served.clone() } == **other;
            if let Some(other) = outcomes.iter_mut().find(same) {
                other.from.push(from);
                continue;
            }
            served.from = vec![from];
            outcomes.push(served);
        }
        outcomes
    }

    /// Why no policy of ours holds at a port of a pod, if none does.
    fn without_proxy(&self, pod: &Pod, port: u16) -> Option<String> {
        let Some(mesh) = &pod.mesh else {
            return Some("it has no proxy: its application takes what comes".to_owned());
        };
        if mesh.control_namespace != self.settings.control_namespace {
            return Some(format!(
                "its proxy belongs to the control plane in {}: what that admits is not known here",
                mesh.control_namespace
            ));
        }
        pod.skip_inbound_ports
            .contains(port)
            .then(|| "the port passes by its proxy (config.linkerd.io/skip-inbound-ports)".to_owned())
    }

    fn undecided(&self, note: &str) -> Served {
        Served {
            from: self.client.origins.iter().filter_map(|origin| origin.ips.first().copied()).collect(),
            server: None,
            declared: "unknown",
            rule: None,
            lost: Vec::new(),
            admitted: true,
            by: None,
            refusing: Vec::new(),
            filters: Vec::new(),
            reply: None,
            rate_limits: Vec::new(),
            notes: vec![note.to_owned()],
        }
    }

    /// What a proxy with this policy does with it, for one client. `unsound`: what it answers once it is admitted.
    fn decided(
        &self,
        policy: &ServerPolicy,
        server: &str,
        (peer, from): (&Peer, IpAddr),
        (carried, unsound): (&Carried, Option<&Reply>),
    ) -> Served {
        let mut served = Served {
            from: Vec::new(),
            server: Some(server.to_owned()),
            declared: declared(&policy.protocol),
            rule: None,
            lost: Vec::new(),
            admitted: false,
            by: None,
            refusing: Vec::new(),
            filters: Vec::new(),
            reply: None,
            rate_limits: Vec::new(),
            notes: Vec::new(),
        };
        let client =
            peer.identity().map_or_else(|| from.to_string(), |identity| identity.as_str().to_owned());
        let mut asked: Vec<&Authorization> = Vec::new();
        let decision = match carried {
            Carried::Request(request) => {
                self.routed(&mut served, policy, &View(request));
                let table = policy::table(policy);
                let permit = policy::authorize_http(policy, &table, from, peer, &View(request));
                let route = match &permit {
                    Ok(permit) => Some(permit.route),
                    Err(refusal) => refusal.route,
                };
                let own = route.and_then(|at| policy::routes(policy).get(at));
                asked.extend(own.into_iter().flat_map(|route| route.authorizations.iter()));
                if let Ok(permit) = &permit {
                    let limits = policy.rate_limits.as_deref();
                    served.rate_limits = limits.map_or_else(Vec::new, |limits| limited(limits, peer));
                    match unsound {
                        Some(reply) => served.reply = Some(reply.clone()),
                        None => self.filtered(&mut served, policy, permit, request),
                    }
                }
                permit.map(|permit| permit.authorization)
            }
            Carried::Bytes | Carried::Tls(_) => {
                policy::authorize_tcp(policy, from, peer).map_err(|denial| Refusal { route: None, denial })
            }
        };
        asked.extend(policy.authorizations.iter());
        match decision {
            Ok(by) => Self::admitted(&mut served, &by),
            Err(refusal) => {
                let refused = Arc::new(Refused::of(policy, &refusal));
                let Refusal { denial, .. } = refusal;
                let fault = Fault::Denied { client: client.into(), refused, denial: denial.clone() };
                served.reply = Some(match carried {
                    Carried::Request(request) => Reply::of(&fault, Asker::of(request, true).grpc),
                    Carried::Bytes | Carried::Tls(_) => Reply::ended(fault.to_string()),
                });
                if denial != Denial::Unauthorized {
                    return served;
                }
            }
        }
        let refusing = asked.into_iter().take_while(|one| !one.admits(from, peer));
        served.refusing = refusing
            .map(|one| {
                let holds = one.authentication.holds(peer);
                let who = peer.identity().map_or("without an identity", |identity| identity.as_str());
                Apart { of: words::resource(&one.meta), why: words::refusal(one, who, holds) }
            })
            .collect();
        served
    }

    /// What the rule of a permitted request does besides.
    fn filtered(&self, served: &mut Served, policy: &ServerPolicy, permit: &Permit, request: &Request<()>) {
        let route = policy::routes(policy).get(permit.route);
        let filters = route.and_then(|route| route.filters.get(permit.rule)).map_or(&[][..], |all| all);
        served.filters =
            filters.iter().map(|one| words::filter(one, &self.settings.cluster_domain)).collect();
        let rule = route.and_then(|route| route.route.rules.get(permit.rule));
        let mut prefix = rule.and_then(|rule| route::matched_prefix(rule, &View(request)));
        let mut request = request.clone();
        if let Err(fault) = apply(filters, &mut request, &mut prefix) {
            served.reply = Some(Reply::of(&fault, Asker::of(&request, true).grpc));
        }
    }

    /// Which route has a request, and why the others do not.
    fn routed<R: RequestView>(&self, served: &mut Served, policy: &ServerPolicy, request: &R) {
        let routes = policy::routes(policy);
        let candidates = || routes.iter().map(|inbound| &inbound.route);
        let chosen = route::select(candidates(), request).ok().flatten();
        let written = |at: Chosen| {
            let meta: Option<&Arc<ResourceRef>> = routes.get(at.route).map(|inbound| &inbound.route.meta);
            (
                meta.map(|meta| words::resource(meta)).unwrap_or_default(),
                meta.map_or(at.rule, |meta| self.written(meta, at.rule)),
            )
        };
        for (at, loss) in route::losses(candidates(), request, chosen) {
            let Some(inbound) = routes.get(at.route) else { continue };
            let (of, number) = written(at);
            // A probe's route is kubelet's.
            if of == "default probe" {
                continue;
            }
            let why = words::loss(&inbound.route, inbound.route.rules.get(at.rule), &loss);
            served.lost.push(Lost { of, number, why });
        }
        let Some((at, inbound)) = chosen.and_then(|at| Some((at, routes.get(at.route)?))) else { return };
        let (of, number) = written(at);
        if of == "default default" {
            return;
        }
        let matches = inbound.route.rules.get(at.rule).map(|rule| words::matches(&inbound.route, rule));
        let number = Some(number).filter(|_| !of.starts_with("default "));
        served.rule = Some(Rule { of, number, matches: matches.unwrap_or_default() });
    }

    fn admitted(served: &mut Served, by: &ResourceRef) {
        served.admitted = true;
        served.by = Some(words::resource(by));
        if &*by.kind == "default" && &*by.name == "audit" {
            served.notes.push("only the audit policy admits it: a stricter one would not".to_owned());
        }
    }
}

/// Why a declared protocol does not take a request that no proxy of the mesh announces, if it does not.
fn unspoken(policy: &ServerPolicy, plan: &DialPlan, carried: &Carried) -> Option<String> {
    let Carried::Request(request) = carried else { return None };
    let http2 = request.version() == Version::HTTP_2;
    let taken = match (&policy.protocol, plan) {
        (_, DialPlan::Direct { .. }) => true,
        (ServerProtocol::Http2 { .. } | ServerProtocol::Grpc { .. }, _) => http2,
        // Linkerd's proxies may carry requests of HTTP/1 over HTTP/2.
        (ServerProtocol::Http1 { .. }, DialPlan::Plain { .. }) => !http2,
        _ => true,
    };
    let spoken = if http2 { "HTTP/2" } else { "HTTP/1.1" };
    (!taken).then(|| format!("the port is declared as another protocol than {spoken}"))
}

/// What arrives there, as the server's proxy takes it.
fn arriving(
    policy: &ServerPolicy,
    endpoint: &endpoint::Endpoint,
    plan: &DialPlan,
    carried: &Carried,
) -> Carried {
    let as_bytes = match (plan, &policy.protocol) {
        // The client's proxy says what it is.
        (DialPlan::Direct { .. }, _) => endpoint.hint == ProtocolHint::Opaque,
        (_, protocol) => matches!(protocol, ServerProtocol::Opaque | ServerProtocol::Tls),
    };
    match carried {
        Carried::Request(_) if as_bytes => Carried::Bytes,
        Carried::Request(request) => {
            let mut request = request.clone();
            if headers::has_own(request.headers()) {
                headers::strip_inbound(request.headers_mut());
            }
            Carried::Request(request)
        }
        other => other.clone(),
    }
}

/// How often such a client may ask.
fn limited(limits: &RateLimits, peer: &Peer) -> Vec<String> {
    let named = |what: &str, quota: &remora_core::rate::Quota| {
        format!("{}: {} {what}", words::resource(&limits.meta), words::quota(quota))
    };
    let total = limits.total.iter().map(|quota| named("of all clients together", quota));
    let own = peer.identity().and_then(|identity| {
        // Of several that name a client the last one holds.
        limits.overrides.iter().rev().find(|one| one.identities.contains(identity))
    });
    let own = match (own, &limits.identity) {
        (Some(one), _) => Some(named("of this client", &one.quota)),
        (None, Some(quota)) if peer.identity().is_some() => Some(named("of this client", quota)),
        (None, Some(quota)) => Some(named("of all clients without an identity", quota)),
        (None, None) => None,
    };
    total.chain(own).collect()
}

fn declared(protocol: &ServerProtocol) -> &'static str {
    match protocol {
        ServerProtocol::Detect { .. } => "detect",
        ServerProtocol::Http1 { .. } => "http1",
        ServerProtocol::Http2 { .. } => "http2",
        ServerProtocol::Grpc { .. } => "grpc",
        ServerProtocol::Opaque => "opaque",
        ServerProtocol::Tls => "tls",
        ServerProtocol::Invalid(_) => "invalid",
    }
}

/// The pod of an endpoint, and the Server of its port, where there are both.
pub(crate) fn server_of(endpoint: &Endpoint) -> Option<Name> {
    let server = endpoint.served.first()?.server.as_deref()?.strip_prefix("Server ")?;
    let (namespace, name) = server.split_once('/')?;
    Some(Name::new(namespace, name))
}

//! Pure. What the client's proxy does, in the order in which it does it: what is this target, what is spoken, which rule has
//! the request, what is done with it there.

use crate::{
    World,
    answer::{Apart, Backend, Course, Lost, Reply, Retry, Rule, Timeouts},
    known::Discovered,
    question::{Speaks, over_http2},
    sound::{unread, unsound},
    spoken::{Spoken, declared, spoken},
    words,
};
use http::Request;
use remora_core::{
    breaker::Accrual,
    policy::ResourceRef,
    profile::Profile,
    route::RequestView as _,
    route::{
        self, Chosen, Distribution, Filter, OutboundProtocol, OutboundRoute, OutboundRule, Ratio, TlsRoute,
        Wishes, matched_prefix,
    },
};
use remora_destination::{
    index::RouteId,
    resources::{Name, RouteKind},
    view::can_match,
};
use remora_proxy::{
    discover::Place,
    fault::Fault,
    http::{filters::Filters, headers, respond::Asker, view::View},
};
use std::{net::SocketAddr, sync::Arc};

/// What is carried to a server.
#[derive(Clone, Debug)]
pub(crate) enum Carried {
    /// A request, as the client's proxy sends it on.
    Request(Box<Request<()>>),
    Bytes,
    /// TLS of the application's own.
    Tls(String),
}

impl World<'_> {
    /// What becomes of it on the way to this address, by the client's proxy.
    pub(crate) fn outbound(&self, addr: SocketAddr, request: &Request<()>) -> Course {
        let view = View(request);
        let named = if let Speaks::Tls(sni) = &self.question.speaks { sni } else { view.authority() };
        let known = self.known(Place::Addr(addr), named);
        if self.client.sends.ingress {
            return self.ingress(addr, known, request);
        }
        let protocol = &known.policy.protocol;
        let speaks = spoken(&self.question.speaks, protocol);
        let mut course = self.course(addr, &known, &speaks);
        match (protocol, &speaks) {
            (OutboundProtocol::Invalid(reason), _) => {
                let target = addr.to_string().into();
                self.fails(&mut course, &Fault::InvalidPolicy { target, reason: reason.clone() }, request);
            }
            (OutboundProtocol::Opaque(distribution), _) => {
                self.bytes(&mut course, &known, distribution, request);
            }
            (OutboundProtocol::Tls(routes), speaks) => self.tls(&mut course, &known, routes, speaks, request),
            (OutboundProtocol::Detect { opaque, .. }, Spoken::Bytes | Spoken::Tls(_)) => {
                self.bytes(&mut course, &known, opaque, request);
            }
            (
                OutboundProtocol::Detect { http1: routes, .. } | OutboundProtocol::Http1(routes),
                Spoken::Http1,
            ) => {
                let accrual = known.policy.accrual.http1.as_deref();
                self.http(&mut course, &known, routes, accrual, request.clone());
            }
            (
                OutboundProtocol::Detect { http2: routes, .. }
                | OutboundProtocol::Http2(routes)
                | OutboundProtocol::Grpc(routes),
                Spoken::Http2,
            ) => {
                let accrual = known.policy.accrual.http2.as_deref();
                self.http(&mut course, &known, routes, accrual, over_http2(request));
            }
            (OutboundProtocol::Http1(_) | OutboundProtocol::Http2(_) | OutboundProtocol::Grpc(_), _) => {
                let why = format!(
                    "the port is declared as {}, and the client speaks {}",
                    course.declared, course.spoken
                );
                course.reply = Some(Reply::ended(why));
            }
        }
        course
    }

    /// What is known before anything is decided.
    pub(crate) fn course(&self, addr: SocketAddr, known: &Discovered, speaks: &Spoken) -> Course {
        let parent = &known.policy.parent;
        Course {
            target: match &known.place {
                Place::Addr(addr) => self.target(parent, *addr),
                Place::Name(_) if &*parent.kind != "default" => words::resource(parent),
                Place::Name(name) => name.to_string(),
            },
            address: Some(addr),
            proxy: self.client.proxy(),
            declared: declared(&known.policy.protocol),
            spoken: speaks.as_str(),
            apart: known.service.as_ref().map_or_else(Vec::new, |service| self.apart(service)),
            ..Course::default()
        }
    }

    /// TLS of the application's own, by its server name.
    pub(crate) fn tls(
        &self,
        course: &mut Course,
        known: &Discovered,
        routes: &[TlsRoute],
        speaks: &Spoken,
        request: &Request<()>,
    ) {
        let found = match speaks {
            Spoken::Tls(sni) => {
                by_sni(course, routes, sni).ok_or_else(|| Fault::NoRoute(sni.as_str().into()))
            }
            _ => Err(Fault::BadTarget("a TLS route needs a server name")),
        };
        match found {
            Ok(route) => self.bytes(course, known, &route.distribution, request),
            Err(fault) => course.reply = Some(Reply::ended(fault.to_string())),
        }
    }

    /// What is at an address: a pod, and the Service by which it goes; else what its policy is about, or nothing that is known.
    fn target(&self, parent: &ResourceRef, addr: SocketAddr) -> String {
        let pod = self.index.pod_at(addr.ip()).map(|(name, _)| format!("pod {name}"));
        match (pod, &*parent.kind != "default") {
            (Some(pod), true) => format!("{pod}, by {}", words::resource(parent)),
            (Some(pod), false) => pod,
            (None, true) => words::resource(parent),
            (None, false) => "nothing that is known here".to_owned(),
        }
    }

    /// Bytes go where the target's bytes go; a ServiceProfile that splits traffic splits them too.
    pub(crate) fn bytes(
        &self,
        course: &mut Course,
        known: &Discovered,
        distribution: &Distribution,
        request: &Request<()>,
    ) {
        if let Distribution::Forbidden(reason) = distribution {
            let target = known.policy.parent.name.clone();
            return self.fails(course, &Fault::Forbidden { target, reason: reason.clone() }, request);
        }
        let split = known.profile.as_ref().filter(|(profile, _)| !profile.overrides.is_empty());
        let split = split.and_then(|(profile, name)| Some((split_of(known, profile)?, name)));
        if let Some((split, name)) = split {
            let of = format!("ServiceProfile {name}");
            course.rule = Some(Rule { of, number: None, matches: vec!["everything".to_owned()] });
            course.backends = self.backends(&split, &Carried::Bytes, None);
            return;
        }
        let carried = match &self.question.speaks {
            Speaks::Tls(sni) => Carried::Tls(sni.clone()),
            _ => Carried::Bytes,
        };
        course.backends = self.backends(distribution, &carried, None);
    }

    /// A fault, told to whoever speaks HTTP.
    pub(crate) fn fails(&self, course: &mut Course, fault: &Fault, request: &Request<()>) {
        let http = !matches!(self.question.speaks, Speaks::Bytes | Speaks::Tls(_));
        let request = if course.spoken == "http2" { over_http2(request) } else { request.clone() };
        let grpc = Asker::of(&request, true).grpc;
        course.reply = Some(if http { Reply::of(fault, grpc) } else { Reply::ended(fault.to_string()) });
    }

    /// A request: by a ServiceProfile, else by routes.
    pub(crate) fn http(
        &self,
        course: &mut Course,
        known: &Discovered,
        routes: &[OutboundRoute],
        accrual: Option<&Accrual>,
        mut request: Request<()>,
    ) {
        if let Some(reply) = unread(&request).or_else(|| unsound(&request)) {
            course.reply = Some(reply);
            return;
        }
        let required = stripped(&mut request);
        if let Some((profile, name)) = &known.profile
            && let Some(split) = split_of(known, profile)
        {
            by_profile(course, profile, name, &request);
            let of = || {
                vec![Apart { of: "routes".to_owned(), why: "a ServiceProfile comes before them".to_owned() }]
            };
            if known.service.as_ref().is_some_and(|service| !service.routes.is_empty()) {
                course.apart.extend(of());
            }
            course.backends =
                self.backends(&split, &Carried::Request(Box::new(request)), required.as_deref());
            return;
        }
        course.breaker = accrual.map(words::breaker);
        match self.by_rule(course, &known.policy.parent, routes, &mut request) {
            Ok((distribution, prefix)) => {
                let carried = Carried::Request(Box::new(request));
                course.backends = self.backends_of(&distribution, &carried, required.as_deref(), prefix);
            }
            Err(fault) => self.fails(course, &fault, &request),
        }
    }

    /// The rule of a request, and what is done there before it is sent anywhere.
    fn by_rule(
        &self,
        course: &mut Course,
        parent: &ResourceRef,
        routes: &[OutboundRoute],
        request: &mut Request<()>,
    ) -> Result<(Arc<Distribution>, Option<usize>), Fault> {
        let candidates = || routes.iter().map(|outbound| &outbound.route);
        let selected = route::select(candidates(), &View(request));
        let chosen = selected.unwrap_or_else(|_| route::choose(candidates(), &View(request)));
        let written = |at: Chosen| {
            let meta = routes.get(at.route).map(|outbound| &*outbound.route.meta);
            (
                meta.map(words::resource).unwrap_or_default(),
                meta.map_or(at.rule, |meta| self.written(meta, at.rule)),
            )
        };
        for (at, loss) in route::losses(candidates(), &View(request), chosen) {
            let (of, number) = written(at);
            let Some(outbound) = routes.get(at.route) else { continue };
            let why = words::loss(&outbound.route, outbound.route.rules.get(at.rule), &loss);
            course.lost.push(Lost { of, number, why });
        }
        if let Some(at) = chosen
            && let Some(outbound) = routes.get(at.route)
        {
            let (of, number) = written(at);
            let matches = outbound.route.rules.get(at.rule).map(|rule| words::matches(&outbound.route, rule));
            let number = Some(number).filter(|_| !of.starts_with("default "));
            course.rule = Some(Rule { of, number, matches: matches.unwrap_or_default() });
        }
        selected.map_err(|_| Fault::TwoPaths)?;
        let chosen = chosen.and_then(|at| {
            let outbound = routes.get(at.route)?;
            Some((outbound.route.rules.get(at.rule)?, outbound.rules.get(at.rule)?))
        });
        let (conditions, rule) = chosen.ok_or_else(|| Fault::NoRoute(parent.name.clone()))?;
        let mut prefix = matched_prefix(conditions, &View(request));
        terms(course, rule, request);
        course.filters = self.filters(&rule.filters);
        apply(&rule.filters, request, &mut prefix)?;
        Ok((rule.distribution.clone(), prefix))
    }

    /// The number of a rule in its manifest: a rule of which no match can be said is not among those that proxies have.
    pub(crate) fn written(&self, route: &ResourceRef, said: usize) -> usize {
        let kind = RouteKind::ALL
            .into_iter()
            .find(|kind| kind.group() == &*route.group && kind.kind() == &*route.kind);
        let rules = kind.and_then(|kind| {
            let id = RouteId { name: Name::new(&*route.namespace, &*route.name), kind };
            self.index.route(&id)
        });
        let number = rules.and_then(|route| {
            let rules = route.spec.rules.iter().enumerate();
            let mut there =
                rules.filter(|(_, rule)| rule.matches.is_empty() || rule.matches.iter().any(can_match));
            there.nth(said).map(|(at, _)| at)
        });
        number.unwrap_or(said)
    }

    /// To the endpoints of a distribution.
    fn backends(
        &self,
        distribution: &Distribution,
        carried: &Carried,
        required: Option<&str>,
    ) -> Vec<Backend> {
        self.backends_of(distribution, carried, required, None)
    }
}

/// Applies filters as a proxy does; an error is the answer. What happens to a share of requests only is left to chance
/// there, and does not happen here.
pub(crate) fn apply(
    filters: &[Filter],
    request: &mut Request<()>,
    prefix: &mut Option<usize>,
) -> Result<(), Fault> {
    let certain = |filter: &&Filter| !matches!(filter, Filter::Fail(failure) if failure.share != Ratio::ALL);
    let filters: Vec<Filter> = filters.iter().filter(certain).cloned().collect();
    Filters::compile(&filters).map_or(Ok(()), |filters| filters.request(request, prefix))
}

/// Takes off a request what is not for others; who the endpoint must be, if the application says it.
pub(crate) fn stripped(request: &mut Request<()>) -> Option<String> {
    headers::strip_hop_by_hop(request.headers_mut(), false);
    headers::strip_outbound(request.headers_mut());
    let required = request.headers_mut().remove(headers::REQUIRE_ID);
    required.and_then(|required| required.to_str().ok().map(str::to_owned))
}

fn by_profile(course: &mut Course, profile: &Profile, name: &str, request: &Request<()>) {
    let of = format!("ServiceProfile {name}");
    let chosen = profile.choose(&View(request));
    for (number, route) in profile.routes.iter().enumerate().filter(|(at, _)| Some(*at) != chosen) {
        let named = route.name().map(|name| format!(" ({name})")).unwrap_or_default();
        let why = if chosen.is_some_and(|chosen| chosen < number) {
            "one before it has the request"
        } else {
            "it does not match"
        };
        course.lost.push(Lost { of: format!("{of}{named}"), number, why: why.to_owned() });
    }
    let route = chosen.and_then(|at| profile.routes.get(at));
    course.rule = Some(Rule {
        of: match route.and_then(|route| route.name()) {
            Some(name) => format!("{of} ({name})"),
            None => of,
        },
        number: chosen,
        matches: route.map_or_else(
            || vec!["what none of its routes matches".to_owned()],
            |route| vec![words::profile_condition(&route.condition)],
        ),
    });
    let timeout = route.and_then(|route| route.timeout).map(|time| time.as_secs_f64());
    course.timeouts = timeout.map(|time| Timeouts { request: None, response: Some(time), idle: None });
    course.retry = route.filter(|route| route.retryable).and(profile.budget.as_ref()).map(|budget| Retry {
        limit: None,
        asked: None,
        on: vec!["failures by its classes".to_owned()],
        timeout: None,
        backoff: None,
        budget: Some(words::budget(budget)),
    });
}

/// Timeouts and retries: the request's own wishes, where they are heeded, before the rule's.
fn terms(course: &mut Course, rule: &OutboundRule, request: &mut Request<()>) {
    let (mut timeouts, mut retry) = (rule.timeouts, rule.retry.clone());
    if rule.heeds_wishes {
        (timeouts, retry) = Wishes::of(&View(request)).over(timeouts, retry.as_ref());
        for name in Wishes::HEADERS {
            request.headers_mut().remove(name);
        }
    }
    course.timeouts = words::timeouts(timeouts);
    course.retry = retry.as_ref().map(words::retry);
}

/// Where a ServiceProfile sends.
fn split_of(known: &Discovered, profile: &Profile) -> Option<Distribution> {
    profile.distribution(&known.policy.parent, known.place.port())
}

/// The route of a server name.
fn by_sni<'a>(course: &mut Course, routes: &'a [TlsRoute], sni: &str) -> Option<&'a TlsRoute> {
    let best = route::choose_sni(routes.iter().map(|route| route.snis.as_slice()), sni);
    for (at, route) in routes.iter().enumerate() {
        let of = words::resource(&route.meta);
        if Some(at) == best {
            course.rule = Some(Rule { of, number: Some(0), matches: vec![words::snis(&route.snis)] });
            continue;
        }
        let better = "another names more of the server name, or comes first";
        let why = if best.is_some() { better } else { "the server name is not one of its" };
        course.lost.push(Lost { of, number: 0, why: why.to_owned() });
    }
    routes.get(best?)
}

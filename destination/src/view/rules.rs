//! Pure. A route as it holds at a port: where each rule sends what it matches, what fails and why, and the timeouts and
//! retries that are left when route, rule and Service have all been asked.

use super::{
    Lens,
    attach::Entry,
    carried::{Effect, Whom, unsupported},
};
use crate::{
    index::{
        Addressing, GrpcConditions, HttpConditions, Retry, RouteId, Timeouts, Traffic, defaults::RETRIES,
    },
    resources::{
        Name,
        routes::{self, Filter, RouteSpec, Rule, TargetRef},
    },
};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

/// Longest pause between tries, in units of the shortest, where a route names the shortest.
const BACKOFF_GROWTH: u32 = 10;

/// A route that holds.
#[derive(Clone, Debug, PartialEq)]
pub struct HeldRoute {
    /// Its kind, namespace and name.
    pub id: RouteId,
    /// What it says.
    pub spec: Arc<RouteSpec>,
    /// What becomes of its rules, in their order.
    pub rules: Vec<HeldRule>,
}

/// What becomes of a rule.
#[derive(Clone, Debug, PartialEq)]
pub struct HeldRule {
    /// Why everything that it matches fails, if it does.
    pub failure: Option<String>,
    /// Why it fails in proxies that are told in Linkerd's API alone.
    pub unsaid: Option<String>,
    /// Where its mirrors lead.
    pub mirrors: Mirrors,
    /// What becomes of its backends, in their order.
    pub backends: Vec<HeldBackend>,
    /// Timeouts and retries.
    pub resilience: Resilience,
}

/// What becomes of a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldBackend {
    /// The Service and its port, or why what goes there fails.
    pub target: Result<(Name, u16), String>,
    /// Its share; 0 is never.
    pub weight: u32,
    /// Why what goes there fails in proxies that are told in Linkerd's API alone.
    pub unsaid: Option<String>,
    /// Where its mirrors lead.
    pub mirrors: Mirrors,
}

/// The Service and port of every mirror that leads somewhere, by the filter's number in its list. A mirror that leads
/// nowhere is none (Gateway API, HTTPRequestMirrorFilter), and the route's status says so.
pub type Mirrors = BTreeMap<usize, (Name, u16)>;

/// Timeouts and retries of a rule.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Resilience {
    /// Timeouts; none of them is zero.
    pub timeouts: Timeouts,
    /// Retries of HTTP, at least one.
    pub http_retry: Option<Retry<HttpConditions>>,
    /// Retries of gRPC, at least one.
    pub grpc_retry: Option<Retry<GrpcConditions>>,
    /// The shortest and longest pause between tries, if the rule names them.
    pub backoff: Option<(Duration, Duration)>,
}

impl HeldRule {
    /// The backends that take anything, with their numbers in the rule.
    pub fn shares(&self) -> impl Iterator<Item = (usize, &HeldBackend)> {
        self.backends.iter().enumerate().filter(|(_, backend)| backend.weight > 0)
    }
}

/// Why a reference leads nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unresolved {
    /// Gateway API's word for it.
    pub(super) reason: &'static str,
    /// What is wrong, for people.
    pub(super) message: String,
}

/// A route as it holds, for a Service whose annotations are `defaults`.
pub(super) fn held(lens: &mut Lens<'_>, (id, route): Entry<'_>, defaults: &Traffic) -> HeldRoute {
    let problems = unsupported(route);
    let failing = |effect: Effect, by: Whom| {
        let problem = problems.iter().find(|problem| problem.effect == effect && problem.by == by)?;
        Some(format!("{id}: {}: {}", problem.path, problem.reason))
    };
    let rules = route.spec.rules.iter().enumerate().map(|(at, rule)| HeldRule {
        failure: failing(Effect::Rule(at), Whom::All).or_else(|| weightless(id, at, rule)),
        unsaid: failing(Effect::Rule(at), Whom::Linkerds),
        mirrors: mirrors(lens, id, &rule.filters),
        backends: rule
            .backends
            .iter()
            .enumerate()
            .map(|(number, backend)| {
                let target = resolve(lens, id, &backend.target).map_err(|why| why.message);
                let failure = failing(Effect::Backend(at, number), Whom::All);
                HeldBackend {
                    target: failure.map_or(target, Err),
                    weight: backend.weight,
                    unsaid: failing(Effect::Backend(at, number), Whom::Linkerds),
                    mirrors: mirrors(lens, id, &backend.filters),
                }
            })
            .collect(),
        resilience: resilience(&route.traffic, rule, defaults),
    });
    let rules = rules.collect();
    HeldRoute { id: id.clone(), spec: route.spec.clone(), rules }
}

fn mirrors(lens: &mut Lens<'_>, id: &RouteId, filters: &[Filter]) -> Mirrors {
    let mirror = |(at, filter): (usize, &Filter)| match filter {
        Filter::Mirror(mirror) => Some((at, resolve(lens, id, &mirror.target).ok()?)),
        _ => None,
    };
    filters.iter().enumerate().filter_map(mirror).collect()
}

/// Backends that all have no weight take nothing, and there is nowhere else.
fn weightless(id: &RouteId, at: usize, rule: &Rule) -> Option<String> {
    let none = !rule.backends.is_empty() && rule.backends.iter().all(|backend| backend.weight == 0);
    none.then(|| format!("{id}: spec.rules[{at}].backendRefs: every weight is 0"))
}

/// The Service and port that a reference of a route leads to.
pub(super) fn resolve(
    lens: &mut Lens<'_>,
    id: &RouteId,
    target: &TargetRef,
) -> Result<(Name, u16), Unresolved> {
    let fail = |reason, message| Err(Unresolved { reason, message });
    let Some((name, port)) = target.service(&id.name.namespace) else {
        let group = if target.group.is_empty() { routes::CORE_GROUP } else { &target.group };
        return fail("InvalidKind", format!("{} of {group} cannot be sent to; a Service can", target.kind));
    };
    // Whether something exists elsewhere is nobody's business who may not refer to it.
    if !lens.may_refer(id.kind, &id.name.namespace, &name) {
        let message = format!(
            "Service {name} is in another namespace, and no ReferenceGrant there allows {} of {} to refer to it",
            id.kind.as_str(),
            id.name.namespace
        );
        return fail("RefNotPermitted", message);
    }
    match lens.declared(&name) {
        None => fail("BackendNotFound", format!("Service {name} does not exist")),
        Some(service) if service.addressing == Addressing::ExternalName => {
            fail("InvalidKind", format!("Service {name} is an ExternalName: it has no endpoints"))
        }
        Some(service) if service.port(port).is_none() => {
            fail("BackendNotFound", format!("Service {name} has no port {port}"))
        }
        Some(_) => Ok((name, port)),
    }
}

/// The route's annotations come first, then the rule's own fields, then the Service's annotations; retries and timeouts
/// each as a whole. Contract 4.2.
pub(super) fn resilience(route: &Traffic, rule: &Rule, defaults: &Traffic) -> Resilience {
    let stated = rule.timeouts.unwrap_or_default();
    let mut timeouts = route.timeouts;
    timeouts.request = timeouts.request.or(stated.request);
    let mut http_retry = route.http_retry.clone();
    let mut backoff = None;
    if let (None, Some(retry)) = (&http_retry, &rule.retry) {
        http_retry = Some(Retry {
            limit: retry.attempts.unwrap_or(RETRIES),
            timeout: None,
            conditions: retry.codes.iter().map(|code| (*code, *code)).collect(),
        });
        backoff =
            retry.backoff.map(|least| (least, (least * BACKOFF_GROWTH).max(Duration::from_millis(250))));
    }
    let http_retry = http_retry.or_else(|| defaults.http_retry.clone()).filter(|retry| retry.limit > 0);
    let grpc_retry = route.grpc_retry.clone().or_else(|| defaults.grpc_retry.clone());
    let grpc_retry = grpc_retry.filter(|retry| retry.limit > 0);
    // A try's own time: with retries it bounds each of them, without it is the response's.
    if http_retry.is_none() {
        timeouts.response = timeouts.response.or(stated.backend_request);
    }
    if !timeouts.stated() && stated.backend_request.is_none() {
        timeouts = defaults.timeouts;
    }
    let each = stated.backend_request.filter(|each| !each.is_zero());
    let http_retry = http_retry.map(|retry| Retry { timeout: retry.timeout.or(each), ..retry });
    let some = |time: Option<Duration>| time.filter(|time| !time.is_zero());
    let timeouts = Timeouts {
        request: some(timeouts.request),
        response: some(timeouts.response),
        idle: some(timeouts.idle),
    };
    Resilience { timeouts, http_retry, grpc_retry, backoff }
}

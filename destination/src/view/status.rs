//! Pure. How every route stands, as Gateway API writes it into `status.parents`: whether each parent has accepted it and
//! whether its references lead somewhere, and if not, which field says what cannot be had.

use super::{
    Family, Lens, PortProtocol, Settings,
    attach::{Entry, Loss, attached, names},
    carried::{Unsupported, Whom, unsupported, unsupported_by_servers},
    cautions,
    outbound::protocol,
    rules::{Unresolved, resolve},
    servers::{self, Apart, names_server},
};
use crate::{
    index::{Addressing, Index, Route, RouteId},
    resources::{
        Name,
        routes::{Filter, GATEWAY_GROUP, POLICY_GROUP, ParentRef, TargetRef},
    },
};
use serde::Serialize;
use std::collections::BTreeMap;

/// Who writes these conditions.
const CONTROLLER: &str = "remora.io/policy-controller";
/// Longest message, in bytes: what comes after is somewhere in the same object.
const MAX_MESSAGE: usize = 4096;

/// How a route stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RouteReport {
    /// With each of its parents that is a Service or a Server.
    pub parents: Vec<ParentReport>,
    /// What is as it is written, but perhaps not as it is meant.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// How a route stands with a parent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ParentReport {
    /// The parent, as the route names it.
    #[serde(rename = "parentRef")]
    pub parent: ParentRef,
    /// Who says so.
    #[serde(rename = "controllerName")]
    pub controller: &'static str,
    /// `Accepted` and `ResolvedRefs`.
    pub conditions: [Condition; 2],
}

/// A condition of Kubernetes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Condition {
    /// Which one.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// `True` or `False`.
    pub status: &'static str,
    /// In one word.
    pub reason: &'static str,
    /// For people: the paths of the fields, and what is wrong with each.
    pub message: String,
}

/// A reference of a route that leads nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadReference {
    /// Number of the rule that it is in.
    pub rule: usize,
    /// The path of the field.
    pub path: String,
    /// Gateway API's word for it.
    pub reason: &'static str,
    /// What is wrong, for people.
    pub message: String,
}

impl DeadReference {
    /// The field, and what is wrong with it.
    pub fn told(&self) -> String {
        format!("{}: {}", self.path, self.message)
    }
}

impl RouteReport {
    /// Is every condition true?
    pub fn is_fine(&self) -> bool {
        self.parents.iter().flat_map(|parent| &parent.conditions).all(Condition::holds)
    }
}

impl Condition {
    /// Is it true?
    pub fn holds(&self) -> bool {
        self.status == "True"
    }

    /// True without a problem; else false for the reason of the first one, and all of them are told.
    pub(super) fn new(kind: &'static str, good: &'static str, problems: &[Problem]) -> Self {
        let Some(first) = problems.first() else {
            return Self { kind, status: "True", reason: good, message: String::new() };
        };
        let mut message = String::new();
        for problem in problems {
            if message.len() + problem.message.len() > MAX_MESSAGE {
                message.push_str("; and more");
                break;
            }
            let between = if message.is_empty() { "" } else { "; " };
            message.extend([between, problem.message.as_str()]);
        }
        Self { kind, status: "False", reason: first.reason, message }
    }
}

/// Something that makes a condition false.
pub(super) struct Problem {
    pub(super) reason: &'static str,
    pub(super) message: String,
}

/// How every route stands.
pub fn route_reports<'a>(
    index: &'a Index,
    settings: &'a Settings,
) -> impl Iterator<Item = (RouteId, RouteReport)> + use<'a> {
    let mut reports =
        Reports { lens: Lens::new(index), settings, lost: BTreeMap::new(), apart: BTreeMap::new() };
    index.routes().map(move |entry| (entry.0.clone(), reports.of(entry)))
}

/// A port of a Service, for everybody or for the clients of a namespace.
type Port = (Name, u16, Option<String>);

struct Reports<'a> {
    lens: Lens<'a>,
    settings: &'a Settings,
    /// Which routes do not hold, by port: many routes ask for the same one.
    lost: BTreeMap<Port, BTreeMap<&'a RouteId, Loss>>,
    /// The same by Server.
    apart: BTreeMap<Name, BTreeMap<&'a RouteId, Apart>>,
}

impl<'a> Reports<'a> {
    fn of(&mut self, (id, route): Entry<'a>) -> RouteReport {
        let mut warnings = route.spec.warnings.clone();
        let (unsupported, unsaid): (Vec<_>, Vec<_>) =
            unsupported(route).into_iter().partition(|problem| problem.by == Whom::All);
        if route.spec.parents.iter().any(|parent| parent.service(&id.name.namespace).is_some()) {
            let told = unsaid.into_iter().map(|Unsupported { path, reason, .. }| format!("{path}: {reason}"));
            warnings.extend(told);
        }
        let by_servers = unsupported_by_servers(route);
        let dead = unresolved(&mut self.lens, id, route);
        let dead = dead.iter().map(|one| Problem { reason: one.reason, message: one.told() });
        let resolved = Condition::new("ResolvedRefs", "ResolvedRefs", &dead.collect::<Vec<_>>());
        let mut parents = Vec::new();
        for (at, parent) in route.spec.parents.iter().enumerate() {
            let path = format!("spec.parentRefs[{at}]");
            let namespace = &id.name.namespace;
            let mut carried = &unsupported;
            let mut problems = match (parent.service(namespace), parent.server(namespace)) {
                (Some(service), _) => self.accepted(id, (&path, parent, &service), &mut warnings),
                (None, Some(server)) => {
                    carried = &by_servers;
                    self.accepted_by_server(id, (&path, parent, &server))
                }
                (None, None) if parent.kind == "Service" && parent.group == GATEWAY_GROUP => vec![Problem {
                    reason: NO_PARENT,
                    message: format!(
                        "{path}.group: {GATEWAY_GROUP}, the default, has no Services; write core"
                    ),
                }],
                (None, None) => {
                    if parent.group == POLICY_GROUP {
                        warnings.push(format!("{path}: a parent of kind {} is not served", parent.kind));
                    }
                    // A Gateway, for example: its own controller has the say.
                    continue;
                }
            };
            problems.extend(carried.iter().map(|Unsupported { path, reason, .. }| Problem {
                reason: "UnsupportedValue",
                message: format!("{path}: {reason}"),
            }));
            let accepted = Condition::new("Accepted", "Accepted", &problems);
            let conditions = [accepted, resolved.clone()];
            parents.push(ParentReport { parent: parent.clone(), controller: CONTROLLER, conditions });
        }
        if parents.is_empty() {
            warnings.push("no parent is a Service or a Server: this mesh does nothing with it".to_owned());
        }
        warnings.extend(suspicious(route));
        warnings.extend(cautions::of_route(&mut self.lens, id, route));
        RouteReport { parents, warnings }
    }

    /// Why a Service has not accepted a route, if it has not.
    fn accepted(
        &mut self,
        id: &RouteId,
        (path, parent, name): (&str, &ParentRef, &Name),
        warnings: &mut Vec<String>,
    ) -> Vec<Problem> {
        let no_parent = |what: &str| {
            vec![Problem { reason: NO_PARENT, message: format!("{path}: Service {name} {what}") }]
        };
        let Some(service) = self.lens.declared(name) else { return no_parent("does not exist") };
        if !matches!(service.addressing, Addressing::ClusterIps(_)) {
            return no_parent("has no cluster IP: its clients dial pods, which have no routes");
        }
        let namespace = &id.name.namespace;
        let ports: Vec<_> =
            service.ports.iter().filter(|port| names(parent, namespace, name, port)).collect();
        if ports.is_empty() {
            return no_parent("has no TCP port of this number or name");
        }
        let mut lost = Vec::new();
        for port in &ports {
            // A producer's route is for everybody, a consumer's for clients of its own namespace.
            let client = (*namespace != name.namespace).then(|| namespace.clone());
            let (lens, settings) = (&mut self.lens, self.settings);
            let losses = self.lost.entry((name.clone(), port.port, client.clone())).or_insert_with(|| {
                let spoken = protocol(lens, settings, (name, service), port);
                attached(lens, name, port, spoken, client.as_deref()).lost.into_iter().collect()
            });
            lost.extend(losses.get(id).map(|loss| because(path, name, port.port, loss)));
        }
        let mut problems = Vec::new();
        if lost.len() == ports.len() {
            problems.append(&mut lost);
        }
        // Where it holds elsewhere it has been accepted all the same.
        warnings.extend(lost.into_iter().map(|problem| problem.message));
        problems.extend(profiled(&mut self.lens, self.settings, id, path, name));
        problems
    }
}

impl Reports<'_> {
    /// Why a Server has not accepted a route, if it has not.
    fn accepted_by_server(
        &mut self,
        id: &RouteId,
        (path, parent, name): (&str, &ParentRef, &Name),
    ) -> Vec<Problem> {
        let problem =
            |reason, message: String| vec![Problem { reason, message: format!("{path}: {message}") }];
        if name.namespace != id.name.namespace {
            return problem(NO_PARENT, format!("Server {name} is of another namespace"));
        }
        if !names_server(parent) {
            let message = "a Server has one port and no sections: neither port nor sectionName".to_owned();
            return problem(NO_PARENT, message);
        }
        let Some(server) = self.lens.index.server(name) else {
            return problem(NO_PARENT, format!("Server {name} does not exist"));
        };
        let (lens, protocol) = (&mut self.lens, server.spec.protocol);
        let apart = self
            .apart
            .entry(name.clone())
            .or_insert_with(|| servers::attached(lens, name, protocol).1.into_iter().collect());
        match apart.get(id) {
            None => Vec::new(),
            Some(Apart::Protocol(protocol)) => {
                let spoken = protocol.as_str();
                let why = format!("Server {name} speaks {spoken}, which has no routes of this kind");
                problem("NotAllowedByListeners", why)
            }
            Some(Apart::TooMany) => {
                let why = "has too many routes, or too much in them: older ones hold";
                problem(CONFLICTED, format!("Server {name} {why}"))
            }
        }
    }
}

const NO_PARENT: &str = "NoMatchingParent";
const CONFLICTED: &str = "RouteReasonConflicted";

fn because(path: &str, service: &Name, port: u16, loss: &Loss) -> Problem {
    let at = format!("{path}: port {port} of Service {service}");
    let (reason, why) = match loss {
        Loss::Kind(winner) => (CONFLICTED, format!("goes by {winner}, a kind that comes first")),
        Loss::Older(winner) => (CONFLICTED, format!("goes by {winner}, which is older")),
        Loss::Protocol(PortProtocol::Opaque) => {
            ("NotAllowedByListeners", "is opaque: only a TCPRoute can hold there".to_owned())
        }
        Loss::Protocol(protocol) => (
            "NotAllowedByListeners",
            format!("is declared as {protocol:?} (appProtocol): this kind cannot hold there"),
        ),
        Loss::TooMany => (CONFLICTED, "has too many routes, or too much in them: older ones hold".to_owned()),
    };
    Problem { reason, message: format!("{at} {why}") }
}

/// A ServiceProfile comes before routes. Contract 1.7.
fn profiled(
    lens: &mut Lens<'_>,
    settings: &Settings,
    id: &RouteId,
    path: &str,
    service: &Name,
) -> Option<Problem> {
    let full_name = settings.service_name(service);
    let profile = [&id.name.namespace, &service.namespace].into_iter().find_map(|namespace| {
        let name = Name::new(namespace.as_str(), full_name.as_str());
        lens.service_profile(&name).map(|spec| (name, spec.clone()))
    });
    let (name, spec) = profile?;
    let takes = spec.comes_before(Family::of(id.kind));
    takes.then(|| Problem {
        reason: CONFLICTED,
        message: format!("{path}: Service {service} has ServiceProfile {name}, which comes before routes"),
    })
}

/// The references of a route that lead nowhere: all of them, where the condition's message has room for some.
pub fn dead_references(index: &Index, id: &RouteId) -> Vec<DeadReference> {
    index.route(id).map_or_else(Vec::new, |route| unresolved(&mut Lens::new(index), id, route))
}

fn unresolved(lens: &mut Lens<'_>, id: &RouteId, route: &Route) -> Vec<DeadReference> {
    let check = |(rule, path, target): (usize, String, &TargetRef)| {
        let Unresolved { reason, message } = resolve(lens, id, target).err()?;
        Some(DeadReference { rule, path, reason, message })
    };
    references(route).into_iter().filter_map(check).collect()
}

/// Every object that a route sends something to, with the number of the rule and the path of the field.
fn references(route: &Route) -> Vec<(usize, String, &TargetRef)> {
    let mut found = Vec::new();
    for (at, rule) in route.spec.rules.iter().enumerate() {
        let path = format!("spec.rules[{at}]");
        found.extend(mirrors(at, &path, &rule.filters));
        for (number, backend) in rule.backends.iter().enumerate() {
            let path = format!("{path}.backendRefs[{number}]");
            found.extend(mirrors(at, &path, &backend.filters));
            found.push((at, path, &backend.target));
        }
    }
    found
}

fn mirrors<'a>(
    rule: usize,
    path: &str,
    filters: &'a [Filter],
) -> impl Iterator<Item = (usize, String, &'a TargetRef)> {
    filters.iter().enumerate().filter_map(move |(at, filter)| match filter {
        Filter::Mirror(mirror) => {
            Some((rule, format!("{path}.filters[{at}].requestMirror.backendRef"), &mirror.target))
        }
        _ => None,
    })
}

/// What is as it is written, but perhaps not as it is meant.
fn suspicious(route: &Route) -> impl Iterator<Item = String> {
    route.spec.rules.iter().enumerate().filter_map(|(at, rule)| {
        let weightless = !rule.backends.is_empty() && rule.backends.iter().all(|backend| backend.weight == 0);
        weightless.then(|| format!("spec.rules[{at}].backendRefs: every weight is 0: everything fails"))
    })
}

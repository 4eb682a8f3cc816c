//! Pure. How every policy resource stands: whether what it is about and what it refers to is there, and whether something
//! else comes before it.

use super::{
    Condition, Lens, Settings, admit,
    admit::Authority,
    servers::{has_rate_limits, served},
    status::Problem,
};
use crate::{
    index::{Index, RouteId, Server},
    resources::{
        Name, PolicyKind,
        policy::{
            AccountRef, AnyClients, AuthorizationPolicySpec, Clients, PolicyTarget, RateLimitSpec,
            ServerAuthorizationSpec, ServerPort, ServerSelector, WhoRef,
        },
    },
};
use serde::Serialize;

const NO_TARGET: &str = "TargetNotFound";
/// Why a policy is not accepted that refers to what is not there.
pub const NO_REF: &str = "RefNotFound";
const CONFLICTED: &str = "Conflicted";
const UNSUPPORTED: &str = "UnsupportedValue";
/// Most warnings of an object; what comes after is of the same kind.
const MAX_WARNINGS: usize = 20;

/// How a policy resource stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PolicyReport {
    /// `Accepted`.
    pub conditions: [Condition; 1],
    /// What is as it is written, but perhaps not as it is meant.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

impl PolicyReport {
    /// Is every condition true?
    pub fn is_fine(&self) -> bool {
        self.conditions.iter().all(Condition::holds)
    }
}

/// What is found of an object.
#[derive(Default)]
struct Findings {
    problems: Vec<Problem>,
    warnings: Vec<String>,
}

impl Findings {
    fn problem(&mut self, reason: &'static str, message: String) {
        self.problems.push(Problem { reason, message });
    }

    fn report(mut self) -> PolicyReport {
        self.warnings.truncate(MAX_WARNINGS);
        PolicyReport {
            conditions: [Condition::new("Accepted", "Accepted", &self.problems)],
            warnings: self.warnings,
        }
    }
}

/// How every policy resource stands, by kind, namespace and name.
pub fn policy_reports(index: &Index, settings: &Settings) -> Vec<(String, PolicyReport)> {
    let mut lens = Lens::new(index);
    let mut reports = Vec::new();
    let mut add = |kind: PolicyKind, name: &Name, findings: Findings| {
        reports.push((format!("{} {name}", kind.as_str()), findings.report()));
    };
    for (name, server) in index.servers() {
        add(PolicyKind::Server, name, of_server(&mut lens, settings, (name, server.as_ref())));
    }
    for (name, spec) in index.all_server_authorizations() {
        add(PolicyKind::ServerAuthorization, name, of_server_authorization(index, name, spec));
    }
    for (name, spec) in index.all_authorization_policies() {
        let findings = of_authorization_policy(&mut lens, settings, name, spec);
        add(PolicyKind::AuthorizationPolicy, name, findings);
    }
    for (name, clients) in index.all_mesh_tls() {
        let mut findings = Findings::default();
        known(index, name, clients, &mut findings);
        add(PolicyKind::MeshTls, name, findings);
    }
    for name in index.all_networks() {
        add(PolicyKind::Network, name, Findings::default());
    }
    for (name, limit) in index.rate_limits() {
        add(PolicyKind::RateLimit, name, of_rate_limit(index, name, &limit.spec));
    }
    reports
}

fn of_server<'a>(
    lens: &mut Lens<'a>,
    settings: &Settings,
    (name, server): (&'a Name, &'a Server),
) -> Findings {
    let mut findings = Findings::default();
    if server.spec.pods.is_none() {
        let message =
            "spec.externalWorkloadSelector: there are no ExternalWorkloads here; it is about nothing";
        findings.problem(UNSUPPORTED, message.to_owned());
        return findings;
    }
    let index = lens.index;
    let selected = || index.pods_in(&name.namespace).filter(|(_, pod)| server.selects_pod(pod));
    if selected().next().is_none() {
        findings.warnings.push("spec.podSelector: no pod of its namespace has these labels".to_owned());
    }
    let mut holds = 0_usize;
    let mut lost = Vec::new();
    for (pod_name, pod) in selected() {
        let Some(port) = server.port_of(pod) else { continue };
        match lens.server_of(pod_name, pod, port) {
            Some((winner, _)) if winner != name => {
                lost.push(format!(
                    "spec.port: port {port} of pod {pod_name} goes by Server {winner}, which comes first"
                ));
            }
            _ => holds += 1,
        }
    }
    if let (ServerPort::Name(port), true) = (&server.spec.port, holds == 0 && lost.is_empty())
        && selected().next().is_some()
    {
        findings.warnings.push(format!("spec.port: no pod that it selects has a port named {port}"));
    }
    if holds == 0 {
        for message in lost {
            findings.problem(CONFLICTED, message);
        }
    } else {
        findings.warnings.extend(lost);
    }
    for left_out in served(lens, settings, (name, server)).left_out {
        let by = match left_out {
            Authority::Default(policy) => policy.as_str().to_owned(),
            Authority::ServerAuthorization(name) => format!("ServerAuthorization {name}"),
            Authority::AuthorizationPolicy(name) => format!("AuthorizationPolicy {name}"),
        };
        let message = format!("{by} is beyond what can be told to a proxy of one port; it admits nobody");
        findings.problem(UNSUPPORTED, message);
    }
    findings
}

fn of_server_authorization(index: &Index, name: &Name, spec: &ServerAuthorizationSpec) -> Findings {
    let mut findings = Findings::default();
    match &spec.servers {
        ServerSelector::Name(server) => {
            has_server(index, &name.namespace, server, "spec.server.name", &mut findings);
        }
        ServerSelector::Labels(selector) => {
            let mut servers = index.servers_in(&name.namespace);
            if !servers.any(|(_, server)| selector.matches(&server.labels)) {
                let message = "spec.server.selector: no Server of its namespace has these labels";
                findings.problem(NO_TARGET, message.to_owned());
            }
        }
    }
    if let AnyClients::Authenticated(clients) = &spec.clients {
        known(index, name, clients, &mut findings);
    }
    findings
}

fn of_authorization_policy(
    lens: &mut Lens<'_>,
    settings: &Settings,
    name: &Name,
    spec: &AuthorizationPolicySpec,
) -> Findings {
    let mut findings = Findings::default();
    let (index, namespace) = (lens.index, &name.namespace);
    match &spec.target {
        PolicyTarget::Server(server) => {
            has_server(index, namespace, server, "spec.targetRef.name", &mut findings);
        }
        PolicyTarget::Namespace(other) if other != namespace => {
            let message = format!("spec.targetRef.name: {other} is not its own namespace; it admits nobody");
            findings.problem(NO_TARGET, message);
        }
        PolicyTarget::Namespace(_) => {
            if index.servers_in(namespace).next().is_none() {
                findings.warnings.push("spec.targetRef: its namespace has no Server".to_owned());
            }
        }
        PolicyTarget::Route(kind, route) => {
            let id = RouteId { name: Name::new(namespace.as_str(), route.as_str()), kind: *kind };
            let message = match index.route(&id) {
                None => Some(format!("spec.targetRef.name: {id} does not exist")),
                Some(route)
                    if !route.spec.parents.iter().any(|parent| parent.server(namespace).is_some()) =>
                {
                    Some(format!("spec.targetRef.name: {id} has no Server as its parent"))
                }
                Some(_) => None,
            };
            if let Some(message) = message {
                findings.problem(NO_TARGET, message);
            }
        }
    }
    if let Err(missing) = admit::required(lens, settings, namespace, spec) {
        findings.problem(NO_REF, format!("{}: {}", missing.path, missing.what));
    }
    match &spec.who {
        Some((_, WhoRef::Account(account))) => knows(index, name, account, &mut findings),
        None if spec.from.is_none() => findings
            .warnings
            .push("spec.requiredAuthenticationRefs: empty; it admits everybody from everywhere".to_owned()),
        _ => {}
    }
    findings
}

fn of_rate_limit(index: &Index, name: &Name, spec: &RateLimitSpec) -> Findings {
    let mut findings = Findings::default();
    has_server(index, &name.namespace, &spec.server, "spec.targetRef.name", &mut findings);
    let server_name = Name::new(name.namespace.as_str(), spec.server.as_str());
    if let Some(server) = index.server(&server_name).filter(|server| !has_rate_limits(server.spec.protocol)) {
        let protocol = server.spec.protocol.as_str();
        let message = format!("spec.targetRef: Server {server_name} speaks {protocol}, which has no limit");
        findings.problem(UNSUPPORTED, message);
    }
    if let Some((winner, _)) =
        index.rate_limits_of(&server_name).first().filter(|(winner, _)| *winner != name)
    {
        let message = format!("spec.targetRef: Server {server_name} goes by {winner}, which comes first");
        findings.problem(CONFLICTED, message);
    }
    for one in spec.overrides.iter().flat_map(|one| &one.clients) {
        knows(index, name, one, &mut findings);
    }
    findings
}

fn has_server(index: &Index, namespace: &str, server: &str, path: &str, findings: &mut Findings) {
    let name = Name::new(namespace, server);
    if index.server(&name).is_none() {
        findings.problem(NO_TARGET, format!("{path}: Server {name} does not exist"));
    }
}

/// Warns of ServiceAccounts and namespaces that nothing else speaks of: they may come later, or be misspelt.
fn known(index: &Index, name: &Name, clients: &Clients, findings: &mut Findings) {
    for account in &clients.accounts {
        knows(index, name, account, findings);
    }
    for (path, namespace) in
        clients.namespaces.iter().filter(|(_, namespace)| !index.knows_namespace(namespace))
    {
        findings.warnings.push(format!("{path}: Namespace {namespace} is not known"));
    }
}

fn knows(index: &Index, name: &Name, account: &AccountRef, findings: &mut Findings) {
    let of = account.resolve(&name.namespace);
    if !index.knows_account(&of) {
        findings.warnings.push(format!("{}: ServiceAccount {of} is not known", account.path));
    }
}

//! Pure. What of all that decides refers to nothing: backends and mirrors of the rule that has the request, the port that is
//! asked for, and what admits clients of the Servers that it comes to.

use crate::{
    World,
    answer::{Course, Endpoint},
    inbound::server_of,
};
use remora_destination::{
    index::RouteId,
    resources::{
        Name,
        policy::{PolicyTarget, ServerSelector},
    },
    view::{NO_REF, dead_references, policy_reports},
};
use std::collections::BTreeSet;

impl World<'_> {
    /// Adds what a course refers to and is not there.
    pub(crate) fn missing(&self, course: &Course, found: &mut BTreeSet<String>) {
        if let Some(rule) = &course.rule
            && let Some(number) = rule.number
        {
            self.of_route(&rule.of, number, found);
        }
        for backend in course.backends.iter().filter(|backend| backend.percent > 0.0) {
            if backend.endpoints.is_empty() && backend.of.starts_with("Service ") {
                found.insert(format!("{} has no endpoint", backend.of));
            }
        }
        let endpoints = course.backends.iter().flat_map(|backend| &backend.endpoints);
        let servers: BTreeSet<Name> =
            endpoints.filter_map(|endpoint: &Endpoint| server_of(endpoint)).collect();
        for server in servers {
            self.of_server(&server, found);
        }
    }

    /// References of a rule.
    fn of_route(&self, of: &str, number: usize, found: &mut BTreeSet<String>) {
        let Some((id, _)) = self.index.routes().find(|(id, _)| id.to_string() == of) else { return };
        let dead = dead_references(self.index, id).into_iter().filter(|one| one.rule == number);
        found.extend(dead.map(|one| format!("{id}: {}", one.told())));
    }

    /// References of what admits clients of a Server.
    fn of_server(&self, server: &Name, found: &mut BTreeSet<String>) {
        let Some(itself) = self.index.server(server) else { return };
        let namespace = server.namespace.as_str();
        let routes: Vec<&RouteId> = self.index.routes_of_server(server).map(|(id, _)| id).collect();
        let about = |target: &PolicyTarget| match target {
            PolicyTarget::Server(name) => *name == server.name,
            PolicyTarget::Namespace(name) => name == namespace,
            PolicyTarget::Route(kind, name) => {
                routes.iter().any(|id| id.kind == *kind && id.name.name == *name)
            }
        };
        let policies = self.index.authorization_policies(namespace).filter(|(_, spec)| about(&spec.target));
        let policies = policies.map(|(name, _)| format!("AuthorizationPolicy {name}"));
        let older = self.index.server_authorizations(namespace).filter(|(_, spec)| match &spec.servers {
            ServerSelector::Name(name) => *name == server.name,
            ServerSelector::Labels(labels) => labels.matches(&itself.labels),
        });
        let older = older.map(|(name, _)| format!("ServerAuthorization {name}"));
        let concerned: BTreeSet<String> = policies.chain(older).collect();
        if concerned.is_empty() {
            return;
        }
        for (name, report) in policy_reports(self.index, self.settings) {
            let [accepted] = &report.conditions;
            if concerned.contains(&name) && accepted.reason == NO_REF {
                found.insert(format!("{name}: {}", accepted.message));
            }
        }
    }
}

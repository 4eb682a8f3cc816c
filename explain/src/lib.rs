//! What becomes of a request, from manifests alone: the functions of the controller and of the proxies, one after the other,
//! without either.
//!
//! In reading order: [`question`] is what is asked; `client` who asks; `known` what its proxy knows of the
//! target; `sound` what no proxy takes for a request; `outbound` what it does with the request, `ingress` what instead in a gateway's pod, `backends` where that may lead; `inbound` what the server's proxy does; `missing` what of it refers to nothing;
//! [`answer`] is what comes out, and `words` has the words for it. Nothing is decided here: what a controller would say is
//! computed by `remora_destination::view`, written by its `wire`, read by `remora_runtime::api`, and put to
//! `remora_core` and the proxy's own functions as a proxy does.
#![warn(missing_docs)]

pub mod answer;
mod backends;
mod client;
mod inbound;
mod ingress;
mod known;
mod missing;
mod outbound;
pub mod question;
mod sound;
mod spoken;
mod words;

use answer::{Answer, Asked, Course, Verdict};
use question::{Destination, Question, Unanswerable};
use remora_destination::{
    index::{Addressing, Index},
    resources::Name,
    view::{Context, Settings, Target},
};
use remora_proxy::http::headers;
use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

/// What every step reads.
pub(crate) struct World<'a> {
    pub(crate) index: &'a Index,
    pub(crate) settings: &'a Settings,
    /// Who asks.
    pub(crate) client: client::Asker,
    /// What is asked.
    pub(crate) question: &'a Question,
}

/// Answers a question by what an index holds.
pub fn explain(index: &Index, settings: &Settings, question: &Question) -> Result<Answer, Unanswerable> {
    let mut notes = Vec::new();
    let client = client::Asker::of(index, settings, question, &mut notes);
    let shown = client.shown();
    let mut unresolved = BTreeSet::new();
    let (destination, request) = (question.destination(settings)?, question.request()?);
    let each = client.by_proxy();
    let mut world = World { index, settings, client, question };
    let heeded = each.iter().all(|client| client.sends.ingress);
    if request.headers().contains_key(headers::DST_OVERRIDE) && !heeded {
        notes.push("l5d-dst-override is removed unread, but by proxies in ingress mode".to_owned());
    }
    let targets = world.targets(&destination, &mut unresolved, &mut notes);
    let mut courses = Vec::new();
    for client in each {
        world.client = client;
        for (addr, service) in &targets {
            let course = if world.client.meshed {
                world.outbound(*addr, &request)
            } else {
                world.unmeshed(*addr, service.as_ref().map(|(name, port)| (name, *port)), &request)
            };
            world.missing(&course, &mut unresolved);
            courses.push(course);
        }
    }
    let verdict = verdict(&courses, &unresolved);
    Ok(Answer {
        verdict,
        client: shown,
        asked: Asked::of(question, &request),
        courses,
        unresolved: unresolved.into_iter().collect(),
        notes,
    })
}

fn verdict(courses: &[Course], unresolved: &BTreeSet<String>) -> Verdict {
    if !unresolved.is_empty() || courses.is_empty() {
        return Verdict::Unresolved;
    }
    if courses.iter().all(Course::is_admitted) { Verdict::Admitted } else { Verdict::Refused }
}

impl World<'_> {
    /// The addresses that a client dials, each with its Service and port, if it has one.
    fn targets(
        &self,
        destination: &Destination,
        unresolved: &mut BTreeSet<String>,
        notes: &mut Vec<String>,
    ) -> Vec<(SocketAddr, Option<(Name, u16)>)> {
        let (name, host, port) = match destination {
            Destination::Address(addr) => {
                let service = self.index.service_at(addr.ip()).map(|(name, _)| (name.clone(), addr.port()));
                return vec![(*addr, service)];
            }
            Destination::Service { name, host, port } => (name, host.as_deref(), *port),
        };
        let Some(service) = self.index.service(name) else {
            unresolved.insert(format!("Service {name} does not exist"));
            return Vec::new();
        };
        match (&service.addressing, host) {
            (Addressing::ExternalName, _) => {
                unresolved.insert(format!("Service {name} is an ExternalName: its name is DNS's business"));
                Vec::new()
            }
            (Addressing::ClusterIps(ips), None) => {
                let first = ips.iter().copied().min_by_key(IpAddr::is_ipv6);
                first.into_iter().map(|ip| (SocketAddr::new(ip, port), Some((name.clone(), port)))).collect()
            }
            (Addressing::ClusterIps(_) | Addressing::Headless, host) => {
                notes.push(format!(
                    "Service {name} has no cluster IP to ask: its clients dial its pods, and its routes do not hold"
                ));
                let found = self.endpoints((name, host, port), &Context::default());
                let found: Vec<_> = found.into_iter().map(|endpoint| (endpoint.addr, None)).collect();
                if found.is_empty() {
                    unresolved.insert(format!("Service {name} has no endpoint to dial"));
                }
                found
            }
        }
    }

    /// What the name of a balancer's destination is.
    pub(crate) fn service_of(&self, authority: &str) -> Option<(Name, Option<String>, u16)> {
        match Target::parse(authority, &self.settings.cluster_domain) {
            Ok(Target::Service { name, host, port }) => Some((name, host, port)),
            Ok(Target::Addr(_)) | Err(_) => None,
        }
    }
}

#[cfg(test)]
mod tests;

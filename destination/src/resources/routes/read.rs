//! Pure. Reads a route strictly: what the schema of its kind does not allow is a mistake with its path.

use super::{
    BackendRef, HttpMatch, Match, PathMatch, Retry, Route, RouteKind, RouteSpec, Rule, Timeouts, filters,
    matches::{self, Patterns},
    parts::{backend_ref, optional, parent_ref},
};
use crate::resources::strict::{Fields, Mistakes, is_dns_name, join, shown};
use serde_json::Value;
use std::sync::Arc;

/// Most parents of a route. Gateway API.
const MAX_PARENTS: usize = 32;
/// Most hosts of an HTTPRoute or GRPCRoute. Gateway API.
const MAX_HOSTNAMES: usize = 16;
/// Most server names of a TLSRoute. Gateway API.
const MAX_SERVER_NAMES: usize = 1024;
/// Most rules of a route, and most backends of a rule. Gateway API.
const MAX_RULES: usize = 16;
/// Most matches of a rule. Gateway API.
const MAX_MATCHES: usize = 64;
/// Most matches of all rules together. Gateway API.
const MAX_ALL_MATCHES: usize = 128;
/// Most statuses that are tried again: there are no more.
const MAX_CODES: usize = 200;
/// Most tries. Gateway API has no bound; no proxy of ours would get there.
const MAX_ATTEMPTS: u32 = 1000;

/// Bytes that metadata, queue, balancer and name of a backend take in a message, which are not written in a route.
const REFERENCE: usize = 256;

impl Route {
    /// Reads one, or says everything that is wrong with it.
    pub(in crate::resources) fn read(kind: RouteKind, value: &Value) -> Result<Self, Vec<(String, String)>> {
        let mut mistakes = Mistakes::default();
        // The status is other controllers' word, or ours of another time.
        let known = ["apiVersion", "kind", "metadata", "spec", "status"];
        let Some(fields) = mistakes.object("", value, &known) else { return Err(mistakes.0) };
        let metadata = mistakes.metadata(fields, "web");
        let value = mistakes.required("", fields, "spec");
        let spec = value.and_then(|value| spec(kind, value, &mut mistakes));
        match (metadata, spec) {
            (Some(metadata), Some(spec)) if mistakes.0.is_empty() => {
                Ok(Self { metadata, spec: Arc::new(spec) })
            }
            _ => Err(mistakes.0),
        }
    }
}

fn spec(kind: RouteKind, value: &Value, mistakes: &mut Mistakes) -> Option<RouteSpec> {
    let known: &[&str] = match kind {
        RouteKind::Tcp => &["parentRefs", "rules", "useDefaultGateways"],
        RouteKind::LinkerdHttp => &["parentRefs", "hostnames", "rules"],
        _ => &["parentRefs", "hostnames", "rules", "useDefaultGateways"],
    };
    let fields = mistakes.object("spec", value, known)?;
    let parents = mistakes.list("spec.parentRefs", fields.get("parentRefs"), MAX_PARENTS);
    let parents: Vec<_> =
        parents.iter().filter_map(|(path, value)| parent_ref(path, value, mistakes)).collect();
    for (at, parent) in parents.iter().enumerate() {
        if parents.iter().take(at).any(|earlier| earlier == parent) {
            mistakes.add(&format!("spec.parentRefs[{at}]"), "the same parent a second time");
        }
    }
    let most = if kind == RouteKind::Tls { MAX_SERVER_NAMES } else { MAX_HOSTNAMES };
    let hostnames = mistakes.list("spec.hostnames", fields.get("hostnames"), most);
    let hostnames = hostnames.iter().filter_map(|(path, value)| mistakes.hostname(path, value)).collect();
    let mut patterns = Patterns::default();
    let rules = rules(kind, fields, &mut patterns, mistakes);
    let backends: usize = rules.iter().map(|rule| 1 + rule.backends.len()).sum();
    let size = value.to_string().len() + REFERENCE * (1 + backends);
    let Patterns { count, warnings } = patterns;
    Some(RouteSpec { kind, parents, hostnames, rules, patterns: count, size, warnings })
}

fn rules(kind: RouteKind, fields: Fields<'_>, patterns: &mut Patterns, mistakes: &mut Mistakes) -> Vec<Rule> {
    let for_bytes = matches!(kind, RouteKind::Tls | RouteKind::Tcp);
    let Some(value) = fields.get("rules") else {
        if for_bytes {
            mistakes.add("spec.rules", "missing");
        }
        // Gateway API's default: one rule that matches every request.
        return vec![Rule { matches: vec![every(kind)], ..Rule::default() }];
    };
    let listed = mistakes.list("spec.rules", Some(value), MAX_RULES);
    if value.as_array().is_some_and(Vec::is_empty) {
        mistakes.add("spec.rules", "empty; a route has a rule at least");
    }
    let mut names: Vec<&str> = Vec::new();
    let mut read = Vec::new();
    for (path, value) in &listed {
        read.extend(rule(kind, path, value, patterns, mistakes));
        let Some(name) = value.get("name").and_then(Value::as_str) else { continue };
        if !is_dns_name(name) || names.contains(&name) {
            let reason = format!("{:?} is no name of a rule, or another has it", shown(name));
            mistakes.add(&join(path, "name"), reason);
        }
        names.push(name);
    }
    let matches: usize = read.iter().map(|rule: &Rule| rule.matches.len()).sum();
    if matches > MAX_ALL_MATCHES {
        mistakes.add("spec.rules", format!("{matches} matches, more than {MAX_ALL_MATCHES}"));
    }
    read
}

fn every(kind: RouteKind) -> Match {
    match kind {
        RouteKind::Grpc => Match::Grpc(matches::GrpcMatch::default()),
        _ => Match::Http(HttpMatch::every()),
    }
}

fn rule(
    kind: RouteKind,
    path: &str,
    value: &Value,
    patterns: &mut Patterns,
    mistakes: &mut Mistakes,
) -> Option<Rule> {
    let known: &[&str] = match kind {
        RouteKind::Http => {
            &["name", "matches", "filters", "backendRefs", "timeouts", "retry", "sessionPersistence"]
        }
        RouteKind::LinkerdHttp => &["matches", "filters", "backendRefs", "timeouts"],
        RouteKind::Grpc => &["name", "matches", "filters", "backendRefs", "sessionPersistence"],
        RouteKind::Tls | RouteKind::Tcp => &["name", "backendRefs"],
    };
    let fields = mistakes.object(path, value, known)?;
    if let RouteKind::Tls | RouteKind::Tcp = kind {
        let backends = backends(path, fields, None, mistakes);
        if backends.is_empty() {
            mistakes.required(path, fields, "backendRefs");
        }
        return Some(Rule { backends, ..Rule::default() });
    }
    let matches = matches(kind, path, fields, patterns, mistakes);
    let prefix = |only: &Match| matches!(only, Match::Http(HttpMatch { path: PathMatch::Prefix(_), .. }));
    let one_prefix = matches.len() == 1 && matches.iter().all(prefix);
    let context = filters::Context { kind, one_prefix, warnings: Vec::new().into() };
    let filters = filters::list(path, fields, &context, mistakes);
    let backends = backends(path, fields, Some(&context), mistakes);
    let redirects = |filter: &filters::Filter| matches!(filter, filters::Filter::Redirect(_));
    if !backends.is_empty() && filters.iter().any(redirects) {
        let reason = "a rule that redirects its requests sends none to a backend";
        mistakes.add(&join(path, "backendRefs"), reason);
    }
    patterns.warnings.extend(context.warnings.into_inner());
    Some(Rule {
        matches,
        filters,
        backends,
        timeouts: optional(path, fields, "timeouts", |path, value| timeouts(kind, path, value, mistakes)),
        retry: optional(path, fields, "retry", |path, value| retry(path, value, mistakes)),
        session_persistence: fields.get("sessionPersistence").is_some(),
    })
}

fn matches(
    kind: RouteKind,
    path: &str,
    fields: Fields<'_>,
    patterns: &mut Patterns,
    mistakes: &mut Mistakes,
) -> Vec<Match> {
    let listed = mistakes.list(&join(path, "matches"), fields.get("matches"), MAX_MATCHES);
    if listed.is_empty() {
        return vec![every(kind)];
    }
    let one = |(path, value): &(String, &Value)| match kind {
        RouteKind::Grpc => matches::grpc(path, value, patterns, mistakes),
        _ => matches::http(path, value, patterns, mistakes),
    };
    listed.iter().filter_map(one).collect()
}

fn backends(
    path: &str,
    fields: Fields<'_>,
    http: Option<&filters::Context>,
    mistakes: &mut Mistakes,
) -> Vec<BackendRef> {
    let listed = mistakes.list(&join(path, "backendRefs"), fields.get("backendRefs"), MAX_RULES);
    listed.iter().filter_map(|(path, value)| backend_ref(path, value, http, mistakes)).collect()
}

fn timeouts(kind: RouteKind, path: &str, value: &Value, mistakes: &mut Mistakes) -> Option<Timeouts> {
    let fields = mistakes.object(path, value, &["request", "backendRequest"])?;
    let mut time = |name: &str| {
        optional(path, fields, name, |path, value| match kind {
            // Linkerd's own kind has Go's times.
            RouteKind::LinkerdHttp => mistakes.duration(path, value),
            _ => mistakes.gateway_duration(path, value),
        })
    };
    let (request, backend_request) = (time("request"), time("backendRequest"));
    if let (Some(request), Some(backend)) = (request, backend_request)
        && !request.is_zero()
        && backend > request
    {
        mistakes.add(&join(path, "backendRequest"), "longer than request");
    }
    Some(Timeouts { request, backend_request })
}

fn retry(path: &str, value: &Value, mistakes: &mut Mistakes) -> Option<Retry> {
    let fields = mistakes.object(path, value, &["codes", "attempts", "backoff"])?;
    let listed = mistakes.list(&join(path, "codes"), fields.get("codes"), MAX_CODES);
    let codes = listed.iter().filter_map(|(path, value)| mistakes.within(path, value, 400, 599));
    let mut codes: Vec<u16> = codes.filter_map(|code| u16::try_from(code).ok()).collect();
    codes.sort_unstable();
    codes.dedup();
    let attempts =
        optional(path, fields, "attempts", |path, value| mistakes.within(path, value, 0, MAX_ATTEMPTS));
    let backoff = optional(path, fields, "backoff", |path, value| mistakes.gateway_duration(path, value));
    Some(Retry { codes, attempts, backoff })
}

//! Pure. The words for what decides: conditions, why one is not met, filters, timeouts, retries, clients.

use crate::answer::{Retry, Timeouts};
use remora_core::{
    backoff::Backoff,
    breaker::Accrual,
    policy::{Authentication, Authorization, ResourceRef},
    profile::{BudgetLimits, RequestMatch, StatusRange},
    rate::Quota,
    retry::MAX_RETRIES,
    route::{
        self, Backend, BackendTarget, Criterion, FailWith, Filter, GrpcCodes, HeaderModifier, HostMatch,
        HttpMatch, HttpRoute, HttpRule, Loss, PathMatch, Ratio, Redirect, Replacement, RetryPolicy, Rewrite,
        Unmet, ValueMatch,
    },
};
use std::time::Duration;

/// A resource as people name it. Kinds that Linkerd's metrics have in lower case are written as manifests write them.
pub(crate) fn resource(of: &ResourceRef) -> String {
    let kind = match &*of.kind {
        "default" => return format!("default {}", of.name),
        "server" => "Server",
        "authorizationpolicy" => "AuthorizationPolicy",
        "serverauthorization" => "ServerAuthorization",
        "httplocalratelimitpolicy" => "HTTPLocalRateLimitPolicy",
        kind => kind,
    };
    let group =
        if &*of.group == "policy.linkerd.io" && kind == "HTTPRoute" { ".policy.linkerd.io" } else { "" };
    let namespace = if of.namespace.is_empty() { String::new() } else { format!("{}/", of.namespace) };
    let port = if of.port == 0 { String::new() } else { format!(":{}", of.port) };
    format!("{kind}{group} {namespace}{}{port}", of.name)
}

/// What a backend is.
pub(crate) fn backend(backend: &Backend, cluster_domain: &str) -> String {
    match &backend.target {
        BackendTarget::Balance { authority, .. } => service(authority, cluster_domain),
        BackendTarget::Forward(endpoint) => endpoint.addr.to_string(),
        BackendTarget::Original(addr) => addr.to_string(),
        BackendTarget::Nowhere(_) => "nowhere".to_owned(),
    }
}

/// `<svc>.<ns>.svc.<domain>:<port>` as people name it.
pub(crate) fn service(authority: &str, cluster_domain: &str) -> String {
    let named = || {
        let (name, port) = authority.rsplit_once(':')?;
        let (name, namespace) = name.strip_suffix(&format!(".svc.{cluster_domain}"))?.split_once('.')?;
        Some(format!("Service {namespace}/{name}:{port}"))
    };
    named().unwrap_or_else(|| authority.to_owned())
}

/// What a rule asks for: any one of these.
pub(crate) fn matches(route: &HttpRoute, rule: &HttpRule) -> Vec<String> {
    let hosts = match route.hosts.as_slice() {
        [] => None,
        hosts => Some(format!("host {}", self::hosts(hosts))),
    };
    let one = |conditions: Option<&HttpMatch>| {
        let conditions = conditions.map(self::conditions).unwrap_or_default();
        let all: Vec<String> = hosts.iter().cloned().chain(conditions).collect();
        if all.is_empty() { "everything".to_owned() } else { all.join(", ") }
    };
    if rule.matches.is_empty() {
        return vec![one(None)];
    }
    rule.matches.iter().map(|conditions| one(Some(conditions))).collect()
}

fn hosts(hosts: &[HostMatch]) -> String {
    let one = |host: &HostMatch| match host {
        HostMatch::Exact(name) => name.clone(),
        HostMatch::Suffix(labels) => format!("*.{}", labels.join(".")),
    };
    hosts.iter().map(one).collect::<Vec<_>>().join(" or ")
}

fn conditions(wanted: &HttpMatch) -> Vec<String> {
    let method = wanted.method.iter().map(|method| format!("method {method}"));
    let path = wanted.path.iter().filter_map(path);
    let headers = wanted.headers.iter().map(|(name, wanted)| format!("header {name} is {}", value(wanted)));
    let query = wanted.query.iter().map(|(name, wanted)| format!("query {name} is {}", value(wanted)));
    method.chain(path).chain(headers).chain(query).collect()
}

/// Nothing for what every path is.
fn path(pattern: &PathMatch) -> Option<String> {
    Some(match pattern {
        PathMatch::Exact(path) => format!("path {path}"),
        PathMatch::Prefix(prefix) if prefix.trim_end_matches('/').is_empty() => return None,
        PathMatch::Prefix(prefix) => format!("path below {prefix}"),
        PathMatch::Regex(regex) => format!("path like {}", pattern_of(regex.as_str())),
        PathMatch::AnyService(method) => format!("gRPC method {method}"),
    })
}

fn value(wanted: &ValueMatch) -> String {
    match wanted {
        ValueMatch::Exact(value) => String::from_utf8_lossy(value).into_owned(),
        ValueMatch::Regex(regex) => format!("like {}", pattern_of(regex.as_str())),
    }
}

/// As it was written: without the anchors that it was given.
fn pattern_of(anchored: &str) -> &str {
    anchored.strip_prefix("^(?:").and_then(|rest| rest.strip_suffix(")$")).unwrap_or(anchored)
}

/// Why a rule of a route does not have the request.
pub(crate) fn loss(route: &HttpRoute, rule: Option<&HttpRule>, loss: &Loss) -> String {
    match loss {
        Loss::Host => format!("the host is not {}", hosts(&route.hosts)),
        Loss::Unmet(unmet) => {
            let matches = rule.map_or(&[][..], |rule| &rule.matches);
            let all: Vec<String> =
                matches.iter().zip(unmet).map(|(wanted, unmet)| self::unmet(wanted, *unmet)).collect();
            all.join("; or ")
        }
        Loss::Worse(by) => format!("it matches too, but {}", worse(*by)),
    }
}

fn unmet(wanted: &HttpMatch, unmet: Unmet) -> String {
    match unmet {
        Unmet::Method => format!("the method is not {}", wanted.method.as_deref().unwrap_or_default()),
        Unmet::Path => match &wanted.path {
            Some(PathMatch::Exact(path)) => format!("the path is not {path}"),
            Some(PathMatch::Prefix(prefix)) => format!("the path is not below {prefix}"),
            Some(PathMatch::Regex(regex)) => format!("the path is not like {}", pattern_of(regex.as_str())),
            Some(PathMatch::AnyService(method)) => format!("the gRPC method is not {method}"),
            None => "the path is another".to_owned(),
        },
        Unmet::Header(at) => named(wanted.headers.get(at), "header"),
        Unmet::Query(at) => named(wanted.query.get(at), "query"),
    }
}

fn named(condition: Option<&(String, ValueMatch)>, what: &str) -> String {
    condition.map_or_else(String::new, |(name, wanted)| format!("the {what} {name} is not {}", value(wanted)))
}

fn worse(by: Criterion) -> &'static str {
    match by {
        Criterion::Host => "it names less of the host",
        Criterion::ExactPath => "it does not name the path exactly",
        Criterion::LongerPath => "it names less of the path",
        Criterion::GrpcMethod => "it does not name the method",
        Criterion::Method => "it names no method",
        Criterion::Headers => "it asks for fewer headers",
        Criterion::Query => "it asks for fewer query parameters",
        Criterion::Order => "it is as good and comes later",
    }
}

/// A condition of a ServiceProfile.
pub(crate) fn profile_condition(condition: &RequestMatch) -> String {
    let list = |all: &[RequestMatch]| all.iter().map(profile_condition).collect::<Vec<_>>();
    match condition {
        RequestMatch::All(all) if all.is_empty() => "everything".to_owned(),
        RequestMatch::Any(any) if any.is_empty() => "nothing".to_owned(),
        RequestMatch::All(all) => list(all).join(", "),
        RequestMatch::Any(any) => format!("({})", list(any).join(" or ")),
        RequestMatch::Not(not) => format!("not ({})", profile_condition(not)),
        RequestMatch::Method(method) => format!("method {method}"),
        RequestMatch::Path(pattern) => format!("path like {}", pattern.as_str()),
    }
}

/// What a filter does.
pub(crate) fn filter(filter: &Filter, cluster_domain: &str) -> String {
    match filter {
        Filter::Request(modifier) => format!("request headers: {}", modified(modifier)),
        Filter::Response(modifier) => format!("response headers: {}", modified(modifier)),
        Filter::Redirect(redirect) => redirected(redirect),
        Filter::Fail(failure) => {
            let with = match failure.with {
                FailWith::Http(status) => format!("{status}"),
                FailWith::Grpc(code) => format!("gRPC status {code}"),
            };
            format!("fails {} with {with}: {}", share(failure.share), failure.message)
        }
        Filter::Rewrite(rewrite) => rewritten(rewrite),
        Filter::Mirror(mirror) => {
            format!("copies {} to {}", share(mirror.share), backend(&mirror.backend, cluster_domain))
        }
    }
}

fn share(share: Ratio) -> String {
    match share.parts() {
        (of, all) if of == all => "all".to_owned(),
        (of, all) => format!("{of} of {all}"),
    }
}

fn modified(modifier: &HeaderModifier) -> String {
    let field = |what: &'static str| {
        move |(name, value): &(String, Vec<u8>)| format!("{what} {name}: {}", String::from_utf8_lossy(value))
    };
    let add = modifier.add.iter().map(field("add"));
    let set = modifier.set.iter().map(field("set"));
    let remove = modifier.remove.iter().map(|name| format!("remove {name}"));
    add.chain(set).chain(remove).collect::<Vec<_>>().join(", ")
}

fn redirected(redirect: &Redirect) -> String {
    let parts = [
        redirect.scheme.map(|scheme| format!("scheme {}", scheme.as_str())),
        redirect.host.as_ref().map(|host| format!("host {host}")),
        redirect.port.map(|port| format!("port {port}")),
        redirect.path.as_ref().map(replaced),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    format!("redirects with {}: {}", redirect.status, parts.join(", "))
}

fn rewritten(rewrite: &Rewrite) -> String {
    let parts =
        [rewrite.authority.as_ref().map(|host| format!("host {host}")), rewrite.path.as_ref().map(replaced)];
    format!("rewrites: {}", parts.into_iter().flatten().collect::<Vec<_>>().join(", "))
}

fn replaced(path: &Replacement) -> String {
    match path {
        Replacement::Whole(path) => format!("path {path}"),
        Replacement::Prefix(prefix) if prefix.is_empty() => "the prefix dropped".to_owned(),
        Replacement::Prefix(prefix) => format!("prefix {prefix}"),
    }
}

/// Timeouts of a route; nothing where there is none.
pub(crate) fn timeouts(timeouts: route::Timeouts) -> Option<Timeouts> {
    let seconds = |time: Option<Duration>| time.map(|time| time.as_secs_f64());
    (!timeouts.is_empty()).then(|| Timeouts {
        request: seconds(timeouts.request),
        response: seconds(timeouts.response),
        idle: seconds(timeouts.idle),
    })
}

/// When a request is sent again by a route.
pub(crate) fn retry(policy: &RetryPolicy) -> Retry {
    let statuses = policy.statuses.iter().copied().map(range);
    let Backoff { min, max, .. } = policy.backoff;
    Retry {
        // Of a proxy whose own setting says nothing else.
        limit: Some(policy.limit.min(MAX_RETRIES)),
        asked: Some(policy.limit).filter(|asked| *asked > MAX_RETRIES),
        on: statuses.chain(codes(policy.codes)).collect(),
        timeout: policy.timeout.map(|time| time.as_secs_f64()),
        backoff: Some(format!("{min:?} to {max:?}")),
        budget: None,
    }
}

fn range(range: StatusRange) -> String {
    if range.min() == range.max() {
        range.min().to_string()
    } else {
        format!("{}-{}", range.min(), range.max())
    }
}

fn codes(codes: GrpcCodes) -> impl Iterator<Item = String> {
    (0..32_u16).filter(move |code| codes.contains(*code)).map(|code| format!("gRPC status {code}"))
}

/// What bounds the retries of a ServiceProfile.
pub(crate) fn budget(limits: &BudgetLimits) -> String {
    let (ratio, least, ttl) = (limits.ratio(), limits.min_per_second(), limits.ttl());
    format!("{:.0} % of the requests of {ttl:?}, and {least} per second", ratio * 100.0)
}

/// When an endpoint is left out.
pub(crate) fn breaker(accrual: &Accrual) -> String {
    let Backoff { min, max, .. } = accrual.backoff;
    let failures =
        (accrual.max_failures > 0).then(|| format!("after {} failures in a row", accrual.max_failures));
    let rate = accrual.rate.map(|rate| format!("below {} % of successes", rate.threshold * 100.0));
    let when: Vec<String> = failures.into_iter().chain(rate).collect();
    format!("{}, for {min:?} to {max:?}", when.join(" or "))
}

/// How often somebody may ask.
pub(crate) fn quota(quota: &Quota) -> String {
    format!("{} requests per second", quota.burst)
}

/// Why an authorization does not admit a client: who it should be, or where.
pub(crate) fn refusal(one: &Authorization, client: &str, holds: bool) -> String {
    if !holds {
        return match &one.authentication {
            Authentication::Unauthenticated => String::new(),
            Authentication::TlsUnauthenticated => "it admits clients with TLS of the mesh".to_owned(),
            Authentication::TlsAuthenticated { identities, suffixes } => {
                let identities = identities.iter().map(|identity| identity.as_str().to_owned());
                let suffixes = suffixes.iter().map(|suffix| {
                    if suffix.labels.is_empty() {
                        "any identity".to_owned()
                    } else {
                        format!("*.{}", suffix.labels.join("."))
                    }
                });
                let wanted: Vec<String> = identities.chain(suffixes).collect();
                format!("it admits {}, and the client is {client}", some(&wanted))
            }
        };
    }
    let networks: Vec<String> = one
        .networks
        .iter()
        .map(|network| {
            let holes = network.except.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            if holes.is_empty() {
                network.net.to_string()
            } else {
                format!("{} without {holes}", network.net)
            }
        })
        .collect();
    format!("it admits clients from {}", some(&networks))
}

/// The first few of a list.
fn some(all: &[String]) -> String {
    const SHOWN: usize = 4;
    let shown = all.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    match all.len().checked_sub(SHOWN).filter(|more| *more > 0) {
        Some(more) => format!("{shown} and {more} more"),
        None if all.is_empty() => "nobody".to_owned(),
        None => shown,
    }
}

/// The server names of a TLS route.
pub(crate) fn snis(snis: &[HostMatch]) -> String {
    if snis.is_empty() { "every server name".to_owned() } else { format!("server name {}", hosts(snis)) }
}

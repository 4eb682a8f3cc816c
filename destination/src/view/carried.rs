//! Pure. What of a route can be told to proxies, to all of them or to Remora's only, and what happens instead of the rest:
//! it is never left out without a word.

use crate::{
    index::Route,
    resources::{
        RouteKind,
        routes::{Filter, GrpcMatch, GrpcName, HeaderEdit, Match, Rule},
    },
};

use remora_core::route::{Untouchable, may_modify};

/// What kinds of routes are about. In this order one comes before the other on a port that has both. Contract 3.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// gRPC.
    Grpc,
    /// HTTP.
    Http,
    /// TLS of the application's own, by server name.
    Tls,
    /// Bytes.
    Tcp,
}

/// Something that a route asks for and does not get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unsupported {
    /// The path of the field.
    pub(super) path: String,
    /// Why not, and what happens instead.
    pub(super) reason: String,
    /// What happens instead.
    pub(super) effect: Effect,
    /// Who does not get it.
    pub(super) by: Whom,
}

/// Proxies that do not get something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whom {
    /// Nobody gets it.
    All,
    /// Those that are told in Linkerd's API alone, which has no words for it. Ours are told in their own.
    Linkerds,
}

/// What happens instead of something that cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Requests of this rule fail.
    Rule(usize),
    /// Requests of this rule that would go to this backend fail.
    Backend(usize, usize),
    /// Everything else holds without it.
    Nothing,
}

impl Family {
    /// Of a kind of route.
    pub fn of(kind: RouteKind) -> Self {
        match kind {
            RouteKind::Grpc => Self::Grpc,
            RouteKind::Http | RouteKind::LinkerdHttp => Self::Http,
            RouteKind::Tls => Self::Tls,
            RouteKind::Tcp => Self::Tcp,
        }
    }
}

/// Everything that a route asks for and does not get.
pub(super) fn unsupported(route: &Route) -> Vec<Unsupported> {
    let mut found: Vec<Unsupported> = route
        .problems
        .iter()
        .map(|(annotation, reason)| Unsupported {
            path: format!("metadata.annotations[{annotation}]"),
            reason: format!("{reason}; it is ignored"),
            effect: Effect::Nothing,
            by: Whom::All,
        })
        .collect();
    let kind = route.spec.kind;
    for (at, rule) in route.spec.rules.iter().enumerate() {
        let path = format!("spec.rules[{at}]");
        if at > 0 && matches!(kind, RouteKind::Tls | RouteKind::Tcp) {
            let reason = "connections take the first rule: this one is never used".to_owned();
            found.push(Unsupported { path, reason, effect: Effect::Nothing, by: Whom::All });
            continue;
        }
        for (number, filter) in rule.filters.iter().enumerate() {
            let Some((field, reason, by)) = refusal(kind, filter) else { continue };
            let path = format!("{path}.filters[{number}].{field}");
            let reason = format!("{reason}; requests of this rule fail{}", by.shown());
            found.push(Unsupported { path, reason, effect: Effect::Rule(at), by });
        }
        for (backend, target) in rule.backends.iter().enumerate() {
            for (number, filter) in target.filters.iter().enumerate() {
                let Some((field, reason, by)) = refusal(kind, filter) else { continue };
                let path = format!("{path}.backendRefs[{backend}].filters[{number}].{field}");
                let reason = format!("{reason}; requests that would go to this backend fail{}", by.shown());
                found.push(Unsupported { path, reason, effect: Effect::Backend(at, backend), by });
            }
        }
        found.extend(unmatched(&path, rule));
        if rule.session_persistence {
            found.push(Unsupported {
                path: format!("{path}.sessionPersistence"),
                reason: "there is none here; requests of one client go to any endpoint".to_owned(),
                effect: Effect::Nothing,
                by: Whom::All,
            });
        }
    }
    found
}

/// Everything that a route asks of a Server and does not get: a Server has one place to send to, its own pod.
pub(super) fn unsupported_by_servers(route: &Route) -> Vec<Unsupported> {
    let mut found = Vec::new();
    for (at, rule) in route.spec.rules.iter().enumerate() {
        let path = format!("spec.rules[{at}]");
        for (number, filter) in rule.filters.iter().enumerate() {
            let Some((field, reason)) = refusal_by_servers(route.spec.kind, filter) else { continue };
            let path = format!("{path}.filters[{number}].{field}");
            let reason = format!("{reason}; requests of this rule fail");
            found.push(Unsupported { path, reason, effect: Effect::Rule(at), by: Whom::All });
        }
        found.extend(unmatched(&path, rule));
        let useless = [
            ("backendRefs", !rule.backends.is_empty()),
            ("timeouts", rule.timeouts.is_some()),
            ("retry", rule.retry.is_some()),
            ("sessionPersistence", rule.session_persistence),
        ];
        found.extend(useless.into_iter().filter(|(_, is_there)| *is_there).map(|(field, _)| Unsupported {
            path: format!("{path}.{field}"),
            reason: "a Server answers itself, once; the rule holds without it".to_owned(),
            effect: Effect::Nothing,
            by: Whom::All,
        }));
    }
    found
}

/// The field of a filter that cannot be applied to what comes to a Server, and why.
fn refusal_by_servers(kind: RouteKind, filter: &Filter) -> Option<(String, String)> {
    if let Some((field, why, Whom::All)) = refusal(kind, filter) {
        return Some((field, why));
    }
    let unsaid = filter.is_unsaid(kind) || matches!(filter, Filter::ResponseHeaders(_));
    let why = || format!("Linkerd's API of Servers cannot carry {}", filter.name());
    unsaid.then(|| (filter.field().to_owned(), why()))
}

impl Whom {
    fn shown(self) -> &'static str {
        match self {
            Self::All => "",
            Self::Linkerds => " in Linkerd's proxies",
        }
    }
}

/// The field of a filter that cannot be applied, why, and by whom not.
fn refusal(kind: RouteKind, filter: &Filter) -> Option<(String, String, Whom)> {
    let field = filter.field();
    let untouchable = match filter {
        Filter::RequestHeaders(edit) => untouchable(field, edit, true),
        Filter::ResponseHeaders(edit) => untouchable(field, edit, false),
        Filter::Other(name) => Some((field.to_owned(), format!("{name} is not supported"))),
        Filter::Redirect(_) | Filter::Rewrite(_) | Filter::Mirror(_) => None,
    };
    if let Some((field, why)) = untouchable {
        return Some((field, why, Whom::All));
    }
    let unsaid = || {
        let why = format!("Linkerd's API cannot carry {}", filter.name());
        (field.to_owned(), why, Whom::Linkerds)
    };
    filter.is_unsaid(kind).then(unsaid)
}

impl Filter {
    /// Has Linkerd's API no words for it on this kind of route?
    pub(crate) fn is_unsaid(&self, kind: RouteKind) -> bool {
        match self {
            Self::Rewrite(_) | Self::Mirror(_) => true,
            Self::ResponseHeaders(_) => kind == RouteKind::Grpc,
            Self::RequestHeaders(_) | Self::Redirect(_) | Self::Other(_) => false,
        }
    }
}

/// The first header that proxies let no filter change.
fn untouchable(field: &str, edit: &HeaderEdit, request: bool) -> Option<(String, String)> {
    let of = |list: &str, name: &str, value: Option<&str>| {
        let why = match may_modify(name) {
            // To set it is to tell the server another host, if it is one.
            Err(Untouchable::Host) if request && list == "set" => {
                let host = value.is_some_and(|value| http::uri::Authority::try_from(value).is_ok());
                (!host).then(|| "its value is no host".to_owned())
            }
            Err(Untouchable::Host) => Some("it can be set in requests only".to_owned()),
            Err(why) => Some(why.to_string()),
            Ok(()) => None,
        };
        Some((format!("{field}.{list}"), format!("{name} cannot be changed: {}", why?)))
    };
    let set = edit.set.iter().find_map(|(name, value)| of("set", name, Some(value)));
    let add = || edit.add.iter().find_map(|(name, value)| of("add", name, Some(value)));
    let remove = || edit.remove.iter().find_map(|name| of("remove", name, None));
    set.or_else(add).or_else(remove)
}

/// Matches that Linkerd's API has no words for.
fn unmatched<'a>(path: &'a str, rule: &'a Rule) -> impl Iterator<Item = Unsupported> + 'a {
    let listed = rule.matches.iter().enumerate().filter(|(_, wanted)| !can_match(wanted));
    listed.map(move |(at, _)| Unsupported {
        path: format!("{path}.matches[{at}].method.type"),
        reason: "Linkerd's API cannot carry regular expressions here; this match matches nothing".to_owned(),
        effect: Effect::Nothing,
        by: Whom::All,
    })
}

/// Has Linkerd's API words for this match? A rule of which no match can be said is not in the message.
pub fn can_match(wanted: &Match) -> bool {
    let Match::Grpc(GrpcMatch { service, method, .. }) = wanted else { return true };
    let regex = |name: &Option<GrpcName>| matches!(name, Some(GrpcName::Regex(_)));
    !regex(service) && !regex(method)
}

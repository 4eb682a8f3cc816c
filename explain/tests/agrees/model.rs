//! What should become of a request, by Gateway API's HTTPRoute and GAMMA, Linkerd's policy resources and the rules that
//! `docs/routes.md` and `docs/policy.md` state. Read naively, on plain data.

use crate::{
    draw::{
        Exchange, Filter, MESH_TLS, Match, Mesh, NETWORKS, PLAIN, Policy, Request, Route, Rule, SERVERS,
        STRICT, Server, Target, Who, profile::Profile,
    },
    routes,
};

/// What becomes of a request.
#[derive(Debug, PartialEq)]
pub(crate) enum Outcome {
    /// The client's proxy answers with this status, and a place to ask instead.
    Answered(u16, Option<String>),
    /// It is sent to one of these Services, so many times in a hundred, where each pod answers like this.
    Sent(Vec<(String, u32, Vec<Answered>)>),
}

/// A status, and the rates to which the client is held; 200 is the application's, 0 the end of a connection.
pub(crate) type Answered = (u16, Vec<u32>);

impl Outcome {
    /// Does it pass, or lead elsewhere, whoever is picked?
    pub(crate) fn is_fine(&self) -> bool {
        match self {
            Self::Answered(_, location) => location.is_some(),
            Self::Sent(to) => {
                to.iter().all(|(.., statuses)| statuses.iter().all(|(status, _)| *status == 200))
            }
        }
    }

    /// For counting what was met.
    pub(crate) fn kind(&self) -> String {
        match self {
            Self::Answered(status, _) => status.to_string(),
            Self::Sent(to) if to.len() > 1 && to.iter().any(|(.., statuses)| statuses[0].0 == 500) => {
                "a share of 500".to_owned()
            }
            Self::Sent(to) => match to[0].2[0].0 {
                0 => "ended".to_owned(),
                status => status.to_string(),
            },
        }
    }
}

/// A request on its way.
#[derive(Clone, Debug)]
struct Asked {
    method: &'static str,
    host: String,
    path: String,
    query: Option<String>,
    headers: Vec<(&'static str, &'static str)>,
}

impl Asked {
    fn of(request: &Request) -> Self {
        Self {
            method: request.method,
            host: request.host.to_owned(),
            path: request.path.to_owned(),
            query: request.query.map(str::to_owned),
            headers: request.headers.clone(),
        }
    }

    fn view(&self) -> routes::Request<'_> {
        routes::Request {
            method: self.method,
            authority: &self.host,
            path: &self.path,
            query: self.query.as_deref(),
            headers: self.headers.clone(),
        }
    }
}

/// What should become of a request for port 8080 of the Service `web` in `shop`.
pub(crate) fn expected(mesh: &Mesh, request: &Request) -> Outcome {
    let mut asked = Asked::of(request);
    let client = Client::of(request);
    let there = |service: &str, asked: &Asked| client.reaches(mesh, service, asked);
    let to_web = |asked: &Asked| spread(vec![("Service shop/web:8080".to_owned(), 1, there("web", asked))]);
    if client.identity.is_none() {
        return to_web(&asked);
    }
    if let Some(profile) = profile(mesh, request.namespace) {
        let to = |(service, weight): &(&str, u32)| {
            (format!("Service shop/{service}:8080"), *weight, there(service, &asked))
        };
        let split: Vec<Share> = profile.overrides.iter().filter(|(_, weight)| *weight > 0).map(to).collect();
        return if split.is_empty() { to_web(&asked) } else { spread(split) };
    }
    let held = held(mesh, request.namespace);
    if held.is_empty() {
        return to_web(&asked);
    }
    let written: Vec<routes::Written<'_>> = held.iter().map(|route| route.plain()).collect();
    let (route, rule) = match chosen(&written, &asked) {
        Ok(Some(chosen)) => chosen,
        Ok(None) => return Outcome::Answered(404, None),
        Err(()) => return Outcome::Answered(400, None),
    };
    let (route, rule, plain) = (held[route], &held[route].rules[rule], &written[route].rules[rule]);
    let weightless = !rule.backends.is_empty() && rule.backends.iter().all(|(.., weight)| *weight == 0);
    if matches!(rule.filter, Filter::Cors) || weightless {
        return Outcome::Answered(500, None);
    }
    let covered = plain.prefix(&asked.view());
    if let Some(redirect) = &plain.redirect {
        match redirect.location(&asked.view(), covered) {
            Ok(None) => {}
            Ok(Some(location)) => return Outcome::Answered(301, Some(location)),
            Err(()) => return Outcome::Answered(500, None),
        }
    }
    if let Some(rewrite) = &plain.rewrite {
        let Some(target) = rewrite.target(&asked.view(), covered) else {
            return Outcome::Answered(500, None);
        };
        (asked.path, asked.query) = match target.split_once('?') {
            Some((path, query)) => (path.to_owned(), Some(query.to_owned())),
            None => (target, None),
        };
        asked.host = rewrite.host.map_or(asked.host, str::to_owned);
    }
    if let Some((name, value)) = rule.header {
        asked.headers.retain(|(other, _)| *other != name);
        asked.headers.push((name, value));
    }
    shares(mesh, route, rule, |service| there(service, &asked))
}

/// The routes that a client in this namespace goes by, in their order.
fn held<'a>(mesh: &'a Mesh, client: &str) -> Vec<&'a Route> {
    let of = |namespace: &str| -> Vec<&Route> {
        mesh.routes.iter().filter(|route| route.namespace == namespace).collect()
    };
    let own = of(client);
    let mut held = if own.is_empty() { of("shop") } else { own };
    held.sort_by_key(|route| (route.created.is_none(), route.created, route.name.clone()));
    held
}

/// The rule that has a request; an error: its path can be read in two ways.
fn chosen(written: &[routes::Written<'_>], asked: &Asked) -> Result<Option<(usize, usize)>, ()> {
    let raw = routes::best(written, &asked.view(), &asked.path);
    let read = routes::best(written, &asked.view(), &routes::normalised(&asked.path));
    if raw == read { Ok(raw) } else { Err(()) }
}

/// A backend, its weight, and what its pods answer; or what is answered because nobody of it can be sent to.
type Share = (String, u32, Result<Vec<Answered>, u16>);

fn shares(
    mesh: &Mesh,
    route: &Route,
    rule: &Rule,
    there: impl Fn(&str) -> Result<Vec<Answered>, u16>,
) -> Outcome {
    if rule.backends.is_empty() {
        return spread(vec![("Service shop/web:8080".to_owned(), 1, there("web"))]);
    }
    let weighted = rule.backends.iter().filter(|(.., weight)| *weight > 0);
    let each = weighted.map(|(namespace, name, weight)| {
        if may_refer(mesh, route, (namespace, name)) {
            (format!("Service {namespace}/{name}:8080"), *weight, there(name))
        } else {
            ("nowhere".to_owned(), *weight, Ok(vec![(500, Vec::new())]))
        }
    });
    spread(each.collect())
}

/// The share of a backend that nobody can be sent to is the others'; where that is so of all, the first says so.
fn spread(each: Vec<Share>) -> Outcome {
    let sum: u32 = each.iter().filter(|(.., there)| there.is_ok()).map(|(_, weight, _)| weight).sum();
    if let (0, Some((name, _, Err(status)))) = (sum, each.first()) {
        return Outcome::Sent(vec![(name.clone(), 100, vec![(*status, Vec::new())])]);
    }
    let percent = |weight: u32| (f64::from(weight) * 100.0 / f64::from(sum)).round() as u32;
    let there =
        each.into_iter().filter_map(|(name, weight, there)| Some((name, percent(weight), there.ok()?)));
    Outcome::Sent(there.collect())
}

fn may_refer(mesh: &Mesh, route: &Route, (namespace, name): (&str, &str)) -> bool {
    let exists = SERVERS.iter().any(|(of, app, _)| *of == namespace && *app == name);
    exists && (namespace == route.namespace || mesh.granted)
}

/// The ServiceProfile of `web`: the client's namespace has the first word.
fn profile<'a>(mesh: &'a Mesh, client: &str) -> Option<&'a Profile> {
    let of = |namespace: &str| mesh.profiles.iter().find(|profile| profile.namespace == namespace);
    of(client).or_else(|| of("shop"))
}

/// The ServiceProfile that has a request; nothing where its client has no proxy.
pub(crate) fn by_profile<'a>(mesh: &'a Mesh, request: &Request) -> Option<&'a Profile> {
    Client::of(request).identity.and_then(|_| profile(mesh, request.namespace))
}

/// The number of its route that does, if one does.
pub(crate) fn number(profile: &Profile, request: &Request) -> Option<usize> {
    let like =
        |pattern: &str| regex::Regex::new(&format!(r"\A(?:{pattern})\z")).unwrap().is_match(request.path);
    profile.route(request.method, &like)
}

/// Who gets copies of a request; nothing where no rule of a route is applied to it.
pub(crate) fn mirrored(mesh: &Mesh, request: &Request) -> Option<String> {
    let client = Client::of(request);
    client.identity.as_ref()?;
    if profile(mesh, request.namespace).is_some() {
        return None;
    }
    let asked = Asked::of(request);
    let held = held(mesh, request.namespace);
    let written: Vec<routes::Written<'_>> = held.iter().map(|route| route.plain()).collect();
    let (at, rule) = chosen(&written, &asked).ok()??;
    let (namespace, name) = held[at].rules[rule].mirror?;
    let sent = may_refer(mesh, held[at], (namespace, name)) && client.reaches(mesh, name, &asked).is_ok();
    sent.then(|| format!("Service {namespace}/{name}:8080"))
}

struct Client {
    namespace: &'static str,
    account: &'static str,
    identity: Option<String>,
    http2: bool,
    address: [u8; 4],
}

impl Client {
    fn of(request: &Request) -> Self {
        let (account, namespace) = (request.account, request.namespace);
        let identity = format!("{account}.{namespace}.serviceaccount.identity.remora.cluster.local");
        Self {
            namespace,
            account,
            identity: Some(identity).filter(|_| request.has_proxy && !request.unmeshed),
            http2: request.http2,
            address: octets(request.address),
        }
    }

    /// What each pod of a Service answers; an error if nobody can be sent to.
    fn reaches(&self, mesh: &Mesh, service: &str, asked: &Asked) -> Result<Vec<Answered>, u16> {
        let (_, app, ips) = SERVERS.iter().find(|(_, app, _)| *app == service).unwrap();
        match *app {
            PLAIN if self.account == STRICT && self.identity.is_some() => Err(502),
            _ if ips.is_empty() => Err(504),
            _ => Ok(ips.iter().map(|_| mesh.at(app, asked, self)).collect()),
        }
    }

    fn within(&self, net: &str) -> bool {
        let (base, length) = net.split_once('/').unwrap();
        let length: u32 = length.parse().unwrap();
        let bits = |octets: [u8; 4]| u32::from_be_bytes(octets).checked_shr(32 - length).unwrap_or(0);
        bits(octets(base)) == bits(self.address)
    }
}

fn octets(address: &str) -> [u8; 4] {
    let all: Vec<u8> = address.split('.').map(|octet| octet.parse().unwrap()).collect();
    all.try_into().unwrap()
}

impl Mesh {
    /// What port 8080 of a pod with this label answers.
    fn at(&self, app: &str, asked: &Asked, client: &Client) -> Answered {
        let status = |status: u16| (status, Vec::new());
        if app == PLAIN {
            return status(200);
        }
        // There are no Servers in bank.
        let of_shop = SERVERS.iter().any(|(namespace, of, _)| *of == app && *namespace == "shop");
        let ours = |server: &&Server| of_shop && server.app.is_none_or(|of| of == app) && server.port != "81";
        let Some(server) = self.servers.iter().filter(ours).min_by_key(|server| &server.name) else {
            let policy = self.default_policy.filter(|_| app == "web").unwrap_or("all-unauthenticated");
            return status(if by_default(policy, client) { 200 } else { 403 });
        };
        let about = |target: &Target| match target {
            Target::Server(name) => *name == server.name,
            Target::Namespace => true,
            Target::Route(_) => false,
        };
        let by_server = self.policies.iter().any(|policy| about(&policy.target) && policy.admits(client))
            || self.authorizations.iter().any(|one| {
                one.server == server.name && one.admits(client.identity.as_deref(), |net| client.within(net))
            })
            || server.access.is_some_and(|access| by_default(access, client));
        // Bytes are not looked at. A meshed client's proxy says that it carries requests, unless the port is opaque.
        if server.protocol == "opaque" || server.protocol == "TLS" && client.identity.is_none() {
            return status(if by_server { 200 } else { 0 });
        }
        if server.protocol == "TLS" {
            return status(404);
        }
        // Nobody announces it, and the port takes nothing else than it is declared to speak.
        if server.protocol == "HTTP/1" && client.identity.is_none() && client.http2 {
            return status(0);
        }
        let mut attached: Vec<&Route> =
            self.inbound.iter().filter(|route| route.server.as_ref() == Some(&server.name)).collect();
        attached.sort_by_key(|route| (route.created.is_none(), route.created, route.name.clone()));
        let written: Vec<routes::Written<'_>> = attached.iter().map(|route| route.plain()).collect();
        let route = match chosen(&written, asked) {
            _ if attached.is_empty() => None,
            Ok(Some((route, _))) => Some(attached[route]),
            Ok(None) => return status(404),
            Err(()) => return status(400),
        };
        let of_route = |target: &Target| matches!((target, route), (Target::Route(name), Some(route)) if *name == route.name);
        let by_route = self.policies.iter().any(|policy| of_route(&policy.target) && policy.admits(client));
        if !by_route && !by_server {
            return status(403);
        }
        let limit = self.limit.as_ref().filter(|limit| limit.server == server.name);
        let known = client.identity.as_ref().map(|_| (client.namespace, client.account));
        (200, limit.map(|limit| limit.of(known)).unwrap_or_default())
    }
}

fn by_default(policy: &str, client: &Client) -> bool {
    let known = client.identity.is_some();
    match policy {
        "all-unauthenticated" | "audit" => true,
        "all-authenticated" => known,
        "cluster-unauthenticated" => client.within("10.0.0.0/8"),
        "cluster-authenticated" => known && client.within("10.0.0.0/8"),
        _ => false,
    }
}

impl Policy {
    fn admits(&self, client: &Client) -> bool {
        let is = |wanted: &str| client.identity.as_deref() == Some(wanted);
        let who = match self.who {
            Who::Anybody => true,
            Who::Account(namespace, name) => {
                is(&format!("{name}.{namespace}.serviceaccount.identity.remora.cluster.local"))
            }
            // What is not there admits nobody.
            Who::MeshTls(name) => match MESH_TLS.iter().find(|(known, _)| *known == name) {
                None => false,
                Some((_, "*")) => client.identity.is_some(),
                Some((_, wanted)) => match wanted.strip_prefix('*') {
                    Some(end) => client.identity.as_ref().is_some_and(|identity| identity.ends_with(end)),
                    None => is(wanted),
                },
            },
        };
        let whence = self.from.is_none_or(|name| {
            let known = NETWORKS.iter().find(|(known, ..)| *known == name);
            known.is_some_and(|(_, net, hole)| {
                client.within(net) && !hole.is_some_and(|hole| client.within(hole))
            })
        });
        who && whence
    }
}

impl Route {
    fn plain(&self) -> routes::Written<'_> {
        routes::Written { hosts: self.hosts.clone(), rules: self.rules.iter().map(Rule::plain).collect() }
    }
}

impl Rule {
    fn plain(&self) -> routes::Rule<'_> {
        let (redirect, rewrite) = match &self.filter {
            Filter::Redirect(one) => (Some(one.plain()), None),
            Filter::Rewrite(one) => (None, Some(one.plain())),
            Filter::None | Filter::Cors => (None, None),
        };
        routes::Rule { matches: self.matches.iter().map(Match::plain).collect(), redirect, rewrite }
    }
}

impl Exchange {
    fn plain(&self) -> routes::Exchange<'static> {
        routes::Exchange {
            scheme: self.scheme,
            host: self.host,
            port: self.port,
            full: self.full,
            prefix: self.prefix,
        }
    }
}

impl Match {
    fn plain(&self) -> routes::Match<'_> {
        routes::Match {
            method: self.method,
            path: self.path,
            headers: self.headers.clone(),
            query: self.query.clone(),
        }
    }
}

//! What should become of a request, by Gateway API's HTTPRoute and GAMMA, Linkerd's policy resources and the rules that
//! `docs/routes.md`, `docs/policy.md`, `docs/plaintext.md`, `docs/balancing.md` and `docs/gateways.md` state. Read naively, on plain data.

use crate::{
    draw::{
        Exchange, Filter, MESH_TLS, Match, Mesh, NETWORKS, Policy, Request, Route, Rule, Server, Target, Who,
        pods::{OUTER, SERVERS},
        profile::Profile,
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

/// What is answered.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Answered {
    /// By whom; nobody if there is nobody to ask.
    pub(crate) at: Option<String>,
    /// The identity that it has to prove.
    pub(crate) identity: Option<String>,
    /// 200 is the application's, 0 the end of a connection. Nothing where it is passed over for others.
    pub(crate) status: Option<u16>,
    /// To which the client is held.
    pub(crate) rates: Vec<u32>,
}

impl Answered {
    /// By the client's own proxy, in nobody's place.
    pub(crate) fn itself(status: u16) -> Self {
        Self { at: None, identity: None, status: Some(status), rates: Vec::new() }
    }
}

impl Outcome {
    /// Does it pass, or lead elsewhere, whoever is picked?
    pub(crate) fn is_fine(&self) -> bool {
        match self {
            Self::Answered(_, location) => location.is_some(),
            Self::Sent(to) => {
                to.iter().all(|(.., all)| all.iter().all(|one| one.status.is_none_or(|it| it == 200)))
            }
        }
    }

    /// For counting what was met.
    pub(crate) fn kind(&self) -> String {
        match self {
            Self::Answered(status, _) => status.to_string(),
            Self::Sent(to) if to.len() > 1 && to.iter().any(|(.., all)| all[0].status == Some(500)) => {
                "a share of 500".to_owned()
            }
            Self::Sent(to) => match to[0].2.iter().find_map(|one| one.status).unwrap() {
                0 => "ended".to_owned(),
                status => status.to_string(),
            },
        }
    }

    /// Those who may be asked, and those who are passed over.
    pub(crate) fn asked(&self) -> impl Iterator<Item = &Answered> {
        let to = match self {
            Self::Answered(..) => &[][..],
            Self::Sent(to) => to,
        };
        to.iter().flat_map(|(.., all)| all)
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

    /// Without what `Connection` names: RFC 9110 section 7.6.1.
    fn sent_on(mut self, request: &Request) -> Self {
        let names = |name: &str| request.spoiled.contains(&("connection", name));
        self.headers.retain(|(name, _)| !names(name));
        self
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

/// A Service: namespace and name.
type Service = (&'static str, &'static str);

/// What should become of a request for port 8080 of the Service `web` in `shop`.
pub(crate) fn expected(mesh: &Mesh, request: &Request) -> Outcome {
    let mut asked = Asked::of(request);
    let client = Client::of(mesh, request);
    if client.identity.is_some() {
        if let Some(status) = unread(request).or_else(|| unsound(request).then_some(400)) {
            return Outcome::Answered(status, None);
        }
        asked = asked.sent_on(request);
    }
    let parent = match client.addressed(request) {
        Ok(parent) => parent,
        Err(outcome) => return outcome,
    };
    let there = |service: &str, asked: &Asked| client.reaches(mesh, service, asked);
    let itself = |asked: &Asked| spread(vec![(shown(parent), 1, there(parent.1, asked))]);
    if client.identity.is_none() {
        return itself(&asked);
    }
    if let Some(profile) = profile(mesh, request.namespace, parent) {
        let to = |(service, weight): &(&'static str, u32)| {
            (shown(("shop", *service)), *weight, there(service, &asked))
        };
        let split: Vec<Share> = profile.overrides.iter().filter(|(_, weight)| *weight > 0).map(to).collect();
        return if split.is_empty() { itself(&asked) } else { spread(split) };
    }
    let held = held(mesh, request.namespace, parent);
    if held.is_empty() {
        return itself(&asked);
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
    shares(mesh, (route, rule), parent, |service| there(service, &asked))
}

fn shown((namespace, name): Service) -> String {
    format!("Service {namespace}/{name}:8080")
}

/// The routes of a Service that a client in this namespace goes by, in their order.
fn held<'a>(mesh: &'a Mesh, client: &str, parent: Service) -> Vec<&'a Route> {
    let of = |namespace: &str| -> Vec<&Route> {
        let of_service = |route: &&Route| route.namespace == namespace && route.service == parent;
        mesh.routes.iter().filter(of_service).collect()
    };
    let own = of(client);
    let mut held = if own.is_empty() { of(parent.0) } else { own };
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
type Share = (String, u32, Result<Vec<Answered>, Vec<Answered>>);

fn shares(
    mesh: &Mesh,
    (route, rule): (&Route, &Rule),
    parent: Service,
    there: impl Fn(&str) -> Result<Vec<Answered>, Vec<Answered>>,
) -> Outcome {
    if rule.backends.is_empty() {
        return spread(vec![(shown(parent), 1, there(parent.1))]);
    }
    let weighted = rule.backends.iter().filter(|(.., weight)| *weight > 0);
    let each = weighted.map(|(namespace, name, weight)| {
        if may_refer(mesh, route, (namespace, name)) {
            (shown((namespace, name)), *weight, there(name))
        } else {
            ("nowhere".to_owned(), *weight, Ok(vec![Answered::itself(500)]))
        }
    });
    spread(each.collect())
}

/// The share of a backend that nobody can be sent to is the others'; where that is so of all, the first says so.
fn spread(mut each: Vec<Share>) -> Outcome {
    let sum: u32 = each.iter().filter(|(.., there)| there.is_ok()).map(|(_, weight, _)| weight).sum();
    if sum == 0 {
        let (name, _, there) = each.swap_remove(0);
        return Outcome::Sent(vec![(name, 100, there.unwrap_err())]);
    }
    let percent = |weight: u32| (f64::from(weight) * 100.0 / f64::from(sum)).round() as u32;
    let there =
        each.into_iter().filter_map(|(name, weight, there)| Some((name, percent(weight), there.ok()?)));
    Outcome::Sent(there.collect())
}

fn may_refer(mesh: &Mesh, route: &Route, (namespace, name): (&str, &str)) -> bool {
    let exists = SERVERS.iter().any(|(of, app, _)| *of == namespace && *app == name) || name == OUTER;
    exists && (namespace == route.namespace || mesh.granted)
}

/// The ServiceProfile of a Service: the client's namespace has the first word.
fn profile<'a>(mesh: &'a Mesh, client: &str, parent: Service) -> Option<&'a Profile> {
    let of_parent = |profile: &&Profile| ("shop", profile.service) == parent;
    let of = |namespace: &str| {
        mesh.profiles.iter().filter(of_parent).find(|profile| profile.namespace == namespace)
    };
    of(client).or_else(|| of(parent.0))
}

/// The ServiceProfile that has a request; nothing where its client has no proxy.
pub(crate) fn by_profile<'a>(mesh: &'a Mesh, request: &Request) -> Option<&'a Profile> {
    let client = Client::of(mesh, request);
    client.identity.as_ref()?;
    if unread(request).is_some() || unsound(request) {
        return None;
    }
    profile(mesh, request.namespace, client.addressed(request).ok()?)
}

/// The number of its route that does, if one does.
pub(crate) fn number(profile: &Profile, request: &Request) -> Option<usize> {
    let like =
        |pattern: &str| regex::Regex::new(&format!(r"\A(?:{pattern})\z")).unwrap().is_match(request.path);
    profile.route(request.method, &like)
}

/// Who gets copies of a request; nothing where no rule of a route is applied to it.
pub(crate) fn mirrored(mesh: &Mesh, request: &Request) -> Option<String> {
    let client = Client::of(mesh, request);
    client.identity.as_ref()?;
    let parent = client.addressed(request).ok()?;
    if profile(mesh, request.namespace, parent).is_some() || unread(request).is_some() || unsound(request) {
        return None;
    }
    let asked = Asked::of(request).sent_on(request);
    let held = held(mesh, request.namespace, parent);
    let written: Vec<routes::Written<'_>> = held.iter().map(|route| route.plain()).collect();
    let (at, rule) = chosen(&written, &asked).ok()??;
    let (namespace, name) = held[at].rules[rule].mirror?;
    let sent = may_refer(mesh, held[at], (namespace, name)) && client.reaches(mesh, name, &asked).is_ok();
    sent.then(|| shown((namespace, name)))
}

/// What becomes of what is no request: RFC 9112 section 6.3 (HTTP/1), RFC 9113 section 8.2.2 (HTTP/2), where its stream is
/// reset.
pub(crate) fn unread(request: &Request) -> Option<u16> {
    let all = |wanted: &str| -> Vec<&str> {
        request.spoiled.iter().filter(|(name, _)| *name == wanted).map(|(_, value)| *value).collect()
    };
    let codings = all("transfer-encoding");
    if request.http2 {
        let of_connection = !codings.is_empty() || !all("connection").is_empty();
        return of_connection.then_some(0);
    }
    let lengths = all("content-length");
    let no_length = |length: &&str| length.parse::<u64>().is_err();
    let odd = lengths.iter().any(no_length) || lengths.iter().any(|length| *length != lengths[0]);
    let coded = codings.len() > 1 || codings.iter().any(|coding| *coding != "chunked");
    (odd || coded).then_some(400)
}

/// Can two readers read two things in it? RFC 9112 section 3.2, RFC 9113 section 8.3.1.
pub(crate) fn unsound(request: &Request) -> bool {
    let mut others = request.spoiled.iter().filter(|(name, _)| *name == "host").map(|(_, host)| *host);
    match (request.http2, others.next()) {
        (_, None) => false,
        (false, Some(_)) => true,
        // The first one is its `:authority`.
        (true, Some(host)) => others.next().is_some() || !host.eq_ignore_ascii_case(request.host),
    }
}

/// Of a client whose proxy was told another policy than is asked for by now: both.
pub(crate) fn outdated(mesh: &Mesh, request: &Request) -> Option<(&'static str, &'static str)> {
    let client = Client::of(mesh, request);
    client.identity.as_ref()?;
    let told = mesh.pods.told(request.account)?;
    let wanted = told.asked.or_else(|| mesh.pods.asked(request.namespace))?;
    (wanted != client.outbound).then_some((client.outbound, wanted))
}

struct Client {
    namespace: &'static str,
    account: &'static str,
    identity: Option<String>,
    /// Whom its proxy may reach in plaintext.
    outbound: &'static str,
    /// Do its requests name the Service that they are for?
    gateway: bool,
    http2: bool,
    /// Who has to answer.
    required: Option<&'static str>,
    /// Of its request: what it is answered before it is asked who it is, and whether it is not taken if it may come.
    unread: Option<u16>,
    unsound: bool,
    address: [u8; 4],
}

fn identity(namespace: &str, account: &str) -> String {
    format!("{account}.{namespace}.serviceaccount.identity.remora.cluster.local")
}

impl Client {
    fn of(mesh: &Mesh, request: &Request) -> Self {
        let (account, namespace) = (request.account, request.namespace);
        let identity = identity(namespace, account);
        let told = mesh.pods.told(account);
        Self {
            namespace,
            account,
            identity: Some(identity).filter(|_| request.has_proxy && !request.unmeshed),
            outbound: match told {
                Some(told) => told.outbound.unwrap_or("all-unauthenticated"),
                // It would be told this, if it started now.
                None => mesh.pods.asked(namespace).unwrap_or(request.default_outbound),
            },
            gateway: told.is_some_and(|told| told.ingress),
            http2: request.http2,
            required: request.required.filter(|_| request.has_proxy && !request.unmeshed),
            unread: unread(request),
            unsound: unsound(request),
            address: octets(request.address),
        }
    }

    /// The Service that a request is for; else what is answered to who names none.
    fn addressed(&self, request: &Request) -> Result<Service, Outcome> {
        let web = ("shop", "web");
        let Some(named) = request.named.filter(|_| self.gateway && self.identity.is_some()) else {
            return Ok(web);
        };
        let named = named.to_lowercase();
        let (host, port) = named.split_once(':').unwrap_or((&named, "80"));
        let host = host.strip_suffix('.').unwrap_or(host);
        let name = host.strip_suffix(".svc.cluster.local").filter(|_| port != "0");
        let Some((name, namespace)) = name.and_then(|name| name.split_once('.')) else {
            return Err(Outcome::Answered(400, None));
        };
        let mut all = SERVERS.iter().map(|(namespace, app, _)| (*namespace, *app)).chain([("shop", OUTER)]);
        match all.find(|service| *service == (namespace, name)) {
            None => Err(Outcome::Answered(500, None)),
            Some(_) if port != "8080" => {
                Err(Outcome::Sent(vec![("nowhere".to_owned(), 100, vec![Answered::itself(403)])]))
            }
            Some(service) => Ok(service),
        }
    }

    /// What each endpoint of a Service answers; an error if nobody can be sent to.
    fn reaches(&self, mesh: &Mesh, service: &str, asked: &Asked) -> Result<Vec<Answered>, Vec<Answered>> {
        let mut ips = mesh.pods.behind(service);
        ips.sort_unstable();
        let may: Vec<bool> = ips.iter().map(|ip| self.may_send(mesh, ip)).collect();
        let nobody = may.iter().all(|may| !may);
        // Nobody else is asked while one of these is there.
        let weighs = |ip: &str| self.identity.is_none() || !mesh.pods.is_weightless(ip);
        let weighty = ips.iter().zip(&may).any(|(ip, may)| (*may || nobody) && weighs(ip));
        let answered = |(ip, may): (&&str, &bool)| {
            let pod = mesh.pods.meshed_at(ip).filter(|_| self.identity.is_some());
            let identity = pod.map(|(namespace, app)| identity(namespace, app));
            let another = self.required.is_some_and(|required| identity.as_deref() != Some(required));
            let (status, rates) = match may {
                _ if weighty && !weighs(ip) => (None, Vec::new()),
                false => (nobody.then_some(502), Vec::new()),
                true if another => (Some(502), Vec::new()),
                true => {
                    let (status, rates) = mesh.at(ip, asked, self);
                    (Some(status), rates)
                }
            };
            Answered { at: Some(format!("{ip}:8080")), identity, status, rates }
        };
        let all: Vec<Answered> = ips.iter().zip(&may).map(answered).collect();
        match nobody {
            true if all.is_empty() => Err(vec![Answered::itself(504)]),
            true => Err(all),
            false => Ok(all),
        }
    }

    /// May its proxy send anything to an endpoint? Who has no proxy is asked nothing.
    fn may_send(&self, mesh: &Mesh, ip: &str) -> bool {
        let plain = mesh.pods.meshed_at(ip).is_none();
        let demanded = match self.outbound {
            "all-authenticated" => true,
            "cluster-authenticated" => ip.starts_with("10."),
            _ => false,
        };
        self.identity.is_none() || !plain || !demanded
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
    /// What port 8080 at an address answers, and to which rates it holds the client.
    fn at(&self, ip: &str, asked: &Asked, client: &Client) -> (u16, Vec<u32>) {
        let status = |status: u16| (status, Vec::new());
        let Some((namespace, app)) = self.pods.meshed_at(ip) else { return status(200) };
        // There are no Servers in bank.
        let ours = |server: &&Server| {
            namespace == "shop" && server.app.is_none_or(|of| of == app) && server.port != "81"
        };
        let default = || {
            let policy = self.pods.inbound_default.filter(|_| app == "web").unwrap_or("all-unauthenticated");
            match client.unread {
                Some(answer) => answer,
                None if !by_default(policy, client) => 403,
                None if client.unsound => 400,
                None => 200,
            }
        };
        let Some(server) = self.servers.iter().filter(ours).min_by_key(|server| &server.name) else {
            return status(default());
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
        if let Some(answer) = client.unread {
            return status(answer);
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
        (if client.unsound { 400 } else { 200 }, limit.map(|limit| limit.of(known)).unwrap_or_default())
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

//! Random meshes and requests, in plain data and as YAML. Small vocabularies, so that what is drawn meets often.

pub(crate) mod clients;
pub(crate) mod pods;
pub(crate) mod profile;

use clients::{Authorization, RateLimit};
use pods::{CLIENTS, GONE, MIXED, OUTER, PLAIN, Pods};
use profile::Profile;
use std::fmt::Write as _;

/// The same draws for the same seed.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678)
    }

    /// SplitMix64.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    pub(crate) fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// One time in so many.
    pub(crate) fn rarely(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    fn some<T>(&mut self, most: usize, mut draw: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.below(most + 1)).map(|_| draw(self)).collect()
    }

    fn perhaps<T>(&mut self, times: usize, draw: impl FnOnce(&mut Self) -> T) -> Option<T> {
        self.rarely(times).then(|| draw(self))
    }
}

type Pair = (&'static str, &'static str);

#[derive(Debug)]
pub(crate) struct Mesh {
    pub(crate) pods: Pods,
    /// Of Services, in `shop` or `bank`.
    pub(crate) routes: Vec<Route>,
    /// Of pods with this label, all in `shop`.
    pub(crate) servers: Vec<Server>,
    /// Of Servers.
    pub(crate) inbound: Vec<Route>,
    pub(crate) policies: Vec<Policy>,
    pub(crate) authorizations: Vec<Authorization>,
    pub(crate) limit: Option<RateLimit>,
    /// At most one of each namespace and Service.
    pub(crate) profiles: Vec<Profile>,
    /// May HTTPRoutes of shop refer to bank's Services, and the other way round?
    pub(crate) granted: bool,
}

#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) namespace: &'static str,
    pub(crate) name: String,
    /// A year, if it has one.
    pub(crate) created: Option<u32>,
    /// The Server, if it is about one.
    pub(crate) server: Option<String>,
    /// The Service, if it is about none: namespace and name.
    pub(crate) service: Pair,
    pub(crate) hosts: Vec<&'static str>,
    pub(crate) rules: Vec<Rule>,
}

#[derive(Debug)]
pub(crate) struct Rule {
    pub(crate) matches: Vec<Match>,
    pub(crate) filter: Filter,
    /// A header that is set.
    pub(crate) header: Option<Pair>,
    /// Who gets copies: namespace and name.
    pub(crate) mirror: Option<(&'static str, &'static str)>,
    /// Namespace and name, weight.
    pub(crate) backends: Vec<(&'static str, &'static str, u32)>,
}

#[derive(Debug)]
pub(crate) struct Match {
    pub(crate) method: Option<&'static str>,
    pub(crate) path: Option<Pair>,
    pub(crate) headers: Vec<Pair>,
    pub(crate) query: Vec<Pair>,
}

#[derive(Debug)]
pub(crate) enum Filter {
    None,
    /// Scheme, host, port, path (`full`, `prefix`).
    Redirect(Exchange),
    Rewrite(Exchange),
    /// One that nobody has here.
    Cors,
}

#[derive(Debug, Default)]
pub(crate) struct Exchange {
    pub(crate) scheme: Option<&'static str>,
    pub(crate) host: Option<&'static str>,
    pub(crate) port: Option<u16>,
    pub(crate) full: Option<&'static str>,
    pub(crate) prefix: Option<&'static str>,
}

#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) name: String,
    /// The label `app` of its pods; all pods if there is none.
    pub(crate) app: Option<&'static str>,
    pub(crate) port: &'static str,
    pub(crate) protocol: &'static str,
    pub(crate) access: Option<&'static str>,
}

#[derive(Debug)]
pub(crate) struct Policy {
    pub(crate) name: String,
    pub(crate) target: Target,
    pub(crate) who: Who,
    /// A NetworkAuthentication of [`NETWORKS`], or one that is not there.
    pub(crate) from: Option<&'static str>,
}

#[derive(Debug)]
pub(crate) enum Target {
    Server(String),
    Namespace,
    Route(String),
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Who {
    Anybody,
    Account(&'static str, &'static str),
    /// A MeshTLSAuthentication of [`MESH_TLS`], or one that is not there.
    MeshTls(&'static str),
}

/// The NetworkAuthentications that are there: name, network, hole.
pub(crate) const NETWORKS: [(&str, &str, Option<&str>); 3] = [
    ("all", "10.0.0.0/8", None),
    ("tills", "10.1.0.8/29", None),
    ("not-old", "10.1.0.0/16", Some("10.1.0.8/32")),
];
/// The MeshTLSAuthentications that are there, with an identity each.
pub(crate) const MESH_TLS: [(&str, &str); 3] = [
    ("everybody", "*"),
    ("of-shop", "*.shop.serviceaccount.identity.remora.cluster.local"),
    ("clerk", "clerk.bank.serviceaccount.identity.remora.cluster.local"),
];
const HOSTS: [&str; 6] = ["web", "web.shop", "*.example", "a.example", "*.a.example", "other"];
const PATHS: [Pair; 12] = [
    ("exact", "/"),
    ("exact", "/a"),
    ("exact", "/a/"),
    ("exact", "/a/b"),
    ("prefix", "/"),
    ("prefix", "/a"),
    ("prefix", "/a/"),
    ("prefix", "/a/b"),
    ("prefix", "/secret"),
    ("regex", "/a/.*"),
    ("regex", "/[ab]"),
    ("regex", "/.*secret"),
];
const HEADERS: [Pair; 3] = [("x", "1"), ("x", "2"), ("y", "1")];
/// What routes ask for besides: no proxy leaves it on a request.
const OVERRIDE: Pair = (pods::OVERRIDE, "v2.shop.svc.cluster.local:8080");
/// Services that routes are about.
const PARENTS: [Pair; 7] = [
    ("shop", "web"),
    ("shop", "web"),
    ("shop", "web"),
    ("shop", "web"),
    ("shop", "v2"),
    ("shop", MIXED),
    ("bank", "safe"),
];
const QUERIES: [Pair; 3] = [("q", "1"), ("q", "a b"), ("r", "1")];
/// What requests say of their connection and their body, or once more of their host. Of HTTP/1 each may come twice.
const SPOILING: [Pair; 10] = [
    ("host", "web"),
    ("host", "other"),
    ("connection", "x"),
    ("te", "trailers"),
    ("transfer-encoding", "chunked"),
    ("transfer-encoding", "gzip"),
    ("content-length", "5"),
    ("content-length", "6"),
    ("content-length", "5, 5"),
    ("content-length", "-1"),
];
const METHODS: [&str; 2] = ["GET", "POST"];

impl Mesh {
    /// Without any rules.
    pub(crate) fn bare() -> Self {
        Self {
            pods: Pods::default(),
            routes: Vec::new(),
            servers: Vec::new(),
            inbound: Vec::new(),
            policies: Vec::new(),
            authorizations: Vec::new(),
            limit: None,
            profiles: Vec::new(),
            granted: false,
        }
    }

    pub(crate) fn draw(dice: &mut Dice) -> Self {
        let mut names = 0;
        let mut named = |prefix: &str| {
            names += 1;
            format!("{prefix}{names}")
        };
        let routes = dice.some(4, |dice| Route::draw(dice, named("r"), None));
        let servers: Vec<Server> = dice.some(2, |dice| Server {
            name: named("s"),
            app: dice.perhaps(2, |dice| dice.one(&["web", "v2", "safe"])),
            port: dice.one(&["http", "8080", "81"]),
            protocol: dice.one(&["unknown", "HTTP/1", "HTTP/1", "opaque", "TLS"]),
            access: dice.perhaps(3, |dice| {
                dice.one(&[
                    "all-unauthenticated",
                    "all-authenticated",
                    "cluster-authenticated",
                    "deny",
                    "audit",
                ])
            }),
        });
        let some_server = |dice: &mut Dice| match servers.as_slice() {
            [] => "gone".to_owned(),
            servers if dice.rarely(8) => format!("{}x", servers[0].name),
            servers => servers[dice.below(servers.len())].name.clone(),
        };
        let mut inbound = Vec::new();
        if dice.rarely(2) {
            inbound = dice.some(2, |dice| {
                let server = some_server(dice);
                Route::draw(dice, named("i"), Some(server))
            });
        }
        let policies = dice.some(3, |dice| {
            let target = match (dice.below(4), inbound.as_slice()) {
                (0, _) => Target::Namespace,
                (1, [first, ..]) => Target::Route(first.name.clone()),
                _ => Target::Server(some_server(dice)),
            };
            let who = match dice.below(4) {
                0 => Who::Anybody,
                1 => Who::MeshTls(dice.one(&["everybody", "of-shop", "clerk", "gone"])),
                _ => {
                    let (namespace, account, ..) = dice.one(&CLIENTS);
                    Who::Account(namespace, account)
                }
            };
            let from = dice.perhaps(3, |dice| dice.one(&["all", "tills", "not-old", "gone"]));
            Policy { name: named("p"), target, who, from }
        });
        let authorizations = dice.some(2, |dice| {
            let server = some_server(dice);
            Authorization::draw(dice, named("a"), server)
        });
        let limit = dice.perhaps(2, |dice| {
            let server = some_server(dice);
            RateLimit::draw(dice, named("l"), server)
        });
        let mut profiles = Vec::new();
        for (namespace, service) in [("shop", "web"), ("bank", "web"), ("shop", "v2"), ("bank", "v2")] {
            profiles.extend(dice.perhaps(4, |dice| Profile::draw(dice, namespace, service)));
        }
        let granted = dice.rarely(2);
        let pods = Pods::draw(dice);
        Self { pods, routes, servers, inbound, policies, authorizations, limit, profiles, granted }
    }
}

impl Route {
    fn draw(dice: &mut Dice, name: String, server: Option<String>) -> Self {
        let of_server = server.is_some();
        Self {
            namespace: if of_server { "shop" } else { dice.one(&["shop", "shop", "shop", "bank"]) },
            name,
            created: dice.perhaps(2, |dice| 2020 + u32::try_from(dice.below(3)).unwrap()),
            server,
            service: dice.one(&PARENTS),
            hosts: if dice.rarely(3) { dice.some(2, |dice| dice.one(&HOSTS)) } else { Vec::new() },
            rules: {
                let mut rules = vec![Rule::draw(dice, of_server)];
                rules.extend(dice.some(2, |dice| Rule::draw(dice, of_server)));
                rules
            },
        }
    }
}

impl Rule {
    fn draw(dice: &mut Dice, of_server: bool) -> Self {
        let mut matches = if dice.rarely(5) { Vec::new() } else { dice.some(2, Match::draw) };
        if of_server {
            matches.extend(dice.perhaps(3, |_| Match {
                method: None,
                path: None,
                headers: vec![OVERRIDE],
                query: Vec::new(),
            }));
            return Self { matches, filter: Filter::None, header: None, mirror: None, backends: Vec::new() };
        }
        let filter = match dice.below(12) {
            0 => Filter::Cors,
            1 | 2 => Filter::Redirect(Exchange {
                scheme: dice.perhaps(3, |dice| dice.one(&["http", "https"])),
                host: dice.perhaps(2, |dice| dice.one(&["web", "other.example"])),
                port: dice.perhaps(3, |dice| dice.one(&[80, 8443])),
                ..Exchange::path(dice)
            }),
            3 | 4 => Filter::Rewrite(Exchange {
                host: dice.perhaps(2, |dice| dice.one(&["a.example", "web"])),
                ..Exchange::path(dice)
            }),
            _ => Filter::None,
        };
        let services = [
            ("shop", "web"),
            ("shop", "v2"),
            ("shop", "none"),
            ("bank", "safe"),
            ("shop", GONE),
            ("shop", PLAIN),
            ("shop", MIXED),
            ("shop", OUTER),
        ];
        let backends = dice.some(3, |dice| {
            let (namespace, name) = dice.one(&services);
            (namespace, name, dice.one(&[0, 1, 1, 3]))
        });
        let redirects = matches!(filter, Filter::Redirect(_));
        // A prefix can be exchanged where the rule has one, and nothing else.
        let matches = match &filter {
            Filter::Redirect(Exchange { prefix: Some(_), .. })
            | Filter::Rewrite(Exchange { prefix: Some(_), .. }) => {
                let path = Some(dice.one(&[("prefix", "/"), ("prefix", "/a"), ("prefix", "/a/")]));
                vec![Match { path, ..Match::draw(dice) }]
            }
            _ => matches,
        };
        Self {
            matches,
            filter,
            header: dice.perhaps(4, |dice| dice.one(&HEADERS)),
            mirror: if redirects { None } else { dice.perhaps(4, |dice| dice.one(&services)) },
            // A redirect goes nowhere: Gateway API takes no backends beside it.
            backends: if redirects { Vec::new() } else { backends },
        }
    }
}

impl Exchange {
    fn path(dice: &mut Dice) -> Self {
        match dice.below(4) {
            0 => Self { full: Some(dice.one(&["/", "/a", "/whole"])), ..Self::default() },
            1 | 2 => Self { prefix: Some(dice.one(&["/", "/a", "/v2/", "/secret"])), ..Self::default() },
            _ => Self::default(),
        }
    }
}

impl Match {
    fn draw(dice: &mut Dice) -> Self {
        Self {
            method: dice.perhaps(4, |dice| dice.one(&METHODS)),
            path: (!dice.rarely(4)).then(|| dice.one(&PATHS)),
            headers: dice
                .perhaps(4, |dice| if dice.rarely(4) { OVERRIDE } else { dice.one(&HEADERS) })
                .into_iter()
                .collect(),
            query: dice.perhaps(5, |dice| dice.one(&QUERIES)).into_iter().collect(),
        }
    }
}

/// A request.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) namespace: &'static str,
    pub(crate) account: &'static str,
    pub(crate) address: &'static str,
    /// Asked as if it had no proxy.
    pub(crate) unmeshed: bool,
    /// Whether the pod has one.
    pub(crate) has_proxy: bool,
    /// HTTP/2 from the start, else HTTP/1.1.
    pub(crate) http2: bool,
    pub(crate) method: &'static str,
    pub(crate) host: &'static str,
    pub(crate) path: &'static str,
    pub(crate) query: Option<&'static str>,
    pub(crate) headers: Vec<Pair>,
    /// Of [`SPOILING`].
    pub(crate) spoiled: Vec<Pair>,
    /// Its `l5d-dst-override`.
    pub(crate) named: Option<&'static str>,
    /// Its `l5d-require-id`.
    pub(crate) required: Option<&'static str>,
    /// The injector's word for accounts of which nothing else is said.
    pub(crate) default_outbound: &'static str,
}

impl Request {
    pub(crate) fn draw(dice: &mut Dice) -> Self {
        let (namespace, account, address, has_proxy) = dice.one(&CLIENTS);
        let mut spoiled = if dice.rarely(6) { dice.some(2, |dice| dice.one(&SPOILING)) } else { Vec::new() };
        let http2 = dice.rarely(3);
        let headers: Vec<Pair> = dice.perhaps(2, |dice| dice.one(&HEADERS)).into_iter().collect();
        if !http2 && headers.iter().any(|(name, _)| *name == "x") && dice.rarely(4) {
            spoiled.push(("connection", "x"));
        }
        Self {
            namespace,
            account,
            address,
            unmeshed: dice.rarely(8),
            has_proxy,
            http2,
            method: dice.one(&["GET", "GET", "POST"]),
            host: dice.one(&[
                "web",
                "web",
                "web:8080",
                "WEB.shop",
                "a.example",
                "b.a.example:8080",
                "other.",
            ]),
            path: dice.one(&[
                "/",
                "/a",
                "/a/",
                "/a/b",
                "/ab",
                "/a/b/c",
                "/b",
                "/secret",
                "//secret",
                "/x/../secret",
                "/a%2fb",
                "/a/./b",
                "/secret;x",
                "/%61",
                "/a//b",
                "/x%20y",
            ]),
            query: dice.perhaps(3, |dice| dice.one(&["q=1", "q=a+b&r", "q=a%20b", "r=1"])),
            headers,
            // What HTTP/2 makes of a length is its library's.
            spoiled: spoiled.into_iter().filter(|(name, _)| !http2 || *name != "content-length").collect(),
            named: dice.perhaps(3, |dice| dice.one(&pods::NAMED)),
            required: dice.perhaps(12, |dice| dice.one(&pods::REQUIRED)),
            default_outbound: dice.one(&pods::OUTBOUND),
        }
    }
}

impl Mesh {
    /// The same as manifests.
    pub(crate) fn yaml(&self) -> String {
        self.pods.yaml() + &self.rules()
    }

    /// What of it is drawn, but for what pods say themselves.
    pub(crate) fn rules(&self) -> String {
        let mut text = String::new();
        for (name, net, except) in NETWORKS {
            let except = except.map(|hole| format!(", except: [{hole}]")).unwrap_or_default();
            text += &policy_document(
                "NetworkAuthentication",
                "v1alpha1",
                name,
                &format!("networks: [{{cidr: {net}{except}}}]"),
            );
        }
        for (name, identity) in MESH_TLS {
            text += &policy_document(
                "MeshTLSAuthentication",
                "v1alpha1",
                name,
                &format!("identities: ['{identity}']"),
            );
        }
        if self.granted {
            for (from, to) in [("shop", "bank"), ("bank", "shop")] {
                text += &document(&format!(
                    "apiVersion: gateway.networking.k8s.io/v1beta1, kind: ReferenceGrant, metadata: {{name: g, namespace: {to}}}, spec: \
                     {{from: [{{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: {from}}}], to: [{{group: '', kind: Service}}]}}"
                ));
            }
        }
        for server in &self.servers {
            let selector = server.app.map(|app| format!("matchLabels: {{app: {app}}}")).unwrap_or_default();
            let access = server.access.map(|access| format!(", accessPolicy: {access}")).unwrap_or_default();
            let spec = format!(
                "podSelector: {{{selector}}}, port: {}, proxyProtocol: {}{access}",
                server.port, server.protocol
            );
            text += &policy_document("Server", "v1beta3", &server.name, &spec);
        }
        for route in self.routes.iter().chain(&self.inbound) {
            text += &route.yaml();
        }
        text.extend(self.policies.iter().map(Policy::yaml));
        text.extend(self.authorizations.iter().map(Authorization::yaml));
        text.extend(self.limit.iter().map(RateLimit::yaml));
        text.extend(self.profiles.iter().map(Profile::yaml));
        text
    }
}

fn document(fields: &str) -> String {
    format!("{{{fields}}}\n---\n")
}

fn policy_document(kind: &str, version: &str, name: &str, spec: &str) -> String {
    document(&format!(
        "apiVersion: policy.linkerd.io/{version}, kind: {kind}, metadata: {{name: {name}, namespace: shop}}, spec: {{{spec}}}"
    ))
}

impl Route {
    fn yaml(&self) -> String {
        let created = self
            .created
            .map(|year| format!(", creationTimestamp: '{year}-01-01T00:00:00Z'"))
            .unwrap_or_default();
        let (namespace, service) = self.service;
        let of_service =
            || format!("{{group: core, kind: Service, name: {service}, namespace: {namespace}, port: 8080}}");
        let of_server =
            |server: &String| format!("{{group: policy.linkerd.io, kind: Server, name: {server}}}");
        let parent = self.server.as_ref().map_or_else(of_service, of_server);
        let hosts =
            if self.hosts.is_empty() { String::new() } else { format!(", hostnames: {:?}", self.hosts) };
        let rules: Vec<String> = self.rules.iter().map(Rule::yaml).collect();
        document(&format!(
            "apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {{name: {}, namespace: {}{created}}}, spec: {{parentRefs: \
             [{parent}]{hosts}, rules: [{}]}}",
            self.name,
            self.namespace,
            rules.join(", ")
        ))
    }
}

impl Rule {
    fn yaml(&self) -> String {
        let mut fields = Vec::new();
        if !self.matches.is_empty() {
            let matches: Vec<String> = self.matches.iter().map(Match::yaml).collect();
            fields.push(format!("matches: [{}]", matches.join(", ")));
        }
        let mut filters = Vec::new();
        filters.extend(self.header.map(|(name, value)| {
            format!("{{type: RequestHeaderModifier, requestHeaderModifier: {{set: [{{name: {name}, value: '{value}'}}]}}}}")
        }));
        filters.extend(self.mirror.map(|(namespace, name)| {
            format!(
                "{{type: RequestMirror, requestMirror: {{backendRef: {{name: {name}, namespace: {namespace}, port: 8080}}}}}}"
            )
        }));
        filters.extend(match &self.filter {
            Filter::None => None,
            Filter::Cors => Some("{type: CORS, cors: {}}".to_owned()),
            Filter::Redirect(exchange) => {
                Some(format!("{{type: RequestRedirect, requestRedirect: {}}}", exchange.yaml(true)))
            }
            Filter::Rewrite(exchange) => {
                Some(format!("{{type: URLRewrite, urlRewrite: {}}}", exchange.yaml(false)))
            }
        });
        if !filters.is_empty() {
            fields.push(format!("filters: [{}]", filters.join(", ")));
        }
        if !self.backends.is_empty() {
            let one = |(namespace, name, weight): &(&str, &str, u32)| {
                format!("{{name: {name}, namespace: {namespace}, port: 8080, weight: {weight}}}")
            };
            let backends: Vec<String> = self.backends.iter().map(one).collect();
            fields.push(format!("backendRefs: [{}]", backends.join(", ")));
        }
        format!("{{{}}}", fields.join(", "))
    }
}

impl Exchange {
    fn yaml(&self, redirect: bool) -> String {
        let mut text = String::from("{");
        let mut field = |name: &str, value: String| {
            let between = if text.len() > 1 { ", " } else { "" };
            let _ = write!(text, "{between}{name}: {value}");
        };
        if let Some(scheme) = self.scheme {
            field("scheme", scheme.to_owned());
        }
        if let Some(host) = self.host {
            field("hostname", host.to_owned());
        }
        if let Some(port) = self.port {
            field("port", port.to_string());
        }
        if redirect {
            field("statusCode", "301".to_owned());
        }
        if let Some(full) = self.full {
            field("path", format!("{{type: ReplaceFullPath, replaceFullPath: '{full}'}}"));
        }
        if let Some(prefix) = self.prefix {
            field("path", format!("{{type: ReplacePrefixMatch, replacePrefixMatch: '{prefix}'}}"));
        }
        text + "}"
    }
}

impl Match {
    fn yaml(&self) -> String {
        let mut fields = Vec::new();
        fields.extend(self.method.map(|method| format!("method: {method}")));
        fields.extend(self.path.map(|(kind, value)| {
            let kind = match kind {
                "exact" => "Exact",
                "prefix" => "PathPrefix",
                _ => "RegularExpression",
            };
            format!("path: {{type: {kind}, value: '{value}'}}")
        }));
        let list = |pairs: &[Pair]| {
            let one = |(name, value): &Pair| format!("{{name: {name}, value: '{value}'}}");
            pairs.iter().map(one).collect::<Vec<_>>().join(", ")
        };
        if !self.headers.is_empty() {
            fields.push(format!("headers: [{}]", list(&self.headers)));
        }
        if !self.query.is_empty() {
            fields.push(format!("queryParams: [{}]", list(&self.query)));
        }
        format!("{{{}}}", fields.join(", "))
    }
}

impl Policy {
    fn yaml(&self) -> String {
        let target = match &self.target {
            Target::Server(name) => format!("group: policy.linkerd.io, kind: Server, name: {name}"),
            Target::Namespace => "kind: Namespace, name: shop".to_owned(),
            Target::Route(name) => format!("group: gateway.networking.k8s.io, kind: HTTPRoute, name: {name}"),
        };
        let mut refs = Vec::new();
        refs.extend(match self.who {
            Who::Anybody => None,
            Who::Account(namespace, name) => {
                Some(format!("{{kind: ServiceAccount, name: {name}, namespace: {namespace}}}"))
            }
            Who::MeshTls(name) => {
                Some(format!("{{group: policy.linkerd.io, kind: MeshTLSAuthentication, name: {name}}}"))
            }
        });
        refs.extend(
            self.from.map(|name| {
                format!("{{group: policy.linkerd.io, kind: NetworkAuthentication, name: {name}}}")
            }),
        );
        policy_document(
            "AuthorizationPolicy",
            "v1alpha1",
            &self.name,
            &format!("targetRef: {{{target}}}, requiredAuthenticationRefs: [{}]", refs.join(", ")),
        )
    }
}

//! ServerAuthorizations, and rate limits of Servers: drawn, written as YAML, and read naively as `docs/policy.md` and
//! `docs/rate-limits.md` state them.

use super::{Dice, pods::CLIENTS, policy_document};

/// Who may use a Server, the older way.
#[derive(Debug)]
pub(crate) struct Authorization {
    pub(crate) name: String,
    pub(crate) server: String,
    who: Who,
    /// A network and a hole in it; the cluster's networks if there is none.
    networks: Vec<(&'static str, Option<&'static str>)>,
}

#[derive(Clone, Copy, Debug)]
enum Who {
    Anybody,
    /// With TLS of the mesh.
    Meshed,
    Account(&'static str, &'static str),
    Identity(&'static str),
}

const NETWORKS: [(&str, Option<&str>); 3] =
    [("10.0.0.0/8", None), ("10.1.0.8/29", None), ("10.0.0.0/8", Some("10.2.0.0/16"))];
const IDENTITIES: [&str; 3] = [
    "*",
    "*.shop.serviceaccount.identity.remora.cluster.local",
    "clerk.bank.serviceaccount.identity.remora.cluster.local",
];

impl Authorization {
    pub(crate) fn draw(dice: &mut Dice, name: String, server: String) -> Self {
        let who = match dice.below(4) {
            0 => Who::Anybody,
            1 => Who::Meshed,
            2 => Who::Identity(dice.one(&IDENTITIES)),
            _ => {
                let (namespace, account, ..) = dice.one(&CLIENTS);
                Who::Account(namespace, account)
            }
        };
        let networks = dice.some(1, |dice| dice.one(&NETWORKS));
        Self { name, server, who, networks }
    }

    /// `within`: whether the client's address is in a network.
    pub(crate) fn admits(&self, identity: Option<&str>, within: impl Fn(&str) -> bool) -> bool {
        let who = match self.who {
            Who::Anybody => true,
            Who::Meshed => identity.is_some(),
            Who::Account(namespace, name) => {
                identity == Some(&format!("{name}.{namespace}.serviceaccount.identity.remora.cluster.local"))
            }
            Who::Identity(wanted) => identity.is_some_and(|identity| match wanted.strip_prefix('*') {
                Some(end) => identity.ends_with(end),
                None => identity == wanted,
            }),
        };
        let from = |(net, hole): &(&str, Option<&str>)| within(net) && !hole.is_some_and(&within);
        // All clients are in the cluster's networks.
        who && (self.networks.is_empty() || self.networks.iter().any(from))
    }

    pub(crate) fn yaml(&self) -> String {
        let mut client = vec![match self.who {
            Who::Anybody => "unauthenticated: true".to_owned(),
            Who::Meshed => "meshTLS: {unauthenticatedTLS: true}".to_owned(),
            Who::Account(namespace, name) => {
                format!("meshTLS: {{serviceAccounts: [{{name: {name}, namespace: {namespace}}}]}}")
            }
            Who::Identity(identity) => format!("meshTLS: {{identities: ['{identity}']}}"),
        }];
        let network = |(net, hole): &(&str, Option<&str>)| {
            let except = hole.map(|hole| format!(", except: [{hole}]")).unwrap_or_default();
            format!("{{cidr: {net}{except}}}")
        };
        if !self.networks.is_empty() {
            let all: Vec<String> = self.networks.iter().map(network).collect();
            client.push(format!("networks: [{}]", all.join(", ")));
        }
        let spec = format!("server: {{name: {}}}, client: {{{}}}", self.server, client.join(", "));
        policy_document("ServerAuthorization", "v1beta1", &self.name, &spec)
    }
}

/// How often a Server may be asked: so often that nobody meets it.
#[derive(Debug)]
pub(crate) struct RateLimit {
    pub(crate) name: String,
    pub(crate) server: String,
    total: Option<u32>,
    identity: Option<u32>,
    overrides: Vec<(u32, Vec<(&'static str, &'static str)>)>,
}

impl RateLimit {
    pub(crate) fn draw(dice: &mut Dice, name: String, server: String) -> Self {
        let named = |dice: &mut Dice| {
            let (namespace, account, ..) = dice.one(&CLIENTS);
            (namespace, account)
        };
        let overrides = dice.some(2, |dice| {
            let mut clients = vec![named(dice)];
            clients.extend(dice.some(1, named));
            (dice.one(&[60_000, 70_000, 80_000]), clients)
        });
        let identity = dice.perhaps(2, |dice| dice.one(&[40_000, 50_000]));
        // One of them has to be there.
        let needed = identity.is_none() && overrides.is_empty();
        let total = (needed || dice.rarely(2)).then(|| dice.one(&[90_000, 100_000]));
        Self { name, server, total, identity, overrides }
    }

    /// The limits that count a client: of all together, and its own.
    pub(crate) fn of(&self, client: Option<(&str, &str)>) -> Vec<u32> {
        let named = |(_, clients): &&(u32, Vec<(&str, &str)>)| clients.iter().any(|one| Some(*one) == client);
        let own = self.overrides.iter().rfind(named).map(|(rate, _)| *rate).or(self.identity);
        self.total.into_iter().chain(own).collect()
    }

    pub(crate) fn yaml(&self) -> String {
        let mut spec =
            vec![format!("targetRef: {{group: policy.linkerd.io, kind: Server, name: {}}}", self.server)];
        spec.extend(self.total.map(|rate| format!("total: {{requestsPerSecond: {rate}}}")));
        spec.extend(self.identity.map(|rate| format!("identity: {{requestsPerSecond: {rate}}}")));
        let client = |(namespace, name): &(&str, &str)| {
            format!("{{kind: ServiceAccount, name: {name}, namespace: {namespace}}}")
        };
        let one = |(rate, clients): &(u32, Vec<(&str, &str)>)| {
            let clients: Vec<String> = clients.iter().map(client).collect();
            format!("{{requestsPerSecond: {rate}, clientRefs: [{}]}}", clients.join(", "))
        };
        if !self.overrides.is_empty() {
            let all: Vec<String> = self.overrides.iter().map(one).collect();
            spec.push(format!("overrides: [{}]", all.join(", ")));
        }
        policy_document("HTTPLocalRateLimitPolicy", "v1alpha1", &self.name, &spec.join(", "))
    }
}

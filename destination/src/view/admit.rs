//! Pure. Whom a Server or one of its routes admits: ServerAuthorizations, AuthorizationPolicies with what they refer to, and
//! default policies. What cannot be found admits nobody. Contract 3.4.

use super::{Lens, Settings};
use crate::{
    index::{RouteId, Server},
    resources::{
        Name, PolicyKind,
        policy::{AccountRef, AnyClients, AuthorizationPolicySpec, Clients, PolicyTarget, WhoRef},
    },
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
#[cfg(planted)]
use remora_core::planted;
use remora_core::{
    identity::{Identity, workload},
    matching::{NetworkMatch, SuffixMatch},
    policy::{Authentication, DefaultPolicy},
};
use std::time::Duration;

/// Most of what the authorizations of a port may hold, in units of an identity: with its routes it fits into the 4 MiB of
/// a message that proxies read.
const MAX_COST: usize = 8192;

/// Clients that are admitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admission {
    /// By what.
    pub by: Authority,
    /// From where. Never empty.
    pub networks: Vec<NetworkMatch>,
    /// Who.
    pub clients: Authentication,
}

/// What admits clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Authority {
    /// A default policy.
    Default(DefaultPolicy),
    /// A ServerAuthorization.
    ServerAuthorization(Name),
    /// An AuthorizationPolicy.
    AuthorizationPolicy(Name),
}

/// Admissions up to a bound.
#[derive(Debug)]
pub(super) struct Book {
    left: usize,
    /// What is beyond the bound, and admits nobody.
    pub(super) left_out: Vec<Authority>,
}

/// A reference that leads nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Missing {
    /// The field.
    pub(super) path: String,
    /// What is not there.
    pub(super) what: String,
}

impl Book {
    pub(super) fn new() -> Self {
        Self { left: MAX_COST, left_out: Vec::new() }
    }

    /// Takes an admission in, if there is room and if it admits anybody.
    fn enter(&mut self, admission: Admission, into: &mut Vec<Admission>) {
        if admission.networks.is_empty() {
            return;
        }
        let cost = cost(&admission);
        match self.left.checked_sub(cost) {
            Some(left) => {
                self.left = left;
                into.push(admission);
            }
            None => self.left_out.push(admission.by),
        }
    }
}

/// What it takes in a message, in units of 256 bytes: a name at most has that many.
fn cost(admission: &Admission) -> usize {
    /// Its own names and labels.
    const ITSELF: usize = 4;
    let clients = match &admission.clients {
        Authentication::Unauthenticated | Authentication::TlsUnauthenticated => 0,
        // The labels of a suffix are apart, each with its length.
        Authentication::TlsAuthenticated { identities, suffixes } => {
            identities.iter().map(|identity| 1 + identity.as_str().len() / 256).sum::<usize>()
                + 2 * suffixes.len()
        }
    };
    ITSELF + clients + admission.networks.iter().map(|net| 1 + net.except.len()).sum::<usize>()
}

/// Whom a Server admits: the ServerAuthorizations, then the AuthorizationPolicies, each by name, and last what its
/// `accessPolicy` says of all others, so that `audit` names those only whom nothing else admits.
pub(super) fn by_server(
    lens: &mut Lens<'_>,
    settings: &Settings,
    (name, server): (&Name, &Server),
    book: &mut Book,
) -> Vec<Admission> {
    lens.said_of(name);
    let index = lens.index;
    let mut found = Vec::new();
    let older = index.server_authorizations(&name.namespace);
    for (by, spec) in older.filter(|(_, spec)| spec.is_about(&name.name, server)) {
        let everywhere = || settings.cluster_networks.iter().map(|net| whole(*net)).collect();
        let networks = if spec.networks.is_empty() { everywhere() } else { spec.networks.clone() };
        let clients = match &spec.clients {
            AnyClients::Unauthenticated => Authentication::Unauthenticated,
            AnyClients::TlsUnauthenticated => Authentication::TlsUnauthenticated,
            AnyClients::Authenticated(clients) => identities(settings, &by.namespace, clients),
        };
        book.enter(
            Admission { by: Authority::ServerAuthorization(by.clone()), networks, clients },
            &mut found,
        );
    }
    let about = |target: &PolicyTarget| match target {
        PolicyTarget::Server(server) => *server == name.name,
        PolicyTarget::Namespace(namespace) => *namespace == name.namespace,
        PolicyTarget::Route(..) => false,
    };
    by_policies(lens, settings, &name.namespace, about, book, &mut found);
    found.extend(server.spec.access.and_then(|policy| by_default(settings, policy)));
    found
}

/// Whom a route admits besides those whom its Server admits.
pub(super) fn by_route(
    lens: &mut Lens<'_>,
    settings: &Settings,
    id: &RouteId,
    book: &mut Book,
) -> Vec<Admission> {
    let mut found = Vec::new();
    let about = |target: &PolicyTarget| matches!(target, PolicyTarget::Route(kind, name) if *kind == id.kind && *name == id.name.name);
    by_policies(lens, settings, &id.name.namespace, about, book, &mut found);
    found
}

fn by_policies(
    lens: &mut Lens<'_>,
    settings: &Settings,
    namespace: &str,
    about: impl Fn(&PolicyTarget) -> bool,
    book: &mut Book,
    found: &mut Vec<Admission>,
) {
    let index = lens.index;
    for (by, spec) in index.authorization_policies(namespace).filter(|(_, spec)| about(&spec.target)) {
        if let Ok((networks, clients)) = required(lens, settings, namespace, spec) {
            book.enter(
                Admission { by: Authority::AuthorizationPolicy(by.clone()), networks, clients },
                found,
            );
        }
    }
}

/// Whom a default policy admits.
pub(super) fn by_default(settings: &Settings, policy: DefaultPolicy) -> Option<Admission> {
    let stated = policy.server_policy(&settings.cluster_networks, Duration::ZERO, false);
    let one = stated.authorizations.first().cloned().filter(|one| !one.networks.is_empty())?;
    Some(Admission { by: Authority::Default(policy), networks: one.networks, clients: one.authentication })
}

/// From where and who an AuthorizationPolicy demands a client to be; without a demand, everywhere and everybody.
pub(super) fn required(
    lens: &mut Lens<'_>,
    settings: &Settings,
    namespace: &str,
    spec: &AuthorizationPolicySpec,
) -> Result<(Vec<NetworkMatch>, Authentication), Missing> {
    let missing = |path: &str, kind: PolicyKind, name: &Name| Missing {
        path: path.to_owned(),
        what: format!("{} {name} does not exist; it admits nobody", kind.as_str()),
    };
    let networks = match &spec.from {
        None => vec![whole(Ipv4Net::default().into()), whole(Ipv6Net::default().into())],
        Some((path, name)) => {
            let name = name.resolve(namespace);
            let found = lens.networks(&name).map(|networks| networks.to_vec());
            #[cfg(planted)]
            let found = found.or_else(|| {
                planted::makes(planted::Mistake::MissingNetworksAdmitAll)
                    .then(|| vec![whole(Ipv4Net::default().into())])
            });
            found.ok_or_else(|| missing(path, PolicyKind::Network, &name))?
        }
    };
    let clients = match &spec.who {
        None => Authentication::Unauthenticated,
        Some((_, WhoRef::Account(account))) => {
            let identity = identity_of(settings, namespace, account);
            Authentication::TlsAuthenticated {
                identities: identity.into_iter().collect(),
                suffixes: Vec::new(),
            }
        }
        Some((path, WhoRef::MeshTls(name))) => {
            let name = name.resolve(namespace);
            let clients = lens.mesh_tls(&name);
            let clients = clients.ok_or_else(|| missing(path, PolicyKind::MeshTls, &name))?;
            // What it refers to without a namespace is in its own.
            identities(settings, &name.namespace, clients)
        }
    };
    Ok((networks, clients))
}

fn identities(settings: &Settings, namespace: &str, clients: &Clients) -> Authentication {
    let accounts = clients.accounts.iter().filter_map(|account| identity_of(settings, namespace, account));
    let namespaces = clients.namespaces.iter().filter_map(|(_, namespace)| {
        // Any account stands for all of them: what comes after its name is the namespace's own.
        let one = identity_of_name(settings, &Name::new(namespace.as_str(), "a"))?;
        let labels = one.as_str().split('.').skip(1).map(str::to_owned).collect();
        Some(SuffixMatch { labels })
    });
    Authentication::TlsAuthenticated {
        identities: clients.identities.iter().cloned().chain(accounts).collect(),
        suffixes: clients.suffixes.iter().cloned().chain(namespaces).collect(),
    }
}

/// The identity of a ServiceAccount; `None` for a name so long that no certificate can have it.
pub(super) fn identity_of(settings: &Settings, namespace: &str, account: &AccountRef) -> Option<Identity> {
    identity_of_name(settings, &account.resolve(namespace))
}

fn identity_of_name(settings: &Settings, account: &Name) -> Option<Identity> {
    workload(&account.name, &account.namespace, &settings.control_namespace, &settings.trust_domain).ok()
}

fn whole(net: IpNet) -> NetworkMatch {
    NetworkMatch { net, except: Vec::new() }
}

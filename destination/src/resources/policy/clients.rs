//! Pure. Reads who and from where: identities, ServiceAccounts, networks, and references to those who say it.

use super::{AccountRef, Clients, ObjectName};
use crate::resources::{
    routes::{is_core, namespace, optional},
    strict::{Fields, Mistakes, join, shown},
};
use ipnet::IpNet;
use remora_core::{
    identity::{Identity, Kind},
    matching::{NetworkMatch, SuffixMatch},
};
use serde_json::Value;
use std::net::IpAddr;

/// Most identities, ServiceAccounts or networks of a list.
pub(super) const MAX_LISTED: usize = 1024;

/// The group of an object that is referred to, its kind and its name.
pub(super) struct Reference {
    pub(super) group: String,
    pub(super) kind: String,
    pub(super) name: ObjectName,
}

impl Reference {
    /// Is it one of this kind? `core` is another word for no group.
    pub(super) fn is(&self, group: &str, kind: &str) -> bool {
        let same = self.group == group || group.is_empty() && is_core(&self.group);
        same && self.kind == kind
    }

    /// A reference; `foreign` ones may name another namespace.
    pub(super) fn read(path: &str, value: &Value, foreign: bool, mistakes: &mut Mistakes) -> Option<Self> {
        let known = ["group", "kind", "name", "namespace"];
        let known = known.get(..if foreign { 4 } else { 3 }).unwrap_or(&known);
        let fields = mistakes.object(path, value, known)?;
        let group = optional(path, fields, "group", |path, value| mistakes.group(path, value));
        let kind = mistakes.required(path, fields, "kind");
        let kind = kind.and_then(|value| mistakes.kind(&join(path, "kind"), value));
        let name = mistakes.required(path, fields, "name");
        let name = name.and_then(|value| mistakes.object_name(&join(path, "name"), value));
        let namespace = if foreign {
            optional(path, fields, "namespace", |path, value| namespace(path, value, mistakes))
        } else {
            None
        };
        let name = ObjectName { namespace, name: name? };
        Some(Self { group: group.unwrap_or_default(), kind: kind?, name })
    }

    /// Its group and kind, for the person who wrote them.
    pub(super) fn described(&self) -> String {
        let group = if self.group.is_empty() { "core" } else { &self.group };
        format!("{} of {}", shown(&self.kind), shown(group))
    }
}

impl Clients {
    fn is_empty(&self) -> bool {
        let Self { identities, suffixes, accounts, namespaces } = self;
        identities.is_empty() && suffixes.is_empty() && accounts.is_empty() && namespaces.is_empty()
    }

    /// The `identities` and `identityRefs` of a MeshTLSAuthentication.
    pub(super) fn of_authentication(path: &str, value: &Value, mistakes: &mut Mistakes) -> Option<Self> {
        let fields = mistakes.object(path, value, &["identities", "identityRefs"])?;
        let mut clients = Self::default();
        clients.named(path, fields, mistakes);
        let at = join(path, "identityRefs");
        not_empty(&at, fields.get("identityRefs"), mistakes);
        for (path, value) in mistakes.list(&at, fields.get("identityRefs"), MAX_LISTED) {
            let Some(reference) = Reference::read(&path, value, true, mistakes) else { continue };
            if reference.is("", "ServiceAccount") {
                let ObjectName { namespace, name } = reference.name;
                clients.accounts.push(AccountRef { path, namespace, name });
            } else if reference.is("", "Namespace") {
                if reference.name.namespace.is_some() {
                    mistakes.add(&join(&path, "namespace"), "a Namespace is in none");
                }
                clients.namespaces.push((path, reference.name.name));
            } else {
                let what = reference.described();
                mistakes.add(
                    &join(&path, "kind"),
                    format!("{what} has no identity; ServiceAccount or Namespace"),
                );
            }
        }
        if fields.get("identities").is_none() && fields.get("identityRefs").is_none() {
            mistakes.add(path, "neither identities nor identityRefs: it would be nobody");
        }
        Some(clients)
    }

    /// The `identities` and `serviceAccounts` of a ServerAuthorization.
    pub(super) fn of_server_authorization(path: &str, fields: Fields<'_>, mistakes: &mut Mistakes) -> Self {
        let mut clients = Self::default();
        clients.named(path, fields, mistakes);
        let at = join(path, "serviceAccounts");
        not_empty(&at, fields.get("serviceAccounts"), mistakes);
        for (path, value) in mistakes.list(&at, fields.get("serviceAccounts"), MAX_LISTED) {
            let Some(fields) = mistakes.object(&path, value, &["name", "namespace"]) else { continue };
            let name = mistakes.required(&path, fields, "name");
            let name = name.and_then(|value| mistakes.object_name(&join(&path, "name"), value));
            let namespace =
                optional(&path, fields, "namespace", |path, value| namespace(path, value, mistakes));
            clients.accounts.extend(name.map(|name| AccountRef { path, namespace, name }));
        }
        if clients.is_empty() && fields.get("identities").is_none() && fields.get("serviceAccounts").is_none()
        {
            mistakes.add(path, "neither unauthenticatedTLS, identities nor serviceAccounts");
        }
        clients
    }

    fn named(&mut self, path: &str, fields: Fields<'_>, mistakes: &mut Mistakes) {
        let at = join(path, "identities");
        not_empty(&at, fields.get("identities"), mistakes);
        for (path, value) in mistakes.list(&at, fields.get("identities"), MAX_LISTED) {
            let Some(text) = mistakes.text(&path, value) else { continue };
            match identity(text) {
                Ok(Named::Whole(identity)) => self.identities.push(identity),
                Ok(Named::Suffix(suffix)) => self.suffixes.push(suffix),
                Err(reason) => mistakes.add(&path, format!("{:?} {reason}", shown(text))),
            }
        }
    }
}

enum Named {
    Whole(Identity),
    Suffix(SuffixMatch),
}

/// `*`, `*.` and a suffix, or a whole identity.
fn identity(text: &str) -> Result<Named, String> {
    if text == "*" {
        return Ok(Named::Suffix(SuffixMatch { labels: Vec::new() }));
    }
    let (wildcard, name) = match text.strip_prefix("*.") {
        Some(suffix) => (true, suffix),
        None => (false, text),
    };
    let read = Identity::parse(name).map_err(|error| format!("is no identity: {error}"))?;
    match (wildcard, read.kind()) {
        (false, _) => Ok(Named::Whole(read)),
        (true, Kind::Dns) => {
            let labels = read.as_str().split('.').map(str::to_owned).collect();
            Ok(Named::Suffix(SuffixMatch { labels }))
        }
        (true, Kind::Uri) => Err("is no suffix: identities that are URIs match as they are".to_owned()),
    }
}

/// A list that may be missing, but not be there and empty.
pub(super) fn not_empty(path: &str, value: Option<&Value>, mistakes: &mut Mistakes) {
    if value.and_then(Value::as_array).is_some_and(Vec::is_empty) {
        mistakes.add(path, "empty");
    }
}

/// Networks, each with its holes.
pub(super) fn networks(path: &str, value: Option<&Value>, mistakes: &mut Mistakes) -> Vec<NetworkMatch> {
    not_empty(path, value, mistakes);
    let mut read = Vec::new();
    for (path, value) in mistakes.list(path, value, MAX_LISTED) {
        let Some(fields) = mistakes.object(&path, value, &["cidr", "except"]) else { continue };
        let cidr = mistakes.required(&path, fields, "cidr");
        let Some(net) = cidr.and_then(|value| network(&join(&path, "cidr"), value, mistakes)) else {
            continue;
        };
        let mut except = Vec::new();
        for (path, value) in mistakes.list(&join(&path, "except"), fields.get("except"), MAX_LISTED) {
            let Some(hole) = network(&path, value, mistakes) else { continue };
            if hole.contains(&net) {
                mistakes.add(&path, format!("{hole} is all of {net}: nothing would be left"));
            } else if !net.contains(&hole) {
                mistakes.add(&path, format!("{hole} is not within {net}"));
            }
            except.push(hole);
        }
        read.push(NetworkMatch { net, except });
    }
    read
}

/// A network, or one address.
fn network(path: &str, value: &Value, mistakes: &mut Mistakes) -> Option<IpNet> {
    let text = mistakes.text(path, value)?;
    let read = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
    if read.is_none() {
        mistakes.add(path, format!("{:?} is no network such as 10.0.0.0/8", shown(text)));
    }
    read.map(|net| net.trunc())
}

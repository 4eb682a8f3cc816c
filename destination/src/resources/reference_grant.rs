//! Pure. `gateway.networking.k8s.io/v1beta1 ReferenceGrant`, read strictly: who may refer to what is in its namespace.

use super::{
    routes::{RouteKind, is_core, namespace},
    strict::{Mistakes, join},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;

/// Most entries of each list. Gateway API.
const MAX_ENTRIES: usize = 16;

/// A grant.
#[derive(Clone, Debug, PartialEq)]
pub struct ReferenceGrant {
    /// Its metadata.
    pub metadata: ObjectMeta,
    /// What it says.
    pub grant: Grant,
}

/// What a grant says: each of `from` may refer to each of `to`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    /// Group, kind and namespace of who refers.
    pub from: Vec<(String, String, String)>,
    /// Group and kind of what is referred to, and its name if only one is meant.
    pub to: Vec<(String, String, Option<String>)>,
}

impl Grant {
    /// May a route of this kind and namespace refer to the Service of this name beside the grant?
    pub fn allows(&self, kind: RouteKind, namespace: &str, service: &str) -> bool {
        let from = self
            .from
            .iter()
            .any(|(group, from, of)| group == kind.group() && from == kind.kind() && of == namespace);
        let to = self.to.iter().any(|(group, to, name)| {
            is_core(group) && to == "Service" && name.as_deref().is_none_or(|name| name == service)
        });
        from && to
    }
}

impl ReferenceGrant {
    /// Reads one, or says everything that is wrong with it.
    pub(super) fn read(value: &Value) -> Result<Self, Vec<(String, String)>> {
        let mut mistakes = Mistakes::default();
        let Some(fields) = mistakes.object("", value, &["apiVersion", "kind", "metadata", "spec"]) else {
            return Err(mistakes.0);
        };
        let metadata = mistakes.metadata(fields, "web");
        let spec = mistakes.required("", fields, "spec");
        let grant = spec.and_then(|value| grant(value, &mut mistakes));
        match (metadata, grant) {
            (Some(metadata), Some(grant)) if mistakes.0.is_empty() => Ok(Self { metadata, grant }),
            _ => Err(mistakes.0),
        }
    }
}

fn grant(value: &Value, mistakes: &mut Mistakes) -> Option<Grant> {
    let fields = mistakes.object("spec", value, &["from", "to"])?;
    let mut grant = Grant::default();
    for name in ["from", "to"] {
        let at = join("spec", name);
        let value = mistakes.required("spec", fields, name);
        if value.is_some_and(|value| value.as_array().is_some_and(Vec::is_empty)) {
            mistakes.add(&at, "empty");
        }
        for (path, value) in mistakes.list(&at, value, MAX_ENTRIES) {
            let known = ["group", "kind", if name == "from" { "namespace" } else { "name" }];
            let Some(fields) = mistakes.object(&path, value, &known) else { continue };
            let group = mistakes.required(&path, fields, "group");
            let group = group.and_then(|value| mistakes.group(&join(&path, "group"), value));
            let kind = mistakes.required(&path, fields, "kind");
            let kind = kind.and_then(|value| mistakes.kind(&join(&path, "kind"), value));
            if name == "from" {
                let of = mistakes.required(&path, fields, "namespace");
                let of = of.and_then(|value| namespace(&join(&path, "namespace"), value, mistakes));
                grant.from.extend(group.zip(kind).zip(of).map(|((group, kind), of)| (group, kind, of)));
            } else {
                let only = fields.get("name");
                let only = only.map(|value| mistakes.text(&join(&path, "name"), value));
                // A name that cannot be read is no grant for all names.
                let only = only.map(|name| name.unwrap_or_default().to_owned());
                grant.to.extend(group.zip(kind).map(|(group, kind)| (group, kind, only)));
            }
        }
    }
    Some(grant)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(spec: &Value) -> Result<Grant, Vec<(String, String)>> {
        let metadata = json!({"name": "g", "namespace": "shop"});
        ReferenceGrant::read(&json!({"metadata": metadata, "spec": spec})).map(|read| read.grant)
    }

    #[test]
    fn a_grant_is_for_a_kind_of_a_namespace_and_a_service_or_all() {
        let from = json!([{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": "a"}]);
        let all = read(&json!({"from": from, "to": [{"group": "", "kind": "Service"}]})).unwrap();
        let one = json!({"from": from, "to": [{"group": "", "kind": "Service", "name": "web"}]});
        let one = read(&one).unwrap();
        let secrets = read(&json!({"from": from, "to": [{"group": "", "kind": "Secret"}]})).unwrap();
        for (kind, namespace, service, expected) in [
            (RouteKind::Http, "a", "web", [true, true, false]),
            (RouteKind::Http, "a", "api", [true, false, false]),
            (RouteKind::Http, "b", "web", [false; 3]),
            (RouteKind::Grpc, "a", "web", [false; 3]),
            (RouteKind::LinkerdHttp, "a", "web", [false; 3]),
        ] {
            let found = [&all, &one, &secrets].map(|grant| grant.allows(kind, namespace, service));
            assert_eq!(found, expected, "{kind:?} {namespace} {service}");
        }
    }

    #[test]
    fn mistakes_are_all_named() {
        let wrong = json!({"from": [{"group": "x", "kind": "HTTPRoute"}], "to": [], "also": 1});
        let paths: Vec<String> = read(&wrong).unwrap_err().into_iter().map(|(path, _)| path).collect();
        assert_eq!(paths, ["spec.also", "spec.from[0].namespace", "spec.to"]);
    }
}

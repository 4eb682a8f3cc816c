//! Kubernetes objects, read from text or from a watch: which kinds this control plane understands, what names one,
//! and what is wrong with a document that cannot be read.
//!
//! Knows the fields of objects only; what they mean for a mesh is in `index`.

pub mod policy;
mod reference_grant;
pub mod routes;
mod service_profile;
mod strict;
mod versions;

pub use policy::PolicyKind;
pub use reference_grant::{Grant, ReferenceGrant};
pub use routes::RouteKind;
pub use service_profile::{RequestMatch, Route, ServiceProfile, Spec, WeightedDst};
pub use versions::Unread;

use k8s_openapi::{
    api::{
        apps::v1::ReplicaSet,
        batch::v1::Job,
        core::v1::{Namespace, Node, Pod, Service, ServiceAccount},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde::{Deserialize, de::DeserializeOwned};
use std::fmt;
use versions::Spoken;

/// An object that the index reads.
#[derive(Clone, Debug, PartialEq)]
pub enum Resource {
    /// `v1 Namespace`: annotations that its pods and Services inherit.
    Namespace(Box<Namespace>),
    /// `v1 Node`: the zone of the pods on it.
    Node(Box<Node>),
    /// `v1 Pod`.
    Pod(Box<Pod>),
    /// `v1 Service`.
    Service(Box<Service>),
    /// `discovery.k8s.io/v1 EndpointSlice`.
    EndpointSlice(Box<EndpointSlice>),
    /// `apps/v1 ReplicaSet`: names the Deployment of its pods.
    ReplicaSet(Box<ReplicaSet>),
    /// `batch/v1 Job`: names the CronJob of its pods.
    Job(Box<Job>),
    /// `linkerd.io/v1alpha2 ServiceProfile`.
    ServiceProfile(Box<ServiceProfile>),
    /// A route of one of the [`RouteKind`]s.
    Route(Box<routes::Route>),
    /// `gateway.networking.k8s.io/v1beta1 ReferenceGrant`.
    ReferenceGrant(Box<ReferenceGrant>),
    /// `v1 ServiceAccount`: that it is there.
    ServiceAccount(Box<ServiceAccount>),
    /// A policy resource of one of the [`PolicyKind`]s.
    Policy(Box<policy::Policy>),
}

/// The kinds of [`Resource`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// [`Resource::Namespace`].
    Namespace,
    /// [`Resource::Node`].
    Node,
    /// [`Resource::Pod`].
    Pod,
    /// [`Resource::Service`].
    Service,
    /// [`Resource::EndpointSlice`].
    EndpointSlice,
    /// [`Resource::ReplicaSet`].
    ReplicaSet,
    /// [`Resource::Job`].
    Job,
    /// [`Resource::ServiceProfile`].
    ServiceProfile,
    /// [`Resource::Route`].
    Route(RouteKind),
    /// [`Resource::ReferenceGrant`].
    ReferenceGrant,
    /// [`Resource::ServiceAccount`].
    ServiceAccount,
    /// [`Resource::Policy`].
    Policy(PolicyKind),
}

/// Namespace and name. The namespace is empty for objects of the cluster (Namespace, Node).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

/// What tells one object from another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectRef {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace and name.
    pub name: Name,
}

/// What one document of a manifest turned out to be.
#[derive(Clone, Debug, PartialEq)]
pub enum Document {
    /// An object for the index.
    Known(Resource),
    /// A well-formed object of a kind that is not read.
    Unread(Unread),
}

/// Why a document cannot be read. Says which one of the file, whose it is, and where in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// Not YAML (or JSON) at all.
    #[error("document {document}: not YAML: {reason}")]
    Syntax {
        /// Number of the document in its file, from 1.
        document: usize,
        /// The parser's words, with line and column.
        reason: String,
    },
    /// Valid YAML, but no Kubernetes object.
    #[error("document {document}: not a Kubernetes object: {reason}")]
    NoObject {
        /// Number of the document in its file, from 1.
        document: usize,
        /// What is missing.
        reason: String,
    },
    /// A field has the wrong type.
    #[error("document {document}: {object}: {path}: {reason}")]
    Field {
        /// Number of the document in its file, from 1.
        document: usize,
        /// Kind and name.
        object: String,
        /// Path of the field, such as `spec.ports[0].port`.
        path: String,
        /// What was expected.
        reason: String,
    },
}

impl Kind {
    /// Every kind, in the order in which a full state is best applied.
    pub const ALL: [Self; 21] = [
        Self::Namespace,
        Self::Node,
        Self::ReplicaSet,
        Self::Job,
        Self::ServiceAccount,
        Self::Pod,
        Self::Service,
        Self::EndpointSlice,
        Self::ServiceProfile,
        Self::ReferenceGrant,
        Self::Route(RouteKind::Http),
        Self::Route(RouteKind::LinkerdHttp),
        Self::Route(RouteKind::Grpc),
        Self::Route(RouteKind::Tls),
        Self::Route(RouteKind::Tcp),
        // Who is meant before whom they may reach, and the Servers last: a port without its authorizations is closed.
        Self::Policy(PolicyKind::MeshTls),
        Self::Policy(PolicyKind::Network),
        Self::Policy(PolicyKind::ServerAuthorization),
        Self::Policy(PolicyKind::AuthorizationPolicy),
        Self::Policy(PolicyKind::RateLimit),
        Self::Policy(PolicyKind::Server),
    ];

    /// The kind as manifests write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::Pod => "Pod",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::ReplicaSet => "ReplicaSet",
            Self::Job => "Job",
            Self::ServiceProfile => "ServiceProfile",
            Self::Route(kind) => kind.as_str(),
            Self::ReferenceGrant => "ReferenceGrant",
            Self::ServiceAccount => "ServiceAccount",
            Self::Policy(kind) => kind.as_str(),
        }
    }
}

impl Name {
    /// A name in a namespace.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl Resource {
    /// Its metadata.
    pub fn metadata(&self) -> &ObjectMeta {
        match self {
            Self::Namespace(object) => &object.metadata,
            Self::Node(object) => &object.metadata,
            Self::Pod(object) => &object.metadata,
            Self::Service(object) => &object.metadata,
            Self::EndpointSlice(object) => &object.metadata,
            Self::ReplicaSet(object) => &object.metadata,
            Self::Job(object) => &object.metadata,
            Self::ServiceProfile(object) => &object.metadata,
            Self::Route(object) => &object.metadata,
            Self::ReferenceGrant(object) => &object.metadata,
            Self::ServiceAccount(object) => &object.metadata,
            Self::Policy(object) => &object.metadata,
        }
    }

    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Namespace(_) => Kind::Namespace,
            Self::Node(_) => Kind::Node,
            Self::Pod(_) => Kind::Pod,
            Self::Service(_) => Kind::Service,
            Self::EndpointSlice(_) => Kind::EndpointSlice,
            Self::ReplicaSet(_) => Kind::ReplicaSet,
            Self::Job(_) => Kind::Job,
            Self::ServiceProfile(_) => Kind::ServiceProfile,
            Self::Route(object) => Kind::Route(object.spec.kind),
            Self::ReferenceGrant(_) => Kind::ReferenceGrant,
            Self::ServiceAccount(_) => Kind::ServiceAccount,
            Self::Policy(object) => Kind::Policy(object.spec.kind()),
        }
    }

    /// What names it. A namespaced object without a namespace is in `default`, as `kubectl apply` would have it.
    pub fn object_ref(&self) -> ObjectRef {
        let metadata = self.metadata();
        let kind = self.kind();
        let namespace = match kind {
            Kind::Namespace | Kind::Node => String::new(),
            _ => metadata.namespace.clone().unwrap_or_else(|| "default".to_owned()),
        };
        ObjectRef { kind, name: Name { namespace, name: metadata.name.clone().unwrap_or_default() } }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.as_str(), self.name)
    }
}

/// Reads every document of a YAML or JSON text; `List`s are opened. Either all of it can be read or none: half a
/// file is what a writer leaves behind when it is interrupted.
pub fn parse(text: &str) -> Result<Vec<Document>, Vec<Invalid>> {
    let mut documents = Vec::new();
    let mut invalid = Vec::new();
    for (at, document) in serde_norway::Deserializer::from_str(text).enumerate() {
        let number = at + 1;
        match serde_json::Value::deserialize(document) {
            Ok(serde_json::Value::Null) => {}
            Ok(value) => object(number, value, &mut documents, &mut invalid),
            Err(error) => {
                invalid.push(Invalid::Syntax { document: number, reason: error.to_string() });
                // After a syntax error the parser no longer knows where the next document begins.
                break;
            }
        }
    }
    if invalid.is_empty() { Ok(documents) } else { Err(invalid) }
}

/// Type and name, as every Kubernetes object carries them.
#[derive(Deserialize)]
struct Header {
    #[serde(rename = "apiVersion", default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    #[serde(default)]
    metadata: HeaderMeta,
}

#[derive(Default, Deserialize)]
struct HeaderMeta {
    #[serde(default)]
    name: String,
    namespace: Option<String>,
}

fn object(
    document: usize,
    mut value: serde_json::Value,
    into: &mut Vec<Document>,
    invalid: &mut Vec<Invalid>,
) {
    let header: Header = match serde_path_to_error::deserialize(&value) {
        Ok(header) => header,
        Err(error) => {
            invalid.push(Invalid::NoObject { document, reason: error.to_string() });
            return;
        }
    };
    if header.api_version.is_empty() || header.kind.is_empty() {
        invalid.push(Invalid::NoObject { document, reason: "apiVersion or kind is missing".to_owned() });
        return;
    }
    // `List` itself, and the typed ones such as `PodList`.
    if let (true, Some(serde_json::Value::Array(items))) =
        (header.kind.ends_with("List"), value.get_mut("items").map(serde_json::Value::take))
    {
        for item in items {
            object(document, item, into, invalid);
        }
        return;
    }
    let HeaderMeta { name, namespace } = header.metadata;
    let label =
        format!("{} {}", header.kind, Name { namespace: namespace.unwrap_or_default(), name: name.clone() });
    if name.is_empty() {
        invalid.push(Invalid::NoObject {
            document,
            reason: format!("{}: metadata.name is missing", header.kind),
        });
        return;
    }
    let api_version = header.api_version;
    let kind = match Spoken::of(&api_version, &header.kind) {
        Spoken::Read(kind) => kind,
        Spoken::Version(served) => {
            let shown: String = api_version.chars().take(100).collect();
            let reason = format!("{shown} is not read; of {} these versions are: {served}", header.kind);
            let (object, path) = (label, "apiVersion".to_owned());
            invalid.push(Invalid::Field { document, object, path, reason });
            return;
        }
        unread @ (Spoken::Unserved | Spoken::Foreign) => {
            let (object, unserved) = (format!("{api_version} {label}"), unread == Spoken::Unserved);
            into.push(Document::Unread(Unread { object, unserved }));
            return;
        }
    };
    match typed(kind, value) {
        Ok(resource) => into.push(Document::Known(resource)),
        Err(mistakes) => invalid.extend(mistakes.into_iter().map(|(path, reason)| {
            let object = label.clone();
            Invalid::Field { document, object, path, reason }
        })),
    }
}

/// Paths of fields, and what is wrong with each.
type Mistakes = Vec<(String, String)>;

fn typed(kind: Kind, value: serde_json::Value) -> Result<Resource, Mistakes> {
    fn read<T: DeserializeOwned>(value: serde_json::Value) -> Result<Box<T>, Mistakes> {
        let read = serde_path_to_error::deserialize(value).map(Box::new);
        read.map_err(|error: serde_path_to_error::Error<serde_json::Error>| {
            vec![(error.path().to_string(), error.inner().to_string())]
        })
    }
    Ok(match kind {
        Kind::Namespace => Resource::Namespace(read(value)?),
        Kind::Node => Resource::Node(read(value)?),
        Kind::Pod => Resource::Pod(read(value)?),
        Kind::Service => Resource::Service(read(value)?),
        Kind::EndpointSlice => Resource::EndpointSlice(read(value)?),
        Kind::ReplicaSet => Resource::ReplicaSet(read(value)?),
        Kind::Job => Resource::Job(read(value)?),
        Kind::ServiceProfile => Resource::ServiceProfile(Box::new(ServiceProfile::read(&value)?)),
        Kind::Route(kind) => Resource::Route(Box::new(routes::Route::read(kind, &value)?)),
        Kind::ReferenceGrant => Resource::ReferenceGrant(Box::new(ReferenceGrant::read(&value)?)),
        Kind::ServiceAccount => Resource::ServiceAccount(read(value)?),
        Kind::Policy(kind) => Resource::Policy(Box::new(policy::Policy::read(kind, &value)?)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_documents_and_lists_are_read_in_order() {
        let text = "
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
---
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}, spec: {ports: [{port: 80}]}}
- {apiVersion: v1, kind: Pod, metadata: {name: web-1, namespace: shop}, spec: {containers: [{name: app}]}}
";
        let read: Vec<_> = parse(text).unwrap().iter().map(describe).collect();
        assert_eq!(read, ["Namespace shop", "Service shop/web", "Pod shop/web-1"]);
    }

    #[test]
    fn json_is_yaml() {
        let read =
            parse(r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p"},"spec":{"containers":[]}}"#);
        assert_eq!(describe(&read.unwrap()[0]), "Pod default/p");
    }

    #[test]
    fn a_kind_that_is_not_read_is_named_and_a_version_that_is_not_is_a_mistake() {
        let of = |api_version: &str, kind: &str| {
            format!("{{apiVersion: {api_version}, kind: {kind}, metadata: {{name: web, namespace: shop}}}}")
        };
        for (api_version, kind, unserved) in
            [("apps/v1", "Deployment", false), ("policy.linkerd.io/v1alpha1", "EgressNetwork", true)]
        {
            let object = format!("{api_version} {kind} shop/web");
            let expected = [Document::Unread(Unread { object, unserved })];
            assert_eq!(parse(&of(api_version, kind)).unwrap(), expected);
        }
        check(
            &of("policy.linkerd.io/v1beta9", "Server"),
            "document 1: Server shop/web: apiVersion: policy.linkerd.io/v1beta9 is not read; of Server these versions are: \
             v1beta3, v1beta2, v1beta1",
        );
    }

    #[test]
    fn unknown_fields_do_not_hurt() {
        let text = "{apiVersion: v1, kind: Service, metadata: {name: web, shape: round}, spec: {ports: [], colour: red}}";
        assert_eq!(describe(&parse(text).unwrap()[0]), "Service default/web");
    }

    #[test]
    fn a_wrong_field_is_named_by_its_path() {
        let text = "
{apiVersion: v1, kind: Namespace, metadata: {name: shop}}
---
{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}, spec: {ports: [{port: eighty}]}}";
        check(
            text,
            "document 2: Service shop/web: spec.ports[0].port: invalid type: string \"eighty\", expected i32",
        );
    }

    #[test]
    fn half_a_file_is_refused_as_a_whole() {
        let text = "{apiVersion: v1, kind: Namespace, metadata: {name: shop}}\n---\n{apiVersion: v1, kind: ";
        let invalid = parse(text).unwrap_err();
        assert!(matches!(&invalid[..], [Invalid::Syntax { document: 2, .. }]), "{invalid:?}");
    }

    #[test]
    fn a_document_without_a_kind_is_no_object() {
        check("colour: red", "document 1: not a Kubernetes object: apiVersion or kind is missing");
    }

    #[test]
    fn an_object_without_a_name_is_refused() {
        check(
            "{apiVersion: v1, kind: Pod, metadata: {}}",
            "document 1: not a Kubernetes object: Pod: metadata.name is missing",
        );
    }

    #[test]
    fn a_document_that_is_no_mapping_is_refused() {
        let invalid = parse("- a\n- b").unwrap_err();
        assert!(matches!(&invalid[..], [Invalid::NoObject { document: 1, .. }]), "{invalid:?}");
    }

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let invalid: Vec<_> = parse(text).unwrap_err().iter().map(ToString::to_string).collect();
        assert_eq!(invalid, [expected]);
    }

    fn describe(document: &Document) -> String {
        match document {
            Document::Known(resource) => resource.object_ref().to_string(),
            Document::Unread(what) => format!("unread {what}"),
        }
    }
}

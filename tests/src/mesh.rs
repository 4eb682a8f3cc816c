//! A node with Remora's control plane on it: what most promises are tested on, and what the demo shows.

use std::time::Duration;

use anyhow::{Context as _, Result};
use base64::Engine as _;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use serde_json::{Value, json};

use crate::node::{Node, Options};
use crate::world::{self, Name, config_map, kind, parse, secret};

/// The control plane's namespace.
pub const NAMESPACE: &str = "remora";
/// The control plane's pods, services and accounts: ordinary manifests.
pub const CONTROL_PLANE: &str = include_str!("../manifests/control-plane.yaml");
/// The name of the issuer's certificate.
const ISSUER: &str = "identity.linkerd.cluster.local";
/// How long the control plane may take to be ready.
pub const READY: Duration = Duration::from_secs(20);

/// A node whose control plane is ready and whose webhook is registered.
pub struct Mesh {
    pub node: Node,
    root: Authority,
}

impl std::ops::Deref for Mesh {
    type Target = Node;

    fn deref(&self) -> &Node {
        &self.node
    }
}

/// A certificate authority: its certificate as PEM, and the means to sign with it.
pub struct Authority {
    pub pem: String,
    key_pem: String,
    pub(crate) issuer: Issuer<'static, KeyPair>,
}

impl Mesh {
    /// Starts a node and the control plane on it, and waits until it is ready.
    ///
    /// # Errors
    /// Where this machine cannot run it, a binary has not been built, or a process did not become ready: with what
    /// each process said last.
    pub fn start() -> Result<Self> {
        Self::start_with(Options::default(), &json!({}))
    }

    /// [`Self::start`] with a node of one's own, and fields of the injector's configuration that differ.
    pub fn start_with(options: Options, injector: &Value) -> Result<Self> {
        let mut control_plane = control_plane(&options.control_plane_args)?;
        if !options.control_plane_liveness {
            for object in &mut control_plane {
                let container = object.pointer_mut("/spec/containers/0").and_then(Value::as_object_mut);
                container.and_then(|container| container.remove("livenessProbe"));
            }
        }
        let node = Node::start(options)?;
        let root = Authority::root("root.linkerd.cluster.local").context("making the root certificate")?;
        let mesh = Self { node, root };
        let webhook = Authority::root("remora-proxy-injector").context("making the webhook's authority")?;
        mesh.node.apply_objects(mesh.credentials(&webhook, injector)?)?;
        mesh.node.apply_objects(control_plane).context("starting the control plane")?;
        mesh.node.wait_ready(READY).context("the control plane is not ready")?;
        mesh.node.apply_objects(vec![registration(&webhook.pem)])?;
        Ok(mesh)
    }

    /// The PEM of the trust anchor.
    pub fn trust_anchor(&self) -> &str {
        &self.root.pem
    }

    /// The trust anchor with its key, for peers that are played by hand.
    pub fn root(&self) -> &Authority {
        &self.root
    }

    /// Replaces the issuer by a new one of the same root, as an operator rotates it: identity reads the Secret anew.
    pub fn rotate_issuer(&self) -> Result<()> {
        self.offer_issuer(&self.root.intermediate(ISSUER)?)
    }

    /// Writes this issuer into identity's Secret, whether it is one of this mesh or not.
    pub fn offer_issuer(&self, issuer: &Authority) -> Result<()> {
        self.node.apply_objects(vec![issuer_secret(issuer)]).map(drop)
    }

    fn credentials(&self, webhook: &Authority, injector: &Value) -> Result<Vec<Value>> {
        let (certificate, key) = webhook.leaf(&format!("remora-proxy-injector.{NAMESPACE}.svc"))?;
        let mut settings = json!({
            "controlNamespace": NAMESPACE,
            "trustAnchorsFile": "/var/run/remora/trust-roots/ca-bundle.crt",
            "image": {"name": "remora/proxy", "version": "test"},
        });
        for (field, value) in injector.as_object().into_iter().flatten() {
            if let Some(settings) = settings.as_object_mut() {
                settings.insert(field.clone(), value.clone());
            }
        }
        let name = |name: &str| Name::new(NAMESPACE, name);
        let tls = [("tls.crt", certificate.as_bytes()), ("tls.key", key.as_bytes())];
        Ok(vec![
            issuer_secret(&self.root.intermediate(ISSUER).context("making the issuer")?),
            config_map(&name("remora-identity-trust-roots"), &[("ca-bundle.crt", &self.root.pem)]),
            config_map(&name("remora-token-key"), &[("public-key.pem", &self.node.token_public_key())]),
            config_map(
                &name("remora-injector-config"),
                &[("injector.yaml", &serde_norway::to_string(&settings)?)],
            ),
            secret(&name("remora-proxy-injector-k8s-tls"), &tls),
        ])
    }
}

impl Authority {
    /// A self-signed root with a P-256 key, as `linkerd install` takes it.
    pub fn root(name: &str) -> Result<Self> {
        let key = KeyPair::generate()?;
        let params = authority(name, BasicConstraints::Unconstrained)?;
        let certificate = params.self_signed(&key)?;
        Ok(Self { pem: certificate.pem(), key_pem: key.serialize_pem(), issuer: Issuer::new(params, key) })
    }

    /// An authority below this one.
    pub fn intermediate(&self, name: &str) -> Result<Self> {
        let key = KeyPair::generate()?;
        let params = authority(name, BasicConstraints::Constrained(0))?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Self { pem: certificate.pem(), key_pem: key.serialize_pem(), issuer: Issuer::new(params, key) })
    }

    /// A server's certificate and key, as PEM.
    pub fn leaf(&self, dns_name: &str) -> Result<(String, String)> {
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(vec![dns_name.to_owned()])?.signed_by(&key, &self.issuer)?;
        Ok((certificate.pem(), key.serialize_pem()))
    }
}

/// Contract 2.5: the Secret that identity reads its issuer from.
fn issuer_secret(issuer: &Authority) -> Value {
    let name = Name::new(NAMESPACE, "remora-identity-issuer");
    secret(&name, &[("crt.pem", issuer.pem.as_bytes()), ("key.pem", issuer.key_pem.as_bytes())])
}

fn authority(name: &str, constraint: BasicConstraints) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(vec![name.to_owned()])?;
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(constraint);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

/// The control plane's manifests with further arguments of their containers.
fn control_plane(args: &[(&str, String)]) -> Result<Vec<Value>> {
    let mut objects = parse(CONTROL_PLANE)?;
    for (pod, arg) in args {
        let name = Name::new(NAMESPACE, *pod);
        let object = objects.iter_mut().find(|object| kind(object) == "Pod" && world::name(object) == name);
        let object = object.with_context(|| format!("the control plane has no pod {pod}"))?;
        let given = object.pointer_mut("/spec/containers/0/args").and_then(Value::as_array_mut);
        given.with_context(|| format!("pod {pod} has no arguments"))?.push(json!(arg));
    }
    Ok(objects)
}

/// Contract 6.4: the webhook object, with the selectors that keep the control plane from injecting itself.
fn registration(ca: &str) -> Value {
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": "linkerd-proxy-injector-webhook-config"},
        "webhooks": [{
            "name": "linkerd-proxy-injector.linkerd.io",
            "admissionReviewVersions": ["v1"], "sideEffects": "None",
            "failurePolicy": "Fail", "timeoutSeconds": 10,
            "clientConfig": {
                "service": {"name": "remora-proxy-injector", "namespace": NAMESPACE, "path": "/", "port": 443},
                "caBundle": base64::engine::general_purpose::STANDARD.encode(ca),
            },
            "namespaceSelector": {"matchExpressions": [
                {"key": "config.linkerd.io/admission-webhooks", "operator": "NotIn", "values": ["disabled"]},
                {"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": ["kube-system", "cert-manager"]},
            ]},
            "objectSelector": {"matchExpressions": [
                {"key": "linkerd.io/control-plane-component", "operator": "DoesNotExist"},
                {"key": "linkerd.io/cni-resource", "operator": "DoesNotExist"},
            ]},
            "rules": [{
                "operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"],
                "resources": ["pods", "services"],
            }],
        }],
    })
}

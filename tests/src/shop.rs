//! A shop: ready-made manifests for tests of the mesh, and the few questions that all of them ask.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::load::{Load, Plan};
use crate::mesh::Mesh;
use crate::node::{Node, PodRef};

/// A pod whose proxy has no carriers: each of its connections is one between the proxies.
pub const WITHOUT_MUX: (&str, &str) =
    ("config.linkerd.io/proxy-additional-env", r#"[{"name":"REMORA_PROXY_MUX","value":"false"}]"#);
/// How long anything of the shop may take.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// Its namespace, in which every pod is injected.
pub const SHOP: &str = "shop";

/// The Service `web`, between two other documents.
macro_rules! web_service {
    () => {
        "---
kind: Service
apiVersion: v1
metadata: {name: web, namespace: shop}
spec:
  selector: {app: web}
  ports: [{name: http, port: 8000, targetPort: http}]
---
"
    };
}

/// The namespace, with a configuration with which nginx answers the name of its pod, and the Service `web` in front of
/// all pods labelled `app: web`: port 8000 to their port named `http`.
pub const NAMESPACE: &str = concat!(
    "
kind: Namespace
apiVersion: v1
metadata: {name: shop, annotations: {linkerd.io/inject: enabled}}
---
kind: ConfigMap
apiVersion: v1
metadata: {name: site, namespace: shop}
data:
  default.conf: |
    server {
      listen 80;
      listen [::]:80;
      location / { default_type text/plain; return 200 \"$hostname\\n\"; }
      location /files/ { alias /usr/share/nginx/html/; }
    }
",
    web_service!(),
);

/// The shop of a machine without a mesh: a web server on port 80 behind the Service `web`, and a client.
pub const UNMESHED: &str = concat!(
    "
kind: Namespace
apiVersion: v1
metadata: {name: shop}
",
    web_service!(),
    "kind: Pod
apiVersion: v1
metadata: {name: web, namespace: shop, labels: {app: web}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: nginx
    image: nginx:1.27
    ports: [{name: http, containerPort: 80}]
    readinessProbe: {httpGet: {path: /, port: http}, periodSeconds: 1, failureThreshold: 1}
---
kind: Pod
apiVersion: v1
metadata: {name: client, namespace: shop}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: curl, image: curlimages/curl, command: [sleep, infinity]}
",
);

/// A mesh with the shop on it: [`NAMESPACE`] and these objects, all of whose pods are ready.
///
/// # Errors
/// The mesh does not start, or a pod does not become ready.
pub fn open(objects: &[String]) -> Result<Mesh> {
    open_on(Mesh::start()?, objects)
}

/// [`open`] on a mesh that has been started already.
///
/// # Errors
/// A pod does not become ready.
pub fn open_on(mesh: Mesh, objects: &[String]) -> Result<Mesh> {
    mesh.apply(&format!("{NAMESPACE}{}", objects.join("\n---\n")))?;
    mesh.wait_ready(PATIENCE)?;
    Ok(mesh)
}

/// The Service `bytes`, port 9000: the port named `http` of the pods of `web` once more, not as HTTP but as bytes.
pub const BYTES: &str = "
kind: Service
apiVersion: v1
metadata: {name: bytes, namespace: shop}
spec:
  selector: {app: web}
  ports: [{name: bytes, port: 9000, targetPort: http, appProtocol: linkerd.io/tcp}]
---
";

/// A pod with nginx that answers the pod's name on port 80, behind the Service `web`, under its own service account.
///
/// Before it stops it waits a second, as pods behind a Service do: until everybody knows that it goes.
pub fn web(name: &str) -> String {
    format!(
        "
kind: Pod
apiVersion: v1
metadata: {{name: {name}, namespace: shop, labels: {{app: web}}}}
spec:
  serviceAccountName: {name}
  terminationGracePeriodSeconds: 10
  containers:
  - name: nginx
    image: nginx:1.27
    ports: [{{name: http, containerPort: 80}}]
    readinessProbe: {{httpGet: {{path: /, port: http}}, periodSeconds: 1, failureThreshold: 1}}
    lifecycle: {{preStop: {{sleep: {{seconds: 1}}}}}}
    volumeMounts: [{{name: site, mountPath: /etc/nginx/conf.d}}]
  volumes: [{{name: site, configMap: {{name: site}}}}]
---
"
    )
}

/// A pod in which a test runs its own programs ([`crate::app::App`], [`crate::load::Load`], curl), with annotations as
/// `key: value` and a label `app` with its name.
pub fn idle(name: &str, annotations: &[(&str, &str)]) -> String {
    let mut shown = String::new();
    for (key, value) in annotations {
        let _ = write!(shown, "{key}: '{value}', ");
    }
    format!(
        "
kind: Pod
apiVersion: v1
metadata: {{name: {name}, namespace: shop, labels: {{app: {name}}}, annotations: {{{shown}}}}}
spec:
  serviceAccountName: {name}
  terminationGracePeriodSeconds: 0
  containers:
  - {{name: app, image: curlimages/curl, command: [sleep, infinity]}}
---
"
    )
}

/// A Service with one port in front of the pods with this label `app`.
pub fn service(name: &str, port: u16, target: &str) -> String {
    format!(
        "
kind: Service
apiVersion: v1
metadata: {{name: {name}, namespace: shop}}
spec:
  selector: {{app: {name}}}
  ports: [{{name: main, port: {port}, targetPort: {target}}}]
---
"
    )
}

/// The identity of a service account of the shop.
pub fn identity(account: &str) -> String {
    format!("{account}.shop.serviceaccount.identity.remora.cluster.local")
}

/// Runs curl in the pod's application container; its answer.
///
/// # Errors
/// What curl said, if it failed.
pub fn curl(from: &PodRef<'_>, arguments: &[&str]) -> Result<String> {
    let spec = from.object().spec.unwrap_or_default();
    let container = spec.containers.iter().find(|container| container.name != "linkerd-proxy");
    let container = container.with_context(|| format!("{} has no application", from.name))?;
    let argv: Vec<&str> = ["curl", "-sS", "--max-time", "10"].iter().chain(arguments).copied().collect();
    from.run(&container.name, &argv)
}

/// The status, the `l5d-proxy-error` header if there is one, of a GET.
pub fn status(from: &PodRef<'_>, url: &str) -> Result<(u16, String)> {
    let format = "%{http_code} %header{l5d-proxy-error}";
    let answer = curl(from, &["-o", "/dev/null", "-w", format, url])?;
    let (code, error) = answer.split_once(' ').context("curl printed no status")?;
    Ok((code.parse()?, error.to_owned()))
}

/// The first ClusterIP of a Service of the shop.
pub fn cluster_ip(node: &Node, service: &str) -> Result<IpAddr> {
    let service = node.object("Service", SHOP, service).context("there is no such Service")?;
    let ip = service.pointer("/spec/clusterIP").and_then(serde_json::Value::as_str);
    ip.context("the Service has no ClusterIP")?.parse().context("the ClusterIP")
}

/// A load on the Service `web`: four clients that keep their connections, two that do not.
pub fn web_load(node: &Node) -> Result<Plan> {
    Ok(Plan {
        target: SocketAddr::new(cluster_ip(node, "web")?, 8000),
        host: "web:8000".into(),
        path: "/".into(),
        kept: 4,
        fresh: 2,
    })
}

/// Begins with [`web_load`] from this pod.
///
/// # Errors
/// There is no Service `web`.
pub fn customers(node: &Node, from: &PodRef<'_>) -> Result<Load> {
    Load::start(from, web_load(node)?)
}

/// What the pod's proxy knows: its `/state.json`, asked from within the pod.
pub fn state(pod: &PodRef<'_>) -> Result<serde_json::Value> {
    let text = curl(pod, &["-f", "http://127.0.0.1:4191/state.json"])?;
    serde_json::from_str(&text).context("/state.json")
}

//! What a proxy should see, as tables over small manifests.

mod answers;
mod endpoints;
mod memberships;
mod policies;
mod profiles;
mod requests;
mod routes;

use super::*;
use crate::{index::Index, resources::Document, watch::Event};

const CLUSTER: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.96.0.1
  selector: {app: web}
  ports:
  - {name: http, port: 80, targetPort: web}
  - {name: metrics, port: 9090}
  - {name: admin, port: 4191}
  - {name: again, port: 80, targetPort: 1}
  - {name: dns, port: 53, protocol: UDP}
---
apiVersion: v1
kind: Pod
metadata:
  name: web-1
  namespace: shop
  labels: {app: web, linkerd.io/control-plane-ns: remora, pod-template-hash: abc}
  ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: web-abc, uid: u, controller: true}]
spec:
  nodeName: node-a
  serviceAccountName: shopkeeper
  containers:
  - name: app
    ports: [{name: web, containerPort: 8080}]
    livenessProbe: {httpGet: {path: /alive?full=1, port: web}}
    readinessProbe: {httpGet: {port: 8080}}
  initContainers:
  - name: linkerd-proxy
    restartPolicy: Always
    env:
    - {name: LINKERD2_PROXY_INBOUND_LISTEN_ADDR, value: "0.0.0.0:4143"}
    - {name: LINKERD2_PROXY_ADMIN_LISTEN_ADDR, value: "0.0.0.0:4191"}
    - {name: LINKERD2_PROXY_CONTROL_LISTEN_ADDR, value: "[::]:4190"}
status: {podIP: 10.1.0.1, phase: Running, conditions: [{type: Ready, status: "True"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-2, namespace: shop, labels: {app: web}}
spec: {containers: [{name: app, ports: [{name: web, containerPort: 8081}]}]}
status: {podIP: 10.1.0.2}
---
apiVersion: v1
kind: Pod
metadata: {name: web-3, namespace: shop, labels: {app: web}}
spec: {containers: [{name: app, ports: [{name: web, containerPort: 8080}]}]}
status: {podIP: 10.1.0.3, conditions: [{type: Ready, status: "False"}]}
---
apiVersion: v1
kind: Node
metadata: {name: node-a, labels: {topology.kubernetes.io/zone: west}}
"#;

/// The settings of a process without flags.
pub(crate) fn settings() -> Settings {
    let networks = "10.0.0.0/8,100.64.0.0/10,172.16.0.0/12,192.168.0.0/16,fd00::/8";
    Settings {
        cluster_domain: "cluster.local".to_owned(),
        trust_domain: "cluster.local".to_owned(),
        control_namespace: "remora".to_owned(),
        cluster_networks: networks.split(',').map(|net| net.parse().unwrap()).collect(),
        probe_networks: vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()],
        default_inbound_policy: DefaultPolicy::AllUnauthenticated,
        default_opaque_ports: [25, 587, 3306, 4444, 5432, 6379, 9300, 11211].into_iter().collect(),
        transport_mode: TransportMode::TransportHeader,
        h2_upgrade: true,
        heed_request_headers: false,
    }
}

fn index(manifests: &str) -> Index {
    let mut index = Index::default();
    for document in
        crate::resources::parse(manifests).unwrap_or_else(|errors| panic!("{errors:?} in {manifests}"))
    {
        match document {
            Document::Known(resource) => index.apply(Event::Apply(resource)),
            Document::Unread(what) => panic!("{what} is not read"),
        };
    }
    index
}

fn get(manifests: &str, target: &str) -> Result<Endpoints, Refusal> {
    get_for(manifests, target, &Context::default())
}

fn get_for(manifests: &str, target: &str, context: &Context) -> Result<Endpoints, Refusal> {
    let index = index(manifests);
    match Target::parse(target, "cluster.local").unwrap() {
        Target::Service { name, host, port } => {
            endpoints(&mut Lens::new(&index), &settings(), (&name, host.as_deref(), port), context)
        }
        Target::Addr(addr) => panic!("{addr} is no name"),
    }
}

//! Pods that a gateway dials itself: two replicas behind two Services of the [`crate::shop`], one of which has a route,
//! the other a ServiceProfile.

use crate::wire::kit;

/// The Service with the route `canary`: requests with `x-canary: yes` go to the pod `v2`, answers to the others have
/// `x-by: shelf`.
pub const SHELF: &str = "shelf.shop.svc.cluster.local:8000";
/// The Service with the profile, whose one route is named `everything`.
pub const ZOO: &str = "zoo.shop.svc.cluster.local:8001";
/// The replicas of both.
pub const REPLICAS: [&str; 2] = ["shelf-0", "shelf-1"];

/// The replicas and `v2`.
pub fn pods() -> Vec<String> {
    let replica = |name: &str| {
        kit(name, 8080, "http", &[]).replace(&format!("labels: {{app: {name}}}"), "labels: {app: shelf}")
    };
    REPLICAS.into_iter().map(replica).chain([kit("v2", 8080, "http", &[])]).collect()
}

/// The Services, the route and the profile.
pub const OBJECTS: &str = "
kind: HTTPRoute
apiVersion: gateway.networking.k8s.io/v1
metadata: {name: canary, namespace: shop}
spec:
  parentRefs: [{group: core, kind: Service, name: shelf, port: 8000}]
  rules:
  - matches: [{headers: [{name: x-canary, value: 'yes'}]}]
    backendRefs: [{name: v2, port: 8080}]
  - filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-by, value: shelf}]}}]
    backendRefs: [{name: shelf, port: 8000}]
---
kind: Service
apiVersion: v1
metadata: {name: shelf, namespace: shop}
spec:
  selector: {app: shelf}
  ports: [{name: http, port: 8000, targetPort: 8080}]
---
kind: Service
apiVersion: v1
metadata: {name: zoo, namespace: shop}
spec:
  selector: {app: shelf}
  ports: [{name: http, port: 8001, targetPort: 8080}]
---
kind: ServiceProfile
apiVersion: linkerd.io/v1alpha2
metadata: {name: zoo.shop.svc.cluster.local, namespace: shop}
spec:
  routes: [{name: everything, condition: {pathRegex: '.*'}}]
";

//! Manifests in, manifests out.

use super::*;
use crate::decide::PROXY;

const SHOP: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, annotations: {linkerd.io/inject: enabled}}
---
# A comment, and a Service that has no address yet.
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {serviceAccountName: web, containers: [{name: app, image: web}]}
";

#[test]
fn a_workload_has_a_pod_with_a_proxy_and_a_service_has_an_address() {
    let supposed = of(&[("shop.yaml", SHOP)]);
    assert_eq!((supposed.pods, supposed.services, supposed.kept_out.len()), (1, 1, 0));
    let service = &objects(&supposed, "shop.yaml")[1];
    assert_eq!(service["spec"]["clusterIP"], "10.255.255.254");
    let pod = &objects(&supposed, "shop.yaml")[3];
    assert_eq!(pod["metadata"]["name"], "web-0");
    assert_eq!(pod["metadata"]["namespace"], "shop");
    assert_eq!(pod["metadata"]["ownerReferences"][0]["kind"], "Deployment");
    assert_eq!(pod["status"]["podIP"], "10.255.255.253");
    assert!(names(pod).contains(&PROXY.to_owned()), "{:?}", names(pod));
}

#[test]
fn documents_keep_their_numbers_and_what_was_complete_its_text() {
    let other = "# nothing\n---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {name: web}\n";
    let supposed = of(&[("a.yaml", SHOP), ("b.yaml", other)]);
    assert_eq!(supposed.files["b.yaml"], other);
    let kinds = |text: &str| -> Vec<String> {
        let objects = split(text).iter().map(|text| parse(text).unwrap()).collect::<Vec<_>>();
        objects.iter().map(|object| text_at(object.as_ref().unwrap(), "/kind").to_owned()).collect()
    };
    assert_eq!(kinds(&supposed.files["a.yaml"])[..3], kinds(SHOP));
}

#[test]
fn nothing_is_supposed_of_what_a_cluster_has_seen() {
    let live = [
        "{kind: Service, apiVersion: v1, metadata: {name: a}, spec: {clusterIP: 10.1.2.3}}",
        "{kind: Service, apiVersion: v1, metadata: {name: a}, spec: {clusterIP: None}}",
        "{kind: Service, apiVersion: v1, metadata: {name: a}, spec: {type: ExternalName, externalName: b.c}}",
        "{kind: Pod, apiVersion: v1, metadata: {name: a}, spec: {containers: []}, status: {podIP: 10.1.2.3}}",
        "{kind: Pod, apiVersion: v1, metadata: {name: a, uid: u}, spec: {containers: []}}",
        "{kind: Deployment, apiVersion: apps/v1, metadata: {name: a, uid: u}, spec: {template: {spec: {containers: []}}}}",
        "{kind: Deployment, apiVersion: apps/v1, metadata: {name: a}, spec: {replicas: 0, template: {spec: {containers: []}}}}",
        "{kind: ConfigMap, apiVersion: v1, metadata: {name: a}}",
        "no object at all: [",
        "",
    ];
    for text in live {
        let supposed = of(&[("a.yaml", text)]);
        let expected = BTreeMap::from([("a.yaml".to_owned(), text.to_owned())]);
        assert_eq!((&supposed.files, supposed.pods, supposed.services), (&expected, 0, 0), "{text}");
    }
}

#[test]
fn a_workload_whose_pods_are_there_gets_no_other() {
    let pods = "
kind: Pod
apiVersion: v1
metadata: {name: web-abc, namespace: shop, labels: {app: web, pod-template-hash: abc}}
spec: {containers: []}
status: {podIP: 10.1.2.3}
";
    let supposed = of(&[("shop.yaml", SHOP), ("pods.yaml", pods)]);
    assert_eq!((supposed.pods, objects(&supposed, "shop.yaml").len()), (0, 3));
}

#[test]
fn lists_cron_jobs_and_pods_without_an_address_are_looked_into() {
    let list = "
kind: List
apiVersion: v1
items:
- {kind: Pod, apiVersion: v1, metadata: {name: bare}, spec: {containers: [{name: app}]}}
- {kind: Service, apiVersion: v1, metadata: {name: bare}, spec: {ports: [{port: 1}]}}
- kind: CronJob
  apiVersion: batch/v1
  metadata: {name: nightly}
  spec: {jobTemplate: {spec: {template: {metadata: {annotations: {linkerd.io/inject: enabled}}, spec: {containers: [{name: app}]}}}}}
";
    let supposed = of(&[("a.yaml", list)]);
    assert_eq!((supposed.pods, supposed.services), (2, 1));
    let list = &objects(&supposed, "a.yaml")[0];
    assert!(list["items"][0]["status"]["podIP"].is_string(), "{list}");
    // Nobody asked for a proxy.
    assert_eq!(names(&list["items"][0]), ["app"]);
    assert!(names(&objects(&supposed, "a.yaml")[1]).contains(&PROXY.to_owned()));
}

#[test]
fn what_the_webhook_keeps_out_is_named() {
    let same = SHOP.replace("image: web}", "image: web, securityContext: {runAsUser: 2102}}");
    let supposed = of(&[("shop.yaml", &same)]);
    assert_eq!(supposed.pods, 0);
    let [why] = &supposed.kept_out[..] else { panic!("{supposed:?}") };
    assert!(why.starts_with("Deployment shop/web: the webhook would keep its pods out: "), "{why}");
    assert!(why.contains("runs as uid 2102"), "{why}");
}

#[test]
fn addresses_are_those_that_no_manifest_names() {
    let policy = "{kind: NetworkAuthentication, spec: {networks: [{cidr: 10.255.255.254/32}]}}";
    let supposed = of(&[("shop.yaml", SHOP), ("policy.yaml", policy)]);
    assert_eq!(objects(&supposed, "shop.yaml")[1]["spec"]["clusterIP"], "10.255.255.253");
}

#[test]
fn addresses_are_found_however_they_are_written() {
    for (text, addresses) in [
        ("clusterIP: 10.0.0.1\n", &["10.0.0.1"][..]),
        (r#"{"podIP":"10.0.0.1","podIPs":[{"ip":"fd00::0001"}]}"#, &["10.0.0.1", "fd00::1"]),
        ("- --upstream=10.0.0.1:80,[fd00::1]:80", &["10.0.0.1", "fd00::1"]),
        ("cidr: 10.0.0.0/8, fd00::/8", &["10.0.0.0", "fd00::"]),
        ("# not 10.0.0.1.\n10.0.0.2: b", &["10.0.0.1", "10.0.0.2"]),
        ("web.shop:80 1.2 10.0.0.256 12:30:00 ::", &["::"]),
    ] {
        let found: Vec<String> = named(text).map(|ip| ip.to_string()).collect();
        assert_eq!(found, addresses, "{text}");
    }
}

fn of(files: &[(&str, &str)]) -> Supposed {
    let files = files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
    suppose(&files, &InjectorConfig::default())
}

fn objects(supposed: &Supposed, file: &str) -> Vec<Value> {
    split(&supposed.files[file]).iter().filter_map(|text| parse(text).unwrap()).collect()
}

/// Of a pod's containers, init containers first.
fn names(pod: &Value) -> Vec<String> {
    let lists = ["initContainers", "containers"].map(|list| pod["spec"][list].as_array().cloned());
    lists.into_iter().flatten().flatten().map(|one| one["name"].as_str().unwrap().to_owned()).collect()
}

//! `remora inject` on streams of documents: what is changed, what passes through, what is said about it.
#![expect(clippy::unwrap_used, reason = "a failing helper fails its test")]

use remora_injector::{
    annotations::Annotations,
    config::InjectorConfig,
    inject::{Injected, Options, Outcome, Output, stream},
};
use serde::Deserialize;
use serde_json::Value;

fn options() -> Options {
    let config = InjectorConfig {
        trust_anchors_pem: "-----BEGIN CERTIFICATE-----\n".to_owned(),
        ..InjectorConfig::default()
    };
    Options {
        config,
        manual: false,
        annotations: Annotations::new(),
        namespace: "default".to_owned(),
        output: Output::Yaml,
    }
}

fn manual() -> Options {
    Options { manual: true, ..options() }
}

fn workload(kind: &str, name: &str, template: &str) -> String {
    format!("kind: {kind}\nmetadata:\n  name: {name}\nspec:\n{template}")
}

const POD: &str = "  containers:\n  - name: app\n    image: app:1\n";

fn indented(text: &str, by: usize) -> String {
    text.lines().flat_map(|line| [" ".repeat(by), line.to_owned(), "\n".to_owned()]).collect()
}

/// An object of each kind that has pods, and where they are.
fn kinds() -> Vec<(&'static str, &'static str, String)> {
    let template = format!("  template:\n    spec:\n{}", indented(POD, 4));
    let mut kinds = vec![("Pod", "", workload("Pod", "w", POD))];
    for kind in ["Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "ReplicationController", "Job"] {
        kinds.push((kind, "/spec/template", workload(kind, "w", &template)));
    }
    let cron = format!("  jobTemplate:\n    spec:\n{}", indented(&template, 4));
    kinds.push(("CronJob", "/spec/jobTemplate/spec/template", workload("CronJob", "w", &cron)));
    kinds
}

fn objects(injected: &Injected) -> Vec<Value> {
    let documents = serde_norway::Deserializer::from_str(&injected.text);
    documents.map(|document| Value::deserialize(document).unwrap()).collect()
}

#[test]
fn every_kind_with_pods_gets_the_annotation() {
    for (kind, prefix, text) in kinds() {
        let injected = stream(&text, &options()).unwrap();
        let annotation = format!("{prefix}/metadata/annotations/linkerd.io~1inject");
        assert_eq!(objects(&injected)[0].pointer(&annotation), Some(&Value::from("enabled")), "{kind}");
        assert_eq!((injected.reports.len(), injected.reports[0].outcome), (1, Outcome::Injected));
        assert_eq!(injected.reports[0].kind, kind.to_lowercase());
    }
}

#[test]
fn every_kind_with_pods_gets_the_sidecar_by_hand() {
    for (kind, prefix, text) in kinds() {
        let injected = stream(&text, &manual()).unwrap();
        let object = &objects(&injected)[0];
        let names = object.pointer(&format!("{prefix}/spec/initContainers")).unwrap().as_array().unwrap();
        assert_eq!(
            (&names[0]["name"], &names[1]["name"]),
            (&Value::from("linkerd-init"), &Value::from("linkerd-proxy"))
        );
        let label = format!("{prefix}/metadata/labels/linkerd.io~1proxy-{}", kind.to_lowercase());
        assert_eq!(object.pointer(&label).is_some(), kind != "Pod", "{kind}");
        let again = stream(&injected.text, &manual()).unwrap();
        assert_eq!(
            (again.reports[0].outcome, again.text == injected.text),
            (Outcome::Skipped, true),
            "{kind}: twice is once"
        );
    }
}

#[test]
fn what_is_not_ours_passes_through_byte_for_byte() {
    let text = "# a comment\n---\nkind: ConfigMap # odd   spacing\nmetadata: {name:   c}\ndata:\n  script: |\n    --- not a marker\n---\nkind: Service\nmetadata: {name: s}\n";
    let injected = stream(text, &options()).unwrap();
    assert_eq!(injected.text, text);
    let outcomes: Vec<Outcome> = injected.reports.iter().map(|report| report.outcome).collect();
    assert_eq!(outcomes, [Outcome::Skipped, Outcome::Skipped]);
    assert!(injected.reports[0].reasons[0].contains("no pods"));
}

#[test]
fn lists_are_looked_into() {
    let text = format!(
        "kind: List\nitems:\n- kind: Pod\n  metadata: {{name: a}}\n  spec:\n{}- kind: Secret\n  metadata: {{name: b}}\n",
        indented(POD, 2)
    );
    let injected = stream(&text, &options()).unwrap();
    let list = &objects(&injected)[0];
    assert_eq!(list["items"][0]["metadata"]["annotations"]["linkerd.io/inject"], "enabled");
    assert_eq!(list["items"][1], serde_json::json!({"kind": "Secret", "metadata": {"name": "b"}}));
    assert_eq!(injected.reports.len(), 2);
}

#[test]
fn namespaces_and_services_are_annotated() {
    let text = "kind: Namespace\nmetadata:\n  name: shop\n---\nkind: Service\nmetadata:\n  name: db\n";
    let mut options = options();
    options.annotations.insert("config.linkerd.io/opaque-ports".to_owned(), "3306".to_owned());
    options.annotations.insert("config.linkerd.io/proxy-uid".to_owned(), "3".to_owned());
    let injected = stream(text, &options).unwrap();
    let objects = objects(&injected);
    assert_eq!(objects[0]["metadata"]["annotations"]["linkerd.io/inject"], "enabled");
    assert_eq!(objects[0]["metadata"]["annotations"]["config.linkerd.io/proxy-uid"], "3");
    assert_eq!(
        objects[1]["metadata"]["annotations"],
        serde_json::json!({"config.linkerd.io/opaque-ports": "3306"})
    );
    assert!(injected.reports.iter().all(|report| report.outcome == Outcome::Annotated));
}

#[test]
fn what_the_pod_refuses_stays_as_it_is() {
    let off = "kind: Pod\nmetadata:\n  name: p\n  annotations: {linkerd.io/inject: disabled} # no\nspec:\n  containers: []\n";
    let host = "kind: Pod\nmetadata:\n  name: p\nspec:\n  hostNetwork: true # yes\n  containers: []\n";
    for options in [options(), manual()] {
        for (text, word) in [(off, "disabled"), (host, "hostNetwork")] {
            let injected = stream(text, &options).unwrap();
            assert_eq!(injected.text, text);
            assert_eq!(injected.reports[0].outcome, Outcome::Skipped);
            assert!(injected.reports[0].reasons[0].contains(word), "{:?}", injected.reports);
        }
    }
}

#[test]
fn a_switch_that_stands_is_kept() {
    let of = |kind: &str, value: &str| {
        format!(
            "kind: {kind}\nmetadata:\n  name: x\n  annotations: {{linkerd.io/inject: {value}}}\nspec:\n  containers: []\n"
        )
    };
    let off = of("Namespace", "disabled");
    let injected = stream(&off, &options()).unwrap();
    assert_eq!((injected.text.as_str(), injected.reports[0].outcome), (off.as_str(), Outcome::Skipped));
    for kind in ["Namespace", "Pod"] {
        let injected = stream(&of(kind, "ingress"), &options()).unwrap();
        assert_eq!(
            objects(&injected)[0]["metadata"]["annotations"]["linkerd.io/inject"],
            "ingress",
            "{kind}"
        );
    }
}

#[test]
fn what_must_not_be_injected_is_refused() {
    let text = "kind: Pod\nmetadata:\n  name: p\nspec:\n  containers:\n  - name: app\n    securityContext: {runAsUser: 2102}\n";
    for options in [options(), manual()] {
        let injected = stream(text, &options).unwrap();
        assert_eq!(injected.reports[0].outcome, Outcome::Refused);
        assert!(injected.reports[0].reasons[0].contains("uid 2102"), "{:?}", injected.reports);
    }
}

#[test]
fn namespaces_in_the_stream_count_for_its_pods() {
    let text = "kind: Pod\nmetadata: {name: p, namespace: shop}\nspec:\n  containers: [{name: app}]\n---\nkind: Namespace\nmetadata:\n  name: shop\n  annotations: {config.linkerd.io/proxy-log-level: trace}\n";
    let injected = stream(text, &manual()).unwrap();
    let annotations = &objects(&injected)[0]["metadata"]["annotations"];
    assert_eq!(annotations["config.linkerd.io/proxy-log-level"], "trace");
}

#[test]
fn json_comes_out_as_a_stream_of_json() {
    let text = "kind: Pod\nmetadata: {name: p}\nspec:\n  containers: [{name: app}]\n---\n# nothing\n---\nkind: Secret\n";
    let injected = stream(text, &Options { output: Output::Json, ..options() }).unwrap();
    let values: Vec<Value> =
        serde_json::Deserializer::from_str(&injected.text).into_iter().collect::<Result<_, _>>().unwrap();
    let kinds: Vec<&Value> = values.iter().map(|value| &value["kind"]).collect();
    assert_eq!(kinds, ["Pod", "Secret"]);
}

#[test]
fn what_cannot_be_read_is_named() {
    for (text, word) in [
        ("kind: Secret\n---\nkind: [\n", "document 2: not YAML"),
        ("- a\n- b\n", "document 1: not a Kubernetes object"),
        ("kind: Pod\nmetadata: {name: p}\n", "pod/p: not a valid pod: it has no spec"),
        ("kind: Pod\nmetadata: {name: p}\nspec: {containers: 3}\n", "pod/p: not a valid pod"),
        ("kind: Deployment\nmetadata: {name: d}\n", "deployment/d: it has no /spec/template"),
        ("kind: Pod\nmetadata: [1]\nspec: {containers: []}\n", "not a map"),
    ] {
        let error = stream(text, &options()).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
}

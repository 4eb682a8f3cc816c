//! What holds for every pod: injected, it is still a pod with all it had; injected twice, it is injected once.
#![expect(clippy::indexing_slicing, clippy::unwrap_used, reason = "a failing helper fails its test")]

use std::collections::BTreeSet;

use proptest::prelude::*;
use remora_injector::{
    annotations::INJECT,
    config::InjectorConfig,
    decide::{Decision, Skip, Subject, Surroundings, decide},
    patch::patch,
    pod::{Pod, Quality},
};
use serde_json::{Value, json};

fn resources() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!({})),
        Just(json!({"requests": {"cpu": "100m"}})),
        Just(json!({"limits": {"cpu": "1", "memory": "64Mi"}})),
        Just(json!({"limits": {"memory": "64Mi"}, "requests": {"memory": "32Mi"}})),
    ]
}

fn container(name: String) -> impl Strategy<Value = Value> {
    let ports = prop::collection::vec((1u16.., prop_oneof![Just("TCP"), Just("UDP"), Just("SCTP")]), 0..4);
    (ports, resources(), prop::option::of(0u32..5000), any::<bool>()).prop_map(
        move |(ports, resources, uid, probed)| {
            let ports: Vec<Value> = ports
                .into_iter()
                .map(|(port, protocol)| json!({"containerPort": port, "protocol": protocol}))
                .collect();
            let mut container =
                json!({"name": name, "image": "app:1", "ports": ports, "resources": resources});
            if let Some(uid) = uid {
                container["securityContext"] = json!({"runAsUser": uid});
            }
            if probed {
                container["livenessProbe"] = json!({"httpGet": {"path": "/", "port": 8080}});
            }
            container
        },
    )
}

fn annotation() -> impl Strategy<Value = (String, String)> {
    let names: Vec<&str> = remora_injector::annotations::ANNOTATIONS.iter().map(|row| row.name).collect();
    let values = prop_oneof![
        Just("true".to_owned()),
        Just("false".to_owned()),
        Just("enabled".to_owned()),
        Just("8080,9000-9002".to_owned()),
        Just("100m".to_owned()),
        Just("5s".to_owned()),
        Just("[]".to_owned()),
        "[ -~]{0,12}",
    ];
    (prop::sample::select(names).prop_map(str::to_owned), values)
}

fn pod() -> impl Strategy<Value = Value> {
    let annotations = prop::collection::vec(annotation(), 0..5);
    (
        container("a".to_owned()),
        prop::option::of(container("b".to_owned())),
        prop::option::of(container("early".to_owned())),
        annotations,
        prop::option::of(Just(json!([{"name": "data", "emptyDir": {}}]))),
        any::<bool>(),
    )
        .prop_map(|(first, second, early, annotations, volumes, labelled)| {
            let mut pod = json!({
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": "p"},
                "spec": {"containers": [first]},
            });
            if let (Some(second), Some(list)) = (second, pod["spec"]["containers"].as_array_mut()) {
                list.push(second);
            }
            if let Some(early) = early {
                pod["spec"]["initContainers"] = json!([early]);
            }
            if let Some(volumes) = volumes {
                pod["spec"]["volumes"] = volumes;
            }
            if labelled {
                pod["metadata"]["labels"] = json!({"app": "p"});
            }
            for (name, value) in annotations {
                pod["metadata"]["annotations"][name] = json!(value);
            }
            pod["metadata"]["annotations"][INJECT] = json!("enabled");
            pod
        })
}

fn decided(manifest: &Value) -> (Pod, Decision) {
    let pod = Pod::read(manifest).unwrap();
    let surroundings = Surroundings::default();
    let subject =
        Subject { pod: &pod, namespace: "shop", surroundings: &surroundings, owner: None, gateway: None };
    let decision = decide(&subject, &InjectorConfig::default());
    (pod, decision)
}

fn apply(manifest: &Value) -> Option<Value> {
    let (pod, Decision::Inject(plan)) = decided(manifest) else { return None };
    let surroundings = Surroundings::default();
    let subject =
        Subject { pod: &pod, namespace: "shop", surroundings: &surroundings, owner: None, gateway: None };
    let patch = patch(&subject, &plan, &InjectorConfig::default(), "");
    let mut after = manifest.clone();
    patch.apply(&mut after).unwrap();
    Some(after)
}

fn named(pod: &Value, list: &str) -> Vec<Value> {
    pod["spec"][list].as_array().cloned().unwrap_or_default()
}

proptest! {
    #[test]
    fn injection_adds_and_changes_nothing_else(before in pod()) {
        let Some(after) = apply(&before) else { return Ok(()) };

        // Still a pod, and every name in it is one of a kind.
        let read = Pod::read(&after).unwrap();
        let names: Vec<&str> = read.containers().map(|container| container.name.as_str()).collect();
        prop_assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());

        // Everything that stood there stands there, in its order.
        for list in ["initContainers", "containers", "volumes"] {
            let ours = |entry: &Value| entry["name"].as_str().is_some_and(|name| name.starts_with("linkerd-"));
            let kept: Vec<Value> = named(&after, list).into_iter().filter(|entry| !ours(entry)).collect();
            prop_assert_eq!(kept, named(&before, list));
        }
        for map in ["labels", "annotations"] {
            for (name, value) in before["metadata"][map].as_object().into_iter().flatten() {
                if name != "config.linkerd.io/opaque-ports" {
                    prop_assert_eq!(&after["metadata"][map][name], value);
                }
            }
        }

        // Both containers, once each; and the class of service only changes where an annotation asks for resources,
        // and never from Guaranteed.
        prop_assert_eq!(names.iter().filter(|name| ["linkerd-init", "linkerd-proxy"].contains(name)).count(), 2);
        let asked = before["metadata"]["annotations"].as_object().unwrap().keys().any(|name| {
            name.ends_with("-request") || name.ends_with("-limit")
        });
        let quality = Pod::read(&before).unwrap().quality();
        prop_assert!(asked && quality != Quality::Guaranteed || quality == read.quality());
    }

    #[test]
    fn twice_is_once(before in pod()) {
        let Some(after) = apply(&before) else { return Ok(()) };
        prop_assert_eq!(decided(&after).1, Decision::Skip(Skip::SidecarExists));
        prop_assert_eq!(apply(&before), Some(after), "the same pod becomes the same");
    }

    #[test]
    fn no_annotation_panics_or_makes_an_invalid_pod(name_value in annotation(), text in "\\PC{0,40}") {
        let (name, _) = name_value;
        let pod = json!({
            "metadata": {"annotations": {INJECT: "enabled", name: text}},
            "spec": {"containers": [{"name": "a"}]},
        });
        if let Some(after) = apply(&pod) {
            Pod::read(&after).unwrap();
        }
    }
}

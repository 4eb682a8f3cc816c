//! Tables of decisions: (pod, namespace, configuration) → inject, skip or refuse, with the reason.

use serde_json::{Value, json};

use super::*;

fn map(entries: &[(&str, &str)]) -> Annotations {
    entries.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// A decision about a pod of one container in namespace `shop`, after `change` to the pod's manifest.
fn about(namespace: &[(&str, &str)], own: &[(&str, &str)], change: impl FnOnce(&mut Value)) -> Decision {
    let mut manifest = json!({
        "metadata": {"name": "web", "annotations": map(own)},
        "spec": {"containers": [{"name": "app", "image": "app:1"}]},
    });
    change(&mut manifest);
    let pod = Pod::read(&manifest).unwrap();
    let surroundings = Surroundings { annotations: map(namespace), labels: Annotations::new() };
    let subject =
        Subject { pod: &pod, namespace: "shop", surroundings: &surroundings, owner: None, gateway: None };
    decide(&subject, &InjectorConfig::default())
}

fn untouched(_: &mut Value) {}

/// What a test does to a pod's manifest.
type Change = fn(&mut Value);

#[track_caller]
fn plan(decision: Decision) -> Plan {
    match decision {
        Decision::Inject(plan) => *plan,
        other => panic!("not injected: {other:?}"),
    }
}

#[track_caller]
fn refusals(decision: Decision) -> Vec<String> {
    match decision {
        Decision::Refuse(refusals) => refusals.iter().map(ToString::to_string).collect(),
        other => panic!("not refused: {other:?}"),
    }
}

const ENABLED: (&str, &str) = (INJECT, "enabled");

#[test]
fn the_pods_word_beats_the_namespaces() {
    let (on, off, ingress, odd) = ("enabled", "disabled", "ingress", "yes");
    let by = |asked_by| Ok::<AskedBy, Skip>(asked_by);
    for (namespace, own, expected) in [
        (None, None, Err(Skip::NotAnnotated)),
        (Some(""), Some(""), Err(Skip::NotAnnotated)),
        (Some(on), None, by(AskedBy::Namespace)),
        (Some(ingress), None, by(AskedBy::Namespace)),
        (Some(off), None, Err(Skip::DisabledByNamespace)),
        (Some(odd), None, Err(Skip::InvalidAtNamespace)),
        (None, Some(on), by(AskedBy::Workload)),
        (Some(off), Some(on), by(AskedBy::Workload)),
        (Some(odd), Some(ingress), by(AskedBy::Workload)),
        (Some(on), Some(off), Err(Skip::DisabledByWorkload)),
        (Some(on), Some(odd), Err(Skip::InvalidAtWorkload)),
        (Some(on), Some(""), by(AskedBy::Namespace)),
    ] {
        let at = |value: Option<&'static str>| value.map(|value| vec![(INJECT, value)]).unwrap_or_default();
        let decided = match about(&at(namespace), &at(own), untouched) {
            Decision::Inject(plan) => Ok(plan.asked_by),
            Decision::Skip(skip) => Err(skip),
            Decision::Refuse(why) => panic!("{why:?}"),
        };
        assert_eq!(decided, expected, "namespace {namespace:?}, pod {own:?}");
    }
}

#[test]
fn what_cannot_have_a_proxy_is_skipped_by_reason() {
    let cases: [(Skip, Change); 8] = [
        (Skip::HostNetwork, |pod| pod["spec"]["hostNetwork"] = json!(true)),
        (Skip::SidecarExists, |pod| {
            pod["metadata"]["labels"] = json!({CONTROL_NS_LABEL: "remora"});
            pod["spec"]["initContainers"] = json!([{"name": PROXY}]);
        }),
        (Skip::SidecarExists, |pod| pod["spec"]["containers"][0]["name"] = json!("istio-proxy")),
        (Skip::SidecarExists, |pod| pod["spec"]["initContainers"] = json!([{"name": "istio-init"}])),
        (Skip::SidecarExists, |pod| {
            pod["spec"]["containers"][0]["image"] = json!("cr.l5d.io/linkerd/proxy:edge-26.11.1");
        }),
        (Skip::ControlPlane, |pod| {
            pod["metadata"]["labels"] = json!({"linkerd.io/control-plane-component": "destination"});
        }),
        (Skip::Windows, |pod| pod["spec"]["os"] = json!({"name": "windows"})),
        (Skip::HostNetwork, |pod| {
            // A reason not to inject comes before a reason to refuse.
            pod["spec"]["hostNetwork"] = json!(true);
            pod["spec"]["volumes"] = json!([{"name": TOKEN_VOLUME}]);
        }),
    ];
    for (skip, change) in cases {
        assert_eq!(about(&[ENABLED], &[], change), Decision::Skip(skip));
    }
}

#[test]
fn the_control_namespace_and_exempt_namespaces_are_skipped() {
    let pod = Pod::read(&json!({"spec": {"containers": [{"name": "app"}]}})).unwrap();
    let exempt = map(&[("config.linkerd.io/admission-webhooks", "disabled")]);
    for (namespace, labels, skip) in
        [("remora", Annotations::new(), Skip::ControlPlane), ("shop", exempt, Skip::WebhooksDisabled)]
    {
        let surroundings = Surroundings { annotations: map(&[ENABLED]), labels };
        let subject =
            Subject { pod: &pod, namespace, surroundings: &surroundings, owner: None, gateway: None };
        assert_eq!(decide(&subject, &InjectorConfig::default()), Decision::Skip(skip));
    }
}

#[test]
fn a_proxy_that_would_send_plaintext_all_the_same_is_refused() {
    let demanded = ("config.linkerd.io/outbound-default-policy", "all-authenticated");
    let theirs = ("config.linkerd.io/proxy-image", "cr.l5d.io/linkerd/proxy");
    plan(about(&[ENABLED, demanded], &[], untouched));
    plan(about(&[ENABLED, demanded], &[theirs, (demanded.0, "all-unauthenticated")], untouched));
    let why = refusals(about(&[ENABLED, demanded], &[theirs], untouched));
    assert!(why.len() == 1 && why[0].contains(demanded.0) && why[0].contains(theirs.1), "{why:?}");
    let why = refusals(about(&[ENABLED], &[(demanded.0, "require-mtls")], untouched));
    assert!(why.len() == 1 && why[0].contains("cluster-authenticated"), "{why:?}");
}

#[test]
fn a_gateway_turns_injection_on_and_never_off() {
    let odd = "config.linkerd.io/proxy-uid";
    for (gateway, namespace, own, expected) in [
        (Some("enabled"), None, None, Some((AskedBy::Gateway, false))),
        (Some("ingress"), Some("disabled"), None, Some((AskedBy::Gateway, true))),
        (Some("disabled"), Some("enabled"), None, Some((AskedBy::Namespace, false))),
        (Some("enabled"), None, Some("disabled"), None),
        (Some("ingress"), None, Some("enabled"), Some((AskedBy::Workload, false))),
        (None, None, None, None),
    ] {
        let at = |value: Option<&'static str>| value.map(|value| vec![(INJECT, value)]).unwrap_or_default();
        let pod =
            json!({"metadata": {"annotations": map(&at(own))}, "spec": {"containers": [{"name": "envoy"}]}});
        let pod = Pod::read(&pod).unwrap();
        let surroundings = Surroundings { annotations: map(&at(namespace)), labels: Annotations::new() };
        let subject =
            Subject { pod: &pod, namespace: "edge", surroundings: &surroundings, owner: None, gateway };
        let decided = match decide(&subject, &InjectorConfig::default()) {
            Decision::Inject(plan) => {
                assert!(!plan.inherited.contains_key(odd));
                if plan.asked_by == AskedBy::Gateway {
                    assert_eq!(plan.inherited.get(INJECT).map(String::as_str), gateway);
                }
                Some((plan.asked_by, plan.settings.ingress))
            }
            _ => None,
        };
        assert_eq!(decided, expected, "{gateway:?} {namespace:?} {own:?}");
    }
}

#[test]
fn a_container_with_the_proxys_uid_is_refused_by_name() {
    let own = refusals(about(&[ENABLED], &[], |pod| {
        pod["spec"]["containers"][0]["securityContext"] = json!({"runAsUser": 2102});
    }));
    assert_eq!(own.len(), 1);
    assert!(own[0].contains("\"app\" runs as uid 2102") && own[0].contains("proxy-uid"), "{own:?}");

    let inherited = refusals(about(&[ENABLED], &[], |pod| {
        pod["spec"]["securityContext"] = json!({"runAsUser": 2102});
        pod["spec"]["initContainers"] =
            json!([{"name": "early"}, {"name": "fine", "securityContext": {"runAsUser": 1}}]);
    }));
    assert_eq!(inherited.len(), 2, "{inherited:?}");

    let moved = about(&[ENABLED], &[("config.linkerd.io/proxy-uid", "2103")], |pod| {
        pod["spec"]["containers"][0]["securityContext"] = json!({"runAsUser": 2102});
    });
    assert_eq!(plan(moved).settings.uid, 2103);
}

#[test]
fn a_container_with_the_proxys_gid_is_refused_if_it_has_one() {
    let change = |pod: &mut Value| pod["spec"]["securityContext"] = json!({"runAsGroup": 3000});
    plan(about(&[ENABLED], &[], change));
    let why = refusals(about(&[ENABLED], &[("config.linkerd.io/proxy-gid", "3000")], change));
    assert!(why[0].contains("gid 3000") && why[0].contains("proxy-gid"), "{why:?}");
}

#[test]
fn our_names_in_a_pods_own_spec_are_refused() {
    let cases: [(&str, Change); 6] = [
        ("linkerd-proxy", |pod| pod["spec"]["containers"][0]["name"] = json!(PROXY)),
        ("linkerd-init", |pod| pod["spec"]["initContainers"] = json!([{"name": INIT}])),
        (END_ENTITY_VOLUME, |pod| {
            pod["spec"]["volumes"] = json!([{"name": END_ENTITY_VOLUME, "emptyDir": {}}]);
        }),
        (TOKEN_VOLUME, |pod| pod["spec"]["volumes"] = json!([{"name": TOKEN_VOLUME, "emptyDir": {}}])),
        (XTABLES_VOLUME, |pod| pod["spec"]["volumes"] = json!([{"name": XTABLES_VOLUME, "emptyDir": {}}])),
        // Not valid now, but it would be after the patch: and would show the proxy's key to the application.
        ("mounts \"linkerd-identity-end-entity\"", |pod| {
            pod["spec"]["containers"][0]["volumeMounts"] =
                json!([{"name": END_ENTITY_VOLUME, "mountPath": "/k"}]);
        }),
    ];
    for (word, change) in cases {
        let why = refusals(about(&[ENABLED], &[], change));
        assert!(why.len() == 1 && why[0].contains(word), "{word}: {why:?}");
    }
}

#[test]
fn every_reason_to_refuse_is_named_at_once() {
    let why = refusals(about(
        &[ENABLED, ("config.linkerd.io/skip-subnets", "10.0.0.0/99")],
        &[("config.linkerd.io/proxy-additional-env", "{}")],
        |pod| pod["spec"]["volumes"] = json!([{"name": TOKEN_VOLUME}]),
    ));
    assert_eq!(why.len(), 3, "{why:?}");
    assert!(
        why.iter().any(|why| why.contains("skip-subnets of the namespace") && why.contains("10.0.0.0/99"))
    );
    assert!(why.iter().any(|why| why.contains("proxy-additional-env of the pod")));
}

#[test]
fn what_is_rarely_meant_is_remarked() {
    let udp = plan(about(&[ENABLED], &[], |pod| {
        pod["spec"]["containers"][0]["ports"] = json!([{"containerPort": 53, "protocol": "UDP"}]);
    }));
    assert!(udp.warnings.iter().any(|warning| warning.contains("UDP")), "{:?}", udp.warnings);

    let taken = plan(about(&[ENABLED], &[], |pod| {
        pod["spec"]["containers"][0]["ports"] = json!([{"containerPort": 4191}]);
    }));
    assert!(taken.warnings.iter().any(|warning| warning.contains("port 4191")), "{:?}", taken.warnings);

    let useless = plan(about(
        &[ENABLED],
        &[("config.alpha.linkerd.io/proxy-wait-before-exit-seconds", "5")],
        untouched,
    ));
    assert!(useless.warnings[0].contains("no effect"), "{:?}", useless.warnings);

    let odd = plan(about(&[(INJECT, "yes")], &[ENABLED], untouched));
    assert!(odd.warnings[0].contains("of the namespace"), "{:?}", odd.warnings);
}

#[test]
fn a_job_whose_proxy_stays_is_remarked() {
    let pod = Pod::read(&json!({"spec": {"containers": [{"name": "app"}]}})).unwrap();
    let owner = Owner { kind: "Job".to_owned(), name: "once".to_owned() };
    let surroundings = Surroundings {
        annotations: map(&[ENABLED, ("config.linkerd.io/proxy-enable-native-sidecar", "false")]),
        labels: Annotations::new(),
    };
    let subject = Subject {
        pod: &pod,
        namespace: "shop",
        surroundings: &surroundings,
        owner: Some(&owner),
        gateway: None,
    };
    let plan = plan(decide(&subject, &InjectorConfig::default()));
    assert!(plan.warnings.iter().any(|warning| warning.contains("will not complete")), "{:?}", plan.warnings);
}

#[test]
fn by_hand_only_the_pods_own_no_counts() {
    let decided = |own: &[(&str, &str)]| {
        let pod = json!({"metadata": {"annotations": map(own)}, "spec": {"containers": [{"name": "app"}]}});
        let pod = Pod::read(&pod).unwrap();
        let surroundings =
            Surroundings { annotations: map(&[(INJECT, "disabled")]), labels: Annotations::new() };
        let subject =
            Subject { pod: &pod, namespace: "shop", surroundings: &surroundings, owner: None, gateway: None };
        decide_by_hand(&subject, &InjectorConfig::default())
    };
    assert_eq!(plan(decided(&[])).asked_by, AskedBy::Caller);
    assert_eq!(plan(decided(&[ENABLED])).asked_by, AskedBy::Caller);
    assert_eq!(decided(&[(INJECT, "disabled")]), Decision::Skip(Skip::DisabledByWorkload));
    assert_eq!(decided(&[(INJECT, "maybe")]), Decision::Skip(Skip::InvalidAtWorkload));
}

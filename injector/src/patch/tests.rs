//! Tables of what is written into a pod, and the patch applied to whole pods.

use serde_json::{Value, json};

use super::*;
use crate::{
    annotations::INJECT,
    decide::{Decision, INIT, Owner, PROXY, Surroundings, decide},
};

/// What becomes of a pod in a namespace that asks for injection, and the warnings.
fn injected(manifest: &Value, config: &InjectorConfig) -> (Value, Vec<String>) {
    let pod = Pod::read(manifest).unwrap();
    let mut surroundings = Surroundings::default();
    surroundings.annotations.insert(INJECT.to_owned(), "enabled".to_owned());
    let owner = Owner { kind: "Deployment".to_owned(), name: "web".to_owned() };
    let subject = Subject {
        pod: &pod,
        namespace: "shop",
        surroundings: &surroundings,
        owner: Some(&owner),
        gateway: None,
    };
    let Decision::Inject(plan) = decide(&subject, config) else { panic!("not injected: {manifest}") };
    let patch = patch(&subject, &plan, config, "");
    let mut after = manifest.clone();
    patch.apply(&mut after).unwrap();
    (after, patch.warnings)
}

fn config() -> InjectorConfig {
    InjectorConfig {
        trust_anchors_pem: "-----BEGIN CERTIFICATE-----\n".to_owned(),
        ..InjectorConfig::default()
    }
}

fn simple(annotations: &Value) -> Value {
    json!({
        "metadata": {"name": "web", "annotations": annotations},
        "spec": {"containers": [{"name": "app", "image": "app:1", "ports": [{"containerPort": 8080}]}]},
    })
}

/// The container of that name, wherever it is.
#[track_caller]
fn container<'a>(pod: &'a Value, name: &str) -> &'a Value {
    let lists = ["initContainers", "containers"].map(|list| pod["spec"][list].as_array());
    lists.into_iter().flatten().flatten().find(|container| container["name"] == name).unwrap()
}

#[track_caller]
fn variable(pod: &Value, name: &str) -> Option<String> {
    let env = container(pod, PROXY)["env"].as_array().unwrap();
    let found: Vec<&Value> = env.iter().filter(|variable| variable["name"] == name).collect();
    assert!(found.len() < 2, "{name} is set twice");
    found.first().map(|variable| variable["value"].as_str().unwrap_or("(field)").to_owned())
}

#[track_caller]
fn argument(pod: &Value, flag: &str) -> Option<String> {
    let args = container(pod, INIT)["args"].as_array().unwrap();
    let at = args.iter().position(|arg| arg == flag)?;
    Some(args[at + 1].as_str().unwrap().to_owned())
}

fn order(pod: &Value, list: &str) -> Vec<String> {
    let containers = pod["spec"][list].as_array().unwrap();
    containers.iter().map(|container| container["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn operations_come_in_the_contracts_order() {
    let pod = Pod::read(&json!({"spec": {"containers": [{"name": "app"}]}})).unwrap();
    let mut surroundings = Surroundings::default();
    surroundings.annotations.insert(INJECT.to_owned(), "enabled".to_owned());
    let subject =
        Subject { pod: &pod, namespace: "shop", surroundings: &surroundings, owner: None, gateway: None };
    let Decision::Inject(plan) = decide(&subject, &config()) else { panic!("not injected") };
    let patch = patch(&subject, &plan, &config(), "/spec/template");
    let paths: Vec<String> = patch
        .operations
        .iter()
        .map(|operation| {
            operation["path"].as_str().unwrap().strip_prefix("/spec/template").unwrap().to_owned()
        })
        .collect();
    assert_eq!(
        paths,
        [
            "/metadata",
            "/metadata/annotations",
            "/metadata/annotations/linkerd.io~1created-by",
            "/metadata/annotations/linkerd.io~1inject",
            "/metadata/annotations/linkerd.io~1proxy-version",
            "/metadata/annotations/linkerd.io~1trust-root-sha256",
            "/metadata/labels",
            "/metadata/labels/linkerd.io~1control-plane-ns",
            "/metadata/labels/linkerd.io~1workload-ns",
            "/spec/volumes",
            "/spec/initContainers",
            "/spec/volumes/-",
            "/spec/initContainers/0",
            "/spec/volumes/-",
            "/spec/volumes/-",
            "/spec/initContainers/1",
        ]
    );
}

#[test]
fn the_proxy_stands_where_its_start_needs_it() {
    let native = |annotations: &Value| {
        let mut pod = simple(annotations);
        pod["spec"]["initContainers"] = json!([{"name": "migrate"}]);
        injected(&pod, &config()).0
    };
    let pod = native(&json!({}));
    assert_eq!(order(&pod, "initContainers"), [INIT, PROXY, "migrate"]);
    assert_eq!(container(&pod, PROXY)["restartPolicy"], "Always");
    assert_eq!(container(&pod, PROXY)["startupProbe"]["failureThreshold"], 120);

    let impatient = native(&json!({"config.linkerd.io/proxy-await": "disabled"}));
    assert_eq!(container(&impatient, PROXY).get("startupProbe"), None);

    let off = "config.linkerd.io/proxy-enable-native-sidecar";
    let ordinary = native(&json!({off: "false"}));
    assert_eq!(order(&ordinary, "initContainers"), ["migrate", INIT]);
    assert_eq!(order(&ordinary, "containers"), [PROXY, "app"]);
    let hook = &container(&ordinary, PROXY)["lifecycle"]["postStart"]["exec"]["command"][0];
    assert_eq!(hook, "/usr/lib/linkerd/linkerd-await");

    let last = native(&json!({
        off: "false",
        "config.linkerd.io/proxy-await": "disabled",
        "config.alpha.linkerd.io/proxy-wait-before-exit-seconds": "7",
    }));
    assert_eq!(order(&last, "containers"), ["app", PROXY]);
    let lifecycle = &container(&last, PROXY)["lifecycle"];
    assert_eq!(*lifecycle, json!({"preStop": {"exec": {"command": ["/bin/sleep", "7"]}}}));
}

#[test]
fn opaque_ports_are_resolved_and_written_where_both_sides_read_them() {
    const VARIABLE: &str = "LINKERD2_PROXY_INBOUND_PORTS_DISABLE_PROTOCOL_DETECTION";
    let check = |own: Option<&str>, ports: Value, annotation: Option<&str>, told: Option<&str>| {
        let mut pod = simple(&json!({}));
        if let Some(own) = own {
            pod["metadata"]["annotations"][OPAQUE_PORTS] = json!(own);
        }
        pod["spec"]["containers"][0]["ports"] = ports;
        let (pod, _) = injected(&pod, &config());
        assert_eq!(pod["metadata"]["annotations"][OPAQUE_PORTS].as_str(), annotation);
        assert_eq!(variable(&pod, VARIABLE).as_deref(), told);
    };
    let mysql = json!([{"name": "mysql", "containerPort": 3306}, {"containerPort": 8080}]);
    let http = json!([{"containerPort": 8080}]);
    check(None, mysql.clone(), Some("3306"), Some("3306"));
    check(None, http.clone(), None, Some("25,587,3306,4444,5432,6379,9300,11211"));
    check(Some("mysql,9000-9010"), mysql.clone(), Some("3306,9000-9010"), Some("3306,9000-9010"));
    check(Some(""), mysql, Some(""), None);
    check(Some("typo"), http, Some(""), None);
}

#[test]
fn ports_to_skip_reach_the_init_container() {
    let pod = injected(&simple(&json!({})), &config()).0;
    assert_eq!(argument(&pod, "--inbound-ports-to-ignore").as_deref(), Some("4190,4191,4567,4568"));
    assert_eq!(argument(&pod, "--outbound-ports-to-ignore").as_deref(), Some("4567,4568"));
    assert_eq!(argument(&pod, "--subnets-to-ignore"), None);
    let pod = injected(
        &simple(&json!({
            "config.linkerd.io/skip-inbound-ports": "22,8000-8100",
            "config.linkerd.io/skip-outbound-ports": "",
            "config.linkerd.io/skip-subnets": "10.1.0.0/16, fd00::/64",
            "config.linkerd.io/admin-port": "5191",
            "config.linkerd.io/proxy-gid": "77",
        })),
        &config(),
    )
    .0;
    assert_eq!(argument(&pod, "--inbound-ports-to-ignore").as_deref(), Some("4190,5191,22,8000-8100"));
    assert_eq!(argument(&pod, "--outbound-ports-to-ignore"), None);
    assert_eq!(argument(&pod, "--subnets-to-ignore").as_deref(), Some("10.1.0.0/16,fd00::/64"));
    assert_eq!(argument(&pod, "--proxy-gid").as_deref(), Some("77"));
    assert_eq!(container(&pod, PROXY)["livenessProbe"]["httpGet"]["port"], 5191);
}

#[test]
fn every_annotation_reaches_what_it_names() {
    const CONFIG: &str = "config.linkerd.io/";
    for (annotation, value, name, expected) in [
        ("inbound-port", "5143", "INBOUND_LISTEN_ADDR", "[::]:5143"),
        ("outbound-port", "5140", "OUTBOUND_LISTEN_ADDRS", "127.0.0.1:5140,[::1]:5140"),
        ("admin-port", "5191", "ADMIN_LISTEN_ADDR", "[::]:5191"),
        ("control-port", "5190", "CONTROL_LISTEN_ADDR", "[::]:5190"),
        ("pod-inbound-ports", "1,2", "INBOUND_PORTS", "1,2"),
        ("proxy-cpu-request", "1500m", "CORES", "2"),
        ("proxy-cpu-request", "1500m", "CORES_MIN", "2"),
        ("proxy-cpu-limit", "3", "CORES_MAX", "3"),
        ("proxy-cpu-ratio-limit", "0.25", "CORES_MAX_RATIO", "0.25"),
        ("proxy-admin-shutdown", "enabled", "SHUTDOWN_ENDPOINT_ENABLED", "true"),
        ("proxy-log-level", "debug", "LOG", "debug,[{headers}]=off,[{request}]=off"),
        ("proxy-log-format", "json", "LOG_FORMAT", "json"),
        ("enable-external-profiles", "true", "DESTINATION_PROFILE_SUFFIXES", "."),
        ("proxy-metrics-hostname-labels", "true", "OUTBOUND_METRICS_HOSTNAME_LABELS", "true"),
        ("proxy-outbound-connect-timeout", "2s", "OUTBOUND_CONNECT_TIMEOUT", "2000ms"),
        ("proxy-inbound-connect-timeout", "0.3s", "INBOUND_CONNECT_TIMEOUT", "300ms"),
        ("proxy-outbound-discovery-cache-unused-timeout", "1m", "OUTBOUND_DISCOVERY_IDLE_TIMEOUT", "60s"),
        (
            "proxy-inbound-discovery-cache-unused-timeout",
            "1500ms",
            "INBOUND_DISCOVERY_IDLE_TIMEOUT",
            "1500ms",
        ),
        ("proxy-disable-outbound-protocol-detect-timeout", "true", "OUTBOUND_DETECT_TIMEOUT", "365d"),
        ("proxy-disable-inbound-protocol-detect-timeout", "true", "INBOUND_DETECT_TIMEOUT", "365d"),
        ("default-inbound-policy", "deny", "INBOUND_DEFAULT_POLICY", "deny"),
        ("access-log", "apache", "ACCESS_LOG", "apache"),
        (
            "proxy-require-identity-inbound-ports",
            "8080,9000-9010",
            "INBOUND_PORTS_REQUIRE_IDENTITY",
            "8080,9000-9010",
        ),
        ("shutdown-grace-period", "2m", "SHUTDOWN_GRACE_PERIOD", "120000ms"),
    ] {
        let (pod, warnings) = injected(&simple(&json!({format!("{CONFIG}{annotation}"): value})), &config());
        let name = format!("LINKERD2_PROXY_{name}");
        assert_eq!(variable(&pod, &name).as_deref(), Some(expected), "{annotation}: {name}");
        assert_eq!(warnings, [""; 0]);
    }
    let ingress = injected(&simple(&json!({INJECT: "ingress"})), &config()).0;
    assert_eq!(variable(&ingress, "LINKERD2_PROXY_INGRESS_MODE").as_deref(), Some("true"));
    let headers =
        injected(&simple(&json!({format!("{CONFIG}proxy-log-http-headers"): "insecure"})), &config()).0;
    assert_eq!(variable(&headers, "LINKERD2_PROXY_LOG"), Some(config().log_level));
}

#[test]
fn metadata_that_says_nothing_we_know_is_kept() {
    let manifest = json!({"metadata": {"later": {"a": 1}}, "spec": {"containers": [{"name": "app"}]}});
    assert_eq!(injected(&manifest, &config()).0["metadata"]["later"]["a"], 1);
}

#[test]
fn what_the_proxy_would_not_start_with_is_not_passed_on() {
    let asked = json!({
        "config.linkerd.io/proxy-log-level": "==",
        "config.linkerd.io/proxy-cpu-request": "5000",
    });
    let (pod, warnings) = injected(&simple(&asked), &config());
    let log = variable(&pod, "LINKERD2_PROXY_LOG").unwrap();
    assert!(log.starts_with(&config().log_level), "{log}");
    assert_eq!(variable(&pod, "LINKERD2_PROXY_CORES").as_deref(), Some("1024"));
    assert_eq!(warnings.len(), 0, "{warnings:?}");
}

#[test]
fn a_variable_refers_only_to_those_above_it() {
    let pod = injected(&simple(&json!({})), &config()).0;
    let mut above = Vec::new();
    for variable in container(&pod, PROXY)["env"].as_array().unwrap() {
        let mut value = variable["value"].as_str().unwrap_or_default();
        while let Some((_, rest)) = value.split_once("$(") {
            let (name, rest) = rest.split_once(')').unwrap();
            assert!(above.contains(&name), "{name} is used above its definition");
            value = rest;
        }
        above.push(variable["name"].as_str().unwrap());
    }
}

#[test]
fn only_our_own_image_is_told_what_is_ours() {
    assert_eq!(
        variable(&injected(&simple(&json!({})), &config()).0, "REMORA_PROXY_API").as_deref(),
        Some("v1")
    );
    let theirs =
        injected(&simple(&json!({"config.linkerd.io/proxy-image": "cr.l5d.io/linkerd/proxy"})), &config()).0;
    let env = container(&theirs, PROXY)["env"].to_string();
    assert!(!env.contains("REMORA_"), "{env}");
    assert_eq!(container(&theirs, INIT)["image"], container(&theirs, PROXY)["image"]);
}

#[test]
fn who_may_be_sent_plaintext_is_said_by_pod_namespace_and_operator_in_this_order() {
    let annotation = "config.linkerd.io/outbound-default-policy";
    let (all, cluster, none) = ("all-authenticated", "cluster-authenticated", "all-unauthenticated");
    for (operator, own, told) in [
        (none, None, None),
        (none, Some(all), Some(all)),
        (cluster, None, Some(cluster)),
        (cluster, Some(all), Some(all)),
        (all, Some(none), None),
    ] {
        let config = InjectorConfig { default_outbound_policy: operator.to_owned(), ..config() };
        let own = own.map_or_else(|| json!({}), |own| json!({annotation: own}));
        let pod = injected(&simple(&own), &config).0;
        let said = variable(&pod, "REMORA_PROXY_OUTBOUND_DEFAULT_POLICY");
        assert_eq!(said.as_deref(), told, "operator {operator}, pod {own}");
    }
}

#[test]
fn extra_environment_comes_last_and_the_pods_wins() {
    let mut pod =
        simple(&json!({"config.linkerd.io/proxy-additional-env": r#"[{"name":"A","value":"pod"}]"#}));
    let config = config();
    pod["metadata"]["annotations"][INJECT] = json!("enabled");
    let pod = Pod::read(&pod).unwrap();
    let mut surroundings = Surroundings::default();
    let theirs = r#"[{"name":"A","value":"namespace"},{"name":"B","value":"namespace"}]"#;
    surroundings.annotations.insert("config.linkerd.io/proxy-additional-env".to_owned(), theirs.to_owned());
    let subject =
        Subject { pod: &pod, namespace: "shop", surroundings: &surroundings, owner: None, gateway: None };
    let Decision::Inject(plan) = decide(&subject, &config) else { panic!("not injected") };
    let env = env::env(&pod, &plan.settings, &Ports::default(), &config);
    let last: Vec<&Value> = env.iter().rev().take(2).collect();
    assert_eq!(last, [&json!({"name": "B", "value": "namespace"}), &json!({"name": "A", "value": "pod"})]);
}

#[test]
fn an_owners_name_that_is_no_label_is_left_out() {
    let pod = Pod::read(&simple(&json!({INJECT: "enabled"}))).unwrap();
    for (kind, length, label) in [
        ("Deployment", 63, Some("linkerd.io/proxy-deployment")),
        ("Job", 63, Some("linkerd.io/proxy-job")),
        ("Deployment", 64, None),
        ("Rollout", 5, None),
    ] {
        let owner = Owner { kind: kind.to_owned(), name: "a".repeat(length) };
        let surroundings = Surroundings::default();
        let subject = Subject {
            pod: &pod,
            namespace: "shop",
            surroundings: &surroundings,
            owner: Some(&owner),
            gateway: None,
        };
        let (labels, warning) = labels(&subject, &config());
        let grouped = labels.keys().find(|name| name.starts_with("linkerd.io/proxy-")).map(String::as_str);
        assert_eq!(grouped, label);
        assert_eq!(warning.is_some(), length > 63);
    }
}

#[test]
fn without_ipv6_nothing_listens_or_redirects_there() {
    let config = InjectorConfig { disable_ipv6: true, ..config() };
    let pod = injected(&simple(&json!({})), &config).0;
    assert_eq!(variable(&pod, "LINKERD2_PROXY_INBOUND_LISTEN_ADDR").as_deref(), Some("0.0.0.0:4143"));
    assert_eq!(variable(&pod, "LINKERD2_PROXY_OUTBOUND_LISTEN_ADDRS").as_deref(), Some("127.0.0.1:4140"));
    assert!(container(&pod, INIT)["args"].as_array().unwrap().contains(&json!("--ipv6=false")));
}

#[test]
fn services_get_only_their_namespaces_opaque_ports() {
    let namespace = Annotations::from([(OPAQUE_PORTS.to_owned(), "4222".to_owned())]);
    let path = "/metadata/annotations/config.linkerd.io~1opaque-ports";
    let add = json!({"op": "add", "path": path, "value": "4222"});
    let empty = json!({"op": "add", "path": "/metadata/annotations", "value": {}});
    let other = Annotations::from([("a".to_owned(), "b".to_owned())]);
    assert_eq!(inherit_opaque_ports(&Annotations::new(), &namespace), Some(vec![empty, add.clone()]));
    assert_eq!(inherit_opaque_ports(&other, &namespace), Some(vec![add]));
    assert_eq!(inherit_opaque_ports(&namespace, &namespace), None);
    assert_eq!(inherit_opaque_ports(&Annotations::new(), &other), None);
}

/// Violations of the `restricted` Pod Security Standard (and with it `baseline`), for the fields that a pod of these
/// tests or an injector can set. Each is `container: rule`.
fn violations(pod: &Value) -> Vec<String> {
    let spec = &pod["spec"];
    let at_pod = |field: &str| &spec["securityContext"][field];
    let mut found = Vec::new();
    for volume in spec["volumes"].as_array().into_iter().flatten() {
        let allowed = [
            "configMap",
            "csi",
            "downwardAPI",
            "emptyDir",
            "ephemeral",
            "persistentVolumeClaim",
            "projected",
            "secret",
        ];
        let kinds: Vec<&String> = volume.as_object().unwrap().keys().filter(|key| *key != "name").collect();
        if !kinds.iter().all(|kind| allowed.contains(&kind.as_str())) {
            found.push(format!("{}: volume type", volume["name"]));
        }
    }
    for list in ["initContainers", "containers"] {
        for container in spec[list].as_array().into_iter().flatten() {
            let context = &container["securityContext"];
            let effective =
                |field: &str| if context[field].is_null() { at_pod(field) } else { &context[field] };
            let list = |field: &str| context["capabilities"][field].as_array().cloned().unwrap_or_default();
            let added = list("add");
            let capabilities =
                list("drop").contains(&json!("ALL")) && added.iter().all(|added| added == "NET_BIND_SERVICE");
            let seccomp = effective("seccompProfile")["type"].as_str();
            for (holds, rule) in [
                (context["privileged"] != json!(true), "privileged"),
                (context["allowPrivilegeEscalation"] == json!(false), "privilege escalation"),
                (*effective("runAsNonRoot") == json!(true), "run as non-root"),
                (*effective("runAsUser") != json!(0), "run as user 0"),
                (seccomp == Some("RuntimeDefault") || seccomp == Some("Localhost"), "seccomp"),
                (capabilities, "capabilities"),
            ] {
                if !holds {
                    found.push(format!("{}: {rule}", container["name"].as_str().unwrap()));
                }
            }
        }
    }
    found
}

#[test]
fn the_checker_sees_what_restricted_forbids() {
    let open = json!({"spec": {"containers": [{"name": "c"}], "volumes": [{"name": "v", "hostPath": {}}]}});
    assert_eq!(
        violations(&open),
        [
            "\"v\": volume type",
            "c: privilege escalation",
            "c: run as non-root",
            "c: seccomp",
            "c: capabilities"
        ]
    );
}

#[test]
fn a_restricted_pod_gets_exactly_one_violation() {
    let mut pod = simple(&json!({}));
    pod["spec"]["containers"][0]["securityContext"] = json!({
        "allowPrivilegeEscalation": false,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": true,
        "seccompProfile": {"type": "RuntimeDefault"},
    });
    assert_eq!(violations(&pod), [""; 0]);
    let (pod, _) = injected(&pod, &config());
    assert_eq!(violations(&pod), ["linkerd-init: capabilities"]);
    let capabilities = &container(&pod, INIT)["securityContext"]["capabilities"];
    assert_eq!(*capabilities, json!({"add": ["NET_ADMIN", "NET_RAW"], "drop": ["ALL"]}));
    let mut ordinary = simple(&json!({"config.linkerd.io/proxy-enable-native-sidecar": "false"}));
    ordinary["spec"]["containers"][0]["securityContext"] =
        pod["spec"]["containers"][0]["securityContext"].clone();
    assert_eq!(violations(&injected(&ordinary, &config()).0), ["linkerd-init: capabilities"]);
}

#[test]
fn quality_of_service_stays() {
    for resources in
        [json!({}), json!({"requests": {"cpu": "1"}}), json!({"limits": {"cpu": "1", "memory": "1Gi"}})]
    {
        let mut pod = simple(&json!({}));
        pod["spec"]["containers"][0]["resources"] = resources;
        let before = Pod::read(&pod).unwrap().quality();
        let after = Pod::read(&injected(&pod, &config()).0).unwrap().quality();
        assert_eq!(before, after, "{pod}");
    }
}

#[test]
fn closing_wait_makes_the_init_container_root() {
    let pod = injected(&simple(&json!({"config.linkerd.io/close-wait-timeout": "1h"})), &config()).0;
    assert_eq!(argument(&pod, "--timeout-close-wait-secs").as_deref(), Some("3600"));
    let security = &container(&pod, INIT)["securityContext"];
    assert_eq!((&security["privileged"], &security["runAsUser"]), (&json!(true), &json!(0)));
}

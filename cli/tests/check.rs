//! `remora check` as people and pull requests meet it: what it prints, and with which exit code.
#![expect(clippy::unwrap_used, reason = "clippy does not count the helpers of a test as a test")]

use std::{fs, process::Command};

use serde_json::Value;

const SERVICE: &str = "{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}, spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}}";

fn route(rule: &str) -> String {
    format!(
        "{{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {{name: web, namespace: shop}}, spec: \
         {{parentRefs: [{{group: core, kind: Service, name: web, port: 80}}], rules: [{{{rule}}}]}}}}"
    )
}

/// Exit code, standard output, standard error.
fn check(files: &[(&str, &str)], flags: &[&str]) -> (Option<i32>, String, String) {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(directory.path().join(name), text).unwrap();
    }
    let output = Command::new(env!("CARGO_BIN_EXE_remora"))
        .arg("check")
        .arg("--manifests")
        .arg(directory.path())
        .args(flags)
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn what_is_fine_exits_with_0() {
    let (code, said, err) = check(&[("service.yaml", SERVICE), ("route.yaml", &route(""))], &[]);
    let expected = "\
OBJECT              PARENT  ACCEPTED  RESOLVED REFS
HTTPRoute shop/web  web:80  yes       yes
2 files, 1 routes, 0 policies: 0 mistakes in documents, 0 routes and 0 policies not fine, 0 warnings
";
    assert_eq!((code, said.as_str(), err.as_str()), (Some(0), expected, ""));
}

#[test]
fn warnings_change_no_exit_code() {
    let rule = "filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: user, value: '${jwt.sub}'}]}}]";
    let (code, said, _) = check(&[("service.yaml", SERVICE), ("route.yaml", &route(rule))], &[]);
    assert_eq!(code, Some(0));
    let expected = "warning: HTTPRoute shop/web: spec.rules[0].filters[0].requestHeaderModifier.set[0].value: ${jwt.sub} is no variable here; it is sent as it is written\n";
    assert!(said.contains(expected), "{said}");
}

#[test]
fn a_false_condition_exits_with_2_and_has_the_path() {
    let rule = "filters: [{type: CORS, cors: {}}, {type: URLRewrite, urlRewrite: {hostname: a}}], backendRefs: [{name: none, port: 80}]";
    let (code, said, _) = check(&[("service.yaml", SERVICE), ("route.yaml", &route(rule))], &[]);
    assert_eq!(code, Some(2));
    for part in [
        "HTTPRoute shop/web  web:80  no: UnsupportedValue  no: BackendNotFound\n",
        "false: HTTPRoute shop/web: UnsupportedValue: spec.rules[0].filters[0].cors: ",
        "warning: HTTPRoute shop/web: spec.rules[0].filters[1].urlRewrite: Linkerd's API cannot carry URLRewrite; ",
        "false: HTTPRoute shop/web: BackendNotFound: spec.rules[0].backendRefs[0]: Service shop/none does not exist\n",
    ] {
        assert!(said.contains(part), "{part:?} is not in:\n{said}");
    }
}

#[test]
fn an_invalid_document_exits_with_2_and_has_every_mistake() {
    let rule = "timeouts: {request: soon}, backendRefs: [{name: web, port: 80, weight: 2147483648}]";
    let (code, said, _) = check(&[("service.yaml", SERVICE), ("route.yaml", &route(rule))], &[]);
    assert_eq!(code, Some(2));
    let lines: Vec<&str> =
        said.lines().filter(|line| line.starts_with("invalid: route.yaml: document 1: ")).collect();
    assert!(
        lines.len() == 2 && lines[0].contains("weight") && lines[1].contains("timeouts.request"),
        "{said}"
    );
}

#[test]
fn scripts_read_json() {
    let rule = "backendRefs: [{name: none, port: 80}]";
    let (code, said, _) = check(&[("service.yaml", SERVICE), ("route.yaml", &route(rule))], &["-o", "json"]);
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((code, &said["fine"]), (Some(2), &Value::Bool(false)));
    let parent = &said["routes"]["HTTPRoute shop/web"]["parents"][0];
    assert_eq!(parent["controllerName"], "remora.io/policy-controller");
    let conditions = parent["conditions"].as_array().unwrap();
    let words: Vec<_> = conditions.iter().map(|one| (&one["type"], &one["status"], &one["reason"])).collect();
    let text = |text: &str| Value::String(text.to_owned());
    let expected = [["Accepted", "True", "Accepted"], ["ResolvedRefs", "False", "BackendNotFound"]];
    for (found, [kind, status, reason]) in words.iter().zip(expected) {
        assert_eq!(*found, (&text(kind), &text(status), &text(reason)));
    }
}

#[test]
fn a_directory_that_is_not_there_exits_with_1_and_a_wrong_flag_with_64() {
    let code =
        |args: &[&str]| Command::new(env!("CARGO_BIN_EXE_remora")).args(args).output().unwrap().status.code();
    assert_eq!(code(&["check", "--manifests", "/nowhere/at/all"]), Some(1));
    assert_eq!(code(&["check"]), Some(64));
    assert_eq!(code(&["check", "--manifests", ".", "--cluster-domain", "a b"]), Some(64));
    assert_eq!(code(&["check", "--manifests", ".", "--default-opaque-ports", "0"]), Some(64));
}

#[test]
fn a_policy_of_what_is_not_there_exits_with_2() {
    let policy = "{apiVersion: policy.linkerd.io/v1alpha1, kind: AuthorizationPolicy, metadata: {name: p, namespace: shop}, \
        spec: {targetRef: {group: policy.linkerd.io, kind: Server, name: web}, requiredAuthenticationRefs: \
        [{group: policy.linkerd.io, kind: NetworkAuthentication, name: n}]}}";
    let (code, said, _) = check(&[("policy.yaml", policy)], &[]);
    assert_eq!(code, Some(2));
    for part in [
        "AuthorizationPolicy shop/p          no: TargetNotFound\n",
        "false: AuthorizationPolicy shop/p: TargetNotFound: spec.targetRef.name: Server shop/web does not exist; \
         spec.requiredAuthenticationRefs[0]: NetworkAuthentication shop/n does not exist; it admits nobody\n",
        "1 files, 0 routes, 1 policies: 0 mistakes in documents, 0 routes and 1 policies not fine, 0 warnings\n",
    ] {
        assert!(said.contains(part), "{part:?} is not in:\n{said}");
    }
}

#[test]
fn manifests_that_were_never_in_a_cluster_are_taken_for_what_it_would_make_of_them() {
    let service = SERVICE.replace("clusterIP: 10.96.0.1, ", "");
    assert_ne!(service, SERVICE);
    let files = [("service.yaml", &service[..]), ("route.yaml", &route(""))];
    let (code, said, _) = check(&files, &[]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("supposed: never in a cluster: 1 Service and 0 pods, "), "{said}");
    let (_, said, _) = check(&files, &["-o", "json"]);
    assert!(said.contains("\"supposed\": [\n    \"never in a cluster: "), "{said}");
}

#[test]
fn a_policy_that_nobody_would_enforce_exits_with_2_and_is_named() {
    let of = |version: &str, kind: &str| {
        format!(
            "{{apiVersion: {version}, kind: {kind}, metadata: {{name: it, namespace: shop}}, spec: {{}}}}"
        )
    };
    for (version, kind, why) in [
        (
            "policy.linkerd.io/v1alpha1",
            "Server",
            "document 1: Server shop/it: apiVersion: policy.linkerd.io/v1alpha1 is not read; of Server these versions are: v1beta3, v1beta2, v1beta1",
        ),
        (
            "linkerd.io/v1alpha1",
            "ServiceProfile",
            "document 1: ServiceProfile shop/it: apiVersion: linkerd.io/v1alpha1 is not read; of ServiceProfile these versions are: v1alpha2",
        ),
        (
            "gateway.networking.k8s.io/v1alpha2",
            "GRPCRoute",
            "document 1: GRPCRoute shop/it: apiVersion: gateway.networking.k8s.io/v1alpha2 is not read; of GRPCRoute these versions are: v1",
        ),
        (
            "policy.linkerd.io/v1alpha1",
            "EgressNetwork",
            "policy.linkerd.io/v1alpha1 EgressNetwork shop/it: this kind is not served: nobody enforces what it says",
        ),
    ] {
        let (code, said, _) = check(&[("service.yaml", SERVICE), ("it.yaml", &of(version, kind))], &[]);
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains(&format!("invalid: it.yaml: {why}\n")), "{said}");
        assert!(said.contains(": 1 mistakes in documents"), "{said}");
    }
    for (version, kind) in [("apps/v1", "Deployment"), ("gateway.networking.k8s.io/v1", "Gateway")] {
        let (code, said, _) = check(&[("it.yaml", &of(version, kind))], &[]);
        assert_eq!((code, said.contains("shop/it")), (Some(0), false), "{said}");
    }
}

#[test]
fn what_is_not_done_as_it_is_written_is_warned_about() {
    let service = SERVICE.replace(
        "namespace: shop}",
        "namespace: shop, annotations: {retry.linkerd.io/grpc: internal, retry.linkerd.io/http: 5xx}}",
    );
    let rule = "timeouts: {backendRequest: 1s}, retry: {attempts: 50}";
    let files = [("service.yaml", service.as_str()), ("route.yaml", &route(rule))];
    let (code, said, _) = check(&files, &[]);
    assert_eq!(code, Some(0), "{said}");
    for warning in [
        "Service shop/web: metadata.annotations[retry.linkerd.io/grpc]: Linkerd's API can say it of GRPCRoutes only, and the Service has none: nothing is sent again for it\n",
        "HTTPRoute shop/web: spec.rules[0].retry.attempts: 50, but a proxy sends a request again 10 times at most, unless its REMORA_PROXY_MAX_RETRIES says otherwise\n",
        "HTTPRoute shop/web: spec.rules[0].timeouts.backendRequest: with retries",
    ] {
        assert!(said.contains(&format!("warning: {warning}")), "{said}");
    }
    let (_, json, _) = check(&files, &["-o", "json"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["services"]["shop/web"]["warnings"].as_array().unwrap().len(), 1);
}

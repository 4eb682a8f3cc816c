//! A ServiceProfile does what it says, on both sides of a connection and while it changes: requests are counted by its
//! routes, classified as it says, given up in its time and split by its weights. Contract 3.2, 4.1, 4.2, 4.4, 5.4.
#![expect(clippy::unwrap_used, reason = "a test says what it expects")]

use remora_tests::shop::{self, PATIENCE, SHOP, curl, state, status};
use remora_tests::wire::{client, kit};
use remora_tests::{Mesh, Name, PodRef, check};
use serde_json::Value;
use std::collections::BTreeMap;

/// As it stands in the guide that Remora's first users follow, letter by letter.
const SERVICE_PROFILE: &str = "
# service-profile.yaml
apiVersion: linkerd.io/v1alpha2
kind: ServiceProfile
metadata:
  name: app-service.default.svc.cluster.local
  namespace: default
spec:
  routes:
  - name: GET /api/users
    condition:
      method: GET
      pathRegex: /api/users
    responseClasses:
    - condition:
        status:
          min: 200
          max: 299
      isFailure: false
    - condition:
        status:
          min: 500
          max: 599
      isFailure: true
";

#[test]
fn the_guides_profile_counts_requests_by_route_on_both_sides() {
    if !check::can_run() {
        return;
    }
    let namespace = "{kind: Namespace, apiVersion: v1, metadata: {name: default, annotations: {linkerd.io/inject: enabled}}}\n---\n";
    let in_default = |object: String| object.replace("namespace: shop", "namespace: default");
    let objects = [
        namespace.to_owned(),
        in_default(kit("app-service", 8080, "http", &[])),
        in_default(client("client", &[])),
        SERVICE_PROFILE.to_owned(),
    ];
    let mesh = shop::open(&objects).unwrap();
    let (client, server) =
        (mesh.pod("default", "client").unwrap(), mesh.pod("default", "app-service").unwrap());
    let ask = |arguments: &[&str]| curl(&client, arguments).unwrap();

    let users = "http://app-service:8080/api/users";
    let told: Value = serde_json::from_str(&ask(&[users])).unwrap();
    let dst = "app-service.default.svc.cluster.local:8080";
    assert!(headers(&told, "l5d-dst-canonical").eq([dst]), "{told}");
    ask(&[users]);
    ask(&["-H", "Host: anything", &format!("{users}?page=2")]);
    // None of these is the route's: another method, and more than the pattern covers.
    ask(&["-X", "POST", "-d", "x", users]);
    ask(&[&format!("{users}/7")]);

    for (pod, direction) in [(&client, "outbound"), (&server, "inbound")] {
        let fallback = [("direction", direction), ("dst", dst)];
        let route = [&fallback[..], &[("rt_route", "GET /api/users")]].concat();
        let answered = [("status_code", "200"), ("classification", "success")];
        let families: &[&str] = if direction == "outbound" { &["route", "route_actual"] } else { &["route"] };
        for (labels, expected) in [(&route[..], 3), (&fallback, 2)] {
            for family in families {
                exactly(&mesh, pod, &format!("{family}_request_total"), labels, expected);
                let answered = [labels, &answered].concat();
                exactly(&mesh, pod, &format!("{family}_response_total"), &answered, expected);
            }
            let timed = [labels, &[("status_code", "200")]].concat();
            exactly(&mesh, pod, "route_response_latency_ms_count", &timed, expected);
        }
        // As `linkerd viz routes` groups: nothing else is there.
        assert_eq!(count(pod, "route_response_total", &[]), 5, "{direction}");
    }
    for none in ["route_actual_request_total", "route_actual_response_total"] {
        assert_eq!(count(&server, none, &[]), 0, "{none}");
    }
    let unmeasured = "route_actual_response_latency_ms_count";
    assert_eq!(client.metrics().unwrap().sum(unmeasured, &[]), None, "Linkerd has none");
}

#[test]
fn responses_are_what_the_profile_says_and_late_ones_are_given_up() {
    if !check::can_run() {
        return;
    }
    let spec = "{routes: [
        {name: status, condition: {pathRegex: '/status/.*'}, responseClasses: [
          {condition: {status: {min: 404}}, isFailure: true},
          {condition: {any: [{status: {min: 503}}, {not: {status: {min: 200, max: 599}}}]}}]},
        {name: slow, condition: {all: [{method: GET}, {any: [{pathRegex: '/slow/.*'}, {pathRegex: '/none'}]}]}, timeout: 400ms}]}";
    let mesh =
        shop::open(&[kit("web", 8080, "http", &[]), client("client", &[]), profile("web", spec)]).unwrap();
    let (client, server) = (mesh.pod(SHOP, "client").unwrap(), mesh.pod(SHOP, "web").unwrap());
    let url = |path: &str| format!("http://web:8080{path}");
    for code in [404, 503, 500, 200] {
        assert_eq!(status(&client, &url(&format!("/status/{code}"))).unwrap().0, code);
    }
    assert_eq!(status(&client, &url("/slow/1")).unwrap().0, 200);
    let (code, error) = status(&client, &url("/slow/8000")).unwrap();
    assert_eq!(code, 504, "{error}");
    assert!(error.contains("\"slow\"") && error.contains("400ms"), "{error}");

    let dst = "web.shop.svc.cluster.local:8080";
    for (pod, direction) in [(&client, "outbound"), (&server, "inbound")] {
        for (code, class) in [("404", "failure"), ("503", "success"), ("500", "failure"), ("200", "success")]
        {
            let labels = [("direction", direction), ("status_code", code), ("classification", class)];
            let of_route = [&labels[..], &[("dst", dst), ("rt_route", "status")]].concat();
            exactly(&mesh, pod, "route_response_total", &of_route, 1);
            if code != "200" {
                assert_eq!(count(pod, "response_total", &labels), 1, "{direction} {code}");
            }
        }
    }
    let slow = [("direction", "outbound"), ("dst", dst), ("rt_route", "slow")];
    let timed_out = [&slow[..], &[("classification", "failure"), ("error", "timeout")]].concat();
    exactly(&mesh, &client, "route_response_total", &timed_out, 1);
    exactly(&mesh, &client, "route_request_total", &slow, 2);
    let errors = [("error", "response timeout")];
    assert_eq!(count(&client, "outbound_http_errors_total", &errors), 1);
}

#[test]
fn a_changed_profile_holds_at_once_and_an_invalid_one_never() {
    if !check::can_run() {
        return;
    }
    let named =
        |name: &str| profile("web", &format!("{{routes: [{{name: {name}, condition: {{method: GET}}}}]}}"));
    let mesh = shop::open(&[kit("web", 8080, "http", &[]), client("client", &[]), named("first")]).unwrap();
    let client = mesh.pod(SHOP, "client").unwrap();
    let destination = mesh.pod("remora", "remora-destination").unwrap();
    let url = "http://web:8080/";
    let of = |route: &str| count(&client, "route_request_total", &[("rt_route", route)]);
    let known = || {
        curl(&client, &[url]).unwrap();
        routes(&client)
    };
    assert_eq!(known(), ["first"]);
    assert_eq!(of("first"), 1);

    mesh.apply(&named("second")).unwrap();
    wait(&mesh, "the second route", || known() == ["second"]);
    let (first, second) = (of("first"), of("second"));
    curl(&client, &[url]).unwrap();
    assert_eq!((of("first"), of("second")), (first, second + 1));

    let wrong =
        "{routes: [{name: third, condition: {method: GET, pathRegex: '('}, timeout: soon}], colour: red}";
    mesh.apply(&profile("web", wrong)).unwrap();
    let told = || {
        let state = curl(&destination, &["-f", "http://127.0.0.1:9996/state.json"]).unwrap();
        let state: Value = serde_json::from_str(&state).unwrap();
        let file = "serviceprofile_shop_web.shop.svc.cluster.local.yaml";
        let errors =
            state.pointer("/manifests/files").and_then(|files| files.get(file)?.get("errors")).cloned();
        errors.as_ref().and_then(Value::as_array).map_or(0, Vec::len)
    };
    wait(&mesh, "all three mistakes to be shown", || told() == 3);
    assert_eq!(known(), ["second"], "the last good one holds");

    mesh.apply(&named("fourth")).unwrap();
    wait(&mesh, "the fourth route", || known() == ["fourth"]);
    assert_eq!(told(), 0);
    let name = Name::new(SHOP, "web.shop.svc.cluster.local");
    mesh.delete_object("ServiceProfile", &name).unwrap();
    wait(&mesh, "the Service without a profile", || known().is_empty());
    let by_policy = "outbound_http_route_request_statuses_total";
    let before = count(&client, by_policy, &[]);
    curl(&client, &[url]).unwrap();
    assert_eq!(count(&client, by_policy, &[]), before + 1);
}

#[test]
fn a_traffic_split_follows_its_weights() {
    if !check::can_run() {
        return;
    }
    let split = |web: &str, canary: &str| {
        profile(
            "web",
            &format!(
                "{{dstOverrides: [{{authority: web.shop.svc.cluster.local, weight: {web}}}, \
                 {{authority: 'canary.shop.svc.cluster.local:8080', weight: {canary}}}]}}"
            ),
        )
    };
    let mesh = shop::open(&[
        kit("web", 8080, "http", &[]),
        kit("canary", 8080, "http", &[]),
        client("client", &[]),
        split("900m", "100m"),
    ])
    .unwrap();
    let client = mesh.pod(SHOP, "client").unwrap();
    let shares = |requests: usize| {
        let answers = curl(&client, &[&format!("http://web:8080/[1-{requests}]")]).unwrap();
        let mut shares = BTreeMap::new();
        for answer in answers.lines() {
            let told: Value = serde_json::from_str(answer).unwrap();
            *shares.entry(told["server"].as_str().unwrap().to_owned()).or_insert(0_usize) += 1;
        }
        assert_eq!(shares.values().sum::<usize>(), requests);
        shares
    };
    let canary = shares(300).get("canary").copied().unwrap_or_default();
    // 30 are expected, with a standard deviation of 5.2.
    assert!((8..=56).contains(&canary), "{canary} of 300 instead of a tenth");

    let all = |server: &str| shares(20).get(server) == Some(&20);
    mesh.apply(&split("0", "1")).unwrap();
    wait(&mesh, "everything to go to the canary", || all("canary"));
    mesh.apply(&split("1", "0")).unwrap();
    wait(&mesh, "nothing to go to the canary", || all("web"));
    // Its requests have no route, but a destination, under the name that the client asked for.
    let labels = [("direction", "outbound"), ("dst", "web.shop.svc.cluster.local:8080")];
    assert!(count(&client, "route_request_total", &labels) >= 340);
}

/// The sum of a proxy's counters with these labels.
fn count(pod: &PodRef<'_>, family: &str, labels: &[(&str, &str)]) -> u64 {
    pod.metrics().unwrap().count(family, labels)
}

/// The ServiceProfile of a Service of the shop.
fn profile(service: &str, spec: &str) -> String {
    format!(
        "\n---\n{{apiVersion: linkerd.io/v1alpha2, kind: ServiceProfile, metadata: {{name: {service}.shop.svc.cluster.local, \
         namespace: shop}}, spec: {spec}}}\n---\n"
    )
}

/// Waits until the series with these labels and no other is this.
#[track_caller]
fn exactly(mesh: &Mesh, pod: &PodRef<'_>, family: &str, labels: &[(&str, &str)], expected: u64) {
    let wanted: BTreeMap<String, String> =
        labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let what = format!("{family}{labels:?} of {} to be {expected}", pod.name);
    wait(mesh, &what, || {
        let metrics = pod.metrics().unwrap();
        let found = metrics.matching(family, labels).find(|sample| sample.labels == wanted);
        found.is_some_and(|sample| sample.value as u64 == expected)
    });
}

/// The names of the routes that the client's proxy knows.
fn routes(client: &PodRef<'_>) -> Vec<String> {
    let state = state(client).unwrap();
    let profiles = state.pointer("/outbound/profiles").and_then(Value::as_object).unwrap().clone();
    let routes = profiles.values().filter_map(|profile| profile.get("routes")?.as_array());
    routes.flatten().filter_map(|route| Some(route.get("name")?.as_str()?.to_owned())).collect()
}

/// The values of a header of a request that was told back.
fn headers<'a>(told: &'a Value, name: &'a str) -> impl Iterator<Item = &'a str> {
    let all = told["headers"].as_array().into_iter().flatten();
    let named =
        all.filter(move |pair| pair[0].as_str().is_some_and(|found| found.eq_ignore_ascii_case(name)));
    named.filter_map(|pair| pair[1].as_str())
}

#[track_caller]
fn wait(mesh: &Mesh, what: &str, holds: impl FnMut() -> bool) {
    mesh.wait_until(what, PATIENCE, holds).unwrap();
}

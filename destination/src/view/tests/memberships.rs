//! Which Services a pod that is dialled itself belongs to. Design, "Pod IPs".

use super::*;

const POD: &str = "
{apiVersion: v1, kind: Pod, metadata: {name: p, namespace: shop, labels: {app: web, tier: front}}, spec: {containers: [
  {name: app, ports: [{name: web, containerPort: 8080}]}]}, status: {podIP: 10.1.0.9}}
---
";

/// A Service: its name, namespace, creation, and the rest of its spec.
fn service(name: &str, namespace: &str, created: &str, spec: &str) -> String {
    let created = if created.is_empty() {
        String::new()
    } else {
        format!(", creationTimestamp: '{created}T00:00:00Z'")
    };
    format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: {namespace}{created}}}, spec: {{{spec}}}}}\n---\n"
    )
}

#[track_caller]
fn check(services: &[String], port: u16, expected: &[&str]) {
    let index = index(&format!("{POD}{}", services.concat()));
    let target = Target::Addr(([10, 1, 0, 9], port).into());
    let found = match outbound(&mut Lens::new(&index), &settings(), &target, Some("shop")) {
        Ok(Outbound::Pod(services)) => services,
        // It is said how to speak to the pod: a proxy that was told of Services would keep them.
        Ok(Outbound::Endpoint(addr, _)) if Target::Addr(addr) == target => Vec::new(),
        other => panic!("{other:?}"),
    };
    let names: Vec<String> =
        found.iter().map(|one| format!("{}:{}", one.policy.name.name, one.policy.port)).collect();
    assert_eq!(names, expected);
    for one in &found {
        assert_eq!(one.pod.0, ([10, 1, 0, 9], port).into());
        assert_eq!(one.pod.1.labels.get("service"), Some(&one.policy.name.name));
    }
}

const HTTP: &str = "selector: {app: web}, ports: [{port: 80, targetPort: web}]";

#[test]
fn the_only_one_by_number_or_name_of_the_port() {
    check(&[service("web", "shop", "", HTTP)], 8080, &["web:80"]);
    check(&[service("web", "shop", "", "selector: {app: web}, ports: [{port: 8080}]")], 8080, &["web:8080"]);
    let headless = "clusterIP: None, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]";
    check(&[service("web", "shop", "", headless)], 8080, &["web:80"]);
}

#[test]
fn of_several_the_oldest_then_by_name_and_those_without_a_time_last() {
    let services = [
        service("a", "shop", "", HTTP),
        service("b", "shop", "2026-01-02", HTTP),
        service("d", "shop", "2026-01-01", HTTP),
        service("c", "shop", "2026-01-01", HTTP),
    ];
    check(&services, 8080, &["c:80", "d:80", "b:80", "a:80"]);
}

#[test]
fn a_service_is_there_with_each_of_its_ports_that_leads_there() {
    let spec = "selector: {app: web}, ports: [{name: a, port: 81, targetPort: 8080}, {name: b, port: 80, targetPort: web}, {name: c, port: 9}]";
    check(&[service("web", "shop", "", spec)], 8080, &["web:81", "web:80"]);
}

#[test]
fn what_does_not_select_the_pod_by_this_port_in_its_own_namespace_has_no_part_in_it() {
    for (services, port) in [
        (service("web", "shop", "", HTTP), 9090),
        (service("web", "other", "", HTTP), 8080),
        (service("web", "shop", "", "selector: {app: api}, ports: [{port: 8080}]"), 8080),
        (service("web", "shop", "", "selector: {app: web, tier: back}, ports: [{port: 8080}]"), 8080),
        (service("web", "shop", "", "ports: [{port: 8080}]"), 8080),
        (service("web", "shop", "", "selector: {app: web}, ports: [{port: 8080, protocol: UDP}]"), 8080),
        (
            service(
                "web",
                "shop",
                "",
                "type: ExternalName, externalName: a.example, selector: {app: web}, ports: [{port: 8080}]",
            ),
            8080,
        ),
    ] {
        check(&[services], port, &[]);
    }
}

#[test]
fn there_are_never_more_than_fit_into_a_message() {
    let services: Vec<String> = (0..40).map(|n| service(&format!("s{n:02}"), "shop", "", HTTP)).collect();
    let names: Vec<String> = (0..16).map(|n| format!("s{n:02}:80")).collect();
    check(&services, 8080, &names.iter().map(String::as_str).collect::<Vec<_>>());
}

#[test]
fn a_services_profile_comes_with_it_and_may_make_it_opaque() {
    let profile = "{apiVersion: linkerd.io/v1alpha2, kind: ServiceProfile, metadata: {name: web.shop.svc.cluster.local, namespace: shop}, spec: {opaquePorts: ['80']}}";
    let index = index(&format!("{POD}{}{profile}", service("web", "shop", "", HTTP)));
    let target = Target::Addr(([10, 1, 0, 9], 8080).into());
    let Ok(Outbound::Pod(found)) = outbound(&mut Lens::new(&index), &settings(), &target, None) else {
        panic!("no pod")
    };
    assert_eq!(found[0].policy.protocol, PortProtocol::Opaque);
    assert!(found[0].profile.is_some());
}

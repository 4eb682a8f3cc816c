//! Which ServiceProfile holds for whom.

use super::*;

/// A ServiceProfile about `web` in `shop`, with one route that is named after where it is.
fn profile_in(namespace: &str, more: &str) -> String {
    format!(
        "---\n{{apiVersion: linkerd.io/v1alpha2, kind: ServiceProfile, metadata: {{name: web.shop.svc.cluster.local, namespace: {namespace}}}, spec: {{routes: [{{name: {namespace}, condition: {{method: GET}}}}]{more}}}}}\n"
    )
}

fn ask(manifests: &str, target: &str, namespace: Option<&str>) -> Profile {
    let index = index(manifests);
    let target = Target::parse(target, "cluster.local").unwrap();
    let context = Context { namespace: namespace.map(str::to_owned), ..Context::default() };
    profile(&mut Lens::new(&index), &settings(), &target, &context).unwrap()
}

fn route_of(profile: &Profile) -> Option<&str> {
    match profile {
        Profile::Service { profile, .. } => {
            let route = profile.as_ref()?.spec.routes.first().unwrap();
            Some(&route.name)
        }
        Profile::UndefinedPort | Profile::Endpoint { .. } => None,
    }
}

#[test]
fn the_clients_namespace_comes_before_the_servers() {
    let both = [CLUSTER, &profile_in("shop", ""), &profile_in("till", "")].concat();
    let server = [CLUSTER, &profile_in("shop", "")].concat();
    let other = [CLUSTER, &profile_in("till", "")].concat();
    for (manifests, target, client, expected) in [
        (&both, "10.96.0.1:80", Some("till"), Some("till")),
        (&both, "web.shop.svc.cluster.local:80", Some("till"), Some("till")),
        (&both, "10.96.0.1:80", Some("shop"), Some("shop")),
        (&both, "10.96.0.1:80", Some("elsewhere"), Some("shop")),
        (&both, "10.96.0.1:80", None, Some("shop")),
        (&server, "10.96.0.1:80", Some("till"), Some("shop")),
        (&other, "10.96.0.1:80", Some("shop"), None),
        (&both, "10.96.0.1:9090", Some("shop"), Some("shop")),
        (&both, "10.96.0.1:81", Some("shop"), None),
        (&both, "10.1.0.1:8080", Some("shop"), None),
    ] {
        let seen = ask(manifests, target, client);
        assert_eq!(route_of(&seen), expected, "{target} for {client:?}");
    }
}

#[test]
fn opaque_ports_of_the_profile_add_to_those_of_the_service() {
    let manifests = [CLUSTER, &profile_in("till", ", opaquePorts: ['9090']")].concat();
    for (port, client, expected) in
        [(9090, Some("till"), true), (80, Some("till"), false), (9090, Some("shop"), false)]
    {
        let seen = ask(&manifests, &format!("10.96.0.1:{port}"), client);
        assert!(matches!(seen, Profile::Service { opaque, .. } if opaque == expected), "{seen:?}");
    }
}

#[test]
fn a_profile_says_what_it_is_about() {
    let other = |name: &str| profile_in("shop", "").replace("web.shop.svc.cluster.local", name);
    let all = ["none.shop.svc.cluster.local", "example.com", "web.shop.svc.other.domain", "web.shop.svc"]
        .map(other);
    let index = index(&[CLUSTER.to_owned(), profile_in("shop", ""), all.concat()].concat());
    let seen: Vec<(String, String)> =
        profile_reports(&index, &settings()).map(|(name, report)| (name, report.applies)).collect();
    let nothing = "nothing: its name is not <service>.<namespace>.svc.cluster.local";
    let expected = [
        ("shop/example.com", nothing),
        ("shop/none.shop.svc.cluster.local", "Service shop/none, which does not exist"),
        ("shop/web.shop.svc", nothing),
        ("shop/web.shop.svc.cluster.local", "Service shop/web"),
        ("shop/web.shop.svc.other.domain", nothing),
    ];
    let expected: Vec<(String, String)> =
        expected.iter().map(|(name, about)| ((*name).to_owned(), (*about).to_owned())).collect();
    assert_eq!(seen, expected);
}

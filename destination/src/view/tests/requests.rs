//! What a proxy may ask for, and who it says it is.

use super::*;

#[test]
fn what_is_not_there_is_not_found() {
    let external = "{apiVersion: v1, kind: Service, metadata: {name: out, namespace: shop}, spec: {type: ExternalName, externalName: a.example}}";
    for target in ["out.shop.svc.cluster.local:80", "none.shop.svc.cluster.local:80"] {
        assert!(matches!(get(external, target), Err(Refusal::NotFound(_))), "{target}");
        let target = Target::parse(target, "cluster.local").unwrap();
        let index = index(external);
        assert!(matches!(
            profile(&mut Lens::new(&index), &settings(), &target, &Context::default()),
            Err(Refusal::NotFound(_))
        ));
        assert!(matches!(
            outbound(&mut Lens::new(&index), &settings(), &target, None),
            Err(Refusal::NotFound(_))
        ));
    }
}

#[test]
fn workloads_that_nobody_has() {
    for text in ["", "shop", "shop:", ":web", r#"{"ns":"shop"}"#, "shop:we b", "{}", "shop:WEB"] {
        assert!(matches!(Workload::parse(text), Err(Refusal::Invalid(_))), "{text}");
    }
}

#[test]
fn context_tokens() {
    let full = Context::parse(r#"{"ns":"shop","nodeName":"node-a","pod":"web-1"}"#);
    assert_eq!((full.namespace.as_deref(), full.node.as_deref()), (Some("shop"), Some("node-a")));
    assert_eq!(Context::parse("ns:shop").namespace.as_deref(), Some("shop"));
    assert_eq!(Context::parse("{garbage"), Context::default());
}

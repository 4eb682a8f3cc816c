//! Whom a balancer picks where not everybody may be sent to.

use super::*;
use crate::{config::Config, stage};
use remora_core::policy::OutboundDefault;

fn strict(config: &mut Config) {
    config.outbound.default_policy = OutboundDefault::AllAuthenticated;
}

fn forbidden(live: &Arc<LiveEndpoint>) -> bool {
    live.forbidden().is_some()
}

#[tokio::test]
async fn who_may_not_be_sent_to_is_nobodys_second_choice() {
    let worker = stage::worker(strict);
    let endpoints = vec![stage::meshed("127.0.0.1:8001"), stage::bare("127.0.0.2:8002")];
    let balancer = stage::balancer(&worker, "mixed.shop.svc.cluster.local:80", endpoints).await;
    let (out, may): (Vec<_>, Vec<_>) = balancer.endpoints().into_iter().partition(forbidden);
    assert_eq!((out.len(), may.len()), (1, 1));
    for _ in 0..20 {
        // Also for a retry, and for what is sent elsewhere.
        let failed = may.first();
        let (first, retried) = (balancer.pick(None).await, balancer.pick_again(failed).await);
        for picked in [first, retried, balancer.pick(failed).await] {
            assert!(!forbidden(&picked.unwrap()), "it takes the place of one that may be sent to");
        }
    }
    assert!(!balancer.has_choice(), "a body is kept for nobody");
}

#[tokio::test]
async fn where_nobody_may_be_sent_to_whoever_comes_is_told_at_once() {
    let worker = stage::worker(strict);
    let endpoints = vec![stage::bare("127.0.0.1:8001"), stage::bare("127.0.0.2:8002")];
    let balancer = stage::balancer(&worker, "plain.shop.svc.cluster.local:80", endpoints).await;
    let picked = balancer.pick(None).await.unwrap();
    assert!(matches!(picked.connect_opaque().await, Err(Fault::NoIdentity { .. })));
}

#[tokio::test(start_paused = true)]
async fn who_has_an_identity_and_refuses_is_waited_for_until_failfast_whoever_has_none() {
    let worker = stage::worker(strict);
    let endpoints = vec![stage::meshed("127.0.0.1:8001"), stage::bare("127.0.0.2:8002")];
    let balancer = stage::balancer(&worker, "mixed.shop.svc.cluster.local:80", endpoints).await;
    let (began, mut tried) = (clock::now(), 0);
    let fault = loop {
        match balancer.pick(None).await {
            Ok(picked) => {
                let refused = picked.connect_opaque().await.err().unwrap();
                assert!(!matches!(refused, Fault::NoIdentity { .. }), "{refused}");
                tried += 1;
            }
            Err(fault) => break fault,
        }
    };
    // It may come back meanwhile, and is tried as often as any other.
    assert_eq!((clock::now().since(began), tried), (FAILFAST, 5));
    assert_eq!(
        fault.to_string(),
        "no endpoint of mixed.shop.svc.cluster.local:80 with an identity, which the outbound default policy \
         all-authenticated demands (1 without), is available"
    );
    // From then on nobody waits.
    assert!(balancer.pick(None).await.is_err());
    assert_eq!(clock::now().since(began), FAILFAST);
}

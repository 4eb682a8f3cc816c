//! Chains that no authority of ours makes.

use super::*;

#[tokio::test]
async fn a_client_that_shows_an_authoritys_certificate_is_refused() {
    let mesh = Mesh::new();
    let shown = mesh.shown(|ca| {
        let key = KeyPair::generate().unwrap();
        let params = authority_params("an intermediate");
        (vec![params.signed_by(&key, &ca.issuer).unwrap().der().clone()], key)
    });
    let (_client, server) = handshake(shown, mesh.server.server_config()).await;
    // By the chain's verification, or by who reads the leaf afterwards.
    let refused = match server {
        Err(fault) => TlsFault::from(&fault),
        Ok(server) => peer(server.get_ref().1, mesh.clock.unix()).unwrap_err(),
    };
    assert!(["untrusted", "authority"].contains(&refused.label()), "{refused:?}");
}

#[tokio::test]
async fn a_chain_of_a_hundred_is_refused() {
    let mesh = Mesh::new();
    let shown = mesh.shown(|ca| {
        let mut chain = Vec::new();
        let mut above: Option<Issuer<'static, KeyPair>> = None;
        for n in 0..99 {
            let (key, params) = (KeyPair::generate().unwrap(), authority_params(&format!("authority {n}")));
            let issuer = above.as_ref().unwrap_or(&ca.issuer);
            chain.insert(0, params.signed_by(&key, issuer).unwrap().der().clone());
            above = Some(Issuer::new(params, key));
        }
        let key = KeyPair::generate().unwrap();
        let leaf = leaf_params(&[dns(CLIENT)], 0, mesh.clock.now() + DAY);
        chain.insert(0, leaf.signed_by(&key, &above.unwrap()).unwrap().der().clone());
        (chain, key)
    });
    let (_client, server) = handshake(shown, mesh.server.server_config()).await;
    assert_eq!(TlsFault::from(&server.unwrap_err()).label(), "untrusted");
}

#[tokio::test]
async fn authorities_that_all_have_the_same_name_do_not_make_the_search_for_a_path_endless() {
    let mesh = Mesh::new();
    // Each could have signed each: a search without a budget tries every order of them.
    let shown = mesh.shown(|_| {
        let keys: Vec<KeyPair> = (0..60).map(|_| KeyPair::generate().unwrap()).collect();
        let params = authority_params("the same name");
        let issuers: Vec<_> = keys.into_iter().map(|key| Issuer::new(params.clone(), key)).collect();
        let certificates = issuers.iter().enumerate().map(|(n, issuer)| {
            let above = &issuers[(n + 1) % issuers.len()];
            params.signed_by(issuer.key(), above).unwrap().der().clone()
        });
        let key = KeyPair::generate().unwrap();
        let leaf = leaf_params(&[dns(CLIENT)], 0, mesh.clock.now() + DAY);
        let leaf = leaf.signed_by(&key, &issuers[0]).unwrap().der().clone();
        (std::iter::once(leaf).chain(certificates).collect(), key)
    });
    let (_client, server) = handshake(shown, mesh.server.server_config()).await;
    assert_eq!(TlsFault::from(&server.unwrap_err()).label(), "untrusted");
}

#[tokio::test]
async fn a_client_whose_names_are_none_of_ours_has_no_identity() {
    let mesh = Mesh::new();
    for names in [
        vec![dns("*.shop.serviceaccount.identity.remora.cluster.local")],
        vec![dns("web.shop.serviceaccount.identity.remora.cluster.local\0.evil.example")],
        vec![SanType::IpAddress([10, 0, 0, 1].into())],
        Vec::new(),
    ] {
        let shown = mesh.shown(|ca| {
            let key = KeyPair::generate().unwrap();
            let mut params = leaf_params(&names, 0, mesh.clock.now() + DAY);
            // The subject is nobody's name here, whatever it says.
            params.distinguished_name.push(DnType::CommonName, SERVER);
            (vec![params.signed_by(&key, &ca.issuer).unwrap().der().clone()], key)
        });
        let (_client, server) = handshake(shown, mesh.server.server_config()).await;
        let refused = match server {
            Err(fault) => TlsFault::from(&fault),
            Ok(server) => peer(server.get_ref().1, mesh.clock.unix()).unwrap_err(),
        };
        assert!(
            ["no_identity", "not_a_name", "untrusted", "unreadable"].contains(&refused.label()),
            "{names:?}: {refused:?}"
        );
    }
}

#[tokio::test]
async fn an_authority_that_may_name_only_some_makes_no_others() {
    const SHOP: &str = "shop.serviceaccount.identity.remora.cluster.local";
    let mesh = Mesh::new();
    let dns_only = |permitted: &[&str], excluded: &[&str]| {
        let trees =
            |names: &[&str]| names.iter().map(|name| GeneralSubtree::DnsName((*name).into())).collect();
        let mut params = authority_params("a constrained one");
        params.name_constraints = Some(NameConstraints {
            permitted_subtrees: trees(permitted),
            excluded_subtrees: trees(excluded),
        });
        params
    };
    // Of URIs rcgen makes none: permitted is `mesh` (RFC 5280 section 4.2.1.10).
    let mut of_uris = authority_params("one of URIs");
    let mut constraint =
        CustomExtension::from_oid_content(&[2, 5, 29, 30], b"\x30\x0a\xa0\x08\x30\x06\x86\x04mesh".to_vec());
    constraint.set_criticality(true);
    of_uris.custom_extensions.push(constraint);
    let bank = "cart.bank.serviceaccount.identity.remora.cluster.local";
    for (authority, names, is_peer) in [
        (dns_only(&[SHOP], &[]), vec![dns(CLIENT)], true),
        (dns_only(&[SHOP], &[]), vec![dns(bank)], false),
        (dns_only(&[SHOP], &[]), vec![dns(CLIENT), dns(bank)], false),
        (dns_only(&[SHOP], &[]), vec![dns("*.serviceaccount.identity.remora.cluster.local")], false),
        (dns_only(&[], &[SHOP]), vec![dns(bank)], true),
        (dns_only(&[], &[SHOP]), vec![dns(CLIENT)], false),
        // What the library does not compare it refuses.
        (of_uris.clone(), vec![SanType::URI("spiffe://other/web".try_into().unwrap())], false),
        (of_uris, vec![dns(CLIENT)], true),
    ] {
        let shown = mesh.shown(|ca| {
            let above = KeyPair::generate().unwrap();
            let intermediate = authority.signed_by(&above, &ca.issuer).unwrap().der().clone();
            let issuer = Issuer::new(authority, above);
            let key = KeyPair::generate().unwrap();
            let leaf = leaf_params(&names, 0, mesh.clock.now() + DAY);
            (vec![leaf.signed_by(&key, &issuer).unwrap().der().clone(), intermediate], key)
        });
        let (_client, server) = handshake(shown, mesh.server.server_config()).await;
        match server {
            Ok(_) => assert!(is_peer, "{names:?}"),
            Err(fault) => {
                assert_eq!((TlsFault::from(&fault).label(), is_peer), ("untrusted", false), "{names:?}");
            }
        }
    }
}

fn authority_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

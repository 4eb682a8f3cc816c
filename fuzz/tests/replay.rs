//! The corpora and a few thousand random inputs through the same functions that `scripts/fuzz.sh` searches with, and
//! ClientHellos that rustls makes here and now.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::prelude::*;
use remora_core::client_hello::{Hello, Parsed, parse};
use remora_fuzz::TARGETS;
use rustls::{
    ClientConfig, ClientConnection, RootCertStore,
    crypto::{CryptoProvider, aws_lc_rs},
};
use std::{fs, path::Path, sync::Arc};

#[test]
fn every_input_of_the_corpora_holds() {
    for (name, target) in TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
        let mut inputs = 0;
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let input = fs::read(&path).unwrap();
            println!("{}", path.display());
            target(&input);
            inputs += 1;
        }
        assert!(inputs >= 10, "{inputs} inputs in {}", folder.display());
    }
}

#[test]
fn beginnings_of_the_corpora_hold() {
    for (name, target) in TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
        for entry in fs::read_dir(&folder).unwrap() {
            let input = fs::read(entry.unwrap().path()).unwrap();
            for cut in [1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233] {
                target(&input[..input.len().saturating_sub(cut)]);
            }
        }
    }
}

#[test]
fn a_hello_of_rustls_is_read_with_and_without_a_post_quantum_key_share() {
    for post_quantum in [true, false] {
        let bytes = rustls_hello(post_quantum, "web.prod.svc.cluster.local", &["transport.l5d.io/v1"]);
        assert_eq!(bytes.len() > 1200, post_quantum, "{} bytes", bytes.len());
        let expected = Hello {
            sni: Some("web.prod.svc.cluster.local".into()),
            alpn: vec![b"transport.l5d.io/v1".to_vec()],
            tls13: true,
        };
        assert_eq!(parse(&bytes), Parsed::Hello(expected));
        for (_, target) in TARGETS {
            target(&bytes);
        }
    }
}

proptest! {
    // The same cases every time: this replays; who searches is `make fuzz`.
    #![proptest_config(ProptestConfig {
        cases: 500,
        failure_persistence: None,
        rng_seed: proptest::test_runner::RngSeed::Fixed(1),
        ..ProptestConfig::default()
    })]

    #[test]
    fn random_bytes_hold(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        all(&bytes);
    }

    #[test]
    fn a_mutated_corpus_holds(
        target in 0..TARGETS.len(),
        pick in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        cut in any::<prop::sample::Index>(),
        bytes in proptest::collection::vec(any::<u8>(), 0..5),
    ) {
        let (name, target) = TARGETS[target];
        let inputs = corpus(name);
        let mut input = inputs[pick.index(inputs.len())].clone();
        let from = at.index(input.len() + 1);
        let until = (from + cut.index(5)).min(input.len());
        input.splice(from..until, bytes);
        target(&input);
    }
}

fn all(bytes: &[u8]) {
    for (_, target) in TARGETS {
        target(bytes);
    }
}

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// The first flight of a rustls client.
fn rustls_hello(post_quantum: bool, name: &'static str, alpn: &[&str]) -> Vec<u8> {
    let groups = if post_quantum {
        vec![aws_lc_rs::kx_group::X25519MLKEM768, aws_lc_rs::kx_group::X25519]
    } else {
        vec![aws_lc_rs::kx_group::X25519, aws_lc_rs::kx_group::SECP256R1]
    };
    let provider = CryptoProvider { kx_groups: groups, ..aws_lc_rs::default_provider() };
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    let mut client = ClientConnection::new(Arc::new(config), name.try_into().unwrap()).unwrap();
    let mut bytes = vec![];
    client.write_tls(&mut bytes).unwrap();
    bytes
}

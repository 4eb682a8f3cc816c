//! Files that are an issuer, and files that are not.

use super::*;
use crate::testing::{Root, authority};
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyUsagePurpose};

const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);
const BEGIN: u64 = 1_700_000_000;
const END: u64 = 1_900_000_000;

#[test]
fn an_issuer_signed_by_an_anchor_is_good_until_its_end() {
    let root = Root::new();
    let files = root.files(BEGIN, END);
    let issuer = Issuer::from_pem(&files.certificate, &files.key, &root.bundle(), NOW).unwrap();
    assert_eq!(issuer.subject(), "CN=identity");
    assert_eq!(issuer.expires(), UnixTime::from_secs(END));
    assert_eq!(issuer.chain().len(), 1);
}

#[test]
fn the_root_in_the_issuers_file_is_not_sent_along() {
    let root = Root::new();
    let files = root.files(BEGIN, END);
    let both = format!("{}{}", files.certificate, root.pem());
    let issuer = Issuer::from_pem(&both, &files.key, &root.bundle(), NOW).unwrap();
    assert_eq!(issuer.chain().len(), 1);
}

#[test]
fn keys_in_sec1_are_read() {
    assert!(read_key(SEC1).unwrap().is_compatible(&rcgen::PKCS_ECDSA_P256_SHA256));
}

#[test]
fn what_is_no_issuer_is_refused_with_the_reason() {
    let (root, other) = (Root::new(), Root::new());
    let good = root.files(BEGIN, END);
    let refused = |certificate: &str, key: &str| {
        Issuer::from_pem(certificate, key, &root.bundle(), NOW).unwrap_err().to_string()
    };
    let says = |found: String, expected: &str| assert!(found.contains(expected), "{found}");
    says(refused("", &good.key), "no certificate in it");
    says(
        refused("-----BEGIN CERTIFICATE-----\nMAEA\n-----END CERTIFICATE-----\n", &good.key),
        "certificate file",
    );
    says(refused(&good.certificate[..200], &good.key), "certificate file");
    says(refused(&good.certificate, ""), "no private key in PEM");
    says(refused(&good.certificate, &good.certificate), "no private key in PEM");
    says(refused(&good.certificate, &root.files(BEGIN, END).key), "not the key of its certificate");
    let foreign = other.files(BEGIN, END);
    says(refused(&foreign.certificate, &foreign.key), "does not lead to the trust anchors (CN=root)");
    let past = root.files(BEGIN, 1_799_999_990);
    says(refused(&past.certificate, &past.key), "ended 10 s ago");
    let future = root.files(1_800_000_030, END);
    says(refused(&future.certificate, &future.key), "begins in 30 s");
    let leaf = root.sign(&with("leaf", |params| params.is_ca = IsCa::NoCa));
    says(refused(&leaf.certificate, &leaf.key), "CN=leaf is not the certificate of an authority");
    let idle = root.sign(&with("idle", |params| params.key_usages = vec![KeyUsagePurpose::CrlSign]));
    says(refused(&idle.certificate, &idle.key), "CN=idle is not the certificate of an authority");
    says(refused(&good.certificate.repeat(9), &good.key), "more than 8");
}

#[test]
fn a_chain_ends_with_its_earliest_certificate() {
    // root → middle (ends first) → issuer
    let root = Root::new();
    let middle_key = KeyPair::generate().unwrap();
    let middle_params = authority("middle", BEGIN, END - 1000);
    let middle = root.certify(&middle_params, &middle_key);
    let middle_issuer = rcgen::Issuer::new(middle_params, middle_key);
    let key = KeyPair::generate().unwrap();
    let own = authority("identity", BEGIN, END).signed_by(&key, &middle_issuer).unwrap().pem();
    let chain = format!("{own}{middle}");
    let issuer = Issuer::from_pem(&chain, &key.serialize_pem(), &root.bundle(), NOW).unwrap();
    assert_eq!(issuer.expires(), UnixTime::from_secs(END - 1000));
    assert_eq!(issuer.chain().len(), 2);
    let alone = Issuer::from_pem(&own, &key.serialize_pem(), &root.bundle(), NOW).unwrap_err();
    assert!(alone.to_string().contains("does not lead to the trust anchors"), "{alone}");
}

#[test]
fn an_authority_that_may_have_no_leaves_is_found_out_by_the_proof() {
    // path length 0 at the middle: it may issue leaves but no further authority.
    let root = Root::new();
    let middle_key = KeyPair::generate().unwrap();
    let middle_params = with("middle", |params| params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));
    let middle = root.certify(&middle_params, &middle_key);
    let middle_issuer = rcgen::Issuer::new(middle_params, middle_key);
    let key = KeyPair::generate().unwrap();
    let own = authority("identity", BEGIN, END).signed_by(&key, &middle_issuer).unwrap().pem();
    let chain = format!("{own}{middle}");
    let fault = Issuer::from_pem(&chain, &key.serialize_pem(), &root.bundle(), NOW).unwrap_err();
    assert!(matches!(fault, InvalidIssuer::Untrusted { .. }), "{fault}");
}

#[test]
fn a_key_is_never_printed() {
    let root = Root::new();
    let issuer = root.issuer(UnixTime::from_secs(END));
    let text = format!("{issuer:?}");
    assert!(text.contains("CN=identity") && text.len() < 120, "{text}");
}

fn with(name: &str, change: impl FnOnce(&mut CertificateParams)) -> CertificateParams {
    let mut params = authority(name, BEGIN, END);
    change(&mut params);
    params
}

/// Made for this test and used nowhere.
const SEC1: &str = "-----BEGIN EC PRIVATE KEY-----\n\
    MHcCAQEEIMmmH0oHQG5WTPB5Vcbev5HBew4qcD07aGm7kLf5RnDAoAoGCCqGSM49\n\
    AwEHoUQDQgAE2lzj4d09Yjl9DZCDp5PKcIipXESDv3A8gM6O+wj3N/qj1HpZv0s2\n\
    EBQ9AJVXo/OJDaKsiloDU0MRlBVb4dwszA==\n\
    -----END EC PRIVATE KEY-----\n";

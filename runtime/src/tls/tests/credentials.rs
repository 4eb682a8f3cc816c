//! What may be our credentials, and what is asked for them.

use super::*;

#[test]
fn credentials_are_refused_with_the_reason() {
    let (mesh, other) = (Mesh::new(), Mesh::new());
    let now = mesh.clock.now();
    let good = || mesh.ca.issue(SERVER, now - 60, now + DAY);
    let refused = |issued: Issued, name: &str, bundle: &Arc<TrustBundle>| {
        issued.credentials(name, bundle, &mesh.clock).map(|_| ()).unwrap_err().to_string()
    };
    good().credentials(SERVER, &mesh.bundle, &mesh.clock).unwrap();
    assert!(refused(good(), CLIENT, &mesh.bundle).contains("was issued to web.shop"));
    assert!(refused(good(), SERVER, &other.bundle).contains("does not lead to the trust anchors (CN=root)"));
    let foreign_key = Issued { key: Keypair::generate().unwrap(), ..good() };
    assert!(refused(foreign_key, SERVER, &mesh.bundle).contains("public key is not ours"));
    let expired = mesh.ca.issue(SERVER, now - 120, now - 60);
    assert!(refused(expired, SERVER, &mesh.bundle).contains("expired 60 s ago"));
    let early = mesh.ca.issue(SERVER, now + 30, now + DAY);
    assert!(refused(early, SERVER, &mesh.bundle).contains("do the clocks agree?"));
    let garbage = Issued { leaf: vec![1, 2, 3], ..good() };
    assert!(refused(garbage, SERVER, &mesh.bundle).contains("cannot be read"));
    let long = Issued { intermediates: vec![Vec::new(); 9], ..good() };
    assert!(refused(long, SERVER, &mesh.bundle).contains("more than 8"));
}

#[test]
fn a_bundle_says_which_certificate_is_wrong() {
    let (a, b) = (Ca::new(), Ca::new());
    let leaf = leaf_params(&[dns(SERVER)], 0, DAY).self_signed(&KeyPair::generate().unwrap()).unwrap().pem();
    let refused = |text: &str| TrustBundle::from_pem(text).unwrap_err().to_string();
    assert_eq!(TrustBundle::from_pem(&format!("{}{}", a.pem(), b.pem())).unwrap().anchors().len(), 2);
    assert!(refused("").contains("hold no certificate"));
    assert!(refused("cluster.local").contains("hold no certificate"));
    assert!(
        refused(&format!("{}{leaf}", a.pem())).contains("certificate 2 of the trust anchors cannot be used")
    );
    let garbage = "-----BEGIN CERTIFICATE-----\nMAEA\n-----END CERTIFICATE-----\n";
    assert!(refused(garbage).contains("certificate 1"));
    let key = KeyPair::generate().unwrap().serialize_pem();
    assert!(refused(&format!("{}{key}", a.pem())).contains("block 2 of the trust anchors is a PrivateKey"));
    let cut = a.pem().replace("-----END CERTIFICATE-----\n", "");
    assert!(refused(&cut).contains("not PEM after certificate 0"), "{}", refused(&cut));
    assert!(refused(&a.pem().repeat(65)).contains("more than 64"));
}

#[test]
fn a_key_never_prints_itself() {
    let key = Keypair::generate().unwrap();
    assert_eq!(format!("{key:?}"), "Keypair(redacted)");
    assert!(!key.pkcs8_der().is_empty());
}

#[test]
fn a_request_names_the_identity_twice_and_nothing_else() {
    use x509_parser::prelude::*;
    let key = Keypair::generate().unwrap();
    let csr = key.csr_der(&identity(SERVER)).unwrap();
    let (rest, csr) = X509CertificationRequest::from_der(&csr).unwrap();
    assert!(rest.is_empty());
    csr.verify_signature().unwrap();
    let info = &csr.certification_request_info;
    assert_eq!(info.subject.to_string(), format!("CN={SERVER}"));
    assert_eq!(info.subject_pki.raw, key.public_key_der());
    let extensions: Vec<_> = csr.requested_extensions().unwrap().collect();
    let [ParsedExtension::SubjectAlternativeName(san)] = extensions[..] else { panic!("{extensions:?}") };
    assert_eq!(san.general_names, [GeneralName::DNSName(SERVER)]);
    assert!(matches!(key.csr_der(&identity("spiffe://mesh/web")), Err(KeyFault::NotDns(_))));
}

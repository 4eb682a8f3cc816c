//! Tokens that are good, and tokens that are wrong in one way each.

use super::*;
use jsonwebtoken::{EncodingKey, Header};
use rcgen::{KeyPair, RsaKeySize};
use serde_json::{Value, json};
use std::time::{SystemTime, UNIX_EPOCH};
use tonic::Code;

const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
const AUDIENCE: &str = "identity.l5d.io";

#[test]
fn each_type_of_key_goes_with_one_algorithm() {
    for signer in [Signer::ec(), Signer::ed(), Signer::rsa()] {
        let token = signer.sign(&claims());
        assert_eq!(signer.validator().check(&token), Ok(account()), "{:?}", signer.algorithm);
        let newline = [&token[..], b"\n"].concat();
        assert_eq!(signer.validator().check(&newline), Ok(account()));
    }
}

#[test]
fn another_key_of_the_file_may_have_signed() {
    let (old, new) = (Signer::ec(), Signer::ed());
    let both = format!("{}{}", old.public, new.public);
    let validator = JwtValidator::from_pem(&both, ISSUER, AUDIENCE).unwrap();
    assert_eq!(validator.check(&old.sign(&claims())), Ok(account()));
    assert_eq!(validator.check(&new.sign(&claims())), Ok(account()));
    rejected(&validator.check(&Signer::ec().sign(&claims())), "not from a key of ours");
}

#[test]
fn claims_that_are_wrong_are_named() {
    let signer = Signer::ec();
    let validator = signer.validator();
    let check = |change: &dyn Fn(&mut Value), why: &str| {
        let mut claims = claims();
        change(&mut claims);
        rejected(&validator.check(&signer.sign(&claims)), why);
    };
    check(&|claims| claims["exp"] = json!(now() - 61), "it has expired");
    check(&|claims| claims["nbf"] = json!(now() + 120), "not valid yet");
    check(&|claims| claims["iss"] = json!("https://elsewhere"), "issuer");
    check(&|claims| claims["aud"] = json!("api"), "audience");
    check(&|claims| claims["aud"] = json!([]), "audience");
    check(&|claims| claims["sub"] = json!("system:node:worker-1"), "not a service account");
    for claim in ["exp", "aud", "iss", "sub"] {
        check(
            &|claims| {
                claims.as_object_mut().unwrap().remove(claim);
            },
            &format!("no claim {claim:?}"),
        );
    }
}

#[test]
fn clocks_may_differ_by_a_minute() {
    let signer = Signer::ec();
    let mut claims = claims();
    claims["exp"] = json!(now() - 30);
    claims["nbf"] = json!(now() + 30);
    assert_eq!(signer.validator().check(&signer.sign(&claims)), Ok(account()));
}

#[test]
fn the_header_chooses_nothing() {
    let signer = Signer::ec();
    let validator = signer.validator();
    let token = String::from_utf8(signer.sign(&claims())).unwrap();
    let (_header, rest) = token.split_once('.').unwrap();
    let (payload, _signature) = rest.split_once('.').unwrap();
    // Unsigned: {"alg":"none"}
    rejected_or_malformed(&validator.check(format!("eyJhbGciOiJub25lIn0.{payload}.").as_bytes()));
    // Signed with the public key as if it were a secret.
    let secret = EncodingKey::from_secret(signer.public.as_bytes());
    let header = Header::new(Algorithm::HS256);
    let forged = jsonwebtoken::encode(&header, &claims(), &secret).unwrap();
    rejected(&validator.check(forged.as_bytes()), "not by that key's algorithm");
    // A good signature of another algorithm.
    let ed = Signer::ed();
    rejected(&validator.check(&ed.sign(&claims())), "not from a key of ours");
}

#[test]
fn a_changed_token_is_rejected() {
    let signer = Signer::ec();
    let good = String::from_utf8(signer.sign(&claims())).unwrap();
    let mut other_claims = claims();
    other_claims["sub"] = json!("system:serviceaccount:kube-system:admin");
    let other = String::from_utf8(signer.sign(&other_claims)).unwrap();
    let parts = |token: &str| token.split('.').map(str::to_owned).collect::<Vec<_>>();
    let (good, other) = (parts(&good), parts(&other));
    let swapped = format!("{}.{}.{}", good[0], other[1], good[2]);
    rejected(&signer.validator().check(swapped.as_bytes()), "not from a key of ours");
}

#[test]
fn what_is_no_token_is_malformed() {
    let validator = Signer::ec().validator();
    for text in [&b""[..], b"  \n", b"token", b"a.b.c", b"..", &[0xff; 100], &vec![b'x'; 65_537]] {
        let fault = validator.check(text).unwrap_err();
        assert!(matches!(fault, InvalidToken::Malformed(_)), "{fault}");
        assert_eq!(fault.code(), Code::InvalidArgument);
    }
}

#[test]
fn messages_never_repeat_the_token() {
    let signer = Signer::ec();
    for token in [&b"topsecret"[..], b"topsecret.topsecret.topsecret"] {
        let text = signer.validator().check(token).unwrap_err().to_string();
        assert!(!text.contains("topsecret"), "{text}");
    }
}

#[test]
fn only_service_accounts_have_accounts() {
    assert_eq!(service_account("system:serviceaccount:shop:web"), Ok(account()));
    let others = [
        "",
        "web",
        "system:serviceaccount:shop",
        "system:serviceaccount::web",
        "system:serviceaccount:shop:",
    ];
    for other in
        others.iter().chain(&["system:serviceaccount:shop:web:x", "system:node:shop:web", "kubernetes-admin"])
    {
        assert_eq!(service_account(other).unwrap_err().code(), Code::FailedPrecondition, "{other}");
    }
}

#[test]
fn files_without_usable_keys_are_refused_with_the_reason() {
    let refused = |pem: &str| match JwtValidator::from_pem(pem, ISSUER, AUDIENCE) {
        Ok(_) => panic!("accepted: {pem}"),
        Err(fault) => fault.to_string(),
    };
    let good = Signer::ec();
    let says = |pem: &str, why: &str| assert!(refused(pem).contains(why), "{}", refused(pem));
    says("", "no public key");
    says("ssh-ed25519 AAAA", "no public key");
    says(&KeyPair::generate().unwrap().serialize_pem(), "block 1 is a PrivateKey");
    says(&format!("{}{}", good.public, RSA_1024), "key 2 cannot be used: RSA of 1024 bits");
    says(P384, "an elliptic curve other than P-256");
    says("-----BEGIN PUBLIC KEY-----\nMAEA\n-----END PUBLIC KEY-----\n", "key 1 cannot be used");
    says(&good.public.repeat(17), "more than 16");
}

// Helpers.

struct Signer {
    algorithm: Algorithm,
    key: EncodingKey,
    public: String,
}

impl Signer {
    fn ec() -> Self {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let encoding = EncodingKey::from_ec_pem(key.serialize_pem().as_bytes()).unwrap();
        Self { algorithm: Algorithm::ES256, key: encoding, public: key.public_key_pem() }
    }

    fn ed() -> Self {
        let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let encoding = EncodingKey::from_ed_der(key.serialized_der());
        Self { algorithm: Algorithm::EdDSA, key: encoding, public: key.public_key_pem() }
    }

    fn rsa() -> Self {
        let key = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
        let encoding = EncodingKey::from_rsa_pem(key.serialize_pem().as_bytes()).unwrap();
        Self { algorithm: Algorithm::RS256, key: encoding, public: key.public_key_pem() }
    }

    fn sign(&self, claims: &Value) -> Vec<u8> {
        jsonwebtoken::encode(&Header::new(self.algorithm), claims, &self.key).unwrap().into_bytes()
    }

    fn validator(&self) -> JwtValidator {
        JwtValidator::from_pem(&self.public, ISSUER, AUDIENCE).unwrap()
    }
}

/// As the kubelet projects them.
fn claims() -> Value {
    json!({
        "iss": ISSUER,
        "sub": "system:serviceaccount:shop:web",
        "aud": [AUDIENCE],
        "exp": now() + 3600,
        "nbf": now() - 1,
        "iat": now() - 1,
        "kubernetes.io": { "namespace": "shop", "serviceaccount": { "name": "web" } },
    })
}

fn account() -> ServiceAccount {
    ServiceAccount { namespace: "shop".to_owned(), name: "web".to_owned() }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

#[track_caller]
fn rejected(verdict: &Result<ServiceAccount, InvalidToken>, why: &str) {
    let Err(fault @ InvalidToken::Rejected(_)) = verdict else { panic!("{verdict:?}") };
    assert!(fault.to_string().contains(why), "{fault}");
    assert_eq!(fault.code(), Code::FailedPrecondition);
}

#[track_caller]
fn rejected_or_malformed(verdict: &Result<ServiceAccount, InvalidToken>) {
    assert!(verdict.is_err(), "{verdict:?}");
}

const RSA_1024: &str = "-----BEGIN PUBLIC KEY-----\n\
    MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQCwVyZbm+Jubxb3/8XD0iD5mtyP\n\
    PTHdIs74QsuNwBEaEd9BlfpVNmxbJDgO4EQDlCFOJGfvGgnB1x/RwvT9qNrJi9sY\n\
    YK9FsTKUCkUUohxzaT6hCHN+Sz9RP577vtweHacK9Xv84H6JIsu4mLn4DLIpFoJB\n\
    uhFsZwlK6Dgd9lr2WQIDAQAB\n\
    -----END PUBLIC KEY-----\n";

const P384: &str = "-----BEGIN PUBLIC KEY-----\n\
    MHYwEAYHKoZIzj0CAQYFK4EEACIDYgAElchvamZvtdgK97tzS3cR0ZIPByGJFao5\n\
    My2gDYm2R5Xe2rqvecJe3HNzDgg8uLz0SfKCiiLl6dnOAjWIqD5kOplrsjkUwzTS\n\
    ipAATtI3+g3oGshLn0DctTmtsNdUsY5V\n\
    -----END PUBLIC KEY-----\n";

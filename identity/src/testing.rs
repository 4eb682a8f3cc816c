//! Roots, issuers and requests for tests.

use crate::issuer::Issuer;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use remora_core::time::UnixTime;
use remora_runtime::tls::TrustBundle;
use std::{
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

pub(crate) const NAME: &str = "web.shop.serviceaccount.identity.remora.cluster.local";

/// A root that signs issuers.
pub(crate) struct Root {
    certificate: rcgen::Certificate,
    issuer: rcgen::Issuer<'static, KeyPair>,
}

/// What an issuer is made of, before it is one.
pub(crate) struct Files {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Root {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let params = authority("root", 1_000_000_000, 4_000_000_000);
        let certificate = params.self_signed(&key).unwrap();
        Self { certificate, issuer: rcgen::Issuer::new(params, key) }
    }

    pub(crate) fn pem(&self) -> String {
        self.certificate.pem()
    }

    pub(crate) fn bundle(&self) -> Arc<TrustBundle> {
        TrustBundle::from_pem(&self.pem()).unwrap()
    }

    pub(crate) fn files(&self, not_before: u64, not_after: u64) -> Files {
        self.sign(&authority("identity", not_before, not_after))
    }

    pub(crate) fn sign(&self, params: &CertificateParams) -> Files {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        Files { certificate, key: key.serialize_pem() }
    }

    /// A certificate for a key of somebody else.
    pub(crate) fn certify(&self, params: &CertificateParams, key: &KeyPair) -> String {
        params.signed_by(key, &self.issuer).unwrap().pem()
    }

    /// An issuer that ends at `expires`.
    pub(crate) fn issuer(&self, expires: UnixTime) -> Issuer {
        let files = self.files(1_000_000_000, expires.0.as_secs());
        let within = UnixTime::from_secs(expires.0.as_secs() - 1);
        Issuer::from_pem(&files.certificate, &files.key, &self.bundle(), within).unwrap()
    }
}

pub(crate) fn authority(name: &str, not_before: u64, not_after: u64) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = (UNIX_EPOCH + Duration::from_secs(not_before)).into();
    params.not_after = (UNIX_EPOCH + Duration::from_secs(not_after)).into();
    params
}

pub(crate) fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().unwrap())
}

/// A request as our proxy and Linkerd's make it.
pub(crate) fn csr(name: &str) -> Vec<u8> {
    csr_with(name, &[dns(name)])
}

pub(crate) fn csr_with(common_name: &str, names: &[SanType]) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    if !common_name.is_empty() {
        params.distinguished_name.push(DnType::CommonName, common_name);
    }
    params.subject_alt_names = names.to_vec();
    params.serialize_request(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
}

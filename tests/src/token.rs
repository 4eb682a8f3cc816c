//! Service-account tokens as the API server signs them.

use anyhow::{Context as _, Result};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use crate::world::Name;

/// The audience of a token for which the manifest names none.
pub const API_AUDIENCE: &str = "https://kubernetes.default.svc.cluster.local";

/// Who signs the tokens of one node's pods: an ECDSA P-256 key (ES256) that lives only in memory.
pub struct TokenSigner {
    key: EncodingKey,
    public_key_pem: String,
}

impl TokenSigner {
    /// The issuer (`iss`) of every token.
    pub const ISSUER: &'static str = "https://kubernetes.default.svc.cluster.local";

    pub fn generate() -> Result<Self> {
        let pair = rcgen::KeyPair::generate().context("making the key that signs service-account tokens")?;
        let key =
            EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).context("reading the key back")?;
        Ok(Self { key, public_key_pem: pair.public_key_pem() })
    }

    /// What `remora-identity --token-public-key` reads.
    pub fn public_key_pem(&self) -> &str {
        &self.public_key_pem
    }

    /// A token bound to the pod, valid from `now` (Unix seconds) for `seconds`.
    pub fn sign(&self, pod: &Pod, audience: &str, now: u64, seconds: u64) -> Result<String> {
        let name = Name::of(pod);
        let account =
            pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref()).unwrap_or("default");
        let claims = json!({
            "iss": Self::ISSUER,
            "aud": [audience],
            "sub": format!("system:serviceaccount:{}:{account}", name.namespace),
            "iat": now,
            "nbf": now,
            "exp": now.saturating_add(seconds),
            "jti": unique_id()?,
            "kubernetes.io": {
                "namespace": name.namespace,
                "pod": {"name": name.name, "uid": pod.metadata.uid},
                "serviceaccount": {"name": account},
            },
        });
        jsonwebtoken::encode(&Header::new(Algorithm::ES256), &claims, &self.key).context("signing a token")
    }
}

/// Seconds since 1970.
pub fn unix_now() -> Result<u64> {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    Ok(since.context("the clock is before 1970")?.as_secs())
}

/// A random UUID from the kernel, for object uids and token ids.
pub fn unique_id() -> Result<String> {
    let id =
        std::fs::read_to_string("/proc/sys/kernel/random/uuid").context("asking the kernel for a UUID")?;
    Ok(id.trim().to_owned())
}

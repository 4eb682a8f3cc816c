//! How an authority begins: a root, and an issuer signed by it. The root's key is needed again only for the next
//! issuer, so it is handed out and not kept. Contract 2.5.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SerialNumber,
};
use remora_core::time::UnixTime;
use remora_runtime::{clock, env::parse};
use std::time::{Duration, UNIX_EPOCH};

/// Clocks that are behind accept what is made now.
const SKEW: Duration = Duration::from_mins(1);

/// 9999-12-31T23:59:59Z, the last time that X.509 can say. RFC 5280 4.1.2.5.
const LAST: UnixTime = UnixTime::from_secs(253_402_300_799);

/// What to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Last part of the authorities' names (`cluster.local`).
    pub trust_domain: String,
    /// The part before it (`remora`).
    pub control_namespace: String,
    /// How long the root holds.
    pub root_lifetime: Duration,
    /// How long the issuer holds; at most as long as the root.
    pub issuer_lifetime: Duration,
}

impl Default for Plan {
    /// A root for ten years and an issuer for one.
    fn default() -> Self {
        Self {
            trust_domain: "cluster.local".to_owned(),
            control_namespace: "remora".to_owned(),
            root_lifetime: Duration::from_hours(24 * 3650),
            issuer_lifetime: Duration::from_hours(24 * 365),
        }
    }
}

/// What was made, in PEM. Not printable: it holds keys.
pub struct Generated {
    /// The trust anchor.
    pub root: String,
    /// Its key.
    pub root_key: String,
    /// When the root ends.
    pub root_expires: UnixTime,
    /// The issuer's certificate.
    pub issuer: String,
    /// Its key.
    pub issuer_key: String,
    /// When the issuer ends.
    pub issuer_expires: UnixTime,
}

/// Why nothing was made.
#[derive(Debug, thiserror::Error)]
pub enum GenerateFault {
    /// A lifetime of zero.
    #[error("the {0} would not hold for a second")]
    Lifetime(&'static str),
    /// A namespace or trust domain that cannot be part of a name.
    #[error("{0} is not a name")]
    Name(String),
    /// The library.
    #[error("cannot make certificates: {0}")]
    Library(#[from] rcgen::Error),
    /// No randomness.
    #[error("no randomness for a serial number")]
    Random,
}

/// Makes keys (ECDSA P-256) and certificates as `plan` says.
pub fn generate(plan: &Plan, now: UnixTime) -> Result<Generated, GenerateFault> {
    let named = |kind: &str| {
        let name = format!("{kind}.{}.{}", plan.control_namespace, plan.trust_domain);
        match remora_core::identity::Identity::parse(&name) {
            Ok(name) => Ok(name.to_string()),
            Err(_) => Err(GenerateFault::Name(name)),
        }
    };
    let root_expires = end(now, plan.root_lifetime);
    let issuer_expires = end(now, plan.issuer_lifetime).min(root_expires);
    for (expires, what) in [(root_expires, "root"), (issuer_expires, "issuer")] {
        if expires <= now {
            return Err(GenerateFault::Lifetime(what));
        }
    }
    let root_key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let root_params = authority(named("root")?, now, root_expires, 1)?;
    let root = root_params.self_signed(&root_key)?;
    let issuer_key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let mut issuer_params = authority(named("identity")?, now, issuer_expires, 0)?;
    issuer_params.use_authority_key_identifier_extension = true;
    let root_key_pem = root_key.serialize_pem();
    let issuer = issuer_params.signed_by(&issuer_key, &Issuer::new(root_params, root_key))?;
    Ok(Generated {
        root: root.pem(),
        root_key: root_key_pem,
        root_expires,
        issuer: issuer.pem(),
        issuer_key: issuer_key.serialize_pem(),
        issuer_expires,
    })
}

/// [`generate`], now.
pub fn generate_now(plan: &Plan) -> Result<Generated, GenerateFault> {
    generate(plan, clock::unix_now())
}

/// Reads a lifetime: an integer followed by ms, s, m, h or d.
pub fn lifetime(text: &str) -> Result<Duration, String> {
    parse::duration(text).map_err(|invalid| format!("{}; expected {}", invalid.wrong, invalid.expected))
}

fn end(now: UnixTime, lifetime: Duration) -> UnixTime {
    let end = (now + lifetime).min(LAST);
    UnixTime::from_secs(end.0.as_secs())
}

fn authority(
    name: String,
    now: UnixTime,
    expires: UnixTime,
    authorities_below: u8,
) -> Result<CertificateParams, GenerateFault> {
    let mut serial = [0; 16];
    aws_lc_rs::rand::fill(&mut serial).map_err(|_broken| GenerateFault::Random)?;
    // RFC 5280 4.1.2.2: positive.
    serial[0] = serial[0] & 0x7f | 0x40;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.not_before = (UNIX_EPOCH + Duration::from_secs(now.since(UnixTime(SKEW)).as_secs())).into();
    params.not_after = (UNIX_EPOCH + expires.0).into();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(authorities_below));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::issuer::Issuer as Loaded;
    use remora_runtime::tls::TrustBundle;

    const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

    #[test]
    fn what_is_made_is_an_issuer_that_its_root_believes() {
        let made = generate(&Plan::default(), NOW).unwrap();
        let bundle = TrustBundle::from_pem(&made.root).unwrap();
        assert_eq!(bundle.to_string(), "CN=root.remora.cluster.local");
        let issuer = Loaded::from_pem(&made.issuer, &made.issuer_key, &bundle, NOW).unwrap();
        assert_eq!(issuer.subject(), "CN=identity.remora.cluster.local");
        assert_eq!(issuer.expires(), made.issuer_expires);
        assert_eq!(made.issuer_expires, NOW + Duration::from_hours(24 * 365));
        assert_eq!(made.root_expires, NOW + Duration::from_hours(24 * 3650));
    }

    #[test]
    fn the_root_can_sign_the_next_issuer() {
        let made = generate(&Plan::default(), NOW).unwrap();
        let bundle = TrustBundle::from_pem(&made.root).unwrap();
        Loaded::from_pem(&made.root, &made.root_key, &bundle, NOW).unwrap();
    }

    #[test]
    fn an_issuer_never_outlives_its_root() {
        let plan = Plan {
            issuer_lifetime: Duration::from_hours(2),
            root_lifetime: Duration::from_hours(1),
            ..Plan::default()
        };
        let made = generate(&plan, NOW).unwrap();
        assert_eq!(made.issuer_expires, made.root_expires);
    }

    #[test]
    fn impossible_plans_are_refused() {
        let refused = |plan: Plan| generate(&plan, NOW).map(|_| ()).unwrap_err().to_string();
        let plan = Plan { issuer_lifetime: Duration::ZERO, ..Plan::default() };
        assert!(refused(plan).contains("the issuer would not hold"));
        let plan = Plan { root_lifetime: Duration::from_millis(900), ..Plan::default() };
        assert!(refused(plan).contains("the root would not hold"));
        let plan = Plan { trust_domain: "a b".to_owned(), ..Plan::default() };
        assert!(refused(plan).contains("is not a name"));
    }

    #[test]
    fn a_lifetime_beyond_all_years_ends_with_them() {
        let plan = Plan { root_lifetime: Duration::MAX, issuer_lifetime: Duration::MAX, ..Plan::default() };
        let made = generate(&plan, NOW).unwrap();
        assert_eq!(made.root_expires, LAST);
    }
}

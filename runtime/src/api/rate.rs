//! The local rate limit of a server. Contract 4.7.

use super::{Invalid, Reading, parts};
use linkerd2_proxy_api::inbound as wire;
use remora_core::rate::{Override, Quota, RateLimits};
use std::{num::NonZeroU32, sync::Arc};

/// Most clients that all overrides of a limit name together.
const MAX_CLIENTS: usize = 16_384;

/// Reads what a protocol says of it. One without any number limits nothing and is none.
pub(super) fn limits(
    reading: &mut Reading,
    wire: Option<wire::HttpLocalRateLimit>,
) -> Result<Option<Arc<RateLimits>>, Invalid> {
    let Some(wire) = wire else { return Ok(None) };
    let meta = parts::resource(wire.metadata)?;
    let mut clients = 0;
    let read = reading.each("overrides", wire.overrides, |reading, one| {
        let identities = one.clients.map(|clients| clients.identities).unwrap_or_default();
        let identities =
            reading.each("clients.identities", identities, |_, identity| parts::identity(&identity.name))?;
        clients += identities.len();
        if clients > MAX_CLIENTS {
            return Err(Invalid::new(format!("more than {MAX_CLIENTS} clients in all overrides")));
        }
        Ok(quota(one.limit).map(|quota| Override { identities, quota }))
    })?;
    let limits = RateLimits {
        meta,
        total: quota(wire.total),
        identity: quota(wire.identity),
        overrides: read.into_iter().flatten().collect(),
    };
    let any = limits.total.is_some() || limits.identity.is_some() || !limits.overrides.is_empty();
    Ok(any.then(|| Arc::new(limits)))
}

/// Zero is no limit, as Linkerd's proxy takes it.
fn quota(wire: Option<wire::http_local_rate_limit::Limit>) -> Option<Quota> {
    NonZeroU32::new(wire?.requests_per_second).map(Quota::per_second)
}

#[cfg(test)]
mod tests {
    use super::*;
    use linkerd2_proxy_api::meta;
    use wire::http_local_rate_limit::{self as wire_limit, Limit};

    const WEB: &str = "web.shop.serviceaccount.identity.remora.cluster.local";

    #[test]
    fn all_that_it_says() {
        let kind = meta::metadata::Kind::Resource(meta::Resource {
            kind: "HTTPLocalRateLimitPolicy".to_owned(),
            name: "web".to_owned(),
            ..meta::Resource::default()
        });
        let read = read(wire::HttpLocalRateLimit {
            metadata: Some(meta::Metadata { kind: Some(kind) }),
            total: Some(limit(1000)),
            identity: Some(limit(100)),
            overrides: vec![over(500, &[WEB, WEB]), over(0, &[WEB])],
        });
        let read = read.unwrap().unwrap();
        let of = |requests| Quota::per_second(NonZeroU32::new(requests).unwrap());
        assert_eq!((&*read.meta.name, read.total, read.identity), ("web", Some(of(1000)), Some(of(100))));
        let [one] = &read.overrides[..] else { panic!("{read:?}") };
        assert_eq!((one.quota, one.identities.len()), (of(500), 2));
    }

    #[test]
    fn what_limits_nothing_is_none() {
        let overrides = vec![over(0, &[WEB])];
        for wire in [
            wire::HttpLocalRateLimit::default(),
            wire::HttpLocalRateLimit {
                total: Some(limit(0)),
                identity: Some(limit(0)),
                overrides,
                metadata: None,
            },
        ] {
            assert_eq!(read(wire), Ok(None));
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let all = vec![WEB; 4096];
        for (overrides, reason) in [
            (vec![over(1, &[WEB]), over(1, &[WEB, "no name"])], "overrides[1].clients.identities[1]: "),
            ((0..5).map(|_| over(1, &all)).collect(), "overrides[4]: more than 16384 clients"),
        ] {
            let why = read(wire::HttpLocalRateLimit { overrides, ..Default::default() }).unwrap_err();
            assert!(why.to_string().starts_with(reason), "{why} should begin with {reason}");
        }
    }

    fn read(wire: wire::HttpLocalRateLimit) -> Result<Option<Arc<RateLimits>>, Invalid> {
        limits(&mut Reading::new(), Some(wire))
    }

    fn limit(requests_per_second: u32) -> Limit {
        Limit { requests_per_second }
    }

    fn over(requests_per_second: u32, clients: &[&str]) -> wire_limit::Override {
        let identities = clients.iter().map(|name| wire::Identity { name: (*name).to_owned() }).collect();
        let clients = Some(wire_limit::r#override::ClientIdentities { identities });
        wire_limit::Override { limit: Some(limit(requests_per_second)), clients }
    }
}

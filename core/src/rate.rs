//! How often somebody may ask: the generic cell rate algorithm, for one, for many told apart by a key, and for the local
//! rate limit of a server (contract 4.7).
//!
//! A bucket holds `burst` requests and gets one back after every interval, without ever keeping more than one time. So in
//! any while no more pass than `burst` and one for every interval of it.

use crate::{identity::Identity, policy::ResourceRef, time::Time};
use alloc::{collections::BTreeMap, sync::Arc, vec::Vec};
use core::{num::NonZeroU32, time::Duration};

#[cfg(planted)]
use crate::planted;

/// Most identities that a limit tells apart; all further ones share one bucket until there is room.
pub const MAX_IDENTITIES: usize = 10_000;
/// Full buckets are looked for no more often, because that looks at all.
const PRUNE: Duration = Duration::from_secs(1);

/// How often one may ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Requests that may come at once.
    pub burst: u32,
    /// One more after each.
    pub interval: Duration,
}

impl Quota {
    /// So many at once, and as many each second, evenly; rounded down by less than a nanosecond per request.
    pub fn per_second(requests: NonZeroU32) -> Self {
        let interval = Duration::from_nanos(1_000_000_000_u64.div_ceil(requests.get().into()));
        Self { burst: requests.get(), interval }
    }
}

/// What one has left. A new one is full.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bucket {
    /// Full then: the later, the emptier.
    full: Time,
}

impl Bucket {
    /// Whether there is one left.
    pub fn has(&self, quota: &Quota, now: Time) -> bool {
        // It is if the bucket would be full again within `burst` intervals.
        self.less(quota, now).since(now) <= quota.interval.saturating_mul(quota.burst)
    }

    /// Takes one, if there is one left. Time must not go backwards.
    pub fn take(&mut self, quota: &Quota, now: Time) -> bool {
        let has = self.has(quota, now);
        if has {
            self.full = self.less(quota, now);
        }
        has
    }

    /// When it would be full with one less.
    fn less(&self, quota: &Quota, now: Time) -> Time {
        self.full.max(now) + quota.interval
    }
}

/// A bucket for each key. Where there is no room for another because all are in use, newcomers share one: a crowd of them
/// takes nothing from those who were there before.
#[derive(Clone, Debug)]
pub struct Keyed<K> {
    quota: Quota,
    most: usize,
    buckets: BTreeMap<K, Bucket>,
    shared: Bucket,
    pruned: Time,
}

impl<K: Ord + Clone> Keyed<K> {
    /// All are full; at most so many are told apart.
    pub fn new(quota: Quota, most: usize) -> Self {
        Self { quota, most, buckets: BTreeMap::new(), shared: Bucket::default(), pruned: Time::default() }
    }

    /// How often each may ask.
    pub fn quota(&self) -> Quota {
        self.quota
    }

    /// Takes one of the key's, if there is one left. Time must not go backwards.
    pub fn take(&mut self, key: &K, now: Time) -> bool {
        let quota = self.quota;
        self.bucket(key, now).take(&quota, now)
    }

    /// How many are told apart at the moment.
    pub fn len(&self) -> usize {
        self.buckets.len()
    }

    /// Whether nobody is.
    pub fn is_empty(&self) -> bool {
        self.buckets.is_empty()
    }

    fn bucket(&mut self, key: &K, now: Time) -> &mut Bucket {
        if !self.buckets.contains_key(key) {
            if self.buckets.len() >= self.most {
                self.prune(now);
            }
            if self.buckets.len() >= self.most {
                return &mut self.shared;
            }
        }
        self.buckets.entry(key.clone()).or_default()
    }

    /// Forgets the full buckets: they are as good as new ones.
    fn prune(&mut self, now: Time) {
        if now.since(self.pruned) >= PRUNE {
            self.pruned = now;
            self.buckets.retain(|_, bucket| bucket.full > now);
        }
    }
}

/// The local rate limit of a server, as policy states it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RateLimits {
    /// The `HTTPLocalRateLimitPolicy` behind it.
    pub meta: Arc<ResourceRef>,
    /// Of all requests together.
    pub total: Option<Quota>,
    /// Of each client; all without an identity are one.
    pub identity: Option<Quota>,
    /// Of some clients, instead of what `identity` says. Of several that name a client the last one holds.
    pub overrides: Vec<Override>,
}

/// What some clients may, together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Override {
    /// Who.
    pub identities: Vec<Identity>,
    /// How often.
    pub quota: Quota,
}

/// Which of the limits of a server a request met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Of all requests.
    Total,
    /// Of its client.
    Identity,
    /// Of some clients.
    Override,
}

impl Scope {
    /// As metrics say it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Total => "total",
            Self::Identity => "identity",
            Self::Override => "override",
        }
    }
}

/// What is left of the limits of a server.
#[derive(Clone, Debug)]
pub struct Limiter {
    limits: Arc<RateLimits>,
    total: Bucket,
    identities: Option<Keyed<Option<Identity>>>,
    overrides: Vec<Bucket>,
    /// Whose is which of `overrides`.
    named: BTreeMap<Identity, usize>,
}

impl Limiter {
    /// Nobody has asked yet.
    pub fn new(limits: Arc<RateLimits>) -> Self {
        let identities = limits.identity.map(|quota| Keyed::new(quota, MAX_IDENTITIES));
        let overrides = limits.overrides.iter().map(|_| Bucket::default()).collect();
        let named = limits.overrides.iter().enumerate();
        let named = named.flat_map(|(nth, one)| one.identities.iter().map(move |who| (who.clone(), nth)));
        Self { named: named.collect(), total: Bucket::default(), identities, overrides, limits }
    }

    /// What holds now.
    pub fn limits(&self) -> &Arc<RateLimits> {
        &self.limits
    }

    /// From now on these hold. What has not changed goes on as it was: nobody gets a new burst because of a change that
    /// is not about him.
    pub fn change(&mut self, limits: Arc<RateLimits>) {
        let mut new = Self::new(limits);
        #[cfg(planted)]
        if planted::makes(planted::Mistake::ChangeRefills) {
            *self = new;
            return;
        }
        if new.limits.total == self.limits.total {
            new.total = self.total;
        }
        if new.limits.identity == self.limits.identity {
            new.identities = self.identities.take();
        }
        for (bucket, one) in new.overrides.iter_mut().zip(&new.limits.overrides) {
            let old = self.limits.overrides.iter().position(|old| old == one);
            if let Some(old) = old.and_then(|nth| self.overrides.get(nth)) {
                *bucket = *old;
            }
        }
        *self = new;
    }

    /// May this client ask once more? If not, whose limit it has met. First the total, then the client's own. What is
    /// refused costs nothing: who asks too often takes nothing from others.
    pub fn take(&mut self, identity: Option<&Identity>, now: Time) -> Result<(), (Scope, Quota)> {
        let total = self.limits.total;
        if let Some(quota) = total.filter(|quota| !self.total.has(quota, now)) {
            return Err((Scope::Total, quota));
        }
        #[cfg(planted)]
        if planted::makes(planted::Mistake::RefusedCosts)
            && let Some(quota) = &total
        {
            self.total.take(quota, now);
        }
        let named = identity.and_then(|identity| self.named.get(identity).copied());
        let over = named.and_then(|nth| {
            Some((Scope::Override, self.limits.overrides.get(nth)?.quota, self.overrides.get_mut(nth)?))
        });
        let own = match (over, &mut self.identities) {
            (Some(over), _) => Some(over),
            (None, Some(keyed)) => {
                Some((Scope::Identity, keyed.quota(), keyed.bucket(&identity.cloned(), now)))
            }
            (None, None) => None,
        };
        if let Some((scope, quota, bucket)) = own
            && !bucket.take(&quota, now)
        {
            return Err((scope, quota));
        }
        #[cfg(planted)]
        if planted::makes(planted::Mistake::RefusedCosts) {
            return Ok(());
        }
        if let Some(quota) = &total {
            self.total.take(quota, now);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;

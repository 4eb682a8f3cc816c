//! Where HTTP requests to a target go by its ServiceProfile. Contract 1.7: that comes before the routes of a policy.

use super::{
    backend::Wanted,
    target::{Split, split},
};
use crate::{Worker, profile::Rules};
use http::HeaderValue;
use remora_core::{breaker::Accrual, profile::Profile, route::OutboundPolicy};
use std::sync::Arc;

/// A ServiceProfile of a Service's port, for one worker.
pub struct ProfilePlan {
    pub rules: Rules,
    /// To the Service itself, or to others by weight: requests by each version of HTTP.
    pub http1: Arc<Split>,
    pub http2: Arc<Split>,
    /// Bytes.
    pub bytes: Arc<Split>,
    /// `<svc>.<ns>.svc.<domain>:<port>`, for the server's proxy to find the same profile by.
    pub canonical: HeaderValue,
}

impl ProfilePlan {
    /// `None` if the profile is nobody's.
    pub(super) fn new(
        worker: &Arc<Worker>,
        profile: &Arc<Profile>,
        policy: &OutboundPolicy,
        port: u16,
    ) -> Option<Self> {
        let dst: Arc<str> = format!("{}:{port}", profile.name.as_ref()?).into();
        let distribution = profile.distribution(&policy.parent, port)?;
        let families = &worker.proxy.metrics.profiles;
        let distribution = Arc::new(distribution);
        let to = |accrual: Option<&Accrual>| {
            let wanted = Wanted { accrual, balancing: &policy.balancing };
            split(worker, &distribution, wanted, &|_| None, &|| None)
        };
        Some(Self {
            canonical: HeaderValue::from_str(&dst).ok()?,
            rules: Rules::new(families, Some(&worker.proxy.budgets), profile.clone(), &dst),
            // What the policy says of failures holds for requests whichever way they take. In Linkerd's proxy it holds
            // by routes alone.
            http1: to(policy.accrual.http1.as_deref()),
            http2: to(policy.accrual.http2.as_deref()),
            bytes: to(None),
        })
    }
}

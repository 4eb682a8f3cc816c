//! Where HTTP requests to a target go by its ServiceProfile. Contract 1.7: that comes before the routes of a policy.

use super::target::{Split, split};
use crate::{Worker, profile::Rules};
use http::HeaderValue;
use remora_core::{policy::ResourceRef, profile::Profile};
use std::sync::Arc;

/// A ServiceProfile of a Service's port, for one worker.
pub struct ProfilePlan {
    pub rules: Rules,
    /// To the Service itself, or to others by weight.
    pub split: Arc<Split>,
    /// `<svc>.<ns>.svc.<domain>:<port>`, for the server's proxy to find the same profile by.
    pub canonical: HeaderValue,
}

impl ProfilePlan {
    /// `None` if the profile is nobody's.
    pub(super) fn new(
        worker: &Arc<Worker>,
        profile: &Arc<Profile>,
        parent: &Arc<ResourceRef>,
        port: u16,
    ) -> Option<Self> {
        let dst: Arc<str> = format!("{}:{port}", profile.name.as_ref()?).into();
        let distribution = profile.distribution(parent, port)?;
        let families = &worker.proxy.metrics.profiles;
        Some(Self {
            canonical: HeaderValue::from_str(&dst).ok()?,
            rules: Rules::new(families, Some(&worker.proxy.budgets), profile.clone(), &dst),
            // Contract 4.6: breakers are what outbound policies say of routes.
            split: split(worker, &Arc::new(distribution), None, &|_| None, &|| None),
        })
    }
}

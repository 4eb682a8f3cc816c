//! Where HTTP requests to a target go by its ServiceProfile. Contract 1.7: that comes before the routes of a policy.

use super::target::{Split, split};
use crate::{Worker, profile::Rules};
use http::HeaderValue;
use remora_core::{
    policy::ResourceRef,
    profile::Profile,
    route::{Backend, BackendTarget, DEFAULT_DECAY, DEFAULT_RTT, Distribution},
};
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
        let backend = |authority: &Arc<str>| Backend {
            meta: parent.clone(),
            target: match &profile.endpoint {
                // A pod that was dialled itself has what goes to its Service.
                Some(pod) if *authority == dst => BackendTarget::Forward(pod.clone()),
                Some(_) | None => BackendTarget::Balance {
                    authority: authority.clone(),
                    default_rtt: DEFAULT_RTT,
                    decay: DEFAULT_DECAY,
                },
            },
            filters: Vec::new(),
        };
        let distribution = if profile.overrides.is_empty() {
            Distribution::FirstAvailable(vec![backend(&dst)])
        } else {
            let weighted = profile.overrides.iter();
            Distribution::RandomAvailable(weighted.map(|dst| (backend(&dst.authority), dst.weight)).collect())
        };
        let families = &worker.proxy.metrics.profiles;
        Some(Self {
            canonical: HeaderValue::from_str(&dst).ok()?,
            rules: Rules::new(families, Some(&worker.proxy.budgets), profile.clone(), &dst),
            // Contract 4.6: breakers are what outbound policies say of routes.
            split: split(worker, &Arc::new(distribution), None, &|_| None, &|| None),
        })
    }
}

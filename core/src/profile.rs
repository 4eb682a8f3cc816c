//! ServiceProfiles: what `GetProfile` says of a target. Contract 3.2; routes 4.1, response classes 4.4.

mod budget;
mod condition;

pub use budget::{BudgetLimits, InvalidBudget, RetryBudget};
pub use condition::{
    InvalidStatuses, MAX_DEPTH, PathRegex, Patterns, RequestMatch, ResponseMatch, StatusRange, TooMuch,
};

#[cfg(planted)]
use crate::planted;
use crate::{
    endpoint::Endpoint,
    policy::ResourceRef,
    route::{Backend, BackendTarget, DEFAULT_DECAY, DEFAULT_RTT, Distribution, RequestView},
};
use alloc::{format, sync::Arc, vec, vec::Vec};
use core::time::Duration;

/// Most routes of a profile. A route is a series of every family by route; Linkerd has no bound.
pub const MAX_ROUTES: usize = 1024;
/// Most destinations of a traffic split.
pub const MAX_OVERRIDES: usize = 128;
/// Most response classes of a route.
pub const MAX_CLASSES: usize = 128;

/// The profile of an address or name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profile {
    /// `<svc>.<ns>.svc.<domain>` of a Service.
    pub name: Option<Arc<str>>,
    /// The port carries bytes that must not be looked at.
    pub opaque: bool,
    /// The one endpoint, when the target is a pod's or an unknown address.
    pub endpoint: Option<Endpoint>,
    /// The Service behind the target.
    pub parent: Option<Arc<ResourceRef>>,
    /// In order: the first that matches has the request. At most [`MAX_ROUTES`].
    pub routes: Vec<ProfileRoute>,
    /// What bounds the retries of all routes together; `None`: nothing is retried.
    pub budget: Option<BudgetLimits>,
    /// Where traffic goes instead, by weight. Empty: to the target itself. At most [`MAX_OVERRIDES`].
    pub overrides: Vec<Override>,
}

/// A route of a profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProfileRoute {
    /// Which requests it has.
    pub condition: RequestMatch,
    /// Its labels in metrics, without the prefix `rt_`; `route` is its name.
    pub labels: Arc<[(Arc<str>, Arc<str>)]>,
    /// What its responses count as: the first class that matches. Where none does, the default holds.
    pub classes: Arc<[ResponseClass]>,
    /// May a request that failed be sent again?
    pub retryable: bool,
    /// How long a request may take from its arrival to the head of its response, retries included.
    pub timeout: Option<Duration>,
}

/// What responses that meet a condition count as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResponseClass {
    /// Which responses.
    pub condition: ResponseMatch,
    /// Do they count as failures?
    pub failure: bool,
}

/// A destination of a traffic split.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Override {
    /// `<svc>.<ns>.svc.<domain>:<port>`.
    pub authority: Arc<str>,
    /// Its share of the sum of all weights. Never 0.
    pub weight: u32,
}

impl Profile {
    /// Do HTTP requests go by this profile, and not by the routes of an outbound policy? Contract 1.7.
    pub fn routes_http(&self) -> bool {
        self.name.is_some() && !(self.routes.is_empty() && self.overrides.is_empty())
    }

    /// Where requests go by it from a target's port: to the target itself, or by weight to others; a pod that was dialled
    /// itself has what goes to its Service. `None` if the profile is nobody's. Contract 1.7.
    pub fn distribution(&self, parent: &Arc<ResourceRef>, port: u16) -> Option<Distribution> {
        let own: Arc<str> = format!("{}:{port}", self.name.as_ref()?).into();
        let backend = |authority: &Arc<str>| Backend {
            meta: parent.clone(),
            target: match &self.endpoint {
                Some(pod) if *authority == own => BackendTarget::Forward(pod.clone()),
                Some(_) | None => BackendTarget::Balance {
                    authority: authority.clone(),
                    default_rtt: DEFAULT_RTT,
                    decay: DEFAULT_DECAY,
                },
            },
            filters: Vec::new(),
        };
        Some(if self.overrides.is_empty() {
            Distribution::FirstAvailable(vec![backend(&own)])
        } else {
            let weighted = self.overrides.iter().map(|dst| (backend(&dst.authority), dst.weight));
            Distribution::RandomAvailable(weighted.collect())
        })
    }

    /// The route of a request; `None`: no route matches, and the request goes where the target is.
    pub fn choose<R: RequestView + ?Sized>(&self, request: &R) -> Option<usize> {
        #[cfg(planted)]
        if planted::makes(planted::Mistake::LastRouteWins) {
            return self.routes.iter().rposition(|route| route.condition.matches(request));
        }
        self.routes.iter().position(|route| route.condition.matches(request))
    }
}

impl ProfileRoute {
    /// Its name, by which people know it: the label `route`.
    pub fn name(&self) -> Option<&str> {
        self.labels.iter().find(|(label, _)| &**label == "route").map(|(_, name)| &**name)
    }
}

/// Whether a response with this status is a failure by the first class that matches; `None` if none does, and the
/// default has to say.
pub fn classify(classes: &[ResponseClass], status: u16) -> Option<bool> {
    classes.iter().find(|class| class.condition.matches(status)).map(|class| class.failure)
}

#[cfg(test)]
mod tests;

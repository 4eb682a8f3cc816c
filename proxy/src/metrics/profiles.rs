//! Requests by the routes of ServiceProfiles: `route_*` as applications see them, `route_actual_*` with every try of the
//! outbound side. Contract 5.4. Profiles bound their labels: each has a bounded number of routes.

use super::{
    labels::{Labels, label},
    requests::{HttpFamilies, RequestMetrics},
};
use remora_core::retry::Reason;
use remora_runtime::metrics::{Budgeted, Counter, Registry};
use std::{borrow::Cow, sync::Arc};

/// Whose requests are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Inbound,
    Outbound,
}

/// The families.
#[derive(Clone)]
pub struct ProfileFamilies {
    effective: HttpFamilies,
    actual: HttpFamilies,
    retryable: Budgeted<Labels, Counter>,
}

/// The series of one route.
pub struct ProfileSeries {
    pub effective: RequestMetrics,
    /// Outbound: every try. Linkerd measures no latency of these.
    pub actual: Option<RequestMetrics>,
}

/// How often a route's requests failed so that they could be sent again. As Linkerd counts: the second is part of the
/// first.
pub struct Retryable {
    pub all: Counter,
    /// The budget did not allow it.
    pub no_budget: Counter,
}

/// Requests of retryable routes that failed and were not sent again, by other reasons than the budget.
pub struct RetriesSkipped(Budgeted<Labels, Counter>);

impl RetriesSkipped {
    pub fn register(registry: &Registry) -> Self {
        let help =
            "Failed requests of retryable routes that were not sent again, though their budget was not asked";
        Self(registry.counters("remora_outbound_retries_skipped_total", help, 8))
    }

    /// Counts one. Rare, and never where a request succeeds.
    pub fn count(&self, reason: Reason) {
        let reason = match reason {
            // Nothing to retry, or counted by its route.
            Reason::Answered | Reason::Hopeless | Reason::NoBudget => return,
            Reason::MayBeProcessed => "may be processed",
            Reason::BodyTooLong => "body too long",
            Reason::BodyUnfinished => "body unfinished",
            Reason::BodyBroken => "body broken",
            Reason::Limit => "limit",
            Reason::Timeout => "timeout",
        };
        self.0.get(vec![label("reason", reason)]).inc();
    }
}

impl ProfileFamilies {
    pub fn register(registry: &Registry, budget: usize) -> Self {
        Self {
            effective: HttpFamilies::register(registry, "route_", true, budget),
            actual: HttpFamilies::register(registry, "route_actual_", false, budget),
            retryable: registry.counters(
                "route_retryable_total",
                "Total count of retryable HTTP responses; with `skipped`, of those that were not sent again",
                budget,
            ),
        }
    }

    /// The series of a route with these labels; without any it is that of the requests that no route has. `dst` is
    /// `<svc>.<ns>.svc.<domain>:<port>`.
    pub fn series(&self, direction: Direction, dst: &str, route: &[(Arc<str>, Arc<str>)]) -> ProfileSeries {
        let labels = labels(direction, dst, route);
        let actual = (direction == Direction::Outbound).then(|| self.actual.of(labels.clone()));
        ProfileSeries { effective: self.effective.of(labels), actual }
    }

    /// Of the outbound requests of a retryable route.
    pub fn retryable(&self, dst: &str, route: &[(Arc<str>, Arc<str>)]) -> Retryable {
        let all = labels(Direction::Outbound, dst, route);
        let mut no_budget = all.clone();
        no_budget.push(label("skipped", "no_budget"));
        Retryable { all: self.retryable.get(all), no_budget: self.retryable.get(no_budget) }
    }
}

fn labels(direction: Direction, dst: &str, route: &[(Arc<str>, Arc<str>)]) -> Labels {
    let side = match direction {
        Direction::Inbound => "inbound",
        Direction::Outbound => "outbound",
    };
    let mut labels: Labels = vec![label("direction", side), label("dst", dst)];
    let of_route = route.iter().map(|(name, value)| (Cow::Owned(format!("rt_{name}")), value.to_string()));
    labels.extend(of_route);
    labels
}

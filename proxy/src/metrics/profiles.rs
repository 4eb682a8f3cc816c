//! Requests by the routes of ServiceProfiles: `route_*` as applications see them, `route_actual_*` with every try of the
//! outbound side. Contract 5.4. Profiles bound their labels: each has a bounded number of routes.

use super::{
    labels::{Labels, label},
    requests::{HttpFamilies, RequestMetrics},
};
use remora_runtime::metrics::Registry;
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
}

/// The series of one route.
pub struct ProfileSeries {
    pub effective: RequestMetrics,
    /// Outbound: every try. Linkerd measures no latency of these.
    pub actual: Option<RequestMetrics>,
}

impl ProfileFamilies {
    pub fn register(registry: &Registry, budget: usize) -> Self {
        Self {
            effective: HttpFamilies::register(registry, "route_", true, budget),
            actual: HttpFamilies::register(registry, "route_actual_", false, budget),
        }
    }

    /// The series of a route with these labels; without any it is that of the requests that no route has. `dst` is
    /// `<svc>.<ns>.svc.<domain>:<port>`.
    pub fn series(&self, direction: Direction, dst: &str, route: &[(Arc<str>, Arc<str>)]) -> ProfileSeries {
        let side = match direction {
            Direction::Inbound => "inbound",
            Direction::Outbound => "outbound",
        };
        let mut labels: Labels = vec![label("direction", side), label("dst", dst)];
        let of_route =
            route.iter().map(|(name, value)| (Cow::Owned(format!("rt_{name}")), value.to_string()));
        labels.extend(of_route);
        let actual = (direction == Direction::Outbound).then(|| self.actual.of(labels.clone()));
        ProfileSeries { effective: self.effective.of(labels), actual }
    }
}

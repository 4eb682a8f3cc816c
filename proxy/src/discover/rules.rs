//! The routes of a policy as one worker uses them: compiled when they arrive, with the handles of their metrics.

use super::{
    backend::Wanted,
    target::{Split, split},
};
use crate::{
    Worker,
    fault::Fault,
    http::{filters::Filters, mirror::Mirrors},
    metrics::{
        RouteMetrics,
        routes::{Kind, RetryMetrics},
    },
};
use remora_core::{
    policy::ResourceRef,
    route::{self, OutboundRoute, OutboundRule, RequestView, RetryPolicy, Table, Timeouts, Wishes},
};
use std::sync::Arc;

/// HTTP routes with what every rule does, by the same indices.
pub struct Routes {
    table: Table,
    pub rules: Vec<Vec<Rule>>,
}

/// Where one rule sends requests, and where they are counted.
pub struct Rule {
    pub split: Arc<Split>,
    pub metrics: Arc<RouteMetrics>,
    /// What is done besides that; nothing by most rules.
    pub ruled: Option<Box<Ruled>>,
}

/// What a rule does besides sending.
pub struct Ruled {
    pub filters: Option<Box<Filters>>,
    pub mirrors: Option<Box<Mirrors>>,
    timeouts: Timeouts,
    retry: Option<RetryPolicy>,
    heeds_wishes: bool,
    /// Where retries are counted, if there may be any.
    pub retries: Option<RetryMetrics>,
}

/// What holds for one request.
pub struct Terms {
    pub timeouts: Timeouts,
    pub retry: Option<RetryPolicy>,
}

/// The rule of a request, and how much of its path the rule's prefix covers, where a filter needs to know.
pub type Chosen<'a> = (&'a Rule, Option<usize>);

impl Routes {
    pub fn compile(
        worker: &Arc<Worker>,
        kind: Kind,
        parent: &Arc<ResourceRef>,
        routes: &[OutboundRoute],
        wanted: Wanted<'_>,
    ) -> Self {
        let metrics = &worker.proxy.metrics;
        let rules = routes.iter().map(|outbound| {
            let route = &outbound.route.meta;
            let backend = |backend: &ResourceRef| Some(metrics.backend(kind, parent, route, backend));
            let mirrored = || Some(metrics.mirrors(kind, parent, route));
            let rule = |rule: &OutboundRule| Rule {
                split: split(worker, &rule.distribution, wanted, &backend, &mirrored),
                metrics: metrics.route(kind, parent, route),
                ruled: {
                    let mirrors =
                        Mirrors::compile(worker, &rule.filters, wanted.balancing, mirrored, &backend);
                    Ruled::compile(rule, mirrors, || metrics.retries(kind, parent, route))
                },
            };
            outbound.rules.iter().map(rule).collect()
        });
        let table = Table::new(routes.iter().map(|outbound| outbound.route.clone()).collect());
        Self { rules: rules.collect(), table }
    }

    /// The rule of a request. `target`: for whom, if there is none.
    pub fn of<R: RequestView>(&self, request: &R, target: &ResourceRef) -> Result<Chosen<'_>, Fault> {
        let chosen = self.table.select(request).map_err(|_| Fault::TwoPaths)?;
        let rule = chosen.and_then(|chosen| {
            let rule = self.rules.get(chosen.route)?.get(chosen.rule)?;
            let prefix = rule.replaces_prefix().then(|| {
                let conditions = self.table.routes().get(chosen.route)?.rules.get(chosen.rule)?;
                route::matched_prefix(conditions, request)
            });
            Some((rule, prefix.flatten()))
        });
        rule.ok_or_else(|| Fault::NoRoute(target.name.clone()))
    }
}

impl Rule {
    fn replaces_prefix(&self) -> bool {
        let own = self.ruled.as_ref().and_then(|ruled| ruled.filters.as_ref());
        own.is_some_and(|filters| filters.replace_prefix) || self.split.replaces_prefix()
    }
}

impl Ruled {
    fn compile(
        rule: &OutboundRule,
        mirrors: Option<Box<Mirrors>>,
        retries: impl FnOnce() -> RetryMetrics,
    ) -> Option<Box<Self>> {
        let filters = Filters::compile(&rule.filters);
        let does_nothing =
            filters.is_none() && rule.timeouts.is_empty() && rule.retry.is_none() && !rule.heeds_wishes;
        (!does_nothing).then(|| {
            Box::new(Self {
                filters,
                mirrors,
                timeouts: rule.timeouts,
                retry: rule.retry.clone(),
                heeds_wishes: rule.heeds_wishes,
                retries: (rule.retry.is_some() || rule.heeds_wishes).then(retries),
            })
        })
    }

    /// What holds for a request. Its own wishes are heeded where that is allowed, and never passed on then.
    pub fn terms<B>(&self, request: &mut http::Request<B>) -> Terms {
        if !self.heeds_wishes || !crate::http::headers::has_own(request.headers()) {
            return Terms { timeouts: self.timeouts, retry: self.retry.clone() };
        }
        let wishes = Wishes::of(&crate::http::view::View(request));
        for name in Wishes::HEADERS {
            request.headers_mut().remove(name);
        }
        let (timeouts, retry) = wishes.over(self.timeouts, self.retry.as_ref());
        Terms { timeouts, retry }
    }
}

//! Which way an outbound request takes: by a ServiceProfile, by a route, or the only one that there is.

use super::{body::Body, view::View};
use crate::{
    discover::{
        profiled::ProfilePlan,
        rules::{Chosen, Routes},
        target::{Plan, PlanProtocol, Split},
    },
    fault::Fault,
    profile,
};
use http::{Request, Version};
use std::sync::Arc;

/// Where a request goes.
pub(super) struct Way<'a> {
    pub(super) split: &'a Split,
    pub(super) by: By<'a>,
}

/// Whose word it is.
pub(super) enum By<'a> {
    /// A target without routes has one way for everything.
    Rule(Option<Chosen<'a>>),
    Profile(&'a ProfilePlan, &'a Arc<profile::Route>),
}

/// The way that a request takes. Contract 1.7: a ServiceProfile comes before routes.
pub(super) fn route<'a>(plan: &'a Plan, request: &Request<Body>) -> Result<Way<'a>, Fault> {
    let routes: &Routes = match (&plan.protocol, request.version()) {
        (PlanProtocol::Detect { .. } | PlanProtocol::Http1(_) | PlanProtocol::Http2(_), _)
            if let Some(plan) = &plan.profile =>
        {
            let split = if request.version() == Version::HTTP_2 { &plan.http2 } else { &plan.http1 };
            return Ok(Way { split, by: By::Profile(plan, plan.rules.of(&View(request))) });
        }
        (PlanProtocol::Detect { http2, .. }, Version::HTTP_2) => http2,
        (PlanProtocol::Detect { http1, .. }, _) => http1,
        (PlanProtocol::Http1(routes) | PlanProtocol::Http2(routes), _) => routes,
        // The target changed under an open connection.
        (PlanProtocol::Opaque(split), _) => return Ok(Way { split, by: By::Rule(None) }),
        (PlanProtocol::Tls(_), _) => return Err(Fault::NoRoute(plan.parent.name.clone())),
        (PlanProtocol::Invalid(reason), _) => {
            return Err(Fault::InvalidPolicy { target: plan.parent.name.clone(), reason: reason.clone() });
        }
    };
    let chosen = routes.of(&View(request), &plan.parent)?;
    Ok(Way { split: &chosen.0.split, by: By::Rule(Some(chosen)) })
}

//! What stands between an inbound request and its application: whether the client may, what the rule that has the request
//! does with it, and how often the client may. In the order of [`super::request`].

use super::{body::Body, filters::Filters, view::View};
use crate::{
    fault::Fault,
    inbound::{self, Connection},
    metrics::Metrics,
    policy::{InForce, PortPolicy},
};
use http::Request;
use remora_core::{
    policy::{Permit, Refusal, Refused, ServerPolicy},
    route::RequestView,
};
use std::sync::Arc;

/// May this client ask for this? If not, why not, and by what.
pub(super) fn permitted(
    server: &InForce,
    connection: &Connection,
    view: &impl RequestView,
) -> Result<Permit, (Refusal, Refused)> {
    let permit = server.authorize_http(connection.client.ip(), &connection.peer, view);
    permit.map_err(|refusal| {
        let refused = Refused::of(server, &refusal);
        (refusal, refused)
    })
}

/// Does what the rule of a permitted request says, or answers in the server's place. What is not sound is refused later,
/// and not before its rate was asked about.
pub(super) fn filter<'a>(
    server: &'a InForce,
    permit: Permit,
    request: &mut Request<Body>,
    sound: bool,
) -> Result<Option<&'a Filters>, Fault> {
    let filters = server.filters(&permit, &View(request)).filter(|_| sound);
    let Some((filters, mut prefix)) = filters else { return Ok(None) };
    drop(permit);
    filters.request(request, &mut prefix)?;
    Ok(Some(filters))
}

/// Whether the client does not ask too often.
pub(super) fn within_rate(
    connection: &Connection,
    policy: &PortPolicy,
    server: &ServerPolicy,
    metrics: &Metrics,
) -> Result<(), Fault> {
    let Some(limits) = &server.rate_limits else { return Ok(()) };
    let Err((scope, quota)) = policy.take(limits, connection.peer.identity()) else { return Ok(()) };
    metrics.rate_limited(connection, server, limits, scope);
    let refused = Arc::new(Refused::by_rate(&server.meta, &limits.meta));
    let fault = Fault::RateLimited { client: inbound::named(connection), refused, scope, quota };
    tracing::info!(client = %connection.client, target = %connection.target, %fault, "request refused");
    Err(fault)
}

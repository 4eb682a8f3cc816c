//! `GetProfile`: what an address or name is, and its ServiceProfile. Contract 3.2.

use super::{Converted, Invalid, Reading, destination, parts, routes};
use linkerd2_proxy_api::destination as wire;
use remora_core::profile::{
    BudgetLimits, MAX_CLASSES, MAX_DEPTH, MAX_OVERRIDES, MAX_ROUTES, Override, Patterns, Profile,
    ProfileRoute, RequestMatch, ResponseClass, ResponseMatch, StatusRange,
};
use std::collections::HashMap;

/// Reads an answer of `GetProfile`. Linkerd's proxy leaves out a route that it does not understand, and its requests
/// take another one; here the whole answer is an error then. A budget that cannot be is none: nothing is retried.
pub fn profile(wire: wire::DestinationProfile) -> Result<Converted<Profile>, Invalid> {
    let mut reading = Reading::new();
    let mut patterns = Patterns::new();
    let routes = bounded(&mut reading, "routes", wire.routes, MAX_ROUTES, |reading, wire| {
        route(reading, &mut patterns, wire)
    })?;
    let overrides =
        bounded(&mut reading, "dst_overrides", wire.dst_overrides, MAX_OVERRIDES, |_, dst| weighted(&dst))?;
    let budget = wire.retry_budget.and_then(|wire| match budget(wire) {
        Ok(budget) => Some(budget),
        // Always sent, and without routes of no use.
        Err(invalid) => {
            reading.ignore_if(!routes.is_empty(), &invalid.within("retry_budget").to_string());
            None
        }
    });
    let endpoint = match wire.endpoint {
        Some(addr) => {
            Some(reading.at("endpoint", |reading| destination::endpoint(reading, addr, &HashMap::new()))?)
        }
        None => None,
    };
    let parent = wire.parent_ref.map(|parent| parts::resource(Some(parent))).transpose();
    let value = Profile {
        name: Some(wire.fully_qualified_name).filter(|name| !name.is_empty()).map(Into::into),
        opaque: wire.opaque_protocol,
        endpoint,
        parent: parent.map_err(|invalid| invalid.within("parent_ref"))?,
        routes,
        budget,
        // Linkerd's proxy drops what has no weight: with no weight at all traffic goes to the target itself.
        overrides: overrides.into_iter().flatten().collect(),
    };
    Ok(reading.finish(value))
}

/// The same answer without its ServiceProfile: what a target is can be known though its routes are not understood.
pub fn without_routes(wire: wire::DestinationProfile) -> wire::DestinationProfile {
    wire::DestinationProfile { routes: Vec::new(), dst_overrides: Vec::new(), retry_budget: None, ..wire }
}

fn bounded<W, T>(
    reading: &mut Reading,
    place: &str,
    wire: Vec<W>,
    most: usize,
    read: impl FnMut(&mut Reading, W) -> Result<T, Invalid>,
) -> Result<Vec<T>, Invalid> {
    if wire.len() > most {
        return Err(Invalid::new(format!("{} items, at most {most} are read", wire.len())).within(place));
    }
    reading.each(place, wire, read)
}

fn route(reading: &mut Reading, patterns: &mut Patterns, wire: wire::Route) -> Result<ProfileRoute, Invalid> {
    let condition = reading.required("condition", wire.condition, |reading, condition| {
        request_match(reading, patterns, condition, 0)
    })?;
    let classes = bounded(reading, "response_classes", wire.response_classes, MAX_CLASSES, response_class)?;
    let timeout = wire.timeout.map(parts::duration).transpose();
    let timeout = timeout.map_err(|invalid| invalid.within("timeout"))?;
    let labels = destination::labels(&HashMap::new(), &wire.metrics_labels);
    Ok(ProfileRoute {
        condition,
        labels: labels.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
        classes: classes.into(),
        retryable: wire.is_retryable,
        timeout: timeout.filter(|timeout| !timeout.is_zero()),
    })
}

fn request_match(
    reading: &mut Reading,
    patterns: &mut Patterns,
    wire: wire::RequestMatch,
    depth: usize,
) -> Result<RequestMatch, Invalid> {
    use wire::request_match::Match;
    within(depth)?;
    let mut seq = |place: &str, seq: wire::request_match::Seq| {
        reading.each(place, seq.matches, |reading, wire| request_match(reading, patterns, wire, depth + 1))
    };
    Ok(match wire.r#match {
        Some(Match::All(all)) => RequestMatch::All(seq("all", all)?),
        Some(Match::Any(any)) => RequestMatch::Any(seq("any", any)?),
        Some(Match::Not(not)) => RequestMatch::Not(Box::new(
            reading.at("not", |reading| request_match(reading, patterns, *not, depth + 1))?,
        )),
        Some(Match::Path(path)) => RequestMatch::Path(
            patterns
                .compile(&path.regex)
                .map_err(|error| Invalid::new(error.to_string()).within("path.regex"))?,
        ),
        Some(Match::Method(method)) => {
            RequestMatch::Method(routes::method(method).map_err(|invalid| invalid.within("method"))?)
        }
        None => return Err(Invalid::new("neither all, any, not, path nor method")),
    })
}

fn response_class(reading: &mut Reading, wire: wire::ResponseClass) -> Result<ResponseClass, Invalid> {
    let condition =
        reading.required("condition", wire.condition, |reading, wire| response_match(reading, wire, 0))?;
    Ok(ResponseClass { condition, failure: wire.is_failure })
}

fn response_match(
    reading: &mut Reading,
    wire: wire::ResponseMatch,
    depth: usize,
) -> Result<ResponseMatch, Invalid> {
    use wire::response_match::Match;
    within(depth)?;
    let mut seq = |place: &str, seq: wire::response_match::Seq| {
        if seq.matches.is_empty() {
            return Err(Invalid::new("empty").within(place));
        }
        reading.each(place, seq.matches, |reading, wire| response_match(reading, wire, depth + 1))
    };
    Ok(match wire.r#match {
        Some(Match::All(all)) => ResponseMatch::All(seq("all", all)?),
        Some(Match::Any(any)) => ResponseMatch::Any(seq("any", any)?),
        Some(Match::Not(not)) => ResponseMatch::Not(Box::new(
            reading.at("not", |reading| response_match(reading, *not, depth + 1))?,
        )),
        Some(Match::Status(range)) => ResponseMatch::Status(
            StatusRange::new(range.min, range.max)
                .map_err(|error| Invalid::new(error.to_string()).within("status"))?,
        ),
        None => return Err(Invalid::new("neither all, any, not nor status")),
    })
}

fn within(depth: usize) -> Result<(), Invalid> {
    if depth < MAX_DEPTH {
        Ok(())
    } else {
        Err(Invalid::new(format!("conditions are nested deeper than {MAX_DEPTH}")))
    }
}

fn budget(wire: wire::RetryBudget) -> Result<BudgetLimits, Invalid> {
    let ttl = wire.ttl.ok_or_else(|| Invalid::new("missing").within("ttl"))?;
    let ttl = parts::duration(ttl).map_err(|invalid| invalid.within("ttl"))?;
    let limits = BudgetLimits::new(wire.retry_ratio, wire.min_retries_per_second, ttl);
    limits.map_err(|error| Invalid::new(error.to_string()))
}

/// A destination with a weight, or none.
fn weighted(wire: &wire::WeightedDst) -> Result<Option<Override>, Invalid> {
    let read = || {
        let (name, port) = wire.authority.rsplit_once(':').ok_or_else(|| Invalid::new("without a port"))?;
        let port = port.parse().map_err(|_| Invalid::new("a port that is no number"));
        let port = parts::port(port?)?;
        let name = parts::dns_name(name)?;
        Ok(format!("{name}:{port}").into())
    };
    let authority = read().map_err(|invalid: Invalid| invalid.within("authority"))?;
    Ok((wire.weight > 0).then_some(Override { authority, weight: wire.weight }))
}

#[cfg(test)]
mod tests;
